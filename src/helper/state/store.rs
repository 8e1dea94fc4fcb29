//! The target's side: makes the declared directories what the messages say, and nothing else.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::libc;

use super::beneath;
use super::walk::open_root;
use super::{MAX_ENTRIES, PAGE, StateError, content_sum, entry_sum, key, meta, shown};
use crate::wire::state::{MAX_PATH, Meta, State, What};

/// Bytes read at a time when a file is checked.
const READ: usize = 256 << 10;

/// A file under way.
#[derive(Debug)]
struct Open {
    dir: u8,
    path: Vec<u8>,
    meta: Meta,
    what: What,
    size: u64,
    file: File,
    /// Sum of its content as it stands; `None` when that must be read.
    content: Option<u64>,
}

/// What is remembered of an entry.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// See [`entry_sum`].
    entry: u64,
    /// Size of a file and sum of its content.
    content: Option<(u64, u64)>,
}

/// Names of a directory so far.
#[derive(Debug)]
struct Listing {
    dir: u8,
    path: Vec<u8>,
    names: HashSet<Vec<u8>>,
}

/// The declared directories of a feature that arrives.
#[derive(Debug)]
pub struct Store {
    roots: Vec<(PathBuf, OwnedFd)>,
    known: HashMap<u64, Known>,
    open: Option<Open>,
    listing: Option<Listing>,
    complete: bool,
}

impl Store {
    /// Opens the directories, which are there.
    pub fn new(roots: &[PathBuf]) -> Result<Self, StateError> {
        let open = |p: &PathBuf| match open_root(p) {
            Ok(fd) => Ok((p.clone(), fd)),
            Err(e) => Err(StateError::io(
                "cannot open",
                p.as_os_str().as_encoded_bytes(),
            )(e)),
        };
        Ok(Self {
            roots: roots.iter().map(open).collect::<Result<_, _>>()?,
            known: HashMap::new(),
            open: None,
            listing: None,
            complete: false,
        })
    }

    /// Whether a pass was completed since this was asked last.
    pub fn take_complete(&mut self) -> bool {
        std::mem::take(&mut self.complete)
    }

    /// Takes a message. After an error nothing more may be taken.
    pub fn take(&mut self, state: State) -> Result<(), StateError> {
        self.step(state).map_err(|e| match e {
            // Only one of several roots: named as well as it can be.
            StateError::NoRoom(_) => StateError::NoRoom(
                self.roots
                    .first()
                    .map_or_else(String::new, |(p, _)| p.display().to_string()),
            ),
            other => other,
        })
    }

    fn step(&mut self, state: State) -> Result<(), StateError> {
        let inside = matches!(
            state,
            State::Data { .. } | State::Hole { .. } | State::End { .. }
        );
        if inside != self.open.is_some() {
            return Err(StateError::Order("content outside of a file"));
        }
        match state {
            State::Enter { dir, path } => self.enter(dir, &path),
            State::Entry {
                dir,
                path,
                meta,
                what,
            } => self.entry(dir, path, meta, what),
            State::Data { offset, bytes } => {
                let o = self.at(offset, bytes.len() as u64)?;
                let failed = StateError::io("cannot write", &o.path);
                o.exchange(offset, bytes.len() as u64, |file| {
                    file.write_all_at(&bytes, offset)
                })
                .map_err(failed)
            }
            State::Hole { offset, length } => {
                let o = self.at(offset, length)?;
                let failed = StateError::io("cannot make a hole in", &o.path);
                o.exchange(offset, length, |file| beneath::punch(file, offset, length))
                    .map_err(failed)
            }
            State::End { sum } => self.end(sum),
            State::Names {
                dir,
                path,
                last,
                names,
            } => self.names(dir, path, last, names),
            State::Pass { entries, sum } => self.pass(entries, sum),
        }
    }

    fn at(&mut self, offset: u64, length: u64) -> Result<&mut Open, StateError> {
        let end = offset.checked_add(length);
        self.open
            .as_mut()
            .filter(|o| end.is_some_and(|e| e <= o.size))
            .ok_or(StateError::Order("content beyond the end of a file"))
    }

