//! Evaluation of a feature's thresholds over its usage points.

use crate::feature::{Resource, Threshold};
use crate::usage::Usage;

use super::text::{format, format_value};

/// A breach that started or ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// What is watched.
    pub resource: Resource,
    /// True when the breach started, false when it ended.
    pub active: bool,
    /// Since when the use has been above the limit (or, at the end, not above it any more),
    /// milliseconds since the epoch.
    pub since_ms: i64,
    /// Latest use in the resource's unit; `None` when it is not available.
    pub value: Option<f64>,
    /// In words, with limit and value.
    pub text: String,
}

/// A breach under way.
#[derive(Debug, Clone, PartialEq)]
pub struct Breach {
    /// The threshold.
    pub threshold: Threshold,
    /// Since when the use has been above the limit, milliseconds since the epoch.
    pub since_ms: i64,
    /// Latest use in the resource's unit.
    pub value: f64,
    /// In words, with limit and value.
    pub text: String,
}

#[derive(Debug, Clone)]
struct Entry {
    threshold: Threshold,
    /// Start of the unbroken run of points on the other side of the limit than the state.
    run_since_ms: Option<i64>,
    active: Option<Breach>,
}

/// Watches one feature's thresholds.
///
/// A breach starts when the use was above the limit for the threshold's whole duration, and
/// ends when it was not above it for as long, at least one interval. What was not measured
/// counts for neither: an unavailable value or a gap longer than three intervals ends a breach
/// and the evidence is collected anew.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    entries: Vec<Entry>,
    /// End and length (ms) of the last interval seen.
    last: Option<(i64, f64)>,
}

impl Watch {
    /// Watches these thresholds, at most one per resource.
    pub fn new(thresholds: &[Threshold]) -> Self {
        let mut w = Self::default();
        w.replace(thresholds, 0);
        w
    }

    /// Replaces the thresholds. Unchanged ones keep their state; a breach of a changed or
    /// removed one ends at `now_ms`.
    pub fn replace(&mut self, thresholds: &[Threshold], now_ms: i64) -> Vec<Change> {
        // No more room than is needed: there are thousands of these.
        let mut old = std::mem::replace(&mut self.entries, Vec::with_capacity(thresholds.len()));
        for t in thresholds {
            let kept = old.iter().position(|e| e.threshold == *t);
            self.entries.push(match kept {
                Some(i) => old.swap_remove(i),
                None => Entry {
                    threshold: *t,
                    run_since_ms: None,
                    active: None,
                },
            });
        }
        let mut changes: Vec<Change> = old
            .into_iter()
            .filter_map(|e| e.active)
            .map(|b| Change {
                resource: b.threshold.resource,
                active: false,
                since_ms: now_ms,
                value: Some(b.value),
                text: format!("threshold '{}' was changed", format(&b.threshold)),
            })
            .collect();
        changes.sort_by_key(|c| c.resource);
        changes
    }

    /// Forgets all evidence, for instance because the feature stopped; ends what is active.
    pub fn reset(&mut self, now_ms: i64) -> Vec<Change> {
        self.last = None;
        let mut changes = Vec::new();
        for e in &mut self.entries {
            e.run_since_ms = None;
            if let Some(b) = e.active.take() {
                changes.push(unknown(&b, now_ms));
            }
        }
        changes
    }

    /// Takes the next point and returns what started or ended with it. A point with the time of
    /// the one before is ignored; one that is older means that the clock was set back, which
    /// counts as a gap.
    pub fn observe(&mut self, usage: &Usage) -> Vec<Change> {
        let dt_ms = (usage.dt_s * 1000.0).max(0.0);
        let mut span_ms = dt_ms;
        let mut gap = false;
        if let Some((at_ms, interval)) = self.last {
            let passed = usage.at_ms.saturating_sub(at_ms);
            if passed == 0 {
                return Vec::new();
            }
            gap = passed < 0 || passed as f64 > 3.0 * interval.max(1.0);
            if gap {
                // A mean over a long gap says nothing about all of it.
                span_ms = dt_ms.min(interval);
            }
        }
        self.last = Some((usage.at_ms, dt_ms));
        let start_ms = usage.at_ms - span_ms.round() as i64;
        self.entries
            .iter_mut()
            .filter_map(|e| e.observe(usage, start_ms, gap))
            .collect()
    }

