"""Configuration and feature files while droverd runs."""

import unittest

from cluster_api import wait_until
from shared import CLUSTER

CONFIG, FILES = "/etc/drover/drover.toml", "/etc/drover/features.d"
FEATURE = """domain = "g3"
enabled = true
name = "filed"
thresholds = ["cpu > 90 % for 30 s"]
[workload]
kind = "managed"
exec = ["/usr/local/bin/drover-load", "cpu"]
address = "10.88.0.226/24"
cpu_quota_percent = 10
"""


def write(path, text):
    CLUSTER.exec("h3", "tee", path, stdin=text)


class Configuration(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.before = CLUSTER.exec("h3", "cat", CONFIG)[1]
        CLUSTER.exec("h3", "mkdir", "-p", FILES)

    def tearDown(self):
        write(CONFIG, self.before)
        CLUSTER.exec("h3", "rm", "-f", f"{FILES}/filed.toml")
        CLUSTER.drover("h3", "reload")
        for host, domain, _ in CLUSTER.hosts_of("filed"):
            CLUSTER.drover(host, "disable", domain, "filed")
            CLUSTER.drover(host, "undefine", domain, "filed")

    def refused(self, code, *words):
        got, out, err = CLUSTER.drover("h3", "reload", check=False)
        self.assertEqual(got, code, (out, err))
        self.assertIn("nothing was changed", err)
        for word in words:
            self.assertIn(word, err)

    def test_reload_takes_all_or_nothing(self):
        changed = self.before + "\n[decision]\nreserve = 0.25\n"
        write(CONFIG, changed)
        self.assertIn("Changed: decision.reserve", CLUSTER.drover("h3", "reload"))
        self.assertIn("Nothing changed", CLUSTER.drover("h3", "reload"))
        write(CONFIG, changed.replace("reserve", "reserv"))
        self.refused(2, "line ", "did you mean `reserve`?")
        write(CONFIG, changed.replace("0.25", "0.3").replace("interval_s = 2", "interval_s = 3"))
        self.refused(4, "meter.interval_s", "systemctl restart droverd")
        write(f"{FILES}/filed.toml", FEATURE.replace("kind", "knid"))
        write(CONFIG, changed.replace("0.25", "0.4"))
        self.refused(2, "filed.toml")
        # Nothing of all that was taken; then the signal takes what is right.
        CLUSTER.exec("h3", "rm", f"{FILES}/filed.toml")
        pid = CLUSTER.exec("h3", "pidof", "droverd")[1].strip()
        CLUSTER.exec("h3", "kill", "-HUP", pid)
        log = "configuration reloaded keys=[\"decision.reserve\"]"
        wait_until(lambda: CLUSTER.exec("h3", "cat", "/var/log/drover/droverd.log")[1].count(log) == 2,
                   20, "two reloads of this key, one by the signal")

    def test_a_feature_from_a_file(self):
        write(f"{FILES}/filed.toml", FEATURE)
        out = CLUSTER.drover("h3", "reload", timeout=180)
        self.assertIn("Feature g3/filed registered", out)
        self.assertIn("Feature g3/filed enabled", out)
        wait_until(lambda: CLUSTER.hosts_of("filed") == [("h3", "g3", "running")], 60, "it runs")
        for args in (("undefine", "g3", "filed"), ("disable", "g3", "filed"),
                     ("threshold", "g3", "filed", "--clear")):
            code, _, err = CLUSTER.drover("h3", *args, check=False)
            self.assertEqual(code, 4, args)
            self.assertIn("filed.toml", err)
            self.assertIn("drover reload", err)
        # Another threshold is taken while it runs, another program is not.
        write(f"{FILES}/filed.toml", FEATURE.replace("90 %", "80 %"))
        self.assertIn("thresholds set", CLUSTER.drover("h3", "reload"))
        self.assertIn("cpu > 80 %", CLUSTER.drover("h3", "threshold", "g3", "filed"))
        write(f"{FILES}/filed.toml", FEATURE.replace("80 %", "70 %").replace('"cpu"', '"memory"'))
        self.refused(4, "enabled with another definition")
        # A restart finds it as it is.
        write(f"{FILES}/filed.toml", FEATURE.replace("90 %", "80 %"))
        CLUSTER.call("droverd", "kill", "h3")
        CLUSTER.call("droverd", "start", "h3")
        wait_until(lambda: CLUSTER.drover("h3", "list", check=False)[0] == 0, 30, "droverd is back")
        wait_until(lambda: CLUSTER.hosts_of("filed") == [("h3", "g3", "running")], 60, "it runs on")
        # Moved away, it is not registered again, nor at the next reload.
        CLUSTER.drover("h3", "migrate", "g3", "filed", "--to", "h2/g2", timeout=180)
        CLUSTER.drover("h3", "reload")
        self.assertEqual(CLUSTER.hosts_of("filed"), [("h2", "g2", "running")])
        CLUSTER.drover("h2", "migrate", "g2", "filed", "--to", "h3/g3", timeout=180)
        wait_until(lambda: CLUSTER.hosts_of("filed") == [("h3", "g3", "running")], 60, "it is back")
        # Without its file it stays, and can be removed by hand.
        CLUSTER.exec("h3", "rm", f"{FILES}/filed.toml")
        self.assertIn("drover undefine g3 filed", CLUSTER.drover("h3", "reload"))
        self.assertEqual(CLUSTER.hosts_of("filed"), [("h3", "g3", "running")])
