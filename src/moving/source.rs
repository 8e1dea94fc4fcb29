//! The source's machine: it coordinates the move. See the module above for the diagram.

use crate::api::JobResult;
use crate::feature::OverBudget;
use crate::wire::guest::Preflight;

use super::convergence::{self, Limits, Next, Round};
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
    /// Waiting for its turn to freeze on the target; the feature runs.
    Waiting {
        /// Round that comes next.
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
    /// The target can never resume: the commit record is being taken back.
    Reverting,
    /// Given up before the commit, or after it was taken back.
    Aborting {
        /// The feature runs here again and nothing of the move is left in the guest.
        thawed: bool,
        /// The target cleaned up, or cannot be reached (it asks, and learns the verdict).
        discarded: bool,
        /// Another attempt follows.
        again: bool,
    },
    /// Nothing is left of an attempt; the record of the next one is being written.
    Renewing,
    /// Over.
    Ended,
}

impl State {
    /// Word for `drover jobinfo`.
    pub fn word(self) -> &'static str {
        match self {
            Self::New => "queued",
            Self::Preflight | Self::Offering => "preparing",
            Self::PreCopy { .. } => "pre-copy",
            Self::Waiting { .. } => "waiting",
            Self::Freezing { .. } => "freezing",
            Self::Restoring => "restoring",
            Self::Committing => "committing",
            Self::Switching { .. } => "switching",
            Self::Reverting => "reverting",
            Self::Aborting { again: true, .. } | Self::Renewing => "retrying",
            Self::Aborting { .. } => "aborting",
            Self::Ended => "ended",
        }
    }

    /// Whether a cancel still takes effect.
    pub fn can_cancel(self) -> bool {
        self.can_fail() || matches!(self, Self::Aborting { again: true, .. } | Self::Renewing)
    }

    /// Whether a failed step ends the attempt.
    fn can_fail(self) -> bool {
        matches!(
            self,
            Self::New
                | Self::Preflight
                | Self::Offering
                | Self::PreCopy { .. }
                | Self::Waiting { .. }
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
    /// The target lets this move freeze; it holds up the others' freezes until this one ends.
    FreezeGranted {
        /// It took so long that the last round says little about what is dirty now.
        late: bool,
    },
    /// The freeze lasts longer than the budget already, milliseconds.
    FreezeTooLong(u64),
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
    /// The target has durably recorded that it can never resume, and why.
    TargetLost(String),
    /// The commit is durably taken back and the feature registered here again.
    Reverted,
    /// The guest ended the freeze: thawed (abort) or killed (commit), and cleaned up.
    Released,
    /// The target cleaned up or does not know the move any more.
    Discarded,
    /// The target cannot be told; it will ask.
    DiscardUnreachable,
    /// Asking the target to resume failed; try again.
    ResumeFailed,
    /// An administrator gives a committed move up that does not resume at the target.
    GiveUp,
    /// The target did not destroy its copy: it cannot be reached, or runs it.
    GiveUpFailed,
    /// The guest could not end the freeze; try again.
    ReleaseFailed,
    /// A step failed; the reason is shown to users.
    Failed(String),
    /// A dump or a restore failed in a way that another attempt may not.
    Stumbled(String),
    /// The record of the next attempt is durable in place of the one before.
    Renewed,
    /// A step took too long.
    TimedOut(String),
    /// A user cancels.
    Cancel,
    /// droverd stops: what can still be cancelled is.
    Stopping,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ask the guest for a preflight.
    Preflight,
    /// Offer the move to the target.
    Offer,
    /// Send a pre-copy round.
    PreDump {
        /// Round.
        round: u16,
        /// Percent of its CPU time to take from the feature first; 0: leave it as it is.
        throttle: u8,
    },
    /// Ask the target for the turn to freeze.
    AskFreeze,
    /// Freeze and send the last round.
    Freeze(u16),
    /// Ask the target to restore from this last round.
    Restore(u16),
    /// Write the commit record durably.
    Commit,
    /// Take the commit record back durably and register the feature here again, in one
    /// transaction.
    Revert,
    /// Ask the target to resume (at once or after a pause).
    Resume {
        /// After a pause.
        again: bool,
    },
    /// Ask the target to destroy the copy that does not resume there, durably.
    GiveUp,
    /// Ask the guest to end the freeze.
    Release {
        /// Kill the copy here; otherwise thaw it.
        commit: bool,
        /// After a pause.
        again: bool,
    },
    /// Ask the target to discard.
    Discard,
    /// After a pause, put the record of a new attempt in place of this one's, durably. It has an
    /// identifier of its own: what is under way of the one before is refused by everybody.
    Renew {
        /// By the feature's handover instead of its memory.
        handover: bool,
    },
    /// Record the end; nothing follows.
    End,
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    state: State,
    limits: Limits,
    rounds: Vec<Round>,
    offered: bool,
    /// Percent of its CPU time taken from the feature.
    throttle: u8,
    /// It is this move's turn to freeze.
    granted: bool,
    /// Attempts that failed in a dump or a restore.
    stumbled: u16,
    /// The next attempt is a handover.
    handover: bool,
    ending: Option<Ending>,
}

impl Source {
    /// A move within limits.
    pub fn new(limits: Limits) -> Self {
        Self {
            state: State::New,
            limits,
            rounds: Vec::new(),
            offered: false,
            throttle: 0,
            granted: false,
            stumbled: 0,
            handover: false,
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

    /// Predicted freeze in milliseconds, were it frozen after the last round.
    pub fn predicted_freeze_ms(&self) -> Option<u64> {
        convergence::predicted_freeze_ms(&self.rounds).map(|ms| ms as u64)
    }

    /// Whether the next attempt is a handover.
    pub fn renews_as_handover(&self) -> bool {
        self.handover
    }

    /// Percent of its CPU time taken from the feature at present.
    pub fn throttle(&self) -> u8 {
        self.throttle
    }

    fn pre_copy(&mut self, round: u16, throttle: u8) -> Vec<Action> {
        self.state = State::PreCopy { round };
        vec![Action::PreDump { round, throttle }]
    }

    fn freeze(&mut self, round: u16) -> Vec<Action> {
        if self.granted {
            self.state = State::Freezing { round };
            vec![Action::Freeze(round)]
        } else {
            self.state = State::Waiting { round };
            vec![Action::AskFreeze]
        }
    }

    fn abort(&mut self, ending: Ending) -> Vec<Action> {
        self.ending = Some(ending);
        self.state = State::Aborting {
            thawed: false,
            discarded: !self.offered,
            again: false,
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

    /// Gives the attempt up for another one, which begins when nothing of this one is left.
    fn again(&mut self, reason: String) -> Vec<Action> {
        let actions = self.abort(Ending::not(JobResult::Failed, reason));
        if let State::Aborting { again, .. } = &mut self.state {
            *again = true;
        }
        actions
    }

    fn stumble(&mut self, reason: String) -> Vec<Action> {
        self.stumbled += 1;
        if self.stumbled < self.limits.attempts {
            return self.again(reason);
        }
        let times = match self.stumbled {
            0 | 1 => String::new(),
            n => format!(" ({n} attempts)"),
        };
        self.abort(Ending::not(JobResult::Failed, format!("{reason}{times}")))
    }

    /// A user's or droverd's wish to end the move.
    fn cancel(&mut self, ending: Ending) -> Vec<Action> {
        match &mut self.state {
            State::Aborting { again, .. } => {
                *again = false;
                self.ending = Some(ending);
                Vec::new()
            }
            // Its end follows the write.
            State::Renewing => {
                self.ending = Some(ending);
                Vec::new()
            }
            _ => self.abort(ending),
        }
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
                again: true,
            } => {
                self.state = State::Renewing;
                vec![Action::Renew {
                    handover: self.handover,
                }]
            }
            State::Aborting {
                thawed: true,
                discarded: true,
                again: false,
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
                    self.abort(Ending::not(
                        JobResult::Failed,
                        crate::reason::sentences(&found.problems),
                    ))
                }
            }
            (State::Offering, Event::Offered) => self.pre_copy(1, 0),
            (State::PreCopy { round }, Event::RoundSent(r, stats)) if r == round => {
                self.rounds.push(stats);
                let next = round + 1;
                match convergence::next(&self.rounds, &self.limits, self.throttle) {
                    Next::Again => self.pre_copy(next, 0),
                    Next::Throttle(percent) => {
                        self.throttle = percent;
                        self.pre_copy(next, percent)
                    }
                    Next::Freeze(_) => self.freeze(next),
                    Next::GiveUp(reason) => self.abort(Ending::not(JobResult::Failed, reason)),
                    Next::Handover(reason) => {
                        self.handover = true;
                        self.again(reason)
                    }
                }
            }
            (State::Waiting { round }, Event::FreezeGranted { late }) => {
                self.granted = true;
                if late {
                    self.pre_copy(round, 0)
                } else {
                    self.freeze(round)
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
            // Nothing runs there and nothing ever will, so the frozen copy is the last one.
            (
                State::Switching {
                    resumed: false,
                    released: false,
                },
                Event::TargetLost(reason),
            ) => {
                self.ending = Some(Ending::not(
                    JobResult::Failed,
                    format!(
                        "{reason}; the feature goes on here from where it was frozen, and what it \
                         may have done there since is lost"
                    ),
                ));
                self.state = State::Reverting;
                vec![Action::Revert]
            }
            (State::Reverting, Event::Reverted) => {
                self.state = State::Aborting {
                    thawed: false,
                    discarded: false,
                    again: false,
                };
                vec![
                    Action::Release {
                        commit: false,
                        again: false,
                    },
                    Action::Discard,
                ]
            }
            (State::Switching { resumed, .. }, Event::Released) => {
                self.state = State::Switching {
                    resumed,
                    released: true,
                };
                self.settle()
            }
            // Nothing changes here until the target says that its copy never runs.
            (State::Switching { resumed: false, .. }, Event::GiveUp) => vec![Action::GiveUp],
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
            (
                State::Aborting {
                    discarded, again, ..
                },
                Event::Released,
            ) => {
                self.state = State::Aborting {
                    thawed: true,
                    discarded,
                    again,
                };
                self.settle()
            }
            (State::Aborting { thawed: false, .. }, Event::ReleaseFailed) => {
                vec![Action::Release {
                    commit: false,
                    again: true,
                }]
            }
            (State::Aborting { thawed, again, .. }, Event::Discarded) => {
                self.state = State::Aborting {
                    thawed,
                    discarded: true,
                    again,
                };
                self.settle()
            }
            // The target may hold something of this attempt yet: no place for another one.
            (State::Aborting { thawed, .. }, Event::DiscardUnreachable) => {
                self.state = State::Aborting {
                    thawed,
                    discarded: true,
                    again: false,
                };
                self.settle()
            }
            (State::Renewing, Event::Renewed) => {
                self.rounds.clear();
                (self.offered, self.granted, self.throttle) = (false, false, 0);
                if self.handover {
                    // Its rounds carry files only; there is nothing left to fall back to.
                    self.limits.over = OverBudget::Go;
                    self.limits.throttle = false;
                }
                if let Some(ending) = self
                    .ending
                    .take()
                    .filter(|e| e.result == JobResult::Canceled)
                {
                    return self.abort(ending);
                }
                self.state = State::Preflight;
                vec![Action::Preflight]
            }
            (
                State::PreCopy { .. } | State::Freezing { .. } | State::Restoring,
                Event::Stumbled(reason),
            ) => self.stumble(reason),
            (State::Freezing { .. } | State::Restoring, Event::FreezeTooLong(ms)) => {
                self.abort(Ending::not(
                    JobResult::Failed,
                    format!(
                        "the freeze took {ms} ms and was not over, the budget is {} ms \
                         (downtime_ms, over_budget = \"give_up\")",
                        self.limits.budget_ms
                    ),
                ))
            }
            (_, Event::Cancel) if self.state.can_cancel() => {
                self.cancel(Ending::not(JobResult::Canceled, "cancelled by a user"))
            }
            (_, Event::Stopping) if self.state.can_cancel() => self.cancel(Ending::not(
                JobResult::Canceled,
                "droverd was stopped during the move; the feature goes on here",
            )),
            (_, Event::Failed(reason)) if self.state.can_fail() => {
                self.abort(Ending::not(JobResult::Failed, reason))
            }
            (_, Event::TimedOut(reason)) if self.state.can_fail() => {
                self.abort(Ending::not(JobResult::Timeout, reason))
            }
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
pub(super) mod tests;
