"""`drover doctor` on hosts that are well and on hosts that are not."""

import json
import unittest

from cluster_api import load_feature, wait_until
from shared import CLUSTER


def doctor(host):
    """Exit code and findings."""
    code, out, err = CLUSTER.drover(host, "--format", "json", "doctor", check=False)
    if err:
        raise AssertionError(err)
    return code, json.loads(out)["findings"]


def of(findings, about, severity=None):
    return [f for f in findings if f["about"] == about and severity in (None, f["severity"])]


class Doctor(unittest.TestCase):
    def test_well(self):
        CLUSTER.define("h1", "g1", load_feature("checked", "10.88.0.231", 10, "cpu"))
        try:
            CLUSTER.drover("h1", "enable", "g1", "checked")
            wait_until(lambda: of(doctor("h1")[1], "feature g1/checked", "ok"), 60, "it is metered")
            code, findings = doctor("h1")
            self.assertEqual([f for f in findings if f["severity"] == "error"], [])
            self.assertIn(code, (0, 7))
            self.assertEqual(code == 7, any(f["severity"] == "warning" for f in findings))
            for about, count in [("configuration", 1), ("droverd", 1), ("libvirt", 1),
                                 ("certificates", 1), ("peer h2", 2), ("peer h3", 2),
                                 ("domain g1", 3), ("history", 1)]:
                self.assertEqual(len(of(findings, about, "ok")), count, (about, findings))
            self.assertEqual(len([f for f in findings if "certificate /" in f["about"]]), 3)
        finally:
            CLUSTER.drover("h1", "disable", "g1", "checked")
            CLUSTER.drover("h1", "undefine", "g1", "checked")

    def test_daemon_down(self):
        CLUSTER.call("droverd", "stop", "h2")
        try:
            code, findings = doctor("h2")
            self.assertEqual(code, 1)
            self.assertEqual(len(of(findings, "droverd", "error")), 1)
            self.assertIn("systemctl status droverd", of(findings, "droverd")[0]["fix"])
            # All that needs no daemon is looked at.
            for about in ("configuration", "libvirt", "certificates", "peer h1", "domain g2"):
                self.assertTrue(of(findings, about, "ok"), (about, findings))
            # The other hosts miss it.
            wait_until(lambda: of(doctor("h1")[1], "peer h2", "error"), 30, "h1 misses h2")
        finally:
            CLUSTER.call("droverd", "start", "h2")
        wait_until(lambda: not of(doctor("h1")[1], "peer h2", "error"), 60, "h1 has h2 again")

    def test_common_name_does_not_count(self):
        """A certificate with the host's name only as common name, which old guides make."""
        cert = "/etc/pki/libvirt/servercert.pem"
        CLUSTER.exec("h3", "cp", cert, "/tmp/good.pem")
        CLUSTER.exec("h3", "sh", "-c", "cd /tmp && openssl req -x509 -newkey rsa:2048 -nodes -days 9 "
                     f"-subj /CN=h3 -keyout bad.key -out bad.pem 2>/dev/null && cp bad.pem {cert}")
        try:
            code, findings = doctor("h3")
            self.assertEqual(code, 1)
            self.assertTrue(of(findings, "certificates", "error"), findings)
            self.assertIn("servercert.pem", of(findings, "certificates")[0]["found"])
            soon = of(findings, f"server certificate {cert}")
            self.assertEqual(soon[0]["severity"], "warning", findings)
        finally:
            CLUSTER.exec("h3", "cp", "/tmp/good.pem", cert)
        self.assertTrue(of(doctor("h3")[1], "certificates", "ok"))

    def test_bad_configuration_and_hook(self):
        hook = "/etc/libvirt/hooks/qemu.d/50-drover"
        CLUSTER.exec("h3", "sh", "-c", "(cat /etc/drover/drover.toml; echo '[x]') > /tmp/bad.toml")
        CLUSTER.exec("h3", "chmod", "644", hook)
        try:
            code, out, _ = CLUSTER.drover("h3", "--format", "json", "doctor", "--config",
                                          "/tmp/bad.toml", check=False)
            findings = json.loads(out)["findings"]
            self.assertEqual(code, 1)
            self.assertTrue(of(findings, "configuration", "error"))
            self.assertTrue(of(findings, "hook", "error"))
            self.assertIn("chmod 755", of(findings, "hook")[0]["fix"])
        finally:
            CLUSTER.exec("h3", "chmod", "755", hook)
