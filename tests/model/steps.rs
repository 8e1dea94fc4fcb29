//! Every step that the world can take, and which of them are faults.

use drover::moving::convergence::Limits;
use drover::moving::source::State as SourceState;
use drover::moving::target::State as TargetState;

use crate::Broken;
use crate::guests::{Held, Refusal, SourceCall, TargetCall};
use crate::world::{Answer, Ask, Budget, Message, Task, Work, World};

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    // What happens by itself.
    SourceGuest(SourceCall),
    CommitWritten,
    CommitTold,
    RevertWritten,
    RevertTold,
    RenewWritten,
    EndWritten,
    SourceStarts,
    SourceRecovers,
    SourceListsDomains,
    SourceReconciles,
    TargetGuest(TargetCall),
    TargetWrites,
    TargetRetries,
    TargetAsks,
    TargetRemovesGone,
    /// It sees that the guest's memory is another one.
    TargetSeesLoss,
    TargetStarts,
    TargetRecovers,
    TargetReconciles,
    Deliver(Message),
    /// The answer cannot come any more: the call fails.
    CallFails(Ask),

    // Faults.
    Lose(Message),
    Duplicate(Message),
    GivesUp(Ask),
    SourceGuestFails(SourceCall),
    SourceGuestSilent(SourceCall),
    SourceGuestLate(SourceCall),
    SourceHelperReconnects,
    /// The record is not there. (When it is there in spite of an error, the driver reads that
    /// back: the same as no error.)
    CommitFails,
    SourceLosesPeer,
    Cancel,
    SourceCrashes,
    /// A broken variant's only.
    SourceStartsUnlisted,
    TargetGuestFails(TargetCall),
    TargetGuestSilent(TargetCall),
    TargetGuestLate(TargetCall),
    /// A late call of the attempt before.
    TargetGuestStale(TargetCall),
    /// An administrator gives the committed move up.
    GiveUp,
    TargetHelperReconnects,
    ReadyFails {
        written: bool,
    },
    OfferFails,
    TargetLosesPeer,
    TargetCrashes,
    FeatureLeaves,
    SourceGuestDies,
    TargetGuestDies,
}

impl Step {
    /// Whether it need not happen for the move to end.
    pub fn is_fault(self) -> bool {
        !matches!(
            self,
            Self::SourceGuest(_)
                | Self::CommitWritten
                | Self::CommitTold
                | Self::RevertWritten
                | Self::RevertTold
                | Self::RenewWritten
                | Self::EndWritten
                | Self::SourceStarts
                | Self::SourceRecovers
                | Self::SourceListsDomains
                | Self::SourceReconciles
                | Self::TargetGuest(_)
                | Self::TargetWrites
                | Self::TargetRetries
                | Self::TargetAsks
                | Self::TargetRemovesGone
                | Self::TargetSeesLoss
                | Self::TargetStarts
                | Self::TargetRecovers
                | Self::TargetReconciles
                | Self::Deliver(Message::Request(_) | Message::Answer(..))
                | Self::CallFails(_)
        )
    }

    /// What it takes of the budget; `None`: nothing.
    fn cost(self, budget: &mut Budget) -> Option<&mut u8> {
        Some(match self {
            Self::Duplicate(_)
            | Self::GivesUp(_)
            | Self::SourceGuestSilent(_)
            | Self::TargetGuestSilent(_) => &mut budget.late,
            Self::SourceGuestFails(_) | Self::TargetGuestFails(_) => &mut budget.failures,
            Self::CommitFails | Self::ReadyFails { .. } | Self::OfferFails => &mut budget.writes,
            Self::SourceLosesPeer | Self::TargetLosesPeer => &mut budget.losses,
            Self::Cancel => &mut budget.cancels,
            Self::GiveUp => &mut budget.give_ups,
            Self::FeatureLeaves => &mut budget.departures,
            Self::SourceGuestDies | Self::TargetGuestDies => &mut budget.guest_losses,
            Self::SourceCrashes => &mut budget.source_crashes,
            Self::TargetCrashes => &mut budget.target_crashes,
            _ => return None,
        })
    }

