//! The three tiers, and what is to be done among them: rolling up, packing, dropping, and giving
//! up old points when there is no room.

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};

use super::codec;
use super::files;
use super::partition::Packer;
use super::partitions::{Partitions, Tier};
use super::period::{DAY_MS, HOUR_MS, Period, Slot};
use super::rolled::Rolled;
use super::{HistoryError, Options, Problems, SeriesKey, StoredTier};
use crate::rollup::{Rollup, roll_up};
use crate::usage::Usage;

type Result<T> = std::result::Result<T, HistoryError>;

/// Milliseconds of the second tier's steps.
pub(super) const MINUTE_MS: i64 = 60_000;
/// Milliseconds of the third tier's steps.
pub(super) const QUARTER_MS: i64 = 900_000;
/// Points may come so much late before their hour is rolled up.
const GRACE_MS: i64 = 60_000;
/// Series rolled up in one step.
const ROLL_SERIES: usize = 16;

const RAW: Tier = Tier {
    name: "raw",
    period: Period::TwoHours,
    bucket_ms: HOUR_MS,
};
const MINUTE: Tier = Tier {
    name: "1m",
    period: Period::Day,
    bucket_ms: HOUR_MS,
};
const QUARTER: Tier = Tier {
    name: "15m",
    period: Period::Month,
    bucket_ms: DAY_MS,
};

/// All that is on disk.
pub(super) struct Tiers {
    root: PathBuf,
    options: Options,
    problems: Problems,
    pub(super) raw: Partitions<Usage>,
    pub(super) minute: Partitions<Rollup>,
    pub(super) quarter: Partitions<Rollup>,
    pub(super) rolled: Rolled,
    /// Newest time known: of the points that came last, or of the clock.
    pub(super) newest_ms: i64,
    /// Oldest time of which points, and minutes, were written since rolling up of an hour, a day,
    /// began: what is under way must be done again when it is of that time.
    touched_ms: [i64; 2],
    /// Partitions that cannot be packed, for now.
    unpackable: HashSet<(StoredTier, i64)>,
    /// When the size was looked at, by `newest_ms`.
    measured_ms: i64,
}

/// Something to do, in steps.
pub(super) enum Upkeep {
    /// An hour's points to minutes.
    Minutes(i64, VecDeque<SeriesKey>),
    /// A day's minutes to quarters.
    Quarters(i64, VecDeque<SeriesKey>),
    /// A partition to its packed form.
    Pack(StoredTier, Slot, Packer),
}

impl Tiers {
    pub(super) fn open(root: &Path, options: Options, problems: Problems) -> Result<Self> {
        let io = |e: std::io::Error| HistoryError::Io {
            path: root.to_owned(),
            message: e.to_string(),
        };
        adopt_days(root, &root.join(RAW.name)).map_err(io)?;
        let floor = options.floor_mib;
        Ok(Self {
            root: root.to_owned(),
            raw: Partitions::new(root, RAW, floor, problems.clone())?,
            minute: Partitions::new(root, MINUTE, floor, problems.clone())?,
            quarter: Partitions::new(root, QUARTER, floor, problems.clone())?,
            rolled: Rolled::read(root),
            newest_ms: i64::MIN,
            touched_ms: [i64::MAX; 2],
            unpackable: HashSet::new(),
            measured_ms: i64::MIN,
            options,
            problems,
        })
    }

    /// Oldest time of which there are points, minutes and quarters.
    pub(super) fn oldest(&self) -> [Option<i64>; 3] {
        [
            self.raw.oldest_ms(),
            self.minute.oldest_ms(),
            self.quarter.oldest_ms(),
        ]
    }

    /// Newest time of which anything is known.
    pub(super) fn newest(&self) -> Option<i64> {
        if self.newest_ms != i64::MIN {
            return Some(self.newest_ms);
        }
        let minute = self.minute.newest_ms().map(|t| t + MINUTE_MS);
        let quarter = self.quarter.newest_ms().map(|t| t + QUARTER_MS);
        self.raw.newest_ms().max(minute).max(quarter)
    }

    /// Milliseconds that a tier is kept.
    pub(super) fn keep_ms(&self, tier: StoredTier) -> i64 {
        match tier {
            StoredTier::Raw => i64::from(self.options.raw_hours) * HOUR_MS,
            StoredTier::Minute => i64::from(self.options.minute_days) * DAY_MS,
            StoredTier::Quarter => i64::from(self.options.quarter_days) * DAY_MS,
        }
    }

