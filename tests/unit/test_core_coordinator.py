"""The coordinator hand-fed: settling, authority, grants and commit, condition by condition (R3 to R8, R13)."""

from __future__ import annotations

from ackord_node.core import effects as e
from ackord_node.core import messages as m
from ackord_node.core.types import Member
from tests.support.core_hand import ALL_WELL, TABLET, TIMING, coordinator, entries, serving

# ------------------------------------------------------------------------------------- settling


def test_nothing_begins_before_the_own_promise_is_on_disk() -> None:
    """Rule R3, for the coordinator itself: after a crash it would obey an older epoch again."""
    h = coordinator(settled=False)
    h.answer_inquiry("n2")
    h.answer_inquiry("n3")
    h.wait(1.0)
    assert not h.c.is_active
    assert h.sent(m.BEACON) == h.sent(m.APPEND) == []
    h.store()
    assert h.c.is_active
    assert h.sent(m.BEACON, "n2")


def test_only_answers_to_this_epochs_inquiry_end_it() -> None:
    """Rule R13: what a member knew in an earlier epoch says nothing of what it knows now."""
    h = coordinator(settled=False)
    h.store()
    h.answer_inquiry("n2", epoch=3)
    h.answer_inquiry("n3")
    assert not h.c.is_active
    h.answer_inquiry("n2")
    assert h.c.is_active


def test_the_inquiry_is_bounded() -> None:
    h = coordinator(settled=False)
    h.store()
    h.tick(TIMING.inquiry_timeout - 0.01)
    assert not h.c.is_active
    h.tick(0.02)
    assert h.c.is_active


def test_one_that_settles_is_asked_when_its_inquiry_ends_and_not_all_the_time() -> None:
    """A node that takes over hundreds of tablets at once has other things to do."""
    h = coordinator(settled=False)
    ends_at = h.now + TIMING.inquiry_timeout
    h.store()
    for _ in range(3):
        assert h.r.wake_at == ends_at
        h.tick(0.01)
    h = coordinator(settled=False)
    for _ in range(5):
        h.tick(0.1)
    assert not h.c.is_active, "its own promise is not on disk"
    assert h.r.wake_at > h.now + 0.1


def test_a_later_commit_point_shows_that_the_own_disk_rolled_back() -> None:
    """Rule R13: it resigns, is suspect from then on, gives the lock back, and nothing of its epoch begins."""
    h = coordinator(settled=False, tail=entries(3))
    h.store()
    h.answer_inquiry("n3")
    h.forget()
    h.answer_inquiry("n2", commit=4)
    assert h.r.coordinator is None
    assert h.is_suspect()
    assert h.did(e.ReleaseLock)
    assert h.sent(m.BEACON) == []


def test_a_commit_point_that_the_own_log_reaches_is_no_such_sign() -> None:
    h = coordinator(settled=False, tail=entries(3))
    h.store()
    h.answer_inquiry("n2", commit=3)
    h.answer_inquiry("n3", commit=2)
    assert h.c.is_active


def test_what_an_operator_gave_up_is_no_such_sign() -> None:
    """A copy of before a forced recovery knows later commit points; it is to start anew."""
    h = coordinator(settled=False)
    h.r.state.recovered = 4
    h.store()
    h.answer_inquiry("n2", commit=9, recovered=3)
    assert h.r.coordinator is not None
    h.answer_inquiry("n3", commit=9, recovered=4)
    assert h.r.coordinator is None


def test_an_inquiry_does_not_wait_for_whom_no_link_reaches() -> None:
    h = coordinator(settled=False, peers=("n2",))
    h.store()
    h.answer_inquiry("n2")
    assert h.c.is_active


def test_one_that_is_reached_later_is_asked_later() -> None:
    """Rule R13: it may still know that this disk rolled back."""
    h = coordinator(peers=("n2",))
    h.forget()
    h.do(e.PeerUp("n3"))
    assert len(h.sent(m.INQUIRE, "n3")) == 1
    h.answer_inquiry("n3", commit=5)
    assert h.r.coordinator is None


