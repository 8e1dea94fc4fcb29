#!/usr/bin/env python3
"""Four ways to move a redis from one host to another, in one run on one cluster, seen by the same
client: the whole VM, plain criu, podman, Drover. Writes target/bench/move.json with every run.

    bench_move.py [--runs N] [--cases small,rewritten] [--ways vm,criu,podman,drover]
                  [--keep] [--reuse]

Cases: `small`, a redis of 40 MB under light load; `rewritten`, one of 200 MB of which 5 MB/s are
overwritten. Per case and way the medians of `client_gap_ms` (longest silence of a client on one
connection), `freeze_ms` (as the way itself counts it), `bytes` (sent), `total_ms`.

The VM moves by `virsh migrate --live` between hosts that share its disk. criu and podman dump once,
copy and restore; the address, its MAC and the connections move along as with Drover."""

import argparse
import json
import re
import sys
import threading
import time

from shared import HERE, OUT, Bench, Failed, Report, gap_within, median, say, wait_until

ADDRESS = "10.88.0.240"
MAC = "02:be:00:00:00:f0"
FIELDS = ("client_gap_ms", "freeze_ms", "bytes", "total_ms")
# Keys, bytes per value.
CASES = {"small": (20_000, 1000), "rewritten": (20_000, 10_000)}
ADDRESSES = {"g1": "10.88.0.101", "g2": "10.88.0.102"}
TUNING = """
[moves]
step_timeout_s = 120
"""


def other(guest):
    return "g2" if guest == "g1" else "g1"


class Vm:
    """The whole guest g1, redis in it under an address of the guest's own interface, which QEMU
    announces after the migration."""

    def __init__(self, cluster):
        self.cluster, self.host = cluster, "h1"

    def start(self):
        self.share_disk()
        self.cluster.shell("g1", f"ip addr add {ADDRESS}/24 dev eth0; "
                           "setsid redis-server --port 6379 --bind '*' --protected-mode no "
                           "--save '' --appendonly no </dev/null >/dev/null 2>&1 &")

    def share_disk(self):
        """The same file at both hosts, as on shared storage."""
        base = f"/var/lib/drover-cluster/{self.cluster.name}"
        self.cluster.machine("ln", "-f", f"{base}/h1/images/g1.qcow2", f"{base}/h2/images/g1.qcow2")

    def move(self):
        to = "h2" if self.host == "h1" else "h1"
        number = to[1]
        self.cluster.exec(self.host, "virsh", "-q", "migrate", "--live", "--unsafe", "--persistent",
                          "--undefinesource", "g1", f"qemu+tls://{to}/system",
                          "--migrateuri", f"tcp://10.88.0.1{number}", timeout=300)
        _, text, _ = self.cluster.exec(to, "virsh", "domjobinfo", "--completed", "g1")
        self.host = to
        return {"freeze_ms": self.field(text, "Total downtime"),
                "total_ms": self.field(text, "Time elapsed"),
                "bytes": self.field(text, "Memory processed")}

    @staticmethod
    def field(text, name):
        """A value of domjobinfo in ms or bytes."""
        found = re.search(rf"{name}:\s+([\d.]+)\s*(\S*)", text)
        if not found:
            raise Failed(f"virsh domjobinfo says nothing of '{name}':\n{text}")
        unit = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}.get(found[2], 1)
        return round(float(found[1]) * unit)

    def stop(self):
        if self.host != "h1":
            self.move()
        self.cluster.shell("g1", f"pkill -9 -x redis-server; ip addr del {ADDRESS}/24 dev eth0",
                           check=False)


