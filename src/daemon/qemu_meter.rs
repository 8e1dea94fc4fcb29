//! Asks QEMU's monitors, where the administrator wants it: seldom, each domain by itself.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use drover_qmp::command::{QueryBlockstats, QueryStats, QueryStatus};

use crate::hypervisor::HypervisorError;
use crate::qemu::{self, QemuState};

use super::{Daemon, clock, lock};

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
        let chosen: Vec<String> = lock(&daemon.instances)
            .iter()
            .filter(|(name, i)| i.info.active && qemu::chosen(&section.domains, name))
            .map(|(name, _)| name.clone())
            .collect();
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

impl Daemon {
    async fn ask_monitor(&self, domain: &str) {
        let before = lock(&self.instances)
            .get(domain)
            .and_then(|i| i.qemu.clone())
            .unwrap_or_default();
        let state = match self.monitor_state(domain, &before).await {
            Ok(state) => state,
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
        if let Some(i) = lock(&self.instances).get_mut(domain) {
            i.qemu = Some(Box::new(state));
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
            problem: String::new(),
            disks: qemu::disks(&blocks, &before.disks),
            kvm: qemu::kvm(&stats),
        })
    }
}
