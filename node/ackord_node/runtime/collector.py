"""Removes versions of rows that can no longer be read, on this node alone, a little at a time.

What may go is what the rule hides from every reader (`core.history`), judged by the tablet's clock as far as it is
durable here; so no reader sees whether it has gone yet. Keys that were just written come first, and a slow walk goes
over all of them, for what time alone makes removable. Each step runs in the engine's thread between two commits.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from ackord_node.core.effects import Corrupted, Event
from ackord_node.core.history import Retention
from ackord_node.core.replica import Replica
from ackord_node.ports import Batch, Clock, Engine, EngineCorrupt, EngineError, EngineFull
from ackord_node.runtime.committer import Committer

STEP_KEYS_COUNT = 256
STEP_RECORDS_COUNT = 1_024
TOUCHED_COUNT_MAX = 50_000  # keys to look at first; more are left to the walk
BUSY_PAUSE_S = 0.02  # between two steps while they find something
IDLE_PAUSE_S = 0.25


class Collector:
    """Of one tablet whose table keeps versions; ``tick`` begins a step where one is due."""

    def __init__(
        self,
        engine: Engine,
        committer: Committer,
        clock: Clock,
        replica: Replica,
        feed: Callable[[Event], None],
        crash: Callable[[str, bool], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        retention = replica.state.retention
        assert retention is not None
        self._engine = engine
        self._committer = committer
        self._clock = clock
        self._replica = replica
        self._retention: Retention = retention
        self._feed = feed
        self._crash = crash
        self._spawn = spawn
        self._upkeep = replica.state.upkeep
        self._touched = self._upkeep.keys_waiting
        self._position: bytes | None = b""  # of the walk; None: it has ended
        self._walked_at = (0, 0)  # the clock and the version as of which the last walk began
        self._is_working = False
        self._due = 0.0

    def touched(self, keys: list[bytes]) -> None:
        """These keys got versions that are on disk now."""
        touched = self._touched
        if len(touched) < TOUCHED_COUNT_MAX:
            now = self._clock.now()
            for key in keys:
                touched.setdefault(key, now)

    @property
    def wake_at(self) -> float:
        return self._due

    def tick(self, now: float) -> None:
        if self._is_working or now < self._due:
            return
        if not self._has_work():
            self._due = now + IDLE_PAUSE_S
            return
        self._is_working, self._due = True, now + BUSY_PAUSE_S
        self._spawn(self._step())

    def _has_work(self) -> bool:
        state = self._replica.state
        if state.filling or state.stopped_reason is not None:
            return False
        if self._touched or self._position is not None:
            return True
        stands = (state.clock.durable, state.applied_version)
        if stands == self._walked_at:
            return False
        self._position, self._walked_at = b"", stands
        return True

    async def _step(self) -> None:
        state = self._replica.state
        keys = list(self._touched)[:STEP_KEYS_COUNT]
        for key in keys:
            del self._touched[key]
        generation, clock_ms, position = state.generation, state.clock.durable, self._position
        count, pause = 0, IDLE_PAUSE_S
        try:
            count, rest, position = await self._committer.in_thread(
                lambda: self._remove(generation, clock_ms, keys, position)
            )
            self.touched(rest)
            self._position = position
        except EngineCorrupt as error:
            if error.tablet is None:
                self._crash(f"the store is damaged as a whole (rule R14): {error}", True)
            else:
                self._feed(Corrupted(str(error)))
        except EngineFull:
            self.touched(keys)  # later, when there is room again
        except EngineError as error:
            self._crash(f"versions could not be removed (rule R14): {error}", False)
        finally:
            self._is_working = False
            if self._touched or count >= STEP_KEYS_COUNT // 4:
                pause = BUSY_PAUSE_S
            self._due = self._clock.now() + pause
        self._upkeep.versions_removed(count)

    def _remove(
        self, generation: int, clock_ms: int, keys: list[bytes], position: bytes | None
    ) -> tuple[int, list[bytes], bytes | None]:
        """In the engine's thread. How many went, which keys are to be looked at again, and where the walk stands."""
        state = self._replica.state
        if (
            state.generation != generation
        ):  # what the store holds by now may be older than the clock that was read
            return 0, [], b""
        tablet, bounds = state.tablet, self._retention.removable(clock_ms)
        batch = Batch()
        rest: list[bytes] = []
        for at, key in enumerate(keys):
            room = STEP_RECORDS_COUNT - len(batch.history_drop)
            if room <= 0:
                rest = keys[at:]
                break
            found, follows = self._engine.history_excess(tablet, key, bounds, 1, room)
            batch.history_drop.extend((tablet, *item) for item in found)
            if follows == key:
                rest.append(key)
        if not keys and position is not None:
            found, position = self._engine.history_excess(
                tablet, position, bounds, STEP_KEYS_COUNT, STEP_RECORDS_COUNT
            )
            batch.history_drop.extend((tablet, *item) for item in found)
        if batch.history_drop:
            self._engine.commit(batch)
        return len(batch.history_drop), rest, position
