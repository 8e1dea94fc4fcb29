//! This host's state for peers, what the affinity learns of it, and automatic moves on a breach.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::affinity::{HostPart, Place, UsageWindow};
use crate::api::{ApiEvent, Plan};
use crate::config::Config;
use crate::decision::{self, BreachCause, Cause, Policy, View};
use crate::driver::target;
use crate::feature::FeatureName;
use crate::history::SeriesKey;
use crate::host::{
    FeatureStatus, Hardware, HostCapabilities, HostLoad, HostState, InstanceState, Outlook,
    StorageKind,
};
use crate::hypervisor::{Hypervisor, network_speed, storage_kind};
use crate::moving::record::TargetRecord;
use crate::peer::PeerEvent;
use crate::rules::Mode;
use crate::usage::Usage;
use crate::wire::guest::MoveId;

use super::instance::{Feature, Instance};
use super::{Daemon, clock, forecast, lock};

/// Samples over which a host's load is averaged.
const LOAD_SAMPLES: usize = 3;
/// Pause between decisions for a breach that lasts.
const DECIDE_AGAIN_MS: i64 = 5_000;
/// Age after which a peer's state is too old to choose it, milliseconds.
const STALE_MS: i64 = 15_000;

/// What this host is and how busy it is.
#[derive(Debug)]
pub(super) struct HostRuntime {
    capabilities: HostCapabilities,
    hardware: Hardware,
    loads: VecDeque<HostLoad>,
    reserved: BTreeMap<MoveId, Reservation>,
    /// What it is expected to be asked for.
    pub(super) outlook: Option<Outlook>,
}

/// This host as it was a moment ago, its instances without their features.
#[derive(Debug)]
pub(super) struct Lately {
    host: HostState,
    /// What rows of it have in common.
    part: HostPart,
}

/// What is kept free for a move to this host.
#[derive(Debug, Clone)]
struct Reservation {
    domain: String,
    cpus: f64,
    memory_mib: f64,
    /// When the feature arrived: from then on its load is measured more and more, and the
    /// reservation shrinks.
    arrived: Option<Instant>,
}

impl Reservation {
    /// Share that still counts; 0 once all of the load is measured.
    fn share(&self, settle: Duration) -> f64 {
        self.arrived.map_or(1.0, |at| {
            1.0 - (at.elapsed().as_secs_f64() / settle.as_secs_f64()).min(1.0)
        })
    }
}

impl HostRuntime {
    /// Capabilities from libvirt, with the configuration's overrides.
    pub(super) async fn new(config: &Config, hypervisor: &Hypervisor) -> Self {
        let found = match hypervisor.capabilities().await {
            Ok(c) => Some(c),
            Err(e) => {
                tracing::warn!(error = %e, "libvirt does not tell the host's capabilities");
                None
            }
        };
        let host = &config.host;
        // What the configuration does not say is looked for.
        let configured = || "drover.toml".to_owned();
        let (network_mbps, network_from) = if host.network_mbps > 0.0 {
            (host.network_mbps, configured())
        } else {
            network_speed().unwrap_or_default()
        };
        let (storage, storage_from) = if host.storage == StorageKind::Unknown {
            storage_kind().unwrap_or((StorageKind::Unknown, String::new()))
        } else {
            (host.storage, configured())
        };
        let hardware = Hardware {
            cpu_features: found
                .as_ref()
                .map(|c| c.cpu_features.clone())
                .unwrap_or_default(),
            numa_nodes: found.as_ref().map_or(0, |c| c.numa_nodes),
            network_from,
            storage_from,
        };
        let capabilities = HostCapabilities {
            cpu_model: found
                .as_ref()
                .map(|c| c.cpu_model.clone())
                .unwrap_or_default(),
            cpus: host.cpus.or(found.as_ref().map(|c| c.cpus)).unwrap_or(1.0),
            memory_mib: host
                .memory_mib
                .or(found.as_ref().map(|c| c.memory_mib))
                .unwrap_or(1024.0),
            network_mbps,
            storage,
            virt_type: found.map(|c| c.virt_type).unwrap_or_default(),
        };
        Self {
            capabilities,
            hardware,
            loads: VecDeque::new(),
            reserved: BTreeMap::new(),
            outlook: None,
        }
    }

    /// Adds a sample of load.
    pub(super) fn push(&mut self, load: HostLoad) {
        if self.loads.len() == LOAD_SAMPLES {
            self.loads.pop_front();
        }
        self.loads.push_back(load);
    }

