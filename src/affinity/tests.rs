//! Tests of the whole, and makers of hosts and rows for the other tests.

use super::boost::scattered;
use super::schema::column;
use super::*;
use crate::feature::{FeatureName, FeatureSpec, Workload};
use crate::host::{
    FeatureState, FeatureStatus, HostCapabilities, HostLoad, HostState, InstanceState, StorageKind,
};
use crate::usage::Usage;

/// splitmix64, for reproducible test data.
pub(crate) struct Random(pub(crate) u64);
impl Random {
    pub(crate) fn unit(&mut self) -> f64 {
        let h = scattered(self.0);
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (h >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Rows whose quality depends on host_others_stall and host_cpu_after.
pub(crate) fn synthetic(n: usize, seed: u64) -> Vec<Row> {
    let mut random = Random(seed);
    let (stall, cpu) = (column("host_others_stall"), column("host_cpu_after"));
    (0i64..)
        .take(n)
        .map(|i| {
            let mut x = [0.0; WIDTH];
            for v in &mut x {
                *v = if random.unit() < 0.05 {
                    MISSING
                } else {
                    random.unit() as f32
                };
            }
            x[stall] = random.unit() as f32;
            x[cpu] = random.unit() as f32;
            let busy = if x[cpu] > 0.8 { 0.3 } else { 0.0 };
            let y = 0.95 - 0.5 * f64::from(x[stall]) - busy + 0.02 * random.unit();
            Row {
                at_ms: 1000 * i,
                host: "h".into(),
                feature: "f".into(),
                group: "default".into(),
                x,
                y: y as f32,
            }
        })
        .collect()
}

pub(crate) fn feature() -> FeatureName {
    FeatureName::new("cache").unwrap()
}

pub(crate) fn instance(domain: &str) -> InstanceState {
    InstanceState {
        uuid: format!("uuid-{domain}"),
        vcpus: 2.0,
        memory_mib: 1024.0,
        memory_available_mib: Some(800.0),
        cpus_used: 0.1,
        ..InstanceState::new(domain)
    }
}

pub(crate) fn host(name: &str, cpus: f64) -> HostState {
    HostState {
        capabilities: HostCapabilities {
            cpu_model: "Skylake".into(),
            cpus,
            memory_mib: 8192.0,
            network_mbps: 0.0,
            storage: StorageKind::Ssd,
            virt_type: "kvm".into(),
        },
        load: HostLoad {
            cpus_used: 0.5,
            memory_used_mib: 1024.0,
            ..HostLoad::default()
        },
        instances: vec![instance("g")],
        ..HostState::new(name)
    }
}

pub(crate) fn host_with_feature(name: &str, cpus: f64) -> HostState {
    let mut h = host(name, cpus);
    h.instances[0].features.push(FeatureState {
        spec: FeatureSpec::new(
            feature(),
            Workload::Unit {
                unit: "cache.service".into(),
            },
        ),
        status: FeatureStatus::Running,
        usage: None,
    });
    h
}

/// Runs the feature on three hosts for a while: `slow` stalls whatever its load, which no
/// capability tells; `good` serves well although it is busier.
fn lived() -> (Affinity, Vec<HostState>) {
    let settings = Settings {
        rows_min: 50,
        rows_full: 300,
        ..Settings::default()
    };
    let mut a = Affinity::new(settings);
    let mut hosts: Vec<HostState> = ["good", "slow", "other"]
        .map(|n| host_with_feature(n, 4.0))
        .to_vec();
    let mut random = Random(11);
    let name = feature();
    for t in 0..1500 {
        for h in &mut hosts {
            h.load.cpus_used = match h.name.as_str() {
                "good" => 2.0 + random.unit(),
                "slow" => 0.2 + random.unit(),
                _ => 1.0 + 2.0 * random.unit(),
            };
            let stall = match h.name.as_str() {
                "good" => 3.0,
                "slow" => 45.0,
                _ => 15.0,
            } + 4.0 * random.unit();
            let u = Usage {
                at_ms: 5000 * t,
                dt_s: 5.0,
                cpu_percent: Some(30.0 + 10.0 * random.unit()),
                memory_mib: Some(100.0),
                psi_cpu_percent: Some(stall),
                ..Usage::default()
            };
            let domain = h.name.clone();
            h.instances[0].domain.clone_from(&domain);
            a.observe(&Observation {
                host: h,
                domain: &domain,
                feature: &name,
                usage: &u,
                steal_percent: Some(0.0),
            });
        }
    }
    (a, hosts)
}

fn score(a: &Affinity, h: &HostState) -> Score {
    let mut empty = h.instances[0].clone();
    empty.features.clear();
    let w = UsageWindow {
        cpus: Some(Stat {
            mean: 0.35,
            max: 0.4,
        }),
        ..UsageWindow::default()
    };
    let name = feature();
    a.score(&ScoreInput {
        host: h,
        instance: &empty,
        feature: &name,
        window: &w,
        demand: w.demand(),
    })
}

#[test]
fn learns_what_headroom_cannot_see() {
    let (mut a, hosts) = lived();
    assert!(a.reservoir().len() > 600, "{}", a.reservoir().len());
    assert_eq!(a.info().kind, "headroom");
    let before: Vec<f64> = hosts.iter().map(|h| score(&a, h).value).collect();
    assert!(before[1] > before[0], "headroom prefers the idle slow host");

    assert!(a.train(99, &mut || true).unwrap());
    let info = a.info();
    assert_eq!((info.kind.as_str(), info.trained_at_ms), ("gbdt", 99));
    assert!(info.error.unwrap() < 0.05, "{info:?}");
    let after: Vec<Score> = hosts.iter().map(|h| score(&a, h)).collect();
    assert!(after[0].value > after[2].value && after[2].value > after[1].value);
    assert!((after[0].value - 0.95).abs() < 0.05, "{:?}", after[0]);
    let sum: f64 = after[1].explain.iter().map(|e| e.1).sum();
    assert!((sum - after[1].value).abs() < 1e-5);

    // The state survives, and gives the same scores.
    let settings = a.settings.clone();
    let b = Affinity::from_bytes(settings, &a.to_bytes()).unwrap();
    assert_eq!(b.info(), a.info());
    assert_eq!(b.reservoir().len(), a.reservoir().len());
    assert_eq!(score(&b, &hosts[0]), after[0]);
    let mut bytes = a.to_bytes();
    bytes[100] ^= 4;
    assert!(Affinity::from_bytes(Settings::default(), &bytes).is_err());
}

#[test]
fn between_headroom_and_model() {
    let (mut a, hosts) = lived();
    a.train(1, &mut || true).unwrap();
    a.settings.rows_full = 100_000;
    let s = score(&a, &hosts[1]);
    let part = |n: &str| s.parts.iter().find(|p| p.0 == n).unwrap().1;
    let w = part("model_weight");
    assert!(w > 0.0 && w < 1.0);
    let expected = w * part("model") + (1.0 - w) * part("headroom");
    assert!((s.value - expected).abs() < 1e-12);
    assert_eq!(a.info().kind, "blend");
}

#[test]
fn rows_of_a_peer_teach_hosts_never_run_on() {
    let (a, hosts) = lived();
    let mut b = Affinity::new(a.settings.clone());
    let batch = a.reservoir().since(None, -1, usize::MAX, |_| true);
    let n = batch.rows.len();
    assert_eq!(b.merge(batch, i64::MAX / 2), Ok(n));
    assert!(b.train(1, &mut || true).unwrap());
    assert!(score(&b, &hosts[0]).value > score(&b, &hosts[1]).value + 0.2);
}

#[test]
fn all_at_once_as_one_by_one() {
    let (mut a, hosts) = lived();
    let window = UsageWindow::default();
    let name = feature();
    for trained in [false, true] {
        if trained {
            assert!(a.train(1, &mut || true).unwrap());
        }
        let scorer = a.for_feature(&name, &window, window.demand());
        let targets: Vec<_> = hosts.iter().map(|h| (h, &h.instances[0])).collect();
        let all = crate::decision::Scorer::values(&scorer, &targets);
        for ((h, i), v) in targets.iter().zip(all) {
            let one = scorer.score(h, i);
            assert!((one.value - v).abs() < 1e-12);
            assert_eq!(one.explain.is_empty(), !trained);
        }
    }
}
