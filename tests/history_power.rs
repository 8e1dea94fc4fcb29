//! The history when the power goes: images of a file system taken under a running writer, as a
//! disk would have them, and opened again.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

mod power_support;

use std::path::Path;

use drover::feature::FeatureName;
use drover::history::{History, Options, Query, SeriesKey};
use drover::rollup::Rollup;
use drover::usage::Usage;
use power_support::{Cuts, ROUNDS, acknowledge};

/// 2025-01-31T21:50:00Z: the writer crosses hours and partitions.
const EVENING: i64 = 1_738_360_200_000;
const SERIES: usize = 12;

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

#[test]
fn a_power_cut_loses_nothing_acknowledged() {
    if let Some(dir) = power_support::writer() {
        runtime().block_on(async {
            let h = open(&dir);
            for n in 0.. {
                let tick = (0..SERIES).map(|k| (key(k), point(n))).collect();
                h.append(tick).await.unwrap();
                acknowledge(n);
            }
        });
    }
    let name = "a_power_cut_loses_nothing_acknowledged";
    let Some(cuts) = Cuts::of(name, 96, |round| 150 + round * 97 % 400) else {
        return;
    };
    for (round, (image, last)) in cuts.images.iter().enumerate() {
        let (_mounted, dir) = cuts.look(image);
        runtime().block_on(async {
            let h = open(&dir);
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
    let last = cuts.last();
    println!("{ROUNDS} power cuts, the last after {last} ticks of {SERIES} series");
    assert!(last > 50, "only {last} ticks: too few to show anything");
}
