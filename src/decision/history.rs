//! Whether moves helped, and what follows from it for the next one.

use serde::{Deserialize, Serialize};

use crate::feature::FeatureName;
use crate::host::{HostState, MoveOutcome};

/// Gain in service quality from which a move helped.
const HELPED: f64 = 0.02;
/// Most doublings of the cooldown: 64 times.
const MAX_DOUBLINGS: u32 = 6;
/// So many cooldowns long a feature goes back to where it came from only for twice the gain.
pub(super) const RETURN_COOLDOWNS: i64 = 10;

/// What was measured before and after a move.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Effect {
    /// Mean service quality before, 0 to 1.
    pub quality_before: Option<f64>,
    /// And after.
    pub quality_after: Option<f64>,
    /// Mean use of the resource in breach before, in its unit.
    pub use_before: Option<f64>,
    /// And after.
    pub use_after: Option<f64>,
    /// Limit of the threshold, in the same unit.
    pub limit: Option<f64>,
}

/// Gain in quality and whether the move helped: quality rose, or the breach ended and quality did
/// not fall. `None` when nothing was measured after it.
pub fn judge(e: &Effect) -> Option<(f64, bool)> {
    let gain = match (e.quality_before, e.quality_after) {
        (Some(b), Some(a)) => Some(a - b),
        _ => None,
    };
    let ended = match (e.use_after, e.limit) {
        (Some(u), Some(l)) => Some(u <= l),
        _ => None,
    };
    match (gain, ended) {
        (None, None) => None,
        (Some(g), ended) => Some((g, g >= HELPED || (ended == Some(true) && g > -HELPED))),
        (None, Some(ended)) => Some((0.0, ended)),
    }
}

/// The latest outcome that any host tells of a feature.
pub fn latest<'a>(
    hosts: impl IntoIterator<Item = &'a HostState>,
    feature: &FeatureName,
) -> Option<&'a MoveOutcome> {
    hosts
        .into_iter()
        .flat_map(|h| &h.outcomes)
        .filter(|o| o.feature == *feature)
        .max_by(|a, b| a.at_ms.cmp(&b.at_ms).then_with(|| a.from.cmp(&b.from)))
}

/// The cooldown after `fruitless` moves in a row that did not help.
pub fn cooldown_ms(base_ms: i64, fruitless: u32) -> i64 {
    base_ms.saturating_mul(1 << fruitless.min(MAX_DOUBLINGS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helped_or_not() {
        let e = |before, after, used, limit| Effect {
            quality_before: before,
            quality_after: after,
            use_before: None,
            use_after: used,
            limit,
        };
        let helped = |e: Effect| judge(&e).map(|j| j.1);
        assert_eq!(helped(e(None, None, None, Some(1.0))), None);
        assert_eq!(helped(e(Some(0.5), Some(0.9), None, None)), Some(true));
        assert_eq!(helped(e(Some(0.9), Some(0.9), None, None)), Some(false));
        let (l, h) = (Some(50.0), Some(70.0));
        assert_eq!(
            helped(e(Some(0.9), Some(0.9), l, h)),
            Some(true),
            "it ended"
        );
        assert_eq!(helped(e(Some(0.9), Some(0.9), h, l)), Some(false));
        assert_eq!(helped(e(Some(0.9), Some(0.5), l, h)), Some(false), "worse");
        assert_eq!(helped(e(None, Some(0.9), l, h)), Some(true));
    }

    #[test]
    fn the_cooldown_grows() {
        assert_eq!(cooldown_ms(60_000, 0), 60_000);
        assert_eq!(cooldown_ms(60_000, 2), 240_000);
        assert_eq!(cooldown_ms(60_000, 99), 3_840_000);
        assert_eq!(cooldown_ms(i64::MAX, 3), i64::MAX);
    }

    #[test]
    fn the_latest_of_all_hosts() {
        let name = FeatureName::new("cache").unwrap();
        let outcome = |at_ms, fruitless| MoveOutcome {
            feature: name.clone(),
            from: "a".into(),
            to: "b".into(),
            at_ms,
            gain: 0.0,
            helped: false,
            fruitless,
        };
        let mut hosts = [HostState::new("a"), HostState::new("b")];
        assert_eq!(latest(&hosts, &name), None);
        hosts[0].outcomes = vec![outcome(5, 1), outcome(9, 2)];
        hosts[1].outcomes = vec![outcome(7, 4)];
        assert_eq!(latest(&hosts, &name).map(|o| o.fruitless), Some(2));
        assert_eq!(latest(&hosts, &FeatureName::new("x").unwrap()), None);
    }
}
