//! `score`, `matrix`, `decision`, `advice`, `approve`, `drain`.

use std::io::Write;
use std::time::Duration;

use zbus::OwnedObjectPath;
use zbus::proxy::CacheProperties;

use super::args::{Cli, Format};
use super::client::{Client, Result, decode};
use super::error::CliError;
use super::progress::{Progress, Shown};
use super::screen::{Screen, plain};
use super::views::{self, decisions as view};
use super::{moves, run::select};
use crate::dbus::client::DecisionsProxy;
use crate::decision::{
    Answer, Cell, DecisionRecord, DecisionRow, DrainStatus, Replay, ScoreReport,
};
use crate::feature::FeatureName;

/// The interface of the daemon that these commands ask.
pub(super) struct Decisions<'a> {
    client: &'a Client,
    proxy: DecisionsProxy<'static>,
}

impl<'a> Decisions<'a> {
    /// Without a call.
    pub(super) async fn new(client: &'a Client) -> Result<Self> {
        let proxy = DecisionsProxy::builder(client.connection())
            .cache_properties(CacheProperties::No)
            .build()
            .await
            .map_err(|e| client.error(&e))?;
        Ok(Self { client, proxy })
    }

    fn take<T>(&self, r: zbus::Result<T>) -> Result<T> {
        r.map_err(|e| self.client.error(&e))
    }

    async fn score(&self, domain: &str, feature: &FeatureName) -> Result<ScoreReport> {
        decode(&self.take(self.proxy.score(domain, feature.as_str()).await)?)
    }

    /// All recorded decisions, newest first.
    pub(super) async fn list(&self) -> Result<Vec<DecisionRow>> {
        decode(&self.take(self.proxy.list().await)?)
    }

    async fn show(&self, id: &str) -> Result<DecisionRecord> {
        decode(&self.take(self.proxy.show(id).await)?)
    }

    async fn replay(&self, id: &str) -> Result<Replay> {
        decode(&self.take(self.proxy.replay(id).await)?)
    }

    async fn drain_status(&self) -> Result<DrainStatus> {
        decode(&self.take(self.proxy.drain_status().await)?)
    }

    async fn approve(&self, id: &str) -> Result<OwnedObjectPath> {
        self.take(self.proxy.approve(id).await)
    }
}

/// `drover score`.
pub(super) async fn score(
    cli: &Cli,
    out: &mut dyn Write,
    screen: &Screen,
    client: &Client,
    (domain, feature): (&str, Option<&FeatureName>),
    explain: bool,
) -> Result<()> {
    let d = Decisions::new(client).await?;
    let rows = select(client.features().await?, Some(domain), feature)?;
    let mut reports = Vec::new();
    for row in rows {
        reports.push(d.score(domain, &row.spec.name).await?);
    }
    if cli.format == Format::Json {
        views::json(out, &reports)?;
        return Ok(());
    }
    for (n, r) in reports.iter().enumerate() {
        if n > 0 {
            writeln!(out)?;
        }
        view::score(out, r, explain, screen)?;
    }
    Ok(())
}

/// `drover matrix`.
pub(super) async fn matrix(
    cli: &Cli,
    out: &mut dyn Write,
    screen: &Screen,
    client: &Client,
    feature: Option<&FeatureName>,
) -> Result<()> {
    let d = Decisions::new(client).await?;
    let name = feature.map_or("", FeatureName::as_str);
    let cells: Vec<Cell> = decode(&d.take(d.proxy.matrix(name).await)?)?;
    if cli.format == Format::Json {
        views::json(out, &cells)?;
    } else {
        view::matrix(out, &cells, screen)?;
    }
    Ok(())
}

/// `drover decision`.
pub(super) async fn decision(
    cli: &Cli,
    out: &mut dyn Write,
    screen: &Screen,
    client: &Client,
    id: Option<&str>,
    replay: bool,
) -> Result<()> {
    let d = Decisions::new(client).await?;
    let json = cli.format == Format::Json;
    let Some(id) = id else {
        let rows = d.list().await?;
        if json {
            views::json(out, &rows)?;
        } else {
            view::list(out, &rows, screen)?;
        }
        return Ok(());
    };
    if !replay {
        let record = d.show(id).await?;
        if json {
            views::json(out, &record)?;
        } else {
            view::decision(out, &record, screen)?;
        }
        return Ok(());
    }
    let again = d.replay(id).await?;
    if json {
        views::json(out, &again)?;
    } else {
        views::plan::plan(out, &again.plan, screen)?;
        let same = if again.same {
            "The decision is the same when it is made again from its inputs"
        } else {
            "The decision is another one when it is made again from its inputs"
        };
        writeln!(out, "{same}")?;
    }
    if again.same {
        Ok(())
    } else {
        Err(CliError::Failed(format!(
            "decision {id} does not come out the same; was it made by another version of droverd?"
        )))
    }
}

