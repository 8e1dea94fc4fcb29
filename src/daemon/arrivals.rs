//! Domains that libvirt migrates as a whole: their features go along.
//!
//! The host to which a domain came asks its peers what they have of it. Whoever knew the domain
//! answers with its features as they are registered there, arguments and environment included,
//! lets go of them once they are registered here durably, and sends their history. What the
//! domain's XML says is older than that (libvirt copies it when the migration begins), so it counts
//! only when no peer knew the domain.
//!
//! Until the answer is there, the guest's features are left as they are: nothing is started, and
//! nothing is forgotten.
//!
//! What becomes of moves that were under way in the guest: [`super::fates`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::api::ApiEvent;
use crate::feature::{FeatureName, FeatureSpec};
use crate::peer::{PeerError, PeerRefusal, RefusalKind};
use crate::store::FeatureRecord;
use crate::wire::guest::MoveId;
use crate::wire::peer::{DomainAnswer, DomainAsk, HandedFeature, Handover, MAX_DOMAINS};

use super::instance::Feature;
use super::{Daemon, lock};

/// Pause between looks for domains that came.
const LOOK: Duration = Duration::from_secs(1);
/// Longest wait for peers about a domain that was migrated here.
const MIGRATED: Duration = Duration::from_secs(30);
/// Longest wait for peers about one that appeared otherwise; its XML is not read before.
const APPEARED: Duration = Duration::from_secs(10);
/// How long the history of a feature that came along is taken.
const HISTORY: Duration = Duration::from_secs(3600);

/// What is known of domains that run here.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    /// UUIDs of domains that are being migrated here, until their features are known.
    held: HashSet<String>,
    /// By UUID.
    asked: HashMap<String, Asked>,
    /// Histories that are expected: from which peer, and when it handed the feature over.
    histories: HashMap<MoveId, (String, FeatureSpec, Instant)>,
}

/// Which peers have answered about a domain.
#[derive(Debug)]
struct Asked {
    since: Instant,
    answered: HashSet<String>,
    /// All have, or the time is over.
    through: bool,
    /// One of them had it before.
    known: bool,
    /// It was logged that a feature waits for another of its name to go.
    waits: bool,
}

impl Arrivals {
    /// A domain is being migrated here.
    pub fn coming(&mut self, uuid: &str) {
        self.held.insert(uuid.to_owned());
        self.asked.remove(uuid);
    }

    /// A domain ended or left.
    pub fn gone(&mut self, uuid: &str) {
        self.held.remove(uuid);
        self.asked.remove(uuid);
    }

    /// Whether a domain's features are to be left as they are for now.
    pub fn holds(&self, uuid: &str) -> bool {
        self.held.contains(uuid)
    }

    /// Whether a running domain's XML may say which features it has; `None`: not known yet.
    fn xml_counts(&self, uuid: &str) -> Option<bool> {
        let asked = self.asked.get(uuid).filter(|a| a.through)?;
        Some(!asked.known)
    }

    /// Takes the running domains, and gives whom to ask about which.
    fn look(&mut self, running: &[String], peers: &[String]) -> Vec<(String, Vec<String>)> {
        let now = Instant::now();
        self.asked.retain(|uuid, _| running.contains(uuid));
        self.histories
            .retain(|_, (.., at)| now.duration_since(*at) < HISTORY);
        for uuid in running {
            self.asked.entry(uuid.clone()).or_insert_with(|| Asked {
                since: now,
                answered: HashSet::new(),
                through: false,
                known: false,
                waits: false,
            });
        }
        let open = |peer: &String| {
            let mut uuids: Vec<String> = running
                .iter()
                .filter(|u| {
                    self.asked
                        .get(*u)
                        .is_some_and(|a| !a.answered.contains(peer))
                })
                .cloned()
                .collect();
            uuids.sort_by_key(|u| !self.held.contains(u));
            uuids.truncate(MAX_DOMAINS);
            uuids
        };
        let asks = peers.iter().map(|p| (p.clone(), open(p)));
        asks.filter(|(_, uuids)| !uuids.is_empty()).collect()
    }

