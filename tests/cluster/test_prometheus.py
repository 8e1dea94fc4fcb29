"""A real Prometheus scrapes the cluster; the dashboard's questions are asked of it."""

import json
import re
import subprocess
import unittest
import urllib.parse

from cluster_api import ROOT, Failed, load_feature, run, wait_until
from shared import CLUSTER

DIR = ROOT / "target" / "prometheus"
PORT = 19090
CONFIG = """
global: {scrape_interval: 2s, scrape_timeout: 2s}
scrape_configs:
  - job_name: drover
    static_configs:
      - targets: ["10.88.0.11:9177", "10.88.0.12:9177", "10.88.0.13:9177"]
"""
# What a dashboard puts in place of its variables.
VARIABLES = {"$host": ".*", "$domain": ".*", "$feature": ".*", "$__rate_interval": "1m"}


def expressions():
    """Every expression of the dashboard, with the title of its panel."""
    board = json.loads((ROOT / "packaging" / "grafana" / "drover.json").read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            expr = target["expr"]
            for name, value in VARIABLES.items():
                expr = expr.replace(name, value)
            if "$" in expr:
                raise AssertionError(f"a variable is left: {expr}")
            yield panel["title"], expr


class Prometheus(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        try:
            out = run(ROOT / "vagrant" / "provision" / "prometheus.sh", DIR, timeout=300)[1]
        except Failed as e:
            raise unittest.SkipTest(f"Debian's prometheus cannot be had here: {e}") from e
        cls.bin = out.strip()
        (DIR / "cluster.yml").write_text(CONFIG)
        data = DIR / f"data-{CLUSTER.name}"
        run("rm", "-rf", data)
        cls.process = CLUSTER.popen(
            "client", f"{cls.bin}/prometheus", f"--config.file={DIR / 'cluster.yml'}",
            f"--storage.tsdb.path={data}", f"--web.listen-address=127.0.0.1:{PORT}",
            "--log.level=error", stdout=subprocess.DEVNULL)

    @classmethod
    def tearDownClass(cls):
        cls.process.terminate()
        cls.process.wait(timeout=30)

    def api(self, path, **query):
        url = f"http://127.0.0.1:{PORT}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        out = CLUSTER.exec("client", "curl", "-s", "--max-time", "20", url, check=False)[1]
        answer = json.loads(out) if out else {"status": "no answer"}
        self.assertEqual(answer["status"], "success", answer)
        return answer["data"]

    def result(self, expr):
        return self.api("query", query=expr)["result"]

    def up(self):
        try:
            return sum(s["value"][1] == "1" for s in self.result("up")) == 3
        except AssertionError:
            return False

    def remove(self):
        for name in ("watched", "quiet"):
            for host, domain, _ in CLUSTER.hosts_of(name):
                CLUSTER.drover(host, "disable", domain, name)
                CLUSTER.drover(host, "undefine", domain, name)

    def test_every_panel_has_data(self):
        self.addCleanup(self.remove)
        wait_until(self.up, 60, "three hosts are scraped")
        CLUSTER.define("h1", "g1", load_feature("watched", "10.88.0.233", 30, "cpu"))
        CLUSTER.drover("h1", "enable", "g1", "watched")
        CLUSTER.define("h3", "g3", load_feature("quiet", "10.88.0.234", 5, "cpu"))
        CLUSTER.drover("h3", "enable", "g3", "quiet")
        CLUSTER.drover("h1", "migrate", "g1", "watched", "--to", "h2", timeout=180)
        CLUSTER.drover("h2", "threshold", "g2", "watched", "cpu > 10 % for 2 s")
        wait_until(lambda: self.result("drover_feature_breached == 1"), 60, "the breach is scraped")
        # Rates need some scrapes after the move.
        moved = 'sum(increase(drover_moves_total{result="done"}[1m]))'
        wait_until(lambda: float(self.result(moved)[0]["value"][1]) > 0, 60, "the move is scraped")
        asked = list(expressions())
        self.assertGreater(len(asked), 15)
        empty = [(title, expr) for title, expr in asked if not self.result(expr)]
        self.assertEqual(empty, [])
        # The dashboard's variables.
        for name, of in (("instance", "drover_host_cpus"), ("domain", "drover_feature_running"),
                         ("feature", "drover_feature_running")):
            values = self.api(f"label/{name}/values", **{"match[]": of})
            self.assertGreaterEqual(len(values), 2, name)

    def test_labels_are_few(self):
        wait_until(self.up, 60, "three hosts are scraped")
        labels = set(self.api("labels", **{"match[]": '{job="drover",__name__=~"drover_.+"}'}))
        self.assertLessEqual(labels, {"__name__", "instance", "job", "domain", "feature", "peer",
                                      "result", "outcome", "version"})
        # Series per host: a number per feature, and one that does not depend on them.
        for row in self.result('count by (instance) ({__name__=~"drover_.+"})'):
            instance = row["metric"]["instance"]
            per = self.result(f'count by (domain, feature) ({{instance="{instance}",feature!=""}})')
            most = max((int(r["value"][1]) for r in per), default=0)
            self.assertLessEqual(most, 30, "metrics of one feature")
            self.assertLessEqual(int(row["value"][1]), 60 + most * len(per), row)

    def test_history_goes_into_prometheus(self):
        """`drover history --format openmetrics` is what promtool takes."""
        self.addCleanup(self.remove)
        CLUSTER.define("h1", "g1", load_feature("watched", "10.88.0.233", 30, "cpu"))
        CLUSTER.drover("h1", "enable", "g1", "watched")
        wait_until(lambda: len(CLUSTER.drover_json("h1", "history", "g1", "watched")) >= 3, 60,
                   "three points")
        text = CLUSTER.drover("h1", "--format", "openmetrics", "history", "g1", "watched")
        source, blocks = DIR / f"{CLUSTER.name}.om", DIR / f"blocks-{CLUSTER.name}"
        source.write_text(text)
        run("rm", "-rf", blocks)
        run(f"{self.bin}/promtool", "tsdb", "create-blocks-from", "openmetrics", source, blocks)
        # Without it promtool takes the directory for no database.
        (blocks / "wal").mkdir(exist_ok=True)
        out = run(f"{self.bin}/promtool", "tsdb", "dump", blocks)[1]
        samples = re.findall(r'__name__="drover_feature_used_cpus".*? ([0-9.e+-]+) [0-9]+', out)
        self.assertEqual(len(samples), text.count("\ndrover_feature_used_cpus{"), out[:500])
        self.assertTrue(any(0.1 < float(v) < 0.5 for v in samples), samples)
