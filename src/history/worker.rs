//! The thread that owns the partitions: serves appends first, everything else in short steps.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::files::{self, DAY_MS, day_of};
use super::partitions::Partitions;
use super::record::{HOUR_MS, hour_of};
use super::{HistoryError, Options, Problems, SeriesKey};
use crate::usage::Usage;

type Result<T> = std::result::Result<T, HistoryError>;
type Reply<T> = oneshot::Sender<Result<T>>;

/// Appends that share one flush.
const GROUP: usize = 16;
/// Other calls under way at once.
const JOBS: usize = 16;
/// First millisecond after the year 9999.
const END_OF_TIME: i64 = 253_402_300_800_000;

/// A tick to record.
pub(super) struct Append {
    pub(super) tick: Vec<(SeriesKey, Usage)>,
    pub(super) reply: Reply<()>,
}

/// Everything else.
pub(super) enum Call {
    Range {
        key: SeriesKey,
        since_ms: i64,
        until_ms: i64,
        limit: usize,
        reply: Reply<Vec<Usage>>,
    },
    Series {
        reply: Reply<Vec<SeriesKey>>,
    },
    Import {
        key: SeriesKey,
        points: Vec<Usage>,
        reply: Reply<u64>,
    },
    Expire {
        now_ms: i64,
        reply: Reply<u64>,
    },
    Close {
        reply: Reply<()>,
    },
}

/// A call under way.
enum Job {
    Range(Range),
    Series {
        days: VecDeque<i64>,
        found: Vec<SeriesKey>,
        reply: Reply<Vec<SeriesKey>>,
    },
    Import(Import),
    Expire {
        now_ms: i64,
        reply: Reply<u64>,
    },
}

struct Range {
    key: SeriesKey,
    since_ms: i64,
    until_ms: i64,
    limit: usize,
    /// Hour to read next, going back.
    hour: i64,
    /// Newest hour first.
    found: Vec<Vec<Usage>>,
    count: usize,
    reply: Reply<Vec<Usage>>,
}

struct Import {
    key: SeriesKey,
    hours: BTreeMap<i64, Vec<Usage>>,
    added: u64,
    reply: Reply<u64>,
}

/// How long to wait for the lock of another owner.
const LOCK_WAIT: Duration = Duration::from_secs(1);

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
        partitions: Partitions::new(dir, options.floor_mib, problems)?,
        options,
        _lock: lock,
    };
    std::thread::Builder::new()
        .name("history".into())
        .spawn(move || worker.run(&runtime, appends, calls))
        .map_err(|e| io(&e))?;
    Ok(())
}

