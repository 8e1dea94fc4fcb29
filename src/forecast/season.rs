//! Periods, by autocorrelation.

/// Autocorrelation below which nothing counts as a period.
const LEAST: f64 = 0.3;
/// How much deeper the autocorrelation must have been before a period's peak.
const DIP: f64 = 0.15;

/// Autocorrelation at lags 0 to `most` of the values without their linear trend; all 0 for a
/// constant.
pub(super) fn autocorrelation(x: &[f64], most: usize) -> Vec<f64> {
    let n = x.len() as f64;
    let (mid, mean) = ((n - 1.0) / 2.0, x.iter().sum::<f64>() / n);
    let (mut xy, mut xx) = (0.0, 0.0);
    for (i, v) in x.iter().enumerate() {
        xy += (i as f64 - mid) * (v - mean);
        xx += (i as f64 - mid) * (i as f64 - mid);
    }
    let slope = if xx > 0.0 { xy / xx } else { 0.0 };
    let d: Vec<f64> = x
        .iter()
        .enumerate()
        .map(|(i, v)| v - mean - slope * (i as f64 - mid))
        .collect();
    let total: f64 = d.iter().map(|v| v * v).sum();
    let scale = x.iter().map(|v| v * v).sum::<f64>();
    (0..=most.min(x.len().saturating_sub(1)))
        .map(|lag| {
            // What is left of a straight line is rounding.
            if total <= scale * 1e-18 {
                return 0.0;
            }
            let sum: f64 = d.iter().zip(&d[lag..]).map(|(a, b)| a * b).sum();
            sum / total
        })
        .collect()
}

/// The lags of the two highest peaks that look like a period, the higher one first.
pub(super) fn periods(acf: &[f64]) -> Vec<usize> {
    let mut lowest = f64::INFINITY;
    let mut peaks = Vec::new();
    for lag in 2..acf.len().saturating_sub(1) {
        lowest = lowest.min(acf[lag - 1]);
        let peak = acf[lag] >= acf[lag - 1] && acf[lag] > acf[lag + 1];
        if peak && acf[lag] >= LEAST && acf[lag] - lowest >= DIP {
            peaks.push(lag);
        }
    }
    peaks.sort_by(|a, b| acf[*b].total_cmp(&acf[*a]));
    peaks.truncate(2);
    peaks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_period() {
        let x: Vec<f64> = (0..200)
            .map(|i| {
                f64::from(i) * 0.1 + 10.0 * (f64::from(i) / 24.0 * std::f64::consts::TAU).sin()
            })
            .collect();
        let p = periods(&autocorrelation(&x, 66));
        assert_eq!(p.first(), Some(&24), "{p:?}");
    }

    #[test]
    fn finds_none_in_a_line_or_a_constant() {
        let line: Vec<f64> = (0..100).map(f64::from).collect();
        assert!(periods(&autocorrelation(&line, 33)).is_empty());
        assert!(periods(&autocorrelation(&[5.0; 50], 16)).is_empty());
    }
}
