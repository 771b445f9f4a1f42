"""Single writes and lists of them, on their way to the batcher."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from ackord.calls import Get, Many, ReturningWrite, Write
from ackord.errors import Error, InvalidRequest
from ackord.operations import (
    Delete,
    Encoded,
    Operation,
    Put,
    Update,
    encode_returning,
    encode_write,
    key_tuple,
)
from ackord.routing import TableRoute

if TYPE_CHECKING:
    from ackord.store import Store

_Item = TypeVar("_Item")
_KINDS = (Put, Update, Delete)  # a union would be made anew for each item


async def write_each(
    store: Store, name: str, operations: Iterable[Operation], timeout: float | None
) -> list[int | Error]:
    """The operations, each with an outcome of its own."""
    deadline = store.deadline(timeout)
    table = await store.find_table(name, deadline)
    limits = store.batcher.routing.limits
    wanted = bounded(operations, "operations", limits.batch_rows_count)
    for item in wanted:
        if not isinstance(item, _KINDS):
            raise InvalidRequest(
                f"write_many takes Put, Update and Delete, not {type(item).__name__}",
                field="operations",
                value=type(item).__name__,
            )
    if not wanted:
        return []
    many = Many(store.loop.create_future(), len(wanted))
    for index, item in enumerate(wanted):
        try:
            encoded, body = encode_write(table, item, limits)
            write = write_op(many.future, table, item.key, encoded, body, deadline, many, index)
        except InvalidRequest as error:
            many.put(index, error)
            continue
        add_one(store, write, many, index)
    return await many.future


def write_op(
    future: Any,
    table: TableRoute,
    key: Any,
    encoded: bytes,
    body: Encoded,
    deadline: float,
    many: Many | None = None,
    index: int = 0,
    returning: str | None = None,
) -> Write:
    kind = Write if returning is None else ReturningWrite
    write = kind(future, table, table.tablet_of(encoded), key_tuple(key), encoded, deadline, many, index)
    write.set_body(*body)
    if isinstance(write, ReturningWrite):
        write.returning = encode_returning(returning)
    return write


def add_one(store: Store, op: Get, many: Many, index: int) -> None:
    try:
        store.batcher.add(op)
    except Error as error:
        many.put(index, error)


def bounded(items: Iterable[_Item], field: str, count_max: int) -> list[_Item]:
    wanted = list(items)
    if len(wanted) > count_max:
        raise InvalidRequest(
            f"{len(wanted)} {field} in one call, over the limit of {count_max}",
            field=field,
            value=len(wanted),
            limit=count_max,
        )
    return wanted
