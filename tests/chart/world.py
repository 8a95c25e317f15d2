"""A cluster in which what e2e waits for happens at once: Deployments have pods, pods get sidecars, sidecars hold limits.

The sections of e2e run against it with Kubernetes' own client and Helm's own library; every object that is sent is held
against the published schemas. Only commands in containers do not go through the API. `faults` make it a world in which
a promise is broken, so that it is seen which sections notice:

    injector    nobody is injected whose pod is kept
    limit       sidecars let everybody in
    lost        of every load one request is lost
    left        uninstalling leaves the webhook's configuration
    restart     whatever is edited on a pod restarts its containers
    deaf        sidecars keep the settings that they have started with
    silent      the policy warns nobody
    docker.io   no image of Jaeger's can be had
"""

import copy
import json
import re
from urllib.parse import unquote, urlsplit

import kubernetes_validate

import render
from apiserver import ApiServer, failure

SIDECAR = "tidegate"
RELEASE = ("deployments", "tidegate-system", "tidegate")
WORK = 0.2  # seconds that the example takes for a request
POLICY = "tidegate-sidecar.tidegate.dev"
CHECKED = set()  # what is as published, over all worlds
NO_CAPABILITY = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "runAsNonRoot": True}
SUBRESOURCE = re.compile(r"^/api(?:s/apps|s/batch)?/v1/namespaces/([^/]+)/([a-z]+)/([^/]+)/(scale|status|proxy)(?:/(.*))?$")


