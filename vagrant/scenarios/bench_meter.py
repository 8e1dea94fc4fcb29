#!/usr/bin/env python3
"""What metering costs: CPU time per sample of one cgroup, of drover-guest and of others, in one
guest with 100 busy cgroups at 1 s.

    bench_meter.py [--seconds N] [--only NAME,...]        writes target/bench/meter.json

Each tool runs alone, as a service of its own, and is charged what its control group used. Under
TCG all figures are about ten times those of KVM; their ratios are what counts. Tools that walk
everything (below, systemd-cgtop, pmlogger) are charged per cgroup that there is, not per busy one;
those that look at processes (atop, process-exporter) per process.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

from cluster_api import ROOT, TOOLS, Cluster, Failed, wait_until

UNITS = 100
WARM = 8
PACKAGES = "atop pcp prometheus-process-exporter libelf1t64"
BELOW = os.environ.get("DROVER_BELOW", "/var/cache/drover/below/bin/below")

# What each of the others does every second. `{}` is replaced by nothing; `also` are services that
# work for it, charged beyond what they use anyway.
OTHERS = {
    "systemd-cgtop": {"run": "exec systemd-cgtop --batch --raw --delay=1 --iterations=0 >/dev/null",
                      "per": "cgroups"},
    "systemctl-show": {
        "run": "while :; do systemctl show -p Id,CPUUsageNSec,MemoryCurrent,TasksCurrent,"
               "IOReadBytes,IOWriteBytes 'bench@*.service' >/dev/null; echo >>/run/rounds; sleep 1; "
               "done", "per": "busy", "rounds": True, "also": ["init.scope", "system.slice/dbus.service"]},
    "atop": {"run": "exec atop -w /run/atop.raw 1", "per": "processes"},
    "pmlogger": {
        "run": "exec /usr/lib/pcp/bin/pmlogger -c /run/pmlogger.conf -t 1sec /run/pmlog",
        "setup": "rm -f /run/pmlog.*; systemctl start pmcd && sleep 8 && printf 'log mandatory on 1 sec {\\n cgroup.cpu.stat\\n"
                 " cgroup.memory.current\\n cgroup.io.stat\\n cgroup.pressure\\n}\\n' "
                 ">/run/pmlogger.conf",
        "per": "cgroups", "also": ["system.slice/pmcd.service"]},
    "process-exporter": {
        "run": "exec prometheus-process-exporter -web.listen-address 127.0.0.1:9256 "
               "-config.path /run/process.yml",
        "setup": "printf 'process_names:\\n  - name: \"{{.Cgroups}}\"\\n    cmdline: [\".+\"]\\n' "
                 ">/run/process.yml",
        "scrape": "http://127.0.0.1:9256/metrics", "per": "processes"},
    "below": {"run": "exec /root/below --config /run/below.conf record --interval-s 1 "
                     "--disable-exitstats", "per": "cgroups",
              "setup": "mkdir -p /run/below && printf 'log_dir = \"/run/below\"\\n"
                       "store_dir = \"/run/below\"\\n' >/run/below.conf"},
}


def script(cluster, text, timeout=120, check=True):
    return cluster.guest("g1", "sh", "-c", text, timeout=timeout, check=check)[1]


def usage(cluster, *cgroups):
    """CPU microseconds of control groups, and the guest's clock in seconds."""
    files = " ".join(f"/sys/fs/cgroup/{c}/cpu.stat" for c in cgroups)
    out = script(cluster, f"cat /proc/uptime; grep -h usage_usec {files} 2>/dev/null")
    lines = out.splitlines()
    return sum(int(l.split()[1]) for l in lines[1:]), float(lines[0].split()[0])


def least(cluster, seconds, cgroups, idle, rounds, per):
    """Microseconds per sample in the quietest of four stretches: under emulation a guest's CPU time
    grows with whatever else the machine does."""
    costs = []
    for _ in range(4):
        first, (before, begin) = rounds(), usage(cluster, *cgroups)
        time.sleep(seconds / 4)
        last, (after, end) = rounds(), usage(cluster, *cgroups)
        span = end - begin
        ticks = span if first is None else last - first
        if ticks < 3:
            raise Failed(f"only {ticks} rounds in {span:.0f} s")
        costs.append((after - before - idle * span) / (ticks * per))
    return min(costs)


def busy(cluster):
    """100 services, each with a little of everything."""
    cluster.push("g1", TOOLS / "drover-load", "/usr/local/bin/drover-load")
    script(cluster, """
        systemctl stop prometheus-process-exporter atop atopacct pmlogger pmie pmproxy pmcd 2>/dev/null
        mkdir -p /var/tmp/bench
        cat >/run/systemd/system/bench@.service <<'U'
[Service]
ExecStart=/usr/local/bin/drover-load busy /var/tmp/bench/%i
CPUAccounting=yes
MemoryAccounting=yes
IOAccounting=yes
TasksAccounting=yes
U
        systemctl daemon-reload
        for n in $(seq 1 """ + str(UNITS) + """); do echo bench@$n.service; done | xargs systemctl start
    """, timeout=300)
    running = int(script(cluster, "pgrep -c drover-load"))
    if running != UNITS:
        raise Failed(f"{running} of {UNITS} loads run")


