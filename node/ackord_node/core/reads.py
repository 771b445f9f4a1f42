"""Reads of a replica that is not the coordinator, and of the coordinator (rule R12).

In one step on arrival, without an ``await``: the right to answer is checked and the log's end E is noted. A key
that no pending entry touches is answered at once; any other once the commit point has reached E.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from ackord_node.core.effects import Reply, Responder
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
        newest = self._s.overlay.unapplied.get(key)
        return newest[1] if newest is not None else self._s.rows.get(key)

    def newest_row(self, key: bytes) -> bytes | None:
        """The row as of the log's end: what a write is judged on."""
        newest = self._s.overlay.pending.get(key)
        return newest[1] if newest is not None else self.committed_row(key)

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
