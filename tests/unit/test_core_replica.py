"""Single rules of the core that a whole cluster seldom shows: one replica, hand-fed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ackord.wire.limits import Limits
from ackord_node.core import effects as e
from ackord_node.core import messages as m
from ackord_node.core.copy_meta import CopyMeta
from ackord_node.core.log import Entry, Log, RecordCorrupt
from ackord_node.core.progress import Progress
from ackord_node.core.replica import Replica
from ackord_node.core.replication import Replication
from ackord_node.core.requests import ClientRecord
from ackord_node.core.state import CoreConfig, StoredCopy, TabletState
from ackord_node.core.types import Descriptor, LogLimits, Member, Timing
from tests.support.core_disk import VirtualDisk

TABLET = 7
CONFIG = CoreConfig(Timing(), LogLimits(), Limits())
DESCRIPTOR = Descriptor(
    TABLET, 3, "n1", 11, frozenset({Member("n1", 1), Member("n2", 2)}), ("n1", "n2", "n3"), 1, b"", None
)


def entry(index: int, epoch: int, key: bytes = b"k", client: bytes = b"c") -> Entry:
    return Entry.create(TABLET, epoch, index, index * 10, [[client, 1, 0, [index], [key], [b"row"]]])


def replica(meta: CopyMeta, entries: list[Entry] | None = None) -> Replica:
    disk = VirtualDisk(TABLET, meta.copy_id)
    copies = iter(range(50, 99))
    r = Replica(
        "n2", 22, StoredCopy(TABLET, meta, entries or [], []), CONFIG, disk, lambda: next(copies), 0.0
    )
    r.step(e.PeerUp("n1"), 0.0)
    return r


def store(r: Replica, now: float) -> list[Any]:
    """Everything that waits goes to disk; the messages that this lets out."""
    out: list[e.Effect] = []
    while (batch := r.take_batch()) is not None:
        out += r.step(e.Durable(batch), now)
    return [x.message for x in out if isinstance(x, e.Send)]


def sends(effects: list[e.Effect], kind: int) -> list[Any]:
    return [x.message for x in effects if isinstance(x, e.Send) and x.message[0] == kind]


def sends_of(messages: list[Any], kind: int) -> list[Any]:
    return [message for message in messages if message[0] == kind]


def append(epoch: int, previous: int, previous_epoch: int, commit: int, entries: list[Entry]) -> e.Received:
    records = [x.record for x in entries]
    return e.Received("n1", 11, [m.APPEND, TABLET, epoch, previous, previous_epoch, commit, records, 0])


def test_nothing_is_answered_before_the_promise_is_on_disk() -> None:
    r = replica(CopyMeta(2))
    effects = r.step(append(3, 0, 0, 0, [entry(1, 3)]), 1.0)
    assert sends(effects, m.CONFIRM) == []
    batch = r.take_batch()
    assert batch is not None and batch.meta is not None
    assert CopyMeta.decode(batch.meta).promised == 3
    assert sends(r.step(e.Durable(batch), 1.1), m.CONFIRM) == [[m.CONFIRM, TABLET, 3, 2, 1]]


def test_an_older_epoch_is_fenced() -> None:
    r = replica(CopyMeta(2, promised=5))
    effects = r.step(append(4, 0, 0, 0, [entry(1, 4)]), 1.0)
    assert sends(effects, m.FENCED) == [[m.FENCED, TABLET, 4, 5]]
    assert r.state.log.end == 0


def test_a_damaged_record_is_not_taken() -> None:
    r = replica(CopyMeta(2))
    broken = bytearray(entry(1, 3).record)
    broken[-1] ^= 1
    r.step(e.Received("n1", 11, [m.APPEND, TABLET, 3, 0, 0, 0, [bytes(broken)], 0]), 1.0)
    assert r.state.log.end == 0
    with pytest.raises(RecordCorrupt):
        Entry.decode(TABLET, bytes(broken))
    with pytest.raises(RecordCorrupt):
        Entry.decode(TABLET + 1, entry(1, 3).record)


def test_a_committed_entry_is_never_cut() -> None:
    r = replica(CopyMeta(2, promised=2), [entry(1, 2)])
    r.step(append(2, 1, 2, 1, []), 1.0)
    assert r.state.commit == 1
    effects = r.step(append(3, 0, 0, 0, [entry(1, 3)]), 1.1)
    assert r.state.log.epoch_at(1) == 2
    assert any(isinstance(x, e.Note) and x.level == "error" for x in effects)


def test_the_commit_point_moves_only_over_what_was_matched_in_this_epoch() -> None:
    r = replica(CopyMeta(2, promised=2), [entry(1, 2), entry(2, 2)])
    r.step(e.Received("n1", 11, [m.BEACON, TABLET, 3, 0.5, 2, 2, -1.0, 0.0, 0, 0]), 1.0)
    r.step(e.Received("n1", 11, [m.COMMIT, TABLET, 3, 2]), 1.0)
    assert r.state.commit == 0
    r.step(append(3, 1, 2, 2, []), 1.1)
    assert r.state.commit == 1


def test_a_prefix_that_differs_is_refused() -> None:
    r = replica(CopyMeta(2, promised=2), [entry(1, 2), entry(2, 2)])
    r.step(append(3, 2, 3, 0, [entry(3, 3)]), 1.0)
    assert r.state.log.end == 2
    store(r, 1.1)
    effects = r.step(append(3, 2, 3, 0, [entry(3, 3)]), 1.2)
    assert sends(effects, m.MISMATCH) == [[m.MISMATCH, TABLET, 3, 2, 2, 0]]


def test_a_suspect_candidate_that_hears_a_coordinator_keeps_its_promise() -> None:
    """Rules R7 and R13: it asked the members; meanwhile it promised not to take over."""
    r = replica(CopyMeta(2, promised=3, suspect=True), [entry(1, 3)])
    r.step(e.CoordinationSeen(True), 2.0)
    r.step(e.DescriptorSeen(DESCRIPTOR, 4), 2.0)
    r.step(e.LockSeen("n2", True), 2.1)
    assert r.takeover.stage.value == "inquiring"
    r.step(e.Received("n1", 11, [m.BEACON, TABLET, 3, 0.5, 1, 1, -1.0, 0.0, 0, 0]), 2.2)
    effects = r.step(e.Received("n1", 11, [m.INQUIRE_ANSWER, TABLET, 3, 1, 22, 3, 1, 1, 0]), 2.3)
    assert not any(isinstance(x, e.Swap) for x in effects)
    assert any(isinstance(x, e.ReleaseLock) for x in effects)


def test_a_suspect_candidate_that_gets_no_answers_gives_the_lock_back() -> None:
    r = replica(CopyMeta(2, promised=3, suspect=True), [entry(1, 3)])
    r.step(e.CoordinationSeen(True), 2.0)
    r.step(e.DescriptorSeen(DESCRIPTOR, 4), 2.0)
    r.step(e.LockSeen("n2", True), 2.1)
    effects = [x for at in range(8) for x in r.step(e.Tick(), 2.2 + 0.25 * at)]
    assert any(isinstance(x, e.ReleaseLock) for x in effects)
    assert r.takeover.stage.value == "idle"


def test_a_cut_while_a_batch_is_under_way_is_not_taken_for_durable() -> None:
    r = replica(CopyMeta(2))
    r.step(append(3, 0, 0, 0, [entry(1, 3), entry(2, 3)]), 1.0)
    under_way = r.take_batch()
    assert under_way is not None
    r.step(append(4, 1, 3, 0, [entry(2, 4)]), 1.1)
    effects = r.step(e.Durable(under_way), 1.2)
    assert r.state.durable == 1
    assert sends(effects, m.CONFIRM) == []
    batch = r.take_batch()
    assert batch is not None
    assert (batch.cut, [index for _, index, _ in batch.log]) == (2, [2])
    assert sends(r.step(e.Durable(batch), 1.3), m.CONFIRM)[-1] == [m.CONFIRM, TABLET, 4, 2, 2]


def test_runs_of_a_restarted_copy_are_those_of_its_entries() -> None:
    entries = [entry(3, 1), entry(4, 1), entry(5, 2)]
    meta = CopyMeta(2, promised=2, applied=2, runs=[(0, 0), (1, 1), (5, 2)])
    log = replica(meta, entries).state.log
    assert [log.epoch_at(index) for index in range(6)] == [0, 1, 1, 1, 1, 2]
    assert log.runs == [(0, 0), (1, 1), (5, 2)]


def test_a_suspect_copy_confirms_only_once_refilled_and_once_it_knows_its_promise() -> None:
    """Rule R13: before it has read the descriptor, it may be obeying a coordinator that it had helped to replace."""
    r = replica(CopyMeta(2, promised=2, suspect=True), [entry(1, 2)])
    r.step(e.Tick(), 0.9)  # what its clients may have kept is over (R19)
    beacon = e.Received("n1", 11, [m.BEACON, TABLET, 2, 0.5, 2, 2, -1.0, 0.0, 0, 0])
    r.step(beacon, 1.0)
    r.step(append(2, 1, 2, 1, [entry(2, 2)]), 1.0)
    assert store(r, 1.1) == []
    assert r.state.log.end == 1
    r.step(e.DescriptorSeen(replace(DESCRIPTOR, epoch=2), 4), 1.2)
    r.step(append(2, 1, 2, 2, [entry(2, 2)]), 1.3)
    assert sends_of(store(r, 1.4), m.CONFIRM) == [], "nobody said yet what it must hold"
    r.step(beacon, 1.5)
    r.step(append(2, 2, 2, 2, []), 1.6)
    store(r, 1.7)
    assert not r.state.suspect


def test_a_suspect_copy_promises_what_the_descriptor_says() -> None:
    r = replica(CopyMeta(2, promised=1, suspect=True))
    r.step(e.DescriptorSeen(DESCRIPTOR, 4), 1.0)
    assert r.state.promised == 3


def test_a_refused_batch_is_taken_again_whole() -> None:
    """No space: nothing of it counts; collected clients must be deleted by the next one too."""
    r = replica(CopyMeta(2))
    r.step(append(3, 0, 0, 1, [entry(1, 3)]), 1.0)
    store(r, 1.1)
    collect = Entry.create(TABLET, 3, 2, 20, [[None, 15], [b"d", 1, 0, [1], [b"k2"], [None]]])
    r.step(append(3, 1, 3, 2, [collect]), 1.2)
    first = r.take_batch()
    assert first is not None
    assert (TABLET, b"c", None) in first.requests
    r.unstored(first)
    again = r.take_batch()
    assert again is not None
    assert sorted(again.requests) == sorted(first.requests)
    assert (again.log, again.rows, again.applied) == (first.log, first.rows, first.applied)


def test_a_lease_of_an_earlier_request_counts_for_nothing_in_a_new_epoch() -> None:
    r = replica(CopyMeta(2))
    r.step(e.Received("n1", 11, [m.BEACON, TABLET, 3, 0.1, 0, 0, -1.0, 0.0, 0, 0]), 5.0)
    r.step(e.Received("n1", 11, [m.BEACON, TABLET, 3, 0.2, 0, 0, 4.9, 1.0, 22, 0]), 5.1)
    assert not r.may_read(5.2)
    r.step(e.Received("n1", 11, [m.BEACON, TABLET, 3, 0.3, 0, 0, 5.0, 1.0, 22, 0]), 5.3)
    assert r.may_read(5.4)
    assert not r.may_read(6.01)


def state(trimmed: int, end: int) -> TabletState:
    meta = CopyMeta(1, promised=3, applied=trimmed, trimmed=trimmed, runs=[(trimmed, 3)])
    copy = StoredCopy(TABLET, meta, [entry(i, 3) for i in range(trimmed + 1, end + 1)], [])
    s = TabletState("n1", 11, copy, CONFIG, VirtualDisk(TABLET, 1), lambda: 99, 0.0)
    s.peers_up.add("n2")
    return s


def test_a_snapshot_comes_only_after_the_oldest_comparable_entry_differed() -> None:
    """The member's commit point is behind what was trimmed here; its log may hold everything."""
    s = state(trimmed=20, end=30)
    p = Progress("n2", copy_id=2, next=31)
    replication = Replication(s, 3, {"n2": p})
    replication.mismatch(p, 30, 5, 1.0)
    assert not p.snapshot_id
    assert s.out[-1].message[3] == 20  # type: ignore[union-attr]
    replication.mismatch(p, 20, 5, 1.1)
    assert p.snapshot_id


