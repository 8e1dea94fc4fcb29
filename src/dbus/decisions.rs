//! `org.drover1.Decisions`, on the manager's object.

use std::sync::Arc;

use zbus::message::Header;
use zbus::{Connection, OwnedObjectPath};

use super::access::{Access, Verb};
use super::error::{Error, json};
use super::moves::Moves;
use crate::api::Api;
use crate::feature::FeatureName;

/// The interface.
pub(super) struct Decisions {
    pub(super) api: Arc<dyn Api>,
    pub(super) access: Access,
    pub(super) moves: Arc<Moves>,
}

#[zbus::interface(name = "org.drover1.Decisions", introspection_docs = false)]
impl Decisions {
    #[zbus(out_args("score_json"))]
    async fn score(&self, domain: &str, feature: &str) -> Result<String, Error> {
        let name = FeatureName::new(feature)?;
        json(&self.api.score(domain, &name).await?)
    }

    #[zbus(out_args("matrix_json"))]
    async fn matrix(&self, feature: &str) -> Result<String, Error> {
        let name = match feature {
            "" => None,
            text => Some(FeatureName::new(text)?),
        };
        json(&self.api.matrix(name.as_ref()).await?)
    }

    #[zbus(out_args("decisions_json"))]
    async fn list(&self) -> Result<String, Error> {
        json(&self.api.decisions().await)
    }

    #[zbus(out_args("decision_json"))]
    async fn show(&self, id: &str) -> Result<String, Error> {
        json(&self.api.decision(id).await?)
    }

    #[zbus(out_args("replay_json"))]
    async fn replay(&self, id: &str) -> Result<String, Error> {
        json(&self.api.replay(id).await?)
    }

    #[zbus(out_args("job"))]
    async fn approve(
        &self,
        id: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        let row = self.api.decision(id).await?.row;
        let of = [
            ("domain", row.domain.as_str()),
            ("feature", row.feature.as_str()),
        ];
        self.access
            .sender(connection, &header, Verb::Move, &of)
            .await?;
        let job = self.api.approve(id).await?;
        let path = self.moves.add(connection, &job).await?;
        Ok(path.into())
    }

    #[zbus(out_args("status_json"))]
    async fn drain(
        &self,
        on: bool,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String, Error> {
        self.access
            .sender(connection, &header, Verb::Drain, &[])
            .await?;
        json(&self.api.set_drain(on).await?)
    }

    #[zbus(out_args("status_json"))]
    async fn drain_status(&self) -> Result<String, Error> {
        json(&self.api.drain_status().await)
    }
}
