//! A series in regular steps, of bounded length.

use std::collections::VecDeque;

use super::MOST_CELLS;

/// Steps that a series coarsens to as it grows, milliseconds; each divides the next.
const LADDER: [i64; 3] = [10_000, 30_000, 60_000];
/// Unknown steps in a row after which the past says nothing about the present any more.
const MOST_UNKNOWN: i64 = 30;

/// No resource's use is near this in its unit; squares of it are still finite.
const ABSURD: f64 = 1e18;

/// By how many cells the room for them grows: there are thousands of series.
const GROWTH: usize = 60;

/// A step that points go into.
#[derive(Debug, Clone, Copy, Default)]
struct Open {
    sum: f32,
    n: u32,
}

impl Open {
    fn add(&mut self, value: f32) {
        self.sum += value;
        self.n += 1;
    }

    /// Not a number when nothing was measured.
    fn mean(self) -> f32 {
        self.sum / self.n as f32
    }
}

/// The latest use of one resource, averaged over steps that are multiples of their length since
/// the epoch. A full series of 10 s steps (2 h) goes on in steps of 30 s, then 60 s, which keep
/// 12 h; memory and the cost of a forecast stay the same.
#[derive(Debug, Clone)]
pub struct Series {
    step_ms: i64,
    /// Number of the first cell since the epoch.
    first: i64,
    /// Means per step, not a number where nothing was measured. An `f32` is exact enough, and there
    /// may be millions of them.
    cells: VecDeque<f32>,
    /// The last of them.
    open: Open,
    last_ms: i64,
    fixed: bool,
}

impl Series {
    /// An empty series of points that come about every `interval_ms` milliseconds.
    pub fn new(interval_ms: i64) -> Self {
        let step = LADDER.into_iter().find(|s| *s >= interval_ms);
        Self::with_step(step.unwrap_or(interval_ms), step.is_none())
    }

    /// An empty series of a step that never changes, milliseconds.
    pub fn fixed(step_ms: i64) -> Self {
        Self::with_step(step_ms, true)
    }

    fn with_step(step_ms: i64, fixed: bool) -> Self {
        Self {
            step_ms: step_ms.max(1),
            first: 0,
            cells: VecDeque::new(),
            open: Open::default(),
            last_ms: i64::MIN,
            fixed,
        }
    }

    /// Length of a step, milliseconds.
    pub fn step_ms(&self) -> i64 {
        self.step_ms
    }

    /// Time of the newest point, milliseconds since the epoch; `None` when there is none.
    pub fn last_ms(&self) -> Option<i64> {
        (!self.cells.is_empty()).then_some(self.last_ms)
    }

    /// Adds a point: the use over the interval that ended at `at_ms`. One that is not newer than
    /// the newest is left out, as is one that is not a number or absurd.
    pub fn push(&mut self, at_ms: i64, value: f64) {
        let sane = value.abs() <= ABSURD;
        if !sane || (!self.cells.is_empty() && at_ms <= self.last_ms) {
            return;
        }
        let mut index = self.index(at_ms);
        if index - (self.first + self.len()) >= MOST_UNKNOWN {
            self.cells.clear();
        }
        if self.cells.is_empty() {
            self.first = index;
        }
        if index - self.first >= MOST_CELLS.cast_signed() as i64 && !self.fixed {
            self.coarsen();
            index = self.index(at_ms);
        }
        while index >= self.first + self.len() {
            if self.cells.len() == MOST_CELLS {
                self.cells.pop_front();
                self.first += 1;
            }
            if self.cells.len() == self.cells.capacity() {
                self.cells.reserve_exact(GROWTH);
            }
            self.cells.push_back(f32::NAN);
            self.open = Open::default();
        }
        self.open.add(value as f32);
        if let Some(mean) = self.cells.back_mut() {
            *mean = self.open.mean();
        }
        self.last_ms = at_ms;
    }

    fn len(&self) -> i64 {
        self.cells.len().cast_signed() as i64
    }

    /// The cell that ends at or after a time: cell `i` is `(i * step, (i + 1) * step]`.
    fn index(&self, at_ms: i64) -> i64 {
        at_ms.saturating_sub(1).div_euclid(self.step_ms)
    }

    fn coarsen(&mut self) {
        let Some(step) = LADDER.into_iter().find(|s| *s > self.step_ms) else {
            return;
        };
        let factor = step / self.step_ms;
        let first = self.first.div_euclid(factor);
        let mut cells: Vec<Open> = Vec::new();
        for (i, mean) in (self.first..).zip(&self.cells) {
            let index = (i.div_euclid(factor) - first) as usize;
            if index == cells.len() {
                cells.push(Open::default());
            }
            // Means of means: a short cell weighs as much as a full one.
            if let Some(to) = cells.last_mut().filter(|_| !mean.is_nan()) {
                to.add(*mean);
            }
        }
        self.open = cells.last().copied().unwrap_or_default();
        self.cells = cells.into_iter().map(Open::mean).collect();
        (self.step_ms, self.first) = (step, first);
    }

