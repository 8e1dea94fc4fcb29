//! Acting before a limit is crossed: forecasts of every metered feature that has thresholds, made
//! in the background, and what they expect as causes for [`placement`](super::placement).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::affinity::Demand;
use crate::api::{ApiError, ApiEvent, FeatureForecast, SeriesForecast};
use crate::columns::{COLUMNS, Column};
use crate::config::ForecastSection;
use crate::decision::{BreachCause, View};
use crate::feature::{FeatureName, Resource, Threshold};
use crate::forecast::{
    Expected, Forecast, MOST_SERIES, NotYet, Pool, Series, Settings, TRAIN_EVERY_MS, Watch,
    forecast_breach, forecast_with,
};
use crate::history::SeriesKey;
use crate::usage::Usage;

use super::{Daemon, clock, lock};

/// History that a forecast looks back on, milliseconds: what a series of 60 s steps holds.
const BACK_MS: i64 = 12 * 3_600_000;
/// Most points of history read for a feature.
const MOST_POINTS: usize = 45_000;
/// Steps in which the history is read; the finest of a series.
const STEP_MS: i64 = 10_000;
/// Longest wait for the history of a feature.
const READ: Duration = Duration::from_secs(10);
/// Shortest time between two readings of a feature's history, unless it got another threshold.
const READ_AGAIN_MS: i64 = 120_000;
/// Longest time that can be looked ahead, milliseconds.
const MOST_LEAD_MS: i64 = 3_600_000;
/// Time of one pass, at most; features that it did not get to come first in the next.
const BUDGET: Duration = Duration::from_secs(5);
/// CPU time of a training, at most.
const TRAINING: Duration = Duration::from_secs(2);
/// Part of the time that passes may take: one in so many.
const SHARE: f64 = 20.0;

/// Domain and feature.
type Key = (String, FeatureName);
type Outcome = Vec<(Resource, Result<Forecast, NotYet>)>;

/// What is expected, as the rest of the daemon sees it.
#[derive(Debug, Default)]
pub(super) struct Forecasts {
    watches: BTreeMap<Key, Watch>,
    /// What the series of this host taught.
    pool: Arc<Pool>,
}

/// A feature to forecast.
struct Job {
    key: Key,
    series_key: SeriesKey,
    thresholds: Vec<Threshold>,
    /// Thresholds in measured breach.
    measured: Vec<Threshold>,
    /// What is new since the last pass: resource, time, value.
    news: Vec<(Resource, i64, f64)>,
    /// The kept series and the news leave nothing out.
    whole: bool,
}

/// What the task keeps of a feature between two passes.
#[derive(Debug, Default)]
struct Kept {
    /// One or two; a tree would have room for eleven.
    series: Vec<(Resource, Series)>,
    /// When it was last forecast.
    at_ms: i64,
    /// History has to be read, again: there was too little, and more may have come from the
    /// feature's former host.
    read: bool,
    /// When it was read, milliseconds since the epoch.
    read_ms: i64,
}

impl ForecastSection {
    fn settings(&self) -> Settings {
        Settings {
            min_points: self.min_points,
            ..Settings::default()
        }
    }
}

impl Kept {
    fn of(&self, resource: Resource) -> Option<&Series> {
        let mut all = self.series.iter();
        all.find(|(r, _)| *r == resource).map(|(_, s)| s)
    }

    /// The series of a resource, a new one of points that come at this interval when there is none.
    fn of_mut(&mut self, resource: Resource, interval_ms: i64) -> &mut Series {
        let at = self.series.iter().position(|(r, _)| *r == resource);
        let at = at.unwrap_or_else(|| {
            self.series.reserve_exact(1);
            self.series.push((resource, Series::new(interval_ms)));
            self.series.len() - 1
        });
        &mut self.series[at].1
    }
}

/// Adds one resource's values of these points.
fn push(series: &mut Series, resource: Resource, points: &[Usage]) {
    for u in points {
        if let Some(v) = u.get(resource) {
            series.push(u.at_ms, v);
        }
    }
}

/// Whether a limit is within what the series may do: twice the most that it ever rose within the
/// longest time that can be looked ahead. What is further away costs no forecast. Too short a series
/// is for the forecast to say.
fn near(series: &Series, resource: Resource, limits: &[Threshold], settings: &Settings) -> bool {
    let Some((last, rise)) = series.largest_rise(MOST_LEAD_MS, settings.min_points) else {
        return true;
    };
    let of = limits.iter().filter(|t| t.resource == resource);
    of.map(|t| t.limit).any(|limit| last + 2.0 * rise >= limit)
}

