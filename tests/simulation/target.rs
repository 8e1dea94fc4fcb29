//! The target's daemon: `driver::target`, the offers of `serve_peer`, and `adopt`, `recover_moves`
//! and `reconcile` of `daemon`.

use drover::decision::{Demand, Policy};
use drover::host::{HostState, InstanceState};
use drover::moving::record::TargetPhase;
use drover::moving::target::{Action, Event, State, Target};

use crate::guest::{Call, Copy, Feature, Id};
use crate::world::{
    Answer, Ask, FEATURE_CPUS, GUEST_CPUS, GUESTS, Happening, Incoming, MOST_MOVES, Request,
    TargetRecord, Waiter, World, Write,
};

/// Pause of the watch and between attempts, milliseconds.
const PAUSE: u64 = 2_000;
const DOUBT_AFTER: u64 = 5_000;
const ASK_AFTER: u64 = 15_000;

impl World {
    fn incoming(&mut self, host: usize, id: Id) -> Option<&mut Incoming> {
        self.hosts[host].daemon.as_mut()?.incoming.get_mut(&id)
    }

    /// CPUs of a guest that registered features use.
    fn used(&self, host: usize, guest: usize) -> f64 {
        let registry = &self.hosts[host].journal.registry;
        registry.values().filter(|g| **g == guest).count() as f64 * FEATURE_CPUS
    }

    /// CPUs of a guest that are used or promised. One that has just arrived is not promised too.
    pub fn promised(&self, host: usize, guest: usize) -> f64 {
        let h = &self.hosts[host];
        let Some(d) = h.daemon.as_ref() else {
            return 0.0;
        };
        let arrived = |id: &Id| {
            d.incoming
                .get(id)
                .is_some_and(|i| h.journal.registry.contains_key(&i.record.feature))
        };
        let reserved = d
            .reserved
            .iter()
            .filter(|(id, r)| r.0 == guest && !arrived(id));
        self.used(host, guest) + reserved.map(|(_, r)| r.1).sum::<f64>()
    }

    /// The check of an offer: Drover's own, on the state that the host would tell.
    fn room(&self, host: usize, guest: usize) -> bool {
        let Some(d) = self.hosts[host].daemon.as_ref() else {
            return false;
        };
        let mut state = HostState::new("b");
        state.capabilities.cpus = GUEST_CPUS * GUESTS as f64;
        state.capabilities.memory_mib = 1_000_000.0;
        state.load.cpus_used = (0..GUESTS).map(|g| self.used(host, g)).sum();
        state.reserved_cpus = d.reserved.values().map(|r| r.1).sum();
        for g in 0..GUESTS {
            let mut instance = InstanceState::new(format!("g{g}"));
            instance.vcpus = GUEST_CPUS;
            instance.memory_available_mib = Some(1_000_000.0);
            instance.cpus_used = self.used(host, g);
            let reserved = d.reserved.values().filter(|r| r.0 == g);
            instance.reserved_cpus = reserved.map(|r| r.1).sum();
            state.instances.push(instance);
        }
        let policy = Policy {
            reserve: 0.0,
            ..Policy::default()
        };
        let need = Demand {
            cpus: FEATURE_CPUS,
            ..Demand::default()
        };
        drover::decision::admit(&state, &format!("g{guest}"), &need, &policy, false).is_ok()
    }

    /// A request comes in.
    pub fn target_takes(&mut self, r: Request) {
        let (host, id) = (r.to, r.id);
        let reply = Some(r);
        if self.hosts[host].daemon.is_none() {
            return;
        }
        if r.ask == Ask::Verdict {
            let answer = self.verdict(host, id);
            return self.answer(reply, answer);
        }
        let place = self
            .incoming(host, id)
            .map(|i| (host, i.record.guest, i.busy, i.machine.state()));
        let Some((_, guest, busy, state)) = place else {
            return match r.ask {
                Ask::Offer { feature, guest } => self.offered(r, feature, guest),
                Ask::Discard => self.answer(reply, Answer::Done),
                _ => self.answer(reply, Answer::Refused),
            };
        };
        match r.ask {
            Ask::Offer { .. } => return self.answer(reply, Answer::Refused),
            // These do not take the move's lock while they wait.
            Ask::AwaitRound(n) => {
                if self.hosts[host].guests[guest].has(id, n) {
                    return self.answer(reply, Answer::Done);
                }
                if state != State::Receiving {
                    return self.answer(reply, Answer::Refused);
                }
                return self.after(50, Happening::Request(r));
            }
            Ask::GrantFreeze => {
                if state != State::Receiving {
                    return self.answer(reply, Answer::Refused);
                }
                let Some(d) = self.hosts[host].daemon.as_mut() else {
                    return;
                };
                if d.freeze.is_none_or(|f| f == id) {
                    d.freeze = Some(id);
                    return self.answer(reply, Answer::Done);
                }
                return self.after(50, Happening::Request(r));
            }
            _ if busy => return self.after(10, Happening::Request(r)),
            _ => {}
        }
        let event = match r.ask {
            Ask::Restore(_) => Event::RestoreAsked,
            Ask::Resume => Event::ResumeAsked,
            _ => Event::DiscardAsked,
        };
        let Some(i) = self.incoming(host, id) else {
            return;
        };
        match i.machine.step(event) {
            Err(_) => self.answer(reply, Answer::Refused),
            Ok(_) if matches!(r.ask, Ask::Restore(_)) => {
                i.busy = true;
                let Ask::Restore(round) = r.ask else { return };
                self.call(
                    (host, guest),
                    id,
                    Call::Restore(round),
                    Waiter::Target(reply),
                );
            }
            Ok(actions) => self.settle(host, id, actions, reply),
        }
    }

