"""One guarded ZooKeeper session on aiozk's wire layer.

aiozk is used for its framing and its messages only (`aiozk.connection`, `aiozk.protocol`): its client
sends a lost request again after a reconnect, opens a new session in silence and repairs connections in
loops of its own, each of which would turn a lost answer into a wrong one (rule R1). The rules here:

- A request is sent at most once. `NotSent` means that it certainly never left; `SentAndLost` means that
  it may have been applied. Nothing is retried.
- The end of the connection's read loop means that the connection is down now. A request or a keep-alive
  that is not answered in time ends the connection as well, so a frozen or isolated server is left.
- One attempt concerns one host and is bounded, so a frozen host costs one short wait, never a hang. The
  pauses between rounds grow to about a second; an attempt that the server answers and then drops grows
  them too, so a server that refuses can never cause a hot loop.
- The same session is resumed until a server says that it has ended. Only then a new one is opened, after
  the listener has been told. The end of a session proves nothing about time: locks only elect.
- A handshake never claims to have seen a transaction (zxid 0): a server that lags is acceptable since
  every read here is ordered behind a sync, and a restored one must not refuse us for ever.
- The keep-alive is a sync, answered by the leader: an isolated follower goes on answering pings.
"""

from __future__ import annotations

import asyncio
import logging
import random
import struct
from collections.abc import Callable, Sequence
from typing import Protocol

from aiozk import exc, protocol
from aiozk.connection import Connection

from ackord_node.ports import Clock, CoordinationError

PAUSE_S_MIN = 0.05
PAUSE_S_MAX = 1.0
PATIENCE_S_MIN = 0.2  # for one host to accept the connection and answer the handshake
PATIENCE_S_MAX = 2.0
STABLE_S = 1.0  # a connection that lived this long starts the pauses anew
XID_MAX = 0x7FFFFFFF

log = logging.getLogger(__name__)

DEFINITE_ANSWERS = (exc.NoNode, exc.NodeExists, exc.BadVersion, exc.NotEmpty)


class NotSent(CoordinationError):
    """The request certainly did not reach the service."""


class SentAndLost(CoordinationError):
    """The request left and its answer did not come: it may have been applied."""


class SessionListener(Protocol):
    """What happens to the session; called on the event loop, must neither block nor raise."""

    def connected(self) -> None: ...

    def disconnected(self) -> None: ...

    def session_ended(self) -> None:
        """The old session is over: everything ephemeral of it is gone. A new one is being opened."""

    def watch_fired(self, path: str) -> None: ...


class Wire(Protocol):
    """One connection to one server; ``read_loop_task`` is done when it has ended."""

    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int: ...

    @property
    def read_loop_task(self) -> asyncio.Future[None] | None: ...

    async def open(self) -> None: ...

    async def handshake(
        self, timeout_ms: int, session_id: int, password: bytes
    ) -> protocol.ConnectResponse: ...

    def start_read_loop(self) -> None: ...

    def send(
        self, request: protocol.Request, xid: int | None = None
    ) -> asyncio.Future[tuple[int, protocol.Response]]: ...

    def is_open(self) -> bool: ...

    def tear_down(self) -> None: ...


Connect = Callable[[str, int, Callable[[protocol.WatchEvent], None]], Wire]


class CloseSession(protocol.CloseRequest):
    """aiozk's own close request goes out without an xid, which a server cannot parse."""

    special_xid = None


class WireConnection(Connection):
    """aiozk's framing, without its busy loop at the end of a stream and its second, probing connection. Requests
    of one turn of the loop leave in one write: a takeover or a table of many tablets makes hundreds at once."""

    _unsent: list[bytes] | None = None

    def send(
        self, request: protocol.Request, xid: int | None = None
    ) -> asyncio.Future[tuple[int, protocol.Response]]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[int, protocol.Response]] = loop.create_future()
        if self.closing:
            answer.set_exception(exc.ConnectError(self.host, self.port))
            return answer
        assert xid is not None and request.special_xid is None
        payload = request.serialize(xid)
        self.opcode_xref[xid] = request.opcode
        self.pending[xid] = answer
        if self._unsent is None:
            self._unsent = []
            loop.call_soon(self._write_unsent)
        self._unsent += (struct.pack("!i", len(payload)), payload)
        return answer

    def _write_unsent(self) -> None:
        unsent, self._unsent = self._unsent, None
        if unsent and self.writer is not None and self.is_open():  # uvloop refuses a write to what has ended
            self.writer.write(b"".join(unsent))

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection(self.host, self.port)

    async def _read(self, size: int = -1) -> bytes:
        # The original polls an ended stream until its timeout and blocks the event loop for seconds.
        assert self.reader is not None
        return await self.reader.readexactly(size)

    async def read_response(
        self, initial_connect: bool = False
    ) -> tuple[int | None, int | None, protocol.Response | Exception]:
        try:
            return await super().read_response(initial_connect)
        except (OSError, EOFError) as error:  # what the read loop takes as the quiet end of a connection
            raise ConnectionAbortedError(str(error)) from error

    async def handshake(self, timeout_ms: int, session_id: int, password: bytes) -> protocol.ConnectResponse:
        request = protocol.ConnectRequest(
            protocol_version=0,
            last_seen_zxid=0,
            timeout=timeout_ms,
            session_id=session_id,
            password=password,
            read_only=False,
        )
        payload = request.serialize()
        assert self.writer is not None
        self.writer.write(struct.pack("!i", len(payload)) + payload)
        _, _, response = await self.read_response(initial_connect=True)
        assert isinstance(response, protocol.ConnectResponse)
        return response

    def is_open(self) -> bool:
        return not self.closing and self.writer is not None and not self.writer.transport.is_closing()

    def tear_down(self) -> None:
        """Ends the connection at once; whatever was under way is lost. Idempotent."""
        self.closing = True
        if self.read_loop_task is not None:
            self.read_loop_task.cancel()
        if self.writer is not None:
            self.writer.transport.abort()
        for future in self.drain_all_pending():
            if not future.done():
                future.set_exception(exc.ConnectError(self.host, self.port))


