"""Clients and nodes over the simulated network: the SDK's ``Transport``, and a node's HTTP face.

The face runs the node's own ``ClientStream`` (checks, bounds, batching of answers) on a request and a response that
are made of lanes; plain requests are answered as the HTTP handlers do, without HTTP.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, cast
from urllib.parse import unquote

from aiohttp import web

from ackord.errors import Error, InvalidRequest, Unavailable
from ackord.http_stream import OnClosed, OnFrames
from ackord.transport import Cancellable
from ackord.wire.frames import FrameDecoder, packb, unpackb
from ackord.wire.keys import KeySchema
from ackord.wire.messages import check_table_name, error_to_wire, split_starts
from ackord.wire.options import TableOptions
from ackord_node.runtime.node import Node
from ackord_node.runtime.recovery import INVENTORY_PATH
from ackord_node.runtime.status import LOCAL_STATUS_PATH
from ackord_node.server.metrics import Metrics
from ackord_node.server.stream import ClientStream
from tests.sim.kernel import Process
from tests.sim.network import Lane, Network

CONNECT_TIMEOUT_S = 3.0
PEER_ASK_TIMEOUT_S = 30.0


class NullMetrics(Metrics):
    """Counts nothing: a simulated run has counters of its own."""

    def __init__(self) -> None:
        pass

    def operations(self, op: str, outcome: str, count: int) -> None: ...

    def request_done(self, op: str, seconds: float) -> None: ...

    def client_frame(self, ops_count: int) -> None: ...

    def client_streams(self, count: int) -> None: ...

    def engine_commit(self, entries_count: int, seconds: float) -> None: ...

    def loop_lag(self, seconds: float) -> None: ...

    def queue(self, name: str, size: int) -> None: ...

    def peer_link(self, peer: str, is_up: bool) -> None: ...

    def tablet(self, tablet: int, in_sync_count: int, lag_entries: dict[str, int]) -> None: ...

    def expiry(self, rows_count: int, lag_s: float) -> None: ...

    def collector(self, versions_count: int, keys_waiting_count: int, lag_s: float) -> None: ...

    def forget_tablet(self, tablet: int) -> None: ...


class SimEnvironment:
    """The SDK's time and randomness in a simulated process."""

    def __init__(self, process: Process) -> None:
        self._loop = process.loop
        self._rng: random.Random = process.rng
        self.now = process.now
        self.boot_now = process.now

    def jitter(self) -> float:
        return self._rng.random()

    def random_bytes(self, count: int) -> bytes:
        return self._rng.randbytes(count)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Cancellable:
        return self._loop.call_later(seconds, callback)

    def call_soon(self, callback: Callable[[], None]) -> Cancellable:
        return self._loop.call_soon(callback)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


# ------------------------------------------------------------------------------- one connection


class _Wire:
    """A connection of a client's process to a node's, for one stream or one plain request."""

    def __init__(self, network: Network, process: Process, source: str, target: str) -> None:
        self.network = network
        self.process = process
        self.source = source
        self.target = target
        self.is_broken = False
        self.is_sent = False
        self.acceptor: Process | None = None
        self.there = Lane(source, target, self)
        self.back = Lane(target, source, self)
        self.on_lost_here: Callable[[], object] = lambda: None
        self.on_lost_there: Callable[[], object] = lambda: None
        network.opened(self)

    def ends(self) -> tuple[Process, Process]:
        return self.process, self.acceptor or self.process

    def break_off(self) -> None:
        if self.is_broken:
            return
        self.is_broken = True
        self.network.ended(self)
        self.network.tell_broken(self.target, self.source, lambda: self.process.post(self.on_lost_here))
        if self.acceptor is not None:
            acceptor = self.acceptor
            self.network.tell_broken(self.source, self.target, lambda: acceptor.post(self.on_lost_there))

    def close(self) -> None:
        """Over, in order."""
        self.is_broken = True
        self.network.ended(self)

    def reach(self, accept: Callable[[Any], object]) -> None:
        """Calls ``accept(face)`` in the node's process once the first packet is there."""
        self.network.carry(self.there, self._arrive, accept)

    def _arrive(self, accept: Callable[[Any], object]) -> None:
        host = self.network.hosts.get(self.target)
        if host is None or not host.process.is_alive or host.face is None:
            if self.target not in self.network.silent:
                self.network.carry(self.back, self.break_off)
            return
        self.acceptor = host.process
        host.process.post(accept, host.face)