/// Forecasts jobs, the longest waiting first, until `until`. Returns those that were done.
fn compute(
    jobs: &[Job],
    kept: &mut BTreeMap<Key, Kept>,
    (settings, pool): (&Settings, &Pool),
    now_ms: i64,
    until: Instant,
) -> Vec<(usize, Outcome)> {
    let waiting = |j: &Job| kept.get(&j.key).map_or(0, |k| k.at_ms);
    let mut order: Vec<usize> = (0..jobs.len()).collect();
    order.sort_by_key(|i| waiting(&jobs[*i]));
    let mut done = Vec::new();
    for i in order {
        if Instant::now() >= until {
            break;
        }
        let Some(k) = kept.get_mut(&jobs[i].key) else {
            continue;
        };
        k.at_ms = now_ms;
        let of = k.series.iter();
        let outcome: Outcome = of
            .filter(|(r, s)| near(s, *r, &jobs[i].thresholds, settings))
            .map(|(r, s)| (*r, forecast_with(s, Some(pool), settings, now_ms)))
            .collect();
        k.read = outcome
            .iter()
            .any(|(_, f)| matches!(f, Err(NotYet::Short { .. })));
        done.push((i, outcome));
    }
    done
}

impl Daemon {
    /// Features of a domain to forecast, and those to leave as they are: they move.
    fn forecast_jobs(&self, domain: &str, kept: &BTreeMap<Key, Kept>) -> (Vec<Job>, Vec<Key>) {
        let interval_ms = (self.config.meter.interval_s * 1000.0) as i64;
        let (mut jobs, mut moving) = (Vec::new(), Vec::new());
        let instances = lock(&self.instances);
        let features = instances.get(domain).map(|i| &i.features);
        for (name, f) in features.into_iter().flatten() {
            let key = (domain.to_owned(), name.clone());
            let thresholds = &f.record.spec.thresholds;
            if !f.record.enabled || thresholds.is_empty() {
                continue;
            }
            if f.moving.is_some() {
                moving.push(key);
                continue;
            }
            // Between the newest point that is kept and the oldest recent one more must not be
            // missing than an interval or so.
            let begin = f.recent.since_ms().unwrap_or(i64::MAX);
            let last = |t: &Threshold| kept.get(&key)?.of(t.resource)?.last_ms();
            let whole = thresholds
                .iter()
                .all(|t| last(t).is_some_and(|at| begin.saturating_sub(at) < 3 * interval_ms));
            let known = thresholds.iter().map(|t| last(t).unwrap_or(i64::MIN));
            let newer = f.recent.after(known.min().unwrap_or(i64::MIN));
            let value = |t: &Threshold, u: &Usage| Some((t.resource, u.at_ms, u.get(t.resource)?));
            jobs.push(Job {
                series_key: super::metering::series(&f.record.spec),
                measured: f.watch.active().map(|b| b.threshold).collect(),
                news: thresholds
                    .iter()
                    .flat_map(|t| newer.iter().filter_map(|u| value(t, u)))
                    .collect(),
                thresholds: thresholds.clone(),
                whole,
                key,
            });
        }
        (jobs, moving)
    }

    async fn points(&self, key: &SeriesKey, now_ms: i64) -> Result<Vec<Usage>, String> {
        let query = crate::history::Query {
            since_ms: now_ms - BACK_MS,
            until_ms: now_ms,
            step_ms: Some(STEP_MS),
            limit: MOST_POINTS,
        };
        // Forecasts are of what thresholds can be about.
        let columns: Vec<Column> = COLUMNS
            .iter()
            .filter(|c| c.resource.is_some())
            .copied()
            .collect();
        let page = self.history.query_columns(key, query, &columns);
        match tokio::time::timeout(READ, page).await {
            Ok(Ok(page)) => Ok(page.points.into_iter().map(|p| p.mean).collect()),
            Ok(Err(e)) => Err(format!("history: {e}")),
            Err(_) => Err("the history does not answer".to_owned()),
        }
    }

