//! Source side of a move: pre-copy rounds, the freeze at criu's gate, its two ends.
//!
//! What holds the feature during the freeze, so that no single death lets go of it:
//! - criu holds the tasks stopped and their TCP sockets in repair mode (silent);
//! - the cgroup freezer holds the tasks too: should criu end, they stay where they are;
//! - the gate of the network namespace drops all packets: nothing is acknowledged that the
//!   images do not have, and no FIN or RST leaves when the copy here is killed.

use std::collections::HashSet;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::bulk::{self, Sender};
use super::criu::rpc::{CGROUPS_IGNORE, Kind, NETWORK_LOCK_SKIP, Opts};
use super::criu::{self, Criu, CriuError, Incoming, Job, stats};
use super::diag::{self, Unheld};
use super::hooks::Hooks;
use super::moves::{self, Failure, Record, Side, lock};
use super::netns::{NetError, Visitors};
use super::preflight::of_a_process;
use super::state::place;
use super::state::walk::Walk;
use super::urgent::Urgent;
use super::{anew, cgroup, features, netns, paths, rehearsal, sockets, throttle, unit};
use crate::feature::{FeatureName, FeatureSpec};
use crate::method::{HookName, Method};
use crate::wire::guest::{ErrorKind, Event, RoundStats};

/// Largest deleted file that is carried along with the images, bytes.
pub const GHOST_LIMIT: u32 = 64 << 20;
/// Longest wait for the freezer.
const FREEZER: Duration = Duration::from_secs(10);
/// Longest wait for the workload to accept the connections that are complete already.
const DRAIN: Duration = Duration::from_millis(250);
/// Longest wait for peers to take what they were sent before the workload closed a connection.
const LAST_WORDS: Duration = Duration::from_millis(50);
/// How often the tasks are stopped until they stand at a moment that can be dumped. A task with a
/// timer stands where it was after the last stop more often than chance has it.
const STOPS: u32 = 6;

/// What a request names.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Move.
    pub id: &'a str,
    /// Feature.
    pub feature: &'a FeatureName,
    /// Bulk stream.
    pub stream: u32,
    /// Round.
    pub round: u16,
    /// How the feature moves; counts for the first round only.
    pub method: Method,
}

#[derive(Debug, Default)]
struct Inner {
    // Has served rounds and waits for the next request.
    prepared: Option<Criu>,
    // At its gate.
    held: Option<Criu>,
    // During the freeze: it makes the dump last longer. Back at its end, either way.
    unlimited: Option<cgroup::Unlimited>,
    // What the target has of the state directories.
    walk: Option<Walk>,
    // Whether page tracking is unbroken since the last complete round.
    tracked: bool,
    // CPU time per period before the feature was slowed down, microseconds.
    used_us: Option<u64>,
}

/// The source side of one move.
#[derive(Debug, Default)]
pub struct Source {
    // A release was asked for. For good: a round that was asked for before it may come late.
    cancel: AtomicBool,
    inner: Mutex<Inner>,
}

/// Has criu freed from a failed conversation: its socket closes, it resumes the tasks by itself.
fn let_go(criu: Criu, id: &str) {
    drop(criu);
    if !criu::wait_none(id, criu::END) {
        tracing::error!("criu of move {id} does not end; look at its process in the guest");
    }
}

