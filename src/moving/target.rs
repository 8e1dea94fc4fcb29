//! The target's machine. Requests come from the source's daemon; outcomes from the guest here.

use super::record::TargetPhase;

/// Where a move stands on the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Accepted; the guest prepares.
    Offered,
    /// Rounds come in.
    Receiving,
    /// The guest restores up to the gate.
    Restoring,
    /// At the gate; READY is being recorded.
    Recording,
    /// At the gate, durably recorded. Only the source's word ends it.
    Ready,
    /// Committed: the guest resumes.
    Resuming,
    /// The feature runs here.
    Running,
    /// The source gives a committed move up: the copy that does not resume is to be destroyed.
    Destroying,
    /// The guest with the restored copy, or the copy, is lost; that is being recorded.
    Losing,
    /// The copy is lost, durably recorded: it never resumes. The source takes the move back.
    Lost,
    /// Cleaning up.
    Discarding,
    /// Cleaned up.
    Gone,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// The guest prepared.
    Prepared,
    /// The source asks to restore.
    RestoreAsked,
    /// The guest holds at the gate.
    Restored,
    /// READY is durable.
    ReadyRecorded,
    /// The source asks to resume: it has committed. A verdict `Committed` counts as this.
    ResumeAsked,
    /// The guest runs the feature.
    Resumed,
    /// The guest could not resume (images are kept).
    ResumeFailed,
    /// The source asks to discard, before any commit. A verdict `Aborted` counts as this.
    DiscardAsked,
    /// A step here failed.
    Failed,
    /// The source's daemon cannot be reached, or its bulk connection broke.
    SourceLost,
    /// It is proved that the guest's memory, and with it all that it held of the move, is gone:
    /// the domain was shut off without being saved, or the guest was booted anew. That the helper
    /// is silent proves nothing.
    GuestLost,
    /// The loss is durable.
    LostRecorded,
    /// The source asks for the copy's end, although it has committed.
    GiveUpAsked,
    /// That it is to be destroyed is durable: nothing asks the guest to resume any more.
    GiveUpRecorded,
    /// The guest has destroyed the copy. (It may answer [`Event::Resumed`]: it runs.)
    Destroyed,
    /// The guest could not; try again.
    DestroyFailed,
    /// The guest cleaned up.
    Discarded,
    /// The guest could not clean up; try again.
    DiscardFailed,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Tell the guest to restore.
    Restore,
    /// Record READY durably.
    RecordReady,
    /// Tell the guest to resume, at once or after a pause.
    Resume {
        /// After a pause.
        again: bool,
    },
    /// Record that the feature runs here and register it, in one transaction.
    Adopt,
    /// Record durably that the feature can never resume here.
    RecordLost,
    /// Record durably that the copy is to be destroyed.
    RecordGiveUp,
    /// Tell the guest to destroy the copy unless it runs, at once or after a pause.
    Destroy {
        /// After a pause.
        again: bool,
    },
    /// Tell the guest to discard, at once or after a pause.
    Discard {
        /// After a pause.
        again: bool,
    },
    /// Ask the source how the move ended, until it answers.
    AskVerdict,
    /// Forget the move: remove its record and its reservation.
    Forget,
}

/// A request that does not fit the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the move is {0:?} here and cannot do that now")]
pub struct OutOfOrder(pub State);

/// The machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Target {
    state: State,
}

impl Target {
    /// A move just accepted.
    pub fn new() -> Self {
        Self {
            state: State::Offered,
        }
    }

