"""A member hand-fed: what it obeys, takes, confirms and asks for, condition by condition (R2, R3, R6, R7, R13)."""

from __future__ import annotations

from typing import Any

from ackord_node.core import effects as e
from ackord_node.core import messages as m
from ackord_node.core.copy_meta import CopyMeta
from ackord_node.core.log import Entry
from tests.support.core_hand import TABLET, TIMING, Hand, descriptor, entries, entry


def member(tail: list[Entry] | None = None, **meta: Any) -> Hand:
    """n2, which hears of n1, coordinator of epoch 3."""
    h = Hand("n2", CopyMeta(2, **{"promised": 3, **meta}), tail)
    h.do(e.PeerUp("n1"))
    h.do(e.DescriptorSeen(descriptor("n1", "n2", epoch=3, coordinator="n1", incarnation=11), 4))
    h.store()
    h.forget()
    return h


def snapshot(h: Hand, number: int, space: str, records: list[Any], header: list[int] | None = None,
             snapshot_id: int = 5, epoch: int = 3, checksum: int | None = None) -> None:  # fmt: skip
    right = m.checksum(records)
    h.hear("n1", m.SNAPSHOT, TABLET, epoch, snapshot_id, number, space, records, header,
           right if checksum is None else checksum)  # fmt: skip


# ------------------------------------------------------------------------------------- epochs


def test_a_bar_answers_nothing_not_even_a_refusal() -> None:
    """Rule R2: whether its takeover wins is not known yet."""
    h = member()
    h.r.state.barred_below = 5
    h.append(3, 0, 0, 0, entries(1))
    h.beacon(4, 0, 0)
    assert h.r.state.log.end == 0
    assert h.r.state.promised == 3
    assert h.did(e.Send) == []
    h.append(2, 0, 0, 0, [])
    assert h.sent(m.FENCED) == [[m.FENCED, TABLET, 2, 3]]


def test_a_later_epoch_ends_what_the_earlier_one_gave() -> None:
    """Rules R3 and R6: lease, matched prefix and what was to be confirmed."""
    h = member()
    h.append(3, 0, 0, 0, entries(2))
    h.store()
    h.beacon(3, 0, 0, request=h.now, seconds=1.0)
    assert h.r.may_read(h.now)
    h.hear("n3", m.COMMIT, TABLET, 4, 2)
    assert not h.r.may_read(h.now)
    assert (h.r.state.promised, h.r.state.commit) == (4, 0)
    h.forget()
    h.store()
    assert h.sent(m.CONFIRM) == [], "nothing was matched in the new epoch"


def test_the_same_epoch_ends_nothing() -> None:
    h = member()
    h.beacon(3, 0, 0, request=h.now, seconds=1.0)
    h.beacon(3, 0, 0)
    assert h.r.may_read(h.now)


# ------------------------------------------------------------------------------------- append


def test_a_copy_whose_log_goes_on_above_is_not_asked_for_what_it_trimmed() -> None:
    """A probe below the trimmed part proves the prefix, as what was trimmed was committed, ..."""
    h = member([entry(6, 3)], applied=5, trimmed=5, runs=[(5, 2)])
    h.append(3, 3, 2, 5, [entry(4, 2), entry(5, 2), entry(6, 3), entry(7, 3)])
    assert h.r.state.log.end == 7
    assert h.sent(m.MISMATCH) == []


def test_a_later_epoch_below_what_was_trimmed_is_another_log() -> None:
    """... unless its epoch is later than that of what was committed above it."""
    h = member([entry(6, 2)], applied=5, trimmed=5, runs=[(5, 2)])
    h.append(3, 3, 3, 5, [])
    assert h.sent(m.MISMATCH) == [[m.MISMATCH, TABLET, 3, 2, 3, 2]]
    h.append(3, 3, 2, 5, [entry(4, 3), entry(5, 3)])
    assert h.notes("committed otherwise") == 1
    assert h.sent(m.CONFIRM) == []


def test_an_append_ends_a_snapshot_that_was_given_up() -> None:
    h = member()
    snapshot(h, 0, "rows", [[b"a", b"x"]], [9, 3, 90, 0, 2])
    assert h.is_filling()
    filled = h.r.state.copy_id
    h.append(3, 0, 0, 0, entries(1))
    assert not h.is_filling()
    assert h.r.state.copy_id != filled
    h.forget()
    snapshot(h, 1, "end", [])
    assert h.r.state.applied == 0, "its later chunks belong to nothing"
    h.store()
    assert h.disk.now.rows == {}
    assert [x[4] for x in h.sent(m.CONFIRM)] == [1]


