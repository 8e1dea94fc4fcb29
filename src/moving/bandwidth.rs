//! How fast a move's data may leave the host: a token bucket that may go into debt.

/// Seconds' worth of bytes that may leave at once after a rest.
const BURST_S: f64 = 0.1;

/// A limit of so many bytes per second, or none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limit {
    /// Bytes per second; 0: no limit.
    rate: f64,
    /// Bytes that may leave now; below 0: bytes that left too early.
    tokens: f64,
    /// When `tokens` held, seconds.
    at_s: f64,
}

impl Limit {
    /// A limit of `mib_s` MiB per second (0 or less: none) from `now_s` on.
    pub fn new(mib_s: f64, now_s: f64) -> Self {
        let mut limit = Self {
            rate: 0.0,
            tokens: 0.0,
            at_s: now_s,
        };
        limit.set(mib_s, now_s);
        limit
    }

    /// Another limit from now on. What left too early by the old one is paid at the new rate.
    pub fn set(&mut self, mib_s: f64, now_s: f64) {
        self.fill(now_s);
        let rate = mib_s.max(0.0) * 1_048_576.0;
        if rate != self.rate {
            // Without a limit nothing is owed.
            let owed = self.rate > 0.0 && rate > 0.0;
            self.rate = rate;
            self.tokens = if owed {
                self.tokens.min(rate * BURST_S)
            } else {
                0.0
            };
        }
    }

    fn fill(&mut self, now_s: f64) {
        let passed = (now_s - self.at_s).max(0.0);
        self.at_s = self.at_s.max(now_s);
        self.tokens = (self.tokens + passed * self.rate).min(self.rate * BURST_S);
    }

    /// Takes note of `bytes` that left at `now_s`; seconds to wait before more may leave.
    pub fn left(&mut self, bytes: usize, now_s: f64) -> f64 {
        if self.rate == 0.0 {
            return 0.0;
        }
        self.fill(now_s);
        self.tokens -= bytes as f64;
        (-self.tokens / self.rate).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn no_limit_never_waits() {
        let mut l = Limit::new(0.0, 5.0);
        assert!((0..1000).all(|_| l.left(MIB, 5.0) == 0.0));
        let mut l = Limit::new(-3.0, 5.0);
        assert_eq!(l.left(1 << 30, 5.0), 0.0);
    }

    #[test]
    fn a_burst_is_paid_for() {
        let mut l = Limit::new(10.0, 0.0);
        assert!((l.left(MIB, 0.0) - 0.1).abs() < 1e-9);
        // A rest of an hour saves up no more than a tenth of a second.
        assert!((l.left(2 * MIB, 3600.0) - 0.1).abs() < 1e-9);
        // A clock that goes back fills nothing.
        assert!((l.left(MIB, 0.0) - 0.2).abs() < 1e-9);
    }

    #[test]
    fn it_can_be_changed_while_it_works() {
        let mut l = Limit::new(1.0, 0.0);
        assert!((l.left(4 * MIB, 0.0) - 4.0).abs() < 1e-9);
        l.set(4.0, 0.0);
        assert!((l.left(0, 0.0) - 1.0).abs() < 1e-9);
        l.set(0.0, 0.0);
        assert_eq!(l.left(MIB, 0.0), 0.0);
        l.set(2.0, 1.0);
        assert!((l.left(MIB, 1.0) - 0.5).abs() < 1e-9, "no debt of before");
    }

    proptest! {
        /// Whoever waits as told sends no more than the rate allows, beside one burst, and no
        /// less than the rate allows when it always has something to send.
        #[test]
        fn the_rate_is_kept(sizes in proptest::collection::vec(1usize..600_000, 1..80),
                            mib_s in 0.5f64..500.0) {
            let mut l = Limit::new(mib_s, 0.0);
            let (mut now, mut sent) = (0.0, 0usize);
            for n in sizes {
                sent += n;
                now += l.left(n, now);
            }
            let allowed = mib_s * 1_048_576.0 * now;
            prop_assert!(sent as f64 <= allowed + mib_s * 1_048_576.0 * BURST_S + 1.0);
            prop_assert!(sent as f64 >= allowed - 1.0);
        }
    }
}
