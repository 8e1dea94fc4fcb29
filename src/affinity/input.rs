//! What a score is computed from: a window of use, the expected demand, and the capacity that
//! is left on a host and guest once the feature is there.

use serde::{Deserialize, Serialize};

use crate::feature::FeatureName;
use crate::host::{FeatureStatus, HostState, InstanceState, StorageKind};
use crate::usage::Usage;

/// What a feature is expected to use where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Demand {
    /// CPUs (1.0 is one CPU in full).
    pub cpus: f64,
    /// MiB of memory.
    pub memory_mib: f64,
    /// Bytes per second received and sent.
    pub net_bps: f64,
    /// Bytes per second read and written.
    pub disk_bps: f64,
}

/// Mean and maximum of one resource over a window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Stat {
    /// Mean, weighted by the length of the intervals.
    pub mean: f64,
    /// Largest value of an interval.
    pub max: f64,
}

/// Use of one feature over a window, `None` where nothing was measured.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct UsageWindow {
    /// CPUs of the host, of the points of which its share of them is known; without such points,
    /// CPUs as the guest counted.
    pub cpus: Option<Stat>,
    /// MiB.
    pub memory_mib: Option<Stat>,
    /// Bytes per second, both directions.
    pub net_bps: Option<Stat>,
    /// Bytes per second, both directions.
    pub disk_bps: Option<Stat>,
    /// Bytes per second received.
    pub net_rx_bps: Option<Stat>,
    /// Bytes per second read.
    pub disk_read_bps: Option<Stat>,
    /// Processes.
    pub processes: Option<Stat>,
    /// Percent of the time throttled by its own limit.
    pub throttled_percent: Option<Stat>,
}

/// Sum of two rates of which one may be unavailable; `None` when both are.
pub(crate) fn both(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (None, None) => None,
        (a, b) => Some(a.unwrap_or(0.0) + b.unwrap_or(0.0)),
    }
}

impl UsageWindow {
    /// Summarises points, in any order.
    pub fn of<'a>(points: impl IntoIterator<Item = &'a Usage>) -> Self {
        // Sum of value times seconds, seconds, maximum; per resource.
        let mut sums = [(0.0, 0.0, f64::MIN); 9];
        for u in points {
            let values = [
                u.host_cpu_percent.map(|p| p / 100.0),
                u.cpu_percent.map(|p| p / 100.0),
                u.memory_mib,
                both(u.net_rx_bps, u.net_tx_bps),
                both(u.disk_read_bps, u.disk_write_bps),
                u.net_rx_bps,
                u.disk_read_bps,
                u.processes,
                u.throttled_percent,
            ];
            for (s, v) in sums.iter_mut().zip(values) {
                if let Some(v) = v.filter(|v| v.is_finite() && u.dt_s > 0.0) {
                    *s = (s.0 + v * u.dt_s, s.1 + u.dt_s, s.2.max(v));
                }
            }
        }
        let [
            host_cpus,
            guest_cpus,
            memory_mib,
            net_bps,
            disk_bps,
            net_rx_bps,
            disk_read_bps,
            processes,
            throttled_percent,
        ] = sums.map(|(sum, time, max)| {
            (time > 0.0).then(|| Stat {
                mean: sum / time,
                max,
            })
        });
        Self {
            cpus: host_cpus.or(guest_cpus),
            memory_mib,
            net_bps,
            disk_bps,
            net_rx_bps,
            disk_read_bps,
            processes,
            throttled_percent,
        }
    }

    /// The demand that the window shows: mean CPU, network and disk (peaks share), but the
    /// largest memory (it does not give way). Use is measured, not wished for: a feature pressed
    /// against its guest's CPUs or its quota may want more elsewhere.
    pub fn demand(&self) -> Demand {
        let mean = |s: Option<Stat>| s.map_or(0.0, |s| s.mean);
        Demand {
            cpus: mean(self.cpus),
            memory_mib: self.memory_mib.map_or(0.0, |s| s.max),
            net_bps: mean(self.net_bps),
            disk_bps: mean(self.disk_bps),
        }
    }
}

/// Host CPUs per CPU that the guest counted, over the points that tell both; 1 without such.
pub fn host_per_guest_cpu<'a>(points: impl IntoIterator<Item = &'a Usage>) -> f64 {
    let (mut host, mut guest) = (0.0, 0.0);
    for u in points {
        if let (Some(h), Some(g)) = (u.host_cpu_percent, u.cpu_percent) {
            host += h * u.dt_s;
            guest += g * u.dt_s;
        }
    }
    let ratio = host / guest;
    if ratio.is_finite() && ratio > 0.0 {
        ratio
    } else {
        1.0
    }
}

/// Everything a score depends on.
#[derive(Debug, Clone, Copy)]
pub struct ScoreInput<'a> {
    /// Host to score.
    pub host: &'a HostState,
    /// Guest on it.
    pub instance: &'a InstanceState,
    /// Feature; when it is in `instance` already, its use is part of the measured load,
    /// otherwise `demand` is added to it.
    pub feature: &'a FeatureName,
    /// The feature's use.
    pub window: &'a UsageWindow,
    /// What it is expected to use.
    pub demand: Demand,
}

