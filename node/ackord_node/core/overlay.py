"""Row changes that the log holds and the store does not yet (rule R12).

``pending`` are entries above the commit point, ``unapplied`` committed ones that the engine has not made
durable as rows yet. The state that may be read is: stored rows overlaid with ``unapplied``.
"""

from __future__ import annotations

from ackord_node.core.log import Entry

_MISSING = object()


class Overlay:
    """Both maps hold key -> (index of the newest entry that changes it, row or None if deleted)."""

    __slots__ = ("pending", "unapplied")

    def __init__(self) -> None:
        self.pending: dict[bytes, tuple[int, bytes | None]] = {}
        self.unapplied: dict[bytes, tuple[int, bytes | None]] = {}

    def appended(self, entry: Entry) -> None:
        pending, index = self.pending, entry.index
        for group in entry.groups:
            if group[0] is not None:
                for key, value in zip(group[4], group[5], strict=True):
                    if type(key) is bytes:
                        pending[key] = (index, value)
                    elif key is not None:  # of a transaction
                        pending.update(zip(key, [(index, row) for row in value], strict=True))

    def rebuilt(self, entries: list[Entry]) -> None:
        """``entries`` are all that is pending now, after a cut of the log."""
        self.pending.clear()
        for entry in entries:
            self.appended(entry)

    def committed(self, entry: Entry) -> None:
        pending, unapplied, index = self.pending, self.unapplied, entry.index
        for group in entry.groups:
            if group[0] is None:
                continue
            for key, value in zip(group[4], group[5], strict=True):
                if key is None:
                    continue
                for one, row in ((key, value),) if type(key) is bytes else zip(key, value, strict=True):
                    unapplied[one] = (index, row)
                    newest = pending.get(one)
                    if newest is not None and newest[0] <= index:
                        del pending[one]

    def applied(self, entry: Entry) -> None:
        """The engine holds the entry's rows durably."""
        unapplied, index = self.unapplied, entry.index
        for key, _ in entry.changes():
            newest = unapplied.get(key)
            if newest is not None and newest[0] <= index:
                del unapplied[key]

    def clear(self) -> None:
        self.pending.clear()
        self.unapplied.clear()
