//! What QEMU's monitor tells of a domain beyond what libvirt does: opt-in (`[qmp]`), by queries,
//! and by histograms of latencies that QEMU is told to keep where that is configured. Pure.

use std::collections::BTreeMap;

use drover_qmp::command::{BlockCounters, BlockStats, Histogram, StatValue, StatsResult};
use drover_qmp::{Event, EventKind};
use serde::{Deserialize, Serialize};

/// Most disks and most statistics that are kept of a domain.
const MOST: usize = 64;

/// Latest events of a domain that are kept.
const LATEST: usize = 8;
/// Longest text of an event that is kept, characters.
const TEXT: usize = 200;

/// What the monitor told last.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct QemuState {
    /// When, milliseconds since the epoch.
    pub at_ms: i64,
    /// Run state: `running`, `paused`, `io-error`, ...; empty when it was never told.
    pub status: String,
    /// Why the last questions were not answered; empty when they were.
    pub problem: String,
    /// Disks by name.
    pub disks: BTreeMap<String, Disk>,
    /// KVM's counters, of the whole guest and the sums over its vCPUs; empty without KVM.
    pub kvm: BTreeMap<String, u64>,
    /// What QEMU told by itself.
    #[serde(default)]
    pub events: Events,
}

/// What QEMU told by itself since its domain was started or droverd was.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Events {
    /// How often, by QEMU's name of the event.
    pub counts: BTreeMap<String, u64>,
    /// The latest, oldest first.
    pub latest: Vec<QemuEvent>,
}

/// An event.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct QemuEvent {
    /// When, milliseconds since the epoch.
    pub at_ms: i64,
    /// QEMU's name of it.
    pub name: String,
    /// What it says, in words.
    pub text: String,
}

impl Events {
    /// Notes an event that came at `now_ms`, and gives it as it was noted.
    pub fn note(&mut self, event: &Event, now_ms: i64) -> QemuEvent {
        let text = match &event.kind {
            EventKind::BlockIoError {
                device,
                operation,
                action,
                reason,
            } => {
                let of = if device.is_empty() {
                    String::new()
                } else {
                    format!(" of {device}")
                };
                format!("{operation}{of} failed: {reason}; QEMU's action: {action}")
            }
            EventKind::VserportChange { id, open } => {
                format!("{id} {}", if *open { "opened" } else { "closed" })
            }
            EventKind::GuestPanicked { action } => format!("QEMU's action: {action}"),
            EventKind::BalloonChange { actual } => {
                format!("memory is {} MiB now", actual / (1024 * 1024))
            }
            EventKind::Unknown { .. } => String::new(),
        };
        let at_ms = event.at_us.and_then(|us| i64::try_from(us / 1000).ok());
        let noted = QemuEvent {
            at_ms: at_ms.unwrap_or(now_ms),
            name: event.kind.name().chars().take(TEXT).collect(),
            text: text.chars().take(TEXT).collect(),
        };
        if self.counts.len() < MOST || self.counts.contains_key(&noted.name) {
            let count = self.counts.entry(noted.name.clone()).or_default();
            *count = count.saturating_add(1);
        }
        self.latest.push(noted.clone());
        if self.latest.len() > LATEST {
            self.latest.remove(0);
        }
        noted
    }
}

/// Whether an event says that something is wrong with the guest or its disks.
pub fn is_trouble(event: &Event) -> bool {
    matches!(
        event.kind,
        EventKind::BlockIoError { .. } | EventKind::GuestPanicked { .. }
    )
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Disk {
    /// Reads.
    pub read: Operations,
    /// Writes.
    pub write: Operations,
}

/// Operations of one kind on one disk, since the domain was started.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Operations {
    /// Number.
    pub count: u64,
    /// Those that failed.
    pub failed: u64,
    /// Time that they took in all, seconds.
    pub seconds: f64,
    /// Mean latency of those of the last interval, milliseconds; `None` when there were none.
    pub latency_ms: Option<f64>,
    /// How many took up to so many seconds, each with all shorter ones, when QEMU was told to keep a
    /// histogram; the last bound is infinite and left out.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub histogram: Vec<(f64, u64)>,
}

