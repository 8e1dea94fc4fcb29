//! [`Hypervisor`]: the calls.

use std::sync::Arc;
use std::time::Duration;

use drover_qmp::command::{Query, Setting};
use serde_json::Value;
use tokio::sync::mpsc;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::ErrorNumber;

use super::agent::Agents;
use super::connection::Connection;
use super::events::Sink;
use super::metadata::{self, DomainFeatures};
use super::monitor::Monitors;
use super::pool::Pool;
use super::stats;
use super::worker::Lane;
use super::xml::{self, Channel};
use super::{
    Capabilities, Channels, DomainInfo, DomainStats, HypervisorError, HypervisorEvent, MonitorEvent,
};
use crate::wire::guest::{BULK_PORT, CONTROL_PORT};

/// How long `connect` waits for the first connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Limit of a call that only reads.
const READ: Duration = Duration::from_secs(10);
/// Limit of a call that changes a domain's devices.
const CHANGE: Duration = Duration::from_secs(30);
/// Calls under way at a time about the host. With those about domains not more than the five
/// requests that libvirtd serves at a time for one connection.
const HOST_WORKERS: usize = 2;
/// Limit of the bulk statistics. A QEMU that hung since the last ones makes them wait for ever.
const STATISTICS: Duration = Duration::from_secs(4);
/// Calls for statistics under way at a time, those included that a hung QEMU holds.
const STATISTICS_WORKERS: usize = 16;
/// Calls under way at a time about domains.
const DOMAIN_WORKERS: usize = 3;

/// This host's hypervisor. Cheap to clone; dropping the last clone closes the connection.
#[derive(Clone)]
pub struct Hypervisor(Arc<Inner>);

struct Inner {
    connection: Connection,
    host: Lane,
    domains: Lane,
    statistics: Lane,
    pool: Pool,
    agents: Agents,
    monitors: Monitors,
    agent_timeout_s: u32,
}

impl std::fmt::Debug for Hypervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let uri = self.0.connection.uri();
        f.debug_struct("Hypervisor")
            .field("uri", &uri)
            .finish_non_exhaustive()
    }
}

impl Hypervisor {
    /// Connects to `uri` and sends what happens there into `events`, and what QEMU tells of the domains
    /// by itself into `monitors`, as far as there is room in it. `agent_timeout_s` is the
    /// timeout of an agent command that names none, seconds. Fails when libvirt cannot be reached
    /// within ten seconds; from then on it reconnects by itself.
    pub async fn connect(
        uri: &str,
        agent_timeout_s: u32,
        events: mpsc::Sender<HypervisorEvent>,
        monitors: Option<mpsc::Sender<MonitorEvent>>,
    ) -> Result<Self, HypervisorError> {
        let connection = Connection::start(uri, Sink::new(events, monitors))?;
        connection.wait(CONNECT).await?;
        Ok(Self(Arc::new(Inner {
            agents: Agents::new(connection.uri()),
            monitors: Monitors::new(connection.uri()),
            pool: Pool::new(connection.uri()),
            statistics: Lane::new(STATISTICS_WORKERS),
            connection,
            host: Lane::new(HOST_WORKERS),
            domains: Lane::new(DOMAIN_WORKERS),
            agent_timeout_s: agent_timeout_s.max(1),
        })))
    }

