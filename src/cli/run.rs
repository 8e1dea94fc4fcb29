//! From a parsed command line to calls and output.

use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::time::Duration;

use super::args::{Cli, Command, ConfigAction, Format, GuestAction, Target};
use super::client::{Client, Result};
use super::error::CliError;
use super::screen::{Screen, plain};
use super::time::now_ms;
use super::views::{self, features, forecast, history, hosts, jobs, plan};
use super::{
    check, config, decisions, doctor, edit, events, generate, moves, progress, show, spec, top,
};
use crate::api::{Changed, FeatureRow, HistoryQuery};
use crate::feature::{FeatureName, Threshold};
use crate::threshold;
use crate::transport::{self, Protocol};

/// Largest feature file read, bytes.
const MAX_FILE: u64 = 1 << 20;

/// Runs the command and writes its output to `out`.
pub async fn run(cli: &Cli, out: &mut dyn Write, screen: &Screen) -> Result<()> {
    run_kept(cli, out, screen, false).await
}

/// The same; with `keep`, the way to another host stays for the next command.
pub(super) async fn run_kept(
    cli: &Cli,
    out: &mut dyn Write,
    screen: &Screen,
    keep: bool,
) -> Result<()> {
    let of_history = matches!(cli.format, Format::Csv | Format::OpenMetrics);
    if of_history && !matches!(cli.command, Command::History { .. }) {
        return Err(CliError::Usage(
            "--format csv and openmetrics are for history only; use json".to_owned(),
        ));
    }
    let slow = matches!(
        cli.command,
        Command::Guest {
            action: GuestAction::Install { .. } | GuestAction::Remove { .. }
        } | Command::Check { .. }
    );
    // For these the option is about the end, not about each answer.
    let whole = matches!(
        cli.command,
        Command::Migrate { .. } | Command::Approve { .. } | Command::Event { .. }
    );
    // Somebody may be asked for a password meanwhile.
    let asks = cli.command.changes() && std::io::stdin().is_terminal();
    let usual = Duration::from_secs(if slow {
        300
    } else if asks {
        150
    } else {
        30
    });
    let timeout = cli.timeout.filter(|_| !whole).unwrap_or(usual);
    let json = cli.format == Format::Json;

    if let (Command::Config { .. } | Command::Generate { .. } | Command::Simulate(_), Some(_)) =
        (&cli.command, &cli.connect)
    {
        return Err(CliError::Usage(
            "this command works on files of this host; leave out --connect".to_owned(),
        ));
    }
    // Files and texts are checked before the bus is asked for anything.
    let definition = match &cli.command {
        Command::Define { file, .. } => {
            let text = read_file(file)?;
            Some(spec::parse(&text, &file.display().to_string())?)
        }
        _ => None,
    };
    let limits = match &cli.command {
        Command::Threshold { thresholds, .. } => parse_thresholds(thresholds)?,
        _ => Vec::new(),
    };
    if let Command::Simulate(what) = &cli.command {
        return super::simulate::simulate(what, out, json, screen);
    }
    if let Command::Generate { what, dir } = &cli.command {
        return generate::generate(*what, dir);
    }
    if let Command::Config {
        action: ConfigAction::Check { file },
    } = &cli.command
    {
        return config::check(out, json, file);
    }
    // Looks further when droverd does not answer.
    if let (Command::Doctor { config }, Some(host)) = (&cli.command, &cli.connect) {
        return show::doctor_there(host, json, config).await;
    }
    if let Command::Doctor { config } = &cli.command {
        return doctor::doctor(out, json, screen, config, timeout).await;
    }
    let client = Client::open(cli.connect.as_deref(), timeout, keep).await;
    let client = match (&cli.command, client) {
        (Command::Version, Err(e)) => {
            show::version(out, json, Err(e))?;
            return Ok(());
        }
        (_, client) => client?,
    };

    match &cli.command {
        Command::List { domain } => {
            let rows = select(client.features().await?, domain.as_deref(), None)?;
            if json {
                views::json(out, &rows)?;
            } else {
                features::list(out, &rows, screen)?;
            }
        }
        Command::Define { domain, .. } => {
            if let Some(spec) = definition {
                let changed = client.register(domain, &spec).await?;
                say(out, json, domain, &spec.name, "defined", changed)?;
            }
        }
        Command::Undefine(t) => {
            let changed = client.deregister(&t.domain, &t.feature).await?;
            say(out, json, &t.domain, &t.feature, "undefined", changed)?;
        }
        Command::Dumpfile(t) => {
            let row = client.feature(&t.domain, &t.feature).await?;
            if json {
                views::json(out, &row.spec)?;
            } else {
                write!(out, "{}", spec::dump(&row.spec)?)?;
            }
        }
        Command::Edit(t) => {
            let ask = std::io::stdin().is_terminal();
            let changed = match edit::edit(&client, t, ask).await? {
                edit::Edited::Done => Changed::Done,
                edit::Edited::Same => Changed::Already,
            };
            say(out, json, &t.domain, &t.feature, "is as edited", changed)?;
        }
        Command::Enable(t) => {
            let changed = client.set_enabled(&t.domain, &t.feature, true).await?;
            say(out, json, &t.domain, &t.feature, "enabled", changed)?;
        }
        Command::Disable(t) => {
            let changed = client.set_enabled(&t.domain, &t.feature, false).await?;
            say(out, json, &t.domain, &t.feature, "disabled", changed)?;
        }
        Command::Threshold { target, clear, .. } => {
            thresholds(cli, out, &client, target, &limits, *clear).await?;
        }
        Command::Stats {
            domain,
            feature,
            watch,
        } => {
            let which = (domain.as_deref(), feature.as_ref());
            show::stats(cli, out, screen, &client, which, *watch).await?;
        }
        Command::History {
            target,
            since,
            until,
            resource,
            step,
            limit,
            plot,
        } => {
            let now = now_ms();
            let range = (since.ms(now), until.ms(now));
            if range.0 > range.1 {
                return Err(CliError::Usage("--since is after --until".to_owned()));
            }
            let query = HistoryQuery {
                since_ms: range.0,
                until_ms: range.1,
                step_ms: step.map(|s| i64::try_from(s.as_millis()).unwrap_or(i64::MAX)),
                limit: *limit as usize,
            };
            let page = client
                .history_steps(&target.domain, &target.feature, query)
                .await?;
            let of = (target.domain.as_str(), &target.feature);
            match cli.format {
                Format::Table if *plot => history::plot(out, &page, resource, range, screen)?,
                _ if *plot => {
                    return Err(CliError::Usage("--plot is without --format".to_owned()));
                }
                Format::Table => history::table(out, &page, resource, screen)?,
                Format::Json => history::as_json(out, &page, resource)?,
                Format::Csv => history::csv(out, &page, resource)?,
                Format::OpenMetrics => history::openmetrics(out, &page, resource, of)?,
            }
        }
        Command::Top {
            once,
            every,
            sort,
            reverse,
        } => {
            let options = top::Options {
                once: *once,
                every: *every,
                sort: *sort,
                reverse: *reverse,
            };
            top::top(cli, out, screen, &client, &options).await?;
        }
        Command::Forecast {
            target,
            resource,
            horizon,
        } => {
            let all = client.forecast(&target.domain, &target.feature).await?;
            let all = forecast::select(all, resource, *horizon);
            if json {
                views::json(out, &all)?;
            } else {
                forecast::forecast(out, &all, !resource.is_empty(), screen)?;
            }
        }
        Command::Plan(t) => {
            let looks = client.plan(&t.domain, &t.feature);
            let p = progress::waiting("droverd compares the hosts", looks).await?;
            if json {
                views::json(out, &p)?;
            } else {
                plan::plan(out, &p, screen)?;
            }
        }
        Command::Score {
            domain,
            feature,
            explain,
        } => {
            let which = (domain.as_str(), feature.as_ref());
            decisions::score(cli, out, screen, &client, which, *explain).await?;
        }
        Command::Matrix { feature } => {
            decisions::matrix(cli, out, screen, &client, feature.as_ref()).await?;
        }
        Command::Decision { id, replay } => {
            decisions::decision(cli, out, screen, &client, id.as_deref(), *replay).await?;
        }
        Command::Advice => decisions::advice(cli, out, screen, &client).await?,
        Command::Approve { id, no_wait } => {
            decisions::approve(cli, out, &client, id, !no_wait).await?;
        }
        Command::Drain {
            host,
            undo,
            status,
            wait,
        } => {
            let how = (*undo, *status, *wait);
            decisions::drain(cli, out, screen, &client, host.as_deref(), how).await?;
        }
        Command::Check {
            target,
            to,
            rehearse,
        } => {
            check::check(cli, out, screen, &client, target, to.as_ref(), *rehearse).await?;
        }
        Command::Migrate {
            target,
            to,
            method,
            no_wait,
        } => {
            let to = to.as_ref();
            moves::migrate(cli, out, &client, target, to, *method, !no_wait).await?;
        }
        Command::Jobs => {
            let list = client.jobs().await?;
            if json {
                views::json(out, &list)?;
            } else {
                jobs::jobs(out, &list, screen)?;
            }
        }
        Command::Jobinfo(w) => {
            let list = client.jobs().await?;
            let job = moves::choose(&list, &w.which, false)?;
            if json {
                views::json(out, job)?;
            } else {
                jobs::info(out, job, screen)?;
                decisions::of_move(out, &client, &job.id).await?;
            }
        }
        Command::Jobabort { force, which: w } => {
            let list = client.jobs().await?;
            let job = moves::choose(&list, &w.which, true)?;
            client.abort(&job.id, *force).await?;
            let asked = if *force { "give_up" } else { "abort" };
            if json {
                views::json(out, &serde_json::json!({"id": job.id, "asked": asked}))?;
            } else if *force {
                writeln!(out, "Asked to give up move {}", plain(&job.id))?;
            } else {
                writeln!(out, "Asked to cancel move {}", plain(&job.id))?;
            }
        }
        Command::Hosts => {
            let list = client.hosts().await?;
            if json {
                views::json(out, &list)?;
            } else {
                hosts::hosts(out, &list, now_ms(), screen)?;
            }
        }
        Command::Guest { action } => show::guest(out, json, &client, action).await?,
        Command::Event { count } => events::follow(cli, out, screen, &client, *count).await?,
        // Answered before, without droverd.
        Command::Doctor { .. }
        | Command::Generate { .. }
        | Command::Simulate(_)
        | Command::Config { .. }
        | Command::Bridge
        | Command::PeerStdio { .. } => {}
        Command::Reload => config::reload(out, json, &client).await?,
        Command::Version => {
            show::version(out, json, client.version().await)?;
        }
    }
    Ok(())
}

