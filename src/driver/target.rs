//! Target's driver: answers the source's requests one at a time per move, and settles moves in
//! doubt by asking the source.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::queue::Turn;
use crate::daemon::{Daemon, SHORT};
use crate::guest::{Guest, GuestError};
use crate::method::{HookName, Method};
use crate::moving::record::{TargetPhase, TargetRecord, job_of};
use crate::moving::target::{Action, Event, State, Target};
use crate::peer::{BulkReceiver, PeerError};
use crate::wire::guest::{Call, ErrorKind, MoveId, Reply};
use crate::wire::peer::{CopyState, TargetStatus, Verdict};

/// How long a move may be READY without a word of the source before it is asked.
const DOUBT_AFTER: Duration = Duration::from_secs(5);
/// How long a move may stay in an earlier state before the source is asked.
const ASK_AFTER: Duration = Duration::from_secs(15);
/// How long the source of an arrival may take to hand the history over.
const HISTORY: Duration = Duration::from_secs(600);
/// Longest time for a second instance to start: the helper itself gives up earlier.
const START: Duration = Duration::from_secs(65);
/// Pause between questions, and between attempts that failed.
const PAUSE: Duration = Duration::from_secs(2);
/// Longest pause between attempts to resume; each is twice as long as the one before.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);
/// Attempts to resume that fail before an administrator is told what to do.
const PATIENCE: u32 = 5;

/// One incoming move.
pub struct Incoming {
    /// Its record as last written.
    pub record: TargetRecord,
    machine: Target,
    restore_ms: u64,
    resume_ms: u64,
    failure: Option<String>,
    /// criu failed; another attempt may not.
    passing: bool,
    /// The feature's own commands are still asked how it does here.
    settling: bool,
    /// What they found, when it was not good.
    warning: Option<String>,
    /// Attempts to resume that failed.
    failed_resumes: u32,
    /// This move's turn to freeze, from its grant to the move's end here.
    freeze: Option<Turn>,
}

impl Incoming {
    fn new(record: TargetRecord, machine: Target, failure: Option<String>) -> Self {
        Self {
            record,
            machine,
            restore_ms: 0,
            resume_ms: 0,
            failure,
            passing: false,
            settling: false,
            warning: None,
            failed_resumes: 0,
            freeze: None,
        }
    }
}

/// A move's lock: one owner at a time.
pub type Slot = Arc<Mutex<Incoming>>;

/// All incoming moves of this host.
#[derive(Default)]
pub struct Moves {
    slots: std::sync::Mutex<HashMap<MoveId, Slot>>,
}