    /// Brings the kept series of a job up to now.
    async fn gather(&self, job: &Job, kept: &mut Kept, now_ms: i64) {
        let interval_ms = (self.config.meter.interval_s * 1000.0) as i64;
        let watched = |r: &Resource| job.thresholds.iter().any(|t| t.resource == *r);
        kept.series.retain(|(r, _)| watched(r));
        let unknown = |t: &Threshold| kept.of(t.resource).is_none();
        let again = job.thresholds.iter().any(unknown)
            || now_ms.saturating_sub(kept.read_ms) >= READ_AGAIN_MS;
        let mut points = Vec::new();
        if (kept.read || !job.whole) && again {
            kept.read_ms = now_ms;
            match self.points(&job.series_key, now_ms).await {
                Ok(p) => {
                    kept.series.clear();
                    points = p;
                }
                Err(e) => {
                    let (domain, feature) = &job.key;
                    tracing::warn!(%domain, %feature, error = %e, "forecast without history");
                }
            }
        }
        for t in &job.thresholds {
            let series = kept.of_mut(t.resource, interval_ms);
            push(series, t.resource, &points);
            for (_, at_ms, value) in job.news.iter().filter(|(r, ..)| *r == t.resource) {
                series.push(*at_ms, *value);
            }
        }
    }

    /// Compares a forecast with the thresholds and tells what changed.
    fn judge(&self, job: &Job, outcome: Outcome, now_ms: i64) {
        let config = &self.config.forecast;
        let (domain, feature) = &job.key;
        let mut forecasts = Vec::new();
        for (resource, outcome) in outcome {
            match outcome {
                Ok(f) => {
                    tracing::trace!(%domain, %feature, %resource, method = %f.method, mae = f.mae,
                        mase = f.mase, points = f.points, "forecast");
                    forecasts.push((resource, f));
                }
                Err(e) => tracing::trace!(%domain, %feature, %resource, why = %e, "no forecast"),
            }
        }
        let mut found = forecast_breach(
            &job.thresholds,
            &forecasts,
            config.confidence,
            config.lead_s,
            now_ms,
        );
        let changes = {
            let mut all = lock(&self.forecasts);
            let watch = all.watches.entry(job.key.clone()).or_default();
            let mut changes = watch.keep(&job.thresholds, now_ms);
            // What is there already need not be foretold.
            found.retain(|e| !job.measured.contains(&e.threshold) || watch.stands(&e.threshold));
            changes.extend(watch.observe(&found, now_ms));
            changes
        };
        self.tell(&job.key, changes);
    }

    fn tell(&self, (domain, feature): &Key, changes: Vec<crate::threshold::Change>) {
        for change in changes {
            tracing::info!(%domain, %feature, what = %change.text, active = change.active, "breach");
            self.emit(ApiEvent::Breach {
                domain: domain.clone(),
                feature: feature.clone(),
                what: change.text,
                active: change.active,
            });
        }
    }

    /// What is expected to be breached, per feature.
    pub(super) fn expected(&self) -> BTreeMap<Key, Expected> {
        let all = lock(&self.forecasts);
        let first = |(k, w): (&Key, &Watch)| Some((k.clone(), w.first()?.clone()));
        all.watches.iter().filter_map(first).collect()
    }

    /// What is expected of one feature, if its thresholds still are what was looked at.
    pub(super) fn expected_of(&self, domain: &str, feature: &FeatureName) -> Option<Expected> {
        let key = (domain.to_owned(), feature.clone());
        let expected = lock(&self.forecasts).watches.get(&key)?.first()?.clone();
        let instances = lock(&self.instances);
        let f = instances.get(domain)?.features.get(feature)?;
        holds(&expected, f.record.enabled, &f.record.spec.thresholds).then_some(expected)
    }