def test_nothing_is_taken_from_members_while_it_settles() -> None:
    """It proposes no change of the set before it knows that its own disk is well."""
    h = coordinator("n1", "n2", settled=False, min_in_sync=1)
    h.confirm("n3", 0)
    h.promise("n3")
    h.confirm("n3", 0)
    assert h.c.progress["n3"].copy_id is None
    assert len(h.did(e.Swap)) == 1, "its takeover's"


def test_the_sole_member_answers_nothing_before_it_settled() -> None:
    h = coordinator("n1", min_in_sync=1, settled=False)
    assert not h.r.may_read(h.now)
    h.store()
    h.answer_inquiry("n2")
    h.answer_inquiry("n3")
    assert h.r.may_read(h.now)


def test_the_sole_member_commits_nothing_before_it_settled() -> None:
    h = coordinator("n1", min_in_sync=1, settled=False, tail=entries(2))
    h.store()
    assert h.r.state.commit == 0
    h.answer_inquiry("n2")
    h.answer_inquiry("n3")
    assert h.r.state.commit == 2


# ------------------------------------------------------------------------------------- messages


def test_messages_of_nodes_that_hold_no_replica_are_ignored() -> None:
    h = serving()
    h.hear("n9", m.CONFIRM, TABLET, 4, 9, 0)
    h.hear("n9", m.BEACON_CONFIRM, TABLET, 4, 9, h.now, -1.0, 0, 7)
    h.hear("n9", m.MISMATCH, TABLET, 4, 9, 0, 0)
    h.hear("n9", m.SNAPSHOT_TAKEN, TABLET, 4, 9, 1, 0)
    h.hear("n9", m.LEAVE, TABLET, 4, 9)
    assert set(h.c.progress) == {"n2", "n3"}


def test_messages_of_an_older_epoch_are_ignored() -> None:
    h = serving(tail=entries(2))
    authority = h.c.progress["n2"].authority
    h.now += 0.2
    h.hear("n2", m.BEACON_CONFIRM, TABLET, 3, 2, h.now, -1.0, 2, 7)
    h.hear("n2", m.MISMATCH, TABLET, 3, 2, 2, 0)
    h.hear("n2", m.SNAPSHOT_TAKEN, TABLET, 3, 2, 1, 0)
    h.hear("n2", m.LEAVE, TABLET, 3, 2)
    p = h.c.progress["n2"]
    assert (p.authority, p.confirmed, p.leaving) == (authority, 2, False)


def test_a_confirmation_of_another_copy_of_the_node_does_not_count() -> None:
    """Rule R3: the copy that is in sync may come back without the entry, as when a disk is put back."""
    h = serving(min_in_sync=1)
    write = h.write()
    h.store()
    h.confirm("n2", 1)
    h.confirm("n3", 1, copy=33, incarnation=34)
    assert write.answers == {}
    assert h.r.state.commit == 0


def test_another_run_of_a_member_is_probed_and_keeps_what_its_copy_confirmed() -> None:
    h = serving(tail=entries(2))
    h.confirm("n2", 2, incarnation=23)
    p = h.c.progress["n2"]
    assert (p.confirmed, p.incarnation) == (2, 23)
    h.now += 0.01
    h.promise("n2", incarnation=24, end=1)
    assert h.c.progress["n2"].expelled


def test_a_confirmation_beyond_the_log_counts_for_nothing() -> None:
    h = serving()
    h.confirm("n2", 5)
    assert h.c.progress["n2"].confirmed == 0


def test_the_copy_that_a_snapshot_fills_has_another_name() -> None:
    """Its own run goes on being filled; another run of the node is fed from the beginning."""
    h = coordinator("n1", "n2", min_in_sync=1, tail=entries(3))
    p = h.c.progress["n3"]
    h.confirm("n3", 0)
    p.snapshot_id, p.snapshot_number = 5, 0
    h.forget()
    h.promise("n3", copy=50)
    assert (p.copy_id, p.snapshot_id) == (50, 5)
    h.promise("n3", copy=51, incarnation=34)
    assert (p.copy_id, p.snapshot_id) == (51, 0)
    assert h.did(e.CloseSnapshot) == [e.CloseSnapshot("n3", 5)]


