//! droverd over D-Bus, with its answers as the types of [`crate::api`].

use std::time::Duration;

use serde::de::DeserializeOwned;
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedObjectPath};

use super::error::CliError;
use crate::api::{
    Changed, FeatureForecast, FeatureRow, HistoryPage, HistoryQuery, Job, Plan, Reloaded,
};
use crate::dbus::client::{ManagerProxy, MoveProxy};
use crate::dbus::{connect, move_path};
use crate::decision::Check;
use crate::feature::{FeatureName, FeatureSpec, Threshold};
use crate::host::HostState;
use crate::method::Method;
use crate::reason::Rehearsal;
use crate::usage::Usage;

/// A connection to droverd.
#[derive(Debug, Clone)]
pub struct Client {
    connection: Connection,
    manager: ManagerProxy<'static>,
    timeout: Duration,
}

/// Result of a command.
pub type Result<T> = std::result::Result<T, CliError>;

pub(super) fn decode<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| {
        CliError::Failed(format!(
            "droverd's answer is not understood: {e}; compare the versions with \"drover version\""
        ))
    })
}

impl Client {
    /// Connects to the system bus; `timeout` is the longest wait for each answer.
    pub async fn connect(timeout: Duration) -> Result<Self> {
        // The handshake has no timeout of its own, and a bus may hang.
        let connected = tokio::time::timeout(timeout, connect(None, Some(timeout))).await;
        let connection = connected.map_err(|_| {
            CliError::Timeout(
                "the system bus did not answer; see \"systemctl status dbus\"".to_owned(),
            )
        })??;
        Self::over(connection, timeout).await
    }

    /// Connects to the droverd of `host` over ssh, or to that of this host. With `keep`, ssh stays
    /// for the next connection.
    pub async fn open(host: Option<&str>, timeout: Duration, keep: bool) -> Result<Self> {
        match host {
            None => Self::connect(timeout).await,
            Some(host) => {
                let connection = super::remote::connect(host, timeout, keep).await?;
                Self::over(connection, timeout).await
            }
        }
    }

    async fn over(connection: Connection, timeout: Duration) -> Result<Self> {
        let manager = ManagerProxy::builder(&connection)
            .cache_properties(CacheProperties::No)
            .build()
            .await
            .map_err(|e| CliError::from_bus(&e, timeout))?;
        Ok(Self {
            connection,
            manager,
            timeout,
        })
    }

    /// The connection itself.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// What a failed call means.
    pub fn error(&self, e: &zbus::Error) -> CliError {
        CliError::from_bus(e, self.timeout)
    }

    fn take<T>(&self, r: zbus::Result<T>) -> Result<T> {
        r.map_err(|e| self.error(&e))
    }

    fn changed(&self, r: zbus::Result<String>) -> Result<Changed> {
        Ok(match self.take(r)?.as_str() {
            "already" => Changed::Already,
            _ => Changed::Done,
        })
    }

    /// This host first, then peers.
    pub async fn hosts(&self) -> Result<Vec<HostState>> {
        decode(&self.take(self.manager.hosts().await)?)
    }

    /// Features of this host.
    pub async fn features(&self) -> Result<Vec<FeatureRow>> {
        decode(&self.take(self.manager.features().await)?)
    }

    /// One feature of this host.
    pub async fn feature(&self, domain: &str, feature: &FeatureName) -> Result<FeatureRow> {
        let rows = self.features().await?.into_iter();
        rows.into_iter()
            .find(|r| r.domain == domain && r.spec.name == *feature)
            .ok_or_else(|| {
                CliError::NotFound(format!(
                    "no feature '{feature}' in domain '{domain}' on this host; \"drover list\" shows what is there"
                ))
            })
    }

    /// Registers.
    pub async fn register(&self, domain: &str, spec: &FeatureSpec) -> Result<Changed> {
        let text = serde_json::to_string(spec)
            .map_err(|e| CliError::Failed(format!("'{}' cannot be sent: {e}", spec.name)))?;
        self.changed(self.manager.register(domain, &text).await)
    }

    /// Removes a registration.
    pub async fn deregister(&self, domain: &str, feature: &FeatureName) -> Result<Changed> {
        self.changed(self.manager.deregister(domain, feature.as_str()).await)
    }

    /// Enables or disables.
    pub async fn set_enabled(&self, domain: &str, f: &FeatureName, on: bool) -> Result<Changed> {
        self.changed(if on {
            self.manager.enable(domain, f.as_str()).await
        } else {
            self.manager.disable(domain, f.as_str()).await
        })
    }

