//! Peers: daemon to daemon, D-Bus peer to peer inside mutual TLS.
//!
//! Each side dials every configured peer for its own calls and accepts one connection of each
//! peer for that peer's calls, so a pair has two control connections and neither side depends on
//! who came first. [`client`] is the dialling half ([`Peers`]), [`server`] the accepting half
//! (`org.drover1.Peer`, answered by a [`PeerService`]), [`bulk`] the streams of checkpoint
//! images beside them, [`socket`] the D-Bus transport.

pub mod bulk;
pub mod client;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod keep;
pub mod server;
mod slot;
pub mod socket;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use crate::host::HostState;
use crate::reason::Reason;
use crate::transport::TransportError;
use crate::usage::Usage;
use crate::wire::peer::{CheckAsk, DomainAnswer, DomainAsk, Offer, TargetStatus, Verdict};

pub use bulk::{BulkReceiver, BulkSender};
pub use client::Peers;

/// Object path of the peer interface.
pub const PATH: &str = "/org/drover1/Peer";
/// Name of the peer interface.
pub const INTERFACE: &str = "org.drover1.Peer";
/// Most points of history in one call of `ImportHistory`.
pub const MAX_POINTS: usize = 2_000;
/// How long questions without a timeout argument wait for their answer: `host_state`, `status`,
/// `verdict`, `rows`, `about_domain`.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(10);

/// What this host does for its peers; implemented by the daemon. `from` is the peer's configured
/// name, proved by its certificate. Calls run concurrently, and one whose caller gave up still
/// runs to its end (or [`server::CALL_LIMIT`]): each must be idempotent.
#[async_trait]
pub trait PeerService: Send + Sync + 'static {
    /// This host's state.
    async fn host_state(&self, from: &str) -> HostState;
    /// Prepares to receive a feature: reservation, namespace, receiving. The form of the offer
    /// and its group (`[[peer.hosts]] groups`) were checked before.
    async fn offer(&self, from: &str, offer: Offer) -> Result<(), PeerRefusal>;
    /// What would keep this host from taking a feature; changes nothing. The form of the question
    /// and its group were checked before.
    async fn check(&self, from: &str, ask: CheckAsk) -> Result<Vec<Reason>, PeerRefusal> {
        let _ = (from, ask);
        Err(PeerRefusal::new(
            RefusalKind::Refused,
            "nothing is checked here".to_owned(),
        ))
    }
    /// Returns once round `round` of move `id` was received completely.
    async fn await_round(&self, from: &str, id: &str, round: u16) -> Result<(), PeerRefusal>;
    /// Returns once move `id` may freeze: no other move to this host is in its freeze, until this
    /// one's end.
    async fn grant_freeze(&self, from: &str, id: &str) -> Result<(), PeerRefusal>;
    /// Restores up to the gate and records that durably.
    async fn restore(&self, from: &str, id: &str, round: u16) -> Result<TargetStatus, PeerRefusal>;
    /// Lets the restored feature run; the source has committed.
    async fn resume(&self, from: &str, id: &str) -> Result<TargetStatus, PeerRefusal>;
    /// Destroys the copy of a committed move that does not resume, unless it runs.
    async fn give_up(&self, from: &str, id: &str) -> Result<TargetStatus, PeerRefusal>;
    /// Gives a move up and cleans up. An unknown move is discarded already.
    async fn discard(&self, from: &str, id: &str, reason: &str) -> Result<(), PeerRefusal>;
    /// Where a move stands here, as its target.
    async fn status(&self, from: &str, id: &str) -> TargetStatus;
    /// How a move ended here, as its source.
    async fn verdict(&self, from: &str, id: &str) -> Verdict;
    /// Takes history of the moved feature, in time order, at most [`MAX_POINTS`] at once.
    async fn import_history(
        &self,
        from: &str,
        id: &str,
        points: Vec<Usage>,
    ) -> Result<(), PeerRefusal>;
    /// Takes a parcel of rolled up history of the moved feature: minutes (`minute`) or quarters
    /// of an hour (`quarter`); the parcel is opaque here.
    async fn import_rollups(
        &self,
        from: &str,
        id: &str,
        tier: &str,
        parcel: Vec<u8>,
    ) -> Result<(), PeerRefusal> {
        let _ = (from, id, tier, parcel);
        Err(PeerRefusal::new(
            RefusalKind::Refused,
            "rolled up history is not taken here".to_owned(),
        ))
    }
    /// Affinity rows after number `after`, at most `limit`, as JSON that is opaque here.
    async fn rows(&self, from: &str, after: u64, limit: u32) -> String;
    /// Answers about a domain that libvirt migrated as a whole.
    async fn about_domain(&self, from: &str, ask: DomainAsk) -> Result<DomainAnswer, PeerRefusal> {
        let _ = (from, ask);
        Err(PeerRefusal::new(
            RefusalKind::Refused,
            "nothing is told about domains here",
        ))
    }
    /// A bulk connection for move `id`; only the form of its header was checked. The connection
    /// ends when `incoming` is dropped.
    async fn bulk(&self, from: &str, id: &str, incoming: BulkReceiver);
}

