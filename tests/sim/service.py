"""A simulated ZooKeeper ensemble: one linear history, servers that lag behind it, sessions, watches.

As in the real one, writes and syncs go to the leader and are answered once the connection's own server has applied
what came before; reads are answered from what that server has. A connection is a first-in-first-out stream in
each direction. A session ends when nothing was heard from it for its timeout of true time. What a client gave
up may still be on its way or in the leader's hands, and is then applied if the session lives.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from aiozk import exc, protocol

from tests.sim.links import Client, Link, Program, Sent, Session, Span, World
from tests.sim.znodes import Change, Tree

SERVERS_COUNT = 3
FIRST_SESSION = 0x1000
DESCRIPTOR = "/descriptor"


class SimCoordinationService:
    """The ensemble, and the faults that a simulation may cause.

    ``delay_range``: one way between a node and its server. ``leader_range``: to the leader and agreed on there.
    ``lag_range``: until a server has applied what was agreed on. ``unknown_rate``: how often a write's answer is
    lost with its connection; the write is then lost too, or applied, or applied ``late_range`` later.
    ``watch_delay``: the most that a watch event is late; ``watch_loss_rate``: how often it never comes.
    ``seen`` counts what happened.
    """

    def __init__(self, world: World, root: str = "/ackord") -> None:
        self.world = world
        self.root = root
        self.rng = random.Random(world.rng.getrandbits(64))
        self.delay_range: Span = (0.0002, 0.002)
        self.leader_range: Span = (0.0003, 0.003)
        self.lag_range: Span = (0.0, 0.005)
        self.late_range: Span = (0.05, 5.0)
        self.unknown_rate = 0.0
        self.watch_delay = 0.0
        self.watch_loss_rate = 0.0
        self.timeout_ms_min = 0
        self.is_down = False
        self.seen: Counter[str] = Counter()
        self.descriptors: dict[int, tuple[bytes, int]] = {}
        self.tree = Tree()
        self.zxid = 0
        self.servers = [Server(self, f"zk{number}:2181") for number in range(1, SERVERS_COUNT + 1)]
        self._sessions: dict[int, Session] = {}
        self._session_id = FIRST_SESSION
        self._links: dict[Link, None] = {}
        self._holding: dict[Link, None] = {}  # whose packets wait for their node to be reachable
        self._unreachable: dict[str, None] = {}
        self._lose_next: dict[str, bool] = {}
        self._limbo: list[tuple[Link, Sent]] = []  # writes that the leader held when the service went down
        self._under_way: dict[int, tuple[int, bytes]] = {}
        self._tickets = 0

    @property
    def hosts(self) -> list[str]:
        return [server.host for server in self.servers]

    # ---------------------------------------------------------------------------------- faults

    def expire(self, node: str) -> None:
        """Ends the sessions of the node, behind its back."""
        for session in [s for s in self._sessions.values() if s.node == node]:
            self.end_session(session)
            self.seen["expired by force"] += 1

    def set_reachable(self, node: str, is_reachable: bool) -> None:
        """Packets of the node and to it wait on the way until it is reachable again."""
        if not is_reachable:
            self._unreachable[node] = None
            return
        self._unreachable.pop(node, None)
        for link in [link for link in self._holding if link.node == node]:
            del self._holding[link]
            link.flow()

    def is_reachable(self, node: str) -> bool:
        return node not in self._unreachable

    def set_down(self, is_down: bool) -> None:
        """No server accepts or keeps a connection. Sessions get their whole timeout when it is over."""
        if is_down == self.is_down:
            return
        self.is_down = is_down
        if is_down:
            for link in list(self._links):
                link.end()
            return
        for session in list(self._sessions.values()):
            session.heard_at = self.world.now
            if not session.is_watched:
                self._watch_over(session)
        limbo, self._limbo = self._limbo, []
        for link, sent in limbo:
            self.decide(link, sent)

    def lose_next_answer(self, node: str, applied: bool) -> None:
        """The connection ends in place of the answer of the node's next write, which is ``applied`` or lost."""
        self._lose_next[node] = applied

    def wipe(self) -> None:
        """Everything is gone: somebody emptied the service."""
        for session in list(self._sessions.values()):
            session.is_alive = False
        self._sessions.clear()
        for link in list(self._links):
            link.end()
        self.tree = Tree()
        self.descriptors.clear()
        self._limbo.clear()
        self._under_way.clear()
        for server in self.servers:
            server.wipe()

    def under_way(self) -> list[tuple[int, bytes]]:
        """(tablet, data) of every write of a descriptor that was sent and may still be applied."""
        return list(self._under_way.values())

    def sessions(self) -> list[tuple[str, int]]:
        """(node, session id) of every session that lives."""
        return [(session.node, session.id) for session in self._sessions.values()]

    # ---------------------------------------------------------------------------------- clients

    def connect(self, node: str, host: str, program: Program, client: Client) -> Link:
        """Begins to open a connection; the client hears of it."""
        server = next(server for server in self.servers if server.host == host)
        link = Link(self, node, server, program, client)
        self._links[link] = None
        link.up(link.accept)
        return link

    def hold(self, link: Link) -> None:
        self._holding[link] = None

    def drop_link(self, link: Link) -> None:
        self._links.pop(link, None)

    def draw(self, span: Span) -> float:
        return self.rng.uniform(*span)

    def after(self, delay_s: float, call: Callable[..., object], *args: Any) -> None:
        self.world.at(self.world.now + delay_s, call, *args)

    # --------------------------------------------------------------------------------- sessions

    def attach(self, link: Link, timeout_ms: int, session_id: int) -> None:
        """The leader's part of a handshake: a new session, or the old one on a new connection."""
        if self.is_down or not link.is_open:
            return
        if session_id == 0:
            self._session_id += 1
            timeout_s = max(timeout_ms, self.timeout_ms_min) / 1000
            session = Session(self._session_id, link.node, timeout_s, self.world.now)
            self._sessions[session.id] = session
            self._watch_over(session)
            self.seen["session"] += 1
        else:
            found = self._sessions.get(session_id)
            if found is None:
                link.down(link.client.welcomed, timeout_ms, 0)
                link.end()
                return
            session = found
            if session.link is not None:
                session.link.end()
            self.seen["reconnect"] += 1
        session.heard_at = self.world.now
        session.link, link.session = link, session
        link.down(link.client.welcomed, round(session.timeout_s * 1000), session.id)

    def end_session(self, session: Session) -> None:
        if not session.is_alive:
            return
        session.is_alive = False
        del self._sessions[session.id]
        owned = self.tree.owned_by(session.id)
        if owned:
            self.agree(owned)
        if session.link is not None:
            session.link.end()

    def _watch_over(self, session: Session) -> None:
        session.is_watched = True
        self.world.at(session.heard_at + session.timeout_s, self._look, session)

    def _look(self, session: Session) -> None:
        session.is_watched = False
        if not session.is_alive or self.is_down:
            return
        if self.world.now - session.heard_at >= session.timeout_s - 1e-9:
            self.seen["expired"] += 1
            self.end_session(session)
        else:
            self._watch_over(session)

    # ----------------------------------------------------------------------------------- writes

    def ticket(self, request: protocol.Request) -> int:
        """Notes a write of a descriptor that leaves its client."""
        if isinstance(request, protocol.SetDataRequest | protocol.Create2Request):
            tablet = _tablet(request.path)
            if tablet is not None:
                self._tickets += 1
                self._under_way[self._tickets] = (tablet, request.data)
                return self._tickets
        return 0

    def settled(self, sent: Sent) -> None:
        """Applied, refused or lost for good."""
        if sent.ticket:
            self._under_way.pop(sent.ticket, None)

    def propose(self, link: Link, sent: Sent) -> None:
        """A write leaves its server for the leader; faults decide here what becomes of it and its answer."""
        fate = "answered"
        if link.node in self._lose_next:
            fate = "applied" if self._lose_next.pop(link.node) else "lost"
        elif self.unknown_rate and self.rng.random() < self.unknown_rate:
            fate = self.rng.choice(("applied", "lost", "late"))
        if fate != "answered":
            self.seen[f"answer lost, {fate}"] += 1
        if fate == "lost":
            self.settled(sent)
            link.abandon()
        elif fate == "late":
            link.end()
            self.after(self.draw(self.late_range), self.decide, link, sent)
        elif fate == "applied":
            link.is_mute = True
            self.after(self.draw(self.leader_range), self.decide, link, sent)
        else:
            self.after(self.draw(self.leader_range), self.decide, link, sent)

    def decide(self, link: Link, sent: Sent) -> None:
        """The leader's turn: in this order everything happens."""
        if self.is_down:
            if self.rng.random() < 0.5:
                self._limbo.append((link, sent))
            else:
                self.settled(sent)
                link.abandon()
            return
        self.settled(sent)
        session = link.session
        if session is None or not session.is_alive:
            link.abandon()
            return
        if not link.is_open:
            self.seen["applied after its connection"] += 1
        if isinstance(sent.request, protocol.CloseRequest):
            self.agree([])
            link.finish(sent, protocol.CloseResponse(), self.zxid)
            session.link = None  # it ends once the answer is out
            self.end_session(session)
            return
        change = self.tree.judge(sent.request, session.id)
        if isinstance(change, exc.ResponseError):
            link.finish(sent, change, self.zxid)
            return
        self.agree([change])
        link.finish(sent, self.tree.written(change), self.zxid)

    def agree(self, changes: Sequence[Change]) -> None:
        self.zxid += 1
        self.tree.apply(changes)
        for change in changes:
            tablet = _tablet(change.path)
            if tablet is None:
                continue
            stands = self.tree.nodes.get(change.path)
            if stands is None:
                self.descriptors.pop(tablet, None)
            else:
                self.descriptors[tablet] = (stands.data, stands.version)
        for server in self.servers:
            server.learn(self.zxid, changes)


