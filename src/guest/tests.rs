//! A [`Guest`] against a helper played by the test, on unix sockets as QEMU gives them.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::wire::bulk::Body;
use crate::wire::frame::{self, Decoder, Frame};
use crate::wire::guest::{Event, GuestStatus, Message, PROTOCOL};

/// For steps that must end; a hang is a failure, a busy machine is not.
const LONG: Duration = Duration::from_secs(30);

struct Port {
    stream: UnixStream,
    decoder: Decoder,
}

impl Port {
    async fn accept(listener: &UnixListener) -> Self {
        let (stream, _) = timeout(LONG, listener.accept()).await.unwrap().unwrap();
        Self {
            stream,
            decoder: Decoder::new(),
        }
    }
    async fn frame(&mut self) -> Frame {
        let mut buf = vec![0; 64 << 10];
        loop {
            if let Some(f) = self.decoder.next() {
                return f;
            }
            let n = timeout(LONG, self.stream.read(&mut buf))
                .await
                .unwrap()
                .unwrap();
            assert!(n > 0, "the host closed the port");
            self.decoder.push(&buf[..n]);
        }
    }
    async fn request(&mut self) -> (u32, Request) {
        let f = self.frame().await;
        assert_eq!(f.kind, Kind::Control);
        (f.session, serde_json::from_slice(&f.payload).unwrap())
    }
    async fn send(&mut self, kind: Kind, session: u32, payload: &[u8]) {
        let mut out = Vec::new();
        frame::encode(kind, session, payload, &mut out).unwrap();
        self.stream.write_all(&out).await.unwrap();
    }
    async fn say(&mut self, session: u32, message: &Message) {
        let payload = serde_json::to_vec(message).unwrap();
        self.send(Kind::Control, session, &payload).await;
    }
    async fn answer(&mut self, session: u32, id: u64, reply: Reply) {
        self.say(session, &Message::Response { id, reply }).await;
    }
    async fn bulk(&mut self, session: u32, message: &bulk::Message) {
        let mut payload = Vec::new();
        message.encode(&mut payload);
        self.send(Kind::Bulk, session, &payload).await;
    }
    /// Whether the host closes the port.
    async fn is_closed(&mut self) -> bool {
        let mut buf = vec![0; 64 << 10];
        let end = async { while !matches!(self.stream.read(&mut buf).await, Ok(0) | Err(_)) {} };
        timeout(LONG, end).await.is_ok()
    }
}

use crate::wire::guest::Request;

struct Stage {
    _dir: tempfile::TempDir,
    control: UnixListener,
    bulk: UnixListener,
    guest: Guest,
    events: mpsc::Receiver<(String, GuestEvent)>,
}

impl Stage {
    fn new() -> Self {
        Self::with(Patience::default())
    }
    fn with(patience: Patience) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let channels = Channels {
            control: dir.path().join("control"),
            bulk: dir.path().join("bulk"),
        };
        let control = UnixListener::bind(&channels.control).unwrap();
        let bulk = UnixListener::bind(&channels.bulk).unwrap();
        let (tx, events) = mpsc::channel(1000);
        Self {
            _dir: dir,
            control,
            bulk,
            guest: Guest::spawn_with("g1", channels, tx, patience),
            events,
        }
    }
    async fn event(&mut self) -> GuestEvent {
        let (domain, event) = timeout(LONG, self.events.recv()).await.unwrap().unwrap();
        assert_eq!(domain, "g1");
        event
    }
    async fn connect(&mut self) -> (Port, Port, u32) {
        let bulk = Port::accept(&self.bulk).await;
        let mut control = Port::accept(&self.control).await;
        let (session, hello) = control.request().await;
        assert_eq!(hello.call, Call::Hello { protocol: PROTOCOL });
        assert!(!self.guest.connected());
        // The rest of an older life, before the answer.
        control
            .stream
            .write_all(b"DRV1rest of a frame")
            .await
            .unwrap();
        control
            .answer(session ^ 1, hello.id, hello_reply("stale"))
            .await;
        control.answer(session, hello.id, hello_reply("1.0")).await;
        let event = self.event().await;
        assert!(
            matches!(&event, GuestEvent::Connected { version, .. } if version == "1.0"),
            "{event:?}"
        );
        assert!(self.guest.connected());
        (control, bulk, session)
    }
}

fn hello_reply(version: &str) -> Reply {
    Reply::Hello {
        protocol: PROTOCOL,
        version: version.into(),
        boot_id: "b".into(),
    }
}

