//! Both sides against each other on real directories.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::store::Store;
use super::walk::{Passed, Walk};
use super::{StateError, beneath, meta, place};
use crate::feature::FeatureName;
use crate::wire::bulk::{Body, Message};
use crate::wire::state::{Meta, State, What};

/// All that must arrive of an entry, in words.
fn snapshot(root: &Path) -> BTreeMap<PathBuf, String> {
    fn visit(root: &Path, at: &Path, all: &mut BTreeMap<PathBuf, String>) {
        let m = fs::symlink_metadata(at).unwrap();
        let kind = m.file_type();
        let mut text = format!("{:o} {} {} {}", m.mode(), m.uid(), m.gid(), m.mtime());
        let _ = write!(text, ".{} ", m.mtime_nsec());
        if kind.is_symlink() {
            text += &fs::read_link(at).unwrap().display().to_string();
        } else if kind.is_file() {
            let fd = fs::File::open(at).unwrap();
            let _ = write!(
                text,
                "{} links {:x} {:?}",
                m.nlink(),
                crate::wire::sum::of(&fs::read(at).unwrap()),
                meta::xattrs(fd.as_fd()).unwrap()
            );
        } else if kind.is_dir() {
            let fd = fs::File::open(at).unwrap();
            let _ = write!(text, "{:?}", meta::xattrs(fd.as_fd()).unwrap());
            for e in fs::read_dir(at).unwrap() {
                visit(root, &e.unwrap().path(), all);
            }
        }
        all.insert(at.strip_prefix(root).unwrap().to_owned(), text);
    }
    let mut all = BTreeMap::new();
    visit(root, root, &mut all);
    all
}

struct Pair {
    dir: tempfile::TempDir,
    walk: Walk,
    store: Store,
}

impl Pair {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        let store = Store::new(&[to]).unwrap();
        Self {
            walk: Walk::new(&[from]),
            store,
            dir,
        }
    }

    fn from(&self, name: &str) -> PathBuf {
        self.dir.path().join("from").join(name)
    }

    fn to(&self, name: &str) -> PathBuf {
        self.dir.path().join("to").join(name)
    }

    /// A pass, through the wire's encoding.
    fn pass(&mut self) -> Passed {
        let (walk, store) = (&mut self.walk, &mut self.store);
        let passed = walk
            .pass(&HashSet::new(), &mut |state| {
                let mut bytes = Vec::new();
                let message = Message {
                    stream: 1,
                    body: Body::State(state),
                };
                message.encode(&mut bytes);
                let Body::State(state) = Message::decode(&bytes).unwrap().body else {
                    panic!()
                };
                store.take(state).unwrap();
                Ok(())
            })
            .unwrap();
        assert!(store.take_complete());
        passed
    }

    fn same(&self) {
        assert_eq!(
            snapshot(&self.dir.path().join("from")),
            snapshot(&self.dir.path().join("to"))
        );
    }
}

