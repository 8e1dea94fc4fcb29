//! A dump that is thrown away: shows whether criu can dump the feature, how much that is and how
//! long the feature stands still for it. Never restored from.
//!
//! The network is left as it is: no rule drops a packet, so that a client sees nothing but a feature
//! that stands still for the dump. What arrives meanwhile waits in its sockets.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use super::criu::rpc::{CGROUPS_IGNORE, Kind, NETWORK_LOCK_SKIP, Opts};
use super::criu::{self, Criu, CriuError, Job, stats};
use super::moves::{self, Failure, lock};
use super::{arrival, cgroup, features, paths, preflight, source};
use crate::feature::FeatureName;
use crate::reason::Rehearsal;
use crate::wire::guest::ErrorKind;

/// One at a time: a guest has memory for so many images only.
static ONE: Mutex<()> = Mutex::new(());

/// Where the images are for a moment. Not a move's identifier, so that no move is taken for it.
fn directory() -> PathBuf {
    moves::directory().join("rehearsal")
}

/// Removes what a rehearsal left when the helper was ended in it.
pub fn clean() {
    if let Err(e) = moves::remove_tree(&directory()) {
        tracing::warn!("images of a rehearsal are not removed: {e}");
    }
}

/// Dumps the feature, lets it go on, and removes the images.
pub fn rehearse(feature: &FeatureName) -> Result<Rehearsal, Failure> {
    let Ok(_one) = ONE.try_lock() else {
        let why = "another rehearsal is under way in this guest; try again later";
        return Err(Failure::new(ErrorKind::Refused, why));
    };
    let spec = features::get(feature)?;
    if spec.managed().is_none() {
        let why = format!("feature '{feature}' is not run by Drover, so it cannot move");
        return Err(Failure::new(ErrorKind::Refused, why));
    }
    let pid = features::running(feature).ok_or_else(|| {
        let why = format!("feature '{feature}' does not run here");
        Failure::new(ErrorKind::NotFound, why)
    })?;
    if let Some((id, _)) = moves::recorded()
        .into_iter()
        .find(|(_, r)| r.feature == *feature)
    {
        let why = format!("feature '{feature}' is part of move {id}; wait for its end");
        return Err(Failure::new(ErrorKind::Refused, why));
    }
    let need = preflight::resident(feature);
    let room = preflight::room().saturating_sub(arrival::RESERVE);
    if need > room {
        let why = format!(
            "the rehearsal needs {} MiB for images, {} MiB are free in this guest",
            need >> 20,
            room >> 20
        );
        return Err(Failure::new(ErrorKind::NoRoom, why));
    }
    let dir = directory();
    moves::remove_tree(&dir)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir.join("images"))?;
    let result = dump(feature, pid, &dir);
    clean();
    let rehearsal = result?;
    tracing::info!("rehearsal of {feature}: {rehearsal:?}");
    Ok(rehearsal)
}

fn dump(feature: &FeatureName, pid: i32, dir: &Path) -> Result<Rehearsal, Failure> {
    let _unlimited = cgroup::Unlimited::new(&paths::cgroup_dir(feature));
    let mut criu = Criu::spawn(&paths::netns(feature), &criu::cgroup("rehearsal"))?;
    let begin = Instant::now();
    criu.request(Job {
        kind: Kind::Dump,
        images: &dir.join("images"),
        work: dir,
        log: "dump.log",
        opts: Opts {
            pid: Some(pid),
            leave_running: Some(true),
            tcp_established: Some(true),
            file_locks: Some(true),
            ghost_limit: Some(source::GHOST_LIMIT),
            log_level: Some(2),
            manage_cgroups_mode: Some(CGROUPS_IGNORE),
            network_lock: Some(NETWORK_LOCK_SKIP),
            ..Opts::default()
        },
    })?;
    let end = criu.to_end();
    let dump_ms = begin.elapsed().as_millis() as u64;
    let problem = match end {
        Ok(()) => None,
        Err(e @ CriuError::Failed { .. }) => Some(e.to_string()),
        Err(e) => return Err(e.into()),
    };
    drop(criu);
    if !criu::wait_none("rehearsal", criu::END) {
        let why = "criu of the rehearsal does not end; look at its process in the guest";
        return Err(Failure::new(ErrorKind::Criu, why));
    }
    Ok(Rehearsal {
        problem,
        bytes: size(&dir.join("images")),
        frozen_ms: u64::from(stats::read(dir).frozen_us) / 1000,
        dump_ms,
    })
}

/// Bytes of the files in a directory.
fn size(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|e| e.metadata().ok())
        .map(|m| m.len())
        .sum()
}

/// Waits for the end of a rehearsal; none begins while the answer lives. A move holds it until
/// its record tells of it.
pub fn none() -> MutexGuard<'static, ()> {
    lock(&ONE)
}
