"""Primary keys as bytes whose order is the order of the Python tuples.

A key is the concatenation of its columns, the partition key first:

* ``int``: 8 bytes big endian with the sign bit flipped, so that negative numbers sort first;
* ``str`` (as UTF-8) and ``bytes``: each 0x00 becomes 00 FF, then the terminator 00 01. No escaped content
  sorts between a value and its extensions, because 01 < FF, and no column can run into the next.

The last column may be of type "auto": an int that the tablet's coordinator gives to each new row, the version
of the write that makes it, hence strictly increasing within a partition key (within a tablet, even).

So the bytes of the first columns are a prefix of exactly the keys that begin with those values, and "all rows
of one partition key" is one contiguous range.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ackord.errors import InvalidRequest
from ackord.wire.limits import DEFAULT_LIMITS

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1
KEY_TYPES: Final = ("int", "str", "bytes", "auto")

_PACK_INT = struct.Struct(">Q").pack
_UNPACK_INT = struct.Struct(">Q").unpack
_SIGN: Final = 1 << 63
_END: Final = b"\x00\x01"
_ZERO: Final = b"\x00\xff"  # a 0x00 inside a value

_PATTERNS: Final = {
    "int": rb"(.{8})",
    "str": rb"((?:[^\x00]++|\x00\xff)*+)\x00\x01",
    "bytes": rb"((?:[^\x00]++|\x00\xff)*+)\x00\x01",
}


class Auto:
    """The type of ``AUTO``."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "ackord.AUTO"


AUTO: Final = Auto()  # as a key column's type: numbered by the table; in a key: the number to come


