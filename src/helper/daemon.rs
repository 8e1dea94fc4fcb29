//! `drover-guest daemon`: answers the host's requests on the control port.
//!
//! ```text
//! control port -> FrameReader -> Server::take -> Hello, Meter, Define: at once
//!                                             -> the others: a thread per request -> Outbox
//! bulk port    -> FrameReader -> MoveSide::bulk
//! Ticker -> Meter -> Outbox        files that supervisors leave -> watch_exits -> Outbox
//! ```
//!
//! Features are units of their own and outlive the helper; a restarted helper finds their
//! definitions on tmpfs.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::feature::FeatureName;
use crate::helper::lifecycle::{self, Failure};
use crate::helper::meter::{self, LONGEST_MS, Meter, SHORTEST_MS, Ticker};
use crate::helper::port::{BulkPort, Device, FrameReader, Outbox, Session, lock};
use crate::helper::{capabilities, features};
use crate::wire::bulk;
use crate::wire::frame::{Frame, Kind};
use crate::wire::guest::{
    BULK_PORT, CONTROL_PORT, Call, ErrorKind, Event, GuestMove, Message, PROTOCOL, Reply, Request,
};

/// Requests in work at once; a host that has more outstanding is told so.
const MOST_REQUESTS: usize = 64;

/// The helper's part in moves, as source and as target.
pub trait MoveSide: Send + Sync + 'static {
    /// Answers `Preflight`, `PreDump`, `Freeze`, `Release`, `Receive`, `AwaitRound`, `Restore`,
    /// `Resume` and `Discard`. Called in a thread of the request's own; may take minutes.
    fn handle(&self, call: Call, events: &(dyn Fn(Event) + Sync)) -> Reply;
    /// Takes a bulk message of the session in force, in order.
    fn bulk(&self, message: bulk::Message);
    /// Moves of which something is here.
    fn status(&self) -> Vec<GuestMove>;
}

/// Serves both ports for ever. `moves` makes the helper's part in moves from its way to send.
pub fn run(moves: impl FnOnce(BulkPort) -> Arc<dyn MoveSide>) -> std::io::Result<()> {
    features::prepare()?;
    let session = Session::default();
    let control = Device::port(CONTROL_PORT);
    let bulk = Device::port(BULK_PORT);
    let moves = moves(BulkPort::new(Arc::clone(&bulk), session.clone()));
    let server = Server::new(session, moves);
    tracing::info!(
        "drover-guest {} with {} features",
        env!("CARGO_PKG_VERSION"),
        features::all().len()
    );
    let writer = (server.outbox.clone(), Arc::clone(&control));
    thread("control-out", move || {
        // A host that talked to the helper before this one would only see it fall silent.
        writer.1.say_started();
        writer.0.write_to(&writer.1)
    })?;
    let taker = Arc::clone(&server);
    thread("bulk-in", move || taker.take_bulk(FrameReader::new(bulk)))?;
    let metering = Arc::clone(&server);
    thread("meter", move || metering.meter())?;
    let watcher = Arc::clone(&server);
    thread("exits", move || watcher.watch_exits())?;
    let mut reader = FrameReader::new(control);
    loop {
        let frame = reader.next_frame();
        server.take(&frame);
    }
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map(|_| ())
}

/// What the requests share.
struct Server {
    session: Session,
    outbox: Outbox,
    moves: Arc<dyn MoveSide>,
    ticker: Ticker,
    in_work: AtomicUsize,
    /// One start or stop at a time per feature.
    features: Mutex<HashMap<FeatureName, Arc<Mutex<()>>>>,
}

impl Server {
    fn new(session: Session, moves: Arc<dyn MoveSide>) -> Arc<Self> {
        Arc::new(Self {
            outbox: Outbox::new(session.clone()),
            session,
            moves,
            ticker: Ticker::default(),
            in_work: AtomicUsize::new(0),
            features: Mutex::default(),
        })
    }

