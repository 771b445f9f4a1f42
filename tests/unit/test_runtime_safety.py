"""What the rules need of the runtime, with one tablet's host or one part at a time (R4, R12, R13, R14, R18)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from ackord import col
from ackord.errors import OutcomeUnknown, TableNotFound, Unavailable
from ackord.wire.expressions import encode_expression
from ackord.wire.frames import packb, unpackb
from ackord.wire.keys import KeySchema
from ackord.wire.limits import Limits
from ackord.wire.messages import TableDefinition, join_row
from ackord.wire.options import DEFAULT_OPTIONS
from ackord.wire.values import encode_columns
from ackord_node.adapters.clock import SystemClock
from ackord_node.adapters.coordination_memory import MemoryCoordination, MemoryCoordinationService
from ackord_node.adapters.engine_memory import MemoryDisk, MemoryEngine
from ackord_node.core import effects as e
from ackord_node.core import messages as m
from ackord_node.core.copy_meta import CopyMeta
from ackord_node.core.effects import TabletBatch
from ackord_node.core.log import Entry, RecordCorrupt
from ackord_node.core.types import Descriptor, Timing
from ackord_node.ports import Batch, Clock, EngineCorrupt, EngineError, EngineFailed
from ackord_node.runtime.catalogue import Catalogue
from ackord_node.runtime.committer import Committer, Source
from ackord_node.runtime.identity import load_copy
from ackord_node.runtime.node import Node
from ackord_node.runtime.relapses import REBUILDS_COUNT, REBUILDS_S, Relapses
from ackord_node.runtime.scan import Range, Selection, count, page
from ackord_node.runtime.snapshots import Snapshots
from ackord_node.runtime.status import Reporter
from ackord_node.runtime.tablet_host import TabletHost
from ackord_node.runtime.turn import Turn
from tests.support.core_hand import (
    COPIES,
    INCARNATIONS,
    NODES,
    TABLET,
    Hand,
    descriptor,
    entries,
    entry,
    serving,
)


class Now(Clock):
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.seconds = 10.0

    def now(self) -> float:
        return self.seconds

    def wall_ms(self) -> int:
        return int(self.seconds * 1000)


class Worker:
    """Commits run when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]]] = []

    def submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        self.waiting.append((work, done))

    async def call(self, work: Callable[[], Any]) -> Any:
        return work()

    def waited_s(self) -> float:
        return 0.0

    async def close(self) -> None:
        self.waiting.clear()

    def run(self) -> None:
        work, done = self.waiting.pop(0)
        try:
            result = work()
        except Exception as error:
            done(None, error)
        else:
            done(result, None)


class Tablet(Source):
    def __init__(self, number: int) -> None:
        self.number = number
        self.batches = [TabletBatch(number, log=[(number, 1, entry(1, 3).record)])]
        self.heard: list[TabletBatch] = []

    def take_batch(self) -> TabletBatch | None:
        return self.batches.pop() if self.batches else None

    def stored(self, batch: TabletBatch) -> None:
        self.heard.append(batch)

    def unstored(self, batch: TabletBatch) -> None:
        self.batches.append(batch)


class Quiet:
    """Nobody watches."""

    def engine_commit(self, entries_count: int, seconds: float) -> None: ...


def opened() -> MemoryEngine:
    engine = MemoryEngine(MemoryDisk())
    engine.open()
    return engine


# -------------------------------------------------------------------------------------- committer


async def committer(worker: Worker, engine: MemoryEngine, crashes: list[str]) -> Committer:
    observer: Any = Quiet()
    return Committer(engine, worker, Now(), observer, lambda reason, is_void: crashes.append(reason))


async def test_nothing_counts_as_stored_before_the_commit_returned() -> None:
    """Rule R4; and each tablet hears of its own batch."""
    worker, engine = Worker(), opened()
    crashes: list[str] = []
    c = await committer(worker, engine, crashes)
    tablets = [Tablet(7), Tablet(8)]
    for tablet in tablets:
        c.want(tablet.number, tablet, False)
    await asyncio.sleep(0)
    assert [tablet.heard for tablet in tablets] == [[], []]
    worker.run()
    assert [[b.tablet for b in tablet.heard] for tablet in tablets] == [[7], [8]]
    assert engine.log_bounds(7) == (1, 1)
    assert crashes == []


