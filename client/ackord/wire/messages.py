"""Requests, answers, errors and table definitions of the public protocol, wire version 1.

A stream carries frames. The first of each side says who it is; then the client sends arrays of groups and the
node arrays of answers, each answer naming the group by its ``rid`` (an int unique in the stream):

* ``[rid, OP_GET, tablet, [key, ...]]`` -> row bytes, None or an error for each key;
* ``[rid, OP_SELECT, tablet, [key, ...], where, columns]`` -> the same of the rows of which the expression
  ``where`` holds (None: of all), with the columns named in ``columns`` only (None: with all);
* ``[rid, OP_WRITE, tablet, client_id, registered, floor, [[seq, kind, key, body, cond, cond_value, attempt],
  ...]]`` -> a version or an error for each operation (rule R16: ``client_id`` and ``seq`` name the write;
  every seq below ``floor`` is answered and never retried). An operation with an eighth item, RETURN_NEW or
  RETURN_OLD, gets ``[version, row or None]``. ``cond_value`` is a version for COND_IF_VERSION and
  ``[cond, cond_value, expression]`` for COND_WHERE, where both conditions must hold. The key of KIND_PUT_AUTO
  lacks its last column, which becomes the write's version. KIND_TRANSACTION reads and writes several rows, see
  `transactions`. In the place of the list of operations there may be what `puts` describes;
* ``[rid, OP_SCAN, tablet, start, end, reverse, rows_max, bytes_max]``, perhaps with ``where, columns`` behind,
  -> one ``[[key, row, key, row, ...], next]``: ``next`` is None if the range is exhausted, else where the rest
  of it begins (backwards: what it ends before). A page may be short, or empty, and still have a next;
* ``[rid, OP_COUNT, tablet, start, end, where]``, perhaps with a version behind, -> one ``[how many rows, next]``, of
  now or of then;
* ``[rid, OP_AS_OF, tablet, [key, ...], version]`` -> what each row was at that version;
* ``[rid, OP_HISTORY, tablet, key, before, count_max]`` -> one ``[[version, row or None if deleted, ...], next]`` of
  the versions below ``before``, newest first; ``next``: the ``before`` of the rest, None if there is none;
* ``[rid, OP_CELLS, tablet, [key, ...], count_max, start_ms, end_ms]`` -> rows whose columns are lists of
  ``[timestamp_ms, value]``, newest first;
* ``[rid, OP_SCAN_AS_OF, tablet, start, end, reverse, rows_max, bytes_max, version]`` -> as OP_SCAN;
* ``[rid, OP_HOLD, tablet, [key, ...]]`` -> ``[row bytes or None, grant]`` for each key. A grant is ``[number, seconds,
  version]``: the client may answer from memory, for so long from when it sent this, with all rows that it was granted
  under this number; the row is read as of that version. None: it may not keep this one;
* ``[rid, OP_KEEP, tablet, number, seq]`` -> one ``[number, seconds]``, as in a grant, or None: the client has dropped
  what the messages up to ``seq`` told it to, and asks for more time.

Beside answers a node sends ``[TOLD, [tablet, number], [seq, version, [key, ...]]]``: the client drops these rows, and
says so with OP_KEEP; what is read of them as of an earlier version must not be kept (rule R19).

The body of a write may begin with what `extras` describes, for example how long the row lives.

A list of two is a result, an error is a list of four: ``[code, message, detail, current row or None]``. An answer
is ``[rid, None, results]`` for all operations in order, ``[rid, [index, ...], results]`` for some, or
``[rid, -1, error]`` for the group.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ackord.errors import Conflict, Error, InvalidRequest, from_code
from ackord.wire.keys import KeySchema
from ackord.wire.limits import DEFAULT_LIMITS, Limits
from ackord.wire.options import DEFAULT_OPTIONS, TableOptions

WIRE_VERSION: Final = 1
WIRE_VERSION_OLDEST: Final = 1  # nodes accept clients from this one on

STREAM_CONTENT_TYPE: Final = "application/x-ackord-stream"
HELLO_ALONE_HEADER: Final = (
    "Ackord-Hello-Alone"  # the client waits for the answer to its hello before it says more
)
MSGPACK_CONTENT_TYPE: Final = "application/msgpack"

OP_GET: Final = 1
OP_WRITE: Final = 2
OP_SCAN: Final = 3
OP_SELECT: Final = 4
OP_COUNT: Final = 5
OP_AS_OF: Final = 16
OP_HISTORY: Final = 17
OP_CELLS: Final = 18
OP_SCAN_AS_OF: Final = 19
OP_HOLD: Final = 32
OP_KEEP: Final = 33
CALL_OPS = (
    OP_GET,
    OP_WRITE,
    OP_SCAN,
    OP_SELECT,
    OP_COUNT,
    OP_AS_OF,
    OP_SCAN_AS_OF,
    OP_HOLD,
)  # of single calls

KIND_PUT: Final = 1
KIND_UPDATE: Final = 2
KIND_DELETE: Final = 3
KIND_PUT_AUTO: Final = 4
KIND_TRANSACTION: Final = 5

COND_NONE: Final = 0
COND_IF_VERSION: Final = 1
COND_IF_ABSENT: Final = 2
COND_IF_EXISTS: Final = 3
COND_WHERE: Final = 4
COND_MERGE: Final = 5  # the value is a version: if the row has another one by now, the write is merged

RETURN_NEW: Final = 1  # the row that the write leaves
RETURN_OLD: Final = 2  # the row that it replaced

WHOLE_GROUP: Final = -1  # in the place of the indices: the error of all operations
TOLD: Final = -2  # in the place of the rid: no answer, but rows that a client must not keep any longer
HELLO_REFUSED: Final = -1  # in the place of the wire version: [-1, code, message, detail]

CLIENT_ID_BYTES: Final = 16
VERSION_BYTES: Final = 8
OWN_MARK: Final = b"\xc1"  # never the first byte of msgpack: what follows is the row's, or the write's, own
_MARK_END: Final = VERSION_BYTES + 1
EXPIRING_BYTES: Final = _MARK_END + 8  # before the columns of a row with an expiry of its own
VERSION_COUNTER_BITS: Final = 16  # a version is Unix milliseconds << 16 | counter

_TABLE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_STATES: Final = ("creating", "active", "dropping")

# ------------------------------------------------------------------------------------------ rows


def row_version(row: bytes | memoryview) -> int:
    """The version of a stored row."""
    return int.from_bytes(row[:VERSION_BYTES], "big", signed=True)


def row_columns(row: bytes) -> bytes:
    """The columns blob of a stored row, to be decoded by ``values.decode_columns``."""
    return row[VERSION_BYTES:] if row[VERSION_BYTES:_MARK_END] != OWN_MARK else row[EXPIRING_BYTES:]


def row_expires_ms(row: bytes) -> int:
    """When the row expires by its own ttl, in Unix milliseconds; 0: it has none of its own."""
    if row[VERSION_BYTES:_MARK_END] != OWN_MARK:
        return 0
    return int.from_bytes(row[_MARK_END:EXPIRING_BYTES], "big")


def join_row(version: int, columns: bytes, expires_ms: int = 0) -> bytes:
    """``version(8) | columns``, or ``version(8) | OWN_MARK | expires_ms(8) | columns``."""
    head = version.to_bytes(VERSION_BYTES, "big", signed=True)
    if not expires_ms:
        return head + columns
    return head + OWN_MARK + expires_ms.to_bytes(8, "big") + columns


# ---------------------------------------------------------------------------------------- tables


@dataclass(frozen=True, slots=True)
class TabletRange:
    """One tablet: the keys with start <= encoded key < end; an end of None is no bound."""

    id: int
    start: bytes
    end: bytes | None

    def to_wire(self) -> dict[str, Any]:
        return {"id": self.id, "start": self.start, "end": self.end}


@dataclass(frozen=True, slots=True)
class TableDefinition:
    """A table: its key columns and its tablets, which cover all keys without gap or overlap, in order."""

    id: int
    name: str
    key: KeySchema
    tablets: tuple[TabletRange, ...]
    state: str = "active"
    options: TableOptions = DEFAULT_OPTIONS
    _starts: tuple[bytes, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_starts", tuple(tablet.start for tablet in self.tablets))

    def tablet_of(self, key: bytes) -> TabletRange:
        """The tablet that holds this encoded key."""
        return self.tablets[bisect_right(self._starts, key) - 1]

    @property
    def split_at(self) -> list[Any]:
        """The partition-key values at which the table was split when it was created."""
        first = KeySchema(self.key.columns[:1])
        return [first.decode(start)[0] for start in self._starts[1:]]

    def to_wire(self) -> dict[str, Any]:
        wire = {
            "id": self.id,
            "name": self.name,
            "key": self.key.to_wire(),
            "tablets": [tablet.to_wire() for tablet in self.tablets],
            "state": self.state,
        }
        options = self.options.to_wire()
        return {**wire, "options": options} if options else wire

    @classmethod
    def from_wire(cls, wire: Any, limits: Limits = DEFAULT_LIMITS) -> TableDefinition:
        """From what ``to_wire`` made; ValueError if it is anything else. Fields of newer versions are
        ignored. ``limits`` bound the table's keys."""
        if not isinstance(wire, Mapping):
            raise ValueError(f"a table definition is a map, not {type(wire).__name__}")
        table_id, name, state = wire.get("id"), wire.get("name"), wire.get("state", "active")
        if type(table_id) is not int or type(name) is not str or state not in _STATES:
            raise ValueError(f"table definition with id {table_id!r}, name {name!r}, state {state!r}")
        try:
            key = KeySchema.from_wire(wire.get("key"), limits.key_column_bytes)
            options = TableOptions.from_wire(wire.get("options"))
        except InvalidRequest as error:
            raise ValueError(f"table definition of {name!r}: {error}") from None
        return cls(table_id, name, key, tablets_from_wire(wire.get("tablets")), state, options)


