"""Rule R20: rows expire by the tablet's clock, which only the log moves.

The clock T (milliseconds) is replicated state: a control group ``[None, 0, T]`` of an entry raises it, so every
replica hides the same rows at the same index. A row can be read iff it expires after T at the reader's commit
point; a write is judged at T at the log's end. The coordinator appends a new T only when something is to expire.

T is the least of the wall clocks of the coordinator and of every in-sync member, as they tell with their beacon
confirmations; it never goes back, and within one epoch it never runs ahead of BOOTTIME since the epoch's first
reading by more than ``CLOCK_AHEAD_MS``: a jump of one wall clock, or of all of them, deletes nothing.
Rows that T has passed are deleted by ordinary entries, without a client, so that replicas stay identical.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ackord.wire.messages import VERSION_COUNTER_BITS, row_expires_ms, row_version
from ackord.wire.options import TableOptions
from ackord_node.core.effects import ReadRows, RowsRead
from ackord_node.core.log import Entry

if TYPE_CHECKING:
    from ackord_node.core.progress import Progress
    from ackord_node.core.state import TabletState

CLOCK_UNREAD_MS = 1  # a clock that runs, and has not been read yet
CLOCK_AHEAD_MS = 1_000
READ_INTERVAL_S = 1.0  # between two readings that are appended, at least
READ_INTERVAL_MAX_S = 60.0
SWEEP_INTERVAL_S = 0.05  # between two looks at stored rows
NEVER_MS = 1 << 62


class TabletClock:
    """T as of four positions of the log: its end, the commit point, what the store is being given, and what it holds
    for certain."""

    __slots__ = ("at_commit", "at_end", "at_store", "durable", "ttl_ms")

    def __init__(self, options: TableOptions, stored_ms: int) -> None:
        self.ttl_ms = options.ttl_ms
        self.durable = self.at_store = self.at_commit = self.at_end = stored_ms

    def appended(self, entry: Entry) -> None:
        self.at_end = max(self.at_end, entry.clock_ms)

    def committed(self, entry: Entry) -> None:
        self.at_commit = max(self.at_commit, entry.clock_ms)

    def rebuilt(self, pending: list[Entry]) -> None:
        """``pending`` are all entries above the commit point, after a cut of the log."""
        self.at_end = max([self.at_commit, *(entry.clock_ms for entry in pending)])

    def filled(self, clock_ms: int) -> None:
        self.at_store = self.at_commit = self.at_end = clock_ms
        self.durable = 0  # until what comes with it is on disk

    def expiry_of(self, row: bytes) -> int:
        """When the row expires; 0: never."""
        own = row_expires_ms(row)
        if own or not self.ttl_ms:
            return own
        return (row_version(row) >> VERSION_COUNTER_BITS) + self.ttl_ms

    def hides(self, row: bytes, clock_ms: int) -> bool:
        return 0 < self.expiry_of(row) <= clock_ms


class Expiry:
    """The coordinator's part: reads the clock, and sweeps. ``append`` appends an entry of these groups, or says
    that it may not now."""

    def __init__(
        self, state: TabletState, progress: dict[str, Progress], append: Callable[[list[list[Any]]], bool]
    ) -> None:
        self._s = state
        self._progress = progress
        self._append = append
        self._anchor: tuple[int, float] | None = None  # the epoch's first reading, and when it was taken
        self._read_at = 0.0
        self._due_ms = 0  # the earliest expiry of any row, as far as is known; too early rather than too late
        self._cycle_due_ms = NEVER_MS  # the same, of what this cycle has seen
        self._cursor: bytes | None = None  # where the cycle goes on; None: it has not begun
        self._is_reading = False
        self._sweep_at = 0.0

    @property
    def is_on(self) -> bool:
        return self._s.tells_wall

    def wrote(self, row: bytes) -> None:
        """A row is being appended: it may expire before all others."""
        expires = self._s.clock.expiry_of(row)
        if expires:
            self._due_ms = min(self._due_ms, expires)
            self._cycle_due_ms = min(self._cycle_due_ms, expires)

    def tick(self, members: list[str], now: float) -> None:
        """``members``: the nodes of the other in-sync copies."""
        if not self.is_on:
            return
        if now >= self._read_at:
            self._read_clock(members, now)
        if self._has_to_look and now >= self._sweep_at:
            self._look(now)

    def lag_s(self, now: float) -> float:
        """How long ago the first row that is to be deleted may have expired; while that is not known yet, because the
        first cycle of this epoch has not ended, how long this has lasted."""
        if not self.is_on or self._anchor is None:
            return 0.0
        if not self._due_ms:
            return now - self._anchor[1]
        return max(self._s.wall_ms(now) - self._due_ms, 0) / 1000

    @property
    def reads_at(self) -> float:
        """When the clock is read next."""
        return self._read_at if self.is_on else float("inf")

    @property
    def wake_at(self) -> float:
        return self._sweep_at if self._has_to_look else float("inf")

    @property
    def _has_to_look(self) -> bool:
        return self.is_on and self._due_ms <= self._s.clock.at_end and not self._is_reading

    # ------------------------------------------------------------------------------- the clock

    def _read_clock(self, members: list[str], now: float) -> None:
        self._read_at = now + READ_INTERVAL_S
        s = self._s
        reading = s.wall_ms(now)
        for node in members:
            p = self._progress.get(node)
            reading = min(reading, p.wall_ms if p is not None else 0)
        if reading <= 0:
            return  # somebody has not told yet
        if self._anchor is None:
            self._anchor = (reading, now)
        first, since = self._anchor
        reading = min(reading, first + int((now - since) * 1000) + CLOCK_AHEAD_MS)
        if reading > s.clock.at_end and self._is_wanted(reading):
            self._append([[None, 0, reading]])
            if self._due_ms == NEVER_MS:
                self._read_at = now + self._history_interval()

    def _is_wanted(self, reading: int) -> bool:
        """Whether something expires by this reading that the present one leaves."""
        s = self._s
        if self._due_ms <= reading:
            return True
        if s.retention is None:
            return False
        changed_ms = s.last_version >> VERSION_COUNTER_BITS
        return s.clock.at_end <= changed_ms + s.retention.horizon_ms

    def _history_interval(self) -> float:
        keep_for = self._s.options.keep_for
        seconds = READ_INTERVAL_MAX_S if keep_for is None else keep_for / 50
        return min(max(seconds, READ_INTERVAL_S), READ_INTERVAL_MAX_S)

    # ------------------------------------------------------------------------------- the sweep

    def _look(self, now: float) -> None:
        self._is_reading = True
        self._sweep_at = now + SWEEP_INTERVAL_S
        if self._cursor is None:
            self._cursor, self._cycle_due_ms = b"", NEVER_MS
            overlay = self._s.overlay  # what the cycle will not find in the store
            for _, row in (*overlay.unapplied.values(), *overlay.pending.values()):
                if row is not None and (expires := self._s.clock.expiry_of(row)):
                    self._cycle_due_ms = min(self._cycle_due_ms, expires)
        self._s.out.append(ReadRows(self._cursor))

    def rows_read(self, event: RowsRead, newest_row: Callable[[bytes], bytes | None]) -> None:
        """Deletes what has expired at the log's end."""
        self._is_reading = False
        if event.start != self._cursor:
            return
        clock, clock_ms = self._s.clock, self._s.clock.at_end
        gone: list[bytes] = []
        for key, _ in event.rows:
            row = newest_row(key)
            if row is None:
                continue
            if clock.hides(row, clock_ms):
                gone.append(key)
            elif expires := clock.expiry_of(row):
                self._cycle_due_ms = min(self._cycle_due_ms, expires)
        if gone:
            count = len(gone)
            if self._append([[b"", 0, 0, [0] * count, gone, [None] * count]]):
                self._s.upkeep.rows_expired(count)
            else:
                self._cycle_due_ms = min(self._cycle_due_ms, clock_ms)
        self._cursor = event.next
        if event.next is None:
            self._due_ms = self._cycle_due_ms
