//! `/etc/drover/drover.toml`: one struct per section, unknown keys refused.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::host::StorageKind;
use crate::rules::Mode;

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// File.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// Not valid TOML or an unknown key; the message names line and key.
    #[error("{path}: {message}")]
    Parse {
        /// File.
        path: PathBuf,
        /// What and where.
        message: String,
    },
    /// A value that cannot work.
    #[error("{path}: {key}: {message}")]
    Value {
        /// File.
        path: PathBuf,
        /// Key, `section.key`.
        key: &'static str,
        /// Why.
        message: String,
    },
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This host.
    pub host: HostSection,
    /// libvirt.
    #[serde(default)]
    pub libvirt: LibvirtSection,
    /// Metering.
    #[serde(default)]
    pub meter: MeterSection,
    /// History and state.
    #[serde(default)]
    pub history: HistorySection,
    /// Affinity model.
    #[serde(default)]
    pub model: ModelSection,
    /// Decisions.
    #[serde(default)]
    pub decision: DecisionSection,
    /// Forecasts.
    #[serde(default)]
    pub forecast: ForecastSection,
    /// Moves.
    #[serde(default)]
    pub moves: MovesSection,
    /// Features from files.
    #[serde(default)]
    pub features: FeaturesSection,
    /// Questions to QEMU's monitors.
    #[serde(default)]
    pub qmp: QmpSection,
    /// Metrics for Prometheus; none without it.
    pub metrics: Option<MetricsSection>,
    /// Peers; without it the host is alone.
    pub peer: Option<PeerSection>,
}

/// `[host]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostSection {
    /// Name, as in the peers' configuration and in this host's certificate.
    pub name: String,
    /// Capacity in CPUs; the machine's when absent.
    pub cpus: Option<f64>,
    /// Memory capacity, MiB; the machine's when absent.
    pub memory_mib: Option<f64>,
    /// Network speed, Mbit/s.
    #[serde(default)]
    pub network_mbps: f64,
    /// Storage kind.
    #[serde(default = "unknown_storage")]
    pub storage: StorageKind,
    /// Where the host's load is read.
    #[serde(default)]
    pub load_source: LoadSource,
    /// Labels that features may ask for in `placement.labels`.
    #[serde(default)]
    pub labels: std::collections::BTreeMap<String, String>,
}

fn unknown_storage() -> StorageKind {
    StorageKind::Unknown
}

/// Where a host's load is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoadSource {
    /// `/proc` of the machine.
    #[default]
    Machine,
    /// Sum of the domains, for hosts that share one machine.
    Domains,
}

/// `[libvirt]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LibvirtSection {
    /// Connection URI.
    pub uri: String,
    /// Timeout of one guest agent command, seconds.
    pub agent_timeout_s: u32,
    /// Where the hook's notices arrive.
    pub hook_socket: PathBuf,
}

impl Default for LibvirtSection {
    fn default() -> Self {
        Self {
            uri: "qemu:///system".into(),
            agent_timeout_s: 10,
            hook_socket: "/run/drover/hook.sock".into(),
        }
    }
}

/// `[meter]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeterSection {
    /// Interval between samples, seconds, 1 to 60.
    pub interval_s: f64,
    /// Interval between samples of guests without the helper, through their guest agent, seconds,
    /// 5 to 3600.
    pub agent_interval_s: f64,
}

impl Default for MeterSection {
    fn default() -> Self {
        Self {
            interval_s: 5.0,
            agent_interval_s: 15.0,
        }
    }
}

/// `[history]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HistorySection {
    /// Directory of the history.
    pub dir: PathBuf,
    /// Directory of registry and journal.
    pub state_dir: PathBuf,
    /// Hours that samples are kept as metered.
    pub raw_hours: u32,
    /// Earlier name of `raw_hours`.
    pub keep_hours: Option<u32>,
    /// Days that minutes are kept (least, most, mean, last).
    pub minute_days: u32,
    /// Days that quarters of an hour are kept.
    pub quarter_days: u32,
    /// MiB that the whole history may have; the oldest goes first.
    pub max_mib: u64,
    /// MiB of free space below which samples go before their time, then none are recorded.
    pub floor_mib: u64,
}

