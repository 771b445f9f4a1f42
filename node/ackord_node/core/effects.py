"""What a step of the replica asks its driver to do, and what the driver tells it.

Durability is an event, not an ordering rule: ``Persist`` says that there is something to take with
``Replica.take_batch``; ``Durable`` reports that a taken batch is on disk.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ackord_node.core.messages import Message
from ackord_node.core.types import Descriptor

# ------------------------------------------------------------------------------------- effects


@dataclass(slots=True)
class Send:
    node: str
    message: Message
    urgent: bool = False  # beacons, leases, confirmations: never behind an append or a snapshot


@dataclass(slots=True)
class Reply:
    """Answers of a request: ``indices`` None means all of its operations, in order."""

    request: Responder
    indices: list[int] | None
    results: list[Any]


@dataclass(slots=True)
class Persist:
    """Something waits for ``take_batch``. ``lazy``: only rows of committed entries, for which nobody waits; they
    ride in the next batch and need no sync of their own."""

    lazy: bool = False


@dataclass(slots=True)
class Swap:
    """Compare-and-set of the descriptor; its outcome comes back as ``SwapDone`` with the same ``ticket``."""

    ticket: int
    descriptor: Descriptor
    version: int


@dataclass(slots=True)
class ReadDescriptor:
    """Linearizable read; the outcome comes back as ``DescriptorSeen``."""


@dataclass(slots=True)
class AcquireLock:
    pass


@dataclass(slots=True)
class ReleaseLock:
    pass


@dataclass(slots=True)
class ReadLog:
    """A member needs entries that are not in memory: ``LogRead`` brings them."""

    node: str
    first: int


@dataclass(slots=True)
class ReadRows:
    """The sweep wants stored rows from the key ``start`` on: ``RowsRead`` brings some (rule R20)."""

    start: bytes


@dataclass(slots=True)
class OpenSnapshot:
    """A member needs what the log no longer holds; ``SnapshotChunk`` brings the pieces, one at a time."""

    node: str
    snapshot_id: int


@dataclass(slots=True)
class NextChunk:
    node: str
    snapshot_id: int


@dataclass(slots=True)
class CloseSnapshot:
    node: str
    snapshot_id: int


@dataclass(slots=True)
class Note:
    """Something that an operator wants to read in the log; ``level`` as in logging."""

    level: str
    text: str


@dataclass(slots=True)
class Tell:
    """A client is to drop these keys from its memory and to say so (rule R19); ``version`` is that of what is to come.
    ``HolderSaid`` brings its answer."""

    holder: Responder
    number: int  # of its hold
    seq: int  # of this message in it
    version: int
    keys: list[bytes]


Effect = (
    Send
    | Reply
    | Persist
    | Swap
    | ReadDescriptor
    | AcquireLock
    | ReleaseLock
    | ReadLog
    | ReadRows
    | OpenSnapshot
    | NextChunk
    | CloseSnapshot
    | Note
    | Tell
)


class Responder(Protocol):
    """Whoever asked; opaque to the core."""


# -------------------------------------------------------------------------------------- events


class SwapOutcome(enum.Enum):
    WON = "won"
    LOST = "lost"
    UNKNOWN = "unknown"
    UNSENT = "unsent"  # certainly not sent


class LockOutcome(enum.Enum):
    HELD = "held"
    TAKEN = "taken"
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Tick:
    wall_ms: int = 0  # of this node's wall clock; 0: not known


@dataclass(slots=True)
class Announce:
    """Nothing else is to be sent at this moment: replicas that lack the commit point are told now (rule R12)."""


@dataclass(slots=True)
class Received:
    node: str
    incarnation: int
    message: Message


@dataclass(slots=True)
class PeerUp:
    node: str


@dataclass(slots=True)
class PeerDown:
    """``refused``: nothing listens there, so the process is gone and not merely cut off."""

    node: str
    refused: bool


@dataclass(slots=True)
class DescriptorSeen:
    """``version`` -1 with no descriptor: it does not exist."""

    descriptor: Descriptor | None
    version: int


@dataclass(slots=True)
class SwapDone:
    ticket: int
    outcome: SwapOutcome


@dataclass(slots=True)
class LockSeen:
    holder: str | None
    mine: bool


@dataclass(slots=True)
class LockDone:
    outcome: LockOutcome


@dataclass(slots=True)
class Durable:
    batch: TabletBatch


@dataclass(slots=True)
class LogRead:
    """``records`` consecutive from ``first``; empty: the log no longer reaches there."""

    node: str
    first: int
    records: list[bytes]


@dataclass(slots=True)
class RowsRead:
    """Stored rows from ``start`` on, and where the next ones begin; ``next`` None: there are no more."""

    start: bytes
    rows: list[tuple[bytes, bytes]]
    next: bytes | None


@dataclass(slots=True)
class AdvanceVersion:
    """Somebody reads as of this version, which no write has reached: none may get it any more."""

    version: int


@dataclass(slots=True)
class SnapshotChunk:
    """``header`` is present on the first chunk only: what ``CopyMeta`` of the source says of the state."""

    node: str
    snapshot_id: int
    number: int
    space: str  # "rows", "requests", "history", or "end"
    records: list[tuple[bytes, bytes]]
    header: list[Any] | None


@dataclass(slots=True)
class SnapshotFailed:
    node: str
    snapshot_id: int


@dataclass(slots=True)
class Corrupted:
    """Stored data of this copy failed a checksum (rule R14)."""

    reason: str


@dataclass(slots=True)
class DiskSlow:
    """The node's disk has not confirmed anything for too long, or has no room: ``reason`` says which."""

    reason: str


