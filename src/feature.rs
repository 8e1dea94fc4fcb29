//! Features: named workloads inside an instance (a libvirt domain).

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::method::{self, Hooks, Method};
use crate::rules::Rules;

/// Why a feature's definition was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FeatureError {
    /// The name does not follow the rules of [`FeatureName`].
    #[error(
        "invalid feature name '{0}': use 1 to 48 of a-z, 0-9, '-' and '_', starting with a letter; \
         'guest' is reserved"
    )]
    Name(String),
    /// An address is not `ADDRESS/PREFIX`.
    #[error(
        "invalid address '{0}': write it as ADDRESS/PREFIX, for instance 192.0.2.10/24 or \
         2001:db8::10/64; neither link-local nor multicast"
    )]
    Address(String),
    /// A threshold does not follow the grammar of [`Threshold`].
    #[error("invalid threshold '{0}': {1}")]
    Threshold(String, String),
    /// A definition that cannot work.
    #[error("invalid definition of feature '{0}': {1}")]
    Definition(String, String),
}

/// A feature's name: `[a-z][a-z0-9_-]{0,47}`. It becomes part of unit, interface and namespace
/// names in the guest, hence the narrow alphabet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FeatureName(String);

impl FeatureName {
    /// Checks and wraps a name.
    pub fn new(name: &str) -> Result<Self, FeatureError> {
        let first = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
        let rest = name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
        // Units are named `drover-NAME.service`, and drover-guest.service is the helper's.
        if first && rest && name.len() <= 48 && name != "guest" {
            Ok(Self(name.to_owned()))
        } else {
            Err(FeatureError::Name(name.to_owned()))
        }
    }
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FeatureName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl FromStr for FeatureName {
    type Err = FeatureError;
    fn from_str(s: &str) -> Result<Self, FeatureError> {
        Self::new(s)
    }
}
impl TryFrom<String> for FeatureName {
    type Error = FeatureError;
    fn try_from(s: String) -> Result<Self, FeatureError> {
        Self::new(&s)
    }
}
impl From<FeatureName> for String {
    fn from(n: FeatureName) -> String {
        n.0
    }
}

/// An address with its prefix length, `192.0.2.10/24` or `2001:db8::10/64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    /// The address.
    pub address: IpAddr,
    /// Prefix length in bits, 1 to 32 or 128.
    pub prefix: u8,
}

impl FromStr for Cidr {
    type Err = FeatureError;
    fn from_str(s: &str) -> Result<Self, FeatureError> {
        let bad = || FeatureError::Address(s.to_owned());
        let (a, p) = s.split_once('/').ok_or_else(bad)?;
        let address: IpAddr = a.parse().map_err(|_| bad())?;
        let prefix: u8 = p.parse().map_err(|_| bad())?;
        let (most, usable) = match address {
            IpAddr::V4(_) => (32, true),
            IpAddr::V6(a) => (
                128,
                !a.is_unicast_link_local() && a.to_ipv4_mapped().is_none(),
            ),
        };
        let usable = usable && !address.is_unspecified() && !address.is_multicast();
        if !(1..=most).contains(&prefix) || !usable {
            return Err(bad());
        }
        Ok(Self { address, prefix })
    }
}
impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}
impl TryFrom<String> for Cidr {
    type Error = FeatureError;
    fn try_from(s: String) -> Result<Self, FeatureError> {
        s.parse()
    }
}
impl From<Cidr> for String {
    fn from(c: Cidr) -> String {
        c.to_string()
    }
}

/// What a feature is inside its guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Workload {
    /// An existing systemd unit: metered, not movable.
    Unit {
        /// Unit name, for instance `nginx.service` or `batch.slice`.
        unit: String,
    },
    /// A podman or docker container: metered, not movable.
    Container {
        /// Its name, or its identifier or the beginning of it (12 hexadecimal digits or more).
        container: String,
    },
    /// Any cgroup: metered, not movable.
    Cgroup {
        /// Path below the hierarchy's root, for instance `/system.slice/batch.service/job`.
        cgroup: String,
    },
    /// A workload that Drover starts in namespaces of its own: metered and movable.
    Managed(Managed),
}

