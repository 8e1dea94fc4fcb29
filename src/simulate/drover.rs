//! Drover in the simulated cluster: the decision core of the daemon, one decision per host and
//! step, with what a daemon would know.

use crate::affinity::{self, Affinity, Demand, Observation, Score, ScoreInput};
use crate::api::ModelInfo;
use crate::decision::{Past, Policy as Rules, Relief, Resident, View, relieve, with, without};
use crate::feature::{FeatureName, FeatureSpec, Managed, Workload};
use crate::forecast::{Levels, Residuals};
use crate::host::{
    FeatureState, FeatureStatus, GuestCapabilities, HostCapabilities, HostState, InstanceState,
    Outlook, StorageKind,
};
use crate::usage::Usage;

use super::world::{Move, Policy, Seen};

/// Which parts of Drover take part, and how it decides.
#[derive(Debug, Clone, PartialEq)]
pub struct Parts {
    /// Affinity by a trained model; without it by headroom alone.
    pub model: bool,
    /// Outlooks by forecast; without it by the last measurement alone.
    pub forecast: bool,
    /// Rules of the decision.
    pub rules: Rules,
    /// When a crowded host is relieved.
    pub relief: Relief,
    /// Steps by which what a host knows of its peers is old: 0 is what they are now, and their
    /// reservations too.
    pub stale_steps: usize,
    /// Whether a target checks its room again when it is offered a feature.
    pub admission: bool,
}

impl Default for Parts {
    fn default() -> Self {
        Self {
            model: true,
            forecast: true,
            rules: Rules::default(),
            relief: Relief::default(),
            stale_steps: 0,
            admission: true,
        }
    }
}

/// Most moves away from one host in one step.
const MOST: usize = 10;
/// Steps between trainings of the model.
const TRAIN_EVERY: usize = 24;
/// Features of each host that the model learns from in a step; all of them tell nearly the same.
const LEARN: usize = 4;

/// The policy.
pub struct Drover {
    parts: Parts,
    affinity: Affinity,
    hosts: Vec<HostState>,
    /// States that peers see, oldest first.
    told: std::collections::VecDeque<Vec<HostState>>,
    specs: Vec<FeatureSpec>,
    moved_ms: Vec<Option<i64>>,
    steps: usize,
    levels: Vec<Levels>,
    residuals: Residuals,
    /// Steps that the levels know.
    followed: usize,
    /// Offers that a target refused because others had filled it.
    pub refused: u64,
}

fn settings() -> affinity::Settings {
    affinity::Settings {
        window_s: 3600.0,
        horizon_s: 300.0,
        reservoir: 4_000,
        params: affinity::Params {
            trees: 40,
            depth: 4,
            ..affinity::Params::default()
        },
        ..affinity::Settings::default()
    }
}

/// Definition of the n-th feature; names and addresses must be valid and unique.
fn spec(n: usize) -> Option<FeatureSpec> {
    let address = format!(
        "10.{}.{}.{}/8",
        n / 62_500 % 250,
        n / 250 % 250,
        n % 250 + 1
    );
    let managed = Managed::new(vec!["/usr/bin/true".to_owned()], address.parse().ok()?);
    let name = FeatureName::new(&format!("f{n:06}")).ok()?;
    Some(FeatureSpec::new(name, Workload::Managed(managed)))
}

fn guest(n: usize) -> String {
    format!("guest{n:04}")
}

fn host_name(n: usize) -> String {
    format!("host{n:04}")
}

impl Drover {
    /// Drover with these parts.
    pub fn new(parts: Parts) -> Self {
        Self {
            parts,
            affinity: Affinity::new(settings()),
            hosts: Vec::new(),
            told: std::collections::VecDeque::new(),
            specs: Vec::new(),
            moved_ms: Vec::new(),
            steps: 0,
            levels: Vec::new(),
            residuals: Residuals::new(300.0),
            followed: 0,
            refused: 0,
        }
    }

