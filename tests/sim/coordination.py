"""The real ZooKeeper adapter on a simulated connection: sessions, watches, locks and retries are the product's own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from aiozk import exc, protocol

from ackord_node.adapters.coordination_zookeeper import ZooKeeperCoordination
from tests.sim.links import Link, Program, Result
from tests.sim.service import SimCoordinationService

PASSWORD = bytes(16)

OnWatch = Callable[[protocol.WatchEvent], None]


class SimCoordination(ZooKeeperCoordination):
    """The Coordination port of one run of a node."""

    def __init__(
        self, service: SimCoordinationService, program: Program, node: str, session_timeout_ms: int
    ) -> None:
        def connect(host: str, port: int, on_watch: OnWatch) -> SimWire:
            return SimWire(service, program, node, host, port, on_watch)

        super().__init__(
            service.hosts,
            service.root,
            session_timeout_ms,
            program,
            connect,
            random.Random(service.rng.getrandbits(64)),
        )


class SimWire:
    """The client's end of one connection, as the adapter's own wire behaves at its calls."""

    def __init__(
        self,
        service: SimCoordinationService,
        program: Program,
        node: str,
        host: str,
        port: int,
        on_watch: OnWatch,
    ) -> None:
        self.host = host
        self.port = port
        self.read_loop_task: asyncio.Future[None] | None = None
        self._service = service
        self._program = program
        self._node = node
        self._on_watch = on_watch
        self._link: Link | None = None
        self._waiting: asyncio.Future[tuple[int, int]] | None = None  # for a connection, then for a session
        self._pending: dict[int, asyncio.Future[tuple[int, protocol.Response]]] = {}
        self._is_ended = False  # by the other side
        self._is_left = False  # by this one

    async def open(self) -> None:
        self._waiting = asyncio.get_running_loop().create_future()
        self._link = self._service.connect(self._node, f"{self.host}:{self.port}", self._program, self)
        await self._waiting

    async def handshake(self, timeout_ms: int, session_id: int, password: bytes) -> protocol.ConnectResponse:
        assert self._link is not None
        if self._is_ended:
            raise ConnectionResetError("the connection has ended")
        self._waiting = asyncio.get_running_loop().create_future()
        self._link.greet(timeout_ms, session_id)
        granted_ms, granted_id = await self._waiting
        return protocol.ConnectResponse(timeout=granted_ms, session_id=granted_id, password=PASSWORD)

    def start_read_loop(self) -> None:
        self.read_loop_task = asyncio.get_running_loop().create_future()
        if self._is_ended:
            self.read_loop_task.set_result(None)

    def send(
        self, request: protocol.Request, xid: int | None = None
    ) -> asyncio.Future[tuple[int, protocol.Response]]:
        answer: asyncio.Future[tuple[int, protocol.Response]] = asyncio.get_running_loop().create_future()
        assert xid is not None
        if self._is_left:
            answer.set_exception(exc.ConnectError(self.host, self.port))
            return answer
        self._pending[xid] = answer
        if not self._is_ended and self._link is not None:
            self._link.send(xid, request)
        return answer

    def is_open(self) -> bool:
        return not self._is_left and not self._is_ended and self._link is not None

    def tear_down(self) -> None:
        if not self._is_left and self._link is not None:
            self._link.leave()
        self._is_left = True
        if self.read_loop_task is not None:
            self.read_loop_task.cancel()
        if self._waiting is not None:
            self._waiting.cancel()
        pending, self._pending = self._pending, {}
        for answer in pending.values():
            if not answer.done():
                answer.set_exception(exc.ConnectError(self.host, self.port))

    # ---------------------------------------------------------------------- from the other side

    def opened(self, refused: bool) -> None:
        if self._waiting is None or self._waiting.done():
            return
        if refused:
            self._waiting.set_exception(ConnectionRefusedError("no server listens"))
        else:
            self._waiting.set_result((0, 0))

    def welcomed(self, timeout_ms: int, session_id: int) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result((timeout_ms, session_id))

    def answered(self, answers: Sequence[tuple[int | None, Result]]) -> None:
        for xid, result in answers:
            if self._is_left:
                return
            if xid is None:
                assert isinstance(result, protocol.WatchEvent)
                self._on_watch(result)
                continue
            answer = self._pending.pop(xid)
            if answer.done():
                continue
            if isinstance(result, exc.ResponseError):
                answer.set_exception(result)
            else:
                answer.set_result((0, result))

    def ended(self) -> None:
        self._is_ended = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionResetError("the connection has ended"))
        if self.read_loop_task is not None and not self.read_loop_task.done():
            self.read_loop_task.set_result(None)
