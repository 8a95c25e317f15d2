"""What each peer is told, as a user who knows it would write it for a fair fight.

All run on one thread, without logs, with a backlog and connection limits that nothing here reaches, unless the row is about a
limit. In HTTP all keep and reuse their connections to the application and add the X-Forwarded headers that Tidegate adds.
Addresses and paths are the bench's own; no text from outside enters them.
"""

import json
from dataclasses import dataclass

BACKLOG = 4096  # net.core.somaxconn of every kernel since 5.4
OWN_FDS = 64  # of an nginx worker: listeners, files, event sources
HOUR = "1h"  # idle connections must outlive the idle rows
EVER = 1_000_000_000  # requests on one connection
POOL = 1024  # idle connections to the application nginx keeps: more than any row has clients at work
QUEUE_TIMEOUT = "400ms"  # HAProxy's, where it has a queue: a little less than the clients' patience


@dataclass(frozen=True)
class Duty:
    """What a proxy is to do: carry, or also limit."""

    protocol: str = "tcp"  # "tcp", "http" or "h2": HTTP/2 with the client, HTTP/1 with the application
    limit: int = None  # connections (tcp) or requests at once
    queue: int = 0  # how many may wait beyond it; the others are refused
    traced: float = None  # of the requests this share is recorded, and sent to `collector`
    collector: tuple = None

    @property
    def is_http(self):
        return self.protocol != "tcp"


def haproxy(place, duty):
    return (_haproxy_http if duty.is_http else _haproxy_tcp)(place, duty)


def _haproxy_tcp(place, duty):
    # fe_conn counts the connection that is being judged.
    refuse = f"    tcp-request connection reject if {{ fe_conn gt {duty.limit} }}\n" if duty.limit else ""
    return f"""global
    nbthread 1
    maxconn {place.connections}
defaults
    mode tcp
    timeout connect 5s
    timeout client {HOUR}
    timeout server {HOUR}
listen bench
    bind {text(place.listen)} backlog {BACKLOG}
{refuse}    server app {text(place.app)}
"""


def _haproxy_http(place, duty):
    refuse = cap = ""
    if duty.limit and duty.queue:
        cap = f" maxconn {duty.limit}"
    elif duty.limit:
        # srv_conn does not count the request that is being judged.
        refuse = (f'    http-request return status 503 content-type text/plain string "busy\\n"'
                  f" if {{ srv_conn(bench/app) ge {duty.limit} }}\n")
    return f"""global
    nbthread 1
    maxconn {place.connections}
defaults
    mode http
    http-reuse always
    timeout connect 5s
    timeout queue {QUEUE_TIMEOUT}
    timeout client {HOUR}
    timeout http-keep-alive {HOUR}
    timeout server {HOUR}
listen bench
    bind {text(place.listen)} backlog {BACKLOG}{" proto h2" if duty.protocol == "h2" else ""}
    option forwardfor
    http-request set-header X-Forwarded-Proto http
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
{refuse}    server app {text(place.app)}{cap}
"""


def nginx(place, duty, module):
    return (_nginx_http if duty.is_http else _nginx_stream)(place, duty, module)


def _nginx_stream(place, duty, module):
    load = f"load_module {module};\n" if module else ""
    zone = "    limit_conn_zone $server_port zone=all:1m;\n" if duty.limit else ""
    refuse = f"        limit_conn all {duty.limit};\n" if duty.limit else ""
    return load + nginx_head(place.dir, "nginx", 2 * place.connections) + f"""stream {{
    access_log off;
{zone}    server {{
        listen {text(place.listen)} backlog={BACKLOG};
        proxy_pass {text(place.app)};
        proxy_connect_timeout 5s;
        proxy_timeout {HOUR};
{refuse}    }}
}}
"""


def _nginx_http(place, duty, _module):
    # In HTTP limit_conn counts requests at work, not connections.
    zone = "    limit_conn_zone $server_port zone=all:1m;\n" if duty.limit else ""
    refuse = f"        limit_conn all {duty.limit};\n        limit_conn_log_level info;\n" if duty.limit else ""
    return nginx_head(place.dir, "nginx", 2 * place.connections) + f"""http {{
    access_log off;
    keepalive_requests {EVER};
    keepalive_timeout {HOUR};
{nginx_temp(place.dir)}{zone}    upstream app {{
        server {text(place.app)};
        keepalive {POOL};
        keepalive_requests {EVER};
        keepalive_timeout {HOUR};
    }}
    server {{
        listen {text(place.listen)} backlog={BACKLOG}{" http2" if duty.protocol == "h2" else ""};
{refuse}        location / {{
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Host $host;
            proxy_connect_timeout 5s;
            proxy_read_timeout {HOUR};
        }}
    }}
}}
"""


