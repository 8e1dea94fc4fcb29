//! One day of history: one sled database. Knows records and keys, not the ladder of repairs
//! around it (see `worker`). Any error or panic here means: drop it and open it anew; all state in
//! memory comes from the database.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use sled::Batch;

use super::files::{self, Mark};
use super::record::{self, HOUR_MS, Key, hour_of};
use super::{Problems, SeriesKey};
use crate::usage::Usage;

/// Points of one chunk.
const CHUNK: usize = 120;
/// Entries of one head record.
const HEAD_ENTRIES: usize = 256;
/// Points in the head above which it is sealed whatever the length of its series.
const HEAD_POINTS: usize = 50_000;
/// sled's page cache per partition, bytes.
const CACHE: u64 = 8 << 20;

pub(super) type Result<T> = std::result::Result<T, sled::Error>;

/// An open partition.
pub(super) struct Partition {
    name: String,
    mark_path: PathBuf,
    db: sled::Db,
    file: File,
    ids: HashMap<SeriesKey, u32>,
    next_id: u32,
    /// Points that are not sealed yet, in time order.
    head: BTreeMap<u32, Vec<Usage>>,
    head_keys: Vec<Vec<u8>>,
    head_points: usize,
    /// Newest sealed point of each series.
    sealed_to: HashMap<u32, i64>,
    seq: u64,
    sealed_points: u64,
    last_ms: i64,
    problems: Problems,
}

impl Partition {
    /// Opens or creates the database in `path` and checks every value in it. May panic when the
    /// files are damaged: sled does.
    pub(super) fn open(path: &Path, mark_path: PathBuf, problems: &Problems) -> Result<Self> {
        let db = sled::Config::new()
            .path(path)
            .cache_capacity(CACHE)
            .flush_every_ms(None)
            .open()?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let mut p = Self {
            name: name.into_owned(),
            mark_path,
            db,
            file: File::open(path.join("db"))?,
            ids: HashMap::new(),
            next_id: 0,
            head: BTreeMap::new(),
            head_keys: Vec::new(),
            head_points: 0,
            sealed_to: HashMap::new(),
            seq: 0,
            sealed_points: 0,
            last_ms: 0,
            problems: problems.clone(),
        };
        p.db.flush()?;
        files::sync_tree(path)?;
        p.scan()?;
        Ok(p)
    }

    fn scan(&mut self) -> Result<()> {
        let mut head = Vec::new();
        // Names first, so that damage can be named.
        let names = self.db.scan_prefix(b"s");
        let rest = self.db.range(..b"s".as_slice());
        let after = self.db.range(b"t".as_slice()..);
        for item in names.chain(rest).chain(after) {
            let (k, v) = item?;
            let good = match Key::parse(&k) {
                Some(Key::Chunk { series }) => {
                    self.next_id = self.next_id.max(series.saturating_add(1));
                    record::check(&k, &v)
                        .and_then(|(n, payload)| Ok((n, super::codec::bounds(payload)?)))
                        .map(|(n, (_, last))| {
                            self.sealed_points += u64::from(n);
                            self.last_ms = self.last_ms.max(last);
                            let to = self.sealed_to.entry(series).or_insert(last);
                            *to = last.max(*to);
                        })
                        .is_ok()
                }
                Some(Key::Head { seq }) => {
                    self.seq = self.seq.max(seq);
                    record::head_entries(&k, &v)
                        .map(|entries| {
                            self.head_keys.push(k.to_vec());
                            head.extend(entries);
                        })
                        .is_ok()
                }
                Some(Key::Meta) => record::meta(&v)
                    .map(|(seq, _)| self.seq = self.seq.max(seq))
                    .is_ok(),
                Some(Key::Series { series }) => {
                    self.next_id = self.next_id.max(series.saturating_add(1));
                    record::check(&k, &v)
                        .ok()
                        .and_then(|(_, json)| serde_json::from_slice(json).ok())
                        .map(|key: SeriesKey| self.ids.insert(key, series))
                        .is_some()
                }
                None => false,
            };
            if !good {
                self.damaged(&k);
            }
        }
        for (series, point) in head {
            self.next_id = self.next_id.max(series.saturating_add(1));
            self.add_to_head(series, &point);
        }
        let named: HashSet<u32> = self.ids.values().copied().collect();
        let with_points: BTreeSet<u32> = self
            .sealed_to
            .keys()
            .chain(self.head.keys())
            .copied()
            .collect();
        for id in with_points.iter().filter(|id| !named.contains(id)) {
            self.problems.report(format!(
                "history partition {}: the name of series {id} is lost, its points are left out",
                self.name
            ));
        }
        Ok(())
    }

