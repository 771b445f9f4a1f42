"""The shape of request groups: checked before anything of a stream reaches the node's state.

Only types, counts and lengths, on a path that sees every operation; whether a key fits the table or a body
holds valid columns is judged behind the service, where the table is known.
"""

from __future__ import annotations

from typing import Any

from ackord.errors import InvalidRequest
from ackord.wire import transactions
from ackord.wire.limits import Limits
from ackord.wire.messages import (
    CLIENT_ID_BYTES,
    COND_IF_EXISTS,
    COND_IF_VERSION,
    COND_MERGE,
    COND_NONE,
    COND_WHERE,
    KIND_DELETE,
    KIND_PUT,
    KIND_PUT_AUTO,
    KIND_TRANSACTION,
    KIND_UPDATE,
    OP_AS_OF,
    OP_CELLS,
    OP_COUNT,
    OP_GET,
    OP_HISTORY,
    OP_HOLD,
    OP_KEEP,
    OP_SCAN,
    OP_SCAN_AS_OF,
    OP_SELECT,
    OP_WRITE,
    RETURN_NEW,
    RETURN_OLD,
)
from ackord.wire.puts import Puts, is_puts

INT64_MAX = 2**63 - 1
_VERSION_ITEMS = {OP_AS_OF: 5, OP_HISTORY: 6, OP_CELLS: 7, OP_SCAN_AS_OF: 9}
_GET_ITEMS, _WRITE_ITEMS, _SCAN_ITEMS, _OP_ITEMS = 4, 7, 8, 7
_SELECT_ITEMS, _COUNT_ITEMS, _KEEP_ITEMS = 6, 6, 5
_BYTES = {bytes}


