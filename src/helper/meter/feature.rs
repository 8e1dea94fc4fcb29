//! The counters of one feature, from files that stay open.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::feature::{FeatureName, FeatureSpec, Workload};
use crate::helper::port::lock;
use crate::helper::{cgroup, command, features, netns, paths};
use crate::sample::{Counters, RawSample};

use super::parse;

/// How often systemd is asked again where an absent unit's cgroup is.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// The cgroup files, in the order in which they are read.
const FILES: [&str; 8] = [
    "cpu.stat",
    "memory.current",
    "memory.stat",
    "io.stat",
    "cpu.pressure",
    "memory.pressure",
    "io.pressure",
    "pids.current",
];

/// Meter of one feature.
#[derive(Debug)]
pub struct FeatureMeter {
    name: FeatureName,
    workload: Workload,
    directory: Option<PathBuf>,
    asked: Option<Instant>,
    /// Where systemd's answer arrives; asking takes longer than a tick may.
    answer: Arc<Mutex<Option<PathBuf>>>,
    open: Option<Open>,
    network: Option<File>,
    buffer: Vec<u8>,
}

/// The files of one cgroup as it was when they were opened.
#[derive(Debug)]
struct Open {
    inode: u64,
    files: [Option<File>; 8],
}

impl FeatureMeter {
    /// A meter that opens its files at the first reading.
    pub fn new(spec: &FeatureSpec) -> Self {
        let directory = spec.managed().map(|_| paths::cgroup_dir(&spec.name));
        Self {
            name: spec.name.clone(),
            workload: spec.workload.clone(),
            directory,
            asked: None,
            answer: Arc::default(),
            open: None,
            network: None,
            buffer: vec![0; 16 << 10],
        }
    }

    /// Whether the meter suits this definition.
    pub fn is_for(&self, spec: &FeatureSpec) -> bool {
        self.workload == spec.workload
    }

    /// Looks for the feature's process anew at the next reading. An open `net/dev` would also
    /// keep a removed namespace alive.
    pub fn forget_process(&mut self) {
        self.network = None;
    }

    /// The counters now, or `None` while the feature has no cgroup.
    pub fn read(&mut self, boot_id: &str) -> Option<RawSample> {
        let directory = self.find_directory()?;
        let Ok(metadata) = fs::metadata(&directory) else {
            self.open = None;
            self.network = None;
            return None;
        };
        if self.open.as_ref().is_none_or(|o| o.inode != metadata.ino()) {
            self.open = Some(Open::new(&directory, metadata.ino()));
            self.network = None;
        }
        let at_ns = super::boottime_ns();
        let mut counters = self.open.as_ref()?.read(&mut self.buffer);
        if matches!(self.workload, Workload::Managed(_)) {
            let network = self.read_network();
            counters.net_rx_bytes = network.map(|n| n.0);
            counters.net_tx_bytes = network.map(|n| n.1);
        }
        Some(RawSample {
            feature: self.name.clone(),
            identity: identity(metadata.ino(), boot_id),
            at_ns,
            counters,
        })
    }

    fn read_network(&mut self) -> Option<(u64, u64)> {
        if self.network.is_none() {
            let pid = features::pid(&self.name)?;
            self.network = File::open(format!("/proc/{pid}/net/dev")).ok();
        }
        let text = read(self.network.as_ref(), &mut self.buffer)?;
        let found = parse::net_dev(text, netns::INTERFACE);
        if found.is_none() {
            // The interface is gone, and so is the namespace soon.
            self.network = None;
        }
        found
    }

    fn find_directory(&mut self) -> Option<PathBuf> {
        if let Some(known) = &self.directory
            && (known.exists() || matches!(self.workload, Workload::Managed(_)))
        {
            return Some(known.clone());
        }
        let Workload::Unit { unit } = &self.workload else {
            return None;
        };
        let found = lock(&self.answer).take().or_else(|| usual_directory(unit));
        if found.is_some() {
            self.directory = found;
        } else if self.asked.is_none_or(|at| at.elapsed() > ASK_AGAIN) {
            self.asked = Some(Instant::now());
            let (unit, answer) = (unit.clone(), Arc::clone(&self.answer));
            let ask = move || *lock(&answer) = unit_directory(&unit);
            if let Err(e) = std::thread::Builder::new().spawn(ask) {
                tracing::warn!("cannot ask systemd for a cgroup: {e}");
            }
        }
        self.directory.clone()
    }
}

/// Where nearly every unit's cgroup is.
fn usual_directory(unit: &str) -> Option<PathBuf> {
    let usual = Path::new(cgroup::ROOT).join("system.slice").join(unit);
    usual.exists().then_some(usual)
}

