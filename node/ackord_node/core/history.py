"""A row's versions: how long they can be read, and what the state was at an earlier version.

Retention is a rule, the same on every replica, whatever each has removed from its disk. Of a key's versions,
newest first, the i-th can be read iff i < ``keep_versions``, or it was superseded less than ``keep_for`` before
the tablet's clock T (rule R20). A deletion is a version too. A key that was deleted longer than the grace before
T is forgotten with all its versions; so a deletion that was followed so late by the next version is a border that
hides everything older, since another replica may have forgotten it.

Replicas remove only what the rule hides, always a key's oldest versions first, so that no reader sees whether one
has. What existed at a version that can no longer be told is an error, never a wrong "there was no row".
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from ackord.errors import VersionCollected
from ackord.wire.messages import VERSION_COUNTER_BITS
from ackord.wire.options import TableOptions
from ackord_node.core.log import Entry

VERSION_MAX = (1 << 63) - 1
SUFFIX_BYTES = 8
_SUFFIX = struct.Struct(">Q")
_ALL = (1 << 64) - 1


class Moment(NamedTuple):
    """What a key was at one version. ``newer``: its newest versions above, newest first, with whether each is a
    deletion, up to as many as were asked for; ``superseded``: the lowest version above. ``version`` None: nothing
    is stored of that time or before. ``row`` None: it was deleted then."""

    key: bytes
    newer: list[tuple[int, bool]]
    superseded: int | None
    version: int | None
    row: bytes | None


class Removable(NamedTuple):
    """What may be removed: versions that are not among the ``keep_versions`` newest and whose successor is not
    above ``superseded_max`` (None: whatever it is); all of a key that was deleted not above ``deleted_max``."""

    keep_versions: int
    superseded_max: int | None
    deleted_max: int


# ------------------------------------------------------------------------------ stored form


def history_key(key: bytes, version: int, is_deletion: bool) -> bytes:
    """Keys in order, and the versions of one key with the newest first. No key may be a prefix of another."""
    return key + _SUFFIX.pack(_ALL - (version << 1 | is_deletion))


def split_history_key(raw: bytes) -> tuple[bytes, int, bool]:
    """(key, version, whether it is a deletion)"""
    number = _ALL - int(_SUFFIX.unpack_from(raw, len(raw) - SUFFIX_BYTES)[0])
    return raw[:-SUFFIX_BYTES], number >> 1, bool(number & 1)


# -------------------------------------------------------------------------------- the rule


class Retention:
    """The rule for one table. ``grace_ms``: how long a deletion is remembered at least."""

    __slots__ = ("_grace_ms", "_keep_for_ms", "keep_versions")

    def __init__(self, options: TableOptions, tombstone_keep_ms: int) -> None:
        self.keep_versions = options.keep_versions
        self._keep_for_ms = options.keep_for_ms
        self._grace_ms = max(tombstone_keep_ms, options.keep_for_ms)

    @property
    def horizon_ms(self) -> int:
        """So long after the last change nothing is left for the clock to bring about."""
        return self._grace_ms

    def removable(self, clock_ms: int) -> Removable:
        """What may be removed once the clock has durably reached ``clock_ms``."""
        superseded = _last_version(clock_ms - self._keep_for_ms) if self._keep_for_ms else None
        return Removable(self.keep_versions, superseded, _last_version(clock_ms - self._grace_ms))

    def row_at(self, found: Moment, as_of: int, clock_ms: int) -> bytes | None:
        """The row at ``as_of``, None if there was none; VersionCollected if that cannot be told any more."""
        if found.version is not None and self._is_readable(found, clock_ms):
            return found.row
        if self._was_absent(found, as_of, clock_ms):
            return None
        raise VersionCollected(
            f"what the row was at version {as_of} is no longer kept",
            version=as_of,
            oldest=found.newer[-1][0] if found.newer else None,
        )

    def check_scan(self, as_of: int, clock_ms: int) -> None:
        """VersionCollected if a row may have lived at ``as_of`` that was forgotten since, with its key."""
        if _ms(as_of) + self._grace_ms <= clock_ms:
            raise VersionCollected(
                f"rows that were deleted since version {as_of} may be forgotten by now", version=as_of
            )

    def kept(self, found: Moment, clock_ms: int) -> bool:
        """Whether the version that was found can be read."""
        return found.version is not None and self._is_readable(found, clock_ms)

    def kept_count(self, first: Moment, run: list[tuple[int, bytes | None]], clock_ms: int) -> int:
        """How many of a run of a key's versions, newest first, can be read; ``first`` is the moment of its first."""
        if not self.kept(first, clock_ms):
            return 0
        place, newer = len(first.newer), run[0][0]
        for at, (version, row) in enumerate(run[1:], 1):
            is_kept = place + at < self.keep_versions or self._is_recent(newer, clock_ms)
            if not is_kept or self._has_border([(newer, False), (version, row is None)], clock_ms):
                return at
            newer = version
        return len(run)

    def _is_readable(self, found: Moment, clock_ms: int) -> bool:
        assert found.version is not None
        at = (found.version, found.row is None)
        if len(found.newer) < self.keep_versions:
            return not self._has_border([*found.newer, at], clock_ms)
        if found.superseded is None or not self._is_recent(found.superseded, clock_ms):
            return False
        return not self._has_border([(found.superseded, False), at], clock_ms)

    def _is_recent(self, superseded: int, clock_ms: int) -> bool:
        """Whether what was superseded by this version is kept for that reason."""
        return self._keep_for_ms > 0 and _ms(superseded) + self._keep_for_ms > clock_ms

    def _has_border(self, chain: list[tuple[int, bool]], clock_ms: int) -> bool:
        """Whether a deletion in it was, or may have been, forgotten with all that is older."""
        for at, (version, is_deletion) in enumerate(chain):
            forgotten_ms = _ms(version) + self._grace_ms
            if (
                is_deletion
                and forgotten_ms <= clock_ms
                and (at == 0 or _ms(chain[at - 1][0]) >= forgotten_ms)
            ):
                return True
        return False

    def _was_absent(self, found: Moment, as_of: int, clock_ms: int) -> bool:
        """Whether nothing older than what is stored can have been removed that was there at ``as_of``."""
        if _ms(as_of) + self._grace_ms <= clock_ms:
            return False  # the key may have lived, been deleted and been forgotten
        if len(found.newer) < self.keep_versions:
            return True
        return found.superseded is not None and self._is_recent(found.superseded, clock_ms)


