"""What a node reads of its peers beside the streams: whole pages, whatever their size."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp import web

from ackord_node.app import _read_all
from tests.support.ports import free_port

PAGE = bytes(range(256)) * 4_000


async def test_a_page_is_read_to_its_end_and_no_further_than_allowed() -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for at in range(0, len(PAGE), 300_000):
            await response.write(PAGE[at : at + 300_000])
            await asyncio.sleep(0.02)
        return response

    app = web.Application()
    app.router.add_get("/", page)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/") as response:
                assert await _read_all(response.content, len(PAGE)) == PAGE
            async with session.get(f"http://127.0.0.1:{port}/") as response:
                with pytest.raises(ValueError, match="over"):
                    await _read_all(response.content, len(PAGE) - 1)
    finally:
        await runner.cleanup()
