"""The cluster of the tests, and what they ask of it again and again."""

import os
import pathlib
import re
import tempfile
import unittest

from cluster_api import Client, Cluster, Events, redis, wait_until

CLUSTER = Cluster(os.environ.get("DROVER_CLUSTER", "test"), extra_toml="""
[model]
train_every_s = 10
horizon_s = 6.0
rows_min = 20
rows_full = 400

[moves]
step_timeout_s = 60
max_concurrent = 1

[metrics]
listen = "0.0.0.0:9177"
""")
# The hook's notices are logged at debug.
CLUSTER.env["RUST_LOG"] = "info,drover=debug"
GUESTS = {"h1": "g1", "h2": "g2", "h3": "g3"}


def traces(guest, feature):
    """What a feature has in a guest: processes, units, namespaces, files of moves, and rules
    that criu or the gate left in its namespace."""
    script = f"""
    cgroup=/sys/fs/cgroup/drover.slice/drover-{feature}.service
    [ -n "$(cat $cgroup/cgroup.procs $cgroup/workload/cgroup.procs 2>/dev/null)" ] && echo processes
    [ -e /run/systemd/system/drover-{feature}.service ] && echo unit
    [ -e /run/netns/drover-{feature} ] && echo netns
    [ -e /run/drover/features/{feature}.pid ] && echo pid
    [ -n "$(ls /run/drover/moves 2>/dev/null)" ] && echo move-files
    [ -n "$(ls -d /sys/fs/cgroup/drover-criu/*/ 2>/dev/null)" ] && echo criu-cgroup
    ip -br link 2>/dev/null | grep -q macvlan && echo interface
    grep -qx 1 $cgroup/cgroup.freeze $cgroup/workload/cgroup.freeze 2>/dev/null && echo frozen
    if [ -e /run/netns/drover-{feature} ]; then
        ip netns exec drover-{feature} nft list tables | grep -qi 'criu\\|gate\\|door' && echo rules
    fi
    pgrep -x criu >/dev/null && echo criu
    true
    """
    _, out, _ = CLUSTER.guest(guest, "sh", "-c", script)
    return set(out.split())


class Daemon:
    """droverd of a host, watched by its log and met by signals, within milliseconds."""

    def __init__(self, host):
        self.host = host
        self.log = pathlib.Path(CLUSTER.call("path", host, "/var/log/drover/droverd.log")[1].strip())
        self.mark()

    def mark(self):
        """What is logged from now on counts."""
        self.at = self.log.stat().st_size

    def said(self):
        with self.log.open("rb") as f:
            f.seek(self.at)
            return f.read().decode(errors="replace")

    def wait(self, pattern, timeout=60):
        return wait_until(lambda: re.search(pattern, self.said()), timeout,
                          f"{self.host} logs {pattern}", pause=0.002)

    def signal(self, sig):
        """To the one process of this name in the host's namespace of processes."""
        init = CLUSTER.call("path", self.host, "/")[1].split("/")[2]
        here = os.readlink(f"/proc/{init}/ns/pid")
        for comm in pathlib.Path("/proc").glob("[0-9]*/comm"):
            try:
                ours = os.readlink(comm.parent / "ns" / "pid") == here
                if ours and comm.read_text() == "droverd\n":
                    return os.kill(int(comm.parent.name), sig)
            except OSError:
                continue
        raise AssertionError(f"no droverd on {self.host}")


RUNNING = {"processes", "unit", "netns", "pid"}


class FeatureCase(unittest.TestCase):
    """A redis feature on g1 with a client outside, made anew for each test."""

    FEATURE, ADDRESS = "cache", "10.88.0.220"
    KEYS = 20_000
    SPEC = {"automatic": False}

    def setUp(self):
        self.clients, self.events = [], []
        CLUSTER.define("h1", "g1", redis(self.FEATURE, self.ADDRESS, **self.SPEC))
        CLUSTER.drover("h1", "enable", "g1", self.FEATURE)
        self.fill(self.KEYS)

    def tearDown(self):
        for c in self.clients:
            c.process.kill()
            c.process.wait()
        for e in self.events:
            e.stop()
        for host, domain, _ in CLUSTER.hosts_of(self.FEATURE):
            CLUSTER.drover(host, "disable", domain, self.FEATURE)
            CLUSTER.drover(host, "undefine", domain, self.FEATURE)

    def fill(self, keys):
        CLUSTER.fill(f"{self.ADDRESS}:6379", keys)

    def scratch(self, name):
        """A file's path in a directory that goes with the test."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        return pathlib.Path(directory.name, name)

    def client(self, mode="count", *args):
        c = Client(CLUSTER, mode, f"{self.ADDRESS}:6379", *args)
        self.clients.append(c)
        return c

    def watch(self, host):
        e = Events(CLUSTER, host)
        self.events.append(e)
        return e

    def good(self, client, at_least=100):
        """The client lost nothing and never had to connect again."""
        report = client.stop()
        self.assertEqual((report["errors"], report["skipped"]), (0, 0), report)
        self.assertGreater(report["replies"], at_least, report)
        return report

    def only_at(self, host):
        """The feature is at exactly one place: registered, running, and no trace elsewhere."""
        place = [(host, GUESTS[host], "running")]
        wait_until(lambda: CLUSTER.hosts_of(self.FEATURE) == place, 60,
                   f"{self.FEATURE} runs only on {host}: {CLUSTER.hosts_of(self.FEATURE)}")
        for h, guest in GUESTS.items():
            want = RUNNING if h == host else set()
            found = wait_until(lambda g=guest, w=want: traces(g, self.FEATURE) == w and "same",
                               60, f"{guest} has {want or 'nothing'}: {traces(guest, self.FEATURE)}")
            self.assertEqual(found, "same")
