"""A real podman in a guest: a container, a container's cgroup by path, and a slice, against known
loads."""

import subprocess

from cluster_api import ROOT
from shared import CLUSTER
from test_metering import Metered

GUEST = "g3"
CLIENT = "10.88.0.9"
PORT = 8099

FETCH = r"""
exec 3<>/dev/tcp/%s/%d
printf 'GET /podman.tar HTTP/1.0\r\n\r\n' >&3
mkdir -p /root/podman && cd /root/podman
while IFS= read -r line <&3; do [ "$line" = $'\r' ] && break; done
tar -x <&3
export DEBIAN_FRONTEND=noninteractive
dpkg -i --force-unsafe-io *.deb >/root/podman/log 2>&1 || { tail -20 /root/podman/log >&2; exit 1; }
rm -f *.deb
""" % (CLIENT, PORT)

# An image of the load program alone: nothing is fetched from a registry.
IMAGE = """
rm -rf /root/image; mkdir -p /root/image/tmp /root/image/usr/local/bin
cp /usr/local/bin/drover-load /root/image/usr/local/bin
tar -C /root/image -c . | podman import -q - localhost/load
"""


def install():
    """podman in the guest, with the image, unless they are there."""
    if CLUSTER.guest(GUEST, "sh", "-c", "podman image exists localhost/load", check=False)[0] == 0:
        return
    _, status, _ = CLUSTER.guest(GUEST, "cat", "/var/lib/dpkg/status")
    path = ROOT / "target" / "podman"
    path.mkdir(parents=True, exist_ok=True)
    (path / "status").write_text(status)
    done = subprocess.run([ROOT / "vagrant" / "provision" / "podman.sh", path, path / "status"],
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    server = CLUSTER.popen("client", "python3", "-m", "http.server", "-d", path, PORT,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        CLUSTER.guest(GUEST, "bash", "-c", f"for i in $(seq 50); do (: </dev/tcp/{CLIENT}/{PORT}) "
                      "2>/dev/null && break; sleep 0.2; done; set -e" + FETCH, timeout=500)
    finally:
        server.kill()
        server.wait()
    CLUSTER.guest(GUEST, "sh", "-ec", IMAGE, timeout=240)


class Containers(Metered):
    HOST, GUEST = "h3", GUEST

    def setUp(self):
        install()

    def register(self, name, workload):
        CLUSTER.define(self.HOST, GUEST, {"name": name, "workload": workload})
        self.addCleanup(self.remove, name)
        CLUSTER.drover(self.HOST, "enable", GUEST, name)

    def run_container(self, name, *args, options=(), network="none"):
        CLUSTER.guest(GUEST, "podman", "rm", "-f", "-t", "0", name, check=False)
        self.addCleanup(CLUSTER.guest, GUEST, "podman", "rm", "-f", "-t", "0", name, timeout=120)
        CLUSTER.guest(GUEST, "podman", "run", "-d", "--name", name, "--log-driver", "none",
                      "--network", network, *options, "localhost/load",
                      "/usr/local/bin/drover-load", *args, timeout=180)

    def test_a_container_by_name(self):
        """CPU at its limit; a stranger of the same kind beside it does not count."""
        self.run_container("other", "cpu", options=("--cpus", "0.1"))
        self.run_container("web", "cpu", options=("--cpus", "0.2"))
        self.register("web", {"kind": "container", "container": "web"})
        self.assertAlmostEqual(self.mean("web", "cpu"), 20, delta=2)
        row = next(r for r in CLUSTER.drover_json(self.HOST, "list") if r["spec"]["name"] == "web")
        self.assertEqual(row["usage"]["processes"], 1)
        # The name goes to a new container: it is found again, and no spike tells of it.
        self.run_container("web", "cpu", options=("--cpus", "0.3"))
        seen = len(self.points("web"))
        self.assertAlmostEqual(self.mean("web", "cpu", skip=seen + 3), 30, delta=3)
        self.assertLess(max(p["cpu"] or 0 for p in self.points("web")), 60)

    def test_memory_of_a_container(self):
        self.run_container("small", "mem", "1")
        self.run_container("large", "mem", "65")
        for name in ("small", "large"):
            self.register(name, {"kind": "container", "container": name})
        difference = self.mean("large", "memory", 6) - self.mean("small", "memory", 6)
        self.assertAlmostEqual(difference, 64, delta=64 * 0.05)

    def test_storage_of_a_container(self):
        """Also by the beginning of its identifier instead of its name."""
        CLUSTER.guest(GUEST, "mkdir", "-p", "/var/tmp/load")
        self.addCleanup(CLUSTER.guest, GUEST, "rm", "-rf", "/var/tmp/load")
        self.run_container("writer", "write", "5", "/data/load.bin",
                           options=("-v", "/var/tmp/load:/data"))
        _, ident, _ = CLUSTER.guest(GUEST, "podman", "inspect", "--format", "{{.Id}}", "writer",
                                    timeout=120)
        self.register("writer", {"kind": "container", "container": ident.strip()[:12]})
        self.assertAlmostEqual(self.mean("writer", "disk_write", skip=4) / 1048576, 5, delta=0.5)

    def test_network_of_a_container(self):
        """A known rate of bytes leaves by an interface of the container's own."""
        CLUSTER.guest(GUEST, "sh", "-ec", """
            ip netns add pod; ip link add pod0 link eth0 type macvlan mode bridge
            ip link set pod0 netns pod name eth0
            ip -n pod addr add 10.88.0.245/24 dev eth0; ip -n pod link set eth0 up""")
        self.addCleanup(CLUSTER.guest, GUEST, "ip", "netns", "del", "pod")
        rate, size = 200, 1_000
        sink = CLUSTER.popen("client", "python3", "-c",
                             "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
                             "s.bind(('', 9998))\nwhile True: s.recv(2048)")
        self.addCleanup(sink.wait)
        self.addCleanup(sink.kill)
        # It is registered before it is there.
        self.register("sender", {"kind": "container", "container": "sender"})
        self.run_container("sender", "udp-send", f"{CLIENT}:9998", str(size), "1000000000", str(rate),
                           network="ns:/run/netns/pod")
        want = rate * (size + 42)
        self.assertAlmostEqual(self.mean("sender", "net_tx", skip=4), want, delta=want * 0.02)

    def test_a_container_of_docker_kind_by_cgroup(self):
        """docker's engine puts a container into system.slice/docker-ID.scope."""
        ident = "ab12" * 16
        scope = f"docker-{ident}.scope"
        CLUSTER.guest(GUEST, "systemd-run", "--scope", "--unit", scope, "--slice", "system.slice",
                      "-p", "CPUQuota=15%", "sh", "-c",
                      "setsid /usr/local/bin/drover-load cpu >/dev/null 2>&1 </dev/null & sleep 1")
        self.addCleanup(CLUSTER.guest, GUEST, "systemctl", "stop", scope)
        self.register("by-path", {"kind": "cgroup", "cgroup": f"/system.slice/{scope}"})
        self.register("by-id", {"kind": "container", "container": ident[:12]})
        self.assertAlmostEqual(self.mean("by-path", "cpu"), 15, delta=2)
        self.assertAlmostEqual(self.mean("by-id", "cpu"), 15, delta=2)

    def test_a_slice(self):
        """All that is in it, below its own limit."""
        for n in (1, 2):
            CLUSTER.guest(GUEST, "systemd-run", "--unit", f"part{n}", "--slice", "batch-night.slice",
                          "-p", "CPUQuota=10%", "/usr/local/bin/drover-load", "cpu")
            self.addCleanup(CLUSTER.guest, GUEST, "systemctl", "stop", f"part{n}.service")
        self.register("night", {"kind": "unit", "unit": "batch-night.slice"})
        self.assertAlmostEqual(self.mean("night", "cpu"), 20, delta=2)
        row = next(r for r in CLUSTER.drover_json(self.HOST, "list")
                   if r["spec"]["name"] == "night")
        self.assertEqual(row["usage"]["processes"], 2)
