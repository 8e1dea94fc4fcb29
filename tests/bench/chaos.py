#!/usr/bin/python3
"""Faults at every state of a move, on each side, on the real cluster. Writes
target/chaos/report.json with every fault.

    chaos.py [--faults N] [--minutes N] [--seed N] [--kinds KIND,...] [--states STATE,...]
             [--sides source,target] [--keep] [--reuse]

A redis with a client outside moves between two hosts; in each move one fault strikes, a random
moment after a state began. Then everything that was broken is repaired, and within two minutes the
feature must run exactly once, with every write that the client was answered, no connection broken,
and nothing of the move left anywhere.

A guest that is killed takes along what runs in it. That is no loss by Drover when the feature was,
or may have been, in that guest: the source's before the commit, the target's from the commit on. The
host must then be clean all the same, and the feature starts anew with its guest. It must survive,
and counts as lost otherwise, when the guest held no copy that counts: the target's as long as the
source has not committed, the source's once it has.

Report: `moves`; `faults` (kind -> state that it struck -> number); `lost` features, `doubled` ones,
`client_lost_replies`, `leaked` things, all of which must be 0; `leaked_kinds`; `sides` (kind -> side
-> state -> number); `guest_killed`; `broken_trials` (the fault could not be set up or repaired);
`cut_short` (`--minutes` ended it); `trials`, each with what happened."""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import time

from shared import ROOT, TOOLS, Bench, Failed, Report, say, wait_until

sys.path.insert(0, str(ROOT / "vagrant" / "lib"))
import cluster as vagrant  # noqa: E402
import guests  # noqa: E402
import ns  # noqa: E402

NAME, ADDRESS = "cache", "10.88.0.245"
KEYS = 20_000
STATES = ["preflight", "offering", "pre-copy", "freezing", "restoring", "committing", "switching"]
KINDS = ["droverd", "helper", "guest", "libvirtd", "link", "tmpfs", "agent"]
SIDES = ["source", "target"]
# Longest wait for the feature to be whole again, seconds.
SETTLE = 120
# Longest time until a feature whose guest did not die with it is whole elsewhere, seconds: a little
# more than the longest step of a move (see TUNING).
AWAY = 45
# Longest random wait after the beginning of a state, seconds. Most last longer, the commit does not.
JITTER = 0.06
TUNING = """
[moves]
step_timeout_s = 30
restore_timeout_s = 30
"""


class Log:
    """The log of a host's droverd, read as it is written."""

    CHANGE = re.compile(r'from="?([a-z-]+)"? to="?([a-z-]+)"?')

    def __init__(self, path):
        self.path, self.at, self.rest = path, os.path.getsize(path), ""
        self.states = []

    def read(self):
        """State changes so far, as words; the first two of `preparing` by their own names."""
        with open(self.path, errors="replace") as f:
            f.seek(self.at)
            text = f.read()
            self.at = f.tell()
        lines = (self.rest + text).split("\n")
        self.rest = lines.pop()
        for line in lines:
            found = self.CHANGE.search(line)
            if found and f"feature={NAME}" in line.replace('"', ""):
                word = found[2]
                if word == "preparing":
                    word = "offering" if "preflight" in self.states else "preflight"
                self.states.append(word)
        return self.states

    def wait(self, state, timeout):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            states = self.read()
            if state in states:
                return True
            if "ended" in states:
                return False
            time.sleep(0.001)
        return False

    def last(self):
        states = self.read()
        return states[-1] if states else "none"


