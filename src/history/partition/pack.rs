//! Packed blocks: how a partition whose time is over is kept.
//!
//! ```text
//! tree b0, b1, ...   one value each, of about 256 KiB
//!   length of the index u32 | index | chunks
//!   index: a record of its own; per chunk: series, points, first time, time to last, length
//! ```
//!
//! sled keeps such values in files of their own, so hardly any space is lost, and a tree of one
//! value is written once. Chunks are longer than those of a partition in use and compressed with
//! more effort; each is a record with a checksum of its own, named as an ordinary one. Points that
//! come late are chunks beside the blocks.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};

use sled::IVec;

use super::super::SeriesKey;
use super::super::codec::{self, Effort, Malformed};
use super::super::files::{self, Mark};
use super::super::point::Point;
use super::super::record;
use super::{PACKED_SEGMENT, Partition, Result, config};

/// Points of one packed chunk: two hours at one each 5 s.
const PACKED_CHUNK: usize = 1440;
/// Bytes from which a block is written.
const BLOCK: usize = 256 << 10;
/// Prefix of the blocks' trees, and the key in them.
const TREE: &[u8] = b"b";

/// Where a packed chunk is.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Packed {
    block: u32,
    offset: u32,
    len: u32,
    first_ms: i64,
    last_ms: i64,
}

fn tree_name(block: u32) -> Vec<u8> {
    let mut name = TREE.to_vec();
    name.extend_from_slice(&block.to_be_bytes());
    name
}

struct Entry {
    series: u32,
    points: u64,
    first_ms: i64,
    last_ms: i64,
    len: u32,
}

fn index_bytes(tree: &[u8], entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    codec::put_varint(&mut out, entries.len() as u64);
    for e in entries {
        codec::put_varint(&mut out, u64::from(e.series));
        codec::put_varint(&mut out, e.points);
        codec::put_varint(&mut out, e.first_ms as u64);
        codec::put_varint(&mut out, (e.last_ms - e.first_ms) as u64);
        codec::put_varint(&mut out, u64::from(e.len));
    }
    record::wrap(tree, 0, &out)
}

/// The index of a block and the offset of the first chunk.
fn read_index(tree: &[u8], block: &[u8]) -> std::result::Result<(Vec<Entry>, usize), Malformed> {
    let mut r = block;
    let len = codec::take(&mut r, 4)?;
    let len = u32::from_le_bytes(len.try_into().map_err(|_| Malformed)?) as usize;
    let value = codec::take(&mut r, len)?;
    let mut r = record::check(tree, value)?.payload;
    let count = codec::get_varint(&mut r)?;
    let narrow = |v: u64| u32::try_from(v).map_err(|_| Malformed);
    let entries = (0..count)
        .map(|_| {
            let series = narrow(codec::get_varint(&mut r)?)?;
            let points = codec::get_varint(&mut r)?;
            let first_ms = codec::get_varint(&mut r)?.cast_signed();
            let last_ms = first_ms.wrapping_add(codec::get_varint(&mut r)?.cast_signed());
            let len = narrow(codec::get_varint(&mut r)?)?;
            Ok(Entry {
                series,
                points,
                first_ms,
                last_ms,
                len,
            })
        })
        .collect::<std::result::Result<Vec<Entry>, Malformed>>()?;
    Ok((entries, 4 + len))
}

/// Key under which a packed chunk's checksum is made.
fn chunk_name(series: u32, first_ms: i64) -> Vec<u8> {
    record::chunk_key(0, series, first_ms)
}

impl<P: Point> Partition<P> {
    pub(super) fn scan_packed(&mut self) -> Result<()> {
        for name in self.db.tree_names() {
            let Some(number) = name
                .strip_prefix(TREE)
                .and_then(|n| Some(u32::from_be_bytes(n.try_into().ok()?)))
            else {
                continue;
            };
            // A block that is missing or cannot be read is one loss; the others are sound.
            let Some(block) = self.db.open_tree(&name)?.get(TREE).ok().flatten() else {
                self.lost_block(number);
                continue;
            };
            let Ok((entries, mut offset)) = read_index(&name, &block) else {
                self.lost_block(number);
                continue;
            };
            for e in entries {
                let key = chunk_name(e.series, e.first_ms);
                let end = offset + e.len as usize;
                let sound = block
                    .get(offset..end)
                    .is_some_and(|v| record::check(&key, v).is_ok());
                if sound {
                    self.count_chunk(e.series, e.points, e.first_ms, e.last_ms);
                    self.packed.entry(e.series).or_default().push(Packed {
                        block: number,
                        offset: offset as u32,
                        len: e.len,
                        first_ms: e.first_ms,
                        last_ms: e.last_ms,
                    });
                } else {
                    self.report_damage(&key);
                }
                offset = end;
            }
        }
        for chunks in self.packed.values_mut() {
            chunks.sort_by_key(|c| c.first_ms);
        }
        Ok(())
    }

    fn lost_block(&mut self, number: u32) {
        self.damaged = true;
        self.problems.report(format!(
            "history partition {}: block {number} is damaged, its points are left out",
            self.name
        ));
    }

    /// Is it packed, but for what came late?
    pub(in super::super) fn is_packed(&self) -> bool {
        !self.packed.is_empty()
    }

