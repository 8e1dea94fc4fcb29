//! Whole numbers, packed. Two ways: fast, for what is written while points come in, and small,
//! for what stays.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pco::data_types::Number;
use pco::wrapped::{FileCompressor, FileDecompressor};
use pco::{ChunkConfig, DeltaSpec, ModeSpec};

use super::{Effort, Malformed, Result};

const CONSTANT: u8 = 0;
const PACKED: u8 = 1;
const PACKED_DELTA: u8 = 2;
const VARINT: u8 = 3;
const VARINT_DELTA: u8 = 4;
const PCO_32: u8 = 5;
const PCO_64: u8 = 6;
/// A factor and a base, then the numbers without them.
const SCALED: u8 = 7;

/// Fewer numbers than this are not worth pco's tables.
const PCO_LEAST: usize = 24;
const PCO_LEVEL: usize = 8;

/// Integers by the smallest way that is known.
pub(super) fn put_ints(out: &mut Vec<u8>, ints: &[i64], effort: Effort) {
    let Some(&first) = ints.first() else { return };
    if ints.iter().all(|v| *v == first) {
        out.push(CONSTANT);
        put_varint(out, zigzag(first));
        return;
    }
    if let Some((factor, base)) = common_factor(ints) {
        out.push(SCALED);
        put_varint(out, factor);
        put_varint(out, zigzag(base));
        let reduced: Vec<i64> = ints
            .iter()
            .map(|v| (v.wrapping_sub(base) as u64 / factor).cast_signed())
            .collect();
        put_plain(out, &reduced, effort);
        return;
    }
    put_plain(out, ints, effort);
}

/// The factor above 1 that all distances from the least number share, and that number.
fn common_factor(ints: &[i64]) -> Option<(u64, i64)> {
    let base = ints.iter().copied().min()?;
    let mut factor = 0u64;
    for v in ints {
        let (mut a, mut b) = (v.wrapping_sub(base) as u64, factor);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        factor = a;
        if factor == 1 {
            return None;
        }
    }
    (factor > 1).then_some((factor, base))
}

fn put_plain(out: &mut Vec<u8>, ints: &[i64], effort: Effort) {
    let Some(&first) = ints.first() else { return };
    let deltas: Vec<i64> = ints.windows(2).map(|w| w[1].wrapping_sub(w[0])).collect();
    let mut best = (PACKED, packed_len(ints));
    let mut consider = |tag, len: usize| {
        if len < best.1 {
            best = (tag, len);
        }
    };
    let first_len = varint_len(zigzag(first));
    consider(PACKED_DELTA, first_len + packed_len(&deltas));
    consider(VARINT, ints.iter().map(|v| varint_len(zigzag(*v))).sum());
    let of_deltas: usize = deltas.iter().map(|v| varint_len(zigzag(*v))).sum();
    consider(VARINT_DELTA, first_len + of_deltas);
    let mut by_pco = Vec::new();
    if effort == Effort::Small && ints.len() >= PCO_LEAST {
        let narrow: Option<Vec<i32>> = ints.iter().map(|v| i32::try_from(*v).ok()).collect();
        let (tag, bytes) = match narrow {
            Some(v) => (PCO_32, pco(&v)),
            None => (PCO_64, pco(ints)),
        };
        if let Some(bytes) = bytes {
            consider(tag, bytes.len() + varint_len(bytes.len() as u64));
            by_pco = bytes;
        }
    }
    out.push(best.0);
    match best.0 {
        PACKED => put_packed(out, ints),
        PACKED_DELTA => {
            put_varint(out, zigzag(first));
            put_packed(out, &deltas);
        }
        VARINT => {
            for v in ints {
                put_varint(out, zigzag(*v));
            }
        }
        VARINT_DELTA => {
            put_varint(out, zigzag(first));
            for d in &deltas {
                put_varint(out, zigzag(*d));
            }
        }
        _ => put_bytes(out, &by_pco),
    }
}

