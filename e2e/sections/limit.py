"""A limit, held while more come."""

from __future__ import annotations

from e2e.cluster import Cluster
from e2e.steps import equal, true

WHAT = "observing shows what a limit would do; a limit is held under load, and who is refused is told why"
LIMIT = 4
WORKERS = 10 * LIMIT
WORK = 0.2  # seconds that the application takes for one
LONG = 20  # seconds of load


def run(cluster: Cluster) -> None:
    step = cluster.steps
    place = cluster.asking("limit")
    web = cluster.shop(place)
    source = cluster.client_pod(place)
    url = f"http://web.{place}.svc/"

    step("while it observes, nobody is refused, and more are inside at once than the limit to come")
    seen = cluster.load(source, url, workers=WORKERS, seconds=10)
    equal((set(seen["statuses"]), seen["lost"]), ({"200"}, {}), "answers")
    true(seen["inside"] > LIMIT, f"only {seen['inside']} were inside: the load is too small to show anything")
    true(seen["inside"] <= WORKERS, f"{seen['inside']} were inside: the application counts more than the load")
    true(cluster.metric(web, "tidegate_shadow_refusals_total", limit="25") > 0, "a limit of 25 would have refused some")
    true(cluster.metric(web, "tidegate_bypass_connections") == 0, "connections go past the sidecar")

    step(f"with a limit of {LIMIT}, never more than {LIMIT} are inside, as the application counts them")
    annotations = {"tidegate.dev/limit": str(LIMIT), "tidegate.dev/queue-length": "8"}
    cluster.patch_template(place, "web", {"metadata": {"annotations": annotations}})
    cluster.rolled_out(place, "web")
    (web,) = cluster.ready(place, "app=web")
    seen = cluster.load(source, url, workers=WORKERS, seconds=LONG, pause=0.1)
    most = cluster.port(web)["peak_active"]
    true(0 < seen["inside"] <= LIMIT, f"{seen['inside']} were inside, by the sidecar's count {most}")
    equal(seen["lost"], {}, "requests without an answer")

    step("the rest is refused in words: 503 with Retry-After and Proxy-Status, quickly")
    refused = seen["statuses"].get("503", 0)
    true(refused > 100 and set(seen["statuses"]) == {"200", "503"}, str(seen["statuses"]))
    equal(seen["said_why"], refused, "refusals that say why and when to come again")
    true(seen["statuses"]["200"] > 0.7 * LONG * LIMIT / WORK, "the application was kept busy all the while")

    step("refusals are in the metrics, in the status, and explained")
    counted = cluster.metric(web, "tidegate_admission_decisions_total", outcome="refused")
    equal(counted, refused, "refusals in the metrics")
    said = cluster.exec(web, "tidegate", ["/tidegate", "explain", "--last", "1"])
    true("queue_full" in said or "queue_timeout" in said, f"explain says {said!r}")
