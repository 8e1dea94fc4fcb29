//! Source's driver: one task per move. It owns the machine; answers of guest and peer come back
//! to it as events.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::api::{ApiEvent, Job, RoundRow};
use crate::daemon::{Daemon, lock};
use crate::feature::FeatureName;
use crate::guest::{Guest, GuestError};
use crate::moving::convergence::Round;
use crate::moving::record::SourceRecord;
use crate::moving::source::{Action, Event, Source, State};
use crate::peer::PeerError;
use crate::wire::guest::{Call, Preflight, Reply, RoundStats};
use crate::wire::peer::{Offer, PROTOCOL, TargetStatus};

/// Longest wait for the target to discard; it asks by itself when it was not told.
const DISCARD: Duration = Duration::from_secs(30);
/// Pause between reports of bytes sent.
const PROGRESS: Duration = Duration::from_millis(500);

/// A running move as the rest of the daemon sees it.
#[derive(Debug, Clone)]
pub struct Handle {
    /// Where events go.
    pub events: mpsc::Sender<Event>,
    /// The job as it stands.
    pub job: watch::Receiver<Job>,
    /// Where its machine stands.
    pub state: watch::Receiver<State>,
}

/// How a task begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// A new move; its record is durable.
    Fresh,
    /// A record found after a restart.
    Recovered,
}

