//! Gradient-boosted trees that learn from many series at once: what a single one is too short to
//! show.
//!
//! Series of all features and resources are put on one scale, each by its own running mean and
//! its mean distance from that. One set of trees per length of step; the horizon is an input.
//! Absolute errors are made small, since methods are judged by these.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Settings;
use super::methods::running_mean;
use super::series::{Series, fill};
use crate::affinity::{AffinityError, Flat, Loss, Params, boost, scattered};

/// Milliseconds between two trainings, for whoever trains.
pub const TRAIN_EVERY_MS: i64 = 1_800_000;
/// Most series that a training needs; more cost memory and teach little.
pub const MOST_SERIES: usize = 200;

/// Trainings kept for each length of step: half a day of them.
const MOST_KEPT: usize = 24;
/// Rows drawn for a training; of some the outcome is not known.
const ROWS: usize = 6_000;
/// Fewest rows from which trees are grown.
const LEAST_ROWS: usize = 200;
/// Steps of a series before its first row.
const LEAST_BEFORE: usize = 12;
/// Smoothing of the averages.
const ALPHAS: [f64; 6] = [0.5, 0.2, 0.08, 0.03, 0.01, 0.004];
/// Steps back, as inputs.
const LAGS: [usize; 8] = [1, 2, 3, 4, 6, 9, 12, 20];
/// Times back of what will be, as inputs, milliseconds.
const PERIODS: [i64; 2] = [1_800_000, 3_600_000];
/// Steps over which the latest range and roughness are told.
const WINDOW: usize = 12;
/// Inputs and labels are within so many scales.
const MOST_INPUT: f64 = 50.0;
const MOST_LABEL: f64 = 20.0;
/// Number of inputs.
const WIDTH: usize = 2 + LAGS.len() + ALPHAS.len() + 5 + PERIODS.len();

type Inputs = [f32; WIDTH];

fn params() -> Params {
    Params {
        trees: 50,
        chunk: 10,
        depth: 3,
        min_leaf: 40,
        ..Params::default()
    }
}

/// A series made ready: what is known after each step.
#[derive(Debug)]
struct Prepared {
    x: Vec<f64>,
    seen: Vec<bool>,
    step_ms: i64,
    means: Vec<f64>,
    /// Mean distance from the mean.
    scales: Vec<f64>,
    averages: Vec<[f64; ALPHAS.len()]>,
}

impl Prepared {
    fn of(x: Vec<f64>, seen: Vec<bool>, step_ms: i64) -> Self {
        let means = running_mean(&x);
        let mut scale = 0.0;
        let scales = x.iter().zip(&means).enumerate().map(|(i, (v, mean))| {
            scale += ((v - mean).abs() - scale) / (i as f64 + 1.0).min(240.0);
            scale.max(1e-3 * mean.abs()).max(1e-6)
        });
        let scales = scales.collect();
        let mut of = [0.0; ALPHAS.len()];
        let averages = x.iter().enumerate().map(|(i, v)| {
            for (average, alpha) in of.iter_mut().zip(ALPHAS) {
                *average += f64::max(alpha, 1.0 / (i as f64 + 1.0)) * (v - *average);
            }
            of
        });
        let averages = averages.collect();
        Self {
            x,
            seen,
            step_ms,
            means,
            scales,
            averages,
        }
    }

    /// Where a forecast after `t` steps starts from: between the last value and the mean.
    fn anchor(&self, t: usize) -> f64 {
        0.5 * (self.x[t - 1] + self.means[t - 1])
    }

    /// What is known after `t` steps of what will be `h` steps later; `judged` scales `h`.
    fn inputs(&self, t: usize, h: usize, judged: usize) -> Inputs {
        let now = self.x[t - 1];
        let (mean, scale) = (self.means[t - 1], self.scales[t - 1]);
        let window = &self.x[t.saturating_sub(WINDOW)..t];
        let count = window.len() as f64;
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for v in window {
            (low, high) = (low.min(*v), high.max(*v));
        }
        let middle = window.iter().sum::<f64>() / count;
        let width = window.iter().map(|v| (v - middle).abs()).sum::<f64>() / count;
        let rough = window.windows(2).map(|w| (w[1] - w[0]).abs()).sum::<f64>() / count;
        let back = |k: usize| (self.x[(t - 1).saturating_sub(k)] - now) / scale;
        let ago = |period: i64| {
            let cycle = usize::try_from(period / self.step_ms).unwrap_or(0).max(1);
            let at = (t - 1 + h).checked_sub(h.div_ceil(cycle) * cycle);
            at.map_or(0.0, |i| (self.x[i] - now) / scale)
        };
        let of = [h as f64 / judged as f64, (now - mean) / scale]
            .into_iter()
            .chain(LAGS.map(back))
            .chain(self.averages[t - 1].map(|a| (a - mean) / scale))
            .chain([(low - now) / scale, (high - now) / scale])
            .chain([width / scale, rough / scale, scale / mean.abs().max(1e-6)])
            .chain(PERIODS.map(ago));
        let mut inputs = [0.0; WIDTH];
        for (to, v) in inputs.iter_mut().zip(of) {
            *to = v.clamp(-MOST_INPUT, MOST_INPUT) as f32;
        }
        inputs
    }
}

