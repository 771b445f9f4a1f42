"""Becoming and ceasing to be coordinator: rules R1, R2, R3, R4, R7, R7b, R8, R17."""

from __future__ import annotations

from typing import Any

from ackord.errors import OutcomeUnknown
from ackord_node.core import effects as e
from ackord_node.core import messages as m
from tests.support.core_clients import Op
from tests.support.core_script import APPEND, BEACON, CONFIRM, drops, ends, flows, formed, holds, lead, well


def test_late_confirmation_of_an_old_epoch_counts_for_nothing() -> None:
    """Rule R3, the models' ``ack_reuse``: index 2 of epoch 1 is not index 2 of epoch 3."""
    c = formed(min_in_sync=1)
    c.put_done()
    c.run(0.3)
    base = c.leader().core.state.log.end
    first_epoch = c.service.descriptor.epoch
    drops(c, APPEND, "n1", "n2")
    holds(c, CONFIRM, "n3", "n1")
    c.put(node="n1")
    c.run_until(lambda: bool(c.held), 1, "n3 confirms what n2 never got")
    c.crash("n1")
    flows(c)
    c.run_until(lambda: c.coordinator() is not None and c.leader().name == "n2", 5)
    c.start("n1")
    c.run_until(c.is_well, 20)
    assert c.leader().name == "n2"
    drops(c, APPEND, "n2", "n3")
    c.put(node="n2")
    c.run_until(lambda: ends(c)["n1"] == base + 1, 1, "n1 has the other entry")
    c.crash("n2")
    drops(c, APPEND, "n1", "n3")
    c.run_until(lambda: c.coordinator() is not None and c.leader().name == "n1", 5)
    assert c.in_sync() == ["n1", "n3"]
    assert c.release_held() == 1
    c.run(0.1)
    assert c.leader().core.state.commit == base, "the confirmation was for another entry"
    assert c.service.descriptor.epoch == first_epoch + 2
    well(c)


def test_a_prepared_tail_is_committed_and_never_dropped() -> None:
    """Rules R8 and R17: the write's outcome was unknown to its caller, and becomes done."""
    c = formed()
    drops(c, CONFIRM, target="n1")
    op = c.put(node="n1")
    c.run_until(lambda: set(ends(c).values()) == {1}, 1)
    assert op.outcome is None
    c.crash("n1")
    flows(c)
    c.run_until(lambda: c.coordinator() is not None and c.leader().core.may_read(c.leader().clock()), 5)
    assert (op.client, op.seq) in c.oracle.done
    again = retry(c, op)
    assert again == c.oracle.done[op.client, op.seq][1], "the retry gets the first attempt's version"
    well(c)


def retry(c: Any, op: Op) -> Any:
    c.clients[0].send([op], c.leader().name)
    c.run_until(lambda: op.is_done, 5, "the retry is answered")
    return op.outcome


def test_nothing_is_answered_before_the_tail_is_committed() -> None:
    """Rule R8: neither reads nor leases, while the tail cannot commit."""
    c = formed()
    drops(c, CONFIRM, target="n1")
    c.put(node="n1")
    c.run_until(lambda: set(ends(c).values()) == {1}, 1)
    c.crash("n1")
    drops(c, CONFIRM)
    c.run_until(lambda: c.coordinator() is not None, 5)
    c.run(0.5)
    coordinator = c.leader().core.coordinator
    assert coordinator is not None
    assert coordinator.authority() > c.leader().clock()
    assert not any(node.core.may_read(node.clock()) for node in c.nodes.values() if node.is_up)
    well(c)


