"""The engine's own thread: one, so that commits never overlap, and cheap to hand work to.

A persistent thread with a queue costs a third of an executor's hop, which counts on the path of every write.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Done = Callable[[Any, BaseException | None], None]


class EngineWorker(Protocol):
    """Where commits run, one after the other; given by the wiring, so that a simulator can be one."""

    def submit(self, work: Callable[[], Any], done: Done) -> None:
        """Runs ``work`` after what was submitted before; ``done(result, error)`` is called on the event loop
        once what it wrote is durable."""

    async def call(self, work: Callable[[], T]) -> T:
        """The same, awaited."""

    def waited_s(self) -> float:
        """How long its thread has waited for a processor so far."""

    async def close(self) -> None:
        """Ends after the work under way."""


class EngineThread:
    """The worker of a real process. ``watch`` is called in its thread, and gives what tells anybody how long that
    thread has waited for a processor."""

    def __init__(self, watch: Callable[[], Callable[[], float]]) -> None:
        self._watch = watch
        self._waited_s: Callable[[], float] = float
        self._loop = asyncio.get_running_loop()
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], Done] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], Any], done: Done) -> None:
        self._work.put((work, done))

    async def call(self, work: Callable[[], T]) -> T:
        future: asyncio.Future[T] = self._loop.create_future()

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
        return self._waited_s()

    async def close(self) -> None:
        await self.call(lambda: None)
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        self._waited_s = self._watch()
        while (item := self._work.get()) is not None:
            work, done = item
            result, error = None, None
            try:
                result = work()
            except BaseException as raised:  # also what a native library panics with
                error = raised
            try:
                self._loop.call_soon_threadsafe(done, result, error)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more
