//! Data to text: each function takes data and a writer, none asks anybody.

pub mod check;
pub mod decisions;
pub mod features;
pub mod forecast;
pub mod history;
pub mod hosts;
pub mod jobs;
pub mod plan;
pub mod plot;
pub mod top;

use std::io::{self, Write};

use crate::feature::Resource;
use crate::threshold::format_value;

/// What cannot be measured is shown so, never as zero.
pub const NONE: &str = "-";

/// A value in its resource's unit, `-` when unavailable.
pub fn value(resource: Resource, value: Option<f64>) -> String {
    value.map_or_else(|| NONE.to_owned(), |v| format_value(resource, v))
}

/// Percent without a unit, `-` when unavailable.
pub fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| NONE.to_owned(), |v| format!("{v:.1}"))
}

/// Bytes for people.
pub fn bytes(n: u64) -> String {
    format_value(Resource::Memory, n as f64 / crate::usage::MIB)
}

/// One JSON value, indented, with a line end.
pub fn json<T: serde::Serialize + ?Sized>(out: &mut dyn Write, value: &T) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

/// One JSON value in one line.
pub fn json_line<T: serde::Serialize + ?Sized>(out: &mut dyn Write, value: &T) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)
}

#[cfg(test)]
pub(crate) mod testing {
    use super::super::screen::Screen;

    /// What a view writes, lines as long as they are, no colour.
    pub fn text(
        view: impl FnOnce(&mut dyn std::io::Write, &Screen) -> std::io::Result<()>,
    ) -> String {
        let mut out = Vec::new();
        view(&mut out, &Screen::default()).unwrap();
        String::from_utf8(out).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unavailable_is_a_dash() {
        assert_eq!(value(Resource::NetRx, None), "-");
        assert_eq!(value(Resource::NetRx, Some(0.0)), "0 B/s");
        assert_eq!(percent(None), "-");
        assert_eq!(bytes(2_097_152), "2.0 MiB");
    }
}
