"""`drover --connect HOST` over a real ssh server: h3 is where the administrator sits, h1 the host."""

import json
import subprocess

from cluster_api import wait_until
from shared import CLUSTER, FeatureCase

HERE, THERE, USER = "h3", "h1", "visitor"


class Connect(FeatureCase):
    SPEC = {"automatic": False, "workload": {"environment": {"TOKEN": "geheim"}}}

    def setUp(self):
        CLUSTER.exec(HERE, "sh", "-ec", "mkdir -p -m 700 /root/.ssh && "
                     "ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519")
        key = CLUSTER.exec(HERE, "cat", "/root/.ssh/id_ed25519.pub")[1]
        CLUSTER.exec(THERE, "sh", "-ec", f"""
            dropbearkey -t ed25519 -f /etc/dropbear.key >/dev/null
            useradd --create-home --shell /bin/sh {USER}
            for home in /root /home/{USER}; do
                mkdir -p -m 700 $home/.ssh
                cat >$home/.ssh/authorized_keys <<E\n{key}\nE
                chmod 600 $home/.ssh/authorized_keys
            done
            chown -R {USER} /home/{USER}""")
        public = CLUSTER.exec(THERE, "dropbearkey", "-y", "-f", "/etc/dropbear.key")[1]
        line = next(x for x in public.splitlines() if x.startswith("ssh-ed25519"))
        CLUSTER.exec(HERE, "tee", "/root/.ssh/known_hosts", stdin=f"{THERE} {line}\n")
        self.server = CLUSTER.popen(
            THERE, "dropbear", "-F", "-E", "-s", "-r", "/etc/dropbear.key", "-p", "10.88.0.11:22",
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        super().setUp()
        wait_until(lambda: self.there("version", check=False)[0] == 0, 30, "ssh lets us in")

    def tearDown(self):
        super().tearDown()
        self.server.terminate()
        self.server.wait()
        CLUSTER.exec(THERE, "sh", "-c", f"userdel --remove {USER}; rm -rf /etc/dropbear.key /root/.ssh")
        CLUSTER.exec(HERE, "rm", "-rf", "/root/.ssh", "/tmp/editor")

    def there(self, *args, user="root", host=THERE, check=True, editor="true"):
        """`drover -c USER@HOST ARGS` on the administrator's host: exit code, output, errors."""
        return CLUSTER.exec(HERE, "env", f"EDITOR={editor}", "drover", "-c", f"{user}@{host}", *args,
                            check=check, timeout=120)

    def editor(self, script):
        CLUSTER.exec(HERE, "tee", "/tmp/editor", stdin=f"#!/bin/sh\n{script}\n")
        CLUSTER.exec(HERE, "chmod", "755", "/tmp/editor")
        return "/tmp/editor"

    def test_looks_and_moves(self):
        rows = json.loads(self.there("--format", "json", "list")[1])
        self.assertEqual([(r["host"], r["domain"], r["spec"]["name"]) for r in rows],
                         [("h1", "g1", self.FEATURE)])
        self.assertIn("on h1", self.there("version")[1])
        client = self.client()
        code, out, err = self.there("migrate", "g1", self.FEATURE, "--to", "h2")
        # The end comes over; progress is for terminals, and standard error is none here.
        self.assertEqual((code, err), (0, ""))
        self.assertRegex(out, rf"^'{self.FEATURE}' runs on h2/g2: frozen \d+ ms")
        self.good(client)
        self.only_at("h2")
        # It is not h1's any more, and the exit code says so over there too.
        code, _, err = self.there("stats", "g1", self.FEATURE, check=False)
        self.assertEqual(code, 3, err)

    def test_edits_as_far_as_one_may(self):
        changes = self.editor("""sed -i 's/^thresholds = .*/thresholds = ["cpu > 77 % for 5 s"]/' "$1"
                              grep -q thresholds "$1" || sed -i '1i thresholds = ["cpu > 77 % for 5 s"]' "$1" """)
        # Who may only look sees no secret, and is told what is missing.
        out = self.there("dumpfile", "g1", self.FEATURE, user=USER)[1]
        self.assertIn(self.ADDRESS, out)
        self.assertNotIn("geheim", out)
        code, _, err = self.there("edit", "g1", self.FEATURE, user=USER, check=False, editor=changes)
        self.assertEqual(code, 4, err)
        self.assertIn("hidden from you", err)
        code, _, err = self.there("threshold", "g1", self.FEATURE, "cpu > 77 %", user=USER, check=False)
        self.assertEqual(code, 4, err)
        self.assertEqual(json.loads(self.there("--format", "json", "threshold", "g1", self.FEATURE)[1]), [])
        self.assertIn("geheim", self.there("dumpfile", "g1", self.FEATURE)[1])
        out = self.there("edit", "g1", self.FEATURE, editor=changes)[1]
        self.assertIn("is as edited", out)
        now = json.loads(CLUSTER.drover(THERE, "--format", "json", "threshold", "g1", self.FEATURE))
        self.assertEqual([(t["resource"], t["limit"]) for t in now], [("cpu", 77.0)])

    def test_a_host_that_is_not_there(self):
        code, out, err = self.there("list", host="10.88.0.99", check=False)
        self.assertEqual((code, out), (1, ""))
        self.assertIn("error: cannot log in on host 'root@10.88.0.99' by ssh", err)
        self.assertIn('see what "ssh root@10.88.0.99 true" says', err)
        # A host whose key nobody knows is refused by ssh itself, not asked past.
        CLUSTER.exec(HERE, "tee", "/root/.ssh/known_hosts", stdin="")
        code, _, err = self.there("list", check=False)
        self.assertEqual(code, 1)
        self.assertIn("cannot log in on host", err)
