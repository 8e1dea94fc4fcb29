#!/bin/bash
# What deny.toml says about the dependencies: licences, bans, sources; and advisories, where the
# database of them can be had. Installs cargo-deny where it is missing: a minute on two cores, since
# it is built without optimization, which its seconds of work do not need.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VERSION=0.20.2 # builds with Rust 1.88 and newer

if ! cargo deny --version >/dev/null 2>&1; then
    echo "deny: installing cargo-deny $VERSION"
    CARGO_PROFILE_DEV_DEBUG=0 timeout 900 \
        cargo install --quiet --locked --debug --version "$VERSION" cargo-deny
fi
cargo deny --locked --all-features check licenses bans sources

log=$(mktemp)
trap 'rm -f "$log"' EXIT
if timeout 120 cargo deny --locked --all-features check advisories >"$log" 2>&1; then
    cat "$log"
elif grep -q 'failed to fetch advisory database' "$log"; then
    echo "advisories skipped: the database (RustSec/advisory-db on GitHub) cannot be fetched from here"
else
    cat "$log"
    exit 1
fi
