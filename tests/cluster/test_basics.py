"""Peers, helper, hook, history, the API's errors."""

import json
import unittest

from cluster_api import load_feature, wait_until
from shared import CLUSTER, GUESTS


class Basics(unittest.TestCase):
    def test_peers_see_each_other(self):
        for host in GUESTS:
            def seen(h=host):
                states = CLUSTER.drover_json(h, "hosts")
                helpers = [i["helper"]["state"] for s in states for i in s["instances"]]
                return sorted(s["name"] for s in states) == ["h1", "h2", "h3"] and \
                    helpers == ["connected"] * 3
            wait_until(seen, 30, f"{host} sees three hosts with a helper each")

    def test_install_again_is_harmless(self):
        out = CLUSTER.drover("h2", "guest", "install", "g2", timeout=180)
        self.assertIn("runs in domain 'g2'", out)

    def test_errors_name_the_thing(self):
        for args, word, want in [
            (("enable", "g1", "nothere"), "nothere", 3),
            (("enable", "nodomain", "x"), "nodomain", 3),
            (("migrate", "g1", "nothere", "--to", "h2"), "nothere", 3),
            (("threshold", "g1", "x", "cpu > lots"), "lots", None),
            (("jobinfo", "00000000-0000-4000-8000-000000000000"), "00000000", 3),
        ]:
            code, out, err = CLUSTER.drover("h1", *args, check=False)
            self.assertNotEqual(code, 0, args)
            if want:
                self.assertEqual(code, want, (args, out, err))
            self.assertIn(word, err, args)
            self.assertEqual(len(err.strip().splitlines()), 1, err)

    def test_hook_is_silent_and_seen(self):
        hook = "/etc/libvirt/hooks/qemu.d/50-drover"
        # No daemon, garbage arguments: silent, 0, and far from holding libvirt up.
        CLUSTER.call("droverd", "stop", "h3")
        for args in (["g3", "start", "begin", "-"], [], ["\x01;rm -rf /", "x" * 5000]):
            code, out, err = CLUSTER.exec("h3", "timeout", "2", hook, *args, check=False)
            self.assertEqual((code, out, err), (0, "", ""))
        CLUSTER.call("droverd", "start", "h3")
        # A domain without disk, started and stopped by the real libvirtd.
        xml = ("<domain type='qemu'><name>extra</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>"
               "<os><type arch='x86_64'>hvm</type></os></domain>")
        CLUSTER.exec("h3", "tee", "/tmp/extra.xml", stdin=xml)
        CLUSTER.exec("h3", "virsh", "create", "/tmp/extra.xml")
        wait_until(lambda: any(i["domain"] == "extra" for s in CLUSTER.drover_json("h3", "hosts")
                               if s["name"] == "h3" for i in s["instances"]), 20,
                   "droverd knows the new domain")
        CLUSTER.exec("h3", "virsh", "destroy", "extra")
        wait_until(lambda: not any(i["domain"] == "extra" for s in CLUSTER.drover_json("h3", "hosts")
                                   if s["name"] == "h3" for i in s["instances"]), 20,
                   "droverd forgot the domain")
        log = CLUSTER.exec("h3", "cat", "/var/log/drover/droverd.log")[1]
        # The notice itself, not what libvirt's events tell.
        for operation in ("prepare", "start", "started", "stopped", "release"):
            self.assertRegex(log, rf'hook notice=HookNotice {{ domain: "extra", operation: "{operation}"')

    def test_history_survives_kill(self):
        CLUSTER.define("h2", "g2", load_feature("steady", "10.88.0.230", 20, "cpu"))
        try:
            CLUSTER.drover("h2", "enable", "g2", "steady")

            def points():
                return [p["at_ms"] for p in CLUSTER.drover_json("h2", "history", "g2", "steady")]
            wait_until(lambda: len(points()) >= 3, 60, "three points")
            before = points()
            CLUSTER.call("droverd", "kill", "h2")
            CLUSTER.call("droverd", "start", "h2")
            wait_until(lambda: CLUSTER.drover("h2", "list", check=False)[0] == 0, 30, "droverd is back")
            after = wait_until(lambda: len(points()) > len(before) and points(), 60, "new points")
            self.assertEqual(after[:len(before)], before)
            wait_until(lambda: CLUSTER.hosts_of("steady") == [("h2", "g2", "running")], 30,
                       "the feature ran on")
        finally:
            CLUSTER.drover("h2", "disable", "g2", "steady")
            CLUSTER.drover("h2", "undefine", "g2", "steady")

    def test_busctl_reads_the_api(self):
        out = CLUSTER.exec("h1", "busctl", "--system", "--json=short", "call", "org.drover1",
                           "/org/drover1", "org.drover1.Manager", "Hosts")[1]
        states = json.loads(json.loads(out)["data"][0])
        self.assertEqual(states[0]["name"], "h1")
