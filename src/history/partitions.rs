//! The set of partitions: which are open, how a broken one is repaired or set aside, which are
//! dropped.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fs;
use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::files::{self, Mark, day_name, day_of, parse_day};
use super::partition::{self, Partition};
use super::record::HOUR_MS;
use super::{HistoryError, Problems, SeriesKey};
use crate::usage::Usage;

type Result<T> = std::result::Result<T, HistoryError>;

/// Partitions open at once.
const OPEN: usize = 3;
/// Closed partitions whose series are remembered.
const REMEMBERED: usize = 400;

/// What went wrong in a partition.
#[derive(Debug)]
enum Failure {
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
fn guarded<T>(f: impl FnOnce() -> partition::Result<T>) -> std::result::Result<T, Failure> {
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

fn io_error(path: &Path, e: &io::Error) -> HistoryError {
    HistoryError::Io {
        path: path.to_owned(),
        message: e.to_string(),
    }
}

/// All partitions of a history.
pub(super) struct Partitions {
    dir: PathBuf,
    floor_mib: u64,
    problems: Problems,
    /// Days with a directory.
    days: BTreeSet<i64>,
    open: BTreeMap<i64, Partition>,
    /// Open days, least recently used first.
    used: VecDeque<i64>,
    /// Day of the newest append.
    current: Option<i64>,
    /// Series of closed partitions.
    closed_series: HashMap<i64, HashSet<SeriesKey>>,
}

impl Partitions {
    /// Looks at the directory; opens nothing.
    pub(super) fn new(dir: &Path, floor_mib: u64, problems: Problems) -> Result<Self> {
        let mut this = Self {
            dir: dir.to_owned(),
            floor_mib,
            problems,
            days: BTreeSet::new(),
            open: BTreeMap::new(),
            used: VecDeque::new(),
            current: None,
            closed_series: HashMap::new(),
        };
        let mut marks = Vec::new();
        let names = this.names()?;
        for name in &names {
            let path = dir.join(name);
            match parse_day(name) {
                Some((day, ".compact")) if !names.contains(&day_name(day)) => {
                    // Left over from a crash between the two renames of `compact`.
                    fs::rename(&path, this.path(day)).map_err(|e| io_error(&path, &e))?;
                    files::sync_dir(dir).map_err(|e| io_error(dir, &e))?;
                    this.days.insert(day);
                }
                Some((day, "")) => {
                    this.days.insert(day);
                }
                Some((day, ".mark")) => marks.push(day),
                Some((_, ".expired" | ".salvage" | ".compact")) => {
                    // Left over from a crash in the middle of dropping, repairing, compacting.
                    fs::remove_dir_all(&path).map_err(|e| io_error(&path, &e))?;
                }
                _ => {}
            }
        }
        for day in marks.into_iter().filter(|d| !this.days.contains(d)) {
            let path = Mark::path(dir, day);
            let points = Mark::read(&path).ok().flatten().unwrap_or_default().points;
            this.problems.report(format!(
                "history partition {}: its directory is gone, with {points} acknowledged points",
                day_name(day)
            ));
            fs::remove_file(&path).map_err(|e| io_error(&path, &e))?;
        }
        Ok(this)
    }

    fn names(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(&self.dir).map_err(|e| io_error(&self.dir, &e))?;
        Ok(entries
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect())
    }

    fn path(&self, day: i64) -> PathBuf {
        self.dir.join(day_name(day))
    }

    /// Days with a partition.
    pub(super) fn days(&self) -> VecDeque<i64> {
        self.days.iter().copied().collect()
    }

    /// The newest day with a partition that is not after `day`.
    pub(super) fn newest_day_up_to(&self, day: i64) -> Option<i64> {
        self.days.range(..=day).next_back().copied()
    }

    /// Refuses when there is less free space than the floor.
    pub(super) fn check_space(&self) -> Result<()> {
        let free_mib = files::free_mib(&self.dir).map_err(|e| io_error(&self.dir, &e))?;
        if free_mib < self.floor_mib {
            return Err(HistoryError::Full {
                dir: self.dir.clone(),
                free_mib,
                floor_mib: self.floor_mib,
            });
        }
        Ok(())
    }

    /// Notes that appends are now of `day`: the day before is sealed and written anew without the
    /// space that its changes left behind.
    pub(super) fn advance(&mut self, day: i64) {
        if self.current.is_some_and(|c| c >= day) {
            return;
        }
        // After a start the newest day before may have been left as it was, with a head.
        let known = self.current.replace(day);
        let Some(before) = known
            .or_else(|| self.newest_day_up_to(day - 1))
            .filter(|b| self.days.contains(b))
        else {
            return;
        };
        // The points are durable either way; this only makes them smaller.
        let compacted = match known {
            Some(_) => Ok(true),
            None => self.with(before, |p| Ok(p.has_head())),
        }
        .and_then(|due| if due { self.compact(before) } else { Ok(()) });
        if let Err(e) = compacted {
            tracing::warn!("history partition {} not compacted: {e}", day_name(before));
        }
    }

    fn compact(&mut self, day: i64) -> Result<()> {
        let path = self.path(day);
        let copy = self.dir.join(format!("{}.compact", day_name(day)));
        let needed_mib = self.floor_mib + files::size_of(&path) / (1 << 20);
        let free_mib = files::free_mib(&self.dir).map_err(|e| io_error(&self.dir, &e))?;
        let room = free_mib > needed_mib;
        let copied = self.with(day, |p| {
            p.seal()?;
            p.sync()?;
            if room { p.copy_to(&copy) } else { Ok(()) }
        });
        if !room || copied.is_err() {
            if copy.exists() {
                fs::remove_dir_all(&copy).map_err(|e| io_error(&copy, &e))?;
            }
            return copied;
        }
        self.close(day);
        // A crash between the renames leaves the copy, which `new` puts in place.
        let gone = self.dir.join(format!("{}.expired", day_name(day)));
        fs::rename(&path, &gone)
            .and_then(|()| {
                fs::rename(&copy, &path).inspect_err(|_| {
                    // Back to what it was; if that fails too, the next start does it.
                    let _ = fs::rename(&gone, &path);
                })
            })
            .and_then(|()| files::sync_dir(&self.dir))
            .and_then(|()| fs::remove_dir_all(&gone))
            .map_err(|e| io_error(&path, &e))
    }

    /// Changes a partition, made if there is none. Tried twice when sled fails: opening it anew
    /// repairs it or starts a fresh one.
    pub(super) fn write<T>(
        &mut self,
        day: i64,
        mut f: impl FnMut(&mut Partition) -> partition::Result<T>,
    ) -> Result<T> {
        match self.with(day, &mut f) {
            Err(HistoryError::Broken { partition, message }) => {
                tracing::warn!("history partition {partition} is opened anew: {message}");
                self.with(day, f)
            }
            result => result,
        }
    }

    /// Points of one hour of a series.
    pub(super) fn hour(&mut self, key: &SeriesKey, hour: i64) -> Result<Vec<Usage>> {
        let day = day_of(hour * HOUR_MS);
        let known = self.closed_series.get(&day);
        if !self.days.contains(&day) || known.is_some_and(|k| !k.contains(key)) {
            return Ok(Vec::new());
        }
        self.write(day, |p| p.hour(key, hour))
    }

    /// Series of a partition.
    pub(super) fn series(&mut self, day: i64) -> Result<Vec<SeriesKey>> {
        if let Some(known) = self.closed_series.get(&day) {
            return Ok(known.iter().cloned().collect());
        }
        if !self.days.contains(&day) {
            return Ok(Vec::new());
        }
        self.write(day, |p| Ok(p.series()))
    }

    fn with<T>(
        &mut self,
        day: i64,
        f: impl FnOnce(&mut Partition) -> partition::Result<T>,
    ) -> Result<T> {
        if !self.open.contains_key(&day) {
            let p = self.open_or_repair(day)?;
            self.days.insert(day);
            self.closed_series.remove(&day);
            self.open.insert(day, p);
        }
        self.used.retain(|d| *d != day);
        self.used.push_back(day);
        while self.used.len() > OPEN {
            // The day of the appends stays open.
            let least = usize::from(self.used.front().copied() == self.current);
            if let Some(least) = self.used.remove(least) {
                self.close(least);
            }
        }
        let Some(p) = self.open.get_mut(&day) else {
            return Err(HistoryError::Closed);
        };
        guarded(|| f(p)).map_err(|failure| {
            // sled's errors stick until the database is opened anew.
            self.close(day);
            self.closed_series.remove(&day);
            self.failed(day, failure)
        })
    }

    fn failed(&self, day: i64, failure: Failure) -> HistoryError {
        match failure {
            Failure::Machine(message) => HistoryError::Io {
                path: self.path(day),
                message,
            },
            Failure::Broken(message) => HistoryError::Broken {
                partition: day_name(day),
                message,
            },
        }
    }

    fn close(&mut self, day: i64) {
        self.used.retain(|d| *d != day);
        let Some(p) = self.open.remove(&day) else {
            return;
        };
        if self.closed_series.len() < REMEMBERED {
            self.closed_series
                .insert(day, p.series().into_iter().collect());
        }
        drop_guarded(p);
    }

    /// Opens a partition; a broken one is tried without its snapshot, then set aside.
    fn open_or_repair(&mut self, day: i64) -> Result<Partition> {
        let path = self.path(day);
        let is_new = !path.exists();
        let mark_path = Mark::path(&self.dir, day);
        let mark = match Mark::read(&mark_path) {
            Ok(mark) => mark.unwrap_or_default(),
            Err(e) if e.kind() == ErrorKind::InvalidData => {
                self.problems.report(format!(
                    "history partition {}: its mark is damaged: a loss could not be noticed",
                    day_name(day)
                ));
                Mark::default()
            }
            Err(e) => return Err(io_error(&mark_path, &e)),
        };
        let mut p = match self.open_once(&path, &mark_path) {
            Ok(p) => p,
            Err(Failure::Broken(why)) if !is_new => self.repair(day, &mark_path, &why)?,
            Err(failure) => return Err(self.failed(day, failure)),
        };
        if is_new {
            files::sync_dir(&self.dir).map_err(|e| io_error(&self.dir, &e))?;
        }
        let found = p.mark();
        if found.points < mark.points || found.seq < mark.seq {
            self.problems.report(format!(
                "history partition {}: {} of {} acknowledged points are lost (the newest was of \
                 {} ms, found is {} ms)",
                day_name(day),
                mark.points.saturating_sub(found.points),
                mark.points,
                mark.last_ms,
                found.last_ms
            ));
            p.skip_to(mark.seq);
            if let Err(failure) = guarded(|| p.sync()) {
                drop_guarded(p);
                return Err(self.failed(day, failure));
            }
        }
        Ok(p)
    }

    /// sled gives up its lock some time after a database was dropped: wait for it a little.
    fn open_once(&self, path: &Path, mark: &Path) -> std::result::Result<Partition, Failure> {
        for _ in 0..100 {
            match guarded(|| Partition::open(path, mark.to_owned(), &self.problems)) {
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

    fn repair(&mut self, day: i64, mark: &Path, why: &str) -> Result<Partition> {
        let path = self.path(day);
        let name = day_name(day);
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
        let copy = self.dir.join(format!("{name}.salvage"));
        let salvaged = match files::copy_without_snapshots(&path, &copy) {
            Ok(()) => match self.open_once(&copy, mark) {
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
            match self.open_once(&path, mark) {
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
        self.open_once(&path, mark).map_err(|f| self.failed(day, f))
    }

    /// Drops all partitions of days before `day`.
    pub(super) fn expire(&mut self, day: i64) -> Result<u64> {
        let mut dropped = 0;
        for name in self.names()? {
            let Some((d, rest)) = parse_day(&name).filter(|(d, _)| *d < day) else {
                continue;
            };
            let path = self.dir.join(&name);
            if rest.is_empty() {
                self.close(d);
                self.closed_series.remove(&d);
                self.days.remove(&d);
                // First the mark: a directory without it is no loss, a mark without it is one.
                let mark = Mark::path(&self.dir, d);
                match fs::remove_file(&mark) {
                    Err(e) if e.kind() != ErrorKind::NotFound => return Err(io_error(&mark, &e)),
                    _ => {}
                }
                let gone = self.dir.join(format!("{name}.expired"));
                fs::rename(&path, &gone)
                    .and_then(|()| fs::remove_dir_all(&gone))
                    .map_err(|e| io_error(&path, &e))?;
                dropped += 1;
                tracing::info!("history partition {name} dropped: its time is over");
            } else if rest.starts_with(".broken-") {
                fs::remove_dir_all(&path).map_err(|e| io_error(&path, &e))?;
            }
        }
        files::sync_dir(&self.dir).map_err(|e| io_error(&self.dir, &e))?;
        Ok(dropped)
    }
}

impl Drop for Partitions {
    fn drop(&mut self) {
        while let Some((_, p)) = self.open.pop_first() {
            drop_guarded(p);
        }
    }
}

fn drop_guarded(p: Partition) {
    if catch_unwind(AssertUnwindSafe(|| drop(p))).is_err() {
        tracing::warn!("sled gave up while closing a history partition");
    }
}
