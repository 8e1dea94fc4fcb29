//! Curves in a terminal, drawn with braille dots: two columns and four rows of dots a character.

use std::io::{self, Write};

use super::super::screen::{Screen, Style};
use super::super::time::utc;

/// Rows of characters of a curve.
const ROWS: usize = 8;
/// Width when the screen has none.
const WIDTH: usize = 80;
/// Least width of a curve.
const LEAST: usize = 20;

/// A value at a time, and the range around it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dot {
    /// Milliseconds since the epoch.
    pub at_ms: i64,
    /// Least.
    pub min: f64,
    /// Mean.
    pub mean: f64,
    /// Most.
    pub max: f64,
}

/// A curve with its name.
pub struct Curve<'a> {
    /// Heading.
    pub name: &'a str,
    /// In time order.
    pub dots: &'a [Dot],
    /// A value for people.
    pub show: &'a dyn Fn(f64) -> String,
}

struct Canvas {
    width: usize,
    /// Bits of the braille character at each place.
    cells: Vec<u8>,
}

impl Canvas {
    fn new(width: usize) -> Self {
        Self {
            width,
            cells: vec![0; width * ROWS],
        }
    }

    /// Sets the dot at column `x` from the left and `y` from the bottom.
    fn set(&mut self, x: usize, y: usize) {
        let (x, y) = (x.min(self.width * 2 - 1), y.min(ROWS * 4 - 1));
        let down = ROWS * 4 - 1 - y;
        let bit = match (x % 2, down % 4) {
            (0, 3) => 6,
            (1, 3) => 7,
            (column, row) => column * 3 + row,
        };
        self.cells[down / 4 * self.width + x / 2] |= 1 << bit;
    }

    fn row(&self, row: usize) -> String {
        let cells = &self.cells[row * self.width..(row + 1) * self.width];
        let text: String = cells
            .iter()
            .map(|b| match b {
                0 => ' ',
                b => char::from_u32(0x2800 + u32::from(*b)).unwrap_or('?'),
            })
            .collect();
        text.trim_end().to_owned()
    }
}

/// Draws a curve over `since_ms` to `until_ms`: the mean as a line, broken where there are no
/// points for a while, and the range around it.
pub fn plot(
    out: &mut dyn Write,
    curve: &Curve<'_>,
    (since_ms, until_ms): (i64, i64),
    screen: &Screen,
) -> io::Result<()> {
    writeln!(out, "{}", screen.paint(Style::Head, curve.name))?;
    let known = curve.dots.iter().filter(|d| d.mean.is_finite());
    let top = known.map(|d| d.max).fold(0.0f64, f64::max);
    if curve.dots.is_empty() {
        return writeln!(out, "  no points");
    }
    let top = if top > 0.0 { top } else { 1.0 };
    let labels = [
        (curve.show)(top),
        (curve.show)(top / 2.0),
        (curve.show)(0.0),
    ];
    let margin = labels.iter().map(|l| l.chars().count()).max().unwrap_or(0);
    let width = screen.width.unwrap_or(WIDTH).saturating_sub(margin + 3);
    let width = width.max(LEAST);
    let mut canvas = Canvas::new(width);
    let span = (until_ms - since_ms).max(1) as f64;
    let x = |at: i64| ((at - since_ms) as f64 / span * (width * 2 - 1) as f64).max(0.0) as usize;
    let y = |v: f64| ((v / top).clamp(0.0, 1.0) * (ROWS * 4 - 1) as f64).round() as usize;
    let apart = gap(curve.dots);
    let mut before: Option<&Dot> = None;
    for d in curve.dots {
        for dot in y(d.min)..=y(d.max) {
            canvas.set(x(d.at_ms), dot);
        }
        if let Some(b) = before.filter(|b| d.at_ms - b.at_ms <= apart) {
            let (from, to) = (x(b.at_ms), x(d.at_ms));
            for column in from..=to {
                let part = (column - from) as f64 / (to - from).max(1) as f64;
                canvas.set(column, y(b.mean + (d.mean - b.mean) * part));
            }
        }
        before = Some(d);
    }
    for row in 0..ROWS {
        let label = match row {
            0 => &labels[0],
            r if r == ROWS / 2 => &labels[1],
            r if r == ROWS - 1 => &labels[2],
            _ => "",
        };
        let line = format!("{label:>margin$} \u{2524}{}", canvas.row(row));
        writeln!(out, "{}", line.trim_end())?;
    }
    let (first, last) = (utc(since_ms, false), utc(until_ms, false));
    let blanks = width.saturating_sub(first.len() + last.len());
    writeln!(out, "{:margin$}  {first}{:blanks$}{last}", "", "")
}

