"""Virtual time and virtual processes: a whole cluster in one thread, decided by one seed.

The ``World`` has true time, a heap of what will happen and the only randomness. A ``Process`` is a simulated
program: an event loop of its own (asyncio's API without threads, sockets or real time), a local clock that may
drift, and what an operating system does to programs: pause them between any two callbacks, end them at once.

A killed process does nothing any more: no callback, no ``finally``, no ``except``. Its coroutines stay referenced
until ``World.close`` ends them, when nothing that they do has an effect.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
import random
import sys
import warnings
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")
Call = Callable[..., object]

TURN_S = 0.00002  # what one turn of an event loop takes
EVENTS_MAX = 400_000  # of one run; usual are ten thousand
NEVER = float("inf")
CLOSE_TRIES_COUNT = 20


class Timer:
    """Something that will happen in the world."""

    __slots__ = ("args", "call", "is_cancelled")

    def __init__(self, call: Call, args: tuple[Any, ...]) -> None:
        self.call = call
        self.args = args
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class World:
    """True time in seconds from 0, and what happens when."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = 0.0
        self.events_count = 0
        self.processes: list[Process] = []
        self.failures: list[str] = []  # what no simulated program may do: unhandled exceptions
        self.unheard: list[str] = []  # exceptions of tasks that nobody asked for
        self._heap: list[tuple[float, int, Timer]] = []
        self._loop: SimLoop | None = None  # the running one
        self._sequence = 0

    def at(self, when: float, call: Call, *args: Any) -> Timer:
        timer = Timer(call, args)
        self._sequence += 1
        heapq.heappush(self._heap, (when if when > self.now else self.now, self._sequence, timer))
        return timer

    def after(self, delay_s: float, call: Call, *args: Any) -> Timer:
        return self.at(self.now + delay_s, call, *args)

    def run_until(self, end: float, stop: Callable[[], bool] | None = None) -> bool:
        """Lets everything happen until ``end``, or until ``stop`` is true after an event; whether it was."""
        try:
            return self._run_until(end, stop)
        finally:
            self._loop = None
            asyncio._set_running_loop(None)

    def enter(self, loop: SimLoop) -> None:
        """The running loop is this one, until a turn of another process: setting it is not cheap."""
        if loop is not self._loop:
            self._loop = loop
            asyncio._set_running_loop(loop)

    def _run_until(self, end: float, stop: Callable[[], bool] | None) -> bool:
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= end:
            when, _, timer = pop(heap)
            if timer.is_cancelled:
                continue
            self.now = when
            self.events_count += 1
            timer.call(*timer.args)
            if self.failures:
                raise AssertionError(self.failures[0])
            if self.events_count > EVENTS_MAX:
                raise AssertionError(f"{EVENTS_MAX} events: something goes on without end")
            if stop is not None and stop():
                return True
        self.now = max(self.now, end)
        return False

    def close(self) -> None:
        """Ends every process and its coroutines, silently."""
        with _silenced():
            for process in self.processes:
                process.kill()
            for process in self.processes:
                process.loop.discard()
        self._heap.clear()


