//! Source's driver: one task per move. It owns the machine; answers of guest and peer come back
//! to it as events. What the actions do is in [`super::steps`].

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::queue::Turn;
use super::steps::{self, Progress, Shared};
use crate::api::{ApiEvent, FreezeParts, Job, JobResult, RoundRow};
use crate::daemon::{Daemon, lock};
use crate::feature::OverBudget;
use crate::method::Method;
use crate::moving::convergence::{Limits, Round};
use crate::moving::record::{SourceRecord, attempt_of};
use crate::moving::source::{Action, Event, Source, State};

/// Pause between reports of bytes sent.
const PROGRESS: Duration = Duration::from_millis(500);
/// Most attempts of a move whose dump or restore fails.
const ATTEMPTS: u16 = 3;
/// Moves by hand come before all others.
const BY_HAND: i64 = 1_000_000;

/// A running move as the rest of the daemon sees it.
#[derive(Debug, Clone)]
pub struct Handle {
    /// libvirt UUID of the domain that the feature leaves.
    pub domain_uuid: String,
    /// Where events go.
    pub events: mpsc::Sender<Event>,
    /// The job as it stands.
    pub job: watch::Receiver<Job>,
    /// Where its machine stands.
    pub state: watch::Receiver<State>,
    /// What the guest tells of the round under way.
    pub progress: Arc<Progress>,
}

impl Handle {
    /// Whether this is the attempt under way.
    pub fn is_attempt(&self, id: &str) -> bool {
        attempt_of(id) == self.job.borrow().detail.attempt
    }
}

/// How a task begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// A new move; its record is durable.
    Fresh,
    /// A record found after a restart.
    Recovered,
}

/// Starts the task of a move.
pub fn spawn(daemon: &Arc<Daemon>, record: SourceRecord, begin: Begin) -> Handle {
    let (events, inbox) = mpsc::channel(64);
    let (steps, outcomes) = mpsc::channel(64);
    let (job, job_rx) = watch::channel(record.job());
    let (state, state_rx) = watch::channel(State::New);
    let domain_uuid = record.domain_uuid.clone();
    let shared = Shared::new(daemon, record, steps, state_rx.clone());
    let progress = Arc::clone(&shared.progress);
    tokio::spawn(run(Arc::new(shared), begin, (inbox, outcomes), job, state));
    Handle {
        domain_uuid,
        events,
        job: job_rx,
        state: state_rx,
        progress,
    }
}

/// The freeze as it goes on.
#[derive(Debug, Default)]
struct Freeze {
    begun: Option<Instant>,
    /// When the step before the present one ended.
    mark: Option<Instant>,
    parts: FreezeParts,
}

impl Freeze {
    /// Milliseconds since the step before ended.
    fn lap(&mut self) -> u64 {
        let now = Instant::now();
        let last = self.mark.replace(now).unwrap_or(now);
        now.duration_since(last).as_millis() as u64
    }

    /// Takes what an event tells; true when the freeze is over and its parts are complete.
    fn take(&mut self, state: State, event: &Event) -> bool {
        match (state, event) {
            (State::Freezing { round }, Event::RoundSent(r, sent)) if round == *r => {
                let dumped = sent.stats.frozen_ms.min(sent.total_ms);
                self.begun = Instant::now().checked_sub(Duration::from_millis(sent.total_ms));
                self.parts.dump_ms = dumped;
                self.parts.send_ms = sent.total_ms - dumped;
                self.mark = Some(Instant::now());
            }
            (State::Restoring, Event::TargetReady) => self.parts.restore_ms = self.lap(),
            (State::Committing, Event::Committed) => self.parts.commit_ms = self.lap(),
            (State::Switching { .. }, Event::TargetRunning) if self.mark.is_some() => {
                self.parts.resume_ms = self.lap();
                return true;
            }
            _ => {}
        }
        false
    }
}

