//! The model: checked rows in, trees of the gbdt crate (`boost`) inside, which pass through the
//! `trees` module; the crate panics on NaN at a prediction and loops for ever on a cyclic model.

use super::AffinityError;
use super::boost::{Loss, boost};
use super::codec::{Reader, Writer};
use super::flat::Flat;
use super::reservoir::Row;
use super::schema::{COLUMNS, HASH, Inputs, valid};
use super::trees::Ensemble;

const MAGIC: [u8; 4] = *b"DRVM";
const VERSION: u16 = 1;

/// How a model is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct Params {
    /// Most trees.
    pub trees: usize,
    /// Trees per chunk; between chunks the training can stop.
    pub chunk: usize,
    /// Depth of a tree.
    pub depth: u32,
    /// Nodes with at most so many rows are not split.
    pub min_leaf: usize,
    /// Learning rate.
    pub shrinkage: f32,
    /// Fraction of the rows that each chunk sees, from [`Params::sample_from`] rows on.
    pub sample_ratio: f64,
    /// See `sample_ratio`.
    pub sample_from: usize,
    /// Chunks without gain on the validation rows after which it stops.
    pub patience: usize,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            trees: 100,
            chunk: 10,
            depth: 5,
            min_leaf: 8,
            shrinkage: 0.1,
            sample_ratio: 0.5,
            sample_from: 2_000,
            patience: 3,
        }
    }
}

/// A trained model.
pub struct Model {
    ensemble: Ensemble,
    flat: Flat,
    /// Labels were (y - mean) / scale.
    mean: f64,
    scale: f64,
    /// Rows it was trained on.
    pub rows: u64,
    /// When it was trained, milliseconds since the epoch.
    pub trained_at_ms: i64,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("trees", &self.ensemble.trees.len())
            .field("rows", &self.rows)
            .field("trained_at_ms", &self.trained_at_ms)
            .finish_non_exhaustive()
    }
}

/// A prediction taken apart: `base` plus all contributions is the prediction before it is
/// limited to [0, 1].
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// What the model would say without looking at the inputs.
    pub base: f64,
    /// Column and what it adds, largest effect first, without zeros.
    pub contributions: Vec<(&'static str, f64)>,
}

impl Model {
    /// Trains on `rows`; `validation` (later rows) tells when to stop. `keep_going` is asked
    /// before every chunk: on false, the trees so far are the model, if there are any.
    pub fn fit(
        rows: &[&Row],
        validation: &[&Row],
        params: &Params,
        now_ms: i64,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<Self, AffinityError> {
        let n = rows.len();
        if n < 2 {
            return Err(AffinityError::TooFewRows { have: n, need: 2 });
        }
        if rows
            .iter()
            .chain(validation)
            .any(|r| !valid(&r.x) || !r.y.is_finite())
        {
            return Err(AffinityError::Training("a row is not finite".into()));
        }
        let mean = rows.iter().map(|r| f64::from(r.y)).sum::<f64>() / n as f64;
        let variance = rows
            .iter()
            .map(|r| (f64::from(r.y) - mean).powi(2))
            .sum::<f64>()
            / n as f64;
        let scale = variance.sqrt();
        // The crate's tolerances are absolute; without spread there is nothing to learn.
        if scale < 1e-6 {
            return Err(AffinityError::Uniform);
        }
        let label = |r: &Row| ((f64::from(r.y) - mean) / scale) as f32;
        let all = rows.iter().chain(validation);
        let all = all.map(|r| (r.x.to_vec(), label(r)));
        let ensemble = boost(all, n, Loss::Squared, params, keep_going)?;
        Ok(Self::assemble(ensemble, mean, scale, n as u64, now_ms))
    }

    fn assemble(ensemble: Ensemble, mean: f64, scale: f64, rows: u64, trained_at_ms: i64) -> Self {
        Self {
            flat: Flat::of(&ensemble),
            ensemble,
            mean,
            scale,
            rows,
            trained_at_ms,
        }
    }

    /// Number of trees.
    pub fn trees(&self) -> usize {
        self.ensemble.trees.len()
    }

    /// Predicted service quality, 0 to 1.
    pub fn predict(&self, x: &Inputs) -> Result<f64, AffinityError> {
        if !valid(x) {
            return Err(AffinityError::Training("an input is not finite".into()));
        }
        let p = self.quality(self.flat.sum(x));
        if p.is_finite() {
            Ok(p)
        } else {
            Err(AffinityError::Training("a prediction is not finite".into()))
        }
    }

    /// Predictions of many rows; not finite where a row is not valid.
    pub fn predict_all(&self, rows: &[Inputs]) -> Vec<f64> {
        let sums = self.flat.sums(rows).into_iter().zip(rows);
        sums.map(|(s, x)| if valid(x) { self.quality(s) } else { f64::NAN })
            .collect()
    }

    fn quality(&self, sum: f64) -> f64 {
        (self.mean + self.scale * sum).clamp(0.0, 1.0)
    }

    /// The prediction as a sum of contributions per input.
    pub fn explain(&self, x: &Inputs) -> Explanation {
        let (base, parts) = self.ensemble.contributions(x);
        let mut contributions: Vec<(&'static str, f64)> = COLUMNS
            .into_iter()
            .zip(parts.map(|p| p * self.scale))
            .filter(|(_, p)| *p != 0.0)
            .collect();
        contributions.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()).then(a.0.cmp(b.0)));
        Explanation {
            base: self.mean + self.scale * base,
            contributions,
        }
    }

