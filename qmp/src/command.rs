//! The commands: each a type with its answer. Only those here can be sent; the list is closed to
//! other crates. None of them changes anything in the guest, and only a [`Setting`] changes
//! anything in QEMU: what it counts.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::QmpError;

mod sealed {
    pub trait Sealed {}
}

/// A command that may be sent.
pub trait Command: sealed::Sealed + Send {
    /// QMP's name of it.
    const NAME: &'static str;
    /// Its answer.
    type Answer: DeserializeOwned + Send;
    /// Its arguments, if any.
    fn arguments(&self) -> Option<Value> {
        None
    }
}

/// A command that only asks.
pub trait Query: Command {}

/// A command that changes what QEMU counts.
pub trait Setting: Command {}

/// A command as a message of its own, for a connection that someone else keeps (libvirt's).
pub fn text<C: Command>(command: &C) -> String {
    let mut message = json!({ "execute": C::NAME });
    if let (Some(arguments), Some(object)) = (command.arguments(), message.as_object_mut()) {
        object.insert("arguments".into(), arguments);
    }
    message.to_string()
}

/// Reads the answer to a command that was sent as [`text`].
pub fn answer<C: Command>(text: &str) -> Result<C::Answer, QmpError> {
    if text.len() > crate::codec::MAX_LINE {
        return Err(QmpError::TooLong(text.len()));
    }
    let message: Value = serde_json::from_str(text).map_err(QmpError::NotJson)?;
    if let Some(error) = message.get("error") {
        let word = |key| {
            let word = error.get(key).and_then(Value::as_str).unwrap_or_default();
            word.chars().take(500).collect()
        };
        return Err(QmpError::Refused {
            command: C::NAME,
            class: word("class"),
            description: word("desc"),
        });
    }
    let value = message.get("return").cloned().unwrap_or(Value::Null);
    C::Answer::deserialize(value).map_err(|source| QmpError::Answer {
        command: C::NAME,
        source,
    })
}

macro_rules! command {
    ($(#[$doc:meta])* query $type:ident, $name:literal, $answer:ty) => {
        command!($(#[$doc])* $type, $name, $answer);
        impl Query for $type {}
    };
    ($(#[$doc:meta])* $type:ident, $name:literal, $answer:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $type;
        impl sealed::Sealed for $type {}
        impl Command for $type {
            const NAME: &'static str = $name;
            type Answer = $answer;
        }
    };
}

command!(
    /// `qmp_capabilities`: ends the negotiation; sent by [`crate::Client::negotiate`].
    QmpCapabilities, "qmp_capabilities", Empty
);
command!(
    /// `query-status`: run state.
    query QueryStatus, "query-status", Status
);
command!(
    /// `query-blockstats`: counters of all disks.
    query QueryBlockstats, "query-blockstats", Vec<BlockStats>
);
command!(
    /// `query-cpus-fast`: vCPUs and their threads.
    query QueryCpusFast, "query-cpus-fast", Vec<Cpu>
);
command!(
    /// `query-iothreads`: I/O threads.
    query QueryIothreads, "query-iothreads", Vec<Iothread>
);

/// `query-stats` (QEMU 7.1 and later): KVM's statistics of the whole guest or of its vCPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryStats {
    /// Of the whole guest.
    Vm,
    /// Of every vCPU.
    Vcpu,
}
impl sealed::Sealed for QueryStats {}
impl Query for QueryStats {}
impl Command for QueryStats {
    const NAME: &'static str = "query-stats";
    type Answer = Vec<StatsResult>;
    fn arguments(&self) -> Option<Value> {
        let target = match self {
            Self::Vm => "vm",
            Self::Vcpu => "vcpu",
        };
        Some(json!({ "target": target }))
    }
}

/// `block-latency-histogram-set`: has QEMU count a disk's reads, writes and flushes by how long
/// they take, from nothing, until it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockLatencyHistogramSet {
    /// The disk's [`BlockStats::qdev`] or [`BlockStats::device`].
    pub id: String,
    /// Bounds between bins, nanoseconds, rising.
    pub boundaries: Vec<u64>,
}
impl sealed::Sealed for BlockLatencyHistogramSet {}
impl Setting for BlockLatencyHistogramSet {}
impl Command for BlockLatencyHistogramSet {
    const NAME: &'static str = "block-latency-histogram-set";
    type Answer = Empty;
    fn arguments(&self) -> Option<Value> {
        Some(json!({ "id": self.id, "boundaries": self.boundaries }))
    }
}

/// An answer without content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Empty {}

/// Answer to [`QueryStatus`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Status {
    /// Whether the vCPUs run.
    pub running: bool,
    /// Run state: `running`, `paused`, `shutdown`, `io-error`, ...
    pub status: String,
}

/// A disk's counters, in the answer to [`QueryBlockstats`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct BlockStats {
    /// Device name; empty for nodes without one.
    #[serde(default)]
    pub device: String,
    /// Path of the device in QEMU's object tree.
    #[serde(default)]
    pub qdev: String,
    /// Counters.
    pub stats: BlockCounters,
}

