//! The source's daemon: `driver::source`, `driver::steps`, and `begin_move`, `commit_move`,
//! `revert_move`, `verdict`, `move_ended` of `daemon`.

use drover::feature::OverBudget;
use drover::moving::convergence::{Limits, Round};
use drover::moving::source::{Action, Event, Source, State};
use drover::wire::guest::{Preflight, RoundStats};

use crate::guest::{Call, Feature, Id};
use crate::world::{
    Answer, Ask, Happening, MOST_MOVES, Outgoing, SourceRecord, Waiter, World, Write,
};

/// Longest wait for an answer of the target, milliseconds.
const STEP: u64 = 20_000;

/// Some features are handed over when they cannot keep to the budget.
fn limits(feature: Feature) -> Limits {
    Limits {
        attempts: 3,
        over: if feature.is_multiple_of(2) {
            OverBudget::Handover
        } else {
            OverBudget::Go
        },
        ..Limits::new(50, 3)
    }
}

fn failed() -> Event {
    Event::Failed(String::new())
}

/// Rounds of a feature that needs one to three of them.
fn round(number: u16, converges: bool) -> Round {
    let bytes = if converges {
        4_000_000 / u64::from(number).pow(2)
    } else {
        4_000_000
    };
    Round {
        stats: RoundStats {
            bytes,
            pages_written: bytes / 4096,
            send_ms: 100,
            dump_ms: 100,
            ..RoundStats::default()
        },
        total_ms: 200,
    }
}

impl World {
    /// `begin_move`, unless the feature is on its way or the daemon is down.
    pub fn begin_move(&mut self, feature: Feature) {
        let Some(host) =
            (0..self.hosts.len()).find(|h| self.hosts[*h].journal.registry.contains_key(&feature))
        else {
            return;
        };
        let to = loop {
            let h = self.rng.index(self.hosts.len());
            if h != host {
                break (h, self.rng.index(crate::world::GUESTS));
            }
        };
        let h = &mut self.hosts[host];
        let guest = h.journal.registry[&feature];
        let Some(daemon) = h.daemon.as_mut() else {
            return;
        };
        let runs = h.guests[guest].copies.get(&feature) == Some(&crate::guest::Copy::Running);
        if !runs
            || h.journal
                .source
                .values()
                .any(|r| r.feature == feature && !r.committed)
        {
            return;
        }
        self.next_id += 1;
        let id = self.next_id;
        let record = SourceRecord {
            feature,
            guest,
            to,
            committed: false,
            reverted: false,
        };
        // The record is durable before anything changes.
        h.journal.source.insert(id, record);
        daemon.outgoing.insert(
            id,
            Outgoing {
                record,
                machine: Source::new(limits(record.feature)),
                queued: true,
            },
        );
        self.take_turns(host);
    }

    /// Begins queued moves as long as there are turns.
    fn take_turns(&mut self, host: usize) {
        let Some(daemon) = self.hosts[host].daemon.as_mut() else {
            return;
        };
        let under_way = daemon.outgoing.values().filter(|o| !o.queued).count();
        let next: Vec<Id> = daemon
            .outgoing
            .iter()
            .filter(|(_, o)| o.queued)
            .map(|(id, _)| *id)
            .take(MOST_MOVES.saturating_sub(under_way))
            .collect();
        for id in next {
            if let Some(o) = self.hosts[host]
                .daemon
                .as_mut()
                .and_then(|d| d.outgoing.get_mut(&id))
            {
                o.queued = false;
            }
            self.tell(host, id, Event::Start);
        }
    }

    /// `peer_lost` and the loss of the bulk connection.
    pub fn source_loses_peer(&mut self, host: usize, peer: usize) {
        let Some(daemon) = self.hosts[host].daemon.as_ref() else {
            return;
        };
        let hit: Vec<Id> = daemon
            .outgoing
            .iter()
            .filter(|(_, o)| o.record.to.0 == peer)
            .map(|(id, _)| *id)
            .collect();
        for id in hit {
            self.tell(host, id, failed());
        }
    }