/// What stands for an argument or value of the environment that the reader may not see.
pub const HIDDEN: &str = "(hidden)";

/// A workload that Drover runs: unit `drover-NAME.service`, with a PID namespace and a network
/// namespace (macvlan or ipvlan on the guest's uplink) of its own.
///
/// Arguments and environment may hold passwords: [`std::fmt::Debug`], hence every log, leaves
/// them out.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Managed {
    /// Absolute path of the program and its arguments.
    pub exec: Vec<String>,
    /// The feature's own address; it moves with the feature.
    pub address: Cidr,
    /// Further addresses of its own, of either family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Cidr>,
    /// Default gateway inside the feature's network namespace, of either family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Default gateway for IPv6 beside one for IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway6: Option<Ipv6Addr>,
    /// How its interface is made.
    #[serde(default, skip_serializing_if = "is_default")]
    pub network: Network,
    /// Interface of the guest under which the feature's own is made.
    #[serde(default = "default_uplink")]
    pub uplink: String,
    /// Directories with the feature's writable files, absolute paths in the guest; they move with
    /// it. Where it arrives they must not exist or be empty; where it leaves they are removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub state: Vec<PathBuf>,
    /// CPU limit in percent of one CPU (systemd `CPUQuota=`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_quota_percent: Option<u32>,
    /// Memory limit in MiB (systemd `MemoryMax=`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_max_mib: Option<u64>,
    /// Environment variables.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub environment: std::collections::BTreeMap<String, String>,
}

/// How a feature's interface is made on the guest's uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// With a MAC address of its own, which moves along.
    #[default]
    Macvlan,
    /// With the MAC address of the guest's uplink, for networks that allow one per port; neighbours
    /// learn the new one when the feature has moved.
    Ipvlan,
}

/// Most addresses of a feature.
const MAX_ADDRESSES: usize = 8;

fn default_uplink() -> String {
    "eth0".to_owned()
}

impl Workload {
    /// What it is, in a few words: unit, container, path or program.
    pub fn label(&self) -> String {
        match self {
            Self::Unit { unit } => unit.clone(),
            Self::Container { container } => format!("container {container}"),
            Self::Cgroup { cgroup } => format!("cgroup {cgroup}"),
            Self::Managed(m) => m.exec.first().cloned().unwrap_or_default(),
        }
    }
}

impl fmt::Debug for Managed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Managed")
            .field("program", &self.exec.first())
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Managed {
    /// A workload with the defaults for all but what it must say.
    pub fn new(exec: Vec<String>, address: Cidr) -> Self {
        Self {
            exec,
            address,
            addresses: Vec::new(),
            gateway: None,
            gateway6: None,
            network: Network::Macvlan,
            uplink: default_uplink(),
            state: Vec::new(),
            cpu_quota_percent: None,
            memory_max_mib: None,
            environment: std::collections::BTreeMap::new(),
        }
    }

    /// All of its addresses, the first one first.
    pub fn all_addresses(&self) -> impl Iterator<Item = &Cidr> {
        std::iter::once(&self.address).chain(&self.addresses)
    }

    /// All of its addresses as text.
    pub fn addresses_text(&self) -> String {
        let all: Vec<String> = self.all_addresses().map(Cidr::to_string).collect();
        all.join(", ")
    }

    /// Whether it has an IPv6 address.
    pub fn has_ipv6(&self) -> bool {
        self.all_addresses().any(|a| a.address.is_ipv6())
    }

    /// An address that it shares with another feature.
    pub fn shared_address(&self, other: &Self) -> Option<Cidr> {
        let theirs = |a: &&Cidr| other.all_addresses().any(|o| o.address == a.address);
        self.all_addresses().find(theirs).copied()
    }

    /// What is wrong with addresses and gateways.
    fn network_problem(&self) -> Option<String> {
        let all: Vec<IpAddr> = self.all_addresses().map(|a| a.address).collect();
        if all.len() > MAX_ADDRESSES {
            return Some(format!("more than {MAX_ADDRESSES} addresses"));
        }
        if let Some(a) = (1..all.len()).find(|i| all[..*i].contains(&all[*i])) {
            return Some(format!("the address {} is there twice", all[a]));
        }
        if self.gateway6.is_some() && self.gateway.is_some_and(|g| g.is_ipv6()) {
            return Some("gateway and gateway6 are both of IPv6".to_owned());
        }
        let gateways = self
            .gateway
            .into_iter()
            .chain(self.gateway6.map(IpAddr::V6));
        for g in gateways {
            if !all.iter().any(|a| a.is_ipv6() == g.is_ipv6()) {
                return Some(format!("the gateway {g} is of a family without an address"));
            }
        }
        None
    }

    /// The feature's MAC address: fixed per name and address, so that it moves with the feature
    /// and peers' ARP caches stay right. Locally administered unicast (IEEE 802, bit 1 of octet 0).
    pub fn mac(&self, name: &FeatureName) -> String {
        let seed = format!("{name}/{}", self.address);
        let h = crc32fast::hash(seed.as_bytes()).to_be_bytes();
        let low = match self.address.address {
            IpAddr::V4(a) => a.octets()[3],
            IpAddr::V6(a) => a.octets()[15],
        };
        format!(
            "02:{:02x}:{:02x}:{:02x}:{:02x}:{low:02x}",
            h[0], h[1], h[2], h[3]
        )
    }
}

