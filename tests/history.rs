//! The history through its public interface: what goes in comes out, across chunks, days and
//! restarts.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Instant;

use drover::columns;
use drover::feature::FeatureName;
use drover::history::{History, HistoryError, Options, Page, Query, SeriesKey, StoredTier};
use drover::rollup::Rollup;
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
    let options = Options {
        raw_hours: 48,
        ..Options::default()
    };
    History::open(dir, options).unwrap()
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
    assert!(dir.path().join("raw/2025-01-31T22").is_dir());
    assert!(dir.path().join("raw/2025-02-01T00").is_dir());
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
        History::open(dir.path(), Options::default()),
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

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn expire_drops_what_is_rolled_up_and_over() {
    let dir = tempfile::tempdir().unwrap();
    let h = open(dir.path());
    let a = key("cache");
    for day in 0..6 {
        let tick = vec![(a.clone(), point(EVENING + day * DAY_MS, day as f64))];
        h.append(tick).await.unwrap();
    }
    let broken = dir.path().join("raw/2025-01-31T22.broken-1");
    std::fs::create_dir(&broken).unwrap();
    // 48 hours before that time is in the evening of day 3: the partitions before it are over.
    assert_eq!(h.expire(EVENING + 5 * DAY_MS).await, Ok(3));
    assert_eq!(h.expire(EVENING + 5 * DAY_MS).await, Ok(0));
    assert!(!broken.exists());
    let left = h.range(&a, 0, i64::MAX, 10).await.unwrap();
    let left: Vec<_> = left.iter().map(|p| p.cpu_percent.unwrap() as i64).collect();
    assert_eq!(left, [3, 4, 5]);
    // What was dropped is in minutes.
    let all = page(&h, &a, Some(60_000), 100).await;
    let means: Vec<_> = all
        .points
        .iter()
        .map(|p| p.mean.cpu_percent.unwrap() as i64)
        .collect();
    assert_eq!(means, [0, 1, 2, 3, 4, 5]);
    h.close().await;
    let expected: Vec<String> = ["2025-02-03T22", "2025-02-04T22", "2025-02-05T22"]
        .iter()
        .flat_map(|d| [(*d).to_owned(), format!("{d}.mark")])
        .collect();
    assert_eq!(names(&dir.path().join("raw")), expected);
    let h = open(dir.path());
    assert_eq!(h.range(&a, 0, i64::MAX, 10).await.unwrap().len(), 3);
    assert_eq!(h.problems(), Vec::<String>::new());
}

async fn page(h: &History, key: &SeriesKey, step_ms: Option<i64>, limit: usize) -> Page {
    let query = Query {
        since_ms: 0,
        until_ms: i64::MAX,
        step_ms,
        limit,
    };
    h.query(key, query).await.unwrap()
}

