//! The meter: at every tick, the counters of every feature and of the whole guest.
//!
//! Ticks are multiples of the interval on the boot-time clock, so they do not drift. Files are
//! kept open and read with `pread`, nothing is looked up by name in a tick.
//!
//! - `hierarchy`: cgroups of version 1 and 2; `locate`: where a workload's cgroup is
//! - `feature`: the open files of one feature; `watch`: notices of what changes seldom

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nix::time::{ClockId, clock_gettime};

use crate::counters;
use crate::feature::{FeatureName, FeatureSpec};
use crate::helper::features;
use crate::helper::port::lock;
use crate::sample::{GuestTotals, MeterFrame};

mod feature;
mod hierarchy;
mod locate;
mod watch;

use feature::{FeatureMeter, Guest, read_whole};
use hierarchy::Hierarchy;
use watch::Watches;

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

/// Directory of the workload's cgroup; `None` while it has none. May take seconds.
pub fn directory(spec: &FeatureSpec) -> Option<PathBuf> {
    let hierarchy = Hierarchy::detect();
    let path = locate::usual(&hierarchy, &spec.name, &spec.workload)
        .or_else(|| locate::ask(&hierarchy, &spec.workload))?;
    hierarchy.directory(&path)
}

/// Reads the counters of every feature that is defined and has a cgroup.
#[derive(Debug)]
pub struct Meter {
    guest: Guest,
    definitions: Vec<FeatureSpec>,
    /// Modification time of the definitions' directory when they were read.
    read_at: Option<SystemTime>,
    features: HashMap<FeatureName, FeatureMeter>,
    stat: Option<File>,
    meminfo: Option<File>,
}

impl Default for Meter {
    fn default() -> Self {
        allow_files();
        let hz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
        let ticks = hz.ok().flatten().and_then(|t| u64::try_from(t).ok());
        Self {
            guest: Guest {
                hierarchy: Hierarchy::detect(),
                boot_id: boot_id(),
                ticks: ticks.unwrap_or(100).max(1),
                watches: Watches::default(),
                buffer: vec![0; 16 << 10],
            },
            definitions: Vec::new(),
            read_at: None,
            features: HashMap::new(),
            stat: File::open("/proc/stat").ok(),
            meminfo: File::open("/proc/meminfo").ok(),
        }
    }
}

/// Some nine files of each feature stay open, more than the usual soft limit allows.
fn allow_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(e) = raised {
        tracing::warn!("the limit of open files cannot be raised: {e}");
    }
}

impl Meter {
    /// One tick's frame.
    pub fn read(&mut self) -> MeterFrame {
        let at_ns = boottime_ns();
        let begin = Instant::now();
        self.follow_definitions();
        self.guest.watches.collect();
        let mut frame = MeterFrame {
            at_ns,
            guest: self.totals(),
            features: Vec::with_capacity(self.features.len()),
        };
        for spec in &self.definitions {
            if let Some(meter) = self.features.get_mut(&spec.name)
                && let Some(sample) = meter.read(&mut self.guest, at_ns)
            {
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
            let keep = definitions
                .iter()
                .any(|d| d.name == *name && meter.is_for(d));
            if !keep {
                meter.close(&self.guest);
            }
            keep
        });
        for spec in &definitions {
            self.features
                .entry(spec.name.clone())
                .or_insert_with(|| FeatureMeter::new(spec));
        }
        self.definitions = definitions;
    }

    fn totals(&mut self) -> GuestTotals {
        let mut text = |file: &Option<File>| -> Vec<u8> {
            let read = file
                .as_ref()
                .and_then(|f| read_whole(f, &mut self.guest.buffer).ok());
            read.unwrap_or_default().to_vec()
        };
        let (stat, meminfo) = (text(&self.stat), text(&self.meminfo));
        counters::totals(&stat, &meminfo, self.guest.ticks)
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
