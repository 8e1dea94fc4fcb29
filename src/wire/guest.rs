//! Messages on the control port, between droverd (host) and the helper (guest), JSON in frames.
//!
//! ```text
//! host                                   guest
//!  | Request Hello (new session)  ------>  |   guest answers in that session only
//!  | <---------------- Response Hello      |   anything of another session is dropped
//!  | Request ... ----------------------->  |   answered by Response with the same id,
//!  | <------------------------ Event       |   in any order; events come by themselves
//! ```
//!
//! The guest is not trusted: the host checks every message, and nothing in one names another
//! guest, a host path or a peer. The helper trusts the host.

use serde::{Deserialize, Serialize};

use crate::feature::{FeatureName, FeatureSpec};
use crate::method::Method;
use crate::reason::{Reason, Rehearsal};
use crate::sample::MeterFrame;

/// Version of this protocol. A side that meets another major number refuses with a reason.
pub const PROTOCOL: u32 = 2;
/// Name of the control port.
pub const CONTROL_PORT: &str = "org.drover.control.0";
/// Name of the bulk port.
pub const BULK_PORT: &str = "org.drover.bulk.0";

/// Identifies a move: a UUID in text form, checked by [`valid_move_id`].
pub type MoveId = String;

/// Whether `id` is safe to use in paths: hexadecimal digits and dashes, 8 to 40 long.
pub fn valid_move_id(id: &str) -> bool {
    (8..=40).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

/// From host to guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the host, unique within the session.
    pub id: u64,
    /// What is asked.
    pub call: Call,
}

/// What the host asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case")]
#[allow(
    clippy::large_enum_variant,
    reason = "a call is made, sent and dropped; nobody keeps many"
)]
pub enum Call {
    /// Opens a session. First message after the port was opened. Answer: `Hello`.
    Hello {
        /// The host's protocol version.
        protocol: u32,
    },
    /// Interval between meter frames, milliseconds; 0 stops them. Answer: `Done`.
    Meter {
        /// Milliseconds.
        interval_ms: u64,
    },
    /// Makes the guest know exactly these features (metering and start/stop). Features it knows
    /// and that are not named are forgotten; a managed one that still runs is left running but
    /// reported by `Status`. Answer: `Done`.
    Define {
        /// All features of this guest.
        features: Vec<FeatureSpec>,
    },
    /// Starts a managed feature. Idempotent. Answer: `Done`.
    Start {
        /// Feature.
        feature: FeatureName,
    },
    /// Stops a managed feature and removes its unit, namespace and address. Idempotent.
    /// Answer: `Done`.
    Stop {
        /// Feature.
        feature: FeatureName,
    },
    /// What the helper knows: features with their state, moves under way. Answer: `Status`.
    Status,
    /// What the guest can take. Answer: `Capabilities`.
    Capabilities,
    /// Tells the neighbours once more where the addresses of the features are that run here and that
    /// no move is about: the guest is on another host now. Answer: `Done`.
    Announce,
    /// Looks for what would keep the feature from being moved, without touching it.
    /// Answer: `Preflight`.
    Preflight {
        /// Feature.
        feature: FeatureName,
        /// How it shall move.
        #[serde(default)]
        method: Method,
    },
    /// Dumps the feature into tmpfs while it goes on, and throws the dump away. The feature stands
    /// still meanwhile; its network is not touched. Answer: `Rehearsed`.
    Rehearse {
        /// Feature.
        feature: FeatureName,
    },
    /// Looks for what would keep this guest from taking the feature, without changing anything.
    /// Answer: `Reasons`.
    Check {
        /// Feature as it would run here; its arguments and environment may be left out.
        spec: Box<FeatureSpec>,
        /// What the source's preflight found.
        preflight: Box<Preflight>,
    },

