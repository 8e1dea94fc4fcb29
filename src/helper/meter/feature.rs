//! The counters of one feature, from files that stay open.
//!
//! A cgroup that was removed answers ENODEV for ever, so a new one at the same place is noticed
//! without looking at its directory. The dear and slow files are read every ten seconds, and
//! those of which the kernel tells changes only when it does.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Mutex};

use nix::sys::inotify::WatchDescriptor;

use crate::counters::{self, CounterFile};
use crate::feature::{FeatureName, FeatureSpec, Workload};
use crate::helper::port::lock;
use crate::helper::{features, netns};
use crate::sample::{Counters, RawSample};

use super::hierarchy::Hierarchy;
use super::locate;
use super::watch::Watches;

/// Pause between readings of slow files, and between looks at what did not change, nanoseconds.
pub(super) const SLOW_NS: u64 = 10_000_000_000;
/// First and longest pause between questions where an absent workload's cgroup is, nanoseconds.
const ASK_AGAIN_NS: (u64, u64) = (2_000_000_000, 30_000_000_000);

/// What the features of one guest have in common.
#[derive(Debug)]
pub struct Guest {
    /// The guest's cgroups.
    pub hierarchy: Hierarchy,
    /// The boot's identity.
    pub boot_id: String,
    /// Clock ticks per second.
    pub ticks: u64,
    /// Notices of changed files.
    pub watches: Watches,
    /// Buffer for files.
    pub buffer: Vec<u8>,
}

/// Meter of one feature.
#[derive(Debug)]
pub struct FeatureMeter {
    name: FeatureName,
    workload: Workload,
    /// When to ask next, and the pause after that.
    ask: (u64, u64),
    /// Where the answer arrives; asking takes longer than a tick may.
    answer: Arc<Mutex<Option<String>>>,
    open: Option<Open>,
}

/// The files of one cgroup as it was when they were opened.
#[derive(Debug)]
struct Open {
    cgroup: String,
    inodes: Vec<u64>,
    identity: u64,
    files: Vec<(CounterFile, File)>,
    /// Watch on the file that notifies; `None` when it must be read each time.
    watch: Option<WatchDescriptor>,
    network: Option<File>,
    /// When slow files are due.
    slow_at: u64,
    /// All as last read.
    counters: Counters,
}

/// A cgroup that is gone, or files that cannot be read any more.
struct Gone;

impl FeatureMeter {
    /// A meter that opens its files at the first reading.
    pub fn new(spec: &FeatureSpec) -> Self {
        Self {
            name: spec.name.clone(),
            workload: spec.workload.clone(),
            ask: (0, ASK_AGAIN_NS.0),
            answer: Arc::default(),
            open: None,
        }
    }

    /// Whether the meter suits this definition.
    pub fn is_for(&self, spec: &FeatureSpec) -> bool {
        self.workload == spec.workload
    }

    /// Looks for the feature's process anew at the next reading. An open `net/dev` would also
    /// keep a removed namespace alive.
    pub fn forget_process(&mut self) {
        if let Some(open) = &mut self.open {
            open.network = None;
            open.slow_at = 0;
        }
    }

    /// Closes all files.
    pub fn close(&mut self, guest: &Guest) {
        if let Some(open) = self.open.take() {
            open.close(guest);
        }
    }

    /// The counters now, or `None` while the feature has no cgroup. `now_ns` is the boot-time
    /// clock; it only says what is due.
    pub fn read(&mut self, guest: &mut Guest, now_ns: u64) -> Option<RawSample> {
        for _ in 0..2 {
            if self.open.is_none() {
                let cgroup = self.find(guest, now_ns)?;
                self.open = Open::new(guest, cgroup);
            }
            let open = self.open.as_mut()?;
            let at_ns = super::boottime_ns();
            if open.read(guest, &self.name, &self.workload, now_ns).is_ok() {
                return Some(RawSample {
                    feature: self.name.clone(),
                    identity: open.identity,
                    at_ns,
                    counters: open.counters,
                });
            }
            // Perhaps another has taken its place already.
            self.close(guest);
        }
        None
    }

