//! Meter frames as droverd heard them from real guests in trouble (`tests/cluster/record_streams.py`
//! recorded them), replayed through what droverd does with them: points of use, then the history.
//! No spike, no negative rate, nothing counted twice.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use drover::columns::{COLUMNS, Unit};
use drover::daemon::instance::Instance;
use drover::feature::{FeatureName, FeatureSpec, Workload};
use drover::history::{History, Options, SeriesKey};
use drover::hypervisor::DomainInfo;
use drover::sample::{Counters, GuestTotals, MeterFrame, RawSample};
use drover::store::FeatureRecord;
use drover::usage::Usage;
use serde_json::{Map, Value};

/// CPUs of the guests, and the share of one that a feature was held to by `cpu.max`.
const CPUS: f64 = 1.0;
const HELD: [(&str, f64); 1] = [("roamer", 20.0)];
/// Percent of a CPU above that which is no spike: `cpu.max` is kept per 100 ms, and a sample is
/// not taken at one moment.
const SLACK: f64 = 15.0;

/// One recorded frame.
#[derive(Debug, Clone)]
struct Heard {
    at_ms: i64,
    domain: String,
    frame: MeterFrame,
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/streams")
}

fn number(v: &Value) -> u64 {
    v.as_u64().unwrap_or_else(|| panic!("{v} is no number"))
}

fn sample(v: &Value, names: &[Value]) -> RawSample {
    let values = v[3].as_array().unwrap();
    let known = names.iter().zip(values).filter(|(_, v)| !v.is_null());
    let counters: Map<String, Value> = known
        .map(|(n, v)| (n.as_str().unwrap().to_owned(), v.clone()))
        .collect();
    RawSample {
        feature: FeatureName::new(v[0].as_str().unwrap()).unwrap(),
        identity: number(&v[1]),
        at_ns: number(&v[2]),
        counters: serde_json::from_value::<Counters>(counters.into()).unwrap(),
    }
}

fn stream(name: &str) -> Vec<Heard> {
    let path = directory().join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let all: Vec<Value> = serde_json::from_str(&text).unwrap();
    let names = all[0]["counters"].as_array().unwrap();
    let frame = |l: &Value| Heard {
        at_ms: l[0].as_i64().unwrap(),
        domain: l[1].as_str().unwrap().to_owned(),
        frame: MeterFrame {
            at_ns: number(&l[2]),
            guest: GuestTotals {
                cpus: number(&l[3][0]) as u32,
                cpu_busy_usec: number(&l[3][1]),
                cpu_steal_usec: number(&l[3][2]),
                memory_total_bytes: number(&l[3][3]),
                memory_available_bytes: number(&l[3][4]),
            },
            features: l[4]
                .as_array()
                .unwrap()
                .iter()
                .map(|s| sample(s, names))
                .collect(),
        },
    };
    all[1..].iter().map(frame).collect()
}

/// What concerns one feature.
fn only(heard: &[Heard], feature: &str) -> Vec<Heard> {
    let mut some = heard.to_vec();
    for h in &mut some {
        h.frame.features.retain(|s| s.feature.as_str() == feature);
    }
    some.retain(|h| !h.frame.features.is_empty());
    some
}

fn key(feature: &FeatureName) -> SeriesKey {
    SeriesKey {
        group: "default".to_owned(),
        feature: feature.clone(),
    }
}

fn instance(domain: &str, features: &BTreeSet<FeatureName>) -> Instance {
    let record = |name: &FeatureName| {
        let workload = Workload::Unit {
            unit: "busy.service".into(),
        };
        let record = FeatureRecord {
            domain: domain.into(),
            spec: FeatureSpec::new(name.clone(), workload),
            enabled: true,
            moved_at_ms: 0,
        };
        (domain.to_owned(), record)
    };
    let records: Vec<(String, FeatureRecord)> = features.iter().map(record).collect();
    let info = DomainInfo {
        name: domain.into(),
        uuid: domain.into(),
        running: true,
        active: true,
        id: Some(1),
        ended: false,
        vcpus: 1,
        memory_mib: 768.0,
    };
    Instance::registered(info, &records)
}

/// Replays frames as droverd takes them, and reads the history.
fn replay(heard: &[Heard]) -> BTreeMap<String, Vec<Usage>> {
    replay_with(heard, |_, _| {})
}

