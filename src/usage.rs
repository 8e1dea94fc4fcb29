//! Rates from two raw samples. Pure: nothing is returned when the identity changed, time did not
//! advance, or a counter went back.

use serde::{Deserialize, Serialize};

use crate::feature::Resource;
use crate::sample::RawSample;

/// Use of one feature over the interval that ended at `at_ms`. `None` means unavailable.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Wall clock of the host at the end of the interval, milliseconds since the epoch.
    pub at_ms: i64,
    /// Length of the interval, seconds.
    pub dt_s: f64,
    /// Percent of one CPU.
    pub cpu_percent: Option<f64>,
    /// User part of `cpu_percent`.
    #[serde(default)]
    pub cpu_user_percent: Option<f64>,
    /// System part of `cpu_percent`.
    #[serde(default)]
    pub cpu_system_percent: Option<f64>,
    /// The feature's share of what its domain costs the host, percent of one host CPU: its
    /// part of the vCPUs' time, and of the emulator's and I/O threads' that the guest does not
    /// see (see `attribution`).
    #[serde(default)]
    pub host_cpu_percent: Option<f64>,
    /// Percent of the interval throttled by `cpu.max`.
    pub throttled_percent: Option<f64>,
    /// MiB charged to the cgroup.
    pub memory_mib: Option<f64>,
    /// MiB of anonymous memory among them.
    #[serde(default)]
    pub memory_anon_mib: Option<f64>,
    /// MiB of page cache among them.
    #[serde(default)]
    pub memory_file_mib: Option<f64>,
    /// Processes killed for want of memory in the interval.
    #[serde(default)]
    pub oom_kills: Option<f64>,
    /// Bytes per second received.
    pub net_rx_bps: Option<f64>,
    /// Bytes per second sent.
    pub net_tx_bps: Option<f64>,
    /// Bytes per second read from storage.
    pub disk_read_bps: Option<f64>,
    /// Bytes per second written to storage.
    pub disk_write_bps: Option<f64>,
    /// Reads of storage per second.
    #[serde(default)]
    pub disk_reads_ps: Option<f64>,
    /// Writes to storage per second.
    #[serde(default)]
    pub disk_writes_ps: Option<f64>,
    /// Percent of the interval stalled for CPU (PSI some).
    pub psi_cpu_percent: Option<f64>,
    /// Percent of the interval stalled for memory.
    pub psi_memory_percent: Option<f64>,
    /// Percent of the interval stalled for I/O.
    pub psi_io_percent: Option<f64>,
    /// Processes at the end of the interval.
    pub processes: Option<f64>,
}

impl Usage {
    /// CPUs that the feature takes of its host: its share of what its guest costs, where that is
    /// known, else what the guest counted. Guests that do not see stolen time count too much.
    pub fn cpus(&self) -> Option<f64> {
        let percent = self.host_cpu_percent.or(self.cpu_percent)?;
        Some(percent / 100.0)
    }

    /// The value that thresholds on `resource` look at, in the resource's unit.
    pub fn get(&self, resource: Resource) -> Option<f64> {
        match resource {
            Resource::Cpu => self.cpu_percent,
            Resource::Memory => self.memory_mib,
            Resource::NetRx => self.net_rx_bps,
            Resource::NetTx => self.net_tx_bps,
            Resource::DiskRead => self.disk_read_bps,
            Resource::DiskWrite => self.disk_write_bps,
        }
    }
}

/// Bytes in a MiB.
pub const MIB: f64 = 1_048_576.0;

/// How much more than all of its CPUs a feature may seem to use, because its counter and the
/// clock are not read at the same moment: a fraction, and seconds.
const CPU_SLACK: (f64, f64) = (0.05, 0.1);

