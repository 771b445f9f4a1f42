"""A simulated disk with a storage engine on it that behaves as RocksDB was measured to.

A commit is one encoded, checksummed record at the unsynced end of the write-ahead log, readable at once and
durable after `SimDisk.sync`. The log is folded into tables when it has grown, and whenever the store is opened.
What lies in the log is verified at the next open only (rule R13); what lies in tables whenever it is read
(rule R14). Nothing here is random by itself.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ackord_node.adapters.engine_maps import HistoryReads, MapCursor, SortedMap, StoredMaps, StoreMaps
from ackord_node.ports import Batch, EngineCorrupt, EngineError, EngineFailed, EngineFull, EngineLocked
from tests.sim.stored import HEADER, Damaged, encoded, has_damage, replayed, with_batches

Records = list[tuple[bytes, bytes]]

_COMPACTION_FOLDS = 4  # so many tables of the newest level are merged into one
_BLOCK_RECORDS_MAX = 6  # neighbours that share a damaged block
_UNLIMITED = 1 << 62
_KINDS = ("wal", "row", "log", "request", "meta", "manifest", "record")
_SPACES = {"row": "rows", "log": "log", "record": "log", "request": "requests", "version": "history"}


@dataclass(slots=True)
class Image:
    """What stands on a disk at one moment."""

    tables: StoreMaps
    wal: list[bytes]
    synced: int
    is_suspect: bool
    is_void: bool
    is_manifest_damaged: bool


class SimDisk:
    """One node's disk, which outlives its processes.

    ``capacity_bytes``: commits beyond it raise EngineFull (None: no limit), ``reserve_bytes`` of it are not
    offered. ``wal_bytes_max``: the log is folded into tables when it is longer. ``fail_next_sync``: the next
    `sync` raises. ``garbled_rate``: how often a power loss leaves a last record that is whole in length but not
    in content, which the engine cannot tell from damage. ``seen`` counts what happened.
    """

    def __init__(self, capacity_bytes: int | None = None, wal_bytes_max: int = 64 * 1024) -> None:
        self.capacity_bytes = capacity_bytes
        self.reserve_bytes = 0
        self.wal_bytes_max = wal_bytes_max
        self.fail_next_sync = False
        self.garbled_rate = 0.05
        self.seen: Counter[str] = Counter()
        self.opened_by: SimEngine | None = None
        self.has_failed = False  # a sync failed, and the process that saw it has not ended yet
        self._begin_empty()

    def _begin_empty(self) -> None:
        self.is_suspect = self.is_void = self.is_manifest_damaged = False
        self.tables = StoreMaps()
        self.tables_bytes = 0
        self.wal: list[bytes] = []
        self.wal_bytes = 0
        self.synced = 0  # so many records of the log are durable
        self._folds = 0
        self._has_damage = False

    # ------------------------------------------------------------------------- for the process

    def append(self, record: bytes) -> None:
        """Written, not durable yet."""
        self.wal.append(record)
        self.wal_bytes += len(record)

    def sync(self) -> None:
        """All that was written is durable; EngineFailed if the device says no, and then nobody knows."""
        if self.fail_next_sync or self.has_failed:
            self.fail_next_sync, self.has_failed = False, True
            self.seen["sync failed"] += 1
            raise EngineFailed("fsync of the log failed: input/output error")
        self.synced = len(self.wal)

    @property
    def has_unsynced(self) -> bool:
        return len(self.wal) > self.synced

    def fold(self, state: StoreMaps) -> bool:
        """Writes ``state``, the tables and the whole log, as tables; False if the merging of tables that is due now
        and then met a damaged block."""
        self.seen["fold"] += 1
        self._folds += 1
        self.tables = state.share()
        self.tables_bytes = self.tables.size_bytes()
        self.wal, self.wal_bytes, self.synced = [], 0, 0
        if self._has_damage and self._folds % _COMPACTION_FOLDS == 0:
            self._has_damage = has_damage(self.tables)
            return not self._has_damage
        return True

    def used_bytes(self) -> int:
        return self.tables_bytes + self.wal_bytes

    def free_bytes(self) -> int:
        """What may still be written; below zero when there is less than nothing."""
        return (_UNLIMITED if self.capacity_bytes is None else self.capacity_bytes) - self.used_bytes()

    # --------------------------------------------------------------------------------- faults

    def crash(self, rng: random.Random, power_loss: bool = True) -> None:
        """The process is gone, with or without the machine. Of what was not synced a power loss keeps any
        prefix, and perhaps a part of the record behind it; the end of a process alone keeps everything."""
        self._detach()
        unsynced = len(self.wal) - self.synced
        if unsynced and (power_loss or self.has_failed):
            kept = self.synced + rng.randint(0, unsynced)
            end = self._torn(self.wal[kept], rng) if kept < len(self.wal) else b""
            self.wal = self.wal[:kept] + ([end] if end else [])
            self.wal_bytes = sum(map(len, self.wal))
        self.synced = len(self.wal)
        self.has_failed = self.fail_next_sync = False

    def _torn(self, record: bytes, rng: random.Random) -> bytes:
        if rng.random() < self.garbled_rate:
            self.seen["garbled tail"] += 1
            at = rng.randrange(HEADER.size, len(record))
            return record[:at] + bytes(byte ^ 0xFF for byte in record[at:])
        if rng.random() < 0.5:
            self.seen["torn tail"] += 1
            return record[: rng.randrange(1, len(record))]
        return b""

    def lose(self) -> None:
        """A new, empty disk in the place of this one."""
        self._detach()
        self._begin_empty()
        self.has_failed = self.fail_next_sync = False

    def image(self) -> Image:
        return Image(
            self.tables.share(),
            list(self.wal),
            self.synced,
            self.is_suspect,
            self.is_void,
            self.is_manifest_damaged,
        )

    def restore(self, image: Image) -> None:
        """The disk as it was: a silent roll back."""
        self._detach()
        image = replace(image, tables=image.tables.share(), wal=list(image.wal))
        self.tables, self.wal, self.synced = image.tables, image.wal, image.synced
        self.is_suspect, self.is_void = image.is_suspect, image.is_void
        self.is_manifest_damaged = image.is_manifest_damaged
        self.tables_bytes, self.wal_bytes = self.tables.size_bytes(), sum(map(len, self.wal))
        self._has_damage = has_damage(self.tables)
        self.has_failed = self.fail_next_sync = False

    def _detach(self) -> None:
        if self.opened_by is not None:
            self.opened_by.close()

    def flip_bit(self, rng: random.Random, kind: str | None = None) -> str | None:
        """Flips one stored bit of something of this kind (of any, without one), and tells what was hit; None if there
        is nothing like that. "record" is a log record whose damage the engine does not find: the core does."""
        kinds = [kind] if kind is not None else rng.sample(_KINDS, len(_KINDS))
        for each in kinds:
            hit = self._flip(rng, each)
            if hit is not None:
                self.seen[f"flip {each}"] += 1
                return hit
        return None

    def _flip(self, rng: random.Random, kind: str) -> str | None:
        if kind == "wal":
            return self._flip_wal(rng)
        if kind == "manifest":
            self.is_manifest_damaged = True
            return "manifest"
        tablets = sorted(self.tables.copies)
        if kind == "meta":
            tablets = [tablet for tablet in tablets if self.tables.copies[tablet].meta is not None]
            if not tablets:
                return None
            tablet = rng.choice(tablets)
            self._flip_meta(tablet, rng)
            return f"meta of tablet {tablet}"
        space = _SPACES[kind]
        tablets = [tablet for tablet in tablets if len(getattr(self.tables.copies[tablet], space))]
        if not tablets:
            return None
        tablet = rng.choice(tablets)
        key = self._flip_space(tablet, space, rng, is_found=kind != "record")
        return f"{kind} {key!r} of tablet {tablet}"

    def _flip_wal(self, rng: random.Random) -> str | None:
        """In a record's checksum or payload. A longer length would end the log in silence: that is `restore`."""
        if not self.synced:
            return None
        position = rng.randrange(self.synced)
        record = self.wal[position]
        if len(record) <= 4:
            return None  # a torn end
        self.wal[position] = _flipped(record, rng, first_byte=4)
        return f"record {position} of {self.synced} in the log"

    def _flip_meta(self, tablet: int, rng: random.Random) -> None:
        stored = self.tables.copies[tablet]
        old = stored.meta
        assert old is not None
        stored.meta = Damaged(_flipped(old, rng))
        live = None if self.opened_by is None else self.opened_by.state.copies.get(tablet)
        if live is not None and live.meta is old:
            live.meta = stored.meta
        self._has_damage = True

    def _flip_space(self, tablet: int, space: str, rng: random.Random, is_found: bool) -> Any:
        """Damages one value, and all in the same block with it if the engine finds it (``is_found``). What
        the open store reads from the tables is damaged with it, what it has written since is not."""
        stored: SortedMap[Any] = getattr(self.tables.copies[tablet], space)
        live: SortedMap[Any] | None = None
        if self.opened_by is not None and tablet in self.opened_by.state.copies:
            live = getattr(self.opened_by.state.copies[tablet], space)
        keys = [key for key, _ in stored.items(None, None)]
        position = rng.randrange(len(keys))
        count = rng.randint(1, _BLOCK_RECORDS_MAX) if is_found else 1
        self._has_damage = self._has_damage or is_found
        for each, key in enumerate(keys[position : position + count]):
            old = stored.get(key)
            assert old is not None
            bad = _flipped(old, rng) if each == 0 else old
            new = Damaged(bad) if is_found else bad
            if live is not None and live.get(key) is old:
                live.put(key, new)
            stored.put(key, new)
        return keys[position]


