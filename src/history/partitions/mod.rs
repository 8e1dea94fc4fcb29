//! The set of partitions: which are open, how a broken one is repaired or set aside, which are
//! dropped.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::files::{self, Mark};
use super::partition::{self, Packer, Partition};
use super::period::{Period, Slot};
use super::point::Point;
use super::{HistoryError, Problems, SeriesKey};

mod open;

use open::{Failure, drop_guarded, guarded};

type Result<T> = std::result::Result<T, HistoryError>;

/// Partitions of a tier open at once.
const OPEN: usize = 5;
/// Closed partitions of a tier whose series are remembered.
const REMEMBERED: usize = 40;
/// Series packed in one step.
const PACK_SERIES: usize = 8;

fn io_error(path: &Path, e: &io::Error) -> HistoryError {
    HistoryError::Io {
        path: path.to_owned(),
        message: e.to_string(),
    }
}

/// How a tier is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tier {
    /// Its directory in the history's.
    pub(super) name: &'static str,
    /// Time of one partition.
    pub(super) period: Period,
    /// Time of the points of one chunk, at most.
    pub(super) bucket_ms: i64,
}

/// All partitions of a tier.
pub(super) struct Partitions<P> {
    root: PathBuf,
    dir: PathBuf,
    tier: Tier,
    floor_mib: u64,
    problems: Problems,
    /// Those with a directory, by their start.
    slots: BTreeMap<i64, Slot>,
    open: BTreeMap<i64, Partition<P>>,
    /// Open ones, least recently used first.
    used: VecDeque<i64>,
    /// Where the newest points go.
    current: Option<i64>,
    /// Series of closed partitions.
    closed_series: HashMap<i64, HashSet<SeriesKey>>,
}

