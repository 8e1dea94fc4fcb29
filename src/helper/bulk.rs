//! Sends the files of a round as bulk messages.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::state::StateError;
use super::state::walk::Walk;
use crate::wire::bulk::{Body, MAX_DATA, Message, valid_name};
use crate::wire::sum::Sum;

/// Puts a bulk message on the port; blocks until it is there.
pub type Send = dyn Fn(&Message) -> io::Result<()> + std::marker::Send + Sync;

/// How often progress is told, bytes.
const PROGRESS: u64 = 4 << 20;

/// What was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Files.
    pub files: u32,
    /// Bytes of data.
    pub bytes: u64,
}

/// Sends rounds of one move.
pub struct Sender<'a> {
    /// Where to.
    pub send: &'a Send,
    /// Bulk stream of the move.
    pub stream: u32,
    /// Set when the move was given up meanwhile.
    pub cancel: &'a AtomicBool,
}

impl Sender<'_> {
    fn put(&self, body: Body) -> io::Result<()> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(io::Error::other("the move was released meanwhile"));
        }
        (self.send)(&Message {
            stream: self.stream,
            body,
        })
    }

    /// Sends all plain files of `dir` as round `round`; `file` is the number of the last file of
    /// the stream and is moved on. Memory contents (`pages-*`) are dropped from `dir` as soon as
    /// they are sent: the next round needs only the names of these files and the page maps.
    /// `progress` gets (sent, total) bytes from time to time.
    pub fn files(
        &self,
        dir: &Path,
        round: u16,
        file: &mut u32,
        progress: &dyn Fn(u64, u64),
    ) -> io::Result<Sent> {
        let mut names = Vec::new();
        let mut total = 0;
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if meta.is_file() && valid_name(&name) {
                total += meta.len();
                names.push((name, meta.len()));
            }
        }
        names.sort();
        let mut sent = Sent::default();
        let mut told = 0; // bytes of the files looked through so far
        for (name, size) in names {
            *file = file.wrapping_add(1);
            let path = dir.join(&name);
            let drop_after = name.starts_with("pages-");
            self.put(Body::Open {
                round,
                file: *file,
                size,
                name,
            })?;
            let mut sum = Sum::new();
            let mut source = File::open(&path)?;
            let mut offset = 0;
            let mut passed = 0;
            while offset < size {
                let mut bytes = vec![0; MAX_DATA.min((size - offset) as usize)];
                source.read_exact(&mut bytes)?;
                let n = bytes.len() as u64;
                // Pages of zeroes are left out: the file at the other end begins as one hole.
                let pieces = if drop_after {
                    filled(&bytes)
                } else {
                    Vec::new()
                };
                let whole = !drop_after || pieces.first() == Some(&(0..bytes.len()));
                let mut put = |at: u64, bytes: Vec<u8>| {
                    sum.update(&bytes);
                    sent.bytes += bytes.len() as u64;
                    self.put(Body::Data {
                        file: *file,
                        offset: at,
                        bytes,
                    })
                };
                if whole {
                    put(offset, bytes)?;
                } else {
                    for p in pieces {
                        put(offset + p.start as u64, bytes[p].to_vec())?;
                    }
                }
                offset += n;
                passed += n;
                if passed >= PROGRESS {
                    (told, passed) = (told + passed, 0);
                    progress(told, total);
                }
            }
            self.put(Body::Close {
                file: *file,
                sum: sum.finish(),
            })?;
            sent.files += 1;
            if drop_after {
                File::options().write(true).open(&path)?.set_len(0)?;
            }
        }
        Ok(sent)
    }

    /// Sends a pass over the state directories.
    pub fn state(
        &self,
        walk: &mut Walk,
        mapped: &HashSet<u64>,
    ) -> Result<super::state::walk::Passed, StateError> {
        walk.pass(mapped, &mut |state| self.put(Body::State(state)))
    }

    /// Ends round `round`, of which `sent` are the files.
    pub fn end(&self, round: u16, sent: Sent) -> io::Result<()> {
        self.put(Body::RoundEnd {
            round,
            files: sent.files,
            bytes: sent.bytes,
        })
    }
}

/// Bytes of a page.
const PAGE: usize = 4096;
/// Fewer pages of zeroes than this in a row are sent: a message has its cost too.
const GAP: usize = 4;

/// Ranges of `bytes`, in whole pages, that are not zero.
pub(super) fn filled(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut pieces: Vec<Range<usize>> = Vec::new();
    for (n, page) in bytes.chunks(PAGE).enumerate() {
        if zero(page) {
            continue;
        }
        let (start, end) = (n * PAGE, n * PAGE + page.len());
        match pieces.last_mut() {
            Some(last) if start - last.end < GAP * PAGE => last.end = end,
            _ => pieces.push(start..end),
        }
    }
    pieces
}

/// Whether there is nothing but zeroes.
pub(super) fn zero(bytes: &[u8]) -> bool {
    let words = bytes.chunks_exact(8);
    words.remainder().iter().all(|b| *b == 0) && words.into_iter().all(|w| w == [0; 8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_runs_of_zeroes_are_left_out() {
        let mut bytes = vec![0; 20 * PAGE + 100];
        assert!(filled(&bytes).is_empty());
        bytes[PAGE + 7] = 1;
        bytes[3 * PAGE] = 1;
        bytes[10 * PAGE - 1] = 1;
        bytes[20 * PAGE + 99] = 1;
        let want = [
            PAGE..4 * PAGE,
            9 * PAGE..10 * PAGE,
            20 * PAGE..20 * PAGE + 100,
        ];
        assert_eq!(filled(&bytes), want);
        assert_eq!(filled(&[1; 10]).first(), Some(&(0..10)));
        assert!(zero(&[0; 13]) && !zero(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 1]));
    }

    #[test]
    fn a_round_arrives_as_it_was() {
        use crate::helper::images::Receiver;
        let t = tempfile::tempdir().unwrap();
        let from = t.path().join("1");
        std::fs::create_dir(&from).unwrap();
        let mut pages = vec![0; 600 << 10];
        pages[300 << 10] = 7;
        std::fs::write(from.join("pages-1.img"), &pages).unwrap();
        std::fs::write(from.join("core-1.img"), vec![0; 9000]).unwrap();
        let to = t.path().join("rounds");
        let receiver = Receiver::new(to.clone(), 1 << 20).unwrap();
        let send = move |m: &Message| {
            receiver.take(m.body.clone());
            Ok(())
        };
        let sender = Sender {
            send: &send,
            stream: 1,
            cancel: &AtomicBool::new(false),
        };
        let sent = sender.files(&from, 1, &mut 0, &|_, _| {}).unwrap();
        sender.end(1, sent).unwrap();
        assert_eq!(
            sent,
            Sent {
                files: 2,
                bytes: 4096 + 9000
            }
        );
        assert_eq!(std::fs::read(to.join("1/pages-1.img")).unwrap(), pages);
        assert_eq!(std::fs::read(to.join("1/core-1.img")).unwrap(), [0; 9000]);
        assert_eq!(from.join("pages-1.img").metadata().unwrap().len(), 0);
    }
}
