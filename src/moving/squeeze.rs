//! Whether compressing what is sent pays: arithmetic on what earlier pieces took.
//!
//! A piece that is compressed takes `1 / speed of the compressor + left / speed of the link`
//! per byte, one that is not `1 / speed of the link`, where `left` is what compression leaves of a
//! byte. The faster the link, the less it pays.

/// Pieces below this are sent as they are, bytes.
const LEAST: usize = 512;
/// A piece must lose at least this share of itself.
const WORTH: f64 = 0.1;
/// Most pieces that are sent as they are before compression is tried again.
const MOST_REST: u32 = 32;
/// Bytes over which speeds are remembered: an eighth part of the memory goes with each of these.
const MEMORY: f64 = 1_048_576.0;

/// A speed, measured over the last megabytes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Speed {
    bytes: f64,
    seconds: f64,
}

impl Speed {
    fn add(&mut self, bytes: usize, seconds: f64) {
        let keep = (1.0 - bytes as f64 / (8.0 * MEMORY)).max(0.0);
        self.bytes = self.bytes * keep + bytes as f64;
        self.seconds = self.seconds * keep + seconds.max(0.0);
    }

    /// Seconds per byte; `None` before a megabyte was seen.
    fn cost(&self) -> Option<f64> {
        (self.bytes >= MEMORY).then(|| self.seconds / self.bytes)
    }
}

/// Decides piece by piece.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Squeeze {
    link: Speed,
    compressor: Speed,
    /// Pieces still to be sent as they are.
    rest: u32,
    /// How many are sent so after the next piece that was not worth it.
    next_rest: u32,
}

impl Squeeze {
    /// Whether to try to compress a piece of `bytes`.
    pub fn attempt(&mut self, bytes: usize) -> bool {
        if bytes < LEAST {
            return false;
        }
        if self.rest > 0 {
            self.rest -= 1;
            return false;
        }
        true
    }

    /// A piece of `bytes` was compressed to `left` within `seconds`; whether to send it so.
    pub fn attempted(&mut self, bytes: usize, left: usize, seconds: f64) -> bool {
        self.compressor.add(bytes, seconds);
        let share = left as f64 / bytes.max(1) as f64;
        let gain = match (self.link.cost(), self.compressor.cost()) {
            (Some(link), Some(work)) => link * (1.0 - share) - work,
            // Too little is known of one of them: what is small is worth it.
            _ => 1.0,
        };
        let shrinks = share <= 1.0 - WORTH;
        if shrinks && gain > 0.0 {
            self.next_rest = 0;
        } else {
            self.next_rest = (self.next_rest * 2).clamp(1, MOST_REST);
            self.rest = self.next_rest;
        }
        // The work is done already.
        shrinks
    }

    /// `bytes` were given to the link within `seconds`.
    pub fn sent(&mut self, bytes: usize, seconds: f64) {
        self.link.add(bytes, seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: usize = 512 << 10;

    /// Of 200 pieces that shrink to `share`, how many are tried and how many sent compressed.
    fn run(share: f64, link_mib_s: f64, work_mib_s: f64) -> (u32, u32) {
        let mut s = Squeeze::default();
        let (mut tried, mut taken) = (0, 0);
        let took = |bytes: usize, mib_s: f64| bytes as f64 / (mib_s * 1_048_576.0);
        for _ in 0..200 {
            let mut size = PIECE;
            if s.attempt(PIECE) {
                tried += 1;
                let left = (PIECE as f64 * share) as usize;
                if s.attempted(PIECE, left, took(PIECE, work_mib_s)) {
                    (taken, size) = (taken + 1, left);
                }
            }
            s.sent(size, took(size, link_mib_s));
        }
        (tried, taken)
    }

    #[test]
    fn a_slow_link_gets_everything_compressed() {
        assert_eq!(run(0.4, 100.0, 500.0), (200, 200));
        assert_eq!(run(0.85, 10.0, 500.0), (200, 200));
    }

    #[test]
    fn what_does_not_shrink_is_soon_left_alone() {
        let (tried, taken) = run(0.95, 100.0, 500.0);
        assert!(tried < 15 && taken == 0, "{tried} {taken}");
    }

    #[test]
    fn a_link_that_is_faster_than_the_compressor_gets_it_as_it_is() {
        let (tried, _) = run(0.4, 5000.0, 500.0);
        assert!(tried < 25, "{tried}");
        // The break-even: a link at the compressor's speed times what is saved.
        assert_eq!(run(0.4, 290.0, 500.0).0, 200);
        assert!(run(0.4, 310.0, 500.0).0 < 30);
    }

    #[test]
    fn small_pieces_are_never_tried() {
        let mut s = Squeeze::default();
        assert!(!s.attempt(100) && s.attempt(512));
    }

    #[test]
    fn it_comes_back_when_the_link_slows_down() {
        let mut s = Squeeze::default();
        for _ in 0..100 {
            if s.attempt(PIECE) {
                s.attempted(PIECE, PIECE / 2, 1e-3);
            }
            s.sent(PIECE, 1e-5);
        }
        let mut taken = 0;
        for _ in 0..100 {
            taken += u32::from(s.attempt(PIECE) && s.attempted(PIECE, PIECE / 2, 1e-3));
            s.sent(PIECE / 2, 1e-1);
        }
        assert!(taken > 60, "{taken}");
    }
}
