//! What the actions of a move on the source do.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::relay::{self, Relay};
use crate::daemon::{Daemon, SHORT, lock};
use crate::feature::FeatureName;
use crate::guest::{Guest, GuestError};
use crate::method::{HookName, Method};
use crate::moving::convergence::Round;
use crate::moving::record::SourceRecord;
use crate::moving::source::{Action, Event, State};
use crate::peer::{PeerError, RefusalKind};
use crate::wire::guest::{Call, ErrorKind, Preflight, Reply, RoundStats};
use crate::wire::peer::{Offer, PROTOCOL, TargetStatus};

/// Cause of a move that a user asked for.
pub(super) const BY_HAND: &str = "manual";
/// Longest wait for the target to discard; it asks by itself when it was not told.
const DISCARD: Duration = Duration::from_secs(30);
/// Longest wait for a target that is busy with other moves, to take the offer and to freeze.
const TURN: Duration = Duration::from_secs(590);
/// Pause between offers to a target that is busy.
const BUSY: Duration = Duration::from_secs(1);
/// A turn that came later than this asks for another round before the freeze.
const LATE: Duration = Duration::from_secs(1);
/// Longest time for a feature to be stopped, or started: the helper itself gives up earlier.
const STOP: Duration = Duration::from_secs(70);
/// Pause before another attempt.
const RENEW: Duration = Duration::from_secs(1);
/// Longest time of a round whatever its progress.
const ROUND: Duration = Duration::from_secs(24 * 3600);

/// What is known of the round under way.
#[derive(Debug)]
pub struct Progress {
    latest: Mutex<Mark>,
    /// The target is busy with other moves.
    pub waits: AtomicBool,
}

/// Progress of a round at a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mark {
    /// When it was told.
    at: Instant,
    /// Round.
    round: u16,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes in all.
    pub total: u64,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            latest: Mutex::new(Mark {
                at: Instant::now(),
                round: 0,
                sent: 0,
                total: 0,
            }),
            waits: AtomicBool::new(false),
        }
    }
}

impl Progress {
    /// Bytes of a round are sent. What does not go forward is no progress.
    pub fn tell(&self, round: u16, sent: u64, total: u64) {
        let mut latest = lock(&self.latest);
        if (round, sent) > (latest.round, latest.sent) {
            *latest = Mark {
                at: Instant::now(),
                round,
                sent,
                total,
            };
        }
    }

    /// A new attempt begins with the first round.
    pub fn reset(&self) {
        *lock(&self.latest) = Self::default().get();
    }

    /// The latest.
    pub fn get(&self) -> Mark {
        *lock(&self.latest)
    }

    /// Waits for `call` as long as there is some progress within every `patience`.
    async fn within<T>(&self, patience: Duration, call: impl Future<Output = T>) -> Option<T> {
        let mut call = std::pin::pin!(call);
        let mut from = Instant::now();
        loop {
            tokio::select! {
                done = &mut call => return Some(done),
                () = tokio::time::sleep_until((from + patience).into()) => {
                    let at = self.get().at;
                    if at <= from {
                        return None;
                    }
                    from = at;
                }
            }
        }
    }
}

/// What the actions share.
pub(super) struct Shared {
    pub daemon: Arc<Daemon>,
    pub record: SourceRecord,
    pub events: mpsc::Sender<Event>,
    pub step_timeout: Duration,
    pub restore_timeout: Duration,
    pub preflight: Mutex<Preflight>,
    pub relay: Mutex<Option<Relay>>,
    /// Bytes that relays which ended had sent, also those of earlier attempts.
    pub sent_before: AtomicU64,
    pub progress: Arc<Progress>,
    pub state: watch::Receiver<State>,
    /// Questions to resume that came to nothing.
    pub resumes: AtomicU32,
    /// The attempt that follows, once it is wanted.
    pub next: OnceLock<SourceRecord>,
}

