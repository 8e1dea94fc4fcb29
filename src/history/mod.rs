//! The metering history: points of use per feature, kept for a time, in sled.
//!
//! A feature is unique in its group across the cluster, so a series is named by group and feature
//! and follows the feature when it moves: the new host [imports](History::import) the points that
//! the old one has.
//!
//! # Tiers
//!
//! | Tier | Points | Kept | A partition |
//! |---|---|---|---|
//! | `raw` | as metered | 6 hours | two hours |
//! | `1m` | a minute each: least, most, mean, last | 7 days | a day |
//! | `15m` | a quarter of an hour each | a year | a month |
//!
//! An hour's points are rolled up to minutes a minute after its end, a day's minutes to quarters
//! when all its hours are. How far this is done is written after what was rolled up is durable, and
//! only what is in the next tier is ever dropped. Rolling up again does no harm: of two points of
//! the same step the one that covers more of it stays. Points that come late set the mark back.
//!
//! # Files
//!
//! ```text
//! DIR/lock                        held by the one process that has the history open
//! DIR/rolled                      how far the tiers are rolled up
//! DIR/raw/2025-01-31T22/          a partition: one sled database
//! DIR/raw/2025-01-31T22.mark      what was acknowledged of it: sequence number, points, time
//! DIR/raw/2025-01-31T22.broken-1/ a database that could not be opened, set aside
//! DIR/raw/2025-01-31T22.compact/  for a moment: a partition whose time is over, packed
//! DIR/1m/2025-01-31/  DIR/15m/2025-01/
//! ```
//!
//! Partitions of earlier versions (`DIR/2025-01-31`) are taken into `raw` as they are.
//!
//! Dropping a partition is deleting its directory. The newest points are head records, one per
//! append and 256 series; at 120 points of a series, and at each full hour, those of these series are
//! sealed into chunks, one per series with all its columns, in one batch with their deletion. When its time is
//! over and it is rolled up, a partition is packed: written anew with longer chunks, compressed
//! with more effort (see `codec`), in a few large values that sled keeps without loss of space. All
//! values carry a CRC-32. Points are exact.
//!
//! # What is promised
//!
//! A point is durable when [`History::append`] or [`History::import`] returns, against kill and
//! power cut. Damage never stops the daemon: a damaged record is left out, a database that cannot
//! be opened is repaired without its snapshot or set aside and begun anew, points that were
//! acknowledged and are gone are counted; each is logged as an error and listed by
//! [`History::problems`].
//!
//! When the disk is nearly full, the oldest points that are rolled up are given up before recording
//! stops; when the history grows above its budget, the oldest points go, then minutes, then
//! quarters. Both are told.
//!
//! One thread owns all databases. Reading goes a partition at a time, rolling up and packing a few
//! series at a time, with waiting appends served in between; appends that wait together share one
//! flush.

mod codec;
pub(crate) mod files;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod jobs;
mod partition;
mod partitions;
mod period;
mod point;
mod query;
mod record;
mod rolled;
mod tiers;
pub mod transfer;
mod worker;

pub use query::Query;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::columns::{COLUMNS, Column};
use crate::feature::FeatureName;
use crate::rollup::Rollup;
use crate::usage::Usage;
use jobs::Call;
use worker::Append;

/// Most points that one [`History::range`] returns: more than a week at one point per 5 s.
pub const RANGE_MAX: usize = 150_000;

/// Names a series: a feature in its group.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SeriesKey {
    /// Group.
    pub group: String,
    /// Feature.
    pub feature: FeatureName,
}

impl fmt::Display for SeriesKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.feature)
    }
}

