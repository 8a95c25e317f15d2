"""The clients: wrk where it can, `churn` (bench/churn) where connections are refused, held sockets where they are idle.

Each run of wrk or churn returns what it carried, or raises Unmeasured when its errors make the count worthless.
"""

import json
import os
import select
import socket
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from procs import Unmeasured

HERE = Path(__file__).resolve().parent
PATIENCE = 20  # seconds a load may take beyond its own duration
TOLERATED = 0.001  # share of errors above which a count means nothing
ABREAST = 64  # idle connections opened at once: far below every listen backlog
REQUEST = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"


@dataclass
class Carried:
    count: float  # requests, connections or MiB
    seconds: float
    p50_us: int
    p99_us: int


class Clients:
    """How to call the load programs, and on which cores."""

    def __init__(self, wrk, churn, cores):
        self.wrk_binary, self.churn_binary, self.cores = wrk, churn, cores

    def wrk(self, address, seconds, connections, path="/", close=False, count="requests"):
        argv = [self.wrk_binary, "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(HERE / "wrk.lua"), "--latency"]
        if close:
            argv += ["-H", "Connection: close"]
        out = self._run(argv + [f"http://{_text(address)}{path}"], seconds)
        lines = [line for line in out.splitlines() if line.startswith("BENCH ")]
        if not lines:
            raise Unmeasured(f"wrk said nothing usable: {out[-200:]!r}")
        said = json.loads(lines[0][len("BENCH "):])
        errors = {kind: said[kind] for kind in ("connect", "read", "write", "status", "timeout") if said[kind]}
        _judge(said["requests"], errors)
        carried = said["bytes"] / 2**20 if count == "mib" else said["requests"]
        return Carried(carried, said["micros"] / 1e6, said["p50"], said["p99"])

    def churn(self, address, seconds, threads, expect):
        """`expect` is "served" or "refused": any other end is an error."""
        out = self._run([self.churn_binary, _text(address), str(threads), str(seconds)], seconds)
        said = json.loads(out)
        counts = {"served": said["served"], "refused": said["closed"] + said["reset"]}
        other = "refused" if expect == "served" else "served"
        errors = {kind: n for kind, n in ((other, counts[other]), *((kind, said[kind]) for kind in ("unconnected", "broken"))) if n}
        _judge(counts[expect], errors)
        return Carried(counts[expect], said["micros"] / 1e6, said[f"{expect}_p50"], said[f"{expect}_p99"])

    def _run(self, argv, seconds):
        pin = lambda: os.sched_setaffinity(0, self.cores)
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + PATIENCE, preexec_fn=pin)
        except subprocess.TimeoutExpired:
            raise Unmeasured(f"{Path(argv[0]).name} did not end") from None
        if done.returncode:
            raise Unmeasured(f"{Path(argv[0]).name} failed: {done.stderr.strip()[-200:]}")
        return done.stdout


def _judge(count, errors):
    if count == 0:
        raise Unmeasured(f"nothing carried, errors {errors}")
    if sum(errors.values()) > TOLERATED * count:
        raise Unmeasured(f"{errors} beside {count} carried")


def answers(address, timeout=1.0):
    """One request through a new connection is answered."""
    try:
        with socket.create_connection(address, timeout) as sock:
            return _exchange(sock)
    except OSError:
        return False


@contextmanager
def held(address, deadline_in=5.0):
    """One served connection, kept open meanwhile: it fills a limit of 1. It must still answer at the end."""
    deadline = time.monotonic() + deadline_in
    while True:
        try:
            sock = socket.create_connection(address, 1.0)
            if _exchange(sock):
                break
            sock.close()
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise Unmeasured("the connection to be held was never served")
        time.sleep(0.05)  # the slot of the readiness check is not free yet
    with sock:
        yield
        try:
            alive = _exchange(sock)
        except OSError:
            alive = False
        if not alive:
            raise Unmeasured("the held connection was lost")


class Idle:
    """Connections that have each carried one request and now carry nothing."""

    def __init__(self, address):
        self.address = address
        self.sockets = []

    def open(self, count):
        while count:
            batch = min(count, ABREAST)
            self._batch(batch)
            count -= batch

    def _batch(self, count):
        waiting = {}
        poller = select.epoll()
        try:
            for _ in range(count):
                sock = socket.create_connection(self.address, 5.0)
                self.sockets.append(sock)
                sock.sendall(REQUEST)
                waiting[sock.fileno()] = sock
                poller.register(sock, select.EPOLLIN)
            deadline = time.monotonic() + 10
            while waiting:
                events = poller.poll(1.0)
                for fd, _ in events:
                    if not waiting[fd].recv(4096).startswith(b"HTTP/1.1 200"):
                        raise Unmeasured(f"connection {len(self.sockets)} was not served")
                    poller.unregister(fd)
                    del waiting[fd]
                if time.monotonic() > deadline:
                    raise Unmeasured(f"{len(waiting)} of the connections up to {len(self.sockets)} got no answer")
        except OSError as error:
            raise Unmeasured(f"connection {len(self.sockets)}: {error}") from None
        finally:
            poller.close()

    def lost(self):
        """How many of them the proxy has closed."""
        poller = select.poll()
        for sock in self.sockets:
            poller.register(sock, select.POLLIN | select.POLLRDHUP)
        return len(poller.poll(0))

    def close(self):
        for sock in self.sockets:
            sock.close()
        self.sockets.clear()


def _exchange(sock):
    sock.sendall(REQUEST)
    return sock.recv(4096).startswith(b"HTTP/1.1 200")


def _text(address):
    return f"{address[0]}:{address[1]}"
