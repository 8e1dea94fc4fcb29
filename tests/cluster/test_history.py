"""Reading the history: one series across a move, plots, steps, top."""

from cluster_api import wait_until
from shared import CLUSTER, FeatureCase


class History(FeatureCase):
    def test_one_series_across_a_move(self):
        load = self.client("load", "--connections", "1")
        points = lambda host, guest: CLUSTER.drover_json(host, "history", guest, self.FEATURE)
        before = wait_until(lambda: (p := points("h1", "g1")) and len(p) >= 4 and p, 60, "points")
        CLUSTER.drover("h1", "migrate", "g1", self.FEATURE, "--to", "h2/g2", timeout=180)
        # Minutes too: asked for by their step, made from the points that came along.
        after = wait_until(lambda: (p := points("h2", "g2")) and len(p) >= len(before) + 4 and p,
                           60, "points from both hosts")
        self.good(load)
        times = [p["at_ms"] for p in after]
        self.assertEqual(times, sorted(set(times)))
        self.assertLessEqual({p["at_ms"] for p in before}, set(times))
        minutes = CLUSTER.drover_json("h2", "history", "g2", self.FEATURE, "--step", "1min",
                                      "--resource", "cpu")
        covered = sum(m["interval_s"] for m in minutes)
        self.assertAlmostEqual(covered, sum(p["interval_s"] for p in after), delta=15)
        for m in minutes:
            self.assertLessEqual(m["cpu_min"], m["cpu"] + 0.001)
            self.assertLessEqual(m["cpu"], m["cpu_max"] + 0.001)
        plot = CLUSTER.drover("h2", "history", "g2", self.FEATURE, "--plot", "--resource", "cpu")
        lines = plot.splitlines()
        self.assertEqual((lines[0], len(lines)), ("CPU", 10), plot)
        self.assertTrue(any("\u2800" < c <= "\u28ff" for c in plot), plot)
        table = CLUSTER.drover("h2", "history", "g2", self.FEATURE, "--limit", "2", "--step", "1s")
        self.assertIn("Time (UTC)", table)

    def test_top_once_without_a_terminal(self):
        wait_until(lambda: self.FEATURE in CLUSTER.drover("h1", "top", "--once"), 30, "it is in top")
        wait_until(lambda: any(c in "▁▂▃▄▅▆▇█" for c in CLUSTER.drover("h1", "top", "--once")), 60,
                   "a sparkline")
        rows = CLUSTER.drover_json("h1", "top", "--once", "--sort", "memory")
        self.assertIn(self.FEATURE, [r["spec"]["name"] for r in rows])
