//! Which tier answers what.

use super::StoredTier;
use super::tiers::{MINUTE_MS, QUARTER_MS, Tiers};

/// Steps that are tried until the points are few enough, milliseconds.
const STEPS: [i64; 14] = [
    10_000,
    30_000,
    MINUTE_MS,
    2 * MINUTE_MS,
    5 * MINUTE_MS,
    QUARTER_MS,
    2 * QUARTER_MS,
    4 * QUARTER_MS,
    8 * QUARTER_MS,
    16 * QUARTER_MS,
    24 * QUARTER_MS,
    48 * QUARTER_MS,
    96 * QUARTER_MS,
    672 * QUARTER_MS,
];

/// What a query asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query {
    /// First millisecond.
    pub since_ms: i64,
    /// Last millisecond.
    pub until_ms: i64,
    /// Milliseconds of a step; 0 for points as they are, as finely as they are kept; `None`
    /// chooses the finest that gives no more than `limit` points.
    pub step_ms: Option<i64>,
    /// Most points; the latest are given.
    pub limit: usize,
}

/// Where times are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Oldest time with points, minutes, quarters; `i64::MAX` when there are none.
    pub(super) oldest: [i64; 3],
    /// Before these times points are in minutes, minutes in quarters.
    pub(super) rolled: [i64; 2],
    /// Newest time.
    pub(super) newest_ms: i64,
    /// Usual distance of points.
    pub(super) interval_ms: i64,
}

impl Bounds {
    pub(super) fn of(tiers: &Tiers, interval_ms: i64) -> Self {
        // Where one tier begins the coarser one ends: at a whole step of its own.
        let [raw, minute, quarter] = tiers.oldest();
        let down = |at: i64, step: i64| at.div_euclid(step) * step;
        let oldest = [
            raw.map(|at| down(at, MINUTE_MS)),
            minute.map(|at| down(at, QUARTER_MS)),
            quarter,
        ];
        Self {
            oldest: oldest.map(|o| o.unwrap_or(i64::MAX)),
            rolled: [tiers.rolled.minute_ms, tiers.rolled.quarter_ms],
            newest_ms: tiers.newest().unwrap_or(i64::MIN),
            interval_ms: interval_ms.max(1),
        }
    }

    /// The step for a query; 0 is none.
    pub(super) fn step(&self, q: &Query) -> i64 {
        if let Some(step) = q.step_ms {
            return step.max(0);
        }
        let oldest = self.oldest.into_iter().min().unwrap_or(i64::MAX);
        let since = q.since_ms.max(oldest);
        let until = if self.newest_ms == i64::MIN {
            q.until_ms
        } else {
            q.until_ms.min(self.newest_ms)
        };
        let span = until.saturating_sub(since).max(0);
        let limit = i64::try_from(q.limit).unwrap_or(i64::MAX).max(1);
        // Times before the first point of a tier are in the coarser ones.
        let [raw, minute, _] = self.oldest;
        let least = if since >= raw {
            self.interval_ms
        } else if since >= minute {
            MINUTE_MS
        } else {
            QUARTER_MS
        };
        if least == self.interval_ms && span / self.interval_ms <= limit {
            return 0;
        }
        let fits = |step: &&i64| **step >= least && span / **step <= limit;
        let last = STEPS[STEPS.len() - 1];
        STEPS.iter().find(fits).copied().unwrap_or(last)
    }

