"""The oracles of transactions, merges, numbers, conditions and versions are able to fail: each is shown a history that
breaks one promise, beside those that keep it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sim.history import (
    CONFLICT,
    FAILED,
    INSERT,
    OK,
    PUT,
    SCAN,
    TRANSACT,
    UNKNOWN,
    UPDATE,
)
from tests.sim.operation_oracles import (
    Committed,
    check_merges,
    check_numbers,
    check_returned,
    check_stamps,
    check_transactions,
)
from tests.sim.oracles import check_conflicts, check_lists
from tests.sim.row_events import check_history_keys
from tests.sim.test_oracles import KEY, Story

OTHER = (1, "b")


def committed(**rows: dict[int, Any]) -> Committed:
    """Key's last part -> version -> columns."""
    return Committed({("load", (1, name)): versions for name, versions in rows.items()})


# --------------------------------------------------------------------------------- transactions


def transaction(outcome: str = OK, version: int | None = 20, error: str = "", **args: Any) -> Story:
    story = Story()
    op = story.begin("transact", TRANSACT, None, **args)
    story.end(op, outcome, error=error if outcome == CONFLICT else "", version=version)
    return story


def test_what_a_transaction_read_stands_until_its_commit() -> None:
    rows = committed(a={10: {"n": 1}, 20: {"n": 2}}, b={12: {"n": 1}, 15: None, 18: {"n": 3}})

    def judged(version: int = 20, **args: Any) -> bool:
        return check_transactions(transaction(version=version, **args).history, rows) == []

    assert judged(reads=[[KEY, 10], [OTHER, 18]], writes=[KEY])
    assert judged(17, reads=[[OTHER, None]], writes=[KEY]) and judged(20, reads=[[KEY, 20]])
    assert not judged(reads=[[OTHER, 12]], writes=[KEY]), "it was deleted and written since"
    assert not judged(reads=[[OTHER, None]], writes=[KEY]) and not judged(20, reads=[[KEY, 10]])
    whole = [[KEY, 10], [OTHER, 18]]
    assert judged(ranges=[[(1,), (2,), whole]], writes=[KEY])
    assert not judged(ranges=[[(1,), (2,), whole[:1]]], writes=[KEY]), "a phantom"
    assert judged(ranges=[[(1,), (1, "b"), whole[:1]]], writes=[KEY])


def test_a_transaction_is_refused_only_if_something_changed() -> None:
    rows = committed(a={10: {"n": 1}}, b={18: {"n": 3}})

    def judged(error: str = "Conflict: 1 rows have changed since", **args: Any) -> bool:
        return check_transactions(transaction(CONFLICT, None, error, **args).history, rows) == []

    assert judged(reads=[[KEY, 10], [OTHER, 12]]) and judged(ranges=[[(1,), (2,), [[KEY, 10]]]])
    assert not judged(reads=[[KEY, 10], [OTHER, 18]]) and not judged(ranges=[[(1,), (1, "b"), [[KEY, 10]]]])
    assert judged("Conflict: if_absent does not hold", reads=[[KEY, 10]])


@pytest.mark.parametrize(
    ("outcome", "a", "b", "is_good"),
    [
        (OK, [20], [20], True),
        (UNKNOWN, [], [], True),
        (UNKNOWN, [20], [20], True),
        (FAILED, [], [], True),
        (OK, [21], [21], False),
        (OK, [20], [], False),
        (UNKNOWN, [20], [21], False),
        (UNKNOWN, [20, 30], [20, 30], False),
        (FAILED, [20], [20], False),
    ],
)
def test_a_transaction_is_done_whole_and_once(
    outcome: str, a: list[int], b: list[int], is_good: bool
) -> None:
    story = Story()
    ops = [story.begin("transact", PUT, key, columns={"by": "c:1"}) for key in (KEY, OTHER)]
    for op in ops:
        story.end(op, outcome, version=20 if outcome == OK else None)
    rows = committed(a={at: {"by": "c:1"} for at in a}, b={at: {"by": "c:1"} for at in b})
    assert (check_stamps(story.history, rows) == []) is is_good


# ------------------------------------------------------------------ conditions and returned rows


@pytest.mark.parametrize(
    ("returning", "found", "is_good"),
    [
        ("old", (10, {"n": 1}), True),
        ("old", (None, None), False),
        ("old", (20, {"n": 2}), False),
        ("new", (20, {"n": 2}), True),
        ("new", (10, {"n": 1}), False),
    ],
)
def test_returned_rows(returning: str, found: Any, is_good: bool) -> None:
    story = Story()
    op = story.begin("conditions", PUT, columns={"n": 2}, returning=returning)
    story.end(op, version=20, found=found)
    rows = committed(a={10: {"n": 1}, 20: {"n": 2}})
    assert (check_returned(story.history, rows) == []) is is_good


def test_a_returned_row_is_a_read_of_it() -> None:
    def judged(found: Any) -> bool:
        story = Story()
        story.put(10, {"n": 1})
        story.put(12, {"n": 2})
        op = story.begin("conditions", PUT, columns={"n": 3}, returning="old")
        story.end(op, version=20, found=found)
        return check_history_keys(story.history) == []

    assert judged((12, {"n": 2}))
    assert not judged((10, {"n": 1})) and not judged((None, None)) and not judged((12, {"n": 1}))


