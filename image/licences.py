"""Writes down whose work is in the binary, and under which terms: every crate that is linked in for a target, with the
licence it names and the texts it brings.

    python3 image/licences.py --target x86_64-unknown-linux-musl >LICENCES

Needs cargo, and the crates it has fetched for a build. Ends with 1 if a crate names no licence.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys

NAMES = re.compile(r"(?i)^(licen[cs]e|copying|notice|unlicense)([-_.].*)?$")

STANDARD_LIBRARY = """\
Rust's standard library     MIT OR Apache-2.0     https://www.rust-lang.org/policies/licenses
musl (the C library)        MIT                   https://git.musl-libc.org/cgit/musl/tree/COPYRIGHT
"""


def linked(metadata):
    """The packages that are linked into the binary: no tools of the build, no tests."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    packages = {package["id"]: package for package in metadata["packages"]}

    def is_macro(package):
        return any("proc-macro" in target["kind"] for target in package["targets"])

    seen, waiting = set(), [metadata["resolve"]["root"]]
    while waiting:
        package = waiting.pop()
        if package in seen or is_macro(packages[package]):
            continue
        seen.add(package)
        for dependency in nodes[package]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                waiting.append(dependency["pkg"])
    return sorted((packages[package] for package in seen), key=lambda p: (p["name"], p["version"]))


def texts(package):
    """The licence texts a package brings, also those of the C sources in it."""
    root = pathlib.Path(package["manifest_path"]).parent
    found = [path for path in root.rglob("*") if NAMES.match(path.name) and path.is_file()]
    for path in sorted(found):
        if "target" not in path.relative_to(root).parts[:1]:
            yield path.read_text(encoding="utf-8", errors="replace").strip()


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--target", help="the platform of the binary")
    target = arguments.parse_args().target
    command = ["cargo", "metadata", "--locked", "--format-version=1"]
    if target:
        command.append(f"--filter-platform={target}")
    metadata = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    packages = linked(metadata)

    nameless = [p["name"] for p in packages if not p["license"] and not p["license_file"]]
    if nameless:
        sys.exit(f"no licence is named by {', '.join(nameless)}: look at each before it is shipped")
    print("What is in this binary, and under which terms. The texts follow; each is printed once.\n")
    print(STANDARD_LIBRARY)
    owners = {}
    for package in packages:
        name = f"{package['name']} {package['version']}"
        print(f"{name:40} {package['license'] or package['license_file']:45} {package['repository'] or ''}")
        for text in texts(package):
            owners.setdefault(text, []).append(name)
    for text, names in owners.items():
        print(f"\n{'-' * 100}\n{', '.join(dict.fromkeys(names))}\n\n{text}")


if __name__ == "__main__":
    main()
