"""Whole clusters under faults: seeds, the same run twice, and the simulator's own tools.

``ACKORD_SIM_SEEDS`` and ``ACKORD_SIM_FIRST_SEED`` choose other seeds; ``python -m tests.sim --seeds 5000 --jobs 2`` is
the campaign.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ackord_node.core.coordinator import Coordinator
from ackord_node.core.follower import Follower
from tests.sim.__main__ import command
from tests.sim.campaign import Total, run_plan
from tests.sim.operations import OPERATIONS
from tests.sim.plan import ALL_KINDS, Plan, draw, without
from tests.sim.shrink import shrink

pytestmark = pytest.mark.sim

ROOT = Path(__file__).resolve().parents[2]
SEEDS = int(os.environ.get("ACKORD_SIM_SEEDS", "60"))
FIRST_SEED = int(os.environ.get("ACKORD_SIM_FIRST_SEED", "1"))
GROUP = 10
DIGEST_SEEDS = (4, 17)
REGRESSIONS = [
    int(line.split()[0])
    for line in (Path(__file__).parent / "regressions.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def check(seed: int) -> None:
    plan = draw(seed)
    outcome, walk = run_plan(plan)
    if outcome.error:
        tail = "\n".join(list(walk.trace.lines)[-30:])
        pytest.fail(f"{plan.shown()}\n{tail}\n{outcome.error}\nreplay: {command(plan)}", pytrace=False)


@pytest.mark.parametrize("first", range(FIRST_SEED, FIRST_SEED + SEEDS, GROUP))
def test_seeds(first: int) -> None:
    for seed in range(first, min(first + GROUP, FIRST_SEED + SEEDS)):
        check(seed)


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_seeds_that_failed_once(seed: int) -> None:
    check(seed)


@pytest.mark.parametrize("seed", DIGEST_SEEDS)
def test_a_run_is_the_same_twice_and_under_another_hash_seed(seed: int) -> None:
    """Every message, every answer and every fault, at the same virtual times."""
    found = [run_plan(draw(seed))[0].digest]
    for hash_seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-m", "tests.sim", str(seed)],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )
        found.append(run.stdout.split()[-1])
    assert found == [found[0]] * 3


def test_two_seeds_differ() -> None:
    assert len({run_plan(draw(seed))[0].digest for seed in (1, 2, 3)}) == 3


def test_a_plan_is_the_same_however_it_is_drawn() -> None:
    assert draw(5) == draw(5)
    assert {kind for seed in range(1, 300) for kind in draw(seed).kinds} == set(ALL_KINDS)
    plans = [draw(seed) for seed in range(1, 300)]
    assert {name for plan in plans for name in plan.operations[: plan.clients_count]} == set(OPERATIONS)
    assert 100 < sum(not plan.operations for plan in plans) < 150, "the others do more than write and read"
    assert 50 < sum(plan.options.has_history for plan in plans) < 120


def test_a_plan_without_faults_is_quiet() -> None:
    """Then every call succeeds: what fails here is not the faults' doing."""
    plan = replace(without(draw(3), ALL_KINDS), clients_count=2, tablets_count=2, pause_s=0.05)
    outcome, walk = run_plan(plan)
    assert not outcome.error
    assert not walk.trace.faults
    failed = Counter({name: count for name, count in outcome.ops.items() if name.split()[1] != "ok"})
    # A tenth of the calls have a timeout that is too short on purpose; conditions may fail by right.
    assert failed.total() <= outcome.ops.total() / 2
    assert outcome.ops["put ok"] and outcome.ops["get ok"]


def test_the_shrinker_leaves_what_the_failure_needs() -> None:
    """Of a plan that is said to fail iff it has two kinds and at least one client."""
    drawn = next(
        plan
        for plan in map(draw, range(1, 200))
        if plan.has("crash") and plan.has("pause") and len(plan.kinds) > 8
    )
    tried: list[Plan] = []

    def fails(plan: Plan) -> bool:
        tried.append(plan)
        return plan.has("crash") and plan.has("pause") and plan.seconds >= 1.5

    smallest = shrink(drawn, fails)
    assert set(smallest.kinds) == {"crash", "pause"}
    assert (smallest.clients_count, smallest.tablets_count, smallest.seconds) == (1, 1, 1.5)
    assert len(tried) < 80
    assert f"tests.sim {drawn.seed} --without" in command(smallest)


def test_a_broken_rule_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """R4 without its members: a coordinator that commits what only it has."""

    def alone(self: Coordinator, now: float) -> None:
        s = self._s
        before = s.commit
        if self.is_active and s.commit_to(s.durable):
            self.writes.advance(s.log.span(before + 1, s.durable))
            self._reads.advance()

    monkeypatch.setattr(Coordinator, "_try_commit", alone)
    total = Total()
    for seed in range(1, 12):
        total.add(run_plan(draw(seed))[0])
    assert total.failed


@pytest.mark.parametrize("right", ["authority", "lease"])
def test_a_right_that_outlasts_what_was_given_is_found(right: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """R5 and R6 by a clock that nobody waits for, which no read need have met."""
    confirmed, beaconed = Coordinator.shared_confirm, Follower.shared_beacon

    def later(self: Coordinator, p: Any, member: Any, sent_at: float, *rest: Any) -> float:
        return confirmed(self, p, member, sent_at + self._s.config.timing.margin + 0.1, *rest)

    def longer(self: Follower, source: str, epoch: int, copy_id: int, request: float, *rest: Any) -> bool:
        return beaconed(self, source, epoch, copy_id, request + 5.0, *rest)

    if right == "authority":
        monkeypatch.setattr(Coordinator, "shared_confirm", later)
    else:
        monkeypatch.setattr(Follower, "shared_beacon", longer)
    outcome, _ = run_plan(replace(without(draw(3), ALL_KINDS), clients_count=1, seconds=0.5))
    assert {"authority": "counts on", "lease": "waits for"}[right] in outcome.error


def test_the_command_line_runs_replays_and_counts() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.sim", "--seeds", "4", "--jobs", "2", "--seconds", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert "4 seeds, 0 failed" in run.stdout
    assert "virtual hours" in run.stdout
    assert "faults by kind" in run.stdout
