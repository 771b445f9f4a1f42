"""Changes of the in-sync set: rules R1, R4, R9, R10, R11, R13."""

from __future__ import annotations

from ackord.errors import Unavailable
from ackord_node.core import messages as m
from ackord_node.core.effects import DiskSlow, DiskWell, HandOver, PeerDown, Received
from ackord_node.core.progress import Progress
from ackord_node.core.types import Timing
from tests.support.core_clients import Reader
from tests.support.core_cluster import Cluster
from tests.support.core_script import (
    APPEND,
    BEACON,
    BEACON_CONFIRM,
    CONFIRM,
    drops,
    ends,
    flows,
    formed,
    holds,
    well,
)


def of(c: Cluster, name: str) -> Progress:
    coordinator = c.leader().core.coordinator
    assert coordinator is not None
    return coordinator.progress[name]


def has_joined_in(c: Cluster, name: str) -> bool:
    """Whether the coordinator has heard a promise of the node's present run."""
    p = of(c, name)
    return p.incarnation == c.nodes[name].incarnation and p.authority > c.leader().clock()


def test_a_member_is_removed_only_after_its_lease_ran_out() -> None:
    """Rule R9: n3 hears nothing more, but may answer reads until its lease ends; until then it is required."""
    c = formed(min_in_sync=1)
    c.run(0.3)
    for source in ("n1", "n2"):
        drops(c, APPEND, source, "n3")
        drops(c, CONFIRM, "n3", source)
    op = c.put(node="n1")
    n3 = c.nodes["n3"]
    drops(c, BEACON, "n1", "n3")
    while n3.core.may_read(n3.clock()):
        assert op.outcome is None
        assert "n3" in c.in_sync()
        c.run(0.01)
    c.run_until(lambda: op.is_done, 5, "n3 is removed and the write commits")
    assert c.in_sync() == ["n1", "n2"]
    well(c)


def test_a_dead_members_lease_is_waited_out() -> None:
    """Rule R9: n3 is cut off, and was given up long before its lease ends."""
    c = formed(min_in_sync=1, timing=Timing(balance_delay=1e9, lease=2.0, confirm_timeout=0.6))
    c.run(0.3)
    n3 = c.nodes["n3"]
    c.cut("n3")
    op = c.put(node="n1")
    c.run_until(lambda: of(c, "n3").revoking, 1.5, "it is to go")
    assert n3.core.may_read(n3.clock())
    while n3.core.may_read(n3.clock()):
        assert "n3" in c.in_sync()
        assert op.outcome is None
        c.run(0.01)
    c.run_until(lambda: op.is_done, 1.0)
    well(c)


def test_a_member_that_is_to_go_is_granted_no_more() -> None:
    """Rule R9: it confirms beacons and asks for leases, but no entries; else it could never be removed."""
    c = formed(min_in_sync=1)
    c.run(0.3)
    drops(c, CONFIRM, "n3")
    op = c.put(node="n1")
    c.run_until(lambda: op.is_done, 3.5, "n3's lease runs out and it is removed")
    assert c.in_sync() == ["n1", "n2"]
    well(c)


def test_a_removed_member_is_required_until_the_removal_is_known_to_have_won() -> None:
    """Rules R1 and R4: an unknown outcome stays unknown while the version is unchanged."""
    c = formed(min_in_sync=1)
    c.put_done()
    c.run(0.5)
    version = c.service.version
    c.service.swap_filter = lambda node, d: "held"
    c.cut("n3")
    c.run_until(lambda: bool(c.service.held), 6, "n1 asks to remove n3")
    op = c.put(node="n1")
    c.run(3)
    assert op.outcome is None, "n3 may still be in sync: the compare-and-set may never be applied"
    assert c.service.version == version
    c.service.swap_filter = lambda node, d: "normal"
    assert c.service.release_held()[0]
    c.run_until(lambda: op.is_done, 3)
    assert c.service.version == version + 1, "the change was sent often and won once"
    well(c)


