"""Runs in the client pod: requests from many threads, and what became of each. Python's standard library only.

The argument is JSON: url, workers, seconds (or requests), timeout, headers, keep. Prints JSON: how many answers there were
of each status, how many were none (lost, by what went wrong), how long the refused and the slowest served took, what the
application said of how many were inside. `keep` uses each worker's connection again, as most clients do.
"""

import collections
import http.client
import json
import sys
import threading
import time
import urllib.parse

how = json.loads(sys.argv[1])
url = urllib.parse.urlsplit(how["url"])
deadline = time.monotonic() + how.get("seconds", 3600)
left = how.get("requests", 10**9)
lock = threading.Lock()
statuses: "collections.Counter[str]" = collections.Counter()
lost: "collections.Counter[str]" = collections.Counter()
hosts: "collections.Counter[str]" = collections.Counter()
inside: "collections.Counter[str]" = collections.Counter()
refused_ms: "list[float]" = []
served_ms: "list[float]" = []
reasons: "collections.Counter[str]" = collections.Counter()


def connect() -> http.client.HTTPConnection:
    return http.client.HTTPConnection(url.hostname, url.port or 80, timeout=how.get("timeout", 10))


def worker() -> None:
    global left
    connection = None
    while time.monotonic() < deadline:
        with lock:
            if left <= 0:
                return
            left -= 1
        began = time.monotonic()
        fresh = connection is None
        try:
            connection = connection or connect()
            connection.request("GET", url.path + ("?" + url.query if url.query else ""), headers=how.get("headers", {}))
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection = None
            # A connection that was idle may be closed at any time; HTTP says to try again (RFC 9112 9.3.1).
            if not fresh and isinstance(error, (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)):
                with lock:
                    left += 1
                continue
            with lock:
                lost[f"{type(error).__name__}: {error}"] += 1
            continue
        took = (time.monotonic() - began) * 1000
        with lock:
            statuses[str(answer.status)] += 1
            if answer.status == 200:
                host = body.decode(errors="replace").strip()[:80]
                hosts[host] += 1
                served_ms.append(took)
                inside[host] = max(inside[host], int(answer.getheader("x-inside") or 0))
            elif answer.status in (429, 503):
                refused_ms.append(took)
                if answer.getheader("retry-after") and "tidegate" in (answer.getheader("proxy-status") or ""):
                    reasons["said why and when"] += 1
        if answer.status != 200 and how.get("pause"):
            time.sleep(how["pause"])
        if not how.get("keep") or answer.getheader("connection") == "close":
            connection.close()
            connection = None


threads = [threading.Thread(target=worker) for _ in range(how.get("workers", 1))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
refused_ms.sort()
json.dump(
    {
        "statuses": statuses,
        "lost": lost,
        "hosts": hosts,
        "inside": max(inside.values(), default=0),
        "refused_p50_ms": round(refused_ms[len(refused_ms) // 2], 1) if refused_ms else None,
        "slowest_served_ms": round(max(served_ms)) if served_ms else None,
        "said_why": reasons["said why and when"],
    },
    sys.stdout,
)