    /// Hosts as they are, with one guest each in which all features are.
    fn build(&mut self, seen: &Seen<'_>) {
        if self.specs.is_empty() {
            self.specs = (0..seen.features()).filter_map(spec).collect();
            self.moved_ms = vec![None; seen.features()];
        }
        let total: f64 = seen.memory_mib.iter().sum();
        // Memory is not what this is about: there is twice as much as is used.
        let memory_mib = 2.0 * total / seen.setup.hosts as f64 + 4096.0;
        let now_ms = now_ms(seen);
        let mut hosts: Vec<HostState> = (0..seen.setup.hosts)
            .map(|h| HostState {
                at_ms: now_ms,
                capabilities: HostCapabilities {
                    cpu_model: "simulated".to_owned(),
                    cpus: seen.setup.host_cpus,
                    memory_mib,
                    network_mbps: 1000.0,
                    storage: StorageKind::Ssd,
                    virt_type: "kvm".to_owned(),
                },
                instances: vec![InstanceState {
                    vcpus: seen.setup.host_cpus,
                    memory_mib,
                    memory_available_mib: Some(memory_mib),
                    capabilities: Some(GuestCapabilities {
                        kernel: "6.12.0".to_owned(),
                        criu: "4.0".to_owned(),
                        ..GuestCapabilities::default()
                    }),
                    ..InstanceState::new(guest(h))
                }],
                ..HostState::new(host_name(h))
            })
            .collect();
        for (f, h) in seen.at.iter().enumerate() {
            if let Some(spec) = self.specs.get(f) {
                let usage = usage(seen, f, now_ms);
                place(
                    &mut hosts[*h],
                    spec.clone(),
                    &usage,
                    seen.last(f),
                    seen.memory_mib[f],
                );
            }
        }
        for h in &mut hosts {
            let wanted = h.load.cpus_used / h.capabilities.cpus;
            h.load.stall_percent = 100.0 * (1.0 - 1.0 / wanted.max(1.0));
        }
        self.hosts = hosts;
    }

    /// Rows for the model: how well features were served in the step that is over.
    fn learn(&mut self, seen: &Seen<'_>) {
        let mut count = vec![0usize; seen.setup.hosts];
        let first = self.steps * 7919 % seen.features().max(1);
        for n in 0..seen.features() {
            // Always the same ones of a host would be learnt by heart.
            let f = (first + n) % seen.features();
            let h = seen.at[f];
            let (Some(spec), Some(host)) = (self.specs.get(f), self.hosts.get(h)) else {
                continue;
            };
            if count[h] >= LEARN && !f.is_multiple_of(8) {
                continue;
            }
            count[h] += 1;
            let mut u = usage(seen, f, now_ms(seen));
            u.psi_cpu_percent = Some(host.load.stall_percent);
            self.affinity.observe(&Observation {
                host,
                domain: &host.instances[0].domain,
                feature: &spec.name,
                usage: &u,
                steal_percent: None,
            });
        }
        if self.steps.is_multiple_of(TRAIN_EVERY) {
            // Too few rows, or all alike: headroom it is.
            let _ = self.affinity.train(now_ms(seen), &mut || true);
        }
    }

    /// Brings the series up to date.
    fn follow(&mut self, seen: &Seen<'_>) {
        if self.levels.is_empty() {
            let step_s = seen.step_s as f64;
            self.levels = vec![Levels::new(step_s); seen.features()];
            self.residuals = Residuals::new(step_s);
        }
        for (f, l) in self.levels.iter_mut().enumerate() {
            for v in &seen.past(f)[self.followed..] {
                l.push(*v);
            }
        }
        self.followed = seen.now;
    }

    /// What a feature is expected to want: its level, or without forecast its last value.
    fn expected(&self, seen: &Seen<'_>, f: usize) -> f64 {
        let level = self.levels[f].level().filter(|_| self.parts.forecast);
        level.unwrap_or_else(|| seen.last(f))
    }

