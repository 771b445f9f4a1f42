"""Becoming the coordinator: election by the lock, decision by the compare-and-set.

Rules: R2 (only an in-sync copy with the recorded copy_id; the old epoch is barred while it tries; epoch
max(descriptor, promised) + 1 and the old set without the old coordinator, unless that would be below the
minimum), R1 (an unknown outcome is settled only by a changed version), R7 (not while a promise runs), R13 (a
suspect copy first asks every in-sync member).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from ackord_node.core import messages as m
from ackord_node.core.effects import (
    AcquireLock,
    LockOutcome,
    ReadDescriptor,
    ReleaseLock,
    Swap,
    SwapOutcome,
)
from ackord_node.core.state import TabletState
from ackord_node.core.types import Descriptor


class Stage(Enum):
    IDLE = "idle"
    LOCKING = "locking"
    INQUIRING = "inquiring"  # only a suspect copy
    SWAPPING = "swapping"
    SETTLING = "settling"  # the outcome is unknown, or lost to somebody


@dataclass(slots=True)
class Won:
    """The takeover succeeded with this descriptor at this version."""

    descriptor: Descriptor
    version: int


class Takeover:
    """One attempt at a time. ``poll`` drives it; every method returns ``Won`` once it succeeded."""

    def __init__(self, state: TabletState) -> None:
        self._s = state
        self.stage = Stage.IDLE
        self._ticket = 0
        self._wanted: Descriptor | None = None
        self._base_version = -1
        self._asked_at = 0.0
        self._sent_at = 0.0  # of the last compare-and-set
        self._answers: dict[str, tuple[int, int]] = {}
        self._inquiring_since = 0.0
        self._yields_until = 0.0  # a suspect copy that gave way does not try before
        self.wake_at = 0.0
        self.hurry = False  # a coordinator handed over to this node: no rank delay

    @property
    def is_barring(self) -> bool:
        return self.stage in (Stage.SWAPPING, Stage.SETTLING)

    # ------------------------------------------------------------------------ may it, when

    def _may_try(self) -> bool:
        s = self._s
        d = s.descriptor
        if d is None or not s.descriptor_is_fresh or s.stopped_reason:
            return False
        if s.is_leaving or not s.coordination_up or not s.copy_is_stored:
            return False
        if d.is_newborn:
            return s.node in d.replicas
        return s.me in d.in_sync

    def _rank(self) -> int:
        """Place among those who may take over, in the descriptor's order of preference."""
        s = self._s
        d = s.descriptor
        assert d is not None
        names = [
            n for n in d.replicas if d.is_newborn or (d.member_of(n) and n != d.coordinator) or n == s.node
        ]
        return names.index(s.node) if s.node in names else len(names)

    def poll(self, now: float) -> None:
        """Moves on what time has made possible."""
        s = self._s
        if self.stage is Stage.IDLE:
            self._try_lock(now)
        elif self.stage is Stage.INQUIRING:
            if now - self._asked_at >= s.config.timing.retry_interval:
                self._inquire(now)
            self.wake_at = self._asked_at + s.config.timing.retry_interval
        elif now - self._asked_at >= s.config.timing.retry_interval:
            self._asked_at = now
            if self.stage is Stage.SETTLING:
                s.out.append(ReadDescriptor())
            self.wake_at = now + s.config.timing.retry_interval

    def _try_lock(self, now: float) -> None:
        s = self._s
        self.wake_at = now + 3600
        if not self._may_try():
            if s.lock_is_mine and s.descriptor_is_fresh and s.coordination_up:
                self._release(now)
            return
        if not s.lock_is_known or (s.lock_holder is not None and not s.lock_is_mine):
            return
        delay = 0.0 if self.hurry or s.lock_is_mine else self._rank() * s.config.timing.lock_rank_delay
        if s.unfit_reason is not None:
            delay += s.config.timing.unfit_delay  # better a coordinator that only reads than none
        due = max(s.promise_until, s.lock_free_since + delay, self._yields_until)
        if now < due:
            self.wake_at = due
            return
        self._asked_at = now
        if s.lock_is_mine:
            self._locked(now)
        else:
            self.stage = Stage.LOCKING
            self.wake_at = now + s.config.timing.retry_interval
            s.out.append(AcquireLock())

    def lock_done(self, outcome: LockOutcome, now: float) -> None:
        if self.stage is not Stage.LOCKING:
            return
        self.stage = Stage.IDLE
        if outcome is LockOutcome.HELD:
            self._s.lock_is_mine = True
            self._s.lock_holder = self._s.node
            self._locked(now)
        else:
            self.wake_at = now + self._s.config.timing.retry_interval
            self._s.lock_free_since = now

    def _locked(self, now: float) -> None:
        s = self._s
        if not self._may_try() or now < s.promise_until:
            self._release(max(now, s.promise_until))
        elif s.suspect:
            self._answers = {}
            self._inquiring_since = now
            self._inquire(now)
        else:
            self._swap(now)

    def _release(self, free_since: float) -> None:
        s = self._s
        s.out.append(ReleaseLock())
        s.lock_is_mine, s.lock_holder, s.lock_free_since = False, None, free_since
        self.stage = Stage.IDLE
        self.wake_at = free_since + s.config.timing.retry_interval

    # ------------------------------------------------------------------- suspect copies (R13)

    def _inquire(self, now: float) -> None:
        s = self._s
        assert s.descriptor is not None
        self.stage, self._asked_at = Stage.INQUIRING, now
        self.wake_at = now + s.config.timing.retry_interval
        for member in sorted(s.descriptor.in_sync):
            if member.node != s.node:
                s.send(member.node, [m.INQUIRE, s.tablet, s.promised, s.incarnation], urgent=True)
        self._judge_answers(now)

    def inquire_answer(self, node: str, message: m.Message, now: float) -> None:
        s = self._s
        if self.stage is not Stage.INQUIRING or s.descriptor is None:
            return
        member = s.descriptor.member_of(node)
        if member is not None and member.copy_id == message[3] and message[4] == s.incarnation:
            self._answers[node] = (message[5], message[6])
            self._judge_answers(now)

    def _judge_answers(self, now: float) -> None:
        s = self._s
        assert s.descriptor is not None
        if not self._may_try() or now < s.promise_until:
            self._release(
                max(now, s.promise_until)
            )  # meanwhile a coordinator was heard, or removed this copy
            return
        others = [x.node for x in s.descriptor.in_sync if x.node != s.node]
        own = (s.log.last_epoch, s.log.end)
        later = sorted(node for node in others if self._answers.get(node, own) > own)
        patience = 4 * s.config.timing.retry_interval
        if later:
            s.note(
                "warning", f"suspect copy leaves the takeover to {later[0]}, whose log is later than {own}"
            )
            self._give_way(now, patience)
        elif all(node in self._answers for node in others):
            self._swap(now)
        elif now - self._inquiring_since > patience:
            self._give_way(now, patience)  # a member that is not suspect may try

    def _give_way(self, now: float, patience: float) -> None:
        """For a while, also if others take the lock and free it meanwhile: two suspect copies that took it in turn
        would never leave it free for as long as the third, which is not, waits for its rank."""
        self._yields_until = now + patience
        self._release(now + patience)

    # ------------------------------------------------------------------------ the decision

    def _swap(self, now: float) -> None:
        s = self._s
        d = s.descriptor
        assert d is not None
        members = frozenset(x for x in d.in_sync if x.node != d.coordinator) | {s.me}
        if d.is_newborn:
            members = frozenset({s.me})
        elif len(members) < d.min_in_sync:
            members = d.in_sync | {s.me}
        self._wanted = replace(
            d,
            epoch=max(d.epoch, s.promised) + 1,
            coordinator=s.node,
            incarnation=s.incarnation,
            in_sync=members,
        )
        self._base_version = s.descriptor_version
        s.barred_below = self._wanted.epoch
        self._send_swap(self._wanted, now)

    def _send_swap(self, wanted: Descriptor, now: float) -> None:
        self._ticket = self._s.next_ticket()
        self.stage, self._asked_at = Stage.SWAPPING, now
        self._sent_at = now
        self.wake_at = now + self._s.config.timing.retry_interval
        self._s.out.append(Swap(self._ticket, wanted, self._base_version))

    def swap_done(self, ticket: int, outcome: SwapOutcome, now: float) -> Won | None:
        if ticket != self._ticket or self._wanted is None:
            return None
        if outcome is SwapOutcome.WON:
            return self._won(self._wanted, self._base_version + 1)
        self.stage, self._asked_at = Stage.SETTLING, now
        self._s.out.append(ReadDescriptor())
        return None

    def descriptor_seen(self, d: Descriptor, version: int, now: float) -> Won | None:
        """Rule R1: only a changed version settles what became of an attempt. ``d`` is the newest that was seen."""
        s = self._s
        if self._wanted is None:
            return None
        if d.epoch < self._wanted.epoch and version <= self._base_version:
            if self.stage is Stage.SETTLING and now - self._sent_at >= s.config.timing.retry_interval:
                self._send_swap(self._wanted, now)  # the same change of the same version: it can win once
            return None
        if d.coordinator == s.node and d.incarnation == s.incarnation and d.epoch == self._wanted.epoch:
            return self._won(d, version)
        self._gave_up(now)
        return None

    def _won(self, descriptor: Descriptor, version: int) -> Won:
        self.stage, self._wanted, self.hurry = Stage.IDLE, None, False
        self._s.barred_below = 0
        return Won(descriptor, version)

    def _gave_up(self, now: float) -> None:
        """Lost: the bar is lifted; the lock, if held, serves another attempt or is given back."""
        self.stage, self._wanted, self.hurry = Stage.IDLE, None, False
        self._s.barred_below = 0
        self.wake_at = now + self._s.config.timing.retry_interval
        self._s.lock_free_since = now

    def abandon(self) -> None:
        """A later epoch was obeyed, or the copy stopped: whatever was tried is over, unless its compare-and-set
        may still win, which the descriptor will show."""
        if not self.is_barring:
            self.stage = Stage.IDLE
        self.hurry = False
