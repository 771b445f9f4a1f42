"""Disks that lie, are swapped or given up, and what arrives too late for a copy: rules R3, R13, R14, R16, R18."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from ackord.wire.messages import KIND_UPDATE
from ackord.wire.values import encode_update
from ackord_node.core import messages as m
from ackord_node.core.types import Member
from tests.support.core_cluster import Cluster, Profile
from tests.support.core_script import APPEND, ends, flows, formed, holds, lead, well
from tests.support.core_walk import TINY_LOG, small_marks


@pytest.fixture(autouse=True)
def _small_marks() -> Iterator[None]:
    with small_marks():
        yield


def busy(c: Cluster, seconds: float) -> None:
    c.has_clients = True
    for client in c.clients:
        client.start()
    c.run(seconds)
    c.has_clients = False
    c.run(1.0)


def test_a_disk_that_is_put_back_had_not_confirmed_what_its_replacement_did() -> None:
    """Rule R3: n3 runs with an empty disk for a while, which is filled; then it gets its old one back."""
    c = formed(min_in_sync=1)
    c.put_done()
    c.run(0.3)
    c.crash("n3")
    old = c.nodes["n3"].disk
    c.lose_disk("n3")
    c.service.swap_filter = lambda node, d: "held"  # so that n3's removal is not known to have won
    c.start("n3")
    c.run_until(lambda: ends(c)["n3"] == 1, 10, "the new copy is filled")
    op = c.put(node="n1")
    c.run_until(lambda: set(ends(c).values()) == {2}, 2)
    c.run(0.3)
    assert op.outcome is None, "the copy that is in sync does not have it"
    for name in ("n1", "n2", "n3"):
        c.crash(name)
    c.nodes["n3"].disk = old
    c.service.swap_filter = lambda node, d: "normal"
    c.start("n3")
    c.run_until(lambda: c.coordinator() is not None, 10, "n3, alone, takes over with what it has")
    assert c.put_done().is_done
    well(c)


def test_a_member_whose_disk_rolled_back_gets_no_lease_before_it_is_compared() -> None:
    """Rule R13: the coordinator remembers that it had confirmed everything, and is told that it has less."""
    c = formed()
    for _ in range(4):
        c.put_done()
    c.run(0.5)
    holds(c, APPEND, "n1", "n3")
    c.crash("n3")
    c.roll_back("n3", 6, is_suspect=False)
    c.start("n3")
    n3 = c.nodes["n3"]
    for _ in range(80):
        c.run(0.01)
        assert not n3.core.may_read(n3.clock())
    assert c.notes.count("expels n3") == 1
    c.held.clear()
    well(c)


def test_a_retry_of_what_a_snapshot_brought_is_not_executed_again() -> None:
    """Rule R16: the table of requests is part of a snapshot."""
    c = formed(log=TINY_LOG, min_in_sync=1)
    client = c.clients[0]
    op = client.op(KIND_UPDATE, b"k9", encode_update(increment={"n": 1}))
    client.open = [op]
    client.send([op], "n1")
    c.run_until(lambda: op.is_done, 3)
    c.crash("n3")
    c.lose_disk("n3")
    for _ in range(25):
        c.put_done()
    assert c.leader().core.state.log.trimmed > 1
    c.start("n3")
    c.run_until(c.is_well, 20)
    assert c.notes.count("takes a snapshot") == 1
    lead(c, "n3")
    again = client.send([op], "n3")
    c.run(0.3)
    assert again.answers == {0: op.outcome}
    well(c)


def test_copies_of_before_a_forced_recovery_start_anew() -> None:
    """An operator gives n1 and n2 up and forces n3's older copy; then they come back, with what was given up."""
    c = formed(min_in_sync=1)
    c.put_done()
    c.run(0.3)
    c.crash("n3")
    c.run_until(lambda: c.in_sync() == ["n1", "n2"], 6)
    kept = len(c.oracle.truth)
    for _ in range(3):
        c.put_done(b"k2")
    c.run(0.3)
    copies = {name: c.nodes[name].core.state.copy_id for name in ("n1", "n2")}
    c.crash("n1")
    c.crash("n2")
    c.oracle.given_up(kept)
    d = c.service.descriptor
    forced = replace(
        d,
        epoch=d.epoch + 1,
        coordinator=None,
        incarnation=0,
        in_sync=frozenset({Member("n3", c.nodes["n3"].disk.meta.copy_id)}),
        recovered=d.epoch + 1,
    )
    assert c.service.apply(forced, c.service.version)
    c.start("n3")
    c.run_until(lambda: c.coordinator() is not None, 10)
    assert c.put_done(b"k3").is_done
    c.start("n1", "n2")
    c.run_until(c.is_well, 20, "they hold what n3 holds")
    for name, copy_id in copies.items():
        assert c.nodes[name].core.state.copy_id != copy_id
    well(c)


