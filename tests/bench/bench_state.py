#!/usr/bin/env python3
"""What state directories cost in the freeze of a live move: 10,000 small files of which one
changes, and a file of 200 MB of which one page changes. Writes target/bench/state.json.

    tests/bench/bench_state.py [--moves N] [--only small|large]
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "vagrant" / "scenarios")]

from cluster_api import Cluster, wait_until  # noqa: E402

DIR = "/srv/bench-state"
# Changes one page, or one file, ten times a second.
WRITER = r'''
import os, sys, time
path, size = sys.argv[1], int(sys.argv[2])
n = 0
while True:
    n += 1
    with open(path, "r+b") as f:
        f.seek((n * 7919 * 4096) % size if size else 0)
        f.write(b"%016d" % n)
    time.sleep(0.1)
'''
CASES = {
    "small": (f"for d in $(seq 100); do mkdir -p {DIR}/$d; for f in $(seq 100); do "
              f"echo $d $f some content > {DIR}/$d/$f; done; done", [f"{DIR}/50/50", "0"]),
    "large": (f"dd if=/dev/urandom of={DIR}/big bs=1M count=200 2>/dev/null; sync",
              [f"{DIR}/big", str(200 << 20)]),
}


def measure(cluster, case, moves):
    prepare, arguments = CASES[case]
    cluster.guest("g1", "sh", "-c", f"rm -rf {DIR}; mkdir -p {DIR}; {prepare}", timeout=300)
    cluster.define("h1", "g1", {
        "name": "state", "automatic": False, "downtime_ms": 100,
        "workload": {"kind": "managed", "address": "10.88.0.234/24", "state": [DIR],
                     "exec": ["/usr/bin/python3", "/usr/local/lib/bench-writer.py", *arguments]}})
    cluster.drover("h1", "enable", "g1", "state")
    here, there, rows = 1, 2, []
    for _ in range(moves):
        cluster.drover(f"h{here}", "migrate", f"g{here}", "state", "--to", f"h{there}/g{there}",
                       timeout=600)
        job = cluster.drover_json(f"h{here}", "jobs")[0]
        rows.append({"freeze_ms": job["freeze_ms"], **job["detail"]["freeze"],
                     "bytes": job["history"][-1]["bytes"]})
        print(case, rows[-1], flush=True)
        here, there = there, here
        wait_until(lambda: cluster.hosts_of("state") == [(f"h{here}", f"g{here}", "running")],
                   60, "it runs at one place")
    cluster.drover(f"h{here}", "disable", f"g{here}", "state")
    cluster.drover(f"h{here}", "undefine", f"g{here}", "state")
    cluster.guest(f"g{here}", "rm", "-rf", DIR)
    return {key: statistics.median(r[key] for r in rows) for key in rows[0]}


def main():
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--moves", type=int, default=5)
    ask.add_argument("--only", choices=sorted(CASES))
    asked = ask.parse_args()
    cluster = Cluster(os.environ.get("DROVER_CLUSTER", "bench-state"), hosts=2)
    if stage := os.environ.get("BENCH_STAGE"):
        cluster.env["DROVER_STAGE"] = stage
    cluster.down()
    try:
        cluster.up()
        for n in (1, 2):
            cluster.drover(f"h{n}", "guest", "install", f"g{n}", timeout=180)
            with tempfile.NamedTemporaryFile("w", suffix=".py") as f:
                f.write(WRITER)
                f.flush()
                cluster.push(f"g{n}", f.name, "/usr/local/lib/bench-writer.py", "0644")
        found = {case: measure(cluster, case, asked.moves)
                 for case in CASES if asked.only in (None, case)}
    finally:
        cluster.down()
    out = ROOT / "target" / "bench" / "state.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"moves": asked.moves, "cases": found}, indent=1) + "\n")
    print(out.read_text())


if __name__ == "__main__":
    main()
