"""Row operations: what a write does to the current row, or why it is refused.

A row is stored as 8 bytes of version and the msgpack map of its columns. The coordinator judges a write against
the state at its log's end; the log then carries the resulting row, so that replicas never judge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ackord.errors import Conflict, InvalidRequest, Unavailable
from ackord.wire.expressions import compiled
from ackord.wire.keys import KeySchema
from ackord.wire.limits import Limits
from ackord.wire.messages import (
    COND_IF_ABSENT,
    COND_IF_EXISTS,
    COND_IF_VERSION,
    COND_NONE,
    COND_WHERE,
    KIND_DELETE,
    KIND_PUT,
    KIND_PUT_AUTO,
    KIND_UPDATE,
    row_columns,
    row_version,
)
from ackord.wire.updates import updated_columns
from ackord.wire.values import Update, check_columns, check_update, decode_columns, encode_columns

ReadRow = Callable[[bytes], bytes | None]


def check_op(op: list[Any], limits: Limits, schema: KeySchema | None = None) -> Any:
    """Validates a write's body and condition without looking at any row: InvalidRequest if it can never succeed.
    Returns what ``apply_op`` wants to know of the body."""
    kind = op[1]
    if op[4] == COND_WHERE:
        compiled(op[5][2], schema, limits)
    if kind == KIND_PUT:
        check_columns(op[3], limits)
        return op[3]
    if kind == KIND_UPDATE:
        return check_update(op[3], limits)
    if kind == KIND_PUT_AUTO:
        if op[4] != COND_NONE:
            raise InvalidRequest("a key that ends with AUTO is new: it takes no condition", field="condition")
        check_columns(op[3], limits)
        return op[3]
    return None


def needs_row(op: list[Any]) -> bool:
    return bool(op[4] != COND_NONE or op[1] == KIND_UPDATE)


def apply_op(
    op: list[Any], body: Any, read_row: ReadRow, limits: Limits, schema: KeySchema | None = None
) -> bytes | None:
    """The columns blob that the row will have, None if it will be deleted.

    Raises Conflict if the condition does not hold and InvalidRequest if the current row does not allow
    the change: both are judgements on the state, and wait for what they were judged on (rule R12).
    """
    current = read_row(op[2]) if needs_row(op) else None
    if op[4] != COND_NONE:
        check_condition(op, current, limits, schema)
    if op[1] == KIND_PUT or op[1] == KIND_PUT_AUTO:
        return bytes(body)
    if op[1] == KIND_DELETE:
        return None
    return updated(current, body, limits)


def new_key(op: list[Any], version: int, read_row: ReadRow, schema: KeySchema | None) -> bytes:
    """The key of a KIND_PUT_AUTO that becomes ``version``: strictly increasing, because versions are. A row of
    that key can only have been put there by hand, ahead of the clock; it is never overwritten: Unavailable, and a
    later version is free. That is a judgement on the state (rule R12)."""
    if schema is None:
        raise InvalidRequest("this tablet has no AUTO column", field="key")
    key = schema.complete_auto(op[2], version)
    if read_row(key) is not None:
        raise Unavailable(
            f"the next number, {version}, has a row already, put there by hand",
            reason="number_taken",
            retry_after_ms=5,
        )
    return key


def check_condition(op: list[Any], current: bytes | None, limits: Limits, schema: KeySchema | None) -> None:
    condition, wanted = op[4], op[5]
    if condition == COND_WHERE:
        condition, wanted, expression = wanted
        _check_plain(condition, wanted, current)
        if not compiled(expression, schema, limits).holds(op[2], current):
            there = "there is no row" if current is None else f"the row has version {row_version(current)}"
            raise Conflict(f"where does not hold: {there}", condition="where")
    else:
        _check_plain(condition, wanted, current)


def _check_plain(condition: int, wanted: int | None, current: bytes | None) -> None:
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


def updated(current: bytes | None, update: Update, limits: Limits) -> bytes:
    """The columns blob after an update of the row."""
    columns = decode_columns(row_columns(current)) if current is not None else {}
    return encode_columns(updated_columns(columns, update), limits)
