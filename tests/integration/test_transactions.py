"""Transactions on a real cluster: what a transaction reads and writes, conflicts, limits, and transfers between
accounts while coordinators are killed."""

from __future__ import annotations

import asyncio
import random
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import pytest

import ackord
from ackord import AUTO, Put, Update
from tests.sim.transfers import AMOUNT, Transfers
from tests.support.cluster import RealCluster

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("cluster-transactions")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RealCluster]:
    limits = {"transaction_rows_count": 30, "transaction_range_rows_count": 60}
    with RealCluster(settings={"limits": limits}) as cluster:
        yield cluster


@pytest.fixture
async def store(cluster: RealCluster) -> AsyncIterator[ackord.Store]:
    async with ackord.connect(cluster.urls) as store:
        yield store


@pytest.fixture
async def table(store: ackord.Store) -> ackord.Table:
    name = f"t{uuid.uuid4().hex[:8]}"
    await store.create_table(name, {"bank": str, "account": int}, split_at=["m"])
    return store.table(name)


async def opened(table: ackord.Table, bank: str, count: int) -> None:
    version = await table.write_many([Put((bank, n), {"n": AMOUNT}) for n in range(count)], atomic=True)
    assert isinstance(version, int)


async def commit(
    table: ackord.Table, work: Callable[[ackord.Transaction], Awaitable[None]]
) -> ackord.Transaction:
    async with table.transaction("a") as tx:
        await work(tx)
    return tx


# --------------------------------------------------------------------------- reads and writes


async def test_reads_see_own_writes_and_others_see_all_of_them_or_nothing(table: ackord.Table) -> None:
    await opened(table, "a", 4)
    async with table.transaction("a") as tx:
        tx.update(("a", 0), increment={"n": -10})
        tx.put(("a", 9), {"n": 10})
        tx.delete(("a", 1))
        tx.update(("a", 3), {"note": "x"}, delete=["n"])
        own = await tx.get(("a", 0))
        assert own is not None and (own["n"], own.version) == (AMOUNT - 10, 0)
        assert await tx.get(("a", 1)) is None
        shown = await tx.scan()
        assert [(row.key[1], dict(row)) for row in shown] == [
            (0, {"n": AMOUNT - 10}),
            (2, {"n": AMOUNT}),
            (3, {"note": "x"}),
            (9, {"n": 10}),
        ]
        assert [row.key[1] for row in await tx.scan(limit=2)] == [0, 2]
        assert [row.key[1] for row in await tx.scan(limit=2, reverse=True)] == [9, 3]
        assert [row.key[1] for row in await tx.scan(start=("a", 1), end=("a", 9), reverse=True)] == [3, 2]
        untouched = await tx.get(("a", 2))
        assert untouched is not None and untouched.version > 0
        others = await table.scan(("a",)).rows()
        assert [row["n"] for row in others] == [AMOUNT] * 4, "nothing is done before the end"
    rows = await table.scan(("a",)).rows()
    assert [(row.key[1], dict(row)) for row in rows] == [(r.key[1], dict(r)) for r in shown]
    changed = {row.version for row in rows if row.key[1] != 2}
    assert changed == {tx.version}


async def test_an_exception_ends_it_with_nothing_done(table: ackord.Table) -> None:
    begun: list[ackord.Transaction] = []

    async def fails(tx: ackord.Transaction) -> None:
        begun.append(tx)
        tx.put(("a", 1), {"n": 1})
        raise RuntimeError("changed my mind")

    with pytest.raises(RuntimeError, match="changed my mind"):
        await commit(table, fails)
    tx = begun[0]
    assert tx.version is None
    assert await table.get(("a", 1)) is None
    with pytest.raises(ackord.InvalidRequest, match="has ended"):
        tx.put(("a", 1), {"n": 1})
    with pytest.raises(ackord.InvalidRequest, match="has ended"):
        await tx.get(("a", 1))


async def test_what_was_read_must_still_be_so(table: ackord.Table) -> None:
    await opened(table, "a", 3)

    async def meets_another_row(tx: ackord.Transaction) -> None:
        assert await tx.get(("a", 1)) is not None
        assert await tx.get(("a", 7)) is None
        tx.put(("a", 2), {"n": 0})
        await table.put(("a", 7), {"n": 1})

    with pytest.raises(ackord.Conflict, match="have changed since") as caught:
        await commit(table, meets_another_row)
    assert caught.value.detail["keys"] == [("a", 7)]

    async def meets_a_deletion(tx: ackord.Transaction) -> None:
        await tx.scan(end=("a", 3))
        tx.put(("a", 2), {"n": 0})
        await table.delete(("a", 0))

    with pytest.raises(ackord.Conflict) as caught:
        await commit(table, meets_a_deletion)
    assert (caught.value.detail["keys"], caught.value.detail["ranges"]) == ([], [0])

    async def reads_twice(tx: ackord.Transaction) -> None:
        await tx.get(("a", 2))
        await table.put(("a", 2), {})
        await tx.scan()

    with pytest.raises(ackord.Conflict, match="changed between two reads"):
        await commit(table, reads_twice)
    async with table.transaction("a") as tx:  # beside of what was read
        await tx.scan(limit=1)
        tx.put(("a", 2), {"n": 0})
        await table.put(("a", 7), {"n": 2})
    row = await table.get(("a", 2))
    assert row is not None and row.version == tx.version


