"""Calls beyond single writes and reads, recorded: transactions, merges, appends, conditions, numbers, versions.

As for all others (`recorder`), what the SDK returned or raised decides whether a call was done, certainly not done, or
unknown. What a transaction reads and writes is recorded as reads and writes of single rows, with the outcome of the
commit, so that the checkers of rows see it; its commit is one more operation, for the checker of transactions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import ackord
from tests.sim.history import (
    AS_OF,
    CELLS,
    CONFLICT,
    DELETE,
    FAILED,
    GET,
    INSERT,
    OK,
    PUT,
    SCAN,
    SCAN_AS_OF,
    TRANSACT,
    UPDATE,
    VERSIONS,
    Columns,
    Op,
)
from tests.sim.recorder import FAILURE_PAUSE_S, Key, Recorder, UnexpectedError

Where = list[Any]  # column, comparison ("==", ">=" or "exists"), value

COLLECTED: Final = "VersionCollected"


def expression_of(where: Where) -> Any:
    column, comparison, value = where
    if comparison == "exists":
        return ackord.col(column).exists() if value else ~ackord.col(column).exists()
    return ackord.col(column) == value if comparison == "==" else ackord.col(column) >= value


class FullRecorder(Recorder):
    """A recorder that knows every operation of a table. ``version_reached``: a read as of no later version may be
    refused for being too far ahead."""

    version_reached = 0

    @property
    def table(self) -> Any:
        return self._table

    # ------------------------------------------------------------------------- single writes

    async def append(self, key: Key, items: dict[str, list[Any]], returning: str | None = None) -> Op:
        op = self._begin(UPDATE, key, set={}, append=items, returning=returning)
        call = self.table.update(key, append=items, returning=returning, timeout=self._timeout_s())
        return await self._returned(op, call)

    async def merge_put(
        self, key: Key, base: int, columns: Columns, increment: Columns, union: Columns
    ) -> Op:
        """The whole row as it is wanted from this base; what that adds counts, whatever the row is by now."""
        op = self._begin(UPDATE, key, set={}, increment=increment, union=union, if_exists=True, base=base)
        timeout = self._timeout_s()
        return await self._returned(
            op, self.table.put(key, columns, if_version=base, on_conflict="merge", timeout=timeout)
        )

    async def merge_update(self, key: Key, base: int, set: Columns, increment: Columns, union: Columns) -> Op:
        op = self._begin(UPDATE, key, set={}, increment=increment, union=union, if_exists=True, base=base)
        call = self.table.update(
            key,
            set,
            increment=increment,
            if_version=base,
            on_conflict="merge",
            timeout=self._timeout_s(),
        )
        return await self._returned(op, call)

    async def write_where(
        self, kind: str, key: Key, columns: Columns, where: Where | None, returning: str | None = None
    ) -> Op:
        """``columns``: all of the row's, or of an update those that it sets."""
        args: dict[str, Any] = {PUT: {"columns": columns}, UPDATE: {"set": columns}, DELETE: {}}[kind]
        op = self._begin(kind, key, **args, where=where, returning=returning)
        options: dict[str, Any] = {"returning": returning, "timeout": self._timeout_s()}
        if where is not None:
            options["where"] = expression_of(where)
        if kind == PUT:
            call = self.table.put(key, columns, **options)
        elif kind == UPDATE:
            call = self.table.update(key, columns, **options)
        else:
            call = self.table.delete(key, **options)
        return await self._returned(op, call)

    async def put_expiring(self, key: Key, columns: Columns, ttl_s: float | None) -> Op:
        op = self._begin(PUT, key, columns=columns, ttl=ttl_s)
        options: dict[str, Any] = {} if ttl_s is None else {"ttl": ttl_s}
        return await self._returned(op, self.table.put(key, columns, timeout=self._timeout_s(), **options))

    async def insert(self, prefix: Key, columns: Columns) -> Op:
        """A new row under the number that the table gives it, which is its version."""
        op = self._begin(INSERT, prefix, columns=columns)
        call = self.table.put((*prefix, ackord.AUTO), columns, timeout=self._timeout_s())
        return await self._returned(op, call)

    async def _returned(self, op: Op, call: Awaitable[Any]) -> Op:
        try:
            result = await call
        except ackord.VersionCollected as error:
            self._end(op, FAILED, error)
        except BaseException as error:
            await self._failed(op, error)
        else:
            if isinstance(result, ackord.Written):
                op.version = result.version
                row = result.row
                op.found = (None, None) if row is None else (row.version, dict(row))
            else:
                op.version = result
            self._end(op, OK)
        return op

    # ------------------------------------------------------------------------------- versions

    async def get_as_of(self, key: Key, as_of: int) -> Op:
        op = self._begin(AS_OF, key, as_of=as_of)
        try:
            row = await self.table.get(key, as_of=as_of, timeout=self._timeout_s())
        except BaseException as error:
            await self._not_told(op, error)
        else:
            if row is not None:
                op.version, op.columns = row.version, dict(row)
            self._end(op, OK)
        return op

    async def scan_as_of(self, start: Key, end: Key, as_of: int, reverse: bool) -> Op:
        op = self._begin(SCAN_AS_OF, None, start=start, end=end, as_of=as_of, reverse=reverse)
        try:
            scan = self.table.scan(
                start=start, end=end, as_of=as_of, reverse=reverse, timeout=self._timeout_s()
            )
            op.rows = [(row.key, row.version, dict(row)) async for row in scan]
        except BaseException as error:
            await self._not_told(op, error)
        else:
            self._end(op, OK)
        return op

    async def versions(self, key: Key, limit: int, before: int | None) -> Op:
        """The row's versions, newest first; those of deletions have no columns."""
        op = self._begin(VERSIONS, key, limit=limit, before=before)
        try:
            found = await self.table.history(key, limit, before=before, timeout=self._timeout_s())
        except BaseException as error:
            await self._not_told(op, error)
        else:
            op.versions = [(at.version, None if at.row is None else dict(at.row)) for at in found]
            self._end(op, OK)
        return op

    async def cells(self, key: Key, count: int, start_ms: int | None, end_ms: int | None) -> Op:
        """The row with lists of cells in its columns."""
        op = self._begin(CELLS, key, count=count, start_ms=start_ms, end_ms=end_ms)
        try:
            row = await self.table.get(
                key, versions=count, time_range=(start_ms, end_ms), timeout=self._timeout_s()
            )
        except BaseException as error:
            await self._failed(op, error)
        else:
            if row is not None:
                op.version = row.version
                op.columns = {name: [list(cell) for cell in row.cells(name)] for name in row}
            self._end(op, OK)
        return op

    async def _not_told(self, op: Op, error: BaseException) -> None:
        is_ahead = isinstance(error, ackord.InvalidRequest) and error.detail.get("field") == "as_of"
        if isinstance(error, ackord.VersionCollected) or (
            is_ahead and op.args["as_of"] > self.version_reached
        ):
            self._end(op, FAILED, error)
        else:
            await self._failed(op, error)

    # --------------------------------------------------------------------------- transactions

    async def transact(
        self, partition: Any, work: Callable[[RecordedTransaction], Awaitable[None]], *, is_repeated: bool
    ) -> Op:
        """``work`` in a transaction; ``is_repeated``: all of it again, as the SDK does, while it meets a conflict."""
        attempts: list[RecordedTransaction] = []

        async def attempt(tx: ackord.Transaction) -> None:
            if attempts:
                attempts[-1].ended(CONFLICT, None, None)
            recorded = RecordedTransaction(self, tx)
            attempts.append(recorded)
            await work(recorded)
            recorded.commits()

        timeout = self._timeout_s()
        try:
            if is_repeated:
                await self.table.transact(partition, attempt, timeout=timeout)
            else:
                async with self.table.transaction(partition, timeout=timeout) as tx:
                    await attempt(tx)
        except BaseException as error:
            return await self._not_committed(attempts, error)
        attempts[-1].ended(OK, attempts[-1].tx.version, None)
        return attempts[-1].op

    async def _not_committed(self, attempts: list[RecordedTransaction], error: BaseException) -> Op:
        if not attempts:
            attempts.append(RecordedTransaction(self, None))
        last, is_unexpected = attempts[-1], False
        if isinstance(error, ackord.Conflict):
            last.ended(CONFLICT, None, error)
        elif isinstance(error, ackord.Unavailable) or not last.is_committing:
            last.ended(FAILED, None, error)
            is_unexpected = not isinstance(error, ackord.Unavailable | asyncio.CancelledError)
        else:
            last.ended("unknown", None, error)
            is_unexpected = not isinstance(error, ackord.OutcomeUnknown | asyncio.CancelledError)
        if not isinstance(error, Exception):
            raise error
        if is_unexpected:
            raise UnexpectedError(f"{last.op}: {error!r}") from error
        if not isinstance(error, ackord.Conflict):
            await asyncio.sleep(FAILURE_PAUSE_S)
        return last.op


