//! The service `org.drover1` on a private bus, in front of a fake daemon.
#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::many_single_char_names,
    reason = "short names of one test each"
)]

mod calls;
#[path = "../dbus_support/mod.rs"]
mod dbus_support;
mod moves;
mod objects;
mod polkit;
mod service;
mod support;
