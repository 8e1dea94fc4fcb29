//! Moves under way in this guest, source and target sides: who does what, and the record of each
//! that survives the helper's restart.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::mount::MsFlags;
use serde::{Deserialize, Serialize};

use super::arrival::{self, Needs};
use super::daemon::MoveSide;
use super::source::{self, Source};
use super::state::StateError;
use super::state::place::Place;
use super::target::{self, Target};
use super::{bulk, criu, features, gate, init, netns, paths, preflight, rehearsal, unit};
use crate::feature::{FeatureName, FeatureSpec};
use crate::method::Method;
use crate::wire::bulk::Message;
use crate::wire::guest::{
    Call, ErrorKind, Event, GuestMove, GuestMoveState, MoveId, Reply, valid_move_id,
};

/// Why a step of a move failed: what the host is answered.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Kind.
    pub kind: ErrorKind,
    /// One sentence.
    pub message: String,
}

impl Failure {
    /// A failure of a kind with a sentence.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}

macro_rules! failure_from {
    ($($from:ty => $kind:ident),* $(,)?) => {
        $(impl From<$from> for Failure {
            fn from(e: $from) -> Self {
                Self::new(ErrorKind::$kind, e.to_string())
            }
        })*
    };
}
failure_from! {
    criu::CriuError => Criu,
    gate::GateError => Criu,
    netns::NetError => Failed,
    unit::UnitError => Failed,
    features::FeatureFileError => NotFound,
    io::Error => Failed,
}

impl From<super::images::ImageError> for Failure {
    fn from(e: super::images::ImageError) -> Self {
        let kind = match e {
            super::images::ImageError::NoRoom(_)
            | super::images::ImageError::State { no_room: true, .. } => ErrorKind::NoRoom,
            _ => ErrorKind::Failed,
        };
        Self::new(kind, e.to_string())
    }
}

impl From<StateError> for Failure {
    fn from(e: StateError) -> Self {
        let kind = match e {
            StateError::NoRoom(_) | StateError::Short(_) => ErrorKind::NoRoom,
            StateError::Refused(_) | StateError::Kind(..) | StateError::TooMany => {
                ErrorKind::Refused
            }
            _ => ErrorKind::Failed,
        };
        Self::new(kind, e.to_string())
    }
}

impl From<Failure> for Reply {
    fn from(f: Failure) -> Self {
        Self::Error {
            kind: f.kind,
            message: f.message,
        }
    }
}

/// Which side of a move this guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The feature leaves.
    Source,
    /// The feature arrives.
    Target,
}

/// `move.json`: what a restarted helper must know of a move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Feature.
    pub feature: FeatureName,
    /// Side.
    pub side: Side,
    /// Bulk stream.
    pub stream: u32,
    /// Last round that is complete (source), or that was restored from (target).
    #[serde(default)]
    pub round: u16,
    /// Number of the last file sent.
    #[serde(default)]
    pub file: u32,
    /// Source: a freeze has begun. Target: the move is committed.
    #[serde(default)]
    pub decided: bool,
    /// Definition of the feature, should the host have the guest forget it meanwhile.
    #[serde(default)]
    pub spec: Option<FeatureSpec>,
    /// Target: where the feature's state arrives.
    #[serde(default)]
    pub places: Vec<Place>,
    /// How the feature moves.
    #[serde(default)]
    pub method: Method,
    /// Source: commands of the feature have begun to be run, so that its `abort` may have
    /// something to undo.
    #[serde(default)]
    pub hooked: bool,
}

