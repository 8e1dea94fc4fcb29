#!/bin/bash
# Runs fuzz targets under libFuzzer, one after the other, each from the inputs in seeds/ and from
# what earlier runs found (corpus/).
#
#   run.sh [SECONDS [TARGET...]]    60 seconds each of all targets by default
#
# What fails is in artifacts/TARGET; all others run all the same, and the exit code tells. Installs
# cargo-fuzz when it is not there; needs a C++ compiler for libFuzzer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export PATH=$HOME/.cargo/bin:$PATH
# The toolchain that builds Drover does: what libFuzzer needs of it is not stable, but there.
export RUSTC_BOOTSTRAP=1

if ! command -v c++ >/dev/null; then
    echo "run.sh: libFuzzer is built by a C++ compiler: apt-get install g++" >&2
    exit 1
fi
seconds=${1:-60}
shift || true
cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
# The versions that the programs are made of.
cp ../Cargo.lock Cargo.lock

targets=("$@")
[ $# -gt 0 ] || mapfile -t targets < <(cargo fuzz list)
# Nearly all of it is safe Rust: panics, overflows and time count, not addresses.
cargo fuzz build --sanitizer none
failed=()
for target in "${targets[@]}"; do
    mkdir -p "corpus/$target" "seeds/$target"
    echo "$target: $seconds s"
    if ! cargo fuzz run --sanitizer none "$target" "corpus/$target" "seeds/$target" -- \
        -max_total_time="$seconds" -max_len=16384 -timeout=20 -rss_limit_mb=1024 \
        -print_final_stats=1 >"corpus/$target.log" 2>&1; then
        failed+=("$target")
        tail -n 20 "corpus/$target.log"
    fi
    grep -E 'number_of_executed_units|new_units_added|peak_rss_mb' "corpus/$target.log" || true
done
rmdir seeds/* 2>/dev/null || true
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}; inputs in fuzz/artifacts" >&2
    exit 1
fi
