//! `forecast`.

use std::io::{self, Write};
use std::time::Duration;

use super::super::screen::{Screen, Style, plain};
use super::super::table::{Cell, Table};
use super::super::time::{span, utc_short};
use super::value;
use crate::api::{FeatureForecast, SeriesForecast};
use crate::feature::Resource;
use crate::threshold::format;

/// Rows of a table; of more steps only some are shown.
const ROWS: usize = 30;

/// Only these resources (all when empty), and only as far as `horizon`.
pub fn select(mut f: FeatureForecast, only: &[Resource], horizon: Duration) -> FeatureForecast {
    let until = i64::try_from(horizon.as_millis()).map_or(i64::MAX, |h| f.at_ms.saturating_add(h));
    f.series
        .retain(|s| only.is_empty() || only.contains(&s.resource));
    for s in &mut f.series {
        s.steps.retain(|s| s.at_ms <= until);
    }
    f
}

/// For people: a table per resource; unless `all`, those with a threshold when there are any.
pub fn forecast(
    out: &mut dyn Write,
    f: &FeatureForecast,
    all: bool,
    screen: &Screen,
) -> io::Result<()> {
    let watched: Vec<&SeriesForecast> = f.series.iter().filter(|s| s.threshold.is_some()).collect();
    let shown = if all || watched.is_empty() {
        f.series.iter().collect()
    } else {
        watched
    };
    for s in shown {
        series(out, s, screen)?;
        writeln!(out)?;
    }
    let line = match &f.breach {
        Some(b) => format!("'{}/{}' on {}: {b}", f.domain, f.feature, f.host),
        None => format!(
            "'{}/{}' on {}: Drover acts on no forecast breach (the {:.0} % quantile above the \
             limit within {}, two forecasts in a row)",
            f.domain,
            f.feature,
            f.host,
            f.confidence * 100.0,
            span((f.lead_s * 1000.0) as i64)
        ),
    };
    writeln!(out, "{}", plain(&line))
}

fn series(out: &mut dyn Write, s: &SeriesForecast, screen: &Screen) -> io::Result<()> {
    let r = s.resource;
    let threshold = s.threshold.map_or("no threshold".to_owned(), |t| {
        format!("threshold '{}'", format(&t))
    });
    if let Some(p) = &s.problem {
        return writeln!(out, "{}", plain(&format!("{r}, {threshold}: {p}")));
    }
    let error = s.mase.map_or(String::new(), |e| {
        format!(", {e:.2} of the error of the last value")
    });
    let head = format!(
        "{r}, {threshold}: {}, mean error {}{error}; from {} steps of {}",
        s.method.as_deref().unwrap_or_default(),
        value(r, s.mae),
        s.points,
        span((s.step_s * 1000.0) as i64),
    );
    writeln!(out, "{}", plain(&head))?;
    let mut t = Table::new(&["Time (UTC)", ">10 %", ">50 %", ">90 %"]);
    let every = s.steps.len().div_ceil(ROWS).max(1);
    // The last one is always shown.
    let skip = (s.steps.len().max(1) - 1) % every;
    for step in s.steps.iter().skip(skip).step_by(every) {
        let cell = |v: f64| {
            let above = s.threshold.is_some_and(|t| v > t.limit);
            let style = if above { Style::Bad } else { Style::Plain };
            Cell::styled(value(r, Some(v)), style)
        };
        t.row(vec![
            utc_short(step.at_ms).into(),
            cell(step.p10),
            cell(step.p50),
            cell(step.p90),
        ]);
    }
    t.write(out, screen)?;
    match &s.expected {
        Some(e) => writeln!(out, "{}", plain(e)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::text;
    use super::*;
    use crate::feature::FeatureName;
    use crate::forecast::Step;

    fn sample(steps: i64) -> FeatureForecast {
        let at = |i: i64| Step {
            at_ms: 951_827_400_000 + i * 10_000,
            p10: 10.0,
            p50: 20.0 + i as f64,
            p90: 100.0,
        };
        FeatureForecast {
            host: "alpha".into(),
            domain: "web".into(),
            feature: FeatureName::new("cache").unwrap(),
            at_ms: 951_827_400_000,
            confidence: 0.8,
            lead_s: 300.0,
            breach: None,
            series: vec![SeriesForecast {
                method: Some("drift".into()),
                mae: Some(2.5),
                mase: Some(0.5),
                step_s: 10.0,
                points: 60,
                steps: (1..=steps).map(at).collect(),
                ..SeriesForecast::default()
            }],
        }
    }

    #[test]
    fn table_and_sentence() {
        assert_eq!(
            text(|o, s| forecast(o, &sample(2), false, s)),
            "cpu, no threshold: drift, mean error 2.5 %, 0.50 of the error of the last value; \
             from 60 steps of 10.0 s\n\
             Time (UTC)             10 %    50 %     90 %\n\
             2000-02-29 12:30:10  10.0 %  21.0 %  100.0 %\n\
             2000-02-29 12:30:20  10.0 %  22.0 %  100.0 %\n\
             \n\
             'web/cache' on alpha: Drover acts on no forecast breach (the 80 % quantile above \
             the limit within 5 min 0 s, two forecasts in a row)\n"
        );
    }

    #[test]
    fn long_ones_are_thinned_but_keep_their_end() {
        let out = text(|o, s| forecast(o, &sample(100), true, s));
        assert_eq!(out.lines().count(), 2 + 25 + 2);
        assert!(out.contains("  120.0 %"), "{out}");
        let cut = select(sample(100), &[], Duration::from_secs(60));
        assert_eq!(cut.series[0].steps.len(), 6);
        assert!(
            select(cut, &[Resource::Memory], Duration::MAX)
                .series
                .is_empty()
        );
    }
}
