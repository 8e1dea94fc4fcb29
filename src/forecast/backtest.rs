//! Which method is best, and how wrong it is.

use std::sync::Arc;

use super::methods::{self, Model};
use super::pool::{Pool, Pooled};
use super::regression::Regression;
use super::series::fill;
use super::{
    Forecast, MOST_CELLS, MOST_HORIZON_MS, MOST_STEPS, NotYet, Series, Settings, Step, season,
};

/// Earlier moments at which each method is tried, at most.
const ORIGINS: usize = 120;
/// Known steps below which nothing can be said, whatever the settings.
const LEAST: usize = 12;
/// How much better than the last value a method must have been to be taken instead of it.
const GAIN: f64 = 0.97;
/// The same for a mean of methods, against the best of them alone.
const MEAN_GAIN: f64 = 0.98;
/// The same for half of trees' forecast and half of what was best, against that alone: trees from many
/// series are right more often than the errors at so few moments of one tell.
const TREES_GAIN: f64 = 1.05;
/// Most methods whose mean is tried.
const TOGETHER: usize = 5;
/// Age of the last known step, in steps, after which the present is not known.
const STALE: i64 = 3;

/// Forecasts a series at `now_ms`, or says what is missing.
pub fn forecast(series: &Series, settings: &Settings, now_ms: i64) -> Result<Forecast, NotYet> {
    forecast_with(series, None, settings, now_ms)
}

/// The same, with trees that learnt from many series among the methods.
pub fn forecast_with(
    series: &Series,
    pool: Option<&Pool>,
    settings: &Settings,
    now_ms: i64,
) -> Result<Forecast, NotYet> {
    let (values, end_ms) = series.values();
    let step_ms = series.step_ms();
    let known = values.iter().flatten().count();
    let needed = settings.min_points.clamp(LEAST, MOST_CELLS);
    if known < needed || values.len() < LEAST {
        return Err(NotYet::Short {
            known,
            needed,
            step_s: step_ms / 1000,
        });
    }
    if now_ms.saturating_sub(end_ms) > STALE * step_ms {
        return Err(NotYet::Stale {
            age_s: now_ms.saturating_sub(end_ms) / 1000,
        });
    }
    let (x, seen) = fill(&values);
    let n = x.len();
    let wanted = settings
        .horizon_ms
        .clamp(step_ms, MOST_HORIZON_MS.max(step_ms))
        / step_ms;
    let most = (wanted as usize).min(MOST_STEPS).min(n / 4).max(1);
    let judged = ((settings.judge_ms / step_ms).max(1) as usize).min(most);
    // Parameters are chosen on the first half, methods judged on the second.
    let first = n / 2;
    let models = models(&x, first, judged, most, settings, step_ms);
    let origins: Vec<usize> = {
        let all = n - first;
        let stride = all.div_ceil(ORIGINS);
        (first..n).rev().step_by(stride).collect()
    };

    let judge = |model: Model| (error(&model, &x, &seen, &origins, judged), model);
    let mut tried: Vec<(f64, Model)> = models.into_iter().map(judge).collect();
    let naive = tried.first().map_or(f64::INFINITY, |(e, _)| *e);
    tried.retain(|(e, _)| e.is_finite());
    tried.sort_by(|a, b| a.0.total_cmp(&b.0));
    // Methods that forecast the same count once.
    tried.dedup_by(|a, b| a.0 == b.0);
    let together = |k: usize| Model::Mean(tried[..k].iter().map(|(_, m)| m.clone()).collect());
    let mut best = tried.first().cloned();
    for k in 2..=TOGETHER.min(tried.len()) {
        let (e, model) = judge(together(k));
        let needs = best.as_ref().map_or(f64::INFINITY, |(b, m)| match m {
            Model::Mean(_) => *b,
            _ => b * MEAN_GAIN,
        });
        if e < needs {
            best = Some((e, model));
        }
    }
    let (mae, model) = best
        .filter(|(e, _)| *e < naive * GAIN)
        .unwrap_or((naive, Model::Naive));
    let pooled = pool.and_then(|p| p.pooled(&x, &seen, (step_ms, end_ms), &origins));
    let (mae, model) = match pooled {
        Some(trees) => with_trees((mae, model), trees, |model, trees| {
            let known: Vec<usize> = origins
                .iter()
                .copied()
                .filter(|t| trees.knows(*t))
                .collect();
            (known.len() >= LEAST).then(|| error(model, &x, &seen, &known, judged))
        }),
        None => (mae, model),
    };
    if !mae.is_finite() {
        // Never two known steps at the right distance: too full of gaps to judge anything.
        return Err(NotYet::Short {
            known,
            needed: needed.max(known + 1),
            step_s: step_ms / 1000,
        });
    }

    let mut steps = Vec::with_capacity(most);
    let mut spread = Vec::with_capacity(most);
    for h in 1..=most {
        let point = model.predict(&x, n, h);
        let errors = errors(&model, &x, &seen, &origins, h);
        let at = |level| bounded(point + quantile(&errors, level));
        steps.push(Step {
            at_ms: end_ms + h.cast_signed() as i64 * step_ms,
            p10: at(0.1),
            p50: at(0.5),
            p90: at(0.9),
        });
        spread.push((point, errors));
    }
    Ok(Forecast {
        method: model.method(step_ms),
        mae,
        mase: (naive > 0.0).then(|| mae / naive),
        step_ms,
        points: known,
        from_ms: end_ms,
        steps,
        spread,
    })
}

