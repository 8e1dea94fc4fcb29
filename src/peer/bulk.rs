//! Bulk connections: the checkpoint images of one move, beside the control connection.
//!
//! After the transport's greeting the sender writes one line ([`BulkHello`] as JSON), the
//! receiver answers with one line (`ok`, `ok lz4` or `refused REASON`), and messages follow, each
//! behind a 4-byte little-endian length of at most [`MAX_LENGTH`]. After `ok lz4`, which only a
//! sender gets that offered it, a length with its highest bit set is that of a packed message
//! ([`crate::wire::packed`]). Whether packing pays is decided message by message.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::PeerError;
use crate::moving::squeeze::Squeeze;
use crate::transport::stream::{explain, read_agreed, read_line, write_agreed, write_answer};
use crate::transport::{Cut, Link, Stream};
use crate::wire::bulk::{Body, Message};
use crate::wire::guest::valid_move_id;
use crate::wire::packed;
use crate::wire::peer::{BulkHello, PROTOCOL};

/// Longest encoded message, bytes.
pub const MAX_LENGTH: usize = 1 << 20;
/// Longest time that one [`BulkSender::send`] may wait for the network and the receiver.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time to set up a bulk connection once it is authenticated.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest header line, bytes.
const MAX_HELLO: usize = 4 << 10;
/// Bytes gathered before they are written.
const GATHER: usize = 256 << 10;
/// In a message's length: it is packed.
pub(super) const PACKED: u32 = 1 << 31;

/// Packs messages where that pays.
#[derive(Debug, Default)]
struct Packer {
    policy: Squeeze,
    out: Vec<u8>,
}

impl Packer {
    /// The packed form of a message, when it is to be sent so.
    fn pack(&mut self, message: &[u8]) -> Option<&[u8]> {
        if !self.policy.attempt(message.len()) {
            return None;
        }
        let room = packed::room(message.len());
        if self.out.len() < room {
            self.out.resize(room, 0);
        }
        let begun = Instant::now();
        let n = packed::pack(message, &mut self.out)?;
        let seconds = begun.elapsed().as_secs_f64();
        let worth = self.policy.attempted(message.len(), n, seconds);
        worth.then(|| &self.out[..n])
    }
}

/// The sending end. Dropping it without [`BulkSender::finish`] cuts the connection, which the
/// receiver sees as an error. It is cut as well when the peer is found to be down.
#[derive(Debug)]
pub struct BulkSender {
    host: String,
    stream: Stream,
    cut: Arc<Cut>,
    gathered: Vec<u8>,
    /// When both sides agreed on it.
    packer: Option<Packer>,
    /// Set while a write is under way: one that was given up midway leaves a torn stream.
    torn: bool,
}

impl BulkSender {
    /// Names the move on a fresh bulk connection to `host` and waits for the answer.
    pub(crate) async fn open(host: &str, id: &str, link: Link) -> Result<Self, PeerError> {
        let unreachable = |reason: String| PeerError::Unreachable {
            host: host.to_owned(),
            reason,
        };
        if !valid_move_id(id) {
            return Err(PeerError::Protocol {
                host: host.to_owned(),
                message: format!("'{id}' is not a move's identifier"),
            });
        }
        let hello = BulkHello {
            protocol: PROTOCOL,
            id: id.to_owned(),
            pack: vec![packed::LZ4.to_owned()],
        };
        let mut line = serde_json::to_vec(&hello).map_err(|e| unreachable(e.to_string()))?;
        line.push(b'\n');
        let Link { mut stream, cut } = link;
        let talk = async {
            stream.write_all(&line).await.map_err(|e| e.to_string())?;
            stream.flush().await.map_err(|e| e.to_string())?;
            read_agreed(&mut stream).await
        };
        // A receiver may rest for longer than an idle link may stay silent: its guest is slow.
        cut.set_patience(Some(SEND_TIMEOUT))
            .map_err(|e| unreachable(e.to_string()))?;
        match tokio::time::timeout(HELLO_TIMEOUT, talk).await {
            Ok(Ok(agreed)) => Ok(Self {
                host: host.to_owned(),
                stream,
                cut: Arc::new(cut),
                gathered: Vec::with_capacity(GATHER * 2),
                packer: (agreed == packed::LZ4).then(Packer::default),
                torn: false,
            }),
            Ok(Err(reason)) => Err(unreachable(format!("no bulk connection: {reason}"))),
            Err(_) => Err(PeerError::Timeout {
                host: host.to_owned(),
                what: "a bulk connection".into(),
                after: HELLO_TIMEOUT,
            }),
        }
    }

