//! The history through its public interface: what goes in comes out, across chunks, days and
//! restarts.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Instant;

use drover::feature::FeatureName;
use drover::history::{History, HistoryError, Options, SeriesKey};
use drover::usage::{MIB, Usage};
use proptest::prelude::*;

/// 2025-01-31T23:50:00Z.
const EVENING: i64 = 1_738_367_400_000;
const DAY_MS: i64 = 86_400_000;

fn key(name: &str) -> SeriesKey {
    SeriesKey {
        group: "shop".into(),
        feature: FeatureName::new(name).unwrap(),
    }
}

fn point(at_ms: i64, cpu: f64) -> Usage {
    Usage {
        at_ms,
        dt_s: 5.0,
        cpu_percent: Some(cpu),
        memory_mib: Some(100.25),
        ..Usage::default()
    }
}

fn open(dir: &Path) -> History {
    History::open(dir, 48).unwrap()
}

#[tokio::test]
async fn heads_chunks_and_days_read_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let h = open(dir.path());
    let (a, b) = (key("cache"), key("search"));
    let mut expected = Vec::new();
    // 300 ticks of 5 s: over two chunks, an hour and midnight.
    for n in 0..300 {
        let p = point(EVENING + n * 5000, n as f64 / 7.0);
        expected.push(p);
        let mut tick = vec![(a.clone(), p)];
        if n % 3 == 0 {
            tick.push((b.clone(), p));
        }
        h.append(tick).await.unwrap();
    }
    assert!(dir.path().join("2025-01-31").is_dir());
    assert!(dir.path().join("2025-02-01").is_dir());
    for _ in 0..2 {
        let h = h.clone();
        assert_eq!(h.range(&a, 0, i64::MAX, 1000).await.unwrap(), expected);
        assert_eq!(
            h.range(&a, 0, i64::MAX, 170).await.unwrap(),
            expected[130..]
        );
        let (since, until) = (expected[100].at_ms, expected[250].at_ms);
        assert_eq!(
            h.range(&a, since, until, 1000).await.unwrap(),
            expected[100..=250]
        );
        assert_eq!(
            h.range(&a, since, since, 9).await.unwrap(),
            expected[100..=100]
        );
        assert_eq!(h.range(&b, 0, i64::MAX, 1000).await.unwrap().len(), 100);
        assert_eq!(h.range(&key("other"), 0, i64::MAX, 9).await.unwrap(), []);
        assert_eq!(h.range(&a, i64::MIN, i64::MAX, 0).await.unwrap(), []);
        assert_eq!(h.series().await.unwrap(), [a.clone(), b.clone()]);
    }
    let other = h.clone();
    h.close().await;
    assert_eq!(other.series().await, Err(HistoryError::Closed));
    assert_eq!(other.append(vec![]).await, Err(HistoryError::Closed));

    let h = open(dir.path());
    assert!(matches!(
        History::open(dir.path(), 1),
        Err(HistoryError::InUse(_))
    ));
    assert_eq!(h.range(&a, 0, i64::MAX, 1000).await.unwrap(), expected);
    assert_eq!(h.problems(), Vec::<String>::new());
}

