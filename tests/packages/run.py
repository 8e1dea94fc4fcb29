#!/usr/bin/env python3
"""Tries the packages on hosts that know nothing of Drover, and writes target/packages/report.json.

    tests/packages/run.py [DIRECTORY]      packages made by `make packages-build`

A stranger's path: the commands and files of docs/quickstart.md, word by word, from the packages
and without the source tree. Then an upgrade with a move under way, removal, purge, the rpms.
"""

import json
import os
import pathlib
import re
import stat
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "vagrant" / "scenarios")]

from cluster_api import TOOLS, Client, Cluster, Failed, redis, run, wait_until  # noqa: E402

HOSTS = ("h1", "h2", "h3")
OLD = "0.0.1"
# Where a package may leave something on a host.
PLACES = ["etc", "usr", "var/lib/drover", "var/log/drover", "run/drover/"]
# What others keep there: caches, lists of packages, this test's own files.
OTHERS = re.compile(r"^(etc/(group|gshadow|passwd|shadow|subuid|subgid)-?|etc/ld\.so\.cache|"
                    r"etc/pki/.*|etc/libvirt/(qemu|storage|secrets)/.*|etc/\.pwd\.lock|"
                    r"usr/share/mime/.*|usr/lib/.*/__pycache__.*|usr/share/info/dir.*)$")


class Hosts:
    def __init__(self, packages):
        self.cluster = Cluster("packages")
        del self.cluster.env["DROVER_STAGE"]
        self.packages = packages

    def root(self, host):
        state = json.loads(self.cluster.call("status", "--json")[1])
        return pathlib.Path(f"/proc/{state['hosts'][host]['pid']}/root")

    def files(self, host):
        """Files below PLACES that are not the machine's own, without what others keep there."""
        found = set()
        # What this host changed is in the upper layers of its root.
        base = pathlib.Path("/var/lib/drover-cluster") / self.cluster.name / host
        layers = [(u, u.parent.name.removeprefix("overlay").replace("-", "/").strip("/"))
                  for u in base.glob("overlay*/upper")]
        if not any(any(u.iterdir()) for u, _ in layers):
            layers = [(self.root(host), "")]
        layers.append((self.root(host) / "run", "run"))
        for root, prefix in layers:
            for dir_, _, names in os.walk(root):
                for name in names:
                    full = os.path.join(dir_, name)
                    path = os.path.join(prefix, os.path.relpath(full, root))
                    gone = os.path.lexists(full) and stat.S_ISCHR(os.lstat(full).st_mode)
                    if path.startswith(tuple(PLACES)) and not gone and not OTHERS.match(path):
                        found.add(path)
        return found

    def shell(self, host, script, timeout=300):
        """Runs a script as somebody at a terminal of that host would."""
        return self.cluster.exec(host, "env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8",
                                 "HOME=/root", "bash", "-ec", "cd /root\n" + script,
                                 timeout=timeout)[1]

    def put(self, host, path, text):
        target = self.root(host) / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def give(self, host, files):
        for file in files:
            (self.root(host) / "root" / file.name).write_bytes(file.read_bytes())

    def systemctl(self, host, line):
        """These hosts have no systemd: what it would do with a unit is done for it."""
        action = line.split()[1]
        units = {"libvirtd": "libvirtd", "droverd": "droverd"}
        service = units[line.split()[-1].removesuffix(".service")]
        if action in ("enable", "start"):
            self.cluster.call("service", service, "start", host)
        elif action in ("restart", "try-restart"):
            self.cluster.call("service", service, "restart", host)
        else:
            raise Failed(f"the test does not know: {line}")


def steps(document):
    """Blocks of a document that say where they belong: ("run", [hosts], script) and
    ("file", host, path, text)."""
    found = []
    for language, body in re.findall(r"^```(\w+)\n(.*?)^```", document, re.M | re.S):
        if language == "text":
            continue
        first, _, rest = body.partition("\n")
        if on := re.fullmatch(r"# on ((?:h\d ?)+)", first):
            found.append(("run", on[1].split(), rest))
        elif at := re.fullmatch(r"# (/\S+) on (h\d)", first):
            found.append(("file", at[2], at[1], rest))
        else:
            raise Failed(f"docs: a {language} block does not say where it belongs: {first}")
    return found