class ByHand:
    """guest-move.sh with criu or podman."""

    def __init__(self, cluster, way):
        self.cluster, self.way, self.at = cluster, way, "g1"
        for guest in ("g1", "g2"):
            cluster.push(guest, HERE / "guest-move.sh", "/usr/local/sbin/guest-move.sh")
            self.script(guest, "clean", check=False)

    def script(self, guest, *args, timeout=120, check=True):
        return self.cluster.guest(guest, "/usr/local/sbin/guest-move.sh", *args, timeout=timeout,
                                  check=check)

    def start(self):
        self.script("g1", "net", ADDRESS, MAC, "up")
        self.script("g1", "start", self.way)

    def move(self):
        source, target = self.at, other(self.at)
        self.script(target, "net", ADDRESS, MAC, "waiting")
        problem = []

        def receive():
            try:
                self.script(target, "in", self.way, timeout=180)
            except Failed as e:
                problem.append(e)
        receiver = threading.Thread(target=receive)
        receiver.start()
        try:
            wait_until(lambda: self.cluster.guest(target, "pgrep", "-x", "socat", check=False)[0] == 0,
                       20, "the target listens", 0.2)
            _, out, _ = self.script(source, "out", self.way, ADDRESSES[target], timeout=180)
        finally:
            receiver.join()
        if problem:
            raise Failed(f"{problem[0]}\n{self.log(target, 'restore.log')}")
        times = json.loads(out)
        times |= json.loads(self.cluster.shell(target, "cat /run/bench/in"))
        self.at = target
        whole = times["dump_ms"] + times["copy_ms"] + times["restore_ms"]
        return {"freeze_ms": whole, "total_ms": whole, "bytes": times["bytes"], "steps": times}

    def log(self, guest, name):
        return self.cluster.shell(guest, f"grep -h Error /dev/shm/bench/{name} | tail -5",
                                  check=False)

    def stop(self):
        for guest in ("g1", "g2"):
            self.script(guest, "clean", check=False)


class Podman(ByHand):
    IMAGE = """
    podman image exists localhost/bench-redis && exit 0
    rm -rf /root/image; mkdir -p /root/image/tmp /root/image/run
    cp --parents -L /usr/bin/redis-server $(ldd /usr/bin/redis-server | grep -o '/[^ ]*') /root/image
    tar -C /root/image -c . | podman import - localhost/bench-redis
    podman save -o /root/image.tar localhost/bench-redis
    rm -rf /root/image
    """
    LOAD = """
    podman image exists localhost/bench-redis && exit 0
    socat -u TCP-LISTEN:9001,reuseaddr - >/root/image.tar
    podman load -i /root/image.tar
    """

    def __init__(self, cluster):
        super().__init__(cluster, "podman")
        cluster.shell("g1", self.IMAGE, timeout=300)
        loading = threading.Thread(target=lambda: cluster.shell("g2", self.LOAD, timeout=300))
        loading.start()
        # Until the other guest listens; when it has the image already nobody ever does.
        cluster.shell("g1", "for i in $(seq 50); do socat -u OPEN:/root/image.tar "
                      f"TCP:{ADDRESSES['g2']}:9001 2>/dev/null && break; sleep 0.2; done",
                      timeout=120, check=False)
        loading.join()


class Drover:
    NAME = "cache"

    def __init__(self, cluster):
        self.cluster = cluster
        cluster.helpers()

    def start(self):
        self.cluster.define("h1", "g1", {
            "name": self.NAME, "automatic": False, "downtime_ms": 1000, "workload": {
                "kind": "managed", "address": f"{ADDRESS}/24",
                "exec": ["/usr/bin/redis-server", "--port", "6379", "--bind", "*",
                         "--protected-mode", "no", "--save", "", "--appendonly", "no"]}})
        self.cluster.drover("h1", "enable", "g1", self.NAME)

    def move(self):
        host, domain = self.cluster.place(self.NAME)
        to = "h2" if host == "h1" else "h1"
        def begun():
            # The peers' view of a host may be a moment old after a move: refused, then.
            code, out, err = self.cluster.drover(host, "migrate", domain, self.NAME, "--to",
                                                 f"{to}/g{to[1]}", check=False, timeout=300)
            if code not in (0, 4):
                raise Failed(f"{out}{err}")
            return code == 0
        wait_until(begun, 30, f"{self.NAME} moves from {host} to {to}")
        jobs = [j for j in self.cluster.drover_json(host, "jobs") if j["feature"] == self.NAME]
        job = max(jobs, key=lambda j: j["started_ms"])
        return {"freeze_ms": job["freeze_ms"], "total_ms": job["ended_ms"] - job["started_ms"],
                "bytes": job["bytes_sent"], "rounds": job["history"]}

    def stop(self):
        self.cluster.remove(self.NAME)


