#!/bin/bash
# Builds `below` (facebookincubator) from its crate, for `make bench-meter` to compare with, unless
# it is there. Its BPF program needs clang 16: clang 14 crashes on it.
#
#   DROVER_CACHE   where it is kept (default /var/cache/drover)
set -euo pipefail
OUT=${DROVER_CACHE:-/var/cache/drover}/below
[ -x "$OUT/bin/below" ] && exit 0
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -q clang-16 libelf-dev zlib1g-dev pkg-config
PATH=/usr/lib/llvm-16/bin:$HOME/.cargo/bin:$PATH cargo install --locked below --version 0.9.0 --root "$OUT"
