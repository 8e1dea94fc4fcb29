//! Instances and helpers coming and going. libvirt's list is the truth; events and the hook's
//! notices only say when to look.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::api::ApiEvent;
use crate::driver::target;
use crate::feature::FeatureName;
use crate::guest::{Guest, GuestEvent};
use crate::host::{GuestCapabilities, HelperState};
use crate::hypervisor::hook::HookNotice;
use crate::hypervisor::{Change, DomainInfo, HypervisorEvent};
use crate::moving::record::job_of;
use crate::wire::guest::{Call, GuestMoveState, GuestStatus, Reply};
use crate::wire::peer::Fate;

use super::instance::Instance;
use super::{Daemon, DaemonError, SHORT, lock};

/// Longest wait for a start: the helper itself gives up earlier.
pub(super) const START: Duration = Duration::from_secs(130);
/// Pause before a guest is asked again about a move whose end is not known.
const AGAIN: Duration = Duration::from_secs(3);
/// Pause between looks at libvirt's list without an event.
const RECONCILE: Duration = Duration::from_secs(10);

impl Daemon {
    /// Checks at start that the registry is readable.
    pub(super) fn load_registry(&self) -> Result<(), DaemonError> {
        let n = self.store.features()?.len();
        tracing::info!(features = n, "registry read");
        for problem in self.store.problems() {
            tracing::error!(%problem, "registry or journal damaged");
        }
        Ok(())
    }

    /// Brings instances in line with libvirt and connects to helpers whose channels exist.
    ///
    /// False when libvirt did not list its domains, or new ones cannot get their features.
    pub(super) async fn refresh_domains(&self) -> bool {
        let domains = match self.hypervisor.domains().await {
            Ok(d) => d,
            Err(e) => {
                tracing::warn!(error = %e, "libvirt does not list its domains; trying again");
                return false;
            }
        };
        // Only what appears takes its features from the registry; later they are changed here and
        // there together, and one that is just leaving must not come back from there.
        let appeared = {
            let instances = lock(&self.instances);
            let known = |d: &DomainInfo| {
                instances
                    .get(&d.name)
                    .is_some_and(|i| i.info.uuid == d.uuid)
            };
            !domains.iter().all(known)
        };
        let records = match appeared.then(|| self.store.features()).transpose() {
            Ok(r) => r.unwrap_or_default(),
            Err(e) => {
                tracing::error!(error = %e, "the registry cannot be read");
                return false;
            }
        };
        let mut connect = Vec::new();
        {
            let mut instances = lock(&self.instances);
            let names: BTreeSet<&str> = domains.iter().map(|d| d.name.as_str()).collect();
            instances.retain(|name, i| {
                let keep = names.contains(name.as_str());
                if !keep && let Some(g) = &i.guest {
                    g.close();
                }
                keep
            });
            for d in &domains {
                let new = || Instance::registered(d.clone(), &records);
                let i = instances.entry(d.name.clone()).or_insert_with(new);
                if i.info.uuid != d.uuid {
                    *i = new();
                }
                // Another run of the domain has other sockets; maybe nobody saw it off.
                if i.info.id != d.id
                    && let Some(g) = i.guest.take()
                {
                    g.close();
                }
                i.info = d.clone();
                if !d.running {
                    if let Some(g) = i.guest.take() {
                        g.close();
                    }
                    i.helper = HelperState::Absent {
                        reason: "the domain does not run".into(),
                    };
                    for f in i.features.values_mut() {
                        f.running = Some(false);
                    }
                } else if i.guest.is_none() {
                    connect.push(d.name.clone());
                }
            }
        }
        // Each has its own time; a domain that libvirt is stuck on holds up no other.
        futures_util::future::join_all(connect.iter().map(|d| self.connect_guest(d))).await;
        true
    }

