//! The source's side: walks the declared directories and tells what changed since the last pass.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::libc;

use super::beneath::{self, join};
use super::{MAX_ENTRIES, PAGE, StateError, content_sum, entry_sum, key, meta, shown};
use crate::helper::bulk::filled;
use crate::wire::state::{MAX_DEPTH, Meta, NAMES, State, What};
use crate::wire::sum::Sum;

/// Smallest block whose sum is kept, bytes.
const BLOCK: u64 = 16 << 10;
/// Blocks of one file at most; larger files have larger blocks.
const BLOCKS: u64 = 8192;
/// Sums of blocks kept in all: 4 MiB. Files beyond are sent whole when they change.
const SUMS: usize = 512 << 10;
/// Bytes of content in one message.
const PIECE: usize = 256 << 10;
/// A change so recent may not show in the times of another one after it, nanoseconds.
const RACY_NS: i128 = 100_000_000;

/// What is remembered of an entry.
#[derive(Debug)]
struct Known {
    /// Of its status; 0: look again in any case.
    stamp: u64,
    inode: u64,
    /// See [`entry_sum`].
    entry: u64,
    pass: u32,
    /// Sums of a file's blocks, 0 for a hole; `None` when they are not kept.
    blocks: Option<Blocks>,
}

/// Sums of the blocks of a file, and their size.
#[derive(Debug)]
struct Blocks {
    size: u64,
    sums: Box<[u64]>,
}

/// What a pass took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Passed {
    /// Bytes of content that were sent.
    pub bytes: u64,
    /// Entries in all.
    pub entries: u64,
    /// Entries that were sent.
    pub changed: u64,
}

/// The declared directories of a feature, and what is known at the other end.
#[derive(Debug)]
pub struct Walk {
    roots: Vec<PathBuf>,
    known: HashMap<u64, Known>,
    sums: usize,
    pass: u32,
}

/// A pass under way.
struct Pass<'a> {
    walk: &'a mut Walk,
    put: &'a mut dyn FnMut(State) -> io::Result<()>,
    /// Files that are changed by shared mappings.
    mapped: &'a HashSet<u64>,
    /// Files with several names: where the first one was.
    linked: HashMap<u64, (u8, Vec<u8>)>,
    device: u64,
    /// When the pass began, nanoseconds since the epoch.
    now: i128,
    passed: Passed,
}

impl Known {
    fn kept(&self) -> usize {
        self.blocks.as_ref().map_or(0, |b| b.sums.len())
    }
}

/// Status of an entry in a number; 0 is none.
fn stamp(s: &libc::stat, now: i128) -> u64 {
    let mut sum = Sum::new();
    for word in [
        s.st_dev,
        s.st_ino,
        u64::from(s.st_mode),
        u64::from(s.st_uid),
        u64::from(s.st_gid),
        s.st_size.cast_unsigned(),
        s.st_mtime.cast_unsigned(),
        s.st_mtime_nsec.cast_unsigned(),
        s.st_ctime.cast_unsigned(),
        s.st_ctime_nsec.cast_unsigned(),
    ] {
        sum.update(&word.to_le_bytes());
    }
    let changed = i128::from(s.st_ctime) * 1_000_000_000 + i128::from(s.st_ctime_nsec);
    if now - changed < RACY_NS {
        return 0;
    }
    sum.finish().max(1)
}

/// Size of the blocks of a file.
fn block_of(size: u64) -> u64 {
    size.div_ceil(BLOCKS).next_power_of_two().max(BLOCK)
}

impl Walk {
    /// Of these directories, with nothing known at the other end.
    pub fn new(roots: &[PathBuf]) -> Self {
        Self {
            roots: roots.to_vec(),
            known: HashMap::new(),
            sums: 0,
            pass: 0,
        }
    }

    /// Walks everything and gives `put` what the other end lacks. After an error the other end
    /// cannot be relied on: begin with a new walk.
    pub fn pass(
        &mut self,
        mapped: &HashSet<u64>,
        put: &mut dyn FnMut(State) -> io::Result<()>,
    ) -> Result<Passed, StateError> {
        self.pass += 1;
        let roots = self.roots.clone();
        let mut pass = Pass {
            walk: self,
            put,
            mapped,
            linked: HashMap::new(),
            device: 0,
            now: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_nanos().cast_signed()),
            passed: Passed::default(),
        };
        for (n, root) in roots.iter().enumerate() {
            let failed = |e| StateError::io("cannot open", root.as_os_str().as_encoded_bytes())(e);
            let fd = open_root(root).map_err(failed)?;
            pass.device = beneath::fstat(fd.as_fd()).map_err(failed)?.st_dev;
            pass.directory(fd.as_fd(), n as u8, b"", 0)
                .map_err(|e| within(e, root))?;
        }
        let mut passed = pass.passed;
        let now = self.pass;
        let mut freed = 0;
        self.known.retain(|_, k| {
            let here = k.pass == now;
            if !here {
                freed += k.kept();
            }
            here
        });
        self.sums -= freed;
        passed.entries = self.known.len() as u64;
        let sum = self
            .known
            .values()
            .fold(0, |s: u64, k| s.wrapping_add(k.entry));
        put(State::Pass {
            entries: passed.entries,
            sum,
        })
        .map_err(StateError::Send)?;
        Ok(passed)
    }
}

