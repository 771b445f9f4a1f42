"""Changes of the in-sync set and the planned end, hand-fed, condition by condition (R1, R4, R7b, R9 to R11, R13)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ackord_node.core import effects as e
from ackord_node.core import messages as m
from ackord_node.core.membership import Drain
from ackord_node.core.types import Member
from tests.support.core_hand import (
    ALL_WELL,
    COPIES,
    NODES,
    TABLET,
    TIMING,
    Hand,
    coordinator,
    entries,
    serving,
)


def members(*nodes: str) -> frozenset[Member]:
    return frozenset(Member(node, COPIES[node]) for node in nodes)


def proposed(h: Hand) -> Any:
    return h.c.membership.proposed


def in_sync(h: Hand) -> Any:
    return h.c.membership.in_sync


def see(h: Hand, version: int, **fields: Any) -> None:
    """The descriptor as the coordinator's own, except for these fields."""
    h.do(e.DescriptorSeen(replace(h.c.membership.descriptor, **fields), version))


def silent(h: Hand, *talking: str) -> None:
    """The confirm timeout passes, in which only these members say anything."""
    for _ in range(6):
        h.tick(0.2)
        h.promise(*talking)
    h.tick()


# --------------------------------------------------------------------------------------- grants


def test_a_member_whose_removal_is_under_way_is_granted_nothing_even_if_it_returns() -> None:
    """Rule R9: the removal was sent because its leases were over."""
    h = serving(min_in_sync=1)
    silent(h, "n2")
    assert proposed(h) == members("n1", "n2")
    h.promise("n3", request=3.0)
    h.tick()
    h.promise("n3", request=3.0)
    assert not h.c.progress["n3"].revoking
    assert h.c.progress["n3"].granted_until < h.now


def test_who_stays_is_granted_leases_while_a_change_is_under_way() -> None:
    """Its outcome may be unknown for long."""
    h = serving("n1", "n2", min_in_sync=1)
    h.confirm("n3", 0)
    h.promise("n2", "n3")
    h.tick()
    assert proposed(h) == members(*NODES)
    h.promise("n2", request=3.0)
    assert h.c.progress["n2"].granted_until > h.now


def test_nothing_is_granted_while_it_drains() -> None:
    """Rule R7b: else the leases would never run out."""
    h = serving()
    h.promise("n2", request=3.0)
    h.do(e.HandOver("n2"))
    h.promise("n2", "n3", request=3.0)
    assert h.c.progress["n3"].granted_until < h.now
    until = h.c.progress["n2"].granted_until
    h.forget()
    h.tick(TIMING.beacon_interval)
    assert [x[7] for x in h.sent(m.BEACON)] == [0.0, 0.0]
    assert h.c.progress["n2"].granted_until == until


# -------------------------------------------------------------------------------------- refusals


def test_writes_are_refused_from_the_last_step_of_a_hand_over_on() -> None:
    h = serving()
    first = h.write()
    h.do(e.HandOver("n2"))
    h.tick()
    assert h.c.membership.drain.value == "tail"
    refused = h.write(seq=2).answers[0]
    assert (refused[2]["reason"], refused[2]["coordinator"]) == ("not_coordinator", "n2")
    assert first.answers == {}


def test_a_refusal_names_no_successor_that_is_not_chosen_yet() -> None:
    h = serving()
    h.write()
    h.do(e.Leave())
    h.c.membership.drain = type(h.c.membership.drain)("tail")
    h.r.state.handed_to = None
    assert "coordinator" not in h.write(seq=2).answers[0][2]


def test_an_unfit_coordinator_refuses_writes_only_if_it_cannot_be_spared() -> None:
    h = serving("n1", "n2")
    h.do(e.DiskSlow("the disk is full"))
    assert h.write().answers[0][2]["reason"] == "full"
    h = serving()
    h.do(e.DiskSlow("the disk is full"))
    assert h.write().answers == {}


def test_writes_are_refused_below_the_minimum_and_while_a_lost_member_cannot_go() -> None:
    """Rule R11."""
    h = serving("n1")
    assert "are in sync" in h.write().answers[0][1]
    h = serving("n1", "n2")
    assert h.write().answers == {}
    silent(h)
    assert "does not confirm" in h.write(seq=2).answers[0][1]
    h = serving()
    silent(h)
    assert h.write().answers == {}, "one of the two can go"