def test_what_is_known_is_taken_once() -> None:
    h = member()
    h.append(3, 0, 0, 0, entries(3))
    h.append(3, 0, 0, 0, entries(3))
    h.append(3, 1, 3, 0, entries(2, first=2))
    assert h.r.state.log.end == 3


def test_no_confirmation_is_repeated_while_more_is_on_its_way_to_disk() -> None:
    h = member()
    h.append(3, 0, 0, 0, entries(2))
    h.store()
    assert [x[4] for x in h.sent(m.CONFIRM)] == [2]
    h.forget()
    h.append(3, 2, 3, 0, entries(1, first=3))
    h.append(3, 3, 3, 0, entries(1, first=4))
    assert h.sent(m.CONFIRM) == []
    h.store()
    assert [x[4] for x in h.sent(m.CONFIRM)] == [4]
    h.forget()
    h.append(3, 4, 3, 0, [])
    assert [x[4] for x in h.sent(m.CONFIRM)] == [4], "a probe is answered although nothing is new"


def test_a_mismatch_waits_for_the_promise_too() -> None:
    h = member()
    h.append(4, 3, 4, 0, [])
    assert h.sent(m.MISMATCH) == []
    h.store()
    h.append(4, 3, 4, 0, [])
    assert len(h.sent(m.MISMATCH)) == 1


# ------------------------------------------------------------------------------------- suspect


def test_a_suspect_copy_stays_so_until_it_holds_what_the_coordinator_needs() -> None:
    """Rule R13: the log at takeover and the commit point, both."""
    h = member(entries(1), suspect=True)
    h.beacon(3, 0, 3)
    h.append(3, 0, 0, 1, entries(2))
    assert h.is_suspect()
    h.append(3, 2, 3, 4, entries(1, first=3))
    h.store()
    assert h.is_suspect(), "entry 4 is committed"
    assert h.sent(m.CONFIRM) == []
    h.append(3, 3, 3, 4, entries(1, first=4))
    assert not h.is_suspect()
    assert h.notes("is refilled") == 1
    h.append(3, 4, 3, 5, entries(1, first=5))
    assert h.notes("is refilled") == 1, "a copy that is well does not become so again"
    h.tick()  # clients whose holds were not recorded have been waited out (rule R19)
    h.store()
    assert [x[4] for x in h.sent(m.CONFIRM)][-1] == 5


def test_a_suspect_copy_of_an_empty_tablet_counts_once_the_coordinator_met_it() -> None:
    """There is nothing to be refilled with, and perhaps never will be."""
    h = member([], suspect=True)
    h.append(3, 0, 0, 0, [])
    assert h.is_suspect(), "what the coordinator needs is not known yet"
    h.beacon(3, 0, 0)
    h.store()
    assert not h.is_suspect()
    assert [x[4] for x in h.sent(m.CONFIRM)] == [0]


def test_a_suspect_copy_of_an_empty_tablet_needs_more_than_a_beacon() -> None:
    h = member([], suspect=True)
    h.beacon(3, 0, 0)
    h.store()
    assert h.is_suspect()
    h.append(3, 0, 0, 0, [])
    assert not h.is_suspect()


def test_a_suspect_copy_asks_for_no_lease() -> None:
    """Its coordinator may remember, of before it restarted, that it held everything."""
    h = member(entries(1), suspect=True)
    h.beacon(3, 2, 2)
    assert [x[5] for x in h.sent(m.BEACON_CONFIRM)] == [-1]


# ------------------------------------------------------------------------------------- leases


def test_a_lease_that_was_granted_to_an_earlier_run_counts_for_nothing() -> None:
    """Its request was timed by a clock that may have begun anew since."""
    h = member()
    h.beacon(3, 0, 0, request=h.now + 500, seconds=1.0, grantee=21)
    assert not h.r.may_read(h.now)


def test_a_request_of_before_a_snapshot_began_gives_no_lease() -> None:
    h = member()
    asked = h.now
    h.now += 0.1
    snapshot(h, 0, "rows", [[b"a", b"x"]], [9, 3, 90, 0, 2])
    snapshot(h, 1, "end", [])
    h.beacon(3, 0, 0, request=asked, seconds=1.0)
    assert not h.r.may_read(h.now)


def test_a_beacons_grant_of_nothing_gives_no_lease() -> None:
    h = member()
    h.beacon(3, 0, 0)
    assert not h.r.may_read(h.now)


