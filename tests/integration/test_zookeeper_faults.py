"""The ZooKeeper adapter when ZooKeeper, or the way to it, fails (rule R1: an outcome is never made up)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Iterator

import msgpack
import pytest

from ackord_node.adapters.coordination_zookeeper import ZooKeeperCoordination
from ackord_node.ports import Cas, CoordinationError, LockAttempt
from tests.support.coordination import Recorder, SystemClock
from tests.support.proxy import FrameProxy
from tests.support.zookeeper import ZooKeeperEnsemble, ZooKeeperServer

pytestmark = pytest.mark.integration

TABLET = 7
TIMEOUT_MS = 1500
WATCH_XID = b"\xff\xff\xff\xff"


@pytest.fixture(scope="module")
def shared() -> Iterator[ZooKeeperServer]:
    """For tests that leave the server itself alone."""
    with ZooKeeperServer() as server:
        yield server


@pytest.fixture
def server() -> Iterator[ZooKeeperServer]:
    """For tests that kill, pause or wipe it."""
    with ZooKeeperServer() as started:
        yield started


@contextlib.asynccontextmanager
async def joined(
    *hosts: str, root: str = "/ackord/faults", timeout_ms: int = TIMEOUT_MS
) -> AsyncIterator[tuple[ZooKeeperCoordination, Recorder]]:
    node, told = ZooKeeperCoordination(list(hosts), root, timeout_ms, SystemClock()), Recorder()
    await node.start(told)
    try:
        await told.until(lambda: told.is_connected, 10)
        yield node, told
    finally:
        await node.close()


@contextlib.asynccontextmanager
async def loop_lag_ms() -> AsyncIterator[list[float]]:
    """The longest times for which the event loop did not run, in order of their occurrence."""
    lags: list[float] = [0.0]

    async def sample() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            lags.append((time.perf_counter() - before) * 1000 - 5)

    task = asyncio.create_task(sample())
    try:
        yield lags
    finally:
        task.cancel()


async def within(seconds: float, call: Awaitable[object]) -> object:
    """The call's result or its CoordinationError, which must come in time."""
    try:
        return await asyncio.wait_for(call, seconds)
    except CoordinationError as error:
        return error


async def test_a_killed_server_comes_back_and_the_session_is_resumed(server: ZooKeeperServer) -> None:
    async with joined(server.address) as (a, told_a), joined(server.address) as (b, told_b):
        a.follow(TABLET)
        b.follow(TABLET)
        await a.register_node("n1", b"there")
        assert await a.create_descriptor(TABLET, b"d0") is Cas.WON
        assert await a.acquire_lock(TABLET, b"a") is LockAttempt.HELD
        await told_b.until(lambda: told_b.locks.get(TABLET) == (b"a", False))
        await told_a.until(lambda: told_a.locks.get(TABLET) == (b"a", True))
        session_id = a._session.session_id
        await asyncio.to_thread(server.kill)
        await told_a.until(lambda: not told_a.is_connected, 0.5)
        await asyncio.to_thread(server.start)
        await told_a.until(lambda: told_a.is_connected)
        assert a._session.session_id == session_id
        await told_b.until(lambda: told_b.is_connected)
        assert await b.acquire_lock(TABLET, b"b") is LockAttempt.TAKEN
        assert await b.nodes() == {"n1": b"there"}
        assert [event for event in told_b.history if event == ("lock", TABLET, None, False)][1:] == []
        assert await b.swap_descriptor(TABLET, b"d1", 0) is Cas.WON
        await told_a.until(lambda: told_a.descriptors[TABLET] == (b"d1", 1))
        await a.release_lock(TABLET)
        await told_b.until(lambda: told_b.locks[TABLET] == (None, False))


async def test_an_emptied_zookeeper_ends_the_session_and_shows_no_cluster(server: ZooKeeperServer) -> None:
    async with joined(server.address) as (a, told):
        a.follow(TABLET)
        assert await a.create_cluster(b"mine") == b"mine"
        assert await a.create_descriptor(TABLET, b"d0") is Cas.WON
        assert await a.acquire_lock(TABLET, b"a") is LockAttempt.HELD
        await told.until(lambda: told.locks.get(TABLET) == (b"a", True))
        await told.until(lambda: told.descriptors.get(TABLET) == (b"d0", 0))
        await asyncio.to_thread(server.wipe)
        await asyncio.to_thread(server.start)
        await told.until(lambda: told.sessions[-2:] == [False, True])
        assert await a.cluster() is None
        await told.until(lambda: told.locks[TABLET] == (None, False))
        await told.until(lambda: told.descriptors[TABLET] == (None, -1))


