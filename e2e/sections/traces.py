"""Traces, in Jaeger."""

from __future__ import annotations

import json
import secrets

import yaml

from e2e.cluster import ROOT, Cluster, Object
from e2e.steps import true, until

WHAT = "a request's trace arrives in Jaeger, with the wait for a slot in it, and so does a refusal"
JAEGER = ROOT / "manifests" / "jaeger.yaml"


def lacking(cluster: Cluster) -> str | None:
    (deployment,) = [item for item in yaml.safe_load_all(JAEGER.read_text()) if item["kind"] == "Deployment"]
    image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    return None if "kind" in cluster.means or cluster.pulls(image) else f"the image {image}"


def run(cluster: Cluster) -> None:
    step = cluster.steps
    collector = cluster.namespace("jaeger")
    cluster.apply_all(JAEGER, collector)
    cluster.rolled_out(collector, "jaeger")
    cluster.install({"operator": {"otlp": {"endpoint": f"http://jaeger.{collector}:4317"}}})
    place = cluster.asking("traces")
    annotations = {"tidegate.dev/limit": "1", "tidegate.dev/queue-length": "1", "tidegate.dev/queue-timeout": "5s"}
    change = {"spec": {"replicas": 1, "template": {"metadata": {"annotations": annotations}}}}
    cluster.example("shop.yaml", place, change)
    cluster.ready(place, "app=web")
    source = cluster.client_pod(place)

    step("three at once at a limit of 1: one is served, one waits, one is refused")
    trace = secrets.token_hex(16)
    headers = {"traceparent": f"00-{trace}-{secrets.token_hex(8)}-01"}
    seen = cluster.load(source, f"http://web.{place}.svc/?sleep=1", workers=3, requests=3, headers=headers)
    true(seen["statuses"] == {"200": 2, "503": 1}, str(seen["statuses"]))

    step("their spans are in Jaeger under the caller's trace: server, wait, client")

    def spans() -> list[Object] | None:
        path = f"api/traces/{trace}"
        text = cluster.core.connect_get_namespaced_service_proxy_with_path("jaeger:http-query", collector, path)
        data = parsed(text)["data"]
        found: list[Object] = data[0]["spans"] if data else []
        return found if len(found) >= 6 else None

    found = until("six spans", spans, 60)
    names = sorted(span["operationName"] for span in found)
    true("admission.wait" in names and names.count("GET") == 5, str(names))
    tags = [{tag["key"]: tag["value"] for tag in span["tags"]} for span in found]
    true(any(t.get("tidegate.outcome") == "refused" for t in tags), "no span of the refusal")
    true(any(t.get("tidegate.reason") == "queue_full" for t in tags), "the refusal's span does not say why")


def parsed(text: object) -> Object:
    """The client hands JSON over as text, or as Python's notation of what it has parsed."""
    answer: Object = yaml.safe_load(text) if isinstance(text, str) else json.loads(json.dumps(text))
    return answer