def drover(cluster, seconds):
    """Microseconds of drover-guest per sample of a feature."""
    cluster.exec("h1", "sed", "-i", "s/^interval_s = .*/interval_s = 1/", "/etc/drover/drover.toml")
    cluster.call("droverd", "restart", "h1")
    wait_until(lambda: cluster.drover("h1", "hosts", check=False)[0] == 0, 60, "droverd answers")
    cluster.drover("h1", "guest", "install", "g1", timeout=300)
    for n in range(1, UNITS + 1):
        cluster.define("h1", "g1", {"name": f"bench-{n}", "automatic": False, "workload": {
            "kind": "unit", "unit": f"bench@{n}.service"}})
        cluster.drover("h1", "enable", "g1", f"bench-{n}")
    wait_until(lambda: all(r["usage"] for r in cluster.drover_json("h1", "list")), 120,
               "every feature is metered")
    time.sleep(WARM)
    cgroup = "system.slice/drover-guest.service"
    points = lambda: len(cluster.drover_json(  # noqa: E731
        "h1", "history", "g1", "bench-7", "--since", "1h"))
    first, begin = points(), time.monotonic()
    cost = least(cluster, seconds, [cgroup], 0, lambda: None, UNITS)
    missed = 1 - (points() - first) / (time.monotonic() - begin)
    if missed > 0.2:
        raise Failed(f"{missed:.0%} of the samples are missing")
    script(cluster, "systemctl stop drover-guest.service", check=False)
    return cost


def other(cluster, name, tool, seconds, counts):
    unit = f"m-{name}"
    cgroup = f"system.slice/{unit}.service"
    script(cluster, tool.get("setup", "true") + "; rm -f /run/rounds; touch /run/rounds")
    also = tool.get("also", [])
    idle = 0.0
    if also:
        time.sleep(2)
        before, begin = usage(cluster, *also)
        time.sleep(10)
        after, end = usage(cluster, *also)
        idle = (after - before) / (end - begin)
    run = f"/run/{unit}.sh"
    cluster.guest("g1", "sh", "-c", f"cat >{run} <<'S'\n{tool['run']}\nS\n"
                  f"systemd-run --quiet --unit={unit} -p CPUAccounting=yes -p TimeoutStopSec=5 sh {run}")
    scraper = None
    try:
        if "scrape" in tool:
            code = ("import time, urllib.request\nwhile True:\n try: urllib.request.urlopen("
                    f"'{tool['scrape']}').read(); open('/run/rounds', 'a').write('\\n')\n"
                    " except OSError: pass\n time.sleep(1)")
            cluster.guest("g1", "systemd-run", "--quiet", "--unit=m-scraper", "python3", "-c", code)
            scraper = True
        time.sleep(WARM)
        state = script(cluster, f"systemctl is-active {unit}", check=False).strip()
        if state != "active":
            raise Failed(script(cluster, f"journalctl -n 5 -o cat -u {unit}", check=False))
        counted = tool.get("rounds") or scraper
        rounds = (lambda: int(script(cluster, "wc -l </run/rounds"))) if counted else lambda: None
        return least(cluster, seconds, [cgroup, *also], idle, rounds, counts[tool["per"]])
    finally:
        script(cluster, f"systemctl stop {unit}; " + ("systemctl stop m-scraper; " if scraper else "")
               + "systemctl stop pmcd", check=False)


def main():
    args = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    seconds = float(args.get("--seconds", 60))
    only = args["--only"].split(",") if "--only" in args else ["drover", *OTHERS]
    cluster = Cluster(os.environ.get("DROVER_CLUSTER", "bench"), hosts=1)
    cluster.env["DROVER_GUEST_EXTRA"] = PACKAGES
    target = ROOT / "target" / "bench" / "meter.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    result = json.loads(target.read_text()) if target.exists() else {}
    result.setdefault("others", {})
    result.setdefault("absent", {})
    cluster.down()
    try:
        cluster.up()
        kind = json.loads(cluster.call("status", "--json")[1])["type"]
        result["guest"] = {"type": kind, "cgroups_busy": UNITS, "interval_s": 1}
        busy(cluster)
        # Background of a fresh boot that would be charged to whoever reads first.
        time.sleep(5)
        counts = {"busy": UNITS,
                  "cgroups": int(script(cluster, "find /sys/fs/cgroup -type d | wc -l")),
                  "processes": int(script(cluster, "ls -d /proc/[0-9]* | wc -l"))}
        result["guest"].update(counts)
        if "drover" in only:
            result["drover_us"] = round(drover(cluster, seconds), 2)
            print(f"drover-guest: {result['drover_us']} us per sample", flush=True)
        for name in only:
            if name == "drover":
                continue
            try:
                if name == "below":
                    if not shutil.which(BELOW):
                        raise Failed(f"{BELOW} is not there; vagrant/provision/below.sh builds it")
                    cluster.push("g1", pathlib.Path(BELOW), "/root/below")
                cost = other(cluster, name, OTHERS[name], seconds, counts)
                result["others"][name] = round(cost, 2)
                result["absent"].pop(name, None)
                print(f"{name}: {cost:.2f} us per sample", flush=True)
            except (Failed, ValueError) as e:
                result["absent"][name] = str(e).strip()[-500:]
                print(f"{name}: {e}", flush=True)
    finally:
        if "--keep" not in sys.argv:
            cluster.down()
    if result["others"] and "drover_us" in result:
        result["ratio"] = round(result["drover_us"] / min(result["others"].values()), 3)
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(target.read_text())


if __name__ == "__main__":
    try:
        main()
    except (Failed, subprocess.TimeoutExpired) as error:
        sys.exit(f"bench_meter: {error}")
