"""Workloads that give up root: their first process is Drover's own, and stays root."""

from shared import CLUSTER, FeatureCase


class Unprivileged(FeatureCase):
    """A redis under setpriv, as PostgreSQL and memcached run."""

    FEATURE, ADDRESS = "plain", "10.88.0.240"
    KEYS = 5_000
    SPEC = {"automatic": False, "workload": {
        "exec": ["/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
                 "--no-new-privs", "/usr/bin/redis-server", "--port", "6379", "--bind", "*",
                 "--protected-mode", "no", "--save", "", "--appendonly", "no"]}}

    def test_there_and_back(self):
        counter = self.client()
        uid = CLUSTER.guest("g1", "sh", "-c", "ps -o user= -C redis-server")[1].split()
        self.assertEqual(uid, ["nobody"])
        for a, b in (("h1", "h2"), ("h2", "h1"), ("h1", "h3"), ("h3", "h1")):
            CLUSTER.drover(a, "migrate", f"g{a[1]}", self.FEATURE, "--to", f"{b}/g{b[1]}", timeout=180)
            self.only_at(b)
        self.good(counter)

    def test_its_end_is_told_as_it_was(self):
        for script, word in (("exit 3", "exited with status 3"), ("kill -9 $$", "killed by SIGKILL")):
            events = self.watch("h1")
            name = "ends"
            CLUSTER.define("h1", "g1", {"name": name, "automatic": False, "workload": {
                "kind": "managed", "address": "10.88.0.241/24",
                "exec": ["/bin/sh", "-c", f"sleep 2; {script}"]}})
            try:
                CLUSTER.drover("h1", "enable", "g1", name)
                events.wait(lambda e, w=word: name in str(e) and w in str(e), 30, word)
            finally:
                CLUSTER.drover("h1", "disable", "g1", name)
                CLUSTER.drover("h1", "undefine", "g1", name)
