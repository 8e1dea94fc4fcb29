#!/usr/bin/env python3
"""Records what features of several kinds use on a real cluster, for `make bench-history`.

    tests/cluster/record.py [MINUTES]       default 12; target/bench/recording.json

One of them is moved in the middle; the plot of its history is written beside, `recording.txt`."""

import json
import os
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "vagrant" / "scenarios")]

from cluster_api import ROOT, Client, Cluster, load_feature, redis  # noqa: E402

CLUSTER = Cluster(os.environ.get("DROVER_CLUSTER", "record"), extra_toml="""
[decision]
automatic = false
""")
OUT = ROOT / "target" / "bench"


def features():
    """(host, guest, definition): two servers under load, steady loads, idle ones."""
    yield "h1", "g1", redis("cache", "10.88.0.210", automatic=False)
    yield "h2", "g2", redis("sessions", "10.88.0.211", automatic=False)
    yield "h3", "g3", redis("idle", "10.88.0.212", automatic=False)
    yield "h1", "g1", load_feature("steady", "10.88.0.213", 10, "cpu")
    yield "h2", "g2", load_feature("small", "10.88.0.214", 3, "cpu")
    yield "h3", "g3", load_feature("busy", "10.88.0.215", 25, "cpu")


def record(minutes):
    CLUSTER.prepare_all()
    for host, guest, spec in features():
        CLUSTER.define(host, guest, spec)
        CLUSTER.drover(host, "enable", guest, spec["name"])
    clients = []
    for address in ("10.88.0.210:6379", "10.88.0.211:6379"):
        CLUSTER.fill(address)
        clients.append(Client(CLUSTER, "count", address))
    half = minutes * 30
    time.sleep(half / 2)
    # More load on the one that will move, from here to the end.
    clients.append(Client(CLUSTER, "load", "10.88.0.210:6379", "--connections", "1"))
    time.sleep(half / 2)
    CLUSTER.drover("h1", "migrate", "g1", "cache", "--to", "h2/g2", timeout=180)
    print("moved", flush=True)
    time.sleep(half)
    for c in clients:
        c.process.terminate()
        c.process.wait(timeout=90)
    found = {}
    for host, guest, spec in features():
        name = spec["name"]
        if name == "cache":
            host, guest = "h2", "g2"
        found[name] = CLUSTER.drover_json(host, "history", guest, name, "--since", "1d",
                                          "--limit", "10000")
        print(f"{name}: {len(found[name])} points", flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "recording.json").write_text(json.dumps(found))
    plot = CLUSTER.drover("h2", "history", "g2", "cache", "--since", "1d", "--plot",
                          "--resource", "cpu", "--resource", "memory", "--resource", "net_tx")
    (OUT / "recording.txt").write_text(plot)
    print(plot)


def main():
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 12
    CLUSTER.down()
    try:
        CLUSTER.up()
        record(minutes)
    finally:
        CLUSTER.down()


if __name__ == "__main__":
    main()
