"""What a batch deletes from the logs, at a cost that fits: nothing for nothing.

RocksDB cannot tell cheaply what a range holds, and each range tombstone burdens later reads. So the engine
remembers each log's first and last index, skips cuts and trims that touch nothing, deletes a few records one
by one and many by one range. The bounds of a batch are planned first and adopted once it is durable.
"""

from __future__ import annotations

from rocksdict import Rdict

from ackord_node.adapters.engine_rocksdb_read import (
    INDEX_MAX,
    first_key,
    last_key,
    log_index,
    log_key,
    tablet_end,
)
from ackord_node.ports import Batch, EngineCorrupt

Bounds = tuple[int, int] | None

# Each new range tombstone makes the next read of the log sort all those of the memtable again (25 ms with
# 2000 of them), so they are kept for deletions so large that a memtable cannot hold many of them.
_SINGLE_DELETES_MAX = 1024


def stored_bounds(log: Rdict, tablet: int, first: int = 0, last: int = INDEX_MAX) -> Bounds:
    """(first, last) index present in the stored log within first..last."""
    start = log_key(tablet, first)
    upper = tablet_end(tablet) if last == INDEX_MAX else log_key(tablet, last + 1)
    lowest = first_key(log, start, upper)
    if lowest is None:
        return None
    highest = last_key(log, start, upper)
    if highest is None:
        raise EngineCorrupt(f"the log of tablet {tablet} has a first record but no last one", tablet)
    return log_index(lowest), log_index(highest)


class LogChanges:
    """The log deletions of one batch and the bounds that hold after it."""

    def __init__(self, log: Rdict, known: dict[int, Bounds]) -> None:
        self.singles: list[bytes] = []
        self.ranges: list[tuple[bytes, bytes]] = []
        self._log = log
        self._known = known
        self._planned: dict[int, Bounds] = {}

    def plan(self, batch: Batch) -> None:
        """Works out the deletions in the port's order: clear, forget, cut, trim, then the new records."""
        for tablet in (*batch.clear, *batch.forget):
            self._planned[tablet] = None
        for tablet, index in batch.cut:
            self._keep(tablet, 0, index - 1)
        for tablet, index in batch.trim:
            self._keep(tablet, index, INDEX_MAX)
        for tablet, index, _ in batch.log:
            bounds = self._bounds(tablet)
            if bounds is None:
                self._planned[tablet] = (index, index)
            elif index > bounds[1]:
                self._planned[tablet] = (bounds[0], index)
            elif index < bounds[0]:
                self._planned[tablet] = (index, bounds[1])

    def adopt(self) -> None:
        """The batch is durable: its bounds are the known ones."""
        self._known.update(self._planned)

    def _bounds(self, tablet: int) -> Bounds:
        if tablet in self._planned:
            return self._planned[tablet]
        if tablet not in self._known:
            self._known[tablet] = stored_bounds(self._log, tablet)
        return self._known[tablet]

    def _keep(self, tablet: int, first: int, last: int) -> None:
        """Keeps first..last of the log and deletes the rest; one of the two is open."""
        bounds = self._bounds(tablet)
        if bounds is None or (first <= bounds[0] and last >= bounds[1]):
            return
        if last < bounds[1]:
            self._delete(tablet, max(last + 1, bounds[0]), bounds[1])
        else:
            self._delete(tablet, bounds[0], min(first - 1, bounds[1]))
        first, last = max(first, bounds[0]), min(last, bounds[1])
        self._planned[tablet] = None if first > last else self._present(tablet, first, last)

    def _present(self, tablet: int, first: int, last: int) -> Bounds:
        """first..last narrowed to records that exist; a log without gaps needs no search."""
        if (
            self._log.get(log_key(tablet, first)) is not None
            and self._log.get(log_key(tablet, last)) is not None
        ):
            return first, last
        return stored_bounds(self._log, tablet, first, last)

    def _delete(self, tablet: int, first: int, last: int) -> None:
        if last - first < _SINGLE_DELETES_MAX:
            self.singles.extend(log_key(tablet, index) for index in range(first, last + 1))
        else:
            end = tablet_end(tablet) if last == INDEX_MAX else log_key(tablet, last + 1)
            self.ranges.append((log_key(tablet, first), end))