impl Record {
    /// Reads the record of a move; `None` when there is no such move here.
    pub fn load(id: &str) -> Option<Self> {
        let text = std::fs::read(paths::move_dir(id).join("move.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// The feature's definition; put in force again when it was forgotten.
    pub fn definition(&self) -> Result<FeatureSpec, Failure> {
        match (features::get(&self.feature), &self.spec) {
            (Err(_), Some(spec)) => {
                features::put(spec)?;
                Ok(spec.clone())
            }
            (found, _) => Ok(found?),
        }
    }

    /// Writes it, making the move's directory.
    pub fn save(&self, id: &str) -> io::Result<()> {
        let dir = paths::move_dir(id);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)?;
        features::write_atomically(&dir.join("move.json"), &serde_json::to_vec(self)?)
    }
}

/// Removes a move's directory. Idempotent. What is on tmpfs is gone for good with it.
pub fn remove_dir(id: &str) -> io::Result<()> {
    remove_tree(&paths::move_dir(id))
}

/// Removes a directory with all that is in it. Idempotent.
pub fn remove_tree(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Directory of all moves.
pub fn directory() -> PathBuf {
    Path::new(paths::RUN).join("moves")
}

/// Gives images a tmpfs of their own: that of /run is often a tenth of the memory, and full of
/// images it would hinder the whole guest.
fn mount_images() -> io::Result<()> {
    let dir = directory();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)?;
    if std::fs::metadata(&dir)?.dev() != std::fs::metadata(paths::RUN)?.dev() {
        return Ok(());
    }
    nix::mount::mount(
        Some("drover-moves"),
        &dir,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("size=80%,mode=0700"),
    )?;
    Ok(())
}

/// Identifiers of all moves with a record here.
pub fn recorded() -> Vec<(MoveId, Record)> {
    let Ok(entries) = std::fs::read_dir(directory()) else {
        return Vec::new();
    };
    let ids = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    ids.filter(|id| valid_move_id(id))
        .filter_map(|id| Record::load(&id).map(|r| (id, r)))
        .collect()
}

/// Locks across a panic of another thread: the data are checked where they are used.
pub fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The value of `key`, made when absent.
fn entry<K: Eq + Hash, V>(
    map: &Mutex<HashMap<K, Arc<V>>>,
    key: K,
    make: impl FnOnce() -> V,
) -> Arc<V> {
    lock(map)
        .entry(key)
        .or_insert_with(|| Arc::new(make()))
        .clone()
}

/// All moves of this guest. Every method may be called from several threads at once.
pub struct Moves {
    send: Arc<bulk::Send>,
    sources: Mutex<HashMap<MoveId, Arc<Source>>>,
    targets: Mutex<HashMap<MoveId, Arc<Target>>>,
    // Incoming bulk streams.
    streams: Mutex<HashMap<u32, MoveId>>,
    // Moves that were ended lately: a step of theirs that comes late must not begin them anew.
    ended: Mutex<VecDeque<MoveId>>,
}

/// How many ended moves are remembered.
const ENDED: usize = 256;

impl Moves {
    /// `send` puts a bulk message on the port.
    pub fn new(send: Arc<bulk::Send>) -> Self {
        Self {
            send,
            sources: Mutex::default(),
            targets: Mutex::default(),
            streams: Mutex::default(),
            ended: Mutex::default(),
        }
    }

    fn end(&self, id: &str) {
        let mut ended = lock(&self.ended);
        if ended.iter().any(|e| e == id) {
            return;
        }
        if ended.len() == ENDED {
            ended.pop_front();
        }
        ended.push_back(id.to_owned());
    }

    fn refuse_late_step(&self, id: &str) -> Result<(), Failure> {
        if lock(&self.ended).iter().any(|e| e == id) {
            let why = format!("move {id} was ended here before this step of it came");
            return Err(Failure::new(ErrorKind::Invalid, why));
        }
        Ok(())
    }

    /// Prepares the guest for moves, once at the helper's start.
    pub fn prepare(&self) {
        if let Err(e) = mount_images() {
            tracing::warn!("no tmpfs of its own for images ({e}); they share that of /run");
        }
        rehearsal::clean();
        // A feature that arrives brings its first process, whose program must be here.
        if let Err(e) = init::install() {
            tracing::warn!("{} cannot be written: {e}", init::PROGRAM);
        }
        // criu's first run in a guest takes long; it is not to be part of a move.
        std::thread::spawn(criu::probed);
        for m in self.status() {
            tracing::info!("move {} of {} is here: {:?}", m.id, m.feature, m.state);
        }
    }

    fn dispatch(&self, call: Call, events: &dyn Fn(Event)) -> Result<Reply, Failure> {
        match &call {
            Call::PreDump { id, .. }
            | Call::Throttle { id, .. }
            | Call::Freeze { id, .. }
            | Call::Release { id, .. }
            | Call::Receive { id, .. }
            | Call::AwaitRound { id, .. }
            | Call::Restore { id, .. }
            | Call::Resume { id }
            | Call::Settled { id }
            | Call::Discard { id, .. }
                if !valid_move_id(id) =>
            {
                return Err(Failure::new(
                    ErrorKind::Invalid,
                    format!("'{id}' is not a move's identifier"),
                ));
            }
            _ => {}
        }
        if let Call::Release { id, .. } | Call::Discard { id, .. } = &call {
            self.end(id);
        }
        match call {
            Call::Preflight { feature, method } => {
                let spec = features::get(&feature)?;
                Ok(Reply::Preflight(preflight::check(&spec, method)))
            }
            Call::Rehearse { feature } => rehearsal::rehearse(&feature).map(Reply::Rehearsed),
            Call::Check { spec, preflight } => Ok(Reply::Reasons {
                reasons: arrival::reasons(&spec, &Needs::from(&*preflight)),
            }),
            Call::PreDump {
                id,
                feature,
                stream,
                round,
                method,
            } => {
                let source = self.source_unless_ended(&id)?;
                let ask = source::Ask {
                    id: &id,
                    feature: &feature,
                    stream,
                    round,
                    method,
                };
                source.pre_dump(&ask, &*self.send, events).map(Reply::Round)
            }
            Call::Throttle {
                id,
                feature,
                percent,
            } => {
                let source = self.source_unless_ended(&id)?;
                source.throttle(&id, &feature, percent)?;
                Ok(Reply::Done)
            }
            Call::Freeze {
                id,
                feature,
                stream,
                round,
            } => {
                let source = self.source_unless_ended(&id)?;
                let ask = source::Ask {
                    id: &id,
                    feature: &feature,
                    stream,
                    round,
                    method: Method::Live,
                };
                source.freeze(&ask, &*self.send, events).map(Reply::Round)
            }
            Call::Release {
                id,
                feature,
                commit,
            } => {
                if let Some(r) = Record::load(&id)
                    && r.side == Side::Target
                {
                    // The books of an incoming move are closed; nothing else is left of it.
                    return self.forget_target(&id).map(|()| Reply::Done);
                }
                self.source(&id).release(&id, &feature, commit, events)?;
                lock(&self.sources).remove(&id);
                Ok(Reply::Done)
            }
            Call::Receive {
                id,
                spec,
                stream,
                files,
                state_bytes,
                method,
                directories,
                memory_bytes,
            } => {
                self.drop_arrived(&spec.name);
                let target = self.target(&id);
                // In this order, see `source_unless_ended`.
                self.refuse_late_step(&id)?;
                let needs = Needs {
                    files: &files,
                    directories: &directories,
                    state_bytes,
                    image_bytes: memory_bytes,
                    method,
                };
                target.receive(&id, &spec, stream, &needs)?;
                lock(&self.streams).insert(stream, id);
                Ok(Reply::Done)
            }
            Call::AwaitRound { id, round } => {
                self.target(&id).await_round(&id, round, events)?;
                Ok(Reply::Done)
            }
            Call::Restore { id, round } => {
                let restore_ms = self.target(&id).restore(&id, round, events)?;
                Ok(Reply::Ready { restore_ms })
            }
            Call::Resume { id } => {
                let (resume_ms, pid) = self.target(&id).resume(&id, events)?;
                self.drop_stream(&id);
                Ok(Reply::Running { resume_ms, pid })
            }
            Call::Settled { id } => {
                self.target(&id).settled(&id, events)?;
                Ok(Reply::Done)
            }
            Call::Discard { id, force } => {
                let target = self.target(&id);
                if force && !target.destroy(&id)? {
                    let (resume_ms, pid) = target.resume(&id, events)?;
                    self.drop_stream(&id);
                    return Ok(Reply::Running { resume_ms, pid });
                }
                self.drop_stream(&id);
                if !force {
                    target.discard(&id)?;
                }
                lock(&self.targets).remove(&id);
                Ok(Reply::Done)
            }
            _ => Err(Failure::new(
                ErrorKind::Invalid,
                "this request is not about a move",
            )),
        }
    }

    /// The source side for a round. Its end may come between any two steps here; looked up before
    /// the list of the ended, it is the same that a release not yet on that list will mark.
    fn source_unless_ended(&self, id: &str) -> Result<Arc<Source>, Failure> {
        let source = self.source(id);
        self.refuse_late_step(id)?;
        Ok(source)
    }

    fn source(&self, id: &str) -> Arc<Source> {
        entry(&self.sources, id.to_owned(), Source::default)
    }

    fn target(&self, id: &str) -> Arc<Target> {
        entry(&self.targets, id.to_owned(), Target::default)
    }

    fn drop_stream(&self, id: &str) {
        lock(&self.streams).retain(|_, of| of != id);
    }

    fn forget_target(&self, id: &str) -> Result<(), Failure> {
        if !target::is_running(id) {
            return Err(Failure::new(
                ErrorKind::Invalid,
                format!("move {id} arrives here and does not run yet; discard or resume it"),
            ));
        }
        let target = lock(&self.targets).remove(id);
        self.drop_stream(id);
        if let Some(target) = target {
            target.wiped();
        }
        remove_dir(id)?;
        Ok(())
    }

    /// Forgets records of earlier moves of the feature whose incoming end is long through: the
    /// feature ran here, and was stopped or moved on since.
    fn drop_arrived(&self, feature: &FeatureName) {
        if unit::running(feature) {
            return;
        }
        for (id, r) in recorded() {
            if r.feature == *feature
                && target::is_running(&id)
                && let Err(e) = self.forget_target(&id)
            {
                tracing::warn!("move {id}: {e}");
            }
        }
    }
}

impl MoveSide for Moves {
    fn handle(&self, call: Call, events: &(dyn Fn(Event) + Sync)) -> Reply {
        self.dispatch(call, events).unwrap_or_else(Reply::from)
    }

    fn bulk(&self, message: Message) {
        let id = lock(&self.streams).get(&message.stream).cloned();
        let target = id.and_then(|id| lock(&self.targets).get(&id).cloned());
        if let Some(t) = target {
            t.take(message.body);
        } else {
            tracing::debug!("bulk message of unknown stream {}", message.stream);
        }
    }

    fn status(&self) -> Vec<GuestMove> {
        recorded()
            .into_iter()
            .map(|(id, r)| {
                let state = match r.side {
                    Side::Source if r.decided => GuestMoveState::Frozen,
                    Side::Source => GuestMoveState::Copying,
                    Side::Target => match gate::last_state(&paths::move_dir(&id)) {
                        Some(gate::State::Running { .. }) => GuestMoveState::Running,
                        Some(gate::State::Ready { .. }) => GuestMoveState::Ready,
                        _ if r.decided => GuestMoveState::Ready,
                        _ => GuestMoveState::Receiving,
                    },
                };
                GuestMove {
                    id,
                    feature: r.feature,
                    state,
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::guest::Preflight;

    fn ask(call: Call) -> ErrorKind {
        let moves = Moves::new(Arc::new(|_: &Message| Ok(())));
        match moves.handle(call, &|_| {}) {
            Reply::Error { kind, .. } => kind,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_identifier_never_becomes_a_path() {
        for id in ["", "../../etc", "0123456", "0123456/", "xyzxyzxyz"] {
            let feature = FeatureName::new("cache").unwrap();
            let calls = [
                Call::Resume { id: id.into() },
                Call::Discard {
                    id: id.into(),
                    force: false,
                },
                Call::Release {
                    id: id.into(),
                    feature,
                    commit: true,
                },
            ];
            for call in calls {
                assert_eq!(ask(call), ErrorKind::Invalid);
            }
        }
    }

    #[test]
    fn what_is_unknown_is_told_apart_from_what_is_invalid() {
        let id = "0000aaaa-1111-bbbb".to_owned();
        assert_eq!(ask(Call::Resume { id: id.clone() }), ErrorKind::NotFound);
        assert_eq!(ask(Call::AwaitRound { id, round: 1 }), ErrorKind::NotFound);
        assert_eq!(ask(Call::Status), ErrorKind::Invalid);
    }

    #[test]
    fn what_comes_late_does_not_begin_a_move_anew() {
        let moves = Moves::new(Arc::new(|_: &Message| Ok(())));
        let feature = FeatureName::new("no-such-feature").unwrap();
        let (left, arrived) = ("0000aaaa-2222-bbbb", "0000aaaa-3333-bbbb");
        let late = |call: Call| match moves.handle(call, &|_| {}) {
            Reply::Error { message, .. } => message,
            other => panic!("{other:?}"),
        };
        // A request that had its move looked up before the end came.
        let (source, target) = (moves.source(left), moves.target(arrived));
        let release = Call::Release {
            id: left.into(),
            feature: feature.clone(),
            commit: false,
        };
        assert_eq!(moves.handle(release, &|_| {}), Reply::Done);
        let discard = Call::Discard {
            id: arrived.into(),
            force: false,
        };
        assert_eq!(moves.handle(discard, &|_| {}), Reply::Done);
        let ask = source::Ask {
            id: left,
            feature: &feature,
            stream: 1,
            round: 1,
            method: Method::Live,
        };
        let send: &bulk::Send = &|_: &Message| Ok(());
        let e = source.pre_dump(&ask, send, &|_| {}).unwrap_err();
        assert!(e.message.contains("released already"), "{e}");
        let spec = r#"{"name":"no-such-feature","workload":{"kind":"unit","unit":"x.service"}}"#;
        let spec: FeatureSpec = serde_json::from_str(spec).unwrap();
        let nothing = Preflight::default();
        let needs = Needs::from(&nothing);
        let e = target.receive(arrived, &spec, 2, &needs).unwrap_err();
        assert!(e.message.contains("discarded already"), "{e}");
        // And one that comes whole.
        let round = Call::PreDump {
            id: left.into(),
            feature,
            stream: 1,
            round: 1,
            method: Method::Restart,
        };
        assert!(late(round).contains("was ended here"));
        let receive = Call::Receive {
            id: arrived.into(),
            spec: Box::new(spec),
            stream: 2,
            files: Vec::new(),
            state_bytes: 0,
            method: Method::Live,
            directories: Vec::new(),
            memory_bytes: 0,
        };
        assert!(late(receive).contains("was ended here"));
    }

    #[test]
    fn records_survive_versions() {
        let old = r#"{"feature":"cache","side":"source","stream":7}"#;
        let r: Record = serde_json::from_str(old).unwrap();
        assert_eq!((r.round, r.file, r.decided, r.spec), (0, 0, false, None));
    }
}