    /// `offer` and `accept`.
    fn offered(&mut self, r: Request, feature: Feature, guest: usize) {
        let (host, id) = (r.to, r.id);
        let registered = self.hosts[host].journal.registry.contains_key(&feature);
        let room = self.room(host, guest);
        let boot = self.hosts[host].guests[guest].boot;
        let now = self.now;
        let life = self.life(host);
        let Some(d) = self.hosts[host].daemon.as_mut() else {
            return;
        };
        let over = |s: State| matches!(s, State::Running | State::Gone | State::Lost);
        let under_way = d
            .incoming
            .values()
            .filter(|i| !over(i.machine.state()))
            .count();
        if under_way >= MOST_MOVES {
            return self.answer(Some(r), Answer::Busy);
        }
        if registered || !room {
            return self.answer(Some(r), Answer::Refused);
        }
        let record = TargetRecord {
            feature,
            guest,
            from: r.from,
            phase: TargetPhase::Receiving,
            boot,
        };
        d.reserved.insert(id, (guest, FEATURE_CPUS));
        d.incoming.insert(
            id,
            Incoming {
                record,
                machine: Target::new(),
                busy: true,
                since: now,
                asking: false,
            },
        );
        self.hosts[host].journal.target.insert(id, record);
        self.after(PAUSE, Happening::Watch { host, life, id });
        self.call(
            (host, guest),
            id,
            Call::Receive(feature),
            Waiter::Target(Some(r)),
        );
    }

    /// Performs actions; the lock is held until none is left, and then the request is answered.
    fn settle(&mut self, host: usize, id: Id, actions: Vec<Action>, reply: Option<Request>) {
        let (now, life) = (self.now, self.life(host));
        let Some(i) = self.incoming(host, id) else {
            return;
        };
        let place = (host, i.record.guest);
        i.busy = false;
        i.since = now;
        for action in actions {
            let waiter = Waiter::Target(reply);
            match action {
                Action::Resume { again: true } | Action::Discard { again: true } => {
                    self.after(
                        PAUSE,
                        Happening::RetryTarget {
                            host,
                            life,
                            id,
                            action,
                        },
                    );
                    continue;
                }
                // The last two: no administrator is in this simulation.
                Action::AskVerdict
                | Action::Restore
                | Action::RecordReady
                | Action::Destroy { .. }
                | Action::RecordGiveUp => continue,
                Action::Resume { again: false } => self.call(place, id, Call::Resume, waiter),
                Action::Discard { again: false } => self.call(place, id, Call::Discard, waiter),
                Action::Adopt => self.write(host, id, Write::Adopted, reply),
                Action::RecordLost => self.write(host, id, Write::Lost, reply),
                Action::Forget => self.write(host, id, Write::Forgotten, reply),
            }
            if let Some(i) = self.incoming(host, id) {
                i.busy = true;
            }
        }
        let Some(i) = self.incoming(host, id) else {
            return;
        };
        let (busy, state) = (i.busy, i.machine.state());
        let freezes = matches!(
            state,
            State::Receiving | State::Restoring | State::Recording | State::Ready | State::Resuming
        );
        if let Some(d) = self.hosts[host].daemon.as_mut()
            && !freezes
            && d.freeze == Some(id)
        {
            d.freeze = None;
        }
        if busy {
            return;
        }
        let ask = reply.map(|r| r.ask);
        let answer = match (ask, state) {
            (Some(Ask::Offer { .. }), State::Receiving) | (Some(Ask::Discard), _) => Answer::Done,
            (Some(Ask::Offer { .. }), _) => Answer::Refused,
            (_, State::Ready | State::Resuming) => Answer::Ready,
            (_, State::Running) => Answer::Running,
            (_, State::Losing | State::Lost) => Answer::Lost,
            _ => Answer::Otherwise,
        };
        self.answer(reply, answer);
    }

