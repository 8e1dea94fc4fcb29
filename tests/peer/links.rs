//! Connections that end, come back, or are cut.

use std::time::{Duration, Instant};

use drover::peer::{PeerError, PeerEvent};
use drover::wire::bulk::{Body, MAX_DATA, Message};
use tokio::io::AsyncWriteExt;

use crate::support::{MOVE, Pair, SLOW, free_address, host, start};

const T: Duration = Duration::from_secs(30);
const B: &str = "host-b";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_peer_fails_calls_at_once_and_comes_back() {
    let pair = Pair::new();
    let (mut a, b) = pair.both().await;
    let p = a.peers.clone();
    let under_way = tokio::spawn(async move { p.await_round(B, SLOW, 1, T).await });
    let mut out = a.peers.open_bulk(B, &MOVE.to_owned()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;

    let begun = Instant::now();
    drop(b);
    let ended = under_way.await.unwrap();
    assert!(
        matches!(ended, Err(PeerError::Unreachable { .. })),
        "{ended:?}"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    let now = a.peers.host_state(B).await;
    assert!(matches!(now, Err(PeerError::Unreachable { .. })), "{now:?}");
    let mut bulk_failed = false;
    for round in 1..100 {
        let body = Body::RoundEnd {
            round,
            files: 0,
            bytes: 0,
        };
        if out.send(&Message { stream: 7, body }).await.is_err() {
            bulk_failed = true;
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(bulk_failed);
    let PeerEvent::Down { host, reason } = a.down().await else {
        unreachable!()
    };
    assert_eq!(host, B);
    assert!(reason.contains("cannot connect"), "{reason}");
    assert!(
        begun.elapsed() >= Duration::from_secs(1),
        "only after timeout_s"
    );

    let _b = start(B, &pair.b).await;
    let up = a.up().await;
    assert_eq!(
        up,
        PeerEvent::Up {
            host: B.into(),
            version: "0.1.0-test".into()
        }
    );
    a.peers.host_state(B).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_ends_both_directions() {
    let pair = Pair::new();
    let (a, mut b) = pair.both().await;
    a.peers.stop();
    let PeerEvent::Down { host, .. } = b.down().await else {
        unreachable!()
    };
    assert_eq!(host, "host-a");
    let e = a.peers.host_state(B).await.unwrap_err();
    assert!(e.to_string().contains("stopping"), "{e}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_was_never_there_is_told_down() {
    let mut pair = Pair::new();
    pair.a.timeout_s = 0.5;
    let mut a = start("host-a", &pair.a).await;
    let e = a.peers.status(B, MOVE).await.unwrap_err();
    assert!(matches!(e, PeerError::Unreachable { .. }), "{e}");
    a.down().await;
    let e = a.peers.status(B, MOVE).await.unwrap_err();
    assert!(e.to_string().contains("cannot connect"), "{e}");
}

/// Forwards bytes until it is told to swallow them: a link that is cut without a word.
async fn relay(
    listen: std::net::SocketAddr,
    to: std::net::SocketAddr,
    dead: tokio::sync::watch::Receiver<bool>,
) {
    let listener = tokio::net::TcpListener::bind(listen).await.unwrap();
    loop {
        let (here, _) = listener.accept().await.unwrap();
        let mut dead = dead.clone();
        tokio::spawn(async move {
            if *dead.borrow() {
                tokio::time::sleep(T).await;
            }
            let Ok(there) = tokio::net::TcpStream::connect(to).await else {
                return;
            };
            let ((mut hr, mut hw), (mut tr, mut tw)) = (here.into_split(), there.into_split());
            let died = tokio::select! {
                _ = tokio::io::copy(&mut hr, &mut tw) => false,
                _ = tokio::io::copy(&mut tr, &mut hw) => false,
                died = dead.wait_for(|d| *d) => died.is_ok(),
            };
            if died {
                tokio::time::sleep(T).await;
            }
            let _ = hw.shutdown().await;
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_link_is_noticed_within_the_timeout() {
    let mut pair = Pair::new();
    let through = free_address();
    let (kill, dead) = tokio::sync::watch::channel(false);
    let relaying = tokio::spawn(relay(through, pair.b.listen.unwrap(), dead));
    pair.a.hosts = vec![host(B, through)];
    pair.a.timeout_s = 1.0;
    let (mut a, _b) = pair.both().await;
    let p = a.peers.clone();
    let under_way = tokio::spawn(async move { p.await_round(B, SLOW, 1, T).await });
    let mut out = a.peers.open_bulk(B, &MOVE.to_owned()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    kill.send(true).unwrap();
    a.down().await;
    // The relay still takes bytes in, so only the news of the peer can end the bulk stream.
    let body = Body::RoundEnd {
        round: 1,
        files: 0,
        bytes: 0,
    };
    let sent = out.send(&Message { stream: 7, body }).await;
    assert!(
        matches!(sent, Err(PeerError::Unreachable { .. })),
        "{sent:?}"
    );
    let ended = under_way.await.unwrap();
    assert!(
        matches!(ended, Err(PeerError::Unreachable { .. })),
        "{ended:?}"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
    relaying.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_rests_longer_than_the_timeout_keeps_its_bulk_stream() {
    let mut pair = Pair::new();
    pair.a.timeout_s = 1.0;
    pair.b.timeout_s = 1.0;
    let (a, b) = pair.both().await;
    let mut out = a.peers.open_bulk(B, &SLOW.to_owned()).await.unwrap();
    let begun = Instant::now();
    // Nothing that could be packed.
    let mut state = 1_u64;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    })
    .take(MAX_DATA)
    .collect();
    for n in 0..96 {
        let data = Body::Data {
            file: 1,
            offset: n * MAX_DATA as u64,
            bytes: bytes.clone(),
        };
        out.send(&Message {
            stream: 7,
            body: data,
        })
        .await
        .unwrap();
    }
    assert!(
        begun.elapsed() > Duration::from_secs(3),
        "the receiver's rest was felt"
    );
    out.finish().await.unwrap();
    while b.fake.bulk.lock().unwrap().end.is_none() {
        assert!(begun.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let r = b.fake.bulk.lock().unwrap();
    assert_eq!((r.bytes, r.end.clone()), (48 << 20, Some(Ok(()))));
}
