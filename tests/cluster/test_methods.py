"""Other methods than live, and the user's own commands around a move."""

import json
import tempfile

from cluster_api import wait_until
from shared import CLUSTER, FeatureCase

DIR = "/srv/method"
# One connection per request, one number per connection, each number on disk before it is answered.
# SIGUSR2 has it read the number again, before it is asked for any; SIGUSR1 has it keep a file of its
# own process open, and close it at the next one.
SERVER = r'''
import os, signal, socket
path = "/srv/method/count"
if os.environ.get("TERMINAL"):
    os.openpty()
count = 0
held = []
def read(*_):
    global count
    count = int(open(path).read() or 0) if os.path.exists(path) else 0
signal.signal(signal.SIGUSR2, read)
def hold(*_):
    if held:
        held.clear()
    else:
        held.append(open("/proc/self/stat"))
signal.signal(signal.SIGUSR1, hold)
read()
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("", 7000))
s.listen(64)
while True:
    c, _ = s.accept()
    try:
        if c.recv(16):
            count += 1
            with open(path + ".new", "w") as f:
                f.write(str(count))
            os.rename(path + ".new", path)
            c.sendall(b"%d\n" % count)
    except OSError:
        pass
    c.close()
'''
# A new connection per request, for ever: what got through and what did not.
CLIENT = r'''
import json, signal, socket, sys, time
host, out = sys.argv[1], sys.argv[2]
report = {"replies": 0, "lost": 0, "refused": 0, "gap_ms": 0, "last": 0, "backwards": 0}
def end(*_):
    json.dump(report, open(out, "w"))
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
good = time.monotonic()
while True:
    asked = False
    try:
        s = socket.create_connection((host, 7000), timeout=20)
        asked = True
        s.sendall(b"next\n")
        n = int(s.recv(64))
        s.close()
        now = time.monotonic()
        if not report["replies"]:
            # It had to start first.
            report["refused"], good = 0, now
        report["gap_ms"] = max(report["gap_ms"], int((now - good) * 1000))
        good = now
        report["replies"] += 1
        report["backwards"] += n <= report["last"]
        report["last"] = n
    except (OSError, ValueError):
        report["lost" if asked else "refused"] += 1
    time.sleep(0.01)
'''


