//! Keys and values of a partition. Every value carries a version, a count and a CRC-32 that
//! covers the key too, so that a value under the wrong key is found out.
//!
//! ```text
//! c | bucket u64 | series u32 | first_ms i64 sealed chunk of one series, count points
//! h | seq u64 | part u16                     head: an appended tick of one shard of series, count entries
//! m                                          what is sealed: sequence number and points
//! s | series u32                             name of a series (JSON)
//! ```
//!
//! Numbers in keys are big-endian: time-major, one bucket (an hour, in
//! the third tier a day) of one series is one short scan.

use super::codec::{self, Effort, Malformed};
use super::point::Point;

/// Version that is written; version 1 is read too.
const VERSION: u8 = 2;
const ENVELOPE: usize = 7;

/// Key of what is sealed.
pub(super) const META: &[u8] = b"m";

/// A key, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// Chunk.
    Chunk {
        /// Series.
        series: u32,
    },
    /// Head record.
    Head {
        /// Sequence number of the append.
        seq: u64,
    },
    /// What is sealed.
    Meta,
    /// Name.
    Series {
        /// Series.
        series: u32,
    },
}

impl Key {
    pub(super) fn parse(key: &[u8]) -> Option<Self> {
        let u32_at = |at: usize| Some(u32::from_be_bytes(key.get(at..at + 4)?.try_into().ok()?));
        match (key.first()?, key.len()) {
            (b'c', 21) => Some(Self::Chunk { series: u32_at(9)? }),
            (b'h', 11) => Some(Self::Head {
                seq: u64::from_be_bytes(key[1..9].try_into().ok()?),
            }),
            (b'm', 1) => Some(Self::Meta),
            (b's', 5) => Some(Self::Series { series: u32_at(1)? }),
            _ => None,
        }
    }
}

/// Prefix of the chunks of one series in one bucket.
pub(super) fn chunk_prefix(bucket: i64, series: u32) -> Vec<u8> {
    let mut k = Vec::with_capacity(21);
    k.push(b'c');
    k.extend_from_slice(&(bucket as u64).to_be_bytes());
    k.extend_from_slice(&series.to_be_bytes());
    k
}

/// Key of a chunk.
pub(super) fn chunk_key(bucket: i64, series: u32, first_ms: i64) -> Vec<u8> {
    let mut k = chunk_prefix(bucket, series);
    k.extend_from_slice(&first_ms.to_be_bytes());
    k
}

/// Key of a part of an appended tick.
pub(super) fn head_key(seq: u64, part: u16) -> Vec<u8> {
    let mut k = Vec::with_capacity(11);
    k.push(b'h');
    k.extend_from_slice(&seq.to_be_bytes());
    k.extend_from_slice(&part.to_be_bytes());
    k
}

/// Key of a series' name.
pub(super) fn series_key(series: u32) -> Vec<u8> {
    let mut k = vec![b's'];
    k.extend_from_slice(&series.to_be_bytes());
    k
}

fn checksum(version: u8, key: &[u8], count: u16, payload: &[u8]) -> u32 {
    let mut h = crc32fast::Hasher::new();
    h.update(&[version]);
    h.update(&count.to_le_bytes());
    h.update(key);
    h.update(payload);
    h.finalize()
}

/// Wraps a payload for `key`.
pub(super) fn wrap(key: &[u8], count: u16, payload: &[u8]) -> Vec<u8> {
    let mut v = Vec::with_capacity(ENVELOPE + payload.len());
    v.push(VERSION);
    v.extend_from_slice(&count.to_le_bytes());
    v.extend_from_slice(&checksum(VERSION, key, count, payload).to_le_bytes());
    v.extend_from_slice(payload);
    v
}

/// A sound value, unwrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Value<'a> {
    /// Version of the format of `payload`.
    pub(super) version: u8,
    /// Points or entries.
    pub(super) count: u16,
    /// Content.
    pub(super) payload: &'a [u8],
}