def test_a_grant_does_not_shorten_a_lease() -> None:
    h = member()
    h.now += 1
    h.beacon(3, 0, 0, request=h.now, seconds=1.0)
    h.beacon(3, 0, 0, request=h.now - 0.5, seconds=1.0)
    assert h.r.may_read(h.now + 0.9)


def test_a_member_that_stops_gives_up_its_lease_and_asks_to_be_removed() -> None:
    """Rule R7b: the coordinator need not wait for a lease, so none may be held."""
    h = member()
    h.beacon(3, 0, 0, request=h.now, seconds=1.0)
    h.store()
    h.forget()
    h.do(e.Leave())
    assert not h.r.may_read(h.now)
    assert h.sent(m.LEAVE) == [[m.LEAVE, TABLET, 3, 2]]
    h.beacon(3, 0, 0, request=h.now, seconds=1.0)
    assert not h.r.may_read(h.now)
    assert [(x[5], x[7] & m.FLAG_STAYS) for x in h.sent(m.BEACON_CONFIRM)] == [(-1, 0)]
    h.tick(TIMING.retry_interval - 0.01)
    assert len(h.sent(m.LEAVE)) == 1
    h.tick(0.02)
    assert len(h.sent(m.LEAVE)) == 2
    h.append(3, 0, 0, 0, entries(1))
    h.store()
    assert h.sent(m.CONFIRM), "it goes on confirming until it is removed"
    h.do(e.DescriptorSeen(descriptor("n1", epoch=3, coordinator="n1", incarnation=11), 5))
    h.forget()
    h.wait(1.0)
    assert h.sent(m.LEAVE) == []
    assert h.r.has_left


def test_a_member_that_stops_asks_nobody_while_it_knows_no_coordinator() -> None:
    h = member()
    h.do(e.Leave())
    assert h.did(e.Send) == []
    assert not h.r.has_left


def test_a_member_that_stays_does_not_ask_to_be_removed() -> None:
    h = member()
    h.beacon(3, 0, 0, request=h.now, seconds=1.0)
    h.forget()
    h.tick(0.1)
    assert h.r.may_read(h.now)
    assert h.sent(m.LEAVE) == []


# ------------------------------------------------------------------------------------- tails


def test_the_foreign_tail_is_cut_behind_what_is_committed_and_no_earlier() -> None:
    h = member([*entries(2, 2), entry(3, 3)])
    h.beacon(3, 0, 1)
    assert h.r.state.log.end == 1, "entry 2 is of an earlier epoch and not in the coordinator's log"
    h = member([*entries(2, 2), entry(3, 3)])
    h.beacon(3, 0, 2)
    assert h.r.state.log.end == 3, "entry 3 is of its own epoch"
    h = member(entries(3, 2))
    h.append(3, 2, 2, 2, [])
    h.beacon(3, 2, 1)
    assert h.r.state.log.end == 2, "what is committed stays"


# ------------------------------------------------------------------------------------ promises


def test_a_hand_over_releases_the_promise_of_its_epoch() -> None:
    h = member()
    h.beacon(3, 0, 0)
    until = h.r.state.promise_until
    h.hear("n1", m.HANDOVER, TABLET, 2, 22)
    h.hear("n1", m.HANDOVER, TABLET, 3, 21)
    assert h.r.state.promise_until == until
    h.hear("n1", m.HANDOVER, TABLET, 3, 22)
    assert h.r.state.promise_until == h.now


# ----------------------------------------------------------------------------------- snapshots


HEADER = [9, 3, 90, 7, 2]


def test_a_snapshot_is_taken_chunk_by_chunk() -> None:
    h = member(entries(2))
    snapshot(h, 0, "rows", [[b"a", b"x"]], HEADER)
    assert (h.is_filling(), h.r.state.log.end) == (True, 0)
    assert not h.r.may_read(h.now)
    copy_id = h.r.state.copy_id
    h.store()
    assert h.sent(m.SNAPSHOT_TAKEN) == [[m.SNAPSHOT_TAKEN, TABLET, 3, copy_id, 5, 0]]
    snapshot(h, 2, "rows", [[b"c", b"z"]])
    snapshot(h, 0, "rows", [[b"a", b"x"]], HEADER)
    snapshot(h, 1, "rows", [[b"b", b"y"]], snapshot_id=4)
    assert h.r.state.copy_id == copy_id, "the same chunk twice does not begin anew"
    snapshot(h, 1, "rows", [[b"b", b"y"]])
    snapshot(h, 2, "end", [])
    assert not h.is_filling()
    assert (h.r.state.applied, h.r.state.durable) == (9, 0)
    assert h.r.state.requests.collected_below == 7
    h.store()
    assert h.disk.now.rows == {b"a": b"x", b"b": b"y"}
    assert [x[5] for x in h.sent(m.SNAPSHOT_TAKEN)] == [0, 2], "chunks 1 and 2 went to disk together"


