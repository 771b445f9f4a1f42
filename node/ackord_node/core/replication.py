"""Sending the log to the other replicas, with several appends in flight, and bringing back those that lag.

Rules: R3 (each append names the entry before it), R13 (a member that lost what it confirmed is expelled). A
replica whose next entry is no longer in memory is fed from disk, and one whose next entry was trimmed by a
snapshot in bounded chunks, one at a time.
"""

from __future__ import annotations

from ackord_node.core import messages as m
from ackord_node.core.effects import CloseSnapshot, LogRead, NextChunk, OpenSnapshot, ReadLog, SnapshotChunk
from ackord_node.core.log import HEADER_BYTES, Entry
from ackord_node.core.progress import NEVER, Progress
from ackord_node.core.state import TabletState


class Replication:
    def __init__(self, state: TabletState, epoch: int, progress: dict[str, Progress]) -> None:
        self._s = state
        self._epoch = epoch
        self._progress = progress

    def send_all(self, now: float) -> None:
        for node in self._progress:
            self.send(self._progress[node], now)

    def send(self, p: Progress, now: float) -> None:
        """Whatever the replica lacks and may be sent now."""
        s = self._s
        if p.node not in s.peers_up or p.snapshot_id or p.reading:
            return
        if p.probing:
            if now - p.sent_at >= s.config.timing.retry_interval:
                self._probe(p, now)
            return
        while p.next <= s.log.end and p.inflight_bytes < s.config.log.inflight_bytes:
            if not self._send_next(p, now):
                return

    def _probe(self, p: Progress, now: float) -> None:
        """One message to learn whether the prefix matches."""
        s = self._s
        p.next = min(p.next, s.log.end + 1)
        p.sent_at = now
        if p.next <= s.log.end:
            self._send_next(p, now)
        elif not self._append(p, [], now):
            self._open_snapshot(p, now)

    def _send_next(self, p: Progress, now: float) -> bool:
        """One append from ``p.next`` on; False if it must come from disk or by snapshot."""
        s = self._s
        if p.next <= s.log.trimmed:
            self._open_snapshot(p, now)
            return False
        if p.next < s.log.first:
            p.reading = True
            s.out.append(ReadLog(p.node, p.next))
            return False
        entries: list[Entry] = []
        size = 0
        for index in range(p.next, s.log.end + 1):
            entry = s.log.get(index)
            assert entry is not None
            entries.append(entry)
            size += len(entry.record)
            if size >= s.config.log.append_bytes:
                break
        return self._append(p, [e.record for e in entries], now)

    def _append(self, p: Progress, records: list[bytes], now: float) -> bool:
        s = self._s
        previous = p.next - 1
        epoch = s.log.epoch_at(previous)
        if epoch is None:
            self._open_snapshot(p, now)
            return False
        s.send(
            p.node,
            [m.APPEND, s.tablet, self._epoch, previous, epoch, s.commit, records, s.recovered],
        )
        p.told = s.commit
        if records:
            last = previous + len(records)
            p.sent(last, sum(map(len, records)), now)
            p.next = last + 1
            if p.behind_since == NEVER:
                p.behind_since = now
        return True

    def log_read(self, event: LogRead, now: float) -> None:
        p = self._progress.get(event.node)
        if p is None or not p.reading:
            return
        p.reading = False
        if event.first != p.next or p.snapshot_id:
            self.send(p, now)
            return
        if not event.records or any(len(record) < HEADER_BYTES for record in event.records):
            self._open_snapshot(p, now)
        elif self._append(p, event.records, now) and not p.probing:
            self.send(p, now)

    def mismatch(self, p: Progress, probed: int, safe: int, now: float) -> bool:
        """The replica's prefix does not match at ``probed``. False if it had confirmed that prefix, so that it
        lost what it must never lose (R13)."""
        if probed <= p.confirmed:
            return probed < p.confirmed or not p.probing  # else an answer that was overtaken
        # ``safe`` is only what the replica knows to be committed: before a snapshot replaces a copy that may
        # hold everything, the oldest entry here that can be compared is.
        trimmed = self._s.log.trimmed
        p.next = max(safe, trimmed if probed > trimmed else 0) + 1
        p.probing = True
        p.inflight.clear()
        p.inflight_bytes = 0
        p.sent_at = NEVER
        self.send(p, now)
        return True

    # ----------------------------------------------------------------------------- snapshots

    def _open_snapshot(self, p: Progress, now: float) -> None:
        p.snapshot_id = self._s.next_ticket()
        p.snapshot_number, p.snapshot_sent_at = -1, now
        p.snapshot_index = self._s.log.trimmed
        self._s.note("info", f"opens a snapshot for {p.node}, which needs entry {p.next}")
        self._s.out.append(OpenSnapshot(p.node, p.snapshot_id))

    def snapshot_chunk(self, event: SnapshotChunk, now: float) -> None:
        s = self._s
        p = self._progress.get(event.node)
        if p is None or p.snapshot_id != event.snapshot_id:
            return
        if event.header is not None:
            p.snapshot_index = event.header[0]
        p.snapshot_number, p.snapshot_sent_at = event.number, now
        p.snapshot_is_end = event.space == "end"
        records = [[key, value] for key, value in event.records]
        header = None if event.header is None else [*event.header, p.copy_id]  # the copy that it replaces
        s.send(
            p.node,
            [
                m.SNAPSHOT,
                s.tablet,
                self._epoch,
                p.snapshot_id,
                event.number,
                event.space,
                records,
                header,
                m.checksum(records),
            ],
        )

    def snapshot_taken(self, p: Progress, snapshot_id: int, number: int, now: float) -> None:
        if snapshot_id != p.snapshot_id or number != p.snapshot_number:
            return
        p.snapshot_sent_at = now
        if not p.snapshot_is_end:
            p.snapshot_number = -1  # one at a time, even if this answer comes twice
            self._s.out.append(NextChunk(p.node, snapshot_id))
            return
        self.close_snapshot(p)
        p.next = p.snapshot_index + 1
        p.probing, p.sent_at = True, NEVER
        self.send(p, now)

    def close_snapshot(self, p: Progress) -> None:
        if p.snapshot_id:
            self._s.out.append(CloseSnapshot(p.node, p.snapshot_id))
            p.snapshot_id = 0

    # ---------------------------------------------------------------------------- lost things

    def tick(self, now: float) -> None:
        """Sends again what seems lost: one message at a time until the replica answers."""
        s = self._s
        retry = s.config.timing.retry_interval
        holds = []
        for p in self._progress.values():
            if p.snapshot_id and now - p.snapshot_sent_at > 8 * s.config.timing.confirm_timeout:
                self.close_snapshot(p)
                p.probe()
            if p.node in s.peers_up:
                holds.append(p.snapshot_index if p.snapshot_id else p.confirmed)
                if p.inflight and not p.probing and now - p.sent_at > 2 * retry:
                    p.probe()
                self.send(p, now)
        s.trim_hold = min(holds, default=None)
