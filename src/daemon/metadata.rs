//! Features in their domain's XML metadata: `virsh dumpxml` shows them, and they go along when
//! libvirt migrates the whole domain.
//!
//! The registry wins, and the metadata is written after it. Only metadata with a higher serial
//! number wins: another host's droverd wrote it later, while the domain was there, or this host's
//! registry does not know the domain. So an old XML that comes back changes nothing, and a feature
//! that moved away is not brought back by it.
//!
//! Arguments and environment are not in the metadata: everyone who may look at domains sees it. A
//! managed feature that has some cannot be taken up from it; that is logged with the way out.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::api::ApiEvent;
use crate::feature::FeatureName;
use crate::hypervisor::metadata::{DomainFeatures, StoredFeature};
use crate::store::FeatureRecord;

use super::instance::Feature;
use super::{Daemon, lock};

/// Pause between looks for what is not in the metadata yet.
const LOOK: Duration = Duration::from_secs(5);

/// What was last written into a domain's metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Written {
    serial: u64,
    digest: u32,
    /// The features went along with the domain: what the XML says here is old until it runs here
    /// again.
    #[serde(default)]
    left: bool,
}

fn key(uuid: &str) -> String {
    format!("metadata/{uuid}")
}

fn digest(features: &DomainFeatures) -> u32 {
    if features.features.is_empty() {
        return 0;
    }
    // The serial number is not part of what it says.
    crc32fast::hash(
        DomainFeatures {
            serial: 0,
            ..features.clone()
        }
        .to_xml()
        .as_bytes(),
    )
    .max(1)
}

/// Keeps metadata and registry in line, for ever.
pub(super) async fn follow(daemon: Arc<Daemon>) {
    let mut events = daemon.events.subscribe();
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // Domains whose metadata was read since they appeared or were defined anew.
    let mut read: HashSet<String> = HashSet::new();
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Ok(ApiEvent::Instance { domain, what }) => match what.as_str() {
                    "migratedaway" => daemon.left_with_domain(&domain).await,
                    "defined" | "migratedhere" | "started" | "undefined" => {
                        read.remove(&domain);
                        continue;
                    }
                    _ => continue,
                },
                Ok(ApiEvent::Feature { .. }) => {}
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
                Ok(_) | Err(_) => continue,
            },
            _ = tick.tick() => {}
        }
        let domains: Vec<String> = lock(&daemon.instances).keys().cloned().collect();
        read.retain(|d| domains.contains(d));
        for domain in domains {
            let fresh = !read.contains(&domain);
            if daemon.sync_metadata(&domain, fresh).await {
                read.insert(domain);
            }
        }
    }
}

impl Daemon {
    async fn metadata_written(&self, uuid: &str) -> Option<Written> {
        let key = key(uuid);
        match self.store.run(move |s| s.get(&key)).await {
            Ok(Some(bytes)) => Some(serde_json::from_slice(&bytes).unwrap_or_default()),
            Ok(None) => Some(Written::default()),
            Err(e) => {
                tracing::error!(error = %e, "what is in a domain's metadata is not known");
                None
            }
        }
    }

    async fn remember_metadata(&self, uuid: &str, written: Written) -> bool {
        let key = key(uuid);
        let bytes = serde_json::to_vec(&written).unwrap_or_default();
        let done = self.store.run(move |s| s.put(&key, &bytes)).await;
        if let Err(e) = &done {
            tracing::error!(error = %e, "the serial number of a domain's metadata is not written");
        }
        done.is_ok()
    }

    /// What should be in a domain's metadata; with its UUID and whether it has a QEMU.
    fn metadata_wanted(&self, domain: &str) -> Option<(String, bool, DomainFeatures)> {
        let instances = lock(&self.instances);
        let i = instances.get(domain)?;
        let features = i.features.values().map(|f| StoredFeature {
            enabled: f.record.enabled,
            spec: f.record.spec.redacted(),
        });
        let features = DomainFeatures {
            serial: 0,
            features: features.collect(),
        };
        Some((i.info.uuid.clone(), i.info.active, features))
    }

