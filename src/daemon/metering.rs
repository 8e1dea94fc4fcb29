//! From meter frames to usage, breaches and history, and the host's own load.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::api::ApiEvent;
use crate::attribution::{FeatureUse, attribute};
use crate::feature::{FeatureName, FeatureSpec};
use crate::history::SeriesKey;
use crate::hypervisor::load::{MachineSample, Pair, domain_rates, host_load};
use crate::hypervisor::{DomainStats, ProcessTimes, Processes};
use crate::sample::MeterFrame;
use crate::threshold::Change;
use crate::usage::{Usage, usage};

use super::instance::Instance;
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

/// What a point of use means for its domain's cost.
fn feature_use(u: &Usage) -> FeatureUse {
    let sum = |a: Option<f64>, b: Option<f64>| match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    };
    FeatureUse {
        cpus: u.cpu_percent.map(|p| p / 100.0),
        memory_mib: u.memory_mib,
        net_bps: sum(u.net_rx_bps, u.net_tx_bps),
        disk_bps: sum(u.disk_read_bps, u.disk_write_bps),
    }
}

impl Instance {
    /// Takes a meter frame: a point of use for each feature that has one, with its share of the
    /// domain's cost, and what it started or ended.
    pub fn meter(
        &mut self,
        frame: MeterFrame,
        at_ms: i64,
    ) -> Vec<(FeatureName, Usage, Vec<Change>)> {
        self.take_totals(frame.at_ns, frame.guest);
        let mut points: Vec<(FeatureName, Usage)> = Vec::new();
        for sample in frame.features.into_iter().take(MAX_FEATURES) {
            // A guest can name only features registered for its own domain.
            let Some(f) = self.features.get_mut(&sample.feature) else {
                continue;
            };
            if !f.record.enabled {
                continue;
            }
            let point = f
                .last
                .as_ref()
                .and_then(|before| usage(before, &sample, at_ms, frame.guest.cpus));
            let name = sample.feature.clone();
            f.last = Some(sample);
            points.extend(point.map(|p| (name, p)));
        }
        let uses: Vec<FeatureUse> = points.iter().map(|(_, u)| feature_use(u)).collect();
        let (shares, rest) = attribute(&self.cost, self.busy, &uses);
        self.rest = rest;
        points
            .into_iter()
            .zip(shares)
            .filter_map(|((name, mut point), share)| {
                point.host_cpu_percent = share.cpus.map(|c| c * 100.0);
                let f = self.features.get_mut(&name)?;
                f.push(point);
                let changes = f.watch.observe(&point);
                Some((name, point, changes))
            })
            .collect()
    }
}

impl Daemon {
    /// Takes one meter frame of a domain.
    pub(super) fn meter(self: &Arc<Self>, domain: &str, frame: MeterFrame) {
        let at_ms = clock::now_ms();
        let mut points: Vec<(SeriesKey, Usage)> = Vec::new();
        let mut events = Vec::new();
        if tracing::enabled!(tracing::Level::TRACE) {
            let frame = serde_json::to_string(&frame).unwrap_or_default();
            tracing::trace!(%domain, at_ms, %frame, "meter");
        }
        {
            let mut instances = lock(&self.instances);
            let Some(instance) = instances.get_mut(domain) else {
                return;
            };
            for (name, point, changes) in instance.meter(frame, at_ms) {
                if let Some(f) = instance.features.get(&name) {
                    points.push((series(&f.record.spec), point));
                }
                events.extend(changes.into_iter().map(|change| ApiEvent::Breach {
                    domain: domain.to_owned(),
                    feature: name.clone(),
                    what: change.text,
                    active: change.active,
                }));
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

/// Samples of what is metered on the host, by domain, with the time when they were taken.
#[derive(Default)]
struct Before {
    stats: HashMap<String, (DomainStats, Instant)>,
    processes: HashMap<String, (ProcessTimes, Instant)>,
    machine: Option<(MachineSample, Instant)>,
}

/// Meters the host and its domains at each interval: by libvirt's one bulk call, and by the
/// processes of its QEMUs, which tell even when libvirt or a QEMU does not.
pub(super) async fn host_meter(daemon: Arc<Daemon>) {
    let interval = Duration::from_secs_f64(daemon.config.meter.interval_s);
    let mut tick = tokio::time::interval(interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut before = Before::default();
    let processes = Arc::new(Mutex::new(Processes::default()));
    let mut told = false;
    loop {
        tick.tick().await;
        let names: Vec<String> = lock(&daemon.instances)
            .values()
            .filter(|i| i.info.active)
            .map(|i| i.info.name.clone())
            .collect();
        let reader = Arc::clone(&processes);
        let read = tokio::task::spawn_blocking(move || {
            (
                lock(&reader).read(&names),
                MachineSample::read().ok(),
                Instant::now(),
            )
        });
        // Together, so that a call that hangs does not make the processes late.
        let (stats, read) = tokio::join!(daemon.hypervisor.stats(), read);
        let stats = match stats {
            Ok(s) => {
                told = false;
                s
            }
            Err(e) => {
                // One hung QEMU costs one call; more than one in a row is news.
                if told {
                    tracing::debug!(error = %e, "libvirt gives no statistics");
                } else {
                    tracing::warn!(error = %e, "libvirt gives no statistics");
                }
                told = true;
                Vec::new()
            }
        };
        let at = Instant::now();
        let Ok((times, sample, read_at)) = read else {
            continue;
        };
        daemon.take_host_sample(&mut before, stats, at, times, sample, read_at);
    }
}

impl Daemon {
    fn take_host_sample(
        &self,
        before: &mut Before,
        stats: Vec<DomainStats>,
        at: Instant,
        times: HashMap<String, ProcessTimes>,
        machine: Option<MachineSample>,
        read_at: Instant,
    ) {
        let ago = |then: Instant, now: Instant| now.saturating_duration_since(then).as_secs_f64();
        let stats: HashMap<String, DomainStats> =
            stats.into_iter().map(|s| (s.name.clone(), s)).collect();
        let mut rates = Vec::new();
        {
            let mut instances = lock(&self.instances);
            for (name, instance) in instances.iter_mut() {
                let stats = Pair {
                    before: before.stats.get(name).map(|(s, t)| (s, ago(*t, at))),
                    after: stats.get(name),
                };
                let process = Pair {
                    before: before
                        .processes
                        .get(name)
                        .map(|(p, t)| (p, ago(*t, read_at))),
                    after: times.get(name),
                };
                let r = domain_rates(&stats, &process);
                instance.cost = r.cost;
                if instance.info.active {
                    rates.push((r, instance.info.vcpus.max(1)));
                }
            }
            before.stats.retain(|name, _| instances.contains_key(name));
            before
                .processes
                .retain(|name, _| instances.contains_key(name));
        }
        let pair = before
            .machine
            .as_ref()
            .zip(machine.as_ref())
            .map(|((b, t), m)| ((b, m), ago(*t, read_at)));
        let load = host_load(
            self.config.host.load_source,
            pair.map(|p| p.0),
            &rates,
            pair.map_or(0.0, |p| p.1),
        );
        lock(&self.host).push(load);
        // A sample that is missing now is compared with the one before it, next time.
        before
            .stats
            .extend(stats.into_iter().map(|(n, s)| (n, (s, at))));
        before
            .processes
            .extend(times.into_iter().map(|(n, p)| (n, (p, read_at))));
        if let Some(m) = machine {
            before.machine = Some((m, read_at));
        }
    }
}
