//! `plan`.

use std::io::{self, Write};

use super::super::screen::{Screen, Style, plain};
use super::super::table::{Cell, Table};
use super::super::time::utc;
use super::NONE;
use crate::api::{ModelInfo, Plan};
use crate::rules::Mode;

/// The candidates, the outcome in a sentence, and the model behind the scores.
pub fn plan(out: &mut dyn Write, p: &Plan, screen: &Screen) -> io::Result<()> {
    let mut t = Table::new(&["", "Host", "Guest", ">Score", "Parts", "Refused because"]);
    for (i, c) in p.candidates.iter().enumerate() {
        let chosen = p.chosen == Some(i);
        let parts: Vec<String> = c.parts.iter().map(|(n, v)| format!("{n} {v:.2}")).collect();
        let or_none = |s: String| if s.is_empty() { NONE.to_owned() } else { s };
        let score = c.score.map_or(NONE.to_owned(), |s| format!("{s:.2}"));
        let style = match (chosen, c.score) {
            (true, _) => Style::Good,
            (false, None) => Style::Dim,
            (false, Some(_)) => Style::Plain,
        };
        t.row(vec![
            if chosen { "*" } else { "" }.into(),
            Cell::styled(&c.host, style),
            Cell::styled(or_none(c.domain.clone()), style),
            Cell::styled(score, style),
            or_none(parts.join(", ")).into(),
            or_none(c.refusals.join("; ")).into(),
        ]);
    }
    t.write(out, screen)?;
    writeln!(out)?;
    let what = format!("'{}/{}' on {}", p.domain, p.feature, p.host);
    let outcome = match (p.outcome.as_str(), p.mode) {
        ("move", Mode::Act) => "would move",
        ("move", Mode::Advise) => "would be proposed to move",
        ("move", Mode::Shadow) => "would move, were it not only watched (mode shadow)",
        (other, _) => match other {
            "no_breach" => "stays: no threshold is breached",
            "no_beneficial_move" => "stays: no host would serve it better",
            "no_eligible_host" => "stays: no host may take it",
            other => other,
        },
    };
    let line = format!(
        "{what} {outcome} (staying scores {:.2}): {}",
        p.stay_score, p.reason
    );
    writeln!(out, "{}", plain(&line))?;
    writeln!(out, "{}", plain(&model(&p.model)))
}

/// The model in a line.
pub(super) fn model(m: &ModelInfo) -> String {
    let kind = match m.kind.as_str() {
        "headroom" => "Model: none yet, affinity is the analytic headroom score".to_owned(),
        "blend" => format!("Model: blended with headroom, weight {:.2}", m.weight),
        "gbdt" => "Model: boosted trees".to_owned(),
        other => format!("Model: {other}"),
    };
    let trained = match m.trained_at_ms {
        ..=0 => String::new(),
        ms => format!(", trained {}", utc(ms, false)),
    };
    let error = m
        .error
        .map_or(String::new(), |e| format!(", backtest error {e:.3}"));
    format!("{kind}; {} rows{trained}{error}", m.rows)
}

#[cfg(test)]
mod tests {
    use super::super::testing::text;
    use super::*;
    use crate::api::Candidate;
    use crate::feature::FeatureName;

    #[test]
    fn refusals_and_outcome() {
        let p = Plan {
            domain: "web".into(),
            feature: FeatureName::new("cache").unwrap(),
            host: "alpha".into(),
            outcome: "move".into(),
            reason: "beta/web2 scores 0.81".into(),
            chosen: Some(0),
            stay_score: 0.4,
            candidates: vec![
                Candidate {
                    host: "beta".into(),
                    domain: "web2".into(),
                    score: Some(0.81),
                    parts: vec![("headroom".into(), 0.9)],
                    refusals: vec![],
                },
                Candidate {
                    host: "gamma".into(),
                    domain: String::new(),
                    score: None,
                    parts: vec![],
                    refusals: vec!["it is draining".into(), "no guest".into()],
                },
            ],
            model: ModelInfo {
                kind: "blend".into(),
                rows: 300,
                weight: 0.5,
                trained_at_ms: 951_827_405_007,
                error: Some(0.0512),
            },
            ..Plan::new("web", FeatureName::new("cache").unwrap(), "alpha")
        };
        assert_eq!(
            text(|o, s| plan(o, &p, s)),
            "   Host   Guest  Score  Parts          Refused because\n\
             *  beta   web2    0.81  headroom 0.90  -\n\
             \x20  gamma  -          -  -              it is draining; no guest\n\
             \n\
             'web/cache' on alpha would move (staying scores 0.40): beta/web2 scores 0.81\n\
             Model: blended with headroom, weight 0.50; 300 rows, trained \
             2000-02-29T12:30:05Z, backtest error 0.051\n"
        );
    }
}
