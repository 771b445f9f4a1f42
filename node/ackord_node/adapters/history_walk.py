"""Walks over the stored versions of rows, for every engine: what it needs is a cursor over sorted keys.

Stored keys are ``history_key``: a row's key and its version, the newest first. A walk touches few records of a
key, however many versions it has: it seeks over those in between.
"""

from __future__ import annotations

from typing import Protocol

from ackord_node.core.history import (
    SUFFIX_BYTES,
    VERSION_MAX,
    Moment,
    Removable,
    history_key,
    split_history_key,
)

Version = tuple[int, bytes | None]
Excess = list[tuple[bytes, int, bool]]
_BEFORE_ALL, _BEHIND_ALL = b"\x00" * SUFFIX_BYTES, b"\xff" * SUFFIX_BYTES


class Cursor(Protocol):
    """A position among one tablet's sorted history keys, or none (``key`` is None)."""

    def seek(self, raw: bytes) -> None:
        """To the first key >= raw."""

    def seek_back(self, raw: bytes) -> None:
        """To the last key <= raw."""

    def to_last(self) -> None: ...

    def key(self) -> bytes | None: ...

    def value(self) -> bytes: ...

    def next(self) -> None: ...


def versions(cursor: Cursor, key: bytes, version_max: int, count_max: int) -> list[Version]:
    """The key's versions up to ``version_max``, newest first; a row of None is a deletion."""
    found: list[Version] = []
    cursor.seek(history_key(key, version_max, True))
    while len(found) < count_max and (at := _of(cursor, key)) is not None:
        version, is_deletion = at
        found.append((version, None if is_deletion else cursor.value()))
        cursor.next()
    return found


def moment(cursor: Cursor, key: bytes, as_of: int, count_max: int) -> Moment:
    """What the key was at ``as_of``, with up to ``count_max`` of its newer versions."""
    newer: list[tuple[int, bool]] = []
    superseded: int | None = None
    cursor.seek(key + _BEFORE_ALL)
    while (at := _of(cursor, key)) is not None:
        version, is_deletion = at
        if version <= as_of:
            return Moment(key, newer, superseded, version, None if is_deletion else cursor.value())
        superseded = version
        if len(newer) == count_max:
            cursor.seek_back(history_key(key, as_of + 1, False))
            between = _of(cursor, key)
            assert between is not None, "at least the version before lies above"
            superseded = between[0]
            cursor.next()
            if (at := _of(cursor, key)) is None:
                break
            return Moment(key, newer, superseded, at[0], None if at[1] else cursor.value())
        newer.append(at)
        cursor.next()
    return Moment(key, newer, superseded, None, None)


def scan(
    cursor: Cursor,
    start: bytes,
    end: bytes | None,
    reverse: bool,
    as_of: int,
    count_max: int,
    keys_max: int,
    bytes_max: int,
) -> tuple[list[Moment], bytes | None]:
    """Moments of the keys with start <= key < end, in order or backwards, and where the rest begins (backwards:
    what it ends before), None if there is none. ``start`` and ``end`` are first parts of keys, or follow one."""
    found: list[Moment] = []
    size = 0
    key = _last_before(cursor, end) if reverse else _first_from(cursor, start)
    while key is not None and key >= start and (end is None or key < end):
        if len(found) >= keys_max or size >= bytes_max:
            return found, found[-1].key if reverse else found[-1].key + b"\x00"
        at = moment(cursor, key, as_of, count_max)
        found.append(at)
        size += len(key) + 16 * len(at.newer) + (len(at.row) if at.row is not None else 16)
        key = _before(cursor, key) if reverse else _first_from(cursor, key + b"\x00")
    return found, None


def excess(
    cursor: Cursor, start: bytes, bounds: Removable, keys_max: int, records_max: int
) -> tuple[Excess, bytes | None]:
    """(key, version, is a deletion) of what ``bounds`` allows to remove, the keys from ``start`` on, and where the
    next look begins, None at the end. A key with more than ``records_max`` of them is looked at again."""
    found: Excess = []
    key = _first_from(cursor, start)
    for _ in range(keys_max):
        if key is None:
            return found, None
        if len(found) >= records_max:
            return found, key
        forgotten = _to_excess(cursor, key, bounds)
        while len(found) < records_max and (at := _of(cursor, key)) is not None:
            found.append((key, *at))
            cursor.next()
        if len(found) >= records_max and (forgotten is not None or _of(cursor, key) is not None):
            return found, key
        if forgotten is not None:
            found.append((key, *forgotten))  # last: without it the versions before would look alive
        key = _first_from(cursor, key + b"\x00")
    return found, key


def _to_excess(cursor: Cursor, key: bytes, bounds: Removable) -> tuple[int, bool] | None:
    """To the first of the key's versions that may go, or beyond all of them. Returns the newest one, and goes to
    the one after it, if the whole key may go."""
    cursor.seek(key + _BEFORE_ALL)
    newest = _of(cursor, key)
    if newest is None:
        return None
    if newest[1] and newest[0] <= bounds.deleted_max:
        cursor.next()
        return newest
    lowest = VERSION_MAX  # of those that stay, by their number
    for _ in range(bounds.keep_versions):
        at = _of(cursor, key)
        if at is None:
            return None
        lowest = at[0]
        cursor.next()
    if bounds.superseded_max is not None and lowest > bounds.superseded_max:
        cursor.seek(history_key(key, bounds.superseded_max, True))  # it stays: its successor lies above
        if _of(cursor, key) is not None:
            cursor.next()
    return None


def _of(cursor: Cursor, key: bytes) -> tuple[int, bool] | None:
    """(version, is a deletion) at the cursor, if that is one of the key's."""
    raw = cursor.key()
    if raw is None or len(raw) != len(key) + SUFFIX_BYTES or not raw.startswith(key):
        return None
    _, version, is_deletion = split_history_key(raw)
    return version, is_deletion


def _first_from(cursor: Cursor, start: bytes) -> bytes | None:
    """The first row key >= ``start``."""
    cursor.seek(start)
    while (raw := cursor.key()) is not None:
        key = raw[:-SUFFIX_BYTES]
        if key >= start:
            return key
        cursor.seek(key + _BEHIND_ALL)
    return None


def _last_before(cursor: Cursor, end: bytes | None) -> bytes | None:
    """The last row key < ``end``."""
    if end is None:
        cursor.to_last()
    else:
        if end.endswith(b"\x00"):  # it may follow a key, whose versions then lie behind it
            cursor.seek(end[:-1] + _BEFORE_ALL)
            if _of(cursor, end[:-1]) is not None:
                return end[:-1]
        cursor.seek_back(end)
    raw = cursor.key()
    return raw[:-SUFFIX_BYTES] if raw is not None else None


def _before(cursor: Cursor, key: bytes) -> bytes | None:
    """The last row key before this one, which has versions."""
    cursor.seek_back(key)
    raw = cursor.key()
    return raw[:-SUFFIX_BYTES] if raw is not None else None