/// Trees for one length of step.
#[derive(Debug)]
struct Trees {
    flat: Flat,
    /// Labels were (y - base) / scale.
    base: f64,
    scale: f64,
}

impl Trees {
    fn fit(
        rows: &[(Inputs, f64)],
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<Self, AffinityError> {
        let n = rows.len();
        let mut labels: Vec<f64> = rows.iter().map(|(_, y)| *y).collect();
        labels.sort_by(f64::total_cmp);
        let base = super::backtest::quantile(&labels, 0.5);
        let scale = labels.iter().map(|y| (y - base).abs()).sum::<f64>() / n.max(1) as f64;
        // The crate's tolerances are absolute; without spread there is nothing to learn.
        if scale.is_nan() || scale < 1e-6 {
            return Err(AffinityError::Uniform);
        }
        let standard = rows
            .iter()
            .map(|(x, y)| (x.to_vec(), ((y - base) / scale) as f32));
        let ensemble = boost(standard, n, Loss::Absolute, &params(), keep_going)?;
        Ok(Self {
            flat: Flat::of(&ensemble),
            base,
            scale,
        })
    }

    fn predict(&self, p: &Prepared, t: usize, h: usize, judged: usize) -> f64 {
        let y = self.base + self.scale * self.flat.sum(&p.inputs(t, h, judged));
        p.anchor(t) + p.scales[t - 1] * y
    }
}

/// What one training made of series of one length of step.
#[derive(Debug)]
struct Trained {
    trees: Trees,
    /// End of what it knows, milliseconds since the epoch.
    until_ms: i64,
    judged: usize,
    /// Horizons that the trees were grown for, in steps.
    horizons: Vec<usize>,
}

/// What was learnt from many series, by the latest trainings: the newest forecasts, those before show
/// what its like was worth at moments that they did not know.
#[derive(Debug, Clone, Default)]
pub struct Pool {
    /// By length of step, milliseconds; oldest first.
    of: BTreeMap<i64, Vec<Arc<Trained>>>,
}

impl Pool {
    /// Learns from these series too, the first [`MOST_SERIES`] of each length of step; how far and for
    /// which horizons is in `settings`. `keep_going` is asked before every ten trees. For a length of
    /// step whose series teach nothing, or whose turn did not come, nothing new is learnt.
    #[must_use]
    pub fn trained<'a>(
        &self,
        series: impl Iterator<Item = &'a Series>,
        settings: &Settings,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Self {
        let mut by_step: BTreeMap<i64, (Vec<Prepared>, i64)> = BTreeMap::new();
        for s in series {
            let (of, until_ms) = by_step.entry(s.step_ms()).or_default();
            let (values, end_ms) = s.values();
            if of.len() < MOST_SERIES && values.iter().flatten().count() >= LEAST_BEFORE {
                let (x, seen) = fill(&values);
                of.push(Prepared::of(x, seen, s.step_ms()));
                *until_ms = end_ms.max(*until_ms);
            }
        }
        let mut pool = self.clone();
        for (step_ms, (of, until_ms)) in by_step {
            let new = Trained::of(&of, step_ms, until_ms, settings, keep_going);
            let all = pool.of.entry(step_ms).or_default();
            all.extend(new.map(Arc::new));
            let old = all.len().saturating_sub(MOST_KEPT);
            all.drain(..old);
        }
        pool
    }

    /// Whether there are trees for series of this step, milliseconds.
    pub fn knows(&self, step_ms: i64) -> bool {
        self.of.get(&step_ms).is_some_and(|all| !all.is_empty())
    }

