//! What a partition holds: points of a series with a time each.

use super::codec::{self, Effort, Malformed};
use crate::rollup::Rollup;
use crate::usage::Usage;

/// A point of a series.
pub(super) trait Point: Copy + PartialEq + Send + 'static {
    /// Milliseconds since the epoch.
    fn at_ms(&self) -> i64;
    /// Whether it is written in place of `old`, a point of the same time.
    fn replaces(&self, old: &Self) -> bool;
    /// A run in time order.
    fn encode(points: &[Self], effort: Effort) -> Vec<u8>;
    /// The counterpart of [`Self::encode`] for the `wanted` columns of `count` points of a version
    /// of the format.
    fn decode(version: u8, bytes: &[u8], count: usize, wanted: u64)
    -> Result<Vec<Self>, Malformed>;
    /// Writes one point quickly.
    fn put(out: &mut Vec<u8>, point: &Self);
    /// The counterpart of [`Self::put`]; advances `r`.
    fn get(version: u8, r: &mut &[u8]) -> Result<Self, Malformed>;
}

impl Point for Usage {
    fn at_ms(&self) -> i64 {
        self.at_ms
    }
    /// What was measured first stays.
    fn replaces(&self, _old: &Self) -> bool {
        false
    }
    fn encode(points: &[Self], effort: Effort) -> Vec<u8> {
        codec::encode(points, effort)
    }
    fn decode(
        version: u8,
        bytes: &[u8],
        count: usize,
        wanted: u64,
    ) -> Result<Vec<Self>, Malformed> {
        codec::decode(version, bytes, count, wanted)
    }
    fn put(out: &mut Vec<u8>, point: &Self) {
        codec::put_plain(out, point);
    }
    fn get(version: u8, r: &mut &[u8]) -> Result<Self, Malformed> {
        if version == 1 {
            let len = usize::try_from(codec::get_varint(r)?).map_err(|_| Malformed)?;
            return Ok(codec::decode(1, codec::take(r, len)?, 1, codec::ALL)?[0]);
        }
        codec::get_plain(r)
    }
}

impl Point for Rollup {
    fn at_ms(&self) -> i64 {
        self.mean.at_ms
    }
    /// The one that covers more of its step knows more. So a step can be rolled up again from
    /// what is left of its points, or come from another host, in any order.
    fn replaces(&self, old: &Self) -> bool {
        self.covered_s() > old.covered_s()
    }
    fn encode(points: &[Self], effort: Effort) -> Vec<u8> {
        codec::encode_rollups(points, effort)
    }
    fn decode(
        _version: u8,
        bytes: &[u8],
        count: usize,
        wanted: u64,
    ) -> Result<Vec<Self>, Malformed> {
        codec::decode_rollups(bytes, count, wanted)
    }
    fn put(out: &mut Vec<u8>, point: &Self) {
        let run = codec::encode_rollups(std::slice::from_ref(point), Effort::Fast);
        codec::put_varint(out, run.len() as u64);
        out.extend_from_slice(&run);
    }
    fn get(_version: u8, r: &mut &[u8]) -> Result<Self, Malformed> {
        let len = usize::try_from(codec::get_varint(r)?).map_err(|_| Malformed)?;
        Ok(codec::decode_rollups(codec::take(r, len)?, 1, codec::ALL)?[0])
    }
}

/// Puts points among others that are in time order: new times go in, at a time that is there the
/// old point stays unless the new one replaces it. Returns whether anything changed.
pub(super) fn merge<P: Point>(run: &mut Vec<P>, points: &[P]) -> bool {
    let mut changed = false;
    for p in points {
        match run.binary_search_by_key(&p.at_ms(), Point::at_ms) {
            Err(at) => {
                run.insert(at, *p);
                changed = true;
            }
            Ok(at) if p.replaces(&run[at]) => {
                run[at] = *p;
                changed = true;
            }
            Ok(_) => {}
        }
    }
    changed
}