    /// Runs a call that is about `domain`, or about the host, on the connection.
    async fn call<T: Send + 'static>(
        &self,
        what: &str,
        domain: Option<&str>,
        limit: Duration,
        f: impl FnOnce(&Connect) -> Result<T, HypervisorError> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        let live = self.0.connection.live()?;
        let check = self.0.connection.checker();
        let lane = if domain.is_some() {
            &self.0.domains
        } else {
            &self.0.host
        };
        lane.run(domain, what, limit, move || {
            let result = f(live.conn());
            if result.is_err() {
                check(&live);
            }
            result
        })
        .await
    }

    /// Runs a call with a domain at hand.
    async fn on_domain<T: Send + 'static>(
        &self,
        what: &'static str,
        domain: &str,
        limit: Duration,
        f: impl FnOnce(&Domain) -> Result<T, HypervisorError> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        let name = domain.to_owned();
        self.call(what, Some(domain), limit, move |conn| {
            let domain = conn
                .lookup_domain_by_name(&name)
                .map_err(|e| HypervisorError::from_virt(what, Some(&name), &e))?;
            f(&domain)
        })
        .await
    }

    /// What the host can offer.
    pub async fn capabilities(&self) -> Result<Capabilities, HypervisorError> {
        const WHAT: &str = "host capabilities";
        self.call(WHAT, None, READ, |conn| {
            let failed = |e| HypervisorError::from_virt(WHAT, None, &e);
            let text = conn.capabilities().map_err(failed)?;
            let found = xml::capabilities(&text).map_err(|message| HypervisorError::Answer {
                what: WHAT.into(),
                message,
            })?;
            let node = conn.node_info().map_err(failed)?;
            Ok(Capabilities {
                cpu_model: found.model,
                cpu_features: found.features,
                numa_nodes: found.numa_nodes,
                cpus: f64::from(node.cpus),
                memory_mib: node.memory as f64 / 1024.0,
                virt_type: found.virt_type,
            })
        })
        .await
    }

    /// Version of libvirt's daemon, as libvirt counts: `major * 1_000_000 + minor * 1_000 + micro`.
    pub async fn version(&self) -> Result<u32, HypervisorError> {
        const WHAT: &str = "version";
        self.call(WHAT, None, READ, |conn| {
            let version = conn.lib_version();
            version.map_err(|e| HypervisorError::from_virt(WHAT, None, &e))
        })
        .await
    }

    /// All domains, also those that are shut off. Asks no QEMU, so a hung one holds up nothing.
    pub async fn domains(&self) -> Result<Vec<DomainInfo>, HypervisorError> {
        const WHAT: &str = "list of domains";
        self.call(WHAT, None, READ, |conn| {
            let failed = |e| HypervisorError::from_virt(WHAT, None, &e);
            let all = conn.list_all_domains(0).map_err(failed)?;
            let mut found = Vec::with_capacity(all.len());
            for domain in all {
                // One that went meanwhile is no longer there.
                let (Ok(name), Ok(uuid), Ok(info)) =
                    (domain.name(), domain.uuid_string(), domain.info())
                else {
                    continue;
                };
                let state = info.state.to_raw();
                found.push(DomainInfo {
                    name,
                    uuid,
                    running: state == virt_sys::VIR_DOMAIN_RUNNING
                        || state == virt_sys::VIR_DOMAIN_BLOCKED,
                    active: domain.id().is_some(),
                    id: domain.id(),
                    ended: stats::ended(&domain),
                    vcpus: info.nr_virt_cpu,
                    memory_mib: info.memory as f64 / 1024.0,
                });
            }
            Ok(found)
        })
        .await
    }

    /// Counters of all domains, by one call that does not wait for busy domains. One whose QEMU hung
    /// since the last call delays it to its limit; libvirt leaves it out of the next ones.
    pub async fn stats(&self) -> Result<Vec<DomainStats>, HypervisorError> {
        const WHAT: &str = "statistics of all domains";
        let groups = virt_sys::VIR_DOMAIN_STATS_STATE
            | virt_sys::VIR_DOMAIN_STATS_CPU_TOTAL
            | virt_sys::VIR_DOMAIN_STATS_BALLOON
            | virt_sys::VIR_DOMAIN_STATS_VCPU
            | virt_sys::VIR_DOMAIN_STATS_INTERFACE
            | virt_sys::VIR_DOMAIN_STATS_BLOCK;
        let pool = self.0.pool.clone();
        let work = move || {
            pool.with(|conn| {
                stats::all(conn, groups).map_err(|e| HypervisorError::from_virt(WHAT, None, &e))
            })
        };
        let lane = &self.0.statistics;
        lane.run(None, WHAT, STATISTICS, work).await
    }

    /// Host sockets of the helper's ports, from the live XML; `None` unless both are plugged in.
    pub async fn channels(&self, domain: &str) -> Result<Option<Channels>, HypervisorError> {
        const WHAT: &str = "domain XML";
        self.on_domain(WHAT, domain, READ, |d| {
            if !is_active(d)? {
                return Ok(None);
            }
            Ok(both(&live_channels(d)?))
        })
        .await
    }

    /// Plugs in the helper's ports where they are missing: in the running domain, and in its
    /// persistent definition when it has one. The domain must run.
    /// [`HypervisorError::NoController`] when it must be started anew first.
    pub async fn ensure_channels(&self, domain: &str) -> Result<Channels, HypervisorError> {
        const WHAT: &str = "plugging in the helper's ports";
        self.on_domain(WHAT, domain, CHANGE, |d| {
            let name = d.name().unwrap_or_default();
            let failed = |e| HypervisorError::from_virt(WHAT, Some(&name), &e);
            if !is_active(d)? {
                return Err(HypervisorError::NotRunning(name));
            }
            let plug = |present: &[Channel], flags| {
                // The bulk port first: the helper starts when the control port appears.
                for port in [BULK_PORT, CONTROL_PORT] {
                    if !present.iter().any(|c| c.name == port) {
                        d.attach_device_flags(&xml::channel_xml(port), flags)
                            .map_err(failed)?;
                    }
                }
                Ok(())
            };
            // The definition first: it can take the ports in any case.
            if d.is_persistent().map_err(failed)? {
                let defined = read_channels(d, virt_sys::VIR_DOMAIN_XML_INACTIVE)?;
                plug(&defined, virt_sys::VIR_DOMAIN_AFFECT_CONFIG)?;
            }
            let live = live_channels(d)?;
            if both(&live).is_none() && !read(d, 0, xml::has_controller)? {
                return Err(HypervisorError::NoController(name));
            }
            plug(&live, virt_sys::VIR_DOMAIN_AFFECT_LIVE)?;
            both(&live_channels(d)?).ok_or_else(|| HypervisorError::Answer {
                what: WHAT.into(),
                message: "the ports are plugged in, but the XML names no sockets".into(),
            })
        })
        .await
    }

    /// Removes the helper's ports from the running domain, if it runs, and from its persistent
    /// definition, if it has one.
    pub async fn remove_channels(&self, domain: &str) -> Result<(), HypervisorError> {
        const WHAT: &str = "removing the helper's ports";
        self.on_domain(WHAT, domain, CHANGE, |d| {
            let name = d.name().unwrap_or_default();
            let failed = |e| HypervisorError::from_virt(WHAT, Some(&name), &e);
            let unplug = |present: Vec<Channel>, flags| {
                for c in present {
                    if c.name != CONTROL_PORT && c.name != BULK_PORT {
                        continue;
                    }
                    match d.detach_device_flags(&c.xml, flags) {
                        Err(e) if e.code().is(ErrorNumber::DeviceMissing) => {}
                        other => drop(other.map_err(failed)?),
                    }
                }
                Ok(())
            };
            if is_active(d)? {
                unplug(live_channels(d)?, virt_sys::VIR_DOMAIN_AFFECT_LIVE)?;
            }
            if d.is_persistent().map_err(failed)? {
                let defined = read_channels(d, virt_sys::VIR_DOMAIN_XML_INACTIVE)?;
                unplug(defined, virt_sys::VIR_DOMAIN_AFFECT_CONFIG)?;
            }
            Ok(())
        })
        .await
    }

    /// Features in the domain's XML metadata; `None` when there are none.
    pub async fn features(&self, domain: &str) -> Result<Option<DomainFeatures>, HypervisorError> {
        const WHAT: &str = "domain metadata";
        self.on_domain(WHAT, domain, READ, |d| {
            let kind = virt_sys::VIR_DOMAIN_METADATA_ELEMENT.cast_signed();
            match d.metadata(kind, Some(metadata::URI), 0) {
                Ok(xml) => DomainFeatures::parse(&xml).map(Some).map_err(|message| {
                    HypervisorError::Answer {
                        what: WHAT.into(),
                        message,
                    }
                }),
                Err(e) if e.code().is(ErrorNumber::NoDomainMetadata) => Ok(None),
                Err(e) => Err(HypervisorError::from_virt(WHAT, None, &e)),
            }
        })
        .await
    }

    /// Writes features into the domain's XML metadata, or removes them: of the running domain, if
    /// it runs, and of its persistent definition, if it has one.
    pub async fn set_features(
        &self,
        domain: &str,
        features: Option<&DomainFeatures>,
    ) -> Result<(), HypervisorError> {
        const WHAT: &str = "domain metadata";
        let xml = features.map(DomainFeatures::to_xml);
        self.on_domain(WHAT, domain, CHANGE, move |d| {
            let failed = |e| HypervisorError::from_virt(WHAT, None, &e);
            let mut flags = 0;
            if is_active(d)? {
                flags |= virt_sys::VIR_DOMAIN_AFFECT_LIVE;
            }
            if d.is_persistent().map_err(failed)? {
                flags |= virt_sys::VIR_DOMAIN_AFFECT_CONFIG;
            }
            let kind = virt_sys::VIR_DOMAIN_METADATA_ELEMENT.cast_signed();
            let (key, uri) = (Some(metadata::PREFIX), Some(metadata::URI));
            match d.set_metadata(kind, xml.as_deref(), key, uri, flags) {
                Err(e) if xml.is_none() && e.code().is(ErrorNumber::NoDomainMetadata) => Ok(()),
                other => other.map(drop).map_err(failed),
            }
        })
        .await
    }

    /// Sends a command to the domain's QEMU guest agent, for instance
    /// `{"execute": "guest-info"}`, and gives what is under `return`. `timeout_s` in seconds, 0
    /// for the default. Commands of one domain run one after the other.
    pub async fn agent(
        &self,
        domain: &str,
        command: &Value,
        timeout_s: u32,
    ) -> Result<Value, HypervisorError> {
        let timeout_s = if timeout_s == 0 {
            self.0.agent_timeout_s
        } else {
            timeout_s
        };
        self.0.agents.command(domain, command, timeout_s).await
    }
}

