"""A candidate hand-fed: when it may try, what it asks for, how that is settled (R1, R2, R7, R13, R14, R18)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ackord_node.core import effects as e
from ackord_node.core import messages as m
from ackord_node.core.copy_meta import CopyMeta
from ackord_node.core.types import Member
from tests.support.core_hand import (
    COPIES,
    INCARNATIONS,
    NODES,
    TABLET,
    TIMING,
    Hand,
    candidate,
    coordinator,
    descriptor,
    entries,
    serving,
)


def members(*nodes: str) -> frozenset[Member]:
    return frozenset(Member(node, COPIES[node]) for node in nodes)


def tries(h: Hand) -> bool:
    return bool(h.did(e.AcquireLock) or h.did(e.Swap))


def free(h: Hand, seconds: float = 1.0) -> None:
    """The lock is free for so long."""
    h.do(e.LockSeen(None, False))
    h.wait(seconds)


def swapping(known: Any = None, **options: Any) -> Hand:
    """n1 has sent its compare-and-set of epoch 4."""
    h = candidate(known, **options)
    h.do(e.LockSeen("n1", True))
    assert h.takeover_stage() == "swapping"
    return h


# ------------------------------------------------------------------------------------ may it try


def test_it_tries_once_the_lock_is_free() -> None:
    h = candidate()
    h.wait(1.0)
    assert not tries(h), "nothing is known of the lock"
    h.do(e.LockSeen("n2", False))
    h.wait(1.0)
    assert not tries(h)
    free(h)
    assert h.did(e.AcquireLock)
    h.do(e.LockDone(e.LockOutcome.HELD))
    assert h.swap().descriptor.epoch == 4
    assert h.swap().version == 4


@pytest.mark.parametrize(
    "why", ["fresh", "stopped", "leaving", "service", "stored", "set", "copy", "dropped"]
)
def test_it_does_not_try(why: str) -> None:
    h = Hand(is_new=why == "stored")
    h.do(e.CoordinationSeen(why != "service"))
    d = descriptor("n2", "n3") if why == "set" else descriptor(*NODES)
    if why == "copy":
        d = replace(d, in_sync=members("n2", "n3") | {Member("n1", 77)})
    if why == "dropped":
        d = replace(d, dropped=True)
    if why == "stored":
        d = replace(d, in_sync=frozenset(), epoch=0)
    h.do(e.DescriptorSeen(None if why == "fresh" else d, 4))
    if why == "fresh":
        h.r.state.descriptor, h.r.state.descriptor_is_fresh = d, False
    h.now += 10
    if why == "stopped":
        h.r.state.stop("damaged")
    if why == "leaving":
        h.do(e.Leave())
    h.forget()
    free(h, 2.0)
    assert not tries(h)
    if why == "stored":
        h.store()
        h.tick()
        assert tries(h), "its copy_id is on disk now, and may be named"


def test_a_tablet_that_never_had_a_coordinator_is_for_its_replicas() -> None:
    newborn = replace(descriptor(), epoch=0)
    h = candidate(newborn, is_new=True)
    h.store()
    free(h)
    h.do(e.LockDone(e.LockOutcome.HELD))
    assert h.swap().descriptor.in_sync == members("n1")
    h = candidate(replace(newborn, replicas=("n2", "n3")), is_new=True)
    h.store()
    free(h)
    assert not tries(h)


def test_a_lock_that_it_may_not_use_is_given_back() -> None:
    h = candidate(descriptor("n2", "n3"))
    h.do(e.LockSeen("n1", True))
    assert h.did(e.ReleaseLock)
    assert not tries(h)
    h.forget()
    h.tick(1.0)
    assert h.did(e.ReleaseLock) == [], "once"


def test_a_lock_is_not_given_back_before_the_descriptor_is_known() -> None:
    h = Hand()
    h.do(e.CoordinationSeen(True))
    h.now += 10
    h.do(e.LockSeen("n1", True))
    assert h.did(e.ReleaseLock) == []
    h.do(e.DescriptorSeen(descriptor("n2", "n3"), 4))
    assert h.did(e.ReleaseLock)


def test_a_lock_is_not_given_back_while_the_service_is_away() -> None:
    h = candidate(descriptor("n2", "n3"))
    h.do(e.CoordinationSeen(False))
    h.do(e.LockSeen("n1", True))
    assert h.did(e.ReleaseLock) == []


def test_those_behind_in_preference_let_others_go_first() -> None:
    """Coordinators stay spread: rank times a short delay, none for who holds the lock or was handed the tablet."""
    d = replace(descriptor(*NODES), replicas=("n2", "n1", "n3"))
    h = candidate(d)
    h.do(e.LockSeen(None, False))
    h.tick(TIMING.lock_rank_delay - 0.01)
    assert not tries(h)
    h.tick(0.02)
    assert tries(h)
    h = candidate(d)
    h.do(e.LockSeen("n2", False))
    h.do(e.LockSeen(None, False))
    assert not tries(h)
    h.do(e.LockSeen("n1", True))
    assert tries(h)
    h = candidate(d)
    h.beaconed(3)
    h.do(e.LockSeen(None, False))
    h.hear("n2", m.HANDOVER, TABLET, 3, INCARNATIONS["n1"])
    assert tries(h)
    h = candidate(replace(d, coordinator="n2"))
    h.do(e.LockSeen(None, False))
    h.tick()
    assert tries(h), "the old coordinator, whose lock is gone, is not waited for"


def test_a_candidate_with_a_bad_disk_lets_others_go_first() -> None:
    h = candidate()
    h.do(e.DiskSlow("the disk is slow"))
    free(h, TIMING.unfit_delay - 0.1)
    assert not tries(h)
    h.wait(0.2)
    assert tries(h)


def test_it_waits_for_its_promise() -> None:
    """Rule R7."""
    h = candidate()
    h.beaconed(3)
    free(h, TIMING.promise - 0.05)
    assert not tries(h)
    h.wait(0.1)
    assert tries(h)


def test_a_lock_that_is_won_while_a_promise_was_given_is_given_back() -> None:
    h = candidate()
    free(h, 0.1)
    assert h.did(e.AcquireLock)
    h.beaconed(3)
    h.do(e.LockDone(e.LockOutcome.HELD))
    assert h.did(e.Swap) == []
    assert h.did(e.ReleaseLock)


def test_a_lock_that_is_won_after_the_set_changed_is_given_back() -> None:
    h = candidate()
    free(h, 0.1)
    h.do(e.DescriptorSeen(descriptor("n2", "n3"), 5))
    h.do(e.LockDone(e.LockOutcome.HELD))
    assert h.did(e.Swap) == []
    assert h.did(e.ReleaseLock)


def test_a_lock_that_another_took_is_asked_for_again_when_it_is_free() -> None:
    h = candidate()
    free(h, 0.1)
    h.do(e.LockDone(e.LockOutcome.TAKEN))
    h.do(e.LockDone(e.LockOutcome.HELD))
    assert h.did(e.Swap) == [], "an answer to nothing"
    h.forget()
    free(h)
    assert h.did(e.AcquireLock)


# ------------------------------------------------------------------------------------- restarts


def test_a_restarted_copy_waits_and_a_new_one_need_not() -> None:
    """Rule R7: what it promised before is forgotten; a new copy promised nothing."""
    for is_new in (False, True):
        h = Hand(is_new=is_new)
        h.now = 0.0
        h.do(e.CoordinationSeen(True))
        h.do(e.DescriptorSeen(replace(descriptor(), epoch=0), 0))
        h.store()
        free(h, TIMING.promise - 0.1)
        assert tries(h) is is_new


def test_a_restarted_copy_knows_the_descriptor_that_it_saw_last() -> None:
    h = candidate()
    h.store()
    again = Hand(meta=h.disk.meta)
    assert again.r.state.descriptor == descriptor(*NODES)
    assert again.r.state.replicas == NODES
    assert Hand().r.state.replicas == ()


def test_a_copy_that_was_being_filled_begins_anew() -> None:
    """Rule R13: what it holds is neither the old state nor the new one."""
    h = Hand(meta=CopyMeta(1, promised=3, filling=True))
    assert h.r.state.copy_id == 50
    assert not h.r.state.filling
    batch = h.r.take_batch()
    assert batch is not None and batch.clear


# ------------------------------------------------------------------------------------- the swap


def test_a_takeover_leaves_the_old_coordinator_out_unless_that_is_below_the_minimum() -> None:
    h = swapping(descriptor(*NODES, coordinator="n2"))
    assert h.swap().descriptor.in_sync == members("n1", "n3")
    h = swapping(descriptor("n1", "n2", coordinator="n2"))
    assert h.swap().descriptor.in_sync == members("n1", "n2")
    h = swapping(descriptor("n1", "n2", min_in_sync=1, coordinator="n2"))
    assert h.swap().descriptor.in_sync == members("n1")
    h = swapping(descriptor(*NODES, coordinator="n1"))
    assert h.swap().descriptor.in_sync == members(*NODES), "itself, in an earlier run"


def test_a_takeover_before_the_set_was_ever_complete_begins_anew() -> None:
    """Nothing can have been committed, and the first copy may be lost: it need not be waited for."""
    h = swapping(descriptor("n2", coordinator="n2"))
    assert h.swap().descriptor.in_sync == members("n1")


def test_its_epoch_is_above_all_that_it_promised() -> None:
    """Also over a coordination service that was rebuilt from an older state."""
    h = swapping(descriptor(*NODES, epoch=3), meta=CopyMeta(1, promised=8))
    assert h.swap().descriptor.epoch == 9


def test_an_answer_to_an_earlier_request_decides_nothing() -> None:
    h = swapping()
    ticket = h.swap().ticket
    h.do(e.SwapDone(ticket, e.SwapOutcome.UNKNOWN))
    assert h.did(e.ReadDescriptor)
    h.now += 1
    h.do(e.DescriptorSeen(descriptor(*NODES), 4))
    assert h.swap().ticket != ticket
    h.do(e.SwapDone(ticket, e.SwapOutcome.WON))
    assert h.r.coordinator is None
    h.won()
    assert h.r.coordinator is not None


def test_what_is_unknown_is_asked_for_until_the_version_tells() -> None:
    """Rule R1."""
    h = swapping()
    h.do(e.SwapDone(h.swap().ticket, e.SwapOutcome.UNKNOWN))
    h.forget()
    h.wait(1.0)
    assert len(h.did(e.ReadDescriptor)) >= 3
    assert h.did(e.Swap) == []
    h.do(e.DescriptorSeen(descriptor(*NODES), 4))
    assert len(h.did(e.Swap)) == 1
    h.do(e.DescriptorSeen(descriptor(*NODES), 4))
    assert len(h.did(e.Swap)) == 1, "not again before an answer"
    h.do(e.SwapDone(h.swap().ticket, e.SwapOutcome.UNKNOWN))
    h.do(e.DescriptorSeen(descriptor(*NODES), 4))
    assert len(h.did(e.Swap)) == 1, "nor at once"


@pytest.mark.parametrize("field", ["coordinator", "incarnation", "epoch"])
def test_another_ones_victory_is_not_its_own(field: str) -> None:
    """Rule R2: also an earlier run of this node may have won; that voids the attempt."""
    h = swapping()
    won = h.swap().descriptor
    h.do(e.LockSeen("n2", False))
    changed: dict[str, Any] = {field: {"coordinator": "n2", "incarnation": 10, "epoch": 5}[field]}
    h.do(e.DescriptorSeen(replace(won, **changed), 5))
    assert h.r.coordinator is None
    assert h.r.state.barred_below == 0, "the bar is lifted"
    assert h.takeover_stage() == "idle"
    h = swapping()
    h.do(e.DescriptorSeen(h.swap().descriptor, 5))
    assert h.r.coordinator is not None


def test_a_change_of_the_set_meanwhile_ends_the_attempt() -> None:
    h = swapping()
    h.do(e.LockSeen("n2", False))
    h.do(e.DescriptorSeen(descriptor("n1", "n2"), 5))
    assert h.takeover_stage() == "idle"
    assert h.r.state.barred_below == 0


def test_a_service_that_was_rebuilt_meanwhile_ends_the_attempt() -> None:
    """Its versions begin again, its epochs do not."""
    h = swapping()
    h.do(e.LockSeen("n2", False))
    h.do(e.DescriptorSeen(descriptor(*NODES, epoch=9), 1))
    assert h.takeover_stage() == "idle"


def test_what_was_asked_for_is_not_sent_again_before_it_was_answered() -> None:
    h = swapping()
    h.now += 1
    h.do(e.DescriptorSeen(descriptor(*NODES), 4))
    assert len(h.did(e.Swap)) == 1


def test_a_tablet_without_a_descriptor_is_nobodys() -> None:
    h = Hand()
    h.do(e.CoordinationSeen(True))
    h.do(e.DescriptorSeen(None, 0))
    h.now += 10
    free(h)
    assert not tries(h)


def test_a_later_coordinator_that_it_obeyed_voids_the_attempt() -> None:
    h = swapping()
    h.beaconed(9)
    h.won()
    assert h.r.coordinator is None
    assert h.r.state.promised == 9


def test_a_step_of_the_lock_or_the_descriptor_is_taken_at_once() -> None:
    h = Hand()
    h.do(e.CoordinationSeen(True))
    h.do(e.LockSeen(None, False))
    h.now += 10
    assert not tries(h)
    h.do(e.DescriptorSeen(descriptor(*NODES), 4))
    assert tries(h)


# -------------------------------------------------------------------------------------- suspect


def asking(**options: Any) -> Hand:
    """n1 is suspect, holds the lock and asks n2 and n3."""
    h = candidate(meta=CopyMeta(1, promised=3, suspect=True), tail=entries(2), **options)
    h.do(e.LockSeen("n1", True))
    assert h.takeover_stage() == "inquiring"
    return h


def answer(h: Hand, node: str, epoch: int, end: int, copy: int | None = None, inquiry: int = 11) -> None:
    of = COPIES[node] if copy is None else copy
    h.hear(node, m.INQUIRE_ANSWER, TABLET, 3, of, inquiry, epoch, end, 0, 0)


def test_a_suspect_copy_takes_over_only_after_all_have_answered() -> None:
    """Rule R13."""
    h = asking()
    answer(h, "n2", 3, 2)
    assert h.did(e.Swap) == []
    answer(h, "n3", 2, 7)
    assert h.did(e.Swap), "an earlier epoch is no later log, however long"


@pytest.mark.parametrize("position", [(3, 3), (4, 1)])
def test_a_suspect_copy_gives_way_to_a_later_log(position: tuple[int, int]) -> None:
    h = asking()
    answer(h, "n2", *position)
    answer(h, "n3", 3, 2)
    assert h.did(e.Swap) == []
    assert h.did(e.ReleaseLock)


def test_a_suspect_copy_that_gave_way_waits_though_others_take_the_lock_and_free_it() -> None:
    """Two of them would keep the lock from the third, which is not suspect and waits for its rank's turn."""
    h = asking()
    answer(h, "n2", 3, 3)
    answer(h, "n3", 3, 2)
    h.forget()
    patience = 4 * TIMING.retry_interval
    for _ in range(4):
        h.do(e.LockSeen("n2", False))
        h.wait(patience / 5)
        h.do(e.LockSeen(None, False))
        assert h.did(e.AcquireLock) == []
    h.wait(patience / 5 + 0.01)
    assert h.did(e.AcquireLock)