WAYS = {"vm": Vm, "criu": lambda c: ByHand(c, "criu"), "podman": Podman, "drover": Drover}


def fill(cluster, case):
    keys, size = CASES[case]
    # The way before had another MAC.
    cluster.exec("client", "ip", "neigh", "flush", "dev", "eth0")
    cluster.fill(f"{ADDRESS}:6379", keys, size, 300)


def bench(cluster, way, case, runs, result, report):
    """Runs of one way: there, back, there ..."""
    clients = []
    try:
        way.start()
        fill(cluster, case)
        light = cluster.client("redis", f"{ADDRESS}:6379", connections=1)
        clients.append(light)
        if case == "rewritten":
            clients.append(cluster.client("rewrite", f"{ADDRESS}:6379", connections=1, pause=0,
                                          first=1))
        time.sleep(4)
        spans = []
        for n in range(runs):
            begin = time.time() * 1000
            done = way.move()
            # What the network does after it belongs to it.
            time.sleep(3)
            spans.append((begin, time.time() * 1000))
            result["runs"].append(done)
            say(f"{case} {result['way']} {n + 1}/{runs}: frozen {done['freeze_ms']} ms, "
                f"{done['bytes'] / 1e6:.1f} MB, {done['total_ms']} ms in all")
            report.save()
        seen = [c.stop() for c in clients]
        clients = []
        for run, span in zip(result["runs"], spans):
            run["client_gap_ms"] = gap_within(seen[0]["gaps"], *span)
        for field in FIELDS:
            result[field] = median([r[field] for r in result["runs"]])
        result["client_errors"] = sum(s["errors"] + s["wrong"] + s["reconnects"] for s in seen)
        result["client_replies"] = sum(s["replies"] for s in seen)
        result["first_error"] = next((s["first_error"] for s in seen if s["first_error"]), None)
    finally:
        for c in clients:
            c.kill()
        way.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    parser.add_argument("--reuse", action="store_true", help="use the cluster that is up")
    args = parser.parse_args()
    cases, ways = args.cases.split(","), args.ways.split(",")
    if not (set(cases) <= set(CASES) and set(ways) <= set(WAYS)):
        sys.exit(f"bench: cases are {', '.join(CASES)}; ways are {', '.join(WAYS)}")
    cluster = Bench("bench", extra_toml=TUNING)
    report = Report(OUT / "move.json", {"runs": args.runs, "cases": {}})
    bad = False
    try:
        cluster.begin(args.reuse)
        for case in cases:
            report.data["cases"][case] = {}
            for name in ways:
                say(f"{case}: {name}", "#")
                result = {"way": name, **dict.fromkeys(FIELDS), "runs": []}
                report.data["cases"][case][name] = result
                try:
                    bench(cluster, WAYS[name](cluster), case, args.runs, result, report)
                except Failed as e:
                    bad = True
                    result["failed"] = str(e)
                    say(f"{case} {name}: {e}", "!")
                report.save()
    finally:
        if not args.keep:
            cluster.down()
    summary(report.data["cases"])
    if bad:
        sys.exit("bench: not every way moved the redis; target/bench/move.json names why")


def summary(cases):
    say(f"{'case':10} {'way':8} {'gap ms':>9} {'freeze ms':>10} {'MB':>8} {'total ms':>9}", "#")
    for case, ways in cases.items():
        for name, r in ways.items():
            if r["bytes"] is None:
                say(f"{case:10} {name:8} failed")
                continue
            say(f"{case:10} {name:8} {r['client_gap_ms']:>9} {r['freeze_ms']:>10} "
                f"{r['bytes'] / 1e6:>8.1f} {r['total_ms']:>9}  errors {r['client_errors']}")
        drover = ways.get("drover")
        for name in ("vm", "criu", "podman"):
            r = ways.get(name)
            if drover and r and drover["bytes"] and r["bytes"] and r["client_gap_ms"]:
                ratios = [f"{field} {drover[field] / r[field]:.2f}"
                          for field in ("client_gap_ms", "bytes", "total_ms")]
                say(f"{case:10} drover / {name}: {', '.join(ratios)}")
    say("report: target/bench/move.json")


if __name__ == "__main__":
    main()
