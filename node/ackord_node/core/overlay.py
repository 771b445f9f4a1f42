"""Row changes that the log holds and the store does not yet (rule R12).

``pending`` are entries above the commit point, ``unapplied`` committed ones that the engine has not made
durable as rows yet. The state that may be read is: stored rows overlaid with ``unapplied``.
"""

from __future__ import annotations

from itertools import repeat

from ackord_node.core.log import Entry

Changes = dict[bytes, tuple[int, bytes | None]]


class Overlay:
    """Both maps hold key -> (index of the newest entry that changes it, row or None if deleted)."""

    __slots__ = ("pending", "unapplied")

    def __init__(self) -> None:
        self.pending: Changes = {}
        self.unapplied: Changes = {}

    def appended(self, entry: Entry) -> None:
        keys, rows = entry.changed
        self.pending.update(zip(keys, zip(repeat(entry.index), rows, strict=False), strict=True))

    def rebuilt(self, entries: list[Entry]) -> None:
        """``entries`` are all that is pending now, after a cut of the log."""
        self.pending.clear()
        for entry in entries:
            self.appended(entry)

    def committed(self, entry: Entry) -> None:
        keys, rows = entry.changed
        self.unapplied.update(zip(keys, zip(repeat(entry.index), rows, strict=False), strict=True))
        _forget(self.pending, keys, entry.index)

    def applied(self, entry: Entry) -> None:
        """The engine holds the entry's rows durably."""
        _forget(self.unapplied, entry.changed[0], entry.index)

    def clear(self) -> None:
        self.pending.clear()
        self.unapplied.clear()


def _forget(changes: Changes, keys: list[bytes], index: int) -> None:
    """What the entry at ``index`` said of the keys; a later one that changes them is kept."""
    for key in keys:
        newest = changes.get(key)
        if newest is not None and newest[0] <= index:
            del changes[key]
