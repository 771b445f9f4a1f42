"""Scans of the SDK against fake nodes: order, bounds, pages, tablets, changes meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

import ackord
from ackord.wire.limits import DEFAULT_LIMITS
from ackord.wire.messages import OP_SCAN
from ackord.wire.ranges import seal, unseal
from tests.support.fake_node import FakeCluster, start_cluster, stop_cluster


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    cluster = await start_cluster(3, replace(DEFAULT_LIMITS, scan_page_rows_count=7))
    yield cluster
    await stop_cluster(cluster)


@pytest.fixture
async def table(cluster: FakeCluster) -> AsyncIterator[ackord.Table]:
    async with ackord.connect(cluster.nodes["n1"].url, timeout=5) as store:
        await store.create_table("t", {"a": str, "n": int}, split_at=["m"])
        yield store.table("t")


def pages_read(cluster: FakeCluster) -> int:
    return sum(len(node.ops_of(OP_SCAN)) for node in cluster.nodes.values())


async def fill(table: ackord.Table, count: int) -> list[tuple[str, int]]:
    keys = [("amz"[k % 3], k) for k in range(count)]
    for at in range(0, count, 200):
        await table.write_many([ackord.Put(key, {"n": key[1]}) for key in keys[at : at + 200]])
    return sorted(keys)


@pytest.mark.parametrize("reverse", [False, True])
async def test_scans_page_over_tablets(table: ackord.Table, cluster: FakeCluster, reverse: bool) -> None:
    keys = await fill(table, 100)
    order = keys[::-1] if reverse else keys

    async def scanned(*arguments: Any, **options: Any) -> list[Any]:
        return [row.key async for row in table.scan(*arguments, reverse=reverse, **options)]

    assert await scanned() == order
    assert await scanned(limit=10) == order[:10]
    assert await scanned(limit=0) == []
    assert await scanned("m") == [key for key in order if key[0] == "m"]
    assert await scanned(("m", 4)) == [("m", 4)]
    assert await scanned("nothing") == []
    assert await scanned(start=("a", 51), end=("z", 50)) == [
        key for key in order if ("a", 51) <= key < ("z", 50)
    ]
    assert await scanned(start="m") == [key for key in order if key >= ("m",)]
    assert await scanned(end="m") == [key for key in order if key < ("m",)]
    assert await scanned("m", start=("m", 40)) == [key for key in order if key[0] == "m" and key[1] >= 40]
    assert await scanned(start="z", end="a") == []
    sizes = [group[6] for node in cluster.nodes.values() for group in node.ops_of(OP_SCAN)]
    assert max(sizes) == 7


@pytest.mark.parametrize("reverse", [False, True])
async def test_rows_that_exist_throughout_come_exactly_once(table: ackord.Table, reverse: bool) -> None:
    stay = [("a", k * 2) for k in range(50)]
    await table.write_many([ackord.Put(key, {}) for key in stay])
    seen = []
    async for row in table.scan(reverse=reverse):
        seen.append(row.key)
        await table.put(("a", len(seen) * 2 - 1), {})
        await table.delete(("a", 199 - len(seen) * 2))
        await table.put(row.key, {"again": True})
    assert [key for key in seen if key in stay] == (stay[::-1] if reverse else stay)
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("read_ahead", [0, 1, 2, 5])
async def test_pages_are_read_ahead_and_no_more(
    table: ackord.Table, cluster: FakeCluster, read_ahead: int
) -> None:
    await fill(table, 100)
    scan = table.scan(read_ahead=read_ahead)
    await scan.__anext__()
    async with asyncio.timeout(2):
        while pages_read(cluster) < 1 + read_ahead:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)
    assert pages_read(cluster) == 1 + read_ahead


async def test_a_scan_survives_a_broken_stream_and_may_be_abandoned(
    table: ackord.Table, cluster: FakeCluster
) -> None:
    keys = await fill(table, 100)
    seen = []
    async for row in table.scan():
        seen.append(row.key)
        if len(seen) in (10, 30):
            cluster.nodes["n1"].cut()
            cluster.nodes["n2"].cut()
    assert seen == keys
    async for _ in table.scan():
        for node in cluster.nodes.values():
            node.script = lambda group: ackord.Unavailable("gone", reason="no_lease")
        break


async def test_a_token_that_was_made_by_hand_is_refused(table: ackord.Table) -> None:
    await fill(table, 3)
    scan = table.scan(limit=2)
    await scan.__anext__()
    token = scan.token
    assert token is not None
    content = unseal("scan", token)
    for at, wrong in enumerate([True, 0, "a", "b", -1, "x", [b"x"], "5"]):
        made = [*content[:at], wrong, *content[at + 1 :]]
        with pytest.raises(ackord.InvalidRequest, match="token"):
            await table.scan(token=seal("scan", made)).rows()
    assert len(await table.scan(token=seal("scan", content)).rows()) == 1


async def test_a_scan_has_one_reader_at_a_time(table: ackord.Table) -> None:
    """A second one would wait for what only the first is told of."""
    keys = await fill(table, 30)
    scan = table.scan()
    first, second = asyncio.ensure_future(scan.__anext__()), asyncio.ensure_future(scan.__anext__())
    with pytest.raises(RuntimeError, match="one reader at a time"):
        await second
    assert [(await first).key, *[row.key async for row in scan]] == keys
