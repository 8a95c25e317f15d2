"""As much of a Kubernetes API server as Helm and e2e talk to: discovery, and objects that are kept in a dictionary.

Helm's own library installs, upgrades and removes the chart against it, so that what depends on a cluster is seen:
`lookup`, and the order in which things come and go. It checks nothing that is sent; the published schemas do that in
test_render.py. The newest request is last in `log`. What it takes for things to happen in it is in world.py.
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
        ("Event", "events", True),
        ("Node", "nodes", False),
    ],
    "batch/v1": [("Job", "jobs", True)],
    "autoscaling/v2": [("HorizontalPodAutoscaler", "horizontalpodautoscalers", True)],
    "discovery.k8s.io/v1": [("EndpointSlice", "endpointslices", True)],
    "apiregistration.k8s.io/v1": [("APIService", "apiservices", False)],
    "rbac.authorization.k8s.io/v1": [
        ("ClusterRole", "clusterroles", False),
        ("ClusterRoleBinding", "clusterrolebindings", False),
        ("Role", "roles", True),
        ("RoleBinding", "rolebindings", True),
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
        self.warning = ""  # what every answer warns of

    def __enter__(self):
        state = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one segment: else each answer waits for a delayed acknowledgement

            def log_message(self, *_):
                pass

            def handle_any(self):
                length = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(length)
                status, answer = state.answer(self.command, self.path, body, self.headers.get("content-type") or "")
                # The schemas are an empty message of protobuf: then Helm holds nothing against them.
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode() if answer is not SCHEMAS else b""
                self.send_response(status)
                self.send_header("content-type", "text/plain" if isinstance(answer, bytes) else "application/json")
                if state.warning:
                    self.send_header("warning", f'299 - "{state.warning}"')
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

    def answer(self, verb, target, body, content_type=""):
        url = urlsplit(target)
        url = url._replace(path=url.path.rstrip("/"))
        if url.path == "/version":
            major, minor, _ = self.version.lstrip("v").split(".")
            other = dict.fromkeys(("gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform"), "")
            return 200, {"major": major, "minor": minor, "gitVersion": self.version, **other}
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
            return self.change(verb, found, parse_qs(url.query), body, "merge-patch" in content_type)

    def change(self, verb, found, query, body, merges):
        version, resource = found["core"] or found["group"], found["resource"]
        kind = next((k for k, r, _ in KINDS.get(version, []) if r == resource), None)
        if not kind:
            return 404, failure(404, "NotFound", found.string)
        key = (resource, found["namespace"] or "", found["name"] or "")
        if verb == "GET" and not found["name"]:
            wanted = [pair.partition("=") for q in query.get("labelSelector", []) for pair in q.split(",")]
            items = [
                copy.deepcopy(o)
                for (r, n, _), o in self.objects.items()
                if r == resource and key[1] in ("", n) and selected(o["metadata"].get("labels", {}), wanted)
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
        if merges:
            if key not in self.objects:
                return 404, failure(404, "NotFound", f"{resource} {key[2]}")
            sent = merged(self.objects[key], sent)
        name = sent["metadata"]["name"]
        key = (resource, key[1], name)
        if verb == "POST" and key in self.objects:
            return 409, failure(409, "AlreadyExists", f"{resource} {name}")
        self.revision += 1
        # What is not merged is a whole object, applied or put.
        self.log.append(("create" if key not in self.objects else "change", resource, name))
        sent["metadata"].setdefault("uid", f"uid-{resource}-{name}")
        sent["metadata"]["resourceVersion"] = str(self.revision)
        if key[1]:
            sent["metadata"]["namespace"] = key[1]
        if "dryRun" in query:
            return 201, self.admitted(key, sent)
        before, self.objects[key] = self.objects.get(key), self.admitted(key, sent)
        self.happens(key, before)
        return 201 if verb == "POST" else 200, self.objects[key]

    def admitted(self, _key, sent):
        """What becomes of an object before it is kept."""
        return sent

    def happens(self, _key, _before):
        """What comes of an object that was made or changed."""


def selected(labels, wanted):
    """Whether these labels are what a selector asks for: values, or that there is one."""
    return all(key in labels and (not equals or labels[key] == value) for key, equals, value in wanted)


def merged(below, above):
    """A strategic merge patch laid over an object: null removes, of lists those with names are merged by them."""
    if isinstance(below, list) and all(isinstance(item, dict) and "name" in item for item in [*below, *above]):
        both = {item["name"]: item for item in below}
        for item in above:
            both[item["name"]] = merged(both.get(item["name"], {}), item)
        return list(both.values())
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    both = {key: merged(below.get(key), value) for key, value in above.items() if value is not None}
    return {**{key: value for key, value in below.items() if key not in above}, **both}


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