def test_only_answers_of_in_sync_copies_to_this_run_count() -> None:
    h = asking()
    answer(h, "n2", 3, 2, copy=22)
    answer(h, "n2", 3, 2, inquiry=10)
    answer(h, "n3", 3, 2)
    assert h.did(e.Swap) == []
    h = asking()
    h.hear("n9", m.INQUIRE_ANSWER, TABLET, 3, 9, 11, 9, 9, 0, 0)
    assert h.takeover_stage() == "inquiring"


def test_an_answer_that_comes_after_the_inquiry_is_nothing() -> None:
    h = asking()
    h.wait(4 * TIMING.retry_interval + 0.3)
    assert h.takeover_stage() == "idle"
    h.forget()
    answer(h, "n2", 3, 2)
    answer(h, "n3", 3, 2)
    assert h.did(e.Swap) == []


def test_a_suspect_copy_asks_again_as_questions_may_be_lost() -> None:
    h = asking()
    assert len(h.sent(m.INQUIRE)) == 2
    h.tick(TIMING.retry_interval)
    assert len(h.sent(m.INQUIRE)) == 4


def test_a_suspect_copy_that_promised_meanwhile_gives_the_lock_back() -> None:
    h = asking()
    h.beaconed(3)
    answer(h, "n2", 3, 2)
    answer(h, "n3", 3, 2)
    assert h.did(e.Swap) == []