/// The same; `before` may change a domain's instance before each of its frames.
fn replay_with(
    heard: &[Heard],
    mut before: impl FnMut(&Heard, &mut Instance),
) -> BTreeMap<String, Vec<Usage>> {
    let samples = heard.iter().flat_map(|h| &h.frame.features);
    let features: BTreeSet<FeatureName> = samples.map(|s| s.feature.clone()).collect();
    let mut instances: BTreeMap<&str, Instance> = BTreeMap::new();
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let history = History::open(dir.path(), Options::default()).unwrap();
        for h in heard {
            let i = instances.entry(&h.domain);
            let i = i.or_insert_with(|| instance(&h.domain, &features));
            before(h, i);
            let points = i.meter(h.frame.clone(), h.at_ms).into_iter();
            let tick: Vec<(SeriesKey, Usage)> = points.map(|(n, u, _)| (key(&n), u)).collect();
            history.append(tick).await.unwrap();
        }
        let mut found = BTreeMap::new();
        for f in &features {
            let points = history
                .range(&key(f), 0, i64::MAX >> 8, usize::MAX)
                .await
                .unwrap();
            found.insert(f.to_string(), points);
        }
        assert_eq!(history.problems(), Vec::<String>::new());
        history.close().await;
        found
    })
}

/// What a counter went up by in each cgroup of each guest, in all, and as the points tell it.
fn counted(
    heard: &[Heard],
    feature: &str,
    points: &[Usage],
    counter: fn(&Counters) -> Option<u64>,
    told: fn(&Usage) -> Option<f64>,
) -> (f64, f64) {
    let mut spans: BTreeMap<(&str, u64), (u64, u64)> = BTreeMap::new();
    for h in heard {
        for s in h
            .frame
            .features
            .iter()
            .filter(|s| s.feature.as_str() == feature)
        {
            if let Some(v) = counter(&s.counters) {
                let span = spans.entry((&h.domain, s.identity)).or_insert((v, v));
                *span = (span.0.min(v), span.1.max(v));
            }
        }
    }
    let real = spans.values().map(|(low, high)| (high - low) as f64).sum();
    (real, points.iter().filter_map(told).sum())
}

/// What holds for every stream.
fn check(name: &str, heard: &[Heard]) -> BTreeMap<String, Vec<Usage>> {
    check_points(name, heard, replay(heard))
}

fn check_points(
    name: &str,
    heard: &[Heard],
    all: BTreeMap<String, Vec<Usage>>,
) -> BTreeMap<String, Vec<Usage>> {
    assert!(!all.is_empty(), "{name}: no features");
    for (feature, points) in &all {
        let held = HELD
            .iter()
            .find(|(f, _)| f == feature)
            .map_or(CPUS * 100.0, |(_, most)| *most);
        for u in points {
            let of = format!("{name}: {feature} at {}", u.at_ms);
            assert!(u.dt_s > 0.0, "{of}");
            for c in COLUMNS {
                let most = match (c.name, c.unit) {
                    ("cpu" | "cpu_user" | "cpu_system", _) => held + SLACK,
                    (_, Unit::Percent) => 100.0 + SLACK,
                    (_, Unit::Mib) => 768.0,
                    // A little of everything is what the loads do.
                    (_, Unit::BytesPerSecond) => 1e6,
                    (_, Unit::PerSecond | Unit::Count) => 1e3,
                };
                let value = (c.get)(u);
                let sane = value.is_none_or(|v| (0.0..=most).contains(&v));
                assert!(sane, "{of}: {} = {value:?}", c.name);
            }
        }
        let cpu = counted(
            heard,
            feature,
            points,
            |c| c.cpu_usec,
            |u| Some(u.cpu_percent? / 100.0 * u.dt_s * 1e6),
        );
        let written = counted(
            heard,
            feature,
            points,
            |c| c.disk_write_bytes,
            |u| Some(u.disk_write_bps? * u.dt_s),
        );
        let sent = counted(
            heard,
            feature,
            points,
            |c| c.net_tx_bytes,
            |u| Some(u.net_tx_bps? * u.dt_s),
        );
        for (what, (real, told)) in [("cpu", cpu), ("written", written), ("sent", sent)] {
            assert!(
                told <= real + 1.0,
                "{name}: {feature}: {what}: {told} told of {real}"
            );
        }
        assert_eq!(cpu.1, cpu.1.max(0.0), "{name}");
    }
    all
}

