"""The cluster's hosts under libvirt's modular daemons: virtqemud, and virtproxyd in front of it.

libvirtd is stopped and they take its running domains over, as on a host that is switched to them.
`tests/virtqemud/run.sh` builds them and runs tests so.
"""

import os
import pathlib

# Where the two programs are, within the hosts too.
PROGRAMS = pathlib.Path(os.environ["DROVER_VIRTQEMUD"]) if "DROVER_VIRTQEMUD" in os.environ else None
# The daemon that runs the hook.
DAEMON = "virtqemud" if PROGRAMS else "libvirtd"


def switch(cluster):
    """libvirtd of every host makes place for virtqemud and virtproxyd."""
    for n in range(1, cluster.hosts + 1):
        host = f"h{n}"
        cluster.exec(host, "install", "-m", "755", PROGRAMS / "virtqemud", PROGRAMS / "virtproxyd", "/usr/sbin/")
        # Each daemon has a file of its own, of the same keys less those that are not its own.
        cluster.exec(host, "sh", "-ec", """
            cd /etc/libvirt
            grep -E '^(host_uuid|auth_unix_r[wo]) ' libvirtd.conf >virtqemud.conf
            grep -E '^(listen_|auth_|host_uuid )' libvirtd.conf >virtproxyd.conf""")
        cluster.call("service", "libvirtd", "stop", host)
        cluster.call("service", "virtqemud", "start", host)
        cluster.call("service", "virtproxyd", "start", host)
