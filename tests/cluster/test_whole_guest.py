"""A guest that libvirt migrates as a whole: its features go along, also while one of them moves."""

import os
import pathlib
import subprocess
import time

from cluster_api import wait_until
from shared import CLUSTER, RUNNING, Daemon, FeatureCase, traces

GUEST = "g1"


class WholeGuest(FeatureCase):
    """g1 goes from h1 to h3 and back; its disk is on storage that both share."""

    KEYS = 5_000

    def tearDown(self):
        for c in self.clients:
            c.process.kill()
            c.process.wait()
        self.clients = []
        # Where a test ended halfway.
        CLUSTER.exec(self.where(), "virsh", "resume", GUEST, check=False)
        if self.where() != "h1":
            self.migrate(self.where(), "h1")
        wait_until(lambda: self.helper("h1"), 60, "g1's helper is back on h1")
        # Whatever came of the moves, it is registered somewhere.
        wait_until(lambda: len(CLUSTER.hosts_of(self.FEATURE)) == 1, 60, "the feature is registered")
        super().tearDown()

    def where(self):
        for host in ("h1", "h3"):
            code, out, _ = CLUSTER.exec(host, "virsh", "domstate", GUEST, check=False)
            if code == 0 and out.strip() in ("running", "paused"):
                return host
        raise AssertionError("g1 runs nowhere")

    def helper(self, host):
        """The host has g1 and its helper, and others know it."""
        return all(any(i["domain"] == GUEST and i["helper"].get("state") == "connected"
                       for s in CLUSTER.drover_json(asked, "hosts") if s["name"] == host
                       for i in s["instances"]) for asked in (host, "h2"))

    def move(self, host, guest, to):
        """By hand; again, until the other host has measured the guest that just came to it."""
        wait_until(lambda: CLUSTER.drover(host, "migrate", guest, self.FEATURE, "--to", to,
                                          check=False, timeout=180)[0] == 0, 180, f"moved to {to}")

    def share_disk(self, host, to):
        """One file below the directories of images of both hosts, which are mounts in them."""
        one, other = (pathlib.Path("/var/lib/drover-cluster", CLUSTER.name, h, "images", f"{GUEST}.qcow2")
                      for h in (host, to))
        if other.exists() and other.samefile(one):
            return
        other.unlink(missing_ok=True)
        os.link(one, other)

    def migration(self, host, to, *flags):
        self.share_disk(host, to)
        return CLUSTER.popen(host, "virsh", "migrate", "--live", "--unsafe", "--persistent", *flags,
                             GUEST, f"qemu+tls://{to}/system", stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT)

    def done(self, process):
        out, _ = process.communicate(timeout=240)
        self.assertEqual(process.returncode, 0, out)

    def migrate(self, host, to, *flags):
        self.done(self.migration(host, to, *(flags or ["--undefinesource"])))

    def listed(self, feature):
        return CLUSTER.hosts_of(feature)

    def one_place(self, *hosts):
        """The feature runs at one of these places and is nowhere else; which."""
        places = {h: (h, GUEST if h in ("h1", "h3") else "g2", "running") for h in hosts}
        wait_until(lambda: [*self.listed(self.FEATURE)] in [[p] for p in places.values()], 90,
                   f"{self.FEATURE} runs at one of {places}: {self.listed(self.FEATURE)}")
        (host, guest, _), = self.listed(self.FEATURE)
        for g in (GUEST, "g2"):
            want = RUNNING if g == guest else set()
            wait_until(lambda g=g, w=want: traces(g, self.FEATURE) == w, 90,
                       f"{g} has {want or 'nothing'}: {traces(g, self.FEATURE)}")
        # What runs is what is registered, and it stays so.
        time.sleep(5)
        self.assertEqual(self.listed(self.FEATURE), [places[host]])
        return host

    def pid(self, guest=GUEST):
        return CLUSTER.guest(guest, "pgrep", "redis-server")[1].split()

    def test_features_follow(self):
        CLUSTER.define("h1", GUEST, {"name": "journal", "workload": {
            "kind": "unit", "unit": "systemd-journald.service"}})
        CLUSTER.drover("h1", "enable", GUEST, "journal")
        CLUSTER.drover("h1", "threshold", GUEST, self.FEATURE, "memory > 5000 MiB for 10 s")
        count = self.client("count")

        def history(host, feature=self.FEATURE, since="1h"):
            return CLUSTER.drover_json(host, "history", GUEST, feature, "--since", since)

        def row(host):
            return next(r for r in CLUSTER.drover_json(host, "list")
                        if r["spec"]["name"] == self.FEATURE)
        before = wait_until(lambda: (p := history("h1")) and len(p) >= 4 and p, 60, "points")
        spec, pid = row("h1")["spec"], self.pid()
        for host, to, flags in (("h1", "h3", []), ("h3", "h1", ["--verbose"])):
            self.migrate(host, to, *flags)
            for feature in (self.FEATURE, "journal"):
                place = [(to, GUEST, "running")]
                wait_until(lambda f=feature, p=place: self.listed(f) == p, 60,
                           f"{feature} is at {to} only: {self.listed(feature)}")
                # A long history is told in minutes, what was just metered is not.
                last = history(to, feature)[-1]["at_ms"]
                wait_until(lambda t=to, f=feature, at=last: len([
                    p for p in history(t, f, "20s") if p["at_ms"] > at]) > 1, 60,
                    f"{feature} is metered at {to}")
            self.assertEqual(row(to)["spec"], spec, "definition and thresholds as they were")
            wait_until(lambda t=to: {p["at_ms"] for p in before} <= {
                p["at_ms"] for p in history(t)}, 60, "the history of before is there")
            times = [p["at_ms"] for p in history(to)]
            self.assertEqual(times, sorted(set(times)))
            self.assertEqual(self.pid(), pid, "it is the same process, once")
            xml = CLUSTER.exec(to, "virsh", "dumpxml", GUEST)[1]
            self.assertIn(f'name="{self.FEATURE}"', xml)
            before = history(to)
        # Defined on h3 still, but without features.
        wait_until(lambda: "drover:features" not in CLUSTER.exec(
            "h3", "virsh", "dumpxml", GUEST)[1], 30, "let go of in the definition that stayed")
        CLUSTER.drover("h1", "disable", GUEST, "journal")
        CLUSTER.drover("h1", "undefine", GUEST, "journal")
        self.good(count)
        CLUSTER.exec("h3", "virsh", "undefine", GUEST)

    def ended(self, host):
        return all(j["result"] for j in CLUSTER.drover_json(host, "jobs"))

    def test_a_feature_leaves_meanwhile(self):
        count = self.client("count")
        vm = self.migration("h1", "h3", "--undefinesource")
        code, out, err = CLUSTER.drover("h1", "migrate", GUEST, self.FEATURE, "--to", "h2/g2",
                                        check=False, timeout=240)
        self.done(vm)
        wait_until(lambda: self.ended("h1"), 90, "the move ended")
        self.assertEqual(self.one_place("h2", "h3") == "h2", code == 0, out + err)
        self.good(count)

    def test_a_feature_arrives_meanwhile(self):
        self.move("h1", GUEST, "h2/g2")
        count = self.client("count")
        vm = self.migration("h1", "h3", "--undefinesource")
        code, out, err = CLUSTER.drover("h2", "migrate", "g2", self.FEATURE, "--to", "h1/g1",
                                        check=False, timeout=240)
        self.done(vm)
        wait_until(lambda: self.ended("h2"), 90, "the move ended")
        self.assertEqual(self.one_place("h2", "h3") == "h3", code == 0, out + err)
        self.good(count)

    def cut_out(self, said, daemon, move):
        """Stops the guest at once when a daemon says something, and takes it to h3."""
        log = Daemon(daemon)
        job = CLUSTER.popen(*move, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        log.wait(said)
        CLUSTER.exec("h1", "virsh", "suspend", GUEST, timeout=30)
        self.migrate("h1", "h3")
        CLUSTER.exec("h3", "virsh", "resume", GUEST, timeout=30)
        job.wait(timeout=240)

    def back(self):
        """g1 is on h1 again, and its helper."""
        self.migrate("h3", "h1")
        wait_until(lambda: self.helper("h1"), 60, "g1's helper is back on h1")

    def test_the_guest_goes_with_a_frozen_copy(self):
        for said in ("to=.?freezing", "to=.?restoring", "to=.?switching"):
            with self.subTest(said):
                count = self.client("count")
                self.cut_out(said, "h1", ("h1", "drover", "migrate", GUEST, self.FEATURE,
                                          "--to", "h2/g2"))
                wait_until(lambda: self.ended("h1"), 90, "the move ended")
                at = self.one_place("h2", "h3")
                self.good(count)
                self.back()
                if at == "h2":
                    self.move("h2", "g2", "h1/g1")
                self.one_place("h1")

    def test_the_guest_goes_with_a_copy_that_arrives(self):
        self.move("h1", GUEST, "h2/g2")
        for said in ("to=.?restoring", "to=.?committing", "to=.?switching"):
            with self.subTest(said):
                count = self.client("count")
                self.cut_out(said, "h2", ("h2", "drover", "migrate", "g2", self.FEATURE,
                                          "--to", "h1/g1"))
                wait_until(lambda: self.ended("h2"), 120, "the move ended")
                at = self.one_place("h2", "h3")
                self.good(count)
                self.back()
                if at == "h3":
                    self.one_place("h1")
                    self.move("h1", GUEST, "h2/g2")
                self.one_place("h2")