async def test_a_failed_commit_ends_the_process_and_is_not_taken_for_stored() -> None:
    """Rule R14."""

    class Failing(MemoryEngine):
        def commit(self, batch: Batch) -> None:
            raise EngineFailed("fsync failed")

    worker = Worker()
    crashes: list[str] = []
    c = await committer(worker, Failing(MemoryDisk()), crashes)
    tablet = Tablet(7)
    c.want(7, tablet, False)
    await asyncio.sleep(0)
    worker.run()
    assert tablet.heard == []
    assert len(crashes) == 1


async def test_nothing_is_stored_after_the_tablet_was_forgotten() -> None:
    """Rule R18."""
    worker, engine = Worker(), opened()
    c = await committer(worker, engine, [])
    tablet = Tablet(7)
    c.want(7, tablet, False)
    c.forget(7)
    await asyncio.sleep(0)
    worker.run()
    assert engine.log_bounds(7) is None
    assert tablet.heard == []


# ------------------------------------------------------------------------------------- the copy


def stored(*tail: Entry, at: int | None = None) -> MemoryEngine:
    engine = opened()
    log = [(TABLET, x.index if at is None else at, x.record) for x in tail]
    engine.commit(Batch(meta={TABLET: CopyMeta(1).encode()}, log=log))
    return engine


def test_a_stored_log_is_verified_when_it_is_opened() -> None:
    """Rule R14: the checksum, the place, and that none is missing."""
    assert len(load_copy(stored(*entries(3)), TABLET, CopyMeta(1)).entries) == 3
    flipped = entry(1, 3)
    flipped.record = flipped.record[:-1] + bytes([flipped.record[-1] ^ 1])
    for engine in (
        stored(flipped),
        stored(entry(2, 3), at=1),
        stored(entry(1, 3), entry(3, 3)),
        stored(entry(2, 3)),
    ):
        with pytest.raises(RecordCorrupt):
            load_copy(engine, TABLET, CopyMeta(1))


# ------------------------------------------------------------------------------------- the host


class Around:
    """What a host needs of its node."""

    def __init__(self, engine: MemoryEngine) -> None:
        self.clock: Any = Now()
        self.engine: Any = engine
        self.coordination: Any = None
        self.committer: Any = self
        self.turn = Turn()
        self.crashes: list[str] = []
        self.relapses = Relapses(dict, self.clock, self.crash)
        self.wanted = 0

    def want(self, tablet: int, source: Source, lazy: bool) -> None:
        self.wanted += 1

    def send(self, node: str, message: m.Message, urgent: bool) -> None: ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        work.close()

    def lock_owner(self) -> bytes:
        return b"n2"

    def crash(self, reason: str, is_void: bool) -> None:
        self.crashes.append(reason)

    def tablet_changed(self, host: TabletHost) -> None: ...

    def wake(self, host: TabletHost) -> None: ...


def hosting(hand: Hand, engine: MemoryEngine | None = None) -> tuple[TabletHost, Around]:
    around = Around(engine or opened())
    around.clock.seconds = hand.now
    return TabletHost(around, hand.r, KeySchema.from_wire([["k", "bytes"]])), around


def leased() -> Hand:
    """n2 holds a lease; entry 1, which writes ``k``, is pending."""
    h = Hand("n2")
    h.do(e.DescriptorSeen(descriptor(*NODES, coordinator="n1", incarnation=11), 4))
    h.append(3, 0, 0, 0, [entry(1, 3)])
    h.beacon(3, 0, 0, request=h.now, seconds=5.0)
    return h


EVERYTHING = Range(b"", None, False, 10, 1000)