#[tokio::test]
async fn append_and_import_are_idempotent_and_ours_win() {
    let dir = tempfile::tempdir().unwrap();
    let h = open(dir.path());
    let a = key("cache");
    for n in 0..150 {
        let tick = vec![(a.clone(), point(EVENING + n * 5000, 1.0))];
        h.append(tick.clone()).await.unwrap();
        h.append(tick).await.unwrap();
    }
    // Again, late, in a sealed chunk and with another value; and a tick between two others.
    h.append(vec![
        (a.clone(), point(EVENING + 5000, 9.0)),
        (a.clone(), point(EVENING + 7000, 2.0)),
    ])
    .await
    .unwrap();
    let ours = h.range(&a, 0, i64::MAX, 1000).await.unwrap();
    assert_eq!(ours.len(), 151);
    assert_eq!(ours[1].cpu_percent, Some(1.0));
    assert_eq!(ours[2].cpu_percent, Some(2.0));

    // Of another host: the day before, ours, and between ours; in no order.
    let mut theirs: Vec<Usage> = (0..400)
        .map(|n| point(EVENING - DAY_MS + n * 5000, 3.0))
        .chain((0..150).map(|n| point(EVENING + n * 5000, 4.0)))
        .chain((0..140).map(|n| point(EVENING + 1000 + n * 5000, 5.0)))
        .collect();
    theirs.reverse();
    assert_eq!(h.import(&a, theirs.clone()).await, Ok(540));
    assert_eq!(h.import(&a, theirs).await, Ok(0));
    for _ in 0..2 {
        let all = h.range(&a, 0, i64::MAX, 10_000).await.unwrap();
        assert_eq!(all.len(), 691);
        assert!(all.windows(2).all(|w| w[0].at_ms < w[1].at_ms));
        let of = |v: f64| all.iter().filter(|p| p.cpu_percent == Some(v)).count();
        assert_eq!(
            (of(1.0), of(2.0), of(3.0), of(4.0), of(5.0)),
            (150, 1, 400, 0, 140)
        );
        // Appends go on after it.
        h.append(vec![(a.clone(), point(EVENING + 149 * 5000, 1.0))])
            .await
            .unwrap();
    }
    // Too old for what is kept (48 h).
    let old = vec![
        point(EVENING - 3 * DAY_MS, 1.0),
        point(EVENING - DAY_MS - 5000, 1.0),
    ];
    assert_eq!(h.import(&key("new"), old).await, Ok(2));
    let old = vec![point(EVENING - 3 * DAY_MS, 1.0), point(EVENING, 1.0)];
    assert_eq!(h.import(&key("newer"), old).await, Ok(1));
    assert_eq!(
        h.import(&a, vec![point(-1, 0.0)]).await,
        Err(HistoryError::Time(-1))
    );
    assert_eq!(
        h.append(vec![(a, point(i64::MAX, 0.0))]).await,
        Err(HistoryError::Time(i64::MAX))
    );
}

#[tokio::test]
async fn expire_drops_whole_days() {
    let dir = tempfile::tempdir().unwrap();
    let h = open(dir.path());
    let a = key("cache");
    for day in 0..6 {
        let tick = vec![(a.clone(), point(EVENING + day * DAY_MS, day as f64))];
        h.append(tick).await.unwrap();
    }
    let broken = dir.path().join("2025-01-31.broken-1");
    std::fs::create_dir(&broken).unwrap();
    // 48 hours before that time is in the evening of day 3: days 0 to 2 are over.
    assert_eq!(h.expire(EVENING + 5 * DAY_MS).await, Ok(3));
    assert_eq!(h.expire(EVENING + 5 * DAY_MS).await, Ok(0));
    assert!(!broken.exists());
    let left = h.range(&a, 0, i64::MAX, 10).await.unwrap();
    let left: Vec<_> = left.iter().map(|p| p.cpu_percent.unwrap() as i64).collect();
    assert_eq!(left, [3, 4, 5]);
    h.close().await;
    let mut names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let days = ["2025-02-03", "2025-02-04", "2025-02-05"];
    let expected: Vec<String> = days
        .iter()
        .flat_map(|d| [(*d).to_owned(), format!("{d}.mark")])
        .chain(["lock".to_owned()])
        .collect();
    assert_eq!(names, expected);
    let h = open(dir.path());
    assert_eq!(h.range(&a, 0, i64::MAX, 10).await.unwrap().len(), 3);
    assert_eq!(h.problems(), Vec::<String>::new());
}

#[tokio::test]
async fn below_the_floor_nothing_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        keep_hours: 1,
        floor_mib: u64::MAX,
    };
    let h = History::open_with(dir.path(), options).unwrap();
    let a = key("cache");
    let e = h
        .append(vec![(a.clone(), point(EVENING, 1.0))])
        .await
        .unwrap_err();
    assert!(
        e.to_string().contains("nothing is recorded; free space"),
        "{e}"
    );
    assert!(matches!(
        h.import(&a, vec![point(EVENING, 1.0)]).await,
        Err(HistoryError::Full { .. })
    ));
    assert_eq!(h.range(&a, 0, i64::MAX, 10).await, Ok(vec![]));
}