/// The part of the CPU time that the counters saw which the points tell, of one feature.
fn told(heard: &[Heard], all: &BTreeMap<String, Vec<Usage>>, feature: &str) -> f64 {
    let (real, told) = counted(
        heard,
        feature,
        &all[feature],
        |c| c.cpu_usec,
        |u| Some(u.cpu_percent? / 100.0 * u.dt_s * 1e6),
    );
    assert!(real > 0.0, "{feature} used no CPU");
    told / real
}

fn identities(heard: &[Heard], feature: &str) -> Vec<u64> {
    let of = only(heard, feature);
    let mut ids: Vec<u64> = of.iter().map(|h| h.frame.features[0].identity).collect();
    ids.dedup();
    ids
}

/// Longest time between frames of a domain: by the host's clock, by the guest's; seconds.
fn gaps(heard: &[Heard], domain: &str) -> (f64, f64) {
    let own: Vec<&Heard> = heard.iter().filter(|h| h.domain == domain).collect();
    let longest = |get: fn(&Heard) -> f64| {
        let gaps = own.windows(2).map(|w| get(w[1]) - get(w[0]));
        gaps.fold(0.0, f64::max)
    };
    (
        longest(|h| h.at_ms as f64 / 1e3),
        longest(|h| h.frame.at_ns as f64 / 1e9),
    )
}

