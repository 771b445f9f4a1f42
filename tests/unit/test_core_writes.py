"""Exactly once and reads, hand-fed: what is executed, answered, refused, collected (R8, R12, R16, R17)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ackord.errors import Conflict, InvalidRequest, OutcomeUnknown, Unavailable
from ackord.wire.limits import Limits
from ackord.wire.messages import COND_IF_ABSENT, KIND_DELETE, RETURN_NEW, row_version
from ackord.wire.values import encode_columns
from ackord_node.core import effects as e
from ackord_node.core import messages as m
from ackord_node.core.copy_meta import CopyMeta
from ackord_node.core.log import Entry, RecordCorrupt
from ackord_node.core.requests import RETURNED_SLACK_BYTES, ClientRecord
from ackord_node.core.types import Descriptor, LogLimits, Member, Timing
from tests.support.core_hand import (
    NODES,
    TABLET,
    WALL_MS,
    Asked,
    Hand,
    coordinator,
    descriptor,
    entry,
    serving,
)


def commit(h: Hand) -> None:
    h.store()
    for node in ("n2", "n3"):
        h.confirm(node, h.r.state.log.end)
    h.store()


def reason(asked: Asked) -> Any:
    return asked.answers[0][2].get("reason")


def refusing(asked: Asked) -> Any:
    return asked.answers[0][0]


# -------------------------------------------------------------------------------------- answers


def test_a_write_is_answered_once_it_is_committed() -> None:
    h = serving()
    write = h.write()
    assert write.answers == {}
    commit(h)
    assert write.answers == {0: h.r.state.last_version}


def test_a_duplicate_of_what_is_done_needs_the_right_to_answer() -> None:
    """Rules R5 and R12: another coordinator may have collected the client and forgotten it."""
    h = serving()
    first = h.write()
    commit(h)
    h.now += 2
    again = h.write(attempt=2)
    assert (refusing(again), reason(again)) == (OutcomeUnknown.code, "no_authority")
    h.promise("n2", "n3")
    again = h.write(attempt=2)
    assert again.answers == first.answers


def test_a_duplicate_of_what_is_in_progress_is_answered_with_it() -> None:
    h = serving()
    first = h.write()
    again = h.write(attempt=2)
    assert h.r.state.log.end == 1
    commit(h)
    assert again.answers == first.answers


def test_writes_without_an_id_are_executed_each_time_and_leave_no_record() -> None:
    h = serving()
    for _ in range(2):
        h.write(client=b"", seq=0, attempt=2)
        commit(h)
    refused = h.write(client=b"", seq=0, attempt=2, condition=COND_IF_ABSENT)
    commit(h)
    assert refusing(refused) == Conflict.code
    assert h.r.state.log.end == 2
    assert h.r.state.requests.clients == {}


def test_a_refusal_is_recorded_from_the_second_attempt_on_and_answered_once_committed() -> None:
    h = serving()
    h.write(seq=1)
    commit(h)
    first = h.write(seq=2, condition=COND_IF_ABSENT)
    assert refusing(first) == Conflict.code
    assert h.r.state.log.end == 1
    second = h.write(seq=2, condition=COND_IF_ABSENT, attempt=2)
    assert second.answers == {}
    assert h.r.state.log.end == 2
    commit(h)
    assert refusing(second) == Conflict.code
    third = h.write(seq=2, condition=COND_IF_ABSENT)
    assert third.answers[0][2].get("repeated") is True


def test_a_refusal_shows_the_row_that_stands_in_the_way() -> None:
    h = serving()
    h.write(seq=1)
    refused = h.write(seq=2, condition=COND_IF_ABSENT)
    assert refused.answers == {}, "that row is not committed yet"
    commit(h)
    assert row_version(refused.answers[0][3]) == h.r.state.last_version


def test_a_malformed_write_is_certainly_not_done() -> None:
    h = serving()
    refused = h.write(body=b"\xc1")
    assert refusing(refused) == InvalidRequest.code
    assert h.r.state.log.end == 0


def test_an_epochs_end_leaves_what_was_appended_in_doubt() -> None:
    h = serving()
    write = h.write()
    h.hear("n2", m.BEACON, TABLET, 9, h.now, 0, 0, -1.0, 0.0, 0, 0)
    assert (refusing(write), reason(write)) == (OutcomeUnknown.code, "epoch_ended")
    refused = h.write(seq=2)
    assert (refusing(refused), reason(refused)) == (Unavailable.code, "not_coordinator")


# ------------------------------------------------------------------------- the tail of a takeover


def tail(*groups: list[Any]) -> Entry:
    return Entry.create(TABLET, 3, 1, 10, list(groups))


def test_what_the_tail_of_a_takeover_holds_is_in_progress() -> None:
    """Also a refusal, which must stay one."""
    group = [b"w", 5, 0, [1, 2], [b"k", None], [b"\0" * 8 + b"\x80", Conflict.code]]
    h = coordinator(tail=[tail(group, [b"", 0, 0, [0], [b"j"], [b"\0" * 8 + b"\x80"]])])
    assert set(h.c.writes._in_progress) == {b"w"}
    h.promise("n2", "n3")
    done = h.write(seq=1, attempt=2)
    assert refusing(done) == OutcomeUnknown.code, "it may not answer before the tail is committed"
    commit(h)
    assert h.write(seq=1, attempt=3).answers == {0: 10}
    assert refusing(h.write(seq=2, attempt=3)) == Conflict.code
    assert h.r.state.log.end == 1


def test_a_collection_in_the_tail_is_under_way() -> None:
    limits = replace(Limits(), clients_count=1)
    h = coordinator(tail=[tail([None, 9])], limits=limits)
    h.promise("n2", "n3")
    assert h.c.writes._collecting_below == 9
    commit(h)
    assert h.c.writes._collecting_below == 0


# -------------------------------------------------------------------------------------- clients


def collected(h: Hand) -> int:
    return int(h.r.state.requests.collected_below)


def crowded(count: int = 3) -> Hand:
    """More clients than are kept; which registered as 100, 101, ..."""
    h = serving(limits=replace(Limits(), clients_count=2))
    for number in range(count):
        h.write(client=b"c%d" % number, registered=100 + number)
        commit(h)
    return h


def test_clients_are_collected_when_there_are_too_many_and_not_before() -> None:
    """Rule R16: by an entry of the log, one at a time."""
    h = crowded()
    assert len(h.r.state.requests.clients) == 3
    assert collected(h) == 0
    h.write(client=b"c2", seq=2, registered=102)
    assert h.c.writes._collecting_below > 0
    h.write(client=b"c2", seq=3, registered=102)
    collections = [g for x in h.r.state.log.entries for g in x.groups if g[0] is None]
    assert len(collections) == 1
    commit(h)
    assert set(h.r.state.requests.clients) == {b"c2"}
    assert collected(h) == 101


def test_a_collected_client_is_refused_and_a_new_or_known_one_is_not() -> None:
    h = crowded()
    h.write(client=b"c2", seq=2, registered=102)
    commit(h)
    for name, registered in ((b"c0", 100), (b"c1", 101), (b"x", 50)):
        refused = h.write(client=name, seq=7, registered=registered, attempt=2)
        assert (refusing(refused), reason(refused)) == (OutcomeUnknown.code, "client_collected")
    taken = [h.write(client=b"y", registered=103), h.write(client=b"", seq=0, registered=0)]
    h.r.state.requests.clients[b"c2"].registered = 60
    taken.append(h.write(client=b"c2", seq=9, registered=60))
    commit(h)
    assert all(isinstance(x.answers[0], int) for x in taken)


def test_a_client_whose_first_write_is_in_progress_is_known() -> None:
    h = crowded(2)
    first = h.write(client=b"new", registered=103)
    h.r.state.requests.collected_below = 200
    second = h.write(client=b"new", seq=2, registered=103)
    commit(h)
    assert isinstance(first.answers[0], int)
    assert isinstance(second.answers[0], int)


def test_a_client_that_is_being_collected_waits() -> None:
    """Its retry would be judged by a table that forgets it before the answer."""
    h = crowded()
    h.write(client=b"c2", seq=2, registered=102)
    refused = h.write(client=b"c0", seq=2, registered=100)
    assert (refusing(refused), reason(refused)) == (Unavailable.code, "client_collecting")


def test_a_registration_ahead_of_the_clock_is_refused() -> None:
    """It would escape collection, as if it had registered later than all others."""
    h = serving()
    ahead = (WALL_MS + Limits().registered_ahead_ms) << 16
    refused = h.write(registered=ahead + 1)
    assert (refusing(refused), reason(refused)) == (Unavailable.code, "registered_ahead")
    assert h.write(registered=ahead).answers == {}


def test_a_client_that_never_raises_its_floor_is_bounded() -> None:
    h = serving(limits=replace(Limits(), client_results_count=3))
    writes = []
    for seq in range(1, 6):
        writes.append(h.write(seq=seq, floor=0))
        commit(h)
    assert reason(writes[-1]) == "overloaded"


def test_what_is_below_the_floor_is_stale() -> None:
    h = serving()
    h.write(seq=1, floor=1)
    commit(h)
    h.write(seq=3, floor=3)
    commit(h)
    stale = h.write(seq=2, attempt=2)
    assert (refusing(stale), reason(stale)) == (OutcomeUnknown.code, "stale")
    assert isinstance(h.write(seq=3).answers.get(0), int)


def test_returned_rows_below_the_floor_are_forgotten_once_they_take_room() -> None:
    row = b"r" * (RETURNED_SLACK_BYTES // 4)
    record = ClientRecord(5, floor=3, results={seq: [seq, row] for seq in range(1, 5)})
    record.returned_bytes = 4 * len(row)
    record.prune()
    assert len(record.results) == 4, "as much as that may wait"
    record.results[5] = [5, row]
    record.returned_bytes += len(row)
    record.prune()
    assert list(record.results) == [3, 4, 5]
    assert record.returned_bytes == record.pruned_bytes == 3 * len(row)


def ask(h: Hand, client: bytes, *ops: list[Any]) -> Asked:
    asked: Any = Asked()
    h.do(e.Writes([e.WriteGroup(asked, client, 5, 0, list(ops))], WALL_MS))
    return asked  # type: ignore[no-any-return]


def test_only_writes_that_return_rows_are_refused_where_too_many_rows_wait_for_retries() -> None:
    h = serving(limits=replace(Limits(), client_returned_bytes=100))
    body = encode_columns({"v": "x" * 200})
    first = ask(h, b"w", [1, 1, b"ka", body, 0, None, 1, RETURN_NEW])
    refused = ask(h, b"w", [2, 1, b"kb", body, 0, None, 1, RETURN_NEW])
    assert (refusing(refused), reason(refused)) == (Unavailable.code, "overloaded")
    plain = ask(h, b"w", [3, KIND_DELETE, b"kb", None, 0, None, 1])
    commit(h)
    assert type(plain.answers[0]) is int
    assert first.answers[0][0] < plain.answers[0]


def test_rows_that_were_committed_and_not_acknowledged_count_too() -> None:
    h = serving(limits=replace(Limits(), client_returned_bytes=100))
    body = encode_columns({"v": "x" * 200})
    ask(h, b"w", [1, 1, b"ka", body, 0, None, 1, RETURN_NEW])
    commit(h)
    refused = ask(h, b"w", [2, 1, b"kb", body, 0, None, 1, RETURN_NEW])
    assert (refusing(refused), reason(refused)) == (Unavailable.code, "overloaded")
    acknowledged: Any = Asked()
    group = e.WriteGroup(acknowledged, b"w", 5, 2, [[2, 1, b"kb", body, 0, None, 1, RETURN_NEW]])
    h.do(e.Writes([group], WALL_MS))
    commit(h)
    assert len(acknowledged.answers[0]) == 2


def test_one_collection_for_returned_rows_is_under_way_at_a_time() -> None:
    h = serving(limits=replace(Limits(), returned_bytes=100))
    body = encode_columns({"v": "x" * 200})
    for seq, client in enumerate((b"w1", b"w2"), start=1):
        ask(h, client, [seq, 1, b"ka", body, 0, None, 1, RETURN_NEW])
    commit(h)
    for seq in (7, 8):
        ask(h, b"w3", [seq, KIND_DELETE, b"kb", None, 0, None, 1])
    collections = [g for x in h.r.state.log.entries for g in x.groups if g[0] is None]
    assert len(collections) == 1


def test_a_write_without_a_client_returns_its_row_and_is_not_remembered() -> None:
    h = serving()
    asked = ask(h, b"", [1, 1, b"ka", encode_columns({"v": 1}), 0, None, 1, RETURN_NEW])
    commit(h)
    version, row = asked.answers[0]
    assert row == h.r.reads.newest_row(b"ka")
    assert row_version(row) == version
    assert not h.r.state.requests.clients


def test_results_below_the_floor_are_forgotten_in_time() -> None:
    record = ClientRecord(5, floor=60, results={seq: seq for seq in range(1, 65)})
    record.prune()
    assert len(record.results) == 64
    record.results[65] = 65
    record.prune()
    assert sorted(record.results) == [60, 61, 62, 63, 64, 65]


# ----------------------------------------------------------------------------------- sizes, limits


def test_large_groups_become_several_entries() -> None:
    h = serving(log=replace(LogLimits(), entry_bytes=300))
    asked: Any = Asked()
    body = encode_columns({"v": "x" * 200})
    ops = [[seq, 1, b"k%d" % seq, body, 0, None, 1] for seq in range(1, 5)]
    h.do(e.Writes([e.WriteGroup(asked, b"w", 5, 0, ops)], WALL_MS))
    assert h.r.state.log.end == 2
    commit(h)
    assert sorted(asked.answers) == [0, 1, 2, 3]
    assert len(set(asked.answers.values())) == 4


def test_deletions_are_small() -> None:
    h = serving(log=replace(LogLimits(), entry_bytes=300))
    asked: Any = Asked()
    ops = [[seq, KIND_DELETE, b"k%d" % seq, None, 0, None, 1] for seq in range(1, 5)]
    h.do(e.Writes([e.WriteGroup(asked, b"w", 5, 0, ops)], WALL_MS))
    assert h.r.state.log.end == 1


def test_undecided_writes_are_bounded() -> None:
    h = serving(limits=replace(Limits(), pending_ops_count=2))
    assert h.write(seq=1).answers == {}
    assert h.write(seq=2).answers == {}
    assert reason(h.write(seq=3)) == "overloaded"


def test_a_record_shorter_than_its_header_is_damaged() -> None:
    with pytest.raises(RecordCorrupt, match="bytes"):
        Entry.decode(TABLET, b"short")


# ---------------------------------------------------------------------------------------- reads


def leased(pending: bool = True) -> Hand:
    """n2 holds a lease; entry 1, which writes ``k``, is in its log."""
    h = Hand("n2")
    h.do(e.DescriptorSeen(descriptor(*NODES, coordinator="n1", incarnation=11), 4))
    h.append(3, 0, 0, 0 if pending else 1, [entry(1, 3)])
    h.beacon(3, 0, 0, request=h.now, seconds=5.0)
    h.store()
    assert h.r.may_read(h.now)
    return h


def test_a_replica_answers_what_nothing_touches_and_waits_for_the_rest() -> None:
    h = leased()
    asked: Any = Asked()
    assert h.r.get_many(asked, [b"a", b"k"], h.now) == ([None, None], [1])
    h.hear("n1", m.COMMIT, TABLET, 3, 1)
    assert asked.answers == {1: b"rrr"}


def test_pending_rows_are_shown_to_nobody() -> None:
    h = leased()
    h.append(3, 1, 3, 1, [Entry.create(TABLET, 3, 2, 20, [[b"c", 1, 0, [2], [b"k"], [b"newer"]]])])
    asked: Any = Asked()
    assert h.r.get_many(asked, [b"k"], h.now) == ([None], [0])
    h.append(3, 2, 3, 1, [Entry.create(TABLET, 3, 3, 30, [[b"c", 1, 0, [3], [b"k"], [b"newest"]]])])
    h.hear("n1", m.COMMIT, TABLET, 3, 2)
    assert asked.answers == {0: b"newer"}, "as of the end of the log when it arrived"


def test_committed_rows_are_read_before_they_are_stored() -> None:
    h = leased()
    h.hear("n1", m.COMMIT, TABLET, 3, 1)
    assert h.disk.now.rows == {}
    assert h.r.get_many(Asked(), [b"k"], h.now) == ([b"rrr"], [])


def test_no_read_is_answered_without_a_lease() -> None:
    h = leased(pending=False)
    assert h.r.get_many(Asked(), [b"k"], h.now) == ([b"rrr"], [])
    assert h.r.get_many(Asked(), [b"k"], h.now + 6) is None


def test_a_copy_that_is_being_filled_answers_no_reads() -> None:
    h = leased(pending=False)
    records = [[b"a", b"x"]]
    header = [9, 3, 90, 0, 2]
    h.hear("n1", m.SNAPSHOT, TABLET, 3, 5, 0, "rows", records, header, m.checksum(records))
    h.beacon(3, 0, 0, request=h.now, seconds=5.0)
    assert not h.r.may_read(h.now)
    h.follower_lease(h.now + 5)
    assert not h.r.may_read(h.now)


@pytest.mark.parametrize("state", ["filling", "suspect"])
def test_a_grant_by_mistake_to_a_copy_that_lacks_entries_gives_no_lease(state: str) -> None:
    h = Hand("n2", CopyMeta(2, promised=3, suspect=state == "suspect"))
    h.do(e.DescriptorSeen(descriptor(*NODES, coordinator="n1", incarnation=11), 4))
    if state == "filling":
        h.hear("n1", m.SNAPSHOT, TABLET, 3, 5, 0, "rows", [], [9, 3, 90, 0, 2], m.checksum([]))
    h.beacon(3, 0, 1, request=h.now, seconds=5.0)
    assert h.r.follower.lease_until < h.now
    h.store()
    assert [x[5] for x in h.sent(m.BEACON_CONFIRM)] == [-1]


def test_waiting_reads_are_bounded_in_number_and_time() -> None:
    limits = replace(Limits(), waiting_reads_count=3)
    h = Hand("n2", limits=limits)
    h.append(3, 0, 0, 0, [entry(1, 3)])
    h.beacon(3, 0, 0, request=h.now, seconds=50.0)
    first: Any = Asked()
    assert h.r.get_many(first, [b"k", b"a"], h.now) == ([None, None], [0])
    assert h.r.get_many(Asked(), [b"k"], h.now) is not None
    assert h.r.get_many(Asked(), [b"k"], h.now) is None
    h.wait(4.9)
    assert first.answers == {}
    h.wait(0.2)
    assert reason(first) == "no_lease"


def test_the_range_that_a_pending_write_touches() -> None:
    h = leased()
    touches = h.r.reads.has_pending_in
    assert touches(b"a", None)
    assert touches(b"k", b"l")
    assert not touches(b"a", b"k")
    assert not touches(b"l", None)
    assert not touches(b"l", b"z")


# ----------------------------------------------------------------------------------- descriptors


def test_descriptors_of_other_formats_are_refused() -> None:
    d = descriptor(*NODES)
    assert Descriptor.decode(d.encode()) == d
    from ackord.wire.frames import packb, unpackb

    fields = unpackb(d.encode())
    for wrong, said in (
        ([1], "'list'"),
        ({**fields, "format": 2}, "2"),
        ({**fields, "format": 0}, "0"),
        ({}, "None"),
    ):
        with pytest.raises(ValueError, match=f"descriptor format {said};"):
            Descriptor.decode(packb(wrong))


def test_a_tablet_is_newborn_until_its_set_was_complete_once() -> None:
    assert replace(descriptor("n1"), epoch=1).is_newborn
    assert not replace(descriptor("n1"), recovered=3).is_newborn
    assert not descriptor("n1", "n2").is_newborn
    assert Member("n1", 1) == Member("n1", 1)
    assert Timing(drift_max=0.2).scale == pytest.approx(1.5)
    assert Timing(drift_max=0.2).promise == pytest.approx(1.55)
