"""Column values: what a row may hold, and its encoding.

A value is None, bool, an int of 64 bits, float, str, bytes, or a list or str-keyed map of values, nested to a
limit. Types are taken exactly: a subclass would come back as its base class, so it is refused, not changed
silently. The columns of a row are one msgpack map that the client encodes once; nodes check it and store the
same bytes. Where a map names a key twice, the last one counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ackord.errors import InvalidRequest
from ackord.wire.frames import packb, unpackb
from ackord.wire.keys import INT64_MAX, INT64_MIN
from ackord.wire.limits import DEFAULT_LIMITS, Limits

__all__ = [
    "INT64_MAX",
    "INT64_MIN",
    "check_columns",
    "check_update",
    "decode_columns",
    "encode_columns",
    "encode_update",
]

Update = tuple[dict[str, Any], list[str], dict[str, int]]

_PLAIN: Final = frozenset((str, bytes, float, bool, type(None)))
_SHORT_CHARS: Final = 63  # so many characters take at most 252 bytes of UTF-8


def encode_columns(columns: Mapping[str, Any], limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The columns as msgpack; InvalidRequest names the column, the value and the limit."""
    plain = columns if type(columns) is dict else _as_dict(columns, "columns")
    _check_map(plain, limits)
    blob = _packed(plain, plain)
    _check_size(len(blob), limits)
    return blob


def decode_columns(blob: bytes | memoryview) -> dict[str, Any]:
    """The columns of bytes that were checked before; ValueError if they are no map."""
    columns = unpackb(blob)
    if type(columns) is not dict:
        raise ValueError(f"columns are a {type(columns).__name__}, not a map")
    return columns


def check_columns(blob: Any, limits: Limits = DEFAULT_LIMITS) -> dict[str, Any]:
    """Decodes columns from a client that is not trusted; InvalidRequest unless ``encode_columns`` could have
    made them, up to msgpack's freedom in how to write an int, a float or a length."""
    columns = _untrusted(blob, "columns", limits)
    if type(columns) is not dict:
        raise _invalid(
            "columns", f"columns are a {type(columns).__name__}, not a map", type(columns).__name__
        )
    _check_map(columns, limits)
    return columns


