//! The model's inputs: a fixed list of named columns.
//!
//! A model and a row fit together only when their schema hash is equal, so that a change of the
//! list makes old models and rows of older peers void instead of wrong.

use crate::feature::FeatureName;
use crate::host::{FeatureStatus, HelperState, HostState, InstanceState, StorageKind};

use super::input::{After, ScoreInput, Stat, both, resident};

/// Number of columns.
pub const N: usize = 40;

/// Value of an unknown input: finite, as the trees must be able to split it off, and far from
/// every real value. The gbdt crate's own marker for missing values makes its training diverge.
pub const MISSING: f32 = -1.0e6;

/// Names of the columns, in their order. CPU columns are in CPUs, sizes and rates in
/// log2(1 + MiB) and log2(1 + KiB/s), `after` columns are fractions of capacity with the
/// feature there; all are rounded to steps that matter. A guest's own stall is left out of its
/// host's: rows come from where a feature runs, scores are asked for where it does not run yet, and
/// the column must mean the same.
pub const COLUMNS: [&str; N] = [
    "features_in_guest",
    "own_cpu_mean",
    "own_cpu_max",
    "own_memory_mean",
    "own_memory_max",
    "own_net_mean",
    "own_net_max",
    "own_disk_mean",
    "own_disk_max",
    "own_net_rx",
    "own_disk_read",
    "own_processes",
    "own_throttled",
    // Which feature it is: what its use does not tell (how much it minds a stall).
    "feature_bucket",
    "others_cpu",
    "others_memory",
    "others_io",
    "guest_vcpus",
    "guest_memory",
    "guest_cpu_after",
    "guest_memory_after",
    "host_cpus",
    "host_memory",
    "host_network",
    "storage_hdd",
    "storage_ssd",
    "storage_nvme",
    "virt_kvm",
    "cpu_model_bucket",
    // Which host it is: what its other columns do not tell (a worn disk, a noisy neighbour) is
    // learnt here.
    "host_bucket",
    // How many of its guests could take a feature: the host's row of the compatibility matrix.
    "host_able_guests",
    // The labels that its administrator gave it.
    "host_labels_bucket",
    "host_moves_in",
    "host_memory_left",
    "host_features",
    "host_others_stall",
    "host_cpu_after",
    "host_memory_after",
    "host_net_after",
    "host_disk_after",
];

/// The place of a column, looked up while compiling where its name is written out.
pub(super) const fn column(name: &str) -> usize {
    let mut i = 0;
    while i < N {
        if same(COLUMNS[i].as_bytes(), name.as_bytes()) {
            return i;
        }
        i += 1;
    }
    panic!("there is no such column");
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    let mut i = 0;
    while i < a.len() && i < b.len() && a[i] == b[i] {
        i += 1;
    }
    i == a.len() && i == b.len()
}

/// One input row.
pub type Inputs = [f32; N];

/// FNV-1a, 64 bits; continues from `hash`.
pub(crate) const fn fnv(bytes: &[u8], mut hash: u64) -> u64 {
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        i += 1;
    }
    hash
}
pub(crate) const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

/// Hash over names and order of the columns.
pub const HASH: u64 = {
    let mut hash = FNV_START;
    let mut i = 0;
    while i < N {
        hash = fnv(COLUMNS[i].as_bytes(), hash);
        hash = fnv(b"\n", hash);
        i += 1;
    }
    hash
};

/// Values are rounded to steps that matter: by the last digits of a host's free memory trees would
/// know it again, and learn the host where they should learn what it is like.
fn step(v: f64, per_one: f64) -> f64 {
    (v * per_one).round() / per_one
}
fn log(v: f64) -> f64 {
    step((1.0 + v.max(0.0)).log2(), 4.0)
}
/// A fraction of a capacity, or CPUs.
pub(super) fn part(v: f64) -> f64 {
    step(v, 20.0)
}
pub(super) fn log_rate(bps: f64) -> f64 {
    log(bps / 1024.0)
}
/// A stable number of 0 to `buckets` - 1 for a text.
fn bucket(text: &str, buckets: u64) -> f64 {
    let h = fnv(text.as_bytes(), FNV_START);
    ((h ^ (h >> 32)) % buckets) as f64
}

