//! One process under examination: what its /proc directory tells of descriptors and mappings.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::field;
use crate::reason::{Code, Reason};

/// Character devices that criu knows: (major, minor) of null, zero, full, random, urandom.
const PLAIN_DEVICES: [(u64, u64); 5] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)];
/// What the kernel appends to the name of a file without one.
const DELETED: &str = " (deleted)";

/// Looks at descriptors that may be closed in a moment, and the pause before each. A process that
/// starts reads of itself for tens of milliseconds on a slow guest.
const LOOKS: u32 = 20;
const LOOK: Duration = Duration::from_millis(10);

/// What is gathered over the processes of a feature.
#[derive(Debug, Default)]
pub struct Gathered {
    /// What stands in the way.
    pub problems: BTreeSet<Reason>,
    /// Files that must be the same on the target, and who needs them.
    pub files: BTreeMap<PathBuf, String>,
    /// Directories that must be on the target.
    pub directories: BTreeSet<PathBuf>,
    /// Sockets by inode, and whose they are.
    pub sockets: HashMap<u64, String>,
    /// Descriptors that stand in the way if they stay what they are, and why.
    passing: Vec<(PathBuf, PathBuf, Reason)>,
    /// Threads in all.
    pub threads: usize,
    /// Bytes of memory.
    pub bytes: u64,
}

impl Gathered {
    /// Waits for descriptors that may be closed in a moment, all together: those that stay stand in
    /// the way. Many a server looks at /proc/self at times; a move that meets such a moment is tried
    /// again.
    pub fn wait(&mut self) {
        for _ in 0..LOOKS {
            if self.passing.is_empty() {
                return;
            }
            std::thread::sleep(LOOK);
            self.passing
                .retain(|(fd, path, _)| fs::read_link(fd).is_ok_and(|now| now == *path));
        }
        let stayed = self.passing.drain(..).map(|(.., reason)| reason);
        self.problems.extend(stayed);
    }
}

/// What belongs to the feature: its state directories, and the FIFO of its log.
#[derive(Debug, Default)]
pub struct Own {
    /// State directories.
    pub state: Vec<PathBuf>,
    /// The log.
    pub log: PathBuf,
}

impl Own {
    fn moves(&self, path: &Path) -> bool {
        self.state.iter().any(|s| path.starts_with(s))
    }
}

/// A process under examination.
pub struct Process {
    /// In the guest's PID namespace.
    pub pid: i32,
    name: String,
    dir: PathBuf,
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

impl Process {
    /// The process of a /proc tree.
    pub fn new(root: &Path, pid: i32) -> Self {
        let dir = root.join(pid.to_string());
        let name = fs::read_to_string(dir.join("comm")).unwrap_or_default();
        Self {
            pid,
            name: name.trim().to_owned(),
            dir,
        }
    }

    /// Whether it is gone, or dead and only waits to be reaped.
    pub fn ended(&self) -> bool {
        match fs::read_to_string(self.dir.join("stat")) {
            Ok(stat) => stat
                .rsplit_once(')')
                .is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X'])),
            Err(_) => !self.dir.exists(),
        }
    }

    fn status(&self, key: &str) -> Option<String> {
        let text = fs::read_to_string(self.dir.join("status")).ok()?;
        let line = text.lines().find_map(|l| l.strip_prefix(key))?;
        Some(line.trim().to_owned())
    }

    /// criu has the first process mount a /proc of the PID namespace, so that one must be allowed
    /// to (`CAP_SYS_ADMIN`); the others need not be.
    pub fn is_root(&self) -> bool {
        const CAP_SYS_ADMIN: u32 = 21;
        let mask = self.status("CapEff:");
        let mask = mask.and_then(|m| u64::from_str_radix(&m, 16).ok());
        mask.is_none_or(|m| m & (1 << CAP_SYS_ADMIN) != 0)
    }

