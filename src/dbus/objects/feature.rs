//! `org.drover1.Feature`.

use std::sync::Arc;

use zbus::fdo;
use zbus::{ObjectPath, OwnedObjectPath};

use super::{Announced, UNKNOWN, instance_path, json};
use crate::api::{Api, FeatureRow};
use crate::feature::{FeatureName, Workload};
use crate::threshold;
use crate::usage::Usage;

/// The interface's name.
pub const FEATURE: &str = "org.drover1.Feature";

/// A feature's object.
pub(super) struct Feature {
    api: Arc<dyn Api>,
    domain: String,
    name: FeatureName,
}

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

/// The properties that announce their changes.
pub(super) fn announced(r: &FeatureRow) -> Announced {
    vec![
        ("Address", address(r).into()),
        ("Automatic", r.spec.automatic.into()),
        ("Breach", breach(r).into()),
        ("DowntimeMs", r.spec.downtime_ms.into()),
        ("Group", r.spec.group.clone().into()),
        ("Kind", kind(r).into()),
        ("Status", r.status.word().into()),
        ("Thresholds", thresholds(r).into()),
    ]
}

impl Feature {
    pub(super) fn new(api: Arc<dyn Api>, domain: String, name: FeatureName) -> Self {
        Self { api, domain, name }
    }

    /// The feature as it is now.
    async fn row(&self) -> fdo::Result<FeatureRow> {
        let row = self.api.feature(&self.domain, &self.name).await;
        row.ok_or_else(|| {
            fdo::Error::UnknownObject(format!(
                "domain '{}' has no feature '{}' any more",
                self.domain, self.name
            ))
        })
    }

    async fn used(&self, get: fn(&Usage) -> Option<f64>) -> fdo::Result<f64> {
        let usage = self.row().await?.usage;
        Ok(usage.as_ref().and_then(get).unwrap_or(UNKNOWN))
    }
}

#[zbus::interface(name = "org.drover1.Feature", introspection_docs = false)]
impl Feature {
    #[zbus(property)]
    async fn address(&self) -> fdo::Result<String> {
        Ok(address(&self.row().await?))
    }

    #[zbus(property)]
    async fn automatic(&self) -> fdo::Result<bool> {
        Ok(self.row().await?.spec.automatic)
    }

    #[zbus(property)]
    async fn breach(&self) -> fdo::Result<String> {
        Ok(breach(&self.row().await?))
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn cpu_percent(&self) -> fdo::Result<f64> {
        self.used(|u| u.cpu_percent).await
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn disk_read_bps(&self) -> fdo::Result<f64> {
        self.used(|u| u.disk_read_bps).await
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn disk_write_bps(&self) -> fdo::Result<f64> {
        self.used(|u| u.disk_write_bps).await
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn domain(&self) -> String {
        self.domain.clone()
    }

    #[zbus(property)]
    async fn downtime_ms(&self) -> fdo::Result<u64> {
        Ok(self.row().await?.spec.downtime_ms)
    }

    #[zbus(property)]
    async fn group(&self) -> fdo::Result<String> {
        Ok(self.row().await?.spec.group)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn host(&self) -> fdo::Result<String> {
        Ok(self.row().await?.host)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn instance(&self) -> OwnedObjectPath {
        let root = || ObjectPath::from_static_str_unchecked("/");
        instance_path(&self.domain)
            .unwrap_or_else(|_| root())
            .into()
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn json(&self) -> fdo::Result<String> {
        let mut row = self.row().await?;
        // An object answers all callers alike, so it has no secrets.
        row.spec = row.spec.redacted();
        Ok(json(&row))
    }

    #[zbus(property)]
    async fn kind(&self) -> fdo::Result<&'static str> {
        Ok(kind(&self.row().await?))
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn measured_ms(&self) -> fdo::Result<i64> {
        Ok(self.row().await?.usage.map_or(0, |u| u.at_ms))
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn memory_mib(&self) -> fdo::Result<f64> {
        self.used(|u| u.memory_mib).await
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> String {
        self.name.to_string()
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn net_rx_bps(&self) -> fdo::Result<f64> {
        self.used(|u| u.net_rx_bps).await
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn net_tx_bps(&self) -> fdo::Result<f64> {
        self.used(|u| u.net_tx_bps).await
    }

    #[zbus(property)]
    async fn status(&self) -> fdo::Result<&'static str> {
        Ok(self.row().await?.status.word())
    }

    #[zbus(property)]
    async fn thresholds(&self) -> fdo::Result<Vec<String>> {
        Ok(thresholds(&self.row().await?))
    }
}