impl Operations {
    fn new(
        (count, failed, nanos): (u64, u64, u64),
        histogram: Option<&Histogram>,
        before: Option<&Self>,
    ) -> Self {
        let seconds = nanos as f64 / 1e9;
        let latency_ms = before.and_then(|b| {
            let operations = count.checked_sub(b.count).filter(|n| *n > 0)?;
            Some(((seconds - b.seconds) * 1e3 / operations as f64).max(0.0))
        });
        let mut sum = 0_u64;
        let bins = histogram
            .into_iter()
            .flat_map(|h| h.boundaries.iter().zip(&h.bins));
        Self {
            count,
            failed,
            seconds,
            latency_ms,
            histogram: bins
                .take(MOST)
                .map(|(bound, n)| {
                    sum = sum.saturating_add(*n);
                    (*bound as f64 / 1e9, sum)
                })
                .collect(),
        }
    }
}

/// Disks, with the latencies since `before`.
pub fn disks(answer: &[BlockStats], before: &BTreeMap<String, Disk>) -> BTreeMap<String, Disk> {
    let named = answer.iter().filter_map(|b| {
        // With libvirt's names of nodes a disk has no device name, but a path.
        let name = if b.device.is_empty() {
            &b.qdev
        } else {
            &b.device
        };
        (!name.is_empty()).then_some((name, &b.stats))
    });
    named
        .take(MOST)
        .map(|(name, s)| {
            let old = before.get(name);
            let read = (s.rd_operations, s.failed_rd_operations, s.rd_total_time_ns);
            let write = (s.wr_operations, s.failed_wr_operations, s.wr_total_time_ns);
            let disk = Disk {
                read: Operations::new(read, s.rd_latency_histogram.as_ref(), old.map(|d| &d.read)),
                write: Operations::new(
                    write,
                    s.wr_latency_histogram.as_ref(),
                    old.map(|d| &d.write),
                ),
            };
            (name.clone(), disk)
        })
        .collect()
}

/// Disks that have no histograms of latencies between these bounds (nanoseconds), as QEMU is told
/// of them. A node without a device is none.
pub fn without_histograms(answer: &[BlockStats], bounds_ns: &[u64]) -> Vec<String> {
    let has = |h: &Option<Histogram>| h.as_ref().is_some_and(|h| h.boundaries == bounds_ns);
    let lacks = |s: &BlockCounters| !has(&s.rd_latency_histogram) || !has(&s.wr_latency_histogram);
    answer
        .iter()
        .filter(|b| !bounds_ns.is_empty() && !b.qdev.is_empty() && lacks(&b.stats))
        .map(|b| b.qdev.clone())
        .take(MOST)
        .collect()
}

/// KVM's counters, summed over objects.
pub fn kvm(answers: &[StatsResult]) -> BTreeMap<String, u64> {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for s in answers
        .iter()
        .filter(|r| r.provider == "kvm")
        .flat_map(|r| &r.stats)
    {
        let StatValue::Number(n) = s.value else {
            continue;
        };
        if sums.len() < MOST || sums.contains_key(&s.name) {
            let sum = sums.entry(s.name.clone()).or_default();
            *sum = sum.saturating_add(n);
        }
    }
    sums
}

/// Whether a domain's name is one of these patterns, in which `*` is any text.
pub fn chosen(patterns: &[String], domain: &str) -> bool {
    patterns.iter().any(|p| matches(p, domain))
}

fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut left) = name.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = left.find(part) else {
            return false;
        };
        left = &left[at + part.len()..];
    }
    left.len() >= last.len() && left.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let all = |p: &str, names: &[&str]| names.iter().all(|n| chosen(&[p.to_owned()], n));
        let none = |p: &str, names: &[&str]| !names.iter().any(|n| chosen(&[p.to_owned()], n));
        assert!(all("*", &["", "a"]) && all("db*", &["db", "db1"]) && all("*b", &["b", "ab"]));
        assert!(all("a*b*c", &["abc", "axxbyyc"]) && all("web", &["web"]));
        assert!(none("web", &["web1", "we", ""]) && none("db*", &["adb", "d"]));
        assert!(none("ab*ba", &["aba", "ab"]) && none("a*b*c", &["acb", "ab"]));
        assert!(!chosen(&[], "a"), "off unless chosen");
    }

    #[test]
    fn histograms_are_set_where_they_are_missing() {
        let histogram = |bounds: &[u64]| serde_json::json!({"boundaries": bounds, "bins": vec![0; bounds.len() + 1]});
        let disk = |qdev: &str, rd: &[u64], wr: &[u64]| {
            let mut stats = serde_json::json!({
                "rd_bytes": 0, "wr_bytes": 0, "rd_operations": 0, "wr_operations": 0});
            for (name, bounds) in [("rd_latency_histogram", rd), ("wr_latency_histogram", wr)] {
                if !bounds.is_empty() {
                    stats[name] = histogram(bounds);
                }
            }
            serde_json::from_value::<BlockStats>(
                serde_json::json!({"device": "", "qdev": qdev, "stats": stats}),
            )
            .unwrap()
        };
        let disks = [
            disk("has", &[10, 20], &[10, 20]),
            disk("none", &[], &[]),
            disk("half", &[10, 20], &[]),
            disk("other", &[10], &[10]),
            disk("", &[], &[]),
        ];
        assert_eq!(
            without_histograms(&disks, &[10, 20]),
            ["none", "half", "other"]
        );
        assert!(without_histograms(&disks, &[]).is_empty(), "off by default");
    }

    #[test]
    fn latencies_of_the_last_interval() {
        let of = |n: u64, ns: u64| -> Vec<BlockStats> {
            serde_json::from_value(serde_json::json!([
                {"device": "", "qdev": "/machine/peripheral/virtio-disk0/virtio-backend", "stats": {
                    "rd_bytes": 1, "wr_bytes": 1, "rd_operations": n, "wr_operations": 3,
                    "rd_total_time_ns": ns, "wr_total_time_ns": 9,
                    "rd_latency_histogram": {"boundaries": [1_000_000, 5_000_000],
                                             "bins": [3, 4, 5]}}},
                {"device": "", "stats": {"rd_bytes": 0, "wr_bytes": 0, "rd_operations": 0,
                                         "wr_operations": 0}}
            ]))
            .unwrap()
        };
        let first = disks(&of(10, 20_000_000), &BTreeMap::new());
        assert_eq!(first.len(), 1, "a node without a name is no disk");
        let disk = |d: &BTreeMap<String, Disk>| d.values().next().unwrap().read.clone();
        assert_eq!((disk(&first).count, disk(&first).latency_ms), (10, None));
        assert_eq!(disk(&first).histogram, [(0.001, 3), (0.005, 7)]);
        let next = disks(&of(14, 28_000_000), &first);
        assert!((disk(&next).latency_ms.unwrap() - 2.0).abs() < 1e-9);
        // No operations, or a domain that was started anew: no latency.
        assert_eq!(disk(&disks(&of(14, 28_000_000), &next)).latency_ms, None);
        assert_eq!(disk(&disks(&of(1, 1), &next)).latency_ms, None);
    }

    #[test]
    fn events_are_counted_and_the_latest_kept() {
        let mut events = Events::default();
        let balloon = |n: u64| {
            let data = serde_json::json!({"actual": n * 1024 * 1024});
            Event::new("BALLOON_CHANGE", Some(n * 1000), data)
        };
        for n in 1..=20 {
            events.note(&balloon(n), 0);
        }
        let failed = Event::new(
            "BLOCK_IO_ERROR",
            None,
            serde_json::json!({"device": "", "operation": "write", "action": "stop",
                               "reason": "x".repeat(1000)}),
        );
        assert!(is_trouble(&failed) && !is_trouble(&balloon(1)));
        let noted = events.note(&failed, 77);
        assert_eq!((noted.at_ms, noted.text.chars().count()), (77, TEXT));
        assert!(noted.text.starts_with("write failed: xxx"));
        assert_eq!(events.counts["BALLOON_CHANGE"], 20);
        assert_eq!(events.counts["BLOCK_IO_ERROR"], 1);
        assert_eq!(events.latest.len(), LATEST);
        assert_eq!(events.latest.last(), Some(&noted));
        let first = events.latest.first().unwrap();
        assert_eq!(
            (first.at_ms, first.text.as_str()),
            (14, "memory is 14 MiB now")
        );
        // Names without end take no memory without end.
        for n in 0..1000 {
            events.note(
                &Event::new(&format!("E{n}"), None, serde_json::Value::Null),
                0,
            );
        }
        assert_eq!(events.counts.len(), MOST);
    }

    #[test]
    fn counters_of_all_vcpus() {
        let answers: Vec<StatsResult> = serde_json::from_value(serde_json::json!([
            {"provider": "kvm", "qom-path": "/a", "stats": [
                {"name": "exits", "value": 5}, {"name": "blocking", "value": false}]},
            {"provider": "kvm", "qom-path": "/b", "stats": [{"name": "exits", "value": 7}]},
            {"provider": "cryptodev", "stats": [{"name": "x", "value": 1}]}
        ]))
        .unwrap();
        assert_eq!(kvm(&answers), BTreeMap::from([("exits".to_owned(), 12)]));
    }
}
