//! libvirt's default event loop, once per process, on a thread of its own.

use std::sync::OnceLock;
use std::time::Duration;

use super::HypervisorError;

/// Starts the loop unless it runs. Must be called before the first connection is opened, since
/// libvirt decides at opening whether a connection delivers events.
pub(super) fn start() -> Result<(), HypervisorError> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    let result = STARTED.get_or_init(|| {
        // Errors are returned and logged where they matter; the default handler prints them all.
        virt::error::clear_error_callback();
        virt::event::event_register_default_impl().map_err(|e| e.to_string())?;
        // A process without a single watch or timer would make the loop sleep for ever, which is
        // fine: adding one wakes it.
        std::thread::Builder::new()
            .name("libvirt-events".into())
            .spawn(run)
            .map(drop)
            .map_err(|e| e.to_string())
    });
    result.clone().map_err(|message| HypervisorError::Answer {
        what: "start of the event loop".into(),
        message,
    })
}

fn run() {
    loop {
        if let Err(e) = virt::event::event_run_default_impl() {
            tracing::warn!(error = %e.message(), "libvirt's event loop failed once");
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}
