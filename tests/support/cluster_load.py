"""Load on a real cluster that keeps a record: what was acknowledged, when, and what a reader may never see.

``Writers`` put unique rows ``(writer, n)`` with n = 0, 1, 2, ... one after the other, so that every acknowledged row
must be found again, with its version, and versions of one writer must rise. ``Watchers`` read one row that only
grows from given nodes: a value below one that was acknowledged before the read began is a stale read.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

import ackord

WRITERS_COUNT = 64
SPLIT_AT = (11, 22, 32, 43, 54)  # 64 writers over six tablets
PACE_S = 0.01
LAG_PROBE_S = 0.01
ASK_ANEW_S = 0.1


class LoopLag:
    """The longest time for which the test's own event loop did not run: the noise in every gap measured on it."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._task: asyncio.Task[None] | None = None

    async def _run(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(LAG_PROBE_S)
            self.longest_s = max(self.longest_s, time.monotonic() - before - LAG_PROBE_S)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class Running:
    """Tasks that run while the ``async with`` block is under way; what they raise ends the test."""

    def __init__(self) -> None:
        self.lag = LoopLag()
        self._tasks: list[asyncio.Task[None]] = []
        self._is_over = False

    def _work(self) -> list[asyncio.Task[None]]:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        self.lag.start()
        self._tasks = self._work()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        if kind is not None:
            for task in self._tasks:
                task.cancel()
        ends = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.lag.stop()
        if kind is None:
            for end in ends:
                if isinstance(end, BaseException):
                    raise end


class Writers(Running):
    """Unique rows from many writers. ``table`` has the key (writer: int, n: int)."""

    def __init__(
        self,
        table: ackord.Table,
        *,
        count: int = WRITERS_COUNT,
        split_at: Sequence[int] = SPLIT_AT,
        pace_s: float = PACE_S,
        stop_at_failure: bool = False,
    ) -> None:
        super().__init__()
        self.table = table
        self.acks: list[list[tuple[int, int]]] = [[] for _ in range(count)]  # writer -> (n, version)
        self.times: list[list[float]] = [[] for _ in range(len(split_at) + 1)]  # tablet -> when acknowledged
        self.failures: list[ackord.Error] = []
        self.unknown: set[tuple[int, int]] = set()  # rows that may or may not be there
        self.begun_at = time.monotonic()
        self.ended_at = 0.0
        self._split_at = split_at
        self._pace_s = pace_s
        self._stop_at_failure = stop_at_failure

    def _work(self) -> list[asyncio.Task[None]]:
        self.begun_at = time.monotonic()
        return [asyncio.create_task(self._write(writer)) for writer in range(len(self.acks))]

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended_at = time.monotonic()
        await super().__aexit__(kind, error, trace)

    async def _write(self, writer: int) -> None:
        acks, times = self.acks[writer], self.times[bisect_right(self._split_at, writer)]
        await asyncio.sleep(self._pace_s * writer / len(self.acks))
        n = -1
        while not self._is_over:
            n += 1
            try:
                version = await self.table.put((writer, n), {"n": n, "of": f"writer {writer}"})
            except ackord.Error as error:
                self.failures.append(error)
                if error.outcome_unknown:
                    self.unknown.add((writer, n))
                if self._stop_at_failure:
                    return
                await asyncio.sleep(0.05)
                continue
            acks.append((n, version))
            times.append(time.monotonic())
            await asyncio.sleep(self._pace_s)

    @property
    def acks_count(self) -> int:
        return sum(map(len, self.acks))

    @property
    def rate(self) -> float:
        return self.acks_count / (self.ended_at - self.begun_at)

    def longest_gap(self, tablets: Iterable[int] | None = None, since: float = 0.0) -> float:
        """The longest time without an acknowledged write in any one of these tablets (by number)."""
        longest = 0.0
        for tablet in range(len(self.times)) if tablets is None else tablets:
            times = [self.begun_at, *self.times[tablet], self.ended_at]
            gaps = [after - before for before, after in itertools.pairwise(times) if after >= since]
            longest = max(longest, *gaps)
        return longest

    async def verify(self, stores: Iterable[ackord.Store]) -> None:
        """Every acknowledged row is there with its version, in order, on each of the stores; nothing else is."""
        for writer, acks in enumerate(self.acks):
            versions = [version for _, version in acks]
            assert versions == sorted(set(versions)), f"writer {writer}: versions do not rise"
        expected = {(writer, n): v for writer, acks in enumerate(self.acks) for n, v in acks}
        for store in stores:
            found = {row.key: row.version async for row in store.table(self.table.name).scan(timeout=30)}
            lost = sorted(expected.keys() - found.keys())
            assert not lost, f"{len(lost)} acknowledged rows are lost: {lost[:10]}"
            changed = [key for key, version in expected.items() if found[key] != version]
            assert not changed, f"rows with another version than acknowledged: {changed[:10]}"
            surplus = found.keys() - expected.keys() - self.unknown - {Watchers.KEY}
            assert not surplus, f"rows that were certainly not written: {sorted(surplus)[:10]}"


class Watchers(Running):
    """One writer counts a row up; each reader asks a store in turn and checks that it never sees less than what was
    acknowledged before it asked."""

    KEY = (0, -1)  # no writer's row

    def __init__(
        self, table: ackord.Table, stores: Sequence[ackord.Store], *, pace_s: float = PACE_S
    ) -> None:
        super().__init__()
        self._table = table
        self._readers = [store.table(table.name) for store in stores]
        self._pace_s = pace_s
        self.acked = 0
        self.reads: list[list[float]] = [[] for _ in stores]  # when each was answered
        self.stale: list[str] = []
        self.failures: list[ackord.Error] = []

    def _work(self) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self._count())]
        for number in range(len(self._readers)):
            tasks += [asyncio.create_task(self._read(number)) for _ in range(4)]
            tasks.append(asyncio.create_task(self._ask_anew(number)))
        return tasks

    async def _count(self) -> None:
        while not self._is_over:
            try:
                await self._table.update(self.KEY, increment={"n": 1}, timeout=30)
                self.acked += 1
            except ackord.Error as error:
                self.failures.append(error)
                return
            await asyncio.sleep(self._pace_s)

    async def _read(self, number: int) -> None:
        while not self._is_over and await self._ask(number):
            await asyncio.sleep(self._pace_s)

    async def _ask_anew(self, number: int) -> None:
        """Asks at a fixed pace whether or not the answers come: so a node that was paused finds questions that were
        asked long after its last news."""
        async with asyncio.TaskGroup() as asked:
            while not self._is_over:
                asked.create_task(self._ask(number))
                await asyncio.sleep(ASK_ANEW_S)

    async def _ask(self, number: int) -> bool:
        acked, asked_at = self.acked, time.monotonic()
        try:
            row = await self._readers[number].get(self.KEY, timeout=30)
        except ackord.Error as error:
            self.failures.append(error)
            return False
        now = time.monotonic()
        self.reads[number].append(now)
        seen = 0 if row is None else row["n"]
        if seen < acked:
            waited_s = now - asked_at
            self.stale.append(
                f"reader {number} saw {seen} {waited_s:.3f} s after it asked; {acked} was acknowledged"
            )
        return True
