//! Columns of numbers: whole numbers behind them where there are, floats otherwise. Exact either
//! way.

use super::ints::{get_bytes, get_ints, pco, put_bytes, put_ints, take, unpco};
use super::{Effort, Malformed, Result};
use crate::usage::MIB;

/// How a whole number becomes a column's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// Microseconds of the interval, as percent.
    Percent,
    /// Amount per second of the interval.
    Rate,
    /// Bytes as MiB.
    Mib,
    /// Nanoseconds as seconds.
    Nanos,
    /// So many decimals.
    Decimal(u8),
}

/// Most decimals that are looked for.
const DECIMALS: u8 = 6;
const TENS: [f64; DECIMALS as usize + 1] = [1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6];

/// Tag of a column stored as floats, each XOR the one before.
const FLOATS: u8 = 255;
/// Tag of a column stored as floats by pco.
const FLOATS_PCO: u8 = 254;
const DECIMAL_TAG: u8 = 16;

impl Scale {
    pub(super) fn tag(self) -> u8 {
        match self {
            Self::Percent => 0,
            Self::Rate => 1,
            Self::Mib => 2,
            Self::Nanos => 5,
            Self::Decimal(n) => DECIMAL_TAG + n,
        }
    }

    /// Tags 3 and 4 (whole numbers and hundredths) are of the format's first version.
    pub(super) fn of(tag: u8) -> Option<Self> {
        Some(match tag {
            0 => Self::Percent,
            1 => Self::Rate,
            2 => Self::Mib,
            3 => Self::Decimal(0),
            4 => Self::Decimal(2),
            5 => Self::Nanos,
            _ => Self::Decimal(tag.checked_sub(DECIMAL_TAG).filter(|n| *n <= DECIMALS)?),
        })
    }

    pub(super) fn value(self, k: i64, dt_s: f64) -> f64 {
        let k = k as f64;
        match self {
            Self::Percent => k / (dt_s * 1e6) * 100.0,
            Self::Rate => k / dt_s,
            Self::Mib => k / MIB,
            Self::Nanos => k / 1e9,
            Self::Decimal(n) => k / TENS[usize::from(n.min(DECIMALS))],
        }
    }

    /// The whole number behind `v`, if there is one that gives exactly `v` again.
    pub(super) fn whole(self, v: f64, dt_s: f64) -> Option<i64> {
        let guess = match self {
            Self::Percent => v / 100.0 * (dt_s * 1e6),
            Self::Rate => v * dt_s,
            Self::Mib => v * MIB,
            Self::Nanos => v * 1e9,
            Self::Decimal(n) => v * TENS[usize::from(n.min(DECIMALS))],
        }
        .round();
        if !(guess.is_finite() && guess.abs() < 9e15) {
            return None;
        }
        let k = guess as i64;
        (self.value(k, dt_s).to_bits() == v.to_bits()).then_some(k)
    }
}

/// The scales worth a try for `values`: the natural one, then the fewest decimals that fit the
/// first of them.
fn whole_numbers(values: &[f64], dts: &[f64], natural: Option<Scale>) -> Option<(Scale, Vec<i64>)> {
    let all = |scale: Scale| -> Option<Vec<i64>> {
        let pairs = values.iter().zip(dts);
        pairs.map(|(v, dt)| scale.whole(*v, *dt)).collect()
    };
    if let Some(scale) = natural
        && let Some(ints) = all(scale)
    {
        return Some((scale, ints));
    }
    let mut decimals = 0;
    for v in values {
        while Scale::Decimal(decimals).whole(*v, 1.0).is_none() {
            decimals += 1;
            if decimals > DECIMALS {
                return None;
            }
        }
    }
    let scale = Scale::Decimal(decimals);
    all(scale).map(|ints| (scale, ints))
}

/// Writes values, each of an interval of `dts` seconds.
pub(super) fn put_values(
    out: &mut Vec<u8>,
    values: &[f64],
    dts: &[f64],
    natural: Option<Scale>,
    effort: Effort,
) {
    if let Some((scale, ints)) = whole_numbers(values, dts, natural) {
        out.push(scale.tag());
        put_ints(out, &ints, effort);
        return;
    }
    let mut plain = Vec::with_capacity(values.len() * 9);
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
        plain.push((skip << 4 | cut) as u8);
        plain.extend_from_slice(&x.to_be_bytes()[skip..8 - cut]);
    }
    if effort == Effort::Small
        && let Some(small) = pco(values).filter(|s| s.len() + 2 < plain.len())
    {
        out.push(FLOATS_PCO);
        put_bytes(out, &small);
        return;
    }
    out.push(FLOATS);
    out.extend_from_slice(&plain);
}

/// The counterpart of [`put_values`].
pub(super) fn get_values(r: &mut &[u8], dts: &[f64]) -> Result<Vec<f64>> {
    let tag = take(r, 1)?[0];
    if tag == FLOATS_PCO {
        return unpco(get_bytes(r)?, dts.len());
    }
    if tag != FLOATS {
        let scale = Scale::of(tag).ok_or(Malformed)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SCALES: [Scale; 6] = [
        Scale::Percent,
        Scale::Rate,
        Scale::Mib,
        Scale::Nanos,
        Scale::Decimal(0),
        Scale::Decimal(4),
    ];

    proptest! {
        #[test]
        fn counters_become_whole_numbers(
            k in 0i64..1_000_000_000_000, ns in 1_000_000u64..60_000_000_000
        ) {
            let dt = ns as f64 / 1e9;
            for s in SCALES {
                prop_assert_eq!(s.whole(s.value(k, dt), dt), Some(k), "{:?}", s);
                prop_assert_eq!(Scale::of(s.tag()), Some(s));
            }
        }

        #[test]
        fn decimals_are_found(v in proptest::collection::vec(-1_000_000i64..1_000_000, 1..50), n in 0u8..7) {
            let values: Vec<f64> = v.iter().map(|k| *k as f64 / TENS[usize::from(n)]).collect();
            let dts = vec![5.0; values.len()];
            let (scale, _) = whole_numbers(&values, &dts, None).unwrap();
            let Scale::Decimal(found) = scale else { panic!("{scale:?}") };
            prop_assert!(found <= n);
        }
    }
}
