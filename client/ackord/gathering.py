"""Writes wait a moment for others that go to the same node, while it owes answers to earlier ones.

A node pays for frames, log entries and commits, hardly for the writes in them. Callers who write again as soon as they
are answered fall into as many groups as there are tablets, and each group pays for a round of its own; with one frame
of writes under way to each node they go through all its tablets together. Nobody waits at a node that owes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ackord.link import NodeLink
from ackord.transport import Cancellable, Environment

GATHER_S_MIN: Final = 0.005
GATHER_S_MAX: Final = 0.1
GATHER_OPS_MAX: Final = 200  # so many have paid for a round; the node works on them while more are made ready


class Gather:
    def __init__(
        self, environment: Environment, flush: Callable[[], None], flush_soon: Callable[[], None]
    ) -> None:
        self._environment = environment
        self._flush = flush
        self._flush_soon = flush_soon
        self.timer: Cancellable | None = None  # while writes may be held
        self._is_over = False

    def holds(self, link: NodeLink, count: int) -> bool:
        """Whether ``count`` writes for this node are to wait."""
        if not link.writes_count or self._is_over or count >= GATHER_OPS_MAX:
            return False
        if self.timer is None:
            # By as much more as the node is busy, not far away: a pipeline to a distant one stays full. A tablet that
            # is stuck does not hold up the node's others.
            wait_s = min(GATHER_S_MIN + link.round_s - link.round_s_min, GATHER_S_MAX)
            self.timer = self._environment.call_later(wait_s, self._release)
        return True

    def _release(self) -> None:
        self.timer = None
        self._is_over = True
        self._flush()
        self._is_over = False

    def answered(self, link: NodeLink) -> None:
        """A node owes no answer to a write any more: what waited for it leaves once those who were answered had their
        turn, with what they write now."""
        if self.timer is not None:
            self._environment.call_soon(self._flush_soon)
