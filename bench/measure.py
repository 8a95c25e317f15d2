"""One measurement: a fresh proxy, its CPU time weighed against what it carried, and who else used its core meanwhile."""

import time
from contextlib import contextmanager
from dataclasses import dataclass, field

from procs import Unmeasured, core_seconds

WARM_UP = 1  # seconds of the same load before it is measured


@dataclass
class Sample:
    value: float  # None without a proxy, where there is nothing to weigh
    rate: float = None  # carried per second
    p50_us: int = None
    p99_us: int = None
    core: float = None  # share of the proxy's core the proxy used
    foreign: float = None  # share of it that somebody else used, the hypervisor included
    stolen: float = None  # share of it that the hypervisor gave to others; the kernel may count it as the proxy's time
    facts: dict = field(default_factory=dict)  # name -> number or None


@dataclass
class Bench:
    """What a row's `once` needs besides the peer."""

    clients: object
    proxy_cores: set
    seconds: int
    idle: int  # connections of the idle rows


@dataclass
class Use:
    """Of the proxy's core, during something."""

    seconds: float = None
    core: float = None
    foreign: float = None
    stolen: float = None


@contextmanager
def proxy(bench, peer, place, duty):
    """A fresh process each time, so that no round inherits what another left, and luck with memory layout averages out."""
    group = peer.begin(place, bench.proxy_cores, duty)
    try:
        yield group
    except Unmeasured as failure:
        words = group.last_words() if not group.alive() else ""
        raise Unmeasured(f"{failure}{': it ended: ' if words else ''}{words}") from None
    finally:
        group.stop()


@contextmanager
def watched(bench, group):
    """A Use, filled at the end."""
    use = Use()
    (busy, stolen), begin, before = core_seconds(bench.proxy_cores), time.monotonic(), group.cpu()
    yield use
    use.seconds, elapsed = group.cpu().seconds_since(before), time.monotonic() - begin
    busy_now, stolen_now = core_seconds(bench.proxy_cores)
    span = elapsed * len(bench.proxy_cores)
    use.core = use.seconds / span
    use.foreign, use.stolen = max(0.0, busy_now - busy - use.seconds) / span, (stolen_now - stolen) / span


def weigh(bench, group, load):
    """CPU microseconds of `group` per thing that `load(seconds)` carried, after a warm-up of the same load."""
    load(WARM_UP)
    with watched(bench, group) as use:
        carried = load(bench.seconds)
    return Sample(use.seconds * 1e6 / carried.count, carried.count / carried.seconds, carried.p50_us, carried.p99_us,
                  use.core, use.foreign, use.stolen)
