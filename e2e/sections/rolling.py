"""Rolling updates under load."""

from __future__ import annotations

import threading

from e2e.cluster import Cluster, Object, injected, name_of
from e2e.steps import equal, true

WHAT = "a rolling update loses no request, with and without sleep hooks of the application's own"


def run(cluster: Cluster) -> None:
    for what, hook in [("no hook", None), ("a sleep hook", {"preStop": {"sleep": {"seconds": 5}}})]:
        one(cluster, what, hook)


def one(cluster: Cluster, what: str, hook: Object | None) -> None:
    step = cluster.steps
    place = cluster.asking("rolling")
    cluster.example("shop.yaml", place, {"spec": {"replicas": 3}})
    if hook:
        cluster.patch_template(place, "web", {"spec": {"containers": [{"name": "web", "lifecycle": hook}]}})
    cluster.rolled_out(place, "web")
    pods = cluster.ready(place, "app=web")
    true(all(injected(pod) for pod in pods), "no sidecar")
    before = {name_of(pod) for pod in pods}
    source = cluster.client_pod(place)
    url = f"http://web.{place}.svc/?sleep=0.05"

    for keep in (False, True):
        step(f"application with {what}: 0 requests lost {'on kept' if keep else 'on new'} connections while all pods are replaced")
        results: list[Object] = []
        load = threading.Thread(
            target=lambda: results.append(cluster.load(source, url, workers=8, seconds=90, keep=keep, timeout=30))  # noqa: B023
        )
        load.start()
        cluster.restart(place, "web")
        outlasted = load.is_alive()
        load.join()
        (seen,) = results
        equal((set(seen["statuses"]), seen["lost"]), ({"200"}, {}), "answers")
        true(outlasted, "the load ended before the update did")
        after = {name_of(pod) for pod in cluster.pods(place, "app=web")}
        true(not before & after, "some pods were not replaced")
        # Each new connection leads to any pod, so to all in the end; eight that are kept may leave one out.
        for when, names in (("before", before), ("after", after)):
            answered = names & set(seen["hosts"])
            true(answered if keep else answered == names, f"of the pods {when} it, only {sorted(answered)} answered")
        before = after
