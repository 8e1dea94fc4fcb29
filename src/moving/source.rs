//! The source's machine: it coordinates the move. See the module above for the diagram.

use crate::api::JobResult;
use crate::wire::guest::Preflight;

use super::convergence::{self, Next, Round};
use super::record::Ending;

/// Where a move stands on the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Recorded, not begun.
    New,
    /// Looking for what would keep the feature from being moved.
    Preflight,
    /// Waiting for the target to prepare.
    Offering,
    /// Sending a pre-copy round; the feature runs.
    PreCopy {
        /// Round, from 1.
        round: u16,
    },
    /// Last round: the feature is frozen.
    Freezing {
        /// Round.
        round: u16,
    },
    /// The target restores.
    Restoring,
    /// The commit record is being written.
    Committing,
    /// Committed: the target resumes, the copy here goes.
    Switching {
        /// The target said it runs.
        resumed: bool,
        /// The copy here is gone.
        released: bool,
    },
    /// Given up before the commit.
    Aborting {
        /// The feature runs here again and nothing of the move is left in the guest.
        thawed: bool,
        /// The target cleaned up, or cannot be reached (it asks, and learns the verdict).
        discarded: bool,
    },
    /// Over.
    Ended,
}

impl State {
    /// Word for `drover jobinfo`.
    pub fn word(self) -> &'static str {
        match self {
            Self::New | Self::Preflight | Self::Offering => "preparing",
            Self::PreCopy { .. } => "pre-copy",
            Self::Freezing { .. } => "freezing",
            Self::Restoring => "restoring",
            Self::Committing => "committing",
            Self::Switching { .. } => "switching",
            Self::Aborting { .. } => "aborting",
            Self::Ended => "ended",
        }
    }

    /// Whether a cancel still takes effect.
    pub fn can_cancel(self) -> bool {
        matches!(
            self,
            Self::New
                | Self::Preflight
                | Self::Offering
                | Self::PreCopy { .. }
                | Self::Freezing { .. }
                | Self::Restoring
        )
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Begin; the record is durable.
    Start,
    /// A daemon that was killed found the record: `committed` as recorded.
    Recovered {
        /// Whether the commit record is there.
        committed: bool,
    },
    /// Preflight found this.
    Preflight(Preflight),
    /// The target prepared.
    Offered,
    /// A round is on the target, complete and checked. `Freezing`'s round is on its way: the
    /// restore waits for it.
    RoundSent(u16, Round),
    /// The target restored and holds at the gate, durably.
    TargetReady,
    /// The commit record is durable.
    Committed,
    /// It was read back that no commit record was written. Only the commit itself says this: any
    /// other failure during the commit decides nothing.
    CommitFailed(String),
    /// The target runs the feature.
    TargetRunning,
    /// The guest ended the freeze: thawed (abort) or killed (commit), and cleaned up.
    Released,
    /// The target cleaned up or does not know the move any more.
    Discarded,
    /// The target cannot be told; it will ask.
    DiscardUnreachable,
    /// Asking the target to resume failed; try again.
    ResumeFailed,
    /// The guest could not end the freeze; try again.
    ReleaseFailed,
    /// A step failed; the reason is shown to users.
    Failed(String),
    /// A step took too long.
    TimedOut(String),
    /// A user cancels.
    Cancel,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ask the guest for a preflight.
    Preflight,
    /// Offer the move to the target.
    Offer,
    /// Send a pre-copy round.
    PreDump(u16),
    /// Freeze and send the last round.
    Freeze(u16),
    /// Ask the target to restore from this last round.
    Restore(u16),
    /// Write the commit record durably.
    Commit,
    /// Ask the target to resume (at once or after a pause).
    Resume {
        /// After a pause.
        again: bool,
    },
    /// Ask the guest to end the freeze.
    Release {
        /// Kill the copy here; otherwise thaw it.
        commit: bool,
        /// After a pause.
        again: bool,
    },
    /// Ask the target to discard.
    Discard,
    /// Record the end; nothing follows.
    End,
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    state: State,
    budget_ms: u64,
    max_rounds: u16,
    rounds: Vec<Round>,
    offered: bool,
    ending: Option<Ending>,
}

impl Source {
    /// A move with a downtime budget in milliseconds and a limit of pre-copy rounds.
    pub fn new(budget_ms: u64, max_rounds: u16) -> Self {
        Self {
            state: State::New,
            budget_ms,
            max_rounds,
            rounds: Vec::new(),
            offered: false,
            ending: None,
        }
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// How it ended or, while aborting, how it will end.
    pub fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }

    fn abort(&mut self, ending: Ending) -> Vec<Action> {
        self.ending = Some(ending);
        self.state = State::Aborting {
            thawed: false,
            discarded: !self.offered,
        };
        let mut actions = vec![Action::Release {
            commit: false,
            again: false,
        }];
        if self.offered {
            actions.push(Action::Discard);
        }
        actions
    }