# ------------------------------------------------------------------------------- the SDK's side


class SimTransport:
    """``ackord.transport.Transport`` of one client's process; ``nodes`` maps URLs to names."""

    def __init__(self, network: Network, process: Process, nodes: dict[str, str]) -> None:
        self._network = network
        self._process = process
        self._nodes = nodes

    def _wire(self, url: str) -> tuple[_Wire, str]:
        base = next((u for u in self._nodes if url.startswith(u)), None)
        if base is None:
            raise Unavailable(f"no such host: {url}", sent=False)
        return _Wire(self._network, self._process, self._process.name, self._nodes[base]), url[len(base) :]

    async def connect(
        self, url: str, hello: bytes, frame_bytes_max: int, on_frames: OnFrames, on_closed: OnClosed
    ) -> SimStream:
        wire, _ = self._wire(url)
        stream = SimStream(wire, FrameDecoder(frame_bytes_max), on_frames, on_closed)
        opened: asyncio.Future[None] = self._process.loop.create_future()

        def lost() -> None:
            if not opened.done():
                opened.set_exception(Unavailable(f"no stream to {url}: connection refused", url=url))

        def accept(face: Face) -> None:
            if not wire.is_broken:
                face.accept(wire, stream)
                self._network.carry(wire.back, self._process.post, welcomed)

        def welcomed() -> None:
            if not opened.done():
                opened.set_result(None)

        wire.on_lost_here = lost
        wire.reach(accept)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await opened
        except TimeoutError:
            wire.break_off()
            raise Unavailable(f"no stream to {url}: no answer in time", url=url) from None
        except BaseException:
            wire.break_off()
            raise
        wire.on_lost_here = stream.lost
        stream.send(hello)
        return stream

    async def request(self, method: str, url: str, body: Any, timeout_s: float) -> tuple[int, Any]:
        wire, path = self._wire(url)
        late_s = self._network.late_by() if method in ("POST", "DELETE") else 0.0
        if late_s:
            self._network.trace.fault("table operation late", f"{method} {path} at {wire.target}")
            wire.close()
            self._network.world.after(late_s, self._arrive_late, url, method, packb(body))
            raise Unavailable(f"{method} {url}: the connection was lost", sent=True, url=url)
        try:
            async with asyncio.timeout(timeout_s):
                return await plain_request(wire, method, path, body)
        except TimeoutError:
            wire.break_off()
            text = f"{method} {url}: no answer in time"
            raise Unavailable(text, sent=wire.is_sent, url=url) from None
        except ConnectionError as error:
            raise Unavailable(f"{method} {url}: {error}", sent=wire.is_sent, url=url) from None

    def _arrive_late(self, url: str, method: str, packed: bytes) -> None:
        """As if a proxy had kept it: whoever is the node by then takes it, and nobody waits for the answer."""
        wire, path = self._wire(url)
        host = self._network.hosts.get(wire.target)
        if host is None or not host.process.is_alive or host.face is None:
            wire.close()
            return
        wire.acceptor = host.process
        self._network.trace.note(f"late {method} {path} arrives at {wire.target}")
        host.process.post(host.face.take, wire, method, path, packed, lambda _: wire.close())

    async def close(self) -> None:
        return


