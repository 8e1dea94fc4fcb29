"""What the model learns and free capacity does not tell: one host's disk is slow, another's CPU.

A feature that writes and one that computes run everywhere for a while, then on h1 only, in breach. Seen by capacity alone, h2 (slow disk) and h3 (little CPU) look idle, for
nothing gets done there.
"""

import re
import time
import unittest

from cluster_api import Events, wait_until
from shared import CLUSTER, GUESTS

FILE = "/var/tmp/drover-affinity"
# 64 MiB on every guest: an open file must be the same at the other place.
WRITES = (f"while :; do dd if=/dev/zero of={FILE} bs=256k count=8 oflag=direct conv=notrunc "
          "2>/dev/null; sleep 0.2; done")
COMPUTES = "while :; do timeout 0.45 sh -c 'while :; do :; done'; sleep 0.35; done"
LEARN_S = 90
CONFIG = "/etc/drover/drover.toml"
# The model counts in full with what a feature of each kind shows in a minute and a half.
TUNING = {"train_every_s": 5, "horizon_s": 4.0, "rows_min": 20, "rows_full": 100}


def feature(name, address, script, limit=None, automatic=False):
    return {"name": name, "automatic": automatic, "thresholds": [limit] if limit else [],
            "workload": {"kind": "managed", "exec": ["/bin/sh", "-c", script],
                         "address": f"10.88.0.{address}/24"}}


class Affinity(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.before = {}
        for host in GUESTS:
            text = cls.before[host] = CLUSTER.exec(host, "cat", CONFIG)[1]
            for key, value in TUNING.items():
                text, found = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
                assert found == 1, (key, text)
            cls.configure(host, text)

    @classmethod
    def tearDownClass(cls):
        for host, text in cls.before.items():
            cls.configure(host, text)

    @staticmethod
    def configure(host, text):
        CLUSTER.exec(host, "tee", CONFIG, stdin=text)
        CLUSTER.call("droverd", "restart", host)

    def setUp(self):
        self.features = []
        for guest in GUESTS.values():
            CLUSTER.guest(guest, "dd", "if=/dev/zero", f"of={FILE}", "bs=1M", "count=2")
        CLUSTER.call("slow", "h2", "disk", "1")
        CLUSTER.call("slow", "h3", "cpu", "0.35")

    def tearDown(self):
        for name in self.features:
            self.remove(name)
        for host in ("h2", "h3"):
            CLUSTER.call("slow", host, "off")

    def remove(self, name):
        for host, domain, _ in CLUSTER.hosts_of(name):
            CLUSTER.drover(host, "disable", domain, name)
            CLUSTER.drover(host, "undefine", domain, name)

    def start(self, host, spec):
        CLUSTER.define(host, GUESTS[host], spec)
        self.features.append(spec["name"])
        CLUSTER.drover(host, "enable", GUESTS[host], spec["name"])

    def scores(self, name):
        report = CLUSTER.drover_json("h1", "score", "g1", name, "--explain")[0]
        for host in report["hosts"]:
            parts = dict(host["score"]["parts"])
            total = sum(v for _, v in host["score"]["explain"])
            # What the inputs add is the model's prediction.
            self.assertAlmostEqual(min(max(total, 0.0), 1.0), parts["model"], delta=1e-4)
        print(CLUSTER.drover("h1", "score", "g1", name))
        return {h["host"]: dict(h["score"]["parts"], score=h["score"]["value"])
                for h in report["hosts"]}

    def test_each_kind_to_the_host_that_serves_it(self):
        # Both features everywhere, one after the other so that they do not disturb each other.
        address = 240
        for kind, script in (("writes", WRITES), ("computes", COMPUTES)):
            for host in GUESTS:
                address += 1
                self.start(host, feature(kind, address, script))
            time.sleep(LEARN_S)
            self.remove(kind)
        model = wait_until(self.trained, 60, "h1 has a model of rows of all hosts")
        print(f"model: {model}")

        events = Events(CLUSTER, "h1")
        self.addCleanup(events.stop)
        for name, script, limit, to, other in (
                ("writes", WRITES, {"resource": "disk_write", "limit": 100_000.0, "for_s": 12.0},
                 "h3", "h2"),
                ("computes", COMPUTES, {"resource": "cpu", "limit": 25.0, "for_s": 12.0},
                 "h2", "h3")):
            address += 1
            # Something else on h1 makes moving worth while.
            self.start("h1", feature(f"beside-{name}", address + 4,
                                     WRITES if name == "writes" else COMPUTES))
            self.start("h1", feature(name, address, script, limit, automatic=True))
            job = events.wait(lambda e, n=name: e["event"] == "move" and e["job"]["result"]
                              and e["job"]["feature"] == n, 120, f"a move of {name}")["job"]
            plan = [e["plan"] for e in events.seen if e["event"] == "decision"
                    and e["plan"]["feature"] == name and e["plan"]["outcome"] == "move"][-1]
            parts = {c["host"]: dict(c["parts"], score=c["score"]) for c in plan["candidates"]
                     if c["score"] is not None}
            print(CLUSTER.drover("h1", "decision", plan["id"]))
            self.assertEqual((job["result"], job["to_host"]), ("done", to), plan)
            # Capacity alone would have chosen the other one.
            self.assertGreaterEqual(parts[other]["headroom"], parts[to]["headroom"] - 0.02, parts)
            again = CLUSTER.drover_json("h1", "decision", plan["id"], "--replay")
            self.assertTrue(again["same"])
            self.remove(name)
            self.remove(f"beside-{name}")

    def trained(self):
        plan = CLUSTER.drover_json("h1", "hosts")
        return len(plan) == 3 and self.model()

    @staticmethod
    def model():
        log = CLUSTER.exec("h1", "grep", "-a", "affinity model trained", "/var/log/drover/droverd.log",
                           check=False)[1].splitlines()
        return log[-1] if log else None