    /// Connects to a domain's helper if its channels exist.
    pub(super) async fn connect_guest(&self, domain: &str) {
        match self.hypervisor.channels(domain).await {
            Ok(Some(channels)) => {
                let mut instances = lock(&self.instances);
                if let Some(i) = instances.get_mut(domain)
                    && i.guest.is_none()
                {
                    tracing::debug!(%domain, "connecting to the helper");
                    i.helper = HelperState::Absent {
                        reason: "the helper does not answer".into(),
                    };
                    i.guest = Some(Guest::spawn(domain, channels, self.guest_events.clone()));
                }
            }
            Ok(None) => tracing::debug!(%domain, "no Drover channels in this domain"),
            Err(e) => tracing::warn!(%domain, error = %e, "channels of the domain not read"),
        }
    }

    /// Tells a domain's helper which features it has.
    pub(super) async fn define(&self, domain: &str) {
        if self.holds(domain) {
            return;
        }
        let Some(guest) = self.guest(domain) else {
            return;
        };
        let _turn = self.defines.lock(domain).await;
        let features = lock(&self.instances)
            .get(domain)
            .map(Instance::specs)
            .unwrap_or_default();
        if let Err(e) = guest.call(Call::Define { features }, SHORT).await {
            tracing::warn!(%domain, error = %e, "the helper did not take the features");
        }
    }

    /// After a helper connected: interval, capabilities, features, and what the guest holds.
    async fn greet(self: &Arc<Self>, domain: &str) {
        let Some(guest) = self.guest(domain) else {
            return;
        };
        if self.holds(domain)
            && let Err(e) = guest.call(Call::Announce, SHORT).await
        {
            // Switches learn it later, from the features' own traffic.
            tracing::debug!(%domain, error = %e, "addresses of features not announced");
        }
        let interval_ms = (self.config.meter.interval_s * 1000.0) as u64;
        let told = async {
            guest.call(Call::Meter { interval_ms }, SHORT).await?;
            self.define(domain).await;
            guest
                .call(Call::Capabilities, Duration::from_secs(60))
                .await
        };
        match told.await {
            Ok(capabilities) => {
                if let Reply::Capabilities {
                    kernel,
                    criu,
                    criu_problem,
                    cpu_flags,
                    systemd,
                } = capabilities
                {
                    let mut instances = lock(&self.instances);
                    if let Some(i) = instances.get_mut(domain) {
                        i.capabilities = Some(GuestCapabilities {
                            kernel,
                            criu,
                            criu_problem,
                            cpu_flags,
                            systemd,
                        });
                    }
                }
            }
            Err(e) => tracing::warn!(%domain, error = %e, "the helper does not tell its state"),
        }
        self.recheck(domain).await;
    }

    /// Asks a guest what it holds, and brings it in line.
    pub(crate) async fn recheck(self: &Arc<Self>, domain: &str) {
        if self.holds(domain) {
            return;
        }
        let Some(guest) = self.guest(domain) else {
            return;
        };
        match guest.call(Call::Status, SHORT).await {
            Ok(Reply::Status(status)) => self.reconcile(domain, &guest, status).await,
            Ok(other) => tracing::warn!(%domain, ?other, "unexpected answer to status"),
            Err(e) => tracing::warn!(%domain, error = %e, "the helper does not tell its state"),
        }
    }

    /// Asks the guest again after a while: a move's end is not known yet.
    fn recheck_later(self: &Arc<Self>, domain: &str) {
        let (daemon, domain) = (Arc::clone(self), domain.to_owned());
        tokio::spawn(async move {
            tokio::time::sleep(AGAIN).await;
            daemon.recheck(&domain).await;
        });
    }