def encode_update(
    set: Mapping[str, Any] | None = None,
    delete: Sequence[str] = (),
    increment: Mapping[str, int] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> bytes:
    """The body of an update: columns to set, columns to delete, ints to add to columns."""
    if isinstance(delete, str | bytes) or not isinstance(delete, list | tuple | frozenset):
        raise _invalid("delete", "delete must be a list of column names", ascii(delete)[:80])
    changes = _as_dict({} if set is None else set, "set")
    removed = list(delete)
    increments = _as_dict({} if increment is None else increment, "increment")
    _check_update(changes, removed, increments, limits)
    blob = _packed([changes, removed, increments], changes)
    _check_size(len(blob), limits)
    return blob


def check_update(blob: Any, limits: Limits = DEFAULT_LIMITS) -> Update:
    """Decodes an update from a client that is not trusted: (set, delete, increment); InvalidRequest."""
    update = _untrusted(blob, "update", limits)
    if type(update) is not list or len(update) != 3:
        raise _invalid("update", "an update is [set, delete, increment]", type(update).__name__)
    changes, removed, increments = update
    if type(changes) is not dict or type(removed) is not list or type(increments) is not dict:
        raise _invalid("update", "an update is [map, list, map]", ascii(update)[:80])
    _check_update(changes, removed, increments, limits)
    return changes, removed, increments


def _untrusted(blob: Any, field: str, limits: Limits) -> Any:
    if type(blob) is not bytes:
        raise _invalid(
            field, f"{field} must be msgpack bytes, not {type(blob).__name__}", type(blob).__name__
        )
    _check_size(len(blob), limits)
    try:
        return unpackb(blob)
    except ValueError as error:
        raise _invalid(field, f"{field}: {error}", ascii(blob[:40])) from None


def _check_map(columns: dict[str, Any], limits: Limits) -> None:
    if len(columns) > limits.columns_count:
        raise InvalidRequest(
            f"{len(columns)} columns, over the limit of {limits.columns_count}",
            field="columns",
            value=len(columns),
            limit=limits.columns_count,
        )
    for name, value in columns.items():
        if type(name) is not str or not 0 < len(name) <= _SHORT_CHARS:
            _check_name(name, limits)
        kind = type(value)
        if kind in _PLAIN:
            continue
        if kind is int and INT64_MIN <= value <= INT64_MAX:
            continue
        _check_value(name, value, 1, limits)


def _check_name(name: Any, limits: Limits) -> None:
    if type(name) is not str:
        raise _invalid(
            "columns",
            f"a column name must be str, {ascii(name)[:60]} is {type(name).__name__}",
            ascii(name)[:60],
        )
    size = _utf8_bytes(name)
    if size is None:
        raise _surrogate(ascii(name)[:80], name)
    if not 0 < size <= limits.column_name_bytes:
        raise InvalidRequest(
            f"the column name {name[:40]!a} takes {size} bytes, not 1 to {limits.column_name_bytes}",
            field=name[:255],
            value=size,
            limit=limits.column_name_bytes,
        )


def _check_value(field: str, value: Any, depth: int, limits: Limits) -> None:
    kind = type(value)
    if kind in _PLAIN:
        return
    if kind is int:
        if not INT64_MIN <= value <= INT64_MAX:
            shown = str(value) if value.bit_length() < 256 else f"an int of {value.bit_length()} bits"
            raise InvalidRequest(
                f"column {_name(field)}: {shown} does not fit in 64 bits",
                field=_clean(field),
                value=shown,
                limit=[INT64_MIN, INT64_MAX],
            )
        return
    if kind is not list and kind is not dict:
        raise InvalidRequest(
            f"column {_name(field)}: {ascii(value)[:60]} is of type {kind.__name__}; "
            "a value is None, bool, int, float, str, bytes, list or dict",
            field=_clean(field),
            value=kind.__name__,
            limit="None, bool, int, float, str, bytes, list, dict",
        )
    if depth > limits.value_depth_count:
        raise InvalidRequest(
            f"column {_name(field)}: nested deeper than {limits.value_depth_count} lists and maps",
            field=_clean(field),
            value=depth,
            limit=limits.value_depth_count,
        )
    if kind is dict:
        for name in value:
            if type(name) is not str:
                raise InvalidRequest(
                    f"column {_name(field)}: the map key {ascii(name)[:60]} is no str",
                    field=_clean(field),
                    value=ascii(name)[:60],
                    limit="str",
                )
        value = value.values()
    for item in value:
        _check_value(field, item, depth + 1, limits)


def _check_update(
    changes: dict[str, Any], removed: list[str], increments: dict[str, int], limits: Limits
) -> None:
    _check_map(changes, limits)
    if len(removed) + len(increments) > 2 * limits.columns_count:
        raise _invalid("update", "more columns than a row can have", len(removed) + len(increments))
    seen = dict.fromkeys(changes, "set")
    for name in removed:
        _check_name(name, limits)
        if name in seen:
            raise _invalid(name, f"column {_name(name)} stands in {seen[name]} and again in delete", name)
        seen[name] = "delete"
    for name, amount in increments.items():
        _check_name(name, limits)
        if name in seen:
            raise _invalid(name, f"column {_name(name)} stands in {seen[name]} and again in increment", name)
        if type(amount) is not int:
            raise _invalid(
                name,
                f"increment of column {_name(name)}: {ascii(amount)[:60]} is not an int",
                ascii(amount)[:60],
            )
        _check_value(name, amount, 1, limits)


def _packed(value: Any, columns: dict[str, Any]) -> bytes:
    try:
        return packb(value)
    except UnicodeEncodeError:
        for name, item in columns.items():
            if _has_surrogate(name) or _has_surrogate(item):
                raise _surrogate(ascii(name)[:80], item if _utf8_bytes(name) is not None else name) from None
        raise


def _has_surrogate(value: Any) -> bool:
    try:
        packb(value)
    except UnicodeEncodeError:
        return True
    return False


def _surrogate(name: str, value: Any) -> InvalidRequest:
    return InvalidRequest(
        f"column {name}: {ascii(value)[:60]} contains a lone surrogate, which UTF-8 cannot express",
        field=name,
        value=ascii(value)[:60],
        limit="UTF-8",
    )


def _check_size(size: int, limits: Limits) -> None:
    if size > limits.row_bytes:
        raise InvalidRequest(
            f"the columns take {size} bytes, over the limit of {limits.row_bytes} for a row",
            field="columns",
            value=size,
            limit=limits.row_bytes,
        )


def _as_dict(mapping: Any, field: str) -> dict[Any, Any]:
    if not isinstance(mapping, Mapping):
        raise _invalid(field, f"{field} must be a dict, not {type(mapping).__name__}", ascii(mapping)[:80])
    return dict(mapping)


def _utf8_bytes(text: str) -> int | None:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return None


def _name(field: str) -> str:
    return ascii(field) if _utf8_bytes(field) is None else repr(field[:80])


def _clean(field: str) -> str:
    """A name that can itself travel in an error."""
    return ascii(field)[:80] if _utf8_bytes(field) is None else field


def _invalid(field: str, message: str, value: Any) -> InvalidRequest:
    return InvalidRequest(message, field=field, value=value)
