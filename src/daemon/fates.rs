//! Moves that were under way in a guest when libvirt migrated its domain: the hosts that made them
//! settle them.
//!
//! A frozen copy waits in the guest until its source says whether the move was committed ([`Fate`]);
//! what was on its way into the guest ends where the guest is now, and the target learns it
//! ([`CopyState`]).

use crate::moving::fate;
use crate::moving::record::{TargetRecord, job_of};
use crate::peer::PeerError;
use crate::store::{JOBS_KEPT, Side};
use crate::wire::guest::{Call, GuestMoveState, Reply};
use crate::wire::peer::{CopyState, DomainAnswer, DomainAsk, Fate};

use super::{Daemon, SHORT, lock};

impl Daemon {
    /// What this host's journal and list of jobs say of a move's frozen copy.
    pub(super) async fn own_fate(&self, id: &str) -> Fate {
        match self.source_record(id).await {
            Ok(record) => {
                let state = lock(&self.outgoing)
                    .get(job_of(id))
                    .map(|h| *h.state.borrow());
                fate::under_way(record.map(|r| r.committed), state)
                    .unwrap_or_else(|| self.ended_fate(id))
            }
            Err(e) => {
                tracing::error!(%id, error = %e, "the journal cannot be read");
                Fate::Pending
            }
        }
    }

    fn ended_fate(&self, id: &str) -> Fate {
        let (Ok(damaged), Ok(jobs)) = (
            self.store.damaged_moves(Side::Source),
            self.store.jobs(JOBS_KEPT),
        ) else {
            return Fate::Pending;
        };
        if damaged.iter().any(|d| d == id) {
            tracing::error!(%id, "a copy of a feature is frozen and the record of its move is \
                damaged: look at the feature on both hosts");
            return Fate::Pending;
        }
        let job = jobs.iter().find(|j| j.id == job_of(id));
        fate::ended(job.map(|j| j.result))
    }

    /// What shall become of a frozen copy in a guest here, and whether another host said it.
    /// `None`: not known yet, ask again.
    pub(super) async fn fate_of(&self, id: &str) -> Option<(Fate, bool)> {
        match self.ended_fate(id) {
            Fate::Unknown => {}
            Fate::Pending => return None,
            known => return Some((known, false)),
        }
        let mut open = false;
        if let Some(peers) = self.peers() {
            let names = peers.names();
            let ask = DomainAsk::Fate { id: id.to_owned() };
            let answers = names.iter().map(|n| peers.about_domain(n, &ask));
            for answer in futures_util::future::join_all(answers).await {
                match answer {
                    Ok(DomainAnswer::Fate {
                        fate: fate @ (Fate::Gone | Fate::Stays),
                    }) => return Some((fate, true)),
                    Ok(DomainAnswer::Fate {
                        fate: Fate::Unknown,
                    })
                    // An older version, which hands no domain over.
                    | Err(PeerError::Refused { .. } | PeerError::Protocol { .. }) => {}
                    Ok(_) | Err(_) => open = true,
                }
            }
        }
        // Nobody gave it away.
        (!open).then_some((Fate::Stays, false))
    }

    /// Ends what is left of an incoming move in the guest of a domain that came here: unless it was
    /// resumed, it will never run.
    pub(super) async fn end_copy(&self, id: &str, uuid: &str) -> CopyState {
        let guest = self.domain_of(uuid).and_then(|d| self.guest(&d));
        let Some(guest) = guest else {
            return CopyState::Unknown;
        };
        let look = async || match guest.call(Call::Status, SHORT).await {
            Ok(Reply::Status(s)) => Some(s.moves.into_iter().find(|m| m.id == id)),
            _ => None,
        };
        match look().await {
            None => return CopyState::Unknown,
            Some(None) => return CopyState::Gone,
            Some(Some(m)) if m.state == GuestMoveState::Running => return CopyState::Running,
            Some(Some(_)) => {}
        }
        let discard = Call::Discard {
            id: id.to_owned(),
            force: false,
        };
        if let Err(e) = guest.call(discard, SHORT).await {
            tracing::warn!(%id, error = %e, "what came of a move with its domain is not removed");
        }
        match look().await {
            Some(None) => CopyState::Gone,
            Some(Some(m)) if m.state == GuestMoveState::Running => CopyState::Running,
            _ => CopyState::Unknown,
        }
    }

    /// What is left of an incoming move whose domain was migrated on, and who says so.
    pub async fn copy_elsewhere(&self, record: &TargetRecord) -> (String, CopyState) {
        let unknown = (String::new(), CopyState::Unknown);
        if self.active_here(&record.domain_uuid) {
            return unknown;
        }
        let host = lock(&self.peer_states)
            .values()
            .find(|s| {
                let runs =
                    |i: &crate::host::InstanceState| i.uuid == record.domain_uuid && i.running;
                s.instances.iter().any(runs)
            })
            .map(|s| s.name.clone());
        let (Some(host), Some(peers)) = (host, self.peers()) else {
            return unknown;
        };
        let ask = DomainAsk::Copy {
            id: record.id.clone(),
            uuid: record.domain_uuid.clone(),
        };
        match peers.about_domain(&host, &ask).await {
            Ok(DomainAnswer::Copy { copy }) => (host, copy),
            Ok(_) => unknown,
            Err(e) => {
                tracing::debug!(%host, id = %record.id, error = %e,
                    "not told what is left of a move whose domain was migrated");
                unknown
            }
        }
    }
}
