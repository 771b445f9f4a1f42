"""``python -m tests.powerloss --cuts N --seed S``: power cuts of the engine, and of a cluster; prints the figures."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

from tests.powerloss.cluster_cuts import ClusterCampaign
from tests.powerloss.engine_cuts import Campaign

CUTS_PER_LIFE = 60
LIVES_MAX = 6


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.powerloss", description=__doc__)
    parser.add_argument("--cuts", type=int, default=240, help="images of the engine's disk")
    parser.add_argument("--cluster-cuts", type=int, default=3, help="power cuts of a loaded cluster")
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    violations = []
    left, seed, begun = wanted.cuts, wanted.seed, time.monotonic()
    while left > 0:
        cuts = min(CUTS_PER_LIFE, left)
        lives = max(1, min(LIVES_MAX, left // cuts))
        figures = Campaign(seed).run(lives, cuts, batches=300)
        print(
            f"engine seed {seed}: {figures.lives} lives, {figures.batches} batches, images {dict(figures.cuts)},"
            f" {dict(figures.outcomes)}, with the batch under way {figures.more}",
            flush=True,
        )
        violations += figures.violations
        left -= cuts * lives
        seed += 1
    print(f"engine: {time.monotonic() - begun:.0f} s")
    if wanted.cluster_cuts:
        begun = time.monotonic()
        found = asyncio.run(ClusterCampaign(wanted.seed).run(wanted.cluster_cuts))
        print(
            f"cluster seed {wanted.seed}: cuts {dict(found.cuts)}, disks {dict(found.models)},"
            f" {dict(found.outcomes)}, {found.acknowledged} rows acknowledged and found on every node,"
            f" {found.unknown} unknown; {time.monotonic() - begun:.0f} s"
        )
    for text in violations:
        print(f"VIOLATION {text}", file=sys.stderr)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
