"""Settings that change while the pod runs."""

from __future__ import annotations

from e2e.cluster import Cluster, Object, restarts
from e2e.steps import equal, true, until

WHAT = "an annotation edited on a living pod, and the namespace's ConfigMap, are obeyed without a restart"
KUBELET = 120  # seconds in which a kubelet brings a changed annotation or ConfigMap, at its slowest


def run(cluster: Cluster) -> None:
    step = cluster.steps
    place = cluster.asking("live")
    web = cluster.shop(place)
    source = cluster.client_pod(place)

    def port() -> Object:
        return cluster.port(web)

    step("an annotation on the pod sets a limit")
    cluster.annotate(web, limit="3")
    until("the limit is 3", lambda: port()["limit"] == 3 and port()["mode"] == "enforce", KUBELET)
    seen = cluster.load(source, f"http://web.{place}.svc/", workers=20, seconds=5, pause=0.1)
    true(0 < seen["inside"] <= 3, f"{seen['inside']} were inside")

    step("one that makes no sense changes nothing, and the status says so")
    cluster.annotate(web, limit="many")
    until("the mistake is in the status", lambda: not cluster.status(web)["last_reload"]["ok"], KUBELET)
    equal(port()["limit"], 3, "the last good limit")

    step("the ConfigMap `tidegate` holds for pods that are not edited, and `mode: off` is the switch")
    cluster.annotate(web, limit=None)
    cluster.apply(config(place, "limit: 5"))
    until("the limit is 5", lambda: port()["limit"] == 5, KUBELET)
    cluster.apply(config(place, "mode: off"))
    until("it is off", lambda: port()["mode"] == "off", KUBELET)

    step("nothing was restarted for it")
    (now,) = cluster.pods(place, "app=web")
    equal(now.metadata.uid, web.metadata.uid, "the pod")
    equal(set(restarts(now).values()), {0}, "restarts")


def config(place: str, text: str) -> Object:
    metadata = {"name": "tidegate", "namespace": place}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"web": text}}
