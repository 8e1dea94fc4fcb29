//! Proxies for the interfaces of [`super`], as `drover` and other Rust programs use them. What
//! changes something lets polkit ask for a password; where nobody can be asked, it is refused.

use zbus::OwnedObjectPath;

/// `org.drover1.Manager`. Texts named `*_json` are JSON of the types in [`crate::api`].
#[zbus::proxy(
    interface = "org.drover1.Manager",
    default_service = "org.drover1",
    default_path = "/org/drover1"
)]
pub trait Manager {
    /// JSON list of [`crate::host::HostState`], this host first.
    fn hosts(&self) -> zbus::Result<String>;
    /// JSON list of [`crate::api::FeatureRow`].
    fn features(&self) -> zbus::Result<String>;
    /// Registers a JSON [`crate::feature::FeatureSpec`]; `done` or `already`.
    #[zbus(allow_interactive_auth)]
    fn register(&self, domain: &str, spec_json: &str) -> zbus::Result<String>;
    /// `done` or `already`.
    #[zbus(allow_interactive_auth)]
    fn deregister(&self, domain: &str, feature: &str) -> zbus::Result<String>;
    /// `done` or `already`.
    #[zbus(allow_interactive_auth)]
    fn enable(&self, domain: &str, feature: &str) -> zbus::Result<String>;
    /// `done` or `already`.
    #[zbus(allow_interactive_auth)]
    fn disable(&self, domain: &str, feature: &str) -> zbus::Result<String>;
    /// Thresholds in the text grammar; `done` or `already`.
    #[zbus(allow_interactive_auth)]
    fn set_thresholds(
        &self,
        domain: &str,
        feature: &str,
        thresholds: &[String],
    ) -> zbus::Result<String>;
    /// JSON list of [`crate::usage::Usage`]; times in milliseconds since the epoch.
    fn history(
        &self,
        domain: &str,
        feature: &str,
        since_ms: i64,
        until_ms: i64,
        limit: u32,
    ) -> zbus::Result<String>;
    /// JSON [`crate::api::HistoryPage`]; times and steps in milliseconds, a negative step lets
    /// Drover choose.
    fn history_steps(
        &self,
        domain: &str,
        feature: &str,
        since_ms: i64,
        until_ms: i64,
        step_ms: i64,
        limit: u32,
    ) -> zbus::Result<String>;
    /// JSON [`crate::api::FeatureForecast`].
    fn forecast(&self, domain: &str, feature: &str) -> zbus::Result<String>;
    /// JSON [`crate::api::Plan`].
    fn plan(&self, domain: &str, feature: &str) -> zbus::Result<String>;
    /// JSON [`crate::decision::Check`]; empty texts are for all hosts.
    fn check(
        &self,
        domain: &str,
        feature: &str,
        to_host: &str,
        to_domain: &str,
    ) -> zbus::Result<String>;
    /// JSON [`crate::reason::Rehearsal`].
    #[zbus(allow_interactive_auth)]
    fn rehearse(&self, domain: &str, feature: &str) -> zbus::Result<String>;
    /// Starts a move; empty texts let Drover choose. Returns the move's object path.
    #[zbus(allow_interactive_auth)]
    fn migrate(
        &self,
        domain: &str,
        feature: &str,
        to_host: &str,
        to_domain: &str,
    ) -> zbus::Result<OwnedObjectPath>;
    /// As `migrate`, by this method: `live`, `handover`, `restart`, or empty for the feature's own.
    #[zbus(allow_interactive_auth)]
    fn migrate_by(
        &self,
        domain: &str,
        feature: &str,
        to_host: &str,
        to_domain: &str,
        method: &str,
    ) -> zbus::Result<OwnedObjectPath>;
    /// JSON list of [`crate::api::Job`], newest first, those of earlier runs included.
    fn jobs(&self) -> zbus::Result<String>;
    /// Installs the helper into a running domain; a sentence.
    #[zbus(allow_interactive_auth)]
    fn guest_install(&self, domain: &str) -> zbus::Result<String>;
    /// Removes the helper; a sentence.
    #[zbus(allow_interactive_auth)]
    fn guest_remove(&self, domain: &str) -> zbus::Result<String>;

