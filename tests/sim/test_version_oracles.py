"""The oracles of versions, cells and expiry are able to fail: each is shown what breaks one promise, beside what keeps
it."""

from __future__ import annotations

from typing import Any

import pytest

from ackord.wire.options import TableOptions
from ackord_node.core.history import Retention, history_key
from ackord_node.ports import Batch
from tests.sim.cluster_oracle import CommittedRows, compare_engines
from tests.sim.history import AS_OF, CELLS, CONFLICT, FAILED, GET, OK, PUT, SCAN, SCAN_AS_OF, VERSIONS, Op
from tests.sim.operation_oracles import Committed
from tests.sim.row_events import check_history_keys
from tests.sim.test_oracles import KEY, TABLET, Story, engine
from tests.sim.version_oracles import (
    EPOCH_MS,
    GRACE_MS_SURE,
    VersionsJudge,
    check_cells,
    check_clocks,
    check_expiry,
)

ROWS: dict[int, Any] = {10: {"n": 1}, 20: None, 30: {"n": 3}, 40: {"n": 4}}
OTHER = (1, "b")


def judged(
    op: Op, story: Story, keep_versions: int = 2, grace_ms: int = GRACE_MS_SURE, **options: Any
) -> bool:
    committed = Committed({("load", KEY): ROWS, ("load", OTHER): {15: {"n": 5}}})
    table = TableOptions(keep_versions, **options)
    judge = VersionsJudge(story.history, committed, table, grace_ms, [(0.0, 1)])
    return judge.reports("load", are_reads_judged=True) == []


@pytest.mark.parametrize(
    ("as_of", "seen", "is_good"),
    [
        (10, (10, {"n": 1}), True),
        (19, (10, {"n": 1}), True),
        (25, (None, None), True),
        (5, (None, None), True),
        (99, (40, {"n": 4}), True),
        (25, (10, {"n": 1}), False),
        (35, (40, {"n": 4}), False),
        (35, (30, {"n": 1}), False),
        (35, (None, None), False),
    ],
)
def test_a_read_as_of_a_version(as_of: int, seen: Any, is_good: bool) -> None:
    story = Story()
    op = story.end(story.begin("versions", AS_OF, as_of=as_of), version=seen[0], columns=seen[1])
    assert judged(op, story) is is_good


@pytest.mark.parametrize(
    ("as_of", "options", "is_good"),
    [
        (10, {}, True),
        (35, {}, False),
        (99, {}, False),
        (25, {"keep_versions": 3}, False),
        (5, {"keep_versions": 9}, False),
        (25, {"keep_versions": 3, "grace_ms": 1}, True),
        (25, {"keep_for": 1.0}, False),
    ],
)
def test_what_is_said_to_be_kept_no_longer(as_of: int, options: dict[str, Any], is_good: bool) -> None:
    story = Story()
    op = story.end(story.begin("versions", AS_OF, as_of=as_of), FAILED, error="VersionCollected: ")
    assert judged(op, story, **options) is is_good


def test_a_scan_as_of_a_version_is_the_whole_state_of_then() -> None:
    def seen(*rows: Any, as_of: int = 35) -> bool:
        story = Story()
        op = story.begin("versions", SCAN_AS_OF, None, start=(1,), end=(2,), as_of=as_of)
        return judged(story.end(op, rows=list(rows)), story)

    assert seen((KEY, 30, {"n": 3}), (OTHER, 15, {"n": 5})) and seen((OTHER, 15, {"n": 5}), as_of=25)
    assert not seen((KEY, 30, {"n": 3})) and not seen((KEY, 40, {"n": 4}), (OTHER, 15, {"n": 5}))


@pytest.mark.parametrize(
    ("versions", "limit", "is_good"),
    [
        ([40, 30], 100, True),
        ([40, 30, 20, 10], 100, True),
        ([40], 1, True),
        ([40], 100, False),
        ([40, 20], 100, False),
        ([30, 20], 100, False),
        ([], 100, False),
    ],
)
def test_the_versions_of_a_row(versions: list[int], limit: int, is_good: bool) -> None:
    story = Story()
    story.put(40, {"n": 4})
    op = story.begin("versions", VERSIONS, limit=limit)
    story.end(op, versions=[(version, ROWS[version]) for version in versions])
    assert judged(op, story) is is_good
    story = Story()
    op = story.begin("final", VERSIONS, limit=limit)
    story.end(op, versions=[(version, ROWS[version]) for version in versions])
    assert not judged(op, story) or len(versions) <= 2


