//! What is chosen among the candidates, and the sentence for it.

use std::fmt::Write as _;

use crate::api::Candidate;
use crate::usage::MIB;

use super::plan::{Context, Open};
use super::refusal::Refusal;
use super::{Ask, Cause};

/// Smallest gain that is more than rounding.
const EPSILON: f64 = 1e-9;

/// Index of the first target that is worth the move.
pub(super) fn beneficial(
    c: &Context<'_>,
    ask: &Ask<'_>,
    stay: f64,
    open: &[Open<'_>],
) -> Option<usize> {
    open.iter().position(|o| {
        let gain = o.score - stay;
        o.relieves && gain > EPSILON && gain >= c.needed(o, ask) - EPSILON
    })
}

/// Outcome, chosen candidate, reason. `explain` is the model's sum for the first candidates.
pub(super) fn choose(
    c: &Context<'_>,
    ask: &Ask<'_>,
    stay: f64,
    (open, refused): (&[Open<'_>], &[Candidate]),
    explain: &[Vec<(String, f64)>],
    of_feature: &[Refusal],
) -> (&'static str, Option<usize>, String) {
    let place = |o: &Open<'_>| {
        format!(
            "guest {} on host {} (score {:.2}, staying {stay:.2})",
            o.instance.domain, o.host.name, o.score
        )
    };
    let why = match (&ask.cause, c.breach) {
        (Cause::Manual { .. }, _) => "asked for by hand".to_owned(),
        (Cause::Crowded { text, .. }, _) => text.clone(),
        (Cause::Drain, _) => format!("host {} is drained", c.source.host.name),
        (_, Some(b)) => b.text.clone(),
        _ => "no threshold is breached".to_owned(),
    };
    if matches!(ask.cause, Cause::Preview { breach: None }) {
        let rest = match open.first() {
            Some(o) => format!("by hand it would best go to {}", place(o)),
            None => nobody(refused, of_feature),
        };
        return ("no_breach", None, format!("{why}; {rest}"));
    }
    let Some(first) = open.first() else {
        let rest = nobody(refused, of_feature);
        return ("no_eligible_host", None, format!("{why}; {rest}"));
    };
    let none = |reason: String| ("no_beneficial_move", None, format!("{why}; {reason}"));
    let with_notes = |n: usize| {
        let o = &open[n];
        let mut text = format!("{why}; to {}", place(o));
        if o.cpu_short {
            text.push_str("; CPU is short there");
        }
        if let Some(p) = c.pressed() {
            let _ = write!(text, "; {p}");
        }
        let downtime = c.source.feature.spec.downtime_ms;
        if c.cost.freeze_ms > downtime as f64 {
            let _ = write!(
                text,
                "; it is expected to stand still for {:.0} ms, more than its {downtime} ms",
                c.cost.freeze_ms
            );
        }
        let _ = write!(
            text,
            "; the move takes about {:.1} s for {:.0} MiB",
            c.cost.seconds,
            c.cost.bytes / MIB
        );
        if let Some((base, rest)) = explain.get(n).and_then(|e| e.split_first()) {
            let _ = write!(text, "; model {:.2}", base.1);
            for (name, v) in rest.iter().take(3) {
                let _ = write!(text, " {v:+.2} {name}");
            }
        }
        text
    };
    if c.named() || matches!(ask.cause, Cause::Drain) {
        return ("move", Some(0), with_notes(0));
    }
    let crowded = matches!(ask.cause, Cause::Crowded { .. });
    if (c.breach.is_some() || crowded)
        && let Some((left, fruitless)) = c.cooling(ask)
    {
        let since = match fruitless {
            0 => String::new(),
            1 => ", longer since its last move did not help".to_owned(),
            n => format!(", longer since its last {n} moves did not help"),
        };
        return none(format!(
            "it has just moved and stays for another {:.0} s (decision.cooldown_s{since})",
            left as f64 / 1000.0
        ));
    }
    if crowded {
        return match c.off() {
            Some(off) => none(format!("it would go to {}, but {off}", place(first))),
            None => ("move", Some(0), with_notes(0)),
        };
    }
    let Some(index) = beneficial(c, ask, stay, open) else {
        let hint = if matches!(ask.cause, Cause::Breach(_)) {
            ""
        } else {
            "; name a host to move it anyway"
        };
        if let Some(b) = c.breach
            && !open.iter().any(|o| o.relieves)
        {
            return none(format!("no host is less pressed for {}{hint}", b.resource));
        }
        let o = open.iter().find(|o| o.relieves).unwrap_or(first);
        return none(format!(
            "the best target, {}, does not gain {:.2} (decision.min_gain and the move's cost){hint}",
            place(o),
            c.needed(o, ask)
        ));
    };
    if c.breach.is_some()
        && let Some(off) = c.off()
    {
        return none(format!("it would go to {}, but {off}", place(&open[index])));
    }
    ("move", Some(index), with_notes(index))
}

/// Why there is no target, with the nearest reasons.
fn nobody(refused: &[Candidate], of_feature: &[Refusal]) -> String {
    if let Some(r) = of_feature.first() {
        return format!("it cannot move: {r}");
    }
    let (own, other) = (Refusal::OwnHost.to_string(), Refusal::NotAsked.to_string());
    let others: Vec<_> = refused
        .iter()
        .filter(|c| c.refusals.first().is_some_and(|r| *r != own && *r != other))
        .collect();
    if others.is_empty() {
        return if refused.iter().any(|c| c.refusals.first() == Some(&other)) {
            "it is on that host already".to_owned()
        } else {
            "no other host is known; add hosts to peer.hosts".to_owned()
        };
    }
    let mut text = String::from("no host can take it");
    for (n, c) in others.iter().take(3).enumerate() {
        let sep = if n == 0 { ": " } else { "; " };
        let _ = write!(text, "{sep}{}: {}", c.host, c.refusals.join(", "));
    }
    if others.len() > 3 {
        let _ = write!(text, "; and {} more", others.len() - 3);
    }
    text
}
