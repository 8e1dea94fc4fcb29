//! Load of domains and of the host, from two samples. Pure but for [`MachineSample::read`].

use super::{DomainStats, ProcessTimes};
use crate::attribution::DomainCost;
use crate::config::LoadSource;
use crate::host::HostLoad;

/// What a domain used between two samples. `None` is *unavailable*.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DomainRates {
    /// What it costs the host.
    pub cost: DomainCost,
    /// Memory in use as the guest sees it, MiB.
    pub memory_used_mib: Option<f64>,
}

/// One sample of a domain: what libvirt tells, and its process. Either may be missing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pair<'a, T> {
    /// The sample before, and how many seconds ago it was.
    pub before: Option<(&'a T, f64)>,
    /// The sample now.
    pub after: Option<&'a T>,
}

/// Rates of one domain from two samples of each kind. Counters of another domain, of another run
/// of it or of another process, or that went back, give no rate.
pub fn domain_rates(
    stats: &Pair<'_, DomainStats>,
    process: &Pair<'_, ProcessTimes>,
) -> DomainRates {
    let mut rates = DomainRates::default();
    let cost = &mut rates.cost;
    if let Some(after) = stats.after {
        let before = stats.before.filter(|(b, elapsed)| {
            b.uuid == after.uuid && b.id == after.id && after.id.is_some() && *elapsed > 0.0
        });
        let rate = |get: fn(&DomainStats) -> Option<u64>| {
            let (b, elapsed) = before?;
            let difference = get(after)?.checked_sub(get(b)?)?;
            Some(difference as f64 / elapsed)
        };
        let sum = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        };
        cost.cpus = rate(|s| s.cpu_time_ns).map(|ns| ns / 1e9);
        cost.vcpus = rate(|s| s.vcpu_time_ns).map(|ns| ns / 1e9);
        cost.steal_percent = rate(|s| s.delay_ns).and_then(|ns| steal(ns, after.vcpus?));
        cost.memory_mib = after.rss_kib.map(|kib| kib as f64 / 1024.0);
        cost.balloon_mib = after.balloon_current_kib.map(|kib| kib as f64 / 1024.0);
        cost.net_bps = sum(rate(|s| s.net_rx_bytes), rate(|s| s.net_tx_bytes));
        cost.disk_bps = sum(rate(|s| s.disk_read_bytes), rate(|s| s.disk_write_bytes));
        cost.disk_ops = sum(rate(|s| s.disk_reads), rate(|s| s.disk_writes));
        rates.memory_used_mib = after.memory_used_mib();
    }
    if let Some(after) = process.after {
        let before = process
            .before
            .filter(|(b, elapsed)| b.identity == after.identity && *elapsed > 0.0);
        let rate = |get: fn(&ProcessTimes) -> u64| {
            let (b, elapsed) = before?;
            Some(get(after).checked_sub(get(b))? as f64 / 1e9 / elapsed)
        };
        // libvirt's total is of the control group: kernel threads that work for it (vhost) are in
        // it. Without one the process is what there is.
        cost.cpus = cost.cpus.or(rate(|p| p.total_ns));
        cost.vcpus = rate(|p| p.vcpu_ns).or(cost.vcpus);
        cost.iothreads = rate(|p| p.iothread_ns);
        if cost.steal_percent.is_none()
            && let (Some((b, elapsed)), Some(now)) = (before, after.steal_ns)
        {
            cost.steal_percent = b
                .steal_ns
                .and_then(|then| now.checked_sub(then))
                .and_then(|ns| steal(ns as f64 / elapsed, after.vcpus));
        }
        cost.memory_mib = Some(after.rss_bytes as f64 / crate::usage::MIB);
    }
    // The parts are read one after the other and must not be more than the whole.
    if let (Some(all), Some(vcpus)) = (cost.cpus, cost.vcpus) {
        let vcpus = vcpus.min(all);
        let io = cost.iothreads.unwrap_or(0.0).min(all - vcpus);
        cost.vcpus = Some(vcpus);
        cost.iothreads = cost.iothreads.map(|_| io);
        cost.emulator = Some(all - vcpus - io);
    }
    rates
}

/// Percent of the vCPUs' time, from nanoseconds per second of all of them.
fn steal(ns_per_s: f64, vcpus: u32) -> Option<f64> {
    (vcpus > 0).then(|| (ns_per_s / 1e9 / f64::from(vcpus) * 100.0).clamp(0.0, 100.0))
}

/// Counters of the machine at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MachineSample {
    /// Busy time of all CPUs since boot, in clock ticks.
    pub busy_ticks: u64,
    /// Busy and idle time of all CPUs since boot, in clock ticks.
    pub all_ticks: u64,
    /// CPUs online.
    pub cpus: u32,
    /// Memory in use (`MemTotal` without `MemAvailable`), KiB.
    pub memory_used_kib: u64,
    /// Time during which something waited for a CPU since boot (PSI `some`), microseconds.
    pub stall_usec: Option<u64>,
}

