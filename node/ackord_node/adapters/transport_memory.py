"""The peer links of a cluster that lives in one process, for tests: nothing random, nothing timed by itself.

Messages cross as packed bytes, so that nothing is shared, and arrive in a later turn of the loop: those of
one turn together, urgent ones first, in order within a priority. A test can lose, delay and cut them one
way, and end or refuse the links of a pair.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from ackord.wire.frames import packb, unpackb
from ackord_node.adapters.peer_queue import BULK_BYTES_MAX, URGENT_COUNT_MAX
from ackord_node.ports import PeerListener

CallSoon = Callable[[Callable[[], None]], Any]
CallLater = Callable[[float, Callable[[], None]], Any]


class MemoryNetwork:
    """Connects the ``MemoryPeerTransport`` of every name; links come up as soon as both ends were started.

    ``drop`` is asked for every message (from, to, message) and loses it by answering True. ``call_soon`` and
    ``call_later`` default to the running loop's.
    """

    def __init__(self, call_soon: CallSoon | None = None, call_later: CallLater | None = None) -> None:
        self._call_soon = call_soon
        self._call_later = call_later
        self._members: dict[str, MemoryPeerTransport] = {}
        self._silent: set[tuple[str, str]] = set()
        self._broken: dict[tuple[str, str], bool] = {}  # one way -> refused
        self._delays_s: dict[tuple[str, str], float] = {}
        self.drop: Callable[[str, str, Any], bool] | None = None

    def transport(
        self, name: str, urgent_count_max: int = URGENT_COUNT_MAX, bulk_bytes_max: int = BULK_BYTES_MAX
    ) -> MemoryPeerTransport:
        """The (new) transport of one node; it takes the place of an earlier one of that name."""
        return MemoryPeerTransport(self, name, urgent_count_max, bulk_bytes_max)

    # ------------------------------------------------------------------ faults

    def cut(self, source: str, target: str) -> None:
        """Messages of one direction vanish while its link looks fine, as towards a stopped process."""
        self._silent.add((source, target))

    def delay(self, source: str, target: str, seconds: float) -> None:
        """Messages of one direction arrive so much later, still in order; 0 ends the delay."""
        self._delays_s[(source, target)] = seconds

    def disconnect(self, source: str, target: str, refused: bool = False) -> None:
        """Ends the link of one direction and keeps it down; what is under way on it is lost."""
        self._broken[(source, target)] = refused
        self._settle(source, target)

    def heal(self, source: str, target: str) -> None:
        """Undoes ``cut``, ``delay`` and ``disconnect`` of one direction."""
        self._silent.discard((source, target))
        self._delays_s.pop((source, target), None)
        self._broken.pop((source, target), None)
        self._settle(source, target)

    # ------------------------------------------------------------------ for the transports

    def join(self, member: MemoryPeerTransport) -> None:
        self._members[member.name] = member
        for other in sorted(self._members):
            if other != member.name:
                self._settle(member.name, other)
                self._settle(other, member.name)

    def leave(self, member: MemoryPeerTransport) -> None:
        if self._members.get(member.name) is member:
            del self._members[member.name]
            for other in sorted(self._members):
                self._settle(other, member.name)

    def soon(self, callback: Callable[[], None]) -> None:
        (self._call_soon or asyncio.get_running_loop().call_soon)(callback)

    def after_delay(self, source: str, target: str, callback: Callable[[], None]) -> None:
        seconds = self._delays_s.get((source, target), 0.0)
        if seconds:
            (self._call_later or asyncio.get_running_loop().call_later)(seconds, callback)
        else:
            callback()

    def deliver(self, source: str, target: str, incarnation: int, packed: list[bytes]) -> None:
        member = self._members.get(target)
        if member is None or (source, target) in self._silent:
            return
        messages = [unpackb(item) for item in packed]
        if self.drop is not None:
            messages = [message for message in messages if not self.drop(source, target, message)]
        if messages:
            member.receive(source, incarnation, messages)

    def restart_link(self, source: str, target: str) -> None:
        """The receiver refused what came: the link ends, and comes up again at once."""
        member = self._members.get(source)
        if member is not None:
            member.settle(target, False, False)
            self._settle(source, target)

    def _settle(self, source: str, target: str) -> None:
        """Tells ``source`` what its link towards ``target`` is like now."""
        member = self._members.get(source)
        if member is None:
            return
        refused = self._broken.get((source, target), target not in self._members)
        up = target in self._members and (source, target) not in self._broken
        member.settle(target, up, refused)


class MemoryPeerTransport:
    """``PeerTransport`` on a ``MemoryNetwork``."""

    def __init__(self, network: MemoryNetwork, name: str, urgent_count_max: int, bulk_bytes_max: int) -> None:
        self.name = name
        self._network = network
        self._urgent_count_max = urgent_count_max
        self._bulk_bytes_max = bulk_bytes_max
        self._listener: PeerListener | None = None
        self._incarnation = 0
        self._links: dict[str, _MemoryLink] = {}

    def set_cluster_id(self, cluster_id: str) -> None:
        """Nothing to check: a network in memory belongs to one cluster."""

    async def start(self, listener: PeerListener, incarnation: int) -> None:
        self._listener = listener
        self._incarnation = incarnation
        self._network.join(self)

    async def close(self) -> None:
        self._listener = None
        self._links.clear()
        self._network.leave(self)

    def send(self, node: str, message: Any, urgent: bool = False) -> bool:
        link = self._links.get(node)
        if link is None or not link.is_up:
            return False
        packed = packb(message)
        if urgent:
            if len(link.urgent) >= self._urgent_count_max:
                return False
            link.urgent.append(packed)
        else:
            if link.bulk and link.bulk_bytes + len(packed) > self._bulk_bytes_max:
                return False
            link.bulk.append(packed)
            link.bulk_bytes += len(packed)
        if not link.is_scheduled:
            link.is_scheduled = True
            self._network.soon(lambda: self._flush(node, link))
        return True

    def is_up(self, node: str) -> bool:
        link = self._links.get(node)
        return link is not None and link.is_up

    def queued_bytes(self, node: str) -> int:
        link = self._links.get(node)
        return 0 if link is None else link.bulk_bytes + sum(map(len, link.urgent))

    # ------------------------------------------------------------------ for the network

    def settle(self, node: str, up: bool, refused: bool) -> None:
        """The state of the link towards ``node`` now; reports a change."""
        link = self._links.get(node)
        if link is not None and (link.is_up, link.refused) == (up, refused and not up):
            return
        self._links[node] = _MemoryLink(up, refused and not up)  # a new one: what waited in the old is lost
        if self._listener is None:
            return
        if up:
            self._listener.peer_up(node)
        else:
            self._listener.peer_down(node, refused)

    def receive(self, node: str, incarnation: int, messages: list[Any]) -> None:
        if self._listener is None:
            return
        try:
            self._listener.messages_received(node, incarnation, messages)
        except ValueError:
            self._network.restart_link(node, self.name)

    def _flush(self, node: str, link: _MemoryLink) -> None:
        link.under_way.append([*link.urgent, *link.bulk])
        link.urgent.clear()
        link.bulk.clear()
        link.bulk_bytes = 0
        link.is_scheduled = False
        self._network.after_delay(self.name, node, lambda: self._arrive(node, link))

    def _arrive(self, node: str, link: _MemoryLink) -> None:
        packed = link.under_way.popleft()  # the oldest, whichever delay this call comes from: order is kept
        if self._links.get(node) is link:
            self._network.deliver(self.name, node, self._incarnation, packed)


class _MemoryLink:
    __slots__ = ("bulk", "bulk_bytes", "is_scheduled", "is_up", "refused", "under_way", "urgent")

    def __init__(self, is_up: bool, refused: bool) -> None:
        self.is_up = is_up
        self.refused = refused
        self.urgent: deque[bytes] = deque()
        self.bulk: deque[bytes] = deque()
        self.bulk_bytes = 0
        self.under_way: deque[list[bytes]] = deque()  # batches that left and did not arrive yet
        self.is_scheduled = False
