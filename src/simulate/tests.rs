//! The simulator on small synthetic clusters.

use super::*;

/// `n` features over `steps` steps: `cpus(feature, step)`.
fn trace(n: usize, steps: usize, cpus: impl Fn(usize, usize) -> f64) -> Trace {
    let feature = |f: usize| Feature {
        name: format!("f{f}"),
        cpus: (0..steps).map(|s| cpus(f, s)).collect(),
        memory_mib: Some(625.0),
    };
    Trace {
        step_s: 300,
        features: (0..n).map(feature).collect(),
    }
}

/// A day of noisy features with bursts, on four hosts; the same for the same seed.
fn busy(seed: u64, steps: usize) -> Trace {
    let mut random = Random(seed);
    let n = 60;
    let base: Vec<f64> = (0..n).map(|_| 0.1 + 0.6 * random.unit()).collect();
    let mut level = base.clone();
    let mut values = vec![Vec::new(); n];
    for _ in 0..steps {
        for f in 0..n {
            if random.unit() < 0.02 {
                level[f] = (base[f] * 3.0 * random.unit()).min(1.0);
            }
            values[f].push((level[f] + 0.05 * random.normal()).clamp(0.0, 1.0));
        }
    }
    trace(n, steps, |f, s| values[f][s])
}

fn setup(hosts: usize) -> Setup {
    Setup {
        hosts,
        ..Setup::default()
    }
}

fn run(t: &Trace, setup: &Setup, c: Choice) -> Outcome {
    let world = World::new(t, setup.clone()).unwrap();
    let mut now = 0;
    world.run(&mut *c.make(t), &mut || {
        now += 1_000;
        now
    })
}

/// Makes one move, at one step.
struct Once(usize, Move);

impl Policy for Once {
    fn decide(&mut self, seen: &Seen<'_>) -> Vec<Move> {
        let stay = Move {
            feature: self.1.feature,
            to: seen.at[self.1.feature],
        };
        vec![if seen.now == self.0 { self.1 } else { stay }]
    }
}

#[test]
fn metrics_of_a_known_course() {
    // Two hosts of 8 CPUs, 10 features each of 0.5 CPUs; from step 20 on one wants 4 more.
    let t = trace(20, 40, |f, s| if f == 0 && s >= 20 { 4.5 } else { 0.5 });
    let world = World::new(&t, setup(2)).unwrap();
    let o = world.run(&mut Nothing, &mut || 0);
    assert_eq!(
        (o.violation_s, o.moves),
        (20.0 * 10.0 * 300.0, 0),
        "9 of 8 CPUs"
    );
    assert!((o.slatah - 20.0 / 28.0 / 2.0).abs() < 1e-12);
    assert_eq!(o.course.len(), 28, "the first hour is only looked at");

    // The busy one moves at step 24 (10 s of copying): the violation begins anew at its target.
    let from = world.run(&mut Once(0, Move { feature: 0, to: 0 }), &mut || 0);
    let to = world.run(&mut Once(24, Move { feature: 0, to: 0 }), &mut || 0);
    let other = world.run(&mut Once(24, Move { feature: 0, to: 1 }), &mut || 0);
    assert_eq!(from.moves, 0);
    assert_eq!(to.moves + other.moves, 1, "one of them was a wish to stay");
    let moved = if to.moves == 1 { to } else { other };
    assert_eq!(moved.moves_without_help, 1);
    let wanted = 8.0 * 0.5 * 300.0 + 20.0 * 4.5 * 300.0;
    let lost = 4.5 * (0.1 * 10.0 + 0.6);
    assert!((moved.pdm - lost / wanted / 20.0).abs() < 1e-12);
    // Ten features are there for four steps, eleven for sixteen.
    assert_eq!(moved.violation_s, (4.0 * 10.0 + 16.0 * 11.0) * 300.0);
}

#[test]
fn a_move_that_helps_counts_as_such() {
    // 9 features of 1 CPU on one host, 1 on the other.
    let t = trace(4, 40, |f, s| if f < 2 && s >= 20 { 5.0 } else { 0.1 });
    for seed in 1..20 {
        let s = Setup { seed, ..setup(2) };
        let world = World::new(&t, s).unwrap();
        let idle = world.run(&mut Nothing, &mut || 0);
        if idle.violation_s == 0.0 {
            continue;
        }
        for to in [0, 1] {
            let o = world.run(&mut Once(24, Move { feature: 0, to }), &mut || 0);
            if o.moves == 1 {
                assert_eq!(o.moves_without_help, 0, "{o:?}");
                assert!(o.violation_s < idle.violation_s / 4.0);
                assert!((o.moving_s - 10.6).abs() < 1e-9);
                return;
            }
        }
    }
    panic!("no placement with both on one host");
}

#[test]
fn same_seed_same_outcome_other_seed_other_placement() {
    let t = busy(5, 50);
    for c in Choice::ALL {
        assert_eq!(run(&t, &setup(4), c), run(&t, &setup(4), c), "{c}");
    }
    let other = Setup {
        seed: 2,
        ..setup(4)
    };
    assert_ne!(
        run(&t, &setup(4), Choice::Nothing).spread,
        run(&t, &other, Choice::Nothing).spread
    );
}

#[test]
fn drover_beats_the_baselines_on_crowded_days() {
    let mut violation = std::collections::BTreeMap::new();
    for seed in 1..=3 {
        let t = busy(seed, 120);
        // There is nothing for a model to learn: hosts are alike.
        for c in Choice::ALL {
            if !matches!(c, Choice::Drover | Choice::DroverNoForecast) {
                *violation.entry(c.name()).or_insert(0.0) += run(&t, &setup(4), c).violation_s;
            }
        }
    }
    let of = |n: &str| violation[n];
    for baseline in ["none", "threshold", "balance", "lr-mmt"] {
        assert!(of("drover-no-model") < of(baseline), "{violation:?}");
    }
    assert!(of("oracle") < of("drover-no-model"), "{violation:?}");
}

#[test]
fn too_short_a_trace_is_refused() {
    let t = trace(2, 13, |_, _| 0.1);
    let e = World::new(&t, setup(2)).err().unwrap().to_string();
    assert!(
        e.contains("13 steps of 300 s") && e.contains("more than 13"),
        "{e}"
    );
}