def test_a_suspect_copy_keeps_a_promise_that_is_above_the_descriptors() -> None:
    h = Hand(meta=CopyMeta(1, promised=8, suspect=True))
    h.do(e.DescriptorSeen(descriptor(*NODES), 4))
    assert h.r.state.promised == 8
    h = Hand(meta=CopyMeta(1, promised=2))
    h.do(e.DescriptorSeen(descriptor(*NODES), 4))
    assert h.r.state.promised == 2, "one that is well obeys whom it hears"


# ------------------------------------------------------------------------------- the descriptor


def test_descriptors_only_go_forward() -> None:
    h = candidate(version=6)
    h.do(e.DescriptorSeen(descriptor("n2", "n3"), 5))
    h.do(e.DescriptorSeen(None, 0))
    assert h.r.state.descriptor == descriptor(*NODES)
    h.do(e.DescriptorSeen(descriptor("n1", "n2", epoch=4), 2))
    assert h.r.state.descriptor_version == 2, "a rebuilt service begins again, in a new epoch"


# ----------------------------------------------------------------------------- dropped, damaged


def drop(h: Hand, epoch: int = 5, version: int = 9) -> None:
    h.do(e.DescriptorSeen(replace(descriptor(*NODES), epoch=epoch, dropped=True), version))