impl Source {
    /// A pre-copy round.
    pub fn pre_dump(
        &self,
        ask: &Ask<'_>,
        send: &bulk::Send,
        events: &dyn Fn(Event),
    ) -> Result<RoundStats, Failure> {
        let mut inner = lock(&self.inner);
        let mut record = self.record(ask)?;
        if ask.round == 1 {
            self.hook(ask.id, &mut record, HookName::Prepare, events)?;
        }
        if record.method != Method::Live {
            return self.send(ask, &mut record, &mut inner.walk, send, events);
        }
        let pid = Self::first_process(ask, &record, &mut inner)?;
        let begin = Instant::now();
        let mut criu = match inner.prepared.take() {
            Some(c) => c,
            None => Criu::spawn(&paths::netns(ask.feature), &criu::cgroup(ask.id))?,
        };
        let end = Self::pre_dump_by(&mut criu, ask, pid, inner.tracked);
        // Whatever happens until the round is sent, the pages it took are taken.
        inner.tracked = false;
        if let Err(e) = end {
            let_go(criu, ask.id);
            let _ = moves::remove_tree(&paths::round_dir(ask.id, ask.round));
            return Err(e.into());
        }
        let dump_ms = begin.elapsed().as_millis() as u64;
        // It now waits for the next round's request, or the last one's.
        inner.prepared = Some(criu);
        let took = stats::read(&paths::move_dir(ask.id));
        let sent = self.send(ask, &mut record, &mut inner.walk, send, events)?;
        inner.tracked = true;
        let stats = RoundStats {
            pages_written: took.pages_written,
            pages_skipped: took.pages_skipped,
            frozen_ms: u64::from(took.frozen_us) / 1000,
            dump_ms,
            ..sent
        };
        tracing::debug!("move {} round {}: {stats:?}", ask.id, ask.round);
        Ok(stats)
    }

    /// Slows the feature down, or lets it go at its pace again.
    pub fn throttle(&self, id: &str, feature: &FeatureName, percent: u8) -> Result<(), Failure> {
        let mut inner = lock(&self.inner);
        let frozen = Record::load(id).is_some_and(|r| r.decided);
        if frozen || self.cancel.load(Ordering::Relaxed) {
            let why = format!("move {id} does not copy '{feature}' any more");
            return Err(Failure::new(ErrorKind::Invalid, why));
        }
        if percent == 0 {
            throttle::undo(feature, &features::get(feature)?)?;
            return Ok(());
        }
        let used_us = match inner.used_us {
            Some(used) => used,
            None => *inner.used_us.insert(throttle::measure(feature)?),
        };
        throttle::set(feature, used_us, percent)?;
        tracing::info!("move {id}: feature {feature} has {percent} % less of {used_us} us CPU");
        Ok(())
    }

    fn pre_dump_by(
        criu: &mut Criu,
        ask: &Ask<'_>,
        pid: i32,
        tracked: bool,
    ) -> Result<(), CriuError> {
        Self::request(criu, Kind::PreDump, ask, pid, tracked)?;
        criu.to_end()
    }

    fn request(
        criu: &mut Criu,
        kind: Kind,
        ask: &Ask<'_>,
        pid: i32,
        tracked: bool,
    ) -> Result<(), CriuError> {
        // Without an unbroken chain the round carries all pages; the target's link to the round
        // before does no harm then.
        let parent = tracked.then(|| format!("../{}", ask.round - 1));
        let dump = kind == Kind::Dump;
        criu.request(Job {
            kind,
            images: &paths::round_dir(ask.id, ask.round),
            work: &paths::move_dir(ask.id),
            log: "dump.log",
            opts: Opts {
                pid: Some(pid),
                tcp_established: dump.then_some(true),
                file_locks: dump.then_some(true),
                ghost_limit: dump.then_some(GHOST_LIMIT),
                log_level: Some(2),
                notify_scripts: Some(true),
                parent_img: parent,
                track_mem: Some(true),
                manage_cgroups_mode: Some(CGROUPS_IGNORE),
                network_lock: Some(NETWORK_LOCK_SKIP),
                ..Opts::default()
            },
        })
    }