class Server:
    """One server of the ensemble: applies what was agreed on, in order, some time later."""

    def __init__(self, service: SimCoordinationService, host: str) -> None:
        self.host = host
        self._service = service
        self._due_at = 0.0
        self.wipe()

    def wipe(self) -> None:
        self.tree = Tree()
        self.applied = self._service.zxid
        self._history = object()  # what was learned of an older one is void
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._watches: dict[tuple[str, bool], dict[Link, None]] = {}  # (path, is of children) -> who asked

    def learn(self, zxid: int, changes: Sequence[Change]) -> None:
        service = self._service
        self._due_at = max(self._due_at, service.world.now + service.draw(service.lag_range))
        service.world.at(self._due_at, self._apply, self._history, zxid, changes)

    def when_applied(self, zxid: int, call: Callable[[], None]) -> None:
        if self.applied >= zxid:
            call()
        else:
            self._waiting.append((zxid, call))

    def watch(self, path: str, is_of_children: bool, link: Link) -> None:
        self._watches.setdefault((path, is_of_children), {})[link] = None

    def forget(self, link: Link) -> None:
        for links in self._watches.values():
            links.pop(link, None)

    def _apply(self, history: object, zxid: int, changes: Sequence[Change]) -> None:
        if history is not self._history:
            return
        fired = self.tree.apply(changes)
        self.applied = zxid
        for each in fired:
            for link in self._watches.pop((each.path, each.is_of_children), {}):
                link.fire(each)
        while self._waiting and self._waiting[0][0] <= zxid:
            self._waiting.popleft()[1]()


def _tablet(path: str) -> int | None:
    """The tablet whose descriptor this is."""
    return int(path.split("/")[-2], 16) if path.endswith(DESCRIPTOR) else None
