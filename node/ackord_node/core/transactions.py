"""Transactions over rows of one partition key: judged at the log's end in one step, logged as one write.

What the transaction read is compared with the state at the log's end, pending entries included. If nothing has
changed, reading all of it and writing would have the same outcome now, in one instant: so the order of the log is a
serial order of all transactions and single writes. A coordinator that was replaced unawares may judge by an old
state, but what it appends then never commits (rules R3, R4); and a Conflict, like the answer to a transaction that
only read, is a read: it needs the right to answer and waits for what it was judged on (rule R12).

The rows of a transaction share one version and stand in one log entry, which commits, is stored, overlaid and
forgotten as a whole: so every reader of one moment sees all of it or nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ackord.errors import Conflict, Error, InvalidRequest
from ackord.wire.extras import NO_EXTRAS, Extras
from ackord.wire.keys import KeySchema, after_prefix
from ackord.wire.messages import KIND_PUT_AUTO, OWN_MARK, row_version
from ackord.wire.transactions import NOT_AS_READ, digest_of
from ackord_node.core.judging import Judge
from ackord_node.core.reads import Reads
from ackord_node.core.rows import check_op, new_key
from ackord_node.core.state import TabletState

Rows = dict[bytes, bytes | None]


class Part(NamedTuple):
    """One of its writes, as a single write of its own would be."""

    op: list[Any]
    body: Any
    extras: Extras


class Transactions:
    def __init__(self, state: TabletState, reads: Reads, judging: Judge) -> None:
        self._s = state
        self._reads = reads
        self._judging = judging

    def check(self, op: list[Any], version: int) -> list[Part]:
        """Its writes, looked at without any row: InvalidRequest if one can never succeed."""
        limits, schema = self._s.config.limits, self._s.schema
        parts: list[Part] = []
        numbered: set[bytes] = set()
        for at, (kind, key, body, condition, value) in enumerate(op[3][2]):
            try:
                single, extras = [op[0], kind, key, body, condition, value, op[6]], NO_EXTRAS
                if body is not None and body[:1] == OWN_MARK:
                    single, extras = self._judging.split(single, version)
                parts.append(Part(single, check_op(single, limits, schema), extras))
                if key in numbered:
                    raise InvalidRequest(
                        "the rows of a transaction share one version, so it can number one row of each prefix",
                        field="key",
                    )
            except Error as error:
                error.detail["write"] = at
                raise
            if kind == KIND_PUT_AUTO:
                numbered.add(key)
        return parts

    def judge(self, op: list[Any], parts: list[Part], version: int, index: int) -> Rows:
        """The rows that it leaves, None for deleted ones; they are pending from here on, at ``index``. Conflict or
        another refusal if it is not to be done: then nothing is pending of it."""
        self._compare(op[3][0], op[3][1])
        pending = self._s.overlay.pending
        before: dict[bytes, tuple[int, bytes | None] | None] = {}
        rows: Rows = {}
        at = size = 0
        try:
            for at in range(len(parts)):
                part = parts[at]
                key = part.op[2]
                if part.op[1] == KIND_PUT_AUTO:
                    key = new_key(part.op, version, self._reads.newest_row, self._s.schema)
                row = self._judging.row(part.op, part.body, key, version, part.extras)
                before.setdefault(key, pending.get(key))
                pending[key] = (index, row)
                rows[key] = row
                size += len(key) + (len(row) if row is not None else 0)
                self._check_size(size)
        except BaseException as error:
            for key, newest in before.items():
                if newest is None:
                    del pending[key]
                else:
                    pending[key] = newest
            if isinstance(error, Error):
                error.detail["write"] = at
            raise
        return rows

    def refused_row(self, op: list[Any], error: Error) -> bytes | None:
        """The row on which one of its writes was refused."""
        at = error.detail.get("write")
        return self._reads.newest_row(op[3][2][at][1]) if at is not None else None

    def _compare(self, reads: list[Any], ranges: list[Any]) -> None:
        rows = self._reads.newest_rows([key for key, _ in reads]) if reads else []
        changed: list[int] = []
        for at, ((_, version), row) in enumerate(zip(reads, rows, strict=True)):
            if (row_version(row) if row is not None else None) != version:
                changed.append(at)
        stretched = [at for at, wanted in enumerate(ranges) if not self._is_as_read(*wanted)]
        if changed or stretched:
            raise Conflict(
                f"{len(changed)} rows and {len(stretched)} ranges that the transaction read have changed since",
                condition=NOT_AS_READ,
                reads=changed,
                ranges=stretched,
            )

    def _is_as_read(self, start: bytes, end: bytes | None, count: int, digest: bytes) -> bool:
        limits = self._s.config.limits
        found = self._reads.newest_range(start, end, count, limits.transaction_bytes)
        return len(found) == count and digest_of((key, row_version(row)) for key, row in found) == digest

    def _check_size(self, size: int) -> None:
        limit = self._s.config.limits.transaction_bytes
        if size > limit:
            raise InvalidRequest(
                f"the rows that the transaction leaves take more than the limit transaction_bytes of {limit}",
                field="transaction_bytes",
                value=size,
                limit=limit,
            )


def misfit_of(schema: KeySchema, partition: bytes, body: list[Any]) -> InvalidRequest | None:
    """What of a transaction does not fit its table or its partition key; None if all does."""
    if not schema.is_partition(partition):
        return InvalidRequest(f"{partition[:32]!r} is no partition key of this table", field="key")
    above = after_prefix(partition)
    reads, ranges, writes = body
    for key, _ in reads:
        if not (key.startswith(partition) and schema.is_valid(key)):
            return _foreign(key)
    for start, end, _, _ in ranges:
        if start < partition or (above is not None and (end is None or end > above)):
            return _foreign(start)
    for kind, key, _, _, _ in writes:
        is_new = kind == KIND_PUT_AUTO and schema.is_auto
        if not (key.startswith(partition) and (is_new or schema.is_valid(key))):
            return _foreign(key)
    return None


def _foreign(key: bytes) -> InvalidRequest:
    return InvalidRequest(
        f"{key[:32]!r} is no key of the transaction's partition key: all its rows have the same one",
        field="key",
    )
