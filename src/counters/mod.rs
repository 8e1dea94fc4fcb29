//! The kernel's counter files of a cgroup: their names and what is in them, for both versions of
//! the hierarchy. Pure; the helper reads the files in the guest, the daemon gets their text
//! through the guest agent.
//!
//! What a file does not say stays `None`: unavailable, never zero.

mod parse;

pub use parse::{keyed, net_dev, net_sum, totals};

use crate::sample::Counters;

/// A file with counters of one cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CounterFile {
    /// v2 `cpu.stat`.
    CpuStat,
    /// v2 `memory.current`.
    MemoryCurrent,
    /// v2 `memory.stat`: by far the dearest to read.
    MemoryStat,
    /// v2 `memory.events`: changes seldom.
    MemoryEvents,
    /// v2 `io.stat`.
    IoStat,
    /// v2 `cpu.pressure`.
    PressureCpu,
    /// v2 `memory.pressure`.
    PressureMemory,
    /// v2 `io.pressure`.
    PressureIo,
    /// `pids.current` of both versions.
    Pids,
    /// v1 `cpuacct.usage`.
    V1CpuUsage,
    /// v1 `cpuacct.stat`.
    V1CpuStat,
    /// v1 `cpu.stat`.
    V1Throttled,
    /// v1 `memory.usage_in_bytes`.
    V1MemoryUsage,
    /// v1 `memory.stat`.
    V1MemoryStat,
    /// v1 `memory.oom_control`.
    V1Oom,
    /// v1 `blkio.throttle.io_service_bytes_recursive`.
    V1IoBytes,
    /// v1 `blkio.throttle.io_serviced_recursive`.
    V1IoOperations,
}

impl CounterFile {
    /// The files of a v2 cgroup, in the order in which they are read: CPU time first, nearest to
    /// the moment of the sample.
    pub const V2: [Self; 9] = [
        Self::CpuStat,
        Self::MemoryCurrent,
        Self::IoStat,
        Self::PressureCpu,
        Self::PressureMemory,
        Self::PressureIo,
        Self::Pids,
        Self::MemoryEvents,
        Self::MemoryStat,
    ];

    /// The files of v1 cgroups, each with the controller whose hierarchy has it.
    pub const V1: [(&'static str, Self); 9] = [
        ("cpuacct", Self::V1CpuUsage),
        ("cpuacct", Self::V1CpuStat),
        ("cpu", Self::V1Throttled),
        ("memory", Self::V1MemoryUsage),
        ("blkio", Self::V1IoBytes),
        ("blkio", Self::V1IoOperations),
        ("pids", Self::Pids),
        ("memory", Self::V1Oom),
        ("memory", Self::V1MemoryStat),
    ];

    /// Name in the cgroup's directory.
    pub fn name(self) -> &'static str {
        match self {
            Self::CpuStat | Self::V1Throttled => "cpu.stat",
            Self::MemoryCurrent => "memory.current",
            Self::MemoryStat | Self::V1MemoryStat => "memory.stat",
            Self::MemoryEvents => "memory.events",
            Self::IoStat => "io.stat",
            Self::PressureCpu => "cpu.pressure",
            Self::PressureMemory => "memory.pressure",
            Self::PressureIo => "io.pressure",
            Self::Pids => "pids.current",
            Self::V1CpuUsage => "cpuacct.usage",
            Self::V1CpuStat => "cpuacct.stat",
            Self::V1MemoryUsage => "memory.usage_in_bytes",
            Self::V1Oom => "memory.oom_control",
            Self::V1IoBytes => "blkio.throttle.io_service_bytes_recursive",
            Self::V1IoOperations => "blkio.throttle.io_serviced_recursive",
        }
    }

    /// Whether it is dear to read and changes slowly: read less often than the others.
    pub fn slow(self) -> bool {
        matches!(self, Self::MemoryStat | Self::V1MemoryStat)
    }

    /// Whether the kernel tells when it changes (by inotify), so that it need not be read until
    /// then.
    pub fn notifies(self) -> bool {
        self == Self::MemoryEvents
    }