    /// The last round: leaves the feature held at the gate.
    pub fn freeze(
        &self,
        ask: &Ask<'_>,
        send: &bulk::Send,
        events: &dyn Fn(Event),
    ) -> Result<RoundStats, Failure> {
        let mut inner = lock(&self.inner);
        let mut record = self.record(ask)?;
        // In a handover nobody is to find it quiesced.
        if record.method != Method::Handover {
            self.hook(ask.id, &mut record, HookName::Quiesce, events)?;
        }
        record.hooked = true;
        if record.method != Method::Live {
            return self.hold(&mut inner, ask, &mut record, send, events);
        }
        let pid = Self::first_process(ask, &record, &mut inner)?;
        record.decided = true;
        record.save(ask.id)?;
        // criu's code in the feature's tasks is to run at full speed.
        full_speed(ask.feature, &record);
        let mut stops = 1;
        let end = loop {
            let last = stops == STOPS;
            match self.freeze_by(&mut inner, ask, &mut record, pid, send, events, last) {
                Ok(Some(stats)) => break Ok(stats),
                Ok(None) => {
                    stops += 1;
                    if let Err(e) = begin_anew(&mut inner, ask, &record) {
                        break Err(e);
                    }
                }
                Err(e) => break Err(e),
            }
        };
        match end {
            Ok(stats) => {
                tracing::debug!("move {} frozen at stop {stops}: {stats:?}", ask.id);
                Ok(stats)
            }
            Err(e) => {
                if let Err(thaw) = thaw(&mut inner, ask.id, &record) {
                    tracing::error!("feature {} is not thawed: {thaw}", ask.feature);
                    return Err(e);
                }
                inner.tracked = false;
                let _ = moves::remove_tree(&paths::round_dir(ask.id, ask.round));
                record.decided = false;
                record.save(ask.id)?;
                Err(e)
            }
        }
    }

    /// The last round of a move that carries no processes.
    fn hold(
        &self,
        inner: &mut Inner,
        ask: &Ask<'_>,
        record: &mut Record,
        send: &bulk::Send,
        events: &dyn Fn(Event),
    ) -> Result<RoundStats, Failure> {
        record.decided = true;
        record.save(ask.id)?;
        let spec = record.definition()?;
        let begin = Instant::now();
        let mut hold = || {
            full_speed(ask.feature, record);
            if record.method == Method::Handover {
                anew::retire(ask.feature, &spec)?;
                self.hook(ask.id, record, HookName::Quiesce, events)?;
                netns::gate_outside(ask.feature)?;
            } else {
                anew::stop(ask.feature)?;
            }
            let frozen_ms = begin.elapsed().as_millis() as u64;
            let sent = self.send(ask, record, &mut inner.walk, send, events)?;
            Ok(RoundStats { frozen_ms, ..sent })
        };
        let end: Result<RoundStats, Failure> = hold();
        if end.is_err() {
            if let Err(e) = anew::go_on(ask.feature, &spec) {
                tracing::error!("feature {} does not go on here: {e}", ask.feature);
                return end;
            }
            record.decided = false;
            record.save(ask.id)?;
        }
        end
    }

    /// Runs a command of the feature. What it did may have to be undone from here on.
    fn hook(
        &self,
        id: &str,
        record: &mut Record,
        name: HookName,
        events: &dyn Fn(Event),
    ) -> Result<(), Failure> {
        if record
            .spec
            .as_ref()
            .is_none_or(|s| s.hooks().get(name).is_none())
        {
            return Ok(());
        }
        if !record.hooked {
            record.hooked = true;
            record.save(id)?;
        }
        let hooks = Hooks {
            id,
            record,
            cancel: &self.cancel,
            events,
        };
        hooks.run(name)
    }