    /// Brings the guest in line: leftovers of moves nobody knows are removed, enabled features
    /// that do not run are started.
    async fn reconcile(self: &Arc<Self>, domain: &str, guest: &Guest, status: GuestStatus) {
        let mut again = false;
        for m in &status.moves {
            if self.under_way(&m.id) {
                continue;
            }
            // Not under way here: ended, or never committed here and never READY here. A guest that
            // was saved and restored may bring back a frozen copy of a move that is long done; one
            // that was migrated here, one of a move that another host makes or made.
            let call = match m.state {
                GuestMoveState::Copying | GuestMoveState::Frozen => {
                    let Some((fate, told)) = self.fate_of(&m.id).await else {
                        tracing::warn!(%domain, id = %m.id, feature = %m.feature,
                            "how a move ended is not known yet; what it left stays, asking again");
                        again = true;
                        continue;
                    };
                    let commit = fate == Fate::Gone;
                    if commit && told {
                        self.left_before(domain, &m.feature).await;
                    }
                    Call::Release {
                        id: m.id.clone(),
                        feature: m.feature.clone(),
                        commit,
                    }
                }
                GuestMoveState::Receiving | GuestMoveState::Ready => Call::Discard {
                    id: m.id.clone(),
                    force: false,
                },
                // The host that the domain was on could not tell the guest that it is registered.
                GuestMoveState::Running if self.registered(domain, &m.feature) => Call::Release {
                    id: m.id.clone(),
                    feature: m.feature.clone(),
                    commit: true,
                },
                GuestMoveState::Running => continue,
            };
            tracing::warn!(%domain, id = %m.id, state = ?m.state, "removing what a forgotten move left");
            if let Err(e) = guest.call(call, Duration::from_secs(60)).await {
                tracing::warn!(%domain, id = %m.id, error = %e, "leftovers of a move not removed");
            }
        }
        if again {
            self.recheck_later(domain);
        }
        let frozen: BTreeSet<&FeatureName> = if again {
            status.moves.iter().map(|m| &m.feature).collect()
        } else {
            BTreeSet::new()
        };
        let running: BTreeSet<&FeatureName> = status
            .features
            .iter()
            .filter(|f| f.running)
            .map(|f| &f.feature)
            .collect();
        let mut start = Vec::new();
        {
            let mut instances = lock(&self.instances);
            let Some(i) = instances.get_mut(domain) else {
                return;
            };
            for (name, f) in &mut i.features {
                let runs = running.contains(name);
                let managed = f.record.spec.managed().is_some();
                f.running = Some(runs || !managed);
                let waits = f.moving.is_some() || frozen.contains(name);
                if managed && !runs && f.record.enabled && !waits {
                    start.push(name.clone());
                }
            }
        }
        for feature in start {
            tracing::info!(%domain, %feature, "starting an enabled feature that does not run");
            match guest
                .call(
                    Call::Start {
                        feature: feature.clone(),
                    },
                    START,
                )
                .await
            {
                Ok(_) => self.set_running(domain, &feature, true),
                Err(e) => tracing::error!(%domain, %feature, error = %e, "feature not started"),
            }
        }
    }

    pub(super) fn set_running(&self, domain: &str, feature: &FeatureName, runs: bool) {
        self.with_feature(domain, feature, |f| f.running = Some(runs));
    }

    fn registered(&self, domain: &str, feature: &FeatureName) -> bool {
        lock(&self.instances)
            .get(domain)
            .is_some_and(|i| i.features.contains_key(feature))
    }

    fn set_helper(&self, domain: &str, helper: HelperState) {
        let mut instances = lock(&self.instances);
        if let Some(i) = instances.get_mut(domain) {
            if matches!(helper, HelperState::Absent { .. }) {
                i.capabilities = None;
                for f in i.features.values_mut() {
                    f.running = None;
                }
            }
            i.helper = helper;
        }
    }
}

/// Follows libvirt's events and the hook's notices, and looks at the list from time to time.
pub(super) async fn follow_hypervisor(
    daemon: Arc<Daemon>,
    mut events: mpsc::Receiver<HypervisorEvent>,
    mut hook: mpsc::Receiver<HookNotice>,
) {
    let mut tick = tokio::time::interval(RECONCILE);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => daemon.hypervisor_event(event),
                None => return,
            },
            Some(notice) = hook.recv() => tracing::debug!(?notice, "hook"),
            _ = tick.tick() => {}
        }
        // Several at once need one look only.
        while let Ok(event) = events.try_recv() {
            daemon.hypervisor_event(event);
        }
        while let Ok(notice) = hook.try_recv() {
            tracing::debug!(?notice, "hook");
        }
        daemon.refresh_domains().await;
    }
}