    fn find(&mut self, guest: &Guest, now_ns: u64) -> Option<String> {
        let known = lock(&self.answer).take();
        let known = known.filter(|c| guest.hierarchy.directory(c).is_some());
        let found = known.or_else(|| locate::usual(&guest.hierarchy, &self.name, &self.workload));
        if found.is_some() {
            self.ask = (0, ASK_AGAIN_NS.0);
            return found;
        }
        let asks = matches!(
            self.workload,
            Workload::Unit { .. } | Workload::Container { .. }
        );
        if asks && now_ns >= self.ask.0 {
            self.ask = (
                now_ns.saturating_add(self.ask.1),
                (self.ask.1 * 2).min(ASK_AGAIN_NS.1),
            );
            let (hierarchy, workload) = (guest.hierarchy.clone(), self.workload.clone());
            let answer = Arc::clone(&self.answer);
            let ask = move || *lock(&answer) = locate::ask(&hierarchy, &workload);
            if let Err(e) = std::thread::Builder::new().spawn(ask) {
                tracing::warn!("cannot look for the cgroup of '{}': {e}", self.name);
            }
        }
        None
    }
}

impl Open {
    fn new(guest: &mut Guest, cgroup: String) -> Option<Self> {
        let (places, inodes) = guest.hierarchy.files(&cgroup)?;
        let mut watch = None;
        let files = places
            .into_iter()
            .filter_map(|place| {
                let file = File::open(&place.path).ok()?;
                if place.file.notifies() {
                    watch = guest.watches.add(&place.path);
                }
                Some((place.file, file))
            })
            .collect();
        Some(Self {
            identity: counters::identity(&inodes, &guest.boot_id),
            cgroup,
            inodes,
            files,
            watch,
            network: None,
            slow_at: 0,
            counters: Counters::default(),
        })
    }

    fn close(self, guest: &Guest) {
        if let Some(watch) = self.watch {
            guest.watches.remove(watch);
        }
    }

    fn read(
        &mut self,
        guest: &mut Guest,
        name: &FeatureName,
        workload: &Workload,
        now_ns: u64,
    ) -> Result<(), Gone> {
        let slow = now_ns >= self.slow_at;
        if slow {
            self.slow_at = now_ns.saturating_add(SLOW_NS);
            self.look_again(guest)?;
        }
        let told = self.watch.is_none_or(|w| guest.watches.told(w));
        let mut at = 0;
        let mut everything = slow;
        while at < self.files.len() {
            let (kind, file) = &self.files[at];
            if !everything && (kind.slow() || (kind.notifies() && !told)) {
                at += 1;
                continue;
            }
            match read_whole(file, &mut guest.buffer) {
                Ok(text) => {
                    kind.take(text, guest.ticks, &mut self.counters);
                    at += 1;
                }
                Err(e) if e.raw_os_error() == Some(nix::libc::ENODEV) => return Err(Gone),
                Err(e) => {
                    tracing::debug!("{} of '{name}' cannot be read: {e}", kind.name());
                    // What it said must not stay: read the others anew, without it.
                    self.files.remove(at);
                    self.counters = Counters::default();
                    (at, everything) = (0, true);
                }
            }
        }
        self.read_network(guest, name, workload, slow);
        Ok(())
    }

    /// Whether the cgroup is still the same; opens files that were not there when it was opened.
    fn look_again(&mut self, guest: &mut Guest) -> Result<(), Gone> {
        let (places, inodes) = guest.hierarchy.files(&self.cgroup).ok_or(Gone)?;
        if inodes != self.inodes {
            return Err(Gone);
        }
        for place in places {
            if self.files.iter().any(|(kind, _)| *kind == place.file) {
                continue;
            }
            if let Ok(file) = File::open(&place.path) {
                if place.file.notifies() {
                    self.watch = guest.watches.add(&place.path);
                }
                self.files.push((place.file, file));
            }
        }
        Ok(())
    }

