//! Partitions' lengths of time and names, and how tiers are cut into them.

use super::files::{day_name, parse_day};

/// Milliseconds of an hour.
pub(super) const HOUR_MS: i64 = 3_600_000;
/// Milliseconds of a day.
pub(super) const DAY_MS: i64 = 24 * HOUR_MS;

/// Length of a partition, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Period {
    /// `2025-01-31T22`
    TwoHours,
    /// `2025-01-31`
    Day,
    /// `2025-01`
    Month,
}

/// A partition's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    /// First millisecond.
    pub(super) start_ms: i64,
    /// First millisecond after it.
    pub(super) end_ms: i64,
    /// Its kind.
    pub(super) period: Period,
}

impl Slot {
    /// The one that a time is in.
    pub(super) fn of(period: Period, at_ms: i64) -> Self {
        let (start_ms, end_ms) = match period {
            Period::TwoHours => {
                let start = at_ms.div_euclid(2 * HOUR_MS) * 2 * HOUR_MS;
                (start, start + 2 * HOUR_MS)
            }
            Period::Day => {
                let start = at_ms.div_euclid(DAY_MS) * DAY_MS;
                (start, start + DAY_MS)
            }
            Period::Month => month(at_ms),
        };
        Self {
            start_ms,
            end_ms,
            period,
        }
    }

    /// Its directory's name.
    pub(super) fn name(&self) -> String {
        let day = day_name(self.start_ms.div_euclid(DAY_MS));
        match self.period {
            Period::TwoHours => {
                format!("{day}T{:02}", self.start_ms.rem_euclid(DAY_MS) / HOUR_MS)
            }
            Period::Day => day,
            Period::Month => day[..7].to_owned(),
        }
    }

    /// The slot of a name, with what follows it in the name.
    pub(super) fn parse(name: &str) -> Option<(Self, &str)> {
        if let Some((day, rest)) = parse_day(name) {
            let start = day * DAY_MS;
            let hour = rest
                .strip_prefix('T')
                .and_then(|r| r.split_at_checked(2))
                .and_then(|(h, rest)| Some((h.parse::<i64>().ok()?, rest)));
            return match hour {
                Some((h, rest)) if h < 24 && h % 2 == 0 => {
                    Some((Self::of(Period::TwoHours, start + h * HOUR_MS), rest))
                }
                Some(_) => None,
                None => Some((Self::of(Period::Day, start), rest)),
            };
        }
        let (month, rest) = name.split_at_checked(7)?;
        let (day, left) = parse_day(&format!("{month}-01")).map(|(d, l)| (d, l.len()))?;
        (left == 0 && !rest.starts_with('-')).then(|| (Self::of(Period::Month, day * DAY_MS), rest))
    }

    /// Is the time in it?
    pub(super) fn contains(&self, at_ms: i64) -> bool {
        (self.start_ms..self.end_ms).contains(&at_ms)
    }
}

fn month(at_ms: i64) -> (i64, i64) {
    let day = at_ms.div_euclid(DAY_MS);
    let first = |day: i64| {
        let of_month: i64 = day_name(day)[8..].parse().unwrap_or(1);
        day - of_month + 1
    };
    let start = first(day);
    // No month has more than 31 days, none fewer than 28.
    let end = first(start + 32);
    (start * DAY_MS, end * DAY_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_times() {
        let at = 1_738_367_400_000; // 2025-01-31T23:50:00Z
        for (period, name, hours) in [
            (Period::TwoHours, "2025-01-31T22", 2),
            (Period::Day, "2025-01-31", 24),
            (Period::Month, "2025-01", 31 * 24),
        ] {
            let slot = Slot::of(period, at);
            assert_eq!(slot.name(), name);
            assert_eq!(slot.end_ms - slot.start_ms, hours * HOUR_MS);
            assert!(slot.contains(at) && !slot.contains(slot.end_ms));
            assert_eq!(Slot::of(period, slot.start_ms), slot);
            assert_eq!(Slot::of(period, slot.end_ms - 1), slot);
            assert_eq!(Slot::parse(name), Some((slot, "")));
            assert_eq!(Slot::parse(&format!("{name}.mark")), Some((slot, ".mark")));
        }
        for bad in [
            "lock",
            "2025-13",
            "2025-01-31T23",
            "2025-01-31T24",
            "2025-1",
            "2025-01-3",
        ] {
            assert_eq!(Slot::parse(bad), None, "{bad}");
        }
        let mut at = 0;
        for _ in 0..2000 {
            let slot = Slot::of(Period::Month, at);
            assert_eq!(Slot::parse(&slot.name()), Some((slot, "")));
            at = slot.end_ms;
        }
    }
}
