"""Random walks of a cluster whose table keeps versions: all of them arrive on every disk, whatever happens.

The tablet's clock runs too (rule R20): after each step it has only run forward, and at the end every
replica has the same one.
"""

from __future__ import annotations

import os

import pytest

from ackord.wire.options import TableOptions
from tests.support.core_walk import Walk

SEEDS = int(os.environ.get("ACKORD_SIM_SEEDS", "30"))
FIRST_SEED = int(os.environ.get("ACKORD_SIM_FIRST_SEED", "1"))
GROUP = 10

pytestmark = pytest.mark.sim


@pytest.mark.parametrize("first", range(FIRST_SEED, FIRST_SEED + SEEDS, GROUP))
def test_versions_survive_a_random_walk(first: int) -> None:
    clocks = 0
    for seed in range(first, min(first + GROUP, FIRST_SEED + SEEDS)):
        walk = Walk(seed, TableOptions(keep_versions=3, keep_for=1.0))
        try:
            walk.run()
        except Exception as error:
            tail = "\n".join(walk.cluster.trace[-25:])
            pytest.fail(f"seed {seed}: {type(error).__name__}: {error}\n{tail}")
        clocks += sum(entry.clock_ms > 0 for entry in walk.cluster.oracle.truth)
    assert clocks > 3 * GROUP, "the clock did run"
