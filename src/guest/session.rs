//! State of one connection to a helper, shared between the handle and the connection's tasks.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{GuestError, call_name};
use crate::wire::bulk;
use crate::wire::frame::{self, Kind};
use crate::wire::guest::{Call, Reply, Request};

/// Messages that wait per bulk stream: 8 of at most 512 KiB are 4 MiB. With what the port's reader
/// and the sender to the next host hold, a move has less than 8 MiB here.
pub(super) const STREAM_MESSAGES: usize = (4 << 20) / bulk::MAX_DATA;
/// Bytes that wait for the guest's bulk port.
const BULK_BYTES: usize = 2 << 20;
/// Calls that may be under way at a time.
const MAX_PENDING: usize = 64;
/// Frames that wait for the guest's control port.
const CONTROL_FRAMES: usize = 16;

/// What outlives connections.
#[derive(Debug)]
pub(super) struct Shared {
    domain: String,
    state: Mutex<Result<Arc<Session>, String>>,
    nudge: Notify,
}

impl Shared {
    pub fn new(domain: &str) -> Self {
        Self {
            domain: domain.to_owned(),
            state: Mutex::new(Err("not connected yet".into())),
            nudge: Notify::new(),
        }
    }

    /// The domain's name.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The session, once shaken hands.
    pub fn current(&self) -> Result<Arc<Session>, GuestError> {
        lock(&self.state)
            .clone()
            .map_err(|reason| GuestError::NotConnected {
                domain: self.domain.clone(),
                reason,
            })
    }

    /// Asks for a new connection at once.
    pub fn nudge(&self) {
        self.nudge.notify_one();
    }

    /// Waits until a new connection is asked for.
    pub async fn nudged(&self) {
        self.nudge.notified().await;
    }

    /// A session is open.
    pub fn open(&self, session: Arc<Session>) {
        *lock(&self.state) = Ok(session);
    }

    /// There is no session, and why.
    pub fn closed(&self, reason: &str) {
        *lock(&self.state) = Err(reason.to_owned());
    }
}

/// A frame for the bulk port with its share of the budget, given back when it is written.
pub(super) type BulkFrame = (Vec<u8>, OwnedSemaphorePermit);

/// One connection.
#[derive(Debug)]
pub(super) struct Session {
    number: u32,
    next_id: AtomicU64,
    pending: Mutex<HashMap<u64, oneshot::Sender<Reply>>>,
    streams: Mutex<HashMap<u32, mpsc::Sender<bulk::Message>>>,
    control: mpsc::Sender<Vec<u8>>,
    bulk: mpsc::UnboundedSender<BulkFrame>,
    budget: Arc<Semaphore>,
    boot_id: OnceLock<String>,
}

/// Ends of the queues that the writers take from.
pub(super) struct Queues {
    pub control: mpsc::Receiver<Vec<u8>>,
    pub bulk: mpsc::UnboundedReceiver<BulkFrame>,
}

impl Session {
    /// A session with a fresh random number.
    pub fn new() -> (Arc<Self>, Queues) {
        let (control, control_rx) = mpsc::channel(CONTROL_FRAMES);
        // Bounded by the budget.
        let (bulk, bulk_rx) = mpsc::unbounded_channel();
        let random = uuid::Uuid::new_v4().as_u128() as u32;
        let session = Self {
            number: random.max(1),
            next_id: AtomicU64::new(1),
            pending: Mutex::default(),
            streams: Mutex::default(),
            control,
            bulk,
            budget: Arc::new(Semaphore::new(BULK_BYTES)),
            boot_id: OnceLock::new(),
        };
        let queues = Queues {
            control: control_rx,
            bulk: bulk_rx,
        };
        (Arc::new(session), queues)
    }

    /// The number that frames of this session carry.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Boot id of the guest at the other end, once it has greeted.
    pub fn boot_id(&self) -> Option<&str> {
        self.boot_id.get().map(String::as_str)
    }

    /// Notes the boot id of the greeting.
    pub fn set_boot_id(&self, boot_id: &str) {
        let _ = self.boot_id.set(boot_id.to_owned());
    }

