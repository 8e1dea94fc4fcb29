//! Calls to the thread, and how they are served in short steps.

use std::collections::{BTreeMap, VecDeque};

use super::codec;
use super::partitions::Partitions;
use super::period::{DAY_MS, HOUR_MS, Slot};
use super::point::Point;
use super::query::{Bounds, Query};
use super::worker::{Begun, Reply, Result, Worker, valid};
use super::{HistoryError, Page, SeriesKey, StoredTier};
use crate::rollup::{Rollup, roll_up};
use crate::usage::Usage;

/// A call.
pub(super) enum Call {
    Range {
        key: SeriesKey,
        since_ms: i64,
        until_ms: i64,
        limit: usize,
        reply: Reply<Vec<Usage>>,
    },
    Query {
        key: SeriesKey,
        query: Query,
        /// Columns that are wanted, a bit for each identifier.
        wanted: u64,
        reply: Reply<Page>,
    },
    /// All that a tier has of a series.
    Rollups {
        key: SeriesKey,
        tier: StoredTier,
        reply: Reply<Vec<Rollup>>,
    },
    Series {
        reply: Reply<Vec<SeriesKey>>,
    },
    Import {
        key: SeriesKey,
        points: Vec<Usage>,
        reply: Reply<u64>,
    },
    ImportRollups {
        key: SeriesKey,
        tier: StoredTier,
        points: Vec<Rollup>,
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
pub(super) enum Job {
    Range(Range),
    Query(QueryJob),
    Series {
        slots: VecDeque<(StoredTier, Slot)>,
        found: Vec<SeriesKey>,
        reply: Reply<Vec<SeriesKey>>,
    },
    Import(Import<Usage>),
    ImportRollups(StoredTier, Import<Rollup>),
    Expire {
        now_ms: i64,
        reply: Reply<u64>,
    },
}

/// Points as they are, the latest first.
pub(super) struct Range {
    key: SeriesKey,
    since_ms: i64,
    end_ms: i64,
    limit: usize,
    /// Partitions to read, the latest last.
    slots: Vec<Slot>,
    /// Of the latest partition first.
    found: Vec<Vec<Usage>>,
    count: usize,
    reply: Reply<Vec<Usage>>,
}

/// Points of any tier, the latest first.
pub(super) struct QueryJob {
    key: SeriesKey,
    step_ms: i64,
    limit: usize,
    wanted: u64,
    /// What to read, the latest last.
    parts: Vec<(StoredTier, Slot, i64, i64)>,
    found: Vec<Vec<Rollup>>,
    count: usize,
    reply: Answer,
}

/// Who waits for a query.
enum Answer {
    Page(Reply<Page>),
    Points(Reply<Vec<Rollup>>),
}

/// Points of another host, by the partition they belong to.
pub(super) struct Import<P> {
    key: SeriesKey,
    slots: BTreeMap<i64, (Slot, Vec<P>)>,
    added: u64,
    reply: Reply<u64>,
}

/// Points to import in time order, by partition; those before `from_ms` are left out.
fn by_slot<P: Point>(
    tier: &Partitions<P>,
    mut points: Vec<P>,
    from_ms: i64,
) -> BTreeMap<i64, (Slot, Vec<P>)> {
    points.retain(|p| p.at_ms() >= from_ms);
    points.sort_by_key(Point::at_ms);
    let mut slots: BTreeMap<i64, (Slot, Vec<P>)> = BTreeMap::new();
    for p in points {
        let slot = tier.slot_of(p.at_ms());
        let (_, run) = slots
            .entry(slot.start_ms)
            .or_insert_with(|| (slot, Vec::new()));
        if run.last().is_none_or(|l| l.at_ms() < p.at_ms()) {
            run.push(p);
        }
    }
    slots
}

impl Worker {
    pub(super) fn begin(&mut self, call: Call) -> Begun {
        match call {
            Call::Close { reply } => Begun::Close(reply),
            Call::Expire { now_ms, reply } => {
                if valid(now_ms) {
                    self.tiers.newest_ms = self.tiers.newest_ms.max(now_ms);
                }
                Begun::Job(Job::Expire { now_ms, reply })
            }
            Call::Series { reply } => {
                let (from, to) = (i64::MIN, i64::MAX);
                let tag = |tier| move |s| (tier, s);
                let raw = self.tiers.raw.slots(from, to).into_iter();
                let minute = self.tiers.minute.slots(from, to).into_iter();
                let quarter = self.tiers.quarter.slots(from, to).into_iter();
                let slots = raw
                    .map(tag(StoredTier::Raw))
                    .chain(minute.map(tag(StoredTier::Minute)))
                    .chain(quarter.map(tag(StoredTier::Quarter)));
                Begun::Job(Job::Series {
                    slots: slots.collect(),
                    found: Vec::new(),
                    reply,
                })
            }
            Call::Range {
                key,
                since_ms,
                until_ms,
                limit,
                reply,
            } => {
                let end_ms = until_ms.saturating_add(1);
                Begun::Job(Job::Range(Range {
                    key,
                    since_ms,
                    end_ms,
                    limit,
                    slots: self.tiers.raw.slots(since_ms, end_ms),
                    found: Vec::new(),
                    count: 0,
                    reply,
                }))
            }
            Call::Query {
                key,
                query,
                wanted,
                reply,
            } => {
                let bounds = Bounds::of(&self.tiers, self.interval_ms);
                let step_ms = bounds.step(&query);
                let plan = bounds.plan(query.since_ms, query.until_ms, step_ms);
                Begun::Job(Job::Query(QueryJob {
                    key,
                    step_ms,
                    limit: query.limit,
                    wanted,
                    parts: self.parts(&plan),
                    found: Vec::new(),
                    count: 0,
                    reply: Answer::Page(reply),
                }))
            }
            Call::Rollups { key, tier, reply } => Begun::Job(Job::Query(QueryJob {
                key,
                step_ms: 0,
                limit: usize::MAX,
                wanted: codec::ALL,
                parts: self.parts(&[(tier, i64::MIN, i64::MAX)]),
                found: Vec::new(),
                count: 0,
                reply: Answer::Points(reply),
            })),
            Call::Import { key, points, reply } => {
                if let Some(p) = points.iter().find(|p| !valid(p.at_ms)) {
                    let _ = reply.send(Err(HistoryError::Time(p.at_ms)));
                    return Begun::Done;
                }
                let newest = points.iter().map(|p| p.at_ms).max().unwrap_or(0);
                let from = newest - self.tiers.keep_ms(StoredTier::Raw);
                Begun::Job(Job::Import(Import {
                    key,
                    slots: by_slot(&self.tiers.raw, points, from),
                    added: 0,
                    reply,
                }))
            }
            Call::ImportRollups {
                key,
                tier,
                points,
                reply,
            } => {
                if let Some(p) = points.iter().find(|p| !valid(p.at_ms())) {
                    let _ = reply.send(Err(HistoryError::Time(p.at_ms())));
                    return Begun::Done;
                }
                let newest = points.iter().map(Rollup::at_ms).max().unwrap_or(0);
                let from = newest - self.tiers.keep_ms(tier);
                let tiers = &self.tiers;
                let slots = match tier {
                    StoredTier::Raw => BTreeMap::new(),
                    StoredTier::Minute => by_slot(&tiers.minute, points, from),
                    StoredTier::Quarter => by_slot(&tiers.quarter, points, from),
                };
                let import = Import {
                    key,
                    slots,
                    added: 0,
                    reply,
                };
                Begun::Job(Job::ImportRollups(tier, import))
            }
        }
    }

    /// A plan by partitions.
    fn parts(&self, plan: &[(StoredTier, i64, i64)]) -> Vec<(StoredTier, Slot, i64, i64)> {
        let mut parts = Vec::new();
        for &(tier, from, to) in plan {
            let slots = match tier {
                StoredTier::Raw => self.tiers.raw.slots(from, to),
                StoredTier::Minute => self.tiers.minute.slots(from, to),
                StoredTier::Quarter => self.tiers.quarter.slots(from, to),
            };
            parts.extend(
                slots
                    .into_iter()
                    .map(|s| (tier, s, from.max(s.start_ms), to.min(s.end_ms))),
            );
        }
        parts
    }

    /// One short step; gives the job back unless it is done.
    pub(super) fn step(&mut self, job: Job, upkeep: bool) -> Option<Job> {
        match job {
            Job::Range(r) => self.step_range(r).map(Job::Range),
            Job::Query(q) => self.step_query(q).map(Job::Query),
            Job::Import(i) => self.step_import(i).map(Job::Import),
            Job::ImportRollups(tier, i) => self
                .step_import_rollups(tier, i)
                .map(|i| Job::ImportRollups(tier, i)),
            Job::Series {
                mut slots,
                mut found,
                reply,
            } => {
                if let Some((tier, slot)) = slots.pop_front() {
                    let keys = match tier {
                        StoredTier::Raw => self.tiers.raw.series(&slot),
                        StoredTier::Minute => self.tiers.minute.series(&slot),
                        StoredTier::Quarter => self.tiers.quarter.series(&slot),
                    };
                    match keys {
                        Ok(keys) => found.extend(keys),
                        Err(e) => {
                            let _ = reply.send(Err(e));
                            return None;
                        }
                    }
                    found.sort();
                    found.dedup();
                    return Some(Job::Series {
                        slots,
                        found,
                        reply,
                    });
                }
                let _ = reply.send(Ok(found));
                None
            }
            // What is to be dropped is rolled up first.
            job @ Job::Expire { .. } if upkeep => Some(job),
            Job::Expire { now_ms, reply } => {
                let _ = reply.send(self.tiers.expire(now_ms));
                None
            }
        }
    }

    fn step_range(&mut self, mut r: Range) -> Option<Range> {
        if r.reply.is_closed() {
            return None;
        }
        let next = if r.count < r.limit {
            r.slots.pop()
        } else {
            None
        };
        let Some(slot) = next else {
            let mut points: Vec<Usage> = r.found.into_iter().rev().flatten().collect();
            points.drain(..points.len().saturating_sub(r.limit));
            let _ = r.reply.send(Ok(points));
            return None;
        };
        match self
            .tiers
            .raw
            .range(&slot, &r.key, r.since_ms, r.end_ms, codec::ALL)
        {
            Ok(run) => {
                r.count += run.len();
                r.found.push(run);
                Some(r)
            }
            Err(e) => {
                let _ = r.reply.send(Err(e));
                None
            }
        }
    }

    fn step_query(&mut self, mut q: QueryJob) -> Option<QueryJob> {
        let closed = match &q.reply {
            Answer::Page(r) => r.is_closed(),
            Answer::Points(r) => r.is_closed(),
        };
        if closed {
            return None;
        }
        let next = if q.count < q.limit {
            q.parts.pop()
        } else {
            None
        };
        let Some((tier, slot, from, to)) = next else {
            q.finish();
            return None;
        };
        let tiers = &mut self.tiers;
        let run = match tier {
            StoredTier::Raw => tiers
                .raw
                .range(&slot, &q.key, from, to, q.wanted)
                .map(|run| run.into_iter().map(Rollup::from).collect()),
            StoredTier::Minute => tiers.minute.range(&slot, &q.key, from, to, q.wanted),
            StoredTier::Quarter => tiers.quarter.range(&slot, &q.key, from, to, q.wanted),
        };
        match run {
            Ok(run) => {
                let run = if q.step_ms > 0 {
                    roll_up(&run, q.step_ms)
                } else {
                    run
                };
                // Two partitions may share a step, so one more than the limit is read.
                q.count += run.len().saturating_sub(1);
                q.found.push(run);
                Some(q)
            }
            Err(e) => {
                q.fail(e);
                None
            }
        }
    }

    fn step_import(&mut self, mut i: Import<Usage>) -> Option<Import<Usage>> {
        let Some((_, (slot, points))) = i.slots.pop_first() else {
            let _ = i.reply.send(Ok(i.added));
            return None;
        };
        let result = self.import_points(&i.key, &slot, &points);
        answer_import(i, result)
    }

    fn import_points(&mut self, key: &SeriesKey, slot: &Slot, points: &[Usage]) -> Result<u64> {
        self.tiers.make_room()?;
        let added = self.tiers.raw.write(slot, |p| {
            let added = p.merge(key, points)?;
            p.sync()?;
            Ok(added)
        })?;
        if let Some(first) = points.first() {
            self.tiers.touch_points(first.at_ms);
        }
        // Hours that are rolled up already get this series now.
        let rolled = self.tiers.rolled.minute_ms;
        let mut hours: Vec<i64> = points
            .iter()
            .filter(|p| p.at_ms < rolled)
            .map(|p| p.at_ms.div_euclid(HOUR_MS) * HOUR_MS)
            .collect();
        hours.dedup();
        for hour in &hours {
            self.tiers.roll_hour(std::slice::from_ref(key), *hour)?;
        }
        self.after_minutes(key, &hours)?;
        Ok(added)
    }

    /// Minutes of these times were written: makes them durable, and their days that are rolled up
    /// already get this series now.
    fn after_minutes(&mut self, key: &SeriesKey, times: &[i64]) -> Result<()> {
        let mut days: Vec<i64> = times
            .iter()
            .map(|t| t.div_euclid(DAY_MS) * DAY_MS)
            .collect();
        days.dedup();
        for day in days {
            let slot = self.tiers.minute.slot_of(day);
            self.tiers.minute.write(&slot, |p| p.sync())?;
            if day < self.tiers.rolled.quarter_ms {
                self.tiers.roll_day(std::slice::from_ref(key), day)?;
                let slot = self.tiers.quarter.slot_of(day);
                self.tiers.quarter.write(&slot, |p| p.sync())?;
            }
        }
        Ok(())
    }

    fn step_import_rollups(
        &mut self,
        tier: StoredTier,
        mut i: Import<Rollup>,
    ) -> Option<Import<Rollup>> {
        let Some((_, (slot, points))) = i.slots.pop_first() else {
            let _ = i.reply.send(Ok(i.added));
            return None;
        };
        let result = self.import_rollups(tier, &i.key, &slot, &points);
        answer_import(i, result)
    }

    fn import_rollups(
        &mut self,
        tier: StoredTier,
        key: &SeriesKey,
        slot: &Slot,
        points: &[Rollup],
    ) -> Result<u64> {
        self.tiers.make_room()?;
        let partitions = match tier {
            StoredTier::Raw => return Ok(0),
            StoredTier::Minute => &mut self.tiers.minute,
            StoredTier::Quarter => &mut self.tiers.quarter,
        };
        let added = partitions.write(slot, |p| {
            let added = p.merge(key, points)?;
            p.sync()?;
            Ok(added)
        })?;
        if tier == StoredTier::Minute {
            if let Some(first) = points.first() {
                self.tiers.touch_minutes(first.at_ms());
            }
            let times: Vec<i64> = points.iter().map(Rollup::at_ms).collect();
            self.after_minutes(key, &times)?;
        }
        Ok(added)
    }
}

fn answer_import<P>(mut i: Import<P>, result: Result<u64>) -> Option<Import<P>> {
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

impl QueryJob {
    fn finish(self) {
        let mut points: Vec<Rollup> = self.found.into_iter().rev().flatten().collect();
        if self.step_ms > 0 {
            points = roll_up(&points, self.step_ms);
        }
        points.drain(..points.len().saturating_sub(self.limit));
        match self.reply {
            Answer::Page(reply) => {
                let _ = reply.send(Ok(Page {
                    step_ms: self.step_ms,
                    points,
                }));
            }
            Answer::Points(reply) => {
                let _ = reply.send(Ok(points));
            }
        }
    }

    fn fail(self, e: HistoryError) {
        match self.reply {
            Answer::Page(reply) => {
                let _ = reply.send(Err(e));
            }
            Answer::Points(reply) => {
                let _ = reply.send(Err(e));
            }
        }
    }
}
