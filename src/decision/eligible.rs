//! What rules a target out.

use crate::affinity::Demand;
use crate::api::Destination;
use crate::feature::{FeatureName, Managed};
use crate::host::{
    FeatureState, FeatureStatus, GuestCapabilities, HelperState, HostState, InstanceState,
};

use super::refusal::Refusal;
use super::simulate::{guest_room, host_room};
use super::{Policy, View};

/// Rounding must not refuse what just fits.
const EPSILON: f64 = 1e-9;

/// The feature and where it is.
pub(super) struct Source<'a> {
    pub host: &'a HostState,
    pub instance: &'a InstanceState,
    pub feature: &'a FeatureState,
}

/// What rules every target out. `address` tells whether another feature has its address.
pub(super) fn of_feature(
    s: &Source<'_>,
    address: impl FnOnce(&Managed) -> Option<Refusal>,
) -> Vec<Refusal> {
    let mut out = Vec::new();
    match s.feature.status {
        FeatureStatus::Running => {}
        FeatureStatus::Moving | FeatureStatus::Arriving => out.push(Refusal::MovingAlready),
        FeatureStatus::Disabled | FeatureStatus::Stopped | FeatureStatus::Unknown => {
            out.push(Refusal::NotRunning);
        }
    }
    match s.feature.spec.managed() {
        None => out.push(Refusal::NotMovable),
        Some(m) => out.extend(address(m)),
    }
    match (&s.instance.helper, &s.instance.capabilities) {
        (HelperState::Absent { reason }, _) => out.push(Refusal::SourceHelper(reason.clone())),
        (_, None) => out.push(Refusal::SourceHelper(
            "it has not told the guest's capabilities yet".into(),
        )),
        (_, Some(c)) if c.criu.is_empty() => {
            out.push(Refusal::SourceCriu("it is not installed".into()));
        }
        (_, Some(c)) if !c.criu_problem.is_empty() => {
            out.push(Refusal::SourceCriu(c.criu_problem.clone()));
        }
        _ => {}
    }
    out
}

/// Another feature with the same address, anywhere: the hosts' guests share a network.
pub(super) fn address(s: &Source<'_>, m: &Managed, hosts: &[&HostState]) -> Option<Refusal> {
    for h in hosts {
        for i in &h.instances {
            for f in &i.features {
                let same = h.name == s.host.name
                    && i.domain == s.instance.domain
                    && f.spec.name == s.feature.spec.name;
                if same || f.status == FeatureStatus::Disabled {
                    continue;
                }
                let shared = f.spec.managed().and_then(|o| m.shared_address(o));
                if let Some(address) = shared {
                    return Some(Refusal::AddressInUse {
                        address,
                        by: f.spec.name.to_string(),
                        domain: i.domain.clone(),
                        host: h.name.clone(),
                    });
                }
            }
        }
    }
    None
}

fn enabled(h: &HostState) -> impl Iterator<Item = &FeatureState> {
    h.instances
        .iter()
        .flat_map(|i| &i.features)
        .filter(|f| f.status != FeatureStatus::Disabled)
}

/// Share of the features that it wants to be near that are on a host; `None` when it names none.
pub(super) fn near(s: &Source<'_>, h: &HostState) -> Option<f64> {
    let near = &s.feature.spec.rules().near;
    if near.is_empty() {
        return None;
    }
    let there = |n: &FeatureName| enabled(h).any(|f| f.spec.name == *n);
    Some(near.iter().filter(|n| there(n)).count() as f64 / near.len() as f64)
}

/// What the definition says against a host.
fn rules(s: &Source<'_>, h: &HostState, out: &mut Vec<Refusal>) {
    let (name, rules) = (&s.feature.spec.name, s.feature.spec.rules());
    if !rules.pin.is_empty() && !rules.pin.contains(&h.name) {
        out.push(Refusal::Pinned(rules.pin.join(", ")));
    }
    if rules.exclude.contains(&h.name) {
        out.push(Refusal::Excluded);
    }
    for (key, want) in &rules.labels {
        let have = h.labels.get(key);
        if have != Some(want) {
            out.push(Refusal::Label {
                key: key.clone(),
                want: want.clone(),
                have: have.cloned().unwrap_or_else(|| "none".into()),
            });
        }
    }
    let clash = enabled(h).find(|f| {
        let theirs = f.spec.placement.as_ref();
        let apart =
            rules.apart.contains(&f.spec.name) || theirs.is_some_and(|r| r.apart.contains(name));
        apart && f.spec.name != *name
    });
    out.extend(clash.map(|f| Refusal::Apart(f.spec.name.to_string())));
}

/// Whether features of a group may go from the source's host to a host: as configured here for
/// the other of the two.
fn group_allowed(view: &View, s: &Source<'_>, h: &HostState) -> bool {
    let other = if h.name == view.me {
        &s.host.name
    } else {
        &h.name
    };
    view.groups
        .get(other)
        .is_some_and(|g| g.contains(&s.feature.spec.group))
}