/// `drover peer-stdio`. Under a forced command sshd says what was asked for; its last word is the protocol.
pub async fn peer_stdio(from: &str, socket: &Path, protocol: Option<&str>) -> Result<()> {
    let asked = std::env::var("SSH_ORIGINAL_COMMAND").unwrap_or_default();
    let word = protocol.or_else(|| asked.split_whitespace().last());
    let protocol = word.and_then(Protocol::from_word).ok_or_else(|| {
        CliError::Usage(format!(
            "peer-stdio is for droverd of another host; '{}' is not a protocol that this version speaks",
            word.unwrap_or_default()
        ))
    })?;
    let done = transport::ssh::stdio(socket, from, protocol).await;
    done.map_err(|e| CliError::Failed(format!("{}: {e}; is droverd running?", socket.display())))
}

fn read_file(path: &Path) -> Result<String> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(MAX_FILE).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|f| f.take(MAX_FILE).read_to_string(&mut text))
    };
    match read {
        Ok(n) if n as u64 == MAX_FILE => Err(CliError::Usage(format!(
            "{}: larger than 1 MiB, so not a feature file",
            path.display()
        ))),
        Ok(_) => Ok(text),
        Err(e) => Err(CliError::Usage(format!(
            "cannot read {}: {e}",
            path.display()
        ))),
    }
}

