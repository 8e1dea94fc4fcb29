//! From the headroom score to the model, as rows come in.

/// Weight of the model, rising linearly from 0 at `rows_min` to 1 at `rows_full` rows.
pub fn weight(rows: u64, rows_min: u64, rows_full: u64) -> f64 {
    if rows <= rows_min {
        0.0
    } else if rows >= rows_full {
        1.0
    } else {
        (rows - rows_min) as f64 / (rows_full - rows_min) as f64
    }
}

/// `w * model + (1 - w) * headroom`.
pub fn blend(headroom: f64, model: f64, w: f64) -> f64 {
    w * model + (1.0 - w) * headroom
}

/// How a score with this weight is called: `headroom`, `blend` or `gbdt`.
pub fn kind(w: f64) -> &'static str {
    if w <= 0.0 {
        "headroom"
    } else if w < 1.0 {
        "blend"
    } else {
        "gbdt"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_and_middle() {
        assert_eq!(weight(0, 200, 2000), 0.0);
        assert_eq!(weight(200, 200, 2000), 0.0);
        assert_eq!(weight(1100, 200, 2000), 0.5);
        assert_eq!(weight(2000, 200, 2000), 1.0);
        assert_eq!(weight(5, 5, 5), 0.0);
        assert_eq!(weight(6, 5, 5), 1.0);
        assert_eq!(blend(0.2, 0.8, 0.5), 0.5);
        assert_eq!([0.0, 0.5, 1.0].map(kind), ["headroom", "blend", "gbdt"]);
    }
}
