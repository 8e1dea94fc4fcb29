"""Figures against known loads in a real guest."""

import json
import unittest

from cluster_api import load_feature, wait_until
from shared import CLUSTER


class Metered(unittest.TestCase):
    """Features of a guest and what their history says."""

    HOST, GUEST = "h1", "g1"

    def remove(self, name):
        CLUSTER.drover(self.HOST, "disable", self.GUEST, name)
        CLUSTER.drover(self.HOST, "undefine", self.GUEST, name)

    def points(self, name):
        return CLUSTER.drover_json(self.HOST, "history", self.GUEST, name)

    def mean(self, name, column, seconds=20, skip=2):
        """Time-weighted mean over the last `seconds`, after the start has settled."""
        def enough():
            points = self.points(name)[skip:]
            return points if sum(p["interval_s"] for p in points) >= seconds else None
        points = wait_until(enough, seconds + 60, f"{seconds} s of {name}")
        self.assertTrue(all(p[column] is not None for p in points), points)
        return (sum(p[column] * p["interval_s"] for p in points) / sum(p["interval_s"] for p in points))


class Metering(Metered):
    """Each load is a feature of its own; 20 s of its history are compared with what it did."""

    def feature(self, name, address, *args, quota=None):
        spec = load_feature(name, address, quota, *args)
        if quota is None:
            del spec["workload"]["cpu_quota_percent"]
        CLUSTER.define("h1", "g1", spec)
        self.addCleanup(self.remove, name)
        CLUSTER.drover("h1", "enable", "g1", name)

    def test_cpu(self):
        self.feature("burner", "10.88.0.231", "cpu", quota=30)
        self.assertAlmostEqual(self.mean("burner", "cpu"), 30, delta=2)

    def test_memory(self):
        self.feature("small", "10.88.0.232", "mem", "1")
        self.feature("large", "10.88.0.233", "mem", "65")
        difference = self.mean("large", "memory", 6) - self.mean("small", "memory", 6)
        self.assertAlmostEqual(difference, 64, delta=64 * 0.05)

    def test_storage(self):
        self.feature("writer", "10.88.0.234", "write", "10", "/var/tmp/drover-load.bin")
        self.addCleanup(CLUSTER.guest, "g1", "rm", "-f", "/var/tmp/drover-load.bin")
        rate = self.mean("writer", "disk_write", skip=4) / 1048576
        self.assertAlmostEqual(rate, 10, delta=0.5)

    def test_network(self):
        count, size = 20_000, 1_000
        # Known bytes on the link: UDP, so one datagram is one frame of payload + 42 bytes.
        spec = load_feature("sender", "10.88.0.235", None)
        del spec["workload"]["cpu_quota_percent"]
        # It stays when it has sent all, so that its interface can be asked.
        spec["workload"]["exec"] = [
            "/bin/sh", "-c",
            f"sleep 6; /usr/local/bin/drover-load udp-send 10.88.0.9:9999 {size} {count} 2000; sleep 1000"]
        CLUSTER.define("h1", "g1", spec)
        self.addCleanup(self.remove, "sender")
        CLUSTER.drover("h1", "enable", "g1", "sender")
        sink = CLUSTER.popen("client", "python3", "-c",
                             "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
                             "s.bind(('', 9999))\nwhile True: s.recv(2048)")
        self.addCleanup(sink.wait)
        self.addCleanup(sink.kill)

        def sent():
            points = self.points("sender")
            total = sum(p["net_tx"] * p["interval_s"] for p in points)
            quiet = len(points) > 6 and points[-1]["net_tx"] < 1000 < max(
                p["net_tx"] for p in points)
            return total if quiet else None
        total = wait_until(sent, 90, "all datagrams were sent")
        # The interface itself, as a second witness.
        code = "import json;print(json.dumps(open('/sys/class/net/eth0/statistics/tx_bytes').read()))"
        _, out, _ = CLUSTER.guest("g1", "ip", "netns", "exec", "drover-sender", "python3", "-c", code)
        truth = int(json.loads(out))
        expected = count * (size + 42)
        self.assertAlmostEqual(truth / expected, 1, delta=0.01)
        self.assertAlmostEqual(total / expected, 1, delta=0.01)
        usage = next(r for r in CLUSTER.drover_json("h1", "list") if r["spec"]["name"] == "sender")
        self.assertIsNotNone(usage["usage"]["net_rx_bps"])

    def test_unit_without_own_network_is_unavailable(self):
        CLUSTER.define("h1", "g1", {"name": "journal", "workload": {
            "kind": "unit", "unit": "systemd-journald.service"}})
        self.addCleanup(self.remove, "journal")
        CLUSTER.drover("h1", "enable", "g1", "journal")
        wait_until(lambda: len(self.points("journal")) >= 2, 60, "points of a unit")
        point = self.points("journal")[-1]
        self.assertIsNone(point["net_rx"])
        self.assertIsNotNone(point["cpu"])
        self.assertGreater(point["memory"], 0)
        text = CLUSTER.drover("h1", "stats", "g1", "journal")
        self.assertIn(" - ", text.replace("\n", " "))
