//! The simulated cluster: hosts that share their CPUs fairly, features that want what the trace
//! says, moves that cost time.

use super::trace::{Trace, TraceError};

/// A seeded generator (SplitMix64), so that a run can be repeated.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut h = self.0;
        h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        h ^ (h >> 31)
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Below `n`, at least 1.
    pub fn below(&mut self, n: usize) -> usize {
        ((self.unit() * n as f64) as usize).min(n.saturating_sub(1))
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let r = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        r * (std::f64::consts::TAU * self.unit()).cos()
    }
}

/// The cluster, the same for every policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Setup {
    /// Hosts, all alike and all on.
    pub hosts: usize,
    /// CPUs of each.
    pub host_cpus: f64,
    /// Seconds at the beginning during which nobody moves and nothing counts: history.
    pub warm_up_s: i64,
    /// MiB per second of a move; half of 1 Gbit/s, as in Beloglazov and Buyya (2012).
    pub bandwidth_mib_s: f64,
    /// Fraction of its CPU that a feature lacks while it moves; 10 % as there.
    pub degradation: f64,
    /// Seconds for which it stands still at the end of a move.
    pub freeze_s: f64,
    /// Seconds over which a move must have helped.
    pub help_s: i64,
    /// Seed of the first placement, and of memory sizes that the trace does not tell.
    pub seed: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            hosts: 10,
            host_cpus: 8.0,
            warm_up_s: 3600,
            bandwidth_mib_s: 62.5,
            degradation: 0.1,
            freeze_s: 0.6,
            help_s: 7200,
            seed: 1,
        }
    }
}

impl Setup {
    /// So many hosts that the busiest step of the trace takes 80 % of all CPUs.
    pub fn hosts_for(trace: &Trace, host_cpus: f64) -> usize {
        ((trace.peak_cpus() / PEAK / host_cpus).round() as usize).max(2)
    }
}

/// Fraction of all CPUs that the busiest step takes, unless the number of hosts is given.
const PEAK: f64 = 0.8;

/// A wish of a policy: feature by index, host by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// Feature.
    pub feature: usize,
    /// Where to.
    pub to: usize,
}

/// What a policy may see: the past, and where everything is now.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The cluster.
    pub setup: &'a Setup,
    /// Length of a step, seconds.
    pub step_s: i64,
    /// Steps that are over.
    pub now: usize,
    /// Host of each feature.
    pub at: &'a [usize],
    /// MiB of each feature.
    pub memory_mib: &'a [f64],
    trace: &'a Trace,
}

impl<'a> Seen<'a> {
    /// CPUs that a feature wanted in the steps so far, oldest first. What it wants is taken as
    /// known from its use and its stall, for all policies alike.
    pub fn past(&self, feature: usize) -> &'a [f64] {
        &self.trace.features[feature].cpus[..self.now]
    }

    /// CPUs that it wanted in the last step.
    pub fn last(&self, feature: usize) -> f64 {
        self.past(feature).last().copied().unwrap_or(0.0)
    }

    /// CPUs wanted on each host in the last step, with features where they are now.
    pub fn loads(&self) -> Vec<f64> {
        let mut loads = vec![0.0; self.setup.hosts];
        for (f, h) in self.at.iter().enumerate() {
            loads[*h] += self.last(f);
        }
        loads
    }

    /// How long a move of a feature takes, seconds.
    pub fn move_s(&self, feature: usize) -> f64 {
        self.memory_mib[feature] / self.setup.bandwidth_mib_s
    }

    /// Features.
    pub fn features(&self) -> usize {
        self.at.len()
    }
}