class GroupChecker:
    """Checks groups against one node's limits."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._row_bytes_max = limits.row_bytes
        # each byte of a text column can take two when encoded, and each column ends with two
        self._key_bytes_max = limits.key_columns_count * (2 * limits.key_column_bytes + 2)

    def rid_of(self, group: Any) -> int | None:
        """The group's number, None if there is none that an answer could carry."""
        if (
            type(group) is not list
            or not group
            or type(group[0]) is not int
            or not 0 <= group[0] <= INT64_MAX
        ):
            return None
        return group[0]

    def check(self, group: list[Any]) -> int:
        """How many operations the group holds; InvalidRequest if its shape is wrong."""
        if len(group) < 3 or type(group[1]) is not int:
            raise _bad("group", "a group is [rid, op, tablet, ...]")
        op, tablet = group[1], group[2]
        if type(tablet) is not int or not 0 < tablet <= INT64_MAX:
            raise _bad("tablet", f"the tablet {_shown(tablet)} is not a positive integer")
        if op == OP_WRITE:
            return self._check_write(group)
        if op in (OP_GET, OP_HOLD):
            return self._check_get(group)
        if op == OP_KEEP:
            return _check_keep(group)
        if op == OP_SCAN:
            return self._check_scan(group)
        if op == OP_SELECT:
            return self._check_select(group)
        if op == OP_COUNT:
            return self._check_count(group)
        if op in (OP_AS_OF, OP_HISTORY, OP_CELLS, OP_SCAN_AS_OF):
            return self._check_versions(op, group)
        raise _bad("op", f"unknown operation {_shown(op)}", [OP_GET, OP_WRITE, OP_SCAN, OP_SELECT, OP_COUNT])

    def _check_versions(self, op: int, group: list[Any]) -> int:
        """The reads of earlier versions and of cells."""
        if op == OP_SCAN_AS_OF and len(group) == _VERSION_ITEMS[op] + 2:
            _check_version(group[8])
            return self._check_scan(group[:8] + group[9:])
        if len(group) != _VERSION_ITEMS[op]:
            raise _bad("group", f"a group of operation {op} has {_VERSION_ITEMS[op]} items")
        if op == OP_SCAN_AS_OF:
            _check_version(group[8])
            return self._check_scan(group[:8])
        if op == OP_HISTORY:
            keys, numbers, count_max = [group[3]], [group[4]], group[5]
        elif op == OP_AS_OF:
            keys, numbers, count_max = group[3], [group[4]], 1
        else:
            keys, numbers, count_max = group[3], [], group[4]
            for bound in group[5:]:
                if bound is not None and (type(bound) is not int or abs(bound) > INT64_MAX):
                    raise _bad("time_range", f"a time is an integer of milliseconds, not {_shown(bound)}")
        for number in numbers:
            _check_version(number)
        most = self._limits.history_rows_count
        if type(count_max) is not int or not 0 < count_max <= most:
            raise _bad("limit", f"the limit must be 1 to {most}, not {_shown(count_max)}", most)
        count = self._count(keys, "keys")
        for key in keys:
            if type(key) is not bytes or len(key) > self._key_bytes_max:
                raise self._bad_key(key)
        return count

    def _check_get(self, group: list[Any]) -> int:
        if len(group) != _GET_ITEMS:
            raise _bad("group", "a GET or a HOLD is [rid, op, tablet, [key, ...]]")
        return self._check_keys(group[3])

    def _check_select(self, group: list[Any]) -> int:
        if len(group) != _SELECT_ITEMS:
            raise _bad("group", "a SELECT is [rid, 4, tablet, [key, ...], where, columns]")
        self._check_where(group[4])
        self._check_columns(group[5])
        return self._check_keys(group[3])

    def _check_count(self, group: list[Any]) -> int:
        if len(group) not in (_COUNT_ITEMS, _COUNT_ITEMS + 1):
            raise _bad("group", "a COUNT is [rid, 5, tablet, start, end, where], perhaps with a version")
        if len(group) > _COUNT_ITEMS:
            _check_version(group[_COUNT_ITEMS])
        self._check_bounds(group[3], group[4])
        self._check_where(group[5])
        return 1

    def _check_keys(self, keys: Any) -> int:
        count = self._count(keys, "keys")
        if set(map(type, keys)) == _BYTES and max(map(len, keys)) <= self._key_bytes_max:
            return count
        for key in keys:
            if type(key) is not bytes or len(key) > self._key_bytes_max:
                raise self._bad_key(key)
        return count

    def _check_write(self, group: list[Any]) -> int:
        if len(group) != _WRITE_ITEMS:
            raise _bad("group", "a WRITE is [rid, 2, tablet, client_id, registered, floor, [op, ...]]")
        _, _, _, client_id, registered, floor, ops = group
        if type(client_id) is not bytes or len(client_id) != CLIENT_ID_BYTES:
            raise _bad("client_id", f"client_id must be {CLIENT_ID_BYTES} bytes", CLIENT_ID_BYTES)
        if type(registered) is not int or not 0 < registered <= INT64_MAX:
            raise _bad("registered", f"registered must be a version, not {_shown(registered)}")
        if type(floor) is not int or not 0 <= floor <= INT64_MAX:
            raise _bad("floor", f"floor must be a sequence number, not {_shown(floor)}")
        if is_puts(ops):
            group[6] = self._puts(*ops)
            return len(group[6])
        count = self._count(ops, "operations")
        for op in ops:
            returns_row = type(op) is not list or len(op) != _OP_ITEMS
            if returns_row:
                op = _without_returning(op)
            seq, kind, key, body, cond, cond_value, attempt = op
            if type(seq) is not int or not 0 < seq <= INT64_MAX:
                raise _bad("seq", f"seq must be a positive integer, not {_shown(seq)}")
            if kind == KIND_TRANSACTION and returns_row:
                raise _bad("returning", "a transaction returns its version, no row")
            if kind == KIND_TRANSACTION:
                self.check_transaction(key, body, cond)
            else:
                self._check_change(kind, key, body, cond, cond_value)
            if type(attempt) is not int or not 0 < attempt <= INT64_MAX:
                raise _bad("attempt", f"attempt must be 1 or more, not {_shown(attempt)}")
        return count

    def _puts(self, first_seq: int, keys: Any, bodies: Any) -> Puts:
        count = self._check_keys(keys)
        if not 0 < first_seq <= INT64_MAX - count:
            raise _bad("seq", f"seq must be a positive integer, not {_shown(first_seq)}")
        if type(bodies) is not list or len(bodies) != count:
            raise _bad("bodies", f"{count} puts have a list of as many bodies")
        if set(map(type, bodies)) != _BYTES or max(map(len, bodies)) > self._row_bytes_max:
            for body in bodies:
                if type(body) is not bytes or len(body) > self._row_bytes_max:
                    raise self._bad_body(KIND_PUT, body)
        return Puts(first_seq, keys, bodies)

    def _check_change(self, kind: Any, key: Any, body: Any, cond: Any, cond_value: Any) -> None:
        """What is to become of one row."""
        if type(key) is not bytes or len(key) > self._key_bytes_max:
            raise self._bad_key(key)
        if type(kind) is not int or not KIND_PUT <= kind <= KIND_PUT_AUTO:
            raise _bad("kind", f"unknown kind of write {_shown(kind)}")
        if type(body) is bytes:
            if len(body) > self._row_bytes_max or kind == KIND_DELETE:
                raise self._bad_body(kind, body)
        elif body is not None or kind != KIND_DELETE:
            raise self._bad_body(kind, body)
        if cond == COND_MERGE:
            _check_merge(kind, cond_value)
        elif type(cond) is not int or not 0 <= cond <= COND_IF_EXISTS:
            self._check_where_condition(kind, cond, cond_value)
        elif cond_value is not None or cond == COND_IF_VERSION:
            _check_version(cond_value)

    def check_transaction(self, key: Any, body: Any, cond: Any) -> None:
        if type(key) is not bytes or len(key) > self._key_bytes_max:
            raise self._bad_key(key)
        if cond != COND_NONE:
            raise _bad("cond", "a transaction's conditions are those of its writes")
        if type(body) is not list or len(body) != transactions.ITEMS:
            raise _bad("body", "a transaction is [reads, ranges, writes]")
        limits, (reads, ranges, writes) = self._limits, body
        self._check_part(reads, "reads", transactions.READ_ITEMS, "transaction_reads_count")
        self._check_part(ranges, "ranges", transactions.RANGE_ITEMS, "transaction_ranges_count")
        self._check_part(writes, "writes", transactions.WRITE_ITEMS, "transaction_rows_count")
        size = rows_count = 0
        for read, version in reads:
            if type(read) is not bytes or len(read) > self._key_bytes_max:
                raise self._bad_key(read)
            if version is not None:
                _check_version(version)
            size += len(read) + 9
        for start, end, count, digest in ranges:
            self._check_bounds(start, end)
            if type(count) is not int or count < 0:
                raise _bad("ranges", f"a range's count is a number, not {_shown(count)}")
            if type(digest) is not bytes or len(digest) != transactions.DIGEST_BYTES:
                raise _bad("ranges", f"a range's digest is {transactions.DIGEST_BYTES} bytes")
            rows_count += count
        most = limits.transaction_range_rows_count
        if rows_count > most:
            raise _bad(
                "ranges",
                f"{rows_count} rows in ranges, over the limit transaction_range_rows_count of {most}",
                most,
            )
        for write in writes:
            self._check_change(*write)
            size += len(write[1]) + len(write[2] or b"")
        if size > limits.transaction_bytes:
            most = limits.transaction_bytes
            raise _bad(
                "transaction_bytes", f"a transaction of {size} bytes is over the limit of {most}", most
            )

    def _check_part(self, items: Any, what: str, length: int, limit: str) -> None:
        most = getattr(self._limits, limit)
        if type(items) is not list or len(items) > most:
            size = len(items) if type(items) is list else _shown(items)
            raise _bad(what, f"a transaction has a list of at most {most} {what} ({limit}), not {size}", most)
        for item in items:
            if type(item) is not list or len(item) != length:
                raise _bad(what, f"each of the transaction's {what} is a list of {length}")

    def _check_scan(self, group: list[Any]) -> int:
        if len(group) == _SCAN_ITEMS + 2:
            self._check_where(group[8])
            self._check_columns(group[9])
        elif len(group) != _SCAN_ITEMS:
            raise _bad(
                "group",
                "a SCAN is [rid, 3, tablet, start, end, reverse, rows_max, bytes_max, where, columns]",
            )
        _, _, _, start, end, reverse, rows_max, bytes_max = group[:8]
        self._check_bounds(start, end)
        if type(reverse) is not bool:
            raise _bad("reverse", f"reverse must be a bool, not {_shown(reverse)}")
        limits = self._limits
        if type(rows_max) is not int or not 0 < rows_max <= limits.scan_page_rows_count:
            raise _bad(
                "rows_max",
                f"rows_max must be 1 to {limits.scan_page_rows_count}, not {_shown(rows_max)}",
                limits.scan_page_rows_count,
            )
        if type(bytes_max) is not int or not 0 < bytes_max <= limits.scan_page_bytes:
            raise _bad(
                "bytes_max",
                f"bytes_max must be 1 to {limits.scan_page_bytes}, not {_shown(bytes_max)}",
                limits.scan_page_bytes,
            )
        return 1

    def _check_bounds(self, start: Any, end: Any) -> None:
        for bound in (start, b"" if end is None else end):
            if type(bound) is not bytes or len(bound) > self._key_bytes_max + 1:
                raise self._bad_key(bound)

    def _check_where(self, where: Any) -> None:
        most = self._limits.expression_bytes
        if where is not None and (type(where) is not bytes or len(where) > most):
            size = f"{len(where)} bytes" if type(where) is bytes else f"a {type(where).__name__}"
            raise _bad("where", f"an expression is bytes, at most {most}; this is {size}", most)

    def _check_columns(self, columns: Any) -> None:
        if columns is None:
            return
        most = self._limits.columns_count
        if type(columns) is not list or len(columns) > most:
            raise _bad("columns", f"columns must be a list of at most {most} names", most)
        for name in columns:
            if type(name) is not str or len(name) > self._limits.column_name_bytes:
                raise _bad("columns", f"a column's name is str, not {_shown(name)}")

    def _check_where_condition(self, kind: int, cond: Any, value: Any) -> None:
        if cond != COND_WHERE or type(cond) is not int:
            raise _bad("cond", f"unknown condition {_shown(cond)}")
        if type(value) is not list or len(value) != 3 or type(value[2]) is not bytes:
            raise _bad("cond_value", "the value of a where is [cond, cond_value, expression]")
        self._check_where(value[2])
        if value[0] == COND_MERGE:
            _check_merge(kind, value[1])
            return
        if type(value[0]) is not int or not 0 <= value[0] <= COND_IF_EXISTS:
            raise _bad("cond", f"unknown condition {_shown(value[0])} beside where")
        if value[1] is not None or value[0] == COND_IF_VERSION:
            _check_version(value[1])

    def _count(self, items: Any, what: str) -> int:
        most = self._limits.group_ops_count
        if type(items) is not list or not 0 < len(items) <= most:
            size = len(items) if type(items) is list else type(items).__name__
            raise _bad(what, f"a group has a list of 1 to {most} {what}, not {size}", most)
        return len(items)

    def _bad_key(self, key: Any) -> InvalidRequest:
        if type(key) is not bytes:
            return _bad("key", f"a key is bytes, not {type(key).__name__}")
        return _bad(
            "key", f"a key of {len(key)} bytes; the limit is {self._key_bytes_max}", self._key_bytes_max
        )

    def _bad_body(self, kind: int, body: Any) -> InvalidRequest:
        if kind == KIND_DELETE:
            return _bad("body", "a DELETE has no body")
        if type(body) is not bytes:
            return _bad("body", f"the body of a write is bytes, not {type(body).__name__}")
        most = self._row_bytes_max
        return _bad("body", f"a row of {len(body)} bytes is over the limit row_bytes of {most}", most)