def test_a_learner_counts_from_before_its_compare_and_set() -> None:
    """Rule R10: once it may be in sync, nothing is committed without it."""
    c = formed(min_in_sync=1)
    c.crash("n3")
    c.run_until(lambda: c.in_sync() == ["n1", "n2"], 6)
    c.service.swap_filter = lambda node, d: "held"
    c.start("n3")
    c.run_until(lambda: bool(c.service.held), 10, "n1 asks to add n3")
    drops(c, CONFIRM, "n3")
    op = c.put(node="n1")
    c.run(0.8)
    assert op.outcome is None
    flows(c)
    c.service.swap_filter = lambda node, d: "normal"
    c.service.release_held()
    c.run_until(lambda: op.is_done, 5)
    well(c)


def test_no_member_joins_without_a_promise_that_covers_every_lease() -> None:
    """Rule R10: n3 confirms entries but no beacon; its takeover could begin while n2 still answers reads."""
    c = formed(min_in_sync=1)
    c.crash("n3")
    c.run_until(lambda: c.in_sync() == ["n1", "n2"], 6)
    c.run(0.1)
    c.start("n3")
    c.run_until(lambda: has_joined_in(c, "n3"), 5, "its first promise")
    drops(c, BEACON_CONFIRM, "n3")
    of(c, "n3").rejoin_at = c.leader().clock() + 2.0
    changes = len(c.service.history)
    c.run(2.5)
    assert of(c, "n3").confirmed == ends(c)["n1"]
    assert not any(d.member_of("n3") for d in c.service.history[changes:])
    well(c)


def test_a_learner_that_lacks_the_tail_is_not_admitted() -> None:
    """Rule R10: at least the commit point and the log's length at takeover."""
    c = formed(min_in_sync=1)
    c.crash("n3")
    c.run_until(lambda: c.in_sync() == ["n1", "n2"], 6)
    c.run(0.1)
    c.start("n3")
    c.run_until(lambda: has_joined_in(c, "n3") and not of(c, "n3").probing, 5)
    assert c.in_sync() == ["n1", "n2"]
    of(c, "n3").rejoin_at = c.leader().clock() + 1.0
    drops(c, APPEND, "n1", "n3")
    changes = len(c.service.history)
    c.run(0.9)
    c.put_done()
    c.run(0.5)
    assert not any(d.member_of("n3") for d in c.service.history[changes:])
    well(c)


def test_a_lost_member_at_the_minimum_is_swapped_for_a_learner() -> None:
    """Rule R10: two healthy nodes beside a lost disk, although two are the minimum and the tail is not committed."""
    c = formed()
    c.crash("n3")
    c.run_until(lambda: c.in_sync() == ["n1", "n2"], 6)
    c.put_done()
    c.crash("n2")
    c.lose_disk("n2")
    c.start("n3")
    took = c.run_until(lambda: c.in_sync() == ["n1", "n3"], 10, "n3 takes n2's place in one step")
    assert took < 6
    assert c.put_done().is_done
    well(c)


def test_a_takeover_at_the_minimum_swaps_the_dead_coordinator() -> None:
    """Rules R2, R8 and R10: the old coordinator stays in the set, so only a swap lets the tail commit."""
    c = formed()
    c.crash("n3")
    c.run_until(lambda: c.in_sync() == ["n1", "n2"], 6)
    drops(c, CONFIRM, target="n1")
    op = c.put(node="n1")
    c.run_until(lambda: ends(c)["n2"] == 1, 1)
    c.crash("n1")
    flows(c)
    c.start("n3")
    c.run_until(lambda: c.in_sync() == ["n2", "n3"], 15)
    c.run_until(lambda: (op.client, op.seq) in c.oracle.done, 5, "the tail is committed")
    well(c)


def test_the_last_members_standing_refuse_writes_below_the_minimum() -> None:
    """Rule R11: a clear error, certainly not done; and service goes on once a member is back."""
    c = formed()
    c.crash("n3")
    c.run_until(lambda: c.in_sync() == ["n1", "n2"], 6)
    c.crash("n2")
    c.run(3)
    op = c.put(node="n1")
    c.run(0.1)
    assert op.last_error[0] == Unavailable.code
    assert op.last_error[2]["reason"] == "minimum"
    assert c.in_sync() == ["n1", "n2"]
    c.start("n2")
    assert c.put_done().is_done
    well(c)


