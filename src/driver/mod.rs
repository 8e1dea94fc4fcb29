//! Drivers (edge): perform what the pure move machines ask for, and feed the outcome back.
//!
//! One task owns each move on the source ([`source`]); on the target one mutex per move does
//! ([`target`]), since every step there answers a request of the source.

pub mod queue;
pub mod relay;
pub mod source;
pub mod steps;
pub mod target;
