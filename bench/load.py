"""The clients: wrk or h2load where they can, `churn` (bench/churn) where connections are refused or clients do not wait for
each other, held sockets where they are idle.

Each run of a load program returns what it carried, or raises Unmeasured when its errors make the count worthless.
"""

import json
import os
import re
import select
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from procs import Unmeasured
from settings import text

HERE = Path(__file__).resolve().parent
PATIENCE = 20  # seconds a load may take beyond its own duration
TOLERATED = 0.001  # share of errors above which a count means nothing
ABREAST = 64  # idle connections opened at once: far below every listen backlog
BOOKKEEPER = ("127.0.40.1", 0)  # who asks from here is not in the application's books (churn/src/app.rs)
LATE = 0.01  # seconds; a generator whose slowest percent of clients is later than this is no open loop
REQUEST = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
H2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # and an empty SETTINGS frame


@dataclass
class Carried:
    count: float  # requests, connections or MiB
    seconds: float
    p50_us: int
    p99_us: int


@dataclass
class Fared:
    """How the clients of a storm did, within the measured seconds."""

    seconds: float
    served: int
    refused: int
    retry_after: int  # of the refused
    gave_up: int
    broken: int  # cut off, or answered with something else
    served_p50: int  # µs; None when nobody was
    served_p99: int
    refused_p99: int
    served_ever: int  # also outside the measured seconds

    @property
    def all(self):
        return self.served + self.refused + self.gave_up + self.broken


class Clients:
    """How to call the load programs, and on which cores."""

    def __init__(self, wrk, h2load, churn, cores):
        self.wrk_binary, self.h2load_binary, self.churn_binary, self.cores = wrk, h2load, churn, cores

    def wrk(self, address, seconds, connections, path="/", close=False, count="requests", expect="served"):
        """`expect` is "served" or "refused" (an error status): any other answer is an error."""
        argv = [self.wrk_binary, "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(HERE / "wrk.lua"), "--latency"]
        if close:
            argv += ["-H", "Connection: close"]
        out = self._run(argv + [f"http://{text(address)}{path}"], seconds)
        lines = [line for line in out.splitlines() if line.startswith("BENCH ")]
        if not lines:
            raise Unmeasured(f"wrk said nothing usable: {out[-200:]!r}")
        said = json.loads(lines[0][len("BENCH "):])
        errors = {kind: said[kind] for kind in ("connect", "read", "write", "status", "timeout") if said[kind]}
        if expect == "refused":
            errors["served"] = said["requests"] - errors.pop("status", 0)
        _judge(said["requests"], errors)
        carried = said["bytes"] / 2**20 if count == "mib" else said["requests"]
        return Carried(carried, said["micros"] / 1e6, said["p50"], said["p99"])

    def h2load(self, address, seconds, connections, streams):
        """HTTP/2 by prior knowledge, `streams` at a time on each connection."""
        with tempfile.NamedTemporaryFile("r", prefix="tidegate-h2load-") as log:
            out = self._run([self.h2load_binary, "-t1", f"-c{connections}", f"-m{streams}", f"-D{seconds}", f"--log-file={log.name}",
                             f"http://{text(address)}/"], seconds)
            return h2load_said(out, seconds, log)

    def storm(self, address, rate, warm, seconds, patience_ms):
        """`rate` clients a second, whatever became of the earlier ones, each leaving after `patience_ms`."""
        words = [str(rate), str(warm), str(seconds), str(patience_ms)]
        return storm_said(json.loads(self._run([self.churn_binary, "storm", text(address), *words], warm + seconds)))

    def churn(self, address, seconds, threads, expect):
        """`expect` is "served" or "refused": any other end is an error."""
        out = self._run([self.churn_binary, text(address), str(threads), str(seconds)], seconds)
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


def h2load_said(out, seconds, log):
    """What h2load's own words and its log (start, status, µs; one line per request) come to."""
    counts = re.search(r"^requests: .* (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", out, re.MULTILINE)
    if not counts:
        raise Unmeasured(f"h2load said nothing usable: {out[-200:]!r}")
    succeeded, *failures = map(int, counts.groups())
    _judge(succeeded, {kind: n for kind, n in zip(("failed", "errored", "timeout"), failures) if n})
    took = sorted(int(line.split("\t")[2]) for line in log)
    at = lambda percent: took[(len(took) - 1) * percent // 100] if took else None
    return Carried(succeeded, seconds, at(50), at(99))


def storm_said(said):
    if said["late_p99"] > LATE * 1e6:
        raise Unmeasured(f"the clients themselves were late: one in a hundred by {said['late_p99'] / 1000:.0f} ms")
    of = lambda kind, percentile: said[f"{kind}_{percentile}"] if said[kind] else None
    return Fared(said["micros"] / 1e6, said["served"], said["refused"], said["retry_after"], said["gave_up"],
                 said["broken"] + said["unconnected"], of("served", "p50"), of("served", "p99"), of("refused", "p99"), said["served_ever"])


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


def answers_h2(address, timeout=1.0):
    """It speaks HTTP/2 without being asked to: a SETTINGS frame comes first."""
    try:
        with socket.create_connection(address, timeout) as sock:
            sock.sendall(H2_PREFACE)
            head = sock.recv(9, socket.MSG_WAITALL)
            return len(head) == 9 and head[3] == 4
    except OSError:
        return False


def books(address):
    """What the application at `address` (churn app) has counted. Asking is not counted."""
    return json.loads(_page(address, "/books"))


def accepted(address):
    """How many connections the application at `address` (nginx) has had. Asking is one more."""
    return int(_page(address, "/accepted").split()[7])  # stub_status: after "server accepts handled requests"


def _page(address, path):
    try:
        connection = HTTPConnection(*address, timeout=5, source_address=BOOKKEEPER)
        with closing(connection):
            connection.request("GET", path)
            return connection.getresponse().read()
    except (OSError, HTTPException) as error:
        raise Unmeasured(f"the application did not say {path}: {error}") from None


@contextmanager
def held_request(address, app, deadline_in=5.0):
    """One request in progress at `app` (churn app) meanwhile: it fills a limit of 1. It must still be there at the end."""
    deadline = time.monotonic() + deadline_in
    while True:
        sock = socket.socket()
        with suppress(OSError):
            sock.settimeout(1.0)
            sock.connect(address)
            sock.sendall(REQUEST.replace(b"/ ", b"/hold ", 1))
            if not select.select([sock], [], [], 0.2)[0] and books(app)["held"] == 1:
                break
        sock.close()  # refused: the slot of the readiness check is not free yet
        if time.monotonic() > deadline:
            raise Unmeasured("the request to be held never reached the application")
    with sock:
        yield
        if select.select([sock], [], [], 0)[0] or books(app)["held"] != 1:
            raise Unmeasured("the held request was lost")


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


@contextmanager
def collector():
    """The address of one that takes every span it is sent over HTTP, and forgets it."""

    class Taking(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Taking)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def deaf_collector():
    """The address of one that the kernel accepts for, and that never reads or says anything."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        yield listener.getsockname()