    /// A move found in the journal after a restart, and what to do about it.
    pub fn recovered(phase: TargetPhase) -> (Self, Vec<Action>) {
        match phase {
            TargetPhase::Receiving => (
                Self {
                    state: State::Discarding,
                },
                vec![Action::Discard { again: false }],
            ),
            TargetPhase::Ready => (
                Self {
                    state: State::Ready,
                },
                vec![Action::AskVerdict],
            ),
            TargetPhase::Running => (
                Self {
                    state: State::Running,
                },
                Vec::new(),
            ),
            TargetPhase::Destroying => (
                Self {
                    state: State::Destroying,
                },
                vec![Action::Destroy { again: false }],
            ),
            TargetPhase::Lost => (Self { state: State::Lost }, vec![Action::AskVerdict]),
        }
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    fn discard(&mut self) -> Vec<Action> {
        self.state = State::Discarding;
        vec![Action::Discard { again: false }]
    }

    /// Feeds one event. Requests out of order are an error and change nothing; outcomes that
    /// come too late change nothing.
    pub fn step(&mut self, event: Event) -> Result<Vec<Action>, OutOfOrder> {
        use State as S;
        Ok(match (self.state, event) {
            (S::Offered, Event::Prepared) => {
                self.state = S::Receiving;
                Vec::new()
            }
            (S::Receiving, Event::RestoreAsked) => {
                self.state = S::Restoring;
                vec![Action::Restore]
            }
            (S::Restoring, Event::Restored) => {
                self.state = S::Recording;
                vec![Action::RecordReady]
            }
            (S::Recording, Event::ReadyRecorded) => {
                self.state = S::Ready;
                Vec::new()
            }
            (S::Ready, Event::ResumeAsked) => {
                self.state = S::Resuming;
                vec![Action::Resume { again: false }]
            }
            // One that is to be destroyed: an earlier attempt to resume had come through.
            (S::Resuming | S::Destroying, Event::Resumed) => {
                self.state = S::Running;
                vec![Action::Adopt]
            }
            (S::Resuming, Event::ResumeFailed) => vec![Action::Resume { again: true }],
            (S::Ready, Event::SourceLost) => vec![Action::AskVerdict],
            // The source may have committed: it must be able to learn that this is the end here.
            (S::Ready | S::Resuming | S::Destroying, Event::GuestLost)
            | (S::Destroying, Event::Destroyed) => {
                self.state = S::Losing;
                vec![Action::RecordLost]
            }
            (S::Losing, Event::LostRecorded) => {
                self.state = S::Lost;
                Vec::new()
            }
            (S::Ready | S::Resuming, Event::GiveUpAsked) => {
                self.state = S::Destroying;
                vec![Action::RecordGiveUp]
            }
            (S::Destroying, Event::GiveUpRecorded) => vec![Action::Destroy { again: false }],
            (S::Destroying, Event::DestroyFailed) => vec![Action::Destroy { again: true }],
            (S::Lost | S::Destroying, Event::ResumeAsked)
            | (S::Destroying | S::Losing | S::Lost, Event::GiveUpAsked) => Vec::new(),
            // Before READY was reported the source cannot have committed.
            (S::Offered | S::Receiving | S::Restoring, Event::SourceLost)
            | (
                S::Offered | S::Receiving | S::Restoring | S::Recording,
                Event::Failed | Event::DiscardAsked | Event::GuestLost,
            )
            | (S::Ready | S::Lost, Event::DiscardAsked) => self.discard(),
            // READY may have reached the source or not: once recorded, ask.
            (S::Discarding, Event::Discarded) => {
                self.state = S::Gone;
                vec![Action::Forget]
            }
            (S::Discarding, Event::DiscardFailed) => vec![Action::Discard { again: true }],
            (s, Event::ResumeAsked) if !matches!(s, S::Resuming | S::Running) => {
                return Err(OutOfOrder(s));
            }
            (s, Event::RestoreAsked | Event::GiveUpAsked)
            | (s @ (S::Resuming | S::Running | S::Destroying | S::Losing), Event::DiscardAsked) => {
                return Err(OutOfOrder(s));
            }
            _ => Vec::new(),
        })
    }
}

impl Default for Target {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_good_way() {
        let mut t = Target::new();
        assert_eq!(t.step(Event::Prepared).unwrap(), []);
        assert_eq!(t.step(Event::RestoreAsked).unwrap(), [Action::Restore]);
        assert_eq!(t.step(Event::Restored).unwrap(), [Action::RecordReady]);
        assert_eq!(t.step(Event::ReadyRecorded).unwrap(), []);
        assert_eq!(
            t.step(Event::ResumeAsked).unwrap(),
            [Action::Resume { again: false }]
        );
        assert!(t.step(Event::DiscardAsked).is_err());
        assert_eq!(t.step(Event::Resumed).unwrap(), [Action::Adopt]);
        assert_eq!(t.step(Event::ResumeAsked).unwrap(), [], "idempotent");
    }

    #[test]
    fn in_doubt_it_asks() {
        let mut t = Target::new();
        for e in [
            Event::Prepared,
            Event::RestoreAsked,
            Event::Restored,
            Event::ReadyRecorded,
        ] {
            t.step(e).unwrap();
        }
        assert_eq!(t.step(Event::SourceLost).unwrap(), [Action::AskVerdict]);
        assert_eq!(
            Target::recovered(TargetPhase::Ready).1,
            [Action::AskVerdict]
        );
    }

