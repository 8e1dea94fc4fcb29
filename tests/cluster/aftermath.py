"""What a cluster looks like after a test failed, for whoever asks why."""

import subprocess

from cluster_api import Failed

HOST = """
drover list; drover jobs; drover hosts; virsh list --all
drover list | tail -n +2 | while read -r domain feature _; do
    echo "history of $domain/$feature"; drover --format csv history "$domain" "$feature" | tail -n 100
done
tail -n 200 /var/log/drover/droverd.log
"""
GUEST = """
systemctl --no-pager --failed; systemctl --no-pager status drover-guest drover.slice
systemctl --no-pager list-jobs
df -h / /run /tmp; free -m; ls -lR /run/drover /dev/virtio-ports /run/netns
ps -eo pid,ppid,stat,wchan:20,rss,etimes,args --forest
journalctl --no-pager -n 100; dmesg | tail -n 40
"""


def look(cluster, path):
    """Writes it to `path`; a host or guest that does not answer says so there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as out:
        for n in range(1, cluster.hosts + 1):
            for name, script, ask in ((f"h{n}", HOST, cluster.exec), (f"g{n}", GUEST, cluster.guest)):
                try:
                    _, text, err = ask(name, "sh", "-c", script, check=False)
                except (Failed, subprocess.TimeoutExpired) as e:
                    text, err = "", f"{e}\n"
                out.write(f"== {name}\n{text}{err}\n")
