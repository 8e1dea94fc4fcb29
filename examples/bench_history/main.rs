//! Drover's history beside Prometheus, on the same real series: `make bench-history`.
//!
//! Series: the files `alibaba-2018-*` in `DROVER_TRACES` (five columns, a value each 10 s), and a
//! recording of the test cluster (`tests/cluster/record.py` writes `target/bench/recording.json`;
//! without it the one in `tests/bench/recording.json.gz` is played). 200 features play each of them:
//! every feature begins at another moment and goes round, so that the values are real and no two series are the same.
//! Six hours in steps of 10 s, as Drover keeps them as metered.
//!
//! - Ingest: one tick of all features is one append to Drover and one remote-write request to
//!   Prometheus (its own protocol, two connections, each half of the features); the requests are
//!   encoded beforehand and not counted. Drover has made a tick durable when it answers, Prometheus
//!   has not; up to 256 ticks wait for an answer.
//! - Bytes: Drover's `raw` tier once all is packed (`du`, with the marks); its rollups are told
//!   beside. Prometheus' snapshot of its database, one block of all (no write-ahead log).
//! - Range: two hours of one column of one feature, as points in JSON. Prometheus over HTTP on
//!   loopback from its memory, Drover through its handle from packed partitions on disk.
//! - Scan: every series whole, feature by feature, as JSON.
//!
//! Writes `target/bench/history.json` and a table.
#![allow(missing_docs, clippy::unwrap_used)]

mod prometheus;
mod series;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use drover::columns::{COLUMNS, Column};
use drover::history::{History, Options, Query, SeriesKey};
use drover::usage::Usage;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};

use series::{Feature, STEP_MS, TICKS};

/// Ticks on their way at once: as many as Drover makes durable together at most.
const AHEAD: usize = 256;
const QUERIES: usize = 400;
const RANGE_MS: i64 = 2 * 3_600_000;

/// One question of the range measurement.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    pub feature: usize,
    pub column: &'static Column,
    pub until_ms: i64,
}

#[derive(Debug, Default)]
pub struct Measured {
    pub bytes: u64,
    pub ingest_s: f64,
    pub settle_s: f64,
    pub range_ms: Vec<f64>,
    pub scan_s: f64,
    pub scanned: u64,
    pub more: Value,
}

impl Measured {
    fn json(mut self, samples: u64) -> Value {
        self.range_ms.sort_by(f64::total_cmp);
        let at = |q: f64| self.range_ms[((self.range_ms.len() - 1) as f64 * q) as usize];
        json!({
            "bytes_per_sample": self.bytes as f64 / samples as f64,
            "ingest_per_s": samples as f64 / self.ingest_s,
            "range_p50_ms": at(0.5),
            "range_p99_ms": at(0.99),
            "scan_per_s": self.scanned as f64 / self.scan_s,
            "settle_s": self.settle_s,
            "more": self.more,
        })
    }
}

