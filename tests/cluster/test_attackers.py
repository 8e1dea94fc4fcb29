"""Each attacker of docs/security.md against real hosts: a hostile guest, a local user, somebody on
the network, a compromised peer. Where a fake reaches further than a cluster (frames byte by byte,
certificates of every kind) the tests that docs/security.md names play the same attackers."""

import json
import pathlib
import subprocess
import time
import unittest

from cluster_api import load_feature, wait_until
from shared import CLUSTER, FeatureCase, Daemon

PORT = "/dev/virtio-ports/org.drover.control.0"
MARK = "marker-of-a-secret-0123456789"


def memory(host):
    """Resident MiB of the host's droverd."""
    pid = CLUSTER.exec(host, "sh", "-c", "cut -d' ' -f1 /run/droverd.cluster-pid")[1].strip()
    status = CLUSTER.exec(host, "cat", f"/proc/{pid}/status")[1]
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def answers(host):
    """droverd answers at once; it may be asked at any time."""
    CLUSTER.drover(host, "list", timeout=10)


class HostileGuest(unittest.TestCase):
    """Root in g1 takes the helper's place on its port."""

    def tearDown(self):
        CLUSTER.guest("g1", "systemctl", "start", "drover-guest")
        wait_until(lambda: "connected" in json.dumps(CLUSTER.drover_json("h1", "guest", "status", "g1")["helper"])
                   .lower(), 120, "the honest helper is heard again")

    def test_garbage_and_floods(self):
        before = memory("h1")
        log = Daemon("h1")
        CLUSTER.guest("g1", "systemctl", "stop", "drover-guest")
        for flood in (f"timeout 10 head -c 40000000 /dev/urandom >{PORT}",
                      f"yes DRVR | timeout 10 head -c 40000000 >{PORT}",
                      f"timeout 5 head -c 1000 /dev/zero >{PORT}"):
            CLUSTER.guest("g1", "sh", "-c", f"({flood}) >/dev/null 2>&1 &")
            for _ in range(3):
                answers("h1")
                time.sleep(1)
        time.sleep(5)
        # It allocates nothing that a guest asks for, and a guest cannot fill the disk with its log.
        self.assertLess(memory("h1") - before, 64)
        self.assertLess(len(log.said()), 200_000)
        answers("h2")


class LocalUser(unittest.TestCase):
    """A user of h1 without any right."""

    def user(self, *args, check=False):
        return CLUSTER.exec("h1", "setpriv", "--reuid=5", "--regid=5", "--clear-groups", *args,
                            check=check, timeout=60)

    def test_changes_nothing(self):
        web = '{"name":"x","workload":{"kind":"unit","unit":"x.service"}}'
        calls = [("Register", "ss", "g1", web), ("Deregister", "ss", "g1", "x"), ("Enable", "ss", "g1", "x"),
                 ("Disable", "ss", "g1", "x"), ("SetThresholds", "ssas", "g1", "x", "0"),
                 ("Migrate", "ssss", "g1", "x", "", ""), ("MigrateBy", "sssss", "g1", "x", "", "", ""),
                 ("Rehearse", "ss", "g1", "x"), ("GuestInstall", "s", "g1"), ("GuestRemove", "s", "g1"),
                 ("Reload",)]
        for method, *args in calls:
            code, _, err = self.user("busctl", "--system", "--timeout=30", "call", "org.drover1", "/org/drover1",
                                     "org.drover1.Manager", method, *args)
            self.assertNotEqual(code, 0, method)
            self.assertRegex(err, "may not|denied|not permitted", method)
        code, _, err = self.user("drover", "drain")
        self.assertEqual(code, 4, err)
        self.assertIn("accepts moves", CLUSTER.drover("h1", "drain", "--status"))

    def test_reads_nothing_that_is_not_for_everybody(self):
        for path in ("/var/lib/drover", "/var/lib/drover/history"):
            code, out, _ = self.user("ls", path)
            self.assertEqual((code != 0, out), (True, ""), path)
        key = self.user("cat", "/etc/pki/libvirt/private/serverkey.pem")
        self.assertNotEqual(key[0], 0)
        # The hook's socket takes notices from root only: a forged one would be believed.
        forged = ("import socket; s=socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); "
                  "s.sendto(b'x', '/run/drover/hook.sock')")
        code, _, err = self.user("python3", "-c", forged)
        self.assertNotEqual(code, 0)
        self.assertIn("PermissionError", err)
        # Nor may somebody else be the daemon.
        taken = self.user("busctl", "--system", "call", "org.freedesktop.DBus", "/org/freedesktop/DBus",
                          "org.freedesktop.DBus", "RequestName", "su", "org.drover1", "0")
        self.assertNotEqual(taken[0], 0)
        self.assertRegex(taken[2], "not allowed|denied|Access")


