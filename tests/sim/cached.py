"""Clients that keep rows (rule R19) among those of the simulator and the chaos runs: their reads from memory stand in
the same histories, and are judged like all others.

``Kept`` reads few rows again and again, so that most come from memory, and writes them now and then. ``keeping`` gives
any workload a store whose tables keep rows.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

from tests.sim.recorder import Context, Recorder, StoreLike
from tests.sim.workload import Workload

PAUSE_S = 0.02  # between two reads of a row, at most
READS_MAX = 8
SHARE = 0.5  # of the simulator's clients


class KeepingStore:
    """A store whose tables keep rows; all else is the store's own."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def table(self, name: str) -> Any:
        return self._store.table(name, cache=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def keeping(store: Any) -> StoreLike:
    return KeepingStore(store)


class Kept(Workload):
    name = "kept"
    keys_count = 3

    async def run(self, context: Context) -> None:
        await super().run(
            replace(context, store=keeping(context.store), pause_s=min(context.pause_s, PAUSE_S))
        )

    async def step(self, recorder: Recorder, rng: random.Random, memory: dict[Any, Any]) -> None:
        key = self.key(rng.randrange(self.keys_count))
        choice = rng.random()
        if choice < 0.15:
            await recorder.put(key, {"v": recorder.context.stamp()})
        elif choice < 0.2:
            await recorder.delete(key)
        elif choice < 0.25:
            await recorder.update(key, {}, increment={"n": 1})
        else:
            for _ in range(rng.randrange(1, READS_MAX)):
                await recorder.get(key)
                await asyncio.sleep(rng.random() * PAUSE_S)


def kept_beside(
    names: tuple[str, ...], table: str, slots_count: int, seed: int, number: int
) -> list[Workload]:
    """What some of the simulated clients do beside the workloads ``names``, by a chance of its own."""
    chance = random.Random(f"kept {seed} {number}").random()
    return [Kept(table, slots_count)] if names != ("tables",) and chance < SHARE else []
