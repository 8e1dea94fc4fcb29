//! Target side of a move: room, network and supervisor ahead of time; images as they come; the
//! restore up to the gate; the switch.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::arrival::{self, Needs};
use super::gate::{self, Client, Order, State};
use super::hooks::Hooks;
use super::images::Receiver;
use super::moves::{self, Failure, Record, Side, lock};
use super::state::place;
use super::state::store::Store;
use super::unit::UnitError;
use super::urgent::{self, Urgent};
use super::{anew, cgroup, features, netns, paths, preflight, unit};
use crate::feature::{FeatureName, FeatureSpec};
use crate::method::{HookName, Method};
use crate::wire::bulk::Body;
use crate::wire::guest::{ErrorKind, Event};

/// Longest wait for a round to arrive.
const ARRIVAL: Duration = Duration::from_secs(120);
/// Longest wait for criu to restore.
const RESTORE: Duration = Duration::from_secs(180);
/// Longest wait for the supervisor to listen.
const SUPERVISOR: Duration = Duration::from_secs(60);
/// Longest wait for a restore to be undone.
const UNDO: Duration = Duration::from_secs(10);

/// The target side of one move.
#[derive(Debug, Default)]
pub struct Target {
    receiver: Mutex<Option<Arc<Receiver>>>,
    // The unit starts beside the first round: systemd takes its time.
    starting: Mutex<Option<JoinHandle<Result<(), UnitError>>>>,
    // The talk with the supervisor that holds the restored feature at its gate.
    gate: Mutex<Option<Client>>,
    // A round was asked for before.
    asked: AtomicBool,
    // Images are removed beside the feature that runs again.
    wiping: Mutex<Option<JoinHandle<()>>>,
    // A discard was asked for. For good: a request from before it may come late.
    given_up: AtomicBool,
    // One of restore, resume, discard at a time.
    turn: Mutex<()>,
    // A live move's `resume` failed: the feature runs, so that it can only be told.
    after: Mutex<Option<Failure>>,
}

/// Whether the move's feature has been resumed here.
pub fn is_running(id: &str) -> bool {
    matches!(
        gate::last_state(&paths::move_dir(id)),
        Some(State::Running { .. })
    )
}

fn restarted(id: &str) -> Failure {
    Failure::new(
        ErrorKind::Failed,
        format!("the helper was restarted while move {id} arrived; start it again"),
    )
}

