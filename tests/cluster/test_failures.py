"""Faults in the middle of a move: the source goes on, or the feature runs exactly once."""

from cluster_api import wait_until
from shared import CLUSTER, FeatureCase


class Failures(FeatureCase):
    def begin(self, state="pre-copy"):
        """A move to h2 that has reached a state, under a client's eyes."""
        self.fill(60_000)
        self.counter, self.log = self.client(), self.watch("h1")
        CLUSTER.drover("h1", "migrate", "g1", self.FEATURE, "--to", "h2", "--no-wait")
        self.log.wait(lambda e: e["event"] == "move" and e["job"]["state"] == state, 60, state)

    def failed(self):
        job = self.log.wait(lambda e: e["event"] == "move" and e["job"]["result"], 120, "its end")["job"]
        self.assertIn(job["result"], ("failed", "timeout"), job)
        self.assertTrue(job["reason"], job)
        return job

    def tearDown(self):
        CLUSTER.call("heal", "h2")
        for host in ("h1", "h2"):
            CLUSTER.call("droverd", "start", host, check=False)
        wait_until(lambda: all(CLUSTER.drover(h, "list", check=False)[0] == 0 for h in ("h1", "h2")),
                   30, "both daemons answer")
        super().tearDown()

    def test_target_daemon_killed(self):
        self.begin()
        CLUSTER.call("droverd", "kill", "h2")
        self.failed()
        CLUSTER.call("droverd", "start", "h2")
        self.only_at("h1")
        self.good(self.counter)

    def test_link_cut(self):
        self.begin()
        CLUSTER.call("cut", "h2")
        job = self.failed()
        self.assertIn("h2", job["reason"])
        CLUSTER.call("heal", "h2")
        self.only_at("h1")
        self.good(self.counter)

    def test_source_daemon_killed_in_pre_copy(self):
        self.begin()
        CLUSTER.call("droverd", "kill", "h1")
        CLUSTER.call("droverd", "start", "h1")
        self.once()
        self.good(self.counter)

    def test_source_daemon_killed_in_the_freeze(self):
        self.begin("freezing")
        CLUSTER.call("droverd", "kill", "h1")
        CLUSTER.call("droverd", "start", "h1")
        self.once()
        self.good(self.counter)

    def test_source_daemon_killed_around_the_commit(self):
        self.begin("restoring")
        CLUSTER.call("droverd", "kill", "h1")
        CLUSTER.call("droverd", "start", "h1")
        self.once()
        self.good(self.counter)

    def once(self):
        """The feature runs exactly once, wherever the commit record says."""
        def settled():
            place = CLUSTER.hosts_of(self.FEATURE)
            return place if len(place) == 1 and place[0][2] == "running" else None
        place = wait_until(settled, 90, f"one running copy: {CLUSTER.hosts_of(self.FEATURE)}")
        self.only_at(place[0][0])
