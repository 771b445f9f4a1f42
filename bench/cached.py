"""How fast rows are read that this process keeps (`store.table(name, cache=True)`), on a running cluster.

    python -m bench.cached [--config cluster.yaml] [--seconds 5] [--rows 1000] [--callers 1]

One process, one event loop: callers that do nothing but ``await table.get(key)``. Beside the rate it prints how long
single calls took, each timed by itself, which adds two readings of the clock; calls that had to let the event loop in
are in it. Every ``--writes`` seconds another client writes a row, so that rows are also told to be dropped.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import time
from typing import Any

import ackord
from bench.harness import Cluster

SAMPLES_COUNT = 200_000


async def caller(table: ackord.CachedTable, keys: list[str], until: float) -> int:
    count = 0
    get, clock = table.get, time.perf_counter
    while clock() < until:
        for key in keys:
            await get(key)
        count += len(keys)
    return count


async def timed(table: ackord.CachedTable, keys: list[str]) -> list[int]:
    """Nanoseconds of single calls."""
    taken: list[int] = []
    get, clock = table.get, time.perf_counter_ns
    while len(taken) < SAMPLES_COUNT:
        for key in keys:
            begun = clock()
            await get(key)
            taken.append(clock() - begun)
    return sorted(taken)


async def write_now_and_then(table: ackord.Table, keys: list[str], pause_s: float) -> None:
    while True:
        await asyncio.sleep(pause_s)
        await table.put(random.choice(keys), {"v": random.random()})


async def measure(
    urls: list[str], seconds: float, rows: int, callers: int, writes_s: float
) -> dict[str, Any]:
    async with ackord.connect(urls) as store, ackord.connect(urls) as other:
        name = f"cached{time.time_ns():x}"
        await store.create_table(name, {"id": str})
        table = store.table(name, cache=True)
        keys = [f"row {number}" for number in range(rows)]
        for key in keys:
            await table.put(key, {"v": key})
        for _ in range(5):  # until every node has recorded that it lets clients keep rows
            for key in keys:
                await table.get(key)
        writer = asyncio.create_task(write_now_and_then(other.table(name), keys, writes_s))
        before, cpu = table.stats, resource.getrusage(resource.RUSAGE_SELF)
        begun = time.perf_counter()
        counts = await asyncio.gather(*(caller(table, keys, begun + seconds) for _ in range(callers)))
        taken_s = time.perf_counter() - begun
        after, cpu_after = table.stats, resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = cpu_after.ru_utime + cpu_after.ru_stime - cpu.ru_utime - cpu.ru_stime
        samples = await timed(table, keys)
        writer.cancel()
        await store.drop_table(name)
    count = sum(counts)
    return {
        "gets_per_s": count / taken_s,
        "gets_per_cpu_s": count / cpu_s,
        "hit_ratio": (after.hits - before.hits) / count,
        "p50_us": samples[len(samples) // 2] / 1000,
        "p99_us": samples[len(samples) * 99 // 100] / 1000,
        "p999_us": samples[len(samples) * 999 // 1000] / 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="cluster.yaml")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rows", type=int, default=1_000)
    parser.add_argument("--callers", type=int, default=1)
    parser.add_argument(
        "--writes", type=float, default=0.1, help="seconds between two writes of the other client"
    )
    chosen = parser.parse_args()
    urls = Cluster(chosen.config).urls
    found = asyncio.run(measure(urls, chosen.seconds, chosen.rows, chosen.callers, chosen.writes))
    for name, value in found.items():
        print(f"{name:16} {value:,.3f}")


if __name__ == "__main__":
    main()