/// Ten days at one point per minute, then every question is answered from the tier that suits it,
/// and what it says is what was put in.
#[tokio::test]
async fn tiers_answer_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        interval_ms: 60_000,
        ..Options::default()
    };
    let start = EVENING - EVENING % DAY_MS;
    let a = key("cache");
    let h = History::open(dir.path(), options.clone()).unwrap();
    let minutes: i64 = 10 * 24 * 60;
    // Two points a minute, 10 and 30 apart from a slow rise.
    for chunk in (0..minutes).collect::<Vec<_>>().chunks(60) {
        let tick = chunk
            .iter()
            .flat_map(|n| [(n * 60_000, 10.0), (n * 60_000 + 30_000, 30.0)].map(|(t, v)| (n, t, v)))
            .map(|(n, at, v)| {
                let mut p = point(start + at, v + (n / 60) as f64);
                p.dt_s = 30.0;
                (a.clone(), p)
            })
            .collect();
        h.append(tick).await.unwrap();
    }
    let now = start + minutes * 60_000;
    h.expire(now).await.unwrap();
    let raw = h.range(&a, 0, i64::MAX, 100_000).await.unwrap();
    let hours = raw.len() / 120;
    assert!((6..=8).contains(&hours), "{hours} hours of points");
    for reopened in [false, true] {
        let h = if reopened {
            let other = h.clone();
            other.close().await;
            History::open(dir.path(), options.clone()).unwrap()
        } else {
            h.clone()
        };
        let fine = page(&h, &a, Some(60_000), 100_000).await;
        let times: Vec<i64> = fine.points.iter().map(|p| p.mean.at_ms).collect();
        assert!(times.windows(2).all(|w| w[0] < w[1]));
        // Two days and something are older than minutes are kept.
        let coarse = fine.points.iter().filter(|p| p.covered_s() > 61.0).count();
        assert!((2 * 96..=3 * 96).contains(&coarse), "{coarse} quarters");
        for p in &fine.points {
            let n = (p.mean.at_ms - start) / 3_600_000;
            assert_eq!(p.min.cpu_percent, Some(10.0 + n as f64));
            assert_eq!(p.max.cpu_percent, Some(30.0 + n as f64));
            assert_eq!(p.last.cpu_percent, Some(30.0 + n as f64));
            assert!((p.mean.cpu_percent.unwrap() - 20.0 - n as f64).abs() < 1e-6);
            assert_eq!(p.mean.memory_mib, Some(100.25));
        }
        let covered: f64 = fine.points.iter().map(Rollup::covered_s).sum();
        assert_eq!(
            covered,
            minutes as f64 * 60.0,
            "no time is missing or twice"
        );
        // The step is chosen by the limit.
        let chosen = page(&h, &a, None, 1000).await;
        assert_eq!((chosen.step_ms, chosen.points.len()), (900_000, 960));
        let chosen = page(&h, &a, None, 100).await;
        assert_eq!((chosen.step_ms, chosen.points.len()), (4 * 3_600_000, 60));
        let covered: f64 = chosen.points.iter().map(Rollup::covered_s).sum();
        assert_eq!(covered, minutes as f64 * 60.0);
        let since = Query {
            since_ms: now - 3_600_000,
            until_ms: now - 1,
            step_ms: None,
            limit: 1000,
        };
        let recent = h.query(&a, since).await.unwrap();
        assert_eq!((recent.step_ms, recent.points.len()), (0, 120));
        assert_eq!(h.series().await.unwrap(), std::slice::from_ref(&a));
        assert_eq!(h.problems(), Vec::<String>::new());
        h.close().await;
    }
    assert_eq!(names(&dir.path().join("15m"))[0], "2025-01");
}

/// What comes late, or from another host, for times that are rolled up already gets there too.
#[tokio::test]
async fn late_points_and_imports_are_rolled_up() {
    let dir = tempfile::tempdir().unwrap();
    let h = open(dir.path());
    let (a, b) = (key("cache"), key("search"));
    let start = EVENING - EVENING % DAY_MS;
    let at = |n: i64| start + n * 60_000;
    for n in 0..2 * 24 * 60 {
        if n % 10 == 0 && n != 30 {
            h.append(vec![(a.clone(), point(at(n), 1.0))])
                .await
                .unwrap();
        }
    }
    h.expire(at(2 * 24 * 60)).await.unwrap();
    assert_eq!(page(&h, &a, Some(900_000), 1000).await.points.len(), 192);
    h.append(vec![(a.clone(), point(at(30), 7.0))])
        .await
        .unwrap();
    let theirs = (0..180).map(|n| point(at(n), 3.0)).collect();
    assert_eq!(h.import(&b, theirs).await, Ok(180));
    h.expire(at(2 * 24 * 60)).await.unwrap();
    let minutes: Vec<Rollup> = (0..1440)
        .map(|n| Rollup {
            ..Rollup::from(Usage {
                dt_s: 60.0,
                ..point(at(n), 5.0)
            })
        })
        .collect();
    // Those of the first three hours are known here from points, which cover less.
    assert_eq!(
        h.import_rollups(&b, StoredTier::Minute, minutes.clone())
            .await,
        Ok(1440 - 180)
    );
    assert_eq!(
        h.import_rollups(&b, StoredTier::Minute, minutes).await,
        Ok(0)
    );
    h.append(vec![(a.clone(), point(at(2 * 24 * 60), 1.0))])
        .await
        .unwrap();
    h.expire(at(2 * 24 * 60)).await.unwrap();
    let all = page(&h, &a, Some(900_000), 1000).await.points;
    assert_eq!(all.len(), 193);
    assert_eq!(all[2].max.cpu_percent, Some(7.0));
    let day = page(&h, &b, Some(900_000), 1000).await.points;
    assert_eq!(day.len(), 96);
    assert!(
        day.iter()
            .all(|p| p.covered_s() == 900.0 && p.mean.cpu_percent == Some(5.0))
    );
    assert_eq!(h.problems(), Vec::<String>::new());
}