/// Decides at the end of every step.
pub trait Policy {
    /// Moves to make now. A feature is moved once at most; wishes to stay are ignored.
    fn decide(&mut self, seen: &Seen<'_>) -> Vec<Move>;
}

/// What a policy achieved.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outcome {
    /// Seconds, summed over features, in which a feature got less CPU than it wanted, because its
    /// host was overloaded or because it was being moved.
    pub violation_s: f64,
    /// The part of it that moves caused.
    pub moving_s: f64,
    /// SLA violation time per active host (Beloglazov and Buyya 2012, equation 5): fraction of
    /// time that hosts were used in full, 0 to 1.
    pub slatah: f64,
    /// Performance degradation due to migrations (equation 6): CPU lost by moves as a fraction of
    /// what was wanted, averaged over features.
    pub pdm: f64,
    /// Moves.
    pub moves: u64,
    /// Moves after which no more violation was saved than they took themselves: compared with the
    /// same course of events with the feature back where it came from.
    pub moves_without_help: u64,
    /// Standard deviation of the hosts' use, as a fraction of capacity, averaged over time.
    pub spread: f64,
    /// Time that a decision over the whole cluster took, nanoseconds, averaged over steps.
    pub decision_ns: u64,
    /// The longest.
    pub decision_max_ns: u64,
    /// Violation seconds per step, for a picture.
    pub course: Vec<f64>,
}

struct Made {
    step: usize,
    feature: usize,
    from: usize,
    to: usize,
}

/// A trace in a cluster, ready to be run with any policy.
pub struct World<'a> {
    trace: &'a Trace,
    setup: Setup,
    memory_mib: Vec<f64>,
    start: Vec<usize>,
    warm: usize,
}

/// RAM of the VM types of Beloglazov and Buyya (2012), MiB, for traces that do not tell.
const MEMORY_MIB: [f64; 4] = [613.0, 870.0, 1740.0, 1740.0];

