"""One caller's operations while they are under way: what is asked, who waits, under which request id.

An operation is always in exactly one place: pending for the next flush, in a group at a node, or parked until
a retry. Whoever takes it out of there either answers it or puts it into the next place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

from ackord.errors import Error
from ackord.routing import TableRoute, TabletRoute
from ackord.row import Row, Written
from ackord.transport import Cancellable, Environment
from ackord.wire.keys import is_auto_key
from ackord.wire.limits import check_bounds
from ackord.wire.messages import (
    CLIENT_ID_BYTES,
    COND_NONE,
    KIND_PUT,
    KIND_TRANSACTION,
    OP_AS_OF,
    OP_COUNT,
    OP_GET,
    OP_SCAN,
    OP_SCAN_AS_OF,
    OP_SELECT,
    OP_WRITE,
    VERSION_COUNTER_BITS,
    error_from_wire,
    is_error,
)

WINDOW_COUNT_MAX: Final = (
    30_000  # seqs between an identity's floor and its next one; nodes bound what they keep
)

GROUP_BYTES_TARGET: Final = 1024 * 1024

_DEADLINE = attrgetter("deadline")


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """Bounds of one store; past them calls fail with Unavailable at once."""

    queue_ops_max: int = 65_536  # operations under way, in flight included
    queue_bytes_max: int = 64 * 1024 * 1024  # bytes of their keys and columns
    inflight_ops_max: int = 16_384  # operations sent to one node and not answered

    def __post_init__(self) -> None:
        check_bounds("queue", self)


class Many:
    """The results of a call of several operations; the future gets the list when all are there. An error is a
    result like any other."""

    __slots__ = ("future", "missing_count", "results")

    def __init__(self, future: asyncio.Future[list[Any]], count: int) -> None:
        self.future = future
        self.results: list[Any] = [None] * count
        self.missing_count = count

    def put(self, index: int, result: Any) -> None:
        self.results[index] = result
        self.missing_count -= 1
        if not self.missing_count and not self.future.done():
            self.future.set_result(self.results)

    def put_all(self, places: list[int], results: list[Any]) -> None:
        """The same for several."""
        found = self.results
        for place, result in zip(places, results, strict=True):
            found[place] = result
        self.missing_count -= len(places)
        if not self.missing_count and not self.future.done():
            self.future.set_result(found)


class Identity:
    """A client id and its sequence numbers (rule R16). ``open`` holds, in ascending order, the seqs that may
    still be sent or answered; the floor is the lowest of them."""

    __slots__ = ("client_id", "next_seq", "open", "registered")

    def __init__(self, client_id: bytes, registered: int) -> None:
        self.client_id = client_id
        self.registered = registered
        self.next_seq = 1
        self.open: dict[int, None] = {}

    @property
    def floor(self) -> int:
        return next(iter(self.open), self.next_seq)

    @property
    def room(self) -> int:
        """So many more writes may get a number."""
        return WINDOW_COUNT_MAX - (self.next_seq - self.floor)

    def take(self) -> int:
        seq = self.next_seq
        self.next_seq = seq + 1
        self.open[seq] = None
        return seq


class Identities:
    """The identity that new writes get: one for all tablets, until its window is full or a node refuses
    it."""

    def __init__(self, environment: Environment, version: int) -> None:
        self._environment = environment
        self._version = version
        self._version_at = environment.now()
        self._current: Identity | None = None

    def version_seen(self, version: int) -> None:
        """A node told the cluster's clock."""
        if version > self._version:
            self._version, self._version_at = version, self._environment.now()

    def current(self) -> Identity:
        """Registered at the cluster's clock of now, as far as it is known."""
        identity = self._current
        if identity is None or identity.room <= 0:
            elapsed_ms = int((self._environment.now() - self._version_at) * 1000)
            registered = self._version + (elapsed_ms << VERSION_COUNTER_BITS)
            identity = Identity(self._environment.random_bytes(CLIENT_ID_BYTES), registered)
            self._current = identity
        return identity

    def refused(self, write: Write, error: Error) -> None:
        """A node will never execute the write under its identity, and no attempt of it can have happened: the
        next one gets another id, registered by the clock that the refusal tells. Back, too: that clock decides,
        whatever a node whose own ran ahead has told."""
        if write.identity is self._current:
            self._current = None
            clock, is_ahead = error.detail.get("clock"), error.detail.get("reason") == "registered_ahead"
            if type(clock) is int and (is_ahead or clock > self._version):
                self._version, self._version_at = clock, self._environment.now()
        write.release()
        write.attempts = 0