    fn root(&self, dir: u8) -> Result<BorrowedFd<'_>, StateError> {
        self.roots
            .get(usize::from(dir))
            .map(|(_, fd)| fd.as_fd())
            .ok_or(StateError::Order("a directory that was not declared"))
    }

    /// Removes what is at a path, and forgets it.
    fn remove(&mut self, dir: u8, path: &[u8]) -> Result<(), StateError> {
        let mut keys = Vec::new();
        {
            let root = self.root(dir)?;
            let (above, name) =
                beneath::parent(root, path).map_err(StateError::io("cannot reach", path))?;
            beneath::remove(above.as_fd(), name, path, &mut |p| keys.push(key(dir, p)))
                .map_err(StateError::io("cannot remove", path))?;
        }
        for k in keys {
            self.known.remove(&k);
        }
        Ok(())
    }

    /// The kind of what is at a path.
    fn kind(&self, dir: u8, path: &[u8]) -> Result<Option<u32>, StateError> {
        let root = self.root(dir)?;
        if path.is_empty() {
            return Ok(Some(libc::S_IFDIR));
        }
        let failed = |e| StateError::io("cannot look at", path)(e);
        let (above, name) = beneath::parent(root, path).map_err(failed)?;
        let found = beneath::stat(above.as_fd(), name).map_err(failed)?;
        Ok(found.map(|s| beneath::kind(&s)))
    }

    fn enter(&mut self, dir: u8, path: &[u8]) -> Result<(), StateError> {
        match self.kind(dir, path)? {
            Some(libc::S_IFDIR) => return Ok(()),
            Some(_) => self.remove(dir, path)?,
            None => {}
        }
        let failed = |e| StateError::io("cannot make", path)(e);
        let (above, name) = beneath::parent(self.root(dir)?, path).map_err(failed)?;
        beneath::make_dir(above.as_fd(), name).map_err(failed)
    }

    fn remember(&mut self, dir: u8, path: &[u8], known: Known) -> Result<(), StateError> {
        self.known.insert(key(dir, path), known);
        if self.known.len() > MAX_ENTRIES {
            return Err(StateError::TooMany);
        }
        Ok(())
    }

    fn entry(&mut self, dir: u8, path: Vec<u8>, meta: Meta, what: What) -> Result<(), StateError> {
        if path.is_empty() && what != What::Dir {
            return Err(StateError::Order("a state directory that is none"));
        }
        match what {
            What::Dir => {
                let failed = |e| StateError::io("cannot set owner and mode of", &path)(e);
                let flags = libc::O_RDONLY | libc::O_DIRECTORY;
                let fd = beneath::open(self.root(dir)?, &path, flags, 0).map_err(failed)?;
                meta::apply(fd.as_fd(), &meta).map_err(failed)?;
            }
            What::File { size, fresh } => {
                let there = self.kind(dir, &path)?;
                if there.is_some() && (fresh || there != Some(libc::S_IFREG)) {
                    self.remove(dir, &path)?;
                }
                if there != Some(libc::S_IFREG) && !fresh {
                    return Err(StateError::Order("changes of a file that is not here"));
                }
                let failed = |e| StateError::io("cannot write", &path)(e);
                let flags = if fresh {
                    libc::O_RDWR | libc::O_CREAT | libc::O_EXCL
                } else {
                    libc::O_RDWR
                };
                let fd = beneath::open(self.root(dir)?, &path, flags, 0o600).map_err(failed)?;
                let file = File::from(fd);
                let known = self.known.get(&key(dir, &path)).and_then(|k| k.content);
                let content = match known {
                    _ if fresh => Some(0),
                    Some((was, sum)) if was == size => Some(sum),
                    _ => None,
                };
                file.set_len(size).map_err(failed)?;
                self.open = Some(Open {
                    dir,
                    path,
                    meta,
                    what,
                    size,
                    file,
                    content,
                });
                return Ok(());
            }
            What::Link(ref to) => {
                self.remove(dir, &path)?;
                let failed = |e| StateError::io("cannot make the link", &path)(e);
                let (above, name) = beneath::parent(self.root(dir)?, &path).map_err(failed)?;
                beneath::make_link(above.as_fd(), name, to).map_err(failed)?;
                meta::apply_at(above.as_fd(), name, &meta, true).map_err(failed)?;
            }
            What::Fifo => {
                self.remove(dir, &path)?;
                let failed = |e| StateError::io("cannot make the pipe", &path)(e);
                let (above, name) = beneath::parent(self.root(dir)?, &path).map_err(failed)?;
                beneath::make_fifo(above.as_fd(), name).map_err(failed)?;
                meta::apply_at(above.as_fd(), name, &meta, false).map_err(failed)?;
            }
            What::Same {
                dir: other,
                path: ref first,
            } => self.same(dir, &path, other, first)?,
        }
        let entry = entry_sum(dir, &path, &meta, &what, 0);
        let content = None;
        self.remember(dir, &path, Known { entry, content })
    }

    /// Makes `path` another name of the file at `first`.
    fn same(&mut self, dir: u8, path: &[u8], other: u8, first: &[u8]) -> Result<(), StateError> {
        let failed = |e| StateError::io("cannot make the hard link", path)(e);
        let found = |s: &Self, d: u8, p: &[u8]| {
            let (above, name) = beneath::parent(s.root(d)?, p).map_err(failed)?;
            beneath::stat(above.as_fd(), name).map_err(failed)
        };
        let original = found(self, other, first)?;
        let Some(original) = original.filter(|s| beneath::kind(s) == libc::S_IFREG) else {
            return Err(StateError::Order("another name of a file that is not here"));
        };
        let there = found(self, dir, path)?;
        if there.is_some_and(|s| (s.st_dev, s.st_ino) == (original.st_dev, original.st_ino)) {
            return Ok(());
        }
        self.remove(dir, path)?;
        let (from, from_name) = beneath::parent(self.root(other)?, first).map_err(failed)?;
        let (to, to_name) = beneath::parent(self.root(dir)?, path).map_err(failed)?;
        beneath::link((from.as_fd(), from_name), (to.as_fd(), to_name)).map_err(failed)
    }

    fn end(&mut self, sum: u64) -> Result<(), StateError> {
        let Some(o) = self.open.take() else {
            return Err(StateError::Order("the end of no file"));
        };
        let content = match o.content {
            Some(sum) => sum,
            None => stretch(&o.file, 0, o.size).map_err(StateError::io("cannot read", &o.path))?,
        };
        if content != sum {
            return Err(StateError::Damaged(shown(&o.path)));
        }
        meta::apply(o.file.as_fd(), &o.meta)
            .map_err(StateError::io("cannot set owner and mode of", &o.path))?;
        let entry = entry_sum(o.dir, &o.path, &o.meta, &o.what, content);
        let content = Some((o.size, content));
        self.remember(o.dir, &o.path, Known { entry, content })
    }

    fn names(
        &mut self,
        dir: u8,
        path: Vec<u8>,
        last: bool,
        names: Vec<Vec<u8>>,
    ) -> Result<(), StateError> {
        let mut listing = match self.listing.take() {
            Some(l) if l.dir == dir && l.path == path => l,
            Some(_) => return Err(StateError::Order("a listing within another one")),
            None => Listing {
                dir,
                path,
                names: HashSet::new(),
            },
        };
        listing.names.extend(names);
        if listing.names.len() > MAX_ENTRIES {
            return Err(StateError::TooMany);
        }
        if !last {
            self.listing = Some(listing);
            return Ok(());
        }
        let here = {
            let failed = |e| StateError::io("cannot list", &listing.path)(e);
            let flags = libc::O_RDONLY | libc::O_DIRECTORY;
            let fd = beneath::open(self.root(dir)?, &listing.path, flags, 0).map_err(failed)?;
            beneath::names(fd.as_fd(), usize::MAX).map_err(failed)?
        };
        for name in here {
            if !listing.names.contains(&name) {
                let path = beneath::join(&listing.path, &name);
                if path.len() <= MAX_PATH {
                    self.remove(dir, &path)?;
                }
            }
        }
        Ok(())
    }

    fn pass(&mut self, entries: u64, sum: u64) -> Result<(), StateError> {
        if self.listing.is_some() {
            return Err(StateError::Order("a pass that ends within a listing"));
        }
        let here = self
            .known
            .values()
            .fold(0, |s: u64, k| s.wrapping_add(k.entry));
        if (self.known.len() as u64, here) != (entries, sum) {
            let (path, _) = self
                .roots
                .first()
                .ok_or(StateError::Order("no directory"))?;
            return Err(StateError::Damaged(format!(
                "the state below {}",
                path.display()
            )));
        }
        for (path, fd) in &self.roots {
            // SAFETY: syncfs takes a descriptor only.
            if unsafe { libc::syncfs(fd.as_raw_fd()) } != 0 {
                let e = std::io::Error::last_os_error();
                return Err(StateError::io(
                    "cannot write to disk",
                    path.as_os_str().as_encoded_bytes(),
                )(e));
            }
        }
        self.complete = true;
        Ok(())
    }
}

