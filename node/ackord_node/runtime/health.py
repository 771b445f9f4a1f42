"""Watches the node itself: the event loop's lag, a disk that is slow or nearly full.

Liveness of DESIGN section 2: a coordinator whose own disk is too slow hands over, and below the free-space reserve a
node leaves the in-sync sets. A machine without a free processor makes commits late too, on all nodes of it at once,
and a hand-over would only add to its work: what the process was not run for is not held against the disk.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ackord_node.ports import Clock, Engine
from ackord_node.runtime.committer import Committer
from ackord_node.runtime.observer import Observer

log = logging.getLogger("ackord.health")

PROBE_S = 0.05
DISK_PROBE_S = 0.5
WELL_AFTER_S = 3.0


class Health:
    """``on_change`` is called with the reason why the disk is unfit, None once it is well again."""

    def __init__(
        self,
        engine: Engine,
        committer: Committer,
        clock: Clock,
        observer: Observer,
        slow_commit_s: float,
        on_change: Callable[[str | None], None],
    ) -> None:
        self._engine = engine
        self._committer = committer
        self._clock = clock
        self._observer = observer
        self._slow_commit_s = slow_commit_s
        self._on_change = on_change
        self.reason: str | None = None
        self.lag_max_s = 0.0
        self._free_bytes = 1
        self._unfit_at = float("-inf")
        self._waited_s = 0.0  # the engine's thread, for a processor, when that was asked last
        self._busy_since: float | None = None
        self._lost_s = 0.0  # of the commit that is under way since then

    async def run(self) -> None:
        probed_at = 0.0
        while True:
            before = self._clock.now()
            await asyncio.sleep(PROBE_S)
            now = self._clock.now()
            lag = max(0.0, now - before - PROBE_S)
            self.lag_max_s = max(self.lag_max_s, lag)
            self._observer.loop_lag(lag)
            if now - probed_at >= DISK_PROBE_S:
                probed_at = now
                self._free_bytes = self._engine.free_bytes()
            self.look(now, lag)

    def look(self, now: float, lag: float) -> None:
        """Judges the disk; ``lag``: how late the loop came to it."""
        reason = None
        if self._commit_s(now, lag) > self._slow_commit_s:
            reason = "the disk is slow: a commit takes longer than confirm_timeout_ms"
        elif self._committer.is_full or self._free_bytes <= 0:
            reason = "the disk is full: less than the reserve is free"
        if reason is not None:
            self._unfit_at = now
        elif now - self._unfit_at < WELL_AFTER_S:
            return  # a disk that stutters is not well yet
        if reason != self.reason:
            self.reason = reason
            log.warning("%s", reason or "the disk is well again")
            self._on_change(reason)

    def _commit_s(self, now: float, lag: float) -> float:
        """How long the commit under way has taken, less what the engine's thread waited for a processor, and less
        what the loop came late for: it hears only then what has become of a commit. The turns of a busy loop, shorter
        than ``PROBE_S``, hide nothing."""
        waited_s = self._committer.waited_s()
        lost_s, self._waited_s = waited_s - self._waited_s, waited_s
        if lag > PROBE_S:
            lost_s += lag
        since = self._committer.busy_since
        if since != self._busy_since:
            self._busy_since, self._lost_s = since, 0.0
        self._lost_s += lost_s
        return now - since - self._lost_s if since is not None else 0.0
