//! Host Affinity Prediction: how well a host is expected to serve a feature in a guest.
//!
//! ```text
//! usage points -> Collector -> rows (inputs, quality that followed) -> Reservoir (with peers)
//!   -> train: challenger against champion -> score = w * model + (1 - w) * headroom
//! ```
//!
//! To score another host, its columns are put into the row. Pure: the caller owns clock, files
//! and threads.

mod blend;
mod boost;
mod carry;
mod codec;
mod collector;
mod flat;
mod headroom;
mod input;
mod model;
mod quality;
mod reservoir;
mod schema;
mod scorer;
mod train;
mod trees;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub(crate) use boost::{Loss, boost, scattered};
pub use collector::{Collector, Observation, Place, Taken};
pub(crate) use flat::Flat;
pub use headroom::{Headroom, score as headroom};
pub use input::{After, Demand, ScoreInput, Stat, UsageWindow, host_per_guest_cpu};
pub use model::{Explanation, Model, Params};
pub use quality::quality;
pub use reservoir::{Batch, Reservoir, Row};
pub use schema::{COLUMNS, HASH as SCHEMA_HASH, HostPart, Inputs, MISSING, N as WIDTH, row};
pub use scorer::ForFeature;
pub use train::{MIN_ROWS, Trained, train};

use crate::api::ModelInfo;
use crate::feature::FeatureName;
use crate::usage::Usage;
use codec::{Reader, Writer};

const MAGIC: [u8; 4] = *b"DRVA";
const VERSION: u16 = 1;

/// What can go wrong with models and their state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AffinityError {
    /// Not a state of ours, or not whole.
    #[error("the saved affinity state is damaged ({0}); it is rebuilt from new measurements")]
    Damaged(String),
    /// Written by another version.
    #[error(
        "the saved affinity state has format {found}, this version reads {known}; it is rebuilt \
         from new measurements"
    )]
    Version {
        /// Format found.
        found: u16,
        /// Format that this version reads.
        known: u16,
    },
    /// Rows or model of another list of inputs.
    #[error(
        "the affinity rows or model have other inputs than this version of drover; update \
             the older of the two"
    )]
    Schema,
    /// Not enough rows to train on.
    #[error("{have} affinity rows are too few to train on, {need} are needed; they come with time")]
    TooFewRows {
        /// Rows there are.
        have: usize,
        /// Rows needed.
        need: usize,
    },
    /// All rows have the same quality.
    #[error("all affinity rows have the same service quality, there is nothing to learn yet")]
    Uniform,
    /// The time budget was used up before the first trees.
    #[error("the training had no time for its first trees; raise model.budget_s")]
    Interrupted,
    /// The training or a prediction went wrong.
    #[error("affinity model: {0}")]
    Training(String),
}

/// The affinity's settings; durations in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// How far inputs look back.
    pub window_s: f64,
    /// Time over which quality is measured.
    pub horizon_s: f64,
    /// Rows kept.
    pub reservoir: usize,
    /// Age that halves a row's chance to be kept.
    pub half_life_s: f64,
    /// Rows up to which the headroom score alone counts.
    pub rows_min: u64,
    /// Rows from which the model alone counts.
    pub rows_full: u64,
    /// Training.
    pub params: Params,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            window_s: 60.0,
            horizon_s: 30.0,
            reservoir: 20_000,
            half_life_s: 86_400.0,
            rows_min: 200,
            rows_full: 2_000,
            params: Params::default(),
        }
    }
}

/// A score and where it comes from.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Score {
    /// 0 to 1, higher is better.
    pub value: f64,
    /// Parts by name, each 0 to 1: `headroom`, `model` and `model_weight` if there is a model,
    /// then headroom's parts per resource.
    pub parts: Vec<(String, f64)>,
    /// The model's prediction as a sum: `base` first, then inputs by size of their effect.
    /// Empty without a model.
    pub explain: Vec<(String, f64)>,
}

/// What a training in the background works on; see [`Affinity::snapshot`].
#[derive(Debug, Clone)]
pub struct Snapshot {
    rows: Vec<Arc<Row>>,
    champion: Option<Arc<Model>>,
    params: Params,
}

impl Snapshot {
    /// Trains a challenger; takes seconds. See [`train()`].
    pub fn train(
        &self,
        now_ms: i64,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<Trained, AffinityError> {
        train(
            &self.rows,
            self.champion.as_deref(),
            &self.params,
            now_ms,
            keep_going,
        )
    }
}

/// An affinity's rows and model; see [`Affinity::image`].
#[derive(Debug, Clone)]
pub struct Image {
    rows: Vec<Arc<Row>>,
    champion: Option<Arc<Model>>,
    error: Option<f64>,
}

impl Image {
    /// The bytes that [`Affinity::from_bytes`] reads.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut w = Writer::new(MAGIC, VERSION, schema::HASH);
        w.f64(self.error.unwrap_or(f64::NAN));
        w.bytes(&reservoir::to_bytes(&self.rows));
        let model = self.champion.as_ref().map(|m| m.to_bytes());
        w.bytes(&model.unwrap_or_default());
        w.finish()
    }
}

/// The affinity of one daemon.
#[derive(Debug)]
pub struct Affinity {
    settings: Settings,
    collector: Collector,
    reservoir: Reservoir,
    champion: Option<Arc<Model>>,
    error: Option<f64>,
}

