"""What every Coordination adapter promises: one suite, for memory, a simulated and a real ZooKeeper."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol

import pytest

from ackord_node.adapters.coordination_memory import MemoryCoordination, MemoryCoordinationService
from ackord_node.adapters.coordination_zookeeper import ZooKeeperCoordination
from ackord_node.adapters.zookeeper_session import CloseSession, WireConnection
from ackord_node.ports import Cas, Coordination, CoordinationError, LockAttempt
from tests.sim.coordination import SimCoordination
from tests.sim.service import SimCoordinationService
from tests.support.coordination import Recorder, SystemClock
from tests.support.zookeeper import ZooKeeperServer

SESSION_TIMEOUT_MS = 1500
TABLET = 0x1F


class Service(Protocol):
    """One coordination service under test."""

    async def join(self) -> tuple[Coordination, Recorder]:
        """Another node's adapter, usable."""

    async def expire(self, node: Coordination) -> None:
        """Ends the node's session at the service, behind its back."""

    async def close(self) -> None: ...


class MemoryService:
    def __init__(self) -> None:
        self.service = MemoryCoordinationService()
        self._nodes: list[Coordination] = []

    async def join(self) -> tuple[Coordination, Recorder]:
        node = MemoryCoordination(self.service)
        return await _started(node, self._nodes)

    async def expire(self, node: Coordination) -> None:
        assert isinstance(node, MemoryCoordination)
        self.service.expire(node)

    async def close(self) -> None:
        for node in self._nodes:
            await node.close()


class LoopWorld:
    """A simulated service's world and its clients' processes, on a real event loop."""

    def __init__(self) -> None:
        self.rng = random.Random(1)

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def at(self, when: float, call: Callable[..., object], *args: Any) -> object:
        return asyncio.get_running_loop().call_at(when, call, *args)


class LoopProgram(SystemClock):
    def post(self, call: Callable[..., object], *args: Any) -> None:
        asyncio.get_running_loop().call_soon(call, *args)


class SimService:
    def __init__(self) -> None:
        self.service = SimCoordinationService(LoopWorld())
        # As near as a server on the same machine, which is what the pauses in these tests are meant for.
        self.service.delay_range = self.service.leader_range = (0.0, 0.0003)
        self.service.lag_range = (0.0, 0.001)
        self._nodes: list[Coordination] = []
        self._names: dict[int, str] = {}

    async def join(self) -> tuple[Coordination, Recorder]:
        name = f"n{len(self._nodes)}"
        node = SimCoordination(self.service, LoopProgram(), name, SESSION_TIMEOUT_MS)
        self._names[id(node)] = name
        return await _started(node, self._nodes)

    async def expire(self, node: Coordination) -> None:
        self.service.expire(self._names[id(node)])

    async def close(self) -> None:
        await asyncio.gather(*(node.close() for node in self._nodes))


class ZooKeeperService:
    def __init__(self, server: ZooKeeperServer) -> None:
        self._server = server
        self._root = f"/ackord/test-{uuid.uuid4().hex}"
        self._nodes: list[Coordination] = []

    async def join(self) -> tuple[Coordination, Recorder]:
        node = ZooKeeperCoordination([self._server.address], self._root, SESSION_TIMEOUT_MS, SystemClock())
        return await _started(node, self._nodes)

    async def expire(self, node: Coordination) -> None:
        assert isinstance(node, ZooKeeperCoordination)
        await end_session(self._server, node)

    async def close(self) -> None:
        await asyncio.gather(*(node.close() for node in self._nodes))


async def end_session(server: ZooKeeperServer, node: ZooKeeperCoordination) -> None:
    """Takes the node's session over from a second connection and closes it."""
    session = node._session
    thief = WireConnection(server.settings.host, server.settings.client_port, lambda _event: None, None)
    await thief.open()
    response = await thief.handshake(SESSION_TIMEOUT_MS, session.session_id, session.password)
    assert response.session_id == session.session_id
    thief.start_read_loop()
    await asyncio.wait_for(thief.send(CloseSession(), xid=1), 5)
    thief.tear_down()


