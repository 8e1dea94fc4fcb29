//! `org.drover1.Manager`.

use std::sync::Arc;

use zbus::message::Header;
use zbus::object_server::SignalEmitter;

use zbus::{Connection, ObjectPath, OwnedObjectPath};

use super::access::{Access, Verb};
use super::error::{Error, json};
use super::moves::Moves;
use crate::api::{Api, Changed, Destination, FeatureRow, HistoryQuery};
use crate::feature::{FeatureName, FeatureSpec};

/// Most points that one `History` call returns.
const MAX_POINTS: u32 = 100_000;
/// Most points that one `HistorySteps` call returns.
const MAX_STEPS: u32 = 10_000;

/// The manager's object.
pub(super) struct Manager {
    api: Arc<dyn Api>,
    host_name: String,
    version: &'static str,
    access: Access,
    moves: Arc<Moves>,
}

impl Manager {
    pub(super) fn new(
        api: Arc<dyn Api>,
        host_name: String,
        access: Access,
        moves: Arc<Moves>,
    ) -> Self {
        Self {
            api,
            host_name,
            version: env!("CARGO_PKG_VERSION"),
            access,
            moves,
        }
    }
}

fn word(c: Changed) -> String {
    match c {
        Changed::Done => "done".to_owned(),
        Changed::Already => "already".to_owned(),
    }
}