    fn damaged(&self, key: &[u8]) {
        let what = match Key::parse(key) {
            Some(Key::Chunk { series }) => {
                let of = self.ids.iter().find(|(_, id)| **id == series);
                let of = of.map_or(format!("series {series}"), |(k, _)| k.to_string());
                let ms = key[13..21].try_into().map_or(0, i64::from_be_bytes);
                format!("the points of {of} from {ms} ms on")
            }
            Some(Key::Head { seq }) => format!("the points of append {seq}"),
            Some(Key::Meta) => "its summary".into(),
            Some(Key::Series { series }) => format!("the name of series {series}"),
            None => "a record with an unknown key".into(),
        };
        self.problems.report(format!(
            "history partition {}: {what} are damaged and left out",
            self.name
        ));
    }

    fn add_to_head(&mut self, series: u32, point: &Usage) {
        let run = self.head.entry(series).or_default();
        if let Err(at) = run.binary_search_by_key(&point.at_ms, |p| p.at_ms) {
            run.insert(at, *point);
            self.head_points += 1;
            self.last_ms = self.last_ms.max(point.at_ms);
        }
    }

    /// What it holds, to compare with the mark.
    pub(super) fn mark(&self) -> Mark {
        Mark {
            seq: self.seq,
            points: self.sealed_points + self.head_points as u64,
            last_ms: self.last_ms,
        }
    }

    /// Never uses a sequence number up to `seq` again.
    pub(super) fn skip_to(&mut self, seq: u64) {
        self.seq = self.seq.max(seq);
    }

    /// Series that have or had points here.
    pub(super) fn series(&self) -> Vec<SeriesKey> {
        self.ids.keys().cloned().collect()
    }

    /// Are there points that are not sealed?
    pub(super) fn has_head(&self) -> bool {
        self.head_points > 0
    }

    /// Adds points of this day; those already there are left as they are. Durable after
    /// [`Self::sync`].
    pub(super) fn append(&mut self, points: &mut [(SeriesKey, Usage)]) -> Result<()> {
        points.sort_by_key(|(_, p)| p.at_ms);
        for hour in points.chunk_by(|a, b| hour_of(a.1.at_ms) == hour_of(b.1.at_ms)) {
            self.append_hour(hour)?;
        }
        Ok(())
    }

