"""The `Engine` port over RocksDB: one synced batch for all tablets, readers beside it (rules R13, R14).

Threads: ``commit`` runs in the engine's own thread, readers in the event loop's. RocksDB lets them run side
by side; the lock here only keeps a reader from meeting a store that is being closed and opened again.

A full disk: the failed batch counts for nothing and stays invisible, the store keeps answering reads, and
commits fail with EngineFull until more than the reserve is free. Then the next commit closes the store,
opens it again (there is no other way to make it writable), and checks that it holds what it held before.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rocksdict import ColumnFamily, WriteBatch

from ackord_node.adapters import history_walk
from ackord_node.adapters.engine_rocksdb_check import disarm
from ackord_node.adapters.engine_rocksdb_folder import FORMAT, FORMAT_WITHOUT_HISTORY, DataFolder
from ackord_node.adapters.engine_rocksdb_log import Bounds, LogChanges, stored_bounds
from ackord_node.adapters.engine_rocksdb_read import (
    INDEX_MAX,
    Cursor,
    HistoryCursor,
    Records,
    log_index,
    log_key,
    read_backward,
    read_cursor,
    read_forward,
    tablet_end,
    tablet_key,
    tablet_of,
)
from ackord_node.adapters.engine_rocksdb_store import MIB, RocksStore, StoreLimits, engine_error
from ackord_node.core.history import Moment, Removable, history_key
from ackord_node.ports import Batch, EngineCorrupt, EngineError, EngineFailed, EngineForeign, EngineFull

T = TypeVar("T")
_UPPER = b"\xff" * 9  # behind every key of the spaces that are read whole


class RocksEngine:
    """Durable storage in ``path``; memory about ``block_cache_bytes`` + 4 * ``write_buffer_bytes``.

    ``reserve_bytes`` of the disk are not offered by ``free_bytes``. Opening writes the log out as tables, so
    the reserve should hold 4 * ``write_buffer_bytes`` at least.
    """

    def __init__(
        self,
        path: Path,
        *,
        reserve_bytes: int,
        block_cache_bytes: int = 64 * MIB,
        write_buffer_bytes: int = 16 * MIB,
    ) -> None:
        self.suspect = False
        self._folder = DataFolder(path)
        self._reserve_bytes = reserve_bytes
        self._limits = StoreLimits(
            block_cache_bytes=block_cache_bytes,
            write_buffer_bytes=write_buffer_bytes,
            write_buffers_bytes=4 * write_buffer_bytes,
            wal_bytes_max=4 * write_buffer_bytes,
        )
        self._store: RocksStore | None = None
        self._swap = threading.Lock()  # held by each read, and while the store is closed or opened again
        self._snapshots: weakref.WeakSet[_RocksSnapshot] = weakref.WeakSet()
        self._log_bounds: dict[int, Bounds] = {}  # of tablets used so far; commit's thread only
        self._failure: EngineFailed | None = None  # of an fsync; nothing is committed after it
        self._full_at_sequence: int | None = None  # the store's sequence before the batch that found no space

    # ------------------------------------------------------------------------------ open and close

    def open(self) -> None:
        """Opens or creates the store; EngineLocked, EngineForeign, EngineCorrupt (tablet None: the store is
        void), EngineFull, EngineFailed. After an error everything is released again."""
        try:
            self._folder.lock()
            self._open_locked()
        except BaseException as error:
            self.close()
            if isinstance(error, Exception):
                raise engine_error(error, f"open {self._folder.path}") from error
            raise

    def mark_void(self) -> None:
        """The store is damaged as a whole (rule R14): the next ``open`` refuses it."""
        self._folder.mark_void()

    def set_aside(self) -> Path | None:
        """After ``open`` found the store void: puts it aside, so that the next ``open`` begins an empty one, which
        peers refill under new copy ids. Returns where the damaged store went."""
        self._folder.lock()
        try:
            return self._folder.set_aside()
        finally:
            self._folder.unlock()

    def _open_locked(self) -> None:
        if self._folder.is_void():
            raise EngineCorrupt(f"{self._folder.path} was found damaged when it was last open")
        version = self._folder.format_version()
        is_new = version is None
        self.suspect = self._folder.is_suspect()
        self._store = self._open_store(is_new, adds_history=version == FORMAT_WITHOUT_HISTORY)
        if is_new:
            self._check_new(self._store)
        if version != FORMAT:
            self._folder.write_format()

    def _open_store(self, is_new: bool, adds_history: bool) -> RocksStore:
        """Opens what a power loss leaves behind; what it does not leave, point-in-time and suspect (R13)."""
        path = self._folder.store_path
        try:
            disarm(path)
            return RocksStore(path, self._limits, create=is_new, adds_history=adds_history)
        except Exception as error:
            refusal = engine_error(error, f"open {path}")
        if isinstance(refusal, EngineFull):
            raise refusal
        if not isinstance(refusal, EngineCorrupt):
            raise self._void_or_failed(refusal)
        self._folder.mark_suspect()
        try:
            store = RocksStore(path, self._limits, adds_history=adds_history, point_in_time=True)
        except Exception as error:
            raise engine_error(error, f"open {path} point-in-time after {refusal}") from error
        self.suspect = True
        return store

    def _void_or_failed(self, refusal: EngineError) -> EngineError:
        """A folder with a format but without a store's own files has lost them."""
        if (self._folder.store_path / "CURRENT").exists():
            return refusal
        return EngineCorrupt(f"{self._folder.path} has a format file but no complete store: {refusal}")

    def _check_new(self, store: RocksStore) -> None:
        """A folder without format file holds nothing, or a creation cut short before there was data."""
        if store.sequence() != 0:
            raise EngineForeign(
                f"{self._folder.path} holds data but its file ackord-format is gone: put the file back, or "
                "empty the folder so that the node is refilled by its peers"
            )

    def close(self) -> None:
        with self._swap:
            self._close_store()
        self._folder.unlock()

    def _close_store(self) -> None:
        for snapshot in list(self._snapshots):
            snapshot.close()
        if self._store is not None:
            self._store.close()
            self._store = None
        self._log_bounds.clear()

    def clear_suspicion(self) -> None:
        """Ends ``suspect`` durably: every copy is refilled, or its own metadata says that it must be."""
        self._folder.clear_suspect()
        self.suspect = False

    # -------------------------------------------------------------------------------------- commit

    def commit(self, batch: Batch) -> None:
        """One atomic write over all column families, then one fsync."""
        if self._failure is not None:
            raise self._failure
        if self._full_at_sequence is not None:
            self._reopen(self._full_at_sequence)
        store = self._live()
        sequence = store.sequence()
        changes = LogChanges(store.log, self._log_bounds)
        try:
            changes.plan(batch)
            store.write(lambda handles: _encoded(batch, changes, handles))
        except EngineFull:
            self._full_at_sequence = sequence
            raise
        except Exception as error:
            raise engine_error(error, "commit") from error
        try:
            store.sync()
        except EngineFailed as error:
            self._failure = error
            raise
        changes.adopt()

    def _reopen(self, sequence: int) -> None:
        """Makes a store that met a full disk writable again, or raises EngineFull with it readable."""
        free_bytes = self.free_bytes()
        if free_bytes <= 0:
            raise EngineFull(
                f"the disk of {self._folder.path} is full: {-free_bytes} bytes below the reserve"
            )
        with self._swap:
            self._close_store()
            try:
                self._store = RocksStore(self._folder.store_path, self._limits)
            except Exception as error:
                refusal = engine_error(error, f"reopen {self._folder.path}")
                if not isinstance(refusal, EngineFull):
                    raise EngineFailed(f"{refusal}; a restart opens it anew") from error
                self._store = RocksStore(self._folder.store_path, self._limits, read_only=True)
                raise refusal from error
        if self._store.sequence() != sequence:
            # The runtime was told that the failed batch counts for nothing, or a synced one is missing.
            raise EngineFailed(
                f"{self._folder.path} reopened at sequence {self._store.sequence()} instead of {sequence}"
            )
        self._full_at_sequence = None

    # ------------------------------------------------------------------------------------- readers

    def node_facts(self) -> dict[str, bytes]:
        records = self._read_all("node", b"", _UPPER)
        return {key.decode(): value for key, value in records}

    def metas(self) -> dict[int, bytes]:
        records = self._read_all("meta", b"", _UPPER)
        return {tablet_of(key): value for key, value in records}

    def _read_all(self, space: str, start: bytes, upper: bytes) -> Records:
        with self._swap:
            try:
                return read_forward(getattr(self._live(), space), start, upper, prefix_bytes=0)[0]
            except Exception as error:
                raise engine_error(error, f"read all of {space}") from error

    def get(self, tablet: int, key: bytes) -> bytes | None:
        with self._swap:
            try:
                row: bytes | None = self._live().rows.get(tablet_key(tablet) + key)
            except Exception as error:
                raise engine_error(error, "get", tablet) from error
        return row

    def get_many(self, tablet: int, keys: Sequence[bytes]) -> list[bytes | None]:
        prefix = tablet_key(tablet)
        with self._swap:
            try:
                # One call, so that a batch of the engine's thread is seen whole or not at all.
                rows: Any = self._live().rows.get([prefix + key for key in keys])
            except Exception as error:
                raise engine_error(error, "get_many", tablet) from error
        return list(rows)

    def scan(
        self, tablet: int, start: bytes, end: bytes | None, reverse: bool, rows_max: int, bytes_max: int
    ) -> tuple[Records, bool]:
        if end is not None and start >= end:
            return [], True
        prefix = tablet_key(tablet)
        upper = tablet_end(tablet) if end is None else prefix + end
        read = read_backward if reverse else read_forward
        with self._swap:
            try:
                return read(self._live().rows, prefix + start, upper, rows_max, bytes_max)
            except Exception as error:
                raise engine_error(error, "scan", tablet) from error

    def read_log(self, tablet: int, first: int, count_max: int, bytes_max: int) -> list[tuple[int, bytes]]:
        last = min(first + count_max - 1, INDEX_MAX - 1)
        with self._swap:
            try:
                records, _ = read_forward(
                    self._live().log, log_key(tablet, first), log_key(tablet, last + 1), count_max, bytes_max
                )
            except Exception as error:
                raise engine_error(error, "read_log", tablet) from error
        indexed = [(log_index(key), record) for key, record in records]
        gap = next((at for at, (index, _) in enumerate(indexed) if index != first + at), len(indexed))
        return indexed[:gap]

    def log_bounds(self, tablet: int) -> tuple[int, int] | None:
        with self._swap:
            try:
                if tablet in self._log_bounds:
                    return self._log_bounds[tablet]
                return stored_bounds(self._live().log, tablet)
            except Exception as error:
                raise engine_error(error, "log_bounds", tablet) from error

    def requests(self, tablet: int) -> list[tuple[bytes, bytes]]:
        with self._swap:
            try:
                return read_forward(self._live().requests, tablet_key(tablet), tablet_end(tablet))[0]
            except Exception as error:
                raise engine_error(error, "requests", tablet) from error

    def history(
        self, tablet: int, key: bytes, version_max: int, count_max: int
    ) -> list[tuple[int, bytes | None]]:
        return self._walk(tablet, lambda at: history_walk.versions(at, key, version_max, count_max))

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
        return self._walk(
            tablet,
            lambda at: history_walk.scan(at, start, end, reverse, as_of, count_max, keys_max, bytes_max),
        )

    def history_excess(
        self, tablet: int, start: bytes, bounds: Removable, keys_max: int, records_max: int
    ) -> tuple[list[tuple[bytes, int, bool]], bytes | None]:
        return self._walk(tablet, lambda at: history_walk.excess(at, start, bounds, keys_max, records_max))

    def _walk(self, tablet: int, walk: Callable[[history_walk.Cursor], T]) -> T:
        with self._swap:
            cursor = HistoryCursor(self._live().history, tablet)
            try:
                found = walk(cursor)
                cursor.check()
            except Exception as error:
                raise engine_error(error, "history", tablet) from error
            finally:
                cursor.close()
            return found

    def snapshot(self, tablet: int) -> _RocksSnapshot:
        with self._swap:
            store = self._live()
            while True:
                sequence = store.sequence()
                spaces = {
                    "rows": Cursor(store.rows, tablet_end(tablet)),
                    "requests": Cursor(store.requests, tablet_end(tablet)),
                    "history": Cursor(store.history, tablet_end(tablet)),
                }
                if store.sequence() == sequence:  # else a batch came between the two
                    break
            snapshot = _RocksSnapshot(tablet, spaces, self._swap)
            self._snapshots.add(snapshot)
        return snapshot

    def free_bytes(self) -> int:
        return self._folder.free_bytes() - self._reserve_bytes

    def disk_bytes(self) -> int:
        return self._folder.disk_bytes()

    def _live(self) -> RocksStore:
        if self._store is None:
            raise EngineFailed(f"the store in {self._folder.path} is not open")
        return self._store


