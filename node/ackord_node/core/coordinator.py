"""The coordinator of a tablet: settle, replicate, commit, beacon, grant, serve.

Rules: R4 (commit: every copy of in-sync union proposed confirmed, and the minimum is there), R5 (authority), R6
(grants never outlast the authority), R8 (serves and grants only once the tail it found is committed), R13 (asks the
members it reaches whether its own disk rolled back). Membership changes are in membership.py.
"""

from __future__ import annotations

from typing import Any

from ackord.errors import Unavailable
from ackord_node.core import messages as m
from ackord_node.core.effects import RowsRead, Writes
from ackord_node.core.expiry import Expiry
from ackord_node.core.membership import Membership
from ackord_node.core.progress import NEVER, Progress
from ackord_node.core.reads import Reads
from ackord_node.core.replication import Replication
from ackord_node.core.state import TabletState
from ackord_node.core.takeover import Won
from ackord_node.core.types import Member
from ackord_node.core.writes import WritePath

FOREVER = float("inf")
ALL_WELL = m.FLAG_COORDINATION | m.FLAG_FIT | m.FLAG_STAYS


class Coordinator:
    def __init__(self, state: TabletState, won: Won, reads: Reads, now: float) -> None:
        self._s = state
        self.epoch = won.descriptor.epoch
        self.start = state.log.end  # R8: the tail that must be committed first
        self.is_active = False  # its epoch is on disk and its members were asked
        self._reads = reads
        self.progress = {
            node: Progress(node, next=state.log.end + 1) for node in state.replicas if node != state.node
        }
        self.membership = Membership(state, won, self.start, self.progress, now)
        self.replication = Replication(state, self.epoch, self.progress)
        self.expiry = Expiry(state, self.progress, self._append)
        self.writes = WritePath(state, reads, self.expiry)
        self._asked_at = now
        self._unanswered = {node for node in self.progress if node in state.peers_up}
        self._beacon_at = now
        self._beaconed, self._still_at = (
            -1,
            now,
        )  # the commit point at the last round of beacons, and since when
        self._last_tick = self._planned = now
        self.resign_reason: str | None = None
        for node in self.progress:
            self.progress[node].heard_at = now
            state.send(node, [m.INQUIRE, state.tablet, self.epoch, self.epoch], urgent=True)

    # ------------------------------------------------------------------------------- settling

    def inquire_answer(self, node: str, message: m.Message, now: float) -> None:
        """Rule R13: a member that knows a later commit point than this log's end shows that this disk lost
        entries."""
        if message[2] != self.epoch:
            return
        is_older = message[8] < self._s.recovered  # it will start anew: an operator gave up what it knows
        if message[7] > self._s.log.end and not is_older:
            self.resign_reason = (
                f"{node} knows commit point {message[7]}, but the own log ends at {self._s.log.end}: "
                "the own disk rolled back"
            )
            return
        self._unanswered.discard(node)
        self._settle(now)

    def peer_down(self, node: str, now: float) -> None:
        """It cannot be reached, so there is no answer to wait for."""
        self._unanswered.discard(node)
        self._settle(now)

    def _settle(self, now: float) -> None:
        s = self._s
        if self.is_active or s.promised_durable < self.epoch:
            return
        if self._unanswered and now - self._asked_at < s.config.timing.inquiry_timeout:
            return
        self.is_active = True
        self._beacon(now)
        self.replication.send_all(now)
        self._try_commit(now)

    # ------------------------------------------------------------------------------- authority

    def authority(self) -> float:
        """Rule R5: when the right to answer ends; infinite if there is no other member. None before the set was
        first complete: until then any replica may take over, whatever this one's leases say (R2)."""
        if self.membership.descriptor.is_newborn:
            return NEVER
        until = FOREVER
        for member in self.membership.required:
            if member.node != self._s.node:
                p = self.progress[member.node]
                until = min(until, p.authority if p.copy_id == member.copy_id else NEVER)
        return until

    def may_answer(self, now: float) -> bool:
        """Rules R5, R8 and R7b: reads, negative answers and grants."""
        return self._answers_until() > now

    def _answers_until(self) -> float:
        if self.is_active and self._s.commit >= self.start and not self.membership.has_ended_reads:
            return self.authority()
        return NEVER

    def _beacon(self, now: float) -> None:
        if self.membership.has_ended_reads:
            return
        self._beacon_at = now + self._s.config.timing.beacon_interval
        if self._beaconed != self._s.commit:
            self._beaconed, self._still_at = self._s.commit, now
        is_still = now - self._still_at >= self._s.config.timing.lease
        for p in self.progress.values():
            # A beacon of the tablet's own carries the commit point to one that missed it; where more follows, that
            # does so.
            if not p.is_shared or (is_still and p.beaconed != self._s.commit):
                self._send_beacon(p, now)

    def _send_beacon(self, p: Progress, now: float) -> None:
        s = self._s
        request, seconds, grantee = -1.0, 0.0, 0
        if p.grant is not None:
            request, seconds, grantee, _ = p.grant
            p.grant = None
        p.beaconed = s.commit
        s.send(
            p.node,
            [
                m.BEACON,
                s.tablet,
                self.epoch,
                now,
                s.commit,
                self.start,
                request,
                seconds,
                grantee,
                s.recovered,
            ],
            urgent=True,
        )

    def beacon_confirm(self, node: str, incarnation: int, message: m.Message, now: float) -> None:
        p = self._heard(node, incarnation, message, now)
        if p is None:
            return
        _, _, _, copy_id, sent_at, request, end, flags = message[:8]
        p.wall_ms = message[8] if len(message) > 8 else 0
        p.authority = max(p.authority, sent_at + self._s.config.timing.lease)
        p.flags = flags
        if flags & m.FLAG_HOLDERS and p.behind_since != NEVER:
            p.behind_since = now  # rule R19: it waits for clients, which is bounded, and is not slow itself
        if end < p.confirmed:
            # Of a beacon that left before its latest confirmation came it decides nothing, and shows nothing (R13).
            if sent_at > p.confirmed_at:
                self.membership.expel(p, f"its log ends at {end}, but it had confirmed {p.confirmed}")
            return
        if flags & m.FLAG_SHARES:
            p.enrolled = incarnation
        member = Member(node, copy_id)
        if request >= 0:
            self._grant(p, member, request, now)
        if member not in self.membership.in_sync:
            self.membership.advance(now)  # its promise is newest, so that it covers what was granted (R10)

    def _grant(self, p: Progress, member: Member, request: float, now: float) -> None:
        had_one = p.granted_raw > now + self._s.config.timing.lease / 2
        seconds = self._granted(p, member, now)
        if seconds <= 0:
            return
        p.grant = (request, seconds, p.incarnation, now)
        if not had_one:
            self._send_beacon(p, now)

    def _granted(self, p: Progress, member: Member, now: float) -> float:
        """Rule R6: for how long the member gets a lease, never longer than the authority; 0.0: it gets none."""
        timing = self._s.config.timing
        until = self._answers_until()
        if until <= now or not self.membership.may_grant(member, p):
            return 0.0
        if p.confirmed < self.start:
            return 0.0  # it shows first, in this epoch, that it holds what an in-sync copy must (R13)
        seconds = min(timing.lease, until - now)
        p.granted_incarnation = p.incarnation
        p.granted_raw = max(p.granted_raw, now + seconds)
        p.granted_until = max(p.granted_until, now + seconds * timing.scale)
        return seconds

    # -------------------------------------------------------------- beacons of the node pair

    def shared_with(self, node: str) -> Progress | None:
        """The replica there, if a beacon of the node pair may stand for this tablet's: this run of it confirmed one
        of the tablet's own, which showed what it holds (R13), and reads are not ended (R7b)."""
        p = self.progress.get(node)
        if p is None or not p.enrolled or self.membership.has_ended_reads:
            return None
        return p

    def shared_confirm(
        self, p: Progress, member: Member, sent_at: float, flags: int, wall_ms: int, now: float
    ) -> float:
        """The member confirmed a beacon of the node pair for this tablet too: for how long it gets a lease."""
        p.heard_at = now
        p.is_shared = True
        p.wall_ms = wall_ms
        p.flags = flags
        p.authority = max(p.authority, sent_at + self._s.config.timing.lease)
        return self._granted(p, member, now)

    def _is_quiet(self) -> bool:
        """Whether nothing is under way, and no member of the tablet needs a beacon of the tablet's own."""
        s, membership = self._s, self.membership
        if s.commit != s.log.end or not self.is_active or self.writes.pending_count:
            return False
        if not membership.is_settled or len(membership.in_sync) != len(self.progress) + 1:
            return False
        for p in self.progress.values():
            if not p.is_shared or p.beaconed != s.commit or p.told != s.commit or p.probing or p.snapshot_id:
                return False
            if p.revoking or p.leaving or p.expelled or p.flags & ALL_WELL != ALL_WELL:
                return False
        return True

    def _heard(self, node: str, incarnation: int, message: m.Message, now: float) -> Progress | None:
        """The sender's progress if the answer is of this epoch (rule R3)."""
        p = self.progress.get(node)
        if p is None or not self.is_active or message[2] != self.epoch:
            return None
        copy_id = message[3]
        if p.copy_id != copy_id or p.incarnation != incarnation:
            if p.snapshot_id and p.incarnation == incarnation:
                p.copy_id, p.confirmed, p.authority = copy_id, 0, NEVER  # the copy that the snapshot fills
                p.enrolled, p.is_shared = 0, False
            else:
                self.replication.close_snapshot(p)
                p.became(copy_id, incarnation)
        p.heard_at = now
        return p

    # --------------------------------------------------------------------------------- commit

    def confirm(self, node: str, incarnation: int, message: m.Message, now: float) -> None:
        p = self._heard(node, incarnation, message, now)
        if p is None or message[4] > self._s.log.end:
            return
        p.confirm(message[4], now, self._s.log.end)
        self._try_commit(now)
        self.replication.send(p, now)
        if not self.membership.is_member(p):
            self.membership.advance(now)

    def mismatch(self, node: str, incarnation: int, message: m.Message, now: float) -> None:
        p = self._heard(node, incarnation, message, now)
        if p is not None and not self.replication.mismatch(p, message[4], message[5], now):
            self.membership.expel(p, f"its log does not hold entry {message[4]}, which it had confirmed")

    def snapshot_taken(self, node: str, incarnation: int, message: m.Message, now: float) -> None:
        p = self._heard(node, incarnation, message, now)
        if p is not None:
            self.replication.snapshot_taken(p, message[4], message[5], now)

    def leave(self, node: str, incarnation: int, message: m.Message, now: float) -> None:
        p = self._heard(node, incarnation, message, now)
        if p is not None:
            self.membership.leave(p, incarnation, now)

    def _try_commit(self, now: float) -> None:
        """Rule R4."""
        s = self._s
        if not self.is_active or not self.membership.has_minimum:
            return
        index = s.durable if s.holders.bound is None else min(s.durable, s.holders.bound)  # rule R19
        for member in self.membership.required:
            if member.node != s.node:
                p = self.progress[member.node]
                index = min(index, p.confirmed if p.copy_id == member.copy_id else 0)
        before = s.commit
        if s.commit_to(index):
            self.writes.advance(s.log.span(before + 1, index))
            self._reads.advance()

    @property
    def has_announcement(self) -> bool:
        commit = self._s.commit
        for p in self.progress.values():  # a plain loop: this is asked after every step
            if p.told >= commit:
                continue
            if self._can_be_told(p):
                return True
        return False

    def _can_be_told(self, p: Progress) -> bool:
        return p.next > self._s.log.end and not p.probing and p.node in self._s.peers_up

    def announce(self) -> None:
        """A replica to which nothing else was sent with the commit point learns it at once (rule R12)."""
        s = self._s
        for p in self.progress.values():
            if p.told < s.commit and self._can_be_told(p):
                p.told = s.commit
                s.send(p.node, [m.COMMIT, s.tablet, self.epoch, s.commit], urgent=True)

    # --------------------------------------------------------------------------------- driving

    def take_writes(self, event: Writes, now: float) -> None:
        refusal = self._write_refusal()
        if refusal is not None:
            self.writes.refuse_all(event, refusal)
            return
        self.writes.take(event, self.epoch, self.may_answer(now), now)
        self.writes.advance([])
        self.replication.send_all(now)

    def _write_refusal(self) -> Unavailable | None:
        if not self.is_active:
            return Unavailable("the new coordinator is settling", reason="settling", retry_after_ms=20)
        return self.membership.write_refusal()

    def _append(self, groups: list[Any]) -> bool:
        """An entry of the coordinator's own; False if none may be appended now."""
        s = self._s
        if self._write_refusal() is not None or s.commit < self.start:
            return False
        self.writes.append_own(groups, self.epoch)
        return True

    def rows_read(self, event: RowsRead, now: float) -> None:
        self.expiry.rows_read(event, self._reads.stored_row)
        self.replication.send_all(now)

    def advance_version(self, version: int, now: float) -> None:
        """A read as of ``version`` waits until no write can get it any more."""
        s = self._s
        if version > s.last_version and self._write_refusal() is None:
            self.writes.append_own([[None, 0]], self.epoch, version)
            self.replication.send_all(now)

    def stored(self, now: float) -> None:
        self._settle(now)
        self._try_commit(now)

    def tick(self, now: float) -> None:
        if self._was_paused(now):
            for p in self.progress.values():
                p.heard_at = now
                p.behind_since = now if p.behind_since != NEVER else NEVER
        self._last_tick = now
        self._settle(now)
        if not self.is_active:
            return
        if now >= self._beacon_at:
            self._beacon(now)
        self.writes.expire(now)
        self.expiry.tick([x.node for x in sorted(self.membership.required) if x.node != self._s.node], now)
        self.replication.tick(now)
        self.membership.tick(now)
        self._try_commit(now)
        self._reads.advance()
        self._planned = self.wake_at

    @property
    def wake_at(self) -> float:
        timing = self._s.config.timing
        if self._is_quiet():  # once in a while, for what may have changed otherwise
            rare = self._last_tick + timing.idle_interval
            return min(rare, self.expiry.wake_at, self.expiry.reads_at)
        soon = self._last_tick + timing.beacon_interval / 2
        if not self.is_active:
            inquired_at = self._asked_at + timing.inquiry_timeout
            return inquired_at if inquired_at > self._last_tick else soon
        return min(self._beacon_at, soon, self.expiry.wake_at)

    def _was_paused(self, now: float) -> bool:
        """Whether the whole process stood still since the last tick: silence proves nothing of others then."""
        timing = self._s.config.timing
        attentive = max(self._last_tick, self._planned - timing.beacon_interval / 2)
        return now - attentive > timing.confirm_timeout / 2 or self._s.paused_at > self._last_tick
