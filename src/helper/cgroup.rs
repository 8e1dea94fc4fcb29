//! cgroup v2 files of one cgroup: who is in it, and the freezer.

use std::fs::{self, File};
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

/// The file into which a process writes `0` to be in the cgroup.
pub fn entrance(dir: &Path) -> io::Result<File> {
    File::options().write(true).open(dir.join("cgroup.procs"))
}

/// Kills every process in the cgroup and below it, those that are just being forked included, and
/// waits until the kernel says that they are gone, at most `timeout`.
pub fn kill(dir: &Path, timeout: Duration) -> io::Result<()> {
    fs::write(dir.join("cgroup.kill"), "1")?;
    let end = Instant::now() + timeout;
    while populated(dir) {
        if Instant::now() > end {
            let message = format!("processes in {} did not end in time", dir.display());
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// A cgroup whose CPU limit is lifted while this lives. Nothing happens without a limit.
#[derive(Debug)]
pub struct Unlimited(Option<(PathBuf, String)>);

impl Unlimited {
    /// Lifts the limit of the cgroup `dir`.
    pub fn new(dir: &Path) -> Self {
        let file = dir.join("cpu.max");
        let limit = fs::read_to_string(&file).unwrap_or_default();
        let limited = !limit.is_empty() && !limit.starts_with("max");
        if limited && fs::write(&file, "max").is_ok() {
            Self(Some((file, limit.trim().to_owned())))
        } else {
            Self(None)
        }
    }
}

impl Drop for Unlimited {
    fn drop(&mut self) {
        if let Some((file, limit)) = &self.0
            && let Err(e) = fs::write(file, limit)
            && file.exists()
        {
            tracing::warn!(
                "the CPU limit {limit} is not put back in {}: {e}",
                file.display()
            );
        }
    }
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
    fn a_cpu_limit_is_lifted_and_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cpu.max");
        fs::write(&file, "55000 100000\n").unwrap();
        {
            let _unlimited = Unlimited::new(dir.path());
            assert_eq!(fs::read_to_string(&file).unwrap(), "max");
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "55000 100000");
        fs::write(&file, "max 100000\n").unwrap();
        drop(Unlimited::new(dir.path()));
        assert_eq!(fs::read_to_string(&file).unwrap(), "max 100000\n");
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
