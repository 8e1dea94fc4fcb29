//! What users may ask: the daemon behind `org.drover1`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::api::{
    Api, ApiError, ApiEvent, Changed, Destination, FeatureForecast, FeatureRow, HistoryPage,
    HistoryPoint, HistoryQuery, Job, Plan, Reloaded, Result,
};
use crate::decision::{
    Cause, Cell, Check, DecisionRecord, DecisionRow, DrainStatus, Replay, ScoreReport,
};
use crate::feature::{FeatureName, FeatureSpec, Threshold};
use crate::forecast::Expected;
use crate::guest::{GuestError, install, remove};
use crate::history::Query;
use crate::host::{HelperState, HostState};
use crate::moving::source::{Event, State};
use crate::reason::Rehearsal;
use crate::store::{FeatureRecord, Store, StoreError};
use crate::threshold::Watch;
use crate::usage::Usage;
use crate::wire::guest::Call;

use super::files::Wish;
use super::instance::{Feature, Instance};
use super::lifecycle::START;
use super::{Daemon, SHORT, lock};

/// The helper's binary on this host.
const HELPER: &str = "/usr/lib/drover/drover-guest";
/// Ended jobs shown.
const JOBS: usize = 100;

/// The daemon as its users see it.
pub struct Service(pub Arc<Daemon>);

impl Service {
    /// A feature as users see it; `expected` is the breach that is forecast.
    fn row(&self, i: &Instance, f: &Feature, expected: Option<&Expected>) -> FeatureRow {
        let spec = &f.record.spec;
        let expected = expected
            .filter(|e| super::forecast::holds(e, f.record.enabled, &spec.thresholds))
            .map(super::forecast::cause);
        FeatureRow {
            host: self.0.name().to_owned(),
            domain: i.info.name.clone(),
            spec: spec.clone(),
            status: f.status(),
            usage: f.recent.latest().copied(),
            breach: f.breach().or(expected).map(|b| b.text),
            metered: i.metering(),
        }
    }

    fn record(&self, domain: &str, feature: &FeatureName) -> Result<(String, FeatureRecord)> {
        let instances = lock(&self.0.instances);
        let (instance, f) = self.0.find(&instances, domain, feature)?;
        if let Some(id) = &f.moving {
            return Err(ApiError::Busy(format!(
                "feature '{feature}' is being moved (move {id}); wait, or cancel with 'drover jobabort {id}'"
            )));
        }
        Ok((instance.info.uuid.clone(), f.record.clone()))
    }

    async fn save(&self, uuid: String, record: FeatureRecord) -> Result<()> {
        self.registry(move |s| s.put_feature(&uuid, &record)).await
    }

    async fn registry(
        &self,
        change: impl FnOnce(&Store) -> std::result::Result<(), StoreError> + Send + 'static,
    ) -> Result<()> {
        let done = self.0.store.run(move |s| change(s)).await;
        done.map_err(|e| ApiError::Failed(format!("the registry cannot be written: {e}")))
    }

    async fn helper(&self, domain: &str, call: Call) -> Result<()> {
        let guest = self.0.guest(domain).ok_or_else(|| {
            ApiError::Refused(format!(
                "the helper in domain '{domain}' is not connected; install it with 'drover guest install {domain}'"
            ))
        })?;
        let limit = match call {
            Call::Start { .. } => START,
            _ => SHORT,
        };
        match guest.call(call, limit).await {
            Ok(_) => Ok(()),
            Err(e @ GuestError::Timeout { .. }) => Err(ApiError::Timeout(e.to_string())),
            Err(e) => Err(ApiError::Failed(e.to_string())),
        }
    }

