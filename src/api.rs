//! What droverd offers to its users, as data: the types behind `org.drover1`, `drover`'s tables
//! and `--format json`. The trait [`Api`] is implemented by the daemon and by a fake in tests.

use serde::{Deserialize, Serialize};

use crate::decision::{
    Cell, Check, Cost, DecisionRecord, DecisionRow, DrainStatus, Replay, ScoreReport,
};
use crate::feature::{FeatureName, FeatureSpec, Resource, Threshold};
use crate::forecast::Step;
use crate::host::{FeatureStatus, HostState, Metering};
use crate::method::Method;
use crate::reason::Rehearsal;
use crate::rollup::Rollup;
use crate::rules::Mode;
use crate::usage::Usage;
use crate::wire::guest::MoveId;

/// Errors that users see; each has a D-Bus error name `org.drover1.Error.NAME`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// A domain, feature, host or move that is not there.
    #[error("{0}")]
    NotFound(String),
    /// Input that cannot be right.
    #[error("{0}")]
    Invalid(String),
    /// Understood, but refused, with the reason.
    #[error("{0}")]
    Refused(String),
    /// Not now: another operation holds the feature.
    #[error("{0}")]
    Busy(String),
    /// No answer in time.
    #[error("{0}")]
    Timeout(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// Shorthand.
pub type Result<T> = std::result::Result<T, ApiError>;

/// A registered feature as `drover list` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FeatureRow {
    /// Host.
    pub host: String,
    /// Domain.
    pub domain: String,
    /// Definition.
    pub spec: FeatureSpec,
    /// Life-cycle.
    pub status: FeatureStatus,
    /// Latest use.
    pub usage: Option<Usage>,
    /// Breach under way or expected, in words; an expected one begins with `forecast:`.
    pub breach: Option<String>,
    /// How it is metered, and why not better.
    #[serde(default)]
    pub metered: Metering,
}

/// One candidate of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Host.
    pub host: String,
    /// Guest there that would take the feature; empty when the host has none.
    pub domain: String,
    /// Final score, 0 to 1, higher is better; `None` when refused.
    pub score: Option<f64>,
    /// The score's parts by name (`headroom`, `affinity`, `balance`, ...), each 0 to 1.
    pub parts: Vec<(String, f64)>,
    /// Why it was refused, one sentence per reason; empty when eligible.
    pub refusals: Vec<String>,
}

/// What the decision would do, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Domain.
    pub domain: String,
    /// Feature.
    pub feature: FeatureName,
    /// Host the feature is on.
    pub host: String,
    /// `move`, `no_breach`, `no_beneficial_move` or `no_eligible_host`.
    pub outcome: String,
    /// The outcome in a sentence.
    pub reason: String,
    /// Chosen candidate (index into `candidates`).
    pub chosen: Option<usize>,
    /// Score of staying.
    pub stay_score: f64,
    /// All candidates, best first, refused ones last.
    pub candidates: Vec<Candidate>,
    /// The model behind `affinity`.
    pub model: ModelInfo,
    /// Under which `drover decision` shows it with its inputs; empty when it was not recorded.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// What is done with it.
    #[serde(default)]
    pub mode: Mode,
    /// What the move is expected to take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
}

impl Plan {
    /// A plan without candidates: no eligible host.
    pub fn new(domain: impl Into<String>, feature: FeatureName, host: impl Into<String>) -> Self {
        Self {
            domain: domain.into(),
            feature,
            host: host.into(),
            outcome: "no_eligible_host".to_owned(),
            reason: String::new(),
            chosen: None,
            stay_score: 0.0,
            candidates: Vec::new(),
            model: ModelInfo::default(),
            id: String::new(),
            mode: Mode::Act,
            cost: None,
        }
    }

    /// The candidate that was chosen.
    pub fn target(&self) -> Option<&Candidate> {
        self.candidates.get(self.chosen?)
    }
}

/// The affinity model in use.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ModelInfo {
    /// `headroom` (too few rows), `blend` or `gbdt`.
    pub kind: String,
    /// Rows it was trained on.
    pub rows: u64,
    /// Weight of the model in the blend, 0 to 1.
    pub weight: f64,
    /// When it was trained, milliseconds since the epoch; 0 when never.
    pub trained_at_ms: i64,
    /// Backtest error (mean absolute), if measured.
    pub error: Option<f64>,
}

