"""When each tablet of a node is asked what time has made due, and the beacons that serve all tablets of a node pair.

A tablet at rest costs nothing between two times that it names itself: only those that took an event since, or whose
time has come, are asked.
"""

from __future__ import annotations

import asyncio
import heapq
from typing import TYPE_CHECKING

from ackord_node.core import messages as m
from ackord_node.core.peer_beacons import PeerBeacons
from ackord_node.core.replica import Replica
from ackord_node.runtime.tablet_host import TabletHost

if TYPE_CHECKING:
    from ackord_node.runtime.node import Node

TICK_MIN_S, TICK_MAX_S = 0.005, 0.03  # between two looks; at what took an event about the longer one


class Clockwork:
    def __init__(self, node: Node) -> None:
        settings = node.settings
        self._node = node
        peers = sorted(peer for peer in settings.addresses if peer != settings.name)
        self.beacons = PeerBeacons(
            node.incarnation, settings.timing, peers, self._replica_of, self._send, self._wake
        )
        self._active: dict[TabletHost, None] = {}  # took an event since they were last asked, in that order
        self._due: list[tuple[float, int, TabletHost]] = []  # a heap: when each of the others is to be asked
        self._asked_at: dict[TabletHost, float] = {}  # the earliest time in the heap
        self._look_at = 0.0  # those that took an event are not asked before: a busy one takes dozens
        self._count = 0

    def wake(self, host: TabletHost) -> None:
        """The tablet took an event: what is due there may have changed."""
        self._active[host] = None

    def forget(self, host: TabletHost) -> None:
        self.beacons.role_changed(host.tablet, None)
        self._asked_at.pop(host, None)

    def received(self, peer: str, incarnation: int, message: m.Message) -> None:
        """A message for no single tablet; anything else is for a tablet that is not here."""
        node = self._node
        if message[0] == m.PEER_BEACON:
            flags = m.FLAG_SHARES + m.FLAG_COORDINATION * node.coordination_is_up
            flags += m.FLAG_FIT * (node.health.reason is None) + m.FLAG_STAYS * (not node.is_stopping)
            wall_ms, now = node.clock.wall_ms(), node.clock.now()
            self.beacons.beacon(peer, incarnation, message, flags, wall_ms, now)
        elif message[0] == m.PEER_BEACON_CONFIRM:
            self.beacons.confirmed(peer, incarnation, message, node.clock.now())

    async def run(self, peers_up: set[str]) -> None:
        before = self._node.clock.now()
        while True:
            now = self._node.clock.now()
            if now - before > self._node.settings.timing.confirm_timeout / 4:
                for host in self._node.hosts.values():
                    host.replica.state.paused_at = now
            before = now
            self.beacons.tick(peers_up, now)
            self._ask(now)
            due = self._due[0][0] if self._due else now + TICK_MAX_S
            next_at = min(now + TICK_MAX_S, self.beacons.due, due)
            await asyncio.sleep(max(next_at - now, TICK_MIN_S))

    def _ask(self, now: float) -> None:
        due, asked_at = self._due, self._asked_at
        hosts: dict[TabletHost, None] = {}
        while due and due[0][0] <= now:
            when, _, host = heapq.heappop(due)
            if asked_at.get(host) == when:
                del asked_at[host]
                hosts[host] = None
        if now >= self._look_at:
            self._look_at = now + TICK_MAX_S - TICK_MIN_S  # less, as a timer may fire a little early
            hosts |= self._active
            self._active = {}
        for host in hosts:
            if self._node.hosts.get(host.tablet) is not host:
                continue
            when = max(host.tick(now), now)
            self._active.pop(host, None)  # its own tick's event is looked at here
            if when < asked_at.get(host, float("inf")):
                self._count += 1
                asked_at[host] = when
                heapq.heappush(due, (when, self._count, host))

    def _replica_of(self, tablet: int) -> Replica | None:
        host = self._node.hosts.get(tablet)
        return host.replica if host is not None else None

    def _wake(self, tablet: int) -> None:
        host = self._node.hosts.get(tablet)
        if host is not None:
            self._active[host] = None

    def _send(self, peer: str, message: m.Message) -> None:
        self._node.send(peer, message, True)