impl Daemon {
    fn hypervisor_event(self: &Arc<Self>, event: HypervisorEvent) {
        match event {
            HypervisorEvent::Lifecycle {
                domain,
                uuid,
                change,
            } => {
                tracing::info!(%domain, ?change, "domain event");
                match change {
                    Change::MigratedHere if self.peers().is_some() => {
                        lock(&self.arrivals).coming(&uuid);
                    }
                    Change::MigratedAway => lock(&self.arrivals).gone(&uuid),
                    // What was in its memory is gone; a transient domain is not listed any more.
                    Change::Stopped | Change::Crashed => {
                        lock(&self.arrivals).gone(&uuid);
                        let daemon = Arc::clone(self);
                        tokio::spawn(async move { target::domain_ended(&daemon, &uuid).await });
                    }
                    // Whoever waits for its helper must not wait until the silence is noticed.
                    Change::Rebooted => {
                        if let Some(g) = self.guest_handle(&domain) {
                            g.reconnect();
                        }
                    }
                    _ => {}
                }
                let what = format!("{change:?}").to_lowercase();
                self.emit(ApiEvent::Instance { domain, what });
            }
            HypervisorEvent::AgentConnected { domain, connected } => {
                tracing::debug!(%domain, connected, "guest agent");
            }
            HypervisorEvent::Lost => tracing::warn!("connection to libvirt lost"),
            HypervisorEvent::Reconnected => tracing::info!("connected to libvirt again"),
        }
    }
}

/// Follows the helpers of all guests.
pub(super) async fn follow_guests(
    daemon: Arc<Daemon>,
    mut events: mpsc::Receiver<(String, GuestEvent)>,
) {
    while let Some((domain, event)) = events.recv().await {
        match event {
            GuestEvent::Connected { version, boot_id } => {
                tracing::info!(%domain, %version, %boot_id, "helper connected");
                daemon.set_helper(&domain, HelperState::Connected { version });
                daemon.emit(ApiEvent::Instance {
                    domain: domain.clone(),
                    what: "helper connected".into(),
                });
                // A slow guest must not hold up the others' events.
                let daemon = Arc::clone(&daemon);
                tokio::spawn(async move {
                    target::guest_changed(&daemon, &domain).await;
                    daemon.greet(&domain).await;
                });
            }
            GuestEvent::Lost { reason } => {
                tracing::warn!(%domain, %reason, "helper lost");
                daemon.set_helper(
                    &domain,
                    HelperState::Absent {
                        reason: reason.clone(),
                    },
                );
                daemon.emit(ApiEvent::Instance {
                    domain: domain.clone(),
                    what: format!("helper lost: {reason}"),
                });
                let daemon = Arc::clone(&daemon);
                tokio::spawn(async move { target::guest_changed(&daemon, &domain).await });
            }
            GuestEvent::Meter(frame) => daemon.meter(&domain, frame),
            GuestEvent::Exited { feature, status } if !daemon.registered(&domain, &feature) => {
                tracing::debug!(%domain, %feature, %status,
                    "a guest tells the end of a feature that is not registered in it; ignored");
            }
            GuestEvent::Exited { feature, status } => {
                tracing::warn!(%domain, %feature, %status, "feature ended by itself");
                daemon.set_running(&domain, &feature, false);
                daemon.emit(ApiEvent::Feature {
                    domain,
                    feature,
                    what: format!("exited: {status}"),
                });
            }
            GuestEvent::Hook { id, feature, text } => {
                if daemon.under_way(&id) {
                    tracing::info!(%domain, %id, %feature, %text, "hook");
                }
            }
            GuestEvent::Progress {
                id,
                round,
                sent,
                total,
            } => {
                tracing::trace!(%domain, %id, round, sent, total, "round");
                // Only of moves of its own.
                if let Some(h) = lock(&daemon.outgoing).get(job_of(&id))
                    && h.is_attempt(&id)
                    && h.job.borrow().from_domain == domain
                {
                    h.progress.tell(round, sent, total);
                }
            }
        }
    }
}