/// `drover advice`.
pub(super) async fn advice(
    cli: &Cli,
    out: &mut dyn Write,
    screen: &Screen,
    client: &Client,
) -> Result<()> {
    let mut rows = Decisions::new(client).await?.list().await?;
    rows.retain(|r| r.answer == Answer::Proposed);
    if cli.format == Format::Json {
        views::json(out, &rows)?;
    } else {
        view::list(out, &rows, screen)?;
    }
    Ok(())
}

/// `drover approve`.
pub(super) async fn approve(
    cli: &Cli,
    out: &mut dyn Write,
    client: &Client,
    id: &str,
    wait: bool,
) -> Result<()> {
    let d = Decisions::new(client).await?;
    let row = d.show(id).await?.row;
    moves::follow_begun(cli, out, client, wait, d.approve(&row.id)).await
}

/// What `drover jobinfo` adds: the decision behind a move, and whether the move helped.
pub(super) async fn of_move(out: &mut dyn Write, client: &Client, id: &str) -> Result<()> {
    let rows = Decisions::new(client).await?.list().await?;
    if let Some(r) = rows.iter().find(|r| r.move_id.as_deref() == Some(id)) {
        writeln!(out, "\n{:<10}{}", "Decision:", plain(&r.id))?;
        writeln!(out, "{:<10}{}", "Helped:", plain(&view::effect(r)))?;
    }
    Ok(())
}

/// `drover drain`.
pub(super) async fn drain(
    cli: &Cli,
    out: &mut dyn Write,
    screen: &Screen,
    client: &Client,
    host: Option<&str>,
    (undo, status, wait): (bool, bool, bool),
) -> Result<()> {
    let d = Decisions::new(client).await?;
    let mut now = d.drain_status().await?;
    if let Some(h) = host.filter(|h| *h != now.host) {
        return Err(CliError::Usage(format!(
            "droverd here empties its own host, '{}', only; run \"drover drain\" on '{h}'",
            now.host
        )));
    }
    if !status {
        now = decode(&d.take(d.proxy.drain(!undo).await)?)?;
    }
    let mut stop = super::interrupts()?;
    let mut bar = Progress::new();
    while wait && now.draining && !now.settled() {
        if bar.visible() {
            bar.show(&drained(client, &now).await?);
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
            _ = stop.recv() => return Err(CliError::Canceled(format!(
                "no longer waiting; '{}' goes on being emptied, \"drover drain --undo\" ends that",
                now.host
            ))),
        }
        let next = d.drain_status().await?;
        if cli.format != Format::Json && next.moved.len() > now.moved.len() {
            bar.aside(|| {
                for (feature, to) in next.moved.iter().skip(now.moved.len()) {
                    writeln!(out, "{}", plain(&format!("'{feature}' went to {to}")))?;
                }
                out.flush()
            })?;
        }
        now = next;
    }
    bar.end();
    if cli.format == Format::Json {
        views::json(out, &now)?;
    } else {
        view::drain(out, &now, screen)?;
    }
    if wait && now.draining && !now.left.is_empty() {
        return Err(CliError::Refused(format!(
            "{} features cannot leave '{}'",
            now.left.len(),
            now.host
        )));
    }
    Ok(())
}

/// How far a host is emptied, with the move under way.
async fn drained(client: &Client, now: &DrainStatus) -> Result<Shown> {
    let (gone, left) = (now.moved.len(), now.left.len());
    let mut how = format!("{gone} of {} features left it", gone + left);
    if let Some(feature) = &now.moving {
        let moves = client.jobs().await?;
        let job = moves
            .iter()
            .find(|j| j.result.is_none() && j.feature == *feature);
        how = match job {
            Some(job) => format!("{how}; {}", views::jobs::progress(job)),
            None => format!("{how}; {feature} moves"),
        };
    }
    Ok(Shown {
        what: format!("drain {}", now.host),
        part: Some((gone as u64, (gone + left) as u64)),
        how,
    })
}
