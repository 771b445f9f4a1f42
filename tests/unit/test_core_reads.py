"""Rule R12 at one replica: which state a read is answered from, and what it waits for."""

from __future__ import annotations

from typing import Any

import pytest

from ackord.errors import InvalidRequest
from ackord.wire.frames import packb
from ackord.wire.options import TableOptions
from ackord_node.core import effects as e
from ackord_node.core import messages as m
from ackord_node.core.log import Entry
from ackord_node.core.reads import RANGE_SLACK
from tests.support.core_hand import NODES, TABLET, Asked, Hand, descriptor
from tests.unit.test_core_expiry import EXPIRES_MS, KEY, ROW, reading
from tests.unit.test_core_expiry import member as expiring_member

MANY_BYTES = 1 << 30


def entry(index: int, rows: dict[bytes, bytes | None]) -> Entry:
    group = [b"c", 1, 0, list(range(len(rows))), list(rows), list(rows.values())]
    return Entry.create(TABLET, 3, index, index * 10, [group])


def member(*entries: Entry, commit: int) -> Hand:
    """n2 holds a lease and these entries, committed up to ``commit``; nothing is applied yet."""
    h = Hand("n2")
    h.do(e.DescriptorSeen(descriptor(*NODES, coordinator="n1", incarnation=11), 4))
    h.append(3, 0, 0, commit, list(entries))
    h.beacon(3, commit, 0, request=h.now, seconds=5.0)
    h.forget()
    return h


def test_a_committed_row_is_read_before_the_store_holds_it() -> None:
    h = member(entry(1, {b"a": b"one"}), commit=1)
    assert h.r.get_many(Asked(), [b"other", b"a"], h.now) == ([None, b"one"], [])


def test_a_committed_deletion_hides_the_stored_row() -> None:
    h = member(entry(1, {b"a": b"one", b"b": b"two"}), commit=1)
    h.store()
    h.append(3, 1, 3, 2, [entry(2, {b"a": None})])
    assert h.r.get_many(Asked(), [b"a", b"b"], h.now) == ([None, b"two"], [])


def test_only_the_keys_that_a_pending_entry_touches_wait() -> None:
    h = member(entry(1, {b"a": b"one"}), entry(2, {b"b": b"two"}), commit=1)
    asked = Asked()
    assert h.r.get_many(asked, [b"a", b"b"], h.now) == ([b"one", None], [1])
    h.hear("n1", m.COMMIT, TABLET, 3, 2)
    assert asked.answers == {1: b"two"}


def test_a_read_that_nothing_pending_touches_leaves_nothing_behind() -> None:
    h = member(entry(1, {b"a": b"one"}), entry(2, {b"b": b"two"}), commit=1)
    assert h.r.get_many(Asked(), [b"a"], h.now) == ([b"one"], [])
    h.hear("n1", m.COMMIT, TABLET, 3, 2)
    assert not h.did(e.Reply)


def test_a_row_expires_between_the_commit_point_and_the_logs_end_or_not() -> None:
    h = expiring_member()  # the reading that hides the row is pending
    reads = h.r.reads
    later = ROW.replace(EXPIRES_MS.to_bytes(8, "big"), (EXPIRES_MS + 1).to_bytes(8, "big"))
    assert reads.is_expiring(ROW)
    assert not reads.is_expiring(later)
    assert not reads.is_expiring(None)
    h.hear("n1", m.COMMIT, TABLET, 3, 2)
    assert not reads.is_expiring(ROW), "it has expired"


def test_a_range_holds_pending_and_unapplied_rows_between_its_ends() -> None:
    h = member(entry(1, {b"a": b"1", b"b": b"2", b"c": b"3"}), entry(2, {b"b": None, b"bb": b"4"}), commit=1)

    def keys(start: bytes, end: bytes | None) -> list[bytes]:
        return [key for key, _ in h.r.reads.newest_range(start, end, 10, MANY_BYTES)]

    assert keys(b"", None) == [b"a", b"bb", b"c"]
    assert keys(b"aa", None) == [b"bb", b"c"]
    assert keys(b"a", b"bb") == [b"a"]
    h.hear("n1", m.COMMIT, TABLET, 3, 2)
    h.store()
    assert keys(b"aa", b"c") == [b"bb"]