    /// The identity of a namespace that it is in.
    pub fn namespace(&self, kind: &str) -> Option<PathBuf> {
        fs::read_link(self.dir.join("ns").join(kind)).ok()
    }

    fn rollup(&self) -> String {
        fs::read_to_string(self.dir.join("smaps_rollup")).unwrap_or_default()
    }

    /// Bytes of its memory, what it shares counted in part.
    pub fn memory(&self) -> u64 {
        memory(&self.rollup())
    }

    /// Looks at all of it. `first` is the feature's first process, `guest` the guest's.
    pub fn look(&self, first: &Self, guest: &Self, own: &Own, all: &mut Gathered) {
        let mut found = BTreeSet::new();
        all.threads += fs::read_dir(self.dir.join("task")).map_or(0, Iterator::count);
        let rollup = self.rollup();
        all.bytes += memory(&rollup);
        let huge = |key| field(&rollup, key).unwrap_or(0);
        if huge("Private_Hugetlb:") + huge("Shared_Hugetlb:") > 0 {
            found.insert(self.huge("hugetlbfs"));
        }
        self.namespaces(first, guest, &mut found);
        if self.status("TracerPid:").is_some_and(|t| t != "0") {
            found.insert(Reason::new(
                Code::Traced,
                format!("{self} is held by a debugger; detach it"),
            ));
        }
        for link in ["cwd", "root"] {
            if let Ok(to) = fs::read_link(self.dir.join(link)) {
                self.directory(&to.to_string_lossy(), own, all, &mut found);
            }
        }
        self.descriptors(own, all, &mut found);
        self.mappings(guest, own, all, &mut found);
        // One that ended while it was looked at stands in nobody's way.
        if !self.ended() {
            all.problems.append(&mut found);
        }
    }

    fn namespaces(&self, first: &Self, guest: &Self, found: &mut BTreeSet<Reason>) {
        let mounts = self.namespace("mnt");
        if mounts.is_none() || mounts != guest.namespace("mnt") {
            found.insert(Reason::new(
                Code::MountNamespace,
                format!(
                    "{self} has a mount namespace of its own; run it without sandboxing of mounts"
                ),
            ));
        }
        let differs = |kind: &str, from: &Self| {
            let pair = self.namespace(kind).zip(from.namespace(kind));
            pair.is_some_and(|(mine, theirs)| mine != theirs)
        };
        let kinds = ["net", "pid", "ipc", "uts"].map(|k| (k, differs(k, first)));
        let nested = kinds.iter().find(|(_, nested)| *nested).map(|(k, _)| *k);
        let user = differs("user", guest).then_some("user");
        if let Some(kind) = nested.or(user) {
            found.insert(Reason::new(
                Code::Namespace,
                format!(
                    "{self} has a namespace of its own ({kind}) inside of the feature, which criu \
                     cannot carry; run it without sandboxing"
                ),
            ));
        }
    }

    fn huge(&self, what: &str) -> Reason {
        Reason::new(
            Code::Hugetlb,
            format!("{self} maps huge pages ({what}), which criu cannot carry"),
        )
    }

    /// A directory that it is in or has open.
    fn directory(&self, path: &str, own: &Own, all: &mut Gathered, found: &mut BTreeSet<Reason>) {
        if let Some(gone) = path.strip_suffix(DELETED) {
            found.insert(Reason::new(
                Code::DirectoryAbsent,
                format!(
                    "{self} is in the directory {gone}, which was removed; restart the feature"
                ),
            ));
        } else if path != "/" && !own.moves(Path::new(path)) && !of_kernel(path) {
            all.directories.insert(PathBuf::from(path));
        }
    }

