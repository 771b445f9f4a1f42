"""The member's and the learner's side: obey, append, confirm, promise, hold a lease, be filled.

Rules: R3 (accept iff epoch >= promised and the prefix matches; answer only once it is on disk), R6 (the lease
counts from the own request), R7 (the promise), R13 (a suspect copy confirms only once it is refilled), R14
(records are verified), R2 (nothing of an old epoch is confirmed while this copy tries to take over).
"""

from __future__ import annotations

from typing import Any

from ackord_node.core import messages as m
from ackord_node.core.log import Entry, RecordCorrupt
from ackord_node.core.state import TabletState

NO_LEASE = float("-inf")


class Follower:
    def __init__(self, state: TabletState, now: float) -> None:
        self._s = state
        self.leader: str | None = None
        self.lease_until = NO_LEASE
        self.matched = 0  # verified against the leader of the promised epoch, up to here
        self._request_floor = now  # lease requests sent before this belong to an earlier epoch or copy
        self._leader_needs: int | None = None  # what a suspect copy must hold before it counts (R13)
        self._is_verified = False  # an append of this epoch met what this copy holds
        self._confirm_due = False
        self._confirmed = 0
        self._beacon_due: tuple[str, float] | None = None
        self._snapshot: tuple[int, int] | None = None  # (snapshot id, next chunk)
        self._snapshot_header: list[Any] = []
        self._taken_due: int | None = None
        self._leave_sent = NO_LEASE

    # ------------------------------------------------------------------------------- epochs

    def obey(self, epoch: int, source: str, now: float) -> bool:
        """Rule R3: whether a message of ``epoch`` is obeyed; raises the promise if it is a later one."""
        s = self._s
        if s.suspect and not s.descriptor_is_fresh:
            return False  # what a rolled-back copy had promised is known from the descriptor only (R13)
        if epoch < s.promised or epoch < s.barred_below:
            if epoch < s.promised:
                s.send(source, [m.FENCED, s.tablet, epoch, s.promised], urgent=True)
            return False
        if epoch > s.promised:
            s.promise_epoch(epoch)
            self.forget(now)
            s.handed_to = None
        self.leader = source
        return True

    def forget(self, now: float) -> None:
        """Nothing of an earlier epoch or copy counts from here on."""
        self.leader = None
        self.lease_until = NO_LEASE
        self.matched = 0
        self._request_floor = now
        self._leader_needs = None
        self._is_verified = False
        self._confirm_due = False
        self._confirmed = 0
        self._beacon_due = None
        self._snapshot = None
        self._taken_due = None

    def _start_anew(self, recovered: int, source: str, now: float) -> None:
        """An operator forced another copy: what this one holds beyond it no longer exists."""
        s = self._s
        if recovered > s.recovered:
            s.note("warning", f"starts anew: another copy was made the only one in epoch {recovered}")
            s.discard_copy(filling=False)
            s.recovered = recovered
            self.forget(now)
            self.leader = source

    @property
    def _epoch_is_durable(self) -> bool:
        return self._s.promised_durable == self._s.promised

    # ------------------------------------------------------------------------------- append

    def append(self, source: str, message: m.Message, now: float) -> None:
        s = self._s
        _, _, epoch, previous, previous_epoch, commit, records, recovered = message
        if not self.obey(epoch, source, now):
            return
        self._start_anew(recovered, source, now)
        if s.filling:  # appends mean that its snapshot was given up
            s.discard_copy(filling=False)
            self.forget(now)
            self.leader = source
        try:
            entries = [Entry.decode(s.tablet, record) for record in records]
        except RecordCorrupt as error:
            s.note("error", f"append from {source} dropped: {error}")
            return
        if not self._prefix_matches(previous, previous_epoch):
            self._mismatch(source, previous, min(s.commit, max(previous - 1, 0)))
            return
        if not self._take(entries, source):
            return
        last = entries[-1].index if entries else previous
        self.matched = max(self.matched, last)
        self._is_verified = True
        self._advance(commit)
        self._confirm_due = True
        self._answer(now)

    def _prefix_matches(self, index: int, epoch: int) -> bool:
        log = self._s.log
        if index < log.trimmed:
            # Trimmed entries are committed, and epochs never fall along a log: a later one here proves that the
            # sender's log is another than the committed one.
            return epoch <= log.runs[0][1]
        return log.epoch_at(index) == epoch

    def _take(self, entries: list[Entry], source: str) -> bool:
        """Appends what is new, cutting a divergent tail first; False if that would cut what is committed."""
        s = self._s
        for entry in entries:
            if entry.index == s.log.end + 1:
                s.append(entry)
                continue
            if entry.index <= s.log.trimmed:
                if entry.epoch > s.log.runs[0][1]:
                    s.note(
                        "error",
                        f"{source} sent entry {entry.index} of epoch {entry.epoch}, committed otherwise",
                    )
                    return False
                continue
            known = s.log.epoch_at(entry.index)
            if known == entry.epoch:
                continue
            if known is not None:
                if entry.index <= s.commit:
                    s.note(
                        "error",
                        f"{source} sent entry {entry.index} of epoch {entry.epoch}, but an entry of epoch "
                        f"{known} is committed there",
                    )
                    return False
                s.cut_log(entry.index)
            s.append(entry)
        return True

    def _mismatch(self, source: str, probed: int, safe: int) -> None:
        s = self._s
        if self._epoch_is_durable:
            s.send(source, [m.MISMATCH, s.tablet, s.promised, s.copy_id, probed, safe], urgent=True)

    def commit(self, source: str, message: m.Message, now: float) -> None:
        if self.obey(message[2], source, now):
            self._advance(message[3])

    def _advance(self, commit: int) -> None:
        """The commit point may move only over what was verified in this epoch."""
        s = self._s
        s.commit_to(min(commit, self.matched))
        if not s.suspect or not self._is_verified or self._leader_needs is None:
            return
        if self.matched >= max(self._leader_needs, commit):
            s.suspect = False
            s.note("info", f"the suspect copy is refilled up to {self.matched} and counts again")
            s.want_meta()

    # ------------------------------------------------------------------- beacons and leases

    def beacon(self, source: str, message: m.Message, now: float) -> None:
        s = self._s
        _, _, epoch, sent_at, commit, start, request, seconds, grantee, recovered = message
        if not self.obey(epoch, source, now):
            return
        self._start_anew(recovered, source, now)
        self._leader_needs = max(start, commit)
        self._cut_foreign_tail(start)
        self._advance(commit)
        granted_to_me = grantee == s.incarnation and request >= self._request_floor
        if granted_to_me and not s.is_leaving and not s.filling and not s.suspect:
            self.lease_until = max(self.lease_until, request + seconds)
        self._beacon_due = (source, sent_at)
        self._promise(now)
        self._answer(now)

    def _cut_foreign_tail(self, start: int) -> None:
        """Rule R3: what lies beyond ``start``, the log that the coordinator took over with, and is not of its
        epoch, is not in its log. Reads would wait for it until the next write overwrites it."""
        s = self._s
        first = max(start, s.commit) + 1
        epoch = s.log.epoch_at(first)
        if epoch is not None and epoch < s.promised:
            s.cut_log(first)

    def _promise(self, now: float) -> None:
        s = self._s
        s.promise_until = max(s.promise_until, now + s.config.timing.promise)

    def handover(self, message: m.Message, now: float) -> bool:
        """The coordinator releases this successor's promise, for its epoch and this incarnation (R7b)."""
        s = self._s
        if message[2] != s.promised or message[3] != s.incarnation:
            return False
        s.promise_until = now
        return True

    # ------------------------------------------------------------------------------ answers

    def _answer(self, now: float) -> None:
        """Sends what may be said now; the rest waits for the disk."""
        s = self._s
        if not self._epoch_is_durable or self.leader is None:
            return
        if self._beacon_due is not None:
            source, sent_at = self._beacon_due
            self._beacon_due = None
            wants = not (s.is_leaving or s.filling or s.suspect)
            flags = (
                m.FLAG_COORDINATION * s.coordination_up
                + m.FLAG_FIT * (s.unfit_reason is None)
                + m.FLAG_STAYS * (not s.is_leaving)
            )
            request = now if wants else -1
            self._promise(now)
            confirm = [m.BEACON_CONFIRM, s.tablet, s.promised, s.copy_id, sent_at, request, s.durable, flags]
            if s.tells_wall:
                confirm.append(s.wall_ms(now))
            s.send(source, confirm, urgent=True)
        if s.suspect:
            return
        index = min(s.durable, self.matched)  # more may be on its way to the disk: what is there counts now
        if index > self._confirmed or (self._confirm_due and index == self.matched):
            self._confirm_due, self._confirmed = index < self.matched, index
            s.send(self.leader, [m.CONFIRM, s.tablet, s.promised, s.copy_id, index], urgent=True)

    def stored(self, now: float) -> None:
        """A batch of this tablet is on disk."""
        s = self._s
        self._answer(now)
        if self._taken_due is not None and self._snapshot and self.leader is not None and not s.has_unsynced:
            number, self._taken_due = self._taken_due, None
            snapshot_id = self._snapshot[0]
            s.send(
                self.leader,
                [m.SNAPSHOT_TAKEN, s.tablet, s.promised, s.copy_id, snapshot_id, number],
                urgent=True,
            )

    def inquire(self, source: str, message: m.Message) -> None:
        """Rule R13: how far this copy's log reaches, for a new coordinator or a suspect candidate."""
        s = self._s
        s.send(
            source,
            [
                m.INQUIRE_ANSWER,
                s.tablet,
                message[2],
                s.copy_id,
                message[3],
                s.log.last_epoch,
                s.log.end,
                s.commit,
                s.recovered,
            ],
            urgent=True,
        )

    # ----------------------------------------------------------------------------- snapshot

    def snapshot(self, source: str, message: m.Message, now: float) -> None:
        """One chunk; number 0 brings the header and replaces the copy, "end" completes it."""
        s = self._s
        _, _, epoch, snapshot_id, number, space, records, header, checksum = message
        if not self.obey(epoch, source, now):
            return
        if m.checksum(records) != checksum:
            s.note("error", f"snapshot chunk {number} from {source} dropped: it failed its checksum")
            return
        if (
            number == 0
            and header is not None
            and (self._snapshot is None or self._snapshot[0] != snapshot_id)
            and header[-1] == s.copy_id  # else it comes late, and was meant for a copy that is gone
        ):
            s.note("info", f"takes a snapshot at index {header[0]} from {source}")
            s.discard_copy(filling=True)
            self.lease_until, self.matched, self._request_floor = NO_LEASE, 0, now
            self._snapshot, self._snapshot_header = (snapshot_id, 0), header[:-1]
        if self._snapshot != (snapshot_id, number):
            return
        if space == "end":
            s.filled(*self._snapshot_header)
        else:
            s.fill(space, [(key, value) for key, value in records])
        self._snapshot = (snapshot_id, number + 1)
        self._taken_due = number
        s.want_persist()
        s.want_meta()

    # -------------------------------------------------------------------------------- leave

    def tick(self, now: float) -> None:
        """A member that stops gives up its lease and asks to be removed, until it is (R7b)."""
        s = self._s
        if not s.is_leaving:
            return
        self.lease_until = NO_LEASE
        due = now - self._leave_sent >= s.config.timing.retry_interval
        if due and s.is_in_sync and self.leader is not None:
            self._leave_sent = now
            s.send(self.leader, [m.LEAVE, s.tablet, s.promised, s.copy_id], urgent=True)
