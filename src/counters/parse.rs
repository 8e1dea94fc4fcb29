//! Parsers over bytes: one pass, nothing allocated.

use crate::sample::{Counters, GuestTotals};

/// Decimal number at the beginning of `text`, after spaces; `None` when there is none or it does
/// not fit.
fn number(text: &[u8]) -> Option<u64> {
    let start = text.iter().position(|b| *b != b' ')?;
    let mut value: Option<u64> = None;
    for b in &text[start..] {
        if !b.is_ascii_digit() {
            break;
        }
        let digit = u64::from(b - b'0');
        value = Some(value.unwrap_or(0).checked_mul(10)?.checked_add(digit)?);
    }
    value
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| *b == b'\n')
}

/// Values of `keys` in a file of `key value` lines; stops when it has them all.
pub(super) fn keys<const N: usize>(text: &[u8], keys: [&[u8]; N]) -> [Option<u64>; N] {
    let mut found = [None; N];
    let mut missing = N;
    for line in lines(text) {
        for (value, key) in found.iter_mut().zip(keys) {
            if line.len() > key.len() && line[key.len()] == b' ' && line.starts_with(key) {
                if value.is_none() {
                    missing -= 1;
                }
                *value = number(&line[key.len()..]);
            }
        }
        if missing == 0 {
            break;
        }
    }
    found
}

/// Value of `key` in a file of `key value` lines.
pub fn keyed(text: &[u8], key: &[u8]) -> Option<u64> {
    let [value] = keys(text, [key]);
    value
}

/// A file of one number (`memory.current`, `pids.current`); `max` is none.
pub(super) fn single(text: &[u8]) -> Option<u64> {
    number(text)
}

/// Sums over all devices of v2's `io.stat`; an empty file means that nothing was done yet.
pub(super) fn io_stat(text: &[u8], c: &mut Counters) {
    let mut sums = [0_u64; 4];
    for word in text.split(|b| *b == b' ' || *b == b'\n') {
        let (at, rest) = match word {
            [b'r', b'b', b'y', b't', b'e', b's', b'=', rest @ ..] => (0, rest),
            [b'w', b'b', b'y', b't', b'e', b's', b'=', rest @ ..] => (1, rest),
            [b'r', b'i', b'o', b's', b'=', rest @ ..] => (2, rest),
            [b'w', b'i', b'o', b's', b'=', rest @ ..] => (3, rest),
            _ => continue,
        };
        match number(rest).and_then(|n| sums[at].checked_add(n)) {
            Some(sum) => sums[at] = sum,
            // Not to be believed: all of it is unavailable.
            None => return,
        }
    }
    [
        c.disk_read_bytes,
        c.disk_write_bytes,
        c.disk_reads,
        c.disk_writes,
    ] = sums.map(Some);
}

/// Sums of `Read` and `Write` over all devices of a v1 `blkio.throttle` file.
pub(super) fn v1_io(text: &[u8]) -> [Option<u64>; 2] {
    let mut sums = [Some(0_u64), Some(0_u64)];
    for line in lines(text) {
        let mut words = line.split(|b| *b == b' ').skip(1);
        let at = match words.next() {
            Some(b"Read") => 0,
            Some(b"Write") => 1,
            _ => continue,
        };
        let value = words.next().and_then(number);
        sums[at] = sums[at].zip(value).and_then(|(a, b)| a.checked_add(b));
    }
    sums
}

/// Microseconds of `some` stall in a pressure file.
pub(super) fn pressure(text: &[u8]) -> Option<u64> {
    let line = lines(text).find(|l| l.starts_with(b"some "))?;
    let at = line.windows(6).rposition(|w| w == b"total=")?;
    number(&line[at + 6..])
}

/// Interfaces of `/proc/PID/net/dev` with their received and sent bytes.
fn interfaces(text: &[u8]) -> impl Iterator<Item = (&[u8], Option<(u64, u64)>)> {
    lines(text).filter_map(|line| {
        let colon = line.iter().position(|b| *b == b':')?;
        let name = line[..colon].trim_ascii();
        let mut columns = line[colon + 1..]
            .split(|b| *b == b' ')
            .filter(|w| !w.is_empty());
        let bytes = columns
            .next()
            .and_then(number)
            .zip(columns.nth(7).and_then(number));
        Some((name, bytes))
    })
}

/// Received and sent bytes of an interface in `/proc/PID/net/dev`.
pub fn net_dev(text: &[u8], interface: &str) -> Option<(u64, u64)> {
    interfaces(text)
        .find(|(name, _)| *name == interface.as_bytes())?
        .1
}

