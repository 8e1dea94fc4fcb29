"""A cluster of libvirt hosts in namespaces of one machine: its state on disk,
its hosts and network, and how to take all of it away again."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

import ns

LIB = os.path.dirname(os.path.realpath(__file__))
VAGRANT = os.path.dirname(LIB)
RUN = "/run/drover-cluster"
VAR = "/var/lib/drover-cluster"
PYTHON = "/usr/bin/python3"


class Error(Exception):
    """A sentence for whoever typed the command."""


def run(argv, **kwargs):
    """Runs a command that dies with us; its output only if it fails."""
    kwargs.setdefault("timeout", 120)
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True,
                              preexec_fn=ns.die_with_parent, **kwargs)
    except FileNotFoundError:
        raise Error(f"{argv[0]} is not installed; run vagrant/provision/packages.sh --cluster")
    except subprocess.TimeoutExpired as err:
        raise Error(f"{' '.join(argv)}: no end after {err.timeout} s\n{err.output or ''}")
    if done.returncode:
        raise Error(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}")
    return done.stdout


def ip(*args):
    run(["ip", *args])


class Cluster:
    # name -> (command, log, how to see that it answers)
    SERVICES = {
        "dbus": (["dbus-daemon", "--system", "--nofork", "--nopidfile"],
                 "/var/log/dbus.log", "/run/dbus/system_bus_socket"),
        "virtlogd": (["virtlogd"], "/var/log/libvirt/virtlogd.log",
                     "/run/libvirt/virtlogd-sock"),
        "libvirtd": (["libvirtd", "--listen"], "/var/log/libvirt/libvirtd.log",
                     "/run/libvirt/libvirt-sock"),
        # Instead of libvirtd, where they are installed: tests/virtqemud.
        "virtqemud": (["virtqemud"], "/var/log/libvirt/virtqemud.log",
                      "/run/libvirt/virtqemud-sock"),
        "virtproxyd": (["virtproxyd"], "/var/log/libvirt/virtproxyd.log",
                       "/run/libvirt/libvirt-sock"),
        "droverd": (["/usr/sbin/droverd", "--config", "/etc/drover/drover.toml"],
                    "/var/log/drover/droverd.log", None),
    }

    def __init__(self, name):
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,15}", name):
            raise Error(f"DROVER_CLUSTER={name}: use up to 16 lower case letters, digits and -")
        self.name = name
        self.run_dir = f"{RUN}/{name}"
        self.var_dir = f"{VAR}/{name}"
        self.cache = os.path.realpath(os.environ.get("DROVER_CACHE", "/var/cache/drover"))
        self.state = {}
        self._writing = threading.Lock()
        try:
            with open(f"{self.run_dir}/state.json") as f:
                self.state = json.load(f)
        except FileNotFoundError:
            pass

    # -- state ---------------------------------------------------------------

    def save(self):
        """Writes the state, whole or not at all. Hosts start at the same time,
        so changes from their threads go through `record_host`."""
        os.makedirs(self.run_dir, exist_ok=True)
        with open(f"{self.run_dir}/state.new", "w") as f:
            json.dump(self.state, f, indent=1)
        os.rename(f"{self.run_dir}/state.new", f"{self.run_dir}/state.json")

    def record_host(self, name, host):
        with self._writing:
            self.state["hosts"][name] = host
            self.save()

    def lock(self):
        """One `up` or `down` at a time. An abstract socket leaves no file and
        is released however its owner ends."""
        self._lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        for _ in range(50):
            try:
                self._lock.bind(f"\0drover-cluster-{self.name}")
                return
            except OSError:
                time.sleep(0.1)
        raise Error(f"another up or down of cluster {self.name} is running")

    def exists(self):
        return bool(self.state) or os.path.isdir(self.run_dir) or \
            os.path.isdir(self.var_dir) or bool(self.netns_paths())

    def netns(self, part):
        return f"dc-{self.name}.{part}"

    def netns_paths(self):
        try:
            names = os.listdir("/run/netns")
        except FileNotFoundError:
            return []
        return [f"/run/netns/{n}" for n in names if n.startswith(f"dc-{self.name}.")]

    def hosts(self):
        return dict(sorted(self.state.get("hosts", {}).items()))

    def host(self, name):
        if name not in self.hosts():
            raise Error(f"no host {name} in cluster {self.name}" if self.state else
                        f"cluster {self.name} is not up")
        return self.hosts()[name]

    def host_pid(self, name):
        host = self.host(name)
        if not ns.alive(host["pid"], host["start"]):
            raise Error(f"host {name} is dead; run: cluster down")
        return host["pid"]

    def guests(self):
        return self.state.get("guests", {})

    def guest(self, name):
        if name not in self.guests():
            raise Error(f"no guest {name} in cluster {self.name}" if self.state else
                        f"cluster {self.name} is not up")
        return self.guests()[name]

    # -- running things in hosts ------------------------------------------------

    def enter_argv(self, where, command, daemon=None):
        enter = [PYTHON, "-IS", f"{LIB}/enter.py"]
        if where in ("client", "fabric"):
            if not self.state:
                raise Error(f"cluster {self.name} is not up")
            return [*enter, "--net", f"/run/netns/{self.netns(where)}", "--", *command]
        extra = ["--daemon", *daemon] if daemon else []
        return [*enter, "--pid", str(self.host_pid(where)), *extra, "--", *command]

    def in_host(self, name, command, daemon=None, **kwargs):
        return run(self.enter_argv(name, command, daemon), **kwargs)

    def path(self, host, path):
        """A host's file as a path of this machine."""
        return f"/proc/{self.host_pid(host)}/root{path}"

    # -- network and hosts ----------------------------------------------------

    def make_network(self, names):
        fabric, client = self.netns("fabric"), self.netns("client")
        for part in ("fabric", "client", *names):
            ip("netns", "add", self.netns(part))
            ip("-n", self.netns(part), "link", "set", "lo", "up")
        ip("-n", fabric, "link", "add", "fabric", "type", "bridge")
        ip("-n", fabric, "link", "set", "fabric", "up")
        for part in ("client", *names):
            ip("-n", fabric, "link", "add", part, "type", "veth",
               "peer", "name", "eth0", "netns", self.netns(part))
            ip("-n", fabric, "link", "set", part, "master", "fabric", "up")
            ip("-n", self.netns(part), "link", "set", "eth0", "up")
        ip("-n", client, "addr", "add", "10.88.0.9/24", "dev", "eth0")
        for number, part in enumerate(names, 1):
            netns = self.netns(part)
            ip("-n", netns, "link", "add", "br0", "type", "bridge")
            ip("-n", netns, "link", "set", "eth0", "master", "br0")
            ip("-n", netns, "addr", "add", f"10.88.0.{10 + number}/24", "dev", "br0")
            ip("-n", netns, "link", "set", "br0", "up")

    def link(self, host, state):
        self.host(host)
        ip("-n", self.netns("fabric"), "link", "set", host, state)

    def make_host(self, name, address, peers):
        os.makedirs(f"{self.var_dir}/{name}", exist_ok=True)
        init = subprocess.Popen(
            [PYTHON, "-IS", f"{LIB}/host_init.py", f"/run/netns/{self.netns(name)}",
             name, self.var_dir, self.cache, VAGRANT],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, cwd="/")
        try:
            pid = int(init.stdout.readline())
        except ValueError:
            raise Error(f"host {name} did not start")
        self.record_host(name, {"pid": pid, "start": ns.start_time(pid),
                                "address": address})
        answer = init.stdout.readline().strip()
        init.wait()
        if answer != "ready":
            raise Error(answer or f"host {name} died while starting")
        self.put(name, f"{self.run_dir}/pki/{name}", "/tmp/pki")
        env = self.host_env(name, peers)
        self.in_host(name, ["/vagrant/provision/host.sh", "base"], env=env)
        self.in_host(name, ["/vagrant/provision/host.sh", "pki", "/tmp/pki"], env=env)
        self.in_host(name, ["rm", "-rf", "/tmp/pki"])
        for service in ("dbus", "virtlogd", "libvirtd"):
            self.start(name, service)

    def host_env(self, name, peers=None):
        def setting(key, default):
            return os.environ.get(f"{key}_{name}", os.environ.get(key, default))

        peers = peers or {n: h["address"] for n, h in self.hosts().items()}
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root",
            "HOST_NAME": name, "HOST_IP": peers[name],
            "HOST_PEERS": " ".join(f"{n}={a}" for n, a in peers.items()),
            "HOST_CPUS": setting("DROVER_HOST_CPUS", "1.0"),
            "HOST_MEMORY": setting("DROVER_HOST_MEMORY", "1024"),
            "HOST_LOAD_SOURCE": "domains", "HOST_CGROUP_CONTROLLERS": "[]",
        }

    def put(self, host, source, target):
        """Copies a file or tree of this machine into a host."""
        if not os.path.exists(source):
            raise Error(f"{source} does not exist")
        run(["cp", "-a", "--no-preserve=ownership", source, self.path(host, target)])

    def install(self, host, stage, keep_config=False):
        stage = os.path.realpath(stage)
        self.in_host(host, ["rm", "-rf", "/tmp/stage"])
        self.put(host, stage, "/tmp/stage")
        env = self.host_env(host)
        extra = os.environ.get("DROVER_EXTRA_TOML")
        if extra:
            self.put(host, os.path.realpath(extra), "/tmp/extra.toml")
            env["HOST_EXTRA_TOML"] = "/tmp/extra.toml"
        if keep_config:
            env["HOST_KEEP_CONFIG"] = "1"
        self.in_host(host, ["/vagrant/provision/host.sh", "drover", "/tmp/stage"], env=env)
        self.in_host(host, ["rm", "-rf", "/tmp/stage"])

    # -- services of a host -----------------------------------------------------

    def service_pid(self, host, service):
        """(pid, start) of a service as seen from this machine, or None."""
        try:
            with open(self.path(host, f"/run/{service}.cluster-pid")) as f:
                inside, began = f.read().split()
        except (FileNotFoundError, ValueError):
            return None
        for pid, start in ns.in_netns([f"/run/netns/{self.netns(host)}"]):
            if str(start) != began:
                continue
            try:
                with open(f"/proc/{pid}/status") as f:
                    nspid = re.search(r"^NSpid:\s*(.*)$", f.read(), re.M).group(1).split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if len(nspid) > 1 and nspid[-1] == inside:
                return pid, start
        return None

    def start(self, host, service):
        command, logfile, sock = self.SERVICES[service]
        if self.service_pid(host, service):
            raise Error(f"{service} is already running on {host}")
        if service == "droverd" and not os.path.exists(self.path(host, command[0])):
            raise Error(f"drover is not installed on {host}; set DROVER_STAGE for `up` or `install`")
        if sock and os.path.lexists(self.path(host, sock)):
            os.unlink(self.path(host, sock))
        env = {k: v for k, v in os.environ.items() if k.startswith(("RUST_", "DROVER_"))}
        env.update(PATH="/usr/sbin:/usr/bin:/sbin:/bin", LANG="C.UTF-8", HOME="/root")
        self.in_host(host, command, env=env,
                     daemon=(logfile, f"/run/{service}.cluster-pid"))
        begin = time.monotonic()
        while not self.answers(host, service, sock):
            waited = time.monotonic() - begin
            running = self.service_pid(host, service)
            if service == "droverd" and running and waited > 20:
                log(f"droverd runs on {host} but has not taken its bus name in 20 s")
                return
            if waited > 30 or (waited > 1 and not running):
                raise Error(f"{service} does not answer on {host}; its log ends:\n"
                            + self.log_tail(host, service))
            time.sleep(0.1 if sock else 0.3)

    def answers(self, host, service, sock):
        if sock:
            try:
                with socket.socket(socket.AF_UNIX) as s:
                    s.connect(self.path(host, sock))
                return True
            except OSError:
                return False
        out = self.in_host(host, [
            "dbus-send", "--system", "--print-reply=literal", "--dest=org.freedesktop.DBus",
            "/", "org.freedesktop.DBus.NameHasOwner", "string:org.drover1"])
        return "true" in out

    def stop(self, host, service, sig, timeout=20):
        proc = self.service_pid(host, service)
        if not proc:
            return False
        ns.kill(*proc, sig)
        if ns.wait_gone([proc], timeout):
            raise Error(f"{service} on {host} did not end within {timeout} s")
        return True

    def log_tail(self, host, service, lines=20):
        try:
            with open(self.path(host, self.SERVICES[service][1]), errors="replace") as f:
                return "".join(f.readlines()[-lines:])
        except FileNotFoundError:
            return "(no log)\n"

    def collect(self, directory):
        """Copies all logs of all hosts, for a look at them after `down`."""
        for host in self.hosts():
            target = f"{directory}/{host}"
            os.makedirs(target, exist_ok=True)
            for path in ("/var/log/drover", "/var/log/libvirt", "/var/log/dbus.log",
                         "/etc/drover/drover.toml"):
                source = self.path(host, path)
                if os.path.exists(source):
                    run(["cp", "-rT", "--no-preserve=ownership", source,
                         f"{target}/{os.path.basename(path)}"])

    # -- taking it away -----------------------------------------------------------

    def down(self):
        """Removes everything that carries the cluster's name, whether or not
        there is a record of it. May be called at any time, any number of times."""
        up = self.state.get("up")
        if up:
            ns.kill(*up)
            ns.wait_gone([tuple(up)])
        # Process 1 of a host takes the whole host with it.
        inits = [(h["pid"], h["start"]) for h in self.hosts().values()]
        for proc in inits:
            ns.kill(*proc)
        left = ns.wait_gone(inits)
        # Whatever was started but not recorded is in one of our namespaces.
        paths = self.netns_paths()
        for _ in range(20):
            procs = ns.in_netns(paths) if paths else []
            if not procs:
                break
            for proc in procs:
                ns.kill(*proc)
            left = ns.wait_gone(procs, 2)
        if left:
            raise Error(f"processes that do not end: {[p for p, _ in left]}")
        for path in paths:
            ip("netns", "del", os.path.basename(path))
        for directory in (self.var_dir, self.run_dir):
            for attempt in range(10):
                shutil.rmtree(directory, ignore_errors=attempt < 9)
                if not os.path.exists(directory):
                    break
                time.sleep(0.1)
        for directory in (VAR, RUN):
            try:
                os.rmdir(directory)
            except OSError:
                pass
        self.state = {}


def log(text):
    print(text, file=sys.stderr, flush=True)