/// What is metered and can carry a threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Percent of one CPU.
    Cpu,
    /// MiB of memory charged to the feature's cgroup.
    Memory,
    /// Bytes per second received.
    NetRx,
    /// Bytes per second sent.
    NetTx,
    /// Bytes per second read from storage.
    DiskRead,
    /// Bytes per second written to storage.
    DiskWrite,
}

impl Resource {
    /// All resources, in display order.
    pub const ALL: [Self; 6] = [
        Self::Cpu,
        Self::Memory,
        Self::NetRx,
        Self::NetTx,
        Self::DiskRead,
        Self::DiskWrite,
    ];
    /// Name as used in thresholds, on D-Bus and in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::NetRx => "net_rx",
            Self::NetTx => "net_tx",
            Self::DiskRead => "disk_read",
            Self::DiskWrite => "disk_write",
        }
    }
}
impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `RESOURCE > LIMIT for DURATION`: a breach when the resource's use stays above the limit for
/// the whole duration. Written `cpu > 80 % for 10 s`, `memory > 512 MiB for 1 min`,
/// `net_tx > 10 MiB/s for 30 s`. Parsed and evaluated in the `threshold` module.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    /// What is watched.
    pub resource: Resource,
    /// Limit in the resource's unit: percent of one CPU, MiB, or bytes per second.
    pub limit: f64,
    /// For how long the use must stay above the limit, in seconds.
    pub for_s: f64,
}

/// A feature as registered with droverd.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureSpec {
    /// Name, unique in the cluster's group.
    pub name: FeatureName,
    /// Group: peers accept features of the groups that their administrator allowed.
    #[serde(default = "default_group")]
    pub group: String,
    /// What it is in the guest.
    pub workload: Workload,
    /// Thresholds, one per resource at most.
    #[serde(default)]
    pub thresholds: Vec<Threshold>,
    /// Whether droverd may move it by itself on a breach.
    #[serde(default = "yes")]
    pub automatic: bool,
    /// Longest acceptable freeze of a move, in milliseconds.
    #[serde(default = "default_downtime")]
    pub downtime_ms: u64,
    /// What a move does when that cannot be kept.
    #[serde(default, skip_serializing_if = "is_default")]
    pub over_budget: OverBudget,
    /// Whether a move may slow the feature down when its memory changes faster than it is sent.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub throttle: bool,
    /// How it is moved.
    #[serde(default, skip_serializing_if = "is_default")]
    pub method: Method,
    /// How long a handover waits for open connections to end, milliseconds.
    #[serde(default = "default_drain", skip_serializing_if = "is_default_drain")]
    pub drain_ms: u64,
    /// How long its processes may take to end after SIGTERM, seconds; then they are killed.
    #[serde(default = "default_stop", skip_serializing_if = "is_default_stop")]
    pub stop_s: u64,
    /// Commands that a move runs in the guests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Box<Hooks>>,
    /// Where it may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Box<Rules>>,
}

