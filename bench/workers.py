"""The processes in which the callers live: one pool for each system, kept for the whole run.

A worker imports what its own system's client needs and nothing of the others, opens its connections before each
cell, and closes them after it. All processes of a cell begin together: they connect and warm up, say that they are
ready, and wait for the word.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import uvloop

from bench.systems.base import Access, BenchError, TableSpec
from bench.workloads import Calls, Outcome, Values, Work, run_work, warm_up

LOAD_PATIENCE_S = 1800.0
PATIENCE_S = 120.0  # beyond the seconds that a cell runs
READY = "ready"
LOAD_ROWS_COUNT = 100
LOADERS_COUNT = 16


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker shall do next."""

    access: Access
    work: Work
    seconds: float
    warm_up_s: float
    number: int
    run: int


@dataclass(frozen=True, slots=True)
class Load:
    """Create the table and its rows."""

    access: Access
    table: TableSpec


class Worker:
    """One process, as the driver sees it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_main, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send(self, message: Any) -> None:
        self._pipe.send(message)

    def receive(self, patience_s: float) -> Any:
        if not self._pipe.poll(patience_s):
            raise BenchError(f"a worker process did not answer within {patience_s:.0f} s")
        try:
            answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise BenchError("a worker process has ended") from None
        if isinstance(answer, str) and answer != READY:
            raise BenchError(f"a worker failed:\n{answer}")
        return answer

    def close(self) -> None:
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class Workers:
    """As many as the largest cell so far needed."""

    def __init__(self) -> None:
        self._all: list[Worker] = []

    def _first(self, count: int) -> Sequence[Worker]:
        while len(self._all) < count:
            self._all.append(Worker())
        return self._all[:count]

    def load(self, access: Access, table: TableSpec) -> None:
        """Returns when the table and all its rows are there."""
        (worker,) = self._first(1)
        worker.send(Load(access, table))
        worker.receive(LOAD_PATIENCE_S)

    def prepare(
        self, access: Access, work: Work, seconds: float, warm_up_s: float, run: int
    ) -> Sequence[Worker]:
        """Those that are ready to do the work when ``go`` is said."""
        chosen = self._first(work.processes)
        for number, worker in enumerate(chosen):
            worker.send(Order(access, work, seconds, warm_up_s, number, run))
        for worker in chosen:
            worker.receive(PATIENCE_S)
        return chosen

    @staticmethod
    def go(chosen: Sequence[Worker], seconds: float) -> list[Outcome]:
        for worker in chosen:
            worker.send("go")
        return [worker.receive(seconds + PATIENCE_S) for worker in chosen]

    @staticmethod
    def part(chosen: Sequence[Worker]) -> None:
        """They close their connections; returns when all have."""
        for worker in chosen:
            worker.send("part")
        for worker in chosen:
            worker.receive(PATIENCE_S)

    def close(self) -> None:
        for worker in self._all:
            worker.close()
        self._all.clear()


def _main(pipe: Connection[Any, Any]) -> None:
    while True:
        try:
            order = pipe.recv()
        except (EOFError, ConnectionError, KeyboardInterrupt):
            return
        try:
            uvloop.run(_load(order) if isinstance(order, Load) else _obey(order, pipe))
        except KeyboardInterrupt:
            return
        except BaseException:
            pipe.send(traceback.format_exc())
        else:
            pipe.send(READY)


async def _load(order: Load) -> None:
    table = order.table
    await order.access.create(table)
    client = await order.access.connect(table, LOADERS_COUNT)
    values = Values(table.value_bytes, seed=1)
    starts = iter(range(0, table.rows_count, LOAD_ROWS_COUNT))

    async def loader() -> None:
        for start in starts:
            keys = range(start, min(start + LOAD_ROWS_COUNT, table.rows_count))
            await client.load([(key, values()) for key in keys])

    try:
        await asyncio.gather(*(loader() for _ in range(LOADERS_COUNT)))
    finally:
        await client.close()


async def _obey(order: Order, pipe: Connection[Any, Any]) -> None:
    loop = asyncio.get_running_loop()
    work = order.work
    client = await order.access.connect(work.table, work.callers)
    try:
        calls = Calls(client, work, order.number, order.run)
        await warm_up(client, calls, work, order.warm_up_s)
        gc.collect()
        gc.freeze()
        pipe.send(READY)
        await loop.run_in_executor(None, pipe.recv)
        pipe.send(await run_work(client, calls, work, order.seconds))
        await loop.run_in_executor(None, pipe.recv)
    finally:
        gc.unfreeze()
        await client.close()
