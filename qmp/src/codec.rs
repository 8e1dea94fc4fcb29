//! Lines of JSON, bounded. Pure.

use serde_json::Value;

use crate::QmpError;

/// Longest line that is accepted, bytes. QEMU's longest answers (schemas, statistics of many
/// vCPUs) are below a few MiB.
pub const MAX_LINE: usize = 16 << 20;

/// Cuts a byte stream into JSON messages, one per line.
#[derive(Debug, Default)]
pub struct Decoder {
    buf: Vec<u8>,
    start: usize,
    searched: usize,
}

impl Decoder {
    /// A decoder with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes as they were read.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buf.drain(..self.start);
            self.searched -= self.start;
            self.start = 0;
        }
        self.buf.extend_from_slice(bytes);
    }

    /// The next message; `None` when more bytes are needed. Empty lines are skipped. Fails on a
    /// line that is too long or no JSON object; the stream cannot be used any further then.
    pub fn next_message(&mut self) -> Result<Option<Value>, QmpError> {
        loop {
            let Some(at) = self.buf[self.searched..].iter().position(|b| *b == b'\n') else {
                self.searched = self.buf.len();
                let waiting = self.buf.len() - self.start;
                return if waiting > MAX_LINE {
                    Err(QmpError::TooLong(waiting))
                } else {
                    Ok(None)
                };
            };
            let end = self.searched + at;
            let line = &self.buf[self.start..end];
            if line.len() > MAX_LINE {
                return Err(QmpError::TooLong(line.len()));
            }
            let message = if line.iter().all(u8::is_ascii_whitespace) {
                None
            } else {
                let value: Value = serde_json::from_slice(line).map_err(QmpError::NotJson)?;
                if !value.is_object() {
                    return Err(QmpError::Unexpected("a line that is no object".into()));
                }
                Some(value)
            };
            self.start = end + 1;
            self.searched = self.start;
            if message.is_some() {
                return Ok(message);
            }
        }
    }
}

/// The line for a command.
pub fn encode(execute: &str, id: u64, arguments: Option<&Value>) -> Vec<u8> {
    let mut message = serde_json::json!({ "execute": execute, "id": id });
    if let (Some(arguments), Some(object)) = (arguments, message.as_object_mut()) {
        object.insert("arguments".into(), arguments.clone());
    }
    let mut line = message.to_string().into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_in_pieces() {
        let bytes = b"\r\n{\"a\":1}\r\n{\"b\":[2]}\n{\"c\"";
        for cut in 1..bytes.len() {
            let mut d = Decoder::new();
            let mut got = Vec::new();
            for piece in bytes.chunks(cut) {
                d.push(piece);
                while let Some(m) = d.next_message().unwrap() {
                    got.push(m.to_string());
                }
            }
            assert_eq!(got, [r#"{"a":1}"#, r#"{"b":[2]}"#], "cut {cut}");
            d.push(b":3}\n");
            assert_eq!(d.next_message().unwrap().unwrap()["c"], 3);
        }
    }

    #[test]
    fn garbage_and_endless_lines_are_refused() {
        let mut d = Decoder::new();
        d.push(b"hello\n");
        assert!(matches!(d.next_message(), Err(QmpError::NotJson(_))));
        let mut d = Decoder::new();
        d.push(b"[1]\n");
        assert!(matches!(d.next_message(), Err(QmpError::Unexpected(_))));
        let mut d = Decoder::new();
        let piece = vec![b'x'; 1 << 20];
        let refused = (0..17).any(|_| {
            d.push(&piece);
            d.next_message().is_err()
        });
        assert!(refused);
    }

    #[test]
    fn a_command() {
        let line = encode("query-status", 7, None);
        assert_eq!(line.last(), Some(&b'\n'));
        let v: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(v, serde_json::json!({"execute": "query-status", "id": 7}));
    }
}