/// Most state directories of a feature.
const MAX_STATE: usize = 16;
/// Directories that are a guest's own, and all below them.
const GUEST_TREES: [&str; 10] = [
    "/bin", "/boot", "/dev", "/lib", "/lib32", "/lib64", "/proc", "/sbin", "/sys", "/usr",
];
/// Directories that are a guest's own, but not what is below them.
const GUEST_DIRS: [&str; 14] = [
    "/",
    "/etc",
    "/home",
    "/media",
    "/mnt",
    "/opt",
    "/root",
    "/run",
    "/srv",
    "/tmp",
    "/var",
    "/var/lib",
    "/var/log",
    "/var/cache",
];

/// Checks declared state directories: plain absolute paths, none within another one, none that a
/// guest cannot do without.
fn state_dirs(dirs: &[PathBuf]) -> Result<(), String> {
    if dirs.len() > MAX_STATE {
        return Err(format!("more than {MAX_STATE} state directories"));
    }
    for (i, dir) in dirs.iter().enumerate() {
        let text = dir.to_str().unwrap_or_default();
        let plain = text.starts_with('/')
            && text.len() <= 1024
            && !text.contains(|c: char| c.is_control())
            && (text == "/" || text[1..].split('/').all(|c| !["", ".", ".."].contains(&c)));
        let shown = dir.display();
        if !plain {
            return Err(format!(
                "the state directory '{shown}' is not an absolute path of plain components"
            ));
        }
        if GUEST_TREES.iter().any(|t| dir.starts_with(t))
            || GUEST_DIRS.iter().any(|d| dir.as_path() == Path::new(d))
            || dir.starts_with("/run/drover")
            || dir.starts_with("/run/systemd")
        {
            return Err(format!(
                "the state directory '{shown}' belongs to the guest itself"
            ));
        }
        if let Some(other) = dirs[..i]
            .iter()
            .find(|o| o.starts_with(dir) || dir.starts_with(o))
        {
            let other = other.display();
            return Err(format!(
                "the state directories '{shown}' and '{other}' overlap"
            ));
        }
    }
    Ok(())
}

/// What a move does when the freeze would take longer than `downtime_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverBudget {
    /// Freezes all the same, once another round would not help.
    #[default]
    Go,
    /// Goes on copying in the hope for a quieter moment, at most `moves.wait_s`; then gives up.
    Wait,
    /// Gives up before the freeze, and cuts a freeze short that takes longer.
    GiveUp,
    /// Goes on by [`Method::Handover`] instead, which the definition must allow.
    Handover,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_yes(value: &bool) -> bool {
    *value
}

fn default_group() -> String {
    "default".to_owned()
}
fn yes() -> bool {
    true
}
fn default_downtime() -> u64 {
    1000
}
fn default_drain() -> u64 {
    1000
}
#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_default_drain(ms: &u64) -> bool {
    *ms == default_drain()
}

fn default_stop() -> u64 {
    5
}
#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_default_stop(s: &u64) -> bool {
    *s == default_stop()
}

impl FeatureSpec {
    /// A definition with the defaults for all but what it must say.
    pub fn new(name: FeatureName, workload: Workload) -> Self {
        Self {
            name,
            group: default_group(),
            workload,
            thresholds: Vec::new(),
            automatic: true,
            downtime_ms: default_downtime(),
            over_budget: OverBudget::Go,
            throttle: true,
            method: Method::Live,
            drain_ms: default_drain(),
            stop_s: default_stop(),
            hooks: None,
            placement: None,
        }
    }

    /// Where it may be.
    pub fn rules(&self) -> &Rules {
        self.placement.as_deref().unwrap_or(&crate::rules::NONE)
    }

