//! The bounded sample of rows that models are trained on.
//!
//! The sample is biased towards recent rows: hosts, neighbours and workloads change, and a
//! uniform sample over months would predict the past. A row's chance halves with every half-life
//! rather than dropping to nothing, so that what a host did under a rare load is not forgotten
//! with the first quiet day. Which rows stay depends on nothing but the rows (a row's rank is
//! computed from its key alone): peers that saw the same rows keep the same ones, in
//! whatever order they came, and a row that was dropped stays out when it is offered again.
//!
//! Hosts share the room: when it is full, the host with most rows gives one. A host with many
//! features does not crowd out one that is seldom seen, whose rows are worth more.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::AffinityError;
use super::codec::{Reader, Writer};
use super::schema::{FNV_START, HASH, Inputs, N, fnv, valid};

const MAGIC: [u8; 4] = *b"DRVR";
const VERSION: u16 = 2;
/// Rows dated later than this after now are refused: a wrong clock would keep them for ever.
const FUTURE_MS: i64 = 300_000;

/// What was known at one moment and the quality that followed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// When the inputs were taken, milliseconds since the epoch.
    pub at_ms: i64,
    /// Host.
    pub host: String,
    /// Feature.
    pub feature: String,
    /// Its group: peers learn only of groups that they may have.
    #[serde(default = "default_group")]
    pub group: String,
    /// Inputs.
    #[serde(with = "inputs")]
    pub x: Inputs,
    /// Service quality over the horizon after `at_ms`, 0 to 1.
    pub y: f32,
}

fn default_group() -> String {
    "default".to_owned()
}

/// serde knows arrays of up to 32 only.
mod inputs {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Inputs, N};

    pub fn serialize<S: Serializer>(x: &Inputs, s: S) -> Result<S::Ok, S::Error> {
        x.as_slice().serialize(s)
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Inputs, D::Error> {
        let list = Vec::<f32>::deserialize(d)?;
        let found = list.len();
        list.try_into()
            .map_err(|_| D::Error::custom(format!("{found} inputs instead of {N}")))
    }
}

/// Rows on their way to a peer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Hash of the sender's schema.
    pub schema: u64,
    /// Rows, oldest first.
    pub rows: Vec<Row>,
}

/// Identity of a row: time, host, feature.
type Key<'a> = (i64, &'a str, &'a str);

/// A row in the order of its identity.
#[derive(Debug, Clone)]
struct Kept(Arc<Row>);

impl Kept {
    fn key(&self) -> Key<'_> {
        (self.0.at_ms, &self.0.host, &self.0.feature)
    }
}

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Kept {}

