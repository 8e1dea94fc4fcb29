//! `drover edit`: a definition in the user's editor.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::args::Target;
use super::client::{Client, Result};
use super::error::CliError;
use super::screen::plain;
use super::spec;
use crate::api::Changed;
use crate::feature::FeatureSpec;

/// What became of the definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edited {
    /// Registered anew.
    Done,
    /// Left as it was.
    Same,
}

/// A directory that only this user can read: definitions may hold secrets. Removed when dropped.
struct Private(PathBuf);

impl Private {
    fn new() -> std::io::Result<Self> {
        let base =
            std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let mut last = std::io::Error::other("no free name");
        for n in 0..100 {
            let dir = base.join(format!("drover-edit-{}-{n}", std::process::id()));
            match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
                Ok(()) => return Ok(Self(dir)),
                Err(e) => last = e,
            }
        }
        Err(last)
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // Nothing depends on it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn editor() -> String {
    let set = |name: &str| std::env::var(name).ok().filter(|v| !v.trim().is_empty());
    set("VISUAL").or_else(|| set("EDITOR")).unwrap_or_else(|| {
        let debian = Path::new("/usr/bin/sensible-editor");
        if debian.exists() {
            "sensible-editor"
        } else {
            "vi"
        }
        .to_owned()
    })
}

/// Runs the editor, which may have arguments, on the file.
fn run_editor(editor: &str, file: &Path) -> Result<()> {
    let failed = |why: String| {
        CliError::Failed(format!(
            "the editor '{editor}' failed: {why}; set EDITOR to another one"
        ))
    };
    let status = Command::new("sh")
        .args(["-c", &format!("{editor} \"$1\""), "sh"])
        .arg(file)
        .status()
        .map_err(|e| failed(e.to_string()))?;
    if status.success() {
        Ok(())
    } else {
        Err(failed(status.to_string()))
    }
}

/// Whether the user wants to go on editing after a mistake.
fn again(why: &str) -> bool {
    let mut err = std::io::stderr();
    let asked = write!(err, "{}\nEdit again? [Y/n] ", plain(why)).and_then(|()| err.flush());
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line);
    asked.is_ok()
        && matches!(read, Ok(1..))
        && !matches!(line.trim().to_ascii_lowercase().as_str(), "n" | "no")
}

/// Lets the user edit the definition, and registers it.
pub(super) async fn edit(client: &Client, target: &Target, ask: bool) -> Result<Edited> {
    let before = client.feature(&target.domain, &target.feature).await?.spec;
    if before.hides() {
        // Told before, not after the editing.
        return Err(CliError::Refused(format!(
            "the arguments and environment of '{}/{}' are hidden from you, so its definition cannot \
             be edited: do it as root, or have polkit grant org.drover1.inspect; \"drover threshold\" \
             changes thresholds without it",
            target.domain, target.feature
        )));
    }
    let text = spec::dump(&before)?;
    let failed = |e: std::io::Error| CliError::Failed(format!("cannot keep the file to edit: {e}"));
    let dir = Private::new().map_err(failed)?;
    let file = dir.0.join(format!("{}.toml", target.feature));
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut open = options.open(&file).map_err(failed)?;
    open.write_all(text.as_bytes()).map_err(failed)?;
    drop(open);
    let editor = editor();
    loop {
        run_editor(&editor, &file)?;
        let now = std::fs::read_to_string(&file).map_err(failed)?;
        if now == text {
            return Ok(Edited::Same);
        }
        let outcome = match spec::parse(&now, &format!("{}.toml", target.feature)) {
            Ok(after) => apply(client, target, &before, after).await,
            Err(e) => Err(e),
        };
        match outcome {
            Err(e) if ask && again(&e.to_string()) => {}
            outcome => return outcome,
        }
    }
}

async fn apply(
    client: &Client,
    target: &Target,
    before: &FeatureSpec,
    after: FeatureSpec,
) -> Result<Edited> {
    if after.name != before.name {
        return Err(CliError::Usage(format!(
            "a feature cannot be renamed: define '{}' anew and undefine '{}'",
            after.name, before.name
        )));
    }
    let others_same = FeatureSpec {
        thresholds: before.thresholds.clone(),
        ..after.clone()
    } == *before;
    // Thresholds can change while it runs.
    let changed = if others_same {
        client
            .set_thresholds(&target.domain, &target.feature, &after.thresholds)
            .await?
    } else {
        client.register(&target.domain, &after).await?
    };
    Ok(match changed {
        Changed::Done => Edited::Done,
        Changed::Already => Edited::Same,
    })
}