    fn write_rolled(&self) -> Result<()> {
        self.rolled.write(&self.root).map_err(|e| HistoryError::Io {
            path: self.root.clone(),
            message: e.to_string(),
        })
    }

    /// Points of this time and later ones were merged beside what comes in.
    pub(super) fn touch_points(&mut self, at_ms: i64) {
        self.touched_ms[0] = self.touched_ms[0].min(at_ms);
    }

    /// Minutes likewise.
    pub(super) fn touch_minutes(&mut self, at_ms: i64) {
        self.touched_ms[1] = self.touched_ms[1].min(at_ms);
    }

    /// Points of this time are about to be written.
    pub(super) fn expect_points(&mut self, at_ms: i64) -> Result<()> {
        self.touch_points(at_ms);
        if self.rolled.lower(at_ms) {
            self.write_rolled()?;
        }
        Ok(())
    }

    /// Something among the tiers failed: told once, and tried again when the clock has moved on.
    pub(super) fn upkeep_failed(&mut self, e: &HistoryError) {
        tracing::warn!("the history's upkeep failed and is tried again: {e}");
        self.newest_ms = i64::MIN;
    }

    /// The next thing to do, if there is any.
    pub(super) fn next_upkeep(&mut self) -> Result<Option<Upkeep>> {
        if self.newest_ms == i64::MIN {
            return Ok(None);
        }
        if let Some(hour) = self.next_hour() {
            let slot = self.raw.slot_of(hour);
            self.touched_ms[0] = i64::MAX;
            return Ok(Some(Upkeep::Minutes(hour, self.raw.series(&slot)?)));
        }
        if let Some(day) = self.next_day() {
            let slot = self.minute.slot_of(day);
            self.touched_ms[1] = i64::MAX;
            return Ok(Some(Upkeep::Quarters(day, self.minute.series(&slot)?)));
        }
        self.next_pack()
    }

    /// The oldest hour with points that is over and not rolled up.
    fn next_hour(&self) -> Option<i64> {
        let from = self.rolled.minute_ms;
        let slot = *self.raw.slots(from, self.newest_ms).first()?;
        let hour = from.max(slot.start_ms);
        (hour + HOUR_MS + GRACE_MS <= self.newest_ms).then_some(hour)
    }

    /// The oldest day with minutes that is over and not rolled up.
    fn next_day(&self) -> Option<i64> {
        let from = self.rolled.quarter_ms;
        let slot = *self.minute.slots(from, self.rolled.minute_ms).first()?;
        let day = from.max(slot.start_ms);
        (day + DAY_MS <= self.rolled.minute_ms).then_some(day)
    }

    fn next_pack(&mut self) -> Result<Option<Upkeep>> {
        let until = self.newest_ms - GRACE_MS;
        let raw = self.raw.slots(i64::MIN, self.rolled.minute_ms);
        let minute = self.minute.slots(i64::MIN, self.rolled.quarter_ms);
        let quarter = self.quarter.slots(i64::MIN, self.rolled.quarter_ms);
        let all = raw
            .into_iter()
            .map(|s| (StoredTier::Raw, s, self.rolled.minute_ms))
            .chain(
                minute
                    .into_iter()
                    .map(|s| (StoredTier::Minute, s, self.rolled.quarter_ms)),
            )
            .chain(
                quarter
                    .into_iter()
                    .map(|s| (StoredTier::Quarter, s, self.rolled.quarter_ms)),
            );
        let over: Vec<(StoredTier, Slot)> = all
            .filter(|(tier, s, rolled)| {
                s.end_ms <= until
                    && s.end_ms <= *rolled
                    && s.end_ms > self.newest_ms - self.keep_ms(*tier)
                    && !self.unpackable.contains(&(*tier, s.start_ms))
            })
            .map(|(tier, s, _)| (tier, s))
            .collect();
        for (tier, slot) in over {
            let packer = match tier {
                StoredTier::Raw => self.raw.begin_pack(&slot)?,
                StoredTier::Minute => self.minute.begin_pack(&slot)?,
                StoredTier::Quarter => self.quarter.begin_pack(&slot)?,
            };
            // Packed, damaged, or no room: not looked at again before something changes.
            self.unpackable.insert((tier, slot.start_ms));
            if let Some(packer) = packer {
                return Ok(Some(Upkeep::Pack(tier, slot, packer)));
            }
        }
        Ok(None)
    }