    fn residuals_of(&self, features: impl Iterator<Item = usize>) -> Vec<f64> {
        let mut sum = self.residuals.none();
        for f in features {
            self.residuals.add(&mut sum, &self.levels[f]);
        }
        sum
    }

    fn outlooks(&mut self, seen: &Seen<'_>) {
        for h in 0..self.hosts.len() {
            let own = || (0..seen.at.len()).filter(|f| seen.at[*f] == h);
            let cpus_sd = if self.parts.forecast {
                let sum = self.residuals_of(own());
                self.residuals.variance(&sum, seen.now).sqrt()
            } else {
                0.0
            };
            let cpus = own().map(|f| self.expected(seen, f)).sum();
            self.hosts[h].outlook = Some(Outlook { cpus, cpus_sd });
        }
    }

    /// The features of a host with what they are expected to want.
    fn residents(&self, seen: &Seen<'_>, at: &[usize], host: usize) -> Vec<Resident> {
        let own = || (0..at.len()).filter(|f| at[*f] == host);
        let sum = self.residuals_of(own());
        own()
            .filter_map(|f| {
                let cpus = self.expected(seen, f);
                let levels = &self.levels[f];
                let (cpus_sd, covariance) = if self.parts.forecast {
                    let mine = self.residuals_of(std::iter::once(f));
                    let variance = self.residuals.variance(&mine, seen.now);
                    (variance.sqrt(), self.residuals.covariance(levels, &sum))
                } else {
                    (0.0, 0.0)
                };
                Some(Resident {
                    domain: guest(host),
                    feature: self.specs.get(f)?.name.clone(),
                    demand: Demand {
                        cpus: seen.last(f).max(cpus),
                        memory_mib: seen.memory_mib[f],
                        ..Demand::default()
                    },
                    outlook: Outlook { cpus, cpus_sd },
                    covariance,
                    move_s: seen.move_s(f) + seen.setup.freeze_s,
                    last_moved_ms: self.moved_ms[f],
                    past: Past {
                        bandwidth_bps: seen.setup.bandwidth_mib_s * 1_048_576.0,
                        fixed_ms: seen.setup.freeze_s * 1000.0,
                        ..Past::default()
                    },
                })
            })
            .collect()
    }

    fn view(&self, me: usize, seen: &Seen<'_>, peers: &[HostState]) -> View {
        let group = vec!["default".to_owned()];
        let mut hosts = peers.to_vec();
        if let (Some(own), Some(slot)) = (self.hosts.get(me), hosts.get_mut(me)) {
            slot.clone_from(own);
        }
        View {
            me: host_name(me),
            now_ms: now_ms(seen),
            groups: hosts
                .iter()
                .map(|h| (h.name.clone(), group.clone()))
                .collect(),
            hosts,
            stale_after_ms: i64::MAX,
            model: ModelInfo::default(),
        }
    }

    /// Whether the target takes the feature, by what it knows of itself.
    fn admits(&self, to: usize, r: &Resident) -> bool {
        let h = &self.hosts[to];
        let used = h.load.cpus_used + h.reserved_cpus + r.demand.cpus;
        !self.parts.admission || used <= h.capabilities.cpus * (1.0 - self.parts.rules.reserve)
    }
}

fn now_ms(seen: &Seen<'_>) -> i64 {
    seen.now.cast_signed() as i64 * seen.step_s * 1000
}

fn usage(seen: &Seen<'_>, f: usize, at_ms: i64) -> Usage {
    Usage {
        at_ms,
        dt_s: seen.step_s as f64,
        cpu_percent: Some(100.0 * seen.last(f)),
        memory_mib: Some(seen.memory_mib[f]),
        ..Usage::default()
    }
}

