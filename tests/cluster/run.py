#!/usr/bin/env python3
"""Tests on the real cluster: libvirtd, guests, criu, D-Bus, TLS.

    tests/cluster/run.py [TestClass[.test_name] ...]     --keep leaves the cluster up

Without names two clusters run beside each other, `test1` and `test2`. What failed there runs once
more, on a cluster that has the machine to itself; what passes only then is named as such.

A test that failed leaves nothing to the next: what the hosts and guests looked like is written to
target/cluster/NAME/, and the cluster is made anew.
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

import aftermath  # noqa: E402
import modular  # noqa: E402
from cluster_api import Failed  # noqa: E402
from shared import CLUSTER  # noqa: E402


ROOT = HERE.parents[1]
REPORTS = ROOT / "target" / "cluster"

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
# After so many failures the cluster stays as it is: it is not the cluster.
RENEWALS_AT_MOST = 12


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
    told(failed)
    print(f"{passed} passed, {len(failed)} failed, {skipped} skipped")
    sys.exit(1 if failed or not passed else 0)


def told(failed):
    """What failed, those of one reason together: the list stays short, whatever is cut from it."""
    reasons = {}
    for name, why in failed.items():
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        print(f"failed: {', '.join(names)}: {why}")


def failures(result):
    """What failed, `Class.test` or `Class` when it could not start, with what the error says."""
    found = {}
    for test, trace in result.failures + result.errors:
        words = test.id()
        inner = re.search(r"\((?:\w+\.)*(\w+)\)", words)   # "setUpClass (test_x.Class)"
        name = inner.group(1) if inner else ".".join(words.split(".")[-2:])
        lines = trace.strip().splitlines()
        # A command's output stands below the line that names it.
        begins = [n for n, line in enumerate(lines) if re.match(r"[\w.]*(Error|Failed|Expired)\b", line)]
        found[name] = " ".join(lines[begins[-1] if begins else -1:]).replace(f"{ROOT}/", "")[:500]
    return found


class Result(unittest.TextTestResult):
    """A failed test is told at once, and the tests after it get a cluster made anew."""

    anew = 0

    def startTest(self, test):
        super().startTest(test)
        self.bad = False

    def told(self, test, traces):
        # What failed comes to CI's log even if the run is cut short.
        self.stream.writeln(f"\n{traces[-1][1]}")
        aftermath.look(CLUSTER, REPORTS / CLUSTER.name / f"{test.id().split('.', 1)[-1]}.txt")
        if hasattr(test, "_testMethodName"):
            self.bad = True
        else:
            # Of a whole class: no stopTest follows.
            self.renew()

    def addError(self, test, err):
        super().addError(test, err)
        self.told(test, self.errors)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.told(test, self.failures)

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        self.bad |= err is not None

    def stopTest(self, test):
        super().stopTest(test)
        if self.bad:
            self.renew()

    def renew(self):
        if self.anew < RENEWALS_AT_MOST:
            self.anew += 1
            try:
                start()
            except (Failed, subprocess.TimeoutExpired) as e:
                # The tests that follow fail, and say so.
                self.stream.writeln(f"the cluster is not made anew: {e}")


def start():
    """The cluster, made anew."""
    CLUSTER.down()
    CLUSTER.up()
    if modular.PROGRAMS:
        modular.switch(CLUSTER)
    CLUSTER.prepare_all()


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
    try:
        start()
        result = unittest.TextTestRunner(verbosity=2, resultclass=Result).run(suite)
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
