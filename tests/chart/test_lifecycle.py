"""Installed, upgraded and removed by Helm's own library, against an API server of our own (apiserver.py)."""

import base64
import ssl
import subprocess
import tempfile
import unittest
from pathlib import Path

import helm_python as helm

import render
from apiserver import ApiServer


class Lifecycle(unittest.TestCase):
    def setUp(self):
        self.api = self.enterContext(ApiServer())
        self.config = helm.Config(
            kubeconfig_content=self.api.kubeconfig(), namespace=render.NAMESPACE, storage_driver="memory"
        )
        self.addCleanup(self.config.close)
        self.chart = helm.Chart.load(render.CHART)
        self.addCleanup(self.chart.close)
        self.release = self.config.install(self.chart, "tidegate", {}, namespace=render.NAMESPACE, timeout=30)

    def upgrade(self, values):
        self.api.log.clear()
        self.config.upgrade(self.chart, "tidegate", values, namespace=render.NAMESPACE, timeout=30)

    def certificate(self):
        data = self.api.find("secrets", "tidegate-tls")["data"]
        return {name: base64.b64decode(value).decode() for name, value in data.items()}

    def bundles(self):
        hooks = self.api.find("mutatingwebhookconfigurations", "tidegate")["webhooks"]
        return {base64.b64decode(hook["clientConfig"]["caBundle"]).decode() for hook in hooks}

    def test_the_certificate_is_made_once(self):
        first = self.certificate()
        self.assertEqual(self.bundles(), {first["ca.crt"]})
        self.upgrade({"operator": {"capture": "listen"}, "webhook": {"replicas": 3}})
        self.assertEqual(self.api.find("deployments", "tidegate")["spec"]["replicas"], 3)
        self.assertIn("capture: listen", self.api.find("configmaps", "tidegate")["data"]["operator.yaml"])
        self.assertEqual(self.certificate(), first)
        self.assertEqual(self.bundles(), {first["ca.crt"]})

    def test_a_rotation_trusts_both_until_the_next(self):
        first = self.certificate()
        self.upgrade({"certificates": {"generated": {"rotation": 2}}})
        second = self.certificate()
        self.assertNotEqual(second["tls.crt"], first["tls.crt"])
        # The pods show the first for as long as the kubelet takes to bring the second.
        self.assertEqual(self.bundles(), {second["ca.crt"] + first["ca.crt"]})
        for shown in (first, second):
            verify(shown["tls.crt"], *self.bundles(), f"tidegate.{render.NAMESPACE}.svc")
        self.upgrade({"certificates": {"generated": {"rotation": 2}}})
        self.assertEqual(self.certificate(), second)
        self.assertEqual(self.bundles(), {second["ca.crt"] + first["ca.crt"]})

    def test_half_a_secret_is_made_anew(self):
        del self.api.find("secrets", "tidegate-tls")["data"]["ca.crt"]
        self.upgrade({})
        self.assertEqual(self.bundles(), {self.certificate()["ca.crt"]})

    def test_the_version_of_the_cluster_is_asked(self):
        self.assertIn('kubernetes: "1.33"', self.api.find("configmaps", "tidegate")["data"]["operator.yaml"])

    def test_the_webhook_comes_last_and_goes_first(self):
        self.assertEqual(self.api.log[-1], ("create", "mutatingwebhookconfigurations", "tidegate"))
        self.api.log.clear()
        self.config.uninstall("tidegate", timeout=30)
        self.assertEqual(self.api.log[0], ("delete", "mutatingwebhookconfigurations", "tidegate"))
        self.assertEqual(self.api.objects, {}, "something is left")

    def test_the_notes_tell_how_to_go_on(self):
        notes = self.release["notes"]
        for part in ["tidegate.dev/inject=enabled", "/tidegate status", "tidegate.dev/limit=8", "helm uninstall tidegate"]:
            self.assertIn(part, notes)


def verify(certificate, bundle, host):
    """Whether a client that trusts the bundle takes the certificate for this host, as openssl sees it."""
    ssl.create_default_context(cadata=bundle)  # it can be read as what an API server reads
    with tempfile.TemporaryDirectory() as directory:
        leaf, trusted = Path(directory, "leaf"), Path(directory, "trusted")
        leaf.write_text(certificate)
        trusted.write_text(bundle)
        command = ["openssl", "verify", "-purpose", "sslserver", "-verify_hostname", host, "-CAfile", trusted, leaf]
        subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    unittest.main()
