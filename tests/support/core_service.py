"""The coordination service in virtual time: one descriptor with a version, one lock with sessions.

Compare-and-sets may be applied late, their answers may be lost, and the service may be away for a node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ackord_node.core import effects as e
from ackord_node.core.types import Descriptor

if TYPE_CHECKING:
    from tests.support.core_cluster import Cluster, Node


class Service:
    def __init__(self, cluster: Cluster, descriptor: Descriptor) -> None:
        self._c = cluster
        self.descriptor = descriptor
        self.version = 0
        self.lock: tuple[str, int] | None = None
        self._sessions = 0
        self.under_way: list[Descriptor] = []  # compare-and-sets that may still be applied
        self.history = [descriptor]
        self.swap_filter: Callable[[Node, Descriptor], str] = lambda node, descriptor: (
            "normal"
        )  # scenarios: normal, lost, late, answer_lost, unsent
        self.held: list[tuple[Node, Descriptor, int]] = []

    # ----------------------------------------------------------------------------- sessions

    def connect(self, node: Node) -> None:
        if node.connected or not node.is_up:
            return
        node.connected = True
        if node.session is None:
            self._sessions += 1
            node.session = self._sessions
        self._tell_connected(node)
        self.tell(node)

    def disconnect(self, node: Node) -> None:
        """The node cannot reach the service; its session ends if that lasts."""
        if not node.connected:
            return
        node.connected = False
        self._tell_connected(node)
        self._expire_later(node)

    def _tell_connected(self, node: Node) -> None:
        self._c.at_node(node, lambda: self._c.step(node, e.CoordinationSeen(node.connected)), self._c.delay())

    def crashed(self, node: Node) -> None:
        node.connected = False
        self._expire_later(node)
        node.session = None

    def _expire_later(self, node: Node) -> None:
        session = node.session
        self._c.at(self._c.profile.session_timeout, lambda: self._expire(node, session))

    def _expire(self, node: Node, session: int | None) -> None:
        if node.session == session and node.connected:
            return
        self.end_session(node, session)

    def end_session(self, node: Node, session: int | None) -> None:
        if node.session == session:
            node.session = None
            if node.connected:
                self._sessions += 1
                node.session = self._sessions
        if self.lock == (node.name, session):
            self.lock = None
            self.tell_all()

    # ------------------------------------------------------------------------------ watches

    def tell_all(self) -> None:
        for node in self._c.nodes.values():
            self.tell(node)

    def tell(self, node: Node) -> None:
        self._c.at_node(node, lambda: self._show(node), self._c.watch_delay())

    def _show(self, node: Node) -> None:
        if not node.connected:
            return
        self._c.step(node, e.DescriptorSeen(self.descriptor, self.version))
        if node.is_up:
            holder = self.lock[0] if self.lock else None
            self._c.step(
                node, e.LockSeen(holder, self.lock is not None and self.lock == (node.name, node.session))
            )

    # ----------------------------------------------------------------------------- requests

    def read(self, node: Node) -> None:
        if not node.connected:
            return

        def seen() -> None:
            descriptor, version = self.descriptor, self.version
            self._c.to_node(node, e.DescriptorSeen(descriptor, version), self._c.delay())

        self._c.at(self._c.delay(), seen)

    def swap(self, node: Node, effect: e.Swap) -> None:
        fate = self._fate(node, effect.descriptor)

        def answer(outcome: e.SwapOutcome, delay: float) -> None:
            self._c.to_node(node, e.SwapDone(effect.ticket, outcome), delay)

        if fate == "unsent":
            answer(e.SwapOutcome.UNSENT, self._c.delay())
        elif fate == "lost":
            answer(e.SwapOutcome.UNKNOWN, 0.3)
        elif fate == "held":
            self.held.append((node, effect.descriptor, effect.version))
            answer(e.SwapOutcome.UNKNOWN, 0.3)
        else:
            incarnation = node.incarnation
            late = self._c.rng.uniform(0.3, 3.0) if fate == "late" else self._c.delay()
            if fate == "late":
                answer(e.SwapOutcome.UNKNOWN, 0.3)
            self.under_way.append(effect.descriptor)

            def apply() -> None:
                self.under_way.remove(effect.descriptor)
                won = self.apply(effect.descriptor, effect.version)
                if fate == "normal" and node.incarnation == incarnation:
                    answer(e.SwapOutcome.WON if won else e.SwapOutcome.LOST, self._c.delay())
                elif fate == "answer_lost" and node.incarnation == incarnation:
                    answer(e.SwapOutcome.UNKNOWN, 0.3)

            self._c.at(late, apply)

    def _fate(self, node: Node, descriptor: Descriptor) -> str:
        wanted = self.swap_filter(node, descriptor)
        if wanted != "normal":
            return wanted
        chance = self._c.rng.random() if self._c.has_faults else 1.0
        if not node.connected:
            return "unsent" if chance < 0.5 or chance == 1.0 else "late"
        if chance < 0.10:
            return "late"
        if chance < 0.17:
            return "answer_lost"
        return "lost" if chance < 0.20 else "normal"

    def apply(self, descriptor: Descriptor, version: int) -> bool:
        if version != self.version:
            return False
        self.descriptor = Descriptor.decode(descriptor.encode())
        self.version += 1
        self.history.append(self.descriptor)
        self._c.oracle.descriptor_changed(self.history[-2], self.descriptor)
        self.tell_all()
        return True

    def release_held(self) -> list[bool]:
        held, self.held = self.held, []
        return [self.apply(descriptor, version) for _, descriptor, version in held]

    def acquire(self, node: Node) -> None:
        session, connected = node.session, node.connected

        def apply() -> None:
            if not connected or session != node.session or not node.connected:
                outcome = e.LockOutcome.UNKNOWN
            elif self.lock is None or self.lock == (node.name, session):
                assert session is not None
                changed = self.lock is None
                self.lock = (node.name, session)
                outcome = e.LockOutcome.HELD
                if self._c.has_faults and self._c.rng.random() < 0.05:
                    outcome = e.LockOutcome.UNKNOWN
                if changed:
                    self.tell_all()
            else:
                outcome = e.LockOutcome.TAKEN
            self._c.to_node(node, e.LockDone(outcome), self._c.delay())

        self._c.at(self._c.delay(), apply)

    def release(self, node: Node) -> None:
        session = node.session

        def apply() -> None:
            if session is not None and self.lock == (node.name, session):
                self.lock = None
                self.tell_all()

        self._c.at(self._c.delay(), apply)
