"""What is measured, and the bars (design: "Performance bars"). One row = one kind of work = one number per peer and round.

A row's `once` runs one peer once and returns a Sample. Every number is a cost (lower is better) but that of `overload`.
"""

import time
from contextlib import nullcontext
from dataclasses import replace

from load import Idle, accepted, books, collector, deaf_collector, held, held_request
from measure import WARM_UP, Sample, Use, proxy, watched, weigh
from peers import slow_app
from procs import Unmeasured
from settings import Duty
from stats import Bar

REFUSED_BY = 32  # clients of the refusal row, as many as open new connections in `newconn`
KEPT_ALIVE = 64  # connections of the HTTP refusal row, as many as in `http64`
SETTLE = 1.0  # seconds after the last idle connection was opened

# The overload row: what the application can do, who comes, and what a proxy is told.
SLOTS, BUSY_MS = 8, 20
CAPACITY = SLOTS * 1000 / BUSY_MS  # requests per second
STORM = int(10 * CAPACITY)  # arrivals per second
PATIENCE_MS = 500
PROTECTING = Duty("http", limit=SLOTS, queue=8)


class Row:
    key, title, unit = "", "", ""
    without_proxy = False  # the peer `none` says something here
    vs_best = None  # Bar of tidegate / best of HAProxy and nginx
    vs_envoy = None  # Bar of tidegate / Envoy
    vs_epoll = None  # Bar of uring / epoll
    itself = ()  # (what, number of a Sample, Bar)

    def applies(self, peer):
        return self.without_proxy or peer.name != "none"

    def once(self, bench, peer, place):
        raise NotImplementedError


class Carry(Row):
    """CPU microseconds of the proxy per thing carried, under the load of a tool (a method of Clients)."""

    without_proxy = True

    def __init__(self, key, title, unit, vs_best, vs_envoy, vs_epoll, duty=Duty(), tool="wrk", **load):
        self.key, self.title, self.unit = key, title, unit
        self.vs_best, self.vs_envoy, self.vs_epoll = (bar and Bar(bar) for bar in (vs_best, vs_envoy, vs_epoll))
        self.duty, self.tool, self.load = duty, tool, load
        self.without_proxy = duty.protocol != "h2"  # the application speaks HTTP/1 only

    def once(self, bench, peer, place):
        drive = lambda address: lambda seconds: getattr(bench.clients, self.tool)(address, seconds, **self.load)
        if peer.name == "none":
            drive(place.app)(WARM_UP)
            carried = drive(place.app)(bench.seconds)
            return Sample(None, carried.count / carried.seconds, carried.p50_us, carried.p99_us)
        before = accepted(place.app)
        with proxy(bench, peer, place, self.duty) as group:
            sample = weigh(bench, group, drive(place.listen))
        if self.duty.is_http:
            sample.facts["connections to the application"] = accepted(place.app) - before - 1
        return sample


class Refusal(Row):
    """CPU of refusing over CPU of serving on the same peer, in the same round, by the same clients.

    Serving: no limit in reach. Refusing: a limit of 1, held, and no queue.
    """

    unit = "ratio"
    itself = [("ratio", lambda sample: sample.value, Bar(0.35))]

    def applies(self, peer):
        return peer.refuses

    def once(self, bench, peer, place):
        served, refused = self.serving(bench, peer, place), self.refusing(bench, peer, place)
        facts = {"µs served": served.value, "µs refused": refused.value}
        return Sample(refused.value / served.value, refused.rate, refused.p50_us, refused.p99_us, refused.core,
                      max(served.foreign, refused.foreign), max(served.stolen, refused.stolen), facts)


class TcpRefusal(Refusal):
    """A new connection each time; the limit is held by a connection."""

    key, title = "refusal", "refusing / serving a new connection"

    def serving(self, bench, peer, place):
        with proxy(bench, peer, place, Duty()) as group:
            return weigh(bench, group, lambda seconds: bench.clients.churn(place.listen, seconds, REFUSED_BY, "served"))

    def refusing(self, bench, peer, place):
        with proxy(bench, peer, place, Duty(limit=1)) as group, held(place.listen):
            return weigh(bench, group, lambda seconds: bench.clients.churn(place.listen, seconds, REFUSED_BY, "refused"))


class HttpRefusal(Refusal):
    """Connections kept alive, also after a refusal; the limit is held by a request."""

    key, title = "httprefusal", "HTTP: refusing / serving a request, keep-alive"

    def serving(self, bench, peer, place):
        with proxy(bench, peer, place, Duty("http")) as group:
            return weigh(bench, group, lambda seconds: bench.clients.wrk(place.listen, seconds, KEPT_ALIVE))

    def refusing(self, bench, peer, place):
        to_slow = replace(place, app=place.slow)
        with (slow_app(bench.clients, place, SLOTS, BUSY_MS), proxy(bench, peer, to_slow, Duty("http", limit=1)) as group,
              held_request(place.listen, place.slow)):
            return weigh(bench, group, lambda seconds: bench.clients.wrk(place.listen, seconds, KEPT_ALIVE, expect="refused"))


