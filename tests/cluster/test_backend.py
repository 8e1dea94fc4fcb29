"""`vagrant/machines`, the commands of `vagrant/cluster` for Vagrant's machines, with a program in
vagrant's place that leads to the hosts of this cluster (tests/vagrant/vagrant)."""

import os
import pathlib
import unittest

from cluster_api import BACKENDS, ROOT, run, wait_until
from shared import CLUSTER


class Backend(unittest.TestCase):
    def machines(self, *args, check=True, **kw):
        env = dict(CLUSTER.env, VAGRANT=str(ROOT / "tests" / "vagrant" / "vagrant"),
                   DROVER_CLIENT=f"{BACKENDS['namespaces']} exec client")
        return run(BACKENDS["vagrant"], *args, env=env, check=check, **kw)

    def test_hosts_and_the_client(self):
        self.assertEqual(self.machines("exec", "h2", "hostname")[1], "h2\n")
        self.assertEqual(self.machines("exec", "h1", "sh", "-c", "exit 7", check=False)[0], 7)
        hard = "a 'b' \"c\" $d\\ \n e*"
        self.assertEqual(self.machines("exec", "h1", "printf", "%s", hard)[1], hard)
        self.assertEqual(self.machines("exec", "h1", "cat", stdin="of here")[1], "of here")
        self.assertIn("10.88.0.9", self.machines("exec", "client", "ip", "-br", "addr")[1])
        code, _, err = self.machines("exec", "h9", "true", check=False)
        self.assertEqual((code != 0, "no host h9" in err), (True, True), err)

    def test_guests(self):
        self.assertEqual(self.machines("guest-exec", "g2", "cat", "/proc/sys/kernel/hostname")[1], "g2\n")
        code, out, err = self.machines("guest-exec", "g1", "sh", "-c", "echo out; echo err >&2; exit 5", check=False)
        self.assertEqual((code, out, err), (5, "out\n", "err\n"))
        self.assertEqual(self.machines("guest-exec", "--stdin", "g1", "cat", stdin="in")[1], "in")
        self.assertEqual(self.machines("guest-exec", "--timeout", "1", "g1", "sleep", "30", check=False)[0], 124)
        file = pathlib.Path(__file__)
        self.machines("guest-push", "g1", file, "/tmp/pushed", "0640")
        self.addCleanup(self.machines, "guest-exec", "g1", "rm", "/tmp/pushed")
        self.assertEqual(self.machines("guest-exec", "g1", "stat", "-c", "%s %a", "/tmp/pushed")[1].split(),
                         [str(os.path.getsize(file)), "640"])

    def test_faults(self):
        self.machines("droverd", "kill", "h3")
        self.assertNotEqual(CLUSTER.drover("h3", "list", check=False)[0], 0)
        self.machines("droverd", "start", "h3")
        self.machines("cut", "h3")
        reach = ("ping", "-c1", "-W1", "10.88.0.13")
        self.assertNotEqual(CLUSTER.exec("client", *reach, check=False)[0], 0)
        self.machines("heal", "h3")
        wait_until(lambda: CLUSTER.exec("client", *reach, check=False)[0] == 0, 30, "h3 is reached again")
        wait_until(lambda: len(CLUSTER.drover_json("h3", "hosts")) == 3, 60, "h3 sees all")
