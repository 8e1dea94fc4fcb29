//! Pure modules import no edge, no I/O, no clock and no async runtime.

use std::fs;
use std::path::{Path, PathBuf};

/// Files and directories of the pure core, under `src/`.
const PURE: [&str; 18] = [
    "attribution.rs",
    "counters",
    "feature.rs",
    "rules.rs",
    "sample.rs",
    "usage.rs",
    "host.rs",
    "api.rs",
    "columns.rs",
    "recent.rs",
    "qemu.rs",
    "rollup.rs",
    "threshold",
    "affinity",
    "decision",
    "forecast",
    "moving",
    "wire",
];

/// What they must not name. `api.rs` declares the daemon's async trait, so it alone may name
/// the channel type in which events are delivered.
const FORBIDDEN: [&str; 22] = [
    "tokio",
    "zbus",
    "virt::",
    "virt_sys",
    "sled",
    "redb",
    "rustls",
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::os",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "Instant::now",
    "SystemTime::now",
    "async fn",
    "nix::",
    "crate::daemon",
    "crate::driver",
    "crate::config",
];

/// Edges, as modules of this crate.
const EDGES: [&str; 10] = [
    "cli",
    "dbus",
    "guest",
    "history",
    "hypervisor",
    "metrics",
    "peer",
    "store",
    "transport",
    "helper",
];

fn sources(path: &Path, out: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("a directory of sources") {
            sources(&entry.expect("an entry").path(), out);
        }
    } else if path.extension().is_some_and(|e| e == "rs") {
        out.push(path.to_owned());
    }
}

/// Code without comments: text in comments may name anything.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or(line)
}

fn violations(file: &Path, text: &str) -> Vec<String> {
    let trait_file = file.ends_with("api.rs");
    let mut found = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let line = code(line);
        let mut bad: Vec<String> = FORBIDDEN
            .iter()
            .filter(|f| line.contains(**f))
            .filter(|f| !(trait_file && ["tokio", "async fn"].contains(f)))
            .map(|f| (*f).to_owned())
            .collect();
        bad.extend(EDGES.iter().map(|e| format!("crate::{e}")).filter(|e| {
            line.match_indices(e.as_str()).any(|(at, _)| {
                !line[at + e.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
            })
        }));
        found.extend(
            bad.into_iter()
                .map(|b| format!("{}:{}: {b}", file.display(), n + 1)),
        );
    }
    found
}

#[test]
fn pure_modules_import_no_edge() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    for p in PURE {
        let path = src.join(p);
        assert!(path.exists(), "{} is gone: update the list", path.display());
        sources(&path, &mut files);
    }
    assert!(
        files.len() > 20,
        "the pure core has more files than {}",
        files.len()
    );
    let found: Vec<String> = files
        .iter()
        .flat_map(|f| violations(f, &fs::read_to_string(f).expect("a source file")))
        .collect();
    assert!(
        found.is_empty(),
        "pure modules reach out:\n{}",
        found.join("\n")
    );
}

#[test]
fn the_check_finds_what_it_looks_for() {
    let file = Path::new("decision/mod.rs");
    assert_eq!(violations(file, "use crate::store::Store;").len(), 1);
    assert_eq!(
        violations(file, "let t = std::time::Instant::now();").len(),
        2
    );
    assert_eq!(violations(file, "// tokio is not used here").len(), 0);
    assert_eq!(violations(file, "use crate::wire::guest::Call;").len(), 0);
    assert_eq!(
        violations(Path::new("api.rs"), "async fn hosts(&self);").len(),
        0
    );
}
