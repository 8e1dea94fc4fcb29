//! Tests of the source's machine.

use super::*;
use crate::wire::guest::RoundStats;
use proptest::prelude::*;

/// A round of a kilobyte in ten milliseconds.
pub(in crate::moving) fn round() -> Round {
    Round {
        stats: RoundStats {
            bytes: 1000,
            send_ms: 1,
            ..RoundStats::default()
        },
        total_ms: 10,
    }
}

fn pre_dump(round: u16) -> Action {
    Action::PreDump { round, throttle: 0 }
}

const THAW: Action = Action::Release {
    commit: false,
    again: false,
};

/// A move up to its commit.
fn committed() -> Source {
    let mut s = Source::new(Limits::new(1000, 1));
    for e in [
        Event::Start,
        Event::Preflight(Preflight::default()),
        Event::Offered,
        Event::RoundSent(1, round()),
        Event::FreezeGranted { late: false },
        Event::RoundSent(2, round()),
        Event::TargetReady,
        Event::Committed,
    ] {
        s.step(e);
    }
    assert!(matches!(s.state(), State::Switching { .. }));
    s
}

#[test]
fn a_lost_target_gives_the_move_back() {
    let mut s = committed();
    assert_eq!(
        s.step(Event::ResumeFailed),
        [Action::Resume { again: true }]
    );
    let lost = Event::TargetLost("host b: the guest was booted anew".into());
    assert_eq!(s.step(lost.clone()), [Action::Revert]);
    // Nothing is thawed before the record says so.
    for e in [
        Event::TargetRunning,
        Event::ResumeFailed,
        Event::Cancel,
        lost,
    ] {
        assert_eq!(s.step(e), []);
    }
    assert_eq!(s.step(Event::Reverted), [THAW, Action::Discard]);
    s.step(Event::Discarded);
    assert_eq!(s.step(Event::Released), [Action::End]);
    let ending = s.ending().unwrap();
    assert_eq!(ending.result, JobResult::Failed);
    assert!(ending.reason.as_ref().unwrap().contains("booted anew"));
}

#[test]
fn a_committed_move_is_given_up_by_the_target_only() {
    let mut s = committed();
    assert_eq!(s.step(Event::GiveUp), [Action::GiveUp]);
    assert_eq!(s.step(Event::GiveUpFailed), []);
    assert!(matches!(s.state(), State::Switching { .. }), "as before");
    assert_eq!(s.step(Event::GiveUp), [Action::GiveUp]);
    assert_eq!(
        s.step(Event::TargetLost("destroyed".into())),
        [Action::Revert]
    );
    let mut s = committed();
    s.step(Event::TargetRunning);
    assert_eq!(s.step(Event::GiveUp), [], "it runs there");
}

/// In its freeze, with so many attempts.
fn frozen(attempts: u16) -> Source {
    let mut s = Source::new(Limits {
        attempts,
        ..Limits::new(1000, 1)
    });
    to_freeze(&mut s, Event::Start);
    s
}

fn to_freeze(s: &mut Source, first: Event) {
    for e in [
        first,
        Event::Preflight(Preflight::default()),
        Event::Offered,
        Event::RoundSent(1, round()),
        Event::FreezeGranted { late: false },
    ] {
        s.step(e);
    }
    assert!(
        matches!(s.state(), State::Freezing { .. }),
        "{:?}",
        s.state()
    );
}

#[test]
fn what_fails_in_a_freeze_is_tried_again_so_many_times() {
    let mut s = frozen(3);
    for _ in 0..2 {
        assert_eq!(s.step(Event::Stumbled("x".into())), [THAW, Action::Discard]);
        // Late outcomes of the attempt change nothing.
        assert_eq!(s.step(Event::Failed("relay".into())), []);
        assert_eq!(s.step(Event::Released), []);
        let renew = [Action::Renew { handover: false }];
        assert_eq!(s.step(Event::Discarded), renew);
        assert_eq!(s.step(Event::Failed("relay".into())), []);
        to_freeze(&mut s, Event::Renewed);
    }
    s.step(Event::RoundSent(2, round()));
    s.step(Event::Stumbled("y".into()));
    s.step(Event::Released);
    assert_eq!(s.step(Event::Discarded), [Action::End]);
    let reason = s.ending().unwrap().reason.clone().unwrap();
    assert_eq!(reason, "y (3 attempts)");
    // Other failures are none that pass.
    let mut s = frozen(3);
    s.step(Event::Failed("z".into()));
    s.step(Event::Released);
    assert_eq!(s.step(Event::Discarded), [Action::End]);
}

#[test]
fn no_other_attempt_while_the_target_may_hold_this_one_or_somebody_cancels() {
    let mut s = frozen(3);
    s.step(Event::Stumbled("x".into()));
    s.step(Event::Released);
    assert_eq!(s.step(Event::DiscardUnreachable), [Action::End]);
    let mut s = frozen(3);
    s.step(Event::Stumbled("x".into()));
    assert!(s.state().can_cancel());
    assert_eq!(s.step(Event::Cancel), []);
    s.step(Event::Released);
    assert_eq!(s.step(Event::Discarded), [Action::End]);
    assert_eq!(s.ending().unwrap().result, JobResult::Canceled);
    let mut s = frozen(3);
    for e in [
        Event::Stumbled("x".into()),
        Event::Released,
        Event::Discarded,
        Event::Cancel,
    ] {
        s.step(e);
    }
    assert_eq!(s.step(Event::Renewed), [THAW]);
    assert_eq!(s.step(Event::Released), [Action::End]);
    assert_eq!(s.ending().unwrap().result, JobResult::Canceled);
}

