//! The target's daemon: `driver::target`, and `adopt`, `recover_moves` and `reconcile` of
//! `daemon`.

use drover::moving::record::TargetPhase;
use drover::moving::target::{Action, Event, State, Target};

use crate::Broken;
use crate::guests::{Held, Refusal, TargetCall};
use crate::world::{Answer, Ask, Message, Op, Slot, TargetDaemon, Work, World};

impl World {
    fn slot_mut(&mut self) -> Option<&mut Slot> {
        self.target.as_mut()?.slot.as_mut()
    }

    /// Takes a request of the source. The move's lock must be free.
    pub fn target_takes(&mut self, ask: Ask, wanted: bool) {
        let reply = wanted.then_some(ask);
        let here = self.slot().is_some();
        let Some(slot) = self.slot_mut().filter(|s| !s.stale) else {
            let answer = match ask {
                // `check` and `names`: the feature is here already, or arrives.
                Ask::Offer if self.target_registered || here => Answer::Refused,
                Ask::Offer => return self.accept(reply, false),
                // Nothing here: as asked.
                Ask::Discard => Answer::Done,
                _ => Answer::Refused,
            };
            return self.answer(reply, answer);
        };
        let event = match ask {
            Ask::Offer | Ask::Verdict => return self.answer(reply, Answer::Refused),
            Ask::AwaitRound(n) => {
                let here = self.target_guest.has(n);
                return self.answer(reply, if here { Answer::Done } else { Answer::Refused });
            }
            // Several moves at a time are not in this model: the turn is free.
            Ask::GrantFreeze => {
                let ready = slot.machine.state() == State::Receiving;
                return self.answer(reply, if ready { Answer::Done } else { Answer::Refused });
            }
            Ask::Restore(_) => Event::RestoreAsked,
            Ask::Resume => Event::ResumeAsked,
            Ask::GiveUp => Event::GiveUpAsked,
            Ask::Discard => Event::DiscardAsked,
        };
        match slot.machine.step(event) {
            Err(_) => self.answer(reply, Answer::Refused),
            Ok(_) if matches!(ask, Ask::Restore(_)) => {
                let Ask::Restore(round) = ask else { return };
                slot.op = Some(Op {
                    work: Work::Guest(TargetCall::Restore(round)),
                    reply,
                });
            }
            Ok(actions) => self.settle(actions, reply),
        }
    }

    /// `accept`: the record is durable before the guest prepares.
    fn accept(&mut self, reply: Option<Ask>, stale: bool) {
        self.target_journal = Some(TargetPhase::Receiving);
        self.target_journal_stale = stale;
        let slot = Slot {
            machine: Target::new(),
            op: Some(Op {
                work: Work::Guest(TargetCall::Receive),
                reply,
            }),
            retry: None,
            forgetting: false,
            boot: self.target_guest.boot,
            stale,
        };
        if let Some(t) = self.target.as_mut() {
            t.slot = Some(slot);
        }
    }

    /// An offer of the attempt before comes after all.
    pub fn target_takes_stale_offer(&mut self) {
        if self.slot().is_none() && !self.target_registered {
            self.accept(None, true);
        }
    }

    /// What is here of the move is of the attempt before from now on.
    pub fn target_renewed(&mut self) {
        let over = self
            .slot()
            .is_some_and(|s| s.machine.state() == State::Gone && s.op.is_none());
        if over {
            if let Some(t) = self.target.as_mut() {
                t.slot = None;
                t.asking = false;
            }
            self.give_up(Ask::Verdict, false);
        }
        if let Some(slot) = self.slot_mut() {
            slot.stale = true;
        }
        self.target_journal_stale = self.target_journal.is_some();
        let late = std::mem::take(&mut self.target_late);
        self.target_stale.extend(late);
        self.target_guest.renewed();
    }

    fn answer(&mut self, reply: Option<Ask>, answer: Answer) {
        if let Some(ask) = reply {
            self.net.insert(Message::Answer(ask, answer));
        }
    }