    fn feed(&mut self, host: usize, id: Id, event: Event, reply: Option<Request>) {
        if let Some(i) = self.incoming(host, id) {
            let actions = i.machine.step(event).unwrap_or_default();
            self.settle(host, id, actions, reply);
        }
    }

    /// A guest has answered (or not) a call of the target.
    pub fn target_guest_answers(
        &mut self,
        host: usize,
        id: Id,
        call: Call,
        ok: bool,
        reply: Option<Request>,
    ) {
        let Some(i) = self.incoming(host, id) else {
            return;
        };
        let guest = i.record.guest;
        let boot = self.hosts[host].guests[guest].boot;
        let Some(i) = self.incoming(host, id) else {
            return;
        };
        let event = match (call, ok) {
            (Call::Receive(_), true) => Event::Prepared,
            (Call::Restore(_), true) => {
                i.record.boot = boot;
                let _ = i.machine.step(Event::Restored);
                return self.write(host, id, Write::Ready, reply);
            }
            (Call::Resume, true) => Event::Resumed,
            (Call::Resume, false) if boot != i.record.boot => Event::GuestLost,
            (Call::Resume, false) => Event::ResumeFailed,
            (Call::Discard, true) => Event::Discarded,
            (Call::Discard, false) => Event::DiscardFailed,
            _ => Event::Failed,
        };
        if matches!(call, Call::Receive(_)) && !ok {
            self.unreserve(host, id);
        }
        self.feed(host, id, event, reply);
    }

    fn unreserve(&mut self, host: usize, id: Id) {
        if let Some(d) = self.hosts[host].daemon.as_mut() {
            d.reserved.remove(&id);
        }
    }

    /// A write of the target's journal becomes durable.
    pub fn target_writes(&mut self, host: usize, id: Id, write: Write) {
        let Some(i) = self.incoming(host, id) else {
            return;
        };
        i.record.phase = match write {
            Write::Ready => TargetPhase::Ready,
            Write::Adopted => TargetPhase::Running,
            Write::Lost => TargetPhase::Lost,
            _ => i.record.phase,
        };
        let record = i.record;
        let journal = &mut self.hosts[host].journal;
        if write == Write::Forgotten {
            journal.target.remove(&id);
        } else {
            journal.target.insert(id, record);
        }
        if write == Write::Adopted {
            journal.registry.insert(record.feature, record.guest);
        }
    }

    /// The driver hears of its write.
    pub fn target_is_told(
        &mut self,
        host: usize,
        id: Id,
        write: Write,
        ok: bool,
        reply: Option<Request>,
    ) {
        let life = self.life(host);
        match (write, ok) {
            (Write::Ready, true) => self.feed(host, id, Event::ReadyRecorded, reply),
            (Write::Ready, false) => self.feed(host, id, Event::Failed, reply),
            // These are tried until they are durable.
            (w, false) => self.write(host, id, w, reply),
            (Write::Lost, true) => self.feed(host, id, Event::LostRecorded, reply),
            (Write::Adopted, true) => {
                self.unreserve(host, id);
                let Some(i) = self.incoming(host, id) else {
                    return;
                };
                let record = i.record;
                let place = (host, record.guest);
                if self.hosts[host].guests[record.guest].boot != record.boot {
                    // `recheck`
                    let guest = record.guest;
                    self.after(10, Happening::Greet { host, life, guest });
                }
                // `close_books`; nobody waits for it.
                let boot = self.hosts[host].guests[record.guest].boot;
                let call = Call::Release {
                    feature: record.feature,
                    commit: true,
                };
                self.after(
                    20,
                    Happening::Perform {
                        place,
                        boot,
                        id,
                        call,
                        waiter: None,
                    },
                );
                self.settle(host, id, Vec::new(), reply);
            }
            (Write::Forgotten, true) => {
                self.unreserve(host, id);
                self.settle(host, id, Vec::new(), reply);
            }
            _ => {}
        }
    }

    /// `peer_lost` and the loss of the bulk connection.
    pub fn target_loses_peer(&mut self, host: usize, peer: usize) {
        let Some(d) = self.hosts[host].daemon.as_ref() else {
            return;
        };
        let hit: Vec<Id> = d
            .incoming
            .iter()
            .filter(|(_, i)| i.record.from == peer && !i.busy)
            .map(|(id, _)| *id)
            .collect();
        for id in hit {
            self.feed(host, id, Event::SourceLost, None);
        }
    }

