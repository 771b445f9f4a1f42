"""The `Engine` port in memory, and the disk under it that outlives a process.

A `MemoryDisk` is what a crash leaves: an engine that is opened on it later finds every batch that commit
returned for. Its switches make it fail in the ways that rules R13 and R14 name; nothing here is random, so a
simulated run repeats exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ackord_node.adapters.engine_maps import HistoryReads, MapCursor, SortedMap, StoredMaps, StoreMaps
from ackord_node.ports import Batch, EngineCorrupt, EngineError, EngineFailed, EngineFull, EngineLocked

Records = list[tuple[bytes, bytes]]


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
        self.contents = StoreMaps()
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
        self.contents = StoreMaps()
        self.corrupt_next.clear()
        self.is_void = self.is_suspect = False

    def apply(self, batch: Batch) -> None:
        self.contents.apply(batch)
        self.corrupt_next.difference_update(batch.clear, batch.forget)


class MemoryEngine(HistoryReads):
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
        return dict(self._opened().contents.node)

    def metas(self) -> dict[int, bytes]:
        copies = sorted(self._opened().contents.copies.items())
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
        return _MemorySnapshot(tablet, self._copy(tablet).snapshot())

    def _history(self, tablet: int) -> MapCursor:
        return self._copy(tablet).history.cursor()

    def free_bytes(self) -> int:
        return 0 if self.disk.full else self.disk.free

    def disk_bytes(self) -> int:
        return self._opened().contents.size_bytes()

    def _opened(self) -> MemoryDisk:
        if self.disk.opened_by is not self:
            raise EngineFailed("the store is not open")
        return self.disk

    def _copy(self, tablet: int) -> StoredMaps:
        """The tablet's copy for reading; an absent one reads as empty."""
        disk = self._opened()
        if tablet in disk.corrupt_next:
            raise EngineCorrupt(f"tablet {tablet} failed a checksum", tablet)
        return disk.contents.copies.get(tablet) or StoredMaps()


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