impl Moves {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<MoveId, Slot>> {
        self.slots
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
    /// A move by its id.
    pub fn get(&self, id: &str) -> Option<Slot> {
        self.lock().get(id).cloned()
    }
    /// How many moves are on their way here and neither over nor given up. One whose lock is held
    /// is at work.
    pub fn under_way(&self) -> usize {
        let over = |s: &Slot| {
            s.try_lock().is_ok_and(|i| {
                matches!(
                    i.machine.state(),
                    State::Running | State::Gone | State::Lost
                )
            })
        };
        self.all().iter().filter(|s| !over(s)).count()
    }
    /// Whether a move into this domain is neither over nor given up, as far as is known at once.
    pub fn into_domain(&self, uuid: &str) -> bool {
        self.all().iter().any(|s| {
            s.try_lock().map_or(true, |i| {
                let over = matches!(
                    i.machine.state(),
                    State::Running | State::Gone | State::Lost
                );
                i.record.domain_uuid == uuid && !over
            })
        })
    }
    fn all(&self) -> Vec<Slot> {
        self.lock().values().cloned().collect()
    }
    fn insert(&self, id: MoveId, slot: Slot) {
        self.lock().insert(id, slot);
    }
    fn remove(&self, id: &str) {
        self.lock().remove(id);
    }
}

impl Incoming {
    fn status(&self) -> TargetStatus {
        match self.machine.state() {
            State::Offered | State::Receiving | State::Restoring | State::Recording => {
                TargetStatus::Receiving
            }
            State::Ready | State::Resuming | State::Destroying => TargetStatus::Ready {
                restore_ms: self.restore_ms,
            },
            State::Running => TargetStatus::Running {
                resume_ms: self.resume_ms,
                settling: self.settling,
                warning: self.warning.clone(),
            },
            State::Losing | State::Lost => TargetStatus::Lost {
                reason: self.failure.clone().unwrap_or_else(|| "lost".into()),
            },
            State::Discarding | State::Gone => TargetStatus::Failed {
                reason: self.failure.clone().unwrap_or_else(|| "discarded".into()),
                passing: self.passing,
            },
        }
    }
}

fn guest(daemon: &Daemon, record: &TargetRecord) -> Result<Guest, String> {
    daemon
        .guest(&record.domain)
        .ok_or_else(|| format!("the helper in domain '{}' is not connected", record.domain))
}

async fn call(
    daemon: &Daemon,
    record: &TargetRecord,
    call: Call,
    timeout: Duration,
) -> Result<Reply, String> {
    let guest = guest(daemon, record)?;
    guest
        .call(call, timeout)
        .await
        .map_err(|e: GuestError| e.to_string())
}

/// Makes a checked offer known: from now on it is found by its id, and counted.
pub fn enter(daemon: &Daemon, record: &TargetRecord) {
    let incoming = Incoming::new(record.clone(), Target::new(), None);
    daemon
        .incoming
        .insert(record.id.clone(), Arc::new(Mutex::new(incoming)));
}

/// Accepts an offer that was entered: records it and has the guest prepare. `preflight` is the
/// source's: files that the guest compares, and room that it needs.
pub async fn accept(
    daemon: &Arc<Daemon>,
    id: &str,
    preflight: crate::wire::guest::Preflight,
) -> Result<(), String> {
    let slot = daemon.incoming.get(id).ok_or("no such move here")?;
    let mut incoming = slot.lock().await;
    if incoming.machine.state() != State::Offered {
        return Err("the move was given up before it was accepted".into());
    }
    let record = incoming.record.clone();
    if let Err(reason) = daemon.put_target(&record).await {
        daemon.incoming.remove(id);
        return Err(reason);
    }
    let receive = Call::Receive {
        id: id.to_owned(),
        spec: Box::new(record.spec.clone()),
        stream: record.stream,
        files: preflight.files,
        state_bytes: preflight.state_bytes,
        method: record.method,
        directories: preflight.directories,
        memory_bytes: preflight.resident_bytes,
    };
    watch_doubt(daemon, id);
    match call(daemon, &record, receive, SHORT).await {
        Ok(_) => {
            let _ = incoming.machine.step(Event::Prepared);
            Ok(())
        }
        Err(reason) => {
            fail(daemon, &mut incoming, reason.clone()).await;
            Err(reason)
        }
    }
}

/// Relays an incoming bulk connection into the guest until it ends.
pub async fn bulk(daemon: &Arc<Daemon>, id: &str, mut from: BulkReceiver) {
    let Some(slot) = daemon.incoming.get(id) else {
        return;
    };
    let record = slot.lock().await.record.clone();
    let reason = loop {
        let message = match from.next().await {
            Ok(Some(m)) => m,
            Ok(None) => break "the source closed the bulk connection".to_owned(),
            Err(e) => break format!("bulk connection from {}: {e}", record.from_host),
        };
        if message.stream != record.stream {
            break format!("{} sent data of another stream", record.from_host);
        }
        let guest = match guest(daemon, &record) {
            Ok(g) => g,
            Err(e) => break e,
        };
        if let Err(e) = guest.bulk_send(&message, SHORT).await {
            break e.to_string();
        }
    };
    tracing::debug!(%id, %reason, "bulk connection ended");
    let mut incoming = slot.lock().await;
    lose_source(daemon, &mut incoming, reason).await;
}

/// Gives up a move whose source is lost, unless it is READY or further.
async fn lose_source(daemon: &Arc<Daemon>, incoming: &mut Incoming, reason: String) {
    let before = incoming.machine.state();
    if let Ok(actions) = incoming.machine.step(Event::SourceLost) {
        if incoming.machine.state() != before {
            tracing::warn!(id = %incoming.record.id, %reason, "incoming move given up");
            incoming.failure = Some(reason);
        }
        settle(daemon, incoming, actions).await;
    }
}

/// Waits until a round is complete in the guest. Does not hold the move's lock, so that a
/// discard is not held up.
pub async fn await_round(daemon: &Daemon, id: &str, round: u16) -> Result<(), String> {
    let slot = daemon.incoming.get(id).ok_or("no such move here")?;
    let record = slot.lock().await.record.clone();
    let mut timeout = Duration::from_secs(daemon.config.moves.step_timeout_s);
    if record.method == Method::Handover && round == 1 {
        timeout += START + record.spec.hooks().limit(&[HookName::Prepare]);
    }
    call(
        daemon,
        &record,
        Call::AwaitRound {
            id: id.to_owned(),
            round,
        },
        timeout,
    )
    .await?;
    Ok(())
}

/// Restores up to the gate, records READY.
pub async fn restore(daemon: &Arc<Daemon>, id: &str, round: u16) -> Result<TargetStatus, String> {
    let slot = daemon.incoming.get(id).ok_or("no such move here")?;
    let mut incoming = slot.lock().await;
    incoming
        .machine
        .step(Event::RestoreAsked)
        .map_err(|e| e.to_string())?;
    let record = incoming.record.clone();
    let timeout = Duration::from_secs(daemon.config.moves.restore_timeout_s)
        + record
            .spec
            .hooks()
            .limit(&[HookName::Resume, HookName::Health]);
    let restore = Call::Restore {
        id: id.to_owned(),
        round,
    };
    let answer = match guest(daemon, &record) {
        Ok(g) => g.call_in_boot(restore, timeout).await.map_err(|e| {
            incoming.passing = matches!(
                e,
                GuestError::Helper {
                    kind: ErrorKind::Criu,
                    ..
                }
            );
            e.to_string()
        }),
        Err(e) => Err(e),
    };
    match answer {
        Ok((Reply::Ready { restore_ms }, boot_id)) => {
            incoming.restore_ms = restore_ms;
            let _ = incoming.machine.step(Event::Restored);
            incoming.record.phase = TargetPhase::Ready;
            incoming.record.boot_id = boot_id;
            if let Err(reason) = daemon.put_target(&incoming.record).await {
                fail(daemon, &mut incoming, reason).await;
            } else {
                let _ = incoming.machine.step(Event::ReadyRecorded);
                tracing::debug!(%id, restore_ms, "the feature is restored here and held; READY");
            }
        }
        Ok((other, _)) => {
            fail(
                daemon,
                &mut incoming,
                format!("unexpected answer {other:?}"),
            )
            .await;
        }
        Err(reason) => fail(daemon, &mut incoming, reason).await,
    }
    Ok(incoming.status())
}

/// Waits until no other move to this host is in its freeze. The turn is kept until the move's end
/// here. Does not hold the move's lock while it waits, so that a discard is not held up.
pub async fn grant_freeze(daemon: &Arc<Daemon>, id: &str) -> Result<(), String> {
    let slot = daemon.incoming.get(id).ok_or("no such move here")?;
    let turn = daemon.freezes.turn(0).await;
    let mut incoming = slot.lock().await;
    if incoming.machine.state() != State::Receiving {
        return Err("the move ended while it waited for its turn to freeze".into());
    }
    incoming.freeze.get_or_insert(turn);
    Ok(())
}

/// Looks at the moves into a domain after its guest came or went: what it held of a move may be
/// gone for good.
pub async fn guest_changed(daemon: &Arc<Daemon>, domain: &str) {
    for slot in daemon.incoming.all() {
        let mut incoming = slot.lock().await;
        if incoming.record.domain != domain {
            continue;
        }
        match incoming.machine.state() {
            // Before READY nothing is lost by giving up at once.
            State::Offered | State::Receiving | State::Restoring | State::Recording
                if guest(daemon, &incoming.record).is_err() =>
            {
                let reason = format!("the guest of domain '{domain}' was lost");
                fail(daemon, &mut incoming, reason).await;
            }
            State::Ready | State::Resuming | State::Destroying => {
                lose_guest(daemon, &mut incoming).await;
            }
            _ => {}
        }
    }
}

/// A domain was shut off for good: what its guest held is gone, whatever libvirt lists later.
pub async fn domain_ended(daemon: &Arc<Daemon>, uuid: &str) {
    for slot in daemon.incoming.all() {
        let mut incoming = slot.lock().await;
        let holds = matches!(
            incoming.machine.state(),
            State::Ready | State::Resuming | State::Destroying
        );
        if holds && incoming.record.domain_uuid == uuid {
            let reason = format!("domain '{}' was shut off", incoming.record.domain);
            record_loss(daemon, &mut incoming, reason).await;
        }
    }
}

/// Ends a move whose restored copy is proved to be gone.
async fn lose_guest(daemon: &Arc<Daemon>, incoming: &mut Incoming) {
    if let Some(reason) = gone(daemon, &incoming.record).await {
        record_loss(daemon, incoming, reason).await;
    }
}

/// How it is known that the restored copy is gone, if it is: here, or by the host to which its
/// domain was migrated.
async fn gone(daemon: &Daemon, record: &TargetRecord) -> Option<String> {
    if let Some(reason) = daemon.copy_is_gone(record) {
        return Some(reason);
    }
    match daemon.copy_elsewhere(record).await {
        (host, CopyState::Gone) => Some(format!(
            "domain '{}' was migrated to host '{host}' before the feature ran in it",
            record.domain
        )),
        _ => None,
    }
}

async fn record_loss(daemon: &Arc<Daemon>, incoming: &mut Incoming, reason: String) {
    if let Ok(actions) = incoming.machine.step(Event::GuestLost)
        && !actions.is_empty()
    {
        tracing::error!(id = %incoming.record.id, feature = %incoming.record.spec.name, %reason,
            "the guest that held a feature was lost before it ran here; its source takes it back");
        incoming.failure = Some(reason);
        settle(daemon, incoming, actions).await;
    }
}

/// The source has committed: resume.
pub async fn resume(daemon: &Arc<Daemon>, id: &str) -> Result<TargetStatus, String> {
    asked(daemon, id, Event::ResumeAsked).await
}

/// An administrator at the source gives a committed move up that does not resume here.
pub async fn give_up(daemon: &Arc<Daemon>, id: &str) -> Result<TargetStatus, String> {
    asked(daemon, id, Event::GiveUpAsked).await
}

/// Does what the source asks for, and says where the move stands then.
async fn asked(daemon: &Arc<Daemon>, id: &str, event: Event) -> Result<TargetStatus, String> {
    let slot = daemon.incoming.get(id).ok_or("no such move here")?;
    let mut incoming = slot.lock().await;
    let actions = incoming.machine.step(event).map_err(|e| e.to_string())?;
    settle(daemon, &mut incoming, actions).await;
    Ok(incoming.status())
}

/// The source gave up before the commit.
pub async fn discard(daemon: &Arc<Daemon>, id: &str, reason: &str) -> Result<(), String> {
    let Some(slot) = daemon.incoming.get(id) else {
        return Ok(());
    };
    let mut incoming = slot.lock().await;
    let actions = incoming
        .machine
        .step(Event::DiscardAsked)
        .map_err(|e| e.to_string())?;
    incoming.failure.get_or_insert_with(|| reason.to_owned());
    settle(daemon, &mut incoming, actions).await;
    Ok(())
}

/// Where a move stands here.
pub async fn status(daemon: &Daemon, id: &str) -> TargetStatus {
    match daemon.incoming.get(id) {
        Some(slot) => slot.lock().await.status(),
        None => TargetStatus::Unknown,
    }
}

/// A source's daemon went away: moves that are not READY are given up.
pub async fn source_lost(daemon: &Arc<Daemon>, host: &str) {
    for slot in daemon.incoming.all() {
        let mut incoming = slot.lock().await;
        if incoming.record.from_host != host {
            continue;
        }
        lose_source(daemon, &mut incoming, format!("host {host} was lost")).await;
    }
}

/// Takes up what the journal says after a restart.
pub async fn recover(daemon: &Arc<Daemon>, record: TargetRecord) {
    let id = record.id.clone();
    let (machine, actions) = Target::recovered(record.phase);
    tracing::info!(%id, feature = %record.spec.name, state = ?machine.state(),
        "incoming move found in the journal");
    let failure = match machine.state() {
        State::Lost => "the guest that held the feature was lost",
        _ => "droverd was restarted before the feature was ready",
    };
    let incoming = Incoming::new(record, machine, Some(failure.into()));
    let slot = Arc::new(Mutex::new(incoming));
    daemon.incoming.insert(id.clone(), Arc::clone(&slot));
    watch_doubt(daemon, &id);
    let mut incoming = slot.lock().await;
    settle(daemon, &mut incoming, actions).await;
}

/// Forgets an arrival once its source has no record of the move any more: until then the source
/// asks to resume, and only this record tells it that the feature came.
pub fn forget_arrival(daemon: &Arc<Daemon>, id: MoveId) {
    let daemon = Arc::clone(daemon);
    tokio::spawn(async move {
        let mut pause = PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(60));
            let (Some(slot), Some(peers)) = (daemon.incoming.get(&id), daemon.peers()) else {
                return;
            };
            let record = slot.lock().await.record.clone();
            match peers.verdict(&record.from_host, &id).await {
                // A record that is gone: this arrival was heard of.
                Ok(Verdict::Aborted) | Err(PeerError::UnknownPeer(_)) => {
                    daemon.forget_target(&record).await;
                    // The source hands the history over after it has ended the move.
                    tokio::time::sleep(HISTORY).await;
                    daemon.incoming.remove(&id);
                    return;
                }
                Ok(Verdict::Committed | Verdict::Pending) => {}
                Err(e) => tracing::debug!(%id, error = %e, "an arrival is not forgotten yet"),
            }
        }
    });
}

