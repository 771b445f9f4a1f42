"""Keys of the store, and bounded reads over a column family.

A key is the tablet as 8 bytes big endian, then the record's own key (for the log: its index as 8 bytes big
endian), so that one tablet is one key range. An iterator that meets a corrupt block just becomes invalid;
only ``status()`` tells, so every read here ends with it (rule R14). Iterators get an upper bound because
beyond it they would wade through the tombstones of a neighbour, and are dropped before a function returns
or raises, because a traceback that holds one would keep a closed store open.

An iterator reads the state at its creation, however long it lives. It stands in for rocksdict's `Snapshot`,
whose iterators (0.3.29) lose the snapshot and read the present state.
"""

from __future__ import annotations

import struct

from rocksdict import Rdict, RdictIter, ReadOptions

TABLET_BYTES = 8
INDEX_MAX = (1 << 64) - 1
UNLIMITED = 1 << 62

_TABLET = struct.Struct(">Q")
_RECORD = struct.Struct(">QQ")

tablet_key = _TABLET.pack
log_key = _RECORD.pack

Records = list[tuple[bytes, bytes]]


def tablet_of(key: bytes) -> int:
    """The tablet that a whole key begins with."""
    return int(_TABLET.unpack_from(key)[0])


def log_index(key: bytes) -> int:
    """The index in a log record's key without its tablet."""
    return int(_TABLET.unpack(key)[0])


def tablet_end(tablet: int) -> bytes:
    """The first key behind the tablet."""
    return _TABLET.pack(tablet + 1)


class Cursor:
    """An iterator over what stands now, up to ``upper``.

    RocksDB keeps a bare pointer to the bound, and rocksdict 0.3.29 points it at the Python object's own bytes
    without holding on to it: dropped too early, the iterator silently stops anywhere. So it is held here.
    """

    __slots__ = ("iterator", "upper")

    def __init__(self, source: Rdict, upper: bytes) -> None:
        options = ReadOptions()
        options.set_iterate_upper_bound(upper)
        self.upper = upper
        self.iterator: RdictIter = source.iter(options)


class HistoryCursor:
    """A position among one tablet's versions of rows; `check` it at the end and `close` it whatever happens."""

    __slots__ = ("_cursor", "_iterator", "_prefix")

    def __init__(self, source: Rdict, tablet: int) -> None:
        self._prefix = tablet_key(tablet)
        self._cursor: Cursor | None = Cursor(source, tablet_end(tablet))
        self._iterator: RdictIter = self._cursor.iterator

    def seek(self, raw: bytes) -> None:
        self._iterator.seek(self._prefix + raw)

    def seek_back(self, raw: bytes) -> None:
        self._iterator.seek_for_prev(self._prefix + raw)

    def to_last(self) -> None:
        self._iterator.seek_to_last()

    def key(self) -> bytes | None:
        key: bytes | None = self._iterator.key()
        return key[TABLET_BYTES:] if key is not None and key.startswith(self._prefix) else None

    def value(self) -> bytes:
        return bytes(self._iterator.value())

    def next(self) -> None:
        self._iterator.next()

    def check(self) -> None:
        """Raises what was corrupt on the way."""
        self._iterator.status()

    def close(self) -> None:
        """Lets go of the store, also where a traceback still holds this."""
        self._cursor = None
        del self._iterator


def read_forward(
    source: Rdict,
    start: bytes,
    upper: bytes,
    count_max: int = UNLIMITED,
    bytes_max: int = UNLIMITED,
    prefix_bytes: int = TABLET_BYTES,
) -> tuple[Records, bool]:
    """Records with start <= key < upper, keys without their prefix, until one of the maxima is reached (at
    least one record); True if there are no more."""
    return read_cursor(Cursor(source, upper), start, count_max, bytes_max, prefix_bytes)


def read_cursor(
    cursor: Cursor,
    start: bytes,
    count_max: int = UNLIMITED,
    bytes_max: int = UNLIMITED,
    prefix_bytes: int = TABLET_BYTES,
) -> tuple[Records, bool]:
    """The same from a cursor's own moment, up to its own upper bound."""
    iterator = cursor.iterator
    records: Records = []
    try:
        iterator.seek(start)
        size = 0
        while (key := iterator.key()) is not None:
            if len(records) >= count_max or (records and size >= bytes_max):
                break
            record = iterator.value()
            records.append((key[prefix_bytes:], record))
            size += len(key) - prefix_bytes + len(record)
            iterator.next()
        iterator.status()
        return records, key is None
    finally:
        del iterator, cursor


def read_backward(
    source: Rdict, start: bytes, upper: bytes, count_max: int, bytes_max: int
) -> tuple[Records, bool]:
    """The same from the end of the range backwards."""
    cursor = Cursor(source, upper)
    iterator = cursor.iterator
    records: Records = []
    try:
        # The range's first key is where to stop: there is no lower bound to keep prev() from going on.
        iterator.seek(start)
        first = iterator.key()
        iterator.status()
        if first is None:
            return records, True
        iterator.seek_to_last()
        size = 0
        is_exhausted = False
        while not is_exhausted and len(records) < count_max and (not records or size < bytes_max):
            key = iterator.key()
            if key is None:
                break
            record = iterator.value()
            records.append((key[TABLET_BYTES:], record))
            size += len(key) - TABLET_BYTES + len(record)
            is_exhausted = key == first
            iterator.prev()
        iterator.status()
        return records, is_exhausted
    finally:
        del iterator, cursor


def first_key(source: Rdict, start: bytes, upper: bytes) -> bytes | None:
    """The first key with start <= key < upper, without its tablet."""
    records, _ = read_forward(source, start, upper, 1, 1)
    return records[0][0] if records else None


def last_key(source: Rdict, start: bytes, upper: bytes) -> bytes | None:
    records, _ = read_backward(source, start, upper, 1, 1)
    return records[0][0] if records else None
