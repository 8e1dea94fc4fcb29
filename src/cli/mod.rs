//! `drover`, next to virsh and in its habits: domain first, then feature (edge).
//!
//! ```text
//! args (clap) -> run -> client (D-Bus) -> views (text, JSON, CSV into any writer)
//! ```
//!
//! Everything printed goes through functions that take data and a writer, so that tests need no
//! bus. A closed pipe ends the program quietly.

mod agent;
pub mod args;
mod bridge;
pub mod client;
pub mod complete;
mod config;
mod decisions;
#[cfg(test)]
mod docs_tests;
pub mod doctor;
mod edit;
pub mod error;
pub mod events;
pub mod generate;
pub mod moves;
mod progress;
mod remote;
pub mod run;
pub mod screen;
mod shell;
mod show;
pub mod spec;
pub mod table;
pub mod time;
mod top;
pub mod views;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use error::CliError;

/// Ctrl-C from now on, also while nobody waits for it; it no longer ends the program by itself.
fn interrupts() -> Result<tokio::signal::unix::Signal, CliError> {
    use tokio::signal::unix::{SignalKind, signal};
    signal(SignalKind::interrupt())
        .map_err(|e| CliError::Failed(format!("cannot listen for Ctrl-C: {e}")))
}

fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::Failed(format!("cannot start: {e}")))
}

/// The options of a command line without a command, on a terminal: for the interactive shell.
fn bare(e: &clap::Error) -> Option<args::Cli> {
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let none = matches!(
        e.kind(),
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if !terminal || !none {
        return None;
    }
    // Something like `drover guest` lacks a command too, but has one.
    let words = std::env::args_os().chain(["version".into()]);
    let cli = args::Cli::try_parse_from(words).ok()?;
    matches!(cli.command, args::Command::Version).then_some(cli)
}

/// The whole program: parses the command line, runs the command, prints errors.
pub fn main() -> ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            if let Some(base) = bare(&e) {
                let _agent = agent::start().filter(|_| base.connect.is_none());
                return match runtime() {
                    Ok(runtime) => shell::shell(&runtime, &base),
                    Err(e) => fail(&e),
                };
            }
            // A help text that nobody reads is no failure.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    let outcome = match (&cli.command, runtime()) {
        (args::Command::Bridge, _) => bridge::run(),
        (_, Ok(runtime)) => {
            // Before standard output is locked: it is this command's stream.
            if let args::Command::PeerStdio {
                from,
                socket,
                protocol,
            } = &cli.command
            {
                let done = runtime.block_on(run::peer_stdio(from, socket, protocol.as_deref()));
                // Standard input may still be read by a thread of its own.
                runtime.shutdown_background();
                return told(done);
            }
            let agent = cli.connect.is_none() && cli.command.changes();
            let _agent = agent.then(agent::start);
            let mut out = std::io::stdout().lock();
            let outcome = runtime.block_on(run::run(&cli, &mut out, &screen::Screen::detect()));
            outcome.and_then(|()| out.flush().map_err(CliError::Output))
        }
        (_, Err(e)) => Err(e),
    };
    told(outcome)
}

/// Says what went wrong, and gives the exit code.
fn told(outcome: Result<(), CliError>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&e),
    }
}

fn fail(e: &CliError) -> ExitCode {
    if !e.is_told() {
        let _ = writeln!(
            std::io::stderr(),
            "error: {}",
            screen::plain(&e.to_string())
        );
    }
    ExitCode::from(e.code())
}