impl Affinity {
    /// Starts empty: scores are headroom scores.
    pub fn new(settings: Settings) -> Self {
        Self {
            collector: Collector::new(settings.window_s, settings.horizon_s),
            reservoir: Reservoir::new(settings.reservoir, settings.half_life_s),
            champion: None,
            error: None,
            settings,
        }
    }

    /// Takes a usage point; returns the row that it completed, which is in the reservoir then.
    pub fn observe(&mut self, o: &Observation<'_>) -> Option<Row> {
        let row = self.collector.observe(o)?;
        self.reservoir.insert(row.clone());
        Some(row)
    }

    /// Takes a usage point without its host; see [`Collector::point`]. A row that it completed is
    /// in the reservoir then.
    pub fn point(
        &mut self,
        domain: &str,
        feature: &FeatureName,
        usage: &Usage,
        steal_percent: Option<f64>,
        running: bool,
    ) -> Taken {
        let taken = self
            .collector
            .point(domain, feature, usage, steal_percent, running);
        if let Some(row) = &taken.row {
            self.reservoir.insert(row.clone());
        }
        taken
    }

    /// Takes the inputs of a feature's next row; see [`Collector::begin`].
    pub fn begin(&mut self, place: Place<'_>, feature: &FeatureName, window: &UsageWindow) {
        self.collector.begin(place, feature, window);
    }

    /// Use of a feature over the last window, if it was observed with its host.
    pub fn window(&self, domain: &str, feature: &FeatureName) -> Option<UsageWindow> {
        self.collector.window(domain, feature)
    }

    /// Forgets pending rows and windows of features for which `keep(domain, feature)` is false.
    pub fn retain(&mut self, keep: impl FnMut(&str, &FeatureName) -> bool) {
        self.collector.retain(keep);
    }

    /// The rows.
    pub fn reservoir(&self) -> &Reservoir {
        &self.reservoir
    }

    /// Takes a peer's rows; returns how many were new.
    pub fn merge(&mut self, batch: Batch, now_ms: i64) -> Result<usize, AffinityError> {
        self.reservoir.merge(batch, now_ms)
    }

    /// What a training needs, for another thread.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            rows: self.reservoir.rows().cloned().collect(),
            champion: self.champion.clone(),
            params: self.settings.params.clone(),
        }
    }

    /// Puts a challenger in place if it won; true then. Otherwise the champion's error is
    /// updated to its latest backtest.
    pub fn adopt(&mut self, trained: Trained) -> bool {
        if trained.wins() {
            self.error = Some(trained.error);
            self.champion = Some(Arc::new(trained.model));
            true
        } else {
            if self.champion.is_some() {
                self.error = trained.champion_error.or(self.error);
            }
            false
        }
    }

    /// Trains and adopts in one go, on this thread; true when a new model is in use.
    pub fn train(
        &mut self,
        now_ms: i64,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<bool, AffinityError> {
        let trained = self.snapshot().train(now_ms, keep_going)?;
        Ok(self.adopt(trained))
    }

    fn weight(&self) -> f64 {
        self.champion.as_ref().map_or(0.0, |m| {
            blend::weight(m.rows, self.settings.rows_min, self.settings.rows_full)
        })
    }

    /// A scorer for one feature, by the model as it is now; it holds nothing of this.
    pub fn for_feature<'a>(
        &self,
        feature: &'a FeatureName,
        window: &'a UsageWindow,
        demand: Demand,
    ) -> ForFeature<'a> {
        let w = self.weight();
        ForFeature::new(
            self.champion.clone().filter(|_| w > 0.0),
            w,
            feature,
            window,
            demand,
        )
    }

    /// Scores a host and guest for a feature.
    pub fn score(&self, input: &ScoreInput<'_>) -> Score {
        self.for_feature(input.feature, input.window, input.demand)
            .score(input.host, input.instance)
    }

    /// The model in use.
    pub fn info(&self) -> ModelInfo {
        let w = self.weight();
        let m = self.champion.as_deref();
        ModelInfo {
            kind: blend::kind(w).to_owned(),
            rows: m.map_or(0, |m| m.rows),
            weight: w,
            trained_at_ms: m.map_or(0, |m| m.trained_at_ms),
            error: self.error,
        }
    }

    /// Rows and model, to be written as one file.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.image().to_bytes()
    }

    /// What is to be written, to be made into bytes elsewhere.
    pub fn image(&self) -> Image {
        Image {
            rows: self.reservoir.rows().cloned().collect(),
            champion: self.champion.clone(),
            error: self.error,
        }
    }

    /// Reads [`Self::to_bytes`].
    pub fn from_bytes(settings: Settings, data: &[u8]) -> Result<Self, AffinityError> {
        let mut a = Self::new(settings);
        let mut r = Reader::open(data, MAGIC, VERSION, schema::HASH)?;
        a.error = Some(r.f64()?).filter(|e| e.is_finite());
        a.reservoir.load(r.bytes()?)?;
        let model = r.bytes()?;
        if !model.is_empty() {
            a.champion = Some(Arc::new(Model::from_bytes(model)?));
        }
        r.end()?;
        Ok(a)
    }
}

#[cfg(test)]
mod tests;
