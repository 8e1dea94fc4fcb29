//! The level of a series over the next half hour, and what is left over: for plans that need one
//! number and its uncertainty of very many series, where [`forecast`](super::forecast()) would be
//! too dear. Constant work and memory per value.

use std::collections::VecDeque;

/// Half-lives of the averages that compete, seconds.
const HALF_LIVES_S: [f64; K] = [900.0, 3_600.0, 14_400.0, 43_200.0];
const K: usize = 4;
/// The level is judged by the mean of the series over so long, seconds.
const AHEAD_S: f64 = 1_800.0;
/// Half-life of what the averages were wrong by, seconds.
const JUDGED_S: f64 = 21_600.0;
/// Half-life of the residuals, seconds.
const RESIDUAL_S: f64 = 28_800.0;
/// Residuals kept.
const MOST: usize = 288;

/// Follows a series: several averages that forget at different speeds, judged by how well each
/// foretold the next half hour (rolling origin); the best one so far is the level.
#[derive(Debug, Clone)]
pub struct Levels {
    /// Factor per step of each average.
    decay: [f64; K],
    judged: f64,
    ahead: usize,
    sums: [f64; K],
    weights: [f64; K],
    wrong: [f64; K],
    /// What each average was, oldest first, until its half hour is over. There are thousands of
    /// these, and an `f32` is exact enough.
    told: VecDeque<[f32; K]>,
    latest: VecDeque<f32>,
    residuals: VecDeque<f32>,
}

impl Levels {
    /// For values that are means over `step_s` seconds each.
    pub fn new(step_s: f64) -> Self {
        let step_s = step_s.max(1e-3);
        let factor = |half: f64| 0.5f64.powf(step_s / half);
        Self {
            decay: HALF_LIVES_S.map(factor),
            judged: factor(JUDGED_S),
            ahead: ((AHEAD_S / step_s).round() as usize).clamp(1, MOST),
            sums: [0.0; K],
            weights: [0.0; K],
            wrong: [0.0; K],
            told: VecDeque::new(),
            latest: VecDeque::new(),
            residuals: VecDeque::new(),
        }
    }

    /// Takes the next value; what is not a number is left out.
    pub fn push(&mut self, value: f64) {
        if !value.is_finite() {
            return;
        }
        if let Some(level) = self.level() {
            if self.residuals.len() == MOST {
                self.residuals.pop_front();
            }
            room(&mut self.residuals, MOST);
            self.residuals.push_back((value - level) as f32);
        }
        room(&mut self.latest, self.ahead);
        self.latest.push_back(value as f32);
        if self.latest.len() > self.ahead {
            self.latest.pop_front();
        }
        if self.told.len() == self.ahead
            && self.latest.len() == self.ahead
            && let Some(told) = self.told.pop_front()
        {
            let sum: f64 = self.latest.iter().copied().map(f64::from).sum();
            let came = sum / self.ahead as f64;
            for (wrong, told) in self.wrong.iter_mut().zip(told) {
                *wrong = *wrong * self.judged + (f64::from(told) - came).powi(2);
            }
        }
        for k in 0..K {
            self.sums[k] = self.sums[k] * self.decay[k] + value;
            self.weights[k] = self.weights[k] * self.decay[k] + 1.0;
        }
        let told = self.averages().map(|a| a as f32);
        room(&mut self.told, self.ahead);
        self.told.push_back(told);
    }

    fn averages(&self) -> [f64; K] {
        std::array::from_fn(|k| self.sums[k] / self.weights[k].max(1e-300))
    }

    /// What the series is expected to be on average; `None` before the first value.
    pub fn level(&self) -> Option<f64> {
        if self.weights[0] <= 0.0 {
            return None;
        }
        let best = (0..K).min_by(|a, b| self.wrong[*a].total_cmp(&self.wrong[*b]))?;
        Some(self.averages()[best])
    }

