"""Jobs."""

from __future__ import annotations

from kubernetes import client

from e2e.cluster import SIDECAR, Cluster, Object, injected
from e2e.steps import equal, true, until

WHAT = "a Job completes although its sidecar would run for ever"


def run(cluster: Cluster) -> None:
    step = cluster.steps
    place = cluster.asking("jobs")
    container: Object = {
        "name": "work",
        "image": "docker.io/library/python:3.13-slim",
        "command": ["python3", "-c", "print(6 * 7)"],
        "ports": [{"name": "http", "containerPort": 8080}],
    }
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "sum", "namespace": place}}
    cluster.apply({**job, "spec": {"backoffLimit": 0, "template": template}})

    step("its pod has a sidecar")
    pod = until("there is a pod", lambda: next(iter(cluster.pods(place, "job-name=sum")), None))
    true(injected(pod), "no sidecar")

    step("the Job is complete within two minutes")

    def succeeded() -> bool:
        status = client.BatchV1Api().read_namespaced_job_status("sum", place).status
        true(not status.failed, "the Job failed")
        return status.succeeded == 1

    until("the Job is complete", succeeded, 120)

    step("the sidecar ended in peace")
    (pod,) = cluster.core.list_namespaced_pod(place, label_selector="job-name=sum").items

    def ended() -> client.V1ContainerStateTerminated | None:
        fresh = cluster.core.read_namespaced_pod(pod.metadata.name, place)
        return {s.name: s.state for s in fresh.status.init_container_statuses or []}[SIDECAR].terminated

    equal(until("the sidecar has ended", ended).exit_code, 0, "its exit code")
