//! The system bus service `org.drover1` (edge).
//!
//! ```text
//! /org/drover1                 org.drover1.Manager, org.freedesktop.DBus.ObjectManager
//! /org/drover1/move/ID         org.drover1.Move, one per move of this run
//! /org/drover1/host/...        hosts, instances and features: see [`objects`]
//! ```
//!
//! Structured data crosses the bus as JSON of the types in [`crate::api`], [`crate::feature`],
//! [`crate::host`] and [`crate::usage`]; simple things are plain D-Bus types. Errors are D-Bus
//! errors `org.drover1.Error.NAME` ([`error::Error`]). `packaging/dbus/org.drover1.xml` is the
//! contract; a test compares it with what is served.
//!
//! Anyone may read, but for secrets; who may change is decided by [`access::Access`]. Objects are registered
//! before the name is taken, so that whoever sees the name finds the objects.

pub mod access;
pub mod client;
mod decisions;
pub mod error;
mod manager;
mod moves;
pub mod objects;
mod polkit;
mod pump;

use std::sync::Arc;

use zbus::connection::Builder;
use zbus::fdo::{ObjectManager, RequestNameFlags, RequestNameReply};
use zbus::{Connection, ObjectPath};

use crate::api::Api;

pub use access::{Access, Verb};

/// Well-known name.
pub const NAME: &str = "org.drover1";
/// The manager's object.
pub const PATH: &str = "/org/drover1";
/// Interface of the manager's object.
pub const MANAGER: &str = "org.drover1.Manager";
/// Interface of decisions, on the manager's object.
pub const DECISIONS: &str = "org.drover1.Decisions";
/// Interface of a move's object.
pub const MOVE: &str = "org.drover1.Move";

/// Why the service could not start.
#[derive(Debug, thiserror::Error)]
pub enum DbusError {
    /// No bus there, or it refused the connection.
    #[error("cannot connect to the {bus}: {source}; is dbus.service running?")]
    Connect {
        /// Which bus.
        bus: String,
        /// Cause.
        #[source]
        source: zbus::Error,
    },
    /// An object or the event stream could not be set up.
    #[error("cannot set up the objects of {NAME} on the bus: {0}")]
    Objects(#[source] zbus::Error),
    /// The bus' policy does not let this process own the name.
    #[error(
        "the bus does not let this process own {NAME}: {0}; see whether org.drover1.conf is in /usr/share/dbus-1/system.d and droverd runs as root"
    )]
    Policy(#[source] zbus::Error),
    /// Another process owns the name.
    #[error("{NAME} is taken on the bus: another droverd runs; see \"busctl status {NAME}\"")]
    Taken,
}

/// The running service. It ends when dropped: signals stop, the connection closes, the name is
/// free again.
#[derive(Debug)]
pub struct Service {
    pump: tokio::task::JoinHandle<()>,
    connection: Connection,
}

impl Service {
    /// Resolves when the bus closed the connection; the service is of no use then.
    pub async fn closed(&self) {
        self.connection.closed().await;
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.pump.abort();
        // The connection is closed by a task of its own, for closing is asynchronous; without a
        // runtime the last clone that goes closes it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let connection = self.connection.clone();
            runtime.spawn(async move {
                let released = connection.release_name(NAME).await;
                tracing::debug!(?released, "left the bus");
                let closed = connection.close().await;
                tracing::trace!(?closed, "closed the bus connection");
            });
        }
    }
}

/// Serves `api` as `org.drover1`; changes are for root and whom polkit lets. `address` is a D-Bus address; `None` is
/// the system bus (`DBUS_SYSTEM_BUS_ADDRESS` honoured). Needs a tokio runtime.
pub async fn serve(
    api: Arc<dyn Api>,
    host_name: &str,
    address: Option<&str>,
) -> Result<Service, DbusError> {
    serve_with(api, host_name, address, Access::polkit()).await
}

/// Like [`serve`], with another rule for who may change things.
pub async fn serve_with(
    api: Arc<dyn Api>,
    host_name: &str,
    address: Option<&str>,
    access: Access,
) -> Result<Service, DbusError> {
    let connection = connect(address, None).await?;
    // Subscribed before the jobs are read, so that no change falls between the two.
    let events = api.events();
    let moves = Arc::new(moves::Moves::new(Arc::clone(&api), access.clone()));
    let server = connection.object_server();
    server
        .at(PATH, ObjectManager)
        .await
        .map_err(DbusError::Objects)?;
    let decisions = decisions::Decisions {
        api: Arc::clone(&api),
        access: access.clone(),
        moves: Arc::clone(&moves),
    };
    server
        .at(PATH, decisions)
        .await
        .map_err(DbusError::Objects)?;
    let manager = manager::Manager::new(
        Arc::clone(&api),
        host_name.to_owned(),
        access,
        Arc::clone(&moves),
    );
    server.at(PATH, manager).await.map_err(DbusError::Objects)?;
    for job in api.jobs().await {
        if job.result.is_none() {
            moves
                .update(&connection, &job)
                .await
                .map_err(DbusError::Objects)?;
        }
    }
    let objects = objects::Objects::new(Arc::clone(&api), host_name);
    objects
        .refresh(&connection)
        .await
        .map_err(DbusError::Objects)?;
    let pump = pump::Pump {
        connection: connection.clone(),
        api,
        moves,
        objects,
    };
    let pump = tokio::spawn(pump.run(events));
    let service = Service { pump, connection };
    match service
        .connection
        .request_name_with_flags(NAME, RequestNameFlags::DO_NOT_QUEUE)
        .await
    {
        Ok(RequestNameReply::PrimaryOwner | RequestNameReply::AlreadyOwner) => Ok(service),
        Ok(_) | Err(zbus::Error::NameTaken) => Err(DbusError::Taken),
        Err(e) => Err(DbusError::Policy(e)),
    }
}

/// Connects to the bus at `address`, or to the system bus. `timeout` limits every method call.
pub async fn connect(
    address: Option<&str>,
    timeout: Option<std::time::Duration>,
) -> Result<Connection, DbusError> {
    let mut builder = match address {
        Some(a) => Builder::address(a),
        None => Builder::system(),
    };
    if let Some(t) = timeout {
        builder = builder.method_timeout(t);
    }
    builder.build().await.map_err(|source| DbusError::Connect {
        bus: match address {
            Some(a) => format!("bus at {a}"),
            None => "system bus".to_owned(),
        },
        source,
    })
}

/// The object path of a move; dashes of the identifier become underscores. An error when the
/// identifier has anything but letters, digits and dashes.
pub fn move_path(id: &str) -> Result<ObjectPath<'static>, zbus::Error> {
    ObjectPath::try_from(format!("{PATH}/move/{}", id.replace('-', "_")))
        .map_err(|_| zbus::Error::Failure(format!("move identifier '{id}' is not valid")))
}

/// The identifier behind a move's object path.
pub fn move_id(path: &str) -> Option<String> {
    let id = path.strip_prefix(PATH)?.strip_prefix("/move/")?;
    Some(id.replace('_', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let p = move_path("0a1b-2c3d-44").unwrap();
        assert_eq!(p.as_str(), "/org/drover1/move/0a1b_2c3d_44");
        assert_eq!(move_id(p.as_str()).unwrap(), "0a1b-2c3d-44");
        assert!(move_path("../x").is_err());
        assert_eq!(move_id("/org/drover1"), None);
    }
}