# ------------------------------------------------------------------------- authority and leases


def test_authority_is_that_of_the_recorded_copies() -> None:
    """Rule R5: until another copy's node was removed and joined again, nothing of it counts."""
    h = serving()
    assert h.c.authority() == h.now + TIMING.lease
    h.promise("n3", copy=33, incarnation=34)
    assert h.c.authority() < h.now


def test_the_proposed_member_counts_for_authority() -> None:
    """Rules R5 and R10: its compare-and-set may have been applied, and its promise is to be waited for."""
    h = serving("n1", "n2", min_in_sync=1)
    h.confirm("n3", 0)
    h.promise("n3", "n2")
    h.tick()
    assert h.c.membership.proposed is not None
    h.now += 0.5
    h.promise("n2")
    assert h.c.authority() == h.now - 0.5 + TIMING.lease


def test_reads_end_when_a_hand_over_reaches_its_last_step() -> None:
    """Rule R7b: the successor may begin from then on."""
    h = serving()
    h.write()
    h.do(e.HandOver("n2"))
    h.tick()
    assert h.c.membership.drain.value == "tail"
    assert h.c.authority() > h.now
    assert not h.r.may_read(h.now)
    h.forget()
    h.wait(0.4)
    assert h.sent(m.BEACON) == []


def test_a_beacon_confirmation_that_came_late_expels_nobody() -> None:
    """Its log's end was told before more was confirmed."""
    h = serving()
    before = h.now
    h.now += 0.01
    h.write()
    h.store()
    h.confirm("n2", 1)
    h.promise("n2", sent_at=before, end=0)
    assert not h.c.progress["n2"].expelled
    h.promise("n2", sent_at=h.now + 0.01, end=0)
    assert h.c.progress["n2"].expelled


def test_no_lease_is_granted_that_was_not_asked_for() -> None:
    h = serving()
    h.promise("n2", request=-1.0)
    assert h.c.progress["n2"].grant is None
    h.promise("n2", request=3.0)
    assert h.c.progress["n2"].granted_until > h.now


def test_the_first_lease_is_granted_at_once_and_renewals_ride_in_beacons() -> None:
    h = serving()
    h.promise("n2", request=3.0)
    assert [x[6] for x in h.sent(m.BEACON, "n2")] == [3.0]
    h.forget()
    h.promise("n2", request=3.1)
    assert h.sent(m.BEACON) == []
    h.wait(TIMING.beacon_interval)
    assert 3.1 in [x[6] for x in h.sent(m.BEACON, "n2")]


def test_no_lease_is_granted_before_the_tail_is_committed() -> None:
    """Rule R8, although this member holds all of it."""
    h = coordinator(tail=entries(2))
    h.confirm("n2", 2)
    h.promise("n3")
    h.promise("n2", request=3.0)
    assert h.c.progress["n2"].granted_until < h.now
    h.confirm("n3", 2)
    h.promise("n2", request=3.0)
    assert h.c.progress["n2"].granted_until > h.now


def test_no_lease_is_granted_to_a_member_that_has_not_shown_the_tail() -> None:
    """Rule R13: its disk may have rolled back since an earlier coordinator had its confirmation."""
    h = serving("n1", "n2", min_in_sync=1, tail=entries(2))
    h.c.progress["n2"].confirmed = 1
    h.promise("n2", request=3.0, end=2)
    assert h.c.progress["n2"].granted_until < h.now


def test_no_lease_is_granted_to_a_copy_that_is_not_in_sync() -> None:
    h = serving("n1", "n2", min_in_sync=1)
    h.c.progress["n3"].rejoin_at = h.now + 9
    h.confirm("n3", 0)
    h.promise("n3", request=3.0)
    assert h.c.progress["n3"].granted_until < h.now


# ------------------------------------------------------------------------------------- commit


