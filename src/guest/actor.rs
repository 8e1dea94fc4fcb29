//! Keeps the connection to a helper: connects, shakes hands, watches over it, starts over.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::ports::{self, End};
use super::session::{Session, Shared};
use super::{GuestError, GuestEvent};
use crate::hypervisor::Channels;
use crate::wire::guest::{Call, PROTOCOL, Reply};

/// Limit for connecting to a socket on which QEMU listens.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the greeting waits in the port for a helper that is not there yet.
const HELLO: Duration = Duration::from_secs(10);
/// First and longest pause between attempts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Pause after the guest broke a rule or speaks another protocol.
const PENALTY: Duration = Duration::from_secs(30);

/// How much silence is borne. A restarted helper does not know the session and stays silent; QEMU
/// does not tell the host that the guest closed a port.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Silence after which the helper is asked for a sign of life.
    pub silence: Duration,
    /// How long it is then given.
    pub answer: Duration,
    /// The same while it works on a call.
    pub busy: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(6),
            answer: Duration::from_secs(8),
            busy: Duration::from_secs(30),
        }
    }
}

/// Runs until `stopped` says so or the handle is gone.
pub(super) async fn run(
    shared: Arc<Shared>,
    channels: Channels,
    events: mpsc::Sender<(String, GuestEvent)>,
    patience: Patience,
    mut stopped: watch::Receiver<bool>,
) {
    let work = async {
        let mut told = false;
        let mut pause = PAUSE.0;
        loop {
            let mut since = None;
            let end = tokio::select! {
                end = session(&shared, &channels, &events, patience, &mut since) => end,
                () = shared.nudged() => {
                    // The session's tasks died with it; its callers must not wait.
                    if let Ok(session) = shared.current() {
                        session.end();
                    }
                    pause = Duration::ZERO;
                    End::new("connecting anew")
                }
            };
            shared.closed(&end.reason);
            let was_connected = since.is_some();
            if end.offence {
                tracing::warn!(
                    domain = shared.domain(),
                    reason = end.reason,
                    "helper disconnected for a while"
                );
            } else if was_connected {
                tracing::info!(domain = shared.domain(), reason = end.reason, "helper lost");
            } else {
                tracing::debug!(domain = shared.domain(), reason = end.reason, "no helper");
            }
            if was_connected || !told {
                told = true;
                let event = GuestEvent::Lost {
                    reason: end.reason.clone(),
                };
                let _ = events.send((shared.domain().to_owned(), event)).await;
            }
            if since.is_some_and(|t: Instant| t.elapsed() > HELLO) {
                pause = PAUSE.0;
            }
            if end.offence {
                // Nothing cuts this one short.
                sleep(PENALTY).await;
            } else {
                tokio::select! {
                    () = sleep(pause) => {}
                    () = shared.nudged() => {}
                }
            }
            pause = (pause * 2).clamp(PAUSE.0, PAUSE.1);
        }
    };
    tokio::select! {
        () = work => {}
        _ = stopped.wait_for(|stop| *stop) => {}
    }
    // The session's tasks died with `work`; its callers must not wait.
    if let Ok(session) = shared.current() {
        session.end();
    }
    shared.closed("closed");
}

async fn connect(path: &Path, what: &str) -> Result<UnixStream, End> {
    match timeout(CONNECT, UnixStream::connect(path)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(e)) => Err(End::new(format!(
            "cannot connect to the {what} port at {}: {e}",
            path.display()
        ))),
        Err(_) => Err(End::new(format!(
            "the {what} port at {} is taken; does another droverd use it?",
            path.display()
        ))),
    }
}

/// One connection from beginning to end; sets `since` once hands are shaken.
async fn session(
    shared: &Arc<Shared>,
    channels: &Channels,
    events: &mpsc::Sender<(String, GuestEvent)>,
    patience: Patience,
    since: &mut Option<Instant>,
) -> End {
    // The bulk port first: when the helper hears the greeting, both must be connected.
    let bulk = match connect(&channels.bulk, "bulk").await {
        Ok(s) => s,
        Err(end) => return end,
    };
    let control = match connect(&channels.control, "control").await {
        Ok(s) => s,
        Err(end) => return end,
    };
    let (session, queues) = Session::new();
    let heard = Arc::new(Mutex::new(Instant::now()));
    let mut tasks = JoinSet::new();
    let domain = shared.domain().to_owned();
    let (reader, writer) = control.into_split();
    tasks.spawn(ports::read_control(
        reader,
        session.clone(),
        domain.clone(),
        events.clone(),
        heard.clone(),
    ));
    tasks.spawn(ports::write_control(writer, queues.control));
    let (reader, writer) = bulk.into_split();
    tasks.spawn(ports::read_bulk(reader, session.clone(), domain));
    tasks.spawn(ports::write_bulk(writer, queues.bulk));

    let end = tokio::select! {
        end = tasks.join_next() => match end {
            Some(Ok(end)) => end,
            other => End::new(format!("a task of the connection died: {other:?}")),
        },
        end = talk(shared, &session, events, &heard, patience, since) => end,
    };
    // The tasks die with `tasks`.
    session.end();
    end
}

/// Shakes hands, then watches over the connection.
async fn talk(
    shared: &Arc<Shared>,
    session: &Arc<Session>,
    events: &mpsc::Sender<(String, GuestEvent)>,
    heard: &Mutex<Instant>,
    patience: Patience,
    since: &mut Option<Instant>,
) -> End {
    let hello = Call::Hello { protocol: PROTOCOL };
    match session.ask(shared.domain(), hello, HELLO).await {
        Ok(Reply::Hello { protocol, .. }) if protocol != PROTOCOL => {
            return End {
                reason: format!(
                    "it speaks protocol {protocol}, this droverd {PROTOCOL}; \
                     run: drover guest install {}",
                    shared.domain()
                ),
                offence: true,
            };
        }
        Ok(Reply::Hello {
            version, boot_id, ..
        }) => {
            *since = Some(Instant::now());
            tracing::info!(domain = shared.domain(), version, "helper connected");
            session.set_boot_id(&boot_id);
            shared.open(session.clone());
            let event = GuestEvent::Connected { version, boot_id };
            let _ = events.send((shared.domain().to_owned(), event)).await;
        }
        // One that speaks another protocol says so.
        Ok(Reply::Error { message, .. }) => {
            return End {
                reason: format!("it refuses the greeting: {message}"),
                offence: true,
            };
        }
        Ok(other) => return End::new(format!("it answers the greeting with {other:?}")),
        Err(GuestError::Timeout { .. }) => {
            return End::new(format!(
                "no answer to the greeting; is the helper running in the guest? \
                 Otherwise run: drover guest install {}",
                shared.domain()
            ));
        }
        Err(e) => return End::new(e.to_string()),
    }
    loop {
        sleep(patience.silence / 4).await;
        let at = *heard.lock().unwrap_or_else(PoisonError::into_inner);
        if at.elapsed() < patience.silence {
            continue;
        }
        // A helper at work on a call may be slow to answer another; any valid word of it counts.
        let limit = if session.busy() {
            patience.busy
        } else {
            patience.answer
        };
        match session.ask(shared.domain(), Call::Status, limit).await {
            Ok(_) => {}
            Err(GuestError::Timeout { .. }) => {
                let at = *heard.lock().unwrap_or_else(PoisonError::into_inner);
                if at.elapsed() >= limit {
                    return End::new(format!(
                        "no sign of life for {} s; is the guest paused or the helper restarted?",
                        at.elapsed().as_secs()
                    ));
                }
            }
            Err(e) => return End::new(e.to_string()),
        }
    }
}
