#!/usr/bin/env python3
"""Moves each workload there and back again under load from outside, over connections that stay
open, and writes target/bench/workloads.json with every result.

    bench_workloads.py [--moves N] [--minutes N] [--only NAME,...] [--keep] [--reuse]

Per workload: `verdict` (`movable`, or the reason that preflight gives), `moves` (that were done),
`failed` (moves that ended otherwise although the workload was called movable), `client_errors`
(lost or wrong replies, broken connections, data that is not there in the end), `gap_ms_median` and
`gap_ms_worst` (the longest silence that a client saw around each move)."""

import argparse
import subprocess
import sys
import tempfile
import time

from shared import OUT, Bench, Failed, Report, gap_within, median, say, wait_until
from workloads import ALL

ADDRESS = "10.88.0.230"
# Failed moves in a row after which a workload is given up.
PATIENCE = 3
TUNING = """
[moves]
step_timeout_s = 60
"""


def put_files(cluster, workload):
    for path, text in workload.files.items():
        with tempfile.NamedTemporaryFile("w", suffix=".bench") as f:
            f.write(text)
            f.flush()
            for guest in ("g1", "g2"):
                cluster.shell(guest, f"mkdir -p $(dirname {path})")
                cluster.push(guest, f.name, path, "0644")


def start(cluster, workload):
    """Starts it on h1 and waits until a client is served."""
    put_files(cluster, workload)
    for guest in ("g1", "g2"):
        if workload.setup:
            cluster.shell(guest, workload.setup)
    if workload.first:
        cluster.shell("g1", workload.first, timeout=300)
    cluster.define("h1", "g1", workload.spec(ADDRESS))
    cluster.drover("h1", "enable", "g1", workload.name)

    def served():
        probe = ("import socket,sys; "
                 f"socket.create_connection(('{ADDRESS}', {workload.port}), 2).close()")
        return cluster.exec("client", "python3", "-c", probe, check=False)[0] == 0
    wait_until(served, 120, f"{workload.name} answers at port {workload.port}")
    time.sleep(2)


def job_of(cluster, host, feature):
    jobs = [j for j in cluster.drover_json(host, "jobs") if j["feature"] == feature]
    return max(jobs, key=lambda j: j["started_ms"]) if jobs else None


def move(cluster, name):
    """One move to the other host; its job."""
    host, domain = cluster.place(name)
    to = "h2" if host == "h1" else "h1"
    before = job_of(cluster, host, name)
    # The peers' view of a host may be a moment old after a move.
    for _ in range(20):
        code, _, err = cluster.drover(host, "migrate", domain, name, "--to", f"{to}/g{to[1]}",
                                      check=False, timeout=300)
        job = job_of(cluster, host, name)
        began = job is not None and not (before and job["id"] == before["id"])
        if began:
            break
        time.sleep(0.5)
    else:
        now = time.time() * 1000
        job = {"result": "refused", "reason": err.strip(), "rounds": 0, "freeze_ms": None,
               "started_ms": now, "ended_ms": now, "history": []}
    return code, job


