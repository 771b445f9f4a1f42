"""What the engines in memory have in common: sorted maps, the contents of a store made of them, how a batch changes
those, and the reads of history over them.

Several engines, simulated ones too, keep their stores in it; what they differ in is how a disk fails under them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ackord_node.adapters import history_walk
from ackord_node.core.history import Moment, Removable, history_key
from ackord_node.ports import Batch

Key = TypeVar("Key", int, bytes)


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
class StoredMaps:
    """What is stored of one tablet."""

    meta: bytes | None = None
    log: SortedMap[int] = field(default_factory=SortedMap)
    rows: SortedMap[bytes] = field(default_factory=SortedMap)
    requests: SortedMap[bytes] = field(default_factory=SortedMap)
    history: SortedMap[bytes] = field(default_factory=SortedMap)  # core.history.history_key -> row

    def share(self) -> StoredMaps:
        spaces = (self.log.share(), self.rows.share(), self.requests.share(), self.history.share())
        return StoredMaps(self.meta, *spaces)

    def snapshot(self) -> dict[str, SortedMap[bytes]]:
        """The spaces of a snapshot, as they are now."""
        spaces = {"rows": self.rows, "requests": self.requests, "history": self.history}
        return {name: records.share() for name, records in spaces.items()}

    def values(self) -> Iterator[bytes]:
        if self.meta is not None:
            yield self.meta
        for space in (self.log, self.rows, self.requests, self.history):
            for _, value in space.items(None, None):
                yield value


@dataclass(slots=True)
class StoreMaps:
    """The contents of a store."""

    node: dict[str, bytes] = field(default_factory=dict)
    copies: dict[int, StoredMaps] = field(default_factory=dict)

    def share(self) -> StoreMaps:
        return StoreMaps(dict(self.node), {tablet: copy.share() for tablet, copy in self.copies.items()})

    def copy(self, tablet: int) -> StoredMaps:
        found = self.copies.get(tablet)
        if found is None:
            found = self.copies[tablet] = StoredMaps()
        return found

    def apply(self, batch: Batch) -> None:
        """The batch in the port's order."""
        for tablet in batch.clear:
            self.copies[tablet] = StoredMaps(self.copy(tablet).meta)
        for tablet in batch.forget:
            self.copies.pop(tablet, None)
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

    def size_bytes(self) -> int:
        return sum(len(value) for copy in self.copies.values() for value in copy.values())


class HistoryReads:
    """The reads of history that the Engine port has, over a cursor on one tablet's versions."""

    def _history(self, tablet: int) -> MapCursor:
        raise NotImplementedError

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
        cursor = self._history(tablet)
        return history_walk.scan(cursor, start, end, reverse, as_of, count_max, keys_max, bytes_max)

    def history_excess(
        self, tablet: int, start: bytes, bounds: Removable, keys_max: int, records_max: int
    ) -> tuple[list[tuple[bytes, int, bool]], bytes | None]:
        return history_walk.excess(self._history(tablet), start, bounds, keys_max, records_max)
