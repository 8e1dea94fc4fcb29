//! `drover`, next to virsh and in its habits: domain first, then feature (edge).
//!
//! ```text
//! args (clap) -> run -> client (D-Bus) -> views (text, JSON, CSV into any writer)
//! ```
//!
//! Everything printed goes through functions that take data and a writer, so that tests need no
//! bus. A closed pipe ends the program quietly.

pub mod args;
pub mod client;
mod config;
mod decisions;
#[cfg(test)]
mod docs_tests;
pub mod doctor;
pub mod error;
pub mod events;
pub mod generate;
pub mod moves;
pub mod run;
pub mod screen;
mod show;
pub mod spec;
pub mod table;
pub mod time;
mod top;
pub mod views;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use error::CliError;

/// Ctrl-C from now on, also while nobody waits for it; it no longer ends the program by itself.
fn interrupts() -> Result<tokio::signal::unix::Signal, CliError> {
    use tokio::signal::unix::{SignalKind, signal};
    signal(SignalKind::interrupt())
        .map_err(|e| CliError::Failed(format!("cannot listen for Ctrl-C: {e}")))
}

/// The whole program: parses the command line, runs the command, prints errors.
pub fn main() -> ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // A help text that nobody reads is no failure.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => {
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
            let mut out = std::io::stdout().lock();
            let outcome = runtime.block_on(run::run(&cli, &mut out, &screen::Screen::detect()));
            outcome.and_then(|()| out.flush().map_err(CliError::Output))
        }
        Err(e) => Err(CliError::Failed(format!("cannot start: {e}"))),
    };
    told(outcome)
}

/// Says what went wrong, and gives the exit code.
fn told(outcome: Result<(), CliError>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            if !e.is_told() {
                let _ = writeln!(
                    std::io::stderr(),
                    "error: {}",
                    screen::plain(&e.to_string())
                );
            }
            ExitCode::from(e.code())
        }
    }
}
