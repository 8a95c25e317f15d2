"""Shows that `make check` sees what drifts: makes each edit below, runs the test that has to fail, puts the file back.

    tests/chart/.venv/bin/python tests/chart/drift.py

Not part of `make check`, as it edits files of the working tree; each has to be as it was committed.
"""

import os
import subprocess
import sys

import render

RENDERED = [sys.executable, "-m", "unittest", "test_render.Rendered.test_the_plain_manifests_are_the_charts"]
SCHEMAS = [sys.executable, "-m", "unittest", "test_render.Rendered.test_the_published_schemas_know_every_field"]


def rust(test, name):
    return [os.environ.get("CARGO", "cargo"), "test", "--locked", "--quiet", "--test", test, "--", "--exact", name]


METRICS = rust("chart", "every_metric_that_is_named_is_one_of_ours")

# What drifts, where, what becomes of what, and whose test sees it.
EDITS = [
    ("a template", "charts/tidegate/templates/service.yaml", "name: https", "name: tls", RENDERED),
    ("a value", "charts/tidegate/values.yaml", "timeoutSeconds: ", "timeoutSeconds: 1", RENDERED),
    ("a rendered manifest", "manifests/tidegate.yaml", "kind: Service\n", "kind: Service # by hand\n", RENDERED),
    ("a field of an example", "manifests/examples/shop.yaml", "replicas: 2", "replicaCount: 2", SCHEMAS),
    ("a metric of the dashboard", "charts/tidegate/dashboards/tidegate.json", "tidegate_admission_limit", "tidegate_limit_now", METRICS),
    ("a metric of an alert", "charts/tidegate/rules/injector.yaml", "_webhook_outdated_", "_webhook_stale_", METRICS),
    ("the settings table", "README.md", "| `queue-length` |", "| `queue-size` |", rust("documents", "the_readme_has_the_table_of_settings")),
    ("the annotations table", "README.md", "| `tidegate.dev/capture` |", "| `tidegate.dev/captured` |", rust("documents", "the_readme_has_the_table_of_annotations")),
    (
        "the policy's list of settings",
        "charts/tidegate/files/annotations.json",
        "queue-length",
        "queue-size",
        rust("chart", "policy::the_policy_knows_the_settings"),
    ),
]


def fails(command):
    directory = render.ROOT / "tests" / "chart" if command[0] == sys.executable else render.ROOT
    ran = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    said = ran.stdout + ran.stderr
    ran_one = "Ran 1 test" in said or "running 1 test" in said
    return ran_one and ran.returncode != 0


def main():
    unseen = 0
    for what, file, old, new, command in EDITS:
        path = render.ROOT / file
        if subprocess.run(["git", "diff", "--quiet", "HEAD", "--", file], cwd=render.ROOT, check=False).returncode:
            sys.exit(f"{file} has changes that are not committed")
        text = path.read_text()
        if old not in text:
            sys.exit(f"{file} has no {old!r} any more")
        try:
            path.write_text(text.replace(old, new))
            seen = fails(command)
        finally:
            path.write_text(text)
        unseen += not seen
        print(f"{'seen' if seen else 'NOT SEEN'}: {what} ({file}), by {command[-1]}", flush=True)
    sys.exit(unseen)


if __name__ == "__main__":
    main()
