//! `check`.

use std::io::Write;

use super::args::{Cli, Format, Target, To};
use super::client::{Client, Result};
use super::error::CliError;
use super::screen::Screen;
use super::views::{self, check as view};

/// `drover check`. Ctrl-C ends the waiting; nothing was changed.
pub(super) async fn check(
    cli: &Cli,
    out: &mut dyn Write,
    screen: &Screen,
    client: &Client,
    target: &Target,
    to: Option<&To>,
    rehearse: bool,
) -> Result<()> {
    let mut stop = super::interrupts()?;
    let (host, domain) = to.map_or(("", ""), |t| (t.host.as_str(), t.domain.as_str()));
    let canceled = |what: &str| {
        CliError::Canceled(format!(
            "no longer waiting for the {what}; nothing is changed by it"
        ))
    };
    let found = tokio::select! {
        found = client.check(&target.domain, &target.feature, host, domain) => found?,
        _ = stop.recv() => return Err(canceled("check")),
    };
    // What must not move need not be dumped.
    let rehearsal = if rehearse && found.reasons.is_empty() {
        tokio::select! {
            r = client.rehearse(&target.domain, &target.feature) => Some(r?),
            _ = stop.recv() => return Err(canceled("rehearsal")),
        }
    } else {
        None
    };
    if cli.format == Format::Json {
        views::json(out, &view::Report::new(&found, rehearsal.as_ref()))?;
    } else {
        view::check(out, &found, rehearsal.as_ref(), screen)?;
    }
    let name = format!("'{}/{}'", target.domain, target.feature);
    if let Some(problem) = rehearsal.and_then(|r| r.problem) {
        return Err(CliError::Refused(format!(
            "the rehearsal of {name} failed: {problem}"
        )));
    }
    if found.movable() {
        Ok(())
    } else {
        Err(CliError::Refused(format!("{name} could not move")))
    }
}
