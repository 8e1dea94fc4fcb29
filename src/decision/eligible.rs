//! What rules a target out.

use crate::affinity::Demand;
use crate::api::Destination;
use crate::feature::Managed;
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

/// What rules every target out.
pub(super) fn of_feature(s: &Source<'_>, hosts: &[&HostState]) -> Vec<Refusal> {
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
        Some(m) => out.extend(address(s, m, hosts)),
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
fn address(s: &Source<'_>, m: &Managed, hosts: &[&HostState]) -> Option<Refusal> {
    for h in hosts {
        for i in &h.instances {
            for f in &i.features {
                let same = h.name == s.host.name
                    && i.domain == s.instance.domain
                    && f.spec.name == s.feature.spec.name;
                let taken = f.status != FeatureStatus::Disabled
                    && f.spec
                        .managed()
                        .is_some_and(|o| o.address.address == m.address.address);
                if taken && !same {
                    return Some(Refusal::AddressInUse {
                        address: m.address,
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

/// What rules a host out whatever its guests.
pub(super) fn of_host(
    view: &View,
    s: &Source<'_>,
    h: &HostState,
    asked: Option<&Destination>,
) -> Vec<Refusal> {
    if h.name == view.me {
        return vec![Refusal::OwnHost];
    }
    let mut out = Vec::new();
    if asked.is_some_and(|d| d.host.as_ref().is_some_and(|n| *n != h.name)) {
        out.push(Refusal::NotAsked);
    }
    let age = view.now_ms.saturating_sub(h.at_ms);
    if age > view.stale_after_ms {
        out.push(Refusal::Stale {
            age_s: age as f64 / 1000.0,
        });
    }
    if !h.accepts {
        out.push(Refusal::Draining);
    }
    let group = &s.feature.spec.group;
    if !view.groups.get(&h.name).is_some_and(|g| g.contains(group)) {
        out.push(Refusal::Group(group.clone()));
    }
    if h.instances.is_empty() {
        out.push(Refusal::NoGuest);
    }
    out
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