/// What was best, or half of it and half of what trees say when that was better at the moments which the
/// trees did not know when they were grown; `error` is that at these moments, if there are enough.
fn with_trees(
    (mae, model): (f64, Model),
    trees: Pooled,
    error: impl Fn(&Model, &Pooled) -> Option<f64>,
) -> (f64, Model) {
    let trees = Arc::new(trees);
    let both = Model::Mean(vec![model.clone(), Model::Trees(Arc::clone(&trees))]);
    match (error(&model, &trees), error(&both, &trees)) {
        (Some(alone), Some(half)) if half < alone * TREES_GAIN && half.is_finite() => {
            let ratio = if alone.is_finite() { half / alone } else { 1.0 };
            (mae * ratio, both)
        }
        _ => (mae, model),
    }
}

/// All methods for this series, the naive one first.
fn models(
    x: &[f64],
    first: usize,
    judged: usize,
    most: usize,
    settings: &Settings,
    step_ms: i64,
) -> Vec<Model> {
    let n = x.len();
    let mut models = vec![Model::Naive];
    let mut drifts = vec![judged.max(2), (2 * judged).max(6), n - 1];
    drifts.dedup();
    models.extend(drifts.into_iter().map(Model::Drift));
    let acf = season::autocorrelation(x, n / 3);
    let mut periods = season::periods(&acf);
    for p in settings.periods_ms.iter().map(|p| p / step_ms) {
        if p >= 3 && p <= (n / 3).cast_signed() as i64 && !periods.contains(&(p as usize)) {
            periods.push(p as usize);
        }
    }
    models.extend(periods.into_iter().map(Model::Seasonal));
    models.extend(methods::damped(x, first, judged, most));
    models.extend(methods::reversion(x, first, judged, most));
    models.extend(Regression::of(x, first, most.max(judged)).map(Model::Regression));
    models
}

/// Mean absolute error over all origins and judged horizons whose outcome is known.
fn error(model: &Model, x: &[f64], seen: &[bool], origins: &[usize], judged: usize) -> f64 {
    let (mut sum, mut n) = (0.0, 0u32);
    for t in origins.iter().copied().filter(|t| seen[t - 1]) {
        for h in 1..=judged {
            if t + h <= x.len() && seen[t + h - 1] {
                sum += (model.predict(x, t, h) - x[t + h - 1]).abs();
                n += 1;
            }
        }
    }
    if n == 0 || !f64::is_finite(sum) {
        f64::INFINITY
    } else {
        sum / f64::from(n)
    }
}

/// Errors at one horizon and the one before it, for there are few, sorted.
fn errors(model: &Model, x: &[f64], seen: &[bool], origins: &[usize], h: usize) -> Vec<f64> {
    let mut errors = Vec::with_capacity(2 * origins.len());
    for t in origins.iter().copied().filter(|t| seen[t - 1]) {
        for near in h.saturating_sub(1).max(1)..=h {
            if t + near <= x.len() && seen[t + near - 1] {
                errors.push(x[t + near - 1] - model.predict(x, t, near));
            }
        }
    }
    errors.retain(|e| e.is_finite());
    errors.sort_by(f64::total_cmp);
    errors
}

/// Quantile of sorted values, between the two nearest; 0 without values.
pub(super) fn quantile(sorted: &[f64], level: f64) -> f64 {
    let Some(most) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    let at = level.clamp(0.0, 1.0) * most as f64;
    let (low, part) = (at.floor() as usize, at.fract());
    let (a, b) = (sorted[low], sorted[(low + 1).min(most)]);
    a + (b - a) * part
}

/// Use is never below zero, and always a number.
pub(super) fn bounded(value: f64) -> f64 {
    if value.is_nan() {
        0.0
    } else {
        value.clamp(0.0, f64::MAX)
    }
}
