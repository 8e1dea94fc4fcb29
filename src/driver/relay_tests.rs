//! The whole way of a move's data through two daemons, from port to port: what it may hold.

use std::path::PathBuf;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::*;
use crate::guest::{Guest, GuestEvent};
use crate::hypervisor::Channels;
use crate::peer::BulkReceiver;
use crate::transport::{Cut, Link};
use crate::wire::bulk::{Body, MAX_DATA};
use crate::wire::frame::{self, Decoder, Kind};
use crate::wire::guest::{PROTOCOL, Reply, Request};

const LONG: Duration = Duration::from_secs(60);
const STREAM: u32 = 7;

/// A guest whose helper has shaken hands: the daemon's handle, the helper's end of the bulk port,
/// the session.
struct Helped {
    guest: Guest,
    bulk: UnixStream,
    session: u32,
    _keep: (
        tempfile::TempDir,
        UnixStream,
        mpsc::Receiver<(String, GuestEvent)>,
    ),
}

async fn helped(domain: &str) -> Helped {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    let channels = Channels {
        control: path("control"),
        bulk: path("bulk"),
    };
    let control = UnixListener::bind(&channels.control).unwrap();
    let bulk = UnixListener::bind(&channels.bulk).unwrap();
    let (tx, mut events) = mpsc::channel(100);
    let guest = Guest::spawn(domain, channels, tx);
    let (bulk, _) = timeout(LONG, bulk.accept()).await.unwrap().unwrap();
    let (mut control, _) = timeout(LONG, control.accept()).await.unwrap().unwrap();
    let (mut decoder, mut buf) = (Decoder::new(), vec![0; 4096]);
    let greeting = loop {
        if let Some(f) = decoder.next() {
            break f;
        }
        let n = timeout(LONG, control.read(&mut buf))
            .await
            .unwrap()
            .unwrap();
        decoder.push(&buf[..n]);
    };
    let request: Request = serde_json::from_slice(&greeting.payload).unwrap();
    let reply = crate::wire::guest::Message::Response {
        id: request.id,
        reply: Reply::Hello {
            protocol: PROTOCOL,
            version: "1".into(),
            boot_id: "b".into(),
        },
    };
    let mut out = Vec::new();
    let payload = serde_json::to_vec(&reply).unwrap();
    frame::encode(Kind::Control, greeting.session, &payload, &mut out).unwrap();
    control.write_all(&out).await.unwrap();
    timeout(LONG, events.recv()).await.unwrap().unwrap();
    Helped {
        guest,
        bulk,
        session: greeting.session,
        _keep: (dir, control, events),
    }
}

/// A bulk connection between two daemons, over a socket of this host.
async fn connected() -> (BulkSender, BulkReceiver) {
    let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
    let link = |s: std::os::unix::net::UnixStream| {
        s.set_nonblocking(true).unwrap();
        let cut = Cut::Unix(s.try_clone().unwrap());
        Link {
            stream: Box::new(UnixStream::from_std(s).unwrap()),
            cut,
        }
    };
    let (a, b) = (link(a), link(b));
    let (sender, receiver) = tokio::join!(
        BulkSender::open("b", "0000-1111", a),
        BulkReceiver::accept("a", b)
    );
    (sender.unwrap(), receiver.unwrap().1)
}

/// The frame of a piece of data: nothing compressible in it when `noise`.
fn piece(session: u32, noise: bool) -> Vec<u8> {
    let mut seed = 1_u64;
    let bytes = (0..MAX_DATA)
        .map(|_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            if noise { seed as u8 } else { 7 }
        })
        .collect();
    let body = Body::Data {
        file: 1,
        offset: 0,
        bytes,
    };
    let mut out = Vec::new();
    let message = Message {
        stream: STREAM,
        body,
    };
    frame::encode_with(Kind::Bulk, session, &mut out, |out| message.encode(out)).unwrap();
    out
}

/// Two daemons with a move between them, whose target's guest takes nothing until it is let.
struct Way {
    from: Helped,
    to: Helped,
    relay: Relay,
    _target: JoinHandle<()>,
}

