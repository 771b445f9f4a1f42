"""Every limit of rows, writes and scans as cluster.yaml sets it: its own clear error, through the SDK, and at the node
for a client that does not check."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

import ackord
from ackord.wire.limits import DEFAULT_LIMITS, Limits
from tests.support.cluster import RealCluster

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("cluster-limits")]

LIMITS = {
    "key_column_bytes": 64,
    "column_name_bytes": 20,
    "columns_count": 5,
    "cell_bytes": 1000,
    "row_bytes": 1500,
    "value_depth_count": 3,
    "batch_rows_count": 4,
    "scan_page_rows_count": 7,
    "scan_page_bytes": 2000,
    "expression_nodes_count": 9,
    "expression_depth_count": 4,
    "expression_bytes": 200,
}
FITS: dict[str, Any] = {"a": "x" * 900, "b": "x" * 500}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RealCluster]:
    with RealCluster(settings={"limits": LIMITS}) as cluster:
        yield cluster


@pytest.fixture
async def table(cluster: RealCluster) -> AsyncIterator[ackord.Table]:
    async with ackord.connect(cluster.urls) as store:
        await store.create_table("t", {"k": str, "n": int})
        yield store.table("t")


def test_the_defaults_are_those_of_tablestore() -> None:
    assert DEFAULT_LIMITS.key_column_bytes == 1024
    assert DEFAULT_LIMITS.cell_bytes == 2 * 1024 * 1024
    assert DEFAULT_LIMITS.row_bytes == 4 * 1024 * 1024
    assert DEFAULT_LIMITS.columns_count == 1024
    assert (DEFAULT_LIMITS.scan_page_rows_count, DEFAULT_LIMITS.scan_page_bytes) == (5000, 4 * 1024 * 1024)
    assert DEFAULT_LIMITS.batch_rows_count == 200
    assert set(LIMITS) <= set(Limits.__slots__)


COL = ackord.col("a")
TOO_MUCH: list[tuple[str, dict[str, Any], str, int, str]] = [
    ("put", {"columns": {"a": "x" * 998}}, "a", 1000, "takes 1001 bytes"),
    ("put", {"columns": FITS | {"c": "x" * 100}}, "columns", 1500, "for a row"),
    ("put", {"columns": dict.fromkeys("abcdef")}, "columns", 5, "6 columns"),
    ("put", {"columns": {"n" * 21: 1}}, "n" * 21, 20, "21 bytes"),
    ("put", {"columns": {"a": [[[[]]]]}}, "a", 3, "nested deeper"),
    ("put", {"key": ("k" * 65, 1), "columns": {}}, "k", 64, "65 bytes"),
    (
        "update",
        {"set": {"a": 1, "b": 1}, "delete": ["c", "d"], "append": {"e": [1], "f": [1]}},
        "update",
        5,
        "6 columns",
    ),
    ("update", {"set": {"a": "x" * 998}}, "a", 1000, "takes 1001 bytes"),
    ("update", {"append": {"a": ["x" * 998]}}, "a", 1000, "takes 1002 bytes"),
    ("update", {"where": (COL == 1) | (COL == 2) | (COL == 3)}, "where", 9, "10 parts"),
    ("update", {"where": ~~~(COL == 1)}, "where", 4, "nested deeper"),
    ("update", {"where": COL == "x" * 200}, "where", 200, "bytes"),
    ("get", {"columns": list("abcdef")}, "columns", 5, "6 columns"),
    ("get", {"where": COL == "x" * 200}, "where", 200, "bytes"),
]


@pytest.mark.parametrize(("method", "options", "field", "limit", "said"), TOO_MUCH)
async def test_the_sdk_refuses_what_is_too_much(
    table: ackord.Table, method: str, options: dict[str, Any], field: str, limit: int, said: str
) -> None:
    with pytest.raises(ackord.InvalidRequest, match=said) as caught:
        await getattr(table, method)(**({"key": ("a", 1)} | options))
    assert (caught.value.detail["field"], caught.value.detail["limit"]) == (field, limit)
    assert not caught.value.outcome_unknown and not caught.value.retriable


async def test_what_just_fits_is_taken(table: ackord.Table) -> None:
    await table.put(("k" * 64, 1), FITS)
    await table.put(("a", 1), {"n" * 20: [[[]]], "b": 1, "c": 1, "d": 1, "e": "x" * 997})
    await table.update(("a", 1), where=(COL == 1) | ~COL.exists() | COL.exists())
    assert await table.get(("a", 1), columns=list("abcde"), where=COL != "x" * 170) is not None


async def test_a_result_that_is_too_large_leaves_the_row_as_it_was(table: ackord.Table) -> None:
    key = ("grown", 1)
    await table.put(key, {"tags": ["x" * 600]})
    with pytest.raises(ackord.InvalidRequest, match="limit of 1000 for one column"):
        await table.update(key, append={"tags": ["x" * 600]})
    await table.update(key, {"b": "x" * 600})
    with pytest.raises(ackord.InvalidRequest, match="limit of 1500 for a row"):
        await table.update(key, append={"more": ["x" * 600]})
    with pytest.raises(ackord.InvalidRequest, match="6 columns"):
        await table.update(key, {"c": 1, "d": 1, "e": 1, "f": 1})
    row = await table.get(key)
    assert row is not None and set(row) == {"tags", "b"}


async def test_batches_are_bounded(table: ackord.Table) -> None:
    for call in (
        table.get_many([("a", n) for n in range(5)]),
        table.write_many([ackord.Put(("a", n), {}) for n in range(5)]),
    ):
        with pytest.raises(
            ackord.InvalidRequest, match=r"5 (keys|operations) in one call, over the limit of 4"
        ) as caught:
            await call
        assert caught.value.detail["limit"] == 4


async def test_pages_are_bounded_in_rows_and_bytes(cluster: RealCluster, table: ackord.Table) -> None:
    for n in range(20):
        await table.put(("page", n), {"n": n})
        await table.put(("wide", n), {"n": n, "pad": "x" * 400})
    url = f"{cluster.urls.split(',')[0]}/v1/tables/t/rows"
    async with aiohttp.ClientSession() as session:

        async def sizes(**query: str) -> list[int]:
            found: list[int] = []
            after: dict[str, str] = {}
            while True:
                async with session.get(url, params=query | after) as response:
                    assert response.status == 200, await response.text()
                    page = await response.json()
                found.append(len(page["rows"]))
                if page["next"] is None:
                    return found
                after = {"after": page["next"]}

        assert await sizes(prefix='["page"]') == [7, 7, 6]
        assert await sizes(prefix='["wide"]') == [5, 5, 5, 5]
        assert sum(await sizes(prefix='["wide"]', where='["==",{"col":"n"},11]')) == 1
        async with session.get(url, params={"limit": "8"}) as response:
            assert (await response.json())["error"]["detail"]["limit"] == 7
    assert len(await table.scan("wide").rows()) == len(await table.scan("page", reverse=True).rows()) == 20


@pytest.mark.parametrize(
    ("method", "path", "body", "field", "limit"),
    [
        ("PUT", "rows/a/1", {"a": "x" * 998}, "a", 1000),
        ("PUT", "rows/a/1", FITS | {"c": "x" * 100}, "columns", 1500),
        ("PUT", "rows/a/1", dict.fromkeys("abcdef"), "columns", 5),
        ("PUT", f"rows/{'k' * 65}/1", {}, "k", 64),
        ("PATCH", "rows/a/1", {"delete": list("abcdef")}, "update", 5),
        ("PATCH", "rows/a/1?where=" + json.dumps(["==", {"col": "a"}, "x" * 200]), {}, "where", 200),
        (
            "PATCH",
            "rows/a/1?where=" + json.dumps(["not", ["not", ["not", ["exists", {"col": "a"}]]]]),
            {},
            "where",
            4,
        ),
        ("GET", "rows?columns=" + json.dumps(list("abcdef")), None, "columns", 5),
    ],
)
async def test_a_node_refuses_what_is_too_much(
    cluster: RealCluster, table: ackord.Table, method: str, path: str, body: Any, field: str, limit: int
) -> None:
    async with aiohttp.ClientSession() as session:
        url = f"{cluster.urls.split(',')[1]}/v1/tables/t/{path}"
        async with session.request(method, url, json=body) as response:
            assert response.status == 400
            detail = (await response.json())["error"]["detail"]
    assert (detail["field"], detail["limit"]) == (field, limit)