/// What a feature is expected to use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FeatureForecast {
    /// Host.
    pub host: String,
    /// Domain.
    pub domain: String,
    /// Feature.
    pub feature: FeatureName,
    /// When it was forecast, milliseconds since the epoch.
    pub at_ms: i64,
    /// Quantile that must lie above a limit for a breach to be expected.
    pub confidence: f64,
    /// Within how many seconds.
    pub lead_s: f64,
    /// Forecast breach that Drover acts on, in words: expected twice in a row.
    pub breach: Option<String>,
    /// One per resource, in display order.
    pub series: Vec<SeriesForecast>,
}

/// The forecast of one resource.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SeriesForecast {
    /// Resource.
    pub resource: Resource,
    /// Its threshold.
    pub threshold: Option<Threshold>,
    /// Why there is no forecast; then what follows is empty.
    pub problem: Option<String>,
    /// Method that was best on the series' past.
    pub method: Option<String>,
    /// Its mean absolute error there, in the resource's unit.
    pub mae: Option<f64>,
    /// The same, scaled by the error of the last value as forecast; `None` when that had none.
    pub mase: Option<f64>,
    /// Length of a step, seconds.
    pub step_s: f64,
    /// Known steps of history it rests on.
    pub points: u64,
    /// The breach that this forecast expects, in words.
    pub expected: Option<String>,
    /// The steps, values in the resource's unit.
    pub steps: Vec<Step>,
}

impl Default for SeriesForecast {
    fn default() -> Self {
        Self {
            resource: Resource::Cpu,
            threshold: None,
            problem: None,
            method: None,
            mae: None,
            mase: None,
            step_s: 0.0,
            points: 0,
            expected: None,
            steps: Vec::new(),
        }
    }
}

/// Terminal results of a move, in systemd's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobResult {
    /// The feature runs on the target.
    Done,
    /// Cancelled by a user before the commit.
    Canceled,
    /// A step took too long.
    Timeout,
    /// It failed; the feature runs on the source.
    Failed,
    /// Nothing to do.
    Skipped,
}

/// A move as `drover jobinfo` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Identifier.
    pub id: MoveId,
    /// Feature.
    pub feature: FeatureName,
    /// Where from.
    pub from_host: String,
    /// Where from.
    pub from_domain: String,
    /// Where to.
    pub to_host: String,
    /// Where to.
    pub to_domain: String,
    /// Why: `manual` or the breach in words.
    pub cause: String,
    /// State in words: `preparing`, `pre-copy`, `freezing`, `restoring`, `committed`, ...
    pub state: String,
    /// Result once ended.
    pub result: Option<JobResult>,
    /// Reason when it did not end as done.
    pub reason: Option<String>,
    /// Pre-copy rounds sent, the final one included.
    pub rounds: u32,
    /// Bytes sent between the hosts.
    pub bytes_sent: u64,
    /// Milliseconds between the source's freeze and the target's resume, once known.
    pub freeze_ms: Option<u64>,
    /// Start, milliseconds since the epoch.
    pub started_ms: i64,
    /// End, milliseconds since the epoch.
    pub ended_ms: Option<i64>,
    /// Per round: bytes, pages written, pages skipped, milliseconds.
    pub history: Vec<RoundRow>,
    /// How it goes, in numbers.
    #[serde(default)]
    pub detail: MoveDetail,
}

/// How a move goes, in numbers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MoveDetail {
    /// Freeze as it was predicted after the last round, milliseconds; `None` before two rounds.
    pub predicted_freeze_ms: Option<u64>,
    /// Bytes of the round under way that are sent.
    pub round_sent: u64,
    /// Bytes of the round under way in all; 0 while not known.
    pub round_total: u64,
    /// Percent of its CPU time that is taken from the feature so that its memory changes slower.
    pub throttle_percent: u8,
    /// How it moves.
    #[serde(default)]
    pub method: Method,
    /// What was not as it should be when the feature ran at the target and nothing could be
    /// taken back any more.
    #[serde(default)]
    pub warning: Option<String>,
    /// Where the freeze went, once over.
    pub freeze: Option<FreezeParts>,
    /// Attempt under way, from 1.
    pub attempt: u16,
    /// Why the attempts before it were given up.
    pub retried: Vec<String>,
}

/// The freeze step by step, as the source's daemon saw it. The sum is the whole freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FreezeParts {
    /// From the request to freeze until everything is dumped, milliseconds.
    pub dump_ms: u64,
    /// Until the last round is out of the guest.
    pub send_ms: u64,
    /// Until it is on the target, restored there, and this is durable.
    pub restore_ms: u64,
    /// Until the commit record is durable.
    pub commit_ms: u64,
    /// Until it runs on the target, registered there.
    pub resume_ms: u64,
}