class Chaos:
    def __init__(self, cluster, report):
        self.c, self.report, self.data = cluster, report, report.data
        self.vagrant, self.clients, self.refusal = None, [], None

    # -- the feature and its client ---------------------------------------------

    def define(self, host="h1"):
        spec = {"name": NAME, "automatic": False, "downtime_ms": 1000, "workload": {
            "kind": "managed", "address": f"{ADDRESS}/24",
            "exec": ["/usr/bin/redis-server", "--port", "6379", "--bind", "*", "--protected-mode",
                     "no", "--save", "", "--appendonly", "no"]}}
        self.c.define(host, f"g{host[1]}", spec)
        self.c.drover(host, "enable", f"g{host[1]}", NAME)
        self.fill()

    def fill(self):
        self.c.fill(f"{ADDRESS}:6379", KEYS, timeout=120)

    def place(self):
        """(host, guest, status) of every place that has the feature; None without an answer."""
        try:
            return self.c.hosts_of(NAME)
        except (Failed, ValueError, subprocess.TimeoutExpired):
            return None

    def settled(self):
        place = self.place()
        if not place or len(place) != 1 or place[0][2] != "running":
            return None
        for host in ("h1", "h2"):
            if any(not j["result"] for j in self.c.drover_json(host, "jobs")):
                return None
        return place[0]

    def connect(self):
        """A cluster handle of this process, for faults that must be quick."""
        self.vagrant = vagrant.Cluster(self.c.name)
        self.guests = {g: guests.Guest(self.vagrant, g) for g in ("g1", "g2")}

    # -- faults: each strikes and returns what repairs it -----------------------------

    def droverd(self, host, guest):
        proc = self.vagrant.service_pid(host, "droverd")

        def strike():
            ns.kill(*proc)

        def repair():
            self.c.call("droverd", "start", host)
        return strike, repair

    def helper(self, host, guest):
        pid = self.c.shell(guest, "systemctl show -P MainPID drover-guest.service").strip()
        return lambda: self.guests[guest].agent("guest-exec", path="/bin/kill", arg=["-9", pid]), None

    def guest(self, host, guest):
        path = self.vagrant.path(host, f"/run/libvirt/qemu/{guest}.pid")
        pid = self.outside(host, int(open(path).read()))

        def repair():
            self.c.exec(host, "virsh", "-q", "start", guest, check=False)
            wait_until(lambda: self.c.guest(guest, "true", check=False)[0] == 0, 300,
                       f"{guest} boots")
            self.c.drover(host, "guest", "install", guest, timeout=300)
        return lambda: ns.kill(pid, ns.start_time(pid)), repair

    def outside(self, host, inside):
        """The machine's id of a process of a host."""
        for pid, _ in ns.in_netns([f"/run/netns/{self.vagrant.netns(host)}"]):
            try:
                with open(f"/proc/{pid}/status") as f:
                    numbers = re.search(r"^NSpid:\s*(.*)$", f.read(), re.M).group(1).split()
            except OSError:
                continue
            if int(numbers[-1]) == inside:
                return pid
        raise Failed(f"no process {inside} in {host}")

    def libvirtd(self, host, guest):
        proc = self.vagrant.service_pid(host, "libvirtd")

        def repair():
            ns.wait_gone([proc], 20)
            self.c.call("service", "libvirtd", "start", host)
        return lambda: ns.kill(*proc), repair

    def link(self, host, guest):
        def repair():
            time.sleep(4)
            self.c.call("heal", host)
        return lambda: self.vagrant.link(host, "down"), repair

    def tmpfs(self, host, guest):
        """No page more fits into the images' file system than are in it now."""
        script = ('d=/run/drover/moves; [ -d $d ] || exit 0; '
                  'u=$(df --output=used -k $d | tail -1); '
                  'mount -o remount,size=$((u > 0 ? u : 4))k $d')

        def strike():
            self.guests[guest].agent("guest-exec", path="/bin/sh", arg=["-c", script])

        def repair():
            time.sleep(3)
            self.c.shell(guest, "mount -o remount,size=80% /run/drover/moves")
        return strike, repair

    def agent(self, host, guest):
        script = "(kill -STOP $(pidof qemu-ga); sleep 15; kill -CONT $(pidof qemu-ga)) &"

        def strike():
            self.guests[guest].agent("guest-exec", path="/bin/sh", arg=["-c", script])

        def repair():
            wait_until(lambda: self.c.guest(guest, "true", check=False, timeout=5)[0] == 0, 60,
                       "the agent answers again")
        return strike, repair

    # -- one trial --------------------------------------------------------------------

    def trial(self, number, kind, side, state, rng):
        wait_until(self.settled, SETTLE, "the feature runs before the fault")
        source, from_guest, _ = self.settled()
        target = "h2" if source == "h1" else "h1"
        host, guest = (source, from_guest) if side == "source" else (target, f"g{target[1]}")
        self.connect()
        counter = Counter(self.c, number)
        self.clients.append(counter)
        log = Log(self.vagrant.path(source, "/var/log/drover/droverd.log"))
        strike, repair = getattr(self, kind)(host, guest)
        delay = rng.uniform(0, JITTER)
        if state == "committing":
            # A few milliseconds, that of the write to the journal.
            delay = 0
        # The other hosts learn of a guest that booted a little later.
        try:
            wait_until(lambda: self.migrate(source, from_guest, target), 90, "the move begins")
        except Failed as e:
            raise Failed(f"{e}: {self.refusal}") from None
        reached = log.wait(state, 60)
        if reached:
            time.sleep(delay)
        before = log.last()
        strike()
        struck = before if log.last() == before else f"{before}..{log.last()}"
        say(f"{number}: {kind} of {side} in '{state}', struck in '{struck}'")
        trial = {"kind": kind, "side": side, "state": state, "struck": struck,
                 "from": source, "to": target, "faults": []}
        self.data["moves"] += 1
        for counts in (self.data["faults"].setdefault(kind, {}),
                       self.data["sides"].setdefault(kind, {}).setdefault(side, {})):
            counts[struck] = counts.get(struck, 0) + 1
        self.data["trials"].append(trial)
        # What is broken stays broken for a while before it is repaired.
        time.sleep(rng.uniform(0.2, 2.0))
        if kind == "guest":
            self.settle_without(trial, counter, guest, repair, before, log)
        else:
            if repair:
                repair()
            self.settle(trial, counter)
        self.report.save()
        return trial

    def migrate(self, source, guest, target):
        code, _, err = self.c.drover(source, "migrate", guest, NAME, "--to",
                                     f"{target}/g{target[1]}", "--no-wait", check=False)
        self.refusal = err
        return code == 0

    def fault(self, trial, name, text):
        trial["faults"].append(f"{name}: {text}")
        say(f"   {name}: {text}", "!")

    def settle(self, trial, counter):
        place = self.await_settled()
        self.judge(trial, place)
        self.judge_client(trial, counter)

    def settle_without(self, trial, counter, guest, repair, before, log):
        """After the death of a guest: the feature goes on elsewhere, or died with it."""
        killed = self.data["guest_killed"]
        end = time.monotonic() + AWAY
        place = None
        while time.monotonic() < end:
            place = self.settled()
            if place and place[1] != guest and self.processes(place[1]):
                break
            place = None
            time.sleep(0.5)
        survived = place is not None
        trial["survived"] = survived
        killed["faults"] += 1
        if survived:
            killed["feature_elsewhere"] += 1
            self.judge_client(trial, counter)
        else:
            killed["feature_lost_with_it"] += 1
            counter.kill()
            self.clients.remove(counter)
        # Not committed for some time after the strike, or committed before it.
        committed = STATES.index("committing")
        after = log.states[log.states.index(before) + 1:] if before in log.states else []
        never = not any(s in STATES and STATES.index(s) >= committed for s in [before, *after])
        must = never if trial["side"] == "target" else before in ("switching", "ended")
        trial["must_survive"] = must
        if must and not survived:
            self.data["lost"] += 1
            self.fault(trial, "lost", f"the {trial['side']}'s guest died, and the feature with it")
        repair()
        self.judge(trial, self.await_settled())
        if not survived:
            self.fill()

    def await_settled(self):
        end = time.monotonic() + SETTLE
        while time.monotonic() < end:
            place = self.settled()
            if place:
                return place
            time.sleep(0.5)
        return None

    def judge(self, trial, place):
        """The feature once, and nothing left elsewhere."""
        running = {g: self.processes(g) for g in ("g1", "g2")}
        trial["at"] = place[0] if place else None
        if place is None:
            self.data["lost"] += 1
            self.fault(trial, "lost", f"not one running feature: {self.place()}, processes {running}")
            return
        if not running[place[1]]:
            self.data["lost"] += 1
            self.fault(trial, "lost", f"{place[1]} has no process of it")
        elsewhere = "g2" if place[1] == "g1" else "g1"
        if running[elsewhere]:
            self.data["doubled"] += 1
            self.fault(trial, "doubled", f"processes {running}")
        end = time.monotonic() + 45
        while True:
            found = {g: self.leaks(g, g == place[1]) for g in ("g1", "g2")}
            if self.processes(elsewhere):
                found[elsewhere].append("processes")
            found |= {h: self.host_leaks(h) for h in ("h1", "h2")}
            found = {k: v for k, v in found.items() if v}
            if not found or time.monotonic() > end:
                break
            time.sleep(1)
        for where, what in found.items():
            for thing in what:
                self.data["leaked"] += 1
                kinds = self.data["leaked_kinds"]
                kinds[thing] = kinds.get(thing, 0) + 1
            self.fault(trial, "leaked", f"{where}: {', '.join(what)}")

    def judge_client(self, trial, counter):
        time.sleep(2)
        seen = counter.stop()
        self.clients.remove(counter)
        lost = seen["errors"] + seen["skipped"]
        self.data["client_lost_replies"] += lost
        trial["client"] = seen
        if lost or seen["replies"] < 10:
            self.fault(trial, "client", json.dumps(seen))

    def processes(self, guest):
        """Processes of the feature that run: no freezer holds them, and no criu, in whose hands
        they are up to the end of a restore."""
        out = self.c.shell(guest, f"""
        d=/sys/fs/cgroup/drover.slice/drover-{NAME}.service
        grep -qx 1 $d/workload/cgroup.freeze 2>/dev/null && exit 0
        pgrep -x criu >/dev/null && exit 0
        cat $d/workload/cgroup.procs 2>/dev/null || true""", check=False)
        return out.split()

    def leaks(self, guest, here):
        out = self.c.shell(guest, f"""
        d=/sys/fs/cgroup/drover.slice/drover-{NAME}.service
        [ -z "$(ls -A /run/drover/moves 2>/dev/null)" ] || echo files
        [ -z "$(ls -d /sys/fs/cgroup/drover-criu/*/ 2>/dev/null)" ] || echo criu-cgroup
        ! pgrep -x criu >/dev/null || echo criu
        ! grep -qx 1 $d/cgroup.freeze $d/workload/cgroup.freeze 2>/dev/null || echo frozen
        ! ip -br link | grep -q macvlan || echo interface
        nft list tables | grep -i 'criu\\|gate\\|drover' && echo rules
        [ ! -e /run/systemd/system/drover-{NAME}.service ] || echo unit
        [ ! -e /run/netns/drover-{NAME} ] || echo netns
        [ ! -e /run/drover/features/{NAME}.pid ] || echo pid
        if [ -e /run/netns/drover-{NAME} ]; then
            ! nsenter --net=/run/netns/drover-{NAME} nft list tables | grep -qi 'criu\\|gate' ||
                echo rules
            nsenter --net=/run/netns/drover-{NAME} ip -br addr | grep -q '{ADDRESS}' && echo address
        fi
        true""", check=False)
        found = set(out.split())
        normal = {"unit", "netns", "pid", "address"}
        if here:
            return sorted((found - normal) | {f"no-{n}" for n in normal - found})
        return sorted(found)

    def host_leaks(self, host):
        """Reservations of moves that are over."""
        found = []
        for row in self.c.drover_json(host, "hosts"):
            state = row.get("state") or row
            if state.get("reserved_cpus") or state.get("reserved_memory_mib"):
                found.append("reservation")
        return sorted(set(found))

    def recover(self):
        """After a trial that went wrong: the feature anew, whatever is left of the old one; when
        that fails, on a cluster anew."""
        for client in self.clients:
            client.kill()
        self.clients.clear()
        try:
            say("making the feature anew", "!")
            self.anew()
        except (Failed, vagrant.Error, OSError, ValueError, subprocess.TimeoutExpired) as e:
            say(f"that failed, so the cluster is made anew: {e}", "!")
            self.c.begin()
            self.c.helpers()
            self.define()

    def anew(self):
        for host in ("h1", "h2"):
            self.c.call("heal", host, check=False)
            for service in ("libvirtd", "droverd"):
                self.c.call("service", service, "start", host, check=False)
            guest = f"g{host[1]}"
            self.c.exec(host, "virsh", "-q", "start", guest, check=False)
        for host in ("h1", "h2"):
            guest = f"g{host[1]}"
            wait_until(lambda g=guest: self.c.guest(g, "true", check=False)[0] == 0, 300,
                       f"{guest} answers")
            self.c.drover(host, "guest", "install", guest, timeout=300)
        self.c.remove(NAME)
        for guest in ("g1", "g2"):
            self.c.shell(guest, f"""
            systemctl kill -s KILL drover-{NAME}.service 2>/dev/null
            sleep 1; systemctl stop drover-{NAME}.service 2>/dev/null
            pkill -9 -x redis-server; ip netns del drover-{NAME} 2>/dev/null
            rm -rf /run/drover/moves/* /run/drover/features/{NAME}*
            systemctl restart drover-guest""", check=False)
        time.sleep(3)
        self.define()