/// Points farther apart than this are not joined: three times their usual distance.
fn gap(dots: &[Dot]) -> i64 {
    let mut apart: Vec<i64> = dots.windows(2).map(|w| w[1].at_ms - w[0].at_ms).collect();
    apart.sort_unstable();
    apart
        .get(apart.len() / 2)
        .map_or(i64::MAX, |usual| usual * 3)
}

/// A curve in one line of `width` characters: the latest values, against the greatest of them.
pub fn sparkline(values: &[f64], width: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let values = &values[values.len().saturating_sub(width)..];
    let top = values.iter().copied().fold(0.0f64, f64::max);
    let bar = |v: &f64| {
        if !v.is_finite() {
            return ' ';
        }
        let part = if top > 0.0 { v / top } else { 0.0 };
        BARS[((part * 7.0).round() as usize).min(7)]
    };
    let bars: String = values.iter().map(bar).collect();
    format!("{bars:>width$}")
}

#[cfg(test)]
mod tests {
    use super::super::testing::text;
    use super::*;

    fn dot(at_ms: i64, v: f64) -> Dot {
        Dot {
            at_ms,
            min: v,
            mean: v,
            max: v,
        }
    }

    #[test]
    fn a_slope_and_a_gap() {
        let mut dots: Vec<Dot> = (0..=40).map(|n| dot(n * 1000, n as f64)).collect();
        dots.retain(|d| !(15_000..25_000).contains(&d.at_ms));
        let curve = Curve {
            name: "CPU",
            dots: &dots,
            show: &|v| format!("{v:.0} %"),
        };
        let screen = Screen {
            width: Some(48),
            ..Screen::default()
        };
        let mut out = Vec::new();
        plot(&mut out, &curve, (0, 40_000), &screen).unwrap();
        let out = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines.len(), ROWS + 2);
        assert_eq!(lines[0], "CPU");
        assert!(
            lines[1].starts_with("40 % ┤") && lines[1].ends_with('⠉')
                || lines[1].chars().count() > 40,
            "{out}"
        );
        assert!(lines[8].starts_with(" 0 % ┤"), "{out}");
        assert!(
            lines[9].contains("1970-01-01T00:00:00Z") && lines[9].ends_with("1970-01-01T00:00:40Z")
        );
        // Somewhere in the middle nothing is drawn.
        let drawn = |l: &str| l.chars().skip(6).map(|c| c != ' ').collect::<Vec<_>>();
        let columns: Vec<Vec<bool>> = lines[1..9].iter().map(|l| drawn(l)).collect();
        let any = |x: usize| columns.iter().any(|c| c.get(x) == Some(&true));
        assert!(any(2) && any(38) && (17..24).any(|x| !any(x)), "{out}");
        for line in &lines {
            assert!(line.chars().count() <= 48, "{line}");
        }
    }

    #[test]
    fn nothing_and_zero() {
        let show = |v: f64| format!("{v}");
        let empty = Curve {
            name: "x",
            dots: &[],
            show: &show,
        };
        assert!(text(|o, s| plot(o, &empty, (0, 1), s)).contains("no points"));
        let zero = [dot(0, 0.0), dot(5, 0.0)];
        let zero = Curve {
            dots: &zero,
            ..empty
        };
        text(|o, s| plot(o, &zero, (0, 0), s));
    }

    #[test]
    fn sparklines() {
        assert_eq!(sparkline(&[0.0, 7.0, 3.5], 4), " ▁█▅");
        assert_eq!(sparkline(&[1.0, 2.0, 4.0], 2), "▅█");
        assert_eq!(sparkline(&[0.0, f64::NAN], 2), "▁ ");
        assert_eq!(sparkline(&[], 2), "  ");
    }
}