    fn read_network(
        &mut self,
        guest: &mut Guest,
        name: &FeatureName,
        workload: &Workload,
        slow: bool,
    ) {
        let managed = matches!(workload, Workload::Managed(_));
        if !managed && !matches!(workload, Workload::Container { .. }) {
            return;
        }
        if self.network.is_none() {
            self.network = if managed {
                features::pid(name).and_then(|pid| File::open(format!("/proc/{pid}/net/dev")).ok())
            } else if slow {
                container_network(&guest.hierarchy, &self.cgroup)
            } else {
                None
            };
        }
        let text = self
            .network
            .as_ref()
            .and_then(|f| read_whole(f, &mut guest.buffer).ok());
        let found = text.and_then(|t| {
            if managed {
                counters::net_dev(t, netns::INTERFACE)
            } else {
                counters::net_sum(t)
            }
        });
        if found.is_none() {
            // The interface is gone, and so is the namespace soon.
            self.network = None;
        }
        self.counters.net_rx_bytes = found.map(|n| n.0);
        self.counters.net_tx_bytes = found.map(|n| n.1);
    }
}

/// Interfaces of a container that has a network namespace of its own; with the guest's own
/// network nothing tells its part.
fn container_network(hierarchy: &Hierarchy, cgroup: &str) -> Option<File> {
    let directory = hierarchy.directory(cgroup)?;
    let pid = first_process(&directory, 0)?;
    let namespace = |of: &str| {
        fs::metadata(format!("/proc/{of}/ns/net"))
            .ok()
            .map(|m| m.ino())
    };
    let (own, its) = (namespace("self")?, namespace(&pid)?);
    (own != its).then(|| File::open(format!("/proc/{pid}/net/dev")).ok())?
}

fn first_process(directory: &Path, depth: usize) -> Option<String> {
    let procs = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    if let Some(pid) = procs.lines().find(|l| *l != "0" && !l.is_empty()) {
        return Some(pid.to_owned());
    }
    // podman and systemd in a container put the processes into cgroups below.
    if depth == 3 {
        return None;
    }
    let entries = fs::read_dir(directory).ok()?.filter_map(Result::ok);
    entries
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .find_map(|e| first_process(&e.path(), depth + 1))
}

