//! What the forecasts are worth on traces of real machines: `make bench-forecast`.
//!
//! Reads the files of the directory in `DROVER_TRACES` (see the README there): `alibaba-2018-*`
//! (steps of 10 s), `google-2011-*` and `planetlab-*` (steps of 5 min). The series of a file are replayed
//! side by side, as a host's features would be; at many moments each is forecast from what was
//! before, with trees that learnt from all series so far, and compared with what came. Writes
//! `target/bench/forecast.json` and a table. `DROVER_BENCH_EVERY` takes only each n-th machine of
//! the large sets (default 10).
//!
//! - Error: mean absolute error of the median 15 minutes ahead, divided by that of the last step
//!   at the same moments (MASE; below 1 is better than the last value).
//! - Breach: the limit is the 90th percentile of the series. An event begins when the use passes
//!   the limit for the threshold's duration after it was not above. It was announced when a
//!   forecast breach stood 10 to 15 minutes before it began, while the use was not above the
//!   limit (recall). An announcement begins when a forecast breach stands where none stood
//!   before, below the limit; it came true when an
//!   event began within 20 minutes of it (precision). `chance` is the share of all moments below
//!   the limit that an event followed as soon: the precision of announcing at random.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use drover::feature::{Resource, Threshold};
use drover::forecast::{
    Forecast, Method, Pool, Series, Settings, TRAIN_EVERY_MS, forecast_breach, forecast_with,
};
use serde_json::{Value, json};

const AHEAD_MS: i64 = 900_000;
const LEVELS: [f64; 5] = [0.2, 0.5, 0.7, 0.8, 0.9];

/// A series of a trace.
struct Trace {
    step_ms: i64,
    values: Vec<Option<f64>>,
}

/// Sums over the series of a set.
#[derive(Default)]
struct Score {
    series: u64,
    forecasts: u64,
    error: f64,
    naive: f64,
    /// Per series: error divided by naive error.
    ratios: Vec<f64>,
    inside: u64,
    methods: BTreeMap<String, u64>,
    with_trees: u64,
    trainings: u64,
    training: Duration,
    levels: [Level; LEVELS.len()],
    chance: (u64, u64),
    micros: u128,
}

#[derive(Default, Clone, Copy)]
struct Level {
    events: u64,
    announced: u64,
    announcements: u64,
    true_ones: u64,
}

fn lines(path: &Path) -> Vec<String> {
    let mut child = Command::new("gzip")
        .arg("-dc")
        .arg(path)
        .stdout(Stdio::piped())
        .spawn()
        .expect("gzip is needed to read the traces");
    let mut text = String::new();
    let mut out = child.stdout.take().unwrap();
    out.read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success(), "{}", path.display());
    text.lines().skip(1).map(str::to_owned).collect()
}

fn numbers<'a>(cells: impl Iterator<Item = &'a str>) -> Vec<Option<f64>> {
    cells.map(|c| c.trim().parse().ok()).collect()
}

/// Machines as rows, one column a step.
fn planetlab(path: &Path, every: usize) -> Vec<Trace> {
    let rows = lines(path).into_iter().step_by(every);
    rows.map(|l| Trace {
        step_ms: 300_000,
        values: numbers(l.split(',').skip(1)),
    })
    .collect()
}

/// One row per machine and step; CPU and memory.
fn google(path: &Path, every: usize) -> Vec<Trace> {
    let mut of: BTreeMap<String, [Vec<Option<f64>>; 2]> = BTreeMap::new();
    for l in lines(path) {
        let mut cells = l.split(',');
        let vm = cells.next().unwrap().to_owned();
        let v = numbers(cells.skip(1));
        let both = of.entry(vm).or_default();
        both[0].push(v[0]);
        both[1].push(v[1]);
    }
    let vms = of.into_values().step_by(every).flatten();
    vms.map(|values| Trace {
        step_ms: 300_000,
        values,
    })
    .collect()
}