async def _started(node: Coordination, nodes: list[Coordination]) -> tuple[Coordination, Recorder]:
    recorder = Recorder()
    nodes.append(node)
    await node.start(recorder)
    await recorder.until(lambda: recorder.is_connected)
    return node, recorder


@pytest.fixture(scope="module")
def zookeeper_of_module() -> Iterator[Callable[[], ZooKeeperServer]]:
    """Started on first use, so that running only the memory half needs no ZooKeeper."""
    started: list[ZooKeeperServer] = []

    def get() -> ZooKeeperServer:
        if not started:
            server = ZooKeeperServer()
            started.append(server)
            server.start()
        return started[0]

    yield get
    for server in started:
        server.close()


@pytest.fixture(params=["memory", "sim", pytest.param("zookeeper", marks=pytest.mark.integration)])
async def service(
    request: pytest.FixtureRequest, zookeeper_of_module: Callable[[], ZooKeeperServer]
) -> AsyncIterator[Service]:
    made: Service
    if request.param == "memory":
        made = MemoryService()
    elif request.param == "sim":
        made = SimService()
    else:
        made = ZooKeeperService(zookeeper_of_module())
    yield made
    await made.close()


async def test_the_first_cluster_record_stands(service: Service) -> None:
    a, _ = await service.join()
    b, _ = await service.join()
    assert await a.cluster() is None
    assert await a.create_cluster(b"one") == b"one"
    assert await b.create_cluster(b"two") == b"one"
    assert await b.cluster() == b"one"


async def test_table_numbers_are_never_given_out_twice(service: Service) -> None:
    a, _ = await service.join()
    b, _ = await service.join()
    numbers = await asyncio.gather(*(node.next_id() for node in (a, b) * 8))
    assert len(set(numbers)) == 16
    assert min(numbers) >= 1
    assert await b.next_id() > max(numbers)


async def test_tables_change_by_compare_and_set(service: Service) -> None:
    a, _ = await service.join()
    b, told = await service.join()
    assert await a.table("orders") is None
    assert await a.create_table("orders", b"v0", 0) is Cas.LOST, "there never was one"
    assert await a.create_table("orders", b"v0", -1) is Cas.WON
    assert await b.create_table("orders", b"other", -1) is Cas.LOST
    assert await b.table("orders") == (b"v0", 0)
    assert await b.tables() == {"orders": (b"v0", 0)}
    assert await a.update_table("orders", b"v1", 0) is Cas.WON
    assert await b.update_table("orders", b"v2", 0) is Cas.LOST
    assert await b.tables() == {"orders": (b"v1", 1)}
    assert await a.update_table("nothing", b"", 0) is Cas.LOST
    assert await b.delete_table("orders", 0) is Cas.LOST
    assert await b.delete_table("orders", 1) is Cas.WON
    assert await a.tables() == {}
    assert await b.table("orders") == (b"", 2)
    assert await a.delete_table("orders", 1) is Cas.LOST
    await told.until(lambda: told.tables_changes > 0)


async def test_a_late_change_of_an_earlier_table_does_not_touch_a_later_one(service: Service) -> None:
    a, _ = await service.join()
    assert await a.create_table("orders", b"v0", -1) is Cas.WON
    assert await a.update_table("orders", b"dropping", 0) is Cas.WON
    assert await a.delete_table("orders", 1) is Cas.WON
    assert await a.create_table("orders", b"late", -1) is Cas.LOST
    assert await a.create_table("orders", b"again", 2) is Cas.WON
    for version in (-1, 0, 1, 2):
        assert await a.create_table("orders", b"third", version) is Cas.LOST
    for version in (0, 1):
        assert await a.update_table("orders", b"late", version) is Cas.LOST
        assert await a.delete_table("orders", version) is Cas.LOST
    ((data, version),) = (await a.tables()).values()
    assert data == b"again"
    assert await a.update_table("orders", b"changed", version) is Cas.WON


