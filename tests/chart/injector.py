"""Starts the injector as the chart's Deployment says, with its certificate and its operator's file, and calls it as an API
server would: every path of the webhook's configuration, trusting caBundle and nothing else, by the Service's name.

    injector.py TIDEGATE       exits with 0 if every review was answered with a patch
"""

import base64
import http.client
import json
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import render


def of_kind(objects, kind):
    return next(o for o in objects if o["kind"] == kind)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def mounted(directory, objects):
    """The Deployment's volumes, as files; its arguments with those in place of the mounts, and ports that are free."""
    pod = of_kind(objects, "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    arguments = [a.replace("[::]:10250", f"127.0.0.1:{free_port()}").replace("[::]:15822", "127.0.0.1:0") for a in container["args"]]
    for mount in container["volumeMounts"]:
        volume = next(v for v in pod["volumes"] if v["name"] == mount["name"])
        place = Path(directory, mount["name"])
        place.mkdir()
        if "secret" in volume:
            data = {k: base64.b64decode(v) for k, v in of_kind(objects, "Secret")["data"].items()}
            data = {item["path"]: data[item["key"]] for item in volume["secret"]["items"]}
        else:
            data = {k: v.encode() for k, v in of_kind(objects, "ConfigMap")["data"].items()}
        for name, content in data.items():
            (place / name).write_bytes(content)
        arguments = [a.replace(mount["mountPath"], str(place)) for a in arguments]
    return arguments


def call(port, hook, method="POST", path=None, body=None):
    """As an API server: the connection goes to the Service, the certificate has to be for its name."""
    client = hook["clientConfig"]
    trust = ssl.create_default_context(cadata=base64.b64decode(client["caBundle"]).decode())
    name = f"{client['service']['name']}.{client['service']['namespace']}.svc"
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain, trust.wrap_socket(plain, server_hostname=name) as tls:
        connection = http.client.HTTPConnection(name)
        connection.sock = tls
        connection.request(method, path or client["service"]["path"], body, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()


def review():
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "annotations": {"tidegate.dev/limit": "8"}},
        "spec": {"containers": [{"name": "web", "image": "web", "ports": [{"name": "http", "containerPort": 8080}]}]},
    }
    request = {"uid": "1", "operation": "CREATE", "namespace": "shop", "name": "web", "object": pod}
    request["kind"] = {"group": "", "version": "v1", "kind": "Pod"}
    request["resource"] = {"group": "", "version": "v1", "resource": "pods"}
    return json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})


def ready(port, hook, injector):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and injector.poll() is None:
        try:
            if call(port, hook, "GET", "/readyz")[0] == 200:
                return
        except OSError:
            time.sleep(0.05)
    sys.exit("the injector is not ready")


def main(tidegate):
    objects = render.objects({"operator": {"kubernetes": "1.33"}})
    hooks = of_kind(objects, "MutatingWebhookConfiguration")["webhooks"]
    with tempfile.TemporaryDirectory() as directory:
        arguments = mounted(directory, objects)
        address = next(a for a in arguments if a.startswith("--address="))
        injector = subprocess.Popen([tidegate, *arguments], stderr=sys.stderr)
        try:
            port = int(address.rsplit(":", 1)[1])
            ready(port, hooks[0], injector)
            for hook in hooks:
                path = hook["clientConfig"]["service"]["path"]
                status, answer = call(port, hook, body=review())
                response = json.loads(answer)["response"] if status == 200 else {}
                if not (response.get("allowed") and response.get("patch")):
                    sys.exit(f"{path}: {status} {answer!r}")
                patch = base64.b64decode(response["patch"]).decode()
                redirects = "NET_ADMIN" in patch
                if redirects != (path == "/inject/privileged"):
                    sys.exit(f"{path}: NET_ADMIN is {'' if redirects else 'not '}in {patch}")
        finally:
            injector.kill()
            injector.wait()
    print(f"{len(hooks)} reviews")


if __name__ == "__main__":
    main(sys.argv[1])
