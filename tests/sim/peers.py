"""The links between the nodes: the port ``PeerTransport`` on the simulated network.

As the HTTP one: a node opens one link to every peer and sends over it, the peer accepts it and an older one of
that node ends; a link is opened only once both sides know the cluster id; urgent messages do not wait for bulk
ones. Single messages may be lost, come twice, or come late and out of order, as the core claims to bear.
"""

from __future__ import annotations

from typing import Any

from ackord.wire.frames import packb, unpackb
from ackord_node.ports import PeerListener
from tests.sim.kernel import Process, Timer
from tests.sim.network import Host, Lane, Network

HELLO_TIMEOUT_S = 2.0
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.05, 0.5
BULK_BYTES_MAX = 32 * 1024 * 1024
UP, DOWN, REFUSED = "up", "down", "refused"


class SimPeerTransport:
    """One incarnation of one node."""

    def __init__(self, network: Network, process: Process, name: str, peers: list[str]) -> None:
        self.network = network
        self.process = process
        self.name = name
        self.incarnation = 0
        self.cluster_id: str | None = None
        self.listener: PeerListener | None = None
        self.accepted: dict[str, PeerLink] = {}
        self.is_closed = False
        self._attempts = {peer: _Attempts(self, peer) for peer in sorted(peers) if peer != name}

    def set_cluster_id(self, cluster_id: str) -> None:
        self.cluster_id = cluster_id

    async def start(self, listener: PeerListener, incarnation: int) -> None:
        self.listener = listener
        self.incarnation = incarnation
        for attempts in self._attempts.values():
            attempts.begin()

    async def close(self) -> None:
        self.is_closed = True
        self.listener = None
        for attempts in self._attempts.values():
            attempts.close()
        for link in list(self.accepted.values()):
            link.break_off()

    def send(self, node: str, message: Any, urgent: bool = False) -> bool:
        attempts = self._attempts.get(node)
        link = attempts.link if attempts is not None and attempts.state == UP else None
        return link is not None and link.send(packb(message), urgent)

    def is_up(self, node: str) -> bool:
        attempts = self._attempts.get(node)
        return attempts is not None and attempts.state == UP

    def queued_bytes(self, node: str) -> int:
        attempts = self._attempts.get(node)
        return 0 if attempts is None or attempts.link is None else attempts.link.queued_bytes

    # ------------------------------------------------------------------- the receiving side

    def accept(self, link: PeerLink) -> str | None:
        """A peer's hello arrived: why it is refused, None if it is welcome."""
        if self.listener is None or self.cluster_id is None:
            return "starting or stopping"
        if link.owner.cluster_id != self.cluster_id:
            return "another cluster"
        older = self.accepted.get(link.owner.name)
        if older is not None:
            older.break_off()
        self.accepted[link.owner.name] = link
        self._attempts[link.owner.name].hurry()
        return None

    def receive(self, link: PeerLink | None, node: str, incarnation: int, packed: list[bytes]) -> None:
        """In this process: messages of a link, or late ones that outlived theirs."""
        if self.listener is None or (link is not None and self.accepted.get(node) is not link):
            return
        try:
            self.listener.messages_received(node, incarnation, [unpackb(item) for item in packed])
        except ValueError as error:
            self.network.trace.note(f"{self.name} drops the link of {node}: {error}")
            if link is not None:
                link.break_off()


class _Attempts:
    """Connects to one peer, again and again; lives in the sender's process."""

    def __init__(self, owner: SimPeerTransport, peer: str) -> None:
        self.owner = owner
        self.peer = peer
        self.state: str | None = None
        self.link: PeerLink | None = None
        self._pause_s = 0.0
        self._retry: Timer | None = None
        self._is_closed = False

    def begin(self) -> None:
        self._retry = None
        if self._is_closed or not self.owner.process.is_alive:
            return
        network, owner = self.owner.network, self.owner
        link = self.link = PeerLink(owner, self.peer, self)
        network.opened(link)
        link.timeout = network.world.after(HELLO_TIMEOUT_S, link.end, DOWN)
        network.carry(link.bulk_lane, link.arrive_hello)

    def hurry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self.owner.process.post(self.begin)
            self._retry = None

    def became(self, link: PeerLink, state: str) -> None:
        """In the owner's process: what the link is now."""
        if link is not self.link or self._is_closed:
            return
        listener = self.owner.listener
        if state == UP:
            self._pause_s = 0.0
            if link.is_broken:
                return
        else:
            self.link = None
            rng = self.owner.process.rng
            self._pause_s = min(max(BACKOFF_FIRST_S, self._pause_s * 2), BACKOFF_MAX_S)
            world = self.owner.network.world
            pause_s = self._pause_s * rng.uniform(0.75, 1.25)
            self._retry = world.after(pause_s, self.owner.process.post, self.begin)
        if state == self.state:
            return
        self.state = state
        if listener is None:
            return
        if state == UP:
            listener.peer_up(self.peer)
        else:
            listener.peer_down(self.peer, state == REFUSED)

    def close(self) -> None:
        self._is_closed = True
        self.state = None
        if self._retry is not None:
            self._retry.cancel()
        if self.link is not None:
            self.link.break_off()


