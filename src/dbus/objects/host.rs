//! `org.drover1.Host`.

use zbus::Variant;

use super::{Shown, Slot, json, read};
use crate::host::{HostState, StorageKind};

/// The interface's name.
pub const HOST: &str = "org.drover1.Host";

/// A host's object.
pub(super) struct Host(Slot<HostState>);

fn storage(kind: StorageKind) -> &'static str {
    match kind {
        StorageKind::Unknown => "unknown",
        StorageKind::Hdd => "hdd",
        StorageKind::Ssd => "ssd",
        StorageKind::Nvme => "nvme",
    }
}

impl Shown for HostState {
    type Object = Host;

    fn object(slot: Slot<Self>) -> Host {
        Host(slot)
    }

    fn announced(&self) -> Vec<(&'static str, Variant<'static>)> {
        vec![
            ("Accepts", self.accepts.into()),
            ("Cpus", self.capabilities.cpus.into()),
            ("CpuModel", self.capabilities.cpu_model.clone().into()),
            ("MemoryMib", self.capabilities.memory_mib.into()),
            ("Storage", storage(self.capabilities.storage).into()),
            ("Version", self.version.clone().into()),
        ]
    }
}

#[zbus::interface(name = "org.drover1.Host", introspection_docs = false)]
impl Host {
    #[zbus(property)]
    fn accepts(&self) -> bool {
        read(&self.0).accepts
    }

    #[zbus(property)]
    fn cpu_model(&self) -> String {
        read(&self.0).capabilities.cpu_model
    }

    #[zbus(property)]
    fn cpus(&self) -> f64 {
        read(&self.0).capabilities.cpus
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn cpus_used(&self) -> f64 {
        read(&self.0).load.cpus_used
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn heard_ms(&self) -> i64 {
        read(&self.0).at_ms
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn json(&self) -> String {
        json(&read(&self.0))
    }

    #[zbus(property)]
    fn memory_mib(&self) -> f64 {
        read(&self.0).capabilities.memory_mib
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn memory_used_mib(&self) -> f64 {
        read(&self.0).load.memory_used_mib
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> String {
        read(&self.0).name
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn stall_percent(&self) -> f64 {
        read(&self.0).load.stall_percent
    }

    #[zbus(property)]
    fn storage(&self) -> &'static str {
        storage(read(&self.0).capabilities.storage)
    }

    #[zbus(property)]
    fn version(&self) -> String {
        read(&self.0).version
    }
}
