"""Connections between a simulated ZooKeeper's servers and its clients, and what is on the way in them."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from aiozk import exc, protocol

from tests.sim.znodes import Fired, WriteRequest

if TYPE_CHECKING:
    from tests.sim.service import Server, SimCoordinationService

Span = tuple[float, float]  # shortest and longest, seconds; drawn evenly
Result: TypeAlias = "protocol.Response | exc.ResponseError"


class World(Protocol):
    """What the service needs of the simulated world."""

    @property
    def now(self) -> float: ...

    @property
    def rng(self) -> random.Random: ...

    def at(self, when: float, call: Callable[..., object], *args: Any) -> object: ...


class Program(Protocol):
    """The process at a client's end."""

    def now(self) -> float: ...

    def wall_ms(self) -> int: ...

    def post(self, call: Callable[..., object], *args: Any) -> None: ...


class Client(Protocol):
    """The client's end of a link; called in its process."""

    def opened(self, refused: bool) -> None: ...

    def welcomed(self, timeout_ms: int, session_id: int) -> None: ...

    def answered(self, answers: Sequence[tuple[int | None, Result]]) -> None:
        """In the order sent; without a number it is a watch event."""

    def ended(self) -> None: ...


_AGREED_ON = WriteRequest | protocol.CloseRequest  # what the leader decides


@dataclass(slots=True, eq=False)
class Session:
    id: int
    node: str
    timeout_s: float
    heard_at: float
    link: Link | None = None
    is_alive: bool = True
    is_watched: bool = False  # its timeout is being waited for


@dataclass(slots=True, eq=False)
class Sent:
    """A request on its way."""

    xid: int
    request: protocol.Request
    ticket: int  # names it among the descriptor writes that are under way; 0: it is none


