//! Real series, played by many features.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use drover::columns::{self, COLUMNS, Column};
use drover::feature::FeatureName;
use drover::usage::Usage;

/// Milliseconds between two values.
pub const STEP_MS: i64 = 10_000;
/// Six hours.
pub const TICKS: usize = 2160;
/// 2026-01-05T00:00:00Z, the start of a partition.
const START_MS: i64 = 1_767_571_200_000;
/// Features per source.
const FEATURES: usize = 200;

pub fn end_ms() -> i64 {
    START_MS + i64::try_from(TICKS).unwrap() * STEP_MS
}

/// A feature that plays points from some moment on, round and round.
#[derive(Debug, Clone)]
pub struct Feature {
    pub name: FeatureName,
    points: Arc<Vec<Usage>>,
    from: usize,
}

impl Feature {
    pub fn point(&self, tick: usize) -> Usage {
        let mut u = self.points[(self.from + tick) % self.points.len()];
        u.at_ms = START_MS + i64::try_from(tick).unwrap() * STEP_MS;
        u
    }

    /// Columns with values.
    pub fn columns(&self) -> Vec<&'static Column> {
        let known = |c: &&Column| (0..TICKS).any(|t| (c.get)(&self.point(t)).is_some());
        COLUMNS.iter().filter(known).collect()
    }

    pub fn samples(&self) -> u64 {
        let of = |t| {
            let u = self.point(t);
            COLUMNS.iter().filter(|c| (c.get)(&u).is_some()).count() as u64
        };
        (0..TICKS).map(of).sum()
    }
}

fn features(prefix: &str, sources: &[Arc<Vec<Usage>>]) -> Vec<Feature> {
    if sources.is_empty() {
        return Vec::new();
    }
    (0..FEATURES)
        .map(|n| {
            let points = &sources[n % sources.len()];
            let turns = FEATURES.div_ceil(sources.len());
            Feature {
                name: FeatureName::new(&format!("{prefix}-{n}")).unwrap(),
                points: Arc::clone(points),
                from: n / sources.len() * points.len() / turns,
            }
        })
        .collect()
}

fn unpacked(path: &Path) -> String {
    let out = Command::new("zcat")
        .arg("-f")
        .arg(path)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    String::from_utf8(out.stdout).unwrap()
}

/// The Alibaba cluster's days: CPU, memory, network in and out, disk, as they are.
pub fn alibaba(dir: &Path) -> Vec<Feature> {
    let mut paths: Vec<_> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.to_string_lossy().contains("alibaba-2018-"))
        .collect();
    paths.sort();
    let names = ["cpu", "memory", "net_rx", "net_tx", "disk_read"];
    let of = names.map(|n| columns::by_name(n).unwrap());
    let days: Vec<Arc<Vec<Usage>>> = paths
        .iter()
        .map(|path| {
            let text = unpacked(path);
            let rows = text.lines().skip(1).map(|line| {
                let mut u = Usage {
                    dt_s: 10.0,
                    ..Usage::default()
                };
                for (c, cell) in of.iter().zip(line.split(',')) {
                    (c.set)(&mut u, cell.parse().ok());
                }
                u
            });
            Arc::new(rows.collect())
        })
        .collect();
    features("alibaba", &days)
}

/// What `tests/cluster/record.py` wrote: a list of points per feature, as `drover history` gives.
pub fn recording(path: &Path) -> Vec<Feature> {
    if !path.exists() {
        return Vec::new();
    }
    let text = unpacked(path);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let sources: Vec<Arc<Vec<Usage>>> = json
        .as_object()
        .unwrap()
        .values()
        .map(|rows| {
            let rows = rows.as_array().unwrap().iter().map(|row| {
                let mut u = Usage {
                    dt_s: row["interval_s"].as_f64().unwrap(),
                    ..Usage::default()
                };
                for c in COLUMNS {
                    (c.set)(&mut u, row[c.name].as_f64());
                }
                u
            });
            Arc::new(rows.collect::<Vec<Usage>>())
        })
        .filter(|rows| rows.len() > 10)
        .collect();
    features("cluster", &sources)
}
