//! Training by the gbdt crate, guarded.
//!
//! The crate panics on NaN and on rows of another width, diverges on its own marker for missing
//! values, has no seed, no early stopping and no interruption. Hence: rows are checked, calls are
//! made under `catch_unwind`, the sampling is ours and deterministic, and trees are trained in
//! chunks that start from the predictions so far (the result is that of one training).

use std::panic::{AssertUnwindSafe, catch_unwind};

use gbdt::config::Config;
use gbdt::decision_tree::{Data, VALUE_TYPE_UNKNOWN};
use gbdt::gradient_boost::GBDT;

use super::AffinityError;
use super::model::Params;
use super::trees::{Ensemble, from_crate};

/// What the trees make small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Squared errors: they predict the mean.
    Squared,
    /// Absolute errors: they predict the median.
    Absolute,
}

/// Calls into the crate; a panic becomes an error.
pub(super) fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, AffinityError> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|p| {
        let what = p
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| p.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        AffinityError::Training(format!("the gbdt crate panicked: {what}"))
    })
}

/// A number that has nothing to do with the order of `n`, always the same (SplitMix64).
pub(crate) fn scattered(n: u64) -> u64 {
    let mut h = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    h ^ (h >> 31)
}

/// Deterministic choice of rows per chunk.
fn chosen(row: usize, chunk: usize, ratio: f64) -> bool {
    let h = scattered((row as u64) ^ ((chunk as u64 + 1) << 40));
    ((h >> 11) as f64) < ratio * (1u64 << 53) as f64
}

/// Trains on the first `n` rows (inputs of one width, standardised label); the others, later ones, tell
/// when to stop. `keep_going` is asked before every chunk: on false, the trees so far are the
/// result, if there are any.
pub(crate) fn boost(
    rows: impl Iterator<Item = (Vec<f32>, f32)>,
    n: usize,
    loss: Loss,
    params: &Params,
    keep_going: &mut dyn FnMut() -> bool,
) -> Result<Ensemble, AffinityError> {
    let mut data: Vec<Data> = rows
        .map(|(x, label)| Data::new_training_data(x, 1.0, label, Some(0.0)))
        .collect();
    let width = data.first().map_or(0, |d| d.feature.len());
    let sane = |v: &f32| v.is_finite() && *v != VALUE_TYPE_UNKNOWN;
    let right = |d: &Data| d.feature.len() == width && d.feature.iter().all(sane);
    if n == 0 || n > data.len() || width == 0 {
        let have = n.min(data.len());
        return Err(AffinityError::TooFewRows { have, need: 1 });
    }
    if !data.iter().all(|d| d.label.is_finite() && right(d)) {
        return Err(AffinityError::Training("a row is not finite".into()));
    }
    let mut conf = Config::new();
    conf.set_feature_size(width);
    conf.set_max_depth(params.depth);
    conf.set_min_leaf_size(params.min_leaf);
    conf.set_shrinkage(params.shrinkage);
    conf.enabled_initial_guess(true);
    conf.set_loss(match loss {
        Loss::Squared => "SquaredError",
        Loss::Absolute => "LAD",
    });

    let mut trees = Vec::new();
    let (mut best, mut best_len, mut without_gain) = (f64::INFINITY, 0, 0);
    let mut chunk = 0;
    while trees.len() < params.trees && without_gain < params.patience && keep_going() {
        let count = params.chunk.clamp(1, params.trees - trees.len());
        conf.set_iterations(count);
        let mut part: Vec<Data> = if n >= params.sample_from {
            let picked = (0..n).filter(|i| chosen(*i, chunk, params.sample_ratio));
            picked.map(|i| data[i].clone()).collect()
        } else {
            data[..n].to_vec()
        };
        let (model, guesses) = guarded(|| {
            let mut m = GBDT::new(&conf);
            m.fit(&mut part);
            let guesses = m.predict(&data);
            (m, guesses)
        })?;
        if guesses.iter().any(|g| !g.is_finite()) {
            return Err(AffinityError::Training("the training diverged".into()));
        }
        trees.extend(from_crate(&model)?);
        for (d, g) in data.iter_mut().zip(guesses) {
            d.initial_guess = g;
        }
        chunk += 1;
        // Without later rows the training rows decide, which always gain.
        let judged = if data.len() == n {
            &data[..]
        } else {
            &data[n..]
        };
        let off = |d: &Data| {
            let off = f64::from(d.label - d.initial_guess);
            match loss {
                Loss::Squared => off.powi(2),
                Loss::Absolute => off.abs(),
            }
        };
        let error = judged.iter().map(off).sum::<f64>() / judged.len() as f64;
        if error < best * 0.999 {
            (best, best_len, without_gain) = (error, trees.len(), 0);
        } else {
            without_gain += 1;
        }
    }
    if trees.is_empty() {
        return Err(AffinityError::Interrupted);
    }
    trees.truncate(best_len.max(1));
    Ok(Ensemble {
        trees,
        shrinkage: params.shrinkage,
    })
}