#[test]
fn everything_arrives_and_then_only_changes() {
    let mut p = Pair::new();
    fs::create_dir_all(p.from("a/b")).unwrap();
    fs::write(p.from("a/plain"), b"hello").unwrap();
    fs::set_permissions(p.from("a/plain"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::write(p.from("a/empty"), b"").unwrap();
    fs::hard_link(p.from("a/plain"), p.from("a/b/again")).unwrap();
    symlink("/etc/passwd", p.from("link")).unwrap();
    nix::unistd::mkfifo(&p.from("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let big = fs::File::create(p.from("big")).unwrap();
    big.write_all_at(&vec![7; 1 << 20], 0).unwrap();
    big.set_len(1 << 34).unwrap();
    big.write_all_at(b"end", (1 << 34) - 3).unwrap();
    let sparse = fs::metadata(p.from("big")).unwrap().blocks();
    let fd = fs::File::open(p.from("a/plain")).unwrap();
    let attributes = meta::set_xattr(fd.as_fd(), b"user.origin", b"here").is_ok();
    let first = p.pass();
    assert!(fs::metadata(p.to("big")).unwrap().blocks() <= sparse + 4096);
    assert_eq!(
        fs::metadata(p.to("a/plain")).unwrap().ino(),
        fs::metadata(p.to("a/b/again")).unwrap().ino()
    );
    if attributes {
        let fd = fs::File::open(p.to("a/plain")).unwrap();
        let value = meta::xattr(fd.as_fd(), "user.origin").unwrap();
        assert_eq!(value.as_deref(), Some(&b"here"[..]));
    }
    assert!(first.bytes >= 1 << 20 && first.entries == 9, "{first:?}");
    std::thread::sleep(std::time::Duration::from_millis(150));
    p.pass();
    let quiet = p.pass();
    assert_eq!((quiet.bytes, quiet.changed), (0, 0), "nothing changed");
    // One block of a large file, a rename, a removal, another kind at the same path.
    big.write_all_at(b"x", 70_000).unwrap();
    fs::rename(p.from("a/empty"), p.from("a/renamed")).unwrap();
    fs::remove_file(p.from("a/plain")).unwrap();
    fs::remove_file(p.from("link")).unwrap();
    fs::create_dir(p.from("link")).unwrap();
    fs::write(p.from("link/inside"), b"1").unwrap();
    let delta = p.pass();
    // Blocks of so large a file are of 2 MiB.
    assert!(delta.bytes < 3 << 20, "{delta:?}");
    assert!(!p.to("a/plain").exists());
    assert_eq!(fs::read(p.to("a/b/again")).unwrap(), b"hello");
    assert!(p.to("link/inside").exists());
    // Sizes that shrink and grow, and a hole where data was.
    big.set_len(100_001).unwrap();
    p.pass();
    big.set_len(900_000).unwrap();
    beneath::punch(&big, 16 << 10, 16 << 10).unwrap();
    p.pass();
    fs::remove_file(p.from("big")).unwrap();
    p.pass();
    fs::remove_dir_all(p.from("a")).unwrap();
    p.pass();
    p.same();
}

#[test]
fn a_shared_mapping_is_looked_at_each_time() {
    let mut p = Pair::new();
    fs::write(p.from("db"), vec![1; 100_000]).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(150));
    p.pass();
    let mapped = HashSet::from([fs::metadata(p.from("db")).unwrap().ino()]);
    let mut seen = 0;
    p.walk
        .pass(&mapped, &mut |s| {
            seen += usize::from(matches!(s, State::End { .. }));
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, 1);
}

#[derive(Debug, Clone)]
enum Change {
    Write(u8, usize, usize, u8),
    Truncate(u8, usize),
    Remove(u8),
    Rename(u8, u8),
    Dir(u8),
    Link(u8, u8),
    Symlink(u8),
    Mode(u8, u32),
    Pass,
}

fn change() -> impl Strategy<Value = Change> {
    let n = || 0u8..6;
    prop_oneof![
        4 => (n(), 0usize..200_000, 1usize..40_000, any::<u8>())
            .prop_map(|(f, at, len, b)| Change::Write(f, at, len, b)),
        1 => (n(), 0usize..200_000).prop_map(|(f, len)| Change::Truncate(f, len)),
        1 => n().prop_map(Change::Remove),
        1 => (n(), n()).prop_map(|(a, b)| Change::Rename(a, b)),
        1 => n().prop_map(Change::Dir),
        1 => (n(), n()).prop_map(|(a, b)| Change::Link(a, b)),
        1 => n().prop_map(Change::Symlink),
        1 => (n(), 0u32..0o777).prop_map(|(f, m)| Change::Mode(f, m)),
        2 => Just(Change::Pass),
    ]
}

/// Six paths, half of them within directories that may come and go.
fn path(p: &Pair, n: u8) -> PathBuf {
    p.from(["a", "b", "d/c", "d/d", "d/e/f", "g"][usize::from(n)])
}

fn make(p: &Pair, c: &Change) {
    let parent = |at: &Path| fs::create_dir_all(at.parent().unwrap());
    // Not every change is possible in every state.
    match c {
        Change::Write(f, at, len, b) => {
            let to = path(p, *f);
            let _ = parent(&to);
            if let Ok(f) = fs::File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(to)
            {
                let _ = f.write_all_at(&vec![*b; *len], *at as u64);
            }
        }
        Change::Truncate(f, len) => {
            if let Ok(f) = fs::File::options().write(true).open(path(p, *f)) {
                let _ = f.set_len(*len as u64);
            }
        }
        Change::Remove(f) => {
            let at = path(p, *f);
            let _ = fs::remove_file(&at).or_else(|_| fs::remove_dir_all(&at));
        }
        Change::Rename(a, b) => {
            let to = path(p, *b);
            let _ = parent(&to);
            let _ = fs::rename(path(p, *a), to);
        }
        Change::Dir(f) => drop(fs::create_dir_all(path(p, *f))),
        Change::Link(a, b) => {
            let to = path(p, *b);
            let _ = parent(&to);
            let _ = fs::hard_link(path(p, *a), to);
        }
        Change::Symlink(f) => {
            let at = path(p, *f);
            let _ = parent(&at);
            // Never through it: that is for the hostile test.
            let _ = symlink("nowhere/at all", at);
        }
        Change::Mode(f, mode) => {
            let at = path(p, *f);
            if fs::symlink_metadata(&at).is_ok_and(|m| !m.is_symlink()) {
                let mode = fs::Permissions::from_mode(mode | 0o700);
                let _ = fs::set_permissions(at, mode);
            }
        }
        Change::Pass => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever happens between passes, the other side has it after the last one.
    #[test]
    fn both_sides_agree(changes in proptest::collection::vec(change(), 1..40)) {
        let mut p = Pair::new();
        for c in &changes {
            if matches!(c, Change::Pass) { p.pass(); } else { make(&p, c); }
        }
        p.pass();
        p.same();
    }

    /// Whatever is sent, nothing outside of the declared directory changes.
    #[test]
    fn hostile_state_stays_inside(states in proptest::collection::vec(state(), 1..30)) {
        let p = Pair::new();
        let outside = p.dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("f"), b"mine").unwrap();
        symlink(&outside, p.to("out")).unwrap();
        symlink(outside.join("f"), p.to("file")).unwrap();
        let before = (snapshot(&outside), snapshot(&p.dir.path().join("from")));
        let mut store = p.store;
        for s in states {
            if store.take(s).is_err() { break; }
        }
        let after = (snapshot(&outside), snapshot(&p.dir.path().join("from")));
        prop_assert_eq!(before, after);
        prop_assert_eq!(fs::read_dir(p.dir.path()).unwrap().count(), 3);
    }
}

fn state() -> impl Strategy<Value = State> {
    let path = || {
        prop::sample::select(vec![
            "",
            "out",
            "out/f",
            "out/new",
            "file",
            "a",
            "a/b",
            "..",
            "../outside/f",
            "/etc/x",
            "a/../..",
        ])
        .prop_map(|p| p.as_bytes().to_vec())
    };
    let what = prop_oneof![
        Just(What::Dir),
        (0u64..9000, any::<bool>()).prop_map(|(size, fresh)| What::File { size, fresh }),
        Just(What::Link(b"../outside".to_vec())),
        Just(What::Fifo),
        (0u8..2, path()).prop_map(|(dir, path)| What::Same { dir, path }),
    ];
    prop_oneof![
        1 => (0u8..2, path()).prop_map(|(dir, path)| State::Enter { dir, path }),
        3 => (path(), what).prop_map(|(path, what)| State::Entry {
            dir: 0, path, meta: Meta { mode: 0o755, ..Meta::default() }, what }),
        3 => (0u64..10_000, proptest::collection::vec(any::<u8>(), 0..50))
            .prop_map(|(offset, bytes)| State::Data { offset, bytes }),
        1 => (any::<u64>(), any::<u64>()).prop_map(|(offset, length)| State::Hole { offset, length }),
        1 => any::<u64>().prop_map(|sum| State::End { sum }),
        1 => path().prop_map(|path| State::Names { dir: 0, path, last: true, names: vec![] }),
        1 => Just(State::Pass { entries: 0, sum: 0 }),
    ]
}

#[test]
fn what_was_lost_on_the_way_is_noticed() {
    let mut p = Pair::new();
    fs::write(p.from("a"), b"1").unwrap();
    fs::write(p.from("b"), b"2").unwrap();
    let mut messages = Vec::new();
    p.walk
        .pass(&HashSet::new(), &mut |s| {
            messages.push(s);
            Ok(())
        })
        .unwrap();
    // Without file `b`: its entry, its content and its end.
    messages.drain(4..7);
    let end = messages.into_iter().try_for_each(|m| p.store.take(m));
    assert!(matches!(end, Err(StateError::Damaged(_))), "{end:?}");
}

#[test]
fn places_are_undone_or_settled() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: marks need root");
        return;
    }
    let t = tempfile::tempdir().unwrap();
    let (a, b) = (
        FeatureName::new("a").unwrap(),
        FeatureName::new("b").unwrap(),
    );
    // Made with what is above it, and gone again.
    let new = t.path().join("x/y/z");
    place::check(&new, &a, 0).unwrap();
    let made = place::prepare(&new, &a).unwrap();
    fs::write(new.join("f"), b"1").unwrap();
    place::check(&new, &a, 0).unwrap();
    assert!(place::check(&new, &b, 0).is_err(), "another feature's");
    place::undo(&made).unwrap();
    place::undo(&made).unwrap();
    assert!(!t.path().join("x").exists());
    // One that was there keeps its owner and mode.
    let there = t.path().join("there");
    fs::create_dir(&there).unwrap();
    fs::set_permissions(&there, fs::Permissions::from_mode(0o751)).unwrap();
    let before = snapshot(t.path());
    let made = place::prepare(&there, &a).unwrap();
    fs::set_permissions(&there, fs::Permissions::from_mode(0o700)).unwrap();
    fs::create_dir(there.join("d")).unwrap();
    place::undo(&made).unwrap();
    assert_eq!(fs::metadata(&there).unwrap().mode() & 0o7777, 0o751);
    assert_eq!(snapshot(t.path()).len(), before.len());
    // Settled it is the feature's, and nobody else's to fill.
    let made = place::prepare(&there, &a).unwrap();
    fs::write(there.join("f"), b"1").unwrap();
    place::settle(&made).unwrap();
    let e = place::check(&there, &a, 0).unwrap_err().to_string();
    assert!(e.contains("not empty"), "{e}");
    place::undo(&made).unwrap();
    assert!(there.join("f").exists(), "not ours to undo any more");
    place::remove(&there).unwrap();
    place::remove(&there).unwrap();
    assert!(!there.exists());
    let e = place::check(&there, &a, u64::MAX).unwrap_err().to_string();
    assert!(e.contains("free on the file system"), "{e}");
}