@dataclass(slots=True)
class DiskWell:
    pass


@dataclass(slots=True)
class CoordinationSeen:
    """Whether this node reaches the coordination service."""

    connected: bool


@dataclass(slots=True)
class HandOver:
    """Hand this tablet's coordination to ``successor`` (None: whoever is next in preference)."""

    successor: str | None = None


@dataclass(slots=True)
class Leave:
    """The node stops: hand over, then ask to be removed from the in-sync set."""


@dataclass(slots=True)
class WriteGroup:
    """Writes of one client that arrived together. ``ops`` are wire operations
    ``[seq, kind, key, body, condition, condition_value, attempt]``, as a list or as `Puts`; ``client`` b"" has no
    request ids."""

    request: Responder
    client: bytes
    registered: int
    floor: int
    ops: Sequence[list[Any]]


@dataclass(slots=True)
class Writes:
    groups: list[WriteGroup]
    wall_ms: int


@dataclass(slots=True)
class HoldsWanted:
    """A client asks to keep rows of this copy, which has not recorded yet that it lets clients do so (rule R19)."""


@dataclass(slots=True)
class HolderSaid:
    """A client dropped what it was told to by the messages up to ``seq`` of its hold, and asks for its lease to be
    extended: the answer is ``[number, seconds]`` or None."""

    request: Responder
    holder: Responder
    number: int
    seq: int


Event = (
    Tick
    | Announce
    | Received
    | PeerUp
    | PeerDown
    | DescriptorSeen
    | SwapDone
    | LockSeen
    | LockDone
    | Durable
    | LogRead
    | RowsRead
    | AdvanceVersion
    | SnapshotChunk
    | SnapshotFailed
    | Corrupted
    | DiskSlow
    | DiskWell
    | CoordinationSeen
    | HandOver
    | Leave
    | Writes
    | HoldsWanted
    | HolderSaid
)


@dataclass(slots=True)
class TabletBatch:
    """What one tablet adds to the next group commit, and what is durable once it is done."""

    tablet: int
    clear: bool = False
    cut: int | None = None
    trim: int | None = None
    meta: bytes | None = None
    log: list[tuple[int, int, bytes]] = field(default_factory=list)
    rows: list[tuple[int, bytes, bytes | None]] = field(default_factory=list)
    requests: list[tuple[int, bytes, bytes | None]] = field(default_factory=list)
    history: list[tuple[int, bytes, int, bytes | None]] = field(default_factory=list)
    end: int = 0  # the log's end as of this batch
    applied: int = 0
    clock_ms: int = 0  # of the tablet at ``applied`` (rule R20)
    promised: int = 0
    hold_ms: int = 0  # the longest lease that a client may have been granted (rule R19)
    generation: int = 0  # of the copy; a batch taken before the copy was rebuilt says nothing of the new one
