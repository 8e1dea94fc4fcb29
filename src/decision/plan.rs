//! The decision for one feature.

use crate::affinity::{After, Demand, Score};
use crate::api::{Candidate, Destination, Plan};
use crate::host::{FeatureStatus, HostState, InstanceState, MoveOutcome};
use crate::rules::Mode;

use super::cost::{Cost, predict};
use super::eligible::{self, Source};
use super::history::latest;
use super::refusal::Refusal;
use super::simulate::{self, Balance};
use super::{Ask, BreachCause, ByFn, Cause, Policy, Scorer, View};

/// Candidates whose score is taken apart for the reader; the rest shows only what it is made of.
const EXPLAINED: usize = 20;

/// Guests that are scored, over all hosts: of hosts with many, the least pressed.
const SCORED: usize = 2_000;

/// A target that is open to the feature, and what the choice needs.
pub(super) struct Open<'a> {
    pub host: &'a HostState,
    pub instance: &'a InstanceState,
    pub score: f64,
    pub affinity: f64,
    balance: f64,
    near: Option<f64>,
    pub relieves: bool,
    /// CPU is short, but the user insists.
    pub cpu_short: bool,
}

/// A question put to a view, ready to be answered for any host.
pub(super) struct Context<'a> {
    view: &'a View,
    pub policy: &'a Policy,
    pub source: Source<'a>,
    balance: Balance,
    pub demand: Demand,
    asked: Option<&'a Destination>,
    /// A user asked for it.
    insisted: bool,
    pub breach: Option<&'a BreachCause>,
    here: After,
    pub cost: Cost,
    pub outcome: Option<&'a MoveOutcome>,
    scorer: &'a dyn Scorer,
    /// Guests of one host that are scored.
    guests: usize,
}

/// Decides. `affinity` scores a host and guest for the feature: for the guest that it is in it
/// must score staying, for others as if it were there.
pub fn decide(
    view: &View,
    policy: &Policy,
    ask: &Ask<'_>,
    affinity: &dyn Fn(&HostState, &InstanceState) -> Score,
) -> Plan {
    decide_by(view, policy, ask, &ByFn(affinity))
}

/// One state per host, by name: the view's order must not matter.
pub(super) fn sorted(view: &View) -> Vec<&HostState> {
    let mut hosts: Vec<&HostState> = view.hosts.iter().collect();
    hosts.sort_by(|a, b| a.name.cmp(&b.name).then(b.at_ms.cmp(&a.at_ms)));
    hosts.dedup_by(|a, b| a.name == b.name);
    hosts
}

pub(super) fn by_name<'a>(hosts: &[&'a HostState], name: &str) -> Option<&'a HostState> {
    let at = hosts.binary_search_by(|h| h.name.as_str().cmp(name)).ok()?;
    Some(hosts[at])
}

/// Like [`decide`], scoring all targets at once.
pub fn decide_by(view: &View, policy: &Policy, ask: &Ask<'_>, scorer: &dyn Scorer) -> Plan {
    let hosts = sorted(view);
    let mut plan = Plan::new(ask.domain, ask.feature.clone(), &view.me);
    plan.model = view.model.clone();
    let Some(source) = find(&hosts, &view.me, ask) else {
        plan.reason = format!(
            "there is no feature '{}' in guest {} of host {}",
            ask.feature, ask.domain, view.me
        );
        return plan;
    };
    let of_feature = eligible::of_feature(&source, |m| eligible::address(&source, m, &hosts));
    let outcome = latest(hosts.iter().copied(), ask.feature);
    let context = Context::new(view, policy, ask, source, &hosts, outcome, scorer);
    plan.stay_score = context.stay();
    plan.cost = Some(context.cost);
    plan.mode = context.mode();

    let mut refused = Vec::new();
    let mut targets = Vec::new();
    for h in &hosts {
        match context.targets(h, &of_feature) {
            Ok(t) => targets.extend(t),
            Err((domain, why)) => refused.push(refusal(&h.name, domain, &why)),
        }
    }
    let open = context.best_of_each(targets);
    // Hosts that were never heard, and a host that nobody knows.
    let unheard = view.groups.keys().filter(|n| by_name(&hosts, n).is_none());
    refused.extend(unheard.map(|n| refusal(n, "", &[Refusal::Unreachable])));
    if let Some(n) = context.asked.and_then(|d| d.host.as_ref())
        && by_name(&hosts, n).is_none()
        && !view.groups.contains_key(n)
    {
        refused.push(refusal(n, "", &[Refusal::UnknownHost]));
    }
    refused.sort_by(|a, b| a.host.cmp(&b.host));

    let mut explain = Vec::new();
    for (n, o) in open.iter().enumerate() {
        let score = (n < EXPLAINED).then(|| context.scorer.explain(o.host, o.instance));
        let mut score = score.unwrap_or_default();
        explain.push(std::mem::take(&mut score.explain));
        plan.candidates.push(context.candidate(o, score));
    }
    let (outcome, chosen, reason) = super::choose::choose(
        &context,
        ask,
        plan.stay_score,
        (&open, &refused),
        &explain,
        &of_feature,
    );
    outcome.clone_into(&mut plan.outcome);
    plan.chosen = chosen;
    plan.reason = reason;
    plan.candidates.append(&mut refused);
    plan
}

