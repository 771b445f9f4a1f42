"""Rows kept in the client of a real cluster (rule R19): served from memory, never stale, and nobody waits for long."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

import ackord
from tests.sim.cached import Kept
from tests.sim.history import History
from tests.sim.oracles import check_history
from tests.sim.workload import Context, create_load_table, read_final
from tests.support.cluster import RealCluster

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("cluster")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RealCluster]:
    with RealCluster() as cluster:
        yield cluster


@pytest.fixture
async def store(cluster: RealCluster) -> AsyncIterator[ackord.Store]:
    async with ackord.connect(cluster.urls) as store:
        yield store


@pytest.fixture
async def other(cluster: RealCluster) -> AsyncIterator[ackord.Store]:
    """Another client."""
    async with ackord.connect(cluster.urls) as store:
        yield store


async def kept_table(store: ackord.Store) -> ackord.CachedTable:
    """A table of whose rows this client keeps what it reads."""
    name = f"t{uuid.uuid4().hex[:8]}"
    await store.create_table(name, {"id": str})
    table = store.table(name, cache=True)
    async with asyncio.timeout(10):
        for number in range(100):  # at every node, which records first that it lets clients keep rows
            await table.put(f"first {number}", {})
            await kept(table, f"first {number}")
    return table


async def kept(table: ackord.CachedTable, key: str) -> ackord.Row | None:
    """Reads until the row comes from memory."""
    while True:
        hits = table.stats.hits
        row = await table.get(key)
        if table.stats.hits > hits:
            return row
        await asyncio.sleep(0)


async def test_a_row_is_served_from_memory_until_somebody_writes_it(
    store: ackord.Store, other: ackord.Store
) -> None:
    table = await kept_table(store)
    await table.put("a", {"n": 1})
    first = await kept(table, "a")
    before = table.stats
    for _ in range(50):
        assert await table.get("a") is first
    assert table.stats.hits - before.hits == 50
    for n in range(2, 40):
        await other.table(table.name).put("a", {"n": n})
        row = await table.get("a")
        assert row is not None and row["n"] == n, "what was acknowledged is seen at once"
        await kept(table, "a")  # a replica that does not know yet that it is committed lets nobody keep it
    assert table.stats.invalidations >= 30


async def test_own_writes_are_seen_and_absent_rows_are_kept_too(store: ackord.Store) -> None:
    table = await kept_table(store)
    assert await kept(table, "b") is None
    for n in range(30):
        await table.put("b", {"n": n})
        row = await table.get(("b",))
        assert row is not None and row["n"] == n
        await table.delete("b")
        assert await table.get("b") is None
    async with table.transaction("b") as tx:
        tx.put("b", {"n": 1000})
    row = await table.get("b")
    assert row is not None and row["n"] == 1000


async def test_a_client_that_does_not_answer_delays_a_write_by_its_lease_and_expels_nobody(
    store: ackord.Store, other: ackord.Store
) -> None:
    table = await kept_table(store)
    await table.put("c", {"n": 1})
    writer = other.table(table.name)
    await writer.put("warm", {})
    store.batcher.on_told = lambda link, hold, told: None
    delays = []
    for n in range(2, 8):
        await kept(table, "c")
        begun = time.monotonic()
        await writer.put("c", {"n": n})
        delays.append(time.monotonic() - begun)
        row = await table.get("c")
        assert row is not None and row["n"] == n
    assert 0.1 < max(delays) < 0.9, delays
    for tablet in (await store.status())["tables"][table.name]["tablets"]:
        assert len(tablet["in_sync"]) == 3


async def test_reads_from_memory_are_linearizable_while_nodes_are_killed_and_paused(
    cluster: RealCluster, store: ackord.Store
) -> None:
    history, is_over = History(), False
    now = asyncio.get_running_loop().time

    def context(client: str, store: ackord.Store) -> Context:
        return Context(
            client, store, history, random.Random(client), now, lambda: is_over, timeout_s=10.0, pause_s=0.02
        )

    assert await create_load_table(context("setup", store))
    async with (
        ackord.connect(cluster.urls, reads="round_robin") as second,
        ackord.connect(cluster.urls, reads="coordinator") as third,
    ):
        stores = [store, second, third]
        clients = [
            asyncio.create_task(Kept("load", 6).run(context(f"c{at}", one))) for at, one in enumerate(stores)
        ]
        for name in ("n1", "n3"):
            await asyncio.sleep(1.5)
            cluster[name].kill()
            await asyncio.to_thread(cluster[name].wait_exit)
            await asyncio.sleep(0.1)
            cluster[name].start()
            await asyncio.sleep(1.5)
            cluster["n2"].pause()
            await asyncio.sleep(0.7)
            cluster["n2"].resume()
        await asyncio.sleep(1.5)
        is_over = True
        await asyncio.gather(*clients)
        hits = sum(one.table("load", cache=True).stats.hits for one in stores)
    await read_final(context("final", store))
    history.close(now())
    assert check_history(history) == []
    assert hits > 200, "rows came from memory"
