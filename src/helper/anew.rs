//! Moves that do not carry processes: `restart` and `handover`. They take the same steps as a live
//! move, and keep the same promises by other means:
//!
//! ```text
//!             restart                              handover
//! freeze      quiesce, stop here, keep the state   no new connections, drain, quiesce, cut off
//! restore     start there behind the gate          (runs there behind the gate since round 1)
//! ready       resume and health hooks were good    the same
//! abort       start again here                     let connections in again
//! commit      open the gate there, remove here     open the gate there, stop and remove here
//! ```
//! What runs behind a gate reaches nothing but itself, so that at most one instance is seen.

use std::path::Path;
use std::time::{Duration, Instant};

use super::moves::Failure;
use super::{cgroup, features, lifecycle, netns, paths, sockets, unit};
use crate::feature::{FeatureName, FeatureSpec};
use crate::method::{HookName, Method};
use crate::reason::{Code, Reason};
use crate::wire::guest::ErrorKind;

/// Pause between looks at connections that are to end.
const LOOK: Duration = Duration::from_millis(5);

/// What keeps the feature from being moved by this method, as far as its definition and this guest
/// tell: programs that are not here, its own (with `live` every file is compared) and its commands.
pub fn reasons(spec: &FeatureSpec, method: Method, hooks: &[HookName]) -> Vec<Reason> {
    let mut programs = Vec::new();
    if method != Method::Live
        && let Some(first) = spec.managed().and_then(|m| m.exec.first())
    {
        programs.push(("exec".to_owned(), first));
    }
    for name in hooks {
        if let Some(first) = spec.hooks().get(*name).and_then(|h| h.exec.first()) {
            programs.push((format!("hooks.{}.exec", name.as_str()), first));
        }
    }
    let absent = programs.into_iter().filter_map(|(what, program)| {
        let there = nix::unistd::access(Path::new(program), nix::unistd::AccessFlags::X_OK);
        there.err().map(|e| {
            let why = format!(
                "{program} ({what} of feature '{}') cannot be executed in this guest: {}",
                spec.name,
                e.desc()
            );
            Reason::new(Code::FileAbsent, why)
        })
    });
    let against = spec.against(method).map(|why| Reason::new(Code::Hook, why));
    against.into_iter().chain(absent).collect()
}

/// Stops the feature; its definition and state stay.
pub fn stop(feature: &FeatureName) -> Result<(), Failure> {
    unit::stop(feature)?;
    if unit::running(feature) {
        return Err(Failure::new(
            ErrorKind::Failed,
            format!("processes of feature '{feature}' do not end; they are named by its unit"),
        ));
    }
    Ok(())
}

/// Keeps new connections out, and gives those that are open their time to end.
pub fn retire(feature: &FeatureName, spec: &FeatureSpec) -> Result<(), Failure> {
    netns::close_door(feature, netns::Visitors::Outside)?;
    let left = drain(feature, Duration::from_millis(spec.drain_ms));
    if left > 0 {
        tracing::info!("feature {feature}: {left} connections are open still and will be cut");
    }
    Ok(())
}

/// Waits until the connections that came from outside have ended; how many are left.
fn drain(feature: &FeatureName, limit: Duration) -> usize {
    let until = Instant::now() + limit;
    let pid = features::pid(feature).unwrap_or(0);
    loop {
        let left = sockets::accepted(&sockets::tables(pid));
        if left == 0 || Instant::now() >= until {
            return left;
        }
        std::thread::sleep(LOOK);
    }
}

/// Undoes [`stop`], [`retire`] and the gate: the feature goes on here. Idempotent.
pub fn go_on(feature: &FeatureName, spec: &FeatureSpec) -> Result<(), Failure> {
    let Some(managed) = spec.managed() else {
        return Ok(());
    };
    if features::pid(feature).is_some() && cgroup::populated(&paths::workload_cgroup(feature)) {
        netns::open_door(feature)?;
        netns::announce(feature, managed)?;
        return Ok(());
    }
    if let Err(e) = lifecycle::start(feature, &[]) {
        // It is as if it had ended by itself: its definition and state are here, and the host
        // is told that it does not run.
        tracing::error!("feature {feature} does not start again here: {e}");
    }
    Ok(())
}

/// Starts the feature behind the gate at the target.
pub fn start_gated(feature: &FeatureName, spec: &FeatureSpec) -> Result<i32, Failure> {
    let managed = spec.managed().ok_or_else(|| {
        Failure::new(
            ErrorKind::Refused,
            format!("feature '{feature}' is not run by Drover"),
        )
    })?;
    // The unit must find it: one that it makes by itself is open.
    netns::create(feature, managed, false)?;
    netns::gate_outside(feature)?;
    // The word of an instance before this one is not its own.
    lifecycle::drop_exit(feature);
    unit::install(feature, spec, None)?;
    unit::start(feature)?;
    lifecycle::wait_for_process(feature).map_err(|e| {
        let word = std::fs::read_to_string(features::exit_file(feature)).ok();
        Failure::new(ErrorKind::Failed, word.unwrap_or_else(|| e.to_string()))
    })?;
    running(feature)
}

/// The feature's first process, or why it does not run.
pub fn running(feature: &FeatureName) -> Result<i32, Failure> {
    features::running(feature).ok_or_else(|| {
        let word = std::fs::read_to_string(features::exit_file(feature)).unwrap_or_default();
        let how = if word.is_empty() {
            "ended"
        } else {
            word.as_str()
        };
        Failure::new(
            ErrorKind::Failed,
            format!("the workload of feature '{feature}' started and {how}"),
        )
    })
}

/// The commands that run at the source.
pub const SOURCE_HOOKS: [HookName; 3] = [HookName::Prepare, HookName::Quiesce, HookName::Abort];

/// The commands that run at the target.
pub fn target_hooks(method: Method) -> &'static [HookName] {
    match method {
        Method::Handover => &[HookName::Prepare, HookName::Resume, HookName::Health],
        Method::Live | Method::Restart => &[HookName::Resume, HookName::Health],
    }
}
