//! What droverd costs with many guests, and what a hung one costs the others: the real droverd with
//! libvirt's test driver, a bus of its own and a history on disk; only the guests are played, on
//! real unix sockets.
//!
//! ```text
//! bench_fleet DIR OUT.json [daemon|hung]   binaries droverd and drover in DIR; adds to OUT.json
//! ```
#![allow(dead_code)]

#[path = "../tests/fleet/stage.rs"]
mod stage;

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stage::guest::now_ms;
use stage::{Binaries, Result, Size, Stage};

/// Seconds until everything that is kept per feature is there, and seconds that are measured.
const FILL_S: u64 = 420;
const MEASURED_S: u64 = 120;
/// As Prometheus does.
const SCRAPE_S: u64 = 15;

/// Lets time pass while somebody scrapes.
fn pass(stage: &Stage, seconds: u64) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        std::thread::sleep(left.min(Duration::from_secs(SCRAPE_S)));
        if Instant::now() >= end {
            return Ok(());
        }
        stage.scrape()?;
    }
}

fn fleet(binaries: &Binaries, fill_s: u64) -> Result<Value> {
    let size = Size {
        guests: 200,
        features: 50,
        interval_s: 5,
    };
    let stage = Stage::set(binaries, size)?;
    stage.wait_for(1..=size.guests, 2)?;
    let start = stage.cost()?;
    eprintln!("pid {} {start:?}", stage.pid());
    pass(&stage, fill_s)?;
    let (before, begin, frames) = (stage.cost()?, Instant::now(), stage.frames());
    pass(&stage, MEASURED_S)?;
    let after = stage.cost()?;
    let span = begin.elapsed().as_secs_f64();
    let samples = (stage.frames() - frames) * size.features;
    let cpu_s = after.cpu_s - before.cpu_s;
    eprintln!("{}", stage.log()?);
    Ok(json!({
        "guests": size.guests, "features": size.guests * size.features,
        "interval_s": size.interval_s,
        "core_percent": cpu_s / span * 100.0,
        "us_per_sample": cpu_s * 1e6 / samples as f64,
        "samples_per_s": samples as f64 / span,
        "rss_mib": after.rss_mib, "rss_peak_mib": after.peak_mib,
        "start_cpu_s": start.cpu_s,
    }))
}

fn quantiles(mut ms: Vec<i64>) -> Value {
    ms.sort_unstable();
    let at = |q: f64| {
        ms.get(((ms.len() as f64 - 1.0) * q).max(0.0) as usize)
            .copied()
    };
    json!({"points": ms.len(), "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1.0)})
}

fn hung(binaries: &Binaries) -> Result<Value> {
    const SPAN_S: u64 = 60;
    let size = Size {
        guests: 50,
        features: 50,
        interval_s: 1,
    };
    let stage = Stage::set(binaries, size)?;
    stage.wait_for(1..=size.guests, 5)?;
    let begin = now_ms();
    pass(&stage, SPAN_S)?;
    let middle = now_ms();
    stage.guest(1).hung.store(true, Ordering::Relaxed);
    pass(&stage, SPAN_S)?;
    let end = now_ms();
    let delays = |from, to| -> Result<Value> {
        let mut all = Vec::new();
        for guest in 2..=size.guests {
            all.extend(stage.delays(guest, from, to)?);
        }
        Ok(quantiles(all))
    };
    Ok(json!({
        "guests": size.guests, "features": size.guests * size.features,
        "interval_s": size.interval_s,
        "late_ms": {"all_well": delays(begin, middle)?, "one_hung": delays(middle, end)?},
        "points_of_the_hung": stage.delays(1, middle + 1500, end)?.len(),
    }))
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [binaries, out, ..] = &args[..] else {
        return Err("usage: bench_fleet DIR OUT.json [daemon|hung]".into());
    };
    let binaries = Binaries {
        droverd: Path::new(binaries).join("droverd"),
        drover: Path::new(binaries).join("drover"),
    };
    let mut result: Value = match std::fs::read_to_string(out) {
        Ok(text) => serde_json::from_str(&text)?,
        Err(_) => json!({}),
    };
    let only = args.get(2).map(String::as_str);
    if only != Some("daemon") {
        result["hung"] = hung(&binaries)?;
        println!("{:#}", result["hung"]);
    }
    if only != Some("hung") {
        let fill_s = std::env::var("FILL_S").ok().and_then(|s| s.parse().ok());
        result["daemon"] = fleet(&binaries, fill_s.unwrap_or(FILL_S))?;
        println!("{:#}", result["daemon"]);
    }
    if let Some(dir) = Path::new(out).parent() {
        std::fs::create_dir_all(dir)?;
    }
    Ok(std::fs::write(out, format!("{result:#}\n"))?)
}