async def test_down_for_seconds_blocks_nothing_and_is_told(server: ZooKeeperServer) -> None:
    async with joined(server.address) as (a, told):
        assert await a.create_descriptor(TABLET, b"d0") is Cas.WON
        async with loop_lag_ms() as lags:
            await asyncio.to_thread(server.kill)
            await told.until(lambda: not told.is_connected, 0.5)
            bound_s = TIMEOUT_MS / 1000
            outcomes = await asyncio.gather(
                within(bound_s, a.descriptor(TABLET)),
                within(bound_s, a.swap_descriptor(TABLET, b"d1", 0)),
                within(bound_s, a.acquire_lock(TABLET, b"a")),
                within(bound_s, a.register_node("n1", b"later")),
                within(bound_s, a.next_id()),
                within(bound_s, a.tables()),
            )
            assert all(isinstance(outcome, CoordinationError) for outcome in outcomes), outcomes
            await within(0.2, a.release_lock(TABLET))
            await asyncio.sleep(3)
            await asyncio.to_thread(server.start)
            await told.until(lambda: told.is_connected)
        assert max(lags) < 200
        assert await a.descriptor(TABLET) == (b"d0", 0)  # a swap that was reported as not sent was not
        assert await a.nodes() == {"n1": b"later"}
        assert await a.acquire_lock(TABLET, b"a") is LockAttempt.HELD


async def test_a_paused_server_is_noticed_and_used_again(server: ZooKeeperServer) -> None:
    async with joined(server.address) as (a, told):
        a.follow(TABLET)
        async with loop_lag_ms() as lags:
            server.pause()
            await told.until(lambda: not told.is_connected, TIMEOUT_MS / 1000 + 0.5)
            assert isinstance(await within(TIMEOUT_MS / 1000, a.cluster()), CoordinationError)
            await asyncio.sleep(1)
            server.resume()
            await told.until(lambda: told.is_connected)
        assert max(lags) < 200
        assert await a.create_descriptor(TABLET, b"d0") is Cas.WON
        await told.until(lambda: told.descriptors[TABLET] == (b"d0", 0))


@pytest.mark.parametrize("applied", [True, False])
async def test_a_swap_whose_answer_is_lost_is_unknown_and_never_sent_again(
    shared: ZooKeeperServer, applied: bool
) -> None:
    root = f"/ackord/swap-{applied}"
    async with FrameProxy(shared.settings.host, shared.settings.client_port) as proxy:
        async with joined(proxy.address, root=root) as (a, told):
            assert await a.create_descriptor(TABLET, b"d0") is Cas.WON
            _lose(proxy, b"the new one", applied)
            assert await a.swap_descriptor(TABLET, b"the new one", 0) is Cas.UNKNOWN
            await told.until(lambda: told.sessions == [True, False, True])
            await asyncio.sleep(0.3)
            expected = (b"the new one", 1) if applied else (b"d0", 0)
            assert await a.descriptor(TABLET) == expected


@pytest.mark.parametrize("applied", [True, False])
async def test_a_lock_whose_answer_is_lost_is_found_out(shared: ZooKeeperServer, applied: bool) -> None:
    root = f"/ackord/lock-{applied}"
    async with (
        FrameProxy(shared.settings.host, shared.settings.client_port) as proxy,
        joined(proxy.address, root=root) as (a, told),
        joined(shared.address, root=root) as (b, _),
    ):
        assert await a.create_descriptor(TABLET, b"d0") is Cas.WON
        a.follow(TABLET)
        await told.until(lambda: told.locks.get(TABLET) == (None, False))
        told.locks.clear()
        _lose(proxy, b"who I am", applied)
        assert await a.acquire_lock(TABLET, b"who I am") is LockAttempt.UNKNOWN
        found = (b"who I am", True) if applied else (None, False)
        await told.until(lambda: told.locks.get(TABLET) == found)
        assert await a.acquire_lock(TABLET, b"who I am") is LockAttempt.HELD
        assert await b.acquire_lock(TABLET, b"b") is LockAttempt.TAKEN
        await a.release_lock(TABLET)
        assert await b.acquire_lock(TABLET, b"b") is LockAttempt.HELD