class Get:
    """A read of one row; and what every operation has."""

    __slots__ = (
        "deadline",
        "encoded",
        "error",
        "failures",
        "future",
        "index",
        "key",
        "many",
        "redirects",
        "table",
        "tablet",
    )

    op: int = OP_GET
    group_kind: type[Group] | None = None  # of what it travels in, if that is special
    size: int = 0  # bytes that it holds while it waits
    is_unknown: bool = False  # of a write: an attempt without an answer may have happened

    def __init__(
        self,
        future: asyncio.Future[Any],
        table: TableRoute,
        tablet: TabletRoute,
        key: tuple[Any, ...],
        encoded: bytes,
        deadline: float,
        many: Many | None = None,
        index: int = 0,
    ) -> None:
        self.future = future
        self.table = table
        self.tablet = tablet
        self.key = key
        self.encoded = encoded
        self.deadline = deadline
        self.many = many
        self.index = index
        self.failures = 0  # in a row, for the backoff
        self.redirects = 0  # followed at once, in a row
        self.error: Error | None = None  # of the last attempt

    def deliver(self, result: Any) -> None:
        """Gives the caller its result or error, unless it has gone."""
        if self.future.done():
            return
        if self.many is not None:
            self.many.put(self.index, result)
        elif isinstance(result, Error):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)

    def row_of(self, raw: bytes) -> Row:
        return Row(self.key, raw)


class Select(Get):
    """A read of one row if an expression holds of it, or of some of its columns. ``selection`` is ``[where,
    columns]`` as on the wire."""

    __slots__ = ("selection",)

    op = OP_SELECT

    selection: list[Any]


class Query(Get):
    """A read that goes alone: ``[rid, code, tablet, *parts]`` on the wire."""

    __slots__ = ("code", "parts")

    op = OP_AS_OF  # the kind of all of them in the queues

    code: int
    parts: list[Any]


class Write(Get):
    """A put, update or delete of one row."""

    __slots__ = (
        "attempts",
        "body",
        "condition",
        "condition_value",
        "identity",
        "is_unknown",
        "kind",
        "seq",
        "size",
    )

    op = OP_WRITE

    kind: int
    body: Any  # bytes, None, or what a transaction is
    condition: int
    condition_value: Any
    returning: int = 0  # RETURN_NEW or RETURN_OLD: the answer carries a row

    def set_body(self, kind: int, body: bytes | None, condition: int, condition_value: Any) -> None:
        self.kind = kind
        self.body = body
        self.condition = condition
        self.condition_value = condition_value
        self.size = len(self.encoded) + (0 if body is None else len(body))
        self.identity: Identity | None = None  # given with the first attempt
        self.seq = 0
        self.attempts = 0
        self.is_unknown = False

    def written(self, result: Any) -> Written | Error:
        """A result other than a version: the row that it returns, or an error; one that is neither is one, too."""
        if type(result) is not list or is_error(result):
            return error_from_wire(result, self.row_of)
        version, raw = result if len(result) == 2 else (None, None)
        if type(version) is not int or not (raw is None or type(raw) is bytes):
            return Error(f"the node's answer to a write is none: {ascii(result)[:80]}")
        key = (*self.key[:-1], version) if is_auto_key(self.key) else self.key
        return Written(key, version, None if raw is None else Row(key, raw))

    def release(self) -> None:
        """No attempt follows: the floor may pass it. One that is still on its way is then refused as
        stale."""
        if self.identity is not None:
            self.identity.open.pop(self.seq, None)
            self.identity = None