def tablets_from_wire(wire: Any) -> tuple[TabletRange, ...]:
    """Tablets that cover all keys; ValueError otherwise."""
    if not isinstance(wire, list | tuple) or not wire:
        raise ValueError("a table has a list of tablets")
    tablets = []
    bound: bytes | None = b""
    for item in wire:
        if not isinstance(item, Mapping):
            raise ValueError(f"a tablet is a map, not {type(item).__name__}")
        tablet = TabletRange(item.get("id", 0), item.get("start", b""), item.get("end"))
        if type(tablet.id) is not int or type(tablet.start) is not bytes or tablet.start != bound:
            raise ValueError(f"tablet {tablet.id!r} does not begin where the one before ends")
        if tablet.end is not None and (type(tablet.end) is not bytes or tablet.end <= tablet.start):
            raise ValueError(f"tablet {tablet.id!r} is empty")
        bound = tablet.end
        tablets.append(tablet)
    if bound is not None:
        raise ValueError("the last tablet has an end")
    return tuple(tablets)


def check_table_name(name: Any, limits: Limits = DEFAULT_LIMITS) -> str:
    """The name, if a table may have it; InvalidRequest otherwise."""
    fits = type(name) is str and len(name) <= limits.table_name_chars
    if not fits or _TABLE_NAME.fullmatch(name) is None:
        raise InvalidRequest(
            f"the table name {ascii(name)[:80]} is not 1 to {limits.table_name_chars} letters, digits, "
            "'_', '-', '.', beginning with a letter or '_'",
            field="name",
            value=ascii(name)[:80],
            limit=limits.table_name_chars,
        )
    return str(name)