    pub(super) fn load(&self) -> HostLoad {
        let n = self.loads.len().max(1) as f64;
        // The sum of nothing is -0.0.
        let mean = |get: fn(&HostLoad) -> f64| self.loads.iter().map(get).sum::<f64>() / n + 0.0;
        HostLoad {
            cpus_used: mean(|l| l.cpus_used),
            memory_used_mib: mean(|l| l.memory_used_mib),
            net_bps: mean(|l| l.net_bps),
            disk_bps: mean(|l| l.disk_bps),
            stall_percent: mean(|l| l.stall_percent),
        }
    }
}

impl Daemon {
    /// Tells the peers at once how things are here, instead of when they ask next.
    pub(super) fn tell_peers(&self) {
        if let Some(peers) = self.peers() {
            peers.announce(&self.host_state_now());
        }
    }

    /// This host as peers see it now.
    pub(super) fn host_state_now(&self) -> HostState {
        self.host_state_with(Instance::state)
    }

    /// The same without the features of its instances: with thousands of them that is a hundredth
    /// of the memory.
    pub(super) fn host_outline(&self) -> HostState {
        self.host_state_with(Instance::outline)
    }

    fn host_state_with(&self, of: fn(&Instance) -> InstanceState) -> HostState {
        let instances = lock(&self.instances).values().map(of).collect();
        // The load is a mean over so long.
        let settle = Duration::from_secs_f64(self.config.meter.interval_s * LOAD_SAMPLES as f64);
        let draining = lock(&self.drain).active();
        let mut host = lock(&self.host);
        host.reserved.retain(|_, r| r.share(settle) > 0.0);
        let mut state = HostState {
            at_ms: clock::now_ms(),
            capabilities: host.capabilities.clone(),
            hardware: Box::new(host.hardware.clone()),
            load: host.load(),
            outlook: host.outlook,
            labels: self.config.host.labels.clone(),
            accepts: !draining,
            outcomes: self.outcomes_now(),
            instances,
            ..HostState::new(self.name())
        };
        for r in host.reserved.values() {
            let share = r.share(settle);
            state.moves_in += u32::from(r.arrived.is_none());
            state.reserved_cpus += share * r.cpus;
            state.reserved_memory_mib += share * r.memory_mib;
            for i in state.instances.iter_mut().filter(|i| i.domain == r.domain) {
                i.reserved_cpus += share * r.cpus;
                i.reserved_memory_mib += share * r.memory_mib;
            }
        }
        state
    }

    /// This host as it was at most one interval of the meter ago, without its features, and what
    /// rows of it have in common: with thousands of features, looking costs more than what is a
    /// little late.
    fn host_lately(&self) -> Arc<Lately> {
        let fresh = Duration::from_secs_f64(self.config.meter.interval_s);
        let mut lately = lock(&self.lately);
        match lately.as_ref() {
            Some((at, state)) if at.elapsed() < fresh => Arc::clone(state),
            _ => {
                // Not both at a time.
                *lately = None;
                let host = self.host_outline();
                let is = |f: &&Feature| f.status() != FeatureStatus::Disabled;
                let enabled = lock(&self.instances)
                    .values()
                    .map(|i| i.features.values().filter(is).count())
                    .sum();
                let part = HostPart::with_features(&host, enabled);
                let state = Arc::new(Lately { host, part });
                *lately = Some((Instant::now(), Arc::clone(&state)));
                state
            }
        }
    }

    /// Reserves what an incoming move needs.
    pub(super) fn reserve(&self, record: &TargetRecord) {
        lock(&self.host).reserved.insert(
            record.id.clone(),
            Reservation {
                domain: record.domain.clone(),
                cpus: record.cpus,
                memory_mib: record.memory_mib,
                arrived: None,
            },
        );
    }

    /// Frees a reservation.
    pub(super) fn unreserve(&self, id: &str) {
        lock(&self.host).reserved.remove(id);
    }

    /// Frees the reservation of a feature that arrived, as its load comes to be measured.
    pub(super) fn settle(&self, id: &str) {
        if let Some(r) = lock(&self.host).reserved.get_mut(id) {
            r.arrived = Some(Instant::now());
        }
    }

    pub(super) fn view(&self) -> View {
        let mut hosts = vec![self.host_state_now()];
        hosts.extend(lock(&self.peer_states).values().cloned());
        let groups = match self.peers() {
            Some(p) => p
                .names()
                .into_iter()
                .map(|n| (n.clone(), p.groups(&n)))
                .collect(),
            None => BTreeMap::new(),
        };
        View {
            me: self.name().to_owned(),
            now_ms: clock::now_ms(),
            hosts,
            stale_after_ms: STALE_MS,
            groups,
            model: self.model_info(),
        }
    }

