//! What Drover is compared with. Each has one parameter, tuned like Drover's on one trace and then
//! left alone.

use super::world::{Move, Policy, Seen};

/// Leaves everything where it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nothing;

impl Policy for Nothing {
    fn decide(&mut self, _seen: &Seen<'_>) -> Vec<Move> {
        Vec::new()
    }
}

/// Most features that leave a host in one step.
const MOST: usize = 20;

/// A host above the limit gives features to the least loaded host, until it is below: the smallest
/// that suffices, else the largest. The target stays below the limit too.
#[derive(Debug, Clone, Copy)]
pub struct Threshold {
    /// Limit, as a fraction of a host's CPUs.
    pub limit: f64,
}

fn least(loads: &[f64], open: impl Fn(usize) -> bool) -> Option<usize> {
    let hosts = (0..loads.len()).filter(|h| open(*h));
    hosts.min_by(|a, b| loads[*a].total_cmp(&loads[*b]))
}

fn residents(at: &[usize], host: usize) -> impl Iterator<Item = usize> {
    (0..at.len()).filter(move |f| at[*f] == host)
}

impl Policy for Threshold {
    fn decide(&mut self, seen: &Seen<'_>) -> Vec<Move> {
        let limit = self.limit * seen.setup.host_cpus;
        let (mut loads, mut at) = (seen.loads(), seen.at.to_vec());
        let mut moves = Vec::new();
        for h in 0..loads.len() {
            for _ in 0..MOST {
                if loads[h] <= limit {
                    break;
                }
                let Some(to) = least(&loads, |k| k != h) else {
                    break;
                };
                let need = loads[h] - limit;
                let mut own: Vec<usize> = residents(&at, h).collect();
                own.sort_by(|a, b| seen.last(*a).total_cmp(&seen.last(*b)));
                let enough = own.iter().find(|f| seen.last(**f) >= need);
                let Some(feature) = enough.or(own.last()).copied() else {
                    break;
                };
                let d = seen.last(feature);
                if loads[to] + d > limit {
                    break;
                }
                (at[feature], loads[h], loads[to]) = (to, loads[h] - d, loads[to] + d);
                moves.push(Move { feature, to });
            }
        }
        moves
    }
}

/// As cluster balancers do (VMware DRS, for instance): while the standard deviation of the hosts'
/// use is above the target, make the move from the fullest to the emptiest host that lowers it
/// most.
#[derive(Debug, Clone, Copy)]
pub struct Balance {
    /// Standard deviation that is left alone, as a fraction of a host's CPUs.
    pub spread: f64,
}

impl Policy for Balance {
    fn decide(&mut self, seen: &Seen<'_>) -> Vec<Move> {
        let (mut loads, mut at) = (seen.loads(), seen.at.to_vec());
        let n = loads.len() as f64;
        let mean = loads.iter().sum::<f64>() / n;
        let mut moves: Vec<Move> = Vec::new();
        for _ in 0..at.len() {
            let variance = loads.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / n;
            if variance.sqrt() <= self.spread * seen.setup.host_cpus {
                break;
            }
            let hosts = 0..loads.len();
            let (Some(from), Some(to)) = (
                hosts.max_by(|a, b| loads[*a].total_cmp(&loads[*b])),
                least(&loads, |_| true),
            ) else {
                break;
            };
            // Change of the sum of squares; one move of a feature is enough.
            let gain = |f: usize| 2.0 * seen.last(f) * (loads[from] - loads[to] - seen.last(f));
            let fresh = residents(&at, from).filter(|f| !moves.iter().any(|m| m.feature == *f));
            let best = fresh.max_by(|a, b| gain(*a).total_cmp(&gain(*b)));
            let Some(feature) = best.filter(|f| gain(*f) > 0.0) else {
                break;
            };
            let d = seen.last(feature);
            (at[feature], loads[from], loads[to]) = (to, loads[from] - d, loads[to] + d);
            moves.push(Move { feature, to });
        }
        moves
    }
}