def test_a_scan_waits_for_what_is_pending_in_its_range() -> None:
    """Rule R12."""
    h = leased()
    host, _ = hosting(h)
    answers: list[Any] = []
    host.scan(1, EVERYTHING, [], answers.append)
    assert answers == []
    host.scan(2, Range(b"l", None, False, 10, 1000), [], answers.append)
    assert answers == [[2, None, [[[], None]]]]
    host.feed(e.Received("n1", 11, [m.COMMIT, TABLET, 3, 1]))
    assert answers[1:] == [[1, None, [[[b"k", b"rrr"], None]]]]


def test_a_scan_without_a_lease_is_refused() -> None:
    h = leased()
    host, around = hosting(h)
    around.clock.seconds += 6
    answers: list[Any] = []
    host.scan(1, Range(b"l", None, False, 10, 1000), [], answers.append)
    assert answers[0][2][2]["reason"] == "no_lease"


def test_a_closed_host_stores_nothing_more() -> None:
    """Rule R18: a batch behind the deletion would bring the dropped tablet back."""
    h = leased()
    host, _ = hosting(h)
    host.close()
    assert host.take_batch() is None


async def test_a_flood_of_writes_is_taken_on_in_steps_that_do_not_hold_up_the_event_loop() -> None:
    """All of it, in order, as entries of bounded size; the later ones wait for the earlier ones' commit."""
    h = serving()
    host, _ = hosting(h)
    schema = KeySchema.from_wire([["k", "bytes"]])
    begun = h.r.state.log.end
    steps: list[list[int]] = []
    feed = host.feed

    def watched(event: e.Event) -> None:
        if isinstance(event, e.Writes):
            steps.append([len(group.ops) for group in event.groups])
        feed(event)

    host.feed = watched  # type: ignore[method-assign]
    answers: list[Any] = []
    for client, size in ((1, 1000), (2, 1000), (3, 3000), (4, 5)):
        ops = [
            [number, 1, schema.encode(b"%d-%d" % (client, number)), b"\x80", 0, None, 1]
            for number in range(1, size + 1)
        ]
        host.write([client, 0, TABLET, b"%d" % client, 5, 0, ops], answers.append)
    host.flush()
    for _ in range(4):
        while (batch := host.take_batch()) is not None:
            host.stored(batch)
        for node in ("n2", "n3"):
            confirmed = [m.CONFIRM, TABLET, h.epoch, COPIES[node], h.r.state.log.end]
            host.feed(e.Received(node, INCARNATIONS[node], confirmed))
        await asyncio.sleep(0)  # the turn ends
    assert steps == [[1000, 1000], [3000], [5]]
    assert h.r.state.log.end - begun == 3 == h.r.state.commit - begun
    assert sum(len(answer[2]) for answer in answers) == 5005


def test_damage_that_a_read_meets_is_told_to_the_core() -> None:
    """Rule R14."""
    h = leased()
    engine = stored(entry(1, 3))
    host, around = hosting(h, engine)
    copy_id = h.r.state.copy_id
    engine.disk.corrupt_next.add(TABLET)
    answers: list[Any] = []
    host.scan(1, Range(b"l", None, False, 10, 1000), [], answers.append)
    assert answers[0][2][2]["reason"] == "no_lease"
    assert h.r.state.copy_id != copy_id, "it is rebuilt"
    assert around.crashes == []


def test_damage_that_a_rebuilt_copy_meets_again_is_of_the_whole_store() -> None:
    """Rule R14: a block at the edge of its range is read on the way there, however often the rows are deleted."""
    h = leased()
    host, around = hosting(h, stored(entry(1, 3)))
    for number in range(REBUILDS_COUNT):
        assert around.crashes == [], number
        host.feed(e.Corrupted("block checksum mismatch"))
    assert "damaged as a whole" in around.crashes[0]


