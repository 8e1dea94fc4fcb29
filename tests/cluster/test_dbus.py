"""org.drover1 on a host's system bus: busctl, a Python client, polkit with its real daemon."""

import json
import re
import unittest

from cluster_api import ROOT, load_feature, wait_until
from shared import CLUSTER, FeatureCase

PAGE = ROOT / "packaging" / "man" / "drover-dbus.7"
RULES = "/etc/polkit-1/rules.d/50-drover.rules"


def busctl(*args, check=True):
    code, out, err = CLUSTER.exec("h1", "busctl", "--system", "--json=short", *args, check=check)
    return json.loads(out)["data"] if check and out.strip() else (code, out, err)


def as_user(user, *args):
    return CLUSTER.exec("h1", "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups",
                        *args, check=False)


def examples():
    """The examples of the page, as they are shown."""
    found = re.findall(r"^\.EX\n(.*?)^\.EE\n", PAGE.read_text(), re.M | re.S)
    return [t.replace("\\-", "-").replace("\\e\n", "\\\n") for t in found]


class Objects(FeatureCase):
    FEATURE, ADDRESS, KEYS = "onbus", "10.88.0.223", 2_000
    # The names that the page uses.
    PATH = "/org/drover1/feature/g1/onbus"

    def test_objects_by_busctl(self):
        tree = CLUSTER.exec("h1", "busctl", "--system", "--list", "tree", "org.drover1")[1].split()
        for path in ("/org/drover1/host/h1", "/org/drover1/host/h2", "/org/drover1/instance/g1",
                     self.PATH):
            self.assertIn(path, tree)
        wait_until(lambda: busctl("get-property", "org.drover1", self.PATH, "org.drover1.Feature",
                                  "MemoryMib") > 0, 30, "memory is measured")
        status = busctl("get-property", "org.drover1", self.PATH, "org.drover1.Feature", "Status")
        self.assertEqual(status, "running")
        code, _, err = busctl("call", "org.drover1", "/org/drover1", "org.drover1.Manager",
                              "Enable", "ss", "g1", "nothere", check=False)
        self.assertNotEqual(code, 0)
        self.assertIn("nothere", err)

    def test_nothing_to_do_is_skipped(self):
        """A move to where it is: no failure, and told as every end is."""
        out = CLUSTER.drover("h1", "migrate", "g1", self.FEATURE, "--to", "h1/g1")
        self.assertIn(f"Nothing to do for '{self.FEATURE}'", out)
        job = CLUSTER.drover_json("h1", "jobinfo", "g1", self.FEATURE)
        self.assertEqual((job["result"], job["state"]), ("skipped", "ended"))
        self.assertIn("already", job["reason"])
        here = busctl("call", "org.drover1", "/org/drover1", "org.freedesktop.DBus.ObjectManager",
                      "GetManagedObjects")[0]
        moves = [o["org.drover1.Move"] for o in here.values() if "org.drover1.Move" in o]
        self.assertIn("skipped", [m["Result"]["data"] for m in moves])
        self.only_at("h1")

    def test_a_python_client_moves_it(self):
        rules, shell, python = examples()
        self.assertIn("addRule", rules)
        for line in shell.replace("\\\n", " ").splitlines():
            if "monitor" in line or "Migrate" in line:
                continue
            line = line.replace("feature/web/cache", "feature/g1/onbus")
            code, out, err = CLUSTER.exec("h1", "sh", "-c", line, check=False)
            self.assertEqual(code, 0, (line, out, err))
        client = self.client()
        program = python.replace('("web", "cache", "", "")', '("g1", "onbus", "h2", "g2")')
        self.assertNotEqual(program, python)
        out = CLUSTER.exec("h1", "/usr/bin/python3", "-", stdin=program, timeout=120)[1]
        self.assertEqual(out.strip(), "done")
        self.only_at("h2")
        self.good(client)
        # The object followed the feature.
        here = busctl("call", "org.drover1", "/org/drover1", "org.freedesktop.DBus.ObjectManager",
                      "GetManagedObjects")[0]
        self.assertNotIn(self.PATH, here)
        moves = [o["org.drover1.Move"] for o in here.values() if "org.drover1.Move" in o]
        self.assertIn("done", [m["Result"]["data"] for m in moves])
        there = CLUSTER.exec("h2", "busctl", "--system", "--list", "tree", "org.drover1")[1]
        self.assertIn("/org/drover1/feature/g2/onbus", there.split())


class Rights(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        spec = load_feature("guarded", "10.88.0.224", 20, "cpu")
        spec["workload"]["environment"] = {"TOKEN": "geheim"}
        CLUSTER.define("h1", "g1", spec)
        rule = """polkit.addRule(function(action, subject) {
            if (subject.user == "nobody" && action.lookup("domain") != "g9" &&
                action.id.indexOf("org.drover1.") == 0) return polkit.Result.YES; });"""
        CLUSTER.exec("h1", "tee", RULES, stdin=rule)

    @classmethod
    def tearDownClass(cls):
        CLUSTER.exec("h1", "rm", "-f", RULES)
        CLUSTER.drover("h1", "undefine", "g1", "guarded")

    def test_an_allowed_user(self):
        # polkitd is started by the bus for the first question.
        def enabled():
            code, out, err = as_user(65534, "drover", "enable", "g1", "guarded")
            return code == 0 or not print(out, err)
        wait_until(enabled, 20, "nobody may enable")
        code, out, err = as_user(65534, "drover", "disable", "g1", "guarded")
        self.assertEqual(code, 0, (out, err))
        self.assertIn("geheim", as_user(65534, "drover", "dumpfile", "g1", "guarded")[1])
        # A rule of the site may look at the domain.
        code, out, err = as_user(65534, "drover", "enable", "g9", "guarded")
        self.assertEqual(code, 4, (out, err))

    def test_a_refused_user(self):
        for args in (("enable", "g1", "guarded"), ("undefine", "g1", "guarded"),
                     ("threshold", "g1", "guarded", "cpu > 1 % for 1 s"),
                     ("migrate", "g1", "guarded"), ("guest", "remove", "g1")):
            code, out, err = as_user(5, "drover", *args)
            self.assertEqual(code, 4, (args, out, err))
            self.assertIn("user 5 may not", err)
            self.assertEqual(len(err.strip().splitlines()), 1, err)
        for args in (("list",), ("hosts",), ("dumpfile", "g1", "guarded")):
            code, out, err = as_user(5, "drover", "--format", "json", *args)
            self.assertEqual(code, 0, err)
            self.assertNotIn("geheim", out)

    def test_secrets_are_nowhere_else(self):
        self.assertIn("geheim", CLUSTER.drover("h1", "dumpfile", "g1", "guarded"))
        self.assertNotIn("geheim", CLUSTER.drover("h2", "--format", "json", "hosts"))
        for host in ("h1", "h2"):
            log = CLUSTER.exec(host, "cat", "/var/log/drover/droverd.log")[1]
            self.assertNotIn("geheim", log)
        log = CLUSTER.guest("g1", "journalctl", "-u", "drover-guest", "--no-pager")[1]
        self.assertIn("drover", log)
        self.assertNotIn("geheim", log)
