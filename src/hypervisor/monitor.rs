//! Questions to QEMU's monitor, through libvirt's own connection to it. libvirt marks a domain that
//! was asked so as tainted (`custom-monitor`) until it is shut off.
//!
//! What can be sent is what [`drover_qmp::command::Query`] is for: a closed list of types, none of
//! which changes anything. Connections and workers are apart from all others, so that a hung QEMU
//! holds up nothing else.

use std::time::Duration;

use drover_qmp::command::{self, Query};

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
        let what = format!("{} of {domain}", Q::NAME);
        let (pool, owned, text) = (self.pool.clone(), domain.to_owned(), command::text(query));
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
        command::answer::<Q>(&answer).map_err(|e| HypervisorError::Answer {
            what,
            message: e.to_string(),
        })
    }
}
