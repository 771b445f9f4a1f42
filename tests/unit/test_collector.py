"""The background removal of versions, over an engine in memory: what goes, in what order, and when it rests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from ackord.wire.options import TableOptions
from ackord_node.adapters.engine_memory import MemoryEngine
from ackord_node.core.history import VERSION_MAX, Retention
from ackord_node.core.replica import Replica
from ackord_node.core.upkeep import Upkeep
from ackord_node.ports import Batch, EngineFull
from ackord_node.runtime import collector as module
from ackord_node.runtime.collector import Collector
from ackord_node.runtime.committer import Committer

TABLET = 5
GRACE_MS = 1_000


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def now(self) -> float:
        return self.now_s

    def wall_ms(self) -> int:
        return 0


class Marks:
    """A tablet's clock: far ahead where it is not durable yet."""

    durable = 0
    at_store = at_commit = at_end = 1 << 40


class FakeState:
    def __init__(self, options: TableOptions) -> None:
        self.tablet = TABLET
        self.retention = Retention(options, GRACE_MS)
        self.clock = Marks()
        self.generation = 1
        self.filling = False
        self.stopped_reason = None
        self.applied_version = 0
        self.upkeep = Upkeep()


class FakeReplica:
    def __init__(self, options: TableOptions) -> None:
        self.state = FakeState(options)


class AtOnce:
    """A committer whose thread is this one."""

    async def in_thread(self, work: Callable[[], Any]) -> Any:
        return work()


class Bench:
    """One collector, and what it asked for."""

    def __init__(self, options: TableOptions) -> None:
        self.engine = MemoryEngine()
        self.engine.open()
        self.clock = FakeClock()
        self.replica = FakeReplica(options)
        self.events: list[Any] = []
        self.crashes: list[str] = []
        self._work: list[Coroutine[Any, Any, None]] = []
        self.collector = Collector(
            self.engine,
            cast(Committer, AtOnce()),
            self.clock,
            cast(Replica, self.replica),
            self.events.append,
            lambda reason, _: self.crashes.append(reason),
            self._work.append,
        )

    def write(self, key: bytes, *versions: int, is_deletion: bool = False) -> None:
        row = None if is_deletion else b"row"
        self.engine.commit(Batch(history=[(TABLET, key, version, row) for version in versions]))
        self.replica.state.applied_version += 1
        self.collector.touched([key])

    def steps(self, count: int) -> int:
        """Ticks so often; how many steps were begun."""
        begun = 0
        for _ in range(count):
            self.clock.now_s += 1.0
            self.collector.tick(self.clock.now_s)
            while self._work:
                asyncio.run(cast(Any, self._work.pop()))
                begun += 1
        return begun

    def left(self, key: bytes) -> list[int]:
        return [version for version, _ in self.engine.history(TABLET, key, VERSION_MAX, 10_000)]


@pytest.fixture
def bench() -> Bench:
    return Bench(TableOptions(keep_versions=2))


def test_what_was_just_overwritten_goes_first(bench: Bench) -> None:
    bench.write(b"a\x01", 1, 2, 3, 4)
    bench.write(b"b\x01", 5)
    assert bench.steps(1) == 1
    assert bench.left(b"a\x01") == [4, 3]
    assert bench.left(b"b\x01") == [5]
    assert bench.replica.state.upkeep.take_counts() == (0, 2)
    assert bench.replica.state.upkeep.take_counts() == (0, 0)


def test_it_tells_what_waits_and_how_long(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEP_KEYS_COUNT", 1)
    upkeep = bench.replica.state.upkeep
    assert (len(upkeep.keys_waiting), upkeep.waiting_s(5.0)) == (0, 0.0)
    for at, key in enumerate((b"a\x01", b"b\x01", b"a\x01")):
        bench.clock.now_s = float(at)
        bench.write(key, 2 * at + 1, 2 * at + 2)
    assert (len(upkeep.keys_waiting), upkeep.waiting_s(5.0)) == (2, 5.0), "since its first write"
    bench.steps(1)
    assert (len(upkeep.keys_waiting), upkeep.waiting_s(5.0)) == (1, 4.0)
    bench.steps(1)
    assert (len(upkeep.keys_waiting), upkeep.waiting_s(5.0)) == (0, 0.0)


def test_it_rests_when_nothing_has_changed(bench: Bench) -> None:
    bench.write(b"a\x01", 1, 2, 3)
    assert bench.steps(20) < 6
    assert bench.steps(20) == 0
    bench.write(b"a\x01", 4)
    assert bench.steps(20) > 0
    assert bench.left(b"a\x01") == [4, 3]


def test_steps_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEP_RECORDS_COUNT", 10)
    bench.write(b"a\x01", *range(1, 36))
    for left in (25, 15, 5, 2):
        assert bench.steps(1) == 1
        assert len(bench.left(b"a\x01")) == left


def test_nothing_is_removed_by_a_reading_of_the_clock_that_is_not_durable_here() -> None:
    """After a restart the copy would have an earlier clock, by which what is gone can still be read."""
    bench = Bench(TableOptions(keep_for=10))
    bench.write(b"a\x01", 5_000 << 16, 6_000 << 16)
    bench.steps(10)
    assert len(bench.left(b"a\x01")) == 2
    bench.replica.state.clock.durable = bench.replica.state.clock.at_end
    bench.steps(10)
    assert len(bench.left(b"a\x01")) == 1


def test_the_walk_finds_what_time_makes_removable() -> None:
    bench = Bench(TableOptions(keep_for=10))
    old, new = 5_000 << 16, 6_000 << 16
    bench.write(b"a\x01", old, new)
    bench.write(b"gone\x01", old)
    bench.write(b"gone\x01", new, is_deletion=True)
    bench.steps(10)
    assert (bench.left(b"a\x01"), bench.left(b"gone\x01")) == ([new, old], [new, old])
    bench.replica.state.clock.durable = 15_999
    bench.steps(10)
    assert bench.left(b"a\x01") == [new, old], "superseded less than ten seconds ago"
    bench.replica.state.clock.durable = 16_000
    bench.steps(10)
    assert (bench.left(b"a\x01"), bench.left(b"gone\x01")) == ([new], [])


def test_nothing_is_removed_from_a_copy_that_was_replaced_meanwhile(bench: Bench) -> None:
    bench.write(b"a\x01", 1, 2, 3)
    removed = bench.collector._remove(0, 0, [b"a\x01"], None)
    assert removed == (0, [], b"")
    assert bench.left(b"a\x01") == [3, 2, 1]


def test_a_full_disk_is_tried_again_and_a_failed_one_ends_the_process(bench: Bench) -> None:
    bench.write(b"a\x01", 1, 2, 3)
    bench.engine.disk.full = True
    with pytest.raises(EngineFull):
        bench.engine.commit(Batch(meta={1: b"m"}))
    bench.steps(2)
    assert bench.left(b"a\x01") == [3, 2, 1] and not bench.crashes
    bench.engine.disk.full = False
    bench.steps(2)
    assert bench.left(b"a\x01") == [3, 2]
    bench.write(b"a\x01", 4)
    bench.engine.disk.fail_fsync = True
    bench.steps(1)
    assert bench.crashes


def test_damage_is_told_to_the_copy(bench: Bench) -> None:
    bench.write(b"a\x01", 1, 2, 3)
    bench.engine.disk.corrupt_next.add(TABLET)
    bench.steps(1)
    assert len(bench.events) == 1 and not bench.crashes
