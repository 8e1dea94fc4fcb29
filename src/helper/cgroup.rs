//! cgroup v2 files of one cgroup: who is in it, and the freezer.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the unified hierarchy is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

/// Directory of a cgroup given as systemd names it (`/system.slice/x.service`).
pub fn directory(control_group: &str) -> Option<PathBuf> {
    let relative = control_group.strip_prefix('/')?;
    let plain = !relative.is_empty() && relative.split('/').all(|c| !c.is_empty() && c != "..");
    plain.then(|| Path::new(ROOT).join(relative))
}

/// Processes in the cgroup; empty when it does not exist.
pub fn processes(dir: &Path) -> Vec<i32> {
    fs::read_to_string(dir.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|l| l.trim().parse().ok())
        .collect()
}

/// Whether any process is in the cgroup or below it.
pub fn populated(dir: &Path) -> bool {
    event(dir, "populated")
}

/// Whether every process in the cgroup is frozen.
pub fn frozen(dir: &Path) -> bool {
    event(dir, "frozen")
}

/// Freezes or thaws the cgroup and waits until the kernel says so, at most `timeout`.
pub fn freeze(dir: &Path, freeze: bool, timeout: Duration) -> io::Result<()> {
    fs::write(dir.join("cgroup.freeze"), if freeze { "1" } else { "0" })?;
    let end = Instant::now() + timeout;
    while frozen(dir) != freeze {
        if Instant::now() > end {
            let what = if freeze { "frozen" } else { "thawed" };
            let message = format!("{} was not {what} in time", dir.display());
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn event(dir: &Path, key: &str) -> bool {
    fs::read_to_string(dir.join("cgroup.events"))
        .unwrap_or_default()
        .lines()
        .any(|l| l.split_once(' ') == Some((key, "1")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_groups_stay_below_the_root() {
        assert_eq!(
            directory("/system.slice/x.service").unwrap(),
            Path::new("/sys/fs/cgroup/system.slice/x.service")
        );
        for bad in ["", "/", "x", "/../etc", "/a//b"] {
            assert_eq!(directory(bad), None, "{bad}");
        }
    }

    #[test]
    fn reads_events_and_processes() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
        fs::write(dir.path().join("cgroup.procs"), "12\n15\n").unwrap();
        assert!(populated(dir.path()) && !frozen(dir.path()));
        assert_eq!(processes(dir.path()), [12, 15]);
        assert!(!populated(&dir.path().join("absent")));
    }
}
