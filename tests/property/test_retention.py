"""The rule of what can be read of a row's versions: the same whatever a replica has removed, and never a wrong None."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ackord.errors import VersionCollected
from ackord.wire.options import TableOptions
from ackord_node.adapters import history_walk
from ackord_node.adapters.engine_maps import MapCursor
from ackord_node.core.history import Retention, history_key

KEY = b"k\x00\x01"
GRACE_MS = 20
Versions = dict[int, bytes | None]


def cursor(versions: Versions) -> MapCursor:
    stored = {history_key(KEY, version, row is None): row or b"" for version, row in versions.items()}
    return MapCursor(sorted(stored), stored)


def read(retention: Retention, versions: Versions, as_of: int, clock_ms: int) -> Any:
    """The row at ``as_of``, or "collected"."""
    found = history_walk.moment(cursor(versions), KEY, as_of, retention.keep_versions)
    try:
        return retention.row_at(found, as_of, clock_ms)
    except VersionCollected:
        return "collected"


def listing(retention: Retention, versions: Versions, clock_ms: int) -> list[tuple[int, bytes | None]]:
    """The versions that can be read, judged one by one and as a run."""
    run = sorted(versions.items(), reverse=True)
    moments = [
        history_walk.moment(cursor(versions), KEY, version, retention.keep_versions) for version, _ in run
    ]
    one_by_one = [item for item, at in zip(run, moments, strict=True) if retention.kept(at, clock_ms)]
    for at in range(len(run)):
        count = retention.kept_count(moments[at], run[at:], clock_ms)
        assert run[at : at + count] == one_by_one[at:], (clock_ms, versions)
    return one_by_one


@st.composite
def lives(draw: st.DrawFn) -> list[tuple[str, int, bool]]:
    """Steps of a key's life: the clock moves on (often far), or the row is written or deleted."""
    steps = st.tuples(st.sampled_from(["wait", "wait", "write", "delete"]), st.integers(1, 30), st.booleans())
    return draw(st.lists(steps, min_size=3, max_size=25))


options = st.builds(
    TableOptions, keep_versions=st.integers(1, 4), keep_for=st.sampled_from([None, 0.005, 0.015, 0.04])
).filter(lambda o: o.has_history)


@settings(max_examples=300, deadline=None)
@given(options, lives(), st.data())
def test_replicas_agree_whatever_they_removed(table: TableOptions, steps: Any, data: st.DataObject) -> None:
    """``clean`` removes what it may after every step, ``lazy`` a piece of it now and then, ``full`` never."""
    retention = Retention(table, GRACE_MS)
    full: Versions = {}
    clean: Versions = {}
    lazy: Versions = {}
    clock_ms, now_ms, counter = 1_000, 1_000, 0
    for kind, amount, flag in steps:
        if kind == "wait":
            now_ms += amount
            clock_ms = max(clock_ms, now_ms - (amount if flag else 0))
        else:
            counter += 1
            now_ms = max(now_ms, clock_ms)
            version = (now_ms << 16) + counter
            row = None if kind == "delete" else b"row %d" % version
            for store in (full, clean, lazy):
                store[version] = row
        for store, most in ((clean, 1_000), (lazy, amount % 3)):
            found, _ = history_walk.excess(cursor(store), b"", retention.removable(clock_ms), 1, most)
            for _, version, _ in found:
                del store[version]
        as_of = (now_ms - data.draw(st.integers(0, 60)) << 16) + data.draw(st.integers(0, 25))
        as_of = max(as_of, 0)
        answers = [read(retention, store, as_of, clock_ms) for store in (full, clean, lazy)]
        assert answers[0] == answers[1] == answers[2], (as_of, clock_ms, full, clean, lazy)
        listed = [listing(retention, store, clock_ms) for store in (full, clean, lazy)]
        assert listed[0] == listed[1] == listed[2], (clock_ms, full, clean, lazy)
        if answers[0] != "collected":
            older = [version for version in full if version <= as_of]
            assert answers[0] == (full[max(older)] if older else None), "an answer is what was"


@settings(max_examples=150, deadline=None)
@given(options, st.lists(st.integers(0, 40), min_size=1, max_size=10), st.integers(0, 80))
def test_what_is_promised_can_be_read(table: TableOptions, gaps: list[int], waited: int) -> None:
    retention = Retention(table, GRACE_MS)
    now_ms = 1_000
    versions: list[int] = []
    for gap in gaps:
        now_ms += gap
        versions.append((now_ms << 16) + len(versions))
    clock_ms = now_ms + waited
    stored: Versions = dict.fromkeys(versions, b"row")
    found, _ = history_walk.excess(cursor(stored), b"", retention.removable(clock_ms), 1, 1_000)
    for _, version, _ in found:
        del stored[version]
    newest_first = versions[::-1]
    for at, version in enumerate(newest_first):
        is_recent = (
            at > 0 and (newest_first[at - 1] >> 16) + table.keep_for_ms > clock_ms and table.keep_for_ms > 0
        )
        expected = b"row" if at < table.keep_versions or is_recent else "collected"
        assert read(retention, stored, version, clock_ms) == expected
        assert (version in stored) == (expected == b"row")


def test_a_version_that_is_no_longer_kept_is_refused_with_the_oldest_that_is() -> None:
    retention = Retention(TableOptions(keep_versions=2), GRACE_MS)
    versions: Versions = {number << 16: b"row" for number in (100, 200, 300)}
    refused: dict[int, VersionCollected] = {}
    for as_of in (50 << 16, 150 << 16):
        found = history_walk.moment(cursor(versions), KEY, as_of, 2)
        with pytest.raises(VersionCollected) as raised:
            retention.row_at(found, as_of, 10_000)
        refused[as_of] = raised.value
    assert refused[150 << 16].detail["oldest"] == 200 << 16
    nothing = history_walk.moment(cursor({}), KEY, 150 << 16, 2)
    with pytest.raises(VersionCollected) as raised:
        retention.row_at(nothing, 150 << 16, 10_000)
    assert raised.value.detail["oldest"] is None


def test_what_is_kept_by_number_alone_does_not_wait_for_the_clock() -> None:
    assert Retention(TableOptions(keep_versions=2), GRACE_MS).removable(0).superseded_max is None
    assert Retention(TableOptions(keep_for=1), GRACE_MS).removable(5_000).superseded_max is not None
