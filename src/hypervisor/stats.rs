//! The bulk statistics of all domains: one call, without waiting for busy domains.

use std::ffi::CStr;

use virt::connect::Connect;
use virt::error::Error;

use super::events::identity;

/// Counters and gauges of one domain at one moment. `None` is *unavailable*, never zero.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DomainStats {
    /// Name.
    pub name: String,
    /// UUID in text form.
    pub uuid: String,
    /// libvirt's number of this run of the domain; `None` when it is shut off. Another number
    /// means other counters.
    pub id: Option<u32>,
    /// Whether its CPUs run.
    pub running: bool,
    /// CPU time of the whole domain, nanoseconds.
    pub cpu_time_ns: Option<u64>,
    /// User part of it, nanoseconds.
    pub cpu_user_ns: Option<u64>,
    /// System part of it, nanoseconds.
    pub cpu_system_ns: Option<u64>,
    /// CPU time of all vCPUs, nanoseconds.
    pub vcpu_time_ns: Option<u64>,
    /// Time the vCPUs were ready but waited for a host CPU (steal), all vCPUs, nanoseconds.
    pub delay_ns: Option<u64>,
    /// vCPUs online.
    pub vcpus: Option<u32>,
    /// Memory the guest has now, KiB.
    pub balloon_current_kib: Option<u64>,
    /// Memory of the host that the domain's process holds, KiB.
    pub rss_kib: Option<u64>,
    /// Memory the guest leaves entirely unused, KiB (needs the balloon driver's statistics).
    pub unused_kib: Option<u64>,
    /// Memory the guest sees, KiB (needs the balloon driver's statistics).
    pub available_kib: Option<u64>,
    /// Memory the guest could reclaim without swapping, KiB (`MemAvailable`).
    pub usable_kib: Option<u64>,
    /// Most memory that the balloon may give, KiB.
    pub balloon_maximum_kib: Option<u64>,
    /// Bytes received on all interfaces.
    pub net_rx_bytes: Option<u64>,
    /// Bytes sent on all interfaces.
    pub net_tx_bytes: Option<u64>,
    /// Bytes read from all disks.
    pub disk_read_bytes: Option<u64>,
    /// Bytes written to all disks.
    pub disk_write_bytes: Option<u64>,
    /// Reads of all disks.
    pub disk_reads: Option<u64>,
    /// Writes to all disks.
    pub disk_writes: Option<u64>,
}

impl DomainStats {
    /// Takes one typed parameter; those of vCPUs, interfaces and disks add up.
    fn take(&mut self, name: &str, value: u64) {
        let add = |sum: &mut Option<u64>| *sum = Some(sum.unwrap_or(0).saturating_add(value));
        match name {
            "state.state" => {
                self.running = value == u64::from(virt_sys::VIR_DOMAIN_RUNNING)
                    || value == u64::from(virt_sys::VIR_DOMAIN_BLOCKED);
            }
            "cpu.time" => self.cpu_time_ns = Some(value),
            "cpu.user" => self.cpu_user_ns = Some(value),
            "cpu.system" => self.cpu_system_ns = Some(value),
            "vcpu.current" => self.vcpus = Some(value as u32),
            "balloon.current" => self.balloon_current_kib = Some(value),
            "balloon.maximum" => self.balloon_maximum_kib = Some(value),
            "balloon.rss" => self.rss_kib = Some(value),
            "balloon.unused" => self.unused_kib = Some(value),
            "balloon.available" => self.available_kib = Some(value),
            "balloon.usable" => self.usable_kib = Some(value),
            _ => match indexed(name) {
                Some(("vcpu", "delay")) => add(&mut self.delay_ns),
                Some(("vcpu", "time")) => add(&mut self.vcpu_time_ns),
                Some(("net", "rx.bytes")) => add(&mut self.net_rx_bytes),
                Some(("net", "tx.bytes")) => add(&mut self.net_tx_bytes),
                Some(("block", "rd.bytes")) => add(&mut self.disk_read_bytes),
                Some(("block", "wr.bytes")) => add(&mut self.disk_write_bytes),
                Some(("block", "rd.reqs")) => add(&mut self.disk_reads),
                Some(("block", "wr.reqs")) => add(&mut self.disk_writes),
                _ => {}
            },
        }
    }

    /// Memory in use as the guest sees it, MiB: what it cannot give back, else what its process
    /// holds on the host, else all it has.
    pub fn memory_used_mib(&self) -> Option<f64> {
        let used = match (self.available_kib, self.usable_kib.or(self.unused_kib)) {
            (Some(all), Some(free)) => Some(all.saturating_sub(free)),
            _ => self.rss_kib.or(self.balloon_current_kib),
        };
        used.map(|kib| kib as f64 / 1024.0)
    }
}

