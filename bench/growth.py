"""Overwrites a set of rows for a while and prints how large the data folders are: they must stop growing.

.venv/bin/python -m bench.growth --seconds 600 --rows 10000 --keep-versions 5
"""

from __future__ import annotations

import argparse
import asyncio
import time

import ackord
from tests.support.cluster import RealCluster

CALLERS_COUNT = 64
SAMPLES_COUNT = 12


async def overwrite(table: ackord.Table, caller: int, rows: int, row_bytes: int, until: float) -> int:
    """Writes this caller's share of the rows again and again; returns how many writes."""
    count = 0
    while time.monotonic() < until:
        for number in range(caller, rows, CALLERS_COUNT):
            await table.put((number,), {"v": f"{count:010d}".ljust(row_bytes, "x")})
            count += 1
            if time.monotonic() >= until:
                break
    return count


async def measure(
    cluster: RealCluster, seconds: float, rows: int, row_bytes: int, keep_versions: int
) -> None:
    name = f"growth{keep_versions}"
    async with ackord.connect(cluster.urls) as store:
        await store.create_table(name, {"n": int}, keep_versions=keep_versions)
        table = store.table(name)
        begun = time.monotonic()
        callers = [
            asyncio.create_task(overwrite(table, caller, rows, row_bytes, begun + seconds))
            for caller in range(CALLERS_COUNT)
        ]
        print(
            f"keep_versions={keep_versions}, {rows} rows of {row_bytes} bytes, seconds: MiB on the nodes' disks"
        )
        for sample in range(1, SAMPLES_COUNT + 1):
            await asyncio.sleep(max(begun + seconds * sample / SAMPLES_COUNT - time.monotonic(), 0))
            sizes = [folder_mib(cluster, node) for node in ("n1", "n2", "n3")]
            print(
                f"  {time.monotonic() - begun:6.1f} s  " + "  ".join(f"{size:7.1f}" for size in sizes),
                flush=True,
            )
        count = sum(await asyncio.gather(*callers))
        elapsed = time.monotonic() - begun
        print(f"  {count} writes, {count / elapsed:.0f}/s")
        await asyncio.sleep(10)
        sizes = [folder_mib(cluster, node) for node in ("n1", "n2", "n3")]
        print("  10 s later " + "  ".join(f"{size:7.1f}" for size in sizes), flush=True)


def folder_mib(cluster: RealCluster, node: str) -> float:
    return sum(path.stat().st_size for path in cluster[node].data.rglob("*") if path.is_file()) / (1 << 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--row-bytes", type=int, default=100)
    parser.add_argument("--keep-versions", type=int, action="append")
    arguments = parser.parse_args()
    with RealCluster() as cluster:
        for keep_versions in arguments.keep_versions or [1, 5]:
            asyncio.run(
                measure(cluster, arguments.seconds, arguments.rows, arguments.row_bytes, keep_versions)
            )


if __name__ == "__main__":
    main()
