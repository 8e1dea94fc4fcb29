//! One span of time of one tier: one sled database. Knows records and keys, not the ladder of
//! repairs around it (see `partitions`). Any error or panic here means: drop it and open it anew;
//! all state in memory comes from the database.

mod head;
mod pack;
mod read;
mod write;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use super::files::{self, Mark};
use super::point::Point;
use super::record::{self, Key};
use super::{Problems, SeriesKey};

use head::Head;
pub(super) use pack::{Packed, Packer};

/// Points of one chunk.
const CHUNK: usize = 120;
/// Entries of one head record.
const HEAD_ENTRIES: usize = 256;
/// Points in the head above which its largest shards are sealed whatever the length of their series.
const HEAD_POINTS: usize = 25_000;
/// sled's page cache per partition, bytes.
const CACHE: u64 = 4 << 20;

/// Bytes by which a partition's database grows: sled's own.
const SEGMENT: usize = 512 << 10;
/// The same of a packed one, which has little beside its blocks. sled fills a segment up each time
/// it is opened.
const PACKED_SEGMENT: usize = 64 << 10;

pub(super) type Result<T> = std::result::Result<T, sled::Error>;

/// An open partition.
pub(super) struct Partition<P> {
    /// Tier and name, for people.
    name: String,
    mark_path: PathBuf,
    db: sled::Db,
    file: File,
    /// Chunks are kept in buckets of so much time.
    bucket_ms: i64,
    ids: HashMap<SeriesKey, u32>,
    next_id: u32,
    /// Points that are not sealed yet.
    head: Head<P>,
    /// Newest sealed point of each series.
    sealed_to: HashMap<u32, i64>,
    /// Chunks in packed blocks.
    packed: HashMap<u32, Vec<Packed>>,
    seq: u64,
    sealed_points: u64,
    first_ms: i64,
    last_ms: i64,
    /// Something in it is damaged.
    damaged: bool,
    problems: Problems,
}

/// How a database is opened; `segment` bytes are what a new one grows by.
fn config(path: &Path, segment: usize) -> sled::Config {
    sled::Config::new()
        .path(path)
        .cache_capacity(CACHE)
        .segment_size(segment_of(path).unwrap_or(segment))
        .flush_every_ms(None)
}

/// The size of an existing database's segments, with which alone sled opens it.
fn segment_of(path: &Path) -> Option<usize> {
    let conf = std::fs::read(path.join("conf")).ok()?;
    let line = conf.split(|b| *b == b'\n').next()?;
    let size: usize = std::str::from_utf8(line)
        .ok()?
        .strip_prefix("segment_size: ")?
        .parse()
        .ok()?;
    // What sled would panic about is damage; let it say so.
    [SEGMENT, PACKED_SEGMENT].contains(&size).then_some(size)
}

impl<P: Point> Partition<P> {
    /// Opens or creates the database in `path` and checks every value in it. May panic when the
    /// files are damaged: sled does.
    pub(super) fn open(
        path: &Path,
        name: String,
        mark_path: PathBuf,
        bucket_ms: i64,
        problems: &Problems,
    ) -> Result<Self> {
        let db = config(path, SEGMENT).open()?;
        let mut p = Self {
            name,
            mark_path,
            db,
            file: File::open(path.join("db"))?,
            bucket_ms,
            ids: HashMap::new(),
            next_id: 0,
            head: Head::default(),
            sealed_to: HashMap::new(),
            packed: HashMap::new(),
            seq: 0,
            sealed_points: 0,
            first_ms: i64::MAX,
            last_ms: 0,
            damaged: false,
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
                        .and_then(|v| Ok((v.count, super::codec::bounds(v.payload)?)))
                        .map(|(n, (first, last))| {
                            self.count_chunk(series, u64::from(n), first, last);
                        })
                        .is_ok()
                }
                Some(Key::Head { seq }) => {
                    self.seq = self.seq.max(seq);
                    record::head_entries(&k, &v)
                        .map(|entries| {
                            let series = entries.iter().map(|(series, _)| *series);
                            self.head.note_key(k.to_vec(), series);
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
                        .and_then(|v| serde_json::from_slice(v.payload).ok())
                        .map(|key: SeriesKey| self.ids.insert(key, series))
                        .is_some()
                }
                None => false,
            };
            if !good {
                self.report_damage(&k);
            }
        }
        self.scan_packed()?;
        for (series, point) in head {
            self.next_id = self.next_id.max(series.saturating_add(1));
            self.add_to_head(series, point);
        }
        self.report_lost_names();
        Ok(())
    }

    fn count_chunk(&mut self, series: u32, points: u64, first_ms: i64, last_ms: i64) {
        self.next_id = self.next_id.max(series.saturating_add(1));
        self.sealed_points += points;
        self.note_times(first_ms, last_ms);
        let to = self.sealed_to.entry(series).or_insert(last_ms);
        *to = last_ms.max(*to);
    }

    fn note_times(&mut self, first_ms: i64, last_ms: i64) {
        self.first_ms = self.first_ms.min(first_ms);
        self.last_ms = self.last_ms.max(last_ms);
    }

