//! Asks QEMU's monitors, where the administrator wants it: seldom, each domain by itself. Listens to
//! what those QEMUs tell by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use drover_qmp::command::{BlockLatencyHistogramSet, QueryBlockstats, QueryStats, QueryStatus};
use tokio::sync::mpsc;

use crate::hypervisor::{HypervisorError, MonitorEvent};
use crate::qemu::{self, QemuState};

use super::{Daemon, clock, lock};

/// Shortest time between two log lines about trouble of one domain: a failing disk tells of every
/// operation.
const QUIET: Duration = Duration::from_secs(60);

/// Looks after all chosen domains, for ever; returns when none are.
pub(super) async fn run(daemon: Arc<Daemon>) {
    let section = daemon.config.qmp.clone();
    if section.domains.is_empty() {
        return;
    }
    tracing::info!(domains = ?section.domains, "QEMU's monitors are asked; libvirt marks such domains as tainted");
    let busy: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let mut tick = tokio::time::interval(Duration::from_secs_f64(section.interval_s));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let mut chosen = Vec::new();
        for (name, i) in lock(&daemon.instances).iter_mut() {
            if !i.info.active {
                // Of a QEMU that has ended; the next one counts from nothing.
                i.qemu = None;
            } else if qemu::chosen(&section.domains, name) {
                chosen.push(name.clone());
            }
        }
        for domain in chosen {
            // A slow monitor holds up nobody but its own domain.
            if !lock(&busy).insert(domain.clone()) {
                continue;
            }
            let (daemon, busy) = (Arc::clone(&daemon), Arc::clone(&busy));
            tokio::spawn(async move {
                daemon.ask_monitor(&domain).await;
                lock(&busy).remove(&domain);
            });
        }
    }
}

/// Notes what the chosen domains' QEMUs tell, for ever.
pub(super) async fn listen(daemon: Arc<Daemon>, mut events: mpsc::Receiver<MonitorEvent>) {
    let mut logged: BTreeMap<String, Instant> = BTreeMap::new();
    while let Some(MonitorEvent { domain, event }) = events.recv().await {
        if !qemu::chosen(&daemon.config.qmp.domains, &domain) {
            continue;
        }
        let noted = {
            let mut instances = lock(&daemon.instances);
            let Some(i) = instances.get_mut(&domain).filter(|i| i.info.active) else {
                continue;
            };
            let state = i.qemu.get_or_insert_default();
            state.events.note(&event, clock::now_ms())
        };
        tracing::debug!(%domain, event = noted.name, text = noted.text, "QEMU tells");
        let now = Instant::now();
        logged.retain(|_, at| now.duration_since(*at) < QUIET);
        if qemu::is_trouble(&event) && !logged.contains_key(&domain) {
            tracing::warn!(%domain, event = noted.name, text = noted.text, "QEMU tells of trouble");
            logged.insert(domain, now);
        }
    }
}

impl Daemon {
    async fn ask_monitor(&self, domain: &str) {
        let before = lock(&self.instances)
            .get(domain)
            .and_then(|i| i.qemu.clone())
            .unwrap_or_default();
        let state = match self.monitor_state(domain, &before).await {
            Ok(state) => {
                if before.problem.is_empty() && !state.problem.is_empty() {
                    tracing::warn!(%domain, problem = state.problem, "QEMU refuses");
                }
                state
            }
            Err(e) => {
                if before.problem.is_empty() {
                    tracing::warn!(%domain, error = %e, "QEMU's monitor does not answer");
                }
                QemuState {
                    problem: e.to_string(),
                    ..*before
                }
            }
        };
        let mut instances = lock(&self.instances);
        if let Some(i) = instances.get_mut(domain).filter(|i| i.info.active) {
            // Events went on meanwhile.
            let events = i.qemu.take().map(|q| q.events).unwrap_or_default();
            i.qemu = Some(Box::new(QemuState { events, ..state }));
        }
    }

    async fn monitor_state(
        &self,
        domain: &str,
        before: &QemuState,
    ) -> Result<QemuState, HypervisorError> {
        let hv = &self.hypervisor;
        let status = hv.monitor(domain, &QueryStatus).await?;
        let blocks = hv.monitor(domain, &QueryBlockstats).await?;
        let bounds = self.config.qmp.latency_bounds_ns();
        let mut problem = String::new();
        for id in qemu::without_histograms(&blocks, &bounds) {
            let set = BlockLatencyHistogramSet {
                id,
                boundaries: bounds.clone(),
            };
            match hv.monitor_set(domain, &set).await {
                Ok(_) => tracing::info!(%domain, disk = set.id, "QEMU keeps latencies"),
                Err(e) => problem = format!("latencies of {}: {e}", set.id),
            }
        }
        // QEMU before 7.1 does not know it.
        let mut stats = Vec::new();
        for target in [QueryStats::Vm, QueryStats::Vcpu] {
            match hv.monitor(domain, &target).await {
                Ok(found) => stats.extend(found),
                Err(e) => tracing::debug!(%domain, error = %e, "no statistics of KVM"),
            }
        }
        Ok(QemuState {
            at_ms: clock::now_ms(),
            status: status.status,
            problem,
            disks: qemu::disks(&blocks, &before.disks),
            kvm: qemu::kvm(&stats),
            events: qemu::Events::default(),
        })
    }
}
