#!/usr/bin/env python3
"""Moves under faults: in each, a daemon dies, a link is cut or libvirtd restarts, on the source or
the target, at a random moment. Then all is repaired, and the feature must run exactly once, with
every write that the client was answered, on connections that never broke.

Runs in the namespaces of this machine, or with DROVER_BACKEND=vagrant on Vagrant's machines.
`make chaos` is the thorough one, which strikes at each state of a move, in namespaces only.
Writes target/chaos-scenario/report.json.

    chaos.py [--faults N] [--seed N] [--keep]"""

import random
import sys
import time

from cluster_api import Client, Failed, Scenario, main, option, redis, say, wait_until

NAME, ADDRESS = "cache", "10.88.0.200"
TUNING = """
[moves]
step_timeout_s = 30
restore_timeout_s = 30
"""
# Longest wait for the feature to be whole again, seconds.
SETTLE = 150
# What strikes, and what repairs it.
FAULTS = {
    "droverd killed": (lambda c, h: c.call("droverd", "kill", h), lambda c, h: c.call("droverd", "start", h)),
    "link cut": (lambda c, h: c.call("cut", h), lambda c, h: c.call("heal", h)),
    "libvirtd restarted": (lambda c, h: c.call("service", "libvirtd", "restart", h), lambda c, h: None),
}


def settled(c):
    """(host, domain) where the feature runs alone, with no move under way."""
    try:
        place = c.hosts_of(NAME)
        if len(place) != 1 or place[0][2] != "running":
            return None
        moves = [j for h in ("h1", "h2") for j in c.drover_json(h, "jobs")]
    except (Failed, ValueError):
        return None
    return None if any(not j["result"] for j in moves) else place[0][:2]


def processes(c, guest, running=False):
    """Processes of the feature in a guest; with `running` only if nothing holds them: neither the
    freezer nor criu, which has a copy in its hands until the move is committed."""
    held = ("grep -qx 1 $d/cgroup.freeze 2>/dev/null && exit 0; pgrep -x criu >/dev/null && exit 0; "
            if running else "")
    _, out, _ = c.guest(guest, "sh", "-c", f"d=/sys/fs/cgroup/drover.slice/drover-{NAME}.service/workload; "
                        f"{held}cat $d/cgroup.procs 2>/dev/null; true")
    return len(out.split())


def trial(s, kind, side, rng):
    c = s.cluster
    source, domain = wait_until(lambda: settled(c), SETTLE, "the feature runs")
    target = "h2" if source == "h1" else "h1"
    host = source if side == "source" else target
    client = s.client(Client(c, "count", f"{ADDRESS}:6379"))
    time.sleep(1)
    c.drover(source, "migrate", domain, NAME, "--to", f"{target}/g{target[1]}", "--no-wait")
    time.sleep(rng.uniform(0.2, 3.0))
    strike, repair = FAULTS[kind]
    strike(c, host)
    say(f"move {source} -> {target}: {kind} on the {side}, {host}", "!")
    time.sleep(rng.uniform(0.5, 3.0))
    repair(c, host)
    place = wait_until(lambda: settled(c), SETTLE, "the feature runs at exactly one place")
    running = {g: processes(c, g, running=True) for g in ("g1", "g2")}
    time.sleep(1)
    seen = client.stop()
    elsewhere = "g2" if place[1] == "g1" else "g1"
    # What is left of the move at the other place goes as soon as its daemon hears of the end.
    wait_until(lambda: processes(c, elsewhere) == 0, SETTLE, "nothing is left of the move elsewhere")
    job = next((j for j in c.drover_json(source, "jobs")), {})
    row = {"fault": kind, "side": side, "result": job.get("result"), "at": place[0],
           "running": running, "client_errors": seen["errors"] + seen["skipped"],
           "client_gap_ms": round(seen["gap_ms_worst"], 1)}
    s.report["trials"].append(row)
    say(f"    {row['result']}; it runs on {place[0]}; {seen['replies']} replies, "
        f"{row['client_errors']} errors, silent for {row['client_gap_ms']:.0f} ms at most")
    return bool(running[place[1]]) and not running[elsewhere] and not row["client_errors"]


def chaos(s):
    c = s.cluster
    rng = random.Random(option("--seed", 1))
    wanted = [(k, side) for k in FAULTS for side in ("source", "target")]
    rng.shuffle(wanted)
    count = option("--faults", len(wanted))
    c.define("h1", "g1", redis(NAME, ADDRESS, automatic=False, downtime_ms=1000))
    c.drover("h1", "enable", "g1", NAME)
    c.fill(f"{ADDRESS}:6379")
    s.report["trials"] = []
    bad = [row for row in (wanted * (count // len(wanted) + 1))[:count] if not trial(s, *row, rng)]
    s.report["moves"] = count
    s.report["bad"] = len(bad)
    if bad:
        raise Failed(f"moves that did not survive: {bad}")


if __name__ == "__main__":
    sys.exit(main(Scenario("chaos-scenario", hosts=2, extra_toml=TUNING), chaos))
