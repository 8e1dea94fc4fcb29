//! Messages between daemons: the JSON bodies of `org.drover1.Peer`'s methods, and the header of
//! a bulk connection. Bulk payloads themselves are those of [`super::bulk`], each behind a
//! 4-byte little-endian length.

use serde::{Deserialize, Serialize};

use crate::feature::{FeatureName, FeatureSpec};
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

/// A question about a domain that libvirt migrated as a whole, or about what a move left in the
/// guest of such a domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum DomainAsk {
    /// These domains run here now: what are their features? Answer: `HandOver`.
    HandOver {
        /// libvirt's UUIDs, at most [`MAX_DOMAINS`].
        uuids: Vec<String>,
    },
    /// These features of a domain are registered here now, durably: let go of them and send their
    /// history. Answer: `Noted`.
    HandedOver {
        /// Domain's UUID.
        uuid: String,
        /// Features, each with the identifier under which its history comes.
        features: Vec<(FeatureName, MoveId)>,
    },
    /// A copy of a feature is frozen in a guest here by this move, which did not begin here. What
    /// shall become of it? Answer: `Fate`.
    Fate {
        /// Move.
        id: MoveId,
    },
    /// What is left of an incoming move in the guest of this domain, which ran here when the move
    /// began. Answer: `Copy`.
    Copy {
        /// Move.
        id: MoveId,
        /// Domain's UUID.
        uuid: String,
    },
}

/// Most domains in one question.
pub const MAX_DOMAINS: usize = 16;

/// Answer to a [`DomainAsk`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum DomainAnswer {
    /// Of those domains that are or were known here.
    HandOver {
        /// One for each.
        domains: Vec<Handover>,
    },
    /// Done.
    Noted,
    /// What to do with a frozen copy.
    Fate {
        /// That.
        fate: Fate,
    },
    /// What is left of an incoming move.
    Copy {
        /// That.
        copy: CopyState,
    },
}

/// What a host has of a domain that runs elsewhere now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Handover {
    /// Domain's UUID.
    pub uuid: String,
    /// The domain still runs here, or a move of its features is under way: ask again.
    pub busy: bool,
    /// Its features that the asking host may have and no move is about.
    pub features: Vec<HandedFeature>,
}

/// A feature that goes along with its domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HandedFeature {
    /// Definition, with arguments and environment.
    pub spec: FeatureSpec,
    /// Whether it is enabled.
    pub enabled: bool,
    /// When it last arrived by a move, milliseconds since the epoch.
    pub moved_at_ms: i64,
    /// Its history comes under this identifier.
    pub history: MoveId,
}

/// What shall become of a copy that a move left frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// No such move is or was known here.
    Unknown,
    /// Not decided yet, or not known for sure.
    Pending,
    /// The feature runs at the target: the copy must go.
    Gone,
    /// The move was given up: the copy is the feature, and goes on.
    Stays,
}

/// What is left of an incoming move in a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyState {
    /// The domain is not here, or its guest does not answer.
    Unknown,
    /// Nothing, and nothing of it will ever run.
    Gone,
    /// The feature was resumed and runs.
    Running,
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