/// A number for the labels of a host, 0 for none.
fn labels(h: &HostState) -> f64 {
    if h.labels.is_empty() {
        return 0.0;
    }
    let mut hash = FNV_START;
    for (k, v) in &h.labels {
        hash = fnv(k.as_bytes(), hash);
        hash = fnv(&[0], hash);
        hash = fnv(v.as_bytes(), hash);
        hash = fnv(&[0], hash);
    }
    1.0 + ((hash ^ (hash >> 32)) % 256) as f64
}

/// Latest use of the other features in the guest: CPUs, MiB, bytes per second.
fn others(instance: &InstanceState, feature: &FeatureName) -> (f64, f64, f64) {
    let mut sum = (0.0, 0.0, 0.0);
    for u in instance
        .features
        .iter()
        .filter(|f| f.spec.name != *feature && f.status != FeatureStatus::Disabled)
        .filter_map(|f| f.usage)
    {
        sum.0 += u.cpus().unwrap_or(0.0);
        sum.1 += u.memory_mib.unwrap_or(0.0);
        sum.2 += both(u.net_rx_bps, u.net_tx_bps).unwrap_or(0.0)
            + both(u.disk_read_bps, u.disk_write_bps).unwrap_or(0.0);
    }
    sum
}

/// Whether a guest could take features at all.
fn able(i: &InstanceState) -> bool {
    i.running
        && matches!(i.helper, HelperState::Connected { .. })
        && i.capabilities
            .as_ref()
            .is_some_and(|c| !c.criu.is_empty() && c.criu_problem.is_empty())
}

/// What rows of one host have in common.
#[derive(Debug, Clone, Copy)]
pub struct HostPart {
    able: f64,
    features: f64,
    labels: f64,
    cpu_model: f64,
    name: f64,
    /// Percent of time stolen from guests that tell it, times their vCPUs, and those vCPUs.
    stolen: (f64, f64),
}

/// A guest's part of [`HostPart::stolen`].
fn stolen(i: &InstanceState) -> (f64, f64) {
    let steal = i.cost.steal_percent.filter(|_| i.running);
    steal.map_or((0.0, 0.0), |s| (s * i.vcpus, i.vcpus))
}

fn enabled(i: &InstanceState) -> usize {
    let is = |f: &&crate::host::FeatureState| f.status != FeatureStatus::Disabled;
    i.features.iter().filter(is).count()
}

impl HostPart {
    /// Of a host whose instances have their features.
    pub fn of(h: &HostState) -> Self {
        let (mut can, mut features) = (0, 0);
        let mut all = (0.0, 0.0);
        for i in &h.instances {
            let own = stolen(i);
            all = (all.0 + own.0, all.1 + own.1);
            can += usize::from(able(i));
            features += enabled(i);
        }
        Self {
            able: can as f64,
            features: features as f64,
            labels: labels(h),
            cpu_model: bucket(&h.capabilities.cpu_model, 64),
            name: bucket(&h.name, 1024),
            stolen: all,
        }
    }

    /// Of a host whose instances are without their features, of which so many are enabled.
    pub fn with_features(h: &HostState, enabled: usize) -> Self {
        Self {
            features: enabled as f64,
            ..Self::of(h)
        }
    }

    /// Fraction of time stolen from the other guests' vCPUs; `None` without such guests.
    fn others_stall(&self, i: &InstanceState) -> Option<f64> {
        let own = stolen(i);
        let (stolen, vcpus) = (self.stolen.0 - own.0, self.stolen.1 - own.1);
        (vcpus > 1e-6).then(|| (stolen / vcpus / 100.0).clamp(0.0, 1.0))
    }
}

/// The inputs for a feature on a host and guest. Every value is finite; unknown ones are
/// [`MISSING`].
pub fn row(input: &ScoreInput<'_>) -> Inputs {
    row_of(input, &HostPart::of(input.host))
}

