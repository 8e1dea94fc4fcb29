//! Exact compression of a run of points: what goes in comes out bit for bit.
//!
//! Rates are stored as the counter differences they were computed from: a percentage is
//! `k / (dt_s * 1e6) * 100` and a rate is `k / dt_s` for a whole number `k` (see
//! [`crate::usage::usage`]), so `k` is found again, checked by computing the value back, and
//! packed as an integer. Values with a fixed number of decimals become integers too. A column in
//! which any value does not come back exactly is stored as floats. Nothing is rounded.
//!
//! ```text
//! first time, time from first to last, distances between points, lengths of the intervals
//! number of columns, then per column: code, length in bytes, content
//! ```
//!
//! A column's code is its identifier (see [`crate::columns`]) times four plus what is told of it:
//! the value or mean, least, most, last. Columns without any value are left out, columns with an
//! unknown code are skipped: columns can be added without a new version of the format. Version 1,
//! with eleven fixed columns, is read too.

mod ints;
mod v1;
mod values;

use ints::{get_bytes, get_ints, put_bytes, put_ints, unzigzag, zigzag};
pub(super) use ints::{get_varint, put_varint, take};
use values::{Scale, get_values, put_values};

use crate::columns::{self, COLUMNS, Column, Unit};
use crate::rollup::Rollup;
use crate::usage::Usage;

/// Most points of one encoded run.
pub(super) const MAX_POINTS: usize = 4096;

/// All columns, those of later versions too.
pub(super) const ALL: u64 = u64::MAX;

/// Bytes that are not an encoded run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed run of points")]
pub(super) struct Malformed;

type Result<T> = std::result::Result<T, Malformed>;

/// How much time to spend on a small result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effort {
    /// While points come in.
    Fast,
    /// For what stays as it is.
    Small,
}

/// What is told of a column; the last two bits of its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// Value, or mean of a rollup.
    Value = 0,
    Min = 1,
    Max = 2,
    Last = 3,
}

/// Times and interval lengths of a run.
struct Frame {
    at_ms: Vec<i64>,
    dt_s: Vec<f64>,
}

fn put_frame(out: &mut Vec<u8>, frame: &Frame, effort: Effort) {
    let first = frame.at_ms.first().copied().unwrap_or(0);
    let last = frame.at_ms.last().copied().unwrap_or(0);
    put_varint(out, zigzag(first));
    put_varint(out, last.wrapping_sub(first) as u64);
    let pairs = frame.at_ms.windows(2);
    let deltas: Vec<i64> = pairs.map(|w| w[1].wrapping_sub(w[0])).collect();
    put_ints(out, &deltas, effort);
    put_values(out, &frame.dt_s, &frame.dt_s, Some(Scale::Nanos), effort);
}

fn get_frame(r: &mut &[u8], count: usize) -> Result<Frame> {
    if count == 0 || count > MAX_POINTS {
        return Err(Malformed);
    }
    let mut at = unzigzag(get_varint(r)?);
    let last = at.wrapping_add(get_varint(r)?.cast_signed());
    let mut at_ms = Vec::with_capacity(count);
    at_ms.push(at);
    for d in get_ints(r, count - 1)? {
        at = at.wrapping_add(d);
        at_ms.push(at);
    }
    if at != last {
        return Err(Malformed);
    }
    let dt_s = get_values(r, &vec![0.0; count])?;
    Ok(Frame { at_ms, dt_s })
}

/// First and last time of an encoded run, without decoding the rest.
pub(super) fn bounds(bytes: &[u8]) -> Result<(i64, i64)> {
    let mut r = bytes;
    let first = unzigzag(get_varint(&mut r)?);
    Ok((first, first.wrapping_add(get_varint(&mut r)?.cast_signed())))
}

const PRESENT: u8 = 1;
const SPARSE: u8 = 2;
/// The same values as the column's means.
const SAME: u8 = 3;

/// Writes the content of a column; nothing when no point has a value.
fn put_column(
    out: &mut Vec<u8>,
    values: &[Option<f64>],
    frame: &Frame,
    scale: Option<Scale>,
    effort: Effort,
) {
    let known: Vec<f64> = values.iter().flatten().copied().collect();
    if known.is_empty() {
        return;
    }
    if known.len() == values.len() {
        out.push(PRESENT);
        put_values(out, &known, &frame.dt_s, scale, effort);
        return;
    }
    out.push(SPARSE);
    let mut bitmap = vec![0u8; values.len().div_ceil(8)];
    let mut dts = Vec::with_capacity(known.len());
    for (n, _) in values.iter().enumerate().filter(|(_, v)| v.is_some()) {
        bitmap[n / 8] |= 1 << (n % 8);
        dts.push(frame.dt_s[n]);
    }
    out.extend_from_slice(&bitmap);
    put_values(out, &known, &dts, scale, effort);
}

