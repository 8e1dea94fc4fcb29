//! One configured peer: its present control connection, and calls on it.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use super::server::{GUID, WireError};
use super::socket::StreamSocket;
use super::{INTERFACE, PATH, PeerError, RefusalKind};
use crate::host::HostState;
use crate::transport::{Cut, Link, Pki, Route, stream};

/// What the tasks of all peers share.
pub(super) struct Shared {
    /// Certificates, where a peer is reached by TLS.
    pub pki: Option<Pki>,
    pub refresh: Duration,
    pub timeout: Duration,
    pub slots: HashMap<String, Arc<Slot>>,
    /// In the order of the configuration.
    pub names: Vec<String>,
}

/// One configured peer.
pub(super) struct Slot {
    pub name: String,
    pub route: Route,
    pub groups: Vec<String>,
    pub calls: Arc<Semaphore>,
    /// Bulk connections to the peer, for cutting.
    pub bulks: Mutex<Vec<Weak<Cut>>>,
    /// The connection, or why there is none.
    pub state: Mutex<Result<Arc<Control>, String>>,
}

/// A control connection; `keep` cuts it when it is done with it.
pub(super) struct Control {
    pub bus: zbus::Connection,
    pub cut: Cut,
}

impl Slot {
    pub fn state(&self) -> MutexGuard<'_, Result<Arc<Control>, String>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set(&self, state: Result<Arc<Control>, String>) {
        *self.state() = state;
    }

    pub fn bulks(&self) -> MutexGuard<'_, Vec<Weak<Cut>>> {
        self.bulks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the bulk connections to the peer.
    pub fn cut_bulks(&self) {
        for bulk in self.bulks().drain(..) {
            if let Some(cut) = bulk.upgrade() {
                cut.cut();
            }
        }
    }

    pub fn unreachable(&self, reason: impl Into<String>) -> PeerError {
        PeerError::Unreachable {
            host: self.name.clone(),
            reason: reason.into(),
        }
    }

    pub fn protocol(&self, message: impl Into<String>) -> PeerError {
        PeerError::Protocol {
            host: self.name.clone(),
            message: message.into(),
        }
    }

    /// Calls a method of `control`. A call that was sent is never torn: it runs in a task of its
    /// own, and giving up after `timeout` leaves only that task behind, until the answer comes or
    /// the connection ends.
    pub async fn call<B, T>(
        &self,
        control: Arc<Control>,
        method: &'static str,
        body: B,
        timeout: Duration,
        permit: Option<tokio::sync::OwnedSemaphorePermit>,
    ) -> Result<T, PeerError>
    where
        B: serde::Serialize + zbus::zvariant::DynamicType + Send + Sync + 'static,
        T: for<'de> zbus::zvariant::DynamicDeserialize<'de>,
    {
        let task = tokio::spawn(async move {
            let _permit = permit;
            control
                .bus
                .call_method(None::<&str>, PATH, Some(INTERFACE), method, &body)
                .await
        });
        match tokio::time::timeout(timeout, task).await {
            Err(_) => Err(PeerError::Timeout {
                host: self.name.clone(),
                what: method.to_owned(),
                after: timeout,
            }),
            Ok(Err(e)) => Err(self.protocol(format!("the call failed: {e}"))),
            Ok(Ok(Err(e))) => Err(self.explain(e)),
            Ok(Ok(Ok(message))) => message
                .body()
                .deserialize()
                .map_err(|e| self.protocol(format!("answer to {method}: {e}"))),
        }
    }

    fn explain(&self, e: zbus::Error) -> PeerError {
        let (kind, message) = match WireError::from(e) {
            WireError::ZBus(zbus::Error::InputOutput(e)) => {
                return self.unreachable(stream::explain(&e));
            }
            WireError::ZBus(e) => return self.protocol(e.to_string()),
            WireError::Refused(m) => (RefusalKind::Refused, m),
            WireError::Busy(m) => (RefusalKind::Busy, m),
            WireError::NotFound(m) => (RefusalKind::NotFound, m),
            WireError::Invalid(m) => (RefusalKind::Invalid, m),
            WireError::Timeout(m) => (RefusalKind::Timeout, m),
            WireError::Failed(m) => (RefusalKind::Failed, m),
        };
        PeerError::Refused {
            host: self.name.clone(),
            kind,
            message,
        }
    }

    pub fn parse<T: DeserializeOwned>(&self, method: &str, text: &str) -> Result<T, PeerError> {
        serde_json::from_str(text).map_err(|e| self.protocol(format!("answer to {method}: {e}")))
    }

    /// Parses a state and checks that the peer speaks of itself.
    pub fn parse_state(&self, text: &str) -> Result<HostState, PeerError> {
        let state =
            state_of(text).map_err(|e| self.protocol(format!("answer to HostState: {e}")))?;
        if state.name == self.name {
            Ok(state)
        } else {
            Err(self.protocol(format!(
                "it calls itself '{}'; host.name there must be the name configured here",
                state.name
            )))
        }
    }
}

/// Largest number that a state may have: beyond any counter, rate or time, and small enough that
/// what decisions make of it stays a number.
const MOST: f64 = 1e18;

/// Reads a state. Decisions calculate with its numbers, so those that cannot be are an error.
pub(super) fn state_of(text: &str) -> Result<HostState, String> {
    fn odd(value: &serde_json::Value) -> Option<f64> {
        match value {
            serde_json::Value::Number(n) => n.as_f64().filter(|n| n.abs() > MOST),
            serde_json::Value::Array(all) => all.iter().find_map(odd),
            serde_json::Value::Object(all) => all.values().find_map(odd),
            _ => None,
        }
    }
    let value: serde_json::Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if let Some(number) = odd(&value) {
        return Err(format!("a number that cannot be: {number:e}"));
    }
    serde_json::from_value(value).map_err(|e| e.to_string())
}

/// Makes a stream into a control connection.
pub(super) async fn control(link: Link) -> Result<Control, zbus::Error> {
    let Link { stream, cut } = link;
    let bus = zbus::connection::Builder::authenticated_socket(StreamSocket(stream), GUID)
        .p2p()
        .max_queued(NonZeroUsize::MIN)
        .build()
        .await?;
    Ok(Control { bus, cut })
}