    /// Brings one domain's metadata and registry in line; false to try again. `read` looks at the
    /// metadata as it is, otherwise it is what was written last.
    async fn sync_metadata(self: &Arc<Self>, domain: &str, read: bool) -> bool {
        // Nothing may change the registry in between.
        let _guard = self.changes.lock(domain).await;
        let Some((uuid, active, mut wanted)) = self.metadata_wanted(domain) else {
            return false;
        };
        let Some(mut written) = self.metadata_written(&uuid).await else {
            return false;
        };
        let left = std::mem::take(&mut written.left);
        if left && !active && wanted.features.is_empty() {
            return true;
        }
        let mut present = written.digest;
        if read {
            let Some(xml_counts) = self.xml_counts(&uuid, active) else {
                return false;
            };
            let xml_counts = xml_counts && (active || !left);
            match self.hypervisor.features(domain).await {
                Ok(Some(found)) if found.serial > written.serial && !xml_counts => {
                    // Peers told what it has; this is only how far the serial numbers are.
                    written.serial = found.serial;
                    present = digest(&found);
                }
                Ok(Some(found)) if found.serial > written.serial => {
                    self.take_up(domain, &uuid, &found).await;
                    written = Written {
                        serial: found.serial,
                        digest: digest(&found),
                        left: false,
                    };
                    present = written.digest;
                    match self.metadata_wanted(domain) {
                        Some((same, _, now)) if same == uuid => wanted = now,
                        _ => return false,
                    }
                }
                Ok(found) => present = found.as_ref().map_or(0, digest),
                Err(e) => {
                    tracing::debug!(%domain, error = %e, "metadata of the domain not read");
                    return false;
                }
            }
        }
        let now = digest(&wanted);
        if now == written.digest && now == present {
            return read_done(self, &uuid, written).await;
        }
        if !active && now == 0 {
            // Left with its domain; the serial number must not grow here.
            return true;
        }
        wanted.serial = written.serial + 1;
        // Before the metadata: it is then at worst older than what is remembered.
        let next = Written {
            serial: wanted.serial,
            digest: now,
            left: false,
        };
        if !self.remember_metadata(&uuid, next).await {
            return false;
        }
        let content = (now != 0).then_some(&wanted);
        match self.hypervisor.set_features(domain, content).await {
            Ok(()) => true,
            Err(e) => {
                tracing::warn!(%domain, error = %e, "features not written into the domain's XML");
                false
            }
        }
    }

    /// Takes up what another host's droverd wrote.
    async fn take_up(self: &Arc<Self>, domain: &str, uuid: &str, found: &DomainFeatures) {
        let named: HashSet<&FeatureName> = found.features.iter().map(|f| &f.spec.name).collect();
        let gone: Vec<FeatureName> = {
            let instances = lock(&self.instances);
            let features = instances.get(domain).map(|i| &i.features);
            features
                .into_iter()
                .flatten()
                .filter(|(name, f)| !named.contains(name) && f.moving.is_none())
                .map(|(name, _)| name.clone())
                .collect()
        };
        for feature in gone {
            tracing::info!(%domain, %feature, "no longer in the domain: it left while the domain was elsewhere");
            self.forget_feature(domain, uuid, &feature).await;
        }
        for f in &found.features {
            let name = &f.spec.name;
            if self.known_elsewhere(domain, uuid, name) {
                tracing::warn!(%domain, feature = %name, "in the domain's XML, and another domain \
                    has a feature of that name: not taken up; define it under another name");
                continue;
            }
            let known = lock(&self.instances)
                .get(domain)
                .is_some_and(|i| i.features.contains_key(name));
            if known {
                continue;
            }
            if let Err(e) = f.spec.validate() {
                tracing::warn!(%domain, feature = %name, error = %e, "in the domain's XML without \
                    its arguments and environment: define it here again to have it metered");
                continue;
            }
            let record = FeatureRecord {
                domain: domain.to_owned(),
                spec: f.spec.clone(),
                enabled: f.enabled,
                moved_at_ms: 0,
            };
            let (id, kept) = (uuid.to_owned(), record.clone());
            if let Err(e) = self.store.run(move |s| s.put_feature(&id, &kept)).await {
                tracing::error!(%domain, feature = %name, error = %e, "feature not taken up");
                continue;
            }
            if let Some(i) = lock(&self.instances).get_mut(domain) {
                i.features.insert(name.clone(), Feature::new(record));
            }
            tracing::info!(%domain, feature = %name, "taken up from the domain's XML");
            self.emit(ApiEvent::Feature {
                domain: domain.to_owned(),
                feature: name.clone(),
                what: "arrived".to_owned(),
            });
        }
        // A slow guest must not hold up what waits for the registry.
        let (this, owned) = (Arc::clone(self), domain.to_owned());
        tokio::spawn(async move {
            this.define(&owned).await;
            this.recheck(&owned).await;
        });
    }

    pub(super) fn known_elsewhere(&self, domain: &str, uuid: &str, name: &FeatureName) -> bool {
        let here = lock(&self.instances)
            .iter()
            .any(|(d, i)| d != domain && i.features.contains_key(name));
        let has = |i: &crate::host::InstanceState| {
            i.uuid != uuid && i.features.iter().any(|f| f.spec.name == *name)
        };
        here || lock(&self.peer_states)
            .values()
            .any(|p| p.instances.iter().any(has))
    }

