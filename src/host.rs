//! Hosts and instances as peers see them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::attribution::{DomainCost, Share};
use crate::feature::{FeatureName, FeatureSpec};
use crate::qemu::QemuState;
use crate::usage::Usage;

/// What a host can offer; changes rarely.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostCapabilities {
    /// CPU model as libvirt names it.
    pub cpu_model: String,
    /// Capacity in CPUs.
    pub cpus: f64,
    /// Memory capacity, MiB.
    pub memory_mib: f64,
    /// Network speed, Mbit/s; 0 when unknown.
    pub network_mbps: f64,
    /// Storage kind.
    pub storage: StorageKind,
    /// Virtualisation type: `kvm` or `qemu`.
    pub virt_type: String,
}

/// Kind of storage behind a host's guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StorageKind {
    /// Not known.
    Unknown,
    /// Rotating disk.
    Hdd,
    /// Solid state.
    Ssd,
    /// NVMe.
    Nvme,
}

/// How busy a host is now, smoothed over the last samples.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct HostLoad {
    /// CPUs in use.
    pub cpus_used: f64,
    /// MiB in use by the domains' own view (guests' used memory).
    pub memory_used_mib: f64,
    /// Bytes per second received and sent by the domains.
    pub net_bps: f64,
    /// Bytes per second read and written by the domains.
    pub disk_bps: f64,
    /// Percent of time stalled for CPU, 0 to 100 (PSI some, or steal).
    pub stall_percent: f64,
}

/// What a host is expected to be asked for over the next minutes, moves under way left out.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Outlook {
    /// Mean of the CPUs that its guests will want; more than it has when it will be crowded.
    pub cpus: f64,
    /// Standard deviation around that mean, in CPUs: what the forecast cannot tell.
    pub cpus_sd: f64,
}

/// State of the helper in a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum HelperState {
    /// The helper answers.
    Connected {
        /// Its version.
        version: String,
    },
    /// It does not, and why.
    Absent {
        /// Reason with the way out.
        reason: String,
    },
}

/// How a guest's features are metered: the best rung of a ladder that it allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MeterLevel {
    /// By the helper in the guest: everything, at the meter's interval.
    Helper,
    /// By the guest agent, which lets cgroup files be read: no network of features, seldom.
    Agent,
    /// The guest agent allows no files and no commands: the whole guest only.
    Guest,
    /// Not at all: what libvirt tells of the domain is all there is.
    #[default]
    None,
}

impl MeterLevel {
    /// In a word, as users see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Helper => "helper",
            Self::Agent => "agent",
            Self::Guest => "guest only",
            Self::None => "none",
        }
    }
}

/// A rung, and why it is not a better one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Metering {
    /// The rung.
    pub level: MeterLevel,
    /// Why not a better one, with the way out; empty for the best.
    pub reason: String,
}

/// What is known of a host's hardware beyond what decisions need.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Hardware {
    /// Features that the CPU has beyond its model, as libvirt names them, sorted.
    pub cpu_features: Vec<String>,
    /// NUMA nodes; 0 when unknown.
    pub numa_nodes: u32,
    /// Where the network speed was found: an interface, `drover.toml`, or nothing.
    pub network_from: String,
    /// Where the storage kind was found: a device, `drover.toml`, or nothing.
    pub storage_from: String,
}

/// What a guest can take; from the helper.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GuestCapabilities {
    /// Kernel release.
    pub kernel: String,
    /// criu's version, empty when absent.
    pub criu: String,
    /// What `criu check` found wrong; empty when it looks good.
    pub criu_problem: String,
    /// CPU flags digest: equal digests mean equal flags.
    pub cpu_flags: String,
    /// Systemd version.
    pub systemd: String,
}

/// A feature and where it is, as its host tells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FeatureState {
    /// Registered definition.
    pub spec: FeatureSpec,
    /// Whether it runs, and if not why.
    pub status: FeatureStatus,
    /// Latest use, if metered.
    pub usage: Option<Usage>,
}

/// Life-cycle of a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeatureStatus {
    /// Registered, not enabled.
    Disabled,
    /// Enabled and running.
    Running,
    /// Enabled but not running.
    Stopped,
    /// Being moved away.
    Moving,
    /// Being received from another host.
    Arriving,
    /// Its guest does not tell.
    Unknown,
}

impl FeatureStatus {
    /// The state in a word, as on D-Bus and in output.
    pub fn word(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Moving => "moving",
            Self::Arriving => "arriving",
            Self::Unknown => "unknown",
        }
    }
}

