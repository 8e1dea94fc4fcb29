"""The hook beside a user's own, with the real libvirtd (or virtqemud: tests/virtqemud): droverd up, down and hung."""

import unittest

from cluster_api import wait_until
from modular import DAEMON
from shared import CLUSTER

MINE = "/etc/libvirt/hooks/qemu.d/10-mine"
XML = ("<domain type='qemu'><name>extra</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>"
       "<os><type arch='x86_64'>hvm</type></os></domain>")


def has(host, domain):
    """Whether the host's droverd knows the domain."""
    return any(i["domain"] == domain for s in CLUSTER.drover_json(host, "hosts")
               if s["name"] == host for i in s["instances"])


class Hook(unittest.TestCase):
    def setUp(self):
        for host in ("h2", "h3"):
            CLUSTER.exec(host, "tee", MINE, stdin='#!/bin/sh\necho "$@" >>/tmp/mine.log\n')
            CLUSTER.exec(host, "chmod", "755", MINE)
        CLUSTER.exec("h3", "tee", "/tmp/extra.xml", stdin=XML)
        self.reload()

    def tearDown(self):
        for host in ("h2", "h3"):
            CLUSTER.exec(host, "virsh", "destroy", "extra", check=False)
            CLUSTER.exec(host, "virsh", "undefine", "extra", check=False)
            CLUSTER.exec(host, "rm", "-f", MINE, "/tmp/mine.log")
        self.reload()

    def reload(self):
        """libvirtd looks for hooks when it is told."""
        for host in ("h2", "h3"):
            CLUSTER.exec(host, "sh", "-c", f"kill -HUP $(cat /run/{DAEMON}.pid)")

    def mine(self, host):
        return CLUSTER.exec(host, "cat", "/tmp/mine.log", check=False)[1]

    def life(self):
        """A domain's life, with a restart of libvirtd and a live migration of the domain in it."""
        for host in ("h2", "h3"):
            CLUSTER.exec(host, "rm", "-f", "/tmp/mine.log")
        CLUSTER.exec("h3", "virsh", "define", "/tmp/extra.xml", timeout=30)
        CLUSTER.exec("h3", "virsh", "start", "extra", timeout=30)
        CLUSTER.call("service", DAEMON, "restart", "h3")
        # Each domain is connected to in a thread of its own, after libvirtd answers already.
        wait_until(lambda: "extra reconnect begin -" in self.mine("h3"), 30, "hook at the reconnect")
        CLUSTER.exec("h3", "virsh", "migrate", "--live", "--undefinesource", "--persistent",
                     "extra", "qemu+tls://h2/system", timeout=60)
        self.assertIn("running", CLUSTER.exec("h2", "virsh", "domstate", "extra")[1])
        for words in ("prepare begin -", "start begin -", "started begin -", "stopped end -"):
            self.assertIn(f"extra {words}", self.mine("h3"))
        self.assertIn("extra migrate begin -", self.mine("h2"))

    def end(self):
        CLUSTER.exec("h2", "virsh", "destroy", "extra", timeout=30)
        CLUSTER.exec("h2", "virsh", "undefine", "extra", timeout=30)

    def test_droverd_up(self):
        self.life()
        wait_until(lambda: has("h2", "extra") and not has("h3", "extra"), 30,
                   "droverd of h2 has the domain, that of h3 no more")
        self.end()
        wait_until(lambda: not has("h2", "extra"), 30, "droverd forgot the domain")

    def test_droverd_down(self):
        for host in ("h2", "h3"):
            CLUSTER.call("droverd", "stop", host)
        try:
            self.life()
        finally:
            for host in ("h2", "h3"):
                CLUSTER.call("droverd", "start", host)
        wait_until(lambda: has("h2", "extra") and not has("h3", "extra"), 30, "seen after the start")
        self.end()

    def test_droverd_hung(self):
        def signal(name):
            for host in ("h2", "h3"):
                CLUSTER.exec(host, "sh", "-c",
                             f"kill -{name} $(cut -d' ' -f1 /run/droverd.cluster-pid)")
        signal("STOP")
        try:
            # More notices than the socket holds: each is dropped, none waits.
            for _ in range(40):
                CLUSTER.exec("h3", "/etc/libvirt/hooks/qemu.d/50-drover", "extra", "start", "begin", "-",
                             timeout=10)
            self.life()
        finally:
            signal("CONT")
        wait_until(lambda: has("h2", "extra") and not has("h3", "extra"), 60, "seen when it goes on")
        self.end()