class ReturningWrite(Write):
    """A write that is answered with a row beside its version."""

    __slots__ = ("returning",)


class Transact(Write):
    """A transaction over rows of one partition key, which is its ``encoded`` key; one write like any other."""

    __slots__ = ()

    def set_transaction(self, body: list[Any], size: int) -> None:
        """``size``: bytes that it holds."""
        self.set_body(KIND_TRANSACTION, None, COND_NONE, None)
        self.body = body
        self.size += size


class Scan(Get):
    """A read of one page: rows with start <= encoded key < end of one tablet, in order or backwards.
    ``selection`` is empty or ``[where, columns]`` as on the wire."""

    __slots__ = ("bytes_max", "end", "reverse", "rows_max", "selection", "start")

    op = OP_SCAN

    start: bytes
    end: bytes | None
    reverse: bool
    rows_max: int
    bytes_max: int
    selection: list[Any]


class ScanAsOf(Scan):
    """A page of what the range was at a version."""

    __slots__ = ("as_of",)

    op = OP_SCAN_AS_OF

    as_of: int


class Count(Scan):
    """How many rows there are in a stretch of the range. ``selection`` is ``[where]``, or ``[where, version]``: how
    many there were then."""

    __slots__ = ()

    op = OP_COUNT


Operation = Get | Write | Scan


class Parked:
    """Operations that wait for their next attempt."""

    __slots__ = ("deadline", "ops", "timer")

    def __init__(self, ops: list[Operation]) -> None:
        self.ops = ops
        self.deadline = min(op.deadline for op in ops)
        self.timer: Cancellable | None = None


class Group:
    """Operations of one kind and tablet that go to one node together (and of one identity, if they write)."""

    __slots__ = (
        "are_puts",
        "deadline",
        "op",
        "ops",
        "reviewed_at",
        "sent_at",
        "size",
        "tablet",
        "unanswered_count",
    )

    def __init__(
        self, op: int, tablet: TabletRoute, ops: list[Any], size: int = 0, are_puts: bool = False
    ) -> None:
        self.op = op
        self.tablet = tablet
        self.ops: list[Any] = ops  # Operation, or None once it was answered or taken away
        self.size = size
        self.are_puts = are_puts  # unconditional, of whole rows, sent for the first time
        self.deadline: float = min(map(_DEADLINE, ops))
        self.unanswered_count = len(ops)
        self.sent_at = 0.0
        self.reviewed_at = 0.0

    def unwrapped(self, node: str, indices: Any, results: Any) -> Any:
        """The results as its operations take them."""
        return results

    def take_all(self) -> list[Any]:
        """Takes what is left out of the group."""
        ops = [op for op in self.ops if op is not None]
        self.ops = [None] * len(self.ops)
        return ops

    def take_expired(self, now: float) -> list[Any]:
        """Takes what has passed its deadline, or nobody waits for, and finds the next deadline."""
        expired = []
        deadline = float("inf")
        for index, op in enumerate(self.ops):
            if op is None:
                continue
            if op.deadline <= now or op.future.done():
                expired.append(op)
                self.ops[index] = None
            elif op.deadline < deadline:
                deadline = op.deadline
        self.deadline = deadline
        return expired

    def encode(self, rid: int) -> list[Any]:
        """The group as on the wire; gives writes their number and counts the attempt."""
        tablet = self.tablet.id
        if self.op == OP_GET:
            return [rid, OP_GET, tablet, [op.encoded for op in self.ops]]
        if self.op == OP_SCAN:
            scan: Scan = self.ops[0]
            bounds = [scan.start, scan.end, scan.reverse, scan.rows_max, scan.bytes_max]
            return [rid, OP_SCAN, tablet, *bounds, *scan.selection]
        if self.op == OP_SCAN_AS_OF:
            past: ScanAsOf = self.ops[0]
            bounds = [past.start, past.end, past.reverse, past.rows_max, past.bytes_max]
            return [rid, OP_SCAN_AS_OF, tablet, *bounds, past.as_of, *past.selection]
        if self.op == OP_AS_OF:
            query: Query = self.ops[0]
            return [rid, query.code, tablet, *query.parts]
        if self.op == OP_COUNT:
            count: Count = self.ops[0]
            return [rid, OP_COUNT, tablet, count.start, count.end, *count.selection]
        if self.op == OP_SELECT:
            return [rid, OP_SELECT, tablet, [op.encoded for op in self.ops], *self.ops[0].selection]
        identity: Identity = self.ops[0].identity
        head = [rid, OP_WRITE, tablet, identity.client_id, identity.registered, identity.floor]
        first_seq = self.ops[0].seq
        if self.are_puts and self.ops[-1].seq - first_seq == len(self.ops) - 1:  # none was taken out
            for op in self.ops:
                op.attempts = 1
            return [*head, [first_seq, [op.encoded for op in self.ops], [op.body for op in self.ops]]]
        writes = []
        for op in self.ops:
            op.attempts += 1
            write = [op.seq, op.kind, op.encoded, op.body, op.condition, op.condition_value, op.attempts]
            if op.returning:
                write.append(op.returning)
            writes.append(write)
        return [*head, writes]


