//! Whether a threshold is expected to be crossed.

use crate::feature::{Resource, Threshold};
use crate::threshold::{Change, format_value};

use super::Forecast;

/// Forecasts in a row that start a forecast breach, and that end it.
const IN_A_ROW: u8 = 2;

/// A breach that is expected.
#[derive(Debug, Clone, PartialEq)]
pub struct Expected {
    /// The threshold.
    pub threshold: Threshold,
    /// When the use is expected to pass the limit, milliseconds since the epoch.
    pub at_ms: i64,
    /// Highest value of the quantile until the lead time is over, in the resource's unit.
    pub value: f64,
    /// In words, with limit, time, quantile, method and its error.
    pub text: String,
}

/// The breaches that are expected at `now_ms`.
///
/// A breach is expected when the `confidence` quantile (0 to 1) of the forecast passes the limit
/// within `lead_s` seconds and stays above it for the threshold's duration, at least one step. It
/// must be in the forecast whole: a duration that is longer than the forecast is never expected.
pub fn forecast_breach(
    thresholds: &[Threshold],
    forecasts: &[(Resource, Forecast)],
    confidence: f64,
    lead_s: f64,
    now_ms: i64,
) -> Vec<Expected> {
    let pairs = thresholds.iter().filter_map(|t| {
        let of = forecasts.iter().find(|(r, _)| *r == t.resource)?;
        Some((t, &of.1))
    });
    pairs
        .filter_map(|(t, f)| expected(t, f, confidence, lead_s, now_ms))
        .collect()
}

fn expected(
    t: &Threshold,
    f: &Forecast,
    confidence: f64,
    lead_s: f64,
    now_ms: i64,
) -> Option<Expected> {
    let needed = ((t.for_s * 1000.0 / f.step_ms as f64).ceil() as usize).max(1);
    let lead_ms = now_ms.saturating_add((lead_s * 1000.0) as i64);
    let mut run: Option<(i64, usize)> = None;
    for (i, step) in f.steps.iter().enumerate() {
        if step.at_ms <= now_ms {
            continue;
        }
        if f.quantile(i, confidence).is_none_or(|q| q <= t.limit) {
            run = None;
            continue;
        }
        let begin = (step.at_ms - f.step_ms).max(now_ms);
        let (since, length) = run.map_or((begin, 1), |(s, n)| (s, n + 1));
        if since > lead_ms {
            return None;
        }
        if length < needed {
            run = Some((since, length));
            continue;
        }
        let within = (0..f.steps.len())
            .take_while(|j| *j <= i || f.steps[*j].at_ms <= lead_ms)
            .filter(|j| f.steps[*j].at_ms > since)
            .filter_map(|j| Some((f.steps[j].p50, f.quantile(j, confidence)?)));
        let (median, value) = within.max_by(|a, b| a.1.total_cmp(&b.1))?;
        let show = |v| format_value(t.resource, v);
        return Some(Expected {
            threshold: *t,
            at_ms: since,
            value,
            text: format!(
                "forecast: {} is expected above {} {} ({:.0} % quantile {}, median {}, {}{})",
                t.resource,
                show(t.limit),
                delay(since - now_ms),
                confidence * 100.0,
                show(value),
                show(median),
                f.method,
                f.mase
                    .map_or(String::new(), |e| format!(", error {e:.2} of naive")),
            ),
        });
    }
    None
}

fn delay(ms: i64) -> String {
    match (ms + 500) / 1000 {
        s @ ..1 if s < 1 => "from now on".to_owned(),
        s @ ..90 => format!("in {s} s"),
        s => format!("in {} min", (s + 30) / 60),
    }
}

#[derive(Debug, Clone)]
struct Entry {
    expected: Expected,
    active: bool,
    /// Forecasts in a row that say otherwise than the state.
    against: u8,
    since_ms: i64,
}

/// Keeps one feature's forecast breaches from flapping: one starts with two forecasts in a row,
/// and ends with two that no longer expect it.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    entries: Vec<Entry>,
}

impl Watch {
    /// Takes what a forecast at `now_ms` expects; returns what started or ended with it.
    pub fn observe(&mut self, found: &[Expected], now_ms: i64) -> Vec<Change> {
        let mut changes = Vec::new();
        self.entries.retain_mut(|e| {
            let t = e.expected.threshold;
            if let Some(f) = found.iter().find(|f| f.threshold == t) {
                e.expected = f.clone();
                if e.active {
                    e.against = 0;
                    return true;
                }
                e.against += 1;
                if e.against >= IN_A_ROW {
                    (e.active, e.against, e.since_ms) = (true, 0, now_ms);
                    changes.push(e.change(true, now_ms, f.text.clone()));
                }
                return true;
            }
            if !e.active {
                return false;
            }
            e.against += 1;
            if e.against < IN_A_ROW {
                return true;
            }
            changes.push(e.change(false, now_ms, e.over()));
            false
        });
        for f in found {
            if !self
                .entries
                .iter()
                .any(|e| e.expected.threshold == f.threshold)
            {
                self.entries.push(Entry {
                    expected: f.clone(),
                    active: false,
                    against: 1,
                    since_ms: now_ms,
                });
            }
        }
        changes
    }

    /// Ends what is active at once, for instance because the feature stopped or left.
    pub fn reset(&mut self, now_ms: i64) -> Vec<Change> {
        let entries = std::mem::take(&mut self.entries);
        let active = entries.iter().filter(|e| e.active);
        let text = |e: &Entry| {
            let r = e.expected.threshold.resource;
            format!("forecast: {r} is not metered here any more")
        };
        active.map(|e| e.change(false, now_ms, text(e))).collect()
    }

    /// Ends at once what is about none of these thresholds.
    pub fn keep(&mut self, thresholds: &[Threshold], now_ms: i64) -> Vec<Change> {
        let entries = std::mem::take(&mut self.entries);
        let (kept, gone): (Vec<_>, Vec<_>) = entries
            .into_iter()
            .partition(|e| thresholds.contains(&e.expected.threshold));
        self.entries = kept;
        let active = gone.iter().filter(|e| e.active);
        active.map(|e| e.change(false, now_ms, e.over())).collect()
    }

    /// Whether a breach of this threshold is active.
    pub fn stands(&self, threshold: &Threshold) -> bool {
        let mut of = self.entries.iter();
        of.any(|e| e.active && e.expected.threshold == *threshold)
    }

    /// The active forecast breach that is expected first.
    pub fn first(&self) -> Option<&Expected> {
        let active = self.entries.iter().filter(|e| e.active);
        active.map(|e| &e.expected).min_by_key(|e| e.at_ms)
    }
}

impl Entry {
    fn change(&self, active: bool, since_ms: i64, text: String) -> Change {
        Change {
            resource: self.expected.threshold.resource,
            active,
            since_ms,
            value: active.then_some(self.expected.value),
            text,
        }
    }

    fn over(&self) -> String {
        let t = self.expected.threshold;
        let limit = format_value(t.resource, t.limit);
        format!(
            "forecast: {} is not expected above {limit} any more",
            t.resource
        )
    }
}