async fn fail(daemon: &Arc<Daemon>, incoming: &mut Incoming, reason: String) {
    tracing::warn!(id = %incoming.record.id, %reason, "incoming move failed");
    incoming.failure = Some(reason);
    if let Ok(actions) = incoming.machine.step(Event::Failed) {
        settle(daemon, incoming, actions).await;
    }
}

/// Performs actions and what follows from them. Attempts that must be repeated go on in a task
/// of their own, so that the caller gets its answer.
async fn settle(daemon: &Arc<Daemon>, incoming: &mut Incoming, mut actions: Vec<Action>) {
    while let Some(action) = actions.pop() {
        let id = incoming.record.id.clone();
        let event = match action {
            Action::Resume { again: true }
            | Action::Discard { again: true }
            | Action::Destroy { again: true } => {
                let pause = match action {
                    Action::Resume { .. } => pause(incoming.failed_resumes),
                    _ => PAUSE,
                };
                retry_later(daemon, id, action, pause);
                continue;
            }
            Action::Resume { again: false } => match try_resume(daemon, incoming).await {
                Ok(()) => Event::Resumed,
                Err(reason) => {
                    incoming.failed_resumes = incoming.failed_resumes.saturating_add(1);
                    resume_failed(incoming, &reason);
                    match gone(daemon, &incoming.record).await {
                        Some(reason) => {
                            incoming.failure = Some(reason);
                            Event::GuestLost
                        }
                        None => Event::ResumeFailed,
                    }
                }
            },
            Action::Discard { again: false } => {
                if try_discard(daemon, incoming).await {
                    Event::Discarded
                } else {
                    Event::DiscardFailed
                }
            }
            Action::Adopt => {
                daemon.adopt(&mut incoming.record).await;
                settle_down(daemon, incoming).await;
                forget_arrival(daemon, id);
                if daemon.copy_is_gone(&incoming.record).is_some() {
                    // Its guest was booted anew and looked after already, before it was known here.
                    let (daemon, domain) = (Arc::clone(daemon), incoming.record.domain.clone());
                    tokio::spawn(async move { daemon.recheck(&domain).await });
                }
                continue;
            }
            Action::RecordLost => {
                put_surely(daemon, incoming, TargetPhase::Lost).await;
                Event::LostRecorded
            }
            Action::RecordGiveUp => {
                tracing::warn!(%id, feature = %incoming.record.spec.name,
                    "given up after the commit by an administrator; destroying the copy here");
                put_surely(daemon, incoming, TargetPhase::Destroying).await;
                Event::GiveUpRecorded
            }
            Action::Destroy { again: false } => try_destroy(daemon, incoming).await,
            Action::Forget => {
                daemon.forget_target(&incoming.record).await;
                // Kept for a while so that a late question gets its answer.
                let (daemon, id) = (Arc::clone(daemon), id);
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_secs(60)).await;
                    daemon.incoming.remove(&id);
                });
                continue;
            }
            // The first two are performed where the request is answered, the last by the watch
            // over every move.
            Action::Restore | Action::RecordReady | Action::AskVerdict => continue,
        };
        if let Ok(more) = incoming.machine.step(event) {
            actions.extend(more);
        }
    }
    // Nothing of a move that is given up or over holds up another's freeze.
    if !matches!(
        incoming.machine.state(),
        State::Receiving | State::Restoring | State::Recording | State::Ready | State::Resuming
    ) {
        incoming.freeze = None;
    }
}

