"""A table as its users see it: the row operations, each with its deadline."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from ackord.calls import Many, Select, Write
from ackord.errors import Error
from ackord.expressions import Expression, encode_where
from ackord.operations import (
    Delete,
    Operation,
    Put,
    Update,
    encode_write,
    key_tuple,
)
from ackord.routing import TableRoute
from ackord.row import Row, Written
from ackord.scan import Bounds, Scan, check_names, count_rows
from ackord.transaction import Transaction, transact, write_atomically
from ackord.versions import (
    HISTORY_COUNT,
    Version,
    check_alone,
    read_as_of,
    read_cells,
    read_history,
    read_many_as_of,
)
from ackord.wire.limits import Limits
from ackord.wire.messages import COND_NONE, KIND_PUT
from ackord.wire.values import encode_columns
from ackord.writing import add_one, bounded, write_each, write_op

if TYPE_CHECKING:
    from ackord.store import Store

_Result = TypeVar("_Result")

Returning = Literal["new", "old"]
OnConflict = Literal["latest", "merge"]


class Table:
    """One table of a store, by name. Made by ``Store.table``; costs nothing, checks nothing until used.

    Keys are tuples with one value per key column; the bare value is enough where the key has one column.
    ``timeout`` is in seconds and defaults to the store's. Until it has passed, failed attempts are retried on
    any node, a write always under one request id, so that it happens once at most.

    Every operation raises InvalidRequest, TableNotFound, Unavailable or Unauthorized, which all mean that
    nothing was done. Writes may also raise Conflict (a condition did not hold; nothing done;
    ``error.current`` is the row) and OutcomeUnknown (it may have happened).

    ``where`` is an expression such as ``ackord.col("state") == "new"``: of a write a condition beside the others, of
    a read a filter at the server. ``columns`` names the columns that a read wants; the others do not travel. A write
    with ``returning`` gives a Written with the row as it left it ("new") or found it ("old"), a retry the same one.
    ``on_conflict`` says what becomes of a write whose ``if_version`` loses: "latest" is done all the same, "merge" is
    merged with what the row is by now, from the version that it names (Conflict where no rule decides). ``ttl``: the
    row expires so many seconds after this write. ``timestamp`` (milliseconds): of the cells that the write makes, or a
    map of columns to them.
    """

    __slots__ = ("_store", "name")

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self.name = name

    def __repr__(self) -> str:
        return f"Table({self.name!r})"

    # ---------------------------------------------------------------------------------- reads

    async def get(
        self,
        key: Any,
        *,
        where: Expression | None = None,
        columns: Sequence[str] | None = None,
        as_of: int | None = None,
        versions: int | None = None,
        time_range: tuple[int | None, int | None] | None = None,
        timeout: float | None = None,
    ) -> Row | None:
        """The row, None if there is none (of which ``where`` holds). Linearizable: it sees every write that was
        acknowledged before.

        ``as_of``: what it was at this version; VersionCollected if that is no longer kept. ``versions``: with so many
        cells of each column, ``time_range``: those with start <= timestamp < end (milliseconds); `Row.cells`."""
        store = self._store
        if as_of is not None or versions is not None or time_range is not None:
            check_alone(as_of, versions, time_range, where, columns)
            if as_of is not None:
                return await read_as_of(store, self.name, key, as_of, timeout)
            return await read_cells(store, self.name, key, versions, time_range, timeout)
        batcher = store.batcher
        deadline = store.deadline(timeout)
        table = batcher.routing.tables.get(self.name) or await store.find_table(self.name, deadline)
        row: Row | None
        if where is None and columns is None:
            row = await batcher.reads.get(table, key, deadline)
            return row
        encoded = table.key.encode(key)
        future = store.loop.create_future()
        op = Select(future, table, table.tablet_of(encoded), key_tuple(key), encoded, deadline)
        op.selection = _selection(where, columns, batcher.routing.limits)
        batcher.add(op)
        row = await future
        return row

    async def history(
        self,
        key: Any,
        limit: int = HISTORY_COUNT,
        *,
        before: int | None = None,
        timeout: float | None = None,
    ) -> list[Version]:
        """The row's versions that are kept, newest first, deletions too: the newest ``limit`` of them, or those below
        the version ``before``."""
        return await read_history(self._store, self.name, key, limit, before, timeout)

    async def get_many(
        self,
        keys: Iterable[Any],
        *,
        where: Expression | None = None,
        columns: Sequence[str] | None = None,
        as_of: int | None = None,
        timeout: float | None = None,
    ) -> list[Row | None]:
        """The rows of up to 200 keys, in the order of the keys, None where there is no row (of which ``where``
        holds). Each row is read linearizably, all of them not at one instant. Raises the first row's error if any
        could not be read. ``as_of``: what they all were at this version."""
        store = self._store
        if as_of is not None:
            check_alone(as_of, None, None, where, columns)
            return await read_many_as_of(store, self.name, keys, as_of, timeout)
        deadline = store.deadline(timeout)
        table = await store.find_table(self.name, deadline)
        limits = store.batcher.routing.limits
        wanted = bounded(keys, "keys", limits.batch_rows_count)
        if not wanted:
            return []
        if where is None and columns is None:
            results = await store.batcher.reads.get_many(table, wanted, deadline)
        else:
            results = await self._select_many(table, wanted, _selection(where, columns, limits), deadline)
        for result in results:
            if isinstance(result, Error):
                raise result
        return results

    async def _select_many(
        self, table: TableRoute, keys: list[Any], selection: list[Any], deadline: float
    ) -> list[Any]:
        store = self._store
        encoded = [table.key.encode(key) for key in keys]
        many = Many(store.loop.create_future(), len(keys))
        for index, (key, raw) in enumerate(zip(keys, encoded, strict=True)):
            op = Select(many.future, table, table.tablet_of(raw), key_tuple(key), raw, deadline, many, index)
            op.selection = selection
            add_one(store, op, many, index)
        return await many.future

    def scan(
        self,
        prefix: Any = (),
        *,
        start: Any = None,
        start_after: Any = None,
        end: Any = None,
        end_at: Any = None,
        where: Expression | None = None,
        columns: Sequence[str] | None = None,
        limit: int | None = None,
        reverse: bool = False,
        token: str | None = None,
        read_ahead: int = 2,
        as_of: int | None = None,
        timeout: float | None = None,
    ) -> Scan:
        """The rows of a key range in key order (backwards with ``reverse``), to be iterated with ``async
        for``.

        ``prefix`` holds the first key columns that all rows share, ``()`` for any. ``start`` (inclusive) or
        ``start_after`` (exclusive) and ``end`` (exclusive) or ``end_at`` (inclusive) bound the keys further;
        they too may be just the first columns, which stand for all keys that begin with them: ``start`` and
        ``end_at`` take them in, ``start_after`` and ``end`` leave them out. At most ``limit`` rows.

        A row that exists throughout the scan comes exactly once, one that is written meanwhile as it was when
        its page was read. ``read_ahead`` pages (of 2,000 rows or 1 MiB) are kept ready beside the one that is
        iterated over. ``timeout`` is for each page. ``scan.token`` says where the scan stands; ``token`` goes on
        from there, with the range, filter and columns of then. ``as_of``: the rows as they were at that version.
        Iteration raises InvalidRequest, TableNotFound, VersionCollected, Unavailable.
        """
        return Scan(
            self._store,
            self.name,
            Bounds(prefix, start, start_after, end, end_at),
            where=where,
            columns=columns,
            limit=limit,
            reverse=reverse,
            token=token,
            read_ahead=read_ahead,
            timeout=timeout,
            as_of=as_of,
        )

    async def count(
        self,
        prefix: Any = (),
        *,
        start: Any = None,
        start_after: Any = None,
        end: Any = None,
        end_at: Any = None,
        where: Expression | None = None,
        as_of: int | None = None,
        timeout: float | None = None,
    ) -> int:
        """How many rows of the range there are (of which ``where`` holds), counted at the server in stretches of
        2,000 rows; ``timeout`` is for each of them. What is written meanwhile may be counted or not. ``as_of``: how
        many there were at that version, exactly; VersionCollected."""
        bounds = Bounds(prefix, start, start_after, end, end_at)
        return await count_rows(self._store, self.name, bounds, where, timeout, as_of)

    # --------------------------------------------------------------------------------- writes

    @overload
    async def put(
        self,
        key: Any,
        columns: Mapping[str, Any],
        *,
        if_version: int | None = None,
        if_absent: bool = False,
        if_exists: bool = False,
        where: Expression | None = None,
        on_conflict: OnConflict | None = None,
        ttl: float | None = None,
        timestamp: int | Mapping[str, int] | None = None,
        returning: None = None,
        timeout: float | None = None,
    ) -> int: ...

    @overload
    async def put(
        self,
        key: Any,
        columns: Mapping[str, Any],
        *,
        if_version: int | None = None,
        if_absent: bool = False,
        if_exists: bool = False,
        where: Expression | None = None,
        on_conflict: OnConflict | None = None,
        ttl: float | None = None,
        timestamp: int | Mapping[str, int] | None = None,
        returning: Returning,
        timeout: float | None = None,
    ) -> Written: ...

    async def put(
        self,
        key: Any,
        columns: Mapping[str, Any],
        *,
        if_version: int | None = None,
        if_absent: bool = False,
        if_exists: bool = False,
        where: Expression | None = None,
        on_conflict: OnConflict | None = None,
        ttl: float | None = None,
        timestamp: int | Mapping[str, int] | None = None,
        returning: Returning | None = None,
        timeout: float | None = None,
    ) -> int | Written:
        """Replaces the whole row, or creates it; returns its new version. Where the last key column is AUTO, a key
        that ends with ``ackord.AUTO`` makes a new row; the version that is returned is its number."""
        is_plain = (
            if_version is None and not if_absent and not if_exists and where is None and returning is None
        )
        if is_plain and on_conflict is None and ttl is None and timestamp is None:
            store = self._store
            batcher = store.batcher
            table = batcher.routing.tables.get(self.name)
            encoded = None if table is None else table.key.fast(key)
            if table is not None and encoded is not None:
                # What most writes are: without an object for the way.
                body = encode_columns(columns, batcher.routing.limits)
                future = store.loop.create_future()
                tablet, deadline = table.tablet_of(encoded), store.deadline(timeout)
                write = Write(future, table, tablet, key_tuple(key), encoded, deadline)
                write.set_body(KIND_PUT, body, COND_NONE, None)
                batcher.add(write)
                version: int = await future
                return version
        put = Put(key, columns)
        if if_version is not None or if_absent or if_exists or where is not None:
            put = replace(put, if_version=if_version, if_absent=if_absent, if_exists=if_exists, where=where)
        if on_conflict is not None or ttl is not None or timestamp is not None:
            put = replace(put, on_conflict=on_conflict, ttl=ttl, timestamp=timestamp)
        return await self._write(put, returning, timeout)

    @overload
    async def update(
        self,
        key: Any,
        set: Mapping[str, Any] | None = None,
        *,
        delete: Sequence[str] = (),
        increment: Mapping[str, int | float] | None = None,
        append: Mapping[str, Sequence[Any]] | None = None,
        if_version: int | None = None,
        if_absent: bool = False,
        if_exists: bool = False,
        where: Expression | None = None,
        on_conflict: OnConflict | None = None,
        ttl: float | None = None,
        timestamp: int | Mapping[str, int] | None = None,
        delete_cells: Mapping[str, Sequence[int]] | None = None,
        returning: None = None,
        timeout: float | None = None,
    ) -> int: ...

    @overload
    async def update(
        self,
        key: Any,
        set: Mapping[str, Any] | None = None,
        *,
        delete: Sequence[str] = (),
        increment: Mapping[str, int | float] | None = None,
        append: Mapping[str, Sequence[Any]] | None = None,
        if_version: int | None = None,
        if_absent: bool = False,
        if_exists: bool = False,
        where: Expression | None = None,
        on_conflict: OnConflict | None = None,
        ttl: float | None = None,
        timestamp: int | Mapping[str, int] | None = None,
        delete_cells: Mapping[str, Sequence[int]] | None = None,
        returning: Returning,
        timeout: float | None = None,
    ) -> Written: ...

    async def update(
        self,
        key: Any,
        set: Mapping[str, Any] | None = None,
        *,
        delete: Sequence[str] = (),
        increment: Mapping[str, int | float] | None = None,
        append: Mapping[str, Sequence[Any]] | None = None,
        if_version: int | None = None,
        if_absent: bool = False,
        if_exists: bool = False,
        where: Expression | None = None,
        on_conflict: OnConflict | None = None,
        ttl: float | None = None,
        timestamp: int | Mapping[str, int] | None = None,
        delete_cells: Mapping[str, Sequence[int]] | None = None,
        returning: Returning | None = None,
        timeout: float | None = None,
    ) -> int | Written:
        """Sets the columns ``set``, deletes the columns ``delete``, adds the numbers ``increment`` to columns and
        appends the items ``append`` to lists; other columns stay. Creates the row if there is none. Returns the new
        version.

        An absent column to increment begins as the amount, one to append to as an empty list. An int column stays
        exact and takes ints only, a float column takes both. InvalidRequest if a column is of another type, or would
        leave 64 bits or the finite floats. ``delete_cells``: column -> timestamps of single cells to delete."""
        update = Update(
            key,
            set,
            delete=delete,
            increment=increment,
            append=append,
            if_version=if_version,
            if_absent=if_absent,
            if_exists=if_exists,
            where=where,
            on_conflict=on_conflict,
            ttl=ttl,
            timestamp=timestamp,
            delete_cells=delete_cells,
        )
        return await self._write(update, returning, timeout)

    @overload
    async def delete(
        self,
        key: Any,
        *,
        if_version: int | None = None,
        if_exists: bool = False,
        where: Expression | None = None,
        returning: None = None,
        timeout: float | None = None,
    ) -> int: ...

    @overload
    async def delete(
        self,
        key: Any,
        *,
        if_version: int | None = None,
        if_exists: bool = False,
        where: Expression | None = None,
        returning: Returning,
        timeout: float | None = None,
    ) -> Written: ...

    async def delete(
        self,
        key: Any,
        *,
        if_version: int | None = None,
        if_exists: bool = False,
        where: Expression | None = None,
        returning: Returning | None = None,
        timeout: float | None = None,
    ) -> int | Written:
        """Deletes the row; without a condition also if there is none. Returns the deletion's version."""
        delete = Delete(key, if_version=if_version, if_exists=if_exists, where=where)
        return await self._write(delete, returning, timeout)

    @overload
    async def write_many(
        self, operations: Iterable[Operation], *, atomic: Literal[False] = False, timeout: float | None = None
    ) -> list[int | Error]: ...

    @overload
    async def write_many(
        self, operations: Iterable[Operation], *, atomic: Literal[True], timeout: float | None = None
    ) -> int | None: ...

    async def write_many(
        self, operations: Iterable[Operation], *, atomic: bool = False, timeout: float | None = None
    ) -> list[int | Error] | int | None:
        """Up to 200 Put, Update and Delete. Returns one result for each, in order: its version, or the Error
        that ``put``, ``update`` or ``delete`` would have raised. Each row has its own outcome; they are not
        one transaction, and two operations on one key may take effect in either order. Raises only if the
        list itself cannot be taken (InvalidRequest, TableNotFound): then nothing was done.

        With ``atomic`` they are one transaction on rows of one partition key, carried out in order: all are done,
        and the version that they share is returned (None for none), or nothing is, and what stands in the way is
        raised as by ``transaction``."""
        if atomic:
            return await write_atomically(self, self._store, operations, timeout)
        return await write_each(self._store, self.name, operations, timeout)

    def transaction(self, partition: Any, *, timeout: float | None = None) -> Transaction:
        """``async with table.transaction("alice") as tx``: reads and writes of rows whose first key column is
        ``partition``, committed together at the end of the block. ``timeout`` is for each read and for the
        commit."""
        return Transaction(self, self._store, partition, timeout)

    async def transact(
        self,
        partition: Any,
        work: Callable[[Transaction], Awaitable[_Result]],
        *,
        timeout: float | None = None,
    ) -> _Result:
        """``await work(tx)`` in a transaction, all of it again, after a growing pause, whenever something that it
        read had changed at the commit (so it should do nothing else that counts). Returns what ``work`` returned.
        Raises the last Conflict when ``timeout``, which is for all of it, has passed."""
        return await transact(self, self._store, partition, work, timeout)

    async def _write(
        self, operation: Operation, returning: Returning | None, timeout: float | None
    ) -> int | Written:
        store = self._store
        deadline = store.deadline(timeout)
        batcher = store.batcher
        table = batcher.routing.tables.get(self.name) or await store.find_table(self.name, deadline)
        encoded, body = encode_write(table, operation, batcher.routing.limits)
        future = store.loop.create_future()
        batcher.add(write_op(future, table, operation.key, encoded, body, deadline, returning=returning))
        result: int | Written = await future
        return result


def _selection(where: Expression | None, columns: Sequence[str] | None, limits: Limits) -> list[Any]:
    return [encode_where(where, limits), check_names(columns, limits)]