/// The counterpart of [`put_ints`], of any effort and of both versions of the format.
pub(super) fn get_ints(r: &mut &[u8], count: usize) -> Result<Vec<i64>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let tag = take(r, 1)?[0];
    if tag == SCALED {
        let factor = get_varint(r)?.cast_signed();
        let base = unzigzag(get_varint(r)?);
        let tag = take(r, 1)?[0];
        let mut v = get_tagged(tag, r, count)?;
        for x in &mut v {
            *x = base.wrapping_add(x.wrapping_mul(factor));
        }
        return Ok(v);
    }
    get_tagged(tag, r, count)
}

fn get_tagged(tag: u8, r: &mut &[u8], count: usize) -> Result<Vec<i64>> {
    let varints = |r: &mut &[u8], n: usize| -> Result<Vec<i64>> {
        (0..n).map(|_| Ok(unzigzag(get_varint(r)?))).collect()
    };
    let sum = |first: i64, deltas: Vec<i64>| -> Vec<i64> {
        let mut v = Vec::with_capacity(deltas.len() + 1);
        v.push(first);
        let mut now = first;
        for d in deltas {
            now = now.wrapping_add(d);
            v.push(now);
        }
        v
    };
    match tag {
        CONSTANT => Ok(vec![unzigzag(get_varint(r)?); count]),
        PACKED => get_packed(r, count),
        PACKED_DELTA => {
            let first = unzigzag(get_varint(r)?);
            Ok(sum(first, get_packed(r, count - 1)?))
        }
        VARINT => varints(r, count),
        VARINT_DELTA => {
            let first = unzigzag(get_varint(r)?);
            Ok(sum(first, varints(r, count - 1)?))
        }
        PCO_32 => {
            let v: Vec<i32> = unpco(get_bytes(r)?, count)?;
            Ok(v.into_iter().map(i64::from).collect())
        }
        PCO_64 => unpco(get_bytes(r)?, count),
        _ => Err(Malformed),
    }
}

/// pco's smallest of two ways, deltas or not; `None` when it refuses.
pub(super) fn pco<T: Number>(values: &[T]) -> Option<Vec<u8>> {
    [DeltaSpec::TryConsecutive(1), DeltaSpec::NoOp]
        .into_iter()
        .filter_map(|delta| {
            let config = ChunkConfig::default()
                .with_compression_level(PCO_LEVEL)
                .with_mode_spec(ModeSpec::Classic)
                .with_delta_spec(delta);
            let file = FileCompressor::default();
            let mut out = Vec::new();
            file.write_header(&mut out).ok()?;
            let mut chunk = file.chunk_compressor(values, &config).ok()?;
            chunk.write_meta(&mut out).ok()?;
            chunk.write_page(0, &mut out).ok()?;
            Some(out)
        })
        .min_by_key(Vec::len)
}

/// The counterpart of [`pco`]. Its input is covered by a checksum; should it be wrong all the
/// same, a panic of pco's is no more than an error here.
pub(super) fn unpco<T: Number>(bytes: &[u8], count: usize) -> Result<Vec<T>> {
    catch_unwind(AssertUnwindSafe(|| {
        let (file, rest) = FileDecompressor::new(bytes).ok()?;
        let (mut chunk, rest) = file.chunk_decompressor::<T, _>(rest).ok()?;
        let mut values = vec![T::default(); count];
        let mut page = chunk.page_decompressor(rest, count).ok()?;
        let progress = page.read(&mut values).ok()?;
        (progress.n_processed == count).then_some(values)
    }))
    .ok()
    .flatten()
    .ok_or(Malformed)
}

fn width_of(ints: &[i64]) -> (i64, u32) {
    let base = ints.iter().copied().min().unwrap_or(0);
    let widest = ints.iter().map(|v| v.wrapping_sub(base) as u64).max();
    (base, 64 - widest.unwrap_or(0).leading_zeros())
}

fn packed_len(ints: &[i64]) -> usize {
    let (base, width) = width_of(ints);
    varint_len(zigzag(base)) + 1 + (width as usize * ints.len()).div_ceil(8)
}

