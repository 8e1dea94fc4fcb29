//! State directories in a round: what a tree has that the other side lacks, in the order of a walk.
//!
//! Per directory that changed: `Enter`, what is in it, `Names` (whatever else is there goes), its
//! own `Entry` last, so that its times stay. Per file that changed: `Entry`, pieces, `End` with
//! the sum of all of it. Directories and files that did not change are not mentioned. A pass ends
//! with the number and the sum of all entries, changed or not. Pure.
//!
//! ```text
//! u8 kind | u8 dir | kind 1 Enter: path | 2 Entry: path, meta, u8 what ... | 3 Data: u64 offset,
//! bytes to the end | 4 Hole: u64 offset, u64 length | 5 End: u64 sum | 6 Names: path, u8 last,
//! names | 7 Pass: u64 entries, u64 sum
//! ```
//! A path or name is behind its u16 length, relative to the declared directory of number `dir`.

use super::bulk::{BulkError, Reader};

/// Longest path, bytes.
pub const MAX_PATH: usize = 4096;
/// Deepest path, components.
pub const MAX_DEPTH: usize = 64;
/// Most bytes of extended attributes of one entry: what a frame has room for.
pub const MAX_XATTRS: usize = 256 << 10;
/// Bytes of names in one message.
pub const NAMES: usize = 64 << 10;

/// Who may do what with an entry, and when it changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// Permission bits, those of setuid, setgid and sticky included.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification, seconds since the epoch.
    pub mtime_s: i64,
    /// Nanoseconds of it.
    pub mtime_ns: u32,
    /// Extended attributes, access control lists included: (name, value).
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A directory, which was entered before.
    Dir,
    /// A file; pieces and `End` follow.
    File {
        /// Bytes.
        size: u64,
        /// Not the file that was at this path before: begins as one hole.
        fresh: bool,
    },
    /// A symbolic link, never followed.
    Link(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// Another name of a file that came before.
    Same {
        /// Its directory.
        dir: u8,
        /// Its path.
        path: Vec<u8>,
    },
}

/// One message about state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Make this a directory if it is none.
    Enter {
        /// Directory number.
        dir: u8,
        /// Path; empty: the declared directory itself.
        path: Vec<u8>,
    },
    /// An entry as it shall be.
    Entry {
        /// Directory number.
        dir: u8,
        /// Path.
        path: Vec<u8>,
        /// Owner, mode, times, attributes.
        meta: Meta,
        /// Kind.
        what: What,
    },
    /// Content of the file under way.
    Data {
        /// Where.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// No content here in the file under way.
    Hole {
        /// Where.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// The file under way is complete.
    End {
        /// Sum of all of its content, see `helper::state`.
        sum: u64,
    },
    /// All names in a directory.
    Names {
        /// Directory number.
        dir: u8,
        /// Path.
        path: Vec<u8>,
        /// No further message with names of it follows.
        last: bool,
        /// Some of the names.
        names: Vec<Vec<u8>>,
    },
    /// All directories were walked.
    Pass {
        /// Entries in all.
        entries: u64,
        /// Sum over all of them.
        sum: u64,
    },
}

/// Whether a path stays where it should: relative, plain components, not too long or deep.
pub fn valid_path(path: &[u8]) -> bool {
    path.is_empty()
        || (path.len() <= MAX_PATH
            && path.split(|b| *b == b'/').count() <= MAX_DEPTH
            && path.split(|b| *b == b'/').all(valid_component))
}

/// Whether this is the name of something in a directory.
pub fn valid_component(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name != b"."
        && name != b".."
        && !name.iter().any(|b| *b == b'/' || *b == 0)
}

fn short(out: &mut Vec<u8>, bytes: &[u8]) {
    let n = bytes.len().min(usize::from(u16::MAX));
    out.extend_from_slice(&(n as u16).to_le_bytes());
    out.extend_from_slice(&bytes[..n]);
}

fn text(r: &mut Reader<'_>) -> Result<Vec<u8>, BulkError> {
    let n = usize::from(r.u16()?);
    Ok(r.bytes(n)?.to_vec())
}

fn path(r: &mut Reader<'_>) -> Result<Vec<u8>, BulkError> {
    let p = text(r)?;
    if valid_path(&p) {
        Ok(p)
    } else {
        Err(BulkError::Name)
    }
}

impl Meta {
    fn encode(&self, out: &mut Vec<u8>) {
        for word in [self.mode, self.uid, self.gid, self.mtime_ns] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.mtime_s.to_le_bytes());
        out.extend_from_slice(&(self.xattrs.len() as u16).to_le_bytes());
        for (name, value) in &self.xattrs {
            short(out, name);
            out.extend_from_slice(&(value.len() as u32).to_le_bytes());
            out.extend_from_slice(value);
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, BulkError> {
        let mut meta = Self {
            mode: r.u32()? & 0o7777,
            uid: r.u32()?,
            gid: r.u32()?,
            mtime_ns: r.u32()?,
            mtime_s: r.u64()?.cast_signed(),
            xattrs: Vec::new(),
        };
        for _ in 0..r.u16()? {
            let name = text(r)?;
            if name.is_empty() || name.len() > 255 || name.contains(&0) {
                return Err(BulkError::Name);
            }
            let n = r.u32()? as usize;
            meta.xattrs.push((name, r.bytes(n)?.to_vec()));
        }
        Ok(meta)
    }
}

impl State {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Enter { dir, path } => {
                out.extend_from_slice(&[1, *dir]);
                short(out, path);
            }
            Self::Entry {
                dir,
                path,
                meta,
                what,
            } => {
                out.extend_from_slice(&[2, *dir]);
                short(out, path);
                meta.encode(out);
                what.encode(out);
            }
            Self::Data { offset, bytes } => {
                out.extend_from_slice(&[3, 0]);
                out.extend_from_slice(&offset.to_le_bytes());
                out.extend_from_slice(bytes);
            }
            Self::Hole { offset, length } => {
                out.extend_from_slice(&[4, 0]);
                out.extend_from_slice(&offset.to_le_bytes());
                out.extend_from_slice(&length.to_le_bytes());
            }
            Self::End { sum } => {
                out.extend_from_slice(&[5, 0]);
                out.extend_from_slice(&sum.to_le_bytes());
            }
            Self::Names {
                dir,
                path,
                last,
                names,
            } => {
                out.extend_from_slice(&[6, *dir]);
                short(out, path);
                out.push(u8::from(*last));
                for name in names {
                    short(out, name);
                }
            }
            Self::Pass { entries, sum } => {
                out.extend_from_slice(&[7, 0]);
                out.extend_from_slice(&entries.to_le_bytes());
                out.extend_from_slice(&sum.to_le_bytes());
            }
        }
    }

    pub(super) fn decode(r: &mut Reader<'_>) -> Result<Self, BulkError> {
        let (kind, dir) = (r.u8()?, r.u8()?);
        Ok(match kind {
            1 => Self::Enter {
                dir,
                path: path(r)?,
            },
            2 => {
                let path = path(r)?;
                let (meta, what) = (Meta::decode(r)?, What::decode(r)?);
                Self::Entry {
                    dir,
                    path,
                    meta,
                    what,
                }
            }
            3 => Self::Data {
                offset: r.u64()?,
                bytes: r.rest(super::bulk::MAX_DATA)?,
            },
            4 => Self::Hole {
                offset: r.u64()?,
                length: r.u64()?,
            },
            5 => Self::End { sum: r.u64()? },
            6 => {
                let path = path(r)?;
                let last = r.u8()? != 0;
                let mut names = Vec::new();
                while !r.is_empty() {
                    let name = text(r)?;
                    if !valid_component(&name) {
                        return Err(BulkError::Name);
                    }
                    names.push(name);
                }
                Self::Names {
                    dir,
                    path,
                    last,
                    names,
                }
            }
            7 => Self::Pass {
                entries: r.u64()?,
                sum: r.u64()?,
            },
            other => return Err(BulkError::Op(other)),
        })
    }
}

