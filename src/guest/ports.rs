//! Readers and writers of the two ports. Each returns why it ended, in words.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::GuestEvent;
use super::limits::{self, Bucket};
use super::session::{BulkFrame, Session};
use crate::wire::bulk;
use crate::wire::frame::{Decoder, Frame, Kind};
use crate::wire::guest::{Event, Message, valid_move_id};

/// Bytes read from a port at a time: of a busy bulk port, of a busy control port, and of an idle
/// one, since there are hundreds.
const READ: usize = 256 << 10;
const READ_CONTROL: usize = 16 << 10;
const READ_IDLE: usize = 4 << 10;
/// Bytes that frames are gathered to before a write: virtio-serial wants large writes.
const GATHER: usize = 512 << 10;
/// Pause before more is read from a bulk port that is full of what nobody wants.
const SLOW: Duration = Duration::from_millis(100);

/// Why a session ended.
#[derive(Debug)]
pub(super) struct End {
    /// In words.
    pub reason: String,
    /// The guest broke a rule: come back later.
    pub offence: bool,
}

impl End {
    pub fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            offence: false,
        }
    }
    fn offence(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            offence: true,
        }
    }
}

/// Reads the control port: answers go to their calls, events to `events`. `heard` is told
/// whenever the guest says something valid.
pub(super) async fn read_control(
    mut port: impl AsyncRead + Unpin,
    session: Arc<Session>,
    domain: String,
    events: mpsc::Sender<(String, GuestEvent)>,
    heard: Arc<std::sync::Mutex<Instant>>,
) -> End {
    let start = Instant::now();
    let now = || start.elapsed().as_secs_f64();
    let mut bytes = Bucket::new(limits::BYTES_PER_S, 0.0);
    let mut frames = Bucket::new(limits::EVENTS_PER_S, 0.0);
    let mut decoder = Decoder::new();
    let mut buf = vec![0; READ_IDLE];
    loop {
        let n = match port.read(&mut buf).await {
            Ok(0) => return End::new("QEMU closed the control port"),
            Ok(n) => n,
            Err(e) => return End::new(format!("control port: {e}")),
        };
        if !bytes.take(n as f64, now()) {
            return End::offence("it sends more than 4 MiB per second on its control port");
        }
        decoder.push(&buf[..n]);
        fit(&mut buf, n, READ_CONTROL);
        while let Some(f) = decoder.next() {
            if started_anew(&f, &session) {
                return End::new("the helper was started anew");
            }
            let message = (f.kind == Kind::Control && f.session == session.number())
                .then(|| serde_json::from_slice::<Message>(&f.payload));
            let event = match message {
                Some(Ok(mut m)) => {
                    if let Ok(mut at) = heard.lock() {
                        *at = Instant::now();
                    }
                    limits::trim(&mut m);
                    tracing::trace!(domain, message = ?m, "from the helper");
                    match m {
                        Message::Response { id, reply } => {
                            if session.answer(id, reply) {
                                continue;
                            }
                            tracing::debug!(domain, id, "answer to no call dropped");
                            None
                        }
                        Message::Event { event } => Some(event),
                    }
                }
                Some(Err(e)) => {
                    tracing::debug!(domain, error = %e, "message not understood, dropped");
                    None
                }
                None => {
                    tracing::debug!(
                        domain,
                        session = f.session,
                        "frame of another session dropped"
                    );
                    None
                }
            };
            // Whatever answers no call counts, garbage included.
            if !frames.take(1.0, now()) {
                return End::offence("it sends more than 200 events per second");
            }
            if let Some(event) = event {
                deliver(event, &domain, &events).await;
            }
        }
    }
}

/// Whether the helper says that it was started, which it says in no session. Its life before is
/// over, and with it the session, if hands were shaken.
fn started_anew(f: &Frame, session: &Session) -> bool {
    f.session == 0
        && f.kind == Kind::Control
        && session.boot_id().is_some()
        && matches!(
            serde_json::from_slice(&f.payload),
            Ok(Message::Event {
                event: Event::Started
            })
        )
}

/// Makes a buffer of which `read` bytes were used larger when that was all of it, small when that
/// was little.
fn fit(buf: &mut Vec<u8>, read: usize, most: usize) {
    if read == buf.len() && read < most {
        *buf = vec![0; (read * 4).min(most)];
    } else if read < READ_IDLE && buf.len() > READ_IDLE {
        *buf = vec![0; READ_IDLE];
    }
}

