//! zbus over an authenticated stream, with a bound on the size of what a peer may send.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use zbus::connection::socket::{self, Socket, Split};

use crate::transport::Stream;

/// Largest D-Bus message that is accepted, bytes.
pub const MAX_MESSAGE: usize = 4 << 20;
/// Largest JSON text in one, so that the message around it fits.
pub const MAX_TEXT: usize = MAX_MESSAGE - (64 << 10);

/// Bytes from which the length of a message is known: the fixed header and the length of the
/// header fields (D-Bus specification, "Message Format").
const HEADER: usize = 16;

/// An authenticated stream as zbus takes it.
#[derive(Debug)]
pub struct StreamSocket(pub Stream);

impl Socket for StreamSocket {
    type ReadHalf = Reader;
    type WriteHalf = Writer;

    fn split(self) -> Split<Reader, Writer> {
        let (read, write) = tokio::io::split(self.0);
        Split::new(
            Reader {
                from: read,
                bound: Bound::default(),
            },
            Writer(write),
        )
    }
}

/// Receiving half.
#[derive(Debug)]
pub struct Reader {
    from: ReadHalf<Stream>,
    bound: Bound,
}

#[async_trait]
impl socket::ReadHalf for Reader {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let n = self.from.read(buffer).await?;
        self.bound.follow(&buffer[..n])?;
        Ok((n, Vec::new()))
    }
}

/// Sending half.
#[derive(Debug)]
pub struct Writer(WriteHalf<Stream>);

#[async_trait]
impl socket::WriteHalf for Writer {
    async fn sendmsg(&mut self, buffer: &[u8], _fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.0.write(buffer).await
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.0.flush().await
    }

    async fn close(&mut self) -> io::Result<()> {
        self.0.shutdown().await
    }
}

/// Follows the messages in a byte stream and fails at the header of one that is too long. zbus
/// reads a message's header on its own before it makes room for the rest, so nothing was
/// allocated by then; its own limit is 128 MiB.
#[derive(Debug, Default)]
struct Bound {
    header: [u8; HEADER],
    have: usize,
    rest: usize,
}

impl Bound {
    fn follow(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.rest > 0 {
                let n = self.rest.min(bytes.len());
                self.rest -= n;
                bytes = &bytes[n..];
                continue;
            }
            let n = (HEADER - self.have).min(bytes.len());
            self.header[self.have..self.have + n].copy_from_slice(&bytes[..n]);
            self.have += n;
            bytes = &bytes[n..];
            if self.have == HEADER {
                self.have = 0;
                self.rest = self.length()? - HEADER;
            }
        }
        Ok(())
    }

    fn length(&self) -> io::Result<usize> {
        let h = &self.header;
        let number = |at: usize| -> io::Result<usize> {
            let bytes = [h[at], h[at + 1], h[at + 2], h[at + 3]];
            match h[0] {
                b'l' => Ok(u32::from_le_bytes(bytes) as usize),
                b'B' => Ok(u32::from_be_bytes(bytes) as usize),
                _ => Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "not a D-Bus message",
                )),
            }
        };
        let (body, fields) = (number(4)?, number(12)?);
        let length = (HEADER + fields).next_multiple_of(8) + body;
        if length > MAX_MESSAGE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("D-Bus message of {length} bytes; at most {MAX_MESSAGE} are allowed"),
            ));
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(text: &str) -> Vec<u8> {
        zbus::Message::method_call(crate::peer::PATH, "Rows")
            .build(&text)
            .unwrap()
            .data()
            .to_vec()
    }

    proptest! {
        #[test]
        fn follows_real_messages(lengths in proptest::collection::vec(0usize..300, 1..6), cut in 1usize..40) {
            let mut bytes = Vec::new();
            for n in &lengths { bytes.extend(message(&"x".repeat(*n))); }
            let mut bound = Bound::default();
            for piece in bytes.chunks(cut) { bound.follow(piece).unwrap(); }
            prop_assert_eq!((bound.have, bound.rest), (0, 0));
        }
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Bound::default().follow(&bytes);
        }
    }

    #[test]
    fn too_long_fails_at_the_header() {
        let bytes = message(&"x".repeat(MAX_MESSAGE));
        assert!(Bound::default().follow(&bytes[..HEADER - 1]).is_ok());
        assert!(Bound::default().follow(&bytes[..HEADER]).is_err());
    }
}