/// A round of a move.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct RoundRow {
    /// Round, from 1.
    pub round: u16,
    /// Bytes.
    pub bytes: u64,
    /// Pages written.
    pub pages_written: u64,
    /// Pages skipped.
    pub pages_skipped: u64,
    /// Milliseconds from request to fully sent.
    pub total_ms: u64,
}

/// What `drover event` prints and the D-Bus signals carry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ApiEvent {
    /// A threshold was crossed for its duration, or is no longer.
    Breach {
        /// Domain.
        domain: String,
        /// Feature.
        feature: FeatureName,
        /// In words, with limit and measured value.
        what: String,
        /// False when it ended.
        active: bool,
    },
    /// A decision was made.
    Decision {
        /// The plan with its outcome.
        plan: Plan,
    },
    /// A move made progress or ended (`result` is set then).
    Move {
        /// The move.
        job: Job,
    },
    /// A feature was registered, changed, or removed.
    Feature {
        /// Domain.
        domain: String,
        /// Feature.
        feature: FeatureName,
        /// `registered`, `deregistered`, `enabled`, `disabled`, `thresholds`, `arrived`, `left`,
        /// `exited`.
        what: String,
    },
    /// An instance or its helper changed state.
    Instance {
        /// Domain.
        domain: String,
        /// In words.
        what: String,
    },
    /// A peer came or went.
    Peer {
        /// Host.
        host: String,
        /// In words.
        what: String,
    },
}

/// Where a move by hand shall go.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Destination {
    /// Host; `None` lets the decision choose.
    pub host: Option<String>,
    /// Domain on that host; `None` takes the best one.
    pub domain: Option<String>,
    /// How; `None` as its definition says.
    #[serde(default)]
    pub method: Option<Method>,
}

/// What a reload of the configuration changed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Reloaded {
    /// Keys of the configuration with another value, `section.key`.
    pub keys: Vec<String>,
    /// What was done with features from files, in words.
    pub features: Vec<String>,
    /// What could not be done with them, in words; it is tried again.
    pub problems: Vec<String>,
}

/// Idempotent outcomes, instead of a bool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Changed {
    /// It was done.
    Done,
    /// It was so already.
    Already,
}

/// What of a history is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryQuery {
    /// First millisecond since the epoch.
    pub since_ms: i64,
    /// Last one.
    pub until_ms: i64,
    /// Milliseconds of a step, 0 for points as finely as they are kept; `None` chooses the finest
    /// that gives no more than `limit` points.
    pub step_ms: Option<i64>,
    /// Most points; the latest are given.
    pub limit: usize,
}

/// What a feature used in a step of time, or at one point.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HistoryPoint {
    /// Mean over the step, or the point; its time is the step's start.
    pub mean: Usage,
    /// Least, when there was more than one point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<Usage>,
    /// Most, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Usage>,
    /// Last, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Usage>,
}

impl From<Usage> for HistoryPoint {
    fn from(mean: Usage) -> Self {
        Self {
            mean,
            min: None,
            max: None,
            last: None,
        }
    }
}

impl From<Rollup> for HistoryPoint {
    fn from(r: Rollup) -> Self {
        let other = |u: Usage| (u != r.mean).then_some(u);
        match (other(r.min), other(r.max), other(r.last)) {
            (None, None, None) => Self::from(r.mean),
            _ => Self {
                mean: r.mean,
                min: Some(r.min),
                max: Some(r.max),
                last: Some(r.last),
            },
        }
    }
}

/// An answer to a [`HistoryQuery`].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct HistoryPage {
    /// Milliseconds of a step; 0 for points as finely as they are kept.
    pub step_ms: i64,
    /// In time order.
    pub points: Vec<HistoryPoint>,
}