def test_the_mark_of_a_drop_is_promised_durably() -> None:
    """Rule R18: after a restart too, nothing of an older epoch is obeyed."""
    h = candidate()
    drop(h)
    h.store()
    assert h.disk.meta.promised == 5
    h.forget()
    h.beaconed(4)
    h.tick()
    assert h.effects == []


def test_a_drop_never_lowers_a_promise() -> None:
    h = candidate(meta=CopyMeta(1, promised=8))
    drop(h)
    assert h.r.state.promised == 8


def test_a_damaged_copy_of_a_dropped_tablet_is_dropped_too() -> None:
    h = serving("n1", min_in_sync=1)
    h.do(e.Corrupted("a row failed its checksum"))
    assert (h.r.state.stopped_reason or "").startswith("damaged")
    drop(h)
    assert h.r.state.stopped_reason == "dropped"


def test_damage_of_the_only_copy_stops_the_tablet_and_deletes_nothing() -> None:
    """Rule R14."""
    h = serving("n1", min_in_sync=1, tail=entries(3))
    h.do(e.Corrupted("a row failed its checksum"))
    assert h.r.coordinator is None
    assert h.r.state.copy_id == 1
    assert h.r.state.log.end == 3
    assert not h.r.may_read(h.now)
    assert h.did(e.ReleaseLock)
    h.wait(3.0)
    assert not tries(h)
    h = candidate(descriptor("n1"))
    h.do(e.Corrupted("a row failed its checksum"))
    assert h.r.state.copy_id == 1


