"""Conditions, filters, projections, updates, numbered keys, scans and counts on a real cluster, through the SDK and
through plain HTTP."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

import ackord
from ackord import AUTO, col, key
from tests.support.cluster import RealCluster

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("cluster-rows")]

IS_EVEN = col("even") == True  # noqa: E712
IS_ODD = col("even") == False  # noqa: E712


@pytest.fixture(scope="module")
def cluster() -> Iterator[RealCluster]:
    with RealCluster() as cluster:
        yield cluster


@pytest.fixture
async def store(cluster: RealCluster) -> AsyncIterator[ackord.Store]:
    async with ackord.connect(cluster.urls) as store:
        yield store


@pytest.fixture
async def table(store: ackord.Store) -> ackord.Table:
    name = f"t{uuid.uuid4().hex[:8]}"
    await store.create_table(name, {"customer": str, "order": int}, split_at=["h", "p"])
    return store.table(name)


async def filled(table: ackord.Table, count: int = 300) -> list[tuple[str, int]]:
    """``count`` rows over all three tablets, in key order."""
    keys = sorted(("aiz"[n % 3], n) for n in range(count))
    for at in range(0, count, 100):
        await table.write_many(
            [ackord.Put(k, {"n": k[1], "even": k[1] % 2 == 0, "pad": "x" * 50}) for k in keys[at : at + 100]]
        )
    return keys


# --------------------------------------------------------------------------- conditions and filters


async def test_a_write_happens_only_where_its_condition_holds(table: ackord.Table) -> None:
    k = ("alice", 1)
    first = await table.put(k, {"state": "new", "total": 990})
    with pytest.raises(ackord.Conflict, match="where does not hold") as caught:
        await table.update(k, {"state": "paid"}, where=col("state") == "shipped")
    assert caught.value.current is not None
    assert (caught.value.current.version, caught.value.current["state"]) == (first, "new")
    second = await table.update(
        k, {"state": "paid"}, where=(col("state") == "new") & (key("customer") == "alice"), if_version=first
    )
    with pytest.raises(ackord.Conflict, match="if_version"):
        await table.put(k, {}, where=col("state") == "paid", if_version=first)
    with pytest.raises(ackord.Conflict, match="where"):
        await table.delete(k, where=col("state") == "new", if_version=second)
    await table.delete(k, where=col("total") > 900.5)
    assert await table.get(k) is None
    await table.put(k, {"state": "again"}, where=~col("state").exists())
    with pytest.raises(ackord.Conflict):
        await table.put(("bob", 1), {}, where=~col("state").exists(), if_exists=True)
    with pytest.raises(ackord.InvalidRequest, match="is no key column"):
        await table.put(k, {}, where=key("nobody") == 1)
    results = await table.write_many(
        [
            ackord.Update(k, {"a": 1}, where=col("state") == "again"),
            ackord.Update(("b", 1), {"a": 1}, where=col("state") == "again"),
            ackord.Delete(("c", 1), where=col("state") == "again"),
        ]
    )
    assert isinstance(results[0], int)
    assert isinstance(results[1], ackord.Conflict)
    assert isinstance(results[2], ackord.Conflict)


async def test_reads_filter_and_project_at_the_server(table: ackord.Table) -> None:
    k = ("alice", 1)
    version = await table.put(k, {"state": "new", "total": 990, "note": None})
    row = await table.get(k, columns=["total", "absent"])
    assert row is not None
    assert (row.key, row.version, dict(row)) == (k, version, {"total": 990})
    assert await table.get(k, where=col("state") == "paid") is None
    row = await table.get(k, where=col("state") == "new", columns=[])
    assert row is not None and dict(row) == {}
    await table.put(("bob", 2), {"state": "paid"})
    rows = await table.get_many([k, ("bob", 2), ("eve", 3)], where=col("state") == "paid", columns=["state"])
    assert [None if r is None else dict(r) for r in rows] == [None, {"state": "paid"}, None]
    many = await asyncio.gather(
        *(table.get(k, columns=[name]) for name in ("state", "total") * 20),
        *(table.get(k) for _ in range(20)),
    )
    assert {json.dumps(dict(r), sort_keys=True) for r in many if r is not None} == {
        '{"state": "new"}',
        '{"total": 990}',
        '{"note": null, "state": "new", "total": 990}',
    }


# ------------------------------------------------------------------------------------------ updates


async def test_update_in_full(table: ackord.Table) -> None:
    k = ("alice", 1)
    await table.update(k, {"a": 1}, increment={"n": 2, "f": 0.5}, append={"tags": ["x"]})
    written = await table.update(
        k,
        {"b": 2},
        delete=["a"],
        increment={"n": 2**62, "f": 1},
        append={"tags": ["y", {"z": 1}]},
        returning="new",
    )
    assert written.row is not None and written.key == k
    assert dict(written.row) == {"n": 2**62 + 2, "f": 1.5, "tags": ["x", "y", {"z": 1}], "b": 2}
    assert written.version == written.row.version
    assert written.row == await table.get(k)
    old = await table.put(k, {"n": 1}, returning="old")
    assert old.row == written.row and old.version > written.version
    gone = await table.delete(k, returning="old")
    assert gone.row is not None and dict(gone.row) == {"n": 1}
    assert (await table.delete(k, returning="new")).row is None
    assert (await table.put(k, {"s": "text"}, returning="old")).row is None
    for refused, said in (
        ({"increment": {"s": 1}}, "an int or a float is needed"),
        ({"append": {"s": [1]}}, "a list is needed"),
        ({"increment": {"s": float("nan")}}, "finite float"),
        ({"append": {"s": "abc"}}, "must be a list"),
        ({"returning": "both"}, "neither"),
    ):
        with pytest.raises(ackord.InvalidRequest, match=said):
            await table.update(k, **refused)
    await table.put(k, {"i": 2**63 - 1, "f": 1.7e308})
    for amount, said in (
        ({"i": 1}, "beyond 64 bits"),
        ({"i": 0.5}, "stays exact"),
        ({"f": 1.7e308}, "no finite"),
    ):
        with pytest.raises(ackord.InvalidRequest, match=said):
            await table.update(k, increment=amount)


async def test_many_increments_that_return_are_all_different(table: ackord.Table) -> None:
    results = await asyncio.gather(
        *(table.update(("a", 1), increment={"n": 1}, returning="new") for _ in range(200))
    )
    assert sorted(r.row["n"] for r in results if r.row is not None) == list(range(1, 201))


async def test_the_table_numbers_its_rows(store: ackord.Store) -> None:
    name = f"t{uuid.uuid4().hex[:8]}"
    made = await store.create_table(name, {"customer": str, "order": AUTO}, split_at=["m"])
    assert made.key.to_wire() == [["customer", "str"], ["order", "auto"]]
    table = store.table(name)
    numbers = [await table.put(("alice", AUTO), {"n": n}) for n in range(5)]
    numbers += await asyncio.gather(*(table.put(("alice", AUTO), {"n": n}) for n in range(5, 50)))
    assert numbers[:5] == sorted(numbers[:5]) and max(numbers[:5]) < min(numbers[5:])
    assert len(set(numbers)) == 50
    rows = await table.scan("alice").rows()
    assert [row.key for row in rows] == [("alice", number) for number in sorted(numbers)]
    assert {row.key[1]: row["n"] for row in rows} == {number: n for n, number in enumerate(numbers)}
    written = await table.put(("zoe", AUTO), {"n": 1}, returning="new")
    assert written.key == ("zoe", written.version)
    assert await table.get(written.key) == written.row
    batch = await table.write_many([ackord.Put(("bob", AUTO), {"n": n}) for n in range(3)])
    assert await table.count("bob") == len(set(map(str, batch))) == 3
    await table.put(("alice", 7), {"by": "hand"})
    assert (await table.scan("alice", limit=1).rows())[0].key == ("alice", 7)
    for refused in (
        table.put((AUTO, 1), {}),
        table.put(("alice", AUTO), {}, if_absent=True),
        table.put(("alice", AUTO), {}, where=col("a") == 1),
        table.update(("alice", AUTO), {"a": 1}),
        table.get(("alice", AUTO)),
    ):
        with pytest.raises(ackord.InvalidRequest):
            await refused
    wrong: list[dict[str, Any]] = [{"order": AUTO}, {"order": AUTO, "customer": str}]
    for key_columns in wrong:
        with pytest.raises(ackord.InvalidRequest, match="AUTO may only be the last"):
            await store.create_table(f"{name}x", key_columns)


# -------------------------------------------------------------------------------------------- scans


@pytest.mark.parametrize("reverse", [False, True])
async def test_scans_of_every_kind_of_range(table: ackord.Table, reverse: bool) -> None:
    keys = await filled(table)
    order = keys[::-1] if reverse else keys

    async def scanned(*arguments: Any, **options: Any) -> list[Any]:
        return [row.key async for row in table.scan(*arguments, reverse=reverse, **options)]

    assert await scanned() == order
    assert await scanned("i") == [k for k in order if k[0] == "i"]
    assert await scanned(start=("a", 30), end=("z", 50)) == [k for k in order if ("a", 30) <= k < ("z", 50)]
    assert await scanned(start_after=("a", 30), end_at=("z", 50)) == [
        k for k in order if ("a", 30) < k <= ("z", 50)
    ]
    assert await scanned(start_after="a", end_at="i") == [k for k in order if k[0] == "i"]
    assert await scanned("a", start_after=("a", 30)) == [k for k in order if k[0] == "a" and k[1] > 30]
    assert await scanned(where=IS_EVEN) == [k for k in order if k[1] % 2 == 0]
    assert await scanned(where=key("order") == 299) == [k for k in order if k[1] == 299]
    assert await scanned(where=col("n") < 0) == []
    assert await scanned(where=IS_ODD, limit=7) == [k for k in order if k[1] % 2][:7]
    rows = await table.scan(columns=["n"], limit=3, reverse=reverse).rows()
    assert [dict(row) for row in rows] == [{"n": k[1]} for k in order[:3]]
    for options in ({"start": "a", "start_after": "a"}, {"end": "a", "end_at": "a"}):
        with pytest.raises(ackord.InvalidRequest, match="exclude each other"):
            await scanned(**options)


@pytest.mark.parametrize("reverse", [False, True])
async def test_a_token_goes_on_where_the_scan_stood(
    cluster: RealCluster, table: ackord.Table, reverse: bool
) -> None:
    keys = await filled(table)
    wanted = [k for k in (keys[::-1] if reverse else keys) if k[1] % 2 == 0 and k >= ("a", 10)]
    for stop in (1, 40, 99, 100, len(wanted) - 1):
        scan = table.scan(
            start=("a", 10),
            where=IS_EVEN,
            columns=["n"],
            reverse=reverse,
        )
        with pytest.raises(ackord.InvalidRequest, match="has not begun"):
            assert scan.token
        seen = [(await scan.__anext__()).key for _ in range(stop)]
        token = scan.token
        assert token is not None
        async with ackord.connect(cluster.urls.split(",")[0]) as elsewhere:
            rest = elsewhere.table(table.name).scan(token=token)
            rows = await rest.rows()
            assert rest.token is None
        assert seen + [row.key for row in rows] == wanted
        assert all(set(row) == {"n"} for row in rows)
    limited = table.scan(limit=5, reverse=reverse)
    await limited.__anext__()
    assert len(await table.scan(token=limited.token).rows()) == 4


async def test_a_wrong_token_is_refused(store: ackord.Store, table: ackord.Table) -> None:
    await filled(table, 10)
    scan = table.scan()
    await scan.__anext__()
    token = scan.token
    assert token is not None
    other = await store.create_table(f"{table.name}o", {"customer": str, "order": int})
    for at, wrong, said in (
        (store.table(other.name), token, "of another table"),
        (table, token[:-3], "token"),
        (table, ("B" if token[0] == "A" else "A") + token[1:], "damaged"),
        (table, "", "token"),
        (table, "not a token!", "not a token"),
    ):
        with pytest.raises(ackord.InvalidRequest, match=said):
            await at.scan(token=wrong).rows()
    with pytest.raises(ackord.InvalidRequest, match="stands for the whole scan"):
        table.scan("a", token=token)


async def test_counts(table: ackord.Table) -> None:
    await filled(table)
    assert await table.count() == 300
    assert await table.count("a") == 100
    assert (
        await table.count(start=("a", 290), end_at="i")
        == len([n for n in range(290, 300) if n % 3 == 0]) + 100
    )
    assert await table.count(where=col("n") < 30) == 30
    assert await table.count("nothing") == 0
    with pytest.raises(ackord.InvalidRequest):
        await table.count(where=key("nobody") == 1)


async def test_a_filter_that_matches_nothing_pages_on(table: ackord.Table) -> None:
    """More rows than one step looks at, in one tablet: empty pages lead on to the one row that matches."""
    await asyncio.gather(
        *(
            table.write_many([ackord.Put(("a", n), {"n": n}) for n in range(at, at + 200)])
            for at in range(0, 5000, 200)
        )
    )
    assert [row.key async for row in table.scan(where=col("n") == 4999)] == [("a", 4999)]
    assert [row.key async for row in table.scan(where=col("n") == 0, reverse=True)] == [("a", 0)]
    assert await table.count() == 5000
    assert await table.count(where=col("n") >= 4990) == 10
    scan = table.scan(where=col("n") < 0, read_ahead=0)
    assert await scan.rows() == []
    assert scan.token is None


# --------------------------------------------------------------------------------------------- HTTP


async def test_all_of_it_over_http(cluster: RealCluster, store: ackord.Store) -> None:
    name = f"t{uuid.uuid4().hex[:8]}"
    urls = [f"{url}/v1/tables" for url in cluster.urls.split(",")]
    async with aiohttp.ClientSession() as session:

        async def call(method: str, path: str, at: int = 0, **options: Any) -> tuple[int, Any]:
            async with session.request(method, f"{urls[at % 3]}{path}", **options) as response:
                return response.status, await response.json()

        made = {"name": name, "key": [["customer", "str"], ["order", "auto"]], "split_at": ["m"]}
        assert (await call("POST", "", json=made))[0] == 201
        rows = f"/{name}/rows"
        keys = []
        for at, customer in enumerate(("alice", "alice", "alice", "zoe", "zoe", "zoe")):
            retry = {"Idempotency-Key": f"17000000000{at:02d}-{name}"}
            status, answer = await call("PUT", f"{rows}/{customer}/auto", at, json={"n": at}, headers=retry)
            assert status == 200 and answer["key"] == [customer, int(answer["version"])]
            again = await call("PUT", f"{rows}/{customer}/auto", at + 1, json={"n": at}, headers=retry)
            assert again == (200, answer)
            keys.append("/".join(map(str, answer["key"])))
        assert keys == sorted(keys)

        change = {"set": {"state": "paid"}, "increment": {"n": 10, "f": 0.5}, "append": {"tags": ["a"]}}
        where = json.dumps(["==", {"col": "n"}, 0])
        retry = {"Idempotency-Key": f"1700000000099-{name}"}
        status, answer = await call(
            "PATCH",
            f"{rows}/{keys[0]}",
            json=change,
            params={"where": where, "returning": "new"},
            headers=retry,
        )
        assert status == 200
        assert answer["row"]["columns"] == {"n": 10, "state": "paid", "f": 0.5, "tags": ["a"]}
        for at in range(3):
            assert await call(
                "PATCH",
                f"{rows}/{keys[0]}",
                at,
                json=change,
                params={"where": where, "returning": "new"},
                headers=retry,
            ) == (200, answer)
        status, refused = await call("PATCH", f"{rows}/{keys[0]}", json=change, params={"where": where})
        assert status == 409 and refused["error"]["current"]["columns"]["n"] == 10
        assert (await call("DELETE", f"{rows}/{keys[5]}", params={"returning": "old"}))[1]["row"][
            "columns"
        ] == {"n": 5}

        one = await call("GET", f"{rows}/{keys[0]}", params={"columns": '["n"]'})
        assert one[1]["columns"] == {"n": 10}
        assert (await call("GET", f"{rows}/{keys[0]}", params={"where": where}))[0] == 404

        query = {"where": json.dumps([">", {"col": "n"}, 1]), "columns": '["n"]', "limit": "2"}
        found: list[Any] = []
        answer = {"next": ""}
        while answer["next"] is not None:
            position = {"after": answer["next"]} if answer["next"] else {}
            status, answer = await call("GET", rows, len(found), params=query | position)
            assert status == 200
            found += [row["columns"]["n"] for row in answer["rows"]]
        assert found == [10, 2, 3, 4]

        async def count(at: int, **params: str) -> int:
            """Over all pages: a node that may not answer for a tablet yet ends its page there."""
            total = 0
            after: dict[str, str] = {}
            while True:
                status, counted = await call("GET", f"/{name}/count", at, params=params | after)
                assert status == 200
                total += int(counted["count"])
                if counted["next"] is None:
                    return total
                after = {"after": counted["next"]}

        assert await count(0, prefix='["zoe"]') == 2
        assert await count(1, where=query["where"]) == 4
        for path, params in (
            (rows, {"where": "[1]"}),
            (rows, {"columns": "n"}),
            (f"{rows}/{keys[0]}", {"where": json.dumps(["==", {"key": "nobody"}, 1])}),
            (f"/{name}/count", {"limit": "1"}),
            (rows, {"after": "AAAA"}),
        ):
            status, error = await call("GET", path, params=params)
            assert (status, error["error"]["code"]) == (400, "invalid_request"), path
        assert (await call("PUT", f"{rows}/alice/auto", json={}, params={"if_absent": "true"}))[0] == 400
        assert (await call("PATCH", f"{rows}/alice/auto", json={}))[0] == 400
