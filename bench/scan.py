"""Rows per second of a whole scan through the SDK, and how much memory it takes whatever the table's size.

The table is made and filled if it is not there yet; it stays, so the next run begins at once. The memory is what
the process held in RAM at most during the scan, above what it held before the first row.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import ackord
from ackord_node.config import ConfigError
from bench.harness import Cluster, ClusterError, run

ROWS_PER_S_MIN = 150_000  # on an idle machine of two cores
GROWTH_MIB_MAX = 100.0
LOOK_EVERY_S = 0.05
TABLETS_COUNT = 6
VALUE_BYTES = 90  # the map of one column, its name and the length take ten more
BATCH_ROWS_COUNT = 100
LOADERS_COUNT = 16


def resident_mib() -> float:
    """Memory of this process that is in RAM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ClusterError("/proc tells no memory of this process")


async def filled(store: ackord.Store, count: int) -> ackord.Table:
    """The table of ``count`` rows, 100 bytes of columns each, in tablets of equal size."""
    name, step = f"scan_{count}", count / TABLETS_COUNT
    await store.create_table(
        name, {"id": int}, split_at=[round(step * number) for number in range(1, TABLETS_COUNT)]
    )
    table = store.table(name)
    if await table.get((count - 1,)) is not None:
        return table  # the last row is written last
    chance = random.Random(7)  # random bytes: what compresses well would make the disk look faster than it is
    values = [{"value_": chance.randbytes(VALUE_BYTES)} for _ in range(1024)]

    async def load(numbers: Iterator[int]) -> None:
        for start in numbers:
            some = range(start, min(start + BATCH_ROWS_COUNT, count - 1))
            for result in await table.write_many([ackord.Put((n,), values[n % len(values)]) for n in some]):
                if isinstance(result, ackord.Error):
                    raise result

    starts = iter(range(0, count - 1, BATCH_ROWS_COUNT))
    await asyncio.gather(*(load(starts) for _ in range(LOADERS_COUNT)))
    await table.put((count - 1,), values[0])
    return table


async def watch_memory(seen_mib: list[float]) -> None:
    while True:
        seen_mib.append(resident_mib())
        await asyncio.sleep(LOOK_EVERY_S)


async def scan(cluster: Cluster, rows_count: int, rounds: int) -> None:
    async with ackord.connect(cluster.urls) as store:
        table = await filled(store, rows_count)
        for number in range(1, rounds + 1):
            gc.collect()
            before_mib = resident_mib()
            seen_mib = [before_mib]
            watching = asyncio.create_task(watch_memory(seen_mib))
            nodes_s = sum(map(cluster.cpu_s, cluster.nodes))
            client_s, begun = time.process_time(), time.perf_counter()
            count = size = 0
            async for row in table.scan():
                count += 1
                size += len(row["value_"])
            elapsed = time.perf_counter() - begun
            client_s = time.process_time() - client_s
            nodes_s = sum(map(cluster.cpu_s, cluster.nodes)) - nodes_s
            watching.cancel()
            if count != rows_count:
                raise AssertionError(f"the scan found {count} of {rows_count} rows")
            rate, growth_mib = count / elapsed, max(seen_mib) - before_mib
            print(
                f"scan {number}: {count:,} rows in {elapsed:.1f} s: {rate:,.0f} rows/s (goal {ROWS_PER_S_MIN:,}: "
                f"{'met' if rate >= ROWS_PER_S_MIN else 'not met'}); memory grew by {growth_mib:.1f} MiB (at most "
                f"{GROWTH_MIB_MAX:.0f}: {'met' if growth_mib <= GROWTH_MIB_MAX else 'not met'});\n"
                f"        CPU µs per row: {client_s / count * 1e6:.2f} here, every row's columns decoded, and "
                f"{nodes_s / count * 1e6:.2f} on all nodes together"
            )


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure scans of the running cluster.")
    parser.add_argument("--config", default="cluster.yaml", help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the table (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    options = parser.parse_args()
    try:
        run(scan(Cluster(options.config), options.rows, options.rounds))
    except (ClusterError, ConfigError, ackord.Error) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
