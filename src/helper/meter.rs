//! The meter: at every tick, the counters of every feature and of the whole guest.
//!
//! Ticks are multiples of the interval on the boot-time clock, so they do not drift. Files are
//! kept open and read with `pread`; a cgroup that is made anew is noticed by its inode.

use std::collections::HashMap;
use std::fs;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nix::time::{ClockId, clock_gettime};

use crate::feature::{FeatureName, FeatureSpec};
use crate::helper::features;
use crate::helper::port::lock;
use crate::sample::{GuestTotals, MeterFrame};

mod feature;
mod parse;

use feature::FeatureMeter;
pub use feature::unit_directory;

/// Shortest interval between ticks, milliseconds.
pub const SHORTEST_MS: u64 = 50;
/// Longest interval between ticks, milliseconds.
pub const LONGEST_MS: u64 = 3_600_000;

/// Boot-time clock in nanoseconds; 0 if the kernel has none.
pub fn boottime_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |t| {
        let seconds = u64::try_from(t.tv_sec()).unwrap_or(0);
        let nanos = u64::try_from(t.tv_nsec()).unwrap_or(0);
        seconds * 1_000_000_000 + nanos
    })
}

/// The guest's boot id, empty when unreadable.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Wakes the meter at its ticks; the interval may be changed at any time.
#[derive(Debug, Default)]
pub struct Ticker {
    interval_ms: Mutex<u64>,
    changed: Condvar,
}

impl Ticker {
    /// Sets the interval in milliseconds; 0 stops the ticks.
    pub fn set(&self, interval_ms: u64) {
        *lock(&self.interval_ms) = interval_ms;
        self.changed.notify_all();
    }

    /// Waits for the next tick.
    pub fn wait(&self) {
        let mut interval = lock(&self.interval_ms);
        let mut tick = None;
        loop {
            let period = interval.saturating_mul(1_000_000);
            if period == 0 {
                tick = None;
                interval = self
                    .changed
                    .wait(interval)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let now = boottime_ns();
            let end = match tick {
                Some((end, of)) if of == period => end,
                _ => (now / period + 1) * period,
            };
            tick = Some((end, period));
            if now >= end {
                return;
            }
            interval = self
                .changed
                .wait_timeout(interval, Duration::from_nanos(end - now))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// Reads the counters of every feature that is defined and has a cgroup.
#[derive(Debug)]
pub struct Meter {
    boot_id: String,
    ticks_per_second: u64,
    definitions: Vec<FeatureSpec>,
    /// Modification time of the definitions' directory when they were read.
    read_at: Option<SystemTime>,
    features: HashMap<FeatureName, FeatureMeter>,
}

impl Default for Meter {
    fn default() -> Self {
        let hz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
        Self {
            boot_id: boot_id(),
            ticks_per_second: hz
                .ok()
                .flatten()
                .and_then(|t| u64::try_from(t).ok())
                .unwrap_or(100)
                .max(1),
            definitions: Vec::new(),
            read_at: None,
            features: HashMap::new(),
        }
    }
}

impl Meter {
    /// One tick's frame.
    pub fn read(&mut self) -> MeterFrame {
        let at_ns = boottime_ns();
        let begin = Instant::now();
        self.follow_definitions();
        let mut frame = MeterFrame {
            at_ns,
            guest: self.totals(),
            features: Vec::with_capacity(self.features.len()),
        };
        for spec in &self.definitions {
            let meter = self
                .features
                .entry(spec.name.clone())
                .or_insert_with(|| FeatureMeter::new(spec));
            if let Some(sample) = meter.read(&self.boot_id) {
                frame.features.push(sample);
            }
        }
        tracing::trace!(
            "metered {} features in {:?}",
            frame.features.len(),
            begin.elapsed()
        );
        frame
    }

    /// Definitions and PID files are replaced by renaming, which the directory's time shows.
    fn follow_definitions(&mut self) {
        let changed = fs::metadata(features::directory())
            .and_then(|m| m.modified())
            .ok();
        if changed.is_some() && changed == self.read_at {
            return;
        }
        self.read_at = changed;
        let definitions = features::all();
        self.features.retain(|name, meter| {
            meter.forget_process();
            definitions
                .iter()
                .any(|d| d.name == *name && meter.is_for(d))
        });
        self.definitions = definitions;
    }

    fn totals(&self) -> GuestTotals {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        parse::totals(&stat, &meminfo, self.ticks_per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_multiples_of_the_interval() {
        let ticker = Ticker::default();
        ticker.set(20);
        for _ in 0..3 {
            let before = boottime_ns() / 20_000_000;
            ticker.wait();
            assert!(boottime_ns() / 20_000_000 > before, "woken before the tick");
        }
    }

    #[test]
    fn a_new_interval_wakes_a_stopped_ticker() {
        let ticker = std::sync::Arc::new(Ticker::default());
        let other = std::sync::Arc::clone(&ticker);
        let thread = std::thread::spawn(move || other.wait());
        std::thread::sleep(Duration::from_millis(20));
        assert!(!thread.is_finished());
        ticker.set(SHORTEST_MS);
        thread.join().unwrap();
    }
}
