use super::*;
use crate::api::ModelInfo;
use crate::host::{HostCapabilities, HostLoad, HostState, InstanceState, StorageKind};

const STEP_MS: i64 = 5_000;

fn key(feature: &str) -> Key {
    ("web".to_owned(), FeatureName::new(feature).unwrap())
}

fn limit(resource: Resource, limit: f64) -> Threshold {
    Threshold {
        resource,
        limit,
        for_s: 10.0,
    }
}

fn job(feature: &str) -> Job {
    Job {
        key: key(feature),
        series_key: SeriesKey {
            group: "default".into(),
            feature: FeatureName::new(feature).unwrap(),
        },
        thresholds: vec![limit(Resource::Cpu, 80.0)],
        measured: Vec::new(),
        news: Vec::new(),
        whole: true,
    }
}

/// A ramp of 0.05 % in 5 s up to now.
fn ramp(n: i64, until: f64) -> Series {
    let mut s = Series::new(STEP_MS);
    for i in 1..=n {
        s.push(i * STEP_MS, until - 0.05 * (n - i) as f64);
    }
    s
}

fn kept(series: Series, at_ms: i64) -> Kept {
    Kept {
        series: vec![(Resource::Cpu, series)],
        at_ms,
        read: false,
        read_ms: 0,
    }
}

/// From points to the cause of a decision, as the task does it, pass by pass.
#[test]
fn a_ramp_becomes_a_cause_with_the_second_forecast() {
    let jobs = [job("cache")];
    let config = ForecastSection::default();
    let mut all = BTreeMap::from([(key("cache"), kept(ramp(600, 78.0), 0))]);
    let mut watch = Watch::default();
    let mut seen = Vec::new();
    let mut value = 78.0;
    for pass in 0..3i64 {
        let now = (600 + 6 * pass) * STEP_MS;
        let until = Instant::now() + Duration::from_secs(60);
        let done = compute(
            &jobs,
            &mut all,
            (&config.settings(), &Pool::default()),
            now,
            until,
        );
        let forecasts: Vec<(Resource, Forecast)> = done[0]
            .1
            .iter()
            .map(|(r, f)| (*r, f.clone().unwrap()))
            .collect();
        let found = forecast_breach(
            &jobs[0].thresholds,
            &forecasts,
            config.confidence,
            config.lead_s,
            now,
        );
        assert_eq!(found.len(), 1, "pass {pass}");
        seen.extend(watch.observe(&found, now).iter().map(|c| (pass, c.active)));
        let series = all.get_mut(&key("cache")).unwrap();
        for i in 1..=6 {
            value += 0.05;
            let s = series.of_mut(Resource::Cpu, STEP_MS);
            s.push(now + i * STEP_MS, value);
        }
    }
    assert_eq!(seen, [(1, true)]);
    let expected = watch.first().unwrap();
    let c = cause(expected);
    assert_eq!(c.resource, Resource::Cpu);
    assert!(
        c.text.starts_with("forecast: cpu is expected above 80.0 %"),
        "{}",
        c.text
    );
    assert!(holds(expected, true, &jobs[0].thresholds));
    assert!(!holds(expected, false, &jobs[0].thresholds));
    assert!(!holds(expected, true, &[limit(Resource::Cpu, 90.0)]));
}

#[test]
fn what_did_not_fit_the_budget_comes_first() {
    let jobs = [job("a"), job("b"), job("c")];
    let mut all: BTreeMap<Key, Kept> = jobs
        .iter()
        .zip([30, 10, 20])
        .map(|(j, at)| (j.key.clone(), kept(ramp(100, 50.0), at)))
        .collect();
    let settings = Settings::default();
    assert!(
        compute(
            &jobs,
            &mut all,
            (&settings, &Pool::default()),
            500_000,
            Instant::now()
        )
        .is_empty()
    );
    let later = Instant::now() + Duration::from_secs(60);
    let done = compute(
        &jobs,
        &mut all,
        (&settings, &Pool::default()),
        500_000,
        later,
    );
    let order: Vec<usize> = done.iter().map(|d| d.0).collect();
    assert_eq!(order, [1, 2, 0]);
    assert!(!all[&key("a")].read);
    assert!(
        done.iter().all(|d| d.1.is_empty()),
        "80 is far from a ramp of 5 that ends at 50"
    );
    all.insert(key("a"), kept(ramp(600, 50.0), 0));
    let (_, outcome) = &compute(
        &jobs[..1],
        &mut all,
        (&settings, &Pool::default()),
        3_000_000,
        later,
    )[0];
    assert_eq!(outcome.len(), 1, "within twice of what it rose in an hour");
    all.insert(key("a"), kept(ramp(20, 50.0), 0));
    compute(
        &jobs,
        &mut all,
        (&settings, &Pool::default()),
        100_000,
        later,
    );
    assert!(all[&key("a")].read, "too little: the history is read again");
}

