//! The decision.

use std::fmt::Write as _;

use crate::affinity::{After, Demand, Score};
use crate::api::{Candidate, Destination, Plan};
use crate::host::{HostState, InstanceState};

use super::eligible::{self, Source};
use super::refusal::Refusal;
use super::simulate::{self, Balance};
use super::{Ask, BreachCause, Cause, Policy, View};

/// Affinity of a host and guest for the feature in question.
type Affinity<'a> = &'a dyn Fn(&HostState, &InstanceState) -> Score;

/// Smallest gain that is more than rounding.
const EPSILON: f64 = 1e-9;

/// A candidate that is open to the feature, and what else the choice needs.
struct Open {
    candidate: Candidate,
    score: f64,
    relieves: bool,
    /// CPU is short, but the user insists.
    cpu_short: bool,
    explain: Vec<(String, f64)>,
}

struct Context<'a> {
    policy: &'a Policy,
    source: Source<'a>,
    balance: Balance,
    demand: Demand,
    asked: Option<&'a Destination>,
    breach: Option<&'a BreachCause>,
    here: After,
    affinity: Affinity<'a>,
}

/// Decides. `affinity` scores a host and guest for the feature: for the guest that it is in it
/// must score staying, for others as if it were there.
pub fn decide(view: &View, policy: &Policy, ask: &Ask<'_>, affinity: Affinity<'_>) -> Plan {
    // One state per host, by name: the view's order must not matter.
    let mut hosts: Vec<&HostState> = view.hosts.iter().collect();
    hosts.sort_by(|a, b| a.name.cmp(&b.name).then(b.at_ms.cmp(&a.at_ms)));
    hosts.dedup_by(|a, b| a.name == b.name);

    let mut plan = Plan {
        domain: ask.domain.to_owned(),
        feature: ask.feature.clone(),
        host: view.me.clone(),
        outcome: "no_eligible_host".to_owned(),
        reason: String::new(),
        chosen: None,
        stay_score: 0.0,
        candidates: Vec::new(),
        model: view.model.clone(),
    };
    let Some(source) = find(view, ask, &hosts) else {
        plan.reason = format!(
            "there is no feature '{}' in guest {} of host {}",
            ask.feature, ask.domain, view.me
        );
        return plan;
    };

    let demand = sane(ask.expected);
    let asked = match &ask.cause {
        Cause::Manual { to } => Some(to),
        _ => None,
    };
    let breach = match &ask.cause {
        Cause::Breach(b) | Cause::Preview { breach: Some(b) } => Some(b),
        _ => None,
    };
    let fresh = hosts.iter().copied().filter(|h| {
        h.name == view.me || view.now_ms.saturating_sub(h.at_ms) <= view.stale_after_ms
    });
    let context = Context {
        policy,
        balance: Balance::of(fresh, &view.me, &demand),
        demand,
        asked,
        breach,
        here: simulate::after(source.host, source.instance, ask.feature, &demand),
        affinity,
        source,
    };
    plan.stay_score = context.stay();

    let of_feature = eligible::of_feature(&context.source, &hosts);
    let mut open = Vec::new();
    let mut refused = Vec::new();
    for h in &hosts {
        match context.candidate(view, h, &of_feature) {
            Ok(o) => open.push(o),
            Err(c) => refused.push(c),
        }
    }
    // Hosts that were never heard, and a host that nobody knows.
    let known = |name: &str| hosts.iter().any(|h| h.name == name);
    let unheard = view.groups.keys().filter(|n| !known(n));
    refused.extend(unheard.map(|n| refusal(n, "", &[Refusal::Unreachable])));
    if let Some(n) = asked.and_then(|d| d.host.as_ref())
        && !known(n)
        && !view.groups.contains_key(n)
    {
        refused.push(refusal(n, "", &[Refusal::UnknownHost]));
    }
    open.sort_by(|a, b| {
        let (x, y) = (&a.candidate, &b.candidate);
        b.score
            .total_cmp(&a.score)
            .then_with(|| (&x.host, &x.domain).cmp(&(&y.host, &y.domain)))
    });
    refused.sort_by(|a, b| a.host.cmp(&b.host));

    let (outcome, chosen, reason) = choose(
        view,
        &context,
        ask,
        plan.stay_score,
        (&open, &refused),
        &of_feature,
    );
    outcome.clone_into(&mut plan.outcome);
    plan.chosen = chosen;
    plan.reason = reason;
    plan.candidates = open.into_iter().map(|o| o.candidate).collect();
    plan.candidates.append(&mut refused);
    plan
}