    /// Notes an answer: whether the peer knew the domain, and whether it has no more to tell.
    fn answered(&mut self, uuid: &str, peer: &str, knew: bool, last: bool) {
        if let Some(a) = self.asked.get_mut(uuid) {
            a.known |= knew;
            if last {
                a.answered.insert(peer.to_owned());
            }
        }
    }

    /// Notes that a feature of the domain waits; whether that is new.
    fn waits(&mut self, uuid: &str) -> bool {
        let asked = self.asked.get_mut(uuid);
        asked.is_some_and(|a| !std::mem::replace(&mut a.waits, true))
    }

    /// Those that are through now; of these, the held ones are held no more and named.
    fn settle(&mut self, peers: &[String]) -> Vec<String> {
        for (uuid, a) in &mut self.asked {
            let patience = if self.held.contains(uuid) {
                MIGRATED
            } else {
                APPEARED
            };
            let all = peers.iter().all(|p| a.answered.contains(p));
            a.through |= all || a.since.elapsed() > patience;
        }
        let through = |u: &&String| self.asked.get(*u).is_some_and(|a| a.through);
        let lifted: Vec<String> = self.held.iter().filter(through).cloned().collect();
        self.held.retain(|u| !lifted.contains(u));
        lifted
    }
}

/// Asks peers about domains that came, for ever.
pub(super) async fn follow(daemon: Arc<Daemon>) {
    let Some(peers) = daemon.peers().map(crate::peer::Peers::names) else {
        return;
    };
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let running: Vec<String> = lock(&daemon.instances)
            .values()
            .filter(|i| i.info.running)
            .map(|i| i.info.uuid.clone())
            .collect();
        let connected: Vec<String> = lock(&daemon.peer_states).keys().cloned().collect();
        let asks = lock(&daemon.arrivals).look(&running, &connected);
        // One that does not answer holds up no other.
        let asking = asks.into_iter().map(|(peer, uuids)| {
            let daemon = Arc::clone(&daemon);
            async move { daemon.ask_about(&peer, uuids).await }
        });
        futures_util::future::join_all(asking).await;
        let lifted = lock(&daemon.arrivals).settle(&peers);
        if !lifted.is_empty() {
            daemon.tell_peers();
        }
        for uuid in lifted {
            let Some(domain) = daemon.domain_of(&uuid) else {
                continue;
            };
            tracing::info!(%domain, "features of a migrated domain are settled");
            // A slow guest must not hold up the others.
            let daemon = Arc::clone(&daemon);
            tokio::spawn(async move {
                daemon.define(&domain).await;
                daemon.recheck(&domain).await;
            });
        }
    }
}

impl Daemon {
    pub(super) fn domain_of(&self, uuid: &str) -> Option<String> {
        let instances = lock(&self.instances);
        let mut all = instances.iter();
        all.find_map(|(d, i)| (i.info.uuid == uuid).then(|| d.clone()))
    }

    /// Whether the domain has a QEMU here.
    pub(super) fn active_here(&self, uuid: &str) -> bool {
        lock(&self.instances)
            .values()
            .any(|i| i.info.uuid == uuid && i.info.active)
    }

    /// Whether a domain's features are to be left as they are, since it was just migrated here.
    pub(super) fn holds(&self, domain: &str) -> bool {
        let uuid = lock(&self.instances)
            .get(domain)
            .map(|i| i.info.uuid.clone());
        uuid.is_some_and(|u| lock(&self.arrivals).holds(&u))
    }

    /// Whether a domain's XML may say which features it has; `None`: not known yet.
    pub(super) fn xml_counts(&self, uuid: &str, active: bool) -> Option<bool> {
        if self.peers().is_none() || !active {
            return Some(true);
        }
        lock(&self.arrivals).xml_counts(uuid)
    }

