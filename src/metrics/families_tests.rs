use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::feature::{FeatureName, FeatureSpec, Workload};
use crate::host::{HostCapabilities, HostLoad, StorageKind};
use crate::usage::Usage;

type Labels = BTreeMap<String, String>;

/// One family as a strict reader takes it.
#[derive(Debug, Default)]
struct Read {
    kind: String,
    unit: String,
    help: String,
    samples: Vec<(Labels, f64)>,
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// `text` up to an unescaped quotation mark, and what follows that.
fn unescape(text: &str) -> (String, &str) {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (out, &text[at + 1..]),
            '\\' => out.push(match chars.next().unwrap().1 {
                'n' => '\n',
                c @ ('\\' | '"') => c,
                c => panic!("escape \\{c}"),
            }),
            c => out.push(c),
        }
    }
    panic!("a label's value does not end: {text}");
}

/// Name, labels, value.
fn sample(line: &str) -> (&str, Labels, f64) {
    let end = line.find(['{', ' ']).unwrap();
    let (name, mut rest) = line.split_at(end);
    let mut labels = Labels::new();
    if rest.starts_with('{') {
        loop {
            let (label, after) = rest[1..].split_once("=\"").unwrap();
            assert!(is_name(label), "{line}");
            let (value, after) = unescape(after);
            assert!(labels.insert(label.to_owned(), value).is_none(), "{line}");
            rest = after;
            match rest.as_bytes()[0] {
                b',' => {}
                b'}' => break,
                _ => panic!("{line}"),
            }
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ').unwrap();
    assert!(!value.contains(' ') && !value.is_empty(), "{line}");
    (name, labels, value.parse().unwrap())
}

/// Reads a page; panics at anything that the OpenMetrics text format does not allow.
fn read(page: &str) -> BTreeMap<String, Read> {
    let body = page.strip_suffix("# EOF\n").expect("the end mark");
    assert!(body.is_empty() || body.ends_with('\n'));
    let mut all: BTreeMap<String, Read> = BTreeMap::new();
    let mut current = String::new();
    for line in body.lines() {
        assert!(!line.is_empty() && line.trim() == line, "{line:?}");
        if let Some(meta) = line.strip_prefix("# ") {
            let mut words = meta.splitn(3, ' ');
            let [keyword, name, text] = [(); 3].map(|()| words.next().unwrap());
            if keyword == "TYPE" {
                assert!(is_name(name), "{line}");
                let kind = text.to_owned();
                assert!(["gauge", "counter", "info"].contains(&text), "{line}");
                let new = Read {
                    kind,
                    ..Read::default()
                };
                let old = all.insert(name.to_owned(), new);
                assert!(old.is_none(), "{name} comes in pieces");
                name.clone_into(&mut current);
                continue;
            }
            assert_eq!(name, current, "{line}");
            let family = all.get_mut(name).unwrap();
            assert!(family.samples.is_empty(), "{line} after samples");
            match keyword {
                "UNIT" => {
                    assert!(name.ends_with(&format!("_{text}")), "{line}");
                    text.clone_into(&mut family.unit);
                }
                "HELP" => text.clone_into(&mut family.help),
                _ => panic!("{line}"),
            }
            continue;
        }
        let (name, labels, value) = sample(line);
        let family = all.get_mut(&current).expect("a family before its samples");
        let suffix = match family.kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        assert_eq!(name, format!("{current}{suffix}"), "{line}");
        assert!(value.is_finite(), "{line}");
        match family.kind.as_str() {
            "counter" => assert!(value >= 0.0, "{line}"),
            "info" => assert_eq!(value, 1.0, "{line}"),
            _ => {}
        }
        assert!(family.samples.iter().all(|(l, _)| *l != labels), "{line}");
        family.samples.push((labels, value));
    }
    for (name, family) in &all {
        assert!(!family.help.is_empty(), "{name} has no help");
    }
    all
}

fn host(name: &str) -> HostState {
    HostState {
        capabilities: HostCapabilities {
            cpu_model: "x".into(),
            cpus: 8.0,
            memory_mib: 1024.0,
            network_mbps: 0.0,
            storage: StorageKind::Unknown,
            virt_type: "kvm".into(),
        },
        load: HostLoad {
            cpus_used: 1.5,
            stall_percent: 25.0,
            ..HostLoad::default()
        },
        ..HostState::new(name)
    }
}

fn feature(domain: &str, name: &str) -> FeatureRow {
    FeatureRow {
        host: "h1".into(),
        domain: domain.into(),
        spec: FeatureSpec::new(
            FeatureName::new(name).unwrap(),
            Workload::Unit {
                unit: "x.service".into(),
            },
        ),
        status: FeatureStatus::Running,
        usage: Some(Usage {
            cpu_percent: Some(50.0),
            memory_mib: Some(2.0),
            disk_read_bps: Some(0.0),
            ..Usage::default()
        }),
        breach: None,
        metered: crate::host::Metering::default(),
    }
}

fn page(features: &[FeatureRow], max_features: usize) -> String {
    let mut sorted = features.to_vec();
    sorted.sort_by(|a, b| (&a.domain, &a.spec.name).cmp(&(&b.domain, &b.spec.name)));
    let mut features = Features::new(max_features);
    for row in sorted {
        features.add(row);
    }
    render(&Snapshot {
        hosts: &[host("h1"), host("h2")],
        features: &features,
        peers: &["h2".into(), "h3".into()],
        counts: Counts {
            moves: [3, 0, 0, 1, 0],
            freeze_ms: 1_500,
            ..Counts::default()
        },
    })
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    let owned = pairs.iter();
    owned
        .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
        .collect()
}

#[test]
fn values_and_units() {
    let all = read(&page(&[feature("web", "cache")], 10));
    let of = labels(&[("domain", "web"), ("feature", "cache")]);
    let value = |name: &str| all[name].samples.clone();
    assert_eq!(value("drover_feature_used_cpus"), [(of.clone(), 0.5)]);
    assert_eq!(
        value("drover_feature_memory_bytes"),
        [(of.clone(), 2_097_152.0)]
    );
    // Zero is a value; what was not measured is none.
    assert_eq!(
        value("drover_feature_disk_read_bytes_per_second"),
        [(of.clone(), 0.0)]
    );
    assert_eq!(value("drover_feature_disk_write_bytes_per_second"), []);
    assert_eq!(
        all["drover_feature_disk_read_bytes_per_second"].unit,
        "bytes_per_second"
    );
    assert_eq!(value("drover_feature_running"), [(of, 1.0)]);
    assert_eq!(value("drover_host_used_cpus")[0].1, 1.5);
    assert_eq!(value("drover_host_stalled_ratio")[0].1, 0.25);
    assert_eq!(
        value("drover_peer_up"),
        [
            (labels(&[("peer", "h2")]), 1.0),
            (labels(&[("peer", "h3")]), 0.0)
        ]
    );
    let moves = value("drover_moves");
    assert_eq!(moves.len(), RESULTS.len(), "all results from the start");
    assert_eq!(moves[0], (labels(&[("result", "done")]), 3.0));
    assert_eq!(value("drover_moves_frozen_seconds")[0].1, 1.5);
}

#[test]
fn features_are_bounded_and_the_rest_is_counted() {
    let rows: Vec<_> = (0..20).map(|n| feature("web", &format!("f{n}"))).collect();
    for (max, shown) in [(0, 0), (7, 7), (20, 20), (99, 20)] {
        let all = read(&page(&rows, max));
        assert_eq!(all["drover_feature_used_cpus"].samples.len(), shown);
        assert_eq!(all["drover_feature_breached"].samples.len(), shown);
        let omitted = all["drover_features_omitted"].samples[0].1;
        assert_eq!(omitted as usize, 20 - shown);
        assert_eq!(all["drover_features"].samples[0].1, 20.0);
    }
}

#[test]
fn names_of_domains_may_hold_anything() {
    let odd = "a\"b\\c\nd} 1\n# EOF ü";
    let all = read(&page(&[feature(odd, "cache")], 10));
    assert_eq!(all["drover_feature_used_cpus"].samples[0].0["domain"], odd);
}

#[test]
fn a_stopped_feature_uses_nothing_known() {
    let mut f = feature("web", "cache");
    f.status = FeatureStatus::Stopped;
    f.breach = Some("cpu".into());
    let all = read(&page(&[f], 10));
    assert!(all["drover_feature_used_cpus"].samples.is_empty());
    assert_eq!(all["drover_feature_running"].samples[0].1, 0.0);
    assert_eq!(all["drover_breaches_active"].samples[0].1, 1.0);
}

#[test]
fn what_is_not_finite_is_left_out() {
    let mut f = feature("web", "cache");
    f.usage.as_mut().unwrap().cpu_percent = Some(f64::NAN);
    let all = read(&page(&[f], 10));
    assert!(all["drover_feature_used_cpus"].samples.is_empty());
}

/// The dashboard asks only for what there is.
#[test]
fn dashboard() {
    let text = include_str!("../../packaging/grafana/drover.json");
    let dashboard: serde_json::Value = serde_json::from_str(text).unwrap();
    let all = read(&page(&[feature("web", "cache")], 10));
    let known: BTreeSet<String> = all
        .iter()
        .map(|(name, f)| match f.kind.as_str() {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.clone(),
        })
        .collect();
    let mut asked = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let expr = target["expr"].as_str().unwrap();
            let words = expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            asked.extend(
                words
                    .filter(|w| w.starts_with("drover_"))
                    .map(str::to_owned),
            );
        }
    }
    assert!(asked.len() > 15, "{asked:?}");
    let unknown: Vec<_> = asked.difference(&known).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn events_count() {
    use super::super::Counters;
    use crate::api::ApiEvent;
    let c = Counters::default();
    let breach = |active| ApiEvent::Breach {
        domain: "web".into(),
        feature: FeatureName::new("cache").unwrap(),
        what: "cpu".into(),
        active,
    };
    c.observe(&breach(true));
    c.observe(&breach(false));
    assert_eq!(c.now().breaches, 1);
    let mut job = crate::api::Job {
        id: "1".into(),
        feature: FeatureName::new("cache").unwrap(),
        from_host: "h1".into(),
        from_domain: "web".into(),
        to_host: "h2".into(),
        to_domain: "web".into(),
        cause: "manual".into(),
        state: "pre-copy".into(),
        result: None,
        reason: None,
        rounds: 1,
        bytes_sent: 5,
        freeze_ms: Some(7),
        started_ms: 0,
        ended_ms: None,
        history: vec![],
        detail: crate::api::MoveDetail::default(),
    };
    c.observe(&ApiEvent::Move { job: job.clone() });
    assert_eq!(
        c.now(),
        Counts {
            breaches: 1,
            ..Counts::default()
        }
    );
    job.result = Some(crate::api::JobResult::Done);
    c.observe(&ApiEvent::Move { job });
    let now = c.now();
    assert_eq!((now.moves[0], now.bytes_sent, now.freeze_ms), (1, 5, 7));
}