fn find<'a>(view: &View, ask: &Ask<'_>, hosts: &[&'a HostState]) -> Option<Source<'a>> {
    let host = *hosts.iter().find(|h| h.name == view.me)?;
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

impl Context<'_> {
    fn named(&self) -> bool {
        self.asked.is_some_and(|d| d.host.is_some())
    }

    fn combine(&self, affinity: f64, balance: f64) -> f64 {
        let w = self.policy.weights;
        let sum = w.affinity + w.balance;
        let value = if affinity.is_finite() { affinity } else { 0.0 }.clamp(0.0, 1.0);
        if sum > 0.0 {
            (w.affinity * value + w.balance * balance) / sum
        } else {
            value
        }
    }

    fn even(&self, h: &HostState) -> f64 {
        self.balance.with(h, &self.source.host.name, &self.demand)
    }

    fn stay(&self) -> f64 {
        let s = &self.source;
        let a = (self.affinity)(s.host, s.instance);
        self.combine(a.value, self.even(s.host))
    }

    /// The best guest of a host, or why none will do.
    fn candidate(
        &self,
        view: &View,
        h: &HostState,
        of_feature: &[Refusal],
    ) -> Result<Open, Candidate> {
        let mut host = eligible::of_host(view, &self.source, h, self.asked);
        if host.contains(&Refusal::OwnHost) {
            return Err(refusal(&h.name, "", &host));
        }
        host.extend_from_slice(of_feature);
        let mut best: Option<Open> = None;
        // Fewest reasons: the guest that is nearest to being able to.
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
                let o = self.score(h, i, cpu_short);
                if best.as_ref().is_none_or(|b| {
                    o.score > b.score
                        || (o.score == b.score && o.candidate.domain < b.candidate.domain)
                }) {
                    best = Some(o);
                }
            } else if nearest.as_ref().is_none_or(|(n, d)| {
                why.len() < n.len() || (why.len() == n.len() && i.domain.as_str() < *d)
            }) {
                nearest = Some((why, &i.domain));
            }
        }
        best.ok_or_else(|| {
            let (why, domain) = nearest.unwrap_or_default();
            host.extend(why);
            host.dedup();
            refusal(&h.name, domain, &host)
        })
    }

    fn score(&self, h: &HostState, i: &InstanceState, cpu_short: bool) -> Open {
        let a = (self.affinity)(h, i);
        let balance = self.even(h);
        let score = self.combine(a.value, balance);
        let there = simulate::after(h, i, &self.source.feature.spec.name, &self.demand);
        let relieves = self
            .breach
            .is_none_or(|b| simulate::relieves(b.resource, &self.here, &there));
        let mut parts = vec![
            ("affinity".to_owned(), a.value),
            ("balance".to_owned(), balance),
        ];
        if self.breach.is_some() {
            parts.push(("relief".to_owned(), f64::from(u8::from(relieves))));
        }
        if self.named() {
            let host = simulate::host_room(h, self.policy.reserve).cpus;
            let guest = simulate::guest_room(i, self.policy.reserve).cpus;
            let fits = if self.demand.cpus > 0.0 {
                (host.min(guest) / self.demand.cpus).clamp(0.0, 1.0)
            } else {
                1.0
            };
            parts.push(("cpu_capacity".to_owned(), fits));
        }
        parts.extend(a.parts);
        Open {
            candidate: Candidate {
                host: h.name.clone(),
                domain: i.domain.clone(),
                score: Some(score),
                parts,
                refusals: Vec::new(),
            },
            score,
            relieves,
            cpu_short,
            explain: a.explain,
        }
    }

    /// Says when the measured use may be less than what the feature wants.
    fn pressed(&self) -> Option<String> {
        let i = self.source.instance;
        if i.vcpus > 0.0 && self.demand.cpus >= 0.9 * i.vcpus {
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
}

/// What is chosen, and the sentence for it.
fn choose(
    view: &View,
    c: &Context<'_>,
    ask: &Ask<'_>,
    stay: f64,
    (open, refused): (&[Open], &[Candidate]),
    of_feature: &[Refusal],
) -> (&'static str, Option<usize>, String) {
    let place = |o: &Open| {
        format!(
            "guest {} on host {} (score {:.2}, staying {stay:.2})",
            o.candidate.domain, o.candidate.host, o.score
        )
    };
    let beneficial = |o: &Open| {
        o.relieves && o.score - stay > EPSILON && o.score - stay >= c.policy.min_gain - EPSILON
    };
    let why = match (&ask.cause, c.breach) {
        (Cause::Manual { .. }, _) => "asked for by hand".to_owned(),
        (_, Some(b)) => b.text.clone(),
        _ => "no threshold is breached".to_owned(),
    };
    if matches!(ask.cause, Cause::Preview { breach: None }) {
        let rest = match open.first() {
            Some(o) => format!("by hand it would best go to {}", place(o)),
            None => nobody(refused, of_feature),
        };
        return ("no_breach", None, format!("{why}; {rest}"));
    }
    let Some(first) = open.first() else {
        let rest = nobody(refused, of_feature);
        return ("no_eligible_host", None, format!("{why}; {rest}"));
    };
    let none = |reason: String| ("no_beneficial_move", None, format!("{why}; {reason}"));
    let with_notes = |o: &Open| {
        let mut text = format!("{why}; to {}", place(o));
        if o.cpu_short {
            text.push_str("; CPU is short there");
        }
        if let Some(p) = c.pressed() {
            let _ = write!(text, "; {p}");
        }
        if let Some((base, rest)) = o.explain.split_first() {
            let _ = write!(text, "; model {:.2}", base.1);
            for (name, v) in rest.iter().take(3) {
                let _ = write!(text, " {v:+.2} {name}");
            }
        }
        text
    };
    if c.named() {
        return ("move", Some(0), with_notes(first));
    }
    let by_itself = matches!(ask.cause, Cause::Breach(_));
    if c.breach.is_some()
        && let Some(moved) = ask.last_moved_ms
    {
        let left = moved
            .saturating_add(c.policy.cooldown_ms)
            .saturating_sub(view.now_ms);
        if left > 0 {
            return none(format!(
                "it has just moved and stays for another {:.0} s (decision.cooldown_s)",
                left as f64 / 1000.0
            ));
        }
    }
    let Some(index) = open.iter().position(beneficial) else {
        let hint = if by_itself {
            ""
        } else {
            "; name a host to move it anyway"
        };
        return none(match (c.breach, open.iter().any(|o| o.relieves)) {
            (Some(b), false) => format!("no host is less pressed for {}{hint}", b.resource),
            _ => format!(
                "the best target, {}, does not gain {:.2} (decision.min_gain){hint}",
                place(open.iter().find(|o| o.relieves).unwrap_or(first)),
                c.policy.min_gain
            ),
        });
    };
    let chosen = &open[index];
    if c.breach.is_some() {
        let off = if !c.policy.automatic {
            Some("automatic moves are off (decision.automatic)")
        } else if !c.source.feature.spec.automatic {
            Some("the feature's definition does not allow automatic moves")
        } else {
            None
        };
        if let Some(off) = off {
            return none(format!("it would go to {}, but {off}", place(chosen)));
        }
    }
    ("move", Some(index), with_notes(chosen))
}

/// Why there is no target, with the nearest reasons.
fn nobody(refused: &[Candidate], of_feature: &[Refusal]) -> String {
    if let Some(r) = of_feature.first() {
        return format!("it cannot move: {r}");
    }
    let (own, other) = (Refusal::OwnHost.to_string(), Refusal::NotAsked.to_string());
    let others: Vec<_> = refused
        .iter()
        .filter(|c| c.refusals.first().is_some_and(|r| *r != own && *r != other))
        .collect();
    if others.is_empty() {
        return if refused.iter().any(|c| c.refusals.first() == Some(&other)) {
            "it is on that host already".to_owned()
        } else {
            "no other host is known; add hosts to peer.hosts".to_owned()
        };
    }
    let mut text = String::from("no host can take it");
    for (n, c) in others.iter().take(3).enumerate() {
        let sep = if n == 0 { ": " } else { "; " };
        let _ = write!(text, "{sep}{}: {}", c.host, c.refusals.join(", "));
    }
    if others.len() > 3 {
        let _ = write!(text, "; and {} more", others.len() - 3);
    }
    text
}