impl<'a> World<'a> {
    /// Places the features in random order, one host after the other.
    pub fn new(trace: &'a Trace, setup: Setup) -> Result<Self, TraceError> {
        let warm = (setup.warm_up_s / trace.step_s.max(1)).max(1) as usize;
        if trace.steps() <= warm + 1 {
            return Err(TraceError::Short {
                steps: trace.steps(),
                step_s: trace.step_s,
                needed: warm + 1,
            });
        }
        let mut random = Random(setup.seed);
        let memory_mib = trace
            .features
            .iter()
            .map(|f| {
                f.memory_mib
                    .unwrap_or(MEMORY_MIB[random.below(4)])
                    .max(16.0)
            })
            .collect();
        let mut order: Vec<usize> = (0..trace.features.len()).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, random.below(i + 1));
        }
        let mut start = vec![0; order.len()];
        for (n, f) in order.into_iter().enumerate() {
            start[f] = n % setup.hosts.max(1);
        }
        Ok(Self {
            trace,
            setup,
            memory_mib,
            start,
            warm,
        })
    }

    /// The trace.
    pub fn trace(&self) -> &Trace {
        self.trace
    }

    /// The cluster.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    fn loads(&self, at: &[usize], step: usize) -> Vec<f64> {
        let mut loads = vec![0.0; self.setup.hosts];
        for (f, h) in self.trace.features.iter().zip(at) {
            loads[*h] += f.cpus[step];
        }
        loads
    }

    /// Runs a policy. `clock` gives nanoseconds from any origin, for the decision times.
    pub fn run(&self, policy: &mut dyn Policy, clock: &mut dyn FnMut() -> u64) -> Outcome {
        let (setup, step_s) = (&self.setup, self.trace.step_s as f64);
        let mut at = self.start.clone();
        let mut out = Outcome::default();
        let mut course: Vec<Vec<usize>> = Vec::new();
        let mut made: Vec<Made> = Vec::new();
        let mut lost = vec![0.0; at.len()];
        let (mut hot, mut spread, mut decided) = (0u64, 0.0, 0u64);
        let steps = self.trace.steps() - self.warm;
        for step in self.warm..self.trace.steps() {
            let seen = Seen {
                setup,
                step_s: self.trace.step_s,
                now: step,
                at: &at,
                memory_mib: &self.memory_mib,
                trace: self.trace,
            };
            let begun = clock();
            let wishes = policy.decide(&seen);
            let took = clock().saturating_sub(begun);
            decided += took;
            out.decision_max_ns = out.decision_max_ns.max(took);
            let mut moving = vec![0.0; at.len()];
            for m in wishes {
                if at[m.feature] == m.to || m.to >= setup.hosts || moving[m.feature] > 0.0 {
                    continue;
                }
                let copy_s = self.memory_mib[m.feature] / setup.bandwidth_mib_s;
                moving[m.feature] = (copy_s + setup.freeze_s).min(step_s);
                let cpus = self.trace.features[m.feature].cpus[step];
                lost[m.feature] += cpus * (setup.degradation * copy_s + setup.freeze_s);
                made.push(Made {
                    step,
                    feature: m.feature,
                    from: at[m.feature],
                    to: m.to,
                });
                at[m.feature] = m.to;
            }
            let loads = self.loads(&at, step);
            let over: Vec<bool> = loads.iter().map(|l| *l > setup.host_cpus).collect();
            hot += over.iter().filter(|o| **o).count() as u64;
            let mut here = 0.0;
            for (f, h) in at.iter().enumerate() {
                if over[*h] {
                    here += step_s;
                } else {
                    here += moving[f];
                    out.moving_s += moving[f];
                }
            }
            out.violation_s += here;
            out.course.push(here);
            let n = loads.len() as f64;
            let used = loads.iter().map(|l| (l / setup.host_cpus).min(1.0));
            let mean = used.clone().sum::<f64>() / n;
            spread += (used.map(|u| (u - mean).powi(2)).sum::<f64>() / n).sqrt();
            course.push(at.clone());
        }
        out.moves = made.len() as u64;
        let helped = |m: &&Made| self.saved_s(m, &course) > self.move_s(m.feature);
        out.moves_without_help = out.moves - made.iter().filter(helped).count() as u64;
        out.slatah = hot as f64 / (steps * setup.hosts) as f64;
        out.spread = spread / steps as f64;
        out.decision_ns = decided / steps as u64;
        out.pdm = self.pdm(&lost);
        out
    }

    fn move_s(&self, feature: usize) -> f64 {
        self.memory_mib[feature] / self.setup.bandwidth_mib_s + self.setup.freeze_s
    }

    fn pdm(&self, lost: &[f64]) -> f64 {
        let step_s = self.trace.step_s as f64;
        let of = lost.iter().zip(&self.trace.features).map(|(lost, f)| {
            let wanted = f.cpus[self.warm..].iter().sum::<f64>() * step_s;
            if wanted > 0.0 { lost / wanted } else { 0.0 }
        });
        of.sum::<f64>() / lost.len().max(1) as f64
    }

    /// Feature-seconds of overload that a move saved on its two hosts within the time that counts,
    /// while the feature stayed there.
    fn saved_s(&self, m: &Made, course: &[Vec<usize>]) -> f64 {
        let cap = self.setup.host_cpus;
        let until = m.step + (self.setup.help_s / self.trace.step_s).max(1) as usize;
        let mut saved = 0.0;
        for step in m.step..until.min(self.trace.steps()) {
            let at = &course[step - self.warm];
            if at[m.feature] != m.to {
                break;
            }
            let mut loads = [0.0; 2];
            let mut counts = [0.0; 2];
            for (f, h) in self.trace.features.iter().zip(at) {
                for (i, host) in [m.from, m.to].into_iter().enumerate() {
                    if *h == host {
                        loads[i] += f.cpus[step];
                        counts[i] += 1.0;
                    }
                }
            }
            let d = self.trace.features[m.feature].cpus[step];
            let over = |load: f64, n: f64| if load > cap { n } else { 0.0 };
            let is = over(loads[0], counts[0]) + over(loads[1], counts[1]);
            let were = over(loads[0] + d, counts[0] + 1.0) + over(loads[1] - d, counts[1] - 1.0);
            saved += (were - is) * self.trace.step_s as f64;
        }
        saved
    }
}
