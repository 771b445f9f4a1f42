"""The `Engine` port in memory, and the disk under it that outlives a process.

A `MemoryDisk` is what a crash leaves: an engine that is opened on it later finds every batch that commit
returned for. Its switches make it fail in the ways that rules R13 and R14 name; nothing here is random, so a
simulated run repeats exactly.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ackord_node.adapters import history_walk
from ackord_node.core.history import Moment, Removable, history_key
from ackord_node.ports import Batch, EngineCorrupt, EngineError, EngineFailed, EngineFull, EngineLocked

Key = TypeVar("Key", int, bytes)
Records = list[tuple[bytes, bytes]]


class SortedMap(Generic[Key]):
    """Keys in order with their values; ``share`` is a view that stays as it is while this one changes."""

    def __init__(self) -> None:
        self._values: dict[Key, bytes] = {}
        self._keys: list[Key] = []
        self._is_shared = False

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, key: Key) -> bytes | None:
        return self._values.get(key)

    def put(self, key: Key, value: bytes | None) -> None:
        """Sets the key, or deletes it if there is no value."""
        self._own()
        if value is None:
            if self._values.pop(key, None) is not None:
                del self._keys[bisect_left(self._keys, key)]
            return
        if key not in self._values:
            self._keys.insert(bisect_left(self._keys, key), key)
        self._values[key] = value

    def keep(self, start: Key | None, end: Key | None) -> None:
        """Deletes every key that is not in start <= key < end; None is no bound."""
        low, high = self._slice(start, end)
        if low == 0 and high == len(self._keys):
            return
        self._own()
        for dropped in (self._keys[:low], self._keys[high:]):
            for key in dropped:
                del self._values[key]
        del self._keys[high:]
        del self._keys[:low]

    def items(self, start: Key | None, end: Key | None, reverse: bool = False) -> Iterator[tuple[Key, bytes]]:
        low, high = self._slice(start, end)
        positions = range(high - 1, low - 1, -1) if reverse else range(low, high)
        for position in positions:
            key = self._keys[position]
            yield key, self._values[key]

    def bounds(self) -> tuple[Key, Key] | None:
        return (self._keys[0], self._keys[-1]) if self._keys else None

    def share(self) -> SortedMap[Key]:
        view: SortedMap[Key] = SortedMap()
        view._values, view._keys = self._values, self._keys
        view._is_shared = self._is_shared = True
        return view

    def cursor(self: SortedMap[bytes]) -> MapCursor:
        return MapCursor(self._keys, self._values)

    def _own(self) -> None:
        if self._is_shared:
            self._values, self._keys = dict(self._values), list(self._keys)
            self._is_shared = False

    def _slice(self, start: Key | None, end: Key | None) -> tuple[int, int]:
        low = 0 if start is None else bisect_left(self._keys, start)
        high = len(self._keys) if end is None else bisect_left(self._keys, end)
        return low, max(low, high)


class MapCursor:
    """A position in a map that does not change meanwhile."""

    def __init__(self, keys: list[bytes], values: dict[bytes, bytes]) -> None:
        self._keys = keys
        self._values = values
        self._at = len(keys)

    def seek(self, raw: bytes) -> None:
        self._at = bisect_left(self._keys, raw)

    def seek_back(self, raw: bytes) -> None:
        self._at = bisect_right(self._keys, raw) - 1

    def to_last(self) -> None:
        self._at = len(self._keys) - 1

    def key(self) -> bytes | None:
        return self._keys[self._at] if 0 <= self._at < len(self._keys) else None

    def value(self) -> bytes:
        return self._values[self._keys[self._at]]

    def next(self) -> None:
        self._at += 1


@dataclass(slots=True)
class _Copy:
    """What is stored of one tablet."""

    meta: bytes | None = None
    log: SortedMap[int] = field(default_factory=SortedMap)
    rows: SortedMap[bytes] = field(default_factory=SortedMap)
    requests: SortedMap[bytes] = field(default_factory=SortedMap)
    history: SortedMap[bytes] = field(default_factory=SortedMap)

    def clear(self) -> None:
        self.log, self.rows, self.requests = SortedMap(), SortedMap(), SortedMap()
        self.history = SortedMap()


class MemoryDisk:
    """One node's disk, with the ways in which it can fail.

    ``full``: commits raise EngineFull, reads go on. ``fail_fsync``: commits raise EngineFailed; their
    batches stay unsynced until `crash` decides about them. ``corrupt_next``: the next read of these tablets
    finds them corrupt, and so does every later one until the tablet is cleared. ``is_void``: the whole store
    is lost. ``is_suspect``: the next open finds the log's end damaged. ``free`` is what free_bytes reports.
    """

    def __init__(self, free: int = 1 << 40) -> None:
        self.full = False
        self.fail_fsync = False
        self.corrupt_next: set[int] = set()
        self.is_void = False
        self.is_suspect = False
        self.free = free
        self.commits = 0
        self.node: dict[str, bytes] = {}
        self.copies: dict[int, _Copy] = {}
        self.unsynced: list[Batch] = []
        self.opened_by: MemoryEngine | None = None

    def crash(self, keeps_unsynced: bool = False) -> None:
        """The process is gone. Batches that commit did not return for are lost, or by chance on disk."""
        if self.opened_by is not None:
            self.opened_by.close()
        if keeps_unsynced:
            for batch in self.unsynced:
                self.apply(batch)
        self.unsynced.clear()

    def wipe(self) -> None:
        """A new, empty disk in the place of this one."""
        self.crash()
        self.node.clear()
        self.copies.clear()
        self.corrupt_next.clear()
        self.is_void = self.is_suspect = False

    def copy(self, tablet: int) -> _Copy:
        return self.copies.setdefault(tablet, _Copy())

    def apply(self, batch: Batch) -> None:
        """The batch in the port's order."""
        for tablet in batch.clear:
            self.copy(tablet).clear()
        for tablet in batch.forget:
            self.copies.pop(tablet, None)
        self.corrupt_next.difference_update(batch.clear, batch.forget)
        for tablet, index in batch.cut:
            self.copy(tablet).log.keep(None, index)
        for tablet, index in batch.trim:
            self.copy(tablet).log.keep(index, None)
        for tablet, meta in batch.meta.items():
            self.copy(tablet).meta = meta
        for tablet, index, record in batch.log:
            self.copy(tablet).log.put(index, record)
        for tablet, key, row in batch.rows:
            self.copy(tablet).rows.put(key, row)
        for tablet, client, request in batch.requests:
            self.copy(tablet).requests.put(client, request)
        for tablet, key, version, row in batch.history:
            self.copy(tablet).history.put(history_key(key, version, row is None), row or b"")
        for tablet, key, version, is_deletion in batch.history_drop:
            self.copy(tablet).history.put(history_key(key, version, is_deletion), None)
        self.node.update(batch.node)