impl PartialOrd for Kept {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Kept {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Reservoir {
    capacity: usize,
    half_life_ms: f64,
    rows: BTreeSet<Kept>,
    /// By host.
    ranks: BTreeMap<String, BTreeSet<(i64, Kept)>>,
}

/// Binary form of rows.
pub(super) fn to_bytes(rows: &[Arc<Row>]) -> Vec<u8> {
    let mut w = Writer::new(MAGIC, VERSION, HASH);
    w.u32(u32::try_from(rows.len()).unwrap_or(u32::MAX));
    for r in rows {
        w.i64(r.at_ms);
        w.bytes(r.host.as_bytes());
        w.bytes(r.feature.as_bytes());
        w.bytes(r.group.as_bytes());
        r.x.iter().for_each(|v| w.f32(*v));
        w.f32(r.y);
    }
    w.finish()
}

/// Keeping the rows of the highest rank samples without replacement by weights that double with
/// every half-life (the Gumbel top-k trick: log weight plus Gumbel noise); the noise comes from
/// the key. In millionths.
fn rank(key: Key<'_>, half_life_ms: f64) -> i64 {
    let mut h = fnv(&key.0.to_le_bytes(), FNV_START);
    h = fnv(key.1.as_bytes(), h);
    h = fnv(&[0], h);
    h = fnv(key.2.as_bytes(), h);
    // FNV mixes the last bytes badly; finish like splitmix64.
    h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    h ^= h >> 31;
    let u = ((h >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let log_weight = key.0 as f64 / half_life_ms * std::f64::consts::LN_2;
    ((log_weight - (-u.ln()).ln()) * 1e6) as i64
}

impl Reservoir {
    /// At most `capacity` rows; `half_life_s` seconds of age halve a row's chance to stay.
    pub fn new(capacity: usize, half_life_s: f64) -> Self {
        Self {
            capacity: capacity.max(1),
            half_life_ms: (half_life_s * 1000.0).max(1.0),
            rows: BTreeSet::new(),
            ranks: BTreeMap::new(),
        }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
    /// All rows, oldest first.
    pub fn rows(&self) -> impl Iterator<Item = &Arc<Row>> {
        self.rows.iter().map(|k| &k.0)
    }

    /// Adds a row; false when it is known, not valid, or does not make it into the sample.
    pub fn insert(&mut self, row: Row) -> bool {
        if !valid(&row.x) || !(0.0..=1.0).contains(&row.y) {
            return false;
        }
        let new = Kept(Arc::new(row));
        if !self.rows.insert(new.clone()) {
            return false;
        }
        let r = rank(new.key(), self.half_life_ms);
        let own = self.ranks.entry(new.0.host.clone()).or_default();
        own.insert((r, new.clone()));
        if self.rows.len() > self.capacity {
            // The host with most rows gives one; of several the last by name.
            let most = self.ranks.iter_mut().max_by_key(|(_, rows)| rows.len());
            if let Some((_, out)) = most.and_then(|(_, rows)| rows.pop_first()) {
                self.rows.remove(&out);
                if self.ranks.get(&out.0.host).is_some_and(BTreeSet::is_empty) {
                    self.ranks.remove(&out.0.host);
                }
                return out != new;
            }
        }
        true
    }

    /// Rows newer than `after_ms`, oldest first, at most `limit`; of one host only if named, and
    /// only those that `may` pass.
    pub fn since(
        &self,
        host: Option<&str>,
        after_ms: i64,
        limit: usize,
        may: impl Fn(&Row) -> bool,
    ) -> Batch {
        let from = self.rows.iter().skip_while(|k| k.0.at_ms <= after_ms);
        Batch {
            schema: HASH,
            rows: from
                .map(|k| &*k.0)
                .filter(|r| host.is_none_or(|h| h == r.host) && may(r))
                .take(limit)
                .cloned()
                .collect(),
        }
    }

    /// Takes a peer's rows; returns how many were new. Rows that are not valid or come from the
    /// future are left out.
    pub fn merge(&mut self, batch: Batch, now_ms: i64) -> Result<usize, AffinityError> {
        if batch.schema != HASH {
            return Err(AffinityError::Schema);
        }
        let latest = now_ms.saturating_add(FUTURE_MS);
        Ok(batch
            .rows
            .into_iter()
            .filter(|r| {
                r.at_ms <= latest
                    && r.host.len() <= 255
                    && r.feature.len() <= 64
                    && r.group.len() <= 64
            })
            .filter(|r| self.insert(r.clone()))
            .count())
    }

    /// Binary form of all rows.
    pub fn to_bytes(&self) -> Vec<u8> {
        let rows: Vec<Arc<Row>> = self.rows().cloned().collect();
        to_bytes(&rows)
    }

    /// Adds the rows of [`Self::to_bytes`]; the capacity is this reservoir's.
    pub fn load(&mut self, data: &[u8]) -> Result<usize, AffinityError> {
        let mut r = Reader::open(data, MAGIC, VERSION, HASH)?;
        let mut new = 0;
        for _ in 0..r.u32()? {
            let (at_ms, host) = (r.i64()?, r.text()?);
            let (feature, group) = (r.text()?, r.text()?);
            let mut x = [0.0; N];
            for v in &mut x {
                *v = r.f32()?;
            }
            let y = r.f32()?;
            new += usize::from(self.insert(Row {
                at_ms,
                host,
                feature,
                group,
                x,
                y,
            }));
        }
        r.end()?;
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn a_row(at_ms: i64, host: &str) -> Row {
        Row {
            at_ms,
            host: host.into(),
            feature: "f".into(),
            group: "default".into(),
            x: [1.0; N],
            y: 0.5,
        }
    }

    #[test]
    fn bounded_deduplicated_recent() {
        let hour = 3_600_000;
        let mut r = Reservoir::new(500, 24.0 * 3600.0);
        for i in 0..5000 {
            r.insert(a_row(i * hour / 10, "a"));
        }
        assert_eq!(r.len(), 500);
        let newest = r.rows().last().unwrap().clone();
        assert!(!r.insert((*newest).clone()), "known");
        // 500 hours were offered; a uniform sample would have its middle at 250 h.
        let middle = r.rows().nth(250).unwrap().at_ms / hour;
        assert!(middle > 400, "{middle}");
        let oldest = r.rows().next().unwrap().at_ms / hour;
        assert!(oldest < 440, "more than the last 50 hours: {oldest}");
    }

    #[test]
    fn invalid_rows_stay_out() {
        let mut r = Reservoir::new(10, 1.0);
        let mut bad = a_row(1, "a");
        bad.x[3] = f32::NAN;
        assert!(!r.insert(bad));
        let mut bad = a_row(1, "a");
        bad.y = 1.5;
        assert!(!r.insert(bad));
        let batch = |at_ms, schema| Batch {
            schema,
            rows: vec![a_row(at_ms, "a")],
        };
        assert_eq!(r.merge(batch(2_000_000, HASH), 0), Ok(0), "future");
        assert_eq!(r.merge(batch(1, 7), 0), Err(AffinityError::Schema));
        assert_eq!(r.merge(batch(1, HASH), 0), Ok(1));
        let json = serde_json::to_string(&r.since(None, 0, 9, |_| true)).unwrap();
        let back: Batch = serde_json::from_str(&json).unwrap();
        assert_eq!(r.merge(back, 0), Ok(0), "came back");
        assert!(r.since(Some("b"), 0, 9, |_| true).rows.is_empty());
        assert!(r.since(None, 1, 9, |_| true).rows.is_empty());
        assert!(r.since(None, 0, 9, |r| r.group == "other").rows.is_empty());
    }

    #[test]
    fn a_busy_host_does_not_crowd_out_the_others() {
        let mut r = Reservoir::new(100, 3600.0);
        for i in 0..10 {
            r.insert(a_row(i, "seldom"));
        }
        for i in 0..5000 {
            r.insert(a_row(i * 1000, "busy"));
            r.insert(a_row(i * 1000, "too"));
        }
        let of = |h: &str| r.rows().filter(|r| r.host == h).count();
        assert_eq!([of("seldom"), of("busy"), of("too")], [10, 45, 45]);
    }

    #[test]
    fn bytes_are_checked() {
        let mut r = Reservoir::new(10, 1e6);
        r.insert(a_row(1, "a"));
        r.insert(a_row(2, "b"));
        let bytes = r.to_bytes();
        let mut back = Reservoir::new(10, 1e6);
        assert_eq!(back.load(&bytes), Ok(2));
        assert!(r.rows().eq(back.rows()));
        for cut in 0..bytes.len() {
            assert!(back.load(&bytes[..cut]).is_err(), "{cut}");
        }
        for i in 0..bytes.len() {
            let mut b = bytes.clone();
            b[i] ^= 1;
            assert!(back.load(&b).is_err(), "{i}");
        }
    }

    proptest! {
        #[test]
        fn order_does_not_matter(
            mut times in proptest::collection::vec((0i64..1_000_000, 0u8..3), 0..200),
        ) {
            let fill = |times: &[(i64, u8)]| {
                let mut r = Reservoir::new(20, 100.0);
                for (t, h) in times {
                    r.insert(a_row(*t, &h.to_string()));
                }
                r.rows().cloned().collect::<Vec<_>>()
            };
            let a = fill(&times);
            times.reverse();
            prop_assert_eq!(a, fill(&times));
        }
    }
}