/// Offsets from the smallest value, all in the same number of bits.
fn put_packed(out: &mut Vec<u8>, ints: &[i64]) {
    let (base, width) = width_of(ints);
    put_varint(out, zigzag(base));
    out.push(width as u8);
    let (mut acc, mut bits) = (0u128, 0u32);
    for v in ints {
        acc |= u128::from(v.wrapping_sub(base) as u64) << bits;
        bits += width;
        while bits >= 8 {
            out.push(acc as u8);
            acc >>= 8;
            bits -= 8;
        }
    }
    if bits > 0 {
        out.push(acc as u8);
    }
}

fn get_packed(r: &mut &[u8], count: usize) -> Result<Vec<i64>> {
    let base = unzigzag(get_varint(r)?);
    let width = u32::from(take(r, 1)?[0]);
    if width > 64 {
        return Err(Malformed);
    }
    let bytes = take(r, (width as usize * count).div_ceil(8))?;
    let mask = if width == 64 {
        u64::MAX
    } else {
        (1u64 << width) - 1
    };
    let (mut acc, mut bits, mut at) = (0u128, 0u32, 0usize);
    let mut v = Vec::with_capacity(count);
    for _ in 0..count {
        while bits < width {
            acc |= u128::from(bytes[at]) << bits;
            at += 1;
            bits += 8;
        }
        v.push(base.wrapping_add((acc as u64 & mask).cast_signed()));
        acc >>= width;
        bits -= width;
    }
    Ok(v)
}

pub(super) fn zigzag(v: i64) -> u64 {
    ((v << 1) ^ (v >> 63)) as u64
}

pub(super) fn unzigzag(v: u64) -> i64 {
    (v >> 1).cast_signed() ^ -(v & 1).cast_signed()
}

fn varint_len(v: u64) -> usize {
    (64 - (v | 1).leading_zeros()).div_ceil(7) as usize
}

/// LEB128.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

/// LEB128; advances `r`.
pub(crate) fn get_varint(r: &mut &[u8]) -> Result<u64> {
    let mut v = 0u64;
    for shift in (0..70).step_by(7) {
        let b = take(r, 1)?[0];
        if shift == 63 && b > 1 {
            return Err(Malformed);
        }
        v |= u64::from(b & 0x7f) << shift;
        if b < 0x80 {
            return Ok(v);
        }
    }
    Err(Malformed)
}

/// Bytes with their number before them.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// The counterpart of [`put_bytes`]; advances `r`.
pub(super) fn get_bytes<'a>(r: &mut &'a [u8]) -> Result<&'a [u8]> {
    let n = usize::try_from(get_varint(r)?).map_err(|_| Malformed)?;
    take(r, n)
}

/// The next `n` bytes; advances `r`.
pub(crate) fn take<'a>(r: &mut &'a [u8], n: usize) -> Result<&'a [u8]> {
    let (head, rest) = r.split_at_checked(n).ok_or(Malformed)?;
    *r = rest;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_ints(v in proptest::collection::vec(any::<i64>(), 1..40), factor in 1i64..5000) {
            for effort in [Effort::Fast, Effort::Small] {
                let scaled: Vec<i64> = v.iter().map(|x| (x >> 20) * factor).collect();
                let narrow: Vec<i64> = v.iter().map(|x| x % 1000).collect();
                for ints in [&v, &scaled, &narrow] {
                    let mut out = Vec::new();
                    put_ints(&mut out, ints, effort);
                    let mut r = &out[..];
                    prop_assert_eq!(&get_ints(&mut r, ints.len()).unwrap(), ints);
                    prop_assert!(r.is_empty());
                }
            }
        }

        #[test]
        fn lengths_are_foretold(v in any::<u64>(), ints in proptest::collection::vec(any::<i64>(), 1..40)) {
            let mut out = Vec::new();
            put_varint(&mut out, v);
            prop_assert_eq!(out.len(), varint_len(v));
            out.clear();
            put_packed(&mut out, &ints);
            prop_assert_eq!(out.len(), packed_len(&ints));
        }

        #[test]
        fn any_floats(bits in proptest::collection::vec(any::<u64>(), 24..300)) {
            let v: Vec<f64> = bits.iter().map(|b| f64::from_bits(*b)).collect();
            let back: Vec<f64> = unpco(&pco(&v).unwrap(), v.len()).unwrap();
            prop_assert!(v.iter().zip(&back).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }
}
