//! Makes programs for libFuzzer of the targets in `drover::fuzz`.

pub use drover::fuzz::{MOST, TARGETS, run};
pub use libfuzzer_sys;

use drover::fuzz::mutate::{Rng, mutate};

/// A program that runs one target.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        use $crate::libfuzzer_sys;
        libfuzzer_sys::fuzz_target!(|input: &[u8]| $crate::run(stringify!($name), input));
        libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max: usize, seed: u32| {
            $crate::change(stringify!($name), data, size, max, seed)
        });
    };
}

/// Changes an input in place, by libFuzzer's own mutations or by Drover's, or takes one of the
/// target's own inputs; its new size.
pub fn change(name: &str, data: &mut [u8], size: usize, max: usize, seed: u32) -> usize {
    let mut rng = Rng(seed.into());
    if size < 4 || rng.one_in(500) {
        let target = TARGETS.iter().find(|t| t.name == name).expect("a target");
        let seeds = (target.seeds)();
        let input = &seeds[rng.below(seeds.len())];
        let n = input.len().min(max);
        data[..n].copy_from_slice(&input[..n]);
        return n;
    }
    if rng.one_in(2) {
        return libfuzzer_sys::fuzzer_mutate(data, size, max);
    }
    let input = data[..size].to_vec();
    let changed = mutate(&input, &input, &mut rng, max.min(MOST));
    data[..changed.len()].copy_from_slice(&changed);
    changed.len()
}