    /// Forecasts after the first `t` of these steps, the last of which ends at `end_ms`: for each `t` of
    /// `moments` by the newest trees that knew nothing later, where there are any, and after all.
    pub(super) fn pooled(
        &self,
        x: &[f64],
        seen: &[bool],
        (step_ms, end_ms): (i64, i64),
        moments: &[usize],
    ) -> Option<Pooled> {
        let all = self.of.get(&step_ms)?;
        let newest = all.last()?;
        let p = Prepared::of(x.to_vec(), seen.to_vec(), step_ms);
        let n = x.len();
        let at = |by: &Trained, t: usize| {
            let of = newest.horizons.iter();
            of.map(|h| by.trees.predict(&p, t, *h, by.judged)).collect()
        };
        let earlier = moments.iter().filter_map(|t| {
            let then = end_ms - (n - t).cast_signed() as i64 * step_ms;
            let by = all.iter().rev().find(|by| by.until_ms <= then)?;
            Some((*t, at(by, *t)))
        });
        let mut known: BTreeMap<usize, Vec<f64>> = earlier.collect();
        known.insert(n, at(newest, n));
        Some(Pooled {
            horizons: newest.horizons.clone(),
            known,
        })
    }
}

impl Trained {
    fn of(
        series: &[Prepared],
        step_ms: i64,
        until_ms: i64,
        settings: &Settings,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Option<Self> {
        let steps = |ms: i64| usize::try_from(ms / step_ms).unwrap_or(0).max(1);
        let most = steps(settings.horizon_ms).min(super::MOST_STEPS);
        let judged = steps(settings.judge_ms).min(most);
        let mut horizons = vec![1, judged.div_ceil(4), judged.div_ceil(2), judged];
        horizons.extend([2 * judged, most]);
        horizons.retain(|h| *h <= most);
        horizons.sort_unstable();
        horizons.dedup();
        let rows = rows(series, &horizons, judged);
        if rows.len() < LEAST_ROWS {
            return None;
        }
        let trees = Trees::fit(&rows, keep_going).ok()?;
        Some(Self {
            trees,
            until_ms,
            judged,
            horizons,
        })
    }
}

/// Rows from moments and horizons by chance, always the same.
fn rows(series: &[Prepared], horizons: &[usize], judged: usize) -> Vec<(Inputs, f64)> {
    // Moments of all series in a row, and where each series ends.
    let ends: Vec<usize> = series
        .iter()
        .scan(0, |sum, p| {
            *sum += p.x.len();
            Some(*sum)
        })
        .collect();
    let total = ends.last().copied().unwrap_or(0);
    let draw = |k: usize| {
        let chance = scattered(k as u64) as usize;
        let moment = chance.checked_rem(total)?;
        let place = ends.partition_point(|end| *end <= moment);
        let p = &series[place];
        let t = moment + p.x.len() - ends[place] + 1;
        let h = horizons[(chance >> 40) % horizons.len()];
        let known = t >= LEAST_BEFORE && t + h <= p.x.len() && p.seen[t - 1] && p.seen[t + h - 1];
        let label = || (p.x[t + h - 1] - p.anchor(t)) / p.scales[t - 1];
        known.then(|| {
            let y = label().clamp(-MOST_LABEL, MOST_LABEL);
            (p.inputs(t, h, judged), y)
        })
    };
    (0..ROWS).filter_map(draw).collect()
}

/// Trees' forecasts for one series.
#[derive(Debug, Clone)]
pub(super) struct Pooled {
    horizons: Vec<usize>,
    /// Per moment, at each horizon.
    known: BTreeMap<usize, Vec<f64>>,
}

impl Pooled {
    /// Whether there is a forecast for this moment.
    pub(super) fn knows(&self, t: usize) -> bool {
        self.known.contains_key(&t)
    }

    /// What the value is expected to be `h` steps after the first `t`; between two horizons what lies
    /// between, beyond the last what is there. Not a number for a moment that it does not know.
    pub(super) fn predict(&self, t: usize, h: usize) -> f64 {
        let Some(at) = self.known.get(&t) else {
            return f64::NAN;
        };
        let next = self.horizons.partition_point(|k| *k < h);
        if next == at.len() {
            return at.last().copied().unwrap_or(f64::NAN);
        }
        let before = next.saturating_sub(1);
        let (from, to) = (self.horizons[before], self.horizons[next]);
        if from == to {
            return at[next];
        }
        let part = (h - from) as f64 / (to - from) as f64;
        at[before] + part * (at[next] - at[before])
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Method, forecast, forecast_with};
    use super::*;

    const STEP_MS: i64 = 10_000;

    fn settings() -> Settings {
        Settings {
            horizon_ms: 400_000,
            judge_ms: 300_000,
            ..Settings::default()
        }
    }

    /// Jobs of 40 steps that come by chance: how long one has run tells when it ends.
    fn jobs(seed: u64, n: usize) -> Vec<f64> {
        let mut values = Vec::new();
        let mut job = 0;
        while values.len() < n {
            job += 1;
            let pause = 20 + scattered(seed << 20 | job) % 80;
            values.extend((0..pause).map(|i| 5.0 + (i % 3) as f64));
            values.extend((0..40).map(|i| 60.0 + (i % 3) as f64));
        }
        values.truncate(n);
        values
    }

