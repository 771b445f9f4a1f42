"""Three-way merge of a row: the base version, the current row, and the new one, column by column.

Changed on one side only: that side's value. Changed on both: the table's rule for the column.

==========  =========================================================================================
latest      the new one's value (or deletion)
max, min    the greater or lesser of both values; a deletion loses against a value
sum         current + (new - base): both changes count, also when they are the same; absent counts as 0
union       lists as sets: what either side added is there, what either side removed is not; in order
append      current, then what the new one has beyond the base; the new one must begin with the base
no rule     nothing to do if both made the same change, else Conflict names the column
==========  =========================================================================================

A deletion of a column is a change to "absent", and a deleted row is one without columns: a row that was deleted
meanwhile stays deleted if the new one changed nothing, and lives again where the rules make values. Values are the
same only if their encoding is: 1, 1.0 and True are three. All of it is a function of its arguments alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from ackord.errors import Conflict
from ackord.wire.frames import packb
from ackord.wire.keys import INT64_MAX, INT64_MIN

ABSENT: Final[Any] = type("Absent", (), {"__slots__": ()})()
_RANKS: Final = {type(None): 0, bool: 1, int: 2, float: 2, str: 3, bytes: 4}
_PLAIN: Final = frozenset((int, str, bytes))
Columns = Mapping[str, Any]


class _Undecided(Exception):
    """The rule does not fit these values."""


def merge_columns(base: Columns, current: Columns, new: Columns, rules: Mapping[str, str]) -> dict[str, Any]:
    """The merged columns: the current row's first, in their order. Conflict names the columns that both changed and no
    rule decides."""
    merged: dict[str, Any] = {}
    undecided: list[str] = []
    for name in dict.fromkeys((*current, *new)):
        b, c, n = (row.get(name, ABSENT) for row in (base, current, new))
        try:
            value = _merged(b, c, n, rules.get(name))
        except _Undecided:
            undecided.append(name)
            continue
        if value is not ABSENT:
            merged[name] = value
    if undecided:
        names = ", ".join(repr(name) for name in undecided[:10])
        raise Conflict(
            f"both sides changed {names}, and no merge rule decides", condition="merge", columns=undecided
        )
    return merged


def _merged(b: Any, c: Any, n: Any, rule: str | None) -> Any:
    if is_same(n, b):
        return c
    if is_same(c, b):
        return n
    if rule == "latest":
        return n
    if rule is None or rule not in _RULES:
        if is_same(c, n):
            return c
        raise _Undecided
    if c is ABSENT and n is ABSENT:
        return ABSENT
    return _RULES[rule](b, c, n)


def is_same(a: Any, b: Any) -> bool:
    if a is ABSENT or b is ABSENT:
        return a is b
    return packb(a) == packb(b)


def _extreme(c: Any, n: Any, sign: int) -> Any:
    if c is ABSENT or n is ABSENT:
        return n if c is ABSENT else c
    if isinstance(c, bool) or isinstance(n, bool) or _RANKS.get(type(c), 0) < 2:
        raise _Undecided
    if _RANKS[type(c)] != _RANKS.get(type(n)) or c != c or n != n:
        raise _Undecided
    if c == n:
        return min(c, n, key=packb)  # 1 and 1.0, 0.0 and -0.0: the same one whichever came first
    return c if (c > n) == (sign > 0) else n


def _sum(b: Any, c: Any, n: Any) -> Any:
    values = [0 if value is ABSENT else value for value in (b, c, n)]
    if any(type(value) not in (int, float) for value in values):
        raise _Undecided
    base, current, new = values
    total = current + (new - base)
    if type(total) is int:
        if not INT64_MIN <= total <= INT64_MAX:
            raise _Undecided
    elif not math.isfinite(total):
        raise _Undecided
    return total


def _union(b: Any, c: Any, n: Any) -> Any:
    lists = [[] if value is ABSENT else value for value in (b, c, n)]
    if any(type(items) is not list for items in lists):
        raise _Undecided
    kinds = set().union(*(map(type, items) for items in lists))
    if kinds <= _PLAIN:
        return _union_of_plain(lists, kinds)
    base, current, new = ({packb(item): item for item in items} for items in lists)
    removed = (base.keys() - current.keys()) | (base.keys() - new.keys())
    found = {raw: value for raw, value in {**current, **new}.items() if raw not in removed}
    return [found[raw] for raw in sorted(found, key=lambda raw: _order(raw, found[raw]))]


def _union_of_plain(lists: list[list[Any]], kinds: set[type]) -> list[Any]:
    """The same for a fraction of the cost, for values that are the same exactly if they are equal: a merge runs on the
    event loop, and a cell has room for some hundred thousand of them."""
    base, current, new = lists
    before, after = set(base), set(new)
    found = dict.fromkeys(current)  # mostly in order already, which makes the sort cheap
    for item in before - after:
        found.pop(item, None)
    found.update(dict.fromkeys(after - before))
    if len(kinds) < 2:
        return sorted(found)
    return [item for kind in (int, str, bytes) for item in sorted(x for x in found if type(x) is kind)]


def _order(raw: bytes, value: Any) -> tuple[Any, ...]:
    """None, bools, numbers by value, strings, bytes, then lists and maps by their encoding."""
    rank = _RANKS.get(type(value), 5)
    if rank == 5 or value is None or value != value:
        return (rank, 0, raw) if rank == 2 else (rank, raw)
    return (rank, 1, value, raw) if rank == 2 else (rank, value, raw)


def _append(b: Any, c: Any, n: Any) -> Any:
    base, current, new = ([] if value is ABSENT else value for value in (b, c, n))
    if any(type(value) is not list for value in (base, current, new)):
        raise _Undecided
    if not is_same(new[: len(base)], base):
        raise _Undecided
    return current + new[len(base) :]


_RULES: Final[dict[str, Any]] = {
    "max": lambda b, c, n: _extreme(c, n, 1),
    "min": lambda b, c, n: _extreme(c, n, -1),
    "sum": _sum,
    "union": _union,
    "append": _append,
}