/// One row per step; five resources.
fn alibaba(path: &Path) -> Vec<Trace> {
    let rows: Vec<Vec<Option<f64>>> = lines(path).iter().map(|l| numbers(l.split(','))).collect();
    (0..5)
        .map(|c| Trace {
            step_ms: 10_000,
            values: rows.iter().map(|r| r.get(c).copied().flatten()).collect(),
        })
        .collect()
}

fn percentile(values: &[Option<f64>], level: f64) -> f64 {
    let mut v: Vec<f64> = values.iter().flatten().copied().collect();
    v.sort_by(f64::total_cmp);
    v[((v.len() - 1) as f64 * level) as usize]
}

/// Mean of the points whose intervals end in `(from, to]` milliseconds.
fn mean(t: &Trace, from: i64, to: i64) -> Option<f64> {
    let range = (from / t.step_ms) as usize..((to / t.step_ms) as usize).min(t.values.len());
    let known: Vec<f64> = t.values.get(range)?.iter().flatten().copied().collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}

/// Moments (ends of intervals, ms) when an event begins.
fn events(t: &Trace, limit: f64, for_s: f64) -> Vec<i64> {
    let needed = ((for_s * 1000.0 / t.step_ms as f64).ceil() as usize).max(1);
    let mut found = Vec::new();
    let (mut run, mut below, mut active) = (0, needed, false);
    for (i, v) in t.values.iter().enumerate() {
        let Some(v) = v else { continue };
        if *v > limit {
            run += 1;
            if run == needed && !active {
                active = true;
                // It began with the first interval above.
                found.push((i + 1 - needed).cast_signed() as i64 * t.step_ms);
            }
            below = 0;
        } else {
            below += 1;
            run = 0;
            // As a measured breach, it ends after as long.
            if below >= needed {
                active = false;
            }
        }
    }
    found
}

/// One series while it is replayed.
struct Replay<'a> {
    trace: &'a Trace,
    series: Series,
    threshold: Threshold,
    events: Vec<i64>,
    error: f64,
    naive: f64,
    /// Moments at which a forecast breach stood while the use was not above the limit.
    stood: [Vec<i64>; LEVELS.len()],
    /// Whether one stood at the last moment.
    before: [bool; LEVELS.len()],
}

/// Whether steps are of minutes; first moment and distance of moments, milliseconds.
fn moments(step_ms: i64) -> (bool, i64, i64) {
    if step_ms >= 300_000 {
        (true, 24 * step_ms, step_ms)
    } else {
        (false, 3_600_000, 60_000)
    }
}

impl<'a> Replay<'a> {
    /// `None` for a series that has hardly a value, or never passes its limit.
    fn of(trace: &'a Trace) -> Option<Self> {
        if trace.values.iter().flatten().count() < 100 {
            return None;
        }
        let limit = percentile(&trace.values, 0.9);
        if percentile(&trace.values, 1.0) <= limit {
            return None;
        }
        let (long, ..) = moments(trace.step_ms);
        let for_s = if long { 300.0 } else { 60.0 };
        Some(Self {
            trace,
            series: if long {
                Series::fixed(trace.step_ms)
            } else {
                Series::new(trace.step_ms)
            },
            threshold: Threshold {
                resource: Resource::Cpu,
                limit,
                for_s,
            },
            events: events(trace, limit, for_s),
            error: 0.0,
            naive: 0.0,
            stood: Default::default(),
            before: [false; LEVELS.len()],
        })
    }

    fn begins_within(&self, from: i64, to: i64) -> bool {
        self.events.iter().any(|e| *e >= from && *e <= to)
    }

