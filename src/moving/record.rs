//! What the journal keeps of a move, so that a daemon that was killed knows how to end it.

use serde::{Deserialize, Serialize};

use crate::api::{Job, JobResult, MoveDetail};
use crate::feature::FeatureSpec;
use crate::method::Method;
use crate::wire::guest::MoveId;

/// Source's record. Written durably before anything changes, and once more at the commit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// Move.
    pub id: MoveId,
    /// Feature as registered when the move began.
    pub spec: FeatureSpec,
    /// Where it runs.
    pub domain: String,
    /// libvirt UUID of that domain.
    pub domain_uuid: String,
    /// This host.
    pub from_host: String,
    /// Where it goes.
    pub to_host: String,
    /// Where it goes.
    pub to_domain: String,
    /// Bulk stream.
    pub stream: u32,
    /// Why: `manual`, or the breach in words.
    pub cause: String,
    /// Start, milliseconds since the epoch.
    pub started_ms: i64,
    /// The one durable commit record: once true, only the target may run the feature.
    pub committed: bool,
    /// How it moves.
    #[serde(default)]
    pub method: Method,
    /// The commit was taken back, since the target has recorded that it can never resume; then
    /// `committed` is false again and only this host may run the feature.
    #[serde(default)]
    pub reverted: bool,
}

/// Target's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetRecord {
    /// Move.
    pub id: MoveId,
    /// Feature.
    pub spec: FeatureSpec,
    /// Where it comes from.
    pub from_host: String,
    /// Domain here that takes it.
    pub domain: String,
    /// libvirt UUID of that domain.
    pub domain_uuid: String,
    /// Bulk stream.
    pub stream: u32,
    /// CPUs reserved.
    pub cpus: f64,
    /// MiB reserved.
    pub memory_mib: f64,
    /// Where it stands.
    pub phase: TargetPhase,
    /// How it moves.
    #[serde(default)]
    pub method: Method,
    /// Boot id of the guest that holds the restored copy, from READY on. Another boot id later
    /// proves that the copy is gone.
    #[serde(default)]
    pub boot_id: Option<String>,
}

/// Durable phases of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetPhase {
    /// Before READY: a restart discards it.
    Receiving,
    /// READY was or may have been reported: a restart asks the source.
    Ready,
    /// The feature runs here.
    Running,
    /// The source gave the move up after its commit: the restored copy is to be destroyed.
    Destroying,
    /// The guest with the restored copy, or the copy, was lost before the feature ran here: it
    /// never will.
    Lost,
}

/// How a move ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ending {
    /// Result.
    pub result: JobResult,
    /// Reason, unless done.
    pub reason: Option<String>,
}

impl Ending {
    /// Done.
    pub fn done() -> Self {
        Self {
            result: JobResult::Done,
            reason: None,
        }
    }
    /// Not done, and why.
    pub fn not(result: JobResult, reason: impl Into<String>) -> Self {
        Self {
            result,
            reason: Some(reason.into()),
        }
    }
}

/// Dashes in the identifier of a move's first attempt, a UUID.
const DASHES: usize = 4;

/// The move that an attempt belongs to: the first attempt's identifier is the move's, the others
/// have their number behind it.
pub fn job_of(id: &str) -> &str {
    match id.rsplit_once('-') {
        Some((job, _)) if id.matches('-').count() > DASHES => job,
        _ => id,
    }
}

/// Number of an attempt, from 1.
pub fn attempt_of(id: &str) -> u16 {
    let number = id
        .strip_prefix(job_of(id))
        .and_then(|s| s.strip_prefix('-'));
    number.and_then(|n| n.parse().ok()).unwrap_or(1)
}

impl SourceRecord {
    /// The record of the next attempt: known to nobody yet, its stream neither.
    #[must_use]
    pub fn next_attempt(&self, handover: bool) -> Self {
        let number = attempt_of(&self.id).saturating_add(1);
        Self {
            id: format!("{}-{number}", job_of(&self.id)),
            stream: self.stream.wrapping_add(1).max(1),
            method: if handover {
                Method::Handover
            } else {
                self.method
            },
            ..self.clone()
        }
    }

    /// The job as it begins.
    pub fn job(&self) -> Job {
        Job {
            id: job_of(&self.id).to_owned(),
            feature: self.spec.name.clone(),
            from_host: self.from_host.clone(),
            from_domain: self.domain.clone(),
            to_host: self.to_host.clone(),
            to_domain: self.to_domain.clone(),
            cause: self.cause.clone(),
            state: "queued".into(),
            result: None,
            reason: None,
            rounds: 0,
            bytes_sent: 0,
            freeze_ms: None,
            started_ms: self.started_ms,
            ended_ms: None,
            history: Vec::new(),
            detail: MoveDetail {
                method: self.method,
                attempt: attempt_of(&self.id),
                ..MoveDetail::default()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_named_after_their_move() {
        let job = "3f2a4b5c-0000-4000-8000-0123456789ab";
        assert_eq!((job_of(job), attempt_of(job)), (job, 1));
        let third = format!("{job}-3");
        assert_eq!((job_of(&third), attempt_of(&third)), (job, 3));
        assert!(crate::wire::guest::valid_move_id(&third));
    }
}
