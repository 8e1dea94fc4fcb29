//! Champion and challenger: a new model replaces the one in use only when it predicts the
//! latest rows better.

use std::borrow::Borrow;

use super::AffinityError;
use super::model::{Model, Params};
use super::reservoir::Row;

/// Fewest rows for a training.
pub const MIN_ROWS: usize = 60;

/// A trained challenger and how it compares on the latest tenth of the rows, which neither
/// training nor early stopping saw. Errors are mean absolute.
#[derive(Debug)]
pub struct Trained {
    /// The challenger.
    pub model: Model,
    /// Its error.
    pub error: f64,
    /// Error of predicting the training rows' mean: what any model must beat.
    pub constant_error: f64,
    /// Error of the model in use, if there is one.
    pub champion_error: Option<f64>,
}

impl Trained {
    /// Whether the challenger wins.
    pub fn wins(&self) -> bool {
        self.error < self.constant_error && self.champion_error.is_none_or(|c| self.error < c)
    }
}

/// Trains a challenger on `rows` (oldest first): the first 80 % for training, the next 10 % for
/// early stopping, the last 10 % for the comparison.
pub fn train<R: Borrow<Row>>(
    rows: &[R],
    champion: Option<&Model>,
    params: &Params,
    now_ms: i64,
    keep_going: &mut dyn FnMut() -> bool,
) -> Result<Trained, AffinityError> {
    let n = rows.len();
    if n < MIN_ROWS {
        return Err(AffinityError::TooFewRows {
            have: n,
            need: MIN_ROWS,
        });
    }
    let mut rows: Vec<&Row> = rows.iter().map(Borrow::borrow).collect();
    rows.sort_by(|a, b| (a.at_ms, &a.host, &a.feature).cmp(&(b.at_ms, &b.host, &b.feature)));
    let (train, rest) = rows.split_at(n * 8 / 10);
    let (validation, test) = rest.split_at(rest.len() / 2);
    let model = Model::fit(train, validation, params, now_ms, keep_going)?;
    let mean = train.iter().map(|r| f64::from(r.y)).sum::<f64>() / train.len() as f64;
    let constant = test.iter().map(|r| (f64::from(r.y) - mean).abs());
    Ok(Trained {
        error: model
            .error(test)
            .ok_or_else(|| AffinityError::Training("the new model does not predict".into()))?,
        constant_error: constant.sum::<f64>() / test.len() as f64,
        champion_error: champion.and_then(|c| c.error(test)),
        model,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::synthetic;
    use super::*;

    #[test]
    fn only_a_better_challenger_wins() {
        let go = &mut || true;
        let p = Params::default();
        let rows = synthetic(1000, 1);
        let first = train(&rows, None, &p, 1, go).unwrap();
        assert!(first.wins(), "{first:?}");
        assert!(first.champion_error.is_none());
        // A challenger that may grow one shallow tree only loses.
        let poor = Params {
            trees: 1,
            depth: 1,
            ..Params::default()
        };
        let second = train(&rows, Some(&first.model), &poor, 2, go).unwrap();
        assert!(second.error > second.champion_error.unwrap());
        assert!(!second.wins());
        // The world turned round: what was good is bad now.
        let mut turned = synthetic(1000, 2);
        for r in &mut turned {
            r.y = 1.0 - r.y;
        }
        let third = train(&turned, Some(&first.model), &p, 3, go).unwrap();
        assert!(third.wins(), "{third:?}");
    }

    #[test]
    fn noise_is_not_learnt_and_few_rows_are_refused() {
        let mut rows = synthetic(400, 3);
        let mut random = super::super::tests::Random(9);
        for r in &mut rows {
            r.y = if random.unit() < 0.5 { 0.2 } else { 0.9 };
        }
        let t = train(&rows, None, &Params::default(), 1, &mut || true).unwrap();
        assert!(t.error > 0.3, "not by luck: {t:?}");
        let few = train(
            &rows[..MIN_ROWS - 1],
            None,
            &Params::default(),
            1,
            &mut || true,
        );
        assert!(matches!(few, Err(AffinityError::TooFewRows { .. })));
    }
}
