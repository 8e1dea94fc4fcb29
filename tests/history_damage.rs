//! The history when the machine is not kind: kill -9, flipped bytes, cut files, a full disk.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use drover::feature::FeatureName;
use drover::history::{History, HistoryError, Options, SeriesKey};
use drover::usage::Usage;

/// 2025-01-31T23:50:00Z.
const EVENING: i64 = 1_738_367_400_000;

fn key(name: &str) -> SeriesKey {
    SeriesKey {
        group: "shop".into(),
        feature: FeatureName::new(name).unwrap(),
    }
}

fn point(n: i64) -> Usage {
    Usage {
        at_ms: EVENING + n * 5000,
        dt_s: 5.0,
        cpu_percent: Some((n as f64).abs().sqrt()),
        net_rx_bps: Some((n * n % 10_007) as f64 / 5.0),
        ..Usage::default()
    }
}

async fn fill(h: &History, ticks: std::ops::Range<i64>) {
    for n in ticks {
        let tick = ["a", "b", "c"].map(|k| (key(k), point(n))).to_vec();
        h.append(tick).await.unwrap();
    }
}

async fn all(h: &History, name: &str) -> Vec<Usage> {
    let range = async { h.range(&key(name), 0, i64::MAX, 100_000).await.unwrap() };
    tokio::time::timeout(Duration::from_secs(60), range)
        .await
        .unwrap()
}