def test_one_chunk_is_asked_for_at_a_time() -> None:
    s = state(trimmed=20, end=30)
    p = Progress("n2", copy_id=2, next=5)
    replication = Replication(s, 3, {"n2": p})
    replication.send(p, 1.0)
    header = [20, 3, 200, 0]
    replication.snapshot_chunk(e.SnapshotChunk("n2", 1, 0, "rows", [], header), 1.1)
    sent = s.out[-1]
    assert isinstance(sent, e.Send)
    assert sent.message[7] == [20, 3, 200, 0, 2], "it names the copy that it replaces"
    replication.snapshot_taken(p, 1, 0, 1.2)
    replication.snapshot_taken(p, 1, 0, 1.3)
    assert sum(isinstance(x, e.NextChunk) for x in s.out) == 1


def test_log_positions() -> None:
    log = Log()
    for x in (entry(1, 1), entry(2, 1), entry(3, 4)):
        log.append(x)
    assert (log.end, log.epoch_at(0), log.epoch_at(3), log.epoch_at(4)) == (3, 0, 4, None)
    assert [x.index for x in log.cut(3)] == [3]
    log.append(entry(3, 5))
    assert log.epoch_at(3) == 5
    log.release(2, 0)
    assert (log.first, log.get(2), log.end) == (3, None, 3)
    log.trim(2)
    assert (log.epoch_at(1), log.epoch_at(2), log.runs) == (None, 1, [(2, 1), (3, 5)])
    with pytest.raises(ValueError, match="outside"):
        log.trim(1)
    with pytest.raises(ValueError, match="below"):
        log.cut(2)


def test_copy_metadata_round_trip_and_foreign_formats() -> None:
    meta = CopyMeta(1, 2, 3, 1, [(1, 1), (2, 2)], 9, 8, True, False, b"d", 7)
    assert CopyMeta.decode(meta.encode()) == meta
    from ackord.wire.frames import packb, unpackb

    with pytest.raises(ValueError, match="format"):
        CopyMeta.decode(packb([99, *unpackb(meta.encode())[1:]]))


def test_client_record_round_trip() -> None:
    record = ClientRecord(5, 6, 70, {6: 70, 7: -4}, 1)
    assert ClientRecord.decode(record.encode()) == record