/// The file's whole text, read anew from its beginning; at most the buffer's size. The kernel
/// gives these files whole, so a short read is the end.
pub(super) fn read_whole<'a>(file: &File, buffer: &'a mut [u8]) -> std::io::Result<&'a [u8]> {
    let mut length = 0;
    loop {
        let n = file.read_at(&mut buffer[length..], length as u64)?;
        length += n;
        if n == 0 || length < buffer.len() {
            return Ok(&buffer[..length]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn guest(hierarchy: Hierarchy) -> Guest {
        Guest {
            hierarchy,
            boot_id: "boot".into(),
            ticks: 100,
            watches: Watches::default(),
            buffer: vec![0; 4096],
        }
    }

    fn meter(workload: &str) -> FeatureMeter {
        let text = format!(r#"{{"name":"web","workload":{workload}}}"#);
        let spec: FeatureSpec = serde_json::from_str(&text).unwrap();
        FeatureMeter::new(&spec)
    }

    const CGROUP: &str = r#"{"kind":"cgroup","cgroup":"/a/b"}"#;

    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b");
        fs::create_dir_all(&dir).unwrap();
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
        (root, dir)
    }

    #[test]
    fn reads_what_is_there_and_follows_a_new_cgroup() {
        let (root, dir) = tree(&[]);
        fs::remove_dir(&dir).unwrap();
        let mut guest = guest(Hierarchy::V2(root.path().into()));
        let mut meter = meter(CGROUP);
        assert_eq!(meter.read(&mut guest, 0), None);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("cpu.stat"), "usage_usec 5\nuser_usec 3\n").unwrap();
        fs::write(dir.join("memory.current"), "4096\n").unwrap();
        fs::write(dir.join("memory.stat"), "anon 1\nfile 2\n").unwrap();
        fs::write(dir.join("memory.events"), "high 0\nmax 0\noom_kill 0\n").unwrap();
        fs::write(dir.join("io.stat"), "").unwrap();
        let first = meter.read(&mut guest, 1).unwrap();
        assert_eq!(first.counters.cpu_usec, Some(5));
        assert_eq!(first.counters.cpu_throttled_usec, None);
        assert_eq!(first.counters.memory_bytes, Some(4096));
        assert_eq!(first.counters.memory_anon_bytes, Some(1));
        assert_eq!(first.counters.oom_kills, Some(0));
        assert_eq!(first.counters.disk_write_bytes, Some(0));
        assert_eq!(first.counters.psi_io_usec, None);
        assert_eq!(first.counters.net_rx_bytes, None);
        // The same files, read again: the dear one not yet, the one that notifies when it does.
        fs::write(dir.join("cpu.stat"), "usage_usec 9\n").unwrap();
        fs::write(dir.join("memory.stat"), "anon 7\nfile 2\n").unwrap();
        fs::write(dir.join("memory.events"), "high 0\nmax 1\noom_kill 1\n").unwrap();
        guest.watches.collect();
        let second = meter.read(&mut guest, 2).unwrap();
        assert_eq!(second.counters.cpu_usec, Some(9));
        assert_eq!(second.counters.memory_anon_bytes, Some(1));
        assert_eq!(second.counters.oom_kills, Some(1));
        assert_eq!(second.identity, first.identity);
        let later = meter.read(&mut guest, 2 + SLOW_NS).unwrap();
        assert_eq!(later.counters.memory_anon_bytes, Some(7));
        // Another cgroup at the same place. (A real one that is gone also answers ENODEV.)
        fs::rename(&dir, root.path().join("old")).unwrap();
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("cpu.stat"), "usage_usec 1\n").unwrap();
        let third = meter.read(&mut guest, 3 + 2 * SLOW_NS).unwrap();
        assert_eq!(third.counters.cpu_usec, Some(1));
        assert_eq!(third.counters.memory_bytes, None);
        assert_ne!(third.identity, first.identity);
        // A controller that is switched on later.
        fs::write(dir.join("memory.current"), "1\n").unwrap();
        let fourth = meter.read(&mut guest, 4 + 3 * SLOW_NS).unwrap();
        assert_eq!(fourth.counters.memory_bytes, Some(1));
        assert_eq!(fourth.identity, third.identity);
    }

    #[test]
    fn version_1_in_several_hierarchies() {
        let (root, dir) = tree(&[("memory.usage_in_bytes", "4096\n")]);
        let cpu = tempfile::tempdir().unwrap();
        fs::create_dir_all(cpu.path().join("a/b")).unwrap();
        fs::write(cpu.path().join("a/b/cpuacct.usage"), "5000\n").unwrap();
        let mut guest = guest(Hierarchy::V1(vec![
            ("cpuacct".into(), cpu.path().into()),
            ("memory".into(), root.path().into()),
        ]));
        let mut meter = meter(CGROUP);
        let first = meter.read(&mut guest, 0).unwrap();
        assert_eq!(first.counters.cpu_usec, Some(5));
        assert_eq!(first.counters.memory_bytes, Some(4096));
        assert_eq!(first.counters.psi_cpu_usec, None, "version 1 has none");
        // The cgroup of one controller comes anew.
        fs::rename(&dir, root.path().join("old")).unwrap();
        fs::create_dir(&dir).unwrap();
        let second = meter.read(&mut guest, SLOW_NS).unwrap();
        assert_eq!(second.counters.memory_bytes, None);
        assert_ne!(second.identity, first.identity);
    }

    #[test]
    fn the_hierarchy_of_this_machine() {
        // Whatever this machine has: its first cgroup with a counter is read from the kernel.
        let hierarchy = Hierarchy::detect();
        let mut guest = guest(hierarchy);
        let names: Vec<String> = guest
            .hierarchy
            .roots()
            .into_iter()
            .flat_map(|root| {
                fs::read_dir(root)
                    .into_iter()
                    .flatten()
                    .filter_map(Result::ok)
            })
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
            .filter_map(|e| e.file_name().into_string().ok())
            .collect();
        for name in names {
            let workload = serde_json::json!({"kind": "cgroup", "cgroup": format!("/{name}")});
            if let Some(s) = meter(&workload.to_string()).read(&mut guest, 0) {
                assert!(s.at_ns > 0 && s.identity != 0);
            }
        }
    }
}