    fn affordable(self, mut budget: Budget) -> bool {
        let total = budget.total;
        self.cost(&mut budget).is_none_or(|n| *n > 0 && total > 0)
    }
}

impl World {
    /// All steps possible now.
    pub fn steps(&self, steps: &mut Vec<Step>, broken: Option<Broken>) {
        self.source_steps(steps);
        if broken != Some(Broken::UnlistedIsGone) {
            steps.retain(|s| *s != Step::SourceStartsUnlisted);
        }
        self.target_steps(steps);
        for m in &self.net {
            steps.push(Step::Deliver(*m));
            match m {
                Message::Request(ask) => {
                    steps.push(Step::Lose(*m));
                    if !self.net.contains(&Message::Late(*ask)) {
                        steps.push(Step::Duplicate(*m));
                    }
                }
                Message::Answer(..) => steps.push(Step::Lose(*m)),
                Message::Late(_) | Message::StaleOffer => {}
            }
        }
        steps.retain(|s| s.affordable(self.budget) && self.deliverable(*s));
    }

    /// A message is taken by a daemon that is up, and by a move whose lock is free.
    fn deliverable(&self, step: Step) -> bool {
        let Step::Deliver(m) = step else { return true };
        let free = self.target.is_some() && self.slot().is_none_or(|s| s.op.is_none());
        match m {
            // Offers wait until the journal is taken up.
            Message::Request(Ask::Offer) | Message::Late(Ask::Offer) | Message::StaleOffer
                if self.target.is_some_and(|t| !t.recovered) =>
            {
                false
            }
            Message::Request(ask) | Message::Late(ask) => {
                if ask == Ask::Verdict {
                    self.source.is_some()
                } else {
                    free
                }
            }
            Message::Answer(Ask::Verdict, _) | Message::StaleOffer => free,
            Message::Answer(..) => self.source.is_some(),
        }
    }

    fn source_steps(&self, steps: &mut Vec<Step>) {
        for call in &self.source_late {
            steps.push(Step::SourceGuestLate(*call));
        }
        steps.push(Step::SourceGuestDies);
        let Some(s) = &self.source else {
            steps.extend([Step::SourceStarts, Step::SourceStartsUnlisted]);
            return;
        };
        steps.push(Step::SourceCrashes);
        if !s.recovered {
            steps.push(Step::SourceRecovers);
        } else if !s.listed {
            steps.push(Step::SourceListsDomains);
        } else if s.greeted {
            steps.push(Step::SourceHelperReconnects);
        } else {
            steps.push(Step::SourceReconciles);
        }
        let Some(out) = &s.outgoing else { return };
        for task in &out.tasks {
            match *task {
                Task::Guest(call) => {
                    steps.push(Step::SourceGuest(call));
                    steps.push(Step::SourceGuestFails(call));
                    if !self.source_late.contains(&call) {
                        steps.push(Step::SourceGuestSilent(call));
                    }
                }
                Task::Peer(ask) => {
                    if self.answer_may_come(ask) {
                        steps.push(Step::GivesUp(ask));
                    } else {
                        steps.push(Step::CallFails(ask));
                    }
                }
                Task::Commit { written: false } => {
                    steps.extend([Step::CommitWritten, Step::CommitFails]);
                }
                Task::Commit { written: true } => steps.push(Step::CommitTold),
                Task::Revert { written: false } => steps.push(Step::RevertWritten),
                Task::Revert { written: true } => steps.push(Step::RevertTold),
                Task::Renew => steps.push(Step::RenewWritten),
                Task::End => steps.push(Step::EndWritten),
            }
        }
        if matches!(
            out.machine.state(),
            SourceState::Switching { resumed: false, .. }
        ) && !self.source_lost
            && !out.tasks.contains(&Task::Peer(Ask::GiveUp))
        {
            steps.push(Step::GiveUp);
        }
        steps.push(Step::SourceLosesPeer);
        if out.machine.state().can_cancel() {
            steps.push(Step::Cancel);
        }
    }