/// Opens a declared directory itself; links above it are the guest's own affair.
pub fn open_root(root: &Path) -> io::Result<OwnedFd> {
    let mut options = File::options();
    options.read(true);
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC,
    );
    Ok(options.open(root)?.into())
}

/// Names the declared directory in an error about something in it.
fn within(e: StateError, root: &Path) -> StateError {
    let full = |p: String| {
        if p.starts_with('/') {
            p
        } else if p == shown(b"") {
            root.display().to_string()
        } else {
            root.join(p).display().to_string()
        }
    };
    match e {
        StateError::Io { what, path, source } => StateError::Io {
            what,
            path: full(path),
            source,
        },
        StateError::Kind(path, what) => StateError::Kind(full(path), what),
        other => other,
    }
}

impl Pass<'_> {
    fn put(&mut self, state: State) -> Result<(), StateError> {
        (self.put)(state).map_err(StateError::Send)
    }

    /// Whether an entry is as it was; it then stays known.
    fn same(&mut self, key: u64, stamp: u64) -> bool {
        let pass = self.walk.pass;
        match self.walk.known.get_mut(&key) {
            Some(k) => {
                k.pass = pass;
                k.stamp == stamp && stamp != 0
            }
            None => false,
        }
    }

    fn remember(&mut self, key: u64, known: Known) -> Result<(), StateError> {
        self.passed.changed += 1;
        self.walk.sums += known.kept();
        let before = self.walk.known.insert(key, known);
        self.walk.sums -= before.map_or(0, |k| k.kept());
        if self.walk.known.len() > MAX_ENTRIES {
            return Err(StateError::TooMany);
        }
        Ok(())
    }

    fn directory(
        &mut self,
        fd: BorrowedFd<'_>,
        dir: u8,
        path: &[u8],
        depth: usize,
    ) -> Result<(), StateError> {
        let status = beneath::fstat(fd).map_err(StateError::io("cannot look at", path))?;
        if status.st_dev != self.device {
            return Err(StateError::Kind(
                shown(path),
                "is on another file system than its state directory; declare it on its own",
            ));
        }
        if depth >= MAX_DEPTH {
            return Err(StateError::Kind(shown(path), "is nested too deep"));
        }
        let (key, mut stamp) = (key(dir, path), stamp(&status, self.now));
        let was_known = self.walk.known.contains_key(&key);
        let mut changed = !self.same(key, stamp);
        if changed {
            self.put(State::Enter {
                dir,
                path: path.to_vec(),
            })?;
        }
        let mut names =
            beneath::names(fd, MAX_ENTRIES).map_err(StateError::io("cannot list", path))?;
        if names.len() > MAX_ENTRIES {
            return Err(StateError::TooMany);
        }
        names.sort();
        let mut here = Vec::with_capacity(names.len());
        for name in names {
            if self.entry(fd, dir, path, &name, depth)? {
                here.push(name);
            } else {
                // Gone since it was listed: it goes at the other end too, now.
                (changed, stamp) = (true, 0);
            }
        }
        if !changed {
            return Ok(());
        }
        // A new directory is empty at the other end but for what was just sent.
        if was_known {
            self.names(dir, path, here)?;
        }
        let mut meta = meta::of(&status);
        meta.xattrs =
            meta::xattrs(fd).map_err(StateError::io("cannot read attributes of", path))?;
        self.tell(dir, path, meta, What::Dir, (key, stamp, status.st_ino))
    }

    /// Sends an entry that is told whole by its attributes, and remembers it as sent.
    fn tell(
        &mut self,
        dir: u8,
        path: &[u8],
        meta: Meta,
        what: What,
        (key, stamp, inode): (u64, u64, u64),
    ) -> Result<(), StateError> {
        let entry = entry_sum(dir, path, &meta, &what, 0);
        self.put(State::Entry {
            dir,
            path: path.to_vec(),
            meta,
            what,
        })?;
        let pass = self.walk.pass;
        self.remember(
            key,
            Known {
                stamp,
                inode,
                entry,
                pass,
                blocks: None,
            },
        )
    }

    fn names(&mut self, dir: u8, path: &[u8], names: Vec<Vec<u8>>) -> Result<(), StateError> {
        let (mut some, mut bytes) = (Vec::new(), 0);
        for name in names {
            bytes += name.len() + 2;
            some.push(name);
            if bytes > NAMES {
                self.put(State::Names {
                    dir,
                    path: path.to_vec(),
                    last: false,
                    names: std::mem::take(&mut some),
                })?;
                bytes = 0;
            }
        }
        self.put(State::Names {
            dir,
            path: path.to_vec(),
            last: true,
            names: some,
        })
    }

    /// Takes what is at a name; false when it is gone.
    fn entry(
        &mut self,
        fd: BorrowedFd<'_>,
        dir: u8,
        above: &[u8],
        name: &[u8],
        depth: usize,
    ) -> Result<bool, StateError> {
        let path = join(above, name);
        let failed = |what| StateError::io(what, &path);
        let Some(status) = beneath::stat(fd, name).map_err(failed("cannot look at"))? else {
            return Ok(false);
        };
        match beneath::kind(&status) {
            libc::S_IFDIR => {
                let flags = libc::O_RDONLY | libc::O_DIRECTORY;
                match beneath::open(fd, name, flags, 0) {
                    Ok(inside) => {
                        self.directory(inside.as_fd(), dir, &path, depth + 1)?;
                        Ok(true)
                    }
                    Err(e) if gone(&e) => Ok(false),
                    Err(e) if e.raw_os_error() == Some(libc::EXDEV) => Err(StateError::Kind(
                        shown(&path),
                        "is on another file system than its state directory; declare it on its own",
                    )),
                    Err(e) => Err(failed("cannot open")(e)),
                }
            }
            // Most are as they were, and then need not be opened.
            libc::S_IFREG if self.unchanged(dir, &path, &status) => Ok(true),
            libc::S_IFREG => self.file(fd, dir, &path, name),
            libc::S_IFLNK => {
                let to = match beneath::read_link(fd, name) {
                    Ok(to) => to,
                    Err(e) if gone(&e) => return Ok(false),
                    Err(e) => return Err(failed("cannot read the link")(e)),
                };
                self.plain(dir, &path, &status, What::Link(to))
            }
            libc::S_IFIFO => self.plain(dir, &path, &status, What::Fifo),
            // Made anew by whoever listens, criu included.
            libc::S_IFSOCK => Ok(true),
            _ => Err(StateError::Kind(
                shown(&path),
                "is a device; it cannot be part of a feature's state",
            )),
        }
    }

    /// Whether a file with one name is known to be as before, by its status alone.
    fn unchanged(&mut self, dir: u8, path: &[u8], status: &libc::stat) -> bool {
        let stamp = stamp(status, self.now);
        if stamp == 0 || status.st_nlink > 1 || self.mapped.contains(&status.st_ino) {
            return false;
        }
        let known = self.walk.known.get_mut(&key(dir, path));
        let Some(known) = known.filter(|k| k.stamp == stamp) else {
            return false;
        };
        known.pass = self.walk.pass;
        true
    }

    fn plain(
        &mut self,
        dir: u8,
        path: &[u8],
        status: &libc::stat,
        what: What,
    ) -> Result<bool, StateError> {
        let (key, stamp) = (key(dir, path), stamp(status, self.now));
        if self.same(key, stamp) {
            return Ok(true);
        }
        let meta = meta::of(status);
        self.tell(dir, path, meta, what, (key, stamp, status.st_ino))?;
        Ok(true)
    }

    fn file(
        &mut self,
        fd: BorrowedFd<'_>,
        dir: u8,
        path: &[u8],
        name: &[u8],
    ) -> Result<bool, StateError> {
        let failed = |what| StateError::io(what, path);
        let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOATIME;
        let file: File = match beneath::open(fd, name, flags, 0) {
            Ok(f) => f.into(),
            Err(e) if gone(&e) => return Ok(false),
            Err(e) => return Err(failed("cannot open")(e)),
        };
        let status = beneath::fstat(file.as_fd()).map_err(failed("cannot look at"))?;
        if beneath::kind(&status) != libc::S_IFREG {
            return Ok(false); // replaced meanwhile: seen by the next pass
        }
        let inode = status.st_ino;
        if status.st_nlink > 1 {
            if let Some((d, p)) = self.linked.get(&inode) {
                let what = What::Same {
                    dir: *d,
                    path: p.clone(),
                };
                return self.plain(dir, path, &status, what);
            }
            self.linked.insert(inode, (dir, path.to_vec()));
        }
        let key = key(dir, path);
        let mapped = self.mapped.contains(&inode);
        let stamp = if mapped { 0 } else { stamp(&status, self.now) };
        if self.same(key, stamp) {
            return Ok(true);
        }
        let size = status.st_size.cast_unsigned();
        let known = self.walk.known.get_mut(&key);
        let before = known
            .filter(|k| k.inode == inode)
            .and_then(|k| k.blocks.take());
        self.walk.sums -= before.as_ref().map_or(0, |b| b.sums.len());
        let before = before.filter(|b| b.size == block_of(size));
        let fresh = before.is_none();
        let mut meta = meta::of(&status);
        meta.xattrs = meta::xattrs(file.as_fd()).map_err(failed("cannot read attributes of"))?;
        let what = What::File { size, fresh };
        self.put(State::Entry {
            dir,
            path: path.to_vec(),
            meta: meta.clone(),
            what: what.clone(),
        })?;
        let (content, blocks) =
            self.content(&file, path, size, before.as_ref().map(|b| &*b.sums))?;
        self.put(State::End { sum: content })?;
        let entry = entry_sum(dir, path, &meta, &what, content);
        let keep = self.walk.sums + blocks.len() <= SUMS;
        let pass = self.walk.pass;
        self.remember(
            key,
            Known {
                stamp,
                inode,
                entry,
                pass,
                blocks: keep.then(|| Blocks {
                    size: block_of(size),
                    sums: blocks.into_boxed_slice(),
                }),
            },
        )?;
        Ok(true)
    }

    /// Sends the blocks that differ from `before`; the sum of the content, and of each block.
    fn content(
        &mut self,
        file: &File,
        path: &[u8],
        size: u64,
        before: Option<&[u64]>,
    ) -> Result<(u64, Vec<u64>), StateError> {
        let failed = |e| StateError::io("cannot read", path)(e);
        let block = block_of(size);
        let count = size.div_ceil(block);
        let mut content = 0_u64;
        let mut sums = vec![0; count as usize];
        let mut piece: (u64, Vec<u8>) = (0, Vec::new());
        let mut buffer = vec![0_u8; block as usize];
        let mut data = 0..0; // the stretch of data that is known to be ahead or around
        for n in 0..count {
            let at = n * block;
            let length = block.min(size - at);
            if data.end <= at {
                let start = beneath::next_data(file, at).map_err(failed)?;
                let start = start.unwrap_or(u64::MAX);
                let end = if start == u64::MAX {
                    u64::MAX
                } else {
                    beneath::next_hole(file, start)
                        .map_err(failed)?
                        .unwrap_or(size)
                };
                data = start..end.max(start.saturating_add(1));
            }
            let old = before.and_then(|b| b.get(n as usize)).copied();
            if data.start >= at + length {
                // A hole, as a new file is at the other end.
                if before.is_some() && old != Some(0) {
                    self.flush(&mut piece)?;
                    self.put(State::Hole { offset: at, length })?;
                }
                continue;
            }
            let bytes = &mut buffer[..length as usize];
            fill(file, bytes, at).map_err(failed)?;
            let sum = content_sum(at, bytes);
            content = content.wrapping_add(sum);
            sums[n as usize] = sum;
            if old == Some(sum) {
                continue;
            }
            // What is new at the other end begins as a hole, so zeroes need not be sent.
            let parts = if before.is_none() {
                filled(bytes)
            } else {
                std::iter::once(0..bytes.len()).collect()
            };
            for part in parts {
                self.add(&mut piece, at + part.start as u64, &bytes[part])?;
            }
        }
        self.flush(&mut piece)?;
        Ok((content, sums))
    }

    /// Adds bytes to the piece that is gathered, sending it when they do not fit.
    fn add(
        &mut self,
        piece: &mut (u64, Vec<u8>),
        mut at: u64,
        bytes: &[u8],
    ) -> Result<(), StateError> {
        for part in bytes.chunks(PIECE) {
            if piece.0 + piece.1.len() as u64 != at || piece.1.len() + part.len() > PIECE {
                self.flush(piece)?;
                piece.0 = at;
            }
            piece.1.extend_from_slice(part);
            at += part.len() as u64;
        }
        Ok(())
    }

    fn flush(&mut self, piece: &mut (u64, Vec<u8>)) -> Result<(), StateError> {
        if piece.1.is_empty() {
            return Ok(());
        }
        self.passed.bytes += piece.1.len() as u64;
        let (offset, bytes) = (piece.0, std::mem::take(&mut piece.1));
        piece.0 += bytes.len() as u64;
        self.put(State::Data { offset, bytes })
    }
}

/// Reads a block; what the file lacks by now is zeroes.
fn fill(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    let mut have = 0;
    while have < bytes.len() {
        match file.read_at(&mut bytes[have..], at + have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    bytes[have..].fill(0);
    debug_assert!(at.is_multiple_of(PAGE as u64));
    Ok(())
}

/// Whether an entry went away or became something else since it was listed.
fn gone(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(libc::ENOENT | libc::ELOOP | libc::ENOTDIR | libc::EINVAL)
    )
}