/// Splits `net.0.rx.bytes` into `net` and `rx.bytes`; `None` when the second part is no number.
fn indexed(name: &str) -> Option<(&str, &str)> {
    let (group, rest) = name.split_once('.')?;
    let (index, field) = rest.split_once('.')?;
    index
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then_some((group, field))
}

/// Asks for `groups` (`VIR_DOMAIN_STATS_*`) of all domains.
pub(super) fn all(conn: &Connect, groups: u32) -> Result<Vec<DomainStats>, Error> {
    let mut list = List(std::ptr::null_mut());
    // SAFETY: the connection is open; libvirt sets `list` to an array that `List` frees.
    let count = unsafe {
        virt_sys::virConnectGetAllDomainStats(
            conn.as_ptr(),
            groups,
            &raw mut list.0,
            virt_sys::VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT,
        )
    };
    if count < 0 {
        return Err(Error::last_error());
    }
    let mut all = Vec::with_capacity(count as usize);
    for i in 0..count as usize {
        // SAFETY: libvirt returned `count` valid records, alive until `list` is dropped.
        let record = unsafe { &**list.0.add(i) };
        // SAFETY: a record's domain is valid as long as the record.
        let Some((name, uuid)) = (unsafe { identity(record.dom) }) else {
            continue;
        };
        // SAFETY: as above; a domain that does not run has the number -1.
        let id = unsafe { virt_sys::virDomainGetID(record.dom) };
        let mut stats = DomainStats {
            name,
            uuid,
            id: (id != u32::MAX).then_some(id),
            ..DomainStats::default()
        };
        for k in 0..record.nparams.max(0) as usize {
            // SAFETY: the record holds `nparams` parameters.
            let parameter = unsafe { &*record.params.add(k) };
            if let Some(value) = number(parameter) {
                // SAFETY: a parameter's name is a terminated string within its field.
                let name = unsafe { CStr::from_ptr(parameter.field.as_ptr()) };
                stats.take(&name.to_string_lossy(), value);
            }
        }
        all.push(stats);
    }
    Ok(all)
}

/// libvirt's list of records, freed with the records in it.
struct List(*mut virt_sys::virDomainStatsRecordPtr);

impl Drop for List {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the list came from virConnectGetAllDomainStats and is freed once.
            unsafe { virt_sys::virDomainStatsRecordListFree(self.0) };
        }
    }
}

/// A parameter's value, when it is an integer that is not negative.
fn number(p: &virt_sys::virTypedParameter) -> Option<u64> {
    // SAFETY: each arm reads the member of the union that the parameter's type names.
    unsafe {
        match p.type_ as u32 {
            virt_sys::VIR_TYPED_PARAM_INT => u64::try_from(p.value.i).ok(),
            virt_sys::VIR_TYPED_PARAM_UINT => Some(u64::from(p.value.ui)),
            virt_sys::VIR_TYPED_PARAM_LLONG => u64::try_from(p.value.l).ok(),
            virt_sys::VIR_TYPED_PARAM_ULLONG => Some(p.value.ul),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_several_devices_add_up() {
        let mut s = DomainStats::default();
        for (name, value) in [
            ("state.state", 1),
            ("net.count", 2),
            ("net.0.rx.bytes", 5),
            ("net.1.rx.bytes", 7),
            ("net.0.rx.pkts", 100),
            ("block.0.rd.bytes", 0),
            ("vcpu.current", 2),
            ("vcpu.0.delay", 10),
            ("vcpu.1.delay", 20),
            ("vcpu.0.state", 1),
        ] {
            s.take(name, value);
        }
        assert!(s.running);
        assert_eq!((s.net_rx_bytes, s.net_tx_bytes), (Some(12), None));
        assert_eq!((s.disk_read_bytes, s.disk_write_bytes), (Some(0), None));
        assert_eq!((s.delay_ns, s.vcpus), (Some(30), Some(2)));
    }

    #[test]
    fn used_memory_by_the_best_source() {
        let mut s = DomainStats {
            balloon_current_kib: Some(4096),
            ..DomainStats::default()
        };
        assert_eq!(s.memory_used_mib(), Some(4.0));
        s.rss_kib = Some(2048);
        assert_eq!(s.memory_used_mib(), Some(2.0));
        (s.available_kib, s.unused_kib) = (Some(4096), Some(1024));
        assert_eq!(s.memory_used_mib(), Some(3.0));
        s.usable_kib = Some(3072);
        assert_eq!(s.memory_used_mib(), Some(1.0));
    }
}
