//! Writing to a partition: heads, chunks, merges.

use std::collections::{BTreeMap, HashSet};

use sled::Batch;

use super::super::SeriesKey;
use super::super::codec;
use super::super::point::{self, Point};
use super::super::record;
use super::head::shard_of;
use super::{CHUNK, HEAD_ENTRIES, HEAD_POINTS, Partition, Result};

impl<P: Point> Partition<P> {
    /// Adds points of this partition's time; those already there are left as they are. Durable
    /// after [`Self::sync`].
    pub(in super::super) fn append(&mut self, points: &mut [(SeriesKey, P)]) -> Result<()> {
        points.sort_by_key(|(_, p)| p.at_ms());
        let bucket_ms = self.bucket_ms;
        let bucket = |p: &P| p.at_ms().div_euclid(bucket_ms);
        for run in points.chunk_by(|a, b| bucket(&a.1) == bucket(&b.1)) {
            self.append_bucket(run)?;
        }
        Ok(())
    }

    fn append_bucket(&mut self, points: &[(SeriesKey, P)]) -> Result<()> {
        let Some(bucket) = points.first().map(|(_, p)| self.bucket(p.at_ms())) else {
            return Ok(());
        };
        let mut batch = Batch::default();
        let mut fresh: Vec<(u32, P)> = Vec::with_capacity(points.len());
        let mut seen = HashSet::with_capacity(points.len());
        let mut late: BTreeMap<u32, Vec<P>> = BTreeMap::new();
        for (key, point) in points {
            let id = self.id(key, &mut batch);
            let at_ms = point.at_ms();
            let head_bucket = self.head.some_ms(shard_of(id)).map(|ms| self.bucket(ms));
            if head_bucket.is_some_and(|b| b < bucket) {
                self.seal_part(&self.head.part_of(shard_of(id)))?;
            }
            let is_late = head_bucket.is_some_and(|b| b > bucket)
                || self.sealed_to.get(&id).is_some_and(|to| at_ms <= *to);
            if is_late {
                late.entry(id).or_default().push(*point);
            } else if !self.head.has(id, at_ms) && seen.insert((id, at_ms)) {
                fresh.push((id, *point));
            }
        }
        // A record is of one shard.
        fresh.sort_by_key(|(id, _)| shard_of(*id));
        let parts = fresh
            .chunk_by(|a, b| shard_of(a.0) == shard_of(b.0))
            .flat_map(|shard| shard.chunks(HEAD_ENTRIES));
        let mut keys = Vec::new();
        let seq = self.seq + 1;
        for (part, entries) in parts.enumerate() {
            let key = record::head_key(seq, part as u16);
            let value = record::head_value(&key, entries);
            batch.insert(key.clone(), value);
            keys.push((key, entries[0].0));
        }
        let mut added = 0;
        for (id, run) in &late {
            added += self.merge_into(&mut batch, *id, bucket, run)?;
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
        for (key, series) in keys {
            self.head.note_key(key, std::iter::once(series));
        }
        for (id, point) in fresh {
            self.add_to_head(id, point);
        }
        if added > 0 {
            self.note_sealed(&late);
        }
        while let Some(shard) = self.head.due(CHUNK, HEAD_POINTS) {
            self.seal_part(&self.head.part_of(shard))?;
        }
        Ok(())
    }

    pub(super) fn add_to_head(&mut self, series: u32, point: P) {
        if self.head.add(series, point) {
            self.note_times(point.at_ms(), point.at_ms());
        }
    }

    fn note_sealed(&mut self, runs: &BTreeMap<u32, Vec<P>>) {
        for (id, first, last) in runs
            .iter()
            .filter_map(|(id, r)| Some((id, r.first()?.at_ms(), r.last()?.at_ms())))
        {
            let to = self.sealed_to.entry(*id).or_insert(last);
            *to = last.max(*to);
            self.note_times(first, last);
        }
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

    /// Turns the head into chunks.
    pub(in super::super) fn seal(&mut self) -> Result<()> {
        for part in self.head.parts() {
            self.seal_part(&part)?;
        }
        Ok(())
    }

    /// Turns shards of the head into chunks, in one batch with the deletion of their records.
    fn seal_part(&mut self, part: &[u32]) -> Result<()> {
        let mut batch = Batch::default();
        let mut added = 0;
        let shards = self.head.take(part);
        let bucket_ms = self.bucket_ms;
        let bucket = |p: &P| p.at_ms().div_euclid(bucket_ms);
        for (id, run) in shards.iter().flat_map(|s| &s.runs) {
            for part in run.chunk_by(|a, b| bucket(a) == bucket(b)) {
                let (b, first) = (bucket(&part[0]), part[0].at_ms());
                if self.sealed_to.get(id).is_some_and(|to| *to >= first) {
                    added += self.merge_into(&mut batch, *id, b, part)?;
                } else {
                    write_chunks(&mut batch, *id, b, part);
                    added += part.len() as u64;
                }
            }
        }
        for key in shards.iter().flat_map(|s| &s.keys) {
            batch.remove(key.as_slice());
        }
        self.sealed_points += added;
        batch.insert(
            record::META,
            record::meta_value(self.seq, self.sealed_points),
        );
        self.db.apply_batch(batch)?;
        for shard in &shards {
            self.note_sealed(&shard.runs);
        }
        Ok(())
    }

    /// Puts points of one bucket of a series among its chunks; see [`point::merge`]. Returns how
    /// many more points the chunks have.
    fn merge_into(&self, batch: &mut Batch, id: u32, bucket: i64, points: &[P]) -> Result<u64> {
        let from = bucket * self.bucket_ms;
        let packed = self.read_packed(id, from, from + self.bucket_ms, codec::ALL)?;
        let wanted = |p: &&P| {
            if self.head.has(id, p.at_ms()) {
                return false;
            }
            let at = packed.binary_search_by_key(&p.at_ms(), Point::at_ms);
            at.map_or(true, |at| p.replaces(&packed[at]))
        };
        let points: Vec<P> = points.iter().filter(wanted).copied().collect();
        if points.is_empty() {
            return Ok(0);
        }
        let (old, mut run) = self.chunks(id, bucket, codec::ALL)?;
        let before = run.len();
        if !point::merge(&mut run, &points) {
            return Ok(0);
        }
        for key in old {
            batch.remove(key);
        }
        write_chunks(batch, id, bucket, &run);
        Ok((run.len() - before) as u64)
    }

    /// Merges points in time order into a series. Returns how many are new; durable after
    /// [`Self::sync`].
    pub(in super::super) fn merge(&mut self, key: &SeriesKey, points: &[P]) -> Result<u64> {
        self.merge_all([(key, points)])
    }

    /// The same for several series, none of them twice: one batch, as sled writes each by itself.
    pub(in super::super) fn merge_all<'a>(
        &mut self,
        series: impl IntoIterator<Item = (&'a SeriesKey, &'a [P])>,
    ) -> Result<u64> {
        let mut batch = Batch::default();
        let mut added = 0;
        let mut merged = BTreeMap::new();
        let bucket_ms = self.bucket_ms;
        let bucket = |p: &P| p.at_ms().div_euclid(bucket_ms);
        for (key, points) in series {
            let id = self.id(key, &mut batch);
            for run in points.chunk_by(|a, b| bucket(a) == bucket(b)) {
                added += self.merge_into(&mut batch, id, bucket(&run[0]), run)?;
            }
            merged.insert(id, points.to_vec());
        }
        let seq = self.seq + 1;
        batch.insert(
            record::META,
            record::meta_value(seq, self.sealed_points + added),
        );
        self.db.apply_batch(batch)?;
        self.seq = seq;
        self.sealed_points += added;
        self.note_sealed(&merged);
        Ok(added)
    }
}

fn write_chunks<P: Point>(batch: &mut Batch, id: u32, bucket: i64, run: &[P]) {
    for points in run.chunks(CHUNK) {
        let key = record::chunk_key(bucket, id, points[0].at_ms());
        let value = record::chunk_value(&key, points);
        batch.insert(key, value);
    }
}