    fn settle(&mut self) -> Vec<Action> {
        match self.state {
            State::Switching {
                resumed: true,
                released: true,
            } => {
                self.ending = Some(Ending::done());
                self.state = State::Ended;
                vec![Action::End]
            }
            State::Aborting {
                thawed: true,
                discarded: true,
            } => {
                self.state = State::Ended;
                vec![Action::End]
            }
            _ => Vec::new(),
        }
    }

    /// Feeds one event.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        match (self.state, event) {
            (State::New, Event::Start) => {
                self.state = State::Preflight;
                vec![Action::Preflight]
            }
            (State::New, Event::Recovered { committed: false }) => {
                self.offered = true;
                self.abort(Ending::not(
                    JobResult::Failed,
                    "droverd was restarted during the move; the feature goes on here",
                ))
            }
            (State::Preflight, Event::Preflight(found)) => {
                if found.problems.is_empty() {
                    self.state = State::Offering;
                    // From here on the target may hold something of ours.
                    self.offered = true;
                    vec![Action::Offer]
                } else {
                    self.abort(Ending::not(JobResult::Failed, found.problems.join("; ")))
                }
            }
            (State::Offering, Event::Offered) => {
                self.state = State::PreCopy { round: 1 };
                vec![Action::PreDump(1)]
            }
            (State::PreCopy { round }, Event::RoundSent(r, stats)) if r == round => {
                self.rounds.push(stats);
                let next = round + 1;
                match convergence::next(&self.rounds, self.budget_ms, self.max_rounds) {
                    Next::Again => {
                        self.state = State::PreCopy { round: next };
                        vec![Action::PreDump(next)]
                    }
                    Next::Freeze(_) => {
                        self.state = State::Freezing { round: next };
                        vec![Action::Freeze(next)]
                    }
                }
            }
            (State::Freezing { round }, Event::RoundSent(r, stats)) if r == round => {
                self.rounds.push(stats);
                self.state = State::Restoring;
                vec![Action::Restore(round)]
            }
            (State::Restoring, Event::TargetReady) => {
                self.state = State::Committing;
                vec![Action::Commit]
            }
            (State::Committing, Event::Committed)
            | (State::New, Event::Recovered { committed: true }) => {
                self.state = State::Switching {
                    resumed: false,
                    released: false,
                };
                vec![Action::Resume { again: false }]
            }
            // The driver reports this only when it has read back that no record is there.
            (State::Committing, Event::CommitFailed(reason)) => {
                self.abort(Ending::not(JobResult::Failed, reason))
            }
            // The frozen copy is kept until the target runs: it is the last one should the target
            // be lost now.
            (
                State::Switching {
                    resumed: false,
                    released,
                },
                Event::TargetRunning,
            ) => {
                self.state = State::Switching {
                    resumed: true,
                    released,
                };
                vec![Action::Release {
                    commit: true,
                    again: false,
                }]
            }
            (State::Switching { resumed, .. }, Event::Released) => {
                self.state = State::Switching {
                    resumed,
                    released: true,
                };
                self.settle()
            }
            (State::Switching { resumed: false, .. }, Event::ResumeFailed) => {
                vec![Action::Resume { again: true }]
            }
            (
                State::Switching {
                    released: false, ..
                },
                Event::ReleaseFailed,
            ) => {
                vec![Action::Release {
                    commit: true,
                    again: true,
                }]
            }
            (State::Aborting { discarded, .. }, Event::Released) => {
                self.state = State::Aborting {
                    thawed: true,
                    discarded,
                };
                self.settle()
            }
            (State::Aborting { thawed: false, .. }, Event::ReleaseFailed) => {
                vec![Action::Release {
                    commit: false,
                    again: true,
                }]
            }
            (State::Aborting { thawed, .. }, Event::Discarded | Event::DiscardUnreachable) => {
                self.state = State::Aborting {
                    thawed,
                    discarded: true,
                };
                self.settle()
            }
            (_, Event::Cancel) if self.state.can_cancel() => {
                self.abort(Ending::not(JobResult::Canceled, "cancelled by a user"))
            }
            (_, Event::Failed(reason)) if self.state.can_cancel() => {
                self.abort(Ending::not(JobResult::Failed, reason))
            }
            (_, Event::TimedOut(reason)) if self.state.can_cancel() => {
                self.abort(Ending::not(JobResult::Timeout, reason))
            }
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::guest::RoundStats;
    use proptest::prelude::*;

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

