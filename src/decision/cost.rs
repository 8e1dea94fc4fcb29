//! What a move is expected to cost: bytes sent, time, and how long the feature stands still.

use serde::{Deserialize, Serialize};

use crate::api::RoundRow;
use crate::usage::MIB;

/// Rounds that are counted on at most.
const MAX_ROUNDS: u32 = 6;
/// A move of this length costs half of what one without end does, seconds.
const HALF_S: f64 = 60.0;

/// What earlier moves of a feature, or of its host, showed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Past {
    /// Bytes per second between the hosts.
    pub bandwidth_bps: f64,
    /// Bytes per second that the feature writes anew in its memory.
    pub dirty_bps: f64,
    /// Part of the freeze that does not depend on what is sent, milliseconds.
    pub fixed_ms: f64,
    /// Moves that this was learnt from.
    pub moves: u32,
}

impl Default for Past {
    /// What is assumed before the first move: 50 MB/s, 1 MB/s written, 300 ms.
    fn default() -> Self {
        Self {
            bandwidth_bps: 50e6,
            dirty_bps: 1e6,
            fixed_ms: 300.0,
            moves: 0,
        }
    }
}

impl Past {
    /// Learns from a move that was done: its rounds in order, the last one in the freeze.
    pub fn learn(&mut self, rounds: &[RoundRow], freeze_ms: Option<u64>) {
        let bytes: f64 = rounds.iter().map(|r| r.bytes as f64).sum();
        let seconds: f64 = rounds.iter().map(|r| r.total_ms as f64 / 1000.0).sum();
        let Some(last) = rounds.last().filter(|_| bytes > 0.0 && seconds > 0.0) else {
            return;
        };
        let bandwidth = bytes / seconds;
        // What a round sends was written during the one before it.
        let (mut dirtied, mut during) = (0.0, 0.0);
        for pair in rounds.windows(2) {
            dirtied += pair[1].bytes as f64;
            during += pair[0].total_ms as f64 / 1000.0;
        }
        let fixed =
            freeze_ms.map(|ms| (ms as f64 - last.bytes as f64 / bandwidth * 1000.0).max(0.0));
        // The latest moves count most, and the first one at once.
        let new = if self.moves == 0 { 1.0 } else { 0.4 };
        let mix = |old: &mut f64, seen: f64| *old += new * (seen - *old);
        mix(&mut self.bandwidth_bps, bandwidth);
        if during > 0.0 {
            mix(&mut self.dirty_bps, dirtied / during);
        }
        if let Some(f) = fixed {
            mix(&mut self.fixed_ms, f);
        }
        self.moves += 1;
    }
}

/// What a move is expected to take.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Cost {
    /// Bytes sent between the hosts.
    pub bytes: f64,
    /// Seconds from its begin to its end.
    pub seconds: f64,
    /// Milliseconds for which the feature stands still.
    pub freeze_ms: f64,
}

impl Cost {
    /// As a number between 0 (nothing) and 1 (without end).
    pub fn relative(&self) -> f64 {
        let s = self.seconds.max(0.0);
        if s.is_finite() { s / (s + HALF_S) } else { 1.0 }
    }
}

/// Predicts a move of `memory_mib`: rounds are sent while the feature runs until what is left
/// fits the accepted freeze, or no longer shrinks.
pub fn predict(memory_mib: f64, downtime_ms: u64, past: &Past) -> Cost {
    let all = (memory_mib.max(0.0) * MIB).min(1e15);
    let bandwidth = past.bandwidth_bps.max(1.0);
    let (mut left, mut sent, mut seconds) = (all, 0.0, 0.0);
    let freeze = |left: f64| left / bandwidth * 1000.0 + past.fixed_ms.max(0.0);
    for _ in 0..MAX_ROUNDS {
        if freeze(left) <= downtime_ms as f64 {
            break;
        }
        let took = left / bandwidth;
        let dirtied = (past.dirty_bps.max(0.0) * took).min(all);
        if dirtied >= left && sent > 0.0 {
            break;
        }
        sent += left;
        seconds += took;
        left = dirtied;
    }
    let freeze_ms = freeze(left);
    Cost {
        bytes: sent + left,
        seconds: seconds + freeze_ms / 1000.0,
        freeze_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(mib: f64, total_ms: u64) -> RoundRow {
        RoundRow {
            bytes: (mib * MIB) as u64,
            total_ms,
            ..RoundRow::default()
        }
    }

    #[test]
    fn learns_and_predicts() {
        let mut past = Past::default();
        past.learn(&[], Some(5));
        assert_eq!(past, Past::default(), "nothing was sent");
        // 20 MiB in 2 s, 2 MiB written meanwhile, sent in the freeze.
        past.learn(&[round(20.0, 2000), round(2.0, 200)], Some(500));
        assert!((past.bandwidth_bps - 10.0 * MIB).abs() < 1.0, "{past:?}");
        assert!((past.dirty_bps - MIB).abs() < 1.0, "{past:?}");
        assert!((past.fixed_ms - 300.0).abs() < 1.0, "{past:?}");
        let c = predict(20.0, 1000, &past);
        assert!((c.bytes / MIB - 22.0).abs() < 0.01, "{c:?}");
        assert!((c.freeze_ms - 500.0).abs() < 1.0, "{c:?}");
        assert!((c.seconds - 2.5).abs() < 0.01, "{c:?}");
        // Small enough to go at once.
        assert_eq!(predict(1.0, 1000, &past).bytes, MIB);
        // Written faster than sent: it ends all the same, and the freeze says so.
        past.dirty_bps = past.bandwidth_bps * 2.0;
        let c = predict(1000.0, 100, &past);
        assert!(c.freeze_ms > 50_000.0 && c.seconds.is_finite(), "{c:?}");
        assert!(c.relative() > 0.5 && c.relative() < 1.0);
        let more = predict(2000.0, 100, &past);
        assert!(more.relative() > c.relative());
        past.learn(&[round(1.0, 1)], None);
        assert_eq!(past.moves, 2);
    }
}