def test_a_set_below_the_minimum_commits_nothing() -> None:
    """Rule R4, after an operator forced one copy: its tail waits for the minimum."""
    h = coordinator("n1", tail=entries(2))
    h.wait(0.5)
    assert h.r.state.commit == 0
    h.confirm("n3", 2)
    h.promise("n3")
    h.tick()
    assert h.c.membership.proposed == {Member("n1", 1), Member("n3", 3)}
    h.won()
    assert h.r.state.commit == 2


def test_the_commit_point_is_announced_once_where_nothing_else_carries_it() -> None:
    h = serving(tail=entries(1))
    assert h.announces()
    h.do(e.Announce())
    assert [x[3] for x in h.sent(m.COMMIT)] == [1, 1]
    h.forget()
    assert not h.announces()
    h.do(e.Announce())
    assert h.sent(m.COMMIT) == []


def test_no_commit_point_is_announced_to_whom_an_append_will_bring_it() -> None:
    h = serving(tail=entries(1))
    h.c.progress["n2"].probing = True
    h.do(e.PeerDown("n3", refused=False))
    assert not h.announces()
    h.do(e.Announce())
    assert h.sent(m.COMMIT) == []


def test_a_pause_of_the_own_process_proves_nothing_of_the_members() -> None:
    h = serving()
    h.now += TIMING.confirm_timeout + 0.2
    h.tick()
    assert not any(p.revoking for p in h.c.progress.values())
    h.wait(TIMING.confirm_timeout + 0.2)
    assert all(p.revoking for p in h.c.progress.values())


def test_writes_are_refused_while_it_settles() -> None:
    h = coordinator(settled=False)
    refused = h.write()
    assert refused.answers[0][2]["reason"] == "settling"


def test_a_member_that_waits_for_clients_is_not_slow() -> None:
    """Rule R19: it says so with its beacon's confirmation, and the wait is bounded."""
    for flags, is_well in ((ALL_WELL | m.FLAG_HOLDERS, True), (ALL_WELL, False)):
        h = serving()
        h.write()
        h.store()
        h.confirm("n2", h.r.state.log.end)
        for _ in range(6):
            h.tick(0.2)
            h.promise("n2")
            h.promise("n3", flags=flags)
        h.tick()
        assert h.c.progress["n3"].revoking is not is_well


def test_a_learner_joins_on_the_promise_that_it_has_just_made() -> None:
    """A tick later it may no longer cover what was granted meanwhile (R10), and a member's own changes nothing."""
    h = serving("n1", "n2")
    h.confirm("n3", h.r.state.log.end)
    h.forget()
    h.promise("n2")
    assert not h.did(e.Swap)
    h.promise("n3")
    assert {member.node for member in h.swap().descriptor.in_sync} == {"n1", "n2", "n3"}


def test_a_member_that_waits_for_clients_and_lacks_nothing_is_not_behind_from_then_on() -> None:
    h = serving()
    h.promise("n3", flags=ALL_WELL | m.FLAG_HOLDERS)
    for _ in range(7):
        h.tick(0.2)
        h.promise("n2", "n3")
    assert not h.c.progress["n3"].revoking


def test_a_run_whose_log_ends_too_early_gets_no_lease_whenever_the_beacon_left() -> None:
    """Rule R13: a beacon from before the member's last confirmation may be answered by a run whose disk rolled back;
    it is compared with the next beacon, and shares those of the node only after that."""
    h = serving()
    h.write()
    h.store()
    sent_at = h.now
    h.now += 0.1
    for node in ("n2", "n3"):
        h.confirm(node, 1)
    p = h.c.progress["n2"]
    granted = p.granted_until
    h.promise("n2", sent_at=sent_at, request=h.now, end=0, flags=ALL_WELL | m.FLAG_SHARES, incarnation=23)
    assert (p.granted_until, p.grant, p.enrolled) == (granted, None, 0)
    assert not p.expelled
    h.now += 0.1
    h.promise("n2", request=h.now, end=0, flags=ALL_WELL | m.FLAG_SHARES, incarnation=23)
    assert p.expelled
    assert (p.granted_until, p.enrolled) == (granted, 0)