    /// Replaces the thresholds.
    pub async fn set_thresholds(
        &self,
        domain: &str,
        feature: &FeatureName,
        thresholds: &[Threshold],
    ) -> Result<Changed> {
        let texts: Vec<String> = thresholds.iter().map(crate::threshold::format).collect();
        self.changed(
            self.manager
                .set_thresholds(domain, feature.as_str(), &texts)
                .await,
        )
    }

    /// History between two times, milliseconds since the epoch.
    pub async fn history(
        &self,
        domain: &str,
        feature: &FeatureName,
        (since_ms, until_ms): (i64, i64),
        limit: u32,
    ) -> Result<Vec<Usage>> {
        let f = feature.as_str();
        decode(
            &self.take(
                self.manager
                    .history(domain, f, since_ms, until_ms, limit)
                    .await,
            )?,
        )
    }

    /// History by steps.
    pub async fn history_steps(
        &self,
        domain: &str,
        feature: &FeatureName,
        query: HistoryQuery,
    ) -> Result<HistoryPage> {
        let step = query.step_ms.unwrap_or(-1);
        let limit = u32::try_from(query.limit).unwrap_or(u32::MAX);
        let (since, until) = (query.since_ms, query.until_ms);
        decode(
            &self.take(
                self.manager
                    .history_steps(domain, feature.as_str(), since, until, step, limit)
                    .await,
            )?,
        )
    }

    /// What a feature is expected to use.
    pub async fn forecast(&self, domain: &str, feature: &FeatureName) -> Result<FeatureForecast> {
        decode(&self.take(self.manager.forecast(domain, feature.as_str()).await)?)
    }

    /// What a move would choose.
    pub async fn plan(&self, domain: &str, feature: &FeatureName) -> Result<Plan> {
        decode(&self.take(self.manager.plan(domain, feature.as_str()).await)?)
    }

    /// Whether a feature could move; empty texts are for all hosts.
    pub async fn check(
        &self,
        domain: &str,
        feature: &FeatureName,
        host: &str,
        to_domain: &str,
    ) -> Result<Check> {
        let f = feature.as_str();
        decode(&self.take(self.manager.check(domain, f, host, to_domain).await)?)
    }

    /// Dumps a feature and throws the dump away.
    pub async fn rehearse(&self, domain: &str, feature: &FeatureName) -> Result<Rehearsal> {
        decode(&self.take(self.manager.rehearse(domain, feature.as_str()).await)?)
    }

    /// Starts a move; the path of its object.
    pub async fn migrate(
        &self,
        domain: &str,
        feature: &FeatureName,
        host: &str,
        to_domain: &str,
        method: Option<Method>,
    ) -> Result<OwnedObjectPath> {
        let (m, feature) = (&self.manager, feature.as_str());
        // The newer call only where it is needed, as droverd may be an older one.
        self.take(match method {
            None => m.migrate(domain, feature, host, to_domain).await,
            Some(by) => {
                m.migrate_by(domain, feature, host, to_domain, by.as_str())
                    .await
            }
        })
    }

    /// All moves, newest first.
    pub async fn jobs(&self) -> Result<Vec<Job>> {
        decode(&self.take(self.manager.jobs().await)?)
    }

    /// The move behind an object.
    pub async fn job(&self, path: &OwnedObjectPath) -> Result<Job> {
        let proxy = self.take(
            MoveProxy::builder(&self.connection)
                .path(path.clone())
                .cache_properties(CacheProperties::No)
                .build()
                .await,
        )?;
        decode(&self.take(proxy.json().await)?)
    }

    /// Asks to cancel a move; with `force` to give it up after its commit, too.
    pub async fn abort(&self, id: &str, force: bool) -> Result<()> {
        let path = self.take(move_path(id))?;
        let proxy = self.take(MoveProxy::new(&self.connection, path).await)?;
        self.take(if force {
            proxy.give_up().await
        } else {
            proxy.abort().await
        })
    }

    /// Installs the helper.
    pub async fn guest_install(&self, domain: &str) -> Result<String> {
        self.take(self.manager.guest_install(domain).await)
    }

    /// Removes the helper.
    pub async fn guest_remove(&self, domain: &str) -> Result<String> {
        self.take(self.manager.guest_remove(domain).await)
    }

    /// Reads configuration and feature files anew.
    pub async fn reload(&self) -> Result<Reloaded> {
        decode(&self.take(self.manager.reload().await)?)
    }

    /// droverd's version and host.
    pub async fn version(&self) -> Result<(String, String)> {
        let version = self.take(self.manager.version().await)?;
        Ok((version, self.take(self.manager.host_name().await)?))
    }
}
