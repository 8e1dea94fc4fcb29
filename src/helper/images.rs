//! Receives the rounds of a move into its directory.
//!
//! Nothing in a message is trusted: names are single plain components, one file is open at a
//! time, pieces come in order and stay inside the announced size, everything counts against a
//! limit, checksums must fit. The first violation ends the reception for good.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::state::StateError;
use super::state::store::Store;
use crate::wire::bulk::{Body, valid_name};
use crate::wire::sum::Sum;

/// Most files in a move.
const MAX_FILES: u32 = 50_000;

/// Why a reception failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// A message does not fit what came before.
    #[error("the incoming images are inconsistent: {0}; start the move again")]
    Order(String),
    /// A checksum differs.
    #[error("file {0} of the incoming images arrived damaged; start the move again")]
    Damaged(String),
    /// Too much.
    #[error("the incoming images exceed the room of {0} bytes in the guest's tmpfs")]
    NoRoom(u64),
    /// State directories.
    #[error("{message}")]
    State {
        /// A disk is full.
        no_room: bool,
        /// Why.
        message: String,
    },
    /// The file system refused.
    #[error("cannot write the incoming images: {0}")]
    Io(String),
    /// The move was given up.
    #[error("the move was discarded meanwhile")]
    Discarded,
    /// It did not come.
    #[error("round {0} did not arrive within {1} s")]
    Late(u16, u64),
}

#[derive(Debug)]
struct Open {
    file: u32,
    name: String,
    size: u64,
    next: u64,
    sum: Sum,
    to: File,
}

#[derive(Debug, Default)]
struct State {
    complete: u16,
    open: Option<Open>,
    round_files: u32,
    round_bytes: u64,
    last_file: u32,
    files: u32,
    announced: u64,
    failed: Option<ImageError>,
    /// State directories, when the feature has some.
    store: Option<Store>,
}

/// The receiving end of a move's bulk stream.
#[derive(Debug)]
pub struct Receiver {
    rounds: PathBuf,
    room: u64,
    state: Mutex<State>,
    changed: Condvar,
}