fn data(stream: u32, len: usize) -> bulk::Message {
    bulk::Message {
        stream,
        body: Body::Data {
            file: 1,
            offset: 0,
            bytes: vec![7; len],
        },
    }
}

#[tokio::test]
async fn calls_are_matched_by_id() {
    let mut stage = Stage::new();
    let (mut control, _bulk, session) = stage.connect().await;
    let (a, b) = (stage.guest.clone(), stage.guest.clone());
    let first = tokio::spawn(async move { a.call(Call::Status, LONG).await });
    let (_, one) = control.request().await;
    let second = tokio::spawn(async move { b.call(Call::Capabilities, LONG).await });
    let (_, two) = control.request().await;
    assert_ne!(one.id, two.id);
    control.answer(session, 999, Reply::Done).await;
    let kind = ErrorKind::Refused;
    let message = "no".to_owned();
    control
        .answer(session, two.id, Reply::Error { kind, message })
        .await;
    control
        .answer(session, one.id, Reply::Status(GuestStatus::default()))
        .await;
    assert!(matches!(first.await.unwrap(), Ok(Reply::Status(_))));
    assert!(matches!(
        second.await.unwrap(),
        Err(GuestError::Helper { kind: ErrorKind::Refused, message, .. }) if message == "no"
    ));
    // No answer.
    let e = stage
        .guest
        .call(Call::Status, Duration::from_millis(50))
        .await
        .unwrap_err();
    assert!(matches!(e, GuestError::Timeout { .. }), "{e}");
}

#[tokio::test]
async fn a_lost_connection_fails_calls_ends_streams_and_comes_back() {
    let mut stage = Stage::new();
    let (mut control, bulk, first) = stage.connect().await;
    let guest = stage.guest.clone();
    let call = tokio::spawn(async move { guest.call(Call::Status, LONG).await });
    control.request().await;
    let mut stream = stage.guest.bulk_subscribe(1).await;
    drop((control, bulk));
    assert!(matches!(call.await.unwrap(), Err(GuestError::Lost { .. })));
    assert_eq!(timeout(LONG, stream.recv()).await.unwrap(), None);
    assert!(matches!(stage.event().await, GuestEvent::Lost { .. }));
    let e = stage.guest.call(Call::Status, LONG).await.unwrap_err();
    assert!(matches!(e, GuestError::NotConnected { .. }), "{e}");
    let (_control, _bulk, second) = stage.connect().await;
    assert_ne!(first, second);
}

#[tokio::test]
async fn a_helper_that_was_started_anew_ends_the_session_at_once() {
    let mut stage = Stage::new();
    let started = Message::Event {
        event: Event::Started,
    };
    // Before hands are shaken it is no news: the greeting waits in the port for that very helper.
    let _bulk = Port::accept(&stage.bulk).await;
    let mut control = Port::accept(&stage.control).await;
    let (session, hello) = control.request().await;
    control.say(0, &started).await;
    control.answer(session, hello.id, hello_reply("1.0")).await;
    assert!(matches!(stage.event().await, GuestEvent::Connected { .. }));
    let guest = stage.guest.clone();
    let call = tokio::spawn(async move { guest.call(Call::Status, LONG).await });
    control.request().await;
    // In the session itself it means nothing.
    control.say(session, &started).await;
    control.say(0, &started).await;
    assert!(matches!(call.await.unwrap(), Err(GuestError::Lost { .. })));
    let GuestEvent::Lost { reason } = stage.event().await else {
        panic!("not lost")
    };
    assert_eq!(reason, "the helper was started anew");
    stage.connect().await;
}

#[tokio::test]
async fn events_of_another_session_are_dropped() {
    let mut stage = Stage::new();
    let (mut control, _bulk, session) = stage.connect().await;
    let meter = |at_ns| Message::Event {
        event: Event::Meter(MeterFrame {
            at_ns,
            ..MeterFrame::default()
        }),
    };
    control.say(session.wrapping_add(1), &meter(1)).await;
    control.send(Kind::Control, session, b"{not json").await;
    control.say(session, &meter(2)).await;
    let event = stage.event().await;
    assert!(
        matches!(&event, GuestEvent::Meter(f) if f.at_ns == 2),
        "{event:?}"
    );
}

