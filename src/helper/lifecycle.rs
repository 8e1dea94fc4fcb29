//! Defining, starting, stopping and listing the features of this guest.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use crate::feature::{FeatureName, FeatureSpec};
use crate::helper::features::{self, FeatureFileError};
use crate::helper::meter;
use crate::helper::unit::{self, UnitError};
use crate::helper::{cgroup, netns, paths};
use crate::wire::guest::{ErrorKind, GuestFeature, GuestMove, GuestMoveState, GuestStatus, Reply};

/// How long a workload may take from its unit's start to its first process.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Why a feature was not defined, started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Its definition is absent, wrong or cannot be kept.
    #[error(transparent)]
    Definition(#[from] FeatureFileError),
    /// A definition that cannot work.
    #[error("{0}")]
    Invalid(String),
    /// Its unit cannot be managed.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// It is part of a move.
    #[error("feature '{0}' is part of move {1}; end the move first")]
    Moving(FeatureName, String),
    /// It did not come up.
    #[error("{0}")]
    Start(String),
}

impl From<Failure> for Reply {
    fn from(failure: Failure) -> Self {
        let kind = match &failure {
            Failure::Definition(FeatureFileError::Unknown(_)) => ErrorKind::NotFound,
            Failure::Definition(FeatureFileError::Damaged(..))
            | Failure::Invalid(_)
            | Failure::Moving(..) => ErrorKind::Invalid,
            Failure::Unit(UnitError::NotManaged(_)) => ErrorKind::Refused,
            _ => ErrorKind::Failed,
        };
        Self::Error {
            kind,
            message: failure.to_string(),
        }
    }
}

/// Makes the known features exactly these; changes nothing when one of them is wrong.
pub fn define(specs: &[FeatureSpec]) -> Result<(), Failure> {
    let mut names = BTreeSet::new();
    for spec in specs {
        spec.validate()
            .map_err(|e| Failure::Invalid(e.to_string()))?;
        if !names.insert(&spec.name) {
            let why = format!("feature '{}' is defined twice", spec.name);
            return Err(Failure::Invalid(why));
        }
    }
    Ok(features::replace(specs)?)
}

/// Starts a managed feature and waits until its first process runs.
pub fn start(name: &FeatureName, moves: &[GuestMove]) -> Result<(), Failure> {
    not_moving(name, moves)?;
    let spec = features::get(name)?;
    let managed = spec
        .managed()
        .ok_or_else(|| UnitError::NotManaged(name.clone()))?;
    if unit::running(name) && features::pid(name).is_some() {
        return Ok(());
    }
    drop_exit(name);
    let started = unit::install(name, &spec, None)
        .and_then(|()| Ok(netns::create(name, managed, true)?))
        .and_then(|()| unit::start(name))
        .map_err(Failure::from)
        .and_then(|()| wait_for_process(name));
    if started.is_err() {
        let word = fs::read_to_string(features::exit_file(name)).ok();
        if let Err(e) = unit::remove(name) {
            tracing::warn!("after a start that failed: {e}");
        }
        if let Some(word) = word {
            return Err(Failure::Start(word));
        }
    }
    started
}

