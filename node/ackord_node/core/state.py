"""What the roles of one replica share: its copy of the tablet, positions, promises, and what is to be stored.

Positions, always: ``applied <= commit <= log.end`` and ``durable <= log.end``. ``promised`` is obeyed from
the moment it is set and answered for once ``promised_durable`` has reached it (rule R3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from typing import Protocol

from ackord.wire.keys import KeySchema
from ackord.wire.limits import Limits
from ackord.wire.options import DEFAULT_OPTIONS, TableOptions
from ackord_node.core.copy_meta import CopyMeta
from ackord_node.core.effects import Effect, Note, Persist, ReleaseLock, Send, TabletBatch
from ackord_node.core.expiry import TabletClock
from ackord_node.core.history import Moment, Recent, Retention, split_history_key
from ackord_node.core.holders import Holders, longest_ms
from ackord_node.core.log import Entry, Log
from ackord_node.core.messages import Message
from ackord_node.core.overlay import Overlay
from ackord_node.core.requests import RequestTable
from ackord_node.core.types import Descriptor, LogLimits, Member, Timing
from ackord_node.core.upkeep import Upkeep


class RowReader(Protocol):
    """The tablet's stored rows: the state up to ``applied``, or newer for keys that the overlay covers."""

    def get(self, key: bytes) -> bytes | None: ...

    def get_many(self, keys: list[bytes]) -> list[bytes | None]: ...

    def range(
        self, start: bytes, end: bytes | None, count_max: int, bytes_max: int
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        """The first rows with start <= key < end, in order, at least one; True if there are no more."""

    def history(self, key: bytes, version_max: int, count_max: int) -> list[tuple[int, bytes | None]]: ...

    def moment(self, key: bytes, as_of: int, count_max: int) -> Moment: ...


@dataclass(frozen=True, slots=True)
class CoreConfig:
    timing: Timing
    log: LogLimits
    limits: Limits


@dataclass(slots=True)
class StoredCopy:
    """A copy as found on disk: ``entries`` are the log's from ``meta.applied`` + 1 on, verified."""

    tablet: int
    meta: CopyMeta
    entries: list[Entry]
    requests: list[tuple[bytes, bytes]]
    is_new: bool = False  # made just now: it has promised nothing to anybody


class TabletState:
    # More attributes than CPython 3.11 keeps within an object (30): without slots each has a dict of its own, and
    # a step of a tablet costs up to a fifth more.
    # fmt: off
    __slots__ = (
        "_applied_taken", "_clear", "_cut", "_durable_cap", "_encoded", "_fill_history", "_fill_requests",
        "_fill_rows", "_in_flight", "_meta_dirty", "_new_copy_id", "_tickets", "_wall", "_written",
        "applied", "applied_version", "barred_below", "clock", "commit", "commit_version", "config",
        "coordination_up", "copy_id", "copy_is_stored", "descriptor", "descriptor_is_fresh",
        "descriptor_version", "durable", "filling", "generation", "handed_to", "hold_ms", "hold_ms_durable",
        "holders", "incarnation", "is_leaving", "last_version", "lock_free_since", "lock_holder",
        "lock_is_known", "lock_is_mine", "log", "node", "options", "out", "overlay", "paused_at",
        "peers_refused", "peers_up", "promise_until", "promised", "promised_durable", "recent", "recovered",
        "requests", "retention", "rows", "schema", "shares_beacons", "stopped_reason", "suspect", "tablet",
        "trim_hold", "unfit_reason", "upkeep",
    )
    # fmt: on

    def __init__(
        self,
        node: str,
        incarnation: int,
        copy: StoredCopy,
        config: CoreConfig,
        rows: RowReader,
        new_copy_id: Callable[[], int],
        now: float,
        options: TableOptions = DEFAULT_OPTIONS,
    ) -> None:
        meta = copy.meta
        self.node = node
        self.incarnation = incarnation
        self.tablet = copy.tablet
        self.config = config
        self.options = options
        keep_ms = config.limits.tombstone_keep_ms
        self.retention = Retention(options, keep_ms) if options.has_history else None
        self._wall = (0, now)  # this node's wall clock, and when it was read
        self.rows = rows
        self.schema: KeySchema | None = None  # of the table's keys; set before there are writes
        self.out: list[Effect] = []
        self._new_copy_id = new_copy_id
        self._load(copy)
        # -- clients that keep rows (rule R19)
        self.holders = Holders(incarnation, config.timing, config.limits, lambda tell: self.out.append(tell))
        self.hold_ms = self.hold_ms_durable = meta.hold_ms
        # A store that lost something may have lost this record, or a later one, too.
        self.holders.restarted(max(self.hold_ms, longest_ms(self.holders) * meta.suspect), now)
        # -- promises
        self.promised = self.promised_durable = meta.promised
        self.promise_until = now if copy.is_new else now + config.timing.promise  # rule R7: after a restart
        self.barred_below = 0  # rule R2: while taking over, nothing of a lower epoch is confirmed
        # -- what the coordination service said last
        self.descriptor: Descriptor | None = Descriptor.decode(meta.descriptor) if meta.descriptor else None
        self.descriptor_version = meta.descriptor_version
        self.descriptor_is_fresh = False  # seen since this incarnation began
        self.lock_holder: str | None = None
        self.lock_is_mine = False
        self.lock_is_known = False
        self.lock_free_since = now
        self.coordination_up = False
        # -- surroundings
        self.peers_up: set[str] = set()
        self.peers_refused: set[str] = set()
        self.is_leaving = False
        self.handed_to: str | None = None  # whom this node told to take over; a hint for clients
        self.shares_beacons = False  # this node takes beacons for all tablets of a node pair
        self.paused_at = float("-inf")  # the whole process stood still, up to then
        self.unfit_reason: str | None = None
        self.stopped_reason: str | None = None  # corrupt or dropped: serves nothing
        self.trim_hold: int | None = None
        self.upkeep = Upkeep()
        self._tickets = 0
        # -- persistence
        self._encoded: tuple[Descriptor | None, bytes | None] = (None, None)
        self.generation = 0
        self._meta_dirty = False
        self._clear = False
        self._cut: int | None = None
        self._written = self.log.end  # the engine holds, or is being given, the log up to here
        self._applied_taken = self.applied
        self._in_flight: TabletBatch | None = None
        self._durable_cap: int | None = None  # lowest cut since the batch in flight was taken
        self._fill_rows: list[tuple[int, bytes, bytes | None]] = []
        self._fill_requests: list[tuple[int, bytes, bytes | None]] = []
        self._fill_history: list[tuple[int, bytes, int, bytes | None]] = []
        if meta.filling:
            self.discard_copy(filling=False)

    def _load(self, copy: StoredCopy) -> None:
        """Takes the copy as stored: state, log, requests."""
        meta = copy.meta
        self.copy_id = meta.copy_id
        self.copy_is_stored = not copy.is_new  # its copy_id is on disk, so that it may be named anywhere
        self.suspect = meta.suspect
        self.filling = meta.filling
        self.recovered = meta.recovered
        # The entries bring their own runs; those of the metadata may describe them already.
        runs = [run for run in meta.runs if run[0] <= meta.applied]
        self.log = Log(meta.trimmed, runs, first=meta.applied + 1)
        self.overlay = Overlay()
        self.recent = Recent()
        self.clock = TabletClock(self.options, meta.clock_ms)
        self.requests = RequestTable(meta.collected_below)
        self.requests.load(copy.requests)
        self.applied = self.commit = meta.applied
        self.last_version = meta.last_version
        for entry in copy.entries:
            self.log.append(entry)
            self.overlay.appended(entry)
            self.clock.appended(entry)
            self.last_version = entry.last_version
        self.durable = self.log.end
        self.applied_version = self.commit_version = meta.last_version

    # ------------------------------------------------------------------------------ shorthands

    @property
    def me(self) -> Member:
        return Member(self.node, self.copy_id)

    @property
    def replicas(self) -> tuple[str, ...]:
        return self.descriptor.replicas if self.descriptor is not None else ()

    @property
    def is_in_sync(self) -> bool:
        return self.descriptor is not None and self.me in self.descriptor.in_sync

    def wall_ms(self, now: float) -> int:
        """This node's wall clock, from its last reading on; 0 if there was none yet."""
        read_ms, read_at = self._wall
        return read_ms + int((now - read_at) * 1000) if read_ms else 0

    @property
    def tells_wall(self) -> bool:
        """Whether the tablet's clock may run, so that the coordinator needs this node's wall clock (rule R20)."""
        return bool(self.clock.at_end or self.options.ttl_ms or self.retention)

    def wall_read(self, wall_ms: int, now: float) -> None:
        self._wall = (wall_ms, now)

    def next_ticket(self) -> int:
        """A number for a request to the outside; answers to an earlier role's requests name another."""
        self._tickets += 1
        return self._tickets

    def send(self, node: str, message: Message, urgent: bool = False) -> None:
        self.out.append(Send(node, message, urgent))

    def note(self, level: str, text: str) -> None:
        self.out.append(Note(level, f"tablet {self.tablet:x}: {text}"))

    # ------------------------------------------------------------------------------------ log

    def append(self, entry: Entry) -> None:
        self.log.append(entry)
        self.overlay.appended(entry)
        if entry.clock_ms:
            self.clock.appended(entry)
        self.last_version = entry.last_version
        if self.holders.by_key:
            self.holders.appended(entry)
        self.want_persist()

    def cut_log(self, index: int) -> None:
        """Removes a divergent tail (rule R3); committed entries are never cut."""
        if index <= self.commit:
            raise ValueError(f"cut at {index}, but {self.commit} is committed")
        self.log.cut(index)
        self.holders.cut(index)
        pending = [e for e in self.log.entries if e.index > self.commit]
        self.overlay.rebuilt(pending)
        self.clock.rebuilt(pending)
        last = self.log.get(self.log.end)
        self.last_version = last.last_version if last is not None else self.applied_version
        self.durable = min(self.durable, index - 1)
        if self._durable_cap is None or index - 1 < self._durable_cap:
            self._durable_cap = index - 1
        if index <= self._written:
            self._cut = index if self._cut is None else min(self._cut, index)
            self._written = index - 1
        self.want_persist()

    def commit_to(self, index: int) -> bool:
        """Moves the commit point up to ``index``; False if it was there already."""
        if index <= self.commit:
            return False
        for at in range(self.commit + 1, index + 1):
            entry = self.log.get(at)
            if entry is None:
                raise ValueError(
                    f"commit of {at}, which is not in memory ({self.log.first} to {self.log.end})"
                )
            self.overlay.committed(entry)
            self.requests.apply(entry)
            if entry.clock_ms:
                self.clock.committed(entry)
            if self.retention is not None:
                self.recent.committed(entry)
            self.commit_version = entry.last_version
        self.commit = index
        self.out.append(Persist(lazy=True))
        return True

    def promise_epoch(self, epoch: int) -> None:
        self.promised = epoch
        self.want_meta()

    def discard_copy(self, filling: bool) -> None:
        """Begins a new, empty copy under a new copy_id, which becomes durable in the same all-or-nothing batch
        that deletes the old data."""
        self.copy_id = self._new_copy_id()
        self.copy_is_stored = False
        self.generation += 1
        self.filling = filling
        self.suspect = False
        self.log.reset(0, 0)
        self.holders.cut(0)
        self.overlay.clear()
        self.recent.clear()
        self.clock.filled(0)
        self.requests = RequestTable()
        self.applied = self.commit = self.durable = self._written = self._applied_taken = 0
        self.last_version = self.applied_version = self.commit_version = 0
        self._clear, self._cut, self._durable_cap = True, None, None
        self._fill_rows.clear()
        self._fill_requests.clear()
        self._fill_history.clear()
        self.want_meta()

    def fill(self, space: str, records: list[tuple[bytes, bytes]]) -> None:
        """Takes a chunk of a snapshot."""
        if space == "rows":
            self._fill_rows.extend((self.tablet, key, value) for key, value in records)
        elif space == "history":
            for raw, value in records:
                key, version, is_deletion = split_history_key(raw)
                self._fill_history.append((self.tablet, key, version, None if is_deletion else value))
        else:
            self._fill_requests.extend((self.tablet, key, value) for key, value in records)
            self.requests.load(records)
        self.want_persist()

    def filled(
        self, index: int, epoch: int, last_version: int, collected_below: int, clock_ms: int = 0
    ) -> None:
        """The snapshot is complete: the copy holds the state at ``index``."""
        self.log.reset(index, epoch)
        self.applied = self.commit = self._written = self._applied_taken = index
        self.durable = 0  # until the batch with the last chunk is on disk
        self.last_version = self.applied_version = self.commit_version = last_version
        self.clock.filled(clock_ms)
        self.requests.collected_below = collected_below
        self.filling = False
        self.want_meta()

    # --------------------------------------------------------------------------- persistence

    def want_persist(self) -> None:
        last = self.out[-1] if self.out else None
        if not (isinstance(last, Persist) and not last.lazy):
            self.out.append(Persist())

    def want_meta(self) -> None:
        self._meta_dirty = True
        self.want_persist()

    @property
    def has_unstored(self) -> bool:
        return self.has_unsynced or self._applied_taken < self.commit

    @property
    def has_unsynced(self) -> bool:
        """Something that an answer or a promise waits for, not only rows to be applied."""
        return (
            self._meta_dirty
            or self._clear
            or self._written < self.log.end
            or self._cut is not None
            or bool(self._fill_rows or self._fill_requests or self._fill_history)
        )

    def take_batch(self) -> TabletBatch | None:
        """What to store next; None if there is nothing or if the last batch is still under way."""
        if self._in_flight is not None or not self.has_unstored:
            return None
        batch = TabletBatch(self.tablet, generation=self.generation, promised=self.promised)
        batch.clear, self._clear = self._clear, False
        batch.cut, self._cut = self._cut, None
        tablet = self.tablet
        for index in range(self._written + 1, self.log.end + 1):
            entry = self.log.get(index)
            assert entry is not None
            batch.log.append((tablet, index, entry.record))
        self._written = batch.end = self.log.end
        batch.rows, self._fill_rows = self._fill_rows, []
        batch.requests, self._fill_requests = self._fill_requests, []
        batch.history, self._fill_history = self._fill_history, []
        self._take_applied(batch)
        self._take_trim(batch)
        # What else it says changes only with what is applied or trimmed.
        if self._meta_dirty or batch.applied > self.applied or batch.trim is not None:
            batch.meta, self._meta_dirty = self.meta().encode(), False
        batch.clock_ms = self.clock.at_store
        batch.hold_ms = self.hold_ms
        self._in_flight, self._durable_cap = batch, None
        return batch

    def _take_applied(self, batch: TabletBatch) -> None:
        tablet, rows = self.tablet, batch.rows
        for index in range(self._applied_taken + 1, self.commit + 1):
            entry = self.log.get(index)
            assert entry is not None
            self.applied_version = entry.last_version
            rows.extend(zip(repeat(tablet), *entry.changed, strict=False))
            if self.retention is not None:
                batch.history.extend((tablet, *change) for change in entry.versions())
            if entry.clock_ms > self.clock.at_store:
                self.clock.at_store = entry.clock_ms
        self._applied_taken = batch.applied = self.commit
        batch.requests.extend((tablet, client, record) for client, record in self.requests.take_dirty())

    def _take_trim(self, batch: TabletBatch) -> None:
        keep_bytes = self.config.log.disk_bytes
        through = self.applied if self.trim_hold is None else min(self.applied, self.trim_hold)
        point = max(
            self.log.trim_point(through, keep_bytes),
            self.log.trim_point(self.applied, 8 * keep_bytes),  # nobody is waited for without a limit
        )
        if point > self.log.trimmed:
            self.log.trim(point)
            batch.trim = point + 1

    def meta(self) -> CopyMeta:
        return CopyMeta(
            copy_id=self.copy_id,
            promised=self.promised,
            applied=self._applied_taken,
            trimmed=self.log.trimmed,
            runs=self.log.runs,
            last_version=self.applied_version,
            collected_below=self.requests.collected_below,
            suspect=self.suspect,
            filling=self.filling,
            descriptor=self._encoded_descriptor(),
            descriptor_version=self.descriptor_version,
            recovered=self.recovered,
            clock_ms=self.clock.at_store,
            hold_ms=self.hold_ms,
        )

    def _encoded_descriptor(self) -> bytes | None:
        if self.descriptor is not self._encoded[0]:  # it changes rarely, and this is on every write's path
            self._encoded = (self.descriptor, self.descriptor.encode() if self.descriptor else None)
        return self._encoded[1]

    def stored(self, batch: TabletBatch) -> None:
        """The batch is on disk."""
        self._in_flight = None
        self.promised_durable = max(self.promised_durable, batch.promised)
        self.hold_ms_durable = max(self.hold_ms_durable, batch.hold_ms)
        if batch.generation == self.generation:
            self.copy_is_stored = True
            end = batch.end if self._durable_cap is None else min(batch.end, self._durable_cap)
            self.durable = max(self.durable, end)
            for index in range(self.applied + 1, batch.applied + 1):
                entry = self.log.get(index)
                assert entry is not None
                self.overlay.applied(entry)
                if self.retention is not None:
                    self.recent.applied(entry)
            self.applied = max(self.applied, batch.applied)
            self.clock.durable = max(self.clock.durable, batch.clock_ms)
            self.log.release(self.applied, self.config.log.memory_bytes)
        self._durable_cap = None
        if self.has_unstored:
            self.out.append(Persist(lazy=not self.has_unsynced))

    def unstored(self, batch: TabletBatch) -> None:
        """The batch was refused whole (no space): all of it is to be taken again."""
        self._in_flight = None
        if batch.generation == self.generation:
            self._clear = self._clear or batch.clear
            if batch.cut is not None:
                self._cut = batch.cut if self._cut is None else min(self._cut, batch.cut)
            self._written = min(self._written, batch.log[0][1] - 1) if batch.log else self._written
            self._applied_taken = self.applied
            self._fill_rows = [] if not self.filling else batch.rows + self._fill_rows
            self._fill_history = [] if not self.filling else batch.history + self._fill_history
            for _, client, _ in batch.requests:
                self.requests.dirty[client] = None
        self._meta_dirty = True

    def stop(self, reason: str) -> None:
        self.stopped_reason = reason
        if self.lock_is_mine:
            self.out.append(ReleaseLock())