    fn target_steps(&self, steps: &mut Vec<Step>) {
        use Ask::Verdict;
        for call in &self.target_late {
            steps.push(Step::TargetGuestLate(*call));
        }
        for call in &self.target_stale {
            steps.push(Step::TargetGuestStale(*call));
        }
        steps.push(Step::TargetGuestDies);
        let Some(t) = &self.target else {
            steps.push(Step::TargetStarts);
            return;
        };
        steps.push(Step::TargetCrashes);
        steps.push(if !t.recovered {
            Step::TargetRecovers
        } else if t.greeted {
            Step::TargetHelperReconnects
        } else {
            Step::TargetReconciles
        });
        if t.asking && !self.answer_may_come(Verdict) {
            steps.push(Step::CallFails(Verdict));
        }
        let Some(slot) = &t.slot else {
            if self.net.contains(&Message::Request(Ask::Offer)) {
                steps.push(Step::OfferFails);
            }
            return;
        };
        match slot.op.map(|o| o.work) {
            Some(Work::Guest(call)) => {
                steps.push(Step::TargetGuest(call));
                steps.push(Step::TargetGuestFails(call));
                let late = if slot.stale {
                    &self.target_stale
                } else {
                    &self.target_late
                };
                if !late.contains(&call) {
                    steps.push(Step::TargetGuestSilent(call));
                }
            }
            Some(Work::WriteReady) => steps.extend([
                Step::TargetWrites,
                Step::ReadyFails { written: false },
                Step::ReadyFails { written: true },
            ]),
            Some(
                Work::WriteAdopted | Work::WriteGiveUp | Work::WriteLost | Work::WriteForgotten,
            ) => {
                steps.push(Step::TargetWrites);
            }
            None => {
                let state = slot.machine.state();
                if slot.retry.is_some() {
                    steps.push(Step::TargetRetries);
                }
                let doubt = !matches!(
                    state,
                    TargetState::Running
                        | TargetState::Gone
                        | TargetState::Resuming
                        | TargetState::Destroying
                        | TargetState::Discarding
                );
                let holds = !matches!(
                    state,
                    TargetState::Running
                        | TargetState::Lost
                        | TargetState::Gone
                        | TargetState::Discarding
                );
                if holds && slot.boot != self.target_guest.boot {
                    steps.push(Step::TargetSeesLoss);
                }
                if (doubt || slot.forgetting) && !t.asking {
                    steps.push(Step::TargetAsks);
                }
                if state == TargetState::Gone {
                    steps.push(Step::TargetRemovesGone);
                }
                if state == TargetState::Running && self.target_registered {
                    steps.push(Step::FeatureLeaves);
                }
                steps.push(Step::TargetLosesPeer);
            }
        }
    }