fn parse_thresholds(texts: &[String]) -> Result<Vec<Threshold>> {
    let parsed = texts.iter().map(|t| threshold::parse(t));
    parsed
        .collect::<std::result::Result<_, _>>()
        .map_err(|e| CliError::Usage(e.to_string()))
}

/// The rows of a domain and feature; not found when one was named and none is there.
pub(super) fn select(
    mut rows: Vec<FeatureRow>,
    domain: Option<&str>,
    feature: Option<&FeatureName>,
) -> Result<Vec<FeatureRow>> {
    rows.retain(|r| {
        domain.is_none_or(|d| r.domain == d) && feature.is_none_or(|f| r.spec.name == *f)
    });
    match (rows.is_empty(), domain, feature) {
        (true, Some(d), Some(f)) => Err(CliError::NotFound(format!(
            "no feature '{f}' in domain '{d}' on this host; \"drover list\" shows what is there"
        ))),
        (true, Some(d), None) => Err(CliError::NotFound(format!(
            "no features in domain '{d}' on this host; \"drover list\" shows all, \"drover define\" adds one"
        ))),
        _ => Ok(rows),
    }
}

/// What a change did.
fn say(
    out: &mut dyn Write,
    json: bool,
    domain: &str,
    feature: &FeatureName,
    done: &str,
    changed: Changed,
) -> Result<()> {
    if json {
        views::json(
            out,
            &serde_json::json!({"domain": domain, "feature": feature, "changed": changed}),
        )?;
        return Ok(());
    }
    let already = match changed {
        Changed::Done => "",
        Changed::Already => " already",
    };
    let line = format!("Feature '{domain}/{feature}' {done}{already}");
    writeln!(out, "{}", plain(&line))?;
    Ok(())
}

async fn thresholds(
    cli: &Cli,
    out: &mut dyn Write,
    client: &Client,
    target: &Target,
    limits: &[Threshold],
    clear: bool,
) -> Result<()> {
    let json = cli.format == Format::Json;
    if limits.is_empty() && !clear {
        let row = client.feature(&target.domain, &target.feature).await?;
        if json {
            views::json(out, &row.spec.thresholds)?;
        } else {
            features::thresholds(out, &row)?;
        }
        return Ok(());
    }
    let changed = client
        .set_thresholds(&target.domain, &target.feature, limits)
        .await?;
    let done = if clear {
        "has no thresholds"
    } else {
        "has the thresholds"
    };
    say(out, json, &target.domain, &target.feature, done, changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files() {
        let e = read_file(Path::new("/nonexistent/x.toml")).unwrap_err();
        assert_eq!(e.code(), 2);
        assert!(e.to_string().contains("/nonexistent/x.toml"), "{e}");
        let e = read_file(Path::new("/dev/zero")).unwrap_err();
        assert!(e.to_string().contains("larger"), "{e}");
    }

    #[test]
    fn selection() {
        assert!(select(vec![], None, None).unwrap().is_empty());
        assert_eq!(select(vec![], Some("web"), None).unwrap_err().code(), 3);
    }
}