    /// Commands that a move runs.
    pub fn hooks(&self) -> &Hooks {
        self.hooks.as_deref().unwrap_or(&method::NONE)
    }

    /// Why the feature cannot be moved by this method, as far as its definition tells.
    pub fn against(&self, method: Method) -> Option<String> {
        let state = self.managed().is_some_and(|m| !m.state.is_empty());
        (method == Method::Handover && state && self.hooks().quiesce.is_none()).then(|| {
            format!(
                "a handover of '{}' needs hooks.quiesce: the instance that gives up must have \
                 written its state before the last of it is sent",
                self.name
            )
        })
    }

    /// The managed workload, when the feature is movable.
    pub fn managed(&self) -> Option<&Managed> {
        match &self.workload {
            Workload::Managed(m) => Some(m),
            Workload::Unit { .. } | Workload::Container { .. } | Workload::Cgroup { .. } => None,
        }
    }

    /// The definition for those who may look but not see secrets: arguments and values of the
    /// environment are [`HIDDEN`]. It cannot be registered again.
    #[must_use]
    pub fn redacted(&self) -> Self {
        let mut spec = self.clone();
        if let Workload::Managed(m) = &mut spec.workload {
            m.exec.iter_mut().skip(1).for_each(|a| HIDDEN.clone_into(a));
            m.environment
                .values_mut()
                .for_each(|v| HIDDEN.clone_into(v));
        }
        if let Some(hooks) = &mut spec.hooks {
            hooks.hide();
        }
        spec
    }

    /// Whether it was read by somebody who may not see arguments or environment.
    pub fn hides(&self) -> bool {
        self.managed().is_some_and(|m| {
            m.exec
                .iter()
                .chain(m.environment.values())
                .any(|a| a == HIDDEN)
        })
    }

    /// What other hosts need to decide about the feature: neither program nor environment. Both
    /// cross hosts within a move's offer only.
    #[must_use]
    pub fn for_peers(&self) -> Self {
        let mut spec = self.clone();
        if let Workload::Managed(m) = &mut spec.workload {
            m.exec.clear();
            m.environment.clear();
        }
        spec.hooks = None;
        spec
    }

    /// What another host needs to check whether it could take the feature: the program, but neither
    /// its arguments nor the environment.
    #[must_use]
    pub fn for_check(&self) -> Self {
        let mut spec = self.clone();
        if let Workload::Managed(m) = &mut spec.workload {
            m.exec.truncate(1);
            m.environment.clear();
        }
        spec
    }

