"""One page of a scan at the commit point: stored rows overlaid with what is committed and not applied (R12)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ackord_node.ports import Engine

Rows = list[tuple[bytes, bytes]]


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

    def beyond(self, key: bytes) -> Range:
        """What is left after ``key`` in the scan's direction."""
        if self.reverse:
            return Range(self.start, key, True, self.rows_max, self.bytes_max)
        return Range(key + b"\0", self.end, False, self.rows_max, self.bytes_max)


def page(
    engine: Engine, tablet: int, wanted: Range, unapplied: Mapping[bytes, tuple[int, bytes | None]]
) -> tuple[Rows, bool]:
    """Rows in the scan's order and whether there are no more. A page is empty only at the end."""
    while True:
        stored, exhausted = engine.scan(
            tablet, wanted.start, wanted.end, wanted.reverse, wanted.rows_max, wanted.bytes_max
        )
        rows = _overlaid(stored, exhausted, wanted, unapplied)
        rows, is_cut = _bounded(rows, wanted)
        if rows or exhausted:
            return rows, exhausted and not is_cut
        wanted = wanted.beyond(stored[-1][0])  # all of the page was deleted by entries not applied yet


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
