"""Which pods are shown to the injector, and what the policies say of objects: the selectors and the CEL, evaluated."""

import functools
import itertools
import json
import unittest

import render
from cel import judge, matches, selected

LEVELS = ["privileged", "baseline", "restricted"]
POLICIES = {"policies": {"requireSidecar": {"enabled": True}, "checkAnnotations": {"enabled": True}}}


@functools.cache
def of(values):
    objects = render.objects(json.loads(values))
    return next(o for o in objects if o["kind"] == "MutatingWebhookConfiguration")["webhooks"]


def webhooks(values):
    return of(json.dumps(values))


def called(hooks, namespace, pod):
    """The paths that are called for a pod. Both are given as objects."""
    labels = {"kubernetes.io/metadata.name": namespace["metadata"]["name"], **namespace["metadata"].get("labels", {})}
    return [
        hook["clientConfig"]["service"]["path"]
        for hook in hooks
        if selected(hook["namespaceSelector"], labels)
        and selected(hook["objectSelector"], pod["metadata"].get("labels", {}))
        and matches(hook["matchConditions"], {"object": pod})
    ]


def namespace(name="shop", **labels):
    return {"metadata": {"name": name, "labels": keys(labels)}}


def pod(annotations=None, spec=None, **labels):
    made = {"metadata": {"labels": keys(labels)}, "spec": {"containers": [{"name": "web"}], **(spec or {})}}
    if annotations is not None:
        made["metadata"]["annotations"] = annotations
    return made


def keys(labels):
    names = {"enforce": "pod-security.kubernetes.io/enforce", "ambient": "istio.io/dataplane-mode"}
    return {names.get(k, f"tidegate.dev/{k}"): v for k, v in labels.items() if v is not None}


class Webhooks(unittest.TestCase):
    def test_every_pod_that_asks_is_shown_once_at_the_level_of_its_namespace(self):
        hooks = webhooks({})
        says = [None, "enabled", "disabled", "false", "true"]
        for of_namespace, of_pod, level in itertools.product(says, says, [None, *LEVELS]):
            asked = of_pod == "enabled" or (of_namespace == "enabled" and of_pod not in ("disabled", "false"))
            expected = [f"/inject/{level or 'privileged'}"] if asked else []
            paths = called(hooks, namespace(inject=of_namespace, enforce=level), pod(inject=of_pod))
            self.assertEqual(paths, expected, (of_namespace, of_pod, level))

    def test_namespaces_in_ambient_mode_say_so_in_the_path(self):
        for level, ambient in itertools.product([None, *LEVELS], [None, "none", "ambient"]):
            place = namespace(inject="enabled", enforce=level, ambient=ambient)
            path = f"/inject/{level or 'privileged'}"
            self.assertEqual(called(webhooks({}), place, pod()), [path + "/mesh" if ambient == "ambient" else path])
            self.assertEqual(called(webhooks({"webhook": {"ambientMesh": False}}), place, pod()), [path])

    def test_what_the_cluster_enforces_without_a_label_can_be_said(self):
        for default in LEVELS:
            hooks = webhooks({"webhook": {"podSecurityDefault": default}})
            self.assertEqual(called(hooks, namespace(inject="enabled"), pod()), [f"/inject/{default}"])
            for level in LEVELS:
                paths = called(hooks, namespace(inject="enabled", enforce=level), pod())
                self.assertEqual(paths, [f"/inject/{level}"])

    def test_the_clusters_own_namespaces_are_never_shown(self):
        hooks = webhooks({"webhook": {"excludedNamespaces": ["cert-manager"]}})
        for name in ["kube-system", "kube-public", "kube-node-lease", render.NAMESPACE, "cert-manager"]:
            self.assertEqual(called(hooks, namespace(name, inject="enabled"), pod(inject="enabled")), [], name)

    def test_mirrors_are_not_shown_and_the_hosts_network_only_where_that_blocks_nobody(self):
        on_host = pod(spec={"hostNetwork": True})
        shown = [pod(), pod(annotations={}), pod(annotations={"a": "b"}), pod(spec={"hostNetwork": False})]
        hidden = [pod(annotations={"kubernetes.io/config.mirror": "x"})]
        # Who is left without a sidecar is told so by the injector.
        policies = {"Ignore": ([*shown, on_host], hidden), "Fail": (shown, [*hidden, on_host])}
        for policy, (shown, hidden) in policies.items():
            hooks = webhooks({"webhook": {"failurePolicy": policy}})
            self.assertEqual({hook["failurePolicy"] for hook in hooks}, {policy})
            for made in shown:
                self.assertEqual(len(called(hooks, namespace(inject="enabled"), made)), 1, (policy, made))
            for made in hidden:
                self.assertEqual(called(hooks, namespace(inject="enabled"), made), [], (policy, made))

    def test_every_pod_has_one_revision_and_its_own_label_wins(self):
        injectors = {name: webhooks({"revision": name}) for name in ["default", "canary", "next"]}
        chosen = [None, "canary", "next", "unknown"]
        for of_namespace, of_pod, asks in itertools.product(chosen, chosen, ["namespace", "pod"]):
            place = namespace(inject="enabled" if asks == "namespace" else None, revision=of_namespace)
            made = pod(inject="enabled" if asks == "pod" else None, revision=of_pod)
            serving = [name for name, hooks in injectors.items() for _ in called(hooks, place, made)]
            wanted = of_pod or of_namespace or "default"
            self.assertEqual(serving, [wanted] if wanted in injectors else [], (of_namespace, of_pod, asks))

    def test_the_rest_is_as_agreed(self):
        names = set()
        for hook in webhooks({}) + webhooks({"revision": "canary"}):
            names.add(hook["name"])
            (rule,) = hook["rules"]
            self.assertEqual((rule["operations"], rule["resources"], rule["scope"]), (["CREATE"], ["pods"], "Namespaced"))
            self.assertEqual((hook["sideEffects"], hook["matchPolicy"]), ("None", "Equivalent"))
            self.assertEqual((hook["failurePolicy"], hook["reinvocationPolicy"]), ("Ignore", "IfNeeded"))
            self.assertLessEqual(hook["timeoutSeconds"], 5)
            self.assertEqual(hook["clientConfig"]["service"]["port"], 443)
        self.assertEqual(len(names), 36, "names are unique")


