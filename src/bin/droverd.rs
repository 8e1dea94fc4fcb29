//! `droverd`: the daemon on each host.

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
        .with_writer(drover::log::OneLine)
        .with_ansi(false)
        .init();
    use_little_memory();
    std::thread::Builder::new()
        .name("trim".into())
        .spawn(give_memory_back)
        .context("starting a thread")?;
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

/// Has the C library keep fewer heaps than threads and give large blocks back at once: what is
/// gathered of thousands of features is short-lived, and would otherwise stay as holes.
fn use_little_memory() {
    use nix::libc;
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 2),
        (libc::M_MMAP_THRESHOLD, 128 << 10),
        (libc::M_TRIM_THRESHOLD, 1 << 20),
    ] {
        // SAFETY: sets parameters of the allocator; no other thread runs yet. One that is refused
        // changes nothing.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives free pages back from time to time: what stays allocated of a burst (the start, an hour that
/// is rolled up) is spread over the heaps, and keeps the C library from doing that by itself.
fn give_memory_back() {
    const EVERY: std::time::Duration = std::time::Duration::from_secs(30);
    loop {
        std::thread::sleep(EVERY);
        // SAFETY: only looks at the allocator's own lists, under its locks.
        unsafe { nix::libc::malloc_trim(0) };
    }
}
