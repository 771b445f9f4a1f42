"""What a coordinator knows of each other replica: how far it confirmed, what it promised, what it was granted.

Rules: R3 (a confirmation counts for one copy_id only), R5 (authority counts from the beacon's send time), R6 and
R9 (the end of each granted lease), R13 (the highest index it ever confirmed in this epoch).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

NEVER = float("-inf")


@dataclass(slots=True)
class Progress:
    node: str
    copy_id: int | None = None
    incarnation: int = 0
    # -- log
    next: int = 1  # the next index to send
    confirmed: int = 0  # on its disk, in this epoch, of this copy
    confirmed_at: float = NEVER  # when that was learned
    probing: bool = True  # one message at a time until the prefix is known to match
    sent_at: float = NEVER  # of the oldest message that is not confirmed
    inflight: deque[tuple[int, int]] = field(default_factory=deque)  # (last index, bytes) sent, not confirmed
    inflight_bytes: int = 0
    told: int = 0  # the commit point that was last sent to it
    reading: bool = False  # a LogRead is under way
    behind_since: float = NEVER  # it has not confirmed an entry that was sent at this time
    # -- authority and leases
    heard_at: float = NEVER  # any answer
    authority: float = NEVER  # send time of its last confirmed beacon + L
    granted_until: float = NEVER  # coordinator's clock, scaled for drift: what a removal waits out
    granted_raw: float = NEVER  # the same, unscaled: what a joining member's promise must cover
    granted_incarnation: int = 0  # which run of the member holds what was granted last
    grant: tuple[float, float, int, float] | None = (
        None  # (request, seconds, incarnation, made at) for the next beacon
    )
    enrolled: int = (
        0  # the run of the member that confirmed a beacon of this tablet and shares those of the node
    )
    is_shared: bool = False  # the beacons of the node pair are being confirmed for this tablet too
    beaconed: int = 0  # the commit point that the last beacon of this tablet's own carried
    wall_ms: int = 0  # its wall clock, as it last told (rule R20); 0: it has not
    # -- membership
    flags: int = 0
    revoking: bool = False  # no grants; it is being removed
    leaving: bool = False
    expelled: bool = False
    pause: float = 0.0
    rejoin_at: float = NEVER
    in_sync_since: float = NEVER
    # -- snapshot
    snapshot_id: int = 0  # 0: none
    snapshot_sent_at: float = NEVER
    snapshot_number: int = -1  # of the chunk that is not confirmed
    snapshot_index: int = 0
    snapshot_is_end: bool = False

    def became(self, copy_id: int, incarnation: int) -> None:
        """Another copy, or another run of the process, answers for this node: nothing of the old one counts,
        except that what was granted to it is still waited out."""
        if copy_id != self.copy_id:
            self.confirmed = 0
            self.expelled = False
            self.authority = NEVER
        self.copy_id = copy_id
        self.incarnation = incarnation
        self.enrolled = 0
        self.is_shared = False
        self.leaving = False
        self.wall_ms = 0
        self.probe()

    def probe(self) -> None:
        """Everything that was sent is taken as lost."""
        self.next = max(self.next if self.confirmed == 0 else 0, self.confirmed + 1)
        self.probing = True
        self.told = 0
        self.reading = False
        self.inflight.clear()
        self.inflight_bytes = 0
        self.sent_at = NEVER

    def sent(self, last: int, size: int, now: float) -> None:
        self.inflight.append((last, size))
        self.inflight_bytes += size
        if self.sent_at == NEVER:
            self.sent_at = now

    def confirm(self, index: int, now: float, log_end: int) -> bool:
        """The copy has everything up to ``index``; False if that was known."""
        while self.inflight and self.inflight[0][0] <= index:
            self.inflight_bytes -= self.inflight.popleft()[1]
        self.sent_at = now if self.inflight else NEVER
        is_news = index > self.confirmed
        if is_news:
            self.confirmed, self.confirmed_at = index, now
            self.next = max(self.next, index + 1)
        if self.probing:
            self.probing = False
            self.next = index + 1
        if self.confirmed >= log_end:
            self.behind_since = NEVER
        elif is_news:
            self.behind_since = now
        return is_news
