"""A container that its liveness probe kills."""

from __future__ import annotations

from kubernetes import client

from e2e.cluster import SIDECAR, Cluster, is_ready, restarts
from e2e.steps import equal, true, until

WHAT = "a liveness restart of the application does not leave its pod draining for ever"

# Serves until somebody asks for /hang; then it answers nobody any more.
APP = """
import http.server, threading, time
HANG = threading.Event()
class App(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == '/hang':
            HANG.set()
        while HANG.is_set():
            time.sleep(1)
        self.send_response(200)
        self.send_header('Content-Length', '0')
        self.end_headers()
class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
Server(('', 8080), App).serve_forever()
"""


def run(cluster: Cluster) -> None:
    step = cluster.steps
    place = cluster.asking("liveness")
    probe = {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 2, "failureThreshold": 2, "timeoutSeconds": 1}
    container = {"name": "web", "command": ["python3", "-u", "-c", APP], "livenessProbe": probe, "readinessProbe": probe}
    cluster.example("shop.yaml", place, {"spec": {"replicas": 1}})
    cluster.patch_template(place, "web", {"spec": {"containers": [container]}})
    cluster.rolled_out(place, "web")
    (web,) = cluster.ready(place, "app=web")
    source = cluster.client_pod(place)
    url = f"http://web.{place}.svc/"

    step("the application hangs, and its probe, which goes past the gate, has it restarted")
    cluster.load(source, url + "hang", workers=1, requests=1, timeout=2)
    until("the application was restarted", lambda: restarts(fresh(cluster, place))["web"] >= 1, 120)

    step("the sidecar was not, and the pod is ready again")
    until("the pod is ready again", lambda: is_ready(fresh(cluster, place)), 120)
    equal(restarts(fresh(cluster, place))[SIDECAR], 0, "restarts of the sidecar")
    equal(cluster.status(web)["phase"], "serving", "the sidecar's phase")

    step("requests are served as before")
    seen = cluster.load(source, url, workers=4, requests=100)
    true(seen["statuses"] == {"200": 100} and not seen["lost"], str(seen))


def fresh(cluster: Cluster, place: str) -> client.V1Pod:
    (pod,) = cluster.pods(place, "app=web")
    return pod
