//! What peers may ask. Every answer depends on the authenticated name of the peer: it can offer
//! only features of groups allowed for it, and touch only moves of its own.

use std::sync::Arc;

use crate::affinity::Demand;
use crate::api::ApiEvent;
use crate::decision::admit;
use crate::driver::target;
use crate::feature::FeatureSpec;
use crate::history::StoredTier;
use crate::host::HostState;
use crate::moving::record::{TargetPhase, TargetRecord};
use crate::peer::{BulkReceiver, PeerRefusal, PeerService, RefusalKind};
use crate::reason::Reason;
use crate::usage::Usage;
use crate::wire::guest::valid_move_id;
use crate::wire::peer::{
    CheckAsk, DomainAnswer, DomainAsk, Offer, PROTOCOL, TargetStatus, Verdict,
};

use super::{Daemon, lock};

/// Rows that one answer carries at most.
const MAX_ROWS: usize = 1_000;

/// The daemon as its peers see it.
pub struct Service(pub Arc<Daemon>);

fn refuse(kind: RefusalKind, message: impl Into<String>) -> PeerRefusal {
    PeerRefusal::new(kind, message)
}

fn failed(message: impl Into<String>) -> PeerRefusal {
    refuse(RefusalKind::Failed, message)
}

/// Runs a step in a task of its own: it comes to its end also when its caller is gone or has
/// waited too long.
async fn detached<T: Send + 'static>(
    step: impl Future<Output = Result<T, PeerRefusal>> + Send + 'static,
) -> Result<T, PeerRefusal> {
    tokio::spawn(step)
        .await
        .unwrap_or_else(|e| Err(failed(format!("the step ended abnormally: {e}"))))
}

impl Service {
    /// A move of this peer, or a refusal that does not tell whether another peer has it.
    async fn own(&self, from: &str, id: &str) -> Result<FeatureSpec, PeerRefusal> {
        let unknown = || {
            refuse(
                RefusalKind::NotFound,
                format!("no move {id} from {from} here"),
            )
        };
        if let Some(spec) = self.0.expected_history(from, id) {
            return Ok(spec);
        }
        let slot = self.0.incoming.get(id).ok_or_else(unknown)?;
        let incoming = slot.lock().await;
        if incoming.record.from_host == from {
            Ok(incoming.record.spec.clone())
        } else {
            Err(unknown())
        }
    }

    fn check(&self, from: &str, offer: &Offer) -> Result<TargetRecord, PeerRefusal> {
        let refused = |m: String| Err(refuse(RefusalKind::Refused, m));
        if offer.protocol != PROTOCOL {
            return refused(format!(
                "protocol {} is not spoken here, only {PROTOCOL}; upgrade the older host",
                offer.protocol
            ));
        }
        if !valid_move_id(&offer.id) {
            return Err(refuse(RefusalKind::Invalid, "invalid move id"));
        }
        if let Err(e) = offer.spec.validate() {
            return Err(refuse(RefusalKind::Invalid, e.to_string()));
        }
        if let Some(why) = offer.spec.against(offer.method) {
            return refused(why);
        }
        let groups = self.0.peers().map(|p| p.groups(from)).unwrap_or_default();
        if !groups.contains(&offer.spec.group) {
            return refused(format!(
                "group '{}' is not allowed from host '{from}' here (peer.hosts.groups)",
                offer.spec.group
            ));
        }
        if !offer.cpus.is_finite() || !offer.memory_mib.is_finite() {
            return Err(refuse(RefusalKind::Invalid, "invalid demand"));
        }
        let state = self.0.host_state_now();
        let Some(instance) = state.instances.iter().find(|i| i.domain == offer.to_domain) else {
            return Err(refuse(
                RefusalKind::NotFound,
                format!("no domain '{}' on host '{}'", offer.to_domain, state.name),
            ));
        };
        if state
            .instances
            .iter()
            .any(|i| i.features.iter().any(|f| f.spec.name == offer.spec.name))
        {
            return refused(format!(
                "host '{}' has a feature '{}' already",
                state.name, offer.spec.name
            ));
        }
        // What is promised to others counts, so that two sources cannot fill the same room.
        let need = Demand {
            cpus: offer.cpus.max(0.0),
            memory_mib: offer.memory_mib.max(0.0),
            ..Demand::default()
        };
        admit(
            &state,
            &offer.to_domain,
            &need,
            &self.0.policy(),
            offer.by_hand,
        )
        .map_err(|why| {
            let why: Vec<String> = why.iter().map(ToString::to_string).collect();
            refuse(
                RefusalKind::Refused,
                format!("host '{}' has no room: {}", state.name, why.join("; ")),
            )
        })?;
        Ok(TargetRecord {
            id: offer.id.clone(),
            spec: offer.spec.clone(),
            from_host: from.to_owned(),
            domain: offer.to_domain.clone(),
            domain_uuid: instance.uuid.clone(),
            stream: offer.stream,
            cpus: offer.cpus.max(0.0),
            memory_mib: offer.memory_mib.max(0.0),
            phase: TargetPhase::Receiving,
            method: offer.method,
            boot_id: None,
        })
    }
}

#[async_trait::async_trait]
impl PeerService for Service {
    async fn host_state(&self, _from: &str) -> HostState {
        self.0.host_state_now()
    }