async def test_an_attempt_cancelled_while_its_answer_is_late_is_undone(shared: ZooKeeperServer) -> None:
    root = "/ackord/cancel"
    async with (
        FrameProxy(shared.settings.host, shared.settings.client_port) as proxy,
        joined(proxy.address, root=root) as (a, _),
        joined(shared.address, root=root) as (b, told),
    ):
        assert await b.create_descriptor(TABLET, b"d0") is Cas.WON
        b.follow(TABLET)
        proxy.judge_answer = lambda _frame: "drop"
        attempt = asyncio.ensure_future(a.acquire_lock(TABLET, b"a"))
        await told.until(lambda: told.locks.get(TABLET) == (b"a", False))
        attempt.cancel()
        assert isinstance((await asyncio.gather(attempt, return_exceptions=True))[0], asyncio.CancelledError)
        proxy.judge_answer = lambda _frame: "pass"
        proxy.cut()
        await told.until(lambda: told.locks[TABLET] == (None, False))


async def test_a_lock_of_ours_that_nobody_wants_is_deleted(shared: ZooKeeperServer) -> None:
    async with joined(shared.address, root="/ackord/late") as (a, told):
        a.follow(TABLET)
        await told.until(lambda: told.locks.get(TABLET) == (None, False))
        late = msgpack.packb([a._session.token, b"late"])  # as if a create had lain on the way
        assert await a._create(a._lock_path(TABLET), late, is_ephemeral=True)
        await told.until(lambda: ("lock", TABLET, b"late", True) in told.history)
        await told.until(lambda: told.locks[TABLET] == (None, False))


async def test_a_release_that_cannot_be_sent_is_done_later(shared: ZooKeeperServer) -> None:
    root = "/ackord/release"
    async with (
        FrameProxy(shared.settings.host, shared.settings.client_port) as proxy,
        joined(proxy.address, root=root) as (a, told_a),
        joined(shared.address, root=root) as (b, told),
    ):
        b.follow(TABLET)
        assert await a.acquire_lock(TABLET, b"a") is LockAttempt.HELD
        proxy.is_refusing = True
        proxy.cut()
        await told_a.until(lambda: not told_a.is_connected)
        await a.release_lock(TABLET)
        await asyncio.sleep(0.2)
        proxy.is_refusing = False
        await told.until(lambda: told.locks.get(TABLET) == (None, False))
        assert await b.acquire_lock(TABLET, b"b") is LockAttempt.HELD


async def test_the_poll_finds_what_a_lost_watch_did_not_tell(shared: ZooKeeperServer) -> None:
    root = "/ackord/watch"
    async with (
        FrameProxy(shared.settings.host, shared.settings.client_port) as proxy,
        joined(proxy.address, root=root) as (a, told),
        joined(shared.address, root=root) as (b, _),
    ):
        assert await b.create_descriptor(TABLET, b"d0") is Cas.WON
        assert await b.create_table("orders", b"v0", -1) is Cas.WON
        a.follow(TABLET)
        await told.until(lambda: told.descriptors.get(TABLET) == (b"d0", 0))
        await asyncio.sleep(0.4)
        lost = 0

        def drop_watches(frame: bytes) -> str:
            nonlocal lost
            lost += frame[:4] == WATCH_XID
            return "drop" if frame[:4] == WATCH_XID else "pass"

        proxy.judge_answer = drop_watches
        before = told.tables_changes
        assert await b.swap_descriptor(TABLET, b"d1", 0) is Cas.WON
        assert await b.acquire_lock(TABLET, b"b") is LockAttempt.HELD
        assert await b.update_table("orders", b"v1", 0) is Cas.WON
        await told.until(lambda: told.descriptors[TABLET] == (b"d1", 1), 1.5)
        await told.until(lambda: told.locks[TABLET] == (b"b", False), 1.5)
        await told.until(lambda: told.tables_changes > before, 1.5)
        assert lost >= 2


async def test_a_server_that_refuses_causes_no_hot_loop(shared: ZooKeeperServer) -> None:
    async with FrameProxy(shared.settings.host, shared.settings.client_port) as proxy:
        async with joined(proxy.address, root="/ackord/refuse") as (_, told):
            proxy.is_refusing = True
            proxy.cut()
            proxy.connections = 0
            await asyncio.sleep(4)
            assert 3 <= proxy.connections <= 16
            proxy.is_refusing = False
            await told.until(lambda: told.is_connected, 2)


