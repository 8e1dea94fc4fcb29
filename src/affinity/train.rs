//! Champion and challenger: a new model replaces the one in use only when it predicts the
//! latest rows better.

use std::borrow::Borrow;

use super::AffinityError;
use super::carry::carried;
use super::model::{Model, Params};
use super::reservoir::Row;

/// Fewest rows for a training.
pub const MIN_ROWS: usize = 60;

/// A trained challenger and how it compares on the latest tenth of each feature's rows on each
/// host, which neither training nor early stopping saw. Errors are mean absolute.
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

/// Rows for training, for early stopping and for the comparison.
struct Parts<'a> {
    train: Vec<&'a Row>,
    validation: Vec<&'a Row>,
    test: Vec<&'a Row>,
}

/// Splits rows in time: of what each feature has on each host the first 80 % for training, the
/// next 10 % for early stopping, the last 10 % for the comparison. A cut through all rows at once
/// would judge by those features only that ran last.
fn split(mut rows: Vec<&Row>) -> Parts<'_> {
    rows.sort_by(|a, b| (&a.host, &a.feature, a.at_ms).cmp(&(&b.host, &b.feature, b.at_ms)));
    let (mut train, mut validation, mut test) = (Vec::new(), Vec::new(), Vec::new());
    for series in rows.chunk_by(|a, b| a.host == b.host && a.feature == b.feature) {
        for (i, row) in series.iter().enumerate() {
            // The middle of the row's part of the series, in twentieths of it.
            let at = (2 * i + 1) * 10 / series.len();
            match at {
                ..16 => train.push(*row),
                16 | 17 => validation.push(*row),
                _ => test.push(*row),
            }
        }
    }
    if validation.is_empty() || test.is_empty() {
        // A row or two of each feature: those that came last are all there is.
        let n = rows.len();
        rows.sort_by_key(|r| r.at_ms);
        test = rows.split_off(n * 9 / 10);
        validation = rows.split_off(n * 8 / 10);
        train = rows;
    }
    Parts {
        train,
        validation,
        test,
    }
}

/// Trains a challenger on `rows`, as decisions see them ([`carried`]); each feature's rows are
/// split in time.
pub fn train<R: Borrow<Row>>(
    rows: &[R],
    champion: Option<&Model>,
    params: &Params,
    now_ms: i64,
    keep_going: &mut dyn FnMut() -> bool,
) -> Result<Trained, AffinityError> {
    if rows.len() < MIN_ROWS {
        return Err(AffinityError::TooFewRows {
            have: rows.len(),
            need: MIN_ROWS,
        });
    }
    let mut rows: Vec<&Row> = rows.iter().map(Borrow::borrow).collect();
    rows.sort_by(|a, b| (a.at_ms, &a.host, &a.feature).cmp(&(b.at_ms, &b.host, &b.feature)));
    let rows = carried(&rows);
    let Parts {
        train,
        validation,
        test,
    } = split(rows.iter().collect());
    let model = Model::fit(&train, &validation, params, now_ms, keep_going)?;
    let mean = train.iter().map(|r| f64::from(r.y)).sum::<f64>() / train.len() as f64;
    let constant = test.iter().map(|r| (f64::from(r.y) - mean).abs());
    Ok(Trained {
        error: model
            .error(&test)
            .ok_or_else(|| AffinityError::Training("the new model does not predict".into()))?,
        constant_error: constant.sum::<f64>() / test.len() as f64,
        champion_error: champion.and_then(|c| c.error(&test)),
        model,
    })
}

#[cfg(test)]
mod tests {
    use super::super::schema::{N, column};
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
    fn what_ran_first_counts_as_what_ran_last() {
        // One feature stalls by what it does, then another runs that never stalls.
        let disk = column("own_disk_mean");
        let mut rows = synthetic(200, 4);
        for (i, r) in rows.iter_mut().enumerate() {
            let first = i < 100;
            r.feature = if first { "writes" } else { "computes" }.into();
            r.x = [0.0; N];
            r.x[disk] = if first { (i % 10) as f32 } else { 0.0 };
            r.y = if first && i % 10 > 4 { 0.1 } else { 0.9 };
        }
        let t = train(&rows, None, &Params::default(), 1, &mut || true).unwrap();
        assert!(t.wins() && t.error < 0.05, "{t:?}");
        let mut x = rows[0].x;
        x[disk] = 9.0;
        assert!(t.model.predict(&x).unwrap() < 0.2, "{t:?}");
    }

    #[test]
    fn a_slow_host_is_not_taken_for_a_feature_that_wants_little() {
        // What it uses depends on what the host lets it use: little on the slow one.
        let (disk, host) = (column("own_disk_mean"), column("host_bucket"));
        let load = column("host_disk_after");
        let mut rows = synthetic(300, 6);
        for (i, r) in rows.iter_mut().enumerate() {
            let slow = i % 3 == 0;
            r.host = ["slow", "a", "b"][i % 3].into();
            r.x = [0.0; N];
            r.x[disk] = if slow { 1.0 } else { 12.0 };
            r.x[load] = r.x[disk];
            r.x[host] = [500.0, 100.0, 900.0][i % 3];
            r.y = if slow { 0.2 } else { 0.95 };
        }
        let t = train(&rows, None, &Params::default(), 1, &mut || true).unwrap();
        // Asked at a good host, with the use from there: the slow host is slow.
        let mut x = rows[1].x;
        x[host] = 500.0;
        assert!(t.model.predict(&x).unwrap() < 0.3, "{t:?}");
        // And a good one is good for what comes from the slow one.
        let mut x = rows[0].x;
        x[host] = 100.0;
        assert!(t.model.predict(&x).unwrap() > 0.85, "{t:?}");
    }

    #[test]
    fn a_row_or_two_of_each_feature_are_split_too() {
        let mut rows = synthetic(100, 5);
        for (i, r) in rows.iter_mut().enumerate() {
            r.feature = format!("f{}", i / 2);
        }
        let parts = split(rows.iter().collect());
        let sizes = [parts.train.len(), parts.validation.len(), parts.test.len()];
        assert_eq!(sizes, [80, 10, 10]);
        let series = split(rows.iter().take(1).collect());
        assert_eq!(
            series.train.len() + series.validation.len() + series.test.len(),
            1
        );
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
