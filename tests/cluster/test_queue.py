"""Turns of moves, budgets and the throttle."""

from cluster_api import redis, wait_until
from shared import CLUSTER, Daemon, FeatureCase


class Queue(FeatureCase):
    def test_second_waits_and_is_cancelled(self):
        # One move at a time is allowed here.
        before = {j["id"] for j in CLUSTER.drover_json("h1", "jobs")}
        self.fill(60_000)
        counter = self.client()
        CLUSTER.define("h1", "g1", redis("second", "10.88.0.221", automatic=False))
        self.addCleanup(lambda: (CLUSTER.drover("h1", "disable", "g1", "second"),
                                 CLUSTER.drover("h1", "undefine", "g1", "second")))
        CLUSTER.drover("h1", "enable", "g1", "second")
        CLUSTER.drover("h1", "migrate", "g1", self.FEATURE, "--to", "h2", "--no-wait")
        CLUSTER.drover("h1", "migrate", "g1", "second", "--to", "h3", "--no-wait")
        jobs = {j["feature"]: j for j in CLUSTER.drover_json("h1", "jobs") if not j["result"]}
        self.assertEqual(jobs["second"]["state"], "queued", jobs)
        CLUSTER.drover("h1", "jobabort", "g1", "second")
        def ended(feature):
            return next((j for j in CLUSTER.drover_json("h1", "jobs")
                         if j["feature"] == feature and j["result"] and j["id"] not in before), None)
        second = wait_until(lambda: ended("second"), 20, "the queued move ends")
        self.assertEqual((second["result"], second["rounds"]), ("canceled", 0), second)
        first = wait_until(lambda: ended(self.FEATURE), 120, "the first move ends")
        self.assertEqual(first["result"], "done", first)
        parts = first["detail"]["freeze"]
        self.assertLessEqual(abs(sum(parts.values()) - first["freeze_ms"]), 10, first)
        self.assertIn("resume", CLUSTER.drover("h1", "jobinfo", first["id"]))
        self.only_at("h2")
        self.assertEqual(CLUSTER.hosts_of("second"), [("h1", "g1", "running")])
        self.good(counter)


class Budget(FeatureCase):
    # No freeze is as short as that.
    SPEC = {"automatic": False, "downtime_ms": 1, "over_budget": "give_up"}

    def test_give_up_keeps_to_the_budget_and_undoes_the_throttle(self):
        load, source = self.client("load", "--connections", "2"), Daemon("h1")
        CLUSTER.drover("h1", "migrate", "g1", self.FEATURE, "--to", "h2", "--no-wait")
        wait_until(lambda: CLUSTER.drover_json("h1", "jobs")[0]["result"], 180, "its end")
        job = CLUSTER.drover_json("h1", "jobs")[0]
        self.assertEqual(job["result"], "failed", job)
        self.assertIn("the budget is 1 ms", job["reason"])
        said = source.said()
        self.assertIn("slowing the feature down", said)
        self.assertNotIn('to="freezing"', said)
        self.only_at("h1")
        limit = f"/sys/fs/cgroup/drover.slice/drover-{self.FEATURE}.service/cpu.max"
        self.assertEqual(CLUSTER.guest("g1", "cat", limit)[1].split(), ["max", "100000"])
        self.good(load)