async def plain_request(wire: _Wire, method: str, path: str, body: Any) -> tuple[int, Any]:
    """ConnectionError if the connection breaks; ``wire.is_sent`` tells whether the node may have got it."""
    process = wire.process
    answered: asyncio.Future[bytes] = process.loop.create_future()
    packed = packb(body)

    def lost() -> None:
        if not answered.done():
            answered.set_exception(ConnectionError("the connection was lost"))

    def answer(data: bytes) -> None:
        wire.close()
        if not answered.done():
            answered.set_result(data)

    def accept(face: Face) -> None:
        wire.is_sent = True
        face.take(wire, method, path, packed, lambda data: process.post(answer, data))

    wire.on_lost_here = lost
    wire.reach(accept)
    try:
        status, found = unpackb(await answered)
    finally:
        if not answered.done() or answered.cancelled():
            wire.break_off()
    return status, found


class SimStream:
    """The SDK's end of a stream; ``received`` is called in the client's process."""

    def __init__(self, wire: _Wire, decoder: FrameDecoder, on_frames: OnFrames, on_closed: OnClosed) -> None:
        self._wire = wire
        self._decoder = decoder
        self._on_frames = on_frames
        self._on_closed = on_closed
        self._is_closing = False
        self.queued_bytes = 0
        self.server: ServerEnd | None = None

    def send(self, frame: bytes) -> None:
        wire, server = self._wire, self.server
        if self._is_closing or wire.is_broken or server is None or wire.acceptor is None:
            return
        wire.network.carry(wire.there, self._delivered, server, frame)

    def _delivered(self, server: ServerEnd, frame: bytes) -> None:
        assert self._wire.acceptor is not None
        self._wire.network.trace.hashed(self._wire.source, self._wire.target, frame)
        self._wire.acceptor.post(server.content.feed, frame)

    def received(self, data: bytes) -> None:
        if not self._is_closing:
            frames = self._decoder.feed(data)
            if frames:
                self._on_frames(frames)

    def lost(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._on_closed(Unavailable("the stream ended: the node closed the stream"))

    async def close(self) -> None:
        self._is_closing = True
        self._wire.break_off()


# ------------------------------------------------------------------------------ the node's side


class _Content:
    """What arrives on a stream, as ``aiohttp.StreamReader`` gives it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._data = b""
        self._wanted: asyncio.Future[None] | None = None
        self._is_lost = False

    def feed(self, data: bytes) -> None:
        self._data += data
        self._wake()

    def lose(self) -> None:
        self._is_lost = True
        self._wake()

    async def readany(self) -> bytes:
        while not self._data:
            if self._is_lost:
                raise ConnectionResetError("the client is gone")
            self._wanted = self._loop.create_future()
            await self._wanted
        data, self._data = self._data, b""
        return data

    def _wake(self) -> None:
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(None)


class ServerEnd:
    """The request and the response of one stream, as ``ClientStream`` uses them."""

    def __init__(self, wire: _Wire, stream: SimStream, loop: asyncio.AbstractEventLoop) -> None:
        self.content = _Content(loop)
        self.remote = wire.source
        self._wire = wire
        self._stream = stream

    async def write(self, data: bytes) -> None:
        wire = self._wire
        if wire.is_broken:
            raise ConnectionResetError("the client is gone")
        if data:
            wire.network.carry(wire.back, self._delivered, data)

    def _delivered(self, data: bytes) -> None:
        self._wire.network.trace.hashed(self._wire.target, self._wire.source, data)
        self._wire.process.post(self._stream.received, data)

    async def write_eof(self) -> None:
        return

    @property
    def is_free(self) -> bool:
        return not self._wire.is_broken

    def send(self, data: bytes) -> None:
        self._wire.network.carry(self._wire.back, self._delivered, data)


class Face:
    """The HTTP face of one incarnation of a node."""

    def __init__(self, node: Node, process: Process, metrics: Metrics) -> None:
        self._node = node
        self._process = process
        self._metrics = metrics
        self._streams: dict[ClientStream, None] = {}
        self._is_stopping = False

    # -------------------------------------------------------------------------------- streams

    def accept(self, wire: _Wire, stream: SimStream) -> None:
        """In the node's process: a client opened a stream."""
        if self._is_stopping or len(self._streams) >= self._node.limits.streams_count:
            wire.break_off()
            return
        end = stream.server = ServerEnd(wire, stream, self._process.loop)
        wire.on_lost_there = end.content.lose
        # ClientStream knows its request and response by the few members that ServerEnd has.
        served = ClientStream(
            self._node, self._metrics, cast("web.Request", end), cast("web.StreamResponse", end), end
        )
        self._streams[served] = None
        self._process.start(self._serve(served, wire))

    async def _serve(self, served: ClientStream, wire: _Wire) -> None:
        try:
            await served.run()
        finally:
            self._streams.pop(served, None)
            wire.break_off()

    async def drain(self) -> None:
        """As at a planned stop: answers that are due still leave."""
        self._is_stopping = True
        await asyncio.gather(*(served.drain() for served in list(self._streams)))

    # ------------------------------------------------------------------------- plain requests

    def take(
        self, wire: _Wire, method: str, path: str, packed: bytes, reply: Callable[[bytes], None]
    ) -> None:
        """In the node's process: a plain request arrived."""
        if not self._is_stopping:
            wire.network.trace.hashed(wire.source, wire.target, packed)
            self._process.start(self._reply(wire, method, path, packed, reply))

    async def _reply(
        self, wire: _Wire, method: str, path: str, packed: bytes, reply: Callable[[bytes], None]
    ) -> None:
        try:
            answer = 200, await self._answer(method, path, unpackb(packed))
        except Error as error:
            _, message, detail, _ = error_to_wire(error)
            answer = error.http_status, {"error": {"code": error.name, "message": message, "detail": detail}}
        wire.network.carry(wire.back, reply, packb(answer))

    async def _answer(self, method: str, path: str, body: Any) -> Any:
        node = self._node
        fixed: dict[tuple[str, str], Callable[[], Any]] = {
            ("GET", "/v1/routing"): node.routing,
            ("GET", LOCAL_STATUS_PATH): node.reporter.local,
            ("GET", INVENTORY_PATH): node.recovery.inventory,
        }
        slow: dict[tuple[str, str], Callable[[], Awaitable[Any]]] = {
            ("GET", "/v1/status"): node.status,
            ("GET", "/v1/tables"): self._tables,
            ("POST", "/v1/tables"): lambda: self._create(body),
            ("POST", "/admin/v1/recover"): lambda: node.recover(body),
        }
        if (method, path) in fixed:
            return fixed[method, path]()
        if (method, path) in slow:
            return await slow[method, path]()
        if not path.startswith("/v1/tables/"):
            raise InvalidRequest(f"there is no {path} here")
        name, _, query = path.removeprefix("/v1/tables/").partition("?")
        name = unquote(name)
        if method == "DELETE":
            await node.drop_table(name, int(query.removeprefix("id=")))
            return {"dropped": name}
        if query == "cached=true":
            return (await node.table(name)).to_wire()
        record = await node.describe_table(name)
        assert record.table is not None
        return {**record.table.to_wire(), "record_version": record.version}

    async def _tables(self) -> Any:
        await self._node.read_tables()
        tables = self._node.routing()["tables"]
        return {"tables": [{"name": name, **tables[name]} for name in sorted(tables)]}

    async def _create(self, body: Any) -> Any:
        limits = self._node.limits
        name = check_table_name(body["name"], limits)
        key = KeySchema.from_wire(body["key"], limits.key_column_bytes)
        split_at = list(body["split_at"])
        split_starts(key, split_at, limits)
        options = TableOptions.from_wire(body.get("options"))
        version = body["if_record_version"]
        made = await self._node.create_table(name, key.to_wire(), split_at, options, version)
        return made.to_wire()


async def ask_peer(network: Network, process: Process, source: str, target: str, path: str) -> Any:
    """A page of a peer; OSError or ValueError if it does not answer it."""
    wire = _Wire(network, process, source, target)
    async with asyncio.timeout(PEER_ASK_TIMEOUT_S):
        status, body = await plain_request(wire, "GET", path, None)
    if status != 200:
        raise ValueError(f"{target} answered {status} to {path}")
    return body