class _RocksSnapshot:
    """One tablet's rows and requests as they were; ended early when the store is closed or reopened."""

    def __init__(self, tablet: int, spaces: dict[str, Cursor], swap: threading.Lock) -> None:
        self._tablet = tablet
        self._spaces = spaces
        self._swap = swap

    def read(self, space: str, after: bytes | None, bytes_max: int) -> tuple[Records, bool]:
        """As the port says; EngineError if the snapshot has ended: take a new one and start over."""
        prefix = tablet_key(self._tablet)
        start = prefix if after is None else prefix + after + b"\0"
        with self._swap:
            if space not in self._spaces:
                raise EngineError(f"the snapshot of tablet {self._tablet} has ended, or has no {space!r}")
            try:
                return read_cursor(self._spaces[space], start, bytes_max=bytes_max)
            except Exception as error:
                failure = engine_error(error, "read of a snapshot", self._tablet)
        # Raised out here without its cause, whose traceback would keep the snapshot, and so the store, open.
        raise failure

    def close(self) -> None:
        self._spaces = {}


def _encoded(batch: Batch, changes: LogChanges, handles: dict[str, ColumnFamily]) -> WriteBatch:
    """The batch as RocksDB applies it, in the port's order; within it later entries win."""
    encoded = WriteBatch(raw_mode=True)
    meta, log, rows, requests = (handles[name] for name in ("meta", "log", "rows", "requests"))
    history = handles["history"]
    for tablet in (*batch.clear, *batch.forget):
        for space in (rows, log, requests, history):
            encoded.delete_range(tablet_key(tablet), tablet_end(tablet), space)
    for tablet in batch.forget:
        encoded.delete(tablet_key(tablet), meta)
    for start, end in changes.ranges:
        encoded.delete_range(start, end, log)
    for key in changes.singles:
        encoded.delete(key, log)
    for tablet, record in batch.meta.items():
        encoded.put(tablet_key(tablet), record, meta)
    for tablet, index, record in batch.log:
        encoded.put(log_key(tablet, index), record, log)
    for space, records in ((rows, batch.rows), (requests, batch.requests)):
        last, prefix = -1, b""
        for tablet, key, value in records:
            if tablet != last:  # rows of one tablet follow each other
                last, prefix = tablet, tablet_key(tablet)
            if value is None:
                encoded.delete(prefix + key, space)
            else:
                encoded.put(prefix + key, value, space)
    for tablet, key, version, row in batch.history:
        encoded.put(tablet_key(tablet) + history_key(key, version, row is None), row or b"", history)
    for tablet, key, version, is_deletion in batch.history_drop:
        encoded.delete(tablet_key(tablet) + history_key(key, version, is_deletion), history)
    for name, value in batch.node.items():
        encoded.put(name.encode(), value, handles["node"])
    return encoded
