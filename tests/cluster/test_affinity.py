"""What the model learns and free capacity does not tell: one host's disk is slow, another's CPU.

A feature that writes and one that computes go round the hosts for a while, then Drover chooses where
they go from h1. Seen by capacity alone, h2 (slow disk) and h3 (little CPU) look idle, for nothing gets done
there.
"""

import re
import time
import unittest

from cluster_api import load_feature, wait_until
from shared import CLUSTER, GUESTS

DIR = "/var/lib/drover-affinity"
WRITES = (f"mkdir -p {DIR}; while :; do dd if=/dev/zero of={DIR}/file bs=256k count=8 oflag=direct conv=notrunc "
          "2>/dev/null; sleep 0.2; done")
COMPUTES = "while :; do timeout 0.3 sh -c 'while :; do :; done'; sleep 0.45; done"
SCRIPTS = {"writes": WRITES, "computes": COMPUTES}
# Of each feature on each host, one a second when nothing else keeps the machine.
LEARN_POINTS = 50
CONFIG = "/etc/drover/drover.toml"
# The model counts in full with what two features show in two minutes.
TUNING = {"train_every_s": 5, "horizon_s": 4.0, "rows_min": 15, "rows_full": 45}


def feature(name, address, automatic=False):
    workload = {"kind": "managed", "address": f"10.88.0.{address}/24",
                "exec": ["/bin/sh", "-c", SCRIPTS[name.removeprefix("beside-")]]}
    if name.endswith("writes"):
        workload["state"] = [f"/var/lib/drover-affinity{'-beside' if '-' in name else ''}"]
        workload["exec"][2] = WRITES.replace(DIR, workload["state"][0])
    return {"name": name, "automatic": automatic, "workload": workload}


class Affinity(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.before = {}
        for host in GUESTS:
            text = cls.before[host] = CLUSTER.exec(host, "cat", CONFIG)[1]
            for key, value in TUNING.items():
                text, found = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
                assert found == 1, (key, text)
            cls.configure(host, text + "\n[decision]\ncooldown_s = 5\n")

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
        CLUSTER.call("slow", "h2", "disk", "1")
        CLUSTER.call("slow", "h3", "cpu", "0.3")

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

    def move(self, name, to):
        """Both sides must know of the move before the next."""
        (host, domain, _), = CLUSTER.hosts_of(name)
        CLUSTER.drover(host, "migrate", domain, name, "--to", to, timeout=180)
        wait_until(lambda: CLUSTER.hosts_of(name) == [(to, GUESTS[to], "running")], 30, "one place")

    def learn(self, **places):
        """Until each feature was metered often enough at its place."""
        began = time.time() * 1000
        for name, host in places.items():
            def points(name=name, host=host):
                known = CLUSTER.drover_json(host, "history", GUESTS[host], name, "--since", "10min")
                return sum(p["at_ms"] > began for p in known) >= LEARN_POINTS
            wait_until(points, 240, f"{name} is known at {host}", pause=3)

    def explained(self, name):
        """What the inputs add is the model's prediction."""
        report = CLUSTER.drover_json("h1", "score", "g1", name, "--explain")[0]
        for host in report["hosts"]:
            parts = dict(host["score"]["parts"])
            total = sum(v for _, v in host["score"]["explain"])
            self.assertAlmostEqual(min(max(total, 0.0), 1.0), parts["model"], delta=1e-4)
        print(CLUSTER.drover("h1", "score", "g1", name, "--explain"))

    def test_each_kind_to_the_host_that_serves_it(self):
        # One feature to a host at a time, so that they do not disturb each other.
        self.start("h1", feature("writes", 241, automatic=True))
        self.start("h2", feature("computes", 242, automatic=True))
        self.learn(writes="h1", computes="h2")
        self.move("computes", "h3")
        self.move("writes", "h2")
        self.learn(writes="h2", computes="h3")
        self.move("computes", "h1")
        self.move("writes", "h3")
        self.learn(writes="h3", computes="h1")
        # On h3 it would make that the busier one, on h1 it would have to leave with the other.
        self.move("writes", "h1")
        CLUSTER.drover("h1", "disable", "g1", "writes")
        model = wait_until(self.trained, 90, "h1 has a model of rows of all hosts")
        print(f"model: {model}")

        for name, to, other, quota in (("computes", "h2", "h3", 35), ("writes", "h3", "h2", 15)):
            # The right host is the busier one: capacity alone would choose the other.
            self.start(to, load_feature(f"busy-{to}", "10.88.0.245", quota, "cpu"))
            parts = wait_until(lambda n=name, t=to, o=other: self.ranked(n, t, o), 180,
                               f"the model ranks {to} before {other} for {name}, capacity does not",
                               pause=3)
            print(f"{name}: {parts}")
            self.explained(name)
            # It has to leave; Drover chooses where to.
            CLUSTER.drover("h1", "drain", "--wait", check=False, timeout=240)
            try:
                self.assertEqual([p[0] for p in CLUSTER.hosts_of(name)], [to], parts)
            finally:
                CLUSTER.drover("h1", "drain", "--undo")
            self.remove(f"busy-{to}")
            if name == "computes":
                self.remove(name)
                CLUSTER.drover("h1", "enable", "g1", "writes")
                self.learn(writes="h1")

    @staticmethod
    def ranked(name, to, other):
        """The candidates' parts, once `to` is chosen for what the model says although capacity
        alone speaks for `other`."""
        plan = CLUSTER.drover_json("h1", "plan", "g1", name)
        parts = {c["host"]: dict(c["parts"], score=c["score"], refusals=c["refusals"])
                 for c in plan["candidates"]}
        right, wrong = parts[to], parts[other]
        good = (right["score"] is not None and wrong["score"] is not None
                and wrong["headroom"] > right["headroom"]
                and right.get("model", 0) > wrong.get("model", 0)
                and right["score"] > wrong["score"] + 0.02)
        if not good:
            print(f"not yet: {parts}", flush=True)
        return good and parts

    def trained(self):
        plan = CLUSTER.drover_json("h1", "hosts")
        return len(plan) == 3 and self.model()

    @staticmethod
    def model():
        log = CLUSTER.exec("h1", "grep", "-a", "affinity model trained", "/var/log/drover/droverd.log",
                           check=False)[1].splitlines()
        return log[-1] if log else None