#[test]
fn every_stream_is_looked_at() {
    let mut found: Vec<String> = std::fs::read_dir(directory())
        .unwrap()
        .map(|e| {
            e.unwrap()
                .path()
                .file_stem()
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    found.sort();
    let here = [
        "clock_set",
        "daemon_restarted",
        "feature_moved",
        "guest_paused",
        "guest_rebooted",
        "helper_restarted",
        "qemu_stopped",
        "saved_and_restored",
        "unit_restarted",
    ];
    assert_eq!(found, here, "each stream has a test of its own below");
}

#[test]
fn a_cgroup_that_comes_anew() {
    let heard = stream("unit_restarted");
    let all = check("unit_restarted", &heard);
    for feature in ["spin", "busy"] {
        let ids = identities(&heard, feature);
        assert_eq!(ids.len(), 2, "{feature}: another cgroup, once: {ids:?}");
        // One pair of samples cannot be compared, no more.
        let samples = only(&heard, feature).len();
        assert_eq!(all[feature].len(), samples - 2, "{feature}");
    }
    assert!(told(&heard, &all, "spin") > 0.999);
    // The other feature of the guest does not notice.
    assert_eq!(all["roamer"].len(), only(&heard, "roamer").len() - 1);
}

#[test]
fn a_helper_that_is_restarted() {
    let heard = stream("helper_restarted");
    let all = check("helper_restarted", &heard);
    for (feature, points) in &all {
        assert_eq!(identities(&heard, feature).len(), 1, "the cgroup stays");
        // Nothing is lost: the counters went on.
        assert_eq!(points.len(), only(&heard, feature).len() - 1, "{feature}");
    }
    assert!(told(&heard, &all, "spin") > 0.999);
}

#[test]
fn a_daemon_that_is_killed() {
    let heard = stream("daemon_restarted");
    let all = check("daemon_restarted", &heard);
    assert_eq!(identities(&heard, "spin").len(), 1, "guests do not notice");
    // It comes back without what it knew, before whichever frame: one pair is not compared.
    let own = only(&heard, "spin");
    for at in 2..own.len() - 1 {
        let halves = [&own[..at], &own[at..]].map(|h| check("half", h));
        let sum: usize = halves.iter().map(|h| h["spin"].len()).sum();
        assert_eq!(sum + 1, all["spin"].len());
    }
}

#[test]
fn a_guest_that_is_paused() {
    let heard = stream("guest_paused");
    let all = check("guest_paused", &heard);
    let (host, _) = gaps(&heard, "g1");
    assert!(host > 15.0, "there is a gap of {host} s in it");
    assert_eq!(identities(&heard, "spin").len(), 1);
    assert_eq!(told(&heard, &all, "spin"), 1.0, "what was counted is told");
    gap_is_no_peak(&heard, &all["spin"]);
}

/// The point over the gap is a mean over the guest's time, not all of it in one interval.
fn gap_is_no_peak(heard: &[Heard], points: &[Usage]) {
    let (_, guest) = gaps(heard, "g1");
    let longest = points.iter().map(|u| u.dt_s).fold(0.0, f64::max);
    assert!((longest - guest).abs() < 0.5, "{longest} s of {guest} s");
}

#[test]
fn a_guest_that_is_saved_and_restored() {
    let heard = stream("saved_and_restored");
    let all = check("saved_and_restored", &heard);
    let (host, _) = gaps(&heard, "g1");
    assert!(host > 9.0, "there is a gap of {host} s in it");
    assert_eq!(identities(&heard, "spin").len(), 1, "the same boot");
    assert_eq!(told(&heard, &all, "spin"), 1.0);
    gap_is_no_peak(&heard, &all["spin"]);
}

#[test]
fn a_qemu_that_is_stopped() {
    let heard = stream("qemu_stopped");
    let all = check("qemu_stopped", &heard);
    let (host, _) = gaps(&heard, "g1");
    assert!(host > 15.0, "there is a gap of {host} s in it");
    assert_eq!(told(&heard, &all, "spin"), 1.0);
    gap_is_no_peak(&heard, &all["spin"]);
    // The guest on the other host was heard all the while.
    let (other, _) = gaps(&heard, "g2");
    assert!(other < host / 2.0, "{other} s beside {host} s");
}

#[test]
fn a_guest_that_is_rebooted() {
    let heard = stream("guest_rebooted");
    let all = check("guest_rebooted", &heard);
    assert_eq!(identities(&heard, "spin").len(), 2, "another boot");
    let own = only(&heard, "spin");
    let turn = own
        .windows(2)
        .find(|w| w[1].frame.at_ns < w[0].frame.at_ns)
        .unwrap();
    let spin = &all["spin"];
    assert!(
        spin.iter().any(|u| u.at_ms > turn[1].at_ms),
        "metered after it"
    );
    assert!(
        !spin.iter().any(|u| u.at_ms == turn[1].at_ms),
        "nothing across it"
    );
    assert_eq!(spin.len(), own.len() - 2);
    // What the guest used as a whole does not go back either.
    let mut i = instance("g1", &BTreeSet::new());
    for h in heard.iter().filter(|h| h.domain == "g1") {
        i.take_totals(h.frame.at_ns, h.frame.guest);
        assert!(
            i.busy.is_none_or(|b| (0.0..=CPUS + 0.1).contains(&b)),
            "{:?}",
            i.busy
        );
    }
}

#[test]
fn clocks_that_jump() {
    let heard = stream("clock_set");
    let all = check("clock_set", &heard);
    // The guest's wall clock was set 25 years back and forth; it is not what is measured with.
    for (feature, points) in &all {
        assert_eq!(points.len(), only(&heard, feature).len() - 1, "{feature}");
    }
    let rates = |all: &BTreeMap<String, Vec<Usage>>| -> Vec<(f64, Option<f64>)> {
        let mut points = all["spin"].clone();
        points.sort_by(|a, b| a.dt_s.total_cmp(&b.dt_s));
        points.iter().map(|u| (u.dt_s, u.cpu_percent)).collect()
    };
    // The host's clock jumps by an hour: the same rates.
    for jump in [-3_600_000, 3_600_000] {
        let mut jumped = heard.clone();
        let half = jumped.len() / 2;
        jumped[half..].iter_mut().for_each(|h| h.at_ms += jump);
        assert_eq!(rates(&check("host's clock", &jumped)), rates(&all));
    }
    let leap_ns = 60_000_000_000;
    // The guest's clock of the boot goes back or leaps ahead: one pair is lost, or is long.
    let own: Vec<Heard> = heard.iter().filter(|h| h.domain == "g1").cloned().collect();
    for ahead in [false, true] {
        let mut shifted = own.clone();
        let half = shifted.len() / 2;
        for h in &mut shifted[half..] {
            let shift = |ns: &mut u64| {
                *ns = if ahead { *ns + leap_ns } else { *ns - leap_ns };
            };
            shift(&mut h.frame.at_ns);
            h.frame
                .features
                .iter_mut()
                .for_each(|s| shift(&mut s.at_ns));
        }
        let points = check("guest's clock", &shifted)["roamer"].len();
        assert_eq!(points + usize::from(!ahead), all["roamer"].len());
    }
}

/// Replays a feature that is registered with one domain at a time: with the one whose turn it is.
fn replay_moves(own: &[Heard], turns: &[(i64, &str)]) -> Vec<Usage> {
    let name = own[0].frame.features[0].feature.clone();
    let mut all = replay_with(own, |h, i| {
        let home = turns
            .iter()
            .rev()
            .find(|(from, _)| *from <= h.at_ms)
            .unwrap()
            .1;
        if home != h.domain {
            i.features.remove(&name);
        } else if !i.features.contains_key(&name) {
            let names = BTreeSet::from([name.clone()]);
            i.features.extend(instance(&h.domain, &names).features);
        }
    });
    all.remove(name.as_str()).unwrap()
}

#[test]
fn a_feature_that_moves_there_and_back() {
    let heard = stream("feature_moved");
    let own = only(&heard, "roamer");
    // Both guests tell of it for a while: the target has its copy before the source's is gone.
    let of = |domain: &'static str| own.iter().filter(move |h| h.domain == domain);
    let (first, last) = (
        of("g2").next().unwrap().at_ms,
        of("g2").next_back().unwrap().at_ms,
    );
    let g1: Vec<i64> = of("g1").map(|h| h.at_ms).collect();
    let away = (1..g1.len()).max_by_key(|i| g1[*i] - g1[*i - 1]).unwrap();
    let (left, back) = (g1[away - 1], g1[away]);
    assert!(first < left && back < last, "they overlap");
    let wall = |points: &[Usage]| points.iter().map(|u| u.dt_s).sum::<f64>();
    let elapsed = (own[own.len() - 1].at_ms - own[0].at_ms) as f64 / 1e3;
    // The commit may be at any moment of each overlap.
    let during = |from: i64, to: i64| {
        let times = own
            .iter()
            .map(|h| h.at_ms)
            .filter(move |t| (from..=to).contains(t));
        times.collect::<Vec<i64>>()
    };
    for there in during(first, left) {
        for again in during(back, last) {
            let turns = [(0, "g1"), (there, "g2"), (again, "g1")];
            let points = replay_moves(&own, &turns);
            let all = BTreeMap::from([("roamer".to_owned(), points.clone())]);
            check_points("feature_moved", &own, all);
            assert!(wall(&points) <= elapsed, "nothing twice");
            assert!(
                points.windows(2).all(|w| w[0].at_ms < w[1].at_ms),
                "in order"
            );
            for (at, domain) in &turns[1..] {
                let next = of(domain).find(|h| h.at_ms >= *at).unwrap().at_ms;
                assert!(
                    !points.iter().any(|u| u.at_ms == next),
                    "no rate across the move"
                );
            }
            let at = |domain| {
                let times: BTreeSet<i64> = of(domain).map(|h| h.at_ms).collect();
                points.iter().filter(|u| times.contains(&u.at_ms)).count()
            };
            assert!(
                at("g1") >= 8 && at("g2") >= 5,
                "{} and {}",
                at("g1"),
                at("g2")
            );
        }
    }
    // Were it registered with both, time would count twice: that is what the above would find.
    assert!(wall(&replay(&own)["roamer"]) > elapsed);
}

#[test]
fn counters_that_start_again_and_frames_that_come_twice() {
    let heard = stream("unit_restarted");
    let before = check("unit_restarted", &heard);
    // Both cgroups have the same identity now, so that only the counters tell.
    let mut same = heard.clone();
    for s in same.iter_mut().flat_map(|h| &mut h.frame.features) {
        s.identity = 7;
    }
    let after = replay(&same);
    for feature in ["spin", "busy"] {
        assert_eq!(
            after[feature], before[feature],
            "{feature}: the pair is left out"
        );
    }
    // One counter starts again: the pair says nothing about the others either.
    let mut one = only(&heard, "roamer");
    let half = one.len() / 2;
    let base = one[half].frame.features[0].counters.net_tx_bytes.unwrap();
    one[half - 1].frame.features[0].counters.net_tx_bytes = Some(base + 1);
    let points = &check("one counter", &one)["roamer"];
    assert_eq!(points.len(), one.len() - 2);
    // Each frame twice.
    let twice: Vec<Heard> = heard.iter().flat_map(|h| [h.clone(), h.clone()]).collect();
    assert_eq!(check("twice", &twice), before);
}
