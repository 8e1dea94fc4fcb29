"""Makes a host slow on purpose: its guests' CPU, their disks, its network.

Hosts of this cluster share one machine, so without this they are all alike.
"""

import glob
import os

import guests
import ns
from cluster import Error, run


def group(cluster, host):
    """The control group of a host's guests, in whichever hierarchy has cpu."""
    name = f"drover-cluster.{cluster.name}.{host}"
    if os.path.exists("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"):
        return f"/sys/fs/cgroup/cpu/{name}"
    return f"/sys/fs/cgroup/{name}"


def qemus(cluster, host):
    for pid, _ in ns.in_netns([f"/run/netns/{cluster.netns(host)}"]):
        try:
            if os.readlink(f"/proc/{pid}/exe").rsplit("/", 1)[1].startswith("qemu-system"):
                yield pid
        except OSError:
            continue


def cpu(cluster, host, share):
    """All guests of the host together get this many CPUs; 0: no limit."""
    path = group(cluster, host)
    if share == 0:
        release(path)
        return
    try:
        os.makedirs(path, exist_ok=True)
        quota = max(1000, int(share * 100000))
        if os.path.exists(f"{path}/cpu.cfs_quota_us"):
            write(f"{path}/cpu.cfs_period_us", "100000")
            write(f"{path}/cpu.cfs_quota_us", str(quota))
        else:
            write("/sys/fs/cgroup/cgroup.subtree_control", "+cpu")
            write(f"{path}/cpu.max", f"{quota} 100000")
        for pid in qemus(cluster, host):
            write(f"{path}/cgroup.procs", str(pid))
    except OSError as err:
        raise Error(f"no control group to limit the CPU with: {err}")


def write(path, text):
    with open(path, "w") as f:
        f.write(text)


def release(path):
    """Gives the group's processes back to the root group, and removes it."""
    if not os.path.isdir(path):
        return
    with open(f"{path}/cgroup.procs") as f:
        for pid in f.read().split():
            try:
                write(f"{os.path.dirname(path)}/cgroup.procs", pid)
            except OSError:
                pass
    os.rmdir(path)


def release_all(name):
    """Whatever groups a cluster has, known or not."""
    for base in ("/sys/fs/cgroup/cpu", "/sys/fs/cgroup"):
        for path in glob.glob(f"{base}/drover-cluster.{name}.*"):
            release(path)


def disk(cluster, host, mib):
    """Each disk of each guest there gets this many MiB/s; 0: no limit."""
    conn = guests.Guest(cluster, None, host).conn
    for domain in conn.listAllDomains():
        if domain.isActive():
            domain.setBlockIoTune("vda", {"total_bytes_sec": int(mib * (1 << 20))}, 1)


def net(cluster, host, mbit):
    """The link of the host gets this many Mbit/s each way; 0: no limit."""
    for part, device in (("fabric", host), (host, "eth0")):
        tc = ["tc", "-n", cluster.netns(part), "qdisc"]
        if mbit == 0:
            if "tbf" in run([*tc, "show", "dev", device]):
                run([*tc, "del", "dev", device, "root"])
        else:
            # The bucket holds what the rate lets through in 10 ms, and a few packets.
            run([*tc, "replace", "dev", device, "root", "tbf", "rate", f"{mbit}mbit",
                 "burst", str(max(16384, int(mbit * 1250))), "latency", "1s"])


KINDS = {"cpu": cpu, "disk": disk, "net": net}


def slow(cluster, host, what, amount):
    cluster.host_pid(host)
    if what == "off":
        for function in KINDS.values():
            function(cluster, host, 0)
    elif amount is None or amount < 0:
        raise Error(f"slow {host} {what} how much? CPUs, MiB/s or Mbit/s; 0 for no limit")
    else:
        KINDS[what](cluster, host, amount)