    /// Whose history comes under an identifier from a peer.
    pub(super) fn expected_history(&self, from: &str, id: &str) -> Option<FeatureSpec> {
        let arrivals = lock(&self.arrivals);
        let (peer, spec, _) = arrivals.histories.get(id)?;
        (peer == from).then(|| spec.clone())
    }

    async fn ask_about(self: &Arc<Self>, peer: &str, uuids: Vec<String>) {
        let Some(peers) = self.peers() else { return };
        let ask = DomainAsk::HandOver {
            uuids: uuids.clone(),
        };
        match peers.about_domain(peer, &ask).await {
            Ok(DomainAnswer::HandOver { domains }) => {
                for uuid in &uuids {
                    let Some(handover) = domains.iter().find(|h| h.uuid == *uuid) else {
                        lock(&self.arrivals).answered(uuid, peer, false, true);
                        continue;
                    };
                    let taken = self.take_over(peer, handover).await;
                    let last = taken && !handover.busy;
                    lock(&self.arrivals).answered(uuid, peer, true, last);
                }
            }
            // One that cannot tell has nothing to tell: an older version.
            Ok(_) | Err(PeerError::Refused { .. } | PeerError::Protocol { .. }) => {
                for uuid in &uuids {
                    lock(&self.arrivals).answered(uuid, peer, false, true);
                }
            }
            Err(e) => tracing::debug!(%peer, error = %e, "not told about domains that came"),
        }
    }

    /// Registers what a peer hands over, then tells it so; false to ask again.
    async fn take_over(self: &Arc<Self>, peer: &str, handover: &Handover) -> bool {
        let uuid = &handover.uuid;
        let Some(domain) = self.domain_of(uuid) else {
            return false;
        };
        if handover.features.is_empty() {
            return true;
        }
        let mut taken = Vec::new();
        let (mut new, mut waits) = (false, false);
        {
            let _guard = self.changes.lock(&domain).await;
            for f in &handover.features {
                let name = &f.spec.name;
                let _name = self.names.lock(name.as_str()).await;
                if let Err(reason) = self.may_come(peer, &f.spec) {
                    tracing::warn!(%domain, feature = %name, %peer, %reason,
                        "a feature that came with its domain is not taken up");
                    continue;
                }
                // It moved here just before its domain went: the source lets go of it in a moment.
                if self.known_elsewhere(&domain, uuid, name) {
                    if lock(&self.arrivals).waits(uuid) {
                        tracing::warn!(%domain, feature = %name, %peer,
                            "another domain has a feature of the name of one that came with this \
                             one; it is taken up once that is gone");
                    }
                    waits = true;
                    continue;
                }
                let known = lock(&self.instances)
                    .get(&domain)
                    .is_some_and(|i| i.features.contains_key(name));
                if !known {
                    if !self.register_handed(&domain, uuid, f).await {
                        return false;
                    }
                    new = true;
                }
                let expected = (peer.to_owned(), f.spec.clone(), Instant::now());
                lock(&self.arrivals)
                    .histories
                    .insert(f.history.clone(), expected);
                taken.push((name.clone(), f.history.clone()));
            }
        }
        let ask = DomainAsk::HandedOver {
            uuid: uuid.clone(),
            features: taken.clone(),
        };
        let told = match self.peers() {
            Some(peers) if !taken.is_empty() => peers.about_domain(peer, &ask).await.map(drop),
            _ => Ok(()),
        };
        if let Err(e) = &told {
            tracing::warn!(%domain, %peer, error = %e,
                "features came with their domain, but the host that had them is not told; again");
        }
        if new {
            self.tell_peers();
            self.define(&domain).await;
            let (this, domain) = (Arc::clone(self), domain.clone());
            tokio::spawn(async move { this.recheck(&domain).await });
        }
        told.is_ok() && !waits
    }