    /// Mean absolute error over rows; `None` without rows or when a prediction fails.
    pub fn error(&self, rows: &[&Row]) -> Option<f64> {
        let mut sum = 0.0;
        for r in rows {
            sum += (self.predict(&r.x).ok()? - f64::from(r.y)).abs();
        }
        (!rows.is_empty()).then(|| sum / rows.len() as f64)
    }

    /// Binary form, with version, schema hash and checksum.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut w = Writer::new(MAGIC, VERSION, HASH);
        w.f64(self.mean);
        w.f64(self.scale);
        w.u64(self.rows);
        w.i64(self.trained_at_ms);
        self.ensemble.write(&mut w);
        w.finish()
    }

    /// Reads [`Self::to_bytes`]; everything is checked.
    pub fn from_bytes(data: &[u8]) -> Result<Self, AffinityError> {
        let mut r = Reader::open(data, MAGIC, VERSION, HASH)?;
        let (mean, scale) = (r.f64()?, r.f64()?);
        let (rows, trained_at_ms) = (r.u64()?, r.i64()?);
        if !mean.is_finite() || !scale.is_finite() {
            return Err(AffinityError::Damaged("its scale is not a number".into()));
        }
        let ensemble = Ensemble::read(&mut r)?;
        r.end()?;
        Ok(Self::assemble(ensemble, mean, scale, rows, trained_at_ms))
    }
}

#[cfg(test)]
mod tests {
    use gbdt::config::Config;
    use gbdt::decision_tree::Data;
    use gbdt::gradient_boost::GBDT;

    use super::super::boost::guarded;
    use super::super::schema::{MISSING, N};
    use super::super::tests::{Random, synthetic};
    use super::super::trees::from_crate;
    use super::*;

    fn fit(n: usize, seed: u64) -> (Vec<Row>, Model) {
        let rows = synthetic(n, seed);
        let refs: Vec<&Row> = rows.iter().collect();
        let (a, b) = refs.split_at(n * 8 / 10);
        let m = Model::fit(a, b, &Params::default(), 7, &mut || true).unwrap();
        (rows, m)
    }

    #[test]
    fn learns_explains_and_survives_bytes() {
        let (_, m) = fit(1500, 1);
        let test = synthetic(300, 2);
        let refs: Vec<&Row> = test.iter().collect();
        let error = m.error(&refs).unwrap();
        assert!(error < 0.05, "{error}");
        let back = Model::from_bytes(&m.to_bytes()).unwrap();
        assert_eq!((back.rows, back.trained_at_ms), (1200, 7));
        for r in &test {
            let p = m.predict(&r.x).unwrap();
            assert_eq!(p, back.predict(&r.x).unwrap());
            let e = m.explain(&r.x);
            let sum = e.base + e.contributions.iter().map(|c| c.1).sum::<f64>();
            assert!((sum.clamp(0.0, 1.0) - p).abs() < 1e-5, "{sum} {p}");
        }
        let top = m.explain(&test[0].x).contributions[0].0;
        assert!(
            ["host_others_stall", "host_cpu_after"].contains(&top),
            "{top}"
        );
    }

    #[test]
    fn deterministic_even_when_sampling() {
        let rows = synthetic(2500, 3);
        let refs: Vec<&Row> = rows.iter().collect();
        let p = Params {
            trees: 20,
            ..Params::default()
        };
        let fit = || {
            Model::fit(&refs, &[], &p, 0, &mut || true)
                .unwrap()
                .to_bytes()
        };
        assert_eq!(fit(), fit());
    }

