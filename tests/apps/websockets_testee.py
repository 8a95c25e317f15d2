"""`websockets` as the one Autobahn's cases are put to: it sends back every message as it came.

    python websockets_testee.py serve PORT             for `wstest --mode fuzzingclient`, until it is killed
    python websockets_testee.py visit ws://… DIAL NAME each case of `wstest --mode fuzzingserver`, one by one

DIAL is the port to connect to. It can be a gateway's; the server only takes its own port in `Host`.
"""

import asyncio
import sys

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

# The cases decide what is too large and how long to wait, not we.
PATIENT = dict(max_size=None, ping_interval=None, open_timeout=60, close_timeout=10)


async def echo(socket):
    try:
        async for message in socket:
            await socket.send(message)
    except ConnectionClosed:
        pass  # most cases end it badly on purpose


async def until_killed(port):
    async with serve(echo, "127.0.0.1", int(port), **PATIENT) as server:
        await server.serve_forever()


async def visit(url, port, name):
    def dial(path):
        return connect(f"{url}/{path}", host="127.0.0.1", port=int(port), proxy=None, **PATIENT)

    async with dial("getCaseCount") as socket:
        count = int(await socket.recv())
    for case in range(1, count + 1):
        async with dial(f"runCase?case={case}&agent={name}") as socket:
            await echo(socket)
    async with dial(f"updateReports?agent={name}") as socket:
        await socket.wait_closed()


if __name__ == "__main__":
    asyncio.run({"serve": until_killed, "visit": visit}[sys.argv[1]](*sys.argv[2:]))
