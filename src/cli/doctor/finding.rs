//! What `drover doctor` found: a severity, what it is about, what was seen, and the way out.

use std::io::{self, Write};

use serde::Serialize;

use super::super::error::CliError;
use super::super::screen::{Screen, Style};
use super::super::table::{Cell, Table};
use super::super::views;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Drover works, but something will or may stand in its way.
    Warning,
    /// Something does not work.
    Error,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// What it is about: `hook`, `peer h2`, `domain web`, ...
    pub about: String,
    /// What was seen.
    pub found: String,
    /// What to do about it, in a sentence; absent when nothing is to be done.
    pub fix: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(about: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            severity: Severity::Ok,
            about: about.into(),
            found: found.into(),
            fix: None,
        }
    }

    /// Something will or may stand in the way.
    pub fn warning(
        about: impl Into<String>,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Warning,
            fix: Some(fix.into()),
            ..Self::ok(about, found)
        }
    }

    /// Something does not work.
    pub fn error(
        about: impl Into<String>,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Error,
            ..Self::warning(about, found, fix)
        }
    }

    /// An error from a message in Drover's habit, `what is wrong; what to do`; `fix` is for
    /// messages that name no way out.
    pub fn told(about: impl Into<String>, message: &str, fix: &str) -> Self {
        let message = message.trim();
        match message.split_once("; ") {
            Some((found, fix)) => Self::error(about, found, fix),
            None => Self::error(about, message, fix),
        }
    }
}

/// All findings.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// In the order in which the checks are made.
    pub findings: Vec<Finding>,
}

impl Report {
    /// How many findings are of a severity.
    pub fn count(&self, severity: Severity) -> usize {
        let of = self.findings.iter().filter(|f| f.severity == severity);
        of.count()
    }

    /// As a table and a line that sums it up.
    pub fn table(&self, out: &mut dyn Write, screen: &Screen) -> io::Result<()> {
        let mut t = Table::new(&["Severity", "About", "Found", "What to do"]);
        for f in &self.findings {
            let style = match f.severity {
                Severity::Ok => Style::Good,
                Severity::Warning => Style::Head,
                Severity::Error => Style::Bad,
            };
            t.row(vec![
                Cell::styled(f.severity.as_str(), style),
                Cell::new(&f.about),
                Cell::new(&f.found),
                Cell::new(f.fix.as_deref().unwrap_or_default()),
            ]);
        }
        t.write(out, screen)?;
        writeln!(
            out,
            "\n{} ok, {} warnings, {} errors",
            self.count(Severity::Ok),
            self.count(Severity::Warning),
            self.count(Severity::Error)
        )
    }

    /// As one JSON object.
    pub fn json(&self, out: &mut dyn Write) -> io::Result<()> {
        let value = serde_json::json!({
            "findings": self.findings,
            "warnings": self.count(Severity::Warning),
            "errors": self.count(Severity::Error),
        });
        views::json(out, &value)
    }

    /// The result of the command: exit code 1 with errors, 7 with warnings only.
    pub fn verdict(&self) -> Result<(), CliError> {
        match (self.count(Severity::Error), self.count(Severity::Warning)) {
            (0, 0) => Ok(()),
            (0, _) => Err(CliError::Warnings),
            _ => Err(CliError::Unwell),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::views::testing::text;
    use super::*;

    #[test]
    fn the_worst_decides() {
        let mut r = Report::default();
        r.findings.push(Finding::ok("a", "fine"));
        assert!(r.verdict().is_ok());
        r.findings.push(Finding::warning("b", "soon", "renew"));
        assert_eq!(r.verdict().unwrap_err().code(), 7);
        r.findings.push(Finding::error("c", "broken", "repair"));
        assert_eq!(r.verdict().unwrap_err().code(), 1);
        let out = text(|o, s| r.table(o, s));
        assert!(out.contains("error     c      broken  repair"), "{out}");
        assert!(out.ends_with("\n1 ok, 1 warnings, 1 errors\n"), "{out}");
        let mut json = Vec::new();
        r.json(&mut json).unwrap();
        let v: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(v["errors"], 1);
        assert_eq!(v["findings"][1]["severity"], "warning");
        assert_eq!(v["findings"][0]["fix"], serde_json::Value::Null);
    }

    #[test]
    fn messages_bring_their_way_out() {
        let f = Finding::told("x", "the file is gone; put it back", "see the log");
        assert_eq!(
            (f.found.as_str(), f.fix.as_deref()),
            ("the file is gone", Some("put it back"))
        );
        let f = Finding::told("x", "no idea\n", "see the log");
        assert_eq!(
            (f.found.as_str(), f.fix.as_deref()),
            ("no idea", Some("see the log"))
        );
    }
}
