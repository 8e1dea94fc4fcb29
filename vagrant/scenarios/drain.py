#!/usr/bin/env python3
"""Emptying a host: its features go one after another, live, while a client outside stays
connected to one of them; what must stay is named with its reason.

Runs in the namespaces of this machine, or with DROVER_BACKEND=vagrant on Vagrant's machines.
Writes target/drain/report.json. `--keep` leaves the cluster up."""

import sys

from cluster_api import Client, Failed, Scenario, load_feature, main, redis, say

ADDRESS = "10.88.0.200"
FEATURES = [
    redis("cache", ADDRESS, downtime_ms=1000, placement={"priority": 9}),
    load_feature("batch", "10.88.0.211", 10, "cpu"),
    dict(load_feature("licence", "10.88.0.212", 3, "cpu"), placement={"pin": ["h1"]}),
]


def drain(s):
    c = s.cluster
    say("on h1: redis 'cache', a batch job, and a licence server that is pinned to h1", "#")
    for spec in FEATURES:
        c.define("h1", "g1", dict(spec, automatic=True))
        c.drover("h1", "enable", "g1", spec["name"])
    c.fill(f"{ADDRESS}:6379")
    client = s.client(Client(c, "count", f"{ADDRESS}:6379"))
    say("drover drain --wait", "$")
    code, out, err = c.drover("h1", "drain", "--wait", check=False, timeout=300)
    for line in (out + err).splitlines():
        say(line)
    status = c.drover_json("h1", "drain", "--status")
    say("another move to h1 is refused meanwhile", "#")
    host, domain, _ = c.hosts_of("batch")[0]
    refused, _, why = c.drover(host, "migrate", domain, "batch", "--to", "h1", check=False)
    say(why.strip())
    say(c.drover("h1", "drain", "--undo").strip())
    seen = client.stop()
    s.report.update({
        "moved": {name: to for name, to in status["moved"]},
        "left": {row["feature"]: row["reason"] for row in status["left"]},
        "exit_code": code,
        "refused_meanwhile": refused == 4,
        "client_replies": seen["replies"],
        "client_errors": seen["errors"] + seen["skipped"],
        "client_gap_ms": round(seen["gap_ms_worst"], 1),
    })
    good = (set(s.report["moved"]) == {"cache", "batch"} and list(s.report["left"]) == ["licence"]
            and code == 4 and refused == 4 and not s.report["client_errors"])
    if not good:
        raise Failed(f"the drain did not go as it must: {s.report}")


if __name__ == "__main__":
    sys.exit(main(Scenario("drain"), drain))