SNIFF = """
import socket, sys, time
found, bulk = 0, 0
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
s.settimeout(1)
mark = sys.argv[1].encode()
print("listening", flush=True)
import signal
going = True
def stop(*_):
    global going
    going = False
signal.signal(signal.SIGTERM, stop)
while going:
    try:
        frame = s.recv(65536)
    except socket.timeout:
        continue
    if len(frame) > 34 and frame[12:14] == b"\\x08\\x00" and frame[23] == 6:
        ports = {int.from_bytes(frame[34:36], "big"), int.from_bytes(frame[36:38], "big")}
        if 16515 in ports:
            bulk += len(frame)
            found += mark in frame
print(found, bulk, flush=True)
"""

CLIENTS = """
import socket, ssl, sys
host = ("10.88.0.11", 16515)
what = sys.argv[1]
if what == "plain":
    s = socket.create_connection(host, 5)
    s.sendall(b"\\0AUTH EXTERNAL 30\\r\\n")
    s.settimeout(15)
    got = s.recv(100)
    sys.exit(0 if not got.startswith(b"OK") and b"REJECTED" not in got else 1)
if what == "half-open":
    held = [socket.create_connection(host, 5) for _ in range(400)]
    print("held", flush=True)
    sys.stdin.read()
    sys.exit(0)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.set_alpn_protocols(["drover-control/1"])
if what == "own":
    context.load_cert_chain("/tmp/attacker.pem", "/tmp/attacker.key")
if what == "old":
    context.maximum_version = ssl.TLSVersion.TLSv1_2
try:
    s = context.wrap_socket(socket.create_connection(host, 5))
    s.settimeout(15)
    s.sendall(b"\\0AUTH ANONYMOUS\\r\\n")
    got = s.recv(100)
    sys.exit(0 if got == b"" else 1)
except (ssl.SSLError, ConnectionError):
    sys.exit(0)
"""

FLOOD = """
import socket, ssl, sys
pki = "/etc/pki/libvirt"
context = ssl.create_default_context(cafile="/etc/pki/CA/cacert.pem")
context.load_cert_chain(f"{pki}/clientcert.pem", f"{pki}/private/clientkey.pem")
context.set_alpn_protocols(["drover-control/1"])
held = []
for n in range(100):
    try:
        s = context.wrap_socket(socket.create_connection(("10.88.0.11", 16515), 5), server_hostname="h1")
        held.append(s)
        s.settimeout(2)
        if n % 2:
            s.sendall(b"garbage" * 150000)
        else:
            s.sendall(b"\\0AUTH EXTERNAL\\r\\n")
    except OSError:
        pass
print(len(held), flush=True)
sys.stdin.read()
"""


