//! Rollups on their way to another host.

use super::codec::{self, Effort};
use super::record;
use crate::rollup::Rollup;

/// Most rollups in one parcel.
pub const PARCEL: usize = 1000;
pub(super) const KEY: &[u8] = b"parcel";

/// Packs rollups in time order, at most [`PARCEL`] of them.
pub fn pack(points: &[Rollup]) -> Vec<u8> {
    let points = &points[..points.len().min(PARCEL)];
    let payload = codec::encode_rollups(points, Effort::Fast);
    record::wrap(KEY, points.len() as u16, &payload)
}

/// The counterpart of [`pack`]; `None` when it is not what `pack` made.
pub fn unpack(bytes: &[u8]) -> Option<Vec<Rollup>> {
    let value = record::check(KEY, bytes).ok()?;
    let count = usize::from(value.count);
    if count > PARCEL {
        return None;
    }
    codec::decode_rollups(value.payload, count, codec::ALL).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let points: Vec<Rollup> = (0..5).map(|n| Rollup::empty(n * 60_000, 60.0)).collect();
        let mut bytes = pack(&points);
        assert_eq!(unpack(&bytes), Some(points));
        bytes[9] ^= 1;
        assert_eq!(unpack(&bytes), None);
        assert_eq!(unpack(b""), None);
    }
}
