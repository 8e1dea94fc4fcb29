"""Relief: a host that is asked for more than it has gives a feature away, with no threshold crossed."""

import unittest

from cluster_api import Events, load_feature, wait_until
from shared import CLUSTER, GUESTS

CONFIG = "/etc/drover/drover.toml"
SECTION = "\n[decision]\nrelieve = true\nrelieve_every_s = 6\n"
# h1's, of which its two features want more together than each alone.
CPUS = 0.6
NAMES = {"one": "10.88.0.236", "two": "10.88.0.237"}


class Relief(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.before = {h: CLUSTER.exec(h, "cat", CONFIG)[1] for h in GUESTS}
        wanted = {h: text + SECTION for h, text in cls.before.items()}
        assert wanted["h1"].count("\ncpus = 1.0\n") == 1, wanted["h1"]
        wanted["h1"] = wanted["h1"].replace("\ncpus = 1.0\n", f"\ncpus = {CPUS}\n")
        cls.configure(wanted)

    @classmethod
    def tearDownClass(cls):
        cls.configure(cls.before)

    @staticmethod
    def configure(texts):
        """All hosts: one that does not tell what it expects itself is no target."""
        for host, text in texts.items():
            CLUSTER.exec(host, "tee", CONFIG, stdin=text)
            CLUSTER.call("droverd", "restart", host)
        for host, guest in GUESTS.items():
            wait_until(lambda h=host, g=guest: CLUSTER.drover(h, "guest", "status", g, check=False)[1]
                       .find("connected") >= 0, 60, f"{guest}'s helper is connected")
            wait_until(lambda h=host: len(CLUSTER.drover_json(h, "hosts")) == 3, 60,
                       f"{host} hears its peers")

    def tearDown(self):
        for name in NAMES:
            for host, domain, _ in CLUSTER.hosts_of(name):
                CLUSTER.drover(host, "disable", domain, name)
                CLUSTER.drover(host, "undefine", domain, name)

    def test_a_crowded_host_gives_a_feature_away(self):
        events = Events(CLUSTER, "h1")
        self.addCleanup(events.stop)
        for name, address in NAMES.items():
            CLUSTER.define("h1", "g1", dict(load_feature(name, address, 35, "cpu"), automatic=True))
            CLUSTER.drover("h1", "enable", "g1", name)
        plan = events.wait(lambda e: e["event"] == "decision", 180, "a decision")["plan"]
        self.assertEqual(plan["outcome"], "move", plan)
        self.assertIn("CPUs are expected to be wanted on this host", plan["reason"])
        job = events.wait(lambda e: e["event"] == "move" and e["job"]["result"], 180, "a move")["job"]
        self.assertEqual(job["result"], "done", job)
        self.assertIn("feature-seconds less", job["cause"])
        gone = job["feature"]
        self.assertEqual(gone, plan["feature"])
        self.assertNotEqual(job["to_host"], "h1")
        place = [(job["to_host"], GUESTS[job["to_host"]], "running")]
        wait_until(lambda: CLUSTER.hosts_of(gone) == place, 60, f"{gone} runs at {place} only")
        # None of them has a threshold that could have been the cause.
        for name in NAMES:
            places = CLUSTER.hosts_of(name)
            self.assertEqual(len(places), 1, places)
        shown = CLUSTER.drover_json("h1", "decision", plan["id"])
        self.assertIn("feature-seconds less", str(shown))
