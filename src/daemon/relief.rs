//! Relief of this host: follows what each feature wants, tells peers what the host will be asked
//! for, and moves features away when that is more than it has (`decision.relieve`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::affinity::{ScoreInput, UsageWindow};
use crate::api::Destination;
use crate::decision::{Cause, Relief, Resident, predict, relieve};
use crate::feature::FeatureName;
use crate::forecast::{Levels, Residuals};
use crate::host::{FeatureStatus, HostLoad, Outlook};
use crate::rules::Mode;

use super::{Daemon, clock, lock};

/// Fewest intervals of the meter in a step.
const INTERVALS: f64 = 3.0;
/// Steps before anything is said.
const LEAST: usize = 10;
/// Stall of the host up to which use tells what was wanted, percent; beyond, nobody knows.
const MOST_STALL: f64 = 50.0;
/// While it moves a feature lacks a tenth of its CPU, and at the end it stands still.
const WHILE_MOVING: f64 = 0.1;

/// Domain and feature.
type Key = (String, FeatureName);

/// What was seen so far.
struct Seen {
    /// Means over so long are followed.
    step_s: f64,
    features: BTreeMap<Key, Levels>,
    /// What no feature causes.
    rest: Levels,
    steps: usize,
}

/// What a feature did in a step.
struct Step {
    key: Key,
    /// CPUs of the host.
    used: f64,
    window: UsageWindow,
    moved_ms: i64,
    downtime_ms: u64,
}

/// CPUs wanted, from CPUs used while the host was stalled for so many percent of the time.
fn wanted(used: f64, stall_percent: f64) -> f64 {
    used / (1.0 - stall_percent.clamp(0.0, MOST_STALL) / 100.0)
}

impl Seen {
    fn new(step_s: f64) -> Self {
        Self {
            step_s,
            features: BTreeMap::new(),
            rest: Levels::new(step_s),
            steps: 0,
        }
    }

    /// Takes a step, in the order of its keys; features that are not in it are forgotten.
    fn take(&mut self, steps: &[Step], load: &HostLoad) {
        self.features
            .retain(|k, _| steps.binary_search_by(|s| s.key.cmp(k)).is_ok());
        for s in steps {
            let levels = self.features.entry(s.key.clone());
            let levels = levels.or_insert_with(|| Levels::new(self.step_s));
            levels.push(wanted(s.used, load.stall_percent));
        }
        let of_features: f64 = steps.iter().map(|s| s.used).sum();
        let rest = (load.cpus_used - of_features).max(0.0);
        self.rest.push(wanted(rest, load.stall_percent));
        self.steps += 1;
    }

    /// What the host will be asked for, once enough was seen; and what all of it was off by.
    fn outlook(&self, residuals: &Residuals) -> Option<(Outlook, Vec<f64>)> {
        if self.steps < LEAST {
            return None;
        }
        let mut sum = residuals.none();
        let mut cpus = 0.0;
        for l in self.features.values().chain([&self.rest]) {
            residuals.add(&mut sum, l);
            cpus += l.level().unwrap_or(0.0);
        }
        let cpus_sd = residuals.variance(&sum, self.steps).sqrt();
        Some((Outlook { cpus, cpus_sd }, sum))
    }
}

impl Daemon {
    /// What each feature that runs did since a moment, milliseconds since the epoch; in the order of
    /// the keys.
    fn steps_since(&self, since_ms: i64) -> Vec<Step> {
        let mut steps = Vec::new();
        let domains: Vec<String> = lock(&self.instances).keys().cloned().collect();
        for domain in domains {
            // One at a time: metering waits for the lock.
            let instances = lock(&self.instances);
            let Some(i) = instances.get(&domain) else {
                continue;
            };
            for (name, f) in &i.features {
                let points = f.recent.after(since_ms);
                let window = UsageWindow::of(&points);
                let Some(used) = window.cpus.map(|s| s.mean) else {
                    continue;
                };
                if f.status() == FeatureStatus::Running {
                    steps.push(Step {
                        key: (domain.clone(), name.clone()),
                        used,
                        window,
                        moved_ms: f.record.moved_at_ms,
                        downtime_ms: f.record.spec.downtime_ms,
                    });
                }
            }
        }
        steps
    }

    fn residents(
        &self,
        seen: &Seen,
        steps: &[Step],
        residuals: &Residuals,
        sum: &[f64],
    ) -> Vec<Resident> {
        let of = steps.iter().filter_map(|s| {
            let (domain, feature) = &s.key;
            let levels = seen.features.get(&s.key)?;
            let cpus = levels.level()?;
            let mut own = residuals.none();
            residuals.add(&mut own, levels);
            let mut demand = self.demand(domain, feature);
            demand.cpus = demand.cpus.max(cpus);
            let past = self.past_of(feature);
            let cost = predict(demand.memory_mib, s.downtime_ms, &past);
            Some(Resident {
                domain: domain.clone(),
                feature: feature.clone(),
                demand,
                outlook: Outlook {
                    cpus,
                    cpus_sd: residuals.variance(&own, seen.steps).sqrt(),
                },
                covariance: residuals.covariance(levels, sum),
                move_s: WHILE_MOVING * cost.seconds + cost.freeze_ms / 1000.0,
                last_moved_ms: (s.moved_ms > 0).then_some(s.moved_ms),
                past,
            })
        });
        of.collect()
    }

