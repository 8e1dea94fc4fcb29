//! OpenMetrics text, version 1.0. Pure.

use std::fmt::Write;

/// Kinds of metrics that Drover has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Goes up only; its samples are called `NAME_total`.
    Counter,
    /// Constant labels with the value 1; its samples are called `NAME_info`.
    Info,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Info => "info",
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Gauge => "",
            Self::Counter => "_total",
            Self::Info => "_info",
        }
    }
}

/// A page under construction: families one after the other, each with all its samples.
#[derive(Debug, Default)]
pub struct Page(String);

/// Units that are told apart from the name, longest first: a name must end in its unit.
const UNITS: [&str; 6] = [
    "bytes_per_second",
    "per_second",
    "bytes",
    "ratio",
    "seconds",
    "cpus",
];

impl Page {
    /// Begins a family and gives what adds its samples.
    pub fn family<'a>(&'a mut self, name: &'a str, kind: Kind, help: &str) -> Family<'a> {
        let out = &mut self.0;
        // Writing to a string cannot fail.
        let _ = writeln!(out, "# TYPE {name} {}", kind.name());
        let unit = UNITS.iter().find(|u| {
            name.strip_suffix(**u)
                .is_some_and(|rest| rest.ends_with('_'))
        });
        if let Some(unit) = unit {
            let _ = writeln!(out, "# UNIT {name} {unit}");
        }
        let _ = writeln!(out, "# HELP {name} {}", escape(help));
        Family { out, name, kind }
    }

    /// The whole page.
    pub fn end(mut self) -> String {
        self.0.push_str("# EOF\n");
        self.0
    }
}

/// A family under construction.
#[derive(Debug)]
pub struct Family<'a> {
    out: &'a mut String,
    name: &'a str,
    kind: Kind,
}

impl Family<'_> {
    /// Adds a sample. A value that is not finite is left out: it was not measured.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        if !value.is_finite() {
            return;
        }
        let _ = write!(self.out, "{}{}", self.name, self.kind.suffix());
        for (i, (name, text)) in labels.iter().enumerate() {
            let open = if i == 0 { '{' } else { ',' };
            let _ = write!(self.out, "{open}{name}=\"{}\"", escape(text));
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
        // The sum of nothing is -0.0.
        let _ = writeln!(self.out, " {}", value + 0.0);
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out
}
