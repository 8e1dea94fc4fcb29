#!/usr/bin/env python3
"""Tests on the real cluster: libvirtd, guests, criu, D-Bus, TLS.

    tests/cluster/run.py [TestClass[.test_name] ...]     --keep leaves the cluster up

Without names two clusters run beside each other, `test1` and `test2`. What failed there runs once
more, on a cluster that has the machine to itself; what passes only then is named as such.
"""

import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "vagrant" / "scenarios")]

import modular  # noqa: E402
from shared import CLUSTER  # noqa: E402


REPORTS = HERE.parents[1] / "target" / "cluster"

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
# By name only: it wants a machine that does nothing else, and takes seven minutes.
ALONE = ["test_affinity"]


# More failures than this are no matter of chance: nothing runs again.
AGAIN_AT_MOST = 8


def one(name, *args):
    """One run of this program on the cluster `name`, its lines as they come; what it reported."""
    report = REPORTS / f"{name}.json"
    report.unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-u", __file__, f"--report={report}", *args], text=True,
        errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=dict(os.environ, DROVER_CLUSTER=name))
    for line in process.stdout:
        print(f"{name}: {line}", end="", flush=True)
    code = process.wait()
    if not report.exists():
        return {"passed": 0, "skipped": 0, "failed": {f"cluster {name}": f"ended with {code}"}}
    return json.loads(report.read_text())


def both():
    """Both halves, then what failed in them once more; the exit code is 0 when all passed."""
    keep = [a for a in sys.argv[1:] if a == "--keep"]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        ends = list(pool.map(lambda n: one(f"{CLUSTER.name}{n}", f"--half={n}", *keep), (1, 2)))
    passed, skipped = (sum(end[key] for end in ends) for key in ("passed", "skipped"))
    failed = {name: why for end in ends for name, why in end["failed"].items()}
    if failed and len(failed) <= AGAIN_AT_MOST and all(n[0].isupper() for n in failed):
        first, names = failed, list(failed)
        for name, why in first.items():
            print(f"failed, runs again: {name}: {why}", flush=True)
        end = one(f"{CLUSTER.name}3", *names)
        passed, failed = passed + end["passed"], end["failed"]
        for name in names:
            if name not in failed and name.split(".")[0] not in failed:
                print(f"passed only when run again: {name}: {first[name]}")
    for name, why in failed.items():
        print(f"failed: {name}: {why}")
    print(f"{passed} passed, {len(failed)} failed, {skipped} skipped")
    sys.exit(1 if failed or not passed else 0)


def failures(result):
    """What failed, `Class.test` or `Class` when it could not start, with the error's last line."""
    found = {}
    for test, trace in result.failures + result.errors:
        words = test.id()
        inner = re.search(r"\((?:\w+\.)*(\w+)\)", words)   # "setUpClass (test_x.Class)"
        name = inner.group(1) if inner else ".".join(words.split(".")[-2:])
        lines = trace.strip().splitlines()
        told = (line for line in reversed(lines) if re.match(r"[\w.]*(Error|Failed|Expired)\b", line))
        found[name] = next(told, lines[-1])[:300]
    return found


def main():
    keep = "--keep" in sys.argv
    names = [a for a in sys.argv[1:] if not a.startswith("-")]
    half = next((int(a[-1]) for a in sys.argv[1:] if a.startswith("--half=")), None)
    report = next((a.partition("=")[2] for a in sys.argv[1:] if a.startswith("--report=")), None)
    if not names and half is None:
        REPORTS.mkdir(parents=True, exist_ok=True)
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
    failed = failures(result)
    passed = result.testsRun - sum("." in name for name in failed) - len(result.skipped)
    if report:
        pathlib.Path(report).write_text(json.dumps(
            {"passed": passed, "skipped": len(result.skipped), "failed": failed}))
    print(f"{passed} passed, {len(failed)} failed, {len(result.skipped)} skipped")
    sys.exit(0 if result.wasSuccessful() and result.testsRun else 1)


if __name__ == "__main__":
    main()