/// What rules a host out whatever its guests.
pub(super) fn of_host(
    view: &View,
    s: &Source<'_>,
    h: &HostState,
    asked: Option<&Destination>,
    policy: &Policy,
) -> Vec<Refusal> {
    if h.name == s.host.name {
        return vec![Refusal::OwnHost];
    }
    let mut out = Vec::new();
    if asked.is_some_and(|d| d.host.as_ref().is_some_and(|n| *n != h.name)) {
        out.push(Refusal::NotAsked);
    }
    let age = view.now_ms.saturating_sub(h.at_ms);
    if age > view.stale_after_ms && h.name != view.me {
        out.push(Refusal::Stale {
            age_s: age as f64 / 1000.0,
        });
    }
    if !h.accepts {
        out.push(Refusal::Draining);
    }
    if !group_allowed(view, s, h) {
        out.push(Refusal::Group(s.feature.spec.group.clone()));
    }
    rules(s, h, &mut out);
    if h.moves_in >= policy.max_moves_in {
        out.push(Refusal::MovesIn {
            moves: h.moves_in,
            most: policy.max_moves_in,
        });
    }
    if h.instances.is_empty() {
        out.push(Refusal::NoGuest);
    }
    out
}

/// Whether a host still has room for a move that another host decided: what that host saw may be
/// older than what was promised to others since. Lack of CPU does not count when a user named
/// this host.
pub fn admit(
    h: &HostState,
    domain: &str,
    need: &Demand,
    policy: &Policy,
    by_hand: bool,
) -> Result<(), Vec<Refusal>> {
    let mut out = Vec::new();
    if !h.accepts {
        out.push(Refusal::Draining);
    }
    if h.moves_in >= policy.max_moves_in {
        out.push(Refusal::MovesIn {
            moves: h.moves_in,
            most: policy.max_moves_in,
        });
    }
    match h.instances.iter().find(|i| i.domain == domain) {
        None => out.push(Refusal::NoGuest),
        Some(i) => {
            let c = capacity(h, i, need, policy);
            if !by_hand {
                out.extend(c.cpu);
            }
            out.extend(c.memory);
        }
    }
    if out.is_empty() { Ok(()) } else { Err(out) }
}

/// Capacity of a host and guest; CPU and memory apart, as a move by hand may overdraw CPU.
pub(super) struct Capacity {
    pub cpu: Vec<Refusal>,
    pub memory: Vec<Refusal>,
}

/// What rules a host and guest out for lack of room.
pub(super) fn capacity(
    h: &HostState,
    i: &InstanceState,
    need: &Demand,
    policy: &Policy,
) -> Capacity {
    let (host, guest) = (host_room(h, policy.reserve), guest_room(i, policy.reserve));
    let short = |need: f64, free: f64| need > free + EPSILON;
    let mut cpu = Vec::new();
    if short(need.cpus, host.cpus) {
        cpu.push(Refusal::HostCpu {
            need: need.cpus,
            free: host.cpus.max(0.0),
        });
    }
    if short(need.cpus, guest.cpus) {
        cpu.push(Refusal::GuestCpu {
            domain: i.domain.clone(),
            need: need.cpus,
            free: guest.cpus.max(0.0),
        });
    }
    let mut memory = Vec::new();
    if let Some(free) = host.memory_mib
        && short(need.memory_mib, free)
    {
        memory.push(Refusal::HostMemory {
            need: need.memory_mib,
            free: free.max(0.0),
        });
    }
    match guest.memory_mib {
        None => memory.push(Refusal::GuestMemoryUnknown(i.domain.clone())),
        Some(free) if short(need.memory_mib, free) => memory.push(Refusal::GuestMemory {
            domain: i.domain.clone(),
            need: need.memory_mib,
            free: free.max(0.0),
        }),
        Some(_) => {}
    }
    Capacity { cpu, memory }
}

/// What rules a guest out for what it is.
pub(super) fn of_guest(
    s: &Source<'_>,
    i: &InstanceState,
    asked: Option<&Destination>,
) -> Vec<Refusal> {
    let name = || i.domain.clone();
    let mut out = Vec::new();
    if asked.is_some_and(|d| d.domain.as_ref().is_some_and(|n| *n != i.domain)) {
        out.push(Refusal::NotAsked);
    }
    if i.features
        .iter()
        .any(|f| f.spec.name == s.feature.spec.name)
    {
        out.push(Refusal::NameTaken(name()));
    }
    if !i.running {
        out.push(Refusal::GuestNotRunning(name()));
        return out;
    }
    if let HelperState::Absent { reason } = &i.helper {
        out.push(Refusal::NoHelper {
            domain: name(),
            reason: reason.clone(),
        });
        return out;
    }
    match &i.capabilities {
        None => out.push(Refusal::NoCapabilities(name())),
        Some(c) => out.extend(compatible(s, &i.domain, c)),
    }
    out
}

fn compatible(s: &Source<'_>, domain: &str, c: &GuestCapabilities) -> Vec<Refusal> {
    let mut out = Vec::new();
    if c.criu.is_empty() {
        out.push(Refusal::NoCriu(domain.to_owned()));
    } else if !c.criu_problem.is_empty() {
        out.push(Refusal::CriuProblem {
            domain: domain.to_owned(),
            problem: c.criu_problem.clone(),
        });
    }
    // Without the source's capabilities every target is refused already.
    if let Some(own) = &s.instance.capabilities {
        if own.kernel != c.kernel {
            out.push(Refusal::OtherKernel {
                domain: domain.to_owned(),
                there: c.kernel.clone(),
                here: own.kernel.clone(),
            });
        }
        if own.cpu_flags != c.cpu_flags {
            out.push(Refusal::OtherCpuFlags(domain.to_owned()));
        }
    }
    out
}
