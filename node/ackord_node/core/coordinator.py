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
        self._last_tick = now
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
        return (
            self.is_active
            and self._s.commit >= self.start
            and not self.membership.has_ended_reads
            and self.authority() > now
        )

    def _beacon(self, now: float) -> None:
        if self.membership.has_ended_reads:
            return
        self._beacon_at = now + self._s.config.timing.beacon_interval
        for node in self.progress:
            self._send_beacon(self.progress[node], now)

    def _send_beacon(self, p: Progress, now: float) -> None:
        s = self._s
        request, seconds, grantee = -1.0, 0.0, 0
        if p.grant is not None:
            request, seconds, grantee, _ = p.grant
            p.grant = None
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
        if end < p.confirmed and sent_at > p.confirmed_at:
            self.membership.expel(p, f"its log ends at {end}, but it had confirmed {p.confirmed}")
        elif request >= 0:
            self._grant(p, Member(node, copy_id), request, now)

    def _grant(self, p: Progress, member: Member, request: float, now: float) -> None:
        """Rule R6: a lease from the holder's own send time on, never longer than the authority."""
        timing = self._s.config.timing
        if not self.membership.may_grant(member, p) or not self.may_answer(now):
            return
        if p.confirmed < self.start:
            return  # it shows first, in this epoch, that it holds what an in-sync copy must (R13)
        seconds = min(timing.lease, self.authority() - now)
        p.granted_incarnation = p.incarnation
        had_one = p.granted_raw > now + timing.lease / 2
        p.granted_raw = max(p.granted_raw, now + seconds)
        p.granted_until = max(p.granted_until, now + seconds * timing.scale)
        p.grant = (request, seconds, p.incarnation, now)
        if not had_one:
            self._send_beacon(p, now)

    def _heard(self, node: str, incarnation: int, message: m.Message, now: float) -> Progress | None:
        """The sender's progress if the answer is of this epoch (rule R3)."""
        p = self.progress.get(node)
        if p is None or not self.is_active or message[2] != self.epoch:
            return None
        copy_id = message[3]
        if p.copy_id != copy_id or p.incarnation != incarnation:
            if p.snapshot_id and p.incarnation == incarnation:
                p.copy_id, p.confirmed, p.authority = copy_id, 0, NEVER  # the copy that the snapshot fills
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
        index = s.durable
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
        timing = self._s.config.timing
        if now - self._last_tick > timing.confirm_timeout / 2:
            for p in self.progress.values():  # this process was paused: silence proves nothing of others
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

    @property
    def wake_at(self) -> float:
        timing = self._s.config.timing
        return min(self._beacon_at, self._last_tick + timing.beacon_interval / 2, self.expiry.wake_at)
