//! The command line's grammar.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::generate::What;
use super::{remote, time};
use crate::feature::{FeatureName, Resource};
use crate::method::Method;

const AFTER: &str = "\
Exit codes: 0 done, 1 failed, 2 usage or invalid input, 3 not found, 4 refused or busy,
5 timeout, 6 canceled, 7 warnings only (doctor). `migrate` exits by the result of the move,
`check` with 4 when the feature could move nowhere that was asked for, `doctor` with 1 when it found
an error.

Without a command, on a terminal, it is an interactive shell with completion and history. Colour
is for terminals only, and not with NO_COLOR. --connect needs drover on that host and ssh to it;
DROVER_SSH names another ssh, EDITOR or VISUAL the editor.

Durations are numbers with s, min, h or d (seconds without a unit). Times are UTC.
The bus is the system bus, or the one in DBUS_SYSTEM_BUS_ADDRESS.";

const DAEMON_AFTER: &str = "\
Logs go to standard error; RUST_LOG chooses what (error, warn, info, debug, trace, or per module
as drover::daemon=debug). SIGTERM and SIGINT end it in order; features run on, and moves under
way are finished or undone at the next start. \"drover doctor\" checks what it needs.";

/// Meters features in libvirt guests and moves them between hosts
#[derive(Debug, Parser)]
#[command(name = "drover", version, after_help = AFTER, max_term_width = 100)]
#[command(propagate_version = false, disable_help_subcommand = true)]
pub struct Cli {
    /// How to print; csv and openmetrics are for history only
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// The droverd of another host, over ssh
    #[arg(short = 'c', long, global = true, value_name = "[USER@]HOST", value_parser = remote::host)]
    pub connect: Option<String>,
    /// Longest wait for an answer of droverd [default: 30 s, guest install and remove 300 s];
    /// for migrate and event also the longest wait for the end
    #[arg(long, global = true, value_name = "DURATION", value_parser = timeout)]
    pub timeout: Option<Duration>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Meters features in libvirt guests and live-migrates single features between hosts.
#[derive(Debug, Parser)]
#[command(name = "droverd", version, after_help = DAEMON_AFTER)]
pub struct DaemonArgs {
    /// Configuration file.
    #[arg(long, default_value = "/etc/drover/drover.toml")]
    pub config: PathBuf,
    /// Check the configuration and exit.
    #[arg(long)]
    pub check: bool,
}

/// Output formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For programs
    Json,
    /// For spreadsheets
    Csv,
    /// For Prometheus and its like
    #[value(name = "openmetrics")]
    OpenMetrics,
}

/// Names a feature: domain first, as in virsh.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// Domain, as libvirt names it
    pub domain: String,
    /// Feature in that domain
    pub feature: FeatureName,
}

