"""One opened RocksDB store: options, column families, the commit's two calls, and the mapping of errors.

rocksdict's traps, measured: ``sync=True`` holds the GIL for the whole fsync, so a commit is an unsynced write
followed by ``flush_wal(True)``; a write stall freezes the process unless ``no_slowdown`` turns it into an
error; every error is a bare ``Exception`` with a text; ``set_iterate_lower_bound`` of 0.3.29 sets the upper
bound, so only upper bounds are used; any live handle, iterator or snapshot keeps a closed store open.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    ColumnFamily,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    Rdict,
    WriteBatch,
    WriteBufferManager,
    WriteOptions,
)

from ackord_node.ports import EngineCorrupt, EngineError, EngineFailed, EngineFull

MIB = 1 << 20
SLOW_WRITE_S = 0.2  # rocksdict holds the GIL through a write: one that takes so long is told in the log

log = logging.getLogger("ackord.engine")

_SPACES = ("node", "meta", "log", "rows", "requests", "history")
_FULL_TEXTS = ("No space left on device", "Disk quota exceeded")
_STALL_TEXT = "Write stall"  # "Result incomplete: Write stall", or without the first word
_STALL_PAUSE_S = 0.004
_STALL_S_MAX = 30.0  # longer, and flushes or compactions no longer get through: the node is of no use
_SMALL_BUFFER_BYTES = 2 * MIB  # for the column families that hold a few small records


def engine_error(error: Exception, doing: str, tablet: int | None = None) -> EngineError:
    """The port's error for what RocksDB said while ``doing`` something for ``tablet``."""
    if isinstance(error, EngineError):
        return error
    text = str(error)
    if any(full in text for full in _FULL_TEXTS):
        return EngineFull(f"{doing}: {text}")
    if text.startswith("Corruption"):
        where = "the store" if tablet is None else f"tablet {tablet}"
        return EngineCorrupt(f"{doing}: {where} failed a checksum: {text}", tablet)
    return EngineFailed(f"{doing}: {text or type(error).__name__}")


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Memory and restart time. The store takes about ``block_cache_bytes`` + ``write_buffers_bytes``."""

    block_cache_bytes: int = 64 * MIB  # data, index and filter blocks
    write_buffer_bytes: int = 16 * MIB  # one memtable of rows or log; a full one is written out
    write_buffers_bytes: int = 64 * MIB  # all memtables together
    wal_bytes_max: int = 64 * MIB  # read back at a restart, about 0.1 s for each 10 MiB
    open_files_max: int = 256


class RocksStore:
    """An open store. Attributes are dropped by ``close``, so that nothing keeps the files locked."""

    def __init__(
        self,
        path: Path,
        limits: StoreLimits,
        *,
        create: bool = False,
        adds_history: bool = False,
        point_in_time: bool = False,
        read_only: bool = False,
    ) -> None:
        """``adds_history``: the store is of a format that had none; no other space may be missing."""
        if adds_history:
            _check_spaces(path)
        access = AccessType.read_only(False) if read_only else AccessType.read_write()
        options = _store_options(
            limits, create=create, adds_history=adds_history, point_in_time=point_in_time
        )
        self.is_read_only = read_only
        self._db = Rdict(str(path), options, _space_options(limits), access)
        self.node, self.meta, self.log, self.rows, self.requests, self.history = (
            self._db.get_column_family(name) for name in _SPACES
        )
        self._handles: dict[str, ColumnFamily] = {
            name: self._db.get_column_family_handle(name) for name in _SPACES
        }
        self._write_options = WriteOptions()
        self._write_options.no_slowdown = True

    def sequence(self) -> int:
        """Grows with every batch that became visible, and survives a reopen."""
        return self._db.latest_sequence_number()

    def write(self, build: Callable[[dict[str, ColumnFamily]], WriteBatch]) -> None:
        """Makes the batch visible, not durable yet. ``build`` runs once for each try: a failed write has
        consumed its batch."""
        deadline = time.monotonic() + _STALL_S_MAX
        while True:
            batch, begun = build(self._handles), time.monotonic()
            try:
                self._db.write(batch, self._write_options)
                took_s = time.monotonic() - begun
                if took_s > SLOW_WRITE_S:
                    log.warning("the system took %.2f s for a write, and the event loop stood still", took_s)
                return
            except Exception as error:
                if _STALL_TEXT not in str(error) or time.monotonic() > deadline:
                    raise engine_error(error, "write") from error
            time.sleep(_STALL_PAUSE_S)

    def sync(self) -> None:
        """Waits without the GIL until the log is on disk. Whatever goes wrong here is EngineFailed: after a
        failed fsync nobody knows what is on disk, so there is nothing to retry (rule R14)."""
        try:
            self._db.flush_wal(True)
        except Exception as error:
            raise EngineFailed(f"fsync of the log failed: {error}") from error

    def close(self) -> None:
        """Closes whatever state the store is in; one whose disk was full raises while it closes, harmlessly,
        since everything that counts is in its log."""
        self._handles = {}
        for name in (*_SPACES, "_db"):
            opened: Rdict | None = self.__dict__.pop(name, None)
            if opened is not None:
                with contextlib.suppress(Exception):
                    opened.close()


def _check_spaces(path: Path) -> None:
    """EngineCorrupt if more than the history is missing: a damaged manifest must not come up with empty spaces."""
    missing = set(_SPACES) - {"history"} - set(Rdict.list_cf(str(path)))
    if missing:
        raise EngineCorrupt(f"the store in {path} has lost {', '.join(sorted(missing))}")


def _store_options(limits: StoreLimits, *, create: bool, adds_history: bool, point_in_time: bool) -> Options:
    options = Options(raw_mode=True)
    # Only a new folder may create: a store that lost its CURRENT file must not come up empty.
    options.create_if_missing(create)
    options.create_missing_column_families(create or adds_history)
    options.set_wal_recovery_mode(
        DBRecoveryMode.point_in_time() if point_in_time else DBRecoveryMode.tolerate_corrupted_tail_records()
    )
    options.set_max_total_wal_size(limits.wal_bytes_max)
    options.set_write_buffer_manager(WriteBufferManager(limits.write_buffers_bytes, False))
    options.set_max_open_files(limits.open_files_max)
    options.set_max_background_jobs(2)
    # Written out steadily, so that an fsync of the log does not queue behind one large flush.
    options.set_bytes_per_sync(MIB)
    options.set_manifest_preallocation_size(64 * 1024)
    options.set_max_manifest_file_size(16 * MIB)
    options.set_max_log_file_size(MIB)
    options.set_keep_log_file_num(4)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    return options


def _space_options(limits: StoreLimits) -> dict[str, Options]:
    cache = Cache(limits.block_cache_bytes)
    small = {name: _one_space(cache, _SMALL_BUFFER_BYTES) for name in ("node", "meta", "requests")}
    log = _one_space(cache, limits.write_buffer_bytes)
    log.set_compression_type(DBCompressionType.none())  # read once or never, deleted soon
    rows = _one_space(cache, limits.write_buffer_bytes)
    rows.set_compression_type(DBCompressionType.lz4())
    # A range whose rows were deleted one by one is compacted soon, so that scans do not wade through it.
    rows.add_compact_on_deletion_collector_factory(4096, 2048, 0.5)
    history = _one_space(cache, limits.write_buffer_bytes)
    history.set_compression_type(DBCompressionType.lz4())
    history.add_compact_on_deletion_collector_factory(4096, 2048, 0.5)
    return {**small, "log": log, "rows": rows, "history": history}


def _one_space(cache: Cache, write_buffer_bytes: int) -> Options:
    table = BlockBasedOptions()
    table.set_block_cache(cache)
    table.set_bloom_filter(10, False)
    table.set_cache_index_and_filter_blocks(True)  # else they grow with the store, outside the cache's bound
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    options = Options(raw_mode=True)
    options.set_block_based_table_factory(table)
    options.set_write_buffer_size(write_buffer_bytes)
    options.set_max_write_buffer_number(4)
    return options
