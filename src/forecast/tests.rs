use proptest::prelude::*;

use super::*;
use crate::feature::{Resource, Threshold};

const STEP: i64 = 10_000;

fn series(values: impl IntoIterator<Item = f64>) -> (Series, i64) {
    let mut s = Series::new(STEP);
    let mut at = 0;
    for v in values {
        at += STEP;
        s.push(at, v);
    }
    (s, at)
}

/// Fixed noise between -1 and 1.
fn noise(i: u64) -> f64 {
    let x = (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (x >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

fn settings() -> Settings {
    Settings {
        judge_ms: 300_000,
        ..Settings::default()
    }
}

fn of(values: impl IntoIterator<Item = f64>) -> Forecast {
    let (s, now) = series(values);
    forecast(&s, &settings(), now).unwrap()
}

fn cpu(limit: f64, for_s: f64) -> Threshold {
    Threshold {
        resource: Resource::Cpu,
        limit,
        for_s,
    }
}

#[test]
fn seasonal_on_a_seasonal_series() {
    // 37 steps are none of the periods that are tried anyway.
    let wave = |i: u64| 50.0 + 40.0 * (i as f64 / 37.0 * std::f64::consts::TAU).sin();
    let f = of((0..400).map(|i| wave(i) + noise(i)));
    // One period, or the mean of several: they share the noise.
    assert!(
        matches!(f.method, Method::Seasonal { .. } | Method::Mean { .. }),
        "{f:?}"
    );
    assert!(f.mase.unwrap() < 0.2, "{f:?}");
    for (h, s) in (400..).zip(&f.steps) {
        assert!((s.p50 - wave(h)).abs() < 4.0, "{h}: {s:?}");
    }
}

#[test]
fn drift_or_trend_on_a_ramp() {
    let f = of((0..200u64).map(|i| 10.0 + 0.2 * i as f64 + 0.3 * noise(i)));
    assert!(matches!(f.method, Method::Drift | Method::Damped), "{f:?}");
    let s = f.steps[29];
    assert!((s.p50 - (10.0 + 0.2 * 229.0)).abs() < 1.5, "{s:?}");
    assert!(s.p10 < s.p50 && s.p50 < s.p90);
}

#[test]
fn naive_where_nothing_is_better() {
    // A random walk: nobody can do better than the last value, but for luck.
    let mut naive = 0;
    for seed in 0..20u64 {
        let mut v = 500.0;
        let f = of((0..400).map(|i| {
            v += noise(seed * 1000 + i);
            v
        }));
        naive += usize::from(f.method == Method::Naive);
        assert!(f.mase.unwrap() <= 1.0);
    }
    assert!(naive >= 8, "{naive} of 20");
    let f = of([7.0; 100]);
    assert_eq!((f.method, f.mase, f.mae), (Method::Naive, None, 0.0));
    assert!(f.steps.iter().all(|s| (s.p10, s.p90) == (7.0, 7.0)));
}

#[test]
fn mean_of_pure_noise() {
    let f = of((0..400).map(|i| 50.0 + 20.0 * noise(i)));
    assert!(f.mase.unwrap() < 0.85, "{f:?}");
    let s = f.steps[10];
    assert!((s.p50 - 50.0).abs() < 6.0, "{s:?}");
    // Evenly spread from 30 to 70.
    assert!(
        (s.p10 - 34.0).abs() < 4.0 && (s.p90 - 66.0).abs() < 4.0,
        "{s:?}"
    );
}

#[test]
fn says_when_it_does_not_know() {
    let (s, now) = series([1.0; 20]);
    let e = forecast(&s, &settings(), now).unwrap_err();
    assert!(e.to_string().contains("20 steps of 10 s are known"), "{e}");
    let (s, now) = series([1.0; 60]);
    assert!(forecast(&s, &settings(), now + 20_000).is_ok());
    let e = forecast(&s, &settings(), now + 60_000).unwrap_err();
    assert_eq!(e, NotYet::Stale { age_s: 60 });
}

#[test]
fn breach_is_expected_on_a_ramp_in_time() {
    // 0.1 % a step: from 60 % it takes 200 steps to 80 %.
    let ramp = |n: u64| (0..n).map(|i| 30.0 + 0.1 * i as f64 + 0.2 * noise(i));
    let expect = |n, t: Threshold| {
        let f = of(ramp(n));
        let now = f.from_ms;
        (
            forecast_breach(&[t], &[(Resource::Cpu, f)], 0.8, 300.0, now),
            now,
        )
    };
    assert!(expect(400, cpu(80.0, 10.0)).0.is_empty(), "too early");
    let (found, now) = expect(480, cpu(80.0, 10.0));
    let in_s = (found[0].at_ms - now) / 1000;
    assert!((100..=250).contains(&in_s), "{in_s}");
    assert!(found[0].value > 80.0);
    let text = &found[0].text;
    for part in [
        "forecast: cpu is expected above 80.0 % in ",
        "(80 % quantile 8",
        "of naive)",
    ] {
        assert!(text.contains(part), "{text}");
    }
    // Another resource has no forecast; a long duration must be in the forecast whole.
    let memory = Threshold {
        resource: Resource::Memory,
        ..cpu(1.0, 0.0)
    };
    assert!(expect(480, memory).0.is_empty());
    assert!(expect(480, cpu(80.0, 7200.0)).0.is_empty());
    assert_eq!(expect(480, cpu(80.0, 120.0)).0.len(), 1);
}

#[test]
fn no_breach_of_a_calm_series() {
    let f = of((0..400).map(|i| 40.0 + 5.0 * noise(i)));
    let now = f.from_ms;
    let all = [(Resource::Cpu, f)];
    assert!(forecast_breach(&[cpu(80.0, 0.0)], &all, 0.9, 300.0, now).is_empty());
}

#[test]
fn two_in_a_row_start_and_end() {
    let e = Expected {
        threshold: cpu(80.0, 10.0),
        at_ms: 1000,
        value: 85.0,
        text: "forecast: x".into(),
    };
    let mut w = Watch::default();
    let run = |w: &mut Watch, pattern: &str| -> Vec<(i64, bool)> {
        let mut out = Vec::new();
        for (i, c) in (0i64..).zip(pattern.chars()) {
            let found = if c == '1' { vec![e.clone()] } else { vec![] };
            out.extend(w.observe(&found, i).iter().map(|c| (i, c.active)));
        }
        out
    };
    assert_eq!(run(&mut w, "101010"), []);
    assert!(w.first().is_none());
    assert_eq!(run(&mut w, "11010101"), [(1, true)], "once");
    assert_eq!(w.first().unwrap().value, 85.0);
    assert_eq!(run(&mut w, "00"), [(1, false)]);
    assert_eq!(run(&mut w, "11"), [(1, true)]);
    assert!(w.keep(&[cpu(80.0, 10.0)], 5).is_empty());
    let c = w.keep(&[cpu(90.0, 10.0)], 5);
    assert_eq!((c.len(), c[0].active, c[0].since_ms), (1, false, 5));
    assert!(c[0].text.contains("not expected above 80.0 % any more"));
    assert_eq!(run(&mut w, "11"), [(1, true)]);
    assert_eq!(w.reset(9).len(), 1);
    assert!(w.reset(9).is_empty());
}

/// Values with what real ones have: constants, jumps, spikes, and steps without a point.
fn values() -> impl Strategy<Value = Vec<Option<f64>>> {
    let value = prop_oneof![
        4 => (0.0f64..100.0).prop_map(Some),
        2 => Just(Some(50.0)),
        1 => Just(None),
        1 => Just(Some(0.0)),
        1 => prop_oneof![Just(1e300), Just(f64::NAN), Just(f64::INFINITY), Just(-5.0)].prop_map(Some),
    ];
    prop::collection::vec(value, 0..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn finite_ordered_and_no_panic(values in values(), min in 0usize..40, horizon in 0i64..4_000_000) {
        let mut s = Series::new(5_000);
        for (i, v) in (1i64..).zip(&values) {
            if let Some(v) = v {
                s.push(i * STEP, *v);
            }
        }
        let now = s.last_ms().unwrap_or(0);
        let settings = Settings { horizon_ms: horizon, min_points: min, ..Settings::default() };
        match forecast(&s, &settings, now) {
            Err(NotYet::Short { known, needed, .. }) => prop_assert!(known < needed),
            Err(e) => prop_assert!(false, "{}", e),
            Ok(f) => {
                prop_assert!(!f.steps.is_empty() && f.steps.len() <= MOST_STEPS);
                prop_assert!(f.mae.is_finite() && f.mase.is_none_or(|e| (0.0..=1.0).contains(&e)));
                let mut before = f.from_ms;
                for (i, s) in f.steps.iter().enumerate() {
                    prop_assert_eq!(s.at_ms, before + f.step_ms);
                    before = s.at_ms;
                    prop_assert!(s.p10.is_finite() && s.p90.is_finite() && s.p10 >= 0.0);
                    prop_assert!(s.p10 <= s.p50 && s.p50 <= s.p90, "{:?}", s);
                    prop_assert_eq!(f.quantile(i, 0.9), Some(s.p90));
                }
                let t = cpu(50.0, 10.0);
                let all = [(Resource::Cpu, f)];
                for e in forecast_breach(&[t], &all, 0.8, 300.0, now) {
                    prop_assert!(e.at_ms >= now && e.at_ms <= now + 300_000 && e.value > 50.0);
                }
            }
        }
    }
}
