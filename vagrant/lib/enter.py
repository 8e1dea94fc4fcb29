#!/usr/bin/python3 -IS
"""Runs a command inside a host (or a network namespace) of the cluster.

  enter.py --pid PID [--daemon LOG PIDFILE] -- CMD...
  enter.py --net /run/netns/NAME -- CMD...

PID is the host's process 1 as seen from here. The command dies with this
process, so that a test that is killed leaves nothing running in a host; with
--daemon it is put into the background there, as a child of the host's
process 1.
"""

import os
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
import ns  # noqa: E402


def main():
    args, command = sys.argv[1:], []
    if "--" in args:
        cut = args.index("--")
        args, command = args[:cut], args[cut + 1:]
    if not command or len(args) < 2:
        sys.exit(__doc__)
    daemon = args[3:5] if args[2:3] == ["--daemon"] else None

    if args[0] == "--net":
        fds = [os.open(args[1], os.O_RDONLY | os.O_CLOEXEC)]
    else:
        # The mount namespace is entered last but one: /proc changes with it.
        fds = [os.open(f"/proc/{args[1]}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
               for kind in ("net", "uts", "ipc", "pid", "mnt")]
    for fd in fds:
        ns.setns(fd)
    if args[0] == "--pid":
        os.chdir("/")
        for name in ("TMPDIR", "XDG_RUNTIME_DIR", "DBUS_SYSTEM_BUS_ADDRESS"):
            os.environ.pop(name, None)  # of this machine, not of the host
    path = os.environ.get("PATH", "").split(":")
    path += [d for d in ("/usr/sbin", "/usr/bin", "/sbin", "/bin") if d not in path]
    os.environ["PATH"] = ":".join(p for p in path if p)

    pid = os.fork()
    if pid == 0:
        if daemon:
            background(command, *daemon)
        ns.die_with_parent()
        execute(command)
    for sig in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(sig, lambda s, _: os.kill(pid, s))
    while True:
        try:
            status = os.waitpid(pid, 0)[1]
            break
        except InterruptedError:
            continue
    code = os.waitstatus_to_exitcode(status)
    sys.exit(code if code >= 0 else 128 - code)


def execute(command):
    try:
        os.execvp(command[0], command)
    except OSError as err:
        print(f"{command[0]}: {err.strerror}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(127)


def background(command, log, pidfile):
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    null = os.open("/dev/null", os.O_RDONLY)
    if os.fork():
        os._exit(0)
    with open(pidfile, "w") as f:
        f.write(f"{os.getpid()} {ns.start_time(os.getpid())}\n")
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    execute(command)


main()
