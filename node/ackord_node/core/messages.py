"""Messages between the copies of a tablet: plain lists ``[kind, tablet, epoch, ...]``.

The sender's node name and incarnation come with the link, not with each message. Every message carries the
epoch it belongs to (rules R3, R5, R6): a receiver that promised a later one answers FENCED, and an answer of
another epoch than the coordinator's own counts for nothing.
"""

from __future__ import annotations

import zlib
from typing import Any

from ackord.wire.frames import packb

APPEND = 1  # tablet, epoch, previous index, previous epoch, commit point, [record, ...], recovered
CONFIRM = 2  # tablet, epoch, copy_id, index: on disk up to here
MISMATCH = 3  # tablet, epoch, copy_id, probed index, safe index: the prefix does not match at the probe
BEACON = 4  # tablet, epoch, sent at, commit point, start, lease request, granted seconds, grantee, recovered
BEACON_CONFIRM = (
    5  # tablet, epoch, copy_id, beacon time, lease request (own time or -1), end, flags[, wall_ms]
)
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


# kind -> number of fields after the kind, for the check of what a peer sent
FIELDS = {
    APPEND: 7,
    CONFIRM: 4,
    MISMATCH: 5,
    BEACON: 9,
    BEACON_CONFIRM: 7,
    INQUIRE: 3,
    INQUIRE_ANSWER: 8,
    HANDOVER: 3,
    LEAVE: 3,
    SNAPSHOT: 8,
    SNAPSHOT_TAKEN: 5,
    FENCED: 3,
    COMMIT: 3,
    STOPPING: 2,
}


# kind -> how many more fields may follow, which senders leave out that have nothing to say in them
OPTIONAL = {BEACON_CONFIRM: 1}


def check(message: Any) -> Message:
    """The message if it has the shape of one; ValueError otherwise."""
    if not isinstance(message, list) or len(message) < 3 or not isinstance(message[0], int):
        raise ValueError(f"peer message is not a list of kind, tablet and epoch: {type(message).__name__}")
    expected = FIELDS.get(message[0])
    if expected is None or not expected < len(message) <= expected + 1 + OPTIONAL.get(message[0], 0):
        raise ValueError(
            f"peer message of kind {message[0]} with {len(message) - 1} fields, expected {expected}"
        )
    if type(message[1]) is not int or type(message[2]) is not int:
        raise ValueError(f"peer message of kind {message[0]}: tablet and epoch must be integers")
    return message