class SimEngine(HistoryReads):
    """Implements the Engine port on a `SimDisk`; ``commit`` leaves the sync to whoever drives it."""

    def __init__(self, disk: SimDisk) -> None:
        self.disk = disk
        self.suspect = False
        self.state = StoreMaps()  # as the readers see it
        self._is_full = False  # a commit found no space, and the store must be opened again to go on
        self._is_broken = False  # the merging of tables met a damaged block
        self._known: set[int] = set()  # tablets whose log's ends were looked for since the store is open
        self._generation = 0  # counts opens: a snapshot does not outlive its own

    # ------------------------------------------------------------------------------ open and close

    def open(self) -> None:
        disk = self.disk
        if disk.opened_by is not None:
            raise EngineLocked("the disk is open in another engine")
        if disk.is_void or disk.is_manifest_damaged:
            disk.seen["void"] += 1
            raise EngineCorrupt("the store failed its checksum")
        batches, is_damaged = replayed(disk.wal)
        if batches and disk.free_bytes() < disk.wal_bytes:
            disk.seen["full at open"] += 1
            raise EngineFull("no space to write the log out as tables")
        if is_damaged:
            disk.is_suspect = True
            disk.seen["suspect"] += 1
        self.suspect = disk.is_suspect
        self.state = disk.tables.share()
        for batch in batches:
            self.state.apply(batch)
        self._is_broken = not disk.fold(self.state)
        self._is_full = False
        self._known.clear()
        self._generation += 1
        disk.opened_by = self

    def close(self) -> None:
        if self.disk.opened_by is self:
            self.disk.opened_by = None
            self._generation += 1

    def clear_suspicion(self) -> None:
        self.disk.is_suspect = self.suspect = False

    def mark_void(self) -> None:
        """The store is damaged as a whole (rule R14): the next ``open`` refuses it."""
        self.disk.is_void = True

    def set_aside(self) -> None:
        """After ``open`` found the store void: the next one begins an empty one."""
        self.disk.lose()

    # -------------------------------------------------------------------------------------- commit

    def commit(self, batch: Batch) -> None:
        """Visible on return, durable after `SimDisk.sync`."""
        disk = self._opened()
        if disk.has_failed:
            raise EngineFailed("fsync of the log failed before")
        if self._is_broken:
            disk.seen["compaction met damage"] += 1
            raise EngineCorrupt("commit: the merging of tables met a damaged block")
        if self._is_full:
            self._reopen()
        self._read_log_ends(batch)
        record = encoded(batch)
        if disk.free_bytes() < len(record):
            self._is_full = True
            disk.seen["full"] += 1
            raise EngineFull("no space left on the disk")
        disk.append(record)
        self.state.apply(batch)
        if disk.wal_bytes >= disk.wal_bytes_max and not disk.fail_next_sync:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Folds the log into tables, durably."""
        if not self._is_broken:
            self._is_broken = not self._opened().fold(self.state)

    def _reopen(self) -> None:
        """As the real engine after a full disk: closed and opened again once there is room."""
        if self.free_bytes() <= 0:
            raise EngineFull("the disk is still full")
        if replayed(self.disk.wal)[1]:
            raise EngineFailed("the log is damaged; a restart opens it anew")
        self.disk.seen["reopened"] += 1
        self.checkpoint()
        self._known.clear()
        self._generation += 1
        self._is_full = False

    def _read_log_ends(self, batch: Batch) -> None:
        """The engine looks for the ends of the logs that a batch changes. A damaged block there is one error of the
        whole commit, which names no tablet."""
        changed = [tablet for tablet, _ in (*batch.cut, *batch.trim)] + [tablet for tablet, _, _ in batch.log]
        read: list[bytes | None] = []
        for tablet in dict.fromkeys(changed):
            copy = self.state.copies.get(tablet)
            if tablet not in self._known and copy is not None:
                self._known.add(tablet)
                read += (copy.log.get(index) for index in copy.log.bounds() or ())
        read += (self.state.copy(tablet).log.get(index - 1) for tablet, index in batch.cut)
        read += (self.state.copy(tablet).log.get(index) for tablet, index in batch.trim)
        if any(record.__class__ is Damaged for record in read):
            self.disk.seen["commit met damage"] += 1
            raise EngineCorrupt("commit: the end of a log lies in a damaged block")

    # ------------------------------------------------------------------------------------- readers

    def node_facts(self) -> dict[str, bytes]:
        self._opened()
        return dict(self.state.node)

    def metas(self) -> dict[int, bytes]:
        self._opened()
        metas = {}
        for tablet, copy in sorted(self.state.copies.items()):
            if copy.meta is not None:
                metas[tablet] = _checked(copy.meta, None)
        return metas

    def get(self, tablet: int, key: bytes) -> bytes | None:
        row = self._copy(tablet).rows.get(key)
        return row if row.__class__ is not Damaged else _refused(tablet)

    def get_many(self, tablet: int, keys: Sequence[bytes]) -> list[bytes | None]:
        rows = [self._copy(tablet).rows.get(key) for key in keys]
        return rows if not any(row.__class__ is Damaged for row in rows) else _refused(tablet)

    def scan(
        self, tablet: int, start: bytes, end: bytes | None, reverse: bool, rows_max: int, bytes_max: int
    ) -> tuple[Records, bool]:
        return _read(tablet, self._copy(tablet).rows.items(start, end, reverse), rows_max, bytes_max)

    def read_log(self, tablet: int, first: int, count_max: int, bytes_max: int) -> list[tuple[int, bytes]]:
        records: list[tuple[int, bytes]] = []
        size = 0
        for index, record in self._copy(tablet).log.items(first, first + count_max):
            if index != first + len(records) or (records and size >= bytes_max):
                break
            records.append((index, _checked(record, tablet)))
            size += 8 + len(record)
        return records

    def log_bounds(self, tablet: int) -> tuple[int, int] | None:
        log = self._copy(tablet).log
        bounds = log.bounds()
        if tablet not in self._known:
            for index in bounds or ():
                _checked(log.get(index) or b"", tablet)
        return bounds

    def requests(self, tablet: int) -> Records:
        items = self._copy(tablet).requests.items(None, None)
        return [(client, _checked(record, tablet)) for client, record in items]

    def snapshot(self, tablet: int) -> SimSnapshot:
        return SimSnapshot(self, tablet, self._copy(tablet).snapshot())

    def _history(self, tablet: int) -> MapCursor:
        return _CheckingCursor(tablet, self._copy(tablet).history)

    def free_bytes(self) -> int:
        return self.disk.free_bytes() - self.disk.reserve_bytes

    def disk_bytes(self) -> int:
        return self.disk.used_bytes()

    @property
    def generation(self) -> int:
        return self._generation

    def _opened(self) -> SimDisk:
        if self.disk.opened_by is not self:
            raise EngineFailed("the store is not open")
        return self.disk

    def _copy(self, tablet: int) -> StoredMaps:
        """The tablet's copy for reading; an absent one reads as empty."""
        if self.disk.opened_by is not self:
            raise EngineFailed("the store is not open")
        return self.state.copies.get(tablet) or StoredMaps()


