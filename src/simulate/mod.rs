//! What would it do in my cluster? Traces of real loads, a simulated cluster, and policies that
//! move features in it: Drover's own decision core, and what it is compared with. Pure: traces are
//! texts, time is an argument; `cli::simulate` reads the files.
//!
//! ```text
//! text -> Trace -> World --each step--> Policy::decide(what is over) -> moves -> Outcome
//! ```
//!
//! The model, the same for every policy: steps of five minutes; hosts that are alike, always on,
//! and share their CPUs fairly; a feature wants what the trace says, wherever it is. At the end of
//! each step a policy sees what was wanted so far and names moves, which are done at the beginning
//! of the next: a move lasts memory / bandwidth, during which the feature lacks a tenth of its CPU,
//! and ends with a freeze. A feature is in violation while its host is asked for more than it has,
//! and while it moves.

mod baselines;
mod choice;
mod drover;
mod oracle;
mod picture;
mod trace;
mod world;

pub use baselines::{Balance, LrMmt, Nothing, Threshold};
pub use choice::{Choice, compare};
pub use drover::{Drover, Parts};
pub use oracle::Oracle;
pub use picture::svg;
pub use trace::{Feature, Scale, Trace, TraceError};
pub use world::{Move, Outcome, Policy, Random, Seen, Setup, World};

#[cfg(test)]
mod tests;
