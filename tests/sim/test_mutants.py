"""Every rule is load bearing: with it dropped, the test that it is there for fails.

``make mutants`` prints the table with random walks; here only the named tests run, in processes forked from one that
collected them, and a sample of ``drop_ifs``.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.sim.drop_ifs import Place, edits, functions, mutated, places, tree_of
from tests.sim.forks import ROOT
from tests.sim.mutants import ALL
from tests.sim.needless import NEEDLESS

pytestmark = pytest.mark.sim

RULES = {f"R{number}" for number in range(1, 19)} | {"R7b", "R19", "R20", "R21"}
MODELS = {
    "no_authority",
    "no_takeover_wait",
    "no_cap",
    "restart_nowait",
    "ack_while_cand",
    "count_from_receipt",
    "no_wait",
    "grant_while_revoking",
    "no_maximal",
    "commit_on_proposed",
    "non_isr_takeover",
    "drop_prepared",
    "no_epoch_check",
    "promise_volatile",
    "ack_reuse",
    "read_dirty",
    "serve_early",
    "no_disk_id",
    "join_without_promise",
    "drain_nowait",
    "keep_serving",
    "swap_nowait",
    "swap_nojoin",
    "swap_behind",
    "settle_early",
    "ri_nolease",
    "ri_commit",
    "auth_isr_only",
}


def ran(module: str, *arguments: str) -> str:
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


def test_the_list_covers_every_rule_and_every_mutant_of_the_models() -> None:
    assert len({mutant.name for mutant in ALL}) == len(ALL) >= 40
    assert {mutant.rule for mutant in ALL} == RULES
    assert {mutant.model for mutant in ALL} - {""} == MODELS


@pytest.mark.timeout(600)
def test_every_mutant_is_caught_by_the_test_that_it_names() -> None:
    said = ran("tests.sim.mutants", "--no-walk")
    assert f"{len(ALL)} caught by their tests" in said


@pytest.mark.timeout(600)
def test_a_sample_of_dropped_conditions_is_caught() -> None:
    assert ", 0 survive;" in ran("tests.sim.drop_ifs", "--walks", "1", "--every", "25")


def test_what_needs_no_test_is_still_there() -> None:
    assert set(NEEDLESS) <= {place.name for place in places(is_all=True)}


def test_dropping_a_condition_drops_it() -> None:
    function = dict(functions(tree_of("core/takeover.py")))["Takeover._may_try"]
    texts = [what for what, _, _ in edits(function)]
    assert "never if d.is_newborn" in texts
    at = texts.index("never if d.is_newborn")
    assert texts[at + 1] == "always if d.is_newborn"
    changed = list(edits(mutated(function, at)))
    assert [what for what, _, _ in changed].count("never if False") == 1
    assert Place("core/takeover.py", "Takeover._may_try", at, texts[at], 1).name.startswith(
        "core/takeover.py:"
    )
