//! `migrate` and the choice of a move for `jobinfo` and `jobabort`.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use zbus::OwnedObjectPath;

use super::args::{Cli, Format, Target, To};
use super::client::{Client, Result};
use super::error::CliError;
use super::progress::{self, Progress};
use super::views::{self, jobs};
use crate::api::{Job, JobResult};
use crate::dbus::client::ManagerProxy;
use crate::dbus::move_id;
use crate::feature::FeatureName;
use crate::method::Method;

/// How often a move is looked at when no signal comes.
const LOOK: Duration = Duration::from_secs(1);

/// `drover migrate`.
pub async fn migrate(
    cli: &Cli,
    out: &mut dyn Write,
    client: &Client,
    target: &Target,
    to: Option<&To>,
    method: Option<Method>,
    wait: bool,
) -> Result<()> {
    let (host, domain) = to.map_or(("", ""), |t| (t.host.as_str(), t.domain.as_str()));
    let begin = client.migrate(&target.domain, &target.feature, host, domain, method);
    follow_begun(cli, out, client, wait, begin).await
}

/// Begins a move and follows it to its end.
pub(super) async fn follow_begun(
    cli: &Cli,
    out: &mut dyn Write,
    client: &Client,
    wait: bool,
    begin: impl Future<Output = Result<OwnedObjectPath>>,
) -> Result<()> {
    // Both before the call, so that neither progress nor a Ctrl-C is missed.
    let news = News::listen(client).await?;
    let mut stop = super::interrupts()?;

    let path = tokio::select! {
        path = begin => path?,
        _ = stop.recv() => return Err(CliError::Canceled(
            "no longer waiting for droverd's answer; \"drover jobs\" shows whether the move was accepted"
                .to_owned(),
        )),
    };
    let mut job = client.job(&path).await?;
    if !wait {
        return accepted(cli, out, &job);
    }

    let mut bar = Progress::new();
    let deadline = cli.timeout.map(|t| tokio::time::Instant::now() + t);
    let mut interrupts = 0;
    while job.result.is_none() {
        bar.show(&progress::of_move(&job));
        let late = async {
            match deadline {
                Some(d) => tokio::time::sleep_until(d).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = news.wake.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
            () = late => {
                return Err(CliError::Timeout(format!(
                    "the move {} of '{}' goes on after the --timeout; see \"drover jobinfo {0}\"",
                    job.id, job.feature
                )));
            }
            _ = stop.recv() => {
                interrupts += 1;
                if interrupts > 1 {
                    return Err(CliError::Canceled(format!(
                        "no longer waiting; the move {} of '{}' is in state {}, see \"drover jobinfo {0}\"",
                        job.id, job.feature, job.state
                    )));
                }
                let note = cancel(client, &job).await;
                // A standard error that nobody reads changes nothing.
                let _ = bar.aside(|| writeln!(std::io::stderr(), "{note}"));
            }
        }
        job = look(client, &path, &job).await?;
    }
    bar.end();
    finish(cli, out, &job)
}

/// Wakes when some move made progress or ended. The signals are taken off their queues as they
/// come: a full queue would hold up the answers to calls on the same connection.
struct News {
    wake: Arc<Notify>,
    // Ends its tasks when dropped.
    _tasks: JoinSet<()>,
}

impl News {
    async fn listen(client: &Client) -> Result<Self> {
        let bus = |e: zbus::Error| client.error(&e);
        let manager = ManagerProxy::new(client.connection()).await.map_err(bus)?;
        let mut progress = manager.receive_move_progress().await.map_err(bus)?;
        let mut ended = manager.receive_move_ended().await.map_err(bus)?;
        let wake = Arc::new(Notify::new());
        let mut tasks = JoinSet::new();
        let w = Arc::clone(&wake);
        tasks.spawn(async move {
            while progress.next().await.is_some() {
                w.notify_one();
            }
        });
        let w = Arc::clone(&wake);
        tasks.spawn(async move {
            while ended.next().await.is_some() {
                w.notify_one();
            }
        });
        Ok(Self {
            wake,
            _tasks: tasks,
        })
    }
}

/// Asks to cancel after Ctrl-C and says what comes of it; the result decides the exit code.
async fn cancel(client: &Client, job: &Job) -> String {
    let note = match client.abort(&job.id, false).await {
        Ok(()) => format!(
            "asked to cancel the move {}; Ctrl-C again leaves it alone",
            job.id
        ),
        Err(e) => format!("cannot cancel the move {}: {e}", job.id),
    };
    super::screen::plain(&note)
}

/// The move now. A daemon that is gone is told with the move's name: the move may go on.
async fn look(client: &Client, path: &OwnedObjectPath, before: &Job) -> Result<Job> {
    client.job(path).await.map_err(|e| match e {
        CliError::Failed(why) | CliError::NotFound(why) => CliError::Failed(format!(
            "lost sight of the move {} of '{}', last in state {}: {why}; then \"drover jobinfo {0}\"",
            before.id, before.feature, before.state
        )),
        e => e,
    })
}

fn accepted(cli: &Cli, out: &mut dyn Write, job: &Job) -> Result<()> {
    if cli.format == Format::Json {
        views::json(out, job)?;
    } else {
        writeln!(out, "Move {} accepted: {}", job.id, jobs::progress(job))?;
    }
    Ok(())
}

fn finish(cli: &Cli, out: &mut dyn Write, job: &Job) -> Result<()> {
    if cli.format == Format::Json {
        views::json(out, job)?;
    }
    match job.result {
        Some(JobResult::Done | JobResult::Skipped) => {
            if cli.format != Format::Json {
                writeln!(out, "{}", jobs::success(job))?;
            }
            if let Some(why) = &job.detail.warning {
                // A standard error that nobody reads changes nothing.
                let why = super::screen::plain(why);
                let _ = writeln!(std::io::stderr(), "warning: {why}");
            }
            Ok(())
        }
        Some(JobResult::Canceled) => Err(CliError::Canceled(jobs::failure(job))),
        Some(JobResult::Timeout) => Err(CliError::Timeout(jobs::failure(job))),
        Some(JobResult::Failed) | None => Err(CliError::Failed(jobs::failure(job))),
    }
}

/// The move that `which` names: an identifier or its beginning, a domain and a feature, or
/// nothing for the latest. `open` looks at moves under way only.
pub fn choose<'a>(jobs: &'a [Job], which: &[String], open: bool) -> Result<&'a Job> {
    let mut fit = jobs.iter().filter(|j| !open || j.result.is_none());
    let kind = if open { "move under way" } else { "move" };
    let none = |what: String| {
        CliError::NotFound(format!("no {kind}{what}; \"drover jobs\" shows all moves"))
    };
    match which {
        [] => fit.next().ok_or_else(|| none(String::new())),
        [id] => {
            let found: Vec<&Job> = fit.filter(|j| j.id.starts_with(id.as_str())).collect();
            match found[..] {
                [] => Err(none(format!(" '{id}'"))),
                [one] => Ok(one),
                _ => found.iter().copied().find(|j| j.id == *id).ok_or_else(|| {
                    CliError::Usage(format!(
                        "'{id}' is the beginning of {} moves: give more of it",
                        found.len()
                    ))
                }),
            }
        }
        [domain, feature, ..] => {
            let name = FeatureName::new(feature).map_err(|e| CliError::Usage(e.to_string()))?;
            fit.find(|j| j.feature == name && (j.from_domain == *domain || j.to_domain == *domain))
                .ok_or_else(|| none(format!(" of '{domain}/{feature}'")))
        }
    }
}