    /// The latest value, and the most that the series rose within any `within_ms`; `None` when
    /// fewer than `least` steps are known.
    pub fn largest_rise(&self, within_ms: i64, least: usize) -> Option<(f64, f64)> {
        let (values, _) = self.values();
        let known = || {
            values
                .iter()
                .enumerate()
                .filter_map(|(i, v)| Some((i, (*v)?)))
        };
        let (_, last) = known().next_back().filter(|_| known().count() >= least)?;
        let steps = usize::try_from(within_ms / self.step_ms).unwrap_or(0);
        // Lows of the window, each with what follows higher than it.
        let mut lows: VecDeque<(usize, f64)> = VecDeque::new();
        let mut rise = 0.0_f64;
        for (i, v) in known() {
            while lows.back().is_some_and(|(_, low)| *low >= v) {
                lows.pop_back();
            }
            lows.push_back((i, v));
            while lows.front().is_some_and(|(at, _)| at + steps < i) {
                lows.pop_front();
            }
            if let Some((_, low)) = lows.front() {
                rise = rise.max(v - low);
            }
        }
        Some((last, rise))
    }

    /// Values per step, oldest first, with the end of the last one; a step is `None` when
    /// nothing was measured in it. The newest step is left out while less than half of it is
    /// over.
    pub(super) fn values(&self) -> (Vec<Option<f64>>, i64) {
        let mut end = (self.first + self.len()) * self.step_ms;
        let mut values: Vec<Option<f64>> = self
            .cells
            .iter()
            .map(|mean| (!mean.is_nan()).then_some(f64::from(*mean)))
            .collect();
        if values.len() > 1 && end - self.last_ms > self.step_ms / 2 {
            values.pop();
            end -= self.step_ms;
        }
        (values, end)
    }
}

/// Unknown steps take the last known value; which ones are known is told beside it.
pub(super) fn fill(values: &[Option<f64>]) -> (Vec<f64>, Vec<bool>) {
    let mut last = values.iter().flatten().next().copied().unwrap_or(0.0);
    let x = values
        .iter()
        .map(|v| {
            last = v.unwrap_or(last);
            last
        })
        .collect();
    (x, values.iter().map(Option::is_some).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_per_step() {
        let mut s = Series::new(5_000);
        for (at, v) in [(5_000, 1.0), (10_000, 3.0), (25_000, 7.0), (31_000, 9.0)] {
            s.push(at, v);
        }
        s.push(30_000, 100.0);
        s.push(32_000, f64::NAN);
        // The step that ends at 40 s has hardly begun.
        let (v, end) = s.values();
        assert_eq!((v, end), (vec![Some(2.0), None, Some(7.0)], 30_000));
        s.push(36_000, 11.0);
        assert_eq!(s.values().0.last(), Some(&Some(10.0)));
    }

    #[test]
    fn the_largest_rise() {
        let mut s = Series::new(10_000);
        let values = [5.0, 3.0, 4.0, 9.0, 2.0, 6.0, 1.0];
        for (at, v) in (1..).zip(values) {
            s.push(at * 10_000, v);
        }
        assert_eq!(s.largest_rise(3_600_000, 7), Some((1.0, 6.0)));
        assert_eq!(s.largest_rise(10_000, 7), Some((1.0, 5.0)));
        assert_eq!(s.largest_rise(0, 7), Some((1.0, 0.0)));
        assert_eq!(s.largest_rise(10_000, 8), None);
        // As every pair of values tells it.
        let pairs = |steps: usize| {
            let of = |i: usize| (i..values.len().min(i + steps + 1)).map(move |j| (i, j));
            let all = (0..values.len()).flat_map(of);
            all.map(|(i, j)| values[j] - values[i]).fold(0.0, f64::max)
        };
        for steps in 0..7 {
            let (_, rise) = s.largest_rise(steps * 10_000, 1).unwrap();
            assert_eq!(rise, pairs(steps as usize));
        }
    }

    #[test]
    fn coarsens_and_stays_bounded() {
        let mut s = Series::new(5_000);
        let mut steps = Vec::new();
        for i in 1..=20 * 720i64 {
            s.push(i * 5_000, i as f64);
            assert!(s.cells.len() <= MOST_CELLS);
            if steps.last() != Some(&s.step_ms()) {
                steps.push(s.step_ms());
            }
        }
        assert_eq!(steps, [10_000, 30_000, 60_000]);
        let (v, end) = s.values();
        assert_eq!(end, 20 * 720 * 5_000);
        assert_eq!(v.len(), 720);
        // 60 s are 12 points: their mean lies 5.5 points before the last.
        let last = v.last().copied().flatten().unwrap();
        assert!((last - (14_400.0 - 5.5)).abs() < 0.6, "{last}");
    }

    #[test]
    fn a_long_gap_begins_anew() {
        let mut s = Series::new(10_000);
        s.push(10_000, 1.0);
        s.push(100_000, 1.0);
        assert_eq!(s.values().0.len(), 10);
        s.push(1_000_000, 1.0);
        assert_eq!(s.values().0.len(), 1);
    }
}