    /// Nothing is dumped, and nothing is returned, when the tasks were stopped at a moment that
    /// criu cannot carry; the `last` time it is left to criu to say so.
    #[allow(clippy::too_many_arguments)]
    fn freeze_by(
        &self,
        inner: &mut Inner,
        ask: &Ask<'_>,
        record: &mut Record,
        pid: i32,
        send: &bulk::Send,
        events: &dyn Fn(Event),
        last: bool,
    ) -> Result<Option<RoundStats>, Failure> {
        let mut criu = match inner.prepared.take() {
            Some(c) => c,
            None => Criu::spawn(&paths::netns(ask.feature), &criu::cgroup(ask.id))?,
        };
        let asked = Instant::now();
        // Until the last byte is in the port.
        let _urgent = Urgent::here();
        criu.urge();
        inner.unlimited = Some(cgroup::Unlimited::new(&paths::cgroup_dir(ask.feature)));
        let tracked = inner.tracked;
        let criu = inner.held.insert({
            Self::request(&mut criu, Kind::Dump, ask, pid, tracked)?;
            criu
        });
        let mut begin = asked;
        let mut closed = None;
        loop {
            match criu.next(criu::STEP)? {
                Incoming::Step(s) if s == "post-dump" => break,
                Incoming::Step(s) => {
                    if s == "pre-dump" {
                        // criu looks around once more, then it stops the tasks.
                        netns::close_door(ask.feature, Visitors::All)?;
                        arrive(ask.feature)?;
                        begin = Instant::now();
                    } else if s == "query-ext-files" {
                        // They stand; criu has not looked at the sockets yet. Closed any earlier,
                        // the gate would keep back what a task still says before it hangs up, and
                        // criu carries no socket that no task holds.
                        let stopped = Instant::now();
                        if !last && let Some(file) = open_in_proc(ask.feature) {
                            tracing::debug!(
                                "move {}: stopped with {} open",
                                ask.id,
                                file.display()
                            );
                            return Ok(None);
                        }
                        leave(ask.feature)?;
                        netns::gate(ask.feature)?;
                        closed = Some((stopped - begin, stopped.elapsed()));
                    }
                    criu.answer(true)?;
                }
                Incoming::Done(_) => {
                    return Err(Failure::new(
                        ErrorKind::Criu,
                        "criu dumped without stopping at its gate",
                    ));
                }
            }
        }
        let dumped = begin.elapsed();
        let Some((stopped, waited)) = closed else {
            // Packets came and went while criu looked at the sockets.
            return Err(Failure::new(
                ErrorKind::Criu,
                "criu dumped without the step at which the network is closed",
            ));
        };
        cgroup::freeze(&paths::workload_cgroup(ask.feature), true, FREEZER)?;
        tracing::debug!(
            "move {}: criu began after {:?}; then tasks stopped {stopped:?}, last words and gate \
             {waited:?}, dumped {dumped:?}, freezer {:?}",
            ask.id,
            begin.duration_since(asked),
            begin.elapsed()
        );
        let (pages_written, pages_skipped) = pages(&paths::round_dir(ask.id, ask.round));
        let sent = self.send(ask, record, &mut inner.walk, send, events)?;
        Ok(Some(RoundStats {
            pages_written,
            pages_skipped,
            frozen_ms: dumped.as_millis() as u64,
            dump_ms: dumped.saturating_sub(waited).as_millis() as u64,
            ..sent
        }))
    }

    /// Ends the move here, see [`crate::wire::guest::Call::Release`].
    pub fn release(
        &self,
        id: &str,
        feature: &FeatureName,
        commit: bool,
        events: &dyn Fn(Event),
    ) -> Result<(), Failure> {
        // Whoever still sends a round ends at the next piece.
        self.cancel.store(true, Ordering::Relaxed);
        let mut inner = lock(&self.inner);
        drop(inner.prepared.take());
        let record = Record::load(id);
        if let Some(r) = record.as_ref().filter(|r| !commit && r.feature == *feature) {
            full_speed(feature, r);
        }
        if let Some(r) = &record
            && r.feature != *feature
        {
            return Err(Failure::new(
                ErrorKind::Invalid,
                format!(
                    "move {id} is about feature '{}', not '{feature}'",
                    r.feature
                ),
            ));
        }
        match &record {
            Some(r) if r.decided && commit => bury(&mut inner, id, r)?,
            Some(r) if r.decided && r.method != Method::Live => {
                anew::go_on(feature, &r.definition()?)?;
            }
            Some(r) if r.decided => thaw(&mut inner, id, r)?,
            Some(_) if commit => {
                return Err(Failure::new(
                    ErrorKind::Invalid,
                    format!("feature '{feature}' is not frozen by move {id}; nothing to commit"),
                ));
            }
            _ => {}
        }
        if !criu::wait_none(id, criu::END) {
            return Err(Failure::new(
                ErrorKind::Criu,
                format!("criu of move {id} does not end; it holds feature '{feature}'"),
            ));
        }
        if let Some(r) = record.filter(|r| !commit && r.hooked) {
            // The release itself was asked for already; this one is to be run.
            let hooks = Hooks {
                id,
                record: &r,
                cancel: &AtomicBool::new(false),
                events,
            };
            if let Err(e) = hooks.run(HookName::Abort) {
                tracing::error!("move {id} was given up, but {e}");
            }
        }
        moves::remove_dir(id)?;
        Ok(())
    }