@pytest.mark.parametrize("name", ["a/b", ".", "..", "ö%2F", "x" * 200])
async def test_any_table_name_will_do(service: Service, name: str) -> None:
    a, _ = await service.join()
    assert await a.create_table(name, b"v", -1) is Cas.WON
    assert await a.table(name) == (b"v", 0)
    assert await a.tables() == {name: (b"v", 0)}


async def test_a_changed_table_definition_is_told(service: Service) -> None:
    a, _ = await service.join()
    b, told = await service.join()
    assert await a.create_table("orders", b"v0", -1) is Cas.WON
    await told.until(lambda: told.tables_changes > 0)
    await asyncio.sleep(0.1)
    before = told.tables_changes
    assert await a.update_table("orders", b"v1", 0) is Cas.WON
    await told.until(lambda: told.tables_changes > before)
    assert await b.tables() == {"orders": (b"v1", 1)}


async def test_descriptor_compare_and_set(service: Service) -> None:
    a, _ = await service.join()
    b, _ = await service.join()
    assert await a.descriptor(TABLET) is None
    assert await a.swap_descriptor(TABLET, b"d", 0) is Cas.LOST
    assert await a.create_descriptor(TABLET, b"d0") is Cas.WON
    assert await b.create_descriptor(TABLET, b"other") is Cas.LOST
    assert await b.descriptor(TABLET) == (b"d0", 0)
    assert await a.swap_descriptor(TABLET, b"d1", 0) is Cas.WON
    assert await b.swap_descriptor(TABLET, b"d2", 0) is Cas.LOST
    assert await b.descriptor(TABLET) == (b"d1", 1)


async def test_of_concurrent_swaps_one_wins(service: Service) -> None:
    nodes = [(await service.join())[0] for _ in range(3)]
    assert await nodes[0].create_descriptor(TABLET, b"d") is Cas.WON
    for version in range(10):
        outcomes = await asyncio.gather(
            *(node.swap_descriptor(TABLET, bytes([n]), version) for n, node in enumerate(nodes))
        )
        assert sorted(outcome.value for outcome in outcomes) == ["lost", "lost", "won"]
        assert await nodes[0].descriptor(TABLET) == (bytes([outcomes.index(Cas.WON)]), version + 1)


async def test_follow_tells_what_stands_and_each_change(service: Service) -> None:
    a, _ = await service.join()
    b, told = await service.join()
    b.follow(TABLET)
    b.follow(TABLET)
    await told.until(lambda: told.descriptors.get(TABLET) == (None, -1))
    await told.until(lambda: told.locks.get(TABLET) == (None, False))
    assert await a.create_descriptor(TABLET, b"d0") is Cas.WON
    await told.until(lambda: told.descriptors[TABLET] == (b"d0", 0))
    assert await a.swap_descriptor(TABLET, b"d1", 0) is Cas.WON
    await told.until(lambda: told.descriptors[TABLET] == (b"d1", 1))
    assert await a.acquire_lock(TABLET, b"a") is LockAttempt.HELD
    await told.until(lambda: told.locks[TABLET] == (b"a", False))
    b.unfollow(TABLET)
    assert await a.swap_descriptor(TABLET, b"d2", 1) is Cas.WON
    await asyncio.sleep(0.1)
    assert told.descriptors[TABLET] == (b"d1", 1)


async def test_the_lock_has_one_holder(service: Service) -> None:
    a, told_a = await service.join()
    b, told_b = await service.join()
    a.follow(TABLET)
    b.follow(TABLET)
    assert await a.acquire_lock(TABLET, b"a") is LockAttempt.HELD
    assert await a.acquire_lock(TABLET, b"a") is LockAttempt.HELD
    assert await b.acquire_lock(TABLET, b"b") is LockAttempt.TAKEN
    await told_a.until(lambda: told_a.locks.get(TABLET) == (b"a", True))
    await told_b.until(lambda: told_b.locks.get(TABLET) == (b"a", False))
    await b.release_lock(TABLET)
    assert await b.acquire_lock(TABLET, b"b") is LockAttempt.TAKEN
    await a.release_lock(TABLET)
    await told_b.until(lambda: told_b.locks.get(TABLET) == (None, False))
    assert await b.acquire_lock(TABLET, b"b") is LockAttempt.HELD
    assert await a.acquire_lock(TABLET, b"a") is LockAttempt.TAKEN
    await told_a.until(lambda: told_a.locks.get(TABLET) == (b"b", False))


