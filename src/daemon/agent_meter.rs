//! Metering of guests without the helper through their QEMU guest agent: seldom, with timeouts,
//! each guest by itself. Which rung of the ladder a guest is on, and why, is kept with it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::feature::FeatureSpec;
use crate::guest::cgroups::{self, Access};
use crate::host::{HelperState, MeterLevel, Metering};

use super::{Daemon, lock};

/// Pause between looks for guests that are due.
const LOOK: Duration = Duration::from_secs(1);
/// How long a helper may be away before its guest is metered without it.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an agent's answer to what it allows holds, and the pause after a failure.
const AGAIN: Duration = Duration::from_secs(60);
/// Longest time for one guest's frame: a hung agent is given up then.
const LIMIT: Duration = Duration::from_secs(60);

/// What is known of a guest that is metered without a helper.
#[derive(Debug)]
struct Guest {
    since: Instant,
    due: Instant,
    access: Option<(Access, Instant)>,
    busy: bool,
}

type Guests = Arc<Mutex<HashMap<String, Guest>>>;

/// Looks after all such guests, for ever.
pub(super) async fn run(daemon: Arc<Daemon>) {
    let guests = Guests::default();
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let now = Instant::now();
        let without = daemon.without_helper();
        let mut known = lock(&guests);
        known.retain(|domain, g| g.busy || without.contains_key(domain));
        for (domain, specs) in without {
            let guest = known.entry(domain.clone()).or_insert(Guest {
                since: now,
                due: now,
                access: None,
                busy: false,
            });
            if guest.busy || now < guest.due || now.duration_since(guest.since) < PATIENCE {
                continue;
            }
            guest.busy = true;
            guest.due = now + daemon.agent_interval();
            let access = guest
                .access
                .filter(|(_, at)| now.duration_since(*at) < AGAIN)
                .map(|(a, _)| a);
            // A slow agent holds up nobody but its own guest.
            let (daemon, guests) = (Arc::clone(&daemon), Arc::clone(&guests));
            tokio::spawn(async move {
                let work = daemon.meter_by_agent(&domain, &specs, access);
                let found = tokio::time::timeout(LIMIT, work).await;
                let mut known = lock(&guests);
                let Some(guest) = known.get_mut(&domain) else {
                    return;
                };
                guest.busy = false;
                match found {
                    Ok(Some(access)) if guest.access.is_none_or(|(a, _)| a != access) => {
                        guest.access = Some((access, Instant::now()));
                    }
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => {
                        guest.access = None;
                        guest.due = Instant::now() + AGAIN;
                    }
                }
            });
        }
    }
}

impl Daemon {
    fn agent_interval(&self) -> Duration {
        Duration::from_secs_f64(self.config.meter.agent_interval_s)
    }

    /// Running domains with enabled features and without a connected helper.
    fn without_helper(&self) -> HashMap<String, Vec<FeatureSpec>> {
        let instances = lock(&self.instances);
        instances
            .iter()
            .filter(|(_, i)| i.info.running && !matches!(i.helper, HelperState::Connected { .. }))
            .filter_map(|(domain, i)| {
                let enabled = i.features.values().filter(|f| f.record.enabled);
                let specs: Vec<FeatureSpec> = enabled.map(|f| f.record.spec.clone()).collect();
                (!specs.is_empty()).then(|| (domain.clone(), specs))
            })
            .collect()
    }

    /// Meters a guest once; what its agent allows, or `None` when it did not answer.
    async fn meter_by_agent(
        self: &Arc<Self>,
        domain: &str,
        specs: &[FeatureSpec],
        known: Option<Access>,
    ) -> Option<Access> {
        let access = match known {
            Some(a) => a,
            None => match cgroups::access(&self.hypervisor, domain).await {
                Ok(a) => a,
                Err(e) => {
                    self.set_rung(domain, MeterLevel::None, format!("no helper, and {e}"));
                    return None;
                }
            },
        };
        let every = self.config.meter.agent_interval_s;
        let install = format!("'drover guest install {domain}' gives the rest");
        let (level, reason) = match access {
            Access::Exec => (
                MeterLevel::Agent,
                format!(
                    "no helper: cgroups are read through the guest agent every {every} s, without \
                     network; {install}"
                ),
            ),
            Access::Files => (
                MeterLevel::Agent,
                format!(
                    "no helper, and the guest agent forbids commands: few files are read through it \
                     every {every} s, of features at their usual places; {install}"
                ),
            ),
            Access::Guest(_) => (
                MeterLevel::Guest,
                "no helper, and the guest agent forbids commands and files (the default in the \
                 RHEL family): features are not metered; allow guest-exec in the guest, or copy \
                 the helper into it"
                    .to_owned(),
            ),
        };
        self.set_rung(domain, level, reason);
        match cgroups::frame(&self.hypervisor, domain, access, specs).await {
            Ok(frame) => {
                // The helper may have come meanwhile, and knows better.
                if self.guest(domain).is_none() && frame.guest.cpus > 0 {
                    self.meter(domain, frame);
                }
                Some(access)
            }
            Err(e) => {
                tracing::debug!(%domain, error = %e, "not metered through the guest agent");
                self.set_rung(domain, MeterLevel::None, format!("no helper, and {e}"));
                None
            }
        }
    }

    fn set_rung(&self, domain: &str, level: MeterLevel, reason: String) {
        let mut instances = lock(&self.instances);
        if let Some(i) = instances.get_mut(domain) {
            if i.fallback.level != level {
                tracing::info!(%domain, level = level.as_str(), %reason, "metered without the helper");
            }
            i.fallback = Metering { level, reason };
        }
    }
}
