//! The first version of the format: eleven columns in a fixed order, nothing between them. Only
//! read.

use super::ints::{get_ints, get_varint, take, unzigzag};
use super::values::get_values;
use super::{Frame, MAX_POINTS, Malformed, Result, get_column};
use crate::columns;
use crate::usage::Usage;

/// Columns, in the order of their identifiers.
const COLUMNS: u8 = 11;
const ABSENT: u8 = 0;

/// Decodes `count` points.
pub(super) fn decode(bytes: &[u8], count: usize) -> Result<Vec<Usage>> {
    if count == 0 || count > MAX_POINTS {
        return Err(Malformed);
    }
    let mut r = bytes;
    let mut at_ms = unzigzag(get_varint(&mut r)?);
    let last = at_ms.wrapping_add(get_varint(&mut r)?.cast_signed());
    let mut points = vec![Usage::default(); count];
    points[0].at_ms = at_ms;
    for (p, d) in points[1..].iter_mut().zip(get_ints(&mut r, count - 1)?) {
        at_ms = at_ms.wrapping_add(d);
        p.at_ms = at_ms;
    }
    if at_ms != last {
        return Err(Malformed);
    }
    let frame = Frame {
        at_ms: points.iter().map(|p| p.at_ms).collect(),
        dt_s: get_values(&mut r, &vec![0.0; count])?,
    };
    for (p, d) in points.iter_mut().zip(&frame.dt_s) {
        p.dt_s = *d;
    }
    for id in 0..COLUMNS {
        let tag = take(&mut r, 1)?[0];
        if tag == ABSENT {
            continue;
        }
        let column = columns::by_id(id).ok_or(Malformed)?;
        let values = get_column(&mut r, tag, &frame)?;
        for (p, v) in points.iter_mut().zip(values) {
            (column.set)(p, v);
        }
    }
    if r.is_empty() {
        Ok(points)
    } else {
        Err(Malformed)
    }
}