#[tokio::test]
async fn a_flood_of_events_ends_the_connection() {
    let mut stage = Stage::new();
    let (mut control, _bulk, session) = stage.connect().await;
    let event = serde_json::to_vec(&Message::Event {
        event: Event::Meter(MeterFrame::default()),
    })
    .unwrap();
    let mut out = Vec::new();
    for _ in 0..2000 {
        frame::encode(Kind::Control, session, &event, &mut out).unwrap();
    }
    let _ = control.stream.write_all(&out).await;
    assert!(control.is_closed().await);
    let reason = loop {
        if let GuestEvent::Lost { reason } = stage.event().await {
            break reason;
        }
    };
    assert!(reason.contains("200 events"), "{reason}");
}

#[tokio::test]
async fn a_flood_of_bytes_ends_the_connection() {
    let mut stage = Stage::new();
    let (mut control, _bulk, _) = stage.connect().await;
    let garbage = vec![b'D'; 1 << 20];
    let flood = async { while control.stream.write_all(&garbage).await.is_ok() {} };
    timeout(LONG, flood).await.unwrap();
    let event = stage.event().await;
    // On a machine that is slow enough the guest is first found to be silent.
    assert!(
        matches!(&event, GuestEvent::Lost { reason }
            if reason.contains("4 MiB") || reason.contains("no sign of life")),
        "{event:?}"
    );
}

#[tokio::test]
async fn bulk_both_ways() {
    let mut stage = Stage::new();
    let (_control, mut port, session) = stage.connect().await;
    let mut stream = stage.guest.bulk_subscribe(5).await;
    port.bulk(session, &data(4, 10)).await; // nobody's
    port.bulk(session ^ 1, &data(5, 10)).await; // another session's
    port.bulk(session, &data(5, bulk::MAX_DATA)).await;
    let got = timeout(LONG, stream.recv()).await.unwrap().unwrap();
    assert_eq!(got, data(5, bulk::MAX_DATA));
    // What is no message ends this subscription and no other.
    let mut other = stage.guest.bulk_subscribe(6).await;
    port.send(Kind::Bulk, session, &[9, 5, 0, 0, 0]).await;
    assert_eq!(timeout(LONG, stream.recv()).await.unwrap(), None);
    port.bulk(session, &data(6, 1)).await;
    assert_eq!(timeout(LONG, other.recv()).await.unwrap(), Some(data(6, 1)));

    for n in [1, bulk::MAX_DATA, 3] {
        stage.guest.bulk_send(&data(8, n), LONG).await.unwrap();
    }
    for n in [1, bulk::MAX_DATA, 3] {
        let f = port.frame().await;
        assert_eq!((f.kind, f.session), (Kind::Bulk, session));
        assert_eq!(bulk::Message::decode(&f.payload).unwrap(), data(8, n));
    }
}

#[tokio::test]
async fn a_port_that_nobody_reads_holds_senders_back() {
    let mut stage = Stage::new();
    let (_control, mut port, _) = stage.connect().await;
    let message = data(1, bulk::MAX_DATA);
    let mut sent = 0;
    let e = loop {
        match stage
            .guest
            .bulk_send(&message, Duration::from_millis(200))
            .await
        {
            Ok(()) => sent += 1,
            Err(e) => break e,
        }
        assert!(sent < 100, "no backpressure");
    };
    assert!(matches!(e, GuestError::Timeout { .. }), "{e}");
    // Frames that were queued arrive whole, and sending goes on.
    for _ in 0..sent {
        port.frame().await;
    }
    stage.guest.bulk_send(&message, LONG).await.unwrap();
    port.frame().await;
}