/// Cumulative counters of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct BlockCounters {
    /// Bytes read.
    pub rd_bytes: u64,
    /// Bytes written.
    pub wr_bytes: u64,
    /// Reads.
    pub rd_operations: u64,
    /// Writes.
    pub wr_operations: u64,
    /// Flushes.
    #[serde(default)]
    pub flush_operations: u64,
    /// Time spent reading, nanoseconds.
    #[serde(default)]
    pub rd_total_time_ns: u64,
    /// Time spent writing, nanoseconds.
    #[serde(default)]
    pub wr_total_time_ns: u64,
    /// Reads that failed.
    #[serde(default)]
    pub failed_rd_operations: u64,
    /// Writes that failed.
    #[serde(default)]
    pub failed_wr_operations: u64,
    /// Latencies of reads, when a histogram was set up.
    #[serde(default)]
    pub rd_latency_histogram: Option<Histogram>,
    /// Latencies of writes, when a histogram was set up.
    #[serde(default)]
    pub wr_latency_histogram: Option<Histogram>,
}

/// A latency histogram.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Histogram {
    /// Bounds between bins, nanoseconds; one fewer than bins.
    pub boundaries: Vec<u64>,
    /// Operations per bin.
    pub bins: Vec<u64>,
}

/// A vCPU, in the answer to [`QueryCpusFast`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Cpu {
    /// Number of the vCPU.
    #[serde(rename = "cpu-index")]
    pub index: u32,
    /// Its thread on the host.
    #[serde(rename = "thread-id")]
    pub thread: u32,
    /// Path in QEMU's object tree.
    #[serde(rename = "qom-path")]
    pub path: String,
}

/// An I/O thread, in the answer to [`QueryIothreads`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Iothread {
    /// Name.
    pub id: String,
    /// Its thread on the host.
    #[serde(rename = "thread-id")]
    pub thread: u32,
}

/// Statistics of one provider and object, in the answer to [`QueryStats`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct StatsResult {
    /// Provider: `kvm`, `cryptodev`, ...
    pub provider: String,
    /// Path of the object in QEMU's object tree; `None` for the whole guest.
    #[serde(rename = "qom-path", default)]
    pub path: Option<String>,
    /// The values.
    pub stats: Vec<Stat>,
}

/// One value.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Stat {
    /// Name.
    pub name: String,
    /// Value.
    pub value: StatValue,
}

/// A value: a number, a flag, or a histogram.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum StatValue {
    /// A flag.
    Flag(bool),
    /// A number.
    Number(u64),
    /// A histogram's bins.
    List(Vec<u64>),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every query there is; the traits are sealed, so there is no other.
    fn all() -> Vec<(&'static str, String)> {
        vec![
            (QueryStatus::NAME, text(&QueryStatus)),
            (QueryBlockstats::NAME, text(&QueryBlockstats)),
            (QueryCpusFast::NAME, text(&QueryCpusFast)),
            (QueryIothreads::NAME, text(&QueryIothreads)),
            (QueryStats::NAME, text(&QueryStats::Vm)),
            (QueryStats::NAME, text(&QueryStats::Vcpu)),
        ]
    }

    #[test]
    fn queries_only_ask() {
        for (name, text) in all() {
            assert!(name.starts_with("query-"), "{name}");
            let message: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(message["execute"], name);
            assert!(message.get("id").is_none());
        }
        // As many as this file declares: one that is added is looked at here too.
        let source = include_str!("command.rs")
            .split("mod tests")
            .next()
            .unwrap();
        let declared = source.matches("\n    query Query").count()
            + source.matches("\nimpl Query for Query").count();
        let mut names: Vec<&str> = all().iter().map(|(name, _)| *name).collect();
        names.dedup();
        assert_eq!(names.len(), declared);
    }

    #[test]
    fn one_setting_counts_latencies() {
        let set = BlockLatencyHistogramSet {
            id: "/machine/peripheral/virtio-disk0/virtio-backend".into(),
            boundaries: vec![1_000, 2_000],
        };
        let message: Value = serde_json::from_str(&text(&set)).unwrap();
        assert_eq!(message["execute"], "block-latency-histogram-set");
        assert_eq!(
            message["arguments"],
            json!({"id": set.id, "boundaries": [1_000, 2_000]})
        );
        let done = r#"{"return":{},"id":"libvirt-9"}"#;
        assert_eq!(answer::<BlockLatencyHistogramSet>(done).unwrap(), Empty {});
        let source = include_str!("command.rs")
            .split("mod tests")
            .next()
            .unwrap();
        assert_eq!(source.matches("impl Setting for").count(), 1, "no other");
    }

    #[test]
    fn answers_and_refusals() {
        let good = r#"{"return":{"running":true,"status":"running"},"id":"libvirt-9"}"#;
        assert_eq!(answer::<QueryStatus>(good).unwrap().status, "running");
        let bad = r#"{"id":"x","error":{"class":"CommandNotFound","desc":"no"}}"#;
        let e = answer::<QueryStats>(bad).unwrap_err();
        assert!(matches!(e, QmpError::Refused { .. }), "{e}");
        assert!(answer::<QueryStatus>("{").is_err());
        assert!(answer::<QueryStatus>(r#"{"return":[]}"#).is_err());
    }
}