    /// Makes a frame of this session.
    pub fn frame(&self, kind: Kind, payload: &[u8], domain: &str) -> Result<Vec<u8>, GuestError> {
        let mut out = Vec::new();
        frame::encode(kind, self.number, payload, &mut out).map_err(|source| {
            GuestError::TooLong {
                domain: domain.to_owned(),
                source,
            }
        })?;
        Ok(out)
    }

    /// Sends a call and waits for its answer, at most `limit`. An error that the helper answers
    /// with is an answer here.
    pub async fn ask(
        &self,
        domain: &str,
        call: Call,
        limit: Duration,
    ) -> Result<Reply, GuestError> {
        let name = call_name(&call);
        let (id, answer) = self.expect_answer(domain)?;
        let _forget = Forget { session: self, id };
        let payload =
            serde_json::to_vec(&Request { id, call }).map_err(|source| GuestError::Json {
                domain: domain.to_owned(),
                source,
            })?;
        let frame = self.frame(Kind::Control, &payload, domain)?;
        let lost = || GuestError::Lost {
            domain: domain.to_owned(),
            call: name,
        };
        tokio::time::timeout(limit, async {
            self.control.send(frame).await.map_err(|_| lost())?;
            answer.await.map_err(|_| lost())
        })
        .await
        .map_err(|_| GuestError::Timeout {
            domain: domain.to_owned(),
            call: name,
            ms: limit.as_millis(),
        })?
    }

    /// Takes a fresh id and waits for its answer.
    fn expect_answer(&self, domain: &str) -> Result<(u64, oneshot::Receiver<Reply>), GuestError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = oneshot::channel();
        let mut pending = lock(&self.pending);
        if pending.len() >= MAX_PENDING {
            return Err(GuestError::NotConnected {
                domain: domain.to_owned(),
                reason: format!("{MAX_PENDING} calls wait for its answer already"),
            });
        }
        pending.insert(id, tx);
        Ok((id, rx))
    }

    /// Hands an answer to the call it belongs to; false when there is none.
    pub fn answer(&self, id: u64, reply: Reply) -> bool {
        let waiting = lock(&self.pending).remove(&id);
        waiting.is_some_and(|tx| tx.send(reply).is_ok())
    }

    /// Whether a call is under way.
    pub fn busy(&self) -> bool {
        !lock(&self.pending).is_empty()
    }

    /// Sends the messages of `stream` to `to`.
    pub fn subscribe(&self, stream: u32, to: mpsc::Sender<bulk::Message>) {
        let mut streams = lock(&self.streams);
        streams.retain(|_, tx| !tx.is_closed());
        streams.insert(stream, to);
    }

    /// Where the messages of `stream` go, if anywhere.
    pub fn subscriber(&self, stream: u32) -> Option<mpsc::Sender<bulk::Message>> {
        lock(&self.streams).get(&stream).cloned()
    }

    /// Ends a subscription, or all of them.
    pub fn unsubscribe(&self, stream: Option<u32>) {
        let mut streams = lock(&self.streams);
        match stream {
            Some(s) => drop(streams.remove(&s)),
            None => streams.clear(),
        }
    }

    /// Queues a frame for the bulk port when the budget allows; an error when the session ended.
    pub async fn queue_bulk(&self, frame: Vec<u8>) -> Result<(), ()> {
        let share = frame.len().min(BULK_BYTES) as u32;
        let permit = self
            .budget
            .clone()
            .acquire_many_owned(share)
            .await
            .map_err(|_| ())?;
        self.bulk.send((frame, permit)).map_err(|_| ())
    }

    /// Ends the session: calls under way fail, subscriptions end, senders that wait give up.
    pub fn end(&self) {
        lock(&self.pending).clear();
        self.unsubscribe(None);
        self.budget.close();
    }
}

/// Forgets an expected answer when the caller has it or gives up.
struct Forget<'a> {
    session: &'a Session,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(&self.session.pending).remove(&self.id);
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}
