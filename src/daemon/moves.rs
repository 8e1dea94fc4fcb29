//! Beginning, committing and ending moves: everything that touches registry and journal.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::affinity::{Demand, Stat, UsageWindow};
use crate::api::{ApiError, ApiEvent, Destination, Job, JobResult};
use crate::driver::source::{self, Begin};
use crate::driver::target;
use crate::feature::{FeatureName, FeatureSpec};
use crate::history::{StoredTier, transfer};
use crate::method::Method;
use crate::moving::record::{SourceRecord, TargetPhase, TargetRecord, job_of};
use crate::moving::source::{Event, State};
use crate::store::{Change, FeatureRecord, Side, StoreError};
use crate::wire::guest::MoveId;
use crate::wire::peer::Verdict;

use super::instance::Feature;
use super::{Daemon, DaemonError, clock, lock};

/// Share of the mean by which the expected demand of a feature is rounded up.
const DEMAND_MARGIN: f64 = 1.1;
/// Longest wait for moves to end when droverd stops; systemd gives it 60 s in all.
const END_MOVES: Duration = Duration::from_secs(15);

impl Daemon {
    /// What a feature is expected to use on a target: the mean of its recent use, with a margin.
    pub fn demand(&self, domain: &str, feature: &FeatureName) -> Demand {
        let instances = lock(&self.instances);
        let Some(f) = instances.get(domain).and_then(|i| i.features.get(feature)) else {
            return Demand::default();
        };
        let window = UsageWindow::of(&f.recent.last(5));
        let expected = |stat: Option<Stat>| stat.map_or(0.0, |s| s.mean * DEMAND_MARGIN);
        Demand {
            cpus: expected(window.cpus),
            memory_mib: expected(window.memory_mib),
            net_bps: expected(window.net_bps),
            disk_bps: expected(window.disk_bps),
        }
    }

    /// Begins a move to a checked destination. The record is durable before anything changes.
    pub async fn begin_move(
        self: &Arc<Self>,
        domain: &str,
        feature: &FeatureName,
        to_host: &str,
        to_domain: &str,
        cause: String,
        method: Option<Method>,
    ) -> Result<Job, ApiError> {
        let _guard = self.changes.lock(domain).await;
        if self.stopping.load(Ordering::Relaxed) {
            return Err(ApiError::Busy("droverd is stopping".into()));
        }
        let id: MoveId = uuid::Uuid::new_v4().to_string();
        let record = {
            let instances = lock(&self.instances);
            let (instance, f) = self.find(&instances, domain, feature)?;
            if let Some(other) = &f.moving {
                return Err(ApiError::Busy(format!(
                    "feature '{feature}' is being moved already (move {other}); see 'drover jobinfo'"
                )));
            }
            if !f.record.enabled || f.running != Some(true) {
                return Err(ApiError::Refused(format!(
                    "feature '{feature}' does not run; enable it first"
                )));
            }
            let spec = f.record.spec.clone();
            let method = method.unwrap_or(spec.method);
            if let Some(why) = spec.against(method) {
                return Err(ApiError::Refused(why));
            }
            SourceRecord {
                id: id.clone(),
                method,
                spec,
                domain: domain.to_owned(),
                domain_uuid: instance.info.uuid.clone(),
                from_host: self.name().to_owned(),
                to_host: to_host.to_owned(),
                to_domain: to_domain.to_owned(),
                stream: stream_of(&id),
                cause,
                started_ms: clock::now_ms(),
                committed: false,
                reverted: false,
            }
        };
        // Nothing else begins a move of the domain's features meanwhile.
        self.set_moving(domain, feature, Some(id.clone()));
        if let Err(e) = self.put_source(&record).await {
            self.set_moving(domain, feature, None);
            return Err(ApiError::Failed(format!(
                "the journal cannot be written: {e}"
            )));
        }
        tracing::info!(%id, %domain, %feature, %to_host, %to_domain, cause = %record.cause, "move begins");
        let handle = source::spawn(self, record, Begin::Fresh);
        let job = handle.job.borrow().clone();
        lock(&self.outgoing).insert(id, handle);
        Ok(job)
    }

    fn set_moving(&self, domain: &str, feature: &FeatureName, id: Option<MoveId>) {
        self.with_feature(domain, feature, |f| f.moving = id);
    }

