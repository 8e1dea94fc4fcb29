//! Fuzz target: parcels of rolled up history that a peer sends.

use super::{record, transfer};
use crate::fuzz::Target;
use crate::rollup::{Rollup, roll_up};

/// Count of points and content of a parcel; the checksum is made here, so that what is behind it
/// is reached.
pub(crate) const PARCEL: Target = Target {
    name: "history_parcel",
    run: parcel,
    seeds: || {
        let points = |n: i64| -> Vec<Rollup> {
            let point = |i: i64| Rollup::empty(i * 60_000, 60.0);
            (0..n).map(point).collect()
        };
        [1, 5, 200]
            .map(|n| {
                let bytes = transfer::pack(&points(n));
                let value = record::check(transfer::KEY, &bytes).expect("its own parcel");
                [&value.count.to_le_bytes(), value.payload].concat()
            })
            .to_vec()
    },
};

fn parcel(input: &[u8]) {
    let _ = transfer::unpack(input);
    let Some((count, payload)) = input.split_first_chunk::<2>() else {
        return;
    };
    let bytes = record::wrap(transfer::KEY, u16::from_le_bytes(*count), payload);
    let Some(points) = transfer::unpack(&bytes) else {
        return;
    };
    assert!(points.len() <= transfer::PARCEL);
    let again = transfer::unpack(&transfer::pack(&points)).expect("its own parcel");
    // By their text: not every number equals itself.
    assert_eq!(format!("{points:?}"), format!("{again:?}"));
    let _ = roll_up(&points, 3_600_000);
}