impl MachineSample {
    /// Reads `/proc`. Fails when `/proc/stat` or `/proc/meminfo` cannot be read or understood;
    /// without pressure information the stall is unavailable.
    pub fn read() -> std::io::Result<Self> {
        let stat = std::fs::read_to_string("/proc/stat")?;
        let meminfo = std::fs::read_to_string("/proc/meminfo")?;
        let pressure = std::fs::read_to_string("/proc/pressure/cpu").ok();
        Self::parse(&stat, &meminfo, pressure.as_deref()).ok_or_else(|| {
            std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                "/proc/stat or /proc/meminfo cannot be understood",
            )
        })
    }

    /// Takes the texts of `/proc/stat`, `/proc/meminfo` and `/proc/pressure/cpu`.
    pub fn parse(stat: &str, meminfo: &str, pressure: Option<&str>) -> Option<Self> {
        let ticks: Vec<u64> = stat
            .lines()
            .find_map(|l| l.strip_prefix("cpu "))?
            .split_whitespace()
            .take(8) // guest time is part of user time
            .map(|t| t.parse().ok())
            .collect::<Option<_>>()?;
        let all: u64 = ticks.iter().sum();
        let idle = ticks.get(3)? + ticks.get(4).copied().unwrap_or(0);
        let cpus = stat
            .lines()
            .filter(|l| {
                l.strip_prefix("cpu")
                    .is_some_and(|r| r.starts_with(|c: char| c.is_ascii_digit()))
            })
            .count() as u32;
        let kib = |key: &str| {
            meminfo.lines().find_map(|l| {
                l.strip_prefix(key)?
                    .split_whitespace()
                    .next()?
                    .parse::<u64>()
                    .ok()
            })
        };
        let stall_usec = pressure.and_then(|p| {
            p.lines()
                .find(|l| l.starts_with("some "))?
                .rsplit_once("total=")?
                .1
                .trim()
                .parse()
                .ok()
        });
        Some(Self {
            busy_ticks: all.saturating_sub(idle),
            all_ticks: all,
            cpus,
            memory_used_kib: kib("MemTotal:")?.saturating_sub(kib("MemAvailable:")?),
            stall_usec,
        })
    }
}