    /// What rounds with memory need: the feature's first process.
    fn first_process(ask: &Ask<'_>, record: &Record, inner: &mut Inner) -> Result<i32, Failure> {
        let pid = features::running(ask.feature).ok_or_else(|| {
            Failure::new(
                ErrorKind::NotFound,
                format!("feature '{}' does not run here", ask.feature),
            )
        })?;
        inner.tracked &= record.round > 0;
        Ok(pid)
    }

    /// What all rounds begin with: checks, the record, the round's directory.
    fn record(&self, ask: &Ask<'_>) -> Result<Record, Failure> {
        // None begins until the record tells of the move.
        let _none = rehearsal::none();
        let invalid = |why: String| Failure::new(ErrorKind::Invalid, why);
        if self.cancel.load(Ordering::Relaxed) {
            return Err(invalid(format!("move {} was released already", ask.id)));
        }
        let spec = features::get(ask.feature)?;
        if spec.managed().is_none() {
            return Err(Failure::new(
                ErrorKind::Refused,
                format!(
                    "feature '{}' is not run by Drover, so it cannot move",
                    ask.feature
                ),
            ));
        }
        let other = moves::recorded()
            .into_iter()
            .find(|(id, r)| id != ask.id && r.feature == *ask.feature && r.side == Side::Source);
        if let Some((id, _)) = other {
            return Err(invalid(format!(
                "feature '{}' is part of move {id} already; release that first",
                ask.feature
            )));
        }
        let record = match Record::load(ask.id) {
            Some(r) if r.side == Side::Source && r.feature == *ask.feature && !r.decided => r,
            Some(_) => {
                return Err(invalid(format!(
                    "move {} is not in a state for another round of '{}'",
                    ask.id, ask.feature
                )));
            }
            None => Record {
                feature: ask.feature.clone(),
                side: Side::Source,
                stream: ask.stream,
                round: 0,
                file: 0,
                decided: false,
                spec: Some(spec),
                places: Vec::new(),
                method: ask.method,
                hooked: false,
            },
        };
        if record.round.checked_add(1) != Some(ask.round) || record.stream != ask.stream {
            return Err(invalid(format!(
                "round {} of stream {} does not follow round {} of stream {}",
                ask.round, ask.stream, record.round, record.stream
            )));
        }
        record.save(ask.id)?;
        make_round_dir(ask)?;
        Ok(record)
    }

    fn send(
        &self,
        ask: &Ask<'_>,
        record: &mut Record,
        walk: &mut Option<Walk>,
        send: &bulk::Send,
        events: &dyn Fn(Event),
    ) -> Result<RoundStats, Failure> {
        let sending = Instant::now();
        let sender = Sender {
            send,
            stream: ask.stream,
            cancel: &self.cancel,
        };
        let progress = |sent, total| {
            events(Event::Progress {
                id: ask.id.to_owned(),
                round: ask.round,
                sent,
                total,
            });
        };
        let dir = paths::round_dir(ask.id, ask.round);
        let failed = |e| {
            Failure::new(
                ErrorKind::Failed,
                format!("round {} of move {} was not sent: {e}", ask.round, ask.id),
            )
        };
        let sent = sender
            .files(&dir, ask.round, &mut record.file, &progress)
            .map_err(failed)?;
        let mut stats = RoundStats {
            bytes: sent.bytes,
            files: sent.files,
            ..RoundStats::default()
        };
        let state = record.spec.as_ref().and_then(FeatureSpec::managed);
        if let Some(m) = state.filter(|m| !m.state.is_empty()) {
            let begin = Instant::now();
            let mut w = walk.take().unwrap_or_else(|| Walk::new(&m.state));
            let pids = cgroup::processes(&paths::workload_cgroup(ask.feature));
            let passed = sender.state(&mut w, &mapped_files(&pids))?;
            // Only a walk whose last pass is all there can be gone on with.
            *walk = Some(w);
            stats.state_bytes = passed.bytes;
            stats.bytes += passed.bytes;
            stats.state_ms = begin.elapsed().as_millis() as u64;
            tracing::debug!("move {} round {}: state {passed:?}", ask.id, ask.round);
        }
        sender.end(ask.round, sent).map_err(failed)?;
        record.round = ask.round;
        record.save(ask.id)?;
        stats.send_ms = sending.elapsed().as_millis() as u64;
        Ok(stats)
    }
}

