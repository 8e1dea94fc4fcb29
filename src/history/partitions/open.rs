//! Opening a partition: a broken one is repaired, or set aside and begun anew.

use std::fs;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use super::super::HistoryError;
use super::super::files::{self, Mark};
use super::super::partition::{self, Partition};
use super::super::period::Slot;
use super::super::point::Point;
use super::{Partitions, Result, io_error};

/// What went wrong in a partition.
#[derive(Debug)]
pub(super) enum Failure {
    /// The machine refused: space, rights, descriptors, a lock. The files may be sound.
    Machine(String),
    /// The files are not.
    Broken(String),
}

impl From<sled::Error> for Failure {
    fn from(e: sled::Error) -> Self {
        match &e {
            sled::Error::Io(io)
                if !matches!(io.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidData) =>
            {
                Self::Machine(io.to_string())
            }
            _ => Self::Broken(e.to_string()),
        }
    }
}

/// Runs something of sled's, which may panic on damaged files.
pub(super) fn guarded<T>(
    f: impl FnOnce() -> partition::Result<T>,
) -> std::result::Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(r) => r.map_err(Failure::from),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Err(Failure::Broken(format!(
                "sled gave up: {}",
                text.as_deref().unwrap_or("no reason")
            )))
        }
    }
}

impl<P: Point> Partitions<P> {
    /// Opens a partition; a broken one is tried without its snapshot, then set aside.
    pub(super) fn open_or_repair(&mut self, slot: &Slot) -> Result<Partition<P>> {
        let path = self.path(slot);
        let is_new = !path.exists();
        let mark_path = self.mark_path(slot);
        let mark = match Mark::read(&mark_path) {
            Ok(mark) => mark.unwrap_or_default(),
            Err(e) if e.kind() == ErrorKind::InvalidData => {
                self.problems.report(format!(
                    "history partition {}: its mark is damaged: a loss could not be noticed",
                    self.shown(slot)
                ));
                Mark::default()
            }
            Err(e) => return Err(io_error(&mark_path, &e)),
        };
        let mut p = match self.open_once(slot, &path, &mark_path) {
            Ok(p) => p,
            Err(Failure::Broken(why)) if !is_new => self.repair(slot, &mark_path, &why)?,
            Err(failure) => return Err(self.failed(slot, failure)),
        };
        if is_new {
            files::sync_dir(&self.dir).map_err(|e| io_error(&self.dir, &e))?;
        }
        let found = p.mark();
        if found.points < mark.points || found.seq < mark.seq {
            self.problems.report(format!(
                "history partition {}: {} of {} acknowledged points are lost (the newest was of \
                 {} ms, found is {} ms)",
                self.shown(slot),
                mark.points.saturating_sub(found.points),
                mark.points,
                mark.last_ms,
                found.last_ms
            ));
            p.skip_to(mark.seq);
            if let Err(failure) = guarded(|| p.sync()) {
                drop_guarded(p);
                return Err(self.failed(slot, failure));
            }
        }
        Ok(p)
    }

    /// sled gives up its lock some time after a database was dropped: wait for it a little.
    fn open_once(
        &self,
        slot: &Slot,
        path: &Path,
        mark: &Path,
    ) -> std::result::Result<Partition<P>, Failure> {
        let open = || {
            Partition::open(
                path,
                self.shown(slot),
                mark.to_owned(),
                self.tier.bucket_ms,
                &self.problems,
            )
        };
        for _ in 0..100 {
            match guarded(open) {
                Err(Failure::Machine(e)) if e.contains("could not acquire lock") => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                result => return result,
            }
        }
        Err(Failure::Machine(format!(
            "{} is locked by another process",
            path.display()
        )))
    }

    fn repair(&mut self, slot: &Slot, mark: &Path, why: &str) -> Result<Partition<P>> {
        let path = self.path(slot);
        let name = self.shown(slot);
        // A full disk looks like damage; what is on it may be sound.
        let needed_mib = files::size_of(&path) / (1 << 20) + 2;
        let free_mib = files::free_mib(&self.dir).map_err(|e| io_error(&self.dir, &e))?;
        if free_mib < needed_mib {
            return Err(HistoryError::Full {
                dir: self.dir.clone(),
                free_mib,
                floor_mib: needed_mib,
            });
        }
        let copy = self.dir.join(format!("{}.salvage", slot.name()));
        let salvaged = match files::copy_without_snapshots(&path, &copy) {
            Ok(()) => match self.open_once(slot, &copy, mark) {
                Ok(p) => {
                    drop_guarded(p);
                    true
                }
                Err(_) => false,
            },
            Err(_) => false,
        };
        let aside = files::quarantine(&path).map_err(|e| io_error(&path, &e))?;
        let aside = aside.display();
        if salvaged {
            fs::rename(&copy, &path)
                .and_then(|()| files::sync_tree(&path))
                .map_err(|e| io_error(&path, &e))?;
            match self.open_once(slot, &path, mark) {
                Ok(p) => {
                    self.problems.report(format!(
                        "history partition {name} could not be opened ({why}); it was repaired \
                         without its snapshot, the damaged files are kept in {aside}"
                    ));
                    return Ok(p);
                }
                Err(Failure::Machine(message)) => {
                    return Err(HistoryError::Io { path, message });
                }
                Err(Failure::Broken(_)) => {
                    fs::remove_dir_all(&path).map_err(|e| io_error(&path, &e))?;
                }
            }
        } else if copy.exists() {
            fs::remove_dir_all(&copy).map_err(|e| io_error(&copy, &e))?;
        }
        self.problems.report(format!(
            "history partition {name} could not be opened ({why}); it was set aside as {aside} and \
             begun anew"
        ));
        self.open_once(slot, &path, mark)
            .map_err(|f| self.failed(slot, f))
    }
}

pub(super) fn drop_guarded<P>(p: Partition<P>) {
    if catch_unwind(AssertUnwindSafe(|| drop(p))).is_err() {
        tracing::warn!("sled gave up while closing a history partition");
    }
}
