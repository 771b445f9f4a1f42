"""Feeding a copy: appends in flight, from disk, by snapshot; rebuilding one: rules R3, R13, R14, R18."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from ackord_node.core import effects as e
from ackord_node.core import messages as m
from tests.support.core_cluster import Cluster
from tests.support.core_script import APPEND, drops, ends, flows, formed, lead, well
from tests.support.core_walk import TINY_LOG, small_marks


@pytest.fixture(autouse=True)
def _small_marks() -> Iterator[None]:
    with small_marks():
        yield


def busy(c: Cluster, seconds: float) -> None:
    """Clients write for a while."""
    c.has_clients = True
    for client in c.clients:
        client.start()
    c.run(seconds)
    c.has_clients = False
    c.run(1.0)


def test_a_learner_is_filled_by_a_snapshot_while_writes_go_on() -> None:
    c = formed(log=TINY_LOG, min_in_sync=1)
    busy(c, 1)
    c.crash("n3")
    c.lose_disk("n3")
    busy(c, 4)
    assert c.leader().core.state.log.trimmed > 1
    c.start("n3")
    busy(c, 3)
    assert c.notes.count("takes a snapshot") > 0
    c.run_until(c.is_well, 20)
    well(c)


def test_a_copy_whose_snapshot_broke_off_starts_again() -> None:
    c = formed(log=TINY_LOG, min_in_sync=1)
    busy(c, 1)
    c.crash("n3")
    c.lose_disk("n3")
    busy(c, 4)
    c.start("n3")
    c.run_until(lambda: c.nodes["n3"].core.state.filling, 10, "the snapshot began")
    c.crash("n3")
    c.start("n3")
    assert not c.nodes["n3"].core.may_read(c.nodes["n3"].clock())
    well(c)


def test_a_late_chunk_of_an_earlier_snapshot_does_not_replace_a_full_copy() -> None:
    """A snapshot replaces the copy that it was meant for, and no other (rule R13: nobody deletes what counts)."""
    c = formed(log=TINY_LOG, min_in_sync=1)
    busy(c, 1)
    c.crash("n3")
    c.lose_disk("n3")
    busy(c, 4)
    chunks: list[list[Any]] = []

    def watch(source: str, target: str, message: list[Any]) -> bool:
        if message[0] == m.SNAPSHOT:
            chunks.append(list(message))
        return False

    c.drop = watch
    c.start("n3")
    c.run_until(c.is_well, 20)
    flows(c)
    c.crash("n3")
    c.start("n3")
    copy_id = c.nodes["n3"].core.state.copy_id
    c.step(c.nodes["n3"], e.Received("n1", 1, chunks[0]))
    assert c.nodes["n3"].core.state.copy_id == copy_id
    well(c)


def test_an_in_sync_copy_that_holds_everything_is_not_replaced_by_a_snapshot() -> None:
    """Its commit point is behind what the new coordinator trimmed, its log is not."""
    c = formed(log=replace(TINY_LOG, disk_bytes=400))
    busy(c, 3)
    n3 = c.nodes["n3"]
    copy_id = n3.core.state.copy_id
    for name in ("n1", "n2", "n3"):
        c.crash(name)
    assert c.nodes["n2"].disk.meta.trimmed > 0
    c.start("n2", "n3")
    c.run_until(lambda: c.coordinator() is not None, 10)
    c.run(2)
    assert c.leader().name == "n2"
    assert n3.core.state.copy_id == copy_id
    well(c)


def test_a_copy_behind_what_is_in_memory_is_fed_from_disk() -> None:
    c = formed(log=replace(TINY_LOG, disk_bytes=100_000), min_in_sync=1)
    c.crash("n3")
    busy(c, 4)
    assert c.leader().core.state.log.first > 2
    read = []
    before = c._serve_catch_up

    def watch(node: Any, effect: Any) -> None:
        if isinstance(effect, e.ReadLog):
            read.append(effect)
        before(node, effect)

    c._serve_catch_up = watch  # type: ignore[method-assign]
    c.start("n3")
    c.run_until(c.is_well, 20)
    assert read
    assert c.notes.count("takes a snapshot") == 0
    well(c)


def test_a_divergent_tail_is_overwritten() -> None:
    c = formed(min_in_sync=1)
    c.put_done()
    base = ends(c)["n3"]
    drops(c, APPEND, "n1", "n2")
    for _ in range(3):
        c.put(node="n1")
    c.run_until(lambda: ends(c)["n3"] > base, 1)
    c.crash("n1")
    c.crash("n3")
    flows(c)
    c.run_until(lambda: c.coordinator() is not None, 6)
    c.put_done()
    c.start("n3")
    c.run_until(lambda: "n3" in c.in_sync(), 10)
    well(c)


def test_epochs_of_a_restarted_copy_are_those_of_its_entries() -> None:
    """The stored runs cover entries that are not applied yet: they are not to be counted twice."""
    c = formed()
    c.put_done()
    c.run(0.5)
    lead(c, "n2")
    c.put_done()
    c.run(0.5)
    lead(c, "n1")
    drops(c, m.COMMIT)
    drops(c, m.BEACON)
    c.put(node="n1")
    c.run(0.1)
    n3 = c.nodes["n3"]
    log = n3.core.state.log
    before = [log.epoch_at(index) for index in range(log.trimmed, log.end + 1)]
    c.crash("n3")
    c.start("n3")
    log = n3.core.state.log
    assert [log.epoch_at(index) for index in range(log.trimmed, log.end + 1)] == before
    assert log.runs == sorted(set(log.runs))
    well(c)


def test_a_member_confirms_what_is_on_disk_while_more_arrives() -> None:
    """Else a steady stream would be confirmed only when it pauses."""
    c = formed(disk_delay_max=0.0003)
    n3 = c.nodes["n3"]
    s = n3.core.state
    sent: list[int] = []

    def watch(source: str, target: str, message: list[Any]) -> bool:
        if message[0] == m.CONFIRM and source == "n3":
            sent.append(message[4])
        return False

    c.drop = watch
    c.put_done()
    c.run(0.3)
    n3.disk_is_stuck = True
    first = s.log.end
    for _ in range(2):
        c.put(node="n1")
        c.run(0.05)
    assert s.log.end == first + 2
    batch = s.take_batch()
    assert batch is not None and batch.end == first + 2
    c.put(node="n1")
    c.run(0.05)
    sent.clear()
    n3.disk.apply(batch)
    c.step(n3, e.Durable(batch))
    assert sent == [first + 2], "the first two are confirmed although the third is not on disk"
    n3.disk_is_stuck = False
    c._kick_disk(n3)
    well(c)


def test_a_damaged_copy_stops_serving_and_is_rebuilt() -> None:
    """Rule R14."""
    c = formed(log=TINY_LOG)
    busy(c, 3)
    n2 = c.nodes["n2"]
    copy_id = n2.core.state.copy_id
    c.step(n2, e.Corrupted("a row failed its checksum"))
    assert not n2.core.may_read(n2.clock())
    c.run_until(c.is_well, 20)
    assert n2.core.state.copy_id != copy_id
    well(c)


def test_a_damaged_coordinator_gives_the_tablet_up() -> None:
    c = formed()
    c.put_done()
    c.step(c.leader(), e.Corrupted("a row failed its checksum"))
    assert c.coordinator() is None
    c.run_until(lambda: c.coordinator() is not None, 6)
    assert c.leader().name != "n1"
    well(c)


def test_a_dropped_tablet_is_served_and_confirmed_no_more() -> None:
    """Rule R18: the mark is an epoch of its own."""
    c = formed()
    c.put_done()
    d = c.service.descriptor
    c.service.apply(replace(d, epoch=d.epoch + 1, dropped=True), c.service.version)
    c.run(1)
    for node in c.nodes.values():
        assert node.core.state.stopped_reason == "dropped"
        assert not node.core.may_read(node.clock())
        assert node.core.coordinator is None
    op = c.put(node="n1")
    c.run(1)
    assert op.last_error is not None and op.outcome is None
