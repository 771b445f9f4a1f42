"""A node's HTTP application on a real port, over a fake service, and a client for it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from ackord.wire.frames import unpackb
from ackord.wire.json_forms import parse_json
from ackord.wire.limits import DEFAULT_LIMITS, Limits
from ackord_node.server.app_factory import build_app, make_runner
from ackord_node.server.metrics import Metrics
from tests.support.fake_service import FakeService
from tests.support.ports import free_port

ORDERS: dict[str, Any] = {"name": "orders", "key": [["customer", "str"], ["order", "int"]]}


class NoPeers:
    async def accept(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text="peer")


@dataclass
class HttpNode:
    service: FakeService
    metrics: Metrics
    runner: web.AppRunner
    url: str


@asynccontextmanager
async def http_node(
    name: str = "n1", rows: dict[bytes, bytes] | None = None, limits: Limits = DEFAULT_LIMITS
) -> AsyncIterator[HttpNode]:
    service, metrics = FakeService(name, rows, limits), Metrics()
    runner = make_runner(build_app(service, NoPeers(), metrics))
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield HttpNode(service, metrics, runner, f"http://127.0.0.1:{port}")
    finally:
        await runner.cleanup()


class Client:
    """Requests against one node; answers as (status, decoded body)."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url

    async def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            names.setdefault("Content-Type", "application/json")
        url = URL(self.url + path, encoded=True)
        async with self.session.request(method, url, data=body, headers=names) as response:
            raw = await response.read()
            if response.content_type == "application/msgpack":
                return response.status, unpackb(raw)
            assert response.content_type == "application/json", raw[:200]
            return response.status, parse_json(raw)


def error_of(answer: tuple[int, Any], status: int, code: str) -> dict[str, Any]:
    assert answer[0] == status, answer
    error: dict[str, Any] = answer[1]["error"]
    assert error["code"] == code
    assert set(error) == {"code", "message", "detail", "outcome_unknown", "retriable", "current"}
    return error