    /// A fresh forecast of every resource of a feature, for users.
    pub(super) async fn forecast_now(
        &self,
        domain: &str,
        feature: &FeatureName,
    ) -> Result<FeatureForecast, ApiError> {
        let (spec, recent) = {
            let instances = lock(&self.instances);
            let (_, f) = self.find(&instances, domain, feature)?;
            (f.record.spec.clone(), f.recent.all())
        };
        // Anyone may ask; one at a time leaves the other processors to the daemon.
        let _turn = self.forecast_turn.lock().await;
        let now_ms = clock::now_ms();
        let mut points = self
            .points(&super::metering::series(&spec), now_ms)
            .await
            .map_err(ApiError::Failed)?;
        points.extend(recent);
        points.sort_by_key(|u| u.at_ms);
        let config = self.config.forecast.clone();
        let interval_ms = (self.config.meter.interval_s * 1000.0) as i64;
        let thresholds = spec.thresholds;
        let pool = Arc::clone(&lock(&self.forecasts).pool);
        let series = tokio::task::spawn_blocking(move || {
            let all = Resource::ALL.into_iter();
            all.map(|resource| {
                let mut series = Series::new(interval_ms);
                push(&mut series, resource, &points);
                let outcome = forecast_with(&series, Some(&pool), &config.settings(), now_ms);
                shown(resource, &thresholds, outcome, &config, now_ms)
            })
            .collect()
        })
        .await
        .map_err(|e| ApiError::Failed(e.to_string()))?;
        Ok(FeatureForecast {
            host: self.name().to_owned(),
            domain: domain.to_owned(),
            feature: feature.clone(),
            at_ms: now_ms,
            confidence: self.config.forecast.confidence,
            lead_s: self.config.forecast.lead_s,
            breach: self.expected_of(domain, feature).map(|e| e.text),
            series,
        })
    }
}

/// Whether what was expected is still of interest.
pub(super) fn holds(expected: &Expected, enabled: bool, thresholds: &[Threshold]) -> bool {
    enabled && thresholds.contains(&expected.threshold)
}

/// An expectation as a cause of a decision.
pub(super) fn cause(expected: &Expected) -> BreachCause {
    BreachCause {
        resource: expected.threshold.resource,
        text: expected.text.clone(),
    }
}

fn shown(
    resource: Resource,
    thresholds: &[Threshold],
    outcome: Result<Forecast, NotYet>,
    config: &ForecastSection,
    now_ms: i64,
) -> SeriesForecast {
    let threshold = thresholds.iter().find(|t| t.resource == resource).copied();
    let mut out = SeriesForecast {
        resource,
        threshold,
        ..SeriesForecast::default()
    };
    match outcome {
        Err(e) => out.problem = Some(e.to_string()),
        Ok(f) => {
            out.method = Some(f.method.to_string());
            out.mae = Some(f.mae);
            out.mase = f.mase;
            out.step_s = f.step_ms as f64 / 1000.0;
            out.points = f.points as u64;
            out.steps.clone_from(&f.steps);
            let of = [(resource, f)];
            let found = forecast_breach(thresholds, &of, config.confidence, config.lead_s, now_ms);
            out.expected = found.into_iter().next().map(|e| e.text);
        }
    }
    out
}

/// The view and the demand as they are expected to be at the breach: the feature will have grown,
/// where it is as well as where it could go. What is expected is the guest's view, the rest the
/// host's: `host_per_guest` CPUs of the host are one of the guest.
pub(super) fn grow(
    view: &mut View,
    demand: &mut Demand,
    domain: &str,
    expected: &Expected,
    host_per_guest: f64,
) {
    let me = view.me.clone();
    let Some(host) = view.hosts.iter_mut().find(|h| h.name == me) else {
        return;
    };
    let Some(guest) = host.instances.iter_mut().find(|i| i.domain == domain) else {
        return;
    };
    let load = &mut host.load;
    let more = |now: &mut f64, then: f64| {
        let by = (then - *now).max(0.0);
        *now += by;
        by
    };
    match expected.threshold.resource {
        Resource::Cpu => {
            // A guest cannot use more than it has.
            let cpus = (expected.value / 100.0).min(guest.vcpus) * host_per_guest;
            let by = more(&mut demand.cpus, cpus);
            guest.cpus_used += by;
            load.cpus_used += by;
        }
        Resource::Memory => {
            let by = more(&mut demand.memory_mib, expected.value);
            load.memory_used_mib += by;
            if let Some(free) = &mut guest.memory_available_mib {
                *free = (*free - by).max(0.0);
            }
        }
        Resource::NetRx | Resource::NetTx => {
            load.net_bps += more(&mut demand.net_bps, expected.value);
        }
        Resource::DiskRead | Resource::DiskWrite => {
            load.disk_bps += more(&mut demand.disk_bps, expected.value);
        }
    }
}

/// Series to learn from: some of all, evenly.
fn lessons(kept: &BTreeMap<Key, Kept>) -> Vec<Series> {
    let all = kept.values().flat_map(|k| k.series.iter().map(|(_, s)| s));
    let stride = all.clone().count().div_ceil(MOST_SERIES).max(1);
    all.step_by(stride).cloned().collect()
}

