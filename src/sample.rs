//! Raw counters of one feature at one moment, with the identity that tells whether two samples
//! may be compared. Rates are computed in `usage`.

use serde::{Deserialize, Serialize};

use crate::feature::FeatureName;

/// Cumulative counters and gauges of one feature. `None` means *unavailable*, never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// CPU time in microseconds (`cpu.stat usage_usec`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_usec: Option<u64>,
    /// User part of the CPU time, microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_user_usec: Option<u64>,
    /// System part of the CPU time, microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_system_usec: Option<u64>,
    /// Time throttled by `cpu.max`, microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttled_usec: Option<u64>,
    /// Memory charged to the cgroup, bytes (`memory.current`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Anonymous memory, bytes (`memory.stat anon`); may be up to ten seconds old.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_anon_bytes: Option<u64>,
    /// Page cache, bytes (`memory.stat file`); may be up to ten seconds old.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_file_bytes: Option<u64>,
    /// How often the cgroup was held back at `memory.high` (`memory.events high`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_high_events: Option<u64>,
    /// How often the cgroup was at `memory.max` (`memory.events max`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_max_events: Option<u64>,
    /// Processes killed for want of memory (`memory.events oom_kill`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
    /// Bytes received on the feature's interface, link layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_rx_bytes: Option<u64>,
    /// Bytes sent on the feature's interface, link layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_tx_bytes: Option<u64>,
    /// Bytes read from block devices (`io.stat rbytes`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_read_bytes: Option<u64>,
    /// Bytes written to block devices (`io.stat wbytes`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_write_bytes: Option<u64>,
    /// Reads of block devices (`io.stat rios`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_reads: Option<u64>,
    /// Writes to block devices (`io.stat wios`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_writes: Option<u64>,
    /// PSI `some` stall of CPU, microseconds (`cpu.pressure`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi_cpu_usec: Option<u64>,
    /// PSI `some` stall of memory, microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi_memory_usec: Option<u64>,
    /// PSI `some` stall of I/O, microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi_io_usec: Option<u64>,
    /// Number of processes and threads (`pids.current`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
}

/// One feature's counters at one moment, as sent by the helper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawSample {
    /// The feature.
    pub feature: FeatureName,
    /// Identity of the counters: changes when the cgroup or the guest's boot is another one
    /// (cgroup inode mixed with the boot id). Samples of different identity give no rate.
    pub identity: u64,
    /// Guest's boot-time clock in nanoseconds when the counters were read.
    pub at_ns: u64,
    /// The counters.
    pub counters: Counters,
}

/// What the whole guest uses, from its own `/proc`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct GuestTotals {
    /// Number of CPUs online.
    pub cpus: u32,
    /// Busy CPU time of all CPUs since boot, microseconds, without steal.
    pub cpu_busy_usec: u64,
    /// Time stolen by the hypervisor since boot, microseconds.
    pub cpu_steal_usec: u64,
    /// Memory size, bytes.
    pub memory_total_bytes: u64,
    /// `MemAvailable`, bytes.
    pub memory_available_bytes: u64,
}

/// One tick of a guest's meter: every feature at (nearly) the same moment.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MeterFrame {
    /// Guest's boot-time clock in nanoseconds.
    pub at_ns: u64,
    /// Whole guest.
    pub guest: GuestTotals,
    /// Features, in no particular order.
    pub features: Vec<RawSample>,
}