    /// What ends this connection from outside.
    pub(super) fn cut(&self) -> &Arc<Cut> {
        &self.cut
    }

    /// Sends one message. Small ones are gathered; the end of a round goes out with everything
    /// before it. Fails within [`SEND_TIMEOUT`]; after a failure every further call fails. Bytes
    /// that the message takes on the way, before encryption.
    pub async fn send(&mut self, message: &Message) -> Result<usize, PeerError> {
        let start = self.gathered.len();
        self.gathered.extend_from_slice(&[0; 4]);
        message.encode(&mut self.gathered);
        let length = self.gathered.len() - start - 4;
        if length > MAX_LENGTH {
            self.gathered.truncate(start);
            return Err(PeerError::Protocol {
                host: self.host.clone(),
                message: format!(
                    "bulk message of {length} bytes; at most {MAX_LENGTH} are allowed"
                ),
            });
        }
        let mut word = length as u32;
        if let Some(packer) = &mut self.packer
            && let Some(packed) = packer.pack(&self.gathered[start + 4..])
        {
            word = packed.len() as u32 | PACKED;
            self.gathered.truncate(start + 4);
            self.gathered.extend_from_slice(packed);
        }
        self.gathered[start..start + 4].copy_from_slice(&word.to_le_bytes());
        let taken = self.gathered.len() - start;
        let end = matches!(message.body, Body::RoundEnd { .. });
        if end || self.gathered.len() >= GATHER {
            self.write(end, false).await?;
        }
        Ok(taken)
    }

    /// Sends what is gathered and ends the stream, so that the receiver can tell its end from a
    /// broken connection.
    pub async fn finish(mut self) -> Result<(), PeerError> {
        self.write(true, true).await
    }

    async fn write(&mut self, flush: bool, close: bool) -> Result<(), PeerError> {
        if self.torn {
            return Err(PeerError::Unreachable {
                host: self.host.clone(),
                reason: "an earlier write to the bulk connection failed".into(),
            });
        }
        self.torn = true;
        let (stream, gathered) = (&mut self.stream, &self.gathered);
        let work = async {
            stream.write_all(gathered).await?;
            if flush {
                stream.flush().await?;
            }
            if close {
                stream.shutdown().await?;
            }
            Ok::<_, std::io::Error>(())
        };
        let begun = Instant::now();
        match tokio::time::timeout(SEND_TIMEOUT, work).await {
            Ok(Ok(())) => {
                if let Some(packer) = &mut self.packer {
                    let seconds = begun.elapsed().as_secs_f64();
                    packer.policy.sent(self.gathered.len(), seconds);
                }
                self.gathered.clear();
                self.torn = false;
                Ok(())
            }
            Ok(Err(e)) => Err(PeerError::Unreachable {
                host: self.host.clone(),
                reason: format!("bulk connection broke: {}", explain(&e)),
            }),
            Err(_) => Err(PeerError::Timeout {
                host: self.host.clone(),
                what: "a bulk transfer".into(),
                after: SEND_TIMEOUT,
            }),
        }
    }
}

/// The receiving end. Holds one message at most; dropping it ends the connection.
#[derive(Debug)]
pub struct BulkReceiver {
    host: String,
    stream: Stream,
    _cut: Cut,
    /// Length and payload of the message under way; filled up to `have`.
    frame: Vec<u8>,
    have: usize,
    /// The length of the message under way, once it is known, says that it is packed.
    packed: bool,
    /// Packing was agreed on.
    may_pack: bool,
    unpacked: Vec<u8>,
}

impl BulkReceiver {
    /// Reads and checks the header of an incoming connection, and answers it. Returns the move
    /// that it names. The error says in words why the connection was refused.
    pub(crate) async fn accept(host: &str, link: Link) -> Result<(String, Self), String> {
        let Link { mut stream, cut } = link;
        let talk = async {
            let line = read_line(&mut stream, MAX_HELLO)
                .await
                .map_err(|e| format!("no bulk header: {}", explain(&e)))?;
            let checked = check_hello(&line);
            let written = match &checked {
                Ok((_, true)) => write_agreed(&mut stream, packed::LZ4).await,
                Ok((_, false)) => write_answer(&mut stream, Ok(())).await,
                Err(reason) => write_answer(&mut stream, Err(reason)).await,
            };
            let agreed = checked?;
            written.map_err(|e| e.to_string())?;
            // Nothing more is sent this way, so keepalive alone watches the link.
            cut.set_patience(None).map_err(|e| e.to_string())?;
            Ok::<_, String>(agreed)
        };
        let (id, may_pack) = tokio::time::timeout(HELLO_TIMEOUT, talk)
            .await
            .map_err(|_| "no bulk header in time".to_owned())??;
        let receiver = Self {
            host: host.to_owned(),
            stream,
            _cut: cut,
            frame: vec![0; 4],
            have: 0,
            packed: false,
            may_pack,
            unpacked: Vec::new(),
        };
        Ok((id, receiver))
    }