    /// Takes a frame of the control port.
    fn take(self: &Arc<Self>, frame: &Frame) {
        let session = frame.session;
        if frame.kind != Kind::Control {
            tracing::debug!("a bulk frame on the control port; dropped");
            return;
        }
        let request: Request = match serde_json::from_slice(&frame.payload) {
            Ok(request) => request,
            Err(e) => {
                tracing::warn!("a request that is not understood: {e}");
                if let Some(id) = request_id(&frame.payload) {
                    let why = format!("request not understood: {e}");
                    self.answer(session, id, error(ErrorKind::Invalid, why));
                }
                return;
            }
        };
        let id = request.id;
        if let Call::Hello { protocol } = request.call {
            self.ticker.set(0);
            self.session.begin(session);
            tracing::info!("session {session:08x} with the host");
            return self.answer(session, id, hello(protocol));
        }
        if !self.session.is(session) {
            tracing::debug!("a request of session {session:08x}, which is not in force; dropped");
            return;
        }
        tracing::debug!("request {id}: {:?}", request.call);
        match request.call {
            Call::Meter { interval_ms } => self.answer(session, id, self.set_interval(interval_ms)),
            Call::Define { features } => {
                let reply = match lifecycle::define(&features) {
                    Ok(()) => Reply::Done,
                    Err(e) => e.into(),
                };
                self.answer(session, id, reply);
            }
            call => self.answer_later(session, id, call),
        }
    }

    fn answer(&self, session: u32, id: u64, reply: Reply) {
        if let Reply::Error { kind, message } = &reply {
            tracing::warn!("request {id} failed ({kind:?}): {message}");
        }
        self.outbox.send(session, &Message::Response { id, reply });
    }

    fn answer_later(self: &Arc<Self>, session: u32, id: u64, call: Call) {
        if self.in_work.fetch_add(1, Ordering::SeqCst) >= MOST_REQUESTS {
            self.in_work.fetch_sub(1, Ordering::SeqCst);
            let why = format!("{MOST_REQUESTS} requests are in work; wait for an answer first");
            return self.answer(session, id, error(ErrorKind::Failed, why));
        }
        let server = Arc::clone(self);
        let work = move || {
            let reply = catch_unwind(AssertUnwindSafe(|| server.perform(session, call)));
            server.in_work.fetch_sub(1, Ordering::SeqCst);
            let reply = reply.unwrap_or_else(|_| {
                let why = "the helper failed in this request; its journal has the place";
                error(ErrorKind::Failed, why.to_owned())
            });
            server.answer(session, id, reply);
        };
        if let Err(e) = thread("request", work) {
            self.in_work.fetch_sub(1, Ordering::SeqCst);
            let why = format!("cannot start a thread: {e}");
            self.answer(session, id, error(ErrorKind::Failed, why));
        }
    }

    fn perform(&self, session: u32, call: Call) -> Reply {
        match call {
            Call::Start { feature } => self.exclusively(&feature, || {
                lifecycle::start(&feature, &self.moves.status())
            }),
            Call::Stop { feature } => {
                self.exclusively(&feature, || lifecycle::stop(&feature, &self.moves.status()))
            }
            Call::Status => Reply::Status(lifecycle::status(self.moves.status())),
            Call::Capabilities => capabilities::reply(),
            Call::Announce => {
                lifecycle::announce(&self.moves.status());
                Reply::Done
            }
            call => self.moves.handle(call, &|event| {
                self.outbox.send(session, &Message::Event { event });
            }),
        }
    }

    fn exclusively(
        &self,
        feature: &FeatureName,
        work: impl FnOnce() -> Result<(), Failure>,
    ) -> Reply {
        let one = Arc::clone(lock(&self.features).entry(feature.clone()).or_default());
        let _held = lock(&one);
        match work() {
            Ok(()) => Reply::Done,
            Err(e) => e.into(),
        }
    }

    fn set_interval(&self, interval_ms: u64) -> Reply {
        if interval_ms != 0 && !(SHORTEST_MS..=LONGEST_MS).contains(&interval_ms) {
            let why = format!(
                "meter interval of {interval_ms} ms: use {SHORTEST_MS} to {LONGEST_MS} ms, or 0"
            );
            return error(ErrorKind::Invalid, why);
        }
        self.ticker.set(interval_ms);
        Reply::Done
    }

    fn meter(&self) {
        let mut meter = Meter::default();
        loop {
            self.ticker.wait();
            self.outbox.event(Event::Meter(meter.read()));
        }
    }

    fn take_bulk(&self, mut reader: FrameReader) {
        loop {
            let frame = reader.next_frame();
            if frame.kind != Kind::Bulk || !self.session.is(frame.session) {
                tracing::debug!("a frame on the bulk port that belongs to no session; dropped");
                continue;
            }
            match bulk::Message::decode(&frame.payload) {
                Ok(message) => {
                    let taken = catch_unwind(AssertUnwindSafe(|| self.moves.bulk(message)));
                    if taken.is_err() {
                        tracing::error!("the helper failed on a bulk message");
                    }
                }
                Err(e) => tracing::warn!("a bulk message that is not understood: {e}"),
            }
        }
    }

