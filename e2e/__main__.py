"""Runs the sections, in order, and says what was asserted, skipped, and failed.

A section is a module of e2e/sections with a function `run(cluster)`, a text `WHAT`, and, if it cannot run everywhere, a
function `lacking(cluster)` that names the means that is missing. Each gets the chart freshly set to its defaults.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
from types import ModuleType

from e2e.cluster import Cluster
from e2e.steps import Steps

# The order matters: the later ones break more.
SECTIONS = [
    "injection",
    "limit",
    "live",
    "restricted",
    "dualstack",
    "rolling",
    "jobs",
    "liveness",
    "seccomp",
    "traces",
    "autoscaling",
    "outage",
    "uninstall",
]


def main(wanted: list[str]) -> int:
    unknown = set(wanted) - set(SECTIONS)
    if unknown:
        print(f"e2e: no section is called {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}", file=sys.stderr)
        return 2
    cluster = Cluster(os.environ["IMAGE"], set(os.environ.get("E2E_MEANS", "").split()))
    steps = Steps()
    cluster.steps = steps
    if occupied := cluster.occupied():
        print(f"e2e: {occupied}", file=sys.stderr)
        return 2
    results: dict[str, str] = {}
    print(f"Kubernetes {cluster.version()}, {cluster.image}")
    for name in SECTIONS:
        if wanted and name not in wanted:
            continue
        section = importlib.import_module(f"e2e.sections.{name}")
        results[name] = one(cluster, steps, name, section)
    cluster.clear()
    print("\n" + "\n".join(f"{name:12} {result}" for name, result in results.items()))
    return 1 if any(result.startswith("FAILED") for result in results.values()) else 0


def one(cluster: Cluster, steps: Steps, name: str, section: ModuleType) -> str:
    print(f"\n== {name}: {section.WHAT}")
    started = time.monotonic()
    try:
        cluster.clear()
        cluster.install({})
        lacking = section.lacking(cluster) if hasattr(section, "lacking") else None
        if lacking:
            print(f"SKIPPED: {lacking}")
            return f"skipped: {lacking}"
        before = steps.count
        section.run(cluster)
        return f"passed, {steps.count - before} steps, {time.monotonic() - started:.0f} s"
    except Exception as error:  # the next sections run all the same
        traceback.print_exc()
        cluster.explain()
        return f"FAILED: {error}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
