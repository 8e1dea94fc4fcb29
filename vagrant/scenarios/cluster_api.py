"""What scenarios and cluster tests share: the cluster's commands, `drover` on its hosts."""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Namespaces of this machine, or Vagrant's machines: the same commands, the same scenarios.
BACKENDS = {"namespaces": ROOT / "vagrant" / "cluster", "vagrant": ROOT / "vagrant" / "machines"}
BACKEND = os.environ.get("DROVER_BACKEND", "namespaces")
if BACKEND not in BACKENDS:
    raise SystemExit(f"DROVER_BACKEND={BACKEND}: it is {' or '.join(BACKENDS)}")
CLUSTER = BACKENDS[BACKEND]
# Of the newest build, whatever its profile.
TOOLS = max((ROOT / "target" / "x86_64-unknown-linux-gnu").glob("*/drover-counter"),
            key=lambda p: p.stat().st_mtime,
            default=ROOT / "target" / "x86_64-unknown-linux-gnu" / "release" / "drover-counter").parent


class Failed(Exception):
    """A command failed; its output is in the message."""


def run(*args, check=True, timeout=120, env=None, stdin=None):
    """Runs a command; returns (exit code, stdout, stderr)."""
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, timeout=timeout,
                          env=env, input=stdin)
    if check and done.returncode != 0:
        raise Failed(f"{' '.join(str(a) for a in args)}: exit code {done.returncode}\n"
                     f"{done.stdout}{done.stderr}")
    return done.returncode, done.stdout, done.stderr


class Cluster:
    """A namespace cluster, named so that it meets no other."""

    def __init__(self, name, hosts=3, extra_toml=None):
        self.name, self.hosts, self.extra_toml = name, hosts, extra_toml
        stage = os.environ.get("DROVER_STAGE", str(ROOT / "target" / "stage"))
        self.env = dict(os.environ, DROVER_CLUSTER=name, DROVER_STAGE=stage)

    def call(self, *args, **kw):
        return run(CLUSTER, *args, env=self.env, **kw)

    def up(self):
        if self.extra_toml:
            path = ROOT / "target" / f"{self.name}.toml"
            path.write_text(self.extra_toml)
            self.env["DROVER_EXTRA_TOML"] = str(path)
        self.call("up", "--hosts", str(self.hosts), timeout=900)

    def down(self):
        self.call("down", timeout=120)

    def exec(self, host, *args, **kw):
        return self.call("exec", host, *args, **kw)

    def guest(self, guest, *args, timeout=60, **kw):
        return self.call("guest-exec", "--timeout", str(timeout), guest, *args,
                         timeout=timeout + 30, **kw)

    def push(self, guest, local, remote, mode="0755"):
        self.call("guest-push", guest, str(local), remote, mode)

    def drover(self, host, *args, check=True, timeout=120):
        """`drover ARGS` on a host; its text."""
        code, out, err = self.exec(host, "drover", *args, check=check, timeout=timeout)
        return out if check else (code, out, err)

    def drover_json(self, host, *args, timeout=120):
        return json.loads(self.drover(host, "--format", "json", *args, timeout=timeout))

    def popen(self, where, *args, **kw):
        """A process in a host's or the client's namespaces."""
        return subprocess.Popen([str(CLUSTER), "exec", where, *[str(a) for a in args]],
                                env=self.env, text=True, **kw)

    def prepare(self, n):
        """Helper and load program in a guest."""
        self.drover(f"h{n}", "guest", "install", f"g{n}", timeout=300)
        self.push(f"g{n}", TOOLS / "drover-load", "/usr/local/bin/drover-load")

    def prepare_all(self):
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(self.prepare, range(1, self.hosts + 1)))

    def fill(self, address, keys=20_000, size=1000, timeout=60):
        """Fills the redis at an address, as soon as it answers."""
        wait_until(lambda: self.exec("client", TOOLS / "drover-counter", "fill", address, "--keys", str(keys),
                                     "--bytes", str(size), check=False, timeout=timeout)[0] == 0,
                   timeout, f"redis at {address} answers")

    def define(self, host, domain, spec):
        """Registers a feature given as a dict, from a file on the host."""
        path = f"/tmp/{spec['name']}.json"
        self.exec(host, "tee", path, stdin=json.dumps(spec))
        self.drover(host, "define", path, "--domain", domain)

    def hosts_of(self, feature):
        """Hosts whose droverd lists the feature, with its domain and status."""
        found = []
        for n in range(1, self.hosts + 1):
            for row in self.drover_json(f"h{n}", "list"):
                if row["spec"]["name"] == feature:
                    found.append((f"h{n}", row["domain"], row["status"]))
        return found

    def processes(self, guest, pattern):
        """Processes of a guest whose command line matches, by pgrep."""
        code, out, _ = self.guest(guest, "pgrep", "-f", pattern, check=False)
        return out.split() if code == 0 else []


