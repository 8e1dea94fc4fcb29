//! Connections of their own for calls that may hang: libvirtd serves five requests of one
//! connection at a time. A connection serves one call at a time and is kept for the next; one
//! whose call hangs is nobody else's loss.

use std::sync::{Arc, Mutex, PoisonError};

use virt::connect::Connect;

use super::HypervisorError;

/// Connections kept open for later calls.
const KEPT: usize = 4;

/// Idle connections to one host. Cheap to clone.
#[derive(Clone)]
pub(super) struct Pool {
    uri: String,
    idle: Arc<Mutex<Vec<Connect>>>,
}

impl Pool {
    /// Connections to the host at `uri`.
    pub fn new(uri: &str) -> Self {
        Self {
            uri: uri.to_owned(),
            idle: Arc::default(),
        }
    }

    /// Runs `f` with a connection. Blocks.
    pub fn with<T>(
        &self,
        f: impl FnOnce(&Connect) -> Result<T, HypervisorError>,
    ) -> Result<T, HypervisorError> {
        let conn = self.take()?;
        let result = f(&conn);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < KEPT {
            idle.push(conn);
        }
        result
    }

    fn take(&self) -> Result<Connect, HypervisorError> {
        loop {
            let kept = self
                .idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop();
            match kept {
                Some(conn) if matches!(conn.is_alive(), Ok(true)) => return Ok(conn),
                Some(_) => {}
                None => {
                    return super::connection::open(&self.uri).map_err(|reason| {
                        HypervisorError::NotConnected {
                            uri: self.uri.clone(),
                            reason,
                        }
                    });
                }
            }
        }
    }
}
