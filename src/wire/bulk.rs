//! Bulk messages: the files of a checkpoint round, cut in pieces.
//!
//! A round is a flat directory of criu's image files. The sender sends, per file, `Open`, its
//! `Data` pieces in order, `Close` with a checksum, and after the last file `RoundEnd`. The same
//! payloads travel guest → host in bulk frames, host → host behind a 4-byte length, host → guest
//! in bulk frames. Every receiver decodes (and so checks) them anew.
//!
//! ```text
//! u8 op | u32 stream | op 1 Open:     u16 round, u32 file, u64 size, u8 n, n bytes name
//!                    | op 2 Data:     u32 file, u64 offset, bytes to the end
//!                    | op 3 Close:    u32 file, u64 sum of the whole file
//!                    | op 4 RoundEnd: u16 round, u32 files, u64 bytes
//!                    | op 5 State:    see `state`
//! ```
//! All integers little endian. State directories travel in the same rounds.

use super::state::State;

/// Largest piece of file data in one message, bytes.
pub const MAX_DATA: usize = 512 << 10;
/// Longest file name, bytes.
pub const MAX_NAME: usize = 80;

/// A bulk message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Stream of the move, chosen by the source's daemon.
    pub stream: u32,
    /// What it says.
    pub body: Body,
}

/// What a bulk message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A file begins.
    Open {
        /// Round, from 1.
        round: u16,
        /// Number of the file within the stream, never used twice.
        file: u32,
        /// Size in bytes.
        size: u64,
        /// Name: one path component of `[A-Za-z0-9._-]`, not starting with a dot.
        name: String,
    },
    /// A piece of a file.
    Data {
        /// Number of the file.
        file: u32,
        /// Where in the file the bytes belong. Gaps are holes (zeroes).
        offset: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// A file is complete.
    Close {
        /// Number of the file.
        file: u32,
        /// Sum ([`super::sum`]) of the file's pieces in order, holes left out.
        sum: u64,
    },
    /// A round is complete.
    RoundEnd {
        /// Round.
        round: u16,
        /// Files in it.
        files: u32,
        /// Bytes of data sent in it.
        bytes: u64,
    },
    /// Something about state directories; see [`super::state`].
    State(State),
}

impl Body {
    /// Bytes of content that it carries.
    pub fn content(&self) -> usize {
        match self {
            Self::Data { bytes, .. } | Self::State(State::Data { bytes, .. }) => bytes.len(),
            _ => 0,
        }
    }
}

/// Why bytes are not a bulk message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BulkError {
    /// Too short for what it announces.
    #[error("bulk message cut short")]
    Short,
    /// Unknown operation.
    #[error("unknown bulk operation {0}")]
    Op(u8),
    /// File name that could leave the directory or is not plain.
    #[error("bulk message with an invalid file name")]
    Name,
    /// More data than allowed in one message.
    #[error("bulk message with too much data")]
    TooLong,
}

