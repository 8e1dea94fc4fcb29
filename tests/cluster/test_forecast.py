"""A load that grows: Drover moves it before the limit is crossed."""

import time
import unittest

from cluster_api import wait_until
from shared import CLUSTER, GUESTS

CONFIG = "/etc/drover/drover.toml"
SECTION = """
[forecast]
every_s = 5
lead_s = 120
min_points = 12
"""
# Busy D hundredths of each second; D grows by one in five seconds.
RAMP = ("d=5; while [ $d -lt 90 ]; do for i in 1 2 3 4 5; do "
        "timeout 0.$(printf %02d $d) sh -c 'while :; do :; done'; "
        "sleep 0.$(printf %02d $((95 - d))); done; d=$((d + 1)); done; sleep 1000")


class Forecast(unittest.TestCase):
    FEATURE, LIMIT = "ramp", 50.0

    @classmethod
    def setUpClass(cls):
        CLUSTER.exec("h1", "cp", CONFIG, f"{CONFIG}.before")
        CLUSTER.exec("h1", "tee", "-a", CONFIG, stdin=SECTION)
        cls.restart()

    @classmethod
    def tearDownClass(cls):
        CLUSTER.exec("h1", "mv", f"{CONFIG}.before", CONFIG)
        cls.restart()

    @staticmethod
    def restart():
        CLUSTER.call("droverd", "restart", "h1")
        wait_until(lambda: CLUSTER.drover("h1", "guest", "status", "g1", check=False)[1]
                   .find("connected") >= 0, 60, "g1's helper is connected")
        wait_until(lambda: len(CLUSTER.drover_json("h1", "hosts")) == 3, 60, "h1 hears its peers")

    def test_moves_before_the_limit(self):
        from cluster_api import Events, load_feature
        events = Events(CLUSTER, "h1")
        self.addCleanup(events.stop)
        # Another load on the host makes moving worth while.
        for spec in (load_feature("neighbour", "10.88.0.231", 30, "cpu"),
                     {"name": self.FEATURE, "automatic": True,
                      "thresholds": [{"resource": "cpu", "limit": self.LIMIT, "for_s": 10.0}],
                      "workload": {"kind": "managed", "exec": ["/bin/sh", "-c", RAMP],
                                   "address": "10.88.0.230/24"}}):
            CLUSTER.define("h1", "g1", spec)
            self.addCleanup(self.remove, spec["name"])
            CLUSTER.drover("h1", "enable", "g1", spec["name"])

        # Too little history is said, not guessed.
        first = CLUSTER.drover_json("h1", "forecast", "g1", self.FEATURE)["series"][0]
        self.assertIn("too little history", first["problem"])

        def breach(event):
            return event["event"] == "breach" and event["active"]
        seen = events.wait(breach, 300, "a breach")
        self.assertTrue(seen["what"].startswith("forecast: cpu is expected above 50.0 %"), seen)
        text = CLUSTER.drover("h1", "forecast", "g1", self.FEATURE)
        print(text)
        self.assertIn("cpu > 50 % for 10 s", text)
        job = events.wait(lambda e: e["event"] == "move" and e["job"]["result"], 180, "a move")["job"]
        self.assertEqual(job["result"], "done", job)
        self.assertTrue(job["cause"].startswith("forecast: cpu"), job)
        measured = [e for e in events.seen if breach(e) and not e["what"].startswith("forecast:")]
        self.assertEqual(measured, [], "nothing was above the limit before the move")
        # It did come, at the host that it went to.
        there, guest = job["to_host"], GUESTS[job["to_host"]]

        def above():
            points = CLUSTER.drover_json(there, "history", guest, self.FEATURE, "--since", "8s",
                                         "--resource", "cpu")
            return points and min(p["cpu"] or 0 for p in points) > self.LIMIT
        begun = time.monotonic()
        wait_until(above, 300, "the limit is crossed after all")
        print(f"{seen['what']}; moved to {there}, above the limit {time.monotonic() - begun:.0f} s later")

    @staticmethod
    def remove(feature):
        for host, domain, _ in CLUSTER.hosts_of(feature):
            CLUSTER.drover(host, "disable", domain, feature)
            CLUSTER.drover(host, "undefine", domain, feature)
