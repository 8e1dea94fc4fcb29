//! From the daemon's events to signals and move objects.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use zbus::Connection;
use zbus::object_server::SignalEmitter;

use super::PATH;
use super::error::json;
use super::manager::Manager;
use super::moves::{Moves, result_word};
use super::objects::Objects;
use crate::api::{Api, ApiEvent, Job};

/// How often hosts, instances and features are looked at, whatever the events say.
const REFRESH: Duration = Duration::from_secs(2);
/// Part of the time that looking may take: one in so many.
const SHARE: u32 = 100;

/// What is told, and through which objects.
pub(super) struct Pump {
    pub(super) connection: Connection,
    pub(super) api: Arc<dyn Api>,
    pub(super) moves: Arc<Moves>,
    pub(super) objects: Objects,
}

impl Pump {
    /// Runs until the daemon's event channel closes or the bus is gone.
    pub(super) async fn run(self, mut events: Receiver<ApiEvent>) {
        let mut next = Instant::now();
        loop {
            let told = tokio::select! {
                event = events.recv() => event,
                () = tokio::time::sleep_until(next) => {
                    let begin = Instant::now();
                    self.refresh().await;
                    next = Instant::now() + REFRESH.max(begin.elapsed() * SHARE);
                    continue;
                }
            };
            match told {
                Ok(event) => {
                    // Whoever hears of a change finds the objects as they are after it.
                    if concerns_objects(&event) {
                        self.refresh().await;
                    }
                    if let Err(error) = emit(&self.connection, &self.moves, event).await {
                        if self.connection.is_closed() {
                            tracing::error!(%error, "the bus closed the connection; restart droverd");
                            return;
                        }
                        tracing::warn!(%error, "a signal was not sent");
                    }
                }
                Err(RecvError::Lagged(lost)) => self.catch_up(lost).await,
                Err(RecvError::Closed) => return,
            }
        }
    }

    async fn refresh(&self) {
        if let Err(error) = self.objects.refresh(&self.connection).await {
            tracing::warn!(%error, "objects on the bus are not up to date");
        }
    }

    async fn catch_up(&self, lost: u64) {
        tracing::warn!(
            lost,
            "events came faster than the bus took them; moves re-read"
        );
        self.refresh().await;
        // Oldest first, as they would have come.
        for job in self.api.jobs().await.into_iter().rev() {
            if let Err(error) = resync(&self.connection, &self.moves, &job).await {
                tracing::warn!(%error, id = job.id, "a move was not re-read");
            }
        }
    }
}

/// Whether hosts, instances or features may differ after the event.
fn concerns_objects(event: &ApiEvent) -> bool {
    match event {
        ApiEvent::Decision { .. } => false,
        ApiEvent::Move { job } => job.result.is_some(),
        ApiEvent::Breach { .. }
        | ApiEvent::Feature { .. }
        | ApiEvent::Instance { .. }
        | ApiEvent::Peer { .. } => true,
    }
}

/// Brings the object of a move up to date after lost events; moves of earlier runs stay away.
async fn resync(connection: &Connection, moves: &Moves, job: &Job) -> zbus::Result<()> {
    if job.result.is_none() || moves.open(&job.id).await {
        moved(connection, moves, job).await?;
    }
    Ok(())
}

async fn moved(connection: &Connection, moves: &Moves, job: &Job) -> zbus::Result<()> {
    let path = moves.update(connection, job).await?;
    let manager = SignalEmitter::new(connection, PATH)?;
    match job.result {
        None => {
            let text = json(job).map_err(|e| zbus::Error::Failure(e.to_string()))?;
            Manager::move_progress(&manager, path, &text).await
        }
        Some(result) => {
            let reason = job.reason.as_deref().unwrap_or_default();
            Manager::move_ended(&manager, path, result_word(result), reason).await
        }
    }
}

async fn emit(connection: &Connection, moves: &Moves, event: ApiEvent) -> zbus::Result<()> {
    let manager = SignalEmitter::new(connection, PATH)?;
    match event {
        ApiEvent::Breach {
            domain,
            feature,
            what,
            active,
        } => Manager::breach(&manager, &domain, feature.as_str(), &what, active).await,
        ApiEvent::Decision { plan } => {
            let text = json(&plan).map_err(|e| zbus::Error::Failure(e.to_string()))?;
            Manager::decision(
                &manager,
                &plan.domain,
                plan.feature.as_str(),
                &plan.outcome,
                &plan.reason,
                &text,
            )
            .await
        }
        ApiEvent::Move { job } => moved(connection, moves, &job).await,
        ApiEvent::Feature {
            domain,
            feature,
            what,
        } => Manager::feature_changed(&manager, &domain, feature.as_str(), &what).await,
        ApiEvent::Instance { domain, what } => {
            Manager::instance_changed(&manager, &domain, &what).await
        }
        ApiEvent::Peer { host, what } => Manager::peer_changed(&manager, &host, &what).await,
    }
}
