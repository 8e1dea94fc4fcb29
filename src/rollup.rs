//! Points of a time put together: least, most, mean and last of each column. Pure.

use serde::{Deserialize, Serialize};

use crate::columns::{COLUMNS, Column, Unit};
use crate::usage::{MIB, Usage};

/// What a feature used in one step of time. The four parts share `at_ms`, the start of the step,
/// and `dt_s`, the seconds of the step that were measured.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Rollup {
    /// Means, weighted by time.
    pub mean: Usage,
    /// Least values, rounded down: percent to thousandths, rates to whole numbers.
    pub min: Usage,
    /// Greatest values, rounded up likewise.
    pub max: Usage,
    /// Last values, rounded likewise.
    pub last: Usage,
}

impl Rollup {
    /// Nothing but its time.
    pub fn empty(at_ms: i64, dt_s: f64) -> Self {
        let u = Usage {
            at_ms,
            dt_s,
            ..Usage::default()
        };
        Self {
            mean: u,
            min: u,
            max: u,
            last: u,
        }
    }

    /// Start of the step, milliseconds since the epoch.
    pub fn at_ms(&self) -> i64 {
        self.mean.at_ms
    }

    /// Seconds of the step that were measured.
    pub fn covered_s(&self) -> f64 {
        self.mean.dt_s
    }
}

impl From<Usage> for Rollup {
    fn from(u: Usage) -> Self {
        Self {
            mean: u,
            min: u,
            max: u,
            last: u,
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Round {
    Down,
    Up,
    Near,
}

/// Rounds to what is kept; a value that is rounded already stays.
fn rounded(v: f64, unit: Unit, how: Round) -> f64 {
    let tens = match unit {
        Unit::Percent => 1e3,
        Unit::BytesPerSecond | Unit::PerSecond => 1.0,
        Unit::Mib | Unit::Count => return v,
    };
    let near = (v * tens).round() / tens;
    if near == v || how == Round::Near {
        return near;
    }
    match how {
        Round::Down => (v * tens).floor() / tens,
        _ => (v * tens).ceil() / tens,
    }
}

/// The mean as the counter's difference would give it: from whole microseconds and bytes.
fn mean(amount: f64, seconds: f64, unit: Unit) -> f64 {
    match unit {
        Unit::Percent => (amount / 100.0 * 1e6).round() / (seconds * 1e6) * 100.0,
        Unit::BytesPerSecond | Unit::PerSecond => amount.round() / seconds,
        Unit::Mib => (amount / seconds * MIB).round() / MIB,
        Unit::Count => (amount / seconds * 1e3).round() / 1e3,
    }
}

/// One column of the points of a step.
fn column(points: &[Rollup], c: &Column, whole_s: f64, into: &mut Rollup) {
    let (mut amount, mut seconds) = (0.0, 0.0);
    let (mut least, mut most, mut last) = (None::<f64>, None::<f64>, None);
    for p in points {
        let Some(v) = (c.get)(&p.mean) else { continue };
        amount += v * p.covered_s();
        seconds += p.covered_s();
        if let Some(v) = (c.get)(&p.min) {
            least = Some(least.map_or(v, |l| l.min(v)));
        }
        if let Some(v) = (c.get)(&p.max) {
            most = Some(most.map_or(v, |m| m.max(v)));
        }
        last = (c.get)(&p.last).or(last);
    }
    if seconds <= 0.0 {
        return;
    }
    let seconds = (seconds * 1e9).round() / 1e9;
    // The usual case; the same number to the last bit, so that it is stored as a whole number.
    let seconds = if (seconds - whole_s).abs() < 1e-6 {
        whole_s
    } else {
        seconds
    };
    (c.set)(&mut into.mean, Some(mean(amount, seconds, c.unit)));
    let set = |part: &mut Usage, v: Option<f64>, how| {
        (c.set)(part, v.map(|v| rounded(v, c.unit, how)));
    };
    set(&mut into.min, least, Round::Down);
    set(&mut into.max, most, Round::Up);
    set(&mut into.last, last, Round::Near);
}

/// Puts points, in time order, together by steps of `step_ms`, each of which begins at a multiple
/// of it. A point belongs to the step that its time is in.
pub fn roll_up(points: &[Rollup], step_ms: i64) -> Vec<Rollup> {
    let step_ms = step_ms.max(1);
    let step = |p: &Rollup| p.at_ms().div_euclid(step_ms);
    points
        .chunk_by(|a, b| step(a) == step(b))
        .map(|run| {
            let covered: f64 = run.iter().map(Rollup::covered_s).sum();
            let covered = (covered * 1e9).round() / 1e9;
            let mut into = Rollup::empty(step(&run[0]).saturating_mul(step_ms), covered);
            for c in COLUMNS {
                column(run, c, covered, &mut into);
            }
            into
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn point(at_ms: i64, cpu: Option<f64>, rx: f64) -> Rollup {
        Rollup::from(Usage {
            at_ms,
            dt_s: 5.0,
            cpu_percent: cpu,
            net_rx_bps: Some(rx),
            ..Usage::default()
        })
    }

    #[test]
    fn least_most_mean_last() {
        let points = [
            point(60_000, Some(10.0), 1.5),
            point(65_000, Some(30.0), 2.5),
            point(70_000, None, 2.0),
            point(119_999, Some(20.0), 4.0),
            point(120_000, Some(99.0), 0.0),
        ];
        let rolled = roll_up(&points, 60_000);
        assert_eq!(rolled.len(), 2);
        let r = rolled[0];
        assert_eq!((r.at_ms(), r.covered_s()), (60_000, 20.0));
        assert_eq!(r.mean.cpu_percent, Some(20.0));
        assert_eq!(r.min.cpu_percent, Some(10.0));
        assert_eq!(r.max.cpu_percent, Some(30.0));
        assert_eq!(r.last.cpu_percent, Some(20.0));
        assert_eq!(r.mean.net_rx_bps, Some(2.5));
        assert_eq!((r.min.net_rx_bps, r.max.net_rx_bps), (Some(1.0), Some(4.0)));
        assert_eq!(r.mean.memory_mib, None, "never 0 when unavailable");
        assert_eq!(roll_up(&[], 60_000), []);
    }

    proptest! {
        /// In one go or by way of shorter steps: the same extremes, the same mean.
        #[test]
        fn by_way_of_shorter_steps(values in proptest::collection::vec((0.0f64..400.0, 0.0f64..1e9), 1..200)) {
            let points: Vec<Rollup> = values.iter().enumerate()
                .map(|(n, (cpu, rx))| point(i64::try_from(n).unwrap() * 5000, Some(*cpu), *rx)).collect();
            let direct = roll_up(&points, 900_000);
            let stepped = roll_up(&roll_up(&points, 60_000), 900_000);
            prop_assert_eq!(direct.len(), stepped.len());
            for (a, b) in direct.iter().zip(&stepped) {
                prop_assert_eq!(a.min, b.min);
                prop_assert_eq!(a.max, b.max);
                prop_assert_eq!(a.last, b.last);
                prop_assert_eq!(a.covered_s(), b.covered_s());
                let (x, y) = (a.mean.cpu_percent.unwrap(), b.mean.cpu_percent.unwrap());
                prop_assert!((x - y).abs() < 1e-4, "{} {}", x, y);
                prop_assert!(a.min.cpu_percent.unwrap() <= x + 1e-5 && x <= a.max.cpu_percent.unwrap() + 1e-5);
            }
            // Rolled up again by the same step it stays as it is.
            prop_assert_eq!(roll_up(&direct, 900_000), direct);
        }
    }
}
