//! Every command and every file in README.md and docs/ is one that Drover takes.

use std::path::{Path, PathBuf};

use clap::Parser;

use super::args::{Cli, DaemonArgs};
use super::spec;
use crate::config::Config;

/// Fenced blocks of one language, and indented ones (language `""`), with file and line.
fn blocks(language: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(root.join("docs")).unwrap();
    let mut files: Vec<PathBuf> = docs.map(|e| e.unwrap().path()).collect();
    files.push(root.join("README.md"));
    files.retain(|p| p.extension().is_some_and(|e| e == "md"));
    files.sort();
    let mut found = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let mut open: Option<(String, String, String)> = None;
        for (n, line) in text.lines().enumerate() {
            let place = format!("{}:{}", path.display(), n + 1);
            if let Some(word) = line.trim_start().strip_prefix("```") {
                match open.take() {
                    None => open = Some((word.trim().to_owned(), place, String::new())),
                    Some((l, at, body)) if l == language => found.push((at, body)),
                    Some(_) => {}
                }
            } else if let Some((_, _, body)) = &mut open {
                body.push_str(line.trim_start());
                body.push('\n');
            } else if language == "sh" && line.starts_with("    ") {
                found.push((place, line.trim_start().to_owned()));
            }
        }
        assert!(open.is_none(), "{}: a fence is not closed", path.display());
    }
    found
}

/// Words of a line as a shell would make them of what the documents use: blanks and double
/// quotes; up to a comment, a pipe or an alternative.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut any) = (Vec::new(), String::new(), false, false);
    for c in line.chars() {
        match c {
            '"' => (quoted, any) = (!quoted, true),
            c if c.is_whitespace() && !quoted => {
                if any || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            '#' | '|' | '>' | '&' if !quoted && word.is_empty() => return words,
            c => word.push(c),
        }
    }
    if any || !word.is_empty() {
        words.push(word);
    }
    words
}

#[test]
fn commands_are_understood() {
    let mut seen = 0;
    for (place, body) in blocks("sh") {
        for line in body.lines() {
            let words = words(line);
            // `drover` bare is the shell; a bare word in prose blocks is not a command.
            let wrong = match words.first().map(String::as_str) {
                Some("drover") if words.len() > 1 => Cli::try_parse_from(&words).err(),
                Some("droverd") => DaemonArgs::try_parse_from(&words).err(),
                _ => continue,
            };
            // `--help` and `--version` are "errors" that go well.
            if let Some(e) = wrong.filter(|e| e.exit_code() != 0) {
                panic!("{place}: {line}\n{e}");
            }
            seen += 1;
        }
    }
    assert!(seen > 30, "only {seen} commands found");
}

#[test]
fn files_are_accepted() {
    let (mut features, mut configs) = (0, 0);
    for (place, body) in blocks("toml") {
        if body.lines().any(|l| l.starts_with("[host]")) {
            toml::from_str::<Config>(&body).unwrap_or_else(|e| panic!("{place}: {e}"));
            configs += 1;
        } else if body.lines().any(|l| l.starts_with("[workload]")) {
            spec::parse(&body, &place).unwrap_or_else(|e| panic!("{e}"));
            features += 1;
        } else {
            // A part of drover.toml.
            let whole = format!("[host]\nname = \"h\"\n{body}");
            toml::from_str::<Config>(&whole).unwrap_or_else(|e| panic!("{place}: {e}"));
        }
    }
    assert!(features > 2 && configs > 1);
}
