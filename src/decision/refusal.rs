//! Why a host or guest cannot take a feature: one sentence each, the same for D-Bus, the CLI
//! and the logs.

use crate::feature::Cidr;
use crate::reason::{Code, Reason};

/// A reason that rules a target out.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    // The feature itself; these rule out every target.
    /// An existing unit, not run by Drover.
    #[error("the feature is an existing systemd unit, which is metered but cannot be moved")]
    NotMovable,
    /// A move of it is under way.
    #[error("a move of the feature is under way already")]
    MovingAlready,
    /// It does not run.
    #[error("the feature is not running; enable it first")]
    NotRunning,
    /// Nothing is known of the guest it is in.
    #[error("the helper in the feature's own guest does not answer: {0}")]
    SourceHelper(String),
    /// criu in the guest that it is in.
    #[error("criu in the feature's own guest is not usable: {0}")]
    SourceCriu(String),
    /// Two features with one address.
    #[error("address {address} is in use by feature '{by}' in guest {domain} on host {host}")]
    AddressInUse {
        /// The address.
        address: Cidr,
        /// Who has it.
        by: String,
        /// Where.
        domain: String,
        /// Where.
        host: String,
    },

    // The host.
    /// Features move between hosts.
    #[error("the feature is on this host")]
    OwnHost,
    /// Another host was asked for.
    #[error("another host or guest was asked for")]
    NotAsked,
    /// A host that is in nobody's configuration.
    #[error("the host is not known; add it to peer.hosts")]
    UnknownHost,
    /// A configured peer that was never heard.
    #[error("the host has not been heard since this droverd started")]
    Unreachable,
    /// A peer that was not heard for long.
    #[error("the host was last heard {age_s:.0} s ago")]
    Stale {
        /// Age of its state, seconds.
        age_s: f64,
    },
    /// The administrator is emptying it.
    #[error("the host is draining and accepts no moves")]
    Draining,
    /// Groups of features that may go there.
    #[error("group '{0}' is not allowed there; add it to the host's groups in peer.hosts")]
    Group(String),
    /// The feature's definition names other hosts.
    #[error("the feature is pinned to {0} (placement.pin)")]
    Pinned(String),
    /// The feature's definition excludes it.
    #[error("the feature's definition excludes the host (placement.exclude)")]
    Excluded,
    /// A label that the feature needs.
    #[error("the feature needs label {key} = {want} (placement.labels), the host has {have}")]
    Label {
        /// Label.
        key: String,
        /// Needed value.
        want: String,
        /// The host's value, or `none`.
        have: String,
    },
    /// A feature there that must not be together with this one.
    #[error("feature '{0}' is there, and the two are to be apart (placement.apart)")]
    Apart(String),
    /// Moves under way to it.
    #[error("{moves} moves to the host are under way, {most} are allowed (decision.max_moves_in)")]
    MovesIn {
        /// Under way.
        moves: u32,
        /// Allowed.
        most: u32,
    },
    /// No domain at all.
    #[error("the host has no guest")]
    NoGuest,
    /// CPUs of the host.
    #[error("the host has {free:.2} CPUs free beside its reserve, {need:.2} are needed")]
    HostCpu {
        /// Needed, CPUs.
        need: f64,
        /// Free, CPUs.
        free: f64,
    },
    /// Memory of the host.
    #[error("the host has {free:.0} MiB free beside its reserve, {need:.0} MiB are needed")]
    HostMemory {
        /// Needed, MiB.
        need: f64,
        /// Free, MiB.
        free: f64,
    },

    // The guest.
    /// The domain is shut off or paused.
    #[error("guest {0} is not running")]
    GuestNotRunning(String),
    /// No helper.
    #[error("guest {domain} has no helper: {reason}")]
    NoHelper {
        /// Guest.
        domain: String,
        /// Why.
        reason: String,
    },
    /// The helper has not told what the guest can do.
    #[error("guest {0} has not told its capabilities yet")]
    NoCapabilities(String),
    /// criu is not installed.
    #[error("guest {0} has no criu; install it there")]
    NoCriu(String),
    /// criu's own check failed.
    #[error("criu in guest {domain} is not usable: {problem}")]
    CriuProblem {
        /// Guest.
        domain: String,
        /// What criu said.
        problem: String,
    },
    /// Kernels differ.
    #[error("guest {domain} has kernel {there}, the feature's guest has {here}")]
    OtherKernel {
        /// Guest.
        domain: String,
        /// Its kernel.
        there: String,
        /// The source guest's.
        here: String,
    },
    /// CPU flags differ.
    #[error("guest {0} has other CPU flags than the feature's guest; use the same CPU model")]
    OtherCpuFlags(String),
    /// CPUs of the guest.
    #[error("guest {domain} has {free:.2} CPUs free, {need:.2} are needed")]
    GuestCpu {
        /// Guest.
        domain: String,
        /// Needed, CPUs.
        need: f64,
        /// Free, CPUs.
        free: f64,
    },
    /// Memory of the guest.
    #[error("guest {domain} has {free:.0} MiB free beside the reserve, {need:.0} MiB are needed")]
    GuestMemory {
        /// Guest.
        domain: String,
        /// Needed, MiB.
        need: f64,
        /// Free, MiB.
        free: f64,
    },
    /// The guest does not tell its free memory.
    #[error("guest {0} does not tell how much memory is available in it")]
    GuestMemoryUnknown(String),
    /// Name there already.
    #[error("guest {0} has a feature of this name already")]
    NameTaken(String),
}

impl Refusal {
    /// Its stable name.
    pub fn code(&self) -> Code {
        match self {
            Self::NotMovable => Code::NotMovable,
            Self::MovingAlready => Code::MovingAlready,
            Self::NotRunning => Code::NotRunning,
            Self::SourceHelper(_) => Code::SourceHelper,
            Self::SourceCriu(_) => Code::SourceCriu,
            Self::AddressInUse { .. } => Code::Address,
            Self::OwnHost => Code::OwnHost,
            Self::NotAsked => Code::NotAsked,
            Self::UnknownHost => Code::UnknownHost,
            Self::Unreachable => Code::Unreachable,
            Self::Stale { .. } => Code::Stale,
            Self::Draining => Code::Draining,
            Self::Group(_) => Code::Group,
            Self::Pinned(_) => Code::Pinned,
            Self::Excluded => Code::Excluded,
            Self::Label { .. } => Code::Label,
            Self::Apart(_) => Code::Apart,
            Self::MovesIn { .. } => Code::MovesIn,
            Self::NoGuest => Code::NoGuest,
            Self::HostCpu { .. } => Code::HostCpu,
            Self::HostMemory { .. } => Code::HostMemory,
            Self::GuestNotRunning(_) => Code::GuestOff,
            Self::NoHelper { .. } | Self::NoCapabilities(_) => Code::Helper,
            Self::NoCriu(_) | Self::CriuProblem { .. } => Code::Criu,
            Self::OtherKernel { .. } => Code::Kernel,
            Self::OtherCpuFlags(_) => Code::CpuFlags,
            Self::GuestCpu { .. } => Code::GuestCpu,
            Self::GuestMemory { .. } | Self::GuestMemoryUnknown(_) => Code::GuestMemory,
            Self::NameTaken(_) => Code::NameTaken,
        }
    }

    /// Name and sentence.
    pub fn reason(&self) -> Reason {
        Reason::new(self.code(), self.to_string())
    }
}
