//! A domain's QEMU process on this host: CPU time of its threads, from `/proc`. Needs neither
//! libvirt nor an answer of QEMU, so a hung guest is metered too.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Where libvirt leaves the process ids of its domains.
const PID_FILES: [&str; 2] = ["/run/libvirt/qemu", "/var/run/libvirt/qemu"];

/// CPU time of a QEMU since it began, nanoseconds. `None` is *unavailable*.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProcessTimes {
    /// Process and its start: another pair has other counters.
    pub identity: (i32, u64),
    /// All threads, ended ones included.
    pub total_ns: u64,
    /// Threads of vCPUs.
    pub vcpu_ns: u64,
    /// I/O threads.
    pub iothread_ns: u64,
    /// Time that vCPU threads were ready but waited for a CPU.
    pub steal_ns: Option<u64>,
    /// vCPU threads.
    pub vcpus: u32,
    /// Memory held, bytes.
    pub rss_bytes: u64,
}

/// What a thread does, by the name that QEMU gives it (`debug-threads=on`, as libvirt starts it).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Vcpu,
    Iothread,
    Emulator,
}

fn role(comm: &str) -> Role {
    // `CPU 0/KVM`, `IO iothread1`; libvirt's monitor thread (`IO mon_iothread`) is no disk's.
    if comm.starts_with("CPU ") {
        Role::Vcpu
    } else if comm.starts_with("IO ") && !comm.starts_with("IO mon") {
        Role::Iothread
    } else {
        Role::Emulator
    }
}

/// A process by its identity, and what its threads do.
type Known = ((i32, u64), HashMap<i32, Role>);

/// Reads processes again and again; remembers which thread is what.
#[derive(Debug)]
pub struct Processes {
    proc: PathBuf,
    pid_files: Vec<PathBuf>,
    ticks: u64,
    page: u64,
    known: HashMap<String, Known>,
}

impl Default for Processes {
    fn default() -> Self {
        let conf = |what, other: u64| {
            let value = nix::unistd::sysconf(what).ok().flatten();
            value.and_then(|v| u64::try_from(v).ok()).unwrap_or(other)
        };
        Self {
            proc: "/proc".into(),
            pid_files: PID_FILES.map(PathBuf::from).into(),
            ticks: conf(nix::unistd::SysconfVar::CLK_TCK, 100).max(1),
            page: conf(nix::unistd::SysconfVar::PAGE_SIZE, 4096),
            known: HashMap::new(),
        }
    }
}

impl Processes {
    /// Times of these domains' processes; domains without one are left out.
    pub fn read(&mut self, domains: &[String]) -> HashMap<String, ProcessTimes> {
        self.known.retain(|name, _| domains.contains(name));
        let found = domains.iter().filter_map(|name| {
            let times = self.one(name)?;
            Some((name.clone(), times))
        });
        found.collect()
    }

    fn pid(&self, domain: &str) -> Option<i32> {
        self.pid_files.iter().find_map(|dir| {
            let text = fs::read_to_string(dir.join(format!("{domain}.pid"))).ok()?;
            text.trim().parse().ok().filter(|p| *p > 1)
        })
    }

