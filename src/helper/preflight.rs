//! Looks, without touching anything, for what would keep a feature from being moved: a walk
//! through /proc over the processes of its cgroup, and what the guest has room for.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{anew, cgroup, criu, digests, features, moves, netns, paths, sockets};
use crate::feature::{FeatureName, FeatureSpec, Managed};
use crate::method::Method;
use crate::reason::{Code, Reason};
use crate::wire::guest::{FileDigest, Preflight};

mod process;
mod unix;

pub(super) use process::of_a_process;
use process::{Gathered, Own, Process};

/// Most threads that criu handles in reasonable time.
const MAX_THREADS: usize = 2000;
/// Most problems that are listed; more say the same.
const MAX_PROBLEMS: usize = 20;
/// Most files and directories that are listed.
const MAX_FILES: usize = 1000;
/// Most entries of state directories that are counted.
const MAX_ENTRIES: usize = 1_000_000;

/// Checks a managed feature.
pub fn check(spec: &FeatureSpec, method: Method) -> Preflight {
    let mut found = Preflight {
        room_bytes: room(),
        method,
        ..Preflight::default()
    };
    let name = &spec.name;
    let mut problem = |code, text: String| found.problems.push(Reason::new(code, text));
    let Some(managed) = spec.managed() else {
        problem(
            Code::NotMovable,
            format!(
                "feature '{name}' is an existing unit; only workloads that Drover runs can move"
            ),
        );
        return found;
    };
    if features::pid(name).is_none() {
        problem(
            Code::NotRunning,
            format!("feature '{name}' does not run; enable it first"),
        );
    }
    found.state_bytes = state_bytes(managed);
    found
        .problems
        .extend(anew::reasons(spec, method, &anew::SOURCE_HOOKS));
    if method != Method::Live {
        return found;
    }
    let mut problem = |code, text: String| found.problems.push(Reason::new(code, text));
    let (version, trouble) = criu::probed();
    if version.is_empty() {
        let text = format!("{trouble}; install the criu package in the guest");
        problem(Code::SourceCriu, text);
    } else if !trouble.is_empty() {
        let text = format!("criu {version} does not work here: {trouble}");
        problem(Code::SourceCriu, text);
    }
    let Some(main) = features::pid(name) else {
        return found;
    };
    let all = cgroup::processes(&paths::workload_cgroup(name));
    // The unit's main process is the supervisor; it stays.
    let helper = fs::read_link("/proc/self/ns/pid").ok();
    let root = Path::new("/proc");
    let pids: Vec<i32> = all
        .into_iter()
        .filter(|p| *p == main || Process::new(root, *p).namespace("pid") != helper)
        .collect();
    if !pids.contains(&main) {
        problem(
            Code::NotRunning,
            format!("process {main} of feature '{name}' has ended; enable it again"),
        );
        return found;
    }
    let peers = match netns::within(name, unix::peers) {
        Ok(Ok(p)) => p,
        Ok(Err(e)) => {
            problem(Code::Unreadable, e.to_string());
            unix::Peers::new()
        }
        Err(e) => {
            problem(Code::Unreadable, e.to_string());
            unix::Peers::new()
        }
    };
    let own = Own {
        state: managed.state.clone(),
        log: features::log_fifo(name),
    };
    scan(root, main, &pids, &own, &peers, &mut found);
    let odd = sockets::odd(&pids);
    found
        .problems
        .extend(odd.into_iter().take(MAX_PROBLEMS).map(|(pid, socket)| {
            let (code, what) = match socket {
                sockets::Odd::Multipath => (Code::Mptcp, "an MPTCP socket".to_owned()),
                sockets::Odd::Kind(what) => (Code::Socket, what),
            };
            let hint = if code == Code::Mptcp {
                "make it use plain TCP"
            } else {
                "switch the use of it off"
            };
            Reason::new(
                code,
                format!("process {pid} has {what}, which criu cannot carry; {hint}"),
            )
        }));
    if found.resident_bytes > found.room_bytes {
        let (need, room) = (found.resident_bytes >> 20, found.room_bytes >> 20);
        found.problems.push(Reason::new(
            Code::Room,
            format!(
                "the memory of feature '{name}' ({need} MiB) exceeds the room for images here \
                 ({room} MiB); give the guest more memory"
            ),
        ));
    }
    found
}

