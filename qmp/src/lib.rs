//! A small async QMP client: typed, for queries.
//!
//! ```text
//! Client::connect -> Client<Greeted> --negotiate--> Client<Ready> --query(&QueryStatus)--> Status
//!                          `- events -> channel
//! ```
//!
//! Which commands can be sent is a closed list of types ([`command`]); none of them changes the
//! guest, and [`Client`] sends queries only. Opening a monitor of one's own is nevertheless the administrator's decision: libvirt
//! holds the domain's only QMP socket, and a second one needs `qemu:commandline` in the domain,
//! which libvirt marks as tainted.
//!
//! - [`codec`] - lines of JSON, bounded; pure.
//! - [`command`] - commands and answers.
//! - [`event`] - events.
//! - [`client`] - the connection.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod client;
pub mod codec;
pub mod command;
mod error;
pub mod event;

pub use client::{Client, Greeted, Ready, Version};
pub use command::Command;
pub use error::QmpError;
pub use event::{Event, EventKind};
