"""Features in the domains' XML, what domains cost, a hung QEMU."""

import signal
import time
import unittest

from shared import CLUSTER, wait_until


class Ladder(unittest.TestCase):
    FEATURE = "journal"

    def setUp(self):
        CLUSTER.define("h2", "g2", {"name": self.FEATURE, "automatic": False, "workload": {
            "kind": "unit", "unit": "systemd-journald.service"}})
        CLUSTER.drover("h2", "enable", "g2", self.FEATURE)

    def tearDown(self):
        CLUSTER.drover("h2", "disable", "g2", self.FEATURE, check=False)
        CLUSTER.drover("h2", "undefine", "g2", self.FEATURE, check=False)

    def row(self):
        return next(r for r in CLUSTER.drover_json("h2", "list")
                    if r["spec"]["name"] == self.FEATURE)

    def level(self):
        return self.row()["metered"]["level"]

    def test_metadata(self):
        def xml():
            return CLUSTER.exec("h2", "virsh", "dumpxml", "g2")[1]
        wait_until(lambda: "drover:features" in xml() and f'name="{self.FEATURE}"' in xml(), 60,
                   "the feature is in the domain's XML")
        self.assertIn('enabled="yes"', xml())
        CLUSTER.drover("h2", "disable", "g2", self.FEATURE)
        CLUSTER.drover("h2", "undefine", "g2", self.FEATURE)
        wait_until(lambda: self.FEATURE not in xml(), 60, "it is gone from the XML")

    def test_host_cost(self):
        def cost():
            rows = CLUSTER.drover_json("h2", "stats")
            row = next(r for r in rows if r["feature"] == self.FEATURE)
            whole, rest = row["domain_cost"], row["domain_rest"]
            known = whole and whole["cpus"] and row["usage"] and rest["cpus"] is not None
            return (whole, rest, row["usage"]) if known else None
        whole, rest, usage = wait_until(cost, 60, "what the domain costs")
        self.assertGreater(whole["vcpus"], 0)
        self.assertGreaterEqual(whole["cpus"] + 1e-9, whole["vcpus"] + whole["emulator"])
        self.assertIsNotNone(usage["host_cpu_percent"])
        self.assertLessEqual(rest["cpus"], whole["cpus"] + 1.0)

    def test_a_stopped_qemu_is_told_and_goes_on(self):
        wait_until(lambda: self.row()["usage"], 60, "metered")
        pid = CLUSTER.exec("h2", "cat", "/run/libvirt/qemu/g2.pid")[1].strip()
        CLUSTER.exec("h2", "kill", f"-{signal.SIGSTOP.value}", pid)
        try:
            time.sleep(5)
            # Everything else is answered as ever.
            CLUSTER.drover("h2", "list", timeout=20)
            CLUSTER.drover("h2", "hosts", timeout=20)
            wait_until(lambda: self.level() != "helper", 60, "its helper is missed")
        finally:
            CLUSTER.exec("h2", "kill", f"-{signal.SIGCONT.value}", pid)
        wait_until(lambda: self.level() == "helper", 90, "its helper is back")
        points = CLUSTER.drover_json("h2", "history", "g2", self.FEATURE)
        self.assertTrue(all(p["cpu"] is None or 0 <= p["cpu"] <= 110 for p in points), points)
