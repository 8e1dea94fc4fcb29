//! Drover's placement beside other policies on traces of real machines: `make bench-placement`.
//!
//! Reads `planetlab-*.csv.gz` and `google-2011-*.csv.gz` in the directory in `DROVER_TRACES`, and
//! `target/bench/forecast.json`, which `bench_forecast` wrote before. Writes
//! `target/bench/placement.json` and a table; without traces it skips.
//!
//! - Every VM of a trace is a feature that wants what the trace says, of one CPU; hosts have eight.
//! - Hosts: as many that the busiest step takes 80 % of all CPUs; fewer, one by one, until doing
//!   nothing overloads hosts for 1 % of the time, as otherwise there is nothing to do. All policies
//!   have the same hosts.
//! - The first hour is only looked at. Each figure is the mean over `SEEDS` first placements.
//! - Baselines have the parameters with which each did best on the PlanetLab day of 3 March 2011;
//!   all parameters of Drover are its defaults, that of `decision.relieve` is true. `best_baseline` is the one with the least violation.
#![allow(missing_docs, clippy::unwrap_used)]

mod affinity;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use drover::simulate::{Choice, Outcome, Scale, Setup, Trace, World, compare};
use serde_json::{Map, Value, json};

const SEEDS: u64 = 3;
const HOST_CPUS: f64 = 8.0;
/// SLATAH of doing nothing below which hosts are taken away.
const TROUBLE: f64 = 0.01;

fn read(path: &Path) -> String {
    let mut text = String::new();
    let file = std::fs::File::open(path).unwrap();
    flate2::read::MultiGzDecoder::new(file)
        .read_to_string(&mut text)
        .unwrap();
    text
}

fn setup(hosts: usize, seed: u64) -> Setup {
    Setup {
        hosts,
        host_cpus: HOST_CPUS,
        seed,
        ..Setup::default()
    }
}

fn run(trace: &Trace, hosts: usize, choices: &[Choice]) -> Vec<Outcome> {
    let begun = Instant::now();
    let mut sums = vec![Outcome::default(); choices.len()];
    for seed in 1..=SEEDS {
        let world = World::new(trace, setup(hosts, seed)).unwrap();
        let mut clock = || begun.elapsed().as_nanos() as u64;
        for (sum, (_, o)) in sums.iter_mut().zip(compare(&world, choices, &mut clock)) {
            sum.violation_s += o.violation_s / SEEDS as f64;
            sum.moving_s += o.moving_s / SEEDS as f64;
            sum.slatah += o.slatah / SEEDS as f64;
            sum.pdm += o.pdm / SEEDS as f64;
            sum.spread += o.spread / SEEDS as f64;
            sum.decision_ns += o.decision_ns / SEEDS;
            sum.decision_max_ns = sum.decision_max_ns.max(o.decision_max_ns);
            // Whole numbers; divided below.
            sum.moves += o.moves;
            sum.moves_without_help += o.moves_without_help;
        }
    }
    sums
}

fn hosts(trace: &Trace) -> usize {
    let mut n = Setup::hosts_for(trace, HOST_CPUS);
    while n > 2 && run(trace, n, &[Choice::Nothing])[0].slatah < TROUBLE {
        n -= 1;
    }
    n
}

fn mean(n: u64) -> f64 {
    n as f64 / SEEDS as f64
}

/// A policy's figures summed over traces.
#[derive(Default, Clone)]
struct Total {
    violation_s: f64,
    moves: f64,
}

fn ratio(a: f64, b: f64) -> Value {
    if b > 0.0 { json!(a / b) } else { Value::Null }
}

/// Drover beside the baseline with the least violation.
fn verdict(of: &[(Choice, Total)]) -> Value {
    let drover = &of.iter().find(|c| c.0 == Choice::Drover).unwrap().1;
    let baselines = of.iter().filter(|c| c.0.is_baseline());
    let best = baselines.min_by(|a, b| a.1.violation_s.total_cmp(&b.1.violation_s));
    let (name, best) = best.unwrap();
    json!({
        "best_baseline": name.to_string(),
        "violation_of_best": ratio(drover.violation_s, best.violation_s),
        "moves_of_best": ratio(drover.moves, best.moves),
    })
}

