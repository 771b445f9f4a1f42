"""A table as its users see it: the row operations, each with its deadline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ackord.calls import Get, Many, Write
from ackord.errors import Error, InvalidRequest
from ackord.operations import Delete, Encoded, Operation, Put, Update
from ackord.routing import TableRoute
from ackord.row import Row
from ackord.scan import Scan

if TYPE_CHECKING:
    from ackord.store import Store

_Item = TypeVar("_Item")


class Table:
    """One table of a store, by name. Made by ``Store.table``; costs nothing, checks nothing until used.

    Keys are tuples with one value per key column; the bare value is enough where the key has one column.
    ``timeout`` is in seconds and defaults to the store's. Until it has passed, failed attempts are retried on
    any node, a write always under one request id, so that it happens once at most.

    Every operation raises InvalidRequest, TableNotFound, Unavailable or Unauthorized, which all mean that
    nothing was done. Writes may also raise Conflict (a condition did not hold; nothing done;
    ``error.current`` is the row) and OutcomeUnknown (it may have happened).
    """

    __slots__ = ("_store", "name")

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self.name = name

    def __repr__(self) -> str:
        return f"Table({self.name!r})"

    # ---------------------------------------------------------------------------------- reads

    async def get(self, key: Any, *, timeout: float | None = None) -> Row | None:
        """The row, None if there is none. Linearizable: it sees every write that was acknowledged before."""
        store = self._store
        deadline = store.deadline(timeout)
        table = store.batcher.routing.tables.get(self.name) or await store.find_table(self.name, deadline)
        encoded = table.key.encode(key)
        future = store.loop.create_future()
        store.batcher.add(Get(future, table, table.tablet_of(encoded), _tuple(key), encoded, deadline))
        row: Row | None = await future
        return row

    async def get_many(self, keys: Iterable[Any], *, timeout: float | None = None) -> list[Row | None]:
        """The rows of up to 200 keys, in the order of the keys, None where there is no row. Each row is read
        linearizably, all of them not at one instant. Raises the first row's error if any could not be
        read."""
        store = self._store
        deadline = store.deadline(timeout)
        table = await store.find_table(self.name, deadline)
        wanted = _bounded(keys, "keys", store.batcher.routing.limits.batch_rows_count)
        encoded = [table.key.encode(key) for key in wanted]
        if not wanted:
            return []
        many = Many(store.loop.create_future(), len(wanted))
        for index, (key, raw) in enumerate(zip(wanted, encoded, strict=True)):
            get = Get(many.future, table, table.tablet_of(raw), _tuple(key), raw, deadline, many, index)
            _add(store, get, many, index)
        results = await many.future
        for result in results:
            if isinstance(result, Error):
                raise result
        return results

    def scan(
        self,
        prefix: Any = (),
        *,
        start: Any = None,
        end: Any = None,
        limit: int | None = None,
        reverse: bool = False,
        timeout: float | None = None,
    ) -> Scan:
        """The rows of a key range in key order (backwards with ``reverse``), to be iterated with ``async
        for``.

        ``prefix`` holds the first key columns that all rows share, ``()`` for any. ``start`` (inclusive) and
        ``end`` (exclusive) bound the keys further; they too may be just the first columns: then ``start``
        begins with the first such key and ``end`` stops before it. At most ``limit`` rows. A row that exists
        throughout the scan comes exactly once, one that is written meanwhile as it was when its page was
        read; ``timeout`` is for each page. Iteration raises InvalidRequest, TableNotFound, Unavailable.
        """
        return Scan(self._store, self.name, prefix, start, end, limit, reverse, timeout)

    # --------------------------------------------------------------------------------- writes

    async def put(
        self,
        key: Any,
        columns: Mapping[str, Any],
        *,
        if_version: int | None = None,
        if_absent: bool = False,
        if_exists: bool = False,
        timeout: float | None = None,
    ) -> int:
        """Replaces the whole row, or creates it; returns its new version."""
        put = Put(key, columns, if_version=if_version, if_absent=if_absent, if_exists=if_exists)
        return await self._write(put, timeout)

    async def update(
        self,
        key: Any,
        set: Mapping[str, Any] | None = None,
        *,
        delete: Sequence[str] = (),
        increment: Mapping[str, int] | None = None,
        if_version: int | None = None,
        if_absent: bool = False,
        if_exists: bool = False,
        timeout: float | None = None,
    ) -> int:
        """Sets the columns ``set``, deletes the columns ``delete`` and adds the ints ``increment`` to columns
        (an absent one counts as 0); other columns stay. Creates the row if there is none. Returns the new
        version. InvalidRequest if a column to increment is no int or would leave 64 bits."""
        update = Update(
            key,
            set,
            delete=delete,
            increment=increment,
            if_version=if_version,
            if_absent=if_absent,
            if_exists=if_exists,
        )
        return await self._write(update, timeout)

    async def delete(
        self,
        key: Any,
        *,
        if_version: int | None = None,
        if_exists: bool = False,
        timeout: float | None = None,
    ) -> int:
        """Deletes the row; without a condition also if there is none. Returns the deletion's version."""
        return await self._write(Delete(key, if_version=if_version, if_exists=if_exists), timeout)

    async def write_many(
        self, operations: Iterable[Operation], *, timeout: float | None = None
    ) -> list[int | Error]:
        """Up to 200 Put, Update and Delete. Returns one result for each, in order: its version, or the Error
        that ``put``, ``update`` or ``delete`` would have raised. Each row has its own outcome; they are not
        one transaction, and two operations on one key may take effect in either order. Raises only if the
        list itself cannot be taken (InvalidRequest, TableNotFound): then nothing was done."""
        store = self._store
        deadline = store.deadline(timeout)
        table = await store.find_table(self.name, deadline)
        limits = store.batcher.routing.limits
        wanted = _bounded(operations, "operations", limits.batch_rows_count)
        for item in wanted:
            if not isinstance(item, Put | Update | Delete):
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
                encoded = table.key.encode(item.key)
                body = item.encode(limits)
            except InvalidRequest as error:
                many.put(index, error)
                continue
            _add(
                store,
                _write_op(many.future, table, item.key, encoded, body, deadline, many, index),
                many,
                index,
            )
        return await many.future

    async def _write(self, operation: Operation, timeout: float | None) -> int:
        store = self._store
        deadline = store.deadline(timeout)
        batcher = store.batcher
        table = batcher.routing.tables.get(self.name) or await store.find_table(self.name, deadline)
        encoded = table.key.encode(operation.key)
        body = operation.encode(batcher.routing.limits)
        future = store.loop.create_future()
        batcher.add(_write_op(future, table, operation.key, encoded, body, deadline))
        version: int = await future
        return version


def _write_op(
    future: Any,
    table: TableRoute,
    key: Any,
    encoded: bytes,
    body: Encoded,
    deadline: float,
    many: Many | None = None,
    index: int = 0,
) -> Write:
    write = Write(future, table, table.tablet_of(encoded), _tuple(key), encoded, deadline, many, index)
    write.set_body(*body)
    return write


def _add(store: Store, op: Get, many: Many, index: int) -> None:
    try:
        store.batcher.add(op)
    except Error as error:
        many.put(index, error)


def _tuple(key: Any) -> tuple[Any, ...]:
    if type(key) is tuple:
        return key
    return tuple(key) if type(key) is list else (key,)


def _bounded(items: Iterable[_Item], field: str, count_max: int) -> list[_Item]:
    wanted = list(items)
    if len(wanted) > count_max:
        raise InvalidRequest(
            f"{len(wanted)} {field} in one call, over the limit of {count_max}",
            field=field,
            value=len(wanted),
            limit=count_max,
        )
    return wanted
