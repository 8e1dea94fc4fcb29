"""Namespaces and processes: the few system calls that the cluster is made of."""

import ctypes
import os
import signal
import time

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
SYS_PIVOT_ROOT = 155  # x86_64, as everything here
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name, *args):
    if getattr(_libc, name)(*args) < 0:
        err = ctypes.get_errno()
        raise OSError(err, f"{name}{args}: {os.strerror(err)}")


def _bytes(text):
    return None if text is None else os.fsencode(text)


def unshare(flags):
    _call("unshare", flags)


def setns(fd, kind=0):
    _call("setns", fd, kind)


def mount(source, target, kind=None, flags=0, data=None):
    _call("mount", _bytes(source), _bytes(target), _bytes(kind),
          ctypes.c_ulong(flags), _bytes(data))


def umount(target, flags=0):
    _call("umount2", _bytes(target), flags)


def pivot_root(new, old):
    _call("syscall", SYS_PIVOT_ROOT, _bytes(new), _bytes(old))


def die_with_parent():
    """The calling process is killed when the thread that made it ends."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def start_time(pid):
    """Clock ticks since boot at which a process began, None if there is none.

    Together with the id it names a process for good; ids alone are reused.
    A zombie counts as gone.
    """
    try:
        with open(f"/proc/{pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def alive(pid, start):
    return start is not None and start_time(pid) == start


def kill(pid, start, sig=signal.SIGKILL):
    """Signals exactly the process that was meant, or nothing."""
    try:
        fd = os.pidfd_open(pid)
    except (ProcessLookupError, OSError):
        return False
    try:
        if not alive(pid, start):
            return False
        signal.pidfd_send_signal(fd, sig)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)


def in_netns(paths):
    """(pid, start time) of every process inside one of these namespaces."""
    wanted = set()
    for path in paths:
        st = os.stat(path)
        wanted.add((st.st_dev, st.st_ino))
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        pid = int(entry)
        start = start_time(pid)
        if start is None:
            continue
        try:
            st = os.stat(f"/proc/{pid}/ns/net")
        except OSError:
            continue
        if (st.st_dev, st.st_ino) in wanted:
            found.append((pid, start))
    return found


def wait_gone(procs, timeout=10):
    """Waits until the processes are gone; returns those that are not."""
    deadline = time.monotonic() + timeout
    while True:
        procs = [p for p in procs if alive(*p)]
        if not procs or time.monotonic() > deadline:
            return procs
        time.sleep(0.02)
