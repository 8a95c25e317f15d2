"""How many instructions Tidegate itself executes for an HTTP/1 request: served, or refused with a 503.

CPU time needs many rounds on a quiet machine; this number hardly moves, whatever else runs, so it tells whether a change helped
at all. It says nothing of the kernel, of caches, or of io_uring, which valgrind does not know. Two runs, one with more requests:
what starting costs falls out.

    python3 bench/instructions.py --tidegate target/release/tidegate [--refused] [--functions 40]

It needs valgrind, and nginx as the application.
"""

import argparse
import re
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from os import sched_getaffinity
from pathlib import Path

import peers
import run
from procs import stop_all

FEW, MANY = 2_000, 8_000
READY_WITHIN = 60  # seconds: valgrind takes its time


def main():
    asked = arguments()
    valgrind, nginx = run.need("valgrind", "Debian package valgrind"), run.need("nginx", "Debian package nginx-core")
    net, held = run.own_net()
    try:
        with tempfile.TemporaryDirectory(prefix="tidegate-instructions-") as directory:
            directory, front, app = Path(directory), run.free(f"{net}.10.1", 0), run.free(f"{net}.20.1", 0)
            if not asked.refused:
                peers.begin_app(nginx, directory, [app], sched_getaffinity(0), 4096)
            few, many = (carry(valgrind, asked, directory, front, app, requests) for requests in (FEW, MANY))
            what = "refused" if asked.refused else "served"
            print(f"{(many - few) / (MANY - FEW):.0f} instructions per request {what}")
            if asked.functions:
                print(functions(directory / f"callgrind.{MANY}", asked.functions))
    finally:
        stop_all()
        held.close()


def carry(valgrind, asked, directory, front, app, requests):
    """All instructions of a gateway that has carried so many requests."""
    out = directory / f"callgrind.{requests}"
    limit = ["--limit=1", "--queue-length=0"] if asked.refused else ["--limit=100000"]
    argv = [valgrind, "--tool=callgrind", f"--callgrind-out-file={out}", asked.tidegate, "run", "--engine=epoll", "--protocol=http"]
    argv += [f"--listen={address(front)}={address(app)}", *limit, "--drain-delay=0s", "--grace=5s"]
    argv += [f"--control={directory}/control.sock", "--admin=127.0.0.1:0", "--probe=127.0.0.1:0", "--metrics=127.0.0.1:0"]
    with ExitStack() as after:
        log = after.enter_context(open(directory / "gateway.log", "w"))
        gateway = subprocess.Popen(argv, stdout=log, stderr=log)
        after.callback(gateway.wait)
        after.callback(gateway.terminate)
        if asked.refused:
            # Nobody answers: the one request that is let in holds the slot.
            silent = after.enter_context(socket.create_server(app))
            silent.listen(16)
        clients = [after.enter_context(connect(front))]
        clients += [after.enter_context(socket.create_connection(front)) for _ in range(asked.connections)]
        if asked.refused:
            clients.pop(0).sendall(request())
            time.sleep(1)  # for it to be let in; if it were not, the answers below would not be 503
        for done in range(0, requests, len(clients)):
            turn = clients[: requests - done]
            for client in turn:
                client.sendall(request())
            for client in turn:
                answer(client, b"503" if asked.refused else b"200")
    return int(re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.M).group(1))


def connect(front):
    deadline = time.monotonic() + READY_WITHIN
    while True:
        with suppress(ConnectionRefusedError):
            return socket.create_connection(front)
        if time.monotonic() > deadline:
            raise SystemExit("bench: the gateway did not begin to listen")
        time.sleep(0.1)


def request():
    return b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def answer(client, status):
    """Read one answer to its end."""
    said = b""
    while b"\r\n\r\n" not in said:
        said += client.recv(65536) or end()
    head, body = said.split(b"\r\n\r\n", 1)
    if head.split(b" ", 2)[1] != status:
        raise SystemExit(f"bench: not the answer that was expected: {head.decode(errors='replace')}")
    left = int(re.search(rb"(?i)content-length: (\d+)", head).group(1)) - len(body)
    while left > 0:
        left -= len(client.recv(65536) or end())


def end():
    raise SystemExit("bench: the gateway closed a connection")


def functions(out, most):
    """Where they were executed: by function, without what it called."""
    argv = ["callgrind_annotate", "--threshold=100", str(out)]
    lines = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.splitlines()
    return "\n".join([line for line in lines if re.match(r" *[\d,]+ \(", line)][:most])


def address(pair):
    return f"{pair[0]}:{pair[1]}"


def arguments():
    parser = argparse.ArgumentParser(prog="bench/instructions.py", description=__doc__.splitlines()[0])
    parser.add_argument("--tidegate", required=True, type=lambda text: shutil.which(text) or parser.error(f"{text}: not a program"))
    parser.add_argument("--refused", action="store_true", help="count for requests that find no room, instead of those served")
    parser.add_argument("--connections", type=int, default=64, help="of clients, kept alive (default 64)")
    parser.add_argument("--functions", type=int, default=0, help="also show where: so many functions")
    return parser.parse_args()


if __name__ == "__main__":
    main()
