//! Looks, without touching anything, for what would keep a feature from being moved: a walk
//! through /proc over the processes of its cgroup, and what the guest has room for.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use super::{cgroup, criu, digests, features, moves, netns, paths, sockets};
use crate::feature::FeatureSpec;
use crate::wire::guest::{FileDigest, Preflight};

/// Most threads that criu handles in reasonable time.
const MAX_THREADS: usize = 2000;
/// Most problems that are listed; more say the same.
const MAX_PROBLEMS: usize = 20;
/// Character devices that criu knows: (major, minor) of null, zero, full, random, urandom.
const PLAIN_DEVICES: [(u64, u64); 5] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)];

/// Checks a managed feature.
pub fn check(spec: &FeatureSpec) -> Preflight {
    let mut found = Preflight {
        room_bytes: room(),
        ..Preflight::default()
    };
    let name = &spec.name;
    if spec.managed().is_none() {
        found.problems.push(format!(
            "feature '{name}' is an existing unit; only workloads that Drover runs can move"
        ));
        return found;
    }
    let (version, problem) = criu::probed();
    if version.is_empty() {
        found
            .problems
            .push(format!("{problem}; install the criu package in the guest"));
    } else if !problem.is_empty() {
        found
            .problems
            .push(format!("criu {version} does not work here: {problem}"));
    }
    let Some(main) = features::pid(name) else {
        found
            .problems
            .push(format!("feature '{name}' does not run"));
        return found;
    };
    let root = Proc(PathBuf::from("/proc"));
    let all = cgroup::processes(&paths::workload_cgroup(name));
    // The unit's main process is the supervisor; it stays.
    let pids: Vec<i32> = all
        .into_iter()
        .filter(|p| *p == main || root.in_tree(*p, main))
        .collect();
    if !pids.contains(&main) {
        found
            .problems
            .push(format!("process {main} of feature '{name}' has ended"));
        return found;
    }
    let peers = match netns::within(name, unix_peers) {
        Ok(Ok(p)) => p,
        Ok(Err(e)) => {
            found.problems.push(e.to_string());
            Peers::new()
        }
        Err(e) => {
            found.problems.push(e.to_string());
            Peers::new()
        }
    };
    root.first_process(main, &mut found);
    root.scan(&pids, &peers, &mut found);
    let multipath = sockets::multipath(&pids);
    if multipath > 0 {
        found.problems.push(format!(
            "feature '{name}' has {multipath} MPTCP sockets, which criu cannot carry; \
             make it use plain TCP"
        ));
    }
    if found.resident_bytes > found.room_bytes {
        let (need, room) = (found.resident_bytes >> 20, found.room_bytes >> 20);
        found.problems.push(format!(
            "the memory of feature '{name}' ({need} MiB) exceeds the room for images here ({room} MiB)"
        ));
    }
    found
}

/// Bytes that images may take: what their tmpfs still holds, and memory that is available.
pub fn room() -> u64 {
    let tmpfs = nix::sys::statvfs::statvfs(&moves::directory())
        .map_or(0, |s| s.blocks_available() * s.fragment_size());
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = field(&memory, "MemAvailable:").unwrap_or(0) * 1024;
    tmpfs.min(memory)
}

/// Why a feature whose memory takes `bytes` cannot be received here, if so: it is here twice when
/// criu has restored it, as images and as memory.
pub fn too_large(bytes: u64) -> Option<String> {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = field(&memory, "MemAvailable:").unwrap_or(0) * 1024;
    larger_than(bytes, room(), memory)
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

/// IPv4 addresses of the calling thread's network namespace.
pub fn local_addresses() -> HashSet<Ipv4Addr> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else {
        return HashSet::new();
    };
    all.filter_map(|i| {
        i.address?
            .as_sockaddr_in()
            .map(nix::sys::socket::SockaddrIn::ip)
    })
    .collect()
}

/// Checks that the file is here and the same; else a sentence.
pub fn compare(want: &FileDigest) -> Result<(), String> {
    let path = &want.path;
    match digests::of(Path::new(path)) {
        Ok(here) if (here.size, here.sum) == (want.size, want.sum) => Ok(()),
        Ok(here) => Err(format!(
            "{path} differs from the source guest's ({} bytes there, {} here); install the same version in both guests",
            want.size, here.size
        )),
        Err(e) => Err(format!(
            "{path} cannot be read here: {e}; install it as in the source guest"
        )),
    }
}