/// Use between two samples of the same feature; `at_ms` is the host's wall clock for `now`, and
/// `cpus` the number of the guest's CPUs, 0 when that is not known.
///
/// `None` when the samples cannot be compared: another identity (cgroup made anew, guest
/// rebooted, feature moved), no time between them, any counter that went back, or more CPU time
/// than there was (a clock that stood still while the counters went on).
pub fn usage(before: &RawSample, now: &RawSample, at_ms: i64, cpus: u32) -> Option<Usage> {
    if before.identity != now.identity || before.feature != now.feature {
        return None;
    }
    let dt_ns = now.at_ns.checked_sub(before.at_ns).filter(|d| *d > 0)?;
    let dt_s = dt_ns as f64 / 1e9;
    let (a, b) = (&before.counters, &now.counters);
    // Outer None: went back, discard the pair. Inner None: unavailable on one side.
    let diff = |x: Option<u64>, y: Option<u64>| -> Option<Option<f64>> {
        match (x, y) {
            (Some(x), Some(y)) => y.checked_sub(x).map(|d| Some(d as f64)),
            _ => Some(None),
        }
    };
    if cpus > 0
        && let (Some(x), Some(y)) = (a.cpu_usec, b.cpu_usec)
        && y.saturating_sub(x) as f64 / 1e6
            > f64::from(cpus) * (dt_s * (1.0 + CPU_SLACK.0) + CPU_SLACK.1)
    {
        return None;
    }
    let percent = |x, y| diff(x, y).map(|d| d.map(|usec| usec / (dt_s * 1e6) * 100.0));
    let rate = |x, y| diff(x, y).map(|d| d.map(|bytes| bytes / dt_s));
    let mib = |x: Option<u64>| x.map(|m| m as f64 / MIB);
    Some(Usage {
        at_ms,
        dt_s,
        cpu_percent: percent(a.cpu_usec, b.cpu_usec)?,
        cpu_user_percent: percent(a.cpu_user_usec, b.cpu_user_usec)?,
        cpu_system_percent: percent(a.cpu_system_usec, b.cpu_system_usec)?,
        host_cpu_percent: None,
        throttled_percent: percent(a.cpu_throttled_usec, b.cpu_throttled_usec)?,
        memory_mib: mib(b.memory_bytes),
        memory_anon_mib: mib(b.memory_anon_bytes),
        memory_file_mib: mib(b.memory_file_bytes),
        oom_kills: diff(a.oom_kills, b.oom_kills)?,
        net_rx_bps: rate(a.net_rx_bytes, b.net_rx_bytes)?,
        net_tx_bps: rate(a.net_tx_bytes, b.net_tx_bytes)?,
        disk_read_bps: rate(a.disk_read_bytes, b.disk_read_bytes)?,
        disk_write_bps: rate(a.disk_write_bytes, b.disk_write_bytes)?,
        disk_reads_ps: rate(a.disk_reads, b.disk_reads)?,
        disk_writes_ps: rate(a.disk_writes, b.disk_writes)?,
        psi_cpu_percent: percent(a.psi_cpu_usec, b.psi_cpu_usec)?,
        psi_memory_percent: percent(a.psi_memory_usec, b.psi_memory_usec)?,
        psi_io_percent: percent(a.psi_io_usec, b.psi_io_usec)?,
        processes: b.processes.map(|p| p as f64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature::FeatureName;
    use crate::sample::Counters;

    fn sample(identity: u64, at_ns: u64, cpu: u64) -> RawSample {
        RawSample {
            feature: FeatureName::new("f").unwrap(),
            identity,
            at_ns,
            counters: Counters {
                cpu_usec: Some(cpu),
                ..Counters::default()
            },
        }
    }

    #[test]
    fn rate() {
        let u = usage(&sample(1, 0, 0), &sample(1, 2_000_000_000, 600_000), 5, 1).unwrap();
        assert_eq!(u.cpu_percent, Some(30.0));
        assert_eq!(u.net_rx_bps, None);
    }

    #[test]
    fn the_hosts_view_where_it_is_known() {
        let mut u = Usage {
            cpu_percent: Some(90.0),
            host_cpu_percent: Some(40.0),
            ..Usage::default()
        };
        assert_eq!(u.cpus(), Some(0.4));
        u.host_cpu_percent = None;
        assert_eq!(u.cpus(), Some(0.9));
        u.cpu_percent = None;
        assert_eq!(u.cpus(), None);
    }

    #[test]
    fn never_a_spike() {
        let a = sample(1, 1_000_000_000, 1000);
        assert_eq!(
            usage(&a, &sample(2, 2_000_000_000, 2000), 0, 0),
            None,
            "other identity"
        );
        assert_eq!(
            usage(&a, &sample(1, 2_000_000_000, 999), 0, 0),
            None,
            "counter went back"
        );
        assert_eq!(
            usage(&a, &sample(1, 1_000_000_000, 1001), 0, 0),
            None,
            "no time"
        );
        assert_eq!(
            usage(&a, &sample(1, 500_000_000, 1001), 0, 0),
            None,
            "clock went back"
        );
        // One CPU cannot give 3 s in 1 s, four can.
        let b = sample(1, 2_000_000_000, 3_001_000);
        assert_eq!(usage(&a, &b, 0, 1), None, "more than there was");
        assert!(usage(&a, &b, 0, 4).is_some());
        assert!(usage(&a, &b, 0, 0).is_some(), "CPUs not known");
    }
}