class Link:
    """One connection: both ends of it and what is on the way."""

    def __init__(
        self, service: SimCoordinationService, node: str, server: Server, program: Program, client: Client
    ) -> None:
        self.node = node
        self.client = client
        self.session: Session | None = None
        self.is_open = True  # as the server sees it
        self.is_mute = False  # its next answer is lost, and it with it
        self._service = service
        self._server = server
        self._program = program
        self._is_left = False  # the client closed its end
        self._inbox: deque[Sent] = deque()
        self._is_busy = False  # the request before the inbox is with the leader
        self._up_at = self._down_at = 0.0
        self._held: deque[tuple[bool, Callable[..., object], tuple[Any, ...]]] = deque()
        self._packet: list[Sent] = []
        self._packet_at = -1.0
        self._answers: list[tuple[int | None, Result]] = []

    # ------------------------------------------------------------------------------- on the way

    def up(self, call: Callable[..., object], *args: Any) -> None:
        """Towards the server, behind everything before it."""
        service = self._service
        self._up_at = max(self._up_at, service.world.now + service.draw(service.delay_range))
        service.world.at(self._up_at, self._arrive, True, call, args)

    def down(self, call: Callable[..., object], *args: Any) -> None:
        """Towards the client, behind everything before it."""
        service = self._service
        self._down_at = max(self._down_at, service.world.now + service.draw(service.delay_range))
        service.world.at(self._down_at, self._arrive, False, call, args)

    def _arrive(self, is_up: bool, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        if self._held or not self._service.is_reachable(self.node):
            self._held.append((is_up, call, args))
            self._service.hold(self)
        elif is_up:
            call(*args)
        elif not self._is_left:
            self._program.post(call, *args)

    def flow(self) -> None:
        """The way is free again: what was held arrives in its order."""
        held, self._held = self._held, deque()
        for is_up, call, args in held:
            self._arrive(is_up, call, args)

    # ------------------------------------------------------------------------- the client's end

    def greet(self, timeout_ms: int, session_id: int) -> None:
        service = self._service
        self.up(
            lambda: service.after(
                service.draw(service.leader_range), service.attach, self, timeout_ms, session_id
            )
        )

    def send(self, xid: int, request: protocol.Request) -> None:
        """What is sent at one moment travels together."""
        sent = Sent(xid, request, self._service.ticket(request))
        now = self._service.world.now
        if self._packet_at == now:
            self._packet.append(sent)
            return
        self._packet, self._packet_at = [sent], now
        self.up(self._receive, self._packet)

    def leave(self) -> None:
        """The client closes its end. What it sent may be thrown away with it, or not."""
        self._is_left = True
        if self._held and self._service.rng.random() < 0.5:
            for is_up, call, args in self._held:
                if is_up and call == self._receive:
                    self._lose(args[0])
            self._held.clear()
        self._packet_at = -1.0
        self.up(self.end)

    # ------------------------------------------------------------------------- the server's end

    def accept(self) -> None:
        refused = self._service.is_down
        self.down(self.client.opened, refused)
        if refused:
            self.is_open = False
            self._service.drop_link(self)

    def _receive(self, packet: list[Sent]) -> None:
        if packet is self._packet:
            self._packet_at = -1.0
        if not self.is_open or self.session is None:
            self._lose(packet)
            return
        self.session.heard_at = self._service.world.now
        self._inbox.extend(packet)
        self._work()

    def _work(self) -> None:
        service = self._service
        while self._inbox and not self._is_busy:
            sent = self._inbox.popleft()
            request = sent.request
            if isinstance(request, protocol.SyncRequest):
                self._is_busy = True
                service.after(service.draw(service.leader_range), self._sync, sent)
            elif isinstance(request, _AGREED_ON):
                self._is_busy = True
                service.propose(self, sent)
            else:
                self._answers.append((sent.xid, self._read(request)))
        self._flush()

    def _read(self, request: protocol.Request) -> Result:
        assert isinstance(
            request, protocol.GetDataRequest | protocol.GetChildren2Request | protocol.ExistsRequest
        )
        answer = self._server.tree.answer(request)
        is_set = not isinstance(answer, exc.NoNode) or isinstance(request, protocol.ExistsRequest)
        if request.watch and is_set:  # only an exists watches for what is not there
            self._server.watch(request.path, isinstance(request, protocol.GetChildren2Request), self)
        return answer

    def _sync(self, sent: Sent) -> None:
        if self._service.is_down:
            self.abandon()
        else:
            self.finish(sent, protocol.SyncResponse(path="/"), self._service.zxid)

    def finish(self, sent: Sent, result: Result, zxid: int) -> None:
        """The leader has decided; the answer leaves when this server knows what was decided."""
        self._server.when_applied(zxid, lambda: self._finished(sent, result))

    def _finished(self, sent: Sent, result: Result) -> None:
        self._is_busy = False
        if self.is_mute:
            self.end()
        if self.is_open:
            self._answers.append((sent.xid, result))
        if isinstance(result, protocol.CloseResponse):
            self._flush()
            self.end()
        self._work()

    def fire(self, fired: Fired) -> None:
        service = self._service
        if service.watch_loss_rate and service.rng.random() < service.watch_loss_rate:
            service.seen["watch lost"] += 1
            return
        event = protocol.WatchEvent(type=fired.type, path=fired.path)
        if service.watch_delay:
            service.seen["watch late"] += 1
            service.after(service.rng.uniform(0.0, service.watch_delay), self._tell, event)
        else:
            self._answers.append((None, event))
            self._flush()

    def _tell(self, event: protocol.WatchEvent) -> None:
        self._answers.append((None, event))
        self._flush()

    def _flush(self) -> None:
        if self._answers:
            answers, self._answers = self._answers, []
            if self.is_open:
                self.down(self.client.answered, answers)

    def end(self) -> None:
        """The server's end is closed. What waits behind the request that the leader has may go on, or not."""
        if not self.is_open:
            return
        self.is_open = False
        service = self._service
        service.drop_link(self)
        self._server.forget(self)
        if self.session is not None and self.session.link is self:
            self.session.link = None
        if service.rng.random() < 0.5:
            self.abandon()
        self.down(self.client.ended)

    def abandon(self) -> None:
        """Nothing of what waits here goes on."""
        self.end()
        self._lose(self._inbox)
        self._inbox.clear()

    def _lose(self, packet: Sequence[Sent] | deque[Sent]) -> None:
        for sent in packet:
            self._service.settled(sent)
