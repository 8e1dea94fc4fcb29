//! The move of one feature as two pure state machines, one on each host.
//!
//! ```text
//!  source (coordinator)                           target
//!  New                                            Offered
//!   | Start                                        | Prepared
//!  Preflight -> Offering ----- offer ------------> Receiving
//!   | Offered                                      |
//!  PreCopy(1..n) ------------- rounds ----------->  |
//!   | budget met, or no gain                       | RestoreAsked
//!  Freezing ------------------ last round ------->  Restoring
//!   |                                              | Restored, record durable
//!  Restoring <---------------- READY -------------- Ready    (in doubt: asks the source)
//!   |
//!  Committing   one durable record: before it only the source may run, after it only the target
//!   |                                              | ResumeAsked / verdict Committed
//!  Switching ----------------- resume ------------> Resuming -> Running
//!   | running here gone, running there
//!  Ended(Done)
//!
//!  any state before Committing, on failure, loss, timeout or cancel:
//!  Aborting: thaw here, discard there -> Ended            Discarding -> Gone
//! ```
//!
//! A machine knows no I/O and no clock. It is fed events and returns actions; the driver
//! performs them and feeds the outcome back. Events that do not fit the state (late answers of a
//! step that was given up) change nothing.

pub mod bandwidth;
pub mod convergence;
pub mod fate;
pub mod record;
pub mod source;
pub mod squeeze;
pub mod target;
