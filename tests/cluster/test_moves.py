"""Moves by hand, there and back, cancelled, and what users see of them."""

import json
import tempfile

from cluster_api import wait_until
from shared import CLUSTER, GUESTS, FeatureCase


class Moves(FeatureCase):
    def test_there_and_back(self):
        counter = self.client()
        before = CLUSTER.drover_json("h1", "history", "g1", self.FEATURE)
        CLUSTER.drover("h1", "migrate", "g1", self.FEATURE, "--to", "h2/g2", timeout=180)
        self.only_at("h2")
        job = CLUSTER.drover_json("h1", "jobs")[0]
        self.assertEqual((job["result"], job["to_host"]), ("done", "h2"))
        self.assertGreaterEqual(job["rounds"], 2)
        self.assertGreater(job["bytes_sent"], 20_000 * 1_000)
        self.assertIsNotNone(job["freeze_ms"])
        # The first round carries the data, the last only what changed since.
        self.assertLess(job["history"][-1]["bytes"], job["history"][0]["bytes"] / 2)
        wait_until(lambda: len(CLUSTER.drover_json("h2", "history", "g2", self.FEATURE))
                   > len(before), 30, "history goes on at the new place")
        points = CLUSTER.drover_json("h2", "history", "g2", self.FEATURE)
        times = [p["at_ms"] for p in points]
        self.assertEqual(times, sorted(set(times)))
        self.assertLessEqual({p["at_ms"] for p in before}, set(times))
        peak = max(p["cpu"] for p in points if p["cpu"] is not None)
        self.assertLess(peak, 150, "no spike by the move")
        CLUSTER.drover("h2", "migrate", "g2", self.FEATURE, "--to", "h1", timeout=180)
        self.only_at("h1")
        self.good(counter)

    def test_cancel_in_pre_copy(self):
        self.fill(60_000)
        counter, events = self.client(), self.watch("h1")
        CLUSTER.drover("h1", "migrate", "g1", self.FEATURE, "--to", "h3", "--no-wait")
        events.wait(lambda e: e["event"] == "move" and e["job"]["state"] == "pre-copy", 60, "pre-copy")
        CLUSTER.drover("h1", "jobabort", "g1", self.FEATURE)
        job = events.wait(lambda e: e["event"] == "move" and e["job"]["result"], 90, "its end")["job"]
        self.assertEqual(job["result"], "canceled", job)
        self.only_at("h1")
        self.good(counter)

    def test_refusals_name_the_reason(self):
        for to, word in (("h9", "h9"), ("h2/g9", "g9")):
            code, _, err = CLUSTER.drover("h1", "migrate", "g1", self.FEATURE, "--to", to, check=False)
            self.assertIn(code, (3, 4), err)
            self.assertIn(word, err)
        self.only_at("h1")


# Hangs up after each reply, which takes the kernel a while to bring to its reader.
HANGS_UP = r'''
import socket, threading
reply = b"x" * 40_000
def serve(c):
    try:
        if c.recv(16):
            c.sendall(reply)
    except OSError:
        pass
    c.close()
s = socket.create_server(("", 7000), backlog=128)
while True:
    threading.Thread(target=serve, args=s.accept()[:1], daemon=True).start()
'''
# Many readers, each with a new connection per request; what each of their requests came to.
READERS = r'''
import json, signal, socket, sys, threading, time
host, out, readers = sys.argv[1], sys.argv[2], int(sys.argv[3])
report = {"replies": 0, "unconnected": 0, "lost": []}
stop = threading.Event()
lock = threading.Lock()
def end(*_):
    stop.set()
signal.signal(signal.SIGTERM, end)
def read():
    while not stop.is_set():
        try:
            s = socket.create_connection((host, 7000), timeout=20)
        except OSError:
            with lock:
                report["unconnected"] += 1
            time.sleep(0.1)
            continue
        got = 0
        try:
            s.sendall(b"next")
            while piece := s.recv(1 << 16):
                got += len(piece)
            why = None if got == 40_000 else "it hung up early"
        except OSError as e:
            why = str(e)
        s.close()
        with lock:
            if why:
                report["lost"].append(f"{why} after {got} bytes")
            else:
                if not report["replies"]:
                    # It had to start first.
                    report["unconnected"] = 0
                report["replies"] += 1
threads = [threading.Thread(target=read) for _ in range(readers)]
for t in threads:
    t.start()
for t in threads:
    t.join()
json.dump(report, open(out, "w"))
'''


class Script(FeatureCase):
    """A feature that is a program in Python, at hand in both guests."""

    MOVES = 4

    def setUp(self):
        self.clients, self.events = [], []
        path = f"/usr/local/lib/{self.FEATURE}.py"
        with tempfile.NamedTemporaryFile("w", suffix=".py") as f:
            f.write(self.PROGRAM)
            f.flush()
            for guest in ("g1", "g2"):
                CLUSTER.push(guest, f.name, path, "0644")
        CLUSTER.define("h1", "g1", {
            "name": self.FEATURE, "automatic": False,
            "workload": {"kind": "managed", "address": f"{self.ADDRESS}/24",
                         "exec": ["/usr/bin/python3", path]}})
        CLUSTER.drover("h1", "enable", "g1", self.FEATURE)

    def moves(self):
        """Moves it there and back, and gives each job at its end."""
        for n in range(self.MOVES):
            here, there = ("h1", "h2") if n % 2 == 0 else ("h2", "h1")
            CLUSTER.drover(here, "migrate", GUESTS[here], self.FEATURE, "--to", there, timeout=240)
            self.only_at(there)
            yield CLUSTER.drover_json(here, "jobs")[0]


class HangsUp(Script):
    """A server that closes each connection itself, so that a reply may be under way when no
    process holds its socket any more."""

    FEATURE, ADDRESS = "hangsup", "10.88.0.234"
    PROGRAM = HANGS_UP

    def test_no_reply_is_lost(self):
        out = self.scratch("readers.json")
        self.process = CLUSTER.popen("client", "python3", "-c", READERS, self.ADDRESS, out, 6)
        self.clients.append(self)
        for job in self.moves():
            print("hangs up:", job["freeze_ms"], job["detail"]["freeze"], job["detail"]["retried"])
        self.process.terminate()
        self.process.wait(timeout=90)
        found = json.loads(out.read_text())
        print("hangs up:", found)
        self.assertEqual((found["lost"], found["unconnected"]), ([], 0), found)
        self.assertGreater(found["replies"], 100, found)


# Has a file of its own process open for a third of the time, in no rhythm.
READS = r'''
import random, socket, threading, time
def serve():
    s = socket.create_server(("", 7000))
    while True:
        s.accept()[0].close()
threading.Thread(target=serve, daemon=True).start()
while True:
    with open("/proc/self/stat") as f:
        f.read()
        time.sleep(random.uniform(0.001, 0.005))
    time.sleep(random.uniform(0.003, 0.012))
'''


class Reads(Script):
    """A program that now and then has a file of its own process open, which criu cannot carry: it
    is stopped at another moment, and no attempt is lost."""

    FEATURE, ADDRESS = "reads", "10.88.0.235"
    PROGRAM = READS

    def test_an_open_file_costs_no_attempt(self):
        for job in self.moves():
            self.assertEqual((job["result"], job["detail"]["retried"]), ("done", []), job)
