"""Rule R19 in the roles of a replica: who may be granted a hold, and what follows once holders have answered.

A hold needs the same right as an answer (R5, R6), and lasts no longer: whoever waits out this replica's lease or
authority has then waited out its holders too. A key that a pending entry touches is granted to nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ackord_node.core.effects import HolderSaid, HoldsWanted, Reply, Responder
from ackord_node.core.holders import NEVER, Hold, longest_ms
from ackord_node.core.membership import Drain

if TYPE_CHECKING:
    from ackord_node.core.replica import Replica


class Held:
    """What one request was granted: the keys in ``places``, which are indices into it."""

    __slots__ = ("grant", "places")

    def __init__(self, grant: list[Any], places: set[int]) -> None:
        self.grant = grant  # [hold's number, seconds, version as of which the rows are read]
        self.places = places


class Holding:
    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    @property
    def is_recorded(self) -> bool:
        """A later run of the process finds on disk how long it must wait for clients of this one."""
        s = self._replica.state
        return s.hold_ms_durable >= longest_ms(s.holders)

    def wanted(self, event: HoldsWanted, now: float) -> None:
        s = self._replica.state
        if s.hold_ms < longest_ms(s.holders):
            s.hold_ms = longest_ms(s.holders)
            s.want_meta()

    def _right_until(self, now: float) -> float:
        """Until when this replica may answer reads, and so let clients answer for it."""
        replica = self._replica
        if not replica.may_read(now):
            return NEVER
        c = replica.coordinator
        if c is None:
            return replica.follower.lease_until
        return c.authority() if c.membership.drain is Drain.NO else NEVER

    def hold(self, holder: Responder, keys: list[bytes], now: float) -> Held | None:
        """Registers the holder of these keys, whose rows are to be read after this, in the same step. None: it is
        granted nothing, and the rows are only read."""
        s = self._replica.state
        if not self.is_recorded:
            return None
        granted = s.holders.grant(holder, self._right_until(now), now)
        if granted is None:
            return None
        hold, seconds = granted
        pending = s.overlay.pending
        places = {at for at, key in enumerate(keys) if key not in pending and s.holders.hold(hold, key)}
        return Held([hold.number, seconds, s.commit_version], places)

    def keeps(self, key: bytes, row: bytes | None) -> bool:
        """Whether the row that was read may be kept: none that a reading of the clock, perhaps a pending one, hides;
        of one that will expire it is noted when (rule R20)."""
        s = self._replica.state
        expires_ms = 0 if row is None else s.clock.expiry_of(row)
        if expires_ms:
            s.holders.expires(key, expires_ms)
        return not expires_ms or expires_ms > s.clock.at_end

    def said(self, event: HolderSaid, now: float) -> None:
        s = self._replica.state
        s.holders.answered(event.holder, event.number, event.seq)
        renewed = s.holders.renew(event.holder, event.number, self._right_until(now), now)
        s.out.append(Reply(event.request, None, [_grant_of(renewed)]))
        self._act(now)

    def tick(self, now: float) -> None:
        holders = self._replica.state.holders
        if holders.wake_at <= now or holders.bound is not None:
            holders.tick(now)
        self._act(now)

    def _act(self, now: float) -> None:
        """What waited for holders may be confirmed."""
        holders = self._replica.state.holders
        if not holders.is_lifted:
            return
        holders.is_lifted = False
        if self._replica.coordinator is not None:
            self._replica.coordinator.stored(now)
        else:
            self._replica.follower.stored(now)


def _grant_of(renewed: tuple[Hold, float] | None) -> list[Any] | None:
    if renewed is None:
        return None
    hold, seconds = renewed
    return [hold.number, seconds]