    /// Breaches under way, in the order of the thresholds.
    pub fn active(&self) -> impl Iterator<Item = &Breach> {
        self.entries.iter().filter_map(|e| e.active.as_ref())
    }
}

fn unknown(b: &Breach, at_ms: i64) -> Change {
    let r = b.threshold.resource;
    Change {
        resource: r,
        active: false,
        since_ms: at_ms,
        value: None,
        text: format!("{r} is not known any more, the breach counts as over"),
    }
}

impl Entry {
    fn observe(&mut self, usage: &Usage, start_ms: i64, gap: bool) -> Option<Change> {
        let before = self.active.clone();
        if gap {
            self.active = None;
            self.run_since_ms = None;
        }
        let t = self.threshold;
        let for_ms = t.for_s * 1000.0;
        let Some(value) = usage.get(t.resource).filter(|v| v.is_finite()) else {
            self.run_since_ms = None;
            self.active = None;
            return before.map(|b| unknown(&b, usage.at_ms));
        };
        let above = value > t.limit;
        let mut ended_since = usage.at_ms;
        if above == self.active.is_some() {
            // The state is confirmed; a run of the other side is broken.
            self.run_since_ms = None;
        } else {
            let since = *self.run_since_ms.get_or_insert(start_ms);
            // Rounding of times to milliseconds must not cost an interval.
            if (usage.at_ms - since) as f64 + 1.0 >= for_ms {
                self.run_since_ms = None;
                ended_since = since;
                self.active = above.then(|| Breach {
                    threshold: t,
                    since_ms: since,
                    value,
                    text: String::new(),
                });
            }
        }
        let (limit, now) = (
            format_value(t.resource, t.limit),
            format_value(t.resource, value),
        );
        if let Some(b) = &mut self.active {
            b.value = value;
            b.text = format!("{} is {now}, limit '{}'", t.resource, format(&t));
        }
        match (&before, &self.active) {
            (None, Some(b)) => Some(Change {
                resource: t.resource,
                active: true,
                since_ms: b.since_ms,
                value: Some(value),
                text: b.text.clone(),
            }),
            (Some(b), None) if gap => Some(unknown(b, usage.at_ms)),
            (Some(_), None) => Some(Change {
                resource: t.resource,
                active: false,
                since_ms: ended_since,
                value: Some(value),
                text: format!("{} is {now}, not above {limit} any more", t.resource),
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    fn point(at_s: i64, cpu: Option<f64>) -> Usage {
        Usage {
            at_ms: 1_000_000 + at_s * 1000,
            dt_s: 5.0,
            cpu_percent: cpu,
            memory_mib: Some(10.0),
            ..Usage::default()
        }
    }

    fn watch(text: &str) -> Watch {
        Watch::new(&[parse(text).unwrap()])
    }

    /// Feeds one value per 5 s; returns (second, active) of every change.
    fn run(w: &mut Watch, from: i64, values: &[f64]) -> Vec<(i64, bool)> {
        let mut out = Vec::new();
        for (i, v) in (0i64..).zip(values) {
            let at = from + 5 * i;
            out.extend(
                w.observe(&point(at, Some(*v)))
                    .iter()
                    .map(|c| (at, c.active)),
            );
        }
        out
    }

    #[test]
    fn starts_after_the_duration_and_ends_after_as_long() {
        let mut w = watch("cpu > 80 % for 10 s");
        let c = run(&mut w, 0, &[90.0, 90.0, 90.0, 10.0, 90.0, 10.0, 10.0, 10.0]);
        assert_eq!(c, [(5, true), (30, false)], "one dip does not end it");
        assert_eq!(w.active().count(), 0);
    }

    #[test]
    fn since_value_and_text() {
        let mut w = watch("cpu > 80 % for 10 s");
        assert!(w.observe(&point(0, Some(90.0))).is_empty());
        let c = w.observe(&point(5, Some(93.0)));
        assert_eq!(c[0].since_ms, 1_000_000 - 5000);
        assert_eq!(c[0].value, Some(93.0));
        assert_eq!(c[0].text, "cpu is 93.0 %, limit 'cpu > 80 % for 10 s'");
        w.observe(&point(10, Some(97.0)));
        assert_eq!(w.active().next().unwrap().value, 97.0, "latest value");
    }

    #[test]
    fn a_single_spike_is_no_breach() {
        let mut w = watch("cpu > 80 % for 10 s");
        let spikes = [10.0, 99.0, 10.0, 10.0, 99.0, 10.0, 99.0, 10.0];
        assert!(run(&mut w, 0, &spikes).is_empty());
        // The limit itself is not above.
        assert!(run(&mut w, 40, &[80.0, 80.0, 80.0, 80.0]).is_empty());
    }

    #[test]
    fn without_duration_one_point_decides() {
        let mut w = watch("cpu > 80 %");
        assert_eq!(
            run(&mut w, 0, &[81.0, 82.0, 79.0]),
            [(0, true), (10, false)]
        );
    }

    #[test]
    fn gaps_and_missing_values_reset() {
        let mut w = watch("cpu > 80 % for 10 s");
        run(&mut w, 0, &[90.0]);
        // 20 s without a point: the evidence from before does not count.
        assert!(w.observe(&point(20, Some(90.0))).is_empty());
        // A point that spans the gap counts one usual interval only.
        let mut long = point(60, Some(90.0));
        long.dt_s = 40.0;
        assert!(w.observe(&long).is_empty());

        let mut w = watch("cpu > 80 % for 10 s");
        assert_eq!(run(&mut w, 0, &[90.0, 90.0]), [(5, true)]);
        let c = w.observe(&point(10, None));
        assert_eq!((c.len(), c[0].active, c[0].value), (1, false, None));
        assert_eq!(run(&mut w, 15, &[90.0, 90.0]), [(20, true)]);
        let c = w.observe(&point(100, Some(90.0)));
        assert_eq!((c.len(), c[0].active), (1, false), "gap while active");
        // Clock set back: a gap, not a stop for ever.
        assert_eq!(run(&mut w, -500, &[90.0, 90.0]), [(-495, true)]);
    }

    #[test]
    fn replaced_while_active() {
        let mut w = watch("cpu > 80 % for 10 s");
        run(&mut w, 0, &[90.0, 90.0]);
        let memory = parse("memory > 5 MiB").unwrap();
        let cpu = parse("cpu > 80 % for 10 s").unwrap();
        assert!(w.replace(&[memory, cpu], 5).is_empty(), "kept as it was");
        assert_eq!(w.active().count(), 1);
        let c = w.replace(&[parse("cpu > 95 % for 10 s").unwrap()], 7);
        assert_eq!((c.len(), c[0].active, c[0].since_ms), (1, false, 7));
        assert!(run(&mut w, 10, &[90.0, 90.0, 90.0]).is_empty());
        assert_eq!(run(&mut w, 25, &[96.0, 96.0]), [(30, true)]);
        assert_eq!(w.reset(9).len(), 1);
        assert!(w.reset(9).is_empty(), "once");
    }

    #[test]
    fn same_time_twice_counts_once() {
        let mut w = watch("cpu > 80 % for 10 s");
        assert!(w.observe(&point(0, Some(90.0))).is_empty());
        assert!(w.observe(&point(0, Some(90.0))).is_empty());
        assert_eq!(w.observe(&point(5, Some(90.0))).len(), 1);
    }
}
