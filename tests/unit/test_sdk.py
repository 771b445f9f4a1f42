"""The SDK against fake nodes over real sockets: batching, retries under one id, deadlines, cancelling,
faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

import ackord
from ackord.gathering import GATHER_OPS_MAX
from ackord.reads import ReadGroup
from ackord.wire.limits import DEFAULT_LIMITS
from ackord.wire.messages import OP_GET, OP_WRITE
from tests.support.fake_node import (
    Drop,
    FakeCluster,
    FakeNode,
    Hold,
    LastWords,
    start_cluster,
    stop_cluster,
)


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    cluster = await start_cluster(3)
    yield cluster
    await stop_cluster(cluster)


@pytest.fixture
async def store(cluster: FakeCluster) -> AsyncIterator[ackord.Store]:
    async with ackord.connect(cluster.nodes["n1"].url, timeout=5) as store:
        await store.create_table("t", {"a": str, "n": int}, split_at=["m"])
        await until(lambda: sum(link.is_up for link in store.batcher.links.values()) == 3)
        yield store
    left = [
        repr(task) for task in asyncio.all_tasks() if "HttpStream" in repr(task) or "NodeLink" in repr(task)
    ]
    assert not left


@pytest.fixture
def table(store: ackord.Store) -> ackord.Table:
    return store.table("t")


@pytest.fixture
def coordinator(cluster: FakeCluster, store: ackord.Store) -> FakeNode:
    """Of the tablet that holds ("a", ...)."""
    return cluster.nodes["n1"]


async def until(condition: Callable[[], bool], seconds: float = 3.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def once(action: Callable[[], Any], op: int = OP_WRITE) -> Callable[[list[Any]], Any]:
    """A script that does something to the first group of a kind and nothing to the others."""
    seen: list[int] = []

    def script(group: list[Any]) -> Any:
        if group[1] != op or seen:
            return None
        seen.append(group[0])
        return action()

    return script


def throw(error: BaseException) -> Any:
    raise error


# -------------------------------------------------------------------------------------- everyday


async def test_rows_come_back(table: ackord.Table) -> None:
    version = await table.put(("a", 1), {"x": 1, "b": b"\x00", "l": [None, {"k": 1.5}]})
    row = await table.get(("a", 1))
    assert row is not None
    assert (row.key, row.version, dict(row)) == (
        ("a", 1),
        version,
        {"x": 1, "b": b"\x00", "l": [None, {"k": 1.5}]},
    )
    assert await table.get(("a", 2)) is None
    second = await table.update(("a", 1), {"x": 2}, if_version=version)
    assert second > version
    with pytest.raises(ackord.Conflict) as caught:
        await table.put(("a", 1), {}, if_version=version)
    assert caught.value.current is not None and caught.value.current.version == second
    await table.delete(("a", 1), if_exists=True)
    with pytest.raises(ackord.Conflict):
        await table.delete(("a", 1), if_exists=True)


async def test_connect_can_be_awaited(cluster: FakeCluster) -> None:
    store = await ackord.connect([cluster.nodes["n2"].url])
    assert store.cluster == "fake"
    await store.close()
    await store.close()
    with pytest.raises(ackord.Unavailable, match="closed"):
        await store.table("t").get(("a", 1))


async def test_tables_and_status(store: ackord.Store) -> None:
    definition = await store.create_table("u", {"k": bytes})
    assert definition.key.columns == (("k", "bytes"),)
    assert [table.name for table in await store.list_tables()] == ["t", "u"]
    assert (await store.describe_table("t")).split_at == ["m"]
    assert (await store.status())["nodes"] == ["n1", "n2", "n3"]
    await store.table("u").put(b"k", {})
    await store.drop_table("u")
    with pytest.raises(ackord.TableNotFound):
        await store.table("u").get(b"k")
    with pytest.raises(ackord.TableNotFound):
        await store.describe_table("u")


async def test_a_close_that_is_cancelled_still_closes_the_transport(cluster: FakeCluster) -> None:
    store = await ackord.connect([cluster.nodes["n2"].url])
    await until(lambda: any(link.is_up for link in store.batcher.links.values()))
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    assert store._transport._session.closed  # type: ignore[attr-defined]
    await until(lambda: not any("NodeLink" in repr(task) for task in asyncio.all_tasks()))


@pytest.mark.parametrize(
    "call",
    [
        lambda s, t: t.put(("a", True), {}),
        lambda s, t: t.put(("a", 1), {"x": object()}),
        lambda s, t: t.put(("a", 1), {}, if_absent=True, if_version=1),
        lambda s, t: t.put(("a", 1), {}, if_version=0),
        lambda s, t: t.get("a"),
        lambda s, t: t.get(("a", 1), timeout=0),
        lambda s, t: t.get(("a", 1), timeout="1"),
        lambda s, t: t.get_many([("a", k) for k in range(201)]),
        lambda s, t: t.write_many([ackord.Put(("a", k), {}) for k in range(201)]),
        lambda s, t: t.write_many([("a", 1)]),
        lambda s, t: t.write_many([("a", 1)], atomic=True),
        lambda s, t: t.write_many([ackord.Put(("a", 1), {}), "x"], atomic=True),
        lambda s, t: t.write_many([ackord.Put((), {})], atomic=True),
        lambda s, t: t.scan(("a", 1, 2)).rows(),
        lambda s, t: s.create_table("x", {"a": float}),
        lambda s, t: s.create_table("x", {}),
        lambda s, t: s.create_table("x y", {"a": int}),
        lambda s, t: s.create_table("x", {"a": int}, split_at=[2, 1]),
        lambda s, t: s.drop_table("../x"),
    ],
)
async def test_bad_input_is_refused_before_anything_is_sent(
    store: ackord.Store, table: ackord.Table, cluster: FakeCluster, call: Any
) -> None:
    before = sum(len(node.frames) for node in cluster.nodes.values())
    with pytest.raises(ackord.InvalidRequest):
        await call(store, table)
    assert sum(len(node.frames) for node in cluster.nodes.values()) == before


@pytest.mark.parametrize(
    "urls",
    [
        *["", "ftp://h", "http://", "http://h/path", [""], [], "http://h:99999", "h:x", [1]],
        *[
            "http://[::1",
            "http://h:1#x",
            "http://h:1#",
            "http://h:1?",
            "http://me:secret@h:1",
            "http://h h:1",
        ],
    ],
)
def test_addresses_that_cannot_be(urls: Any) -> None:
    with pytest.raises(ackord.InvalidRequest, match="address"):
        ackord.connect(urls)


@pytest.mark.parametrize(
    "urls", ["h:1", "http://h", "https://h:1/", "[::1]:7801", "a.b-c:1, http://10.0.0.1:2"]
)
def test_addresses_that_can_be(urls: str) -> None:
    ackord.connect(urls)


@pytest.mark.parametrize("bounds", [{"queue_ops_max": 0}, {"inflight_ops_max": -1}, {"queue_bytes_max": 1.5}])
def test_bounds_of_the_queue_are_positive_ints(bounds: dict[str, Any]) -> None:
    (name,) = bounds
    with pytest.raises(ackord.InvalidRequest, match=f"queue: {name}=") as caught:
        ackord.QueueOptions(**bounds)
    assert caught.value.detail["field"] == name


async def test_nobody_there() -> None:
    with pytest.raises(ackord.Unavailable, match=r"127\.0\.0\.1:9"):
        await ackord.connect("127.0.0.1:9", timeout=0.2)


# -------------------------------------------------------------------------------------- batching


async def test_concurrent_gets_share_frames(table: ackord.Table, cluster: FakeCluster) -> None:
    await asyncio.gather(*(table.put(("a", k), {"k": k}) for k in range(64)))
    assert len(cluster.nodes["n1"].ops_of(OP_WRITE)) == 1
    rows = await asyncio.gather(*(table.get(("a", k)) for k in range(64)))
    assert [row["k"] for row in rows if row is not None] == list(range(64))
    assert sum(len(node.ops_of(OP_GET)) for node in cluster.nodes.values()) == 1


async def test_a_frame_carries_groups_of_several_tablets(
    table: ackord.Table, cluster: FakeCluster, store: ackord.Store
) -> None:
    await store.create_table("u", {"n": int})
    cluster.coordinators = dict.fromkeys(cluster.coordinators, "n1")
    store.batcher.routing.tables["t"].tablets[1].coordinator = "n1"
    store.batcher.routing.tables["u"].tablets[0].coordinator = "n1"
    await asyncio.gather(table.put(("a", 1), {}), table.put(("z", 1), {}), store.table("u").put(1, {}))
    assert [len(frame) for frame in cluster.nodes["n1"].frames] == [3]


async def test_large_rows_are_spread_over_frames(table: ackord.Table, cluster: FakeCluster) -> None:
    blob = b"x" * 700_000
    await asyncio.gather(*(table.put(("a", k), {"b": blob}) for k in range(40)))
    groups = cluster.nodes["n1"].ops_of(OP_WRITE)
    assert max(len(group[6]) for group in groups) == 1
    assert sum(len(group[6]) for group in groups) == 40


async def test_get_many_and_write_many(table: ackord.Table) -> None:
    results = await table.write_many(
        [
            ackord.Put(("a", 1), {"x": 1}),
            ackord.Put(("z", 1), {"x": 2}),
            ackord.Put(("a", None), {}),
            ackord.Put(("a", 3), {"x": set()}),
            ackord.Delete(("a", 9), if_exists=True),
            ackord.Update(("a", 4), {"x": 4}, if_absent=True),
        ]
    )
    assert [type(result) for result in results] == [
        int,
        int,
        ackord.InvalidRequest,
        ackord.InvalidRequest,
        ackord.Conflict,
        int,
    ]
    rows = await table.get_many([("z", 1), ("a", 2), ("a", 1)])
    assert [row and row["x"] for row in rows] == [2, None, 1]
    assert await table.get_many([]) == [] and await table.write_many([]) == []


# ------------------------------------------------------------------------------- retries, one id


def identities(node: FakeNode) -> list[tuple[bytes, int, int]]:
    """(client, seq, attempt) of every write that reached the node."""
    return [(group[3], op[0], op[6]) for group in node.ops_of(OP_WRITE) for op in group[6]]


async def test_an_unavailable_write_is_retried_under_its_id(
    table: ackord.Table, coordinator: FakeNode, cluster: FakeCluster
) -> None:
    coordinator.script = once(lambda: ackord.Unavailable("busy", reason="overloaded", retry_after_ms=10))
    await table.put(("a", 1), {})
    first, second = identities(coordinator)
    assert first[:2] == second[:2] and (first[2], second[2]) == (1, 2)
    assert cluster.executed == [second]


async def test_a_lost_answer_is_asked_for_under_the_same_id(
    table: ackord.Table, coordinator: FakeNode, cluster: FakeCluster
) -> None:
    coordinator.script = once(lambda: throw(Drop(after=True)))
    version = await table.put(("a", 1), {})
    assert len(cluster.executed) == 1
    assert version == cluster.results[cluster.executed[0][:2]]
    assert [attempt for _, _, attempt in identities(coordinator)] == [1, 2]
    assert coordinator.stream_count == 2


async def test_what_a_node_says_when_it_ends_the_stream_is_passed_on(
    table: ackord.Table, coordinator: FakeNode
) -> None:
    coordinator.script = lambda group: throw(LastWords("too much for me"))
    with pytest.raises(ackord.OutcomeUnknown, match="too much for me"):
        await table.put(("a", 1), {}, timeout=0.2)
    coordinator.script = None
    await table.put(("a", 1), {})


async def test_a_write_follows_a_redirection_at_once(
    table: ackord.Table, coordinator: FakeNode, cluster: FakeCluster
) -> None:
    cluster.coordinators[1] = "n3"
    before = cluster.routing_count
    async with asyncio.timeout(1):
        await table.put(("a", 1), {})
    assert len(coordinator.ops_of(OP_WRITE)) == 1
    assert len(cluster.nodes["n3"].ops_of(OP_WRITE)) == 1
    await until(lambda: cluster.routing_count > before)  # and the table is renewed in the background


async def test_a_dead_coordinator_is_replaced_by_a_refresh(
    table: ackord.Table, coordinator: FakeNode, cluster: FakeCluster
) -> None:
    await coordinator.stop()
    put = asyncio.create_task(table.put(("a", 1), {}))
    await asyncio.sleep(0.2)
    assert not put.done()
    cluster.coordinators[1] = "n2"
    async with asyncio.timeout(2):
        await put
    assert cluster.nodes["n2"].ops_of(OP_WRITE)


async def test_a_refresh_is_shared_and_rate_limited(
    table: ackord.Table, coordinator: FakeNode, cluster: FakeCluster
) -> None:
    cluster.coordinators[1] = None
    before = cluster.routing_count
    puts = [asyncio.create_task(table.put(("a", k), {}, timeout=0.5)) for k in range(200)]
    for put in puts:
        with pytest.raises(ackord.Unavailable):
            await put
    assert cluster.routing_count - before <= 7


async def test_a_table_that_a_lagging_node_does_not_know_yet_is_found(
    store: ackord.Store, cluster: FakeCluster
) -> None:
    cluster.create("new", [["k", "int"]], [])
    cluster.unseen.add("new")
    get = asyncio.create_task(store.table("new").get(1, timeout=5))
    await asyncio.sleep(0.3)
    assert not get.done(), "the node that was asked knows that there is such a table"
    cluster.unseen.clear()
    assert await get is None
    with pytest.raises(ackord.TableNotFound):
        await store.table("never").get(1)


async def test_a_known_table_is_not_forgotten_because_a_lagging_node_lacks_it(
    table: ackord.Table, store: ackord.Store, cluster: FakeCluster
) -> None:
    await table.put(("a", 1), {})
    cluster.unseen.add(table.name)
    assert await store._refresh(store.deadline(1)) is None
    assert await table.get(("a", 1)) is not None
    while store._confirming:
        await asyncio.sleep(0.01)
    assert await table.get(("a", 1)) is not None
    del cluster.tables[table.name]
    assert await store._refresh(store.deadline(1)) is None
    while store._confirming:
        await asyncio.sleep(0.01)
    with pytest.raises(ackord.TableNotFound):
        await table.get(("a", 1))


async def test_a_refused_client_id_is_renewed_for_a_write_that_never_ran(
    table: ackord.Table, coordinator: FakeNode, cluster: FakeCluster
) -> None:
    await table.put(("a", 1), {})
    cluster.refused_clients.add(cluster.executed[0][0])
    await table.put(("a", 2), {})
    assert cluster.executed[1][0] not in cluster.refused_clients
    assert cluster.executed[1][2] == 1


async def test_a_client_that_registered_by_a_clock_that_was_ahead_registers_anew(
    table: ackord.Table, coordinator: FakeNode, cluster: FakeCluster
) -> None:
    cluster.clock = 900 << 16  # what all nodes tell lies ahead of it
    await table.put(("a", 1), {})
    await table.put(("a", 2), {})
    first, second = (group for group in coordinator.ops_of(OP_WRITE) if group[4] <= cluster.clock)
    assert first[3] == second[3]


async def test_a_refused_client_id_after_a_lost_answer_is_unknown(
    table: ackord.Table, coordinator: FakeNode, cluster: FakeCluster
) -> None:
    def collected_meanwhile() -> Any:
        cluster.refused_clients.add(coordinator.ops_of(OP_WRITE)[0][3])
        raise Drop

    coordinator.script = once(collected_meanwhile)
    with pytest.raises(ackord.OutcomeUnknown, match="collected"):
        await table.put(("a", 1), {})
    assert not cluster.executed


async def test_the_floor_is_the_lowest_seq_without_an_answer(
    table: ackord.Table, coordinator: FakeNode, cluster: FakeCluster
) -> None:
    coordinator.script = once(lambda: throw(Hold()))
    held = asyncio.create_task(table.put(("a", 1), {}, timeout=0.3))
    await until(lambda: len(coordinator.ops_of(OP_WRITE)) == 1)
    for k in range(3):
        await table.put(("a", 10 + k), {})
    assert {group[5] for group in coordinator.ops_of(OP_WRITE)} == {1}
    with pytest.raises(ackord.OutcomeUnknown):
        await held
    await table.put(("a", 20), {})
    assert coordinator.ops_of(OP_WRITE)[-1][5] == 5


async def test_reads_go_elsewhere_when_a_replica_has_no_lease(
    table: ackord.Table, cluster: FakeCluster
) -> None:
    for name in ("n1", "n2"):
        cluster.nodes[name].script = lambda group: ackord.Unavailable("no lease", reason="no_lease")
    async with asyncio.timeout(1):
        for _ in range(10):
            assert await table.get(("a", 1)) is None


async def test_reads_survive_a_node_that_dies_under_them(table: ackord.Table, cluster: FakeCluster) -> None:
    for node in cluster.nodes.values():
        node.script = once(lambda: throw(Drop()), OP_GET)
    async with asyncio.timeout(2):
        assert await asyncio.gather(*(table.get(("a", k)) for k in range(20))) == [None] * 20


async def test_reads_leave_a_node_that_is_silent(table: ackord.Table, cluster: FakeCluster) -> None:
    silent = cluster.nodes["n2"]
    silent.script = lambda group: throw(Hold())
    async with asyncio.timeout(4):
        for _ in range(3):  # one of them goes to n2
            assert await table.get(("a", 1), timeout=4) is None
    asked = len(silent.groups)
    for _ in range(20):
        await table.get(("a", 1))
    assert len(silent.groups) == asked


async def test_a_write_leaves_a_silent_coordinator_once_there_is_another(
    table: ackord.Table, coordinator: FakeNode, cluster: FakeCluster
) -> None:
    coordinator.script = lambda group: throw(Hold())
    put = asyncio.create_task(table.put(("a", 1), {}))
    await until(lambda: len(coordinator.ops_of(OP_WRITE)) == 1)
    cluster.coordinators[1] = "n2"
    async with asyncio.timeout(3):
        await put
    (first,), (second,) = identities(coordinator), identities(cluster.nodes["n2"])
    assert first[:2] == second[:2] and second[2] == 2


# --------------------------------------------------------------------- deadlines and cancelling


async def test_a_write_without_an_answer_is_unknown_and_a_read_is_not(
    table: ackord.Table, cluster: FakeCluster
) -> None:
    for node in cluster.nodes.values():
        node.script = lambda group: throw(Hold())
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(ackord.OutcomeUnknown, match="in time"):
        await table.put(("a", 1), {}, timeout=0.2)
    with pytest.raises(ackord.Unavailable, match="in time"):
        await table.get(("a", 1), timeout=0.2)
    results = await table.write_many([ackord.Put(("a", 1), {})], timeout=0.2)
    assert [type(result) for result in results] == [ackord.OutcomeUnknown]
    with pytest.raises(ackord.Unavailable):
        await table.get_many([("a", 1)], timeout=0.2)
    with pytest.raises(ackord.Unavailable):
        await table.scan(timeout=0.2).rows()
    assert 0.9 < loop.time() - began < 2.0


async def test_a_write_that_was_never_taken_is_not_unknown(
    table: ackord.Table, coordinator: FakeNode, cluster: FakeCluster
) -> None:
    coordinator.script = lambda group: ackord.Unavailable("below the minimum", reason="minimum")
    with pytest.raises(ackord.Unavailable, match="below the minimum") as caught:
        await table.put(("a", 1), {}, timeout=0.2)
    assert caught.value.detail["reason"] == "minimum" and caught.value.detail["table"] == "t"
    await coordinator.stop()
    with pytest.raises(ackord.Unavailable, match="n1"):
        await table.put(("a", 1), {}, timeout=0.2)


async def test_cancelling_leaves_nothing_behind(
    table: ackord.Table, store: ackord.Store, cluster: FakeCluster, coordinator: FakeNode
) -> None:
    coordinator.script = once(lambda: throw(Hold()))
    calls = [asyncio.create_task(table.put(("a", k), {}, timeout=0.4)) for k in range(10)]
    await until(lambda: len(coordinator.ops_of(OP_WRITE)) == 1)
    for call in calls:
        call.cancel()
    unsent = asyncio.create_task(table.put(("a", 99), {}))
    await asyncio.sleep(0)
    unsent.cancel()
    await asyncio.gather(*calls, unsent, return_exceptions=True)
    await until(lambda: store.batcher.open_count == 0 and store.batcher.open_bytes == 0)
    assert sorted(seq for _, seq, _ in identities(coordinator)) == list(range(1, 11))
    await table.put(("a", 100), {})
    assert coordinator.ops_of(OP_WRITE)[-1][5] >= 11  # the floor passed the abandoned ones


async def test_close_answers_what_is_under_way(cluster: FakeCluster) -> None:
    store = await ackord.connect(cluster.nodes["n1"].url, timeout=5)
    await store.create_table("t", {"n": int})
    for node in cluster.nodes.values():
        node.script = lambda group: throw(Hold())
    table = store.table("t")
    write = asyncio.create_task(table.put(1, {}))
    read = asyncio.create_task(table.get(1))
    await until(lambda: sum(len(node.groups) for node in cluster.nodes.values()) == 2)
    late = asyncio.create_task(table.put(2, {}))
    await asyncio.sleep(0)
    async with asyncio.timeout(2):
        await store.close()
    outcomes = await asyncio.gather(write, read, late, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [
        ackord.OutcomeUnknown,
        ackord.Unavailable,
        ackord.Unavailable,
    ]
    assert store.batcher.open_count == 0


# ---------------------------------------------------------------------------------- backpressure


async def test_a_full_queue_refuses_at_once(cluster: FakeCluster) -> None:
    queue = ackord.QueueOptions(queue_ops_max=10, queue_bytes_max=10_000, inflight_ops_max=4)
    async with ackord.connect(cluster.nodes["n1"].url, queue=queue) as store:
        await store.create_table("t", {"n": int})
        table = store.table("t")
        await table.put(0, {})
        node = cluster.nodes["n1"]
        node.script = lambda group: throw(Hold())
        calls = [asyncio.create_task(table.put(k, {}, timeout=0.5)) for k in range(30)]
        done, _ = await asyncio.wait(calls, timeout=0.3)
        assert len(done) == 20
        for call in done:
            error = call.exception()
            assert isinstance(error, ackord.Unavailable) and error.detail["reason"] == "client_queue_full"
            assert (error.detail["field"], error.detail["limit"]) == ("queue_ops_max", 10)
        sent = sum(len(group[6]) for group in node.ops_of(OP_WRITE)) - 1
        assert sent == 4
        outcomes = await asyncio.gather(*(set(calls) - done), return_exceptions=True)
        kinds = [type(outcome) for outcome in outcomes]
        assert kinds.count(ackord.OutcomeUnknown) == 4  # only what was sent may have happened
        assert kinds.count(ackord.Unavailable) == 6
        with pytest.raises(ackord.Unavailable, match="queue_bytes_max is 10000"):
            await table.put(1, {"x": b"x" * 20_000})


async def test_a_node_of_another_cluster_is_not_believed(cluster: FakeCluster, store: ackord.Store) -> None:
    cluster.cluster_id = "another"
    with pytest.raises(ackord.Unauthorized, match="another"):
        await store.table("unknown").get(1, timeout=0.5)


async def test_limits_of_the_cluster_hold() -> None:
    cluster = await start_cluster(1, replace(DEFAULT_LIMITS, batch_rows_count=2, row_bytes=50))
    try:
        async with ackord.connect(cluster.nodes["n1"].url) as store:
            await store.create_table("t", {"n": int})
            table = store.table("t")
            with pytest.raises(ackord.InvalidRequest, match="limit of 2"):
                await table.get_many([1, 2, 3])
            with pytest.raises(ackord.InvalidRequest, match="limit of 50"):
                await table.put(1, {"x": "y" * 50})
    finally:
        await stop_cluster(cluster)


async def test_a_group_of_which_some_expired_before_it_left_is_sent_without_them(
    cluster: FakeCluster,
) -> None:
    queue = ackord.QueueOptions(inflight_ops_max=4)
    async with ackord.connect(cluster.nodes["n1"].url, queue=queue, timeout=5) as store:
        await store.create_table("t", {"n": int})
        table = store.table("t")
        await table.put(0, {})
        node, link = cluster.nodes["n1"], store.batcher.links["n1"]
        node.script = once(lambda: throw(Hold()))
        held = [asyncio.create_task(table.put(k, {})) for k in range(4)]
        await until(lambda: link.inflight_count == 4)
        waiting = [asyncio.create_task(table.put(4 + k, {}, timeout=(0.2, 5)[k % 2])) for k in range(4)]
        done, _ = await asyncio.wait(waiting, timeout=0.7)
        assert done == set(waiting[::2])
        assert all(type(call.exception()) is ackord.Unavailable for call in done)
        rid = next(iter(link.inflight))
        link._frames_received([[[rid, None, [1, 2, 3, 4]]]])  # the held group is answered after all
        async with asyncio.timeout(2):
            assert await asyncio.gather(*held) == [1, 2, 3, 4]
            await asyncio.gather(*waiting[1::2])
        assert store.batcher.open_count == 0


async def test_reads_that_go_well_never_become_operations(
    table: ackord.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwanted(self: ReadGroup) -> None:
        raise AssertionError("an object for each read")

    await table.put(("a", 1), {"n": 1})
    monkeypatch.setattr(ReadGroup, "ops", property(unwanted))
    rows = await asyncio.gather(*(table.get(("a", n)) for n in range(3)))
    assert [row and dict(row) for row in rows] == [None, {"n": 1}, None]
    assert await table.get_many([("z", 9), ("a", 1)]) == [None, rows[1]]


# ------------------------------------------------------------------------------- gathering writes


def writes_of(node: FakeNode) -> list[int]:
    """How many writes each frame brought that brought any."""
    frames = [[len(group[6]) for group in frame if group[1] == OP_WRITE] for frame in node.frames]
    return [sum(counts) for counts in frames if counts]


async def test_writes_wait_for_a_node_that_owes_an_answer(
    table: ackord.Table, cluster: FakeCluster, coordinator: FakeNode
) -> None:
    """Those of all its tablets then leave in one frame, with what the answered write at once."""
    for tablet in cluster.coordinators:
        cluster.coordinators[tablet] = "n1"
    await table.put(("z", 0), {})  # so it is known that n1 coordinates this tablet too
    coordinator.frames.clear()
    coordinator.gate.clear()

    async def twice() -> None:
        await table.put(("a", 1), {})
        await table.put(("a", 2), {})

    first = asyncio.ensure_future(twice())
    await until(lambda: writes_of(coordinator) == [1])
    table._store.batcher.links["n1"].round_s = 1.0
    others = []
    for key in (("a", 3), ("z", 1), ("a", 4)):
        others.append(asyncio.ensure_future(table.put(key, {})))
        await asyncio.sleep(0.01)
    coordinator.gate.set()
    await asyncio.gather(first, *others)
    assert writes_of(coordinator) == [1, 4]


async def test_many_waiting_writes_leave_beside_those_under_way(
    table: ackord.Table, coordinator: FakeNode
) -> None:
    coordinator.frames.clear()
    coordinator.gate.clear()
    first = asyncio.ensure_future(table.put(("a", 0), {}))
    await until(lambda: writes_of(coordinator) == [1])
    table._store.batcher.links["n1"].round_s = 1.0
    many = asyncio.ensure_future(
        table.write_many([ackord.Put(("a", n), {}) for n in range(1, GATHER_OPS_MAX + 1)])
    )
    await asyncio.sleep(0.01)
    one = asyncio.ensure_future(table.put(("a", 0), {}))
    await asyncio.sleep(0.01)
    coordinator.gate.set()
    await asyncio.gather(first, many, one)
    assert writes_of(coordinator) == [1, GATHER_OPS_MAX, 1]


async def test_new_puts_travel_as_columns_and_nothing_else_does(
    table: ackord.Table, coordinator: FakeNode
) -> None:
    puts = [ackord.Put(("a", n), {}) for n in range(3)]
    await table.write_many(puts)
    assert coordinator.columns_count == 1
    await table.write_many([*puts, ackord.Delete(("a", 9))])
    await table.write_many([*puts, ackord.Put(("a", 8), {}, if_absent=True)])
    assert coordinator.columns_count == 1
    coordinator.script = once(lambda: throw(ackord.Unavailable("busy", retry_after_ms=1)))
    await table.put(("a", 1), {})  # its retry says that it is one
    assert coordinator.columns_count == 2
    assert [group[6][0][6] for group in coordinator.ops_of(OP_WRITE)[-2:]] == [1, 2]


async def test_a_stuck_tablet_does_not_hold_up_the_nodes_others(
    table: ackord.Table, coordinator: FakeNode
) -> None:
    coordinator.script = once(lambda: throw(Hold()))
    stuck = asyncio.ensure_future(table.put(("a", 1), {}))
    await until(lambda: writes_of(coordinator) == [1])
    for number in range(3):
        await asyncio.wait_for(table.put(("a", 2), {"number": number}), 1)
    assert not stuck.done()
    stuck.cancel()
    await asyncio.gather(stuck, return_exceptions=True)
