"""Reads of a replica that is not the coordinator, and of the coordinator (rule R12).

In one step on arrival, without an ``await``: the right to answer is checked and the log's end E is noted. A key
that no pending entry touches is answered at once; any other once the commit point has reached E.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ackord.errors import InvalidRequest, VersionCollected
from ackord.wire.messages import row_version
from ackord_node.core.cells import cells_of, plain_row, single_cells
from ackord_node.core.effects import Reply, Responder
from ackord_node.core.history import Moment
from ackord_node.core.state import TabletState

RANGE_SLACK = 1_000  # rows beyond those that count, which one look at a range may read


@dataclass(slots=True)
class WaitingRead:
    until_index: int
    request: Responder
    keys: list[bytes]
    indices: list[int]
    expires: float


class Reads:
    def __init__(self, state: TabletState) -> None:
        self._s = state
        self._waiting: deque[WaitingRead] = deque()
        self._waiting_count = 0

    def committed_row(self, key: bytes) -> bytes | None:
        """The row as of the commit point."""
        return self.shown(self._committed(key))

    def _committed(self, key: bytes) -> bytes | None:
        newest = self._s.overlay.unapplied.get(key)
        return newest[1] if newest is not None else self._s.rows.get(key)

    def shown(self, row: bytes | None) -> bytes | None:
        """The row as readers see it: none if it has expired as of the commit point (rule R20), and of columns with
        several cells the newest."""
        clock = self._s.clock
        if row is None or clock.hides(row, clock.at_commit):
            return None
        return plain_row(row) if self._s.options.has_cells else row

    @property
    def shown_part(self) -> Callable[[bytes], bytes | None] | None:
        """What ``shown`` does, None if that is nothing."""
        return self.shown if self._s.clock.at_end or self._s.options.has_cells else None

    def is_expiring(self, row: bytes | None) -> bool:
        """Whether the row expires by a reading of the clock that is not committed yet."""
        clock = self._s.clock
        return row is not None and clock.hides(row, clock.at_end) and not clock.hides(row, clock.at_commit)

    def stored_row(self, key: bytes) -> bytes | None:
        """The row as of the log's end, also if it has expired."""
        newest = self._s.overlay.pending.get(key)
        return newest[1] if newest is not None else self._committed(key)

    def newest_row(self, key: bytes) -> bytes | None:
        """The row as of the log's end: what a write is judged on."""
        row, clock = self.stored_row(key), self._s.clock
        if row is not None and clock.hides(row, clock.at_end):
            return None
        return row

    def newest_rows(self, keys: list[bytes]) -> list[bytes | None]:
        """``newest_row`` of each key."""
        overlay = self._s.overlay
        if any(key in overlay.pending or key in overlay.unapplied for key in keys):
            return [self.newest_row(key) for key in keys]
        clock, clock_ms = self._s.clock, self._s.clock.at_end
        rows = self._s.rows.get_many(keys)
        if not clock_ms:
            return rows
        return [None if row is None or clock.hides(row, clock_ms) else row for row in rows]

    def newest_range(
        self, start: bytes, end: bytes | None, rows_max: int, bytes_max: int
    ) -> list[tuple[bytes, bytes]]:
        """The rows with start <= key < end as of the log's end, in order; if there are more than ``rows_max``, some
        that are more. InvalidRequest if too much would have to be read that does not count, because it expired."""
        s = self._s
        clock, clock_ms = s.clock, s.clock.at_end
        changed: dict[bytes, bytes | None] = {}
        for overlay in (s.overlay.unapplied, s.overlay.pending):
            for key, newest in overlay.items():
                if start <= key and (end is None or key < end):
                    changed[key] = newest[1]
        found = {
            key: row for key, row in changed.items() if row is not None and not clock.hides(row, clock_ms)
        }
        exhausted, looked_count, looked_bytes = False, 0, 0
        while not exhausted and len(found) <= rows_max:
            if looked_count > 2 * rows_max + len(changed) + RANGE_SLACK or looked_bytes > bytes_max:
                raise InvalidRequest(
                    f"the range holds more than {bytes_max} bytes, or too many rows that have expired",
                    field="ranges",
                    limit=bytes_max,
                )
            stored, exhausted = s.rows.range(start, end, rows_max + len(changed) + 1, bytes_max)
            for key, row in stored:
                looked_bytes += len(row)
                if key not in changed and not clock.hides(row, clock_ms):
                    found[key] = row
            looked_count += len(stored)
            start = stored[-1][0] + b"\0" if stored else start
        return sorted(found.items())

    def moment(self, key: bytes, as_of: int) -> Moment:
        """What the key was at ``as_of``, which the commit point has passed."""
        s = self._s
        assert s.retention is not None
        count = s.retention.keep_versions
        return s.recent.over(key, lambda: s.rows.moment(key, as_of, count), as_of, count)

    def row_as_of(self, key: bytes, as_of: int) -> bytes | None:
        """The row at ``as_of``, None if there was none; VersionCollected if that is no longer kept."""
        s = self._s
        if s.retention is not None:
            return self.shown(s.retention.row_at(self.moment(key, as_of), as_of, s.clock.at_commit))
        row = self._committed(key)
        if row is not None and row_version(row) <= as_of:
            return self.shown(row)
        if row is None and as_of >= s.commit_version:
            return None
        raise VersionCollected(
            f"the row was written after version {as_of}, or has been deleted, and the table keeps no older versions",
            version=as_of,
        )

    def cells(self, key: bytes, count_max: int, start_ms: int | None, end_ms: int | None) -> bytes | None:
        """The committed row with lists of cells in its columns; where a table keeps one value of each column, its
        timestamp is that of the row's version."""
        row = self._committed(key)
        if row is None or self.shown(row) is None:
            return None
        return cells_of(row if self._s.options.has_cells else single_cells(row), count_max, start_ms, end_ms)

    def history(
        self, key: bytes, before: int, count_max: int
    ) -> tuple[list[tuple[int, bytes | None]], int, bool]:
        """Up to ``count_max`` of the key's versions below ``before`` that can be read, newest first, with the
        ``before`` for those after them, and whether there are none."""
        s = self._s
        if s.retention is None:
            row = self.committed_row(key)
            is_below = row is not None and row_version(row) < before
            return [(row_version(row), row)] if row is not None and is_below else [], 0, True
        recent = s.recent.versions_of(key)
        found = [item for item in recent if item[0] < before]
        below = min(before, recent[-1][0] if recent else before) - 1
        if len(found) < count_max:
            found += s.rows.history(key, below, count_max - len(found))
        found = found[:count_max]
        kept_count = 0
        if found:
            kept_count = s.retention.kept_count(self.moment(key, found[0][0]), found, s.clock.at_commit)
        readable: list[tuple[int, bytes | None]] = []
        for version, row in found[:kept_count]:
            seen = self.shown(row)
            if row is None or seen is not None:
                readable.append((version, seen))
        below = found[kept_count - 1][0] if kept_count else before
        return readable, below, kept_count < count_max

    def has_pending_in(self, start: bytes, end: bytes | None) -> bool:
        return any(start <= key and (end is None or key < end) for key in self._s.overlay.pending)

    def get_shown(
        self, request: Responder, keys: list[bytes], is_member: bool, expires: float
    ) -> tuple[list[Any], list[int]] | None:
        """`Replica.get_many` where rows are not shown as they are stored: also one waits that a pending reading of
        the clock would hide (rule R20)."""
        pending = self._s.overlay.pending
        rows: list[Any] = []
        late: list[int] = []
        for at, key in enumerate(keys):
            row = None if is_member and key in pending else self.committed_row(key)
            if is_member and (key in pending or self.is_expiring(row)):
                row = None
                late.append(at)
            rows.append(row)
        if late and not self.wait(request, [keys[at] for at in late], late, expires):
            return None
        return rows, late

    def wait(self, request: Responder, keys: list[bytes], indices: list[int], expires: float) -> bool:
        """Answers the keys once the commit point has reached the log's end as of now; False if too many
        wait. With no keys the answer is empty: the asker may go on."""
        if self._waiting_count + len(keys) >= self._s.config.limits.waiting_reads_count:
            return False
        self._waiting.append(WaitingRead(self._s.log.end, request, keys, indices, expires))
        self._waiting_count += max(len(keys), 1)
        return True

    def advance(self) -> None:
        """Answers what the commit point has reached."""
        waiting, commit = self._waiting, self._s.commit
        while waiting and waiting[0].until_index <= commit:
            read = waiting.popleft()
            self._waiting_count -= max(len(read.keys), 1)
            results: list[Any] = [self.committed_row(key) for key in read.keys]
            self._s.out.append(Reply(read.request, read.indices, results))

    def refuse(self, error: list[Any], now: float | None = None) -> None:
        """Refuses those whose time is over, or all (``now`` None): the epoch they were noted in ended."""
        waiting = self._waiting
        while waiting and (now is None or waiting[0].expires <= now):
            read = waiting.popleft()
            self._waiting_count -= max(len(read.keys), 1)
            self._s.out.append(Reply(read.request, read.indices, [error] * max(len(read.keys), 1)))

    @property
    def next_expiry(self) -> float:
        return self._waiting[0].expires if self._waiting else float("inf")