class Process:
    """One simulated program. ``rate`` is how fast its clock runs; ``offset`` what it shows at true time 0."""

    def __init__(self, world: World, name: str, offset: float = 0.0, rate: float = 1.0) -> None:
        self.world = world
        self.name = name
        self.is_alive = True
        self.is_paused = False
        self.wall_ahead_ms = 0  # what the wall clock shows beyond true time
        self.rng = random.Random(world.rng.getrandbits(64))
        self._rate = rate
        self._local_at = offset + world.now * rate
        self._true_at = world.now
        self.loop = SimLoop(self)  # type: ignore[abstract]  # what nobody here needs of a loop raises
        self._is_turn_planned = False
        self._wake_at = NEVER  # true time of the next wake-up for a timer
        self._stop_in: int | None = None  # callbacks until it is stopped in the middle of a turn ...
        self._on_stop: Call | None = None  # ... and what is done then
        world.processes.append(self)

    # ---------------------------------------------------------------------------------- time

    def now(self) -> float:
        """The local monotonic clock, seconds."""
        return self._local_at + (self.world.now - self._true_at) * self._rate

    def wall_ms(self) -> int:
        return 1_600_000_000_000 + int(self.world.now * 1000) + self.wall_ahead_ms

    @property
    def rate(self) -> float:
        return self._rate

    def set_rate(self, rate: float) -> None:
        """From now on the local clock runs at another speed."""
        self._local_at, self._true_at = self.now(), self.world.now
        self._rate = rate
        self._wake_at = NEVER
        self._schedule()

    def true_time_of(self, local: float) -> float:
        """The first true time at which the local clock shows ``local``; rounded down, a program that looks at its
        clock before it waits on would wait for the rest of nothing for ever."""
        when = self._true_at + (local - self._local_at) / self._rate
        while self._local_at + (when - self._true_at) * self._rate < local:
            when = math.nextafter(when, NEVER)
        return when

    # --------------------------------------------------------------------------- life and death

    def post(self, call: Call, *args: Any) -> None:
        """Runs ``call`` in the process's loop: later if it is paused, never if it is dead."""
        if self.is_alive:
            self.loop.call_soon(call, *args)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begins a task in this process, from outside."""
        return self.loop.create_task(work)

    def pause(self) -> None:
        """As SIGSTOP does: time goes on, nothing runs."""
        self.is_paused = True

    def resume(self) -> None:
        if self.is_paused:
            self.is_paused = False
            self._wake_at = NEVER
            self._schedule()

    def kill(self) -> None:
        """As SIGKILL does."""
        self.is_alive = False

    def stop_within_turn(self, callbacks_count: int, on_stop: Call) -> None:
        """Calls ``on_stop`` after so many more callbacks: between two of them, that is at any await."""
        self._stop_in, self._on_stop = callbacks_count, on_stop

    # ------------------------------------------------------------------------------------ turns

    def wanted(self) -> None:
        """Something is ready: a turn begins soon, unless one is planned already."""
        if not self._is_turn_planned and self.is_alive and not self.is_paused:
            self._is_turn_planned = True
            self.world.at(self.world.now + TURN_S, self._run_turn, True)

    def timer_set(self, due: float) -> None:
        """The first timer is due then (local time): the process wakes by itself at that time. A wake-up that was
        planned for earlier stays, finds nothing, and plans the next."""
        when = self.true_time_of(due)
        if when < self._wake_at and self.is_alive and not self.is_paused:
            self._wake_at = when
            self.world.at(when, self._run_turn, False)

    def _schedule(self) -> None:
        if self.loop.ready:
            self.wanted()
        else:
            due = self.loop.next_due()
            if due is not None:
                self.timer_set(due)

    def _run_turn(self, is_planned: bool) -> None:
        if is_planned:
            self._is_turn_planned = False
        elif self.world.now >= self._wake_at:
            self._wake_at = NEVER
        if self._is_stopped():
            return
        loop, ready = self.loop, self.loop.ready
        loop.take_due(self.now() + 1e-9)
        self.world.enter(loop)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle.is_cancelled:
                handle.run()
            if self._stop_in is not None:
                self._count_down()
            if self.is_paused or not self.is_alive:
                return
        self._schedule()

    def _is_stopped(self) -> bool:
        return not self.is_alive or self.is_paused

    def _count_down(self) -> None:
        assert self._stop_in is not None and self._on_stop is not None
        self._stop_in -= 1
        if self._stop_in <= 0:
            on_stop = self._on_stop
            self._stop_in = self._on_stop = None
            on_stop()


class SimHandle(asyncio.TimerHandle):
    """A callback that waits in a loop; without contexts, which nothing here uses."""

    __slots__ = ("args", "call", "is_cancelled", "loop", "when_s")

    def __init__(self, loop: SimLoop, when_s: float, call: Call, args: tuple[Any, ...]) -> None:
        self.loop = loop
        self.when_s = when_s
        self.call = call
        self.args = args
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def cancelled(self) -> bool:
        return self.is_cancelled

    def when(self) -> float:
        return self.when_s

    def run(self) -> None:
        try:
            self.call(*self.args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self.loop.call_exception_handler({"message": f"in {self.call!r}", "exception": error})

    def __repr__(self) -> str:
        return f"<SimHandle {self.call!r}>"


class SimLoop(asyncio.AbstractEventLoop):
    """The event loop of one process. Timers are kept in its local time."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.ready: deque[SimHandle] = deque()
        self.time = process.now  # type: ignore[method-assign]
        self._timers: list[tuple[float, int, SimHandle]] = []
        self._sequence = 0
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._generators: dict[int, Any] = {}

    # ------------------------------------------------------------------------ for the process

    def next_due(self) -> float | None:
        timers = self._timers
        while timers and timers[0][2].is_cancelled:
            heapq.heappop(timers)
        return timers[0][0] if timers else None

    def take_due(self, now: float) -> None:
        timers = self._timers
        while timers and timers[0][0] <= now:
            handle = heapq.heappop(timers)[2]
            if not handle.is_cancelled:
                self.ready.append(handle)

    def discard(self) -> None:
        """Closes what the killed process's tasks are made of, whatever they say to it."""
        for task in list(self._tasks):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coroutine: Any = task.get_coro()
            for _ in range(CLOSE_TRIES_COUNT):
                try:
                    coroutine.close()
                except BaseException:  # the program's own reactions: nobody is there to hear them
                    continue
                break
        self._tasks.clear()
        self.ready.clear()
        self._timers.clear()

    # ----------------------------------------------------------------------- asyncio's own API

    def call_soon(self, callback: Call, *args: Any, context: Any = None) -> SimHandle:  # type: ignore[override]
        handle = SimHandle(self, 0.0, callback, args)
        self.ready.append(handle)
        self.process.wanted()
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Call, *args: Any, context: Any = None
    ) -> SimHandle:
        return self.call_at(self.process.now() + delay, callback, *args)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Call, *args: Any, context: Any = None
    ) -> SimHandle:
        handle = SimHandle(self, when, callback, args)
        self._sequence += 1
        heapq.heappush(self._timers, (when, self._sequence, handle))
        if self._timers[0][2] is handle:
            self.process.timer_set(when)
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: Any = None
    ) -> asyncio.Task[T]:
        task = asyncio.Task(coro, loop=self, name=name or "task")
        self._tasks[task] = None
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.process.is_alive:
            return
        error = context.get("exception")
        told = f"{self.process.name}: {context.get('message')}: {error!r}"
        if "never retrieved" in told:  # told when the garbage collector comes: not at a moment that repeats
            self.process.world.unheard.append(told)
            return
        self.process.world.failures.append(told)
        if error is not None:
            raise AssertionError(told) from error

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False


@contextlib.contextmanager
def _silenced() -> Generator[None]:
    """Coroutines that are closed in the middle complain of it; that is how a killed process ends."""
    before = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.unraisablehook = before