class Counter:
    """drover-counter on one connection."""

    def __init__(self, cluster, number):
        self.out = ROOT / "target" / f"{cluster.name}-chaos-{number}.json"
        self.out.unlink(missing_ok=True)
        self.process = cluster.popen("client", TOOLS / "drover-counter", "count", f"{ADDRESS}:6379",
                                     "--key", f"chaos:{number}", "--out", self.out,
                                     stdout=subprocess.DEVNULL)

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=90)
        report = json.loads(self.out.read_text())
        self.out.unlink()
        return report

    def kill(self):
        self.process.kill()
        self.process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, help="at most so many (default: each once)")
    parser.add_argument("--minutes", type=float,
                        help="begin no fault later than this (default: no limit)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--states", default=",".join(STATES))
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    parser.add_argument("--reuse", action="store_true", help="use the cluster that is up")
    args = parser.parse_args()
    wanted = [(k, s, t) for k in args.kinds.split(",") for s in args.sides.split(",")
              for t in args.states.split(",")]
    if any(k not in KINDS or s not in SIDES or t not in STATES for k, s, t in wanted):
        sys.exit(f"chaos: kinds {', '.join(KINDS)}; sides {', '.join(SIDES)}; "
                 f"states {', '.join(STATES)}")
    rng = random.Random(args.seed)
    rng.shuffle(wanted)
    # Deaths of guests last, as their booting takes longest.
    wanted.sort(key=lambda w: w[0] == "guest")
    if args.faults:
        wanted = (wanted * (args.faults // len(wanted) + 1))[:args.faults]
    cluster = Bench("chaos", extra_toml=TUNING)
    cluster.env.pop("DROVER_GUEST_EXTRA")
    report = Report(ROOT / "target" / "chaos" / "report.json", {
        "seed": args.seed, "moves": 0, "faults": {}, "lost": 0, "doubled": 0,
        "client_lost_replies": 0, "leaked": 0, "leaked_kinds": {}, "sides": {}, "guest_killed": {
            "faults": 0, "feature_elsewhere": 0, "feature_lost_with_it": 0},
        "broken_trials": 0, "cut_short": False, "trials": []})
    chaos = Chaos(cluster, report)
    begin = time.monotonic()
    try:
        cluster.begin(args.reuse)
        cluster.helpers()
        cluster.remove(NAME)
        chaos.define()
        for number, (kind, side, state) in enumerate(wanted, 1):
            passed = (time.monotonic() - begin) / 60
            if args.minutes and passed > args.minutes:
                say(f"{number - 1} of {len(wanted)} faults after {passed:.0f} minutes: enough", "#")
                report.data["cut_short"] = True
                break
            say(f"fault {number} of {len(wanted)}", "#")
            try:
                good = not chaos.trial(number, kind, side, state, rng)["faults"]
            except (Failed, vagrant.Error, OSError, ValueError, subprocess.TimeoutExpired) as e:
                report.data["broken_trials"] += 1
                report.data["trials"].append({"kind": kind, "side": side, "state": state,
                                              "broken": str(e)})
                say(f"{number}: {kind} of {side} in '{state}': {e}", "!")
                good = False
            report.save()
            if not good:
                cluster.call("collect", str(ROOT / "target" / "chaos" / f"logs-{number}"),
                             check=False)
                chaos.recover()
    finally:
        report.save()
        for client in chaos.clients:
            client.kill()
        if not args.keep:
            cluster.down()
    d = report.data
    say(f"moves {d['moves']}, lost {d['lost']}, doubled {d['doubled']}, client_lost_replies "
        f"{d['client_lost_replies']}, leaked {d['leaked']}, broken trials {d['broken_trials']}",
        "#")
    say(f"guests killed: {d['guest_killed']}")
    say("report: target/chaos/report.json")
    if d["lost"] or d["doubled"] or d["client_lost_replies"] or d["leaked"] or d["broken_trials"]:
        sys.exit("chaos: a move did not survive a fault as it must")


if __name__ == "__main__":
    main()