async def test_a_server_that_drops_each_session_causes_no_hot_loop(shared: ZooKeeperServer) -> None:
    async with FrameProxy(shared.settings.host, shared.settings.client_port) as proxy:
        async with joined(proxy.address, root="/ackord/drops") as (_, told):
            proxy.connections = 0
            proxy.judge_request = lambda frame: "pass" if len(frame) in (44, 45) else "cut"
            proxy.cut()
            await asyncio.sleep(4)
            assert 3 <= proxy.connections <= 16
            proxy.judge_request = lambda _frame: "pass"
            await told.until(lambda: told.is_connected, 2)


async def test_a_frozen_host_in_the_list_costs_little(shared: ZooKeeperServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as frozen:  # accepts, and never answers
        address = f"127.0.0.1:{frozen.getsockname()[1]}"
        for _ in range(3):
            began = time.perf_counter()
            async with joined(address, address, shared.address, root="/ackord/frozen") as (a, _):
                assert await a.cluster() is None
            assert time.perf_counter() - began < 2.5


async def test_following_many_tablets_costs_no_more_than_the_budget(shared: ZooKeeperServer) -> None:
    async with FrameProxy(shared.settings.host, shared.settings.client_port) as proxy:
        async with (
            joined(proxy.address, root="/ackord/many", timeout_ms=3000) as (a, told),
            joined(shared.address, root="/ackord/many") as (b, _),
        ):
            for tablet in range(1000):
                a.follow(tablet)
            await told.until(lambda: len(told.locks) == 1000, 10)
            proxy.requests = 0
            await asyncio.sleep(1)
            assert 40 < proxy.requests < 2 * (2 * 64 + 8)
            assert await b.create_descriptor(999, b"d0") is Cas.WON
            await told.until(lambda: told.descriptors[999] == (b"d0", 0), 0.5)


async def test_a_session_timeout_that_the_server_raises_is_reported(
    shared: ZooKeeperServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with joined(shared.address, root="/ackord/raised", timeout_ms=400) as (a, _):
            assert a.session_timeout_ms == 1000
    assert "raised the session timeout from 400 ms to 1000 ms" in caplog.text


async def test_an_ensemble_member_dies_or_freezes_and_the_session_moves() -> None:
    ensemble = await asyncio.to_thread(ZooKeeperEnsemble)
    try:
        await asyncio.to_thread(ensemble.start)
        async with joined(*ensemble.addresses, timeout_ms=4000) as (a, told):
            a.follow(TABLET)
            assert await a.create_descriptor(TABLET, b"d0") is Cas.WON
            assert await a.acquire_lock(TABLET, b"a") is LockAttempt.HELD
            session_id = a._session.session_id
            for version, fault in enumerate(["kill", "pause"]):
                victim = _server_of(ensemble, a)
                await asyncio.to_thread(getattr(victim, fault))
                await told.until(lambda: not told.is_connected)
                await told.until(lambda: told.is_connected, 15)
                assert await a.swap_descriptor(TABLET, b"d", version) is Cas.WON
                assert await a.acquire_lock(TABLET, b"a") is LockAttempt.HELD
                if fault == "kill":
                    assert a._session.session_id == session_id
                    await asyncio.to_thread(victim.start)
                else:
                    victim.resume()
            await told.until(lambda: told.descriptors[TABLET] == (b"d", 2))
    finally:
        await asyncio.to_thread(ensemble.close)


def _server_of(ensemble: ZooKeeperEnsemble, node: ZooKeeperCoordination) -> ZooKeeperServer:
    connection = node._session._connection
    assert connection is not None
    return next(server for server in ensemble.servers if server.settings.client_port == connection.port)


def _lose(proxy: FrameProxy, marker: bytes, applied: bool) -> None:
    """Cuts the connection at the request that holds the marker: before the server gets it, or before the
    client gets the answer."""
    seen: list[bytes] = []

    def judge_request(frame: bytes) -> str:
        if marker in frame and not seen:
            seen.append(frame[:4])
            return "pass" if applied else "cut"
        return "pass"

    def judge_answer(frame: bytes) -> str:
        return "cut" if seen and frame[:4] == seen[0] and applied else "pass"

    proxy.judge_request, proxy.judge_answer = judge_request, judge_answer
