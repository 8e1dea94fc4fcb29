//! `check`.

use std::io::{self, Write};

use serde::Serialize;

use super::super::screen::{Screen, Style, plain};
use super::super::table::{Cell, Table};
use super::{NONE, bytes};
use crate::decision::{Check, CheckedTarget};
use crate::reason::{Reason, Rehearsal};

/// What `--format json` prints.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    #[serde(flatten)]
    check: &'a Check,
    movable: bool,
    rehearsal: Option<&'a Rehearsal>,
}

impl<'a> Report<'a> {
    /// A check, and the rehearsal if there was one.
    pub fn new(check: &'a Check, rehearsal: Option<&'a Rehearsal>) -> Self {
        Self {
            check,
            movable: check.movable(),
            rehearsal,
        }
    }
}

/// A line per reason: where it holds, its name, the sentence.
pub fn check(
    out: &mut dyn Write,
    c: &Check,
    rehearsal: Option<&Rehearsal>,
    screen: &Screen,
) -> io::Result<()> {
    let mut t = Table::new(&["Host", "Guest", "", "Name", "Reason"]);
    let bad = |t: &mut Table, host: &str, guest: &str, r: &Reason| {
        t.row(vec![
            Cell::new(host),
            Cell::new(guest),
            Cell::styled("no", Style::Bad),
            r.code.as_str().into(),
            Cell::new(&r.text),
        ]);
    };
    for r in &c.reasons {
        bad(&mut t, &format!("{} (here)", c.host), &c.domain, r);
    }
    for CheckedTarget {
        host,
        domain,
        reasons,
    } in &c.targets
    {
        let guest = if domain.is_empty() { NONE } else { domain };
        for r in reasons {
            bad(&mut t, host, guest, r);
        }
        if reasons.is_empty() {
            let (word, style) = if c.reasons.is_empty() {
                ("yes", Style::Good)
            } else {
                (NONE, Style::Dim)
            };
            let text = if c.reasons.is_empty() {
                "it could move here"
            } else {
                "nothing here stands in the way"
            };
            t.row(vec![
                Cell::new(host),
                Cell::new(guest),
                Cell::styled(word, style),
                NONE.into(),
                text.into(),
            ]);
        }
    }
    t.write(out, screen)?;
    writeln!(out)?;
    let name = format!("'{}/{}' on {}", c.domain, c.feature, c.host);
    if let Some(cost) = c.cost {
        let line = format!(
            "{name} has {} of memory and {} of state; a move is expected to send {} in {:.1} s \
             and to stop it for {:.0} ms",
            bytes(c.memory_bytes),
            bytes(c.state_bytes),
            bytes(cost.bytes.max(0.0) as u64),
            cost.seconds,
            cost.freeze_ms
        );
        writeln!(out, "{}", plain(&line))?;
    }
    if let Some(r) = rehearsal {
        let line = match &r.problem {
            None => format!(
                "Rehearsal: criu dumped it in {} ms, {} of images, it stood still for {} ms",
                r.dump_ms,
                bytes(r.bytes),
                r.frozen_ms
            ),
            Some(why) => format!("Rehearsal: {why}"),
        };
        writeln!(out, "{}", plain(&line))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::text;
    use super::*;
    use crate::decision::Cost;
    use crate::feature::FeatureName;
    use crate::reason::Code;

    #[test]
    fn reasons_by_place() {
        let target = |host: &str, reasons| CheckedTarget {
            host: host.into(),
            domain: "web2".into(),
            reasons,
        };
        let mut c = Check {
            host: "alpha".into(),
            domain: "web".into(),
            feature: FeatureName::new("cache").unwrap(),
            reasons: vec![],
            targets: vec![
                target("beta", vec![]),
                target("gamma", vec![Reason::new(Code::Kernel, "another kernel")]),
            ],
            cost: Some(Cost {
                bytes: 2_097_152.0,
                seconds: 1.5,
                freeze_ms: 210.0,
            }),
            memory_bytes: 1_048_576,
            state_bytes: 0,
            took_ms: 5,
        };
        assert!(c.movable());
        let rehearsed = Rehearsal {
            problem: None,
            bytes: 1_048_576,
            frozen_ms: 7,
            dump_ms: 9,
        };
        assert_eq!(
            text(|o, s| check(o, &c, Some(&rehearsed), s)),
            "Host   Guest       Name    Reason\n\
             beta   web2   yes  -       it could move here\n\
             gamma  web2   no   kernel  another kernel\n\
             \n\
             'web/cache' on alpha has 1.0 MiB of memory and 0 B of state; a move is expected \
             to send 2.0 MiB in 1.5 s and to stop it for 210 ms\n\
             Rehearsal: criu dumped it in 9 ms, 1.0 MiB of images, it stood still for 7 ms\n"
        );
        c.reasons = vec![Reason::new(Code::IoUring, "uses io_uring")];
        assert!(!c.movable());
        let shown = text(|o, s| check(o, &c, None, s));
        assert!(shown.starts_with("Host          Guest"), "{shown}");
        assert!(
            shown.contains("alpha (here)  web    no  io-uring  uses io_uring"),
            "{shown}"
        );
        assert!(
            shown.contains("beta          web2   -   -         nothing here"),
            "{shown}"
        );
    }
}
