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
            (S::Resuming, Event::Resumed) => {
                self.state = S::Running;
                vec![Action::Adopt]
            }
            (S::Resuming, Event::ResumeFailed) => vec![Action::Resume { again: true }],
            (S::Ready, Event::SourceLost) => vec![Action::AskVerdict],
            // Before READY was reported the source cannot have committed.
            (S::Offered | S::Receiving | S::Restoring, Event::SourceLost)
            | (
                S::Offered | S::Receiving | S::Restoring | S::Recording,
                Event::Failed | Event::DiscardAsked,
            )
            | (S::Ready, Event::DiscardAsked) => self.discard(),
            // READY may have reached the source or not: once recorded, ask.
            (S::Discarding, Event::Discarded) => {
                self.state = S::Gone;
                vec![Action::Forget]
            }
            (S::Discarding, Event::DiscardFailed) => vec![Action::Discard { again: true }],
            (s, Event::ResumeAsked) if !matches!(s, S::Resuming | S::Running) => {
                return Err(OutOfOrder(s));
            }
            (s, Event::RestoreAsked) | (s @ (S::Resuming | S::Running), Event::DiscardAsked) => {
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
        ])
    }

    proptest! {
        /// It resumes only from READY on the source's word, and never discards after that;
        /// from READY it is never the loss of the source that discards.
        #[test]
        fn only_the_source_decides(events in proptest::collection::vec(any_event(), 0..60)) {
            let mut t = Target::new();
            let mut resumed = false;
            for e in events {
                let was = t.state();
                let Ok(actions) = t.step(e) else {
                    prop_assert_eq!(t.state(), was);
                    continue;
                };
                for a in actions {
                    match a {
                        Action::Resume { again: false } => {
                            prop_assert_eq!((was, e), (State::Ready, Event::ResumeAsked));
                            resumed = true;
                        }
                        Action::Discard { .. } => {
                            prop_assert!(!resumed);
                            if was == State::Ready { prop_assert_eq!(e, Event::DiscardAsked); }
                        }
                        _ => {}
                    }
                }
            }
        }
    }
}
