"""A node's disk in virtual time: one tablet's metadata, log, rows and request table, changed by whole batches.

``states`` keeps earlier states, so that a disk can be rolled back as an operator or a lying controller would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ackord_node.adapters import history_walk
from ackord_node.adapters.engine_maps import MapCursor
from ackord_node.core.copy_meta import CopyMeta
from ackord_node.core.effects import TabletBatch
from ackord_node.core.history import Moment, Removable, history_key
from ackord_node.core.log import Entry
from ackord_node.core.state import StoredCopy


@dataclass
class Stored:
    meta: bytes
    log: dict[int, bytes] = field(default_factory=dict)
    rows: dict[bytes, bytes] = field(default_factory=dict)
    requests: dict[bytes, bytes] = field(default_factory=dict)
    history: dict[bytes, bytes] = field(default_factory=dict)

    def copy(self) -> Stored:
        return Stored(self.meta, dict(self.log), dict(self.rows), dict(self.requests), dict(self.history))


class VirtualDisk:
    """Implements RowReader; ``apply`` is atomic, as a group commit is."""

    def __init__(self, tablet: int, copy_id: int) -> None:
        self.tablet = tablet
        self.now = Stored(CopyMeta(copy_id).encode())
        self.states: list[Stored] = []

    @property
    def meta(self) -> CopyMeta:
        return CopyMeta.decode(self.now.meta)

    def get(self, key: bytes) -> bytes | None:
        return self.now.rows.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.now.rows.get(key) for key in keys]

    def history(self, key: bytes, version_max: int, count_max: int) -> list[tuple[int, bytes | None]]:
        return history_walk.versions(self._cursor(), key, version_max, count_max)

    def moment(self, key: bytes, as_of: int, count_max: int) -> Moment:
        return history_walk.moment(self._cursor(), key, as_of, count_max)

    def collect(self, bounds: Removable, records_max: int) -> int:
        """Removes some versions, as the runtime does in the background; returns how many."""
        found, _ = history_walk.excess(self._cursor(), b"", bounds, 1 << 30, records_max)
        for key, version, is_deletion in found:
            del self.now.history[history_key(key, version, is_deletion)]
        return len(found)

    def scan(self, start: bytes, count_max: int) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        """Rows from ``start`` on, and where the next ones begin."""
        keys = sorted(key for key in self.now.rows if key >= start)
        rows = [(key, self.now.rows[key]) for key in keys[:count_max]]
        return rows, keys[count_max] if len(keys) > count_max else None

    def range(
        self, start: bytes, end: bytes | None, count_max: int, bytes_max: int
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        """A few at a time, so that whoever wants all must ask again."""
        keys = sorted(key for key in self.now.rows if key >= start and (end is None or key < end))
        count = min(count_max, 3)
        return [(key, self.now.rows[key]) for key in keys[:count]], len(keys) <= count

    def _cursor(self) -> MapCursor:
        return MapCursor(sorted(self.now.history), self.now.history)

    def remember(self) -> None:
        self.states.append(self.now.copy())
        del self.states[:-8]

    def apply(self, batch: TabletBatch) -> None:
        stored = self.now
        if batch.clear:
            stored.log.clear()
            stored.rows.clear()
            stored.requests.clear()
            stored.history.clear()
        if batch.cut is not None:
            for index in [i for i in stored.log if i >= batch.cut]:
                del stored.log[index]
        if batch.trim is not None:
            for index in [i for i in stored.log if i < batch.trim]:
                del stored.log[index]
        if batch.meta is not None:
            stored.meta = batch.meta
        for _, index, record in batch.log:
            stored.log[index] = record
        for space, changes in ((stored.rows, batch.rows), (stored.requests, batch.requests)):
            for _, key, value in changes:
                if value is None:
                    space.pop(key, None)
                else:
                    space[key] = value
        for _, key, version, row in batch.history:
            stored.history[history_key(key, version, row is None)] = row or b""

    def read_log(self, first: int, count_max: int) -> list[bytes]:
        records = []
        for index in range(first, first + count_max):
            if index not in self.now.log:
                break
            records.append(self.now.log[index])
        return records

    def load(self) -> StoredCopy:
        """What a starting node finds."""
        meta = self.meta
        entries = []
        index = meta.applied + 1
        while index in self.now.log:
            entries.append(Entry.decode(self.tablet, self.now.log[index]))
            index += 1
        return StoredCopy(self.tablet, meta, entries, sorted(self.now.requests.items()))


class SnapshotSource:
    """Chunks of one stored state, as the runtime reads them from an engine's snapshot."""

    def __init__(self, disk: VirtualDisk, chunk_count: int) -> None:
        meta = disk.meta
        epoch = max((first, epoch) for first, epoch in meta.runs if first <= meta.applied)[1]
        self.header = [meta.applied, epoch, meta.last_version, meta.collected_below]
        self.header += [meta.clock_ms] * bool(meta.clock_ms)
        self.number = 0
        self._pieces: list[tuple[str, list[tuple[bytes, bytes]]]] = []
        for space, records in (
            ("rows", disk.now.rows),
            ("requests", disk.now.requests),
            ("history", disk.now.history),
        ):
            items = sorted(records.items())
            for at in range(0, len(items), chunk_count):
                self._pieces.append((space, items[at : at + chunk_count]))
        self._pieces.append(("end", []))

    def next(self) -> tuple[int, str, list[tuple[bytes, bytes]], list[int] | None]:
        number = self.number
        self.number += 1
        space, records = self._pieces[number]
        return number, space, records, self.header if number == 0 else None