impl HistorySection {
    /// As the history takes it; `interval_s` is the meter's.
    pub fn options(&self, interval_s: f64) -> crate::history::Options {
        crate::history::Options {
            raw_hours: self.keep_hours.unwrap_or(self.raw_hours),
            minute_days: self.minute_days,
            quarter_days: self.quarter_days,
            max_mib: self.max_mib,
            floor_mib: self.floor_mib,
            interval_ms: (interval_s * 1000.0) as i64,
        }
    }
}

impl Default for HistorySection {
    fn default() -> Self {
        Self {
            dir: "/var/lib/drover/history".into(),
            state_dir: "/var/lib/drover".into(),
            raw_hours: 6,
            keep_hours: None,
            minute_days: 7,
            quarter_days: 365,
            max_mib: 4096,
            floor_mib: 64,
        }
    }
}

/// `[model]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSection {
    /// Seconds between trainings.
    pub train_every_s: u64,
    /// CPU budget of one training, seconds.
    pub budget_s: f64,
    /// Rows kept.
    pub reservoir: usize,
    /// Horizon over which service quality is measured, seconds.
    pub horizon_s: f64,
    /// Rows below which only the headroom score counts.
    pub rows_min: u64,
    /// Rows from which only the model counts.
    pub rows_full: u64,
}

impl Default for ModelSection {
    fn default() -> Self {
        Self {
            train_every_s: 300,
            budget_s: 5.0,
            reservoir: 20_000,
            horizon_s: 30.0,
            rows_min: 200,
            rows_full: 2_000,
        }
    }
}

/// `[decision]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecisionSection {
    /// Move on a breach by itself?
    pub automatic: bool,
    /// Move features away by itself, too, when this host is expected to be short of CPU, whether
    /// or not a threshold is crossed?
    pub relieve: bool,
    /// Seconds over each of which what the host is asked for is averaged for that, 5 to 600, and at
    /// least three intervals of the meter; after ten of them it is expected to go on.
    pub relieve_every_s: f64,
    /// Fraction of a target's capacity kept free after a move.
    pub reserve: f64,
    /// Score by which a target must beat staying.
    pub min_gain: f64,
    /// Seconds during which a feature that moved stays.
    pub cooldown_s: f64,
    /// Weights of the parts of a score.
    pub weights: Weights,
    /// What is done with decisions: `act`, `advise` or `shadow`.
    pub mode: Mode,
    /// Weight of a move's cost, 0 to 1: what a move without end would have to gain beside
    /// `min_gain`.
    pub cost_weight: f64,
    /// Moves to this host, and to any that is chosen, at a time.
    pub max_moves_in: u32,
    /// Decisions kept for `drover decision`, those that moved something and the others apart.
    pub keep: usize,
    /// Seconds after a move over which it is measured whether it helped.
    pub judge_s: f64,
}

/// `[decision.weights]`
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Weights {
    /// Affinity (model blended with headroom).
    pub affinity: f64,
    /// Balance of load over hosts.
    pub balance: f64,
    /// Nearness to the features that `placement.near` names.
    pub near: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            affinity: 0.7,
            balance: 0.3,
            near: 0.2,
        }
    }
}

impl Default for DecisionSection {
    fn default() -> Self {
        Self {
            automatic: true,
            relieve: false,
            relieve_every_s: 60.0,
            reserve: 0.1,
            min_gain: 0.05,
            cooldown_s: 60.0,
            weights: Weights::default(),
            mode: Mode::Act,
            cost_weight: 0.05,
            max_moves_in: 4,
            keep: 500,
            judge_s: 60.0,
        }
    }
}

/// `[forecast]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ForecastSection {
    /// Act on breaches that are expected, or only on measured ones?
    pub enabled: bool,
    /// A breach is expected when it begins within so many seconds, up to 3600.
    pub lead_s: f64,
    /// Quantile of the forecast that must lie above the limit, 0.05 to 0.99. A higher one
    /// announces more breaches, and more of them in vain; 0.5 announces what is more likely than
    /// not.
    pub confidence: f64,
    /// Seconds between forecasts, 1 to 3600.
    pub every_s: f64,
    /// Steps (usually of 10 s) that must be known before anything is forecast, 12 to 720.
    pub min_points: usize,
}

impl Default for ForecastSection {
    fn default() -> Self {
        Self {
            enabled: true,
            lead_s: 300.0,
            confidence: 0.8,
            every_s: 30.0,
            min_points: 30,
        }
    }
}