/// Local regression and minimum migration time, with power-aware best fit decreasing placement.
///
/// A. Beloglazov and R. Buyya, "Optimal online deterministic algorithms and adaptive heuristics
/// for energy and performance efficient dynamic consolidation of virtual machines in Cloud data
/// centers", Concurrency and Computation: Practice and Experience 24(13), 2012, sections 5 and 6.
///
/// A host is overloaded when the local regression (Loess, tricube weights) of its last ten steps,
/// times the safety parameter, reaches its capacity. The features that move fastest leave until it
/// is not. They are placed in decreasing order of use on the host whose power rises least; among
/// hosts that are alike and on, the power of each rises by the same, and best fit decides. Hosts
/// are not switched off here, so the consolidation of underused hosts is left out.
#[derive(Debug, Clone, Copy)]
pub struct LrMmt {
    /// Safety parameter; the paper takes 1.2.
    pub safety: f64,
}

/// Steps that the regression looks at, as in the paper.
const WINDOW: usize = 10;

/// The next value by local linear regression.
fn loess(y: &[f64]) -> f64 {
    let n = y.len() as f64;
    let (mut sw, mut sx, mut sy, mut sxx, mut sxy) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (i, v) in y.iter().enumerate() {
        let x = i as f64;
        let w = (1.0 - ((n - 1.0 - x) / n).powi(3)).powi(3);
        sw += w;
        sx += w * x;
        sy += w * v;
        sxx += w * x * x;
        sxy += w * x * v;
    }
    let below = sw * sxx - sx * sx;
    if below.abs() < 1e-12 {
        return y.last().copied().unwrap_or(0.0);
    }
    let slope = (sw * sxy - sx * sy) / below;
    (sy - slope * sx) / sw + slope * n
}

impl LrMmt {
    fn over(self, host: &[f64], cpus: f64) -> bool {
        self.safety * loess(host) >= cpus
    }
}

fn add(host: &mut [f64], feature: &[f64], sign: f64) {
    for (h, f) in host.iter_mut().zip(feature) {
        *h += sign * f;
    }
}

impl Policy for LrMmt {
    fn decide(&mut self, seen: &Seen<'_>) -> Vec<Move> {
        let cpus = seen.setup.host_cpus;
        let window = WINDOW.min(seen.now);
        let past = |f: usize| &seen.past(f)[seen.now - window..];
        let mut hosts = vec![vec![0.0; window]; seen.setup.hosts];
        for (f, h) in seen.at.iter().enumerate() {
            add(&mut hosts[*h], past(f), 1.0);
        }
        let mut leaving: Vec<(usize, usize)> = Vec::new();
        let mut hot = vec![false; hosts.len()];
        for h in 0..hosts.len() {
            let mut own: Vec<usize> = residents(seen.at, h).collect();
            own.sort_by(|a, b| seen.memory_mib[*b].total_cmp(&seen.memory_mib[*a]));
            while self.over(&hosts[h], cpus) {
                let Some(f) = own.pop() else { break };
                hot[h] = true;
                add(&mut hosts[h], past(f), -1.0);
                leaving.push((f, h));
            }
        }
        leaving.sort_by(|a, b| seen.last(b.0).total_cmp(&seen.last(a.0)));
        let mut moves = Vec::new();
        for (feature, from) in leaving {
            let d = seen.last(feature);
            let load = |h: usize| hosts[h].last().copied().unwrap_or(0.0);
            let fits = |h: usize| {
                let mut then = hosts[h].clone();
                add(&mut then, past(feature), 1.0);
                !hot[h] && load(h) + d <= cpus && !self.over(&then, cpus)
            };
            let open = (0..hosts.len()).filter(|h| fits(*h));
            // Nowhere to go: it stays.
            let to = open.max_by(|a, b| load(*a).total_cmp(&load(*b)));
            let to = to.unwrap_or(from);
            add(&mut hosts[to], past(feature), 1.0);
            if to != from {
                moves.push(Move { feature, to });
            }
        }
        moves
    }
}

#[cfg(test)]
mod tests {
    use super::loess;

    #[test]
    fn regression_goes_on_with_a_line_and_prefers_the_latest() {
        let line: Vec<f64> = (0..10).map(f64::from).collect();
        assert!((loess(&line) - 10.0).abs() < 1e-9);
        let bend: Vec<f64> = (0..10).map(|i| f64::from((i - 5).max(0))).collect();
        let next = loess(&bend);
        assert!(next > 3.5 && next < 5.0, "{next}");
        assert_eq!(loess(&[2.0]), 2.0);
    }
}