impl Open {
    /// Changes a stretch of the file, and its sum with it: what is there afterwards is read back.
    fn exchange(
        &mut self,
        offset: u64,
        length: u64,
        change: impl FnOnce(&File) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let page = PAGE as u64;
        let from = offset - offset % page;
        let to = (offset + length).next_multiple_of(page).min(self.size);
        let before = match self.content {
            Some(sum) => Some(sum.wrapping_sub(stretch(&self.file, from, to)?)),
            None => None,
        };
        change(&self.file)?;
        if let Some(rest) = before {
            self.content = Some(rest.wrapping_add(stretch(&self.file, from, to)?));
        }
        Ok(())
    }
}

/// Sum of a stretch of a file, from a multiple of the page size; holes are passed over.
fn stretch(file: &File, from: u64, to: u64) -> std::io::Result<u64> {
    let mut content = 0_u64;
    let mut buffer = vec![0; READ.min((to - from) as usize)];
    let mut at = from;
    while let Some(start) = beneath::next_data(file, at)?.filter(|s| *s < to) {
        // In whole pages, as the other end counts them.
        at = start - start % PAGE as u64;
        let end = beneath::next_hole(file, start)?.unwrap_or(to).min(to);
        while at < end {
            let n = (to - at).min(READ as u64) as usize;
            file.read_exact_at(&mut buffer[..n], at)?;
            content = content.wrapping_add(content_sum(at, &buffer[..n]));
            at += n as u64;
        }
        // `at` may have run into a hole and beyond: its zeroes count nothing.
        if at >= to {
            break;
        }
    }
    Ok(content)
}
