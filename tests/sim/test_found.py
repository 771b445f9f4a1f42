"""What whole simulated walks have found in the coordination and storage of nodes, each as small as it gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.sim.cluster import Cluster, ClusterKnobs
from tests.sim.kernel import World
from tests.sim.links import Link, Sent
from tests.sim.network import NetworkKnobs
from tests.sim.service import SimCoordinationService


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    world = World(1)
    made = Cluster(world, ClusterKnobs(), NetworkKnobs())
    yield made
    world.close()


def until(cluster: Cluster, holds: Callable[[], bool], within_s: float = 20.0) -> None:
    world = cluster.world
    assert holds() or world.run_until(world.now + within_s, holds), "not within the time"


def lose_answers(service: SimCoordinationService, path: str, times: int) -> list[Sent]:
    """The connection ends in place of the answers of the next writes of ``path``; those that were hit so far."""
    propose = service.propose
    hit: list[Sent] = []

    def proposed(link: Link, sent: Sent) -> None:
        request: Any = sent.request
        if len(hit) < times and getattr(request, "path", None) == path:
            hit.append(sent)
            service.lose_next_answer(link.node, len(hit) % 2 == 0)
        propose(link, sent)

    service.propose = proposed  # type: ignore[method-assign]
    return hit


def test_a_node_starts_although_the_answers_to_its_registration_are_lost(cluster: Cluster) -> None:
    hit = lose_answers(cluster.service, f"{cluster.service.root}/nodes/n1", 3)
    for node in cluster.nodes.values():
        node.start()
    until(cluster, lambda: all(node.is_serving for node in cluster.nodes.values()))
    assert len(hit) == 3