# ------------------------------------------------------------------------------- expelled, leaving


def test_a_replica_that_is_not_required_is_fed_again_and_not_expelled() -> None:
    h = serving("n1", "n2", min_in_sync=1, tail=entries(3))
    p = h.c.progress["n3"]
    p.rejoin_at = h.now + 1
    h.confirm("n3", 3)
    h.now += 0.1
    h.promise("n3", end=1)
    assert (p.expelled, p.confirmed, p.probing) == (False, 0, True)
    h.confirm("n3", 3)
    h.now += 1
    h.promise("n2", "n3")
    h.tick()
    assert proposed(h) == members("n1", "n2", "n3")


def test_a_required_member_is_expelled_once() -> None:
    h = serving(tail=entries(3), min_in_sync=1)
    h.promise("n3", request=1.0)
    for _ in range(2):
        h.now += 0.01
        h.c.progress["n3"].confirmed = 3
        h.promise("n3", end=1)
    assert h.notes("expels n3") == 1
    h.confirm("n3", 3)
    h.tick()
    assert h.c.progress["n3"].expelled, "above the minimum it goes"
    for _ in range(12):
        h.promise("n2")
        h.tick(0.1)
    assert proposed(h) == members("n1", "n2")


def test_an_expelled_member_is_granted_nothing_from_that_moment_on() -> None:
    """Rule R13, before the next tick revokes: in a tablet's first epoch it need not show any entry for a lease."""
    h = serving()
    h.write()
    h.store()
    h.confirm("n2", 1)
    h.confirm("n3", 1)
    h.now += 0.01
    h.promise("n3", end=0)
    assert h.c.progress["n3"].expelled
    h.forget()
    h.promise("n3", request=1.0, end=0)
    h.promise("n2", request=2.0, end=1)
    assert h.c.progress["n3"].grant is None
    granted = {to: [message for message in h.sent(m.BEACON, to) if message[6] >= 0] for to in ("n2", "n3")}
    assert granted["n2"] and not granted["n3"]


def test_an_expelled_member_at_the_minimum_stays_so_until_it_was_fed() -> None:
    h = serving("n1", "n2", tail=entries(3))
    h.now += 0.01
    h.promise("n2", end=1)
    p = h.c.progress["n2"]
    h.confirm("n2", 2)
    h.tick()
    assert p.expelled
    assert len(h.did(e.Swap)) == 0, "it is not swapped for itself"
    p.confirm(3, h.now, 3)
    h.promise("n2")
    h.c.membership.advance(h.now)
    assert len(h.did(e.Swap)) == 0, "it is not swapped for itself"
    h.tick()
    assert not p.expelled


def test_a_farewell_ends_the_lease_and_the_membership_at_once() -> None:
    """Rule R7b."""
    h = serving()
    h.promise("n3", request=3.0)
    h.hear("n3", m.LEAVE, TABLET, 4, 3)
    assert proposed(h) == members("n1", "n2")
    h.won()
    h.promise("n2", "n3")
    h.tick()
    assert proposed(h) is None, "it is not taken back while it stops"
    assert h.c.progress["n3"].pause == 0.0, "nor punished for it"
    h.confirm("n3", 0, incarnation=34)
    h.promise("n2")
    h.promise("n3", incarnation=34)
    h.tick()
    assert proposed(h) == members(*NODES), "its next run is"


def test_why_a_member_is_to_go_is_noted_once() -> None:
    h = serving(min_in_sync=1)
    h.promise("n3", request=3.0)
    for _ in range(9):
        h.tick(0.2)
        h.promise("n2")
    assert h.notes("n3 is to leave") == 1
    assert h.notes("n2 is to leave") == 0


def test_a_member_that_answers_again_in_time_stays() -> None:
    h = serving()
    h.promise("n3", request=3.0)
    h.wait(TIMING.confirm_timeout - 0.2)
    h.promise("n2", "n3")
    h.wait(0.4)
    assert not h.c.progress["n3"].revoking


