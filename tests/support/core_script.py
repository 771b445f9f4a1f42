"""Words for scenario scripts over a cluster of cores."""

from __future__ import annotations

from typing import Any

from ackord_node.core import effects as e
from ackord_node.core import messages as m
from tests.support.core_cluster import Cluster, Profile


def formed(seed: int = 1, leader: str = "n1", **profile: Any) -> Cluster:
    """A cluster in which every replica is in sync and ``leader`` coordinates."""
    cluster = Cluster(seed, Profile(**profile))
    cluster.form()
    lead(cluster, leader)
    return cluster


def lead(c: Cluster, name: str) -> None:
    """Hands the tablet over to ``name``, and waits until all is well again."""
    if c.leader().name != name:
        c.step(c.leader(), e.HandOver(name))
        c.run_until(lambda: c.service.descriptor.coordinator == name, 10, f"{name} coordinates")
    c.run_until(c.is_well, 20, "all is well")
    assert c.leader().name == name


def drops(c: Cluster, kind: int, source: str | None = None, target: str | None = None) -> None:
    """From here on, such messages are lost (``c.drop`` undoes it)."""
    before = c.drop

    def drop(a: str, b: str, message: list[Any]) -> bool:
        if message[0] == kind and source in (None, a) and target in (None, b):
            return True
        return before(a, b, message)

    c.drop = drop


def holds(c: Cluster, kind: int, source: str | None = None, target: str | None = None) -> None:
    """From here on, such messages are held back until ``c.release_held``."""
    before = c.hold

    def hold(a: str, b: str, message: list[Any]) -> bool:
        if message[0] == kind and source in (None, a) and target in (None, b):
            return True
        return before(a, b, message)

    c.hold = hold


def flows(c: Cluster) -> None:
    """Nothing is dropped or held any more; what is held stays held."""
    c.drop = lambda a, b, message: False
    c.hold = lambda a, b, message: False


def ends(c: Cluster) -> dict[str, int]:
    return {node.name: node.core.state.log.end for node in c.nodes.values() if node.is_up}


def well(c: Cluster) -> None:
    """The end of a script: everything heals, and the whole state is right."""
    flows(c)
    c.mend()
    c.start()
    for node in c.nodes.values():
        c.service.connect(node)
    c.run_until(c.is_well, 30, "all is well")
    c.put_done()
    c.run_until(c.is_well, 10, "the last write is everywhere")
    c.check_end()


APPEND, CONFIRM, BEACON, BEACON_CONFIRM = m.APPEND, m.CONFIRM, m.BEACON, m.BEACON_CONFIRM