fn trace(name: &str, path: &Path, totals: &mut [(Choice, Total)]) -> Value {
    let trace = Trace::parse([(name, read(path).as_str())], &Scale::default()).unwrap();
    let hosts = hosts(&trace);
    let all = Choice::ALL;
    let outcomes = run(&trace, hosts, &all);
    println!("{name}: {} features on {hosts} hosts", trace.features.len());
    let mut policies = Map::new();
    let mut own: Vec<(Choice, Total)> = Vec::new();
    for ((c, o), sum) in all.iter().zip(&outcomes).zip(totals) {
        let label = c.to_string();
        println!(
            "  {label:<20} violation {:>9.0} s  SLATAH {:.3} %  PDM {:.5} %  moves {:>6.1} ({:>6.1} without help)  \
             spread {:.1} %  {:.2} ms",
            o.violation_s,
            100.0 * o.slatah,
            100.0 * o.pdm,
            mean(o.moves),
            mean(o.moves_without_help),
            100.0 * o.spread,
            o.decision_ns as f64 / 1e6,
        );
        let t = Total {
            violation_s: o.violation_s,
            moves: mean(o.moves),
        };
        sum.1.violation_s += t.violation_s;
        sum.1.moves += t.moves;
        own.push((*c, t));
        policies.insert(
            c.name().to_owned(),
            json!({
                "violation_s": o.violation_s, "moving_s": o.moving_s, "slatah": o.slatah,
                "pdm": o.pdm, "moves": mean(o.moves), "spread": o.spread,
                "moves_without_help": mean(o.moves_without_help), "parameter": c.parameter(),
                "decision_ms": o.decision_ns as f64 / 1e6,
            }),
        );
    }
    json!({
        "features": trace.features.len(), "hosts": hosts, "policies": policies,
        "verdict": verdict(&own),
    })
}

/// What `bench_forecast` found.
fn forecast(out: &Path) -> Value {
    let Ok(text) = std::fs::read_to_string(out.join("forecast.json")) else {
        return Value::Null;
    };
    let all: Value = serde_json::from_str(&text).unwrap();
    let mut sets = Map::new();
    for (name, set) in all["sets"].as_object().unwrap() {
        // The quantile that the daemon uses unless it is told otherwise.
        let levels = set["breaches"].as_array().unwrap();
        let used = drover::config::ForecastSection::default().confidence;
        let near = levels.iter().min_by(|a, b| {
            let off = |v: &Value| (v["quantile"].as_f64().unwrap() - used).abs();
            off(a).total_cmp(&off(b))
        });
        let near = near.unwrap();
        sets.insert(
            name.clone(),
            json!({
                "mase_15min": set["mase_15min"], "breach_precision": near["precision"],
                "breach_recall": near["recall"], "breach_precision_by_chance": set["precision_by_chance"],
                "quantile": near["quantile"],
            }),
        );
    }
    let mean = |key: &str| {
        let of: Vec<f64> = sets.values().filter_map(|s| s[key].as_f64()).collect();
        of.iter().sum::<f64>() / of.len() as f64
    };
    json!({
        "mase_15min": mean("mase_15min"), "breach_precision": mean("breach_precision"),
        "breach_recall": mean("breach_recall"), "sets": sets,
    })
}

fn main() -> ExitCode {
    // Needs no traces.
    if std::env::args().nth(1).as_deref() == Some("affinity") {
        println!("{}", affinity::run(1));
        return ExitCode::SUCCESS;
    }
    let Some(dir) = std::env::var_os("DROVER_TRACES").map(PathBuf::from) else {
        println!("SKIPPED: DROVER_TRACES is not set; point it at the directory of traces");
        return ExitCode::SUCCESS;
    };
    let Ok(list) = std::fs::read_dir(&dir) else {
        println!("SKIPPED: DROVER_TRACES={} cannot be read", dir.display());
        return ExitCode::SUCCESS;
    };
    let mut files: Vec<PathBuf> = list.map(|e| e.unwrap().path()).collect();
    files.sort();
    let begun = Instant::now();
    let mut traces = Map::new();
    let mut totals: Vec<(Choice, Total)> = Choice::ALL.map(|c| (c, Total::default())).into();
    for path in files {
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let Some(name) = file.strip_suffix(".csv.gz") else {
            continue;
        };
        if name.starts_with("planetlab") || name.starts_with("google-2011") {
            let of = trace(name, &path, &mut totals);
            traces.insert(name.to_owned(), of);
        }
    }
    if traces.is_empty() {
        println!("SKIPPED: no traces in {}", dir.display());
        return ExitCode::SUCCESS;
    }
    let overall = verdict(&totals);
    println!("all traces: {overall}");
    let affinity = affinity::run(1);
    println!("affinity: {affinity}");
    let out = Path::new("target/bench");
    std::fs::create_dir_all(out).unwrap();
    let all = json!({
        "traces": traces, "verdict": overall, "affinity": affinity, "forecast": forecast(out),
        "seeds": SEEDS, "host_cpus": HOST_CPUS, "took_s": begun.elapsed().as_secs_f64(),
    });
    let text = serde_json::to_string_pretty(&all).unwrap();
    std::fs::write(out.join("placement.json"), text + "\n").unwrap();
    ExitCode::SUCCESS
}