/// Waits until the workload of a unit that was started has its first process.
pub(super) fn wait_for_process(name: &FeatureName) -> Result<(), Failure> {
    let end = Instant::now() + START_LIMIT;
    while features::pid(name).is_none() {
        let over = Instant::now() > end;
        if over || features::exit_file(name).exists() || !unit::running(name) {
            let why = format!("feature '{name}' did not start; see its unit's journal");
            return Err(Failure::Start(why));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Tells the neighbours where the features are that run here and that no move is about.
pub fn announce(moves: &[GuestMove]) {
    let status = status(moves.to_vec());
    for f in status.features.iter().filter(|f| f.running && !f.frozen) {
        let Ok(spec) = features::get(&f.feature) else {
            continue;
        };
        let quiet = not_moving(&f.feature, moves).is_ok() && !netns::gated(&f.feature);
        if let Some(managed) = spec.managed().filter(|_| quiet)
            && let Err(e) = netns::announce(&f.feature, managed)
        {
            tracing::warn!("{e}");
        }
    }
}

/// Stops a managed feature and removes all of it but its definition.
pub fn stop(name: &FeatureName, moves: &[GuestMove]) -> Result<(), Failure> {
    not_moving(name, moves)?;
    if features::get(name).is_ok_and(|spec| spec.managed().is_none()) {
        return Err(UnitError::NotManaged(name.clone()).into());
    }
    Ok(unit::remove(name)?)
}

fn not_moving(name: &FeatureName, moves: &[GuestMove]) -> Result<(), Failure> {
    match moves
        .iter()
        .find(|m| m.feature == *name && m.state != GuestMoveState::Running)
    {
        Some(m) => Err(Failure::Moving(name.clone(), m.id.clone())),
        None => Ok(()),
    }
}

/// Every feature that has a unit, namespace or process here, known or not, and the moves.
pub fn status(moves: Vec<GuestMove>) -> GuestStatus {
    let specs = features::all();
    let mut names: BTreeSet<FeatureName> = listed("/run/systemd/system", ".service")
        .chain(listed("/run/netns", ""))
        .collect();
    names.extend(specs.iter().map(|s| s.name.clone()));
    let features = names
        .into_iter()
        .filter_map(|feature| {
            let spec = specs.iter().find(|s| s.name == feature);
            let (dir, present, workload) =
                if let Some(spec) = spec.filter(|s| s.managed().is_none()) {
                    (meter::directory(spec)?, true, None)
                } else {
                    let present = paths::unit_file(&feature).exists() || netns::exists(&feature);
                    let workload = paths::workload_cgroup(&feature);
                    (paths::cgroup_dir(&feature), present, Some(workload))
                };
            let running = cgroup::populated(&dir);
            let frozen = cgroup::frozen(workload.as_deref().unwrap_or(&dir));
            (present || running).then_some(GuestFeature {
                feature,
                running,
                frozen,
            })
        })
        .collect();
    GuestStatus { features, moves }
}

fn listed(directory: &str, suffix: &'static str) -> impl Iterator<Item = FeatureName> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(move |entry| {
            let file = entry.file_name();
            let name = file
                .to_str()?
                .strip_prefix("drover-")?
                .strip_suffix(suffix)?;
            FeatureName::new(name).ok()
        })
}

/// Features whose supervisor left a word about their end.
pub fn exits() -> Vec<FeatureName> {
    fs::read_dir(features::directory())
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let file = entry.file_name();
            FeatureName::new(file.to_str()?.strip_suffix(".exit")?).ok()
        })
        .collect()
}

/// Takes the word about a feature's end; `None` while a move is the reason for it, or it is for
/// the move's target to tell.
pub fn take_exit(name: &FeatureName, moves: &[GuestMove]) -> Option<String> {
    let by_move = moves.iter().any(|m| {
        m.feature == *name
            && matches!(
                m.state,
                GuestMoveState::Frozen | GuestMoveState::Receiving | GuestMoveState::Ready
            )
    });
    if by_move {
        return None;
    }
    let word = fs::read_to_string(features::exit_file(name)).ok()?;
    drop_exit(name);
    Some(word.chars().take(500).collect())
}

/// Removes the word about an end.
pub(super) fn drop_exit(name: &FeatureName) {
    if let Err(e) = features::remove_file(&features::exit_file(name)) {
        tracing::warn!("cannot remove the exit file of '{name}': {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_definitions_are_refused() {
        let spec = |name: &str, unit: &str| -> FeatureSpec {
            let json =
                format!(r#"{{"name":"{name}","workload":{{"kind":"unit","unit":"{unit}"}}}}"#);
            serde_json::from_str(&json).unwrap()
        };
        for bad in [
            vec![spec("web", "a b")],
            vec![spec("web", "x.service"), spec("web", "y.service")],
        ] {
            assert!(matches!(define(&bad), Err(Failure::Invalid(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_feature_under_way_is_neither_started_nor_stopped() {
        let name = FeatureName::new("cache").unwrap();
        let moves = [GuestMove {
            id: "0123abcd".into(),
            feature: name.clone(),
            state: GuestMoveState::Frozen,
        }];
        assert!(matches!(start(&name, &moves), Err(Failure::Moving(..))));
        assert!(matches!(stop(&name, &moves), Err(Failure::Moving(..))));
        assert_eq!(take_exit(&name, &moves), None);
    }
}
