"""The SDK against nodes whose answers are none: every caller hears of it, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import ackord
from ackord.wire.messages import OP_COUNT, OP_GET, OP_SCAN, OP_WRITE, error_to_wire
from tests.support.fake_node import FakeCluster, start_cluster, stop_cluster

PATIENCE_S = 20.0  # far beyond a call's own timeout: who still waits then waits for ever
Bend = Callable[[list[Any], list[Any]], Any]  # (group, its results) -> what is answered instead


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    cluster = await start_cluster(1)
    yield cluster
    await stop_cluster(cluster)


@pytest.fixture
async def table(cluster: FakeCluster) -> AsyncIterator[ackord.Table]:
    async with ackord.connect(cluster.nodes["n1"].url, timeout=1.0) as store:
        await store.create_table("t", {"n": int})
        yield store.table("t")
        assert store.batcher.open_count == store.batcher.open_bytes == 0


def bend(cluster: FakeCluster, op: int, change: Bend, times: int = 1_000_000) -> None:
    """Answers the first ``times`` groups of a kind with something else."""
    execute = cluster.execute
    left = [times]

    def bent(node: str, group: list[Any]) -> list[Any]:
        results = [0] if group[1] == OP_COUNT else execute(node, group)
        if group[1] != op or not left[0]:
            return results
        left[0] -= 1
        changed: list[Any] = change(group, results)
        return changed

    cluster.execute = bent  # type: ignore[method-assign]


async def outcome(call: Any) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        try:
            return await call
        except ackord.Error as error:
            return error


@pytest.mark.parametrize("nonsense", [None, "yes", [], [5], [5, 7], ["5", None], {}, 1.5, True])
async def test_a_write_whose_answer_is_none_may_have_happened(
    table: ackord.Table, cluster: FakeCluster, nonsense: Any
) -> None:
    bend(cluster, OP_WRITE, lambda group, results: [nonsense, *results[1:]])
    lost, done = await asyncio.gather(outcome(table.put(1, {})), outcome(table.put(2, {})))
    assert isinstance(lost, ackord.OutcomeUnknown)
    assert type(done) is int


@pytest.mark.parametrize("nonsense", [7, "row", [], [5], [5, 7], {}, 1.5])
async def test_a_read_whose_answer_is_none_fails_alone(
    table: ackord.Table, cluster: FakeCluster, nonsense: Any
) -> None:
    await table.put(2, {"x": 1})
    bend(cluster, OP_GET, lambda group, results: [nonsense, *results[1:]])
    lost, found = await asyncio.gather(outcome(table.get(1)), outcome(table.get(2)))
    assert isinstance(lost, ackord.Error)
    assert dict(found) == {"x": 1}


@pytest.mark.parametrize(
    "nonsense", [7, None, [], [[]], [7, None], [[b"k"], None], [{}, None], [[], 7], [[], "k"]]
)
async def test_a_page_that_is_none_ends_the_scan(
    table: ackord.Table, cluster: FakeCluster, nonsense: Any
) -> None:
    bend(cluster, OP_SCAN, lambda group, results: [nonsense])
    assert isinstance(await outcome(table.scan().rows()), ackord.Error)


@pytest.mark.parametrize(("reverse", "follows"), [(False, b""), (True, b"\xff" * 9)])
async def test_a_page_that_does_not_lead_on_ends_the_scan(
    table: ackord.Table, cluster: FakeCluster, reverse: bool, follows: bytes
) -> None:
    """Else it would be asked for again and again."""
    bend(cluster, OP_SCAN, lambda group, results: [[[], follows]])
    end = 7 if reverse else None
    assert isinstance(await outcome(table.scan(end=end, reverse=reverse).rows()), ackord.Error)


async def test_a_count_that_does_not_lead_on_is_an_error(table: ackord.Table, cluster: FakeCluster) -> None:
    bend(cluster, OP_COUNT, lambda group, results: [[1, b""]])
    assert isinstance(await outcome(table.count()), ackord.Error)


@pytest.mark.parametrize("nonsense", [7, None, [], [7], ["7", None], [7, 7], [[], None]])
async def test_a_count_that_is_none_is_an_error(
    table: ackord.Table, cluster: FakeCluster, nonsense: Any
) -> None:
    bend(cluster, OP_COUNT, lambda group, results: [nonsense])
    assert isinstance(await outcome(table.count()), ackord.Error)


@pytest.mark.parametrize("hint", [{}, [], "soon", -1, True, 1.5])
async def test_a_hint_of_when_to_retry_that_is_no_number_is_passed_over(
    table: ackord.Table, cluster: FakeCluster, hint: Any
) -> None:
    refusal = error_to_wire(ackord.Unavailable("full", retry_after_ms=hint))
    bend(cluster, OP_WRITE, lambda group, results: [refusal for _ in results], times=1)
    assert type(await outcome(table.put(1, {}))) is int


@pytest.mark.parametrize("parts", [[[0, 0]], [[0], [0]]])
async def test_answers_that_name_an_operation_twice_and_another_one_never_are_not_believed(
    table: ackord.Table, cluster: FakeCluster, parts: list[list[int]]
) -> None:
    node = cluster.nodes["n1"]
    answer = node._answer
    left = list(parts)
    rid = 0

    def answered(group: list[Any]) -> list[Any] | None:
        nonlocal rid
        entry = answer(group)
        if entry is None or not left:
            return entry
        rid = rid or group[0]  # the group of the writes, which comes first; the scan's answer is of it, too
        part = left.pop(0)
        return [rid, part, [cluster.version] * len(part)]

    node._answer = answered  # type: ignore[method-assign]
    writes = outcome(table.put(1, {})), outcome(table.put(2, {}))
    *versions, _ = await asyncio.gather(*writes, outcome(table.scan().rows()))
    assert [type(version) for version in versions] == [int, int]
    assert node.stream_count == 2
