"""As much of a Kubernetes API server as Helm talks to: discovery, and objects that are kept in a dictionary.

Helm's own library installs, upgrades and removes the chart against it, so that what depends on a cluster is seen:
`lookup`, and the order in which things come and go. It checks nothing that is sent; the published schemas do that in
test_render.py. The newest request is last in `log`.
"""

import copy
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

# group/version: kind, resource, whether it is in namespaces
KINDS = {
    "v1": [
        ("Namespace", "namespaces", False),
        ("Secret", "secrets", True),
        ("ConfigMap", "configmaps", True),
        ("Service", "services", True),
        ("ServiceAccount", "serviceaccounts", True),
        ("Pod", "pods", True),
    ],
    "apps/v1": [("Deployment", "deployments", True), ("ReplicaSet", "replicasets", True)],
    "policy/v1": [("PodDisruptionBudget", "poddisruptionbudgets", True)],
    "networking.k8s.io/v1": [("NetworkPolicy", "networkpolicies", True)],
    "admissionregistration.k8s.io/v1": [
        ("MutatingWebhookConfiguration", "mutatingwebhookconfigurations", False),
        ("ValidatingAdmissionPolicy", "validatingadmissionpolicies", False),
        ("ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings", False),
    ],
    "cert-manager.io/v1": [("Certificate", "certificates", True), ("Issuer", "issuers", True)],
    "monitoring.coreos.com/v1": [("PodMonitor", "podmonitors", True), ("PrometheusRule", "prometheusrules", True)],
}
SCHEMAS = object()
OBJECT = re.compile(
    r"^/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+/[^/]+))"
    r"(?:/namespaces/(?P<namespace>[^/]+)(?=/))?/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+))?$"
)


class ApiServer:
    """Listens on loopback while it is used as a context manager."""

    def __init__(self, version="v1.33.0"):
        self.objects = {}  # (resource, namespace, name): object
        self.log = []  # (verb, resource, name)
        self.version = version
        self.lock = threading.Lock()
        self.revision = 0

    def __enter__(self):
        state = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def handle_any(self):
                length = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(length)
                status, answer = state.answer(self.command, self.path, body)
                # The schemas are an empty message of protobuf: then Helm holds nothing against them.
                data = json.dumps(answer).encode() if answer is not SCHEMAS else b""
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def kubeconfig(self):
        """A kubeconfig that leads here."""
        cluster = {"server": f"http://127.0.0.1:{self.server.server_port}"}
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "clusters": [{"name": "here", "cluster": cluster}],
                "users": [{"name": "here", "user": {}}],
                "contexts": [{"name": "here", "context": {"cluster": "here", "user": "here"}}],
            }
        )

    def find(self, resource, name):
        """The object of that name, in whatever namespace."""
        return next((o for (r, _, n), o in self.objects.items() if (r, n) == (resource, name)), None)

    def answer(self, verb, target, body):
        url = urlsplit(target)
        if url.path == "/version":
            major, minor, _ = self.version.lstrip("v").split(".")
            return 200, {"major": major, "minor": minor, "gitVersion": self.version}
        if url.path == "/openapi/v2":
            return 200, SCHEMAS
        if url.path == "/api":
            return 200, {"kind": "APIVersions", "versions": ["v1"]}
        if url.path == "/apis":
            return 200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": list(groups())}
        found = OBJECT.match(url.path)
        if not found:
            version = url.path.removeprefix("/api/").removeprefix("/apis/")
            return (200, resources(version)) if version in KINDS else (404, failure(404, "NotFound", url.path))
        with self.lock:
            return self.change(verb, found, parse_qs(url.query), body)

    def change(self, verb, found, query, body):
        version, resource = found["core"] or found["group"], found["resource"]
        kind = next((k for k, r, _ in KINDS.get(version, []) if r == resource), None)
        if not kind:
            return 404, failure(404, "NotFound", found.string)
        key = (resource, found["namespace"] or "", found["name"] or "")
        if verb == "GET" and not found["name"]:
            wanted = dict(pair.split("=", 1) for q in query.get("labelSelector", []) for pair in q.split(",") if "=" in pair)
            items = [
                copy.deepcopy(o)
                for (r, n, _), o in self.objects.items()
                if r == resource and n == key[1] and wanted.items() <= o["metadata"].get("labels", {}).items()
            ]
            return 200, {"kind": kind + "List", "apiVersion": version, "metadata": {}, "items": items}
        if verb == "GET":
            if key not in self.objects:
                return 404, failure(404, "NotFound", f"{resource} {key[2]}")
            return 200, self.objects[key]
        if verb == "DELETE":
            self.log.append(("delete", resource, key[2]))
            if self.objects.pop(key, None) is None:
                return 404, failure(404, "NotFound", f"{resource} {key[2]}")
            return 200, {"kind": "Status", "apiVersion": "v1", "status": "Success"}
        sent = json.loads(body)
        name = sent["metadata"]["name"]
        key = (resource, key[1], name)
        if verb == "POST" and key in self.objects:
            return 409, failure(409, "AlreadyExists", f"{resource} {name}")
        self.revision += 1
        # A whole object is applied or put; that is all Helm sends of what a chart has.
        self.log.append(("create" if key not in self.objects else "change", resource, name))
        sent["metadata"].setdefault("uid", f"uid-{resource}-{name}")
        sent["metadata"]["resourceVersion"] = str(self.revision)
        if key[1]:
            sent["metadata"]["namespace"] = key[1]
        self.objects[key] = sent
        return 201 if verb == "POST" else 200, sent


def groups():
    for version in KINDS:
        if "/" in version:
            group = {"groupVersion": version, "version": version.split("/")[1]}
            yield {"name": version.split("/")[0], "versions": [group], "preferredVersion": group}


def resources(version):
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": version,
        "resources": [
            {"name": r, "singularName": k.lower(), "namespaced": n, "kind": k, "verbs": verbs} for k, r, n in KINDS[version]
        ],
    }


def failure(code, reason, what):
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": what}