class RecordedTransaction:
    """One attempt. Each row is to be read once at most, and before it is written."""

    def __init__(self, recorder: FullRecorder, tx: ackord.Transaction | None) -> None:
        self.tx: Any = tx
        self.op = recorder._begin(TRANSACT, None)
        self.is_committing = False
        self._recorder = recorder
        self._reads: list[list[Any]] = []
        self._ranges: list[list[Any]] = []
        self._writes: list[Op] = []

    async def get(self, key: Key) -> ackord.Row | None:
        op = self._recorder._begin(GET, key)
        try:
            row: ackord.Row | None = await self.tx.get(key)
        except BaseException as error:
            self._not_read(op, error)
            raise
        if row is not None:
            op.version, op.columns = row.version, dict(row)
        self._recorder._end(op, OK)
        self._reads.append([key, None if row is None else row.version])
        return row

    async def scan(self, start: Key, end: Key, *, reverse: bool = False) -> list[ackord.Row]:
        op = self._recorder._begin(SCAN, None, start=start, end=end, reverse=reverse)
        try:
            rows: list[ackord.Row] = await self.tx.scan(start=start, end=end, reverse=reverse)
        except BaseException as error:
            self._not_read(op, error)
            raise
        op.rows = [(row.key, row.version, dict(row)) for row in rows]
        self._recorder._end(op, OK)
        self._ranges.append([start, end, [[row.key, row.version] for row in rows]])
        return rows

    def _not_read(self, op: Op, error: BaseException) -> None:
        self._recorder._end(op, FAILED, error)

    def put(self, key: Key, columns: Columns, **condition: bool) -> None:
        self.tx.put(key, columns, **condition)
        self._wrote(PUT, key, columns=columns, **condition)

    def update(self, key: Key, set: Columns, increment: dict[str, int]) -> None:
        self.tx.update(key, set, increment=increment)
        self._wrote(UPDATE, key, set=set, increment=increment)

    def delete(self, key: Key) -> None:
        self.tx.delete(key)
        self._wrote(DELETE, key)

    def _wrote(self, kind: str, key: Key, **args: Any) -> None:
        self._writes.append(self._recorder._begin(kind, key, **args))

    def commits(self) -> None:
        self.is_committing = True
        args: Sequence[tuple[str, Any]] = (
            ("reads", self._reads),
            ("ranges", self._ranges),
            ("writes", [op.key for op in self._writes]),
        )
        self.op.args.update({name: value for name, value in args if value})

    def ended(self, outcome: str, version: int | None, error: BaseException | None) -> None:
        for op in (*self._writes, self.op):
            op.version = version
            self._recorder._end(op, FAILED if outcome == CONFLICT and op is not self.op else outcome, error)
