//! Exact compression of a run of points: what goes in comes out bit for bit.
//!
//! Rates are stored as the counter differences they were computed from: a percentage is
//! `k / (dt_s * 1e6) * 100` and a rate is `k / dt_s` for a whole number `k` (see
//! [`crate::usage::usage`]), so `k` is found again, checked by computing the value back, and
//! packed as an integer. A column in which any value does not come back exactly is stored as
//! floats (XOR with the value before). Nothing is rounded.

use crate::usage::{MIB, Usage};

/// Most points of one encoded run.
pub(super) const MAX_POINTS: usize = 4096;

/// Number of optional columns of [`Usage`].
const COLUMNS: usize = 11;

/// Bytes that are not an encoded run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed run of points")]
pub(super) struct Malformed;

type Result<T> = std::result::Result<T, Malformed>;

/// How a whole number becomes a column's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scale {
    /// Microseconds of the interval, as percent.
    Percent,
    /// Amount per second of the interval.
    Rate,
    /// Bytes as MiB.
    Mib,
    /// The number itself.
    Whole,
    /// Hundredths.
    Cents,
    /// Nanoseconds as seconds.
    Nanos,
}

impl Scale {
    const ALL: [Self; 6] = [
        Self::Percent,
        Self::Rate,
        Self::Mib,
        Self::Whole,
        Self::Cents,
        Self::Nanos,
    ];

    fn value(self, k: i64, dt_s: f64) -> f64 {
        let k = k as f64;
        match self {
            Self::Percent => k / (dt_s * 1e6) * 100.0,
            Self::Rate => k / dt_s,
            Self::Mib => k / MIB,
            Self::Whole => k,
            Self::Cents => k / 100.0,
            Self::Nanos => k / 1e9,
        }
    }

    /// The whole number behind `v`, if there is one that gives exactly `v` again.
    fn whole(self, v: f64, dt_s: f64) -> Option<i64> {
        let guess = match self {
            Self::Percent => v / 100.0 * (dt_s * 1e6),
            Self::Rate => v * dt_s,
            Self::Mib => v * MIB,
            Self::Whole => v,
            Self::Cents => v * 100.0,
            Self::Nanos => v * 1e9,
        }
        .round();
        if !(guess.is_finite() && guess.abs() < 9e15) {
            return None;
        }
        let k = guess as i64;
        (self.value(k, dt_s).to_bits() == v.to_bits()).then_some(k)
    }
}

fn column(u: &Usage, i: usize) -> Option<f64> {
    [
        u.cpu_percent,
        u.throttled_percent,
        u.memory_mib,
        u.net_rx_bps,
        u.net_tx_bps,
        u.disk_read_bps,
        u.disk_write_bps,
        u.psi_cpu_percent,
        u.psi_memory_percent,
        u.psi_io_percent,
        u.processes,
    ][i]
}

fn column_mut(u: &mut Usage, i: usize) -> &mut Option<f64> {
    match i {
        0 => &mut u.cpu_percent,
        1 => &mut u.throttled_percent,
        2 => &mut u.memory_mib,
        3 => &mut u.net_rx_bps,
        4 => &mut u.net_tx_bps,
        5 => &mut u.disk_read_bps,
        6 => &mut u.disk_write_bps,
        7 => &mut u.psi_cpu_percent,
        8 => &mut u.psi_memory_percent,
        9 => &mut u.psi_io_percent,
        _ => &mut u.processes,
    }
}

fn natural_scale(i: usize) -> Scale {
    match i {
        0 | 1 | 7 | 8 | 9 => Scale::Percent,
        2 => Scale::Mib,
        3..=6 => Scale::Rate,
        _ => Scale::Whole,
    }
}

/// Encodes points that are in time order, 1 to [`MAX_POINTS`] of them.
pub(super) fn encode(points: &[Usage]) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + points.len() * 12);
    let first = points.first().map_or(0, |p| p.at_ms);
    let last = points.last().map_or(0, |p| p.at_ms);
    put_varint(&mut out, zigzag(first));
    put_varint(&mut out, last.wrapping_sub(first) as u64);
    let deltas: Vec<i64> = points
        .windows(2)
        .map(|w| w[1].at_ms.wrapping_sub(w[0].at_ms))
        .collect();
    put_ints(&mut out, &deltas);
    let dts: Vec<f64> = points.iter().map(|p| p.dt_s).collect();
    put_values(&mut out, &dts, &dts, &[Scale::Nanos]);
    for i in 0..COLUMNS {
        put_column(&mut out, points, i);
    }
    out
}

/// First and last time of an encoded run, without decoding the rest.
pub(super) fn bounds(bytes: &[u8]) -> Result<(i64, i64)> {
    let mut r = bytes;
    let first = unzigzag(get_varint(&mut r)?);
    Ok((first, first.wrapping_add(get_varint(&mut r)?.cast_signed())))
}