/// Refuses a span of time that ends before it begins.
fn in_order(domain: &str, name: &FeatureName, since_ms: i64, until_ms: i64) -> Result<(), Error> {
    if since_ms > until_ms {
        return Err(Error::Invalid(format!(
            "history of '{domain}/{name}': the start ({since_ms} ms) is after the end ({until_ms} ms)"
        )));
    }
    Ok(())
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn destination(host: &str, domain: &str, method: &str) -> Result<Destination, Error> {
    if host.is_empty() && !domain.is_empty() {
        return Err(Error::Invalid(format!(
            "destination domain '{domain}' without a host: give both, HOST/DOMAIN"
        )));
    }
    let method = some(method)
        .map(|m| m.parse().map_err(Error::Invalid))
        .transpose()?;
    Ok(Destination {
        host: some(host),
        domain: some(domain),
        method,
    })
}

impl Manager {
    /// Begins a move by hand.
    async fn begin(
        &self,
        domain: &str,
        feature: &str,
        (to_host, to_domain): (&str, &str),
        method: &str,
        header: &Header<'_>,
        connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        let name = FeatureName::new(feature)?;
        let to = destination(to_host, to_domain, method)?;
        let of = [("domain", domain), ("feature", name.as_str())];
        self.access
            .sender(connection, header, Verb::Move, &of)
            .await?;
        let job = self.api.migrate(domain, &name, to).await?;
        let path = self.moves.add(connection, &job).await?;
        Ok(path.into())
    }
}

#[zbus::interface(name = "org.drover1.Manager", introspection_docs = false)]
impl Manager {
    #[zbus(out_args("hosts_json"))]
    async fn hosts(&self) -> Result<String, Error> {
        json(&self.api.hosts().await)
    }

    #[zbus(out_args("features_json"))]
    async fn features(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String, Error> {
        let mut rows = self.api.features().await;
        let secret = |r: &FeatureRow| r.spec.redacted() != r.spec;
        if rows.iter().any(secret) && !self.access.may_inspect(connection, &header).await {
            for row in &mut rows {
                row.spec = row.spec.redacted();
            }
        }
        json(&rows)
    }

    #[zbus(out_args("changed"))]
    async fn register(
        &self,
        domain: &str,
        spec_json: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String, Error> {
        let spec: FeatureSpec = serde_json::from_str(spec_json)
            .map_err(|e| Error::Invalid(format!("the definition is not valid: {e}")))?;
        spec.validate()?;
        let of = [("domain", domain), ("feature", spec.name.as_str())];
        self.access
            .sender(connection, &header, Verb::Register, &of)
            .await?;
        Ok(word(self.api.register(domain, spec).await?))
    }

    #[zbus(out_args("changed"))]
    async fn deregister(
        &self,
        domain: &str,
        feature: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String, Error> {
        let name = FeatureName::new(feature)?;
        let of = [("domain", domain), ("feature", name.as_str())];
        self.access
            .sender(connection, &header, Verb::Deregister, &of)
            .await?;
        Ok(word(self.api.deregister(domain, &name).await?))
    }

    #[zbus(out_args("changed"))]
    async fn enable(
        &self,
        domain: &str,
        feature: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String, Error> {
        let name = FeatureName::new(feature)?;
        let of = [("domain", domain), ("feature", name.as_str())];
        self.access
            .sender(connection, &header, Verb::Enable, &of)
            .await?;
        Ok(word(self.api.set_enabled(domain, &name, true).await?))
    }

    #[zbus(out_args("changed"))]
    async fn disable(
        &self,
        domain: &str,
        feature: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String, Error> {
        let name = FeatureName::new(feature)?;
        let of = [("domain", domain), ("feature", name.as_str())];
        self.access
            .sender(connection, &header, Verb::Disable, &of)
            .await?;
        Ok(word(self.api.set_enabled(domain, &name, false).await?))
    }

    #[zbus(out_args("changed"))]
    async fn set_thresholds(
        &self,
        domain: &str,
        feature: &str,
        thresholds: Vec<String>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String, Error> {
        let name = FeatureName::new(feature)?;
        let mut parsed: Vec<crate::feature::Threshold> = Vec::new();
        for text in &thresholds {
            let t = crate::threshold::parse(text)?;
            if parsed.iter().any(|p| p.resource == t.resource) {
                return Err(Error::Invalid(format!(
                    "two thresholds for {} of '{domain}/{name}': give one per resource",
                    t.resource
                )));
            }
            parsed.push(t);
        }
        let of = [("domain", domain), ("feature", name.as_str())];
        self.access
            .sender(connection, &header, Verb::Threshold, &of)
            .await?;
        Ok(word(self.api.set_thresholds(domain, &name, parsed).await?))
    }

    #[zbus(out_args("usage_json"))]
    async fn history(
        &self,
        domain: &str,
        feature: &str,
        since_ms: i64,
        until_ms: i64,
        limit: u32,
    ) -> Result<String, Error> {
        let name = FeatureName::new(feature)?;
        in_order(domain, &name, since_ms, until_ms)?;
        let limit = limit.min(MAX_POINTS) as usize;
        json(
            &self
                .api
                .history(domain, &name, since_ms, until_ms, limit)
                .await?,
        )
    }

    #[zbus(out_args("page_json"))]
    async fn history_steps(
        &self,
        domain: &str,
        feature: &str,
        since_ms: i64,
        until_ms: i64,
        step_ms: i64,
        limit: u32,
    ) -> Result<String, Error> {
        let name = FeatureName::new(feature)?;
        in_order(domain, &name, since_ms, until_ms)?;
        let query = HistoryQuery {
            since_ms,
            until_ms,
            step_ms: (step_ms >= 0).then_some(step_ms),
            limit: limit.min(MAX_STEPS) as usize,
        };
        json(&self.api.history_steps(domain, &name, query).await?)
    }

    #[zbus(out_args("forecast_json"))]
    async fn forecast(&self, domain: &str, feature: &str) -> Result<String, Error> {
        let name = FeatureName::new(feature)?;
        json(&self.api.forecast(domain, &name).await?)
    }

    #[zbus(out_args("plan_json"))]
    async fn plan(&self, domain: &str, feature: &str) -> Result<String, Error> {
        let name = FeatureName::new(feature)?;
        json(&self.api.plan(domain, &name).await?)
    }

    #[zbus(out_args("check_json"))]
    async fn check(
        &self,
        domain: &str,
        feature: &str,
        to_host: &str,
        to_domain: &str,
    ) -> Result<String, Error> {
        let name = FeatureName::new(feature)?;
        let to = destination(to_host, to_domain, "")?;
        json(&self.api.check(domain, &name, to).await?)
    }

    #[zbus(out_args("rehearsal_json"))]
    async fn rehearse(
        &self,
        domain: &str,
        feature: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String, Error> {
        let name = FeatureName::new(feature)?;
        let of = [("domain", domain), ("feature", name.as_str())];
        // The feature stands still for it, as in a move.
        self.access
            .sender(connection, &header, Verb::Move, &of)
            .await?;
        json(&self.api.rehearse(domain, &name).await?)
    }

    #[zbus(out_args("job"))]
    async fn migrate(
        &self,
        domain: &str,
        feature: &str,
        to_host: &str,
        to_domain: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        self.begin(
            domain,
            feature,
            (to_host, to_domain),
            "",
            &header,
            connection,
        )
        .await
    }

    #[zbus(out_args("job"))]
    #[allow(
        clippy::too_many_arguments,
        reason = "one per argument of the D-Bus method"
    )]
    async fn migrate_by(
        &self,
        domain: &str,
        feature: &str,
        to_host: &str,
        to_domain: &str,
        method: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        let to = (to_host, to_domain);
        self.begin(domain, feature, to, method, &header, connection)
            .await
    }

    #[zbus(out_args("jobs_json"))]
    async fn jobs(&self) -> Result<String, Error> {
        json(&self.api.jobs().await)
    }

    #[zbus(out_args("answer"))]
    async fn guest_install(
        &self,
        domain: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String, Error> {
        let of = [("domain", domain)];
        self.access
            .sender(connection, &header, Verb::GuestInstall, &of)
            .await?;
        Ok(self.api.guest_install(domain).await?)
    }

    #[zbus(out_args("answer"))]
    async fn guest_remove(
        &self,
        domain: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String, Error> {
        let of = [("domain", domain)];
        self.access
            .sender(connection, &header, Verb::GuestRemove, &of)
            .await?;
        Ok(self.api.guest_remove(domain).await?)
    }

    #[zbus(out_args("reloaded_json"))]
    async fn reload(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String, Error> {
        self.access
            .sender(connection, &header, Verb::Reload, &[])
            .await?;
        json(&self.api.reload().await?)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> &'static str {
        self.version
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn host_name(&self) -> &str {
        &self.host_name
    }

    #[zbus(signal)]
    pub(super) async fn breach(
        emitter: &SignalEmitter<'_>,
        domain: &str,
        feature: &str,
        what: &str,
        active: bool,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    pub(super) async fn decision(
        emitter: &SignalEmitter<'_>,
        domain: &str,
        feature: &str,
        outcome: &str,
        reason: &str,
        plan_json: &str,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    pub(super) async fn move_progress(
        emitter: &SignalEmitter<'_>,
        job: ObjectPath<'_>,
        json: &str,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    pub(super) async fn move_ended(
        emitter: &SignalEmitter<'_>,
        job: ObjectPath<'_>,
        result: &str,
        reason: &str,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    pub(super) async fn feature_changed(
        emitter: &SignalEmitter<'_>,
        domain: &str,
        feature: &str,
        what: &str,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    pub(super) async fn instance_changed(
        emitter: &SignalEmitter<'_>,
        domain: &str,
        what: &str,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    pub(super) async fn peer_changed(
        emitter: &SignalEmitter<'_>,
        host: &str,
        what: &str,
    ) -> zbus::Result<()>;
}
