"""Reads of a replica that is not the coordinator, and of the coordinator (rule R12).

In one step on arrival, without an ``await``: the right to answer is checked and the log's end E is noted. A key
that no pending entry touches is answered at once; any other once the commit point has reached E.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from ackord.errors import VersionCollected
from ackord.wire.messages import row_version
from ackord_node.core.effects import Reply, Responder
from ackord_node.core.history import Moment
from ackord_node.core.state import TabletState


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
        """The row unless it has expired as of the commit point (rule R20)."""
        clock = self._s.clock
        if row is not None and clock.at_commit and clock.hides(row, clock.at_commit):
            return None
        return row

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
        if row is not None and clock.at_end and clock.hides(row, clock.at_end):
            return None
        return row

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
        raise VersionCollected(
            f"the row was written after version {as_of}, or has been deleted, and the table keeps no older versions",
            version=as_of,
        )

    def history(self, key: bytes, before: int, count_max: int) -> list[tuple[int, bytes | None]]:
        """The key's versions below ``before`` that can be read, newest first."""
        s = self._s
        if s.retention is None:
            row = self.committed_row(key)
            return [(row_version(row), row)] if row is not None and row_version(row) < before else []
        recent = s.recent.versions_of(key)
        found = [item for item in recent if item[0] < before]
        below = min(before, recent[-1][0] if recent else before) - 1
        if len(found) < count_max:
            found += s.rows.history(key, below, count_max - len(found))
        readable = []
        for version, row in found[:count_max]:
            at = s.retention.kept(self.moment(key, version), s.clock.at_commit)
            if not at:
                break
            if row is None or self.shown(row) is not None:
                readable.append((version, row))
        return readable

    def has_pending_in(self, start: bytes, end: bytes | None) -> bool:
        return any(start <= key and (end is None or key < end) for key in self._s.overlay.pending)

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
