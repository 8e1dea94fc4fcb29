//! A cluster and rows for measuring, made up but the same each time.

use drover::affinity::{Affinity, Batch, COLUMNS, Row, SCHEMA_HASH, Settings, WIDTH};
use drover::api::ModelInfo;
use drover::decision::View;
use drover::feature::{FeatureSpec, Managed, Workload};
use drover::host::{
    FeatureState, FeatureStatus, GuestCapabilities, HostCapabilities, HostLoad, HostState,
    InstanceState, StorageKind,
};

fn feature(name: &str, address: &str) -> FeatureState {
    FeatureState {
        spec: FeatureSpec::new(
            name.parse().unwrap(),
            Workload::Managed(Managed::new(
                vec!["/bin/true".into()],
                address.parse().unwrap(),
            )),
        ),
        status: FeatureStatus::Running,
        usage: None,
    }
}

/// `n` hosts of 64 CPUs, with 10 guests of 2 features each.
pub fn view(n: usize) -> View {
    let hosts: Vec<HostState> = (0..n)
        .map(|h| HostState {
            capabilities: HostCapabilities {
                cpu_model: "Skylake".into(),
                cpus: 64.0,
                memory_mib: 262_144.0,
                network_mbps: 25_000.0,
                storage: StorageKind::Nvme,
                virt_type: "kvm".into(),
            },
            load: HostLoad {
                cpus_used: if h == 0 { 60.0 } else { (h % 50) as f64 },
                memory_used_mib: 1000.0 * (h % 100) as f64,
                stall_percent: if h == 0 { 60.0 } else { 0.0 },
                ..HostLoad::default()
            },
            instances: (0..10)
                .map(|g| InstanceState {
                    uuid: format!("{h}-{g}"),
                    vcpus: 4.0,
                    memory_mib: 8192.0,
                    memory_available_mib: Some(4096.0),
                    cpus_used: 0.2 * ((h + g) % 10) as f64,
                    capabilities: Some(GuestCapabilities {
                        kernel: "6.12.0".into(),
                        criu: "4.0".into(),
                        criu_problem: String::new(),
                        cpu_flags: "abc".into(),
                        systemd: "257".into(),
                    }),
                    features: (0..2)
                        .map(|f| {
                            let address = format!("10.{}.{}.{}/8", h / 250, h % 250, 2 * g + f);
                            feature(&format!("f{h}-{g}-{f}"), &address)
                        })
                        .collect(),
                    ..InstanceState::new(format!("guest{g}"))
                })
                .collect(),
            ..HostState::new(format!("host{h:04}"))
        })
        .collect();
    View {
        me: "host0000".into(),
        now_ms: 1000,
        groups: hosts
            .iter()
            .map(|h| (h.name.clone(), vec!["default".into()]))
            .collect(),
        hosts,
        stale_after_ms: 10_000,
        model: ModelInfo::default(),
    }
}

pub fn rows(n: i64) -> Vec<Row> {
    let mut state = 7u64;
    let mut unit = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..n)
        .map(|at_ms| {
            let mut x = [0.0; WIDTH];
            x.fill_with(&mut unit);
            let at = |name: &str| COLUMNS.iter().position(|c| *c == name).unwrap();
            let (stall, cpu) = (x[at("host_stall")], x[at("host_cpu_after")]);
            let guest = x[at("guest_cpu_after")];
            let y = (0.9 - 0.5 * stall * cpu - 0.2 * guest + 0.05 * unit()).clamp(0.0, 1.0);
            Row {
                at_ms,
                host: "h".into(),
                feature: "f".into(),
                group: "default".into(),
                x,
                y,
            }
        })
        .collect()
}

pub fn affinity(n: i64) -> Affinity {
    let mut a = Affinity::new(Settings::default());
    let batch = Batch {
        schema: SCHEMA_HASH,
        rows: rows(n),
    };
    a.merge(batch, n).unwrap();
    a
}