/// `[moves]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MovesSection {
    /// Most pre-copy rounds.
    pub max_rounds: u16,
    /// Most moves from this host, and most to it, at a time; more wait for their turn.
    pub max_concurrent: usize,
    /// Longest pre-copy of a feature whose `over_budget` is `wait`, seconds.
    pub wait_s: u64,
    /// Longest time of one step without any progress, seconds.
    pub step_timeout_s: u64,
    /// Longest time of a restore or resume, seconds.
    pub restore_timeout_s: u64,
    /// Most that all moves from this host together send to other hosts, MiB per second; 0: no
    /// limit.
    pub bandwidth_limit_mib_s: f64,
    /// Most that one move sends, MiB per second; 0: no limit.
    pub bandwidth_limit_move_mib_s: f64,
}

impl Default for MovesSection {
    fn default() -> Self {
        Self {
            max_rounds: 6,
            max_concurrent: 2,
            wait_s: 120,
            step_timeout_s: 120,
            restore_timeout_s: 60,
            bandwidth_limit_mib_s: 0.0,
            bandwidth_limit_move_mib_s: 0.0,
        }
    }
}

/// `[features]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FeaturesSection {
    /// Directory whose `*.toml` define features of this host.
    pub dir: PathBuf,
}

impl Default for FeaturesSection {
    fn default() -> Self {
        Self {
            dir: "/etc/drover/features.d".into(),
        }
    }
}

/// `[qmp]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QmpSection {
    /// Names of the domains whose monitor is asked and whose events are listened to, `*` being any
    /// text. None by default: libvirt marks a domain that was asked as tainted.
    pub domains: Vec<String>,
    /// Seconds between two questions to a domain, 5 to 3600.
    pub interval_s: f64,
    /// Bounds of the histograms of latencies that QEMU is told to keep of these domains' disks,
    /// milliseconds, rising, at most 16; it is told nothing when there are none.
    pub latency_bounds_ms: Vec<f64>,
}

impl QmpSection {
    /// The bounds of histograms in nanoseconds.
    pub fn latency_bounds_ns(&self) -> Vec<u64> {
        let bounds = self.latency_bounds_ms.iter();
        bounds.map(|ms| (ms * 1e6).round() as u64).collect()
    }
}

impl Default for QmpSection {
    fn default() -> Self {
        Self {
            domains: Vec::new(),
            interval_s: 15.0,
            latency_bounds_ms: Vec::new(),
        }
    }
}

/// `[metrics]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsSection {
    /// Where to serve them, by plain HTTP: best on a loopback address.
    pub listen: SocketAddr,
    /// Most features with series of their own; the rest is only counted.
    #[serde(default = "two_hundred")]
    pub max_features: usize,
}

fn two_hundred() -> usize {
    200
}

/// `[peer]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerSection {
    /// Where to listen for peers that come by TLS; not needed when all come by ssh.
    pub listen: Option<SocketAddr>,
    /// CA certificate, PEM.
    #[serde(default = "default_ca")]
    pub ca: PathBuf,
    /// Server certificate, PEM.
    #[serde(default = "default_server_cert")]
    pub server_cert: PathBuf,
    /// Server key, PEM.
    #[serde(default = "default_server_key")]
    pub server_key: PathBuf,
    /// Client certificate, PEM.
    #[serde(default = "default_client_cert")]
    pub client_cert: PathBuf,
    /// Client key, PEM.
    #[serde(default = "default_client_key")]
    pub client_key: PathBuf,
    /// Seconds between looks at a peer's state.
    #[serde(default = "two")]
    pub refresh_s: f64,
    /// Seconds without an answer after which a peer is lost.
    #[serde(default = "five")]
    pub timeout_s: f64,
    /// Private key for peers that are reached by ssh.
    #[serde(default = "default_ssh_key")]
    pub ssh_key: PathBuf,
    /// Host keys of these peers, in ssh's `known_hosts` format.
    #[serde(default = "default_ssh_known_hosts")]
    pub ssh_known_hosts: PathBuf,
    /// Where `drover peer-stdio` finds droverd.
    #[serde(default = "default_ssh_socket")]
    pub ssh_socket: PathBuf,
    /// The peers.
    #[serde(default)]
    pub hosts: Vec<PeerHost>,
}

fn default_ssh_key() -> PathBuf {
    "/etc/drover/ssh/id_ed25519".into()
}
fn default_ssh_known_hosts() -> PathBuf {
    "/etc/drover/ssh/known_hosts".into()
}
/// Where droverd listens for `drover peer-stdio`, unless `peer.ssh_socket` says otherwise.
pub const SSH_SOCKET: &str = "/run/drover/peer.sock";
fn default_ssh_socket() -> PathBuf {
    SSH_SOCKET.into()
}

