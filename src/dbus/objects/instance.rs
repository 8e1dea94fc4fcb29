//! `org.drover1.Instance`.

use zbus::Variant;

use super::{Shown, Slot, UNKNOWN, json, read};
use crate::host::{HelperState, InstanceState};

/// The interface's name.
pub const INSTANCE: &str = "org.drover1.Instance";

/// An instance's object: host and state.
pub(super) struct Instance(Slot<(String, InstanceState)>);

/// The helper's version, empty when it does not answer.
fn version(i: &InstanceState) -> String {
    match &i.helper {
        HelperState::Connected { version } => version.clone(),
        HelperState::Absent { .. } => String::new(),
    }
}

/// Why the helper does not answer, empty when it does.
fn problem(i: &InstanceState) -> String {
    match &i.helper {
        HelperState::Connected { .. } => String::new(),
        HelperState::Absent { reason } => reason.clone(),
    }
}

/// criu's version in the guest; empty when absent or not known.
fn criu(i: &InstanceState) -> String {
    i.capabilities
        .as_ref()
        .map(|c| c.criu.clone())
        .unwrap_or_default()
}

impl Shown for (String, InstanceState) {
    type Object = Instance;

    fn object(slot: Slot<Self>) -> Instance {
        Instance(slot)
    }

    fn announced(&self) -> Vec<(&'static str, Variant<'static>)> {
        let i = &self.1;
        vec![
            ("Criu", criu(i).into()),
            ("HelperProblem", problem(i).into()),
            ("HelperVersion", version(i).into()),
            ("MemoryMib", i.memory_mib.into()),
            ("Running", i.running.into()),
            ("Uuid", i.uuid.clone().into()),
            ("Vcpus", i.vcpus.into()),
        ]
    }
}

#[zbus::interface(name = "org.drover1.Instance", introspection_docs = false)]
impl Instance {
    #[zbus(property(emits_changed_signal = "false"))]
    fn cpus_used(&self) -> f64 {
        read(&self.0).1.cpus_used
    }

    #[zbus(property)]
    fn criu(&self) -> String {
        criu(&read(&self.0).1)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn domain(&self) -> String {
        read(&self.0).1.domain
    }

    #[zbus(property)]
    fn helper_problem(&self) -> String {
        problem(&read(&self.0).1)
    }

    #[zbus(property)]
    fn helper_version(&self) -> String {
        version(&read(&self.0).1)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn host(&self) -> String {
        read(&self.0).0
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn json(&self) -> String {
        json(&read(&self.0).1)
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn memory_available_mib(&self) -> f64 {
        read(&self.0).1.memory_available_mib.unwrap_or(UNKNOWN)
    }

    #[zbus(property)]
    fn memory_mib(&self) -> f64 {
        read(&self.0).1.memory_mib
    }

    #[zbus(property)]
    fn running(&self) -> bool {
        read(&self.0).1.running
    }

    #[zbus(property)]
    fn uuid(&self) -> String {
        read(&self.0).1.uuid
    }

    #[zbus(property)]
    fn vcpus(&self) -> f64 {
        read(&self.0).1.vcpus
    }
}