    /// Feeds the machine and performs what it wants.
    pub fn source_event(&mut self, host: usize, life: u32, id: Id, event: Event) {
        let Some(o) = self
            .daemon(host, life)
            .and_then(|d| d.outgoing.get_mut(&id))
        else {
            return;
        };
        let record = o.record;
        let actions = o.machine.step(event);
        if matches!(o.machine.state(), State::Aborting { .. }) {
            o.queued = false;
        }
        for action in actions {
            let place = (host, record.guest);
            let f = record.feature;
            let guest = |w: &mut Self, call| w.call(place, id, call, Waiter::Source);
            match action {
                Action::Preflight => guest(self, Call::Preflight(f)),
                Action::PreDump { round, .. } => guest(self, Call::PreDump(f, round)),
                Action::Freeze(round) => guest(self, Call::Freeze(f, round)),
                Action::Release {
                    commit,
                    again: false,
                } => {
                    guest(self, Call::Release { feature: f, commit });
                }
                Action::Release {
                    commit,
                    again: true,
                } => {
                    self.after(
                        1_000,
                        Happening::ReleaseAgain {
                            host,
                            life,
                            id,
                            commit,
                        },
                    );
                }
                Action::Offer => {
                    let ask = Ask::Offer {
                        feature: f,
                        guest: record.to.1,
                    };
                    self.ask(host, record.to.0, id, ask, STEP);
                }
                Action::AskFreeze => self.ask(host, record.to.0, id, Ask::GrantFreeze, 3 * STEP),
                Action::Restore(round) => {
                    self.ask(host, record.to.0, id, Ask::Restore(round), STEP);
                }
                Action::Resume { again: false } => {
                    self.ask(host, record.to.0, id, Ask::Resume, STEP);
                }
                Action::Resume { again: true } => {
                    let ask = Ask::Resume;
                    self.after(
                        1_000,
                        Happening::AskAgain {
                            host,
                            life,
                            id,
                            ask,
                        },
                    );
                }
                Action::Discard => self.ask(host, record.to.0, id, Ask::Discard, STEP),
                Action::Commit => self.write(host, id, Write::Commit, None),
                Action::Revert => self.write(host, id, Write::Revert, None),
                // No administrator is in this simulation.
                Action::GiveUp => {}
                Action::Renew { .. } => self.write(host, id, Write::Renew, None),
                Action::End => self.write(host, id, Write::End, None),
            }
        }
    }

    /// A guest has answered a call of the source.
    pub fn source_guest_answers(&mut self, host: usize, id: Id, call: Call, ok: bool) {
        let Some(o) = self.hosts[host]
            .daemon
            .as_ref()
            .and_then(|d| d.outgoing.get(&id))
        else {
            return;
        };
        let to = o.record.to.0;
        // Every third feature's memory changes as fast as it is sent.
        let converges = o.record.feature % 3 != 2;
        let event = match (call, ok) {
            (Call::Preflight(_), true) => Event::Preflight(Preflight::default()),
            (Call::PreDump(_, n), true) => {
                return self.ask(host, to, id, Ask::AwaitRound(n), STEP);
            }
            (Call::Freeze(_, n), true) => Event::RoundSent(n, round(n, converges)),
            (Call::Release { .. }, true) => Event::Released,
            (Call::Release { .. }, false) => Event::ReleaseFailed,
            (Call::Freeze(..), false) => Event::Stumbled(String::new()),
            _ => failed(),
        };
        self.tell(host, id, event);
    }

    /// The target has answered, or (`None`) the call failed.
    pub fn source_hears(&mut self, host: usize, id: Id, ask: Ask, answer: Option<Answer>) {
        let Some(o) = self.hosts[host]
            .daemon
            .as_ref()
            .and_then(|d| d.outgoing.get(&id))
        else {
            return;
        };
        let (state, life) = (o.machine.state(), self.life(host));
        let converges = o.record.feature % 3 != 2;
        let event = match (ask, answer) {
            (Ask::Offer { .. }, Some(Answer::Busy)) if state == State::Offering => {
                return self.after(
                    1_000,
                    Happening::AskAgain {
                        host,
                        life,
                        id,
                        ask,
                    },
                );
            }
            (Ask::Offer { .. }, Some(Answer::Done)) => Event::Offered,
            (Ask::AwaitRound(n), Some(Answer::Done)) => Event::RoundSent(n, round(n, converges)),
            (Ask::GrantFreeze, Some(Answer::Done)) => Event::FreezeGranted {
                late: self.rng.chance(200),
            },
            (Ask::Restore(_), Some(Answer::Ready)) => Event::TargetReady,
            (Ask::Restore(_), Some(Answer::Otherwise)) => Event::Stumbled(String::new()),
            (Ask::Resume, Some(Answer::Running)) => Event::TargetRunning,
            (Ask::Resume, Some(Answer::Lost)) => Event::TargetLost(String::new()),
            (Ask::Resume, _) => Event::ResumeFailed,
            (Ask::Discard, Some(Answer::Done)) => Event::Discarded,
            (Ask::Discard, _) => Event::DiscardUnreachable,
            _ => failed(),
        };
        self.tell(host, id, event);
    }

