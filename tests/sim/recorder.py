"""A client's calls, each recorded with its outcome as rule R17 has it: what the SDK returned or raised decides
whether it was done, certainly not done, or unknown. What the SDK may never raise leaves as UnexpectedError."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import ackord
from tests.sim.history import (
    CONFLICT,
    CREATE,
    DELETE,
    DROP,
    FAILED,
    GET,
    OK,
    PUT,
    SCAN,
    UNKNOWN,
    UPDATE,
    History,
    Op,
)

SHORT_TIMEOUT_RATE: Final = 0.1  # of the calls, so that outcomes become unknown without a fault as well
SHORT_TIMEOUT_PART: Final = 0.02  # of the usual timeout
FAILURE_PAUSE_S: Final = 0.02  # after a failed call: one that fails at once must not be repeated without end

Key = tuple[Any, ...]
Operation = ackord.Put | ackord.Update | ackord.Delete


class UnexpectedError(AssertionError):
    """A call ended in a way that no fault excuses."""


class TableLike(Protocol):
    """The part of ``ackord.Table`` that workloads use."""

    async def get(self, key: Any, *, timeout: float | None = None) -> ackord.Row | None: ...

    async def get_many(
        self, keys: Sequence[Any], *, timeout: float | None = None
    ) -> list[ackord.Row | None]: ...

    def scan(
        self,
        prefix: Any = (),
        *,
        start: Any = None,
        end: Any = None,
        limit: int | None = None,
        reverse: bool = False,
        timeout: float | None = None,
    ) -> Any: ...

    async def put(self, key: Any, columns: Any, **options: Any) -> int: ...

    async def update(self, key: Any, set: Any = None, **options: Any) -> int: ...

    async def delete(self, key: Any, **options: Any) -> int: ...

    async def write_many(
        self, operations: Sequence[Operation], *, timeout: float | None = None
    ) -> list[int | ackord.Error]: ...


class StoreLike(Protocol):
    """The part of ``ackord.Store`` that workloads use."""

    def table(self, name: str) -> Any: ...

    @property
    def create_table(self) -> Any: ...

    async def drop_table(self, name: str, *, timeout: float | None = None) -> None: ...


def is_row_key(key: Key) -> bool:
    """Not so is the key of one column that a batch holds now and then, and that must be refused."""
    return len(key) == 2


def never() -> bool:
    return False


@dataclass(slots=True)
class Context:
    """What one client needs; all its randomness and time come from here. ``ops_max`` bounds the operations of one
    ``run``, ``concurrency`` its loops, ``pause_s`` is the mean pause of each between two calls."""

    client: str
    store: StoreLike
    history: History
    rng: random.Random
    now: Callable[[], float]
    stop: Callable[[], bool] = never
    ops_max: int | None = None
    concurrency: int = 4
    timeout_s: float = 10.0
    pause_s: float = 0.0
    ops_count: int = field(default=0, init=False)
    stamps_count: int = field(default=0, init=False)

    @property
    def is_over(self) -> bool:
        is_done = self.ops_max is not None and self.ops_count >= self.ops_max
        return is_done or self.stop() or self.history.is_full

    def stamp(self) -> str:
        """A value that nobody else writes."""
        self.stamps_count += 1
        return f"{self.client}:{self.stamps_count}"


class Recorder:
    """Calls on one table under a workload's name. ``incarnation`` is how the history names the table, if tables of
    one name come and go; ``timeout_s``, if given, is that of every call."""

    def __init__(
        self,
        context: Context,
        workload: str,
        table: str,
        rng: random.Random,
        *,
        incarnation: str | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self.context = context
        self.workload = workload
        self.name = table
        self.rng = rng
        self._named = incarnation or table
        self._may_be_gone = incarnation is not None
        self._timeout = timeout_s
        self._table: TableLike = context.store.table(table)

    # ----------------------------------------------------------------------------------- rows

    async def get(self, key: Key) -> Op:
        op = self._begin(GET, key)
        try:
            row = await self._table.get(key, timeout=self._timeout_s())
        except BaseException as error:
            await self._failed(op, error)
        else:
            _saw(op, row)
            self._end(op, OK)
        return op

    async def get_many(self, keys: Sequence[Key]) -> list[Op]:
        ops = [self._begin(GET, key) for key in keys]
        try:
            rows = await self._table.get_many(keys, timeout=self._timeout_s())
        except BaseException as error:
            await self._all_failed(ops, error)
        else:
            self._expect(len(rows) == len(ops), f"{len(rows)} rows for {len(ops)} keys")
            for op, row in zip(ops, rows, strict=True):
                _saw(op, row)
                self._end(op, OK)
        return ops

    async def put(self, key: Key, columns: dict[str, Any], **condition: Any) -> Op:
        op = self._begin(PUT, key, columns=columns, **condition)
        return await self._written(op, self._table.put(key, columns, timeout=self._timeout_s(), **condition))

    async def update(
        self,
        key: Key,
        set: dict[str, Any] | None = None,
        *,
        increment: dict[str, int] | None = None,
        remove: Sequence[str] = (),
        **condition: Any,
    ) -> Op:
        op = self._begin(
            UPDATE, key, set=set or {}, increment=increment or {}, remove=list(remove), **condition
        )
        call = self._table.update(
            key, set, delete=remove, increment=increment, timeout=self._timeout_s(), **condition
        )
        return await self._written(op, call)

    async def delete(self, key: Key, **condition: Any) -> Op:
        op = self._begin(DELETE, key, **condition)
        return await self._written(op, self._table.delete(key, timeout=self._timeout_s(), **condition))

    async def write_many(self, operations: Sequence[Operation]) -> list[Op]:
        """One record for each row. An operation whose key cannot be one must be refused, and it alone."""
        ops = [self._begin(_kind(item), item.key, **_args(item)) for item in operations]
        for op in ops:
            op.batch = ops[0].number
        try:
            results = await self._table.write_many(operations, timeout=self._timeout_s())
        except BaseException as error:
            await self._all_failed(ops, error)
            return ops
        self._expect(len(results) == len(ops), f"{len(results)} results for {len(ops)} operations")
        unexpected = None
        for op, result in zip(ops, results, strict=True):
            if not isinstance(result, ackord.Error):
                op.version = result
                self._end(op, OK)
            elif op.key is not None and not is_row_key(op.key) and type(result) is ackord.InvalidRequest:
                self._end(op, FAILED, result)
            else:
                unexpected = self._classify(op, result) or unexpected
        if unexpected is not None:
            raise unexpected
        if any(op.outcome == FAILED or op.is_unknown for op in ops):
            await asyncio.sleep(FAILURE_PAUSE_S)
        return ops

    async def scan(
        self,
        start: Key | None = None,
        end: Key | None = None,
        *,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Op:
        """The rows with start <= key < end, all pages; asked for by a prefix where that is the same."""
        op = self._begin(SCAN, None, start=start, end=end, limit=limit, reverse=reverse)
        try:
            is_prefix = start is not None and len(start) == 1 and end == (start[0] + 1,)
            bounds: dict[str, Any] = {"prefix": start} if is_prefix else {"start": start, "end": end}
            scan = self._table.scan(**bounds, limit=limit, reverse=reverse, timeout=self._timeout_s())
            op.rows = [(row.key, row.version, dict(row)) async for row in scan]
        except BaseException as error:
            await self._failed(op, error)
        else:
            self._end(op, OK)
        return op

    # --------------------------------------------------------------------------------- tables

    async def create(self, key: dict[str, type], split_at: Sequence[Any]) -> Op:
        op = self._begin(CREATE, None, split_at=list(split_at))
        call = self.context.store.create_table(
            self.name, key, split_at=split_at, timeout=self.context.timeout_s
        )
        return await self._done(op, call)

    async def drop(self) -> Op:
        op = self._begin(DROP, None)
        return await self._done(op, self.context.store.drop_table(self.name, timeout=self.context.timeout_s))

    # -------------------------------------------------------------------------------- outcomes

    def _timeout_s(self) -> float:
        if self._timeout is not None:
            return self._timeout
        if self.rng.random() < SHORT_TIMEOUT_RATE:
            return self.context.timeout_s * SHORT_TIMEOUT_PART
        return self.context.timeout_s

    def _begin(self, kind: str, key: Key | None, **args: Any) -> Op:
        self.context.ops_count += 1
        given = {
            name: value
            for name, value in args.items()
            if value not in (None, False, [], {}) or name == "columns"
        }
        context = self.context
        return context.history.begin(
            context.client, self.workload, kind, self._named, key, context.now(), given
        )

    def _end(self, op: Op, outcome: str, error: BaseException | None = None) -> None:
        text = "" if error is None else f"{type(error).__name__}: {error}"
        note = "repeated" if isinstance(error, ackord.Error) and error.detail.get("repeated") else ""
        self.context.history.end(op, outcome, self.context.now(), error=text, note=note)

    async def _written(self, op: Op, call: Any) -> Op:
        try:
            op.version = await call
        except BaseException as error:
            op.version = None
            await self._failed(op, error)
        else:
            self._end(op, OK)
        return op

    async def _done(self, op: Op, call: Any) -> Op:
        try:
            await call
        except BaseException as error:
            await self._failed(op, error)
        else:
            self._end(op, OK)
        return op

    async def _failed(self, op: Op, error: BaseException) -> None:
        await self._all_failed([op], error)

    async def _all_failed(self, ops: Sequence[Op], error: BaseException) -> None:
        unexpected = None
        for op in ops:
            unexpected = self._classify(op, error) or unexpected
        if not isinstance(error, Exception):
            raise error
        if unexpected is not None:
            raise unexpected from error
        if not isinstance(error, ackord.Conflict):
            await asyncio.sleep(FAILURE_PAUSE_S)

    def _classify(self, op: Op, error: BaseException) -> UnexpectedError | None:
        """Ends the operation; an error if this cannot happen to it."""
        is_write = op.kind not in (GET, SCAN)
        if isinstance(error, ackord.Conflict) and _has_condition(op):
            _saw(op, error.current)
            self._end(op, CONFLICT, error)
        elif isinstance(error, ackord.OutcomeUnknown) and is_write:
            self._end(op, UNKNOWN, error)
        elif (
            isinstance(error, ackord.Unavailable)
            or (isinstance(error, ackord.TableNotFound) and self._may_be_gone)
            or (isinstance(error, ackord.TableExists) and op.kind == CREATE)
        ):
            self._end(op, FAILED, error)
        else:
            self._end(op, UNKNOWN, error)
            if isinstance(error, Exception):
                return UnexpectedError(f"{op}: {error!r}")
        return None

    def _expect(self, holds: bool, what: str) -> None:
        if not holds:
            raise UnexpectedError(f"{self.context.client}, {self.workload}: {what}")


def _saw(op: Op, row: ackord.Row | None) -> None:
    if row is not None:
        op.version, op.columns = row.version, dict(row)


def _has_condition(op: Op) -> bool:
    return any(name in op.args for name in ("if_version", "if_absent", "if_exists", "where"))


def _kind(operation: Operation) -> str:
    if isinstance(operation, ackord.Put):
        return PUT
    return UPDATE if isinstance(operation, ackord.Update) else DELETE


def _args(operation: Operation) -> dict[str, Any]:
    args: dict[str, Any] = {"if_version": operation.if_version, "if_exists": operation.if_exists}
    if isinstance(operation, ackord.Put):
        args |= {"columns": dict(operation.columns), "if_absent": operation.if_absent}
    elif isinstance(operation, ackord.Update):
        args |= {
            "set": dict(operation.set or {}),
            "increment": dict(operation.increment or {}),
            "remove": list(operation.delete),
            "if_absent": operation.if_absent,
        }
    return args
