#!/usr/bin/env python3
"""Records what droverd hears from real guests in trouble, for tests/streams.rs to replay.

    tests/cluster/record_streams.py [NAME ...]     all, or some of them; tests/streams/*.json

About fifteen minutes on a cluster of its own. A file has one frame per line:
[host's clock ms, domain, guest's clock ns, the guest's totals, [[feature, identity, clock ns,
counters] ...]], counters in the order that the first line names; null is unavailable."""

import json
import os
import pathlib
import re
import signal
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "vagrant" / "scenarios")]

from cluster_api import ROOT, TOOLS, Cluster, Failed, load_feature, wait_until  # noqa: E402

OUT = ROOT / "tests" / "streams"
COUNTERS = ["cpu_usec", "cpu_user_usec", "cpu_system_usec", "cpu_throttled_usec", "memory_bytes",
            "memory_anon_bytes", "memory_file_bytes", "oom_kills", "net_rx_bytes", "net_tx_bytes",
            "disk_read_bytes", "disk_write_bytes", "disk_reads", "disk_writes", "psi_cpu_usec",
            "psi_memory_usec", "psi_io_usec", "processes"]
TOTALS = ["cpus", "cpu_busy_usec", "cpu_steal_usec", "memory_total_bytes", "memory_available_bytes"]
UNITS = {"spin": ("cpu", "IOAccounting=yes"), "busy": ("busy /var/tmp/busy", "IOAccounting=yes")}
CLUSTER = Cluster(os.environ.get("DROVER_CLUSTER", "streams"), hosts=2)
CLUSTER.env["RUST_LOG"] = "info,drover::daemon::metering=trace"


class Log:
    """droverd's log of a host, from now on."""

    def __init__(self, host):
        self.path = pathlib.Path(CLUSTER.call("path", host, "/var/log/drover/droverd.log")[1].strip())
        self.begin = self.path.stat().st_size

    def frames(self):
        """(host's clock, domain, frame) of each meter frame."""
        with self.path.open(errors="replace") as f:
            f.seek(self.begin)
            for line in f:
                line = re.sub(r"\x1b\[[0-9;]*m|\\u\{1b\}\[[0-9;]*m", "", line)
                found = re.search(r"meter.*domain=(\S+) at_ms=(\d+) frame=(\{.*\})\s*$", line)
                if found:
                    yield int(found[2]), found[1], json.loads(found[3])


def save(name, about, logs, domains):
    frames = sorted((f for log in logs for f in log.frames() if f[1] in domains),
                    key=lambda f: f[0])
    if len(frames) < 8:
        raise Failed(f"{name}: only {len(frames)} frames")
    lines = []
    for at_ms, domain, frame in frames:
        features = [[s["feature"], s["identity"], s["at_ns"],
                     [s["counters"].get(c) for c in COUNTERS]] for s in frame["features"]]
        lines.append([at_ms, domain, frame["at_ns"], [frame["guest"][t] for t in TOTALS], features])
    OUT.mkdir(exist_ok=True)
    head = json.dumps({"about": about, "counters": COUNTERS})
    body = ",\n".join(json.dumps(line, separators=(",", ":")) for line in lines)
    (OUT / f"{name}.json").write_text(f"[{head},\n{body}]\n")
    print(f"{name}: {len(frames)} frames", flush=True)


def virsh(*args):
    return CLUSTER.exec("h1", "virsh", *args, timeout=180)[1]


def fresh(log, domain, seconds=90):
    """Waits until frames of a domain come again."""
    begin = time.time() * 1000
    wait_until(lambda: any(at > begin for at, d, _ in log.frames() if d == domain), seconds,
               f"frames of {domain}")


def unit_restarted(log):
    """Two units are restarted: their cgroups come anew and count from zero."""
    time.sleep(10)
    CLUSTER.guest("g1", "systemctl", "restart", "spin", "busy")
    time.sleep(12)


def helper_restarted(log):
    """The helper is restarted: the cgroups stay."""
    time.sleep(10)
    CLUSTER.guest("g1", "systemctl", "restart", "drover-guest")
    time.sleep(3)
    fresh(log, "g1")
    time.sleep(12)


def daemon_restarted(log):
    """droverd is killed and comes back."""
    time.sleep(10)
    CLUSTER.call("droverd", "kill", "h1")
    CLUSTER.call("droverd", "start", "h1")
    fresh(log, "g1")
    time.sleep(12)


