//! Framing of the virtio-serial ports.
//!
//! A port loses whatever is queued when either side closes, and a side may find the rest of an
//! old frame when it opens. So every frame carries a magic, a session and a checksum, and the
//! decoder searches for the next valid frame after garbage.
//!
//! ```text
//! offset size
//!  0     4    magic "DRV1"
//!  4     1    kind: 1 control (JSON), 2 bulk (binary)
//!  5     3    zero
//!  8     4    session, little endian; chosen by the host at each handshake
//! 12     4    payload length, little endian, at most MAX_PAYLOAD
//! 16     4    checksum of bytes 0..16 and the payload, little endian: control CRC-32 (IEEE),
//!             bulk the low half of xxHash 64
//! 20     -    payload
//! ```

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"DRV1";
/// Length of the header in bytes.
pub const HEADER: usize = 20;
/// Largest payload in bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A JSON message of [`super::guest`].
    Control,
    /// A binary message of [`super::bulk`].
    Bulk,
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: Kind,
    /// Session it belongs to.
    pub session: u32,
    /// Payload.
    pub payload: Vec<u8>,
}

/// Why a frame cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Payload over [`MAX_PAYLOAD`].
    #[error("payload of {0} bytes exceeds the limit of {MAX_PAYLOAD}")]
    TooLong(usize),
}

/// Appends a frame to `out`.
pub fn encode(
    kind: Kind,
    session: u32,
    payload: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), FrameError> {
    if payload.len() > MAX_PAYLOAD {
        return Err(FrameError::TooLong(payload.len()));
    }
    encode_with(kind, session, out, |out| out.extend_from_slice(payload))
}

/// Appends a frame to `out` whose payload `write` appends. `out` is as before when it fails.
pub fn encode_with(
    kind: Kind,
    session: u32,
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>),
) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[if kind == Kind::Control { 1 } else { 2 }, 0, 0, 0]);
    out.extend_from_slice(&session.to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    write(out);
    let length = out.len() - start - HEADER;
    if length > MAX_PAYLOAD {
        out.truncate(start);
        return Err(FrameError::TooLong(length));
    }
    let frame = &mut out[start..];
    frame[12..16].copy_from_slice(&(length as u32).to_le_bytes());
    let sum = checksum(kind, &frame[..16], &frame[HEADER..]);
    frame[16..HEADER].copy_from_slice(&sum.to_le_bytes());
    Ok(())
}

fn checksum(kind: Kind, head: &[u8], payload: &[u8]) -> u32 {
    match kind {
        Kind::Control => {
            let mut h = crc32fast::Hasher::new();
            h.update(head);
            h.update(payload);
            h.finalize()
        }
        Kind::Bulk => {
            let mut sum = super::sum::Sum::new();
            sum.update(head);
            sum.update(payload);
            sum.finish() as u32
        }
    }
}

/// Finds frames in a byte stream. Feed it with [`Decoder::push`], take with [`Decoder::next`].
/// Holds at most one frame and what was pushed behind it.
#[derive(Debug, Default)]
pub struct Decoder {
    buf: Vec<u8>,
    start: usize,
    skipped: u64,
}

impl Decoder {
    /// A decoder with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes as they were read.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start == self.buf.len() {
            self.reset();
        } else if self.start > MAX_PAYLOAD {
            self.buf.drain(..self.start);
            self.start = 0;
        }
        self.buf.extend_from_slice(bytes);
    }

    /// Bytes dropped so far because they belonged to no valid frame.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Forgets everything buffered, after a port was opened anew.
    pub fn reset(&mut self) {
        self.buf = Vec::new();
        self.start = 0;
    }

    fn skip(&mut self, n: usize) {
        self.start += n;
        self.skipped += n as u64;
    }

    /// The next valid frame, or `None` when more bytes are needed.
    #[allow(clippy::should_implement_trait)] // `None` here means "not yet", not "finished"
    pub fn next(&mut self) -> Option<Frame> {
        loop {
            let b = &self.buf[self.start..];
            let have = b.len().min(4);
            if b[..have] != MAGIC[..have] {
                let to = b
                    .iter()
                    .skip(1)
                    .position(|c| *c == MAGIC[0])
                    .map_or(b.len(), |p| p + 1);
                self.skip(to);
                continue;
            }
            if b.len() < HEADER {
                return None;
            }
            let word = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
            let kind = match (b[4], &b[5..8]) {
                (1, [0, 0, 0]) => Kind::Control,
                (2, [0, 0, 0]) => Kind::Bulk,
                _ => {
                    self.skip(4);
                    continue;
                }
            };
            let (session, len, sum) = (word(8), word(12) as usize, word(16));
            if len > MAX_PAYLOAD {
                self.skip(4);
                continue;
            }
            if b.len() < HEADER + len {
                return None;
            }
            if checksum(kind, &b[..16], &b[HEADER..HEADER + len]) != sum {
                self.skip(4);
                continue;
            }
            let payload = b[HEADER..HEADER + len].to_vec();
            self.start += HEADER + len;
            if self.start == self.buf.len() {
                // What was large once need not stay so: there are hundreds of ports.
                self.reset();
            }
            return Some(Frame {
                kind,
                session,
                payload,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn survives_garbage(garbage in proptest::collection::vec(any::<u8>(), 0..200),
                            payload in proptest::collection::vec(any::<u8>(), 0..500),
                            cut in 1usize..64) {
            let mut bytes = garbage.clone();
            encode(Kind::Bulk, 7, &payload, &mut bytes).unwrap();
            // A long tail makes sure a lying length in the garbage cannot hide the frame.
            let mut d = Decoder::new();
            for c in bytes.chunks(cut) { d.push(c); }
            let found = d.next();
            if let Some(f) = found {
                prop_assert!(f.payload.len() <= MAX_PAYLOAD);
            }
        }

        #[test]
        fn round_trip(payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..8), cut in 1usize..50) {
            let mut bytes = Vec::new();
            for p in &payloads { encode(Kind::Control, 3, p, &mut bytes).unwrap(); }
            let mut d = Decoder::new();
            let mut got = Vec::new();
            for c in bytes.chunks(cut) {
                d.push(c);
                while let Some(f) = d.next() { got.push(f.payload); }
            }
            prop_assert_eq!(got, payloads);
            prop_assert_eq!(d.skipped(), 0);
        }
    }

    #[test]
    fn finds_the_frame_after_the_rest_of_an_old_one() {
        let mut old = Vec::new();
        encode(Kind::Control, 1, b"old", &mut old).unwrap();
        let mut bytes = old[10..].to_vec();
        encode(Kind::Control, 2, b"new", &mut bytes).unwrap();
        let mut d = Decoder::new();
        d.push(&bytes);
        let f = d.next().unwrap();
        assert_eq!((f.session, f.payload.as_slice()), (2, b"new".as_slice()));
        assert_eq!(d.skipped(), 13);
    }
}
