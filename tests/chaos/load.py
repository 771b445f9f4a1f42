"""What clients do during a run, through the SDK, and how it is judged afterwards.

The workloads and oracles are the simulator's (tests/sim): registers, counters, appends, sets, batches, scans, rows that
clients keep, all recorded in one history. Beside them run the works of whole rows (transfers, appends, merges,
versions: `works.py`), or one of these alone with many clients; and a pulse of small writes to every tablet of a table
of its own measures the gaps: how long no write of a tablet was acknowledged.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import ackord
from tests.chaos.work_lists import Lists
from tests.chaos.work_merges import Merges
from tests.chaos.work_transfers import Transfers
from tests.chaos.work_versions import Versions
from tests.chaos.works import CREATE_PAUSE_S, Client, Work
from tests.sim.cached import Kept
from tests.sim.cluster_oracle import compare_nodes
from tests.sim.history import History, Op
from tests.sim.oracles import check_deadlines, check_history
from tests.sim.recorder import Recorder
from tests.sim.workload import (
    WORKLOADS,
    Context,
    Tables,
    UnexpectedError,
    create_load_table,
    make_workloads,
    read_final,
)
from tests.support.cluster_load import Writers

TABLETS_COUNT = 3
SLOTS_COUNT = 12
GENERATION_S = 120.0
PULSE = "pulse"
PULSE_SPLIT_AT = (2, 4, 6, 8, 10)
PULSE_WRITERS = 12
PULSE_PACE_S = 0.1
TABLES_PAUSE_S = 2.0
CLIENT_READS = ("any", "round_robin", "coordinator")
CONCURRENCY = 2
PAUSE_S = 0.2
WORK_PAUSE_S = 0.5
WORK_CLIENTS = 6  # of each work, if it is not alone
CALL_S = 10.0
GRACE_S = 5.0  # how much later than its deadline a call may end, on a machine that is busy with all of this
FINAL_S = 60.0
WORKS: dict[str, type[Work]] = {kind.name: kind for kind in (Transfers, Lists, Merges, Versions)}


@dataclass(slots=True)
class Generation:
    """A table, and the history of all calls on it while it was in use; later it is only kept."""

    table: str
    history: History
    is_over: bool = False


class GatedTables(Tables):
    """Small tables that come and go, but not while the gate is closed."""

    def __init__(self, table: str, slots_count: int, gate: asyncio.Lock) -> None:
        super().__init__(table, slots_count)
        self._gate = gate

    async def step(self, recorder: Recorder, rng: random.Random, memory: dict[Any, Any]) -> None:
        async with self._gate:
            await super().step(recorder, rng, memory)


class Load:
    """Enter it with a cluster that serves: it makes the tables. ``begin`` and ``end`` the load, then ``judge``.
    ``only``: the name of the work that runs alone.

    Every two minutes the clients go on with a new table, since the work of judging a history grows faster than the
    history: a scan is a read of every key that its table ever had.
    """

    def __init__(
        self,
        urls: str,
        names: list[str],
        folder: Path,
        seed: int,
        now: Callable[[], float],
        only: str | None = None,
    ) -> None:
        self.generations: list[Generation] = []
        self.began_at = 0.0  # on the machine's monotonic clock, as the pulse counts
        self._urls, self._names, self._folder = urls, names, folder / "history"
        self._rng, self._now = random.Random(seed), now
        self._is_alone = only is not None
        kinds = [WORKS[only]] if only else list(WORKS.values())
        self.works = [
            kind(History(self._folder / f"{kind.name}.jsonl"), is_alone=self._is_alone) for kind in kinds
        ]
        self._stores: list[ackord.Store] = []
        self._node_stores: dict[str, ackord.Store] = {}
        self._stack = AsyncExitStack()
        self._is_over = False
        self._making_tables = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._problems: list[str] = []
        self.pulse: Writers

    async def __aenter__(self) -> Self:
        for reads in CLIENT_READS:
            self._stores.append(await self._connect(reads))
        self._node_stores = {name: await self._connect(f"node:{name}") for name in self._names}
        store = await self._connect("any")
        await store.create_table(PULSE, {"writer": int, "n": int}, split_at=PULSE_SPLIT_AT)
        self.pulse = Writers(
            store.table(PULSE), count=PULSE_WRITERS, split_at=PULSE_SPLIT_AT, pace_s=PULSE_PACE_S
        )
        for work in self.works:
            await self._create(work, store)
        self.began_at = time.monotonic() - self._now()
        return self

    @staticmethod
    async def _create(work: Work, store: ackord.Store) -> None:
        """Nothing is broken yet, but all are busy: what failed is asked for again."""
        while True:
            try:
                await work.create(store)
                return
            except (ackord.Unavailable, ackord.OutcomeUnknown):
                await asyncio.sleep(CREATE_PAUSE_S)

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    async def _connect(self, reads: str) -> ackord.Store:
        return await self._stack.enter_async_context(ackord.connect(self._urls, reads=reads))

    @property
    def ops(self) -> Iterator[Op]:
        for history in (*(one.history for one in self.generations), *(one.history for one in self.works)):
            yield from history.ops

    @property
    def lasting_tables(self) -> list[str]:
        """Those that stand to the end."""
        return [PULSE, *(work.table for work in self.works), *(one.table for one in self.generations)]

    @property
    def aim(self) -> tuple[list[str], float] | None:
        """The tables of a work that runs alone, and how often faults choose the node that coordinates them."""
        if not self._is_alone:
            return None
        return [work.table for work in self.works], max(work.aim_share for work in self.works)

    # -------------------------------------------------------------------------------------- under way

    @asynccontextmanager
    async def without_new_tables(self) -> AsyncIterator[None]:
        """A new table's tablets have a single copy for a moment; a disk that is destroyed then may hold it."""
        async with self._making_tables:
            yield

    def begin(self) -> None:
        self._spawn("pulse", self._beat())
        for work in self.works:
            self._spawn(work.name, self._use(work))
        if not self._is_alone:
            self._spawn("clients", self._work())

    async def _beat(self) -> None:
        async with self.pulse:
            while not self._is_over:
                await asyncio.sleep(PULSE_PACE_S)

    async def _use(self, work: Work) -> None:
        """All clients of one work; one that ends with an error does not end the others."""
        stores = [self._stores[at % len(self._stores)] for at in range(WORK_CLIENTS)]
        if self._is_alone:
            reads = [*CLIENT_READS, *(f"node:{name}" for name in self._names)]
            stores = [await self._connect(reads[at % len(reads)]) for at in range(work.clients_count)]
        clients = [self._client(work, f"c{at}", at, store) for at, store in enumerate(stores, start=1)]
        await asyncio.gather(*(self._guard(work.name, work.run(client)) for client in clients))

    def _client(
        self, work: Work, name: str, number: int, store: ackord.Store, *, is_final: bool = False
    ) -> Client:
        return Client(
            name,
            store,
            list(self._node_stores.values()),
            work.history,
            random.Random(self._rng.random()),
            self._now,
            lambda: self._is_over or work.history.is_full,
            work.pause_s if self._is_alone else WORK_PAUSE_S,
            FINAL_S if is_final else CALL_S,
            number,
            is_final,
        )

    async def _work(self) -> None:
        """One generation after the other."""
        while not self._is_over:
            number = len(self.generations) + 1
            table = f"load{number}"
            generation = Generation(table, History(self._folder / f"{table}.jsonl"))
            clients = [
                self._context(f"c{at}", store, generation) for at, store in enumerate(self._stores, start=1)
            ]
            async with self._making_tables:
                if not await create_load_table(clients[0], table, TABLETS_COUNT, SLOTS_COUNT):
                    return
            self.generations.append(generation)
            work = [
                self._guard(workload.name, workload.run(client))
                for client in clients
                for workload in make_workloads(
                    table, SLOTS_COUNT, [name for name in WORKLOADS if name != Tables.name]
                )
            ]
            work += [self._guard(Kept.name, Kept(table, SLOTS_COUNT).run(client)) for client in clients]
            slow = replace(clients[0], concurrency=1, pause_s=TABLES_PAUSE_S)
            work.append(self._guard("tables", GatedTables(table, SLOTS_COUNT, self._making_tables).run(slow)))
            await asyncio.gather(self._end_later(generation), *work)

    async def _end_later(self, generation: Generation) -> None:
        until_s = self._now() + GENERATION_S
        while not self._is_over and self._now() < until_s:
            await asyncio.sleep(PULSE_PACE_S)
        generation.is_over = True

    def _context(self, client: str, store: ackord.Store, generation: Generation) -> Context:
        return Context(
            client,
            store,
            generation.history,
            random.Random(self._rng.random()),
            self._now,
            lambda: generation.is_over or self._is_over,
            concurrency=CONCURRENCY,
            timeout_s=CALL_S,
            pause_s=PAUSE_S,
        )

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(self._guard(name, work)))

    async def _guard(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            self._problems.append(f"the workload {name} ended at {self._now():.1f} s: {error!r}")

    async def end(self) -> None:
        """Every call under way ends by its deadline."""
        self._is_over = True
        await asyncio.gather(*self._tasks)

    async def sweep(self, name: str) -> None:
        """Reads every row of every lasting table from one node."""
        async with ackord.connect(self._urls, reads=f"node:{name}") as store:
            for table in self.lasting_tables:
                async for _ in store.table(table).scan(timeout=FINAL_S):
                    pass

    # ------------------------------------------------------------------------------------ judgement

    async def judge(self) -> list[str]:
        """What is wrong with what clients saw, or with what the replicas hold; the cluster is in sync."""
        problems = list(self._problems)
        store = await self._connect("any")
        for generation in self.generations:
            generation.is_over = self._is_over = False
            try:
                await read_final(self._context("final", store, generation), generation.table)
            except (ackord.Error, UnexpectedError) as error:
                problems.append(f"the last reads of {generation.table} failed: {error!r}")
            generation.history.close(self._now())
        problems += await self._judge_works()
        problems += await self._compare()
        for generation in self.generations:
            print(f"judging {len(generation.history.ops)} operations on {generation.table}", flush=True)
            problems += await asyncio.to_thread(_judge, generation.history)
        return problems

    async def _judge_works(self) -> list[str]:
        problems = []
        for work in self.works:
            for name, store in self._node_stores.items():
                client = self._client(work, f"final {name}", 0, store, is_final=True)
                client.readers = [store]
                try:
                    await work.read_final(client)
                except (ackord.Error, UnexpectedError) as error:
                    problems.append(f"the last reads of {work.name} from {name} failed: {error!r}")
            work.history.close(self._now())
            print(f"judging {len(work.history.ops)} operations of {work.name}", flush=True)
            problems += await asyncio.to_thread(work.judge)
        return problems

    async def _compare(self) -> list[str]:
        try:
            problems = await compare_nodes(self._node_stores, self.lasting_tables)
            await self.pulse.verify(self._node_stores.values())
        except (ackord.Error, AssertionError) as error:
            return [f"comparing the replicas: {error!r}"]
        return problems


def _judge(history: History) -> list[str]:
    return [*check_history(history), *check_deadlines(history, CALL_S, GRACE_S)]