@pytest.mark.parametrize("how", ["refused", "unfit", "behind", "copy"])
def test_a_member_that_is_lost_is_to_go(how: str) -> None:
    h = serving(min_in_sync=1)
    if how == "refused":
        h.do(e.PeerDown("n3", refused=True))
    elif how == "unfit":
        h.promise("n3", flags=ALL_WELL & ~m.FLAG_FIT)
    elif how == "copy":
        h.confirm("n3", 0, copy=33, incarnation=34)
    else:
        h.write()
        h.store()
        for _ in range(6):
            h.tick(0.2)
            h.promise("n2", "n3")
            h.confirm("n2", 1)
    h.tick()
    assert proposed(h) == members("n1", "n2")


# --------------------------------------------------------------------------------------- changes


def test_one_change_is_under_way_at_a_time() -> None:
    """Rule R1: the first may still be applied."""
    h = serving("n1", "n2", min_in_sync=1)
    h.confirm("n3", 0)
    h.promise("n2", "n3")
    h.tick()
    assert proposed(h) == members(*NODES)
    sent = len(h.did(e.Swap))
    silent(h, "n3")
    assert proposed(h) == members(*NODES)
    assert len(h.did(e.Swap)) == sent
    h.won()
    h.tick()
    assert proposed(h) == members("n1", "n3")


def test_no_change_begins_in_the_last_step_of_a_hand_over() -> None:
    h = serving("n1", "n2", min_in_sync=1)
    h.write()
    h.do(e.HandOver("n2"))
    h.tick()
    assert h.c.membership.drain.value == "tail"
    h.confirm("n3", 1)
    h.promise("n2", "n3")
    h.tick()
    assert proposed(h) is None


def test_a_member_goes_only_after_its_lease() -> None:
    """Rule R9: scaled for drift, as the holder's clock may be slower than this one."""
    h = serving(min_in_sync=1, timing=replace(TIMING, drift_max=0.2))
    h.promise("n3", request=3.0)
    granted = h.now
    h.do(e.PeerDown("n3", refused=True))
    while proposed(h) is None:
        h.tick(0.05)
        h.promise("n2")
    assert h.now - granted >= 1.0 * 1.2 / 0.8


def test_without_a_learner_nobody_goes_at_the_minimum() -> None:
    h = serving("n1", "n2")
    silent(h)
    assert proposed(h) is None


def learning(h: Hand, seconds: float) -> None:
    h.tick(seconds)
    h.confirm("n3", 0)
    h.promise("n3")


def test_a_lost_member_is_not_swapped_for_a_learner_while_its_lease_runs() -> None:
    """Rules R9 and R10; beside it, the learner may come in at once."""
    h = serving("n1", "n2")
    h.promise("n2", request=3.0)
    h.do(e.PeerDown("n2", refused=True))
    learning(h, 0.1)
    h.tick()
    assert proposed(h) == members(*NODES)
    h = serving("n1", "n2")
    h.promise("n2", request=3.0)
    h.do(e.PeerDown("n2", refused=True))
    learning(h, 0.1)
    h.c.membership.proposed = None
    h.tick(1.1)
    learning(h, 0.0)
    h.tick()
    assert proposed(h) == members("n1", "n3")


def test_nobody_joins_without_a_promise_that_covers_the_outstanding_leases() -> None:
    """Rule R10: the newcomer could take over while the others still answer reads."""
    h = serving("n1", "n2", min_in_sync=1)
    h.promise("n3")
    h.now += 0.2
    h.promise("n2", request=3.0)
    h.confirm("n3", 0)
    assert proposed(h) is None, "n3's promise ends before n2's lease"
    h.now += 0.3
    h.promise("n3")
    h.tick()
    assert proposed(h) == members(*NODES)


def test_nobody_joins_without_a_promise_that_covers_the_leases_of_the_coordinators_own_clients() -> None:
    """Rules R10 and R19: the newcomer could take over while they still answer."""
    h = serving("n1", "n2", min_in_sync=1)
    h.promise("n2", "n3")
    h.now += 0.2
    h.promise("n2")
    holders = h.r.state.holders
    holders.longest = TIMING.lease
    granted = holders.grant("somebody", h.c.authority(), h.now)
    assert granted is not None and granted[1] > TIMING.lease - 0.05
    h.confirm("n3", 0)
    assert proposed(h) is None, "n3's promise ends before the client's lease"
    h.now += 0.3
    h.promise("n3")
    h.tick()
    assert proposed(h) == members(*NODES)


