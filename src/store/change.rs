//! What can be changed in the state file, and where each record goes.

use serde::{Deserialize, Serialize};

use super::{FEATURES, JOBS, MOVES_SOURCE, MOVES_TARGET, Result, SETTINGS, StoreError, Table};
use crate::api::Job;
use crate::feature::{FeatureName, FeatureSpec};
use crate::wire::guest::MoveId;

/// A registered feature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FeatureRecord {
    /// Domain's name when it was registered.
    pub domain: String,
    /// Definition.
    pub spec: FeatureSpec,
    /// Started and metered?
    pub enabled: bool,
    /// When it last arrived here by a move, milliseconds since the epoch; 0 when never.
    pub moved_at_ms: i64,
}

/// Whose journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// This host gives the feature away.
    Source,
    /// This host receives it.
    Target,
}

impl Side {
    pub(super) fn table(self) -> Table {
        match self {
            Self::Source => MOVES_SOURCE,
            Self::Target => MOVES_TARGET,
        }
    }
}

/// One change of a [`Store::transaction`](super::Store::transaction).
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Registers or replaces a feature, under its name in the domain.
    PutFeature {
        /// Domain's UUID.
        domain_uuid: String,
        /// Record.
        record: Box<FeatureRecord>,
    },
    /// Removes a feature.
    RemoveFeature {
        /// Domain's UUID.
        domain_uuid: String,
        /// Feature.
        name: FeatureName,
    },
    /// Writes a move's journal record.
    PutMove {
        /// Whose journal.
        side: Side,
        /// Move.
        id: MoveId,
        /// Content; the state machine's business.
        record: Vec<u8>,
    },
    /// Removes a move's journal record.
    RemoveMove {
        /// Whose journal.
        side: Side,
        /// Move.
        id: MoveId,
    },
    /// Records an ended job; the oldest beyond [`JOBS_KEPT`](super::JOBS_KEPT) go.
    PutJob(Box<Job>),
    /// Writes a setting.
    PutSetting {
        /// Key.
        key: String,
        /// Value.
        value: Vec<u8>,
    },
    /// Removes a setting.
    RemoveSetting {
        /// Key.
        key: String,
    },
}

/// A value to write, or `None` to remove it.
pub(super) struct Write {
    pub(super) table: Table,
    pub(super) key: Vec<u8>,
    pub(super) value: Option<Vec<u8>>,
}

impl Change {
    pub(super) fn into_write(self) -> Result<Write> {
        let json = |what: &str, r: serde_json::Result<Vec<u8>>| {
            r.map_err(|e| StoreError::Invalid {
                what: what.to_owned(),
                message: e.to_string(),
            })
        };
        let (table, key, value) = match self {
            Self::PutFeature {
                domain_uuid,
                record,
            } => (
                FEATURES,
                feature_key(&domain_uuid, &record.spec.name)?,
                Some(json("a feature", serde_json::to_vec(&record))?),
            ),
            Self::RemoveFeature { domain_uuid, name } => {
                (FEATURES, feature_key(&domain_uuid, &name)?, None)
            }
            Self::PutMove { side, id, record } => (side.table(), id.into_bytes(), Some(record)),
            Self::RemoveMove { side, id } => (side.table(), id.into_bytes(), None),
            Self::PutJob(job) => {
                // In the order of their start; the same job is the same key.
                let mut key = (job.started_ms.cast_unsigned() ^ (1 << 63))
                    .to_be_bytes()
                    .to_vec();
                key.extend_from_slice(job.id.as_bytes());
                (JOBS, key, Some(json("a job", serde_json::to_vec(&job))?))
            }
            Self::PutSetting { key, value } => (SETTINGS, key.into_bytes(), Some(value)),
            Self::RemoveSetting { key } => (SETTINGS, key.into_bytes(), None),
        };
        Ok(Write { table, key, value })
    }
}

fn feature_key(domain_uuid: &str, name: &FeatureName) -> Result<Vec<u8>> {
    if domain_uuid.is_empty() || domain_uuid.contains('\0') {
        return Err(StoreError::Invalid {
            what: format!("feature '{name}'"),
            message: "the domain's UUID is empty or has a NUL".into(),
        });
    }
    Ok(format!("{domain_uuid}\0{name}").into_bytes())
}
