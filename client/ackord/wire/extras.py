"""What a write may say beside its columns: how long the row lives, and the timestamps of its cells.

It stands before the body: ``0xC1 | length (2 bytes) | msgpack map | body``. No msgpack begins with 0xC1, so a
write that says nothing of this kind looks as it always did.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ackord.errors import InvalidRequest
from ackord.wire.frames import packb, unpackb
from ackord.wire.keys import INT64_MAX, INT64_MIN
from ackord.wire.messages import OWN_MARK
from ackord.wire.options import check_seconds, milliseconds

_LENGTH: Final = struct.Struct(">H")
_HEAD_BYTES: Final = 1 + _LENGTH.size
_TTL_MS_MAX: Final = 1 << 53
TIMESTAMPS_MAX: Final = 1_024


@dataclass(frozen=True, slots=True)
class Extras:
    """``ttl_ms``: so long after the write's version the row expires; 0: as the table says. ``timestamp``: of all
    cells that the write makes, ``timestamps``: of single columns' (milliseconds); None: the write's version's.
    ``delete_cells``: column -> timestamps of cells to delete."""

    ttl_ms: int = 0
    timestamp: int | None = None
    timestamps: Mapping[str, int] | None = None
    delete_cells: Mapping[str, Sequence[int]] | None = None

    @property
    def has_cells(self) -> bool:
        return self.timestamp is not None or bool(self.timestamps) or bool(self.delete_cells)


NO_EXTRAS: Final = Extras()


def encode_extras(
    body: bytes,
    ttl: float | None = None,
    timestamp: int | Mapping[str, int] | None = None,
    delete_cells: Mapping[str, Sequence[int]] | None = None,
) -> bytes:
    """The body with what is given before it; ``ttl`` in seconds. InvalidRequest names what cannot be."""
    said: dict[str, Any] = {}
    if ttl is not None:
        check_seconds("ttl", ttl)
        said["ttl"] = milliseconds(ttl)
    if timestamp is not None:
        said["timestamp"] = dict(timestamp) if isinstance(timestamp, Mapping) else timestamp
    if delete_cells:
        if not isinstance(delete_cells, Mapping):
            raise _bad("delete_cells", "delete_cells is a map of columns to timestamps", delete_cells)
        said["cells"] = {
            name: list(times) if isinstance(times, list | tuple | set | frozenset) else times
            for name, times in delete_cells.items()
        }
    if not said:
        return body
    _extras(said)
    head = packb(said)
    if len(head) > 0xFFFF:
        raise _bad("timestamp", "the timestamps of one write take more than 65535 bytes", len(head))
    return OWN_MARK + _LENGTH.pack(len(head)) + head + body


def split_extras(body: bytes) -> tuple[Extras, bytes]:
    """(what was said, the body proper); InvalidRequest if it is garbled."""
    if body[:1] != OWN_MARK:
        return NO_EXTRAS, body
    if len(body) < _HEAD_BYTES:
        raise _bad("body", "the body ends in its head", len(body))
    end = _HEAD_BYTES + int(_LENGTH.unpack_from(body, 1)[0])
    try:
        said = unpackb(body[_HEAD_BYTES:end])
    except ValueError as error:
        raise _bad("body", f"the head of the body: {error}", None) from None
    if type(said) is not dict:
        raise _bad("body", "the head of the body is no map", said)
    return _extras(said), body[end:]


def _extras(said: dict[str, Any]) -> Extras:
    for name in said:
        if name not in ("ttl", "timestamp", "cells"):
            raise _bad("body", f"unknown field {ascii(name)[:40]} in the head of the body", name)
    ttl_ms = said.get("ttl", 0)
    if type(ttl_ms) is not int or not 0 <= ttl_ms <= _TTL_MS_MAX:
        raise _bad("ttl", f"ttl of {ascii(ttl_ms)[:40]} ms", ttl_ms)
    timestamp = said.get("timestamp")
    times: Any = None
    if isinstance(timestamp, dict):
        times, timestamp = timestamp, None
        for name, time in times.items():
            _check_time(name, time)
    elif timestamp is not None:
        _check_time("timestamp", timestamp)
    cells = said.get("cells")
    if cells is not None:
        if type(cells) is not dict or not all(type(times) is list for times in cells.values()):
            raise _bad("delete_cells", "delete_cells is a map of columns to lists of timestamps", cells)
        for name, deleted in cells.items():
            for time in deleted:
                _check_time(name, time)
    return Extras(ttl_ms, timestamp, times, cells)


def _check_time(name: Any, time: Any) -> None:
    if type(name) is not str or type(time) is not int or not INT64_MIN <= time <= INT64_MAX:
        raise _bad(
            "timestamp", f"{ascii(name)[:40]}: {ascii(time)[:40]} is not a timestamp in milliseconds", time
        )


def _bad(field: str, message: str, value: Any) -> InvalidRequest:
    return InvalidRequest(message, field=field, value=ascii(value)[:60])
