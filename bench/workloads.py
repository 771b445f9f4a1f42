"""The work: what a caller does, with which keys and values, the same for every system.

Keys and values come from one seed, so every system gets the same ones in the same order. Zipfian keys are drawn
exactly (probability proportional to 1 / rank ** 0.99, Gray et al. 1994 and YCSB) and scattered over the key space.

Closed loops: a caller begins its next call when the last one is answered, so a slow answer lowers the rate instead
of hiding behind a queue. Paced: calls begin on a fixed timetable, whatever is still under way, and each latency is
counted from the time at which the call should have begun, so that a stall shows in every call that it delayed.
"""

from __future__ import annotations

import asyncio
import math
import random
from array import array
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from time import perf_counter, process_time
from typing import Any

from bench.systems.base import BenchError, CachingClient, Client, TableSpec

BATCH_ROWS_COUNT = 100
SCAN_ROWS_COUNT = 100
ZIPFIAN_CONSTANT = 0.99
DRAWN_COUNT = 1 << 16
PAYLOADS_COUNT = 1 << 10
INSERTED_MAX = 1_000_000  # by one process in one run of a workload
CACHED_GET = "cached-get"
CACHED_STRETCH_COUNT = 256
CACHED_PASSES_COUNT = 3
PACE_S = 0.001  # calls that are due begin so often: a wake-up for each takes more CPU than the call
BACKLOG_MAX = 20_000  # a paced run that is so far behind is not at half load any more
_SCATTER = 2_654_435_761  # a prime: rank * prime mod rows is a permutation for any number of rows below it