@pytest.mark.parametrize(
    ("seen", "is_good"),
    [
        ({"a": [[9, 3], [7, 2]]}, True),
        ({"a": [[9, 3]]}, False),
        ({"a": [[9, 3], [7, 1]]}, False),
        ({}, False),
    ],
)
def test_cells(seen: Any, is_good: bool) -> None:
    story = Story()
    op = story.begin("cells", CELLS, count=2, start_ms=6, end_ms=10)
    story.end(op, version=10, columns=seen)
    rows: CommittedRows = {("load", KEY): {10: {"a": [[11, 4], [9, 3], [7, 2], [6, 1]]}}}
    assert (check_cells(story.history, rows, 4) == []) is is_good
    assert check_cells(story.history, rows, 3)


# --------------------------------------------------------------------------------------- expiry


def expired(at_s: float, version: int | None, kind: str = GET) -> bool:
    """A row of version 10 that expires at 500, by a clock that says so at 10 s."""
    story = Story()
    story.put(10, {"n": 1}, "fleeting")
    story._now = at_s
    op = story.begin("fleeting", kind if kind != CONFLICT else PUT, None if kind == SCAN else KEY)
    if kind == SCAN:
        op.rows = [] if version is None else [(KEY, version, {"n": 1})]
    story.end(op, CONFLICT if kind == CONFLICT else OK, version=version)
    clocks = [(5.0, 499), (10.0, 500)]
    return check_expiry(story.history, "load", {KEY: ({10: 500}, clocks)}) == []


@pytest.mark.parametrize("kind", [GET, SCAN, CONFLICT])
def test_a_row_is_there_until_its_clock_has_reached_its_time(kind: str) -> None:
    assert expired(5.0, 10, kind) and expired(8.5, 10, kind) and expired(20.0, None, kind)
    assert not expired(20.0, 10, kind), "read after its time"
    assert not expired(5.0, None, kind), "gone before it"


def test_a_row_that_has_expired_does_not_come_back() -> None:
    def seen(*versions: int | None) -> bool:
        story = Story()
        story.put(10, {"n": 1}, "fleeting")
        for version in versions:
            story.read(version, None if version is None else {"n": 1}, "fleeting")
        return check_history_keys(story.history, expiring={("load", KEY): [10]}) == []

    assert seen(10, None) and seen(None, None)
    assert not seen(None, 10)


def test_the_clock_follows_the_wall_clocks() -> None:
    def followed(reading: int, *, min_in_sync: int = 2) -> bool:
        expiries: Any = {KEY: ({}, [(3.0, EPOCH_MS + 3_000 + reading)])}
        return check_clocks(expiries, {"n1": 60_000, "n2": 200, "n3": 100}, min_in_sync) == []

    assert followed(0) and followed(200) and followed(60_000, min_in_sync=1)
    assert not followed(1_000), "one clock has jumped"


def test_copies_hold_the_same_versions_but_for_what_each_may_have_removed() -> None:
    key, row = b"\x01", b"r"
    retention = Retention(TableOptions(2), GRACE_MS_SURE)

    def equal(ours: list[int], theirs: list[int], other: bytes = row) -> bool:
        engines = {"n1": engine({}, [], 0), "n2": engine({}, [], 0)}
        for name, versions, value in (("n1", ours, row), ("n2", theirs, other)):
            engines[name].commit(Batch(history=[(TABLET, key, version, value) for version in versions]))
        return compare_engines(engines, [TABLET], retention) == []

    assert history_key(key, 2, False) < history_key(key, 1, False)
    assert equal([1, 2, 3], [1, 2, 3]) and equal([1, 2, 3], [2, 3])
    assert not equal([1, 2, 3], [3]) and not equal([2, 3], [3, 4]) and not equal([2, 3], [2, 3], b"x")