    // -- source of a move --
    /// A pre-copy round: `criu pre-dump` into tmpfs, then the round's files on the bulk port.
    /// The feature runs on. Other methods than `live` send the state directories only. Before the
    /// first round the feature's `prepare` is run. Answer when all bytes are in the port: `Round`.
    PreDump {
        /// Move.
        id: MoveId,
        /// Feature.
        feature: FeatureName,
        /// Bulk stream.
        stream: u32,
        /// Round, 1 for the first.
        round: u16,
        /// How the feature moves; that of the first round holds.
        #[serde(default)]
        method: Method,
    },
    /// Takes a percentage of its CPU time from the feature, so that its memory changes slower than
    /// it is sent: `cpu.max` of its cgroup. The freeze and the release undo it. Answer: `Done`.
    Throttle {
        /// Move.
        id: MoveId,
        /// Feature.
        feature: FeatureName,
        /// Percent of what it uses now that is taken away, 0 to 99; 0 gives all back.
        percent: u8,
    },
    /// The last round: full dump up to criu's `post-dump` gate, where the feature is held frozen
    /// and its network locked; the cgroup freezer holds it too, should criu or the helper die.
    /// The files go out on the bulk port. `restart` stops the feature instead, `handover` cuts it
    /// off after its connections had time to end. Before all that the feature's `quiesce` is run.
    /// Answer when all bytes are in the port: `Round`.
    Freeze {
        /// Move.
        id: MoveId,
        /// Feature.
        feature: FeatureName,
        /// Bulk stream.
        stream: u32,
        /// Round, one more than the last pre-copy round.
        round: u16,
    },
    /// Ends the freeze. `commit`: the copy here is killed, its unit, namespace, address and
    /// images removed. Otherwise it is thawed (started again after `restart`), goes on, and its
    /// `abort` is run. Idempotent; also with no freeze under way it removes all that the move left
    /// in the guest. Answer: `Done`.
    Release {
        /// Move.
        id: MoveId,
        /// Feature.
        feature: FeatureName,
        /// Whether the move was committed.
        commit: bool,
    },

    // -- target of a move --
    /// Makes room, network namespace and address (unannounced, all traffic dropped), and starts
    /// reading the bulk stream. Answer: `Done`.
    Receive {
        /// Move.
        id: MoveId,
        /// Feature as it will run here.
        spec: Box<FeatureSpec>,
        /// Bulk stream.
        stream: u32,
        /// Files that must be the same here, as the source's preflight gave them.
        files: Vec<FileDigest>,
        /// Bytes of the feature's state directories, for which there must be room.
        #[serde(default)]
        state_bytes: u64,
        /// How it comes.
        #[serde(default)]
        method: Method,
        /// Directories that must be here, as the source's preflight gave them.
        #[serde(default)]
        directories: Vec<String>,
        /// Bytes of the feature's memory, for which there must be room; 0: not known.
        #[serde(default)]
        memory_bytes: u64,
    },
    /// Waits until the round has fully arrived and checks it. Answer: `Done`.
    AwaitRound {
        /// Move.
        id: MoveId,
        /// Round.
        round: u16,
    },
    /// Restores from the given last round up to criu's `post-restore` gate, with the network
    /// still locked. Other methods than `live` start the feature, its network closed, and run its
    /// `resume` and `health`. Answer once the gate is reached: `Ready`.
    Restore {
        /// Move.
        id: MoveId,
        /// Last round.
        round: u16,
    },
    /// Lets the restored feature run, opens its network, announces its address. Only after the
    /// commit. Idempotent: once running, it answers again. Answer: `Running`.
    Resume {
        /// Move.
        id: MoveId,
    },
    /// Waits for what follows the resume of a live move: the feature's `resume` and `health`.
    /// Answer: `Done`, or an error when one of them failed.
    Settled {
        /// Move.
        id: MoveId,
    },
    /// Gives up the incoming move: removes everything it made here. Idempotent. Refused once
    /// resumed. Answer: `Done`.
    Discard {
        /// Move.
        id: MoveId,
        /// Also when resuming was asked for: the copy that does not run is destroyed. Answer when
        /// it does run: `Running`.
        #[serde(default)]
        force: bool,
    },
}

/// A file that must be identical on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    /// Absolute path in the guest.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// Sum ([`super::sum`]) of its content, as a cheap identity (not a security boundary).
    pub sum: u64,
}

/// From guest to host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Message {
    /// Answer to a request.
    Response {
        /// The request's id.
        id: u64,
        /// Result.
        reply: Reply,
    },
    /// Something happened.
    Event {
        /// What.
        event: Event,
    },
}

/// Answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// To `Hello`.
    Hello {
        /// The helper's protocol version.
        protocol: u32,
        /// The helper's package version.
        version: String,
        /// The guest's boot id.
        boot_id: String,
    },
    /// Done, nothing to tell.
    Done,
    /// To `Status`.
    Status(GuestStatus),
    /// To `Capabilities`.
    Capabilities {
        /// Kernel release.
        kernel: String,
        /// criu's version; empty when absent.
        criu: String,
        /// What `criu check` found; empty when it looks good.
        criu_problem: String,
        /// Digest of the CPU flags.
        cpu_flags: String,
        /// Systemd's version.
        systemd: String,
    },
    /// To `Preflight`.
    Preflight(Preflight),
    /// To `Rehearse`.
    Rehearsed(Rehearsal),
    /// To `Check`.
    Reasons {
        /// Why not; empty when it could.
        reasons: Vec<Reason>,
    },
    /// To `PreDump` and `Freeze`.
    Round(RoundStats),
    /// To `Restore`.
    Ready {
        /// Milliseconds criu took up to the gate.
        restore_ms: u64,
    },
    /// To `Resume`.
    Running {
        /// Milliseconds from the request to the running process.
        resume_ms: u64,
        /// Main process in the guest.
        pid: u32,
    },
    /// It failed.
    Error {
        /// What kind.
        kind: ErrorKind,
        /// One sentence that names the thing and, where there is one, the way out.
        message: String,
    },
}

