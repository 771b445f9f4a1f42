"""The simulated ZooKeeper and the real adapter on it, in virtual time; the port's contract is in tests/contract."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from ackord_node.ports import Cas, CoordinationError, LockAttempt
from tests.sim.coordination import SimCoordination
from tests.sim.kernel import Process, World
from tests.sim.service import SimCoordinationService

TABLET = 0x1F
TIMEOUT_MS = 3000
CAS_COUNT = 200


class Told:
    """Implements CoordinationListener."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.history: list[tuple[Any, ...]] = []
        self.descriptors: dict[int, tuple[bytes | None, int]] = {}
        self.locks: dict[int, tuple[bytes | None, bool]] = {}
        self.is_connected = False

    def descriptor_changed(self, tablet: int, data: bytes | None, version: int) -> None:
        self.descriptors[tablet] = (data, version)
        self._note("descriptor", tablet, data, version)

    def lock_changed(self, tablet: int, holder: bytes | None, mine: bool) -> None:
        self.locks[tablet] = (holder, mine)
        self._note("lock", tablet, holder, mine)

    def tables_changed(self) -> None:
        self._note("tables")

    def nodes_changed(self) -> None:
        self._note("nodes")

    def session_changed(self, connected: bool) -> None:
        self.is_connected = connected
        self._note("session", connected)

    def _note(self, *event: Any) -> None:
        self.history.append((round(self._world.now, 6), *event))


