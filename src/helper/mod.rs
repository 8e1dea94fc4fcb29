//! The helper inside a guest (edge): threads and system calls, no async runtime.
//!
//! `drover-guest daemon` serves the control and bulk ports; `drover-guest run FEATURE` is the
//! main process of a managed feature's unit and supervises its workload, started fresh or
//! restored by criu.

pub mod anew;
pub mod arrival;
pub mod bulk;
pub mod capabilities;
pub mod cgroup;
pub mod command;
pub mod criu;
pub mod daemon;
pub mod diag;
pub mod digests;
pub mod features;
#[cfg(all(feature = "daemon", any(test, fuzzing)))]
pub(crate) mod fuzz;
pub mod gate;
pub mod hooks;
pub mod images;
pub mod init;
pub mod lifecycle;
pub mod log;
pub mod meter;
pub mod moves;
pub mod netns;
pub mod paths;
pub mod port;
pub mod preflight;
pub mod rehearsal;
pub mod run;
pub mod sockets;
pub mod source;
pub mod state;
pub mod target;
pub mod throttle;
pub mod unit;
pub mod urgent;