    /// By how much each value was off the level before it, oldest first, at most 288.
    pub fn residuals(&self) -> impl DoubleEndedIterator<Item = f64> + ExactSizeIterator + '_ {
        self.residuals.iter().map(|r| f64::from(*r))
    }
}

/// Makes room for one more of at most `most`, without doubling it.
fn room<T>(queue: &mut VecDeque<T>, most: usize) {
    if queue.len() == queue.capacity() {
        queue.reserve_exact((most / 8).max(1));
    }
}

/// Weights of residuals by age: sums of residuals of several series give the variance of their sum
/// as it is, whether or not they rise together.
#[derive(Debug, Clone)]
pub struct Residuals {
    weights: Vec<f64>,
}

impl Residuals {
    /// For steps of `step_s` seconds.
    pub fn new(step_s: f64) -> Self {
        let by = 0.5f64.powf(step_s.max(1e-3) / RESIDUAL_S);
        let raw: Vec<f64> = (0..MOST).map(|age| by.powf(age as f64)).collect();
        Self { weights: raw }
    }

    /// A sum of no series.
    pub fn none(&self) -> Vec<f64> {
        vec![0.0; MOST]
    }

    /// Adds a series' residuals, newest first.
    pub fn add(&self, sum: &mut [f64], of: &Levels) {
        for (s, r) in sum.iter_mut().zip(of.residuals().rev()) {
            *s += r;
        }
    }

    /// Variance of a sum over the latest `steps` values.
    pub fn variance(&self, sum: &[f64], steps: usize) -> f64 {
        self.mean(sum.iter().map(|v| v * v), steps)
    }

    /// Covariance of a series with a sum that it is part of.
    pub fn covariance(&self, of: &Levels, sum: &[f64]) -> f64 {
        let steps = of.residuals().len();
        self.mean(of.residuals().rev().zip(sum).map(|(a, b)| a * b), steps)
    }

    fn mean(&self, of: impl Iterator<Item = f64>, steps: usize) -> f64 {
        let (mut sum, mut total) = (0.0, 0.0);
        for (v, w) in of.zip(&self.weights).take(steps) {
            sum += w * v;
            total += w;
        }
        if total > 0.0 { sum / total } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(values: impl Iterator<Item = f64>) -> Levels {
        let mut l = Levels::new(300.0);
        values.for_each(|v| l.push(v));
        l
    }

    #[test]
    fn a_constant_and_nothing() {
        assert_eq!(after(std::iter::empty()).level(), None);
        let l = after(std::iter::repeat_n(3.0, 50));
        assert!((l.level().unwrap() - 3.0).abs() < 1e-9);
        assert_eq!(after([f64::NAN, f64::INFINITY].into_iter()).level(), None);
    }

    #[test]
    fn slow_for_noise_fast_for_steps() {
        // Noise around 1: the slow averages are best. Long steps: the fast one.
        let noise = after((0..400).map(|i: i32| f64::from((i * 7919 + 13) % 101) / 50.0));
        assert!(
            (noise.level().unwrap() - 1.0).abs() < 0.1,
            "{:?}",
            noise.level()
        );
        let steps = after((0..400).map(|i| f64::from(i / 50 % 2)));
        assert!(steps.level().unwrap() > 0.9, "{:?}", steps.level());
    }

    #[test]
    fn bounded_and_additive() {
        let (a, b) = (
            after((0..1000).map(|i| f64::from(i % 3))),
            after((0..1000).map(|i| f64::from(2 - i % 3))),
        );
        assert_eq!(a.residuals().len(), MOST);
        assert!(a.told.len() <= 7 && a.latest.len() <= 6);
        let r = Residuals::new(300.0);
        let mut sum = r.none();
        r.add(&mut sum, &a);
        let alone = r.variance(&sum, MOST);
        assert!((r.covariance(&a, &sum) - alone).abs() < 1e-9);
        // Together they are constant.
        r.add(&mut sum, &b);
        assert!(alone > 0.3 && r.variance(&sum, MOST) < 1e-6);
    }
}
