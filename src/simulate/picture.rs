//! The comparison as a picture: SVG text, no dependencies, readable in any browser.

use std::fmt::Write as _;

use super::choice::Choice;
use super::world::Outcome;

const COLOURS: [&str; 8] = [
    "#888888", "#d98e04", "#b8860b", "#c0392b", "#7fb3d5", "#5dade2", "#1a5276", "#239b56",
];
const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 250.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 60.0;

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Violation time so far of each policy over the hours, on a logarithmic scale, with totals and
/// moves beside it. `step_s` is the length of a step, seconds.
pub fn svg(title: &str, step_s: i64, results: &[(Choice, Outcome)]) -> String {
    let most = results
        .iter()
        .map(|r| r.1.violation_s)
        .fold(100.0, f64::max);
    let decades = most.log10().ceil().max(2.0);
    let steps = results
        .iter()
        .map(|r| r.1.course.len())
        .max()
        .unwrap_or(1)
        .max(2);
    let x = |i: usize| LEFT + (WIDTH - LEFT - RIGHT) * i as f64 / (steps - 1) as f64;
    // Everything up to 1 s is on the ground.
    let y = |v: f64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * v.max(1.0).log10() / decades;
    let mut out = String::new();
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{}</text>",
        escape(title)
    );
    for d in 0..=(decades as i32) {
        let at = y(10f64.powi(d));
        let label = if d == 0 {
            "0 s".to_owned()
        } else {
            format!("{} s", 10i64.pow(d as u32))
        };
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#dddddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            at + 4.0
        );
    }
    let hours = steps as f64 * step_s as f64 / 3600.0;
    for i in 0..=4 {
        let part = f64::from(i) / 4.0;
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{:.1} h</text>",
            LEFT + (WIDTH - LEFT - RIGHT) * part,
            HEIGHT - BOTTOM + 20.0,
            hours * part
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"{}\">Time features got less CPU than they wanted, so far</text>",
        HEIGHT - 14.0
    );
    for (n, (choice, o)) in results.iter().enumerate() {
        let colour = COLOURS[n % COLOURS.len()];
        let mut sum = 0.0;
        let mut points = String::new();
        for (i, v) in o.course.iter().enumerate() {
            sum += v;
            let _ = write!(points, "{:.1},{:.1} ", x(i), y(sum));
        }
        let at = TOP + 10.0 + 44.0 * n as f64;
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{points}\"/>\n\
             <rect x=\"{}\" y=\"{:.1}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"{at:.1}\">{}</text>\
             <text x=\"{}\" y=\"{:.1}\" fill=\"#555555\">{:.0} s, {} moves</text>",
            WIDTH - RIGHT + 20.0,
            at - 10.0,
            WIDTH - RIGHT + 38.0,
            escape(&choice.to_string()),
            WIDTH - RIGHT + 38.0,
            at + 16.0,
            o.violation_s,
            o.moves
        );
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_formed_and_within_its_frame() {
        let o = Outcome {
            violation_s: 1234.0,
            moves: 7,
            course: vec![0.0, 1000.0, 234.0],
            ..Outcome::default()
        };
        let text = svg(
            "a < b & c",
            300,
            &[(Choice::Drover, o.clone()), (Choice::Nothing, o)],
        );
        let doc = roxmltree::Document::parse(&text).unwrap();
        assert!(text.contains("1234 s, 7 moves"));
        let lines: Vec<_> = doc
            .descendants()
            .filter(|n| n.has_tag_name("polyline"))
            .collect();
        assert_eq!(lines.len(), 2);
        for l in lines {
            for p in l.attribute("points").unwrap().split_whitespace() {
                let (x, y) = p.split_once(',').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!((LEFT..=WIDTH - RIGHT).contains(&x), "{p}");
                assert!((TOP..=HEIGHT - BOTTOM).contains(&y), "{p}");
            }
        }
    }
}
