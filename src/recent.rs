//! The latest points of use of a feature, packed: a daemon that meters ten thousand features keeps
//! the last minutes of all of them in memory. Pure.
//!
//! Points are in blocks that can be read by themselves. In a block each point says what changed
//! since the one before it:
//!
//! ```text
//! time since the last point (zigzag varint)
//! columns whose presence changed (varint of bits, in the order of COLUMNS)
//! values that changed (varint of bits; bit 0 is the interval)
//! how many bytes each has (two bits each, one less than their number)
//! what changed of each: its code, xor the one before it, least byte first
//! ```
//!
//! A value's code is the upper 24 bits of an `f32`, rounded: nearly five digits. The newest point is
//! exact.

use std::collections::VecDeque;

use crate::columns::COLUMNS;
use crate::usage::Usage;

/// Points that are kept, at least, once there are so many.
pub const RECENT: usize = 60;
/// Points of a block: more are smaller, and as many more than [`RECENT`] are kept.
const BLOCK: usize = 12;

/// The latest points of use, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Recent {
    full: VecDeque<Box<[u8]>>,
    open: Vec<u8>,
    in_open: usize,
    latest: Option<Usage>,
}

impl Recent {
    /// Adds a point; the oldest go when there are enough.
    pub fn push(&mut self, point: Usage) {
        if self.in_open == BLOCK {
            let full = std::mem::take(&mut self.open);
            self.full.push_back(full.into_boxed_slice());
            self.in_open = 0;
            if (self.full.len() - 1) * BLOCK >= RECENT {
                self.full.pop_front();
            }
        }
        let before = self.latest.filter(|_| self.in_open > 0);
        let mut bytes = Vec::with_capacity(128);
        encode(&mut bytes, &before.unwrap_or_default(), &point);
        // No more than is needed: there are thousands of these.
        self.open.reserve_exact(bytes.len());
        self.open.extend_from_slice(&bytes);
        self.in_open += 1;
        self.latest = Some(point);
    }

    /// The newest point.
    pub fn latest(&self) -> Option<&Usage> {
        self.latest.as_ref()
    }

    /// All points, oldest first.
    pub fn all(&self) -> Vec<Usage> {
        self.last(usize::MAX)
    }

    /// The last `count` points, oldest first.
    pub fn last(&self, count: usize) -> Vec<Usage> {
        let full = count.saturating_sub(self.in_open).div_ceil(BLOCK);
        let skip = self.full.len().saturating_sub(full);
        let mut points = Vec::with_capacity((self.full.len() - skip) * BLOCK + self.in_open);
        for block in self.full.iter().skip(skip) {
            decode(block, &mut points);
        }
        decode(&self.open, &mut points);
        if let (Some(last), Some(latest)) = (points.last_mut(), self.latest) {
            *last = latest;
        }
        points.drain(..points.len().saturating_sub(count));
        points
    }

    /// Forgets blocks of points of which none is later than `at_ms`.
    pub fn forget(&mut self, at_ms: i64) {
        let begin = |mut block: &[u8]| take_varint(&mut block).map(unzigzag);
        while !self.full.is_empty() {
            let next = self.full.get(1).map_or(&self.open[..], |b| b);
            // The next one begins with the first point after this one's last.
            if begin(next).is_none_or(|at| at > at_ms) {
                break;
            }
            self.full.pop_front();
        }
    }

    /// Points later than `at_ms`, oldest first, as far as times went on.
    pub fn after(&self, at_ms: i64) -> Vec<Usage> {
        let begin = |mut block: &[u8]| take_varint(&mut block).map_or(i64::MIN, unzigzag);
        let mut count = self.in_open;
        let mut oldest = begin(&self.open);
        for block in self.full.iter().rev() {
            if oldest <= at_ms {
                break;
            }
            oldest = begin(block);
            count += BLOCK;
        }
        let mut points = self.last(count);
        points.retain(|p| p.at_ms > at_ms);
        points
    }