struct Worker {
    // First, so that it is dropped before the lock is given up.
    partitions: Partitions,
    options: Options,
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
            if let Some(job) = jobs.pop_front() {
                jobs.extend(self.step(job));
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

    fn append(&mut self, group: Vec<Append>) {
        if group.is_empty() {
            return;
        }
        let mut replies = Vec::with_capacity(group.len());
        let mut days: BTreeMap<i64, Vec<(SeriesKey, Usage)>> = BTreeMap::new();
        for a in group {
            if let Some((_, p)) = a.tick.iter().find(|(_, p)| !valid(p.at_ms)) {
                let _ = a.reply.send(Err(HistoryError::Time(p.at_ms)));
                continue;
            }
            for (key, point) in a.tick {
                days.entry(day_of(point.at_ms))
                    .or_default()
                    .push((key, point));
            }
            replies.push(a.reply);
        }
        let result = self.append_days(days);
        for reply in replies {
            let _ = reply.send(result.clone());
        }
    }

    fn append_days(&mut self, days: BTreeMap<i64, Vec<(SeriesKey, Usage)>>) -> Result<()> {
        self.partitions.check_space()?;
        for (day, mut points) in days {
            self.partitions.advance(day);
            self.partitions.write(day, |p| {
                p.append(&mut points)?;
                p.sync()
            })?;
        }
        Ok(())
    }

    fn begin(&mut self, call: Call) -> Begun {
        match call {
            Call::Close { reply } => Begun::Close(reply),
            Call::Expire { now_ms, reply } => Begun::Job(Job::Expire { now_ms, reply }),
            Call::Series { reply } => Begun::Job(Job::Series {
                days: self.partitions.days(),
                found: Vec::new(),
                reply,
            }),
            Call::Range {
                key,
                since_ms,
                until_ms,
                limit,
                reply,
            } => Begun::Job(Job::Range(Range {
                key,
                since_ms,
                until_ms,
                limit,
                hour: hour_of(until_ms),
                found: Vec::new(),
                count: 0,
                reply,
            })),
            Call::Import { key, points, reply } => {
                if let Some(p) = points.iter().find(|p| !valid(p.at_ms)) {
                    let _ = reply.send(Err(HistoryError::Time(p.at_ms)));
                    return Begun::Done;
                }
                let newest = points.iter().map(|p| p.at_ms).max().unwrap_or(0);
                let keep_from = newest - i64::from(self.options.keep_hours) * HOUR_MS;
                let mut hours: BTreeMap<i64, Vec<Usage>> = BTreeMap::new();
                for p in points.into_iter().filter(|p| p.at_ms >= keep_from) {
                    hours.entry(hour_of(p.at_ms)).or_default().push(p);
                }
                for run in hours.values_mut() {
                    run.sort_by_key(|p| p.at_ms);
                }
                Begun::Job(Job::Import(Import {
                    key,
                    hours,
                    added: 0,
                    reply,
                }))
            }
        }
    }

    /// One short step; gives the job back unless it is done.
    fn step(&mut self, job: Job) -> Option<Job> {
        match job {
            Job::Range(r) => self.step_range(r).map(Job::Range),
            Job::Import(i) => self.step_import(i).map(Job::Import),
            Job::Series {
                mut days,
                mut found,
                reply,
            } => {
                if let Some(day) = days.pop_front() {
                    match self.partitions.series(day) {
                        Ok(keys) => found.extend(keys),
                        Err(e) => {
                            let _ = reply.send(Err(e));
                            return None;
                        }
                    }
                    found.sort();
                    found.dedup();
                    return Some(Job::Series { days, found, reply });
                }
                let _ = reply.send(Ok(found));
                None
            }
            Job::Expire { now_ms, reply } => {
                let before = now_ms - i64::from(self.options.keep_hours) * HOUR_MS;
                let _ = reply.send(self.partitions.expire(before.div_euclid(DAY_MS)));
                None
            }
        }
    }

    fn step_range(&mut self, mut r: Range) -> Option<Range> {
        if r.reply.is_closed() {
            return None;
        }
        // Hours of days without a partition need no look.
        let hours_a_day = DAY_MS / HOUR_MS;
        match self
            .partitions
            .newest_day_up_to(r.hour.div_euclid(hours_a_day))
        {
            Some(day) => r.hour = r.hour.min(day * hours_a_day + hours_a_day - 1),
            None => r.hour = i64::MIN,
        }
        if r.count >= r.limit || r.hour < hour_of(r.since_ms) {
            let mut points: Vec<Usage> = r.found.into_iter().rev().flatten().collect();
            points.drain(..points.len().saturating_sub(r.limit));
            let _ = r.reply.send(Ok(points));
            return None;
        }
        match self.partitions.hour(&r.key, r.hour) {
            Ok(mut run) => {
                run.retain(|p| (r.since_ms..=r.until_ms).contains(&p.at_ms));
                r.count += run.len();
                r.found.push(run);
                r.hour -= 1;
                Some(r)
            }
            Err(e) => {
                let _ = r.reply.send(Err(e));
                None
            }
        }
    }

    fn step_import(&mut self, mut i: Import) -> Option<Import> {
        let Some((hour, _)) = i.hours.first_key_value() else {
            let _ = i.reply.send(Ok(i.added));
            return None;
        };
        let day = day_of(hour * HOUR_MS);
        let later = i.hours.split_off(&((day + 1) * (DAY_MS / HOUR_MS)));
        let hours = std::mem::replace(&mut i.hours, later);
        let result = self.partitions.check_space().and_then(|()| {
            self.partitions.write(day, |p| {
                let mut added = 0;
                for points in hours.values() {
                    added += p.merge(&i.key, points)?;
                }
                p.sync()?;
                Ok(added)
            })
        });
        match result {
            Ok(added) => {
                i.added += added;
                Some(i)
            }
            Err(e) => {
                let _ = i.reply.send(Err(e));
                None
            }
        }
    }
}

/// What became of a call.
enum Begun {
    Job(Job),
    Done,
    Close(Reply<()>),
}

fn valid(at_ms: i64) -> bool {
    (0..END_OF_TIME).contains(&at_ms)
}
