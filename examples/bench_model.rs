//! Training the affinity model: `make bench-model`, which compares it with other libraries.
//!
//! Fits 20,000 rows of 40 inputs, made up but the same each time (5 % missing, noise), on one
//! thread; writes the rows as CSV for the others. Then meters once a second beside a training that
//! never ends, all on one core, and reports how far a sample is off its time at worst.
//! Writes into the directory given as argument.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "shared/world.rs"]
mod world;

use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use drover::affinity::{Inputs, MISSING, Model, Observation, Params, Row, WIDTH};
use drover::daemon::affinity::train_apart;
use drover::feature::FeatureName;
use drover::usage::Usage;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// Rows to train on, and to judge by.
const TRAIN: usize = 20_000;
const TEST: usize = 5_000;
/// Samples taken beside the training, one a second.
const SAMPLES: u32 = 30;

struct Random(u64);
impl Random {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut h = self.0;
        h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((h ^ (h >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}

/// Quality by interactions of a dozen inputs, bends and steps, noise; the other inputs say nothing.
fn rows() -> Vec<Row> {
    let mut r = Random(42);
    (0i64..)
        .take(TRAIN + TEST)
        .map(|at_ms| {
            let x: Inputs = std::array::from_fn(|_| r.unit() as f32);
            let v = |n: usize| f64::from(x[n]);
            let host = if v(0) > 0.6 { v(1) } else { 1.0 - v(2) };
            let load = (v(3) + v(4) - 0.8).max(0.0).powi(2);
            let pair = (v(5) - 0.5) * (v(6) - 0.5);
            let wave = (6.0 * v(7)).sin() * v(8);
            let step = if v(9) > 0.7 && v(10) < 0.4 { 0.25 } else { 0.0 };
            let y = 0.75 + 0.12 * host - 0.2 * load + 0.3 * pair + 0.08 * wave
                - step
                - 0.1 * v(11) * v(12)
                + 0.03 * r.normal();
            let x = x.map(|v| if r.unit() < 0.05 { MISSING } else { v });
            Row {
                at_ms,
                host: "h".into(),
                feature: "f".into(),
                group: "default".into(),
                x,
                y: y.clamp(0.0, 1.0) as f32,
            }
        })
        .collect()
}

fn csv(path: &Path, rows: &[Row]) {
    let mut text = String::new();
    for r in rows {
        let _ = write!(text, "{}", r.y);
        for v in r.x {
            text.push(',');
            if v != MISSING {
                let _ = write!(text, "{v}");
            }
        }
        text.push('\n');
    }
    std::fs::write(path, text).unwrap();
}

fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .unwrap()
        .into()
}

fn r2(model: &Model, rows: &[Row]) -> f64 {
    let n = rows.len() as f64;
    let mean = rows.iter().map(|r| f64::from(r.y)).sum::<f64>() / n;
    let (mut left, mut all) = (0.0, 0.0);
    for r in rows {
        left += (model.predict(&r.x).unwrap() - f64::from(r.y)).powi(2);
        all += (f64::from(r.y) - mean).powi(2);
    }
    1.0 - left / all
}

/// Worst distance of a sample from its time, seconds, while a model is trained over and over.
fn jitter() -> f64 {
    // One core for all of it.
    let mine = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let first = (0..CpuSet::count()).find(|c| mine.is_set(*c).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(first.unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let affinity = Arc::new(Mutex::new(world::affinity(20_000)));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (trainer, ended) = (Arc::clone(&affinity), Arc::clone(&stop));
    let worst = runtime.block_on(async move {
        let training = tokio::spawn(async move {
            let mut trainings = 0;
            while !ended.load(Ordering::Relaxed) {
                let snapshot = trainer.lock().unwrap().snapshot();
                let answer = train_apart(snapshot, Duration::from_secs(5), 1).unwrap();
                let trained = answer.await.unwrap().unwrap();
                trainer.lock().unwrap().adopt(trained);
                trainings += 1;
            }
            trainings
        });
        let view = world::view(1);
        let host = &view.hosts[0];
        let every = Duration::from_secs(1);
        let begin = tokio::time::Instant::now() + every;
        let mut tick = tokio::time::interval_at(begin, every);
        let mut worst = 0.0f64;
        for n in 0..SAMPLES {
            tick.tick().await;
            let late = Instant::now().duration_since((begin + every * n).into_std());
            worst = worst.max(late.as_secs_f64());
            // What a frame of a guest with its features costs.
            for i in &host.instances {
                for f in &i.features {
                    let name: &FeatureName = &f.spec.name;
                    let usage = Usage {
                        at_ms: 1000 * i64::from(n),
                        dt_s: 1.0,
                        cpu_percent: Some(50.0),
                        psi_cpu_percent: Some(3.0),
                        ..Usage::default()
                    };
                    affinity.lock().unwrap().observe(&Observation {
                        host,
                        domain: &i.domain,
                        feature: name,
                        usage: &usage,
                        steal_percent: None,
                    });
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        let trainings: u32 = training.await.unwrap();
        assert!(trainings > 1, "the training ran all the time");
        worst
    });
    sched_setaffinity(Pid::from_raw(0), &mine).unwrap();
    worst
}

fn main() {
    let dir = std::env::args().nth(1).unwrap_or("target/bench".into());
    let dir = Path::new(&dir);
    std::fs::create_dir_all(dir).unwrap();
    assert_eq!(WIDTH, 40);
    let rows = rows();
    let (train, test) = rows.split_at(TRAIN);
    csv(&dir.join("model-train.csv"), train);
    csv(&dir.join("model-test.csv"), test);
    let refs: Vec<&Row> = train.iter().collect();
    let (fit, validation) = refs.split_at(TRAIN * 9 / 10);
    let begin = cpu();
    let model = Model::fit(fit, validation, &Params::default(), 1, &mut || true).unwrap();
    let fit_cpu_s = cpu().saturating_sub(begin).as_secs_f64();
    let json = serde_json::json!({
        "drover": {"fit_cpu_s": fit_cpu_s, "r2": r2(&model, test), "trees": model.trees()},
        "meter_jitter_percent": 100.0 * jitter(),
        "rows": TRAIN,
        "inputs": WIDTH,
    });
    let text = serde_json::to_string_pretty(&json).unwrap();
    std::fs::write(dir.join("model-drover.json"), format!("{text}\n")).unwrap();
    println!("{text}");
}
