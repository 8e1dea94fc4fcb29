//! The host side of the helper's ports (edge): one [`Guest`] per domain.
//!
//! ```text
//! Guest (handle) --- call ----> pending, id --> control writer --> control port
//!        ^                                                             |
//!        |<-- reply matched by id -- limits, bounds <-- control reader <-
//! events <--- Meter, Exited, Progress ---------------'
//! Guest --- bulk_send ------> budget -----> bulk writer --> bulk port
//!        <- bulk_subscribe <- per stream <- bulk reader <-----'
//! ```
//!
//! The guest is hostile until proven otherwise: frames of other sessions are dropped, events and
//! bytes of the control port are rate-limited, texts are cut and stripped of control characters,
//! and a stream nobody asked for goes nowhere. Nothing here waits for a guest without a limit.
//!
//! - `actor`: connects, shakes hands, keeps alive, starts over.
//! - `session`: the state shared between the handle and the tasks of one connection.
//! - `ports`: readers and writers of both ports.
//! - `limits`: token buckets and bounds. Pure.
//! - `cgroups`: metering through the QEMU guest agent, where there is no helper.
//! - `install`, `shell`: the helper's installation through the QEMU guest agent.

mod actor;
pub mod cgroups;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod install;
mod limits;
mod ports;
mod session;
mod shell;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::feature::FeatureName;
use crate::hypervisor::Channels;
use crate::sample::MeterFrame;
use crate::wire::bulk;
use crate::wire::frame::{FrameError, Kind};
use crate::wire::guest::{Call, ErrorKind, MoveId, Reply};

use actor::Patience;
pub use install::{InstallError, install, remove};
use session::Shared;

/// Why a guest's helper did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The helper is not connected; Drover keeps trying.
    #[error("the helper of domain '{domain}' is not connected: {reason}")]
    NotConnected {
        /// Domain.
        domain: String,
        /// Last reason.
        reason: String,
    },
    /// The connection was lost before the answer came.
    #[error("the helper of domain '{domain}' was lost before it answered '{call}'")]
    Lost {
        /// Domain.
        domain: String,
        /// Call.
        call: &'static str,
    },
    /// No answer, or no room in the port, in time.
    #[error("the helper of domain '{domain}' did not answer '{call}' within {ms} ms")]
    Timeout {
        /// Domain.
        domain: String,
        /// Call.
        call: &'static str,
        /// Limit, milliseconds.
        ms: u128,
    },
    /// The helper answered with an error.
    #[error("the helper of domain '{domain}' failed: {message}")]
    Helper {
        /// Domain.
        domain: String,
        /// Kind.
        kind: ErrorKind,
        /// The helper's words.
        message: String,
    },
    /// The message does not fit into a frame.
    #[error("message for domain '{domain}' too long")]
    TooLong {
        /// Domain.
        domain: String,
        /// Cause.
        #[source]
        source: FrameError,
    },
    /// The message cannot be written as JSON.
    #[error("message for domain '{domain}' cannot be written")]
    Json {
        /// Domain.
        domain: String,
        /// Cause.
        #[source]
        source: serde_json::Error,
    },
}

/// What a guest's helper tells by itself.
#[derive(Debug, Clone, PartialEq)]
pub enum GuestEvent {
    /// The helper answers.
    Connected {
        /// Its version.
        version: String,
        /// Boot id of the guest.
        boot_id: String,
    },
    /// It does not answer any more, or not yet; told once until it is connected again.
    Lost {
        /// Why, with the way out.
        reason: String,
    },
    /// A meter tick. Dropped when nobody takes events fast enough.
    Meter(MeterFrame),
    /// A managed feature's process ended by itself.
    Exited {
        /// Feature.
        feature: FeatureName,
        /// How, in words.
        status: String,
    },
    /// Bytes sent in a move's round under way. Dropped when nobody takes events fast enough.
    Progress {
        /// Move.
        id: MoveId,
        /// Round.
        round: u16,
        /// Bytes sent so far.
        sent: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A command of a feature was run in a move. Dropped when nobody takes events fast enough.
    Hook {
        /// Move.
        id: MoveId,
        /// Feature.
        feature: FeatureName,
        /// Which, how it ended, what it wrote.
        text: String,
    },
}

/// Handle on a domain's helper. Cheap to clone; the connection is kept up until [`Guest::close`]
/// or until the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Guest(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

impl Guest {
    /// Starts to keep up the connection to the helper of `domain` at `channels`. What it tells
    /// goes into `events` with the domain's name. Must be called within a tokio runtime.
    pub fn spawn(
        domain: &str,
        channels: Channels,
        events: mpsc::Sender<(String, GuestEvent)>,
    ) -> Self {
        Self::spawn_with(domain, channels, events, Patience::default())
    }