/// The same with what rows of the host have in common.
pub(super) fn row_of(input: &ScoreInput<'_>, host: &HostPart) -> Inputs {
    let (h, i, w) = (input.host, input.instance, input.window);
    let cap = &h.capabilities;
    let after = After::of(h, i, input.feature, &input.demand);
    let new = usize::from(!resident(i, input.feature));
    let (others_cpu, others_memory, others_io) = others(i, input.feature);
    let mean = |s: Option<Stat>, f: fn(f64) -> f64| s.map(|s| f(s.mean));
    let max = |s: Option<Stat>, f: fn(f64) -> f64| s.map(|s| f(s.max));
    let flag = |b: bool| Some(f64::from(u8::from(b)));
    let values: [Option<f64>; N] = [
        Some((enabled(i) + new) as f64),
        mean(w.cpus, part),
        max(w.cpus, part),
        mean(w.memory_mib, log),
        max(w.memory_mib, log),
        mean(w.net_bps, log_rate),
        max(w.net_bps, log_rate),
        mean(w.disk_bps, log_rate),
        max(w.disk_bps, log_rate),
        mean(w.net_rx_bps, log_rate),
        mean(w.disk_read_bps, log_rate),
        mean(w.processes, log),
        mean(w.throttled_percent, |v| part(v / 100.0)),
        Some(bucket(input.feature.as_str(), 1024)),
        Some(part(others_cpu)),
        Some(log(others_memory)),
        Some(log_rate(others_io)),
        Some(i.vcpus),
        Some(log(i.memory_mib)),
        Some(part(after.guest_cpu)),
        after.guest_memory.map(part),
        Some(cap.cpus),
        Some(log(cap.memory_mib)),
        (cap.network_mbps > 0.0).then(|| log(cap.network_mbps)),
        flag(cap.storage == StorageKind::Hdd),
        flag(cap.storage == StorageKind::Ssd),
        flag(cap.storage == StorageKind::Nvme),
        flag(cap.virt_type == "kvm"),
        Some(host.cpu_model),
        Some(host.name),
        Some(host.able),
        Some(host.labels),
        Some(f64::from(h.moves_in)),
        Some(log(cap.memory_mib * (1.0 - after.host_memory))),
        Some(host.features + new as f64),
        host.others_stall(i).map(part),
        Some(part(after.host_cpu)),
        Some(part(after.host_memory)),
        (cap.network_mbps > 0.0).then_some(part(after.host_net)),
        Some(log_rate(after.host_disk_bps)),
    ];
    values.map(|v| match v {
        Some(v) if v.is_finite() => v.clamp(-1.0e5, 1.0e5) as f32,
        _ => MISSING,
    })
}

/// Whether a row from elsewhere may be used: every value finite and in range.
pub fn valid(x: &Inputs) -> bool {
    x.iter()
        .all(|v| *v == MISSING || (v.is_finite() && v.abs() <= 1.0e5))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{feature, host, instance};
    use super::super::{Demand, UsageWindow};
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names = COLUMNS.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), N);
    }

    #[test]
    fn unknown_is_missing_and_nothing_is_nan() {
        let mut h = host("a", 4.0);
        h.capabilities.cpus = 0.0;
        h.load.disk_bps = f64::INFINITY;
        let i = instance("g");
        let x = row(&ScoreInput {
            host: &h,
            instance: &i,
            feature: &feature(),
            window: &UsageWindow::default(),
            demand: Demand::default(),
        });
        assert!(valid(&x), "{x:?}");
        let at = |name: &str| x[column(name)];
        assert_eq!(at("own_cpu_mean"), MISSING);
        assert_eq!(at("host_others_stall"), MISSING, "no guest tells it");
        assert_eq!(at("host_network"), MISSING);
        assert_eq!(at("virt_kvm"), 1.0);
        assert_eq!(at("features_in_guest"), 1.0);
    }

    #[test]
    fn stall_is_that_of_the_other_guests() {
        let mut h = host("a", 4.0);
        let steal = |domain: &str, percent| {
            let mut i = instance(domain);
            i.cost.steal_percent = percent;
            i
        };
        let (own, other) = (steal("g", Some(90.0)), steal("h", Some(10.0)));
        h.instances = vec![own.clone(), other, steal("i", None)];
        let part = HostPart::of(&h);
        assert!((part.others_stall(&own).unwrap() - 0.1).abs() < 1e-9);
        h.instances.truncate(1);
        assert_eq!(HostPart::of(&h).others_stall(&own), None);
    }
}