/// What follows an arrival: after a live move the feature's own commands are asked how it does,
/// which nobody waits for.
async fn settle_down(daemon: &Arc<Daemon>, incoming: &mut Incoming) {
    let record = incoming.record.clone();
    let limit = record
        .spec
        .hooks()
        .limit(&[HookName::Resume, HookName::Health]);
    if record.method != Method::Live || limit.is_zero() {
        return close_books(daemon, &record).await;
    }
    incoming.settling = true;
    let daemon = Arc::clone(daemon);
    tokio::spawn(async move {
        let ask = Call::Settled {
            id: record.id.clone(),
        };
        let end = call(&daemon, &record, ask, limit + SHORT).await;
        if let Err(reason) = &end {
            tracing::error!(id = %record.id, feature = %record.spec.name, %reason,
                "a feature that arrived is not well; nothing can be taken back");
        }
        if let Some(slot) = daemon.incoming.get(&record.id) {
            let mut incoming = slot.lock().await;
            incoming.settling = false;
            incoming.warning = end.err();
        }
        close_books(&daemon, &record).await;
    });
}

/// The guest keeps a note of the move until it is told that its arrival is recorded here.
async fn close_books(daemon: &Daemon, record: &TargetRecord) {
    let release = Call::Release {
        id: record.id.clone(),
        feature: record.spec.name.clone(),
        commit: true,
    };
    if let Err(reason) = call(daemon, record, release, SHORT).await {
        tracing::warn!(id = %record.id, %reason, "the guest keeps its note of an arrival");
    }
}