/// Looks at the processes of a /proc tree.
fn scan(
    root: &Path,
    main: i32,
    pids: &[i32],
    own: &Own,
    peers: &unix::Peers,
    found: &mut Preflight,
) {
    let (first, guest) = (Process::new(root, main), Process::new(root, 1));
    let mut all = Gathered::default();
    if !first.is_root() {
        all.problems.insert(Reason::new(
            Code::FirstProcess,
            format!(
                "{first}, the feature's first, gave up the rights of root, which criu needs of it; \
                 disable and enable the feature: this version of the helper keeps a process of its \
                 own for that"
            ),
        ));
    }
    for pid in pids {
        Process::new(root, *pid).look(&first, &guest, own, &mut all);
    }
    all.wait();
    if all.threads > MAX_THREADS {
        all.problems.insert(Reason::new(
            Code::Threads,
            format!(
                "the feature has {} threads; more than {MAX_THREADS} take criu too long",
                all.threads
            ),
        ));
    }
    unix::external(&all.sockets, peers, &mut all.problems);
    for (path, owner) in all.files.into_iter().take(MAX_FILES) {
        match digests::of(&path) {
            Ok(d) => found.files.push(d),
            Err(e) => {
                all.problems.insert(Reason::new(
                    Code::Unreadable,
                    format!("{owner} uses {}, which cannot be read: {e}", path.display()),
                ));
            }
        }
    }
    let directories = all.directories.into_iter().take(MAX_FILES);
    found.directories = directories.map(|d| d.display().to_string()).collect();
    found.resident_bytes = all.bytes;
    found
        .problems
        .extend(all.problems.into_iter().take(MAX_PROBLEMS));
}

/// Bytes of the memory that the feature's processes have.
pub fn resident(feature: &FeatureName) -> u64 {
    let pids = cgroup::processes(&paths::workload_cgroup(feature));
    let bytes = pids
        .iter()
        .map(|p| Process::new(Path::new("/proc"), *p).memory());
    bytes.sum()
}

/// Bytes that images may take: what their tmpfs still holds, and memory that is available.
pub fn room() -> u64 {
    let tmpfs = nix::sys::statvfs::statvfs(&moves::directory())
        .map_or(0, |s| s.blocks_available() * s.fragment_size());
    tmpfs.min(available())
}

/// Bytes of memory that are available in this guest.
fn available() -> u64 {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    field(&memory, "MemAvailable:").unwrap_or(0) * 1024
}

/// Bytes that the state directories take on disk.
fn state_bytes(managed: &Managed) -> u64 {
    let mut left: Vec<PathBuf> = managed.state.clone();
    let (mut bytes, mut entries) = (0_u64, 0);
    let mut linked = HashSet::new();
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            entries += 1;
            if entries > MAX_ENTRIES {
                return bytes;
            }
            let Ok(status) = entry.metadata() else {
                continue;
            };
            if status.nlink() == 1 || status.is_dir() || linked.insert(status.ino()) {
                bytes += status.blocks() * 512;
            }
            if status.is_dir() {
                left.push(entry.path());
            }
        }
    }
    bytes
}

/// Why a feature whose memory takes `bytes` cannot be received here, if so: it is here twice when
/// criu has restored it, as images and as memory.
pub fn too_large(bytes: u64) -> Option<String> {
    larger_than(bytes, room(), available())
}

fn larger_than(bytes: u64, room: u64, memory: u64) -> Option<String> {
    let mib = |n: u64| n.div_ceil(1 << 20);
    if bytes > room {
        return Some(format!(
            "the feature's memory takes {} MiB as images, and there is room for {} MiB in this \
             guest's tmpfs and memory; give the guest more memory",
            mib(bytes),
            room >> 20
        ));
    }
    let need = bytes.saturating_mul(2);
    (need > memory).then(|| {
        format!(
            "the feature's memory takes {} MiB here while it is restored, as images and as \
             memory, and {} MiB are free; give the guest more memory",
            mib(need),
            memory >> 20
        )
    })
}

