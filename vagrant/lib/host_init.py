#!/usr/bin/python3 -IS
"""Process 1 of a host: makes the host's root, then reaps what is orphaned.

  host_init.py NETNS NAME STATE CACHE VAGRANT

The host has its own network, mount, UTS, IPC and PID namespace and a root of
its own: an overlay over the machine's, so that the very scripts that configure
a real host may write to /etc, /usr and /var. When this process dies the kernel
kills everything inside, and with the last of them goes every mount.

Prints the process's id as seen from outside, then "ready" or what went wrong.
"""

import os
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
import ns  # noqa: E402

# Directories of the machine that a host must not see the contents of.
OPAQUE = ["var/lib/libvirt", "var/log/libvirt", "var/cache/libvirt", "var/tmp",
          "etc/libvirt/qemu", "etc/libvirt/hooks", "etc/libvirt/secrets",
          "etc/libvirt/storage", "etc/pki", "etc/drover", "var/lib/drover",
          "var/log/drover", "var/lib/drover-cluster", "var/cache/drover"]
DISK_FS = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "overlay", "tmpfs"}


def overlay(lower, target, store):
    os.makedirs(f"{store}/upper", exist_ok=True)
    os.makedirs(f"{store}/work", exist_ok=True)
    ns.mount("overlay", target, "overlay", 0,
             f"lowerdir={lower},upperdir={store}/upper,workdir={store}/work")


def make_root(name, state, cache, vagrant):
    base = f"{state}/{name}"
    root, store = f"{base}/root", f"{base}/overlay"
    ns.mount(None, "/", None, ns.MS_REC | ns.MS_PRIVATE)

    def opaque():
        for directory in OPAQUE:
            path = f"{store}/upper/{directory}"
            os.makedirs(path, exist_ok=True)
            os.setxattr(path, "trusted.overlay.opaque", b"y")
        os.chmod(f"{store}/upper/var/tmp", 0o1777)
        os.chmod(f"{store}/upper", 0o755)

    os.makedirs(root, exist_ok=True)
    os.makedirs(f"{base}/images", exist_ok=True)
    try:
        opaque()
        overlay("/", root, store)
    except OSError:
        # The state directory is on a file system that cannot be an upper layer
        # (the machine is a container itself, say): keep the changes in memory.
        os.makedirs(store, exist_ok=True)
        ns.mount("tmpfs", store, "tmpfs", 0, "mode=755")
        opaque()
        overlay("/", root, store)

    # Parts of the system that are mounts of their own on this machine.
    with open("/proc/self/mountinfo") as f:
        lines = [line.split() for line in f]
    for fields in lines:
        point, kind = fields[4], fields[fields.index("-") + 1]
        if (point.split("/")[1] in ("usr", "etc", "opt", "srv") or point == "/var") \
                and kind in DISK_FS and os.path.isdir(point):
            overlay(point, root + point, f"{base}/overlay{point.replace('/', '-')}")

    for path in ("dev", "proc", "sys", "run", "tmp", "vagrant", "var/cache/drover",
                 "var/lib/libvirt/images", "var/log/drover", ".old"):
        os.makedirs(f"{root}/{path}", exist_ok=True)
    ns.mount("/dev", f"{root}/dev", None, ns.MS_BIND | ns.MS_REC)
    ns.mount("tmpfs", f"{root}/dev/shm", "tmpfs", 0, "mode=1777")
    ns.mount("proc", f"{root}/proc", "proc", ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC)
    ns.mount("sysfs", f"{root}/sys", "sysfs", ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC)
    ns.mount("tmpfs", f"{root}/run", "tmpfs", ns.MS_NOSUID | ns.MS_NODEV, "mode=755")
    ns.mount("tmpfs", f"{root}/tmp", "tmpfs", ns.MS_NOSUID | ns.MS_NODEV, "mode=1777")
    ns.mount(cache, f"{root}/var/cache/drover", None, ns.MS_BIND)
    ns.mount(f"{base}/images", f"{root}/var/lib/libvirt/images", None, ns.MS_BIND)
    ns.mount(vagrant, f"{root}/vagrant", None, ns.MS_BIND)
    ns.mount(None, f"{root}/vagrant", None, ns.MS_BIND | ns.MS_REMOUNT | ns.MS_RDONLY)
    for path in ("run/lock", "run/dbus", "var/log/libvirt/qemu"):
        os.makedirs(f"{root}/{path}", exist_ok=True)

    ns.pivot_root(root, f"{root}/.old")
    os.chdir("/")
    ns.umount("/.old", ns.MNT_DETACH)
    os.rmdir("/.old")


def main():
    netns, name, state, cache, vagrant = sys.argv[1:]
    os.setsid()
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    ns.setns(fd, ns.CLONE_NEWNET)
    ns.unshare(ns.CLONE_NEWNS | ns.CLONE_NEWUTS | ns.CLONE_NEWIPC | ns.CLONE_NEWPID)
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        os._exit(0)
    try:
        import socket
        socket.sethostname(name)
        os.umask(0o022)
        make_root(name, state, cache, vagrant)
        uuid = open("/proc/sys/kernel/random/uuid").read().replace("-", "")
        if os.path.exists("/etc/machine-id"):
            os.unlink("/etc/machine-id")
        with open("/etc/machine-id", "w") as f:
            f.write(uuid)
    except Exception as err:  # reported to whoever starts the host
        print(f"host {name}: {err}", flush=True)
        os._exit(1)
    print("ready", flush=True)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        try:
            while os.waitpid(-1, 0):
                pass
        except ChildProcessError:
            signal.sigtimedwait([signal.SIGCHLD], 1)


main()
