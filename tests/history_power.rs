//! The history when the power goes: images of a file system taken under a running writer, as a
//! disk would have them, and opened again.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use drover::feature::FeatureName;
use drover::history::{History, Options, Query, SeriesKey};
use drover::rollup::Rollup;
use drover::usage::Usage;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// 2025-01-31T21:50:00Z: the writer crosses hours and partitions.
const EVENING: i64 = 1_738_360_200_000;
const SERIES: usize = 12;
const ROUNDS: u64 = 8;

fn key(n: usize) -> SeriesKey {
    SeriesKey {
        group: "shop".into(),
        feature: FeatureName::new(&format!("f{n}")).unwrap(),
    }
}

fn point(n: i64) -> Usage {
    Usage {
        at_ms: EVENING + n * 15_000,
        dt_s: 15.0,
        cpu_percent: Some((n as f64).sqrt()),
        net_rx_bps: Some((n * n % 10_007) as f64 / 5.0),
        ..Usage::default()
    }
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

/// A file system in an image file.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, at: &Path) -> Result<Self, String> {
        let done = Command::new("mount")
            .args(["-o", "loop"])
            .arg(image)
            .arg(at)
            .output();
        let done = done.map_err(|e| e.to_string())?;
        if done.status.success() {
            Ok(Self(at.to_owned()))
        } else {
            Err(String::from_utf8_lossy(&done.stderr).trim().to_owned())
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn make_image(image: &Path) -> Result<(), String> {
    let file = fs::File::create(image).map_err(|e| e.to_string())?;
    file.set_len(96 << 20).map_err(|e| e.to_string())?;
    let done = Command::new("mkfs.ext4")
        .args(["-q", "-F"])
        .arg(image)
        .output();
    let done = done.map_err(|e| format!("mkfs.ext4: {e}"))?;
    done.status
        .success()
        .then_some(())
        .ok_or_else(|| String::from_utf8_lossy(&done.stderr).into_owned())
}

#[test]
fn a_power_cut_loses_nothing_acknowledged() {
    if let Ok(dir) = std::env::var("DROVER_TEST_DIR") {
        runtime().block_on(async {
            let h = open(Path::new(&dir));
            for n in 0.. {
                let tick = (0..SERIES).map(|k| (key(k), point(n))).collect();
                h.append(tick).await.unwrap();
                writeln!(std::io::stdout(), "ACKNOWLEDGED {n}").unwrap();
            }
        });
    }
    let base = tempfile::tempdir().unwrap();
    let (image, at) = (base.path().join("image"), base.path().join("disk"));
    fs::create_dir(&at).unwrap();
    let mounted = make_image(&image).and_then(|()| Mounted::new(&image, &at));
    let mounted = match mounted {
        Ok(m) => m,
        Err(e) => {
            println!("SKIPPED: an image cannot be mounted here ({e}); run as root");
            return;
        }
    };
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_power_cut_loses_nothing_acknowledged",
            "--nocapture",
        ])
        .env("DROVER_TEST_DIR", at.join("history"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let (tell, told) = std::sync::mpsc::channel();
    let stdout = child.stdout.take().unwrap();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some(n) = line.strip_prefix("ACKNOWLEDGED ") {
                let _ = tell.send(n.parse::<i64>().unwrap());
            }
        }
    });
    let mut images = Vec::new();
    let mut last = told.recv_timeout(Duration::from_secs(60)).unwrap();
    for round in 0..ROUNDS {
        std::thread::sleep(Duration::from_millis(150 + round * 97 % 400));
        // What was acknowledged before it stopped; what comes after is not asked for.
        last = told.try_iter().last().unwrap_or(last);
        kill(pid, Signal::SIGSTOP).unwrap();
        let copy = base.path().join(format!("image-{round}"));
        fs::copy(&image, &copy).unwrap();
        images.push((copy, last));
        kill(pid, Signal::SIGCONT).unwrap();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    drop(mounted);
    for (round, (image, last)) in images.iter().enumerate() {
        let _mounted = Mounted::new(image, &at).unwrap();
        runtime().block_on(async {
            let h = open(&at.join("history"));
            let problems = h.problems();
            for k in 0..SERIES {
                let found = h.range(&key(k), 0, i64::MAX, 100_000).await.unwrap();
                for n in 0..=*last {
                    let i = usize::try_from(n).unwrap();
                    assert_eq!(
                        found.get(i),
                        Some(&point(n)),
                        "round {round}: {n} of {last}: {problems:?} {:?}",
                        h.problems()
                    );
                }
            }
            // Rolling up begins where it was durable, and counts everything once.
            let now = point(*last).at_ms + 7_200_000;
            h.expire(now).await.unwrap();
            let query = Query {
                since_ms: 0,
                until_ms: i64::MAX,
                step_ms: Some(60_000),
                limit: 100_000,
            };
            let page = h.query(&key(0), query).await.unwrap();
            let covered: f64 = page.points.iter().map(Rollup::covered_s).sum();
            assert!(covered >= 15.0 * (*last + 1) as f64, "{covered} {last}");
            assert_eq!(h.problems(), Vec::<String>::new(), "round {round}");
            h.close().await;
        });
    }
    println!("{ROUNDS} power cuts, the last after {last} ticks of {SERIES} series");
    assert!(last > 50, "only {last} ticks: too few to show anything");
}