/// A range over much does not hold up appends, and many at once are answered right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_and_appends_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let h = open(dir.path());
    let a = key("cache");
    let week: Vec<Usage> = (0..20_000)
        .map(|n| point(EVENING - n * 5000, 1.0))
        .collect();
    assert_eq!(h.import(&a, week).await, Ok(20_000));
    let mut readers = Vec::new();
    for _ in 0..20 {
        let (h, a) = (h.clone(), a.clone());
        readers.push(tokio::spawn(async move {
            h.range(&a, 0, EVENING, 20_000).await
        }));
    }
    let mut slowest = 0;
    for n in 1..20 {
        let at = Instant::now();
        let tick = vec![(a.clone(), point(EVENING + n * 5000, 2.0))];
        h.append(tick).await.unwrap();
        slowest = slowest.max(at.elapsed().as_millis());
    }
    for r in readers {
        assert_eq!(r.await.unwrap().unwrap().len(), 20_000);
    }
    println!("slowest append among ranges: {slowest} ms");
    assert!(slowest < 5000, "{slowest} ms");
}

/// Bytes per point and time per append; the figures are printed, their bounds are wide.
#[tokio::test]
async fn size_and_latency() {
    let features: Vec<SeriesKey> = (0..20).map(|n| key(&format!("f{n}"))).collect();
    for (name, busy, most) in [("busy", true, 45.0), ("idle", false, 12.0)] {
        let dir = tempfile::tempdir().unwrap();
        let h = open(dir.path());
        let mut seed = 42u64;
        let mut noise = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % n
        };
        let start = EVENING - EVENING % DAY_MS;
        let ticks = 360;
        let mut spent = 0;
        for t in 0..ticks {
            let dt_s = (5_000_000_000 + noise(400_000)) as f64 / 1e9;
            let tick = features
                .iter()
                .map(|k| {
                    let mut v = |n: u64| if busy { noise(n) as f64 } else { 0.0 };
                    let percent = |usec: f64| Some(usec / (dt_s * 1e6) * 100.0);
                    let u = Usage {
                        at_ms: start + t * 5000 + v(3) as i64,
                        dt_s,
                        cpu_percent: percent(2_000_000.0 + v(400_000)),
                        throttled_percent: percent(0.0),
                        memory_mib: Some((500.0 * MIB + v(64) * 4096.0) / MIB),
                        net_rx_bps: Some(v(5_000_000) / dt_s),
                        net_tx_bps: Some(v(9_000_000) / dt_s),
                        disk_read_bps: Some(0.0 / dt_s),
                        disk_write_bps: Some(v(256) * 4096.0 / dt_s),
                        psi_cpu_percent: percent(v(50_000)),
                        psi_memory_percent: percent(0.0),
                        psi_io_percent: percent(v(20_000)),
                        processes: Some(12.0),
                        ..Usage::default()
                    };
                    (k.clone(), u)
                })
                .collect();
            let at = Instant::now();
            h.append(tick).await.unwrap();
            spent += at.elapsed().as_micros();
        }
        h.close().await;
        let part = dir.path().join(
            std::fs::read_dir(dir.path())
                .unwrap()
                .flatten()
                .find(|e| e.path().is_dir())
                .unwrap()
                .file_name(),
        );
        let db = sled::open(&part).unwrap();
        let chunks = db.scan_prefix(b"c").map(|i| i.unwrap());
        let payload: usize = chunks.map(|(k, v)| k.len() + v.len()).sum();
        let points = ticks as usize * features.len();
        let each = payload as f64 / points as f64;
        let file = std::fs::metadata(part.join("db")).unwrap().len() as f64 / points as f64;
        println!(
            "{name}: {each:.2} B/point in chunks ({:.2} per value), file {file:.1} B/point, {} us \
             per append of {} points",
            each / 12.0,
            spent / ticks as u128,
            features.len()
        );
        assert!(each < most, "{name}: {each}");
    }
}