def split_starts(key: KeySchema, split_at: Any, limits: Limits = DEFAULT_LIMITS) -> list[bytes]:
    """The tablets' starts for a new table that is split at these partition-key values: the encoded partition
    key alone, so that one partition key is never split. InvalidRequest if they do not ascend or are too
    many."""
    if not isinstance(split_at, list | tuple):
        raise InvalidRequest(
            "split_at must be a list of partition-key values", field="split_at", value=ascii(split_at)[:80]
        )
    if len(split_at) >= limits.tablets_per_table_count:
        raise InvalidRequest(
            f"split_at makes {len(split_at) + 1} tablets, over the limit of {limits.tablets_per_table_count}",
            field="split_at",
            value=len(split_at) + 1,
            limit=limits.tablets_per_table_count,
        )
    starts = [b""]
    for value in split_at:
        start = key.encode_prefix((value,))
        if start <= starts[-1]:
            raise InvalidRequest(
                f"split_at must ascend, {ascii(value)[:60]} does not",
                field="split_at",
                value=ascii(value)[:60],
            )
        starts.append(start)
    return starts


# ---------------------------------------------------------------------------------------- errors


def error_to_wire(error: Error, current: bytes | None = None) -> list[Any]:
    """``[code, message, detail, current]``; ``current`` is the row's bytes for a Conflict."""
    detail = {str(name): _plain(value) for name, value in error.detail.items()}
    return [error.code, _text(error.message), detail, current]


def is_error(result: Any) -> bool:
    """Whether the result of an operation is an error: a result proper is no list or one of two."""
    return type(result) is list and len(result) > 2


def error_from_wire(wire: Any, row_of: Callable[[bytes], Any] | None = None) -> Error:
    """The error of an answer. ``row_of`` makes a Row of a Conflict's current row bytes. Never raises: an
    answer that is no error becomes a plain ``Error`` that says so."""
    if not isinstance(wire, list | tuple) or len(wire) < 2 or type(wire[0]) is not int:
        return Error(f"the node's answer is not one of this protocol: {ascii(wire)[:80]}")
    detail = wire[2] if len(wire) > 2 and isinstance(wire[2], dict) else {}
    reserved = ("self", "message", "current")
    known = {name: value for name, value in detail.items() if type(name) is str and name not in reserved}
    error = from_code(wire[0], str(wire[1]), known)
    current = wire[3] if len(wire) > 3 else None
    if isinstance(error, Conflict) and type(current) is bytes and row_of is not None:
        error.current = row_of(current)
    return error


def _plain(value: Any) -> Any:
    """A value of ``detail`` as one that msgpack and JSON carry."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else str(value)[:100]
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bytes):
        return value[:256]
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value[:100]]
    if isinstance(value, dict):
        return {_text(str(name)): _plain(item) for name, item in value.items()}
    return ascii(value)[:256]


def _text(text: str) -> str:
    """Text that UTF-8 can carry, whatever was quoted in it."""
    return text.encode(errors="backslashreplace").decode()