    /// Which tier gives which time, `(tier, from, to)` with `to` excluded, oldest first.
    pub(super) fn plan(
        &self,
        since_ms: i64,
        until_ms: i64,
        step_ms: i64,
    ) -> Vec<(StoredTier, i64, i64)> {
        let [raw_from, minute_from, _] = self.oldest;
        let [minute_to, quarter_to] = self.rolled;
        // Points are read where steps are finer than minutes, and where they are not rolled up.
        let raw_at = if step_ms < MINUTE_MS {
            raw_from
        } else {
            raw_from.max(minute_to)
        };
        let minute_at = if step_ms < QUARTER_MS || step_ms % QUARTER_MS != 0 {
            minute_from
        } else {
            minute_from.max(quarter_to)
        };
        let minute_at = minute_at.min(raw_at);
        let end = until_ms.saturating_add(1);
        [
            (StoredTier::Quarter, since_ms, minute_at.min(end)),
            (StoredTier::Minute, minute_at.max(since_ms), raw_at.min(end)),
            (StoredTier::Raw, raw_at.max(since_ms), end),
        ]
        .into_iter()
        .filter(|(_, from, to)| from < to)
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H: i64 = 3_600_000;

    fn bounds() -> Bounds {
        Bounds {
            oldest: [994 * H, 840 * H, 0],
            rolled: [999 * H, 984 * H],
            newest_ms: 1000 * H,
            interval_ms: 5000,
        }
    }

    fn query(since_ms: i64, limit: usize) -> Query {
        Query {
            since_ms,
            until_ms: i64::MAX,
            step_ms: None,
            limit,
        }
    }

    #[test]
    fn the_finest_step_that_fits() {
        let b = bounds();
        assert_eq!(b.step(&query(999 * H, 1000)), 0, "720 points");
        assert_eq!(b.step(&query(995 * H, 2000)), 10_000);
        assert_eq!(b.step(&query(995 * H, 400)), 60_000);
        assert_eq!(
            b.step(&query(900 * H, 10_000)),
            60_000,
            "older than the points"
        );
        assert_eq!(b.step(&query(900 * H, 1000)), 900_000);
        assert_eq!(
            b.step(&query(10 * H, 100_000)),
            900_000,
            "older than the minutes"
        );
        assert_eq!(b.step(&query(i64::MIN, 100)), 12 * H);
        assert_eq!(
            b.step(&Query {
                step_ms: Some(7),
                ..query(0, 1)
            }),
            7
        );
        let empty = Bounds {
            oldest: [i64::MAX; 3],
            rolled: [i64::MIN; 2],
            newest_ms: i64::MIN,
            interval_ms: 5000,
        };
        assert_eq!(
            empty.plan(0, i64::MAX, 0),
            [(StoredTier::Quarter, 0, i64::MAX)]
        );
        empty.step(&query(i64::MIN, 5));
    }

    #[test]
    fn every_time_is_read_once_from_the_coarsest_that_will_do() {
        use StoredTier::{Minute, Quarter, Raw};
        let b = bounds();
        let end = 1000 * H;
        assert_eq!(b.plan(995 * H, end - 1, 0), [(Raw, 995 * H, end)]);
        assert_eq!(
            b.plan(0, end - 1, 0),
            [
                (Quarter, 0, 840 * H),
                (Minute, 840 * H, 994 * H),
                (Raw, 994 * H, end)
            ]
        );
        assert_eq!(
            b.plan(0, end - 1, 900_000),
            [
                (Quarter, 0, 984 * H),
                (Minute, 984 * H, 999 * H),
                (Raw, 999 * H, end)
            ]
        );
        assert_eq!(
            b.plan(990 * H, end - 1, 60_000),
            [(Minute, 990 * H, 999 * H), (Raw, 999 * H, end)]
        );
        for step in [0, 10_000, 60_000, 120_000, 900_000, 36_000_000] {
            for since in [0, 500 * H, 900 * H, 997 * H, 999 * H + 5] {
                let plan = b.plan(since, end - 1, step);
                assert_eq!(plan[0].1, since);
                assert_eq!(plan[plan.len() - 1].2, end);
                assert!(plan.windows(2).all(|w| w[0].2 == w[1].1), "{plan:?}");
            }
        }
        let new = Bounds {
            oldest: [994 * H, i64::MAX, i64::MAX],
            rolled: [i64::MIN; 2],
            ..b
        };
        assert!(new.plan(0, end - 1, 900_000).contains(&(Raw, 994 * H, end)));
    }
}