    /// Takes the file's text into `c`. `ticks` is the kernel's clock ticks per second, for v1.
    pub fn take(self, text: &[u8], ticks: u64, c: &mut Counters) {
        match self {
            Self::CpuStat => {
                [
                    c.cpu_usec,
                    c.cpu_user_usec,
                    c.cpu_system_usec,
                    c.cpu_throttled_usec,
                ] = parse::keys(
                    text,
                    [
                        b"usage_usec",
                        b"user_usec",
                        b"system_usec",
                        b"throttled_usec",
                    ],
                );
            }
            Self::MemoryCurrent | Self::V1MemoryUsage => c.memory_bytes = parse::single(text),
            Self::MemoryStat => {
                [c.memory_anon_bytes, c.memory_file_bytes] = parse::keys(text, [b"anon", b"file"]);
            }
            Self::MemoryEvents => {
                [c.memory_high_events, c.memory_max_events, c.oom_kills] =
                    parse::keys(text, [b"high", b"max", b"oom_kill"]);
            }
            Self::IoStat => parse::io_stat(text, c),
            Self::PressureCpu => c.psi_cpu_usec = parse::pressure(text),
            Self::PressureMemory => c.psi_memory_usec = parse::pressure(text),
            Self::PressureIo => c.psi_io_usec = parse::pressure(text),
            Self::Pids => c.processes = parse::single(text),
            Self::V1CpuUsage => c.cpu_usec = parse::single(text).map(|ns| ns / 1000),
            Self::V1CpuStat => {
                let usec = |t: Option<u64>| {
                    t.map(|t| (u128::from(t) * 1_000_000 / u128::from(ticks.max(1))) as u64)
                };
                let [user, system] = parse::keys(text, [b"user", b"system"]);
                (c.cpu_user_usec, c.cpu_system_usec) = (usec(user), usec(system));
            }
            Self::V1Throttled => {
                let [ns] = parse::keys(text, [b"throttled_time"]);
                c.cpu_throttled_usec = ns.map(|ns| ns / 1000);
            }
            Self::V1MemoryStat => {
                [c.memory_anon_bytes, c.memory_file_bytes] =
                    parse::keys(text, [b"total_rss", b"total_cache"]);
            }
            Self::V1Oom => [c.oom_kills] = parse::keys(text, [b"oom_kill"]),
            Self::V1IoBytes => {
                [c.disk_read_bytes, c.disk_write_bytes] = parse::v1_io(text);
            }
            Self::V1IoOperations => [c.disk_reads, c.disk_writes] = parse::v1_io(text),
        }
    }
}

