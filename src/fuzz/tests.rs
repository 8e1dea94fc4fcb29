//! Runs every target over its seeds, over the inputs in `fuzz/seeds`, and over mutations of them.
//!
//! `DROVER_FUZZ_CASES` is the number of mutations of each target, `DROVER_FUZZ_SEED` where they
//! begin; an input that fails is written to `target/fuzz/NAME` and said in the message.

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use super::mutate::{Rng, mutate};
use super::{MOST, TARGETS, Target};

/// Mutations of each target.
const CASES: usize = 1500;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).into()
}

fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let mut seeds = (target.seeds)();
    let dir = root().join("fuzz/seeds").join(target.name);
    let mut files: Vec<_> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .map(|e| e.unwrap().path())
        .collect();
    files.sort();
    seeds.extend(files.iter().map(|f| fs::read(f).unwrap()));
    seeds
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().unwrap())
}

fn run(target: &Target, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| super::run(target.name, input))).is_err() {
        let dir = root().join("target/fuzz");
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join(target.name);
        fs::write(&file, input).unwrap();
        panic!(
            "target '{}' fails for the input in {}: {:?}",
            target.name,
            file.display(),
            String::from_utf8_lossy(input)
        );
    }
}

fn check(name: &str) {
    let target = TARGETS.iter().find(|t| t.name == name).unwrap();
    let mut pool = seeds(target);
    for seed in &pool {
        run(target, seed);
    }
    let first = number("DROVER_FUZZ_SEED", 1);
    let mut rng = Rng(first ^ crc32fast::hash(name.as_bytes()) as u64);
    for _ in 0..number("DROVER_FUZZ_CASES", CASES as u64) {
        let (at, other) = (rng.below(pool.len()), rng.below(pool.len()));
        let input = mutate(&pool[at], &pool[other], &mut rng, MOST);
        run(target, &input);
        // Some are changed further.
        if rng.one_in(8) && pool.len() < 256 {
            pool.push(input);
        }
    }
}

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        $(#[test] fn $name() { check(stringify!($name)); })*

        /// Every target is run here and has a program for libFuzzer.
        #[test]
        fn all_are_here() {
            let mut here = BTreeSet::from([$(stringify!($name)),*]);
            if cfg!(feature = "guest") {
                here.extend(["helper_requests", "helper_images", "criu"]);
            }
            let listed: BTreeSet<&str> = TARGETS.iter().map(|t| t.name).collect();
            assert_eq!(here, listed);
            let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
            for name in here {
                let program = format!("fuzz/fuzz_targets/{name}.rs");
                assert!(root().join(&program).is_file(), "{program}");
                assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
            }
        }
    };
}

/// Targets of the helper are there with the feature `guest` only.
#[cfg(feature = "guest")]
mod helper {
    use super::check;
    #[test]
    fn requests() {
        check("helper_requests");
    }
    #[test]
    fn images() {
        check("helper_images");
    }
    #[test]
    fn criu() {
        check("criu");
    }
}

targets!(
    frame,
    bulk,
    state,
    guest_control,
    guest_bulk,
    agent,
    xml,
    hook,
    agent_answer,
    peer_offer,
    peer_hosts,
    peer_answers,
    peer_bulk,
    peer_dbus,
    history_parcel,
    metrics_request,
    definition,
    threshold,
    config,
);

#[test]
fn the_same_seed_makes_the_same_inputs() {
    let made = |n| {
        let mut rng = Rng(n);
        let input = br#"{"a":[1,2.5,"x"]}"#;
        (0..50)
            .map(|_| mutate(input, b"other", &mut rng, 64))
            .collect::<Vec<_>>()
    };
    assert_eq!(made(3), made(3));
    assert_ne!(made(3), made(4));
    assert!(
        made(3)
            .iter()
            .any(|m| serde_json::from_slice::<serde_json::Value>(m).is_ok())
    );
}