def test_a_member_that_returns_with_an_empty_disk_is_another_copy() -> None:
    """Rule R3: it neither counts for the copy that was in sync, nor takes over for it."""
    c = formed()
    c.put_done()
    before = c.nodes["n3"].core.state.copy_id
    c.crash("n3")
    c.lose_disk("n3")
    c.start("n3")
    c.run_until(c.is_well, 20)
    assert c.nodes["n3"].core.state.copy_id != before
    well(c)


def test_an_empty_copy_does_not_take_over_for_the_one_that_was_in_sync() -> None:
    c = formed(min_in_sync=1)
    c.put_done()
    c.run(0.3)
    for name in ("n1", "n2", "n3"):
        c.crash(name)
    c.lose_disk("n2")
    c.start("n2")
    c.run(8)
    assert c.service.descriptor.coordinator == "n1", "n2 holds nothing"
    c.start("n3")
    c.run_until(lambda: c.coordinator() is not None, 10)
    assert c.leader().name == "n3"
    well(c)


def test_a_member_whose_disk_rolled_back_is_expelled_and_comes_back() -> None:
    """Rule R13: in the same epoch the coordinator remembers what it had confirmed."""
    c = formed()
    for _ in range(4):
        c.put_done()
    c.run(0.5)
    c.crash("n3")
    c.roll_back("n3", 6, is_suspect=False)
    c.start("n3")
    c.run_until(lambda: c.notes.count("expels n3") > 0, 5)
    well(c)


def test_a_member_that_rolled_back_at_the_minimum_is_fed_again() -> None:
    """It cannot be removed; once it holds everything again, it counts again."""
    c = formed(nodes=2)
    for _ in range(4):
        c.put_done()
    c.run(0.5)
    c.crash("n2")
    c.roll_back("n2", 6, is_suspect=False)
    c.start("n2")
    c.run_until(lambda: c.notes.count("expels n2") > 0, 5)
    well(c)


def test_a_new_coordinator_whose_disk_rolled_back_resigns() -> None:
    """Rule R13: a member knows a later commit point."""
    c = formed()
    for _ in range(4):
        c.put_done()
    c.run(0.5)
    for name in ("n1", "n2", "n3"):
        c.crash(name)
    c.roll_back("n2", 8, is_suspect=False)
    c.start("n2", "n3")
    c.run_until(lambda: c.notes.count("the own disk rolled back") > 0, 10)
    c.run_until(lambda: c.coordinator() is not None, 10)
    assert c.leader().name == "n3"
    well(c)


def test_a_silently_rolled_back_member_gets_no_lease_before_it_is_fed() -> None:
    """Rule R13: a new coordinator does not remember what it had confirmed, so it shows it first."""
    c = formed()
    for _ in range(4):
        c.put_done()
    c.run(0.5)
    for name in ("n1", "n2", "n3"):
        c.crash(name)
    c.roll_back("n3", 6, is_suspect=False)
    drops(c, APPEND, "n2", "n3")
    c.start("n2", "n3")
    c.run_until(lambda: c.coordinator() is not None, 10)
    assert c.leader().name == "n2"
    c.run(0.9)
    assert not c.nodes["n3"].core.may_read(c.nodes["n3"].clock())
    well(c)


def test_a_suspect_copy_leaves_the_takeover_to_a_later_log() -> None:
    """Rule R13, and no copy that is well waits behind one that asks in vain."""
    c = formed()
    for _ in range(4):
        c.put_done()
    c.run(0.5)
    for name in ("n1", "n2", "n3"):
        c.crash(name)
    c.roll_back("n2", 8, is_suspect=True)
    c.start("n2")
    c.run(5)
    assert c.service.descriptor.coordinator == "n1"
    c.start("n3")
    c.run_until(lambda: c.coordinator() is not None, 10)
    assert c.leader().name == "n3"
    assert c.nodes["n2"].core.state.suspect
    well(c)
    assert not c.nodes["n2"].core.state.suspect, "it was refilled"


def test_a_suspect_copy_takes_over_if_all_members_say_that_none_is_later() -> None:
    c = formed()
    c.put_done()
    c.run(0.5)
    for name in ("n1", "n2", "n3"):
        c.crash(name)
    c.roll_back("n2", 1, is_suspect=True)
    c.roll_back("n3", 1, is_suspect=True)
    c.roll_back("n1", 1, is_suspect=True)
    well(c)
    assert not any(node.core.state.suspect for node in c.nodes.values()), (
        "the one that took over lacks nothing"
    )


