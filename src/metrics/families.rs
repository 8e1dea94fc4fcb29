//! Which metrics there are. Pure: from a snapshot to text.

use super::counters::{Counts, OUTCOMES, RESULTS};
use super::text::{Kind, Page};
use crate::api::FeatureRow;
use crate::columns::COLUMNS;
use crate::host::{FeatureStatus, HelperState, HostState};
use crate::qemu::{Operations, QemuState};
use crate::usage::MIB;

/// What a page is made of.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot<'a> {
    /// This host first, then the peers that are connected.
    pub hosts: &'a [HostState],
    /// Features of this host.
    pub features: &'a Features,
    /// Configured peers.
    pub peers: &'a [String],
    /// What happened since the start.
    pub counts: Counts,
}

/// Features of this host, of which the first are kept and the others counted.
#[derive(Debug, Clone, Default)]
pub struct Features {
    rows: Vec<FeatureRow>,
    max: usize,
    all: usize,
    breached: usize,
    moving: usize,
}

impl Features {
    /// Of none yet; at most `max` will have series of their own.
    pub fn new(max: usize) -> Self {
        Self {
            max,
            ..Self::default()
        }
    }

    /// Adds the next one in the order of domains and names.
    pub fn add(&mut self, row: FeatureRow) {
        self.all += 1;
        self.breached += usize::from(row.breach.is_some());
        self.moving += usize::from(row.status == FeatureStatus::Moving);
        if self.rows.len() < self.max {
            self.rows.push(row);
        }
    }
}

type DiskCounter = (&'static str, &'static str, fn(&Operations) -> f64);
type HostGauge = (&'static str, &'static str, fn(&HostState) -> f64);

const HOST: [HostGauge; 10] = [
    ("drover_host_cpus", "Capacity of this host.", |h| {
        h.capabilities.cpus
    }),
    ("drover_host_used_cpus", "CPUs in use.", |h| {
        h.load.cpus_used
    }),
    (
        "drover_host_reserved_cpus",
        "CPUs reserved for moves under way.",
        |h| h.reserved_cpus,
    ),
    ("drover_host_memory_bytes", "Memory capacity.", |h| {
        h.capabilities.memory_mib * MIB
    }),
    (
        "drover_host_used_memory_bytes",
        "Memory used by the guests, by their own view.",
        |h| h.load.memory_used_mib * MIB,
    ),
    (
        "drover_host_reserved_memory_bytes",
        "Memory reserved for moves under way.",
        |h| h.reserved_memory_mib * MIB,
    ),
    (
        "drover_host_network_bytes_per_second",
        "Bytes received and sent by the guests.",
        |h| h.load.net_bps,
    ),
    (
        "drover_host_disk_bytes_per_second",
        "Bytes read and written by the guests.",
        |h| h.load.disk_bps,
    ),
    (
        "drover_host_stalled_ratio",
        "Part of the time in which something waited for a CPU.",
        |h| h.load.stall_percent / 100.0,
    ),
    (
        "drover_host_accepts_moves",
        "1 when features may move to this host.",
        |h| f64::from(u8::from(h.accepts)),
    ),
];

/// The page.
pub fn render(s: &Snapshot<'_>) -> String {
    let mut page = Page::default();
    page.family("drover_build", Kind::Info, "Version of droverd.")
        .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    if let Some(me) = s.hosts.first() {
        host(&mut page, me);
        qemu(&mut page, me);
    }
    features(&mut page, s);
    let mut up = page.family(
        "drover_peer_up",
        Kind::Gauge,
        "1 when the peer is connected and told its state.",
    );
    for name in s.peers {
        let heard = s.hosts.iter().skip(1).any(|h| h.name == *name);
        up.sample(&[("peer", name)], f64::from(u8::from(heard)));
    }
    counters(&mut page, &s.counts);
    page.end()
}

fn host(page: &mut Page, me: &HostState) {
    for (name, help, get) in HOST {
        page.family(name, Kind::Gauge, help).sample(&[], get(me));
    }
    let running = me.instances.iter().filter(|i| i.running);
    let helpers = running.clone().filter(|i| match i.helper {
        HelperState::Connected { .. } => true,
        HelperState::Absent { .. } => false,
    });
    page.family("drover_instances", Kind::Gauge, "Guests that run.")
        .sample(&[], running.clone().count() as f64);
    page.family(
        "drover_helpers",
        Kind::Gauge,
        "Guests whose helper is connected.",
    )
    .sample(&[], helpers.count() as f64);
}