def test_a_chunk_that_fails_its_checksum_is_dropped() -> None:
    h = member(entries(2))
    snapshot(h, 0, "rows", [[b"a", b"x"]], HEADER, checksum=1)
    assert h.r.state.log.end == 2


def test_a_snapshot_of_an_older_epoch_is_refused() -> None:
    h = member(entries(2))
    snapshot(h, 0, "rows", [[b"a", b"x"]], HEADER, epoch=2)
    assert h.r.state.log.end == 2
    assert h.sent(m.FENCED)


def test_a_snapshot_for_another_copy_is_refused() -> None:
    h = member(entries(2))
    snapshot(h, 0, "rows", [[b"a", b"x"]], [9, 3, 90, 7, 1])
    assert h.r.state.log.end == 2


def test_a_snapshot_does_not_begin_in_its_middle() -> None:
    h = member(entries(2))
    snapshot(h, 1, "rows", [[b"b", b"y"]], HEADER)
    snapshot(h, 0, "rows", [[b"b", b"y"]], None)
    assert h.r.state.log.end == 2


def test_a_newer_snapshot_replaces_an_unfinished_one() -> None:
    h = member()
    snapshot(h, 0, "rows", [[b"a", b"x"]], HEADER)
    copy_id = h.r.state.copy_id
    snapshot(h, 0, "rows", [[b"b", b"y"]], [*HEADER[:4], copy_id], snapshot_id=6)
    snapshot(h, 1, "end", [], snapshot_id=6)
    h.store()
    assert h.disk.now.rows == {b"b": b"y"}


def test_a_chunk_is_confirmed_only_once_all_of_it_is_on_disk() -> None:
    h = member()
    snapshot(h, 0, "rows", [[b"a", b"x"]], HEADER)
    batch = h.r.take_batch()
    assert batch is not None
    h.r.state.want_meta()
    h.do(e.Durable(batch))
    assert h.sent(m.SNAPSHOT_TAKEN) == []
    h.store()
    assert len(h.sent(m.SNAPSHOT_TAKEN)) == 1


# ------------------------------------------------------------------------------------ recovery


def test_a_copy_of_before_a_forced_recovery_starts_anew() -> None:
    """An operator made another copy the only one: what this one holds beyond it no longer exists."""
    for kind in ("append", "beacon"):
        h = member(entries(3))
        if kind == "append":
            h.append(4, 0, 0, 0, entries(1, 4), recovered=4)
        else:
            h.beacon(4, 0, 0, recovered=4)
        assert h.r.state.copy_id == 50
        assert h.r.state.log.end == (1 if kind == "append" else 0)
        h.append(4, 0, 0, 0, entries(1, 4), recovered=4)
        assert h.r.state.copy_id == 50, "once"


# ------------------------------------------------------------------------------------- its disk


def test_what_is_stored_of_a_discarded_copy_says_nothing_of_the_next() -> None:
    h = member()
    h.append(3, 0, 0, 0, entries(2))
    under_way = h.r.take_batch()
    assert under_way is not None
    h.do(e.Corrupted("a record failed its checksum"))
    h.do(e.Durable(under_way))
    assert h.r.state.durable == 0
    assert not h.r.state.copy_is_stored


def test_a_snapshot_renames_the_copy_before_it_deletes() -> None:
    """The name and the deletion are in one batch."""
    h = member(entries(2))
    snapshot(h, 0, "rows", [[b"a", b"x"]], HEADER)
    batch = h.r.take_batch()
    assert batch is not None and batch.meta is not None
    assert batch.clear
    assert CopyMeta.decode(batch.meta).copy_id == 50


def test_the_promise_counts_from_the_answer() -> None:
    """Rule R7: the coordinator's authority counts from the beacon, but it learns of it from the answer."""
    h = member()
    h.beacon(4, 0, 0)
    h.now += 0.5
    h.store()
    assert h.sent(m.BEACON_CONFIRM)
    assert h.r.state.promise_until == h.now + TIMING.promise