/// Puts a feature into the first guest of a host.
fn place(h: &mut HostState, spec: FeatureSpec, usage: &Usage, cpus: f64, memory_mib: f64) {
    h.load.cpus_used += cpus;
    h.load.memory_used_mib += memory_mib;
    if let Some(i) = h.instances.first_mut() {
        i.cpus_used += cpus;
        if let Some(m) = &mut i.memory_available_mib {
            *m = (*m - memory_mib).max(0.0);
        }
        i.features.push(FeatureState {
            spec,
            status: FeatureStatus::Running,
            usage: Some(*usage),
        });
    }
}

impl Policy for Drover {
    fn decide(&mut self, seen: &Seen<'_>) -> Vec<Move> {
        self.build(seen);
        if self.parts.model {
            self.learn(seen);
        }
        self.follow(seen);
        self.outlooks(seen);
        self.told.push_back(self.hosts.clone());
        while self.told.len() > self.parts.stale_steps.max(1) {
            self.told.pop_front();
        }
        self.steps += 1;

        let mut at = seen.at.to_vec();
        let mut moves: Vec<Move> = Vec::new();
        // The most pressed first; each daemon decides for its own host.
        let mut order: Vec<(f64, usize)> = self
            .hosts
            .iter()
            .map(|h| self.parts.relief.shortage_of(h))
            .zip(0..)
            .collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        for (shortage, me) in order {
            if shortage < self.parts.relief.least_gain_s {
                break;
            }
            let mut residents = self.residents(seen, &at, me);
            for _ in 0..MOST {
                let fresh = self.parts.stale_steps == 0;
                let peers = if fresh { &self.hosts } else { &self.told[0] };
                let view = self.view(me, seen, peers);
                let affinity = |r: &Resident, h: &HostState, i: &InstanceState| -> Score {
                    let window = self.affinity.window(&r.domain, &r.feature);
                    let window = window.unwrap_or_default();
                    self.affinity.score(&ScoreInput {
                        host: h,
                        instance: i,
                        feature: &r.feature,
                        window: &window,
                        demand: r.demand,
                    })
                };
                let Some(plan) = relieve(
                    &view,
                    &self.parts.rules,
                    &self.parts.relief,
                    &residents,
                    &affinity,
                ) else {
                    break;
                };
                let chosen = plan.chosen.and_then(|i| plan.candidates.get(i));
                let to = chosen.and_then(|c| self.hosts.iter().position(|h| h.name == c.host));
                let feature = self.specs.iter().position(|s| s.name == plan.feature);
                let index = residents.iter().position(|r| r.feature == plan.feature);
                let (Some(to), Some(feature), Some(index)) = (to, feature, index) else {
                    break;
                };
                let r = residents.remove(index);
                if !self.admits(to, &r) {
                    self.refused += 1;
                    continue;
                }
                self.go(seen, feature, (me, to), &r);
                at[feature] = to;
                moves.push(Move { feature, to });
            }
        }
        moves
    }
}

impl Drover {
    /// Brings the states up to a move that was agreed upon.
    fn go(&mut self, seen: &Seen<'_>, feature: usize, (from, to): (usize, usize), r: &Resident) {
        let (cpus, memory_mib) = (seen.last(feature), seen.memory_mib[feature]);
        self.moved_ms[feature] = Some(now_ms(seen));
        if let Some(h) = self.hosts.get_mut(from) {
            h.outlook = h.outlook.map(|o| without(&o, &r.outlook, r.covariance));
            h.load.cpus_used = (h.load.cpus_used - cpus).max(0.0);
            h.load.memory_used_mib = (h.load.memory_used_mib - memory_mib).max(0.0);
            if let Some(i) = h.instances.first_mut() {
                i.cpus_used = (i.cpus_used - cpus).max(0.0);
                i.features.retain(|f| f.spec.name != r.feature);
            }
        }
        if let (Some(h), Some(spec)) = (self.hosts.get_mut(to), self.specs.get(feature)) {
            h.outlook = h.outlook.map(|o| with(&o, &r.outlook));
            place(
                h,
                spec.clone(),
                &usage(seen, feature, now_ms(seen)),
                cpus,
                memory_mib,
            );
        }
    }
}
