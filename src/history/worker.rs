//! The thread that owns the partitions: serves appends first, everything else in short steps.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::files;
use super::jobs::{Call, Job};
use super::period::Slot;
use super::tiers::{Tiers, Upkeep};
use super::{HistoryError, Options, Problems, SeriesKey};
use crate::usage::Usage;

pub(super) type Result<T> = std::result::Result<T, HistoryError>;
pub(super) type Reply<T> = oneshot::Sender<Result<T>>;

/// Appends that share one flush.
pub(super) const GROUP: usize = 256;
/// Other calls under way at once.
const JOBS: usize = 16;
/// First millisecond after the year 9999.
const END_OF_TIME: i64 = 253_402_300_800_000;
/// How long to wait for the lock of another owner.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// A tick to record.
pub(super) struct Append {
    pub(super) tick: Vec<(SeriesKey, Usage)>,
    pub(super) reply: Reply<()>,
}

/// Takes the lock, looks at the directory and starts the thread.
pub(super) fn start(
    dir: &Path,
    options: Options,
    problems: Problems,
    appends: mpsc::Receiver<Append>,
    calls: mpsc::Receiver<Call>,
) -> Result<()> {
    let io = |e: &dyn std::fmt::Display| HistoryError::Io {
        path: dir.to_owned(),
        message: e.to_string(),
    };
    files::make_dir(dir).map_err(|e| io(&e))?;
    let lock = File::create(dir.join("lock")).map_err(|e| io(&e))?;
    // A process that a closed history's owner has just forked holds the lock until its exec.
    let until = Instant::now() + LOCK_WAIT;
    loop {
        match lock.try_lock() {
            Ok(()) => break,
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(HistoryError::InUse(dir.to_owned()));
            }
            Err(std::fs::TryLockError::Error(e)) => return Err(io(&e)),
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|e| io(&e))?;
    let worker = Worker {
        interval_ms: options.interval_ms,
        tiers: Tiers::open(dir, options, problems)?,
        _lock: lock,
    };
    std::thread::Builder::new()
        .name("history".into())
        .spawn(move || worker.run(&runtime, appends, calls))
        .map_err(|e| io(&e))?;
    Ok(())
}

pub(super) struct Worker {
    // First, so that it is dropped before the lock is given up.
    pub(super) tiers: Tiers,
    pub(super) interval_ms: i64,
    _lock: File,
}

impl Worker {
    fn run(
        mut self,
        runtime: &tokio::runtime::Runtime,
        mut appends: mpsc::Receiver<Append>,
        mut calls: mpsc::Receiver<Call>,
    ) {
        let mut jobs: VecDeque<Job> = VecDeque::new();
        let mut group: Vec<Append> = Vec::new();
        let mut upkeep: Option<Upkeep> = None;
        loop {
            while group.len() < GROUP
                && let Ok(a) = appends.try_recv()
            {
                group.push(a);
            }
            self.append(std::mem::take(&mut group));
            while jobs.len() < JOBS
                && let Ok(c) = calls.try_recv()
            {
                match self.begin(c) {
                    Begun::Job(j) => jobs.push_back(j),
                    Begun::Done => {}
                    Begun::Close(reply) => return self.close(reply),
                }
            }
            // Upkeep goes on between the jobs, and when there are none.
            upkeep = self.upkeep(upkeep);
            if let Some(job) = jobs.pop_front() {
                jobs.extend(self.step(job, upkeep.is_some()));
                continue;
            }
            if upkeep.is_some() {
                continue;
            }
            let wait = async {
                tokio::select! {
                    biased;
                    a = appends.recv() => a.map(|a| (Some(a), None)),
                    c = calls.recv() => c.map(|c| (None, Some(c))),
                }
            };
            // Both channels belong to the same handles: one closed means that all are gone.
            let Some((a, c)) = runtime.block_on(wait) else {
                return;
            };
            group.extend(a);
            match c.map(|c| self.begin(c)) {
                Some(Begun::Job(j)) => jobs.push_back(j),
                Some(Begun::Close(reply)) => return self.close(reply),
                Some(Begun::Done) | None => {}
            }
        }
    }

    fn close(self, reply: Reply<()>) {
        drop(self);
        let _ = reply.send(Ok(()));
    }

    /// One step of what is to be done among the tiers. A failure is told and tried again when
    /// points come.
    fn upkeep(&mut self, under_way: Option<Upkeep>) -> Option<Upkeep> {
        let next = match under_way {
            Some(job) => Ok(Some(job)),
            None => self.tiers.next_upkeep(),
        };
        let rest = next.and_then(|job| match job {
            Some(job) => match self.tiers.step_upkeep(job)? {
                Some(rest) => Ok(Some(rest)),
                None => self.tiers.next_upkeep(),
            },
            None => Ok(None),
        });
        match rest {
            Ok(rest) => rest,
            Err(e) => {
                self.tiers.upkeep_failed(&e);
                None
            }
        }
    }

    fn append(&mut self, group: Vec<Append>) {
        if group.is_empty() {
            return;
        }
        let mut replies = Vec::with_capacity(group.len());
        let mut slots: BTreeMap<i64, (Slot, Vec<(SeriesKey, Usage)>)> = BTreeMap::new();
        let mut newest = i64::MIN;
        let mut oldest = i64::MAX;
        for a in group {
            if let Some((_, p)) = a.tick.iter().find(|(_, p)| !valid(p.at_ms)) {
                let _ = a.reply.send(Err(HistoryError::Time(p.at_ms)));
                continue;
            }
            let mut last: Option<Slot> = None;
            for (key, point) in a.tick {
                newest = newest.max(point.at_ms);
                oldest = oldest.min(point.at_ms);
                let slot = match last {
                    Some(s) if s.contains(point.at_ms) => s,
                    _ => self.tiers.raw.slot_of(point.at_ms),
                };
                last = Some(slot);
                let (_, points) = slots
                    .entry(slot.start_ms)
                    .or_insert_with(|| (slot, Vec::new()));
                points.push((key, point));
            }
            replies.push(a.reply);
        }
        let result = self.append_slots(slots, oldest, newest);
        for reply in replies {
            let _ = reply.send(result.clone());
        }
    }

    fn append_slots(
        &mut self,
        slots: BTreeMap<i64, (Slot, Vec<(SeriesKey, Usage)>)>,
        oldest: i64,
        newest: i64,
    ) -> Result<()> {
        self.tiers.make_room()?;
        if slots.is_empty() {
            return Ok(());
        }
        self.tiers.expect_points(oldest)?;
        self.tiers.newest_ms = newest;
        for (_, (slot, mut points)) in slots {
            self.tiers.raw.set_current(&slot);
            self.tiers.raw.write(&slot, |p| {
                p.append(&mut points)?;
                p.sync()
            })?;
        }
        self.tiers.keep_budget()
    }
}

/// What became of a call.
pub(super) enum Begun {
    Job(Job),
    Done,
    Close(Reply<()>),
}

/// Is it a time that can be recorded?
pub(super) fn valid(at_ms: i64) -> bool {
    (0..END_OF_TIME).contains(&at_ms)
}
