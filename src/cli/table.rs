//! Tables that fit the screen: columns that are too wide are wrapped, nothing is cut off.

use std::io::{self, Write};

use super::screen::{Screen, Style, plain};

/// A field of a table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// Plain text.
    pub fn new(text: impl AsRef<str>) -> Self {
        Self::styled(text, Style::Plain)
    }

    /// Text in a style.
    pub fn styled(text: impl AsRef<str>, style: Style) -> Self {
        Self {
            text: plain(text.as_ref()),
            style,
        }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text)
    }
}

/// A table with a heading.
#[derive(Debug, Clone, Default)]
pub struct Table {
    head: Vec<String>,
    right: Vec<bool>,
    rows: Vec<Vec<Cell>>,
}

/// Least width that a column is wrapped to.
const LEAST: usize = 8;
/// Between two columns.
const GAP: usize = 2;

impl Table {
    /// A heading that begins with `>` is of a column aligned to the right.
    pub fn new(head: &[&'static str]) -> Self {
        Self::owned(head.iter().map(|h| (*h).to_owned()).collect())
    }

    /// As [`Self::new`], of a heading made at run time.
    pub fn owned(head: Vec<String>) -> Self {
        Self {
            right: head.iter().map(|h| h.starts_with('>')).collect(),
            head: head
                .into_iter()
                .map(|h| plain(h.trim_start_matches('>')))
                .collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; missing fields are empty.
    pub fn row(&mut self, mut cells: Vec<Cell>) {
        cells.resize(self.head.len(), Cell::default());
        self.rows.push(cells);
    }

    fn widths(&self, screen: &Screen) -> Vec<usize> {
        let mut widths: Vec<usize> = self.head.iter().map(|h| h.chars().count()).collect();
        for row in &self.rows {
            for (w, c) in widths.iter_mut().zip(row) {
                *w = (*w).max(c.text.chars().count());
            }
        }
        let Some(limit) = screen.width else {
            return widths;
        };
        let gaps = GAP * widths.len().saturating_sub(1);
        // Lines are broken between words first, then within words down to the least width.
        for least in [self.longest_words(), vec![LEAST; widths.len()]] {
            while widths.iter().sum::<usize>() + gaps > limit {
                let shrinkable = widths.iter_mut().zip(&least).filter(|(w, l)| **w > **l);
                let Some((widest, _)) = shrinkable.max_by_key(|(w, _)| **w) else {
                    break;
                };
                *widest -= 1;
            }
        }
        widths
    }

    /// Per column the length of its longest word, at least [`LEAST`].
    fn longest_words(&self) -> Vec<usize> {
        let longest = |text: &str| text.split(' ').map(|w| w.chars().count()).max();
        let mut least = vec![LEAST; self.head.len()];
        let heads =
            std::iter::once(&self.head).flat_map(|h| h.iter().map(String::as_str).enumerate());
        let cells = self.rows.iter();
        let cells = cells.flat_map(|r| r.iter().map(|c| c.text.as_str()).enumerate());
        for (column, text) in heads.chain(cells) {
            least[column] = least[column].max(longest(text).unwrap_or(0));
        }
        least
    }

    /// Writes heading and rows.
    pub fn write(&self, out: &mut dyn Write, screen: &Screen) -> io::Result<()> {
        let widths = self.widths(screen);
        let head: Vec<Cell> = self
            .head
            .iter()
            .map(|h| Cell::styled(h, Style::Head))
            .collect();
        self.line(out, screen, &widths, &head)?;
        for row in &self.rows {
            self.line(out, screen, &widths, row)?;
        }
        Ok(())
    }

    fn line(
        &self,
        out: &mut dyn Write,
        screen: &Screen,
        widths: &[usize],
        cells: &[Cell],
    ) -> io::Result<()> {
        let wrapped: Vec<Vec<String>> = cells
            .iter()
            .zip(widths)
            .map(|(c, w)| wrap(&c.text, *w))
            .collect();
        let height = wrapped.iter().map(Vec::len).max().unwrap_or(1);
        for n in 0..height {
            let mut line = String::new();
            // Blanks are written before a text, never after the last.
            let mut blanks = 0;
            for (i, (lines, w)) in wrapped.iter().zip(widths).enumerate() {
                let text = lines.get(n).map_or("", String::as_str);
                let free = w.saturating_sub(text.chars().count());
                let (before, after) = if self.right[i] { (free, 0) } else { (0, free) };
                if text.is_empty() {
                    blanks += w + GAP;
                } else {
                    line.push_str(&" ".repeat(blanks + before));
                    line.push_str(&screen.paint(cells[i].style, text));
                    blanks = after + GAP;
                }
            }
            writeln!(out, "{line}")?;
        }
        Ok(())
    }
}

/// `text` in lines of at most `width` characters, between words where it can be.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split(' ') {
        let mut word: Vec<char> = word.chars().collect();
        let gap = usize::from(used > 0);
        if used + gap + word.len() > width && used > 0 {
            lines.push(String::new());
            used = 0;
        } else if gap > 0 {
            push(&mut lines, &[' ']);
            used += 1;
        }
        while word.len() > width {
            let rest = word.split_off(width);
            push(&mut lines, &word);
            lines.push(String::new());
            word = rest;
        }
        push(&mut lines, &word);
        used += word.len();
    }
    lines
}

fn push(lines: &mut [String], chars: &[char]) {
    if let Some(last) = lines.last_mut() {
        last.extend(chars);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(t: &Table, width: Option<usize>) -> String {
        let mut out = Vec::new();
        let screen = Screen {
            width,
            ..Screen::default()
        };
        t.write(&mut out, &screen).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn sample() -> Table {
        let mut t = Table::new(&["Host", ">Score", "Refused because"]);
        t.row(vec!["beta".into(), "0.81".into(), "".into()]);
        t.row(vec![
            "gamma".into(),
            "-".into(),
            "no guest with the helper runs there".into(),
        ]);
        t
    }

    #[test]
    fn natural() {
        assert_eq!(
            text(&sample(), None),
            "Host   Score  Refused because\n\
             beta    0.81\n\
             gamma      -  no guest with the helper runs there\n"
        );
    }

    #[test]
    fn wrapped() {
        let out = text(&sample(), Some(36));
        assert_eq!(
            out,
            "Host   Score  Refused because\n\
             beta    0.81\n\
             gamma      -  no guest with the\n\
             \x20             helper runs there\n"
        );
        for width in 1..60 {
            let out = text(&sample(), Some(width));
            let least = 3 * LEAST + 2 * GAP;
            for line in out.lines() {
                assert!(line.chars().count() <= width.max(least), "{width}: {line}");
            }
        }
    }

    #[test]
    fn words_stay_whole_while_they_can() {
        let mut t = Table::new(&["Identifier", "Cause"]);
        t.row(vec!["0a1b2c3d-4e5f-6789".into(), "cpu 93 % > 80 %".into()]);
        assert_eq!(
            text(&t, Some(28)),
            "Identifier          Cause\n\
             0a1b2c3d-4e5f-6789  cpu 93 %\n\
             \x20                   > 80 %\n"
        );
    }

    #[test]
    fn long_words_break() {
        assert_eq!(wrap("abcdefgh ij", 3), ["abc", "def", "gh", "ij"]);
        assert_eq!(wrap("", 3), [""]);
        assert_eq!(wrap("ab c", 4), ["ab c"]);
    }

    #[test]
    fn guests_cannot_write_escapes() {
        let mut t = Table::new(&["Name"]);
        t.row(vec!["\x1b]0;x\x07".into()]);
        assert!(!text(&t, None).contains('\x1b'));
    }
}
