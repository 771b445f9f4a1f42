"""Messages between the copies of a tablet: plain lists ``[kind, tablet, epoch, ...]``.

The sender's node name and incarnation come with the link, not with each message. Every message carries the
epoch it belongs to (rules R3, R5, R6): a receiver that promised a later one answers FENCED, and an answer of
another epoch than the coordinator's own counts for nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

from ackord.wire.frames import packb
from ackord_node.core.log import HEADER_BYTES, index_of

APPEND = 1  # tablet, epoch, previous index, previous epoch, commit point, [record, ...], recovered
CONFIRM = 2  # tablet, epoch, copy_id, index: on disk up to here
MISMATCH = 3  # tablet, epoch, copy_id, probed index, safe index: the prefix does not match at the probe
BEACON = 4  # tablet, epoch, sent at, commit point, start, lease request, granted seconds, grantee, recovered
BEACON_CONFIRM = 5  # tablet, epoch, copy_id, beacon time, lease request (or -1), end, flags[, wall_ms]
INQUIRE = 6  # tablet, epoch, inquiry id (echoed)
INQUIRE_ANSWER = 7  # tablet, epoch, copy_id, inquiry id, last epoch, last index, commit point, recovered
HANDOVER = 8  # tablet, epoch, successor's incarnation
LEAVE = 9  # tablet, epoch, copy_id: the member asks to be removed
SNAPSHOT = 10  # tablet, epoch, snapshot id, chunk, space, records, header with the replaced copy_id, checksum
SNAPSHOT_TAKEN = 11  # tablet, epoch, copy_id, snapshot id, chunk number
FENCED = 12  # tablet, epoch that was refused, epoch that was promised
COMMIT = 13  # tablet, epoch, commit point: sent at once when nothing else would carry it (rule R12)
STOPPING = 14  # 0, 0: the whole node stops; for the runtime, not for a tablet

# flags of BEACON_CONFIRM
FLAG_COORDINATION = 1  # the member reaches the coordination service
FLAG_FIT = 2  # its disk answers in time and has room
FLAG_STAYS = 4  # it is not stopping

Message = list[Any]


def checksum(records: list[Any]) -> int:
    """Over the rows of a snapshot's chunk, which log checksums do not cover (rule R14)."""
    return zlib.crc32(packb(records))


# What fields may be. A peer of this cluster is believed (it may be late or dead, but does not lie); a message that no
# node can have sent shows a bug or damage on the way, and must not get as far as a tablet's state.
INT63_END = 1 << 63
_SPACES = ("rows", "requests", "history", "end")
_HEADER_COUNTS = (
    5,
    6,
)  # of a snapshot: index, epoch, last version, collected below, replaced copy_id[, clock_ms]


def _is_natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < INT63_END


def _are_natural(values: list[Any]) -> bool:
    """The same of each of them."""
    return set(map(type, values)) == {int} and min(values) >= 0 and max(values) < INT63_END


def _is_time(value: Any) -> bool:
    """Seconds of some clock; -1 stands for none. Neither NaN, which no comparison orders, nor an infinity."""
    return (type(value) is float or type(value) is int) and -1 <= value < INT63_END


def _are_log_records(value: Any) -> bool:
    return type(value) is list and all(type(record) is bytes for record in value)


def _are_pairs(value: Any) -> bool:
    return type(value) is list and all(
        type(pair) is list and len(pair) == 2 and type(pair[0]) is bytes and type(pair[1]) is bytes
        for pair in value
    )


def _is_space(value: Any) -> bool:
    return type(value) is str and value in _SPACES


def _is_header(value: Any) -> bool:
    return value is None or (
        type(value) is list and len(value) in _HEADER_COUNTS and all(map(_is_natural, value))
    )


_N, _T = _is_natural, _is_time

_APPEND_ITEMS = 8

# kind -> what each field after the kind must be, tablet and epoch first
FIELDS: dict[int, tuple[Callable[[Any], bool], ...]] = {
    APPEND: (_N, _N, _N, _N, _N, _are_log_records, _N),
    CONFIRM: (_N, _N, _N, _N),
    MISMATCH: (_N, _N, _N, _N, _N),
    BEACON: (_N, _N, _T, _N, _N, _T, _T, _N, _N),
    BEACON_CONFIRM: (_N, _N, _N, _T, _T, _N, _N, _N),
    INQUIRE: (_N, _N, _N),
    INQUIRE_ANSWER: (_N, _N, _N, _N, _N, _N, _N, _N),
    HANDOVER: (_N, _N, _N),
    LEAVE: (_N, _N, _N),
    SNAPSHOT: (_N, _N, _N, _N, _is_space, _are_pairs, _is_header, _N),
    SNAPSHOT_TAKEN: (_N, _N, _N, _N, _N),
    FENCED: (_N, _N, _N),
    COMMIT: (_N, _N, _N),
    STOPPING: (_N, _N),
}

# Those that are numbers throughout, and how many: one look at all of them instead of one at each.
_NUMBERS = {kind: len(fields) for kind, fields in FIELDS.items() if set(fields) == {_N}}

# kind -> how many of its last fields senders leave out that have nothing to say in them
OPTIONAL = {BEACON_CONFIRM: 1}


def check(message: Any) -> Message:
    """The message if each of its fields can be one; ValueError otherwise."""
    if type(message) is not list or len(message) < 3 or type(message[0]) is not int:
        raise ValueError(f"peer message is not a list of kind, tablet and epoch: {type(message).__name__}")
    kind = message[0]
    if kind == APPEND and len(message) == _APPEND_ITEMS:
        numbers, records = message[1:6] + message[7:], message[6]
        if _are_natural(numbers) and _are_log_records(records):
            _check_run(message[3], records)
            return message
    elif _NUMBERS.get(kind) == len(message) - 1 and _are_natural(message):
        return message
    fields = FIELDS.get(kind)
    if fields is None or len(message) - 1 not in (len(fields), len(fields) - OPTIONAL.get(kind, 0)):
        raise ValueError(f"peer message of kind {kind} with {len(message) - 1} fields")
    for at, (is_right, value) in enumerate(zip(fields, message[1:], strict=False), start=1):
        if not is_right(value):
            raise ValueError(f"peer message of kind {kind}: field {at} is wrong ({type(value).__name__})")
    return message


def _check_run(previous: int, records: list[bytes]) -> None:
    """Records follow the entry that the prefix check looks at, one by one: a gap would shift the log."""
    for index, record in enumerate(records, start=previous + 1):
        if len(record) < HEADER_BYTES or index_of(record) != index:
            raise ValueError(f"peer message of kind {APPEND}: its records do not run on from {previous}")
