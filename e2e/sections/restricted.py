"""Pod Security "restricted"."""

from __future__ import annotations

from e2e.cluster import Cluster, injected, sidecars
from e2e.steps import equal, true, until

WHAT = "under Pod Security restricted the sidecar listens on a port of its own, and the Service leads to it"


def lacking(cluster: Cluster) -> str | None:
    # Before 1.33 EndpointSlices do not find the named ports of native sidecars.
    return None if cluster.minor() >= 33 else "named ports of native sidecars in Services (Kubernetes 1.33)"


def run(cluster: Cluster) -> None:
    step = cluster.steps
    level = {"tidegate.dev/inject": "enabled", "pod-security.kubernetes.io/enforce": "restricted"}
    place = cluster.namespace("restricted", level)

    step("the pods are admitted with their sidecars, and nobody in them has a capability or is root")
    cluster.example("restricted.yaml", place)
    pods = cluster.ready(place, "app=api", least=2)
    for pod in pods:
        true(injected(pod), "no sidecar")
        for container in sidecars(pod):
            equal(container.security_context.capabilities.add or [], [], f"capabilities of {container.name}")

    step("the Service's endpoints are the sidecars' ports, not the application's")
    slices = cluster.dynamic.resources.get(api_version="discovery.k8s.io/v1", kind="EndpointSlice")

    def ports() -> set[int] | None:
        found = slices.get(namespace=place, label_selector="kubernetes.io/service-name=api").to_dict()["items"]
        return {p["port"] for s in found for p in s.get("ports") or []} or None

    equal(8080 in until("there are endpoints", ports), False, "the application's own port among the endpoints")

    step("requests through the Service are admitted by the gateway")
    seen = cluster.load(cluster.client_pod(place), f"http://api.{place}.svc/", workers=4, requests=200)
    equal((seen["statuses"], seen["lost"]), ({"200": 200}, {}), "answers")
    admitted = sum(cluster.metric(pod, "tidegate_admission_decisions_total", outcome="admitted") for pod in pods)
    equal(admitted, 200, "requests that the gates admitted")