/// What QEMU's monitors tell, of the domains that the administrator has asked.
fn qemu(page: &mut Page, me: &HostState) {
    let asked: Vec<(&str, &QemuState)> = me
        .instances
        .iter()
        .filter_map(|i| Some((i.domain.as_str(), i.qemu.as_deref()?)))
        .collect();
    if asked.is_empty() {
        return;
    }
    let families: [DiskCounter; 3] = [
        (
            "drover_disk_operations",
            "Operations of a domain's disk.",
            |o| o.count as f64,
        ),
        (
            "drover_disk_failures",
            "Operations of a domain's disk that failed.",
            |o| o.failed as f64,
        ),
        (
            "drover_disk_seconds",
            "Time that the operations of a domain's disk took.",
            |o| o.seconds,
        ),
    ];
    for (name, help, value) in families {
        let mut family = page.family(name, Kind::Counter, help);
        for (domain, q) in &asked {
            for (disk, d) in &q.disks {
                for (kind, o) in [("read", &d.read), ("write", &d.write)] {
                    let labels = [("domain", *domain), ("disk", disk.as_str()), ("kind", kind)];
                    family.sample(&labels, value(o));
                }
            }
        }
    }
    let help = "What a domain's QEMU told by itself.";
    let mut family = page.family("drover_qemu_events", Kind::Counter, help);
    for (domain, q) in &asked {
        for (name, n) in &q.events.counts {
            family.sample(&[("domain", *domain), ("event", name.as_str())], *n as f64);
        }
    }
    let mut family = page.family("drover_kvm", Kind::Counter, "KVM's counters of a domain.");
    for (domain, q) in &asked {
        for (name, value) in &q.kvm {
            family.sample(
                &[("domain", *domain), ("name", name.as_str())],
                *value as f64,
            );
        }
    }
}

fn features(page: &mut Page, s: &Snapshot<'_>) {
    let Features {
        rows,
        all,
        breached,
        moving,
        ..
    } = s.features;
    let mut each = |name: &str, help: &str, get: &dyn Fn(&FeatureRow) -> Option<f64>| {
        let mut family = page.family(name, Kind::Gauge, help);
        for f in rows {
            let labels = [
                ("domain", f.domain.as_str()),
                ("feature", f.spec.name.as_str()),
            ];
            if let Some(value) = get(f) {
                family.sample(&labels, value);
            }
        }
    };
    for c in COLUMNS {
        let (name, help) = c.metric;
        each(&format!("drover_feature_{name}"), help, &|f| {
            // What a feature used before it stopped is not what it uses.
            let metered = matches!(f.status, FeatureStatus::Running | FeatureStatus::Moving);
            let value = f.usage.as_ref().filter(|_| metered).and_then(c.get);
            value.map(|v| v * c.unit.factor())
        });
    }
    let flag = |b: bool| Some(f64::from(u8::from(b)));
    each(
        "drover_feature_running",
        "1 when the feature runs, also while it moves away.",
        &|f| {
            flag(matches!(
                f.status,
                FeatureStatus::Running | FeatureStatus::Moving
            ))
        },
    );
    each(
        "drover_feature_breached",
        "1 while a threshold of the feature is crossed.",
        &|f| flag(f.breach.is_some()),
    );
    page.family("drover_features", Kind::Gauge, "Features of this host.")
        .sample(&[], *all as f64);
    page.family(
        "drover_features_omitted",
        Kind::Gauge,
        "Features without series of their own, as there are more than metrics.max_features.",
    )
    .sample(&[], (all - rows.len()) as f64);
    page.family(
        "drover_breaches_active",
        Kind::Gauge,
        "Features with a threshold crossed.",
    )
    .sample(&[], *breached as f64);
    page.family(
        "drover_moves_active",
        Kind::Gauge,
        "Moves from this host under way.",
    )
    .sample(&[], *moving as f64);
}

fn counters(page: &mut Page, c: &Counts) {
    let mut moves = page.family(
        "drover_moves",
        Kind::Counter,
        "Ended moves from this host by result.",
    );
    for ((_, result), n) in RESULTS.iter().zip(c.moves) {
        moves.sample(&[("result", result)], n as f64);
    }
    let mut decisions = page.family("drover_decisions", Kind::Counter, "Decisions by outcome.");
    for (outcome, n) in OUTCOMES.iter().zip(c.decisions) {
        decisions.sample(&[("outcome", outcome)], n as f64);
    }
    let mut one = |name, help: &str, value: f64| {
        page.family(name, Kind::Counter, help).sample(&[], value);
    };
    one("drover_breaches", "Breaches that began.", c.breaches as f64);
    one(
        "drover_arrivals",
        "Features that arrived from other hosts.",
        c.arrivals as f64,
    );
    one(
        "drover_moves_sent_bytes",
        "Bytes that ended moves sent to other hosts.",
        c.bytes_sent as f64,
    );
    one(
        "drover_moves_frozen_seconds",
        "Time for which features were frozen in moves that were done.",
        c.freeze_ms as f64 / 1_000.0,
    );
}

#[cfg(test)]
#[path = "families_tests.rs"]
mod tests;