impl Shared {
    /// What the steps of a move share as they begin; their outcomes go to `events`.
    pub fn new(
        daemon: &Arc<Daemon>,
        record: SourceRecord,
        events: mpsc::Sender<Event>,
        state: watch::Receiver<State>,
    ) -> Self {
        let moves = &daemon.config.moves;
        Self {
            step_timeout: Duration::from_secs(moves.step_timeout_s),
            restore_timeout: Duration::from_secs(moves.restore_timeout_s),
            daemon: Arc::clone(daemon),
            record,
            events,
            preflight: Mutex::default(),
            relay: Mutex::default(),
            sent_before: AtomicU64::default(),
            progress: Arc::default(),
            state,
            resumes: AtomicU32::default(),
            next: OnceLock::new(),
        }
    }

    /// The record of the attempt that follows this one: the journal's and the task's are the same.
    pub fn next_attempt(&self, handover: bool) -> &SourceRecord {
        self.next.get_or_init(|| self.record.next_attempt(handover))
    }

    /// Bytes relayed to the target so far.
    pub fn sent(&self) -> Option<u64> {
        let before = self.sent_before.load(Ordering::Relaxed);
        lock(&self.relay).as_ref().map(|r| before + r.bytes())
    }

    /// Ends the relay; what it sent stays counted.
    pub fn end_relay(&self) {
        if let Some(relay) = lock(&self.relay).take() {
            self.sent_before.fetch_add(relay.bytes(), Ordering::Relaxed);
        }
    }
}

/// Offers the move, opens the bulk connection and starts relaying.
async fn offer(shared: &Shared) -> Result<Relay, String> {
    let (daemon, record) = (&shared.daemon, &shared.record);
    let guest = guest(shared)?;
    let preflight = lock(&shared.preflight).clone();
    let demand = daemon.demand(&record.domain, &record.spec.name);
    let offer = Offer {
        protocol: PROTOCOL,
        id: record.id.clone(),
        spec: record.spec.clone(),
        from_domain: record.domain.clone(),
        to_domain: record.to_domain.clone(),
        stream: record.stream,
        cpus: demand.cpus,
        memory_mib: demand.memory_mib,
        by_hand: record.cause == BY_HAND,
        method: record.method,
        files: preflight.files.clone(),
        preflight,
    };
    let peers = daemon.peers().ok_or("this host has no peers configured")?;
    let begun = Instant::now();
    loop {
        match peers
            .offer(&record.to_host, &offer, shared.step_timeout)
            .await
        {
            Ok(()) => break,
            Err(PeerError::Refused {
                kind: RefusalKind::Busy,
                message,
                ..
            }) if *shared.state.borrow() == State::Offering && begun.elapsed() < TURN => {
                tracing::debug!(id = %record.id, reason = %message, "the target is busy; waiting");
                shared.progress.waits.store(true, Ordering::Relaxed);
                tokio::time::sleep(BUSY).await;
            }
            Err(e) => {
                shared.progress.waits.store(false, Ordering::Relaxed);
                return Err(e.to_string());
            }
        }
    }
    shared.progress.waits.store(false, Ordering::Relaxed);
    let sender = peers
        .open_bulk(&record.to_host, &record.id)
        .await
        .map_err(|e| e.to_string())?;
    let incoming = guest.bulk_subscribe(record.stream).await;
    let events = shared.events.clone();
    let ended = |reason: String| async move {
        let _ = events.send(Event::Failed(reason)).await;
    };
    let configured = Arc::clone(daemon);
    let limits = move || relay::Limits {
        host: configured.config.moves.bandwidth_limit_mib_s,
        each: configured.config.moves.bandwidth_limit_move_mib_s,
    };
    let sending = Arc::clone(&daemon.sending);
    let host = record.to_host.clone();
    Ok(Relay::start(incoming, sender, host, sending, limits, ended))
}

fn guest(shared: &Shared) -> Result<Guest, String> {
    let r = &shared.record;
    shared
        .daemon
        .guest(&r.domain)
        .ok_or_else(|| format!("the helper in domain '{}' is not connected", r.domain))
}

/// A helper that looked at another method than it was asked for knows no other.
pub fn too_old(domain: &str, method: Method) -> String {
    format!(
        "the helper in domain '{domain}' is too old for a {method}; install it again with 'drover \
         guest install'"
    )
}

