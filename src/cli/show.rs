//! `stats`, `guest`, `version`.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;

use super::args::{Cli, Format, GuestAction};
use super::client::{Client, Result};
use super::error::CliError;
use super::progress::{self, Progress};
use super::run::select;
use super::screen::{Screen, plain};
use super::views::{self, features, hosts};
use crate::dbus::client::ManagerProxy;
use crate::feature::FeatureName;

/// `drover stats`, again and again with `watch`.
pub(super) async fn stats(
    cli: &Cli,
    out: &mut dyn Write,
    screen: &Screen,
    client: &Client,
    (domain, feature): (Option<&str>, Option<&FeatureName>),
    watch: Option<Duration>,
) -> Result<()> {
    let mut first = true;
    let mut stop = super::interrupts()?;
    loop {
        let answer = tokio::select! {
            rows = client.features() => rows?,
            _ = stop.recv() => return Ok(()),
        };
        let rows = select(answer, domain, feature)?;
        let hosts = client.hosts().await?;
        let here = hosts.first().map_or(&[][..], |h| &h.instances);
        let domains: Vec<_> = here
            .iter()
            .filter(|i| rows.iter().any(|r| r.domain == i.domain))
            .collect();
        if cli.format == Format::Json {
            let list: Vec<_> = rows
                .iter()
                .map(|r| {
                    let of = domains.iter().find(|i| i.domain == r.domain);
                    let mut row = serde_json::json!({
                        "host": r.host, "domain": r.domain, "feature": r.spec.name,
                        "status": r.status, "usage": r.usage, "metered": r.metered,
                        "domain_cost": of.map(|i| i.cost), "domain_rest": of.map(|i| i.rest)
                    });
                    if let Some(qemu) = of.and_then(|i| i.qemu.as_ref()) {
                        row["domain_qemu"] = serde_json::json!(qemu);
                    }
                    row
                })
                .collect();
            if watch.is_some() {
                views::json_line(out, &list)?;
            } else {
                views::json(out, &list)?;
            }
        } else {
            if watch.is_some() && screen.terminal {
                write!(out, "\x1b[H\x1b[2J")?;
            } else if !first {
                writeln!(out)?;
            }
            features::stats(out, &rows, screen)?;
            if !domains.is_empty() {
                writeln!(out)?;
                features::costs(out, &domains, screen)?;
            }
        }
        out.flush()?;
        first = false;
        let Some(every) = watch else {
            return Ok(());
        };
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            _ = stop.recv() => return Ok(()),
        }
    }
}

/// `drover guest`.
pub(super) async fn guest(
    out: &mut dyn Write,
    json: bool,
    client: &Client,
    action: &GuestAction,
) -> Result<()> {
    let (domain, answer) = match action {
        GuestAction::Install { domain } => {
            let call = client.guest_install(domain);
            (domain, followed(client, domain, "installing", call).await?)
        }
        GuestAction::Remove { domain } => {
            let call = client.guest_remove(domain);
            (domain, followed(client, domain, "removing", call).await?)
        }
        GuestAction::Status { domain } => {
            let hosts = client.hosts().await?;
            let here = hosts.first().map_or(&[][..], |h| &h.instances);
            let instance = here.iter().find(|i| i.domain == *domain).ok_or_else(|| {
                CliError::NotFound(format!(
                    "no domain '{domain}' on this host; \"virsh list --all\" shows what is there"
                ))
            })?;
            if json {
                views::json(out, instance)?;
            } else {
                hosts::guest(out, instance)?;
            }
            return Ok(());
        }
    };
    if json {
        views::json(
            out,
            &serde_json::json!({"domain": domain, "answer": answer}),
        )?;
    } else {
        writeln!(out, "{}", plain(&answer))?;
    }
    Ok(())
}

/// Waits for the end of what droverd does with the helper in a guest, and shows its steps. The
/// first comes after a password was typed, where one is asked for.
async fn followed(
    client: &Client,
    domain: &str,
    doing: &str,
    call: impl Future<Output = Result<String>>,
) -> Result<String> {
    let bus = |e: zbus::Error| client.error(&e);
    let manager = ManagerProxy::new(client.connection()).await.map_err(bus)?;
    let mut steps = manager.receive_instance_changed().await.map_err(bus)?;
    let mut stop = super::interrupts()?;
    let mut call = std::pin::pin!(call);
    let mut bar = Progress::new();
    let what = format!("{doing} the helper in {domain}");
    loop {
        tokio::select! {
            answer = &mut call => return answer,
            Some(step) = steps.next() => {
                let words = step.args().ok().filter(|a| a.domain == domain);
                let words = words.and_then(|a| Some(a.what.strip_prefix(doing)?.strip_prefix(": ")?.to_owned()));
                if let Some(words) = words {
                    bar.show(&progress::of_words(&what, &words));
                }
            }
            _ = stop.recv() => return Err(CliError::Canceled(format!(
                "no longer waiting; {what} goes on, see \"drover guest status {domain}\""
            ))),
        }
    }
}

/// `drover doctor` about another host: it looks at files and processes, so it runs there.
pub(super) async fn doctor_there(host: &str, json: bool, config: &Path) -> Result<()> {
    let config = config
        .to_str()
        .ok_or_else(|| CliError::Usage("the configuration's name is not text".to_owned()))?;
    let format = if json { "json" } else { "table" };
    let args = ["doctor", "--format", format, "--config", config];
    match super::remote::run_there(host, &args).await? {
        0 => Ok(()),
        7 => Err(CliError::Warnings),
        1 => Err(CliError::Unwell),
        code => Err(CliError::Failed(format!(
            "\"drover doctor\" on host '{host}' ended with code {code}"
        ))),
    }
}

/// The version of this program is told in any case; that droverd does not answer is no failure.
pub(super) fn version(
    out: &mut dyn Write,
    json: bool,
    daemon: Result<(String, String)>,
) -> Result<()> {
    let mine = env!("CARGO_PKG_VERSION");
    if json {
        let (version, host, error) = match daemon {
            Ok((v, h)) => (Some(v), Some(h), None),
            Err(e) => (None, None, Some(e.to_string())),
        };
        let value = serde_json::json!({
            "drover": mine, "droverd": version, "host": host, "error": error
        });
        views::json(out, &value)?;
        return Ok(());
    }
    writeln!(out, "drover {mine}")?;
    match daemon {
        Ok((v, h)) => writeln!(out, "droverd {} on {}", plain(&v), plain(&h))?,
        Err(e) => writeln!(out, "droverd -: {}", plain(&e.to_string()))?,
    }
    Ok(())
}
