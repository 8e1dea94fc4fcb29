//! From meter frames to usage, breaches and history, and the host's own load.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::api::ApiEvent;
use crate::feature::FeatureSpec;
use crate::history::SeriesKey;
use crate::hypervisor::DomainStats;
use crate::hypervisor::load::{MachineSample, domain_rates, host_load};
use crate::sample::MeterFrame;
use crate::usage::{Usage, usage};

use super::{Daemon, clock, lock};

/// Features in one frame that are looked at; a guest has no more.
const MAX_FEATURES: usize = 1_000;

/// Longest wait for the history.
const APPEND: Duration = Duration::from_secs(60);
/// Pause between looks for history that is old enough to go.
const EXPIRE: Duration = Duration::from_secs(3600);

/// Drops history older than it is kept.
pub(super) async fn expire(daemon: Arc<Daemon>) {
    loop {
        match daemon.history.expire(clock::now_ms()).await {
            Ok(0) => {}
            Ok(n) => tracing::info!(partitions = n, "old history dropped"),
            Err(e) => tracing::error!(error = %e, "old history not dropped"),
        }
        tokio::time::sleep(EXPIRE).await;
    }
}

/// The history's key of a feature.
pub(super) fn series(spec: &FeatureSpec) -> SeriesKey {
    SeriesKey {
        group: spec.group.clone(),
        feature: spec.name.clone(),
    }
}

impl Daemon {
    /// Takes one meter frame of a domain.
    pub(super) fn meter(self: &Arc<Self>, domain: &str, frame: MeterFrame) {
        let at_ms = clock::now_ms();
        let mut points: Vec<(SeriesKey, Usage)> = Vec::new();
        let mut events = Vec::new();
        {
            let mut instances = lock(&self.instances);
            let Some(instance) = instances.get_mut(domain) else {
                return;
            };
            instance.totals = Some(frame.guest);
            for sample in frame.features.into_iter().take(MAX_FEATURES) {
                // A guest can name only features registered for its own domain.
                let Some(f) = instance.features.get_mut(&sample.feature) else {
                    continue;
                };
                if !f.record.enabled {
                    continue;
                }
                let point = f
                    .last
                    .as_ref()
                    .and_then(|before| usage(before, &sample, at_ms, frame.guest.cpus));
                f.last = Some(sample);
                let Some(point) = point else { continue };
                f.push(point);
                points.push((series(&f.record.spec), point));
                for change in f.watch.observe(&point) {
                    events.push(ApiEvent::Breach {
                        domain: domain.to_owned(),
                        feature: f.record.spec.name.clone(),
                        what: change.text,
                        active: change.active,
                    });
                }
            }
        }
        for event in events {
            if let ApiEvent::Breach {
                feature,
                what,
                active,
                ..
            } = &event
            {
                tracing::info!(%domain, %feature, %what, active, "breach");
            }
            self.emit(event);
        }
        if points.is_empty() {
            return;
        }
        tracing::trace!(%domain, features = points.len(), "metered");
        self.learn(domain, &points);
        let history = self.history.clone();
        tokio::spawn(async move {
            match tokio::time::timeout(APPEND, history.append(points)).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => tracing::error!(error = %e, "samples not recorded"),
                Err(_) => tracing::error!("samples not recorded: the history does not answer"),
            }
        });
    }
}

/// Meters the host and its domains by libvirt's one bulk call at each interval.
pub(super) async fn host_meter(daemon: Arc<Daemon>) {
    let mut tick = tokio::time::interval(Duration::from_secs_f64(daemon.config.meter.interval_s));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut before: HashMap<String, DomainStats> = HashMap::new();
    let mut machine: Option<MachineSample> = None;
    let mut at = Instant::now();
    loop {
        tick.tick().await;
        let stats = match daemon.hypervisor.stats().await {
            Ok(s) => s,
            Err(e) => {
                tracing::warn!(error = %e, "libvirt gives no statistics");
                continue;
            }
        };
        let now = Instant::now();
        let elapsed = now.duration_since(at).as_secs_f64();
        at = now;
        let sample = MachineSample::read().ok();
        let mut rates = Vec::new();
        {
            let mut instances = lock(&daemon.instances);
            for s in &stats {
                let Some(old) = before.get(&s.uuid) else {
                    continue;
                };
                let r = domain_rates(old, s, elapsed);
                if let Some(i) = instances.get_mut(&s.name) {
                    i.cpus_used = r.cpus_used.unwrap_or(0.0);
                }
                rates.push((r, s.vcpus.unwrap_or(1)));
            }
        }
        let pair = machine.as_ref().zip(sample.as_ref());
        let load = host_load(daemon.config.host.load_source, pair, &rates, elapsed);
        lock(&daemon.host).push(load);
        machine = sample;
        before = stats.into_iter().map(|s| (s.uuid.clone(), s)).collect();
    }
}