/// Whether a file name is acceptable: one plain path component.
pub fn valid_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], BulkError> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(BulkError::Short)?;
        self.0 = tail;
        Ok(*head)
    }
    pub(super) fn u8(&mut self) -> Result<u8, BulkError> {
        Ok(self.take::<1>()?[0])
    }
    pub(super) fn u16(&mut self) -> Result<u16, BulkError> {
        Ok(u16::from_le_bytes(self.take()?))
    }
    pub(super) fn u32(&mut self) -> Result<u32, BulkError> {
        Ok(u32::from_le_bytes(self.take()?))
    }
    pub(super) fn u64(&mut self) -> Result<u64, BulkError> {
        Ok(u64::from_le_bytes(self.take()?))
    }
    pub(super) fn bytes(&mut self, n: usize) -> Result<&'a [u8], BulkError> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(BulkError::Short)?;
        self.0 = tail;
        Ok(head)
    }
    /// All that is left, at most `most` bytes.
    pub(super) fn rest(&mut self, most: usize) -> Result<Vec<u8>, BulkError> {
        if self.0.len() > most {
            return Err(BulkError::TooLong);
        }
        Ok(std::mem::take(&mut self.0).to_vec())
    }
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Message {
    /// Appends the encoded message to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let op = match self.body {
            Body::Open { .. } => 1,
            Body::Data { .. } => 2,
            Body::Close { .. } => 3,
            Body::RoundEnd { .. } => 4,
            Body::State(_) => 5,
        };
        out.push(op);
        out.extend_from_slice(&self.stream.to_le_bytes());
        match &self.body {
            Body::Open {
                round,
                file,
                size,
                name,
            } => {
                out.extend_from_slice(&round.to_le_bytes());
                out.extend_from_slice(&file.to_le_bytes());
                out.extend_from_slice(&size.to_le_bytes());
                let n = name.len().min(MAX_NAME);
                out.push(n as u8);
                out.extend_from_slice(&name.as_bytes()[..n]);
            }
            Body::Data {
                file,
                offset,
                bytes,
            } => {
                out.extend_from_slice(&file.to_le_bytes());
                out.extend_from_slice(&offset.to_le_bytes());
                out.extend_from_slice(bytes);
            }
            Body::Close { file, sum } => {
                out.extend_from_slice(&file.to_le_bytes());
                out.extend_from_slice(&sum.to_le_bytes());
            }
            Body::RoundEnd {
                round,
                files,
                bytes,
            } => {
                out.extend_from_slice(&round.to_le_bytes());
                out.extend_from_slice(&files.to_le_bytes());
                out.extend_from_slice(&bytes.to_le_bytes());
            }
            Body::State(state) => state.encode(out),
        }
    }

    /// Decodes one message that fills `payload` entirely.
    pub fn decode(payload: &[u8]) -> Result<Self, BulkError> {
        let mut r = Reader(payload);
        let op = r.u8()?;
        let stream = r.u32()?;
        let body = match op {
            1 => {
                let (round, file, size) = (r.u16()?, r.u32()?, r.u64()?);
                let n = r.u8()? as usize;
                let name = std::str::from_utf8(r.bytes(n)?).map_err(|_| BulkError::Name)?;
                if !valid_name(name) {
                    return Err(BulkError::Name);
                }
                Body::Open {
                    round,
                    file,
                    size,
                    name: name.to_owned(),
                }
            }
            2 => {
                let (file, offset) = (r.u32()?, r.u64()?);
                let bytes = r.rest(MAX_DATA)?;
                Body::Data {
                    file,
                    offset,
                    bytes,
                }
            }
            3 => Body::Close {
                file: r.u32()?,
                sum: r.u64()?,
            },
            4 => Body::RoundEnd {
                round: r.u16()?,
                files: r.u32()?,
                bytes: r.u64()?,
            },
            5 => Body::State(State::decode(&mut r)?),
            other => return Err(BulkError::Op(other)),
        };
        if r.0.is_empty() {
            Ok(Self { stream, body })
        } else {
            Err(BulkError::TooLong)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decode_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::decode(&bytes);
        }
        #[test]
        fn round_trip(stream in any::<u32>(), file in any::<u32>(), offset in any::<u64>(),
                      bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for body in [
                Body::Open { round: 2, file, size: offset, name: "pages-1.img".into() },
                Body::Data { file, offset, bytes: bytes.clone() },
                Body::Close { file, sum: 9 },
                Body::RoundEnd { round: 2, files: 3, bytes: 4 },
            ] {
                let m = Message { stream, body };
                let mut out = Vec::new();
                m.encode(&mut out);
                prop_assert_eq!(Message::decode(&out).unwrap(), m);
            }
        }
    }

    #[test]
    fn names_stay_in_the_directory() {
        for bad in ["", ".", "..", "a/b", ".hidden", "a\0", "ä"] {
            assert!(!valid_name(bad), "{bad:?}");
        }
        assert!(valid_name("core-1.img"));
    }
}
