//! The methods: each forecasts from any moment of a series, looking only at what was before.

use std::sync::Arc;

use super::Method;
use super::pool::Pooled;
use super::regression::Regression;

/// Smoothing of the level that [`Model::Reversion`] starts from.
const ALPHAS: [f64; 7] = [0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0];
const BETAS: [f64; 4] = [0.0, 0.05, 0.15, 0.3];
const PHIS: [f64; 3] = [0.8, 0.9, 0.98];

/// A method ready for one series.
#[derive(Debug, Clone)]
pub(super) enum Model {
    Naive,
    /// Slope over so many steps.
    Drift(usize),
    /// Period in steps.
    Seasonal(usize),
    /// Level and trend after each step, and the sums of the damped trend per horizon.
    Damped {
        states: Vec<(f64, f64)>,
        sums: Vec<f64>,
    },
    /// Level and mean after each step, and how much of their distance is left per horizon.
    Reversion {
        states: Vec<(f64, f64)>,
        left: Vec<f64>,
    },
    Regression(Regression),
    /// Shared, for means hold it too.
    Trees(Arc<Pooled>),
    /// The mean of several.
    Mean(Vec<Model>),
}

impl Model {
    /// What the value is expected to be `h` steps (at least 1) after `x[..t]`.
    pub(super) fn predict(&self, x: &[f64], t: usize, h: usize) -> f64 {
        let last = x[t - 1];
        match self {
            Self::Naive => last,
            Self::Drift(window) => {
                let back = (*window).min(t - 1);
                if back == 0 {
                    return last;
                }
                last + (last - x[t - 1 - back]) / back as f64 * h as f64
            }
            Self::Seasonal(period) => {
                let cycles = h.div_ceil(*period);
                (t - 1 + h)
                    .checked_sub(cycles * period)
                    .map_or(last, |i| x[i])
            }
            Self::Damped { states, sums } => {
                let (level, trend) = states[t - 1];
                level + trend * sums[h - 1]
            }
            Self::Reversion { states, left } => {
                let (level, mean) = states[t - 1];
                mean + left[h - 1] * (level - mean)
            }
            Self::Regression(r) => r.predict(t, h),
            Self::Trees(trees) => trees.predict(t, h),
            Self::Mean(of) => {
                let sum: f64 = of.iter().map(|m| m.predict(x, t, h)).sum();
                sum / of.len() as f64
            }
        }
    }

    /// Its name; a step is `step_ms` milliseconds.
    pub(super) fn method(&self, step_ms: i64) -> Method {
        match self {
            Self::Naive => Method::Naive,
            Self::Drift(_) => Method::Drift,
            Self::Seasonal(p) => Method::Seasonal {
                period_ms: p.cast_signed() as i64 * step_ms,
            },
            Self::Damped { .. } => Method::Damped,
            Self::Reversion { .. } => Method::Reversion,
            Self::Regression(_) => Method::Regression,
            Self::Trees(_) => Method::Trees,
            Self::Mean(of) => Method::Mean {
                of: self.count(),
                trees: of.iter().any(Model::has_trees),
            },
        }
    }

    /// How many methods it consists of.
    fn count(&self) -> usize {
        match self {
            Self::Mean(of) => of.iter().map(Model::count).sum(),
            _ => 1,
        }
    }

    fn has_trees(&self) -> bool {
        match self {
            Self::Mean(of) => of.iter().any(Model::has_trees),
            other => matches!(other, Self::Trees(_)),
        }
    }
}

/// Level and trend after each step.
fn holt(x: &[f64], alpha: f64, beta: f64, phi: f64) -> Vec<(f64, f64)> {
    let (mut level, mut trend) = (x[0], 0.0);
    let mut states = Vec::with_capacity(x.len());
    for v in x {
        let before = level;
        let expected = level + phi * trend;
        level = expected + alpha * (v - expected);
        trend = phi * trend + beta * (level - before - phi * trend);
        states.push((level, trend));
    }
    states
}

/// `phi + phi^2 + ... + phi^h` for h from 1 to `most`.
fn sums(phi: f64, most: usize) -> Vec<f64> {
    (0..most)
        .scan((0.0, 1.0), |(sum, power), _| {
            *power *= phi;
            *sum += *power;
            Some(*sum)
        })
        .collect()
}

/// Mean absolute error at the horizons that matter, over `x[..until]`.
fn error(model: &Model, x: &[f64], until: usize, judged: usize) -> f64 {
    let begin = (until / 4).max(1);
    let horizons = [1, judged.div_ceil(2), judged];
    let (mut sum, mut n) = (0.0, 0u32);
    for t in begin..until {
        for h in horizons {
            if t + h <= until {
                sum += (model.predict(x, t, h) - x[t + h - 1]).abs();
                n += 1;
            }
        }
    }
    if n == 0 {
        f64::INFINITY
    } else {
        sum / f64::from(n)
    }
}

/// Damped smoothing with the parameters that were best on `x[..until]`.
pub(super) fn damped(x: &[f64], until: usize, judged: usize, most: usize) -> Option<Model> {
    let mut best: Option<(f64, Model)> = None;
    for phi in PHIS {
        let sums = sums(phi, most.max(judged));
        for beta in BETAS {
            // Without a trend there is nothing to damp.
            if beta == 0.0 && phi != PHIS[0] {
                continue;
            }
            for alpha in ALPHAS {
                let model = Model::Damped {
                    states: holt(&x[..until], alpha, beta, phi),
                    sums: sums.clone(),
                };
                let e = error(&model, x, until, judged);
                if best.as_ref().is_none_or(|(b, _)| e < *b) {
                    let states = holt(x, alpha, beta, phi);
                    let sums = sums.clone();
                    best = Some((e, Model::Damped { states, sums }));
                }
            }
        }
    }
    best.filter(|(e, _)| e.is_finite()).map(|(_, m)| m)
}

/// The mean after each step; it forgets what is older than a few hundred steps.
pub(super) fn running_mean(x: &[f64]) -> Vec<f64> {
    let mut mean = 0.0;
    x.iter()
        .enumerate()
        .map(|(i, v)| {
            mean += (v - mean) / (i as f64 + 1.0).min(240.0);
            mean
        })
        .collect()
}

/// Reversion to the running mean; how much is left of the distance after `h` steps is measured
/// on `x[..until]` for each smoothing of the level.
pub(super) fn reversion(x: &[f64], until: usize, judged: usize, most: usize) -> Option<Model> {
    let means = running_mean(x);
    let mut best: Option<(f64, Model)> = None;
    for alpha in [0.2, 0.5, 1.0] {
        let states: Vec<(f64, f64)> = holt(x, alpha, 0.0, 1.0)
            .into_iter()
            .zip(&means)
            .map(|((level, _), mean)| (level, *mean))
            .collect();
        let begin = (until / 4).max(1);
        let mut left = Vec::with_capacity(most);
        let mut before = 1.0f64;
        for h in 1..=most {
            let (mut xy, mut xx) = (0.0, 0.0);
            for t in begin..until.saturating_sub(h) {
                let (level, mean) = states[t - 1];
                let d = level - mean;
                xy += d * (x[t + h - 1] - mean);
                xx += d * d;
            }
            if xx > 0.0 {
                // Never away from the mean, and never back again.
                before = (xy / xx).clamp(0.0, before);
            }
            left.push(before);
        }
        let model = Model::Reversion { states, left };
        let e = error(&model, x, until, judged.min(most));
        if best.as_ref().is_none_or(|(b, _)| e < *b) {
            best = Some((e, model));
        }
    }
    best.filter(|(e, _)| e.is_finite()).map(|(_, m)| m)
}
