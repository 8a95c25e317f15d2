"""What is measured, and the bars (design: "Performance bars"). One row = one kind of work = one number per peer and round.

A row's `once` runs one peer once and returns a Sample. Every number is a cost (lower is better).
"""

import time
from contextlib import contextmanager
from dataclasses import dataclass, field

from load import Idle, held
from procs import Unmeasured, core_seconds

WARM_UP = 1  # seconds of the same load before it is measured
REFUSED_BY = 32  # clients of the refusal row, as many as open new connections in `newconn`
SETTLE = 1.0  # seconds after the last idle connection was opened


@dataclass
class Sample:
    value: float  # None without a proxy: there is nothing to weigh
    rate: float = None  # carried per second
    p50_us: int = None
    p99_us: int = None
    core: float = None  # share of the proxy's core the proxy used
    foreign: float = None  # share of it that somebody else used, the hypervisor included
    stolen: float = None  # share of it that the hypervisor gave to others; the kernel may count it as the proxy's time
    facts: dict = field(default_factory=dict)


@dataclass
class Bench:
    """What `once` needs besides the peer."""

    clients: object
    proxy_cores: set
    seconds: int
    idle: int  # connections of the idle row


class Row:
    without_proxy = True  # the peer `none` says something here
    bar_peers = None  # tidegate / best of HAProxy and nginx
    bar_engines = None  # uring / epoll
    bar_itself = None  # the number itself

    def applies(self, peer):
        return self.without_proxy or peer.name != "none"


class Wrk(Row):
    """CPU microseconds of the proxy per thing carried, under wrk."""

    def __init__(self, key, title, unit, bar_peers, bar_engines, **load):
        self.key, self.title, self.unit = key, title, unit
        self.bar_peers, self.bar_engines, self.load = bar_peers, bar_engines, load

    def once(self, bench, peer, place):
        if peer.name == "none":
            bench.clients.wrk(place.app, WARM_UP, **self.load)
            carried = bench.clients.wrk(place.app, bench.seconds, **self.load)
            return Sample(None, carried.count / carried.seconds, carried.p50_us, carried.p99_us)
        with proxy(bench, peer, place) as group:
            return weigh(bench, group, lambda seconds: bench.clients.wrk(place.listen, seconds, **self.load))


class Refusal(Row):
    """CPU of refusing a connection over CPU of serving one on the same peer, in the same round, by the same client.

    Serving: no limit in reach. Refusing: a limit of 1, held by one connection, and no queue.
    """

    key, title, unit = "refusal", "refusing / serving a new connection", "ratio"
    bar_itself = 0.35
    without_proxy = False

    def applies(self, peer):
        return peer.refuses

    def once(self, bench, peer, place):
        def churn(expect):
            return lambda seconds: bench.clients.churn(place.listen, seconds, REFUSED_BY, expect)

        with proxy(bench, peer, place) as group:
            served = weigh(bench, group, churn("served"))
        with proxy(bench, peer, place, limit=1) as group, held(place.listen):
            refused = weigh(bench, group, churn("refused"))
        facts = {"µs served": served.value, "µs refused": refused.value}
        return Sample(refused.value / served.value, refused.rate, refused.p50_us, refused.p99_us, refused.core,
                      max(served.foreign, refused.foreign), max(served.stolen, refused.stolen), facts)


class IdleMemory(Row):
    """Growth of the proxy's resident memory per open connection that has carried one request and now carries nothing."""

    key, title, unit = "idle", "memory of an idle connection", "KiB"
    bar_itself = 2.0
    without_proxy = False

    def once(self, bench, peer, place):
        idle = Idle(place.listen)
        with proxy(bench, peer, place) as group:
            try:
                # What connections in flight need, and what a first connection sets up for ever, is not the idle ones'.
                idle.open(64)
                idle.close()
                time.sleep(SETTLE)
                before, _ = group.memory_kib()
                idle.open(bench.idle)
                time.sleep(SETTLE)
                after, _ = group.memory_kib()
                lost = idle.lost()
            finally:
                idle.close()
        if lost:
            raise Unmeasured(f"{lost} of {bench.idle} idle connections were closed")
        return Sample((after - before) / bench.idle, facts={"MiB before": before / 1024, "MiB with all open": after / 1024})


ROWS = [
    Wrk("keepalive64", "keep-alive, 64 connections", "µs / request", 1.05, 1.15, connections=64),
    Wrk("keepalive512", "keep-alive, 512 connections", "µs / request", 1.05, 1.00, connections=512),
    Wrk("newconn", "new connections, 32 at a time", "µs / connection", 1.30, 1.15, connections=32, close=True),
    Wrk("bulk", "bulk, 1 MiB bodies, 8 connections", "µs / MiB", 0.90, 1.15, connections=8, path="/bulk", count="mib"),
    Refusal(),
    IdleMemory(),
]


@contextmanager
def proxy(bench, peer, place, limit=None):
    """A fresh process each time, so that no round inherits what another left, and luck with memory layout averages out."""
    group = peer.begin(place, bench.proxy_cores, limit)
    try:
        yield group
    except Unmeasured as failure:
        words = group.last_words() if not group.alive() else ""
        raise Unmeasured(f"{failure}{': it ended: ' if words else ''}{words}") from None
    finally:
        group.stop()


def weigh(bench, group, load):
    """CPU microseconds of `group` per thing that `load(seconds)` carried, after a warm-up of the same load."""
    load(WARM_UP)
    (busy, stolen), begin, before = core_seconds(bench.proxy_cores), time.monotonic(), group.cpu()
    carried = load(bench.seconds)
    used, elapsed = group.cpu().seconds_since(before), time.monotonic() - begin
    busy_now, stolen_now = core_seconds(bench.proxy_cores)
    span = elapsed * len(bench.proxy_cores)
    return Sample(
        used * 1e6 / carried.count, carried.count / carried.seconds, carried.p50_us, carried.p99_us,
        core=used / span, foreign=max(0.0, busy_now - busy - used) / span, stolen=(stolen_now - stolen) / span,
    )
