//! `score`, `matrix`, `decision`, `advice`, `drain`.

use std::fmt::Write as _;
use std::io::{self, Write};

use super::super::screen::{Screen, Style, plain};
use super::super::table::{Cell, Table};
use super::super::time::{span, utc, utc_short};
use super::{NONE, bytes};
use crate::decision::{self, Answer, DecisionRecord, DecisionRow, DrainStatus, ScoreReport};
use crate::usage::MIB;

fn parts(list: &[(String, f64)]) -> String {
    let parts: Vec<String> = list.iter().map(|(n, v)| format!("{n} {v:.2}")).collect();
    if parts.is_empty() {
        NONE.to_owned()
    } else {
        parts.join(", ")
    }
}

/// `drover score`.
pub fn score(
    out: &mut dyn Write,
    r: &ScoreReport,
    explain: bool,
    screen: &Screen,
) -> io::Result<()> {
    let head = format!(
        "'{}/{}' on {}, expected to use {:.2} CPUs, {:.0} MiB, {}/s net, {}/s disk",
        r.domain,
        r.feature,
        r.host,
        r.demand.cpus,
        r.demand.memory_mib,
        bytes(r.demand.net_bps.max(0.0) as u64),
        bytes(r.demand.disk_bps.max(0.0) as u64)
    );
    writeln!(out, "{}", plain(&head))?;
    let mut t = Table::new(&["", "Host", "Guest", ">Score", "Parts"]);
    for h in &r.hosts {
        t.row(vec![
            if h.here { "here" } else { "" }.into(),
            Cell::new(&h.host),
            Cell::new(&h.domain),
            format!("{:.3}", h.score.value).into(),
            parts(&h.score.parts).into(),
        ]);
    }
    t.write(out, screen)?;
    if explain {
        for h in r.hosts.iter().filter(|h| !h.score.explain.is_empty()) {
            let sum: f64 = h.score.explain.iter().map(|e| e.1).sum();
            writeln!(
                out,
                "\n{}: the model says {sum:.3}, which is",
                plain(&h.host)
            )?;
            let mut t = Table::new(&[">Adds", "Input"]);
            for (name, v) in &h.score.explain {
                t.row(vec![format!("{v:+.4}").into(), Cell::new(name)]);
            }
            t.write(out, screen)?;
        }
        if r.hosts.iter().all(|h| h.score.explain.is_empty()) {
            writeln!(
                out,
                "There is no model to explain yet: scores are what is left free"
            )?;
        }
    }
    writeln!(out)?;
    let age = r.age_s.map_or(String::new(), |s| {
        format!(", {} old", span((s * 1000.0) as i64))
    });
    writeln!(out, "{}{age}", plain(&super::plan::model(&r.model)))?;
    let rows: Vec<String> = r.rows.iter().map(|(h, n)| format!("{h} {n}")).collect();
    writeln!(out, "Rows known: {}", plain(&rows.join(", ")))
}

/// `drover matrix`.
pub fn matrix(out: &mut dyn Write, cells: &[decision::Cell], screen: &Screen) -> io::Result<()> {
    let mut t = Table::new(&["Feature", "From", "Host", "Guest", "", "Because"]);
    for c in cells {
        let ok = c.refusals.is_empty();
        let (word, style) = if ok {
            ("yes", Style::Good)
        } else {
            ("no", Style::Bad)
        };
        t.row(vec![
            Cell::new(c.feature.as_str()),
            Cell::new(format!("{}/{}", c.from.0, c.from.1)),
            Cell::new(&c.host),
            Cell::new(if c.domain.is_empty() { NONE } else { &c.domain }),
            Cell::styled(word, style),
            if ok {
                NONE.into()
            } else {
                c.refusals.join("; ").into()
            },
        ]);
    }
    t.write(out, screen)
}

