//! When to stop pre-copy: pure arithmetic on what the rounds took.

use crate::feature::OverBudget;
use crate::wire::guest::RoundStats;

/// Percent of its CPU time that is taken from a feature, step by step.
const THROTTLES: [u8; 4] = [30, 50, 70, 85];

/// What a move keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Longest acceptable freeze, milliseconds.
    pub budget_ms: u64,
    /// Most pre-copy rounds; with [`OverBudget::Wait`] time is the limit.
    pub max_rounds: u16,
    /// Longest pre-copy with [`OverBudget::Wait`], milliseconds.
    pub wait_ms: u64,
    /// What to do when the budget cannot be met.
    pub over: OverBudget,
    /// Whether the feature may be slowed down until it can.
    pub throttle: bool,
    /// Most attempts, as long as only dump or restore fails.
    pub attempts: u16,
}

impl Limits {
    /// A budget and a number of rounds; over it goes when it must.
    pub fn new(budget_ms: u64, max_rounds: u16) -> Self {
        Self {
            budget_ms,
            max_rounds,
            wait_ms: 300_000,
            over: OverBudget::Go,
            throttle: false,
            attempts: 1,
        }
    }
}

/// What to do after a pre-copy round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Another pre-copy round.
    Again,
    /// Another one, with this percentage of its CPU time taken from the feature.
    Throttle(u8),
    /// The budget cannot be met, and the policy is not to go over it.
    GiveUp(String),
    /// The budget cannot be met, and the policy is to hand the feature over instead.
    Handover(String),
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
    // A pass over the state directories takes its time whatever changed.
    let fixed = 2.0 * last.stats.dump_ms as f64 + last.stats.state_ms as f64;
    Some(fixed + residual / bandwidth.max(1.0))
}

/// Decides after the last of `rounds` (pre-copy rounds in order), while `throttled` percent of its
/// CPU time are taken from the feature.
pub fn next(rounds: &[Round], limits: &Limits, throttled: u8) -> Next {
    let Some(last) = rounds.last() else {
        return Next::Again;
    };
    let predicted = predicted_freeze_ms(rounds);
    if predicted.is_some_and(|p| p <= limits.budget_ms as f64) {
        return Next::Freeze(Reason::WithinBudget);
    }
    let wait = limits.over == OverBudget::Wait;
    let out_of_rounds = !wait && rounds.len() >= usize::from(limits.max_rounds);
    let before = rounds.len().checked_sub(2).map(|i| &rounds[i]);
    // A round that sent more than 70 % of the one before it does not converge any more.
    let no_gain = before.is_some_and(|b| last.stats.bytes as f64 > 0.7 * b.stats.bytes as f64);
    if no_gain
        && !out_of_rounds
        && limits.throttle
        && let Some(more) = THROTTLES.into_iter().find(|t| *t > throttled)
    {
        return Next::Throttle(more);
    }
    if !no_gain && !out_of_rounds {
        return Next::Again;
    }
    let reason = if out_of_rounds {
        Reason::MaxRounds
    } else {
        Reason::NoGain
    };
    let spent: u64 = rounds.iter().map(|r| r.total_ms).sum();
    match limits.over {
        OverBudget::Go => Next::Freeze(reason),
        OverBudget::Wait if spent < limits.wait_ms && rounds.len() < usize::from(u16::MAX - 2) => {
            Next::Again
        }
        OverBudget::Wait => Next::GiveUp(format!(
            "{}, also not after {} s of copying",
            over_budget(predicted, limits.budget_ms),
            spent / 1000
        )),
        OverBudget::GiveUp => Next::GiveUp(format!(
            "{}, and {reason} (over_budget = \"give_up\")",
            over_budget(predicted, limits.budget_ms)
        )),
        OverBudget::Handover => Next::Handover(format!(
            "{}, and {reason}; handing it over instead (over_budget = \"handover\")",
            over_budget(predicted, limits.budget_ms)
        )),
    }
}

fn over_budget(predicted: Option<f64>, budget_ms: u64) -> String {
    match predicted {
        Some(p) => format!("the freeze would take {p:.0} ms, the budget is {budget_ms} ms"),
        None => format!("a freeze within {budget_ms} ms cannot be predicted"),
    }
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

    fn go(budget_ms: u64, max_rounds: u16) -> Limits {
        Limits::new(budget_ms, max_rounds)
    }

    #[test]
    fn first_round_never_freezes_and_budget_stops() {
        assert_eq!(
            next(&[round(40_000_000, 1500)], &go(1000, 6), 0),
            Next::Again
        );
        let r = [round(40_000_000, 1500), round(1_000_000, 200)];
        assert_eq!(
            next(&r, &go(1000, 6), 0),
            Next::Freeze(Reason::WithinBudget)
        );
        assert_eq!(next(&r, &go(100, 6), 0), Next::Again);
    }

    #[test]
    fn stops_without_gain_and_at_the_limit() {
        let r = [round(40_000_000, 1500), round(39_000_000, 1500)];
        assert_eq!(next(&r, &go(100, 6), 0), Next::Freeze(Reason::NoGain));
        let r = [round(40_000_000, 1500), round(9_000_000, 700)];
        assert_eq!(next(&r, &go(100, 2), 0), Next::Freeze(Reason::MaxRounds));
        let r = [round(1, 1)];
        assert_eq!(next(&r, &go(100, 1), 0), Next::Freeze(Reason::MaxRounds));
    }

    #[test]
    fn slows_the_feature_down_before_it_goes_over() {
        let r = [round(40_000_000, 1500), round(39_000_000, 1500)];
        let limits = Limits {
            throttle: true,
            ..go(100, 6)
        };
        let mut throttled = 0;
        for percent in THROTTLES {
            assert_eq!(next(&r, &limits, throttled), Next::Throttle(percent));
            throttled = percent;
        }
        assert_eq!(next(&r, &limits, throttled), Next::Freeze(Reason::NoGain));
        // Not when the last round is sent, and not while it converges.
        let last = Limits {
            max_rounds: 2,
            ..limits
        };
        assert_eq!(next(&r, &last, 0), Next::Freeze(Reason::MaxRounds));
        let r = [round(40_000_000, 1500), round(9_000_000, 700)];
        assert_eq!(next(&r, &limits, 0), Next::Again);
    }

    #[test]
    fn the_policy_decides_over_the_budget() {
        let r = [round(40_000_000, 1500), round(39_000_000, 1500)];
        let give_up = Limits {
            over: OverBudget::GiveUp,
            ..go(100, 6)
        };
        let Next::GiveUp(why) = next(&r, &give_up, 0) else {
            panic!()
        };
        assert!(why.contains("the budget is 100 ms"), "{why}");
        let handover = Limits {
            over: OverBudget::Handover,
            throttle: true,
            ..give_up
        };
        assert_eq!(next(&r, &handover, 0), Next::Throttle(30), "first this");
        assert!(matches!(next(&r, &handover, 85), Next::Handover(_)));
        let within = [round(40_000_000, 1500), round(1_000_000, 200)];
        let generous = Limits {
            budget_ms: 1000,
            ..handover
        };
        assert!(matches!(next(&within, &generous, 0), Next::Freeze(_)));
        let wait = Limits {
            over: OverBudget::Wait,
            max_rounds: 1,
            ..go(100, 6)
        };
        assert_eq!(
            next(&r, &wait, 0),
            Next::Again,
            "rounds are no limit, time is"
        );
        let short = Limits {
            wait_ms: 3000,
            ..wait
        };
        assert!(matches!(next(&r, &short, 0), Next::GiveUp(_)));
    }
}