@pytest.mark.parametrize(("pause_s", "is_only_copy"), [(REBUILDS_S, False), (0.0, True)])
def test_a_store_is_not_given_up_for_damage_long_ago_or_with_the_only_copy_of_something(
    pause_s: float, is_only_copy: bool
) -> None:
    crashes: list[str] = []
    now = Now()
    copies: Any = {8: SimpleNamespace(is_only_copy=is_only_copy)}
    relapses = Relapses(lambda: copies, now, lambda reason, is_void: crashes.append(reason))
    for tablet in (7, 7, 9, 7, 7):
        relapses.met(tablet)
        now.seconds += pause_s
    assert crashes == []


class Unreadable(MemoryEngine):
    """A store whose metadata cannot be read."""

    def __init__(self, error: EngineError) -> None:
        super().__init__(MemoryDisk())
        self._error = error

    def metas(self) -> dict[int, bytes]:
        raise self._error


@pytest.mark.parametrize(
    ("error", "told", "crashes"),
    [
        (EngineFailed("input/output error"), [], ["a read failed (rule R14): input/output error"]),
        (EngineCorrupt("a checksum"), [e.Corrupted("a checksum")], []),
        (EngineError("it was opened anew"), [e.SnapshotFailed("n2", 7)], []),
    ],
)
async def test_a_snapshot_that_cannot_be_read_is_told_by_why(
    error: EngineError, told: list[e.Event], crashes: list[str]
) -> None:
    """Else one whose disk fails would be asked for a snapshot for ever, and nobody would be filled."""

    async def in_thread(work: Callable[[], Any]) -> Any:
        return work()

    events: list[e.Event] = []
    reasons: list[str] = []
    committer: Any = SimpleNamespace(in_thread=in_thread)
    crash: Callable[[str, bool], None] = lambda reason, is_void: reasons.append(reason)  # noqa: E731
    snapshots = Snapshots(Unreadable(error), committer, TABLET, serving().r, events.append, crash)
    await snapshots.open("n2", 7)
    assert (events, reasons) == (told, crashes)


def test_a_page_is_overlaid_with_what_is_committed_and_not_stored_yet() -> None:
    engine = opened()
    engine.commit(Batch(rows=[(TABLET, b"a", b"old"), (TABLET, b"b", b"old")]))
    unapplied = {b"a": (2, b"new"), b"b": (3, None), b"c": (4, b"new")}
    rows, follows = page(engine, TABLET, EVERYTHING, unapplied)
    assert (rows, follows) == ([b"a", b"new", b"c", b"new"], None)