/// The host's load over `elapsed_s` seconds. `machine` holds two samples of the machine, for
/// [`LoadSource::Machine`]; `domains` the rates of the running domains with their vCPUs. Network
/// and disk are the domains' in any case. Without samples of the machine the domains' sum is
/// taken.
pub fn host_load(
    source: LoadSource,
    machine: Option<(&MachineSample, &MachineSample)>,
    domains: &[(DomainRates, u32)],
    elapsed_s: f64,
) -> HostLoad {
    let sum = |f: fn(&DomainRates) -> Option<f64>| domains.iter().filter_map(|(r, _)| f(r)).sum();
    let vcpus: f64 = domains.iter().map(|(_, n)| f64::from(*n)).sum();
    let stolen: f64 = domains
        .iter()
        .filter_map(|(r, n)| Some(r.cost.steal_percent? * f64::from(*n)))
        .sum();
    let mut load = HostLoad {
        cpus_used: sum(|r| r.cost.cpus),
        memory_used_mib: sum(|r| r.memory_used_mib),
        net_bps: sum(|r| r.cost.net_bps),
        disk_bps: sum(|r| r.cost.disk_bps),
        stall_percent: if vcpus > 0.0 { stolen / vcpus } else { 0.0 },
    };
    if source == LoadSource::Machine
        && let Some((before, after)) = machine
    {
        let all = after.all_ticks.saturating_sub(before.all_ticks);
        let busy = after.busy_ticks.saturating_sub(before.busy_ticks);
        if all > 0 {
            load.cpus_used = busy as f64 / all as f64 * f64::from(after.cpus);
        }
        load.memory_used_mib = after.memory_used_kib as f64 / 1024.0;
        if let (Some(b), Some(a)) = (before.stall_usec, after.stall_usec)
            && elapsed_s > 0.0
        {
            let stalled = a.saturating_sub(b) as f64 / 1e6;
            load.stall_percent = (stalled / elapsed_s * 100.0).clamp(0.0, 100.0);
        }
    }
    load
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(id: u32, cpu_ns: u64, rx: Option<u64>) -> DomainStats {
        DomainStats {
            uuid: "u".into(),
            id: Some(id),
            running: true,
            cpu_time_ns: Some(cpu_ns),
            delay_ns: Some(cpu_ns / 2),
            vcpus: Some(2),
            rss_kib: Some(10 * 1024),
            net_rx_bytes: rx,
            ..DomainStats::default()
        }
    }

    fn rates(before: &DomainStats, after: &DomainStats, elapsed: f64) -> DomainRates {
        let pair = Pair {
            before: Some((before, elapsed)),
            after: Some(after),
        };
        domain_rates(&pair, &Pair::default())
    }

    #[test]
    fn rates_of_a_domain() {
        let r = rates(
            &stats(1, 0, Some(0)),
            &stats(1, 2_000_000_000, Some(500)),
            2.0,
        );
        assert_eq!((r.cost.cpus, r.cost.steal_percent), (Some(1.0), Some(25.0)));
        assert_eq!((r.cost.net_bps, r.cost.disk_bps), (Some(250.0), None));
        assert_eq!(r.memory_used_mib, Some(10.0));
        assert_eq!(r.cost.emulator, None, "the vCPUs' part is not known");
    }

    #[test]
    fn no_rate_across_a_restart_or_backwards() {
        let r = rates(&stats(1, 5, None), &stats(2, 50, None), 1.0);
        assert_eq!(r.cost.cpus, None);
        let r = rates(&stats(1, 50, None), &stats(1, 5, None), 1.0);
        assert_eq!((r.cost.cpus, r.cost.net_bps), (None, None));
        let r = rates(&stats(1, 5, None), &stats(1, 50, None), 0.0);
        assert_eq!(r.cost.cpus, None);
    }

    #[test]
    fn parts_of_a_process() {
        let times = |total_ns, vcpu_ns, start| ProcessTimes {
            identity: (7, start),
            total_ns,
            vcpu_ns,
            iothread_ns: total_ns / 10,
            steal_ns: Some(total_ns / 4),
            vcpus: 1,
            rss_bytes: 64 << 20,
        };
        let of = |before: &ProcessTimes, after: &ProcessTimes| {
            let pair = Pair {
                before: Some((before, 2.0)),
                after: Some(after),
            };
            domain_rates(&Pair::default(), &pair).cost
        };
        let c = of(&times(0, 0, 1), &times(2_000_000_000, 1_400_000_000, 1));
        assert_eq!(
            (c.cpus, c.vcpus, c.iothreads),
            (Some(1.0), Some(0.7), Some(0.1))
        );
        assert!((c.emulator.unwrap() - 0.2).abs() < 1e-9);
        assert_eq!((c.steal_percent, c.memory_mib), (Some(25.0), Some(64.0)));
        // Another process under the same number.
        let c = of(&times(0, 0, 1), &times(2_000_000_000, 1, 2));
        assert_eq!((c.cpus, c.vcpus, c.memory_mib), (None, None, Some(64.0)));
        // Parts read later than the whole are not more than it.
        let c = of(&times(0, 0, 1), &times(1_000_000_000, 1_200_000_000, 1));
        assert_eq!(
            (c.vcpus, c.emulator, c.iothreads),
            (Some(0.5), Some(0.0), Some(0.0))
        );
    }

    const MEMINFO: &str = "MemTotal:  4096 kB\nMemFree: 100 kB\nMemAvailable:  1024 kB\n";

    #[test]
    fn load_of_the_machine_and_of_the_domains() {
        let before = MachineSample::parse(
            "cpu  100 0 100 700 100 0 0 0 50 0\ncpu0 1 2 3 4\ncpu1 1 2 3 4\n",
            MEMINFO,
            Some("some avg10=0.00 avg60=0.00 avg300=0.00 total=1000000\nfull total=7\n"),
        )
        .unwrap();
        assert_eq!(
            (before.busy_ticks, before.all_ticks, before.cpus),
            (200, 1000, 2)
        );
        let mut after = before;
        (after.busy_ticks, after.all_ticks) = (300, 1200);
        after.stall_usec = Some(1_500_000);
        let domains = [(
            DomainRates {
                cost: DomainCost {
                    cpus: Some(0.5),
                    steal_percent: Some(10.0),
                    net_bps: Some(3.0),
                    ..DomainCost::default()
                },
                memory_used_mib: None,
            },
            2,
        )];
        let load = host_load(LoadSource::Machine, Some((&before, &after)), &domains, 1.0);
        assert_eq!((load.cpus_used, load.memory_used_mib), (1.0, 3.0));
        assert_eq!((load.stall_percent, load.net_bps), (50.0, 3.0));
        let load = host_load(LoadSource::Domains, Some((&before, &after)), &domains, 1.0);
        assert_eq!((load.cpus_used, load.stall_percent), (0.5, 10.0));
        assert!(MachineSample::parse("cpu  1 2", MEMINFO, None).is_none());
    }

    #[test]
    fn the_machine_at_hand_can_be_read() {
        let s = MachineSample::read().unwrap();
        assert!(s.cpus > 0 && s.all_ticks > 0 && s.memory_used_kib > 0);
    }
}
