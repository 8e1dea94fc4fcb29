#!/usr/bin/env python3
"""The main job, shown as it happens: a feature crosses its threshold on a crowded host and is
moved, live, to the host that suits it best, while a client outside stays connected.

Writes target/demo/report.json. `--keep` leaves the cluster up."""

import json
import os
import re
import sys
import time

from cluster_api import ROOT, Client, Cluster, Events, Failed, load_feature, redis, say, wait_until

ADDRESS = "10.88.0.200"
# Shorter than the defaults, so that a demo of minutes shows what takes hours in earnest.
TUNING = """
[model]
train_every_s = 5
horizon_s = 2.0
rows_min = 20
rows_full = 200
"""

def mib(n):
    return f"{n / 1048576:.1f} MiB"


class Tee:
    """What is printed, into a file as well: the picture of the README is made from it."""

    def __init__(self, path):
        self.file, self.out = path.open("w"), sys.stdout

    def write(self, text):
        # The picture has colours of its own.
        self.file.write(re.sub(r"\033\[\d*m", "", text))
        self.file.flush()
        return self.out.write(text)

    def isatty(self):
        return self.out.isatty()

    def flush(self):
        self.out.flush()


class Story:
    """Prints what droverd signals, each thing once."""

    def __init__(self):
        self.rounds, self.state = 0, ""

    def __call__(self, event):
        kind = event.get("event")
        if kind == "breach":
            say(f"{'breach' if event['active'] else 'breach over'}: {event['feature']}: {event['what']}", "!")
        elif kind == "decision":
            plan = event["plan"]
            say(f"decision: {plan['outcome']}: {plan['reason']}", "*")
            for c in plan["candidates"]:
                if c["score"] is None:
                    say(f"    {c['host']:<4}{c['domain']:<6} refused: {'; '.join(c['refusals'])}")
                else:
                    parts = "  ".join(f"{n} {v:.2f}" for n, v in c["parts"])
                    say(f"    {c['host']:<4}{c['domain']:<6} score {c['score']:.2f}   {parts}")
            m = plan["model"]
            say(f"    model: {m['kind']}, {m['rows']} rows, weight {m['weight']:.2f}")
        elif kind == "move":
            self.move(event["job"])

    def move(self, job):
        for r in job["history"][self.rounds:]:
            last = job["state"] in ("restoring", "committing", "switching", "ended")
            name = "freeze " if last and r is job["history"][-1] else "round  "
            say(f"    {name}{r['round']}: {mib(r['bytes'])}, {r['pages_written']} pages, "
                f"{r['pages_skipped']} unchanged, {r['total_ms']} ms")
        self.rounds = len(job["history"])
        if job["state"] != self.state:
            self.state = job["state"]
            if job["result"]:
                say(f"move {job['result']}" + (f": {job['reason']}" if job["reason"] else ""), "*")
            else:
                say(f"move {job['from_host']}/{job['from_domain']} -> "
                    f"{job['to_host']}/{job['to_domain']}: {job['state']}", ">")


def stats(cluster, host):
    for row in cluster.drover_json(host, "list"):
        u = row.get("usage")
        if u and u.get("cpu_percent") is not None:
            say(f"    {host} {row['domain']} {row['spec']['name']:<10} cpu {u['cpu_percent']:5.1f} %"
                f"   memory {u['memory_mib']:6.1f} MiB   net in {(u['net_rx_bps'] or 0) / 1000:7.1f} kB/s"
                f"   out {(u['net_tx_bps'] or 0) / 1000:7.1f} kB/s")


