//! Messages between daemons: the JSON bodies of `org.drover1.Peer`'s methods, and the header of
//! a bulk connection. Bulk payloads themselves are those of [`super::bulk`], each behind a
//! 4-byte little-endian length.

use serde::{Deserialize, Serialize};

use crate::feature::FeatureSpec;
use crate::method::Method;
use crate::wire::guest::{FileDigest, MoveId, Preflight};

/// Version of the peer protocol. Another major number is refused with a reason.
pub const PROTOCOL: u32 = 3;

/// Source asks the target to take a feature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// Protocol of the source.
    pub protocol: u32,
    /// Move.
    pub id: MoveId,
    /// Feature.
    pub spec: FeatureSpec,
    /// Domain it comes from (for the record only).
    pub from_domain: String,
    /// Domain that shall take it.
    pub to_domain: String,
    /// Bulk stream.
    pub stream: u32,
    /// CPUs the feature is expected to use.
    pub cpus: f64,
    /// MiB the feature is expected to use.
    pub memory_mib: f64,
    /// A user named the target: lack of CPU does not count.
    #[serde(default)]
    pub by_hand: bool,
    /// How it moves.
    #[serde(default)]
    pub method: Method,
    /// Source's preflight.
    pub preflight: Preflight,
    /// Files that must be the same on the target.
    pub files: Vec<FileDigest>,
}

/// Source asks whether the target could take a feature; nothing changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckAsk {
    /// Protocol of the source.
    pub protocol: u32,
    /// Feature, without arguments and environment.
    pub spec: FeatureSpec,
    /// Domain that could take it.
    pub to_domain: String,
    /// CPUs the feature is expected to use.
    pub cpus: f64,
    /// MiB the feature is expected to use.
    pub memory_mib: f64,
    /// A user named the target: lack of CPU does not count.
    #[serde(default)]
    pub by_hand: bool,
    /// Source's preflight.
    pub preflight: Preflight,
}

/// Where a move stands on the target, as the source learns it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum TargetStatus {
    /// Unknown here: never offered, or discarded and forgotten.
    Unknown,
    /// Prepared, receiving rounds.
    Receiving,
    /// Restored, at the gate, durably recorded.
    Ready {
        /// Milliseconds the restore took up to the gate.
        restore_ms: u64,
    },
    /// Runs here.
    Running {
        /// Milliseconds the resume took.
        resume_ms: u64,
        /// Its own commands are being asked still how it does.
        #[serde(default)]
        settling: bool,
        /// What they found, when it was not good.
        #[serde(default)]
        warning: Option<String>,
    },
    /// The guest that held it, or the copy, was lost before it ran there, and this is durable: it
    /// never will.
    Lost {
        /// How, and how it is known.
        reason: String,
    },
    /// Failed and cleaned up.
    Failed {
        /// Why.
        reason: String,
        /// criu failed; another attempt may not.
        #[serde(default)]
        passing: bool,
    },
}

/// What the source answers when the target asks, in doubt, how a move ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The durable commit record exists: the target must resume.
    Committed,
    /// It will never exist: the target must discard.
    Aborted,
    /// The move is still under way.
    Pending,
}

/// First line (JSON, newline-terminated, at most 4 KiB) of a bulk connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BulkHello {
    /// Protocol of the source.
    pub protocol: u32,
    /// Move, offered and accepted before on the control connection of the same peer.
    pub id: MoveId,
    /// Ways to compress messages that the source knows. The target answers with one of them
    /// behind its `ok`, or with `ok` alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pack: Vec<String>,
}
