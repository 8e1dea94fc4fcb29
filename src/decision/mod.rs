//! Who moves where, and why: `view + policy + question -> plan`. Pure and deterministic; the
//! order of hosts and guests in the view does not matter.
//!
//! Every host becomes a candidate with a score or the reasons that rule it out. Scores describe
//! the cluster *after* the move; the feature moves only when a target beats staying by the
//! policy's gain and, on a breach, is less pressed for the breached resource. Both comparisons
//! are never true both ways round, so that a constant load does not send a feature to and fro.

mod check;
mod choose;
mod cost;
mod eligible;
mod history;
mod many;
mod matrix;
mod plan;
mod record;
mod refusal;
mod relief;
mod shown;
mod simulate;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::affinity::{Demand, Score};
pub use check::{Check, CheckedTarget, check};
pub use cost::{Cost, Past, predict};
pub use eligible::admit;
pub use history::{Effect, cooldown_ms, judge, latest};
pub use many::{Step, Want, plan_many};
pub use matrix::{Cell, matrix};
pub use plan::{decide, decide_by};
pub use record::{Inputs, Replay};
pub use refusal::Refusal;
pub use relief::{Relief, Resident, relieve, with, without};
pub use shown::{Answer, DecisionRecord, DecisionRow, DrainStatus, HostScore, Left, ScoreReport};
pub use simulate::GUEST_CPU_TOLERANCE;

use crate::api::{Destination, ModelInfo};
use crate::feature::{FeatureName, Resource};
use crate::host::{HostState, InstanceState};
use crate::rules::Mode;

/// Scores hosts and guests for one feature.
pub trait Scorer {
    /// Affinity of each target, 0 to 1: for the guest that the feature is in, of staying; for
    /// others, as if it were there.
    fn values(&self, targets: &[(&HostState, &InstanceState)]) -> Vec<f64>;
    /// The same for one target, with its parts.
    fn explain(&self, host: &HostState, instance: &InstanceState) -> Score;
}

/// A function as a scorer.
pub struct ByFn<'a>(pub &'a dyn Fn(&HostState, &InstanceState) -> Score);

impl Scorer for ByFn<'_> {
    fn values(&self, targets: &[(&HostState, &InstanceState)]) -> Vec<f64> {
        targets.iter().map(|(h, i)| (self.0)(h, i).value).collect()
    }
    fn explain(&self, host: &HostState, instance: &InstanceState) -> Score {
        (self.0)(host, instance)
    }
}

/// What is known at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// This host's name.
    pub me: String,
    /// Now, milliseconds since the epoch.
    pub now_ms: i64,
    /// This host and its peers as last heard; `at_ms` is when they were heard, by this host's
    /// clock.
    pub hosts: Vec<HostState>,
    /// Age in milliseconds above which a peer counts as lost.
    pub stale_after_ms: i64,
    /// Configured peers and the groups whose features may go there.
    pub groups: BTreeMap<String, Vec<String>>,
    /// The model behind the affinity scores, for the record.
    pub model: ModelInfo,
}

/// Weights of the parts of a score.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Weights {
    /// Affinity.
    pub affinity: f64,
    /// Evenness of CPU load over the hosts.
    pub balance: f64,
    /// Features that it wants to be near; counts only for a feature that names some.
    pub near: f64,
}

/// How the administrator wants decisions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Move on a breach without being asked?
    pub automatic: bool,
    /// Fraction of capacity that stays free on a target, 0 to 1.
    pub reserve: f64,
    /// Score by which a target must beat staying.
    pub min_gain: f64,
    /// Milliseconds during which a feature that moved stays; doubled by each move in a row that
    /// did not help, see [`cooldown_ms`].
    pub cooldown_ms: i64,
    /// Weights.
    pub weights: Weights,
    /// Weight of a move's cost: what a move that takes forever would have to gain beside
    /// `min_gain`.
    pub cost_weight: f64,
    /// Moves to one host at a time.
    pub max_moves_in: u32,
    /// What is done with decisions.
    pub mode: Mode,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            automatic: true,
            reserve: 0.1,
            min_gain: 0.05,
            cooldown_ms: 60_000,
            weights: Weights {
                affinity: 0.7,
                balance: 0.3,
                near: 0.2,
            },
            cost_weight: 0.05,
            max_moves_in: 4,
            mode: Mode::Act,
        }
    }
}

/// A breach, measured or forecast.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BreachCause {
    /// What is short.
    pub resource: Resource,
    /// In words, with limit and value.
    pub text: String,
}

/// Why the question is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Cause {
    /// A threshold is, or will be, crossed.
    Breach(BreachCause),
    /// A user wants it moved. With a named host, gain, cooldown and the automatic flags do not
    /// count, and lack of CPU is a warning (part `cpu_capacity`); compatibility and memory
    /// always count. Without a host, the gain counts.
    Manual {
        /// Where to.
        to: Destination,
    },
    /// Its host is expected to be short of CPU, and [`relieve`] chose this feature and target:
    /// cooldown and the automatic flags count, gain does not, since both were chosen for what the
    /// host gains.
    Crowded {
        /// Where to.
        to: Destination,
        /// In words, with what is expected.
        text: String,
    },
    /// Its host is being emptied: neither gain nor cooldown nor the automatic flags count.
    Drain,
    /// A user wants to see what would happen: as on the breach if there is one, otherwise the
    /// outcome is `no_breach`.
    Preview {
        /// Breach under way.
        breach: Option<BreachCause>,
    },
}

/// The question.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask<'a> {
    /// Domain on this host.
    pub domain: &'a str,
    /// Feature in it.
    pub feature: &'a FeatureName,
    /// Why.
    pub cause: Cause,
    /// What it is expected to use where it goes.
    pub expected: Demand,
    /// When it last moved, milliseconds since the epoch.
    pub last_moved_ms: Option<i64>,
    /// What earlier moves of it cost.
    pub past: Past,
}

impl<'a> Ask<'a> {
    /// A question about a feature that never moved.
    pub fn new(domain: &'a str, feature: &'a FeatureName, cause: Cause, expected: Demand) -> Self {
        Self {
            domain,
            feature,
            cause,
            expected,
            last_moved_ms: None,
            past: Past::default(),
        }
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
