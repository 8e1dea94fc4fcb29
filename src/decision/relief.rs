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
    /// Seconds for which a feature that moved stays, at least; the policy's cooldown counts too.
    pub stay_s: f64,
    /// Features that are looked at, those that relieve most.
    pub most_features: usize,
    /// Among targets that gain nearly as much as the best (this fraction of it), the one with the
    /// highest score is taken.
    pub near_best: f64,
}

impl Default for Relief {
    fn default() -> Self {
        Self {
            horizon_s: 3600.0,
            least_gain_s: 300.0,
            caution: 1.4,
            least_sd: 0.02,
            stay_s: 600.0,
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
    let stay_ms = policy.cooldown_ms.max((relief.stay_s * 1000.0) as i64);
    let cooled = |r: &Resident| {
        r.last_moved_ms
            .is_none_or(|at| view.now_ms.saturating_sub(at) >= stay_ms)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{feature, guest, host, name};
    use super::*;
    use crate::affinity::Demand;
    use crate::api::ModelInfo;

    const CPUS: f64 = 16.0;

    /// Hosts with features of these sizes; those of `h0` are residents too.
    fn cluster(loads: &[Vec<f64>], sd: f64) -> (View, Vec<Resident>) {
        let mut hosts = Vec::new();
        for (n, load) in loads.iter().enumerate() {
            let total: f64 = load.iter().sum();
            let mut h = host(&format!("h{n}"), total);
            h.capabilities.cpus = CPUS;
            h.capabilities.memory_mib = 65_536.0;
            h.outlook = Some(Outlook {
                cpus: total,
                cpus_sd: sd * (load.len() as f64).sqrt(),
            });
            let mut g = guest(&format!("g{n}"));
            g.vcpus = CPUS;
            g.cpus_used = total;
            g.memory_mib = 32_768.0;
            g.memory_available_mib = Some(16_384.0);
            g.features = (0..load.len())
                .map(|f| feature(&format!("f{n}-{f}"), &format!("10.0.{n}.{}/8", f + 1)))
                .collect();
            h.instances = vec![g];
            hosts.push(h);
        }
        let view = View {
            me: "h0".into(),
            now_ms: 1_001_000,
            groups: hosts
                .iter()
                .map(|h| (h.name.clone(), vec!["default".to_owned()]))
                .collect(),
            hosts,
            stale_after_ms: 10_000,
            model: ModelInfo::default(),
        };
        let residents = residents(0, &loads[0], sd);
        (view, residents)
    }

    fn residents(host: usize, load: &[f64], sd: f64) -> Vec<Resident> {
        let of = load.iter().enumerate().map(|(f, cpus)| Resident {
            domain: format!("g{host}"),
            feature: name(&format!("f{host}-{f}")),
            demand: Demand {
                cpus: *cpus,
                memory_mib: 64.0,
                ..Demand::default()
            },
            outlook: Outlook {
                cpus: *cpus,
                cpus_sd: sd,
            },
            covariance: sd * sd,
            move_s: 5.0,
            last_moved_ms: None,
            past: Past::default(),
        });
        of.collect()
    }

    fn run(view: &View, residents: &[Resident]) -> Option<Plan> {
        let score = |_: &Resident, h: &HostState, _: &InstanceState| Score {
            value: (1.0 - h.load.cpus_used / h.capabilities.cpus).clamp(0.0, 1.0),
            ..Score::default()
        };
        relieve(
            view,
            &Policy::default(),
            &Relief::default(),
            residents,
            &score,
        )
    }

    fn loads() -> impl Strategy<Value = Vec<Vec<f64>>> {
        let crowded = proptest::collection::vec(0.2f64..2.0, 8..20);
        let other = proptest::collection::vec(0.1f64..2.0, 1..12);
        (crowded, proptest::collection::vec(other, 1..5)).prop_map(|(first, rest)| {
            let mut all = vec![first];
            all.extend(rest);
            all
        })
    }

    proptest! {
        #[test]
        fn goes_where_it_may_and_fits(loads in loads(), sd in 0.01f64..0.3, closed in 0usize..5) {
            let (mut view, residents) = cluster(&loads, sd);
            if let Some(h) = view.hosts.get_mut(closed).filter(|h| h.name != "h0") {
                h.accepts = false;
            }
            if let Some(p) = run(&view, &residents) {
                let c = p.target().unwrap();
                prop_assert!(c.refusals.is_empty() && c.score.is_some());
                let h = view.hosts.iter().find(|h| h.name == c.host).unwrap();
                prop_assert!(h.accepts && h.name != "h0");
                let r = residents.iter().find(|r| r.feature == p.feature).unwrap();
                let keep = CPUS * (1.0 - Policy::default().reserve);
                prop_assert!(h.load.cpus_used + r.demand.cpus <= keep + 1e-6);
            }
        }

        #[test]
        fn same_whatever_the_order(loads in loads(), sd in 0.01f64..0.3, turn in 0usize..5) {
            let (view, mut residents) = cluster(&loads, sd);
            let first = run(&view, &residents);
            prop_assert_eq!(&first, &run(&view, &residents));
            let mut other = view.clone();
            let n = other.hosts.len();
            other.hosts.rotate_left(turn % n);
            residents.reverse();
            prop_assert_eq!(&first, &run(&other, &residents));
        }

        /// Under constant load relief comes to an end, and nothing goes straight back.
        #[test]
        fn never_back_and_forth(loads in loads(), sd in 0.01f64..0.3) {
            let mut loads: Vec<Vec<(usize, usize, f64)>> = loads
                .iter()
                .enumerate()
                .map(|(h, l)| l.iter().enumerate().map(|(f, c)| (h, f, *c)).collect())
                .collect();
            let mut last = None;
            let mut moves = 0;
            // Each host relieves itself until none does.
            loop {
                let mut any = false;
                for me in 0..loads.len() {
                    let sizes: Vec<Vec<f64>> =
                        loads.iter().map(|l| l.iter().map(|f| f.2).collect()).collect();
                    let (mut view, _) = cluster(&sizes, sd);
                    view.me = format!("h{me}");
                    let Some(p) = run(&view, &residents(me, &sizes[me], sd)) else { continue };
                    let index: usize = p.feature.as_str().split('-').nth(1).unwrap().parse().unwrap();
                    let to: usize = p.target().unwrap().host[1..].parse().unwrap();
                    let f = loads[me].remove(index);
                    prop_assert_ne!(last, Some((f.0, f.1, to)), "straight back");
                    last = Some((f.0, f.1, me));
                    loads[to].push(f);
                    any = true;
                    moves += 1;
                    prop_assert!(moves < 200);
                }
                if !any {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_crowded_host_is_relieved_and_says_why() {
        let (mut view, residents) = cluster(&[vec![1.6; 10], vec![0.5; 4], vec![1.2; 10]], 0.2);
        let p = run(&view, &residents).unwrap();
        assert_eq!(p.outcome, "move");
        assert_eq!(p.target().unwrap().host, "h1", "the emptiest");
        assert!(
            p.reason.contains("16.0 ± 0.6 of 16.0 CPUs are expected"),
            "{}",
            p.reason
        );
        // Without an outlook, or with room, nothing is done.
        let (calm, few) = cluster(&[vec![1.0; 8], vec![0.5; 4]], 0.1);
        assert_eq!(run(&calm, &few), None);
        view.hosts[0].outlook = None;
        assert_eq!(run(&view, &residents), None);
    }

    #[test]
    fn tail_of_the_normal_distribution() {
        for (z, p) in [
            (0.0, 0.5),
            (1.0, 0.158_655),
            (-2.0, 0.977_250),
            (3.0, 0.001_350),
        ] {
            assert!((upper_tail(z) - p).abs() < 1e-5, "{z}");
        }
    }
}
