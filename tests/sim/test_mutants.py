"""Every rule is load bearing: with it dropped, some script, unit test or walk fails.

Each mutant names what catches it soonest; ``python -m tests.sim.mutants`` searches the random walk for more.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.scenario import test_catch_up as catch_up
from tests.scenario import test_membership as membership
from tests.scenario import test_reads as reads
from tests.scenario import test_requests as requests
from tests.scenario import test_takeover as takeover
from tests.sim.mutants import MUTANTS, Mutant, applied
from tests.support.core_walk import Walk, small_marks
from tests.unit import test_core_replica as replica

pytestmark = pytest.mark.sim

SCRIPTS: dict[str, Callable[[], None]] = {
CATCHERS
}
SEEDS: dict[str, int] = {
SEEDLIST
}


def test_every_mutant_has_something_that_catches_it() -> None:
    assert {mutant.name for mutant in MUTANTS} == set(SCRIPTS) | set(SEEDS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(mutant: Mutant) -> None:
    with applied(mutant), small_marks(), pytest.raises((AssertionError, ValueError)):
        if mutant.name in SCRIPTS:
            SCRIPTS[mutant.name]()
        else:
            Walk(SEEDS[mutant.name]).run()