def _check_keep(group: list[Any]) -> int:
    if len(group) != _KEEP_ITEMS:
        raise _bad("group", "a KEEP is [rid, 33, tablet, number, seq]")
    for value in group[3:]:
        _check_version(value)
    return 1


def _without_returning(op: Any) -> list[Any]:
    """An operation with an eighth item, without it."""
    if type(op) is not list or len(op) != _OP_ITEMS + 1:
        raise _bad("op", "an operation is [seq, kind, key, body, cond, cond_value, attempt, returning]")
    if type(op[_OP_ITEMS]) is not int or not RETURN_NEW <= op[_OP_ITEMS] <= RETURN_OLD:
        raise _bad("returning", f"returning is {RETURN_NEW} or {RETURN_OLD}, not {_shown(op[_OP_ITEMS])}")
    return op[:_OP_ITEMS]


def _check_merge(kind: int, base: Any) -> None:
    if kind not in (KIND_PUT, KIND_UPDATE):
        raise _bad("on_conflict", "only a put or an update can be merged")
    _check_version(base)


def _check_version(value: Any) -> None:
    if type(value) is not int or not 0 <= value <= INT64_MAX:
        raise _bad("cond_value", f"the version of a condition must be an integer, not {_shown(value)}")


def _shown(value: Any) -> str:
    """Short, whatever was sent: never the text of a whole structure."""
    return repr(value) if value is None or isinstance(value, int | float) else type(value).__name__


def _bad(field: str, message: str, limit: Any = None) -> InvalidRequest:
    return (
        InvalidRequest(message, field=field)
        if limit is None
        else InvalidRequest(message, field=field, limit=limit)
    )