def groups_of(
    op: int, tablet: TabletRoute, ops: list[Any], identities: Identities, count_max: int
) -> Iterable[Group]:
    """Operations of one kind and tablet as groups of at most ``count_max``."""
    if op == OP_WRITE:
        return write_groups(tablet, ops, identities, count_max)
    if op == OP_SELECT:
        return select_groups(tablet, ops, count_max)
    if op in (OP_SCAN, OP_COUNT, OP_AS_OF, OP_SCAN_AS_OF):
        count_max = 1
    kind = ops[0].group_kind or Group
    return (kind(op, tablet, ops[at : at + count_max]) for at in range(0, len(ops), count_max))


def select_groups(tablet: TabletRoute, selects: list[Select], count_max: int) -> Iterator[Group]:
    """Groups of selects of one tablet, each of those that ask alike."""
    alike: dict[Any, list[Select]] = {}
    for select in selects:
        where, columns = select.selection
        alike.setdefault((where, None if columns is None else tuple(columns)), []).append(select)
    for same in alike.values():
        for at in range(0, len(same), count_max):
            yield Group(OP_SELECT, tablet, same[at : at + count_max])


def write_groups(
    tablet: TabletRoute, writes: list[Write], identities: Identities, count_max: int
) -> Iterator[Group]:
    """Groups of writes of one tablet: of one identity each, bounded in number and about in bytes. A write
    without a request id gets one."""
    part: list[Write] = []
    size = room = 0
    are_puts = True
    identity: Identity | None = None
    for write in writes:
        is_new = write.identity is None
        if is_new:
            if identity is None or not room:
                identity = identities.current()
                room = identity.room
            write.identity = identity
            write.seq = identity.take()
            room -= 1
        if part and (
            len(part) >= count_max
            or size + write.size > GROUP_BYTES_TARGET
            or write.identity is not part[0].identity
        ):
            yield Group(OP_WRITE, tablet, part, size, are_puts)
            part, size, are_puts = [], 0, True
        part.append(write)
        size += write.size
        if are_puts:
            is_plain = write.kind == KIND_PUT and write.condition == COND_NONE and not write.returning
            are_puts = is_new and is_plain
    if part:
        yield Group(OP_WRITE, tablet, part, size, are_puts)