/// Where systemd keeps the cgroup of a unit; `None` while it has none.
pub fn unit_directory(unit: &str) -> Option<PathBuf> {
    if let Some(usual) = usual_directory(unit) {
        return Some(usual);
    }
    let args = ["show", "-p", "ControlGroup", "--value", "--", unit];
    match command::run("systemctl", &args, "", Duration::from_secs(5)) {
        Ok(group) => cgroup::directory(group.trim()),
        Err(e) => {
            tracing::warn!("cannot find the cgroup of {unit}: {e}");
            None
        }
    }
}

impl Open {
    fn new(directory: &Path, inode: u64) -> Self {
        Self {
            inode,
            files: FILES.map(|f| File::open(directory.join(f)).ok()),
        }
    }

    fn read(&self, buffer: &mut [u8]) -> Counters {
        let [cpu, current, stat, io, psi_cpu, psi_memory, psi_io, pids] = &self.files;
        let mut c = Counters::default();
        if let Some(text) = read(cpu.as_ref(), buffer) {
            c.cpu_usec = parse::keyed(text, "usage_usec");
            c.cpu_user_usec = parse::keyed(text, "user_usec");
            c.cpu_system_usec = parse::keyed(text, "system_usec");
            c.cpu_throttled_usec = parse::keyed(text, "throttled_usec");
        }
        c.memory_bytes = read(current.as_ref(), buffer).and_then(parse::single);
        c.memory_anon_bytes = read(stat.as_ref(), buffer).and_then(|t| parse::keyed(t, "anon"));
        if let Some(text) = read(io.as_ref(), buffer) {
            c.disk_read_bytes = parse::io_sum(text, "rbytes");
            c.disk_write_bytes = parse::io_sum(text, "wbytes");
        }
        c.psi_cpu_usec = read(psi_cpu.as_ref(), buffer).and_then(parse::pressure);
        c.psi_memory_usec = read(psi_memory.as_ref(), buffer).and_then(parse::pressure);
        c.psi_io_usec = read(psi_io.as_ref(), buffer).and_then(parse::pressure);
        c.processes = read(pids.as_ref(), buffer).and_then(parse::single);
        c
    }
}

/// The file's whole text, read anew from its beginning; at most the buffer's size.
fn read<'a>(file: Option<&File>, buffer: &'a mut [u8]) -> Option<&'a str> {
    let file = file?;
    let mut length = 0;
    loop {
        match file.read_at(&mut buffer[length..], length as u64) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(_) => return None,
        }
    }
    std::str::from_utf8(&buffer[..length]).ok()
}

/// FNV-1a over the inode and the boot id: another cgroup or another boot, another identity.
fn identity(inode: u64, boot_id: &str) -> u64 {
    let bytes = inode.to_le_bytes();
    bytes
        .iter()
        .chain(boot_id.as_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter(directory: &Path) -> FeatureMeter {
        let spec: FeatureSpec =
            serde_json::from_str(r#"{"name":"web","workload":{"kind":"unit","unit":"x.service"}}"#)
                .unwrap();
        let mut meter = FeatureMeter::new(&spec);
        meter.directory = Some(directory.to_owned());
        meter.asked = Some(Instant::now());
        meter
    }

    #[test]
    fn reads_what_is_there_and_follows_a_new_cgroup() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("x.service");
        let mut meter = meter(&dir);
        assert_eq!(meter.read("boot"), None);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("cpu.stat"), "usage_usec 5\nuser_usec 3\n").unwrap();
        fs::write(dir.join("memory.current"), "4096\n").unwrap();
        fs::write(dir.join("io.stat"), "").unwrap();
        let first = meter.read("boot").unwrap();
        assert_eq!(first.counters.cpu_usec, Some(5));
        assert_eq!(first.counters.cpu_throttled_usec, None);
        assert_eq!(first.counters.memory_bytes, Some(4096));
        assert_eq!(first.counters.disk_write_bytes, Some(0));
        assert_eq!(first.counters.psi_io_usec, None);
        assert_eq!(first.counters.net_rx_bytes, None);
        // The same file, read again.
        fs::write(dir.join("cpu.stat"), "usage_usec 9\n").unwrap();
        let second = meter.read("boot").unwrap();
        assert_eq!(second.counters.cpu_usec, Some(9));
        assert_eq!(second.identity, first.identity);
        // Another cgroup at the same place.
        fs::rename(&dir, root.path().join("old")).unwrap();
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("cpu.stat"), "usage_usec 1\n").unwrap();
        let third = meter.read("boot").unwrap();
        assert_eq!(third.counters.cpu_usec, Some(1));
        assert_eq!(third.counters.memory_bytes, None);
        assert_ne!(third.identity, first.identity);
        assert_ne!(identity(1, "a"), identity(1, "b"));
    }
}