    /// Refuses a name that a peer has. What was heard last may be old, so a peer that seems to
    /// have it is asked anew.
    async fn free_among_peers(&self, name: &FeatureName) -> Result<()> {
        fn holder(state: &HostState, name: &FeatureName) -> Option<String> {
            let mut with = state.instances.iter();
            with.find(|i| i.features.iter().any(|f| f.spec.name == *name))
                .map(|i| i.domain.clone())
        }
        let heard: Vec<HostState> = lock(&self.0.peer_states).values().cloned().collect();
        for state in heard {
            if holder(&state, name).is_none() {
                continue;
            }
            let now = match self.0.peers() {
                Some(peers) => peers.host_state(&state.name).await.unwrap_or(state),
                None => state,
            };
            if let Some(domain) = holder(&now, name) {
                return Err(ApiError::Refused(format!(
                    "domain '{domain}' on host '{}' has a feature '{name}' already; names are \
                     unique in a cluster",
                    now.name
                )));
            }
        }
        Ok(())
    }

    fn changed(&self, domain: &str, feature: &FeatureName, what: &str) {
        tracing::info!(%domain, %feature, what, "feature changed");
        self.0.emit(ApiEvent::Feature {
            domain: domain.to_owned(),
            feature: feature.clone(),
            what: what.to_owned(),
        });
    }
}

impl Service {
    /// Ends a move before its commit; with `force` also one that does not resume after it.
    async fn end_move(&self, id: &str, force: bool) -> Result<()> {
        let handle = lock(&self.0.outgoing).get(id).cloned();
        let Some(handle) = handle else {
            let job = self.job(id).await?;
            return Err(ApiError::Refused(format!(
                "move {id} has ended already ({})",
                job.result.map_or("unknown", |_| "see 'drover jobinfo'")
            )));
        };
        let state = *handle.state.borrow();
        let event = match state {
            _ if state.can_cancel() => Event::Cancel,
            State::Switching { resumed: false, .. } if force => Event::GiveUp,
            State::Switching { resumed: false, .. } => {
                return Err(ApiError::Refused(format!(
                    "move {id} is past the point where it can be cancelled; if it stays so, \
                     'drover jobabort --force {id}' destroys the copy at the target and lets the \
                     feature go on here"
                )));
            }
            _ => {
                return Err(ApiError::Refused(format!(
                    "move {id} is past the point where it can be cancelled"
                )));
            }
        };
        handle
            .events
            .send(event)
            .await
            .map_err(|_| ApiError::Refused(format!("move {id} has just ended")))
    }
}

#[async_trait::async_trait]
impl Api for Service {
    async fn hosts(&self) -> Vec<HostState> {
        let mut all = vec![self.0.host_state_now()];
        all.extend(lock(&self.0.peer_states).values().cloned());
        all
    }

    async fn outlines(&self) -> Vec<HostState> {
        let mut all = vec![self.0.host_outline()];
        all.extend(lock(&self.0.peer_states).values().map(HostState::outline));
        all
    }

    async fn features(&self) -> Vec<FeatureRow> {
        let mut rows = Vec::new();
        self.each_feature(&mut |row| rows.push(row)).await;
        rows
    }

    async fn each_feature(&self, show: &mut (dyn FnMut(FeatureRow) + Send)) {
        let expected = self.0.expected();
        let domains: Vec<String> = lock(&self.0.instances).keys().cloned().collect();
        for domain in domains {
            // The lock is not held for longer than a domain takes.
            let rows: Vec<FeatureRow> = match lock(&self.0.instances).get(&domain) {
                Some(i) => {
                    let expected =
                        |f: &Feature| expected.get(&(domain.clone(), f.record.spec.name.clone()));
                    let features = i.features.values();
                    features.map(|f| self.row(i, f, expected(f))).collect()
                }
                None => Vec::new(),
            };
            rows.into_iter().for_each(&mut *show);
        }
    }

    async fn feature(&self, domain: &str, feature: &FeatureName) -> Option<FeatureRow> {
        let expected = self.0.expected_of(domain, feature);
        let instances = lock(&self.0.instances);
        let (i, f) = self.0.find(&instances, domain, feature).ok()?;
        Some(self.row(i, f, expected.as_ref()))
    }