    /// Why a feature may not come along with its domain.
    fn may_come(&self, peer: &str, spec: &FeatureSpec) -> Result<(), String> {
        spec.validate().map_err(|e| e.to_string())?;
        let groups = self.peers().map(|p| p.groups(peer)).unwrap_or_default();
        if !groups.contains(&spec.group) {
            return Err(format!(
                "group '{}' is not allowed from host '{peer}' here (peer.hosts.groups)",
                spec.group
            ));
        }
        Ok(())
    }

    async fn register_handed(&self, domain: &str, uuid: &str, f: &HandedFeature) -> bool {
        let record = FeatureRecord {
            domain: domain.to_owned(),
            spec: f.spec.clone(),
            enabled: f.enabled,
            moved_at_ms: f.moved_at_ms,
        };
        let (id, kept) = (uuid.to_owned(), record.clone());
        if let Err(e) = self.store.run(move |s| s.put_feature(&id, &kept)).await {
            tracing::error!(%domain, feature = %f.spec.name, error = %e,
                "a feature that came with its domain cannot be registered");
            return false;
        }
        if let Some(i) = lock(&self.instances).get_mut(domain) {
            i.features.insert(f.spec.name.clone(), Feature::new(record));
        }
        tracing::info!(%domain, feature = %f.spec.name, "came along with its domain");
        self.emit(ApiEvent::Feature {
            domain: domain.to_owned(),
            feature: f.spec.name.clone(),
            what: "arrived".to_owned(),
        });
        true
    }

    /// Answers a peer's question about a domain.
    pub(super) async fn about_domain(
        self: &Arc<Self>,
        from: &str,
        ask: DomainAsk,
    ) -> Result<DomainAnswer, PeerRefusal> {
        let failed = |m: String| PeerRefusal::new(RefusalKind::Failed, m);
        match ask {
            DomainAsk::HandOver { uuids } => {
                let domains = self.hand_over(from, &uuids).await.map_err(failed)?;
                Ok(DomainAnswer::HandOver { domains })
            }
            DomainAsk::HandedOver { uuid, features } => {
                self.let_go(from, &uuid, &features).await.map_err(failed)?;
                Ok(DomainAnswer::Noted)
            }
            DomainAsk::Fate { id } => Ok(DomainAnswer::Fate {
                fate: self.own_fate(&id).await,
            }),
            DomainAsk::Copy { id, uuid } => Ok(DomainAnswer::Copy {
                copy: self.end_copy(&id, &uuid).await,
            }),
        }
    }

    async fn records_of(&self, uuid: &str) -> Result<Vec<FeatureRecord>, String> {
        let uuid = uuid.to_owned();
        let records = self.store.run(move |s| s.features_of(&uuid)).await;
        records.map_err(|e| format!("the registry cannot be read: {e}"))
    }

    /// What is here of domains that run at a peer now.
    async fn hand_over(&self, from: &str, uuids: &[String]) -> Result<Vec<Handover>, String> {
        let groups = self.peers().map(|p| p.groups(from)).unwrap_or_default();
        let mut found = Vec::new();
        for uuid in uuids {
            let mut handover = Handover {
                uuid: uuid.clone(),
                busy: false,
                features: Vec::new(),
            };
            // libvirt ends it here only after it runs there.
            if self.active_here(uuid) {
                handover.busy = true;
                found.push(handover);
                continue;
            }
            let leaving: Vec<FeatureName> = lock(&self.outgoing)
                .values()
                .filter(|h| h.domain_uuid == *uuid)
                .map(|h| h.job.borrow().feature.clone())
                .collect();
            handover.busy = !leaving.is_empty() || self.incoming.into_domain(uuid);
            let records = self.records_of(uuid).await?.into_iter();
            handover.features = records
                .filter(|r| groups.contains(&r.spec.group) && !leaving.contains(&r.spec.name))
                .map(|r| HandedFeature {
                    spec: r.spec,
                    enabled: r.enabled,
                    moved_at_ms: r.moved_at_ms,
                    history: uuid::Uuid::new_v4().to_string(),
                })
                .collect();
            if handover.busy || !handover.features.is_empty() || self.knew_domain(uuid).await {
                found.push(handover);
            }
        }
        Ok(found)
    }

