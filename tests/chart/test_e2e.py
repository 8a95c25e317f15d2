"""e2e beside its sections (test_sections.py): types hold, and what it names exists."""

import importlib
import re
import subprocess
import sys
import unittest
from pathlib import Path

import yaml

import render

E2E = render.ROOT / "e2e"
TOOLS = Path(sys.executable).parent
sys.path.insert(0, str(render.ROOT))


def run(*command):
    done = subprocess.run(command, cwd=render.ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


class WithoutACluster(unittest.TestCase):
    def test_types_hold(self):
        code, said = run(TOOLS / "mypy", "--config-file", "e2e/mypy.ini", "--cache-dir", "tests/chart/.venv/mypy", "e2e")
        self.assertEqual(code, 0, said)

    def test_the_client_has_what_its_types_say(self):
        # The types are not the client's own: mypy may know fields that nobody has.
        models = importlib.import_module("kubernetes.client.models")
        had = {field for name in dir(models) for field in getattr(getattr(models, name), "model_fields", {})}
        stubs = Path(models.__file__).parents[3] / "kubernetes-stubs" / "client" / "models"
        typed = {field for stub in stubs.glob("*.pyi") for field in re.findall(r"^    (\w+):", stub.read_text(), re.M)}
        used = {name for path in E2E.rglob("*.py") for name in re.findall(r"\.(\w+)", path.read_text())}
        self.assertGreater(len(used & typed & had), 20)
        self.assertEqual(used & (typed - had), set())

    def test_shell_scripts_are_sound(self):
        scripts = ["e2e/run", "tests/chart/setup"]
        for script in scripts:
            self.assertEqual(run("bash", "-n", script), (0, ""), script)
        # SC2329: functions that only a trap calls.
        self.assertEqual(run(TOOLS / "shellcheck", "--exclude=SC2329", *scripts), (0, ""))

    def test_every_section_is_run_and_described(self):
        main = importlib.import_module("e2e.__main__")
        found = {path.stem for path in (E2E / "sections").glob("*.py")} - {"__init__"}
        self.assertEqual(set(main.SECTIONS), found)
        described = re.findall(r"^\| `(\w+)` \|", (E2E / "README.md").read_text(), re.M)
        self.assertEqual(sorted(described), sorted(found))
        for name in found:
            section = importlib.import_module(f"e2e.sections.{name}")
            self.assertTrue(callable(section.run) and section.WHAT, name)

    def test_settings_and_files_it_names_exist(self):
        checks = render.json.loads((render.CHART / "files" / "annotations.json").read_text())
        known = re.compile(checks["known"])
        labels = {"tidegate.dev/inject", "tidegate.dev/revision", "tidegate.dev/e2e"}
        for path in [*E2E.rglob("*.py"), *(render.ROOT / "manifests").rglob("*.yaml")]:
            for key in set(re.findall(r"\btidegate\.dev/[a-z0-9.-]+[a-z0-9]", path.read_text())) - labels:
                self.assertRegex(key, known, path)
        for path in E2E.rglob("*.py"):
            for example in re.findall(r'"(\w+\.yaml)"', path.read_text()):
                places = [E2E / "manifests", render.ROOT / "manifests" / "examples", render.ROOT / "manifests"]
                self.assertTrue(any((place / example).exists() for place in places), f"{path}: {example}")

    def test_what_runs_inside_needs_no_more_than_python(self):
        (client,) = yaml.safe_load_all((E2E / "manifests" / "client.yaml").read_text())
        self.assertIn("python:", client["spec"]["containers"][0]["image"])
        imports = set(re.findall(r"^(?:import|from) (\w+)", (E2E / "load.py").read_text(), re.M))
        self.assertLessEqual(imports, set(sys.stdlib_module_names))

    def test_the_workflow_and_kinds_file_are_read(self):
        workflow = yaml.safe_load((render.ROOT / ".github" / "workflows" / "e2e.yaml").read_text())
        steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
        self.assertTrue(any("make e2e" in step for step in steps))
        kind = yaml.safe_load((E2E / "kind.yaml").read_text().replace("ROOT", str(render.ROOT)))
        for node in kind["nodes"]:
            (mount,) = node["extraMounts"]
            self.assertTrue((Path(mount["hostPath"]) / "tidegate.json").exists())


class Load(unittest.TestCase):
    """The load of e2e counts what it should: against a server that refuses, loses and answers."""

    def test_books(self):
        import http.server
        import json
        import threading

        class Server(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            count = 0

            def log_message(self, *_):
                pass

            def do_GET(self):
                Server.count += 1
                if Server.count % 4 == 0:
                    self.close_connection = True
                    return
                refused = Server.count % 4 == 1
                body = b"" if refused else b"host\n"
                self.send_response(503 if refused else 200)
                self.send_header("content-length", str(len(body)))
                if refused:
                    self.send_header("retry-after", "1")
                    self.send_header("proxy-status", "tidegate; error=connection_limit_reached")
                self.send_header("x-inside", "3")
                self.end_headers()
                self.wfile.write(body)

        with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            arguments = {"url": f"http://127.0.0.1:{server.server_port}/a?b", "workers": 1, "requests": 40}
            code, said = run(sys.executable, "e2e/load.py", json.dumps(arguments))
            server.shutdown()
        self.assertEqual(code, 0, said)
        books = json.loads(said)
        self.assertEqual((books["statuses"], books["said_why"], books["inside"]), ({"503": 10, "200": 20}, 10, 3))
        self.assertEqual(sum(books["lost"].values()), 10, books)


if __name__ == "__main__":
    unittest.main()
