//! Who causes what a domain costs its host.
//!
//! A guest sees the CPU time of its features, not what QEMU spends for them: emulated devices, I/O
//! threads, the hypervisor's part of the vCPUs' time. All of it is given to somebody: to the
//! features, or to the *rest* of the guest (its kernel, other services, an idle guest's timers).
//!
//! - The vCPUs' host time is shared by the CPU time that the guest counted.
//! - The emulator's and the I/O threads' time is shared by the bytes of network and storage; in an
//!   interval without any, as the vCPUs' time.
//! - Memory, network and storage are what the features counted; the rest is what the domain has
//!   beyond it.
//!
//! Features plus rest add up to the domain's total. What a feature did not count it is not given.

use serde::{Deserialize, Serialize};

/// What a domain costs the host, over an interval. `None` is *unavailable*.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DomainCost {
    /// CPUs in use by the whole of QEMU.
    pub cpus: Option<f64>,
    /// CPUs in use by the vCPUs among them.
    pub vcpus: Option<f64>,
    /// CPUs in use by I/O threads among them.
    pub iothreads: Option<f64>,
    /// CPUs in use by the emulator: all but vCPUs and I/O threads.
    pub emulator: Option<f64>,
    /// Percent of the vCPUs' time spent waiting for a host CPU (steal), 0 to 100.
    pub steal_percent: Option<f64>,
    /// Memory of the host that QEMU holds, MiB.
    pub memory_mib: Option<f64>,
    /// Memory that the balloon leaves to the guest, MiB.
    pub balloon_mib: Option<f64>,
    /// Bytes per second received and sent on the domain's interfaces.
    pub net_bps: Option<f64>,
    /// Bytes per second read and written on the domain's disks.
    pub disk_bps: Option<f64>,
    /// Reads and writes per second on the domain's disks.
    pub disk_ops: Option<f64>,
}

/// What a feature used, as its guest counted. `None` is *unavailable*.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct FeatureUse {
    /// CPUs.
    pub cpus: Option<f64>,
    /// MiB charged to its cgroup.
    pub memory_mib: Option<f64>,
    /// Bytes per second received and sent.
    pub net_bps: Option<f64>,
    /// Bytes per second read and written.
    pub disk_bps: Option<f64>,
}

/// A share of a domain's cost. `None` where the domain's total is unavailable or, for a feature,
/// its own use is.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Share {
    /// CPUs of the host.
    pub cpus: Option<f64>,
    /// MiB of the host's memory.
    pub memory_mib: Option<f64>,
    /// Bytes per second received and sent.
    pub net_bps: Option<f64>,
    /// Bytes per second read and written.
    pub disk_bps: Option<f64>,
}

/// Parts of `total` in proportion to `parts`, and what is left; `base` is what all of it would be
/// in the parts' measure, if that is known. Parts that are more than `base` share all of it.
fn split(total: f64, base: Option<f64>, parts: &[Option<f64>]) -> (Vec<Option<f64>>, f64) {
    let clean = |p: &Option<f64>| p.filter(|v| v.is_finite() && *v > 0.0).unwrap_or(0.0);
    let sum: f64 = parts.iter().map(clean).sum();
    let base = base.filter(|b| b.is_finite()).unwrap_or(sum).max(sum);
    let given: Vec<Option<f64>> = parts
        .iter()
        .map(|p| {
            p.map(|_| {
                if base > 0.0 {
                    total * (clean(p) / base)
                } else {
                    0.0
                }
            })
        })
        .collect();
    let left = total - given.iter().flatten().sum::<f64>();
    // Rounding may leave a little less than nothing.
    (given, left.max(0.0))
}