struct Relay {
    task: JoinHandle<()>,
    bytes: Arc<AtomicU64>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the actions share.
struct Shared {
    daemon: Arc<Daemon>,
    record: SourceRecord,
    events: mpsc::Sender<Event>,
    step_timeout: Duration,
    restore_timeout: Duration,
    preflight: Mutex<Preflight>,
    relay: Mutex<Option<Relay>>,
}

impl Shared {
    fn sent(&self) -> Option<u64> {
        lock(&self.relay)
            .as_ref()
            .map(|r| r.bytes.load(Ordering::Relaxed))
    }
}

/// Starts the task of a move.
pub fn spawn(daemon: &Arc<Daemon>, record: SourceRecord, begin: Begin) -> Handle {
    let (events, inbox) = mpsc::channel(64);
    let (job, job_rx) = watch::channel(record.job());
    let (state, state_rx) = watch::channel(State::New);
    let moves = &daemon.config.moves;
    let shared = Arc::new(Shared {
        daemon: Arc::clone(daemon),
        events: events.clone(),
        step_timeout: Duration::from_secs(moves.step_timeout_s),
        restore_timeout: Duration::from_secs(moves.restore_timeout_s),
        preflight: Mutex::default(),
        relay: Mutex::default(),
        record,
    });
    tokio::spawn(run(shared, begin, inbox, job, state));
    Handle {
        events,
        job: job_rx,
        state: state_rx,
    }
}

async fn run(
    shared: Arc<Shared>,
    begin: Begin,
    mut inbox: mpsc::Receiver<Event>,
    job: watch::Sender<Job>,
    state: watch::Sender<State>,
) {
    let record = &shared.record;
    let moves = &shared.daemon.config.moves;
    let mut machine = Source::new(record.spec.downtime_ms, moves.max_rounds);
    let first = match begin {
        Begin::Fresh => Event::Start,
        Begin::Recovered => Event::Recovered {
            committed: record.committed,
        },
    };
    // When the feature stopped running here, for the freeze's length.
    let mut frozen_at: Option<Instant> = None;
    let mut next = Some(first);
    let mut progress = tokio::time::interval(PROGRESS);
    loop {
        let event = if let Some(e) = next.take() {
            e
        } else {
            tokio::select! {
                event = inbox.recv() => match event {
                    Some(e) => e,
                    None => return,
                },
                _ = progress.tick() => {
                    if let Some(sent) = shared.sent().filter(|n| *n != job.borrow().bytes_sent) {
                        job.send_modify(|j| j.bytes_sent = sent);
                        let snapshot = job.borrow().clone();
                        shared.daemon.emit(ApiEvent::Move { job: snapshot });
                    }
                    continue;
                }
            }
        };
        match &event {
            Event::Preflight(found) => found.clone_into(&mut lock(&shared.preflight)),
            Event::RoundSent(number, round) => {
                job.send_modify(|j| j.history.push(row(*number, round)));
                if machine.state() == (State::Freezing { round: *number }) {
                    let gone = round.stats.frozen_ms + round.stats.send_ms;
                    frozen_at =
                        Instant::now().checked_sub(Duration::from_millis(gone.min(round.total_ms)));
                }
            }
            Event::TargetRunning => {
                if let Some(at) = frozen_at {
                    job.send_modify(|j| j.freeze_ms = Some(at.elapsed().as_millis() as u64));
                }
            }
            _ => {}
        }
        let before = machine.state();
        let actions = machine.step(event);
        let after = machine.state();
        if before != after {
            tracing::info!(id = %record.id, feature = %record.spec.name, from = before.word(),
                to = after.word(), "move");
        }
        state.send_replace(after);
        if matches!(after, State::Aborting { .. }) {
            lock(&shared.relay).take();
        }
        job.send_modify(|j| {
            after.word().clone_into(&mut j.state);
            if let State::PreCopy { round } | State::Freezing { round } = after {
                j.rounds = u32::from(round);
            }
            if let Some(sent) = shared.sent() {
                j.bytes_sent = sent;
            }
        });
        let mut ended = false;
        for action in actions {
            tracing::debug!(id = %record.id, ?action, "move action");
            match action {
                Action::End => ended = true,
                other => {
                    let shared = Arc::clone(&shared);
                    tokio::spawn(async move {
                        let event = perform(&shared, other).await;
                        let _ = shared.events.send(event).await;
                    });
                }
            }
        }
        if ended {
            let ending = machine.ending().cloned();
            job.send_modify(|j| {
                j.ended_ms = Some(crate::daemon::clock::now_ms());
                if let Some(e) = &ending {
                    j.result = Some(e.result);
                    j.reason.clone_from(&e.reason);
                }
            });
            let done = job.borrow().clone();
            shared.daemon.move_ended(record, &done).await;
            return;
        }
        let snapshot = job.borrow().clone();
        shared.daemon.emit(ApiEvent::Move { job: snapshot });
    }
}

fn row(number: u16, round: &Round) -> RoundRow {
    RoundRow {
        round: number,
        bytes: round.stats.bytes,
        pages_written: round.stats.pages_written,
        pages_skipped: round.stats.pages_skipped,
        total_ms: round.total_ms,
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
        by_hand: record.cause == "manual",
        files: preflight.files.clone(),
        preflight,
    };
    let peers = daemon.peers().ok_or("this host has no peers configured")?;
    peers
        .offer(&record.to_host, &offer, shared.step_timeout)
        .await
        .map_err(|e| e.to_string())?;
    let mut sender = peers
        .open_bulk(&record.to_host, &record.id)
        .await
        .map_err(|e| e.to_string())?;
    let mut incoming = guest.bulk_subscribe(record.stream).await;
    let bytes = Arc::new(AtomicU64::new(0));
    let (counter, events) = (Arc::clone(&bytes), shared.events.clone());
    let host = record.to_host.clone();
    let task = tokio::spawn(async move {
        while let Some(message) = incoming.recv().await {
            counter.fetch_add(message.body.content() as u64, Ordering::Relaxed);
            if let Err(e) = sender.send(&message).await {
                let _ = events
                    .send(Event::Failed(format!("sending to {host}: {e}")))
                    .await;
                return;
            }
        }
        let _ = events
            .send(Event::Failed("the guest's bulk stream ended".into()))
            .await;
    });
    Ok(Relay { task, bytes })
}

fn guest(shared: &Shared) -> Result<Guest, String> {
    let r = &shared.record;
    shared
        .daemon
        .guest(&r.domain)
        .ok_or_else(|| format!("the helper in domain '{}' is not connected", r.domain))
}

async fn perform(shared: &Shared, action: Action) -> Event {
    match action {
        Action::Preflight => {
            let call = Call::Preflight {
                feature: name(shared),
            };
            match call_guest(shared, call, shared.step_timeout).await {
                Ok(Reply::Preflight(found)) => Event::Preflight(found),
                Ok(other) => unexpected(&other),
                Err(e) => e,
            }
        }
        Action::PreDump(round) | Action::Freeze(round) => {
            send_round(shared, round, matches!(action, Action::Freeze(_))).await
        }
        Action::Restore(round) => restore(shared, round).await,
        Action::Commit => shared.daemon.commit_move(&shared.record).await,
        Action::Resume { again } => {
            if again {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            resume(shared).await
        }
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
        }
    };
    let stats: RoundStats = match call_guest(shared, call, shared.step_timeout).await {
        Ok(Reply::Round(stats)) => stats,
        Ok(other) => return unexpected(&other),
        Err(e) => return e,
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
    match peers
        .await_round(&r.to_host, &r.id, round, shared.step_timeout)
        .await
    {
        Ok(()) => sent(stats),
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
    match peers
        .restore(&r.to_host, &r.id, round, shared.restore_timeout)
        .await
    {
        Ok(TargetStatus::Ready { restore_ms }) => {
            tracing::debug!(id = %r.id, restore_ms, "target is ready");
            Event::TargetReady
        }
        Ok(TargetStatus::Failed { reason }) => {
            Event::Failed(format!("host {}: {reason}", r.to_host))
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
    match peers
        .resume(&r.to_host, &r.id, shared.restore_timeout)
        .await
    {
        Ok(TargetStatus::Running { resume_ms }) => {
            tracing::debug!(id = %r.id, resume_ms, "target runs the feature");
            Event::TargetRunning
        }
        Ok(other) => {
            tracing::error!(id = %r.id, host = %r.to_host, ?other,
                "committed, but the target does not run the feature; its images are kept there");
            Event::ResumeFailed
        }
        Err(e) => {
            tracing::warn!(id = %r.id, host = %r.to_host, error = %e,
                "committed; asking the target again to resume");
            Event::ResumeFailed
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
    match call_guest(shared, call, shared.step_timeout).await {
        Ok(Reply::Done) => Event::Released,
        Ok(other) => {
            tracing::error!(id = %r.id, ?other, "unexpected answer to release");
            Event::ReleaseFailed
        }
        Err(Event::Failed(reason) | Event::TimedOut(reason)) => {
            tracing::warn!(id = %r.id, %reason, commit, "ending the freeze failed; trying again");
            Event::ReleaseFailed
        }
        Err(_) => Event::ReleaseFailed,
    }
}
