"""Guests without the helper, step by step down the ladder of metering, and up again."""

import time
import unittest

from shared import CLUSTER, wait_until

EXEC = "guest-exec,guest-exec-status"
FILES = ("guest-file-open,guest-file-close,guest-file-read,guest-file-write,guest-file-seek,"
         "guest-file-flush")
# Runs in the guest, apart from the agent, which forbids itself what would undo it.
FORBID = r"""
set -e
unit=qemu-guest-agent.service
drop=/run/systemd/system/$unit.d
flag=--blacklist; qemu-ga --help | grep -q block-rpcs && flag=--block-rpcs
start=$(systemctl show -p ExecStart --value $unit | sed 's/.*argv\[\]=\([^;]*\) ;.*/\1/')
mkdir -p $drop
forbid() { # commands
    printf '[Service]\nExecStart=\nExecStart=%s %s=%s\n' "$start" "$flag" "$1" >$drop/forbid.conf
    systemctl daemon-reload; systemctl restart $unit
}
sleep 2
forbid $EXEC
sleep 150
forbid $EXEC,$FILES
sleep 150
rm -r $drop; systemctl daemon-reload; systemctl restart $unit
"""


class Rungs(unittest.TestCase):
    FEATURE = "logs"

    def setUp(self):
        CLUSTER.define("h2", "g2", {"name": self.FEATURE, "automatic": False, "workload": {
            "kind": "unit", "unit": "systemd-journald.service"}})
        CLUSTER.drover("h2", "enable", "g2", self.FEATURE)

    def tearDown(self):
        CLUSTER.drover("h2", "guest", "install", "g2", timeout=300)
        CLUSTER.drover("h2", "disable", "g2", self.FEATURE, check=False)
        CLUSTER.drover("h2", "undefine", "g2", self.FEATURE, check=False)

    def row(self):
        return next(r for r in CLUSTER.drover_json("h2", "list")
                    if r["spec"]["name"] == self.FEATURE)

    def rung(self, level, reason, seconds):
        """Waits for a rung; what users are told of it."""
        def there():
            metered = self.row()["metered"]
            return metered["level"] == level and reason in metered["reason"]
        wait_until(there, seconds, f"metered by {level}, {reason}")
        told = self.row()["metered"]["reason"]
        status = CLUSTER.drover("h2", "guest", "status", "g2")
        self.assertIn(" ".join(told.split()), " ".join(status.split()))

    def fresh(self, seconds):
        since = self.row()["usage"]["at_ms"] if self.row()["usage"] else 0
        return wait_until(lambda: (lambda u: u if u and u["at_ms"] > since else None)(
            self.row()["usage"]), seconds, "a new point")

    def test_down_the_ladder_and_up(self):
        wait_until(lambda: self.row()["metered"]["level"] == "helper" and self.row()["usage"], 60,
                   "by the helper")
        CLUSTER.guest("g2", "sh", "-c", "systemctl stop drover-guest.service; "
                      "systemctl mask --runtime drover-guest.service")
        # Commands are allowed.
        self.rung("agent", "cgroups are read through the guest agent", 120)
        self.fresh(120)
        usage = self.fresh(120)
        for known in ("cpu_percent", "memory_mib", "psi_cpu_percent", "processes"):
            self.assertIsNotNone(usage[known], known)
        self.assertIsNone(usage["net_rx_bps"], "not counted is not zero")
        # Files only.
        script = FORBID.replace("$EXEC", EXEC).replace("$FILES", FILES)
        CLUSTER.guest("g2", "sh", "-c", f"cat >/run/forbid.sh <<'END'\n{script}END\n"
                      "systemctl unmask --runtime drover-guest.service; "
                      "systemd-run --unit=forbid sh /run/forbid.sh")
        self.rung("agent", "forbids commands", 140)
        usage = self.fresh(140)
        self.assertIsNotNone(usage["cpu_percent"])
        self.assertIsNotNone(usage["memory_mib"])
        self.assertIsNone(usage["psi_cpu_percent"], "not read file by file")
        # Neither, as in the RHEL family.
        self.rung("guest", "forbids commands and files", 240)
        at = self.row()["usage"]["at_ms"]
        time.sleep(30)
        self.assertEqual(self.row()["usage"]["at_ms"], at, "what cannot be counted does not go on")
        self.assertIn("guest only", CLUSTER.drover("h2", "list"))
        code, _, said = CLUSTER.drover("h2", "guest", "install", "g2", check=False)
        self.assertNotEqual(code, 0)
        self.assertIn("guest-exec", said, "installing says what is forbidden")
        # All is allowed again.
        wait_until(lambda: CLUSTER.guest("g2", "true", check=False)[0] == 0, 240,
                   "the agent allows commands again")
        CLUSTER.drover("h2", "guest", "install", "g2", timeout=300)
        wait_until(lambda: self.row()["metered"]["level"] == "helper", 60, "by the helper again")
        self.fresh(60)