    /// `settle`: each action leads to at most one further one; the lock is held until none is
    /// left, and then the request is answered.
    fn settle(&mut self, actions: Vec<Action>, reply: Option<Ask>) {
        let Some(slot) = self.slot_mut() else { return };
        slot.op = None;
        for action in actions {
            let work = match action {
                Action::Resume { again: true } => {
                    slot.retry = Some(TargetCall::Resume);
                    continue;
                }
                Action::Discard { again: true } => {
                    slot.retry = Some(TargetCall::Discard);
                    continue;
                }
                Action::Destroy { again: true } => {
                    slot.retry = Some(TargetCall::Destroy);
                    continue;
                }
                Action::Destroy { again: false } => Work::Guest(TargetCall::Destroy),
                Action::RecordGiveUp => Work::WriteGiveUp,
                Action::Resume { again: false } => Work::Guest(TargetCall::Resume),
                Action::Discard { again: false } => Work::Guest(TargetCall::Discard),
                Action::Adopt => Work::WriteAdopted,
                Action::RecordLost => Work::WriteLost,
                Action::Forget => Work::WriteForgotten,
                Action::AskVerdict | Action::Restore | Action::RecordReady => continue,
            };
            slot.op = Some(Op { work, reply });
        }
        if slot.op.is_some() {
            return;
        }
        let state = slot.machine.state();
        let answer = match (reply, state) {
            (Some(Ask::Offer), State::Receiving) | (Some(Ask::Discard), _) => Answer::Done,
            (Some(Ask::Offer), _) => Answer::Refused,
            (_, State::Ready | State::Resuming) => Answer::Ready,
            (_, State::Running) => Answer::Running,
            (_, State::Losing | State::Lost) => Answer::Lost,
            _ => Answer::Otherwise,
        };
        self.answer(reply, answer);
    }

    fn feed(&mut self, event: Event, reply: Option<Ask>) {
        if let Some(slot) = self.slot_mut() {
            let actions = slot.machine.step(event).unwrap_or_default();
            self.settle(actions, reply);
        }
    }

    /// The target's guest performs a call.
    pub fn target_guest_performs(
        &mut self,
        call: TargetCall,
        broken: Option<Broken>,
    ) -> Result<(), Refusal> {
        let forgetful = broken == Some(Broken::ForgetfulGuest);
        if self.slot().is_some_and(|s| s.stale) {
            return self.target_guest.perform_stale(call);
        }
        let held = self.target_guest.held;
        let end = self.target_guest.perform(call, forgetful);
        self.destroyed |= call == TargetCall::Destroy && end.is_ok() && held != Held::Nothing;
        end
    }

    /// The guest answers the call that the lock's holder waits for.
    pub fn target_guest_answers(
        &mut self,
        call: TargetCall,
        end: Result<(), Refusal>,
        broken: Option<Broken>,
    ) {
        let ok = end.is_ok();
        let Some(op) = self.slot().and_then(|s| s.op) else {
            return;
        };
        let event = match (call, ok) {
            (TargetCall::Receive, true) => Event::Prepared,
            (TargetCall::Restore(_), true) => {
                let boot = self.target_guest.boot;
                if let Some(slot) = self.slot_mut() {
                    slot.boot = boot;
                    let _ = slot.machine.step(Event::Restored);
                    slot.op = Some(Op {
                        work: Work::WriteReady,
                        ..op
                    });
                    if broken == Some(Broken::ReadyBeforeRecord) {
                        slot.op = Some(Op {
                            work: Work::WriteReady,
                            reply: None,
                        });
                        self.answer(op.reply, Answer::Ready);
                    }
                }
                return;
            }
            (TargetCall::Resume, true) => Event::Resumed,
            (TargetCall::Discard, true) => Event::Discarded,
            (TargetCall::Receive | TargetCall::Restore(_), false) => Event::Failed,
            (TargetCall::Resume, false) if broken == Some(Broken::SilenceIsLoss) => {
                Event::GuestLost
            }
            (TargetCall::Resume, false) => Event::ResumeFailed,
            (TargetCall::Discard, false) => Event::DiscardFailed,
            (TargetCall::Destroy, true) => Event::Destroyed,
            (TargetCall::Destroy, false) if end == Err(Refusal::Runs) => Event::Resumed,
            (TargetCall::Destroy, false) if broken == Some(Broken::SilenceIsDestruction) => {
                Event::Destroyed
            }
            (TargetCall::Destroy, false) => Event::DestroyFailed,
        };
        self.feed(event, op.reply);
    }

    /// A durable write of the lock's holder. `heard`: its success is reported.
    pub fn target_writes(&mut self, heard: bool) {
        let Some(op) = self.slot().and_then(|s| s.op) else {
            return;
        };
        match op.work {
            Work::WriteReady => {
                self.target_journal = Some(TargetPhase::Ready);
                self.target_boot = self.slot().map_or(0, |s| s.boot);
                let event = if heard {
                    Event::ReadyRecorded
                } else {
                    Event::Failed
                };
                self.feed(event, op.reply);
            }
            Work::WriteAdopted => {
                self.target_journal = Some(TargetPhase::Running);
                self.target_registered = true;
                self.arrived = true;
                let boot = self.target_guest.boot;
                if let Some(t) = self.target.as_mut()
                    && let Some(slot) = t.slot.as_mut()
                {
                    slot.forgetting = true;
                    // `recheck`
                    t.greeted &= slot.boot == boot;
                }
                self.settle(Vec::new(), op.reply);
            }
            Work::WriteGiveUp => {
                self.target_journal = Some(TargetPhase::Destroying);
                self.feed(Event::GiveUpRecorded, op.reply);
            }
            Work::WriteLost => {
                self.target_journal = Some(TargetPhase::Lost);
                self.feed(Event::LostRecorded, op.reply);
            }
            Work::WriteForgotten => {
                self.target_journal = None;
                self.settle(Vec::new(), op.reply);
            }
            Work::Guest(_) => {}
        }
    }