impl Hypervisor {
    /// Asks a domain's QEMU through its monitor, which libvirt counts as a taint of the domain.
    /// Only queries can be asked.
    pub async fn monitor<Q: Query>(
        &self,
        domain: &str,
        query: &Q,
    ) -> Result<Q::Answer, HypervisorError> {
        self.0.monitors.query(domain, query).await
    }

    /// Sets what a domain's QEMU counts, through its monitor.
    pub async fn monitor_set<S: Setting>(
        &self,
        domain: &str,
        setting: &S,
    ) -> Result<S::Answer, HypervisorError> {
        self.0.monitors.set(domain, setting).await
    }
}

fn is_active(d: &Domain) -> Result<bool, HypervisorError> {
    d.is_active()
        .map_err(|e| HypervisorError::from_virt("domain state", None, &e))
}

fn live_channels(d: &Domain) -> Result<Vec<Channel>, HypervisorError> {
    read_channels(d, 0)
}

fn read_channels(d: &Domain, flags: u32) -> Result<Vec<Channel>, HypervisorError> {
    read(d, flags, xml::channels)
}

/// Takes something out of the domain's XML.
fn read<T>(
    d: &Domain,
    flags: u32,
    take: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, HypervisorError> {
    let text = d
        .xml_desc(flags)
        .map_err(|e| HypervisorError::from_virt("domain XML", None, &e))?;
    take(&text).map_err(|message| HypervisorError::Answer {
        what: "domain XML".into(),
        message,
    })
}

fn both(channels: &[Channel]) -> Option<Channels> {
    let path = |name| {
        channels
            .iter()
            .find(|c| c.name == name)
            .and_then(|c| c.path.clone())
    };
    Some(Channels {
        control: path(CONTROL_PORT)?,
        bulk: path(BULK_PORT)?,
    })
}