async def test_of_concurrent_attempts_one_gets_the_lock(service: Service) -> None:
    nodes = [(await service.join())[0] for _ in range(3)]
    for tablet in range(5):
        attempts = await asyncio.gather(*(node.acquire_lock(tablet, b"x") for node in nodes))
        assert sorted(attempt.value for attempt in attempts) == ["held", "taken", "taken"]


async def test_release_then_acquire_at_once_holds(service: Service) -> None:
    a, told = await service.join()
    a.follow(TABLET)
    for _ in range(5):
        assert await a.acquire_lock(TABLET, b"a") is LockAttempt.HELD
        releasing = asyncio.ensure_future(a.release_lock(TABLET))
        await asyncio.sleep(0)
        assert await a.acquire_lock(TABLET, b"a") is LockAttempt.HELD
        await releasing
        await asyncio.sleep(0.05)
        await told.until(lambda: told.locks.get(TABLET) == (b"a", True))
        assert await a.acquire_lock(TABLET, b"a") is LockAttempt.HELD
        await a.release_lock(TABLET)


async def test_close_ends_lock_and_registration_at_once(service: Service) -> None:
    a, _ = await service.join()
    b, told = await service.join()
    b.follow(TABLET)
    await a.register_node("n1", b"there")
    assert await b.nodes() == {"n1": b"there"}
    assert await a.acquire_lock(TABLET, b"a") is LockAttempt.HELD
    await told.until(lambda: told.locks.get(TABLET) == (b"a", False))
    before = told.nodes_changes
    await a.close()
    await told.until(lambda: told.locks[TABLET] == (None, False), 1.0)
    await told.until(lambda: told.nodes_changes > before, 1.0)
    assert await b.nodes() == {}
    assert await b.acquire_lock(TABLET, b"b") is LockAttempt.HELD
    with pytest.raises(CoordinationError):
        await a.cluster()


async def test_the_last_registration_counts(service: Service) -> None:
    a, _ = await service.join()
    b, told = await service.join()
    await told.until(lambda: told.nodes_changes > 0)
    await a.register_node("n.1", b"old")
    await asyncio.sleep(0.1)
    before = told.nodes_changes
    await a.register_node("n.1", b"new")
    await told.until(lambda: told.nodes_changes > before)
    assert await b.nodes() == {"n.1": b"new"}
    await a.close()
    await b.register_node("n.1", b"of another process")
    assert await b.nodes() == {"n.1": b"of another process"}


async def test_an_ended_session_loses_its_locks_and_registers_again(service: Service) -> None:
    a, told_a = await service.join()
    b, told_b = await service.join()
    a.follow(TABLET)
    b.follow(TABLET)
    await a.register_node("n1", b"there")
    assert await a.create_descriptor(TABLET, b"d0") is Cas.WON
    assert await a.acquire_lock(TABLET, b"a") is LockAttempt.HELD
    await told_a.until(lambda: told_a.locks.get(TABLET) == (b"a", True))
    await told_b.until(lambda: told_b.locks.get(TABLET) == (b"a", False))
    told_a.sessions.clear()
    await service.expire(a)
    await told_b.until(lambda: told_b.locks[TABLET] == (None, False))
    await told_a.until(lambda: told_a.sessions == [False, True])
    await told_a.until(lambda: told_a.locks[TABLET] == (None, False))
    assert await b.nodes() == {"n1": b"there"}
    assert await b.acquire_lock(TABLET, b"b") is LockAttempt.HELD
    assert await a.acquire_lock(TABLET, b"a") is LockAttempt.TAKEN
    assert await b.swap_descriptor(TABLET, b"d1", 0) is Cas.WON
    await told_a.until(lambda: told_a.locks[TABLET] == (b"b", False))
    await told_a.until(lambda: told_a.descriptors[TABLET] == (b"d1", 1))