def test_a_suspect_copy_does_not_take_over_while_its_promise_runs() -> None:
    """Rules R7 and R13: the coordinator lost its lock, and answers its member's questions and reads."""
    c = formed()
    c.put_done()
    c.run(0.3)
    c.crash("n2")
    c.roll_back("n2", 1, is_suspect=True)
    c.crash("n3")
    c.start("n2")
    c.run(0.9)
    c.service.disconnect(c.nodes["n1"])
    c.service.end_session(c.nodes["n1"], c.nodes["n1"].session)
    old = c.nodes["n1"]
    c.run_until(lambda: c.nodes["n2"].core.state.promise_until > c.nodes["n2"].clock(), 3)
    for _ in range(300):
        assert not (old.core.may_read(old.clock()) and c.service.descriptor.coordinator == "n2")
        c.run(0.01)
    well(c)


def test_a_late_farewell_of_an_earlier_run_does_not_end_the_lease_of_a_later_one() -> None:
    """Rules R3 and R9: n3 stopped and came back; its old message must not let it be removed at once."""
    c = formed(min_in_sync=1)
    n3 = c.nodes["n3"]
    old, copy_id = n3.incarnation, n3.core.state.copy_id
    c.crash("n3")
    c.start("n3")
    c.run_until(c.is_well, 10)
    assert n3.core.state.copy_id == copy_id
    c.cut("n3")
    farewell = [9, 7, c.service.descriptor.epoch, copy_id]
    c.step(c.leader(), Received("n3", old, farewell))
    while n3.core.may_read(n3.clock()):
        assert "n3" in c.in_sync()
        c.run(0.01)
    well(c)


def test_a_write_is_on_the_coordinators_own_disk_before_it_is_acknowledged() -> None:
    c = formed()
    c.run(0.3)
    c.nodes["n1"].disk_is_stuck = True
    op = c.put(node="n1")
    c.run(0.3)
    assert op.outcome is None
    assert c.leader().core.state.commit == 0
    c.nodes["n1"].disk_is_stuck = False
    c._kick_disk(c.nodes["n1"])
    c.run_until(lambda: op.is_done, 2)
    well(c)


def test_reads_go_on_at_every_member_while_one_is_away() -> None:
    c = formed()
    op = c.put_done()
    c.crash("n3")
    c.run_until(lambda: c.in_sync() == ["n1", "n2"], 6)
    c.run(0.5)
    for name in ("n1", "n2"):
        reader: Reader = c.read(name, op.key)
        assert reader.rows[0] == c.oracle.rows[op.key]
    well(c)


def test_a_coordinator_with_a_full_disk_stays_at_the_minimum() -> None:
    """A successor's epoch would have to be stored by the full member too, so that not even reads could go on."""
    c = formed()
    op = c.put_done()
    c.crash("n3")
    c.run_until(lambda: c.in_sync() == ["n1", "n2"], 6)
    c.run(0.5)
    epoch = c.service.descriptor.epoch
    c.step(c.leader(), DiskSlow("the disk is full"))
    c.run(4)
    assert (c.leader().name, c.service.descriptor.epoch) == ("n1", epoch)
    reader: Reader = c.read("n1", op.key)
    assert reader.rows[0] == c.oracle.rows[op.key]
    c.step(c.leader(), DiskWell())
    well(c)


def test_a_new_coordinator_does_not_wait_for_the_answer_of_a_peer_that_is_gone() -> None:
    c = formed()
    holds(c, m.INQUIRE_ANSWER, source="n3")
    c.step(c.leader(), HandOver("n2"))
    n2 = c.nodes["n2"]
    c.run_until(lambda: n2.core.coordinator is not None, 5)
    c.run(0.1)  # its epoch is on disk and n1 has answered; the inquiry ends by itself after 0.2 s
    assert n2.core.coordinator is not None
    assert not n2.core.coordinator.is_active
    c.step(n2, PeerDown("n3", refused=False))
    assert n2.core.coordinator.is_active
