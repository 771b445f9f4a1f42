"""Random walks of a whole cluster of cores under faults, each from one seed.

``ACKORD_SIM_SEEDS`` and ``ACKORD_SIM_FIRST_SEED`` choose a longer campaign.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.core_walk import Walk, command

ROOT = Path(__file__).resolve().parents[2]
SEEDS = int(os.environ.get("ACKORD_SIM_SEEDS", "60"))
FIRST_SEED = int(os.environ.get("ACKORD_SIM_FIRST_SEED", "1"))
GROUP = 10

pytestmark = pytest.mark.sim


@pytest.mark.parametrize("first", range(FIRST_SEED, FIRST_SEED + SEEDS, GROUP))
def test_random_walk(first: int) -> None:
    for seed in range(first, min(first + GROUP, FIRST_SEED + SEEDS)):
        walk = Walk(seed)
        try:
            walk.run()
        except Exception as error:
            tail = "\n".join(walk.cluster.trace[-25:])
            pytest.fail(f"seed {seed}: {type(error).__name__}: {error}\nreplay: {command(seed)}\n{tail}")


def test_walks_meet_what_they_are_to_test() -> None:
    """Guards the walk itself: takeovers, changes of the set, snapshots and refusals do happen."""
    texts: dict[str, int] = dict.fromkeys(
        (
            "takes a snapshot",
            "hands over",
            "no longer coordinates",
            "is to leave the in-sync set",
            "suspect copy",
        ),
        0,
    )
    epochs = 0
    for seed in range(1, 16):
        walk = Walk(seed).run()
        epochs += walk.cluster.service.descriptor.epoch
        for text in texts:
            texts[text] += walk.cluster.notes.count(text)
    assert all(texts.values()), texts
    assert epochs > 30


@pytest.mark.parametrize("kind", ["all", "drift", "rollback"])
def test_walks_of_every_kind_happen(kind: str) -> None:
    """Among the first seeds; each with the faults that are its own."""
    seeds = [seed for seed in range(1, 61) if Walk(seed).kind == kind]
    assert len(seeds) >= 3
    faults: dict[str, int] = {}
    for seed in seeds[:3]:
        walk = Walk(seed).run()
        assert walk.cluster.oracle.judges_reads is (kind != "drift")
        for name, count in walk.faults.items():
            faults[name] = faults.get(name, 0) + count
    assert faults.get("rollback", 0) > 0 if kind == "rollback" else faults.get("crash", 0) > 0


def test_walks_force_copies_and_drop_tables() -> None:
    forced = dropped = 0
    for seed in range(1, 61):
        walk = Walk(seed)
        if walk.kind == "all" and (not forced or not dropped):
            walk.run()
            forced += walk.faults.get("force", 0)
            dropped += walk.cluster.oracle.is_dropped
    assert forced and dropped


def digest(seed: int, hash_seed: str) -> str:
    code = f"from tests.support.core_walk import Walk; print(Walk({seed}).run().cluster.digest.hexdigest())"
    path = os.pathsep.join(str(ROOT / folder) for folder in ("client", "node", "."))
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": path}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return ran.stdout.strip()


def test_the_same_seed_runs_the_same_way() -> None:
    """Also under another order of hashes: nothing iterates a set into an effect unsorted."""
    assert digest(5, "1") == digest(5, "2")
