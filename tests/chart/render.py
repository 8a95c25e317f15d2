"""The chart as objects, by Helm's own library.

    render.py NAME       the objects of tests/chart/values/NAME.yaml, as JSON, for tests/chart.rs
    render.py --write    writes manifests/tidegate.yaml anew (`make manifests`)
"""

import json
import re
import sys
from pathlib import Path

import helm_python as helm
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "tidegate"
VALUES = Path(__file__).parent / "values"
PLAIN = ROOT / "manifests" / "tidegate.yaml"
# Of others, whose schemas are not Kubernetes' to publish.
FOREIGN = {"Certificate", "Issuer", "PodMonitor", "PrometheusRule", "ScaledObject"}
NAME = "tidegate"
NAMESPACE = "tidegate-system"

# As Helm creates them: what others need comes first, the webhook's configuration last.
ORDER = [
    "Namespace NetworkPolicy PodDisruptionBudget ServiceAccount Secret ConfigMap Issuer Certificate Service Deployment",
    "PodMonitor PrometheusRule ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding MutatingWebhookConfiguration",
]
KINDS = " ".join(ORDER).split()

# Without Helm nobody makes a certificate, and nobody tells the version of the cluster.
PLAIN_VALUES = {"certificates": {"source": "cert-manager"}, "operator": {"kubernetes": "1.33"}}
PLAIN_HEADER = """\
# The chart with its default values, for those who do without Helm. Written by `make manifests`; change the chart instead.
#
#   kubectl apply -f manifests/tidegate.yaml      # needs cert-manager, which makes the webhook's certificate
#
# On a cluster older than 1.33, first write the version of its oldest node into the line `kubernetes: "1.33"` below.
#
# To take it out: the webhook's configuration first, then the rest.
#
#   kubectl delete mutatingwebhookconfiguration tidegate && kubectl delete -f manifests/tidegate.yaml
apiVersion: v1
kind: Namespace
metadata:
  name: tidegate-system
  labels:
    app.kubernetes.io/name: tidegate
    pod-security.kubernetes.io/enforce: restricted
"""


def values(name):
    """The values of a file in tests/chart/values."""
    return yaml.safe_load((VALUES / f"{name}.yaml").read_text()) or {}


def names():
    """All files in tests/chart/values."""
    return sorted(path.stem for path in VALUES.glob("*.yaml"))


def files(given):
    """What becomes of each template with these values."""
    with helm.Chart.load(CHART) as chart:
        return chart.render(given, name=NAME, namespace=NAMESPACE)


def notes(given):
    """What Helm says when it has installed the chart with these values."""
    return files(given)["tidegate/templates/NOTES.txt"]


def texts(given):
    """The documents of the chart with these values, as they were written, in the order they are created in."""
    documents = []
    for path, text in sorted(files(given).items()):
        if path.endswith(".yaml"):
            documents += [part.strip("\n") + "\n" for part in re.split(r"^---$", text, flags=re.M) if yaml.safe_load(part)]
    return sorted(documents, key=lambda text: KINDS.index(yaml.safe_load(text)["kind"]))


def objects(given):
    """The objects of the chart with these values."""
    return [yaml.safe_load(text) for text in texts(given)]


def plain():
    """What manifests/tidegate.yaml should say."""
    return "---\n".join([PLAIN_HEADER, *texts(PLAIN_VALUES)])


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PLAIN.write_text(plain())
    else:
        json.dump(objects(values(sys.argv[1])), sys.stdout)