    pub(super) fn policy(&self) -> Policy {
        let d = &self.config.decision;
        Policy {
            automatic: d.automatic,
            reserve: d.reserve,
            min_gain: d.min_gain,
            cooldown_ms: (d.cooldown_s * 1000.0) as i64,
            weights: decision::Weights {
                affinity: d.weights.affinity,
                balance: d.weights.balance,
                near: d.weights.near,
            },
            cost_weight: d.cost_weight,
            max_moves_in: d.max_moves_in,
            mode: d.mode,
        }
    }

    /// The measured breach of a feature, or else the expected one.
    pub(super) fn breach_of(&self, domain: &str, feature: &FeatureName) -> Option<BreachCause> {
        self.measured(domain, feature)
            .or_else(|| Some(forecast::cause(&self.expected_of(domain, feature)?)))
    }

    pub(super) fn measured(&self, domain: &str, feature: &FeatureName) -> Option<BreachCause> {
        let instances = lock(&self.instances);
        instances.get(domain)?.features.get(feature)?.breach()
    }

    /// Feeds the affinity with what was just measured.
    pub(super) fn learn(&self, domain: &str, points: &[(SeriesKey, Usage)]) {
        let stall = lock(&self.host).load().stall_percent;
        let (steal_percent, running): (Option<f64>, Vec<bool>) = {
            let instances = lock(&self.instances);
            // What this guest waited for the host's CPUs says more than the mean of all guests.
            let own = instances.get(domain).and_then(|i| i.cost.steal_percent);
            let steal = own.or((stall > 0.0).then_some(stall));
            let features = instances.get(domain).map(|i| &i.features);
            let status = |key: &SeriesKey| Some(features?.get(&key.feature)?.status());
            let is = |key| status(key) == Some(FeatureStatus::Running);
            (steal, points.iter().map(|(key, _)| is(key)).collect())
        };
        let mut begin = Vec::new();
        {
            let mut affinity = lock(&self.affinity);
            for ((key, usage), running) in points.iter().zip(running) {
                let taken = affinity.point(domain, &key.feature, usage, steal_percent, running);
                if let Some(after_ms) = taken.wants_after_ms.filter(|_| running) {
                    begin.push((&key.feature, after_ms..usage.at_ms));
                }
            }
        }
        // The host is looked at once per horizon of a guest only.
        if begin.is_empty() {
            return;
        }
        let lately = self.host_lately();
        let (instance, windows) = {
            let instances = lock(&self.instances);
            let Some(instance) = instances.get(domain) else {
                return;
            };
            let window = |feature, times: &std::ops::Range<i64>| {
                let mut points = instance.features.get(feature)?.recent.after(times.start);
                points.retain(|p| p.at_ms <= times.end);
                Some(UsageWindow::of(&points))
            };
            let of = |(feature, times)| Some((feature, window(feature, &times)?));
            let windows: Vec<_> = begin.into_iter().filter_map(of).collect();
            (instance.state(), windows)
        };
        let place = Place {
            host: &lately.host,
            part: &lately.part,
            instance: &instance,
        };
        let mut affinity = lock(&self.affinity);
        for (feature, window) in windows {
            affinity.begin(place, feature, &window);
        }
    }

    /// Decides for one feature in breach, and acts.
    async fn decide(self: &Arc<Self>, domain: &str, feature: &FeatureName, breach: BreachCause) {
        let what = breach.text.clone();
        if self.decided_lately(domain, feature) {
            return;
        }
        let plan = match self.decided(domain, feature, Cause::Breach(breach)).await {
            Ok(p) => p,
            Err(e) => {
                tracing::debug!(%domain, %feature, error = %e, "no decision");
                return;
            }
        };
        self.act(domain, feature, plan, what);
    }

