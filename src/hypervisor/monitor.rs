//! Questions to QEMU's monitor, through libvirt's own connection to it. libvirt marks a domain that
//! was asked so as tainted (`custom-monitor`) until it is shut off.
//!
//! What can be sent is a closed list of types ([`drover_qmp::command`]): queries, which change
//! nothing, and a setting of what QEMU counts. Connections and workers are apart from all others, so that a hung QEMU
//! holds up nothing else.

use std::time::Duration;

use drover_qmp::command::{self, Command, Query, Setting};

use super::HypervisorError;
use super::pool::Pool;
use super::worker::Lane;

/// Questions under way at a time, each to another domain.
const WORKERS: usize = 4;
/// Longest wait for an answer.
const LIMIT: Duration = Duration::from_secs(10);

/// Monitors of the domains.
pub(super) struct Monitors {
    pool: Pool,
    lane: Lane,
}

impl Monitors {
    /// Monitors of the host at `uri`.
    pub fn new(uri: &str) -> Self {
        Self {
            pool: Pool::new(uri),
            lane: Lane::new(WORKERS),
        }
    }

    /// Asks.
    pub async fn query<Q: Query>(
        &self,
        domain: &str,
        query: &Q,
    ) -> Result<Q::Answer, HypervisorError> {
        self.send(domain, query).await
    }

    /// Sets what QEMU counts.
    pub async fn set<S: Setting>(
        &self,
        domain: &str,
        setting: &S,
    ) -> Result<S::Answer, HypervisorError> {
        self.send(domain, setting).await
    }

    async fn send<C: Command>(
        &self,
        domain: &str,
        command: &C,
    ) -> Result<C::Answer, HypervisorError> {
        let what = format!("{} of {domain}", C::NAME);
        let (pool, owned, text) = (self.pool.clone(), domain.to_owned(), command::text(command));
        let asked = what.clone();
        let answer = self
            .lane
            .run(Some(domain), &what, LIMIT, move || {
                pool.with(|conn| {
                    conn.lookup_domain_by_name(&owned)
                        .and_then(|d| d.qemu_monitor_command(&text, 0))
                        .map_err(|e| HypervisorError::from_virt(&asked, Some(&owned), &e))
                })
            })
            .await?;
        command::answer::<C>(&answer).map_err(|e| HypervisorError::Answer {
            what,
            message: e.to_string(),
        })
    }
}