#[test]
fn a_budget_that_cannot_be_met_is_handed_over() {
    let mut s = Source::new(Limits {
        over: OverBudget::Handover,
        ..Limits::new(0, 1)
    });
    for e in [
        Event::Start,
        Event::Preflight(Preflight::default()),
        Event::Offered,
        Event::RoundSent(1, round()),
        Event::Released,
    ] {
        s.step(e);
    }
    let renew = [Action::Renew { handover: true }];
    assert_eq!(s.step(Event::Discarded), renew);
    // There is nothing left to fall back to.
    to_freeze(&mut s, Event::Renewed);
}

#[test]
fn once_it_ran_there_it_is_not_taken_back() {
    let mut s = committed();
    s.step(Event::TargetRunning);
    assert_eq!(s.step(Event::TargetLost("late".into())), []);
}

#[test]
fn a_late_turn_brings_another_round() {
    let mut s = Source::new(Limits::new(1000, 1));
    s.step(Event::Start);
    s.step(Event::Preflight(Preflight::default()));
    s.step(Event::Offered);
    assert_eq!(s.step(Event::RoundSent(1, round())), [Action::AskFreeze]);
    assert_eq!(s.state().word(), "waiting");
    assert_eq!(s.step(Event::FreezeGranted { late: true }), [pre_dump(2)]);
    assert_eq!(s.step(Event::RoundSent(2, round())), [Action::Freeze(3)]);
    assert_eq!(s.step(Event::FreezeTooLong(2000)), [THAW, Action::Discard]);
    assert!(
        s.ending()
            .unwrap()
            .reason
            .as_ref()
            .unwrap()
            .contains("2000 ms")
    );
}

#[test]
fn the_good_way() {
    let mut s = Source::new(Limits::new(1000, 6));
    assert_eq!(s.step(Event::Start), [Action::Preflight]);
    assert_eq!(
        s.step(Event::Preflight(Preflight::default())),
        [Action::Offer]
    );
    assert_eq!(s.step(Event::Offered), [pre_dump(1)]);
    assert_eq!(s.step(Event::RoundSent(1, round())), [pre_dump(2)]);
    assert_eq!(s.step(Event::RoundSent(2, round())), [Action::AskFreeze]);
    assert_eq!(
        s.step(Event::FreezeGranted { late: false }),
        [Action::Freeze(3)]
    );
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
    let mut s = Source::new(Limits::new(1000, 6));
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
    let mut s = Source::new(Limits::new(1000, 1));
    for e in [
        Event::Start,
        Event::Preflight(Preflight::default()),
        Event::Offered,
        Event::RoundSent(1, round()),
        Event::FreezeGranted { late: false },
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
        any::<bool>().prop_map(|late| Event::FreezeGranted { late }),
        Just(Event::FreezeTooLong(1)),
        Just(Event::TargetReady),
        Just(Event::Committed),
        Just(Event::CommitFailed("x".into())),
        Just(Event::TargetRunning),
        Just(Event::Released),
        Just(Event::Discarded),
        Just(Event::DiscardUnreachable),
        Just(Event::ResumeFailed),
        Just(Event::TargetLost("x".into())),
        Just(Event::Reverted),
        Just(Event::Stopping),
        Just(Event::ReleaseFailed),
        Just(Event::Failed("x".into())),
        Just(Event::TimedOut("x".into())),
        Just(Event::Cancel),
    ]
}

proptest! {
    /// Whatever happens in whatever order: no commit without READY, no thaw after a commit that
    /// was not taken back, no kill and no resume without one, and the end comes once.
    #[test]
    fn never_two_never_none(events in proptest::collection::vec(event(), 0..60)) {
        let mut s = Source::new(Limits::new(1000, 3));
        let (mut committed, mut aborted, mut ends) = (false, false, 0);
        for e in events {
            let was = s.state();
            let is_commit = e == Event::Committed && was == State::Committing;
            let refused = matches!(e, Event::CommitFailed(_));
            if e == Event::Reverted && was == State::Reverting {
                committed = false;
            }
            for a in s.step(e) {
                match a {
                    Action::Commit => prop_assert_eq!(was, State::Restoring),
                    Action::Resume { .. } => {
                        prop_assert!(committed || is_commit);
                        prop_assert!(was != State::Reverting && !aborted);
                    }
                    Action::Release { commit: true, .. } => {
                        prop_assert!((committed || is_commit) && !aborted);
                    }
                    Action::Release { commit: false, .. } => {
                        prop_assert!(!committed && !is_commit);
                        prop_assert!(was != State::Committing || refused);
                        aborted = true;
                    }
                    Action::Revert => {
                        let waiting = State::Switching { resumed: false, released: false };
                        prop_assert_eq!(was, waiting);
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