    fn append_hour(&mut self, points: &[(SeriesKey, Usage)]) -> Result<()> {
        let Some(hour) = points.first().map(|(_, p)| hour_of(p.at_ms)) else {
            return Ok(());
        };
        let head_hour = self
            .head
            .values()
            .flatten()
            .next()
            .map(|p| hour_of(p.at_ms));
        if head_hour.is_some_and(|h| h < hour) {
            self.seal()?;
        }
        let late_hour = head_hour.is_some_and(|h| h > hour);
        let mut batch = Batch::default();
        let mut fresh: Vec<(u32, Usage)> = Vec::with_capacity(points.len());
        let mut seen = HashSet::new();
        let mut late: BTreeMap<u32, Vec<Usage>> = BTreeMap::new();
        for (key, point) in points {
            let id = self.id(key, &mut batch);
            if late_hour || self.sealed_to.get(&id).is_some_and(|to| point.at_ms <= *to) {
                late.entry(id).or_default().push(*point);
            } else if !self.in_head(id, point.at_ms) && seen.insert((id, point.at_ms)) {
                fresh.push((id, *point));
            }
        }
        let mut keys = Vec::new();
        let seq = self.seq + 1;
        for (part, entries) in fresh.chunks(HEAD_ENTRIES).enumerate() {
            let key = record::head_key(seq, part as u16);
            let value = record::head_value(&key, entries);
            batch.insert(key.clone(), value);
            keys.push(key);
        }
        let mut added = 0;
        for (id, run) in &late {
            added += self.merge_into(&mut batch, *id, hour, run)?;
        }
        if added > 0 {
            batch.insert(
                record::META,
                record::meta_value(seq, self.sealed_points + added),
            );
        }
        self.db.apply_batch(batch)?;
        if added > 0 || !keys.is_empty() {
            self.seq = seq;
        }
        self.sealed_points += added;
        self.head_keys.extend(keys);
        for (id, point) in fresh {
            self.add_to_head(id, &point);
        }
        if added > 0 {
            self.note_sealed(&late);
        }
        if self.head_points > HEAD_POINTS || self.head.values().any(|run| run.len() >= CHUNK) {
            self.seal()?;
        }
        Ok(())
    }

    fn note_sealed(&mut self, runs: &BTreeMap<u32, Vec<Usage>>) {
        for (id, last) in runs
            .iter()
            .filter_map(|(id, r)| Some((id, r.last()?.at_ms)))
        {
            let to = self.sealed_to.entry(*id).or_insert(last);
            *to = last.max(*to);
            self.last_ms = self.last_ms.max(last);
        }
    }

    fn in_head(&self, id: u32, at_ms: i64) -> bool {
        self.head
            .get(&id)
            .is_some_and(|run| run.binary_search_by_key(&at_ms, |p| p.at_ms).is_ok())
    }

    fn id(&mut self, key: &SeriesKey, batch: &mut Batch) -> u32 {
        if let Some(id) = self.ids.get(key) {
            return *id;
        }
        let id = self.next_id;
        self.next_id = self.next_id.saturating_add(1);
        let k = record::series_key(id);
        let json = serde_json::to_vec(key).unwrap_or_default();
        let v = record::wrap(&k, 1, &json);
        batch.insert(k, v);
        self.ids.insert(key.clone(), id);
        id
    }

    /// Turns the head into chunks, in one batch with the deletion of the head's records.
    pub(super) fn seal(&mut self) -> Result<()> {
        if self.head_points == 0 {
            return Ok(());
        }
        let mut batch = Batch::default();
        let mut added = 0;
        let head = std::mem::take(&mut self.head);
        for (id, run) in &head {
            for hour in run.chunk_by(|a, b| hour_of(a.at_ms) == hour_of(b.at_ms)) {
                let h = hour_of(hour[0].at_ms);
                if self
                    .sealed_to
                    .get(id)
                    .is_some_and(|to| *to >= hour[0].at_ms)
                {
                    added += self.merge_into(&mut batch, *id, h, hour)?;
                } else {
                    write_chunks(&mut batch, *id, h, hour);
                    added += hour.len() as u64;
                }
            }
        }
        for key in self.head_keys.drain(..) {
            batch.remove(key);
        }
        self.sealed_points += added;
        self.head_points = 0;
        batch.insert(
            record::META,
            record::meta_value(self.seq, self.sealed_points),
        );
        self.db.apply_batch(batch)?;
        self.note_sealed(&head);
        Ok(())
    }

    /// Puts points of one hour of a series among its chunks; points already there, sealed or in
    /// the head, win. Returns how many are new.
    fn merge_into(&self, batch: &mut Batch, id: u32, hour: i64, points: &[Usage]) -> Result<u64> {
        let (old, mut run) = self.chunks(id, hour)?;
        let before = run.len();
        for p in points {
            if !self.in_head(id, p.at_ms)
                && let Err(at) = run.binary_search_by_key(&p.at_ms, |q| q.at_ms)
            {
                run.insert(at, *p);
            }
        }
        let added = run.len() - before;
        if added > 0 {
            for key in old {
                batch.remove(key);
            }
            write_chunks(batch, id, hour, &run);
        }
        Ok(added as u64)
    }

