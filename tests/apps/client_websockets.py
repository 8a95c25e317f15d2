"""`websockets` against the Node application: `python client_websockets.py ws://… N`; exit 0 when all is well.

N at a time, each with small, empty, large and fragmented messages, a ping, and a clean close.
"""

import asyncio
import sys

from websockets.asyncio.client import connect


async def converse(url):
    async with connect(url, compression=None, max_size=None, proxy=None) as socket:
        for message in ["hello", "", "ü" * 40_000, b"\x00\xff" * 150_000]:
            await socket.send(message)
            assert await asyncio.wait_for(socket.recv(), 20) == message
        await socket.send(["in ", "three ", "parts"])
        assert await asyncio.wait_for(socket.recv(), 20) == "in three parts"
        await asyncio.wait_for(await socket.ping(), 20)
    assert socket.close_code == 1000, socket.close_code


async def main(url, count):
    await asyncio.gather(*(converse(url) for _ in range(int(count))))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