#[tokio::test]
async fn a_subscriber_that_does_not_read_holds_the_guest_back() {
    let mut stage = Stage::new();
    let (_control, mut port, session) = stage.connect().await;
    let mut stream = stage.guest.bulk_subscribe(1).await;
    let message = data(1, bulk::MAX_DATA);
    let mut sent = 0;
    while timeout(Duration::from_millis(300), port.bulk(session, &message))
        .await
        .is_ok()
    {
        sent += 1;
        assert!(sent < 100, "no backpressure");
    }
    for _ in 0..sent {
        assert!(timeout(LONG, stream.recv()).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn reconnecting_on_demand() {
    let mut stage = Stage::new();
    let (mut control, _bulk, first) = stage.connect().await;
    let guest = stage.guest.clone();
    let call = tokio::spawn(async move { guest.call(Call::Status, LONG).await });
    control.request().await;
    stage.guest.reconnect();
    assert!(matches!(call.await.unwrap(), Err(GuestError::Lost { .. })));
    assert!(control.is_closed().await);
    assert!(matches!(stage.event().await, GuestEvent::Lost { .. }));
    let (_control, _bulk, second) = stage.connect().await;
    assert_ne!(first, second);
}

#[tokio::test]
async fn damaged_frames_do_no_harm() {
    let mut stage = Stage::new();
    let (mut control, mut port, session) = stage.connect().await;
    let mut stream = stage.guest.bulk_subscribe(1).await;
    let event = serde_json::to_vec(&Message::Event {
        event: Event::Meter(MeterFrame::default()),
    })
    .unwrap();
    let mut good = Vec::new();
    frame::encode(Kind::Control, session, &event, &mut good).unwrap();
    let mut payload = Vec::new();
    data(1, 100).encode(&mut payload);
    frame::encode(Kind::Bulk, session, &payload, &mut good).unwrap();
    // Every byte damaged in turn, on both ports, with good frames between; small lengths only,
    // so that a lying one cannot swallow the rest.
    let mut seed = 1u32;
    for at in 0..good.len() {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let mut bad = good.clone();
        if !(12..16).contains(&(at % 184)) {
            bad[at] ^= (seed >> 24) as u8 | 1;
        }
        let part = &bad[..good.len() / 2];
        control.stream.write_all(part).await.unwrap();
        port.stream.write_all(&bad).await.unwrap();
        while stream.try_recv().is_ok() {}
        tokio::time::sleep(Duration::from_millis(8)).await;
    }
    // Enough to complete whatever a damaged length announced.
    let padding = vec![0; frame::MAX_PAYLOAD + 1];
    control.stream.write_all(&padding).await.unwrap();
    control
        .say(
            session,
            &Message::Event {
                event: Event::Meter(MeterFrame {
                    at_ns: 42,
                    ..MeterFrame::default()
                }),
            },
        )
        .await;
    while !matches!(stage.event().await, GuestEvent::Meter(f) if f.at_ns == 42) {}
    assert!(stage.guest.connected());
}

#[tokio::test]
async fn close_and_drop_end_it() {
    for explicit in [true, false] {
        let mut stage = Stage::new();
        let (mut control, _bulk, _) = stage.connect().await;
        let Stage {
            guest, mut events, ..
        } = stage;
        if explicit {
            guest.close();
            assert!(control.is_closed().await);
            let e = guest.call(Call::Status, LONG).await.unwrap_err();
            assert!(matches!(e, GuestError::NotConnected { .. }), "{e}");
        } else {
            drop(guest);
            assert!(control.is_closed().await);
        }
        assert!(timeout(LONG, events.recv()).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_silent_helper_is_given_up() {
    let mut stage = Stage::with(Patience {
        silence: Duration::from_millis(200),
        answer: Duration::from_secs(2),
        busy: Duration::from_secs(2),
    });
    let (mut control, _bulk, session) = stage.connect().await;
    // It answers the first sign of life, then falls silent.
    let (_, ask) = control.request().await;
    assert_eq!(ask.call, Call::Status);
    control
        .answer(session, ask.id, Reply::Status(GuestStatus::default()))
        .await;
    let event = stage.event().await;
    assert!(
        matches!(&event, GuestEvent::Lost { reason } if reason.contains("sign of life")),
        "{event:?}"
    );
}

/// What helpers of protocol 1 answer: one that compares the versions itself, and one that leaves
/// that to the host.
#[tokio::test]
async fn helpers_of_another_version_are_refused_with_the_way_out() {
    for recorded in [
        r#"{"type":"response","id":1,"reply":{"reply":"error","kind":"invalid","message":"the host speaks protocol 2 and this helper 1; install the host's helper with 'drover guest install'"}}"#,
        r#"{"type":"response","id":1,"reply":{"reply":"hello","protocol":1,"version":"0.1.0","boot_id":"b"}}"#,
    ] {
        let mut stage = Stage::new();
        let _bulk = Port::accept(&stage.bulk).await;
        let mut control = Port::accept(&stage.control).await;
        let (session, hello) = control.request().await;
        assert_eq!(hello.id, 1, "as recorded");
        control
            .send(Kind::Control, session, recorded.as_bytes())
            .await;
        let event = stage.event().await;
        let GuestEvent::Lost { reason } = event else {
            panic!("{event:?}")
        };
        assert!(
            reason.contains("protocol 1") || reason.contains("this helper 1"),
            "{reason}"
        );
        assert!(reason.contains("drover guest install"), "{reason}");
        assert!(!stage.guest.connected());
    }
}