async def test_a_transaction_that_only_reads_is_checked_too(table: ackord.Table) -> None:
    await opened(table, "a", 3)
    async with table.transaction("a") as tx:
        rows = await tx.scan()
    assert tx.version is not None and tx.version >= max(row.version for row in rows)

    async def only_reads(tx: ackord.Transaction) -> None:
        await tx.scan()
        await table.put(("a", 1), {})

    with pytest.raises(ackord.Conflict):
        await commit(table, only_reads)
    async with table.transaction("a") as tx:
        pass
    assert tx.version is None


async def test_the_conditions_of_its_writes(table: ackord.Table) -> None:
    await opened(table, "a", 2)

    async def meets_a_row(tx: ackord.Transaction) -> None:
        tx.put(("a", 5), {})
        tx.put(("a", 1), {}, if_absent=True)

    with pytest.raises(ackord.Conflict, match="if_absent") as caught:
        await commit(table, meets_a_row)
    current = caught.value.current
    assert current is not None and (current.key, current["n"]) == (("a", 1), AMOUNT)
    assert caught.value.detail["keys"] == [("a", 1)]
    assert await table.get(("a", 5)) is None
    with pytest.raises(ackord.InvalidRequest, match="increment"):
        await table.write_many(
            [Put(("a", 5), {"n": "text"}), Update(("a", 5), increment={"n": 1})], atomic=True
        )
    assert await table.get(("a", 5)) is None
    with pytest.raises(ackord.Conflict):
        await table.write_many([Put(("a", 5), {}), Put(("a", 1), {}, if_absent=True)], atomic=True)
    assert await table.write_many([], atomic=True) is None


async def test_what_does_not_belong_into_it(table: ackord.Table, store: ackord.Store) -> None:
    async with table.transaction("a") as tx:
        for wrong in (("b", 1), ("ab", 1)):
            with pytest.raises(ackord.InvalidRequest, match="takes no other's keys"):
                tx.put(wrong, {})
            with pytest.raises(ackord.InvalidRequest, match="takes no other's keys"):
                await tx.get(wrong)
            with pytest.raises(ackord.InvalidRequest, match="takes no other's keys"):
                await tx.scan(start=wrong)
    with pytest.raises(ackord.InvalidRequest, match="takes no other's keys"):
        await table.write_many([Put(("a", 1), {}), Put(("b", 1), {})], atomic=True)
    with pytest.raises(ackord.InvalidRequest, match="transaction_rows_count of 30"):
        await table.write_many([Put(("a", n), {}) for n in range(31)], atomic=True)
    for at in range(0, 75, 25):
        await table.write_many([Put(("a", n), {}) for n in range(at, at + 25)], atomic=True)
    async with table.transaction("a") as tx:
        with pytest.raises(ackord.InvalidRequest, match="transaction_range_rows_count of 60"):
            await tx.scan()
        assert len(await tx.scan(limit=60)) == 60
    with pytest.raises(ackord.TableNotFound):
        async with store.table("nowhere").transaction("a"):
            pass


async def test_numbered_rows_and_single_column_keys(store: ackord.Store) -> None:
    name = f"n{uuid.uuid4().hex[:8]}"
    await store.create_table(name, {"topic": str, "number": AUTO})
    table = store.table(name)
    async with table.transaction("news") as tx:
        tx.put(("news", AUTO), {"text": "hello"})
        tx.put(("news", 0), {"count": 1})
    assert [row.key for row in await table.scan(("news",)).rows()] == [("news", 0), ("news", tx.version)]
    await store.create_table(name + "s", {"k": int})
    single = store.table(name + "s")
    async with single.transaction(2**63 - 1) as tx:
        assert await tx.get(2**63 - 1) is None
        assert await tx.scan() == []
        tx.put(2**63 - 1, {"x": 1})
    row = await single.get(2**63 - 1)
    assert row is not None and row.version == tx.version