    fn descriptors(&self, own: &Own, all: &mut Gathered, found: &mut BTreeSet<Reason>) {
        let entries = match fs::read_dir(self.dir.join("fd")) {
            Ok(e) => e,
            Err(e) => {
                found.insert(Reason::new(
                    Code::Unreadable,
                    format!("the descriptors of {self} cannot be read: {e}"),
                ));
                return;
            }
        };
        for fd in entries.flatten() {
            let number = fd.file_name().to_string_lossy().into_owned();
            let Ok(link) = fs::read_link(fd.path()) else {
                continue;
            };
            let link = link.to_string_lossy().into_owned();
            if let Some(inode) = link
                .strip_prefix("socket:[")
                .and_then(|l| l.strip_suffix(']'))
            {
                if let Ok(inode) = inode.parse() {
                    let owner = || format!("descriptor {number} of {self}");
                    all.sockets.entry(inode).or_insert_with(owner);
                }
            } else if link == "anon_inode:[io_uring]" {
                found.insert(Reason::new(
                    Code::IoUring,
                    format!(
                        "{self} uses io_uring, which criu cannot carry; switch it off in the guest \
                         (sysctl kernel.io_uring_disabled=2) and restart the feature"
                    ),
                ));
            } else if let Some((code, what)) = special(&link) {
                found.insert(Reason::new(
                    code,
                    format!("{self} uses {what} (descriptor {number}), which criu cannot carry"),
                ));
            } else if link.starts_with("/dev/") && !plain_device(&fd.path(), &link) {
                found.insert(Reason::new(
                    Code::Device,
                    format!(
                        "{self} has the device {link} open (descriptor {number}), which stays \
                         with this guest"
                    ),
                ));
            } else if link.starts_with('/') && !link.starts_with("/memfd:") {
                self.file(&fd.path(), &number, &link, own, all, found);
            }
        }
    }

    /// An open file of a file system.
    fn file(
        &self,
        fd: &Path,
        number: &str,
        link: &str,
        own: &Own,
        all: &mut Gathered,
        found: &mut BTreeSet<Reason>,
    ) {
        let Ok(status) = fs::metadata(fd) else {
            return; // closed meanwhile
        };
        let kind = status.file_type();
        if kind.is_dir() {
            return self.directory(link, own, all, found);
        }
        if let Some(path) = link.strip_suffix(DELETED) {
            return self.ghost(path, status.len(), all, found);
        }
        let path = Path::new(link);
        if own.moves(path) || path == own.log {
            return;
        }
        if kind.is_fifo() {
            found.insert(Reason::new(
                Code::Fifo,
                format!(
                    "{self} has the FIFO {link} open, which does not move; put it into a state \
                     directory"
                ),
            ));
            return;
        }
        if !kind.is_file() {
            return; // a device: judged before
        }
        if of_kernel(link) {
            if of_a_process(path) {
                let reason = Reason::new(
                    Code::ProcFile,
                    format!(
                        "{self} has {link} open (descriptor {number}), a file of a process that \
                         has another number on the target"
                    ),
                );
                all.passing.push((fd.to_owned(), path.to_owned(), reason));
            }
            return;
        }
        if link.starts_with("/dev/shm/") {
            found.insert(self.shared(link));
        } else if self.writes(number) {
            found.insert(self.written(link));
        } else {
            self.same(path, all);
        }
    }

    /// A deleted file that it has open or mapped: criu carries it along, up to a size.
    fn ghost(&self, path: &str, size: u64, all: &mut Gathered, found: &mut BTreeSet<Reason>) {
        let most = u64::from(crate::helper::source::GHOST_LIMIT);
        if size > most {
            found.insert(Reason::new(
                Code::DeletedFile,
                format!(
                    "{self} holds the deleted file {path} of {} MiB; at most {} MiB of such a file \
                     are carried, restart the feature",
                    size >> 20,
                    most >> 20
                ),
            ));
        } else if let Some(above) = Path::new(path).parent().filter(|p| *p != Path::new("/")) {
            // It is made there again and deleted.
            all.directories.insert(above.to_owned());
        }
    }

