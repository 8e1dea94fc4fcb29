//! `config check` and `reload`.

use std::io::Write;
use std::path::Path;

use super::client::{Client, Result};
use super::error::CliError;
use super::screen::plain;
use super::views;
use crate::config::Loaded;
use crate::feature_file;

/// `drover config check`: everything that is wrong, not just the first.
pub(super) fn check(out: &mut dyn Write, json: bool, file: &Path) -> Result<()> {
    let mut errors = Vec::new();
    let mut features = 0;
    match Loaded::read(file) {
        Ok(loaded) => {
            let found = feature_file::read_dir(&loaded.config.features.dir);
            features = found.features.len();
            errors.extend(found.errors.iter().map(ToString::to_string));
        }
        Err(e) => errors.push(e.with_cause()),
    }
    if json {
        let answer = serde_json::json!({
            "file": file, "valid": errors.is_empty(), "features": features, "errors": errors
        });
        views::json(out, &answer)?;
    } else if errors.is_empty() {
        let name = file.display().to_string();
        writeln!(
            out,
            "{}: valid, with {features} features from files",
            plain(&name)
        )?;
    }
    match errors.len() {
        0 => Ok(()),
        1 => Err(CliError::Usage(errors.remove(0))),
        n => Err(CliError::Usage(format!(
            "{n} errors: {}",
            errors.join("; ")
        ))),
    }
}

/// `drover reload`.
pub(super) async fn reload(out: &mut dyn Write, json: bool, client: &Client) -> Result<()> {
    let done = client.reload().await?;
    if json {
        views::json(out, &done)?;
        return Ok(());
    }
    if done.keys.is_empty() && done.features.is_empty() && done.problems.is_empty() {
        writeln!(out, "Nothing changed")?;
    }
    for key in &done.keys {
        writeln!(out, "Changed: {}", plain(key))?;
    }
    for what in &done.features {
        writeln!(out, "Feature {}", plain(what))?;
    }
    for why in &done.problems {
        writeln!(out, "Not yet, trying again: {}", plain(why))?;
    }
    Ok(())
}