async fn try_resume(daemon: &Daemon, incoming: &mut Incoming) -> Result<(), String> {
    let id = incoming.record.id.clone();
    if daemon.copy_elsewhere(&incoming.record).await.1 == CopyState::Running {
        // It was resumed, and its domain migrated before that was told.
        return Ok(());
    }
    let timeout = Duration::from_secs(daemon.config.moves.restore_timeout_s)
        + incoming.record.spec.hooks().limit(&[HookName::Resume]);
    match call(daemon, &incoming.record, Call::Resume { id }, timeout).await? {
        Reply::Running { resume_ms, .. } => {
            incoming.resume_ms = resume_ms;
            Ok(())
        }
        other => Err(format!("unexpected answer {other:?}")),
    }
}

/// Writes a phase, however often it takes.
async fn put_surely(daemon: &Daemon, incoming: &mut Incoming, phase: TargetPhase) {
    incoming.record.phase = phase;
    while let Err(e) = daemon.put_target(&incoming.record).await {
        tracing::error!(id = %incoming.record.id, ?phase, error = %e,
            "what became of a copy cannot be recorded; trying again");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn try_destroy(daemon: &Daemon, incoming: &mut Incoming) -> Event {
    let record = &incoming.record;
    if let Some(reason) = gone(daemon, record).await {
        incoming.failure = Some(reason);
        return Event::GuestLost;
    }
    if daemon.copy_elsewhere(record).await.1 == CopyState::Running {
        return Event::Resumed;
    }
    let destroy = Call::Discard {
        id: record.id.clone(),
        force: true,
    };
    // It may have to wait for an attempt to resume.
    let timeout = Duration::from_secs(daemon.config.moves.restore_timeout_s) + SHORT;
    match call(daemon, record, destroy, timeout).await {
        Ok(Reply::Done) => {
            incoming.failure = Some(
                "an administrator gave the move up; the copy that did not \
                 resume there is destroyed"
                    .into(),
            );
            Event::Destroyed
        }
        Ok(Reply::Running { resume_ms, .. }) => {
            incoming.resume_ms = resume_ms;
            Event::Resumed
        }
        other => {
            tracing::error!(id = %record.id, ?other,
                "the copy that is given up is not destroyed yet; trying again");
            Event::DestroyFailed
        }
    }
}

async fn try_discard(daemon: &Daemon, incoming: &Incoming) -> bool {
    let record = &incoming.record;
    if daemon.domain_is_gone(&record.domain) {
        return true;
    }
    match call(
        daemon,
        record,
        Call::Discard {
            id: record.id.clone(),
            force: false,
        },
        SHORT,
    )
    .await
    {
        Ok(_) => true,
        Err(reason) => {
            tracing::warn!(id = %record.id, %reason, "cleaning up in the guest failed; trying again");
            false
        }
    }
}

/// Pause before the next attempt after so many that failed.
fn pause(failed: u32) -> Duration {
    let doubled = PAUSE.saturating_mul(1 << failed.saturating_sub(1).min(16));
    doubled.min(LONGEST_PAUSE)
}

/// Says that a committed move cannot resume, and what an administrator can do when that lasts. Only
/// this guest may run the feature; nothing but its end proves that it never will.
fn resume_failed(incoming: &Incoming, reason: &str) {
    let (record, attempts) = (&incoming.record, incoming.failed_resumes);
    let (id, feature, next_s) = (&record.id, &record.spec.name, pause(attempts).as_secs());
    if attempts < PATIENCE {
        tracing::warn!(%id, %feature, %reason, attempts, next_s,
            "committed, but resuming failed; trying again");
        return;
    }
    tracing::error!(%id, %feature, %reason, attempts, next_s,
        "committed, but the guest of domain '{}' cannot resume the feature, which is frozen on host \
         '{}' meanwhile; look at 'journalctl -u drover-guest' in the guest, or give the move up: \
         'drover jobabort --force {}' on '{1}' destroys the copy here and lets the feature go on \
         there; so does 'virsh destroy {0}' here, should the guest not answer",
        record.domain, record.from_host, job_of(id));
}

fn retry_later(daemon: &Arc<Daemon>, id: MoveId, action: Action, pause: Duration) {
    let daemon = Arc::clone(daemon);
    tokio::spawn(async move {
        tokio::time::sleep(pause).await;
        let Some(slot) = daemon.incoming.get(&id) else {
            return;
        };
        let mut incoming = slot.lock().await;
        let still = matches!(
            (incoming.machine.state(), action),
            (State::Resuming, Action::Resume { .. })
                | (State::Discarding, Action::Discard { .. })
                | (State::Destroying, Action::Destroy { .. })
        );
        if !still {
            return;
        }
        let once = match action {
            Action::Resume { .. } => Action::Resume { again: false },
            Action::Destroy { .. } => Action::Destroy { again: false },
            _ => Action::Discard { again: false },
        };
        settle(&daemon, &mut incoming, vec![once]).await;
    });
}

/// Watches a move until it runs or is gone, and asks the source how it ended when there is doubt:
/// READY without a word for a while, or anything earlier at times, since an offer may arrive
/// after the source has given it up.
fn watch_doubt(daemon: &Arc<Daemon>, id: &str) {
    let (daemon, id) = (Arc::clone(daemon), id.to_owned());
    tokio::spawn(async move {
        let (mut before, mut since) = (State::Offered, Instant::now());
        loop {
            tokio::time::sleep(PAUSE).await;
            let Some(slot) = daemon.incoming.get(&id) else {
                return;
            };
            let (state, host) = {
                let incoming = slot.lock().await;
                (incoming.machine.state(), incoming.record.from_host.clone())
            };
            if state != before {
                (before, since) = (state, Instant::now());
            }
            let patience = match state {
                State::Running | State::Gone => return,
                State::Discarding | State::Losing => continue,
                State::Ready | State::Resuming | State::Destroying => {
                    lose_guest(&daemon, &mut *slot.lock().await).await;
                    if state != State::Ready {
                        continue;
                    }
                    DOUBT_AFTER
                }
                _ => ASK_AFTER,
            };
            if since.elapsed() < patience {
                continue;
            }
            let verdict = match daemon.peers() {
                Some(peers) => peers.verdict(&host, &id).await,
                None => return,
            };
            let event = match verdict {
                Ok(Verdict::Committed) => Event::ResumeAsked,
                Ok(Verdict::Aborted) => Event::DiscardAsked,
                Ok(Verdict::Pending) => continue,
                Err(e) => {
                    tracing::warn!(%id, %host, error = %e,
                        "in doubt about a move and the source does not answer; asking again");
                    continue;
                }
            };
            let mut incoming = slot.lock().await;
            if let Ok(actions) = incoming.machine.step(event)
                && !actions.is_empty()
            {
                tracing::info!(%id, %host, ?event, "the source settled a move in doubt");
                settle(&daemon, &mut incoming, actions).await;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_become_rarer_and_go_on() {
        let seconds = [0, 1, 2, 3, 6, 7, 8, u32::MAX].map(|n| pause(n).as_secs());
        assert_eq!(seconds, [2, 2, 4, 8, 64, 120, 120, 120]);
    }
}
