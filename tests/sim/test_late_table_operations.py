"""A create or drop of a table that a node receives when its caller has long got an answer, or given up."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

import ackord
from tests.sim.cluster import Cluster, ClusterKnobs
from tests.sim.kernel import World
from tests.sim.network import NetworkKnobs

LATE_S = 20.0


class Scene:
    """A cluster, and one client whose next table operation the network holds up."""

    def __init__(self) -> None:
        self.world = World(1)
        self.cluster = Cluster(self.world, ClusterKnobs(), NetworkKnobs(table_late_s=(LATE_S, LATE_S)))
        for node in self.cluster.nodes.values():
            node.start()
        self.process = self.cluster.client_process()
        self.store: ackord.Store = self.do(self._connect())

    async def _connect(self) -> ackord.Store:
        return await self.cluster.connect(self.process)

    def do(self, call: Coroutine[Any, Any, Any]) -> Any:
        task = self.process.start(call)
        assert self.world.run_until(self.world.now + 60, task.done)
        return task.result()

    def held(self, call: Coroutine[Any, Any, Any], attempts_count: int = 1) -> Any:
        """The call, of which so many attempts arrive late."""
        network = self.cluster.network
        count = network.trace.faults["table operation late"] + attempts_count
        network.knobs.table_late_rate = 1.0
        task = self.process.start(call)
        self.world.run_until(
            self.world.now + 60, lambda: network.trace.faults["table operation late"] >= count or task.done()
        )
        network.knobs.table_late_rate = 0.0
        assert self.world.run_until(self.world.now + 60, task.done)
        return task.result()

    def pass_time(self) -> None:
        """Until what was held up has arrived, and more."""
        lines = self.cluster.trace.lines
        assert not any("late" in line and "arrives" in line for line in lines)
        self.world.run_until(self.world.now + 2 * LATE_S)
        assert any("late" in line and "arrives" in line for line in lines)

    async def create(self, timeout: float = 10.0) -> Any:
        return await self.store.create_table("t", {"k": str}, timeout=timeout)

    async def drop(self, timeout: float = 10.0) -> None:
        await self.store.drop_table("t", timeout=timeout)

    async def ids(self) -> list[int]:
        return [table.id for table in await self.store.list_tables()]


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.world.close()


def test_a_late_attempt_of_a_create_does_not_bring_the_table_back(scene: Scene) -> None:
    scene.held(scene.create())
    scene.do(scene.drop())
    scene.pass_time()
    assert scene.do(scene.ids()) == []


def test_a_late_attempt_of_a_drop_does_not_drop_the_next_table_of_that_name(scene: Scene) -> None:
    scene.do(scene.create())
    scene.held(scene.drop())
    again = scene.do(scene.create())

    async def put() -> int:
        return await scene.store.table("t").put("k", {"v": 1})

    version = scene.do(put())
    scene.pass_time()
    assert scene.do(scene.ids()) == [again.id]

    async def get() -> ackord.Row | None:
        return await scene.store.table("t").get("k")

    assert scene.do(get()).version == version


def test_a_create_that_was_given_up_does_not_run_once_the_name_was_used_again(scene: Scene) -> None:
    with pytest.raises(ackord.OutcomeUnknown):
        scene.held(scene.create(timeout=0.5), attempts_count=1000)
    scene.do(scene.create())
    scene.do(scene.drop())
    scene.pass_time()
    assert scene.do(scene.ids()) == []


def test_a_drop_that_was_given_up_does_not_run_once_the_name_was_used_again(scene: Scene) -> None:
    scene.do(scene.create())
    with pytest.raises(ackord.OutcomeUnknown):
        scene.held(scene.drop(timeout=0.5), attempts_count=1000)
    scene.do(scene.drop())
    again = scene.do(scene.create())
    scene.pass_time()
    assert scene.do(scene.ids()) == [again.id]


def test_a_create_that_was_given_up_may_still_run_while_nobody_used_the_name(scene: Scene) -> None:
    with pytest.raises(ackord.OutcomeUnknown):
        scene.held(scene.create(timeout=0.5), attempts_count=1000)
    assert scene.do(scene.ids()) == []
    scene.pass_time()
    assert len(scene.do(scene.ids())) == 1


def test_other_clients_see_a_table_operation_as_soon_as_it_was_acknowledged(scene: Scene) -> None:
    """On a node that has not heard of it, too."""

    async def names(url: str) -> list[str]:
        store = await scene.cluster.connect(scene.process)
        store._admin._urls = lambda: [url]
        found = [table.name for table in await store.list_tables()]
        for name in found:
            assert (await store.describe_table(name)).name == name
        with pytest.raises(ackord.TableNotFound):
            await store.describe_table("u" if found else "t")
        return found

    scene.do(scene.create())
    for url in scene.cluster.urls:
        assert scene.do(names(url)) == ["t"]
    for machine in scene.cluster.nodes.values():
        assert machine.node is not None
        machine.node.tables_changed = lambda: None  # type: ignore[method-assign]
    scene.do(scene.drop())
    for url in scene.cluster.urls:
        assert scene.do(names(url)) == []
