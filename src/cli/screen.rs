//! What the output goes to, and text that is safe for it.

use std::io::IsTerminal;

/// What the output goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Screen {
    /// Characters per line; `None` when lines may be as long as they are.
    pub width: Option<usize>,
    /// Whether to colour.
    pub colour: bool,
    /// Whether a line may be written over.
    pub terminal: bool,
}

impl Screen {
    /// Standard output: a terminal's width and, unless `NO_COLOR` is set, colour. `COLUMNS`
    /// overrides the width.
    pub fn detect() -> Self {
        let terminal = std::io::stdout().is_terminal();
        let columns = std::env::var("COLUMNS").ok();
        let set = columns.and_then(|c| c.parse().ok()).filter(|c| *c > 0);
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|t| t == "dumb");
        Self {
            width: set.or_else(|| if terminal { terminal_width() } else { None }),
            colour: terminal && !no_colour && !dumb,
            terminal: terminal && !dumb,
        }
    }

    /// `text` in a style, if this screen has colour.
    pub fn paint(&self, style: Style, text: &str) -> String {
        let code = match style {
            Style::Plain => return text.to_owned(),
            Style::Head => "1",
            Style::Good => "32",
            Style::Bad => "31",
            Style::Dim => "2",
        };
        if self.colour && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// How a text looks on a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Style {
    /// As it is.
    #[default]
    Plain,
    /// Heading.
    Head,
    /// Good news.
    Good,
    /// Bad news.
    Bad,
    /// Less important.
    Dim,
}

fn terminal_width() -> Option<usize> {
    terminal_size()
        .map(|(_, columns)| columns)
        .filter(|columns| *columns > 0)
}

/// Rows and columns of the terminal on standard output, if it is one; 0 where it does not say.
pub fn terminal_size() -> Option<(usize, usize)> {
    size_of(nix::libc::STDOUT_FILENO)
}

/// Columns of the terminal on standard error, if it is one and says so.
pub fn error_width() -> Option<usize> {
    size_of(nix::libc::STDERR_FILENO)
        .map(|(_, columns)| columns)
        .filter(|columns| *columns > 0)
}

fn size_of(fd: i32) -> Option<(usize, usize)> {
    use nix::libc::{TIOCGWINSZ, ioctl, winsize};
    let mut size = winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ writes one `winsize` through the pointer, which outlives the call.
    let rc = unsafe { ioctl(fd, TIOCGWINSZ, &raw mut size) };
    (rc == 0).then_some((usize::from(size.ws_row), usize::from(size.ws_col)))
}

/// `text` without control characters: names and reasons may come from a guest, and a terminal
/// obeys what it is sent. Line breaks become blanks.
pub fn plain(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\t' => ' ',
            c if c.is_control() => '?',
            // Marks that turn the writing direction could make one name look like another.
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '?',
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_escapes_pass() {
        assert_eq!(plain("a\x1b[31mb\nc\u{202e}d\u{9b}"), "a?[31mb c?d?");
    }

    #[test]
    fn colour_only_when_asked() {
        let mut s = Screen::default();
        assert_eq!(s.paint(Style::Bad, "x"), "x");
        s.colour = true;
        assert_eq!(s.paint(Style::Bad, "x"), "\x1b[31mx\x1b[0m");
        assert_eq!(s.paint(Style::Plain, "x"), "x");
    }
}
