//! Metrics for Prometheus and whatever else reads OpenMetrics text, over HTTP (edge).
//!
//! ```text
//! Api (state now) + counters (since the start) -> families (pure) -> text -> server
//! ```
//!
//! Off unless `[metrics] listen` is set. Labels are bounded: features up to a configured number,
//! peers as configured, everything else from fixed sets.

pub mod counters;
mod families;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod server;
mod text;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;

use crate::api::Api;
use crate::config::MetricsSection;

pub use counters::Counters;
pub use families::{Features, Snapshot, render};

/// Why there are no metrics.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; correct metrics.listen in drover.toml")]
    Listen {
        /// Address.
        address: SocketAddr,
        /// Cause.
        source: std::io::Error,
    },
}

/// The endpoint, bound and not yet serving.
#[derive(Debug)]
pub struct Endpoint {
    listener: TcpListener,
    max_features: usize,
}

impl Endpoint {
    /// Binds the configured address.
    pub async fn bind(section: &MetricsSection) -> Result<Self, MetricsError> {
        let address = section.listen;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| MetricsError::Listen { address, source })?;
        tracing::info!(%address, "metrics are served");
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "metrics can be read by everyone who reaches this address");
        }
        Ok(Self {
            listener,
            max_features: section.max_features,
        })
    }

    /// Serves `/metrics` until dropped. `peers` are the configured ones.
    pub async fn serve(self, api: Arc<dyn Api>, counters: Arc<Counters>, peers: Vec<String>) {
        let max_features = self.max_features;
        let peers: Arc<[String]> = peers.into();
        let page = move || {
            let (api, counters, peers) = (api.clone(), counters.clone(), peers.clone());
            async move {
                let hosts = api.outlines().await;
                let mut features = Features::new(max_features);
                api.each_feature(&mut |row| features.add(row)).await;
                render(&Snapshot {
                    hosts: &hosts,
                    features: &features,
                    peers: &peers,
                    counts: counters.now(),
                })
            }
        };
        server::serve(self.listener, page).await;
    }
}