    /// Forecasts at one moment, the step before which is number `i`.
    fn moment(&mut self, i: usize, now: i64, pool: &Pool, settings: &Settings, score: &mut Score) {
        let t = self.trace;
        if now + AHEAD_MS > t.step_ms * t.values.len().cast_signed() as i64 {
            return;
        }
        let begun = Instant::now();
        let f = forecast_with(&self.series, Some(pool), settings, now);
        score.micros += begun.elapsed().as_micros();
        let Ok(f) = f else { return };
        compare(t, &f, now, score, &mut self.error, &mut self.naive);
        let below = t.values[i].is_some_and(|v| v <= self.threshold.limit);
        if below {
            score.chance.1 += 1;
            score.chance.0 += u64::from(self.begins_within(now, now + AHEAD_MS + 300_000));
        }
        let all = [(Resource::Cpu, f)];
        for (l, level) in LEVELS.iter().enumerate() {
            let found = forecast_breach(&[self.threshold], &all, *level, 900.0, now);
            let stands = !found.is_empty();
            if stands && below {
                self.stood[l].push(now);
            }
            if stands && !self.before[l] && below {
                let c = &mut score.levels[l];
                c.announcements += 1;
                c.true_ones += u64::from(self.begins_within(now, now + AHEAD_MS + 300_000));
            }
            self.before[l] = stands;
        }
    }

    fn end(&self, warm_ms: i64, score: &mut Score) {
        for e in self.events.iter().filter(|e| **e >= warm_ms + AHEAD_MS) {
            for (l, stood) in self.stood.iter().enumerate() {
                let c = &mut score.levels[l];
                c.events += 1;
                let told = stood.iter().any(|n| (600_000..=900_000).contains(&(e - n)));
                c.announced += u64::from(told);
            }
        }
        score.series += 1;
        score.error += self.error;
        score.naive += self.naive;
        if self.naive > 0.0 {
            score.ratios.push(self.error / self.naive);
        }
    }
}

/// The series of a file side by side; all have steps of one length.
fn replay(traces: &[Trace], score: &mut Score) {
    let mut all: Vec<Replay<'_>> = traces.iter().filter_map(Replay::of).collect();
    let Some(step_ms) = all.first().map(|r| r.trace.step_ms) else {
        return;
    };
    let (_, warm_ms, stride_ms) = moments(step_ms);
    let settings = Settings {
        horizon_ms: AHEAD_MS + 300_000,
        min_points: 12,
        ..Settings::default()
    };
    let mut pool = Pool::default();
    let steps = all.iter().map(|r| r.trace.values.len()).max().unwrap_or(0);
    for i in 0..steps {
        let now = (i.cast_signed() as i64 + 1) * step_ms;
        for r in &mut all {
            if let Some(Some(v)) = r.trace.values.get(i) {
                r.series.push(now, *v);
            }
        }
        if now < warm_ms || now % stride_ms != 0 {
            continue;
        }
        if now % TRAIN_EVERY_MS == 0 {
            let begun = Instant::now();
            pool = pool.trained(all.iter().map(|r| &r.series), &settings, &mut || true);
            score.training += begun.elapsed();
            score.trainings += 1;
        }
        for r in &mut all {
            r.moment(i, now, &pool, &settings, score);
        }
    }
    for r in &all {
        r.end(warm_ms, score);
    }
}

fn compare(t: &Trace, f: &Forecast, now: i64, score: &mut Score, error: &mut f64, naive: &mut f64) {
    let Some(step) = f.steps.iter().find(|s| s.at_ms >= now + AHEAD_MS) else {
        return;
    };
    // What the last step was, and what the step in question became.
    let last = mean(t, f.from_ms - f.step_ms, f.from_ms);
    let came = mean(t, step.at_ms - f.step_ms, step.at_ms);
    if let (Some(last), Some(came)) = (last, came) {
        *error += (step.p50 - came).abs();
        *naive += (last - came).abs();
        score.inside += u64::from(came >= step.p10 && came <= step.p90);
        score.forecasts += 1;
        let trees = matches!(f.method, Method::Trees | Method::Mean { trees: true, .. });
        score.with_trees += u64::from(trees);
        let name = f.method.to_string();
        let name = name.split(" of ").next().unwrap_or_default().to_owned();
        *score.methods.entry(name).or_default() += 1;
    }
}

fn ratio(a: u64, b: u64) -> Value {
    if b == 0 {
        Value::Null
    } else {
        json!((a as f64 / b as f64 * 1000.0).round() / 1000.0)
    }
}

