//! The two virtio-serial ports as the guest sees them.
//!
//! A port can be opened once. While the host's side is closed a read gives end-of-file at once
//! and a write would block; bytes that were queued when a side closed are lost. So the port stays
//! open for reading and writing without blocking, end-of-file means "wait", the decoder drops a
//! frame that was cut short, and a write under way ends when another session begins.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::wire::bulk;
use crate::wire::frame::{self, Decoder, Frame, Kind};
use crate::wire::guest::{Event, Message};

/// How often a port whose host side is closed, or that is absent, is looked at again: often at
/// first, as a host that restarts is back soon.
const PAUSE: Duration = Duration::from_millis(50);
const LONG_PAUSE: Duration = Duration::from_millis(200);
/// Wait for an event that needs nothing done when it does not come.
const QUIET: Duration = Duration::from_secs(1);
/// A frame that does not go on for this long was cut short.
const STALL: Duration = Duration::from_secs(1);
/// Longest wait for the host to take bulk bytes.
const BULK_LIMIT: Duration = Duration::from_secs(30);
/// Responses and events waiting for the host.
const QUEUE: usize = 256;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The session in force, shared by both ports. There is none before the first `Hello`.
#[derive(Debug, Clone, Default)]
pub struct Session(Arc<AtomicU64>);

impl Session {
    /// Begins a session; everything of another one is void from now on.
    pub fn begin(&self, session: u32) {
        self.0.store(u64::from(session) + 1, Ordering::SeqCst);
    }
    /// The session in force.
    pub fn current(&self) -> Option<u32> {
        let raw = self.0.load(Ordering::SeqCst);
        raw.checked_sub(1).map(|s| s as u32)
    }
    /// Whether this is the session in force.
    pub fn is(&self, session: u32) -> bool {
        self.current() == Some(session)
    }
}

/// A port's device, opened when it is there and again after an error.
#[derive(Debug)]
pub struct Device {
    path: PathBuf,
    open: Mutex<Option<Arc<File>>>,
}

impl Device {
    /// The port of that name; not opened yet.
    pub fn port(name: &str) -> Arc<Self> {
        Arc::new(Self {
            path: PathBuf::from("/dev/virtio-ports").join(name),
            open: Mutex::new(None),
        })
    }

    #[cfg(test)]
    pub(crate) fn opened(socket: std::os::unix::net::UnixStream) -> Arc<Self> {
        socket.set_nonblocking(true).unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(socket));
        Arc::new(Self {
            path: PathBuf::from("/nonexistent"),
            open: Mutex::new(Some(Arc::new(file))),
        })
    }

    fn file(&self) -> io::Result<Arc<File>> {
        let mut open = lock(&self.open);
        if let Some(file) = &*open {
            return Ok(Arc::clone(file));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(&self.path)?;
        tracing::info!("opened {}", self.path.display());
        Ok(Arc::clone(open.insert(Arc::new(file))))
    }

    /// Gives up a file that failed, so that the next use opens the port anew.
    fn lost(&self, failed: &Arc<File>, error: &io::Error) {
        let mut open = lock(&self.open);
        if open.as_ref().is_some_and(|f| Arc::ptr_eq(f, failed)) {
            tracing::warn!("{} failed: {error}; opening it anew", self.path.display());
            *open = None;
        }
    }

    /// Tells the host that the helper was just started. Nothing happens when nobody listens.
    pub fn say_started(&self) {
        let message = Message::Event {
            event: Event::Started,
        };
        let mut bytes = Vec::new();
        let told = serde_json::to_vec(&message)
            .map_err(io::Error::other)
            .and_then(|payload| {
                frame::encode(Kind::Control, 0, &payload, &mut bytes).map_err(io::Error::other)
            })
            .and_then(|()| {
                self.write_all(&bytes, |idle| {
                    if idle < STALL {
                        Ok(())
                    } else {
                        Err(io::ErrorKind::TimedOut.into())
                    }
                })
            });
        if let Err(e) = told {
            tracing::debug!("the host does not listen yet: {e}");
        }
    }

    /// Writes all of `bytes`, waiting for the host as long as `go_on` allows; `go_on` gets the
    /// time without progress and returns the error to end with.
    fn write_all(
        &self,
        mut bytes: &[u8],
        go_on: impl Fn(Duration) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut progress = Instant::now();
        while !bytes.is_empty() {
            go_on(progress.elapsed())?;
            let Ok(file) = self.file() else {
                std::thread::sleep(PAUSE);
                continue;
            };
            match (&*file).write(bytes) {
                Ok(0) => std::thread::sleep(PAUSE),
                Ok(n) => {
                    bytes = &bytes[n..];
                    progress = Instant::now();
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    wait(&file, PollFlags::POLLOUT, LONG_PAUSE);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.lost(&file, &e);
                    return Err(e);
                }
            }
        }
        Ok(())
    }
}