    fn report_lost_names(&mut self) {
        let named: HashSet<u32> = self.ids.values().copied().collect();
        let with_points: BTreeSet<u32> = self
            .sealed_to
            .keys()
            .copied()
            .chain(self.head.series())
            .collect();
        for id in with_points.iter().filter(|id| !named.contains(id)) {
            self.damaged = true;
            self.problems.report(format!(
                "history partition {}: the name of series {id} is lost, its points are left out",
                self.name
            ));
        }
    }

    fn name_of(&self, series: u32) -> String {
        let of = self.ids.iter().find(|(_, id)| **id == series);
        of.map_or(format!("series {series}"), |(k, _)| k.to_string())
    }

    fn report_damage(&mut self, key: &[u8]) {
        self.damaged = true;
        self.tell_damage(key);
    }

    fn tell_damage(&self, key: &[u8]) {
        let what = match Key::parse(key) {
            Some(Key::Chunk { series }) => {
                let ms = key[13..21].try_into().map_or(0, i64::from_be_bytes);
                format!("the points of {} from {ms} ms on", self.name_of(series))
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

    /// What it holds, to compare with the mark.
    pub(super) fn mark(&self) -> Mark {
        Mark {
            seq: self.seq,
            points: self.sealed_points + self.head.points() as u64,
            last_ms: self.last_ms,
            packed: self.is_packed(),
            first_ms: if self.first_ms == i64::MAX {
                0
            } else {
                self.first_ms
            },
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

    /// Makes everything durable, then says so in the mark.
    pub(super) fn sync(&self) -> Result<()> {
        self.db.flush()?;
        // sled's flush alone uses sync_file_range, which does not survive a power cut.
        // Times of the file need not be kept, its length is.
        self.file.sync_data()?;
        self.mark().write(&self.mark_path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::codec;
    use super::*;
    use crate::feature::FeatureName;
    use crate::usage::Usage;

    fn open(dir: &Path) -> Partition<Usage> {
        let (db, mark) = (dir.join("p"), dir.join("p.mark"));
        // sled's threads may hold a dropped database a little longer, as `Partitions` knows too.
        for _ in 0..500 {
            let (problems, mark) = (Problems::default(), mark.clone());
            match Partition::open(&db, "p".into(), mark, 3_600_000, &problems) {
                Err(e) if e.to_string().contains("could not acquire lock") => {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                opened => return opened.unwrap(),
            }
        }
        panic!("{} stays locked", db.display());
    }

    fn tick(at_ms: i64, series: u32) -> Vec<(SeriesKey, Usage)> {
        let point = Usage {
            at_ms,
            ..Usage::default()
        };
        let key = |n| SeriesKey {
            group: "g".into(),
            feature: FeatureName::new(&format!("f{n}")).unwrap(),
        };
        (0..series).map(|n| (key(n), point)).collect()
    }

    fn count(p: &Partition<Usage>, prefix: &[u8]) -> usize {
        p.db.scan_prefix(prefix).count()
    }

    /// With many series the head is sealed shard by shard: what is left is in records still, and
    /// what is in them comes back.
    #[test]
    fn many_series_are_sealed_by_shards() {
        let dir = tempfile::tempdir().unwrap();
        let mut p = open(dir.path());
        // More than a head holds, and hardly more.
        let (series, ticks) = (1000, 26);
        for n in 0..ticks {
            p.append(&mut tick(n * 1000, series)).unwrap();
        }
        let total = series as usize * ticks as usize;
        assert!(p.head.points() <= HEAD_POINTS && p.head.points() > HEAD_POINTS / 2);
        assert_eq!(count(&p, b"c"), 256);
        assert_eq!(p.mark().points as usize, total);
        p.sync().unwrap();
        drop(p);
        let mut p = open(dir.path());
        assert_eq!(p.mark().points as usize, total);
        assert_eq!(p.head.points(), total - 256 * ticks as usize);
        p.seal().unwrap();
        assert_eq!((count(&p, b"h"), count(&p, b"c")), (0, 1000));
        assert_eq!(p.mark().points as usize, total);
        for (key, _) in tick(0, series) {
            let run = p.range(&key, 0, i64::MAX, codec::ALL).unwrap();
            assert_eq!(run.len(), ticks as usize);
        }
    }

    /// Earlier versions wrote a tick of any series as one record.
    #[test]
    fn a_record_of_several_shards_is_sealed_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut p = open(dir.path());
        let old = tick(1000, 600);
        p.append(&mut old.clone()).unwrap();
        let mut entries = Vec::new();
        for (k, v) in p.db.scan_prefix(b"h").map(|item| item.unwrap()) {
            entries.extend(record::head_entries::<Usage>(&k, &v).unwrap());
            p.db.remove(k).unwrap();
        }
        for (part, entries) in entries.chunks(250).enumerate() {
            let key = record::head_key(1, part as u16);
            let value = record::head_value(&key, entries);
            p.db.insert(key, value).unwrap();
        }
        drop(p);
        let mut p = open(dir.path());
        assert_eq!(p.head.points(), 600);
        // One series long enough to be sealed takes all with it.
        for n in 2..=i64::try_from(CHUNK).unwrap() {
            p.append(&mut tick(n * 1000, 1)).unwrap();
        }
        assert_eq!((count(&p, b"h"), p.head.points()), (0, 0));
        assert_eq!(p.mark().points, 600 + CHUNK as u64 - 1);
        for (key, point) in old {
            assert_eq!(p.range(&key, 0, 2000, codec::ALL).unwrap(), [point]);
        }
    }
}