/// How full a host and a guest on it are with the feature there, as fractions of capacity
/// (1.0 is full, more is overcommitted).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct After {
    /// CPUs of the host, reservations included.
    pub host_cpu: f64,
    /// Memory of the host, reservations included.
    pub host_memory: f64,
    /// CPUs of the guest.
    pub guest_cpu: f64,
    /// Memory of the guest; `None` when the guest does not tell.
    pub guest_memory: Option<f64>,
    /// Network of the host; 1 Gbit/s is assumed when its speed is not known.
    pub host_net: f64,
    /// Storage of the host, of what its kind usually gives (an assumption per kind).
    pub host_disk: f64,
    /// Storage use of the host, bytes per second.
    pub host_disk_bps: f64,
}

/// `used` of `capacity`, always finite: 0 to 100.
pub(crate) fn fraction(used: f64, capacity: f64) -> f64 {
    let f = used / capacity;
    if f.is_finite() && capacity > 0.0 {
        f.clamp(0.0, 100.0)
    } else {
        100.0
    }
}

/// Bytes per second that a kind of storage usually gives under mixed load. Nobody measures it
/// beforehand; the order of the kinds is what matters.
fn disk_bps(kind: StorageKind) -> f64 {
    match kind {
        StorageKind::Hdd => 120e6,
        StorageKind::Unknown => 250e6,
        StorageKind::Ssd => 450e6,
        StorageKind::Nvme => 2000e6,
    }
}

/// Whether the feature is in the guest, so that measured loads contain its use.
pub(crate) fn resident(instance: &InstanceState, feature: &FeatureName) -> bool {
    instance.features.iter().any(|f| {
        f.spec.name == *feature
            && !matches!(f.status, FeatureStatus::Disabled | FeatureStatus::Arriving)
    })
}

impl After {
    /// Simulates `feature` with `demand` on `instance` of `host`.
    pub fn of(
        host: &HostState,
        instance: &InstanceState,
        feature: &FeatureName,
        demand: &Demand,
    ) -> Self {
        let d = if resident(instance, feature) {
            Demand::default()
        } else {
            *demand
        };
        let (load, cap) = (&host.load, &host.capabilities);
        let mbps = if cap.network_mbps > 0.0 {
            cap.network_mbps
        } else {
            1000.0
        };
        let host_disk_bps = load.disk_bps + d.disk_bps;
        Self {
            host_cpu: fraction(load.cpus_used + host.reserved_cpus + d.cpus, cap.cpus),
            host_memory: fraction(
                load.memory_used_mib + host.reserved_memory_mib + d.memory_mib,
                cap.memory_mib,
            ),
            guest_cpu: fraction(
                instance.cpus_used + instance.reserved_cpus + d.cpus,
                instance.vcpus,
            ),
            guest_memory: instance.memory_available_mib.map(|available| {
                fraction(
                    instance.memory_mib - available + instance.reserved_memory_mib + d.memory_mib,
                    instance.memory_mib,
                )
            }),
            host_net: fraction(load.net_bps + d.net_bps, mbps * 125_000.0),
            host_disk: fraction(host_disk_bps, disk_bps(cap.storage)),
            host_disk_bps,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_weights_by_time() {
        let p = |dt_s, cpu| Usage {
            dt_s,
            cpu_percent: cpu,
            net_rx_bps: Some(10.0),
            ..Usage::default()
        };
        let points = [p(1.0, Some(100.0)), p(3.0, Some(20.0)), p(5.0, None)];
        let w = UsageWindow::of(&points);
        assert_eq!(
            w.cpus,
            Some(Stat {
                mean: 0.4,
                max: 1.0
            })
        );
        assert_eq!(w.net_bps.unwrap().mean, 10.0);
        assert_eq!(w.memory_mib, None);
        assert_eq!(w.demand().cpus, 0.4);
    }

    #[test]
    fn a_window_in_one_view() {
        let p = |host, guest| Usage {
            dt_s: 1.0,
            cpu_percent: Some(guest),
            host_cpu_percent: host,
            ..Usage::default()
        };
        let points = [p(None, 100.0), p(Some(30.0), 60.0), p(Some(50.0), 100.0)];
        let w = UsageWindow::of(&points);
        assert_eq!(
            w.cpus,
            Some(Stat {
                mean: 0.4,
                max: 0.5
            })
        );
        assert_eq!(host_per_guest_cpu(&points), 0.5);
        assert_eq!(host_per_guest_cpu(&points[..1]), 1.0);
        assert_eq!(host_per_guest_cpu([&p(Some(1.0), 0.0)]), 1.0);
    }

    #[test]
    fn fractions_are_finite() {
        assert_eq!(fraction(1.0, 0.0), 100.0);
        assert_eq!(fraction(f64::NAN, 1.0), 100.0);
        assert_eq!(fraction(-1.0, 2.0), 0.0);
        assert_eq!(fraction(1.0, 2.0), 0.5);
    }
}
