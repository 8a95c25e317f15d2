"""httpx against the Node or gunicorn application: `python client_httpx.py URL 1|2`; exit 0 when all is well.

It keeps connections open, runs requests side by side, streams both ways, and leaves early.
"""

import asyncio
import hashlib
import sys

import httpx


async def main(url, version):
    http2 = version == "2"
    limits = httpx.Limits(max_connections=8, max_keepalive_connections=8)
    async with httpx.AsyncClient(
        base_url=url, http1=not http2, http2=http2, timeout=20, limits=limits, trust_env=False
    ) as client:
        answers = await asyncio.gather(*(client.get("/work?ms=5") for _ in range(40)))
        assert all((a.status_code, a.text) == (200, "worked") for a in answers), answers
        assert answers[0].http_version == ("HTTP/2" if http2 else "HTTP/1.1"), answers[0].http_version

        body = bytes(range(256)) * 4096
        expected = f"{len(body)} {hashlib.sha256(body).hexdigest()}\n"
        whole = await client.post("/upload", content=body)
        assert whole.text == expected, whole

        async def parts():
            for start in range(0, len(body), 50_000):
                yield body[start : start + 50_000]

        chunked = await client.post("/upload", content=parts())
        assert chunked.text == expected, chunked
        big = await client.get("/bytes?n=3000000")
        assert big.content == b"x" * 3_000_000, len(big.content)

        async with client.stream("GET", "/stream?n=10&ms=5") as stream:
            assert "".join([part async for part in stream.aiter_text()]) == "part\n" * 10
        for _ in range(5):  # leaves in the middle
            async with client.stream("GET", "/stream?n=100&ms=5") as stream:
                async for _ in stream.aiter_raw():
                    break
        assert (await client.get("/")).status_code == 200
        assert (await client.head("/")).content == b""


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
