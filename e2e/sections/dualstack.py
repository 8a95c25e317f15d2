"""IPv4 and IPv6."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from e2e.cluster import Cluster, Object
from e2e.steps import equal, true, until

WHAT = "a limit holds over both families together: there is no way round it by the other one"
LIMIT = 3


def lacking(cluster: Cluster) -> str | None:
    # As the API says it: the client and its types do not agree on how `podCIDRs` is written in Python.
    nodes = cluster.dynamic.resources.get(api_version="v1", kind="Node").get().to_dict()["items"]
    both = all(len(node["spec"].get("podCIDRs") or []) == 2 for node in nodes)
    return None if both else "dual-stack: the nodes have pod addresses of one family only"


def run(cluster: Cluster) -> None:
    step = cluster.steps
    place = cluster.asking("dual")
    cluster.example("shop.yaml", place, {"spec": {"replicas": 1}})
    service: Object = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "both", "namespace": place},
        "spec": {
            "ipFamilyPolicy": "RequireDualStack",
            "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
        },
    }
    addresses = cluster.apply(service)["spec"]["clusterIPs"]
    equal(len(addresses), 2, "addresses of the Service")
    (web,) = cluster.ready(place, "app=web")
    source = cluster.client_pod(place)
    urls = [f"http://[{address}]/" if ":" in address else f"http://{address}/" for address in addresses]
    before = 0.0
    for url in urls:
        step(f"requests to {url} go through the gate")
        seen = cluster.load(source, url, workers=4, requests=40)
        equal((seen["statuses"], seen["lost"]), ({"200": 40}, {}), "answers")
        now = cluster.metric(web, "tidegate_admission_decisions_total", outcome="admitted")
        equal(now - before, 40, "requests that the gate admitted")
        before = now

    step(f"with a limit of {LIMIT}, never more than {LIMIT} are inside while both are called at once")
    cluster.annotate(web, limit=str(LIMIT))
    until(f"the limit is {LIMIT}", lambda: cluster.port(web)["limit"] == LIMIT, 120)
    with ThreadPoolExecutor() as both:
        loads = [both.submit(cluster.load, source, url, workers=3 * LIMIT, seconds=10, pause=0.1) for url in urls]
    for family in [load.result() for load in loads]:
        true(0 < family["inside"] <= LIMIT, f"{family['inside']} were inside")
        true(family["statuses"].get("503", 0) > 0 and not family["lost"], str(family))

    step("and nobody went past it")
    true(cluster.metric(web, "tidegate_bypass_connections") == 0, "connections go past the sidecar")
