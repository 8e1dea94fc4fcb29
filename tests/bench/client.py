#!/usr/bin/env python3
"""Clients outside the guests, for the benches: several connections that stay open, each checking
every reply against what it must be.

    client.py PROTOCOL ADDRESS:PORT --out FILE [--connections N] [--pause MS]

PROTOCOL is redis, rewrite (5 MB/s over a redis of 200 MB), memcached, http, counter (a line protocol), node (counters over HTTP) or
postgres. Runs until SIGTERM, then reads back what was written and leaves a report: `replies`,
`errors` (no answer, a broken connection), `wrong` (an answer that is not the expected one),
`reconnects`, `first_error`, and `gaps`: every silence of a connection longer than 20 ms as
[its begin in ms since the epoch, its length in ms]."""

import argparse
import json
import os
import signal
import socket
import struct
import threading
import time

# Silences worth a note, seconds.
GAP = 0.020
# Longest silence that is not an error, seconds.
PATIENCE = 60

stopping = threading.Event()


class Wrong(Exception):
    """An answer that is not the expected one."""


class Connection:
    """A connection that reads whole lines and counts of bytes."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(PATIENCE)
        self.rest = b""

    def more(self):
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the server closed the connection")
        self.rest += data

    def line(self):
        while b"\n" not in self.rest:
            self.more()
        line, self.rest = self.rest.split(b"\n", 1)
        return line.rstrip(b"\r")

    def take(self, n):
        while len(self.rest) < n:
            self.more()
        data, self.rest = self.rest[:n], self.rest[n:]
        return data

    def close(self):
        self.socket.close()


def expect(got, want):
    if got != want:
        raise Wrong(f"got {got[:80]!r}, expected {want[:80]!r}")


class Redis:
    """A counter per connection, and a key whose last value is known."""

    def __init__(self, address, number):
        self.c, self.number, self.n = Connection(address), number, None

    def ask(self, *parts):
        request = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)
        self.c.socket.sendall(request)
        line = self.c.line()
        if line[:1] == b"$":
            size = int(line[1:])
            return None if size < 0 else self.c.take(size + 2)[:-2]
        if line[:1] == b"-":
            raise Wrong(line.decode())
        return line[1:]

    def step(self):
        n = int(self.ask(b"INCR", b"bench:%d" % self.number))
        if self.n is not None and n != self.n + 1:
            raise Wrong(f"counter {self.number} went from {self.n} to {n}")
        self.n = n
        expect(self.ask(b"SET", b"last:%d" % self.number, b"%d" % n), b"OK")

    def verify(self):
        expect(self.ask(b"GET", b"last:%d" % self.number), b"%d" % self.n)


class Rewrite(Redis):
    """Writes values of 10,000 bytes over the keys `fill:N`, whole turns of them, paced."""

    SIZE, KEYS, RATE = 10_000, 20_000, 5_000_000

    def __init__(self, address, number):
        super().__init__(address, number)
        self.begin, self.done = time.monotonic(), 0

    def step(self):
        value = os.urandom(self.SIZE)
        expect(self.ask(b"SET", b"fill:%d" % (self.done % self.KEYS), value), b"OK")
        self.done += 1
        due = self.begin + self.done * self.SIZE / self.RATE
        late = time.monotonic() - due
        if late > 1:
            # What a move held up is not made good: the rate is what counts.
            self.begin += late
        elif late < 0:
            time.sleep(-late)

    def verify(self):
        expect(self.ask(b"PING"), b"PONG")


class Memcached:
    """A counter and a value of 1,000 bytes that changes with it."""

    def __init__(self, address, number):
        self.c, self.number, self.n = Connection(address), number, 0
        expect(self.store(b"ctr:%d" % number, b"0"), b"STORED")

    def store(self, key, value):
        self.c.socket.sendall(b"set %s 0 0 %d\r\n%s\r\n" % (key, len(value), value))
        return self.c.line()

    def step(self):
        self.c.socket.sendall(b"incr ctr:%d 1\r\n" % self.number)
        self.n += 1
        expect(self.c.line(), b"%d" % self.n)
        expect(self.store(b"value:%d" % self.number, self.value()), b"STORED")

    def value(self):
        return (b"%d," % self.n * 1000)[:1000]

    def verify(self):
        if not self.n:
            return
        self.c.socket.sendall(b"get value:%d\r\n" % self.number)
        expect(self.c.line(), b"VALUE value:%d 0 1000" % self.number)
        expect(self.c.take(1002)[:-2], self.value())
        expect(self.c.line(), b"END")


class Http:
    """A file of known content over one connection that is kept alive."""

    PATH = b"/data"

    def __init__(self, address, number):
        self.c, self.number, self.n = Connection(address), number, 0
        self.body = None

    def get(self, path):
        self.c.socket.sendall(b"GET %s HTTP/1.1\r\nHost: bench\r\n\r\n" % path)
        status = self.c.line()
        expect(status, b"HTTP/1.1 200 OK")
        size = None
        while True:
            line = self.c.line().lower()
            if line.startswith(b"content-length:"):
                size = int(line.split(b":")[1])
            if line == b"connection: close":
                raise Wrong("the server wants to close the connection")
            if not line:
                return self.c.take(size)

    def step(self):
        body = self.get(self.PATH)
        if self.body is None:
            self.body = body
        expect(body, self.body)

    def verify(self):
        self.step()


class Node(Http):
    """A counter per connection, kept in the server."""

    def step(self):
        self.n += 1
        expect(self.get(b"/count/%d" % self.number), b"%d" % self.n)

    def verify(self):
        expect(self.get(b"/read/%d" % self.number), b"%d" % self.n)


class Counter:
    """Lines of `add NAME N`; the server answers with the sum so far."""

    def __init__(self, address, number):
        self.c, self.number, self.sum, self.n = Connection(address), number, 0, 0

    def step(self):
        self.n += 1
        self.c.socket.sendall(b"add c%d %d\n" % (self.number, self.n))
        self.sum += self.n
        expect(self.c.line(), b"%d" % self.sum)

    def verify(self):
        self.c.socket.sendall(b"add c%d 0\n" % self.number)
        expect(self.c.line(), b"%d" % self.sum)


class Postgres:
    """Rows inserted one transaction at a time; all that were acknowledged must be there."""

    def __init__(self, address, number):
        self.c, self.number, self.n = Connection(address), number, 0
        body = struct.pack("!I", 196608) + b"user\0postgres\0database\0postgres\0\0"
        self.c.socket.sendall(struct.pack("!I", len(body) + 4) + body)
        self.answer()
        self.query(f"CREATE TABLE IF NOT EXISTS bench{number} (n int PRIMARY KEY, v text)")
        self.query(f"TRUNCATE bench{number}")

    def answer(self):
        """Rows of first columns, up to ReadyForQuery."""
        rows, error = [], None
        while True:
            kind = self.c.take(1)
            body = self.c.take(struct.unpack("!I", self.c.take(4))[0] - 4)
            if kind == b"D":
                size = struct.unpack("!i", body[2:6])[0]
                rows.append(body[6:6 + size].decode())
            elif kind == b"R" and body[:4] != b"\0\0\0\0":
                raise Wrong("postgres wants a password")
            elif kind == b"E":
                error = body.replace(b"\0", b" ").decode(errors="replace")
                if b"FATAL" in body:
                    raise Wrong(error)
            elif kind == b"Z":
                if error:
                    raise Wrong(error)
                return rows

    def query(self, text):
        data = text.encode() + b"\0"
        self.c.socket.sendall(b"Q" + struct.pack("!I", len(data) + 4) + data)
        return self.answer()

    def step(self):
        n = self.n + 1
        self.query(f"INSERT INTO bench{self.number} VALUES ({n}, repeat('{n}', 50))")
        self.n = n
        got = self.query(f"SELECT max(n) FROM bench{self.number}")
        if got != [str(n)]:
            raise Wrong(f"the last row is {got}, expected {n}")

    def verify(self):
        got = self.query(f"SELECT count(*) FROM bench{self.number} WHERE v = repeat(n::text, 50)")
        if got != [str(self.n)]:
            raise Wrong(f"{got} rows are there, {self.n} were acknowledged")


PROTOCOLS = {"redis": Redis, "rewrite": Rewrite, "memcached": Memcached, "http": Http, "node": Node,
             "counter": Counter, "postgres": Postgres}


class Worker(threading.Thread):
    def __init__(self, kind, address, number, pause):
        super().__init__(daemon=True)
        self.kind, self.address, self.number, self.pause = kind, address, number, pause
        self.replies = self.errors = self.wrong = self.reconnects = 0
        self.first_error, self.gaps, self.verified = None, [], False

    def failed(self, error):
        if isinstance(error, Wrong):
            self.wrong += 1
        else:
            self.errors += 1
        if self.first_error is None:
            self.first_error = f"connection {self.number}: {type(error).__name__}: {error}"

    def run(self):
        client, last = None, None
        while not stopping.is_set():
            try:
                if client is None:
                    client = self.kind(self.address, self.number)
                client.step()
                now = time.time()
                if last is not None and now - last > GAP:
                    self.gaps.append([round(last * 1000), round((now - last) * 1000, 1)])
                last = now
                self.replies += 1
                time.sleep(self.pause)
            except (OSError, Wrong, ValueError) as e:
                self.failed(e)
                if client is not None:
                    client.c.close()
                    client = None
                    self.reconnects += 1
                stopping.wait(0.5)
        try:
            if client is not None:
                client.verify()
                self.verified = True
        except (OSError, Wrong, ValueError) as e:
            self.failed(e)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("protocol", choices=PROTOCOLS)
    parser.add_argument("address")
    parser.add_argument("--out", required=True)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--pause", type=float, default=5, help="between two requests, ms")
    parser.add_argument("--first", type=int, default=0, help="number of the first connection")
    args = parser.parse_args()
    for s in (signal.SIGTERM, signal.SIGINT):
        signal.signal(s, lambda *_: stopping.set())
    workers = [Worker(PROTOCOLS[args.protocol], args.address, args.first + n, args.pause / 1000)
               for n in range(args.connections)]
    for w in workers:
        w.start()
    while not stopping.wait(1):
        pass
    for w in workers:
        w.join(PATIENCE + 5)
    report = {k: sum(getattr(w, k) for w in workers)
              for k in ("replies", "errors", "wrong", "reconnects")}
    report["unverified"] = sum(not w.verified for w in workers)
    report["first_error"] = next((w.first_error for w in workers if w.first_error), None)
    report["gaps"] = sorted(g for w in workers for g in w.gaps)
    part = f"{args.out}.part"
    with open(part, "w") as f:
        json.dump(report, f)
    os.rename(part, args.out)


main()