/// Shares `cost` between the features and the rest, in the order of `features`. `guest_busy` is how
/// many CPUs the guest saw busy, in all.
pub fn attribute(
    cost: &DomainCost,
    guest_busy: Option<f64>,
    features: &[FeatureUse],
) -> (Vec<Share>, Share) {
    let column = |get: fn(&FeatureUse) -> Option<f64>| -> Vec<Option<f64>> {
        features.iter().map(get).collect()
    };
    let mut shares = vec![Share::default(); features.len()];
    let mut rest = Share::default();

    if let Some(total) = cost.cpus {
        let by_cpu = column(|f| f.cpus);
        let vcpus = cost.vcpus.unwrap_or(total).clamp(0.0, total);
        let (own, own_left) = split(vcpus, guest_busy, &by_cpu);
        let io = |f: &FeatureUse| match (f.net_bps, f.disk_bps) {
            (None, None) => None,
            (n, d) => Some(n.unwrap_or(0.0) + d.unwrap_or(0.0)),
        };
        let by_io: Vec<Option<f64>> = features.iter().map(io).collect();
        let all_io = match (cost.net_bps, cost.disk_bps) {
            (None, None) => None,
            (n, d) => Some(n.unwrap_or(0.0) + d.unwrap_or(0.0)),
        };
        let any = by_io.iter().flatten().any(|v| *v > 0.0) || all_io.is_some_and(|v| v > 0.0);
        let (seen, base) = if any {
            (&by_io, all_io)
        } else {
            (&by_cpu, guest_busy)
        };
        let (overhead, overhead_left) = split(total - vcpus, base, seen);
        for (share, (a, b)) in shares.iter_mut().zip(own.iter().zip(&overhead)) {
            share.cpus = match (a, b) {
                (None, None) => None,
                (a, b) => Some(a.unwrap_or(0.0) + b.unwrap_or(0.0)),
            };
        }
        rest.cpus = Some(own_left + overhead_left);
    }
    let plain =
        |total: Option<f64>, parts: Vec<Option<f64>>| total.map(|t| split(t, Some(t), &parts));
    if let Some((given, left)) = plain(cost.memory_mib, column(|f| f.memory_mib)) {
        for (share, v) in shares.iter_mut().zip(given) {
            share.memory_mib = v;
        }
        rest.memory_mib = Some(left);
    }
    if let Some((given, left)) = plain(cost.net_bps, column(|f| f.net_bps)) {
        for (share, v) in shares.iter_mut().zip(given) {
            share.net_bps = v;
        }
        rest.net_bps = Some(left);
    }
    if let Some((given, left)) = plain(cost.disk_bps, column(|f| f.disk_bps)) {
        for (share, v) in shares.iter_mut().zip(given) {
            share.disk_bps = v;
        }
        rest.disk_bps = Some(left);
    }
    (shares, rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cpu(cpus: f64) -> FeatureUse {
        FeatureUse {
            cpus: Some(cpus),
            ..FeatureUse::default()
        }
    }

    #[test]
    fn hypervisor_time_goes_with_guest_time() {
        // The guest saw 0.5 CPUs busy, 0.25 and 0.125 of them by features; the vCPUs cost 1.0.
        let cost = DomainCost {
            cpus: Some(1.0),
            vcpus: Some(1.0),
            ..DomainCost::default()
        };
        let (shares, rest) = attribute(&cost, Some(0.5), &[cpu(0.25), cpu(0.125)]);
        assert_eq!(
            (shares[0].cpus, shares[1].cpus, rest.cpus),
            (Some(0.5), Some(0.25), Some(0.25))
        );
        assert_eq!(shares[0].memory_mib, None);
    }

    #[test]
    fn the_emulators_time_goes_with_bytes() {
        let cost = DomainCost {
            cpus: Some(1.0),
            vcpus: Some(0.5),
            net_bps: Some(800.0),
            disk_bps: Some(200.0),
            ..DomainCost::default()
        };
        let busy = FeatureUse {
            net_bps: Some(400.0),
            disk_bps: Some(100.0),
            ..cpu(0.0)
        };
        let (shares, rest) = attribute(&cost, Some(0.5), &[busy, cpu(0.5)]);
        assert_eq!(shares[0].cpus, Some(0.25));
        assert_eq!(shares[1].cpus, Some(0.5));
        assert_eq!(rest.cpus, Some(0.25));
        assert_eq!(
            (shares[0].net_bps, rest.net_bps),
            (Some(400.0), Some(400.0))
        );
        assert_eq!(shares[1].net_bps, None, "not counted is not zero");
    }

    #[test]
    fn unavailable_stays_unavailable() {
        let (shares, rest) = attribute(&DomainCost::default(), None, &[cpu(0.5)]);
        assert_eq!((shares[0], rest), (Share::default(), Share::default()));
        let cost = DomainCost {
            cpus: Some(1.0),
            ..DomainCost::default()
        };
        let (shares, rest) = attribute(&cost, None, &[FeatureUse::default()]);
        assert_eq!((shares[0].cpus, rest.cpus), (None, Some(1.0)));
    }

    fn amount() -> impl Strategy<Value = Option<f64>> {
        prop_oneof![Just(None), Just(Some(0.0)), (0.0..1e9_f64).prop_map(Some)]
    }

    fn feature() -> impl Strategy<Value = FeatureUse> {
        (amount(), amount(), amount(), amount()).prop_map(
            |(cpus, memory_mib, net_bps, disk_bps)| FeatureUse {
                cpus,
                memory_mib,
                net_bps,
                disk_bps,
            },
        )
    }

    proptest! {
        #[test]
        fn features_and_rest_add_up(
            cost in (amount(), amount(), amount(), amount(), amount()),
            busy in amount(),
            features in proptest::collection::vec(feature(), 0..20),
        ) {
            let (cpus, vcpus, memory_mib, net_bps, disk_bps) = cost;
            let cost = DomainCost { cpus, vcpus, memory_mib, net_bps, disk_bps, ..DomainCost::default() };
            let (shares, rest) = attribute(&cost, busy, &features);
            prop_assert_eq!(shares.len(), features.len());
            for (total, get) in [
                (cost.cpus, (|s: &Share| s.cpus) as fn(&Share) -> Option<f64>),
                (cost.memory_mib, |s| s.memory_mib),
                (cost.net_bps, |s| s.net_bps),
                (cost.disk_bps, |s| s.disk_bps),
            ] {
                let Some(total) = total else {
                    prop_assert!(get(&rest).is_none() && shares.iter().all(|s| get(s).is_none()));
                    continue;
                };
                let left = get(&rest).unwrap();
                let sum = shares.iter().filter_map(get).sum::<f64>() + left;
                prop_assert!((sum - total).abs() <= total.abs() * 1e-9 + 1e-9, "{} of {}", sum, total);
                prop_assert!(left >= 0.0 && shares.iter().filter_map(get).all(|v| v >= 0.0));
            }
        }
    }
}
