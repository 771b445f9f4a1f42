"""The three-way merge: a function of its arguments, in which no side's change is lost and sides can be exchanged."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ackord.errors import Conflict
from ackord.wire.frames import packb
from ackord.wire.options import MERGE_RULES
from ackord_node.core.merge import _union, is_same, merge_columns

NAMES = ["a", "b", "c"]
COMMUTING = ("max", "min", "sum", "union")

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.floats(width=16),
    st.sampled_from(["", "x"]),
    st.binary(max_size=1),
)
values = st.one_of(scalars, st.lists(scalars, max_size=4))
rows = st.dictionaries(st.sampled_from(NAMES), values, max_size=3)
rules = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(MERGE_RULES), max_size=3)


def merged(base: Any, current: Any, new: Any, table: Any) -> Any:
    """The merge, or the columns that it could not decide."""
    try:
        return merge_columns(base, current, new, table)
    except Conflict as conflict:
        return sorted(conflict.detail["columns"])


def same_row(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(is_same(a[name], b[name]) for name in a)
    return bool(a == b)


@given(rows, rows, rows, rules)
def test_it_is_deterministic_and_leaves_its_arguments_alone(
    base: Any, current: Any, new: Any, table: Any
) -> None:
    before = packb([base, current, new])
    first = merged(base, current, new, table)
    assert packb([base, current, new]) == before
    again = merged(
        dict(reversed(base.items())), current, dict(reversed(new.items())), dict(reversed(table.items()))
    )
    assert same_row(first, again)


@given(rows, rows, rules)
def test_a_change_of_one_side_only_is_taken(base: Any, other: Any, table: Any) -> None:
    assert same_row(merged(base, other, base, table), other)
    assert same_row(merged(base, base, other, table), other)


@given(rows, rows, rows, st.dictionaries(st.sampled_from(NAMES), st.sampled_from(COMMUTING), max_size=3))
def test_sides_can_be_exchanged_where_rules_commute(base: Any, left: Any, right: Any, table: Any) -> None:
    assert same_row(merged(base, left, right, table), merged(base, right, left, table))


@given(rows, rows, rows, rules)
def test_a_column_is_undecided_only_if_both_changed_it(base: Any, current: Any, new: Any, table: Any) -> None:
    found = merged(base, current, new, table)
    if isinstance(found, list):
        missing = object()
        for name in found:
            b, c, n = (row.get(name, missing) for row in (base, current, new))
            assert packb_of(b) != packb_of(c) and packb_of(b) != packb_of(n)
            assert table.get(name) != "latest"


def packb_of(value: Any) -> bytes:
    return b"missing" if type(value) is object else packb(value)


@given(st.integers(-100, 100), st.lists(st.integers(-100, 100), min_size=1, max_size=8))
def test_every_addition_counts_however_stale_its_base(start: int, amounts: list[int]) -> None:
    """All read the first version, then write one after the other."""
    base = {"n": start}
    current: dict[str, Any] = dict(base)
    for amount in amounts:
        current = merge_columns(base, current, {"n": start + amount}, {"n": "sum"})
    assert current == {"n": start + sum(amounts)}


@given(
    st.sets(st.integers(0, 20)), st.lists(st.tuples(st.sets(st.integers(0, 20)), st.sets(st.integers(0, 20))))
)
def test_every_added_and_removed_item_counts(
    start: set[int], changes: list[tuple[set[int], set[int]]]
) -> None:
    base = {"s": sorted(start)}
    current: dict[str, Any] = dict(base)
    removed: set[int] = set()
    added: set[int] = set()
    for plus, minus in changes:
        plus, minus = plus - start, minus & start
        new = {"s": sorted((start | plus) - minus)}
        current = merge_columns(base, current, new, {"s": "union"})
        added |= plus
        removed |= minus
    assert current["s"] == sorted((start - removed) | added)


plain_lists = st.lists(
    st.one_of(st.integers(-3, 3), st.text("ab\uffff\U0001f600", max_size=1), st.binary(max_size=1)),
    max_size=5,
)


@given(plain_lists, plain_lists, plain_lists)
def test_a_union_of_plain_values_is_that_of_the_definition(base: Any, current: Any, new: Any) -> None:
    """Numbers, texts and bytes take a shorter way, lists with anything else the general one: another item, which all
    three hold, must make no difference."""
    plain = _union(base, current, new)
    general = _union([None, *base], [None, *current], [None, *new])
    assert general[0] is None and [packb(item) for item in plain] == [packb(item) for item in general[1:]]
    kept = {packb(item) for item in plain}
    before, now, after = ({packb(item) for item in items} for items in (base, current, new))
    assert kept == (now | after) - (before - now) - (before - after)


@given(st.lists(st.integers(0, 99)), st.lists(st.lists(st.integers(0, 99), min_size=1)))
def test_every_appended_item_counts_once_and_in_order(start: list[int], parts: list[list[int]]) -> None:
    base = {"l": start}
    current: dict[str, Any] = dict(base)
    for part in parts:
        current = merge_columns(base, current, {"l": start + part}, {"l": "append"})
    assert current["l"] == start + [item for part in parts for item in part]


@pytest.mark.parametrize(
    ("rule", "base", "current", "new", "expected"),
    [
        ("latest", 1, 2, 3, 3),
        ("max", 1, 2, 3, 3),
        ("max", 1, 3, 2.5, 3),
        ("min", 5, "b", "a", "a"),
        ("sum", 1, 2, 2, 3),
        ("sum", 1.5, 2.5, 3.0, 4.0),
        ("union", [1, "x"], [1, "x", 2], ["x", True], [True, 2, "x"]),
        ("append", [1], [1, 2], [1, 3], [1, 2, 3]),
    ],
)
def test_what_each_rule_makes(rule: str, base: Any, current: Any, new: Any, expected: Any) -> None:
    assert merge_columns({"c": base}, {"c": current}, {"c": new}, {"c": rule}) == {"c": expected}


@pytest.mark.parametrize(
    ("rule", "base", "current", "new"),
    [
        (None, 1, 2, 3),
        (None, 1, 1.0, True),
        ("max", 1, 2, "3"),
        ("max", 1, math.nan, 3),
        ("max", 1, [2], [3]),
        ("sum", 1, "2", 3),
        ("sum", 0, 2**62, 2**63 - 1),
        ("sum", 0.0, 1e308, 1.7e308),
        ("union", [1], 2, [3]),
        ("append", [1], [1, 2], [2, 1]),
        ("append", [1], [1, 2], "x"),
    ],
)
def test_what_no_rule_decides(rule: str | None, base: Any, current: Any, new: Any) -> None:
    table = {} if rule is None else {"c": rule}
    with pytest.raises(Conflict) as caught:
        merge_columns({"c": base}, {"c": current}, {"c": new}, table)
    assert caught.value.detail["columns"] == ["c"]


def test_deletions_are_changes() -> None:
    base = {"keep": 1, "theirs": 1, "ours": 1, "both": 1, "sum": 5, "max": 1, "latest": 1}
    current = {"keep": 1, "ours": 1, "sum": 7, "latest": 2}  # deleted: theirs, both, max
    new = {"keep": 1, "theirs": 1, "max": 3, "latest": 1}  # deleted: ours, both, sum
    table = {"sum": "sum", "max": "max", "latest": "latest"}
    assert merge_columns(base, current, new, table) == {"keep": 1, "sum": 2, "max": 3, "latest": 2}
    assert merge_columns({"a": 1}, {}, {"a": 1}, {}) == {}
    with pytest.raises(Conflict):
        merge_columns({"a": 1}, {}, {"a": 2}, {})