    /// Time of the oldest point, milliseconds since the epoch.
    pub fn since_ms(&self) -> Option<i64> {
        let mut oldest = self.full.front().map_or(&self.open[..], |b| b);
        take_varint(&mut oldest).map(unzigzag)
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// A value in 24 bits.
fn code(value: f64) -> u32 {
    let bits = (value as f32).to_bits();
    if value.is_finite() {
        (bits + 0x80) >> 8
    } else {
        bits >> 8
    }
}

/// The value of a code.
fn value_of(code: u32) -> f64 {
    f64::from(f32::from_bits(code << 8))
}

/// Bytes of a difference of codes, less one.
fn length(difference: u32) -> u8 {
    match difference {
        0..=0xff => 0,
        0x100..=0xffff => 1,
        _ => 2,
    }
}

/// What changed of values, with how many bytes each has.
struct Differences<'a> {
    lengths: &'a [u8],
    bytes: &'a [u8],
    taken: usize,
}

impl<'a> Differences<'a> {
    fn of(bytes: &mut &'a [u8], count: usize) -> Option<Self> {
        let (lengths, rest) = bytes.split_at_checked(count.div_ceil(4))?;
        let of = |n: usize| usize::from(lengths[n / 4] >> (n % 4 * 2) & 3) + 1;
        let (own, rest) = rest.split_at_checked((0..count).map(of).sum())?;
        *bytes = rest;
        Some(Self {
            lengths,
            bytes: own,
            taken: 0,
        })
    }