def connect_wire(host: str, port: int, on_watch: Callable[[protocol.WatchEvent], None]) -> Wire:
    """A real connection, not open yet."""
    return WireConnection(host, port, on_watch, None)


class GuardedSession:
    """A ZooKeeper session that is kept alive and resumed in the background.

    ``connect`` makes its connections, ``rng`` is its only randomness. ``timeout_ms`` is the negotiated session
    timeout (None before the first session), ``token`` names the session among all that ever were: it is
    renewed with each new one.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        timeout_ms: int,
        clock: Clock,
        listener: SessionListener,
        connect: Connect,
        rng: random.Random,
    ) -> None:
        self.timeout_ms: int | None = None
        self.session_id = 0
        self.password = bytes(16)
        self.token = b""
        self._hosts = [_parse_host(host) for host in hosts]
        self._timeout_ms_wanted = timeout_ms
        self._clock = clock
        self._listener = listener
        self._new_connection = connect
        self._rng = rng
        self._connection: Wire | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._heard_s = 0.0
        self._xid = 0
        self._failed_host: tuple[str, int] | None = None

    @property
    def timeout_s(self) -> float:
        return (self.timeout_ms or self._timeout_ms_wanted) / 1000

    @property
    def is_connected(self) -> bool:
        return self._connection is not None and self._connection.is_open()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Ends the session at the service if it can be reached within a second, and locally in any case."""
        if self._task is None or self._closing:
            return
        self._closing = True
        if self._connection is not None and self._connection.is_open():
            future = self._send(self._connection, CloseSession())
            await asyncio.wait({future}, timeout=min(1.0, self.timeout_s / 3))
            if not future.cancel():
                future.exception()  # an ended connection is as good as an answer
        self._task.cancel()
        await asyncio.wait({self._task})

    async def call(self, request: protocol.Request) -> protocol.Response:
        """Sends one request once. Raises NotSent, SentAndLost or one of DEFINITE_ANSWERS."""
        connection = self._live()
        try:
            async with asyncio.timeout(self.timeout_s / 2):
                _, response = await self._send(connection, request)
        except DEFINITE_ANSWERS:
            self._heard_s = self._clock.now()
            raise
        except (TimeoutError, exc.ZKError) as error:
            connection.tear_down()
            raise SentAndLost(f"no answer from ZooKeeper at {connection.host}: {error!r}") from error
        self._heard_s = self._clock.now()
        return response

    async def read(self, requests: Sequence[protocol.Request]) -> list[protocol.Response | exc.ResponseError]:
        """Answers of reads that see every write acknowledged before this call (a sync goes first on the same
        connection). Raises NotSent or SentAndLost; an absent znode is a NoNode among the answers."""
        connection = self._live()
        futures = [self._send(connection, request) for request in (protocol.SyncRequest(path="/"), *requests)]
        try:
            async with asyncio.timeout(self.timeout_s / 2):
                answers = await asyncio.gather(*futures, return_exceptions=True)
        except TimeoutError as error:
            connection.tear_down()
            raise SentAndLost(f"no answer from ZooKeeper at {connection.host} in time") from error
        results: list[protocol.Response | exc.ResponseError] = []
        for answer in answers:
            if isinstance(answer, tuple):
                results.append(answer[1])
            elif isinstance(answer, DEFINITE_ANSWERS):
                results.append(answer)
            else:
                connection.tear_down()
                raise SentAndLost(f"ZooKeeper at {connection.host} did not answer: {answer!r}")
        self._heard_s = self._clock.now()
        return results[1:]

    def _live(self) -> Wire:
        if self._closing or self._connection is None or not self._connection.is_open():
            raise NotSent("not connected to ZooKeeper")
        return self._connection

    def _send(
        self, connection: Wire, request: protocol.Request
    ) -> asyncio.Future[tuple[int, protocol.Response]]:
        self._xid = self._xid % XID_MAX + 1
        return connection.send(request, xid=self._xid)

    # ------------------------------------------------------------------------------- background

    async def _run(self) -> None:
        pause_s = 0.0
        patience_s = patience_s_first = max(PATIENCE_S_MIN, min(1.0, self.timeout_s / (2 * len(self._hosts))))
        while not self._closing:
            if pause_s:
                await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1.0))
            pause_s = min(max(2 * pause_s, PAUSE_S_MIN), PAUSE_S_MAX)
            connection = await self._connect_any(patience_s)
            if connection is None:
                patience_s = min(2 * patience_s, PATIENCE_S_MAX)
                continue
            born_s = self._clock.now()
            await self._serve(connection)
            patience_s = patience_s_first
            if self._clock.now() - born_s > STABLE_S:
                pause_s = 0.0

    async def _connect_any(self, patience_s: float) -> Wire | None:
        hosts = self._rng.sample(self._hosts, len(self._hosts))
        hosts.sort(key=lambda host: host == self._failed_host)  # the one that just failed goes last
        for host, port in hosts:
            connection = await self._connect(host, port, patience_s)
            if connection is not None:
                return connection
        return None

    async def _connect(self, host: str, port: int, patience_s: float) -> Wire | None:
        """Resumes the session at one host, or opens a new one if the server says that the old one ended."""
        if self.session_id:
            connection, response = await self._attempt(host, port, patience_s)
            if connection is None or response is None:
                return None
            if response.session_id == self.session_id:
                return self._adopt(connection, response)
            connection.tear_down()
            self._end_session()
        connection, response = await self._attempt(host, port, patience_s)
        if connection is None or response is None:
            return None
        if response.session_id == 0:
            connection.tear_down()
            return None
        self.session_id, self.password = response.session_id, response.password
        self.token = self._rng.randbytes(16)
        return self._adopt(connection, response)

    async def _attempt(
        self, host: str, port: int, patience_s: float
    ) -> tuple[Wire | None, protocol.ConnectResponse | None]:
        connection = self._new_connection(host, port, self._watch_event)
        try:
            async with asyncio.timeout(patience_s):
                await connection.open()
                response = await connection.handshake(self._timeout_ms_wanted, self.session_id, self.password)
        except (OSError, TimeoutError, ValueError, struct.error) as error:
            connection.tear_down()
            log.debug("no ZooKeeper session at %s:%d: %r", host, port, error)
            return None, None
        except BaseException:
            connection.tear_down()
            raise
        return connection, response

    def _adopt(self, connection: Wire, response: protocol.ConnectResponse) -> Wire:
        if response.timeout != self.timeout_ms and response.timeout > self._timeout_ms_wanted:
            log.warning(
                "ZooKeeper raised the session timeout from %d ms to %d ms (its minSessionTimeout): "
                "a dead node is noticed later than configured",
                self._timeout_ms_wanted,
                response.timeout,
            )
        self.timeout_ms = response.timeout
        return connection

    def _end_session(self) -> None:
        log.warning("ZooKeeper session %x has ended; opening a new one", self.session_id)
        self.session_id, self.password, self.token = 0, bytes(16), b""
        self._listener.session_ended()

    async def _serve(self, connection: Wire) -> None:
        """Keeps the session alive until the connection ends; the connection is gone on return."""
        connection.start_read_loop()
        self._connection = connection
        self._heard_s = self._clock.now()
        log.info("ZooKeeper session %x at %s:%d", self.session_id, connection.host, connection.port)
        self._listener.connected()
        try:
            await self._keep_alive(connection)
        finally:
            self._connection = None
            self._failed_host = (connection.host, connection.port)
            connection.tear_down()
            log.info("connection to ZooKeeper at %s:%d ended", connection.host, connection.port)
            self._listener.disconnected()

    async def _keep_alive(self, connection: Wire) -> None:
        reading = connection.read_loop_task
        assert reading is not None
        while True:
            await asyncio.wait({reading}, timeout=self.timeout_s / 3)
            if reading.done():
                return
            if self._clock.now() - self._heard_s < self.timeout_s / 4:
                continue
            beat = self._send(connection, protocol.SyncRequest(path="/"))
            await asyncio.wait({beat}, timeout=self.timeout_s / 3)
            if not beat.done():
                beat.cancel()
                return
            if beat.exception() is not None:
                return
            self._heard_s = self._clock.now()

    def _watch_event(self, event: protocol.WatchEvent) -> None:
        if event.type:
            self._listener.watch_fired(event.path)


def _parse_host(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        return text, 2181
    return host.strip("[]"), int(port)