class PeerLink:
    """One connection, from hello to its end."""

    def __init__(self, owner: SimPeerTransport, peer: str, attempts: _Attempts) -> None:
        self.owner = owner
        self.peer = peer
        self.is_broken = False
        self.timeout: Timer | None = None
        self.queued_bytes = 0
        self._attempts = attempts
        self._network = owner.network
        self._acceptor: Host | None = None
        self._is_scheduled = False
        self._urgent: list[bytes] = []
        self._bulk: list[bytes] = []
        self.urgent_lane = Lane(owner.name, peer, self)
        self.bulk_lane = Lane(owner.name, peer, self)
        self._back_lane = Lane(peer, owner.name, self)

    def ends(self) -> tuple[Process, Process]:
        mine = self.owner.process
        return mine, self._acceptor.process if self._acceptor is not None else mine

    def break_off(self) -> None:
        if self.is_broken:
            return
        self.is_broken = True
        self._network.ended(self)
        acceptor = self._acceptor
        accepted = acceptor.peers.accepted if acceptor is not None and acceptor.peers is not None else {}
        if accepted.get(self.owner.name) is self:
            del accepted[self.owner.name]
        self._network.tell_broken(self.peer, self.owner.name, lambda: self.end(DOWN))

    def end(self, state: str) -> None:
        """The sender gets to know that there is no link (any more)."""
        self.is_broken = True
        self._network.ended(self)
        if self.timeout is not None:
            self.timeout.cancel()
        self.owner.process.post(self._attempts.became, self, state)

    # --------------------------------------------------------------------------------- hello

    def arrive_hello(self) -> None:
        host = self._network.hosts.get(self.peer)
        if host is None or not host.process.is_alive:
            if self.peer not in self._network.silent:
                self._network.carry(self._back_lane, self.end, REFUSED)
        else:
            self._acceptor = host
            host.process.post(self._judge, host)

    def _judge(self, host: Host) -> None:
        if self.is_broken:
            return
        refusal = host.peers.accept(self) if host.peers is not None else "starting"
        if refusal is None:
            self._network.carry(self._back_lane, self._welcomed)
        else:
            self._network.carry(self._back_lane, self.end, DOWN)

    def _welcomed(self) -> None:
        if self.timeout is not None:
            self.timeout.cancel()
        self.owner.process.post(self._attempts.became, self, UP)

    # ------------------------------------------------------------------------------ messages

    def send(self, packed: bytes, urgent: bool) -> bool:
        if self.is_broken:
            return True  # as into a socket whose end is not known yet
        if not urgent and self._bulk and self.queued_bytes + len(packed) > BULK_BYTES_MAX:
            return False
        (self._urgent if urgent else self._bulk).append(packed)
        self.queued_bytes += len(packed)
        if not self._is_scheduled:
            self._is_scheduled = True
            self.owner.process.loop.call_soon(self._flush)
        return True

    def _flush(self) -> None:
        self._is_scheduled = False
        urgent, self._urgent = self._urgent, []
        bulk, self._bulk = self._bulk, []
        self.queued_bytes = 0
        if self.is_broken:
            return
        for lane, packed in ((self.urgent_lane, urgent), (self.bulk_lane, bulk)):
            if packed:
                left = self._mistreated(packed)
                if left:
                    self._network.carry(lane, self._arrive, left)

    def _mistreated(self, packed: list[bytes]) -> list[bytes]:
        """What of the packet goes its normal way."""
        knobs, rng, network = self._network.knobs, self._network.world.rng, self._network
        if not (knobs.loss_rate or knobs.duplicate_rate or knobs.late_rate):
            return packed
        left = []
        for item in packed:
            chance = rng.random()
            if chance < knobs.loss_rate:
                network.trace.count("message lost")
                continue
            if chance < knobs.loss_rate + knobs.duplicate_rate:
                network.trace.count("message duplicated")
                self._later(item, rng.uniform(0.0, knobs.late_s[1]))
            elif chance < knobs.loss_rate + knobs.duplicate_rate + knobs.late_rate:
                network.trace.count("message reordered")
                self._later(item, rng.uniform(*knobs.late_s))
                continue
            left.append(item)
        return left

    def _later(self, item: bytes, delay_s: float) -> None:
        self._network.world.after(delay_s, self._arrive_late, item)

    def _arrive_late(self, item: bytes) -> None:
        host = self._network.hosts.get(self.peer)
        if host is None or host.peers is None or self._network.is_cut(self.owner.name, self.peer):
            return
        self._network.trace.hashed(self.owner.name, self.peer, item)
        host.process.post(host.peers.receive, None, self.owner.name, self.owner.incarnation, [item])

    def _arrive(self, packed: list[bytes]) -> None:
        host = self._acceptor
        assert host is not None
        trace = self._network.trace
        for item in packed:
            trace.hashed(self.owner.name, self.peer, item)
            if trace.is_wordy:
                trace.detail(f"{self.owner.name} -> {self.peer} {unpackb(item)!r:.200}")
        host.process.post(host.peers.receive, self, self.owner.name, self.owner.incarnation, packed)
