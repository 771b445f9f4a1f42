"""What this machine does right now without Ackord: the ratio of a figure to it means more than the figure.

Machines are shared and differ. The yardstick is one bare request: aiohttp, a msgpack body of 100 bytes each way, a
server process that does nothing, one caller; and one fdatasync of 4 KiB where the nodes' data is.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgpack
from aiohttp import web

ROUND_TRIPS_COUNT = 1_000
SYNCS_COUNT = 200
SYNC_BYTES = 4_096
REFERENCE_ROUND_TRIP_MS = 0.155  # on the machine for which the targets were set (DESIGN, section 4)


@dataclass(frozen=True, slots=True)
class Yardstick:
    """Medians."""

    round_trip_ms: float
    fdatasync_ms: float

    @property
    def slowness(self) -> float:
        """How much longer a bare round trip takes here than where the targets were set."""
        return self.round_trip_ms / REFERENCE_ROUND_TRIP_MS


async def take(folder: Path) -> Yardstick:
    return Yardstick(await _round_trip_ms(), await asyncio.to_thread(_fdatasync_ms, folder))


async def _round_trip_ms() -> float:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = await asyncio.create_subprocess_exec(sys.executable, __file__, str(port))
    body = msgpack.packb({"value": "x" * 90})
    taken: list[float] = []
    try:
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{port}/"
            while True:
                try:
                    async with session.post(url, data=body) as response:
                        await response.read()
                    break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.02)
            for _ in range(ROUND_TRIPS_COUNT):
                begun = time.perf_counter()
                async with session.post(url, data=body) as response:
                    msgpack.unpackb(await response.read())
                taken.append(time.perf_counter() - begun)
    finally:
        server.kill()
        await server.wait()
    return statistics.median(taken) * 1000


def _fdatasync_ms(folder: Path) -> float:
    taken: list[float] = []
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for _ in range(SYNCS_COUNT):
            file.write(b"x" * SYNC_BYTES)
            file.flush()
            begun = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - begun)
    return statistics.median(taken) * 1000


async def _answer(request: web.Request) -> web.Response:
    return web.Response(body=msgpack.packb(msgpack.unpackb(await request.read())))


def _serve(port: int) -> None:
    app = web.Application()
    app.router.add_post("/", _answer)
    web.run_app(app, host="127.0.0.1", port=port, print=lambda *_: None, access_log=None)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
