//! Drover meters *features* (named workloads inside libvirt guests), predicts which host serves
//! them best and live-migrates a single feature to a guest on another host.
//!
//! # How data flows
//!
//! ```text
//! guest cgroups -> helper (drover-guest) -> wire::guest frames -> guest::Session -> sample
//!   -> usage (rates) -> history (sled) and threshold/forecast/affinity (pure)
//! peers' host state -> decision (pure): who moves where, and why
//! decision -> moving (pure state machines) -> driver: actions on guests and peers
//! ```
//!
//! # Layers
//!
//! Pure modules know no I/O, no clock and no async runtime; time is an argument. Edges import
//! them, never the other way round (`tests/layering.rs` keeps it so).
#![cfg_attr(test, allow(clippy::unwrap_used))]

// Pure core.
pub mod counters;
pub mod feature;
pub mod rules;
pub mod sample;
pub mod wire;

#[cfg(feature = "daemon")]
pub mod affinity;
#[cfg(feature = "daemon")]
pub mod api;
#[cfg(feature = "daemon")]
pub mod attribution;
#[cfg(feature = "daemon")]
pub mod columns;
#[cfg(feature = "daemon")]
pub mod decision;
#[cfg(feature = "daemon")]
pub mod forecast;
#[cfg(feature = "daemon")]
pub mod host;
#[cfg(feature = "daemon")]
pub mod moving;
#[cfg(feature = "daemon")]
pub mod qemu;
#[cfg(feature = "daemon")]
pub mod recent;
#[cfg(feature = "daemon")]
pub mod rollup;
#[cfg(feature = "daemon")]
pub mod threshold;
#[cfg(feature = "daemon")]
pub mod usage;

// Edges of the daemon.
#[cfg(feature = "daemon")]
pub mod cli;
#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
pub mod daemon;
#[cfg(feature = "daemon")]
pub mod dbus;
#[cfg(feature = "daemon")]
pub mod driver;
#[cfg(feature = "daemon")]
pub mod feature_file;
#[cfg(feature = "daemon")]
pub mod guest;
#[cfg(feature = "daemon")]
pub mod history;
#[cfg(feature = "daemon")]
pub mod hypervisor;
#[cfg(feature = "daemon")]
pub mod log;
#[cfg(feature = "daemon")]
pub mod metrics;
#[cfg(feature = "daemon")]
pub mod peer;
#[cfg(feature = "daemon")]
pub mod store;
#[cfg(feature = "daemon")]
pub mod toml_text;
#[cfg(feature = "daemon")]
pub mod transport;

// Edge inside the guest.
#[cfg(feature = "guest")]
pub mod helper;
