//! Two daemons' peer halves on 127.0.0.1, with real certificates (made by the openssl command)
//! and a service that stands in for the daemon.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "peer/calls.rs"]
mod calls;
#[path = "peer/hostile.rs"]
mod hostile;
#[path = "peer/links.rs"]
mod links;
#[path = "peer/ssh.rs"]
mod ssh;
#[path = "peer/support.rs"]
mod support;
