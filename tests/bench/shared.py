"""What the benches share: their cluster, clients outside, reports that are whole at any time."""

import concurrent.futures
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "vagrant" / "scenarios"))

from cluster_api import ROOT, TOOLS, Cluster, Failed, run, wait_until  # noqa: E402, F401

OUT = ROOT / "target" / "bench"
# What the workloads and the other ways of moving need in the guests, as an image of its own beside
# the one that the tests use.
PACKAGES = ("memcached nginx-light postgresql nodejs python3 podman crun libcriu2 iputils-arping socat")
BEGIN = time.monotonic()


def say(text, mark=" "):
    print(f"{time.monotonic() - BEGIN:7.1f}s {mark} {text}", flush=True)


class Report:
    """A JSON file that is written anew with every result, so that a run cut short leaves what it
    had."""

    def __init__(self, path, first):
        self.path, self.data = path, first
        self.save()

    def save(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.data, indent=2) + "\n")
        part.rename(self.path)


class Bench(Cluster):
    """A cluster whose guests have the benches' packages."""

    def __init__(self, name, hosts=2, extra_toml=None):
        super().__init__(os.environ.get("DROVER_CLUSTER", name), hosts, extra_toml)
        self.env["DROVER_GUEST_EXTRA"] = PACKAGES

    def is_up(self):
        code, out, _ = self.call("status", check=False)
        return code == 0 and "dead" not in out and "up:" not in out

    def begin(self, reuse=False):
        """A cluster with helpers in its guests; the one that is up already with `reuse`."""
        if reuse and self.is_up():
            say(f"cluster {self.name} is up; it is used as it is", "#")
            return
        self.down()
        say("hosts with libvirtd and droverd, guests from the benches' image (its first build takes "
            "minutes)", "#")
        self.up()

    def helpers(self):
        numbers = range(1, self.hosts + 1)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(lambda n: self.drover(f"h{n}", "guest", "install", f"g{n}", timeout=180),
                          numbers))

    def shell(self, guest, script, timeout=60, check=True):
        """A shell script in a guest; its output."""
        code, out, err = self.guest(guest, "sh", "-ec", script, timeout=timeout, check=False)
        if check and code:
            raise Failed(f"{guest}: exit code {code} of: {script}\n{out}{err}")
        return out

    def machine(self, *args):
        """A command outside of the cluster."""
        run(*args)

    def client(self, protocol, address, **options):
        return BenchClient(self, protocol, address, **options)

    def place(self, feature):
        """(host, domain) of a feature that runs at exactly one place."""
        found = self.hosts_of(feature)
        if len(found) != 1:
            raise Failed(f"feature {feature} is at {found}")
        return found[0][:2]

    def remove(self, feature):
        for host, domain, _ in self.hosts_of(feature):
            self.drover(host, "disable", domain, feature, check=False)
            self.drover(host, "undefine", domain, feature, check=False)


class BenchClient:
    """client.py in the client's network."""

    def __init__(self, cluster, protocol, address, connections=4, pause=5, first=0):
        self.out = ROOT / "target" / f"{cluster.name}-{protocol}-{first}.json"
        self.out.unlink(missing_ok=True)
        self.process = cluster.popen("client", "python3", HERE / "client.py", protocol, address,
                                     "--out", self.out, "--connections", connections,
                                     "--pause", pause, "--first", first, stdout=subprocess.DEVNULL)

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=120)
        return json.loads(self.out.read_text())

    def kill(self):
        self.process.kill()
        self.process.wait()


def gap_within(gaps, begin_ms, end_ms):
    """The longest silence that touches a span of time, in ms; 0 when there was none."""
    return max((length for at, length in gaps if at + length >= begin_ms and at <= end_ms),
               default=0.0)


def median(values):
    values = [v for v in values if v is not None]
    return round(statistics.median(values), 1) if values else None