@dataclass(frozen=True, slots=True)
class KeySchema:
    """Names and types of a table's key columns, 1 to 4; encodes and decodes keys.

    ``columns`` holds (name, "int" | "str" | "bytes" | "auto"), ``types`` how each is encoded: "auto" as "int".
    ``column_bytes_max`` bounds one column's value before encoding. Raises InvalidRequest if the columns
    themselves are impossible.
    """

    columns: tuple[tuple[str, str], ...]
    column_bytes_max: int = DEFAULT_LIMITS.key_column_bytes
    types: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _pattern: re.Pattern[bytes] = field(init=False, repr=False, compare=False)
    _tail: struct.Struct = field(
        init=False, repr=False, compare=False
    )  # of the ints that all columns end with

    def __post_init__(self) -> None:
        _check_columns(self.columns)
        types = tuple("int" if kind == "auto" else kind for _, kind in self.columns)
        pattern = b"".join(_PATTERNS[kind] for kind in types)
        object.__setattr__(self, "types", types)
        object.__setattr__(self, "_pattern", re.compile(pattern, re.DOTALL))
        head = types
        while head and head[-1] == "int":
            head = head[:-1]
        object.__setattr__(self, "_tail", struct.Struct(">" + "Q" * (len(types) - len(head))))

    @classmethod
    def from_wire(cls, wire: Any, column_bytes_max: int = DEFAULT_LIMITS.key_column_bytes) -> KeySchema:
        """From ``[[name, type], ...]``; InvalidRequest if it is anything else."""
        if not isinstance(wire, list | tuple):
            raise InvalidRequest("key must be a list of [column, type]", field="key", value=repr(wire)[:100])
        columns = []
        for item in wire:
            if not isinstance(item, list | tuple) or len(item) != 2:
                raise InvalidRequest(
                    f"key: {repr(item)[:100]} is not [column, type]", field="key", value=repr(item)[:100]
                )
            columns.append((item[0], item[1]))
        return cls(tuple(columns), column_bytes_max)

    def to_wire(self) -> list[list[str]]:
        return [[name, kind] for name, kind in self.columns]

    def encode(self, key: Any) -> bytes:
        """The key as bytes. ``key`` is a tuple (or list) with one value per column, or the bare value of a
        single column. InvalidRequest names the column, the value and the limit."""
        if type(key) is not tuple:
            key = tuple(key) if type(key) is list else (key,)
        if len(key) != len(self.types):
            names = ", ".join(f"{name}: {kind}" for name, kind in self.columns)
            raise InvalidRequest(
                f"the key {_shown(key)} has {len(key)} columns, the table's key has {len(self.types)} "
                f"({names})",
                field="key",
                value=_shown(key),
                limit=len(self.types),
            )
        return self._encode(key)

    @property
    def is_auto(self) -> bool:
        """Whether the last column is numbered by the table."""
        return self.columns[-1][1] == "auto"

    def encode_auto(self, key: tuple[Any, ...]) -> bytes:
        """A key that ends with AUTO, as the bytes of the columns before; InvalidRequest."""
        if len(key) != len(self.types) or not self.is_auto or not is_auto_key(key):
            raise InvalidRequest(
                "AUTO stands for the last column of a whole key, in a table whose last key column is AUTO",
                field=self.columns[-1][0],
                value=_shown(key),
            )
        return self._encode(key[:-1])

    def complete_auto(self, prefix: bytes, version: int) -> bytes:
        """The whole key of what ``encode_auto`` made; InvalidRequest if it made no such bytes."""
        key = prefix + _PACK_INT(version + _SIGN)
        if not self.is_auto or not self.is_valid(key):
            raise InvalidRequest(
                f"the key {prefix[:32]!r} cannot be completed by a number: it must be all columns but the last, of "
                "a table whose last key column is AUTO",
                field="key",
            )
        return key

    def is_partition(self, encoded: Any) -> bool:
        """Whether these bytes, from a client that is not trusted, are what ``encode_prefix`` makes of some first
        column."""
        return KeySchema(self.columns[:1], self.column_bytes_max).is_valid(encoded)

    def encode_prefix(self, values: Any) -> bytes:
        """The bytes with which exactly the keys begin whose first columns are ``values`` (may be empty)."""
        if type(values) is not tuple:
            values = tuple(values) if type(values) is list else (values,)
        if len(values) > len(self.types):
            raise InvalidRequest(
                f"the key prefix {_shown(values)} has {len(values)} columns, the key has {len(self.types)}",
                field="key",
                value=_shown(values),
                limit=len(self.types),
            )
        return self._encode(values)

    def prefix_range(self, values: Any) -> tuple[bytes, bytes | None]:
        """(start, end): the keys with start <= key < end are those that begin with ``values``; an end of None
        is no bound."""
        start = self.encode_prefix(values)
        return start, after_prefix(start)

    def decode(self, encoded: bytes) -> tuple[Any, ...]:
        """The key's values; ValueError if the bytes are not a key of this schema."""
        match = self._pattern.fullmatch(encoded)
        if match is None:
            raise ValueError(f"not a key of {self.columns}: {encoded[:40]!r}")
        values: list[Any] = []
        for kind, raw in zip(self.types, match.groups(), strict=True):
            if kind == "int":
                values.append(_UNPACK_INT(raw)[0] - _SIGN)
                continue
            plain = raw.replace(_ZERO, b"\x00") if b"\x00" in raw else raw
            values.append(plain.decode() if kind == "str" else plain)
        return tuple(values)

    def decode_many(self, keys: Sequence[bytes]) -> list[tuple[Any, ...]]:
        """``decode`` of each key; cheaper for keys in order, where many begin with the same columns."""
        tail, decode = self._tail, self.decode
        size = tail.size
        if not size:
            return [decode(key) for key in keys]
        unpack, count = tail.unpack_from, size // 8
        found: list[tuple[Any, ...]] = []
        last: bytes | None = None
        head: tuple[Any, ...] = ()
        for key in keys:
            cut = len(key) - size
            if key[:cut] != last:
                head, last = decode(key)[:-count], key[:cut]
            if count == 1:
                found.append((*head, unpack(key, cut)[0] - _SIGN))
            else:
                found.append((*head, *[value - _SIGN for value in unpack(key, cut)]))
        return found

    def is_valid(self, encoded: Any) -> bool:
        """Whether these bytes, from a client that is not trusted, are what ``encode`` makes of some key."""
        if type(encoded) is not bytes:
            return False
        if self._tail.size == 8 * len(self.types):  # ints only
            return len(encoded) == self._tail.size
        match = self._pattern.fullmatch(encoded)
        if match is None:
            return False
        limit = self.column_bytes_max
        for kind, raw in zip(self.types, match.groups(), strict=True):
            if kind == "int":
                continue
            if len(raw) > limit and len(raw) - raw.count(b"\x00") > limit:
                return False
            if kind == "str" and not raw.isascii() and not _is_utf8(raw):
                return False
        return True

    def _encode(self, values: tuple[Any, ...]) -> bytes:
        parts: list[bytes] = []
        limit = self.column_bytes_max
        for kind, value in zip(self.types, values, strict=False):
            if kind == "int":
                if type(value) is not int or not INT64_MIN <= value <= INT64_MAX:
                    raise self._refusal(values)
                parts.append(_PACK_INT(value + _SIGN))
                continue
            if kind == "str":
                if type(value) is not str:
                    raise self._refusal(values)
                try:
                    raw = value.encode()
                except UnicodeEncodeError:
                    raise self._refusal(values) from None
            elif type(value) is bytes:
                raw = value
            else:
                raise self._refusal(values)
            if len(raw) > limit:
                raise self._refusal(values)
            if b"\x00" in raw:
                raw = raw.replace(b"\x00", _ZERO)
            parts.append(raw + _END)
        return b"".join(parts)

    def _refusal(self, values: tuple[Any, ...]) -> InvalidRequest:
        """Why the first wrong column is wrong; only made on the error path."""
        for (name, _), kind, value in zip(self.columns, self.types, values, strict=False):
            problem = _problem(kind, value, self.column_bytes_max)
            if problem is not None:
                text, limit = problem
                return InvalidRequest(
                    f"key column {name!r}: {text}", field=name, value=_shown(value), limit=limit
                )
        raise AssertionError("a refused key has a wrong column")


