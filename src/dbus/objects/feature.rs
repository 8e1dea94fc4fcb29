//! `org.drover1.Feature`.

use zbus::{ObjectPath, OwnedObjectPath, Variant};

use super::{Shown, Slot, UNKNOWN, instance_path, json, read};
use crate::api::FeatureRow;
use crate::feature::Workload;
use crate::threshold;
use crate::usage::Usage;

/// The interface's name.
pub const FEATURE: &str = "org.drover1.Feature";

/// A feature's object.
pub(super) struct Feature(Slot<FeatureRow>);

fn kind(r: &FeatureRow) -> &'static str {
    match r.spec.workload {
        Workload::Unit { .. } => "unit",
        Workload::Container { .. } => "container",
        Workload::Cgroup { .. } => "cgroup",
        Workload::Managed(_) => "managed",
    }
}

/// The feature's own addresses, empty for what Drover does not run.
fn address(r: &FeatureRow) -> String {
    r.spec
        .managed()
        .map(crate::feature::Managed::addresses_text)
        .unwrap_or_default()
}

fn breach(r: &FeatureRow) -> String {
    r.breach.clone().unwrap_or_default()
}

fn thresholds(r: &FeatureRow) -> Vec<String> {
    r.spec.thresholds.iter().map(threshold::format).collect()
}

impl Shown for FeatureRow {
    type Object = Feature;

    fn object(slot: Slot<Self>) -> Feature {
        Feature(slot)
    }

    fn announced(&self) -> Vec<(&'static str, Variant<'static>)> {
        vec![
            ("Address", address(self).into()),
            ("Automatic", self.spec.automatic.into()),
            ("Breach", breach(self).into()),
            ("DowntimeMs", self.spec.downtime_ms.into()),
            ("Group", self.spec.group.clone().into()),
            ("Kind", kind(self).into()),
            ("Status", self.status.word().into()),
            ("Thresholds", thresholds(self).into()),
        ]
    }
}

impl Feature {
    fn used(&self, get: fn(&Usage) -> Option<f64>) -> f64 {
        read(&self.0)
            .usage
            .as_ref()
            .and_then(get)
            .unwrap_or(UNKNOWN)
    }
}

#[zbus::interface(name = "org.drover1.Feature", introspection_docs = false)]
impl Feature {
    #[zbus(property)]
    fn address(&self) -> String {
        address(&read(&self.0))
    }

    #[zbus(property)]
    fn automatic(&self) -> bool {
        read(&self.0).spec.automatic
    }

    #[zbus(property)]
    fn breach(&self) -> String {
        breach(&read(&self.0))
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn cpu_percent(&self) -> f64 {
        self.used(|u| u.cpu_percent)
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn disk_read_bps(&self) -> f64 {
        self.used(|u| u.disk_read_bps)
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn disk_write_bps(&self) -> f64 {
        self.used(|u| u.disk_write_bps)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn domain(&self) -> String {
        read(&self.0).domain
    }

    #[zbus(property)]
    fn downtime_ms(&self) -> u64 {
        read(&self.0).spec.downtime_ms
    }

    #[zbus(property)]
    fn group(&self) -> String {
        read(&self.0).spec.group
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn host(&self) -> String {
        read(&self.0).host
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn instance(&self) -> OwnedObjectPath {
        let root = || ObjectPath::from_static_str_unchecked("/");
        instance_path(&read(&self.0).domain)
            .unwrap_or_else(|_| root())
            .into()
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn json(&self) -> String {
        json(&read(&self.0))
    }

    #[zbus(property)]
    fn kind(&self) -> &'static str {
        kind(&read(&self.0))
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn measured_ms(&self) -> i64 {
        read(&self.0).usage.map_or(0, |u| u.at_ms)
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn memory_mib(&self) -> f64 {
        self.used(|u| u.memory_mib)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> String {
        read(&self.0).spec.name.to_string()
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn net_rx_bps(&self) -> f64 {
        self.used(|u| u.net_rx_bps)
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn net_tx_bps(&self) -> f64 {
        self.used(|u| u.net_tx_bps)
    }

    #[zbus(property)]
    fn status(&self) -> &'static str {
        read(&self.0).status.word()
    }

    #[zbus(property)]
    fn thresholds(&self) -> Vec<String> {
        thresholds(&read(&self.0))
    }
}
