//! Notices of changed files by inotify: the kernel tells when a cgroup's `memory.events` changes,
//! which is seldom, so that reading it is not needed in between.

use std::collections::HashSet;
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

/// Watches of many files. Without inotify nothing can be added, and files are read each time.
#[derive(Debug)]
pub struct Watches {
    inotify: Option<Inotify>,
    /// Files of which a change was told since the last collection.
    told: HashSet<WatchDescriptor>,
    /// The kernel lost notices: everything counts as changed.
    all: bool,
}

impl Default for Watches {
    fn default() -> Self {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC);
        Self {
            inotify: inotify
                .inspect_err(|e| tracing::debug!("no inotify: {e}"))
                .ok(),
            told: HashSet::new(),
            all: false,
        }
    }
}

impl Watches {
    /// Watches a file; `None` when that is not possible.
    pub fn add(&self, path: &Path) -> Option<WatchDescriptor> {
        let inotify = self.inotify.as_ref()?;
        inotify.add_watch(path, AddWatchFlags::IN_MODIFY).ok()
    }

    /// Ends a watch; the kernel may have ended it already.
    pub fn remove(&self, watch: WatchDescriptor) {
        if let Some(inotify) = &self.inotify {
            let _ = inotify.rm_watch(watch);
        }
    }

    /// Collects what was told since the last time.
    pub fn collect(&mut self) {
        self.told.clear();
        self.all = false;
        let Some(inotify) = &self.inotify else { return };
        // Bounded, so that a busy file cannot hold up the meter.
        for _ in 0..64 {
            let Ok(events) = inotify.read_events() else {
                return;
            };
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    self.all = true;
                } else {
                    self.told.insert(event.wd);
                }
            }
        }
        self.all = true;
    }

    /// Whether a change of that file was told.
    pub fn told(&self, watch: WatchDescriptor) -> bool {
        self.all || self.told.contains(&watch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn tells_changes_once() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, "1").unwrap();
        fs::write(&b, "1").unwrap();
        let mut w = Watches::default();
        let (a_watch, b_watch) = (w.add(&a).unwrap(), w.add(&b).unwrap());
        w.collect();
        assert!(!w.told(a_watch));
        fs::write(&a, "2").unwrap();
        w.collect();
        assert!(w.told(a_watch) && !w.told(b_watch));
        w.collect();
        assert!(!w.told(a_watch));
        w.remove(a_watch);
        assert_eq!(w.add(&dir.path().join("absent")), None);
    }
}
