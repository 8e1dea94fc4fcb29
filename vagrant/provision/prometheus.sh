#!/bin/bash
# Debian's Prometheus below DIR, unpacked and not installed: no service is started, nothing else of
# the machine changes. Does nothing when it is there already. Prints the directory of the programs.
#
#   prometheus.sh DIR
set -euo pipefail
dir=$(mkdir -p "${1:?DIR}" && cd "$1" && pwd)

if [ ! -x "$dir/usr/bin/promtool" ]; then
    cd "$dir"
    export DEBIAN_FRONTEND=noninteractive
    apt-get download -q prometheus >&2 || { apt-get update -q >&2 && apt-get download -q prometheus >&2; }
    dpkg -x prometheus_*.deb .
    rm -f prometheus_*.deb
fi
"$dir/usr/bin/prometheus" --version >&2
echo "$dir/usr/bin"
