"""Column values: what a row may hold, and its encoding.

A value is None, bool, an int of 64 bits, float, str, bytes, or a list or str-keyed map of values, nested to a
limit. Types are taken exactly: a subclass would come back as its base class, so it is refused, not changed
silently. The columns of a row are one msgpack map that the client encodes once; nodes check it and store the
same bytes. Where a map names a key twice, the last one counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

from ackord.errors import InvalidRequest
from ackord.wire.frames import packb, unpackb
from ackord.wire.keys import INT64_MAX, INT64_MIN
from ackord.wire.limits import DEFAULT_LIMITS, Limits
from ackord.wire.messages import row_columns

__all__ = [
    "INT64_MAX",
    "INT64_MIN",
    "Update",
    "are_columns",
    "check_columns",
    "check_name",
    "check_update",
    "check_value",
    "decode_columns",
    "encode_columns",
    "encode_update",
    "project",
]


class Update(NamedTuple):
    """What an update changes: columns to set, to delete, to add a number to, to append a list's items to."""

    set: dict[str, Any]
    delete: list[str]
    increment: dict[str, int | float]
    append: dict[str, list[Any]]


_PLAIN: Final = frozenset((str, bytes, float, bool, type(None)))
_SHORT_CHARS: Final = 63  # so many characters take at most 252 bytes of UTF-8


def encode_columns(columns: Mapping[str, Any], limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The columns as msgpack; InvalidRequest names the column, the value and the limit."""
    plain = columns if type(columns) is dict else _as_dict(columns, "columns")
    _check_map(plain, limits)
    blob = _packed(plain, plain)
    if len(blob) > limits.cell_bytes or len(blob) > limits.row_bytes:
        _check_sizes(len(blob), plain, limits)
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
    if len(blob) > limits.cell_bytes:
        _check_sizes(len(blob), columns, limits)
    return columns


def are_columns(blobs: Sequence[bytes], limits: Limits = DEFAULT_LIMITS) -> bool:
    """Whether ``check_columns`` takes every one of them, looked at all together. Where this says no, that one may
    still do so: it also knows long names and large rows."""
    if max(map(len, blobs)) > min(limits.cell_bytes, limits.row_bytes):
        return False
    try:
        maps = [unpackb(blob) for blob in blobs]
    except ValueError:
        return False
    if set(map(type, maps)) != {dict} or max(map(len, maps)) > limits.columns_count:
        return False
    short = _short_chars(limits)
    for name in set(chain.from_iterable(maps)):
        if type(name) is not str or not 0 < len(name) <= short:
            return False
    try:
        for value in chain.from_iterable(map(dict.values, maps)):
            if type(value) not in _PLAIN:
                check_value("", value, 1, limits)
    except InvalidRequest:
        return False
    return True


def project(row: bytes, names: Sequence[str]) -> bytes:
    """A stored row with these columns only, as far as it has them."""
    blob = row_columns(row)
    columns = decode_columns(blob)
    return row[: len(row) - len(blob)] + packb({name: columns[name] for name in names if name in columns})


def encode_update(
    set: Mapping[str, Any] | None = None,
    delete: Sequence[str] = (),
    increment: Mapping[str, int | float] | None = None,
    limits: Limits = DEFAULT_LIMITS,
    append: Mapping[str, Sequence[Any]] | None = None,
) -> bytes:
    """The body of an update: columns to set, columns to delete, numbers to add to columns, items to append to
    lists."""
    if isinstance(delete, str | bytes) or not isinstance(delete, list | tuple | frozenset):
        raise _invalid("delete", "delete must be a list of column names", ascii(delete)[:80])
    changes = _as_dict({} if set is None else set, "set")
    increments = _as_dict({} if increment is None else increment, "increment")
    appends = _as_dict({} if append is None else append, "append")
    update = Update(changes, list(delete), increments, appends)
    _check_update(update, limits)
    parts = [changes, update.delete, increments] + [appends] * bool(appends)
    blob = _packed(parts, changes | appends)
    if len(blob) > limits.cell_bytes or len(blob) > limits.row_bytes:
        _check_sizes(len(blob), changes | appends, limits)
    return blob


def check_update(blob: Any, limits: Limits = DEFAULT_LIMITS) -> Update:
    """Decodes an update from a client that is not trusted; InvalidRequest."""
    parts = _untrusted(blob, "update", limits)
    if type(parts) is not list or not 3 <= len(parts) <= 4:
        raise _invalid("update", "an update is [set, delete, increment, append]", type(parts).__name__)
    update = Update(*parts) if len(parts) == 4 else Update(parts[0], parts[1], parts[2], {})
    if [type(part) for part in update] != [dict, list, dict, dict]:
        raise _invalid("update", "an update is [map, list, map, map]", ascii(parts)[:80])
    _check_update(update, limits)
    if len(blob) > limits.cell_bytes:
        _check_sizes(len(blob), update.set | update.append, limits)
    return update


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
    short = _short_chars(limits)
    for name, value in columns.items():
        if type(name) is not str or not 0 < len(name) <= short:
            check_name(name, limits)
        kind = type(value)
        if kind in _PLAIN:
            continue
        if kind is int and INT64_MIN <= value <= INT64_MAX:
            continue
        check_value(name, value, 1, limits)


def _short_chars(limits: Limits) -> int:
    """Names of so many characters are short enough, whichever they are."""
    return min(_SHORT_CHARS, limits.column_name_bytes // 4)


def check_name(name: Any, limits: Limits) -> None:
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


def check_value(field: str, value: Any, depth: int, limits: Limits) -> None:
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
        check_value(field, item, depth + 1, limits)


def _check_update(update: Update, limits: Limits) -> None:
    _check_map(update.set, limits)
    count = sum(map(len, update))
    if count > limits.columns_count:
        raise InvalidRequest(
            f"an update of {count} columns, over the limit of {limits.columns_count}",
            field="update",
            value=count,
            limit=limits.columns_count,
        )
    seen: dict[str, str] = dict.fromkeys(update.set, "set")
    for part, names in (
        ("delete", update.delete),
        ("increment", update.increment),
        ("append", update.append),
    ):
        for name in names:
            check_name(name, limits)
            if name in seen:
                raise _invalid(name, f"column {_name(name)} stands in {seen[name]} and again in {part}", name)
            seen[name] = part
    for name, amount in update.increment.items():
        if type(amount) is not int and (type(amount) is not float or not math.isfinite(amount)):
            raise _invalid(
                name,
                f"increment of column {_name(name)}: {ascii(amount)[:60]} is not an int or a finite float",
                ascii(amount)[:60],
            )
        check_value(name, amount, 1, limits)
    for name, items in update.append.items():
        if type(items) is not list:
            raise _invalid(
                name,
                f"append to column {_name(name)}: the items must be a list, not {type(items).__name__}",
                ascii(items)[:60],
            )
        check_value(name, items, 1, limits)


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


def _check_sizes(size: int, columns: dict[str, Any], limits: Limits) -> None:
    """Of all columns, and of each: only looked at where the whole is large enough for one to be too large."""
    _check_size(size, limits)
    for name, value in columns.items():
        if (cell := len(packb(value))) > limits.cell_bytes:
            raise InvalidRequest(
                f"column {_name(name)} takes {cell} bytes, over the limit of {limits.cell_bytes} for one column",
                field=_clean(name),
                value=cell,
                limit=limits.cell_bytes,
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
