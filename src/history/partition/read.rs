//! Reading a partition.

use super::super::SeriesKey;
use super::super::point::{self, Point};
use super::super::record;
use super::{Partition, Result};

impl<P: Point> Partition<P> {
    pub(super) fn bucket(&self, at_ms: i64) -> i64 {
        at_ms.div_euclid(self.bucket_ms)
    }

    /// Points of a series from `from_ms` to before `to_ms`, in time order, sealed and not. Of sealed
    /// ones only the `wanted` columns are read, a bit for each identifier.
    pub(in super::super) fn range(
        &self,
        key: &SeriesKey,
        from_ms: i64,
        to_ms: i64,
        wanted: u64,
    ) -> Result<Vec<P>> {
        match self.ids.get(key) {
            Some(id) => self.range_of(*id, from_ms, to_ms, wanted),
            None => Ok(Vec::new()),
        }
    }

    pub(super) fn range_of(
        &self,
        id: u32,
        from_ms: i64,
        to_ms: i64,
        wanted: u64,
    ) -> Result<Vec<P>> {
        let to_ms = to_ms.min(self.last_ms.saturating_add(1));
        if from_ms >= to_ms {
            return Ok(Vec::new());
        }
        let mut run = self.read_packed(id, from_ms, to_ms, wanted)?;
        if let Some(first) = self.first_loose()? {
            let loose_from = from_ms.max(first);
            for bucket in self.bucket(loose_from)..=self.bucket(to_ms - 1) {
                let (_, points) = self.chunks(id, bucket, wanted)?;
                append(&mut run, &points);
            }
        }
        if let Some(head) = self.head.run(id) {
            append(&mut run, head);
        }
        run.retain(|p| (from_ms..to_ms).contains(&p.at_ms()));
        Ok(run)
    }

    /// Some time that is not after the first chunk outside packed blocks, if there may be any.
    fn first_loose(&self) -> Result<Option<i64>> {
        let first = self.db.scan_prefix(b"c").keys().next().transpose()?;
        Ok(first.and_then(|k| {
            let bucket = u64::from_be_bytes(k.get(1..9)?.try_into().ok()?);
            i64::try_from(bucket).ok()?.checked_mul(self.bucket_ms)
        }))
    }

    /// Keys and points of the sound chunks of a series in one bucket, outside packed blocks.
    pub(super) fn chunks(
        &self,
        id: u32,
        bucket: i64,
        wanted: u64,
    ) -> Result<(Vec<sled::IVec>, Vec<P>)> {
        let (mut keys, mut run) = (Vec::new(), Vec::new());
        for item in self.db.scan_prefix(record::chunk_prefix(bucket, id)) {
            let (k, v) = item?;
            match record::chunk_points(&k, &v, wanted) {
                Ok(points) => {
                    append(&mut run, &points);
                    keys.push(k);
                }
                Err(_) => self.tell_damage(&k),
            }
        }
        Ok((keys, run))
    }
}

/// Puts points that are mostly later after others.
fn append<P: Point>(run: &mut Vec<P>, points: &[P]) {
    let Some(first) = points.first() else { return };
    if run.last().is_none_or(|l| l.at_ms() < first.at_ms()) {
        run.extend_from_slice(points);
    } else {
        point::merge(run, points);
    }
}