def test_a_hand_over_waits_for_the_coordinators_own_clients() -> None:
    """Rules R7b and R19: the successor would take over while they still answer."""
    h = serving(*NODES)
    h.promise("n2", "n3")
    granted = h.r.state.holders.grant("somebody", h.c.authority(), h.now)
    assert granted is not None
    h.do(e.HandOver("n2"))
    h.tick()
    assert not h.sent(m.HANDOVER) and h.c.membership.drain is Drain.LEASES
    h.tick(granted[1] * TIMING.scale - 0.001)
    assert not h.sent(m.HANDOVER)
    h.tick(0.002)
    assert h.sent(m.HANDOVER, "n2")


def test_nobody_is_swapped_in_who_lacks_the_tail() -> None:
    h = coordinator("n1", "n2", tail=entries(3))
    h.do(e.PeerDown("n2", refused=True))
    h.confirm("n3", 2)
    h.promise("n3")
    h.tick()
    assert proposed(h) is None
    h.confirm("n3", 3)
    assert proposed(h) == members("n1", "n3")


def test_nobody_is_swapped_in_without_a_promise() -> None:
    h = serving("n1", "n2")
    h.do(e.PeerDown("n2", refused=True))
    h.confirm("n3", 0)
    h.promise("n3", sent_at=h.now - 2)
    h.tick()
    assert proposed(h) is None
    h.promise("n3")
    h.tick()
    assert proposed(h) == members("n1", "n3")


@pytest.mark.parametrize(
    "flags", [ALL_WELL & ~m.FLAG_FIT, ALL_WELL & ~m.FLAG_STAYS], ids=["unfit", "stopping"]
)
def test_a_learner_that_is_unfit_or_stops_is_not_admitted(flags: int) -> None:
    h = serving("n1", "n2", min_in_sync=1)
    h.confirm("n3", 0)
    h.promise("n2")
    h.promise("n3", flags=flags)
    h.tick()
    assert proposed(h) is None
    h.promise("n3")
    h.tick()
    assert proposed(h) is not None


def test_a_learner_that_is_not_compared_yet_is_not_admitted() -> None:
    """Rules R10 and R13: it restarted since it confirmed, maybe with an older disk."""
    h = serving("n1", "n2", min_in_sync=1, tail=entries(2))
    h.c.progress["n3"].rejoin_at = h.now + 0.1
    h.confirm("n3", 2)
    h.now += 0.2
    h.do(e.PeerUp("n3"))
    h.promise("n2")
    h.promise("n3", incarnation=34)
    h.tick()
    assert proposed(h) is None
    h.confirm("n3", 2, incarnation=34)
    assert proposed(h) == members(*NODES)


def test_a_learner_that_lacks_the_tail_of_the_takeover_is_not_admitted() -> None:
    """Rule R10: before the tail is committed the commit point says nothing of it."""
    h = coordinator("n1", "n2", min_in_sync=1, tail=entries(3))
    h.confirm("n3", 2)
    h.promise("n2", "n3")
    h.tick()
    assert proposed(h) is None
    h.confirm("n3", 3)
    assert proposed(h) == members(*NODES)


# -------------------------------------------------------------------------------------- outcomes


def removing() -> Hand:
    h = serving(min_in_sync=1)
    h.do(e.PeerDown("n3", refused=True))
    h.promise("n2")
    h.tick()
    assert proposed(h) == members("n1", "n2")
    return h


def test_a_change_that_won_counts_from_the_answer_on() -> None:
    h = removing()
    write = h.write()
    h.store()
    h.confirm("n2", 1)
    assert write.answers == {}
    h.won()
    assert in_sync(h) == members("n1", "n2")
    assert proposed(h) is None
    assert isinstance(write.answers[0], int)
    assert h.r.state.descriptor is not None
    assert h.r.state.descriptor.in_sync == members("n1", "n2")
    assert h.r.state.descriptor_version == 6