def follow(hosts, name):
    """Does what a document says, and gives what its last commands printed."""
    text = (ROOT / "docs" / name).read_text()
    said = {}
    for step in steps(text):
        if step[0] == "file":
            _, host, path, body = step
            hosts.put(host, path, body)
            if path == "/etc/drover/drover.toml":
                # "The same on the others, with their own name, address and peers."
                for other in HOSTS[1:]:
                    swap = {"h1": other, other: "h1"}
                    addresses = {f"10.88.0.1{h[1]}": f"10.88.0.1{o[1]}" for h, o in swap.items()}
                    mine = re.sub(r"10\.88\.0\.1\d\b|\bh\d\b",
                                  lambda m: {**swap, **addresses}.get(m[0], m[0]), body)
                    hosts.put(other, path, mine)
            continue
        _, where, script = step
        for host in where:
            lines = script.strip().splitlines()
            print(f"  {host}: " + " ; ".join(lines), flush=True)
            plain = []
            for line in lines:
                if line.startswith("systemctl "):
                    hosts.shell(host, "\n".join(plain))
                    plain = []
                    hosts.systemctl(host, line)
                else:
                    plain.append(line)
            said[host] = hosts.shell(host, "\n".join(plain))
        if "systemctl enable" in script:
            # A reader takes longer than a program: peers dial every few seconds.
            for host in HOSTS:
                wait_until(lambda h=host: len(json.loads(hosts.shell(
                    h, "drover --format json hosts"))) == 3, 60, f"{host} sees its peers")
        if "pki.sh host pki" in script:
            # "Copy pki/h2 and pki/h3 to the host they are for."
            for host in HOSTS[1:]:
                subprocess.run(["cp", "-a", hosts.root("h1") / "root/pki", hosts.root(host) / "root/"],
                               check=True)
    return said


def quickstart(hosts):
    said = follow(hosts, "quickstart.md")
    assert "undefined" in said["h2"] or "removed" in said["h2"] or said["h2"], said
    for host in HOSTS:
        wait_until(lambda h=host: len(json.loads(hosts.shell(h, "drover --format json hosts"))) == 3,
                   60, f"{host} sees its peers")


# What README.md names and only the source has.
SOURCE_ONLY = {"CONTRIBUTING.md", "CHANGELOG.md", "vagrant/README.md"}


def broken_links(hosts):
    """Links and pictures of the installed documents that lead nowhere."""
    base = hosts.root("h1") / "usr/share/doc/drover"
    pages = sorted(base.rglob("*.md"))
    assert len(pages) > 10, pages
    found = []
    for page in pages:
        for link in re.findall(r"\]\(([^)#:]+)[^):]*\)", page.read_text()):
            if link not in SOURCE_ONLY and not (page.parent / link).is_file():
                found.append(f"{page.relative_to(base)}: {link}")
    return found


def upgrade(hosts, new, old):
    """One version older, then the new one over it, while a feature moves away from the host."""
    c = hosts.cluster
    # Installing takes seconds: so that the move is still under way after it, it is slow.
    hosts.shell("h1", "printf '\\n[moves]\\nbandwidth_limit_mib_s = 2\\n' >>/etc/drover/drover.toml; "
                      "drover reload")
    c.define("h1", "g1", redis("cart", "10.88.0.215", automatic=False))
    c.drover("h1", "enable", "g1", "cart")
    address = "10.88.0.215:6379"
    c.fill(address, 60_000)
    client = Client(c, "count", address)
    outcome = {}
    try:
        move = threading.Thread(target=lambda: outcome.update(
            code=c.drover("h1", "migrate", "g1", "cart", "--to", "h2", check=False)[0]))
        move.start()

        def state():
            jobs = json.loads(hosts.shell("h1", "drover --format json jobs"))
            return jobs and jobs[0]["state"]
        wait_until(lambda: state() == "pre-copy", 60, "the move is under way", pause=0.05)
        hosts.shell("h1", f"dpkg -i ./{new.name}")
        outcome["state_at_restart"] = state()
        assert outcome["state_at_restart"] != "ended", "the move was over before the restart"
        # What the package's try-restart does where there is systemd.
        hosts.systemctl("h1", "systemctl try-restart droverd.service")
        move.join(120)
        place = wait_until(lambda: (p := c.hosts_of("cart")) and len(p) == 1
                           and p[0][2] == "running" and p[0], 90, "the feature runs once")
        time.sleep(2)
    finally:
        report = client.stop()
    assert report["errors"] == 0 and report["replies"] > 100, report
    outcome.update(place=place[0], client_errors=report["errors"])
    version = hosts.shell("h1", "drover version")
    assert new.name.split("_")[1].split("-")[0] in version, version
    c.drover(place[0], "disable", place[1], "cart")
    c.drover(place[0], "undefine", place[1], "cart")
    return outcome