/// Names a move.
#[derive(Debug, Clone, Args)]
pub struct WhichMove {
    /// Identifier (or its beginning) of a move, or DOMAIN FEATURE; without it the latest
    #[arg(num_args = 0..=2, value_name = "ID | DOMAIN FEATURE")]
    pub which: Vec<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the features of this host
    List {
        /// Only this domain
        domain: Option<String>,
    },
    /// Register a feature from a file, disabled
    #[command(visible_alias = "register")]
    Define {
        /// TOML or JSON file; - is standard input
        file: PathBuf,
        /// Domain that the feature runs in
        #[arg(long)]
        domain: String,
    },
    /// Remove a feature's registration
    #[command(visible_alias = "deregister")]
    Undefine(Target),
    /// Print a feature's definition as a file for `define`
    Dumpfile(Target),
    /// Change a feature's definition in an editor
    Edit(Target),
    /// Start (managed) and meter a feature
    Enable(Target),
    /// Stop a feature
    Disable(Target),
    /// Show or replace a feature's thresholds
    Threshold {
        /// Feature
        #[command(flatten)]
        target: Target,
        /// New thresholds, each like "cpu > 80 % for 10 s"; all others go
        #[arg(conflicts_with = "clear")]
        thresholds: Vec<String>,
        /// Remove all thresholds
        #[arg(long)]
        clear: bool,
    },
    /// Show what features use now
    Stats {
        /// Only this domain
        domain: Option<String>,
        /// Only this feature
        feature: Option<FeatureName>,
        /// Show it again after this time, until Ctrl-C
        #[arg(long, value_name = "SECONDS", value_parser = timeout)]
        watch: Option<Duration>,
    },
    /// Show what a feature used
    History {
        /// Feature
        #[command(flatten)]
        target: Target,
        /// Start: a duration ago (1h), a time (2026-01-31T12:00:00Z) or a day
        #[arg(long, default_value = "1h", value_parser = moment)]
        since: time::Moment,
        /// End, like --since
        #[arg(long, default_value = "now", value_parser = moment)]
        until: time::Moment,
        /// Only this resource; may be repeated
        #[arg(long, value_parser = resource)]
        resource: Vec<Resource>,
        /// Length of a step; without it the finest that gives no more than --limit points
        #[arg(long, value_name = "DURATION", value_parser = step)]
        step: Option<Duration>,
        /// Most points, at most 10000; the latest are shown
        #[arg(long, default_value_t = 1000)]
        limit: u32,
        /// Draw curves: of CPU and memory, or of each --resource
        #[arg(long)]
        plot: bool,
    },
    /// Show the features of this host live, the busiest first, with their last minutes
    Top {
        /// Show them once, also without a terminal
        #[arg(long)]
        once: bool,
        /// Time between two looks
        #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = timeout)]
        every: Duration,
        /// cpu, memory, net_rx, net_tx, disk_read, disk_write or name
        #[arg(long, default_value = "cpu", value_parser = sort)]
        sort: super::views::top::Sort,
        /// The least first
        #[arg(long)]
        reverse: bool,
    },
    /// Show what a feature is expected to use, and whether it will cross a threshold
    Forecast {
        /// Feature
        #[command(flatten)]
        target: Target,
        /// Only this resource; may be repeated [default: those with a threshold]
        #[arg(long, value_parser = resource)]
        resource: Vec<Resource>,
        /// How far, at most 1h
        #[arg(long, default_value = "15m", value_name = "DURATION", value_parser = timeout)]
        horizon: Duration,
    },
    /// Show where a feature would move, and why
    Plan(Target),
    /// Show how well each host is expected to serve the features of a domain
    Score {
        /// Domain
        domain: String,
        /// Only this feature
        feature: Option<FeatureName>,
        /// Take the model's score apart: what each input adds
        #[arg(long)]
        explain: bool,
    },
    /// Show which guest could take which feature, and why not
    Matrix {
        /// Only this feature, wherever it is [default: those of this host]
        feature: Option<FeatureName>,
    },
    /// List decisions, newest first, or show one
    Decision {
        /// Identifier (or its beginning)
        id: Option<String>,
        /// Decide again from the recorded inputs; fails when the answer is another one
        #[arg(long, requires = "id")]
        replay: bool,
    },
    /// List moves that Drover proposes (decision.mode = "advise")
    Advice,
    /// Do what a decision proposed
    Approve {
        /// Identifier (or its beginning) of the decision
        id: String,
        /// Return once the move is accepted
        #[arg(long)]
        no_wait: bool,
    },
    /// Empty this host: it accepts no moves, and its features go one after another
    ///
    /// Ctrl-C during --wait ends the waiting, not the drain.
    Drain {
        /// This host, to be sure
        host: Option<String>,
        /// Accept moves again
        #[arg(long, conflicts_with = "wait")]
        undo: bool,
        /// Only show how it stands
        #[arg(long, conflicts_with_all = ["undo", "wait"])]
        status: bool,
        /// Wait until all that can go is gone; fails when something is left
        #[arg(long)]
        wait: bool,
    },
    /// Show whether a feature could move, and what stands in its way; changes nothing
    Check {
        /// Feature
        #[command(flatten)]
        target: Target,
        /// Only this host, or guest there
        #[arg(value_name = "HOST[/DOMAIN]", value_parser = destination)]
        to: Option<To>,
        /// Dump it too, and throw the dump away; the feature stands still for that moment
        #[arg(long)]
        rehearse: bool,
    },
    /// Move a feature to a guest on another host
    ///
    /// Ctrl-C cancels the move as virsh does, as long as it is not committed; a second Ctrl-C
    /// leaves it alone and ends the waiting. On a terminal its progress is shown on standard
    /// error.
    Migrate {
        /// Feature
        #[command(flatten)]
        target: Target,
        /// Where to; without it Drover chooses
        #[arg(long, value_name = "HOST[/DOMAIN]", value_parser = destination)]
        to: Option<To>,
        /// How: live, handover or restart, instead of what the definition says
        #[arg(long)]
        method: Option<Method>,
        /// Return once the move is accepted
        #[arg(long)]
        no_wait: bool,
    },
    /// Show what Drover and other policies would do with recorded loads, without any host
    Simulate(Box<super::simulate::Simulate>),
    /// List moves, newest first
    Jobs,
    /// Show a move
    Jobinfo(WhichMove),
    /// Cancel a move before its commit
    Jobabort {
        /// Also after its commit, when it does not resume: destroy the copy at the target and let
        /// the feature go on here
        #[arg(long)]
        force: bool,
        /// Which one
        #[command(flatten)]
        which: WhichMove,
    },
    /// List hosts
    Hosts,
    /// The helper in a guest
    Guest {
        /// What to do with it
        #[command(subcommand)]
        action: GuestAction,
    },
    /// Print events as they come
    Event {
        /// End after this many events
        #[arg(long)]
        count: Option<u64>,
    },
    /// Check everything that Drover needs on this host, and say what to do
    Doctor {
        /// Configuration of droverd
        #[arg(long, value_name = "FILE", default_value = "/etc/drover/drover.toml")]
        config: PathBuf,
    },
    /// Connect standard input and output to droverd, for a peer that comes by ssh
    #[command(hide = true)]
    PeerStdio {
        /// Name of that peer here
        #[arg(long)]
        from: String,
        /// Socket of droverd
        #[arg(long, value_name = "FILE", default_value = crate::config::SSH_SOCKET)]
        socket: PathBuf,
        /// Protocol; under a forced command the one that ssh was asked for
        protocol: Option<String>,
    },
    /// Read the configuration and feature files anew, all or nothing
    Reload,
    /// The configuration of droverd
    Config {
        /// What to do with it
        #[command(subcommand)]
        action: ConfigAction,
    },
    /// Generate man pages or completions below a directory, for packages
    #[command(hide = true)]
    Generate {
        /// What to generate
        what: What,
        /// Directory
        dir: PathBuf,
    },
    /// The far end of --connect: this host's system bus on standard input and output
    #[command(hide = true)]
    Bridge,
    /// Print the versions of drover and droverd
    Version,
}

