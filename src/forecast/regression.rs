//! A regression on averages that forget at different speeds, one per horizon: how far the series
//! will be from its running mean, told by how far its latest values are.

use super::methods::running_mean;

/// Smoothing of the averages, from the last value to a slow one.
const ALPHAS: [f64; K] = [1.0, 0.5, 0.2, 0.08, 0.03];
const K: usize = 5;
/// Pulls the weights towards zero, that is, the forecast towards the mean: a fraction of the
/// inputs' own variance.
const RIDGE: f64 = 0.2;
/// Fewest steps from which weights are told.
const LEAST: usize = 30;

type Row = [f64; K];

/// Weights of one series, per horizon.
#[derive(Debug, Clone)]
pub(super) struct Regression {
    /// Differences between neighbouring averages after each step; of the slowest to the mean.
    inputs: Vec<Row>,
    means: Vec<f64>,
    /// By what was before the moments at which methods are judged.
    before: Vec<Row>,
    /// By all steps, for the forecast itself.
    all: Vec<Row>,
}

impl Regression {
    /// Weights for up to `most` steps ahead; those that are judged know `x[..until]` only. `None`
    /// when that is too short, or holds what cannot be squared.
    pub(super) fn of(x: &[f64], until: usize, most: usize) -> Option<Self> {
        if until < LEAST {
            return None;
        }
        let means = running_mean(x);
        let mut averages = [x[0]; K];
        let inputs: Vec<Row> = x
            .iter()
            .zip(&means)
            .map(|(v, mean)| {
                for (average, alpha) in averages.iter_mut().zip(ALPHAS) {
                    *average += alpha * (v - *average);
                }
                std::array::from_fn(|k| averages[k] - averages.get(k + 1).unwrap_or(mean))
            })
            .collect();
        let fit = |until: usize| -> Option<Vec<Row>> {
            (1..=most)
                .map(|h| weights(x, &inputs, &means, until, h))
                .collect()
        };
        let (before, all) = (fit(until)?, fit(x.len())?);
        Some(Self {
            inputs,
            means,
            before,
            all,
        })
    }

    /// What the value is expected to be `h` steps after the first `t`.
    pub(super) fn predict(&self, t: usize, h: usize) -> f64 {
        let weights = if t == self.inputs.len() {
            &self.all
        } else {
            &self.before
        };
        let more = weights[h - 1].iter().zip(&self.inputs[t - 1]);
        self.means[t - 1] + more.map(|(w, v)| w * v).sum::<f64>()
    }
}

/// Least squares over the moments whose outcome `h` steps later is within `x[..until]`.
fn weights(x: &[f64], inputs: &[Row], means: &[f64], until: usize, h: usize) -> Option<Row> {
    let (mut squares, mut products) = ([[0.0; K]; K], [0.0; K]);
    // The first averages know next to nothing.
    for t in (until / 8).max(1)..(until + 1).saturating_sub(h) {
        let (input, off) = (&inputs[t - 1], x[t + h - 1] - means[t - 1]);
        for i in 0..K {
            products[i] += input[i] * off;
            for j in 0..K {
                squares[i][j] += input[i] * input[j];
            }
        }
    }
    let mean = (0..K).map(|i| squares[i][i]).sum::<f64>() / K as f64;
    for (i, row) in squares.iter_mut().enumerate() {
        row[i] += RIDGE * (row[i] + mean) + 1e-9;
    }
    let found = solve(squares, products);
    found.iter().all(|w| w.is_finite()).then_some(found)
}

/// Gauss's elimination; the matrix is positive definite, so no row need be exchanged.
fn solve(mut matrix: [Row; K], mut right: Row) -> Row {
    for i in 0..K {
        for j in i + 1..K {
            let by = matrix[j][i] / matrix[i][i];
            let above = matrix[i];
            for (below, above) in matrix[j].iter_mut().zip(above) {
                *below -= by * above;
            }
            right[j] -= by * right[i];
        }
    }
    let mut found = [0.0; K];
    for i in (0..K).rev() {
        let known: f64 = (i + 1..K).map(|k| matrix[i][k] * found[k]).sum();
        found[i] = (right[i] - known) / matrix[i][i];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solves() {
        let mut a = [[0.5; K]; K];
        for (i, row) in a.iter_mut().enumerate() {
            row[i] = 2.0 + i as f64;
        }
        let w = [1.0, -2.0, 0.0, 3.0, 0.5];
        let b = a.map(|row| row.iter().zip(w).map(|(a, w)| a * w).sum());
        for (found, w) in solve(a, b).iter().zip(w) {
            assert!((found - w).abs() < 1e-9, "{found} {w}");
        }
    }

    #[test]
    fn a_level_that_returns_slowly() {
        // Halves its distance to 10 in about seven steps, pushed off every 40.
        let mut v = 10.0;
        let x: Vec<f64> = (0..400)
            .map(|i| {
                v = 10.0 + 0.9 * (v - 10.0);
                if i % 40 == 0 {
                    v += 20.0;
                }
                v
            })
            .collect();
        let r = Regression::of(&x, 200, 20).unwrap();
        let (mut own, mut naive) = (0.0, 0.0);
        for t in 200..390 {
            own += (r.predict(t, 10) - x[t + 9]).abs();
            naive += (x[t - 1] - x[t + 9]).abs();
        }
        assert!(own < 0.9 * naive, "{own} {naive}");
    }

    #[test]
    fn too_short_or_too_large() {
        assert!(Regression::of(&[1.0; 100], 10, 5).is_none());
        assert!(Regression::of(&[1.0; 100], 50, 5).is_some());
        let huge: Vec<f64> = (0..100).map(|i| f64::from(i % 7) * 1e300).collect();
        assert!(Regression::of(&huge, 50, 5).is_none());
    }
}
