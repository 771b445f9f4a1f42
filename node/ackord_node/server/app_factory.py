"""The node's HTTP application: which path is answered by what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from aiohttp import web

from ackord_node.runtime.service import Service
from ackord_node.server.admin import AdminHandlers
from ackord_node.server.errors import errors_middleware, http_logger
from ackord_node.server.forward import Forwarder
from ackord_node.server.metrics import Metrics
from ackord_node.server.rows import RowHandlers
from ackord_node.server.stream import StreamHandlers
from ackord_node.server.tables import TableHandlers
from ackord_node.server.transactions import TransactionHandlers

LINE_BYTES_MAX = 32 * 1024  # a request line: four key columns of 1 KiB, percent-encoded, and a page token
SHUTDOWN_TIMEOUT_S = 5.0


class PeerAcceptor(Protocol):
    """What the application needs of the peer transport."""

    async def accept(self, request: web.Request) -> web.StreamResponse: ...


def build_app(service: Service, transport: PeerAcceptor, metrics: Metrics) -> web.Application:
    """All faces of one node. At shutdown the application lets its streams finish what they were asked."""
    limits = service.limits
    app = web.Application(client_max_size=limits.body_bytes, middlewares=[errors_middleware])
    forwarder = Forwarder(limits)
    streams = StreamHandlers(service, metrics)
    rows = RowHandlers(service, forwarder, metrics)
    transactions = TransactionHandlers(rows, service)
    tables = TableHandlers(service)
    admin = AdminHandlers(service, metrics)

    async def forwarding(_: web.Application) -> AsyncIterator[None]:
        await forwarder.open()
        yield
        await forwarder.close()

    async def drain(_: web.Application) -> None:
        await streams.drain()

    app.cleanup_ctx.append(forwarding)
    app.on_shutdown.append(drain)
    row = "/v1/tables/{table}/rows/{key:(?s:.*)}"  # a key may hold any character, also the end of a line
    app.router.add_routes(
        [
            web.post("/v1/stream", streams.accept),
            web.post("/peer/v1/stream", transport.accept),
            web.get("/v1/routing", admin.routing),
            web.get("/v1/status", admin.status),
            web.get("/health", admin.health),
            web.get("/ready", admin.ready),
            web.get("/metrics", admin.metrics),
            web.post("/admin/v1/recover", admin.recover),
            web.get("/v1/tables", tables.list),
            web.post("/v1/tables", tables.create),
            web.get("/v1/tables/{table}", tables.describe),
            web.delete("/v1/tables/{table}", tables.drop),
            web.get("/v1/tables/{table}/rows", rows.scan),
            web.get("/v1/tables/{table}/count", rows.count),
            web.post("/v1/tables/{table}/transactions", transactions.commit),
            web.get(row, rows.get),
            web.put(row, rows.put),
            web.patch(row, rows.patch),
            web.delete(row, rows.delete),
        ]
    )
    return app


def make_runner(app: web.Application) -> web.AppRunner:
    """The runner with this project's settings (aiohttp sets TCP_NODELAY on every connection itself). At a
    planned stop: first stop the runner's sites, then close the peer transport, then clean the runner up."""
    return web.AppRunner(
        app,
        access_log=None,
        logger=http_logger(),
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
        max_line_size=LINE_BYTES_MAX,
        auto_decompress=False,  # no body with a content encoding is taken, so none is unpacked either
    )
