//! How long decisions take on one core: `make bench-decision`.
//!
//! Hosts have 64 CPUs and 10 guests with 2 features each; the affinity is a trained model. Times
//! are CPU time of the deciding thread. Writes `target/bench/decision.json`.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "shared/world.rs"]
mod world;

use std::hint::black_box;
use std::time::Duration;

use drover::affinity::UsageWindow;
use drover::decision::{
    Ask, BreachCause, Cause, Demand, Policy, Scorer, View, Want, decide_by, plan_many,
};
use drover::feature::{FeatureName, Resource};
use nix::time::{ClockId, clock_gettime};
use world::{affinity, view};

fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .unwrap()
        .into()
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

const DEMAND: Demand = Demand {
    cpus: 0.8,
    memory_mib: 200.0,
    net_bps: 1e6,
    disk_bps: 1e6,
};

/// Times of `n` decisions, sorted.
fn decisions(view: &View, scorer: &dyn Scorer, n: usize) -> Vec<Duration> {
    let name: FeatureName = "f0-0-0".parse().unwrap();
    let ask = Ask::new(
        "guest0",
        &name,
        Cause::Breach(BreachCause {
            resource: Resource::Cpu,
            text: "cpu is 93.0 %, limit 'cpu > 80 % for 10 s'".into(),
        }),
        DEMAND,
    );
    let policy = Policy::default();
    let plan = decide_by(view, &policy, &ask, scorer);
    assert!(plan.target().is_some(), "{}", plan.reason);
    assert_eq!(plan.candidates.len(), view.hosts.len());
    let mut times: Vec<Duration> = (0..n)
        .map(|_| {
            let begin = now();
            black_box(decide_by(black_box(view), &policy, &ask, scorer));
            now().saturating_sub(begin)
        })
        .collect();
    times.sort_unstable();
    times
}

fn p(times: &[Duration], share: f64) -> f64 {
    ms(times[((times.len() - 1) as f64 * share) as usize])
}

fn main() {
    let name: FeatureName = "f0-0-0".parse().unwrap();
    let window = UsageWindow::default();
    let mut trained = affinity(20_000);
    assert!(trained.train(1, &mut || true).unwrap());
    let model = trained.for_feature(&name, &window, DEMAND);
    let headroom = affinity(0);
    let headroom = headroom.for_feature(&name, &window, DEMAND);

    let mut growth = Vec::new();
    for (hosts, n) in [(10, 2000), (100, 1000), (1000, 500), (10_000, 60)] {
        let view = view(hosts);
        let times = decisions(&view, &model, n);
        eprintln!(
            "{hosts:>6} hosts: median {:.2} ms, p99 {:.2} ms",
            p(&times, 0.5),
            p(&times, 0.99)
        );
        growth.push((hosts, p(&times, 0.5), p(&times, 0.99)));
    }
    let view = view(1000);
    let by_headroom = decisions(&view, &headroom, 500);

    let names: Vec<(String, String, FeatureName)> = view
        .hosts
        .iter()
        .flat_map(|h| {
            h.instances.iter().map(|i| {
                (
                    h.name.clone(),
                    i.domain.clone(),
                    i.features[0].spec.name.clone(),
                )
            })
        })
        .collect();
    let scorers: Vec<_> = names
        .iter()
        .map(|(_, _, f)| trained.for_feature(f, &window, DEMAND))
        .collect();
    let wants: Vec<Want<'_>> = names
        .iter()
        .zip(&scorers)
        .enumerate()
        .map(|(n, ((host, domain, feature), scorer))| {
            // Of many sizes.
            let size = 0.1 + (n % 17) as f64 / 17.0;
            let demand = Demand {
                cpus: DEMAND.cpus * size,
                memory_mib: DEMAND.memory_mib * size,
                ..DEMAND
            };
            Want {
                host,
                ask: Ask::new(domain, feature, Cause::Drain, demand),
                scorer,
            }
        })
        .collect();
    assert_eq!(wants.len(), 10_000);
    let mut plans: Vec<Duration> = (0..5)
        .map(|_| {
            let begin = now();
            let steps = black_box(plan_many(&view, &Policy::default(), &wants));
            let took = now().saturating_sub(begin);
            let moved = steps.iter().filter(|s| s.to.is_some()).count();
            assert!(moved > 5_000, "{moved}");
            eprintln!(
                "plan for 10,000 features: {:.2} s, {moved} move",
                took.as_secs_f64()
            );
            took
        })
        .collect();
    plans.sort_unstable();

    let json = serde_json::json!({
        "decide_1000_hosts_p99_ms": growth[2].2,
        "decide_1000_hosts_median_ms": growth[2].1,
        "decide_1000_hosts_headroom_p99_ms": p(&by_headroom, 0.99),
        "plan_10000_features_1000_hosts_s": plans[plans.len() / 2].as_secs_f64(),
        "growth": growth.iter().map(|(n, median, _)| (n, median)).collect::<Vec<_>>(),
        "time": "CPU time of one thread",
    });
    std::fs::create_dir_all("target/bench").unwrap();
    let text = serde_json::to_string_pretty(&json).unwrap();
    std::fs::write("target/bench/decision.json", format!("{text}\n")).unwrap();
    println!("{text}");
}
