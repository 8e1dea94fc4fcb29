//! The cluster after the move: room, pressure and balance.

use crate::affinity::{After, Demand};
use crate::feature::{FeatureName, Resource};
use crate::host::{HostState, InstanceState};

/// What a guest's CPUs may be overdrawn by, as a fraction. Use is measured, so a feature pressed
/// against its guest's only CPU shows all of it; an idle guest of the same size, which uses a
/// little for itself, must still be able to take it.
pub const GUEST_CPU_TOLERANCE: f64 = 0.1;

/// Smallest difference in pressure that counts as relief.
const RELIEF: f64 = 0.01;

/// What is free for a move: CPUs and MiB; negative when overcommitted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Room {
    pub cpus: f64,
    pub memory_mib: Option<f64>,
}

/// Free on the host beside the reserve (fraction of capacity) and moves under way.
pub(super) fn host_room(h: &HostState, reserve: f64) -> Room {
    let keep = 1.0 - reserve;
    Room {
        cpus: h.capabilities.cpus * keep - h.load.cpus_used - h.reserved_cpus,
        memory_mib: Some(
            h.capabilities.memory_mib * keep - h.load.memory_used_mib - h.reserved_memory_mib,
        ),
    }
}

/// Free in the guest.
pub(super) fn guest_room(i: &InstanceState, reserve: f64) -> Room {
    Room {
        cpus: i.vcpus * (1.0 + GUEST_CPU_TOLERANCE) - i.cpus_used - i.reserved_cpus,
        memory_mib: i
            .memory_available_mib
            .map(|m| m * (1.0 - reserve) - i.reserved_memory_mib),
    }
}

/// How full a guest is with the feature, by its scarcest resource.
pub(super) fn guest_pressure(i: &InstanceState, need: &Demand) -> f64 {
    let cpu = (i.cpus_used + i.reserved_cpus + need.cpus) / i.vcpus;
    let memory = i.memory_available_mib.map_or(0.0, |m| {
        1.0 - (m - i.reserved_memory_mib - need.memory_mib) / i.memory_mib
    });
    cpu.max(memory)
}

/// How crowded a resource is for a feature, as a fraction of capacity.
fn pressure(resource: Resource, after: &After) -> f64 {
    match resource {
        Resource::Cpu => f64::midpoint(after.host_cpu, after.guest_cpu),
        Resource::Memory => f64::midpoint(
            after.host_memory,
            after.guest_memory.unwrap_or(after.host_memory),
        ),
        Resource::NetRx | Resource::NetTx => after.host_net,
        Resource::DiskRead | Resource::DiskWrite => after.host_disk,
    }
}

/// Whether a breach of `resource` is better borne in `there` than in `here`. Never true both
/// ways round.
pub(super) fn relieves(resource: Resource, here: &After, there: &After) -> bool {
    pressure(resource, there) < pressure(resource, here) - RELIEF
}

/// State after a move to (or stay in) a guest.
pub(super) fn after(
    h: &HostState,
    i: &InstanceState,
    feature: &FeatureName,
    demand: &Demand,
) -> After {
    After::of(h, i, feature, demand)
}

/// CPU fractions of all hosts without the feature, ready for a quick answer to: how even is the
/// load with the feature on this one?
pub(super) struct Balance {
    n: f64,
    sum: f64,
    squares: f64,
}

fn cpu_fraction(used: f64, capacity: f64) -> f64 {
    let f = used / capacity;
    if f.is_finite() {
        f.clamp(0.0, 2.0)
    } else {
        2.0
    }
}

/// A host's CPU use without the feature.
fn without(h: &HostState, me: &str, demand: &Demand) -> f64 {
    let used = h.load.cpus_used + h.reserved_cpus;
    if h.name == me {
        (used - demand.cpus).max(0.0)
    } else {
        used
    }
}

impl Balance {
    /// `hosts` in a fixed order, so that rounding does not depend on the view's.
    pub(super) fn of<'a>(
        hosts: impl Iterator<Item = &'a HostState>,
        me: &str,
        demand: &Demand,
    ) -> Self {
        Self::of_fractions(hosts.map(|h| (without(h, me, demand), h.capabilities.cpus)))
    }

    /// The same from use and capacity per host.
    pub(super) fn of_fractions(hosts: impl Iterator<Item = (f64, f64)>) -> Self {
        let mut b = Self {
            n: 0.0,
            sum: 0.0,
            squares: 0.0,
        };
        for (used, capacity) in hosts {
            let f = cpu_fraction(used, capacity);
            b.n += 1.0;
            b.sum += f;
            b.squares += f * f;
        }
        b
    }

    /// 1 when all hosts are equally busy with the feature on `h`, 0 when half are full and half
    /// are idle.
    pub(super) fn with(&self, h: &HostState, me: &str, demand: &Demand) -> f64 {
        self.with_use(without(h, me, demand), h.capabilities.cpus, demand.cpus)
    }

    /// The same for a host that uses `base` CPUs without the feature.
    pub(super) fn with_use(&self, base: f64, capacity: f64, cpus: f64) -> f64 {
        let (old, new) = (
            cpu_fraction(base, capacity),
            cpu_fraction(base + cpus, capacity),
        );
        let mean = (self.sum - old + new) / self.n;
        let variance = (self.squares - old * old + new * new) / self.n - mean * mean;
        let spread = variance.max(0.0).sqrt();
        (1.0 - 2.0 * spread).clamp(0.0, 1.0)
    }
}
