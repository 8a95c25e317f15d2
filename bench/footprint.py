"""What a gateway is before it carries anything: the size of its program, how soon it is ready, its memory when idle; and
what a review costs the webhook.

    python3 bench/footprint.py --tidegate target/release/tidegate [--starts 20] [--reviews 2000]

The image is that program and a list of licences, so the program of `make image` gives the image's size: unpacked, and
compressed as registries keep it. Reviews a second are those of one core busy with nothing else: CPU time, since one client in
Python asks less than the webhook answers. It needs openssl, for the webhook's certificate. Nothing here is a bar.
"""

import argparse
import http.client
import json
import os
import shutil
import ssl
import statistics
import subprocess
import tempfile
import time
import zlib
from contextlib import suppress
from pathlib import Path

import procs
import run

READY_WITHIN = 60  # seconds
SETTLES = 2  # seconds after which an idle process has given back what starting took
WARM_UP = 200  # reviews
ENGINES = ("epoll", "uring")


def main():
    asked = arguments()
    run.need("openssl", "Debian package openssl")
    net, held = run.own_net()
    try:
        with tempfile.TemporaryDirectory(prefix="tidegate-footprint-") as directory:
            directory = Path(directory)
            plain, packed = size(asked.tidegate)
            print(f"program: {mib(plain)}, compressed {mib(packed)}", flush=True)
            for engine in ENGINES:
                try:
                    times, rss, pss = starts(asked.tidegate, directory, net, engine, asked.starts)
                except procs.Unmeasured as why:
                    print(f"{engine}: {why}", flush=True)
                    continue
                print(f"{engine}: ready after {spread([1000 * t for t in times], 'ms')}")
                print(f"{engine}: idle Rss {rss / 1024:.1f} MiB, Pss {pss / 1024:.1f} MiB", flush=True)
            cpu = reviews(asked.tidegate, directory, net, asked.reviews)
            print(f"webhook: {1e6 * cpu:.0f} µs of CPU a review, {1 / cpu:.0f} reviews a second and core")
    finally:
        procs.stop_all()
        held.close()


def size(program):
    """(bytes, bytes compressed) of a file, as gzip does it by default."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    plain = packed = 0
    with open(program, "rb") as file:
        while block := file.read(1 << 20):
            plain += len(block)
            packed += len(packer.compress(block))
    return plain, packed + len(packer.flush())


def starts(tidegate, directory, net, engine, times):
    """Seconds from fork to the first 200 of /readyz, each time; and (Rss, Pss) in KiB of the last one, idle."""
    took, idle = [], (0, 0)
    for number in range(times):
        front, probe = run.free(f"{net}.10.1", 0), run.free(f"{net}.10.1", 1)
        argv = [tidegate, "run", f"--engine={engine}", "--limit=100", f"--listen={at(front)}={net}.20.1:1", f"--probe={at(probe)}"]
        argv += ["--admin=127.0.0.1:0", "--metrics=127.0.0.1:0", f"--control={directory}/control.sock"]
        began = time.monotonic()
        group = procs.Group("tidegate", argv, os.sched_getaffinity(0), directory / "log")
        try:
            took.append(until_ready(probe, group.alive) - began)
            if number == times - 1:
                time.sleep(SETTLES)
                idle = group.memory_kib()
        except procs.Unmeasured as why:
            raise procs.Unmeasured(f"{why}: {group.last_words()}") from None
        finally:
            group.stop()
    return took, *idle


def until_ready(probe, alive):
    """When /readyz said 200 for the first time."""
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline and alive():
        with suppress(OSError, http.client.HTTPException):
            asked = http.client.HTTPConnection(*probe, timeout=1)
            try:
                asked.request("GET", "/readyz")
                if asked.getresponse().status == 200:
                    return time.monotonic()
            finally:
                asked.close()
        time.sleep(0.001)
    raise procs.Unmeasured("did not become ready")


def reviews(tidegate, directory, net, count):
    """CPU seconds of the webhook for one review of a pod that asks for a gateway, over one connection that is kept."""
    certificate(directory)
    address = run.free(f"{net}.10.1", 2)
    argv = [tidegate, "webhook", f"--address={at(address)}", "--metrics=127.0.0.1:0", "--drain-delay=0s"]
    argv += [f"--tls-cert={directory}/tls.crt", f"--tls-key={directory}/tls.key"]
    group = procs.Group("webhook", argv, os.sched_getaffinity(0), directory / "webhook.log")
    try:
        client = connect(address, directory / "tls.crt", group)
        for number in range(WARM_UP):
            patched(client, number)
        before = group.cpu()
        for number in range(count):
            patched(client, number)
        return group.cpu().seconds_since(before) / count
    finally:
        group.stop()


def certificate(directory):
    """A key, and a certificate that it has signed itself."""
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    argv += ["-subj", "/CN=webhook", "-addext", "subjectAltName=DNS:webhook", "-keyout", "tls.key", "-out", "tls.crt"]
    subprocess.run(argv, cwd=directory, check=True, stderr=subprocess.DEVNULL)


def connect(address, authority, group):
    """A connection of HTTP/1.1 over TLS, once the webhook listens."""
    trust = ssl.create_default_context(cafile=authority)
    trust.check_hostname = False  # it is called by its address
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline and group.alive():
        client = http.client.HTTPSConnection(*address, context=trust, timeout=30)
        with suppress(ConnectionRefusedError):
            client.connect()
            return client
        time.sleep(0.01)
    raise SystemExit(f"bench: the webhook did not begin to listen: {group.last_words()}")


def patched(client, number):
    """One review, which must come back with a patch."""
    client.request("POST", "/inject/baseline?timeout=5s", json.dumps(review(number)), {"Content-Type": "application/json"})
    answer = client.getresponse()
    said = answer.read()
    if answer.status != 200 or not json.loads(said).get("response", {}).get("patch"):
        raise SystemExit(f"bench: not the answer that was expected: {answer.status} {said[:400]!r}")


def review(number):
    """As an API server asks, about a pod of one container."""
    pod = {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"generateName": "web-", "labels": {"tidegate.dev/inject": "enabled"}, "annotations": {"tidegate.dev/limit": "5"}},
        "spec": {"containers": [{
            "name": "web", "image": "registry.example/web:1", "ports": [{"name": "http", "containerPort": 8080}],
            "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}},
        }]},
    }
    kind = {"group": "", "version": "v1", "kind": "Pod"}
    return {"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": {
        "uid": f"review-{number}", "kind": kind, "requestKind": kind, "namespace": "shop", "operation": "CREATE", "dryRun": False,
        "resource": {"group": "", "version": "v1", "resource": "pods"}, "object": pod, "oldObject": None,
    }}


def spread(values, unit):
    return f"{statistics.median(values):.1f} {unit} (median of {len(values)}, {min(values):.1f} to {max(values):.1f})"


def mib(size):
    return f"{size / (1 << 20):.1f} MiB"


def at(pair):
    return f"{pair[0]}:{pair[1]}"


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def arguments():
    parser = argparse.ArgumentParser(prog="bench/footprint.py", description=__doc__.splitlines()[0])
    parser.add_argument("--tidegate", required=True, type=lambda text: shutil.which(text) or parser.error(f"{text}: not a program"))
    parser.add_argument("--starts", type=positive, default=20, help="how often each engine is started (default 20)")
    parser.add_argument("--reviews", type=positive, default=2000, help="how many are counted (default 2000)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