    /// READY could not be written.
    pub fn ready_is_refused(&mut self) {
        if let Some(op) = self.slot().and_then(|s| s.op) {
            self.feed(Event::Failed, op.reply);
        }
    }

    /// The source or its bulk connection is lost: `source_lost`, or the end of `bulk`.
    pub fn target_loses_peer(&mut self, broken: Option<Broken>) {
        let event = if broken == Some(Broken::LossDiscards) {
            Event::DiscardAsked
        } else {
            Event::SourceLost
        };
        self.feed(event, None);
    }

    /// `watch_doubt` has a verdict.
    pub fn target_hears_verdict(&mut self, answer: Answer) {
        if let Some(t) = self.target.as_mut() {
            t.asking = false;
        }
        if self.slot().is_some_and(|s| s.forgetting) {
            if answer == Answer::Aborted {
                self.target_journal = None;
                if let Some(t) = self.target.as_mut() {
                    t.slot = None;
                }
            }
            return;
        }
        match answer {
            Answer::Committed => self.feed(Event::ResumeAsked, None),
            Answer::Aborted => self.feed(Event::DiscardAsked, None),
            _ => {}
        }
    }

    /// `retry_later`'s pause is over.
    pub fn target_retries(&mut self) {
        if let Some(slot) = self.slot_mut()
            && let Some(call) = slot.retry.take()
            && matches!(
                (call, slot.machine.state()),
                (TargetCall::Resume, State::Resuming)
                    | (TargetCall::Discard, State::Discarding)
                    | (TargetCall::Destroy, State::Destroying)
            )
        {
            slot.op = Some(Op {
                work: Work::Guest(call),
                reply: None,
            });
        }
    }

    /// The guest loses its memory and boots anew.
    pub fn target_guest_dies(&mut self) {
        self.target_guest.dies();
        self.target_late.clear();
        self.target_stale.clear();
        if let Some(t) = self.target.as_mut() {
            t.greeted = false;
        }
    }

    /// `guest_changed`, `domain_ended` or the watch: the boot id is another one, or the domain
    /// was shut off.
    pub fn target_sees_loss(&mut self) {
        self.feed(Event::GuestLost, None);
    }

    /// The feature is removed or moves on.
    pub fn feature_leaves(&mut self) {
        self.target_registered = false;
        self.target_guest.held = Held::Nothing;
        self.left = true;
    }

    pub fn target_crashes(&mut self) {
        let Some(t) = self.target.take() else { return };
        if t.asking {
            self.give_up(Ask::Verdict, false);
        }
        if let Some(Work::Guest(call)) = t.slot.and_then(|s| s.op).map(|o| o.work) {
            if t.slot.is_some_and(|s| s.stale) {
                self.target_stale.insert(call);
            } else {
                self.target_late.insert(call);
            }
        }
    }

    /// Start after a crash; peers may ask from now on.
    pub fn target_starts(&mut self) {
        self.target = Some(TargetDaemon {
            recovered: false,
            slot: None,
            asking: false,
            greeted: false,
        });
    }

    /// `recover_moves`.
    pub fn target_recovers(&mut self, broken: Option<Broken>) {
        if broken == Some(Broken::ArrivalForgotten)
            && self.target_journal == Some(TargetPhase::Running)
            && !self.target_registered
        {
            self.target_journal = None;
        }
        let found = self.target_journal.map(Target::recovered);
        let stale = self.target_journal_stale;
        if let Some(t) = self.target.as_mut() {
            t.recovered = true;
            t.slot = found.as_ref().map(|(machine, _)| Slot {
                machine: *machine,
                op: None,
                retry: None,
                forgetting: machine.state() == State::Running,
                boot: self.target_boot,
                stale,
            });
        }
        if let Some((_, actions)) = found {
            self.settle(actions, None);
        }
    }

    /// `reconcile` after the guest was greeted.
    pub fn target_reconciles(&mut self) {
        let Some(t) = self.target.as_mut() else {
            return;
        };
        t.greeted = true;
        if t.slot.is_none()
            && matches!(self.target_guest.held, Held::Receiving { .. } | Held::Ready)
        {
            let _ = if self.target_guest.stale {
                self.target_guest.perform_stale(TargetCall::Discard)
            } else {
                self.target_guest.perform(TargetCall::Discard, false)
            };
        }
        if self.target_registered && self.target_guest.held == Held::Nothing {
            self.target_guest.held = Held::Running;
        }
    }
}
