"""Rule R19: the clients that keep rows of this copy, and what their keeping makes wait.

A *hold* is one client's right, by one stream, to answer from memory for the keys that it was granted here, until its
short lease ends. An entry that touches a held key may be confirmed by this copy (and counts as stored on the
coordinator's own) only once every holder of the key has said that it dropped it, or its lease has run out, waited out
as long as the slowest clock may take. ``bound`` is the highest index that may be confirmed; None: nothing waits.

A hold that lapsed is gone: the next grant makes another one, with another number, under which nothing of the old one
counts. While a holder owes an answer its lease is not extended beyond ``longest`` from when it was told, so one that
never answers delays a write by that much and no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from ackord_node.core.effects import Responder, Tell
from ackord_node.core.log import Entry
from ackord_node.core.types import Timing

if TYPE_CHECKING:
    from ackord.wire.limits import Limits

NEVER = float("-inf")
FOREVER = float("inf")
NUMBER_BITS = 20  # holds of one run of the process have numbers of their own
NUMBER_MASK = (1 << 63) - 1
RECALL_PART = 4  # of a hold that is full one key in so many is called back


def longest_hold(timing: Timing, limits: Limits) -> float:
    """A third of what a member has to confirm a write, so that a client that is frozen expels nobody."""
    return min(limits.cache_lease_ms / 1000, timing.confirm_timeout / 3, timing.lease)


def longest_ms(holders: Holders) -> int:
    """As it is recorded."""
    return math.ceil(holders.longest * 1000)


class Told:
    """A message to a holder that it has not answered: which keys to drop, for which entry (0: for none)."""

    __slots__ = ("at", "index", "keys")

    def __init__(self, index: int, keys: list[bytes], at: float) -> None:
        self.index = index
        self.keys = keys
        self.at = at


class Hold:
    __slots__ = ("holder", "is_full", "keys", "number", "raw", "seq", "telling", "told", "until")

    def __init__(self, holder: Responder, number: int) -> None:
        self.holder = holder
        self.number = number
        self.raw = NEVER  # this clock, as granted: what ends this replica's own right must not come before it
        self.until = NEVER  # the same, scaled for drift: what is waited out
        self.keys: dict[bytes, None] = {}  # in order of their granting
        self.telling: dict[bytes, int] = {}  # key -> the last message about it that is not answered
        self.told: dict[int, Told] = {}  # by number, in order
        self.seq = 0
        self.is_full = False


class Holders:
    """``now`` is the time of the step that is under way. ``quiet_until``: an earlier run of the process may have made
    holds that last until then; nothing is confirmed before."""

    def __init__(
        self, incarnation: int, timing: Timing, limits: Limits, send: Callable[[Tell], None]
    ) -> None:
        self.by_key: dict[bytes, dict[Hold, None]] = {}
        self.bound: int | None = None
        self.is_lifted = False  # the bound rose: what waited may be confirmed
        self.longest = longest_hold(timing, limits)
        self.now = NEVER
        self.quiet_until = NEVER
        self.wake_at = FOREVER
        self.told_count = 0  # messages to holders
        self.lapsed_count = 0  # waits that ended because a lease did
        self._send = send
        self._first_number = incarnation << NUMBER_BITS
        self._made_count = 0
        self._scale = timing.scale
        self._rows_max = limits.cached_rows_count
        self._holds: dict[Responder, Hold] = {}
        self._expires: dict[bytes, int] = {}  # held keys whose rows expire, and when (rule R20)
        self._waits: dict[
            int, dict[tuple[int, int], None]
        ] = {}  # entry -> (hold's number, message) it waits for

    def restarted(self, hold_ms: int, now: float) -> None:
        """An earlier run of the process may have granted leases of ``hold_ms``."""
        if hold_ms:
            self.now = now
            self.quiet_until = now + hold_ms / 1000 * self._scale
            self._moved()

    @property
    def latest(self) -> float:
        """When the last hold ends, scaled: nobody else may act as if this replica's right had ended before."""
        return max((hold.until for hold in self._holds.values()), default=NEVER)

    @property
    def latest_raw(self) -> float:
        return max((hold.raw for hold in self._holds.values()), default=NEVER) if self._holds else NEVER

    @property
    def counts(self) -> tuple[int, int]:
        """Holds, and keys that somebody holds."""
        return len(self._holds), len(self.by_key)

    # ------------------------------------------------------------------------------- granting

    def grant(self, holder: Responder, right_until: float, now: float) -> tuple[Hold, float] | None:
        """The holder's hold, a new one if it has none, and for how many seconds from its own question it stands: no
        longer than this replica's own right (R6)."""
        hold = self._holds.get(holder)
        if hold is not None and hold.until <= now:
            self._end(hold)
            hold = None
        seconds = min(self.longest, right_until - now)
        if hold is not None and hold.told:
            oldest = next(iter(hold.told.values()))
            seconds = min(seconds, oldest.at + self.longest - now)
        if seconds <= 0:
            return None
        if hold is None:
            self._made_count += 1
            hold = Hold(holder, (self._first_number + self._made_count) & NUMBER_MASK)
            self._holds[holder] = hold
        hold.raw = max(hold.raw, now + seconds)
        hold.until = max(hold.until, now + seconds * self._scale)
        self.wake_at = min(self.wake_at, hold.until)
        return hold, seconds

    def renew(
        self, holder: Responder, number: int, right_until: float, now: float
    ) -> tuple[Hold, float] | None:
        """``grant`` for a hold that still stands."""
        hold = self._holds.get(holder)
        if hold is None or hold.number != number or hold.until <= now:
            return None
        return self.grant(holder, right_until, now)

    def hold(self, hold: Hold, key: bytes) -> bool:
        """Registers the holder of a key that nothing pending touches; its row is read after that. False: not now."""
        if key in hold.telling:
            return False
        if key not in hold.keys and len(hold.keys) >= self._rows_max:
            hold.is_full = True
            self.wake_at = self.now
            return False
        hold.keys[key] = None
        self.by_key.setdefault(key, {})[hold] = None
        return True

    def expires(self, key: bytes, expires_ms: int) -> None:
        """The row of a held key expires then."""
        self._expires[key] = expires_ms

    # -------------------------------------------------------------------------------- telling

    def appended(self, entry: Entry) -> None:
        """Tells the holders of every key that the entry touches; it waits for them."""
        by_hold: dict[Hold, dict[bytes, None]] = {}
        for key in self._touched(entry):
            for hold in self.by_key[key]:
                if hold.until > self.now:
                    by_hold.setdefault(hold, {})[key] = None
        if not by_hold:
            return
        wait = self._waits.setdefault(entry.index, {})
        for hold, keys in by_hold.items():
            wait[hold.number, self._tell(hold, list(keys), entry.index, entry.last_version)] = None
        self._moved()

    def _touched(self, entry: Entry) -> list[bytes]:
        held = self.by_key
        touched = [key for key, _ in entry.changes() if key in held]
        clock_ms = entry.clock_ms if self._expires else 0
        if clock_ms:
            touched += [key for key, expires in self._expires.items() if expires <= clock_ms]
        return touched

    def _tell(self, hold: Hold, keys: list[bytes], index: int, version: int) -> int:
        hold.seq += 1
        hold.told[hold.seq] = Told(index, keys, self.now)
        for key in keys:
            hold.telling[key] = hold.seq
        self.told_count += 1
        self._send(Tell(hold.holder, hold.number, hold.seq, version, keys))
        return hold.seq

    def answered(self, holder: Responder, number: int, seq: int) -> None:
        """The holder dropped what it was told to by messages up to ``seq``."""
        hold = self._holds.get(holder)
        if hold is None or hold.number != number:
            return
        while hold.told and (first := next(iter(hold.told))) <= seq:
            told = hold.told.pop(first)
            for key in told.keys:
                if hold.telling.get(key) == first:  # else it was told again, and has that to answer
                    del hold.telling[key]
                    self._let_go(hold, key)
            self._waits.get(told.index, {}).pop((hold.number, first), None)
        self._moved()

    def cut(self, index: int) -> None:
        """Entries from ``index`` on are no more: nothing of them is to be confirmed. Who was told still answers."""
        for at in [at for at in self._waits if at >= index]:
            del self._waits[at]
        self._moved()

    # ----------------------------------------------------------------------------------- time

    def tick(self, now: float) -> None:
        """Ends what has run out, and calls rows back from who holds too many."""
        self.now = now
        for hold in list(self._holds.values()):
            if hold.until <= now:
                self.lapsed_count += bool(hold.told)
                self._end(hold)
            elif hold.is_full:
                self._recall(hold)
        self._moved()
        self.wake_at = min((hold.until for hold in self._holds.values()), default=FOREVER)
        if self.quiet_until > now:
            self.wake_at = min(self.wake_at, self.quiet_until)

    def _recall(self, hold: Hold) -> None:
        hold.is_full = False
        free = [key for key in hold.keys if key not in hold.telling]
        keys = free[: max(1, self._rows_max // RECALL_PART)]
        if keys:
            self._tell(hold, keys, 0, 0)

    def _end(self, hold: Hold) -> None:
        for key in list(hold.keys):
            self._let_go(hold, key)
        for seq, told in hold.told.items():
            self._waits.get(told.index, {}).pop((hold.number, seq), None)
        del self._holds[hold.holder]
        self._moved()

    def _let_go(self, hold: Hold, key: bytes) -> None:
        hold.keys.pop(key, None)
        holds = self.by_key.get(key)
        if holds is not None:
            holds.pop(hold, None)
            if not holds:
                del self.by_key[key]
                self._expires.pop(key, None)

    def _moved(self) -> None:
        """Finds the bound anew."""
        for index in [index for index, wait in self._waits.items() if not wait]:
            del self._waits[index]
        before = self.bound
        if self.quiet_until > self.now:
            self.bound = 0
            self.wake_at = min(self.wake_at, self.quiet_until)
        else:
            self.bound = min(self._waits) - 1 if self._waits else None
        if before is not None and (self.bound is None or self.bound > before):
            self.is_lifted = True
