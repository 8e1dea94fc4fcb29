//! The libvirt edge: what Drover asks of its own host's hypervisor, and what it hears from it.
//!
//! ```text
//! Hypervisor (async, cheap to clone)
//!   |- worker: a thread per call under way, bounded by permits; one call per domain at a time
//!   |- connection: a thread that opens the connection, notices its loss and opens it again
//!   |- event_loop: libvirt's default event loop on one thread of the process
//!   |- events: libvirt's callbacks -> HypervisorEvent
//!   `- monitor_events: QEMU's own events -> MonitorEvent, for who asks for them
//! stats: the bulk statistics; process: QEMU's threads; load: rates from two samples of them
//! xml: domain and host XML; pool: connections for calls that may hang
//! hook: notices of drover-hook, a fast hint beside libvirt's own events
//! ```
//!
//! A call that libvirt does not answer costs its caller the timeout and one worker until libvirt
//! gives up; guest agent commands and statistics have workers and connections of their own, because
//! libvirtd serves only five requests of one connection at a time. A hung QEMU holds up the
//! statistics once; libvirt leaves it out from then on.

mod agent;
mod connection;
mod error;
mod event_loop;
mod events;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod handle;
pub mod hook;
pub mod load;
mod machine;
pub mod metadata;
mod monitor;
mod monitor_events;
mod pool;
mod process;
mod stats;
mod worker;
mod xml;

use std::path::PathBuf;

pub use error::{AgentProblem, HypervisorError};
pub use handle::Hypervisor;
pub use machine::{network_speed, storage_kind};
pub use monitor_events::MonitorEvent;
pub use process::{ProcessTimes, Processes};
pub use stats::DomainStats;

/// What the host can offer, as libvirt tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct Capabilities {
    /// CPU model of the host; empty when libvirt does not know it.
    pub cpu_model: String,
    /// Features beyond the model, sorted.
    pub cpu_features: Vec<String>,
    /// NUMA nodes; 0 when libvirt does not know them.
    pub numa_nodes: u32,
    /// CPUs.
    pub cpus: f64,
    /// Memory, MiB.
    pub memory_mib: f64,
    /// Best virtualisation type on offer: `kvm`, else `qemu`, else what the driver names.
    pub virt_type: String,
}

/// A domain in short.
#[derive(Debug, Clone, PartialEq)]
pub struct DomainInfo {
    /// Name.
    pub name: String,
    /// UUID in text form.
    pub uuid: String,
    /// Whether its CPUs run (not so when paused or shut off).
    pub running: bool,
    /// It has a QEMU: running, paused, or suspended by the guest.
    pub active: bool,
    /// libvirt's number of this run of the domain; `None` when it is shut off.
    pub id: Option<u32>,
    /// It was shut off, and nothing of its memory was kept (not saved, not migrated).
    pub ended: bool,
    /// vCPUs.
    pub vcpus: u32,
    /// Memory, MiB.
    pub memory_mib: f64,
}

/// Host side of the helper's two ports: unix sockets on which QEMU listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channels {
    /// Control port.
    pub control: PathBuf,
    /// Bulk port.
    pub bulk: PathBuf,
}

/// How a domain changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A definition was added or changed.
    Defined,
    /// The definition is gone.
    Undefined,
    /// It was booted, restored, or woken up.
    Started,
    /// It arrived by migration of the whole domain.
    MigratedHere,
    /// Its CPUs stopped.
    Suspended,
    /// Its CPUs go on.
    Resumed,
    /// It was shut off or destroyed; its memory is gone.
    Stopped,
    /// It was shut off and its memory kept: saved, or put back to a snapshot.
    Saved,
    /// The guest was booted anew within the same run of the domain.
    Rebooted,
    /// It left by migration of the whole domain.
    MigratedAway,
    /// It crashed or panicked.
    Crashed,
    /// The guest has shut down; `Stopped` follows.
    Shutdown,
    /// A change that this version does not know.
    Other,
}

/// What happens at the hypervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HypervisorEvent {
    /// A domain changed.
    Lifecycle {
        /// Domain's name.
        domain: String,
        /// Domain's UUID.
        uuid: String,
        /// How.
        change: Change,
    },
    /// The guest agent came or went.
    AgentConnected {
        /// Domain's name.
        domain: String,
        /// Whether it is there now.
        connected: bool,
    },
    /// The connection is lost; calls fail until `Reconnected`.
    Lost,
    /// The connection is back, or events were missed because nobody took them: whatever was
    /// learnt from events must be looked at anew.
    Reconnected,
}