class Events:
    """`drover event --format json` on one host, collected by a thread."""

    def __init__(self, cluster, host, show=None):
        self.seen, self.show = [], show
        self.cluster, self.host = cluster, host
        self.process = cluster.popen(host, "drover", "--format", "json", "event",
                                     stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if event["event"] == "move_ended":
                # The signal names the result; the job has everything.
                job = self.cluster.drover_json(self.host, "jobinfo", event["id"])
                event = dict(event, event="move", job=job)
            self.seen.append(event)
            if self.show:
                self.show(event)

    def wait(self, want, timeout, what):
        """The first event for which `want` is true, from the beginning."""
        end = time.monotonic() + timeout
        at = 0
        while time.monotonic() < end:
            while at < len(self.seen):
                if want(self.seen[at]):
                    return self.seen[at]
                at += 1
            time.sleep(0.1)
        raise Failed(f"no event within {timeout} s: {what}")

    def stop(self):
        self.process.terminate()
        self.process.wait()


class Client:
    """drover-counter in the client's network namespace."""

    def __init__(self, cluster, mode, address, *args):
        self.out = ROOT / "target" / f"{cluster.name}-{mode}.json"
        self.out.unlink(missing_ok=True)
        # The client lives outside the hosts: same file system, other network.
        self.process = cluster.popen("client", TOOLS / "drover-counter", mode, address, "--out",
                                     self.out, *args, stdout=subprocess.DEVNULL)

    def stop(self):
        """Ends it and gives its report."""
        self.process.terminate()
        self.process.wait(timeout=90)
        return json.loads(self.out.read_text())


def wait_until(test, timeout, what, pause=0.5):
    """Waits until `test()` is true; gives its value."""
    end = time.monotonic() + timeout
    while True:
        value = test()
        if value:
            return value
        if time.monotonic() > end:
            raise Failed(f"not within {timeout} s: {what}")
        time.sleep(pause)


def redis(name, address, **more):
    """A redis feature that keeps its data in memory."""
    workload = {
        "kind": "managed",
        "exec": ["/usr/bin/redis-server", "--port", "6379", "--bind", "*", "--protected-mode", "no",
                 "--save", "", "--appendonly", "no"],
        "address": f"{address}/24",
    }
    workload.update(more.pop("workload", {}))
    return {"name": name, "workload": workload, **more}


def load_feature(name, address, quota, *args):
    """A feature of known load: drover-load in the guest."""
    return {"name": name, "automatic": False, "workload": {
        "kind": "managed", "exec": ["/usr/local/bin/drover-load", *args],
        "address": f"{address}/24", "cpu_quota_percent": quota}}


START = time.monotonic()


def say(text, mark=" "):
    """A line of a scenario, with the time since its start."""
    line = f"{time.monotonic() - START:6.1f}s {mark} {text}"
    print(f"\033[1m{line}\033[0m" if mark == "#" and sys.stdout.isatty() else line, flush=True)


def option(name, default):
    """A number given as `--name N`."""
    return int(sys.argv[sys.argv.index(name) + 1]) if name in sys.argv else default


class Scenario:
    """A cluster with helpers in its guests, and a report."""

    def __init__(self, name, hosts=3, extra_toml=None):
        self.name, self.report, self.clients = name, {"backend": BACKEND}, []
        self.cluster = Cluster(os.environ.get("DROVER_CLUSTER", name), hosts, extra_toml)
        self.out = ROOT / "target" / name / "report.json"

    def client(self, client):
        self.clients.append(client)
        return client

    def begin(self):
        say(f"{self.cluster.hosts} hosts ({BACKEND}), each with libvirtd, droverd and a guest", "#")
        self.cluster.down()
        self.cluster.up()
        self.cluster.prepare_all()


def main(scenario, play):
    """Runs a scenario; its exit code."""
    scenario.out.parent.mkdir(parents=True, exist_ok=True)
    scenario.out.unlink(missing_ok=True)
    try:
        scenario.begin()
        play(scenario)
        say("all as it must be", "#")
        return 0
    except Failed as e:
        print(f"{scenario.name}: {e}", file=sys.stderr)
        return 1
    finally:
        scenario.out.write_text(json.dumps(scenario.report, indent=2) + "\n")
        say(f"report: {scenario.out.relative_to(ROOT)}")
        for client in scenario.clients:
            if client.process.poll() is None:
                client.process.terminate()
        if "--keep" in sys.argv:
            say("the cluster stays up")
        else:
            scenario.cluster.down()