def nginx_app(directory, addresses, descriptors):
    """The application behind every proxy: three bytes at `/`, 1 MiB at `/bulk`, and at `/accepted` how many connections it had."""
    listens = "".join(f"        listen {text(address)} backlog={BACKLOG};\n" for address in addresses)
    return nginx_head(directory, "app", descriptors - OWN_FDS) + f"""http {{
    access_log off;
    default_type text/plain;
    sendfile on;
    tcp_nopush on;
    open_file_cache max=4 inactive={HOUR};
    keepalive_requests {EVER};
    keepalive_timeout {HOUR};
{nginx_temp(directory)}    server {{
{listens}        location = / {{ return 200 "ok\\n"; }}
        location = /bulk {{ root {directory}; }}
        location = /accepted {{ stub_status; }}
    }}
}}
"""


def nginx_head(directory, name, connections):
    return f"""user root;
worker_processes 1;
worker_rlimit_nofile {connections + OWN_FDS};
pid {directory}/{name}.pid;
error_log {directory}/{name}.err crit;
events {{ worker_connections {connections + OWN_FDS}; }}
"""


def nginx_temp(directory):
    return "".join(f"    {kind}_temp_path {directory}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))


def envoy(place, duty):
    most = 100_000
    breaker = {"max_connections": most, "max_pending_requests": most, "max_requests": most}
    if duty.is_http:
        filters = [_envoy_http()]
        if duty.limit and duty.queue:
            breaker |= {"max_connections": duty.limit, "max_pending_requests": duty.queue}
        elif duty.limit:
            breaker["max_requests"] = duty.limit
    else:
        filters = [_envoy_filter("tcp_proxy", "TcpProxy", cluster="app", idle_timeout="3600s")]
        if duty.limit:
            filters.insert(0, _envoy_filter("connection_limit", "ConnectionLimit", max_connections=duty.limit))
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
            "circuit_breakers": {"thresholds": [breaker]},
            "load_assignment": {"cluster_name": "app", "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": _envoy_address(place.app)}}]}]},
        }],
    }}
    return json.dumps(settings, indent=1)


def _envoy_http():
    """HTTP/1 and HTTP/2 by what the client begins with; X-Forwarded-For, -Proto and a request id come with use_remote_address."""
    router = {"name": "router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}
    route = {"match": {"prefix": "/"}, "route": {"cluster": "app", "timeout": "0s"}}
    return _envoy_filter(
        "http_connection_manager", "HttpConnectionManager",
        codec_type="AUTO",
        use_remote_address=True,
        stream_idle_timeout="0s",
        common_http_protocol_options={"idle_timeout": "3600s"},
        http_filters=[router],
        route_config={"virtual_hosts": [{"name": "app", "domains": ["*"], "routes": [route]}]},
    )


def _envoy_filter(name, kind, **fields):
    url = f"type.googleapis.com/envoy.extensions.filters.network.{name}.v3.{kind}"
    return {"name": name, "typed_config": {"@type": url, "stat_prefix": "bench", **fields}}


def _envoy_address(address):
    return {"socket_address": {"address": address[0], "port_value": address[1]}}


def tidegate(place, duty, engine):
    """Arguments. Admission is on in every row: a limit nothing reaches, except where it is to refuse."""
    admin, probe, metrics = place.spare
    limit, queue = (duty.limit, duty.queue) if duty.limit else (100_000, 16)
    return [
        "run", "--listen", f"{text(place.listen)}={text(place.app)}", "--protocol", "http" if duty.is_http else "tcp",
        "--engine", engine, "--limit", str(limit), "--queue-length", str(queue),
        "--admin", text(admin), "--probe", text(probe), "--metrics", text(metrics),
        "--control", str(place.dir / "control.sock"),
        *(["--trace-sampling", str(duty.traced), "--trace-max-spans", "1000000"] if duty.collector else []),
    ]


def tidegate_environment(duty):
    """Who collects traces: none is recorded without."""
    return [f"OTEL_EXPORTER_OTLP_ENDPOINT=http://{text(duty.collector)}"] if duty.collector else []


def text(address):
    return f"{address[0]}:{address[1]}"