def test_a_stopped_copy_answers_no_reads_even_under_a_lease() -> None:
    h = Hand("n2")
    h.do(e.DescriptorSeen(descriptor("n2", coordinator="n1", incarnation=11), 4))
    h.store()
    h.hear("n1", m.BEACON, TABLET, 3, h.now, 0, 0, h.now, 1.0, 22, 0)
    assert h.r.may_read(h.now)
    h.do(e.Corrupted("a row failed its checksum"))
    assert not h.r.may_read(h.now)


@pytest.mark.parametrize("role", ["coordinator", "candidate", "member"])
def test_a_damaged_copy_is_rebuilt_under_a_new_name(role: str) -> None:
    h = coordinator() if role == "coordinator" else candidate()
    if role == "coordinator":
        h.r.state.lock_is_mine = False  # it is, but this node was not told
    elif role == "candidate":
        h.r.state.lock_is_mine = True
    h.forget()
    h.do(e.Corrupted("a row failed its checksum"))
    assert h.r.coordinator is None
    assert h.r.state.copy_id == 50
    assert bool(h.did(e.ReleaseLock)) is (role != "member")
    assert not tries(h)


def test_a_coordinator_that_stepped_down_waits_like_its_members() -> None:
    """Rules R7 and R9: leases that it granted run on, of which it would know nothing in a new epoch."""
    h = serving()
    h.hear("n2", m.FENCED, TABLET, 4, 9)
    assert h.r.coordinator is None
    assert h.r.state.promise_until == h.now + TIMING.promise


def test_a_refusal_of_another_epoch_deposes_nobody() -> None:
    h = serving()
    h.hear("n2", m.FENCED, TABLET, 3, 9)
    h.hear("n2", m.FENCED, TABLET, 4, 4)
    assert h.r.coordinator is not None


def test_a_set_that_changed_while_a_suspect_copy_asked_ends_its_attempt() -> None:
    h = asking()
    h.r.state.descriptor = descriptor("n2", "n3")
    answer(h, "n2", 3, 2)
    answer(h, "n3", 3, 2)
    assert h.did(e.Swap) == []
    assert h.did(e.ReleaseLock)