    /// The next message; `None` when the sender finished. May be cancelled (`select!`) without
    /// losing anything. Has no timeout of its own, as a sender may rest between rounds; a link
    /// that is cut ends it within about `peer.timeout_s`.
    pub async fn next(&mut self) -> Result<Option<Message>, PeerError> {
        loop {
            while self.have < self.frame.len() {
                let n = self
                    .stream
                    .read(&mut self.frame[self.have..])
                    .await
                    .map_err(|e| PeerError::Unreachable {
                        host: self.host.clone(),
                        reason: format!("bulk connection broke: {}", explain(&e)),
                    })?;
                match n {
                    0 if self.have == 0 => return Ok(None),
                    0 => return Err(self.broken("bulk stream ends within a message")),
                    n => self.have += n,
                }
            }
            if self.frame.len() == 4 {
                let f = &self.frame;
                let word = u32::from_le_bytes([f[0], f[1], f[2], f[3]]);
                self.packed = self.may_pack && word & PACKED != 0;
                let length = if self.packed { word ^ PACKED } else { word } as usize;
                if length == 0 || length > MAX_LENGTH {
                    return Err(self.broken(&format!(
                        "bulk message of {length} bytes; 1 to {MAX_LENGTH} are allowed"
                    )));
                }
                self.frame.resize(4 + length, 0);
                continue;
            }
            let decoded = self.decode();
            self.frame.truncate(4);
            self.have = 0;
            return match decoded {
                Ok(message) => Ok(Some(message)),
                Err(reason) => Err(self.broken(&reason)),
            };
        }
    }

    /// The message that is complete.
    fn decode(&mut self) -> Result<Message, String> {
        let payload = if self.packed {
            packed::unpack(&self.frame[4..], MAX_LENGTH, &mut self.unpacked)
                .map_err(|e| e.to_string())?;
            &self.unpacked[..]
        } else {
            &self.frame[4..]
        };
        Message::decode(payload).map_err(|e| e.to_string())
    }

    fn broken(&self, message: &str) -> PeerError {
        PeerError::Protocol {
            host: self.host.clone(),
            message: message.to_owned(),
        }
    }
}

/// The move that a header names, and whether messages may be packed.
pub(super) fn check_hello(line: &str) -> Result<(String, bool), String> {
    let hello: BulkHello =
        serde_json::from_str(line).map_err(|e| format!("the bulk header is invalid: {e}"))?;
    if hello.protocol != PROTOCOL {
        return Err(format!(
            "bulk protocol {} is not {PROTOCOL}; both hosts need the same version of droverd",
            hello.protocol
        ));
    }
    if !valid_move_id(&hello.id) {
        return Err("the bulk header names no valid move".into());
    }
    let pack = hello.pack.iter().any(|p| p == packed::LZ4);
    Ok((hello.id, pack))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hello_is_checked() {
        let hello = |more: &str| format!(r#"{{"protocol":{PROTOCOL},"id":"0000-1111"{more}}}"#);
        let id = || "0000-1111".to_owned();
        // As daemons write it that do not pack, and those to come that pack otherwise, too.
        assert_eq!(check_hello(&hello("")), Ok((id(), false)));
        let other = hello(r#","pack":["zstd"]"#);
        assert_eq!(check_hello(&other), Ok((id(), false)));
        let both = hello(r#","pack":["zstd","lz4"]"#);
        assert_eq!(check_hello(&both), Ok((id(), true)));
        for bad in [
            "",
            "{}",
            r#"{"protocol":1,"id":"0000-1111"}"#,
            &format!(r#"{{"protocol":{PROTOCOL},"id":"../../etc"}}"#),
        ] {
            assert!(check_hello(bad).is_err(), "{bad}");
        }
    }
}
