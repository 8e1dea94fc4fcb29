"""Threshold, plan, choice, and the outcome that nothing can be done."""

from cluster_api import load_feature, redis
from shared import CLUSTER, FeatureCase


class Decision(FeatureCase):
    SPEC = {"automatic": True, "workload": {"cpu_quota_percent": 50}}
    KEYS = 1_000

    def test_plan_names_every_candidate(self):
        plan = CLUSTER.drover_json("h1", "plan", "g1", self.FEATURE)
        self.assertEqual(plan["outcome"], "no_breach", plan)
        hosts = {c["host"]: c for c in plan["candidates"]}
        self.assertLessEqual({"h2", "h3"}, set(hosts))
        for c in plan["candidates"]:
            self.assertTrue(c["refusals"] or c["score"] is not None, c)
            self.assertTrue(c["refusals"] or c["parts"], c)
        text = CLUSTER.drover("h1", "plan", "g1", self.FEATURE)
        for word in ("h2", "h3", plan["model"]["kind"]):
            self.assertIn(word, text)

    def test_breach_moves_it(self):
        events = self.watch("h1")
        CLUSTER.drover("h1", "threshold", "g1", self.FEATURE, "cpu > 35 % for 4 s")
        # Another load on the host makes moving worth while.
        CLUSTER.define("h1", "g1", load_feature("neighbour", "10.88.0.221", 30, "cpu"))
        self.addCleanup(lambda: (CLUSTER.drover("h1", "disable", "g1", "neighbour"),
                                 CLUSTER.drover("h1", "undefine", "g1", "neighbour")))
        CLUSTER.drover("h1", "enable", "g1", "neighbour")
        counter, load = self.client("count"), self.client("load", "--connections", "2")
        events.wait(lambda e: e["event"] == "breach" and e["active"], 60, "a breach")
        job = events.wait(lambda e: e["event"] == "move" and e["job"]["result"], 120, "a move")["job"]
        self.assertEqual(job["result"], "done", job)
        self.assertIn("cpu", job["cause"])
        self.only_at(job["to_host"])
        self.good(load)
        self.good(counter)

    def test_no_eligible_host_is_told(self):
        # The group of this feature is allowed nowhere.
        CLUSTER.drover("h1", "disable", "g1", self.FEATURE)
        CLUSTER.drover("h1", "undefine", "g1", self.FEATURE)
        CLUSTER.define("h1", "g1", redis(self.FEATURE, self.ADDRESS, group="private", **self.SPEC))
        CLUSTER.drover("h1", "enable", "g1", self.FEATURE)
        self.fill(self.KEYS)
        events = self.watch("h1")
        CLUSTER.drover("h1", "threshold", "g1", self.FEATURE, "cpu > 30 % for 2 s")
        load = self.client("load", "--connections", "2")
        plan = events.wait(lambda e: e["event"] == "decision", 60, "a decision")["plan"]
        self.assertEqual(plan["outcome"], "no_eligible_host")
        others = [c for c in plan["candidates"] if c["host"] != "h1"]
        self.assertEqual(len(others), 2, plan)
        for c in others:
            self.assertTrue(any("private" in r for r in c["refusals"]), c)
        log = CLUSTER.exec("h1", "cat", "/var/log/drover/droverd.log")[1]
        self.assertIn("no_eligible_host", log)
        code, _, err = CLUSTER.drover("h1", "migrate", "g1", self.FEATURE, "--to", "h2", check=False)
        self.assertEqual(code, 4, err)
        self.assertIn("private", err)
        load.process.kill()
        self.only_at("h1")
