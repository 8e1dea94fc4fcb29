//! A plan for many features at once: one after another, by priority, each in the cluster as the
//! ones before it leave it, so that together they never overfill a target.
//!
//! Every choice is made as [`super::decide`] makes it, but among the hosts that look best by a
//! quick estimate: their room, and how much better or worse than its room the scorer found each
//! host for a feature of the same size.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::feature::FeatureName;
use crate::host::{FeatureStatus, HostState, MoveOutcome};

use super::choose::beneficial;
use super::eligible;
use super::plan::{Context, Open, find, sorted};
use super::refusal::Refusal;
use super::simulate::{Balance, guest_room, host_room};
use super::{Ask, Cause, Demand, Policy, Scorer, View};

/// Hosts looked at in full at a time.
const SHORTLIST: usize = 24;
/// Sizes of features for which the scorer is asked about every host.
const CLASSES: usize = 48;

/// A feature that may have to move.
pub struct Want<'a> {
    /// Host that it is on.
    pub host: &'a str,
    /// The question.
    pub ask: Ask<'a>,
    /// Scores hosts for it.
    pub scorer: &'a dyn Scorer,
}

/// What is planned for one feature.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Index of its [`Want`].
    pub want: usize,
    /// Host and guest; `None` when it stays.
    pub to: Option<(String, String)>,
    /// Score there.
    pub score: f64,
    /// Score of staying.
    pub stay: f64,
    /// Why it stays; empty when it moves.
    pub reason: String,
}

/// A host in the quick estimate.
struct Slot {
    usable: bool,
    /// Room beside the reserve.
    cpus: f64,
    memory: f64,
    /// Most room in a guest.
    guest_cpus: f64,
    guest_memory: f64,
    /// Capacity and use, reservations included.
    capacity: (f64, f64),
    used: (f64, f64),
}

fn slot(h: &HostState, view: &View, policy: &Policy) -> Slot {
    let room = host_room(h, policy.reserve);
    let (mut guest_cpus, mut guest_memory) = (f64::MIN, f64::MIN);
    for i in h.instances.iter().filter(|i| i.running) {
        let g = guest_room(i, policy.reserve);
        guest_cpus = guest_cpus.max(g.cpus);
        guest_memory = guest_memory.max(g.memory_mib.unwrap_or(f64::MIN));
    }
    let fresh = h.name == view.me || view.now_ms.saturating_sub(h.at_ms) <= view.stale_after_ms;
    Slot {
        usable: h.accepts && fresh && h.moves_in < policy.max_moves_in,
        cpus: room.cpus,
        memory: room.memory_mib.unwrap_or(f64::MAX),
        guest_cpus,
        guest_memory,
        capacity: (h.capabilities.cpus, h.capabilities.memory_mib),
        used: (
            h.load.cpus_used + h.reserved_cpus,
            h.load.memory_used_mib + h.reserved_memory_mib,
        ),
    }
}

impl Slot {
    fn fits(&self, d: &Demand) -> bool {
        const EPSILON: f64 = 1e-6;
        self.usable
            && d.cpus <= self.cpus + EPSILON
            && d.memory_mib <= self.memory + EPSILON
            && d.cpus <= self.guest_cpus + EPSILON
            && d.memory_mib <= self.guest_memory + EPSILON
    }

    /// About what the headroom score would be.
    fn headroom(&self, d: &Demand) -> f64 {
        let full = ((self.used.0 + d.cpus) / self.capacity.0)
            .max((self.used.1 + d.memory_mib) / self.capacity.1);
        let x = full / 0.9;
        1.0 / (1.0 + x * x * x * x)
    }
}

/// Features of about the same size.
fn class(d: &Demand) -> (u8, u8, u8, u8) {
    let log = |v: f64| (1.0 + v.max(0.0)).log2().min(60.0) as u8;
    (
        log(d.cpus * 4.0),
        log(d.memory_mib / 64.0) / 2,
        log(d.net_bps / 1e6) / 2,
        log(d.disk_bps / 1e6) / 2,
    )
}

/// The cluster as the plan goes on.
struct Work<'a> {
    view: &'a View,
    policy: &'a Policy,
    hosts: Vec<HostState>,
    slots: Vec<Slot>,
    addresses: HashMap<IpAddr, Vec<(FeatureName, String)>>,
    outcomes: HashMap<FeatureName, MoveOutcome>,
    /// Per size: by how much each host is better than its room.
    beyond: HashMap<(u8, u8, u8, u8), Vec<f64>>,
}

