"""Every `drover` command of the README and of docs/ runs on a real host, as it is written there but
for names. docs/quickstart.md is followed by tests/packages/run.py, from the packages."""

import re
import time
import unittest

from cluster_api import ROOT, redis, wait_until
from shared import CLUSTER

# Names of the documents, and what they are on the cluster.
NAMES = {"web1": "g1", "web2": "g2", "kvm1": "h1", "kvm2": "h2", "192.0.2.50": "10.88.0.238"}
FEATURE = "cache"
# Exit codes that are an answer: doctor warns.
ANSWERS = {"doctor": {0, 7}}


def blocks(path, language):
    """Fenced blocks of a language; for `sh` also what is indented."""
    text = path.read_text()
    found = re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)
    if language == "sh":
        outside = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
        found += ["\n".join(re.findall(r"^ {4}(.*)", outside, re.M))]
    return found


def commands(path):
    lines = [line for body in blocks(path, "sh") for line in body.splitlines()]
    return [re.sub(r"\s+#.*", "", line) for line in lines if line.startswith("drover ")]


def translated(text):
    for name, here in NAMES.items():
        text = text.replace(name, here)
    return text


def longer(csv):
    """An export of half a minute, again and again, as one of two hours: a simulation wants more than
    an hour."""
    head, *rows = csv.splitlines()
    rows = [row.split(",", 2) for row in rows]
    first, last = int(rows[0][1]), int(rows[-1][1])
    pause = last - first + 2000
    again = [f"{when},{int(ms) + n * pause},{rest}" for n in range(7_200_000 // pause)
             for when, ms, rest in rows]
    return "\n".join([head, *again, ""])


class Documents(unittest.TestCase):
    def setUp(self):
        readme = ROOT / "README.md"
        spec = next(b for b in blocks(readme, "toml") if "[workload]" in b)
        CLUSTER.exec("h1", "tee", "/root/cache.toml", stdin=translated(spec))

    def tearDown(self):
        for name in ("cache", "mail"):
            for host, domain, _ in CLUSTER.hosts_of(name):
                CLUSTER.drover(host, "disable", domain, name)
                CLUSTER.drover(host, "undefine", domain, name)
        CLUSTER.prepare(1)

    def home(self):
        """The feature is on h1, where the documents have it."""
        host, domain, _ = CLUSTER.hosts_of(FEATURE)[0]
        if host != "h1":
            CLUSTER.drover(host, "migrate", domain, FEATURE, "--to", "h1/g1")

    def run_one(self, line):
        """One command, on the host of the guest that it names."""
        host = "h2" if re.search(r"\bweb2\b.*>", line) else "h1"
        line = translated(line)
        verb = line.split()[1]
        if verb == "event":
            # It follows until it is ended.
            process = CLUSTER.popen(host, *line.split())
            time.sleep(2)
            self.assertIsNone(process.poll(), line)
            process.terminate()
            process.wait()
            return
        code, out, err = CLUSTER.exec(host, "sh", "-c", f"cd /root && {line}", check=False,
                                      timeout=300)
        self.assertIn(code, ANSWERS.get(verb, {0}), f"{line}\n{out}\n{err}")
        if export := re.search(r" > (\S+\.csv)$", line):
            # "Then, anywhere": here on h1.
            file = f"/root/{export[1]}"
            CLUSTER.exec("h1", "tee", file, stdin=longer(CLUSTER.exec(host, "cat", file)[1]))
        else:
            self.assertTrue(out.strip() or err.strip(), f"{line} says nothing")

    def test_every_command(self):
        pages = {p.name: commands(p) for p in sorted((ROOT / "docs").glob("*.md"))}
        del pages["quickstart.md"]
        begin = commands(ROOT / "README.md")
        # The README's simulation takes what docs/simulate.md exports.
        defined = next(i for i, c in enumerate(begin) if c.startswith("drover simulate"))
        for line in begin[:defined]:
            self.run_one(line)
        CLUSTER.define("h2", "g2", redis("mail", "10.88.0.239", automatic=False))
        CLUSTER.drover("h2", "enable", "g2", "mail")
        for host, guest, name in (("h1", "g1", "cache"), ("h2", "g2", "mail")):
            wait_until(lambda h=host, g=guest, n=name: len(CLUSTER.drover(
                h, "history", g, n, "--since", "1d", "--format", "csv").splitlines()) > 12,
                60, f"history of {name}")
        for line in pages.pop("simulate.md"):
            self.run_one(line)
        for line in begin[defined:]:
            self.run_one(line)
        self.home()
        # Its own decision and move stand for those of the document.
        decision = CLUSTER.drover_json("h1", "decision")[0]["id"]
        move = CLUSTER.drover_json("h1", "jobs")[0]["id"]
        for line in pages.pop("decision.md"):
            line = re.sub(r"(drover decision) [0-9a-f]+", rf"\1 {decision}", line)
            self.run_one(re.sub(r"(drover jobinfo) [0-9a-f-]+", rf"\1 {move}", line))
        for name in ("cache", "mail"):
            for host, domain, _ in CLUSTER.hosts_of(name):
                CLUSTER.drover(host, "disable", domain, name)
                CLUSTER.drover(host, "undefine", domain, name)
        for page in ("troubleshooting.md", "upgrade.md"):
            for line in pages.pop(page):
                self.run_one(line)
        left = {p: c for p, c in pages.items() if c}
        self.assertEqual(left, {}, "commands of these pages are run by nobody")
