"""What Helm makes of the chart is what was meant, and what Kubernetes takes."""

import base64
import difflib
import os
import shutil
import subprocess
import unittest

import helm_python as helm
import kubernetes_validate
import yaml

import render

# The oldest version the chart is for, the first with policies, the newest whose schemas are published.
VERSIONS = ["1.28", "1.30", kubernetes_validate.latest_version()]
SINCE = {"ValidatingAdmissionPolicy": 30, "ValidatingAdmissionPolicyBinding": 30}


def of_kind(objects, kind):
    return [o for o in objects if o["kind"] == kind]


class Rendered(unittest.TestCase):
    def test_helm_has_nothing_to_say(self):
        for name in render.names():
            report = helm.lint(render.CHART, render.values(name), strict=True, namespace=render.NAMESPACE)
            said = [m for m in report["messages"] if "icon is recommended" not in m["error"]]
            self.assertEqual((said, report["errors"]), ([], []), name)

    def test_the_published_schemas_know_every_field(self):
        sources = {name: render.objects(render.values(name)) for name in render.names()}
        written = [*(render.ROOT / "manifests").rglob("*.yaml"), *(render.ROOT / "e2e" / "manifests").glob("*.yaml")]
        for path in sorted(written):
            sources[path.name] = [o for o in yaml.safe_load_all(path.read_text()) if o]
        checked = 0
        for name, objects in sources.items():
            for o in objects:
                if o["kind"] in render.FOREIGN:
                    continue
                for version in VERSIONS:
                    if int(version.split(".")[1]) >= SINCE.get(o["kind"], 0):
                        with self.subTest(source=name, kind=o["kind"], name=o["metadata"]["name"], kubernetes=version):
                            kubernetes_validate.validate(o, version, strict=True)
                            checked += 1
        self.assertGreater(checked, 100)

    def test_values_that_mean_nothing_are_refused(self):
        wrong = [
            {"webhok": {}},
            {"webhook": {"failurePolicy": "Maybe"}},
            {"webhook": {"timeoutSeconds": 31}},
            {"webhook": {"hostNetwork": True}},
            {"operator": {"capture": "both"}},
            {"operator": {"uid": 0}},
            {"operator": {"ceilings": {"limit": {"most": 5}}}},
            {"operator": {"otlp": {"endpoint": "jaeger:4317"}}},
            {"operator": {"namespaces": {"a": {"limitRanges": [{"type": "Containers"}]}}}},
            {"operator": {"namespaces": {"a": {"limitRanges": [{"type": "Pod", "maximum": {"cpu": 1}}]}}}},
            {"certificates": {"source": "letsencrypt"}},
            {"certificates": {"source": "provided"}},
            {"policies": {"requireSidecar": {"enabled": True, "actions": ["Deny", "Warn"]}}},
            {"revision": "Canary"},
            {"image": {"digest": "latest"}},
        ]
        for values in wrong:
            with self.subTest(values=values), self.assertRaises(helm.HelmError):
                render.texts(values)

    def test_the_plain_manifests_are_the_charts(self):
        found, wanted = render.PLAIN.read_text().splitlines(), render.plain().splitlines()
        difference = list(difflib.unified_diff(found, wanted, "manifests/tidegate.yaml", "the chart", lineterm="", n=1))
        self.assertFalse(difference, "the manifests are not what the chart says: make manifests\n" + "\n".join(difference[:40]))

    def test_the_image_is_one_and_can_come_from_a_mirror(self):
        def images(values):
            objects = render.objects(values)
            deployment = of_kind(objects, "Deployment")[0]["spec"]["template"]["spec"]
            return {deployment["containers"][0]["image"], operator(objects)["image"]}

        version = yaml.safe_load((render.CHART / "Chart.yaml").read_text())["appVersion"]
        self.assertEqual(images({}), {f"ghcr.io/tidegate/tidegate:{version}"})
        self.assertEqual(images({"image": {"registry": "r.example/m", "tag": "x"}}), {"r.example/m/tidegate/tidegate:x"})
        digest = "sha256:" + "0" * 64
        self.assertEqual(images({"image": {"registry": "", "repository": "a/b", "digest": digest}}), {f"a/b@{digest}"})

    def test_numbers_and_nothing_reach_the_operators_file_as_text_and_null(self):
        values = {"operator": {"uid": None, "defaults": {"limit": 50}, "ceilings": {"limit": "500"}, "seccompProfile": ""}}
        said = operator(render.objects(values))
        self.assertEqual((said["uid"], said["defaults"], said["ceilings"]), (None, {"limit": "50"}, {"limit": "500"}))
        self.assertIsNone(said["seccompProfile"])

    def test_on_the_hosts_network_the_old_goes_before_the_new_comes(self):
        """Both have the same port, which a host has once."""
        for name in render.names():
            given = render.values(name)
            deployment = of_kind(render.objects(given), "Deployment")[0]["spec"]
            host = given.get("webhook", {}).get("hostNetwork", False)
            self.assertEqual(deployment["template"]["spec"].get("hostNetwork", False), host)
            rolling = {"maxUnavailable": 1, "maxSurge": 0} if host else {"maxUnavailable": 0, "maxSurge": 1}
            self.assertEqual(deployment["strategy"], {"rollingUpdate": rolling}, name)

    def test_every_object_has_the_labels_people_look_for(self):
        wanted = {"name", "instance", "version", "component", "part-of", "managed-by"}
        for o in render.objects(render.values("everything")):
            labels = {k.removeprefix("app.kubernetes.io/") for k in o["metadata"]["labels"]}
            self.assertLessEqual(wanted, labels, o["metadata"]["name"])
            self.assertEqual(o["metadata"]["labels"]["team"], "platform")

    def test_the_injector_may_do_nothing(self):
        """No role, no token, no capability, no way out."""
        for name in render.names():
            objects = render.objects(render.values(name))
            self.assertFalse([o for o in objects if "Role" in o["kind"]])
            pod = of_kind(objects, "Deployment")[0]["spec"]["template"]["spec"]
            account = of_kind(objects, "ServiceAccount")[0]
            self.assertEqual((pod["automountServiceAccountToken"], account["automountServiceAccountToken"]), (False, False))
            self.assertTrue(pod["securityContext"]["runAsNonRoot"])
            (container,) = pod["containers"]
            security = container["securityContext"]
            self.assertTrue(security["readOnlyRootFilesystem"])
            self.assertFalse(security["allowPrivilegeEscalation"])
            self.assertEqual(security["capabilities"], {"drop": ["ALL"]})
        (policy,) = of_kind(render.objects(render.values("everything")), "NetworkPolicy")
        self.assertEqual((policy["spec"]["policyTypes"], policy["spec"]["egress"]), (["Ingress", "Egress"], []))

    def test_what_is_shipped_beside_the_templates_is_in_them(self):
        objects = render.objects(render.values("everything"))
        (rule,) = of_kind(objects, "PrometheusRule")
        written = [yaml.safe_load(path.read_text())["groups"] for path in (render.CHART / "rules").glob("*.yaml")]
        self.assertEqual(len(written), 2)
        self.assertCountEqual(rule["spec"]["groups"], sum(written, []))
        dashboard = next(o for o in of_kind(objects, "ConfigMap") if o["metadata"]["name"].endswith("-dashboard"))
        written = (render.CHART / "dashboards" / "tidegate.json").read_text()
        self.assertEqual(dashboard["data"]["tidegate.json"].strip(), written.strip())
        self.assertEqual(dashboard["metadata"]["namespace"], "monitoring")

    @unittest.skipUnless(shutil.which("promtool") or os.environ.get("CI"), "promtool is not installed")
    def test_prometheus_takes_the_alerts(self):
        rules = sorted((render.CHART / "rules").glob("*.yaml"))
        checked = subprocess.run(["promtool", "check", "rules", *rules], capture_output=True, text=True, check=False)
        self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)

    def test_the_notes_say_what_these_values_make_of_it(self):
        said = {
            "kept by upgrades": {},
            "ignoreDifferences": {"certificates": {"source": "cert-manager"}},
            "no pod that asks for a sidecar starts": {"webhook": {"failurePolicy": "Fail"}},
            "profile profiles/tidegate.json": {"operator": {"seccompProfile": "profiles/tidegate.json"}},
            "tidegate.dev/revision=canary": {"revision": "canary"},
        }
        every = {text: render.notes(values) for text, values in said.items()}
        for text, notes in every.items():
            self.assertIn("helm uninstall tidegate --namespace tidegate-system", notes)
            having = {other for other, notes in every.items() if text in notes}
            # Certificates are made by Helm unless somebody else is named.
            expected = set(said) - {"ignoreDifferences"} if text == "kept by upgrades" else {text}
            self.assertEqual(having, expected)
        self.assertIn("rollout status deployment/tidegate-canary", every["tidegate.dev/revision=canary"])

    def test_a_provided_certificate_is_named_and_trusted(self):
        values = render.values("openshift")
        objects = render.objects(values)
        self.assertFalse(of_kind(objects, "Secret"))
        pod = of_kind(objects, "Deployment")[0]["spec"]["template"]["spec"]
        self.assertEqual(pod["volumes"][0]["secret"]["secretName"], "tidegate-serving")
        self.assertNotIn("runAsUser", pod["securityContext"])
        bundle = values["certificates"]["provided"]["caBundle"]
        for hook in of_kind(objects, "MutatingWebhookConfiguration")[0]["webhooks"]:
            self.assertEqual(base64.b64decode(hook["clientConfig"]["caBundle"]).decode(), bundle)


def operator(objects):
    """The operator's file."""
    return next(yaml.safe_load(o["data"]["operator.yaml"]) for o in objects if "operator.yaml" in o.get("data", {}))


if __name__ == "__main__":
    unittest.main()
