//! The source's daemon: `driver::source`, and `commit_move`, `verdict`, `move_ended`,
//! `recover_moves` and `reconcile` of `daemon`.

use std::collections::BTreeSet;

use drover::moving::convergence::{Limits, Round};
use drover::moving::source::{Action, Event, Source, State};
use drover::wire::guest::{Preflight, RoundStats};

use crate::Broken;
use crate::guests::{Copy, Note, SourceCall, SourceGuest};
use crate::world::{Answer, Ask, Message, Outgoing, SourceDaemon, Task, World};

fn failed() -> Event {
    Event::Failed(String::new())
}

fn round() -> Round {
    Round {
        stats: RoundStats {
            bytes: 1000,
            send_ms: 1,
            ..RoundStats::default()
        },
        total_ms: 10,
    }
}

impl World {
    /// Feeds the machine, and starts a task for each action as `driver::source::run` does.
    pub fn source_event(&mut self, event: Event, broken: Option<Broken>) {
        let Some(out) = self.source.as_mut().and_then(|s| s.outgoing.as_mut()) else {
            return;
        };
        for action in out.machine.step(event) {
            let task = match action {
                Action::Preflight => Task::Guest(SourceCall::Preflight),
                Action::Offer => Task::Peer(Ask::Offer),
                Action::PreDump { round, .. } => Task::Guest(SourceCall::PreDump(round)),
                Action::AskFreeze => Task::Peer(Ask::GrantFreeze),
                Action::Freeze(n) => Task::Guest(SourceCall::Freeze(n)),
                Action::Restore(n) => Task::Peer(Ask::Restore(n)),
                Action::Commit => Task::Commit {
                    written: broken == Some(Broken::ResumeWithoutRecord),
                },
                Action::Resume { .. } => Task::Peer(Ask::Resume),
                Action::Release { commit, .. } => Task::Guest(SourceCall::Release { commit }),
                Action::Discard => Task::Peer(Ask::Discard),
                Action::Revert => Task::Revert {
                    written: broken == Some(Broken::RevertUnwritten),
                },
                Action::GiveUp => Task::Peer(Ask::GiveUp),
                Action::Renew { .. } => Task::Renew,
                Action::End => Task::End,
            };
            out.tasks.insert(task);
            if let Task::Peer(ask) = task {
                self.net.insert(Message::Request(ask));
            }
        }
    }

    fn end_task(&mut self, task: Task) -> bool {
        self.source
            .as_mut()
            .and_then(|s| s.outgoing.as_mut())
            .is_some_and(|o| o.tasks.remove(&task))
    }

    /// The source's guest performs a call; the round it sends arrives as long as both daemons
    /// relay it.
    pub fn source_guest_performs(
        &mut self,
        call: SourceCall,
        broken: Option<Broken>,
    ) -> Result<(), ()> {
        let forgetful = broken == Some(Broken::ForgetfulGuest);
        if let Some(round) = self.source_guest.perform(call, forgetful)?
            && self.outgoing().is_some()
            && self.slot().is_some_and(|s| !s.stale)
        {
            self.target_guest.take(round);
        }
        Ok(())
    }

    /// The guest answers a call that a task waits for.
    pub fn source_guest_answers(&mut self, call: SourceCall, ok: bool, broken: Option<Broken>) {
        self.end_task(Task::Guest(call));
        let event = match (call, ok) {
            (SourceCall::Preflight, true) => Event::Preflight(Preflight::default()),
            // The restore waits for the round.
            (SourceCall::Freeze(n), true) => Event::RoundSent(n, round()),
            (SourceCall::PreDump(n), true) => {
                // The same task goes on: is the round complete at the target?
                if let Some(out) = self.source.as_mut().and_then(|s| s.outgoing.as_mut()) {
                    out.tasks.insert(Task::Peer(Ask::AwaitRound(n)));
                    self.net.insert(Message::Request(Ask::AwaitRound(n)));
                }
                return;
            }
            (SourceCall::Release { .. }, true) => Event::Released,
            (SourceCall::Release { .. }, false) => Event::ReleaseFailed,
            // criu's failure, or any other: both ends are possible.
            (SourceCall::Freeze(_), false) => Event::Stumbled(String::new()),
            (_, false) => failed(),
        };
        self.source_event(event, broken);
    }

    /// A request to the target was answered, or (`None`) failed.
    pub fn source_hears(&mut self, ask: Ask, answer: Option<Answer>, broken: Option<Broken>) {
        if !self.end_task(Task::Peer(ask)) {
            return;
        }
        let event = match (ask, answer) {
            (Ask::Offer, Some(Answer::Done)) => Event::Offered,
            (Ask::AwaitRound(n), Some(Answer::Done)) => Event::RoundSent(n, round()),
            (Ask::Restore(_), Some(Answer::Ready)) => Event::TargetReady,
            (Ask::Resume, Some(Answer::Running)) => Event::TargetRunning,
            (Ask::Resume | Ask::GiveUp, Some(Answer::Lost)) => Event::TargetLost(String::new()),
            (Ask::GiveUp, _) => Event::GiveUpFailed,
            (Ask::Resume, _) => Event::ResumeFailed,
            (Ask::Restore(_), Some(Answer::Otherwise)) => Event::Stumbled(String::new()),
            (Ask::GrantFreeze, Some(Answer::Done)) => Event::FreezeGranted { late: false },
            (Ask::Discard, Some(Answer::Done)) => Event::Discarded,
            (Ask::Discard, _) => Event::DiscardUnreachable,
            _ => failed(),
        };
        self.source_event(event, broken);
    }