class Stage:
    """A world with the service and some nodes' adapters in it."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.service = SimCoordinationService(self.world)
        self.processes: dict[str, Process] = {}

    def join(self, name: str) -> tuple[SimCoordination, Told]:
        process = self.processes[name] = Process(self.world, name)
        node, told = SimCoordination(self.service, process, name, TIMEOUT_MS), Told(self.world)
        self.run(name, node.start(told))
        self.until(lambda: told.is_connected)
        return node, told

    def begin(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self.processes[name].start(work)

    def run(self, name: str, work: Coroutine[Any, Any, Any], within_s: float = 30.0) -> Any:
        task = self.begin(name, work)
        self.until(task.done, within_s)
        return task.result()

    def until(self, holds: Callable[[], bool], within_s: float = 30.0) -> None:
        assert holds() or self.world.run_until(self.world.now + within_s, holds), "not within the time"

    def pass_time(self, seconds: float) -> None:
        self.world.run_until(self.world.now + seconds)

    def sessions_of(self, name: str) -> int:
        return sum(node == name for node, _ in self.service.sessions())


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage(1)
    yield made
    made.world.close()


def test_a_dead_nodes_session_ends_after_its_timeout_and_not_before(stage: Stage) -> None:
    a, _ = stage.join("a")
    b, told = stage.join("b")
    b.follow(TABLET)
    assert stage.run("a", a.acquire_lock(TABLET, b"a")) is LockAttempt.HELD
    stage.until(lambda: told.locks.get(TABLET) == (b"a", False))
    stage.processes["a"].kill()
    killed_at = stage.world.now
    stage.until(lambda: told.locks[TABLET] == (None, False))
    assert 2 / 3 * TIMEOUT_MS / 1000 < stage.world.now - killed_at < TIMEOUT_MS / 1000 + 0.1
    assert stage.sessions_of("a") == 0
    assert stage.run("b", b.acquire_lock(TABLET, b"b")) is LockAttempt.HELD


def test_an_idle_session_lives_on(stage: Stage) -> None:
    a, told = stage.join("a")
    assert stage.run("a", a.acquire_lock(TABLET, b"a")) is LockAttempt.HELD
    stage.pass_time(60)
    assert [event[1:] for event in told.history if event[1] == "session"] == [("session", True)]
    assert stage.service.seen["session"] == 1
    assert stage.run("a", a.acquire_lock(TABLET, b"a")) is LockAttempt.HELD


def test_a_session_ends_while_a_paused_client_believes_in_it(stage: Stage) -> None:
    a, told = stage.join("a")
    a.follow(TABLET)
    assert stage.run("a", a.acquire_lock(TABLET, b"a")) is LockAttempt.HELD
    stage.until(lambda: told.locks.get(TABLET) == (b"a", True))
    stage.processes["a"].pause()
    stage.pass_time(5)
    assert stage.sessions_of("a") == 0
    assert told.is_connected and told.locks[TABLET] == (b"a", True)
    stage.processes["a"].resume()
    stage.until(lambda: told.locks[TABLET] == (None, False))
    stage.until(lambda: told.is_connected)
    assert stage.sessions_of("a") == 1


def test_an_unreachable_node_resumes_its_session_in_time_or_gets_a_new_one(stage: Stage) -> None:
    a, told = stage.join("a")
    stage.run("a", a.register_node("a", b"there"))
    assert stage.run("a", a.acquire_lock(TABLET, b"a")) is LockAttempt.HELD
    first = stage.service.sessions()
    stage.service.set_reachable("a", False)
    stage.until(lambda: not told.is_connected)
    with pytest.raises(CoordinationError):
        stage.run("a", a.cluster())
    stage.service.set_reachable("a", True)
    stage.until(lambda: told.is_connected)
    assert stage.service.sessions() == first
    stage.service.set_reachable("a", False)
    stage.pass_time(8)
    assert stage.service.sessions() == []
    stage.service.set_reachable("a", True)
    stage.until(lambda: told.is_connected)
    assert stage.sessions_of("a") >= 1
    assert stage.run("a", a.nodes()) == {"a": b"there"}, "registered again"
    assert stage.run("a", a.acquire_lock(TABLET, b"a")) is LockAttempt.HELD


def test_sessions_outlive_the_service_being_down(stage: Stage) -> None:
    a, told = stage.join("a")
    assert stage.run("a", a.acquire_lock(TABLET, b"a")) is LockAttempt.HELD
    first = stage.service.sessions()
    for _ in range(3):
        stage.service.set_down(True)
        stage.until(lambda: not told.is_connected)
        stage.pass_time(10)
        assert stage.service.sessions() == first
        stage.service.set_down(False)
        stage.until(lambda: told.is_connected)
    assert stage.service.sessions() == first
    stage.processes["a"].kill()
    stage.pass_time(3.1)
    assert stage.service.sessions() == []


@pytest.mark.parametrize("applied", [True, False])
def test_a_lost_answer_is_unknown_and_may_have_been_applied(stage: Stage, applied: bool) -> None:
    a, told = stage.join("a")
    a.follow(TABLET)
    assert stage.run("a", a.create_descriptor(TABLET, b"d0")) is Cas.WON
    stage.service.lose_next_answer("a", applied)
    assert stage.run("a", a.swap_descriptor(TABLET, b"d1", 0)) is Cas.UNKNOWN
    stage.until(lambda: told.is_connected)
    stands = (b"d1", 1) if applied else (b"d0", 0)
    assert stage.run("a", a.descriptor(TABLET)) == stands
    assert stage.service.descriptors == {TABLET: stands}
    assert stage.service.under_way() == []
    stage.service.lose_next_answer("a", applied)
    assert stage.run("a", a.acquire_lock(TABLET, b"a")) is LockAttempt.UNKNOWN
    stage.until(lambda: told.locks.get(TABLET) == ((b"a", True) if applied else (None, False)))


def test_a_write_that_was_given_up_is_applied_late(stage: Stage) -> None:
    a, told = stage.join("a")
    b, _ = stage.join("b")
    assert stage.run("a", a.create_descriptor(TABLET, b"d0")) is Cas.WON
    service = stage.service
    service.unknown_rate, service.late_range = 1.0, (2.0, 2.0)
    while not service.seen["answer lost, late"]:
        stage.until(lambda: told.is_connected)
        assert stage.run("a", a.swap_descriptor(TABLET, b"late", 0)) is Cas.UNKNOWN
        if service.descriptors[TABLET] != (b"d0", 0):
            pytest.fail("this seed applies it at once: choose another one")
    service.unknown_rate = 0.0
    assert service.under_way() == [(TABLET, b"late")]
    stage.until(lambda: told.is_connected)
    assert stage.run("a", a.descriptor(TABLET)) == (b"d0", 0), "a read that comes before it"
    stage.pass_time(2)
    assert stage.run("b", b.descriptor(TABLET)) == (b"late", 1)
    assert service.under_way() == []
    assert service.seen["applied after its connection"] == 1


def test_a_late_write_of_an_ended_session_is_nothing(stage: Stage) -> None:
    a, _ = stage.join("a")
    assert stage.run("a", a.create_descriptor(TABLET, b"d0")) is Cas.WON
    service = stage.service
    service.leader_range = (1.0, 1.0)
    stage.begin("a", a.swap_descriptor(TABLET, b"late", 0))
    stage.pass_time(0.1)
    assert service.under_way() == [(TABLET, b"late")]
    service.expire("a")
    stage.pass_time(3)
    assert service.descriptors == {TABLET: (b"d0", 0)}
    assert service.under_way() == []


def test_what_waited_for_the_way_to_be_free_arrives_at_a_link_that_has_ended(stage: Stage) -> None:
    a, told = stage.join("a")
    assert stage.run("a", a.create_descriptor(TABLET, b"d0")) is Cas.WON
    stage.service.set_reachable("a", False)
    swapping = stage.begin("a", a.swap_descriptor(TABLET, b"lost", 0))
    stage.pass_time(0.1)
    stage.service.set_down(True)
    stage.service.set_down(False)
    assert stage.service.under_way() == [(TABLET, b"lost")]
    assert not swapping.done()
    stage.service.set_reachable("a", True)
    stage.until(swapping.done, 0.1)
    assert swapping.result() is Cas.UNKNOWN
    assert stage.service.under_way() == []
    stage.until(lambda: told.is_connected)


def test_a_read_is_ordered_behind_every_write_that_was_acknowledged() -> None:
    for seed in range(20):
        stage = Stage(seed)
        stage.service.lag_range = (0.0, 0.5)
        a, _ = stage.join("a")
        b, _ = stage.join("b")
        assert stage.run("a", a.create_descriptor(TABLET, b"0")) is Cas.WON
        for version in range(5):
            data = b"%d" % (version + 1)
            assert stage.run("a", a.swap_descriptor(TABLET, data, version)) is Cas.WON
            assert stage.run("b", b.descriptor(TABLET)) == (data, version + 1)
        stage.world.close()


def test_changes_are_told_although_no_watch_event_arrives(stage: Stage) -> None:
    stage.service.watch_loss_rate = 1.0
    a, _ = stage.join("a")
    b, told = stage.join("b")
    b.follow(TABLET)
    assert stage.run("a", a.create_descriptor(TABLET, b"d0")) is Cas.WON
    stage.until(lambda: told.descriptors.get(TABLET) == (b"d0", 0))
    assert stage.service.seen["watch lost"]


def test_an_emptied_service_is_told_as_such(stage: Stage) -> None:
    a, told = stage.join("a")
    a.follow(TABLET)
    assert stage.run("a", a.create_cluster(b"c")) == b"c"
    assert stage.run("a", a.create_descriptor(TABLET, b"d0")) is Cas.WON
    stage.until(lambda: told.descriptors.get(TABLET) == (b"d0", 0))
    stage.service.wipe()
    stage.until(lambda: told.descriptors.get(TABLET) == (None, -1))
    assert stage.run("a", a.cluster()) is None
    assert stage.service.descriptors == {}


def test_close_ends_the_session_at_once_and_is_bounded_if_nothing_answers(stage: Stage) -> None:
    a, _ = stage.join("a")
    b, _ = stage.join("b")
    stage.run("a", a.close(), 0.1)
    assert stage.sessions_of("a") == 0
    stage.service.set_reachable("b", False)
    stage.run("b", b.close(), 2.0)


class Outcome:
    """What became of one compare-and-set: when it was sent and answered, and what it would have written."""

    def __init__(self, data: bytes, version: int, answer: Cas | None) -> None:
        self.data, self.version, self.answer = data, version, answer


async def swap_often(node: SimCoordination, name: str, rng: random.Random, told: list[Outcome]) -> None:
    """Compare-and-sets from whatever version is read, as a coordinator would."""
    for number in range(CAS_COUNT):
        await asyncio.sleep(rng.uniform(0, 0.2))
        data = f"{name}-{number}".encode()
        try:
            found = await node.descriptor(TABLET)
            version = -2 if found is None else found[1]
            answer = await (
                node.create_descriptor(TABLET, data)
                if found is None
                else node.swap_descriptor(TABLET, data, version)
            )
        except CoordinationError:
            continue
        told.append(Outcome(data, -1 if found is None else version, answer))


def faulty_run(seed: int) -> tuple[list[tuple[int, bytes]], list[Outcome], list[Any]]:
    """Every version that the descriptor ever had, what the nodes were told of their writes, and a history."""
    stage = Stage(seed)
    world, service, rng = stage.world, stage.service, random.Random(seed)
    nodes = {name: stage.join(name) for name in ("a", "b", "c")}
    service.unknown_rate, service.watch_delay, service.watch_loss_rate = 0.1, 0.5, 0.3
    versions: list[tuple[int, bytes]] = []
    agree = service.agree

    def agreed(changes: Any) -> None:
        agree(changes)
        stands = service.descriptors.get(TABLET)
        if stands is not None and (not versions or versions[-1] != (stands[1], stands[0])):
            versions.append((stands[1], stands[0]))

    service.agree = agreed  # type: ignore[method-assign]
    told: list[Outcome] = []
    tasks = []
    for name, (node, _) in nodes.items():
        node.follow(TABLET)
        tasks.append(stage.begin(name, swap_often(node, name, random.Random(seed), told)))
    while not all(task.done() for task in tasks):
        name = rng.choice(list(nodes))
        fault = rng.randrange(4)
        if fault == 0:
            service.expire(name)
        elif fault == 1:
            service.set_reachable(name, False)
        elif fault == 2:
            service.set_down(True)
        stage.pass_time(rng.uniform(0, 3))
        service.set_down(False)
        service.set_reachable(name, True)
        stage.pass_time(rng.uniform(0, 3))
    service.unknown_rate = 0.0
    stage.pass_time(20)
    assert service.under_way() == []
    stands = service.descriptors[TABLET]
    for _, listener in nodes.values():
        assert listener.descriptors[TABLET] == stands, "each is told in the end what stands"
        seen = [event[4] for event in listener.history if event[1] == "descriptor"]
        assert seen == sorted(seen), "never an older one after a newer one"
    history = [listener.history for _, listener in nodes.values()] + [sorted(service.seen.items())]
    world.close()
    return versions, told, history


@pytest.mark.parametrize("seed", range(4))
def test_outcomes_are_true_under_faults(seed: int) -> None:
    versions, told, _ = faulty_run(seed)
    assert [version for version, _ in versions] == list(range(len(versions)))
    written = {data: version for version, data in versions}
    assert len(written) == len(versions)
    for each in told:
        if each.answer is Cas.WON:
            assert written[each.data] == each.version + 1
        elif each.answer is Cas.LOST:
            assert each.data not in written
    unknown = [each.data in written for each in told if each.answer is Cas.UNKNOWN]
    assert True in unknown and False in unknown


def test_the_same_seed_is_the_same_run() -> None:
    assert faulty_run(7)[2] == faulty_run(7)[2]