    /// Takes a feature out of the registry; false when that cannot be written.
    pub(super) async fn forget_feature(
        &self,
        domain: &str,
        uuid: &str,
        feature: &FeatureName,
    ) -> bool {
        let (id, name) = (uuid.to_owned(), feature.clone());
        if let Err(e) = self.store.run(move |s| s.remove_feature(&id, &name)).await {
            tracing::error!(%domain, %feature, error = %e, "the registry cannot be written");
            return false;
        }
        if let Some(i) = lock(&self.instances)
            .get_mut(domain)
            .filter(|i| i.info.uuid == uuid)
        {
            i.features.remove(feature);
        }
        self.emit(ApiEvent::Feature {
            domain: domain.to_owned(),
            feature: feature.clone(),
            what: "left".to_owned(),
        });
        true
    }

    /// A feature left by a move that was committed before its domain came here with an older XML.
    pub(super) async fn left_before(&self, domain: &str, feature: &FeatureName) {
        let _guard = self.changes.lock(domain).await;
        let uuid = lock(&self.instances)
            .get(domain)
            .filter(|i| i.features.contains_key(feature))
            .map(|i| i.info.uuid.clone());
        if let Some(uuid) = uuid {
            self.forget_feature(domain, &uuid, feature).await;
        }
    }

    /// Whether a domain's features were kept here.
    pub(super) async fn knew_domain(&self, uuid: &str) -> bool {
        let key = key(uuid);
        matches!(self.store.run(move |s| s.get(&key)).await, Ok(Some(_)))
    }

    /// A domain's features were handed over to the host where it runs now: what its XML says here,
    /// if it is defined here still, is old.
    pub(super) async fn domain_left(&self, domain: &str, uuid: &str) {
        let _guard = self.changes.lock(domain).await;
        let Some(written) = self.metadata_written(uuid).await else {
            return;
        };
        let left = Written {
            serial: written.serial.saturating_sub(1),
            digest: 0,
            left: true,
        };
        self.remember_metadata(uuid, left).await;
        let listed = lock(&self.instances)
            .get(domain)
            .is_some_and(|i| i.info.uuid == uuid && !i.info.active);
        if listed && let Err(e) = self.hypervisor.set_features(domain, None).await {
            tracing::debug!(%domain, error = %e, "features not taken out of the XML here");
        }
    }

    /// A domain migrated away as a whole: its features went along in its XML, but for those that
    /// cannot be told there. Where there are peers, the host to which it went asks for them.
    async fn left_with_domain(&self, domain: &str) {
        if self.peers().is_some() {
            return;
        }
        let _guard = self.changes.lock(domain).await;
        let Some((uuid, _, wanted)) = self.metadata_wanted(domain) else {
            return;
        };
        let Some(written) = self.metadata_written(&uuid).await else {
            return;
        };
        if written.digest == 0 || written.digest != digest(&wanted) {
            return;
        }
        // When it comes back with this very metadata, that is news.
        let before = Written {
            serial: written.serial.saturating_sub(1),
            digest: 0,
            left: true,
        };
        if !self.remember_metadata(&uuid, before).await {
            return;
        }
        for f in wanted.features {
            if f.spec.validate().is_ok() {
                self.forget_feature(domain, &uuid, &f.spec.name).await;
            } else {
                tracing::warn!(%domain, feature = %f.spec.name, "its domain migrated away; its \
                    arguments and environment are known here only: define it there again, and \
                    undefine it here");
            }
        }
    }
}

/// The serial number that was found is remembered, if it was not.
async fn read_done(daemon: &Daemon, uuid: &str, written: Written) -> bool {
    match daemon.metadata_written(uuid).await {
        Some(known) if known == written => true,
        Some(_) => daemon.remember_metadata(uuid, written).await,
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature::FeatureSpec;

    fn told(spec: &FeatureSpec) -> bool {
        spec.redacted().validate().is_ok()
    }

    #[test]
    fn what_can_be_told() {
        let spec = |workload: &str| -> FeatureSpec {
            serde_json::from_str(&format!(r#"{{"name":"a","workload":{workload}}}"#)).unwrap()
        };
        assert!(told(&spec(r#"{"kind":"unit","unit":"x.service"}"#)));
        assert!(told(&spec(
            r#"{"kind":"managed","exec":["/bin/x"],"address":"10.0.0.1/8"}"#
        )));
        assert!(!told(&spec(
            r#"{"kind":"managed","exec":["/bin/x","-p"],"address":"10.0.0.1/8"}"#
        )));
    }

    #[test]
    fn a_digest_is_of_what_it_says() {
        let mut f = DomainFeatures::default();
        assert_eq!(digest(&f), 0);
        f.features.push(StoredFeature {
            enabled: true,
            spec: serde_json::from_str(r#"{"name":"a","workload":{"kind":"unit","unit":"x"}}"#)
                .unwrap(),
        });
        let one = digest(&f);
        f.serial = 7;
        assert_eq!(digest(&f), one);
        f.features[0].enabled = false;
        assert_ne!(digest(&f), one);
    }
}