def test_the_last_replica_standing_serves_alone_and_brings_the_others_back() -> None:
    c = formed(min_in_sync=1)
    c.crash("n3")
    c.crash("n2")
    c.run_until(lambda: c.in_sync() == ["n1"], 6)
    op = c.put_done()
    assert c.read("n1", op.key).rows[0] == c.oracle.rows[op.key]
    c.crash("n1")
    c.start("n2", "n3")
    c.run(5)
    assert c.coordinator() is None, "they lack what it committed alone"
    c.start("n1")
    c.run_until(c.is_well, 20)
    well(c)


def test_a_snapshot_of_an_old_epoch_replaces_nothing() -> None:
    """Rule R3: it was sent by a coordinator that is none any more."""
    c = formed(log=TINY_LOG, min_in_sync=1)
    busy(c, 1)
    c.crash("n3")
    c.lose_disk("n3")
    busy(c, 4)
    holds(c, m.SNAPSHOT, "n1", "n3")
    c.start("n3")
    c.run_until(lambda: bool(c.held), 10, "n1 sends a snapshot")
    c.crash("n1")
    flows(c)
    c.run_until(lambda: c.coordinator() is not None and "n3" in c.in_sync(), 20, "n2 fills n3")
    n3 = c.nodes["n3"]
    copy_id, end = n3.core.state.copy_id, n3.core.state.log.end
    assert c.release_held() > 0
    c.run(0.1)
    assert (n3.core.state.copy_id, n3.core.state.log.end) == (copy_id, end)
    well(c)


def test_a_late_message_of_before_the_drop_wakes_nobody() -> None:
    """Rule R18: also not at a node that restarts and has not read the descriptor yet."""
    c = formed()
    c.put_done()
    c.run(0.3)
    holds(c, APPEND, "n1", "n3")
    holds(c, m.BEACON, "n1", "n3")
    c.put(node="n1")
    c.run(0.3)
    c.mark_dropped()
    c.run(1.0)
    n3 = c.nodes["n3"]
    assert n3.core.state.stopped_reason == "dropped"
    c.crash("n3")
    c.service.disconnect(n3)
    c.start("n3")
    c.service.disconnect(n3)
    assert c.release_held() > 0
    c.run(0.5)
    assert n3.core.state.log.end == 1
    assert not n3.core.may_read(n3.clock())


def test_an_empty_disk_does_not_vote_for_the_copy_it_replaced() -> None:
    """Rule R3: its node confirms, its copy is another; the write waits for the removal of the lost one."""
    c = formed()
    c.put_done()
    c.run(0.3)
    lost = c.nodes["n3"].core.state.copy_id
    c.crash("n3")
    c.lose_disk("n3")
    c.start("n3")
    op = c.put(node="n1")
    c.run_until(lambda: op.is_done, 5)
    assert all(x.copy_id != lost for x in c.service.descriptor.in_sync)
    well(c)


def test_a_tablet_whose_first_copy_is_lost_before_the_second_was_in_sync_is_taken_over() -> None:
    """Rule R2: nothing can have been committed in it, so any replica may begin."""
    c = Cluster(1, Profile())
    c.start("n1")
    c.run_until(lambda: c.service.descriptor.coordinator == "n1", 10)
    assert c.in_sync() == ["n1"]
    c.crash("n1")
    c.lose_disk("n1")
    c.start("n2", "n3")
    c.run_until(lambda: c.in_sync() == ["n2", "n3"], 15, "the others go on without it")
    assert c.put_done().is_done
    well(c)


def test_a_coordinator_whose_set_never_reached_the_minimum_answers_nothing() -> None:
    """Rule R5: it would not hear of another replica that took over."""
    c = Cluster(1, Profile())
    c.start("n1")
    c.run_until(lambda: c.coordinator() is not None, 10)
    n1 = c.nodes["n1"]
    c.run(1.0)
    assert not n1.core.may_read(n1.clock())
    c.cut("n1")
    c.service.end_session(n1, n1.session)
    c.service.disconnect(n1)
    c.start("n2", "n3")
    c.run_until(lambda: c.in_sync() == ["n2", "n3"], 15)
    assert c.put_done().is_done
    assert n1.core.coordinator is not None, "nothing told it yet"
    assert not n1.core.may_read(n1.clock())
    well(c)
