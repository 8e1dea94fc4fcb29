//! Relief of a crowded host: which feature leaves it, for where, and whether that pays.
//!
//! Features' own thresholds say when a feature wants more than its administrator allowed for. A
//! host can be short of CPU while each of its features is within its limits. From what hosts are
//! expected to be asked for ([`Outlook`]) follows how many seconds their features will lack CPU:
//!
//! ```text
//! shortage(host) = features * horizon * P(demand > capacity)
//! gain(move) = shortage(source) - shortage(source without) + shortage(target)
//!              - shortage(target with) - seconds of the move
//! ```
//!
//! A move is made when it gains more than [`Relief::least_gain_s`]. Its cost and its risk at the
//! target are in the same unit, so that a burst that passes, a target that would be the next to
//! be crowded, and a large feature that takes long to move all count for what they are. Which
//! targets are open at all is [`decide`]'s answer, as for every other move.

use crate::affinity::{Demand, Score};
use crate::api::Plan;
use crate::feature::FeatureName;
use crate::host::{FeatureStatus, HostState, InstanceState, Outlook};

use super::{Ask, Cause, Past, Policy, View, decide};

/// How a crowded host is relieved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Relief {
    /// For how long a move counts, seconds.
    pub horizon_s: f64,
    /// Feature-seconds that a move must save beside its own.
    pub least_gain_s: f64,
    /// Factor on the standard deviation: loads have heavier tails than the normal distribution.
    pub caution: f64,
    /// Standard deviation that is assumed at least, as a fraction of capacity.
    pub least_sd: f64,
    /// Features that are looked at, those that relieve most.
    pub most_features: usize,
    /// Among targets that gain nearly as much as the best (this fraction of it), the one with the
    /// highest score is taken.
    pub near_best: f64,
}

impl Default for Relief {
    fn default() -> Self {
        Self {
            horizon_s: 1800.0,
            least_gain_s: 200.0,
            caution: 1.5,
            least_sd: 0.02,
            most_features: 8,
            near_best: 0.9,
        }
    }
}

/// A feature on the host in question.
#[derive(Debug, Clone, PartialEq)]
pub struct Resident {
    /// Domain it is in.
    pub domain: String,
    /// Name.
    pub feature: FeatureName,
    /// What it is expected to use where it goes.
    pub demand: Demand,
    /// What it is expected to want.
    pub outlook: Outlook,
    /// Covariance of its CPU use with that of its whole host, CPUs squared.
    pub covariance: f64,
    /// How long a move of it would disturb it, seconds.
    pub move_s: f64,
    /// When it last moved, milliseconds since the epoch.
    pub last_moved_ms: Option<i64>,
    /// What earlier moves of it cost.
    pub past: Past,
}