def test_a_range_holds_no_row_that_has_expired_at_the_logs_end() -> None:
    h = expiring_member()
    assert h.r.reads.newest_range(b"", None, 10, MANY_BYTES) == []
    early = Hand("n2")
    early.append(3, 0, 0, 1, [Entry.create(TABLET, 3, 1, 10, [[b"c", 1, 0, [1], [KEY], [ROW]]])])
    assert early.r.reads.newest_range(b"", None, 10, MANY_BYTES) == [(KEY, ROW)]


def stored_and_expired(rows_count: int) -> Hand:
    rows: dict[bytes, bytes | None] = {b"%06d" % number: ROW for number in range(rows_count)}
    h = member(entry(1, rows), commit=1)
    h.store()
    h.append(3, 1, 3, 2, [reading(2, EXPIRES_MS)])
    h.store()
    return h


@pytest.mark.parametrize(("rows_count", "bytes_max"), [(3 * RANGE_SLACK, MANY_BYTES), (60, 100)])
def test_a_range_is_refused_where_too_much_has_expired_in_it(rows_count: int, bytes_max: int) -> None:
    h = stored_and_expired(rows_count)
    with pytest.raises(InvalidRequest, match="expired"):
        h.r.reads.newest_range(b"", None, 5, bytes_max)


def test_a_range_looks_past_some_rows_that_have_expired() -> None:
    h = stored_and_expired(60)
    rows: Any = h.r.reads.newest_range(b"", None, 5, MANY_BYTES)
    assert rows == []


def test_of_columns_with_several_cells_readers_see_the_newest() -> None:
    version = (10).to_bytes(8, "big")
    h = member(entry(1, {b"a": version + packb({"n": [[7, "new"], [5, "old"]]})}), commit=1)
    h.r.state.options = TableOptions(max_versions=2)
    assert h.r.get_many(Asked(), [b"a"], h.now) == ([version + packb({"n": "new"})], [])


def test_a_range_that_holds_more_rows_than_are_wanted_is_read_no_further() -> None:
    rows: dict[bytes, bytes | None] = {b"%06d" % number: b"row" for number in range(3 * RANGE_SLACK)}
    h = member(entry(1, rows), commit=1)
    h.store()
    found = h.r.reads.newest_range(b"", None, 5, MANY_BYTES)
    assert 5 < len(found) < 20
    assert [key for key, _ in found] == sorted(rows)[: len(found)]


def test_what_an_entry_changed_is_that_of_all_its_groups_in_order() -> None:
    clock, refused = [None, 0, 5], [b"c", 1, 0, [1], [None], [4]]
    one, two = [b"c", 1, 0, [2], [b"a"], [b"1"]], [b"d", 1, 0, [1, 2], [b"b", b"a"], [b"2", None]]
    several = [b"e", 1, 0, [1], [[b"x", b"y"]], [[b"3", b"4"]]]

    def changed(*groups: list[Any]) -> list[tuple[bytes, bytes | None]]:
        keys, rows = Entry.create(TABLET, 3, 1, 10, list(groups)).changed
        return list(zip(keys, rows, strict=True))

    assert changed(one) == [(b"a", b"1")]
    assert changed(two) == [(b"b", b"2"), (b"a", None)]
    assert changed(one, two) == [(b"a", b"1"), (b"b", b"2"), (b"a", None)]
    assert changed(clock) == changed(refused) == []
    assert changed(several) == [(b"x", b"3"), (b"y", b"4")]
    assert changed(clock, one, refused, several) == [(b"a", b"1"), (b"x", b"3"), (b"y", b"4")]
    versions = Entry.create(TABLET, 3, 1, 10, [clock, one, refused, several]).versions()
    assert [(key, version - 10) for key, version, _ in versions] == [(b"a", 0), (b"x", 2), (b"y", 2)]
