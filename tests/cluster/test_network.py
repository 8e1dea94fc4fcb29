"""Addresses: IPv6 alone and beside IPv4, macvlan and ipvlan, moved under a client from outside."""

from cluster_api import Client, wait_until
from shared import CLUSTER, FeatureCase

OUTSIDE = "fd88::100/64"


class Dual(FeatureCase):
    """A redis with an address of each family; the counting client comes over IPv6."""

    FEATURE, ADDRESS, V6 = "dual", "10.88.0.238", "fd88::238"
    KEYS = 2_000
    KIND = "macvlan"
    SPEC = {"automatic": False}

    def setUp(self):
        self.SPEC = {"automatic": False, "workload": {
            "addresses": [f"{self.V6}/64"], "network": self.KIND,
            "exec": ["/usr/bin/redis-server", "--port", "6379", "--bind", "*", "-::*",
                     "--protected-mode", "no", "--save", "", "--appendonly", "no"]}}
        link = CLUSTER.exec("client", "sh", "-c", "ip -o -4 addr show | grep 10.88.0 | cut -d' ' -f2")
        CLUSTER.exec("client", "sh", "-c",
                     f"sysctl -qw net.ipv6.conf.all.disable_ipv6=0; "
                     f"ip addr replace {OUTSIDE} dev {link[1].split()[0]} nodad")
        super().setUp()

    def over_ipv6(self):
        c = Client(CLUSTER, "count", f"[{self.V6}]:6379")
        self.clients.append(c)
        return c

    def nothing_tentative(self, guest):
        out = CLUSTER.guest(guest, "ip", "-n", f"drover-{self.FEATURE}", "-6", "addr", "show",
                            "dev", "eth0")[1]
        self.assertIn(self.V6, out)
        for word in ("tentative", "dadfailed", "optimistic", "fe80"):
            self.assertNotIn(word, out)

    def moves(self, client):
        for n, (a, b) in enumerate((("h1", "h2"), ("h2", "h3"), ("h3", "h1"))):
            CLUSTER.drover(a, "migrate", f"g{a[1]}", self.FEATURE, "--to", f"{b}/g{b[1]}", timeout=180)
            self.at(b)
            self.nothing_tentative(f"g{b[1]}")
        # One that comes anew must find it, too.
        CLUSTER.fill(f"[{self.V6}]:6379", keys=10, size=10, timeout=20)
        self.good(client)

    def at(self, host):
        wait_until(lambda: CLUSTER.hosts_of(self.FEATURE) == [(host, f"g{host[1]}", "running")], 60,
                   f"it runs on {host}")

    def test_moves_under_a_client_over_ipv6(self):
        self.moves(self.over_ipv6())

    def test_a_taken_address_is_refused(self):
        CLUSTER.guest("g2", "sh", "-c", f"ip addr add {self.V6}/64 dev eth0 nodad")
        try:
            code, out, _ = CLUSTER.drover("h1", "check", "g1", self.FEATURE, "h2/g2", check=False)
            self.assertEqual(code, 4)
            self.assertIn("address", out)
        finally:
            CLUSTER.guest("g2", "sh", "-c", f"ip addr del {self.V6}/64 dev eth0")


class Ipvlan(Dual):
    """The same with the MAC address of the guest: neighbours must learn the new one."""

    FEATURE, ADDRESS, V6 = "slave", "10.88.0.239", "fd88::239"
    KIND = "ipvlan"

    def test_moves_under_a_client_over_ipv4(self):
        self.moves(self.client())
