"""The sections of e2e, run to their ends in a world where what they wait for happens at once (world.py), and in worlds in
which a promise is broken, where they have to fail.
"""

import contextlib
import copy
import importlib
import io
import itertools
import os
import re
import sys
import tempfile
import types
import unittest
from pathlib import Path
from unittest import mock

import helm_python as helm

import render
from world import World

sys.path.insert(0, str(render.ROOT))
steps = importlib.import_module("e2e.steps")
cluster = importlib.import_module("e2e.cluster")
main = importlib.import_module("e2e.__main__")
WORKFLOW = (render.ROOT / ".github" / "workflows" / "e2e.yaml").read_text()
OLDEST = min(re.findall(r"kindest/node:v([0-9.]+)", WORKFLOW))
CONFIG = helm.Config
# Of each fault of the world (world.py), the sections that have to fail.
NOTICED = {
    "injector": main.SECTIONS,
    "limit": ["limit", "live", "dualstack", "traces", "autoscaling"],
    "lost": ["limit", "restricted", "dualstack", "rolling", "liveness", "seccomp", "outage", "uninstall"],
    "restart": ["live"],
    "deaf": ["live", "dualstack", "outage"],
    "silent": ["outage"],
    "left": ["uninstall"],
}


class Sections(unittest.TestCase):
    def setUp(self):
        # What comes comes at once: whoever waits looks a few times, and then in vain.
        clock = types.SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
        clock.sleep = lambda seconds: setattr(clock, "now", clock.now + 30 * seconds)
        self.enterContext(mock.patch.object(steps, "time", clock))
        seconds = itertools.count()  # no two roll-outs begin in the same one
        dates = types.SimpleNamespace(gmtime=lambda: None, strftime=lambda *_: str(next(seconds)))
        self.enterContext(mock.patch.object(cluster, "time", dates))
        self.enterContext(mock.patch.object(tempfile, "tempdir", self.enterContext(tempfile.TemporaryDirectory())))
        rolling = importlib.import_module("e2e.sections.rolling")
        self.enterContext(mock.patch.object(rolling, "threading", types.SimpleNamespace(Thread=Later)))

    def world(self, faults=()):
        world = self.enterContext(World(f"v{OLDEST}", faults))
        file = Path(tempfile.gettempdir(), f"kubeconfig-{world.server.server_port}")
        file.write_text(world.kubeconfig())
        environment = {"KUBECONFIG": str(file), "IMAGE": "registry.example/tidegate:e2e", "E2E_MEANS": "seccomp prometheus"}
        self.enterContext(mock.patch.dict(os.environ, environment))
        # Both read KUBECONFIG when they are loaded. Helm would keep its books in Secrets, and write those in protobuf.
        content = world.kubeconfig()
        self.helm = CONFIG(kubeconfig_content=content, namespace=render.NAMESPACE, storage_driver="memory")
        self.addCleanup(self.helm.close)
        self.enterContext(mock.patch.object(helm, "Config", lambda **_: self.helm))
        self.enterContext(mock.patch("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file)))
        self.enterContext(mock.patch.object(cluster.Cluster, "exec", lambda _, *how: world.exec(*how)))
        return world

    def play(self, sections=()):
        """The exit code of `python -m e2e`, and what it wrote."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = main.main(list(sections))
        return code, said.getvalue()

    def test_they_end_well_and_every_object_is_as_published(self):
        world = self.world()
        code, said = self.play()
        self.assertEqual(code, 0, said)
        self.assertEqual(len(re.findall(r" passed, [1-9][0-9]* steps", said)), len(main.SECTIONS), said)
        self.assertGreater(world.checked, 100)
        self.assertEqual({key[2] for key in world.objects if key[0] == "namespaces"}, {render.NAMESPACE})

    def test_what_is_broken_is_noticed(self):
        for fault, noticed in NOTICED.items():
            with self.subTest(fault=fault):
                self.world([fault])
                code, said = self.play(noticed)
                self.assertEqual(code, 1, said)
                self.assertEqual(re.findall(r"^(\w+) +FAILED", said, re.M), noticed, said)

    def test_what_the_cluster_lacks_is_skipped_by_name(self):
        self.world(["docker.io"])
        code, said = self.play(["traces"])
        self.assertEqual(code, 0, said)
        self.assertRegex(said, r"(?m)^traces +skipped: the image docker.io/jaegertracing/jaeger:")

    def test_what_is_somebodys_stays(self):
        world = self.world()
        labels = {"kubernetes.io/metadata.name": "observability"}
        theirs = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "observability", "labels": labels}}
        world.objects["namespaces", "", "observability"] = theirs
        self.assertEqual(self.play(["traces"])[0], 0)
        self.assertEqual(world.find("namespaces", "observability"), theirs)
        # The release is of e2e's own making: it is taken up again. Then somebody has his own.
        self.assertEqual(self.play(["jobs"])[0], 0)
        self.helm.uninstall("tidegate", timeout=30)
        values = {"webhook": {"replicas": 5}}
        self.helm.install(str(render.CHART), "tidegate", values, namespace=render.NAMESPACE, timeout=30)
        objects = copy.deepcopy(world.objects)
        code, said = self.play(["uninstall"])
        self.assertEqual((code, world.objects), (2, objects))
        self.assertIn("is somebody else's", said)


class Later:
    """A thread that has the whole of its load in `join`: nothing depends on who comes first."""

    def __init__(self, target):
        self.join = target

    def start(self):
        pass

    def is_alive(self):
        return True


if __name__ == "__main__":
    unittest.main()
