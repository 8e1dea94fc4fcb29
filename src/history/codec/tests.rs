use super::*;
use proptest::prelude::*;

fn bits(points: &[Usage]) -> Vec<(i64, u64, Vec<Option<u64>>)> {
    points
        .iter()
        .map(|p| {
            let columns = COLUMNS.iter().map(|c| (c.get)(p).map(f64::to_bits));
            (p.at_ms, p.dt_s.to_bits(), columns.collect())
        })
        .collect()
}

fn any_value() -> impl Strategy<Value = Option<f64>> {
    prop_oneof![
        1 => Just(None),
        3 => any::<u64>().prop_map(|b| Some(f64::from_bits(b))),
        3 => (0i32..10_000).prop_map(|v| Some(f64::from(v) / 100.0)),
        2 => (0u32..5).prop_map(|v| Some(f64::from(v))),
        1 => Just(Some(-0.0)),
    ]
}

fn any_run() -> impl Strategy<Value = Vec<Usage>> {
    let point = (
        0i64..100_000,
        any::<u64>(),
        proptest::collection::vec(any_value(), COLUMNS.len()),
    );
    proptest::collection::vec(point, 1..150).prop_map(|raw| {
        let mut at_ms = 1_700_000_000_000;
        raw.into_iter()
            .map(|(step, dt, values)| {
                at_ms += step + 1;
                let mut u = Usage {
                    at_ms,
                    dt_s: if dt % 2 == 0 {
                        f64::from_bits(dt)
                    } else {
                        step as f64 / 1e3
                    },
                    ..Usage::default()
                };
                for (c, v) in COLUMNS.iter().zip(values) {
                    (c.set)(&mut u, v);
                }
                u
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn bit_for_bit(run in any_run()) {
        for effort in [Effort::Fast, Effort::Small] {
            let bytes = encode(&run, effort);
            prop_assert_eq!(bits(&decode(2, &bytes, run.len(), ALL).unwrap()), bits(&run));
            prop_assert_eq!(bounds(&bytes).unwrap(), (run[0].at_ms, run[run.len() - 1].at_ms));
        }
    }

    #[test]
    fn plain_bit_for_bit(run in any_run()) {
        let mut out = Vec::new();
        for p in &run {
            put_plain(&mut out, p);
        }
        let mut r = &out[..];
        let back: Vec<Usage> = run.iter().map(|_| get_plain(&mut r).unwrap()).collect();
        prop_assert_eq!(bits(&back), bits(&run));
        prop_assert!(r.is_empty());
    }

    #[test]
    fn rollups_bit_for_bit(run in any_run()) {
        let rollups: Vec<Rollup> = run.chunks(3).map(|r| {
            let mut max = r[r.len() - 1];
            (max.at_ms, max.dt_s) = (r[0].at_ms, r[0].dt_s);
            Rollup { mean: r[0], min: r[0], max, last: max }
        }).collect();
        for effort in [Effort::Fast, Effort::Small] {
            let bytes = encode_rollups(&rollups, effort);
            let back = decode_rollups(&bytes, rollups.len(), ALL).unwrap();
            for part in [|r: &Rollup| r.mean, |r: &Rollup| r.min, |r: &Rollup| r.max, |r: &Rollup| r.last] {
                let (a, b): (Vec<Usage>, Vec<Usage>) =
                    (back.iter().map(part).collect(), rollups.iter().map(part).collect());
                // A column without a mean has no other part either.
                let known = |p: &[Usage]| -> Vec<_> { bits(p).into_iter().map(|(at, dt, _)| (at, dt)).collect() };
                prop_assert_eq!(known(&a), known(&b));
                for c in COLUMNS.iter().filter(|c| rollups.iter().any(|r| (c.get)(&r.mean).is_some())) {
                    let of = |p: &[Usage]| -> Vec<_> { p.iter().map(|u| (c.get)(u).map(f64::to_bits)).collect() };
                    prop_assert_eq!(of(&a), of(&b), "{}", c.name);
                }
            }
        }
    }

    #[test]
    fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), n in 0usize..200) {
        for version in [1, 2] {
            let _ = decode(version, &bytes, n, ALL);
        }
        let _ = decode_rollups(&bytes, n, ALL);
    }

    #[test]
    fn cut_or_flipped_never_panics(run in any_run(), at in any::<prop::sample::Index>(), x in 1u8..) {
        let mut bytes = encode(&run, Effort::Small);
        let _ = decode(2, &bytes[..at.index(bytes.len())], run.len(), ALL);
        let i = at.index(bytes.len());
        bytes[i] ^= x;
        let _ = decode(2, &bytes, run.len(), ALL);
    }
}

/// What the first version wrote for three points; made by it.
#[test]
fn the_first_version_is_read() {
    let bytes = V1_RUN;
    let points = decode(1, bytes, 3, ALL).unwrap();
    let expected: Vec<Usage> = (0..3).map(v1_point).collect();
    assert_eq!(bits(&points), bits(&expected));
    assert!(decode(1, &bytes[..bytes.len() - 1], 3, ALL).is_err());
}

fn v1_point(n: i64) -> Usage {
    let dt_s = 5.0 + n as f64 / 1000.0;
    Usage {
        at_ms: 1_738_367_400_000 + n * 5001,
        dt_s,
        cpu_percent: Some((123_456 + n * 7) as f64 / (dt_s * 1e6) * 100.0),
        memory_mib: Some(100.25),
        net_rx_bps: (n != 1).then_some((n * 1000) as f64 / dt_s),
        processes: Some(3.0),
        psi_io_percent: Some(1.5 + n as f64 / 3.0),
        ..Usage::default()
    }
}

const V1_RUN: &[u8] = &[
    128, 225, 171, 236, 151, 101, 146, 78, 0, 146, 78, 5, 2, 128, 200, 175, 160, 37, 128, 137, 122,
    0, 1, 0, 2, 128, 137, 15, 14, 0, 0, 1, 2, 0, 128, 128, 160, 100, 2, 5, 1, 3, 0, 160, 31, 0, 0,
    0, 0, 0, 1, 255, 6, 63, 248, 16, 5, 85, 85, 85, 85, 85, 85, 6, 127, 252, 1, 3, 0, 6,
];

/// A column that this version does not know is skipped, whatever is in it.
#[test]
fn unknown_columns_are_skipped() {
    let points: Vec<Usage> = (0..5).map(v1_point).collect();
    let frame = Frame {
        at_ms: points.iter().map(|p| p.at_ms).collect(),
        dt_s: points.iter().map(|p| p.dt_s).collect(),
    };
    let mut out = Vec::new();
    put_frame(&mut out, &frame, Effort::Fast);
    put_varint(&mut out, 2);
    put_varint(&mut out, 63 * 4);
    put_bytes(&mut out, b"of a newer version");
    put_varint(&mut out, 0);
    let mut content = Vec::new();
    let cpu: Vec<Option<f64>> = points.iter().map(|p| p.cpu_percent).collect();
    put_column(
        &mut content,
        &cpu,
        &frame,
        Some(Scale::Percent),
        Effort::Fast,
    );
    put_bytes(&mut out, &content);
    let back = decode(2, &out, 5, ALL).unwrap();
    assert!(
        back.iter()
            .zip(&points)
            .all(|(a, b)| a.cpu_percent == b.cpu_percent)
    );
    assert_eq!(back[0].memory_mib, None);
}

/// Bytes per value of a busy and of an idle feature, as a bound that a worse codec would break.
#[test]
fn small_enough() {
    let mut seed = 42u64;
    let mut noise = |n: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % n
    };
    let mut run = |busy: bool| -> Vec<Usage> {
        (0..720)
            .map(|t| {
                let dt_s = (5_000_000_000 + noise(400_000)) as f64 / 1e9;
                let mut v = |n: u64| if busy { noise(n) as f64 } else { 0.0 };
                let percent = |usec: f64| Some(usec / (dt_s * 1e6) * 100.0);
                Usage {
                    at_ms: 1_738_367_400_000 + t * 5000,
                    dt_s,
                    cpu_percent: percent(2_000_000.0 + v(4000)),
                    throttled_percent: percent(0.0),
                    memory_mib: Some(
                        (500.0 * crate::usage::MIB + v(64) * 4096.0) / crate::usage::MIB,
                    ),
                    net_rx_bps: Some(v(50_000) / dt_s),
                    net_tx_bps: Some(v(90_000) / dt_s),
                    disk_write_bps: Some(v(256) * 4096.0 / dt_s),
                    psi_cpu_percent: percent(v(500)),
                    psi_memory_percent: percent(0.0),
                    psi_io_percent: percent(v(200)),
                    processes: Some(12.0),
                    ..Usage::default()
                }
            })
            .collect()
    };
    for (busy, most) in [(true, 1.5), (false, 0.4)] {
        let points = run(busy);
        let (fast, small) = (
            encode(&points, Effort::Fast),
            encode(&points, Effort::Small),
        );
        let each = |b: &[u8]| b.len() as f64 / (720.0 * 10.0);
        println!(
            "busy {busy}: fast {:.2}, small {:.2} B/value",
            each(&fast),
            each(&small)
        );
        assert!(small.len() <= fast.len());
        assert!(each(&small) < most, "{}", each(&small));
    }
}
