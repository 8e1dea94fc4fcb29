"""Faults in the middle of a move: the source goes on, or the feature runs exactly once."""

import signal
import subprocess
import time

from cluster_api import Failed, wait_until
from shared import CLUSTER, GUESTS, RUNNING, Daemon, FeatureCase, traces


class Failures(FeatureCase):
    # A daemon that a test has stopped.
    stopped = None

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
        if self.stopped:
            self.stopped.signal(signal.SIGCONT)
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

    def test_target_helper_killed_while_it_restores(self):
        """The source hears of it from the helper that is started in its place, and goes on."""
        self.fill(60_000)
        counter, source, target = self.client(), Daemon("h1"), Daemon("h2")
        self.log = self.watch("h1")
        CLUSTER.drover("h1", "migrate", "g1", self.FEATURE, "--to", "h2", "--no-wait")
        source.wait('to="freezing"')
        CLUSTER.guest("g2", "systemctl", "kill", "-s", "KILL", "drover-guest.service")
        job = self.log.wait(lambda e: e["event"] == "move" and e["job"]["result"], 120, "its end")["job"]
        if job["result"] == "done":
            # The kill came after the restore: the helper that is started then resumes it.
            self.only_at("h2")
        else:
            target.wait("helper lost.*started anew", 10)
            self.only_at("h1")
        self.good(counter)

    def test_source_daemon_killed_in_pre_copy(self):
        self.killed_at('to="pre-copy"', committed=False)

    def test_source_daemon_killed_in_the_freeze(self):
        self.killed_at('to="freezing"', committed=False)

    def test_source_daemon_killed_around_the_commit(self):
        # The log tells on which side of the commit the kill fell; each side is tried until hit.
        self.killed_at('to="restoring"', committed=False)
        self.killed_at('to="switching"', committed=True)

    def killed_at(self, point, committed):
        """Kills the source's daemon when it logs a point, until it fell before (or after) the
        commit; the feature then runs exactly once, where the commit record says."""
        for _ in range(4):
            source = CLUSTER.hosts_of(self.FEATURE)[0][0]
            target = "h2" if source == "h1" else "h1"
            daemon, counter = Daemon(source), self.client()
            CLUSTER.drover(source, "migrate", GUESTS[source], self.FEATURE, "--to", target, "--no-wait")
            daemon.wait(point)
            daemon.signal(signal.SIGKILL)
            said = daemon.said()
            after = 'to="switching"' in said
            wait_until(lambda s=source: CLUSTER.exec(s, "pidof", "droverd", check=False)[0] != 0, 10,
                       "the daemon is gone")
            CLUSTER.call("droverd", "start", source)
            self.once()
            self.good(counter)
            place = CLUSTER.hosts_of(self.FEATURE)[0][0]
            self.assertEqual(place, target if after else source, said[-2000:])
            if after == committed and "move done" not in said:
                return
        self.fail(f"never killed {'after' if committed else 'before'} the commit")

    def test_stopped_daemon_cancels(self):
        self.begin()
        CLUSTER.call("droverd", "stop", "h1")
        CLUSTER.call("droverd", "start", "h1")
        job = CLUSTER.drover_json("h1", "jobs")[0]
        self.assertEqual(job["result"], "canceled", job)
        self.assertIn("stopped", job["reason"])
        self.only_at("h1")
        self.good(self.counter)

    def test_hung_helper_holds_up_no_other_domain(self):
        xml = "/tmp/idle.xml"
        CLUSTER.exec("h1", "tee", xml, stdin="<domain type='qemu'><name>idle</name>"
                     "<memory unit='MiB'>16</memory><os><type>hvm</type></os></domain>")
        CLUSTER.exec("h1", "virsh", "define", xml)
        self.addCleanup(lambda: CLUSTER.exec("h1", "virsh", "undefine", "idle"))
        self.addCleanup(lambda: CLUSTER.drover("h1", "undefine", "idle", "other", check=False))
        wait_until(lambda: any(i["domain"] == "idle" for i in
                               CLUSTER.drover_json("h1", "hosts")[0]["instances"]), 30, "idle is listed")
        CLUSTER.guest("g1", "systemctl", "kill", "-s", "STOP", "drover-guest.service")
        try:
            hung = CLUSTER.popen("h1", "drover", "disable", "g1", self.FEATURE,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(1)
            CLUSTER.define("h1", "idle", {"name": "other", "workload": {
                "kind": "unit", "unit": "other.service"}})
            self.assertIsNone(hung.poll(), "the call to the hung guest has not ended before")
        finally:
            CLUSTER.guest("g1", "systemctl", "kill", "-s", "CONT", "drover-guest.service")
        hung.wait(timeout=60)

    def held_at_the_target(self):
        """A move whose target has reported READY, while the source's daemon, which is stopped, has not
        committed: until it was stopped neither before its data was through nor too late."""
        self.fill(60_000)
        counter, source, target = self.client(), Daemon("h1"), Daemon("h2")
        for pause in (0.04, 0.02, 0.07, 0.1, 0.15):
            source.mark()
            target.mark()
            CLUSTER.drover("h1", "migrate", "g1", self.FEATURE, "--to", "h2", "--no-wait")
            source.wait('to="restoring"')
            time.sleep(pause)
            source.signal(signal.SIGSTOP)
            self.stopped = source
            try:
                target.wait("restored here and held; READY", 8)
                if 'to="committing"' not in source.said():
                    return counter, source, target
            except Failed:
                pass
            source.signal(signal.SIGCONT)
            wait_until(lambda: CLUSTER.drover_json("h1", "jobs")[0]["result"], 90, "its end")
            if CLUSTER.hosts_of(self.FEATURE)[0][0] == "h2":
                CLUSTER.drover("h2", "migrate", "g2", self.FEATURE, "--to", "h1", timeout=180)
            self.only_at("h1")
        self.fail("never stopped between READY and the commit")

    def taken_back(self, source, word):
        """The move ends as one that the source took back, and the feature goes on there."""
        # As long as the target waits for a resume that hangs.
        wait_until(lambda: CLUSTER.drover_json("h1", "jobs")[0]["result"], 150, "its end")
        job = CLUSTER.drover_json("h1", "jobs")[0]
        self.assertEqual(job["result"], "failed", job)
        self.assertIn(word, job["reason"])
        self.assertIn('to="reverting"', source.said())

    @staticmethod
    def restore():
        """The guest of h2 as it was, and known to the others again."""
        CLUSTER.call("guest-restore", "g2", timeout=300)
        CLUSTER.prepare(2)

        def known():
            for host in CLUSTER.drover_json("h1", "hosts"):
                for guest in host["instances"]:
                    if guest["domain"] == "g2":
                        return guest["capabilities"] and guest["memory_available_mib"]
            return None
        wait_until(known, 90, "h1 knows what g2 can do")

    def test_target_guest_lost_before_it_runs(self):
        """After the commit only the target may resume, unless its guest is gone for good: then
        the source takes the move back."""
        self.addCleanup(self.restore)
        counter, source, target = self.held_at_the_target()
        CLUSTER.exec("h2", "virsh", "destroy", "g2")
        target.wait("was lost before it ran here", 20)
        source.signal(signal.SIGCONT)
        self.taken_back(source, "g2")
        place = [("h1", "g1", "running")]
        wait_until(lambda: CLUSTER.hosts_of(self.FEATURE) == place, 60, "it runs on h1 only")
        wait_until(lambda: traces("g1", self.FEATURE) == RUNNING, 60, "nothing of the move is left")
        self.good(counter)

    def test_a_copy_that_cannot_resume_is_given_up(self):
        """Its images are damaged and what held it is dead, in a guest that lives."""
        self.given_up("systemctl kill -s KILL drover-{0}.service; rm -f /run/drover/moves/*/rounds/*/core-*",
                      "trying again")

    def test_a_copy_that_hangs_is_given_up(self):
        self.given_up("systemctl kill -s STOP drover-{0}.service", None)

    def given_up(self, harm, told):
        """A committed move that does not resume stays as it is until an administrator forces its
        end; then the copy at the source goes on, with its connections."""
        counter, source, target = self.held_at_the_target()
        CLUSTER.guest("g2", "sh", "-c", harm.format(self.FEATURE))
        source.signal(signal.SIGCONT)
        source.wait('to="switching"')
        if told:
            target.wait(told)
        job = CLUSTER.drover_json("h1", "jobs")[0]
        self.assertEqual((job["state"], job["result"]), ("switching", None), job)
        # No cancel reaches it any more.
        CLUSTER.drover("h1", "jobabort", job["id"], check=False)
        self.assertEqual(CLUSTER.drover_json("h1", "jobs")[0]["state"], "switching")
        said = CLUSTER.drover("h1", "jobabort", "--force", job["id"])
        self.assertIn("give up", said)
        self.taken_back(source, "administrator")
        self.only_at("h1")
        if told:
            self.good(counter)
            return
        # The target waited for the resume for `moves.step_timeout_s`, longer than a client does.
        self.assertLessEqual(counter.stop()["errors"], 1)
        after = self.client()
        time.sleep(3)
        self.good(after)

    def once(self):
        """The feature runs exactly once, wherever the commit record says."""
        def settled():
            place = CLUSTER.hosts_of(self.FEATURE)
            return place if len(place) == 1 and place[0][2] == "running" else None
        place = wait_until(settled, 90, f"one running copy: {CLUSTER.hosts_of(self.FEATURE)}")
        self.only_at(place[0][0])