def test_the_answer_to_an_earlier_request_settles_nothing() -> None:
    h = removing()
    first = h.swap().ticket
    h.do(e.SwapDone(first, e.SwapOutcome.UNKNOWN))
    see(h, 5)
    second = h.swap().ticket
    assert second != first
    h.do(e.SwapDone(first, e.SwapOutcome.WON))
    assert proposed(h) is not None
    h.do(e.SwapDone(second, e.SwapOutcome.WON))
    assert proposed(h) is None
    h.do(e.SwapDone(second, e.SwapOutcome.WON))
    assert in_sync(h) == members("n1", "n2")


@pytest.mark.parametrize("outcome", list(e.SwapOutcome)[1:], ids=lambda outcome: outcome.name.lower())
def test_any_other_outcome_is_settled_by_the_descriptor(outcome: e.SwapOutcome) -> None:
    """Rule R1: also "lost" may be the answer to a second try of a change that won."""
    h = removing()
    h.forget()
    h.do(e.SwapDone(h.c.membership._ticket * -1, outcome))
    assert len(h.did(e.ReadDescriptor)) == 1
    assert proposed(h) is not None
    h.tick(TIMING.retry_interval - 0.01)
    assert len(h.did(e.ReadDescriptor)) == 1
    h.tick(0.02)
    assert len(h.did(e.ReadDescriptor)) == 2, "the answer may be lost"
    assert h.did(e.Swap) == []
    see(h, 5)
    assert len(h.did(e.Swap)) == 1, "the version is the same: the same change once more"
    see(h, 5)
    assert len(h.did(e.Swap)) == 1, "and not again before it was answered"
    see(h, 6, in_sync=members("n1", "n2"))
    assert in_sync(h) == members("n1", "n2")
    see(h, 6, in_sync=members("n1", "n2"))
    assert proposed(h) is None


def test_the_descriptor_alone_settles_a_change_that_won() -> None:
    h = removing()
    see(h, 6, in_sync=members("n1", "n2"))
    assert (in_sync(h), proposed(h), h.c.membership.version) == (members("n1", "n2"), None, 6)


def test_a_descriptor_that_was_not_proposed_deposes() -> None:
    h = removing()
    see(h, 6, in_sync=members("n1", "n3"))
    assert h.r.coordinator is None
    h = serving()
    see(h, 6, in_sync=members("n1", "n3"))
    assert h.r.coordinator is None


def test_a_later_epoch_deposes_whatever_its_version() -> None:
    """A coordination service that was rebuilt counts versions from the beginning."""
    h = serving()
    see(h, 0, epoch=5, coordinator="n2")
    assert h.r.coordinator is None


def test_anothers_takeover_with_the_proposed_set_is_no_victory() -> None:
    """The new coordinator may have left out whom this one wanted to remove."""
    h = removing()
    see(h, 6, epoch=5, coordinator="n2", in_sync=members("n1", "n2"))
    assert h.r.coordinator is None


def test_what_is_known_already_deposes_nobody() -> None:
    h = serving()
    see(h, 5)
    see(h, 4, epoch=3, coordinator="n2")
    assert h.r.coordinator is not None


# ---------------------------------------------------------------------------------------- pauses


def back(h: Hand) -> None:
    """n3 has a new run that holds everything."""
    h.do(e.PeerUp("n3"))
    run = h.c.progress["n3"].incarnation + 1
    h.confirm("n3", h.r.state.log.end, incarnation=run)
    h.promise("n3", incarnation=run)
    h.promise("n2")
    h.tick()


def test_a_member_that_comes_and_goes_waits_longer_each_time() -> None:
    h = removing()
    h.won()
    p = h.c.progress["n3"]
    assert p.pause == TIMING.rejoin_pause
    assert not p.probing, "it goes on being fed from where it is"
    back(h)
    assert proposed(h) is None
    h.now += TIMING.rejoin_pause
    back(h)
    assert proposed(h) == members(*NODES)
    h.won()
    assert p.in_sync_since == h.now
    h.do(e.PeerDown("n3", refused=True))
    h.promise("n2")
    h.tick()
    h.won()
    assert p.pause == 2 * TIMING.rejoin_pause
    h.now += p.pause
    back(h)
    h.won()
    for _ in range(20):
        h.now += TIMING.rejoin_forget / 20
        h.tick()
        h.promise("n2")
        h.promise("n3", incarnation=p.incarnation)
        if h.now - p.in_sync_since < TIMING.rejoin_forget:
            assert p.pause > 0
    h.tick(0.1)
    assert p.pause == 0.0, "the rest is forgotten after a good while"