/// When the whole grows above its budget the oldest goes, and that is told.
#[tokio::test]
async fn the_budget_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        max_mib: 3,
        raw_hours: 1000,
        ..Options::default()
    };
    let h = History::open(dir.path(), options).unwrap();
    let keys: Vec<SeriesKey> = (0..40).map(|n| key(&format!("f{n}"))).collect();
    let mut seed = 1u64;
    for n in 0..24 * 60 {
        let tick = keys
            .iter()
            .map(|k| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (k.clone(), point(EVENING + n * 60_000, (seed >> 20) as f64))
            })
            .collect();
        h.append(tick).await.unwrap();
    }
    let problems = h.problems();
    assert!(
        problems
            .iter()
            .any(|p| p.starts_with("history partition raw/")
                && p.contains("grown above history.max_mib (3)")),
        "{problems:?}"
    );
    let left = h.range(&keys[0], 0, i64::MAX, 10_000).await.unwrap();
    assert!(!left.is_empty() && left.len() < 24 * 60, "{}", left.len());
    assert_eq!(left.last().unwrap().at_ms, EVENING + (24 * 60 - 1) * 60_000);
}

#[tokio::test]
async fn below_the_floor_nothing_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        floor_mib: u64::MAX,
        ..Options::default()
    };
    let h = History::open(dir.path(), options).unwrap();
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
        let raw = dir.path().join("raw");
        let part = std::fs::read_dir(&raw).unwrap().flatten();
        let part = part.map(|e| e.path()).find(|p| p.is_dir()).unwrap();
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

/// When its time is over a partition is written anew, packed; a crash in the middle of it loses
/// nothing.
#[tokio::test]
async fn what_is_over_is_packed() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("raw");
    let (part, copy) = (raw.join("2025-01-31T22"), raw.join("2025-01-31T22.compact"));
    let gone = raw.join("2025-01-31T22.expired");
    let h = open(dir.path());
    let keys: Vec<SeriesKey> = (0..20).map(|n| key(&format!("f{n}"))).collect();
    let tick = |n: i64| {
        keys.iter()
            .map(|k| (k.clone(), point(EVENING + n * 1000, n as f64 / 7.0)))
            .collect()
    };
    for n in 0..600 {
        h.append(tick(n)).await.unwrap();
    }
    let before = size(&part);
    // Midnight, and the minute after it in which points may come late.
    h.append(tick(661)).await.unwrap();
    h.expire(EVENING + 661_000).await.unwrap();
    let after = size(&part);
    println!("{before} bytes before, {after} after");
    assert!(after * 2 < before, "{after} {before}");
    assert!(!copy.exists() && !gone.exists());
    let mark = std::fs::read_to_string(raw.join("2025-01-31T22.mark")).unwrap();
    assert!(mark.contains(" packed "), "{mark}");
    let mut expected: Vec<Usage> = (0..600)
        .chain([661])
        .map(|n| point(EVENING + n * 1000, n as f64 / 7.0))
        .collect();
    assert_eq!(
        h.range(&keys[3], 0, i64::MAX, 1000).await.unwrap(),
        expected
    );
    // A column alone is the same column, packed and not.
    let query = Query {
        since_ms: EVENING,
        until_ms: EVENING + DAY_MS,
        step_ms: Some(0),
        limit: 1000,
    };
    let memory = [*columns::by_name("memory").unwrap()];
    let some = h.query_columns(&keys[3], query, &memory).await.unwrap();
    let column = |p: &Usage| (p.at_ms, p.dt_s, p.memory_mib);
    let alone: Vec<_> = some.points.iter().map(|p| column(&p.mean)).collect();
    assert_eq!(alone, expected.iter().map(column).collect::<Vec<_>>());
    assert_eq!(some.points[0].mean.cpu_percent, None);
    // Late points go beside what is packed.
    let late = point(EVENING + 500, 5.0);
    h.append(vec![
        (keys[3].clone(), late),
        (keys[3].clone(), point(EVENING, 9.0)),
    ])
    .await
    .unwrap();
    expected.insert(1, late);
    assert_eq!(
        h.range(&keys[3], 0, i64::MAX, 1000).await.unwrap(),
        expected
    );
    h.close().await;

    // As a crash leaves it: between the renames, after both, before both.
    std::fs::create_dir(&gone).unwrap();
    std::fs::rename(&part, &copy).unwrap();
    for _ in 0..2 {
        let h = open(dir.path());
        assert_eq!(
            h.range(&keys[3], 0, i64::MAX, 1000).await.unwrap(),
            expected
        );
        assert_eq!(h.problems(), Vec::<String>::new());
        h.close().await;
        assert!(part.is_dir() && !copy.exists() && !gone.exists());
        std::fs::create_dir(&copy).unwrap();
    }
}

