#!/usr/bin/python3
"""A guest of this host through its guest agent; for hosts that are whole machines.

  agent.py exec [--timeout S] [--stdin] GUEST CMD...
  agent.py push GUEST FILE PATH MODE
"""

import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
import guests  # noqa: E402
from cluster import Error  # noqa: E402


class Here(guests.Guest):
    """A guest of the host that this runs on."""

    def __init__(self, name):
        self.libvirt, self.qemu = guests.libvirt_modules()
        self.name = name
        self.conn = self.libvirt.open("qemu:///system")

    def domain(self):
        try:
            return self.conn.lookupByName(self.name)
        except self.libvirt.libvirtError as err:
            raise Error(f"{self.name}: {err}")


def main():
    what, args, timeout, data = sys.argv[1], sys.argv[2:], 60.0, None
    while args[0].startswith("--"):
        if args[0] == "--stdin":
            data, args = sys.stdin.buffer.read(), args[1:]
        else:
            timeout, args = float(args[1]), args[2:]
    guest = Here(args[0])
    if what == "push":
        guest.push(*args[1:4])
        return 0
    code, out, err = guest.execute(args[1:], timeout, data)
    sys.stdout.buffer.write(out)
    sys.stdout.flush()
    sys.stderr.buffer.write(err)
    return code


try:
    sys.exit(main())
except Error as err:
    sys.exit(f"agent: {err}")
except (IndexError, ValueError):
    sys.exit(__doc__)