/// Has the trees trained again and again, on a thread of the lowest priority. After a start they come
/// anew with the series.
#[derive(Default)]
struct Teacher {
    last_ms: i64,
    running: Option<tokio::sync::oneshot::Receiver<Pool>>,
}

impl Teacher {
    /// Takes what a training made, and begins one when it is time.
    fn turn(
        &mut self,
        daemon: &Daemon,
        kept: &BTreeMap<Key, Kept>,
        settings: &Settings,
        now_ms: i64,
    ) {
        use tokio::sync::oneshot::error::TryRecvError;
        if let Some(answer) = &mut self.running {
            match answer.try_recv() {
                Ok(pool) => lock(&daemon.forecasts).pool = Arc::new(pool),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Closed) => {
                    tracing::error!("the training of forecasts ended abnormally");
                }
            }
            self.running = None;
        }
        // A clock that was put back must not put trainings off.
        if (0..TRAIN_EVERY_MS).contains(&now_ms.saturating_sub(self.last_ms)) || kept.is_empty() {
            return;
        }
        self.last_ms = now_ms;
        let lessons = lessons(kept);
        let pool = Arc::clone(&lock(&daemon.forecasts).pool);
        let settings = settings.clone();
        let work = move |go: &mut dyn FnMut() -> bool| pool.trained(lessons.iter(), &settings, go);
        match super::affinity::apart("forecasts", TRAINING, work) {
            Ok(answer) => self.running = Some(answer),
            Err(e) => tracing::error!(error = %e, "no thread for the training of forecasts"),
        }
    }
}

/// Forecasts again and again, off the main path.
pub(super) async fn forecasting(daemon: Arc<Daemon>) {
    let config = daemon.config.forecast.clone();
    if !config.enabled {
        tracing::info!("forecasts are off: only measured breaches are acted on");
        return;
    }
    let mut tick = tokio::time::interval(Duration::from_secs_f64(config.every_s));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut kept: BTreeMap<Key, Kept> = BTreeMap::new();
    let mut teacher = Teacher::default();
    loop {
        tick.tick().await;
        let domains: Vec<String> = lock(&daemon.instances).keys().cloned().collect();
        let mut jobs: Vec<Job> = Vec::new();
        let mut here: BTreeSet<Key> = BTreeSet::new();
        // A domain at a time: the lock is held briefly, and what is new need not be kept.
        for domain in domains {
            let (own, moving) = daemon.forecast_jobs(&domain, &kept);
            here.extend(moving);
            for mut job in own {
                here.insert(job.key.clone());
                let of = kept.entry(job.key.clone()).or_default();
                daemon.gather(&job, of, clock::now_ms()).await;
                job.news = Vec::new();
                jobs.push(job);
            }
        }
        kept.retain(|k, _| here.contains(k));
        let now_ms = clock::now_ms();
        let gone: Vec<(Key, Watch)> = {
            let mut all = lock(&daemon.forecasts);
            let keys: Vec<Key> = all
                .watches
                .keys()
                .filter(|k| !here.contains(*k))
                .cloned()
                .collect();
            let taken = keys.into_iter();
            taken
                .filter_map(|k| all.watches.remove(&k).map(|w| (k, w)))
                .collect()
        };
        for (key, mut watch) in gone {
            daemon.tell(&key, watch.reset(now_ms));
        }
        let now_ms = clock::now_ms();
        let settings = daemon.config.forecast.settings();
        teacher.turn(&daemon, &kept, &settings, now_ms);
        let pool = Arc::clone(&lock(&daemon.forecasts).pool);
        let budget = BUDGET.min(Duration::from_secs_f64(config.every_s / SHARE));
        let computed = tokio::task::spawn_blocking(move || {
            let until = Instant::now() + budget;
            let done = compute(&jobs, &mut kept, (&settings, &pool), now_ms, until);
            (jobs, kept, done)
        });
        let (jobs, back, done) = match computed.await {
            Ok(c) => c,
            Err(e) => {
                tracing::error!(error = %e, "forecasting ended abnormally; it begins anew");
                kept = BTreeMap::new();
                continue;
            }
        };
        kept = back;
        if done.len() < jobs.len() {
            tracing::warn!(
                done = done.len(),
                of = jobs.len(),
                "not all features were forecast in time; the others come first next time"
            );
        }
        for (i, outcome) in done {
            daemon.judge(&jobs[i], outcome, now_ms);
        }
    }
}

#[cfg(test)]
#[path = "forecast_tests.rs"]
mod tests;