fn default_ca() -> PathBuf {
    "/etc/pki/CA/cacert.pem".into()
}
fn default_server_cert() -> PathBuf {
    "/etc/pki/libvirt/servercert.pem".into()
}
fn default_server_key() -> PathBuf {
    "/etc/pki/libvirt/private/serverkey.pem".into()
}
fn default_client_cert() -> PathBuf {
    "/etc/pki/libvirt/clientcert.pem".into()
}
fn default_client_key() -> PathBuf {
    "/etc/pki/libvirt/private/clientkey.pem".into()
}
fn two() -> f64 {
    2.0
}
fn five() -> f64 {
    5.0
}

/// `[[peer.hosts]]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerHost {
    /// Name; its certificate must be valid for it, or its key be allowed under it.
    pub name: String,
    /// Address and port of its droverd, for TLS.
    pub address: Option<SocketAddr>,
    /// `[user@]host` to reach it by ssh instead.
    pub ssh: Option<String>,
    /// Groups whose features may go there and come from there.
    #[serde(default)]
    pub groups: Vec<String>,
}

/// Whether `to` is a destination for ssh and nothing that it would take for an option.
fn ssh_destination(to: &str) -> bool {
    !to.starts_with('-')
        && !to.is_empty()
        && to
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"@._:-[]".contains(&b))
}

impl ConfigError {
    /// The error and what caused it, in one text.
    pub fn with_cause(&self) -> String {
        match self {
            Self::Read { source, .. } => format!("{self}: {source}"),
            Self::Parse { .. } | Self::Value { .. } => self.to_string(),
        }
    }
}

/// A configuration with where it came from and what was written there.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Its file.
    pub path: PathBuf,
    /// The file's keys and values.
    pub table: toml::Table,
}

impl Loaded {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.into(),
            source,
        })?;
        Self::parse(&text, path)
    }

    /// Parses and checks the text of a file; `path` is for messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config = Config::parse(text, path)?;
        let table = toml::from_str(text).map_err(|e| ConfigError::Parse {
            path: path.into(),
            message: crate::toml_text::explain(text, &e),
        })?;
        Ok(Self {
            config,
            path: path.into(),
            table,
        })
    }
}

