//! When to stop pre-copy: pure arithmetic on what the rounds took.

use crate::wire::guest::RoundStats;

/// What to do after a pre-copy round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Another pre-copy round.
    Again,
    /// Freeze now; the reason is for the log.
    Freeze(Reason),
}

/// Why pre-copy stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The predicted freeze is within the budget.
    WithinBudget,
    /// Another round would hardly send less.
    NoGain,
    /// The most rounds were sent.
    MaxRounds,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::WithinBudget => "the predicted freeze is within the budget",
            Self::NoGain => "another round would hardly send less",
            Self::MaxRounds => "the most rounds were sent",
        })
    }
}

/// A round as the coordinator saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Round {
    /// What the helper reported.
    pub stats: RoundStats,
    /// Milliseconds from the request to the target's confirmation.
    pub total_ms: u64,
}

/// Bytes of one page.
const PAGE: f64 = 4096.0;

/// Predicted freeze in milliseconds if frozen now: the dump's fixed part as the last round showed
/// it, on both sides, plus the pages dirtied meanwhile at the measured bandwidth.
///
/// The pages dirtied during the last round are what the next one must carry; its own rate is
/// `pages written in the last round / time between its start and the previous round's start`.
pub fn predicted_freeze_ms(rounds: &[Round]) -> Option<f64> {
    let last = rounds.last()?;
    let before = rounds.len().checked_sub(2).map(|i| &rounds[i]);
    let bandwidth = last.stats.bytes as f64 / (last.stats.send_ms.max(1)) as f64; // bytes per ms
    // The first round carries everything, so it says nothing about the dirty rate.
    let dirty_per_ms = match before {
        Some(b) => last.stats.pages_written as f64 * PAGE / b.total_ms.max(1) as f64,
        None => return None,
    };
    let residual = dirty_per_ms * last.total_ms as f64;
    let fixed = 2.0 * last.stats.dump_ms as f64;
    Some(fixed + residual / bandwidth.max(1.0))
}

/// Decides after the last of `rounds` (pre-copy rounds in order).
pub fn next(rounds: &[Round], budget_ms: u64, max_rounds: u16) -> Next {
    let Some(last) = rounds.last() else {
        return Next::Again;
    };
    if predicted_freeze_ms(rounds).is_some_and(|p| p <= budget_ms as f64) {
        return Next::Freeze(Reason::WithinBudget);
    }
    if rounds.len() >= usize::from(max_rounds) {
        return Next::Freeze(Reason::MaxRounds);
    }
    if let Some(before) = rounds.len().checked_sub(2).map(|i| &rounds[i]) {
        // A round that sent more than 70 % of the one before it does not converge any more.
        if last.stats.bytes as f64 > 0.7 * before.stats.bytes as f64 {
            return Next::Freeze(Reason::NoGain);
        }
    }
    Next::Again
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(bytes: u64, total_ms: u64) -> Round {
        let stats = RoundStats {
            bytes,
            pages_written: bytes / 4096,
            send_ms: (bytes / 50_000).max(1),
            dump_ms: 100,
            ..RoundStats::default()
        };
        Round { stats, total_ms }
    }

    #[test]
    fn first_round_never_freezes_and_budget_stops() {
        assert_eq!(next(&[round(40_000_000, 1500)], 1000, 6), Next::Again);
        let r = [round(40_000_000, 1500), round(1_000_000, 200)];
        assert_eq!(next(&r, 1000, 6), Next::Freeze(Reason::WithinBudget));
        assert_eq!(next(&r, 100, 6), Next::Again);
    }

    #[test]
    fn stops_without_gain_and_at_the_limit() {
        let r = [round(40_000_000, 1500), round(39_000_000, 1500)];
        assert_eq!(next(&r, 100, 6), Next::Freeze(Reason::NoGain));
        let r = [round(40_000_000, 1500), round(9_000_000, 700)];
        assert_eq!(next(&r, 100, 2), Next::Freeze(Reason::MaxRounds));
        assert_eq!(
            next(&[round(1, 1)], 100, 1),
            Next::Freeze(Reason::MaxRounds)
        );
    }
}