class World(ApiServer):
    """Kubernetes of some version, with two nodes of both families."""

    def __init__(self, version, faults=()):
        super().__init__(version)
        self.faults = set(faults)
        self.schema = ".".join(version.lstrip("v").split(".")[:2])
        self.checked = 0
        self.made = 0  # pods and Services
        self.replaced = {}  # (namespace, deployment): names of the pods before and after the last roll-out
        self.counts = {}  # a pod's uid: its sidecar's books
        self.spans = {}  # a trace: spans of it
        for name in ("a", "b"):
            spec = {"podCIDRs": ["10.0.0.0/24", "fd00::/64"]}
            self.objects["nodes", "", name] = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": spec}

    # The API.

    def answer(self, verb, target, body, content_type=""):
        url = urlsplit(target)
        found = SUBRESOURCE.match(unquote(url.path))
        if not found:
            return super().answer(verb, target, body, content_type)
        namespace, resource, name, what, path = found.groups()
        with self.lock:
            if what == "proxy" and resource == "pods":
                return 200, self.metrics(self.objects["pods", namespace, name.partition(":")[0]]).encode()
            if what == "proxy":
                what, _, trace = path.rpartition("/")
                spans = self.spans.get(trace, []) if (name, what) == ("jaeger:http-query", "api/traces") else []
                return 200, {"data": [{"traceID": trace, "spans": spans}] if spans else []}
            key = (resource, namespace, name)
            if what == "scale":
                before = copy.deepcopy(self.objects[key])
                self.objects[key]["spec"].update(json.loads(body)["spec"])
                self.happens(key, before)
                return 200, {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": name}, "spec": {}}
            return 200, self.objects[key]

    def change(self, verb, found, query, body, merges):
        self.warning = ""
        try:
            status, answer = super().change(verb, found, query, body, merges)
        except kubernetes_validate.ValidationError as error:
            return 422, failure(422, "Invalid", f"{'.'.join(map(str, error.path))}: {error.message}")
        if verb == "DELETE":
            self.ends(found["resource"], found["namespace"] or "", found["name"])
        return status, answer

    def admitted(self, key, sent):
        kind = sent["kind"]
        self.check(sent)
        if kind == "Service":
            self.made += 1
            sent["spec"].setdefault("clusterIPs", [f"10.1.0.{self.made}", f"fd01::{self.made}"])
        if kind == "Pod" and "status" not in sent:
            return self.pod(key[1], sent)
        return sent

    def check(self, sent):
        """Holds what was sent against the published schema, once for objects that differ in their places only."""
        metadata = {name: value for name, value in sent["metadata"].items() if name in ("labels", "annotations")}
        text = json.dumps([self.schema, {**sent, "metadata": metadata, "status": None}], sort_keys=True)
        if sent["kind"] not in render.FOREIGN and text not in CHECKED:
            plain = {name: value for name, value in sent.items() if name != "status"}
            for version in {self.schema, kubernetes_validate.latest_version()}:
                kubernetes_validate.validate(plain, version, strict=True)
            CHECKED.add(text)
        self.checked += 1

    def happens(self, key, before):
        kind, item = self.objects[key]["kind"], self.objects[key]
        if kind == "Deployment":
            self.rolls(key, item, before)
        if kind == "Service":
            self.leads(key, item)
        if kind == "Job":
            pod = self.keep(key[1], item["spec"]["template"], {"job-name": key[2]})
            pod["status"]["phase"] = "Succeeded"
            for status in pod["status"]["initContainerStatuses"]:
                status["state"] = {"terminated": {"exitCode": 0}}
            item["status"] = {"succeeded": 1}
        if kind == "Pod" and before and "restart" in self.faults:
            for status in item["status"]["containerStatuses"]:
                status["restartCount"] += 1

    def leads(self, key, service):
        """The endpoints of a Service: sidecars, which take over the names of ports, or the application."""
        ports = [{"port": 15800 if has_sidecar(pod) else 8080} for pod in self.behind(key[1], service)]
        metadata = {"name": key[2], "namespace": key[1], "labels": {"kubernetes.io/service-name": key[2]}}
        slices = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata, "ports": ports}
        self.objects["endpointslices", key[1], key[2]] = slices

    def behind(self, namespace, service):
        """The pods that a Service leads to."""
        wanted = service["spec"].get("selector", {}).items()
        pods = [o for (resource, n, _), o in self.objects.items() if (resource, n) == ("pods", namespace)]
        return [pod for pod in pods if wanted <= pod["metadata"].get("labels", {}).items()]

    def ends(self, resource, namespace, name):
        if resource == "namespaces":
            for key in [key for key in self.objects if key[1] == name]:
                del self.objects[key]
        if resource == "deployments":
            self.sized((resource, namespace, name), {"spec": {"replicas": 0}})
        if resource == "mutatingwebhookconfigurations" and "left" in self.faults:
            metadata = {"labels": {"app.kubernetes.io/part-of": "tidegate"}, "name": name}
            self.objects[resource, "", name] = {"kind": "MutatingWebhookConfiguration", "metadata": metadata}

    # Pods.

    def rolls(self, key, item, before):
        """All pods anew if the template is another one, else as many as are asked for."""
        item["metadata"]["generation"] = item["metadata"].get("generation", 0) + 1
        old = self.of(key)
        if not before or before["spec"]["template"] != item["spec"]["template"]:
            for pod in old:
                del self.objects["pods", key[1], pod["metadata"]["name"]]
        self.sized(key, item)
        self.replaced[key[1:]] = {pod["metadata"]["name"] for pod in [*old, *self.of(key)]}
        count = item["spec"].setdefault("replicas", 1)
        numbers = dict.fromkeys(("replicas", "updatedReplicas", "availableReplicas"), count)
        item["status"] = {"observedGeneration": item["metadata"]["generation"], **numbers}

    def sized(self, key, item):
        pods = self.of(key)
        wanted = item["spec"].get("replicas", 1)
        for pod in pods[wanted:]:
            del self.objects["pods", key[1], pod["metadata"]["name"]]
        for _ in range(wanted - len(pods)):
            self.keep(key[1], item["spec"]["template"], {"deployment": key[2]})

    def of(self, key):
        """The pods of a Deployment."""
        return self.behind(key[1], {"spec": {"selector": {"deployment": key[2]}}})

    def keep(self, namespace, template, labels):
        self.made += 1
        name = f"pod-{self.made}"
        metadata = copy.deepcopy(template.get("metadata", {}))
        metadata.update(name=name, namespace=namespace, uid=f"uid-{name}", labels={**metadata.get("labels", {}), **labels})
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": copy.deepcopy(template["spec"])}
        self.objects["pods", namespace, name] = self.pod(namespace, pod)
        return self.objects["pods", namespace, name]

    def pod(self, namespace, pod):
        """A pod as it is after the webhook, the policy and the kubelet have seen it."""
        metadata, spec = pod["metadata"], pod["spec"]
        place = self.objects.get(("namespaces", "", namespace), {"metadata": {}})["metadata"].get("labels", {})
        says = metadata.get("labels", {}).get("tidegate.dev/inject")
        asks = says == "enabled" or (place.get("tidegate.dev/inject") == "enabled" and says != "disabled")
        if asks and not spec.get("hostNetwork") and namespace != "tidegate-system":
            if self.injects() and ("injector" not in self.faults or metadata["name"] == "pretended"):
                sidecar = {"name": SIDECAR, "image": "i", "restartPolicy": "Always"}
                sidecar["securityContext"] = {**NO_CAPABILITY, "capabilities": {"drop": ["ALL"]}}
                spec["initContainers"] = [*spec.get("initContainers", []), sidecar]
                ours = {"kubectl.kubernetes.io/default-container": spec["containers"][0]["name"]}
                ours["tidegate.dev/status"] = '{"version": "0"}'
                metadata["annotations"] = {**metadata.get("annotations", {}), **ours}
            elif self.find("validatingadmissionpolicybindings", POLICY) and "silent" not in self.faults:
                self.warning = "this pod asks for the tidegate sidecar and has none"
        pod["status"] = {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
            "initContainerStatuses": [status(c) for c in spec.get("initContainers", [])],
            "containerStatuses": [status(c) for c in spec["containers"]],
        }
        if "docker.io" in self.faults and "/jaeger:" in spec["containers"][0]["image"]:
            pod["status"]["containerStatuses"][0].update(imageID="", state={"waiting": {"reason": "ErrImagePull"}})
        return pod

    def injects(self):
        running = self.objects.get(RELEASE, {"spec": {"replicas": 0}})["spec"].get("replicas", 1)
        return bool(running and self.find("mutatingwebhookconfigurations", "tidegate"))

    def operator(self):
        return self.find("configmaps", "tidegate")["data"]["operator.yaml"]

    # What sidecars do.

    def limit(self, pod):
        """Its limit and mode, by the pod's annotation and then by the namespace's ConfigMap, and whether they make sense."""
        books = self.counts.setdefault(pod["metadata"]["uid"], {"good": None, "admitted": 0, "refused": 0})
        said = pod["metadata"].get("annotations", {}).get("tidegate.dev/limit")
        config = self.objects.get(("configmaps", pod["metadata"]["namespace"], "tidegate"), {"data": {}})["data"].get("web", "")
        if said is None and config.startswith("limit: "):
            said = config.removeprefix("limit: ")
        good = said is None or said.isdigit()
        if good and "deaf" not in self.faults or "first" not in books:
            books["good"] = int(said) if said else None
        books["first"] = False
        mode = "off" if config == "mode: off" and "deaf" not in self.faults else "enforce" if books["good"] else "observe"
        return books, mode, good

    def status(self, pod):
        books, mode, good = self.limit(pod)
        port = {"listen": "[::]:8080", "limit": books["good"], "mode": mode, "peak_active": 1}
        engine = "uring" if 'seccompProfile: "profiles/' in self.operator() else "epoll"
        return {
            "phase": "serving",
            "engine": {"name": engine, "reason": "of this world"},
            "last_reload": {"ok": good},
            "ports": [{"listen": "[::]:15801", "mode": "off"}, port],
        }

    def metrics(self, pod):
        books, _, _ = self.limit(pod)
        decisions = "tidegate_admission_decisions_total"
        lines = [f'{decisions}{{port="8080",outcome="{o}"}} {books[o]}' for o in ("admitted", "refused")]
        lines += ['tidegate_shadow_refusals_total{limit="25"} 9', 'tidegate_bypass_connections{port="8080"} 0']
        return "\n".join(lines) + "\n"

    def load(self, how):
        """What becomes of requests that come at once, a worker at a time."""
        url = urlsplit(how["url"])
        service, namespace = next(
            (o, n) for (r, n, _), o in self.objects.items() if r == "services" and url.hostname in names(n, o)
        )
        pods = self.behind(namespace, service)
        answer = {"statuses": {}, "lost": {}, "hosts": {}, "inside": 0, "said_why": 0}
        if url.path == "/hang":
            for each in pods:
                each["status"]["containerStatuses"][0]["restartCount"] += 1
            return {**answer, "lost": {"TimeoutError": 1}}
        with_sidecar = [p for p in pods if has_sidecar(p)]
        limits = [self.limit(p)[0]["good"] for p in with_sidecar]
        gated = bool(limits) and None not in limits and "limit" not in self.faults
        room = sum(limits) if gated else how["workers"]
        work = float(url.query.partition("sleep=")[2] or WORK) or 0.001
        if "requests" in how:
            served = min(how["requests"], room + len(pods) if gated and how["workers"] > room else how["requests"])
            refused = how["requests"] - served
        else:
            served = int(how["seconds"] * min(how["workers"], room) / work)
            refused = int(how["seconds"] * max(how["workers"] - room, 0) / how.get("pause", 1))
        lost = {"ConnectionResetError": 1} if "lost" in self.faults else {}
        answer["inside"] = min(how["workers"], room) if "limit" not in self.faults else 100
        answer["statuses"] = {s: n for s, n in (("200", served), ("503", refused)) if n}
        hosts = [name for (n, _), pods in self.replaced.items() if n == namespace for name in pods]
        for share, each in enumerate(with_sidecar):
            books = self.limit(each)[0]
            books["admitted"] += served // len(with_sidecar) + (share < served % len(with_sidecar))
            books["refused"] += refused
        self.trace(how, served, refused, with_sidecar)
        if refused and ("horizontalpodautoscalers", namespace, "web") in self.objects and with_sidecar:
            key = ("deployments", namespace, "web")
            before = copy.deepcopy(self.objects[key])
            self.objects[key]["spec"]["replicas"] = min(2 * before["spec"]["replicas"], 10)
            self.happens(key, before)
        return {**answer, "lost": lost, "hosts": dict.fromkeys(hosts, 1), "said_why": refused}

    def trace(self, how, served, refused, with_sidecar):
        if "traceparent" not in how.get("headers", {}) or not with_sidecar or "jaeger" not in self.operator():
            return
        ends = [{"operationName": "GET", "tags": []}] * 2 * served
        why = [{"key": "tidegate.outcome", "value": "refused"}, {"key": "tidegate.reason", "value": "queue_full"}]
        spans = [*ends, *[{"operationName": "GET", "tags": why}] * refused, {"operationName": "admission.wait", "tags": []}]
        self.spans[how["headers"]["traceparent"].split("-")[1]] = spans

    # Commands in containers.

    def exec(self, pod, container, command):
        with self.lock:
            found = self.objects["pods", pod.metadata.namespace, pod.metadata.name]
            if container == SIDECAR and not has_sidecar(found):
                raise AssertionError("no such container: tidegate")
            if command[:2] == ["/tidegate", "status"]:
                return json.dumps(self.status(found))
            if command[:2] == ["/tidegate", "explain"]:
                return "refused: queue_full"
            if command[0] == "python3":
                return json.dumps(self.load(json.loads(command[3])))
            if command[0] == "sh":
                return "0\n"
        raise AssertionError(f"nobody knows what becomes of {command}")


def status(container):
    return {"name": container["name"], "ready": True, "restartCount": 0, "image": "i", "imageID": "i", "state": {"running": {}}}


def names(namespace, service):
    """What leads to a Service."""
    return [f"{service['metadata']['name']}.{namespace}.svc", *service["spec"]["clusterIPs"]]


def has_sidecar(pod):
    return any(c["name"] == SIDECAR for c in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]])
