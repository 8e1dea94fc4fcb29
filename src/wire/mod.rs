//! Wire formats, bounds-checked, without I/O.
//!
//! - [`frame`]: the framing of both virtio-serial ports.
//! - [`guest`]: messages between droverd and the helper on the control port.
//! - [`bulk`]: checkpoint images on the bulk port and between hosts.
//! - `packed`: messages that travel compressed between hosts.
//! - [`peer`]: messages between daemons.

pub mod bulk;
pub mod frame;
pub mod guest;
#[cfg(feature = "daemon")]
pub mod packed;
pub mod peer;
pub mod state;
pub mod sum;
