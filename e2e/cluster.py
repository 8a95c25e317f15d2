"""The cluster: objects in and out, the chart, commands in containers, and load from inside.

Everything goes through the API server, so any cluster serves; nothing needs kubectl or helm on this machine.
"""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path
from typing import Any

import helm_python as helm
import yaml
from kubernetes import client, config
from kubernetes.client import ApiException
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import NotFoundError
from kubernetes.stream import stream

from e2e.steps import Steps, true, until

ROOT = Path(__file__).resolve().parents[1]
NAMESPACE = "tidegate-system"
RELEASE = "tidegate"
SIDECAR = "tidegate"
MARK = "tidegate.dev/e2e"  # label of what is ours to delete: namespaces, and the objects of the release
Object = dict[str, Any]


class Cluster:
    """One cluster, and what was put into it."""

    def __init__(self, image: str, means: set[str]) -> None:
        config.load_kube_config()
        self.image = image
        self.means = means
        self.steps = Steps()
        self.core = client.CoreV1Api()
        self.apps = client.AppsV1Api()
        self.dynamic: Any = DynamicClient(client.ApiClient())  # type: ignore[no-untyped-call]
        self.helm = helm.Config(namespace=NAMESPACE)

    def version(self) -> str:
        return str(client.VersionApi().get_code().git_version)

    def minor(self) -> int:
        """33 of Kubernetes 1.33."""
        return int("".join(c for c in client.VersionApi().get_code().minor if c.isdigit()))

    def has_group(self, name: str) -> bool:
        """Whether the API has such a group."""
        return any(group.name == name for group in client.ApisApi().get_api_versions().groups)

    # The chart.

    def install(self, values: Object) -> None:
        """Install the chart, or upgrade it to exactly these values, and wait for the injector."""
        repository, _, tag = self.image.rpartition(":")
        image = {"registry": "", "repository": repository, "tag": tag}
        given = merged({"image": image, "commonLabels": {MARK: "yes"}}, values)
        chart = str(ROOT / "charts" / "tidegate")
        installed = self.installed()
        if installed:
            self.helm.upgrade(chart, RELEASE, given, namespace=NAMESPACE, reset_values=True, timeout=180)
        else:
            self.helm.install(chart, RELEASE, given, namespace=NAMESPACE, create_namespace=True, timeout=180)
        self.rolled_out(NAMESPACE, RELEASE)
        # The operator's file comes to the pods at the kubelet's pace, and is read again when it has come.
        if installed:
            self.restart(NAMESPACE, RELEASE)
        until("the API server reaches the injector", self.injects, seconds=60)

    def installed(self) -> bool:
        """Whether there is a release of that name, whosever it is."""
        return any(release["name"] == RELEASE for release in self.helm.list(all_states=True))

    def occupied(self) -> str | None:
        """Why nothing may be done here: sections upgrade and remove the release, which is not always ours."""
        if not self.installed() or (self.helm.get_values(RELEASE).get("commonLabels") or {}).get(MARK) == "yes":
            return None
        return f"the release {RELEASE} in {NAMESPACE} is somebody else's: sections would reset its values and uninstall it"

    def uninstall(self) -> None:
        self.helm.uninstall(RELEASE, timeout=180)

    def injects(self) -> bool:
        """Whether a pod that asks would get its sidecar, without making one."""
        return injected(self.pretend("default", {"labels": {"tidegate.dev/inject": "enabled"}}))

    def pretend(self, namespace: str, metadata: Object, spec: Object | None = None) -> client.V1Pod:
        """What would become of a pod if it were made: webhooks see it, nobody keeps it."""
        pod: Any = one_container("pretended", "a", metadata, spec)
        return self.core.create_namespaced_pod(namespace, pod, dry_run="All")

    def warnings(self, namespace: str) -> str:
        """What whoever made a pod there would be warned of."""
        core: Any = self.core  # its types do not know the calls that answer with headers
        _, _, headers = core.create_namespaced_pod_with_http_info(namespace, one_container("pretended", "a"), dry_run="All")
        return str(headers.get("Warning") or "")

    def pulls(self, image: str) -> bool:
        """Whether a node can have this image."""
        place = self.namespace("pull")
        self.apply(one_container("pull", image), place)

        def outcome() -> str | None:
            (status,) = self.core.read_namespaced_pod("pull", place).status.container_statuses or [None]
            if status is None:
                return None
            reason = status.state.waiting.reason if status.state.waiting else None
            return "pulled" if status.image_id else "failed" if reason in ("ErrImagePull", "ImagePullBackOff") else None

        return until(f"{image} is pulled, or cannot be", outcome, 300) == "pulled"

    # Objects.

    def namespace(self, prefix: str, labels: dict[str, str] | None = None) -> str:
        """A new namespace, deleted when the section is over."""
        name = f"e2e-{prefix}-{secrets.token_hex(3)}"
        metadata = {"name": name, "labels": {**(labels or {}), MARK: "yes"}}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        return name

    def asking(self, prefix: str) -> str:
        """A new namespace all of whose pods ask for a sidecar."""
        return self.namespace(prefix, {"tidegate.dev/inject": "enabled"})

    def apply(self, item: Object, namespace: str | None = None) -> Object:
        """Server-side apply, as `kubectl apply --server-side` does it."""
        api = self.dynamic.resources.get(api_version=item["apiVersion"], kind=item["kind"])
        made = api.server_side_apply(
            body=item,
            name=item["metadata"]["name"],
            namespace=namespace or item["metadata"].get("namespace"),
            field_manager="e2e",
            force_conflicts=True,
        )
        answer: Object = made.to_dict()
        return answer

    def delete(self, item: Object) -> None:
        """Delete an object, if it is there."""
        api = self.dynamic.resources.get(api_version=item["apiVersion"], kind=item["kind"])
        try:
            api.delete(name=item["metadata"]["name"], namespace=item["metadata"].get("namespace"))
        except NotFoundError:
            pass

    def example(self, file: str, namespace: str, changes: Object | None = None) -> None:
        """An example of manifests/, in a namespace of ours; `changes` are laid over its Deployment."""
        self.apply_all(ROOT / "manifests" / "examples" / file, namespace, changes)

    def apply_all(self, path: Path, namespace: str, changes: Object | None = None) -> None:
        """The objects of a file in a namespace of ours, not in the one it makes."""
        for item in yaml.safe_load_all(path.read_text()):
            if item["kind"] == "Namespace":
                continue
            item["metadata"]["namespace"] = namespace
            if item["kind"] == "Deployment" and changes:
                item = merged(item, changes)
            self.apply(item)

    def shop(self, namespace: str) -> client.V1Pod:
        """The small application of manifests/examples/shop.yaml with one pod, which is ready."""
        self.example("shop.yaml", namespace, {"spec": {"replicas": 1}})
        (web,) = self.ready(namespace, "app=web")
        return web

    def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """The object, or None."""
        api = self.dynamic.resources.get(api_version=api_version, kind=kind)
        try:
            found: Object = api.get(name=name, namespace=namespace).to_dict()
            return found
        except NotFoundError:
            return None

    def pods(self, namespace: str, selector: str = "") -> list[client.V1Pod]:
        """The pods that are not on their way out."""
        pods = self.core.list_namespaced_pod(namespace, label_selector=selector).items
        return [pod for pod in pods if not pod.metadata.deletion_timestamp]

    def ready(self, namespace: str, selector: str, least: int = 1, seconds: float = 180) -> list[client.V1Pod]:
        """All pods of that selector, once there are so many, all of them ready. Who has just been scaled has too few yet."""

        def look() -> list[client.V1Pod] | None:
            pods = self.pods(namespace, selector)
            return pods if len(pods) >= least and all(is_ready(pod) for pod in pods) else None

        return until(f"the pods {selector} in {namespace} are ready, at least {least}", look, seconds)

    def rolled_out(self, namespace: str, deployment: str, seconds: float = 300) -> None:
        """Wait until the newest version of a Deployment is all there is of it. What goes still serves, by old settings."""

        def look() -> bool:
            d = self.apps.read_namespaced_deployment(deployment, namespace)
            wanted, s = d.spec.replicas, d.status
            current = (s.observed_generation or 0) >= (d.metadata.generation or 0)
            if not (current and s.updated_replicas == s.available_replicas == s.replicas == wanted):
                return False
            labels = ",".join(f"{key}={value}" for key, value in d.spec.selector.match_labels.items())
            everybody = self.core.list_namespaced_pod(namespace, label_selector=labels).items
            return all(pod.metadata.deletion_timestamp is None for pod in everybody)

        until(f"deployment/{deployment} in {namespace} is rolled out", look, seconds)

    def restart(self, namespace: str, deployment: str) -> None:
        """`kubectl rollout restart`, and wait for it."""
        at = {"kubectl.kubernetes.io/restartedAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        self.patch_template(namespace, deployment, {"metadata": {"annotations": at}})
        self.rolled_out(namespace, deployment)

    def patch_template(self, namespace: str, deployment: str, change: Object) -> None:
        """Change a Deployment's pod template; does not wait."""
        self.apps.patch_namespaced_deployment(deployment, namespace, {"spec": {"template": change}})

    def annotate(self, pod: client.V1Pod, **annotations: str | None) -> None:
        """Annotations under our prefix, on a living pod."""
        ours = {f"tidegate.dev/{key.replace('_', '-')}": value for key, value in annotations.items()}
        self.core.patch_namespaced_pod(name_of(pod), pod.metadata.namespace, {"metadata": {"annotations": ours}})

    def clear(self) -> None:
        """Delete the namespaces that sections have made, and wait until they are gone."""
        names = [n.metadata.name for n in self.core.list_namespace(label_selector=MARK).items]
        for name in names:
            try:
                self.core.delete_namespace(name)
            except ApiException as error:
                true(error.status in (404, 409), str(error))
        gone = lambda: not self.core.list_namespace(label_selector=MARK).items or None  # noqa: E731
        until("the namespaces of the last section are gone", gone, seconds=180)

    # In containers.

    def exec(self, pod: client.V1Pod, container: str, command: list[str]) -> str:
        """What a command in a container writes to stdout."""
        answer: Any = stream(
            self.core.connect_get_namespaced_pod_exec,
            name_of(pod),
            pod.metadata.namespace,
            container=container,
            command=command,
            stdin=False,
            stdout=True,
            stderr=True,
            tty=False,
            _preload_content=False,
        )
        answer.run_forever(timeout=300)
        out, errors, code = str(answer.read_stdout() or ""), str(answer.read_stderr() or ""), answer.returncode
        answer.close()
        if code != 0:
            raise AssertionError(f"{' '.join(command)} in {name_of(pod)}/{container} exits with {code}: {errors or out}")
        return out

    def status(self, pod: client.V1Pod) -> Object:
        """What the sidecar says of itself."""
        answer: Object = json.loads(self.exec(pod, SIDECAR, ["/tidegate", "status", "--json"]))
        return answer

    def port(self, pod: client.V1Pod) -> Object:
        """What it says of port 8080, behind which our applications are. Another is where everything captured arrives."""
        found: Object = next(port for port in self.status(pod)["ports"] if port["listen"] == "[::]:8080")
        return found

    def metric(self, pod: client.V1Pod, name: str, **labels: str) -> float:
        """The sum of a metric of the sidecar over all series that have these labels."""
        path = f"{name_of(pod)}:15822"
        text = str(self.core.connect_get_namespaced_pod_proxy_with_path(path, pod.metadata.namespace, "metrics"))
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} ")))
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(float(value) for series, value in lines if all(label in series for label in wanted))

    def client_pod(self, namespace: str) -> client.V1Pod:
        """A pod without a sidecar, from which load comes."""
        self.apply(yaml.safe_load((ROOT / "e2e" / "manifests" / "client.yaml").read_text()), namespace)
        return self.ready(namespace, "app=client")[0]

    def load(self, source: client.V1Pod, url: str, **how: Any) -> Object:
        """Requests from inside the cluster, and what became of each (e2e/load.py)."""
        arguments = json.dumps({"url": url, **how})
        script = (ROOT / "e2e" / "load.py").read_text()
        answer: Object = json.loads(self.exec(source, "client", ["python3", "-c", script, arguments]))
        print(f"    {json.dumps({key: value for key, value in answer.items() if key != 'hosts'})}")
        return answer

    def explain(self) -> None:
        """After a failure: what the injector and the pods of the section say."""
        places = [n.metadata.name for n in self.core.list_namespace(label_selector=MARK).items]
        for place in [NAMESPACE, *places]:
            for pod in self.core.list_namespaced_pod(place).items:
                print(f"    {place}/{name_of(pod)}: {pod.status.phase}")
                containers = [s for s in [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]]
                for status in containers:
                    if not status.ready:
                        print(f"      {status.name}: {status.state.waiting or status.state.terminated or status.state.running}")
                    if status.name in (SIDECAR, "injector"):
                        self.tail(pod, status.name)
            for event in self.core.list_namespaced_event(place).items[-15:]:
                print(f"    event: {event.involved_object.name}: {event.reason}: {event.message}")

    def tail(self, pod: client.V1Pod, container: str) -> None:
        try:
            log = self.core.read_namespaced_pod_log(name_of(pod), pod.metadata.namespace, container=container, tail_lines=15)
        except ApiException as error:
            log = str(error.reason)
        print("\n".join(f"        {line}" for line in str(log).splitlines()))


def one_container(name: str, image: str, metadata: Object | None = None, spec: Object | None = None) -> Object:
    """A pod of one container with a port."""
    container = {"name": "a", "image": image, "ports": [{"name": "http", "containerPort": 8080}]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, **(metadata or {})},
        "spec": {"containers": [container], **(spec or {})},
    }


def sidecars(pod: client.V1Pod) -> list[client.V1Container]:
    """All containers of a pod, of both kinds."""
    return [*(pod.spec.init_containers or []), *pod.spec.containers]


def injected(pod: client.V1Pod) -> bool:
    """Whether the pod has the sidecar."""
    return any(container.name == SIDECAR for container in sidecars(pod))


def is_ready(pod: client.V1Pod) -> bool:
    """Whether the pod is."""
    return any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or [])


def name_of(pod: client.V1Pod) -> str:
    """Its name."""
    return str(pod.metadata.name)


def restarts(pod: client.V1Pod) -> dict[str, int]:
    """How often each of its containers was started again."""
    statuses = [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]
    return {status.name: status.restart_count for status in statuses}


def merged(below: Object, above: Object) -> Object:
    """Both, the second laid over the first; lists are replaced."""
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both