/// The daemon as its users see it.
#[async_trait::async_trait]
pub trait Api: Send + Sync + 'static {
    /// This host first, then peers as last heard.
    async fn hosts(&self) -> Vec<HostState>;
    /// This host first, its instances without their features, then peers as last heard, without
    /// their instances.
    async fn outlines(&self) -> Vec<HostState> {
        let mut all = self.hosts().await;
        for h in all.iter_mut().skip(1) {
            h.instances = Vec::new();
        }
        for i in all.iter_mut().flat_map(|h| &mut h.instances) {
            i.features = Vec::new();
        }
        all
    }
    /// Features on this host.
    async fn features(&self) -> Vec<FeatureRow>;
    /// The same one by one, sorted by domain and name, for those who need not have all at a time.
    async fn each_feature(&self, show: &mut (dyn FnMut(FeatureRow) + Send)) {
        let mut rows = self.features().await;
        rows.sort_by(|a, b| (&a.domain, &a.spec.name).cmp(&(&b.domain, &b.spec.name)));
        rows.into_iter().for_each(show);
    }
    /// A feature on this host.
    async fn feature(&self, domain: &str, feature: &FeatureName) -> Option<FeatureRow> {
        let mut rows = self.features().await.into_iter();
        rows.find(|r| r.domain == domain && r.spec.name == *feature)
    }
    /// Registers a feature in a domain of this host, disabled. The same definition again is
    /// [`Changed::Already`]; another definition under the same name replaces it while the
    /// feature is disabled and is refused while it is enabled.
    async fn register(&self, domain: &str, spec: FeatureSpec) -> Result<Changed>;
    /// Removes a feature's registration; refused while it moves. Stops a managed feature.
    async fn deregister(&self, domain: &str, feature: &FeatureName) -> Result<Changed>;
    /// Starts (managed) and meters, or stops.
    async fn set_enabled(&self, domain: &str, feature: &FeatureName, on: bool) -> Result<Changed>;
    /// Replaces the thresholds.
    async fn set_thresholds(
        &self,
        domain: &str,
        feature: &FeatureName,
        thresholds: Vec<Threshold>,
    ) -> Result<Changed>;
    /// History in time order, at most `limit` points.
    async fn history(
        &self,
        domain: &str,
        feature: &FeatureName,
        since_ms: i64,
        until_ms: i64,
        limit: usize,
    ) -> Result<Vec<Usage>>;
    /// What a feature used, by steps of time, the latest last.
    async fn history_steps(
        &self,
        domain: &str,
        feature: &FeatureName,
        query: HistoryQuery,
    ) -> Result<HistoryPage> {
        let (since, until) = (query.since_ms, query.until_ms);
        let points = self
            .history(domain, feature, since, until, query.limit)
            .await?;
        Ok(HistoryPage {
            step_ms: 0,
            points: points.into_iter().map(HistoryPoint::from).collect(),
        })
    }
    /// What the feature is expected to use, up to an hour ahead.
    async fn forecast(&self, domain: &str, feature: &FeatureName) -> Result<FeatureForecast>;
    /// What a move would choose now, without acting.
    async fn plan(&self, domain: &str, feature: &FeatureName) -> Result<Plan>;
    /// Scores of all hosts for a feature.
    async fn score(&self, domain: &str, feature: &FeatureName) -> Result<ScoreReport>;
    /// Which guests could take this host's features, or one feature of any host.
    async fn matrix(&self, feature: Option<&FeatureName>) -> Result<Vec<Cell>>;
    /// Recorded decisions, newest first.
    async fn decisions(&self) -> Vec<DecisionRow>;
    /// A recorded decision, by its identifier or the beginning of it.
    async fn decision(&self, id: &str) -> Result<DecisionRecord>;
    /// A recorded decision made again from its inputs.
    async fn replay(&self, id: &str) -> Result<Replay>;
    /// Does what a decision proposed.
    async fn approve(&self, id: &str) -> Result<Job>;
    /// Begins to empty this host, or ends that.
    async fn set_drain(&self, on: bool) -> Result<DrainStatus>;
    /// How emptying this host stands.
    async fn drain_status(&self) -> DrainStatus;
    /// Whether a feature could move to the guests of a host, or of all hosts, and why not; changes
    /// nothing.
    async fn check(&self, domain: &str, feature: &FeatureName, to: Destination) -> Result<Check>;
    /// Dumps a feature into memory while it goes on, and throws the dump away.
    async fn rehearse(&self, domain: &str, feature: &FeatureName) -> Result<Rehearsal>;
    /// Starts a move; returns once it is accepted.
    async fn migrate(&self, domain: &str, feature: &FeatureName, to: Destination) -> Result<Job>;
    /// A move, under way or ended.
    async fn job(&self, id: &str) -> Result<Job>;
    /// Moves from this host, newest first, ended ones included.
    async fn jobs(&self) -> Vec<Job>;
    /// Cancels a move before its commit; refused after.
    async fn abort(&self, id: &str) -> Result<()>;
    /// Gives up a move also after its commit, as long as the target does not run the feature: the
    /// copy there is destroyed and the feature goes on here. Before the commit like `abort`.
    async fn give_up(&self, id: &str) -> Result<()>;
    /// Installs the helper into a running domain.
    async fn guest_install(&self, domain: &str) -> Result<String>;
    /// Removes it.
    async fn guest_remove(&self, domain: &str) -> Result<String>;
    /// Reads the configuration and feature files anew; whatever is wrong leaves all as it is.
    async fn reload(&self) -> Result<Reloaded>;
    /// Events from now on. Slow readers lose the oldest.
    fn events(&self) -> tokio::sync::broadcast::Receiver<ApiEvent>;
}
