"""What the runtime needs from the outside world, as protocols; adapters/ implements them.

Values that cross a port are plain (ints, bytes, strings, tuples), so that a contract test can drive
every adapter of a port with one suite. Times are seconds as floats unless a name says otherwise.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ackord_node.core.history import Moment, Removable

# ---------------------------------------------------------------------------------------- clock


class Clock(Protocol):
    """The only sources of time (rule R15)."""

    def now(self) -> float:
        """Seconds of CLOCK_BOOTTIME: monotonic, counts suspend; what leases count on."""

    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch: only for versions (hybrid logical clock) and for people."""


# --------------------------------------------------------------------------------------- engine


class EngineError(Exception):
    """Base of what an engine raises."""


class EngineCorrupt(EngineError):
    """Stored data failed its checksum (rule R14). ``tablet`` is None if the whole store is affected."""

    def __init__(self, message: str, tablet: int | None = None) -> None:
        super().__init__(message)
        self.tablet = tablet


class EngineFull(EngineError):
    """No space. The engine has closed and reopened itself or will on ``reopen``; nothing of the batch counts."""


class EngineFailed(EngineError):
    """fsync or I/O failed: the process must crash, never retry (rule R14)."""


class EngineLocked(EngineError):
    """Another process has this data folder open."""


class EngineForeign(EngineError):
    """The folder's format version is not one that this program reads."""


@dataclass(slots=True)
class Batch:
    """What one group commit makes durable, of all tablets, all or nothing. The order of application is
    the order of the fields: cleared tablets, then cuts, then everything else."""

    clear: list[int] = field(
        default_factory=list
    )  # tablets whose rows, history, log and requests are deleted (meta stays)
    forget: list[int] = field(default_factory=list)  # tablets of which everything is deleted, meta too
    cut: list[tuple[int, int]] = field(default_factory=list)  # (tablet, index): delete log records >= index
    trim: list[tuple[int, int]] = field(default_factory=list)  # (tablet, index): delete log records < index
    meta: dict[int, bytes] = field(default_factory=dict)  # tablet -> its copy's metadata
    log: list[tuple[int, int, bytes]] = field(default_factory=list)  # (tablet, index, record)
    rows: list[tuple[int, bytes, bytes | None]] = field(default_factory=list)  # (tablet, key, row or delete)
    requests: list[tuple[int, bytes, bytes | None]] = field(default_factory=list)  # (tablet, client, record)
    history: list[tuple[int, bytes, int, bytes | None]] = field(
        default_factory=list
    )  # (tablet, key, version, row or deleted)
    history_drop: list[tuple[int, bytes, int, bool]] = field(
        default_factory=list
    )  # (tablet, key, version, whether it is a deletion)
    node: dict[str, bytes] = field(default_factory=dict)  # node-wide facts: cluster id, node name, tables

    def is_empty(self) -> bool:
        return not (
            self.clear
            or self.forget
            or self.cut
            or self.trim
            or self.meta
            or self.log
            or self.rows
            or self.requests
            or self.history
            or self.history_drop
            or self.node
        )


class SnapshotReader(Protocol):
    """A consistent view of one tablet's rows, history and requests while writes go on; must be closed."""

    def read(self, space: str, after: bytes | None, bytes_max: int) -> tuple[list[tuple[bytes, bytes]], bool]:
        """Records of ``space`` ("rows", "requests" or "history") with key > ``after`` (from the first if None), in key
        order, until about ``bytes_max`` (at least one); the flag is True when there are no more. In "history" a
        record is (``core.history.history_key``, row, or b"" for a deletion)."""

    def close(self) -> None: ...