Call = Callable[[], Awaitable[Any]]
Call1 = Callable[[int], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Work:
    """One cell of the benchmark: ``callers`` loops in each of ``processes``, or a paced run at ``rate`` calls/s."""

    kind: str
    table: TableSpec
    callers: int
    processes: int = 1
    rate: float | None = None

    @property
    def name(self) -> str:
        who = f"{self.processes} x {self.callers}" if self.processes > 1 else f"{self.callers}"
        if self.rate is not None:
            who = "paced"
        return f"{self.kind}, {who}, {table_text(self.table)}"

    @property
    def rows_per_call(self) -> int:
        return {"batch": BATCH_ROWS_COUNT, "scan": SCAN_ROWS_COUNT}.get(self.kind, 1)


def table_text(table: TableSpec) -> str:
    """A table as people say it: "10k rows of 100 B"."""
    count = table.rows_count
    text = f"{count // 1_000_000}M" if count >= 1_000_000 else f"{count // 1000}k" if count >= 1000 else count
    size = f"{table.value_bytes // 1024} KiB" if table.value_bytes >= 1024 else f"{table.value_bytes} B"
    return f"{text} rows of {size}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one process saw: the latency of every call in seconds, its CPU time, conflicts of conditional writes."""

    latencies: array[float]
    elapsed_s: float
    cpu_s: float
    conflicts_count: int


class Values:
    """Random bytes: what compresses well would make a disk look faster than it is."""

    def __init__(self, value_bytes: int, seed: int) -> None:
        chance = random.Random(seed)
        self._payloads = [chance.randbytes(value_bytes) for _ in range(PAYLOADS_COUNT)]
        self._at = 0

    def __call__(self) -> bytes:
        self._at = at = (self._at + 1) % PAYLOADS_COUNT
        return self._payloads[at]


class Drawn:
    """Numbers that were drawn before the clock ran, in a ring."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = numbers
        self._at = 0

    def __call__(self) -> int:
        self._at = at = (self._at + 1) % DRAWN_COUNT
        return self.numbers[at]


def uniform(count: int, seed: int) -> Drawn:
    chance = random.Random(seed)
    return Drawn([chance.randrange(count) for _ in range(DRAWN_COUNT)])


def zipfian_ranks(count: int, seed: int) -> Drawn:
    """Ranks from 0, the most popular."""
    weights = list(accumulate(1 / rank**ZIPFIAN_CONSTANT for rank in range(1, count + 1)))
    return Drawn(random.Random(seed).choices(range(count), cum_weights=weights, k=DRAWN_COUNT))


def zipfian(count: int, seed: int) -> Drawn:
    """Keys: the popular ones are scattered over the key space."""
    ranks = zipfian_ranks(count, seed)
    return Drawn([ranks() * _SCATTER % count for _ in range(DRAWN_COUNT)])


# ------------------------------------------------------------------------------------------- calls


class Calls:
    """The calls of one process on one table. ``number`` tells processes apart, ``run`` the runs of a workload."""

    def __init__(self, client: Client, work: Work, number: int, run: int) -> None:
        self.conflicts_count = 0
        self._client = client
        self._rows_count = work.table.rows_count
        seed = 7 + number
        self._value = Values(work.table.value_bytes, seed)
        is_ycsb = work.kind.startswith("ycsb")
        draw = zipfian_ranks if work.kind == "ycsb-d" else zipfian if is_ycsb else uniform
        self._key = draw(self._rows_count, seed)
        self.drawn = self._key.numbers
        self._percent = uniform(100, seed + 1)
        self._inserted: list[int] = []
        self._next_insert = self._rows_count + (run * 64 + number) * INSERTED_MAX

    def of(self, kind: str) -> Call:
        found: dict[str, Call] = {
            "put": self.put,
            "get": self.get,
            "rmw": self.compare_and_set,
            "batch": self.put_batch,
            "scan": self.scan,
            "ycsb-a": lambda: self._mix(50, self.put),
            "ycsb-b": lambda: self._mix(95, self.put),
            "ycsb-c": self.get,
            "ycsb-d": self.read_latest,
            "ycsb-f": lambda: self._mix(50, self.read_modify_write),
        }
        if kind not in found:
            raise BenchError(f"there is no workload {kind}; there are {', '.join(found)}")
        return found[kind]

    async def put(self) -> None:
        await self._client.put(self._key(), self._value())

    async def get(self) -> None:
        if await self._client.get(self._key()) is None:
            raise BenchError("a row that was loaded is not there")

    def _mix(self, reads_percent: int, write: Call) -> Awaitable[Any]:
        return self.get() if self._percent() < reads_percent else write()

    async def read_modify_write(self) -> None:
        """YCSB's: unconditional."""
        key = self._key()
        await self._client.get(key)
        await self._client.put(key, self._value())

    async def compare_and_set(self) -> None:
        """Until the write goes through: another caller may have been faster."""
        key, value = self._key(), self._value()
        while True:
            _, version = await self._client.get_version(key)
            if await self._client.put_if(key, value, version):
                return
            self.conflicts_count += 1

    async def put_batch(self) -> None:
        # A set: some systems refuse a transaction that names a row twice.
        keys: dict[int, None] = {}
        while len(keys) < BATCH_ROWS_COUNT:
            keys[self._key()] = None
        await self._client.put_many([(key, self._value()) for key in keys])

    async def scan(self) -> None:
        start = self._key() % (self._rows_count - SCAN_ROWS_COUNT)
        if await self._client.scan(start, SCAN_ROWS_COUNT) != SCAN_ROWS_COUNT:
            raise BenchError(f"a scan from {start} did not find {SCAN_ROWS_COUNT} rows")

    async def read_latest(self) -> None:
        """YCSB D: 5 % inserts; reads prefer the newest rows, of this process's inserts and the loaded ones."""
        if self._percent() < 5:
            key = self._next_insert
            self._next_insert += 1
            await self._client.insert(key, self._value())
            self._inserted.append(key)
            return
        rank = self._key()
        newest = len(self._inserted)
        key = self._inserted[-1 - rank] if rank < newest else self._rows_count - 1 - (rank - newest)
        if await self._client.get(key) is None:
            raise BenchError(f"row {key} was written and is not there")


# ------------------------------------------------------------------------------------------- loops


async def closed_loops(call: Call, callers: int, seconds: float) -> array[float]:
    """The latencies of ``callers`` closed loops."""
    latencies = array("d")
    until = perf_counter() + seconds

    async def caller() -> None:
        add = latencies.append
        begun = perf_counter()
        while begun < until:
            await call()
            ended = perf_counter()
            add(ended - begun)
            begun = ended

    await asyncio.gather(*(caller() for _ in range(callers)))
    return latencies


async def paced(call: Call, rate: float, seconds: float) -> array[float]:
    """The latencies of calls that are due at ``rate`` a second, each counted from when it was due."""
    latencies = array("d")
    running: set[asyncio.Task[None]] = set()
    failures: list[BaseException] = []

    async def one(due: float) -> None:
        await call()
        latencies.append(perf_counter() - due)

    def ended(task: asyncio.Task[None]) -> None:
        running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            failures.append(error)

    begun = perf_counter()
    started, count = 0, round(rate * seconds)
    while started < count and not failures:
        due_count = min(math.floor((perf_counter() - begun) * rate) + 1, count)
        while started < due_count:
            task = asyncio.create_task(one(begun + started / rate))
            running.add(task)
            task.add_done_callback(ended)
            started += 1
        if len(running) > BACKLOG_MAX:
            raise BenchError(f"{rate:,.0f} calls/s are more than it can do: {len(running)} are under way")
        await asyncio.sleep(max(begun + started / rate - perf_counter(), PACE_S))
    while running:
        await asyncio.wait(running)
    if failures:
        raise failures[0]
    return latencies


async def cached_loop(get: Call1, keys: Sequence[int], seconds: float) -> array[float]:
    """The latencies of one caller whose reads come out of its own process's memory. Nothing in them waits, so the loop
    is let go once in a while: leases are renewed there."""
    latencies = array("d")
    add = latencies.append
    begun = perf_counter()
    until = begun + seconds
    at = 0
    while begun < until:
        await asyncio.sleep(0)
        begun = perf_counter()
        for key in keys[at : at + CACHED_STRETCH_COUNT]:
            await get(key)
            ended = perf_counter()
            add(ended - begun)
            begun = ended
        at = (at + CACHED_STRETCH_COUNT) % len(keys)
    return latencies


async def warm_up(client: Client, calls: Calls, work: Work, seconds: float) -> None:
    """What comes before the clock runs: connections, caches and compilers are as they will be."""
    if work.kind == CACHED_GET:
        get = cached_get(client)
        # In no order: each tablet's lease is used, and so extended, until the last row has come.
        keys = random.Random(work.table.rows_count).sample(
            range(work.table.rows_count), work.table.rows_count
        )
        # More than once: a node grants nothing before it has stored that clients keep rows.
        for start in [*range(0, len(keys), CACHED_STRETCH_COUNT)] * CACHED_PASSES_COUNT:
            await asyncio.gather(*(get(key) for key in keys[start : start + CACHED_STRETCH_COUNT]))
    elif work.rate is None:
        await closed_loops(calls.of(work.kind), work.callers, seconds)
    else:
        await paced(calls.of(work.kind), work.rate / work.processes, seconds)


def cached_get(client: Client) -> Call1:
    if not isinstance(client, CachingClient):
        raise BenchError("this system has no cache that stays linearizable")
    return client.cached_get()


async def run_work(client: Client, calls: Calls, work: Work, seconds: float) -> Outcome:
    conflicts_before = calls.conflicts_count
    cpu_before, begun = process_time(), perf_counter()
    if work.kind == CACHED_GET:
        latencies = await cached_loop(cached_get(client), calls.drawn, seconds)
    elif work.rate is None:
        latencies = await closed_loops(calls.of(work.kind), work.callers, seconds)
    else:
        latencies = await paced(calls.of(work.kind), work.rate / work.processes, seconds)
    return Outcome(
        latencies,
        perf_counter() - begun,
        process_time() - cpu_before,
        calls.conflicts_count - conflicts_before,
    )
