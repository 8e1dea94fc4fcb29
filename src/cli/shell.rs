//! The interactive shell: `drover` without a command on a terminal, as virsh has it.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::{CommandFactory, Parser};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{CompletionType, Config, Context, Editor, Helper};
use tokio::runtime::Runtime;

use super::args::{Cli, Command, Format};
use super::client::Client;
use super::complete::{Known, complete};
use super::error::CliError;
use super::screen::{Screen, plain};

/// Longest wait for what completion needs.
const LOOK: Duration = Duration::from_secs(2);
/// Lines of history kept.
const LINES: usize = 1000;

type Shared = Arc<Mutex<Known>>;

struct Words {
    grammar: clap::Command,
    known: Shared,
}

impl Completer for Words {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        pos: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, mut found) = complete(&self.grammar, &known, line, pos);
        if let [one] = &mut found[..] {
            one.push(' ');
        }
        Ok((start, found))
    }
}

impl Hinter for Words {
    type Hint = String;
}
impl Highlighter for Words {}
impl Validator for Words {}
impl Helper for Words {}

/// `$XDG_STATE_HOME/drover/history`, made for this user alone.
fn history_file() -> Option<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".local/state"));
    let dir = state.or_else(home)?.join("drover");
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(&dir).ok()?;
    Some(dir.join("history"))
}

/// What droverd knows, as far as it answers.
async fn look(base: &Cli) -> Option<Known> {
    let client = Client::open(base.connect.as_deref(), LOOK, true)
        .await
        .ok()?;
    let (hosts, rows, jobs) = tokio::join!(client.hosts(), client.features(), client.jobs());
    let (hosts, rows) = (hosts.ok()?, rows.ok()?);
    let mut known = Known::default();
    for (n, h) in hosts.iter().enumerate() {
        if n == 0 {
            known.domains = h.instances.iter().map(|i| i.domain.clone()).collect();
            continue;
        }
        known.places.insert(h.name.clone());
        let guests = h
            .instances
            .iter()
            .map(|i| format!("{}/{}", h.name, i.domain));
        known.places.extend(guests);
    }
    let features = rows
        .into_iter()
        .map(|r| (r.domain, r.spec.name.to_string()));
    known.features = features.collect();
    known.moves = jobs.unwrap_or_default().into_iter().map(|j| j.id).collect();
    Some(known)
}

/// Whether the command deals with Ctrl-C itself.
fn minds_interrupts(command: &Command) -> bool {
    matches!(
        command,
        Command::Migrate { .. }
            | Command::Approve { .. }
            | Command::Drain { wait: true, .. }
            | Command::Guest { .. }
            | Command::Event { .. }
            | Command::Stats { watch: Some(_), .. }
    )
}

fn tell(e: &CliError) {
    if !e.is_told() {
        let _ = writeln!(std::io::stderr(), "error: {}", plain(&e.to_string()));
    }
}

fn words(line: &str) -> Option<Vec<String>> {
    let words = shlex::split(line);
    if words.is_none() {
        let _ = writeln!(std::io::stderr(), "error: a quote is not closed");
    }
    words
}

/// One line: its command parsed and run.
fn execute(runtime: &Runtime, base: &Cli, screen: &Screen, words: Vec<String>) {
    let mut cli = match Cli::try_parse_from(std::iter::once("drover".to_owned()).chain(words)) {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return;
        }
    };
    cli.connect = cli.connect.or_else(|| base.connect.clone());
    cli.timeout = cli.timeout.or(base.timeout);
    if cli.format == Format::Table {
        cli.format = base.format;
    }
    let mut out = std::io::stdout().lock();
    let outcome = runtime.block_on(async {
        let run = super::run::run_kept(&cli, &mut out, screen, true);
        if minds_interrupts(&cli.command) {
            return run.await;
        }
        let mut stop = super::interrupts()?;
        tokio::select! {
            outcome = run => outcome,
            _ = stop.recv() => Err(CliError::Canceled("interrupted".to_owned())),
        }
    });
    if let Err(e) = outcome.and_then(|()| out.flush().map_err(CliError::Output)) {
        tell(&e);
    }
}

/// Reads and runs lines until the user leaves.
pub(super) fn shell(runtime: &Runtime, base: &Cli) -> ExitCode {
    let known = Shared::default();
    let config = Config::builder()
        .completion_type(CompletionType::List)
        .auto_add_history(true)
        .max_history_size(LINES)
        .map(rustyline::config::Builder::build)
        .unwrap_or_default();
    let mut grammar = Cli::command();
    grammar.build();
    let mut editor: Editor<Words, FileHistory> = match Editor::with_config(config) {
        Ok(e) => e,
        Err(e) => {
            tell(&CliError::Failed(format!(
                "cannot read from the terminal: {e}"
            )));
            return ExitCode::from(1);
        }
    };
    editor.set_helper(Some(Words {
        grammar,
        known: Arc::clone(&known),
    }));
    let history = history_file();
    if let Some(file) = &history {
        // There is none the first time.
        let _ = editor.load_history(file);
    }
    println!("Drover's interactive shell. Type 'help' for the commands, 'quit' to leave.\n");
    let prompt = match &base.connect {
        Some(host) => format!("drover {host} # "),
        None => "drover # ".to_owned(),
    };
    loop {
        if let Some(now) = runtime.block_on(look(base)) {
            *known.lock().unwrap_or_else(PoisonError::into_inner) = now;
        }
        let line = match editor.readline(&prompt) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(e) => {
                tell(&CliError::Failed(format!(
                    "cannot read from the terminal: {e}"
                )));
                return ExitCode::from(1);
            }
        };
        // Asked anew, for the window may have another size by now.
        let screen = Screen::detect();
        let Some(mut words) = words(&line) else {
            continue;
        };
        match words.first().map(String::as_str) {
            None => {}
            Some("quit" | "exit") => break,
            Some("help") => {
                words.remove(0);
                words.push("--help".to_owned());
                execute(runtime, base, &screen, words);
            }
            Some(_) => execute(runtime, base, &screen, words),
        }
    }
    if let Some(file) = &history
        && let Err(e) = editor.save_history(file)
    {
        tell(&CliError::Failed(format!(
            "the history cannot be written to {}: {e}",
            file.display()
        )));
    }
    ExitCode::SUCCESS
}
