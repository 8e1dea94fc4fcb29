//! A policy that knows the future: how far the others are from what can be had.

use super::trace::Trace;
use super::world::{Move, Policy, Seen};

/// Makes the move that saves most of the overload that will be, net of its own time, again and
/// again. Greedy, hence not the very best either.
#[derive(Debug, Clone)]
pub struct Oracle<'a> {
    trace: &'a Trace,
    ahead: usize,
}

/// Targets that are tried, the emptiest ones.
const TARGETS: usize = 6;

impl<'a> Oracle<'a> {
    /// Looks `ahead_s` seconds into the future.
    pub fn new(trace: &'a Trace, ahead_s: i64) -> Self {
        let ahead = (ahead_s / trace.step_s.max(1)).max(1) as usize;
        Self { trace, ahead }
    }
}

/// Feature-seconds of overload of a host with `n` features.
fn overload(load: &[f64], change: Option<(&[f64], f64)>, n: usize, cpus: f64, step_s: f64) -> f64 {
    let at = |i: usize| change.map_or(0.0, |(c, sign)| sign * c[i]);
    let hot = (0..load.len()).filter(|i| load[*i] + at(*i) > cpus).count();
    hot as f64 * n as f64 * step_s
}

impl Policy for Oracle<'_> {
    fn decide(&mut self, seen: &Seen<'_>) -> Vec<Move> {
        let (cpus, step_s) = (seen.setup.host_cpus, seen.step_s as f64);
        let until = (seen.now + self.ahead).min(self.trace.steps());
        let ahead = |f: usize| &self.trace.features[f].cpus[seen.now..until];
        let mut at = seen.at.to_vec();
        let mut loads = vec![vec![0.0; until - seen.now]; seen.setup.hosts];
        let mut counts = vec![0; loads.len()];
        for (f, h) in at.iter().enumerate() {
            counts[*h] += 1;
            for (l, c) in loads[*h].iter_mut().zip(ahead(f)) {
                *l += c;
            }
        }
        let mut moves: Vec<Move> = Vec::new();
        loop {
            let of = |h: usize| overload(&loads[h], None, counts[h], cpus, step_s);
            let mut hot: Vec<(f64, usize)> = (0..loads.len()).map(|h| (of(h), h)).collect();
            hot.retain(|(o, _)| *o > 0.0);
            hot.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let mean: Vec<f64> = loads.iter().map(|l| l.iter().sum()).collect();
            let mut best = None;
            for (now, from) in hot {
                let mut targets: Vec<usize> = (0..loads.len()).filter(|h| *h != from).collect();
                targets.sort_by(|a, b| mean[*a].total_cmp(&mean[*b]));
                targets.truncate(TARGETS);
                let mut most = 0.0;
                let fresh = |f: usize| !moves.iter().any(|m| m.feature == f);
                for f in (0..at.len()).filter(|f| at[*f] == from && fresh(*f)) {
                    let less = Some((ahead(f), -1.0));
                    let left = overload(&loads[from], less, counts[from] - 1, cpus, step_s);
                    let gain = now - left - seen.move_s(f) - seen.setup.freeze_s;
                    if gain <= most {
                        continue;
                    }
                    for to in targets.iter().copied() {
                        let more = Some((ahead(f), 1.0));
                        let then = overload(&loads[to], more, counts[to] + 1, cpus, step_s);
                        let gain = gain - (then - of(to));
                        if gain > most {
                            most = gain;
                            best = Some((f, from, to));
                        }
                    }
                }
                if best.is_some() {
                    break;
                }
            }
            let Some((feature, from, to)) = best else {
                return moves;
            };
            for (i, c) in ahead(feature).iter().enumerate() {
                loads[from][i] -= c;
                loads[to][i] += c;
            }
            (at[feature], counts[from], counts[to]) = (to, counts[from] - 1, counts[to] + 1);
            moves.push(Move { feature, to });
        }
    }
}