    async fn register(&self, domain: &str, spec: FeatureSpec) -> Result<Changed> {
        spec.validate()
            .map_err(|e| ApiError::Invalid(e.to_string()))?;
        self.0
            .agrees_with_file(&spec.name, Wish::Registered(&spec))?;
        let _guard = self.0.changes.lock(domain).await;
        // Until it is registered; telling the guest is the domain's affair.
        let name_guard = self.0.names.lock(spec.name.as_str()).await;
        let uuid = {
            let instances = lock(&self.0.instances);
            let instance = instances
                .get(domain)
                .ok_or_else(|| self.0.no_domain(domain))?;
            if let Some(f) = instance.features.get(&spec.name) {
                if f.record.spec == spec {
                    return Ok(Changed::Already);
                }
                if f.record.enabled {
                    return Err(ApiError::Refused(format!(
                        "feature '{}' is enabled with another definition; disable it first",
                        spec.name
                    )));
                }
            }
            let elsewhere = instances
                .iter()
                .find(|(d, i)| d.as_str() != domain && i.features.contains_key(&spec.name));
            if let Some((d, _)) = elsewhere {
                return Err(ApiError::Refused(format!(
                    "domain '{d}' has a feature '{}' already; names are unique in a cluster",
                    spec.name
                )));
            }
            instance.info.uuid.clone()
        };
        self.free_among_peers(&spec.name).await?;
        let name = spec.name.clone();
        let record = FeatureRecord {
            domain: domain.to_owned(),
            spec,
            enabled: false,
            moved_at_ms: 0,
        };
        self.save(uuid, record.clone()).await?;
        if let Some(i) = lock(&self.0.instances).get_mut(domain) {
            i.features.insert(name.clone(), Feature::new(record));
        }
        drop(name_guard);
        self.0.define(domain).await;
        self.changed(domain, &name, "registered");
        Ok(Changed::Done)
    }

    async fn deregister(&self, domain: &str, feature: &FeatureName) -> Result<Changed> {
        self.0.agrees_with_file(feature, Wish::Gone)?;
        let _guard = self.0.changes.lock(domain).await;
        let (uuid, record) = self.record(domain, feature)?;
        // Also a disabled one: a start that timed out may have succeeded late.
        let reachable = record.enabled || self.0.guest(domain).is_some();
        if record.spec.managed().is_some() && reachable && !self.0.domain_is_gone(domain) {
            self.helper(
                domain,
                Call::Stop {
                    feature: feature.clone(),
                },
            )
            .await?;
        }
        let name = feature.clone();
        self.registry(move |s| s.remove_feature(&uuid, &name))
            .await?;
        if let Some(i) = lock(&self.0.instances).get_mut(domain) {
            i.features.remove(feature);
        }
        self.0.define(domain).await;
        self.changed(domain, feature, "deregistered");
        Ok(Changed::Done)
    }

    async fn set_enabled(&self, domain: &str, feature: &FeatureName, on: bool) -> Result<Changed> {
        self.0.agrees_with_file(feature, Wish::Enabled(on))?;
        let _guard = self.0.changes.lock(domain).await;
        let (uuid, mut record) = self.record(domain, feature)?;
        let already = record.enabled == on;
        let managed = record.spec.managed().is_some();
        if on && managed {
            self.0.define(domain).await;
            let start = Call::Start {
                feature: feature.clone(),
            };
            if let Err(e) = self.helper(domain, start).await {
                // It may yet succeed, unseen: what is not registered as enabled must not run.
                let stop = Call::Stop {
                    feature: feature.clone(),
                };
                if let Err(e) = self.helper(domain, stop).await {
                    tracing::warn!(%domain, %feature, error = %e, "a failed start is not undone");
                }
                return Err(e);
            }
        } else if !on && managed {
            self.helper(
                domain,
                Call::Stop {
                    feature: feature.clone(),
                },
            )
            .await?;
        }
        record.enabled = on;
        if !already {
            self.save(uuid, record).await?;
        }
        self.0.with_feature(domain, feature, |f| {
            f.record.enabled = on;
            f.running = Some(on);
            if !on {
                f.watch = Watch::new(&f.record.spec.thresholds);
            }
        });
        if already {
            return Ok(Changed::Already);
        }
        self.changed(domain, feature, if on { "enabled" } else { "disabled" });
        Ok(Changed::Done)
    }