impl Command {
    /// Whether it may need a right that somebody who is not root has only with a password.
    pub fn changes(&self) -> bool {
        match self {
            Self::Define { .. }
            | Self::Undefine(_)
            | Self::Edit(_)
            | Self::Enable(_)
            | Self::Disable(_)
            | Self::Migrate { .. }
            | Self::Check { rehearse: true, .. }
            | Self::Approve { .. }
            | Self::Jobabort { .. }
            | Self::Reload => true,
            Self::Threshold {
                thresholds, clear, ..
            } => *clear || !thresholds.is_empty(),
            Self::Drain { status, .. } => !status,
            Self::Guest { action } => !matches!(action, GuestAction::Status { .. }),
            _ => false,
        }
    }
}

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigAction {
    /// Check a configuration and its feature files, without droverd
    Check {
        /// Configuration
        #[arg(default_value = "/etc/drover/drover.toml")]
        file: PathBuf,
    },
}

/// What to do with the helper of a guest.
#[derive(Debug, Subcommand)]
pub enum GuestAction {
    /// Install it into a running domain
    Install {
        /// Domain
        domain: String,
    },
    /// Remove it
    Remove {
        /// Domain
        domain: String,
    },
    /// Show whether it answers
    Status {
        /// Domain
        domain: String,
    },
}

/// Where a move shall go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct To {
    /// Host.
    pub host: String,
    /// Domain there; empty lets Drover choose.
    pub domain: String,
}

fn destination(text: &str) -> Result<To, String> {
    let (host, domain) = match text.split_once('/') {
        Some((h, d)) if !d.is_empty() => (h, d),
        Some(_) => return Err("the domain after '/' is missing".to_owned()),
        None => (text, ""),
    };
    if host.is_empty() {
        return Err("the host is missing".to_owned());
    }
    Ok(To {
        host: host.to_owned(),
        domain: domain.to_owned(),
    })
}

fn sort(text: &str) -> Result<super::views::top::Sort, String> {
    super::views::top::Sort::parse(text)
        .ok_or_else(|| "a resource, as cpu or net_tx, or name".to_owned())
}

fn step(text: &str) -> Result<Duration, String> {
    let step = time::duration(text).filter(|d| d.as_millis() >= 1000);
    step.ok_or_else(|| "a duration of at least 1 s, as 1min or 6h".to_owned())
}

fn timeout(text: &str) -> Result<Duration, String> {
    match time::duration(text) {
        Some(d) if !d.is_zero() => Ok(d),
        _ => Err("not a duration above zero: write it like 10, 10s, 5min or 1h".to_owned()),
    }
}

fn moment(text: &str) -> Result<time::Moment, String> {
    time::Moment::parse(text).ok_or_else(|| {
        "neither a duration (1h), nor a UTC time (2026-01-31T12:00:00Z), nor a day, nor now"
            .to_owned()
    })
}

fn resource(text: &str) -> Result<Resource, String> {
    let found = Resource::ALL.into_iter().find(|r| r.as_str() == text);
    found.ok_or_else(|| {
        let known: Vec<_> = Resource::ALL.iter().map(|r| r.as_str()).collect();
        format!("not a resource; they are {}", known.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands() {
        let Command::Migrate { target, to, .. } = parse("drover migrate web cache --to beta/web2")
            .unwrap()
            .command
        else {
            panic!()
        };
        assert_eq!(
            (target.domain.as_str(), target.feature.as_str()),
            ("web", "cache")
        );
        assert_eq!(
            to.unwrap(),
            To {
                host: "beta".into(),
                domain: "web2".into()
            }
        );
        assert!(matches!(
            parse("drover register x.toml --domain web")
                .unwrap()
                .command,
            Command::Define { .. }
        ));
        let c = parse("drover event --format json --timeout 5min").unwrap();
        assert_eq!(
            (c.format, c.timeout),
            (Format::Json, Some(Duration::from_secs(300)))
        );
    }

    #[test]
    fn refused() {
        for line in [
            "drover",
            "drover enable web",
            "drover enable web Bad/Name",
            "drover define x.toml",
            "drover migrate web cache --to /x",
            "drover migrate web cache --to beta/",
            "drover threshold web cache x --clear",
            "drover history web cache --resource gpu",
            "drover history web cache --step 0",
            "drover top --sort size",
            "drover list --timeout 0",
            "drover forecast web cache --horizon x",
            "drover jobinfo a b c",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
