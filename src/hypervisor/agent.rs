//! QEMU guest agent commands.
//!
//! They have connections of their own, so that guests with a hung agent hold up nothing else.

use std::time::Duration;

use serde_json::Value;

use super::HypervisorError;
use super::pool::Pool;
use super::worker::Lane;

/// Most agent commands under way at a time, each of another domain.
const WORKERS: usize = 16;
/// Longest time an agent command may be given, seconds.
const MAX_TIMEOUT_S: u32 = 600;

/// Guest agent access.
pub(super) struct Agents {
    pool: Pool,
    lane: Lane,
}

impl Agents {
    /// Agents of the host at `uri`.
    pub fn new(uri: &str) -> Self {
        Self {
            pool: Pool::new(uri),
            lane: Lane::new(WORKERS),
        }
    }

    /// Sends `command` and gives what the agent returned. libvirt waits `timeout_s` seconds; the
    /// caller a little longer, waiting for an earlier command of the same domain included.
    pub async fn command(
        &self,
        domain: &str,
        command: &Value,
        timeout_s: u32,
    ) -> Result<Value, HypervisorError> {
        let timeout_s = timeout_s.clamp(1, MAX_TIMEOUT_S);
        let name = command
            .get("execute")
            .and_then(Value::as_str)
            .unwrap_or("guest agent command");
        let what = format!("{name} in {domain}");
        let pool = self.pool.clone();
        let (owned, text) = (domain.to_owned(), command.to_string());
        let limit = Duration::from_secs(u64::from(timeout_s) + 6);
        let answer = self
            .lane
            .run(Some(domain), &what, limit, move || {
                pool.with(|conn| {
                    conn.lookup_domain_by_name(&owned)
                        .and_then(|d| d.qemu_agent_command(&text, timeout_s.cast_signed(), 0))
                        .map_err(|e| HypervisorError::from_agent(&owned, &e))
                })
            })
            .await?;
        returned(&what, &answer)
    }
}

/// What an agent's answer to `what` holds.
pub(super) fn returned(what: &str, answer: &str) -> Result<Value, HypervisorError> {
    let bad = |message: String| HypervisorError::Answer {
        what: what.to_owned(),
        message,
    };
    let mut answer: Value = serde_json::from_str(answer).map_err(|e| bad(e.to_string()))?;
    answer
        .get_mut("return")
        .map(Value::take)
        .ok_or_else(|| bad("it has no 'return'".into()))
}