def rpms(hosts, packages):
    """Installs, removes and looks for leftovers, in a database of its own."""
    before = hosts.files("h3")
    for package in packages:
        hosts.give("h3", [package])
        name = run("rpm", "-qp", "--qf", "%{NAME}", package)[1]
        db = "--dbpath /root/rpmdb"
        hosts.shell("h3", f"rpm {db} -i --nodeps ./{package.name}")
        listed = hosts.shell("h3", f"rpm {db} -ql {name}").split()
        missing = [f for f in listed if not os.path.lexists(hosts.root("h3") / f.lstrip("/"))]
        assert not missing and len(listed) > 2, missing
        hosts.shell("h3", f"rpm {db} -V --nodeps {name} && rpm {db} -e --nodeps {name}")
    left = hosts.files("h3") - before
    assert not left, f"rpm -e left {sorted(left)[:20]}"
    return sorted(p.name for p in packages)


def exposure():
    out = subprocess.run(["systemd-analyze", "security", "--offline=true",
                          ROOT / "packaging" / "droverd.service"],
                         capture_output=True, text=True).stdout
    return float(re.search(r"Overall exposure level.*?:\s*([\d.]+)", out)[1])


def lintian(debs):
    out = subprocess.run(["lintian", "--allow-root", "--tag-display-limit", "0", *debs],
                         capture_output=True, text=True).stdout
    tags = [line for line in out.splitlines() if line[:2] in ("E:", "W:")]
    for tag in tags:
        print("  " + tag)
    return {"errors": sum(t[0] == "E" for t in tags), "warnings": sum(t[0] == "W" for t in tags)}


def older(directory):
    """The host's package with an older version: the same build, so that what is tried is the
    packages' own part of an upgrade."""
    out = ROOT / "target" / "packages-old"
    profile = TOOLS.name
    run(ROOT / "packaging" / "build.sh", profile, out, timeout=900,
        env=dict(os.environ, VERSION=OLD))
    return next(out.glob(f"drover_{OLD}*.deb"))


def main():
    directory = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target" / "packages")
    subprocess.run([ROOT / "vagrant" / "provision" / "packages.sh", "--cluster", "--packages"],
                   check=True)
    old = older(directory)
    debs = sorted(directory.glob("*.deb"))
    new = next(directory.glob("drover_*.deb"))
    report = {"lintian": lintian(debs), "security_exposure": exposure()}
    hosts = Hosts(directory)
    c = hosts.cluster
    c.down()
    try:
        c.call("up", "--no-drover", timeout=900)
        before = {h: hosts.files(h) for h in HOSTS}
        print("# quick start, from the older packages", flush=True)
        for host in HOSTS:
            hosts.give(host, [old])
            hosts.put(host, "/etc/libvirt/hooks/qemu.d/10-mine", "#!/bin/sh\nexit 0\n")
        quickstart(hosts)
        assert not (broken := broken_links(hosts)), broken
        report["installed"] = True
        print("# upgrade with a move under way", flush=True)
        for host in HOSTS:
            hosts.give(host, [new])
        report["upgraded"] = upgrade(hosts, new, old)
        print(f"  {report['upgraded']}")
        print("# remove and purge", flush=True)
        for n, host in enumerate(HOSTS, 1):
            hosts.shell(host, f"drover guest remove g{n}")
            c.call("droverd", "stop", host)
            hosts.shell(host, "dpkg -r drover")
            assert (hosts.root(host) / "etc/drover/drover.toml").exists(), "remove took the configuration"
            hosts.shell(host, "dpkg -P drover")
        left = {h: sorted(hosts.files(h) - before[h] - {"etc/libvirt/hooks/qemu.d/10-mine"}) for h in HOSTS}
        report["left"] = {h: f for h, f in left.items() if f}
        report["purged_clean"] = not report["left"] and \
            all((hosts.root(h) / "etc/libvirt/hooks/qemu.d/10-mine").exists() for h in HOSTS)
        print("# rpm", flush=True)
        report["rpm"] = rpms(hosts, sorted(directory.glob("*.rpm")))
    finally:
        c.down()
        target = ROOT / "target" / "packages" / "report.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    good = report.get("installed") and report.get("upgraded") and report.get("purged_clean") \
        and report["security_exposure"] <= 3.0 and report["lintian"]["errors"] == 0
    print(f"{int(bool(good))} passed, {int(not good)} failed")
    sys.exit(not good)


if __name__ == "__main__":
    main()
