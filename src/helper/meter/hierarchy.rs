//! Where the guest's cgroups are: version 2, or version 1 where the guest still has it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use crate::counters::CounterFile;

/// The mounted hierarchies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hierarchy {
    /// One for all controllers.
    V2(PathBuf),
    /// One per controller or group of controllers, by the controller's name; systemd's own, which
    /// has every unit, is named `systemd`. A hybrid guest, whose version 2 has no controllers, is
    /// here too.
    V1(Vec<(String, PathBuf)>),
}

/// A file to read, with the directory that it is in.
#[derive(Debug)]
pub struct Place {
    /// What is in it.
    pub file: CounterFile,
    /// The file.
    pub path: PathBuf,
}

impl Hierarchy {
    /// The one in force, from `/proc/self/mountinfo`; version 2 at the usual place when nothing is
    /// mounted.
    pub fn detect() -> Self {
        Self::parse(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
    }

    /// The same from the file's text.
    pub fn parse(mountinfo: &str) -> Self {
        let mut unified = None;
        let mut v1 = Vec::new();
        for line in mountinfo.lines() {
            // ID PARENT DEVICE ROOT MOUNTPOINT OPTIONS ... - TYPE SOURCE SUPER-OPTIONS
            let Some((before, after)) = line.split_once(" - ") else {
                continue;
            };
            let mount = before.split(' ').nth(4).unwrap_or_default();
            let mut after = after.split(' ');
            match (after.next(), after.nth(1)) {
                (Some("cgroup2"), _) if unified.is_none() => unified = Some(PathBuf::from(mount)),
                (Some("cgroup"), Some(options)) => {
                    for option in options.split(',') {
                        let name = option.strip_prefix("name=").unwrap_or(option);
                        if !v1.iter().any(|(known, _)| known == name) {
                            v1.push((name.to_owned(), PathBuf::from(mount)));
                        }
                    }
                }
                _ => {}
            }
        }
        if v1.iter().any(|(c, _)| c == "cpuacct" || c == "memory") {
            Self::V1(v1)
        } else {
            Self::V2(unified.unwrap_or_else(|| PathBuf::from(crate::helper::cgroup::ROOT)))
        }
    }

    /// Directories under which a cgroup's path may be: one for version 2.
    pub fn roots(&self) -> Vec<&Path> {
        match self {
            Self::V2(root) => vec![root],
            Self::V1(all) => {
                let mut roots: Vec<&Path> = Vec::new();
                // systemd's own first: it has all units.
                for wanted in ["systemd", "cpuacct", "memory", "cpu", "blkio", "pids"] {
                    let found = all.iter().find(|(name, _)| name == wanted);
                    if let Some((_, root)) = found
                        && !roots.contains(&root.as_path())
                    {
                        roots.push(root);
                    }
                }
                roots
            }
        }
    }

    /// The first directory of that cgroup that is there.
    pub fn directory(&self, cgroup: &str) -> Option<PathBuf> {
        let relative = relative(cgroup)?;
        self.roots()
            .into_iter()
            .map(|root| root.join(&relative))
            .find(|d| d.is_dir())
    }

    /// The counter files of a cgroup and the inodes of its directories; `None` when it is nowhere
    /// where anything is counted.
    pub fn files(&self, cgroup: &str) -> Option<(Vec<Place>, Vec<u64>)> {
        let relative = relative(cgroup)?;
        let mut places = Vec::new();
        let mut inodes = Vec::new();
        match self {
            Self::V2(root) => {
                let directory = root.join(relative);
                inodes.push(fs::metadata(&directory).ok()?.ino());
                places.extend(CounterFile::V2.map(|file| Place {
                    file,
                    path: directory.join(file.name()),
                }));
            }
            Self::V1(all) => {
                for (controller, file) in CounterFile::V1 {
                    let Some((_, root)) = all.iter().find(|(name, _)| name == controller) else {
                        continue;
                    };
                    let directory = root.join(&relative);
                    let Ok(metadata) = fs::metadata(&directory) else {
                        continue;
                    };
                    if !inodes.contains(&metadata.ino()) {
                        inodes.push(metadata.ino());
                    }
                    places.push(Place {
                        file,
                        path: directory.join(file.name()),
                    });
                }
            }
        }
        (!inodes.is_empty()).then_some((places, inodes))
    }
}

/// A cgroup's path without its leading slash; `None` for the root and for paths that leave it.
fn relative(cgroup: &str) -> Option<PathBuf> {
    let path = Path::new(cgroup.strip_prefix('/')?);
    let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
    (plain && path.components().next().is_some()).then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use CounterFile as F;

    const V2: &str = "24 23 0:21 / /proc rw - proc proc rw\n\
        29 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "30 29 0:27 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n\
        31 29 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
        32 29 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        33 29 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    #[test]
    fn versions() {
        assert_eq!(Hierarchy::parse(V2), Hierarchy::V2("/sys/fs/cgroup".into()));
        let Hierarchy::V1(all) = Hierarchy::parse(V1) else {
            panic!("a hybrid guest counts in version 1");
        };
        let of = |name: &str| {
            all.iter()
                .find(|(n, _)| n == name)
                .map(|(_, p)| p.as_path())
        };
        assert_eq!(of("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(of("systemd"), Some(Path::new("/sys/fs/cgroup/systemd")));
        assert_eq!(of("blkio"), None);
        assert_eq!(Hierarchy::parse(""), Hierarchy::V2("/sys/fs/cgroup".into()));
    }

    #[test]
    fn paths_stay_below_the_root() {
        assert_eq!(relative("/a/b c"), Some("a/b c".into()));
        for bad in ["", "/", "a", "/../a", "/a/../../b", "//"] {
            assert_eq!(relative(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_cgroup_in_some_hierarchies_only() {
        let root = tempfile::tempdir().unwrap();
        let at = |c: &str| (c.to_owned(), root.path().join(c));
        let h = Hierarchy::V1(vec![
            at("systemd"),
            at("cpuacct"),
            at("memory"),
            at("blkio"),
        ]);
        assert!(h.files("/x.slice").is_none());
        for c in ["systemd", "memory"] {
            fs::create_dir_all(root.path().join(c).join("x.slice")).unwrap();
        }
        let (places, inodes) = h.files("/x.slice").unwrap();
        let files: Vec<CounterFile> = places.iter().map(|p| p.file).collect();
        assert_eq!(files, [F::V1MemoryUsage, F::V1Oom, F::V1MemoryStat]);
        assert_eq!(inodes.len(), 1);
        assert_eq!(
            h.directory("/x.slice"),
            Some(root.path().join("systemd/x.slice"))
        );
    }
}
