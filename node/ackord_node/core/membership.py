"""Changes of the in-sync set, and the coordinator's planned end.

Rules: R1 (one change at a time; an unknown outcome stays unknown until the version changed), R4 (the proposed set
counts from before its compare-and-set is sent), R7b (drain: stop granting, serve until every lease has run out, then
end reads and beacons and release the successor's promise), R9 (remove), R10 (add, swap), R11 (never below the
minimum).
"""

from __future__ import annotations

from enum import Enum

from ackord.errors import Unavailable
from ackord_node.core import messages as m
from ackord_node.core.effects import AcquireLock, ReadDescriptor, ReleaseLock, Swap, SwapOutcome
from ackord_node.core.progress import NEVER, Progress
from ackord_node.core.state import TabletState
from ackord_node.core.takeover import Won
from ackord_node.core.types import Descriptor, Member


class Drain(Enum):
    NO = "no"
    LEASES = "leases"  # grants nothing, serves and commits until the granted leases ran out
    TAIL = "tail"  # takes no writes, answers no reads, waits for its last entries
    DONE = "done"  # the successor's promise is released


class Membership:
    def __init__(
        self, state: TabletState, won: Won, start: int, progress: dict[str, Progress], now: float
    ) -> None:
        self._s = state
        self._start = start  # the log's length at takeover
        self.descriptor = won.descriptor
        self.version = won.version
        self.in_sync = won.descriptor.in_sync
        self.proposed: frozenset[Member] | None = None
        self._progress = progress
        self._ticket = 0
        self._asked_at = NEVER
        self._is_settling = False
        self.drain = Drain.NO
        self._successor: str | None = None
        self._drain_at = NEVER
        self.deposed_reason: str | None = None
        self._lock_asked_at = NEVER
        for member in self.in_sync:
            if member.node in progress:
                progress[member.node].in_sync_since = now

    # ---------------------------------------------------------------------------- what counts

    @property
    def required(self) -> frozenset[Member]:
        """Whose confirmation counts: the union rule (R4, R5, R10)."""
        return self.in_sync if self.proposed is None else self.in_sync | self.proposed

    @property
    def has_minimum(self) -> bool:
        return len(self.in_sync) >= self.descriptor.min_in_sync

    @property
    def has_ended_reads(self) -> bool:
        return self.drain is not Drain.NO and self.drain is not Drain.LEASES

    def is_member(self, p: Progress) -> bool:
        """Whether the set holds this copy and is not changing: then nothing that it confirms lets anybody in."""
        return self.proposed is None and p.copy_id is not None and Member(p.node, p.copy_id) in self.in_sync

    @property
    def is_settled(self) -> bool:
        """No change, no hand-over and no lock to be taken, now or soon."""
        s = self._s
        return (
            self.proposed is None
            and self.drain is Drain.NO
            and s.unfit_reason is None
            and not s.is_leaving
            and s.coordination_up
            and s.lock_holder == s.node == self.descriptor.replicas[0]
        )

    def may_grant(self, member: Member, p: Progress) -> bool:
        return (
            self.drain is Drain.NO
            and member in self.in_sync
            and (self.proposed is None or member in self.proposed)
            and not p.revoking
            and not p.expelled
        )

    def write_refusal(self) -> Unavailable | None:
        """Why no write can be taken now (rule R11); None if one can."""
        d, s = self.descriptor, self._s
        if self.has_ended_reads:
            hint = {"coordinator": s.handed_to} if s.handed_to is not None else {}
            return Unavailable(
                "the coordinator is handing over", reason="not_coordinator", retry_after_ms=20, **hint
            )
        if len(self.in_sync) < d.min_in_sync:
            return Unavailable(
                f"{len(self.in_sync)} copies are in sync, min_in_sync is {d.min_in_sync}",
                reason="minimum",
                retry_after_ms=250,
            )
        at_minimum = len(self.in_sync) == d.min_in_sync
        if s.unfit_reason is not None and not self._can_spare_itself():
            return Unavailable(f"node {s.node}: {s.unfit_reason}", reason="full", retry_after_ms=500)
        lost = sorted(x.node for x in self.in_sync if x.node != s.node and self._progress[x.node].revoking)
        if at_minimum and lost:
            return Unavailable(
                f"{lost[0]} does not confirm and min_in_sync={d.min_in_sync} allows no removal",
                reason="minimum",
                retry_after_ms=250,
            )
        return None

    # -------------------------------------------------------------------------------- changes

    def tick(self, now: float) -> None:
        self._keep_lock(now)
        self._judge_members(now)
        self.advance(now)
        self._balance(now)
        self._drive_drain(now)

    def expel(self, p: Progress, why: str) -> None:
        """Rule R13. A replica that is not required just has to be fed again from where it is."""
        if any(member.node == p.node for member in self.required):
            if not p.expelled:
                self._s.note("error", f"expels {p.node}: {why} (rule R13)")
            p.expelled = True
        p.confirmed = 0
        p.probe()

    def leave(self, p: Progress, incarnation: int, now: float) -> None:
        """The member gave up its lease for good and asks to be removed: there is nothing to wait out, unless
        this comes late and a later run of the member was granted one since."""
        p.leaving = True
        if incarnation == p.granted_incarnation:
            p.granted_until, p.granted_raw = min(p.granted_until, now), min(p.granted_raw, now)
        p.grant = None
        self.advance(now)

    def _is_lost(self, member: Member, now: float) -> bool:
        """Whether a member must go: dead, silent, behind, another copy, expelled, leaving or unfit."""
        p, timeout = self._progress[member.node], self._s.config.timing.confirm_timeout
        if p.copy_id is not None and p.copy_id != member.copy_id:
            return True
        if p.expelled or p.leaving or member.node in self._s.peers_refused:
            return True
        if p.copy_id is not None and not p.flags & m.FLAG_FIT and p.authority != NEVER:
            return True
        return now - p.heard_at > timeout or (p.behind_since != NEVER and now - p.behind_since > timeout)

    def _judge_members(self, now: float) -> None:
        for member in sorted(self.in_sync):
            if member.node == self._s.node:
                continue
            p = self._progress[member.node]
            at_minimum = len(self.in_sync) <= self.descriptor.min_in_sync
            if at_minimum and p.confirmed >= max(self._s.commit, self._start):
                p.expelled = False  # nobody could take its place, and it was given everything again
            is_lost = self._is_lost(member, now)
            if is_lost and not p.revoking:
                self._s.note(
                    "warning", f"{member.node} is to leave the in-sync set: {self._why(member, now)}"
                )
            p.revoking = is_lost
            if not is_lost and now - p.in_sync_since > self._s.config.timing.rejoin_forget:
                p.pause = 0.0

    def _why(self, member: Member, now: float) -> str:
        p = self._progress[member.node]
        if p.copy_id is not None and p.copy_id != member.copy_id:
            return "it has another copy now"
        if p.expelled or p.leaving:
            return "it lost confirmed entries" if p.expelled else "it stops"
        if member.node in self._s.peers_refused:
            return "its process is gone"
        if now - p.heard_at > self._s.config.timing.confirm_timeout:
            return f"silent for {now - p.heard_at:.1f} s"
        return "its disk has no room or is too slow" if not p.flags & m.FLAG_FIT else "it confirms too slowly"

    def advance(self, now: float) -> None:
        """Proposes the next change that the rules allow, if none is under way."""
        if self.proposed is not None:
            self._settle(now)
            return
        if self.has_ended_reads:
            return
        wanted = self._removal(now) or self._addition(now)
        if wanted is not None:
            self.proposed = wanted
            self._send_swap(now)

    def _removal(self, now: float) -> frozenset[Member] | None:
        """Rule R9, and R10's swap where a removal alone would go below the minimum."""
        for member in sorted(self.in_sync):
            p = self._progress.get(member.node)
            if p is None or not (p.revoking or p.leaving) or p.granted_until > now:
                continue
            p.grant = None
            rest = self.in_sync - {member}
            if len(rest) >= self.descriptor.min_in_sync:
                return rest
            learner = self._learner(now, rest)
            if learner is not None:
                return rest | {learner}
        return None

    def _addition(self, now: float) -> frozenset[Member] | None:
        learner = self._learner(now, self.in_sync)
        return self.in_sync | {learner} if learner is not None else None

    def _learner(self, now: float, rest: frozenset[Member]) -> Member | None:
        """A replica that rule R10 lets in beside ``rest``: its promise covers the leases of members and, by rule R19,
        of this node's own clients."""
        s = self._s
        outstanding = max((q.granted_raw for q in self._progress.values()), default=NEVER)
        outstanding = max(outstanding, s.holders.latest_raw)
        for node in self.descriptor.replicas:
            p = self._progress.get(node)
            if p is None or p.copy_id is None or any(x.node == node for x in rest):
                continue
            learner = Member(node, p.copy_id)
            if learner in self.in_sync:
                continue  # the one that is to go
            wants = p.flags & m.FLAG_FIT and p.flags & m.FLAG_STAYS and not p.leaving
            if not wants or p.probing or now < p.rejoin_at:
                continue
            has_log = p.confirmed >= max(s.commit, self._start)
            if has_log and p.authority >= max(now, outstanding):
                return learner
        return None

    def _send_swap(self, now: float) -> None:
        assert self.proposed is not None
        self._ticket = self._s.next_ticket()
        self._asked_at = now
        self._is_settling = False
        self._s.out.append(Swap(-self._ticket, self.descriptor.with_in_sync(self.proposed), self.version))

    def swap_done(self, ticket: int, outcome: SwapOutcome, now: float) -> None:
        if ticket != -self._ticket or self.proposed is None:
            return
        if outcome is SwapOutcome.WON:
            self._won(now)
        else:  # lost may be an earlier try of the same change that was applied: the descriptor tells
            self._is_settling = True
            self._asked_at = now
            self._s.out.append(ReadDescriptor())

    def _settle(self, now: float) -> None:
        if self._is_settling and now - self._asked_at > self._s.config.timing.retry_interval:
            self._asked_at = now
            self._s.out.append(ReadDescriptor())

    def descriptor_seen(self, d: Descriptor, version: int, now: float) -> None:
        """Rule R1: a changed version settles; the same version lets the same change be sent again. ``d`` is the
        newest that was seen, so at least what this coordinator wrote itself."""
        if d.epoch > self.descriptor.epoch:
            self.deposed_reason = f"{d.coordinator or 'an operator'} took over"
        elif version == self.version:
            if self._is_settling:
                self._send_swap(now)
        elif d.in_sync == self.proposed:
            self._won(now)
        else:
            self.deposed_reason = "the descriptor was changed by somebody else"

    def _won(self, now: float) -> None:
        s = self._s
        assert self.proposed is not None
        gone, come = self.in_sync - self.proposed, self.proposed - self.in_sync
        self.in_sync, self.proposed = self.proposed, None
        self._is_settling = False
        self.version += 1
        self.descriptor = self.descriptor.with_in_sync(self.in_sync)
        s.descriptor, s.descriptor_version = self.descriptor, self.version
        s.want_meta()
        for member in sorted(gone):
            p = self._progress[member.node]
            if not p.leaving and p.copy_id == member.copy_id and not p.expelled:
                timing = s.config.timing
                p.pause = min(max(2 * p.pause, timing.rejoin_pause), timing.rejoin_pause_max)
                p.rejoin_at = now + p.pause
            if p.expelled:
                p.expelled = False
                p.next = s.log.end + 1
                p.probe()
            p.revoking = False
            p.granted_until = p.granted_raw = NEVER
        for member in sorted(come):
            self._progress[member.node].in_sync_since = now
            self._progress[member.node].revoking = False
        names = ", ".join(sorted(x.node for x in self.in_sync))
        s.note("info", f"in-sync set is now {names} (epoch {self.descriptor.epoch})")

    # ----------------------------------------------------------------- lock, balance, hand-over

    def _keep_lock(self, now: float) -> None:
        """The lock only elects: a coordinator that lost it goes on, takes it again, and gives way if another
        node holds it."""
        s = self._s
        if not s.coordination_up or not s.lock_is_known or self.drain is not Drain.NO:
            return
        if s.lock_holder is None and now - self._lock_asked_at > s.config.timing.retry_interval:
            self._lock_asked_at = now
            s.out.append(AcquireLock())
        elif s.lock_holder not in (None, s.node):
            self.hand_over(s.lock_holder, f"{s.lock_holder} holds the lock", now)

    def _balance(self, now: float) -> None:
        """Coordinators stay spread: the first in the order of preference gets the tablet once it is well."""
        s = self._s
        if self.drain is not Drain.NO:
            return
        if s.is_leaving:
            self.hand_over(None, "the node stops", now)
        elif s.unfit_reason is not None:
            if self._can_spare_itself():
                self.hand_over(None, s.unfit_reason, now)
        elif not s.coordination_up:
            if self._successors() and any(p.revoking for p in self._progress.values()):
                self.hand_over(None, "a member must go and the coordination service cannot be reached", now)
        elif self.proposed is None:
            self._prefer(now)

    def _prefer(self, now: float) -> None:
        s = self._s
        for node in self.descriptor.replicas:
            if node == s.node:
                return
            if (
                node in self._successors()
                and now - self._progress[node].in_sync_since > s.config.timing.balance_delay
            ):
                self.hand_over(node, f"{node} is preferred", now)
                return

    def _successors(self) -> list[str]:
        """In-sync members that could coordinate, in order of preference."""
        wanted = m.FLAG_FIT | m.FLAG_STAYS | m.FLAG_COORDINATION
        found = []
        for node in self.descriptor.replicas:
            p = self._progress.get(node)
            member = self.descriptor.member_of(node)
            if p is None or member is None or p.copy_id != member.copy_id or p.revoking:
                continue
            if p.flags & wanted == wanted and node in self._s.peers_up:
                found.append(node)
        return found

    def _can_spare_itself(self) -> bool:
        """Whether writes could go on without this node (R11). If not, an unfit coordinator stays and goes on
        answering reads: a new epoch would have to be stored by its members, of which it would be one."""
        return len(self._successors()) >= self.descriptor.min_in_sync

    def _chosen(self) -> str | None:
        successors = self._successors()
        return self._successor if self._successor in successors else next(iter(successors), None)

    def hand_over(self, successor: str | None, why: str, now: float) -> None:
        if self.drain is Drain.NO:
            self._s.note("info", f"hands over to {successor or 'the next in preference'}: {why}")
            self.drain, self._successor, self._drain_at = Drain.LEASES, successor, now

    def _drive_drain(self, now: float) -> None:
        """Rule R7b."""
        s = self._s
        if self.drain is Drain.LEASES:
            for p in self._progress.values():
                p.grant = None
            if any(p.granted_until > now for p in self._progress.values()) or s.holders.latest > now:
                return
            is_vain = s.unfit_reason is not None and not self._can_spare_itself()
            if (is_vain or not self._successors()) and not s.is_leaving:
                self.drain = Drain.NO  # nobody could go on: stay
                return
            self.drain, self._drain_at = Drain.TAIL, now
            s.handed_to = self._chosen()
        if self.drain is Drain.TAIL:
            is_late = now - self._drain_at > s.config.timing.drain_commit_timeout
            if s.commit < s.log.end and not is_late:
                return
            self.drain = Drain.DONE
            s.handed_to = chosen = self._chosen()
            if chosen is not None:
                p = self._progress[chosen]
                s.send(chosen, [m.HANDOVER, s.tablet, self.descriptor.epoch, p.incarnation], urgent=True)
            s.out.append(ReleaseLock())
            s.lock_is_mine, s.lock_holder, s.lock_free_since = False, None, now
            self.deposed_reason = f"handed over to {chosen or 'nobody in particular'}"