    /// Takes a step.
    pub fn take(&mut self, step: Step, limits: Limits, broken: Option<Broken>) {
        use Ask::Verdict;
        if let Some(n) = step.cost(&mut self.budget) {
            *n -= 1;
            self.budget.total -= 1;
        }
        match step {
            Step::SourceGuest(call) => {
                let listed = self.source.as_ref().is_some_and(|s| s.listed);
                let ok = !listed || self.source_guest_performs(call, broken).is_ok();
                self.source_guest_answers(call, ok, broken);
            }
            Step::SourceGuestFails(call) => self.source_guest_answers(call, false, broken),
            Step::SourceGuestSilent(call) => {
                self.source_late.insert(call);
                self.source_guest_answers(call, false, broken);
            }
            Step::SourceGuestLate(call) => {
                self.source_late.remove(&call);
                let _ = self.source_guest_performs(call, broken);
            }
            Step::CommitWritten => self.commit_is_written(),
            Step::CommitTold => self.commit_is_told(broken),
            Step::CommitFails => self.commit_is_refused(broken),
            Step::RevertWritten => self.revert_is_written(),
            Step::RevertTold => self.revert_is_told(broken),
            Step::RenewWritten => self.renew_is_written(broken),
            Step::GiveUp => self.source_event(drover::moving::source::Event::GiveUp, broken),
            Step::SourceGuestDies => self.source_guest_dies(),
            Step::TargetGuestDies => self.target_guest_dies(),
            Step::TargetSeesLoss => self.target_sees_loss(),
            Step::EndWritten => self.end_is_written(),
            Step::SourceStarts => self.source_starts(true),
            Step::SourceStartsUnlisted => self.source_starts(false),
            Step::SourceRecovers => self.source_recovers(limits, broken),
            Step::SourceListsDomains => {
                if let Some(s) = self.source.as_mut() {
                    s.listed = true;
                }
            }
            Step::SourceReconciles | Step::SourceHelperReconnects => self.source_reconciles(broken),
            Step::SourceLosesPeer => self.source_loses_peer(broken),
            Step::Cancel => self.source_event(drover::moving::source::Event::Cancel, broken),
            Step::SourceCrashes => self.source_crashes(),

            Step::TargetGuest(call) => {
                let end = self.target_guest_performs(call, broken);
                self.target_guest_answers(call, end, broken);
            }
            Step::TargetGuestFails(call) => {
                self.target_guest.fail(call);
                self.target_guest_answers(call, Err(Refusal::No), broken);
            }
            Step::TargetGuestSilent(call) => {
                if self.slot().is_some_and(|s| s.stale) {
                    self.target_stale.insert(call);
                } else {
                    self.target_late.insert(call);
                }
                self.target_guest_answers(call, Err(Refusal::No), broken);
            }
            Step::TargetGuestLate(call) => {
                self.target_late.remove(&call);
                let held = self.target_guest.held;
                let forgetful = broken == Some(Broken::ForgetfulGuest);
                let end = self.target_guest.perform(call, forgetful);
                self.destroyed |=
                    call == TargetCall::Destroy && end.is_ok() && held != Held::Nothing;
            }
            Step::TargetGuestStale(call) => {
                self.target_stale.remove(&call);
                let _ = self.target_guest.perform_stale(call);
            }
            Step::TargetWrites => self.target_writes(true),
            Step::ReadyFails { written: true } => self.target_writes(false),
            Step::ReadyFails { written: false } => self.ready_is_refused(),
            Step::OfferFails => {
                self.net.remove(&Message::Request(Ask::Offer));
                self.net
                    .insert(Message::Answer(Ask::Offer, Answer::Refused));
            }
            Step::TargetRetries => self.target_retries(),
            Step::TargetAsks => {
                if let Some(t) = self.target.as_mut() {
                    t.asking = true;
                    self.net.insert(Message::Request(Verdict));
                }
            }
            Step::TargetRemovesGone => {
                if let Some(t) = self.target.as_mut() {
                    t.slot = None;
                }
                self.stop_asking();
            }
            Step::TargetStarts => self.target_starts(),
            Step::TargetRecovers => self.target_recovers(broken),
            Step::FeatureLeaves => self.feature_leaves(),
            Step::TargetReconciles | Step::TargetHelperReconnects => self.target_reconciles(),
            Step::TargetLosesPeer => self.target_loses_peer(broken),
            Step::TargetCrashes => self.target_crashes(),

            Step::Deliver(m) => self.deliver(m, broken),
            Step::Lose(m) => {
                self.net.remove(&m);
            }
            Step::Duplicate(m) => {
                if let Message::Request(ask) = m {
                    self.net.insert(Message::Late(ask));
                }
            }
            Step::GivesUp(ask) => {
                self.give_up(ask, true);
                self.source_hears(ask, None, broken);
            }
            Step::CallFails(Verdict) => self.stop_asking(),
            Step::CallFails(ask) => self.source_hears(ask, None, broken),
        }
    }

    fn stop_asking(&mut self) {
        self.give_up(Ask::Verdict, false);
        if let Some(t) = self.target.as_mut() {
            t.asking = false;
        }
    }

    fn deliver(&mut self, message: Message, broken: Option<Broken>) {
        use Ask::Verdict;
        self.net.remove(&message);
        match message {
            Message::Request(Verdict) => {
                let answer = self.verdict(broken);
                self.net.insert(Message::Answer(Verdict, answer));
            }
            Message::Answer(Verdict, answer) => self.target_hears_verdict(answer),
            Message::Request(ask) => self.target_takes(ask, true),
            Message::Late(ask) => self.target_takes(ask, false),
            Message::StaleOffer => self.target_takes_stale_offer(),
            Message::Answer(ask, answer) => self.source_hears(ask, Some(answer), broken),
        }
    }
}