    fn one(&mut self, domain: &str) -> Option<ProcessTimes> {
        let pid = self.pid(domain)?;
        let directory = self.proc.join(pid.to_string());
        let stat = Stat::read(&directory)?;
        let identity = (pid, stat.start);
        let roles = &mut match self.known.get_mut(domain) {
            Some(k) if k.0 == identity => k,
            _ => {
                self.known
                    .insert(domain.to_owned(), (identity, HashMap::new()));
                self.known.get_mut(domain)?
            }
        }
        .1;
        let mut times = ProcessTimes {
            identity,
            rss_bytes: stat.rss_pages.saturating_mul(self.page),
            ..ProcessTimes::default()
        };
        let mut threads = 0_u64;
        let mut steal = Some(0_u64);
        for entry in fs::read_dir(directory.join("task")).ok()?.flatten() {
            let Some(tid) = entry.file_name().to_str().and_then(|t| t.parse().ok()) else {
                continue;
            };
            let role = *roles.entry(tid).or_insert_with(|| {
                role(&fs::read_to_string(entry.path().join("comm")).unwrap_or_default())
            });
            let Some((ran, waited)) = schedstat(&entry.path()) else {
                if role == Role::Vcpu {
                    steal = None;
                }
                continue;
            };
            threads = threads.saturating_add(ran);
            match role {
                Role::Vcpu => {
                    times.vcpus += 1;
                    times.vcpu_ns += ran;
                    steal = steal.map(|s| s + waited);
                }
                Role::Iothread => times.iothread_ns += ran,
                Role::Emulator => {}
            }
        }
        // Short-lived threads come and go.
        if roles.len() > 4096 {
            roles.clear();
        }
        let ticks = u128::from(stat.ticks) * 1_000_000_000 / u128::from(self.ticks);
        times.total_ns = u64::try_from(ticks).unwrap_or(u64::MAX).max(threads);
        times.steal_ns = steal.filter(|_| times.vcpus > 0);
        Some(times)
    }
}

struct Stat {
    ticks: u64,
    start: u64,
    rss_pages: u64,
}

impl Stat {
    fn read(directory: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(directory.join("stat")).ok()?)
    }

    /// `PID (COMM) STATE ...`; the name may hold spaces and parentheses.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let at = |n: usize| fields.get(n - 3)?.parse::<u64>().ok();
        Some(Self {
            ticks: at(14)?.checked_add(at(15)?)?,
            start: at(22)?,
            rss_pages: at(24)?,
        })
    }
}

/// Nanoseconds that a thread ran and waited.
fn schedstat(task: &Path) -> Option<(u64, u64)> {
    let text = fs::read_to_string(task.join("schedstat")).ok()?;
    let mut words = text.split_whitespace().map(str::parse);
    Some((words.next()?.ok()?, words.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "77 (qemu (x) 1) S 1 77 77 0 -1 4194624 1 2 3 4 200 50 0 0 20 0 5 0 900 \
        1000000 250 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0";

    fn thread(root: &Path, tid: i32, comm: &str, schedstat: &str) {
        let dir = root.join("proc/77/task").join(tid.to_string());
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("comm"), format!("{comm}\n")).unwrap();
        fs::write(dir.join("schedstat"), schedstat).unwrap();
    }

    #[test]
    fn threads_by_what_they_do() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("run")).unwrap();
        let mut p = Processes {
            proc: root.path().join("proc"),
            pid_files: vec![root.path().join("run")],
            ticks: 100,
            page: 4096,
            known: HashMap::new(),
        };
        let domains = ["web".to_owned(), "off".to_owned()];
        assert!(p.read(&domains).is_empty());
        fs::write(root.path().join("run/web.pid"), "77\n").unwrap();
        thread(root.path(), 77, "qemu-system-x86", "100 5 1");
        thread(root.path(), 78, "CPU 0/KVM", "1000000000 7000 1");
        thread(root.path(), 79, "CPU 1/TCG", "500000000 3000 1");
        thread(root.path(), 80, "IO iothread1", "30 1 1");
        thread(root.path(), 81, "IO mon_iothread", "40 1 1");
        fs::write(root.path().join("proc/77/stat"), STAT).unwrap();
        let all = p.read(&domains);
        let t = all["web"];
        assert_eq!(t.identity, (77, 900));
        assert_eq!((t.total_ns, t.vcpus), (2_500_000_000, 2));
        assert_eq!((t.vcpu_ns, t.iothread_ns), (1_500_000_000, 30));
        assert_eq!((t.steal_ns, t.rss_bytes), (Some(10_000), 250 * 4096));
        // It ends.
        fs::remove_dir_all(root.path().join("proc/77")).unwrap();
        assert!(p.read(&domains).is_empty());
    }

    #[test]
    fn a_process_at_hand() {
        let s = Stat::read(Path::new("/proc/self")).unwrap();
        assert!(s.start > 0 && s.rss_pages > 0);
    }
}
