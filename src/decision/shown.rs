//! Decisions, advice, scores and drains as users see them.

use serde::{Deserialize, Serialize};

use crate::api::{ModelInfo, Plan};
use crate::feature::{FeatureName, Resource};
use crate::rules::Mode;
use crate::wire::guest::MoveId;

use super::history::{Effect, judge};
use super::record::Inputs;
use super::{Demand, Score};

/// What became of a proposal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It never was one.
    #[default]
    None,
    /// It waits for `drover approve`.
    Proposed,
    /// It was approved.
    Approved,
    /// A later decision took its place.
    Superseded,
}

/// A recorded decision in short.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionRow {
    /// Identifier, of this host.
    pub id: String,
    /// When it was made, milliseconds since the epoch.
    pub at_ms: i64,
    /// Domain.
    pub domain: String,
    /// Feature.
    pub feature: FeatureName,
    /// Its outcome, as in [`Plan`].
    pub outcome: String,
    /// The outcome in a sentence.
    pub reason: String,
    /// What was done with it.
    pub mode: Mode,
    /// Host and guest that were chosen.
    pub to: Option<(String, String)>,
    /// What became of it, if it was a proposal.
    #[serde(default)]
    pub answer: Answer,
    /// The move that it began.
    #[serde(default)]
    pub move_id: Option<MoveId>,
    /// Whether a breach or a crowded host was the cause: only then it counts for the cooldown that it
    /// did not help.
    #[serde(default)]
    pub for_breach: bool,
    /// The resource in breach.
    #[serde(default)]
    pub resource: Option<Resource>,
    /// What was measured before, and after the move.
    #[serde(default)]
    pub effect: Effect,
    /// When the effect was measured, milliseconds since the epoch; 0 when it is not yet.
    #[serde(default)]
    pub judged_ms: i64,
}

impl DecisionRow {
    /// Gain in service quality and whether the move helped, once that was measured.
    pub fn helped(&self) -> Option<(f64, bool)> {
        judge(&self.effect).filter(|_| self.judged_ms > 0)
    }
}

/// A recorded decision in full.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionRecord {
    /// In short.
    pub row: DecisionRow,
    /// The plan.
    pub plan: Plan,
    /// What it depended on.
    pub inputs: Inputs,
}

/// Scores of all hosts for one feature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoreReport {
    /// Domain.
    pub domain: String,
    /// Feature.
    pub feature: FeatureName,
    /// Host it is on.
    pub host: String,
    /// What it is expected to use where it goes.
    pub demand: Demand,
    /// The model behind the scores.
    pub model: ModelInfo,
    /// Age of the model, seconds; `None` without one.
    pub age_s: Option<f64>,
    /// Rows known now, per host that they were measured on.
    pub rows: Vec<(String, u64)>,
    /// The best guest of each host, best first.
    pub hosts: Vec<HostScore>,
}

/// The score of one host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostScore {
    /// Host.
    pub host: String,
    /// Guest.
    pub domain: String,
    /// Whether the feature is there.
    pub here: bool,
    /// Score, parts, and the model's sum: `base` and the inputs' contributions together are the
    /// part `model`.
    pub score: Score,
}

/// How emptying a host stands.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DrainStatus {
    /// Host.
    pub host: String,
    /// Whether it accepts nothing and is emptied.
    pub draining: bool,
    /// Since when, milliseconds since the epoch.
    pub since_ms: i64,
    /// Feature that moves now.
    pub moving: Option<FeatureName>,
    /// Features that left since then, and where to.
    pub moved: Vec<(FeatureName, String)>,
    /// Features that are still here, and why.
    pub left: Vec<Left>,
}

impl DrainStatus {
    /// Whether nothing more will move by itself at the moment.
    pub fn settled(&self) -> bool {
        self.moving.is_none() && self.left.iter().all(|l| l.tried)
    }
}

/// A feature that is still on a host that is emptied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Left {
    /// Domain.
    pub domain: String,
    /// Feature.
    pub feature: FeatureName,
    /// Why it is here, or `its turn comes`.
    pub reason: String,
    /// Whether it was tried already; it is tried again.
    pub tried: bool,
}