    async fn offer(&self, from: &str, offer: Offer) -> Result<(), PeerRefusal> {
        let _started = self.0.starting.read().await;
        let record = {
            let _domain = self.0.changes.lock(&offer.to_domain).await;
            let _name = self.0.names.lock(offer.spec.name.as_str()).await;
            if self.0.incoming.get(&offer.id).is_some() {
                return Err(refuse(
                    RefusalKind::Refused,
                    "this move was offered already",
                ));
            }
            // Room is judged and taken in one go, also for two guests of this host.
            let _offers = lock(&self.0.offers);
            let most = self.0.config.moves.max_concurrent;
            if self.0.incoming.under_way() >= most {
                return Err(refuse(
                    RefusalKind::Busy,
                    format!("{most} moves are coming in already (moves.max_concurrent)"),
                ));
            }
            let record = self.check(from, &offer)?;
            self.0.reserve(&record);
            // Known from here on: another offer of the name or the move must find it.
            target::enter(&self.0, &record);
            record
        };
        let id = record.id.clone();
        tracing::info!(%id, %from, feature = %record.spec.name, domain = %record.domain, "move offered");
        self.0.emit(ApiEvent::Feature {
            domain: record.domain.clone(),
            feature: record.spec.name.clone(),
            what: format!("arriving from {from}"),
        });
        let daemon = Arc::clone(&self.0);
        detached(async move {
            let result = target::accept(&daemon, &id, offer.preflight).await;
            if result.is_err() {
                daemon.unreserve(&id);
            }
            result.map_err(|m| refuse(RefusalKind::Refused, m))
        })
        .await
    }

    async fn check(&self, from: &str, ask: CheckAsk) -> Result<Vec<Reason>, PeerRefusal> {
        Ok(super::check::as_target(&self.0, from, ask).await)
    }

    async fn grant_freeze(&self, from: &str, id: &str) -> Result<(), PeerRefusal> {
        self.own(from, id).await?;
        target::grant_freeze(&self.0, id).await.map_err(failed)
    }

    async fn await_round(&self, from: &str, id: &str, round: u16) -> Result<(), PeerRefusal> {
        self.own(from, id).await?;
        target::await_round(&self.0, id, round)
            .await
            .map_err(failed)
    }

    async fn restore(&self, from: &str, id: &str, round: u16) -> Result<TargetStatus, PeerRefusal> {
        self.own(from, id).await?;
        let (daemon, id) = (Arc::clone(&self.0), id.to_owned());
        detached(async move { target::restore(&daemon, &id, round).await.map_err(failed) }).await
    }

    async fn resume(&self, from: &str, id: &str) -> Result<TargetStatus, PeerRefusal> {
        self.own(from, id).await?;
        let (daemon, id) = (Arc::clone(&self.0), id.to_owned());
        detached(async move { target::resume(&daemon, &id).await.map_err(failed) }).await
    }

    async fn give_up(&self, from: &str, id: &str) -> Result<TargetStatus, PeerRefusal> {
        self.own(from, id).await?;
        let (daemon, id) = (Arc::clone(&self.0), id.to_owned());
        detached(async move { target::give_up(&daemon, &id).await.map_err(failed) }).await
    }

    async fn discard(&self, from: &str, id: &str, reason: &str) -> Result<(), PeerRefusal> {
        if self.own(from, id).await.is_err() {
            // Nothing here: as asked.
            return Ok(());
        }
        let (daemon, id, reason) = (Arc::clone(&self.0), id.to_owned(), reason.to_owned());
        detached(async move { target::discard(&daemon, &id, &reason).await.map_err(failed) }).await
    }

    async fn status(&self, from: &str, id: &str) -> TargetStatus {
        match self.own(from, id).await {
            Ok(_) => target::status(&self.0, id).await,
            Err(_) => TargetStatus::Unknown,
        }
    }

    async fn verdict(&self, from: &str, id: &str) -> Verdict {
        self.0.verdict(from, id).await
    }

    async fn import_history(
        &self,
        from: &str,
        id: &str,
        points: Vec<Usage>,
    ) -> Result<(), PeerRefusal> {
        let spec = self.own(from, id).await?;
        let key = super::metering::series(&spec);
        self.0
            .history
            .import(&key, points)
            .await
            .map(|_| ())
            .map_err(|e| failed(e.to_string()))
    }

    async fn import_rollups(
        &self,
        from: &str,
        id: &str,
        tier: &str,
        parcel: Vec<u8>,
    ) -> Result<(), PeerRefusal> {
        let invalid = |what: String| PeerRefusal::new(RefusalKind::Invalid, what);
        let spec = self.own(from, id).await?;
        let tier = match tier {
            "minute" => StoredTier::Minute,
            "quarter" => StoredTier::Quarter,
            other => return Err(invalid(format!("no tier '{other}' of rolled up history"))),
        };
        let points = crate::history::transfer::unpack(&parcel)
            .ok_or_else(|| invalid("a parcel of history that cannot be read".to_owned()))?;
        let key = super::metering::series(&spec);
        self.0
            .history
            .import_rollups(&key, tier, points)
            .await
            .map(|_| ())
            .map_err(|e| failed(e.to_string()))
    }

    async fn about_domain(&self, from: &str, ask: DomainAsk) -> Result<DomainAnswer, PeerRefusal> {
        let (daemon, from) = (Arc::clone(&self.0), from.to_owned());
        detached(async move { daemon.about_domain(&from, ask).await }).await
    }

    async fn rows(&self, from: &str, after: u64, limit: u32) -> String {
        self.0.rows_for(from, after, (limit as usize).min(MAX_ROWS))
    }

    async fn bulk(&self, from: &str, id: &str, incoming: BulkReceiver) {
        if self.own(from, id).await.is_ok() {
            target::bulk(&self.0, id, incoming).await;
        }
    }
}