fn size(dir: &Path) -> u64 {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|e| {
            let e = e.unwrap();
            let m = e.metadata().unwrap();
            if m.is_dir() { size(&e.path()) } else { m.len() }
        })
        .sum()
}

/// A day as the first version wrote it: beside the tiers, values of version 1.
#[tokio::test]
async fn earlier_versions_are_taken_over() {
    // Three points 5001 ms apart, by the first version's codec.
    let run: &[u8] = &[
        128, 225, 171, 236, 151, 101, 146, 78, 0, 146, 78, 5, 2, 128, 200, 175, 160, 37, 128, 137,
        122, 0, 1, 0, 2, 128, 137, 15, 14, 0, 0, 1, 2, 0, 128, 128, 160, 100, 2, 5, 1, 3, 0, 160,
        31, 0, 0, 0, 0, 0, 1, 255, 6, 63, 248, 16, 5, 85, 85, 85, 85, 85, 85, 6, 127, 252, 1, 3, 0,
        6,
    ];
    let wrap = |key: &[u8], count: u16, payload: &[u8]| {
        let mut h = crc32fast::Hasher::new();
        for part in [&[1][..], &count.to_le_bytes(), key, payload] {
            h.update(part);
        }
        let mut v = vec![1];
        v.extend_from_slice(&count.to_le_bytes());
        v.extend_from_slice(&h.finalize().to_le_bytes());
        v.extend_from_slice(payload);
        v
    };
    let dir = tempfile::tempdir().unwrap();
    let db = sled::open(dir.path().join("2025-01-31")).unwrap();
    let name = [&b"s"[..], &7u32.to_be_bytes()].concat();
    let json = serde_json::to_vec(&key("cache")).unwrap();
    db.insert(&name, wrap(&name, 1, &json)).unwrap();
    let chunk = [
        &b"c"[..],
        &(EVENING as u64 / 3_600_000).to_be_bytes(),
        &7u32.to_be_bytes(),
        &EVENING.to_be_bytes(),
    ]
    .concat();
    db.insert(&chunk, wrap(&chunk, 3, run)).unwrap();
    db.flush().unwrap();
    drop(db);
    let mark = "1 0 3 1738367410002";
    let crc = crc32fast::hash(mark.as_bytes());
    std::fs::write(
        dir.path().join("2025-01-31.mark"),
        format!("{mark} {crc:08x}\n"),
    )
    .unwrap();

    let h = open(dir.path());
    let a = key("cache");
    let old = h.range(&a, 0, i64::MAX, 10).await.unwrap();
    let times: Vec<i64> = old.iter().map(|p| p.at_ms - EVENING).collect();
    assert_eq!(times, [0, 5001, 10_002]);
    assert_eq!(old[0].memory_mib, Some(100.25));
    assert_eq!(old[1].net_rx_bps, None);
    // New points of that day go to the same partition, later ones to a new one.
    h.append(vec![(a.clone(), point(EVENING + 20_000, 1.0))])
        .await
        .unwrap();
    h.append(vec![(a.clone(), point(EVENING + 620_000, 2.0))])
        .await
        .unwrap();
    assert_eq!(h.range(&a, 0, i64::MAX, 10).await.unwrap().len(), 5);
    assert_eq!(
        names(&dir.path().join("raw")),
        [
            "2025-01-31",
            "2025-01-31.mark",
            "2025-02-01T00",
            "2025-02-01T00.mark"
        ]
    );
    // It is rolled up and dropped in its time like any other.
    assert_eq!(h.expire(EVENING + 60 * 3_600_000).await, Ok(2));
    assert_eq!(page(&h, &a, Some(60_000), 10).await.points.len(), 2);
    assert_eq!(h.problems(), Vec::<String>::new());
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