    /// `renew_move`: the record of another attempt is in place of this one's, and nobody hears of
    /// the old one's steps any more.
    pub fn renew_is_written(&mut self, broken: Option<Broken>) {
        let Some(out) = self.source.as_mut().and_then(|s| s.outgoing.as_mut()) else {
            return;
        };
        for task in std::mem::take(&mut out.tasks) {
            if let Task::Peer(ask) = task {
                self.give_up(ask, true);
            }
        }
        // The source's guest refuses what comes late of an attempt that it has released.
        self.source_late.clear();
        self.source_guest.released = false;
        let offer = self.net.remove(&Message::Late(Ask::Offer));
        self.net.retain(|m| {
            matches!(
                m,
                Message::Request(Ask::Verdict) | Message::Answer(Ask::Verdict, _)
            )
        });
        if offer {
            self.net.insert(Message::StaleOffer);
        }
        self.target_renewed();
        self.renewed += 1;
        self.source_event(Event::Renewed, broken);
    }

    /// `commit_move`'s transaction.
    pub fn commit_is_written(&mut self) {
        self.end_task(Task::Commit { written: false });
        self.source_journal = Some(true);
        self.source_registered = false;
        self.committed = true;
        if let Some(out) = self.source.as_mut().and_then(|s| s.outgoing.as_mut()) {
            out.tasks.insert(Task::Commit { written: true });
        }
    }

    /// `commit_move` returns.
    pub fn commit_is_told(&mut self, broken: Option<Broken>) {
        self.end_task(Task::Commit { written: true });
        self.source_event(Event::Committed, broken);
    }

    /// `revert_move`'s transaction.
    pub fn revert_is_written(&mut self) {
        self.end_task(Task::Revert { written: false });
        self.source_journal = Some(false);
        self.source_registered = true;
        self.committed = false;
        self.reverted = true;
        if let Some(out) = self.source.as_mut().and_then(|s| s.outgoing.as_mut()) {
            out.tasks.insert(Task::Revert { written: true });
        }
    }

    /// `revert_move` returns.
    pub fn revert_is_told(&mut self, broken: Option<Broken>) {
        self.end_task(Task::Revert { written: true });
        self.source_event(Event::Reverted, broken);
    }

    /// The guest loses its memory and boots anew.
    pub fn source_guest_dies(&mut self) {
        self.source_guest = SourceGuest {
            copy: Copy::Gone,
            ..SourceGuest::new()
        };
        self.source_lost = true;
        self.source_late.clear();
        if let Some(s) = self.source.as_mut() {
            s.greeted = false;
        }
    }

    /// `commit_move` failed, and read back that there is no commit record.
    pub fn commit_is_refused(&mut self, broken: Option<Broken>) {
        self.end_task(Task::Commit { written: false });
        self.source_event(Event::CommitFailed(String::new()), broken);
    }

    /// The peer or the bulk connection is lost: `peer_lost`, or the relay's end.
    pub fn source_loses_peer(&mut self, broken: Option<Broken>) {
        let committing = self
            .outgoing()
            .is_some_and(|o| o.machine.state() == State::Committing);
        let event = if broken == Some(Broken::LossEndsCommit) && committing {
            Event::CommitFailed(String::new())
        } else {
            failed()
        };
        self.source_event(event, broken);
    }

    /// `move_ended`.
    pub fn end_is_written(&mut self) {
        self.source_journal = None;
        if let Some(s) = self.source.as_mut() {
            s.outgoing = None;
            // `recheck`
            s.greeted &= self.committed;
        }
    }

    pub fn verdict(&self, broken: Option<Broken>) -> Answer {
        if self.slot().is_some_and(|s| s.stale) {
            // Its record is gone.
            return Answer::Aborted;
        }
        match self.source_journal {
            Some(true) => Answer::Committed,
            Some(false) => {
                let aborting = self
                    .outgoing()
                    .is_some_and(|o| matches!(o.machine.state(), State::Aborting { .. }));
                if aborting || broken == Some(Broken::PendingIsAborted) {
                    Answer::Aborted
                } else {
                    Answer::Pending
                }
            }
            None => Answer::Aborted,
        }
    }

    pub fn source_crashes(&mut self) {
        let Some(s) = self.source.take() else { return };
        for task in s.outgoing.into_iter().flat_map(|o| o.tasks) {
            match task {
                Task::Guest(call) => {
                    self.source_late.insert(call);
                }
                Task::Peer(ask) => self.give_up(ask, true),
                Task::Commit { .. } | Task::Revert { .. } | Task::Renew | Task::End => {}
            }
        }
    }

    /// Start after a crash; peers may ask from now on.
    pub fn source_starts(&mut self, listed: bool) {
        self.source = Some(SourceDaemon {
            recovered: false,
            listed,
            greeted: false,
            outgoing: None,
        });
    }

    /// `recover_moves`.
    pub fn source_recovers(&mut self, limits: Limits, broken: Option<Broken>) {
        if let Some(s) = self.source.as_mut() {
            s.recovered = true;
            s.outgoing = self.source_journal.map(|_| Outgoing {
                machine: Source::new(limits),
                tasks: BTreeSet::new(),
            });
        }
        if let Some(committed) = self.source_journal {
            self.source_event(Event::Recovered { committed }, broken);
        }
    }

    /// `reconcile` after the guest was greeted.
    pub fn source_reconciles(&mut self, broken: Option<Broken>) {
        let Some(s) = self.source.as_mut() else {
            return;
        };
        s.greeted = true;
        if s.outgoing.is_some() {
            return;
        }
        if self.source_guest.note != Note::None {
            // `ended_source`: the job says how the move ended.
            let commit = self.committed && broken != Some(Broken::UnlistedIsGone);
            let call = SourceCall::Release { commit };
            let _ = self.source_guest.perform(call, false);
        }
        if self.source_registered && self.source_guest.copy == Copy::Gone {
            self.source_guest.copy = Copy::Running;
        }
    }
}
