"""A listener that records what a coordination adapter tells, and a real clock, for tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class SystemClock:
    def now(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000


class Recorder:
    """Implements CoordinationListener; keeps the latest state and the whole history."""

    def __init__(self) -> None:
        self.descriptors: dict[int, tuple[bytes | None, int]] = {}
        self.locks: dict[int, tuple[bytes | None, bool]] = {}
        self.sessions: list[bool] = []
        self.history: list[tuple[object, ...]] = []
        self.tables_changes = 0
        self.nodes_changes = 0
        self._changed = asyncio.Event()

    @property
    def is_connected(self) -> bool:
        return bool(self.sessions) and self.sessions[-1]

    def descriptor_changed(self, tablet: int, data: bytes | None, version: int) -> None:
        self.descriptors[tablet] = (data, version)
        self._note("descriptor", tablet, data, version)

    def lock_changed(self, tablet: int, holder: bytes | None, mine: bool) -> None:
        self.locks[tablet] = (holder, mine)
        self._note("lock", tablet, holder, mine)

    def tables_changed(self) -> None:
        self.tables_changes += 1
        self._note("tables")

    def nodes_changed(self) -> None:
        self.nodes_changes += 1
        self._note("nodes")

    def session_changed(self, connected: bool) -> None:
        self.sessions.append(connected)
        self._note("session", connected)

    def _note(self, *event: object) -> None:
        self.history.append(event)
        self._changed.set()

    async def until(self, holds: Callable[[], bool], timeout_s: float = 5.0) -> None:
        """Returns once ``holds`` after an event; TimeoutError names what was told."""
        try:
            async with asyncio.timeout(timeout_s):
                while not holds():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            raise TimeoutError(f"not told in {timeout_s} s; told: {self.history[-20:]}") from error
