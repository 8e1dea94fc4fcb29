//! QEMU guest agent commands.
//!
//! They have connections of their own: libvirtd serves five requests of one connection at a time,
//! so a few guests with a hung agent would otherwise hold up everything else. A connection serves
//! one command at a time and is kept for the next.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use virt::connect::Connect;

use super::HypervisorError;
use super::worker::Lane;

/// Most agent commands under way at a time, each of another domain.
const WORKERS: usize = 16;
/// Connections kept open for later commands.
const KEPT: usize = 4;
/// Longest time an agent command may be given, seconds.
const MAX_TIMEOUT_S: u32 = 600;

/// Guest agent access.
pub(super) struct Agents {
    uri: String,
    lane: Lane,
    idle: Arc<Mutex<Vec<Connect>>>,
}

impl Agents {
    /// Agents of the host at `uri`.
    pub fn new(uri: &str) -> Self {
        Self {
            uri: uri.to_owned(),
            lane: Lane::new(WORKERS),
            idle: Arc::default(),
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
        let (uri, idle) = (self.uri.clone(), self.idle.clone());
        let (owned, text) = (domain.to_owned(), command.to_string());
        let limit = Duration::from_secs(u64::from(timeout_s) + 6);
        let answer = self
            .lane
            .run(Some(domain), &what, limit, move || {
                let conn = take(&idle, &uri)?;
                let result = conn
                    .lookup_domain_by_name(&owned)
                    .and_then(|d| d.qemu_agent_command(&text, timeout_s.cast_signed(), 0))
                    .map_err(|e| HypervisorError::from_agent(&owned, &e));
                give_back(&idle, conn);
                result
            })
            .await?;
        let bad = |message: String| HypervisorError::Answer {
            what: what.clone(),
            message,
        };
        let mut answer: Value = serde_json::from_str(&answer).map_err(|e| bad(e.to_string()))?;
        answer
            .get_mut("return")
            .map(Value::take)
            .ok_or_else(|| bad("it has no 'return'".into()))
    }
}

fn take(idle: &Mutex<Vec<Connect>>, uri: &str) -> Result<Connect, HypervisorError> {
    loop {
        let kept = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match kept {
            Some(conn) if matches!(conn.is_alive(), Ok(true)) => return Ok(conn),
            Some(_) => {}
            None => {
                return super::connection::open(uri).map_err(|reason| {
                    HypervisorError::NotConnected {
                        uri: uri.to_owned(),
                        reason,
                    }
                });
            }
        }
    }
}

fn give_back(idle: &Mutex<Vec<Connect>>, conn: Connect) {
    let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
    if idle.len() < KEPT {
        idle.push(conn);
    }
}