/// Plans. The answer is in the order in which it was decided: by priority, then by name.
pub fn plan_many(view: &View, policy: &Policy, wants: &[Want<'_>]) -> Vec<Step> {
    let hosts: Vec<HostState> = sorted(view).into_iter().cloned().collect();
    let mut addresses: HashMap<IpAddr, Vec<(FeatureName, String)>> = HashMap::new();
    let mut outcomes: HashMap<FeatureName, MoveOutcome> = HashMap::new();
    for h in &hosts {
        for f in h.instances.iter().flat_map(|i| &i.features) {
            if let Some(m) = f
                .spec
                .managed()
                .filter(|_| f.status != FeatureStatus::Disabled)
            {
                for a in m.all_addresses() {
                    let list = addresses.entry(a.address).or_default();
                    list.push((f.spec.name.clone(), h.name.clone()));
                }
            }
        }
        for o in &h.outcomes {
            let newer = outcomes
                .get(&o.feature)
                .is_none_or(|l| (l.at_ms, &l.from) <= (o.at_ms, &o.from));
            if newer {
                outcomes.insert(o.feature.clone(), o.clone());
            }
        }
    }
    let slots = hosts.iter().map(|h| slot(h, view, policy)).collect();
    let mut work = Work {
        view,
        policy,
        hosts,
        slots,
        addresses,
        outcomes,
        beyond: HashMap::new(),
    };
    let mut order: Vec<(i32, usize)> = wants
        .iter()
        .enumerate()
        .map(|(n, w)| (work.priority(w), n))
        .collect();
    order.sort_by(|a, b| {
        let key = |n: usize| (wants[n].host, wants[n].ask.domain, wants[n].ask.feature);
        b.0.cmp(&a.0).then_with(|| key(a.1).cmp(&key(b.1)))
    });
    order
        .into_iter()
        .map(|(_, n)| {
            let step = work.one(n, &wants[n]);
            if let Some((host, domain)) = &step.to {
                work.apply(&wants[n], host, domain);
            }
            step
        })
        .collect()
}

impl Work<'_> {
    fn at(&self, name: &str) -> Option<usize> {
        self.hosts
            .binary_search_by(|h| h.name.as_str().cmp(name))
            .ok()
    }

    fn priority(&self, w: &Want<'_>) -> i32 {
        let f = self
            .at(w.host)
            .and_then(|n| self.hosts[n].feature(w.ask.domain, w.ask.feature));
        f.map_or(0, |f| f.spec.rules().priority)
    }

    fn balance(&self, me: usize, d: &Demand) -> Balance {
        let fractions = self.slots.iter().enumerate().map(|(n, s)| {
            let used = if n == me {
                (s.used.0 - d.cpus).max(0.0)
            } else {
                s.used.0
            };
            (used, s.capacity.0)
        });
        Balance::of_fractions(fractions)
    }

    /// Hosts that could take it by room, the best by estimate first.
    fn ranked(&mut self, me: usize, w: &Want<'_>, balance: &Balance) -> Vec<u32> {
        let d = &w.ask.expected;
        let class = class(d);
        if !self.beyond.contains_key(&class) && self.beyond.len() < CLASSES {
            let beyond = self.beyond_room(d, w.scorer);
            self.beyond.insert(class, beyond);
        }
        let beyond = self.beyond.get(&class);
        let weights = self.policy.weights;
        let mut list: Vec<(f64, u32)> = Vec::with_capacity(self.slots.len());
        for (n, s) in self.slots.iter().enumerate() {
            if n == me || !s.fits(d) {
                continue;
            }
            let more = beyond.and_then(|b| b.get(n)).copied().unwrap_or(0.0);
            let affinity = (s.headroom(d) + more).clamp(0.0, 1.0);
            let even = balance.with_use(s.used.0, s.capacity.0, d.cpus);
            let estimate = weights.affinity * affinity + weights.balance * even;
            list.push((estimate, n as u32));
        }
        let best = |a: &(f64, u32), b: &(f64, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        // Nearly always the first few decide; the rest is put in order only when it is needed.
        if list.len() > SHORTLIST {
            list.select_nth_unstable_by(SHORTLIST, best);
            list[..SHORTLIST].sort_unstable_by(best);
        } else {
            list.sort_unstable_by(best);
        }
        list.into_iter().map(|(_, n)| n).collect()
    }

    fn beyond_room(&self, d: &Demand, scorer: &dyn Scorer) -> Vec<f64> {
        let mut targets = Vec::with_capacity(self.hosts.len());
        let mut at = Vec::with_capacity(self.hosts.len());
        for (n, h) in self.hosts.iter().enumerate() {
            let room = |i: &&crate::host::InstanceState| guest_room(i, 0.0).cpus;
            let guests = h.instances.iter().filter(|i| i.running);
            if let Some(i) = guests.max_by(|a, b| room(a).total_cmp(&room(b))) {
                targets.push((h, i));
                at.push(n);
            }
        }
        let mut beyond = vec![0.0; self.hosts.len()];
        for (n, v) in at.into_iter().zip(scorer.values(&targets)) {
            let v = if v.is_finite() {
                v.clamp(0.0, 1.0)
            } else {
                0.0
            };
            beyond[n] = v - self.slots[n].headroom(d);
        }
        beyond
    }

    fn one(&mut self, index: usize, w: &Want<'_>) -> Step {
        let mut step = Step {
            want: index,
            to: None,
            score: 0.0,
            stay: 0.0,
            reason: String::new(),
        };
        let Some(me) = self.at(w.host) else {
            step.reason = format!("host {} is not known", w.host);
            return step;
        };
        let balance = self.balance(me, &w.ask.expected);
        let ranked = self.ranked(me, w, &balance);
        let hosts: Vec<&HostState> = vec![&self.hosts[me]];
        let Some(source) = find(&hosts, w.host, &w.ask) else {
            step.reason = format!("no feature '{}' in guest {}", w.ask.feature, w.ask.domain);
            return step;
        };
        let name = &source.feature.spec.name;
        let of_feature = eligible::of_feature(&source, |m| {
            let (address, other) = m.all_addresses().find_map(|a| {
                let others = self.addresses.get(&a.address)?;
                Some((*a, others.iter().find(|(n, _)| n != name)?))
            })?;
            Some(Refusal::AddressInUse {
                address,
                by: other.0.to_string(),
                domain: String::from("of it"),
                host: other.1.clone(),
            })
        });
        let context = Context::with(
            self.view,
            self.policy,
            &w.ask,
            source,
            balance,
            self.outcomes.get(w.ask.feature),
            w.scorer,
        );
        step.stay = context.stay();
        if let Some(r) = of_feature.first() {
            step.reason = format!("it cannot move: {r}");
            return step;
        }
        if !context.runs() {
            step.reason = Refusal::NotRunning.to_string();
            return step;
        }
        let mut why = None;
        let mut open: Vec<Open<'_>> = Vec::new();
        for chunk in ranked.chunks(SHORTLIST) {
            let mut targets = Vec::new();
            for n in chunk {
                match context.targets(&self.hosts[*n as usize], &of_feature) {
                    Ok(t) => targets.extend(t),
                    Err((_, r)) if why.is_none() => {
                        why = r
                            .first()
                            .map(|r| (self.hosts[*n as usize].name.clone(), r.to_string()));
                    }
                    Err(_) => {}
                }
            }
            open = context.best_of_each(targets);
            if !open.is_empty() {
                break;
            }
        }
        if open.is_empty() {
            step.reason = match why {
                Some((host, r)) => format!("no host can take it; {host}: {r}"),
                None => "no host has room for it beside its reserve".to_owned(),
            };
            return step;
        }
        let chosen = if matches!(w.ask.cause, Cause::Drain) || context.named() {
            Some(0)
        } else if context.breach.is_some() && context.cooling(&w.ask).is_some() {
            step.reason
                .push_str("it has just moved (decision.cooldown_s)");
            return step;
        } else {
            beneficial(&context, &w.ask, step.stay, &open)
        };
        match chosen {
            Some(n) => {
                step.score = open[n].score;
                step.to = Some((open[n].host.name.clone(), open[n].instance.domain.clone()));
            }
            None => {
                step.reason = format!(
                    "no host is enough better; the best, {}, scores {:.2}, staying {:.2}",
                    open[0].host.name, open[0].score, step.stay
                );
            }
        }
        step
    }

    /// The cluster once the feature is there: promised, not yet measured.
    fn apply(&mut self, w: &Want<'_>, host: &str, domain: &str) {
        let d = &w.ask.expected;
        let (Some(from), Some(to)) = (self.at(w.host), self.at(host)) else {
            return;
        };
        let h = &mut self.hosts[from];
        h.load.cpus_used = (h.load.cpus_used - d.cpus).max(0.0);
        h.load.memory_used_mib = (h.load.memory_used_mib - d.memory_mib).max(0.0);
        h.load.net_bps = (h.load.net_bps - d.net_bps).max(0.0);
        h.load.disk_bps = (h.load.disk_bps - d.disk_bps).max(0.0);
        let mut moved = None;
        for i in h.instances.iter_mut().filter(|i| i.domain == w.ask.domain) {
            i.cpus_used = (i.cpus_used - d.cpus).max(0.0);
            i.memory_available_mib = i.memory_available_mib.map(|m| m + d.memory_mib);
            if let Some(n) = i
                .features
                .iter()
                .position(|f| f.spec.name == *w.ask.feature)
            {
                moved = Some(i.features.remove(n));
            }
        }
        let h = &mut self.hosts[to];
        h.reserved_cpus += d.cpus;
        h.reserved_memory_mib += d.memory_mib;
        for i in h.instances.iter_mut().filter(|i| i.domain == domain) {
            i.reserved_cpus += d.cpus;
            i.reserved_memory_mib += d.memory_mib;
            i.features.extend(moved.take().map(|mut f| {
                f.status = FeatureStatus::Arriving;
                f
            }));
        }
        for n in [from, to] {
            self.slots[n] = slot(&self.hosts[n], self.view, self.policy);
        }
    }
}