impl<P: Point> Partitions<P> {
    /// Looks at the tier's directory in `root`; opens nothing.
    pub(super) fn new(root: &Path, tier: Tier, floor_mib: u64, problems: Problems) -> Result<Self> {
        let dir = root.join(tier.name);
        files::make_dir(&dir).map_err(|e| io_error(&dir, &e))?;
        let mut this = Self {
            root: root.to_owned(),
            dir: dir.clone(),
            tier,
            floor_mib,
            problems,
            slots: BTreeMap::new(),
            open: BTreeMap::new(),
            used: VecDeque::new(),
            current: None,
            closed_series: HashMap::new(),
        };
        let mut marks = Vec::new();
        let names = this.names()?;
        for name in &names {
            let path = dir.join(name);
            match Slot::parse(name) {
                Some((slot, ".compact")) if !names.contains(&slot.name()) => {
                    // Left over from a crash between the two renames of `swap`.
                    fs::rename(&path, this.path(&slot)).map_err(|e| io_error(&path, &e))?;
                    files::sync_dir(&dir).map_err(|e| io_error(&dir, &e))?;
                    this.slots.insert(slot.start_ms, slot);
                }
                Some((slot, "")) => {
                    this.slots.insert(slot.start_ms, slot);
                }
                Some((slot, ".mark")) => marks.push(slot),
                Some((_, ".expired" | ".salvage" | ".compact")) => {
                    // Left over from a crash in the middle of dropping, repairing, packing.
                    fs::remove_dir_all(&path).map_err(|e| io_error(&path, &e))?;
                }
                _ => {}
            }
        }
        for slot in marks {
            if this.slots.contains_key(&slot.start_ms) {
                continue;
            }
            let path = this.mark_path(&slot);
            let points = Mark::read(&path).ok().flatten().unwrap_or_default().points;
            this.problems.report(format!(
                "history partition {}: its directory is gone, with {points} acknowledged points",
                this.shown(&slot)
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

    fn path(&self, slot: &Slot) -> PathBuf {
        self.dir.join(slot.name())
    }

    fn mark_path(&self, slot: &Slot) -> PathBuf {
        self.dir.join(format!("{}.mark", slot.name()))
    }

    /// Tier and name, for people.
    pub(super) fn shown(&self, slot: &Slot) -> String {
        format!("{}/{}", self.tier.name, slot.name())
    }

    /// The partition that a time belongs to, there or not.
    pub(super) fn slot_of(&self, at_ms: i64) -> Slot {
        let before = self.slots.range(..=at_ms).next_back();
        match before {
            Some((_, slot)) if slot.contains(at_ms) => *slot,
            _ => Slot::of(self.tier.period, at_ms),
        }
    }

    /// Partitions that are there and have times from `from_ms` to before `to_ms`, oldest first.
    pub(super) fn slots(&self, from_ms: i64, to_ms: i64) -> Vec<Slot> {
        let until = self.slots.range(..to_ms).map(|(_, s)| *s);
        until.filter(|s| s.end_ms > from_ms).collect()
    }

    /// Time of the oldest point, or one not long before it.
    pub(super) fn oldest_ms(&self) -> Option<i64> {
        let (start, slot) = self.slots.first_key_value()?;
        // Marks of earlier versions do not tell.
        let first = self.mark_of(slot).map(|m| m.first_ms);
        Some(first.filter(|f| slot.contains(*f)).unwrap_or(*start))
    }

    /// Time of the newest point, or one not long after it.
    pub(super) fn newest_ms(&self) -> Option<i64> {
        let (_, slot) = self.slots.last_key_value()?;
        let last = self.mark_of(slot).map(|m| m.last_ms);
        Some(last.filter(|l| slot.contains(*l)).unwrap_or(slot.end_ms))
    }

    fn mark_of(&self, slot: &Slot) -> Option<Mark> {
        match self.open.get(&slot.start_ms) {
            Some(p) => Some(p.mark()),
            None => Mark::read(&self.mark_path(slot)).ok().flatten(),
        }
    }

    /// Is there such a partition?
    pub(super) fn is_there(&self, slot: &Slot) -> bool {
        self.slots.contains_key(&slot.start_ms)
    }

    /// The partition that the newest points go to.
    pub(super) fn set_current(&mut self, slot: &Slot) {
        self.current = Some(slot.start_ms);
    }

    /// Is it the one that the newest points go to?
    pub(super) fn is_current(&self, slot: &Slot) -> bool {
        self.current == Some(slot.start_ms)
    }

    /// Bytes on disk.
    pub(super) fn size(&self) -> u64 {
        files::size_of(&self.dir)
    }

    /// Bytes on disk of one partition.
    pub(super) fn size_of(&self, slot: &Slot) -> u64 {
        files::size_of(&self.path(slot))
    }

    /// Begins to pack a partition whose time is over. `None` when there is nothing to do.
    pub(super) fn begin_pack(&mut self, slot: &Slot) -> Result<Option<Packer>> {
        let path = self.path(slot);
        // It need not be opened to know this.
        let mark = Mark::read(&self.mark_path(slot)).ok().flatten();
        if mark.is_some_and(|m| m.packed) {
            return Ok(None);
        }
        let copy = self.dir.join(format!("{}.compact", slot.name()));
        if copy.exists() {
            fs::remove_dir_all(&copy).map_err(|e| io_error(&copy, &e))?;
        }
        let needed_mib = self.floor_mib + files::size_of(&path) / (1 << 20);
        let free_mib = files::free_mib(&self.root).map_err(|e| io_error(&self.root, &e))?;
        if free_mib <= needed_mib {
            return Ok(None);
        }
        self.with(slot, |p| {
            let packer = p.begin_pack(copy.clone())?;
            p.sync()?;
            Ok(packer)
        })
    }

    /// One step of packing; gives the packer back until all is packed and in place.
    pub(super) fn step_pack(&mut self, slot: &Slot, mut packer: Packer) -> Result<Option<Packer>> {
        let copy = packer.path().to_owned();
        let step = self.with(slot, |p| p.pack_some(&mut packer, PACK_SERIES));
        match step {
            Ok(false) => return Ok(Some(packer)),
            Ok(true) => {}
            Err(e) => {
                packer.discard().map_err(|e| io_error(&copy, &e))?;
                return Err(e);
            }
        }
        match self.with(slot, |p| p.end_pack(packer)) {
            Ok(true) => {
                self.swap(slot, &copy)?;
                // Whoever asks for it next need not wait until it is opened and checked.
                self.with(slot, |_| Ok(()))?;
                Ok(None)
            }
            other => {
                fs::remove_dir_all(&copy).map_err(|e| io_error(&copy, &e))?;
                other.map(|_| None)
            }
        }
    }

    /// Puts a packed copy in place.
    fn swap(&mut self, slot: &Slot, copy: &Path) -> Result<()> {
        self.close(slot.start_ms);
        let path = self.path(slot);
        // A crash between the renames leaves the copy, which `new` puts in place.
        let gone = self.dir.join(format!("{}.expired", slot.name()));
        fs::rename(&path, &gone)
            .and_then(|()| {
                fs::rename(copy, &path).inspect_err(|_| {
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
        slot: &Slot,
        mut f: impl FnMut(&mut Partition<P>) -> partition::Result<T>,
    ) -> Result<T> {
        match self.with(slot, &mut f) {
            Err(HistoryError::Broken { partition, message }) => {
                tracing::warn!("history partition {partition} is opened anew: {message}");
                self.with(slot, f)
            }
            result => result,
        }
    }

    /// The `wanted` columns of a series' points in a partition, from `from_ms` to before `to_ms`.
    pub(super) fn range(
        &mut self,
        slot: &Slot,
        key: &SeriesKey,
        from_ms: i64,
        to_ms: i64,
        wanted: u64,
    ) -> Result<Vec<P>> {
        let known = self.closed_series.get(&slot.start_ms);
        let there = self.slots.contains_key(&slot.start_ms);
        if !there || known.is_some_and(|k| !k.contains(key)) {
            return Ok(Vec::new());
        }
        self.write(slot, |p| p.range(key, from_ms, to_ms, wanted))
    }

    /// Series of a partition, sorted.
    pub(super) fn series(&mut self, slot: &Slot) -> Result<VecDeque<SeriesKey>> {
        if let Some(known) = self.closed_series.get(&slot.start_ms) {
            let mut all: Vec<SeriesKey> = known.iter().cloned().collect();
            all.sort();
            return Ok(all.into());
        }
        if !self.slots.contains_key(&slot.start_ms) {
            return Ok(VecDeque::new());
        }
        self.write(slot, |p| Ok(p.sorted_series()))
    }

    fn with<T>(
        &mut self,
        slot: &Slot,
        f: impl FnOnce(&mut Partition<P>) -> partition::Result<T>,
    ) -> Result<T> {
        let start = slot.start_ms;
        if !self.open.contains_key(&start) {
            let p = self.open_or_repair(slot)?;
            self.slots.insert(start, *slot);
            self.closed_series.remove(&start);
            self.open.insert(start, p);
        }
        self.used.retain(|d| *d != start);
        self.used.push_back(start);
        while self.used.len() > OPEN {
            // The one of the appends stays open.
            let least = usize::from(self.used.front().copied() == self.current);
            if let Some(least) = self.used.remove(least) {
                self.close(least);
            }
        }
        let Some(p) = self.open.get_mut(&start) else {
            return Err(HistoryError::Closed);
        };
        guarded(|| f(p)).map_err(|failure| {
            // sled's errors stick until the database is opened anew.
            self.close(start);
            self.closed_series.remove(&start);
            self.failed(slot, failure)
        })
    }

    fn failed(&self, slot: &Slot, failure: Failure) -> HistoryError {
        match failure {
            Failure::Machine(message) => HistoryError::Io {
                path: self.path(slot),
                message,
            },
            Failure::Broken(message) => HistoryError::Broken {
                partition: self.shown(slot),
                message,
            },
        }
    }

    fn close(&mut self, start_ms: i64) {
        self.used.retain(|d| *d != start_ms);
        let Some(p) = self.open.remove(&start_ms) else {
            return;
        };
        if self.closed_series.len() < REMEMBERED {
            self.closed_series
                .insert(start_ms, p.series().into_iter().collect());
        }
        drop_guarded(p);
    }

    /// Drops a partition.
    pub(super) fn drop_slot(&mut self, slot: &Slot) -> Result<()> {
        self.close(slot.start_ms);
        self.closed_series.remove(&slot.start_ms);
        self.slots.remove(&slot.start_ms);
        // First the mark: a directory without it is no loss, a mark without it is one.
        let mark = self.mark_path(slot);
        match fs::remove_file(&mark) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(io_error(&mark, &e)),
            _ => {}
        }
        let path = self.path(slot);
        let gone = self.dir.join(format!("{}.expired", slot.name()));
        fs::rename(&path, &gone)
            .and_then(|()| fs::remove_dir_all(&gone))
            .and_then(|()| files::sync_dir(&self.dir))
            .map_err(|e| io_error(&path, &e))
    }

    /// Drops what was set aside of times that ended before `before_ms`.
    pub(super) fn expire_broken(&self, before_ms: i64) -> Result<()> {
        for name in self.names()? {
            let Some((slot, rest)) = Slot::parse(&name) else {
                continue;
            };
            if slot.end_ms <= before_ms && rest.starts_with(".broken-") {
                let path = self.dir.join(&name);
                fs::remove_dir_all(&path).map_err(|e| io_error(&path, &e))?;
            }
        }
        Ok(())
    }
}

impl<P> Drop for Partitions<P> {
    fn drop(&mut self) {
        while let Some((_, p)) = self.open.pop_first() {
            drop_guarded(p);
        }
    }
}
