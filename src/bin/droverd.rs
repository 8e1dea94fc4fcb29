//! `droverd`: the daemon on each host.

use std::io::IsTerminal;

use anyhow::Context;
use clap::Parser;
use drover::cli::args::DaemonArgs;
use drover::config::Loaded;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> anyhow::Result<()> {
    let args = DaemonArgs::parse();
    let loaded = Loaded::read(&args.config)?;
    if args.check {
        println!("{}: valid", args.config.display());
        return Ok(());
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(async {
            let mut term = signal(SignalKind::terminate()).context("SIGTERM")?;
            let mut int = signal(SignalKind::interrupt()).context("SIGINT")?;
            let mut hup = signal(SignalKind::hangup()).context("SIGHUP")?;
            let (again, reload) = tokio::sync::mpsc::channel(1);
            tokio::spawn(async move {
                while hup.recv().await.is_some() {
                    // One that waits already will read what is there by then.
                    let _ = again.try_send(());
                }
            });
            let stop = async move {
                tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            };
            drover::daemon::run(loaded, reload, stop)
                .await
                .context("droverd cannot go on")
        })
}