    #[test]
    fn the_good_way() {
        let mut s = Source::new(1000, 6);
        assert_eq!(s.step(Event::Start), [Action::Preflight]);
        assert_eq!(
            s.step(Event::Preflight(Preflight::default())),
            [Action::Offer]
        );
        assert_eq!(s.step(Event::Offered), [Action::PreDump(1)]);
        assert_eq!(s.step(Event::RoundSent(1, round())), [Action::PreDump(2)]);
        assert_eq!(s.step(Event::RoundSent(2, round())), [Action::Freeze(3)]);
        assert_eq!(s.step(Event::RoundSent(3, round())), [Action::Restore(3)]);
        assert_eq!(s.step(Event::TargetReady), [Action::Commit]);
        assert_eq!(s.step(Event::Cancel), [], "too late");
        assert_eq!(s.step(Event::Committed), [Action::Resume { again: false }]);
        assert_eq!(
            s.step(Event::TargetRunning),
            [Action::Release {
                commit: true,
                again: false
            }]
        );
        assert_eq!(s.step(Event::Released), [Action::End]);
        assert_eq!(s.ending().unwrap().result, JobResult::Done);
    }

    #[test]
    fn a_late_answer_changes_nothing() {
        let mut s = Source::new(1000, 6);
        s.step(Event::Start);
        s.step(Event::Preflight(Preflight::default()));
        s.step(Event::Offered);
        assert_eq!(
            s.step(Event::Cancel),
            [
                Action::Release {
                    commit: false,
                    again: false
                },
                Action::Discard
            ]
        );
        assert_eq!(s.step(Event::RoundSent(1, round())), []);
        assert_eq!(s.step(Event::TargetReady), []);
        assert_eq!(s.step(Event::Discarded), []);
        assert_eq!(s.step(Event::Released), [Action::End]);
        assert_eq!(s.ending().unwrap().result, JobResult::Canceled);
    }

    #[test]
    fn while_the_commit_is_written_only_the_journal_decides() {
        let mut s = Source::new(1000, 1);
        for e in [
            Event::Start,
            Event::Preflight(Preflight::default()),
            Event::Offered,
            Event::RoundSent(1, round()),
            Event::RoundSent(2, round()),
            Event::TargetReady,
        ] {
            s.step(e);
        }
        assert_eq!(s.state(), State::Committing);
        // The peer or the bulk connection is lost meanwhile: the record may be there already.
        assert_eq!(s.step(Event::Failed("host b was lost".into())), []);
        assert_eq!(s.step(Event::TimedOut("restore".into())), []);
        let mut other = s.clone();
        assert_eq!(s.step(Event::Committed), [Action::Resume { again: false }]);
        assert_eq!(s.step(Event::CommitFailed("late".into())), []);
        assert_eq!(
            other.step(Event::CommitFailed("disk full".into())),
            [
                Action::Release {
                    commit: false,
                    again: false
                },
                Action::Discard
            ]
        );
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Start),
            Just(Event::Preflight(Preflight::default())),
            Just(Event::Offered),
            (1u16..6).prop_map(|r| Event::RoundSent(r, round())),
            Just(Event::TargetReady),
            Just(Event::Committed),
            Just(Event::CommitFailed("x".into())),
            Just(Event::TargetRunning),
            Just(Event::Released),
            Just(Event::Discarded),
            Just(Event::DiscardUnreachable),
            Just(Event::ResumeFailed),
            Just(Event::ReleaseFailed),
            Just(Event::Failed("x".into())),
            Just(Event::TimedOut("x".into())),
            Just(Event::Cancel),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: no commit without READY, no thaw after a commit,
        /// no kill and no resume without one, and the end comes once.
        #[test]
        fn never_two_never_none(events in proptest::collection::vec(event(), 0..60)) {
            let mut s = Source::new(1000, 3);
            let (mut committed, mut aborted, mut ends) = (false, false, 0);
            for e in events {
                let was = s.state();
                let is_commit = e == Event::Committed && was == State::Committing;
                let refused = matches!(e, Event::CommitFailed(_));
                for a in s.step(e) {
                    match a {
                        Action::Commit => prop_assert_eq!(was, State::Restoring),
                        Action::Resume { .. } => prop_assert!(committed || is_commit),
                        Action::Release { commit: true, .. } => {
                            prop_assert!((committed || is_commit) && !aborted);
                        }
                        Action::Release { commit: false, .. } => {
                            prop_assert!(!committed && !is_commit);
                            prop_assert!(was != State::Committing || refused);
                            aborted = true;
                        }
                        Action::Discard => prop_assert!(!committed),
                        Action::End => ends += 1,
                        _ => prop_assert!(!committed && !aborted),
                    }
                }
                committed |= is_commit;
            }
            prop_assert!(ends <= 1);
            prop_assert_eq!(s.state() == State::Ended, ends == 1);
        }
    }
}
