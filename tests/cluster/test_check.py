"""`drover check`: what stands in a move's way has a name, and nothing changes by looking."""

import json
import unittest

from cluster_api import wait_until
from shared import CLUSTER, FeatureCase

WAIT = "sleep 100000"


def python(program):
    return ["/usr/bin/python3", "-c", f"{program}; import time; time.sleep(100000)"]


def perl(program):
    return ["/usr/bin/perl", "-e", f"{program}; {WAIT};"]


def shell(program):
    return ["/bin/sh", "-c", program]


# Workloads that hold one thing that cannot move, and the name of it.
HOLDERS = {
    "terminal": ["/usr/bin/script", "-qc", WAIT, "/dev/null"],
    "unix-stream": python("import socket; s = socket.socket(socket.AF_UNIX); "
                          "s.connect('/run/systemd/journal/stdout')"),
    "unix-datagram": python("import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); "
                            "s.connect('/run/systemd/journal/socket')"),
    # io_uring_setup(4, params)
    "io-uring": perl("my $p = chr(0) x 256; syscall(425, 4, $p) >= 0 or die $!"),
    "mptcp": python("import socket; s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)"),
    "device": python("f = open('/dev/vda', 'rb')"),
    # mmap of 2 MiB, shared, anonymous, huge
    "hugetlb": perl("syscall(9, 0, 2 << 20, 3, 0x40021, -1, 0) > 0 or die $!"),
    "open-file": python("f = open('/var/log/holder.log', 'w')"),
    "proc-file": python("f = open('/proc/1/status')"),
    "shared-memory": shell(f"exec 9<>/dev/shm/holder; {WAIT}"),
    "directory-absent": python("import os; os.makedirs('/srv/only-here', exist_ok=True); "
                               "os.chdir('/srv/only-here')"),
    "namespace": shell(f"unshare --uts {WAIT} & wait"),
    # userfaultfd
    "kernel-object": perl("syscall(323, 0) >= 0 or die $!"),
}


class Reasons(unittest.TestCase):
    FEATURE = "holder"

    def define(self, program):
        CLUSTER.define("h1", "g1", {"name": self.FEATURE, "automatic": False, "workload": {
            "kind": "managed", "address": "10.88.0.236/24",
            "exec": program}})
        CLUSTER.drover("h1", "enable", "g1", self.FEATURE)

    def undefine(self):
        CLUSTER.drover("h1", "disable", "g1", self.FEATURE, check=False)
        CLUSTER.drover("h1", "undefine", "g1", self.FEATURE, check=False)

    def check(self, *args):
        code, out, err = CLUSTER.drover("h1", "--format", "json", "check", "g1", self.FEATURE,
                                        *args, check=False)
        return code, json.loads(out) if out else err

    def codes(self, found):
        here = {r["code"] for r in found["reasons"]}
        return here | {r["code"] for t in found["targets"] for r in t["reasons"]}

    def test_each_has_its_name(self):
        CLUSTER.guest("g1", "sh", "-c", "sysctl -w vm.nr_hugepages=4 kernel.io_uring_disabled=0")
        self.addCleanup(CLUSTER.guest, "g1", "sysctl", "-w", "vm.nr_hugepages=0")
        for name, program in HOLDERS.items():
            with self.subTest(name):
                try:
                    self.define(program)
                    found = wait_until(
                        lambda: (f := self.check("h2/g2")[1]) and name in self.codes(f) and f, 30,
                        f"{name} is named", pause=1)
                    self.assertFalse(found["movable"])
                    self.assertEqual(self.check("h2")[0], 4)
                    code, _, err = CLUSTER.drover("h1", "migrate", "g1", self.FEATURE,
                                                  "--to", "h2/g2", check=False)
                    self.assertNotEqual(code, 0, f"{name}: moved all the same")
                finally:
                    self.undefine()


class Check(FeatureCase):
    FEATURE, ADDRESS = "looked", "10.88.0.237"

    def check(self, *args):
        """The answer; the exit code is 4 when it could not move."""
        code, out, err = CLUSTER.drover("h1", "--format", "json", "check", "g1", self.FEATURE,
                                        *args, check=False)
        found = json.loads(out) if out else self.fail(err)
        self.assertEqual(code, 0 if found["movable"] else 4, err)
        return found

    def test_every_host_is_looked_at_and_nothing_changes(self):
        counter = self.client()
        # Filling it took CPU, which until it is past is more than a busy host may have free.
        found = wait_until(lambda: (f := self.check())["movable"] and not any(
            r["code"] == "host-cpu" for t in f["targets"] for r in t["reasons"]) and f, 90,
            "its load is past")
        places = [(t["host"], t["domain"], t["reasons"]) for t in found["targets"]]
        self.assertEqual(places, [("h2", "g2", []), ("h3", "g3", [])])
        self.assertGreater(found["memory_bytes"], 20_000_000)
        self.assertGreater(found["cost"]["bytes"], 20_000_000)
        # Another version of a program there, and a group that may not go.
        program = CLUSTER.guest("g2", "readlink", "-f", "/usr/bin/redis-server")[1].strip()
        CLUSTER.guest("g2", "sh", "-c", f"cp -p {program} /root/kept; printf x >> {program}")
        try:
            target = self.check("h2")["targets"][0]
            self.assertEqual([r["code"] for r in target["reasons"]], ["file-differs"], target)
        finally:
            CLUSTER.guest("g2", "mv", "/root/kept", program)
        self.assertEqual(self.check("h1")["targets"][0]["reasons"][0]["code"], "own-host")
        self.assertIn("could move here", CLUSTER.drover("h1", "check", "g1", self.FEATURE, "h3/g3"))
        self.only_at("h1")
        self.good(counter)

    def test_a_rehearsal_leaves_nothing_and_loses_nothing(self):
        counter = self.client()
        for _ in range(3):
            found = self.check("h2", "--rehearse")
            self.assertIsNone(found["rehearsal"]["problem"], found)
            self.assertGreater(found["rehearsal"]["bytes"], 20_000_000)
        self.only_at("h1")
        self.good(counter)
        # And it can move after it.
        CLUSTER.drover("h1", "migrate", "g1", self.FEATURE, "--to", "h2/g2", timeout=180)
        self.only_at("h2")
