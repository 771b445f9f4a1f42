"""Rows that this process keeps of one table, and what it must not keep (rule R19). Pure: the clock is an argument.

A row is kept under the lease of the node that granted it, and may be answered while that lease stands. What a node
told to be dropped leaves a floor for its key: a row that was read as of an earlier version, and comes late, is not
kept. Floors are needed as long as an answer that was asked for before them could still carry a lease; where they
would be too many, one floor for all keys takes the place of the oldest.

Bounded in rows and bytes. The row that was not used for longest goes first, roughly: a use only sets a mark, which
spares the row once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from ackord.row import Row
from ackord.wire.limits import check_bounds

ENTRY_BYTES: Final = 400  # beside key and row, about
NEVER: Final = float("-inf")


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """Bounds of what one process keeps of one table."""

    rows_max: int = 50_000
    bytes_max: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        check_bounds("cache", self)


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What a cache did since it was made, and what it holds."""

    hits: int
    misses: int
    invalidations: int  # rows that a node told to drop, because somebody wrote them
    evictions: int  # rows that went for lack of room
    rows: int
    bytes: int


class Lease:
    """A node's grant of one tablet's rows. ``check_at``, which is never after ``until``: up to then a row under this
    lease is answered without looking at anything else."""

    __slots__ = ("check_at", "node", "number", "renew_at", "seq", "tablet", "until")

    def __init__(self, node: str, tablet: int, number: int) -> None:
        self.node = node
        self.tablet = tablet
        self.number = number
        self.until = self.check_at = self.renew_at = NEVER
        self.seq = 0  # the node's last message under this number


class Kept:
    """One row, None if the node said that there is none. ``names`` are the keys as callers gave them."""

    __slots__ = ("as_of", "encoded", "is_used", "lease", "names", "row", "size")

    def __init__(self, encoded: bytes, row: Row | None, lease: Lease, as_of: int, size: int) -> None:
        self.encoded = encoded
        self.row = row
        self.lease = lease
        self.as_of = as_of
        self.size = size
        self.is_used = False
        self.names: list[Any] = []


class RowCache:
    """``names`` maps keys as callers give them to what is kept; it is the same dict for as long as this lives."""

    def __init__(self, options: CacheOptions, lease_s_max: float) -> None:
        """``lease_s_max``: no lease is longer."""
        self.options = options
        self.names: dict[Any, Kept] = {}
        self.hits = 0
        self.misses = 0
        self.invalidations = 0
        self.evictions = 0
        self._lease_s_max = lease_s_max
        self._kept: dict[bytes, Kept] = {}
        self._bytes = 0
        self._floors: dict[bytes, tuple[int, float]] = {}  # key -> (version, when it was told), oldest first
        self._floor = 0  # of all keys

    @property
    def stats(self) -> CacheStats:
        return CacheStats(
            self.hits, self.misses, self.invalidations, self.evictions, len(self._kept), self._bytes
        )

    def find(self, encoded: bytes, name: Any, now: float) -> Kept | None:
        """What is kept of a key, and found under ``name`` from now on; None if it may not be answered."""
        kept = self._kept.get(encoded)
        if kept is None or kept.lease.until <= now:
            return None
        self._call(kept, name)
        return kept

    def keep(
        self, encoded: bytes, names: tuple[Any, ...], raw: bytes | None, lease: Lease, as_of: int, now: float
    ) -> None:
        """A row that was read as of the version ``as_of``. ``names[0]`` is its key as a tuple."""
        if lease.until <= now or as_of < self._floor or as_of < self._floors.get(encoded, (0, 0.0))[0]:
            return
        before = self._kept.get(encoded)
        if before is not None:
            if before.as_of > as_of and before.lease.until > now:
                return
            self._drop(before)
        size = ENTRY_BYTES + len(encoded) + (0 if raw is None else len(raw))
        row = None if raw is None else Row(names[0], raw)
        kept = self._kept[encoded] = Kept(encoded, row, lease, as_of, size)
        self._bytes += size
        for name in names:
            self._call(kept, name)
        self._make_room()

    def told(self, keys: list[bytes], version: int, now: float) -> None:
        """A node wants these dropped: what comes will have this version."""
        for encoded in keys:
            kept = self._kept.get(encoded)
            if kept is not None:
                self._drop(kept)
                self.invalidations += 1
            if version:
                before, _ = self._floors.pop(encoded, (0, 0.0))
                self._floors[encoded] = (max(before, version), now)
        self._forget_floors(now)

    def clear(self) -> None:
        for kept in list(self._kept.values()):
            self._drop(kept)

    def _forget_floors(self, now: float) -> None:
        floors = self._floors
        while floors:
            encoded, (version, at) = next(iter(floors.items()))
            is_over = at + self._lease_s_max < now  # what was asked for before it has no lease any more
            if not is_over and len(floors) <= self.options.rows_max:
                return
            del floors[encoded]
            if not is_over:
                self._floor = max(self._floor, version)

    def _call(self, kept: Kept, name: Any) -> None:
        try:
            known = self.names.get(name)
        except TypeError:  # a list, for example: it is found by its encoded form
            return
        if known is not kept:
            self.names[name] = kept
            kept.names.append(name)

    def _drop(self, kept: Kept) -> None:
        del self._kept[kept.encoded]
        self._bytes -= kept.size
        for name in kept.names:
            if self.names.get(name) is kept:
                del self.names[name]

    def _make_room(self) -> None:
        options, all_kept = self.options, self._kept
        while len(all_kept) > options.rows_max or self._bytes > options.bytes_max:
            oldest = next(iter(all_kept.values()))
            if oldest.is_used and len(all_kept) > 1:
                oldest.is_used = False
                all_kept[oldest.encoded] = all_kept.pop(oldest.encoded)
            else:
                self._drop(oldest)
                self.evictions += 1