def guest_paused(log):
    """virsh suspend, 20 s, resume: the guest's clock of the boot goes on or stands still."""
    time.sleep(10)
    virsh("suspend", "g1")
    time.sleep(20)
    virsh("resume", "g1")
    fresh(log, "g1")
    time.sleep(12)


def saved_and_restored(log):
    """virsh save, 10 s, restore."""
    time.sleep(10)
    virsh("save", "g1", "/var/lib/libvirt/g1.save")
    time.sleep(10)
    virsh("restore", "/var/lib/libvirt/g1.save")
    fresh(log, "g1", 150)
    time.sleep(12)


def clock_set(log):
    """The guest's wall clock jumps 25 years back, then forth again."""
    time.sleep(8)
    CLUSTER.guest("g1", "date", "-s", "@1000000000")
    time.sleep(8)
    CLUSTER.guest("g1", "date", "-s", f"@{int(time.time())}")
    time.sleep(8)


def qemu_stopped(log):
    """The guest's QEMU is stopped by SIGSTOP for 25 s."""
    time.sleep(10)
    pid = CLUSTER.exec("h1", "cat", "/run/libvirt/qemu/g1.pid")[1].strip()
    CLUSTER.exec("h1", "kill", f"-{signal.SIGSTOP.value}", pid)
    time.sleep(25)
    CLUSTER.exec("h1", "kill", f"-{signal.SIGCONT.value}", pid)
    fresh(log, "g1")
    time.sleep(12)


def guest_rebooted(log):
    """virsh reset: the guest boots anew."""
    CLUSTER.guest("g1", "sh", "-c", "systemctl enable spin busy drover-guest; sync")
    time.sleep(8)
    virsh("reset", "g1")
    time.sleep(5)
    fresh(log, "g1", 300)
    wait_until(lambda: len({s["identity"] for _, _, f in log.frames() for s in f["features"]
                            if s["feature"] == "spin"}) > 1, 300,
               f"the unit runs again: {list(log.frames())[-1]}")
    time.sleep(12)


def feature_moved(log):
    """A feature moves to another guest and back."""
    time.sleep(10)
    CLUSTER.drover("h1", "migrate", "g1", "roamer", "--to", "h2/g2", timeout=180)
    time.sleep(12)
    CLUSTER.drover("h2", "migrate", "g2", "roamer", "--to", "h1/g1", timeout=180)
    time.sleep(12)


SCENES = [unit_restarted, helper_restarted, daemon_restarted, guest_paused, saved_and_restored,
          clock_set, qemu_stopped, feature_moved, guest_rebooted]


def prepare(host, guest):
    CLUSTER.push(guest, TOOLS / "drover-load", "/usr/local/bin/drover-load")
    CLUSTER.drover(host, "guest", "install", guest, timeout=300)


def main():
    scenes = [s for s in SCENES if not sys.argv[1:] or s.__name__ in sys.argv[1:]]
    CLUSTER.down()
    try:
        CLUSTER.up()
        prepare("h1", "g1")
        prepare("h2", "g2")
        for name, (load, setting) in UNITS.items():
            unit = (f"[Service]\nExecStart=/usr/local/bin/drover-load {load}\n{setting}\n"
                    "[Install]\nWantedBy=multi-user.target\n")
            CLUSTER.guest("g1", "sh", "-c", f"printf '{unit}' >/etc/systemd/system/{name}.service; "
                          f"systemctl daemon-reload; systemctl start {name}")
            CLUSTER.define("h1", "g1", {"name": name, "automatic": False, "workload": {
                "kind": "unit", "unit": f"{name}.service"}})
            CLUSTER.drover("h1", "enable", "g1", name)
        CLUSTER.define("h1", "g1", load_feature("roamer", "10.88.0.240", 20, "cpu"))
        CLUSTER.drover("h1", "enable", "g1", "roamer")
        log = Log("h1")
        wait_until(lambda: len(list(log.frames())) > 3, 60, "frames are recorded")
        for scene in scenes:
            here, there = Log("h1"), Log("h2")
            scene(here)
            save(scene.__name__, scene.__doc__, [here, there], {"g1", "g2"})
    finally:
        CLUSTER.down()


if __name__ == "__main__":
    main()