/// Probability that a normal value lies more than `z` standard deviations above its mean
/// (Abramowitz and Stegun 26.2.17, error below 1e-7).
fn upper_tail(z: f64) -> f64 {
    const B: [f64; 5] = [
        0.319_381_530,
        -0.356_563_782,
        1.781_477_937,
        -1.821_255_978,
        1.330_274_429,
    ];
    let t = 1.0 / (1.0 + 0.231_641_9 * z.abs());
    let density = (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let p = density * t * B.iter().rev().fold(0.0, |sum, b| sum * t + b);
    if z >= 0.0 { p } else { 1.0 - p }
}

impl Relief {
    /// Fraction of time during which a demand is above a capacity in CPUs.
    pub fn short(&self, o: &Outlook, capacity: f64) -> f64 {
        let sd = (o.cpus_sd * self.caution).max(self.least_sd * capacity);
        if sd.is_finite() && sd > 0.0 && o.cpus.is_finite() {
            upper_tail((capacity - o.cpus) / sd)
        } else {
            0.0
        }
    }

    fn shortage(&self, o: &Outlook, capacity: f64, features: usize) -> f64 {
        self.short(o, capacity) * self.horizon_s * features as f64
    }

    /// Feature-seconds for which the host's features will be short of CPU; 0 without an outlook.
    pub fn shortage_of(&self, h: &HostState) -> f64 {
        outlook(h).map_or(0.0, |o| self.shortage(&o, h.capabilities.cpus, features(h)))
    }
}

/// The host's outlook with what is reserved for moves under way.
fn outlook(h: &HostState) -> Option<Outlook> {
    h.outlook.map(|o| Outlook {
        cpus: o.cpus + h.reserved_cpus,
        ..o
    })
}

fn features(h: &HostState) -> usize {
    let all = h.instances.iter().flat_map(|i| &i.features);
    all.filter(|f| f.status == FeatureStatus::Running).count()
}

/// An outlook with a feature more.
pub fn with(host: &Outlook, feature: &Outlook) -> Outlook {
    Outlook {
        cpus: host.cpus + feature.cpus,
        cpus_sd: host.cpus_sd.hypot(feature.cpus_sd),
    }
}

/// An outlook with a feature less; `covariance` of the feature with its whole host.
pub fn without(host: &Outlook, feature: &Outlook, covariance: f64) -> Outlook {
    let variance = host.cpus_sd.powi(2) - 2.0 * covariance + feature.cpus_sd.powi(2);
    Outlook {
        cpus: (host.cpus - feature.cpus).max(0.0),
        cpus_sd: variance.max(0.0).sqrt(),
    }
}

/// The move that relieves this host most, if one pays; its plan names all candidates and why.
/// `affinity` scores a host and guest for a feature of this host, as in [`decide`].
pub fn relieve(
    view: &View,
    policy: &Policy,
    relief: &Relief,
    residents: &[Resident],
    affinity: &dyn Fn(&Resident, &HostState, &InstanceState) -> Score,
) -> Option<Plan> {
    let here = view.hosts.iter().find(|h| h.name == view.me)?;
    let (now, capacity, n) = (outlook(here)?, here.capabilities.cpus, features(here));
    let shortage = relief.shortage(&now, capacity, n);
    if shortage < relief.least_gain_s || !policy.automatic {
        return None;
    }
    let cooled = |r: &Resident| {
        r.last_moved_ms
            .is_none_or(|at| view.now_ms.saturating_sub(at) >= policy.cooldown_ms)
    };
    let automatic = |r: &Resident| {
        here.feature(&r.domain, &r.feature)
            .is_some_and(|f| f.spec.automatic)
    };
    let mut leaving: Vec<(f64, &Resident)> = residents
        .iter()
        .filter(|r| cooled(r) && automatic(r))
        .map(|r| {
            let rest = without(&now, &r.outlook, r.covariance);
            let left = relief.shortage(&rest, capacity, n.saturating_sub(1));
            (shortage - left - r.move_s, r)
        })
        .filter(|(gain, _)| *gain > relief.least_gain_s)
        .collect();
    leaving.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| name(a.1).cmp(&name(b.1))));
    leaving.truncate(relief.most_features);

    let mut best: Option<(f64, Plan)> = None;
    for (most, r) in leaving {
        if best.as_ref().is_some_and(|(gain, _)| *gain >= most) {
            continue;
        }
        let ask = Ask {
            domain: &r.domain,
            feature: &r.feature,
            cause: Cause::Preview { breach: None },
            expected: r.demand,
            last_moved_ms: r.last_moved_ms,
            past: r.past,
        };
        let plan = decide(view, policy, &ask, &|h, i| affinity(r, h, i));
        let Some((index, gain)) = target(view, relief, r, most, &plan) else {
            continue;
        };
        if gain > relief.least_gain_s && best.as_ref().is_none_or(|(b, _)| gain > *b) {
            best = Some((gain, chosen(plan, index, gain, &now, here, relief)));
        }
    }
    best.map(|(_, plan)| plan)
}

fn name(r: &Resident) -> (&str, &FeatureName) {
    (&r.domain, &r.feature)
}

/// The candidate that gains most, or has the highest score among those that gain nearly as much,
/// with its gain. Hosts that tell no outlook are no targets.
fn target(
    view: &View,
    relief: &Relief,
    r: &Resident,
    most: f64,
    plan: &Plan,
) -> Option<(usize, f64)> {
    let gains: Vec<(usize, f64)> = plan
        .candidates
        .iter()
        .enumerate()
        .filter(|(_, c)| c.score.is_some())
        .filter_map(|(index, c)| {
            let h = view.hosts.iter().find(|h| h.name == c.host)?;
            let (o, n) = (outlook(h)?, features(h));
            let before = relief.shortage(&o, h.capabilities.cpus, n);
            let after = relief.shortage(&with(&o, &r.outlook), h.capabilities.cpus, n + 1);
            Some((index, most - (after - before)))
        })
        .collect();
    let best = gains.iter().map(|g| g.1).max_by(f64::total_cmp)?;
    // Candidates are sorted by score already.
    gains
        .into_iter()
        .find(|(_, gain)| *gain >= best - (1.0 - relief.near_best) * best.abs())
}

fn chosen(
    mut plan: Plan,
    index: usize,
    gain: f64,
    now: &Outlook,
    here: &HostState,
    relief: &Relief,
) -> Plan {
    let c = &plan.candidates[index];
    plan.reason = format!(
        "{:.1} ± {:.1} of {:.1} CPUs are expected to be wanted on this host, so its features would \
         be short of CPU for {:.1} % of the next {:.0} min; with the feature in guest {} on host {} \
         it is {gain:.0} feature-seconds less",
        now.cpus,
        now.cpus_sd,
        here.capabilities.cpus,
        100.0 * relief.short(now, here.capabilities.cpus),
        relief.horizon_s / 60.0,
        c.domain,
        c.host,
    );
    "move".clone_into(&mut plan.outcome);
    plan.chosen = Some(index);
    plan
}