    /// A write of the source's journal becomes durable.
    pub fn source_writes(&mut self, host: usize, id: Id, write: Write) {
        let Some(o) = self.hosts[host]
            .daemon
            .as_ref()
            .and_then(|d| d.outgoing.get(&id))
        else {
            return;
        };
        let (record, done) = (
            o.record,
            o.machine
                .ending()
                .is_some_and(|e| e.result == drover::api::JobResult::Done),
        );
        let journal = &mut self.hosts[host].journal;
        match write {
            Write::Commit => {
                journal.registry.remove(&record.feature);
                if let Some(r) = journal.source.get_mut(&id) {
                    r.committed = true;
                }
            }
            Write::Revert => {
                journal.registry.insert(record.feature, record.guest);
                if let Some(r) = journal.source.get_mut(&id) {
                    (r.committed, r.reverted) = (false, true);
                }
                self.reverted += 1;
            }
            Write::End => {
                journal.source.remove(&id);
                journal.jobs.insert(id, done);
                self.done += u64::from(done);
            }
            _ => {}
        }
    }

    /// The driver hears of its write.
    pub fn source_is_told(&mut self, host: usize, life: u32, id: Id, write: Write, ok: bool) {
        match (write, ok) {
            (Write::Commit, true) => self.tell(host, id, Event::Committed),
            (Write::Commit, false) => self.tell(host, id, Event::CommitFailed(String::new())),
            (Write::Renew, true) => {
                // Another attempt is another move to all others.
                self.next_id += 1;
                let next = self.next_id;
                let Some(o) = self.daemon(host, life).and_then(|d| d.outgoing.remove(&id)) else {
                    return;
                };
                let journal = &mut self.hosts[host].journal.source;
                journal.remove(&id);
                journal.insert(next, o.record);
                if let Some(d) = self.daemon(host, life) {
                    d.outgoing.insert(next, o);
                }
                self.renewed += 1;
                self.tell(host, next, Event::Renewed);
            }
            (Write::Revert, true) => self.tell(host, id, Event::Reverted),
            // `move_ended`, and `recheck` when the feature stays.
            (Write::End, true) => {
                let Some(o) = self.daemon(host, life).and_then(|d| d.outgoing.remove(&id)) else {
                    return;
                };
                let guest = o.record.guest;
                self.after(50, Happening::Greet { host, life, guest });
                self.take_turns(host);
            }
            (w, false) => self.write(host, id, w, None),
            _ => {}
        }
    }

    pub fn verdict(&self, host: usize, id: Id) -> Answer {
        let h = &self.hosts[host];
        match h.journal.source.get(&id) {
            Some(r) if r.committed => Answer::Committed,
            Some(_) => {
                let aborting = h.daemon.as_ref().is_some_and(|d| {
                    d.outgoing
                        .get(&id)
                        .is_some_and(|o| matches!(o.machine.state(), State::Aborting { .. }))
                });
                if aborting || self.broken {
                    Answer::Aborted
                } else {
                    Answer::Pending
                }
            }
            None => Answer::Aborted,
        }
    }

    /// `recover_moves`, source's part.
    pub fn source_recovers(&mut self, host: usize) {
        let records: Vec<_> = self.hosts[host]
            .journal
            .source
            .clone()
            .into_iter()
            .collect();
        for (id, record) in records {
            if let Some(d) = self.hosts[host].daemon.as_mut() {
                let out = Outgoing {
                    record,
                    machine: Source::new(limits(record.feature)),
                    queued: false,
                };
                d.outgoing.insert(id, out);
            }
            let committed = record.committed;
            self.tell(host, id, Event::Recovered { committed });
        }
    }
}