/// Decodes `count` points.
pub(super) fn decode(bytes: &[u8], count: usize) -> Result<Vec<Usage>> {
    if count == 0 || count > MAX_POINTS {
        return Err(Malformed);
    }
    let mut r = bytes;
    let mut at_ms = unzigzag(get_varint(&mut r)?);
    let span = get_varint(&mut r)?;
    let last = at_ms.wrapping_add(span.cast_signed());
    let mut points = vec![Usage::default(); count];
    points[0].at_ms = at_ms;
    for (p, d) in points[1..].iter_mut().zip(get_ints(&mut r, count - 1)?) {
        at_ms = at_ms.wrapping_add(d);
        p.at_ms = at_ms;
    }
    if at_ms != last {
        return Err(Malformed);
    }
    let dts = get_values(&mut r, &vec![0.0; count])?;
    for (p, d) in points.iter_mut().zip(&dts) {
        p.dt_s = *d;
    }
    for i in 0..COLUMNS {
        get_column(&mut r, &mut points, i)?;
    }
    if r.is_empty() {
        Ok(points)
    } else {
        Err(Malformed)
    }
}

const ABSENT: u8 = 0;
const PRESENT: u8 = 1;
const SPARSE: u8 = 2;

fn put_column(out: &mut Vec<u8>, points: &[Usage], i: usize) {
    let mut dts = Vec::with_capacity(points.len());
    let mut values = Vec::with_capacity(points.len());
    let mut bitmap = vec![0u8; points.len().div_ceil(8)];
    for (n, p) in points.iter().enumerate() {
        if let Some(v) = column(p, i) {
            bitmap[n / 8] |= 1 << (n % 8);
            values.push(v);
            dts.push(p.dt_s);
        }
    }
    if values.is_empty() {
        out.push(ABSENT);
        return;
    }
    if values.len() == points.len() {
        out.push(PRESENT);
    } else {
        out.push(SPARSE);
        out.extend_from_slice(&bitmap);
    }
    put_values(
        out,
        &values,
        &dts,
        &[natural_scale(i), Scale::Whole, Scale::Cents],
    );
}

fn get_column(r: &mut &[u8], points: &mut [Usage], i: usize) -> Result<()> {
    let present: Vec<usize> = match take(r, 1)?[0] {
        ABSENT => return Ok(()),
        PRESENT => (0..points.len()).collect(),
        SPARSE => {
            let map = take(r, points.len().div_ceil(8))?;
            (0..points.len())
                .filter(|n| map[n / 8] & (1 << (n % 8)) != 0)
                .collect()
        }
        _ => return Err(Malformed),
    };
    let dts: Vec<f64> = present.iter().map(|n| points[*n].dt_s).collect();
    for (n, v) in present.iter().zip(get_values(r, &dts)?) {
        *column_mut(&mut points[*n], i) = Some(v);
    }
    Ok(())
}

/// Tag of a column stored as floats; smaller tags are indices into [`Scale::ALL`].
const FLOATS: u8 = 255;

fn put_values(out: &mut Vec<u8>, values: &[f64], dts: &[f64], scales: &[Scale]) {
    for scale in scales {
        let ints: Option<Vec<i64>> = values
            .iter()
            .zip(dts)
            .map(|(v, dt)| scale.whole(*v, *dt))
            .collect();
        if let Some(ints) = ints {
            out.push(Scale::ALL.iter().position(|s| s == scale).unwrap_or(0) as u8);
            put_ints(out, &ints);
            return;
        }
    }
    out.push(FLOATS);
    let mut before = 0u64;
    for v in values {
        let x = v.to_bits() ^ before;
        before = v.to_bits();
        let skip = (x.leading_zeros() / 8) as usize;
        let cut = if x == 0 {
            0
        } else {
            x.trailing_zeros() as usize / 8
        };
        out.push((skip << 4 | cut) as u8);
        out.extend_from_slice(&x.to_be_bytes()[skip..8 - cut]);
    }
}

fn get_values(r: &mut &[u8], dts: &[f64]) -> Result<Vec<f64>> {
    let tag = take(r, 1)?[0];
    if tag != FLOATS {
        let scale = *Scale::ALL.get(tag as usize).ok_or(Malformed)?;
        let ints = get_ints(r, dts.len())?;
        return Ok(ints
            .iter()
            .zip(dts)
            .map(|(k, dt)| scale.value(*k, *dt))
            .collect());
    }
    let mut before = 0u64;
    let mut values = Vec::with_capacity(dts.len());
    for _ in dts {
        let b = take(r, 1)?[0] as usize;
        let (skip, cut) = (b >> 4, b & 15);
        if skip + cut > 8 {
            return Err(Malformed);
        }
        let mut x = [0u8; 8];
        x[skip..8 - cut].copy_from_slice(take(r, 8 - cut - skip)?);
        before ^= u64::from_be_bytes(x);
        values.push(f64::from_bits(before));
    }
    Ok(values)
}

const CONSTANT: u8 = 0;
const PACKED: u8 = 1;
const PACKED_DELTA: u8 = 2;
const VARINT: u8 = 3;
const VARINT_DELTA: u8 = 4;

