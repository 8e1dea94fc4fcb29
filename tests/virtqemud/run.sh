#!/bin/bash
# Tests of the hook, moves and `drover doctor` on hosts with virtqemud instead of libvirtd.
#
#   tests/virtqemud/run.sh [TestClass[.test_name] ...]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
DROVER_VIRTQEMUD=$("$here/build.sh")
export DROVER_VIRTQEMUD
[ $# -gt 0 ] || set -- Hook Basics Doctor Moves.test_there_and_back
exec "$here/../cluster/run.py" "$@"