/// Received and sent bytes of all interfaces but the loopback; `None` when there is none.
pub fn net_sum(text: &[u8]) -> Option<(u64, u64)> {
    interfaces(text)
        .filter(|(name, _)| *name != b"lo")
        .map(|(_, bytes)| bytes)
        .reduce(|a, b| {
            let (a, b) = a.zip(b)?;
            Some((a.0.checked_add(b.0)?, a.1.checked_add(b.1)?))
        })?
}

/// The guest's totals from `/proc/stat` (in clock ticks) and `/proc/meminfo` (in KiB).
pub fn totals(stat: &[u8], meminfo: &[u8], ticks_per_second: u64) -> GuestTotals {
    let usec = |ticks: u64| ticks.saturating_mul(1_000_000) / ticks_per_second.max(1);
    let mut cpus = 0;
    let mut columns = [0_u64; 8];
    for line in lines(stat) {
        match line {
            [b'c', b'p', b'u', b' ', rest @ ..] => {
                let words = rest.split(|b| *b == b' ').filter(|w| !w.is_empty());
                for (column, word) in columns.iter_mut().zip(words) {
                    *column = number(word).unwrap_or(0);
                }
            }
            [b'c', b'p', b'u', digit, ..] if digit.is_ascii_digit() => cpus += 1,
            // The CPUs come first; what follows is long.
            _ => break,
        }
    }
    let [memory_total, memory_available] = keys(meminfo, [b"MemTotal:", b"MemAvailable:"]);
    let bytes = |kib: Option<u64>| kib.unwrap_or(0).saturating_mul(1024);
    // user, nice, system, (idle, iowait,) irq, softirq; guest time is in user already.
    let busy = [0, 1, 2, 5, 6]
        .iter()
        .fold(0_u64, |sum, n| sum.saturating_add(columns[*n]));
    GuestTotals {
        cpus,
        cpu_busy_usec: usec(busy),
        cpu_steal_usec: usec(columns[7]),
        memory_total_bytes: bytes(memory_total),
        memory_available_bytes: bytes(memory_available),
    }
}

#[cfg(test)]
mod tests {
    use super::super::CounterFile;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers() {
        assert_eq!(single(b"4096\n"), Some(4096));
        assert_eq!(single(b"max\n"), None);
        assert_eq!(single(b""), None);
        assert_eq!(single(b"99999999999999999999\n"), None, "does not fit");
        assert_eq!(keyed(b"anonymous 1\nanon 2\n", b"anon"), Some(2));
        assert_eq!(pressure(b""), None);
        let mut c = Counters::default();
        io_stat(
            b"8:0 rbytes=18446744073709551615 wbytes=0\n8:1 rbytes=1\n",
            &mut c,
        );
        assert_eq!(c, Counters::default(), "overflow");
    }

    #[test]
    fn networks() {
        let dev =
            b"Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets\n    \
            lo:     100       1    0    0    0     0          0         0      100       1    0\n  \
            eth0: 12345      10    0    0    0     0          0         0    54321      11    0\n  \
            eth1:5 10    0    0    0     0          0         0    6      11    0\n";
        assert_eq!(net_dev(dev, "eth0"), Some((12345, 54321)));
        assert_eq!(net_dev(dev, "eth2"), None);
        assert_eq!(net_dev(b"eth0: 5\n", "eth0"), None);
        assert_eq!(net_sum(dev), Some((12350, 54327)));
        assert_eq!(net_sum(b"lo: 1 0 0 0 0 0 0 0 1\n"), None);
        assert_eq!(net_sum(b"eth0: 5\n"), None);
    }

    #[test]
    fn guest_totals() {
        let stat = b"cpu  100 1 50 1000 20 3 4 7 0 0\ncpu0 50 0 25 500 10 1 2 3 0 0\n\
                    cpu1 50 1 25 500 10 2 2 4 0 0\nintr 5\ncpu9 is no CPU here\n";
        let meminfo = b"MemTotal:       1000 kB\nMemFree:  10 kB\nMemAvailable:    500 kB\n";
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
        fn never_panics(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut c = Counters::default();
            for f in CounterFile::V2 { f.take(&text, 0, &mut c); }
            for (_, f) in CounterFile::V1 { f.take(&text, 0, &mut c); }
            keyed(&text, b"anon");
            net_dev(&text, "eth0");
            net_sum(&text);
            totals(&text, &text, 0);
        }
    }
}