    pub(super) fn read_packed(
        &self,
        id: u32,
        from_ms: i64,
        to_ms: i64,
        wanted: u64,
    ) -> Result<Vec<P>> {
        let mut run: Vec<P> = Vec::new();
        let Some(chunks) = self.packed.get(&id) else {
            return Ok(run);
        };
        for c in chunks
            .iter()
            .filter(|c| c.first_ms < to_ms && c.last_ms >= from_ms)
        {
            let key = chunk_name(id, c.first_ms);
            let block = self.db.open_tree(tree_name(c.block))?.get(TREE)?;
            let points = block.as_ref().and_then(|b| {
                let v = b.get(c.offset as usize..(c.offset + c.len) as usize)?;
                record::chunk_points::<P>(&key, v, wanted).ok()
            });
            match points {
                Some(points) => run.extend(
                    points
                        .into_iter()
                        .filter(|p| (from_ms..to_ms).contains(&p.at_ms())),
                ),
                None => self.tell_damage(&key),
            }
        }
        Ok(run)
    }

    /// Begins to write it anew, packed, in directory `path`. `None` when it is not worth it: it is
    /// empty, packed already, or damaged: then it stays as it is, for who wants to look at it.
    pub(in super::super) fn begin_pack(&mut self, path: PathBuf) -> Result<Option<Packer>> {
        self.seal()?;
        if self.damaged || self.sealed_points == 0 {
            return Ok(None);
        }
        if self.is_packed() && self.db.scan_prefix(b"c").next().is_none() {
            return Ok(None);
        }
        let to = config(&path, PACKED_SEGMENT).open()?;
        let mut names = sled::Batch::default();
        for item in self.db.scan_prefix(b"s") {
            let (k, v) = item?;
            names.insert(k, v);
        }
        to.apply_batch(names)?;
        let mut ids: Vec<u32> = self.ids.values().copied().collect();
        ids.sort_unstable();
        Ok(Some(Packer {
            path,
            to,
            ids: ids.into(),
            seq: self.seq,
            points: 0,
            last_ms: 0,
            blocks: 0,
            entries: Vec::new(),
            chunks: Vec::new(),
        }))
    }

    /// Packs some series; true when all are.
    pub(in super::super) fn pack_some(&self, packer: &mut Packer, series: usize) -> Result<bool> {
        for _ in 0..series {
            let Some(id) = packer.ids.pop_front() else {
                packer.flush()?;
                return Ok(true);
            };
            let run = self.range_of(id, 0, i64::MAX, codec::ALL)?;
            for points in run.chunks(PACKED_CHUNK) {
                packer.add(id, points)?;
            }
        }
        Ok(false)
    }

    /// Ends packing: the new database is durable and the mark is of it. False when points came in
    /// meanwhile, so that it must be begun again.
    pub(in super::super) fn end_pack(&self, packer: Packer) -> Result<bool> {
        if packer.seq != self.seq || self.damaged {
            return Ok(false);
        }
        let Packer { path, to, .. } = packer;
        to.insert(record::META, record::meta_value(packer.seq, packer.points))?;
        to.flush()?;
        files::sync_tree(&path)?;
        // Points that were twice in it, packed and beside, are one now. Said before the swap: a
        // mark that tells of fewer points than there are is no loss.
        let mark = Mark {
            seq: packer.seq,
            points: packer.points,
            last_ms: packer.last_ms,
            packed: true,
            first_ms: self.first_ms,
        };
        mark.write(&self.mark_path)?;
        Ok(true)
    }

    /// Keys of series by name, sorted.
    pub(in super::super) fn sorted_series(&self) -> VecDeque<SeriesKey> {
        let mut all = self.series();
        all.sort();
        all.into()
    }
}

/// A packed copy under way.
pub(in super::super) struct Packer {
    path: PathBuf,
    to: sled::Db,
    ids: VecDeque<u32>,
    seq: u64,
    points: u64,
    last_ms: i64,
    blocks: u32,
    entries: Vec<Entry>,
    chunks: Vec<u8>,
}

impl Packer {
    fn add<P: Point>(&mut self, id: u32, points: &[P]) -> Result<()> {
        let (Some(first), Some(last)) = (points.first(), points.last()) else {
            return Ok(());
        };
        let key = chunk_name(id, first.at_ms());
        let payload = P::encode(points, Effort::Small);
        let value = record::wrap(&key, points.len() as u16, &payload);
        self.entries.push(Entry {
            series: id,
            points: points.len() as u64,
            first_ms: first.at_ms(),
            last_ms: last.at_ms(),
            len: value.len() as u32,
        });
        self.points += points.len() as u64;
        self.last_ms = self.last_ms.max(last.at_ms());
        self.chunks.extend_from_slice(&value);
        if self.chunks.len() >= BLOCK {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.entries.is_empty() {
            return Ok(());
        }
        let name = tree_name(self.blocks);
        let index = index_bytes(&name, &self.entries);
        let mut value = (index.len() as u32).to_le_bytes().to_vec();
        value.extend_from_slice(&index);
        value.append(&mut self.chunks);
        self.entries.clear();
        self.blocks += 1;
        self.to.open_tree(name)?.insert(TREE, IVec::from(value))?;
        Ok(())
    }

    /// Where it is written.
    pub(in super::super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it up.
    pub(in super::super) fn discard(self) -> std::io::Result<()> {
        let path = self.path.clone();
        drop(self);
        fs::remove_dir_all(path)
    }
}