/// Checks and unwraps a value.
pub(super) fn check<'a>(key: &[u8], value: &'a [u8]) -> Result<Value<'a>, Malformed> {
    let mut payload = value;
    let head = codec::take(&mut payload, ENVELOPE)?;
    let version = head[0];
    let count = u16::from_le_bytes([head[1], head[2]]);
    let crc = u32::from_le_bytes([head[3], head[4], head[5], head[6]]);
    if !(1..=VERSION).contains(&version) || crc != checksum(version, key, count, payload) {
        return Err(Malformed);
    }
    Ok(Value {
        version,
        count,
        payload,
    })
}

/// Value of a chunk.
pub(super) fn chunk_value<P: Point>(key: &[u8], points: &[P]) -> Vec<u8> {
    wrap(key, points.len() as u16, &P::encode(points, Effort::Fast))
}

/// The `wanted` columns of a chunk's points.
pub(super) fn chunk_points<P: Point>(
    key: &[u8],
    value: &[u8],
    wanted: u64,
) -> Result<Vec<P>, Malformed> {
    let v = check(key, value)?;
    P::decode(v.version, v.payload, v.count as usize, wanted)
}

/// Value of a head record: the points as they are, for they are there for minutes.
pub(super) fn head_value<P: Point>(key: &[u8], entries: &[(u32, P)]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(entries.len() * 160);
    for (series, point) in entries {
        codec::put_varint(&mut payload, u64::from(*series));
        P::put(&mut payload, point);
    }
    wrap(key, entries.len() as u16, &payload)
}

/// Entries of a head record.
pub(super) fn head_entries<P: Point>(key: &[u8], value: &[u8]) -> Result<Vec<(u32, P)>, Malformed> {
    let v = check(key, value)?;
    let mut r = v.payload;
    let mut entries = Vec::with_capacity(v.count as usize);
    for _ in 0..v.count {
        let series = u32::try_from(codec::get_varint(&mut r)?).map_err(|_| Malformed)?;
        let point = P::get(v.version, &mut r)?;
        entries.push((series, point));
    }
    if r.is_empty() {
        Ok(entries)
    } else {
        Err(Malformed)
    }
}

/// What is sealed: the last append's sequence number and the number of points in chunks.
pub(super) fn meta_value(seq: u64, points: u64) -> Vec<u8> {
    let mut payload = seq.to_le_bytes().to_vec();
    payload.extend_from_slice(&points.to_le_bytes());
    wrap(META, 1, &payload)
}

/// Reads [`meta_value`].
pub(super) fn meta(value: &[u8]) -> Result<(u64, u64), Malformed> {
    let mut r = check(META, value)?.payload;
    let mut next = || -> Result<u64, Malformed> {
        let b = codec::take(&mut r, 8)?;
        Ok(u64::from_le_bytes(b.try_into().map_err(|_| Malformed)?))
    };
    Ok((next()?, next()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::Usage;

    #[test]
    fn a_flip_anywhere_and_another_key_are_found() {
        let p = Usage {
            at_ms: 1_700_000_000_000,
            dt_s: 5.0,
            cpu_percent: Some(12.5),
            ..Usage::default()
        };
        let key = chunk_key(p.at_ms / 3_600_000, 7, p.at_ms);
        let value = chunk_value(&key, &[p]);
        assert_eq!(chunk_points(&key, &value, codec::ALL), Ok(vec![p]));
        for i in 0..value.len() {
            for bit in 0..8 {
                let mut v = value.clone();
                v[i] ^= 1 << bit;
                assert_eq!(
                    chunk_points::<Usage>(&key, &v, codec::ALL),
                    Err(Malformed),
                    "byte {i} bit {bit}"
                );
            }
        }
        assert_eq!(
            chunk_points::<Usage>(&chunk_key(1, 7, p.at_ms), &value, codec::ALL),
            Err(Malformed)
        );
        assert_eq!(Key::parse(&key), Some(Key::Chunk { series: 7 }));
        let key = head_key(3, 0);
        let value = head_value(&key, &[(7, p), (9, p)]);
        assert_eq!(head_entries(&key, &value), Ok(vec![(7, p), (9, p)]));
    }
}