/// Whether it helped, in words.
pub fn effect(r: &DecisionRow) -> String {
    let Some((_, helped)) = r.helped() else {
        return match (r.judged_ms, &r.move_id) {
            (1.., _) => "not known, nothing was measured".to_owned(),
            (_, Some(_)) => "not measured yet".to_owned(),
            _ => NONE.to_owned(),
        };
    };
    let e = &r.effect;
    let mut text = if helped { "yes" } else { "no" }.to_owned();
    let pair = |a: Option<f64>, b: Option<f64>| a.zip(b);
    if let Some((b, a)) = pair(e.quality_before, e.quality_after) {
        let _ = write!(text, ", quality {b:.2} before, {a:.2} after");
    }
    if let (Some(resource), Some((b, a))) = (r.resource, pair(e.use_before, e.use_after)) {
        let value = |v| crate::threshold::format_value(resource, v);
        let (before, after) = (value(b), value(a));
        let _ = write!(text, ", {resource} {before} before, {after} after");
    }
    text
}

fn what(r: &DecisionRow) -> String {
    match (&r.to, r.answer) {
        (None, _) => r.outcome.replace('_', " "),
        (Some(_), Answer::Proposed) => "proposed".to_owned(),
        (Some(_), Answer::Approved) => "approved".to_owned(),
        (Some(_), Answer::Superseded) => "superseded".to_owned(),
        (Some(_), Answer::None) if r.move_id.is_none() => match r.mode {
            crate::rules::Mode::Shadow => "shadow".to_owned(),
            _ => "not begun".to_owned(),
        },
        _ => "moved".to_owned(),
    }
}

fn to(r: &DecisionRow) -> String {
    r.to.as_ref()
        .map_or(NONE.to_owned(), |(h, d)| format!("{h}/{d}"))
}

/// `drover decision` without an identifier, and `drover advice`.
pub fn list(out: &mut dyn Write, rows: &[DecisionRow], screen: &Screen) -> io::Result<()> {
    let mut t = Table::new(&["Id", "Time (UTC)", "Feature", "What", "To", "Helped", "Why"]);
    for r in rows {
        let helped = match r.helped() {
            Some((_, true)) => Cell::styled("yes", Style::Good),
            Some((_, false)) => Cell::styled("no", Style::Bad),
            None => NONE.into(),
        };
        t.row(vec![
            Cell::new(&r.id),
            utc_short(r.at_ms).into(),
            Cell::new(format!("{}/{}", r.domain, r.feature)),
            what(r).into(),
            to(r).into(),
            helped,
            Cell::new(&r.reason),
        ]);
    }
    t.write(out, screen)
}

/// `drover decision ID`.
pub fn decision(out: &mut dyn Write, d: &DecisionRecord, screen: &Screen) -> io::Result<()> {
    let r = &d.row;
    let cost = d.plan.cost.map_or(NONE.to_owned(), |c| {
        format!(
            "{:.1} s, {:.0} MiB, {:.0} ms of standing still",
            c.seconds,
            c.bytes / MIB,
            c.freeze_ms
        )
    });
    let pairs = [
        ("Id", r.id.clone()),
        ("Time", utc(r.at_ms, true)),
        ("Feature", format!("{}/{}", r.domain, r.feature)),
        ("What", what(r)),
        ("Mode", r.mode.as_str().to_owned()),
        ("To", to(r)),
        ("Move", r.move_id.clone().unwrap_or_else(|| NONE.to_owned())),
        ("Expected", cost),
        ("Helped", effect(r)),
    ];
    for (name, value) in pairs {
        writeln!(out, "{:<10}{}", format!("{name}:"), plain(&value))?;
    }
    writeln!(out)?;
    super::plan::plan(out, &d.plan, screen)
}

/// `drover drain`.
pub fn drain(out: &mut dyn Write, s: &DrainStatus, screen: &Screen) -> io::Result<()> {
    if !s.draining {
        return writeln!(out, "{}", plain(&format!("'{}' accepts moves", s.host)));
    }
    let head = format!(
        "'{}' is drained since {}; {} features left it, {} are there",
        s.host,
        utc(s.since_ms, false),
        s.moved.len(),
        s.left.len()
    );
    writeln!(out, "{}", plain(&head))?;
    if s.left.is_empty() {
        return Ok(());
    }
    let mut t = Table::new(&["Domain", "Feature", "Because"]);
    for l in &s.left {
        t.row(vec![
            Cell::new(&l.domain),
            Cell::new(l.feature.as_str()),
            Cell::new(&l.reason),
        ]);
    }
    t.write(out, screen)
}

