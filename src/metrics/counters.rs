//! What happened since droverd started.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::api::{ApiEvent, JobResult};

/// Results of moves, as label values.
pub const RESULTS: [(JobResult, &str); 5] = [
    (JobResult::Done, "done"),
    (JobResult::Canceled, "canceled"),
    (JobResult::Timeout, "timeout"),
    (JobResult::Failed, "failed"),
    (JobResult::Skipped, "skipped"),
];

/// Outcomes of decisions, as label values; what a newer core adds counts as the last.
pub const OUTCOMES: [&str; 5] = [
    "move",
    "no_breach",
    "no_beneficial_move",
    "no_eligible_host",
    "other",
];

/// Counters that events advance.
#[derive(Debug, Default)]
pub struct Counters {
    moves: [AtomicU64; RESULTS.len()],
    decisions: [AtomicU64; OUTCOMES.len()],
    breaches: AtomicU64,
    arrivals: AtomicU64,
    bytes_sent: AtomicU64,
    freeze_ms: AtomicU64,
}

/// Their values at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Ended moves from this host, by [`RESULTS`].
    pub moves: [u64; RESULTS.len()],
    /// Decisions, by [`OUTCOMES`].
    pub decisions: [u64; OUTCOMES.len()],
    /// Breaches that began.
    pub breaches: u64,
    /// Features that arrived from other hosts.
    pub arrivals: u64,
    /// Bytes that ended moves sent.
    pub bytes_sent: u64,
    /// Milliseconds that features were frozen in moves that were done.
    pub freeze_ms: u64,
}

impl Counters {
    /// Takes notice of an event.
    pub fn observe(&self, event: &ApiEvent) {
        let add = |c: &AtomicU64, n| {
            c.fetch_add(n, Ordering::Relaxed);
        };
        match event {
            ApiEvent::Move { job } => {
                let Some(result) = job.result else { return };
                if let Some(i) = RESULTS.iter().position(|(r, _)| *r == result) {
                    add(&self.moves[i], 1);
                }
                add(&self.bytes_sent, job.bytes_sent);
                if result == JobResult::Done {
                    add(&self.freeze_ms, job.freeze_ms.unwrap_or(0));
                }
            }
            ApiEvent::Decision { plan } => {
                let known = OUTCOMES.iter().position(|o| *o == plan.outcome);
                add(&self.decisions[known.unwrap_or(OUTCOMES.len() - 1)], 1);
            }
            ApiEvent::Breach { active: true, .. } => add(&self.breaches, 1),
            ApiEvent::Feature { what, .. } if what == "arrived" => add(&self.arrivals, 1),
            _ => {}
        }
    }

    /// The values now.
    pub fn now(&self) -> Counts {
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        Counts {
            moves: self.moves.each_ref().map(get),
            decisions: self.decisions.each_ref().map(get),
            breaches: get(&self.breaches),
            arrivals: get(&self.arrivals),
            bytes_sent: get(&self.bytes_sent),
            freeze_ms: get(&self.freeze_ms),
        }
    }
}