impl What {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Dir => out.push(1),
            Self::File { size, fresh } => {
                out.extend_from_slice(&[2, u8::from(*fresh)]);
                out.extend_from_slice(&size.to_le_bytes());
            }
            Self::Link(to) => {
                out.push(3);
                short(out, to);
            }
            Self::Fifo => out.push(4),
            Self::Same { dir, path } => {
                out.extend_from_slice(&[5, *dir]);
                short(out, path);
            }
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, BulkError> {
        Ok(match r.u8()? {
            1 => Self::Dir,
            2 => {
                let fresh = r.u8()? != 0;
                Self::File {
                    size: r.u64()?,
                    fresh,
                }
            }
            3 => {
                let to = text(r)?;
                if to.is_empty() || to.contains(&0) || to.len() > MAX_PATH {
                    return Err(BulkError::Name);
                }
                Self::Link(to)
            }
            4 => Self::Fifo,
            5 => Self::Same {
                dir: r.u8()?,
                path: path(r)?,
            },
            other => return Err(BulkError::Op(other)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::bulk::{Body, Message};
    use proptest::prelude::*;

    #[test]
    fn paths_stay_inside() {
        for bad in [
            &b"/etc"[..],
            b"..",
            b"a/../b",
            b"a//b",
            b"a/",
            b".",
            b"a\0b",
            b"a/./b",
        ] {
            assert!(!valid_path(bad), "{bad:?}");
        }
        for good in [&b""[..], b"a", b"a/b c", b"...", "\u{e4}".as_bytes()] {
            assert!(valid_path(good), "{good:?}");
        }
        assert!(!valid_path(
            "a/".repeat(100).trim_end_matches('/').as_bytes()
        ));
    }

    #[test]
    fn every_kind_comes_back() {
        let meta = Meta {
            mode: 0o4755,
            uid: 7,
            gid: 8,
            mtime_s: -5,
            mtime_ns: 9,
            xattrs: vec![
                (b"user.a".to_vec(), vec![0; 9]),
                (b"user.b".to_vec(), vec![]),
            ],
        };
        let entry = |what| State::Entry {
            dir: 1,
            path: b"a/b".to_vec(),
            meta: meta.clone(),
            what,
        };
        for state in [
            State::Enter {
                dir: 0,
                path: vec![],
            },
            entry(What::Dir),
            entry(What::File {
                size: 1 << 40,
                fresh: true,
            }),
            entry(What::Link(b"../../etc".to_vec())),
            entry(What::Fifo),
            entry(What::Same {
                dir: 0,
                path: b"x".to_vec(),
            }),
            State::Data {
                offset: 3,
                bytes: vec![1, 2],
            },
            State::Hole {
                offset: 3,
                length: 4,
            },
            State::End { sum: u64::MAX },
            State::Names {
                dir: 0,
                path: b"a".to_vec(),
                last: true,
                names: vec![b"b".to_vec(), b"c".to_vec()],
            },
            State::Pass { entries: 1, sum: 2 },
        ] {
            let m = Message {
                stream: 5,
                body: Body::State(state),
            };
            let mut out = Vec::new();
            m.encode(&mut out);
            assert_eq!(Message::decode(&out).unwrap(), m);
        }
    }

    proptest! {
        #[test]
        fn decode_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut framed = vec![5, 0, 0, 0, 0];
            framed.extend_from_slice(&bytes);
            let _ = Message::decode(&framed);
        }
    }
}
