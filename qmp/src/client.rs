//! The client: a connection is first [`Client<Greeted>`], then, negotiated, [`Client<Ready>`].

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::codec::{self, Decoder};
use crate::command::{Command, QmpCapabilities, Query};
use crate::{Event, QmpError};

/// Commands that may wait for their answer at a time.
const MAX_PENDING: usize = 32;

/// State of a connection whose greeting was read; only [`Client::negotiate`] is possible.
#[derive(Debug)]
pub struct Greeted(());
/// State of a negotiated connection.
#[derive(Debug)]
pub struct Ready(());

/// QEMU's version, from its greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Version {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
    /// Micro.
    pub micro: u32,
}

/// A connection to QEMU's monitor. Dropping it closes the connection.
#[derive(Debug)]
pub struct Client<S> {
    shared: Arc<Shared>,
    version: Version,
    limit: Duration,
    reader: JoinHandle<()>,
    _state: S,
}

type Writer = Box<dyn AsyncWrite + Send + Unpin>;

struct Shared {
    writer: AsyncMutex<Writer>,
    pending: Mutex<Pending>,
    next_id: AtomicU64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Pending {
    waiting: HashMap<u64, oneshot::Sender<Value>>,
    /// The connection is over.
    ended: bool,
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets a command when its caller gives up.
struct Forget<'a>(&'a Shared, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.pending().waiting.remove(&self.1);
    }
}

impl Client<Greeted> {
    /// Connects to QEMU's socket at `path` and reads the greeting. `limit` is the longest time of
    /// every step and command. Events go into `events`; those for which there is no room are
    /// dropped.
    pub async fn connect(
        path: &Path,
        limit: Duration,
        events: mpsc::Sender<Event>,
    ) -> Result<Self, QmpError> {
        let stream = timeout(limit, tokio::net::UnixStream::connect(path))
            .await
            .map_err(|_| timed_out("connect", limit))??;
        let (reader, writer) = stream.into_split();
        Self::over(reader, writer, limit, events).await
    }

    /// The same over any pair of streams. Must be called within a tokio runtime.
    pub async fn over(
        mut reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
        limit: Duration,
        events: mpsc::Sender<Event>,
    ) -> Result<Self, QmpError> {
        #[derive(Deserialize)]
        struct Greeting {
            version: Versions,
        }
        #[derive(Deserialize)]
        struct Versions {
            qemu: Version,
        }
        let mut decoder = Decoder::new();
        let greeting = timeout(limit, read_message(&mut reader, &mut decoder))
            .await
            .map_err(|_| timed_out("greeting", limit))??;
        let greeting = greeting
            .get("QMP")
            .ok_or_else(|| QmpError::Unexpected("no greeting".into()))?;
        let greeting = Greeting::deserialize(greeting).map_err(|source| QmpError::Answer {
            command: "greeting",
            source,
        })?;
        let shared = Arc::new(Shared {
            writer: AsyncMutex::new(Box::new(writer)),
            pending: Mutex::default(),
            next_id: AtomicU64::new(1),
        });
        let reader = tokio::spawn(read_all(reader, decoder, shared.clone(), events));
        Ok(Self {
            shared,
            version: greeting.version.qemu,
            limit,
            reader,
            _state: Greeted(()),
        })
    }

    /// Ends the negotiation, without any capability; commands are possible then.
    pub async fn negotiate(mut self) -> Result<Client<Ready>, QmpError> {
        self.send(&QmpCapabilities).await?;
        // The reader lives on; `self` must not end it.
        let reader = std::mem::replace(&mut self.reader, tokio::spawn(async {}));
        Ok(Client {
            shared: self.shared.clone(),
            version: self.version,
            limit: self.limit,
            reader,
            _state: Ready(()),
        })
    }
}

impl Client<Ready> {
    /// Asks and waits for the answer. May be called several times at once.
    pub async fn query<Q: Query>(&self, command: &Q) -> Result<Q::Answer, QmpError> {
        self.send(command).await
    }
}

impl<S> Client<S> {
    /// QEMU's version.
    pub fn version(&self) -> Version {
        self.version
    }

    async fn send<C: Command>(&self, command: &C) -> Result<C::Answer, QmpError> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = oneshot::channel();
        {
            let mut pending = self.shared.pending();
            if pending.ended {
                return Err(QmpError::Closed);
            }
            if pending.waiting.len() >= MAX_PENDING {
                return Err(QmpError::Unexpected(format!(
                    "{MAX_PENDING} commands wait for their answer already"
                )));
            }
            pending.waiting.insert(id, tx);
        }
        let _forget = Forget(&self.shared, id);
        let line = codec::encode(C::NAME, id, command.arguments().as_ref());
        let answer = timeout(self.limit, async {
            let mut writer = self.shared.writer.lock().await;
            writer.write_all(&line).await?;
            writer.flush().await?;
            drop(writer);
            rx.await.map_err(|_| QmpError::Closed)
        })
        .await
        .map_err(|_| timed_out(C::NAME, self.limit))??;
        if let Some(error) = answer.get("error") {
            let text = |key| {
                let text = error.get(key).and_then(Value::as_str).unwrap_or_default();
                text.chars().take(500).collect()
            };
            return Err(QmpError::Refused {
                command: C::NAME,
                class: text("class"),
                description: text("desc"),
            });
        }
        let value = answer.get("return").cloned().unwrap_or(Value::Null);
        C::Answer::deserialize(value).map_err(|source| QmpError::Answer {
            command: C::NAME,
            source,
        })
    }
}

impl<S> Drop for Client<S> {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

fn timed_out(command: &'static str, limit: Duration) -> QmpError {
    QmpError::Timeout {
        command,
        ms: limit.as_millis(),
    }
}

async fn read_message(
    reader: &mut (impl AsyncRead + Unpin),
    decoder: &mut Decoder,
) -> Result<Value, QmpError> {
    let mut buf = vec![0; 16 << 10];
    loop {
        if let Some(message) = decoder.next_message()? {
            return Ok(message);
        }
        match reader.read(&mut buf).await? {
            0 => return Err(QmpError::Closed),
            n => decoder.push(&buf[..n]),
        }
    }
}

async fn read_all(
    mut reader: impl AsyncRead + Unpin,
    mut decoder: Decoder,
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
) {
    // Whatever ends it, callers that wait must learn of it, also when the task is aborted.
    struct End(Arc<Shared>);
    impl Drop for End {
        fn drop(&mut self) {
            let mut pending = self.0.pending();
            pending.ended = true;
            pending.waiting.clear();
        }
    }
    let end = End(shared);
    while let Ok(message) = read_message(&mut reader, &mut decoder).await {
        if let Some(event) = Event::parse(&message) {
            // Nobody may hold up answers by not taking events.
            let _ = events.try_send(event);
        } else if let Some(id) = message.get("id").and_then(Value::as_u64) {
            let waiting = end.0.pending().waiting.remove(&id);
            if let Some(tx) = waiting {
                // The caller may have given up.
                let _ = tx.send(message);
            }
        }
    }
}
