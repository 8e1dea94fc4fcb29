//! Hosts that look alike and serve differently: how much worse than the best host is the one that
//! is chosen?
//!
//! Twelve hosts with the same visible capabilities. What is hidden: how much of their CPU, disk and
//! network neighbours take that Drover does not see. Sixty features use CPU, disk and network in
//! different proportions and suffer in proportion. For two thirds of an hour at a time they run
//! where they were put by chance, are metered with noise, and Drover's own collector, reservoir and
//! training learn from it. Then 600 questions in other states of load, half of them about features
//! that were never seen: which host is best? Regret is the true quality of the best host less that
//! of the chosen one, as a fraction of the best.

use std::time::Instant;

use drover::affinity::{
    Affinity, After, Demand, Observation, ScoreInput, Settings, UsageWindow, headroom,
};
use drover::feature::{FeatureName, FeatureSpec, Managed, Workload};
use drover::host::{
    FeatureState, FeatureStatus, GuestCapabilities, HostCapabilities, HostLoad, HostState,
    InstanceState, StorageKind,
};
use drover::simulate::Random;
use drover::usage::Usage;
use serde_json::{Value, json};

const HOSTS: usize = 12;
const SEEN: usize = 60;
const UNSEEN: usize = 20;
const EPOCHS: usize = 40;
/// Points of an epoch, of ten seconds.
const POINTS: usize = 24;
const QUESTIONS: usize = 600;

/// Fraction of CPU, disk and network that is left on a host.
type Hidden = [f64; 3];

struct Load {
    name: FeatureName,
    spec: FeatureSpec,
    /// CPUs, bytes per second of disk and network, at most.
    size: [f64; 3],
    memory_mib: f64,
}

fn load(n: usize, random: &mut Random) -> Load {
    let name = FeatureName::new(&format!("load{n}")).expect("a valid name");
    let address = format!("10.9.{}.{}/8", n / 200, n % 200 + 1);
    let managed = Managed::new(Vec::new(), address.parse().expect("a valid address"));
    // One resource most, the others a little.
    let main = n % 4;
    let part = |r: usize, random: &mut Random| {
        let most = if main == r || main == 3 { 1.0 } else { 0.15 };
        most * (0.4 + 0.6 * random.unit())
    };
    let size = [
        part(0, random),
        part(1, random) * 4e7,
        part(2, random) * 3e7,
    ];
    Load {
        spec: FeatureSpec::new(name.clone(), Workload::Managed(managed)),
        name,
        size,
        memory_mib: 64.0 + 400.0 * random.unit(),
    }
}

/// True quality: each resource that a feature uses stalls it by what is missing of it, more when
/// the host is full.
fn quality(use_: [f64; 3], hidden: Hidden, host_cpu: f64) -> [f64; 2] {
    let weight = [
        use_[0].min(1.0),
        (use_[1] / 4e7).min(1.0),
        (use_[2] / 3e7).min(1.0),
    ];
    let crowded = ((host_cpu - 0.7) / 0.6).clamp(0.0, 0.5);
    let cpu = 1.0 - weight[0] * (1.0 - hidden[0]).max(crowded);
    let io = (1.0 - weight[1] * (1.0 - hidden[1])) * (1.0 - weight[2] * (1.0 - hidden[2]));
    [cpu, io]
}

fn use_of(l: &Load, random: &mut Random) -> [f64; 3] {
    let now = 0.7 + 0.3 * random.unit();
    l.size.map(|s| s * now)
}

fn point(l: &Load, at_ms: i64, use_: [f64; 3], stall: [f64; 2]) -> Usage {
    Usage {
        at_ms,
        dt_s: 10.0,
        cpu_percent: Some(100.0 * use_[0]),
        memory_mib: Some(l.memory_mib),
        disk_read_bps: Some(use_[1] / 2.0),
        disk_write_bps: Some(use_[1] / 2.0),
        net_rx_bps: Some(use_[2] / 2.0),
        net_tx_bps: Some(use_[2] / 2.0),
        processes: Some(4.0),
        psi_cpu_percent: Some(100.0 * stall[0]),
        psi_io_percent: Some(100.0 * stall[1]),
        psi_memory_percent: Some(0.0),
        ..Usage::default()
    }
}

/// Hosts with these features, and with other guests that take so many CPUs.
fn hosts(loads: &[Load], at: &[usize], other: &[f64], at_ms: i64) -> Vec<HostState> {
    let mut all: Vec<HostState> = (0..HOSTS)
        .map(|h| HostState {
            at_ms,
            capabilities: HostCapabilities {
                cpu_model: "EPYC".to_owned(),
                cpus: 16.0,
                memory_mib: 65_536.0,
                network_mbps: 10_000.0,
                storage: StorageKind::Ssd,
                virt_type: "kvm".to_owned(),
            },
            load: HostLoad {
                cpus_used: other[h],
                memory_used_mib: 8_192.0 + 1_024.0 * other[h],
                ..HostLoad::default()
            },
            instances: vec![InstanceState {
                vcpus: 16.0,
                memory_mib: 32_768.0,
                memory_available_mib: Some(24_576.0),
                capabilities: Some(GuestCapabilities {
                    kernel: "6.12.0".to_owned(),
                    criu: "4.0".to_owned(),
                    ..GuestCapabilities::default()
                }),
                ..InstanceState::new(format!("guest{h}"))
            }],
            ..HostState::new(format!("host{h}"))
        })
        .collect();
    for (l, h) in loads.iter().zip(at) {
        let host = &mut all[*h];
        host.load.cpus_used += l.size[0];
        host.load.disk_bps += l.size[1];
        host.load.net_bps += l.size[2];
        let i = &mut host.instances[0];
        i.cpus_used += l.size[0];
        i.features.push(FeatureState {
            spec: l.spec.clone(),
            status: FeatureStatus::Running,
            usage: Some(point(l, at_ms, l.size, [0.0; 2])),
        });
    }
    all
}