/// Checks that the file is here and the same.
pub fn compare(want: &FileDigest) -> Result<(), Reason> {
    let path = &want.path;
    match digests::of(Path::new(path)) {
        Ok(here) if (here.size, here.sum) == (want.size, want.sum) => Ok(()),
        Ok(here) => Err(Reason::new(
            Code::FileDiffers,
            format!(
                "{path} differs from the source guest's ({} bytes there, {} here); install the \
                 same version in both guests",
                want.size, here.size
            ),
        )),
        Err(e) => Err(Reason::new(
            Code::FileAbsent,
            format!("{path} cannot be read here: {e}; install it as in the source guest"),
        )),
    }
}

/// The number behind `key` in a text of `key: number` lines.
fn field(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_the_figures() {
        const MIB: u64 = 1 << 20;
        assert_eq!(larger_than(0, 0, 0), None, "an older host does not tell");
        assert_eq!(larger_than(100 * MIB, 100 * MIB, 200 * MIB), None);
        let images = larger_than(101 * MIB, 100 * MIB, 900 * MIB).unwrap();
        assert!(
            images.contains("101 MiB") && images.contains("for 100 MiB"),
            "{images}"
        );
        let both = larger_than(100 * MIB, 150 * MIB, 199 * MIB).unwrap();
        assert!(
            both.contains("200 MiB") && both.contains("199 MiB"),
            "{both}"
        );
    }
    use std::os::unix::fs::symlink;

    /// A made-up /proc with the guest's first process, and one of the feature, number 7.
    struct Fake(tempfile::TempDir);

    impl Fake {
        fn new(maps: &str, fds: &[(&str, &str)]) -> Self {
            let fake = Self(tempfile::tempdir().unwrap());
            fake.process(1, "", &[]);
            fake.process(7, maps, fds);
            fake
        }

        fn process(&self, pid: i32, maps: &str, fds: &[(&str, &str)]) {
            let dir = self.0.path().join(pid.to_string());
            for d in ["fd", "fdinfo", "ns", "task/1"] {
                fs::create_dir_all(dir.join(d)).unwrap();
            }
            fs::write(dir.join("comm"), "cache\n").unwrap();
            fs::write(dir.join("maps"), maps).unwrap();
            fs::write(dir.join("smaps_rollup"), "header\nRss: 40 kB\nPss: 30 kB\n").unwrap();
            symlink("mnt:[1]", dir.join("ns/mnt")).unwrap();
            symlink("/", dir.join("cwd")).unwrap();
            for (n, to) in fds {
                symlink(to, dir.join("fd").join(n)).unwrap();
            }
        }

        fn put(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn link(&self, path: &str, to: &str) {
            let path = self.0.path().join(path);
            let _ = fs::remove_file(&path);
            symlink(to, path).unwrap();
        }

        fn scan_with(&self, own: &Own, peers: &unix::Peers) -> Preflight {
            let mut found = Preflight::default();
            scan(self.0.path(), 7, &[7, 8], own, peers, &mut found);
            found
        }

        fn scan(&self) -> Preflight {
            self.scan_with(&Own::default(), &unix::Peers::new())
        }

        fn codes(&self) -> Vec<Code> {
            self.scan().problems.iter().map(|p| p.code).collect()
        }
    }

    #[test]
    fn a_process_that_ended_meanwhile_is_no_problem() {
        let f = Fake::new("", &[("3", "/dev/kmsg")]);
        assert_eq!(f.codes(), [Code::Device]);
        f.put("7/stat", "7 (a) b) Z 1 7");
        assert_eq!(f.scan().problems, []);
    }

    #[test]
    fn a_plain_process_can_move() {
        let t = tempfile::tempdir().unwrap();
        let program = t.path().join("program");
        fs::write(&program, b"code").unwrap();
        let maps = format!(
            "00400000-00401000 r-xp 00000000 fe:00 12  {}\n\
             7f0000000000-7f0000001000 rw-p 00000000 00:00 0 \n\
             7ffc00000000-7ffc00001000 r-xp 00000000 00:00 0  [vdso]\n",
            program.display()
        );
        let fds = [("0", "/dev/null"), ("3", "socket:[5]"), ("4", "socket:[6]")];
        let f = Fake::new(&maps, &fds);
        let to = |inode| unix::Peer {
            inode,
            datagram: false,
        };
        let peers = unix::Peers::from([(5, to(6)), (6, to(5))]);
        let found = f.scan_with(&Own::default(), &peers);
        assert_eq!(found.problems, []);
        assert_eq!(found.resident_bytes, 30 * 1024);
        assert_eq!(found.files.len(), 1);
        assert_eq!(
            (found.files[0].size, found.files[0].sum),
            (4, crate::wire::sum::of(b"code"))
        );
        assert!(compare(&found.files[0]).is_ok());
        fs::write(&program, b"c0de").unwrap();
        assert_eq!(
            compare(&found.files[0]).unwrap_err().code,
            Code::FileDiffers
        );
        fs::remove_file(&program).unwrap();
        assert_eq!(compare(&found.files[0]).unwrap_err().code, Code::FileAbsent);
        assert_eq!(f.codes(), [Code::Unreadable]);
        // An end that is somebody else's.
        let found = f.scan_with(&Own::default(), &unix::Peers::from([(5, to(99))]));
        assert!(found.problems.iter().any(|p| p.code == Code::UnixStream));
    }

    #[test]
    fn each_kind_of_descriptor_has_its_name() {
        for (link, code) in [
            ("anon_inode:[io_uring]", Code::IoUring),
            ("/dev/pts/0", Code::Terminal),
            ("/dev/net/tun", Code::Device),
            ("anon_inode:[perf_event]", Code::KernelObject),
            ("anon_inode:kvm", Code::KernelObject),
            ("/proc/1/maps", Code::ProcFile),
        ] {
            let f = Fake::new("", &[("3", link)]);
            let found = f.scan().problems;
            assert_eq!(found.len(), 1, "{link}: {found:?}");
            assert_eq!(found[0].code, code, "{link}");
            assert!(found[0].text.contains("process 7 (cache)"), "{found:?}");
        }
        for link in [
            "/dev/null",
            "/dev/urandom",
            "/proc/meminfo",
            "pipe:[3]",
            "anon_inode:[eventpoll]",
        ] {
            assert_eq!(Fake::new("", &[("3", link)]).codes(), [], "{link}");
        }
    }

    #[test]
    fn each_kind_of_mapping_has_its_name() {
        for (mode, path, code) in [
            ("r-xp", "/usr/bin/old (deleted)", Code::DeletedProgram),
            ("rw-s", "/anon_hugepage (deleted)", Code::Hugetlb),
            ("rw-s", "/dev/hugepages/x", Code::Hugetlb),
            ("rw-s", "/dev/dri/card0", Code::Device),
            ("rw-s", "/SYSV00002f1a (deleted)", Code::SharedMemory),
            ("rw-s", "/dev/shm/pool", Code::SharedMemory),
            ("rw-s", "/srv/data", Code::OpenFile),
        ] {
            let f = Fake::new(&format!("1-2 {mode} 00000000 fe:00 12  {path}\n"), &[]);
            assert_eq!(f.codes(), [code], "{path}");
        }
        let f = Fake::new("1-2 rw-s 00000000 00:01 15  /SYSV00002f1a (deleted)\n", &[]);
        f.link("1/ns/ipc", "ipc:[1]");
        f.link("7/ns/ipc", "ipc:[2]");
        assert_eq!(f.codes(), [], "of the feature's own IPC namespace");
    }

    #[test]
    fn huge_pages_debuggers_and_namespaces_are_seen() {
        let f = Fake::new("", &[]);
        f.put("7/smaps_rollup", "Pss: 30 kB\nPrivate_Hugetlb: 2048 kB\n");
        assert_eq!(f.codes(), [Code::Hugetlb]);
        f.put("7/smaps_rollup", "");
        f.put("7/status", "Name:\tx\nTracerPid:\t12\n");
        assert_eq!(f.codes(), [Code::Traced]);
        f.put("7/status", "TracerPid:\t0\n");
        assert_eq!(f.codes(), []);
        f.link("7/ns/mnt", "mnt:[2]");
        assert_eq!(f.codes(), [Code::MountNamespace]);
        f.link("7/ns/mnt", "mnt:[1]");
        for kind in ["net", "pid", "uts", "user"] {
            f.process(8, "", &[]);
            for (pid, n) in [(1, 1), (7, 1), (8, 2)] {
                f.link(&format!("{pid}/ns/{kind}"), &format!("{kind}:[{n}]"));
            }
            assert_eq!(f.codes(), [Code::Namespace], "{kind}");
            fs::remove_dir_all(f.0.path().join("8")).unwrap();
        }
    }

    #[test]
    fn threads_are_counted() {
        let f = Fake::new("", &[]);
        for n in 2..=MAX_THREADS {
            fs::create_dir(f.0.path().join(format!("7/task/{n}"))).unwrap();
        }
        assert_eq!(f.codes(), []);
        fs::create_dir(f.0.path().join("7/task/0")).unwrap();
        assert_eq!(f.codes(), [Code::Threads]);
    }

    #[test]
    fn files_that_are_written_must_be_state() {
        let t = tempfile::tempdir().unwrap();
        let log = t.path().join("log");
        fs::write(&log, "x").unwrap();
        let fifo = t.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let f = Fake::new("", &[("3", log.to_str().unwrap())]);
        f.put("7/fdinfo/3", "pos:\t0\nflags:\t0100001\n");
        assert_eq!(f.codes(), [Code::OpenFile]);
        let own = Own {
            state: vec![t.path().to_owned()],
            log: fifo.clone(),
        };
        let found = f.scan_with(&own, &unix::Peers::new());
        assert!(found.problems.is_empty() && found.files.is_empty());
        // Only read: it must be the same on the target.
        f.put("7/fdinfo/3", "pos:\t0\nflags:\t0100000\n");
        let found = f.scan();
        assert_eq!((found.problems.len(), found.files.len()), (0, 1));
        f.link("7/fd/3", fifo.to_str().unwrap());
        assert_eq!(f.codes(), [Code::Fifo]);
        let own = Own {
            log: fifo,
            ..Own::default()
        };
        assert_eq!(f.scan_with(&own, &unix::Peers::new()).problems, []);
    }

    #[test]
    fn directories_must_be_there_too() {
        let f = Fake::new("", &[]);
        f.link("7/cwd", "/srv/here");
        let found = f.scan();
        assert_eq!(found.directories, ["/srv/here"]);
        f.link("7/cwd", "/srv/gone (deleted)");
        assert_eq!(f.codes(), [Code::DirectoryAbsent]);
    }

    #[test]
    fn large_deleted_files_stay_behind() {
        let t = tempfile::tempdir().unwrap();
        for (mib, codes) in [(1, &[][..]), (65, &[Code::DeletedFile][..])] {
            let file = t.path().join("x (deleted)");
            fs::File::create(&file).unwrap().set_len(mib << 20).unwrap();
            let f = Fake::new("", &[("3", file.to_str().unwrap())]);
            assert_eq!(f.codes(), codes);
        }
    }

    #[test]
    fn the_first_process_keeps_the_rights_of_root() {
        let f = Fake::new("", &[]);
        for (mask, codes) in [
            ("000001ffffffffff", &[][..]),
            ("0000000000000000", &[Code::FirstProcess][..]),
            ("0000000000000400", &[Code::FirstProcess][..]),
        ] {
            f.put("7/status", &format!("Name:\tcache\nCapEff:\t{mask}\n"));
            assert_eq!(f.codes(), codes, "{mask}");
        }
    }

    #[test]
    fn state_is_counted_once_per_file() {
        let t = tempfile::tempdir().unwrap();
        fs::create_dir(t.path().join("deep")).unwrap();
        fs::write(t.path().join("deep/a"), vec![1; 100_000]).unwrap();
        fs::hard_link(t.path().join("deep/a"), t.path().join("b")).unwrap();
        let mut m = Managed::new(vec!["/bin/x".into()], "192.0.2.1/24".parse().unwrap());
        m.state = vec![t.path().to_owned()];
        let bytes = state_bytes(&m);
        assert!((100_000..200_000).contains(&bytes), "{bytes}");
    }
}
