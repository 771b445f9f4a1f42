"""Row operations: what a write does to the current row, or why it is refused.

A row is stored as 8 bytes of version and the msgpack map of its columns. The coordinator judges a write against
the state at its log's end; the log then carries the resulting row, so that replicas never judge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ackord.errors import Conflict, InvalidRequest
from ackord.wire.keys import INT64_MAX, INT64_MIN
from ackord.wire.limits import Limits
from ackord.wire.messages import (
    COND_IF_ABSENT,
    COND_IF_EXISTS,
    COND_IF_VERSION,
    COND_NONE,
    KIND_DELETE,
    KIND_PUT,
    KIND_UPDATE,
    row_version,
)
from ackord.wire.values import check_columns, check_update, decode_columns, encode_columns

ReadRow = Callable[[bytes], bytes | None]


def check_op(op: list[Any], limits: Limits) -> Any:
    """Validates a write's body without looking at any row: InvalidRequest if it can never succeed. Returns
    what ``apply_op`` wants to know of the body."""
    kind = op[1]
    if kind == KIND_PUT:
        check_columns(op[3], limits)
        return op[3]
    if kind == KIND_UPDATE:
        return check_update(op[3], limits)
    return None


def needs_row(op: list[Any]) -> bool:
    return bool(op[4] != COND_NONE or op[1] == KIND_UPDATE)


def apply_op(op: list[Any], body: Any, read_row: ReadRow, limits: Limits) -> bytes | None:
    """The columns blob that the row will have, None if it will be deleted.

    Raises Conflict if the condition does not hold and InvalidRequest if the current row does not allow
    the change: both are judgements on the state, and wait for what they were judged on (rule R12).
    """
    current = read_row(op[2]) if needs_row(op) else None
    if op[4] != COND_NONE:
        _check_condition(op[4], op[5], current)
    if op[1] == KIND_PUT:
        return bytes(body)
    if op[1] == KIND_DELETE:
        return None
    return _updated(current, body, limits)


def _check_condition(condition: int, wanted: int | None, current: bytes | None) -> None:
    if condition == COND_IF_VERSION:
        found = row_version(current) if current is not None else None
        if found != wanted:
            there = "there is no row" if found is None else f"the row has version {found}"
            raise Conflict(f"if_version={wanted} does not hold: {there}", condition="if_version")
    elif condition == COND_IF_ABSENT:
        if current is not None:
            raise Conflict(
                f"if_absent does not hold: the row exists with version {row_version(current)}",
                condition="if_absent",
            )
    elif condition == COND_IF_EXISTS and current is None:
        raise Conflict("if_exists does not hold: there is no row", condition="if_exists")


def _updated(current: bytes | None, body: Any, limits: Limits) -> bytes:
    changes, removed, increments = body
    columns = decode_columns(current[8:]) if current is not None else {}
    for name in removed:
        columns.pop(name, None)
    columns.update(changes)
    for name, amount in increments.items():
        columns[name] = _incremented(name, columns.get(name, 0), amount)
    return encode_columns(columns, limits)


def _incremented(name: str, value: Any, amount: int) -> int:
    if type(value) is not int:
        raise InvalidRequest(
            f"increment of column {name!r}: its value is {type(value).__name__}, an int is needed", field=name
        )
    total = value + amount
    if not INT64_MIN <= total <= INT64_MAX:
        raise InvalidRequest(
            f"increment of column {name!r} by {amount} gives {total}, beyond 64 bits "
            f"({INT64_MIN} to {INT64_MAX})",
            field=name,
            value=total,
            limit=INT64_MAX,
        )
    return total
