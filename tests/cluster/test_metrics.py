"""The metrics endpoint, read on the host by HTTP."""

import re
import unittest

from cluster_api import load_feature, wait_until
from shared import CLUSTER

SAMPLE = re.compile(r'([a-z_]+)(?:\{(.*)\})? (-?[0-9.e+-]+)')


def metrics(host):
    """Samples as {(name, labels): value}."""
    out = CLUSTER.exec(host, "curl", "-sf", "--max-time", "5", "http://127.0.0.1:9177/metrics")[1]
    lines = out.splitlines()
    if lines[-1] != "# EOF":
        raise AssertionError(f"cut off: {lines[-1]}")
    return {(m[1], m[2] or ""): float(m[3]) for m in map(SAMPLE.fullmatch, lines) if m}


class Metrics(unittest.TestCase):
    def test_a_feature_and_its_move(self):
        here = 'domain="g1",feature="counted"'
        there = 'domain="g2",feature="counted"'
        done = ("drover_moves_total", 'result="done"')
        self.addCleanup(self.remove)
        CLUSTER.define("h1", "g1", load_feature("counted", "10.88.0.232", 20, "cpu"))
        CLUSTER.drover("h1", "enable", "g1", "counted")
        wait_until(lambda: abs(metrics("h1").get(("drover_feature_used_cpus", here), 0) - 0.2) < 0.05,
                   60, "the feature uses a fifth of a CPU")
        before, arrived = metrics("h1"), metrics("h2")[("drover_arrivals_total", "")]
        self.assertEqual(before[("drover_feature_running", here)], 1)
        self.assertEqual(before[("drover_peer_up", 'peer="h2"')], 1)
        self.assertEqual(before[("drover_helpers", "")], 1)
        CLUSTER.drover("h1", "migrate", "g1", "counted", "--to", "h2")
        after = metrics("h1")
        self.assertEqual(after[done], before[done] + 1)
        for name in ("drover_moves_sent_bytes_total", "drover_moves_frozen_seconds_total"):
            self.assertGreater(after[(name, "")], before[(name, "")])
        self.assertNotIn(("drover_feature_running", here), after)
        wait_until(lambda: ("drover_feature_used_cpus", there) in metrics("h2"), 60,
                   "its metrics go on at the new host")
        self.assertEqual(metrics("h2")[("drover_arrivals_total", "")], arrived + 1)

    def test_a_lost_peer_shows(self):
        CLUSTER.call("droverd", "stop", "h3")
        try:
            wait_until(lambda: metrics("h1")[("drover_peer_up", 'peer="h3"')] == 0, 30, "h3 is lost")
        finally:
            CLUSTER.call("droverd", "start", "h3")
        wait_until(lambda: metrics("h1")[("drover_peer_up", 'peer="h3"')] == 1, 60, "h3 is back")

    def remove(self):
        for host, domain, _ in CLUSTER.hosts_of("counted"):
            CLUSTER.drover(host, "disable", domain, "counted")
            CLUSTER.drover(host, "undefine", domain, "counted")
