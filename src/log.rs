//! The log: one line per event, whatever is in it. Much of what is logged was said by guests and
//! peers; a line break in it must not make a line of its own, nor an escape sequence reach a
//! terminal.

use std::fmt::Write as _;
use std::io::{self, Write};

use tracing_subscriber::fmt::MakeWriter;

/// Writes events to standard error, control characters escaped.
#[derive(Debug, Clone, Copy, Default)]
pub struct OneLine;

impl MakeWriter<'_> for OneLine {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line(Vec::new())
    }
}

/// One event; written when it is complete.
#[derive(Debug)]
pub struct Line(Vec<u8>);

impl Write for Line {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            // A log that cannot be written has nowhere to say so.
            let _ = io::stderr().write_all(escape(&self.0).as_bytes());
        }
    }
}

/// Characters that change how a terminal or an editor shows the rest of a text.
fn changes_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escape(event: &[u8]) -> String {
    let text = String::from_utf8_lossy(event);
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let mut line = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        if c.is_control() || changes_direction(c) {
            let _ = write!(line, "{}", c.escape_default());
        } else {
            line.push(c);
        }
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_makes_no_line_of_its_own() {
        let said = "INFO x: reason=a\n2026 ERROR forged\x1b[31m\r\u{202e}\u{85}ä\tb\n";
        assert_eq!(
            escape(said.as_bytes()),
            "INFO x: reason=a\\n2026 ERROR forged\\u{1b}[31m\\r\\u{202e}\\u{85}ä\\tb\n"
        );
        assert_eq!(escape(b"\xff\n"), "\u{fffd}\n");
    }

    #[test]
    fn an_event_is_one_line() {
        let mut line = OneLine.make_writer();
        line.write_all(b"a\nb").unwrap();
        assert_eq!(escape(&line.0), "a\\nb\n");
        line.0.clear();
    }
}