impl Receiver {
    /// Writes below `rounds` (made here when absent), at most `room` bytes.
    pub fn new(rounds: PathBuf, room: u64) -> Result<Self, ImageError> {
        make_dir(&rounds)?;
        Ok(Self {
            rounds,
            room,
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Takes state directories too: each round must have a pass over them.
    #[must_use]
    pub fn with_store(self, store: Store) -> Self {
        self.lock().store = Some(store);
        self
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a message. After the first failure messages are ignored.
    pub fn take(&self, body: Body) {
        let mut s = self.lock();
        if s.failed.is_some() {
            return;
        }
        if let Err(e) = self.step(&mut s, body) {
            tracing::warn!("{e}");
            (s.open, s.store) = (None, None);
            s.failed = Some(e);
        }
        self.changed.notify_all();
    }

    /// Ends the reception; whoever waits for a round gets [`ImageError::Discarded`].
    pub fn discard(&self) {
        let mut s = self.lock();
        (s.open, s.store) = (None, None);
        s.failed = Some(ImageError::Discarded);
        self.changed.notify_all();
    }

    /// Waits until `round` is complete.
    pub fn wait(&self, round: u16, timeout: Duration) -> Result<(), ImageError> {
        let until = Instant::now() + timeout;
        let mut s = self.lock();
        loop {
            if let Some(e) = &s.failed {
                return Err(e.clone());
            }
            if s.complete >= round {
                return Ok(());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ImageError::Late(round, timeout.as_secs()));
            }
            s = self
                .changed
                .wait_timeout(s, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn step(&self, s: &mut State, body: Body) -> Result<(), ImageError> {
        let order = |why: &str| Err(ImageError::Order(why.to_owned()));
        match body {
            Body::Open {
                round,
                file,
                size,
                name,
            } => {
                if s.open.is_some() {
                    return order("a file begins inside another one");
                }
                if s.complete.checked_add(1) != Some(round) {
                    return order("a file of another round than the next one");
                }
                if file <= s.last_file || s.files >= MAX_FILES {
                    return order("a file number that was used before, or too many files");
                }
                if !valid_name(&name) || name == "parent" {
                    return order("a file name that is not plain");
                }
                s.announced = s.announced.saturating_add(size);
                if s.announced > self.room {
                    return Err(ImageError::NoRoom(self.room));
                }
                let dir = self.rounds.join(round.to_string());
                if s.round_files == 0 {
                    Self::begin(&dir, round)?;
                }
                let to = File::options()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(dir.join(&name))?;
                to.set_len(size)?;
                (s.last_file, s.files, s.round_files) = (file, s.files + 1, s.round_files + 1);
                s.open = Some(Open {
                    file,
                    name,
                    size,
                    next: 0,
                    sum: Sum::new(),
                    to,
                });
            }
            Body::Data {
                file,
                offset,
                bytes,
            } => {
                let Some(o) = s.open.as_mut().filter(|o| o.file == file) else {
                    return order("data of a file that is not open");
                };
                let end = offset.checked_add(bytes.len() as u64);
                let Some(end) = end.filter(|e| offset >= o.next && *e <= o.size) else {
                    return order("data outside of its file");
                };
                o.sum.update(&bytes);
                o.to.write_all_at(&bytes, offset)?;
                o.next = end;
                s.round_bytes += bytes.len() as u64;
            }
            Body::Close { file, sum } => {
                let Some(o) = s.open.take_if(|o| o.file == file) else {
                    return order("the end of a file that is not open");
                };
                if o.sum.finish() != sum {
                    return Err(ImageError::Damaged(o.name));
                }
            }
            Body::RoundEnd {
                round,
                files,
                bytes,
            } => {
                if s.open.is_some()
                    || s.complete.checked_add(1) != Some(round)
                    || (files, bytes) != (s.round_files, s.round_bytes)
                {
                    return order("a round ends that is not complete");
                }
                if s.store.as_mut().is_some_and(|store| !store.take_complete()) {
                    return order("a round without its state directories");
                }
                (s.complete, s.round_files, s.round_bytes) = (round, 0, 0);
            }
            Body::State(state) => {
                let Some(store) = s.store.as_mut().filter(|_| s.open.is_none()) else {
                    return order("state directories where none are expected");
                };
                store.take(state)?;
            }
        }
        Ok(())
    }

    fn begin(dir: &Path, round: u16) -> Result<(), ImageError> {
        make_dir(dir)?;
        if round > 1 {
            let parent = format!("../{}", round - 1);
            std::os::unix::fs::symlink(parent, dir.join("parent"))?;
        }
        Ok(())
    }
}

impl From<StateError> for ImageError {
    fn from(e: StateError) -> Self {
        Self::State {
            no_room: matches!(e, StateError::NoRoom(_)),
            message: e.to_string(),
        }
    }
}

impl From<std::io::Error> for ImageError {
    fn from(e: std::io::Error) -> Self {
        Self::Io(e.to_string())
    }
}

fn make_dir(dir: &Path) -> Result<(), ImageError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn open(round: u16, file: u32, size: u64, name: &str) -> Body {
        Body::Open {
            round,
            file,
            size,
            name: name.into(),
        }
    }
    fn data(file: u32, offset: u64, bytes: &[u8]) -> Body {
        Body::Data {
            file,
            offset,
            bytes: bytes.to_vec(),
        }
    }
    fn close(file: u32, bytes: &[u8]) -> Body {
        Body::Close {
            file,
            sum: crate::wire::sum::of(bytes),
        }
    }
    fn end(round: u16, files: u32, bytes: u64) -> Body {
        Body::RoundEnd {
            round,
            files,
            bytes,
        }
    }
    const NOW: Duration = Duration::ZERO;

    #[test]
    fn two_rounds() {
        let t = tempfile::tempdir().unwrap();
        let r = Receiver::new(t.path().join("rounds"), 1 << 20).unwrap();
        for b in [
            open(1, 1, 6, "core-1.img"),
            data(1, 0, b"abc"),
            data(1, 3, b"def"),
            close(1, b"abcdef"),
            end(1, 1, 6),
        ] {
            assert_eq!(r.wait(1, NOW), Err(ImageError::Late(1, 0)));
            r.take(b);
        }
        assert_eq!(r.wait(1, NOW), Ok(()));
        for b in [open(2, 2, 0, "core-1.img"), close(2, b""), end(2, 1, 0)] {
            r.take(b);
        }
        assert_eq!(r.wait(2, NOW), Ok(()));
        let two = t.path().join("rounds/2");
        assert_eq!(
            std::fs::read(two.join("parent/core-1.img")).unwrap(),
            b"abcdef"
        );
    }

    #[test]
    fn violations_end_the_reception() {
        for bad in [
            vec![data(1, 0, b"x")],
            vec![open(2, 1, 1, "a")],
            vec![open(1, 1, 1, "parent")],
            vec![open(1, 1, 1, "../a")],
            vec![open(1, 1, 2 << 20, "a")],
            vec![open(1, 1, 1, "a"), open(1, 2, 1, "b")],
            vec![open(1, 1, 1, "a"), data(1, 0, b"xy")],
            vec![open(1, 1, 4, "a"), data(1, u64::MAX, b"xy")],
            vec![open(1, 1, 4, "a"), data(1, 2, b"x"), data(1, 1, b"x")],
            vec![open(1, 1, 1, "a"), data(1, 0, b"x"), close(1, b"y")],
            vec![open(1, 1, 0, "a"), close(1, b""), open(1, 1, 0, "b")],
            vec![open(1, 1, 0, "a"), close(1, b""), open(1, 2, 0, "a")],
            vec![open(1, 1, 0, "a"), end(1, 1, 0)],
            vec![end(1, 1, 0)],
        ] {
            let t = tempfile::tempdir().unwrap();
            let r = Receiver::new(t.path().join("rounds"), 1 << 20).unwrap();
            for b in bad.clone() {
                r.take(b);
            }
            let e = r.wait(1, NOW).unwrap_err();
            assert!(!matches!(e, ImageError::Late(..)), "{bad:?}: {e}");
        }
    }

    #[test]
    fn discard_wakes_who_waits() {
        let t = tempfile::tempdir().unwrap();
        let r = Receiver::new(t.path().join("rounds"), 1).unwrap();
        std::thread::scope(|s| {
            let w = s.spawn(|| r.wait(1, Duration::from_secs(60)));
            r.discard();
            assert_eq!(w.join().unwrap(), Err(ImageError::Discarded));
        });
    }

    fn body() -> impl Strategy<Value = Body> {
        let name = prop_oneof![
            Just("a.img".to_owned()),
            Just("../../x".to_owned()),
            Just("parent".to_owned()),
            Just("pages-1.img".to_owned()),
            ".{0,12}",
        ];
        let size = prop_oneof![0u64..20, any::<u64>()];
        prop_oneof![
            (0u16..4, 0u32..6, size.clone(), name).prop_map(|(round, file, size, name)| {
                Body::Open {
                    round,
                    file,
                    size,
                    name,
                }
            }),
            (0u32..6, size, proptest::collection::vec(any::<u8>(), 0..20)).prop_map(
                |(file, offset, bytes)| Body::Data {
                    file,
                    offset,
                    bytes
                }
            ),
            (0u32..6, any::<u64>()).prop_map(|(file, sum)| Body::Close { file, sum }),
            (0u16..4, 0u32..3, 0u64..20).prop_map(|(round, files, bytes)| Body::RoundEnd {
                round,
                files,
                bytes
            }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn hostile_messages_stay_inside(bodies in proptest::collection::vec(body(), 1..40)) {
            let t = tempfile::tempdir().unwrap();
            let rounds = t.path().join("deep/rounds");
            let r = Receiver::new(rounds.clone(), 4096).unwrap();
            for b in bodies { r.take(b); }
            // Nothing beside the directory, and inside only rounds, plain files and our links.
            let beside: Vec<_> = std::fs::read_dir(t.path()).unwrap().collect();
            prop_assert_eq!(beside.len(), 1);
            prop_assert_eq!(std::fs::read_dir(t.path().join("deep")).unwrap().count(), 1);
            let mut bytes = 0;
            for round in std::fs::read_dir(&rounds).unwrap() {
                for f in std::fs::read_dir(round.unwrap().path()).unwrap() {
                    let f = f.unwrap();
                    let kind = f.file_type().unwrap();
                    prop_assert!(kind.is_file() || (kind.is_symlink() && f.file_name() == "parent"));
                    if kind.is_file() { bytes += f.metadata().unwrap().len(); }
                }
            }
            prop_assert!(bytes <= 4096);
        }
    }
}
