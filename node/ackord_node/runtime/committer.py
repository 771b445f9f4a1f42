"""One synced group commit for everything that waits, of all tablets (DESIGN section 4, third batcher).

While a commit is under way in the engine's thread, what becomes ready queues up; the next commit takes all of it.
No timer, no added latency when idle. Rule R14: a failed fsync ends the process, it is never retried.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from ackord_node.core.effects import TabletBatch
from ackord_node.ports import Batch, Clock, Engine, EngineCorrupt, EngineFull
from ackord_node.runtime.engine_thread import EngineWorker
from ackord_node.runtime.observer import Observer

log = logging.getLogger("ackord.engine")
T = TypeVar("T")

APPLY_WAIT_S = 0.2  # rows of committed entries that no other commit carried are applied after this
FULL_PAUSE_S = 0.5  # between tries while the disk has no room


class Source:
    """Whoever has something to store: one tablet."""

    def take_batch(self) -> TabletBatch | None:
        raise NotImplementedError

    def stored(self, batch: TabletBatch) -> None:
        raise NotImplementedError

    def unstored(self, batch: TabletBatch) -> None:
        raise NotImplementedError


Taken = list[tuple[Source, TabletBatch]]


class Committer:
    """``crash(reason, is_void)`` ends the process; ``is_void`` if the store as a whole is damaged."""

    def __init__(
        self,
        engine: Engine,
        worker: EngineWorker,
        clock: Clock,
        observer: Observer,
        crash: Callable[[str, bool], None],
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._observer = observer
        self._crash = crash
        self._loop = asyncio.get_running_loop()
        self._worker = worker
        self._dirty: dict[int, Source] = {}
        self._node: dict[str, bytes] = {}
        self._forget: list[int] = []
        self._is_scheduled = False
        self._is_urgent = False
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self.busy_since: float | None = None  # the commit under way began then
        self.is_full = False

    def want(self, tablet: int, source: Source, lazy: bool) -> None:
        """``lazy``: it may wait for the next commit that somebody needs, but not longer than ``APPLY_WAIT_S``."""
        self._dirty[tablet] = source
        if not lazy:
            self._is_urgent = True
            self._schedule()
        elif self._timer is None:
            self._timer = self._loop.call_later(APPLY_WAIT_S, self._timer_due)

    def put_node(self, facts: dict[str, bytes]) -> None:
        """Facts of the node, stored with the next commit."""
        self._node.update(facts)
        self._schedule()

    def forget(self, tablet: int) -> None:
        """Deletes everything of the tablet with the next commit (rule R18: only on the drop mark)."""
        self._dirty.pop(tablet, None)
        self._forget.append(tablet)
        self._schedule()

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Runs ``work`` between two commits."""
        return await self._worker.call(work)

    def waited_s(self) -> float:
        """How long the thread in which commits run has waited for a processor so far."""
        return self._worker.waited_s()

    async def close(self) -> None:
        """Ends after the commit under way."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        await self._worker.close()

    # ------------------------------------------------------------------------------- the cycle

    def _schedule(self) -> None:
        """At the end of this turn of the loop, so that whatever else it makes ready is in the same commit."""
        if self.is_full and self._timer is not None:
            return  # a full disk is tried again after a pause
        if not self._is_scheduled and self.busy_since is None and not self._is_closed:
            self._is_scheduled = True
            self._loop.call_soon(self._begin)

    def _timer_due(self) -> None:
        self._timer = None
        if self._dirty or self._node or self._forget:
            self._schedule()

    def _begin(self) -> None:
        self._is_scheduled = self._is_urgent = False
        if self.busy_since is not None or self._is_closed:
            return
        taken = self._take()
        batch = self._merged([b for _, b in taken])
        if batch.is_empty():
            return
        self.busy_since = started = self._clock.now()

        def done(_: Any, error: BaseException | None) -> None:
            self._done(taken, batch, started, error)

        self._worker.submit(lambda: self._engine.commit(batch), done)

    def _done(self, taken: Taken, batch: Batch, started: float, error: BaseException | None) -> None:
        self.busy_since = None
        self._observer.engine_commit(len(batch.log), self._clock.now() - started)
        if isinstance(error, EngineFull):
            self._refused(taken, batch, str(error))
        elif isinstance(error, EngineCorrupt):
            self._crash(f"the store is damaged as a whole (rule R14): {error}", True)
        elif error is not None:
            self._crash(f"commit failed, and a failed write is never retried (rule R14): {error!r}", False)
        else:
            self.is_full = False
            for source, tablet_batch in taken:
                source.stored(tablet_batch)
            if self._is_urgent or self._node or self._forget:
                self._schedule()

    def _take(self) -> Taken:
        taken = []
        dirty, self._dirty = self._dirty, {}
        for source in dirty.values():
            tablet_batch = source.take_batch()
            if tablet_batch is not None:
                taken.append((source, tablet_batch))
        return taken

    def _merged(self, batches: list[TabletBatch]) -> Batch:
        merged = Batch(node=self._node, forget=self._forget)
        self._node, self._forget = {}, []
        for b in batches:
            if b.clear:
                merged.clear.append(b.tablet)
            if b.cut is not None:
                merged.cut.append((b.tablet, b.cut))
            if b.trim is not None:
                merged.trim.append((b.tablet, b.trim))
            if b.meta is not None:
                merged.meta[b.tablet] = b.meta
            merged.log.extend(b.log)
            merged.rows.extend(b.rows)
            merged.requests.extend(b.requests)
            merged.history.extend(b.history)
        return merged

    def _refused(self, taken: Taken, batch: Batch, why: str) -> None:
        """No space: nothing of the batch counts; all of it is taken again after a pause."""
        if not self.is_full:
            log.error("the disk has no room: %s", why)
        self.is_full = True
        self._node = {**batch.node, **self._node}
        self._forget = batch.forget + self._forget
        for source, tablet_batch in taken:
            source.unstored(tablet_batch)
            self._dirty.setdefault(tablet_batch.tablet, source)
        if self._timer is None and not self._is_closed:
            self._timer = self._loop.call_later(FULL_PAUSE_S, self._timer_due)
