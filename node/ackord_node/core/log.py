"""The tablet's log: entries, their records on disk and wire, and the part that is kept in memory.

A record is ``crc32 | epoch | index | version | payload``; the checksum covers the tablet's id and all the rest
(rule R14), and is verified whenever a record is read from disk or received. The coordinator
encodes it once; replicas store and forward the same bytes.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from ackord.wire.frames import packb, unpack_known

_HEADER = struct.Struct(">IQQQ")
_REST = struct.Struct(">QQQ")
_TABLET = struct.Struct(">Q")
HEADER_BYTES = _HEADER.size


def index_of(record: bytes) -> int:
    """The index that a record claims; nothing of it is verified."""
    return int.from_bytes(record[12:20], "big")


class RecordCorrupt(ValueError):
    """A log record failed its checksum or is not a record of this tablet and index."""


class Entry:
    """One log entry: the row changes of some writes and what answers their retries.

    ``groups`` is a list of ``[client, registered, floor, seqs, keys, values]``, one for each client:
    ``keys[i]`` None marks a write that was refused and is recorded with the error code ``values[i]``;
    ``values[i]`` None deletes the row. The k-th write of the entry has version ``version + k``. A seventh item,
    where there is one, lists ``[i, row]`` for the writes whose answer carries a row: True stands for ``values[i]``.
    Of a transaction ``keys[i]`` and ``values[i]`` are lists: its rows, which share its version.
    A group ``[None, cutoff]`` collects clients (rule R16; cutoff 0: none), ``[None, 0, clock_ms]`` sets the tablet's
    clock (rule R20). An entry without writes still takes its version, so that no later one is below it.
    """

    __slots__ = ("_changed", "clock_ms", "epoch", "groups", "index", "last_version", "record", "version")

    def __init__(self, epoch: int, index: int, version: int, groups: list[Any], record: bytes) -> None:
        self.epoch = epoch
        self.index = index
        self.version = version
        self.groups = groups
        self.record = record
        count = clock_ms = 0
        for group in groups:
            if group[0] is not None:
                count += len(group[3])
            elif len(group) > 2:
                clock_ms = max(clock_ms, group[2])
        self.last_version = version + max(count, 1) - 1
        self.clock_ms = clock_ms  # the reading of the tablet's clock that it brings (rule R20); 0: none
        self._changed: tuple[list[bytes], list[bytes | None]] | None = None

    @classmethod
    def create(cls, tablet: int, epoch: int, index: int, version: int, groups: list[Any]) -> Entry:
        payload = packb(groups)
        rest = _REST.pack(epoch, index, version)
        crc = zlib.crc32(payload, zlib.crc32(rest, zlib.crc32(_TABLET.pack(tablet))))
        return cls(epoch, index, version, groups, crc.to_bytes(4, "big") + rest + payload)

    @classmethod
    def decode(cls, tablet: int, record: bytes) -> Entry:
        """The entry of a verified record; RecordCorrupt if it fails its checksum."""
        if len(record) < HEADER_BYTES:
            raise RecordCorrupt(f"log record of {len(record)} bytes, at least {HEADER_BYTES} expected")
        crc, epoch, index, version = _HEADER.unpack_from(record)
        if zlib.crc32(memoryview(record)[4:], zlib.crc32(_TABLET.pack(tablet))) != crc:
            raise RecordCorrupt(f"log record (epoch {epoch}, index {index}) failed its checksum")
        try:
            return cls(epoch, index, version, unpack_known(memoryview(record)[HEADER_BYTES:]), record)
        except (ValueError, TypeError, LookupError) as error:
            raise RecordCorrupt(
                f"log record (epoch {epoch}, index {index}) holds no groups: {error}"
            ) from None

    @property
    def changed(self) -> tuple[list[bytes], list[bytes | None]]:
        """The keys and the rows of ``changes``. Worked out once, since each entry is walked four times on every
        node; mostly they are lists that it holds anyway."""
        if self._changed is None:
            groups = self.groups
            if len(groups) == 1 and groups[0][0] is not None and _are_plain(groups[0][4]):
                self._changed = groups[0][4], groups[0][5]
            else:
                changes = list(self.changes())
                self._changed = [key for key, _ in changes], [row for _, row in changes]
        return self._changed

    def changes(self) -> Iterable[tuple[bytes, bytes | None]]:
        """(key, row or None) of every row change, in order."""
        for group in self.groups:
            if group[0] is not None:
                for key, value in zip(group[4], group[5], strict=True):
                    if type(key) is bytes:
                        yield key, value
                    elif key is not None:
                        yield from zip(key, value, strict=True)

    def versions(self) -> Iterable[tuple[bytes, int, bytes | None]]:
        """(key, version, row or None) of every row change, in order."""
        version = self.version
        for group in self.groups:
            if group[0] is not None:
                for at, key in enumerate(group[4]):
                    if type(key) is bytes:
                        yield key, version + at, group[5][at]
                    elif key is not None:
                        for one, row in zip(key, group[5][at], strict=True):
                            yield one, version + at, row
                version += len(group[3])


def _are_plain(keys: list[Any]) -> bool:
    """Whether each write of a group changed one row: none was refused, none is a transaction."""
    return set(map(type, keys)) == {bytes}


class Log:
    """Positions of a copy's log, and its newest entries in memory.

    Indices start at 1. ``trimmed`` is the highest index that is no longer stored (0: none was);
    ``first`` the lowest index held in memory; ``end`` the last index. ``runs`` maps each stored index to
    its entry's epoch: pairs (first index of the run, epoch), so that prefixes can be compared without
    reading old entries.
    """

    __slots__ = ("_bytes", "_marks", "_since_mark", "end", "entries", "first", "runs", "trimmed")

    def __init__(
        self, trimmed: int = 0, runs: Iterable[tuple[int, int]] = ((0, 0),), first: int | None = None
    ) -> None:
        self.trimmed = trimmed
        self.first = trimmed + 1 if first is None else first
        self.end = self.first - 1  # not worked out of the entries: it is asked for dozens of times for each
        self.entries: list[Entry] = []
        self.runs: list[tuple[int, int]] = [(index, epoch) for index, epoch in runs]
        self._bytes = 0
        self._marks: list[int] = []  # an index after every MARK_BYTES of appended records
        self._since_mark = 0

    @property
    def last_epoch(self) -> int:
        """Epoch of the last entry; 0 if there never was one."""
        return self.runs[-1][1]

    def epoch_at(self, index: int) -> int | None:
        """Epoch of the entry at ``index`` (also at ``trimmed``), None if the log does not reach there."""
        if index < self.trimmed or index > self.end:
            return None
        return self.runs[bisect_right(self.runs, (index, 1 << 62)) - 1][1]

    def append(self, entry: Entry) -> None:
        if not self.runs or self.runs[-1][1] != entry.epoch:
            self.runs.append((entry.index, entry.epoch))
        self.entries.append(entry)
        self.end += 1
        size = len(entry.record)
        self._bytes += size
        self._since_mark += size
        if self._since_mark >= MARK_BYTES:
            self._marks.append(entry.index)
            self._since_mark = 0

    def get(self, index: int) -> Entry | None:
        """The entry if it is in memory."""
        offset = index - self.first
        return self.entries[offset] if 0 <= offset < len(self.entries) else None

    def span(self, first: int, last: int) -> list[Entry]:
        """The entries from ``first`` to ``last``, which must be in memory."""
        return self.entries[first - self.first : last + 1 - self.first]

    def cut(self, index: int) -> list[Entry]:
        """Removes the entries from ``index`` on, which must be in memory, and returns them."""
        offset = index - self.first
        if offset < 0:
            raise ValueError(f"cut at {index} below the log's memory, which starts at {self.first}")
        removed = self.entries[offset:]
        del self.entries[offset:]
        self.end = index - 1 if removed else self.end
        self._bytes -= sum(len(e.record) for e in removed)
        while len(self.runs) > 1 and self.runs[-1][0] >= index:
            self.runs.pop()
        self._marks = [m for m in self._marks if m < index]
        return removed

    def release(self, through: int, memory_bytes_max: int) -> None:
        """Drops entries up to ``through`` from memory while it holds more than ``memory_bytes_max``."""
        count = 0
        while self._bytes > memory_bytes_max and self.first + count <= through and count < len(self.entries):
            self._bytes -= len(self.entries[count].record)
            count += 1
        if count:
            del self.entries[:count]
            self.first += count

    def trim_point(self, through: int, disk_bytes_max: int) -> int:
        """Highest index (at most ``through``) below which the log may go so as to keep the newest
        ``disk_bytes_max`` bytes; ``trimmed`` if nothing is to be done."""
        excess = len(self._marks) - disk_bytes_max // MARK_BYTES
        if excess <= 0:
            return self.trimmed
        return max(self.trimmed, min(self._marks[excess - 1], through, self.first - 1))

    def trim(self, through: int) -> None:
        """Forgets indices up to ``through``; the epoch at ``through`` stays known for the prefix check."""
        epoch = self.epoch_at(through)
        if epoch is None:
            raise ValueError(f"trim to {through} outside of the log ({self.trimmed}, {self.end}]")
        self.runs = [(through, epoch)] + [r for r in self.runs if r[0] > through]
        self.trimmed = through
        self._marks = [m for m in self._marks if m > through]

    def reset(self, index: int, epoch: int) -> None:
        """An empty log that goes on after ``index`` (a snapshot was installed)."""
        self.trimmed, self.first, self.end, self.entries = index, index + 1, index, []
        self.runs = [(index, epoch)]
        self._bytes = self._since_mark = 0
        self._marks = []


MARK_BYTES = 256 * 1024