/// The number behind `key` in a text of `key: number` lines.
fn field(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// A /proc tree.
struct Proc(PathBuf);

/// A process under examination.
struct Process {
    pid: i32,
    name: String,
    dir: PathBuf,
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

impl Proc {
    /// Whether `pid` lives in the PID namespace that `main` is the first process of.
    fn in_tree(&self, pid: i32, main: i32) -> bool {
        let ns = |p: i32| fs::read_link(self.0.join(format!("{p}/ns/pid"))).ok();
        ns(main).is_some_and(|m| ns(pid) == Some(m))
    }

    /// criu has the first process mount a /proc of the PID namespace, so that one must be allowed
    /// to (`CAP_SYS_ADMIN`); the others need not be.
    fn first_process(&self, main: i32, found: &mut Preflight) {
        const CAP_SYS_ADMIN: u32 = 21;
        let status = fs::read_to_string(self.0.join(format!("{main}/status"))).unwrap_or_default();
        let capabilities = status
            .lines()
            .find_map(|l| l.strip_prefix("CapEff:"))
            .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        if capabilities.is_some_and(|mask| mask & (1 << CAP_SYS_ADMIN) == 0) {
            let name = fs::read_to_string(self.0.join(format!("{main}/comm"))).unwrap_or_default();
            found.problems.push(format!(
                "process {main} ({}), the feature's first, gave up the rights of root, which criu \
                 needs of it; let a parent keep them: /bin/sh -c 'PROGRAM & wait $!'",
                name.trim()
            ));
        }
    }

    fn scan(&self, pids: &[i32], peers: &Peers, found: &mut Preflight) {
        let mut problems = BTreeSet::new();
        let mut files = BTreeMap::new();
        let mut threads = 0;
        let mut sockets = HashMap::new();
        let guest_mounts = fs::read_link(self.0.join("1/ns/mnt")).ok();
        for pid in pids {
            let dir = self.0.join(pid.to_string());
            let name = fs::read_to_string(dir.join("comm")).unwrap_or_default();
            let p = Process {
                pid: *pid,
                name: name.trim().to_owned(),
                dir,
            };
            threads += fs::read_dir(p.dir.join("task")).map_or(0, Iterator::count);
            let mut own = BTreeSet::new();
            let mounts = fs::read_link(p.dir.join("ns/mnt")).ok();
            if mounts.is_none() || mounts != guest_mounts {
                own.insert(format!(
                    "{p} has a mount namespace of its own; run it without sandboxing of mounts"
                ));
            }
            let rollup = fs::read_to_string(p.dir.join("smaps_rollup")).unwrap_or_default();
            let pss = field(&rollup, "Pss:").or_else(|| field(&rollup, "Rss:"));
            found.resident_bytes += pss.unwrap_or(0) * 1024;
            p.descriptors(&mut own, &mut sockets);
            p.mappings(&mut own, &mut files);
            // One that ended while it was looked at stands in nobody's way.
            if !p.ended() {
                problems.append(&mut own);
            }
        }
        if threads > MAX_THREADS {
            problems.insert(format!(
                "the feature has {threads} threads; more than {MAX_THREADS} take criu too long"
            ));
        }
        external_sockets(&sockets, peers, &mut problems);
        for (path, owner) in files {
            match digests::of(&path) {
                Ok(d) => found.files.push(d),
                Err(e) => {
                    problems.insert(format!(
                        "{owner} maps {}, which cannot be read: {e}",
                        path.display()
                    ));
                }
            }
        }
        found
            .problems
            .extend(problems.into_iter().take(MAX_PROBLEMS));
    }
}

impl Process {
    /// Whether it is gone, or dead and only waits to be reaped.
    fn ended(&self) -> bool {
        match fs::read_to_string(self.dir.join("stat")) {
            Ok(stat) => stat
                .rsplit_once(')')
                .is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X'])),
            Err(_) => !self.dir.exists(),
        }
    }

    fn descriptors(&self, problems: &mut BTreeSet<String>, sockets: &mut HashMap<u64, String>) {
        let entries = match fs::read_dir(self.dir.join("fd")) {
            Ok(e) => e,
            Err(e) => {
                problems.insert(format!("the descriptors of {self} cannot be read: {e}"));
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
                    sockets.entry(inode).or_insert_with(owner);
                }
                continue;
            }
            if link == "anon_inode:[io_uring]" {
                problems.insert(format!(
                    "{self} uses io_uring, which criu cannot carry; switch it off in the guest \
                     (sysctl kernel.io_uring_disabled=2) and restart the feature"
                ));
            } else if let Some(what) = special(&link) {
                problems.insert(format!(
                    "{self} uses {what} (descriptor {number}), which criu cannot carry"
                ));
            } else if link.starts_with("/dev/") && !plain_device(&fd.path(), &link) {
                problems.insert(format!("{self} has the device {link} open (descriptor {number}), which stays with this guest"));
            }
        }
    }

    fn mappings(&self, problems: &mut BTreeSet<String>, files: &mut BTreeMap<PathBuf, String>) {
        let maps = fs::read_to_string(self.dir.join("maps")).unwrap_or_default();
        let ipc = |dir: &Path| fs::read_link(dir.join("ns/ipc")).ok();
        let own_ipc = ipc(&self.dir) != self.dir.parent().and_then(|p| ipc(&p.join("1")));
        for m in maps.lines().filter_map(mapping) {
            match m {
                Mapping::Huge(what) => {
                    problems.insert(format!(
                        "{self} maps huge pages ({what}), which criu cannot carry"
                    ));
                }
                Mapping::Device(what) => {
                    problems.insert(format!(
                        "{self} maps the device {what}, which stays with this guest"
                    ));
                }
                Mapping::SystemV => {
                    if own_ipc {
                        continue;
                    }
                    problems.insert(format!(
                        "{self} maps System V shared memory of the guest; restart the feature, \
                         which then has an IPC namespace of its own"
                    ));
                }
                Mapping::Deleted(what) => {
                    problems.insert(format!(
                        "{self} runs the deleted file {what}; restart the feature after the update"
                    ));
                }
                Mapping::Code(path) => {
                    files
                        .entry(PathBuf::from(path))
                        .or_insert_with(|| self.to_string());
                }
            }
        }
    }
}

/// A descriptor's target that criu cannot carry, in words.
fn special(link: &str) -> Option<&'static str> {
    if link.starts_with("/dev/pts/")
        || link == "/dev/ptmx"
        || link.starts_with("/dev/tty")
        || link == "/dev/console"
    {
        return Some("a terminal");
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
        .map(|(_, what)| *what)
}

/// Whether a descriptor that points below /dev is no device, or one that criu knows.
fn plain_device(fd: &Path, link: &str) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let Ok(m) = fs::metadata(fd) else {
        return link == "/dev/null";
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

#[derive(Debug, PartialEq, Eq)]
enum Mapping<'a> {
    Huge(&'a str),
    Device(&'a str),
    SystemV,
    Deleted(&'a str),
    Code(&'a str),
}

/// What a line of `/proc/PID/maps` says that matters here.
fn mapping(line: &str) -> Option<Mapping<'_>> {
    let mut rest = line;
    let mut column = || {
        let (word, tail) = rest.split_once(' ')?;
        rest = tail.trim_start();
        Some(word)
    };
    let (_range, mode) = (column()?, column()?);
    let (_offset, _device) = (column()?, column()?);
    let (_inode, path) = rest.split_once(' ')?;
    let path = path.trim_start();
    if path.starts_with("/anon_hugepage") || path.starts_with("/dev/hugepages/") {
        return Some(Mapping::Huge(path));
    }
    if path.starts_with("/SYSV") {
        return Some(Mapping::SystemV);
    }
    let harmless = ["/dev/zero", "/dev/shm/"];
    if path.starts_with("/dev/") && !harmless.iter().any(|h| path.starts_with(h)) {
        return Some(Mapping::Device(path));
    }
    if !path.starts_with('/') || !mode.contains('x') {
        return None;
    }
    Some(match path.strip_suffix(" (deleted)") {
        Some(p) => Mapping::Deleted(p),
        None => Mapping::Code(path),
    })
}

/// Unix stream sockets whose other end is not the feature's.
fn external_sockets(owned: &HashMap<u64, String>, peers: &Peers, problems: &mut BTreeSet<String>) {
    for (inode, owner) in owned {
        if let Some(peer) = peers.get(inode)
            && !owned.contains_key(peer)
        {
            problems.insert(format!(
                "{owner} is a unix stream connection to a process outside of the feature; \
                 close it before the move"
            ));
        }
    }
}

/// Connected unix stream sockets (inode) and their other ends (inode).
type Peers = HashMap<u64, u64>;

const NLMSG_HEADER: usize = 16;
const DIAG_MESSAGE: usize = 16;

/// Asks the kernel for the connected unix stream sockets of the calling thread's network
/// namespace (sock_diag(7)).
fn unix_peers() -> io::Result<Peers> {
    use nix::sys::socket as s;
    use std::os::fd::AsRawFd;
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const REQUEST_DUMP: u16 = 0x301;
    const SHOW_PEER: u32 = 4;
    const ESTABLISHED: u32 = 1 << 1;
    let socket = s::socket(
        s::AddressFamily::Netlink,
        s::SockType::Raw,
        s::SockFlag::SOCK_CLOEXEC,
        s::SockProtocol::NetlinkSockDiag,
    )?;
    let patience = nix::sys::time::TimeVal::new(5, 0);
    s::setsockopt(&socket, s::sockopt::ReceiveTimeout, &patience)?;
    let mut ask = Vec::new();
    // nlmsghdr: length, type, flags, sequence, port; then unix_diag_req.
    ask.extend_from_slice(&40_u32.to_ne_bytes());
    ask.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    ask.extend_from_slice(&REQUEST_DUMP.to_ne_bytes());
    ask.extend_from_slice(&[0; 8]);
    ask.extend_from_slice(&[nix::libc::AF_UNIX as u8, 0, 0, 0]);
    for word in [ESTABLISHED, 0, SHOW_PEER, 0, 0] {
        ask.extend_from_slice(&word.to_ne_bytes());
    }
    s::send(socket.as_raw_fd(), &ask, s::MsgFlags::empty())?;
    let mut peers = Peers::new();
    let mut buf = vec![0; 64 << 10];
    loop {
        let n = s::recv(socket.as_raw_fd(), &mut buf, s::MsgFlags::empty())?;
        if read_peers(&buf[..n], &mut peers)? {
            return Ok(peers);
        }
    }
}

/// Takes the sockets out of a datagram of netlink messages; whether the last one was there.
fn read_peers(mut bytes: &[u8], peers: &mut Peers) -> io::Result<bool> {
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    const STREAM: u8 = 1;
    const ATTRIBUTE_PEER: u16 = 2;
    let half = |b: &[u8], at: usize| b.get(at..at + 2).map(|w| u16::from_ne_bytes([w[0], w[1]]));
    let word = |b: &[u8], at: usize| {
        let w = b.get(at..at + 4)?;
        Some(u32::from_ne_bytes([w[0], w[1], w[2], w[3]]))
    };
    while let (Some(len), Some(kind)) = (word(bytes, 0), half(bytes, 4)) {
        let len = len as usize;
        if kind == NLMSG_DONE {
            return Ok(true);
        }
        if kind == NLMSG_ERROR || len < NLMSG_HEADER || len > bytes.len() {
            return Err(io::Error::other(
                "the kernel does not list unix sockets (unix_diag)",
            ));
        }
        let message = &bytes[NLMSG_HEADER..len];
        if message.get(1) == Some(&STREAM)
            && let Some(inode) = word(message, 4)
        {
            let mut at = DIAG_MESSAGE;
            while let (Some(size), Some(attribute)) = (half(message, at), half(message, at + 2)) {
                if attribute == ATTRIBUTE_PEER
                    && let Some(peer) = word(message, at + 4)
                {
                    peers.insert(u64::from(inode), u64::from(peer));
                }
                at += usize::from(size).max(4).next_multiple_of(4);
            }
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
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

    /// A process of a made-up /proc.
    fn process(root: &Path, pid: i32, maps: &str, fds: &[(&str, &str)]) {
        let dir = root.join(pid.to_string());
        for d in ["fd", "ns", "task/1"] {
            fs::create_dir_all(dir.join(d)).unwrap();
        }
        fs::write(dir.join("comm"), "cache\n").unwrap();
        fs::write(dir.join("maps"), maps).unwrap();
        fs::write(dir.join("smaps_rollup"), "header\nRss: 40 kB\nPss: 30 kB\n").unwrap();
        symlink("mnt:[1]", dir.join("ns/mnt")).unwrap();
        for (n, to) in fds {
            symlink(to, dir.join("fd").join(n)).unwrap();
        }
    }

    fn scan(root: &Path, pids: &[i32], peers: &Peers) -> Preflight {
        let mut found = Preflight::default();
        Proc(root.to_owned()).scan(pids, peers, &mut found);
        found
    }

    #[test]
    fn a_process_that_ended_meanwhile_is_no_problem() {
        let t = tempfile::tempdir().unwrap();
        process(t.path(), 1, "", &[]);
        process(t.path(), 7, "", &[("3", "/dev/kmsg")]);
        assert_eq!(scan(t.path(), &[7, 8], &Peers::new()).problems.len(), 1);
        fs::write(t.path().join("7/stat"), "7 (a) b) Z 1 7").unwrap();
        assert_eq!(
            scan(t.path(), &[7, 8], &Peers::new()).problems,
            Vec::<String>::new()
        );
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
        process(t.path(), 1, "", &[]);
        process(
            t.path(),
            7,
            &maps,
            &[("0", "/dev/null"), ("3", "socket:[5]"), ("4", "socket:[6]")],
        );
        let found = scan(t.path(), &[7], &Peers::from([(5, 6), (6, 5)]));
        assert_eq!(found.problems, Vec::<String>::new());
        assert_eq!(found.resident_bytes, 30 * 1024);
        assert_eq!(found.files.len(), 1);
        assert_eq!(
            (found.files[0].size, found.files[0].sum),
            (4, crate::wire::sum::of(b"code"))
        );
        assert!(compare(&found.files[0]).is_ok());
        fs::write(&program, b"c0de").unwrap();
        assert!(compare(&found.files[0]).unwrap_err().contains("differs"));
    }

    #[test]
    fn what_cannot_move_is_named() {
        let t = tempfile::tempdir().unwrap();
        let maps = "0-1 r-xp 00000000 fe:00 12  /usr/bin/old (deleted)\n\
                    1-2 rw-s 00000000 00:0e 13  /anon_hugepage (deleted)\n\
                    2-3 rw-s 00000000 00:06 14  /dev/dri/card0\n\
                    3-4 rw-s 00000000 00:01 15  /SYSV00002f1a (deleted)\n";
        process(t.path(), 1, "", &[]);
        process(
            t.path(),
            7,
            maps,
            &[
                ("3", "anon_inode:[io_uring]"),
                ("4", "/dev/pts/0"),
                ("5", "socket:[5]"),
                ("6", "/dev/net/tun"),
            ],
        );
        fs::remove_file(t.path().join("7/ns/mnt")).unwrap();
        symlink("mnt:[2]", t.path().join("7/ns/mnt")).unwrap();
        let found = scan(t.path(), &[7], &Peers::from([(5, 99)]));
        for word in [
            "io_uring",
            "terminal",
            "unix stream",
            "/dev/net/tun",
            "/usr/bin/old",
            "huge pages",
            "/dev/dri/card0",
            "mount namespace",
            "System V",
        ] {
            let hit = found.problems.iter().filter(|p| p.contains(word)).count();
            assert_eq!(hit, 1, "{word}: {:?}", found.problems);
        }
        assert_eq!(found.problems.len(), 9);
        symlink("ipc:[1]", t.path().join("1/ns/ipc")).unwrap();
        symlink("ipc:[2]", t.path().join("7/ns/ipc")).unwrap();
        assert_eq!(
            scan(t.path(), &[7], &Peers::from([(5, 99)])).problems.len(),
            8
        );
    }

    #[test]
    fn the_first_process_keeps_the_rights_of_root() {
        let t = tempfile::tempdir().unwrap();
        process(t.path(), 7, "", &[]);
        let problems = |mask: &str| {
            let status = format!("Name:\tcache\nCapEff:\t{mask}\n");
            fs::write(t.path().join("7/status"), status).unwrap();
            let mut found = Preflight::default();
            Proc(t.path().to_owned()).first_process(7, &mut found);
            found.problems
        };
        assert_eq!(problems("000001ffffffffff"), Vec::<String>::new());
        assert_eq!(problems("0000000000000000").len(), 1);
        assert!(problems("0000000000000400")[0].contains("process 7 (cache)"));
    }

    #[test]
    fn the_kernel_lists_unix_pairs() {
        use std::os::fd::AsRawFd;
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        let inode = |fd: i32| -> u64 {
            let l = fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
            let l = l.to_string_lossy().into_owned();
            l["socket:[".len()..l.len() - 1].parse().unwrap()
        };
        let (a, b) = (inode(a.as_raw_fd()), inode(b.as_raw_fd()));
        let peers = unix_peers().unwrap();
        assert_eq!((peers.get(&a), peers.get(&b)), (Some(&b), Some(&a)));
    }

    proptest::proptest! {
        #[test]
        fn netlink_answers_never_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = read_peers(&bytes, &mut Peers::new());
            let mut framed = ((bytes.len() + 16) as u32).to_ne_bytes().to_vec();
            framed.extend_from_slice(&[20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            framed.extend_from_slice(&bytes);
            let _ = read_peers(&framed, &mut Peers::new());
        }
        #[test]
        fn map_lines_never_panic(line in ".{0,80}") {
            let _ = mapping(&line);
        }
    }
}