    /// Checks what serde cannot: paths, interface and unit names, limits.
    pub fn validate(&self) -> Result<(), FeatureError> {
        let bad = |why: &str| FeatureError::Definition(self.name.to_string(), why.to_owned());
        match &self.workload {
            Workload::Unit { unit } => {
                let ok = !unit.is_empty()
                    && unit.len() <= 255
                    && unit
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b"@:_.\\-".contains(&b))
                    && !unit.starts_with('.')
                    && !unit.starts_with('-');
                if !ok {
                    return Err(bad(
                        "the unit name has characters that systemd does not allow",
                    ));
                }
            }
            Workload::Container { container } => {
                // The rule of podman and docker for names.
                let ok = container.len() <= 255
                    && container
                        .bytes()
                        .next()
                        .is_some_and(|b| b.is_ascii_alphanumeric())
                    && container
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
                if !ok {
                    return Err(bad(
                        "the container must be a name or an identifier: letters, digits, '_', '.' \
                         and '-', beginning with a letter or digit",
                    ));
                }
            }
            Workload::Cgroup { cgroup } => {
                let ok = cgroup.len() <= 1024
                    && cgroup.strip_prefix('/').is_some_and(|rest| {
                        rest.split('/')
                            .all(|c| !c.is_empty() && c != "." && c != "..")
                    })
                    && !cgroup.contains(|c: char| c.is_control());
                if !ok {
                    return Err(bad(
                        "the cgroup must be a path below the hierarchy's root, for instance \
                         /system.slice/batch.service",
                    ));
                }
            }
            Workload::Managed(m) => {
                if m.exec.first().is_none_or(|p| !p.starts_with('/')) {
                    return Err(bad("exec must start with the absolute path of a program"));
                }
                if m.exec
                    .iter()
                    .chain(m.environment.values())
                    .any(|a| a.contains(['\n', '\0']))
                {
                    return Err(bad("exec and environment must not contain line breaks"));
                }
                if self.hides() {
                    return Err(bad(
                        "its arguments or environment are hidden: it was read by someone who may \
                         not see them; read it as root",
                    ));
                }
                if m.environment
                    .keys()
                    .any(|k| k.is_empty() || k.contains(['=', '\n', '\0']))
                {
                    return Err(bad("an environment variable has an invalid name"));
                }
                let up = &m.uplink;
                if up.is_empty() || up.len() > 15 || !up.bytes().all(|b| b.is_ascii_alphanumeric())
                {
                    return Err(bad("uplink must be an interface name of the guest"));
                }
                if let Some(why) = m.network_problem() {
                    return Err(bad(&why));
                }
                state_dirs(&m.state).map_err(|why| bad(&why))?;
                if m.cpu_quota_percent == Some(0) || m.memory_max_mib == Some(0) {
                    return Err(bad("a CPU or memory limit of 0 would stop the workload"));
                }
            }
        }
        if let Some(why) = self.hooks().problem() {
            return Err(bad(&why));
        }
        if self.drain_ms > method::LONGEST_DRAIN_MS {
            return Err(bad("drain_ms must be at most 60000"));
        }
        if !(1..=method::LONGEST_STOP_S).contains(&self.stop_s) {
            return Err(bad("stop_s must be 1 to 50"));
        }
        if let Some(why) = self.against(self.method) {
            return Err(bad(&why));
        }
        if self.over_budget == OverBudget::Handover && self.hooks().quiesce.is_none() {
            return Err(bad(
                "over_budget = \"handover\" needs hooks.quiesce: what the feature has in its memory \
                 does not move then, so it must have been written into its state directories",
            ));
        }
        if let Some(why) = self.rules().problem(&self.name) {
            return Err(bad(&why));
        }
        for (i, t) in self.thresholds.iter().enumerate() {
            if !(t.limit.is_finite() && t.limit >= 0.0 && t.for_s.is_finite() && t.for_s >= 0.0) {
                return Err(bad(
                    "a threshold's limit and duration must be finite and not negative",
                ));
            }
            if self.thresholds[..i]
                .iter()
                .any(|o| o.resource == t.resource)
            {
                return Err(bad("two thresholds name the same resource"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(FeatureName::new("cache-1").is_ok());
        for bad in [
            "",
            "Cache",
            "1a",
            "a/b",
            "a b",
            "../x",
            "guest",
            &"a".repeat(49),
        ] {
            assert!(FeatureName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn workloads_that_are_only_metered() {
        let spec = |workload: &str| {
            let text = format!(r#"{{"name":"a","workload":{workload}}}"#);
            serde_json::from_str::<FeatureSpec>(&text)
                .unwrap()
                .validate()
        };
        for good in [
            r#"{"kind":"unit","unit":"batch.slice"}"#,
            r#"{"kind":"container","container":"web_1.x"}"#,
            r#"{"kind":"cgroup","cgroup":"/machine.slice/a b/c"}"#,
        ] {
            assert_eq!(spec(good), Ok(()), "{good}");
        }
        for bad in [
            r#"{"kind":"container","container":""}"#,
            r#"{"kind":"container","container":"-x"}"#,
            r#"{"kind":"container","container":"a/b"}"#,
            r#"{"kind":"cgroup","cgroup":"a"}"#,
            r#"{"kind":"cgroup","cgroup":"/"}"#,
            r#"{"kind":"cgroup","cgroup":"/a/../b"}"#,
            r#"{"kind":"cgroup","cgroup":"/a//b"}"#,
        ] {
            assert!(spec(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_are_left_out() {
        let mut m = Managed::new(
            vec!["/bin/db".into(), "--password=geheim".into()],
            "192.0.2.1/24".parse().unwrap(),
        );
        m.environment.insert("TOKEN".into(), "geheim".into());
        let spec = FeatureSpec::new(
            FeatureName::new("db").unwrap(),
            Workload::Managed(m.clone()),
        );
        assert!(!format!("{spec:?}").contains("geheim"));
        let seen = spec.redacted();
        let shown = seen.managed().unwrap();
        assert_eq!(shown.exec, ["/bin/db", HIDDEN]);
        assert_eq!(shown.environment["TOKEN"], HIDDEN);
        assert!(seen.validate().unwrap_err().to_string().contains("hidden"));
        let checked = spec.for_check();
        checked.validate().unwrap();
        let checked = checked.managed().unwrap();
        assert!(checked.exec == ["/bin/db"] && checked.environment.is_empty());
        let told = spec.for_peers();
        let told = told.managed().unwrap();
        assert_eq!(told.address, m.address);
        assert!(told.exec.is_empty() && told.environment.is_empty());
        spec.validate().unwrap();
    }

    #[test]
    fn state_directories() {
        let ok = |dirs: &[&str]| {
            let dirs: Vec<PathBuf> = dirs.iter().map(PathBuf::from).collect();
            state_dirs(&dirs)
        };
        ok(&["/var/lib/redis", "/srv/a", "/var/lib/redis2"]).unwrap();
        for bad in [
            &["var/lib/x"][..],
            &["/"],
            &["/etc"],
            &["/usr/local/x"],
            &["/var/lib/../../etc"],
            &["/var/lib/x/"],
            &["/srv//x"],
            &["/run/drover/moves"],
            &["/srv/a", "/srv/a/b"],
            &["/srv/a", "/srv/a"],
            &["/srv/a\nb"],
        ] {
            assert!(ok(bad).is_err(), "{bad:?}");
        }
        assert!(ok(&["/srv/x"; 17]).is_err());
    }

    #[test]
    fn addresses() {
        assert_eq!(
            "10.0.0.1/24".parse::<Cidr>().unwrap().to_string(),
            "10.0.0.1/24"
        );
        assert_eq!(
            "2001:db8:0::1/64".parse::<Cidr>().unwrap().to_string(),
            "2001:db8::1/64"
        );
        for bad in [
            "10.0.0.1",
            "10.0.0.1/33",
            "0.0.0.0/8",
            "x/8",
            "224.0.0.1/4",
            "2001:db8::1/129",
            "fe80::1/64",
            "ff02::1/16",
            "::/64",
            "::ffff:10.0.0.1/120",
        ] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn several_addresses() {
        let spec = |more: &str| {
            let text = format!(
                r#"{{"name":"a","workload":{{"kind":"managed","exec":["/bin/x"],"address":"192.0.2.1/24"{more}}}}}"#
            );
            serde_json::from_str::<FeatureSpec>(&text).unwrap()
        };
        let both = spec(
            r#","addresses":["2001:db8::1/64"],"gateway":"192.0.2.9","gateway6":"2001:db8::9","network":"ipvlan""#,
        );
        both.validate().unwrap();
        let m = both.managed().unwrap();
        assert!(m.has_ipv6());
        assert_eq!(m.addresses_text(), "192.0.2.1/24, 2001:db8::1/64");
        let text = serde_json::to_string(&both).unwrap();
        assert_eq!(serde_json::from_str::<FeatureSpec>(&text).unwrap(), both);
        let other = Managed::new(vec![], "2001:db8::1/48".parse().unwrap());
        assert_eq!(m.shared_address(&other), Some(m.addresses[0]));
        assert_eq!(spec("").managed().unwrap().shared_address(&other), None);
        for bad in [
            r#","addresses":["192.0.2.1/25"]"#,
            r#","gateway6":"2001:db8::9""#,
            r#","gateway":"2001:db8::9""#,
            r#","addresses":["2001:db8::1/64"],"gateway":"2001:db8::9","gateway6":"2001:db8::8""#,
        ] {
            assert!(spec(bad).validate().is_err(), "{bad}");
        }
    }
}
