//! Policies by name, and one run of all of them.

use std::fmt;
use std::str::FromStr;

use super::baselines::{Balance, LrMmt, Nothing, Threshold};
use super::drover::{Drover, Parts};
use super::oracle::Oracle;
use super::trace::Trace;
use super::world::{Outcome, Policy, World};

/// How far the oracle sees, seconds.
const ORACLE_S: i64 = 7200;

/// A policy, as users name it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Choice {
    /// `none`: nothing moves.
    Nothing,
    /// `threshold[:LIMIT]`: away from hosts above the limit, to the least loaded one.
    Threshold(f64),
    /// `balance[:SPREAD]`: greedy balancing down to a standard deviation.
    Balance(f64),
    /// `lr-mmt[:SAFETY]`: local regression, minimum migration time.
    LrMmt(f64),
    /// `drover-no-model`: Drover with headroom instead of a trained model.
    DroverNoModel,
    /// `drover-no-forecast`: Drover that acts on what is measured only.
    DroverNoForecast,
    /// `drover`.
    Drover,
    /// `oracle`: knows what will be wanted.
    Oracle,
}

impl Choice {
    /// All policies with the parameters they are compared with: those that did best on the PlanetLab
    /// day of 3 March 2011. What Drover's were chosen by is in SPECIFICATION.md.
    pub const ALL: [Self; 8] = [
        Self::Nothing,
        Self::Threshold(0.85),
        Self::Balance(0.1),
        Self::LrMmt(1.4),
        Self::DroverNoModel,
        Self::DroverNoForecast,
        Self::Drover,
        Self::Oracle,
    ];

    /// Whether it is one of those that Drover is measured against.
    pub fn is_baseline(self) -> bool {
        matches!(
            self,
            Self::Nothing | Self::Threshold(_) | Self::Balance(_) | Self::LrMmt(_)
        )
    }

    /// Its name without its parameter.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "none",
            Self::Threshold(_) => "threshold",
            Self::Balance(_) => "balance",
            Self::LrMmt(_) => "lr-mmt",
            Self::DroverNoModel => "drover-no-model",
            Self::DroverNoForecast => "drover-no-forecast",
            Self::Drover => "drover",
            Self::Oracle => "oracle",
        }
    }

    /// Its parameter, if it has one.
    pub fn parameter(self) -> Option<f64> {
        match self {
            Self::Threshold(p) | Self::Balance(p) | Self::LrMmt(p) => Some(p),
            _ => None,
        }
    }

    /// Ready to run on a trace.
    pub fn make(self, trace: &Trace) -> Box<dyn Policy + '_> {
        let parts = Parts::default();
        match self {
            Self::Nothing => Box::new(Nothing),
            Self::Threshold(limit) => Box::new(Threshold { limit }),
            Self::Balance(spread) => Box::new(Balance { spread }),
            Self::LrMmt(safety) => Box::new(LrMmt { safety }),
            Self::DroverNoModel => Box::new(Drover::new(Parts {
                model: false,
                ..parts
            })),
            Self::DroverNoForecast => Box::new(Drover::new(Parts {
                forecast: false,
                ..parts
            })),
            Self::Drover => Box::new(Drover::new(parts)),
            Self::Oracle => Box::new(Oracle::new(trace, ORACLE_S)),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Threshold(p) | Self::Balance(p) | Self::LrMmt(p) => {
                write!(f, "{}:{p}", self.name())
            }
            _ => f.write_str(self.name()),
        }
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, parameter) = match text.split_once(':') {
            Some((n, p)) => (n, Some(p)),
            None => (text, None),
        };
        let found = Self::ALL
            .into_iter()
            .find(|c| c.name() == name)
            .ok_or_else(|| {
                let known: Vec<_> = Self::ALL.iter().map(|c| c.name()).collect();
                format!("not a policy; they are {}", known.join(", "))
            })?;
        let Some(p) = parameter else {
            return Ok(found);
        };
        let range = match found {
            Self::LrMmt(_) => 0.5..=3.0,
            _ => 0.0..=1.0,
        };
        let p: f64 = p
            .parse()
            .ok()
            .filter(|p| range.contains(p))
            .ok_or_else(|| {
                format!(
                    "the parameter of {name} is a number from {} to {}",
                    range.start(),
                    range.end()
                )
            })?;
        match found {
            Self::Threshold(_) => Ok(Self::Threshold(p)),
            Self::Balance(_) => Ok(Self::Balance(p)),
            Self::LrMmt(_) => Ok(Self::LrMmt(p)),
            _ => Err(format!("{name} has no parameter")),
        }
    }
}

/// Runs policies one after the other in the same world.
pub fn compare(
    world: &World<'_>,
    choices: &[Choice],
    clock: &mut dyn FnMut() -> u64,
) -> Vec<(Choice, Outcome)> {
    choices
        .iter()
        .map(|c| (*c, world.run(&mut *c.make(world.trace()), clock)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for c in Choice::ALL {
            assert_eq!(c.to_string().parse(), Ok(c));
            assert_eq!(c.name().parse(), Ok(c));
        }
        assert_eq!("threshold:0.7".parse(), Ok(Choice::Threshold(0.7)));
        for bad in ["", "best", "threshold:7", "threshold:x", "drover:1"] {
            assert!(bad.parse::<Choice>().is_err(), "{bad}");
        }
    }
}