fn alive(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn unknown(id: &str) -> Failure {
    Failure::new(
        ErrorKind::NotFound,
        format!("move {id} is not known here; it was never received or was discarded"),
    )
}

fn record(id: &str) -> Result<Record, Failure> {
    Record::load(id)
        .filter(|r| r.side == Side::Target)
        .ok_or_else(|| unknown(id))
}

impl Target {
    /// Prepares everything that can be prepared: see [`crate::wire::guest::Call::Receive`].
    pub fn receive(
        &self,
        id: &str,
        spec: &FeatureSpec,
        stream: u32,
        needs: &Needs<'_>,
    ) -> Result<(), Failure> {
        let _turn = lock(&self.turn);
        self.not_given_up(id)?;
        let name = &spec.name;
        spec.validate()
            .map_err(|e| Failure::new(ErrorKind::Invalid, e.to_string()))?;
        if let Some(r) = Record::load(id) {
            return Err(Failure::new(
                ErrorKind::Invalid,
                format!("move {id} of '{}' is under way here already", r.feature),
            ));
        }
        if let Some(first) = arrival::reasons(spec, needs).into_iter().next() {
            return Err(first.into());
        }
        let mut record = Record {
            feature: name.clone(),
            side: Side::Target,
            stream,
            round: 0,
            file: 0,
            decided: false,
            spec: Some(spec.clone()),
            places: Vec::new(),
            method: needs.method,
            hooked: false,
        };
        let room = preflight::room().saturating_sub(arrival::RESERVE);
        let made = self.prepare(id, spec, &mut record, room);
        if made.is_err()
            && let Err(e) = self.clean(id, name)
        {
            tracing::warn!("move {id}: {e}");
        }
        made
    }

    fn prepare(
        &self,
        id: &str,
        spec: &FeatureSpec,
        record: &mut Record,
        room: u64,
    ) -> Result<(), Failure> {
        let name = &spec.name;
        record.save(id)?;
        features::put(spec)?;
        for dir in spec.managed().iter().flat_map(|m| &m.state) {
            record.places.push(place::prepare(dir, name)?);
            record.save(id)?;
        }
        if let Some(m) = spec.managed() {
            netns::create(name, m, false)?;
        }
        let rounds = paths::move_dir(id).join("rounds");
        let mut receiver = Receiver::new(rounds, room)?;
        if let Some(m) = spec.managed().filter(|m| !m.state.is_empty()) {
            receiver = receiver.with_store(Store::new(&m.state)?);
        }
        *lock(&self.receiver) = Some(Arc::new(receiver));
        if record.method != Method::Live {
            netns::gate_outside(name)?;
            return Ok(());
        }
        // The supervisor and its criu wait for the images rather than the images for them.
        let (id, spec) = (id.to_owned(), spec.clone());
        let start = move || {
            unit::install(&spec.name, &spec, Some(&id))?;
            unit::start(&spec.name)
        };
        *lock(&self.starting) = Some(std::thread::spawn(start));
        Ok(())
    }

    /// Waits until the unit was started, if it is being started.
    fn started(&self) -> Result<(), Failure> {
        let starting = lock(&self.starting).take();
        match starting.map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(e))) => Err(e.into()),
            Some(Err(_)) => Err(Failure::new(
                ErrorKind::Failed,
                "the helper failed while it started the feature's unit; its journal has the place",
            )),
        }
    }

    /// Takes a bulk message of this move's stream.
    pub fn take(&self, body: Body) {
        let receiver = lock(&self.receiver).clone();
        if let Some(r) = receiver {
            r.take(body);
        }
    }

    /// Waits for a round. The first of a handover brings the second instance up.
    pub fn await_round(&self, id: &str, round: u16, events: &dyn Fn(Event)) -> Result<(), Failure> {
        let r = record(id)?;
        let receiver = lock(&self.receiver).clone();
        let receiver = receiver.ok_or_else(|| restarted(id))?;
        receiver.wait(round, ARRIVAL)?;
        if r.method == Method::Handover && round == 1 {
            let _turn = lock(&self.turn);
            self.not_given_up(id)?;
            anew::start_gated(&r.feature, &r.definition()?)?;
            return self.hooks(id, &r, events).run(HookName::Prepare);
        }
        // systemd may take longer than the first round; that it failed is found out before the
        // freeze, which nobody asks for without having asked for a round twice.
        if r.method != Method::Live || self.asked.swap(true, Ordering::Relaxed) {
            self.started()?;
        }
        Ok(())
    }

    fn not_given_up(&self, id: &str) -> Result<(), Failure> {
        if self.given_up.load(Ordering::Relaxed) {
            let why = format!("move {id} was discarded already");
            return Err(Failure::new(ErrorKind::Refused, why));
        }
        Ok(())
    }

    fn hooks<'a>(&'a self, id: &'a str, r: &'a Record, events: &'a dyn Fn(Event)) -> Hooks<'a> {
        Hooks {
            id,
            record: r,
            cancel: &self.given_up,
            events,
        }
    }

    /// Restores up to the gate, as soon as the round is here: the host may ask ahead of its
    /// arrival. Milliseconds criu took.
    pub fn restore(&self, id: &str, round: u16, events: &dyn Fn(Event)) -> Result<u64, Failure> {
        let _turn = lock(&self.turn);
        let mut r = record(id)?;
        if let Some(State::Ready { ms }) = gate::last_state(&paths::move_dir(id)) {
            return Ok(ms);
        }
        let receiver = lock(&self.receiver).clone();
        let Some(receiver) = receiver else {
            return Err(restarted(id));
        };
        self.started()?;
        let _urgent = Urgent::here();
        receiver.wait(round, ARRIVAL)?;
        r.round = round;
        r.save(id)?;
        if r.method != Method::Live {
            return self.start(id, &r, events);
        }
        let (client, ms) = self.to_gate(id, &r)?;
        *lock(&self.gate) = Some(client);
        Ok(ms)
    }

    /// Has the feature run behind the gate, as good as its own commands can tell: milliseconds.
    fn start(&self, id: &str, r: &Record, events: &dyn Fn(Event)) -> Result<u64, Failure> {
        let begin = Instant::now();
        self.not_given_up(id)?;
        if r.method == Method::Restart {
            anew::start_gated(&r.feature, &r.definition()?)?;
        }
        let hooks = self.hooks(id, r, events);
        hooks.run(HookName::Resume)?;
        hooks.run(HookName::Health)?;
        anew::running(&r.feature)?;
        self.not_given_up(id)?;
        let ms = begin.elapsed().as_millis() as u64;
        gate::write_state(&paths::move_dir(id), &State::Ready { ms })?;
        Ok(ms)
    }

    /// Opens the gate of a feature that runs behind it.
    fn open(id: &str, r: &Record) -> Result<i32, Failure> {
        let spec = r.definition()?;
        let pid = match anew::running(&r.feature) {
            Ok(pid) => pid,
            // Committed: only this guest may run it.
            Err(e) => {
                tracing::warn!("move {id}: {e}; starting it once more");
                anew::start_gated(&r.feature, &spec).unwrap_or_else(|e| {
                    tracing::error!("move {id}: feature {} arrived, but {e}", r.feature);
                    0
                })
            }
        };
        if let Some(m) = spec.managed().filter(|_| netns::exists(&r.feature)) {
            netns::announce(&r.feature, m)?;
        }
        gate::write_state(&paths::move_dir(id), &State::Running { pid })?;
        Ok(pid)
    }

    /// What follows the resume of a live move: how the feature's own commands find it.
    pub fn settled(&self, id: &str, events: &dyn Fn(Event)) -> Result<(), Failure> {
        let r = record(id)?;
        if r.method != Method::Live {
            return Ok(());
        }
        let resumed = lock(&self.after).take();
        let health = self.hooks(id, &r, events).run(HookName::Health);
        resumed.map_or(Ok(()), Err).and(health)
    }

    /// Connects to the supervisor, started anew if need be, and has it restore up to the gate.
    fn to_gate(&self, id: &str, r: &Record) -> Result<(Client, u64), Failure> {
        let mut client = self.connect(id, r)?;
        let until = Instant::now() + RESTORE;
        loop {
            if self.given_up.load(Ordering::Relaxed) {
                let _ = client.order(&Order::Discard);
                return Err(super::images::ImageError::Discarded.into());
            }
            let state = client.state(Duration::from_millis(500)).map_err(|e| {
                let why = match gate::last_state(&paths::move_dir(id)) {
                    Some(State::Failed { why }) => why,
                    _ => format!("its supervisor ended: {e}"),
                };
                Failure::new(
                    ErrorKind::Criu,
                    format!("feature '{}' was not restored: {why}", r.feature),
                )
            })?;
            match state {
                Some(State::Waiting) => client.order(&Order::Restore { round: r.round })?,
                Some(State::Ready { ms }) => return Ok((client, ms)),
                Some(State::Failed { why }) => {
                    return Err(Failure::new(
                        ErrorKind::Criu,
                        format!("feature '{}' was not restored: {why}", r.feature),
                    ));
                }
                Some(State::Running { .. }) => return Ok((client, 0)),
                Some(State::Restoring) | None => {}
            }
            if Instant::now() > until {
                return Err(Failure::new(
                    ErrorKind::Criu,
                    format!(
                        "feature '{}' was not restored within {} s",
                        r.feature,
                        RESTORE.as_secs()
                    ),
                ));
            }
        }
    }

    fn connect(&self, id: &str, r: &Record) -> Result<Client, Failure> {
        let feature = &r.feature;
        let dir = paths::move_dir(id);
        let until = Instant::now() + SUPERVISOR;
        let mut started = false;
        loop {
            match Client::connect(&dir) {
                Ok(c) => return Ok(c),
                Err(e) if Instant::now() > until || self.given_up.load(Ordering::Relaxed) => {
                    return Err(Failure::new(
                        ErrorKind::Failed,
                        format!("the supervisor of feature '{feature}' does not answer: {e}"),
                    ));
                }
                Err(_) if !started && !unit::running(feature) => {
                    let spec = r.definition()?;
                    unit::install(feature, &spec, Some(id))?;
                    unit::start(feature)?;
                    started = true;
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Lets the feature run here: (milliseconds, root task).
    pub fn resume(&self, id: &str, events: &dyn Fn(Event)) -> Result<(u64, u32), Failure> {
        let _turn = lock(&self.turn);
        let _urgent = Urgent::here();
        let begin = Instant::now();
        let mut r = record(id)?;
        let dir = paths::move_dir(id);
        let last = gate::last_state(&dir);
        let pid = if let Some(State::Running { pid }) = last {
            pid
        } else {
            if r.round == 0 {
                return Err(Failure::new(
                    ErrorKind::Invalid,
                    format!("move {id} is not restored yet, so nothing can resume"),
                ));
            }
            if !r.decided {
                r.decided = true;
                r.save(id)?;
            }
            if r.method == Method::Live {
                let pid = self.through_gate(id, &r)?;
                *lock(&self.after) = self.hooks(id, &r, events).run(HookName::Resume).err();
                pid
            } else {
                Self::open(id, &r)?
            }
        };
        let ms = begin.elapsed().as_millis() as u64;
        for place in &r.places {
            place::settle(place)?;
        }
        // The memory of the feature lives in the feature now; its images are secrets.
        *lock(&self.receiver) = None;
        let (rounds, id) = (dir.join("rounds"), id.to_owned());
        let wipe = move || {
            urgent::usual();
            if let Err(e) = moves::remove_tree(&rounds) {
                tracing::warn!("images of move {id} are not removed: {e}");
            }
        };
        lock(&self.wiping).get_or_insert_with(|| std::thread::spawn(wipe));
        Ok((ms, pid as u32))
    }

    /// Waits until the images of a move that was resumed are removed.
    pub fn wiped(&self) {
        if let Some(wiping) = lock(&self.wiping).take() {
            let _ = wiping.join();
        }
    }

    fn through_gate(&self, id: &str, r: &Record) -> Result<i32, Failure> {
        let spec = r.definition()?;
        // The talk of the restore goes on, unless the helper or the supervisor was restarted.
        let held = lock(&self.gate).take();
        let told = held.and_then(|mut c| c.order(&Order::Resume).ok().map(|()| c));
        let mut client = if let Some(client) = told {
            client
        } else {
            let (mut client, _) = self.to_gate(id, r)?;
            client.order(&Order::Resume)?;
            client
        };
        let pid = self.await_running(&mut client, id, r)?;
        // The supervisor opened it before the feature ran, unless that failed.
        if let Some(m) = spec.managed()
            && netns::gated(&r.feature)
        {
            netns::announce(&r.feature, m)?;
        }
        Ok(pid)
    }

    fn await_running(&self, client: &mut Client, id: &str, r: &Record) -> Result<i32, Failure> {
        let until = Instant::now() + RESTORE;
        loop {
            match client.state(Duration::from_millis(500)) {
                Ok(Some(State::Running { pid })) if alive(pid) => return Ok(pid),
                Ok(Some(State::Running { pid })) => {
                    return Err(Failure::new(
                        ErrorKind::Failed,
                        format!(
                            "feature '{}' ended right after it resumed ({pid})",
                            r.feature
                        ),
                    ));
                }
                Ok(Some(State::Failed { why })) => {
                    return Err(Failure::new(
                        ErrorKind::Criu,
                        format!("feature '{}' does not run: {why}", r.feature),
                    ));
                }
                // The copy that does not come is to be destroyed.
                Ok(_) if self.given_up.load(Ordering::Relaxed) => {
                    return Err(super::images::ImageError::Discarded.into());
                }
                Ok(_) if Instant::now() < until => {}
                Ok(_) => {
                    return Err(Failure::new(
                        ErrorKind::Criu,
                        format!("feature '{}' did not resume in time", r.feature),
                    ));
                }
                Err(e) => match gate::last_state(&paths::move_dir(id)) {
                    Some(State::Running { pid }) => return Ok(pid),
                    other => {
                        return Err(Failure::new(
                            ErrorKind::Failed,
                            format!(
                                "the supervisor of feature '{}' ended ({e}) in state {other:?}; \
                                 resume again to restore from the images",
                                r.feature
                            ),
                        ));
                    }
                },
            }
        }
    }

    /// Gives the move up.
    pub fn discard(&self, id: &str) -> Result<(), Failure> {
        let committed = |r: &Record| r.side != Side::Target || r.decided || is_running(id);
        let refusal = |r: &Record| {
            Failure::new(
                ErrorKind::Invalid,
                format!(
                    "move {id} of '{}' was resumed or leaves from here",
                    r.feature
                ),
            )
        };
        // Nothing of this may touch a move that is to resume.
        if let Some(r) = Record::load(id).filter(committed) {
            return Err(refusal(&r));
        }
        self.given_up.store(true, Ordering::Relaxed);
        if let Some(r) = lock(&self.receiver).take() {
            r.discard();
        }
        let _turn = lock(&self.turn);
        let Some(r) = Record::load(id) else {
            return Ok(());
        };
        if committed(&r) {
            return Err(refusal(&r));
        }
        let dir = paths::move_dir(id);
        if let Ok(mut c) = Client::connect(&dir) {
            let _ = c.order(&Order::Discard);
            // It ends by itself, after criu has undone the restore. If not, the unit's stop kills
            // both: all that criu has its hands on here is to die anyway.
            let until = Instant::now() + UNDO;
            let over = |s| matches!(s, Ok(Some(State::Failed { .. })) | Err(_));
            while !over(c.state(Duration::from_millis(500))) && Instant::now() < until {}
        }
        self.clean(id, &r.feature)
    }

    /// Destroys a copy whose resume was asked for and did not come through, for good: no step of
    /// the move finds anything here afterwards. False when it does run: nothing is changed then.
    pub fn destroy(&self, id: &str) -> Result<bool, Failure> {
        if is_running(id) {
            return Ok(false);
        }
        // An attempt to resume that is under way ends sooner.
        self.given_up.store(true, Ordering::Relaxed);
        let _turn = lock(&self.turn);
        let Some(r) = Record::load(id) else {
            return Ok(true);
        };
        if r.side != Side::Target {
            let why = format!("move {id} of '{}' leaves from here", r.feature);
            return Err(Failure::new(ErrorKind::Invalid, why));
        }
        if is_running(id) {
            self.given_up.store(false, Ordering::Relaxed);
            return Ok(false);
        }
        tracing::warn!(
            "move {id}: destroying the copy of '{}', which did not resume",
            r.feature
        );
        *lock(&self.gate) = None;
        let feature = &r.feature;
        // No FIN or RST may leave: the copy that goes on elsewhere has the same connections.
        if netns::exists(feature) {
            netns::gate(feature)?;
        }
        // The supervisor with it: it would restore once more.
        let all = paths::cgroup_dir(feature);
        if all.exists() {
            cgroup::kill(&all, UNDO)?;
        }
        self.clean(id, feature)?;
        if unit::running(feature) {
            let why = format!("processes of feature '{feature}' do not end");
            return Err(Failure::new(ErrorKind::Failed, why));
        }
        Ok(true)
    }

    fn clean(&self, id: &str, feature: &FeatureName) -> Result<(), Failure> {
        *lock(&self.receiver) = None;
        if let Err(e) = self.started() {
            tracing::debug!("move {id}: {e}");
        }
        unit::remove(feature)?;
        // Before the record of what was made.
        for place in Record::load(id).iter().flat_map(|r| r.places.iter().rev()) {
            place::undo(place)?;
        }
        netns::delete(feature)?;
        features::remove(feature)?;
        moves::remove_dir(id)?;
        Ok(())
    }
}
