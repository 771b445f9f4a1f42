"""The simulated processes behave as processes do, and repeat exactly."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.sim.kernel import Process, World


@pytest.fixture
def world() -> Iterator[World]:
    made = World(7)
    yield made
    made.close()


def test_sleeping_takes_virtual_time_only(world: World) -> None:
    process = Process(world, "p")
    woken: list[float] = []

    async def sleep() -> None:
        for _ in range(3):
            await asyncio.sleep(10)
            woken.append(world.now)

    process.start(sleep())
    world.run_until(100)
    assert [round(at) for at in woken] == [10, 20, 30]


def test_a_fast_clock_wakes_early_and_a_change_of_rate_counts_at_once(world: World) -> None:
    fast, changed = Process(world, "fast", rate=2.0), Process(world, "changed", offset=500.0)
    woken: dict[str, float] = {}

    async def sleep(process: Process) -> None:
        begun = process.now()
        await asyncio.sleep(10)
        assert process.now() - begun == pytest.approx(10, abs=0.01)
        woken[process.name] = world.now

    fast.start(sleep(fast))
    changed.start(sleep(changed))
    world.at(4, changed.set_rate, 0.5)
    world.run_until(100)
    assert woken == {"fast": pytest.approx(5, abs=0.01), "changed": pytest.approx(16, abs=0.01)}


def test_no_timer_comes_before_its_time_on_any_clock(world: World) -> None:
    process = Process(world, "p", offset=5.177)
    early: list[float] = []

    def check(due: float) -> None:
        if process.now() < due:  # a program that sets its timer again would do so for ever
            early.append(due)

    world.at(7.123, process.set_rate, 1.0004062893740873)
    for number in range(2_000):
        due = 12.301 + number * 0.0137
        process.loop.call_at(due, check, due)
    world.run_until(100)
    assert not early


def test_nothing_of_a_paused_process_runs_until_it_is_resumed(world: World) -> None:
    process = Process(world, "p")
    done: list[float] = []

    async def work() -> None:
        await asyncio.sleep(1)
        done.append(world.now)

    process.start(work())
    world.at(0.5, process.pause)
    world.at(2.0, process.post, lambda: done.append(-world.now))
    world.at(5.0, process.resume)
    world.run_until(4.9)
    assert done == []
    world.run_until(10)
    assert sorted(map(abs, done)) == pytest.approx([5.0, 5.0], abs=0.001)


@pytest.mark.parametrize("callbacks", [1, 2, 3])
def test_a_pause_may_come_between_two_callbacks_of_one_turn(world: World, callbacks: int) -> None:
    process = Process(world, "p")
    ran: list[int] = []
    for number in range(4):
        process.post(ran.append, number)
    process.stop_within_turn(callbacks, process.pause)
    world.run_until(1)
    assert ran == list(range(callbacks))
    process.resume()
    world.run_until(2)
    assert ran == [0, 1, 2, 3]


def test_a_killed_process_runs_neither_finally_nor_callbacks(world: World) -> None:
    process = Process(world, "p")
    ran: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            ran.append("cancelled")
        finally:
            ran.append("finally")

    process.start(work())
    world.at(0.5, process.kill)
    world.at(0.6, process.post, lambda: ran.append("posted"))
    world.run_until(10)
    assert ran == []


def test_closing_the_world_is_silent_even_if_a_program_resists() -> None:
    world = World(1)
    process = Process(world, "p")

    async def resist() -> None:
        while True:
            try:
                await asyncio.sleep(1)
            finally:
                await asyncio.sleep(1)

    process.start(resist())
    world.run_until(0.5)
    world.close()


def test_an_exception_that_nobody_handles_fails_the_run(world: World) -> None:
    process = Process(world, "p")
    process.post(lambda: [][0])
    with pytest.raises((AssertionError, IndexError)):
        world.run_until(1)


def test_a_run_without_end_is_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.sim.kernel.EVENTS_MAX", 1000)
    process = Process(world, "p")

    async def spin() -> None:
        while True:
            await asyncio.sleep(0)

    process.start(spin())
    with pytest.raises(AssertionError, match="without end"):
        world.run_until(10)


def test_timeouts_and_events_work_as_in_asyncio(world: World) -> None:
    process = Process(world, "p")

    async def work() -> list[str]:
        seen: list[str] = []
        event = asyncio.Event()
        asyncio.get_running_loop().call_later(2, event.set)
        try:
            async with asyncio.timeout(1):
                await event.wait()
        except TimeoutError:
            seen.append("timeout")
        await event.wait()
        seen.append("event")
        results = await asyncio.gather(asyncio.sleep(1, "a"), asyncio.sleep(0.5, "b"))
        return [*seen, *results]

    task = process.start(work())
    world.run_until(10)
    assert task.result() == ["timeout", "event", "a", "b"]