class Traced(Row):
    """CPU of serving with traces over serving without, on the same peer, in the same round, by the same clients."""

    unit = "ratio"

    def __init__(self, key, title, share, bar, collector=collector):
        self.key, self.title, self.share, self.collector = key, title, share, collector
        self.itself = [("ratio", lambda sample: sample.value, Bar(bar))]

    def applies(self, peer):
        return peer.name in ("epoll", "uring")

    def once(self, bench, peer, place):
        load = lambda seconds: bench.clients.wrk(place.listen, seconds, KEPT_ALIVE)
        with proxy(bench, peer, place, HTTP) as group:
            plain = weigh(bench, group, load)
        with self.collector() as address, proxy(bench, peer, place, replace(HTTP, traced=self.share, collector=address)) as group:
            traced = weigh(bench, group, load)
        facts = {"µs without": plain.value, "µs with": traced.value}
        return Sample(traced.value / plain.value, traced.rate, traced.p50_us, traced.p99_us, traced.core,
                      max(plain.foreign, traced.foreign), max(plain.stolen, traced.stolen), facts)


class IdleMemory(Row):
    """Growth of the proxy's resident memory per open connection that has carried one request and now carries nothing."""

    unit = "KiB"

    def __init__(self, key, title, duty, bar):
        self.key, self.title, self.duty = key, title, duty
        self.itself = [("KiB", lambda sample: sample.value, Bar(bar))]

    def once(self, bench, peer, place):
        idle = Idle(place.listen)
        with proxy(bench, peer, place, self.duty) as group:
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


class Overload(Row):
    """What an application still achieves, of what it could, at ten times that many clients, who leave when it takes too long.

    Served is who got a whole answer in time. The application works for those that have left, too; its capacity is what its
    workers can do, by arithmetic: 8 × 20 ms = 400 a second.
    """

    key, title = "overload", "goodput / capacity at 10× overload (higher is better)"
    unit = "ratio"
    without_proxy = True
    itself = [
        ("goodput / capacity", lambda sample: sample.value, Bar(0.95, at_least=True)),
        ("served p50, ms", lambda sample: sample.p50_us and sample.p50_us / 1000, Bar(50)),
        ("most in progress at the application", lambda sample: sample.facts["most in progress"], Bar(SLOTS, always=True)),
    ]

    def applies(self, peer):
        return peer.name == "none" or peer.queues

    def once(self, bench, peer, place):
        with slow_app(bench.clients, place, SLOTS, BUSY_MS):
            if peer.name == "none":
                return self.storm(bench, place.slow, place, nullcontext(Use()))
            with proxy(bench, peer, replace(place, app=place.slow), PROTECTING) as group:
                return self.storm(bench, place.listen, place, watched(bench, group))

    def storm(self, bench, address, place, watch):
        before = books(place.slow)
        with watch as use:
            fared = bench.clients.storm(address, STORM, WARM_UP, bench.seconds, PATIENCE_MS)
        after = books(place.slow)
        done = after["done"] - before["done"]
        return Sample(
            fared.served / fared.seconds / CAPACITY, fared.served / fared.seconds, fared.served_p50, fared.served_p99,
            use.core, use.foreign, use.stolen, facts={
                "most in progress": after["most_in_progress"],
                "most connections": after["most_connections"],
                "refused": fared.refused / fared.all,
                "refused p99 ms": fared.refused_p99 and fared.refused_p99 / 1000,
                "with Retry-After": fared.retry_after / fared.refused if fared.refused else None,
                "gave up": fared.gave_up / fared.all,
                "broken": fared.broken / fared.all,
                "worked for nobody": max(0.0, 1 - fared.served_ever / done) if done else None,
            })


HTTP, H2 = Duty("http"), Duty("h2")
ROWS = [
    Carry("keepalive64", "TCP: keep-alive, 64 connections", "µs / request", 1.05, None, 1.15, connections=64),
    Carry("keepalive512", "TCP: keep-alive, 512 connections", "µs / request", 1.05, None, 1.00, connections=512),
    Carry("newconn", "TCP: new connections, 32 at a time", "µs / connection", 1.30, None, 1.15, connections=32, close=True),
    Carry("bulk", "TCP: bulk, 1 MiB bodies, 8 connections", "µs / MiB", 0.90, None, 1.15, connections=8, path="/bulk", count="mib"),
    TcpRefusal(),
    IdleMemory("idle", "TCP: memory of an idle connection", Duty(), 2.0),
    Carry("http64", "HTTP/1: keep-alive, 64 connections", "µs / request", 1.20, 0.5, 1.15, HTTP, connections=64),
    Carry("http512", "HTTP/1: keep-alive, 512 connections", "µs / request", 1.20, 0.5, 1.15, HTTP, connections=512),
    Carry("httpnew", "HTTP/1: new connections, 32 at a time", "µs / request", 1.30, 0.5, 1.15, HTTP, connections=32, close=True),
    Carry("h2", "HTTP/2: 8 connections × 16 streams", "µs / request", None, 0.5, 1.15, H2, "h2load", connections=8, streams=16),
    HttpRefusal(),
    Traced("trace1", "HTTP/1: keep-alive with 1 % traced / without traces", 0.01, 1.05),
    Traced("trace100", "HTTP/1: keep-alive with 100 % traced / without traces", 1, 2.5),
    Traced("tracedeaf", "HTTP/1: keep-alive with 1 % traced for a collector that hangs / without traces", 0.01, 1.03, deaf_collector),
    IdleMemory("httpidle", "HTTP/1: memory of an idle connection", HTTP, 20.0),
    Overload(),
]
