"""Random walks of a cluster with clients that keep rows (rule R19): after every step, what each of them may answer from
memory is what was committed last. Their processes freeze, their streams are cut, late or replaced."""

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
def test_no_client_answers_from_memory_what_is_no_longer_so(first: int) -> None:
    hits = told = 0
    for seed in range(first, min(first + GROUP, FIRST_SEED + SEEDS)):
        walk = Walk(seed, TableOptions(keep_for=1.0) if seed % 5 == 0 else TableOptions(), keepers=2)
        try:
            walk.run()
        except Exception as error:
            tail = "\n".join(walk.cluster.trace[-25:])
            pytest.fail(f"seed {seed}: {type(error).__name__}: {error}\n{tail}")
        hits += walk.summary()["kept reads"]
        told += walk.summary()["told"]
    assert hits > 100 * GROUP and told > 10 * GROUP, "rows were kept, and written"
