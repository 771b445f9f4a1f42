"""Transactions over the rows of one partition key: reads that are checked, writes that happen together or not at all.

Optimistic: nothing is locked. The transaction remembers the version of each row that it read, absent ones too, and
for each range the keys and versions in it. Its end sends all of that with the writes in one request, and the
tablet's coordinator carries them out in one step, if everything is still as it was read. Reads made one after the
other may show states of different moments; one that shows so raises Conflict at once, and the commit finds the rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from ackord.calls import Transact
from ackord.errors import Conflict, InvalidRequest
from ackord.expressions import Expression
from ackord.operations import Delete, Encoded, Operation, Put, Update, encode_write, key_tuple
from ackord.routing import TableRoute, backoff_s
from ackord.row import Row
from ackord.scan import Bounds
from ackord.wire.extras import split_extras
from ackord.wire.keys import after_prefix, is_auto_key
from ackord.wire.messages import COND_MERGE, COND_WHERE, KIND_DELETE, KIND_PUT, KIND_UPDATE, join_row
from ackord.wire.ranges import KeyRange, least
from ackord.wire.transactions import NOT_AS_READ, digest_of
from ackord.wire.updates import updated_columns
from ackord.wire.values import check_update, decode_columns, encode_columns

if TYPE_CHECKING:
    from ackord.store import Store
    from ackord.table import Table

_Result = TypeVar("_Result")
_UNWRITTEN: Final = 0  # the version of a row that only the transaction itself has written


class Range:
    """A range as it was read: the encoded keys and versions of its rows, in key order."""

    __slots__ = ("end", "rows", "start")

    def __init__(self, start: bytes, end: bytes | None, rows: list[tuple[bytes, int]]) -> None:
        self.start = start
        self.end = end
        self.rows = rows

    def holds(self, key: bytes) -> bool:
        return self.start <= key and (self.end is None or key < self.end)

    def to_wire(self) -> list[Any]:
        return [self.start, self.end, len(self.rows), digest_of(self.rows)]


class Transaction:
    """Made by ``Table.transaction``; to be used in ``async with``, by one task or several of one event loop.

    The end of the block commits: everything or nothing. An exception in the block ends it with nothing done. The commit
    raises Conflict if something that was read has changed (``error.detail["keys"]`` names rows, ``"ranges"`` counts
    scans from 0) or if a write's own condition did not hold (``error.current`` is that row), and as every write
    Unavailable or OutcomeUnknown. ``version`` is the commit's then; of a transaction that wrote nothing, that of the
    state that was compared; None if it did nothing at all.
    """

    def __init__(self, table: Table, store: Store, partition: Any, timeout: float | None) -> None:
        self.version: int | None = None
        self._table = table
        self._store = store
        self._partition = partition
        self._timeout = timeout
        self._limits = store.batcher.routing.limits
        self._route: TableRoute | None = None
        self._prefix = b""
        self._is_open = False
        self._seen: dict[bytes, Row | None] = {}  # as read from the table
        self._reads: dict[bytes, int | None] = {}  # of single rows
        self._ranges: list[Range] = []
        self._writes: list[tuple[bytes, Any, Encoded]] = []
        self._own: dict[bytes, list[Encoded]] = {}
        self._size = 0

    async def __aenter__(self) -> Self:
        self._route = await self._store.find_table(self._table.name, self._store.deadline(self._timeout))
        self._prefix = self._route.key.encode_prefix((self._partition,))
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_open = False
        if kind is None:
            await self._commit()

    # ---------------------------------------------------------------------------------- reads

    async def get(self, key: Any) -> Row | None:
        """The row as the transaction sees it: with its own writes (their conditions taken to hold), else as first
        read. A row that only the transaction has written has version 0."""
        encoded = self._encode(key)
        own = self._own.get(encoded)
        if own is None:
            return await self._read(key, encoded)
        base = None if own[0][0] != KIND_UPDATE else await self._read(key, encoded)
        return _written_over(key_tuple(key), base, own)

    async def scan(
        self,
        prefix: Any = None,
        *,
        start: Any = None,
        start_after: Any = None,
        end: Any = None,
        end_at: Any = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[Row]:
        """The rows of the partition key, or of a range of them bounded as in ``Table.scan``, with the transaction's
        own writes. With ``limit`` only the range up to the last row that was read is checked at the commit. Rows
        that an AUTO put of this transaction makes do not show."""
        route = self._opened()
        bounds = Bounds((self._partition,) if prefix is None else prefix, start, start_after, end, end_at)
        for given in (prefix, start, start_after, end, end_at):
            if given is not None:
                self._check_partition(route.key.encode_prefix(given))
        wanted = bounds.encode(route)
        wanted = max(wanted[0], self._prefix), least(wanted[1], after_prefix(self._prefix))
        own = {key: ops for key, ops in self._own.items() if _holds(wanted, key)}
        if limit is not None and (type(limit) is not int or limit <= 0):
            raise InvalidRequest(
                f"limit={ascii(limit)[:60]} is not a number of rows", field="limit", value=ascii(limit)[:60]
            )
        room = self._range_room()
        most = room + 1 if limit is None else min(limit + len(own), room + 1)
        scan = self._table.scan(
            bounds.prefix,
            start=start,
            start_after=start_after,
            end=end,
            end_at=end_at,
            limit=most,
            reverse=reverse,
            timeout=self._timeout,
        )
        read = {route.key.encode(row.key): row async for row in scan}
        if len(read) > room:
            raise self._over("rows in ranges", len(read), "transaction_range_rows_count")
        covered = wanted
        if limit is not None and len(read) == most and read:
            last = next(reversed(read))
            covered = (last, wanted[1]) if reverse else (wanted[0], last + b"\x00")
        self._note_range(covered, read)
        return self._shown(covered, read, own, limit, reverse)

    def _shown(
        self,
        covered: KeyRange,
        read: dict[bytes, Row],
        own: dict[bytes, list[Encoded]],
        limit: int | None,
        reverse: bool,
    ) -> list[Row]:
        assert self._route is not None
        rows: dict[bytes, Row | None] = dict(read)
        for key, ops in own.items():
            if _holds(covered, key):
                rows[key] = _written_over(self._route.key.decode(key), read.get(key), ops)
        shown = [row for _, row in sorted(rows.items(), reverse=reverse) if row is not None]
        return shown if limit is None else shown[:limit]

    async def _read(self, key: Any, encoded: bytes) -> Row | None:
        """The row without the transaction's writes, the same every time."""
        if encoded in self._seen:
            return self._seen[encoded]
        if any(known.holds(encoded) for known in self._ranges):
            return None
        if len(self._reads) >= self._limits.transaction_reads_count:
            raise self._over("rows read", len(self._reads) + 1, "transaction_reads_count")
        row = await self._table.get(key, timeout=self._timeout)
        self._note_row(encoded, row)
        if not any(known.holds(encoded) for known in self._ranges):
            self._reads[encoded] = _version(row)
        return self._seen[encoded]

    def _note_row(self, key: bytes, row: Row | None) -> None:
        """Conflict if what was read before differs: no moment had both."""
        if key in self._seen or any(known.holds(key) for known in self._ranges):
            before = self._seen.get(key)
            if _version(before) != _version(row):
                assert self._route is not None
                raise Conflict(
                    "a row changed between two reads of the transaction",
                    condition=NOT_AS_READ,
                    keys=[self._route.key.decode(key)],
                )
        self._seen.setdefault(key, row)

    def _note_range(self, covered: KeyRange, read: dict[bytes, Row]) -> None:
        if len(self._ranges) >= self._limits.transaction_ranges_count:
            raise self._over("ranges", len(self._ranges) + 1, "transaction_ranges_count")
        for key in [key for key in self._seen if _holds(covered, key)]:
            self._note_row(key, read.get(key))
        for key, row in read.items():
            self._note_row(key, row)
        self._ranges.append(Range(*covered, sorted((key, row.version) for key, row in read.items())))

    def _range_room(self) -> int:
        """How many more rows its ranges may hold."""
        return self._limits.transaction_range_rows_count - sum(len(known.rows) for known in self._ranges)

    # --------------------------------------------------------------------------------- writes

    def put(
        self,
        key: Any,
        columns: Mapping[str, Any],
        *,
        if_version: int | None = None,
        if_absent: bool = False,
        if_exists: bool = False,
        where: Expression | None = None,
        on_conflict: str | None = None,
        ttl: float | None = None,
        timestamp: int | Mapping[str, int] | None = None,
    ) -> None:
        """As ``Table.put``, done at the commit. A key that ends with AUTO gets the commit's ``version``."""
        put = Put(
            key,
            columns,
            if_version=if_version,
            if_absent=if_absent,
            if_exists=if_exists,
            where=where,
            on_conflict=on_conflict,
            ttl=ttl,
            timestamp=timestamp,
        )
        self.write(put)

    def update(
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
        on_conflict: str | None = None,
        ttl: float | None = None,
        timestamp: int | Mapping[str, int] | None = None,
        delete_cells: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """As ``Table.update``, done at the commit."""
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
        self.write(update)

    def delete(
        self,
        key: Any,
        *,
        if_version: int | None = None,
        if_exists: bool = False,
        where: Expression | None = None,
    ) -> None:
        """As ``Table.delete``, done at the commit."""
        self.write(Delete(key, if_version=if_version, if_exists=if_exists, where=where))

    def write(self, operation: Operation) -> None:
        """Any of the three, as a value."""
        route, limits = self._opened(), self._limits
        _check_kind(operation)
        encoded, body = encode_write(route, operation, limits)
        self._check_partition(encoded)
        if len(self._writes) >= limits.transaction_rows_count:
            raise self._over("writes", len(self._writes) + 1, "transaction_rows_count")
        size = self._size + len(encoded) + len(body[1] or b"")
        if size > limits.transaction_bytes:
            raise self._over("bytes", size, "transaction_bytes")
        self._size = size
        self._writes.append((encoded, operation.key, body))
        if not is_auto_key(operation.key):
            own = self._own.setdefault(encoded, [])
            if body[0] != KIND_UPDATE:
                own.clear()  # what was written before no longer shows
            own.append(body)

    # --------------------------------------------------------------------------------- commit

    async def _commit(self) -> None:
        if not self._writes and not self._reads and not self._ranges:
            return
        assert self._route is not None
        writes = [[kind, key, body, *rest] for key, _, (kind, body, *rest) in self._writes]
        reads = [[key, version] for key, version in self._reads.items()]
        body = [reads, [known.to_wire() for known in self._ranges], writes]
        size = self._size + sum(len(key) + 9 for key in self._reads)
        if size > self._limits.transaction_bytes:
            raise self._over("bytes", size, "transaction_bytes")
        store, route, prefix = self._store, self._route, self._prefix
        future = store.loop.create_future()
        tablet, deadline = route.tablet_of(prefix), store.deadline(self._timeout)
        op = Transact(future, route, tablet, (self._partition,), prefix, deadline)
        op.set_transaction(body, size)
        store.batcher.add(op)
        try:
            self.version = await future
        except Conflict as conflict:
            self._explain(conflict)
            raise

    def _explain(self, conflict: Conflict) -> None:
        """Puts keys in the place of what the node says by places."""
        assert self._route is not None
        detail, decode = conflict.detail, self._route.key.decode
        reads = list(self._reads)
        keys = [decode(reads[at]) for at in detail.pop("reads", ()) if at < len(reads)]
        at = detail.get("write")
        if type(at) is int and at < len(self._writes):
            key = key_tuple(self._writes[at][1])
            keys.append(key)
            if conflict.current is not None:
                conflict.current = conflict.current.of_key(key)
        detail["keys"] = keys

    # -------------------------------------------------------------------------------- helpers

    def _opened(self) -> TableRoute:
        if self._route is None or not self._is_open:
            raise InvalidRequest(
                "the transaction has ended, or not begun: it works inside of its `async with` block",
                field="transaction",
            )
        return self._route

    def _encode(self, key: Any) -> bytes:
        encoded = self._opened().key.encode(key)
        self._check_partition(encoded)
        return encoded

    def _check_partition(self, encoded: bytes) -> None:
        if not encoded.startswith(self._prefix):
            raise InvalidRequest(
                f"a transaction of the partition key {ascii(self._partition)[:60]} takes no other's keys",
                field="key",
                value=ascii(self._partition)[:60],
            )

    def _over(self, what: str, value: int, limit: str) -> InvalidRequest:
        most = getattr(self._limits, limit)
        return InvalidRequest(
            f"{value} {what} in one transaction, over the limit {limit} of {most}",
            field=limit,
            value=value,
            limit=most,
        )


async def write_atomically(
    table: Table, store: Store, operations: Iterable[Operation], timeout: float | None
) -> int | None:
    """All of the operations, which have one partition key, or none."""
    wanted = list(operations)
    if not wanted:
        return None
    for operation in wanted:
        _check_kind(operation)
    key = key_tuple(wanted[0].key)
    if not key:
        raise InvalidRequest("the key () has no partition key", field="key", value="()")
    partition = key[0]
    async with Transaction(table, store, partition, timeout) as tx:
        for operation in wanted:
            tx.write(operation)
    return tx.version


async def transact(
    table: Table,
    store: Store,
    partition: Any,
    work: Callable[[Transaction], Awaitable[_Result]],
    timeout: float | None,
) -> _Result:
    """Runs ``work`` in transactions until one commits, the deadline has passed, or it fails for another reason than
    that something it read has changed."""
    deadline = store.deadline(timeout)
    failures = 0
    while True:
        try:
            async with Transaction(table, store, partition, store.seconds_to(deadline)) as tx:
                return await work(tx)
        except Conflict as conflict:
            failures += 1
            pause_s = backoff_s(failures, store.jitter())
            if not _is_outdated(conflict) or store.seconds_to(deadline) <= pause_s:
                raise
            await store.sleep(pause_s)


def _is_outdated(conflict: Conflict) -> bool:
    """Whether to do it all again may help: not if a write's own condition did not hold."""
    return conflict.detail.get("condition") == NOT_AS_READ or "repeated" in conflict.detail


def _check_kind(operation: Any) -> None:
    if not isinstance(operation, Put | Update | Delete):
        raise InvalidRequest(
            f"a transaction writes Put, Update and Delete, not {type(operation).__name__}",
            field="operations",
            value=type(operation).__name__,
        )


def _version(row: Row | None) -> int | None:
    return None if row is None else row.version


def _holds(wanted: KeyRange, key: bytes) -> bool:
    return wanted[0] <= key and (wanted[1] is None or key < wanted[1])


def _written_over(key: tuple[Any, ...], base: Row | None, own: list[Encoded]) -> Row | None:
    """What the writes make of the row, if their conditions hold."""
    columns = None if base is None else base.columns
    for kind, body, condition, value in own:
        if condition == COND_MERGE or (condition == COND_WHERE and value[0] == COND_MERGE):
            raise InvalidRequest(
                'the transaction has written this row with on_conflict="merge": what comes of it is known after '
                "the commit",
                field="key",
            )
        if kind == KIND_DELETE:
            columns = None
            continue
        assert body is not None
        _, proper = split_extras(body)
        if kind == KIND_PUT:
            columns = decode_columns(proper)
        else:
            columns = updated_columns(columns or {}, check_update(proper))
    return None if columns is None else Row(key, join_row(_UNWRITTEN, encode_columns(columns)))