    /// One short step; gives the rest back.
    pub(super) fn step_upkeep(&mut self, job: Upkeep) -> Result<Option<Upkeep>> {
        match job {
            Upkeep::Minutes(hour, mut series) => {
                if series.is_empty() {
                    let slot = self.minute.slot_of(hour);
                    if self.minute.is_there(&slot) {
                        self.minute.write(&slot, |p| p.sync())?;
                    }
                    if self.touched_ms[0] >= hour + HOUR_MS {
                        self.rolled.minute_ms = hour + HOUR_MS;
                        self.write_rolled()?;
                    }
                    return Ok(None);
                }
                let some: Vec<SeriesKey> = series.drain(..series.len().min(ROLL_SERIES)).collect();
                self.roll_hour(&some, hour)?;
                Ok(Some(Upkeep::Minutes(hour, series)))
            }
            Upkeep::Quarters(day, mut series) => {
                if series.is_empty() {
                    let slot = self.quarter.slot_of(day);
                    if self.quarter.is_there(&slot) {
                        self.quarter.write(&slot, |p| p.sync())?;
                    }
                    if self.touched_ms[1] >= day + DAY_MS {
                        self.rolled.quarter_ms = day + DAY_MS;
                        self.write_rolled()?;
                    }
                    return Ok(None);
                }
                let some: Vec<SeriesKey> = series.drain(..series.len().min(ROLL_SERIES)).collect();
                self.roll_day(&some, day)?;
                Ok(Some(Upkeep::Quarters(day, series)))
            }
            Upkeep::Pack(tier, slot, packer) => {
                let rest = match tier {
                    StoredTier::Raw => self.raw.step_pack(&slot, packer)?,
                    StoredTier::Minute => self.minute.step_pack(&slot, packer)?,
                    StoredTier::Quarter => self.quarter.step_pack(&slot, packer)?,
                };
                Ok(rest.map(|p| Upkeep::Pack(tier, slot, p)))
            }
        }
    }

    /// Minutes of one hour of some series from their points. Durable after a sync.
    pub(super) fn roll_hour(&mut self, keys: &[SeriesKey], hour: i64) -> Result<()> {
        let slot = self.raw.slot_of(hour);
        let mut all = Vec::with_capacity(keys.len());
        for key in keys {
            let points = self
                .raw
                .range(&slot, key, hour, hour + HOUR_MS, codec::ALL)?;
            let points: Vec<Rollup> = points.into_iter().map(Rollup::from).collect();
            all.push((key, roll_up(&points, MINUTE_MS)));
        }
        all.retain(|(_, rolled)| !rolled.is_empty());
        if all.is_empty() {
            return Ok(());
        }
        self.touch_minutes(hour);
        merge_rolled(&mut self.minute, hour, &all)
    }

    /// Quarters of one day of some series from their minutes. Durable after a sync.
    pub(super) fn roll_day(&mut self, keys: &[SeriesKey], day: i64) -> Result<()> {
        let slot = self.minute.slot_of(day);
        let mut all = Vec::with_capacity(keys.len());
        for key in keys {
            let points = self
                .minute
                .range(&slot, key, day, day + DAY_MS, codec::ALL)?;
            all.push((key, roll_up(&points, QUARTER_MS)));
        }
        all.retain(|(_, rolled)| !rolled.is_empty());
        if all.is_empty() {
            return Ok(());
        }
        merge_rolled(&mut self.quarter, day, &all)
    }

    /// Drops what is over: only what is in the next tier, durably. Returns how many partitions.
    pub(super) fn expire(&mut self, now_ms: i64) -> Result<u64> {
        let mut dropped = 0;
        for (tier, slot) in self.droppable(true) {
            if slot.end_ms <= now_ms - self.keep_ms(tier) {
                let name = self.drop_slot(tier, &slot)?;
                tracing::info!("history partition {name} dropped: its time is over");
                dropped += 1;
            }
        }
        self.raw
            .expire_broken(now_ms - self.keep_ms(StoredTier::Raw))?;
        self.minute
            .expire_broken(now_ms - self.keep_ms(StoredTier::Minute))?;
        self.quarter
            .expire_broken(now_ms - self.keep_ms(StoredTier::Quarter))?;
        Ok(dropped)
    }

