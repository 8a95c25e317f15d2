"""What is left when it is gone."""

from __future__ import annotations

from e2e.cluster import NAMESPACE, Cluster, Object, injected
from e2e.steps import equal, true, until

WHAT = "uninstalling leaves nothing of ours, and pods with a sidecar run on"
KINDS = [
    ("v1", "Secret"),
    ("v1", "ConfigMap"),
    ("v1", "Service"),
    ("v1", "ServiceAccount"),
    ("apps/v1", "Deployment"),
    ("policy/v1", "PodDisruptionBudget"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"),
]


def run(cluster: Cluster) -> None:
    step = cluster.steps
    kinds = list(KINDS)
    if cluster.minor() >= 30:
        kinds += [("admissionregistration.k8s.io/v1", f"ValidatingAdmissionPolicy{part}") for part in ("", "Binding")]
        cluster.install({"policies": {"requireSidecar": {"enabled": True}, "checkAnnotations": {"enabled": True}}})
    place = cluster.asking("uninstall")
    true(injected(cluster.shop(place)), "no sidecar")
    source = cluster.client_pod(place)
    true(leftovers(cluster, kinds), "the search finds nothing even while it is installed")

    step("no object of the release is left, nor of Helm's own")
    cluster.uninstall()
    until("nothing is left", lambda: not leftovers(cluster, kinds), 120)
    left = cluster.core.list_namespaced_secret(NAMESPACE, label_selector="owner=helm").items
    equal([secret.metadata.name for secret in left], [], "Secrets of Helm's")

    step("a pod with a sidecar serves as before")
    seen = cluster.load(source, f"http://web.{place}.svc/?sleep=0", workers=4, requests=100)
    true(seen["statuses"] == {"200": 100} and not seen["lost"], str(seen))

    step("a new one has none")
    cluster.restart(place, "web")
    true(not any(injected(pod) for pod in cluster.ready(place, "app=web")), "somebody still injects")


def leftovers(cluster: Cluster, kinds: list[tuple[str, str]]) -> list[str]:
    """Objects with the release's labels, wherever they are."""
    found: list[str] = []
    for api_version, kind in kinds:
        api = cluster.dynamic.resources.get(api_version=api_version, kind=kind)
        items: list[Object] = api.get(label_selector="app.kubernetes.io/part-of=tidegate").to_dict()["items"]
        found += [f"{kind} {item['metadata']['name']}" for item in items]
    return found