/// Bytes that the files below a directory take on disk.
pub fn du(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .map(|e| match e.metadata() {
            Ok(m) if m.is_dir() => du(&e.path()),
            Ok(m) => m.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

fn key(f: &Feature) -> SeriesKey {
    SeriesKey {
        group: "bench".into(),
        feature: f.name.clone(),
    }
}

async fn drover(features: &[Feature], questions: &[Question], dir: &Path) -> Measured {
    let options = Options {
        raw_hours: 24,
        floor_mib: 0,
        interval_ms: STEP_MS,
        ..Options::default()
    };
    let mut m = Measured::default();
    let h = History::open(dir, options).unwrap();
    let keys: Vec<SeriesKey> = features.iter().map(key).collect();
    for part in (0..TICKS).collect::<Vec<_>>().chunks(AHEAD) {
        let ticks: Vec<Vec<(SeriesKey, Usage)>> = part
            .iter()
            .map(|t| {
                let all = keys.iter().zip(features);
                all.map(|(k, f)| (k.clone(), f.point(*t))).collect()
            })
            .collect();
        let at = Instant::now();
        let mut waiting: FuturesUnordered<_> = ticks.into_iter().map(|t| h.append(t)).collect();
        while let Some(done) = waiting.next().await {
            done.unwrap();
        }
        m.ingest_s += at.elapsed().as_secs_f64();
    }
    let at = Instant::now();
    h.expire(series::end_ms() + 120_000).await.unwrap();
    m.settle_s = at.elapsed().as_secs_f64();
    m.bytes = du(&dir.join("raw"));
    m.more = json!({ "rollups_bytes": du(&dir.join("1m")) + du(&dir.join("15m")) });
    assert_eq!(h.problems(), Vec::<String>::new());
    for q in questions {
        let at = Instant::now();
        let query = Query {
            since_ms: q.until_ms - RANGE_MS,
            until_ms: q.until_ms,
            step_ms: Some(0),
            limit: 10_000,
        };
        let columns = std::slice::from_ref(q.column);
        let page = h
            .query_columns(&keys[q.feature], query, columns)
            .await
            .unwrap();
        let values: Vec<(i64, Option<f64>)> = page
            .points
            .iter()
            .map(|p| (p.mean.at_ms, (q.column.get)(&p.mean)))
            .collect();
        let text = serde_json::to_string(&values).unwrap();
        m.range_ms.push(at.elapsed().as_secs_f64() * 1e3);
        assert!(text.len() > 1000);
    }
    let at = Instant::now();
    for k in &keys {
        let points = h.range(k, 0, i64::MAX, 10_000).await.unwrap();
        assert!(!serde_json::to_string(&points).unwrap().is_empty());
        for c in COLUMNS {
            m.scanned += points.iter().filter(|p| (c.get)(p).is_some()).count() as u64;
        }
    }
    m.scan_s = at.elapsed().as_secs_f64();
    // What came out is what went in.
    for (k, f) in keys.iter().zip(features).step_by(17) {
        let points = h.range(k, 0, i64::MAX, 10_000).await.unwrap();
        let expected: Vec<Usage> = (0..TICKS).map(|t| f.point(t)).collect();
        assert!(points == expected, "{k} came back otherwise");
    }
    h.close().await;
    m
}

fn questions(features: &[Feature]) -> Vec<Question> {
    let mut seed = 5u64;
    let mut random = |n: usize| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % n
    };
    (0..QUERIES)
        .map(|_| {
            let feature = random(features.len());
            let known = features[feature].columns();
            Question {
                feature,
                column: known[random(known.len())],
                until_ms: series::end_ms() - i64::try_from(random(4 * 3600)).unwrap() * 1000,
            }
        })
        .collect()
}

fn run(features: &[Feature]) -> Value {
    let questions = questions(features);
    let samples: u64 = features.iter().map(Feature::samples).sum();
    let series: usize = features.iter().map(|f| f.columns().len()).sum();
    let dir = Path::new("target/bench/history-data");
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let ours = runtime.block_on(drover(features, &questions, &dir.join("drover")));
    assert_eq!(ours.scanned, samples, "Drover lost samples");
    let theirs = prometheus::measure(features, &questions, &dir.join("prometheus"));
    assert_eq!(theirs.scanned, samples, "Prometheus lost samples");
    let _ = fs::remove_dir_all(dir);
    json!({
        "samples": samples,
        "series": series,
        "drover": ours.json(samples),
        "prometheus": theirs.json(samples),
    })
}

fn show(name: &str, v: &Value) {
    println!("\n{name}: {} samples, {} series", v["samples"], v["series"]);
    for key in [
        "bytes_per_sample",
        "ingest_per_s",
        "range_p50_ms",
        "range_p99_ms",
        "scan_per_s",
    ] {
        let (a, b) = (v["drover"][key].as_f64(), v["prometheus"][key].as_f64());
        let (a, b) = (a.unwrap_or(f64::NAN), b.unwrap_or(f64::NAN));
        println!(
            "{key:18} drover {a:12.3}   prometheus {b:12.3}   {:.2}",
            a / b
        );
    }
}

fn main() -> ExitCode {
    let traces = std::env::var("DROVER_TRACES").unwrap_or_else(|_| "../shared/traces".into());
    let alibaba = series::alibaba(Path::new(&traces));
    // One's own, or the one that came with the sources.
    let paths = [
        "target/bench/recording.json",
        "tests/bench/recording.json.gz",
    ];
    let path = paths.map(Path::new).into_iter().find(|p| p.exists());
    let recording = path.map(series::recording).unwrap_or_default();
    if alibaba.is_empty() {
        println!("SKIPPED: no alibaba-2018-* in {traces}; set DROVER_TRACES");
        return ExitCode::SUCCESS;
    }
    if recording.is_empty() {
        println!("no recording of the cluster (tests/cluster/record.py): the traces alone");
    }
    let all: Vec<Feature> = alibaba.iter().chain(&recording).cloned().collect();
    let mut report = run(&all);
    show("all", &report);
    if !recording.is_empty() {
        for (name, part) in [("alibaba", &alibaba), ("recording", &recording)] {
            let v = run(part);
            show(name, &v);
            report["by_source"][name] = v;
        }
    }
    fs::create_dir_all("target/bench").unwrap();
    let text = serde_json::to_string_pretty(&report).unwrap();
    fs::write("target/bench/history.json", text + "\n").unwrap();
    println!("\ntarget/bench/history.json");
    ExitCode::SUCCESS
}
