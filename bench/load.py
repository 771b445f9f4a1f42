"""Concurrent callers of one SDK process: how many calls a second, how long each takes, and whose CPU it costs.

A caller begins its next call when the last one is answered (a closed loop), so a slow answer lowers the rate
instead of hiding behind a queue. Latencies are taken around each single call, from outside the SDK.
"""

from __future__ import annotations

import asyncio
import gc
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from harness import Cluster, progress

import ackord

ROW_BYTES = 100
TABLETS_COUNT = 6
BATCH_ROWS_COUNT = 100
LOADERS_COUNT = 16
WARM_UP_S = 0.3

Call = Callable[[int], Awaitable[Any]]  # the caller's running number -> one call
_PAYLOADS_COUNT = 1024


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one workload. CPU is in microseconds per operation (a row)."""

    ops_per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    client_cpu_us: float
    node_cpu_us: dict[str, float]


def percentile(ordered: list[float], share: float) -> float:
    """The smallest value that at least this share of all does not exceed."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


class Rows:
    """A table of ``count`` rows of 100 bytes of columns, key (id,), in six tablets of equal size."""

    def __init__(self, store: ackord.Store, count: int, seed: int = 7) -> None:
        self.name = f"bench_{count}"
        self.count = count
        self.table = store.table(self.name)
        self._store = store
        chance = random.Random(seed)
        # Random bytes: what compresses well would make the disk look faster than it is. The map of one
        # column, its name and the length take 9 bytes.
        self._payloads = [{"value_": chance.randbytes(ROW_BYTES - 10)} for _ in range(_PAYLOADS_COUNT)]
        self._keys = [(chance.randrange(count),) for _ in range(65_536)]
        self._at = 0

    def next_key(self) -> tuple[int]:
        """Uniformly random among the rows; the same sequence in every run."""
        self._at = at = (self._at + 1) & 65_535
        return self._keys[at]

    def payload(self, number: int) -> dict[str, bytes]:
        return self._payloads[number % _PAYLOADS_COUNT]

    async def prepare(self) -> bool:
        """Creates and fills the table; False if an earlier run had done so."""
        step = self.count / TABLETS_COUNT
        splits = [round(step * at) for at in range(1, TABLETS_COUNT)]
        await self._store.create_table(self.name, {"id": int}, split_at=splits)
        if await self.table.get((self.count - 1,)) is not None:
            return False  # the last row is written last
        done = 0
        starts = iter(range(0, self.count, BATCH_ROWS_COUNT))

        async def loader() -> None:
            nonlocal done
            for start in starts:
                if start + BATCH_ROWS_COUNT >= self.count:
                    continue  # last of all, below
                await self._fill(start)
                done += BATCH_ROWS_COUNT
                bar.show(done)

        with progress(f"loading {self.name}", self.count) as bar:
            await asyncio.gather(*(loader() for _ in range(LOADERS_COUNT)))
            await self._fill(max(self.count - BATCH_ROWS_COUNT, 0))
            bar.show(self.count)
        return True

    async def _fill(self, start: int) -> None:
        ids = range(start, min(start + BATCH_ROWS_COUNT, self.count))
        for result in await self.table.write_many([ackord.Put((at,), self.payload(at)) for at in ids]):
            if isinstance(result, ackord.Error):
                raise result

    # ---------------------------------------------------------------------------- workloads

    async def put(self, number: int) -> None:
        await self.table.put(self.next_key(), self.payload(number))

    async def get(self, number: int) -> None:
        if await self.table.get(self.next_key()) is None:
            raise AssertionError("a row that was loaded is not there")

    async def put_batch(self, number: int) -> None:
        puts = [ackord.Put(self.next_key(), self.payload(number + at)) for at in range(BATCH_ROWS_COUNT)]
        for result in await self.table.write_many(puts):
            if isinstance(result, ackord.Error):
                raise result


async def measure(
    cluster: Cluster, call: Call, callers: int, seconds: float, rows_per_call: int = 1
) -> Sample:
    """``callers`` closed loops for ``seconds``, after a short warm-up that does not count."""
    await _callers(call, callers, min(WARM_UP_S, seconds))
    gc.collect()
    before = {node: cluster.cpu_s(node) for node in cluster.nodes}
    client_before, begun = time.process_time(), perf_counter()
    latencies = await _callers(call, callers, seconds)
    elapsed, client_cpu = perf_counter() - begun, time.process_time() - client_before
    operations = len(latencies) * rows_per_call
    latencies.sort()
    return Sample(
        ops_per_s=operations / elapsed,
        p50_ms=percentile(latencies, 0.50) * 1000,
        p99_ms=percentile(latencies, 0.99) * 1000,
        max_ms=latencies[-1] * 1000,
        client_cpu_us=client_cpu / operations * 1e6,
        node_cpu_us={n: (cluster.cpu_s(n) - before[n]) / operations * 1e6 for n in cluster.nodes},
    )


async def _callers(call: Call, count: int, seconds: float) -> list[float]:
    latencies: list[float] = []
    until = perf_counter() + seconds

    async def caller(number: int) -> None:
        add = latencies.append
        begun = perf_counter()
        while begun < until:
            await call(number)
            number += 1
            ended = perf_counter()
            add(ended - begun)
            begun = ended

    await asyncio.gather(*(caller(number) for number in range(count)))
    return latencies
