//! Who moves where, and why: `view + policy + question -> plan`. Pure and deterministic; the
//! order of hosts and guests in the view does not matter.
//!
//! Every host becomes a candidate with a score or the reasons that rule it out. Scores describe
//! the cluster *after* the move; the feature moves only when a target beats staying by the
//! policy's gain and, on a breach, is less pressed for the breached resource. Both comparisons
//! are never true both ways round, so that a constant load does not send a feature to and fro.

mod eligible;
mod offer;
mod plan;
mod refusal;
mod simulate;

use std::collections::BTreeMap;

pub use crate::affinity::{Demand, Score};
pub use offer::no_cpu;
pub use plan::decide;
pub use refusal::Refusal;
pub use simulate::GUEST_CPU_TOLERANCE;

use crate::api::{Destination, ModelInfo};
use crate::feature::{FeatureName, Resource};
use crate::host::HostState;

/// What is known at one moment.
#[derive(Debug, Clone, PartialEq)]
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
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// Affinity.
    pub affinity: f64,
    /// Evenness of CPU load over the hosts.
    pub balance: f64,
}

/// How the administrator wants decisions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// Move on a breach without being asked?
    pub automatic: bool,
    /// Fraction of capacity that stays free on a target, 0 to 1.
    pub reserve: f64,
    /// Score by which a target must beat staying.
    pub min_gain: f64,
    /// Milliseconds during which a feature that moved stays.
    pub cooldown_ms: i64,
    /// Weights.
    pub weights: Weights,
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
            },
        }
    }
}

/// A breach, measured or forecast.
#[derive(Debug, Clone, PartialEq)]
pub struct BreachCause {
    /// What is short.
    pub resource: Resource,
    /// In words, with limit and value.
    pub text: String,
}

/// Why the question is asked.
#[derive(Debug, Clone, PartialEq)]
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
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