def test_a_member_that_is_lost_again_is_not_forgiven_meanwhile() -> None:
    h = serving(min_in_sync=1)
    p = h.c.progress["n3"]
    p.pause, p.in_sync_since = 4.0, h.now - 2 * TIMING.rejoin_forget
    h.promise("n3", request=3.0)
    h.do(e.PeerDown("n3", refused=True))
    h.tick()
    assert p.pause == 4.0


def test_another_copy_and_an_expelled_one_return_without_pause() -> None:
    """They are no flapping members: one is new, the other is to be fed as soon as may be."""
    h = serving(min_in_sync=1)
    h.confirm("n3", 0, copy=33, incarnation=34)
    h.promise("n2")
    h.tick()
    h.won()
    assert h.c.progress["n3"].pause == 0.0
    h = serving(min_in_sync=1, tail=entries(3))
    p = h.c.progress["n3"]
    h.now += 0.01
    h.promise("n3", end=1)
    h.promise("n2")
    h.tick()
    h.won()
    assert (p.pause, p.expelled, p.probing, p.next) == (0.0, False, True, 4)


# ---------------------------------------------------------------------------------------- drain


def test_a_second_request_to_hand_over_changes_nothing() -> None:
    h = serving()
    h.write()
    h.do(e.HandOver("n2"))
    h.tick()
    h.do(e.HandOver("n3"))
    assert h.c.membership.drain.value == "tail"
    assert h.notes("hands over") == 1


def test_a_hand_over_waits_for_its_last_entries_but_not_for_ever() -> None:
    h = serving()
    h.write()
    h.store()
    h.do(e.HandOver("n2"))
    h.tick()
    h.forget()
    h.tick(TIMING.drain_commit_timeout - 0.01)
    assert h.sent(m.HANDOVER) == []
    h.tick(0.02)
    assert h.sent(m.HANDOVER) == [[m.HANDOVER, TABLET, 4, 22]]
    assert h.r.coordinator is None
    assert h.did(e.ReleaseLock)


def test_a_hand_over_ends_at_once_when_nothing_is_pending() -> None:
    h = serving()
    h.do(e.HandOver("n3"))
    h.tick()
    assert h.sent(m.HANDOVER, "n3") == [[m.HANDOVER, TABLET, 4, 33]]


def test_a_hand_over_waits_for_the_leases_by_the_slowest_clock() -> None:
    h = serving(timing=replace(TIMING, drift_max=0.2))
    h.promise("n2", request=3.0)
    granted = h.now
    h.do(e.HandOver("n2"))
    while h.r.coordinator is not None:
        h.promise("n3", "n2")
        h.tick(0.02)
        assert h.now < granted + 9
    assert h.now - granted >= 1.2 / 0.8


def test_a_coordinator_stays_if_nobody_could_go_on() -> None:
    h = serving()
    h.promise("n2", "n3", flags=ALL_WELL & ~m.FLAG_COORDINATION)
    h.do(e.HandOver("n2"))
    h.tick()
    assert h.c.membership.drain.value == "no"
    h = serving("n1", "n2", "n3")
    h.do(e.DiskSlow("the disk is slow"))
    h.do(e.HandOver("n2"))
    h.promise("n3", flags=ALL_WELL & ~m.FLAG_COORDINATION)
    h.tick()
    assert h.c.membership.drain.value == "no", "its successor would need it to reach the minimum"
    h = serving()
    h.do(e.DiskSlow("the disk is slow"))
    h.do(e.HandOver("n2"))
    h.tick()
    assert h.sent(m.HANDOVER, "n2")


def test_a_coordinator_that_stops_goes_even_if_nobody_could_go_on() -> None:
    h = serving()
    h.promise("n2", "n3", flags=ALL_WELL & ~m.FLAG_COORDINATION)
    h.do(e.Leave())
    assert h.r.coordinator is None
    assert h.sent(m.HANDOVER) == []
