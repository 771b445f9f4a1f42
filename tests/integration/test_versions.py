"""Versions, expiry, merges and cells on a real cluster, on every node, over restarts of nodes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

import ackord
from tests.support.cluster import RealCluster

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("cluster")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RealCluster]:
    with RealCluster() as cluster:
        yield cluster


@pytest.fixture
async def store(cluster: RealCluster) -> AsyncIterator[ackord.Store]:
    async with ackord.connect(cluster.urls, reads="round_robin") as store:
        yield store


async def new_table(store: ackord.Store, **options: Any) -> ackord.Table:
    name = f"t{uuid.uuid4().hex[:8]}"
    await store.create_table(name, {"p": str, "n": int}, split_at=["m"], **options)
    return store.table(name)


async def gone(table: ackord.Table, key: Any, seconds: float) -> float:
    """Until the row cannot be read; how long that took."""
    begun = time.monotonic()
    while await table.get(key) is not None:
        assert time.monotonic() - begun < seconds, f"{key} is still there"
        await asyncio.sleep(0.05)
    return time.monotonic() - begun


# ------------------------------------------------------------------------------------- options


async def test_options_are_part_of_the_definition(store: ackord.Store) -> None:
    merge = {"total": "sum", "tags": "union"}
    made = await store.create_table("opt", {"k": int}, keep_versions=5, keep_for=60, ttl=3600, merge=merge)
    assert made.options.to_wire() == {"keep_versions": 5, "keep_for": 60, "ttl": 3600, "merge": merge}
    assert await store.describe_table("opt") == made
    (listed,) = [table for table in await store.list_tables() if table.name == "opt"]
    assert listed.options == made.options
    again = await store.create_table("opt", {"k": int}, keep_versions=5, keep_for=60, ttl=3600, merge=merge)
    assert again == made
    with pytest.raises(ackord.TableExists, match="other options"):
        await store.create_table("opt", {"k": int}, keep_versions=4)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"keep_versions": 0}, "keep_versions"),
        ({"keep_versions": 10_001}, "keep_versions"),
        ({"keep_for": 0}, "keep_for"),
        ({"ttl": -1}, "ttl"),
        ({"max_versions": 1.5}, "max_versions"),
        ({"merge": {"a": "most"}}, "merge"),
        ({"merge": {"a": "sum"}, "max_versions": 2}, "merge"),
    ],
)
async def test_bad_options_are_named(store: ackord.Store, options: dict[str, Any], field: str) -> None:
    with pytest.raises(ackord.InvalidRequest) as caught:
        await store.create_table("bad", {"k": int}, **options)
    assert caught.value.detail["field"] == field
    assert caught.value.detail["limit"] is not None


# ------------------------------------------------------------------------------------ versions


async def test_each_version_that_is_kept_can_be_read_everywhere(store: ackord.Store) -> None:
    table = await new_table(store, keep_versions=3)
    key = ("a", 1)
    versions = [await table.put(key, {"n": number}) for number in range(5)]
    for _ in range(3):  # one of each node
        for number in (2, 3, 4):
            row = await table.get(key, as_of=versions[number])
            assert row is not None and (row["n"], row.version) == (number, versions[number])
        for number in (0, 1):
            with pytest.raises(ackord.VersionCollected):
                await table.get(key, as_of=versions[number])
        found = await table.history(key)
        assert [item.version for item in found] == versions[:1:-1]
        assert [item.row["n"] for item in found if item.row is not None] == [4, 3, 2]
    deleted = await table.delete(key)
    assert await table.get(key, as_of=deleted) is None
    found = await table.history(key, 2)
    assert [(item.version, item.is_deletion) for item in found] == [(deleted, True), (versions[4], False)]
    assert [item.version for item in await table.history(key, before=versions[4])] == [versions[3]]
    assert await table.get(("a", 2), as_of=deleted) is None


async def test_a_version_ahead_of_the_last_one_is_passed_first(store: ackord.Store) -> None:
    table = await new_table(store, keep_versions=2)
    version = await table.put(("a", 1), {"n": 1})
    ahead = version + (2_000 << 16)
    row = await table.get(("a", 1), as_of=ahead)
    assert row is not None and row["n"] == 1
    assert await table.put(("a", 1), {"n": 2}) > ahead
    row = await table.get(("a", 1), as_of=ahead)
    assert row is not None and row["n"] == 1
    with pytest.raises(ackord.InvalidRequest, match="ahead"):
        await table.get(("a", 1), as_of=version + (100_000 << 16))


async def test_a_scan_as_of_a_version_is_what_the_rows_were(store: ackord.Store) -> None:
    table = await new_table(store, keep_versions=4)
    keys = [(p, n) for p in ("a", "z") for n in range(30)]
    await asyncio.gather(*(table.put(key, {"n": key[1]}) for key in keys))
    version = max([row.version async for row in table.scan()])
    await table.delete(("a", 3))
    await asyncio.gather(*(table.update(key, increment={"n": 100}) for key in keys[10:20]))
    await table.put(("a", 99), {"n": 99})
    for reverse in (False, True):
        rows = await table.scan(as_of=version, reverse=reverse).rows()
        wanted = sorted(keys, reverse=reverse)
        assert [(row.key, row["n"]) for row in rows] == [(key, key[1]) for key in wanted]
    rows = await table.scan(("a",), as_of=version, where=ackord.col("n") < 5, columns=["n"]).rows()
    assert [row["n"] for row in rows] == [0, 1, 2, 3, 4]
    assert len(await table.scan().rows()) == 60
    found = await table.get_many([*keys, ("a", 99)], as_of=version)
    assert [row and row["n"] for row in found] == [*(key[1] for key in keys), None]
    assert [row.key for row in found if row is not None] == keys
    assert (await table.count(), await table.count(as_of=version)) == (60, 60)
    assert await table.count(("a",), as_of=version) == 30
    assert await table.count(start=("a", 25), end=("z", 5), as_of=version) == 10
    assert await table.count(as_of=version, where=ackord.col("n") >= 100) == 0
    assert await table.count(where=ackord.col("n") >= 100) == 10
    assert await table.count(as_of=version, where=ackord.key("n") < 5) == 10
    assert await table.get_many([], as_of=version) == []
    for _ in range(4):
        await table.update(("z", 1), increment={"n": 1})
    with pytest.raises(ackord.VersionCollected):
        await table.scan(as_of=version).rows()
    with pytest.raises(ackord.VersionCollected):
        await table.count(as_of=version)
    assert await table.count(("a",), as_of=version) == 30
    with pytest.raises(ackord.VersionCollected):
        await table.get_many([("a", 1), ("z", 1)], as_of=version)
    for wrong in (-1, "1", True):
        with pytest.raises(ackord.InvalidRequest, match="as_of"):
            await table.get_many([("a", 1)], as_of=wrong)  # type: ignore[arg-type]
        with pytest.raises(ackord.InvalidRequest, match="as_of"):
            await table.count(as_of=wrong)  # type: ignore[arg-type]
    with pytest.raises(ackord.InvalidRequest, match="where or columns"):
        await table.get_many([("a", 1)], as_of=version, columns=["n"])


async def test_a_long_range_is_counted_as_it_was(store: ackord.Store) -> None:
    """In several stretches, while it changes."""
    table = await new_table(store, keep_versions=2)
    keys = [("a", n) for n in range(2_500)]
    for at in range(0, len(keys), 200):
        await table.write_many([ackord.Put(key, {"n": key[1]}) for key in keys[at : at + 200]])
    last = await table.put(("z", 0), {"n": 0})
    version = max(last, *[row.version async for row in table.scan(("a",))])
    count = asyncio.create_task(table.count(as_of=version))
    for at in range(0, 1_000, 200):
        await table.write_many([ackord.Delete(key) for key in keys[at : at + 200]])
    assert await count == 2_501
    assert await table.count(as_of=version) == 2_501
    assert await table.count() == 1_501


async def test_a_table_that_keeps_no_versions_answers_only_for_the_present(store: ackord.Store) -> None:
    table = await new_table(store)
    first = await table.put(("a", 1), {"n": 1})
    second = await table.put(("a", 1), {"n": 2})
    row = await table.get(("a", 1), as_of=second)
    assert row is not None and row["n"] == 2
    with pytest.raises(ackord.VersionCollected):
        await table.get(("a", 1), as_of=first)
    assert [item.version for item in await table.history(("a", 1))] == [second]


# -------------------------------------------------------------------------------------- expiry


async def test_a_row_lives_as_long_as_its_write_says(store: ackord.Store) -> None:
    table = await new_table(store)
    await table.put(("a", 1), {"n": 1}, ttl=2.5)
    await table.put(("a", 2), {"n": 2})
    version = await table.put(("a", 3), {"n": 3}, ttl=100)
    row = await table.get(("a", 3))
    assert row is not None and row.expires_at == pytest.approx((version >> 16) / 1000 + 100)
    assert row["n"] == 3
    assert await table.get(("a", 1)) is not None
    assert await gone(table, ("a", 1), 15) > 0.5
    assert [row["n"] async for row in table.scan()] == [2, 3]
    assert await table.count() == 2
    assert await table.get_many([("a", 1), ("a", 2)]) == [None, await table.get(("a", 2))]
    with pytest.raises(ackord.Conflict):
        await table.put(("a", 1), {}, if_exists=True)
    await table.put(("a", 1), {"n": 10}, if_absent=True)
    await table.update(("a", 3), {"m": 1})
    row = await table.get(("a", 3))
    assert row is not None and row.expires_at == pytest.approx((version >> 16) / 1000 + 100)


async def test_rows_of_a_table_with_a_ttl_are_swept(cluster: RealCluster, store: ackord.Store) -> None:
    table = await new_table(store, ttl=2)
    await asyncio.gather(*(table.put(("a", n), {"n": n}) for n in range(300)))
    assert await table.count() == 300
    await gone(table, ("a", 299), 20)
    begun = time.monotonic()
    while await table.count() or await table.scan().rows():
        assert time.monotonic() - begun < 10
        await asyncio.sleep(0.1)


# ------------------------------------------------------------------------------------- merges


async def test_writes_from_one_base_are_merged(store: ackord.Store) -> None:
    table = await new_table(store, keep_versions=10, merge={"n": "sum", "tags": "union", "log": "append"})
    key = ("a", 1)
    base = await table.put(key, {"n": 10, "tags": ["x"], "log": ["begin"], "note": "old"})
    await table.put(key, {"n": 11, "tags": ["x", "y"], "log": ["begin", 1], "note": "old"}, if_version=base)
    await table.put(
        key,
        {"n": 15, "tags": ["z", "x"], "log": ["begin", 2], "note": "new"},
        if_version=base,
        on_conflict="merge",
    )
    await table.update(key, increment={"n": 100}, append={"log": [3]}, if_version=base, on_conflict="merge")
    row = await table.get(key)
    assert row is not None
    assert dict(row) == {"n": 116, "tags": ["x", "y", "z"], "log": ["begin", 1, 2, 3], "note": "new"}
    with pytest.raises(ackord.Conflict) as caught:
        await table.update(key, {"note": "mine"}, if_version=base, on_conflict="merge")
    assert caught.value.detail["columns"] == ["note"]
    assert caught.value.current == row
    await table.put(key, {"only": True}, if_version=base, on_conflict="latest")
    row = await table.get(key)
    assert row is not None and dict(row) == {"only": True}


async def test_a_base_that_is_no_longer_kept_is_a_clear_error(store: ackord.Store) -> None:
    table = await new_table(store, keep_versions=2, merge={"n": "sum"})
    base = await table.put(("a", 1), {"n": 1})
    for _ in range(3):
        await table.update(("a", 1), increment={"n": 1})
    with pytest.raises(ackord.VersionCollected, match="keep_versions"):
        await table.update(("a", 1), increment={"n": 1}, if_version=base, on_conflict="merge")


# --------------------------------------------------------------------------------------- cells


async def test_columns_keep_their_cells(store: ackord.Store) -> None:
    table = await new_table(store, max_versions=3)
    key = ("a", 1)
    now = int(time.time() * 1000)
    await table.put(key, {"t": 1, "u": "x"}, timestamp=now)
    for number in (2, 3, 4):
        await table.update(key, {"t": number}, timestamp={"t": now + number})
    row = await table.get(key)
    assert row is not None and dict(row) == {"t": 4, "u": "x"}
    row = await table.get(key, versions=10)
    assert row is not None and row.cells("t") == [(now + 4, 4), (now + 3, 3), (now + 2, 2)]
    assert row.cells("u") == [(now, "x")] and row["t"] == 4
    row = await table.get(key, versions=1, time_range=(now, now + 4))
    assert row is not None and row.cells("t") == [(now + 3, 3)]
    await table.update(key, delete_cells={"t": [now + 4]})
    written = await table.update(key, increment={"t": 10}, where=ackord.col("t") == 3, returning="new")
    assert written.row is not None and written.row["t"] == 13
    assert [row["t"] async for row in table.scan(where=ackord.col("t") > 5)] == [13]
    await table.update(key, delete=["t"])
    row = await table.get(key, versions=10)
    assert row is not None and row.cells("t") == []
    with pytest.raises(ackord.InvalidRequest, match="timestamp"):
        await table.put(key, {"t": 1}, timestamp=now - 10 * 86_400_000)


# ------------------------------------------------------------------------------------ restarts


async def test_versions_survive_restarts_and_reach_a_member_that_lost_its_disk(
    cluster: RealCluster, store: ackord.Store
) -> None:
    table = await new_table(store, keep_versions=5)
    key = ("a", 1)
    versions = [await table.put(key, {"n": n}) for n in range(4)]
    deleted = await table.delete(key)
    node = cluster["n3"]
    node.kill()
    await asyncio.to_thread(node.wait_exit)
    node.wipe()
    node.start()
    await asyncio.to_thread(cluster.wait_in_sync, table.name)
    async with ackord.connect(cluster.urls, reads="node:n3") as only:
        other = only.table(table.name)
        found = await other.history(key)
        assert [item.version for item in found] == [deleted, *versions[::-1]]
        row = await other.get(key, as_of=versions[1])
        assert row is not None and row["n"] == 1


# ------------------------------------------------------------------------------ HTTP, commands


async def test_plain_http_reads_versions_and_writes_with_a_ttl(
    cluster: RealCluster, store: ackord.Store
) -> None:
    nodes = cluster.urls.split(",")
    async with aiohttp.ClientSession() as http:
        options = {"keep_versions": 3, "merge": {"n": "sum"}}
        body = {"name": "web", "key": [["k", "str"]], "options": options}
        async with http.post(f"{nodes[0]}/v1/tables", json=body) as answer:
            assert answer.status == 201 and (await answer.json())["options"] == options
        body["options"] = {"keep_versions": "many"}
        async with http.post(f"{nodes[0]}/v1/tables", json=body | {"name": "web2"}) as answer:
            assert (
                answer.status == 400 and (await answer.json())["error"]["detail"]["field"] == "keep_versions"
            )
        row = f"{nodes[1]}/v1/tables/web/rows/a"
        versions = []
        for n in range(3):
            async with http.put(row, json={"n": n}) as answer:
                versions.append((await answer.json())["version"])
        query = {"if_version": versions[0], "on_conflict": "merge"}
        async with http.put(row, params=query, json={"n": 10}) as answer:
            assert answer.status == 200
        for node in nodes:
            row = f"{node}/v1/tables/web/rows/a"
            async with http.get(row, params={"as_of": versions[1]}) as answer:
                assert (await answer.json())["columns"] == {"n": 1}
            async with http.get(row, params={"as_of": versions[0]}) as answer:
                assert answer.status == 410 and (await answer.json())["error"]["code"] == "version_collected"
            async with http.get(row, params={"history": 2}) as answer:
                found = await answer.json()
                assert [item["columns"] for item in found["versions"]] == [{"n": 12}, {"n": 2}]
            async with http.get(row, params={"history": 2, "before": found["next"]}) as answer:
                found = await answer.json()
                assert ([item["columns"] for item in found["versions"]], found["next"]) == ([{"n": 1}], None)
            async with http.get(row, params={"versions": 1}) as answer:
                assert [value for _, value in (await answer.json())["cells"]["n"]] == [12]
            async with http.get(f"{node}/v1/tables/web/rows", params={"as_of": versions[2]}) as answer:
                assert [item["columns"] for item in (await answer.json())["rows"]] == [{"n": 2}]
            for version, status in ((versions[2], 200), (versions[0], 410)):
                async with http.get(f"{node}/v1/tables/web/count", params={"as_of": version}) as answer:
                    assert answer.status == status
                    assert status != 200 or await answer.json() == {"count": 1, "next": None}
            async with http.get(row, params={"as_of": versions[0], "history": 1}) as answer:
                assert answer.status == 400
        async with http.put(row, params={"ttl": "1.5"}, json={"n": 1}) as answer:
            assert answer.status == 200
        await gone(store.table("web"), "a", 15)
        async with http.put(row, params={"ttl": "soon"}, json={"n": 1}) as answer:
            assert answer.status == 400


async def test_metrics_tell_what_was_removed(cluster: RealCluster, store: ackord.Store) -> None:
    async def read(name: str) -> list[float]:
        values = []
        async with aiohttp.ClientSession() as http:
            for node in cluster.urls.split(","):
                async with http.get(f"{node}/metrics") as answer:
                    lines = (await answer.text()).splitlines()
                values += [float(line.split()[1]) for line in lines if line.startswith(f"{name} ")]
        assert len(values) == 3
        return values

    expired = sum(await read("ackord_rows_expired_total"))
    removed = await read("ackord_versions_removed_total")
    table = await new_table(store, keep_versions=2)
    for number in range(5):
        await table.put(("a", 1), {"n": number})
    await table.put(("a", 2), {"n": 0}, ttl=0.5)
    begun = time.monotonic()
    while True:
        now = await read("ackord_versions_removed_total")
        if sum(await read("ackord_rows_expired_total")) == expired + 1 and all(
            map(float.__gt__, now, removed)
        ):
            break
        assert time.monotonic() - begun < 60
        await asyncio.sleep(0.5)
    for name in ("ackord_expiry_lag_seconds", "ackord_collector_lag_seconds"):
        assert all(0 <= value < 120 for value in await read(name))


async def test_the_command_line_reads_versions(cluster: RealCluster) -> None:
    def ackord_cli(*words: str) -> str:
        run = subprocess.run(
            [sys.executable, "-c", "from ackord.cli import main; main()", "--nodes", cluster.urls, *words],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.returncode == 0, run.stderr
        return run.stdout

    def work() -> None:
        made = ("table", "create", "shell", "--key", "k:str", "--keep-versions", "3", "--merge", "n=sum")
        ackord_cli(*made)
        assert "keep_versions: 3" in ackord_cli("table", "describe", "shell")
        first = ackord_cli("put", "shell", "a", "--set", "n=1").strip()
        ackord_cli("put", "shell", "a", "--set", "n=2", "--ttl", "600")
        ackord_cli("put", "shell", "a", "--set", "n=10", "--if-version", first, "--on-conflict", "merge")
        assert json.loads(ackord_cli("get", "shell", "a", "--as-of", first, "--json"))["columns"] == {"n": 1}
        ackord_cli("put", "shell", "b", "--set", "n=7")
        found = [
            json.loads(line)["columns"]
            for line in ackord_cli("scan", "shell", "--json", "--as-of", first).splitlines()
        ]
        assert found == [{"n": 1}]
        assert [ackord_cli("count", "shell", *words).strip() for words in ((), ("--as-of", first))] == [
            "2",
            "1",
        ]
        lines = ackord_cli("history", "shell", "a", "--json").splitlines()
        assert [json.loads(line)["columns"] for line in lines] == [{"n": 11}, {"n": 2}, {"n": 1}]

    await asyncio.to_thread(work)
