//! Parsers of the kernel's counter files. What is not there is `None`, never zero.

use crate::sample::GuestTotals;

/// Value of `key` in a file of `key value` lines (`cpu.stat`, `memory.stat`).
pub fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (k, v) = line.split_once(' ')?;
        if k == key {
            v.trim().parse().ok()
        } else {
            None
        }
    })
}

/// A file of one number (`memory.current`, `pids.current`).
pub fn single(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Sum of `key=N` over all devices of `io.stat`; an empty file means that nothing was done yet.
pub fn io_sum(text: &str, key: &str) -> Option<u64> {
    let mut sum = 0_u64;
    for word in text.split_whitespace() {
        if let Some(value) = word.strip_prefix(key).and_then(|w| w.strip_prefix('=')) {
            sum = sum.checked_add(value.parse().ok()?)?;
        }
    }
    Some(sum)
}

/// Microseconds of `some` stall in a pressure file.
pub fn pressure(text: &str) -> Option<u64> {
    let line = text.lines().find(|l| l.starts_with("some "))?;
    let total = line
        .split_whitespace()
        .find_map(|w| w.strip_prefix("total="))?;
    total.parse().ok()
}

/// Received and sent bytes of an interface in `/proc/PID/net/dev`.
pub fn net_dev(text: &str, interface: &str) -> Option<(u64, u64)> {
    text.lines().find_map(|line| {
        let (name, counters) = line.split_once(':')?;
        if name.trim() != interface {
            return None;
        }
        let mut counters = counters.split_whitespace();
        let received = counters.next()?.parse().ok()?;
        let sent = counters.nth(7)?.parse().ok()?;
        Some((received, sent))
    })
}

/// The guest's totals from `/proc/stat` (in clock ticks) and `/proc/meminfo` (in KiB).
pub fn totals(stat: &str, meminfo: &str, ticks_per_second: u64) -> GuestTotals {
    let usec = |ticks: u64| ticks.saturating_mul(1_000_000) / ticks_per_second.max(1);
    let memory = |key: &str| {
        meminfo
            .lines()
            .find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))
            .and_then(|v| v.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or(0)
            .saturating_mul(1024)
    };
    let all: Vec<u64> = stat
        .lines()
        .find_map(|l| l.strip_prefix("cpu "))
        .unwrap_or_default()
        .split_whitespace()
        .map_while(|w| w.parse().ok())
        .collect();
    let column = |n: usize| all.get(n).copied().unwrap_or(0);
    // user, nice, system, (idle, iowait,) irq, softirq; guest time is in user already.
    let busy = [0, 1, 2, 5, 6].map(column).iter().sum();
    GuestTotals {
        cpus: stat
            .lines()
            .filter(|l| {
                l.strip_prefix("cpu")
                    .is_some_and(|r| r.starts_with(|c: char| c.is_ascii_digit()))
            })
            .count() as u32,
        cpu_busy_usec: usec(busy),
        cpu_steal_usec: usec(column(7)),
        memory_total_bytes: memory("MemTotal"),
        memory_available_bytes: memory("MemAvailable"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cgroup_files() {
        let cpu = "usage_usec 1200\nuser_usec 1000\nsystem_usec 200\n";
        assert_eq!(keyed(cpu, "usage_usec"), Some(1200));
        assert_eq!(keyed(cpu, "throttled_usec"), None);
        assert_eq!(single("4096\n"), Some(4096));
        assert_eq!(single("max\n"), None);
        let io = "254:0 rbytes=10 wbytes=5 rios=1 wios=1 dbytes=0\n8:0 rbytes=4 wbytes=0\n";
        assert_eq!(io_sum(io, "rbytes"), Some(14));
        assert_eq!(io_sum(io, "wbytes"), Some(5));
        assert_eq!(io_sum("", "wbytes"), Some(0));
        let psi = "some avg10=0.00 avg60=0.00 avg300=0.00 total=777\nfull avg10=0.00 total=1\n";
        assert_eq!(pressure(psi), Some(777));
        assert_eq!(pressure(""), None);
    }

    #[test]
    fn interfaces() {
        let dev = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets\n    \
            lo:     100       1    0    0    0     0          0         0      100       1    0\n  \
            eth0: 12345      10    0    0    0     0          0         0    54321      11    0\n";
        assert_eq!(net_dev(dev, "eth0"), Some((12345, 54321)));
        assert_eq!(net_dev(dev, "eth1"), None);
        assert_eq!(net_dev("eth0: 5\n", "eth0"), None);
    }

    #[test]
    fn guest_totals() {
        let stat = "cpu  100 1 50 1000 20 3 4 7 0 0\ncpu0 50 0 25 500 10 1 2 3 0 0\n\
                    cpu1 50 1 25 500 10 2 2 4 0 0\nintr 5\n";
        let meminfo = "MemTotal:       1000 kB\nMemFree:  10 kB\nMemAvailable:    500 kB\n";
        let t = totals(stat, meminfo, 100);
        assert_eq!(
            (t.cpus, t.cpu_busy_usec, t.cpu_steal_usec),
            (2, 1_580_000, 70_000)
        );
        assert_eq!(
            (t.memory_total_bytes, t.memory_available_bytes),
            (1_024_000, 512_000)
        );
    }

    proptest! {
        #[test]
        fn never_panics(text in "(?s).{0,200}") {
            keyed(&text, "anon");
            io_sum(&text, "rbytes");
            pressure(&text);
            net_dev(&text, "eth0");
            totals(&text, &text, 0);
        }
    }
}
