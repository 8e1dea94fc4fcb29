#!/bin/bash
# All that a fresh Debian 12 machine needs to build Drover and to run its test cluster:
# Debian's packages, a Rust toolchain, the guest image. Does nothing where it is there already.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

if [ "$(id -u)" != 0 ]; then
    echo "setup: run as root; it installs packages and the cluster makes network namespaces" >&2
    exit 1
fi

"$here/packages.sh" --cluster --build --vagrant

# The oldest toolchain that builds Drover: `rust-version` in Cargo.toml.
want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$here/../../Cargo.toml" | head -n 1)
have=$(cargo --version 2>/dev/null | cut -d' ' -f2 || true)
if [ -z "$have" ] || [ "$(printf '%s\n%s\n' "$want" "$have" | sort -V | head -n 1)" != "$want" ]; then
    echo "setup: installing a Rust toolchain (found '${have:-none}', need $want or newer)"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
        sh -s -- -y --profile minimal --component clippy,rustfmt
fi