/// Waits for an event, at most `limit`; ready for another reason (the host's side is closed), it
/// sleeps a little instead.
fn wait(file: &File, event: PollFlags, limit: Duration) {
    let mut fds = [PollFd::new(file.as_fd(), event)];
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
    let ready = poll(&mut fds, limit).unwrap_or(0);
    let wanted = fds[0].revents().is_some_and(|r| r.contains(event));
    if ready > 0 && !wanted {
        std::thread::sleep(PAUSE);
    }
}

/// Reads frames from a port.
#[derive(Debug)]
pub struct FrameReader {
    device: Arc<Device>,
    decoder: Decoder,
    /// Bytes given to the decoder that no frame or skipping has used up yet.
    unused: Vec<u8>,
    skipped: u64,
    last: Instant,
}

impl FrameReader {
    /// A reader of that port; there must be no other.
    pub fn new(device: Arc<Device>) -> Self {
        Self {
            device,
            decoder: Decoder::new(),
            unused: Vec::new(),
            skipped: 0,
            last: Instant::now(),
        }
    }

    /// The next frame; waits for it, through closed sides and absent ports.
    pub fn next_frame(&mut self) -> Frame {
        let mut buffer = vec![0; 64 << 10];
        loop {
            if let Some(frame) = self.decode() {
                return frame;
            }
            let Ok(file) = self.device.file() else {
                std::thread::sleep(LONG_PAUSE);
                continue;
            };
            match (&*file).read(&mut buffer) {
                Ok(0) => {
                    // The host's side is closed: what was cut short will not go on.
                    self.forget();
                    let soon = self.last.elapsed() < QUIET;
                    std::thread::sleep(if soon { PAUSE } else { LONG_PAUSE });
                }
                Ok(n) => {
                    self.push(&buffer[..n]);
                    self.last = Instant::now();
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let limit = if self.unused.is_empty() {
                        QUIET
                    } else {
                        LONG_PAUSE
                    };
                    wait(&file, PollFlags::POLLIN, limit);
                    if !self.unused.is_empty() && self.last.elapsed() > STALL {
                        self.resynchronise();
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.device.lost(&file, &e);
                    drop(file);
                    self.forget();
                    std::thread::sleep(LONG_PAUSE);
                }
            }
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
        self.unused.extend_from_slice(bytes);
    }

    fn decode(&mut self) -> Option<Frame> {
        let frame = self.decoder.next();
        let skipped = (self.decoder.skipped() - self.skipped) as usize;
        self.skipped = self.decoder.skipped();
        let used = skipped
            + frame
                .as_ref()
                .map_or(0, |f| frame::HEADER + f.payload.len());
        self.unused.drain(..used.min(self.unused.len()));
        frame
    }

    fn forget(&mut self) {
        self.decoder.reset();
        self.unused.clear();
    }

    /// The host closed and opened its side unnoticed: the frame that was under way will never be
    /// complete, and the ones behind it must not wait for it.
    fn resynchronise(&mut self) {
        let rest = self
            .unused
            .split_off(frame::MAGIC.len().min(self.unused.len()));
        self.forget();
        self.push(&rest);
        self.last = Instant::now();
    }
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<(u32, Vec<u8>)>,
    meter: Option<(u32, Vec<u8>)>,
}

/// Messages on their way to the host on the control port. Responses and events wait in a bounded
/// queue; of meter frames only the newest waits.
#[derive(Debug, Clone)]
pub struct Outbox {
    session: Session,
    shared: Arc<(Mutex<Queue>, Condvar)>,
}

impl Outbox {
    /// An empty outbox for that session.
    pub fn new(session: Session) -> Self {
        Self {
            session,
            shared: Arc::default(),
        }
    }

    /// Queues a message in `session`. It is dropped when that is not the session in force.
    pub fn send(&self, session: u32, message: &Message) {
        if !self.session.is(session) {
            return;
        }
        let mut bytes = Vec::new();
        let encoded = serde_json::to_vec(message)
            .map_err(|e| e.to_string())
            .and_then(|payload| {
                frame::encode(Kind::Control, session, &payload, &mut bytes)
                    .map_err(|e| e.to_string())
            });
        if let Err(e) = encoded {
            tracing::error!("a message to the host cannot be sent: {e}");
            return;
        }
        let mut queue = lock(&self.shared.0);
        let droppable = match message {
            Message::Event {
                event: Event::Meter(_),
            } => {
                queue.meter = Some((session, bytes));
                self.shared.1.notify_one();
                return;
            }
            Message::Event {
                event: Event::Progress { .. },
            } => true,
            _ => false,
        };
        if droppable && queue.frames.len() >= QUEUE / 4 {
            return;
        }
        if queue.frames.len() >= QUEUE {
            tracing::warn!("the host does not read; dropping the oldest message to it");
            queue.frames.pop_front();
        }
        queue.frames.push_back((session, bytes));
        self.shared.1.notify_one();
    }

    /// Queues an event in the session in force.
    pub fn event(&self, event: Event) {
        if let Some(session) = self.session.current() {
            self.send(session, &Message::Event { event });
        }
    }

    fn take(&self) -> (u32, Vec<u8>) {
        let mut queue = lock(&self.shared.0);
        loop {
            if let Some(next) = queue.frames.pop_front().or_else(|| queue.meter.take()) {
                return next;
            }
            queue = self
                .shared
                .1
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes what is queued, for ever. A frame of an ended session is given up half-way.
    pub fn write_to(&self, device: &Device) -> ! {
        loop {
            let (session, bytes) = self.take();
            let go_on = |_| {
                if self.session.is(session) {
                    Ok(())
                } else {
                    Err(io::ErrorKind::ConnectionAborted.into())
                }
            };
            if let Err(e) = device.write_all(&bytes, go_on) {
                tracing::debug!("a message to the host was lost: {e}");
            }
        }
    }
}

/// Bytes gathered before they are written: each write is an exit to the hypervisor.
const GATHER: usize = 256 << 10;

/// Frames that wait for company, and the session that they belong to.
#[derive(Debug, Default)]
struct Gathered {
    session: u32,
    bytes: Vec<u8>,
}

/// Sends bulk messages to the host. Cheap to clone; senders take turns message by message.
#[derive(Debug, Clone)]
pub struct BulkPort {
    device: Arc<Device>,
    session: Session,
    gathered: Arc<Mutex<Gathered>>,
}

impl BulkPort {
    /// A sender on that device, in the session in force at each message.
    pub fn new(device: Arc<Device>, session: Session) -> Self {
        Self {
            device,
            session,
            gathered: Arc::default(),
        }
    }

    /// Puts a message on the port. Small ones are gathered; the end of a round goes out with all
    /// before it, and is there on return.
    ///
    /// `NotConnected` without a session; `ConnectionAborted` when the session ended meanwhile;
    /// `TimedOut` when the host took nothing for 30 s.
    pub fn send(&self, message: &bulk::Message) -> io::Result<()> {
        let session = self
            .session
            .current()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "no session yet"))?;
        let ended = || {
            let why = "the host began another session";
            io::Error::new(io::ErrorKind::ConnectionAborted, why)
        };
        let mut gathered = lock(&self.gathered);
        if gathered.session != session {
            let lost = !gathered.bytes.is_empty();
            *gathered = Gathered {
                session,
                bytes: Vec::with_capacity(GATHER + frame::MAX_PAYLOAD),
            };
            if lost {
                return Err(ended());
            }
        }
        frame::encode_with(Kind::Bulk, session, &mut gathered.bytes, |out| {
            message.encode(out);
        })
        .map_err(io::Error::other)?;
        let end = matches!(message.body, bulk::Body::RoundEnd { .. });
        if !end && gathered.bytes.len() < GATHER {
            return Ok(());
        }
        let bytes = std::mem::take(&mut gathered.bytes);
        let written = self.device.write_all(&bytes, |idle| {
            if !self.session.is(session) {
                Err(ended())
            } else if idle > BULK_LIMIT {
                let why = "the host took no bulk data for 30 s";
                Err(io::Error::new(io::ErrorKind::TimedOut, why))
            } else {
                Ok(())
            }
        });
        gathered.bytes = bytes;
        gathered.bytes.clear();
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn pair() -> (UnixStream, Arc<Device>) {
        let (host, guest) = UnixStream::pair().unwrap();
        (host, Device::opened(guest))
    }

    fn encoded(session: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame::encode(Kind::Control, session, payload, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_frame_cut_short_does_not_hold_up_the_next_session() {
        let (mut host, device) = pair();
        let long = encoded(1, &vec![7; 200_000]);
        host.write_all(&long[..500]).unwrap();
        host.write_all(&encoded(2, b"hello")).unwrap();
        let mut reader = FrameReader::new(device);
        let begin = Instant::now();
        let frame = reader.next_frame();
        assert_eq!(
            (frame.session, frame.payload.as_slice()),
            (2, &b"hello"[..])
        );
        assert!(begin.elapsed() < Duration::from_secs(10));
        assert!(reader.unused.is_empty());
    }

    #[test]
    fn the_newest_meter_frame_waits_and_responses_come_first() {
        let session = Session::default();
        let outbox = Outbox::new(session.clone());
        session.begin(5);
        for at_ns in 0..1000 {
            let frame = crate::sample::MeterFrame {
                at_ns,
                ..Default::default()
            };
            outbox.event(Event::Meter(frame));
        }
        let reply = crate::wire::guest::Reply::Done;
        outbox.send(5, &Message::Response { id: 1, reply });
        let first = String::from_utf8_lossy(&outbox.take().1).into_owned();
        assert!(first.contains("response"), "{first}");
        let second = String::from_utf8_lossy(&outbox.take().1).into_owned();
        assert!(second.contains("\"at_ns\":999"), "{second}");
        assert!(lock(&outbox.shared.0).meter.is_none());
    }

    #[test]
    fn bulk_stops_when_another_session_begins() {
        let (_host, device) = pair();
        let session = Session::default();
        let port = BulkPort::new(device, session.clone());
        let message = bulk::Message {
            stream: 1,
            body: bulk::Body::Data {
                file: 1,
                offset: 0,
                bytes: vec![1; bulk::MAX_DATA],
            },
        };
        assert_eq!(
            port.send(&message).unwrap_err().kind(),
            io::ErrorKind::NotConnected
        );
        session.begin(1);
        let other = session.clone();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            other.begin(2);
        });
        // Nobody reads: the socket's buffer fills, then the new session ends the wait.
        let error = (0..10).find_map(|_| port.send(&message).err()).unwrap();
        thread.join().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }
}
