//! Where things are in a guest. Everything is on tmpfs: nothing of a move touches a disk.
//!
//! ```text
//! /run/drover/features/NAME.json      definition of a feature (FeatureSpec)
//! /run/drover/features/NAME.pid       workload's first process, PID of the guest's namespace
//! /run/drover/moves/                  a tmpfs of its own, up to 80 % of the memory
//! /run/drover/moves/ID/               a move's directory, mode 0700
//! /run/drover/moves/ID/move.json      who it is (feature, side, stream), for a restarted helper
//! /run/drover/moves/ID/rounds/N/      criu's images of round N, flat
//! /run/drover/moves/ID/gate.sock      supervisor <-> daemon during a restore
//! /run/drover/moves/ID/gate.json      last state of that restore, for a restarted helper
//! /run/drover/moves/ID/*.log          criu's logs
//! /run/drover/features/NAME.status    how the workload ended, by its first process, for a moment
//! /var/lib/drover/init                that first process' program
//! /sys/fs/cgroup/drover-criu/ID       criu while it dumps, in no unit's cgroup
//! /run/systemd/system/drover-NAME.service
//! /run/netns/drover-NAME              network namespace; the interface inside is eth0
//! ```

use std::path::PathBuf;

use crate::feature::FeatureName;

/// Root of the helper's runtime files.
pub const RUN: &str = "/run/drover";
/// Where the helper itself is installed.
pub const HELPER: &str = "/usr/lib/drover/drover-guest";

/// Definition of a feature.
pub fn feature_json(name: &FeatureName) -> PathBuf {
    PathBuf::from(format!("{RUN}/features/{name}.json"))
}
/// PID file of a feature's workload.
pub fn feature_pid(name: &FeatureName) -> PathBuf {
    PathBuf::from(format!("{RUN}/features/{name}.pid"))
}
/// Name of a feature's unit.
pub fn unit_name(name: &FeatureName) -> String {
    format!("drover-{name}.service")
}
/// File of a feature's unit.
pub fn unit_file(name: &FeatureName) -> PathBuf {
    PathBuf::from(format!("/run/systemd/system/{}", unit_name(name)))
}
/// cgroup v2 directory of a feature's unit.
pub fn cgroup_dir(name: &FeatureName) -> PathBuf {
    PathBuf::from(format!("/sys/fs/cgroup/drover.slice/{}", unit_name(name)))
}
/// cgroup of a feature's workload, inside that of its unit. The supervisor is not in it: a move
/// freezes the workload only, as systemd would hang if it had to start a stop command in a frozen
/// cgroup.
pub fn workload_cgroup(name: &FeatureName) -> PathBuf {
    cgroup_dir(name).join("workload")
}
/// Network namespace of a feature.
pub fn netns(name: &FeatureName) -> PathBuf {
    PathBuf::from(format!("/run/netns/drover-{name}"))
}
/// Directory of a move; `id` must have passed `valid_move_id`.
pub fn move_dir(id: &str) -> PathBuf {
    PathBuf::from(format!("{RUN}/moves/{id}"))
}
/// Images of one round of a move.
pub fn round_dir(id: &str, round: u16) -> PathBuf {
    move_dir(id).join("rounds").join(round.to_string())
}