    /// Makes events of the words that supervisors leave when a workload ended by itself. They
    /// wait in their files until there is a session to tell them in.
    fn watch_exits(&self) {
        loop {
            std::thread::sleep(Duration::from_millis(500));
            if self.session.current().is_none() {
                continue;
            }
            for feature in lifecycle::exits() {
                let one = Arc::clone(lock(&self.features).entry(feature.clone()).or_default());
                // A start or stop under way reads or removes the file itself.
                let Ok(_held) = one.try_lock() else { continue };
                if let Some(status) = lifecycle::take_exit(&feature, &self.moves.status()) {
                    tracing::info!("feature '{feature}' {status}");
                    self.outbox.event(Event::Exited { feature, status });
                }
            }
        }
    }
}

fn error(kind: ErrorKind, message: String) -> Reply {
    Reply::Error { kind, message }
}

fn hello(protocol: u32) -> Reply {
    if protocol == PROTOCOL {
        return Reply::Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: meter::boot_id(),
        };
    }
    let why = format!(
        "the host speaks protocol {protocol} and this helper {PROTOCOL}; \
         install the host's helper with 'drover guest install'"
    );
    error(ErrorKind::Invalid, why)
}

pub(super) fn request_id(payload: &[u8]) -> Option<u64> {
    let value: serde_json::Value = serde_json::from_slice(payload).ok()?;
    value.get("id")?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::{self, Decoder};
    use proptest::prelude::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    /// Answers a preflight slowly, panics on a discard, and counts bulk messages.
    #[derive(Default)]
    struct Moves(AtomicUsize);

    impl MoveSide for Moves {
        fn handle(&self, call: Call, events: &(dyn Fn(Event) + Sync)) -> Reply {
            match call {
                Call::Preflight { feature, .. } => {
                    let status = "seen".to_owned();
                    events(Event::Exited { feature, status });
                    std::thread::sleep(Duration::from_secs(1));
                    Reply::Done
                }
                Call::Discard { .. } => panic!("as the test wants"),
                _ => error(ErrorKind::Refused, "not here".into()),
            }
        }
        fn bulk(&self, _: bulk::Message) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        fn status(&self) -> Vec<GuestMove> {
            Vec::new()
        }
    }

    struct Host {
        port: UnixStream,
        decoder: Decoder,
        bulk: UnixStream,
        moves: Arc<Moves>,
    }

    impl Host {
        fn new() -> Self {
            let (port, guest) = UnixStream::pair().unwrap();
            let (bulk, guest_bulk) = UnixStream::pair().unwrap();
            port.set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            let moves = Arc::new(Moves::default());
            let server = Server::new(Session::default(), Arc::clone(&moves) as _);
            let device = Device::opened(guest);
            let (outbox, out) = (server.outbox.clone(), Arc::clone(&device));
            std::thread::spawn(move || outbox.write_to(&out));
            let bulk_server = Arc::clone(&server);
            std::thread::spawn(move || {
                bulk_server.take_bulk(FrameReader::new(Device::opened(guest_bulk)));
            });
            std::thread::spawn(move || {
                let mut reader = FrameReader::new(device);
                loop {
                    server.take(&reader.next_frame());
                }
            });
            let decoder = Decoder::new();
            Self {
                port,
                decoder,
                bulk,
                moves,
            }
        }

        fn send(&mut self, session: u32, json: &str) {
            let mut bytes = Vec::new();
            frame::encode(Kind::Control, session, json.as_bytes(), &mut bytes).unwrap();
            self.port.write_all(&bytes).unwrap();
        }

        fn receive(&mut self) -> (u32, Message) {
            let mut buffer = [0; 4096];
            loop {
                if let Some(f) = self.decoder.next() {
                    return (f.session, serde_json::from_slice(&f.payload).unwrap());
                }
                let n = self.port.read(&mut buffer).unwrap();
                assert!(n > 0);
                self.decoder.push(&buffer[..n]);
            }
        }

        fn hello(&mut self, session: u32) {
            self.send(session, r#"{"id":1,"call":{"call":"hello","protocol":2}}"#);
            let (got, message) = self.receive();
            assert_eq!(got, session);
            let Message::Response { id: 1, reply } = message else {
                panic!("{message:?}")
            };
            assert!(matches!(reply, Reply::Hello { protocol: 2, .. }));
        }

        fn reply(&mut self) -> (u64, Reply) {
            match self.receive().1 {
                Message::Response { id, reply } => (id, reply),
                Message::Event { event } => panic!("{event:?}"),
            }
        }
    }

    #[test]
    fn only_the_session_in_force_is_heard() {
        let mut host = Host::new();
        // Before any session, of no session: no answer.
        host.send(7, r#"{"id":9,"call":{"call":"meter","interval_ms":0}}"#);
        host.hello(7);
        host.send(6, r#"{"id":10,"call":{"call":"meter","interval_ms":0}}"#);
        host.hello(8);
        host.send(7, r#"{"id":11,"call":{"call":"meter","interval_ms":0}}"#);
        host.send(8, r#"{"id":12,"call":{"call":"meter","interval_ms":0}}"#);
        assert_eq!(host.reply(), (12, Reply::Done));
    }

    #[test]
    fn bad_requests_are_answered_and_do_not_stop_the_daemon() {
        let mut host = Host::new();
        host.hello(1);
        host.send(1, "not json");
        host.send(1, r#"{"id":2,"call":{"call":"no_such_call"}}"#);
        let (id, reply) = host.reply();
        assert!(
            id == 2
                && matches!(
                    &reply,
                    Reply::Error {
                        kind: ErrorKind::Invalid,
                        ..
                    }
                )
        );
        host.send(1, r#"{"id":3,"call":{"call":"meter","interval_ms":1}}"#);
        assert!(matches!(host.reply(), (3, Reply::Error { .. })));
        host.send(1, r#"{"id":4,"call":{"call":"stop","feature":"../x"}}"#);
        assert!(matches!(host.reply(), (4, Reply::Error { .. })));
        host.send(1, r#"{"id":5,"call":{"call":"discard","id":"0123abcd"}}"#);
        let (id, reply) = host.reply();
        assert!(
            id == 5
                && matches!(
                    &reply,
                    Reply::Error {
                        kind: ErrorKind::Failed,
                        ..
                    }
                )
        );
        host.send(1, r#"{"id":6,"call":{"call":"hello","protocol":99}}"#);
        assert!(matches!(host.reply(), (6, Reply::Error { .. })));
    }

    #[test]
    fn a_slow_request_holds_up_no_other_and_meter_frames_come() {
        let mut host = Host::new();
        host.hello(1);
        host.send(1, r#"{"id":2,"call":{"call":"preflight","feature":"web"}}"#);
        let (_, event) = host.receive();
        let seen = |e: &Event| matches!(e, Event::Exited { status, .. } if status == "seen");
        assert!(matches!(&event, Message::Event { event } if seen(event)));
        host.send(1, r#"{"id":3,"call":{"call":"meter","interval_ms":0}}"#);
        assert_eq!(host.reply(), (3, Reply::Done));
        assert_eq!(host.reply(), (2, Reply::Done));
    }

    #[test]
    fn bulk_messages_of_the_session_arrive() {
        let mut host = Host::new();
        host.hello(3);
        for session in [2, 3] {
            let body = bulk::Body::Close { file: 1, sum: 2 };
            let (mut payload, mut bytes) = (Vec::new(), Vec::new());
            bulk::Message { stream: 1, body }.encode(&mut payload);
            frame::encode(Kind::Bulk, session, &payload, &mut bytes).unwrap();
            frame::encode(Kind::Bulk, session, b"rubbish", &mut bytes).unwrap();
            host.bulk.write_all(&bytes).unwrap();
        }
        for _ in 0..500 {
            if host.moves.0.load(Ordering::SeqCst) > 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(host.moves.0.load(Ordering::SeqCst), 1);
    }

    proptest! {
        #[test]
        fn no_payload_stops_the_daemon(payload in proptest::collection::vec(any::<u8>(), 0..200),
                                       text in "(?s)[{]\"id\":[0-9]{1,25},\"call\":.{0,60}[}]") {
            let server = Server::new(Session::default(), Arc::new(Moves::default()));
            server.session.begin(1);
            for payload in [payload, text.into_bytes()] {
                for (kind, session) in [(Kind::Control, 1), (Kind::Control, 2), (Kind::Bulk, 1)] {
                    let payload = payload.clone();
                    server.take(&Frame { kind, session, payload });
                }
            }
        }
    }
}
