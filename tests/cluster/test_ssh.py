"""Peers by ssh instead of TLS, with a real ssh server in the hosts."""

import subprocess

from cluster_api import wait_until
from shared import CLUSTER, FeatureCase

PAIR = {"h1": "h2", "h2": "h1"}
# The other side's address and TLS section become a destination for ssh.
EDIT = r"""
import re, sys
path, other, address = "/etc/drover/drover.toml", sys.argv[1], sys.argv[2]
text = open(path).read()
text = re.sub(r'name = "%s"\naddress = "[^"]*"' % other, 'name = "%s"\nssh = "root@%s"' % (other, address), text)
open(path, "w").write(text)
"""


class Ssh(FeatureCase):
    def setUp(self):
        self.servers = []
        for host in PAIR:
            CLUSTER.exec(host, "sh", "-ec", "mkdir -p /etc/drover/ssh /root/.ssh && cd /etc/drover/ssh && "
                         "ssh-keygen -q -t ed25519 -N '' -f id_ed25519 && "
                         "dropbearkey -t ed25519 -f /etc/drover/ssh/server >/dev/null")
        for host, other in PAIR.items():
            n = other[1]
            key = CLUSTER.exec(other, "cat", "/etc/drover/ssh/id_ed25519.pub")[1]
            # What a key may do is fixed where it is allowed, its owner's name too.
            CLUSTER.exec(host, "tee", "/root/.ssh/authorized_keys", stdin=
                         f'no-pty,no-port-forwarding,command="drover peer-stdio --from {other}" {key}')
            CLUSTER.exec(host, "chmod", "-R", "go-rwx", "/root/.ssh")
            public = CLUSTER.exec(other, "dropbearkey", "-y", "-f", "/etc/drover/ssh/server")[1]
            line = next(x for x in public.splitlines() if x.startswith("ssh-ed25519"))
            CLUSTER.exec(host, "tee", "/etc/drover/ssh/known_hosts", stdin=f"10.88.0.1{n} {line}\n")
            CLUSTER.exec(host, "python3", "-c", EDIT, other, f"10.88.0.1{n}")
            self.servers.append(CLUSTER.popen(
                host, "dropbear", "-F", "-E", "-s", "-r", "/etc/drover/ssh/server", "-p", f"10.88.0.1{host[1]}:22",
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        for host in PAIR:
            CLUSTER.call("droverd", "restart", host)
        super().setUp()

    def tearDown(self):
        super().tearDown()
        for server in self.servers:
            server.terminate()
            server.wait()
        for host in PAIR:
            CLUSTER.exec(host, "rm", "-rf", "/etc/drover/ssh", "/root/.ssh")
        CLUSTER.call("install", *PAIR, timeout=120)
        for host in PAIR:
            wait_until(lambda h=host: len(CLUSTER.drover_json(h, "hosts")) == 3, 60, "all by TLS again")

    def test_a_move(self):
        for host, other in PAIR.items():
            wait_until(lambda h=host, o=other: any(s["name"] == o for s in CLUSTER.drover_json(h, "hosts")),
                       60, f"{host} sees {other} by ssh")
        ends = CLUSTER.exec("h1", "ss", "-Htn", "state", "established", "dst", "10.88.0.12")[1]
        self.assertRegex(ends, r"10\.88\.0\.12:22\b")
        self.assertNotIn(":16515", ends)
        client = self.client()
        CLUSTER.drover("h1", "migrate", "g1", self.FEATURE, "--to", "h2")
        self.good(client)
        self.only_at("h2")
