"""Emptying a host; a decision that is only proposed."""

import unittest

from cluster_api import Events, load_feature, wait_until
from shared import CLUSTER, GUESTS


def one(name, address, **placement):
    spec = load_feature(name, f"10.88.0.{address}", 5, "cpu")
    return dict(spec, automatic=True, placement=placement)


class Drain(unittest.TestCase):
    def setUp(self):
        self.features = []

    def tearDown(self):
        CLUSTER.drover("h1", "drain", "--undo")
        for name in self.features:
            for host, domain, _ in CLUSTER.hosts_of(name):
                CLUSTER.drover(host, "disable", domain, name)
                CLUSTER.drover(host, "undefine", domain, name)

    def start(self, spec):
        CLUSTER.define("h1", "g1", spec)
        self.features.append(spec["name"])
        CLUSTER.drover("h1", "enable", "g1", spec["name"])

    def test_empties_and_names_what_stays(self):
        self.start(one("leaves", 225, priority=5))
        self.start(one("follows", 226, exclude=["h2"]))
        self.start(one("stays", 227, pin=["h1"]))
        cells = CLUSTER.drover_json("h1", "matrix", "stays")
        self.assertTrue(cells and all("pinned" in c["refusals"][0] for c in cells), cells)
        wait_until(lambda: CLUSTER.drover_json("h1", "stats", "g1", "follows")[0]["usage"], 60,
                   "they are metered")
        code, _, err = CLUSTER.drover("h1", "drain", "--wait", check=False, timeout=240)
        self.assertEqual(code, 4, err)
        status = CLUSTER.drover_json("h1", "drain", "--status")
        moved = dict(status["moved"])
        self.assertEqual(list(moved), ["leaves", "follows"], status)
        self.assertEqual(moved["follows"], "h3")
        self.assertEqual([(x["feature"], "pinned to h1" in x["reason"]) for x in status["left"]],
                         [("stays", True)])
        # The host takes nothing.
        back = CLUSTER.drover("h3", "migrate", GUESTS["h3"], "follows", "--to", "h1", check=False)
        self.assertEqual(back[0], 4, back)
        self.assertIn("draining", back[2])
        self.assertIn("accepts moves", CLUSTER.drover("h1", "drain", "--undo"))

    def test_a_proposal_waits_for_its_answer(self):
        spec = load_feature("asks", "10.88.0.228", 45, "cpu")
        self.start(dict(spec, automatic=True, placement={"mode": "advise"},
                        thresholds=[{"resource": "cpu", "limit": 20.0, "for_s": 3.0}]))
        self.start(load_feature("beside", "10.88.0.229", 40, "cpu"))
        events = Events(CLUSTER, "h1")
        self.addCleanup(events.stop)
        plan = events.wait(lambda e: e["event"] == "decision" and e["plan"]["outcome"] == "move",
                           90, "a decision to move")["plan"]
        self.assertEqual(plan["mode"], "advise")
        listed = wait_until(lambda: CLUSTER.drover_json("h1", "advice"), 10, "advice")
        self.assertEqual([r["id"] for r in listed], [plan["id"]])
        self.assertEqual(CLUSTER.hosts_of("asks")[0][0], "h1", "nothing moved by itself")
        CLUSTER.drover("h1", "approve", plan["id"], timeout=180)
        self.assertNotEqual(CLUSTER.hosts_of("asks")[0][0], "h1")
        row = CLUSTER.drover_json("h1", "decision", plan["id"])["row"]
        self.assertEqual(row["answer"], "approved")
        job = CLUSTER.drover("h1", "jobinfo", row["move_id"])
        self.assertIn(plan["id"], job)
        helped = wait_until(lambda: CLUSTER.drover_json("h1", "decision", plan["id"])["row"]
                            ["judged_ms"], 120, "it is measured whether the move helped")
        self.assertGreater(helped, 0)
        print(CLUSTER.drover("h1", "decision", plan["id"]))
        self.assertEqual(CLUSTER.drover_json("h1", "advice"), [])
