//! Sends the files of a round as bulk messages.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::wire::bulk::{Body, MAX_DATA, Message, valid_name};

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
    pub fn round(
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
        let mut told = 0;
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
            let mut crc = crc32fast::Hasher::new();
            let mut source = File::open(&path)?;
            let mut offset = 0;
            while offset < size {
                let mut bytes = vec![0; MAX_DATA.min((size - offset) as usize)];
                source.read_exact(&mut bytes)?;
                crc.update(&bytes);
                let n = bytes.len() as u64;
                self.put(Body::Data {
                    file: *file,
                    offset,
                    bytes,
                })?;
                offset += n;
                sent.bytes += n;
                if sent.bytes - told >= PROGRESS {
                    told = sent.bytes;
                    progress(told, total);
                }
            }
            self.put(Body::Close {
                file: *file,
                crc: crc.finalize(),
            })?;
            sent.files += 1;
            if drop_after {
                File::options().write(true).open(&path)?.set_len(0)?;
            }
        }
        self.put(Body::RoundEnd {
            round,
            files: sent.files,
            bytes: sent.bytes,
        })?;
        Ok(sent)
    }
}
