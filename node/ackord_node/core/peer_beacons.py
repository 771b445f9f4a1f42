"""One beacon per node pair for all tablets that a node coordinates and the other holds, instead of one for each.

What it means for a tablet is what a beacon of the tablet's own means, condition by condition:

- The sender keeps a numbered list of (tablet, epoch, copy_id) for each peer and sends the changes. A beacon names the
  version of the list; a receiver that does not hold that version confirms nothing, and says which one it holds.
- R5, R7: the receiver looks at each listed tablet when the beacon arrives. It promises for those whose listed epoch it
  obeys, durably, with the listed copy, and names all others ("left") in its confirmation. The confirmation counts only
  for what was on the list in that version, with the same coordinator and copy, and is not named.
- R13: a tablet is listed only once this run of the peer has confirmed a beacon of the tablet's own, which shows where
  its log ends; and a confirmation counts only if it comes from that run.
- R6, R9: each grant is recorded for each tablet as if it went alone. The common length is the shortest of many; what
  gets less, or nothing, is named.
- R7b, R8: a coordinator that drains grants nothing; one that has ended reads, or is not active, is off the list.

A tablet that is not confirmed in this way falls back to beacons of its own (``Coordinator``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ackord_node.core import messages as m
from ackord_node.core.coordinator import Coordinator
from ackord_node.core.progress import NEVER, Progress
from ackord_node.core.replica import Replica
from ackord_node.core.types import Member, Timing

JOURNAL_COUNT_MIN = 64  # changes kept, beside as many as there are tablets, for a peer that lags
COMMON_SHARE = 0.75  # of the longest lease: shorter ones are told one by one


@dataclass(slots=True)
class _Listed:
    """One tablet on the list of a peer."""

    coordinator: Coordinator
    progress: Progress
    member: Member
    since: int  # the version of the list that brought it
    request: float = NEVER  # the lease request that was granted last, and for how long
    seconds: float = 0.0


@dataclass(slots=True)
class _Outgoing:
    """The coordinators' half: what is listed for one peer."""

    tablets: dict[int, _Listed] = field(default_factory=dict)
    version: int = 0
    known: int = 0  # the version that the peer holds, as far as it said; 0: none
    journal: list[tuple[int, int]] = field(default_factory=list)  # (version, tablet) of the latest changes
    journal_since: int = 0  # the journal holds all changes after this version
    request: float = NEVER  # of the grants that the next beacon carries
    grantee: int = 0
    asked: float = NEVER  # the newest lease request that was looked at
    confirmed_at: float = NEVER
    flags: int = 0  # of the last confirmation


@dataclass(slots=True)
class _Incoming:
    """The members' half: what one run of a peer has listed."""

    incarnation: int
    version: int = 0
    tablets: dict[int, tuple[int, int]] = field(default_factory=dict)  # tablet -> (epoch, copy_id)