/// Kind of a refusal; travels as the D-Bus error `org.drover1.Error.KIND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// Understood, but refused.
    Refused,
    /// Not now: another operation is under way, or too many are.
    Busy,
    /// No such move, domain or feature.
    NotFound,
    /// Input that cannot be right.
    Invalid,
    /// It took too long there.
    Timeout,
    /// Tried, and failed.
    Failed,
}

impl RefusalKind {
    /// The last part of the D-Bus error's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "Refused",
            Self::Busy => "Busy",
            Self::NotFound => "NotFound",
            Self::Invalid => "Invalid",
            Self::Timeout => "Timeout",
            Self::Failed => "Failed",
        }
    }
}

impl fmt::Display for RefusalKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A host's refusal, with the reason in a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PeerRefusal {
    /// Kind.
    pub kind: RefusalKind,
    /// Reason.
    pub message: String,
}

impl PeerRefusal {
    /// A refusal of `kind`.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}

/// Why a call to a peer has no result.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Not in the configuration.
    #[error("'{0}' is not a configured peer; add it to [[peer.hosts]]")]
    UnknownPeer(String),
    /// No connection, or it ended before the answer came. What was asked may have been done.
    #[error("host '{host}' cannot be reached: {reason}")]
    Unreachable {
        /// Peer.
        host: String,
        /// Why.
        reason: String,
    },
    /// The peer answered with a refusal.
    #[error("host '{host}' refused: {message}")]
    Refused {
        /// Peer.
        host: String,
        /// Kind.
        kind: RefusalKind,
        /// Reason.
        message: String,
    },
    /// No answer in time. What was asked may still be done.
    #[error("host '{host}' did not answer {what} within {:.1} s", .after.as_secs_f64())]
    Timeout {
        /// Peer.
        host: String,
        /// What was asked.
        what: String,
        /// How long was waited.
        after: Duration,
    },
    /// What arrived, or should be sent, breaks the protocol.
    #[error("protocol error with host '{host}': {message}")]
    Protocol {
        /// Peer.
        host: String,
        /// What is wrong.
        message: String,
    },
    /// The transport cannot be set up: certificates or address of this host.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// What happens with peers, as [`Peers`] tells the daemon. `Up` and `Down` alternate per host;
/// `State` follows every answer and every announcement, and is dropped when the daemon lags.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all events are states; a box for each would save nothing"
)]
pub enum PeerEvent {
    /// A peer answers.
    Up {
        /// Peer.
        host: String,
        /// Its droverd's version.
        version: String,
    },
    /// A peer gave no answer for `timeout_s`.
    Down {
        /// Peer.
        host: String,
        /// Why, in words.
        reason: String,
    },
    /// A peer's state.
    State(HostState),
}
