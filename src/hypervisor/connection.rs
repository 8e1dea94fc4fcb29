//! Keeps one connection to libvirt: opens it, notices its loss, opens it again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use virt::connect::Connect;

use super::error::one_line;
use super::events::{Registration, Sink};
use super::monitor_events::MonitorRegistration;
use super::{HypervisorError, HypervisorEvent};

/// Seconds without an answer to libvirt's own keep-alive messages, times 3, until a connection
/// counts as lost.
const KEEPALIVE_S: i32 = 5;
/// Longest pause between attempts to connect.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// An open connection with its callbacks.
pub(super) struct Live {
    // Dropped before the connection.
    _registration: Registration,
    _monitors: Option<MonitorRegistration>,
    conn: Connect,
    number: u64,
}

impl Live {
    /// The connection.
    pub fn conn(&self) -> &Connect {
        &self.conn
    }
}

enum Signal {
    Lost(u64),
    Stop,
}

struct State {
    live: Option<Arc<Live>>,
    reason: String,
}

/// Handle on the connection; dropping it ends the thread behind it.
pub(super) struct Connection {
    uri: String,
    state: Arc<Mutex<State>>,
    signals: std_mpsc::Sender<Signal>,
    up: watch::Receiver<bool>,
}

impl Connection {
    /// Starts the thread that keeps the connection.
    pub fn start(uri: &str, sink: Sink) -> Result<Self, HypervisorError> {
        super::event_loop::start()?;
        let state = Arc::new(Mutex::new(State {
            live: None,
            reason: "not connected yet".into(),
        }));
        let (signals, inbox) = std_mpsc::channel();
        let (up_tx, up) = watch::channel(false);
        let keeper = Keeper {
            uri: uri.to_owned(),
            state: state.clone(),
            signals: signals.clone(),
            sink: Arc::new(sink),
            up: up_tx,
            numbers: AtomicU64::new(1),
        };
        std::thread::Builder::new()
            .name("libvirt-keeper".into())
            .spawn(move || keeper.run(&inbox))
            .map_err(HypervisorError::Thread)?;
        Ok(Self {
            uri: uri.to_owned(),
            state,
            signals,
            up,
        })
    }

    /// Waits until the connection is up for the first time, at most `timeout`.
    pub async fn wait(&self, timeout: Duration) -> Result<(), HypervisorError> {
        let mut up = self.up.clone();
        let _ = tokio::time::timeout(timeout, up.wait_for(|up| *up)).await;
        self.live().map(drop)
    }

    /// The connection's URI.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The open connection, or why there is none.
    pub fn live(&self) -> Result<Arc<Live>, HypervisorError> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state
            .live
            .clone()
            .ok_or_else(|| HypervisorError::NotConnected {
                uri: self.uri.clone(),
                reason: state.reason.clone(),
            })
    }

    /// A function that checks a connection after a failed call and reports its loss.
    pub fn checker(&self) -> impl Fn(&Live) + Send + 'static {
        let signals = self.signals.clone();
        move |live| {
            if !matches!(live.conn.is_alive(), Ok(true)) {
                let _ = signals.send(Signal::Lost(live.number));
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let _ = self.signals.send(Signal::Stop);
    }
}

struct Keeper {
    uri: String,
    state: Arc<Mutex<State>>,
    signals: std_mpsc::Sender<Signal>,
    sink: Arc<Sink>,
    up: watch::Sender<bool>,
    numbers: AtomicU64,
}

impl Keeper {
    fn set(&self, live: Option<Arc<Live>>, reason: &str) {
        let old = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            reason.clone_into(&mut state.reason);
            std::mem::replace(&mut state.live, live)
        };
        // Outside of the lock: closing may talk to libvirtd.
        drop(old);
    }

    fn run(&self, inbox: &std_mpsc::Receiver<Signal>) {
        let mut first = true;
        let mut pause = Duration::from_millis(100);
        loop {
            match self.open() {
                Ok(live) => {
                    let number = live.number;
                    self.set(Some(Arc::new(live)), "");
                    if first {
                        tracing::info!(uri = self.uri, "connected to libvirt");
                    } else {
                        tracing::info!(uri = self.uri, "connected to libvirt again");
                        self.sink.send(HypervisorEvent::Reconnected);
                    }
                    first = false;
                    pause = Duration::from_millis(100);
                    self.up.send_replace(true);
                    let stop = self.watch(inbox, number);
                    self.set(None, "the connection was lost");
                    if stop {
                        return;
                    }
                    tracing::warn!(uri = self.uri, "connection to libvirt lost");
                    self.sink.send(HypervisorEvent::Lost);
                }
                Err(reason) => {
                    tracing::debug!(uri = self.uri, reason, "cannot connect to libvirt");
                    self.set(None, &reason);
                }
            }
            match inbox.recv_timeout(pause) {
                Ok(Signal::Stop) | Err(std_mpsc::RecvTimeoutError::Disconnected) => return,
                Ok(Signal::Lost(_)) | Err(std_mpsc::RecvTimeoutError::Timeout) => {}
            }
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Waits for the end of connection `number`; true to stop altogether.
    fn watch(&self, inbox: &std_mpsc::Receiver<Signal>, number: u64) -> bool {
        loop {
            match inbox.recv_timeout(Duration::from_secs(1)) {
                Ok(Signal::Lost(n)) if n == number => return false,
                Ok(Signal::Stop) | Err(std_mpsc::RecvTimeoutError::Disconnected) => return true,
                Ok(Signal::Lost(_)) => {}
                Err(std_mpsc::RecvTimeoutError::Timeout) => self.sink.catch_up(),
            }
        }
    }

    fn open(&self) -> Result<Live, String> {
        let conn = open(&self.uri)?;
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let signals = self.signals.clone();
        let registration = Registration::new(&conn, &self.sink, move || {
            let _ = signals.send(Signal::Lost(number));
        })
        .map_err(|e| format!("events cannot be registered: {}", one_line(e.message())))?;
        let monitors = self.sink.monitors();
        Ok(Live {
            _registration: registration,
            _monitors: monitors.map(|m| MonitorRegistration::new(&conn, m)),
            conn,
            number,
        })
    }
}

/// Opens a connection with keep-alive messages where the driver has them.
pub(super) fn open(uri: &str) -> Result<Connect, String> {
    let conn = Connect::open(Some(uri)).map_err(|e| one_line(e.message()))?;
    if let Err(e) = conn.set_keep_alive(KEEPALIVE_S, 3) {
        tracing::debug!(uri, error = %e.message(), "no keep-alive with this driver");
    }
    Ok(conn)
}