/// Lets the feature go on after a stop at which nothing was dumped; the round begins anew.
fn begin_anew(inner: &mut Inner, ask: &Ask<'_>, record: &Record) -> Result<(), Failure> {
    thaw(inner, ask.id, record)?;
    moves::remove_tree(&paths::round_dir(ask.id, ask.round))?;
    Ok(make_round_dir(ask)?)
}

fn make_round_dir(ask: &Ask<'_>) -> std::io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(paths::round_dir(ask.id, ask.round))
}

/// Ends a throttle.
fn full_speed(feature: &FeatureName, record: &Record) {
    let undone = record
        .definition()
        .and_then(|spec| Ok(throttle::undo(feature, &spec)?));
    if let Err(e) = undone {
        tracing::error!("feature {feature} may be slowed down still: {e}");
    }
}

/// Lets the feature go on here.
fn thaw(inner: &mut Inner, id: &str, record: &Record) -> Result<(), Failure> {
    let feature = &record.feature;
    let dir = paths::workload_cgroup(feature);
    drop(inner.unlimited.take());
    if let Some(mut criu) = inner.held.take() {
        // criu answers "failed" by design: its gate was not passed.
        if criu.answer(false).is_ok() {
            match criu.next(criu::STEP) {
                Err(CriuError::Failed { .. }) => {}
                other => tracing::warn!("move {id}: criu said {other:?} to the release"),
            }
        }
        criu.wait_end(criu::END);
    }
    // Also of a helper before this one: criu ends by itself when its peer is gone.
    if !criu::wait_none(id, criu::END) {
        return Err(Failure::new(
            ErrorKind::Criu,
            format!("criu of move {id} does not end; feature '{feature}' stays frozen"),
        ));
    }
    // The freezer still holds the workload, whatever criu did.
    let pids = cgroup::processes(&dir);
    let peers = if cgroup::frozen(&dir) {
        sockets::peers(&pids)
    } else {
        Vec::new()
    };
    // Only a criu that died by force leaves sockets in repair mode.
    let silent = sockets::end_repair(&pids);
    if silent > 0 {
        tracing::warn!("feature {feature}: woke {silent} TCP sockets that criu left silent");
    }
    // The namespace is gone when somebody stopped the feature meanwhile.
    if netns::exists(feature)
        && let Some(m) = record.definition()?.managed()
    {
        netns::open_door(feature)?;
        netns::announce(feature, m)?;
    }
    if cgroup::populated(&dir) {
        cgroup::freeze(&dir, false, FREEZER)?;
    }
    sockets::nudge(feature, &peers);
    Ok(())
}

/// Kills the copy here, silently, and removes all of the feature.
fn bury(inner: &mut Inner, id: &str, record: &Record) -> Result<(), Failure> {
    let feature = &record.feature;
    // Closed since the freeze began, unless somebody meddled: closing it again costs little, and
    // a FIN that leaves would cut the connections that the target serves by now.
    if netns::exists(feature) {
        netns::gate(feature)?;
    }
    drop(inner.unlimited.take());
    if let Some(mut criu) = inner.held.take() {
        if criu.answer(true).is_ok() {
            match criu.next(criu::STEP) {
                Ok(Incoming::Done(_)) => {}
                other => tracing::warn!("move {id}: criu said {other:?} to the commit"),
            }
        }
        criu.wait_end(criu::END);
    }
    if record.method == Method::Handover {
        // The instance that handed over may end in order.
        unit::remove(feature)?;
    } else {
        let workload = paths::workload_cgroup(feature);
        if workload.exists() {
            cgroup::kill(&workload, FREEZER).map_err(|e| {
                let why = format!(
                    "the processes of feature '{feature}' do not end after the commit: {e}"
                );
                Failure::new(ErrorKind::Failed, why)
            })?;
        }
        unit::remove_killed(feature)?;
    }
    let spec = match features::get(feature) {
        Ok(spec) => Some(spec),
        Err(_) => record.spec.clone(),
    };
    // The target has it, on disk, and runs with it.
    for dir in spec
        .iter()
        .filter_map(FeatureSpec::managed)
        .flat_map(|m| &m.state)
    {
        place::remove(dir)?;
    }
    features::remove(feature)?;
    Ok(())
}

