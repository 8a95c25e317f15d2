"""A WSGI application as gunicorn's sync workers run it: one request per process at a time.

    BOOKS=file gunicorn --workers 4 --bind 127.0.0.1:PORT gunicorn_app:app
"""

import hashlib
import time
from urllib.parse import parse_qs

import books


def app(environ, start_response):
    path = environ["PATH_INFO"]
    query = {key: int(values[0]) for key, values in parse_qs(environ["QUERY_STRING"]).items()}
    entry = books.Request(environ["REQUEST_METHOD"], path)
    try:
        if path == "/stream":
            start_response("200 OK", [("Content-Type", "text/plain")])
            return Stream(entry, query.get("n", 10), query.get("ms", 10))
        body = answer(environ, path, query, entry)
    except BaseException:
        entry.ends()
        raise
    entry.ends()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def answer(environ, path, query, entry):
    if path == "/work":
        time.sleep(query.get("ms", 20) / 1000)
        return b"worked"
    if path == "/bytes":
        return b"x" * query["n"]
    digest = hashlib.sha256()
    while part := environ["wsgi.input"].read(65_536):
        entry.body += len(part)
        digest.update(part)
    return f"{entry.body} {digest.hexdigest()}\n".encode() if path == "/upload" else b"ok"


class Stream:
    """So many parts, so many milliseconds apart; gunicorn closes it however it ends."""

    def __init__(self, entry, parts, ms):
        self.entry, self.left, self.ms = entry, parts, ms

    def __iter__(self):
        while self.left > 0:
            self.left -= 1
            yield b"part\n"
            time.sleep(self.ms / 1000)
        self.entry.ends()

    def close(self):
        self.entry.ends()
