//! What a feature will use in the next minutes, with quantiles, and whether a threshold is
//! expected to be crossed. Pure: points in, forecasts out; `now` is an argument.
//!
//! ```text
//! points -> Series (regular steps) -> forecast() -> Forecast -> forecast_breach() -> Watch
//! ```
//!
//! [`forecast()`] tries several methods on the series' own past: at many earlier moments it
//! forecasts what is known by now (rolling origin), and takes the method with the least absolute
//! error; the mean of the best few counts as a method too. The same errors, per horizon, are the forecast's quantiles, so that they are as wide as
//! the method was wrong. Scaled by the error of the last value as a forecast they tell what the
//! forecast is worth ([`Forecast::mase`]).
//!
//! The work is bounded: at most [`MOST_CELLS`] steps of history, [`MOST_STEPS`] of forecast and
//! 120 earlier moments per method.

mod backtest;
mod breach;
mod methods;
mod outlook;
mod pool;
mod regression;
mod season;
mod series;

#[cfg(test)]
mod tests;

pub use backtest::{forecast, forecast_with};
pub use breach::{Expected, Watch, forecast_breach};
pub use outlook::{Levels, Residuals};
pub use pool::{MOST_SERIES, Pool, TRAIN_EVERY_MS};
pub use series::Series;

use std::fmt;

use serde::{Deserialize, Serialize};

/// Most steps of history that a forecast looks at.
pub const MOST_CELLS: usize = 720;
/// Most steps that are forecast.
pub const MOST_STEPS: usize = 120;
/// Longest horizon, milliseconds.
pub const MOST_HORIZON_MS: i64 = 3_600_000;

/// How to forecast.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// How far, milliseconds; at most [`MOST_HORIZON_MS`]. A forecast is shorter when the history
    /// is: at most a quarter of it.
    pub horizon_ms: i64,
    /// Methods are judged by their errors up to this horizon, milliseconds.
    pub judge_ms: i64,
    /// Known steps below which nothing is forecast, at least 12.
    pub min_points: usize,
    /// Periods to try beside the one found in the series, milliseconds.
    pub periods_ms: Vec<i64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            horizon_ms: MOST_HORIZON_MS,
            judge_ms: 900_000,
            min_points: 30,
            periods_ms: vec![300_000, 600_000, 900_000, 1_800_000, 3_600_000],
        }
    }
}

/// How a forecast was made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// The last value stays.
    Naive,
    /// The recent slope goes on.
    Drift,
    /// As one period ago.
    Seasonal {
        /// Period, milliseconds.
        period_ms: i64,
    },
    /// Exponential smoothing of level and trend; the trend fades.
    Damped,
    /// Back from the smoothed level to the mean, as fast as the series did so far.
    Reversion,
    /// A regression on averages that forget at different speeds.
    Regression,
    /// Gradient-boosted trees that learnt from many series.
    Trees,
    /// The mean of the methods that were best.
    Mean {
        /// How many.
        of: usize,
        /// Whether trees are among them.
        trees: bool,
    },
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Naive => f.write_str("naive"),
            Self::Drift => f.write_str("drift"),
            Self::Seasonal { period_ms } => {
                let s = *period_ms as f64 / 1000.0;
                if s >= 60.0 {
                    write!(f, "seasonal naive of {:.1} min", s / 60.0)
                } else {
                    write!(f, "seasonal naive of {s:.0} s")
                }
            }
            Self::Damped => f.write_str("damped smoothing"),
            Self::Reversion => f.write_str("mean reversion"),
            Self::Regression => f.write_str("regression"),
            Self::Trees => f.write_str("boosted trees"),
            Self::Mean { of, trees } => {
                let with = if *trees {
                    ", boosted trees among them"
                } else {
                    ""
                };
                write!(f, "mean of {of} methods{with}")
            }
        }
    }
}

/// Why there is no forecast.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotYet {
    /// Too little is known.
    #[error(
        "too little history: {known} steps of {step_s} s are known, a forecast needs {needed}; \
         wait while it is metered"
    )]
    Short {
        /// Known steps.
        known: usize,
        /// Needed.
        needed: usize,
        /// Length of a step, seconds.
        step_s: i64,
    },
    /// The last point is too old.
    #[error("the last point is {age_s} s old, so the present is not known; is it metered?")]
    Stale {
        /// Age, seconds.
        age_s: i64,
    },
}

/// One step of a forecast: the mean over the step that ends at `at_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// End of the step, milliseconds since the epoch.
    pub at_ms: i64,
    /// 10 % quantile, in the unit of the values.
    pub p10: f64,
    /// Median.
    pub p50: f64,
    /// 90 % quantile.
    pub p90: f64,
}

/// A forecast of one series.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    /// The method that was best on the series' own past.
    pub method: Method,
    /// Its mean absolute error there, in the unit of the values.
    pub mae: f64,
    /// The same, scaled by the error of the last value as forecast: below 1 is better than that.
    /// `None` when the last value was never wrong.
    pub mase: Option<f64>,
    /// Length of a step, milliseconds.
    pub step_ms: i64,
    /// Known steps of history it rests on.
    pub points: usize,
    /// End of the last known step, milliseconds since the epoch.
    pub from_ms: i64,
    /// The steps, in time order, at least one.
    pub steps: Vec<Step>,
    /// Per step: what was forecast without its usual errors, and those errors, sorted.
    spread: Vec<(f64, Vec<f64>)>,
}

impl Forecast {
    /// The `level` quantile (0 to 1) of a step; `None` when there is no such step.
    pub fn quantile(&self, step: usize, level: f64) -> Option<f64> {
        let (point, errors) = self.spread.get(step)?;
        Some(backtest::bounded(point + backtest::quantile(errors, level)))
    }
}