class MemoryEngine:
    """An engine over a `MemoryDisk`; several may follow each other on one disk, as processes do."""

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        self.disk = MemoryDisk() if disk is None else disk
        self.suspect = False

    def open(self) -> None:
        if self.disk.opened_by is not None:
            raise EngineLocked("the disk is open in another engine")
        if self.disk.is_void:
            raise EngineCorrupt("the store failed its checksum")
        self.suspect = self.disk.is_suspect
        self.disk.opened_by = self

    def close(self) -> None:
        if self.disk.opened_by is self:
            self.disk.opened_by = None

    def clear_suspicion(self) -> None:
        """Ends ``suspect`` durably: every copy is refilled, or its own metadata says that it must be."""
        self.disk.is_suspect = self.suspect = False

    def commit(self, batch: Batch) -> None:
        disk = self._opened()
        if disk.full:
            raise EngineFull("no space left on the disk")
        if disk.fail_fsync:
            disk.unsynced.append(batch)
            raise EngineFailed("fsync of the log failed")
        disk.apply(batch)
        disk.commits += 1

    def node_facts(self) -> dict[str, bytes]:
        return dict(self._opened().node)

    def metas(self) -> dict[int, bytes]:
        copies = sorted(self._opened().copies.items())
        return {tablet: copy.meta for tablet, copy in copies if copy.meta is not None}

    def get(self, tablet: int, key: bytes) -> bytes | None:
        return self._copy(tablet).rows.get(key)

    def get_many(self, tablet: int, keys: Sequence[bytes]) -> list[bytes | None]:
        rows = self._copy(tablet).rows
        return [rows.get(key) for key in keys]

    def scan(
        self, tablet: int, start: bytes, end: bytes | None, reverse: bool, rows_max: int, bytes_max: int
    ) -> tuple[Records, bool]:
        return _read(self._copy(tablet).rows.items(start, end, reverse), rows_max, bytes_max)

    def read_log(self, tablet: int, first: int, count_max: int, bytes_max: int) -> list[tuple[int, bytes]]:
        records: list[tuple[int, bytes]] = []
        size = 0
        for index, record in self._copy(tablet).log.items(first, first + count_max):
            if index != first + len(records) or (records and size >= bytes_max):
                break
            records.append((index, record))
            size += 8 + len(record)
        return records

    def log_bounds(self, tablet: int) -> tuple[int, int] | None:
        return self._copy(tablet).log.bounds()

    def requests(self, tablet: int) -> Records:
        return list(self._copy(tablet).requests.items(None, None))

    def snapshot(self, tablet: int) -> _MemorySnapshot:
        copy = self._copy(tablet)
        spaces = {"rows": copy.rows, "requests": copy.requests, "history": copy.history}
        return _MemorySnapshot(tablet, {name: records.share() for name, records in spaces.items()})

    def history(
        self, tablet: int, key: bytes, version_max: int, count_max: int
    ) -> list[tuple[int, bytes | None]]:
        return history_walk.versions(self._history(tablet), key, version_max, count_max)

    def history_scan(
        self,
        tablet: int,
        start: bytes,
        end: bytes | None,
        reverse: bool,
        as_of: int,
        count_max: int,
        keys_max: int,
        bytes_max: int,
    ) -> tuple[list[Moment], bytes | None]:
        return history_walk.scan(
            self._history(tablet), start, end, reverse, as_of, count_max, keys_max, bytes_max
        )

    def history_excess(
        self, tablet: int, start: bytes, bounds: Removable, keys_max: int, records_max: int
    ) -> tuple[list[tuple[bytes, int, bool]], bytes | None]:
        return history_walk.excess(self._history(tablet), start, bounds, keys_max, records_max)

    def _history(self, tablet: int) -> MapCursor:
        return self._copy(tablet).history.cursor()

    def free_bytes(self) -> int:
        return 0 if self.disk.full else self.disk.free

    def disk_bytes(self) -> int:
        return sum(
            len(value)
            for copy in self._opened().copies.values()
            for values in (
                copy.log.items(None, None),
                copy.rows.items(None, None),
                copy.history.items(None, None),
            )
            for _, value in values
        )

    def _opened(self) -> MemoryDisk:
        if self.disk.opened_by is not self:
            raise EngineFailed("the store is not open")
        return self.disk

    def _copy(self, tablet: int) -> _Copy:
        """The tablet's copy for reading; an absent one reads as empty."""
        disk = self._opened()
        if tablet in disk.corrupt_next:
            raise EngineCorrupt(f"tablet {tablet} failed a checksum", tablet)
        return disk.copies.get(tablet) or _Copy()


class _MemorySnapshot:
    def __init__(self, tablet: int, spaces: dict[str, SortedMap[bytes]]) -> None:
        self._tablet = tablet
        self._spaces = spaces

    def read(self, space: str, after: bytes | None, bytes_max: int) -> tuple[Records, bool]:
        if space not in self._spaces:
            raise EngineError(f"the snapshot of tablet {self._tablet} has ended, or has no {space!r}")
        start = None if after is None else after + b"\0"
        return _read(self._spaces[space].items(start, None), 1 << 62, bytes_max)

    def close(self) -> None:
        self._spaces = {}


def _read(items: Iterator[tuple[bytes, bytes]], count_max: int, bytes_max: int) -> tuple[Records, bool]:
    """Records until one of the maxima is reached, at least one; True if there are no more."""
    records: Records = []
    size = 0
    for key, value in items:
        if len(records) >= count_max or (records and size >= bytes_max):
            return records, False
        records.append((key, value))
        size += len(key) + len(value)
    return records, True