    fn push(to: &mut Series, values: &[f64], from: usize) {
        for (at, v) in (1..).zip(values).skip(from) {
            to.push(at * STEP_MS, *v);
        }
    }

    #[test]
    fn many_series_teach_what_one_does_not_show() {
        let values: Vec<Vec<f64>> = (0..8).map(|s| jobs(s, 640)).collect();
        let mut series: Vec<Series> = vec![Series::new(STEP_MS); values.len()];
        let mut pool = Pool::default();
        let mut until = 0;
        for to in [300, 420] {
            for (s, v) in series.iter_mut().zip(&values) {
                push(s, &v[..to], until);
            }
            until = to;
            pool = pool.trained(series.iter(), &settings(), &mut || true);
        }
        let (mut with, mut without, mut trees) = (0.0, 0.0, 0);
        for to in (500..610).step_by(22) {
            for (s, v) in series.iter_mut().zip(&values) {
                push(s, &v[..to], until);
                let now = s.last_ms().unwrap();
                let by = forecast_with(s, Some(&pool), &settings(), now).unwrap();
                let alone = forecast(s, &settings(), now).unwrap();
                for (h, came) in v[to..to + 30].iter().enumerate() {
                    with += (by.steps[h].p50 - came).abs();
                    without += (alone.steps[h].p50 - came).abs();
                }
                trees += usize::from(matches!(by.method, Method::Mean { trees: true, .. }));
            }
            until = to;
        }
        assert!(trees > 10, "{trees}");
        assert!(with < 0.97 * without, "{with} {without}");
    }

    #[test]
    fn judged_only_where_it_did_not_know_what_came() {
        let values = jobs(1, 500);
        let mut series = Series::new(STEP_MS);
        push(&mut series, &values[..300], 0);
        let pool = Pool::default().trained([&series].into_iter(), &settings(), &mut || true);
        push(&mut series, &values, 300);
        let (x, seen) = fill(&series.values().0);
        let when = (STEP_MS, series.values().1);
        let trees = pool.pooled(&x, &seen, when, &[250, 299, 300, 400]).unwrap();
        let known = [250, 299, 300, 400, 500].map(|t| trees.knows(t));
        assert_eq!(known, [false, false, true, true, true]);
        assert!(trees.predict(250, 1).is_nan() && trees.predict(400, 1).is_finite());
        // Between two horizons, and beyond the last.
        let [near, between, far] = [8, 9, 15].map(|h| trees.predict(400, h));
        assert!(
            (between - (near + (far - near) / 7.0)).abs() < 1e-9,
            "{near} {between} {far}"
        );
        assert_eq!(trees.predict(400, 40), trees.predict(400, 99));
        assert!(pool.pooled(&x, &seen, (30_000, 0), &[]).is_none());
    }

    #[test]
    fn odd_series_and_no_time() {
        let odd = [
            vec![1e17; 300],
            (0..300).map(|i| f64::from(i % 7) * 1e17).collect(),
            (0..300).map(|i| -f64::from(i)).collect(),
            vec![0.0; 300],
        ];
        let mut series = vec![Series::new(STEP_MS); odd.len()];
        for (s, v) in series.iter_mut().zip(&odd) {
            push(s, v, 0);
        }
        let go = &mut || true;
        let pool = Pool::default().trained(series.iter(), &settings(), go);
        assert!(pool.knows(STEP_MS));
        for s in &series {
            let f = forecast_with(s, Some(&pool), &settings(), 300 * STEP_MS).unwrap();
            assert!(f.steps.iter().all(|s| s.p50.is_finite()), "{f:?}");
        }
        let mut none = Series::new(STEP_MS);
        push(&mut none, &[1.0; 20], 0);
        let few = Pool::default().trained([&none].into_iter(), &settings(), go);
        assert!(!few.knows(STEP_MS), "too few rows");
        let late = Pool::default().trained(series.iter(), &settings(), &mut || false);
        assert!(!late.knows(STEP_MS));
        let same = Pool::default().trained(series[3..].iter(), &settings(), go);
        assert!(
            !same.knows(STEP_MS),
            "nothing to learn from what never changes"
        );
    }

    #[test]
    fn the_latest_trainings_are_kept() {
        let mut s = Series::new(STEP_MS);
        push(&mut s, &jobs(1, 300), 0);
        let mut pool = Pool::default();
        let quick = &mut 0;
        for _ in 0..MOST_KEPT + 2 {
            *quick = 0;
            // One chunk each.
            let once = &mut || {
                *quick += 1;
                *quick == 1
            };
            pool = pool.trained([&s].into_iter(), &settings(), once);
        }
        assert_eq!(pool.of[&STEP_MS].len(), MOST_KEPT);
    }
}