/// The figures, with names as in `target/bench/placement.json`.
pub fn run(seed: u64) -> Value {
    let mut random = Random(seed);
    let loads: Vec<Load> = (0..SEEN + UNSEEN).map(|n| load(n, &mut random)).collect();
    // A third of all is badly served.
    let part = |random: &mut Random| {
        if random.below(3) == 0 {
            0.35 + 0.25 * random.unit()
        } else {
            0.8 + 0.2 * random.unit()
        }
    };
    let hidden: Vec<Hidden> = (0..HOSTS)
        .map(|_| std::array::from_fn(|_| part(&mut random)))
        .collect();
    let others = |random: &mut Random| -> Vec<f64> {
        (0..HOSTS).map(|_| 2.0 + 8.0 * random.unit()).collect()
    };
    let mut affinity = Affinity::new(Settings::default());
    let mut now_ms = 1_000_000_000;
    for _ in 0..EPOCHS {
        let at: Vec<usize> = (0..SEEN).map(|_| random.below(HOSTS)).collect();
        let states = hosts(&loads[..SEEN], &at, &others(&mut random), now_ms);
        affinity.retain(|_, _| false);
        for _ in 0..POINTS {
            now_ms += 10_000;
            for (l, h) in loads[..SEEN].iter().zip(&at) {
                let host = &states[*h];
                let used = use_of(l, &mut random);
                let full = host.load.cpus_used / host.capabilities.cpus;
                let noise = 1.0 + 0.2 * random.normal();
                let stall = quality(used, hidden[*h], full)
                    .map(|q| ((1.0 - q) * noise + 0.01 * random.normal()).clamp(0.0, 1.0));
                affinity.observe(&Observation {
                    host,
                    domain: &host.instances[0].domain,
                    feature: &l.name,
                    usage: &point(l, now_ms, used, stall),
                    steal_percent: None,
                });
            }
        }
    }
    let begun = Instant::now();
    let trained = affinity.train(now_ms, &mut || true);
    let train_s = begun.elapsed().as_secs_f64();
    let (mut best_sum, mut regret, mut by_room) = (0.0, 0.0, 0.0);
    let (mut unseen, mut unseen_best) = (0.0, 0.0);
    for q in 0..QUESTIONS {
        let n = if q % 2 == 0 {
            random.below(SEEN)
        } else {
            SEEN + random.below(UNSEEN)
        };
        let l = &loads[n];
        // All the others run somewhere; this one comes from outside.
        let at: Vec<usize> = (0..SEEN).map(|_| random.below(HOSTS)).collect();
        let mut states = hosts(&loads[..SEEN], &at, &others(&mut random), now_ms);
        for h in &mut states {
            h.instances[0].features.retain(|f| f.spec.name != l.name);
        }
        let points: Vec<Usage> = (0..6)
            .map(|i| point(l, now_ms + i * 10_000, use_of(l, &mut random), [0.0; 2]))
            .collect();
        let window = UsageWindow::of(&points);
        let demand: Demand = window.demand();
        let truth: Vec<f64> = states
            .iter()
            .zip(&hidden)
            .map(|(h, hidden)| {
                let full = (h.load.cpus_used + l.size[0]) / h.capabilities.cpus;
                let q = quality(l.size.map(|s| 0.85 * s), *hidden, full);
                q[0] * q[1]
            })
            .collect();
        let choose = |value: &dyn Fn(&HostState) -> f64| {
            let scores: Vec<f64> = states.iter().map(value).collect();
            let first = (0..HOSTS).max_by(|a, b| scores[*a].total_cmp(&scores[*b]));
            truth[first.unwrap_or(0)]
        };
        let model = choose(&|h| {
            let input = ScoreInput {
                host: h,
                instance: &h.instances[0],
                feature: &l.name,
                window: &window,
                demand,
            };
            affinity.score(&input).value
        });
        let room = choose(&|h| headroom(&After::of(h, &h.instances[0], &l.name, &demand)).value);
        let best = truth.iter().copied().fold(0.0, f64::max);
        best_sum += best;
        regret += best - model;
        by_room += best - room;
        if n >= SEEN {
            unseen += best - model;
            unseen_best += best;
        }
    }
    let info = affinity.info();
    json!({
        "regret_drover": regret / best_sum,
        "regret_headroom": by_room / best_sum,
        "regret_drover_unseen_features": unseen / unseen_best,
        "hosts": HOSTS, "questions": QUESTIONS, "rows": affinity.reservoir().len(),
        "model": info.kind, "trained": trained.is_ok(), "train_s": train_s,
    })
}