fn report(name: &str, s: &mut Score) -> Value {
    s.ratios.sort_by(f64::total_cmp);
    let median = s.ratios.get(s.ratios.len() / 2).copied();
    let mase = s.error / s.naive;
    println!(
        "{name:<22} {:>6} series {:>7} forecasts  MASE {mase:.3} (median of series {:.3})  80 % interval holds {:.1} %  {:.2} ms each  trees in {:.0} %",
        s.series,
        s.forecasts,
        median.unwrap_or(f64::NAN),
        100.0 * s.inside as f64 / s.forecasts.max(1) as f64,
        s.micros as f64 / 1000.0 / s.forecasts.max(1) as f64,
        100.0 * s.with_trees as f64 / s.forecasts.max(1) as f64,
    );
    let (c, of) = s.chance;
    let levels: Vec<Value> = LEVELS
        .iter()
        .zip(&s.levels)
        .map(|(level, l)| {
            println!(
                "    quantile {level}: recall {:.3} of {} events, precision {:.3} of {} announcements (chance {:.3})",
                l.announced as f64 / l.events.max(1) as f64,
                l.events,
                l.true_ones as f64 / l.announcements.max(1) as f64,
                l.announcements,
                c as f64 / of.max(1) as f64,
            );
            json!({
                "quantile": level, "events": l.events, "recall": ratio(l.announced, l.events),
                "announcements": l.announcements, "precision": ratio(l.true_ones, l.announcements),
            })
        })
        .collect();
    json!({
        "series": s.series, "forecasts": s.forecasts, "mase_15min": mase,
        "mase_15min_median_of_series": median,
        "interval_80_holds": ratio(s.inside, s.forecasts), "methods": s.methods,
        "ms_per_forecast": s.micros as f64 / 1000.0 / s.forecasts.max(1) as f64,
        "with_trees": ratio(s.with_trees, s.forecasts),
        "s_per_training": s.training.as_secs_f64() / s.trainings.max(1) as f64,
        "breaches": levels, "precision_by_chance": ratio(c, of),
    })
}

fn main() -> ExitCode {
    let Some(dir) = std::env::var_os("DROVER_TRACES").map(PathBuf::from) else {
        println!("SKIPPED: DROVER_TRACES is not set; point it at the directory of traces");
        return ExitCode::SUCCESS;
    };
    let every = std::env::var("DROVER_BENCH_EVERY").ok();
    let every: usize = every.and_then(|e| e.parse().ok()).unwrap_or(10).max(1);
    let Ok(list) = std::fs::read_dir(&dir) else {
        println!("SKIPPED: DROVER_TRACES={} cannot be read", dir.display());
        return ExitCode::SUCCESS;
    };
    let mut files: Vec<PathBuf> = list.map(|e| e.unwrap().path()).collect();
    files.sort();
    let mut scores: BTreeMap<&str, Score> = BTreeMap::new();
    for path in files {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let (set, traces) = match name.as_str() {
            n if !n.ends_with(".csv.gz") => continue,
            n if n.starts_with("planetlab") => ("planetlab-2011", planetlab(&path, every)),
            n if n.starts_with("google-2011") => ("google-2011", google(&path, every)),
            n if n.starts_with("alibaba-2018") => ("alibaba-2018", alibaba(&path)),
            _ => continue,
        };
        let score = scores.entry(set).or_default();
        replay(&traces, score);
    }
    if scores.is_empty() {
        println!("SKIPPED: no traces in {}", dir.display());
        return ExitCode::SUCCESS;
    }
    let sets: BTreeMap<&str, Value> = scores.iter_mut().map(|(n, s)| (*n, report(n, s))).collect();
    let count = scores.len() as f64;
    let overall = scores.values().map(|s| s.error / s.naive).sum::<f64>() / count;
    println!("overall: MASE {overall:.3} (mean of the sets)");
    let all = json!({
        "ahead_s": AHEAD_MS / 1000, "every": every, "sets": sets, "overall_mase_15min": overall,
    });
    let out = Path::new("target/bench");
    std::fs::create_dir_all(out).unwrap();
    let text = serde_json::to_string_pretty(&all).unwrap();
    std::fs::write(out.join("forecast.json"), text + "\n").unwrap();
    ExitCode::SUCCESS
}
