"""Connections that ask an endpoint as fast as they can, in a process of their own: what they cost beside it is next to nothing.

Run as `python greedy_clients.py`, with its settings as JSON on standard input; prints how often each status came.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

PAUSE_S = 0.5  # after a 429: half of what Retry-After says


def start(base_url: str, key: str, body: dict[str, Any], *, num_connections: int, for_s: float) -> "subprocess.Popen[str]":
    """To be ended by `statuses_of`."""
    settings = {"base_url": base_url, "key": key, "body": body, "num_connections": num_connections, "for_s": for_s}
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(json.dumps(settings))
    process.stdin.close()
    process.stdin = None  # else `communicate` would flush it
    return process


def statuses_of(process: "subprocess.Popen[str]") -> Counter[int]:
    """At its end."""
    printed, _ = process.communicate()
    assert process.returncode == 0
    return Counter({int(status): count for status, count in json.loads(printed).items()})


async def _ask(host: str, port: int, request: bytes, over_s: float) -> Counter[int]:
    statuses: Counter[int] = Counter()
    reader, writer = await asyncio.open_connection(host, port)
    while time.monotonic() < over_s:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status = int(head.split(" ", 2)[1])
        length = next(line.partition(":")[2] for line in head.splitlines() if line.startswith("content-length:"))
        await reader.readexactly(int(length))
        statuses[status] += 1
        if "connection: close" in head:
            writer.close()
            reader, writer = await asyncio.open_connection(host, port)
        if status == 429:
            await asyncio.sleep(PAUSE_S)
    writer.close()
    return statuses


async def _main(settings: dict[str, Any]) -> None:
    address = urlsplit(settings["base_url"])
    body = json.dumps(settings["body"]).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {settings['key']}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    over_s = time.monotonic() + settings["for_s"]
    asked = [
        _ask(str(address.hostname), int(address.port or 80), head.encode() + body, over_s)
        for _ in range(settings["num_connections"])
    ]
    total = sum(await asyncio.gather(*asked), Counter())
    sys.stdout.write(json.dumps(total))


if __name__ == "__main__":
    asyncio.run(_main(json.load(sys.stdin)))