def bench(cluster, workload, count, result, report, late):
    start(cluster, workload)
    client = cluster.client(workload.protocol, f"{ADDRESS}:{workload.port}",
                            connections=workload.connections)
    spans, in_a_row = [], 0
    try:
        time.sleep(3)
        for n in range(count):
            if late():
                say(f"{workload.name}: cut short after {n} of {count} moves", "!")
                break
            code, job = move(cluster, workload.name)
            if job["result"] == "done" and code == 0:
                in_a_row = 0
                result["moves"] += 1
                spans.append((job["started_ms"], job["ended_ms"] + 2000))
                result["freeze_ms"].append(job["freeze_ms"])
                result["total_ms"].append(job["ended_ms"] - job["started_ms"])
                say(f"{workload.name} {n + 1}/{count}: {job['from_host']} -> {job['to_host']}, "
                    f"frozen {job['freeze_ms']} ms, {job['bytes_sent'] / 1e6:.1f} MB, "
                    f"{job['ended_ms'] - job['started_ms']} ms in all")
            else:
                refused = job["rounds"] == 0
                say(f"{workload.name} {n + 1}/{count}: {'refused' if refused else job['result']}: "
                    f"{job['reason']}", "!")
                if refused and not result["moves"]:
                    result["verdict"] = job["reason"]
                    break
                # A refusal after moves that went well is a failure as any other: it was called
                # movable, and is the same workload.
                result["failed"] += 1
                result["reasons"].append(job["reason"])
                in_a_row += 1
                if in_a_row == PATIENCE:
                    say(f"{workload.name}: given up after {PATIENCE} failures in a row", "!")
                    break
                wait_until(lambda: [p[2] for p in cluster.hosts_of(workload.name)] == ["running"],
                           120, f"{workload.name} runs")
            report.save()
            time.sleep(0.5)
        time.sleep(2)
        seen = client.stop()
        client = None
    finally:
        if client:
            client.kill()
    result["verdict"] = result["verdict"] or "movable"
    result["client_errors"] = (seen["errors"] + seen["wrong"] + seen["reconnects"]
                               + seen["unverified"])
    result["client_replies"] = seen["replies"]
    result["first_error"] = seen["first_error"]
    gaps = [gap_within(seen["gaps"], *span) for span in spans]
    result["gaps_ms"] = gaps
    result["gap_ms_median"] = median(gaps)
    result["gap_ms_worst"] = max(gaps, default=None)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moves", type=int, default=40,
                        help="per workload (default: 40, 20 times there and back)")
    parser.add_argument("--minutes", type=float,
                        help="in all; each workload gets its share (default: no limit)")
    parser.add_argument("--only", help="names of workloads, separated by commas")
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    parser.add_argument("--reuse", action="store_true", help="use the cluster that is up")
    args = parser.parse_args()
    chosen = [w for w in ALL if not args.only or w.name in args.only.split(",")]
    if not chosen:
        sys.exit(f"bench: no such workload; there are {', '.join(w.name for w in ALL)}")
    cluster = Bench("bench", extra_toml=TUNING)
    report = Report(OUT / "workloads.json", {"moves_asked": args.moves, "workloads": {}})
    try:
        cluster.begin(args.reuse)
        cluster.helpers()
        begin = time.monotonic()
        for number, workload in enumerate(chosen, 1):
            say(f"{workload.name}: {' '.join(workload.command)}", "#")
            result = {"verdict": None, "moves": 0, "failed": 0, "client_errors": None,
                      "gap_ms_median": None, "gap_ms_worst": None, "client_replies": None,
                      "first_error": None, "reasons": [], "freeze_ms": [], "total_ms": [],
                      "gaps_ms": []}
            report.data["workloads"][workload.name] = result
            # What earlier ones left over goes to later ones.
            until = begin + (args.minutes or 0) * 60 * number / len(chosen)
            try:
                bench(cluster, workload, args.moves, result, report,
                      lambda: bool(args.minutes) and time.monotonic() > until)
            except (Failed, OSError, ValueError, subprocess.SubprocessError) as e:
                result["failed"] += 1
                result["reasons"].append(str(e))
                say(f"{workload.name}: {e}", "!")
            report.save()
            try:
                cluster.remove(workload.name)
            except (Failed, ValueError, subprocess.SubprocessError) as e:
                # The next one has the address, so it needs a place without this one.
                say(f"{workload.name} cannot be removed, so the cluster is made anew: {e}", "!")
                cluster.begin()
                cluster.helpers()
    finally:
        if not args.keep:
            cluster.down()
    summary(report.data["workloads"])


def summary(workloads):
    say(f"{'':10} {'moves':>6} {'failed':>7} {'errors':>7} {'gap ms':>8} {'worst':>8}  verdict", "#")
    bad = False
    for name, r in workloads.items():
        values = [str("-" if r[k] is None else r[k])
                  for k in ("moves", "failed", "client_errors", "gap_ms_median", "gap_ms_worst")]
        say(f"{name:10} {values[0]:>6} {values[1]:>7} {values[2]:>7} {values[3]:>8} {values[4]:>8}"
            f"  {r['verdict']}")
        bad |= r["failed"] > 0 or bool(r["client_errors"]) or r["verdict"] is None
    say("report: target/bench/workloads.json")
    if bad:
        sys.exit("bench: a workload that was called movable failed, or its clients saw errors")


if __name__ == "__main__":
    main()
