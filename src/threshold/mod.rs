//! Thresholds: their text form ([`parse`], [`format()`]) and their evaluation over usage points
//! ([`Watch`]).
//!
//! A threshold is written `RESOURCE > LIMIT UNIT [for DURATION UNIT]`, for instance
//! `cpu > 80 % for 10 s`. Blanks are optional.

mod text;
mod watch;

pub use text::{format, format_value, parse};
pub use watch::{Breach, Change, Watch};
