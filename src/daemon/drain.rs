//! Emptying a host: it accepts no moves, and its movable features are planned away one after
//! another. Those that cannot go are named with the reason, and tried again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::api::{ApiError, JobResult};
use crate::decision::{Cause, DrainStatus, Left};
use crate::feature::FeatureName;
use crate::store::Store;
use crate::wire::guest::MoveId;

use super::{Daemon, clock, lock};

/// Key of the state in the store.
const KEY: &str = "drain";
/// Pause before a feature that could not go is tried again.
const AGAIN: Duration = Duration::from_secs(30);
/// Pause between looks.
const TICK: Duration = Duration::from_secs(1);

type Place = (String, FeatureName);

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Durable {
    since_ms: i64,
}

/// How emptying this host stands.
#[derive(Debug, Default)]
pub(super) struct Drain {
    since_ms: Option<i64>,
    moving: Option<(FeatureName, MoveId, String)>,
    moved: Vec<(FeatureName, String)>,
    tried: BTreeMap<Place, (String, Instant)>,
}

impl Drain {
    /// What an earlier run was told.
    pub(super) fn load(store: &Store) -> Self {
        let read = store.get(KEY).unwrap_or_else(|e| {
            tracing::error!(error = %e, "whether this host is drained is not known; it accepts moves");
            None
        });
        let durable = read.and_then(|b| serde_json::from_slice::<Durable>(&b).ok());
        Self {
            since_ms: durable.map(|d| d.since_ms),
            ..Self::default()
        }
    }

    /// Whether this host is being emptied.
    pub(super) fn active(&self) -> bool {
        self.since_ms.is_some()
    }
}

impl Daemon {
    /// Begins to empty this host, or ends that; durable when it returns.
    pub(super) async fn set_drain(&self, on: bool) -> Result<DrainStatus, ApiError> {
        if lock(&self.drain).active() != on {
            let since_ms = clock::now_ms();
            let bytes = serde_json::to_vec(&Durable { since_ms })
                .map_err(|e| ApiError::Failed(e.to_string()))?;
            let change = move |s: &Store| {
                if on {
                    s.put(KEY, &bytes)
                } else {
                    s.remove(KEY)
                }
            };
            let done = self.store.run(change).await;
            done.map_err(|e| ApiError::Failed(format!("the drain cannot be recorded: {e}")))?;
            *lock(&self.drain) = Drain {
                since_ms: on.then_some(since_ms),
                ..Drain::default()
            };
            if on {
                tracing::info!("this host is drained: it accepts no moves, its features go");
            } else {
                tracing::info!("this host is not drained any more");
            }
        }
        Ok(self.drain_status())
    }

    /// How emptying stands.
    pub(super) fn drain_status(&self) -> DrainStatus {
        let here = self.to_be_drained();
        let drain = lock(&self.drain);
        let mut status = DrainStatus {
            host: self.name().to_owned(),
            draining: drain.active(),
            since_ms: drain.since_ms.unwrap_or_default(),
            moving: drain.moving.as_ref().map(|m| m.0.clone()),
            moved: drain.moved.clone(),
            left: Vec::new(),
        };
        for (_, place) in here.into_iter().filter(|_| drain.active()) {
            let tried = drain.tried.get(&place);
            let moving = status.moving.as_ref() == Some(&place.1);
            status.left.push(Left {
                tried: tried.is_some(),
                reason: match tried {
                    _ if moving => "it moves".to_owned(),
                    Some((why, _)) => why.clone(),
                    None => "its turn comes".to_owned(),
                },
                domain: place.0,
                feature: place.1,
            });
        }
        status
    }

    /// Features that are enabled here, the most important first.
    fn to_be_drained(&self) -> Vec<(i32, Place)> {
        let instances = lock(&self.instances);
        let mut list: Vec<(i32, Place)> = instances
            .iter()
            .flat_map(|(d, i)| i.features.values().map(move |f| (d, f)))
            .filter(|(_, f)| f.record.enabled)
            .map(|(d, f)| {
                let spec = &f.record.spec;
                (spec.rules().priority, (d.clone(), spec.name.clone()))
            })
            .collect();
        list.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        list
    }

    /// Notes how the move under way ended; true when one still is.
    async fn drain_waits(&self) -> bool {
        let Some((feature, id, to)) = lock(&self.drain).moving.clone() else {
            return false;
        };
        if lock(&self.outgoing).contains_key(&id) {
            return true;
        }
        let ended = self.store.run(|s| s.jobs(20)).await.unwrap_or_default();
        let job = ended.into_iter().find(|j| j.id == id);
        let place = job
            .as_ref()
            .map(|j| (j.from_domain.clone(), feature.clone()));
        let mut drain = lock(&self.drain);
        drain.moving = None;
        match (job, place) {
            (Some(j), _) if j.result == Some(JobResult::Done) => drain.moved.push((feature, to)),
            (Some(j), Some(place)) => {
                let why = j
                    .reason
                    .unwrap_or_else(|| "its move did not end well".into());
                drain.tried.insert(place, (why, Instant::now()));
            }
            _ => {}
        }
        false
    }

    /// Moves the next feature, if there is one.
    async fn drain_next(self: &Arc<Self>) {
        for (_, place) in self.to_be_drained() {
            let fresh = |(_, at): &(String, Instant)| at.elapsed() < AGAIN;
            if lock(&self.drain).tried.get(&place).is_some_and(fresh) {
                continue;
            }
            let why = match self.drain_one(&place).await {
                Ok(()) => return,
                Err(why) => why,
            };
            tracing::warn!(domain = %place.0, feature = %place.1, why, "cannot leave the drained host");
            lock(&self.drain).tried.insert(place, (why, Instant::now()));
        }
    }

    async fn drain_one(self: &Arc<Self>, (domain, feature): &Place) -> Result<(), String> {
        let said = |e: ApiError| e.to_string();
        // Only what moves is recorded: the rest is tried again and again.
        let plan = self.plan_for(domain, feature, Cause::Drain).map_err(said)?;
        if plan.target().is_none() {
            return Err(plan.reason);
        }
        let plan = self
            .decided(domain, feature, Cause::Drain)
            .await
            .map_err(said)?;
        let Some(to) = plan.target() else {
            return Err(plan.reason);
        };
        self.emit(crate::api::ApiEvent::Decision { plan: plan.clone() });
        let job = self
            .begin_move(domain, feature, &to.host, &to.domain, "drain".into(), None)
            .await
            .map_err(said)?;
        {
            let mut drain = lock(&self.drain);
            drain.tried.remove(&(domain.clone(), feature.clone()));
            drain.moving = Some((feature.clone(), job.id.clone(), to.host.clone()));
        }
        self.change_decision(&plan.id, move |r| r.move_id = Some(job.id))
            .await;
        Ok(())
    }
}

/// Empties this host whenever it is told to.
pub(super) async fn draining(daemon: Arc<Daemon>) {
    loop {
        tokio::time::sleep(TICK).await;
        if lock(&daemon.drain).active() && !daemon.drain_waits().await {
            daemon.drain_next().await;
        }
    }
}
