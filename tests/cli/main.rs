//! `drover` end to end: the program itself, on a private bus, in front of a fake daemon.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod config;
#[path = "../dbus_support/mod.rs"]
mod dbus_support;
mod decisions;
mod features;
mod interactive;
mod moves;
mod progress;
mod schema;
mod support;
mod surroundings;