#[cfg(test)]
mod tests {
    use super::super::testing::text;
    use super::*;
    use crate::affinity::{Demand, Score};
    use crate::api::ModelInfo;
    use crate::decision::{Effect, HostScore, Left};
    use crate::feature::{FeatureName, Resource};
    use crate::rules::Mode;

    fn name() -> FeatureName {
        FeatureName::new("cache").unwrap()
    }

    fn row() -> DecisionRow {
        DecisionRow {
            id: "0a1b2c3d4e5f".into(),
            at_ms: 951_827_405_000,
            domain: "web".into(),
            feature: name(),
            outcome: "move".into(),
            reason: "cpu is 93 %".into(),
            mode: Mode::Advise,
            to: Some(("beta".into(), "web2".into())),
            answer: Answer::Proposed,
            move_id: None,
            for_breach: true,
            resource: Some(Resource::Cpu),
            effect: Effect::default(),
            judged_ms: 0,
        }
    }

    #[test]
    fn decisions() {
        let out = text(|o, s| list(o, &[row()], s));
        assert_eq!(
            out.lines().nth(1).unwrap(),
            "0a1b2c3d4e5f  2000-02-29 12:30:05  web/cache  proposed  beta/web2  -       cpu is 93 %"
        );
        let mut r = row();
        r.answer = Answer::Approved;
        r.move_id = Some("m".into());
        assert_eq!(effect(&r), "not measured yet");
        r.judged_ms = 1;
        assert!(effect(&r).starts_with("not known"));
        r.effect = Effect {
            quality_before: Some(0.5),
            quality_after: Some(0.9),
            use_before: Some(93.0),
            use_after: Some(40.0),
            limit: Some(80.0),
        };
        assert_eq!(
            effect(&r),
            "yes, quality 0.50 before, 0.90 after, cpu 93.0 % before, 40.0 % after"
        );
    }

    #[test]
    fn scores() {
        let r = ScoreReport {
            domain: "web".into(),
            feature: name(),
            host: "alpha".into(),
            demand: Demand::default(),
            model: ModelInfo {
                kind: "gbdt".into(),
                rows: 300,
                ..ModelInfo::default()
            },
            age_s: Some(90.0),
            rows: vec![("alpha".into(), 200), ("beta".into(), 100)],
            hosts: vec![HostScore {
                host: "beta".into(),
                domain: "web2".into(),
                here: false,
                score: Score {
                    value: 0.81,
                    parts: vec![("model".into(), 0.8)],
                    explain: vec![("base".into(), 0.7), ("host_others_stall".into(), 0.1)],
                },
            }],
        };
        let out = text(|o, s| score(o, &r, true, s));
        assert!(out.contains("the model says 0.800"), "{out}");
        assert!(out.contains("+0.1000  host_others_stall"), "{out}");
        assert!(out.contains("Rows known: alpha 200, beta 100"), "{out}");
        let short = text(|o, s| score(o, &r, false, s));
        assert!(
            !short.contains("host_others_stall") && short.contains("model 0.80"),
            "{short}"
        );
    }

    #[test]
    fn drained() {
        let mut s = DrainStatus {
            host: "alpha".into(),
            ..DrainStatus::default()
        };
        assert_eq!(text(|o, c| drain(o, &s, c)), "'alpha' accepts moves\n");
        s.draining = true;
        s.left.push(Left {
            domain: "web".into(),
            feature: name(),
            reason: "it is pinned".into(),
            tried: false,
        });
        assert!(!s.settled());
        s.left[0].tried = true;
        assert!(s.settled());
        assert!(text(|o, c| drain(o, &s, c)).contains("it is pinned"));
    }
}