def main():
    keep = "--keep" in sys.argv
    cluster = Cluster(os.environ.get("DROVER_CLUSTER", "demo"), extra_toml=TUNING)
    out = ROOT / "target" / "demo"
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").unlink(missing_ok=True)
    sys.stdout = Tee(out / "output.txt")
    clients, events = [], None
    try:
        say("three hosts, each with libvirtd, system bus, droverd and a guest", "#")
        cluster.down()
        cluster.up()
        say("installing the helper into the guests: channels, binary, unit", "#")
        cluster.prepare_all()
        say("features: redis 'cache' and a batch job on h1, little on h2, a batch job on h3", "#")
        cluster.define("h1", "g1", redis("cache", ADDRESS, automatic=True, downtime_ms=1000,
                                         workload={"cpu_quota_percent": 55}))
        cluster.define("h1", "g1", load_feature("batch", "10.88.0.211", 25, "cpu"))
        cluster.define("h2", "g2", load_feature("ticker", "10.88.0.212", 3, "cpu"))
        cluster.define("h3", "g3", load_feature("report", "10.88.0.213", 25, "cpu"))
        for host, guest, feature in (("h1", "g1", "cache"), ("h1", "g1", "batch"),
                                     ("h2", "g2", "ticker"), ("h3", "g3", "report")):
            cluster.drover(host, "enable", guest, feature)
        cluster.fill(f"{ADDRESS}:6379")
        # On a slow machine filling it would be a breach already.
        cluster.drover("h1", "threshold", "g1", "cache", "cpu > 40 % for 5 s")
        story = Story()
        events = Events(cluster, "h1", story)
        say("a client outside counts on one TCP connection; light load for a while", "#")
        counter = Client(cluster, "count", f"{ADDRESS}:6379")
        clients.append(counter)
        for _ in range(6):
            time.sleep(7)
            stats(cluster, "h1")
        say("the affinity model learns from what was measured until then")
        wait_until(lambda: cluster.drover_json("h1", "plan", "g1", "cache")["model"]["kind"]
                   != "headroom", 90, "h1 has an affinity model", pause=3)
        say("now heavy load on 'cache': two more connections, pipelined", "#")
        load = Client(cluster, "load", f"{ADDRESS}:6379", "--connections", "2")
        clients.append(load)
        ended = events.wait(lambda e: e.get("event") == "move" and e["job"]["result"], 150,
                            "the end of a move")["job"]
        say("after the move, at the new place:", "#")
        for _ in range(2):
            time.sleep(4)
            stats(cluster, ended["to_host"])
        points = cluster.drover_json(ended["to_host"], "history", ended["to_domain"], "cache")
        before = sum(1 for p in points if p["at_ms"] < ended["started_ms"])
        say(f"history at the new place: {len(points)} points, {before} of them from before the move")
        place = cluster.hosts_of("cache")
        load_report, count_report = load.stop(), counter.stop()
        clients.clear()
        plan = next(e["plan"] for e in events.seen if e.get("event") == "decision"
                    and e["plan"]["outcome"] == "move")
        scores = {c["host"]: c["score"] for c in plan["candidates"]}
        scores[plan["host"]] = plan["stay_score"]
        errors = (count_report["errors"] + count_report["skipped"] + load_report["errors"]
                  + load_report["skipped"])
        report = {
            "moved": ended["result"] == "done" and [p[0] for p in place] == [ended["to_host"]],
            "from": f"{ended['from_host']}/{ended['from_domain']}",
            "to": f"{ended['to_host']}/{ended['to_domain']}",
            "client_errors": errors,
            "client_replies": count_report["replies"] + load_report["replies"],
            "client_gap_ms": round(count_report["gap_ms_worst"], 1),
            "freeze_ms": ended["freeze_ms"],
            "rounds": ended["rounds"],
            "bytes_sent": ended["bytes_sent"],
            "total_ms": ended["ended_ms"] - ended["started_ms"],
            "model": {"rows": plan["model"]["rows"], "kind": plan["model"]["kind"]},
            "scores": scores,
            "history_points_before_move": before,
        }
        (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        summary(report, ended)
        if not report["moved"] or errors or not before:
            raise Failed(f"the main job did not go as it must: {json.dumps(report)}\n"
                         f"{json.dumps(count_report)} {json.dumps(load_report)}")
    finally:
        for c in clients:
            c.process.terminate()
        if events:
            events.stop()
        if keep:
            say(f"the cluster stays up: DROVER_CLUSTER={cluster.name} vagrant/cluster status")
        else:
            cluster.down()


def summary(report, job):
    line = "-" * 72
    scores = ", ".join(f"{h} {s:.2f}" if s is not None else f"{h} refused"
                       for h, s in sorted(report["scores"].items()))
    print(f"""
{line}
  Feature 'cache' moved {report['from']} -> {report['to']}
  because of      {job['cause']}
  scores          {scores}  ({report['model']['kind']} model, {report['model']['rows']} rows)
  sent            {mib(report['bytes_sent'])} in {report['rounds']} rounds, {report['total_ms'] / 1000:.1f} s in all
  frozen          {report['freeze_ms']} ms; the client heard nothing for {report['client_gap_ms']:.0f} ms at most
  client          {report['client_replies']} replies on connections that never broke, {report['client_errors']} errors
  history         {report['history_points_before_move']} points from before the move, readable at the new place
  report          target/demo/report.json
{line}
""", flush=True)


if __name__ == "__main__":
    try:
        main()
    except Failed as e:
        print(f"demo: {e}", file=sys.stderr)
        sys.exit(1)