/// FNV-1a over the inodes of a feature's cgroups and the guest's boot id: another cgroup or
/// another boot, another identity.
pub fn identity(inodes: &[u64], boot_id: &str) -> u64 {
    inodes
        .iter()
        .flat_map(|inode| inode.to_le_bytes())
        .chain(boot_id.bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &[(CounterFile, &str)]) -> Counters {
        let mut c = Counters::default();
        for (file, text) in files {
            file.take(text.as_bytes(), 100, &mut c);
        }
        c
    }

    #[test]
    fn version_2() {
        use CounterFile as F;
        let c = read(&[
            (
                F::CpuStat,
                "usage_usec 1200\nuser_usec 1000\nsystem_usec 200\nnr_periods 0\n\
                          nr_throttled 0\nthrottled_usec 30\n",
            ),
            (F::MemoryCurrent, "4096\n"),
            (
                F::MemoryStat,
                "anon 1000\nfile 2000\nkernel 5\nfile_mapped 7\n",
            ),
            (
                F::MemoryEvents,
                "low 0\nhigh 4\nmax 2\noom 1\noom_kill 1\noom_group_kill 0\n",
            ),
            (
                F::IoStat,
                "254:0 rbytes=10 wbytes=5 rios=1 wios=2 dbytes=0 dios=0\n8:0 rbytes=4 wbytes=0 rios=1 wios=0\n",
            ),
            (
                F::PressureCpu,
                "some avg10=0.00 avg60=0.00 avg300=0.00 total=777\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
            ),
            (F::Pids, "3\n"),
        ]);
        assert_eq!(
            (
                c.cpu_usec,
                c.cpu_user_usec,
                c.cpu_system_usec,
                c.cpu_throttled_usec
            ),
            (Some(1200), Some(1000), Some(200), Some(30))
        );
        assert_eq!(
            (c.memory_bytes, c.memory_anon_bytes, c.memory_file_bytes),
            (Some(4096), Some(1000), Some(2000))
        );
        assert_eq!(
            (c.memory_high_events, c.memory_max_events, c.oom_kills),
            (Some(4), Some(2), Some(1))
        );
        assert_eq!((c.disk_read_bytes, c.disk_write_bytes), (Some(14), Some(5)));
        assert_eq!((c.disk_reads, c.disk_writes), (Some(2), Some(2)));
        assert_eq!((c.psi_cpu_usec, c.psi_io_usec), (Some(777), None));
        assert_eq!((c.processes, c.net_rx_bytes), (Some(3), None));
        // A cgroup without the CPU controller has no throttling to tell.
        let c = read(&[(F::CpuStat, "usage_usec 5\n"), (F::IoStat, "")]);
        assert_eq!((c.cpu_usec, c.cpu_throttled_usec), (Some(5), None));
        assert_eq!(
            c.disk_read_bytes,
            Some(0),
            "an empty io.stat: nothing done yet"
        );
        // Devices without counters yet, as some kernels print them.
        let c = read(&[(F::IoStat, "254:0 \n8:0 rbytes=4 wbytes=1 rios=1 wios=1\n")]);
        assert_eq!(c.disk_read_bytes, Some(4));
    }

    #[test]
    fn version_1() {
        use CounterFile as F;
        let c = read(&[
            (F::V1CpuUsage, "7000123\n"),
            (F::V1CpuStat, "user 5\nsystem 2\n"),
            (
                F::V1Throttled,
                "nr_periods 9\nnr_throttled 3\nthrottled_time 4000\n",
            ),
            (F::V1MemoryUsage, "8192\n"),
            (
                F::V1MemoryStat,
                "cache 1\nrss 2\ntotal_cache 100\ntotal_rss 200\n",
            ),
            (F::V1Oom, "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            (
                F::V1IoBytes,
                "8:0 Read 512\n8:0 Write 1024\n8:0 Sync 1\n8:0 Total 1536\n8:16 Read 8\n8:16 Write 0\nTotal 1544\n",
            ),
            (F::V1IoOperations, "8:0 Read 3\n8:0 Write 4\nTotal 7\n"),
            (F::Pids, "3\n"),
        ]);
        assert_eq!(
            (c.cpu_usec, c.cpu_user_usec, c.cpu_system_usec),
            (Some(7000), Some(50_000), Some(20_000))
        );
        assert_eq!(
            (c.cpu_throttled_usec, c.memory_bytes),
            (Some(4), Some(8192))
        );
        assert_eq!(
            (c.memory_anon_bytes, c.memory_file_bytes),
            (Some(200), Some(100))
        );
        assert_eq!((c.oom_kills, c.memory_high_events), (Some(2), None));
        assert_eq!(
            (c.disk_read_bytes, c.disk_write_bytes),
            (Some(520), Some(1024))
        );
        assert_eq!((c.disk_reads, c.disk_writes), (Some(3), Some(4)));
        assert_eq!((c.psi_cpu_usec, c.processes), (None, Some(3)));
    }

    #[test]
    fn identities_differ_by_cgroup_and_boot() {
        assert_ne!(identity(&[1], "a"), identity(&[1], "b"));
        assert_ne!(identity(&[1], "a"), identity(&[2], "a"));
        assert_ne!(identity(&[1, 2], "a"), identity(&[2, 1], "a"));
    }
}