class Recent:
    """Versions of committed entries that the store does not hold yet, of a table with history (rule R12)."""

    __slots__ = ("_versions",)

    def __init__(self) -> None:
        self._versions: dict[bytes, list[tuple[int, bytes | None]]] = {}  # the oldest first

    def committed(self, entry: Entry) -> None:
        for key, version, row in entry.versions():
            self._versions.setdefault(key, []).append((version, row))

    def applied(self, entry: Entry) -> None:
        """The engine holds the entry's versions durably."""
        for key, version, _ in entry.versions():
            versions = self._versions.get(key)
            if versions is not None:
                while versions and versions[0][0] <= version:
                    versions.pop(0)
                if not versions:
                    del self._versions[key]

    def clear(self) -> None:
        self._versions.clear()

    def keys_in(self, start: bytes, end: bytes | None) -> list[bytes]:
        return sorted(key for key in self._versions if start <= key and (end is None or key < end))

    def over(self, key: bytes, stored: Callable[[], Moment], as_of: int, count_max: int) -> Moment:
        """What the key was at ``as_of``: these over what is ``stored``."""
        versions = self._versions.get(key)
        if versions is None:
            return stored()
        newer = [(version, row is None) for version, row in reversed(versions) if version > as_of]
        superseded = newer[-1][0] if newer else None
        newer = newer[:count_max]
        for version, row in reversed(versions):
            if version <= as_of:
                return Moment(key, newer, superseded, version, row)
        found = stored()  # the engine may hold some of these already
        newer += [item for item in found.newer if item[0] < versions[0][0]]
        superseded = superseded if found.superseded is None else found.superseded
        return Moment(key, newer[:count_max], superseded, found.version, found.row)

    def versions_of(self, key: bytes) -> list[tuple[int, bytes | None]]:
        """Newest first."""
        return self._versions.get(key, [])[::-1]


def _ms(version: int) -> int:
    return version >> VERSION_COUNTER_BITS


def _last_version(ms: int) -> int:
    """The highest version of this millisecond; 0 if there is none."""
    return max(((ms + 1) << VERSION_COUNTER_BITS) - 1, 0)