class PeerBeacons:
    """Of one node; ``replica_of`` finds its copies, ``send`` sends a message to a peer, ``wake`` has a tablet asked
    what is due."""

    def __init__(
        self,
        incarnation: int,
        timing: Timing,
        peers: list[str],
        replica_of: Callable[[int], Replica | None],
        send: Callable[[str, m.Message], None],
        wake: Callable[[int], None],
    ) -> None:
        self.coordinated: dict[int, Coordinator] = {}
        self.due = NEVER
        self._incarnation = incarnation
        self._timing = timing
        self._peers = {peer: _Outgoing() for peer in peers}
        self._heard: dict[str, _Incoming] = {}
        self._replica_of = replica_of
        self._send = send
        self._wake = wake

    def role_changed(self, tablet: int, coordinator: Coordinator | None) -> None:
        """This node coordinates the tablet in another epoch, or not any more."""
        if coordinator is None:
            self.coordinated.pop(tablet, None)
        else:
            self.coordinated[tablet] = coordinator

    # ------------------------------------------------------------------------------- sending

    def tick(self, up: set[str], now: float) -> None:
        """Sends the beacons that are due, to the peers that are ``up``: all at once, so that what one confirmed
        covers what was granted to another (R10)."""
        if now < self.due:
            return
        # If this node itself stood still, the confirmations that came meanwhile are looked at before the next round.
        is_late = now - self.due > self._timing.beacon_interval
        self.due = now + self._timing.beacon_interval
        for peer, out in self._peers.items():
            if now - out.confirmed_at > self._timing.silence and not is_late:
                self._fell_silent(out)
            if peer in up:
                self._beacon(peer, out, now)

    def _fell_silent(self, out: _Outgoing) -> None:
        for tablet, x in out.tablets.items():
            if x.progress.is_shared:
                x.progress.is_shared = False
                self._wake(tablet)

    def _beacon(self, peer: str, out: _Outgoing, now: float) -> None:
        self._list(peer, out)
        if not out.tablets and out.known == out.version:
            return
        base, changes = self._changes(out)
        request, seconds, others = self._grants(out)
        self._send(
            peer,
            [m.PEER_BEACON, 0, 0, now, out.version, base, changes, request, seconds, out.grantee, others],
        )

    def _list(self, peer: str, out: _Outgoing) -> None:
        """Brings the list up to what may be listed now."""
        changed: list[int] = []
        version, listed = out.version + 1, out.tablets
        for tablet, coordinator in self.coordinated.items():
            p, at = coordinator.shared_with(peer), listed.get(tablet)
            if at is not None:
                if p is at.progress and at.coordinator is coordinator and p.copy_id == at.member.copy_id:
                    continue
                at.progress.is_shared = False
                del listed[tablet]
                changed.append(tablet)
            if p is not None and p.copy_id is not None:
                listed[tablet] = _Listed(coordinator, p, Member(peer, p.copy_id), version)
                if at is None:
                    changed.append(tablet)
        for tablet in [tablet for tablet in listed if tablet not in self.coordinated]:
            del listed[tablet]
            changed.append(tablet)
        if changed:
            out.version = version
            out.journal.extend((version, tablet) for tablet in changed)
            excess = len(out.journal) - len(listed) - JOURNAL_COUNT_MIN
            if excess > 0:
                out.journal_since = out.journal[excess - 1][0]
                out.journal = [change for change in out.journal if change[0] > out.journal_since]

    def _changes(self, out: _Outgoing) -> tuple[int, list[int]]:
        """(base, changes since then); base 0: the whole list."""
        if out.known == out.version:
            return out.known, []
        base = out.known if out.known >= out.journal_since else 0
        tablets = list(out.tablets) if base == 0 else self._changed_since(out, base)
        changes: list[int] = []
        for tablet in tablets:
            listed = out.tablets.get(tablet)
            if listed is None:
                changes += (tablet, 0, 0)
            else:
                changes += (tablet, listed.coordinator.epoch, listed.member.copy_id)
        return base, changes

    @staticmethod
    def _changed_since(out: _Outgoing, base: int) -> list[int]:
        return list(dict.fromkeys(tablet for version, tablet in out.journal if version > base))

    @staticmethod
    def _grants(out: _Outgoing) -> tuple[float, float, list[float]]:
        """(lease request, seconds for every tablet but the others, the others and their seconds)."""
        request, out.request = out.request, NEVER
        if request == NEVER:
            return -1.0, 0.0, []
        longest = max((x.seconds for x in out.tablets.values() if x.request == request), default=0.0)
        common, others = longest, []
        for x in out.tablets.values():
            if x.request == request and COMMON_SHARE * longest <= x.seconds < common:
                common = x.seconds
        for tablet, x in out.tablets.items():
            seconds = x.seconds if x.request == request else 0.0
            if seconds < common:
                others += [tablet, seconds]
        return request, common, others

    def confirmed(self, peer: str, incarnation: int, message: m.Message, now: float) -> None:
        """A peer's answer to a beacon."""
        _, _, _, to, sent_at, version, request, flags, wall_ms, left = message
        out = self._peers.get(peer)
        if out is None or to != self._incarnation or version > out.version:
            return
        out.known = version
        if sent_at < 0:
            self.due = min(self.due, now)  # it holds another version: the next beacon brings it what it lacks
            return
        out.confirmed_at = now
        has_changed, out.flags = flags != out.flags, flags
        if incarnation != out.grantee:
            out.asked = NEVER  # another run: its clock began anew if its machine did
        is_newest = request > out.asked
        out.asked = max(out.asked, request)
        gone = set(left)
        for tablet, x in out.tablets.items():
            p = x.progress
            if tablet in gone and p.is_shared:
                p.is_shared = False
                self._wake(tablet)
            if x.since > version or tablet in gone or self.coordinated.get(tablet) is not x.coordinator:
                continue
            if p.enrolled != incarnation or p.copy_id != x.member.copy_id:
                continue
            seconds = x.coordinator.shared_confirm(p, x.member, sent_at, flags, wall_ms, now)
            if is_newest:
                x.request, x.seconds = request, seconds
            if has_changed:
                self._wake(tablet)
        if is_newest:
            out.request, out.grantee = request, incarnation

    def peer_up(self, peer: str) -> None:
        """What was sent over an earlier link may be lost."""
        if peer in self._peers:
            self._peers[peer].known = 0

    # ----------------------------------------------------------------------------- receiving

    def beacon(
        self, peer: str, incarnation: int, message: m.Message, flags: int, wall_ms: int, now: float
    ) -> None:
        """A peer's beacon; ``flags`` and ``wall_ms`` are this node's."""
        _, _, _, sent_at, version, base, changes, request, seconds, grantee, others = message
        heard = self._heard.get(peer)
        if heard is None or heard.incarnation != incarnation:
            heard = self._heard[peer] = _Incoming(incarnation)
        if version < heard.version:
            return  # it comes late
        if not self._take(heard, version, base, changes):
            self._answer(peer, heard, -1.0, flags, wall_ms, [], now)
            return
        common: float = seconds
        if grantee != self._incarnation:
            common, others = 0.0, []  # another run had asked, perhaps by a clock that began at another time
        lengths: dict[int, float] = dict(zip(others[::2], others[1::2], strict=True))
        left: list[int] = []
        for tablet, (epoch, copy_id) in heard.tablets.items():
            replica = self._replica_of(tablet)
            length = lengths.get(tablet, common)
            if replica is None or not replica.follower.shared_beacon(
                peer, epoch, copy_id, request, length, now
            ):
                left.append(tablet)
                if replica is not None and replica.state.promised > epoch:
                    self._send(peer, [m.FENCED, tablet, epoch, replica.state.promised])
        self._answer(peer, heard, sent_at, flags, wall_ms, left, now)

    @staticmethod
    def _take(heard: _Incoming, version: int, base: int, changes: list[int]) -> bool:
        if version == heard.version:
            return True
        if base == 0:
            heard.tablets = {}
        elif base != heard.version:
            return False
        for tablet, epoch, copy_id in zip(changes[::3], changes[1::3], changes[2::3], strict=True):
            heard.tablets.pop(tablet, None)
            if epoch:
                heard.tablets[tablet] = (epoch, copy_id)
        heard.version = version
        return True

    def _answer(
        self,
        peer: str,
        heard: _Incoming,
        sent_at: float,
        flags: int,
        wall_ms: int,
        left: list[int],
        now: float,
    ) -> None:
        self._send(
            peer,
            [
                m.PEER_BEACON_CONFIRM,
                0,
                0,
                heard.incarnation,
                sent_at,
                heard.version,
                now,
                flags,
                wall_ms,
                left,
            ],
        )