/// Why the history refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// A file could not be read or written. The partition is opened anew at the next call.
    #[error("history {path}: {message}")]
    Io {
        /// Directory or file.
        path: PathBuf,
        /// The system's or sled's words.
        message: String,
    },
    /// Free space is below the floor: nothing is recorded until there is room.
    #[error(
        "history {dir}: {free_mib} MiB free, {floor_mib} MiB needed: nothing is recorded; free \
         space there or lower history.raw_hours"
    )]
    Full {
        /// Directory.
        dir: PathBuf,
        /// MiB free.
        free_mib: u64,
        /// MiB that must be free.
        floor_mib: u64,
    },
    /// Another process has it open.
    #[error("history {0} is in use by another process: stop the other droverd first")]
    InUse(PathBuf),
    /// A database failed inside sled; it is opened anew, or repaired, at the next call.
    #[error("history partition {partition}: {message}")]
    Broken {
        /// Day.
        partition: String,
        /// What sled said.
        message: String,
    },
    /// A time before 1970 or after the year 9999: the clock is wrong.
    #[error("a point at {0} ms since the epoch is outside the years 1970 to 9999: set the clock")]
    Time(i64),
    /// The history was closed.
    #[error("the history is closed")]
    Closed,
}

/// How a history is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Hours that points are kept as they are; whole partitions are dropped.
    pub raw_hours: u32,
    /// Days that minutes are kept.
    pub minute_days: u32,
    /// Days that quarters of an hour are kept.
    pub quarter_days: u32,
    /// MiB of free space below which points are given up, then nothing is recorded.
    pub floor_mib: u64,
    /// MiB of all together; the oldest goes first.
    pub max_mib: u64,
    /// Usual distance of points, milliseconds: how many there will be in a time.
    pub interval_ms: i64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            raw_hours: 6,
            minute_days: 7,
            quarter_days: 365,
            floor_mib: 64,
            max_mib: 4096,
            interval_ms: 5000,
        }
    }
}

/// A tier, by what its points are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoredTier {
    /// Points as metered.
    Raw,
    /// Minutes.
    Minute,
    /// Quarters of an hour.
    Quarter,
}

/// An answer to a [`Query`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Page {
    /// Milliseconds of a step; 0 for points as they are, as finely as they are kept.
    pub step_ms: i64,
    /// In time order; with a step, one per step that has any.
    pub points: Vec<Rollup>,
}

/// What went wrong, once each; shared between the thread and the handles.
#[derive(Debug, Clone, Default)]
pub(crate) struct Problems(Arc<Mutex<Vec<String>>>);

impl Problems {
    /// Problems kept; later ones are only logged.
    const MOST: usize = 200;

    /// Logs and lists a problem, unless it is listed already.
    pub(crate) fn report(&self, what: String) {
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if list.contains(&what) {
            return;
        }
        tracing::error!("{what}");
        if list.len() < Self::MOST {
            list.push(what);
        }
    }

    /// All of them, oldest first.
    pub(crate) fn list(&self) -> Vec<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Handle to the thread that owns the history. Clones share it; the thread ends with
/// [`History::close`] or when the last handle is dropped. The futures need no particular runtime.
#[derive(Debug, Clone)]
pub struct History {
    appends: mpsc::Sender<Append>,
    calls: mpsc::Sender<Call>,
    problems: Problems,
}

impl History {
    /// Opens or creates the history in `dir`.
    pub fn open(dir: &Path, options: Options) -> Result<Self, HistoryError> {
        // So many at once share a flush.
        let (appends, appends_rx) = mpsc::channel(worker::GROUP);
        let (calls, calls_rx) = mpsc::channel(64);
        let problems = Problems::default();
        worker::start(dir, options, problems.clone(), appends_rx, calls_rx)?;
        Ok(Self {
            appends,
            calls,
            problems,
        })
    }

    /// Records one tick: a point of any number of series. Durable when it returns. A point that is
    /// there already (same series and time) is left as it is, so a failed append can be repeated.
    pub async fn append(&self, tick: Vec<(SeriesKey, Usage)>) -> Result<(), HistoryError> {
        let (reply, answer) = oneshot::channel();
        self.appends
            .send(Append { tick, reply })
            .await
            .map_err(|_| HistoryError::Closed)?;
        answer.await.map_err(|_| HistoryError::Closed)?
    }

