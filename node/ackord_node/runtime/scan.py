"""One page of a scan at the commit point: stored rows overlaid with what is committed and not applied (R12)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final

from ackord.wire.expressions import Filter, compiled
from ackord.wire.keys import KeySchema
from ackord.wire.limits import Limits
from ackord.wire.values import project
from ackord_node.ports import Engine

Rows = list[tuple[bytes, bytes]]

STEP_ROWS: Final = 2_000  # looked at in one step of the event loop, where few or none may be taken
STEP_BYTES: Final = 1024 * 1024
FILTER_BYTES: Final = (
    256  # of an encoded filter that judges ``STEP_ROWS`` rows in one step; a longer one judges fewer
)
FILTER_ROWS_MIN: Final = 100


@dataclass(frozen=True, slots=True)
class Range:
    """Keys with start <= key < end (None: no bound), and how much of them one page may hold."""

    start: bytes
    end: bytes | None
    reverse: bool
    rows_max: int
    bytes_max: int

    def holds(self, key: bytes) -> bool:
        return self.start <= key and (self.end is None or key < self.end)

    @property
    def next(self) -> bytes | None:
        """Where the scan goes on."""
        return self.end if self.reverse else self.start

    def beyond(self, key: bytes) -> Range:
        """What is left after ``key`` in the scan's direction."""
        if self.reverse:
            return Range(self.start, key, True, self.rows_max, self.bytes_max)
        return Range(key + b"\0", self.end, False, self.rows_max, self.bytes_max)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows of a page are wanted, and what of them."""

    where: Filter | None
    columns: tuple[str, ...] | None
    shown: Callable[[bytes], bytes | None] | None = None  # what of a stored row readers may see (rule R20)
    step_rows: int = STEP_ROWS

    @classmethod
    def of(
        cls,
        where: bytes | None,
        columns: list[str] | None,
        schema: KeySchema,
        limits: Limits,
        shown: Callable[[bytes], bytes | None] | None = None,
    ) -> Selection:
        """From a request; InvalidRequest if the expression is wrong."""
        judge = compiled(where, schema, limits) if where is not None else None
        wanted = None if columns is None else tuple(columns)
        return cls(judge, wanted, shown, step_rows(0 if where is None else len(where)))

    def take(self, key: bytes, row: bytes) -> bytes | None:
        """What is wanted of the row, None if it is not wanted."""
        if self.shown is not None:
            seen = self.shown(row)
            if seen is None:
                return None
            row = seen
        if self.where is not None and not self.where.holds(key, row):
            return None
        return row if self.columns is None else project(row, self.columns)


def step_rows(filter_bytes: int) -> int:
    """How many rows a filter of that length may be asked about before the event loop goes on with other things."""
    return max(FILTER_ROWS_MIN, STEP_ROWS * FILTER_BYTES // max(FILTER_BYTES, filter_bytes))


def page(
    engine: Engine,
    tablet: int,
    wanted: Range,
    unapplied: Mapping[bytes, tuple[int, bytes | None]],
    selection: Selection | None = None,
) -> list[Any]:
    """``[[key, row, key, row, ...], next]`` in the scan's order; ``next`` is where the rest of the range begins
    (backwards: what it ends before), None if there is no more. With a selection a page may be empty before the
    end: it looks at ``step_rows`` rows or ``STEP_BYTES`` bytes at most, however few of them it takes."""
    if selection is None:
        rows, rest = _stretch(engine, tablet, wanted, unapplied)
        return [list(chain.from_iterable(rows)), rest and rest.next]
    found: list[bytes] = []
    size = seen_count = seen_bytes = 0
    rest = wanted
    while rest is not None and seen_count < selection.step_rows and seen_bytes < STEP_BYTES:
        room = 2 * (wanted.rows_max - len(found) // 2) + 32
        part = replace(
            rest, rows_max=min(room, selection.step_rows - seen_count), bytes_max=STEP_BYTES - seen_bytes
        )
        rows, rest = _stretch(engine, tablet, part, unapplied)
        for at, (key, row) in enumerate(rows):
            seen_count += 1
            seen_bytes += len(key) + len(row)
            taken = selection.take(key, row)
            if taken is None:
                continue
            found += (key, taken)
            size += len(key) + len(taken)
            if len(found) >= 2 * wanted.rows_max or size >= wanted.bytes_max:
                if at + 1 < len(rows):
                    rest = wanted.beyond(key)
                return [found, rest and rest.next]
    return [found, rest and rest.next]


def count(
    engine: Engine,
    tablet: int,
    start: bytes,
    end: bytes | None,
    unapplied: Mapping[bytes, tuple[int, bytes | None]],
    selection: Selection,
) -> list[Any]:
    """``[how many rows, next]`` of the first ``step_rows`` rows or ``STEP_BYTES`` bytes of the range."""
    rows, rest = _stretch(
        engine, tablet, Range(start, end, False, selection.step_rows, STEP_BYTES), unapplied
    )
    where = selection.where
    if where is None and selection.shown is None:
        return [len(rows), rest and rest.next]
    number = sum(selection.take(key, row) is not None for key, row in rows)
    return [number, rest and rest.next]


def _stretch(
    engine: Engine, tablet: int, wanted: Range, unapplied: Mapping[bytes, tuple[int, bytes | None]]
) -> tuple[Rows, Range | None]:
    """Rows from the range's beginning and what is left of it. It may be that all of a stretch was deleted by
    entries which are not applied yet."""
    stored, exhausted = engine.scan(
        tablet, wanted.start, wanted.end, wanted.reverse, wanted.rows_max, wanted.bytes_max
    )
    rows = _overlaid(stored, exhausted, wanted, unapplied)
    rows, is_cut = _bounded(rows, wanted) if rows is not stored else (rows, False)
    if exhausted and not is_cut:
        return rows, None
    return rows, wanted.beyond(rows[-1][0] if is_cut else stored[-1][0])


def _overlaid(
    stored: Rows, exhausted: bool, wanted: Range, unapplied: Mapping[bytes, tuple[int, bytes | None]]
) -> Rows:
    if not unapplied:
        return stored
    changed = {key: newest[1] for key, newest in unapplied.items() if wanted.holds(key)}
    if not exhausted and stored:  # what lies beyond this page belongs to the next
        last = stored[-1][0]
        changed = {k: v for k, v in changed.items() if (k >= last if wanted.reverse else k <= last)}
    if not changed:
        return stored
    merged: dict[bytes, bytes | None] = dict(stored)
    merged.update(changed)
    return [(k, v) for k, v in sorted(merged.items(), reverse=wanted.reverse) if v is not None]


def _bounded(rows: Rows, wanted: Range) -> tuple[Rows, bool]:
    """At most ``rows_max`` rows and about ``bytes_max`` bytes; whether something was cut off."""
    size = 0
    for count, (key, row) in enumerate(rows):
        size += len(key) + len(row)
        if count + 1 == len(rows):
            break
        if count + 1 >= wanted.rows_max or size >= wanted.bytes_max:
            return rows[: count + 1], True
    return rows, False