pub(super) fn find<'a>(hosts: &[&'a HostState], me: &str, ask: &Ask<'_>) -> Option<Source<'a>> {
    let host = by_name(hosts, me)?;
    let instance = host.instances.iter().find(|i| i.domain == ask.domain)?;
    let feature = instance
        .features
        .iter()
        .find(|f| f.spec.name == *ask.feature)?;
    Some(Source {
        host,
        instance,
        feature,
    })
}

fn sane(d: Demand) -> Demand {
    let f = |v: f64| if v.is_finite() { v.max(0.0) } else { 0.0 };
    Demand {
        cpus: f(d.cpus),
        memory_mib: f(d.memory_mib),
        net_bps: f(d.net_bps),
        disk_bps: f(d.disk_bps),
    }
}

fn refusal(host: &str, domain: &str, why: &[Refusal]) -> Candidate {
    Candidate {
        host: host.to_owned(),
        domain: domain.to_owned(),
        score: None,
        parts: Vec::new(),
        refusals: why.iter().map(ToString::to_string).collect(),
    }
}

impl<'a> Context<'a> {
    /// `hosts` is sorted by name.
    pub(super) fn new(
        view: &'a View,
        policy: &'a Policy,
        ask: &'a Ask<'_>,
        source: Source<'a>,
        hosts: &[&'a HostState],
        outcome: Option<&'a MoveOutcome>,
        scorer: &'a dyn Scorer,
    ) -> Self {
        let demand = sane(ask.expected);
        let me = &source.host.name;
        let fresh = hosts.iter().copied().filter(|h| {
            h.name == *me || view.now_ms.saturating_sub(h.at_ms) <= view.stale_after_ms
        });
        let balance = Balance::of(fresh, me, &demand);
        let mut context = Self::with(view, policy, ask, source, balance, outcome, scorer);
        context.guests = (SCORED / hosts.len().max(1)).max(1);
        context
    }

    /// The same with a balance that is known already.
    pub(super) fn with(
        view: &'a View,
        policy: &'a Policy,
        ask: &'a Ask<'_>,
        source: Source<'a>,
        balance: Balance,
        outcome: Option<&'a MoveOutcome>,
        scorer: &'a dyn Scorer,
    ) -> Self {
        let demand = sane(ask.expected);
        Self {
            view,
            policy,
            balance,
            here: simulate::after(source.host, source.instance, ask.feature, &demand),
            cost: predict(
                demand.memory_mib,
                source.feature.spec.downtime_ms,
                &ask.past,
            ),
            demand,
            asked: match &ask.cause {
                Cause::Manual { to } | Cause::Crowded { to, .. } => Some(to),
                _ => None,
            },
            breach: match &ask.cause {
                Cause::Breach(b) | Cause::Preview { breach: Some(b) } => Some(b),
                _ => None,
            },
            outcome,
            insisted: matches!(ask.cause, Cause::Manual { .. }),
            scorer,
            source,
            guests: 2,
        }
    }

    pub(super) fn named(&self) -> bool {
        self.insisted && self.asked.is_some_and(|d| d.host.is_some())
    }

    fn combine(&self, affinity: f64, balance: f64, near: Option<f64>) -> f64 {
        let w = self.policy.weights;
        let (near_weight, near) = near.map_or((0.0, 0.0), |n| (w.near, n));
        let sum = w.affinity + w.balance + near_weight;
        let value = if affinity.is_finite() { affinity } else { 0.0 }.clamp(0.0, 1.0);
        if sum > 0.0 {
            (w.affinity * value + w.balance * balance + near_weight * near) / sum
        } else {
            value
        }
    }

    fn even(&self, h: &HostState) -> f64 {
        self.balance.with(h, &self.source.host.name, &self.demand)
    }

    /// Score of staying.
    pub(super) fn stay(&self) -> f64 {
        let s = &self.source;
        let a = self.scorer.values(&[(s.host, s.instance)]);
        let affinity = a.first().copied().unwrap_or_default();
        self.combine(affinity, self.even(s.host), eligible::near(s, s.host))
    }

    /// The guests of a host that may take the feature, or the guest that is nearest to it and why
    /// none may.
    pub(super) fn targets(
        &self,
        h: &'a HostState,
        of_feature: &[Refusal],
    ) -> Result<Vec<Open<'a>>, (&'a str, Vec<Refusal>)> {
        let mut host = eligible::of_host(self.view, &self.source, h, self.asked, self.policy);
        if host.contains(&Refusal::OwnHost) {
            return Err(("", host));
        }
        host.extend_from_slice(of_feature);
        let mut open: Vec<(f64, &InstanceState, bool)> = Vec::new();
        let mut nearest: Option<(Vec<Refusal>, &str)> = None;
        for i in &h.instances {
            let mut why = eligible::of_guest(&self.source, i, self.asked);
            let capacity = eligible::capacity(h, i, &self.demand, self.policy);
            let cpu_short = !capacity.cpu.is_empty();
            if !self.named() {
                why.extend(capacity.cpu);
            }
            why.extend(capacity.memory);
            if host.is_empty() && why.is_empty() {
                open.push((simulate::guest_pressure(i, &self.demand), i, cpu_short));
            } else if open.is_empty()
                && nearest.as_ref().is_none_or(|(n, d)| {
                    why.len() < n.len() || (why.len() == n.len() && i.domain.as_str() < *d)
                })
            {
                nearest = Some((why, &i.domain));
            }
        }
        if open.is_empty() {
            let (why, domain) = nearest.unwrap_or_default();
            host.extend(why);
            host.dedup();
            return Err((domain, host));
        }
        if open.len() > self.guests {
            open.sort_by(|a, b| {
                a.0.total_cmp(&b.0)
                    .then_with(|| a.1.domain.cmp(&b.1.domain))
            });
            open.truncate(self.guests);
        }
        let target = |(_, instance, cpu_short): (f64, &'a InstanceState, bool)| {
            let feature = &self.source.feature.spec.name;
            let relieves = self.breach.is_none_or(|b| {
                let there = simulate::after(h, instance, feature, &self.demand);
                simulate::relieves(b.resource, &self.here, &there)
            });
            Open {
                host: h,
                instance,
                score: 0.0,
                affinity: 0.0,
                balance: 0.0,
                near: None,
                relieves,
                cpu_short,
            }
        };
        Ok(open.into_iter().map(target).collect())
    }