    /// Points as metered, as long as they are kept, of a series from `since_ms` to `until_ms`, both
    /// included, in time order: the latest `limit` of them, at most [`RANGE_MAX`].
    pub async fn range(
        &self,
        key: &SeriesKey,
        since_ms: i64,
        until_ms: i64,
        limit: usize,
    ) -> Result<Vec<Usage>, HistoryError> {
        let key = key.clone();
        self.call(|reply| Call::Range {
            key,
            since_ms,
            until_ms,
            limit: limit.min(RANGE_MAX),
            reply,
        })
        .await
    }

    /// What a series was, from the tiers that suit the query.
    pub async fn query(&self, key: &SeriesKey, query: Query) -> Result<Page, HistoryError> {
        self.query_columns(key, query, COLUMNS).await
    }

    /// The same of some columns only, which is quicker: every other one may be absent.
    pub async fn query_columns(
        &self,
        key: &SeriesKey,
        query: Query,
        columns: &[Column],
    ) -> Result<Page, HistoryError> {
        let key = key.clone();
        let wanted = columns.iter().fold(0, |bits, c| bits | 1 << c.id);
        let query = Query {
            limit: query.limit.min(RANGE_MAX),
            ..query
        };
        self.call(|reply| Call::Query {
            key,
            query,
            wanted,
            reply,
        })
        .await
    }

    /// All that the second or third tier has of a series.
    pub async fn rollups(
        &self,
        key: &SeriesKey,
        tier: StoredTier,
    ) -> Result<Vec<Rollup>, HistoryError> {
        let key = key.clone();
        self.call(|reply| Call::Rollups { key, tier, reply }).await
    }

    /// All series with points, sorted.
    pub async fn series(&self) -> Result<Vec<SeriesKey>, HistoryError> {
        self.call(|reply| Call::Series { reply }).await
    }

    /// Merges points of another host into a series. Points that are there already win. Points
    /// older than points are kept, before the newest one of `points`, are left out. Durable, and
    /// rolled up where the others are, when it returns how many points are new.
    pub async fn import(&self, key: &SeriesKey, points: Vec<Usage>) -> Result<u64, HistoryError> {
        let key = key.clone();
        self.call(|reply| Call::Import { key, points, reply }).await
    }

    /// Merges rollups of another host into the second or third tier of a series; of two of the
    /// same time the one that covers more stays. Durable when it returns how many are new.
    pub async fn import_rollups(
        &self,
        key: &SeriesKey,
        tier: StoredTier,
        points: Vec<Rollup>,
    ) -> Result<u64, HistoryError> {
        let key = key.clone();
        self.call(|reply| Call::ImportRollups {
            key,
            tier,
            points,
            reply,
        })
        .await
    }

    /// Rolls up what is over at `now_ms`, packs, and drops the partitions that ended longer ago
    /// than their tier is kept, quarantined ones too. Returns how many were dropped.
    pub async fn expire(&self, now_ms: i64) -> Result<u64, HistoryError> {
        self.call(|reply| Call::Expire { now_ms, reply }).await
    }

    /// What went wrong since it was opened, oldest first, for the administrator.
    pub fn problems(&self) -> Vec<String> {
        self.problems.list()
    }

    /// Closes all databases; other handles get [`HistoryError::Closed`] from then on.
    pub async fn close(self) {
        // An error means that the thread has ended already.
        let _ = self.call(|reply| Call::Close { reply }).await;
    }

    async fn call<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, HistoryError>>) -> Call,
    ) -> Result<T, HistoryError> {
        let (reply, answer) = oneshot::channel();
        self.calls
            .send(make(reply))
            .await
            .map_err(|_| HistoryError::Closed)?;
        answer.await.map_err(|_| HistoryError::Closed)?
    }
}