    #[test]
    fn time_budget_and_early_stop() {
        let rows = synthetic(400, 4);
        let refs: Vec<&Row> = rows.iter().collect();
        let p = Params::default();
        let mut left = 2;
        let mut budget = || {
            left -= 1;
            left >= 0
        };
        let m = Model::fit(&refs, &[], &p, 0, &mut budget).unwrap();
        assert_eq!(m.trees(), 20);
        let none = Model::fit(&refs, &[], &p, 0, &mut || false);
        assert_eq!(none.err(), Some(AffinityError::Interrupted));
        // Labels without any relation: stops after the patience, far from all trees.
        let mut random = Random(5);
        let noise: Vec<Row> = rows
            .into_iter()
            .map(|mut r| {
                r.y = random.unit() as f32;
                r
            })
            .collect();
        let refs: Vec<&Row> = noise.iter().collect();
        let (a, b) = refs.split_at(300);
        let m = Model::fit(a, b, &p, 0, &mut || true).unwrap();
        assert!(m.trees() <= 50, "{}", m.trees());
    }

    #[test]
    fn a_forged_model_neither_panics_nor_loops() {
        let rows = synthetic(200, 8);
        let refs: Vec<&Row> = rows.iter().collect();
        let p = Params {
            trees: 2,
            depth: 3,
            ..Params::default()
        };
        let bytes = Model::fit(&refs, &[], &p, 0, &mut || true)
            .unwrap()
            .to_bytes();
        let end = bytes.len() - 4;
        let mut refused = 0;
        for i in 14..end {
            for flip in [1, 0x80, 0xff] {
                let mut b = bytes.clone();
                b[i] ^= flip;
                let crc = crc32fast::hash(&b[..end]);
                b[end..].copy_from_slice(&crc.to_le_bytes());
                match Model::from_bytes(&b) {
                    Ok(m) => {
                        let _ = m.predict(&rows[0].x);
                        m.explain(&rows[0].x);
                    }
                    Err(_) => refused += 1,
                }
            }
        }
        assert!(refused > end / 4, "{refused} of {}", 3 * end);
    }

    #[test]
    fn traps_become_errors() {
        let (rows, m) = fit(300, 6);
        let mut x = rows[0].x;
        x[0] = f32::NAN;
        assert!(m.predict(&x).is_err());
        assert!(m.predict(&[MISSING; N]).unwrap().is_finite());
        let same: Vec<Row> = rows
            .iter()
            .cloned()
            .map(|mut r| {
                r.y = 1.0;
                r
            })
            .collect();
        let refs: Vec<&Row> = same.iter().collect();
        let p = Params::default();
        let e = Model::fit(&refs, &[], &p, 0, &mut || true).err();
        assert_eq!(e, Some(AffinityError::Uniform));
        let mut bad = rows.clone();
        bad[3].y = f32::NAN;
        let refs: Vec<&Row> = bad.iter().collect();
        assert!(Model::fit(&refs, &[], &p, 0, &mut || true).is_err());
        assert!(Model::fit(&[], &[], &p, 0, &mut || true).is_err());

        let bytes = m.to_bytes();
        assert!(Model::from_bytes(&bytes[..bytes.len() / 2]).is_err());
        let mut other = bytes.clone();
        other[6] ^= 1;
        let end = other.len() - 4;
        let crc = crc32fast::hash(&other[..end]);
        other[end..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Model::from_bytes(&other).err(), Some(AffinityError::Schema));
        assert!(guarded(|| GBDT::new(&Config::new()).predict(&vec![])).is_err());
        // The crate's own marker for missing values, with which its training diverges.
        let mut bad = rows.clone();
        bad[3].x[5] = gbdt::decision_tree::VALUE_TYPE_UNKNOWN;
        let refs: Vec<&Row> = bad.iter().collect();
        assert!(Model::fit(&refs, &[], &p, 0, &mut || true).is_err());
        // A model that was never trained has no trees to take over.
        assert!(from_crate(&GBDT::new(&Config::new())).map_or(true, |t| t.is_empty()));
        let none = Params { trees: 0, ..p };
        let refs: Vec<&Row> = rows.iter().collect();
        let e = Model::fit(&refs, &[], &none, 0, &mut || true).err();
        assert_eq!(e, Some(AffinityError::Interrupted));
    }

    #[test]
    fn as_the_crate_predicts() {
        let (rows, m) = fit(900, 12);
        let oracle = super::super::trees::to_crate(&m.ensemble).unwrap();
        let data: Vec<Data> = rows
            .iter()
            .map(|r| Data::new_test_data(r.x.to_vec(), None))
            .collect();
        let all: Vec<Inputs> = rows.iter().map(|r| r.x).collect();
        let ours = m.predict_all(&all);
        for ((r, theirs), bulk) in rows.iter().zip(oracle.predict(&data)).zip(ours) {
            let one = m.predict(&r.x).unwrap();
            let theirs = (m.mean + m.scale * f64::from(theirs)).clamp(0.0, 1.0);
            assert!((one - theirs).abs() < 1e-5, "{one} {theirs}");
            assert!((one - bulk).abs() < 1e-12);
        }
    }
}
