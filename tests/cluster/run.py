#!/usr/bin/env python3
"""Tests on the real cluster: libvirtd, guests, criu, D-Bus, TLS.

    tests/cluster/run.py [TestClass[.test_name] ...]     --keep leaves the cluster up

Without names two clusters run, `test1` and `test2`.
"""

import concurrent.futures
import os
import pathlib
import subprocess
import sys
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "vagrant" / "scenarios")]

import modular  # noqa: E402
from shared import CLUSTER  # noqa: E402


# Halves of about the same length; without names they run beside each other, each on a cluster of
# its own.
HALVES = [
    ["test_basics", "test_hook", "test_doctor", "test_metering", "test_ladder", "test_rungs",
     "test_monitor", "test_metrics", "test_prometheus", "test_history", "test_decision",
     "test_drain", "test_relief", "test_forecast", "test_containers"],
    ["test_dbus", "test_config", "test_moves", "test_queue", "test_state", "test_methods",
     "test_check", "test_network", "test_root", "test_failures", "test_ssh", "test_connect",
     "test_attackers", "test_backend", "test_documents",
     "test_whole_guest"],
]
# By name only: it wants a machine that does nothing else, and has not passed as a whole yet
# (SPECIFICATION.md).
ALONE = ["test_affinity"]


def both():
    """Both halves, their lines as they come; the exit code is 0 when all passed."""
    def half(n):
        env = dict(os.environ, DROVER_CLUSTER=f"{CLUSTER.name}{n}")
        args = [sys.executable, "-u", __file__, f"--half={n}", *sys.argv[1:]]
        process = subprocess.Popen(args, env=env, text=True, errors="replace",
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        last = ""
        for line in process.stdout:
            print(f"{n}: {line}", end="", flush=True)
            last = line if " passed, " in line else last
        return process.wait(), last.strip()

    with concurrent.futures.ThreadPoolExecutor() as pool:
        ends = list(pool.map(half, (1, 2)))
    counts = [[int(part.split()[0]) for part in last.split(", ")] if last else [0, 1, 0]
              for _, last in ends]
    passed, failed, skipped = (sum(c) for c in zip(*counts, strict=True))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(max(code != 0 for code, _ in ends))


def main():
    keep = "--keep" in sys.argv
    names = [a for a in sys.argv[1:] if not a.startswith("-")]
    half = next((int(a[-1]) for a in sys.argv[1:] if a.startswith("--half=")), None)
    if not names and half is None:
        both()
    written = {p.stem for p in HERE.glob("test_*.py")}
    assert written == set(sum(HALVES, ALONE)), "each module of tests is in HALVES or ALONE"
    loader = unittest.TestLoader()
    loader.sortTestMethodsUsing = None
    if names:
        suite = unittest.TestSuite(
            loader.loadTestsFromName(f"{m}.{n}") for n in names for m in sum(HALVES, ALONE)
            if hasattr(__import__(m), n.split(".")[0]))
    else:
        suite = loader.loadTestsFromNames(HALVES[half - 1])
    CLUSTER.down()
    try:
        CLUSTER.up()
        if modular.PROGRAMS:
            modular.switch(CLUSTER)
        CLUSTER.prepare_all()
        result = unittest.TextTestRunner(verbosity=2).run(suite)
    finally:
        if not keep:
            CLUSTER.down()
    bad = len(result.failures) + len(result.errors)
    print(f"{result.testsRun - bad - len(result.skipped)} passed, {bad} failed, "
          f"{len(result.skipped)} skipped")
    sys.exit(0 if result.wasSuccessful() and result.testsRun else 1)


if __name__ == "__main__":
    main()