async fn way(limits: impl Fn() -> Limits + Send + 'static) -> Way {
    let (from, to) = tokio::join!(helped("from"), helped("to"));
    let (sender, mut receiver) = connected().await;
    let incoming = from.guest.bulk_subscribe(STREAM).await;
    let relay = Relay::start(
        incoming,
        sender,
        "h2".into(),
        Arc::default(),
        limits,
        |_| async {},
    );
    let guest = to.guest.clone();
    let target = tokio::spawn(async move {
        while let Ok(Some(message)) = receiver.next().await {
            if guest.bulk_send(&message, LONG).await.is_err() {
                return;
            }
        }
    });
    Way {
        from,
        to,
        relay,
        _target: target,
    }
}

/// Writes pieces until nothing more is taken for a while; bytes that were taken.
async fn fill(port: &mut UnixStream, piece: &[u8], most: usize) -> usize {
    let mut taken = 0;
    'all: while taken < most {
        let mut at = 0;
        while at < piece.len() {
            // Not a measure of speed: a way that still takes something goes on doing so.
            let taking = timeout(Duration::from_secs(2), port.write(&piece[at..])).await;
            let Ok(n) = taking else {
                taken += at;
                break 'all;
            };
            at += n.unwrap();
        }
        taken += piece.len();
    }
    taken
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feature_of_any_size_is_held_in_a_few_mib() {
    let mut w = way(Limits::default).await;
    let noise = piece(w.from.session, true);
    // A quarter of a GiB wants through, and the target's guest takes nothing.
    let held = fill(&mut w.from.bulk, &noise, 256 << 20).await;
    let kernel = 3 * (1 << 20); // the three sockets on the way
    assert!(held > 4 << 20, "{held} bytes: the way is not open");
    assert!(
        held <= 2 * (8 << 20) + kernel,
        "both daemons hold {held} bytes"
    );
    // It takes everything: what was held comes out, and nothing got lost.
    let (mut port, mut decoder, mut got) = (w.to.bulk, Decoder::new(), 0);
    let mut buf = vec![0; 64 << 10];
    while got < held / noise.len() {
        let n = timeout(LONG, port.read(&mut buf)).await.unwrap().unwrap();
        assert!(n > 0);
        decoder.push(&buf[..n]);
        while let Some(f) = decoder.next() {
            let m = Message::decode(&f.payload).unwrap();
            assert!(matches!(m.body, Body::Data { bytes, .. } if bytes.len() == MAX_DATA));
            got += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_shrinks_is_sent_small_and_arrives_whole() {
    let mut w = way(Limits::default).await;
    let soft = piece(w.from.session, false);
    w.from.bulk.write_all(&soft).await.unwrap();
    let end = Message {
        stream: STREAM,
        body: Body::RoundEnd {
            round: 1,
            files: 1,
            bytes: 1,
        },
    };
    let mut out = Vec::new();
    frame::encode_with(Kind::Bulk, w.from.session, &mut out, |out| end.encode(out)).unwrap();
    w.from.bulk.write_all(&out).await.unwrap();
    let (mut decoder, mut buf, mut seen) = (Decoder::new(), vec![0; 64 << 10], Vec::new());
    while seen.len() < 2 {
        let n = timeout(LONG, w.to.bulk.read(&mut buf))
            .await
            .unwrap()
            .unwrap();
        assert!(n > 0);
        decoder.push(&buf[..n]);
        while let Some(f) = decoder.next() {
            seen.push(Message::decode(&f.payload).unwrap());
        }
    }
    assert!(matches!(&seen[0].body, Body::Data { bytes, .. } if *bytes == vec![7; MAX_DATA]));
    assert_eq!(seen[1], end);
    let sent = w.relay.bytes();
    assert!(sent < 10_000, "{sent} bytes of {MAX_DATA} were sent");
}

#[test]
fn all_moves_share_the_host_s_limit() {
    let sending = Sending::default();
    let limits = Limits {
        host: 10.0,
        each: 8.0,
    };
    let (mut a, mut b) = (Limit::new(0.0, 0.0), Limit::new(0.0, 0.0));
    let mib = 1 << 20;
    // Each by itself would wait for half a second; together they are above the host's limit.
    let first = sending.pause(&mut a, limits, 4 * mib);
    let second = sending.pause(&mut b, limits, 4 * mib);
    assert!(first < second, "{first:?} {second:?}");
    let slow = Limits {
        host: 0.0,
        each: 0.5,
    };
    let alone = sending.pause(&mut Limit::new(0.0, 0.0), slow, mib);
    assert!(alone > second, "{alone:?}");
}
