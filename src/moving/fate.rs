//! What becomes of a copy that a move left frozen in a guest which libvirt took elsewhere, as far as
//! the host that makes the move can tell.

use crate::api::JobResult;
use crate::wire::peer::Fate;

use super::source::State;

/// By the journal and the machine; `None` when neither knows the move. `committed`: what the record
/// of this very attempt says, if there is one; `state`: where the move stands, be it in this attempt
/// or in one after it.
pub fn under_way(committed: Option<bool>, state: Option<State>) -> Option<Fate> {
    Some(match (committed, state) {
        // Before it runs there, the frozen copy may be needed once more.
        (Some(_), Some(State::Switching { resumed: true, .. })) => Fate::Gone,
        (Some(false), Some(State::Aborting { .. })) => Fate::Stays,
        // No record, but a move: another attempt of it is under way.
        (Some(_), _) | (None, Some(_)) => Fate::Pending,
        (None, None) => return None,
    })
}

/// By the list of jobs, once the move has ended; `None` is a job that is not there.
pub fn ended(job: Option<Option<JobResult>>) -> Fate {
    match job {
        Some(Some(JobResult::Done)) => Fate::Gone,
        Some(_) => Fate::Stays,
        None => Fate::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::moving::convergence::Limits;
    use crate::moving::source::tests::round;
    use crate::moving::source::{Action, Event, Source};
    use crate::wire::guest::Preflight;

    /// A move of up to three attempts, its journal, and the frozen copies that were made on the
    /// way: they stay in a guest that is gone.
    struct Move {
        machine: Source,
        attempt: u16,
        /// Of the attempt under way.
        committed: bool,
        /// Attempts that froze their feature, and whether it was resumed at the target.
        frozen: BTreeMap<u16, bool>,
        pending: Vec<Action>,
        ended: bool,
    }

    impl Move {
        fn new() -> Self {
            let limits = Limits {
                attempts: 3,
                ..Limits::new(1000, 3)
            };
            let mut new = Self {
                machine: Source::new(limits),
                attempt: 1,
                committed: false,
                frozen: BTreeMap::new(),
                pending: Vec::new(),
                ended: false,
            };
            new.feed(Event::Start);
            new
        }

        fn feed(&mut self, event: Event) {
            match (self.machine.state(), &event) {
                (State::Committing, Event::Committed) => self.committed = true,
                (State::Reverting, Event::Reverted) => self.committed = false,
                (State::Renewing, Event::Renewed) => self.attempt += 1,
                (State::Switching { resumed: false, .. }, Event::TargetRunning) => {
                    self.frozen.insert(self.attempt, true);
                }
                _ => {}
            }
            for action in self.machine.step(event) {
                self.ended |= action == Action::End;
                self.pending.push(action);
            }
        }

        /// The outcome of an action; `gone`: the guest is not on this host any more.
        fn outcome(action: Action, well: bool, gone: bool) -> Option<Event> {
            let failed = || Event::Failed("x".into());
            let stumbled = || Event::Stumbled("x".into());
            Some(match action {
                Action::Preflight | Action::PreDump { .. } | Action::Freeze(_) if gone => failed(),
                Action::Preflight => Event::Preflight(Preflight::default()),
                Action::Offer if well => Event::Offered,
                Action::Offer => failed(),
                Action::PreDump { round: r, .. } | Action::Freeze(r) if well => {
                    Event::RoundSent(r, round())
                }
                Action::AskFreeze => Event::FreezeGranted { late: false },
                Action::Restore(_) if well => Event::TargetReady,
                Action::PreDump { .. } | Action::Freeze(_) | Action::Restore(_) => stumbled(),
                Action::Commit if well => Event::Committed,
                Action::Commit => Event::CommitFailed("x".into()),
                Action::Revert => Event::Reverted,
                Action::Resume { .. } if well => Event::TargetRunning,
                Action::Resume { .. } | Action::GiveUp => Event::TargetLost("x".into()),
                // Of a guest that is gone nothing has to be released here.
                Action::Release { .. } if well || gone => Event::Released,
                Action::Release { .. } => Event::ReleaseFailed,
                Action::Discard if well => Event::Discarded,
                Action::Discard => Event::DiscardUnreachable,
                Action::Renew { .. } => Event::Renewed,
                Action::End => return None,
            })
        }

        /// What the host says of the copy of an attempt.
        fn fate(&self, attempt: u16) -> Fate {
            let state = (!self.ended).then(|| self.machine.state());
            let record = (!self.ended && attempt == self.attempt).then_some(self.committed);
            let result = self.machine.ending().map(|e| e.result);
            under_way(record, state).unwrap_or_else(|| ended(Some(result)))
        }

        fn check(&self) -> Result<(), TestCaseError> {
            let runs_there = self.frozen.get(&self.attempt) == Some(&true);
            for attempt in self.frozen.keys() {
                match self.fate(*attempt) {
                    Fate::Gone => prop_assert!(runs_there, "nothing runs, {:?}", self.machine),
                    Fate::Stays => prop_assert!(
                        !runs_there && !self.committed,
                        "the target may run it, {:?}",
                        self.machine
                    ),
                    Fate::Pending => prop_assert!(!self.ended, "{:?}", self.machine),
                    Fate::Unknown => prop_assert!(false, "it is known"),
                }
            }
            Ok(())
        }
    }

    proptest! {
        /// Libvirt takes the guest away at some step of some attempt, with what is frozen in it.
        /// The copy is killed only when the feature runs at the target, and thawed only when it
        /// cannot; the move ends in either case, and then all is said.
        #[test]
        fn the_guest_leaves(well in proptest::collection::vec(any::<bool>(), 80), leaves in 0..80_usize) {
            let mut m = Move::new();
            let (mut gone, mut froze) = (false, 0);
            for step in 0..200 {
                m.check()?;
                if m.pending.is_empty() {
                    break;
                }
                if step == leaves {
                    gone = true;
                    froze = m.frozen.len();
                }
                let action = m.pending.remove(0);
                // In the end nothing else fails.
                let well = well.get(step).copied().unwrap_or(true);
                if matches!(action, Action::Freeze(_)) && well && !gone {
                    m.frozen.insert(m.attempt, false);
                }
                if let Some(event) = Move::outcome(action, well, gone) {
                    m.feed(event);
                }
            }
            m.check()?;
            prop_assert!(m.ended, "{:?}", m.machine);
            if gone {
                prop_assert_eq!(m.frozen.len(), froze, "nothing is frozen in a guest that is gone");
            }
        }
    }

    #[test]
    fn an_attempt_before_the_present_one_is_not_decided_by_it() {
        let switching = State::Switching {
            resumed: true,
            released: false,
        };
        assert_eq!(under_way(None, Some(switching)), Some(Fate::Pending));
        assert_eq!(under_way(Some(true), Some(switching)), Some(Fate::Gone));
        assert_eq!(under_way(None, None), None);
        assert_eq!(ended(None), Fate::Unknown);
    }
}
