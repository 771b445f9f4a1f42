"""One replica of one tablet as a state machine: ``step(event, now) -> effects``.

It knows nothing of asyncio, clocks, disks or sockets. Its driver runs one step at a time, carries out the effects in
order, and reports what came of them as further events. The parts: ``Follower`` (obey, confirm, lease), ``Takeover``
(become coordinator), ``Coordinator`` (replicate, commit, grant, change the set), ``Reads`` and ``WritePath``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ackord.errors import Unavailable
from ackord.wire.messages import error_to_wire
from ackord.wire.options import DEFAULT_OPTIONS, TableOptions
from ackord_node.core import effects as e
from ackord_node.core import messages as m
from ackord_node.core.coordinator import Coordinator
from ackord_node.core.follower import Follower
from ackord_node.core.holding import Holding
from ackord_node.core.invariants import check_invariants
from ackord_node.core.reads import Reads
from ackord_node.core.state import CoreConfig, RowReader, StoredCopy, TabletState
from ackord_node.core.takeover import Takeover, Won
from ackord_node.core.types import Descriptor

READ_WAIT_S = 5.0  # a read that waits longer for a pending write is refused; it can be tried elsewhere


class Replica:
    """``now`` is seconds of the clock that leases count on; it never goes back."""

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
        self.state = TabletState(node, incarnation, copy, config, rows, new_copy_id, now, options)
        self.reads = Reads(self.state)
        self.follower = Follower(self.state, now)
        self.takeover = Takeover(self.state)
        self.coordinator: Coordinator | None = None
        self.holding = Holding(self)
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            e.Tick: self._tick,
            e.Announce: self._announce,
            e.Received: self._received,
            e.PeerUp: self._peer_up,
            e.PeerDown: self._peer_down,
            e.DescriptorSeen: self._descriptor_seen,
            e.SwapDone: self._swap_done,
            e.LockSeen: self._lock_seen,
            e.LockDone: self._lock_done,
            e.Durable: self._durable,
            e.LogRead: self._log_read,
            e.RowsRead: self._rows_read,
            e.AdvanceVersion: self._advance_version,
            e.SnapshotChunk: self._snapshot_chunk,
            e.SnapshotFailed: self._snapshot_failed,
            e.Corrupted: self._corrupted,
            e.DiskSlow: self._disk_slow,
            e.DiskWell: self._disk_well,
            e.CoordinationSeen: self._coordination_seen,
            e.HandOver: self._hand_over,
            e.Leave: self._leave,
            e.Writes: self._writes,
            e.HoldsWanted: self.holding.wanted,
            e.HolderSaid: self.holding.said,
        }
        self._message_handlers: dict[int, Callable[[e.Received, float], None]] = {
            m.APPEND: lambda r, now: self.follower.append(r.node, r.message, now),
            m.BEACON: lambda r, now: self.follower.beacon(r.node, r.message, now),
            m.COMMIT: lambda r, now: self.follower.commit(r.node, r.message, now),
            m.SNAPSHOT: lambda r, now: self.follower.snapshot(r.node, r.message, now),
            m.INQUIRE: lambda r, now: self.follower.inquire(r.node, r.message),
            m.HANDOVER: self._handed_over,
            m.FENCED: self._fenced,
            m.INQUIRE_ANSWER: self._inquire_answer,
        }

    # ------------------------------------------------------------------------------- the step

    def step(self, event: e.Event, now: float) -> list[e.Effect]:
        s = self.state
        s.holders.now = now
        self._handlers[type(event)](event, now)
        self._after(now)
        out = s.out
        s.out = []
        return out

    def _after(self, now: float) -> None:
        c = self.coordinator
        if c is not None:
            reason = c.resign_reason or c.membership.deposed_reason
            if reason is not None:
                if c.resign_reason is not None:
                    self.state.suspect = True
                    self.state.want_meta()
                    self.state.out.append(e.ReleaseLock())
                    self.state.lock_is_mine, self.state.lock_holder = False, None
                self._step_down(reason, now)

    def take_batch(self) -> e.TabletBatch | None:
        """What to store in the next group commit; ``Durable`` or ``unstored`` must follow."""
        return self.state.take_batch()

    def unstored(self, batch: e.TabletBatch) -> None:
        """The commit of a taken batch was refused whole, for lack of space."""
        self.state.unstored(batch)

    @property
    def wake_at(self) -> float:
        """When the next Tick is due at the latest."""
        if self.coordinator is not None:
            return min(self.coordinator.wake_at, self.state.holders.wake_at)
        holders = self.state.holders
        return min(self.takeover.wake_at, self.reads.next_expiry, self._tick_at, holders.wake_at)

    _tick_at = 0.0

    # --------------------------------------------------------------------------------- reading

    def may_read(self, now: float) -> bool:
        """Whether this replica may answer reads now (rules R5, R6)."""
        s = self.state
        if s.stopped_reason is not None or s.filling:
            return False
        if self.coordinator is not None:
            return self.coordinator.may_answer(now)
        return self.follower.lease_until > now

    def get_many(
        self, request: e.Responder, keys: list[bytes], now: float
    ) -> tuple[list[Any], list[int]] | None:
        """Rule R12, in one step on arrival. None: this replica may not answer. Otherwise the rows, and the
        indices of keys whose answer comes later as a ``Reply`` effect (their place holds None)."""
        s = self.state
        if not self.may_read(now):
            return None
        pending, unapplied = s.overlay.pending, s.overlay.unapplied
        if self.reads.shown_part is not None:
            return self.reads.get_shown(request, keys, self.coordinator is None, now + READ_WAIT_S)
        late: list[int] = []
        if self.coordinator is None:
            late = [at for at, key in enumerate(keys) if key in pending]
        if late and not self.reads.wait(request, [keys[at] for at in late], late, now + READ_WAIT_S):
            return None
        rows = s.rows.get_many(keys)
        if not unapplied.keys().isdisjoint(keys):
            rows = [
                unapplied[key][1] if key in unapplied else row for key, row in zip(keys, rows, strict=True)
            ]
        for at in late:
            rows[at] = None
        return rows, late

    def has_pending_in(self, start: bytes, end: bytes | None) -> bool:
        """Whether a read of this range must wait for the commit point, which a coordinator's never must."""
        clock = self.state.clock
        if self.coordinator is not None:
            return False
        return clock.at_end > clock.at_commit or self.reads.has_pending_in(start, end)

    # ------------------------------------------------------------------------------- messages

    def _received(self, event: e.Received, now: float) -> None:
        s = self.state
        if s.stopped_reason is not None:
            return
        message = event.message
        kind, epoch = message[0], message[2]
        c = self.coordinator
        if c is not None and kind in _FROM_COORDINATOR:
            if epoch <= s.promised:
                if epoch < s.promised:
                    s.send(event.node, [m.FENCED, s.tablet, epoch, s.promised], urgent=True)
                return
            self._step_down(f"{event.node} coordinates epoch {epoch}", now)
        if kind == m.BEACON and epoch >= s.promised:
            self.takeover.hurry = False  # somebody coordinates: what was handed over is settled
        handler = self._message_handlers.get(kind)
        if handler is not None:
            handler(event, now)
            if kind in _FROM_COORDINATOR:
                self.reads.advance()
        elif c is not None:
            self._coordinator_message(c, kind, event, now)

    def _coordinator_message(self, c: Coordinator, kind: int, event: e.Received, now: float) -> None:
        node, incarnation, message = event.node, event.incarnation, event.message
        if kind == m.CONFIRM:
            c.confirm(node, incarnation, message, now)
        elif kind == m.BEACON_CONFIRM:
            c.beacon_confirm(node, incarnation, message, now)
        elif kind == m.MISMATCH:
            c.mismatch(node, incarnation, message, now)
        elif kind == m.SNAPSHOT_TAKEN:
            c.snapshot_taken(node, incarnation, message, now)
        elif kind == m.LEAVE:
            c.leave(node, incarnation, message, now)

    def _inquire_answer(self, event: e.Received, now: float) -> None:
        if self.coordinator is not None:
            self.coordinator.inquire_answer(event.node, event.message, now)
        else:
            self.takeover.inquire_answer(event.node, event.message, now)

    def _handed_over(self, event: e.Received, now: float) -> None:
        if self.coordinator is None and self.follower.handover(event.message, now):
            self.takeover.hurry = True
            self.takeover.poll(now)

    def _fenced(self, event: e.Received, now: float) -> None:
        """Somebody promised a later epoch: this coordinator was replaced."""
        c = self.coordinator
        if c is not None and event.message[2] == c.epoch and event.message[3] > c.epoch:
            self.state.out.append(e.ReadDescriptor())
            self._step_down(f"{event.node} promised epoch {event.message[3]}", now)

    # ----------------------------------------------------------------------------------- roles

    def _become(self, won: Won, now: float) -> None:
        s = self.state
        if won.descriptor.epoch <= s.promised or s.me not in won.descriptor.in_sync:
            return  # a later coordinator was obeyed meanwhile, or the copy that tried is gone
        s.descriptor, s.descriptor_version = won.descriptor, won.version
        s.recovered = won.descriptor.recovered
        s.handed_to = None
        s.suspect = False  # all members had answered, and none has a later log: nothing is missing (R13)
        s.promise_epoch(won.descriptor.epoch)
        self.follower.forget(now)
        self.reads.refuse(_MOVED)
        self.coordinator = Coordinator(s, won, self.reads, now)
        s.note("info", f"{s.node} coordinates epoch {won.descriptor.epoch}, log end {s.log.end}")

    def _step_down(self, reason: str, now: float) -> None:
        c, s = self.coordinator, self.state
        if c is None:
            return
        self.coordinator = None
        c.writes.end()
        for p in c.progress.values():
            c.replication.close_snapshot(p)
        self.reads.refuse(_MOVED)
        self.follower.forget(now)
        s.trim_hold = None
        # It was bound by its own authority until now: no takeover by this copy before members may.
        s.promise_until = max(s.promise_until, now + s.config.timing.promise)
        self.takeover.wake_at = s.promise_until
        s.note("info", f"{s.node} no longer coordinates epoch {c.epoch}: {reason}")

    # ----------------------------------------------------------------------- coordination service

    def _descriptor_seen(self, event: e.DescriptorSeen, now: float) -> None:
        s = self.state
        s.descriptor_is_fresh = True
        if event.descriptor is None:
            return
        # Epochs only grow, also over a rebuilt coordination service, whose versions begin again.
        seen = (event.descriptor.epoch, event.version)
        known = (s.descriptor.epoch, s.descriptor_version) if s.descriptor is not None else (-1, -1)
        if seen < known:
            return
        if seen > known:
            s.descriptor, s.descriptor_version = event.descriptor, event.version
            s.want_meta()
        d = event.descriptor
        if d.dropped:
            self._dropped(d, now)
            return
        if s.suspect and d.epoch > s.promised:
            s.promise_epoch(d.epoch)  # rule R13: its own promise may be older than what it had promised
            self.follower.forget(now)
        if self.coordinator is not None:
            self.coordinator.membership.descriptor_seen(d, event.version, now)
        else:
            won = self.takeover.descriptor_seen(d, event.version, now)
            if won is not None:
                self._become(won, now)
            if self.coordinator is None:
                self.takeover.poll(now)

    def _dropped(self, descriptor: Descriptor, now: float) -> None:
        """Rule R18: the mark is an epoch of its own, so nothing older is obeyed or confirmed any more."""
        s = self.state
        self._step_down("the tablet was dropped", now)
        if descriptor.epoch > s.promised:
            s.promise_epoch(descriptor.epoch)
        self.follower.forget(now)
        self.reads.refuse(_MOVED)
        s.stop("dropped")

    def _swap_done(self, event: e.SwapDone, now: float) -> None:
        if event.ticket < 0:
            if self.coordinator is not None:
                self.coordinator.membership.swap_done(event.ticket, event.outcome, now)
                self.coordinator.stored(now)
            return
        won = self.takeover.swap_done(event.ticket, event.outcome, now)
        if won is not None:
            self._become(won, now)

    def _lock_seen(self, event: e.LockSeen, now: float) -> None:
        s = self.state
        if event.holder is None and (s.lock_holder is not None or not s.lock_is_known):
            s.lock_free_since = now
        s.lock_is_known = True
        s.lock_holder, s.lock_is_mine = event.holder, event.mine
        if self.coordinator is None:
            self.takeover.poll(now)

    def _lock_done(self, event: e.LockDone, now: float) -> None:
        if self.coordinator is None:
            self.takeover.lock_done(event.outcome, now)
        elif event.outcome is e.LockOutcome.HELD:
            self.state.lock_holder, self.state.lock_is_mine = self.state.node, True

    def _coordination_seen(self, event: e.CoordinationSeen, now: float) -> None:
        s = self.state
        s.coordination_up = event.connected
        # What the service last said of the lock stands until it says more: only changes are reported.
        if event.connected and self.coordinator is None:
            s.lock_free_since = max(s.lock_free_since, now)
            self.takeover.poll(now)

    # -------------------------------------------------------------------------- peers and disk

    def _peer_up(self, event: e.PeerUp, now: float) -> None:
        s = self.state
        s.peers_up.add(event.node)
        s.peers_refused.discard(event.node)
        c = self.coordinator
        if c is not None and (p := c.progress.get(event.node)) is not None:
            c.replication.close_snapshot(p)
            p.probe()
            c.replication.send(p, now)
            # One that was not reached at takeover may still know that this disk rolled back (R13).
            s.send(event.node, [m.INQUIRE, s.tablet, c.epoch, c.epoch], urgent=True)

    def _peer_down(self, event: e.PeerDown, now: float) -> None:
        s = self.state
        s.peers_up.discard(event.node)
        if event.refused:
            s.peers_refused.add(event.node)
        if self.coordinator is not None:
            self.coordinator.peer_down(event.node, now)
            if event.refused:
                self.coordinator.membership.tick(now)

    def _durable(self, event: e.Durable, now: float) -> None:
        was_stored = self.state.copy_is_stored
        self.state.stored(event.batch)
        if self.coordinator is not None:
            self.coordinator.stored(now)
            return
        self.follower.stored(now)
        if not was_stored:
            self.takeover.poll(now)  # a copy that is on disk may be named

    @property
    def has_announcement(self) -> bool:
        """Whether some replica has not been told the commit point: ``Announce`` is to follow at once."""
        return self.coordinator is not None and self.coordinator.has_announcement

    def _announce(self, event: e.Announce, now: float) -> None:
        if self.coordinator is not None:
            self.coordinator.announce()

    def _log_read(self, event: e.LogRead, now: float) -> None:
        if self.coordinator is not None:
            self.coordinator.replication.log_read(event, now)

    def _rows_read(self, event: e.RowsRead, now: float) -> None:
        if self.coordinator is not None:
            self.coordinator.rows_read(event, now)

    def _advance_version(self, event: e.AdvanceVersion, now: float) -> None:
        if self.coordinator is not None:
            self.coordinator.advance_version(event.version, now)

    def _snapshot_chunk(self, event: e.SnapshotChunk, now: float) -> None:
        if self.coordinator is not None:
            self.coordinator.replication.snapshot_chunk(event, now)

    def _snapshot_failed(self, event: e.SnapshotFailed, now: float) -> None:
        c = self.coordinator
        p = c.progress.get(event.node) if c is not None else None
        if c is not None and p is not None and p.snapshot_id == event.snapshot_id:
            c.replication.close_snapshot(p)
            p.probe()

    def _corrupted(self, event: e.Corrupted, now: float) -> None:
        """Rule R14: stop serving this tablet and rebuild the copy, under a new copy_id, from a peer."""
        s = self.state
        was_coordinator = self.coordinator is not None
        if self.is_only_copy:
            self._step_down("its stored data is damaged", now)
            self.reads.refuse(_MOVED)
            s.note("error", f"stored data of the only in-sync copy is damaged; it is kept: {event.reason}")
            s.stop(f"damaged, and no other copy is in sync (`ackord recover inspect`): {event.reason}")
            return
        s.note("error", f"stored data is damaged, the copy is rebuilt: {event.reason}")
        self._step_down("its stored data is damaged", now)
        if was_coordinator or s.lock_is_mine:
            s.out.append(e.ReleaseLock())
            s.lock_is_mine, s.lock_holder = False, None
        self.reads.refuse(_MOVED)
        self.takeover.abandon()
        s.discard_copy(filling=False)
        self.follower.forget(now)

    @property
    def is_only_copy(self) -> bool:
        """Whether no other copy is in sync."""
        s = self.state
        if self.coordinator is not None:
            return self.coordinator.membership.required <= {s.me}
        return s.descriptor is not None and s.descriptor.in_sync == {s.me}

    def _disk_slow(self, event: e.DiskSlow, now: float) -> None:
        self.state.unfit_reason = event.reason
        self._tick_at = now

    def _disk_well(self, event: e.DiskWell, now: float) -> None:
        self.state.unfit_reason = None

    # ------------------------------------------------------------------------- asked from above

    def _hand_over(self, event: e.HandOver, now: float) -> None:
        if self.coordinator is not None:
            self.coordinator.membership.hand_over(event.successor, "asked to", now)

    def _leave(self, event: e.Leave, now: float) -> None:
        self.state.is_leaving = True
        if self.coordinator is not None:
            self.coordinator.membership.hand_over(None, "the node stops", now)
        self._tick(e.Tick(), now)

    @property
    def has_left(self) -> bool:
        """After ``Leave``: nothing depends on this node any more."""
        return self.coordinator is None and not self.state.is_in_sync

    def _writes(self, event: e.Writes, now: float) -> None:
        s = self.state
        if self.coordinator is not None:
            self.coordinator.take_writes(event, now)
            return
        known = self.coordinator_hint
        where = {"coordinator": known} if known is not None else {}
        refusal = error_to_wire(
            Unavailable(f"{s.node} does not coordinate this tablet", reason="not_coordinator", **where)
        )
        for group in event.groups:
            s.out.append(e.Reply(group.request, None, [refusal] * len(group.ops)))

    @property
    def is_about_to_coordinate(self) -> bool:
        """Handed the tablet, or deciding on it, or settling: writes may be held for a moment, not refused."""
        if self.coordinator is not None:
            return not self.coordinator.is_active
        return self.takeover.hurry or self.takeover.is_barring

    @property
    def coordinator_hint(self) -> str | None:
        """The other node that coordinates the tablet or is about to, as far as this replica knows."""
        s = self.state
        recorded = s.descriptor.coordinator if s.descriptor is not None else None
        known = s.handed_to or self.follower.leader or recorded
        return known if known != s.node else None

    def _tick(self, event: e.Tick, now: float) -> None:
        timing = self.state.config.timing
        is_idle = self.follower.lease_until > now and not self.state.is_leaving and not self.state.tells_wall
        self._tick_at = now + (timing.idle_interval if is_idle else timing.beacon_interval)
        if event.wall_ms:
            self.state.wall_read(event.wall_ms, now)
        self.reads.refuse(_MOVED, now)
        self.holding.tick(now)
        if self.coordinator is not None:
            self.coordinator.tick(now)
        else:
            self.follower.tick(now)
            self.takeover.poll(now)

    def check_invariants(self) -> None:
        check_invariants(self)


_FROM_COORDINATOR = frozenset((m.APPEND, m.BEACON, m.COMMIT, m.SNAPSHOT))
_MOVED = error_to_wire(Unavailable("this replica may not answer now", reason="no_lease", retry_after_ms=20))