@pytest.mark.parametrize(
    ("where", "holds"),
    [
        (["n", "==", 1], True),
        (["n", ">=", 1], True),
        (["n", "exists", True], True),
        (["m", "exists", False], True),
        (["n", "==", 2], False),
        (["n", ">=", 2], False),
        (["m", "==", 1], False),
        (["n", "exists", False], False),
    ],
)
def test_conditions_on_columns(where: list[Any], holds: bool) -> None:
    def done() -> bool:
        story = Story()
        story.put(10, {"n": 1})
        story.end(story.begin("conditions", PUT, columns={"n": 5}, where=where), version=20)
        return check_history_keys(story.history) == []

    def refused() -> bool:
        story = Story()
        op = story.begin("conditions", PUT, columns={"n": 5}, where=where)
        story.end(op, CONFLICT, version=10, columns={"n": 1})
        return check_conflicts(story.history) == []

    assert (done(), refused()) == (holds, not holds)


# ------------------------------------------------------------------------- lists, sums and sets


@pytest.mark.parametrize(
    ("elements", "is_good"),
    [
        (["a", "b", "c"], True),
        (["a", "b", "c", "u"], True),
        (["c", "a", "b"], False),
        (["a", "b"], False),
        (["a", "b", "c", "c"], False),
    ],
)
def test_what_was_appended_unread_is_there_once_and_in_order(elements: list[str], is_good: bool) -> None:
    story = Story()
    story.end(story.begin("grow", UPDATE, set={}, append={"list": ["a", "b"]}), version=10)
    story.end(story.begin("grow", UPDATE, set={}, append={"list": ["c"]}), version=11)
    story.end(story.begin("grow", UPDATE, set={}, append={"list": ["u"]}), UNKNOWN)
    seen = 11 if len(elements) < 4 else 12
    story.read(seen, {"list": elements})
    assert (check_lists(story.history) == []) is is_good
    assert (check_history_keys(story.history) == []) is is_good


MERGES: dict[str, tuple[int, list[str], bool]] = {
    "all": (7, ["a:3", "b:4"], True),
    "with the unknown one": (12, ["a:3", "b:4", "u:5"], True),
    "an addition lost": (3, ["a:3", "b:4"], False),
    "an addition twice": (11, ["a:3", "b:4"], False),
    "an item lost": (3, ["a:3"], False),
    "what was refused": (13, ["a:3", "b:4", "x:6"], False),
}


@pytest.mark.parametrize("name", MERGES)
def test_merges_from_stale_bases(name: str) -> None:
    total, items, is_good = MERGES[name]
    story = Story()
    story.put(10, {"total": 0, "items": []}, "merge")
    outcomes = [("a:3", 3, OK), ("b:4", 4, OK), ("u:5", 5, UNKNOWN), ("x:6", 6, FAILED)]
    for version, (item, worth, outcome) in enumerate(outcomes, 11):
        added: dict[str, Any] = {"increment": {"total": worth}, "union": {"items": [item]}}
        op = story.begin("merge", UPDATE, set={}, if_exists=True, base=10, **added)
        story.end(op, outcome, version=version if outcome == OK else None)
    seen = 12 if len(items) < 3 else 20
    story.read(seen, {"total": total, "items": items})
    assert (check_merges(story.history) == []) is is_good
    assert (check_history_keys(story.history) == []) is is_good


# ------------------------------------------------------------------------------------- numbers


def numbered(*numbers: int) -> Story:
    story = Story()
    for at, number in enumerate(numbers):
        story.end(story.begin("numbers", INSERT, (1,), columns={"by": f"c:{at}"}), version=number)
    return story


def test_numbers_rise() -> None:
    assert check_numbers(numbered(3, 5, 9).history) == []
    assert check_numbers(numbered(3, 9, 5).history) and check_numbers(numbered(3, 3).history)


@pytest.mark.parametrize(
    ("rows", "is_good"),
    [
        ([((1, 3), 3, "c:0"), ((1, 5), 5, "c:1")], True),
        ([((1, 3), 3, "c:0"), ((1, 5), 5, "c:1"), ((1, 7), 7, "u")], True),
        ([((1, 3), 3, "c:0")], False),
        ([((1, 3), 3, "c:0"), ((1, 5), 5, "c:1"), ((1, 7), 7, "c:1")], False),
        ([((1, 3), 3, "c:0"), ((1, 5), 5, "c:1"), ((1, 7), 7, "x")], False),
        ([((1, 3), 3, "c:0"), ((1, 5), 6, "c:1")], False),
    ],
)
def test_numbered_rows_are_there_once(rows: list[Any], is_good: bool) -> None:
    story = numbered(3, 5)
    story.end(story.begin("numbers", INSERT, (1,), columns={"by": "u"}), UNKNOWN)
    story.end(story.begin("numbers", INSERT, (1,), columns={"by": "x"}), FAILED)
    scan = story.begin("numbers", SCAN, None, start=(1,), end=(2,))
    story.end(scan, rows=[(key, version, {"by": by}) for key, version, by in rows])
    assert (check_numbers(story.history) == []) is is_good


def test_a_numbered_row_that_was_seen_stays() -> None:
    story = Story()
    story.end(story.begin("numbers", INSERT, (1,), columns={"by": "u"}), UNKNOWN)
    row = ((1, 7), 7, {"by": "u"})
    story.end(story.begin("numbers", SCAN, None), rows=[row])
    assert check_history_keys(story.history) == []
    story.end(story.begin("numbers", SCAN, None), rows=[])
    assert check_history_keys(story.history)