/// Dotted names of the keys whose values differ between two files, in order; a list counts as one
/// value.
pub fn changed_keys(a: &toml::Table, b: &toml::Table) -> Vec<String> {
    fn flat(prefix: &str, table: &toml::Table, out: &mut BTreeMap<String, toml::Value>) {
        for (key, value) in table {
            let name = format!("{prefix}{key}");
            match value {
                toml::Value::Table(t) => flat(&format!("{name}."), t, out),
                v => {
                    out.insert(name, v.clone());
                }
            }
        }
    }
    let (mut old, mut new) = (BTreeMap::new(), BTreeMap::new());
    flat("", a, &mut old);
    flat("", b, &mut new);
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let differs = |k: &&&String| old.get(**k) != new.get(**k);
    keys.iter()
        .filter(differs)
        .map(ToString::to_string)
        .collect()
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.into(),
            source,
        })?;
        Self::parse(&text, path)
    }

    /// Parses and checks the text of a file; `path` is for messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let c: Self = toml::from_str(text).map_err(|e| ConfigError::Parse {
            path: path.into(),
            message: crate::toml_text::explain(text, &e),
        })?;
        let value = |key, message: &str| {
            Err(ConfigError::Value {
                path: path.into(),
                key,
                message: message.into(),
            })
        };
        if c.host.name.is_empty() {
            return value("host.name", "must not be empty");
        }
        if !(1.0..=60.0).contains(&c.meter.interval_s) {
            return value("meter.interval_s", "must be between 1 and 60 seconds");
        }
        if !(5.0..=3600.0).contains(&c.meter.agent_interval_s) {
            return value(
                "meter.agent_interval_s",
                "must be between 5 and 3600 seconds",
            );
        }
        if !(5.0..=3600.0).contains(&c.qmp.interval_s) {
            return value("qmp.interval_s", "must be between 5 and 3600 seconds");
        }
        let bounds = &c.qmp.latency_bounds_ms;
        if bounds.len() > 16
            || !bounds.iter().all(|b| (0.001..=3.6e6).contains(b))
            || !bounds.is_sorted_by(|a, b| a < b)
        {
            return value(
                "qmp.latency_bounds_ms",
                "must be at most 16 rising numbers between 0.001 and 3600000",
            );
        }
        if c.host.cpus.is_some_and(|n| !(n.is_finite() && n > 0.0)) {
            return value("host.cpus", "must be more than 0");
        }
        if c.host
            .memory_mib
            .is_some_and(|n| !(n.is_finite() && n > 0.0))
        {
            return value("host.memory_mib", "must be more than 0");
        }
        if !(0.0..1.0).contains(&c.decision.reserve) {
            return value("decision.reserve", "must be at least 0 and less than 1");
        }
        let w = c.decision.weights;
        if !(0.0..=1.0).contains(&c.decision.cost_weight) {
            return value("decision.cost_weight", "must be between 0 and 1");
        }
        if c.decision.max_moves_in == 0 {
            return value("decision.max_moves_in", "must be at least 1");
        }
        if !(5.0..=600.0).contains(&c.decision.relieve_every_s) {
            return value(
                "decision.relieve_every_s",
                "must be between 5 and 600 seconds",
            );
        }
        if !(1.0..=3600.0).contains(&c.decision.judge_s) {
            return value("decision.judge_s", "must be between 1 and 3600 seconds");
        }
        if c.host
            .labels
            .iter()
            .any(|(k, v)| k.is_empty() || v.is_empty())
        {
            return value("host.labels", "must have no empty name or value");
        }
        if !(w.near >= 0.0
            && w.affinity >= 0.0
            && w.balance >= 0.0
            && (w.affinity + w.balance).is_normal())
        {
            return value("decision.weights", "must not be negative, and not all 0");
        }
        if c.model.rows_full <= c.model.rows_min {
            return value("model.rows_full", "must be more than model.rows_min");
        }
        let f = &c.forecast;
        if !(0.05..=0.99).contains(&f.confidence) {
            return value("forecast.confidence", "must be between 0.05 and 0.99");
        }
        if !(f.lead_s > 0.0 && f.lead_s <= 3600.0) {
            return value("forecast.lead_s", "must be more than 0 and at most 3600");
        }
        if !(1.0..=3600.0).contains(&f.every_s) {
            return value("forecast.every_s", "must be between 1 and 3600 seconds");
        }
        if !(12..=720).contains(&f.min_points) {
            return value("forecast.min_points", "must be between 12 and 720");
        }
        for (key, limit) in [
            ("moves.bandwidth_limit_mib_s", c.moves.bandwidth_limit_mib_s),
            (
                "moves.bandwidth_limit_move_mib_s",
                c.moves.bandwidth_limit_move_mib_s,
            ),
        ] {
            if limit != 0.0 && !(1.0..=1e6).contains(&limit) {
                return value(key, "must be 0 (no limit) or 1 to 1000000");
            }
        }
        if c.moves.max_concurrent == 0 {
            return value("moves.max_concurrent", "must be at least 1");
        }
        let h = &c.history;
        if h.raw_hours == 0 || h.keep_hours == Some(0) || h.minute_days == 0 || h.quarter_days == 0
        {
            return value(
                "history.raw_hours",
                "raw_hours, minute_days and quarter_days must be at least 1",
            );
        }
        if h.max_mib < 64 {
            return value("history.max_mib", "must be at least 64");
        }
        if c.moves.max_rounds == 0 {
            return value("moves.max_rounds", "must be at least 1");
        }
        if let Some(p) = &c.peer {
            if p.hosts.iter().any(|h| h.name == c.host.name) {
                return value("peer.hosts", "must name the other hosts, not this one");
            }
            for h in &p.hosts {
                match (&h.address, &h.ssh) {
                    (Some(_), None) if p.listen.is_none() => {
                        return value("peer.listen", "is needed, as a peer has an address");
                    }
                    (Some(_), None) => {}
                    (None, Some(to)) if ssh_destination(to) => {}
                    (None, Some(_)) => {
                        return value("peer.hosts.ssh", "must be [user@]host, as ssh takes it");
                    }
                    _ => {
                        return value(
                            "peer.hosts",
                            "each needs either address (TLS) or ssh, and not both",
                        );
                    }
                }
            }
            if !(p.refresh_s > 0.0 && p.timeout_s > 0.0) {
                return value(
                    "peer.timeout_s",
                    "refresh_s and timeout_s must be more than 0",
                );
            }
        }
        Ok(c)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minimal_and_unknown_keys() {
        let p = Path::new("x.toml");
        let c = Config::parse("[host]\nname = 'a'\n", p).unwrap();
        assert_eq!(c.meter.interval_s, 5.0);
        let e = Config::parse("[host]\nname = 'a'\n[meter]\nintervall_s = 2\n", p).unwrap_err();
        let e = e.to_string();
        assert!(
            e.contains("x.toml: line 4: unknown field `intervall_s`"),
            "{e}"
        );
        assert!(e.contains("did you mean `interval_s`?"), "{e}");
        let e = Config::parse("[host]\nname = 'a'\n[meter]\ninterval_s = 0.5\n", p).unwrap_err();
        assert!(e.to_string().contains("between 1 and 60"), "{e}");
        assert_eq!(c.forecast.confidence, 0.8);
        for bad in [
            "confidence = 1.0",
            "lead_s = 0",
            "every_s = 0.5",
            "min_points = 5",
        ] {
            let text = format!("[host]\nname = 'a'\n[forecast]\n{bad}\n");
            let e = Config::parse(&text, p).unwrap_err().to_string();
            let key = bad.split(' ').next().unwrap();
            assert!(e.contains(&format!("forecast.{key}: must be")), "{e}");
        }
        let tiers = (
            c.history.raw_hours,
            c.history.minute_days,
            c.history.quarter_days,
        );
        assert_eq!(tiers, (6, 7, 365));
        let text = "[host]\nname = 'a'\n[history]\nkeep_hours = 24\nmax_mib = 100\n";
        let options = Config::parse(text, p).unwrap().history.options(5.0);
        let taken = (options.raw_hours, options.max_mib, options.interval_ms);
        assert_eq!(taken, (24, 100, 5000));
        for bad in ["raw_hours = 0", "quarter_days = 0", "max_mib = 5"] {
            let text = format!("[host]\nname = 'a'\n[history]\n{bad}\n");
            let e = Config::parse(&text, p).unwrap_err().to_string();
            assert!(e.contains("must be at least"), "{e}");
        }
        for (peer, wrong) in [
            ("[[peer.hosts]]\nname = 'b'", "either address"),
            (
                "[[peer.hosts]]\nname = 'b'\naddress = '192.0.2.1:1'",
                "peer.listen",
            ),
            ("[[peer.hosts]]\nname = 'b'\nssh = '-oX=y'", "user@"),
            (
                "[[peer.hosts]]\nname = 'b'\nssh = 'b'\naddress = '192.0.2.1:1'",
                "either address",
            ),
        ] {
            let e = Config::parse(&format!("[host]\nname = 'a'\n[peer]\n{peer}\n"), p).unwrap_err();
            assert!(e.to_string().contains(wrong), "{e}");
        }
        let text = "[host]\nname = 'a'\n[peer]\n[[peer.hosts]]\nname = 'b'\nssh = 'root@b'\n";
        assert_eq!(Config::parse(text, p).unwrap().peer.unwrap().listen, None);
        assert_eq!(c.metrics, None, "off unless configured");
        assert_eq!(c.qmp.domains, Vec::<String>::new(), "off unless configured");
        assert!(c.qmp.latency_bounds_ms.is_empty(), "off unless configured");
        let bounds = |list: &str| {
            Config::parse(
                &format!("[host]\nname = 'a'\n[qmp]\nlatency_bounds_ms = {list}\n"),
                p,
            )
        };
        assert_eq!(
            bounds("[0.1, 1, 10.5]").unwrap().qmp.latency_bounds_ns(),
            [100_000, 1_000_000, 10_500_000]
        );
        let many: Vec<usize> = (1..=17).collect();
        for bad in [
            "[1, 1]",
            "[2, 1]",
            "[0]",
            "[nan]",
            "[1e9]",
            &format!("{many:?}"),
        ] {
            let e = bounds(bad).unwrap_err().to_string();
            assert!(e.contains("qmp.latency_bounds_ms"), "{bad}: {e}");
        }
        let text = "[host]\nname = 'a'\n[metrics]\nlisten = '127.0.0.1:9177'\n";
        let m = Config::parse(text, p).unwrap().metrics.unwrap();
        assert_eq!((m.listen.port(), m.max_features), (9177, 200));
    }
}