    /// Lets go of features that a peer has registered with their domain, and sends their history.
    async fn let_go(
        self: &Arc<Self>,
        from: &str,
        uuid: &str,
        features: &[(FeatureName, MoveId)],
    ) -> Result<(), String> {
        if self.active_here(uuid) {
            return Err("the domain runs here".into());
        }
        let groups = self.peers().map(|p| p.groups(from)).unwrap_or_default();
        let records = self.records_of(uuid).await?;
        let mut left = Vec::new();
        for (name, history) in features {
            let Some(record) = records.iter().find(|r| r.spec.name == *name) else {
                continue;
            };
            let _guard = self.changes.lock(&record.domain).await;
            let moving = lock(&self.outgoing)
                .values()
                .any(|h| h.domain_uuid == uuid && h.job.borrow().feature == *name);
            if moving || !groups.contains(&record.spec.group) {
                continue;
            }
            if !self.forget_feature(&record.domain, uuid, name).await {
                return Err("the registry cannot be written".into());
            }
            tracing::info!(domain = %record.domain, feature = %name, to = %from,
                "went along with its domain");
            left.push((record.clone(), history.clone()));
        }
        if let Some((record, _)) = left.first() {
            let domain = record.domain.clone();
            self.domain_left(&domain, uuid).await;
        }
        self.tell_peers();
        let (daemon, to) = (Arc::clone(self), from.to_owned());
        tokio::spawn(async move {
            for (record, id) in left {
                daemon.send_history(&to, &id, &record.spec).await;
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(n: &[&str]) -> Vec<String> {
        n.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn a_migrated_domain_is_held_until_every_peer_has_answered() {
        let mut a = Arrivals::default();
        let (peers, running) = (names(&["h1", "h2"]), names(&["u"]));
        a.coming("u");
        assert!(a.holds("u") && a.settle(&peers).is_empty());
        // It does not run yet: nobody is asked.
        assert!(a.look(&[], &peers).is_empty());
        assert_eq!(a.look(&running, &peers).len(), 2);
        a.answered("u", "h2", false, true);
        a.answered("u", "h1", true, false);
        assert_eq!(
            a.look(&running, &peers),
            [("h1".to_owned(), running.clone())],
            "one that is busy is asked again"
        );
        assert!(a.settle(&peers).is_empty());
        assert_eq!(a.xml_counts("u"), None);
        a.answered("u", "h1", true, true);
        assert_eq!(a.settle(&peers), running);
        assert!(!a.holds("u"));
        assert_eq!(a.xml_counts("u"), Some(false), "a peer knew better");
        assert!(a.look(&running, &peers).is_empty());
    }

    #[test]
    fn one_that_ran_here_anew_is_asked_about_anew() {
        let mut a = Arrivals::default();
        let (peers, running) = (names(&["h1"]), names(&["u"]));
        a.look(&running, &peers);
        a.answered("u", "h1", false, true);
        assert!(a.settle(&peers).is_empty(), "it was not held");
        assert_eq!(a.xml_counts("u"), Some(true), "nobody knew it");
        a.look(&[], &peers);
        assert_eq!(a.look(&running, &peers).len(), 1);
        // Who is not connected is waited for, but not asked.
        assert!(a.look(&running, &[]).is_empty() && a.settle(&peers).is_empty());
        assert_eq!(a.xml_counts("u"), None);
    }

    #[test]
    fn many_domains_are_asked_about_in_turns_migrated_ones_first() {
        let mut a = Arrivals::default();
        let running: Vec<String> = (0..40).map(|n| format!("u{n}")).collect();
        a.coming("u39");
        let asks = a.look(&running, &names(&["h1"]));
        assert_eq!(
            (asks[0].1.len(), asks[0].1[0].as_str()),
            (MAX_DOMAINS, "u39")
        );
    }
}
