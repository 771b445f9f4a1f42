"""A cluster of fake nodes in this process: real sockets and the public protocol, no replication.

All nodes share one set of rows, so any of them answers reads, and the tablet's coordinator answers writes,
with the result table of rule R16. A test bends what a node does through ``FakeNode.script``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from ackord.errors import Conflict, Error, OutcomeUnknown, TableNotFound, Unavailable
from ackord.wire.frames import FrameDecoder, FrameError, encode_frame, packb, unpackb
from ackord.wire.keys import KeySchema
from ackord.wire.limits import DEFAULT_LIMITS, Limits
from ackord.wire.messages import (
    COND_IF_ABSENT,
    COND_IF_EXISTS,
    COND_IF_VERSION,
    KIND_DELETE,
    KIND_TRANSACTION,
    MSGPACK_CONTENT_TYPE,
    OP_GET,
    OP_SCAN,
    OP_WRITE,
    TableDefinition,
    TabletRange,
    error_to_wire,
    join_row,
    row_version,
    split_starts,
)
from ackord.wire.puts import Puts, is_puts


class Hold(Exception):
    """Raised by a script: the group is never answered."""


class Drop(Exception):
    """Raised by a script: the stream breaks off. ``after``: the group is executed before that."""

    def __init__(self, after: bool = False) -> None:
        super().__init__()
        self.after = after


class LastWords(Exception):
    """Raised by a script: the node says why, and ends the stream."""


Script = Callable[[list[Any]], "Error | None"]  # a request group -> the error to answer, None to execute it


@dataclass
class FakeCluster:
    """What the nodes share."""

    limits: Limits = DEFAULT_LIMITS
    cluster: str = "fake"
    cluster_id: str = "fake-id"
    version: int = 1_000 << 16
    nodes: dict[str, FakeNode] = field(default_factory=dict)
    tables: dict[str, TableDefinition] = field(default_factory=dict)
    record_versions: dict[str, int] = field(default_factory=dict)  # of the tables that ever stood
    coordinators: dict[int, str | None] = field(default_factory=dict)
    rows: dict[int, dict[bytes, bytes]] = field(default_factory=dict)
    results: dict[tuple[bytes, int], int] = field(default_factory=dict)
    executed: list[tuple[bytes, int, int]] = field(default_factory=list)  # (client, seq, attempt) that ran
    refused_clients: set[bytes] = field(default_factory=set)  # as if they had been collected
    clock: int | None = None  # the coordinator's: who registered later is refused
    unseen: set[str] = field(default_factory=set)  # tables that the routing table does not have yet
    routing_count: int = 0

    def tick(self) -> int:
        self.version += 1
        return self.version

    def create(self, name: str, key: list[list[str]], split_at: list[Any]) -> TableDefinition:
        schema = KeySchema.from_wire(key)
        starts = split_starts(schema, split_at)
        first = len(self.coordinators) + 1
        ends = [*starts[1:], None]
        tablets = tuple(
            TabletRange(first + k, start, end)
            for k, (start, end) in enumerate(zip(starts, ends, strict=True))
        )
        names = sorted(self.nodes)
        for k, tablet in enumerate(tablets):
            self.coordinators[tablet.id] = names[k % len(names)]
            self.rows[tablet.id] = {}
        self.tables[name] = TableDefinition(first, name, schema, tablets)
        self.record_versions[name] = self.record_versions.get(name, -1) + 1
        return self.tables[name]

    def routing(self) -> dict[str, Any]:
        self.routing_count += 1
        tables = {}
        for name, table in self.tables.items():
            if name in self.unseen:
                continue
            tablets = [
                {
                    **tablet.to_wire(),
                    "coordinator": self.coordinators[tablet.id],
                    "in_sync": sorted(self.nodes),
                    "epoch": 1,
                }
                for tablet in table.tablets
            ]
            tables[name] = {"id": table.id, "key": table.key.to_wire(), "tablets": tablets}
        return {
            "wire": 1,
            "cluster": self.cluster,
            "cluster_id": self.cluster_id,
            "now_version": self.version,
            "version": 1,
            "nodes": {name: node.url for name, node in self.nodes.items()},
            "limits": {name: getattr(self.limits, name) for name in Limits.__slots__},
            "tables": tables,
        }

    # ------------------------------------------------------------------------------ operations

    def execute(self, node: str, group: list[Any]) -> list[Any]:
        tablet = group[2]
        if tablet not in self.rows:
            raise Unavailable("no such tablet here", reason="no_tablet")
        rows = self.rows[tablet]
        if group[1] == OP_GET:
            return [rows.get(key) for key in group[3]]
        if group[1] == OP_SCAN:
            return [self._scan(rows, *group[3:8])]
        assert group[1] == OP_WRITE
        coordinator = self.coordinators[tablet]
        if coordinator != node:
            detail = {} if coordinator is None else {"coordinator": coordinator}
            raise Unavailable(f"{node} is no coordinator", reason="not_coordinator", **detail)
        client, floor = group[3], group[5]
        if client in self.refused_clients:
            raise OutcomeUnknown("this client was collected", reason="client_collected")
        if self.clock is not None and group[4] > self.clock:
            raise Unavailable("registered ahead", reason="registered_ahead", clock=self.clock)
        return [self._write(rows, client, floor, op) for op in group[6]]

    def _write(self, rows: dict[bytes, bytes], client: bytes, floor: int, op: list[Any]) -> Any:
        seq, kind, key, body, condition, value, attempt = op
        assert seq >= floor
        if (client, seq) in self.results:
            return self.results[client, seq]
        if kind == KIND_TRANSACTION:
            return self._commit(rows, client, seq, attempt, body[2])
        current = rows.get(key)
        holds = {
            COND_IF_VERSION: current is not None and row_version(current) == value,
            COND_IF_ABSENT: current is None,
            COND_IF_EXISTS: current is not None,
        }.get(condition, True)
        if not holds:
            return error_to_wire(Conflict("the condition does not hold"), current)
        version = self.results[client, seq] = self.tick()
        self.executed.append((client, seq, attempt))
        if kind == KIND_DELETE:
            rows.pop(key, None)
        else:
            rows[key] = join_row(version, body if kind == 1 else packb(unpackb(body)[0]))
        return version

    def _commit(
        self, rows: dict[bytes, bytes], client: bytes, seq: int, attempt: int, writes: list[Any]
    ) -> int:
        """A transaction, whatever it read: puts and deletions."""
        version = self.results[client, seq] = self.tick()
        self.executed.append((client, seq, attempt))
        for kind, key, body, _, _ in writes:
            if kind == KIND_DELETE:
                rows.pop(key, None)
            else:
                rows[key] = join_row(version, body)
        return version

    def _scan(
        self, rows: dict[bytes, bytes], start: bytes, end: bytes | None, reverse: bool, rows_max: int, _: int
    ) -> Any:
        keys = sorted((k for k in rows if start <= k and (end is None or k < end)), reverse=reverse)
        page = keys[:rows_max]
        rest = None if len(keys) <= rows_max else page[-1] + b"\x00" * (not reverse)
        return [[item for key in page for item in (key, rows[key])], rest]


class FakeNode:
    """One node: a real HTTP server on a port of 127.0.0.1."""

    def __init__(self, cluster: FakeCluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.url = ""
        self.script: Script | None = None
        self.frames: list[list[Any]] = []  # every request frame received
        self.columns_count = 0  # groups of puts that came as columns; they are noted as operations
        self.gate = asyncio.Event()  # closed, nothing is answered or read until it opens
        self.gate.set()
        self.stream_count = 0
        self._runner: web.AppRunner | None = None
        self._streams: set[asyncio.Transport] = set()

    async def start(self, port: int = 0) -> None:
        app = web.Application()
        app.router.add_post("/v1/stream", self._stream)
        app.router.add_get("/v1/routing", self._routing)
        app.router.add_route("*", "/v1/tables", self._tables)
        app.router.add_route("*", "/v1/tables/{name}", self._table)
        app.router.add_get("/v1/status", self._status)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, reuse_address=True)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    async def stop(self) -> None:
        """Like a kill: streams break, the port is closed."""
        self.cut()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def cut(self) -> None:
        for transport in list(self._streams):
            transport.abort()

    @property
    def groups(self) -> list[list[Any]]:
        return [group for frame in self.frames for group in frame]

    def ops_of(self, op: int) -> list[list[Any]]:
        return [group for group in self.groups if group[1] == op]

    # ---------------------------------------------------------------------------------- faces

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        self.stream_count += 1
        response = web.StreamResponse()
        transport = request.transport
        assert isinstance(transport, asyncio.Transport)
        self._streams.add(transport)
        try:
            await response.prepare(request)
            decoder = FrameDecoder(self.cluster.limits.frame_bytes)
            greeted = False
            while chunk := await request.content.readany():
                for frame in decoder.feed(chunk):
                    if not greeted:
                        greeted = True
                        hello = [1, self.cluster.cluster, self.name, 7, self.cluster.version]
                        await response.write(encode_frame(hello))
                        continue
                    for group in frame:
                        if group[1] == OP_WRITE and is_puts(group[6]):
                            group[6] = list(Puts(*group[6]))
                            self.columns_count += 1
                    self.frames.append(frame)
                    await self.gate.wait()
                    answers = [a for a in (self._answer(group) for group in frame) if a is not None]
                    if answers:
                        await response.write(encode_frame(answers))
        except Drop:
            transport.abort()
        except LastWords as words:
            await response.write(encode_frame([-1, Unavailable.code, str(words), {}]))
            transport.close()
        except (ConnectionError, FrameError):
            pass
        finally:
            self._streams.discard(transport)
        return response

    def _answer(self, group: list[Any]) -> list[Any] | None:
        try:
            if self.script is not None:
                error = self.script(group)
                if error is not None:
                    return [group[0], -1, error_to_wire(error)]
            return [group[0], None, self.cluster.execute(self.name, group)]
        except Hold:
            return None
        except Drop as drop:
            if drop.after:
                self.cluster.execute(self.name, group)
            raise
        except Error as error:
            return [group[0], -1, error_to_wire(error)]

    async def _routing(self, _: web.Request) -> web.Response:
        return _msgpack(self.cluster.routing())

    async def _status(self, _: web.Request) -> web.Response:
        return _msgpack({"cluster": self.cluster.cluster, "nodes": sorted(self.cluster.nodes)})

    async def _tables(self, request: web.Request) -> web.Response:
        if request.method == "GET":
            return _msgpack({"tables": [table.to_wire() for table in self.cluster.tables.values()]})
        body = unpackb(await request.read())
        try:
            return _msgpack(self.cluster.create(body["name"], body["key"], body["split_at"]).to_wire())
        except Error as error:
            return _failed(error)

    async def _table(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        table = self.cluster.tables.get(name)
        if table is None:
            version = self.cluster.record_versions.get(name, -1)
            return _failed(TableNotFound(f"no table {name}", record_version=version))
        if request.method == "DELETE":
            assert request.query["id"] == str(table.id)
            self.cluster.record_versions[name] += 2
            del self.cluster.tables[name]
            for tablet in table.tablets:
                del self.cluster.rows[tablet.id]
            return _msgpack({})
        return _msgpack({**table.to_wire(), "record_version": self.cluster.record_versions[name]})


def _msgpack(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=packb(value), status=status, content_type=MSGPACK_CONTENT_TYPE)


def _failed(error: Error) -> web.Response:
    body = {"error": {"code": error.name, "message": error.message, "detail": error.detail}}
    return _msgpack(body, error.http_status)


async def start_cluster(count: int = 3, limits: Limits = DEFAULT_LIMITS) -> FakeCluster:
    """A started cluster of nodes n1, n2, ... Stop it with ``stop_cluster``."""
    cluster = FakeCluster(limits=limits)
    for k in range(count):
        node = FakeNode(cluster, f"n{k + 1}")
        cluster.nodes[node.name] = node
        await node.start()
    return cluster


async def stop_cluster(cluster: FakeCluster) -> None:
    for node in cluster.nodes.values():
        await node.stop()
