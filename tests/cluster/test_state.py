"""State directories: what a feature writes moves with it, and nothing is left behind."""

from cluster_api import wait_until
from shared import CLUSTER, FeatureCase

DIR = "/srv/cache"


class State(FeatureCase):
    FEATURE, ADDRESS = "store", "10.88.0.231"
    KEYS = 5_000
    SPEC = {"automatic": False, "workload": {
        "state": [DIR],
        "exec": ["/usr/bin/redis-server", "--port", "6379", "--bind", "*", "--protected-mode", "no",
                 "--save", "", "--dir", DIR, "--appendonly", "yes", "--appendfsync", "no"]}}

    def setUp(self):
        self.sh("g1", f"""rm -rf {DIR}; mkdir -p {DIR}/deep/er; cd {DIR}; chmod 751 deep
        dd if=/dev/urandom of=big bs=64k count=40 2>/dev/null; truncate -s 1G big
        echo one > deep/er/a; ln deep/er/a again; ln -s /etc/passwd link; mkfifo pipe
        chown 33:44 deep/er/a; chmod 2640 deep/er/a; touch -d @1000000000 deep/er""")
        super().setUp()

    def sh(self, guest, script):
        return CLUSTER.guest(guest, "sh", "-c", script)[1]

    def test_state_moves_and_is_removed_behind(self):
        counter = self.client()
        # Files that come, change and go during the move.
        self.sh("g1", f"(for i in $(seq 200); do date > {DIR}/tick.$((i % 7)); "
                      f"rm -f {DIR}/tick.$(((i + 3) % 7)); sleep 0.05; done) >/dev/null 2>&1 &")
        CLUSTER.drover("h1", "migrate", "g1", self.FEATURE, "--to", "h2/g2", timeout=180)
        self.only_at("h2")
        self.assertEqual(self.sh("g1", f"ls -d {DIR} 2>&1 | grep -c 'No such'; true").strip(), "1")
        self.assertIn("pipe", self.sh("g2", f"ls {DIR}"))
        blocks = int(self.sh("g2", f"stat -c %b {DIR}/big"))
        self.assertLess(blocks, 20_000, "the hole stays a hole")
        same = self.sh("g2", f"stat -c %i {DIR}/again {DIR}/deep/er/a").split()
        self.assertEqual(same[0], same[1], "hard links stay links")
        self.assertEqual(self.sh("g2", f"stat -c '%a %u %g' {DIR}/deep/er/a").strip(), "2640 33 44")
        self.assertEqual(self.sh("g2", f"stat -c %Y {DIR}/deep/er").strip(), "1000000000")
        # And back; what stands still is the same to the byte.
        still = f"cd {DIR} && find deep link pipe again big -printf '%y %m %U %G %T@ %n %l %p\\n' | sort; sha256sum big deep/er/a"
        before = self.sh("g2", still)
        CLUSTER.drover("h2", "migrate", "g2", self.FEATURE, "--to", "h1/g1", timeout=180)
        self.only_at("h1")
        self.assertEqual(self.sh("g1", still), before)
        report = self.good(counter)
        # The log of appended commands has every one that was answered.
        CLUSTER.drover("h1", "disable", "g1", self.FEATURE)
        CLUSTER.drover("h1", "enable", "g1", self.FEATURE)
        again = wait_until(lambda: self.count(), 60, "redis answers from its log")
        self.assertGreaterEqual(again, report["replies"])

    def count(self):
        code, out, _ = CLUSTER.guest("g1", "nsenter", f"--net=/run/netns/drover-{self.FEATURE}",
                                     "redis-cli", "-h", self.ADDRESS, "get", "drover:counter", check=False)
        return int(out) if code == 0 and out.strip().isdigit() else None

    def test_a_directory_that_is_taken_is_refused_and_untouched(self):
        self.sh("g2", f"mkdir -p {DIR}; echo mine > {DIR}/file")
        try:
            code, _, err = CLUSTER.drover("h1", "migrate", "g1", self.FEATURE, "--to", "h2/g2",
                                          check=False, timeout=180)
            self.assertNotEqual(code, 0)
            self.assertIn("not empty", err)
            self.assertEqual(self.sh("g2", f"cat {DIR}/file; ls {DIR}").split(), ["mine", "file"])
            self.only_at("h1")
        finally:
            self.sh("g2", f"rm -rf {DIR}")

    def test_a_cancelled_move_leaves_nothing(self):
        self.sh("g1", f"dd if=/dev/urandom of={DIR}/bulk bs=1M count=80 2>/dev/null")
        events = self.watch("h1")
        CLUSTER.drover("h1", "migrate", "g1", self.FEATURE, "--to", "h3", "--no-wait")
        events.wait(lambda e: e["event"] == "move" and e["job"]["state"] == "pre-copy", 60, "pre-copy")
        CLUSTER.drover("h1", "jobabort", "g1", self.FEATURE)
        events.wait(lambda e: e["event"] == "move" and e["job"]["result"], 90, "its end")
        self.only_at("h1")
        self.assertEqual(self.sh("g3", f"ls -d {DIR} 2>/dev/null; true").strip(), "")
        self.assertIn("bulk", self.sh("g1", f"ls {DIR}"))