/// Kinds of errors a helper answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// Not understood or not allowed in this state.
    Invalid,
    /// Names something that is not there.
    NotFound,
    /// The feature, its files or the guest cannot do it (preflight's kind of reasons).
    Refused,
    /// criu failed; the message ends with its last error lines.
    Criu,
    /// Too little memory or tmpfs.
    NoRoom,
    /// Anything else.
    Failed,
}

/// Events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The helper has just been started: it knows no session and no call of before. The only
    /// event that comes outside of a session, in frames of session 0, which is none.
    Started,
    /// A meter tick.
    Meter(MeterFrame),
    /// A managed feature's process ended by itself.
    Exited {
        /// Feature.
        feature: FeatureName,
        /// How, in words.
        status: String,
    },
    /// Bytes sent in the round under way.
    Progress {
        /// Move.
        id: MoveId,
        /// Round.
        round: u16,
        /// Bytes of the round sent so far.
        sent: u64,
        /// Bytes of the round in all.
        total: u64,
    },
    /// A command of a feature was run.
    Hook {
        /// Move.
        id: MoveId,
        /// Feature.
        feature: FeatureName,
        /// Which, how it ended, and what it wrote, shortened.
        text: String,
    },
}

/// Answer to `Status`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GuestStatus {
    /// Features with a unit, namespace or process here.
    pub features: Vec<GuestFeature>,
    /// Moves of which something is here.
    pub moves: Vec<GuestMove>,
}

/// A feature as the guest finds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestFeature {
    /// Name.
    pub feature: FeatureName,
    /// Its processes run (frozen ones count).
    pub running: bool,
    /// Held by the freezer.
    pub frozen: bool,
}

/// A move as the guest finds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestMove {
    /// Move.
    pub id: MoveId,
    /// Feature.
    pub feature: FeatureName,
    /// Where it stands.
    pub state: GuestMoveState,
}

/// Where a move stands in a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestMoveState {
    /// Source: images of pre-copy rounds are here, the feature runs.
    Copying,
    /// Source: frozen, at the gate or held by the freezer.
    Frozen,
    /// Target: receiving rounds.
    Receiving,
    /// Target: restored, at the gate.
    Ready,
    /// Target: resumed; images are kept until `Release`/`Discard` bookkeeping is through.
    Running,
}

/// What preflight found.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Preflight {
    /// Reasons why the feature cannot move; empty when it can.
    pub problems: Vec<Reason>,
    /// Bytes of resident memory that the first round will carry, roughly.
    pub resident_bytes: u64,
    /// Bytes free for images in the guest's tmpfs and memory.
    pub room_bytes: u64,
    /// Files mapped executable, or open and not part of the state: to be compared on the target.
    pub files: Vec<FileDigest>,
    /// Directories that processes are in or have open: they must be on the target too.
    #[serde(default)]
    pub directories: Vec<String>,
    /// Bytes that the state directories take on disk.
    #[serde(default)]
    pub state_bytes: u64,
    /// The method that this is about; a helper that knows only `live` says nothing.
    #[serde(default)]
    pub method: Method,
}

/// What a round took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct RoundStats {
    /// Bytes put on the bulk port.
    pub bytes: u64,
    /// Files put on the bulk port.
    pub files: u32,
    /// Pages written in this round.
    pub pages_written: u64,
    /// Pages left out because an earlier round has them.
    pub pages_skipped: u64,
    /// Milliseconds the feature was frozen by this round as criu counts it; for `Freeze` up to
    /// the gate.
    pub frozen_ms: u64,
    /// Milliseconds criu took.
    pub dump_ms: u64,
    /// Milliseconds from the first to the last byte put on the port.
    pub send_ms: u64,
    /// Of the bytes, those of state directories.
    #[serde(default)]
    pub state_bytes: u64,
    /// Milliseconds that the pass over the state directories took; part of `send_ms`.
    #[serde(default)]
    pub state_ms: u64,
}
