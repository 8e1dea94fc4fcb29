//! Points that are not sealed yet, by shards of series. A head record is of one shard, so that a
//! shard is sealed by itself: what sled holds until a batch is applied stays small, however many
//! series there are.

use std::collections::BTreeMap;

use super::super::point::Point;

/// Series of a shard.
const SHARD: u32 = 256;

/// The shard of a series.
pub(super) fn shard_of(series: u32) -> u32 {
    series / SHARD
}

/// The points of a shard.
pub(super) struct Shard<P> {
    /// In time order, by series.
    pub(super) runs: BTreeMap<u32, Vec<P>>,
    /// Keys of the records that hold them.
    pub(super) keys: Vec<Vec<u8>>,
    points: usize,
}

impl<P> Default for Shard<P> {
    fn default() -> Self {
        Self {
            runs: BTreeMap::new(),
            keys: Vec::new(),
            points: 0,
        }
    }
}

/// All points that are not sealed.
pub(super) struct Head<P> {
    shards: BTreeMap<u32, Shard<P>>,
    points: usize,
    /// Some record is of several shards, as earlier versions wrote them.
    mixed: bool,
}

impl<P> Default for Head<P> {
    fn default() -> Self {
        Self {
            shards: BTreeMap::new(),
            points: 0,
            mixed: false,
        }
    }
}

impl<P: Point> Head<P> {
    /// Adds a point unless there is one of its time; true when it was added.
    pub(super) fn add(&mut self, series: u32, point: P) -> bool {
        let shard = self.shards.entry(shard_of(series)).or_default();
        let run = shard.runs.entry(series).or_default();
        let Err(at) = run.binary_search_by_key(&point.at_ms(), Point::at_ms) else {
            return false;
        };
        if run.len() == run.capacity() {
            // There are thousands of these with a few points each.
            run.reserve_exact(1 + run.len() / 4);
        }
        run.insert(at, point);
        shard.points += 1;
        self.points += 1;
        true
    }

    /// Notes the key of a record with points of these series.
    pub(super) fn note_key(&mut self, key: Vec<u8>, mut series: impl Iterator<Item = u32>) {
        let Some(shard) = series.next().map(shard_of) else {
            return;
        };
        self.mixed |= series.any(|s| shard_of(s) != shard);
        self.shards.entry(shard).or_default().keys.push(key);
    }

    /// Points of a series.
    pub(super) fn run(&self, series: u32) -> Option<&Vec<P>> {
        self.shards.get(&shard_of(series))?.runs.get(&series)
    }

    /// Has it a point of this time?
    pub(super) fn has(&self, series: u32, at_ms: i64) -> bool {
        self.run(series)
            .is_some_and(|run| run.binary_search_by_key(&at_ms, Point::at_ms).is_ok())
    }

    /// Time of some point of a shard.
    pub(super) fn some_ms(&self, shard: u32) -> Option<i64> {
        let runs = self.shards.get(&shard)?.runs.values();
        runs.flatten().next().map(Point::at_ms)
    }

    /// Points in all.
    pub(super) fn points(&self) -> usize {
        self.points
    }

    /// Series with points.
    pub(super) fn series(&self) -> impl Iterator<Item = u32> {
        self.shards.values().flat_map(|s| s.runs.keys().copied())
    }

    /// What can be sealed by itself, each to be sealed in one batch.
    pub(super) fn parts(&self) -> Vec<Vec<u32>> {
        let all: Vec<u32> = self.shards.keys().copied().collect();
        if self.mixed {
            vec![all]
        } else {
            all.into_iter().map(|s| vec![s]).collect()
        }
    }

    /// The part that a shard belongs to.
    pub(super) fn part_of(&self, shard: u32) -> Vec<u32> {
        if self.mixed {
            self.shards.keys().copied().collect()
        } else {
            vec![shard]
        }
    }

    /// A shard to seal: one with a series of `run` points, or the largest when there are more than
    /// `points` in all.
    pub(super) fn due(&self, run: usize, points: usize) -> Option<u32> {
        let long = |s: &Shard<P>| s.runs.values().any(|r| r.len() >= run);
        if self.points > points {
            let largest = self.shards.iter().max_by_key(|(_, s)| s.points);
            return largest.map(|(id, _)| *id);
        }
        let mut shards = self.shards.iter();
        shards.find(|(_, s)| long(s)).map(|(id, _)| *id)
    }

    /// Takes shards out.
    pub(super) fn take(&mut self, shards: &[u32]) -> Vec<Shard<P>> {
        let taken: Vec<Shard<P>> = shards
            .iter()
            .filter_map(|s| self.shards.remove(s))
            .collect();
        self.points -= taken.iter().map(|s| s.points).sum::<usize>();
        self.mixed &= !self.shards.is_empty();
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::Usage;

    fn head(points: &[(u32, i64)]) -> Head<Usage> {
        let mut head = Head::default();
        for (series, at_ms) in points {
            let point = Usage {
                at_ms: *at_ms,
                ..Usage::default()
            };
            head.add(*series, point);
        }
        head
    }

    #[test]
    fn a_point_is_there_once() {
        let mut head = head(&[(1, 20), (1, 10), (1, 20), (700, 10)]);
        assert_eq!(head.points(), 3);
        assert!(head.has(1, 10) && head.has(1, 20) && !head.has(700, 20));
        let run: Vec<i64> = head.run(1).unwrap().iter().map(|p| p.at_ms).collect();
        assert_eq!(run, [10, 20]);
        assert_eq!(head.take(&[0])[0].runs.len(), 1);
        assert_eq!(head.points(), 1);
        assert_eq!(head.series().collect::<Vec<_>>(), [700]);
    }

    #[test]
    fn the_largest_or_one_with_a_long_series_is_due() {
        let head = head(&[(1, 1), (300, 1), (300, 2), (600, 1), (601, 1), (602, 1)]);
        assert_eq!(head.due(3, 6), None);
        assert_eq!(head.due(2, 6), Some(1));
        assert_eq!(head.due(3, 5), Some(2));
    }

    /// A record of several shards must go with all the points that it holds.
    #[test]
    fn mixed_records_are_sealed_together() {
        let mut head = head(&[(1, 1), (300, 1), (600, 1)]);
        head.note_key(vec![1], [1, 2].into_iter());
        head.note_key(vec![2], [300].into_iter());
        assert_eq!(head.parts(), [[0], [1], [2]]);
        head.note_key(vec![3], [1, 600].into_iter());
        assert_eq!(head.parts(), [[0, 1, 2]]);
        assert_eq!(head.part_of(1), [0, 1, 2]);
        let keys: Vec<_> = head.take(&[0, 1, 2]).into_iter().map(|s| s.keys).collect();
        assert_eq!(keys, [vec![vec![1], vec![3]], vec![vec![2]], vec![]]);
        head.add(1, Usage::default());
        assert_eq!(head.part_of(0), [0]);
    }
}