async fn deliver(event: Event, domain: &str, events: &mpsc::Sender<(String, GuestEvent)>) {
    let event = match event {
        Event::Started => return,
        Event::Meter(frame) => GuestEvent::Meter(frame),
        Event::Progress {
            id,
            round,
            sent,
            total,
        } => {
            if !valid_move_id(&id) {
                return;
            }
            GuestEvent::Progress {
                id,
                round,
                sent,
                total,
            }
        }
        Event::Hook { id, feature, text } => {
            if !valid_move_id(&id) {
                return;
            }
            GuestEvent::Hook { id, feature, text }
        }
        Event::Exited { feature, status } => {
            // This one must not get lost.
            let event = GuestEvent::Exited { feature, status };
            let _ = events.send((domain.to_owned(), event)).await;
            return;
        }
    };
    if events.try_send((domain.to_owned(), event)).is_err() {
        tracing::debug!(domain, "event of the guest dropped: the queue is full");
    }
}

/// Writes the control port.
pub(super) async fn write_control(
    mut port: impl AsyncWrite + Unpin,
    mut frames: mpsc::Receiver<Vec<u8>>,
) -> End {
    while let Some(frame) = frames.recv().await {
        if let Err(e) = port.write_all(&frame).await {
            return End::new(format!("control port: {e}"));
        }
    }
    End::new("closed")
}

/// Reads the bulk port: messages go to the subscriber of their stream.
pub(super) async fn read_bulk(
    mut port: impl AsyncRead + Unpin,
    session: Arc<Session>,
    domain: String,
) -> End {
    let start = Instant::now();
    let mut unwanted = Bucket::new(limits::UNWANTED_BYTES_PER_S, 0.0);
    let mut decoder = Decoder::new();
    let mut skipped = 0;
    let mut buf = vec![0; READ_IDLE];
    loop {
        let n = match port.read(&mut buf).await {
            Ok(0) => return End::new("QEMU closed the bulk port"),
            Ok(n) => n,
            Err(e) => return End::new(format!("bulk port: {e}")),
        };
        decoder.push(&buf[..n]);
        fit(&mut buf, n, READ);
        let mut waste = 0;
        while let Some(f) = decoder.next() {
            if !forward(&f, &session, &domain).await {
                waste += f.payload.len() as u64;
            }
        }
        waste += decoder.skipped() - skipped;
        skipped = decoder.skipped();
        if !unwanted.take(waste as f64, start.elapsed().as_secs_f64()) {
            // It costs this guest's own transfers their speed, and the host little.
            tokio::time::sleep(SLOW).await;
        }
    }
}

/// Hands a frame of the bulk port to its subscriber; false when nobody wants it.
async fn forward(f: &Frame, session: &Session, domain: &str) -> bool {
    if f.kind != Kind::Bulk || f.session != session.number() {
        return false;
    }
    match bulk::Message::decode(&f.payload) {
        Ok(message) => {
            let stream = message.stream;
            let Some(to) = session.subscriber(stream) else {
                return false;
            };
            let taken = to.send(message).await.is_ok();
            if !taken {
                session.unsubscribe(Some(stream));
            }
            taken
        }
        Err(e) => {
            let stream = f.payload.get(1..5).and_then(|b| b.try_into().ok());
            let stream = stream.map(u32::from_le_bytes);
            tracing::warn!(domain, stream, error = %e, "bulk stream of the guest ended");
            session.unsubscribe(stream);
            false
        }
    }
}

/// Writes the bulk port, several frames at a time when they wait.
pub(super) async fn write_bulk(
    mut port: impl AsyncWrite + Unpin,
    mut frames: mpsc::UnboundedReceiver<BulkFrame>,
) -> End {
    while let Some((mut out, first)) = frames.recv().await {
        let mut permits = vec![first];
        while out.len() < GATHER
            && let Ok((more, permit)) = frames.try_recv()
        {
            out.extend_from_slice(&more);
            permits.push(permit);
        }
        if let Err(e) = port.write_all(&out).await {
            return End::new(format!("bulk port: {e}"));
        }
    }
    End::new("closed")
}
