//! From the daemon's events to signals and move objects.

use std::sync::Arc;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use zbus::Connection;
use zbus::object_server::SignalEmitter;

use super::PATH;
use super::error::json;
use super::manager::Manager;
use super::moves::{Moves, result_word};
use crate::api::{Api, ApiEvent, Job};

/// Runs until the daemon's event channel closes or the bus is gone.
pub(super) async fn run(
    connection: Connection,
    api: Arc<dyn Api>,
    moves: Arc<Moves>,
    mut events: Receiver<ApiEvent>,
) {
    loop {
        match events.recv().await {
            Ok(event) => {
                if let Err(error) = emit(&connection, &moves, event).await {
                    if connection.is_closed() {
                        tracing::error!(%error, "the bus closed the connection; restart droverd");
                        return;
                    }
                    tracing::warn!(%error, "a signal was not sent");
                }
            }
            Err(RecvError::Lagged(lost)) => {
                tracing::warn!(
                    lost,
                    "events came faster than the bus took them; moves re-read"
                );
                // Oldest first, as they would have come.
                for job in api.jobs().await.into_iter().rev() {
                    if let Err(error) = resync(&connection, &moves, &job).await {
                        tracing::warn!(%error, id = job.id, "a move was not re-read");
                    }
                }
            }
            Err(RecvError::Closed) => return,
        }
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
