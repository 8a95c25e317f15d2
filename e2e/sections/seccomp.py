"""io_uring in a pod."""

from __future__ import annotations

from e2e.cluster import Cluster
from e2e.steps import equal, true

WHAT = "by default bytes move over epoll; with the profile on the nodes, over io_uring"


def lacking(cluster: Cluster) -> str | None:
    return None if "seccomp" in cluster.means else "the seccomp profile on the nodes (charts/tidegate/files/seccomp)"


def run(cluster: Cluster) -> None:
    step = cluster.steps
    place = cluster.asking("seccomp")
    step("without the operator's word, the runtime's profile denies io_uring, and bytes move over epoll")
    engine = cluster.status(cluster.shop(place))["engine"]
    equal(engine["name"], "epoll", f"the engine ({engine['reason']})")
    step("with the operator's word for the profile, the sidecar uses io_uring or says why it cannot")
    cluster.install({"operator": {"seccompProfile": "profiles/tidegate.json"}})
    cluster.restart(place, "web")
    (web,) = cluster.ready(place, "app=web")
    engine = cluster.status(web)["engine"]
    # The nodes' kernel may forbid it whatever the profile says (kernel.io_uring_disabled).
    disabled = cluster.exec(cluster.client_pod(place), "client", ["sh", "-c", "cat /proc/sys/kernel/io_uring_disabled || echo 0"])
    wanted = "uring" if disabled.strip() == "0" else "epoll"
    equal(engine["name"], wanted, f"the engine ({engine['reason']})")
    step("and serves with it")
    seen = cluster.load(cluster.client_pod(place), f"http://web.{place}.svc/?sleep=0", workers=4, requests=200)
    true(seen["statuses"] == {"200": 200} and not seen["lost"], str(seen))