fn open(dir: &Path) -> History {
    let options = Options {
        raw_hours: 1000,
        floor_mib: 0,
        ..Options::default()
    };
    History::open(dir, options).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Runs this test's binary again as the child of test `name`, kills it after `ms`, and returns
/// the last number that it printed.
fn kill_child(name: &str, dir: &Path, from: i64, ms: u64) -> i64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env("DROVER_TEST_DIR", dir)
        .env("DROVER_TEST_FROM", from.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let number =
        |l: std::io::Result<String>| l.ok()?.strip_prefix("ACKNOWLEDGED ")?.parse::<i64>().ok();
    // The clock starts when something has been acknowledged.
    let mut last = lines.by_ref().filter_map(number).nth(19).unwrap();
    std::thread::sleep(Duration::from_millis(ms));
    child.kill().unwrap();
    last = lines.filter_map(number).fold(last, i64::max);
    child.wait().unwrap();
    last
}

#[test]
fn killed_it_keeps_what_was_acknowledged() {
    if let Ok(dir) = std::env::var("DROVER_TEST_DIR") {
        let mut n: i64 = std::env::var("DROVER_TEST_FROM").unwrap().parse().unwrap();
        runtime().block_on(async {
            let h = open(Path::new(&dir));
            loop {
                fill(&h, n..n + 1).await;
                // A point between two others every now and then.
                if n % 10 == 9 {
                    let mut late = point(n - 8);
                    late.at_ms += 1000;
                    h.import(&key("a"), vec![late]).await.unwrap();
                }
                writeln!(std::io::stdout(), "ACKNOWLEDGED {n}").unwrap();
                n += 1;
            }
        });
    }
    let dir = tempfile::tempdir().unwrap();
    let mut from = 0;
    for round in 0..8u64 {
        let name = "killed_it_keeps_what_was_acknowledged";
        let last = kill_child(name, dir.path(), from, 20 + round * 97 % 500);
        runtime().block_on(async {
            let h = open(dir.path());
            assert_eq!(h.problems(), Vec::<String>::new());
            for name in ["a", "b", "c"] {
                let found: HashMap<i64, Usage> = all(&h, name)
                    .await
                    .into_iter()
                    .map(|p| (p.at_ms, p))
                    .collect();
                for n in 0..=last {
                    let p = point(n);
                    assert_eq!(
                        found.get(&p.at_ms),
                        Some(&p),
                        "round {round}: {n} of {last}"
                    );
                    if name == "a" && n % 10 == 9 {
                        assert!(found.contains_key(&(point(n - 8).at_ms + 1000)), "{n}");
                    }
                }
            }
            assert_eq!(h.problems(), Vec::<String>::new());
            h.close().await;
        });
        from = last + 1;
    }
    println!("{from} appends acknowledged in 8 rounds");
    assert!(
        from > 100,
        "only {from} appends: the child is too slow to show anything"
    );
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for e in fs::read_dir(from).unwrap() {
        let e = e.unwrap();
        let target = to.join(e.file_name());
        if e.path().is_dir() {
            copy(&e.path(), &target);
        } else {
            fs::copy(e.path(), target).unwrap();
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for e in fs::read_dir(dir).unwrap() {
        let p = e.unwrap().path();
        if p.is_dir() {
            found.extend(files(&p));
        } else {
            found.push(p);
        }
    }
    found.sort();
    found
}

const TICKS: i64 = 420;

/// Opens a damaged copy: it answers, nothing it gives is wrong, a loss is named, and it goes on.
/// Returns whether something was named.
async fn survives(dir: &Path, what: &str) -> bool {
    let expected: HashMap<i64, Usage> = (0..TICKS).map(|n| (point(n).at_ms, point(n))).collect();
    let h = open(dir);
    let mut lost = 0;
    for name in ["a", "b", "c"] {
        let found = all(&h, name).await;
        for p in &found {
            assert_eq!(Some(p), expected.get(&p.at_ms), "{what}");
        }
        lost += expected.len() - found.len();
    }
    let named = !h.problems().is_empty();
    assert!(
        lost == 0 || named,
        "{what}: {lost} points lost, and not a word"
    );
    fill(&h, TICKS..TICKS + 3).await;
    h.append(vec![(key("a"), point(-10))]).await.unwrap();
    let found = all(&h, "a").await;
    assert!(found.contains(&point(TICKS + 2)), "{what}");
    assert!(found.contains(&point(-10)), "{what}");
    h.close().await;
    let h = open(dir);
    assert_eq!(all(&h, "a").await, found, "{what}: after a restart");
    h.close().await;
    named
}

#[test]
fn damage_is_named_and_never_stops_it() {
    let base = tempfile::tempdir().unwrap();
    let origin = base.path().join("origin");
    runtime().block_on(async {
        let h = open(&origin);
        fill(&h, 0..TICKS).await;
        h.close().await;
    });
    // What the test relies on: two days, one of them with a head.
    assert!(
        origin.join("raw/2025-01-31T22/db").exists()
            && origin.join("raw/2025-02-01T00/db").exists()
    );
    // Another seed tries other damage: DROVER_TEST_SEED=8 cargo test ...
    let mut seed: u64 = std::env::var("DROVER_TEST_SEED").map_or(7, |s| s.parse().unwrap());
    let mut random = move |n: u64| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % n
    };
    let (mut flips, mut cuts) = (0, 0);
    for trial in 0..36 {
        let dir = base.path().join(format!("trial-{trial}"));
        copy(&origin, &dir);
        let candidates: Vec<PathBuf> = files(&dir)
            .into_iter()
            .filter(|f| fs::metadata(f).unwrap().len() > 0)
            .filter(|f| trial % 3 != 0 || f.ends_with("db"))
            .collect();
        let file = &candidates[random(candidates.len() as u64) as usize];
        let mut bytes = fs::read(file).unwrap();
        // sled leaves the end of its file empty: aim at what is written.
        let used = bytes.iter().rposition(|b| *b != 0).unwrap_or(0) as u64 + 1;
        let at = random(used) as usize;
        let cut = trial % 2 == 1;
        if cut {
            bytes.truncate(at);
        } else {
            bytes[at] ^= 1 << random(8);
        }
        fs::write(file, bytes).unwrap();
        let what = format!(
            "{} of {} at {at}",
            if cut { "cut" } else { "flip" },
            file.strip_prefix(&dir).unwrap().display()
        );
        let named = runtime().block_on(survives(&dir, &what));
        *(if cut { &mut cuts } else { &mut flips }) += usize::from(named);
        fs::remove_dir_all(&dir).unwrap();
    }
    println!("named: {flips} of 18 flips, {cuts} of 18 cuts");
    assert!(flips > 0 && cuts > 0, "{flips} {cuts}");

    // A directory that is gone, and a record that is wrong inside a sound database.
    let dir = base.path().join("gone");
    copy(&origin, &dir);
    fs::remove_dir_all(dir.join("raw/2025-01-31T22")).unwrap();
    let db = sled::open(dir.join("raw/2025-02-01T00")).unwrap();
    let (k, v) = db.scan_prefix(b"c").next().unwrap().unwrap();
    let mut v = v.to_vec();
    v[20] ^= 4;
    db.insert(k, v).unwrap();
    let (k, _) = db.scan_prefix(b"s").last().unwrap().unwrap();
    db.remove(k).unwrap();
    drop(db);
    runtime().block_on(async {
        let h = open(&dir);
        let found = all(&h, "a").await;
        assert!(!found.is_empty() && found.len() < 300, "{}", found.len());
        assert!(
            all(&h, "b").await.len() > found.len(),
            "the other series is whole"
        );
        assert_eq!(all(&h, "c").await, []);
        let problems = h.problems().join("\n");
        assert!(
            problems.contains("raw/2025-02-01T00: the name of series 2 is lost"),
            "{problems}"
        );
        assert!(
            problems.contains("raw/2025-01-31T22: its directory is gone, with 360 "),
            "{problems}"
        );
        assert!(
            problems.contains("raw/2025-02-01T00: the points of shop/a from "),
            "{problems}"
        );
    });
}

struct Mounted(PathBuf);

impl Mounted {
    fn new(dir: &Path, size: &str) -> nix::Result<Self> {
        let none = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), dir, Some("tmpfs"), none, Some(size))?;
        Ok(Self(dir.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = match Mounted::new(dir.path(), "size=4m") {
        Ok(m) => m,
        Err(e) => {
            println!("SKIPPED: a small tmpfs cannot be mounted here ({e}); run as root");
            return;
        }
    };
    runtime().block_on(async {
        let h = open(&dir.path().join("history"));
        let mut acknowledged = 0;
        let mut failures = 0;
        for n in 0..20_000 {
            let tick = (0..40).map(|k| (key(&format!("f{k}")), point(n))).collect();
            let append = tokio::time::timeout(Duration::from_secs(30), h.append(tick));
            match append.await.expect("an append hangs") {
                Ok(()) => {
                    assert_eq!(failures, 0, "an append after the disk was full");
                    acknowledged = n;
                }
                Err(e) => {
                    assert!(
                        matches!(e, HistoryError::Io { .. } | HistoryError::Full { .. }),
                        "{e}"
                    );
                    if failures == 0 {
                        println!("full after {acknowledged} appends: {e}");
                    }
                    failures += 1;
                    if failures == 3 {
                        break;
                    }
                }
            }
        }
        assert_eq!(failures, 3, "the disk was never full");
        let remount = nix::mount::MsFlags::MS_REMOUNT;
        let none: Option<&str> = None;
        nix::mount::mount(none, &mounted.0, none, remount, Some("size=64m")).unwrap();
        for k in [0, 39] {
            let found = all(&h, &format!("f{k}")).await;
            assert!(found.len() > usize::try_from(acknowledged).unwrap());
            for n in 0..=acknowledged {
                assert_eq!(found[n as usize], point(n));
            }
        }
        h.append(vec![(key("f0"), point(30_000))]).await.unwrap();
        assert_eq!(all(&h, "f0").await.last(), Some(&point(30_000)));
        // sled may have been writing its snapshot when the disk was full; the partition is then
        // opened without it, and that is told. No point may be named as lost.
        for problem in h.problems() {
            assert!(
                problem.contains("repaired without its snapshot"),
                "{problem}"
            );
        }
        h.close().await;
    });
}
