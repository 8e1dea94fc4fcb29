//! Fuzz targets: everything that guests, peers and users send is decoded here from any bytes.
//!
//! One list of functions serves twice: `cargo test` runs each over its seeds and over mutations of
//! them (`tests`), and `fuzz/` runs each under libFuzzer (`cargo +nightly fuzz run NAME`), with
//! the same mutations added to libFuzzer's own. Neither is part of any program: the module is there
//! under `cfg(test)` and `cfg(fuzzing)` only.
//!
//! A target panics when what it looks at breaks a promise: never a panic, what was taken is written
//! and read again the same, numbers that are finite, nothing outside of a directory.
//!
//! Targets of private code are beside that code, in a module `fuzz` of `guest`, `hypervisor`,
//! `peer`, `history`, `metrics` and `helper`.

pub mod mutate;
#[cfg(test)]
mod tests;
mod users;
pub(crate) mod wire;

use std::future::Future;

/// One target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Name, also of its directory in `fuzz/seeds` and its program in `fuzz/fuzz_targets`.
    pub name: &'static str,
    /// What it does with an input.
    pub run: fn(&[u8]),
    /// Inputs that are understood, from which others are made.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    wire::FRAME,
    wire::BULK,
    wire::STATE,
    crate::guest::fuzz::CONTROL,
    crate::guest::fuzz::BULK_PORT,
    crate::guest::fuzz::AGENT,
    crate::hypervisor::fuzz::XML,
    crate::hypervisor::fuzz::HOOK,
    crate::hypervisor::fuzz::ANSWER,
    crate::peer::fuzz::OFFER,
    crate::peer::fuzz::HOSTS,
    crate::peer::fuzz::ANSWERS,
    crate::peer::fuzz::BULK_STREAM,
    crate::peer::fuzz::DBUS,
    crate::history::fuzz::PARCEL,
    crate::metrics::fuzz::REQUEST,
    users::DEFINITION,
    users::THRESHOLD,
    users::CONFIG,
    #[cfg(feature = "guest")]
    crate::helper::fuzz::REQUESTS,
    #[cfg(feature = "guest")]
    crate::helper::fuzz::IMAGES,
    #[cfg(feature = "guest")]
    crate::helper::fuzz::CRIU,
];

/// Longest input that is looked at, bytes.
pub const MOST: usize = 16 << 10;

/// Runs the target `name`.
///
/// # Panics
/// When the input breaks a promise, or there is no such target.
pub fn run(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|t| t.name == name);
    let target = target.expect("a target of this name");
    (target.run)(&input[..input.len().min(MOST)]);
}

/// Runs asynchronous code to its end, in a runtime of this thread.
pub(crate) fn wait<T>(work: impl Future<Output = T>) -> T {
    use std::cell::OnceCell;
    use tokio::runtime::{Builder, Runtime};
    thread_local!(static RUNTIME: OnceCell<Runtime> = const { OnceCell::new() });
    RUNTIME.with(|cell| {
        let runtime = cell.get_or_init(|| {
            Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime")
        });
        runtime.block_on(work)
    })
}

/// Pieces of an input, each behind its length as two bytes; the rest is the last one.
pub(crate) fn pieces(mut input: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Some((length, rest)) = input.split_first_chunk::<2>() {
        let n = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (piece, rest) = rest.split_at(n);
        found.push(piece);
        input = rest;
    }
    found
}

/// The counterpart of [`pieces`].
pub(crate) fn joined<T: AsRef<[u8]>>(pieces: &[T]) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in pieces {
        let piece = piece.as_ref();
        out.extend_from_slice(&(piece.len() as u16).to_le_bytes());
        out.extend_from_slice(piece);
    }
    out
}

/// Seeds that are values as JSON.
pub(crate) fn json<T: serde::Serialize>(values: &[T]) -> Vec<Vec<u8>> {
    let text = |v| serde_json::to_vec(v).expect("a value as JSON");
    values.iter().map(text).collect()
}

/// What is read of JSON must be written and read again the same.
pub(crate) fn same_as_json<T>(value: &T)
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let text = serde_json::to_string(value).expect("a value as JSON");
    let back: T = serde_json::from_str(&text).expect("its own JSON");
    assert_eq!(*value, back);
}
