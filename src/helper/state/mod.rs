//! State directories of a feature: its writable files, which move with it.
//!
//! ```text
//! source: walk --changed?--> messages of wire::state --in the round--> target: beneath the
//!   | stamp of each entry (inode, size, times, mode, owner)            declared directories only
//!   | sum of each block of each file
//! ```
//! Each pre-copy round carries a pass over the tree, the round of the freeze the last one. An
//! entry whose stamp is as before is not looked at again; of a file that changed only the blocks
//! with another sum are sent. Three kinds of change escape a stamp, and are met: a file changed
//! within the clock's granularity of being looked at (its stamp is not kept), a file changed by
//! a shared mapping (looked at in every pass), and what changes while a pass reads it (its times
//! do too, the next pass sees that, and during the last one nothing runs).
//!
//! Both sides sum up every entry with its content; a pass counts only when they agree.
//!
//! - `beneath`: system calls relative to a directory, never through a symbolic link.
//! - `meta`: owner, mode, times, extended attributes (access control lists are such).
//! - `walk`: the source's side. - `store`: the target's side. - `place`: where state arrives,
//!   marked until the feature runs there, and how that is undone.

pub mod beneath;
pub mod meta;
pub mod place;
pub mod store;
pub mod walk;

#[cfg(test)]
mod tests;

use std::io;

use crate::wire::state::{Meta, State, What};
use crate::wire::sum::{self, Sum};

/// Most entries of all state directories of a feature: what both sides keep of each is bounded.
pub const MAX_ENTRIES: usize = 200_000;
/// Bytes of a page: the unit in which zeroes do not count.
const PAGE: usize = 4096;

/// Why state was not sent or taken.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A system call failed.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Of what.
        path: String,
        /// Cause.
        source: io::Error,
    },
    /// The disk of the target is full.
    #[error(
        "no room left on the file system of {0} in the target guest; make room or move it elsewhere"
    )]
    NoRoom(String),
    /// Less is free at the target than the state takes.
    #[error("{0}")]
    Short(String),
    /// An entry that cannot be carried.
    #[error("{0} {1}")]
    Kind(String, &'static str),
    /// Too many entries.
    #[error(
        "the state directories have more than {MAX_ENTRIES} entries; pack them, or move the feature by other means"
    )]
    TooMany,
    /// A message does not fit what came before.
    #[error("the incoming state is inconsistent: {0}; start the move again")]
    Order(&'static str),
    /// Sums differ.
    #[error("{0} arrived damaged; start the move again")]
    Damaged(String),
    /// A directory that must not be written.
    #[error("{0}")]
    Refused(String),
    /// The port failed, or the move was given up.
    #[error("state was not sent: {0}")]
    Send(io::Error),
}

impl StateError {
    fn io(what: &'static str, path: &[u8]) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = shown(path);
        move |source| {
            if source.raw_os_error() == Some(nix::libc::ENOSPC)
                || source.raw_os_error() == Some(nix::libc::EDQUOT)
            {
                Self::NoRoom(path)
            } else {
                Self::Io { what, path, source }
            }
        }
    }
}

/// A path for messages.
fn shown(path: &[u8]) -> String {
    if path.is_empty() {
        "the state directory".to_owned()
    } else {
        String::from_utf8_lossy(path).into_owned()
    }
}

/// What is kept of an entry to find it again.
fn key(dir: u8, path: &[u8]) -> u64 {
    let mut sum = Sum::new();
    sum.update(&[dir]);
    sum.update(path);
    sum.finish()
}

/// Sum of an entry with everything that makes it; `content` is that of a file, else 0.
fn entry_sum(dir: u8, path: &[u8], meta: &Meta, what: &What, content: u64) -> u64 {
    let what = match what {
        What::File { size, .. } => What::File {
            size: *size,
            fresh: false,
        },
        other => other.clone(),
    };
    let message = State::Entry {
        dir,
        path: path.to_vec(),
        meta: meta.clone(),
        what,
    };
    let mut bytes = Vec::new();
    crate::wire::bulk::Message {
        stream: 0,
        body: crate::wire::bulk::Body::State(message),
    }
    .encode(&mut bytes);
    bytes.extend_from_slice(&content.to_le_bytes());
    sum::of(&bytes)
}

/// Sum of a stretch of a file that begins at `offset`, a multiple of the page size. Those of all
/// stretches add up to that of the file, so that for what is changed its old part can be taken off
/// and its new one added. What is a hole and what is zeroes makes no difference.
fn content_sum(offset: u64, bytes: &[u8]) -> u64 {
    let first = offset / PAGE as u64;
    let pages = bytes.chunks(PAGE).zip(first..);
    pages
        .filter(|(page, _)| !super::bulk::zero(page))
        .fold(0, |all, (page, number)| {
            // Two pages that change places must not cancel out.
            let h = sum::of(page) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            all.wrapping_add((h ^ (h >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93))
        })
}