    /// `watch_doubt` and `forget_arrival`.
    pub fn target_watches(&mut self, host: usize, life: u32, id: Id) {
        let now = self.now;
        let Some(i) = self.daemon(host, life).and_then(|d| d.incoming.get(&id)) else {
            return;
        };
        let (state, busy, since, record, asking) =
            (i.machine.state(), i.busy, i.since, i.record, i.asking);
        if state == State::Gone
            && !busy
            && let Some(d) = self.daemon(host, life)
        {
            d.incoming.remove(&id);
            return;
        }
        self.after(PAUSE, Happening::Watch { host, life, id });
        let boot = self.hosts[host].guests[record.guest].boot;
        let holds = matches!(state, State::Ready | State::Resuming);
        if holds && !busy && boot != record.boot {
            return self.feed(host, id, Event::GuestLost, None);
        }
        let patience = match state {
            State::Resuming | State::Discarding | State::Losing | State::Gone => return,
            State::Ready => DOUBT_AFTER,
            State::Running => 0,
            _ => ASK_AFTER,
        };
        if now - since >= patience && !asking {
            if let Some(i) = self.incoming(host, id) {
                i.asking = true;
            }
            self.ask(host, record.from, id, Ask::Verdict, 10_000);
        }
    }

    /// A verdict, or none.
    pub fn target_hears_verdict(&mut self, host: usize, id: Id, answer: Option<Answer>) {
        let Some(i) = self.incoming(host, id) else {
            return;
        };
        i.asking = false;
        if i.machine.state() == State::Running {
            if answer == Some(Answer::Aborted) && !i.busy {
                // The source has no record any more: this arrival was heard of.
                self.hosts[host].journal.target.remove(&id);
                if let Some(d) = self.hosts[host].daemon.as_mut() {
                    d.incoming.remove(&id);
                }
            }
            return;
        }
        if i.busy {
            return;
        }
        match answer {
            Some(Answer::Committed) => self.feed(host, id, Event::ResumeAsked, None),
            Some(Answer::Aborted) => self.feed(host, id, Event::DiscardAsked, None),
            _ => {}
        }
    }

    /// `retry_later`.
    pub fn target_retries(&mut self, host: usize, life: u32, id: Id, action: Action) {
        let Some(i) = self
            .daemon(host, life)
            .and_then(|d| d.incoming.get_mut(&id))
        else {
            return;
        };
        let call = match (i.machine.state(), action) {
            (State::Resuming, Action::Resume { .. }) => Call::Resume,
            (State::Discarding, Action::Discard { .. }) => Call::Discard,
            _ => return,
        };
        if i.busy {
            return self.after(
                100,
                Happening::RetryTarget {
                    host,
                    life,
                    id,
                    action,
                },
            );
        }
        i.busy = true;
        let place = (host, i.record.guest);
        self.call(place, id, call, Waiter::Target(None));
    }

    /// `recover_moves`, target's part.
    pub fn target_recovers(&mut self, host: usize) {
        let life = self.life(host);
        let records: Vec<_> = self.hosts[host]
            .journal
            .target
            .clone()
            .into_iter()
            .collect();
        for (id, record) in records {
            let (machine, actions) = Target::recovered(record.phase);
            let since = self.now;
            if let Some(d) = self.hosts[host].daemon.as_mut() {
                if record.phase != TargetPhase::Running {
                    d.reserved.insert(id, (record.guest, FEATURE_CPUS));
                }
                d.incoming.insert(
                    id,
                    Incoming {
                        record,
                        machine,
                        busy: false,
                        since,
                        asking: false,
                    },
                );
            }
            self.after(PAUSE, Happening::Watch { host, life, id });
            self.settle(host, id, actions, None);
        }
    }

    /// `reconcile`: leftovers of moves that nobody knows go, registered features are started.
    pub fn greets(&mut self, host: usize, life: u32, guest: usize) {
        if self.daemon(host, life).is_none() {
            return;
        }
        let h = &mut self.hosts[host];
        let Some(d) = h.daemon.as_ref() else { return };
        let g = &mut h.guests[guest];
        let known = |id: &Id| d.outgoing.contains_key(id) || d.incoming.contains_key(id);
        let leaving: Vec<_> = g
            .leaving
            .iter()
            .filter(|(id, _)| !known(id))
            .map(|(id, l)| (*id, *l))
            .collect();
        for (id, l) in leaving {
            // `ended_source`
            let commit = h.journal.jobs.get(&id) == Some(&true);
            let feature = l.feature;
            let _ = g.perform(id, Call::Release { feature, commit });
        }
        let arriving: Vec<_> = g
            .arriving
            .iter()
            .filter(|(id, a)| !known(id) && !a.running)
            .map(|(id, _)| *id)
            .collect();
        for id in arriving {
            let _ = g.perform(id, Call::Discard);
        }
        for (f, place) in &h.journal.registry {
            let moving = h
                .journal
                .source
                .values()
                .any(|r| r.feature == *f && r.guest == guest && !r.committed);
            if *place == guest && !moving && !g.copies.contains_key(f) {
                g.copies.insert(*f, Copy::Running);
                self.died.remove(f);
            }
        }
    }
}