class Methods(FeatureCase):
    FEATURE, ADDRESS = "method", "10.88.0.233"
    SPEC = None

    def setUp(self):
        self.clients, self.events = [], []
        for guest in ("g1", "g2"):
            with tempfile.NamedTemporaryFile("w", suffix=".py") as f:
                f.write(SERVER)
                f.flush()
                CLUSTER.push(guest, f.name, "/usr/local/lib/method.py", "0644")
            self.sh(guest, f"rm -rf {DIR} /run/method.log /run/method.once; [ {guest} = g2 ] || mkdir -p {DIR}")

    def sh(self, guest, script):
        return CLUSTER.guest(guest, "sh", "-c", script)[1]

    def define(self, hooks, environment=None, **more):
        note = "echo $DROVER_HOOK $DROVER_SIDE >> /run/method.log"
        hooks = {n: {"exec": ["/bin/sh", "-c", f"{note}; {s}"], "timeout_s": t}
                 for n, (s, t) in hooks.items()}
        CLUSTER.define("h1", "g1", {
            "name": self.FEATURE, "automatic": False, "hooks": hooks, **more,
            "workload": {"kind": "managed", "environment": environment or {}, "address": f"{self.ADDRESS}/24", "state": [DIR],
                         "exec": ["/usr/bin/python3", "/usr/local/lib/method.py"]}})
        CLUSTER.drover("h1", "enable", "g1", self.FEATURE)
        wait_until(lambda: not any("of this name" in r for c in
                                   CLUSTER.drover_json("h1", "plan", "g1", self.FEATURE)["candidates"]
                                   for r in c["refusals"]),
                   30, "the others have none of this name any more, and h1 knows")
        out = self.scratch("client.json")
        self.out = out
        self.process = CLUSTER.popen("client", "python3", "-c", CLIENT, self.ADDRESS, out)
        self.clients.append(self)
        wait_until(lambda: self.sh("g1", f"cat {DIR}/count 2>/dev/null; true").strip() not in ("", "0"),
                   30, "it answers")

    def report(self):
        self.process.terminate()
        self.process.wait(timeout=60)
        found = json.loads(self.out.read_text())
        print(self.id(), found)
        self.assertEqual(found["backwards"], 0, found)
        self.assertGreater(found["replies"], 20, found)
        return found

    def hooks(self, guest):
        return self.sh(guest, "cat /run/method.log 2>/dev/null; true").split("\n")[:-1]

    def migrate(self, *args, to="h2/g2"):
        return CLUSTER.drover("h1", "migrate", "g1", self.FEATURE, "--to", to, *args,
                              check=False, timeout=240)

    def goes_on(self):
        """Here, as before the move, with nothing left there."""
        self.only_at("h1")
        before = int(self.sh("g1", f"cat {DIR}/count"))
        wait_until(lambda: int(self.sh("g1", f"cat {DIR}/count")) > before, 30, "it answers again")
        self.assertEqual(self.sh("g2", f"ls -d {DIR} 2>/dev/null; true").strip(), "")

    def test_restart_takes_its_state_along(self):
        self.define({"prepare": ("true", 10), "quiesce": ("sync", 10), "resume": ("true", 10),
                     "health": ("bash -c 'exec 3<>/dev/tcp/127.0.0.1/7000'", 20)},
                    method="restart")
        code, _, err = self.migrate()
        self.assertEqual(code, 0, err)
        self.only_at("h2")
        job = CLUSTER.drover_json("h1", "jobs")[0]
        self.assertEqual(job["detail"]["method"], "restart")
        print("restart:", job["freeze_ms"], job["detail"]["freeze"])
        wait_until(lambda: self.sh("g2", f"cat {DIR}/count").strip() != "", 10, "a count")
        before = int(self.sh("g2", f"cat {DIR}/count"))
        wait_until(lambda: int(self.sh("g2", f"cat {DIR}/count")) > before, 30, "it answers there")
        self.assertEqual(self.hooks("g1"), ["prepare source", "quiesce source"])
        there = self.hooks("g2")
        self.assertEqual((there[0], there[-1]), ("resume target", "health target"))
        self.report()

    def test_a_workload_that_criu_cannot_carry_moves_by_restart(self):
        self.define({}, environment={"TERMINAL": "1"})
        code, _, err = self.migrate()
        self.assertNotEqual(code, 0)
        self.assertIn("terminal", err)
        self.only_at("h1")
        code, _, err = self.migrate("--method", "restart")
        self.assertEqual(code, 0, err)
        self.only_at("h2")
        self.report()

    def test_handover_loses_no_reply(self):
        # The second instance must be there before it can be told anything: port 7000 listens.
        self.define({"prepare": ("until grep -q :1B58 /proc/net/tcp; do sleep 0.1; done", 60),
                     "quiesce": ("sync", 10),
                     "resume": ("kill -USR2 $DROVER_PID; sleep 0.2", 10),
                     "health": ("true", 10)}, method="handover", drain_ms=3000)
        code, _, err = self.migrate()
        self.assertEqual(code, 0, err)
        self.only_at("h2")
        job = CLUSTER.drover_json("h1", "jobs")[0]
        print("handover:", job["freeze_ms"], job["detail"]["freeze"])
        before = int(self.sh("g2", f"cat {DIR}/count"))
        wait_until(lambda: int(self.sh("g2", f"cat {DIR}/count")) > before, 30, "it answers there")
        self.assertEqual(self.hooks("g1"), ["prepare source", "quiesce source"])
        self.assertEqual(self.hooks("g2"), ["prepare target", "resume target", "health target"])
        found = self.report()
        self.assertEqual((found["lost"], found["refused"]), (0, 0), found)

    def test_what_was_open_for_a_moment_costs_an_attempt(self):
        once = "[ -e /run/method.once ] || { touch /run/method.once; kill -USR1 $DROVER_PID; }"
        self.define({"quiesce": (f"{once}; sleep 0.5", 10),
                     "abort": ("kill -USR1 $DROVER_PID; sleep 0.5", 10)})
        code, _, err = self.migrate()
        job = CLUSTER.drover_json("h1", "jobs")[0]
        print("attempts:", job["detail"]["retried"])
        self.assertEqual(code, 0, err)
        self.only_at("h2")
        self.assertEqual((job["result"], job["detail"]["attempt"]), ("done", 2), job)
        self.assertIn("/stat", job["detail"]["retried"][0])
        self.assertIn("Attempts: 2", CLUSTER.drover("h1", "jobinfo", job["id"]))
        self.assertEqual(self.hooks("g1"), ["quiesce source", "abort source", "quiesce source"])
        before = int(self.sh("g2", f"cat {DIR}/count"))
        wait_until(lambda: int(self.sh("g2", f"cat {DIR}/count")) > before, 30, "it answers there")
        self.report()

    def test_a_budget_that_cannot_be_met_is_handed_over(self):
        self.define({"prepare": ("until grep -q :1B58 /proc/net/tcp; do sleep 0.1; done", 60),
                     "quiesce": ("sync", 10),
                     "resume": ("kill -USR2 $DROVER_PID; sleep 0.2", 10)},
                    downtime_ms=1, over_budget="handover", throttle=False, drain_ms=3000)
        code, _, err = self.migrate()
        job = CLUSTER.drover_json("h1", "jobs")[0]
        self.assertEqual(code, 0, err)
        self.only_at("h2")
        self.assertEqual((job["detail"]["method"], job["detail"]["attempt"]), ("handover", 2), job)
        self.assertIn("the budget is 1 ms", job["detail"]["retried"][0])
        before = int(self.sh("g2", f"cat {DIR}/count"))
        wait_until(lambda: int(self.sh("g2", f"cat {DIR}/count")) > before, 30, "it answers there")
        found = self.report()
        self.assertEqual((found["lost"], found["refused"]), (0, 0), found)

    def test_failing_health_rolls_back(self):
        for method in ("restart", "handover"):
            with self.subTest(method):
                self.define({"quiesce": ("true", 10), "abort": ("true", 10),
                             "health": ("echo not well; exit 3", 2)})
                code, _, err = self.migrate("--method", method)
                self.assertEqual(code, 1, err)
                self.assertIn("hooks.health", err)
                self.assertIn("not well", err)
                self.goes_on()
                self.assertEqual(self.hooks("g1"), ["quiesce source", "abort source"])
                self.report()
                self.tearDown()
                self.setUp()
        self.define({})

    def test_failing_health_of_a_live_move_is_told(self):
        self.define({"resume": ("true", 10), "health": ("exit 3", 2)})
        code, out, err = self.migrate()
        self.assertEqual(code, 0, err)
        self.only_at("h2")
        job = CLUSTER.drover_json("h1", "jobs")[0]
        self.assertEqual(job["result"], "done")
        self.assertIn("hooks.health", job["detail"]["warning"])
        self.assertIn("hooks.health", out + err)
        self.assertIn("health target", self.hooks("g2"))
        self.report()

    def test_a_hook_that_hangs_or_fails_ends_the_move_in_time(self):
        for name, script, word in (("quiesce", "sleep 100", "did not end within 2 s"),
                                   ("prepare", "echo no; exit 1", "failed")):
            with self.subTest(name):
                self.define({name: (script, 2), "abort": ("true", 10)})
                code, _, err = self.migrate("--method", "restart")
                self.assertEqual(code, 1, err)
                self.assertIn(f"hooks.{name}", err)
                self.assertIn(word, err)
                self.goes_on()
                self.assertEqual(self.hooks("g1"), [f"{name} source", "abort source"])
                self.assertEqual(CLUSTER.processes("g1", "sleep 100"), [])
                self.report()
                self.tearDown()
                self.setUp()
        self.define({})