    fn spawn_with(
        domain: &str,
        channels: Channels,
        events: mpsc::Sender<(String, GuestEvent)>,
        patience: Patience,
    ) -> Self {
        let shared = Arc::new(Shared::new(domain));
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(actor::run(
            shared.clone(),
            channels,
            events,
            patience,
            stopped,
        ));
        Self(Arc::new(Handle { shared, stop }))
    }

    /// Asks the helper. Fails at once when it is not connected, and with
    /// [`GuestError::Helper`] when it answers with an error.
    pub async fn call(&self, call: Call, timeout: Duration) -> Result<Reply, GuestError> {
        self.call_in_boot(call, timeout)
            .await
            .map(|(reply, _)| reply)
    }

    /// As [`Guest::call`], with the boot id of the guest that answered.
    pub async fn call_in_boot(
        &self,
        call: Call,
        timeout: Duration,
    ) -> Result<(Reply, Option<String>), GuestError> {
        let shared = &self.0.shared;
        let session = shared.current()?;
        let reply = session.ask(shared.domain(), call, timeout).await?;
        match reply {
            Reply::Error { kind, message } => Err(GuestError::Helper {
                domain: shared.domain().to_owned(),
                kind,
                message,
            }),
            other => Ok((other, session.boot_id().map(str::to_owned))),
        }
    }

    /// Boot id of the guest, while its helper is connected.
    pub fn boot_id(&self) -> Option<String> {
        let session = self.0.shared.current().ok()?;
        session.boot_id().map(str::to_owned)
    }

    /// Whether the helper is connected and answers.
    pub fn connected(&self) -> bool {
        self.0.shared.current().is_ok()
    }

    /// Takes the messages of one bulk stream from now on. At most 4 MiB wait here; then the
    /// guest's port fills up. The receiver ends when the connection is lost or the guest sends
    /// something in the stream that is no bulk message. A later subscription to the same stream
    /// replaces an earlier one. While its receiver is full, other streams of this guest wait too.
    #[allow(clippy::unused_async)] // the interface leaves room for a helper that is told
    pub async fn bulk_subscribe(&self, stream: u32) -> mpsc::Receiver<bulk::Message> {
        let (tx, rx) = mpsc::channel(session::STREAM_MESSAGES);
        if let Ok(session) = self.0.shared.current() {
            session.subscribe(stream, tx);
        }
        rx
    }

    /// Sends a bulk message, waiting for room: at most 2 MiB wait for the guest to take them.
    /// Returns when the message is queued; one that was queued is written whole.
    pub async fn bulk_send(
        &self,
        message: &bulk::Message,
        timeout: Duration,
    ) -> Result<(), GuestError> {
        let shared = &self.0.shared;
        let session = shared.current()?;
        let mut payload = Vec::new();
        message.encode(&mut payload);
        let frame = session.frame(Kind::Bulk, &payload, shared.domain())?;
        tokio::time::timeout(timeout, session.queue_bulk(frame))
            .await
            .map_err(|_| GuestError::Timeout {
                domain: shared.domain().to_owned(),
                call: "bulk data",
                ms: timeout.as_millis(),
            })?
            .map_err(|()| GuestError::Lost {
                domain: shared.domain().to_owned(),
                call: "bulk data",
            })
    }

    /// Drops the connection, if there is one, and connects anew at once. For moments at which the
    /// helper is known to be another one (it was installed or upgraded, the domain was resumed):
    /// that a helper was restarted shows by itself only as silence, after a quarter of a minute.
    pub fn reconnect(&self) {
        self.0.shared.nudge();
    }

    /// Ends the connection for good; calls under way fail.
    pub fn close(&self) {
        self.0.stop.send_replace(true);
    }
}

/// A call's name, for messages.
fn call_name(call: &Call) -> &'static str {
    match call {
        Call::Hello { .. } => "hello",
        Call::Meter { .. } => "meter",
        Call::Define { .. } => "define",
        Call::Start { .. } => "start",
        Call::Stop { .. } => "stop",
        Call::Status => "status",
        Call::Capabilities => "capabilities",
        Call::Announce => "announce",
        Call::Preflight { .. } => "preflight",
        Call::Rehearse { .. } => "rehearsal",
        Call::Check { .. } => "check",
        Call::PreDump { .. } => "pre-dump",
        Call::Throttle { .. } => "throttle",
        Call::Freeze { .. } => "freeze",
        Call::Release { .. } => "release",
        Call::Receive { .. } => "receive",
        Call::AwaitRound { .. } => "await round",
        Call::Restore { .. } => "restore",
        Call::Resume { .. } => "resume",
        Call::Settled { .. } => "settled",
        Call::Discard { .. } => "discard",
    }
}