    async fn set_thresholds(
        &self,
        domain: &str,
        feature: &FeatureName,
        thresholds: Vec<Threshold>,
    ) -> Result<Changed> {
        self.0
            .agrees_with_file(feature, Wish::Thresholds(&thresholds))?;
        let _guard = self.0.changes.lock(domain).await;
        let (uuid, mut record) = self.record(domain, feature)?;
        if record.spec.thresholds == thresholds {
            return Ok(Changed::Already);
        }
        record.spec.thresholds = thresholds;
        record
            .spec
            .validate()
            .map_err(|e| ApiError::Invalid(e.to_string()))?;
        self.save(uuid, record.clone()).await?;
        self.0.with_feature(domain, feature, |f| {
            f.watch = Watch::new(&record.spec.thresholds);
            f.record.spec = record.spec;
        });
        self.changed(domain, feature, "thresholds");
        Ok(Changed::Done)
    }

    async fn history(
        &self,
        domain: &str,
        feature: &FeatureName,
        since_ms: i64,
        until_ms: i64,
        limit: usize,
    ) -> Result<Vec<Usage>> {
        let query = HistoryQuery {
            since_ms,
            until_ms,
            step_ms: Some(0),
            limit,
        };
        let page = self.history_steps(domain, feature, query).await?;
        Ok(page.points.into_iter().map(|p| p.mean).collect())
    }

    async fn history_steps(
        &self,
        domain: &str,
        feature: &FeatureName,
        query: HistoryQuery,
    ) -> Result<HistoryPage> {
        let key = {
            let instances = lock(&self.0.instances);
            let (_, f) = self.0.find(&instances, domain, feature)?;
            super::metering::series(&f.record.spec)
        };
        let query = Query {
            since_ms: query.since_ms,
            until_ms: query.until_ms,
            step_ms: query.step_ms,
            limit: query.limit,
        };
        let page = self.0.history.query(&key, query).await;
        let page = page.map_err(|e| ApiError::Failed(format!("history: {e}")))?;
        Ok(HistoryPage {
            step_ms: page.step_ms,
            points: page.points.into_iter().map(HistoryPoint::from).collect(),
        })
    }

    async fn forecast(&self, domain: &str, feature: &FeatureName) -> Result<FeatureForecast> {
        self.0.forecast_now(domain, feature).await
    }

    async fn plan(&self, domain: &str, feature: &FeatureName) -> Result<Plan> {
        let breach = self.0.breach_of(domain, feature);
        self.0.plan_for(domain, feature, Cause::Preview { breach })
    }

    async fn score(&self, domain: &str, feature: &FeatureName) -> Result<ScoreReport> {
        self.0.scores(domain, feature)
    }

    async fn matrix(&self, feature: Option<&FeatureName>) -> Result<Vec<Cell>> {
        Ok(self.0.compatibility(feature))
    }

    async fn decisions(&self) -> Vec<DecisionRow> {
        self.0.audit.rows()
    }

    async fn decision(&self, id: &str) -> Result<DecisionRecord> {
        self.0.decision(id).await
    }

    async fn replay(&self, id: &str) -> Result<Replay> {
        self.0.replay(id).await
    }

    async fn approve(&self, id: &str) -> Result<Job> {
        self.0.approve(id).await
    }

    async fn set_drain(&self, on: bool) -> Result<DrainStatus> {
        self.0.set_drain(on).await
    }

    async fn drain_status(&self) -> DrainStatus {
        self.0.drain_status()
    }

    async fn check(&self, domain: &str, feature: &FeatureName, to: Destination) -> Result<Check> {
        self.0.check(domain, feature, &to).await
    }

    async fn rehearse(&self, domain: &str, feature: &FeatureName) -> Result<Rehearsal> {
        self.0.rehearse(domain, feature).await
    }

    async fn migrate(&self, domain: &str, feature: &FeatureName, to: Destination) -> Result<Job> {
        self.0.migrate_by_hand(domain, feature, to).await
    }

