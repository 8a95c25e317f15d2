"""Who gets a sidecar, and what it looks like."""

from __future__ import annotations

import json

from e2e.cluster import SIDECAR, Cluster, injected, restarts
from e2e.steps import equal, true

WHAT = "pods that ask get a sidecar, by their own label or their namespace's; the others do not"


def run(cluster: Cluster) -> None:
    step = cluster.steps
    plain = cluster.namespace("plain")
    asking = cluster.asking("asking")

    step("in a namespace without the label, only the pod that is labelled has a sidecar")
    web = cluster.shop(plain)
    true(not injected(web), "a pod that did not ask was injected")
    cluster.patch_template(plain, "web", {"metadata": {"labels": {"tidegate.dev/inject": "enabled"}}})
    cluster.rolled_out(plain, "web")
    (web,) = cluster.ready(plain, "app=web")
    true(injected(web), "a pod with the label has no sidecar")

    step("in a namespace with the label, every pod has one, but not the one that says no")
    web = cluster.shop(asking)
    true(injected(web), "a pod of a labelled namespace has no sidecar")
    true(not injected(cluster.client_pod(asking)), "a pod that is labelled `disabled` was injected")

    step("it is a native sidecar and the last of the init containers; a second call of the webhook added no second one")
    init = web.spec.init_containers or []
    equal([c.name for c in init].count(SIDECAR), 1, "sidecars")
    equal((init[-1].name, init[-1].restart_policy), (SIDECAR, "Always"), "the last init container")
    equal([c.name for c in web.spec.containers], ["web"], "the application's containers")

    step("it has no privilege: not root, no capability, a read-only root, the runtime's seccomp profile")
    security = init[-1].security_context
    true(security.run_as_non_root and security.read_only_root_filesystem, str(security))
    true(not security.allow_privilege_escalation and security.capabilities.drop == ["ALL"], str(security))

    step("the pod says what was done to it, and `kubectl exec` without -c leads to the application")
    annotations = web.metadata.annotations
    true(json.loads(annotations["tidegate.dev/status"]), "an empty tidegate.dev/status")
    equal(annotations["kubectl.kubernetes.io/default-container"], "web", "the default container")

    step("nothing was restarted, and without a limit the sidecar only observes")
    equal(set(restarts(web).values()), {0}, "restarts")
    ports = {port["listen"]: port["mode"] for port in cluster.status(web)["ports"]}
    # Nothing is gated where everything captured arrives: it counts who dials that port itself.
    equal(ports, {"[::]:15801": "off", "[::]:8080": "observe"}, "ports and their modes")

    step("a pod on the host's network is made without a sidecar")
    made = cluster.pretend(asking, {}, {"hostNetwork": True})
    true(not injected(made), "a pod on the host's network was injected")