class _CheckingCursor(MapCursor):
    """A walk meets the blocks of all that it passes."""

    def __init__(self, tablet: int, records: SortedMap[bytes]) -> None:
        keys = [key for key, _ in records.items(None, None)]
        super().__init__(keys, dict(records.items(None, None)))
        self._tablet = tablet

    def key(self) -> bytes | None:
        found = super().key()
        if found is not None:
            _checked(self.value(), self._tablet)
        return found


class SimSnapshot:
    """One tablet's rows, history and requests as they were, until the store is closed or opened again."""

    def __init__(self, engine: SimEngine, tablet: int, spaces: dict[str, SortedMap[bytes]]) -> None:
        self._engine = engine
        self._generation = engine.generation
        self._tablet = tablet
        self._spaces = spaces

    def read(self, space: str, after: bytes | None, bytes_max: int) -> tuple[Records, bool]:
        if space not in self._spaces or self._engine.generation != self._generation:
            raise EngineError(f"the snapshot of tablet {self._tablet} has ended, or has no {space!r}")
        start = None if after is None else after + b"\0"
        return _read(self._tablet, self._spaces[space].items(start, None), _UNLIMITED, bytes_max)

    def close(self) -> None:
        self._spaces = {}


def _refused(tablet: int | None) -> Any:
    where = "the store" if tablet is None else f"tablet {tablet}"
    raise EngineCorrupt(f"{where} failed a checksum", tablet)


def _checked(value: bytes, tablet: int | None) -> bytes:
    if value.__class__ is Damaged:
        _refused(tablet)
    return value


def _read(
    tablet: int, items: Iterator[tuple[bytes, bytes]], count_max: int, bytes_max: int
) -> tuple[Records, bool]:
    """Records until one of the maxima is reached, at least one; True if there are no more."""
    records: Records = []
    size = 0
    for key, value in items:
        if len(records) >= count_max or (records and size >= bytes_max):
            return records, False
        records.append((key, _checked(value, tablet)))
        size += len(key) + len(value)
    return records, True


def _flipped(value: bytes, rng: random.Random, first_byte: int = 0) -> bytes:
    if len(value) <= first_byte:
        return value + b"\x01"  # there is no bit in nothing, but its block has some
    bit = rng.randrange(first_byte * 8, len(value) * 8)
    changed = bytearray(value)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def stored_state(disk: SimDisk) -> tuple[StoreMaps, bool]:
    """What an open of the disk would find, without opening it; True if its log is damaged."""
    batches, is_damaged = replayed(disk.wal)
    return with_batches(disk.tables, batches), is_damaged


def image_state(image: Image) -> StoreMaps:
    return with_batches(image.tables, replayed(image.wal)[0])