class Policies(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        objects = render.objects(POLICIES)
        cls.policies = {o["metadata"]["name"]: o for o in objects if o["kind"] == "ValidatingAdmissionPolicy"}
        cls.bindings = [o for o in objects if o["kind"] == "ValidatingAdmissionPolicyBinding"]

    def test_every_policy_is_bound(self):
        self.assertEqual({b["spec"]["policyName"] for b in self.bindings}, set(self.policies))

    def says(self, policy, **scope):
        return judge(self.policies[f"tidegate-{policy}.tidegate.dev"], scope)

    def test_who_asks_must_have_a_sidecar(self):
        native = {"initContainers": [{"name": "setup"}, {"name": "tidegate", "restartPolicy": "Always"}]}
        classic = {"containers": [{"name": "web"}, {"name": "tidegate"}]}
        for of_namespace, of_pod in itertools.product([None, "enabled", "disabled"], repeat=2):
            asked = of_pod == "enabled" or (of_namespace == "enabled" and of_pod is None)
            place = namespace(inject=of_namespace)
            for spec, injected in [(None, False), ({"initContainers": [{"name": "setup"}]}, False), (native, True), (classic, True)]:
                said = self.says("sidecar", object=pod(inject=of_pod, spec=spec), namespaceObject=place)
                self.assertEqual(bool(said), asked and not injected, (of_namespace, of_pod, spec))
        seen = pod(annotations={"tidegate.dev/status": '{"ungated":"no port is gated","version":"0.1.0"}'}, inject="enabled")
        self.assertFalse(self.says("sidecar", object=seen, namespaceObject=namespace()))
        bare = {"metadata": {}, "spec": {"containers": [{"name": "web"}]}}
        self.assertTrue(self.says("sidecar", object=bare, namespaceObject=namespace(inject="enabled")))
        self.assertFalse(self.says("sidecar", object=bare, namespaceObject={"metadata": {"name": "shop"}}))
        mirror = pod(annotations={"kubernetes.io/config.mirror": "x"}, inject="enabled")
        self.assertFalse(self.says("sidecar", object=mirror, namespaceObject=namespace()))
        host = pod(inject="enabled", spec={"hostNetwork": True})
        self.assertFalse(self.says("sidecar", object=host, namespaceObject=namespace()))

    def test_mistakes_in_annotations_are_named(self):
        right = {
            "tidegate.dev/limit": "8",
            "tidegate.dev/limit.8080": "none",
            "tidegate.dev/queue-timeout": "1m30s",
            "tidegate.dev/capture": "listen",
            "tidegate.dev/include-inbound-ports": "8080,grpc",
            "tidegate.dev/mode": "observe",
            "tidegate.dev/sidecar-memory-limit": "64Mi",
            "example.com/limit": "many",
        }
        self.assertEqual(self.of_template(right), [])
        self.assertEqual(self.of_template(None), [])
        wrong = {
            "tidegate.dev/limit": ("eight", "an integer from 1 to 1000000"),
            "tidegate.dev/limit.8080": ("0", "an integer from 1"),
            "tidegate.dev/queue-timeout": ("5", "a duration"),
            "tidegate.dev/mode": ("on", "`enforce`, `observe`, `off`"),
            "tidegate.dev/capture": ("0.0.0.0:15801", "`listen`"),
            "tidegate.dev/limits": ("8", "no setting of tidegate is called tidegate.dev/limits"),
            "tidegate.dev/admin": ("0.0.0.0:80", "no setting of tidegate is called"),
            "tidegate.dev/image": ("evil", "no setting of tidegate is called"),
        }
        for key, (value, part) in wrong.items():
            (said,) = self.of_template({**right, key: value})
            self.assertIn(part, said)
            self.assertIn(key, said)
        every = self.of_template({key: value for key, (value, _) in wrong.items()})
        self.assertGreaterEqual(len(every), 5, "one message for each kind of mistake")

    def of_template(self, annotations):
        metadata = {} if annotations is None else {"annotations": annotations}
        template = {"metadata": metadata, "spec": {"containers": []}}
        said = self.says("annotations", object={"spec": {"template": template}})
        of_cron = self.says("cronjob-annotations", object={"spec": {"jobTemplate": {"spec": {"template": template}}}})
        self.assertEqual(said, of_cron)
        return said


if __name__ == "__main__":
    unittest.main()