/// An instance as its host tells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceState {
    /// Domain name.
    pub domain: String,
    /// libvirt's domain UUID.
    pub uuid: String,
    /// Running?
    pub running: bool,
    /// vCPUs.
    pub vcpus: f64,
    /// Guest memory, MiB.
    pub memory_mib: f64,
    /// MiB available in the guest, if known.
    pub memory_available_mib: Option<f64>,
    /// CPUs used by the domain.
    pub cpus_used: f64,
    /// CPUs and MiB in it reserved for moves; part of the host's.
    #[serde(default)]
    pub reserved_cpus: f64,
    /// See `reserved_cpus`.
    #[serde(default)]
    pub reserved_memory_mib: f64,
    /// Helper.
    pub helper: HelperState,
    /// How its features are metered.
    #[serde(default)]
    pub metering: Metering,
    /// What it costs the host.
    #[serde(default)]
    pub cost: DomainCost,
    /// The part of that which no feature causes.
    #[serde(default)]
    pub rest: Share,
    /// What QEMU's monitor tells, where the administrator has it asked (`[qmp]`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu: Option<Box<QemuState>>,
    /// What it can take, if the helper told.
    pub capabilities: Option<GuestCapabilities>,
    /// Its features.
    pub features: Vec<FeatureState>,
}

/// Everything a peer needs to know about a host to choose it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostState {
    /// Host name, as in the peers' configuration.
    pub name: String,
    /// droverd's version.
    pub version: String,
    /// Wall clock when made, milliseconds since the epoch; for a peer, this host's when heard.
    pub at_ms: i64,
    /// How far the peer's clock is ahead of this host's, milliseconds, less the time its answer
    /// took; `None` for this host itself, and on the wire.
    #[serde(default)]
    pub clock_ahead_ms: Option<i64>,
    /// Capabilities.
    pub capabilities: HostCapabilities,
    /// More of the hardware.
    #[serde(default)]
    pub hardware: Box<Hardware>,
    /// Load.
    pub load: HostLoad,
    /// Load that is expected; `None` while nothing is forecast.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlook: Option<Outlook>,
    /// Accepts moves? Not while draining.
    pub accepts: bool,
    /// Labels that the administrator gave it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Moves to this host under way.
    #[serde(default)]
    pub moves_in: u32,
    /// Whether moves that were decided here helped: the latest per feature.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outcomes: Vec<MoveOutcome>,
    /// CPUs and MiB reserved for moves under way, and for those that ended so lately that their
    /// load is not measured in full yet.
    pub reserved_cpus: f64,
    /// See `reserved_cpus`.
    pub reserved_memory_mib: f64,
    /// Instances.
    pub instances: Vec<InstanceState>,
}

/// Whether a move helped, as measured after it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MoveOutcome {
    /// Feature.
    pub feature: FeatureName,
    /// Where it was.
    pub from: String,
    /// Where it went.
    pub to: String,
    /// When the move ended, milliseconds since the epoch.
    pub at_ms: i64,
    /// Service quality after the move less that before it, -1 to 1.
    pub gain: f64,
    /// Whether it helped.
    pub helped: bool,
    /// Moves in a row, this one included, that did not help.
    pub fruitless: u32,
}

impl InstanceState {
    /// A running instance of which nothing else is known yet; its helper is connected, with the
    /// version of this build.
    pub fn new(domain: impl Into<String>) -> Self {
        let domain = domain.into();
        Self {
            uuid: domain.clone(),
            domain,
            running: true,
            vcpus: 1.0,
            memory_mib: 0.0,
            memory_available_mib: None,
            cpus_used: 0.0,
            reserved_cpus: 0.0,
            reserved_memory_mib: 0.0,
            helper: HelperState::Connected {
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
            metering: Metering {
                level: MeterLevel::Helper,
                reason: String::new(),
            },
            cost: DomainCost::default(),
            rest: Share::default(),
            qemu: None,
            capabilities: None,
            features: Vec::new(),
        }
    }
}

impl HostState {
    /// A host with this build's version that accepts moves and of which nothing else is known.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            at_ms: 0,
            clock_ahead_ms: None,
            capabilities: HostCapabilities {
                cpu_model: String::new(),
                cpus: 0.0,
                memory_mib: 0.0,
                network_mbps: 0.0,
                storage: StorageKind::Unknown,
                virt_type: String::new(),
            },
            hardware: Box::default(),
            load: HostLoad::default(),
            outlook: None,
            accepts: true,
            labels: BTreeMap::new(),
            moves_in: 0,
            outcomes: Vec::new(),
            reserved_cpus: 0.0,
            reserved_memory_mib: 0.0,
            instances: Vec::new(),
        }
    }

    /// What is told of the host itself: all but its instances.
    #[must_use]
    pub fn outline(&self) -> Self {
        Self {
            name: self.name.clone(),
            version: self.version.clone(),
            at_ms: self.at_ms,
            clock_ahead_ms: self.clock_ahead_ms,
            capabilities: self.capabilities.clone(),
            hardware: self.hardware.clone(),
            load: self.load,
            outlook: self.outlook,
            accepts: self.accepts,
            labels: self.labels.clone(),
            moves_in: self.moves_in,
            outcomes: self.outcomes.clone(),
            reserved_cpus: self.reserved_cpus,
            reserved_memory_mib: self.reserved_memory_mib,
            instances: Vec::new(),
        }
    }

    /// Finds a feature by domain and name.
    pub fn feature(&self, domain: &str, name: &FeatureName) -> Option<&FeatureState> {
        let i = self.instances.iter().find(|i| i.domain == domain)?;
        i.features.iter().find(|f| f.spec.name == *name)
    }
}