#[test]
fn hosts_are_compared_as_they_will_be() {
    let mut view = View {
        me: "alpha".into(),
        now_ms: 0,
        hosts: vec![HostState {
            capabilities: HostCapabilities {
                cpu_model: String::new(),
                cpus: 8.0,
                memory_mib: 8192.0,
                network_mbps: 0.0,
                storage: StorageKind::Unknown,
                virt_type: "kvm".into(),
            },
            load: HostLoad {
                cpus_used: 2.0,
                memory_used_mib: 1000.0,
                ..HostLoad::default()
            },
            instances: vec![InstanceState {
                vcpus: 2.0,
                memory_mib: 1024.0,
                memory_available_mib: Some(300.0),
                cpus_used: 0.5,
                ..InstanceState::new("web")
            }],
            ..HostState::new("alpha")
        }],
        stale_after_ms: 1,
        groups: BTreeMap::new(),
        model: ModelInfo::default(),
    };
    let mut demand = Demand {
        cpus: 0.5,
        memory_mib: 100.0,
        ..Demand::default()
    };
    let mut expected = Expected {
        threshold: limit(Resource::Cpu, 80.0),
        at_ms: 0,
        value: 90.0,
        text: String::new(),
    };
    grow(&mut view, &mut demand, "web", &expected, 1.0);
    assert!((demand.cpus - 0.9).abs() < 1e-9);
    assert!((view.hosts[0].load.cpus_used - 2.4).abs() < 1e-9);
    assert!((view.hosts[0].instances[0].cpus_used - 0.9).abs() < 1e-9);
    // A guest of 2 CPUs never uses 5.
    expected.value = 500.0;
    grow(&mut view, &mut demand, "web", &expected, 1.0);
    assert!((demand.cpus - 2.0).abs() < 1e-9);
    // A guest that sees twice what its host gives it.
    (demand.cpus, expected.value) = (0.5, 160.0);
    let before = view.hosts[0].load.cpus_used;
    grow(&mut view, &mut demand, "web", &expected, 0.5);
    assert!((demand.cpus - 0.8).abs() < 1e-9);
    assert!((view.hosts[0].load.cpus_used - before - 0.3).abs() < 1e-9);
    expected.value = 500.0;
    expected.threshold.resource = Resource::Memory;
    grow(&mut view, &mut demand, "web", &expected, 1.0);
    assert_eq!(demand.memory_mib, 500.0);
    assert_eq!(view.hosts[0].load.memory_used_mib, 1400.0);
    assert_eq!(view.hosts[0].instances[0].memory_available_mib, Some(0.0));
    // Less than now is no reason to count on less.
    expected.value = 1.0;
    grow(&mut view, &mut demand, "web", &expected, 1.0);
    assert_eq!(demand.memory_mib, 500.0);
}

#[test]
fn trees_learn_from_some_of_all() {
    let of = |i: usize| {
        let name = format!("f{i:04}");
        (key(&name), kept(ramp(20, i as f64), 0))
    };
    let all: BTreeMap<Key, Kept> = (0..=3 * MOST_SERIES).map(of).collect();
    let some = lessons(&all);
    assert!(some.len() <= MOST_SERIES && some.len() > MOST_SERIES / 2);
    let newest = |s: &Series| s.largest_rise(STEP_MS, 1).map(|(last, _)| last);
    let last = newest(&ramp(20, 3.0 * MOST_SERIES as f64));
    assert_eq!(
        newest(some.last().unwrap()),
        last,
        "not only those that come first"
    );
    let few: BTreeMap<Key, Kept> = (0..3).map(of).collect();
    assert_eq!(lessons(&few).len(), 3);
}
