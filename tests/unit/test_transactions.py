"""Transactions of the SDK against a fake node, and their shape at a node's face."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

import ackord
from ackord.errors import Conflict, InvalidRequest, OutcomeUnknown, Unavailable
from ackord.expressions import encode_where
from ackord.wire.frames import packb
from ackord.wire.keys import KeySchema
from ackord.wire.limits import DEFAULT_LIMITS
from ackord.wire.messages import (
    COND_NONE,
    COND_WHERE,
    KIND_DELETE,
    KIND_PUT,
    KIND_TRANSACTION,
    OP_WRITE,
    TableDefinition,
    TabletRange,
)
from ackord.wire.transactions import digest_of
from ackord.wire.values import encode_columns
from ackord_node.server.bodies import Body
from ackord_node.server.groups import GroupChecker
from ackord_node.server.transactions import _Form
from tests.support.fake_node import FakeCluster, FakeNode, start_cluster, stop_cluster
from tests.support.http_node import Client, error_of, http_node


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    cluster = await start_cluster(1)
    yield cluster
    await stop_cluster(cluster)


@pytest.fixture
async def table(cluster: FakeCluster) -> AsyncIterator[ackord.Table]:
    async with ackord.connect(cluster.nodes["n1"].url, timeout=3) as store:
        await store.create_table("t", {"a": str, "n": int})
        yield store.table("t")


def commits(node: FakeNode) -> list[list[Any]]:
    """The transactions that the node was sent, attempt by attempt."""
    return [
        op for group in node.groups if group[1] == OP_WRITE for op in group[6] if op[1] == KIND_TRANSACTION
    ]


def answers(node: FakeNode, *errors: ackord.Error) -> None:
    """The next transactions are answered with these, one after the other, and then executed."""
    left = list(errors)

    def script(group: list[Any]) -> ackord.Error | None:
        is_commit = group[1] == OP_WRITE and group[6][0][1] == KIND_TRANSACTION
        return left.pop(0) if is_commit and left else None

    node.script = script


async def test_the_commit_carries_what_was_read_and_the_writes_in_order(
    cluster: FakeCluster, table: ackord.Table
) -> None:
    node = cluster.nodes["n1"]
    versions = [await table.put(("a", n), {"n": n}) for n in range(3)]
    async with table.transaction("a") as tx:
        assert await tx.get(("a", 1)) == await tx.get(("a", 1))
        assert await tx.get(("a", 9)) is None
        assert [row["n"] for row in await tx.scan(start=("a", 1))] == [1, 2]
        assert await tx.get(("a", 2)) is not None, "known from the scan"
        assert await tx.get(("a", 7)) is None, "inside of the range"
        tx.put(("a", 5), {"x": 1})
        tx.delete(("a", 1), if_exists=True)
    (op,) = commits(node)
    reads, ranges, writes = op[3]
    route = tx._route
    assert route is not None
    encode = route.key.encode
    assert op[2] == route.key.encode_prefix(("a",))
    assert reads == [[encode(("a", 1)), versions[1]], [encode(("a", 9)), None]]
    digest = digest_of([(encode(("a", n)), versions[n]) for n in (1, 2)])
    assert [(count, found) for _, _, count, found in ranges] == [(2, digest)]
    assert [write[:2] for write in writes] == [[KIND_PUT, encode(("a", 5))], [KIND_DELETE, encode(("a", 1))]]


async def test_a_lost_answer_is_asked_for_again_under_the_same_id(
    cluster: FakeCluster, table: ackord.Table
) -> None:
    node = cluster.nodes["n1"]
    answers(node, Unavailable("not now"), OutcomeUnknown("lost"))
    async with table.transaction("a") as tx:
        tx.put(("a", 1), {})
    row = await table.get(("a", 1))
    assert row is not None and row.version == tx.version
    assert len({op[0] for op in commits(node)}) == 1
    assert [op[6] for op in commits(node)] == [1, 2, 3]


async def test_an_outcome_that_stays_unknown_is_not_run_again(
    cluster: FakeCluster, table: ackord.Table
) -> None:
    node = cluster.nodes["n1"]
    answers(node, *[OutcomeUnknown("lost")] * 100)
    runs = 0

    async def work(tx: ackord.Transaction) -> None:
        nonlocal runs
        runs += 1
        tx.put(("a", 1), {})

    with pytest.raises(OutcomeUnknown):
        await table.transact("a", work, timeout=0.3)
    assert runs == 1


async def test_transact_gives_up_with_the_last_conflict(cluster: FakeCluster, table: ackord.Table) -> None:
    node = cluster.nodes["n1"]
    outdated = Conflict("changed", condition="transaction", reads=[0], ranges=[])
    answers(node, *[copy.copy(outdated) for _ in range(200)])
    runs = 0

    async def work(tx: ackord.Transaction) -> None:
        nonlocal runs
        runs += 1
        await tx.get(("a", 1))
        tx.put(("a", 1), {})

    with pytest.raises(Conflict, match="changed") as caught:
        await table.transact("a", work, timeout=0.4)
    assert caught.value.detail["keys"] == [("a", 1)]
    assert 2 <= runs < 60, "after growing pauses"


async def test_limits_are_checked_before_anything_is_sent(cluster: FakeCluster) -> None:
    cluster.limits = replace(
        DEFAULT_LIMITS,
        transaction_rows_count=2,
        transaction_reads_count=2,
        transaction_ranges_count=1,
        transaction_bytes=300,
    )
    async with ackord.connect(cluster.nodes["n1"].url, timeout=3) as store:
        await store.create_table("t", {"a": str, "n": int})
        async with store.table("t").transaction("a") as tx:
            for n in range(2):
                await tx.get(("a", n))
            with pytest.raises(InvalidRequest, match="transaction_reads_count of 2"):
                await tx.get(("a", 3))
            await tx.scan(start=("a", 5))
            with pytest.raises(InvalidRequest, match="transaction_ranges_count of 1"):
                await tx.scan(end=("a", 2))
            with pytest.raises(InvalidRequest, match="transaction_bytes of 300"):
                tx.put(("a", 1), {"x": "y" * 300})
            with pytest.raises(InvalidRequest, match="limit=0 is not a number"):
                await tx.scan(limit=0)
            for n in range(2):
                tx.put(("a", n), {})
            with pytest.raises(InvalidRequest, match="transaction_rows_count of 2"):
                tx.delete(("a", 3))
        assert tx.version is not None


async def test_what_is_merged_is_not_known_before_the_commit(table: ackord.Table) -> None:
    version = await table.put(("a", 1), {"n": 1})

    async def reads_what_it_merges() -> None:
        async with table.transaction("a") as tx:
            tx.put(("a", 1), {"n": 2}, if_version=version, on_conflict="merge")
            await tx.get(("a", 1))

    with pytest.raises(InvalidRequest, match="known after the commit"):
        await reads_what_it_merges()


# ------------------------------------------------------------------------------ at the node's face


def op_of(reads: Any = (), ranges: Any = (), writes: Any = (), **other: Any) -> list[Any]:
    body = other.get("body", [list(reads), list(ranges), list(writes)])
    return [
        1,
        KIND_TRANSACTION,
        b"a\0\1",
        body,
        other.get("cond", COND_NONE),
        None,
        1,
        *other.get("more", ()),
    ]


def check(op: list[Any], **limits: int) -> int:
    group = [1, OP_WRITE, 7, b"c" * 16, 1, 0, [op]]
    return GroupChecker(replace(DEFAULT_LIMITS, **limits)).check(group)


WRITE = [KIND_PUT, b"a\0\1k", encode_columns({"x": 1}), COND_NONE, None]


def test_a_transaction_of_the_right_shape_is_one_operation() -> None:
    assert check(op_of([[b"k", None], [b"l", 5]], [[b"a", None, 2, b"d" * 16]], [WRITE])) == 1


@pytest.mark.parametrize(
    ("op", "text"),
    [
        (op_of(body=b"x"), "a transaction is"),
        (op_of(body=[[], []]), "a transaction is"),
        (op_of(cond=1), "those of its writes"),
        (op_of(more=[1]), "no row"),
        (op_of(reads=[[b"k"]]), "a list of 2"),
        (op_of(reads=[["k", 1]]), "a key is bytes"),
        (op_of(reads=[[b"k", -1]]), "must be an integer"),
        (op_of(ranges=[[b"k", None, 1, b"d"]]), "digest is 16 bytes"),
        (op_of(ranges=[[b"k", None, -1, b"d" * 16]]), "count is a number"),
        (op_of(ranges=[[b"k", None, 1_001, b"d" * 16]]), "transaction_range_rows_count"),
        (op_of(ranges=[[1, None, 1, b"d" * 16]]), "a key is bytes"),
        (op_of(writes=[WRITE] * 201), "transaction_rows_count"),
        (op_of(reads=[[b"k", 1]] * 1_001), "transaction_reads_count"),
        (op_of(ranges=[[b"k", None, 0, b"d" * 16]] * 17), "transaction_ranges_count"),
        (op_of(writes=[[KIND_DELETE, b"k", b"x", COND_NONE, None]]), "no body"),
        (op_of(writes=[[KIND_TRANSACTION, b"k", [], COND_NONE, None]]), "unknown kind"),
        (op_of(writes=[[KIND_PUT, b"k", b"x", 99, None]]), "unknown condition"),
    ],
)
def test_a_transaction_of_a_wrong_shape_is_refused(op: list[Any], text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        check(op)


def test_the_bytes_of_a_transaction_are_bounded() -> None:
    assert check(op_of(writes=[WRITE]), transaction_bytes=100) == 1
    with pytest.raises(InvalidRequest, match="over the limit of 5"):
        check(op_of(writes=[WRITE]), transaction_bytes=5)


# ------------------------------------------------------------------------------------------ HTTP


@pytest.mark.parametrize("where", [float("nan"), {b"a": 1}, [{b"a": 1}], [[]], 5, "x"])
async def test_a_condition_in_msgpack_that_is_none_is_refused_by_name(where: Any) -> None:
    body = {"partition": "p", "writes": [{"put": ["p"], "columns": {}, "where": where}]}
    async with http_node() as node, aiohttp.ClientSession() as session:
        ask = Client(session, node.url)
        await ask("POST", "/v1/tables", {"name": "t", "key": [["a", "str"]]})
        answer = await ask(
            "POST", "/v1/tables/t/transactions", packb(body), Content_Type="application/msgpack"
        )
    assert error_of(answer, 400, "invalid_request")["detail"]["field"] == "where"


def test_constants_of_a_condition_in_msgpack_are_plain_values() -> None:
    limits = DEFAULT_LIMITS
    table = TableDefinition(1, "t", KeySchema((("a", "str"),)), (TabletRange(1, b"", None),))
    where = ["==", {"col": "x"}, b"\x00\xff"]
    write = {"put": ["p"], "columns": {}, "where": where}
    _, (_, _, writes) = _Form(
        table, Body({"partition": "p", "writes": [write]}, b"", False), limits
    ).transaction()
    assert writes[0][3:] == [
        COND_WHERE,
        [COND_NONE, None, encode_where(ackord.col("x") == b"\x00\xff", limits)],
    ]