    /// Reads the configuration anew; JSON [`crate::api::Reloaded`].
    #[zbus(allow_interactive_auth)]
    fn reload(&self) -> zbus::Result<String>;

    /// droverd's version.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> zbus::Result<String>;
    /// This host's name.
    #[zbus(property(emits_changed_signal = "const"))]
    fn host_name(&self) -> zbus::Result<String>;

    /// A threshold was crossed, or is no longer.
    #[zbus(signal)]
    fn breach(&self, domain: &str, feature: &str, what: &str, active: bool) -> zbus::Result<()>;
    /// A decision was made.
    #[zbus(signal)]
    fn decision(
        &self,
        domain: &str,
        feature: &str,
        outcome: &str,
        reason: &str,
        plan_json: &str,
    ) -> zbus::Result<()>;
    /// A move made progress.
    #[zbus(signal)]
    fn move_progress(&self, job: zbus::ObjectPath<'_>, json: &str) -> zbus::Result<()>;
    /// A move ended.
    #[zbus(signal)]
    fn move_ended(&self, job: zbus::ObjectPath<'_>, result: &str, reason: &str)
    -> zbus::Result<()>;
    /// A feature changed.
    #[zbus(signal)]
    fn feature_changed(&self, domain: &str, feature: &str, what: &str) -> zbus::Result<()>;
    /// An instance changed.
    #[zbus(signal)]
    fn instance_changed(&self, domain: &str, what: &str) -> zbus::Result<()>;
    /// A peer came or went.
    #[zbus(signal)]
    fn peer_changed(&self, host: &str, what: &str) -> zbus::Result<()>;
}

/// `org.drover1.Decisions`. Texts are JSON of the types in [`crate::decision`].
#[zbus::proxy(
    interface = "org.drover1.Decisions",
    default_service = "org.drover1",
    default_path = "/org/drover1"
)]
pub trait Decisions {
    /// JSON [`crate::decision::ScoreReport`].
    fn score(&self, domain: &str, feature: &str) -> zbus::Result<String>;
    /// JSON list of [`crate::decision::Cell`]; without a feature those of this host.
    fn matrix(&self, feature: &str) -> zbus::Result<String>;
    /// JSON list of [`crate::decision::DecisionRow`], newest first.
    fn list(&self) -> zbus::Result<String>;
    /// JSON [`crate::decision::DecisionRecord`].
    fn show(&self, id: &str) -> zbus::Result<String>;
    /// JSON [`crate::decision::Replay`].
    fn replay(&self, id: &str) -> zbus::Result<String>;
    /// Begins the proposed move; its object path.
    #[zbus(allow_interactive_auth)]
    fn approve(&self, id: &str) -> zbus::Result<OwnedObjectPath>;
    /// Begins or ends to empty this host; JSON [`crate::decision::DrainStatus`].
    #[zbus(allow_interactive_auth)]
    fn drain(&self, on: bool) -> zbus::Result<String>;
    /// JSON [`crate::decision::DrainStatus`].
    fn drain_status(&self) -> zbus::Result<String>;
}

/// `org.drover1.Move`.
#[zbus::proxy(interface = "org.drover1.Move", default_service = "org.drover1")]
pub trait Move {
    /// Cancels the move before its commit.
    #[zbus(allow_interactive_auth)]
    fn abort(&self) -> zbus::Result<()>;
    /// Gives the move up also after its commit, unless the target runs the feature.
    #[zbus(allow_interactive_auth)]
    fn give_up(&self) -> zbus::Result<()>;
    /// It ended.
    #[zbus(signal)]
    fn ended(&self, result: &str, reason: &str) -> zbus::Result<()>;
    /// JSON [`crate::api::Job`].
    #[zbus(property)]
    fn json(&self) -> zbus::Result<String>;
    /// `done`, `canceled`, `timeout`, `failed`, `skipped`, or empty while it goes on.
    #[zbus(property)]
    fn result(&self) -> zbus::Result<String>;
}
