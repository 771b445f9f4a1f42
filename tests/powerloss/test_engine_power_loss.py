"""Rules R13 and R14 at the engine: whatever a power cut leaves, no commit that returned is missing."""

from __future__ import annotations

import pytest

from tests.powerloss import trace
from tests.powerloss.engine_cuts import Campaign

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not trace.is_available(), reason="strace is not installed"),
]


def test_no_cut_loses_a_batch_whose_commit_returned() -> None:
    figures = Campaign(seed=11).run(lives=2, cuts=20, batches=200)
    assert figures.violations == []
    assert sum(figures.outcomes.values()) == 40
    assert figures.more > 0, "no cut ever fell between a write and its sync: the cuts are badly placed"


def test_a_store_that_does_not_sync_is_caught() -> None:
    figures = Campaign(seed=12, is_synced=False).run(lives=1, cuts=20, batches=150)
    assert any("were acknowledged" in text for text in figures.violations)