    /// The next value, of one that was `before`.
    fn take(&mut self, before: Option<f64>) -> Option<f64> {
        let length = self.lengths.get(self.taken / 4)? >> (self.taken % 4 * 2) & 3;
        let (own, rest) = self.bytes.split_at_checked(usize::from(length) + 1)?;
        let mut difference = [0; 4];
        difference[..own.len()].copy_from_slice(own);
        (self.bytes, self.taken) = (rest, self.taken + 1);
        let old = before.map_or(0, code);
        Some(value_of(old ^ u32::from_le_bytes(difference)))
    }
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

fn encode(out: &mut Vec<u8>, before: &Usage, now: &Usage) {
    put_varint(out, zigzag(now.at_ms.wrapping_sub(before.at_ms)));
    let (mut presence, mut changed) = (0, 0);
    let mut differences = [0_u32; COLUMNS.len() + 1];
    let mut count = 0;
    let mut value = |bit: usize, old: Option<f64>, new: f64| {
        let difference = old.map_or(0, code) ^ code(new);
        if old.is_none() || difference != 0 {
            changed |= 1_u64 << bit;
            differences[count] = difference;
            count += 1;
        }
    };
    value(0, Some(before.dt_s), now.dt_s);
    for (n, column) in COLUMNS.iter().enumerate() {
        let (old, new) = ((column.get)(before), (column.get)(now));
        presence |= u64::from(old.is_some() != new.is_some()) << n;
        if let Some(new) = new {
            value(n + 1, old, new);
        }
    }
    put_varint(out, presence);
    put_varint(out, changed);
    for four in differences[..count].chunks(4) {
        let lengths = four.iter().rev().fold(0, |all, d| all << 2 | length(*d));
        out.push(lengths);
    }
    for d in &differences[..count] {
        out.extend_from_slice(&d.to_le_bytes()[..=usize::from(length(*d))]);
    }
}

/// Adds a block's points. What [`encode`] did not write ends the block.
fn decode(mut block: &[u8], points: &mut Vec<Usage>) {
    let mut point = Usage::default();
    while let Some(next) = decode_next(&mut block, &point) {
        points.push(next);
        point = next;
    }
}

fn decode_next(block: &mut &[u8], before: &Usage) -> Option<Usage> {
    let mut point = *before;
    point.at_ms = before.at_ms.wrapping_add(unzigzag(take_varint(block)?));
    let (presence, changed) = (take_varint(block)?, take_varint(block)?);
    let mut values = Differences::of(block, changed.count_ones() as usize)?;
    if changed & 1 != 0 {
        point.dt_s = values.take(Some(before.dt_s))?;
    }
    for (n, column) in COLUMNS.iter().enumerate() {
        if presence >> n & 1 != 0 && (column.get)(before).is_some() {
            (column.set)(&mut point, None);
        } else if changed >> (n + 1) & 1 != 0 {
            let value = values.take((column.get)(before))?;
            (column.set)(&mut point, Some(value));
        }
    }
    Some(point)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rounded(point: &Usage) -> Usage {
        let round = |v: f64| {
            let rounded = value_of(code(v));
            assert!((rounded - v).abs() <= v.abs() * 2e-5, "{v} {rounded}");
            rounded
        };
        let mut p = *point;
        p.dt_s = round(p.dt_s);
        for c in COLUMNS {
            (c.set)(&mut p, (c.get)(point).map(round));
        }
        p
    }

    fn point() -> impl Strategy<Value = Usage> {
        let value = prop_oneof![
            2 => Just(None),
            3 => Just(Some(0.0)),
            3 => (0.0..1e9_f64).prop_map(Some),
        ];
        let values = proptest::collection::vec(value, COLUMNS.len());
        let times = prop_oneof![9 => 0_i64..1 << 41, 1 => any::<i64>()];
        (times, 0.5..60.0_f64, values).prop_map(|(at_ms, dt_s, values)| {
            let mut u = Usage {
                at_ms,
                dt_s,
                ..Usage::default()
            };
            for (c, v) in COLUMNS.iter().zip(values) {
                (c.set)(&mut u, v);
            }
            u
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn what_goes_in_comes_out(points in proptest::collection::vec(point(), 1..200)) {
            let mut recent = Recent::default();
            for (n, p) in points.iter().enumerate() {
                recent.push(*p);
                let all = recent.all();
                prop_assert!(all.len() == n + 1 || all.len() >= RECENT);
                prop_assert!(all.len() < RECENT + 2 * BLOCK);
                prop_assert_eq!(all.last(), Some(p));
                prop_assert_eq!(recent.latest(), Some(p));
                prop_assert_eq!(recent.since_ms(), Some(all[0].at_ms));
                let expected: Vec<Usage> = points[n + 1 - all.len()..n].iter().map(rounded).collect();
                prop_assert_eq!(&all[..all.len() - 1], &expected[..]);
                prop_assert_eq!(&recent.last(5)[..], &all[all.len().saturating_sub(5)..]);
                prop_assert_eq!(recent.after(i64::MIN).len(), all.iter().filter(|p| p.at_ms != i64::MIN).count());
            }
        }
    }

    #[test]
    fn what_came_after() {
        let mut recent = Recent::default();
        for n in 1..=100 {
            recent.push(Usage {
                at_ms: n * 5000,
                ..Usage::default()
            });
            for back in 0..n.min(60) {
                let after = recent.after((n - back) * 5000);
                let mut short = recent.clone();
                short.forget((n - back) * 5000);
                assert_eq!(short.after((n - back) * 5000), after);
                assert!(short.all().len() < after.len() + 2 * BLOCK);
                assert!(
                    after
                        .iter()
                        .map(|p| p.at_ms)
                        .eq((n - back + 1..=n).map(|n| n * 5000))
                );
            }
        }
    }

    #[test]
    fn nothing_and_its_size() {
        let mut recent = Recent::default();
        assert_eq!(
            (recent.all(), recent.latest(), recent.since_ms()),
            (vec![], None, None)
        );
        for n in 0..1000 {
            // As a busy feature is: half of the columns change each time.
            let mut u = Usage {
                at_ms: 1_700_000_000_000 + n * 5000 + n % 3,
                dt_s: 5.0 + n as f64 / 1e4,
                ..Usage::default()
            };
            for (c, v) in COLUMNS.iter().zip(1..) {
                (c.set)(
                    &mut u,
                    Some(if v % 2 == 0 {
                        0.0
                    } else {
                        (n * v) as f64 / 7.0
                    }),
                );
            }
            recent.push(u);
        }
        let bytes = recent.full.iter().map(|b| b.len()).sum::<usize>() + recent.open.len();
        let plain = recent.all().len() * size_of::<Usage>();
        assert!(bytes * 7 < plain, "{bytes} of {plain} bytes");
    }

    #[test]
    fn odd_values_stay_odd() {
        for odd in [f64::INFINITY, f64::NEG_INFINITY, 1e300, -0.0, 0.0] {
            assert_eq!(value_of(code(odd)), f64::from(odd as f32), "{odd}");
        }
        assert!(value_of(code(f64::NAN)).is_nan());
        assert_eq!(value_of(code(f64::from(f32::MAX))), f64::INFINITY);
        assert_eq!(value_of(code(65_535.0)), 65_535.0);
    }
}
