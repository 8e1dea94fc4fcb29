//! `drover check`: which guests could take a feature as far as the hosts' states tell, each with
//! all reasons against it. What only the guests themselves know is added by the daemon.

use serde::{Deserialize, Serialize};

use crate::affinity::Demand;
use crate::api::Destination;
use crate::feature::FeatureName;
use crate::reason::Reason;

use super::cost::Cost;
use super::eligible::{self, Source};
use super::plan::sorted;
use super::refusal::Refusal;
use super::{Policy, View};

/// Whether a feature could move, and where to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Host it is on.
    pub host: String,
    /// Domain.
    pub domain: String,
    /// Feature.
    pub feature: FeatureName,
    /// What rules every target out.
    pub reasons: Vec<Reason>,
    /// One per guest that was looked at, by host and guest.
    pub targets: Vec<CheckedTarget>,
    /// What a move is expected to take; `None` when its memory is not known.
    pub cost: Option<Cost>,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Bytes of its state directories.
    pub state_bytes: u64,
    /// Milliseconds that the check took.
    pub took_ms: u64,
}

impl Check {
    /// Whether it could move somewhere.
    pub fn movable(&self) -> bool {
        self.reasons.is_empty() && self.targets.iter().any(|t| t.reasons.is_empty())
    }
}

/// A guest that a feature could move to, or why not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckedTarget {
    /// Host.
    pub host: String,
    /// Guest; empty when the host has none.
    pub domain: String,
    /// Why not; empty when it could.
    pub reasons: Vec<Reason>,
}

/// What the hosts' states tell: what rules every target out, and the guests of the other hosts, or
/// of the one that was asked for. `None` when there is no such feature here. Lack of CPU does not
/// count at a host that was asked for by name.
pub fn check(
    view: &View,
    policy: &Policy,
    (domain, feature): (&str, &FeatureName),
    need: &Demand,
    to: &Destination,
) -> Option<(Vec<Reason>, Vec<CheckedTarget>)> {
    let hosts = sorted(view);
    let host = hosts.iter().find(|h| h.name == view.me)?;
    let instance = host.instances.iter().find(|i| i.domain == domain)?;
    let found = instance.features.iter().find(|f| f.spec.name == *feature)?;
    let source = Source {
        host,
        instance,
        feature: found,
    };
    let own = eligible::of_feature(&source, |m| eligible::address(&source, m, &hosts));
    let asked = |name: &str| to.host.as_ref().is_none_or(|h| h == name);
    let mut targets = Vec::new();
    let mut add = |host: &str, domain: &str, why: &[Refusal]| {
        targets.push(CheckedTarget {
            host: host.to_owned(),
            domain: domain.to_owned(),
            reasons: why.iter().map(Refusal::reason).collect(),
        });
    };
    for h in hosts.iter().filter(|h| asked(&h.name)) {
        if h.name == view.me {
            if to.host.is_some() {
                add(&h.name, "", &[Refusal::OwnHost]);
            }
            continue;
        }
        let common = eligible::of_host(view, &source, h, None, policy);
        if h.instances.is_empty() {
            add(&h.name, "", &common);
        }
        let mut any = h.instances.is_empty();
        for i in &h.instances {
            if to.domain.as_ref().is_some_and(|d| *d != i.domain) {
                continue;
            }
            any = true;
            let mut why = common.clone();
            why.extend(eligible::of_guest(&source, i, None));
            let c = eligible::capacity(h, i, need, policy);
            if to.host.is_none() {
                why.extend(c.cpu);
            }
            why.extend(c.memory);
            add(&h.name, &i.domain, &why);
        }
        if let Some(d) = to.domain.as_ref().filter(|_| !any) {
            add(&h.name, d, &[Refusal::GuestNotRunning(d.clone())]);
        }
    }
    let heard = |name: &String| hosts.iter().any(|h| h.name == *name);
    for name in view.groups.keys().filter(|n| asked(n) && !heard(n)) {
        add(name, "", &[Refusal::Unreachable]);
    }
    if let Some(name) = &to.host
        && !heard(name)
        && !view.groups.contains_key(name)
    {
        add(name, "", &[Refusal::UnknownHost]);
    }
    targets.sort_by(|a, b| (&a.host, &a.domain).cmp(&(&b.host, &b.domain)));
    Some((own.iter().map(Refusal::reason).collect(), targets))
}
