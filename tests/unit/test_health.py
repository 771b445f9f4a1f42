"""A disk that is slow, or full, and a machine that is merely busy, as the node's own watch tells them apart."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from ackord_node.adapters.clock import SystemClock
from ackord_node.adapters.processor import ProcessorWaits
from ackord_node.runtime.committer import Committer
from ackord_node.runtime.engine_thread import EngineThread
from ackord_node.runtime.health import PROBE_S, WELL_AFTER_S, Health

SLOW_S = 1.0


class Watched:
    """A node's watch, looked through at times that a test names."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waited_s = 0.0
        self.told: list[str | None] = []
        self.committer = SimpleNamespace(busy_since=None, is_full=False, waited_s=lambda: self.waited_s)
        nobody: Any = None
        committer: Any = self.committer
        self.health = Health(nobody, committer, nobody, nobody, SLOW_S, self.told.append)

    def begin(self) -> None:
        self.committer.busy_since = self.now

    def look(self, after_s: float, late_s: float = 0.0, waited_s: float = 0.0) -> None:
        """Looks every so often; the last time ``late_s`` late, and the engine's thread has waited ``waited_s``."""
        for _ in range(round(after_s / PROBE_S)):
            self.now += PROBE_S
            self.health.look(self.now, 0.0)
        if late_s or waited_s:
            self.now += PROBE_S + late_s
            self.waited_s += waited_s
            self.health.look(self.now, late_s)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_a_commit_that_hangs_is_noticed_while_it_is_under_way(watched: Watched) -> None:
    watched.begin()
    watched.look(SLOW_S - PROBE_S)
    assert watched.told == []
    watched.look(3 * PROBE_S)
    assert watched.told == ["the disk is slow: a commit takes longer than confirm_timeout_ms"]
    watched.committer.busy_since = None
    watched.look(WELL_AFTER_S - 2 * PROBE_S)
    assert len(watched.told) == 1
    watched.look(4 * PROBE_S)
    assert watched.told[1:] == [None]


def test_a_busy_loop_makes_the_watch_no_more_patient(watched: Watched) -> None:
    watched.begin()
    while not watched.told:
        watched.look(0.0, late_s=0.8 * PROBE_S)
    assert watched.now - watched.committer.busy_since < SLOW_S + 2 * PROBE_S


def test_a_thread_that_waits_for_a_processor_is_no_slow_disk(watched: Watched) -> None:
    watched.begin()
    for _ in range(50):
        watched.look(0.0, waited_s=PROBE_S)
    assert watched.now - watched.committer.busy_since > 2 * SLOW_S
    assert watched.told == []


def test_a_loop_that_comes_late_has_not_heard_yet_what_became_of_a_commit(watched: Watched) -> None:
    """As after the whole process stood still."""
    watched.begin()
    watched.look(0.1, late_s=5.0)
    assert watched.told == []
    watched.look(SLOW_S)
    assert len(watched.told) == 1, "it was given its time since, and hangs"


def test_what_one_commit_was_delayed_by_is_not_held_in_favour_of_the_next(watched: Watched) -> None:
    watched.begin()
    watched.look(0.1, late_s=5.0, waited_s=5.0)
    watched.begin()
    watched.look(SLOW_S + 2 * PROBE_S)
    assert len(watched.told) == 1


async def test_the_engines_own_thread_is_the_one_whose_waits_count() -> None:
    watched_by: list[str] = []

    def watch() -> Any:
        watched_by.append(threading.current_thread().name)
        return lambda: 1.5

    worker = EngineThread(watch)
    await asyncio.wait_for(worker.call(lambda: None), 10)
    assert watched_by == ["engine"] and worker.waited_s() == 1.5
    await worker.close()


class Hanging:
    """An engine whose commits end when the test lets them."""

    def __init__(self) -> None:
        self.may_end = threading.Event()

    def commit(self, batch: Any) -> None:
        assert self.may_end.wait(30)

    def free_bytes(self) -> int:
        return 1


async def test_of_a_real_thread_a_commit_that_hangs_is_noticed_and_a_loop_that_stands_still_is_not() -> None:
    engine, told = Hanging(), asyncio.Queue[str | None]()
    unused: Any = engine
    observer: Any = SimpleNamespace(loop_lag=lambda lag: None, engine_commit=lambda count, seconds: None)
    worker, clock = EngineThread(lambda: ProcessorWaits().seconds), SystemClock()
    committer = Committer(unused, worker, clock, observer, lambda reason, is_void: None)
    health = Health(unused, committer, clock, observer, 0.2, told.put_nowait)
    running = asyncio.create_task(health.run())
    await asyncio.sleep(0)

    committer.put_node({"a": b"1"})
    await asyncio.sleep(0)
    time.sleep(1.0)  # the loop of a process that is not run  # noqa: ASYNC251
    engine.may_end.set()
    await asyncio.sleep(2 * PROBE_S)
    assert told.empty()

    engine.may_end.clear()
    committer.put_node({"a": b"2"})
    assert "slow" in str(await asyncio.wait_for(told.get(), 20))
    assert committer.busy_since is not None, "it is under way"
    engine.may_end.set()
    running.cancel()
    await committer.close()