def test_the_old_epoch_is_barred_while_a_copy_tries_to_take_over() -> None:
    """Rule R2: what it confirms now could be committed and would be missing from the log it takes over with."""
    c = formed(min_in_sync=1)
    c.put_done()
    c.service.swap_filter = lambda node, d: "held" if d.epoch > c.service.descriptor.epoch else "normal"
    drops(c, BEACON, "n1")
    c.service.end_session(c.nodes["n1"], c.nodes["n1"].session)
    c.service.disconnect(c.nodes["n1"])
    c.run_until(lambda: bool(c.service.held), 10, "another copy tries to take over")
    candidate = c.service.held[0][0]
    end = candidate.core.state.log.end
    c.put(node="n1")
    c.run(0.2)
    assert candidate.core.state.log.end == end, "it takes no entry of the old epoch"
    c.service.swap_filter = lambda node, d: "normal"
    assert c.service.release_held()[0], "the compare-and-set is applied late"
    c.run_until(lambda: c.coordinator() is candidate, 5)
    well(c)


def test_no_takeover_while_a_promise_runs() -> None:
    """Rule R7: the coordinator, cut off, answers reads for as long as its members promised."""
    c = formed()
    c.run(0.5)
    c.cut("n1")
    c.service.end_session(c.nodes["n1"], c.nodes["n1"].session)
    c.service.disconnect(c.nodes["n1"])
    old = c.nodes["n1"]
    while old.core.may_read(old.clock()):
        assert c.service.descriptor.coordinator == "n1"
        c.run(0.01)
    c.run_until(lambda: c.service.descriptor.coordinator != "n1", 5)
    well(c)


def test_a_restart_waits_as_long_as_the_promise_it_may_have_given() -> None:
    """Rule R7: both members restart at once and have forgotten; the coordinator still answers."""
    c = formed()
    c.cut("n1")
    c.service.end_session(c.nodes["n1"], c.nodes["n1"].session)
    c.service.disconnect(c.nodes["n1"])
    for name in ("n2", "n3"):
        c.crash(name)
        c.start(name)
    old = c.nodes["n1"]
    while old.core.may_read(old.clock()):
        assert c.service.descriptor.coordinator == "n1"
        c.run(0.01)
    well(c)


def test_an_unknown_takeover_is_settled_only_by_a_changed_version() -> None:
    """Rule R1: the same version says nothing; the attempt is sent again, and wins once."""
    c = formed()
    fates = iter(["lost", "answer_lost"])
    c.service.swap_filter = lambda node, d: next(fates, "normal")
    epoch = c.service.descriptor.epoch
    c.crash("n1")
    c.run_until(lambda: c.coordinator() is not None, 6, "the second try is found to have won")
    assert c.service.descriptor.epoch == epoch + 1
    well(c)


def test_a_planned_hand_over_fails_no_call_and_leaves_no_gap() -> None:
    """Rule R7b: at every moment somebody takes writes or will within milliseconds; no write is unknown."""
    c = formed()
    c.step(c.leader(), e.HandOver("n2"))
    ops = []
    gap = 0.0
    while c.service.descriptor.coordinator != "n2" or c.coordinator() is None:
        ops.append(c.put(node=c.service.descriptor.coordinator))
        c.run(0.02)
        gap = gap + 0.02 if c.coordinator() is None or not can_write(c) else 0.0
        assert gap < 0.3
    c.run(0.5)
    unknown = [op for op in ops if op.last_error is not None and op.last_error[0] == OutcomeUnknown.code]
    assert unknown == []
    assert sum(isinstance(op.outcome, int) for op in ops) > len(ops) / 2
    well(c)


def can_write(c: Any) -> bool:
    coordinator = c.leader().core.coordinator
    return coordinator is not None and coordinator.membership.write_refusal() is None


def test_draining_waits_for_every_lease_that_was_granted() -> None:
    """Rule R7b: a member cut off from the coordinator keeps its lease; no new epoch before it ran out."""
    c = formed()
    holder = c.nodes["n3"]
    c.run(0.3)
    c.cut("n3")
    c.step(c.leader(), e.HandOver("n2"))
    while holder.core.may_read(holder.clock()):
        assert c.service.descriptor.coordinator == "n1"
        c.run(0.01)
    c.run_until(lambda: c.service.descriptor.coordinator == "n2", 5)
    well(c)


