"""A run: starts the systems, fills their tables, measures cell by cell in rounds, and stops everything at the end.

Within a cell the systems follow each other at once (A B C A B C over the rounds), so what slows the machine down for
some seconds or minutes hits all of them alike. The servers of those that are not measured are paused (SIGSTOP).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import Self

from bench import machine, plan
from bench.measuring import measure
from bench.results import ACKORD, Results
from bench.systems.base import BenchError, System, TableSpec, disk_bytes, pause, resume
from bench.workers import Workers
from bench.workloads import Work, table_text

SETTLE_S = 0.3  # for heartbeats and elections after a pause, before the warm-up
HALF_LOAD_CELLS = 4  # seconds of half load, in those of a cell: a p99 of less is one stall, or none
WARM_UP_SHARE = 0.25  # of the seconds of a cell, before them
MEMORY_PER_ROW_BYTES = 300  # beside key and value, in the servers that keep all rows in memory
COPIES_IN_MEMORY = 6  # three of ZooKeeper's and three of Redis's


class Run:
    """The systems and their workers; a context manager that ends them."""

    def __init__(self, chosen: Sequence[System], seconds: float, rounds: int) -> None:
        self.results = Results(options={"seconds": seconds, "rounds": rounds})
        self._seconds = seconds
        self._rounds = rounds
        self._systems = {system.name: system for system in chosen}
        self._workers: dict[str, Workers] = {name: Workers() for name in self._systems}
        self._exit = ExitStack()
        self._runs_count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    def start(self) -> None:
        for name, system in self._systems.items():
            begun = time.monotonic()
            self._exit.callback(_stop, system)
            system.start()
            self.results.systems[name] = system.describe()
            _say(f"{name} is up after {time.monotonic() - begun:.1f} s")
            pause(system)
        for workers in self._workers.values():
            self._exit.callback(workers.close)

    def load(self, tables: Sequence[TableSpec]) -> None:
        for table in tables:
            needed = table.rows_count * (table.value_bytes + MEMORY_PER_ROW_BYTES) * COPIES_IN_MEMORY
            if len(self._systems) > 1 and needed > machine.memory_available_bytes():
                raise BenchError(
                    f"{table_text(table)} need {needed >> 30} GiB of memory in all systems together"
                )
            for name, system in self._systems.items():
                begun = time.monotonic()
                with _awake(system):
                    self._workers[name].load(system.access(), table)
                _say(f"{name}: {table_text(table)} loaded in {time.monotonic() - begun:.1f} s")
        self._weigh("after loading")

    def _weigh(self, moment: str) -> None:
        for name, system in self._systems.items():
            self.results.disk.setdefault(name, {})[moment] = disk_bytes(system.folders())

    def measure(self, cells: Sequence[Work]) -> None:
        for number in range(self._rounds):
            for place, work in enumerate(cells, start=1):
                _say(
                    f"round {number + 1} of {self._rounds}, {place} of {len(cells)}: {work.name}", ends=False
                )
                for name in self._systems:
                    self._measure(name, work, self._seconds)
        _say("")

    def half_load(self) -> None:
        """Puts at half of each system's own highest rate."""
        for number in range(self._rounds):
            for name in self._systems:
                rate_max = self.results.rate_max(name)
                if rate_max:
                    _say(f"round {number + 1} of {self._rounds}: {name} at half load", ends=False)
                    self._measure(name, plan.half_load(rate_max), self._seconds * HALF_LOAD_CELLS)
        _say("")

    def cached(self) -> None:
        """Reads out of the client's cache: only Ackord has one, and not every version of it."""
        own = self._systems.get(ACKORD)
        if own is None or not own.access().has_cache():
            return
        for number in range(self._rounds):
            _say(f"round {number + 1} of {self._rounds}: {plan.CACHED.name}", ends=False)
            self._measure(ACKORD, plan.CACHED, self._seconds)
        _say("")

    def _measure(self, name: str, work: Work, seconds: float) -> None:
        """A cell that fails is noted, and the run goes on: the other systems' figures stand."""
        self._runs_count += 1
        system, workers = self._systems[name], self._workers[name]
        resting = [other for other in self._systems.values() if other is not system]
        warm_up_s = self._seconds * WARM_UP_SHARE
        try:
            with _awake(system):
                sample = measure(system, workers, work, seconds, warm_up_s, self._runs_count, resting)
                system.check(work.table)
        except BenchError as error:
            why = str(error).strip().rpartition("\n")[2]  # of a worker's traceback the last line
            self.results.failures.append(f"{name}: {work.name}: {why}")
            workers.close()  # whatever they are doing now; new ones are made
            return
        self.results.add(work.name, name, sample)

    def finish(self) -> None:
        self._weigh("at the end")


@contextmanager
def _awake(system: System) -> Iterator[None]:
    """The system's servers run within the block and are paused after it."""
    resume(system)
    time.sleep(SETTLE_S)
    try:
        yield
    finally:
        pause(system)


def _stop(system: System) -> None:
    with suppress(BenchError):  # it may not have started, or have lost a server
        resume(system)
    system.stop()


def _say(text: str, ends: bool = True) -> None:
    """A line of progress; the next one overwrites it on a terminal unless it ``ends``."""
    if sys.stderr.isatty():
        print(f"\r{text:<78}", end="\n" if ends and text else "", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)