async def test_transact_repeats_until_it_commits(table: ackord.Table) -> None:
    await table.put(("a", 1), {"n": 0})
    calls = 0

    async def add(tx: ackord.Transaction) -> int:
        nonlocal calls
        calls += 1
        row = await tx.get(("a", 1))
        assert row is not None
        await asyncio.sleep(0)
        tx.put(("a", 1), {"n": row["n"] + 1})
        return int(row["n"])

    seen = await asyncio.gather(*(table.transact("a", add, timeout=60) for _ in range(20)))
    assert sorted(seen) == list(range(20))
    assert calls > 20, "they came between each other"
    row = await table.get(("a", 1))
    assert row is not None and row["n"] == 20

    async def refused(tx: ackord.Transaction) -> None:
        nonlocal calls
        calls += 1
        tx.put(("a", 1), {}, if_absent=True)

    calls = 0
    with pytest.raises(ackord.Conflict):
        await table.transact("a", refused)
    assert calls == 1, "trying again could not help"


# ----------------------------------------------------------------------------------------- HTTP


async def test_over_plain_http(cluster: RealCluster, table: ackord.Table) -> None:
    await opened(table, "a", 2)
    rows = await table.scan(("a",)).rows()
    seen = [{"key": list(row.key), "version": str(row.version)} for row in rows]
    body: dict[str, Any] = {
        "partition": "a",
        "reads": [seen[0], {"key": ["a", 5], "version": None}],
        "ranges": [{"prefix": ["a"], "start": ["a", 1], "rows": seen[1:]}],
        "writes": [
            {"put": ["a", 5], "columns": {"b": {"$bytes": "AAE="}}, "if_absent": True},
            {
                "update": ["a", 0],
                "increment": {"n": 1},
                "delete": ["x"],
                "where": ["==", {"col": "n"}, AMOUNT],
            },
            {"delete": ["a", 1], "if_version": seen[1]["version"]},
        ],
    }
    headers = {"Idempotency-Key": f"{int(time.time() * 1000):013d}-{uuid.uuid4().hex}"}
    async with aiohttp.ClientSession() as session:

        async def post(node: str, body: Any, **more: Any) -> tuple[int, Any]:
            url = f"{cluster[node].url}/v1/tables/{table.name}/transactions"
            async with session.post(url, json=body, **more) as response:
                return response.status, await response.json()

        version = 0
        for node in ("n1", "n2", "n3", "n1"):  # forwarded from two of them, done once
            status, answer = await post(node, body, headers=headers)
            assert status == 200, answer
            version = int(answer["version"])
        after = {row.key[1]: dict(row) for row in await table.scan(("a",)).rows()}
        assert after == {0: {"n": AMOUNT + 1}, 5: {"b": b"\x00\x01"}}
        row = await table.get(("a", 5))
        assert row is not None and row.version == version
        status, answer = await post("n2", body)
        assert (status, answer["error"]["code"]) == (409, "conflict")
        assert answer["error"]["detail"]["reads"] == [0, 1]
        assert answer["error"]["detail"]["ranges"] == [0]
        status, answer = await post("n2", {"partition": "a", "writes": [body["writes"][0]]})
        assert (status, answer["error"]["detail"]["write"]) == (409, 0)
        assert answer["error"]["current"]["version"] == str(version)
        for wrong, text in (
            ({"partition": "b", "writes": [{"delete": ["a", 1]}]}, "have the same one"),
            ({"partition": "a", "ranges": [{"rows": []}]}, "have the same one"),
            (
                {"partition": "a", "writes": [{"delete": ["a", n]} for n in range(31)]},
                "transaction_rows_count",
            ),
            ({"partition": "a", "writes": [{"put": ["a", 1], "delete": ["a", 1]}]}, "one of put"),
            ({"partition": "a", "writes": [{"put": ["a", 1], "colums": {}}]}, "unknown field"),
            ({"reads": []}, "'partition' is missing"),
        ):
            status, answer = await post("n3", wrong)
            assert status == 400
            assert re.search(text, answer["error"]["message"]), answer


# ----------------------------------------------------------------------------------- transfers


async def test_the_total_stays_while_coordinators_are_killed(
    cluster: RealCluster, store: ackord.Store
) -> None:
    bank = Transfers(f"t{uuid.uuid4().hex[:8]}", accounts_count=25)
    await bank.create(store)
    is_over = False
    async with ackord.connect(cluster.urls, reads="round_robin", timeout=20) as other:
        tasks = [
            asyncio.ensure_future(bank.run(which, random.Random(seed), lambda: is_over))
            for seed, which in enumerate((store, other) * 6)
        ]
        try:
            await asyncio.sleep(1.5)
            for _ in range(2):
                (victim,) = (await asyncio.to_thread(cluster.coordinators, bank.table)).values()
                assert victim is not None
                cluster[victim].kill()
                before = bank.seen.commits
                async with asyncio.timeout(60):
                    while bank.seen.commits < before + 20 and not any(task.done() for task in tasks):
                        await asyncio.sleep(0.05)
                await asyncio.to_thread(cluster.start)
                await asyncio.to_thread(cluster.wait_in_sync, bank.table)
        finally:
            is_over = True
            await asyncio.gather(*tasks)
    await bank.check_end(store)
    print(f"transfers: {bank.seen}")
    assert bank.seen.totals > 10