    fn shared(&self, path: &str) -> Reason {
        Reason::new(
            Code::SharedMemory,
            format!(
                "{self} uses {path}, shared memory of the guest, which does not move; use memory \
                 without a name"
            ),
        )
    }

    fn written(&self, path: &str) -> Reason {
        Reason::new(
            Code::OpenFile,
            format!(
                "{self} writes {path}, which does not move; put it into a state directory \
                 (workload.state), or write to standard output"
            ),
        )
    }

    fn same(&self, path: &Path, all: &mut Gathered) {
        all.files
            .entry(path.to_owned())
            .or_insert_with(|| self.to_string());
    }

    /// Whether a descriptor is open for writing.
    fn writes(&self, number: &str) -> bool {
        const ACCESS: u32 = 3;
        let info = fs::read_to_string(self.dir.join("fdinfo").join(number)).unwrap_or_default();
        let flags = info.lines().find_map(|l| l.strip_prefix("flags:"));
        let flags = flags.and_then(|f| u32::from_str_radix(f.trim(), 8).ok());
        flags.is_some_and(|f| f & ACCESS != 0)
    }

    fn mappings(&self, guest: &Self, own: &Own, all: &mut Gathered, found: &mut BTreeSet<Reason>) {
        let maps = fs::read_to_string(self.dir.join("maps")).unwrap_or_default();
        let own_ipc = self.namespace("ipc") != guest.namespace("ipc");
        for m in maps.lines().filter_map(mapping) {
            match m.kind {
                Kind::Huge => {
                    found.insert(self.huge(m.path));
                }
                Kind::Device => {
                    found.insert(Reason::new(
                        Code::Device,
                        format!(
                            "{self} maps the device {}, which stays with this guest",
                            m.path
                        ),
                    ));
                }
                Kind::SystemV if !own_ipc => {
                    found.insert(Reason::new(
                        Code::SharedMemory,
                        format!(
                            "{self} maps System V shared memory of the guest; restart the feature, \
                             which then has an IPC namespace of its own"
                        ),
                    ));
                }
                Kind::SystemV => {}
                Kind::Deleted if m.code => {
                    found.insert(Reason::new(
                        Code::DeletedProgram,
                        format!(
                            "{self} runs the deleted file {}; restart the feature after the update",
                            m.path
                        ),
                    ));
                }
                Kind::Deleted => {
                    let file = self.dir.join("map_files").join(m.range);
                    let size = fs::metadata(file).map_or(0, |s| s.len());
                    self.ghost(m.path, size, all, found);
                }
                Kind::File if own.moves(Path::new(m.path)) => {}
                Kind::File if m.path.starts_with("/dev/shm/") => {
                    found.insert(self.shared(m.path));
                }
                Kind::File if m.shared => {
                    found.insert(self.written(m.path));
                }
                Kind::File => self.same(Path::new(m.path), all),
            }
        }
    }
}

/// Whether a path is of a file system that the kernel makes up.
fn of_kernel(path: &str) -> bool {
    ["/proc", "/sys", "/dev"]
        .iter()
        .any(|k| Path::new(path).starts_with(k))
        && !path.starts_with("/dev/shm")
}

/// Whether a path is below a process's directory in /proc, hence of another number on the target.
pub(in crate::helper) fn of_a_process(path: &Path) -> bool {
    path.strip_prefix("/proc")
        .ok()
        .and_then(|below| below.to_str())
        .is_some_and(|below| below.starts_with(|c: char| c.is_ascii_digit()))
}

/// A descriptor's target that criu cannot carry, in words.
fn special(link: &str) -> Option<(Code, &'static str)> {
    if link.starts_with("/dev/pts/")
        || link == "/dev/ptmx"
        || link.starts_with("/dev/tty")
        || link == "/dev/console"
    {
        return Some((Code::Terminal, "a terminal"));
    }
    let kinds = [
        ("anon_inode:[perf_event]", "a performance counter"),
        ("anon_inode:bpf", "a BPF object"),
        ("anon_inode:[userfaultfd]", "userfaultfd"),
        ("anon_inode:[fanotify]", "fanotify"),
        ("anon_inode:kvm", "KVM"),
        ("anon_inode:[landlock-ruleset]", "a Landlock rule set"),
    ];
    kinds
        .iter()
        .find(|(k, _)| link.starts_with(k))
        .map(|(_, what)| (Code::KernelObject, *what))
}

/// Whether a descriptor that points below /dev is no device, or one that criu knows.
fn plain_device(fd: &Path, link: &str) -> bool {
    use std::os::unix::fs::MetadataExt;
    let Ok(m) = fs::metadata(fd) else {
        return link == "/dev/null" || link.ends_with(DELETED);
    };
    if !m.file_type().is_char_device() && !m.file_type().is_block_device() {
        return true; // a plain file, for instance below /dev/shm
    }
    let id = (
        nix::sys::stat::major(m.rdev()),
        nix::sys::stat::minor(m.rdev()),
    );
    m.file_type().is_char_device() && PLAIN_DEVICES.contains(&id)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Huge,
    Device,
    SystemV,
    Deleted,
    File,
}

/// A mapping that matters here.
#[derive(Debug, PartialEq, Eq)]
struct Mapping<'a> {
    kind: Kind,
    path: &'a str,
    range: &'a str,
    /// Executable.
    code: bool,
    /// Shared and writable.
    shared: bool,
}

