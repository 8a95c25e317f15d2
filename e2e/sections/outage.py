"""Without the injector."""

from __future__ import annotations

from e2e.cluster import NAMESPACE, RELEASE, Cluster, injected
from e2e.steps import equal, true, until

WHAT = "while the injector is away pods start all the same, sidecars run on, and the policy tells who has none"


def run(cluster: Cluster) -> None:
    step = cluster.steps
    policies = cluster.minor() >= 30
    if policies:
        cluster.install({"policies": {"requireSidecar": {"enabled": True, "actions": ["Warn", "Audit"]}}})
    place = cluster.asking("outage")
    web = cluster.shop(place)
    source = cluster.client_pod(place)

    step("the injector is scaled to nothing")
    cluster.apps.patch_namespaced_deployment_scale(RELEASE, NAMESPACE, {"spec": {"replicas": 0}})
    until("no injector is left", lambda: not cluster.core.list_namespaced_pod(NAMESPACE).items, 120)

    step("a pod that asks for a sidecar starts without one")
    cluster.apps.patch_namespaced_deployment_scale("web", place, {"spec": {"replicas": 2}})
    pods = cluster.ready(place, "app=web", least=2)
    equal(sorted(injected(pod) for pod in pods), [False, True], "sidecars")

    if policies:
        step("whoever makes such a pod is warned by the policy")
        until("there is a warning", lambda: "has none" in cluster.warnings(place), 30)

    step("the sidecar there is goes on serving, and settings still reach it")
    seen = cluster.load(source, f"http://web.{place}.svc/?sleep=0", workers=4, requests=100)
    true(seen["statuses"] == {"200": 100} and not seen["lost"], str(seen))
    cluster.annotate(web, limit="7")
    until("the limit is 7", lambda: cluster.port(web)["limit"] == 7, 120)

    step("when it is back, new pods have a sidecar again")
    cluster.install({})
    cluster.restart(place, "web")
    true(all(injected(pod) for pod in cluster.ready(place, "app=web")), "a pod without a sidecar")
