//! Every call, refusals and errors, announcements, bulk transfer.

use std::time::{Duration, Instant};

use drover::peer::{PeerError, PeerEvent, RefusalKind};
use drover::usage::Usage;
use drover::wire::bulk::{Body, MAX_DATA, Message};
use drover::wire::peer::{TargetStatus, Verdict};

use crate::support::{BUSY, MOVE, Pair, SLOW, offer, state};

const T: Duration = Duration::from_secs(10);
const B: &str = "host-b";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_arrives_with_its_sender_and_is_answered() {
    let pair = Pair::new();
    let (a, b) = pair.both().await;
    let p = &a.peers;
    assert_eq!(p.names(), [B]);
    assert_eq!(p.groups(B), ["default"]);
    assert_eq!(p.host_state(B).await.unwrap(), state(B));
    p.offer(B, &offer(MOVE, "default"), T).await.unwrap();
    p.await_round(B, MOVE, 1, T).await.unwrap();
    p.grant_freeze(B, MOVE, T).await.unwrap();
    let ready = p.restore(B, MOVE, 2, T).await.unwrap();
    assert_eq!(ready, TargetStatus::Ready { restore_ms: 12 });
    let running = p.resume(B, MOVE, T).await.unwrap();
    assert!(matches!(
        running,
        TargetStatus::Running { resume_ms: 3, .. }
    ));
    p.discard(B, MOVE, "a reason", T).await.unwrap();
    assert_eq!(p.status(B, MOVE).await.unwrap(), TargetStatus::Receiving);
    assert_eq!(
        p.status(B, "00000000-0002").await.unwrap(),
        TargetStatus::Unknown
    );
    assert_eq!(p.verdict(B, MOVE).await.unwrap(), Verdict::Pending);
    assert_eq!(p.rows(B, 3, 4).await.unwrap(), "[\"host-a\",3,4]");
    let points: Vec<Usage> = (0..4_500)
        .map(|at_ms| Usage {
            at_ms,
            cpu_percent: Some(12.345_678_901),
            memory_mib: Some(1.0),
            ..Usage::default()
        })
        .collect();
    p.import_history(B, MOVE, &points, T).await.unwrap();
    assert_eq!(
        *b.fake.seen.lock().unwrap(),
        [
            format!("offer host-a {MOVE} cache"),
            format!("await_round host-a {MOVE} 1"),
            format!("grant_freeze host-a {MOVE}"),
            format!("restore host-a {MOVE} 2"),
            format!("resume host-a {MOVE}"),
            format!("discard host-a {MOVE} a reason"),
            format!("import_history {MOVE} 2000"),
            format!("import_history {MOVE} 2000"),
            format!("import_history {MOVE} 500"),
        ]
    );
    // The other direction has a connection of its own.
    assert_eq!(b.peers.host_state("host-a").await.unwrap().name, "host-a");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_and_errors_are_told_apart() {
    let pair = Pair::new();
    let (a, b) = pair.both().await;
    let p = &a.peers;
    let refused = |r: Result<(), PeerError>, kind: RefusalKind, word: &str| match r {
        Err(PeerError::Refused {
            kind: k,
            message,
            host,
        }) => {
            assert_eq!((k, host.as_str()), (kind, B));
            assert!(message.contains(word), "{message}");
        }
        other => panic!("{other:?}"),
    };
    refused(
        p.offer(B, &offer(BUSY, "default"), T).await,
        RefusalKind::Busy,
        "vm-b is taken",
    );
    refused(
        p.offer(B, &offer(MOVE, "secret"), T).await,
        RefusalKind::Refused,
        "group 'secret'",
    );
    let mut newer = offer(MOVE, "default");
    newer.protocol += 1;
    refused(
        p.offer(B, &newer, T).await,
        RefusalKind::Refused,
        "both hosts need the same version of droverd",
    );
    let mut nan = offer(MOVE, "default");
    nan.cpus = -1.0;
    refused(p.offer(B, &nan, T).await, RefusalKind::Invalid, "cpus");
    refused(
        p.discard(B, "../etc", "", T).await,
        RefusalKind::Invalid,
        "identifier",
    );
    assert_eq!(
        b.fake.seen.lock().unwrap().len(),
        1,
        "only the first reached the service"
    );

    assert!(
        matches!(p.host_state("host-c").await, Err(PeerError::UnknownPeer(h)) if h == "host-c")
    );
    let begun = Instant::now();
    let slow = p.await_round(B, SLOW, 1, Duration::from_millis(300)).await;
    assert!(matches!(slow, Err(PeerError::Timeout { .. })), "{slow:?}");
    assert!(begun.elapsed() < Duration::from_secs(2));
    // An answer over the limit is refused there, and the connection lives on.
    let big = p.rows(B, 0, u32::MAX).await;
    assert!(
        matches!(
            big,
            Err(PeerError::Refused {
                kind: RefusalKind::Failed,
                ..
            })
        ),
        "{big:?}"
    );
    let mut huge = offer(MOVE, "default");
    huge.from_domain = "x".repeat(5 << 20);
    let huge = p.offer(B, &huge, T).await;
    assert!(matches!(huge, Err(PeerError::Protocol { .. })), "{huge:?}");
    p.host_state(B).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_calls_hold_up_no_others_and_are_bounded() {
    let pair = Pair::new();
    let (a, _b) = pair.both().await;
    let mut slow = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let p = a.peers.clone();
        slow.spawn(async move { p.await_round(B, SLOW, 1, Duration::from_secs(2)).await });
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    // All places are taken; the questions that keep the peer up have their own.
    let waits = a.peers.status(B, MOVE);
    let waits = tokio::time::timeout(Duration::from_millis(500), waits).await;
    assert!(waits.is_err(), "more calls at once than allowed");
    while let Some(done) = slow.join_next().await {
        let done = done.unwrap();
        assert!(matches!(done, Err(PeerError::Timeout { .. })), "{done:?}");
    }
    let mut a = a;
    a.event(|e| matches!(e, PeerEvent::State(_))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_announced_state_arrives_at_once() {
    let mut pair = Pair::new();
    pair.a.refresh_s = 600.0;
    pair.a.timeout_s = 1200.0;
    let (mut a, b) = pair.both().await;
    for at_ms in [77, 78] {
        let mut news = state(B);
        news.at_ms = at_ms;
        b.peers.announce(&news);
        let got = a
            .event(|e| matches!(e, PeerEvent::State(s) if s.at_ms == at_ms))
            .await;
        assert_eq!(got, PeerEvent::State(news));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_transfer_of_32_mib_is_complete_and_exact() {
    let pair = Pair::new();
    let (a, b) = pair.both().await;
    let mut piece: Vec<u8> = (0..MAX_DATA).map(|i| (i * 31 + i / 251) as u8).collect();
    let mut out = a.peers.open_bulk(B, &MOVE.to_owned()).await.unwrap();
    let mut hash = drover::wire::sum::Sum::new();
    let message = |body| Message { stream: 7, body };
    let begun = Instant::now();
    let pieces = (32 << 20) / MAX_DATA;
    let open = Body::Open {
        round: 1,
        file: 1,
        size: 32 << 20,
        name: "pages-1.img".into(),
    };
    out.send(&message(open)).await.unwrap();
    for n in 0..pieces {
        piece[0] = n as u8;
        hash.update(&piece);
        let data = Body::Data {
            file: 1,
            offset: (n * MAX_DATA) as u64,
            bytes: piece.clone(),
        };
        out.send(&message(data)).await.unwrap();
    }
    let sum = hash.finish();
    out.send(&message(Body::Close { file: 1, sum }))
        .await
        .unwrap();
    let end = Body::RoundEnd {
        round: 1,
        files: 1,
        bytes: 32 << 20,
    };
    out.send(&message(end)).await.unwrap();
    // The end of the round arrives without the end of the stream.
    while b.fake.bulk.lock().unwrap().rounds == 0 {
        assert!(begun.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let took = begun.elapsed();
    println!(
        "bulk: 32 MiB in {took:?}: {:.0} MiB/s",
        32.0 / took.as_secs_f64()
    );
    assert!(b.fake.bulk.lock().unwrap().end.is_none());
    out.finish().await.unwrap();
    while b.fake.bulk.lock().unwrap().end.is_none() {
        assert!(begun.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let r = b.fake.bulk.lock().unwrap();
    assert_eq!((r.from.as_str(), r.id.as_str()), ("host-a", MOVE));
    assert_eq!((r.bytes, r.sum, r.rounds), (32 << 20, sum, 1));
    assert_eq!(r.end, Some(Ok(())));
}
