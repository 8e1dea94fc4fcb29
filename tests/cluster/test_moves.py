"""Moves by hand, there and back, cancelled, and what users see of them."""

from cluster_api import wait_until
from shared import CLUSTER, FeatureCase


class Moves(FeatureCase):
    def test_there_and_back(self):
        counter = self.client()
        before = CLUSTER.drover_json("h1", "history", "g1", self.FEATURE)
        CLUSTER.drover("h1", "migrate", "g1", self.FEATURE, "--to", "h2/g2", timeout=180)
        self.only_at("h2")
        job = CLUSTER.drover_json("h1", "jobs")[0]
        self.assertEqual((job["result"], job["to_host"]), ("done", "h2"))
        self.assertGreaterEqual(job["rounds"], 2)
        self.assertGreater(job["bytes_sent"], 20_000 * 1_000)
        self.assertIsNotNone(job["freeze_ms"])
        # The first round carries the data, the last only what changed since.
        self.assertLess(job["history"][-1]["bytes"], job["history"][0]["bytes"] / 2)
        wait_until(lambda: len(CLUSTER.drover_json("h2", "history", "g2", self.FEATURE))
                   > len(before), 30, "history goes on at the new place")
        points = CLUSTER.drover_json("h2", "history", "g2", self.FEATURE)
        times = [p["at_ms"] for p in points]
        self.assertEqual(times, sorted(set(times)))
        self.assertLessEqual({p["at_ms"] for p in before}, set(times))
        peak = max(p["cpu"] for p in points if p["cpu"] is not None)
        self.assertLess(peak, 150, "no spike by the move")
        CLUSTER.drover("h2", "migrate", "g2", self.FEATURE, "--to", "h1", timeout=180)
        self.only_at("h1")
        self.good(counter)

    def test_cancel_in_pre_copy(self):
        self.fill(60_000)
        counter, events = self.client(), self.watch("h1")
        CLUSTER.drover("h1", "migrate", "g1", self.FEATURE, "--to", "h3", "--no-wait")
        events.wait(lambda e: e["event"] == "move" and e["job"]["state"] == "pre-copy", 60, "pre-copy")
        CLUSTER.drover("h1", "jobabort", "g1", self.FEATURE)
        job = events.wait(lambda e: e["event"] == "move" and e["job"]["result"], 90, "its end")["job"]
        self.assertEqual(job["result"], "canceled", job)
        self.only_at("h1")
        self.good(counter)

    def test_refusals_name_the_reason(self):
        for to, word in (("h9", "h9"), ("h2/g9", "g9")):
            code, _, err = CLUSTER.drover("h1", "migrate", "g1", self.FEATURE, "--to", to, check=False)
            self.assertIn(code, (3, 4), err)
            self.assertIn(word, err)
        self.only_at("h1")
