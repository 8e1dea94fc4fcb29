//! `simulate`: reads traces, runs policies in a simulated cluster, shows what came of it. Needs no
//! droverd.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use super::error::CliError;
use super::progress::{Progress, Shown};
use super::screen::Screen;
use super::table::{Cell, Table};
use super::{time, views};
use crate::simulate::{Choice, Outcome, Scale, Setup, Trace, World, compare, svg};

/// Largest trace that is read, unpacked, bytes.
const MAX_TRACE: u64 = 1 << 30;

const AFTER: &str = "\
A trace is a CSV file, packed by gzip or not: what `drover history DOMAIN FEATURE --format csv
--since 1d --limit 100000` prints (one file a feature, several files at once), or a public one:
PlanetLab VMs (vm,t0,t1,...), VMs of the Google 2011 cluster trace (vm,step,cpu_percent,
memory_percent), machines of the Alibaba 2018 trace (cpu_util_percent,...).

The model: hosts are alike and always on. A feature wants what the trace says, wherever it is. At
the end of each step a policy sees what was wanted so far and names moves, done at the beginning of
the next. A feature is in violation while its host is asked for more CPU than it has, and while it
moves. SLATAH and PDM are those of Beloglazov and Buyya (2012).

Policies: none; threshold[:LIMIT] (away from hosts above the limit, to the least loaded);
balance[:SPREAD] (greedy, down to a standard deviation); lr-mmt[:SAFETY] (local regression, minimum
migration time); drover-no-model; drover-no-forecast; drover; oracle (knows the future).";

/// Show what Drover and other policies would do with recorded loads, without any host
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct Simulate {
    /// Traces
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    pub traces: Vec<PathBuf>,
    /// Hosts [default: as many that the busiest step takes 80 % of all CPUs]
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    pub hosts: Option<u32>,
    /// CPUs of a host
    #[arg(long, default_value_t = 8.0, value_parser = positive)]
    pub host_cpus: f64,
    /// CPUs that 100 % in a trace are
    #[arg(long, default_value_t = 1.0, value_parser = positive)]
    pub feature_cpus: f64,
    /// MiB that 100 % of memory in a trace are
    #[arg(long, default_value_t = 4096.0, value_parser = positive)]
    pub feature_memory: f64,
    /// Policies to compare; may be repeated or separated by commas [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAME[:PARAMETER]")]
    pub policy: Vec<Choice>,
    /// Length of a step
    #[arg(long, default_value = "5min", value_name = "DURATION", value_parser = seconds)]
    pub step: Duration,
    /// Time at the beginning that is only looked at
    #[arg(long, default_value = "1h", value_name = "DURATION", value_parser = seconds)]
    pub warm_up: Duration,
    /// MiB per second of a move
    #[arg(long, default_value_t = 62.5, value_parser = positive)]
    pub bandwidth: f64,
    /// Seed of the first placement
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write a picture (SVG) to this file
    #[arg(long, value_name = "FILE")]
    pub picture: Option<PathBuf>,
}

fn positive(text: &str) -> Result<f64, String> {
    let v: Option<f64> = text.parse().ok();
    v.filter(|v| v.is_finite() && *v > 0.0)
        .ok_or_else(|| "not a number above zero".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    time::duration(text)
        .filter(|d| (1..=86_400).contains(&d.as_secs()))
        .ok_or_else(|| "not a duration of 1 s to 1 d: write it like 30s, 5min or 1h".to_owned())
}

/// Text of a trace, unpacked when it is packed.
pub fn read(path: &Path) -> Result<String, CliError> {
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => CliError::NotFound(format!("no file {}", path.display())),
        _ => CliError::Failed(format!("cannot read {}: {e}", path.display())),
    };
    let mut file = File::open(path).map_err(failed)?;
    let mut head = [0; 2];
    let n = file.read(&mut head).map_err(failed)?;
    let whole = head[..n].chain(file);
    let mut text = String::new();
    let read = if head == [0x1f, 0x8b] {
        flate2::read::MultiGzDecoder::new(whole)
            .take(MAX_TRACE)
            .read_to_string(&mut text)
    } else {
        whole.take(MAX_TRACE).read_to_string(&mut text)
    };
    read.map_err(failed)?;
    Ok(text)
}

/// Runs the command.
pub fn simulate(
    what: &Simulate,
    out: &mut dyn Write,
    json: bool,
    screen: &Screen,
) -> Result<(), CliError> {
    let mut files = Vec::new();
    for path in &what.traces {
        files.push((path.display().to_string(), read(path)?));
    }
    let scale = Scale {
        cpus: what.feature_cpus,
        memory_mib: what.feature_memory,
        step_s: what.step.as_secs().cast_signed(),
    };
    let named = files.iter().map(|(n, t)| (n.as_str(), t.as_str()));
    let usage = |e: crate::simulate::TraceError| CliError::Usage(e.to_string());
    let trace = Trace::parse(named, &scale).map_err(usage)?;
    let setup = Setup {
        hosts: what
            .hosts
            .map_or_else(|| Setup::hosts_for(&trace, what.host_cpus), |h| h as usize),
        host_cpus: what.host_cpus,
        warm_up_s: what.warm_up.as_secs().cast_signed(),
        bandwidth_mib_s: what.bandwidth,
        seed: what.seed,
        ..Setup::default()
    };
    let world = World::new(&trace, setup).map_err(usage)?;
    let choices = if what.policy.is_empty() {
        Choice::ALL.to_vec()
    } else {
        what.policy.clone()
    };
    let begun = Instant::now();
    let mut clock = || begun.elapsed().as_nanos() as u64;
    let mut results = Vec::new();
    let mut progress = Progress::new();
    for (n, choice) in choices.iter().enumerate() {
        progress.show(&Shown {
            what: "simulating".to_owned(),
            part: Some((n as u64, choices.len() as u64)),
            how: choice.to_string(),
        });
        results.extend(compare(&world, &[*choice], &mut clock));
    }
    progress.end();
    if let Some(path) = &what.picture {
        let picture = svg(&title(&trace, world.setup()), trace.step_s, &results);
        std::fs::write(path, picture)
            .map_err(|e| CliError::Failed(format!("cannot write {}: {e}", path.display())))?;
    }
    if json {
        views::json(out, &as_json(&trace, world.setup(), &results))?;
    } else {
        table(out, &trace, world.setup(), &results, screen)?;
    }
    Ok(())
}

fn title(trace: &Trace, setup: &Setup) -> String {
    let hours = trace.steps() as f64 * trace.step_s as f64 / 3600.0;
    format!(
        "{} features on {} hosts of {} CPUs over {hours:.1} h; {:.0} % of all CPUs wanted on average, \
         {:.0} % at most",
        trace.features.len(),
        setup.hosts,
        setup.host_cpus,
        100.0 * trace.mean_cpus() / (setup.hosts as f64 * setup.host_cpus),
        100.0 * trace.peak_cpus() / (setup.hosts as f64 * setup.host_cpus),
    )
}

fn table(
    out: &mut dyn Write,
    trace: &Trace,
    setup: &Setup,
    results: &[(Choice, Outcome)],
    screen: &Screen,
) -> io::Result<()> {
    writeln!(out, "{}", title(trace, setup))?;
    let mut t = Table::new(&[
        "Policy",
        ">Violation",
        ">of it moving",
        ">SLATAH",
        ">PDM",
        ">Moves",
        ">without help",
        ">Spread",
        ">Decision",
    ]);
    for (choice, o) in results {
        t.row(vec![
            Cell::new(choice.to_string()),
            Cell::new(format!("{:.0} s", o.violation_s)),
            Cell::new(format!("{:.0} s", o.moving_s)),
            Cell::new(format!("{:.3} %", 100.0 * o.slatah)),
            Cell::new(format!("{:.5} %", 100.0 * o.pdm)),
            Cell::new(o.moves.to_string()),
            Cell::new(o.moves_without_help.to_string()),
            Cell::new(format!("{:.1} %", 100.0 * o.spread)),
            Cell::new(format!("{:.2} ms", o.decision_ns as f64 / 1e6)),
        ]);
    }
    t.write(out, screen)
}

/// One policy's outcome with the names that `target/bench/placement.json` has.
pub fn outcome(o: &Outcome) -> Value {
    json!({
        "violation_s": o.violation_s, "moving_s": o.moving_s, "slatah": o.slatah, "pdm": o.pdm,
        "moves": o.moves, "moves_without_help": o.moves_without_help, "spread": o.spread,
        "decision_ms": o.decision_ns as f64 / 1e6, "decision_max_ms": o.decision_max_ns as f64 / 1e6,
    })
}

fn as_json(trace: &Trace, setup: &Setup, results: &[(Choice, Outcome)]) -> Value {
    let of = results.iter().map(|(c, o)| {
        let mut v = outcome(o);
        v["policy"] = json!(c.name());
        v["parameter"] = json!(c.parameter());
        v
    });
    let policies: Vec<Value> = of.collect();
    json!({
        "features": trace.features.len(), "steps": trace.steps(), "step_s": trace.step_s,
        "hosts": setup.hosts, "host_cpus": setup.host_cpus, "seed": setup.seed,
        "mean_cpus": trace.mean_cpus(), "peak_cpus": trace.peak_cpus(), "policies": policies,
    })
}