/// What a line of `/proc/PID/maps` says that matters here.
fn mapping(line: &str) -> Option<Mapping<'_>> {
    let mut rest = line;
    let mut column = || {
        let (word, tail) = rest.split_once(' ')?;
        rest = tail.trim_start();
        Some(word)
    };
    let (range, mode) = (column()?, column()?);
    let (_offset, _device) = (column()?, column()?);
    let (_inode, path) = rest.split_once(' ')?;
    let path = path.trim_start();
    let (path, deleted) = match path.strip_suffix(DELETED) {
        Some(p) => (p, true),
        None => (path, false),
    };
    let kind = if path.starts_with("/anon_hugepage") || path.starts_with("/dev/hugepages/") {
        Kind::Huge
    } else if path.starts_with("/SYSV") {
        Kind::SystemV
    } else if path.starts_with("/dev/zero") || path.starts_with("/memfd:") || path == "/[aio]" {
        return None;
    } else if path.starts_with("/dev/") && !path.starts_with("/dev/shm/") {
        Kind::Device
    } else if !path.starts_with('/') {
        return None;
    } else if deleted {
        Kind::Deleted
    } else {
        Kind::File
    };
    Some(Mapping {
        kind,
        path,
        range,
        code: mode.contains('x'),
        shared: mode.contains('w') && mode.ends_with('s'),
    })
}

/// Bytes that a process has, from its `smaps_rollup`.
fn memory(rollup: &str) -> u64 {
    let pss = field(rollup, "Pss:").or_else(|| field(rollup, "Rss:"));
    pss.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn map_lines_never_panic(line in ".{0,80}") {
            let _ = mapping(&line);
        }
    }

    #[test]
    fn harmless_mappings_are_left_out() {
        for line in [
            "1-2 rw-p 00000000 00:00 0",
            "1-2 rw-s 00000000 00:01 9  /dev/zero (deleted)",
            "1-2 rwxs 00000000 00:01 9  /memfd:jit (deleted)",
            "1-2 r-xp 00000000 00:00 0  [vdso]",
        ] {
            assert_eq!(mapping(line), None, "{line}");
        }
        let m = mapping("1-2 rw-s 00000000 fe:00 7  /srv/a b").unwrap();
        assert_eq!(
            (m.kind, m.path, m.shared, m.code),
            (Kind::File, "/srv/a b", true, false)
        );
    }
}