fn get_column(r: &mut &[u8], tag: u8, frame: &Frame) -> Result<Vec<Option<f64>>> {
    let count = frame.at_ms.len();
    match tag {
        PRESENT => Ok(get_values(r, &frame.dt_s)?.into_iter().map(Some).collect()),
        SPARSE => {
            let map = take(r, count.div_ceil(8))?;
            let has = |n: &usize| map[n / 8] & (1 << (n % 8)) != 0;
            let present: Vec<usize> = (0..count).filter(has).collect();
            let dts: Vec<f64> = present.iter().map(|n| frame.dt_s[*n]).collect();
            let mut values = vec![None; count];
            for (n, v) in present.into_iter().zip(get_values(r, &dts)?) {
                values[n] = Some(v);
            }
            Ok(values)
        }
        _ => Err(Malformed),
    }
}

fn scale_of(unit: Unit) -> Scale {
    match unit {
        Unit::Percent => Scale::Percent,
        Unit::Mib => Scale::Mib,
        Unit::BytesPerSecond | Unit::PerSecond => Scale::Rate,
        Unit::Count => Scale::Decimal(0),
    }
}

/// Collects columns and counts them.
struct Columns {
    bytes: Vec<u8>,
    count: u64,
}

impl Columns {
    fn put(&mut self, column: &Column, told: Told, content: &[u8]) {
        if !content.is_empty() {
            put_varint(&mut self.bytes, u64::from(column.id) * 4 + told as u64);
            put_bytes(&mut self.bytes, content);
            self.count += 1;
        }
    }

    fn finish(self, mut out: Vec<u8>) -> Vec<u8> {
        put_varint(&mut out, self.count);
        out.extend_from_slice(&self.bytes);
        out
    }
}

/// Encodes points that are in time order, 1 to [`MAX_POINTS`] of them.
pub(super) fn encode(points: &[Usage], effort: Effort) -> Vec<u8> {
    let frame = Frame {
        at_ms: points.iter().map(|p| p.at_ms).collect(),
        dt_s: points.iter().map(|p| p.dt_s).collect(),
    };
    let mut out = Vec::with_capacity(64 + points.len() * 16);
    put_frame(&mut out, &frame, effort);
    let mut columns = Columns {
        bytes: Vec::with_capacity(points.len() * 16),
        count: 0,
    };
    let mut content = Vec::new();
    for c in COLUMNS {
        let values: Vec<Option<f64>> = points.iter().map(c.get).collect();
        content.clear();
        put_column(
            &mut content,
            &values,
            &frame,
            Some(scale_of(c.unit)),
            effort,
        );
        columns.put(c, Told::Value, &content);
    }
    columns.finish(out)
}

/// Encodes rollups that are in time order, 1 to [`MAX_POINTS`] of them.
pub(super) fn encode_rollups(points: &[Rollup], effort: Effort) -> Vec<u8> {
    let frame = Frame {
        at_ms: points.iter().map(|p| p.mean.at_ms).collect(),
        dt_s: points.iter().map(|p| p.mean.dt_s).collect(),
    };
    let mut out = Vec::with_capacity(64 + points.len() * 64);
    put_frame(&mut out, &frame, effort);
    let mut columns = Columns {
        bytes: Vec::with_capacity(points.len() * 64),
        count: 0,
    };
    let mut content = Vec::new();
    for c in COLUMNS {
        let mean: Vec<Option<f64>> = points.iter().map(|p| (c.get)(&p.mean)).collect();
        content.clear();
        put_column(&mut content, &mean, &frame, Some(scale_of(c.unit)), effort);
        columns.put(c, Told::Value, &content);
        if content.is_empty() {
            continue;
        }
        for (told, of) in parts() {
            let values: Vec<Option<f64>> = points.iter().map(|p| (c.get)(of(p))).collect();
            content.clear();
            let bits = |v: &Option<f64>| v.map(f64::to_bits);
            if values.iter().map(bits).eq(mean.iter().map(bits)) {
                content.push(SAME);
            } else {
                let scale = (c.unit == Unit::Mib).then_some(Scale::Mib);
                put_column(&mut content, &values, &frame, scale, effort);
            }
            columns.put(c, told, &content);
        }
    }
    columns.finish(out)
}

/// One point as it is, by the identifiers of its columns: quick to write and to read.
pub(super) fn put_plain(out: &mut Vec<u8>, point: &Usage) {
    out.extend_from_slice(&point.at_ms.to_le_bytes());
    out.extend_from_slice(&point.dt_s.to_le_bytes());
    let at = out.len();
    out.extend_from_slice(&[0; 8]);
    let mut known = 0u64;
    // In the order of the identifiers, which later versions extend.
    for c in by_id_order() {
        if let Some(v) = (c.get)(point) {
            known |= 1 << c.id;
            out.extend_from_slice(&v.to_le_bytes());
        }
    }
    out[at..at + 8].copy_from_slice(&known.to_le_bytes());
}