def test_a_coordinator_that_won_does_not_try_again() -> None:
    """It learns of its victory from the descriptor, before the answer: one epoch, not two."""
    c = formed()
    epoch = c.service.descriptor.epoch
    c.service.swap_filter = lambda node, d: "answer_lost"
    c.crash("n1")
    c.run_until(lambda: c.coordinator() is not None, 5)
    c.service.swap_filter = lambda node, d: "normal"
    c.run(2)
    assert c.service.descriptor.epoch == epoch + 1
    well(c)


def test_a_copy_that_is_rebuilt_during_its_takeover_does_not_coordinate() -> None:
    """Rules R2 and R14: the compare-and-set names the copy that was; the new one holds nothing."""
    c = formed()
    c.put_done()
    c.run(0.3)
    c.service.swap_filter = lambda node, d: "held"
    c.crash("n1")
    c.run_until(lambda: bool(c.service.held), 5)
    node = c.service.held[0][0]
    c.step(node, e.Corrupted("a record failed its checksum"))
    c.service.swap_filter = lambda node, d: "normal"
    assert c.service.release_held()[0]
    c.run_until(lambda: c.coordinator() not in (None, node), 10, "the other member takes over")
    well(c)


def test_the_tail_that_the_new_coordinator_does_not_have_is_cut() -> None:
    """Rule R3, without another write: reads of its keys would wait for ever."""
    c = formed()
    drops(c, APPEND, "n1", "n2")
    drops(c, CONFIRM, target="n1")
    c.put(key=b"k3", node="n1")
    c.run_until(lambda: ends(c)["n3"] == 1, 1)
    c.crash("n1")
    flows(c)
    c.run_until(lambda: c.coordinator() is not None and c.leader().name == "n2", 5)
    c.run_until(lambda: c.nodes["n3"].core.may_read(c.nodes["n3"].clock()), 3)
    assert c.read("n3", b"k3").rows == {0: None}
    assert ends(c) == {"n2": 0, "n3": 0}
    well(c)


def test_a_coordinator_fenced_by_a_member_steps_down() -> None:
    c = formed()
    c.cut("n1")
    c.service.end_session(c.nodes["n1"], c.nodes["n1"].session)
    c.service.disconnect(c.nodes["n1"])
    c.run_until(lambda: c.service.descriptor.coordinator != "n1", 6)
    assert c.nodes["n1"].core.coordinator is not None, "nothing told it yet"
    op = c.put(node="n1")
    c.run(0.1)
    c.mend()
    c.run_until(lambda: c.nodes["n1"].core.coordinator is None, 3)
    assert op.last_error[0] == OutcomeUnknown.code
    well(c)


def test_a_node_that_is_to_stop_and_wins_a_takeover_hands_it_on() -> None:
    c = formed(min_in_sync=1)
    c.service.swap_filter = lambda node, d: "held"
    c.crash("n1")
    c.run_until(lambda: bool(c.service.held), 5)
    node = c.service.held[0][0]
    c.step(node, e.Leave())
    c.service.swap_filter = lambda node, d: "normal"
    assert c.service.release_held()[0]
    c.run_until(lambda: c.service.descriptor.coordinator not in ("n1", node.name), 10, "it hands over")
    c.run_until(lambda: not node.core.state.is_in_sync, 10, "it is not needed any more")
    c.crash(node.name)
    well(c)


def test_hand_over_releases_one_incarnation_only() -> None:
    c = formed()
    n2 = c.nodes["n2"]
    c.run(0.3)
    epoch = n2.core.state.promised
    until = n2.core.state.promise_until
    c.step(n2, e.Received("n1", 1, [m.HANDOVER, 7, epoch, n2.incarnation + 1]))
    assert n2.core.state.promise_until == until
    c.step(n2, e.Received("n1", 1, [m.HANDOVER, 7, epoch - 1, n2.incarnation]))
    assert n2.core.state.promise_until == until
    lead(c, "n1")
