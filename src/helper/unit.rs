//! The systemd unit of a managed feature, `drover-NAME.service` in `drover.slice`: a cgroup of
//! its own with all accounting on and the feature's limits.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use crate::feature::{FeatureName, FeatureSpec, Managed};
use crate::helper::command::{self, CommandError};
use crate::helper::features;
use crate::helper::init;
use crate::helper::netns::{self, NetError};
use crate::helper::{cgroup, paths};

/// The unit stops within TimeoutStopSec, at most [`crate::method::LONGEST_STOP_S`]; a busy guest gets some more.
const LIMIT: Duration = Duration::from_secs(60);
/// How long systemd is given to end a unit whose processes are dead, before it is told to.
const BY_ITSELF: Duration = Duration::from_secs(5);

/// Why a unit could not be installed, started, stopped or removed.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// systemctl failed.
    #[error("unit of feature '{0}': {1}")]
    Systemctl(FeatureName, CommandError),
    /// A file could not be written or removed.
    #[error("unit of feature '{0}': {1}: {2}")]
    File(FeatureName, String, io::Error),
    /// The feature is a unit of the guest's own.
    #[error("feature '{0}' is an existing unit of the guest; Drover only meters it")]
    NotManaged(FeatureName),
    /// Its namespace could not be removed.
    #[error(transparent)]
    Network(#[from] NetError),
}

/// Writes the unit and makes systemd know it. With `restore` the unit restores the feature from
/// that move instead of starting it afresh.
pub fn install(
    name: &FeatureName,
    spec: &FeatureSpec,
    restore: Option<&str>,
) -> Result<(), UnitError> {
    let managed = spec
        .managed()
        .ok_or_else(|| UnitError::NotManaged(name.clone()))?;
    let text = text(spec, managed, restore);
    let file = paths::unit_file(name);
    if fs::read_to_string(&file).ok().as_deref() == Some(text.as_str()) {
        return Ok(());
    }
    let failed = |e| UnitError::File(name.clone(), file.display().to_string(), e);
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    // The name of an unfinished file must not end like a unit's.
    features::write_atomically(&file, text.as_bytes()).map_err(failed)?;
    // systemd reads a unit that it does not have in memory when it needs it. A reload takes a
    // second or more on a slow guest, so it is only done for a unit that is in memory still.
    let unit = paths::unit_name(name);
    let stale = systemctl(
        name,
        &["show", "-p", "NeedDaemonReload", "--value", "--", &unit],
    )?;
    if stale.trim() == "yes" {
        systemctl(name, &["daemon-reload"])?;
    }
    Ok(())
}

/// Starts the unit; returns when its main process was executed. Idempotent.
pub fn start(name: &FeatureName) -> Result<(), UnitError> {
    systemctl(name, &["start", &paths::unit_name(name)]).map(|_| ())
}

/// Stops the unit and waits until its processes are gone. Idempotent; an unknown unit is stopped.
pub fn stop(name: &FeatureName) -> Result<(), UnitError> {
    match systemctl(name, &["stop", &paths::unit_name(name)]) {
        // 5: not loaded.
        Err(UnitError::Systemctl(_, CommandError::Failed { code: Some(5), .. })) => Ok(()),
        other => other.map(|_| ()),
    }
}

/// Stops the unit and removes everything of the feature but its definition: the unit, namespace,
/// address, PID file, log FIFO. Idempotent.
pub fn remove(name: &FeatureName) -> Result<(), UnitError> {
    stop(name)?;
    remove_stopped(name)
}

/// As [`remove`], for a unit whose workload was just killed: systemd ends it by itself then, its
/// `ExecStopPost` included, and `systemctl` would take longer to start than that takes.
pub fn remove_killed(name: &FeatureName) -> Result<(), UnitError> {
    let (dir, until) = (paths::cgroup_dir(name), Instant::now() + BY_ITSELF);
    while dir.exists() {
        if Instant::now() > until {
            return remove(name);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    remove_stopped(name)
}

fn remove_stopped(name: &FeatureName) -> Result<(), UnitError> {
    cleanup(name)?;
    // CollectMode makes systemd forget the stopped unit by itself.
    for file in [paths::unit_file(name), features::exit_file(name)] {
        features::remove_file(&file)
            .map_err(|e| UnitError::File(name.clone(), file.display().to_string(), e))?;
    }
    Ok(())
}

/// Removes what a stopped unit may have left: namespace, PID file, log FIFO. Run by systemd after
/// every end of the unit (ExecStopPost), so that also a killed supervisor leaves nothing.
pub fn cleanup(name: &FeatureName) -> Result<(), UnitError> {
    netns::delete(name)?;
    for file in [
        paths::feature_pid(name),
        features::log_fifo(name),
        init::status_file(name),
    ] {
        features::remove_file(&file)
            .map_err(|e| UnitError::File(name.clone(), file.display().to_string(), e))?;
    }
    Ok(())
}

/// Whether processes of the feature's unit run (frozen ones count).
pub fn running(name: &FeatureName) -> bool {
    cgroup::populated(&paths::cgroup_dir(name))
}

fn systemctl(name: &FeatureName, args: &[&str]) -> Result<String, UnitError> {
    command::run("systemctl", args, "", LIMIT).map_err(|e| UnitError::Systemctl(name.clone(), e))
}

fn text(spec: &FeatureSpec, managed: &Managed, restore: Option<&str>) -> String {
    let (name, stop_s) = (&spec.name, spec.stop_s);
    let helper = paths::HELPER;
    let mut unit = format!(
        "[Unit]\nDescription=Drover feature {name}\nCollectMode=inactive-or-failed\n\n\
         [Service]\nType=exec\nExecStart={helper} run {name}"
    );
    if let Some(id) = restore {
        let _ = write!(unit, " --restore {id}");
    }
    let _ = write!(
        unit,
        "\nExecStopPost={helper} cleanup {name}\nSlice=drover.slice\nRestart=no\n\
         OOMPolicy=continue\n\
         KillMode=mixed\nTimeoutStopSec={stop_s}\nDelegate=yes\nCPUAccounting=yes\n\
         MemoryAccounting=yes\nIOAccounting=yes\nTasksAccounting=yes\n"
    );
    if let Some(percent) = managed.cpu_quota_percent {
        let _ = writeln!(unit, "CPUQuota={percent}%");
    }
    if let Some(mib) = managed.memory_max_mib {
        let _ = writeln!(unit, "MemoryMax={mib}M");
    }
    unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_carries_limits_and_the_move() {
        let name = FeatureName::new("cache").unwrap();
        let managed: Managed = serde_json::from_str(
            r#"{"exec":["/bin/x"],"address":"10.0.0.1/24","cpu_quota_percent":50,"memory_max_mib":64}"#,
        )
        .unwrap();
        let spec = FeatureSpec {
            stop_s: 30,
            ..FeatureSpec::new(name, crate::feature::Workload::Managed(managed.clone()))
        };
        let fresh = text(&spec, &managed, None);
        assert!(fresh.contains("\nTimeoutStopSec=30\n"));
        assert!(fresh.contains("\nCPUQuota=50%\n") && fresh.contains("\nMemoryMax=64M\n"));
        assert!(fresh.contains("drover-guest run cache\n"));
        let restored = text(&spec, &managed, Some("0123abcd"));
        assert!(restored.contains("run cache --restore 0123abcd\n"));
    }
}