/// The counterpart of [`put_plain`]; advances `r`.
pub(super) fn get_plain(r: &mut &[u8]) -> Result<Usage> {
    let mut eight = || -> Result<[u8; 8]> { take(r, 8)?.try_into().map_err(|_| Malformed) };
    let mut point = Usage {
        at_ms: i64::from_le_bytes(eight()?),
        dt_s: f64::from_le_bytes(eight()?),
        ..Usage::default()
    };
    let mut known = u64::from_le_bytes(eight()?);
    while known != 0 {
        let id = known.trailing_zeros() as u8;
        let value = f64::from_le_bytes(eight()?);
        if let Some(c) = columns::by_id(id) {
            (c.set)(&mut point, Some(value));
        }
        known &= known - 1;
    }
    Ok(point)
}

fn by_id_order() -> &'static [&'static Column] {
    static ORDER: std::sync::LazyLock<Vec<&'static Column>> = std::sync::LazyLock::new(|| {
        let mut all: Vec<&'static Column> = COLUMNS.iter().collect();
        all.sort_by_key(|c| c.id);
        all
    });
    &ORDER
}

type Part = (Told, fn(&Rollup) -> &Usage);

fn parts() -> [Part; 3] {
    [
        (Told::Min, |p| &p.min),
        (Told::Max, |p| &p.max),
        (Told::Last, |p| &p.last),
    ]
}

/// Reads columns; `take_column` gets each known one of those that are `wanted`, a bit for each
/// identifier.
fn get_columns(
    r: &mut &[u8],
    frame: &Frame,
    wanted: u64,
    mut take_column: impl FnMut(&Column, u8, &[Option<f64>]),
) -> Result<()> {
    let mut mean: (Option<u64>, Vec<Option<f64>>) = (None, Vec::new());
    let mut seen = 0_u64;
    for _ in 0..get_varint(r)? {
        let code = get_varint(r)?;
        let mut content = get_bytes(r)?;
        let (id, told) = (code / 4, (code % 4) as u8);
        let Some(column) = u8::try_from(id).ok().and_then(columns::by_id) else {
            // Of a newer version of Drover.
            continue;
        };
        if wanted & (1 << column.id) == 0 {
            continue;
        }
        // Each column once, and its other parts behind it: there are none of what has no value.
        let first = told == Told::Value as u8;
        let fits = if first {
            seen & (1 << column.id) == 0
        } else {
            mean.0 == Some(id) && mean.1.iter().any(Option::is_some)
        };
        if !fits {
            return Err(Malformed);
        }
        seen |= 1 << column.id;
        let tag = take(&mut content, 1)?[0];
        if tag == SAME {
            if first {
                return Err(Malformed);
            }
            take_column(column, told, &mean.1);
        } else {
            let values = get_column(&mut content, tag, frame)?;
            take_column(column, told, &values);
            if first {
                mean = (Some(id), values);
            }
        }
        if !content.is_empty() {
            return Err(Malformed);
        }
    }
    Ok(())
}

/// Decodes the `wanted` columns of `count` points of a version of the format.
pub(super) fn decode(version: u8, bytes: &[u8], count: usize, wanted: u64) -> Result<Vec<Usage>> {
    if version == 1 {
        return v1::decode(bytes, count);
    }
    let mut r = bytes;
    let frame = get_frame(&mut r, count)?;
    let mut points: Vec<Usage> = frame
        .at_ms
        .iter()
        .zip(&frame.dt_s)
        .map(|(at_ms, dt_s)| Usage {
            at_ms: *at_ms,
            dt_s: *dt_s,
            ..Usage::default()
        })
        .collect();
    get_columns(&mut r, &frame, wanted, |column, _, values| {
        for (p, v) in points.iter_mut().zip(values) {
            (column.set)(p, *v);
        }
    })?;
    if r.is_empty() {
        Ok(points)
    } else {
        Err(Malformed)
    }
}

/// Decodes the `wanted` columns of `count` rollups.
pub(super) fn decode_rollups(bytes: &[u8], count: usize, wanted: u64) -> Result<Vec<Rollup>> {
    let mut r = bytes;
    let frame = get_frame(&mut r, count)?;
    let times = frame.at_ms.iter().zip(&frame.dt_s);
    let mut points: Vec<Rollup> = times.map(|(at, dt)| Rollup::empty(*at, *dt)).collect();
    get_columns(&mut r, &frame, wanted, |column, told, values| {
        for (p, v) in points.iter_mut().zip(values) {
            let part = match told {
                0 => &mut p.mean,
                1 => &mut p.min,
                2 => &mut p.max,
                _ => &mut p.last,
            };
            (column.set)(part, *v);
        }
    })?;
    if r.is_empty() {
        Ok(points)
    } else {
        Err(Malformed)
    }
}

#[cfg(test)]
mod tests;
