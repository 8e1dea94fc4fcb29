//! The columns of a [`Usage`]: one table that the history, the command line and the metrics share.
//! Pure.
//!
//! A new field of `Usage` gets one line here, with the next free identifier. Identifiers are
//! written to disk and are never used again for something else; the place in the table is the
//! order of display.

use crate::feature::Resource;
use crate::usage::{MIB, Usage};

/// What a column's numbers mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Percent of the interval (for CPU: of one CPU); from a counter of microseconds.
    Percent,
    /// MiB, from whole bytes.
    Mib,
    /// Bytes per second, from a counter of bytes.
    BytesPerSecond,
    /// Events per second, from a counter.
    PerSecond,
    /// A number of things.
    Count,
}

/// One column.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Identifier on disk, below 64.
    pub id: u8,
    /// Field of [`Usage`], as in its JSON.
    pub field: &'static str,
    /// Name in CSV and JSON output and on the command line.
    pub name: &'static str,
    /// Heading for people.
    pub heading: &'static str,
    /// Unit.
    pub unit: Unit,
    /// Name of its metric after `drover_feature_`, in base units (see [`Unit::factor`]), and what
    /// it tells.
    pub metric: (&'static str, &'static str),
    /// The resource that thresholds know it as, if any.
    pub resource: Option<Resource>,
    /// Reads it.
    pub get: fn(&Usage) -> Option<f64>,
    /// Writes it.
    pub set: fn(&mut Usage, Option<f64>),
}

impl Unit {
    /// What a value is multiplied with to be in base units: CPUs or parts of a whole, bytes,
    /// numbers per second.
    pub fn factor(self) -> f64 {
        match self {
            Self::Percent => 0.01,
            Self::Mib => MIB,
            Self::BytesPerSecond | Self::PerSecond | Self::Count => 1.0,
        }
    }
}

macro_rules! column {
    ($id:literal, $field:ident, $name:literal, $heading:literal, $unit:ident, $resource:expr,
     $metric:literal, $help:literal) => {
        Column {
            id: $id,
            field: stringify!($field),
            name: $name,
            heading: $heading,
            unit: Unit::$unit,
            metric: ($metric, $help),
            resource: $resource,
            get: |u| u.$field,
            set: |u, v| u.$field = v,
        }
    };
}

/// All of them, in display order: the resources of thresholds first.
#[rustfmt::skip]
pub const COLUMNS: &[Column] = &[
    column!(0, cpu_percent, "cpu", "CPU", Percent, Some(Resource::Cpu),
        "used_cpus", "CPUs that the feature uses."),
    column!(2, memory_mib, "memory", "Memory", Mib, Some(Resource::Memory),
        "memory_bytes", "Memory charged to the feature."),
    column!(3, net_rx_bps, "net_rx", "Net in", BytesPerSecond, Some(Resource::NetRx),
        "network_receive_bytes_per_second", "Bytes received."),
    column!(4, net_tx_bps, "net_tx", "Net out", BytesPerSecond, Some(Resource::NetTx),
        "network_transmit_bytes_per_second", "Bytes sent."),
    column!(5, disk_read_bps, "disk_read", "Read", BytesPerSecond, Some(Resource::DiskRead),
        "disk_read_bytes_per_second", "Bytes read from storage."),
    column!(6, disk_write_bps, "disk_write", "Write", BytesPerSecond, Some(Resource::DiskWrite),
        "disk_write_bytes_per_second", "Bytes written to storage."),
    column!(11, cpu_user_percent, "cpu_user", "User %", Percent, None,
        "used_user_cpus", "CPUs that the feature uses in user mode."),
    column!(12, cpu_system_percent, "cpu_system", "System %", Percent, None,
        "used_system_cpus", "CPUs that the feature uses in the guest's kernel."),
    column!(13, host_cpu_percent, "host_cpu", "Host %", Percent, None,
        "host_cpus", "The feature's share of the CPUs of the host that its guest takes."),
    column!(1, throttled_percent, "throttled", "Throttled %", Percent, None,
        "throttled_ratio", "Part of the time in which the feature was held back by its CPU limit."),
    column!(14, memory_anon_mib, "memory_anon", "Anonymous", Mib, None,
        "memory_anonymous_bytes", "Anonymous memory of the feature."),
    column!(15, memory_file_mib, "memory_file", "Page cache", Mib, None,
        "memory_file_bytes", "Page cache of the feature."),
    column!(16, oom_kills, "oom_kills", "OOM kills", Count, None,
        "oom_kills", "Processes killed for want of memory in the last interval."),
    column!(17, disk_reads_ps, "disk_reads", "Reads/s", PerSecond, None,
        "disk_reads_per_second", "Reads of storage."),
    column!(18, disk_writes_ps, "disk_writes", "Writes/s", PerSecond, None,
        "disk_writes_per_second", "Writes to storage."),
    column!(7, psi_cpu_percent, "psi_cpu", "Stall cpu %", Percent, None,
        "stalled_cpu_ratio", "Part of the time in which some process of the feature waited for a CPU."),
    column!(8, psi_memory_percent, "psi_memory", "Stall mem %", Percent, None,
        "stalled_memory_ratio", "Part of the time in which some process of the feature waited for memory."),
    column!(9, psi_io_percent, "psi_io", "Stall io %", Percent, None,
        "stalled_io_ratio", "Part of the time in which some process of the feature waited for storage."),
    column!(10, processes, "processes", "Processes", Count, None,
        "processes", "Processes of the feature."),
];

/// The column with an identifier.
pub fn by_id(id: u8) -> Option<&'static Column> {
    COLUMNS.iter().find(|c| c.id == id)
}

/// The column with a name.
pub fn by_name(name: &str) -> Option<&'static Column> {
    COLUMNS.iter().find(|c| c.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_usage_has_a_line() {
        let json = serde_json::to_value(Usage::default()).unwrap();
        let mut fields: Vec<&str> = json
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        fields.retain(|f| !["at_ms", "dt_s"].contains(f));
        let mut known: Vec<&str> = COLUMNS.iter().map(|c| c.field).collect();
        known.sort_unstable();
        fields.sort_unstable();
        assert_eq!(
            known, fields,
            "a field of Usage needs a line in COLUMNS to be recorded"
        );
    }

    #[test]
    fn identifiers_and_names_are_unique_and_fit() {
        for (i, c) in COLUMNS.iter().enumerate() {
            assert!(c.id < 64, "{}", c.name);
            assert!(
                COLUMNS[..i]
                    .iter()
                    .all(|o| o.id != c.id && o.name != c.name),
                "{}",
                c.name
            );
            let mut u = Usage::default();
            (c.set)(&mut u, Some(7.0));
            assert_eq!((c.get)(&u), Some(7.0));
            assert_eq!(by_id(c.id).unwrap().field, c.field);
            assert_eq!(by_name(c.name).unwrap().field, c.field);
            if let Some(r) = c.resource {
                assert_eq!((u.get(r), r.as_str()), (Some(7.0), c.name));
            }
        }
        let resources = COLUMNS.iter().filter_map(|c| c.resource);
        assert!(resources.eq(Resource::ALL));
    }
}
