"""Kills, pauses and stops random nodes under load, then checks every answer that was given (`make chaos`).

Three workloads at once: unique rows (nothing acknowledged is lost, versions rise), counters (each acknowledged
increment counts exactly once, R16 across retries and takeovers) and registers under ``if_version`` (a chain of
versions that never branches). ACKORD_CHAOS_SECONDS (60) says for how long, ACKORD_CHAOS_SEED which faults; the seed
is printed.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

import ackord
from tests.support.cluster import RealCluster
from tests.support.cluster_load import Running, Writers

pytestmark = pytest.mark.chaos

SECONDS = float(os.environ.get("ACKORD_CHAOS_SECONDS", "60"))
HEAL_S = 60.0
WRITERS_COUNT = 32
COUNTERS_COUNT = 8
REGISTERS_COUNT = 8
SPLIT_AT = (6, 11, 16, 22, 27)
CALL_S = 20.0


class Counters(Running):
    """Increments of few rows by many callers: afterwards acknowledged <= value <= acknowledged + unknown."""

    def __init__(self, table: ackord.Table) -> None:
        super().__init__()
        self._table = table
        self.acked = [0] * COUNTERS_COUNT
        self.unknown = [0] * COUNTERS_COUNT

    def _work(self) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self._count(at % COUNTERS_COUNT)) for at in range(2 * COUNTERS_COUNT)]

    async def _count(self, counter: int) -> None:
        while not self._is_over:
            try:
                await self._table.update(4 * counter, increment={"n": 1}, timeout=CALL_S)
                self.acked[counter] += 1
            except ackord.OutcomeUnknown:
                self.unknown[counter] += 1
            except ackord.Unavailable:
                pass
            await asyncio.sleep(0.01)

    async def verify(self, stores: list[ackord.Store]) -> None:
        for store in stores:
            for counter in range(COUNTERS_COUNT):
                row = await store.table(self._table.name).get(4 * counter)
                value = 0 if row is None else row["n"]
                acked, unknown = self.acked[counter], self.unknown[counter]
                assert acked <= value <= acked + unknown, (
                    f"counter {counter} is {value}: {acked} increments acknowledged, {unknown} unknown"
                )


class Registers(Running):
    """Each register is a chain: a writer reads it, then writes what it read plus its own mark under ``if_version``.

    Two writers per register race; an acknowledged link names its predecessor, so the links form one chain without
    branches. Judged at the end: no two acknowledged links have the same predecessor, and the last value is there.
    """

    def __init__(self, table: ackord.Table) -> None:
        super().__init__()
        self._table = table
        self.links: list[dict[int, int]] = [{} for _ in range(REGISTERS_COUNT)]  # predecessor -> version
        self.conflicts = 0
        self.unknown: list[int] = [0] * REGISTERS_COUNT
        self.problems: list[str] = []

    def _work(self) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self._chain(at % REGISTERS_COUNT)) for at in range(2 * REGISTERS_COUNT)]

    async def _chain(self, register: int) -> None:
        key, links = 4 * register + 1, self.links[register]
        while not self._is_over:
            latest = max(links.values(), default=0)
            try:
                row = await self._table.get(key, timeout=CALL_S)
                seen = 0 if row is None else row.version
                if seen < latest:
                    self.problems.append(f"register {register}: read {seen} after {latest} was acknowledged")
                condition: dict[str, Any] = {"if_version": seen} if seen else {"if_absent": True}
                version = await self._table.put(key, {"after": seen}, timeout=CALL_S, **condition)
                if seen in links:
                    self.problems.append(f"register {register}: two writes succeeded on version {seen}")
                links[seen] = version
            except ackord.Conflict:
                self.conflicts += 1
            except ackord.OutcomeUnknown:
                self.unknown[register] += 1
            except ackord.Unavailable:
                pass
            await asyncio.sleep(0.01)

    async def verify(self, stores: list[ackord.Store]) -> None:
        assert self.problems == []
        for store in stores:
            for register, links in enumerate(self.links):
                row = await store.table(self._table.name).get(4 * register + 1)
                latest = max(links.values(), default=0)
                version = 0 if row is None else row.version
                assert version >= latest, (
                    f"register {register}: acknowledged {latest} is gone, found {version}"
                )
                if version > latest:
                    assert self.unknown[register], f"register {register}: {version} was never acknowledged"


class Faults:
    """Random faults on the cluster, one or two nodes at a time but never all; each ends before the next begins."""

    def __init__(self, cluster: RealCluster, rng: random.Random) -> None:
        self._cluster = cluster
        self._rng = rng
        self.done: list[str] = []

    async def run(self, until: float) -> None:
        kinds: list[Callable[[], Coroutine[Any, Any, None]]] = [
            self._kill,
            self._pause,
            self._stop,
            self._kill_two,
            self._lose_disk,
            self._stop_zookeeper,
        ]
        while time.monotonic() < until:
            await asyncio.sleep(self._rng.uniform(0.5, 3))
            await self._rng.choice(kinds)()
            if self._rng.random() < 0.7:  # else the next fault meets a cluster that is not whole yet
                await self._wait_whole(until)

    async def _wait_whole(self, until: float) -> bool:
        try:
            for name in ("unique", "shared"):
                left_s = min(until - time.monotonic(), 15)
                await asyncio.to_thread(self._cluster.wait_in_sync, name, left_s)
        except AssertionError:
            return False  # the end of the run has its own, longer wait
        return True

    def _note(self, text: str) -> str:
        self.done.append(text)
        return text

    def _node(self) -> Any:
        return self._cluster[self._rng.choice(sorted(self._cluster.nodes))]

    async def _kill(self) -> None:
        node = self._node()
        self._note(f"kill {node.name}")
        node.kill()
        await asyncio.to_thread(node.wait_exit)
        await asyncio.sleep(self._rng.uniform(0, 5))
        node.start()

    async def _kill_two(self) -> None:
        first, second = self._rng.sample(sorted(self._cluster.nodes.values(), key=lambda node: node.name), 2)
        self._note(f"kill {first.name} and {second.name}")
        for node in (first, second):
            node.kill()
            await asyncio.to_thread(node.wait_exit)
            await asyncio.sleep(self._rng.uniform(0, 0.3))
        for node in (first, second):
            await asyncio.sleep(self._rng.uniform(0, 1))
            node.start()

    async def _lose_disk(self) -> None:
        """Only of a whole cluster: at the minimum, a second lost disk would rightly lose data."""
        if not await self._wait_whole(time.monotonic() + 15):
            return
        node = self._node()
        self._note(f"lose the disk of {node.name}")
        node.kill()
        await asyncio.to_thread(node.wait_exit)
        node.wipe()
        node.start()
        await self._wait_whole(time.monotonic() + HEAL_S)

    async def _stop_zookeeper(self) -> None:
        self._note("stop ZooKeeper")
        await asyncio.to_thread(self._cluster.zookeeper.kill)
        await asyncio.sleep(self._rng.uniform(0, 6))
        await asyncio.to_thread(self._cluster.zookeeper.start)

    async def _pause(self) -> None:
        node = self._node()
        self._note(f"pause {node.name}")
        node.pause()
        await asyncio.sleep(self._rng.uniform(0.2, 6))
        node.resume()

    async def _stop(self) -> None:
        node = self._node()
        self._note(f"stop {node.name}")
        node.stop()
        code = await asyncio.to_thread(node.wait_exit, 30)
        assert code in (0, -15), f"{node.name} ended with {code} (-15: before it had started)"
        await asyncio.sleep(self._rng.uniform(0, 2))
        node.start()


@pytest.fixture
def cluster() -> Iterator[RealCluster]:
    with RealCluster() as cluster:
        yield cluster


@asynccontextmanager
async def replicas_of(cluster: RealCluster) -> AsyncIterator[list[ackord.Store]]:
    async with AsyncExitStack() as stack:
        each = [ackord.connect(cluster.urls, reads=f"node:{name}") for name in cluster.nodes]
        yield [await stack.enter_async_context(one) for one in each]


@pytest.mark.timeout(SECONDS + HEAL_S + 120)
async def test_kill_nodes(cluster: RealCluster) -> None:
    seed = int(os.environ.get("ACKORD_CHAOS_SEED", random.randrange(2**32)))
    print(f"\nACKORD_CHAOS_SEED={seed} ACKORD_CHAOS_SECONDS={SECONDS:g} make chaos")
    faults = Faults(cluster, random.Random(seed))
    async with ackord.connect(cluster.urls, timeout=CALL_S) as store:
        await store.create_table("unique", {"writer": int, "n": int}, split_at=SPLIT_AT)
        await store.create_table("shared", {"n": int}, split_at=[8, 16, 24])
        table = store.table("unique")
        writers = Writers(table, count=WRITERS_COUNT, split_at=SPLIT_AT, pace_s=0.005)
        counters, registers = Counters(store.table("shared")), Registers(store.table("shared"))
        async with writers, counters, registers:
            await faults.run(time.monotonic() + SECONDS)
            await asyncio.to_thread(cluster.start, wait=False)
            await asyncio.sleep(1)
        await _judge(cluster, writers, counters, registers)
    print(f"faults: {', '.join(faults.done)}")


async def _judge(cluster: RealCluster, writers: Writers, counters: Counters, registers: Registers) -> None:
    started = time.monotonic()
    await asyncio.to_thread(cluster.wait_ready, HEAL_S)
    for name in ("unique", "shared"):
        await asyncio.to_thread(cluster.wait_in_sync, name, HEAL_S)
    healed_s = time.monotonic() - started
    links_count = sum(map(len, registers.links))
    print(
        f"{writers.acks_count} unique rows ({writers.rate:.0f}/s), {sum(counters.acked)} increments"
        f" ({sum(counters.unknown)} unknown), {links_count} register links ({registers.conflicts} conflicts),"
        f" {len(writers.failures)} failed calls, longest gap of a tablet {writers.longest_gap():.2f} s,"
        f" whole again after {healed_s:.1f} s, lag {writers.lag.longest_s:.2f} s"
    )
    async with replicas_of(cluster) as replicas:
        await writers.verify(replicas)
        await counters.verify(replicas)
        await registers.verify(replicas)
        rows = [[row async for row in replica.table("shared").scan()] for replica in replicas]
        assert rows[0] == rows[1] == rows[2]
    for node in cluster.nodes.values():
        assert "Traceback" not in node.log(), f"{node.name}:\n{node.log()[-6000:]}"
