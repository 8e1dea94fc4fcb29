//! The target's own look at an offer: whether there is CPU for it, with everything that is on its
//! way here already. The source decided on what it last heard.

use crate::host::{HostState, InstanceState};

use super::simulate::{GUEST_CPU_TOLERANCE, host_room};

/// Rounding must not refuse what just fits.
const EPSILON: f64 = 1e-9;

/// Why `cpus` more do not fit into `instance` of `host`, of which the moves on their way to this
/// guest have reserved `reserved` (those of the whole host are in its state). `reserve` is the
/// fraction of the host that is kept free.
pub fn no_cpu(
    host: &HostState,
    instance: &InstanceState,
    reserved: f64,
    cpus: f64,
    reserve: f64,
) -> Option<String> {
    let on_host = host_room(host, reserve).cpus;
    if cpus > on_host + EPSILON {
        return Some(format!(
            "host '{}' has {:.2} CPUs free with the moves that are on their way; {cpus:.2} are needed",
            host.name,
            on_host.max(0.0)
        ));
    }
    let in_guest = instance.vcpus * (1.0 + GUEST_CPU_TOLERANCE) - instance.cpus_used - reserved;
    (cpus > in_guest + EPSILON).then(|| {
        format!(
            "domain '{}' has {:.2} CPUs free with the moves that are on their way; {cpus:.2} are \
             needed",
            instance.domain,
            in_guest.max(0.0)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_offers_are_judged_together() {
        let mut host = HostState::new("b");
        host.capabilities.cpus = 4.0;
        let mut guest = InstanceState::new("g");
        guest.vcpus = 1.0;
        assert_eq!(no_cpu(&host, &guest, 0.0, 0.8, 0.1), None);
        let full = no_cpu(&host, &guest, 0.8, 0.8, 0.1).unwrap();
        assert!(full.contains("domain 'g' has 0.30 CPUs free"), "{full}");
        // Other guests' reservations count on the host.
        host.reserved_cpus = 3.5;
        let full = no_cpu(&host, &guest, 0.0, 0.8, 0.1).unwrap();
        assert!(full.contains("host 'b' has 0.10 CPUs free"), "{full}");
    }
}