fn limits(shared: &Shared) -> Limits {
    let (spec, moves) = (&shared.record.spec, &shared.daemon.config.moves);
    let live = shared.record.method == Method::Live;
    Limits {
        budget_ms: spec.downtime_ms,
        max_rounds: moves.max_rounds,
        wait_ms: moves.wait_s.saturating_mul(1000),
        // What has no memory to send has nothing to fall back to.
        over: match spec.over_budget {
            OverBudget::Handover if !live => OverBudget::Go,
            over => over,
        },
        throttle: spec.throttle && live,
        attempts: ATTEMPTS,
    }
}

/// The next event: of others, of the attempt's steps, of the queue for a turn, or of the freeze's
/// time.
struct Inbox {
    events: mpsc::Receiver<Event>,
    /// What the steps of this attempt lead to; those of an attempt before it are heard no more.
    outcomes: mpsc::Receiver<Event>,
    /// Kept until the move's end.
    turn: Option<Turn>,
    queue: Option<Pin<Box<dyn Future<Output = Turn> + Send>>>,
    /// When the freeze began, if it is to be cut short.
    freeze: Option<Instant>,
}

impl Inbox {
    /// `None` when there is nothing but time to report progress.
    async fn next(&mut self, shared: &Shared) -> Option<Event> {
        let budget = Duration::from_millis(shared.record.spec.downtime_ms);
        let cut = self.freeze.map(|at| at + budget);
        let queue = async {
            match &mut self.queue {
                Some(turn) => turn.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = self.events.recv() => event,
            event = self.outcomes.recv() => event,
            turn = queue => {
                self.turn = Some(turn);
                self.queue = None;
                Some(Event::Start)
            }
            () = tokio::time::sleep_until(cut.unwrap_or_else(Instant::now).into()),
                if cut.is_some() => {
                self.freeze.take().map(|at| Event::FreezeTooLong(at.elapsed().as_millis() as u64))
            }
        }
    }
}

async fn run(
    mut shared: Arc<Shared>,
    begin: Begin,
    (events, outcomes): (mpsc::Receiver<Event>, mpsc::Receiver<Event>),
    job: watch::Sender<Job>,
    state: watch::Sender<State>,
) {
    let mut machine = Source::new(limits(&shared));
    let mut inbox = Inbox {
        events,
        outcomes,
        turn: None,
        queue: (begin == Begin::Fresh).then(|| {
            let departures = shared.daemon.departures.clone();
            let urgency = if shared.record.cause == steps::BY_HAND {
                BY_HAND
            } else {
                0
            };
            Box::pin(async move { departures.turn(urgency).await }) as _
        }),
        freeze: None,
    };
    let mut recovered = (begin == Begin::Recovered).then_some(Event::Recovered {
        committed: shared.record.committed,
    });
    let mut freeze = Freeze::default();
    let mut progress = tokio::time::interval(PROGRESS);
    loop {
        let event = if let Some(e) = recovered.take() {
            e
        } else {
            tokio::select! {
                event = inbox.next(&shared) => match event {
                    Some(e) => e,
                    None => return,
                },
                _ = progress.tick() => {
                    report_progress(&shared, &job);
                    continue;
                }
            }
        };
        let before = machine.state();
        // Of the attempt that the event is about, also when another one takes its place.
        let current = Arc::clone(&shared);
        let record = &current.record;
        match &event {
            Event::Preflight(found) => found.clone_into(&mut lock(&shared.preflight)),
            Event::RoundSent(number, round) => {
                job.send_modify(|j| j.history.push(row(*number, round)));
            }
            Event::Renewed if before == State::Renewing => {
                (shared, inbox.outcomes) = renewed(&shared, machine.renews_as_handover());
                freeze = Freeze::default();
                let failed = machine.ending().filter(|e| e.result == JobResult::Failed);
                let reason = failed.and_then(|e| e.reason.clone());
                job.send_modify(|j| {
                    j.detail.attempt = attempt_of(&shared.record.id);
                    j.detail.method = shared.record.method;
                    j.detail.retried.extend(reason);
                    (j.detail.round_sent, j.detail.round_total) = (0, 0);
                });
            }
            _ => {}
        }
        if freeze.take(before, &event) {
            job.send_modify(|j| {
                j.freeze_ms = freeze.begun.map(|at| at.elapsed().as_millis() as u64);
                j.detail.freeze = Some(freeze.parts);
            });
        }
        let actions = machine.step(event);
        let after = machine.state();
        if before != after {
            tracing::info!(id = %record.id, feature = %record.spec.name, from = before.word(),
                to = after.word(), "move");
        }
        state.send_replace(after);
        match after {
            State::Freezing { .. } if !matches!(before, State::Freezing { .. }) => {
                let cut = record.spec.over_budget == OverBudget::GiveUp;
                inbox.freeze = cut.then(Instant::now);
            }
            State::Freezing { .. } | State::Restoring => {}
            _ => inbox.freeze = None,
        }
        if matches!(after, State::Aborting { .. }) {
            shared.end_relay();
            inbox.queue = None;
        }
        job.send_modify(|j| {
            after.word().clone_into(&mut j.state);
            if let State::PreCopy { round } | State::Freezing { round } = after {
                j.rounds = u32::from(round);
            }
            if let Some(sent) = shared.sent() {
                j.bytes_sent = sent;
            }
            j.detail.predicted_freeze_ms = machine.predicted_freeze_ms();
            j.detail.throttle_percent = machine.throttle();
        });
        if matches!(after, State::Aborting { again: true, .. })
            && !matches!(before, State::Aborting { .. })
        {
            let reason = machine
                .ending()
                .and_then(|e| e.reason.as_deref())
                .unwrap_or_default();
            tracing::warn!(id = %record.id, feature = %record.spec.name, reason,
                "an attempt to move failed; the feature goes on here, another one follows");
        }
        let mut ended = false;
        for action in actions {
            tracing::debug!(id = %shared.record.id, ?action, "move action");
            match action {
                Action::End => ended = true,
                other => {
                    let shared = Arc::clone(&shared);
                    tokio::spawn(async move {
                        let event = steps::perform(&shared, other).await;
                        let _ = shared.events.send(event).await;
                    });
                }
            }
        }
        if ended {
            let record = &shared.record;
            let ending = machine.ending().cloned();
            let done = ending.as_ref().is_some_and(|e| e.result == JobResult::Done);
            // Its place among the moves is free while the feature's own commands are waited for.
            inbox.turn = None;
            let warning = if done {
                steps::settled(&shared).await
            } else {
                None
            };
            if let Some(why) = &warning {
                tracing::error!(id = %record.id, feature = %record.spec.name, host = %record.to_host,
                    %why, "the feature moved, but is not well there; nothing can be taken back");
            }
            job.send_modify(|j| {
                j.detail.warning = warning;
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

/// What the next attempt's steps share, and where their outcomes come from.
fn renewed(old: &Shared, handover: bool) -> (Arc<Shared>, mpsc::Receiver<Event>) {
    let (events, outcomes) = mpsc::channel(64);
    old.progress.reset();
    let record = old.next_attempt(handover).clone();
    let sent_before = old.sent_before.load(Ordering::Relaxed);
    let shared = Shared {
        sent_before: AtomicU64::new(sent_before),
        progress: Arc::clone(&old.progress),
        ..Shared::new(&old.daemon, record, events, old.state.clone())
    };
    (Arc::new(shared), outcomes)
}

/// Tells how far the round under way is, when that changed.
fn report_progress(shared: &Shared, job: &watch::Sender<Job>) {
    let now = shared.progress.get();
    let sent = shared.sent();
    let changed = job.send_if_modified(|j| {
        let waits = shared.progress.waits.load(Ordering::Relaxed);
        let word = if waits { "queued" } else { j.state.as_str() };
        let same = sent.is_none_or(|s| s == j.bytes_sent)
            && (now.sent, now.total) == (j.detail.round_sent, j.detail.round_total)
            && word == j.state;
        if same {
            return false;
        }
        if let Some(sent) = sent {
            j.bytes_sent = sent;
        }
        (j.detail.round_sent, j.detail.round_total) = (now.sent, now.total);
        word.to_owned().clone_into(&mut j.state);
        true
    });
    if changed {
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
