"""Many seeds over several processes, and what they met."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.sim.plan import Plan
from tests.sim.walk import Outcome, Walk

PROGRESS_SEEDS = 250
CHUNK = 8  # seeds handed to a worker at once


def run_plan(plan: Plan, is_wordy: bool = False) -> tuple[Outcome, Walk]:
    """One run; what failed is in its outcome."""
    walk = Walk(plan, is_wordy)
    try:
        walk.run()
    except Exception as error:
        if not isinstance(error, AssertionError):
            walk.outcome.error += "\n" + "".join(traceback.format_exception(error)[-6:])
    return walk.outcome, walk


@dataclass(slots=True)
class Total:
    seeds_count: int = 0
    virtual_s: float = 0.0
    steps_count: int = 0
    events_count: int = 0
    ops: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    failed: dict[int, str] = field(default_factory=dict)
    unheard: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        self.seeds_count += 1
        self.virtual_s += outcome.virtual_s
        self.steps_count += outcome.steps_count
        self.events_count += outcome.events_count
        self.ops.update(outcome.ops)
        self.faults.update(outcome.faults)
        self.unheard.update(outcome.unheard)
        if outcome.error:
            self.failed[outcome.seed] = outcome.error

    def shown(self, seconds: float) -> str:
        by_outcome: Counter[str] = Counter()
        for name, count in self.ops.items():
            by_outcome[name.rsplit(" ", 1)[1]] += count
        lines = [
            f"{self.seeds_count} seeds, {len(self.failed)} failed, in {seconds:.0f} s",
            f"{self.virtual_s / 3600:.2f} virtual hours, {self.steps_count} steps, {self.events_count} events",
            f"{self.ops.total()} operations of clients: {_listed(by_outcome)}",
            "faults by kind:",
            *(f"  {count:8d}  {kind}" for kind, count in sorted(self.faults.items())),
        ]
        return "\n".join(lines)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def quieten() -> None:
    """What a simulated run wants of the Python process: no logging, and few collections."""
    logging.disable(logging.CRITICAL)
    gc.set_threshold(50_000, 20, 50)


def campaign(
    plans: Callable[[int], Plan], seeds: Sequence[int], jobs: int, told: Callable[[Outcome], None]
) -> Total:
    total = Total()
    for outcome in _outcomes(plans, seeds, jobs):
        total.add(outcome)
        told(outcome)
        if total.seeds_count % PROGRESS_SEEDS == 0:
            print(
                f"{total.seeds_count} of {len(seeds)} seeds, {len(total.failed)} failed",
                file=sys.stderr,
                flush=True,
            )
    return total


_plans: Callable[[int], Plan]


def _one(seed: int) -> Outcome:
    return run_plan(_plans(seed))[0]


def _outcomes(plans: Callable[[int], Plan], seeds: Sequence[int], jobs: int) -> Iterator[Outcome]:
    global _plans
    _plans = plans  # the forked workers inherit it
    if jobs <= 1:
        yield from map(_one, seeds)
        return
    gc.freeze()
    with multiprocessing.get_context("fork").Pool(jobs, quieten) as pool:
        yield from pool.imap_unordered(_one, seeds, CHUNK)


def timed(work: Callable[[], Total]) -> tuple[Total, float]:
    begun = time.monotonic()
    return work(), time.monotonic() - begun
