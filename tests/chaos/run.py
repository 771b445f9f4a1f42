"""One run: machines, load and faults together for so many minutes, then the verdict."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.lag import LoopLag, share_over, watch_lag
from tests.chaos.load import Load
from tests.chaos.machines import Machines
from tests.chaos.nemesis import bring_faults, kinds_of_a_run
from tests.chaos.stage import Stage

HEALED_S = 120.0
WARM_UP_S = 2.0
COOL_DOWN_S = 2.0
ALL_KINDS_MINUTES = 20.0
BLOCKED_S = 0.02  # the event loop is blocked for longer in hardly any probe ...
BLOCKED_SHARE_MAX = 0.01
BLOCKED_MAX_S = 0.5  # ... and never for half a lease


@dataclass(frozen=True, slots=True)
class Order:
    """What was asked for."""

    minutes: float
    nodes_count: int
    seed: int
    only: tuple[str, ...]
    folder: Path
    work: str | None = None  # alone, instead of everything


@dataclass(slots=True)
class Outcome:
    """What became of it; all times are seconds of the run."""

    order: Order
    stage: Stage
    load: Load
    lag: LoopLag
    problems: list[str] = field(default_factory=list)
    duration_s: float = 0.0
    healed_s: float | None = None
    kinds_missing: list[str] = field(default_factory=list)
    is_broken_off: bool = False

    @property
    def is_passed(self) -> bool:
        return not self.problems and not self.is_broken_off


async def run(order: Order, machines: Machines) -> Outcome:
    """The machines have been started. Every problem found is in the outcome."""
    began = time.monotonic()

    def now() -> float:
        return time.monotonic() - began

    load = Load(machines.cluster.urls, machines.names, order.folder, order.seed, now, order.work)
    stage = Stage(machines, random.Random(order.seed), now, load)
    outcome = Outcome(order, stage, load, LoopLag())
    async with load:
        await machines.wait_whole(HEALED_S)
        load.begin()
        await asyncio.sleep(WARM_UP_S)
        helpers = [
            asyncio.create_task(stage.supervise()),
            asyncio.create_task(watch_lag(stage, outcome.lag)),
        ]
        try:
            await bring_faults(stage, order.minutes * 60, order.only)
        except asyncio.CancelledError:
            outcome.is_broken_off = True
        await _judge(outcome, helpers)
    return outcome


async def _judge(outcome: Outcome, helpers: list[asyncio.Task[None]]) -> None:
    stage, load = outcome.stage, outcome.load
    began_s = stage.now()
    if await stage.wait_whole(None, HEALED_S, must=True):
        outcome.healed_s = stage.now() - began_s
    await asyncio.sleep(COOL_DOWN_S)
    await load.end()
    outcome.duration_s = stage.now()
    for helper in helpers:
        if helper.done() and not helper.cancelled() and helper.exception() is not None:
            outcome.problems.append(f"a helper of the run failed: {helper.exception()!r}")
        helper.cancel()
    await asyncio.gather(*helpers, return_exceptions=True)
    outcome.problems += await load.judge()
    outcome.problems += stage.problems
    outcome.problems += _tracebacks(stage.machines)
    outcome.problems += judge_lag(outcome.lag)
    outcome.kinds_missing = _kinds_missing(outcome.order.only, stage)
    if outcome.kinds_missing and outcome.order.minutes >= ALL_KINDS_MINUTES and not outcome.is_broken_off:
        outcome.problems.append(f"these faults never came: {', '.join(outcome.kinds_missing)}")


def _kinds_missing(only: Collection[str], stage: Stage) -> list[str]:
    came = {kind for band in stage.bands for kind in (band.kind, *band.parts)}
    return [kind for kind in kinds_of_a_run(only) if kind not in came]


def _tracebacks(machines: Machines) -> list[str]:
    return [
        f"{node.name} logged a traceback: {node.log_path}"
        for node in machines.nodes
        if "Traceback" in node.log()
    ]


def judge_lag(lag: LoopLag) -> list[str]:
    """What the machine took is not held against the nodes."""
    share, worst_s = share_over(lag.blocked, BLOCKED_S), max(lag.blocked, default=0.0)
    problems = []
    if share > BLOCKED_SHARE_MAX:
        problems.append(
            f"the nodes' event loops were blocked for more than {BLOCKED_S} s in {share:.2%} of the probes"
        )
    if worst_s > BLOCKED_MAX_S:
        problems.append(f"a node's event loop was blocked for more than {BLOCKED_MAX_S} s: {lag.late}")
    return problems
