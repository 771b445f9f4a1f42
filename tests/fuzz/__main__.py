"""``python -m tests.fuzz --seconds N --seed S``: fuzzes a real node and prints what was sent and answered."""

from __future__ import annotations

import argparse
import asyncio
import sys

from tests.fuzz.real_node import RealFuzz


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    figures = asyncio.run(RealFuzz(wanted.seed).run(wanted.seconds))
    print(f"seed {wanted.seed}, {wanted.seconds:.0f} s: no violation")
    print(f"HTTP {sum(figures.http.values())} requests, by status {dict(sorted(figures.http.items()))}")
    print(f"raw connections {figures.raw}; peer links {dict(figures.peer)}; served {figures.served}")
    print(
        f"slowest /health {figures.health_s_max * 1000:.0f} ms, memory +{figures.rss_growth_bytes // 1024} KiB,"
        f" descriptors +{figures.descriptors_more}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