def is_auto_key(key: Any) -> bool:
    return type(key) is tuple and len(key) > 1 and key[-1] is AUTO


def after_prefix(prefix: bytes) -> bytes | None:
    """The least bytes greater than everything that begins with ``prefix``; None if there are none."""
    trimmed = prefix.rstrip(b"\xff")
    if not trimmed:
        return None
    return trimmed[:-1] + bytes([trimmed[-1] + 1])


def _check_columns(columns: tuple[tuple[str, str], ...]) -> None:
    most = DEFAULT_LIMITS.key_columns_count
    if not 1 <= len(columns) <= most:
        raise InvalidRequest(
            f"a key has 1 to {most} columns, not {len(columns)}", field="key", value=len(columns), limit=most
        )
    names = set()
    for name, kind in columns:
        if type(name) is not str or not name or not _fits(name, DEFAULT_LIMITS.column_name_bytes):
            raise InvalidRequest(
                f"key: the column name {_shown(name)} is not text of 1 to "
                f"{DEFAULT_LIMITS.column_name_bytes} bytes",
                field="key",
                value=_shown(name),
                limit=DEFAULT_LIMITS.column_name_bytes,
            )
        if kind not in KEY_TYPES:
            raise InvalidRequest(
                f"key column {name!r}: the type {_shown(kind)} is none of {', '.join(KEY_TYPES)}",
                field=name,
                value=_shown(kind),
                limit=list(KEY_TYPES),
            )
        if name in names:
            raise InvalidRequest(f"key: the column {name!r} is named twice", field="key", value=name)
        names.add(name)
    for name, kind in columns[:-1] if len(columns) > 1 else columns:
        if kind == "auto":
            raise InvalidRequest(
                f"key column {name!r}: AUTO may only be the last of two or more key columns",
                field=name,
                value="auto",
            )


def _fits(text: str, bytes_max: int) -> bool:
    try:
        return len(text.encode()) <= bytes_max
    except UnicodeEncodeError:
        return False


def _problem(kind: str, value: Any, bytes_max: int) -> tuple[str, Any] | None:
    if value is AUTO:
        return "AUTO stands only for the last key column of a new row, in a table that has it there", kind
    if type(value).__name__ != kind:
        return f"{_shown(value)} is of type {type(value).__name__}, not {kind}", kind
    if kind == "int":
        if INT64_MIN <= value <= INT64_MAX:
            return None
        return f"{_shown(value)} does not fit in 64 bits", [INT64_MIN, INT64_MAX]
    if kind == "str":
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            return f"{_shown(value)} contains a lone surrogate, which UTF-8 cannot express", "UTF-8"
    else:
        size = len(value)
    if size > bytes_max:
        return f"{_shown(value)} takes {size} bytes, over the limit of {bytes_max}", bytes_max
    return None


def _shown(value: Any) -> str:
    """A short ASCII form for messages (a lone surrogate must not break the error itself)."""
    if type(value) is int and value.bit_length() > 256:
        return f"an int of {value.bit_length()} bits"
    text = ascii(value[:60] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 80 else text[:77] + "..."


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.replace(_ZERO, b"\x00").decode()
    except UnicodeDecodeError:
        return False
    return True
