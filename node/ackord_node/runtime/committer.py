"""One synced group commit for everything that waits, of all tablets (DESIGN section 4, third batcher).

While a commit is under way in the engine's thread, what becomes ready queues up; the next commit takes all of it.
No timer, no added latency when idle. Rule R14: a failed fsync ends the process, it is never retried.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ackord_node.core.effects import TabletBatch
from ackord_node.ports import Batch, Clock, Engine, EngineCorrupt, EngineFull
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


class Committer:
    def __init__(
        self, engine: Engine, clock: Clock, observer: Observer, crash: Callable[[str, bool], None]
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._observer = observer
        self._crash = crash
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._dirty: dict[int, Source] = {}
        self._node: dict[str, bytes] = {}
        self._forget: list[int] = []
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._apply_timer: asyncio.TimerHandle | None = None
        self.busy_since: float | None = None  # the commit under way began then
        self.is_full = False

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="committer")

    def want(self, tablet: int, source: Source, lazy: bool) -> None:
        """``lazy``: it may wait for the next commit that somebody needs, but not longer than ``APPLY_WAIT_S``."""
        self._dirty[tablet] = source
        if not lazy:
            self._wanted.set()
        elif self._apply_timer is None:
            self._apply_timer = asyncio.get_running_loop().call_later(APPLY_WAIT_S, self._apply)

    def _apply(self) -> None:
        self._apply_timer = None
        if self._dirty:
            self._wanted.set()

    def put_node(self, facts: dict[str, bytes]) -> None:
        """Facts of the node, stored with the next commit."""
        self._node.update(facts)
        self._wanted.set()

    def forget(self, tablet: int) -> None:
        """Deletes everything of the tablet with the next commit (rule R18: only on the drop mark)."""
        self._dirty.pop(tablet, None)
        self._forget.append(tablet)
        self._wanted.set()

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Runs ``work`` between two commits."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def close(self) -> None:
        """Commits what waits and ends; bounded by one commit."""
        if self._apply_timer is not None:
            self._apply_timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(wait=True)

    # ------------------------------------------------------------------------------- the loop

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            taken = self._take()
            batch = self._merged([b for _, b in taken])
            if batch.is_empty():
                continue
            try:
                await self._commit(batch)
            except EngineFull as error:
                self._refused(taken, batch, str(error))
                await asyncio.sleep(FULL_PAUSE_S)
                continue
            except EngineCorrupt as error:
                self._crash(f"the store is damaged as a whole (rule R14): {error}", True)
                return
            except Exception as error:
                self._crash(
                    f"commit failed, and a failed write is never retried (rule R14): {error!r}", False
                )
                return
            self.is_full = False
            for source, tablet_batch in taken:
                source.stored(tablet_batch)

    def _take(self) -> list[tuple[Source, TabletBatch]]:
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
        return merged

    async def _commit(self, batch: Batch) -> None:
        self.busy_since = started = self._clock.now()
        try:
            await self.in_thread(lambda: self._engine.commit(batch))
        finally:
            self.busy_since = None
        self._observer.engine_commit(len(batch.log), self._clock.now() - started)

    def _refused(self, taken: list[tuple[Source, TabletBatch]], batch: Batch, why: str) -> None:
        """No space: nothing of the batch counts; all of it is taken again later."""
        if not self.is_full:
            log.error("the disk has no room: %s", why)
        self.is_full = True
        self._node = {**batch.node, **self._node}
        self._forget = batch.forget + self._forget
        for source, tablet_batch in taken:
            source.unstored(tablet_batch)
            self._dirty.setdefault(tablet_batch.tablet, source)
        self._wanted.set()