/// The identifier in a move's object path, the path itself when it is none.
pub fn id_of(path: &str) -> String {
    move_id(path).unwrap_or_else(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: &str, feature: &str, result: Option<JobResult>) -> Job {
        serde_json::from_value(serde_json::json!({
            "id": id, "feature": feature, "from_host": "a", "from_domain": "web",
            "to_host": "b", "to_domain": "web2", "cause": "manual", "state": "x",
            "result": result, "reason": null, "rounds": 0, "bytes_sent": 0,
            "freeze_ms": null, "started_ms": 0, "ended_ms": null, "history": []
        }))
        .unwrap()
    }

    #[test]
    fn choice() {
        let jobs = [
            job("aa11", "cache", Some(JobResult::Done)),
            job("aa22", "mail", None),
            job("bb33", "cache", None),
        ];
        let pick = |w: &[&str], open| {
            let w: Vec<String> = w.iter().map(|s| (*s).to_owned()).collect();
            choose(&jobs, &w, open).map(|j| j.id.clone())
        };
        assert_eq!(pick(&[], false).unwrap(), "aa11");
        assert_eq!(pick(&[], true).unwrap(), "aa22");
        assert_eq!(pick(&["bb"], false).unwrap(), "bb33");
        assert_eq!(pick(&["aa"], false).unwrap_err().code(), 2);
        assert_eq!(pick(&["aa"], true).unwrap(), "aa22");
        assert_eq!(pick(&["cc"], false).unwrap_err().code(), 3);
        assert_eq!(pick(&["web", "cache"], false).unwrap(), "aa11");
        assert_eq!(pick(&["web2", "cache"], true).unwrap(), "bb33");
        assert_eq!(pick(&["db", "cache"], false).unwrap_err().code(), 3);
        assert_eq!(pick(&["web", "No/Name"], false).unwrap_err().code(), 2);
    }
}
