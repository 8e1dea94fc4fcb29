#!/usr/bin/env python3
"""Tests on the real cluster: libvirtd, guests, criu, D-Bus, TLS. One cluster for all of them.

    tests/cluster/run.py [-v] [TestClass[.test_name] ...]     --keep leaves the cluster up
"""

import concurrent.futures
import pathlib
import sys
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "vagrant" / "scenarios")]

from shared import CLUSTER, prepare  # noqa: E402


def main():
    keep = "--keep" in sys.argv
    names = [a for a in sys.argv[1:] if not a.startswith("-")]
    loader = unittest.TestLoader()
    loader.sortTestMethodsUsing = None
    modules = ["test_basics", "test_hook", "test_doctor", "test_metering", "test_containers", "test_ladder",
               "test_rungs", "test_monitor",
               "test_metrics", "test_prometheus", "test_history", "test_decision",
               "test_drain",
               "test_forecast", "test_dbus", "test_config", "test_moves", "test_queue", "test_state",
               "test_failures", "test_whole_guest",
               "test_ssh"]
    # Only by name: it does not pass yet (SPECIFICATION.md, "Not reached yet").
    searched = [*modules, "test_affinity"]
    if names:
        suite = unittest.TestSuite(
            loader.loadTestsFromName(f"{m}.{n}") for n in names for m in searched
            if hasattr(__import__(m), n.split(".")[0]))
    else:
        suite = loader.loadTestsFromNames(modules)
    CLUSTER.down()
    try:
        CLUSTER.up()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(prepare, (1, 2, 3)))
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