/// After midnight the day before is written anew; a crash in the middle of it loses nothing.
#[tokio::test]
async fn the_day_before_is_compacted() {
    let dir = tempfile::tempdir().unwrap();
    let (day, copy) = (
        dir.path().join("2025-01-31"),
        dir.path().join("2025-01-31.compact"),
    );
    let gone = dir.path().join("2025-01-31.expired");
    let size = || std::fs::metadata(day.join("db")).unwrap().len();
    let h = open(dir.path());
    let keys: Vec<SeriesKey> = (0..20).map(|n| key(&format!("f{n}"))).collect();
    let tick = |n: i64| {
        keys.iter()
            .map(|k| (k.clone(), point(EVENING + n * 1000, n as f64)))
            .collect()
    };
    for n in 0..600 {
        h.append(tick(n)).await.unwrap();
    }
    let before = size();
    h.append(tick(600)).await.unwrap();
    let after = size();
    println!("{before} bytes before midnight, {after} after");
    assert!(after < before, "{after} {before}");
    assert!(!copy.exists() && !gone.exists());
    let expected: Vec<Usage> = (0..=600)
        .map(|n| point(EVENING + n * 1000, n as f64))
        .collect();
    assert_eq!(
        h.range(&keys[3], 0, i64::MAX, 1000).await.unwrap(),
        expected
    );
    h.close().await;

    // As a crash leaves it: between the renames, after both, before both.
    std::fs::create_dir(&gone).unwrap();
    std::fs::rename(&day, &copy).unwrap();
    for _ in 0..2 {
        let h = open(dir.path());
        assert_eq!(
            h.range(&keys[3], 0, i64::MAX, 1000).await.unwrap(),
            expected
        );
        assert_eq!(h.problems(), Vec::<String>::new());
        h.close().await;
        assert!(day.is_dir() && !copy.exists() && !gone.exists());
        std::fs::create_dir(&copy).unwrap();
    }
    // The first append after a start does it for a day that was left with a head.
    let h = open(dir.path());
    let before = std::fs::metadata(dir.path().join("2025-02-01/db"))
        .unwrap()
        .len();
    h.append(tick(100_000)).await.unwrap();
    let after = std::fs::metadata(dir.path().join("2025-02-01/db"))
        .unwrap()
        .len();
    assert!(after < before, "{after} {before}");
    assert_eq!(
        h.range(&keys[3], 0, i64::MAX, 1000).await.unwrap().len(),
        602
    );
}

#[derive(Debug, Clone)]
enum Step {
    Append(i64, u8),
    Import(Vec<(i64, u8)>),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Times over two hours around midnight, so that they collide.
    let at = (0i64..200).prop_map(|n| EVENING - 1_800_000 + n * 36_000);
    let step = prop_oneof![
        8 => (at.clone(), any::<u8>()).prop_map(|(t, v)| Step::Append(t, v)),
        2 => proptest::collection::vec((at, any::<u8>()), 0..60).prop_map(Step::Import),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the order, it reads as a map by time in which the first value stays.
    #[test]
    fn like_a_map(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut h = open(dir.path());
            let a = key("cache");
            let mut model = std::collections::BTreeMap::new();
            for step in steps {
                match step {
                    Step::Append(t, v) => {
                        model.entry(t).or_insert(v);
                        h.append(vec![(a.clone(), point(t, f64::from(v)))]).await.unwrap();
                    }
                    Step::Import(points) => {
                        let before = model.len();
                        for (t, v) in &points {
                            model.entry(*t).or_insert(*v);
                        }
                        let points = points.iter().map(|(t, v)| point(*t, f64::from(*v))).collect();
                        let added = h.import(&a, points).await.unwrap();
                        assert_eq!(added as usize, model.len() - before);
                    }
                    Step::Reopen => {
                        h.close().await;
                        h = open(dir.path());
                    }
                }
            }
            let expected: Vec<Usage> = model.iter().map(|(t, v)| point(*t, f64::from(*v))).collect();
            assert_eq!(h.range(&a, 0, i64::MAX, 1000).await.unwrap(), expected);
            assert_eq!(h.problems(), Vec::<String>::new());
        });
    }
}