class Network(FeatureCase):
    """Somebody at 10.88.0.9, on the network of the hosts."""

    KEYS = 1_000

    def attack(self, what):
        return CLUSTER.exec("client", "python3", "-c", CLIENTS, what, check=False, timeout=60)

    def test_gets_in_by_no_way(self):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "9", "-subj",
                        "/CN=h2", "-addext", "subjectAltName=DNS:h2", "-keyout", "/tmp/attacker.key", "-out",
                        "/tmp/attacker.pem"], check=True, capture_output=True)
        self.addCleanup(lambda: [pathlib.Path(f"/tmp/attacker.{e}").unlink() for e in ("key", "pem")])
        # Plain D-Bus, no certificate, one of its own that says "h2", an old TLS.
        for what in ("plain", "none", "own", "old"):
            code, out, err = self.attack(what)
            self.assertEqual(code, 0, (what, out, err))

    def test_reads_nothing_of_a_feature_on_its_way(self):
        client = self.client()
        address = self.ADDRESS
        put = (f"import socket; s=socket.create_connection(('{address}', 6379), 5); "
               f"s.sendall(b'SET {MARK} {MARK}\\r\\n'); print(s.recv(9))")
        self.assertIn("OK", CLUSTER.exec("client", "python3", "-c", put)[1])
        sniffer = CLUSTER.popen("fabric", "python3", "-c", SNIFF, MARK,
                                stdout=subprocess.PIPE)
        self.assertEqual(sniffer.stdout.readline().strip(), "listening")
        CLUSTER.drover("h1", "migrate", "g1", self.FEATURE, "--to", "h2")
        sniffer.terminate()
        found, seen = map(int, sniffer.stdout.read().split())
        sniffer.wait()
        self.good(client)
        self.only_at("h2")
        # Its memory went by, and not in the clear.
        moved = CLUSTER.drover_json("h1", "jobinfo")["bytes_sent"]
        self.assertGreater(seen, moved / 2)
        self.assertEqual(found, 0)

    def test_holds_up_nobody(self):
        crowd = CLUSTER.popen("client", "python3", "-c", CLIENTS, "half-open", stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.addCleanup(crowd.wait)
        self.addCleanup(crowd.kill)
        crowd.stdout.readline()
        answers("h1")
        client = self.client()
        CLUSTER.drover("h1", "migrate", "g1", self.FEATURE, "--to", "h2")
        self.good(client)
        self.only_at("h2")


class Peer(unittest.TestCase):
    """h3 is in other hands: it has its own certificate, and a configuration of its liking."""

    EDIT = r"""
import re, sys
path, groups = "/etc/drover/drover.toml", sys.argv[1]
text = open(path).read()
text = re.sub(r'(name = "h3"\naddress = "[^"]*"\ngroups = )\[[^]]*\]', r'\1' + groups, text)
open(path, "w").write(text)
"""

    def test_groups_are_those_of_the_host_that_is_asked(self):
        """h3 offers a feature of a group that h1 does not take from it; h1 says no, whatever h3 thinks."""
        spec = load_feature("trojan", "10.88.0.232", 5, "cpu")
        CLUSTER.exec("h1", "python3", "-c", self.EDIT, '["other"]')
        CLUSTER.call("droverd", "restart", "h1")
        try:
            CLUSTER.define("h3", "g3", spec)
            CLUSTER.drover("h3", "enable", "g3", "trojan")
            wait_until(lambda: any(s["name"] == "h1" for s in CLUSTER.drover_json("h3", "hosts")), 60,
                       "h3 sees h1")
            code, _, err = CLUSTER.drover("h3", "migrate", "g3", "trojan", "--to", "h1/g1", check=False)
            self.assertNotEqual(code, 0)
            self.assertIn("features of group 'default' are not accepted from 'h3' here", err)
            self.assertEqual(CLUSTER.hosts_of("trojan"), [("h3", "g3", "running")])
        finally:
            CLUSTER.exec("h1", "python3", "-c", self.EDIT, '["default"]')
            CLUSTER.call("droverd", "restart", "h1")
            CLUSTER.drover("h3", "disable", "g3", "trojan", check=False)
            CLUSTER.drover("h3", "undefine", "g3", "trojan", check=False)
            wait_until(lambda: len(CLUSTER.drover_json("h1", "hosts")) == 3, 60, "h1 sees all")

    def test_floods_with_its_own_certificate(self):
        """Whoever may connect may not take the whole daemon: garbage, and as many connections as it can."""
        before = memory("h1")
        flood = CLUSTER.popen("h3", "python3", "-c", FLOOD, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL)
        self.addCleanup(flood.wait)
        self.addCleanup(flood.kill)
        opened = int(flood.stdout.readline())
        self.assertGreater(opened, 10)
        for _ in range(3):
            answers("h1")
            names = {s["name"] for s in CLUSTER.drover_json("h1", "hosts")}
            self.assertIn("h2", names)
        self.assertLess(memory("h1") - before, 64)