    async fn job(&self, id: &str) -> Result<Job> {
        if let Some(h) = lock(&self.0.outgoing).get(id) {
            return Ok(h.job.borrow().clone());
        }
        self.jobs()
            .await
            .into_iter()
            .find(|j| j.id == id)
            .ok_or_else(|| {
                ApiError::NotFound(format!("no move {id} from host '{}'", self.0.name()))
            })
    }

    async fn jobs(&self) -> Vec<Job> {
        let mut jobs: Vec<Job> = lock(&self.0.outgoing)
            .values()
            .map(|h| h.job.borrow().clone())
            .collect();
        match self.0.store.run(|s| s.jobs(JOBS)).await {
            Ok(ended) => {
                for j in ended {
                    if !jobs.iter().any(|o| o.id == j.id) {
                        jobs.push(j);
                    }
                }
            }
            Err(e) => tracing::error!(error = %e, "ended moves cannot be read"),
        }
        jobs.sort_by_key(|j| std::cmp::Reverse(j.started_ms));
        jobs
    }

    async fn abort(&self, id: &str) -> Result<()> {
        self.end_move(id, false).await
    }

    async fn give_up(&self, id: &str) -> Result<()> {
        self.end_move(id, true).await
    }

    async fn guest_install(&self, domain: &str) -> Result<String> {
        self.running(domain)?;
        let progress = |what: &str| {
            tracing::info!(%domain, what, "installing the helper");
            self.0.emit(ApiEvent::Instance {
                domain: domain.to_owned(),
                what: format!("installing: {what}"),
            });
        };
        install(&self.0.hypervisor, domain, Path::new(HELPER), &progress)
            .await
            .map_err(|e| ApiError::Failed(format!("installing into '{domain}': {e}")))?;
        self.0.connect_guest(domain).await;
        // A helper that was replaced starts anew; do not wait until its silence is noticed.
        if let Some(g) = self.0.guest_handle(domain) {
            g.reconnect();
        }
        for _ in 0..120 {
            let state = lock(&self.0.instances)
                .get(domain)
                .map(|i| (i.helper.clone(), i.capabilities.is_some()));
            if let Some((HelperState::Connected { version }, true)) = state {
                return Ok(format!("helper {version} runs in domain '{domain}'"));
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Err(ApiError::Timeout(format!(
            "the helper was installed in '{domain}' but does not answer; 'systemctl status drover-guest' in the guest tells why"
        )))
    }

    async fn guest_remove(&self, domain: &str) -> Result<String> {
        self.running(domain)?;
        let enabled = lock(&self.0.instances).get(domain).map_or(0, |i| {
            i.features.values().filter(|f| f.record.enabled).count()
        });
        if enabled > 0 {
            return Err(ApiError::Refused(format!(
                "{enabled} features are enabled in domain '{domain}'; disable or move them first"
            )));
        }
        if let Some(i) = lock(&self.0.instances).get_mut(domain)
            && let Some(g) = i.guest.take()
        {
            g.close();
        }
        let progress = |what: &str| {
            tracing::info!(%domain, what, "removing the helper");
            self.0.emit(ApiEvent::Instance {
                domain: domain.to_owned(),
                what: format!("removing: {what}"),
            });
        };
        remove(&self.0.hypervisor, domain, &progress)
            .await
            .map_err(|e| ApiError::Failed(format!("removing from '{domain}': {e}")))?;
        Ok(format!("helper removed from domain '{domain}'"))
    }

    async fn reload(&self) -> Result<Reloaded> {
        self.reload_now().await
    }

    fn events(&self) -> tokio::sync::broadcast::Receiver<ApiEvent> {
        self.0.events.subscribe()
    }
}

impl Service {
    fn running(&self, domain: &str) -> Result<()> {
        match lock(&self.0.instances).get(domain) {
            None => Err(self.0.no_domain(domain)),
            Some(i) if !i.info.running => Err(ApiError::Refused(format!(
                "domain '{domain}' does not run; start it with 'virsh start {domain}'"
            ))),
            Some(_) => Ok(()),
        }
    }
}