    pub(super) async fn write(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        self.store.run(move |s| s.transaction(changes)).await
    }

    async fn put_source(&self, record: &SourceRecord) -> Result<(), String> {
        let bytes = serde_json::to_vec(record).map_err(|e| e.to_string())?;
        self.write(vec![put_move(Side::Source, &record.id, bytes)])
            .await
            .map_err(|e| e.to_string())
    }

    /// Writes a target's record durably.
    pub async fn put_target(&self, record: &TargetRecord) -> Result<(), String> {
        let bytes = serde_json::to_vec(record).map_err(|e| e.to_string())?;
        self.write(vec![put_move(Side::Target, &record.id, bytes)])
            .await
            .map_err(|e| e.to_string())
    }

    /// Writes the one durable commit record and takes the feature out of the registry, in one
    /// transaction. When writing fails, the record is read back to learn what holds.
    pub async fn commit_move(&self, record: &SourceRecord) -> Event {
        let committed = SourceRecord {
            committed: true,
            ..record.clone()
        };
        let bytes = match serde_json::to_vec(&committed) {
            Ok(b) => b,
            Err(e) => return Event::CommitFailed(e.to_string()),
        };
        let changes = vec![
            put_move(Side::Source, &record.id, bytes),
            Change::RemoveFeature {
                domain_uuid: record.domain_uuid.clone(),
                name: record.spec.name.clone(),
            },
        ];
        match self.write(changes).await {
            Ok(()) => Event::Committed,
            Err(reason) => loop {
                match self.source_record(&record.id).await {
                    Ok(Some(r)) if r.committed => return Event::Committed,
                    Ok(_) => {
                        return Event::CommitFailed(format!(
                            "the commit cannot be recorded: {reason}"
                        ));
                    }
                    Err(e) => {
                        // Neither yes nor no: the feature stays frozen until the journal answers.
                        tracing::error!(id = %record.id, error = %e,
                            "the journal cannot be read while committing; trying again");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            },
        }
    }

    /// Takes the commit back and registers the feature here again, in one transaction. Only after
    /// the target has durably recorded that it can never resume.
    pub async fn revert_move(&self, record: &SourceRecord) -> Event {
        let reverted = SourceRecord {
            committed: false,
            reverted: true,
            ..record.clone()
        };
        let feature = FeatureRecord {
            domain: record.domain.clone(),
            spec: record.spec.clone(),
            enabled: true,
            // A failed move counts as one, so that it is not tried again at once.
            moved_at_ms: clock::now_ms(),
        };
        let bytes = serde_json::to_vec(&reverted).unwrap_or_default();
        let changes = vec![
            put_move(Side::Source, &record.id, bytes),
            Change::PutFeature {
                domain_uuid: record.domain_uuid.clone(),
                record: Box::new(feature.clone()),
            },
        ];
        while let Err(e) = self.write(changes.clone()).await {
            tracing::error!(id = %record.id, error = %e,
                "a move cannot be taken back in the journal; trying again");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        if let Some(i) = lock(&self.instances).get_mut(&record.domain) {
            // After a restart it is not there: the commit had taken it out.
            let f = i
                .features
                .entry(record.spec.name.clone())
                .or_insert_with(|| Feature::new(feature));
            f.moving = Some(job_of(&record.id).to_owned());
        }
        Event::Reverted
    }

    /// Cancels the moves that still can be cancelled, and waits a while for them and for those
    /// that are nearly through. What is left is taken up at the next start.
    pub(super) async fn end_moves(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        let handles: Vec<_> = lock(&self.outgoing).values().cloned().collect();
        for handle in handles {
            let _ = handle.events.send(Event::Stopping).await;
        }
        let until = tokio::time::Instant::now() + END_MOVES;
        while !lock(&self.outgoing).is_empty() {
            if tokio::time::Instant::now() > until {
                tracing::warn!("moves are still under way; the next start takes them up");
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Puts the record of a move's next attempt in place of that of the attempt `before`, in one
    /// transaction. Who asks about that one hears that it was given up.
    pub async fn renew_move(&self, before: &str, next: &SourceRecord) {
        let bytes = serde_json::to_vec(next).unwrap_or_default();
        let changes = vec![
            Change::RemoveMove {
                side: Side::Source,
                id: before.to_owned(),
            },
            put_move(Side::Source, &next.id, bytes),
        ];
        while let Err(e) = self.write(changes.clone()).await {
            tracing::error!(id = %before, error = %e,
                "another attempt to move cannot be recorded; trying again");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Whether this is the attempt under way of a move from here.
    pub(super) fn is_outgoing(&self, id: &str) -> bool {
        lock(&self.outgoing)
            .get(job_of(id))
            .is_some_and(|h| h.is_attempt(id))
    }

    /// Whether a move is under way, from here or to here.
    pub(super) fn under_way(&self, id: &str) -> bool {
        self.is_outgoing(id) || self.incoming.get(id).is_some()
    }

    pub(super) async fn source_record(&self, id: &str) -> Result<Option<SourceRecord>, String> {
        let moves = self.store.run(|s| s.moves(Side::Source)).await;
        let moves = moves.map_err(|e| e.to_string())?;
        match moves.into_iter().find(|(i, _)| i == id) {
            Some((_, bytes)) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| e.to_string()),
            None => Ok(None),
        }
    }

    /// What a target in doubt is told. Only a durable commit record makes `Committed`, and only
    /// the absence of the move makes `Aborted`.
    pub async fn verdict(&self, from: &str, id: &str) -> Verdict {
        match self.source_record(id).await {
            Ok(Some(r)) if r.to_host != from => Verdict::Pending,
            Ok(Some(r)) if r.committed => Verdict::Committed,
            Ok(Some(_)) => {
                let outgoing = lock(&self.outgoing);
                let state = outgoing.get(job_of(id)).map(|h| *h.state.borrow());
                match state {
                    Some(State::Aborting { .. }) => Verdict::Aborted,
                    _ => Verdict::Pending,
                }
            }
            // No record means aborted, unless a record is there that cannot be read.
            Ok(None) => match self.store.run(|s| s.damaged_moves(Side::Source)).await {
                Ok(damaged) if damaged.iter().all(|d| d != id) => Verdict::Aborted,
                _ => Verdict::Pending,
            },
            Err(e) => {
                tracing::error!(%id, error = %e, "the journal cannot be read");
                Verdict::Pending
            }
        }
    }

    /// Records the end of a move and tells everyone.
    pub async fn move_ended(self: &Arc<Self>, record: &SourceRecord, job: &Job) {
        let changes = vec![
            Change::PutJob(Box::new(job.clone())),
            Change::RemoveMove {
                side: Side::Source,
                id: record.id.clone(),
            },
        ];
        // As long as there is a record, the target may be in doubt.
        while let Err(e) = self.write(changes.clone()).await {
            tracing::error!(id = %record.id, error = %e,
                "the end of a move cannot be recorded; trying again");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let feature = &record.spec.name;
        if job.result == Some(JobResult::Done) {
            self.send_history(&record.to_host, &record.id, &record.spec)
                .await;
            let mut instances = lock(&self.instances);
            if let Some(i) = instances.get_mut(&record.domain) {
                // Unless it has come back meanwhile: then it is another one.
                if i.features
                    .get(feature)
                    .is_some_and(|f| f.moving.as_deref() == Some(job_of(&record.id)))
                {
                    i.features.remove(feature);
                }
            }
        } else {
            self.set_moving(&record.domain, feature, None);
        }
        let reason = job.reason.as_deref().unwrap_or("");
        match job.result {
            Some(JobResult::Done) => tracing::info!(id = %record.id, %feature,
                to = %record.to_host, rounds = job.rounds, bytes = job.bytes_sent,
                freeze_ms = job.freeze_ms, "move done"),
            _ => {
                tracing::warn!(id = %record.id, %feature, to = %record.to_host, result = ?job.result,
                reason, "move not done; the feature goes on here");
            }
        }
        if job.result == Some(JobResult::Done) {
            self.emit(ApiEvent::Feature {
                domain: record.domain.clone(),
                feature: feature.clone(),
                what: "left".into(),
            });
        }
        // Before anybody hears of the end: the next decision may be made elsewhere at once.
        self.tell_peers();
        self.emit(ApiEvent::Move { job: job.clone() });
        self.after_move(job);
        lock(&self.outgoing).remove(job_of(&record.id));
        self.define(&record.domain).await;
        if job.result != Some(JobResult::Done) {
            // The guest may have been rebooted meanwhile; nobody looked after the feature then.
            self.recheck(&record.domain).await;
        }
    }

    /// Gives the feature's history to its new host, so that it goes on there.
    pub(super) async fn send_history(&self, to: &str, id: &str, spec: &FeatureSpec) {
        /// Longest wait for one call.
        const TIMEOUT: Duration = Duration::from_secs(30);
        let Some(peers) = self.peers() else { return };
        let key = super::metering::series(spec);
        let points = match self.history.range(&key, 0, i64::MAX, usize::MAX).await {
            Ok(p) => p,
            Err(e) => {
                tracing::warn!(%id, error = %e, "history of a moved feature not read");
                return;
            }
        };
        let mut tries = 0;
        while let Err(e) = peers.import_history(to, id, &points, TIMEOUT).await {
            tries += 1;
            if tries == 3 {
                tracing::warn!(%id, error = %e,
                    "history of a moved feature not handed over; it stays readable here");
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        // The coarse tiers after the points, which matter first.
        for (tier, name) in [
            (StoredTier::Minute, "minute"),
            (StoredTier::Quarter, "quarter"),
        ] {
            let sent = match self.history.rollups(&key, tier).await {
                Ok(points) => {
                    let parcels: Vec<Vec<u8>> = points
                        .chunks(transfer::PARCEL)
                        .map(transfer::pack)
                        .collect();
                    peers
                        .import_rollups(to, id, name, &parcels, TIMEOUT)
                        .await
                        .map_err(|e| e.to_string())
                }
                Err(e) => Err(e.to_string()),
            };
            if let Err(e) = sent {
                tracing::warn!(%id, tier = name, error = %e,
                    "rolled up history of a moved feature not handed over; it stays readable here");
            }
        }
    }

    /// Registers a feature that arrived, in one transaction with the move's record.
    pub async fn adopt(&self, record: &mut TargetRecord) {
        record.phase = TargetPhase::Running;
        let feature = FeatureRecord {
            domain: record.domain.clone(),
            spec: record.spec.clone(),
            enabled: true,
            moved_at_ms: clock::now_ms(),
        };
        let bytes = serde_json::to_vec(record).unwrap_or_default();
        let changes = vec![
            Change::PutFeature {
                domain_uuid: record.domain_uuid.clone(),
                record: Box::new(feature.clone()),
            },
            put_move(Side::Target, &record.id, bytes),
        ];
        while let Err(e) = self.write(changes.clone()).await {
            tracing::error!(id = %record.id, error = %e,
                "a feature that arrived cannot be registered; trying again");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        {
            let mut instances = lock(&self.instances);
            if let Some(i) = instances.get_mut(&record.domain) {
                let mut f = Feature::new(feature);
                f.running = Some(true);
                i.features.insert(record.spec.name.clone(), f);
            }
        }
        tracing::info!(id = %record.id, feature = %record.spec.name, from = %record.from_host,
            domain = %record.domain, "feature arrived");
        self.emit(ApiEvent::Feature {
            domain: record.domain.clone(),
            feature: record.spec.name.clone(),
            what: "arrived".into(),
        });
        self.tell_peers();
        self.settle(&record.id);
        let domain = record.domain.clone();
        self.define(&domain).await;
    }

    /// Forgets an incoming move that was discarded.
    pub async fn forget_target(&self, record: &TargetRecord) {
        if let Err(e) = self
            .write(vec![Change::RemoveMove {
                side: Side::Target,
                id: record.id.clone(),
            }])
            .await
        {
            tracing::error!(id = %record.id, error = %e, "a discarded move cannot be forgotten");
        }
        // The room of one that arrived is freed as its load comes to be measured.
        if record.phase != TargetPhase::Running {
            self.unreserve(&record.id);
        }
        self.define(&record.domain).await;
    }

    /// Takes up what the journal holds after a restart.
    pub async fn recover_moves(self: &Arc<Self>) -> Result<(), DaemonError> {
        for side in [Side::Source, Side::Target] {
            for id in self.store.damaged_moves(side)? {
                tracing::error!(%id, ?side, "a move's record is damaged; it is left in the journal, \
                    look at the feature on both hosts");
            }
        }
        for (id, bytes) in self.store.moves(Side::Source)? {
            let Ok(record) = serde_json::from_slice::<SourceRecord>(&bytes) else {
                tracing::error!(%id, "a move's record is not readable; left in the journal");
                continue;
            };
            tracing::warn!(%id, committed = record.committed, "move found in the journal");
            // A committed one took the feature out of the registry; what is there came back since.
            if !record.committed {
                let job = job_of(&id).to_owned();
                self.set_moving(&record.domain, &record.spec.name, Some(job));
            }
            let handle = source::spawn(self, record, Begin::Recovered);
            lock(&self.outgoing).insert(job_of(&id).to_owned(), handle);
        }
        for (id, bytes) in self.store.moves(Side::Target)? {
            let Ok(record) = serde_json::from_slice::<TargetRecord>(&bytes) else {
                tracing::error!(%id, "an incoming move's record is not readable; left in the journal");
                continue;
            };
            let arrived = record.phase == TargetPhase::Running;
            if !arrived {
                self.reserve(&record);
            }
            target::recover(self, record).await;
            if arrived {
                target::forget_arrival(self, id);
            }
        }
        Ok(())
    }

    /// Whether the named host and domain exist at all.
    pub(super) fn check_destination(&self, to: &Destination) -> Result<(), ApiError> {
        let Some(host) = &to.host else { return Ok(()) };
        let known = host == self.name()
            || self
                .peers()
                .is_some_and(|p| p.names().iter().any(|n| n == host));
        if !known {
            return Err(ApiError::NotFound(format!(
                "no host '{host}' among the peers of '{}'; 'drover hosts' shows them",
                self.name()
            )));
        }
        let (Some(domain), Some(state)) = (&to.domain, lock(&self.peer_states).get(host).cloned())
        else {
            return Ok(());
        };
        if state.instances.iter().any(|i| i.domain == *domain) {
            return Ok(());
        }
        Err(ApiError::NotFound(format!(
            "no domain '{domain}' on host '{host}'; 'drover hosts --format json' shows them"
        )))
    }

    /// Chooses the destination of a move by hand and begins it.
    pub async fn migrate_by_hand(
        self: &Arc<Self>,
        domain: &str,
        feature: &FeatureName,
        to: Destination,
    ) -> Result<Job, ApiError> {
        self.check_destination(&to)?;
        let method = to.method;
        if let Some(job) = self.skipped(domain, feature, &to).await? {
            return Ok(job);
        }
        let cause = crate::decision::Cause::Manual { to };
        let plan = self.decided(domain, feature, cause).await?;
        let Some(chosen) = plan.chosen.and_then(|i| plan.candidates.get(i)) else {
            let why: Vec<String> = plan
                .candidates
                .iter()
                .filter(|c| !c.refusals.is_empty())
                .map(|c| {
                    let at = if c.domain.is_empty() {
                        c.host.clone()
                    } else {
                        format!("{}/{}", c.host, c.domain)
                    };
                    format!("{at}: {}", c.refusals.join(", "))
                })
                .collect();
            return Err(ApiError::Refused(format!(
                "{} ({})",
                plan.reason,
                why.join("; ")
            )));
        };
        let (host, target) = (chosen.host.clone(), chosen.domain.clone());
        let id = plan.id.clone();
        self.emit(ApiEvent::Decision { plan });
        let job = self
            .begin_move(domain, feature, &host, &target, "manual".into(), method)
            .await?;
        let move_id = job.id.clone();
        self.change_decision(&id, |r| r.move_id = Some(move_id))
            .await;
        Ok(job)
    }
}

fn put_move(side: Side, id: &MoveId, record: Vec<u8>) -> Change {
    Change::PutMove {
        side,
        id: id.clone(),
        record,
    }
}

/// A stream number from a move's id: its first eight hexadecimal digits.
fn stream_of(id: &str) -> u32 {
    u32::from_str_radix(id.get(..8).unwrap_or("1"), 16)
        .unwrap_or(1)
        .max(1)
}
