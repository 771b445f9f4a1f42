"""Rules R13 and R14 at the engine: whatever a power cut leaves, no commit that returned is missing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.powerloss import trace
from tests.powerloss.disk import Disk, Model
from tests.powerloss.engine_cuts import Campaign, judge
from tests.powerloss.reader import Expected, Found

pytestmark = pytest.mark.integration
needs_strace = pytest.mark.skipif(not trace.is_available(), reason="strace is not installed")

TORN = "EngineCorrupt: open: Corruption: checksum mismatch in file MANIFEST-000005"
NAMES_WHAT_IS_NOT_THERE = (
    "EngineCorrupt: open: Corruption: Sst file size mismatch: 000123.sst. Expected 2154, actual size 0\n"
    "The file MANIFEST-000005 may be corrupted."
)


@pytest.mark.parametrize(("refusal", "is_wrong"), [(TORN, False), (NAMES_WHAT_IS_NOT_THERE, True)])
def test_a_torn_manifest_voids_a_store_and_one_that_was_synced_too_early_is_a_fault(
    refusal: str, is_wrong: bool
) -> None:
    assert (judge(Found(refusal), Expected(1), least=7, most=8) is not None) == is_wrong
    assert judge(Found(refusal), Expected(1), least=0, most=1) is None, "nothing was promised"


@needs_strace
def test_no_cut_loses_a_batch_whose_commit_returned() -> None:
    figures = Campaign(seed=11).run(lives=2, cuts=20, batches=200)
    assert figures.violations == []
    assert sum(figures.outcomes.values()) == 42  # and what each life left to the next
    assert figures.more > 0, "no cut ever fell between a write and its sync: the cuts are badly placed"


@needs_strace
def test_a_store_that_does_not_sync_is_caught() -> None:
    figures = Campaign(seed=12, is_synced=False).run(lives=1, cuts=20, batches=150)
    assert any("were acknowledged" in text for text in figures.violations)


@needs_strace
def test_a_store_that_a_cut_voids_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node puts a void store aside; so the next life has nothing to open, and nothing to hold."""
    leave = Disk.leave

    def torn(disk: Disk, instant: int, model: Model, chance: random.Random, target: Path) -> None:
        leave(disk, instant, model, chance, target)
        if target.name == "base0":
            manifest = max((target / "store").glob("MANIFEST-*"), key=lambda path: path.stat().st_size)
            data = bytearray(manifest.read_bytes())
            data[6] ^= 1  # the type of its first record
            manifest.write_bytes(data)

    monkeypatch.setattr(Disk, "leave", torn)
    figures = Campaign(seed=13).run(lives=2, cuts=4, batches=40)
    assert figures.violations == []
    assert figures.outcomes["void"] == 1
    assert (figures.lives, figures.batches) == (2, 80)