    /// The move that relieves this host, if one is worth it, as feature and cause.
    fn relief(&self, residents: &[Resident], steps: &[Step]) -> Option<(Key, Cause)> {
        let (view, policy) = (self.view(), self.policy());
        let affinity = lock(&self.affinity);
        let window = |r: &Resident| {
            let found = steps.binary_search_by(|s| {
                let (domain, feature) = &s.key;
                (domain, feature).cmp(&(&r.domain, &r.feature))
            });
            found.map(|at| steps[at].window).unwrap_or_default()
        };
        let plan = relieve(&view, &policy, &Relief::default(), residents, &|r, h, i| {
            affinity.score(&ScoreInput {
                host: h,
                instance: i,
                feature: &r.feature,
                window: &window(r),
                demand: r.demand,
            })
        })?;
        let to = plan.target()?;
        let to = Destination {
            host: Some(to.host.clone()),
            domain: Some(to.domain.clone()),
            method: None,
        };
        let key = (plan.domain.clone(), plan.feature.clone());
        let text = plan.reason.clone();
        Some((key, Cause::Crowded { to, text }))
    }

    async fn relieve(self: &Arc<Self>, (domain, feature): Key, cause: Cause) {
        if self.decided_lately(&domain, &feature) {
            return;
        }
        match self.decided(&domain, &feature, cause).await {
            Ok(plan) => {
                let what = plan.reason.clone();
                self.act(&domain, &feature, plan, what);
            }
            Err(e) => tracing::debug!(%domain, %feature, error = %e, "no decision"),
        }
    }
}

/// Follows the host's features, and relieves it when it may.
pub(super) async fn relieving(daemon: Arc<Daemon>) {
    let step_s = || {
        let c = &daemon.config;
        c.decision
            .relieve_every_s
            .max(INTERVALS * c.meter.interval_s)
    };
    let mut seen = Seen::new(step_s());
    let mut residuals = Residuals::new(seen.step_s);
    loop {
        tokio::time::sleep(Duration::from_secs_f64(seen.step_s)).await;
        let steps = daemon.steps_since(clock::now_ms() - (seen.step_s * 1000.0) as i64);
        if seen.step_s != step_s() {
            // A reload; what was seen in other steps says nothing of these.
            seen = Seen::new(step_s());
            residuals = Residuals::new(seen.step_s);
            continue;
        }
        let load = lock(&daemon.host).load();
        seen.take(&steps, &load);
        let Some((outlook, sum)) = seen.outlook(&residuals) else {
            continue;
        };
        lock(&daemon.host).outlook = Some(outlook);
        let config = &daemon.config.decision;
        let off = !config.relieve || !config.automatic || config.mode == Mode::Shadow;
        if off {
            continue;
        }
        let limits = Relief::default();
        if limits.shortage_of(&daemon.host_state_now()) < limits.least_gain_s {
            continue;
        }
        let residents = daemon.residents(&seen, &steps, &residuals, &sum);
        // One at a time: what it changes is seen before the next.
        if let Some((key, cause)) = daemon.relief(&residents, &steps) {
            daemon.relieve(key, cause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str, used: f64) -> Step {
        Step {
            key: ("g".to_owned(), FeatureName::new(name).unwrap()),
            used,
            window: UsageWindow::default(),
            moved_ms: 0,
            downtime_ms: 500,
        }
    }

    fn load(cpus_used: f64, stall_percent: f64) -> HostLoad {
        HostLoad {
            cpus_used,
            stall_percent,
            ..HostLoad::default()
        }
    }

    #[test]
    fn what_is_wanted_is_more_than_what_is_used_on_a_full_host() {
        assert_eq!(wanted(3.0, 0.0), 3.0);
        assert_eq!(wanted(3.0, 25.0), 4.0);
        assert_eq!(wanted(3.0, 90.0), 6.0, "beyond half nobody knows");
    }

    #[test]
    fn an_outlook_after_ten_steps_of_features_and_the_rest() {
        let residuals = Residuals::new(60.0);
        let mut seen = Seen::new(60.0);
        for n in 0..10 {
            assert!(seen.outlook(&residuals).is_none());
            let wave = f64::from(n % 2);
            // Two that take turns, and a guest's own half a CPU.
            seen.take(
                &[step("a", 1.0 + wave), step("b", 2.0 - wave)],
                &load(3.5, 0.0),
            );
        }
        let (o, _) = seen.outlook(&residuals).unwrap();
        assert!((o.cpus - 3.5).abs() < 0.3, "{o:?}");
        assert!(o.cpus_sd < 0.2, "their sum hardly varies: {o:?}");
        // One leaves: it is forgotten at once.
        seen.take(&[step("a", 1.0)], &load(1.5, 0.0));
        let (o, _) = seen.outlook(&residuals).unwrap();
        assert!(o.cpus < 2.5, "{o:?}");
        assert_eq!(seen.features.len(), 1);
    }
}
