"""The engine's worker in the simulator: writes at once, syncs after a virtual delay, one after the other.

A crash in between leaves the disk with an unsynced suffix; what the node learns of a commit it learns after the sync.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from ackord_node.runtime.engine_thread import Done
from tests.sim.disk import SimDisk
from tests.sim.kernel import Process

T = TypeVar("T")


class SimWorker:
    """``sync_s`` is the range of a sync's duration; ``stalled_until`` (true time) delays every sync."""

    def __init__(self, process: Process, disk: SimDisk, sync_s: tuple[float, float]) -> None:
        self.stalled_until = 0.0
        self._process = process
        self._disk = disk
        self._sync_s = sync_s
        self._queue: deque[tuple[Callable[[], Any], Done]] = deque()
        self._is_busy = False

    def submit(self, work: Callable[[], Any], done: Done) -> None:
        self._queue.append((work, done))
        if not self._is_busy:
            self._begin()

    async def call(self, work: Callable[[], T]) -> T:
        future: asyncio.Future[T] = self._process.loop.create_future()

        def done(result: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.submit(work, done)
        return await future

    def waited_s(self) -> float:
        return 0.0

    async def close(self) -> None:
        await self.call(lambda: None)

    def _begin(self) -> None:
        work, done = self._queue.popleft()
        self._is_busy = True
        result, error = None, None
        try:
            result = work()
        except Exception as raised:
            error = raised
        world = self._process.world
        low, high = self._sync_s
        when = max(world.now + low + (high - low) * world.rng.random(), self.stalled_until)
        world.at(when, self._synced, result, error, done)

    def _synced(self, result: Any, error: Exception | None, done: Done) -> None:
        """True time: the disk does not stop when the process is paused."""
        if not self._process.is_alive:
            return
        if self._process.world.now < self.stalled_until:
            self._process.world.at(self.stalled_until, self._synced, result, error, done)
            return
        if self._disk.has_unsynced:  # work that only reads syncs nothing
            try:
                self._disk.sync()
            except Exception as raised:
                error = error or raised
        self._is_busy = False
        self._process.post(done, result, error)
        if self._queue:
            self._begin()
