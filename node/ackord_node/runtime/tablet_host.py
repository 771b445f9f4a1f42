"""Drives one tablet's core: feeds it events one at a time, carries out its effects, and batches writes.

Writes that arrive while ``PIPELINE_ENTRIES`` entries are under way wait and leave as one entry, so that the cost of
an entry is shared by whatever queued up meanwhile (DESIGN section 4), as far as ``STEP_OPS_COUNT`` allows.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from ackord.errors import Error, InvalidRequest, OutcomeUnknown, Unavailable
from ackord.wire.keys import KeySchema
from ackord.wire.messages import KIND_PUT_AUTO, KIND_TRANSACTION, WHOLE_GROUP, error_to_wire
from ackord.wire.puts import Puts
from ackord_node.core import effects as e
from ackord_node.core.log import Entry, RecordCorrupt
from ackord_node.core.messages import Message
from ackord_node.core.replica import READ_WAIT_S, Replica
from ackord_node.core.transactions import misfit_of
from ackord_node.core.types import Descriptor
from ackord_node.ports import (
    Cas,
    Clock,
    Coordination,
    CoordinationError,
    Engine,
    EngineCorrupt,
    EngineFailed,
    LockAttempt,
)
from ackord_node.runtime.collector import Collector
from ackord_node.runtime.committer import Committer, Source
from ackord_node.runtime.relapses import Relapses
from ackord_node.runtime.requests import (
    GET_BYTES_MAX,
    Deferred,
    Request,
    Subset,
    groups_count,
    tell_holder,
)
from ackord_node.runtime.scan import Range, Selection, count, page
from ackord_node.runtime.service import Respond
from ackord_node.runtime.snapshots import Snapshots
from ackord_node.runtime.turn import Turn
from ackord_node.runtime.version_reads import VersionReads

PIPELINE_ENTRIES = 1  # entries under way before writes are gathered
STEP_OPS_COUNT = 1024  # writes taken on in one step: more would hold up the event loop
READ_LOG_COUNT = 4096
SWEEP_ROWS_COUNT = 1_000  # looked at in one step
SWEEP_BYTES = 256 * 1024
GET_RUN_COUNT = 32  # keys read before the first look at how large the rows are
GET_RUN_COUNT_MAX = 128  # and between two looks
HOLD_S = 0.3  # writes wait so long for a coordinator that is just taking over

log = logging.getLogger("ackord.tablet")
_OUTCOMES = {Cas.WON: e.SwapOutcome.WON, Cas.LOST: e.SwapOutcome.LOST, Cas.UNKNOWN: e.SwapOutcome.UNKNOWN}
_LOCKS = {attempt: e.LockOutcome[attempt.name] for attempt in LockAttempt}


class Surroundings(Protocol):
    """What a host needs from its node."""

    clock: Clock
    engine: Engine
    coordination: Coordination
    committer: Committer
    turn: Turn
    relapses: Relapses

    def send(self, node: str, message: Message, urgent: bool) -> None: ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> None: ...

    def lock_owner(self) -> bytes: ...

    def crash(self, reason: str, is_void: bool) -> None: ...

    def tablet_changed(self, host: TabletHost) -> None: ...

    def wake(self, host: TabletHost) -> None: ...


class TabletHost(Source):
    def __init__(self, around: Surroundings, replica: Replica, schema: KeySchema) -> None:
        self.replica = replica
        self.tablet = replica.state.tablet
        self._around = around
        self._schema = schema
        self._clock = around.clock
        self.now = around.clock.now
        self._events: deque[e.Event] = deque()
        self._is_stepping = False
        self._is_closed = False
        self._queued: list[e.WriteGroup] = []
        self._queued_count = 0
        self._queued_since = 0.0
        self._snapshots = Snapshots(
            around.engine, around.committer, self.tablet, replica, self.feed, around.crash
        )
        self._collector = self._new_collector() if replica.state.retention is not None else None
        self.versions = VersionReads(self, around.engine, around.clock)
        self._role: tuple[int | None, object] = (None, None)
        self._effects: dict[type, Callable[[Any], None]] = {
            e.Send: lambda x: around.send(x.node, x.message, x.urgent),
            e.Reply: lambda x: x.request.answer(x.indices, x.results),
            e.Persist: lambda x: around.committer.want(self.tablet, self, x.lazy),
            e.Swap: lambda x: around.spawn(self._swap(x)),
            e.ReadDescriptor: lambda x: around.spawn(self._read_descriptor()),
            e.AcquireLock: lambda x: around.spawn(self._acquire_lock()),
            e.ReleaseLock: lambda x: around.spawn(self._release_lock()),
            e.ReadLog: self._read_log,
            e.ReadRows: self._read_rows,
            e.OpenSnapshot: lambda x: around.spawn(self._snapshots.open(x.node, x.snapshot_id)),
            e.NextChunk: lambda x: self._snapshots.next_chunk(x.node, x.snapshot_id),
            e.CloseSnapshot: lambda x: self._snapshots.close(x.node, x.snapshot_id),
            e.Tell: tell_holder(self.tablet),
            e.Note: lambda x: log.log(getattr(logging, x.level.upper()), "%s", x.text),
        }

    # ------------------------------------------------------------------------------- stepping

    def feed(self, event: e.Event) -> None:
        """Takes an event; events that effects bring about are taken after it, in order."""
        self._events.append(event)
        if self._is_stepping:
            return
        self._is_stepping = True
        try:
            while self._events:
                self._step(self._events.popleft())
        except Exception as error:  # a state that is half changed must not go on
            log.exception("tablet %x: a step failed", self.tablet)
            self._around.crash(f"tablet {self.tablet:x}: {error!r}", False)
        finally:
            self._is_stepping = False
        self._around.wake(self)
        role = (self.replica.state.descriptor_version, self.replica.coordinator)
        if role != self._role:
            self._role = role
            self._around.tablet_changed(self)

    def _step(self, event: e.Event) -> None:
        try:
            out = self.replica.step(event, self._clock.now())
        except EngineCorrupt as error:
            if isinstance(event, e.Writes):
                self._in_doubt(event)
            self._events.append(e.Corrupted(str(error)))
            return
        for effect in out:
            self._effects[type(effect)](effect)
        if type(event) is e.Corrupted and self.replica.state.stopped_reason is None:
            self._around.relapses.met(self.tablet)
        if not self._events:
            if self._queued and not self._must_gather():
                self._around.turn.want(self)  # what it appends carries the commit point
            elif self.replica.has_announcement:
                self._events.append(e.Announce())

    def _in_doubt(self, event: e.Writes) -> None:
        unknown = error_to_wire(OutcomeUnknown("the coordinator's stored data is damaged", reason="damaged"))
        for group in event.groups:
            _refuse(group, unknown)

    def tick(self, now: float) -> float:
        """Does what is due; when it is to be asked again, if nothing happens before."""
        self.flush()
        if self._collector is not None and not self._is_closed:
            self._collector.tick(now)
        wait_s = self.replica.state.config.limits.request_wait_ms / 1000
        if self._queued and now - self._queued_since > wait_s:
            groups, self._queued, self._queued_count = self._queued, [], 0
            for group in groups:
                _refuse(group, self._overloaded())
        if (due := self.replica.wake_at) <= now:
            self.feed(e.Tick(self._clock.wall_ms()))
            due = self.replica.wake_at
        due = now if self._queued else due
        return due if self._collector is None else min(due, self._collector.wake_at)

    def _new_collector(self) -> Collector:
        around = self._around
        return Collector(
            around.engine, around.committer, self._clock, self.replica, self.feed, around.crash, around.spawn
        )

    # ---------------------------------------------------------------------------- persistence

    def take_batch(self) -> e.TabletBatch | None:
        # A closed host may still hear that an earlier batch is stored: nothing may follow the deletion (R18).
        return None if self._is_closed else self.replica.take_batch()

    def stored(self, batch: e.TabletBatch) -> None:
        self.feed(e.Durable(batch))
        if self._collector is not None and batch.history:
            self._collector.touched([change[1] for change in batch.history])

    def unstored(self, batch: e.TabletBatch) -> None:
        self.replica.unstored(batch)

    # -------------------------------------------------------------------------------- clients

    def get(self, rid: int, keys: list[bytes], respond: Respond) -> None:
        """All of the group in this one step (rule R12), in runs of few keys at first, so that large rows end it:
        what goes beyond ``GET_BYTES_MAX`` is refused and may be asked again."""
        rows: list[Any] = []
        late: list[int] = []
        size, start, count, run = 0, 0, len(keys), GET_RUN_COUNT
        while start < count and size < GET_BYTES_MAX:
            stop = min(start + run, count)
            found = self._get_run(rid, keys, start, stop, respond)
            if found is None:
                break
            part, waiting = found
            rows += part
            if waiting:
                late += [start + at for at in waiting]
            if stop < count:
                size += sum([len(row) for row in part if row is not None])
            start, run = stop, min(run * 4, GET_RUN_COUNT_MAX)
        if start == count and not late:
            respond([rid, None, rows])
        else:
            reason = "no_lease" if size < GET_BYTES_MAX else "overloaded"
            self._answer_some(rid, rows, late, count, reason, respond)

    def _answer_some(
        self, rid: int, rows: list[Any], late: list[int], count: int, reason: str, respond: Respond
    ) -> None:
        """Answers what was read and does not wait, and says of what was not read why."""
        unread = range(len(rows), count)
        if len(unread) == count:
            respond([rid, WHOLE_GROUP, self.elsewhere(reason)])
            return
        if unread:
            rows = rows + [self.elsewhere(reason)] * len(unread)
        waiting = set(late)
        ready = [at for at in range(count) if at not in waiting]
        if ready:
            respond([rid, ready, [rows[at] for at in ready]])

    def _get_run(
        self, rid: int, keys: list[bytes], start: int, stop: int, respond: Respond
    ) -> tuple[list[Any], list[int]] | None:
        """The rows, and the places of those that come later; None if this replica may not answer."""
        request: Any = Request(rid, respond)
        if stop - start < len(keys):
            request = Subset(request, list(range(start, stop)))
            keys = keys[start:stop]
        try:
            return self.replica.get_many(request, keys, self._clock.now())
        except EngineCorrupt as error:
            self.feed(e.Corrupted(str(error)))
        except EngineFailed as error:
            self._around.crash(f"a read failed (rule R14): {error}", False)
        return None

    def select(self, rid: int, keys: list[bytes], options: list[Any], respond: Respond) -> None:
        """``get`` of the rows of which an expression holds, or of some of their columns."""
        try:
            selection = self.selection(options)
        except InvalidRequest as error:
            respond([rid, WHOLE_GROUP, error_to_wire(error)])
            return

        def chosen(entry: list[Any]) -> None:
            _, indices, rows = entry
            if indices != WHOLE_GROUP:
                places = range(len(keys)) if indices is None else indices
                rows = [
                    selection.take(keys[at], row) if type(row) is bytes else row
                    for at, row in zip(places, rows, strict=True)
                ]
            respond([rid, indices, rows])

        self.get(rid, keys, chosen)

    def selection(
        self, options: list[Any], shown: Callable[[bytes], bytes | None] | None = None
    ) -> Selection:
        where, columns = options
        return Selection.of(where, columns, self._schema, self.replica.state.config.limits, shown)

    def scan(self, rid: int, wanted: Range, options: list[Any], respond: Respond) -> None:
        """One page; ``options`` is empty or ``[where, columns]``."""
        try:
            shown = self.replica.reads.shown_part
            selection = self.selection(options or [None, None], shown) if options or shown else None
        except InvalidRequest as error:
            respond([rid, WHOLE_GROUP, error_to_wire(error)])
            return
        engine, overlay = self._around.engine, self.replica.state.overlay
        read = lambda: page(engine, self.tablet, wanted, overlay.unapplied, selection)  # noqa: E731
        self._read_range(rid, wanted.start, wanted.end, read, respond)

    def count(self, rid: int, start: bytes, end: bytes | None, where: bytes | None, respond: Respond) -> None:
        """How many rows of a stretch of the range, and where the rest begins."""
        try:
            selection = self.selection([where, None], self.replica.reads.shown_part)
        except InvalidRequest as error:
            respond([rid, WHOLE_GROUP, error_to_wire(error)])
            return
        engine, overlay = self._around.engine, self.replica.state.overlay
        read = lambda: count(engine, self.tablet, start, end, overlay.unapplied, selection)  # noqa: E731
        self._read_range(rid, start, end, read, respond)

    def guarded(self, rid: int, read: Callable[[], list[Any]], respond: Respond) -> None:
        """Answers a group with what ``read`` returns, for each of its operations."""
        try:
            results = read()
        except EngineCorrupt as error:
            self.feed(e.Corrupted(str(error)))
            respond([rid, WHOLE_GROUP, self.elsewhere("no_lease")])
            return
        except EngineFailed as error:
            self._around.crash(f"a read failed (rule R14): {error}", False)
            return
        respond([rid, None, results])

    def _read_range(
        self, rid: int, start: bytes, end: bytes | None, read: Callable[[], Any], respond: Respond
    ) -> None:
        """Rule R12 for a range: as for a key, where any pending entry inside it makes the reader wait."""
        replica, now = self.replica, self._clock.now()

        def refused() -> None:
            respond([rid, WHOLE_GROUP, self.elsewhere("no_lease")])

        if not replica.may_read(now):
            refused()
        elif not replica.has_pending_in(start, end):
            self._answer_range(rid, read, respond)
        else:
            waiter = Deferred(lambda: self._answer_range(rid, read, respond), refused)
            if not replica.reads.wait(waiter, [], [], now + READ_WAIT_S):
                refused()

    def _answer_range(self, rid: int, read: Callable[[], Any], respond: Respond) -> None:
        self.guarded(rid, lambda: [read()], respond)

    def write(self, group: list[Any], respond: Respond) -> None:
        """Queues ``[rid, OP_WRITE, tablet, client, registered, floor, ops]``; ``flush`` takes it on."""
        rid, _, _, client, registered, floor, ops = group
        state = self.replica.state
        if self.replica.coordinator is None and not self.replica.is_about_to_coordinate:
            respond([rid, WHOLE_GROUP, self.elsewhere("not_coordinator")])
            return
        if self._queued_count + len(ops) > state.config.limits.pending_ops_count:
            respond([rid, WHOLE_GROUP, self._overloaded()])
            return
        bad = self._bad_keys(ops)
        if bad:
            good = [at for at in range(len(ops)) if at not in bad]
            respond([rid, sorted(bad), [bad[at] for at in sorted(bad)]])
            if not good:
                return
            request: Any = Subset(Request(rid, respond), good)
            ops = [ops[at] for at in good]
        else:
            request = Request(rid, respond)
        self._queued.append(e.WriteGroup(request, client, registered, floor, ops))
        self._queued_count += len(ops)
        if len(self._queued) == 1:
            self._queued_since = self._clock.now()

    def _bad_keys(self, ops: Sequence[list[Any]]) -> dict[int, list[Any]]:
        d, is_valid = self.replica.state.descriptor, self._schema.is_valid
        assert d is not None
        start, end = d.start, d.end
        if isinstance(ops, Puts):
            keys = ops.keys
            if start <= min(keys) and (end is None or max(keys) < end) and all(map(is_valid, keys)):
                return {}
        bad: dict[int, list[Any]] = {}
        for at, op in enumerate(ops):
            key = op[2]
            if key < start or (end is not None and key >= end):
                bad[at] = self.elsewhere("stale_routing")
            elif op[1] == KIND_TRANSACTION:
                misfit = misfit_of(self._schema, key, op[3])
                if misfit is not None:
                    bad[at] = error_to_wire(misfit)
            elif not is_valid(key) and not (op[1] == KIND_PUT_AUTO and self._schema.is_auto):
                error = InvalidRequest(
                    f"the key {key[:32]!r} does not fit the table's key columns", field="key"
                )
                bad[at] = error_to_wire(error)
        return bad

    def flush(self) -> None:
        if not self._queued or self._is_stepping or self._must_gather():
            return
        if self.replica.is_about_to_coordinate and self._clock.now() - self._queued_since < HOLD_S:
            return
        count = groups_count(self._queued, STEP_OPS_COUNT)
        groups, self._queued = self._queued[:count], self._queued[count:]
        self._queued_count -= sum(len(group.ops) for group in groups)
        self._queued_since = self._clock.now()  # of those that are left: something moves
        self.feed(e.Writes(groups, self._clock.wall_ms()))

    def _must_gather(self) -> bool:
        s, c = self.replica.state, self.replica.coordinator
        if c is None or s.log.end - s.commit < PIPELINE_ENTRIES:
            return False
        return c.membership.write_refusal() is None

    def elsewhere(self, reason: str) -> list[Any]:
        """Certainly not done here: who may do it, as far as this node knows."""
        known = self.replica.coordinator_hint
        detail = {"coordinator": known} if known is not None else {}
        text = f"{self.replica.state.node} cannot serve this request for tablet {self.tablet:x} now"
        return error_to_wire(Unavailable(text, reason=reason, retry_after_ms=20, **detail))

    def _overloaded(self) -> list[Any]:
        limit = self.replica.state.config.limits.pending_ops_count
        text = f"{self._queued_count} writes of this tablet wait already, the limit is {limit}"
        error: Error = Unavailable(text, reason="overloaded", limit=limit, retry_after_ms=50)
        return error_to_wire(error)

    # --------------------------------------------------------------------- coordination service

    async def _swap(self, effect: e.Swap) -> None:
        try:
            data = effect.descriptor.encode()
            cas = await self._around.coordination.swap_descriptor(self.tablet, data, effect.version)
            outcome = _OUTCOMES[cas]
        except CoordinationError:
            outcome = e.SwapOutcome.UNSENT
        self.feed(e.SwapDone(effect.ticket, outcome))

    async def _read_descriptor(self) -> None:
        try:
            found = await self._around.coordination.descriptor(self.tablet)
        except CoordinationError:
            return
        if found is not None:
            self.feed(e.DescriptorSeen(Descriptor.decode(found[0]), found[1]))

    async def _acquire_lock(self) -> None:
        try:
            attempt = await self._around.coordination.acquire_lock(self.tablet, self._around.lock_owner())
        except CoordinationError:
            attempt = LockAttempt.UNKNOWN
        self.feed(e.LockDone(_LOCKS[attempt]))

    async def _release_lock(self) -> None:
        try:
            await self._around.coordination.release_lock(self.tablet)
        except CoordinationError as error:
            log.debug("lock of tablet %x: %s", self.tablet, error)

    # -------------------------------------------------------------------------------- catch-up

    def _read_log(self, effect: e.ReadLog) -> None:
        """Entries that are no longer in memory, verified before they leave (rule R14)."""
        bytes_max = self.replica.state.config.log.append_bytes
        try:
            found = self._around.engine.read_log(self.tablet, effect.first, READ_LOG_COUNT, bytes_max)
            for _, record in found:
                Entry.decode(self.tablet, record)
        except (EngineCorrupt, RecordCorrupt) as error:
            self.feed(e.Corrupted(str(error)))
            return
        # In a later turn of the loop, so that a long catch-up lets others in.
        event = e.LogRead(effect.node, effect.first, [record for _, record in found])
        asyncio.get_running_loop().call_soon(self.feed, event)

    def _read_rows(self, effect: e.ReadRows) -> None:
        """Some stored rows for the sweep (rule R20)."""
        scan, start = self._around.engine.scan, effect.start
        try:
            found, exhausted = scan(self.tablet, start, None, False, SWEEP_ROWS_COUNT, SWEEP_BYTES)
        except EngineCorrupt as error:
            self.feed(e.Corrupted(str(error)))
            return
        event = e.RowsRead(start, found, None if exhausted else found[-1][0] + b"\0")
        asyncio.get_running_loop().call_soon(self.feed, event)

    def close(self) -> None:
        self._is_closed = True
        self._snapshots.close_all()


def _refuse(group: e.WriteGroup, error: list[Any]) -> None:
    request: Any = group.request  # opaque to the core; here it is a Request or a Subset
    request.answer(None, [error] * len(group.ops))