    /// Keys and points of the sound chunks of one hour of a series.
    fn chunks(&self, id: u32, hour: i64) -> Result<(Vec<sled::IVec>, Vec<Usage>)> {
        let (mut keys, mut run) = (Vec::new(), Vec::new());
        for item in self.db.scan_prefix(record::chunk_prefix(hour, id)) {
            let (k, v) = item?;
            match record::chunk_points(&k, &v) {
                Ok(points) => {
                    run.extend(points);
                    keys.push(k);
                }
                Err(_) => self.damaged(&k),
            }
        }
        run.sort_by_key(|p| p.at_ms);
        run.dedup_by_key(|p| p.at_ms);
        Ok((keys, run))
    }

    /// Merges points of one hour, in time order, of another host. Returns how many are new;
    /// durable after [`Self::sync`].
    pub(super) fn merge(&mut self, key: &SeriesKey, points: &[Usage]) -> Result<u64> {
        let Some(hour) = points.first().map(|p| hour_of(p.at_ms)) else {
            return Ok(0);
        };
        let mut batch = Batch::default();
        let id = self.id(key, &mut batch);
        let added = self.merge_into(&mut batch, id, hour, points)?;
        if added > 0 {
            let seq = self.seq + 1;
            batch.insert(
                record::META,
                record::meta_value(seq, self.sealed_points + added),
            );
            self.db.apply_batch(batch)?;
            self.seq = seq;
            self.sealed_points += added;
            self.note_sealed(&BTreeMap::from([(id, points.to_vec())]));
        } else {
            self.db.apply_batch(batch)?;
        }
        Ok(added)
    }

    /// Points of a series in one hour, in time order, sealed and not.
    pub(super) fn hour(&self, key: &SeriesKey, hour: i64) -> Result<Vec<Usage>> {
        let Some(id) = self.ids.get(key) else {
            return Ok(Vec::new());
        };
        let (_, mut run) = self.chunks(*id, hour)?;
        if let Some(head) = self.head.get(id) {
            run.extend(head.iter().filter(|p| hour_of(p.at_ms) == hour));
            run.sort_by_key(|p| p.at_ms);
            run.dedup_by_key(|p| p.at_ms);
        }
        Ok(run)
    }

    /// Writes all records, damaged ones too, to a new database in `path`, durably.
    pub(super) fn copy_to(&self, path: &Path) -> Result<()> {
        let to = sled::Config::new()
            .path(path)
            .cache_capacity(CACHE)
            .flush_every_ms(None)
            .open()?;
        let mut count = 0;
        for item in self.db.iter() {
            let (k, v) = item?;
            to.insert(k, v)?;
            count += 1;
        }
        to.flush()?;
        files::sync_tree(path)?;
        if to.len() == count {
            return Ok(());
        }
        Err(sled::Error::ReportableBug(
            "a copy has not all records".into(),
        ))
    }

    /// Makes everything durable, then says so in the mark.
    pub(super) fn sync(&self) -> Result<()> {
        self.db.flush()?;
        // sled's flush alone uses sync_file_range, which does not survive a power cut.
        self.file.sync_all()?;
        self.mark().write(&self.mark_path)?;
        Ok(())
    }
}

fn write_chunks(batch: &mut Batch, id: u32, hour: i64, run: &[Usage]) {
    debug_assert!(run.iter().all(|p| p.at_ms.div_euclid(HOUR_MS) == hour));
    for points in run.chunks(CHUNK) {
        let key = record::chunk_key(hour, id, points[0].at_ms);
        let value = record::chunk_value(&key, points);
        batch.insert(key, value);
    }
}