async def test_a_cancelled_attempt_leaves_no_lock(service: Service) -> None:
    a, told = await service.join()
    b, _ = await service.join()
    a.follow(TABLET)
    for turns in range(12):
        attempt = asyncio.ensure_future(a.acquire_lock(TABLET, b"a"))
        for _ in range(turns):
            await asyncio.sleep(0)
        attempt.cancel()
        outcome = (await asyncio.gather(attempt, return_exceptions=True))[0]
        if outcome is LockAttempt.HELD:
            await a.release_lock(TABLET)
        await asyncio.sleep(0.05)
        assert await b.acquire_lock(TABLET, b"b") is LockAttempt.HELD, turns
        await b.release_lock(TABLET)
    await told.until(lambda: told.locks.get(TABLET) == (None, False))


async def test_the_session_timeout_is_known_and_close_is_idempotent(service: Service) -> None:
    a, told = await service.join()
    assert a.session_timeout_ms is not None and a.session_timeout_ms >= 1000
    await a.close()
    await a.close()
    assert told.sessions == [True]


# --------------------------------------------------------- faults that the memory service can cause


@pytest.mark.parametrize("applied", [True, False])
async def test_memory_unknown_outcomes(applied: bool) -> None:
    made = MemoryService()
    a, told = await made.join()
    assert isinstance(a, MemoryCoordination)
    a.follow(TABLET)
    assert await a.create_descriptor(TABLET, b"d0") is Cas.WON
    made.service.unknown_next(a, applied)
    assert await a.swap_descriptor(TABLET, b"d1", 0) is Cas.UNKNOWN
    assert await a.descriptor(TABLET) == ((b"d1", 1) if applied else (b"d0", 0))
    await told.until(lambda: told.locks.get(TABLET) == (None, False))
    told.locks.clear()
    made.service.unknown_next(a, applied)
    assert await a.acquire_lock(TABLET, b"a") is LockAttempt.UNKNOWN
    await told.until(lambda: told.locks.get(TABLET) == ((b"a", True) if applied else (None, False)))
    assert await a.acquire_lock(TABLET, b"a") is LockAttempt.HELD
    await made.close()


async def test_memory_cut_off_node_keeps_its_session_until_it_is_expired() -> None:
    made = MemoryService()
    a, told_a = await made.join()
    b, told_b = await made.join()
    assert isinstance(a, MemoryCoordination)
    b.follow(TABLET)
    await a.register_node("n1", b"there")
    assert await a.acquire_lock(TABLET, b"a") is LockAttempt.HELD
    made.service.set_available(False, a)
    await told_a.until(lambda: not told_a.is_connected)
    with pytest.raises(CoordinationError):
        await a.swap_descriptor(TABLET, b"d", 0)
    assert await b.acquire_lock(TABLET, b"b") is LockAttempt.TAKEN
    made.service.expire(a)
    await told_b.until(lambda: told_b.locks[TABLET] == (None, False))
    assert await b.nodes() == {}
    made.service.set_available(True)
    await told_a.until(lambda: told_a.sessions == [True, False, True])
    assert await b.nodes() == {"n1": b"there"}
    await made.close()


async def test_memory_lock_of_a_crashed_node_stands_until_its_session_expires() -> None:
    made = MemoryService()
    a, _ = await made.join()
    b, _ = await made.join()
    assert isinstance(a, MemoryCoordination)
    assert await a.acquire_lock(TABLET, b"a") is LockAttempt.HELD
    made.service.set_available(False, a)
    await a.close()
    assert await b.acquire_lock(TABLET, b"b") is LockAttempt.TAKEN
    made.service.expire(a)
    assert await b.acquire_lock(TABLET, b"b") is LockAttempt.HELD
    await made.close()