def test_a_long_filter_looks_at_fewer_rows_in_one_step() -> None:
    """Else one question could hold up the event loop for a tenth of a second."""
    schema = KeySchema.from_wire([["n", "int"]])
    engine = opened()
    row = join_row(1, encode_columns({"v": 7}))
    engine.commit(Batch(rows=[(TABLET, schema.encode(n), row) for n in range(1000)]))
    short = long = col("v") == 7
    for number in range(60):
        long = (col("w") == f"no {number}") | long
    wanted = Range(b"", None, False, 5000, 1 << 20)
    counts = []
    for where in (short, long):
        selection = Selection.of(encode_expression(where.node), None, schema, Limits())
        rows, follows = page(engine, TABLET, wanted, {}, selection)
        counts.append((len(rows) // 2, follows is None))
        start: bytes | None = b""
        total = 0
        while start is not None:
            found, start = count(engine, TABLET, start, None, {}, selection)
            total += found
        assert total == 1000
    assert counts[0] == (1000, True)
    assert 100 <= counts[1][0] < 1000 and not counts[1][1]


# ------------------------------------------------------------------------------------- the node


class Fed:
    """A host that remembers what it was told."""

    def __init__(self, tablet: int) -> None:
        self.tablet = tablet
        self.events: list[Any] = []

    def feed(self, event: Any) -> None:
        self.events.append(event)


def test_a_message_reaches_the_tablet_that_it_names() -> None:
    hosts = {7: Fed(7), 8: Fed(8)}
    others: list[Any] = []
    node: Any = SimpleNamespace(
        hosts=hosts, _clockwork=SimpleNamespace(received=lambda *message: others.append(message))
    )
    Node.messages_received(node, "n1", 11, [[m.COMMIT, 8, 3, 1], [m.COMMIT, 9, 3, 1]])
    assert hosts[7].events == []
    assert others == [("n1", 11, [m.COMMIT, 9, 3, 1])]
    assert [event.message for event in hosts[8].events] == [[m.COMMIT, 8, 3, 1]]


@pytest.mark.parametrize(("why", "goes"), [("damaged", False), (None, False), ("dropped", True)])
def test_a_tablets_data_goes_only_when_it_was_dropped(why: str | None, goes: bool) -> None:
    """Rule R18."""
    forgotten: list[Any] = []
    node: Any = SimpleNamespace(
        catalogue=SimpleNamespace(descriptor_seen=lambda *x: None),
        observer=SimpleNamespace(forget_tablet=lambda *x: None),
        _forget=forgotten.append,
        _clockwork=SimpleNamespace(beacons=SimpleNamespace(role_changed=lambda *x: None)),
    )
    hand = leased()
    hand.r.state.stopped_reason = why
    host, _ = hosting(hand)
    Node.tablet_changed(node, host)
    assert bool(forgotten) is goes


def test_leases_count_on_the_clock_that_goes_on_while_the_machine_sleeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rule R15: after a sleep, what was granted before it is over."""
    clocks = {time.CLOCK_BOOTTIME: 900.0, time.CLOCK_MONOTONIC: 100.0, time.CLOCK_REALTIME: 5.0}
    monkeypatch.setattr(time, "clock_gettime", clocks.__getitem__)
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    monkeypatch.setattr(time, "time", lambda: 5.0)
    assert SystemClock().now() == 900.0


# ---------------------------------------------------------------------- tables: a stop, and a drop


async def catalogue(now: Now | None = None) -> tuple[Catalogue, MemoryCoordination]:
    service = MemoryCoordinationService()
    coordination = MemoryCoordination(service)
    await coordination.start(_Listener())
    timing = Timing(lease=0.05, margin=0.01)
    found = Catalogue(coordination, now or Now(), Limits(), timing, list(NODES), 3, 2)
    return found, coordination


class _Listener:
    def descriptor_changed(self, tablet: int, data: bytes | None, version: int) -> None: ...
    def lock_changed(self, tablet: int, holder: bytes | None, mine: bool) -> None: ...
    def tables_changed(self) -> None: ...
    def nodes_changed(self) -> None: ...
    def session_changed(self, connected: bool) -> None: ...


async def test_a_create_that_waits_for_copies_does_not_hold_up_a_planned_stop() -> None:
    """The node that stops opens no copy any more, so it would wait for its own until its HTTP server gives up."""
    now = Now()
    found, _ = await catalogue(now)
    waiting = asyncio.create_task(found.create("t", [["k", "bytes"]], []))
    tablet = await _newborn(found)
    at_minimum = descriptor("n2", "n3", coordinator="n2", incarnation=11, tablet=tablet)
    found.descriptor_seen(tablet, at_minimum, 1)
    await asyncio.sleep(0.05)
    assert not waiting.done(), "the third copy may still come"
    found.leave()
    async with asyncio.timeout(5):
        assert (await waiting).name == "t"

    again = asyncio.create_task(found.create("u", [["k", "bytes"]], []))
    await _newborn(found, 2)
    await asyncio.sleep(0.05)
    assert not again.done(), "its coordinator may still come"
    now.seconds += 1.1
    async with asyncio.timeout(5):
        with pytest.raises(OutcomeUnknown, match="stands, but not all of its tablets are served") as caught:
            await again
    assert caught.value.detail["reason"] == "not_served", (
        "another node will tell: the SDK asks it under the same fence"
    )


async def _newborn(found: Catalogue, tables_count: int = 1) -> int:
    """The first tablet of the last table, once so many stand."""
    async with asyncio.timeout(5):
        while len(found.tables) < tables_count:
            await asyncio.sleep(0.01)
    return max(table.tablets[0].id for table in found.tables.values())


async def test_a_drop_marks_waits_for_a_member_and_for_every_lease() -> None:
    """Rule R18."""
    found, coordination = await catalogue()
    definition = await found._record("t", KeySchema.from_wire([["k", "bytes"]]), [b""], DEFAULT_OPTIONS)
    await found._publish(definition, -1)
    tablet = definition.tablets[0].id
    standing = await coordination.descriptor(tablet)
    assert standing is not None
    served = descriptor(*NODES, coordinator="n1", incarnation=11, tablet=tablet)
    await coordination.swap_descriptor(tablet, served.encode(), standing[1])
    asked: list[tuple[str, int]] = []
    may_stop = False

    async def has_stopped(node: str, which: int, epoch: int) -> bool:
        asked.append((node, epoch))
        return may_stop and node == "n2"

    found.has_stopped = has_stopped
    drop = asyncio.create_task(found.drop("t"))
    await asyncio.sleep(0.1)
    assert not drop.done()
    assert set(asked) == {(node, 4) for node in NODES}
    marked = await coordination.descriptor(tablet)
    assert marked is not None
    assert Descriptor.decode(marked[0]).dropped
    may_stop = True
    loop = asyncio.get_running_loop()
    begin = loop.time()
    await drop
    assert loop.time() - begin > found._timing.promise
    assert await coordination.tables() == {}
    again = await found._record("t", KeySchema.from_wire([["k", "bytes"]]), [b""], DEFAULT_OPTIONS)
    assert again.tablets[0].id != tablet


async def test_a_create_does_not_wait_for_a_table_that_is_dropped_meanwhile() -> None:
    """Rule R17: it did create it."""
    found, coordination = await catalogue()
    create = asyncio.create_task(found.create("t", [["k", "bytes"]], []))
    while not (standing := await coordination.tables()):
        await asyncio.sleep(0.001)
    definition = TableDefinition.from_wire(unpackb(standing["t"][0]))
    tablet = definition.tablets[0].id
    dropped = replace(descriptor(tablet=tablet), epoch=1, dropped=True)
    found.descriptor_seen(tablet, dropped, 1)
    with pytest.raises(OutcomeUnknown, match="was dropped meanwhile") as raised:
        await asyncio.wait_for(create, 5)
    assert raised.value.detail["reason"] == "dropping"


async def test_that_there_is_no_table_is_said_only_after_the_service_was_asked() -> None:
    found, coordination = await catalogue()
    definition = await found._record("t", KeySchema.from_wire([["k", "bytes"]]), [b""], DEFAULT_OPTIONS)
    await coordination.create_table("t", packb(definition.to_wire()), -1)  # by another node: none was told

    async def ours() -> bool:
        await asyncio.sleep(0.01)
        return True

    async def emptied() -> bool:
        return False

    with pytest.raises(Unavailable, match="cannot be known now"):
        await found.find("t", emptied)
    begun = found._reads_begun
    answers = await asyncio.gather(*(found.find(name, ours) for name in "tuuu"), return_exceptions=True)
    assert answers[0] == definition
    assert all(isinstance(answer, TableNotFound) for answer in answers[1:])
    assert found._reads_begun - begun == 2, "those who came during a read share the next one"


async def test_members_of_many_tablets_are_asked_once_and_after_the_question() -> None:
    """Rule R18: an answer that began before the mark was set would say nothing."""
    asked: list[str] = []
    tasks: list[Any] = []

    async def ask_peer(name: str, _path: str) -> dict[str, Any]:
        asked.append(name)
        return {"copies": {"1": {"promised": 4}, "2": {"promised": 3}}, "unopened": [4]}

    node: Any = SimpleNamespace(name="n1", spawn=lambda work: tasks.append(asyncio.ensure_future(work)))
    reporter = Reporter(node, ask_peer)
    answers = await asyncio.gather(*(reporter.has_stopped("n2", tablet, 4) for tablet in (1, 2, 3, 4)))
    assert (answers, asked) == ([True, False, True, False], ["n2"]), "4 is stored, and may still be opened"
    assert await reporter.has_stopped("n2", 1, 4)
    assert asked == ["n2", "n2"]