    /// Partitions that may go, in the order in which they are given up: points, minutes, quarters,
    /// the oldest first; never one that is not yet in the next tier, and the one that the newest
    /// points went to only when `current`.
    fn droppable(&self, current: bool) -> Vec<(StoredTier, Slot)> {
        let rolled = self.rolled;
        let raw = self.raw.slots(i64::MIN, rolled.minute_ms);
        let minute = self.minute.slots(i64::MIN, rolled.quarter_ms);
        let quarter = self.quarter.slots(i64::MIN, rolled.quarter_ms);
        let raw = raw
            .into_iter()
            .filter(|s| s.end_ms <= rolled.minute_ms && (current || !self.raw.is_current(s)))
            .map(|s| (StoredTier::Raw, s));
        let minute = minute
            .into_iter()
            .filter(|s| s.end_ms <= rolled.quarter_ms)
            .map(|s| (StoredTier::Minute, s));
        let quarter = quarter
            .into_iter()
            .filter(|s| s.end_ms <= rolled.quarter_ms)
            .map(|s| (StoredTier::Quarter, s));
        raw.chain(minute).chain(quarter).collect()
    }

    fn drop_slot(&mut self, tier: StoredTier, slot: &Slot) -> Result<String> {
        Ok(match tier {
            StoredTier::Raw => {
                self.raw.drop_slot(slot)?;
                self.raw.shown(slot)
            }
            StoredTier::Minute => {
                self.minute.drop_slot(slot)?;
                self.minute.shown(slot)
            }
            StoredTier::Quarter => {
                self.quarter.drop_slot(slot)?;
                self.quarter.shown(slot)
            }
        })
    }

    /// Free space above the floor, else old points are given up; refuses when that is not enough.
    pub(super) fn make_room(&mut self) -> Result<()> {
        loop {
            let free_mib = files::free_mib(&self.root).map_err(|e| HistoryError::Io {
                path: self.root.clone(),
                message: e.to_string(),
            })?;
            let floor_mib = self.options.floor_mib;
            if free_mib >= floor_mib {
                return Ok(());
            }
            let raw = |(tier, _): &(StoredTier, Slot)| *tier == StoredTier::Raw;
            let Some((tier, slot)) = self.droppable(false).into_iter().find(raw) else {
                return Err(HistoryError::Full {
                    dir: self.root.clone(),
                    free_mib,
                    floor_mib,
                });
            };
            let name = self.drop_slot(tier, &slot)?;
            self.problems.report(format!(
                "history partition {name} was dropped before its time: {free_mib} MiB free, \
                 {floor_mib} MiB needed; its minutes are kept"
            ));
        }
    }

    /// Keeps the whole within its budget, at most once a minute.
    pub(super) fn keep_budget(&mut self) -> Result<()> {
        let budget = self.options.max_mib << 20;
        if self.newest_ms < self.measured_ms.saturating_add(MINUTE_MS)
            && self.measured_ms != i64::MIN
        {
            return Ok(());
        }
        self.measured_ms = self.newest_ms;
        let mut size = self.raw.size() + self.minute.size() + self.quarter.size();
        for (tier, slot) in self.droppable(false) {
            if size <= budget {
                break;
            }
            size = size.saturating_sub(match tier {
                StoredTier::Raw => self.raw.size_of(&slot),
                StoredTier::Minute => self.minute.size_of(&slot),
                StoredTier::Quarter => self.quarter.size_of(&slot),
            });
            let name = self.drop_slot(tier, &slot)?;
            self.problems.report(format!(
                "history partition {name} was dropped before its time: the history had grown \
                 above history.max_mib ({})",
                self.options.max_mib
            ));
        }
        Ok(())
    }
}

/// Merges what was rolled up of some series into the partition of a time.
fn merge_rolled(
    tier: &mut Partitions<Rollup>,
    at_ms: i64,
    rolled: &[(&SeriesKey, Vec<Rollup>)],
) -> Result<()> {
    let slot = tier.slot_of(at_ms);
    let series = rolled.iter().map(|(key, run)| (*key, run.as_slice()));
    tier.write(&slot, |p| p.merge_all(series.clone()).map(drop))
}

/// Takes over the partitions of earlier versions: days beside the tiers.
fn adopt_days(root: &Path, raw: &Path) -> std::io::Result<()> {
    let mut moved = false;
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if Slot::parse(&name).is_some_and(|(slot, _)| slot.period == Period::Day) {
            files::make_dir(raw)?;
            std::fs::rename(entry.path(), raw.join(&name))?;
            moved = true;
        }
    }
    if moved {
        files::sync_dir(raw)?;
        files::sync_dir(root)?;
    }
    Ok(())
}