class Engine(Protocol):
    """Durable storage of one node: for each tablet its metadata, log, rows, their history and request table.

    ``commit`` blocks and is called from one thread only, the engine's own; it returns only after the
    batch is synced to disk. The readers may be called from the event loop's thread at the same time; they
    see all of a batch or nothing of it, and must each stay well below a few milliseconds.
    """

    suspect: bool  # opened point-in-time after its log was refused: rule R13

    def open(self) -> None:
        """Opens or creates the store; EngineLocked, EngineForeign, EngineFull, EngineFailed, EngineCorrupt
        (tablet None: the store is void)."""

    def clear_suspicion(self) -> None:
        """Every copy's metadata says durably that it is suspect: the mark of the store may go."""

    def close(self) -> None: ...

    def node_facts(self) -> dict[str, bytes]: ...

    def metas(self) -> dict[int, bytes]:
        """The metadata of every copy in the store."""

    def commit(self, batch: Batch) -> None:
        """Makes the batch durable; EngineFull (nothing counts), EngineFailed (crash), EngineCorrupt."""

    def get(self, tablet: int, key: bytes) -> bytes | None: ...

    def get_many(self, tablet: int, keys: Sequence[bytes]) -> list[bytes | None]: ...

    def scan(
        self, tablet: int, start: bytes, end: bytes | None, reverse: bool, rows_max: int, bytes_max: int
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        """Rows with start <= key < end (end None: no bound) in key order, or from the end backwards; stops
        after ``rows_max`` rows or once ``bytes_max`` is reached (at least one row); True if exhausted."""

    def read_log(self, tablet: int, first: int, count_max: int, bytes_max: int) -> list[tuple[int, bytes]]:
        """Consecutive records from index ``first`` on (fewer or none if missing); at least one if present."""

    def log_bounds(self, tablet: int) -> tuple[int, int] | None:
        """(first, last) index present in the log, None if it is empty."""

    def requests(self, tablet: int) -> list[tuple[bytes, bytes]]: ...

    def history(
        self, tablet: int, key: bytes, version_max: int, count_max: int
    ) -> list[tuple[int, bytes | None]]:
        """The key's stored versions up to ``version_max``, newest first: (version, row or None if deleted)."""

    def history_scan(
        self,
        tablet: int,
        start: bytes,
        end: bytes | None,
        reverse: bool,
        as_of: int,
        count_max: int,
        keys_max: int,
        bytes_max: int,
    ) -> tuple[list[Moment], bytes | None]:
        """What each key with start <= key < end was at ``as_of``, with up to ``count_max`` of its newer versions, in
        key order or backwards; stops after ``keys_max`` keys or once ``bytes_max`` is reached. Also where the rest
        begins (backwards: what it ends before), None if there is none. No key may be a prefix of another, and the
        bounds must be first parts of keys, or a key and one 0 byte."""

    def history_excess(
        self, tablet: int, start: bytes, bounds: Removable, keys_max: int, records_max: int
    ) -> tuple[list[tuple[bytes, int, bool]], bytes | None]:
        """Versions that ``bounds`` allows to remove, as for ``history_drop``, of up to ``keys_max`` keys from
        ``start`` on; and where the next look begins, None at the end. For the engine's thread."""

    def snapshot(self, tablet: int) -> SnapshotReader: ...

    def free_bytes(self) -> int:
        """Bytes that may still be written, for the free-space reserve."""

    def disk_bytes(self) -> int:
        """Bytes that the store takes on disk."""


# --------------------------------------------------------------------------------- coordination


class Cas(enum.Enum):
    """Outcome of a compare-and-set (rule R1). UNKNOWN stays unknown until a changed version is read."""

    WON = "won"
    LOST = "lost"
    UNKNOWN = "unknown"


class LockAttempt(enum.Enum):
    HELD = "held"  # this session holds the lock (now or already)
    TAKEN = "taken"  # another session holds it
    UNKNOWN = "unknown"  # the service did not answer; the adapter finds out and reports lock_changed


class CoordinationError(Exception):
    """The coordination service cannot be used now; nothing is known about a write that was under way."""


class CoordinationListener(Protocol):
    """Callbacks into the runtime, always on the event loop, never re-entrant into the adapter."""

    def descriptor_changed(self, tablet: int, data: bytes | None, version: int) -> None:
        """The descriptor of a followed tablet as read now; version is -1 and data None if there is none."""

    def lock_changed(self, tablet: int, holder: bytes | None, mine: bool) -> None:
        """Who holds a followed tablet's lock (``owner`` bytes of acquire_lock), None if nobody; ``mine`` is
        True iff it belongs to the session that this adapter has now."""

    def tables_changed(self) -> None: ...

    def nodes_changed(self) -> None: ...

    def session_changed(self, connected: bool) -> None:
        """False: the service cannot be reached or the session ended. True: usable (again)."""


class Coordination(Protocol):
    """The coordination service: descriptors, locks that only elect, node registry, table catalogue.

    No safety rule depends on session timing. Every coroutine is bounded in time by the adapter, raises
    CoordinationError if the service cannot be reached, and may be cancelled at any await.
    """

    session_timeout_ms: int | None  # negotiated; None before the first session

    async def start(self, listener: CoordinationListener) -> None:
        """Begins to connect in the background and returns; session_changed(True) tells when it is usable."""

    async def close(self) -> None:
        """Ends the session (locks and registration vanish) and every task; bounded."""

    async def cluster(self) -> bytes | None:
        """The cluster record, None if the service holds nothing of this cluster."""

    async def create_cluster(self, data: bytes) -> bytes:
        """Creates the record if absent; returns the one that stands."""

    async def register_node(self, name: str, data: bytes) -> None:
        """Keeps an ephemeral registration, renewed by the adapter after a new session; last call wins."""

    async def nodes(self) -> dict[str, bytes]: ...

    async def next_id(self) -> int:
        """A table number that was never returned before and never will be (rule R18)."""

    async def tables(self) -> dict[str, tuple[bytes, int]]:
        """name -> (definition, version) of the tables that were not deleted."""

    async def table(self, name: str) -> tuple[bytes, int] | None:
        """(definition, version) by a linearizable read; the definition is empty once the table was deleted. None
        if there never was one of that name."""

    async def create_table(self, name: str, data: bytes, version: int) -> Cas:
        """WON if the record still had this version, -1: if there never was one; the new one's is ``version + 1``. A
        name's versions never start again, so that a late change of an earlier table (an outcome that was unknown)
        cannot touch a later one of the same name, or bring the earlier one back."""

    async def update_table(self, name: str, data: bytes, version: int) -> Cas: ...

    async def delete_table(self, name: str, version: int) -> Cas: ...

    async def descriptor(self, tablet: int) -> tuple[bytes, int] | None:
        """(data, version) by a linearizable read (sync, then read), None if absent."""

    async def create_descriptor(self, tablet: int, data: bytes) -> Cas: ...

    async def swap_descriptor(self, tablet: int, data: bytes, version: int) -> Cas:
        """Compare-and-set: WON makes the descriptor's version exactly ``version + 1``. Never retried inside."""

    def follow(self, tablet: int) -> None:
        """Starts reporting descriptor_changed and lock_changed for the tablet, first with what stands now, then
        at each change (watches AND a poll, since watches can be lost). Idempotent."""

    def unfollow(self, tablet: int) -> None: ...

    async def acquire_lock(self, tablet: int, owner: bytes) -> LockAttempt:
        """Creates the tablet's ephemeral lock record if there is none; never waits for a holder."""

    async def release_lock(self, tablet: int) -> None:
        """Deletes the lock if this adapter's session holds it; retried in the background until it is gone."""


# ------------------------------------------------------------------------------------ transport


class PeerListener(Protocol):
    """Callbacks into the runtime, on the event loop."""

    def messages_received(self, node: str, incarnation: int, messages: Sequence[Any]) -> None:
        """Decoded messages (lists) in the order sent; the link drops what the peer sent if this raises
        ValueError, and closes."""

    def peer_up(self, node: str) -> None:
        """The link to the peer is open."""

    def peer_down(self, node: str, refused: bool) -> None:
        """It ended; ``refused``: the peer's port refuses connections, so its process is not there."""


class PeerTransport(Protocol):
    """Links to the other nodes, one multiplexed stream for each direction of a pair."""

    async def start(self, listener: PeerListener, incarnation: int) -> None: ...

    async def close(self) -> None: ...

    def set_cluster_id(self, cluster_id: str) -> None:
        """Until this was called no link is opened or accepted (rule R18)."""

    def send(self, node: str, message: Any, urgent: bool = False) -> bool:
        """Queues a message (msgpack-able list); everything queued in one turn of the loop leaves as one frame.
        Urgent ones (beacons, leases, confirmations) go before bulk ones. Messages may be lost, never changed,
        and keep their order within a priority; nothing of an older link of a node arrives after something of a
        newer one. False: there is no link or its queue is full; it was dropped."""

    def is_up(self, node: str) -> bool: ...

    def queued_bytes(self, node: str) -> int: ...