    /// Tells of a decision, and does what it says when its mode is to act.
    pub(super) fn act(
        self: &Arc<Self>,
        domain: &str,
        feature: &FeatureName,
        plan: Plan,
        what: String,
    ) {
        let chosen = plan.chosen.and_then(|i| plan.candidates.get(i)).cloned();
        let why: Vec<String> = plan
            .candidates
            .iter()
            .filter(|c| !c.refusals.is_empty())
            .map(|c| format!("{}/{}: {}", c.host, c.domain, c.refusals.join(", ")))
            .collect();
        if plan.outcome == "no_eligible_host" {
            tracing::warn!(%domain, %feature, outcome = %plan.outcome, reason = %plan.reason, ?why, "decision");
        } else {
            tracing::info!(%domain, %feature, outcome = %plan.outcome, reason = %plan.reason, ?why, "decision");
        }
        let (id, mode) = (plan.id.clone(), plan.mode);
        self.emit(ApiEvent::Decision { plan });
        let Some(c) = chosen else { return };
        if mode != Mode::Act {
            tracing::info!(%domain, %feature, to = %c.host, %id, mode = mode.as_str(),
                "the move is not made by itself");
            return;
        }
        // A slow guest or disk holds up this feature's move only.
        let (daemon, domain, feature) = (Arc::clone(self), domain.to_owned(), feature.clone());
        tokio::spawn(async move {
            let begun = daemon.begin_move(&domain, &feature, &c.host, &c.domain, what, None);
            match begun.await {
                Ok(job) => {
                    daemon
                        .change_decision(&id, |r| r.move_id = Some(job.id))
                        .await;
                }
                Err(e) => {
                    tracing::warn!(%domain, %feature, error = %e,
                        "decided, but the move did not begin");
                }
            }
        });
    }

    /// Features in breach, measured or expected, whose last decision is long enough ago.
    fn due(&self) -> Vec<(String, FeatureName, BreachCause)> {
        let now = clock::now_ms();
        let expected = self.expected();
        let mut due = Vec::new();
        for (domain, i) in lock(&self.instances).iter_mut() {
            for (name, f) in &mut i.features {
                let spec = &f.record.spec;
                let expected = (!expected.is_empty())
                    .then(|| expected.get(&(domain.clone(), name.clone())))
                    .flatten()
                    .filter(|e| forecast::holds(e, f.record.enabled, &spec.thresholds));
                let Some(breach) = f.breach().or_else(|| expected.map(forecast::cause)) else {
                    f.decided_ms = 0;
                    continue;
                };
                let idle = f.moving.is_none() && f.record.enabled;
                if idle && now - f.decided_ms >= DECIDE_AGAIN_MS {
                    f.decided_ms = now;
                    let priority = f.record.spec.rules().priority;
                    due.push((priority, (domain.clone(), name.clone(), breach)));
                }
            }
        }
        // Of one priority, by name as they are.
        due.sort_by_key(|(priority, _)| std::cmp::Reverse(*priority));
        due.into_iter().map(|(_, d)| d).collect()
    }
}

/// Decides for features in breach.
pub(super) async fn breaches(daemon: Arc<Daemon>) {
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        for (domain, feature, breach) in daemon.due() {
            daemon.decide(&domain, &feature, breach).await;
        }
    }
}

/// Follows peers: their state, and their loss.
pub(super) async fn follow_peers(daemon: Arc<Daemon>, mut events: mpsc::Receiver<PeerEvent>) {
    while let Some(event) = events.recv().await {
        match event {
            PeerEvent::Up { host, version } => {
                tracing::info!(%host, %version, "peer connected");
                daemon.emit(ApiEvent::Peer {
                    host,
                    what: format!("connected, version {version}"),
                });
            }
            PeerEvent::Down { host, reason } => {
                tracing::warn!(%host, %reason, "peer lost");
                lock(&daemon.peer_states).remove(&host);
                daemon.peer_lost(&host, &reason).await;
                daemon.emit(ApiEvent::Peer {
                    host,
                    what: format!("lost: {reason}"),
                });
            }
            PeerEvent::State(mut state) => {
                // Ages are counted by this host's clock.
                let now_ms = clock::now_ms();
                state.clock_ahead_ms = Some(state.at_ms.saturating_sub(now_ms));
                state.at_ms = now_ms;
                // A peer of an older version tells more than it should.
                for f in state.instances.iter_mut().flat_map(|i| &mut i.features) {
                    f.spec = f.spec.for_peers();
                }
                lock(&daemon.peer_states).insert(state.name.clone(), state);
            }
        }
    }
}

impl Daemon {
    /// Moves to or from a lost peer end, unless they are committed.
    async fn peer_lost(self: &Arc<Self>, host: &str, reason: &str) {
        let handles: Vec<_> = lock(&self.outgoing)
            .values()
            .filter(|h| h.job.borrow().to_host == host)
            .map(|h| h.events.clone())
            .collect();
        for events in handles {
            let lost = format!("host {host} was lost: {reason}");
            let _ = events
                .send(crate::moving::source::Event::Failed(lost))
                .await;
        }
        let (daemon, host) = (Arc::clone(self), host.to_owned());
        // Waits for each move's lock, which a guest's slow step may hold.
        tokio::spawn(async move { target::source_lost(&daemon, &host).await });
    }
}