    #[test]
    fn a_lost_copy_never_resumes() {
        for phase in [TargetPhase::Ready, TargetPhase::Lost] {
            let (mut t, asks) = Target::recovered(phase);
            assert_eq!(asks, [Action::AskVerdict]);
            if phase == TargetPhase::Ready {
                t.step(Event::ResumeAsked).unwrap();
                assert_eq!(t.step(Event::GuestLost).unwrap(), [Action::RecordLost]);
                assert!(t.step(Event::ResumeAsked).is_err());
                t.step(Event::LostRecorded).unwrap();
            }
            assert_eq!(t.state(), State::Lost);
            assert_eq!(t.step(Event::ResumeAsked).unwrap(), []);
            assert_eq!(t.step(Event::Resumed).unwrap(), []);
            assert_eq!(
                t.step(Event::DiscardAsked).unwrap(),
                [Action::Discard { again: false }]
            );
        }
    }

    #[test]
    fn a_copy_that_is_given_up_is_destroyed_or_runs() {
        let given_up = || {
            let (mut t, _) = Target::recovered(TargetPhase::Ready);
            t.step(Event::ResumeAsked).unwrap();
            t.step(Event::ResumeFailed).unwrap();
            assert_eq!(t.step(Event::GiveUpAsked).unwrap(), [Action::RecordGiveUp]);
            // Nothing else is asked of the guest from here on.
            assert_eq!(t.step(Event::ResumeAsked).unwrap(), []);
            assert!(t.step(Event::DiscardAsked).is_err());
            let destroy = [Action::Destroy { again: false }];
            assert_eq!(t.step(Event::GiveUpRecorded).unwrap(), destroy);
            assert_eq!(Target::recovered(TargetPhase::Destroying).1, destroy);
            t
        };
        let mut t = given_up();
        let again = [Action::Destroy { again: true }];
        assert_eq!(t.step(Event::DestroyFailed).unwrap(), again);
        assert_eq!(t.step(Event::Destroyed).unwrap(), [Action::RecordLost]);
        t.step(Event::LostRecorded).unwrap();
        assert_eq!(t.step(Event::GiveUpAsked).unwrap(), []);
        let mut t = given_up();
        assert_eq!(t.step(Event::Resumed).unwrap(), [Action::Adopt]);
        assert!(t.step(Event::GiveUpAsked).is_err());
        assert!(Target::new().step(Event::GiveUpAsked).is_err());
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop::sample::select(vec![
            Event::Prepared,
            Event::RestoreAsked,
            Event::Restored,
            Event::ReadyRecorded,
            Event::ResumeAsked,
            Event::Resumed,
            Event::ResumeFailed,
            Event::DiscardAsked,
            Event::Failed,
            Event::SourceLost,
            Event::Discarded,
            Event::DiscardFailed,
            Event::GuestLost,
            Event::LostRecorded,
            Event::GiveUpAsked,
            Event::GiveUpRecorded,
            Event::Destroyed,
            Event::DestroyFailed,
        ])
    }

    proptest! {
        /// It resumes only from READY on the source's word, and never discards after that;
        /// from READY it is never the loss of the source that discards.
        #[test]
        fn only_the_source_decides(events in proptest::collection::vec(any_event(), 0..60)) {
            let mut t = Target::new();
            let (mut resumed, mut lost) = (false, false);
            for e in events {
                let was = t.state();
                let Ok(actions) = t.step(e) else {
                    prop_assert_eq!(t.state(), was);
                    continue;
                };
                for a in actions {
                    match a {
                        Action::Resume { again } => {
                            prop_assert!(!lost);
                            if !again {
                                prop_assert_eq!((was, e), (State::Ready, Event::ResumeAsked));
                            }
                            resumed = true;
                        }
                        Action::Adopt => prop_assert!(!lost),
                        Action::RecordLost => {
                            prop_assert!(matches!(e, Event::GuestLost | Event::Destroyed));
                            lost = true;
                        }
                        Action::Discard { .. } => {
                            prop_assert!(!resumed || lost);
                            if matches!(was, State::Ready | State::Lost) {
                                prop_assert_eq!(e, Event::DiscardAsked);
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
    }
}
