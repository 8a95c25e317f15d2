"""The autoscaling example."""

from __future__ import annotations

import yaml

from e2e.cluster import ROOT, Cluster
from e2e.steps import true, until

WHAT = "the example of manifests/examples/autoscaling.yaml scales a workload that sheds load"
GROUP = "custom.metrics.k8s.io"


def lacking(cluster: Cluster) -> str | None:
    if "prometheus" in cluster.means or cluster.has_group(GROUP):
        return None
    return f"{GROUP}: a metrics adapter with the rule of manifests/examples/autoscaling.yaml"


def run(cluster: Cluster) -> None:
    # An adapter that is there already is somebody's.
    if cluster.has_group(GROUP):
        scales(cluster)
        return
    items = list(yaml.safe_load_all((ROOT / "e2e" / "manifests" / "prometheus.yaml").read_text()))
    try:
        for item in items:
            cluster.apply(item)
        for deployment in ("prometheus", "adapter"):
            cluster.rolled_out("e2e-metrics", deployment)
        scales(cluster)
    finally:
        for item in reversed(items):
            cluster.delete(item)


def scales(cluster: Cluster) -> None:
    step = cluster.steps
    place = cluster.asking("scaling")
    annotations = {"tidegate.dev/limit": "4", "tidegate.dev/queue-length": "4"}
    change = {"spec": {"replicas": 1, "template": {"metadata": {"annotations": annotations}}}}
    cluster.example("shop.yaml", place, change)
    cluster.ready(place, "app=web")
    cluster.example("autoscaling.yaml", place)
    source = cluster.client_pod(place)

    step("under three times what two pods may do, the autoscaler asks for more pods")

    def replicas() -> int:
        return cluster.apps.read_namespaced_deployment("web", place).spec.replicas or 0

    def pushed() -> bool:
        cluster.load(source, f"http://web.{place}.svc/", workers=24, seconds=15, pause=0.1)
        return replicas() >= 4

    until("there are four replicas", pushed, 300)

    step("with them the application answers more than two pods could")
    cluster.ready(place, "app=web", least=4)
    seen = cluster.load(source, f"http://web.{place}.svc/", workers=24, seconds=15, pause=0.1)
    true(seen["statuses"].get("200", 0) > 1.3 * 15 * 2 * 4 / 0.2, str(seen["statuses"]))
