"""A grpcio server with the four kinds of call. Messages are plain bytes: no protoc is needed.

    BOOKS=file python grpcio_app.py PORT [ADDRESS]

A call counts as in progress until its handler has ended, whether or not its client is still there: it
is the application that goes on working for those who have left. Only at its deadline it is grpcio itself
that ends the call, on the wire too, although the handler may not have noticed.
"""

import contextlib
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc

import books


@contextlib.contextmanager
def call(name, context):
    with books.request(name, "/") as entry:
        context.add_callback(lambda: context.time_remaining() == 0 and entry.ends())
        yield entry


def unary(request, context):
    """After so many milliseconds."""
    with call("unary", context):
        time.sleep(int(request or b"0") / 1000)
    return request


def server_stream(request, context):
    """`PARTS MILLISECONDS`: so many parts, so many milliseconds apart."""
    parts, ms = map(int, request.split())
    with call("server_stream", context):
        for number in range(parts):
            yield b"%d" % number
            time.sleep(ms / 1000)


def client_stream(requests, context):
    """How many bytes came."""
    with call("client_stream", context) as entry:
        for message in requests:
            entry.body += len(message)
    return b"%d" % entry.body


def bidi(requests, context):
    """Each message back, when it comes."""
    with call("bidi", context) as entry:
        for message in requests:
            entry.body += len(message)
            yield message


def health(request, context):
    """`grpc.health.v1.Health/Check` by hand: all of it and `well` serve, `sick` does not."""
    service = request[2:].decode()
    if service not in ("", "well", "sick"):
        context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
    return b"\x08\x02" if service == "sick" else b"\x08\x01"


def main(port, host="127.0.0.1"):
    server = grpc.server(ThreadPoolExecutor(100), options=[("grpc.so_reuseport", 0)])
    kinds = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
        "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
        "Bidi": grpc.stream_stream_rpc_method_handler(bidi),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Calls", kinds),))
    checks = {"Check": grpc.unary_unary_rpc_method_handler(health)}
    handlers = grpc.method_handlers_generic_handler("grpc.health.v1.Health", checks)
    server.add_generic_rpc_handlers((handlers,))
    assert server.add_insecure_port(f"{host}:{port}")
    server.start()
    threading.Event().wait()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
