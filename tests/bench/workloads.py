"""The workloads of the bench: what runs in the guest, what is put there, how it is spoken to."""

SERVER_PY = '''
import asyncio

sums = {}

async def serve(reader, writer):
    while line := await reader.readline():
        word, name, n = line.split()
        sums[name] = sums.get(name, 0) + int(n)
        writer.write(b"%d\\n" % sums[name])
        await writer.drain()
    writer.close()

async def tick():
    # Timers and a thread of the executor, as servers have them.
    while True:
        await asyncio.sleep(0.05)
        await asyncio.get_running_loop().run_in_executor(None, sum, range(100))

async def main():
    server = await asyncio.start_server(serve, "0.0.0.0", 7000)
    ticking = asyncio.create_task(tick())
    async with server:
        await server.serve_forever()

asyncio.run(main())
'''

SERVER_JS = '''
const http = require("http");
const sums = new Map();
const server = http.createServer((request, response) => {
  const [, word, name] = request.url.split("/");
  if (word === "count") sums.set(name, (sums.get(name) || 0) + 1);
  const text = String(sums.get(name) || 0);
  response.writeHead(200, {"Content-Length": text.length});
  response.end(text);
});
server.keepAliveTimeout = 0;
server.requestTimeout = 0;
setInterval(() => sums.size, 50);
server.listen(7001, "0.0.0.0");
'''

NGINX = '''
worker_processes 2;
daemon off;
error_log stderr;
pid /run/drover-bench-nginx.pid;
events { worker_connections 256; }
http {
    access_log off;
    keepalive_timeout 3600;
    keepalive_requests 1000000000;
    server {
        listen 80;
        root /srv/bench;
    }
}
'''

# libuv takes it wherever the kernel has it, and criu cannot carry it.
NO_IO_URING = "sysctl -qw kernel.io_uring_disabled=2"

POSTGRES_DIR = "/var/lib/postgresql/bench"
POSTGRES_BIN = "/usr/lib/postgresql/17/bin"
POSTGRES_INIT = f"""
rm -rf {POSTGRES_DIR}
mkdir -p /run/postgresql
chown postgres:postgres /run/postgresql
setpriv --reuid=postgres --regid=postgres --clear-groups {POSTGRES_BIN}/initdb -D {POSTGRES_DIR} \\
    --auth=trust --no-sync >/dev/null
echo "host all all 10.88.0.0/24 trust" >>{POSTGRES_DIR}/pg_hba.conf
"""


def under_root(command):
    """A program that gives up root, under a shell that keeps it: criu needs that of the first
    process of a PID namespace. The shell passes SIGTERM on."""
    script = f"trap 'kill $child' TERM; {command} & child=$!; wait $child; wait $child; exit $?"
    return ["/bin/sh", "-c", script]


class Workload:
    """`files`: path in both guests -> content. `setup`: a script in both guests, `first`: one in the
    guest where the feature begins. `state`: state directories."""

    def __init__(self, name, protocol, port, command, files=None, setup=None, first=None, state=(),
                 environment=None, connections=4):
        self.name, self.protocol, self.port, self.command = name, protocol, port, command
        self.files, self.setup, self.first = files or {}, setup, first
        self.state, self.environment, self.connections = state, environment or {}, connections

    def spec(self, address):
        workload = {"kind": "managed", "exec": self.command, "address": f"{address}/24",
                    "environment": self.environment}
        if self.state:
            workload["state"] = list(self.state)
        return {"name": self.name, "workload": workload, "automatic": False, "downtime_ms": 1000}


ALL = [
    Workload("redis", "redis", 6379,
             ["/usr/bin/redis-server", "--port", "6379", "--bind", "*", "--protected-mode", "no",
              "--save", "", "--appendonly", "no"]),
    Workload("memcached", "memcached", 11211,
             under_root("/usr/bin/memcached -u memcache -l 0.0.0.0 -p 11211 -U 0 -m 64")),
    Workload("nginx", "http", 80,
             ["/usr/sbin/nginx", "-e", "stderr", "-c", "/etc/drover-bench.conf"],
             files={"/etc/drover-bench.conf": NGINX, "/srv/bench/data": "drover bench\n" * 500}),
    Workload("asyncio", "counter", 7000, ["/usr/bin/python3", "/srv/bench/server.py"],
             files={"/srv/bench/server.py": SERVER_PY}),
    Workload("node", "node", 7001, ["/usr/bin/node", "/srv/bench/server.js"],
             files={"/srv/bench/server.js": SERVER_JS}, setup=NO_IO_URING),
    Workload("postgres", "postgres", 5432,
             under_root("/usr/bin/setpriv --reuid=postgres --regid=postgres --clear-groups "
                        f"{POSTGRES_BIN}/postgres -D {POSTGRES_DIR} -c listen_addresses='*' "
                        # Its shared memory in its own directory, which moves, not in the guest's.
                        "-c dynamic_shared_memory_type=mmap"),
             setup="mkdir -p /run/postgresql; chown postgres:postgres /run/postgresql",
             first=POSTGRES_INIT, state=[POSTGRES_DIR], connections=3),
]