pub(super) async fn perform(shared: &Shared, action: Action) -> Event {
    match action {
        Action::Preflight => {
            let method = shared.record.method;
            let call = Call::Preflight {
                feature: name(shared),
                method,
            };
            match call_guest(shared, call, shared.step_timeout).await {
                Ok(Reply::Preflight(found)) if found.method != method => {
                    Event::Failed(too_old(&shared.record.domain, method))
                }
                Ok(Reply::Preflight(found)) => Event::Preflight(found),
                Ok(other) => unexpected(&other),
                Err(e) => e,
            }
        }
        Action::PreDump { round, throttle } => {
            if throttle > 0 {
                slow_down(shared, throttle).await;
            }
            send_round(shared, round, false).await
        }
        Action::AskFreeze => ask_freeze(shared).await,
        Action::Freeze(round) => send_round(shared, round, true).await,
        Action::Restore(round) => restore(shared, round).await,
        Action::Commit => shared.daemon.commit_move(&shared.record).await,
        Action::Revert => shared.daemon.revert_move(&shared.record).await,
        Action::Resume { again } => {
            if again {
                // The target pauses between its own attempts; more questions hurry nothing.
                let failed = shared.resumes.fetch_add(1, Ordering::Relaxed).min(5);
                tokio::time::sleep(Duration::from_secs(1 << failed)).await;
            }
            resume(shared).await
        }
        Action::GiveUp => give_up(shared).await,
        Action::Release { commit, again } => {
            if again {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            release(shared, commit).await
        }
        Action::Discard => {
            let r = &shared.record;
            let Some(peers) = shared.daemon.peers() else {
                return Event::DiscardUnreachable;
            };
            match peers
                .discard(&r.to_host, &r.id, "the source gave up the move", DISCARD)
                .await
            {
                Ok(()) => Event::Discarded,
                Err(e) => {
                    tracing::warn!(id = %r.id, host = %r.to_host, error = %e,
                        "the target could not be told to discard; it will ask");
                    Event::DiscardUnreachable
                }
            }
        }
        Action::Renew { handover } => {
            tokio::time::sleep(RENEW).await;
            let next = shared.next_attempt(handover);
            shared.daemon.renew_move(&shared.record.id, next).await;
            Event::Renewed
        }
        Action::Offer => match offer(shared).await {
            Ok(relay) => {
                lock(&shared.relay).replace(relay);
                Event::Offered
            }
            Err(reason) => Event::Failed(reason),
        },
        // Handled by the task itself.
        Action::End => Event::Failed("internal: action out of place".into()),
    }
}

/// What the feature's own commands found at the target after a live move, when it was not good.
pub(super) async fn settled(shared: &Shared) -> Option<String> {
    let r = &shared.record;
    let limit = shared
        .record
        .spec
        .hooks()
        .limit(&[HookName::Resume, HookName::Health]);
    if r.method != Method::Live || limit.is_zero() {
        return None;
    }
    let until = Instant::now() + limit + SHORT;
    loop {
        match shared.daemon.peers()?.status(&r.to_host, &r.id).await {
            Ok(TargetStatus::Running {
                settling: false,
                warning,
                ..
            }) => return warning,
            Ok(TargetStatus::Running { .. }) | Err(_) if Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            other => {
                tracing::warn!(id = %r.id, ?other, "the target does not tell how the feature does");
                return Some(format!(
                    "host {} does not tell how the feature does there",
                    r.to_host
                ));
            }
        }
    }
}

fn name(shared: &Shared) -> FeatureName {
    shared.record.spec.name.clone()
}

fn unexpected(reply: &Reply) -> Event {
    Event::Failed(format!(
        "the helper gave an answer that does not fit: {reply:?}"
    ))
}

async fn call_guest(shared: &Shared, call: Call, timeout: Duration) -> Result<Reply, Event> {
    let guest = guest(shared).map_err(Event::Failed)?;
    guest.call(call, timeout).await.map_err(|e| match e {
        GuestError::Timeout { .. } => Event::TimedOut(e.to_string()),
        GuestError::Helper {
            kind: ErrorKind::Criu,
            ..
        } => Event::Stumbled(e.to_string()),
        other => Event::Failed(other.to_string()),
    })
}

async fn send_round(shared: &Shared, round: u16, freeze: bool) -> Event {
    let r = &shared.record;
    let started = Instant::now();
    let (id, feature, stream) = (r.id.clone(), name(shared), r.stream);
    let call = if freeze {
        Call::Freeze {
            id,
            feature,
            stream,
            round,
        }
    } else {
        Call::PreDump {
            id,
            feature,
            stream,
            round,
            method: r.method,
        }
    };
    let sent = call_guest(shared, call, ROUND);
    // Commands of the feature and its stop show no progress.
    let quiet = match (freeze, round) {
        (true, _) => {
            let stop = match r.method {
                Method::Live => Duration::ZERO,
                Method::Handover => Duration::from_millis(r.spec.drain_ms),
                Method::Restart => STOP,
            };
            stop + shared.record.spec.hooks().limit(&[HookName::Quiesce])
        }
        (false, 1) => shared.record.spec.hooks().limit(&[HookName::Prepare]),
        (false, _) => Duration::ZERO,
    };
    let patience = shared.step_timeout + quiet;
    let stats: RoundStats = match shared.progress.within(patience, sent).await {
        Some(Ok(Reply::Round(stats))) => stats,
        Some(Ok(other)) => return unexpected(&other),
        Some(Err(e)) => return e,
        None => {
            return Event::TimedOut(format!(
                "round {round} made no progress for {} s (moves.step_timeout_s)",
                patience.as_secs()
            ));
        }
    };
    let sent = |stats| {
        Event::RoundSent(
            round,
            Round {
                stats,
                total_ms: started.elapsed().as_millis() as u64,
            },
        )
    };
    if freeze {
        // The restore waits for the round to be complete; a question of its own would cost the
        // downtime one more way there and back.
        return sent(stats);
    }
    let Some(peers) = shared.daemon.peers() else {
        return Event::Failed("this host has no peers configured".into());
    };
    // The second instance of a handover starts with the first round.
    let timeout = match (r.method, round) {
        (Method::Handover, 1) => {
            shared.step_timeout + STOP + shared.record.spec.hooks().limit(&[HookName::Prepare])
        }
        _ => shared.step_timeout,
    };
    match peers.await_round(&r.to_host, &r.id, round, timeout).await {
        Ok(()) => sent(stats),
        Err(e) => peer_failed(&e),
    }
}

/// Slows the feature down. That it fails keeps no move from going on.
async fn slow_down(shared: &Shared, percent: u8) {
    let call = Call::Throttle {
        id: shared.record.id.clone(),
        feature: name(shared),
        percent,
    };
    tracing::info!(id = %shared.record.id, percent, "slowing the feature down");
    if let Err(Event::Failed(reason) | Event::TimedOut(reason) | Event::Stumbled(reason)) =
        call_guest(shared, call, SHORT).await
    {
        tracing::warn!(id = %shared.record.id, %reason, "the feature is not slowed down");
    }
}

/// Waits for this move's turn to freeze at the target.
async fn ask_freeze(shared: &Shared) -> Event {
    let r = &shared.record;
    let Some(peers) = shared.daemon.peers() else {
        return Event::Failed("this host has no peers configured".into());
    };
    // After the first round the target's unit may still be on its way up: the second question for
    // that round waits for it, rather than the frozen feature.
    if *shared.state.borrow() == (State::Waiting { round: 2 })
        && let Err(e) = peers
            .await_round(&r.to_host, &r.id, 1, shared.step_timeout)
            .await
    {
        return peer_failed(&e);
    }
    let begun = Instant::now();
    match peers.grant_freeze(&r.to_host, &r.id, TURN).await {
        Ok(()) => Event::FreezeGranted {
            late: begun.elapsed() > LATE,
        },
        Err(e) => peer_failed(&e),
    }
}

fn peer_failed(e: &PeerError) -> Event {
    match e {
        PeerError::Timeout { .. } => Event::TimedOut(e.to_string()),
        other => Event::Failed(other.to_string()),
    }
}

async fn restore(shared: &Shared, round: u16) -> Event {
    let r = &shared.record;
    let Some(peers) = shared.daemon.peers() else {
        return Event::Failed("this host has no peers configured".into());
    };
    let timeout = shared.restore_timeout
        + shared
            .record
            .spec
            .hooks()
            .limit(&[HookName::Resume, HookName::Health]);
    match peers.restore(&r.to_host, &r.id, round, timeout).await {
        Ok(TargetStatus::Ready { restore_ms }) => {
            tracing::debug!(id = %r.id, restore_ms, "target is ready");
            Event::TargetReady
        }
        Ok(TargetStatus::Failed { reason, passing }) => {
            let reason = format!("host {}: {reason}", r.to_host);
            if passing {
                Event::Stumbled(reason)
            } else {
                Event::Failed(reason)
            }
        }
        Ok(other) => Event::Failed(format!("host {} answered {other:?}", r.to_host)),
        Err(e) => peer_failed(&e),
    }
}

async fn resume(shared: &Shared) -> Event {
    let r = &shared.record;
    let Some(peers) = shared.daemon.peers() else {
        return Event::ResumeFailed;
    };
    let timeout = shared.restore_timeout + shared.record.spec.hooks().limit(&[HookName::Resume]);
    match peers.resume(&r.to_host, &r.id, timeout).await {
        Ok(TargetStatus::Running { resume_ms, .. }) => {
            tracing::debug!(id = %r.id, resume_ms, "target runs the feature");
            Event::TargetRunning
        }
        Ok(TargetStatus::Lost { reason }) => {
            tracing::warn!(id = %r.id, host = %r.to_host, %reason,
                "committed, but the target lost the feature before it ran; taking it back");
            Event::TargetLost(format!("host {}: {reason}", r.to_host))
        }
        Ok(other) => {
            tracing::error!(id = %r.id, host = %r.to_host, ?other,
                "committed, but the target does not run the feature yet; its log says why and what to do");
            Event::ResumeFailed
        }
        Err(e) => {
            tracing::warn!(id = %r.id, host = %r.to_host, error = %e,
                "committed; asking the target again to resume");
            Event::ResumeFailed
        }
    }
}

async fn give_up(shared: &Shared) -> Event {
    let r = &shared.record;
    let Some(peers) = shared.daemon.peers() else {
        return Event::GiveUpFailed;
    };
    // The copy there is not destroyed for one that is not to be had.
    if let Err(reason) = guest(shared) {
        tracing::error!(id = %r.id, %reason, "a move is not given up without its frozen copy");
        return Event::GiveUpFailed;
    }
    let timeout = 2 * shared.restore_timeout;
    match peers.give_up(&r.to_host, &r.id, timeout).await {
        Ok(TargetStatus::Lost { reason }) => {
            Event::TargetLost(format!("host {}: {reason}", r.to_host))
        }
        other => {
            tracing::error!(id = %r.id, host = %r.to_host, ?other,
                "the target has not given the move up");
            Event::GiveUpFailed
        }
    }
}

async fn release(shared: &Shared, commit: bool) -> Event {
    let r = &shared.record;
    if shared.daemon.domain_is_gone(&r.domain) {
        // The guest does not run: nothing of the feature is left in it.
        return Event::Released;
    }
    let call = Call::Release {
        id: r.id.clone(),
        feature: name(shared),
        commit,
    };
    let timeout = shared.step_timeout + STOP + shared.record.spec.hooks().limit(&[HookName::Abort]);
    match call_guest(shared, call, timeout).await {
        Ok(Reply::Done) => Event::Released,
        Ok(other) => {
            tracing::error!(id = %r.id, ?other, "unexpected answer to release");
            Event::ReleaseFailed
        }
        Err(Event::Failed(reason) | Event::TimedOut(reason) | Event::Stumbled(reason)) => {
            tracing::warn!(id = %r.id, %reason, commit, "ending the freeze failed; trying again");
            Event::ReleaseFailed
        }
        Err(_) => Event::ReleaseFailed,
    }
}