/// Integers by the smallest of five ways.
fn put_ints(out: &mut Vec<u8>, ints: &[i64]) {
    let Some(&first) = ints.first() else { return };
    if ints.iter().all(|v| *v == first) {
        out.push(CONSTANT);
        put_varint(out, zigzag(first));
        return;
    }
    let deltas: Vec<i64> = ints.windows(2).map(|w| w[1].wrapping_sub(w[0])).collect();
    let mut ways: [Vec<u8>; 4] = [
        vec![PACKED],
        vec![PACKED_DELTA],
        vec![VARINT],
        vec![VARINT_DELTA],
    ];
    put_packed(&mut ways[0], ints);
    put_varint(&mut ways[1], zigzag(first));
    put_packed(&mut ways[1], &deltas);
    for v in ints {
        put_varint(&mut ways[2], zigzag(*v));
    }
    put_varint(&mut ways[3], zigzag(first));
    for d in &deltas {
        put_varint(&mut ways[3], zigzag(*d));
    }
    if let Some(best) = ways.iter().min_by_key(|w| w.len()) {
        out.extend_from_slice(best);
    }
}

fn get_ints(r: &mut &[u8], count: usize) -> Result<Vec<i64>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let tag = take(r, 1)?[0];
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
        _ => Err(Malformed),
    }
}

/// Offsets from the smallest value, all in the same number of bits.
fn put_packed(out: &mut Vec<u8>, ints: &[i64]) {
    let base = ints.iter().copied().min().unwrap_or(0);
    let widest = ints.iter().map(|v| v.wrapping_sub(base) as u64).max();
    let width = 64 - widest.unwrap_or(0).leading_zeros();
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

fn zigzag(v: i64) -> u64 {
    ((v << 1) ^ (v >> 63)) as u64
}

fn unzigzag(v: u64) -> i64 {
    (v >> 1).cast_signed() ^ -(v & 1).cast_signed()
}

/// LEB128.
pub(super) fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

/// LEB128; advances `r`.
pub(super) fn get_varint(r: &mut &[u8]) -> Result<u64> {
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

/// The next `n` bytes; advances `r`.
pub(super) fn take<'a>(r: &mut &'a [u8], n: usize) -> Result<&'a [u8]> {
    let (head, rest) = r.split_at_checked(n).ok_or(Malformed)?;
    *r = rest;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bits(points: &[Usage]) -> Vec<(i64, u64, Vec<Option<u64>>)> {
        points
            .iter()
            .map(|p| {
                let columns = (0..COLUMNS)
                    .map(|i| column(p, i).map(f64::to_bits))
                    .collect();
                (p.at_ms, p.dt_s.to_bits(), columns)
            })
            .collect()
    }

    fn any_value() -> impl Strategy<Value = Option<f64>> {
        prop_oneof![
            1 => Just(None),
            3 => any::<u64>().prop_map(|b| Some(f64::from_bits(b))),
            3 => (0i32..10_000).prop_map(|v| Some(f64::from(v) / 100.0)),
            2 => (0u32..5).prop_map(|v| Some(f64::from(v))),
            1 => Just(Some(-0.0)),
        ]
    }

    fn any_run() -> impl Strategy<Value = Vec<Usage>> {
        let point = (
            0i64..100_000,
            any::<u64>(),
            proptest::collection::vec(any_value(), COLUMNS),
        );
        proptest::collection::vec(point, 1..150).prop_map(|raw| {
            let mut at_ms = 1_700_000_000_000;
            raw.into_iter()
                .map(|(step, dt, values)| {
                    at_ms += step + 1;
                    let mut u = Usage {
                        at_ms,
                        dt_s: if dt % 2 == 0 {
                            f64::from_bits(dt)
                        } else {
                            step as f64 / 1e3
                        },
                        ..Usage::default()
                    };
                    for (i, v) in values.into_iter().enumerate() {
                        *column_mut(&mut u, i) = v;
                    }
                    u
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn bit_for_bit(run in any_run()) {
            let bytes = encode(&run);
            prop_assert_eq!(bits(&decode(&bytes, run.len()).unwrap()), bits(&run));
            prop_assert_eq!(bounds(&bytes).unwrap(), (run[0].at_ms, run[run.len() - 1].at_ms));
        }

        #[test]
        fn counters_become_whole_numbers(
            k in 0i64..1_000_000_000_000, ns in 1_000_000u64..60_000_000_000
        ) {
            let dt = ns as f64 / 1e9;
            for s in Scale::ALL {
                prop_assert_eq!(s.whole(s.value(k, dt), dt), Some(k), "{:?}", s);
            }
        }

        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), n in 0usize..200) {
            let _ = decode(&bytes, n);
        }

        #[test]
        fn cut_or_flipped_never_panics(run in any_run(), at in any::<prop::sample::Index>(), x in 1u8..) {
            let mut bytes = encode(&run);
            let _ = decode(&bytes[..at.index(bytes.len())], run.len());
            let i = at.index(bytes.len());
            bytes[i] ^= x;
            let _ = decode(&bytes, run.len());
        }

        #[test]
        fn ints(v in proptest::collection::vec(any::<i64>(), 1..40)) {
            let mut out = Vec::new();
            put_ints(&mut out, &v);
            prop_assert_eq!(get_ints(&mut &out[..], v.len()).unwrap(), v);
        }
    }
}
