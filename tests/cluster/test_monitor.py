"""QEMU's monitor, where the administrator has it asked, on a real guest."""

import json
import unittest

from shared import CLUSTER, wait_until

TOML = "/etc/drover/drover.toml"


class Monitor(unittest.TestCase):
    FEATURE = "asked"

    def setUp(self):
        CLUSTER.define("h3", "g3", {"name": self.FEATURE, "automatic": False, "workload": {
            "kind": "unit", "unit": "systemd-journald.service"}})
        CLUSTER.drover("h3", "enable", "g3", self.FEATURE)

    def tearDown(self):
        CLUSTER.exec("h3", "sed", "-i", "/^.qmp]/,$d", TOML)
        CLUSTER.call("droverd", "restart", "h3")
        wait_until(lambda: CLUSTER.drover("h3", "list", check=False)[0] == 0, 60, "droverd is back")
        CLUSTER.drover("h3", "disable", "g3", self.FEATURE, check=False)
        CLUSTER.drover("h3", "undefine", "g3", self.FEATURE, check=False)

    def status(self):
        return CLUSTER.drover_json("h3", "guest", "status", "g3")

    def monitor(self, command):
        return json.loads(CLUSTER.exec("h3", "virsh", "qemu-monitor-command", "g3",
                                       json.dumps(command))[1])

    def listening(self, more=""):
        """droverd anew, with g3's monitor."""
        CLUSTER.exec("h3", "sh", "-c", "printf '\\n[qmp]\\ndomains = [\"g*\"]\\n"
                                       f"interval_s = 5\\n{more}\\n' >>{TOML}")
        CLUSTER.call("droverd", "restart", "h3")
        wait_until(lambda: CLUSTER.drover("h3", "list", check=False)[0] == 0, 60, "droverd is back")

    def counts(self):
        return self.status().get("qemu", {}).get("events", {}).get("counts", {})

    def connected(self):
        return self.status()["helper"].get("state") == "connected"

    def test_events(self):
        """What QEMU tells by itself; of a guest that nobody asks about nothing is kept."""
        self.assertNotIn("qemu", self.status(), "off by default")
        CLUSTER.guest("g3", "systemctl", "restart", "drover-guest")
        wait_until(self.connected, 60, "the helper is back")
        self.assertNotIn("qemu", self.status(), "off by default")
        self.listening()
        wait_until(lambda: self.status().get("qemu", {}).get("status"), 60, "QEMU is asked")
        before = self.counts().get("VSERPORT_CHANGE", 0)
        CLUSTER.guest("g3", "systemctl", "restart", "drover-guest")
        wait_until(lambda: self.counts().get("VSERPORT_CHANGE", 0) >= before + 2, 60,
                   "ports that are closed and opened are told")
        memory = CLUSTER.exec("h3", "virsh", "dommemstat", "g3")[1].split()
        now = int(memory[memory.index("actual") + 1])
        self.addCleanup(CLUSTER.exec, "h3", "virsh", "setmem", "g3", str(now), "--live")
        CLUSTER.exec("h3", "virsh", "setmem", "g3", str(now - 16 * 1024), "--live")
        size = f"memory is {(now - 16 * 1024) // 1024} MiB now"
        wait_until(lambda: any((e["name"], e["text"]) == ("BALLOON_CHANGE", size)
                               for e in self.status()["qemu"]["events"]["latest"]),
                   60, "the balloon is told")
        self.assertIn("BALLOON_CHANGE: memory is", CLUSTER.drover("h3", "guest", "status", "g3"))
        page = CLUSTER.exec("h3", "python3", "-c", "import urllib.request as u; print(u.urlopen("
                            "'http://127.0.0.1:9177/metrics').read().decode())")[1]
        self.assertRegex(page, r'drover_qemu_events_total\{domain="g3",event="VSERPORT_CHANGE"\} [1-9]')

    def test_latencies_and_histograms(self):
        self.assertNotIn("qemu", self.status(), "off by default")
        def bounds():
            """Of every disk, as QEMU itself tells."""
            disks = self.monitor({"execute": "query-blockstats"})["return"]
            return [b["stats"].get("wr_latency_histogram", {}).get("boundaries")
                    for b in disks if b.get("qdev")]
        self.assertTrue(bounds(), "there are disks")
        # Whatever an earlier run left there.
        for b in self.monitor({"execute": "query-blockstats"})["return"]:
            if b.get("qdev"):
                self.monitor({"execute": "block-latency-histogram-set",
                              "arguments": {"id": b["qdev"]}})
        # Without the key nothing is set.
        self.listening()
        wait_until(lambda: self.status().get("qemu", {}).get("disks"), 60, "QEMU is asked")
        self.assertEqual(set(bounds()), {None})
        CLUSTER.exec("h3", "sed", "-i", "/^.qmp]/,$d", TOML)
        self.listening("latency_bounds_ms = [0.1, 1, 10, 100]")
        wanted = [100_000, 1_000_000, 10_000_000, 100_000_000]
        wait_until(lambda: all(b == wanted for b in bounds()), 60, "histograms are set up")

        def busy():
            CLUSTER.guest("g3", "sh", "-c",
                          "dd if=/dev/zero of=/var/tmp/monitor bs=64k count=64 oflag=direct; "
                          "rm /var/tmp/monitor")
            disks = self.status().get("qemu", {}).get("disks", {})
            return next((d for d in disks.values() if d["write"]["latency_ms"]), None)
        disk = wait_until(busy, 90, "a disk's latency is told")
        self.assertGreater(disk["write"]["count"], 0)
        self.assertEqual(disk["write"]["failed"], 0)
        counts = [n for _, n in disk["write"]["histogram"]]
        self.assertEqual(len(counts), 4)
        self.assertEqual(counts, sorted(counts))
        self.assertGreater(counts[-1], 0)
        self.assertEqual(self.status()["qemu"]["status"], "running")
        self.assertIn("ms each lately", CLUSTER.drover("h3", "guest", "status", "g3"))
        row = next(r for r in CLUSTER.drover_json("h3", "stats") if r["feature"] == self.FEATURE)
        self.assertIn("disks", row["domain_qemu"])
        page = CLUSTER.exec("h3", "python3", "-c", "import urllib.request as u; print(u.urlopen("
                            "'http://127.0.0.1:9177/metrics').read().decode())")[1]
        self.assertRegex(page, r'drover_disk_operations_total\{domain="g3",disk="[^"]+",kind="write"')