    /// Scores targets (those of a host in a row) and keeps the best of each host, best first.
    pub(super) fn best_of_each(&self, mut targets: Vec<Open<'a>>) -> Vec<Open<'a>> {
        let pairs: Vec<_> = targets.iter().map(|o| (o.host, o.instance)).collect();
        let values = self.scorer.values(&pairs);
        let (mut last, mut balance, mut near): (Option<&str>, _, _) = (None, 0.0, None);
        for (o, value) in targets.iter_mut().zip(values) {
            if last != Some(o.host.name.as_str()) {
                last = Some(&o.host.name);
                balance = self.even(o.host);
                near = eligible::near(&self.source, o.host);
            }
            (o.affinity, o.balance, o.near) = (value, balance, near);
            o.score = self.combine(value, balance, near);
        }
        let mut best: Vec<Open<'a>> = Vec::with_capacity(targets.len());
        for o in targets {
            match best.last_mut() {
                Some(b) if b.host.name == o.host.name => {
                    let better = o.score > b.score
                        || (o.score == b.score && o.instance.domain < b.instance.domain);
                    if better {
                        *b = o;
                    }
                }
                _ => best.push(o),
            }
        }
        best.sort_by(|a, b| {
            b.score
                .total_cmp(&a.score)
                .then_with(|| a.host.name.cmp(&b.host.name))
        });
        best
    }

    fn candidate(&self, o: &Open<'_>, score: Score) -> Candidate {
        let mut parts = vec![
            ("affinity".to_owned(), o.affinity),
            ("balance".to_owned(), o.balance),
        ];
        if self.breach.is_some() {
            parts.push(("relief".to_owned(), f64::from(u8::from(o.relieves))));
        }
        parts.extend(o.near.map(|n| ("near".to_owned(), n)));
        if self.named() {
            let host = simulate::host_room(o.host, self.policy.reserve).cpus;
            let guest = simulate::guest_room(o.instance, self.policy.reserve).cpus;
            let fits = if self.demand.cpus > 0.0 {
                (host.min(guest) / self.demand.cpus).clamp(0.0, 1.0)
            } else {
                1.0
            };
            parts.push(("cpu_capacity".to_owned(), fits));
        }
        parts.extend(score.parts);
        Candidate {
            host: o.host.name.clone(),
            domain: o.instance.domain.clone(),
            score: Some(o.score),
            parts,
            refusals: Vec::new(),
        }
    }

    /// What a move to the target must gain.
    pub(super) fn needed(&self, o: &Open<'_>, ask: &Ask<'_>) -> f64 {
        let cost = self.policy.cost_weight.max(0.0) * self.cost.relative();
        let back = self.goes_back(o, ask);
        self.policy.min_gain * if back { 2.0 } else { 1.0 } + cost
    }

    /// Whether the target is where the feature came from not long ago.
    fn goes_back(&self, o: &Open<'_>, ask: &Ask<'_>) -> bool {
        let Some(moved) = ask.last_moved_ms else {
            return false;
        };
        let age = self.view.now_ms.saturating_sub(moved);
        let long = self
            .policy
            .cooldown_ms
            .saturating_mul(super::history::RETURN_COOLDOWNS);
        age < long && self.outcome.is_some_and(|l| l.from == o.host.name)
    }

    /// Milliseconds for which the feature stays because it moved, and how many moves in a row
    /// did not help.
    pub(super) fn cooling(&self, ask: &Ask<'_>) -> Option<(i64, u32)> {
        let fruitless = self.outcome.map_or(0, |o| o.fruitless);
        let cooldown = super::history::cooldown_ms(self.policy.cooldown_ms, fruitless);
        let left = ask
            .last_moved_ms?
            .saturating_add(cooldown)
            .saturating_sub(self.view.now_ms);
        (left > 0).then_some((left, fruitless))
    }

    /// Says when the measured use may be less than what the feature wants.
    pub(super) fn pressed(&self) -> Option<String> {
        let i = self.source.instance;
        // The guest tells: its host may give it less than that.
        let counted = self.source.feature.usage.and_then(|u| u.cpu_percent);
        let used = self.demand.cpus.max(counted.unwrap_or(0.0) / 100.0);
        if i.vcpus > 0.0 && used >= 0.9 * i.vcpus {
            return Some(format!(
                "it uses all of its guest's {:.0} vCPU, so it may use more elsewhere",
                i.vcpus
            ));
        }
        let throttled = self
            .source
            .feature
            .usage
            .and_then(|u| u.throttled_percent)
            .filter(|t| *t >= 1.0)?;
        Some(format!(
            "its own CPU limit throttles it {throttled:.0} % of the time, which no move changes"
        ))
    }

    /// Why automatic moves of it are off, if they are.
    pub(super) fn off(&self) -> Option<&'static str> {
        if !self.policy.automatic {
            Some("automatic moves are off (decision.automatic)")
        } else if !self.source.feature.spec.automatic {
            Some("the feature's definition does not allow automatic moves")
        } else {
            None
        }
    }

    /// The more careful of the host's mode and the feature's.
    pub(super) fn mode(&self) -> Mode {
        let own = self.source.feature.spec.rules().mode;
        own.unwrap_or_default().max(self.policy.mode)
    }

    /// Whether the feature runs, for what is decided for many.
    pub(super) fn runs(&self) -> bool {
        self.source.feature.status == FeatureStatus::Running
    }
}