/// Files that these processes may change through shared mappings, by inode.
fn mapped_files(pids: &[i32]) -> HashSet<u64> {
    let mut found = HashSet::new();
    for pid in pids {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        found.extend(maps.lines().filter_map(shared_and_writable));
    }
    found
}

/// The inode of a line of `/proc/PID/maps` that maps a file shared and writable.
fn shared_and_writable(line: &str) -> Option<u64> {
    let mut words = line.split_ascii_whitespace();
    let mode = words.nth(1)?;
    let inode = words.nth(2)?.parse().ok()?;
    (mode.contains('w') && mode.ends_with('s') && inode != 0).then_some(inode)
}

/// Pages (in the round, left to earlier rounds) of a round that is still unsent.
fn pages(dir: &Path) -> (u64, u64) {
    let mut sum = (0, 0);
    for e in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = e.file_name();
        if name.to_string_lossy().starts_with("pagemap-")
            && let Some((here, before)) = std::fs::read(e.path())
                .ok()
                .and_then(|b| stats::count_pages(&b))
        {
            sum = (sum.0 + here, sum.1 + before);
        }
    }
    sum
}

/// Waits, while the feature runs and no connection is new to it, until it has accepted those that
/// are complete: criu cannot carry the others. Those that it closed have some time to end.
fn arrive(feature: &FeatureName) -> Result<(), NetError> {
    netns::within(feature, || {
        wait(DRAIN, |left| left.arriving > 0);
        wait(LAST_WORDS, |left| left.leaving > 0);
    })
}

/// Waits, while the feature stands, until the peers have all that was sent to them on connections
/// that it has closed: the kernel here sends that, and nothing at the target knows of it.
fn leave(feature: &FeatureName) -> Result<(), NetError> {
    netns::within(feature, || wait(LAST_WORDS, |left| left.leaving > 0))
}

/// A file of a process below /proc that the feature has open. One that it reads now and then, as
/// redis does its own `stat`, is closed a moment later; restored it would be looked for below the
/// number that the process has here.
fn open_in_proc(feature: &FeatureName) -> Option<PathBuf> {
    let of = |pid: i32| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let mut links = open
            .flatten()
            .filter_map(|fd| fs::read_link(fd.path()).ok());
        links.find(|link| of_a_process(link))
    };
    let pids = cgroup::processes(&paths::workload_cgroup(feature));
    pids.into_iter().find_map(of)
}

/// Waits while there are such connections in the calling thread's network namespace.
fn wait(limit: Duration, more: impl Fn(Unheld) -> bool) {
    let until = Instant::now() + limit;
    loop {
        match diag::unheld() {
            Ok(left) if more(left) && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(left) => {
                if more(left) {
                    tracing::debug!("after {limit:?} no process holds {left:?}");
                }
                return;
            }
            Err(e) => {
                tracing::warn!("connections that no process holds are not known: {e}");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_mappings_are_found() {
        let line = "7f00-7f01 rw-s 00000000 fe:00 4711   /srv/db/shared file";
        assert_eq!(shared_and_writable(line), Some(4711));
        for other in [
            "7f00-7f01 rw-p 00000000 fe:00 4711 /x",
            "7f00-7f01 rw-s 00000000 00:00 0",
            "x",
        ] {
            assert_eq!(shared_and_writable(other), None);
        }
    }
}
