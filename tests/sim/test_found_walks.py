"""More of what whole walks have found, each as a short script: see regressions.txt for the seeds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from tests.sim.cluster import Cluster, ClusterKnobs
from tests.sim.kernel import World
from tests.sim.network import NetworkKnobs


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    world = World(1)
    made = Cluster(world, ClusterKnobs(), NetworkKnobs())
    for node in made.nodes.values():
        node.start()
    process = made.client_process()

    async def create() -> None:
        async with made.connect(process) as store:
            await store.create_table("t", {"k": str})

    task = process.start(create())
    assert world.run_until(20, task.done)
    task.result()
    until(made, lambda: is_whole(made))
    yield made
    world.close()


def until(cluster: Cluster, holds: Callable[[], bool], within_s: float = 30.0) -> None:
    world = cluster.world
    assert holds() or world.run_until(world.now + within_s, holds), "not within the time"


def is_whole(cluster: Cluster) -> bool:
    """One coordinator, and all in sync."""
    hosts = [host for node in cluster.nodes.values() for host in node.hosts().values()]
    leaders = [h for h in hosts if h.replica.coordinator is not None and h.replica.coordinator.is_active]
    return len(hosts) == 3 and len(leaders) == 1 and all(h.replica.state.is_in_sync for h in hosts)


def test_somebody_takes_over_although_the_lock_was_free_before_and_after_the_service_was_away(
    cluster: Cluster,
) -> None:
    """The adapters report changes only: what was known of the lock must outlive the service's absence."""
    world, service = cluster.world, cluster.service
    leader, host = next(
        (n, h)
        for n in cluster.nodes.values()
        for h in n.hosts().values()
        if h.replica.coordinator is not None
    )
    service.set_reachable(leader.name, False)
    world.run_until(
        world.now + 6
    )  # its session and its lock are gone; it goes on, and keeps the others' promise
    assert host.replica.coordinator is not None
    for name in cluster.nodes:
        service.set_reachable(name, False)
    world.run_until(world.now + 6)
    leader.crash(power_loss=False)
    for name in cluster.nodes:
        service.set_reachable(name, True)
    others = [node for node in cluster.nodes.values() if node is not leader]
    until(cluster, lambda: any(h.replica.coordinator for n in others for h in n.hosts().values()))


def test_a_node_whose_metadata_is_damaged_starts_with_an_empty_store(cluster: Cluster) -> None:
    node = cluster.nodes["n2"]
    node.crash(power_loss=False)
    node.start()  # opening folds the log into tables
    until(cluster, lambda: is_whole(cluster))
    node.crash(power_loss=False)
    assert node.disk.flip_bit(random.Random(1), "meta") is not None
    node.start()
    until(cluster, lambda: node.is_serving and is_whole(cluster))
    assert any("the store is void" in line for line in cluster.trace.lines)
