"""What many tablets cost: writes/s over 1 to 256 tablets, the idle cost of 1,000 on three nodes, and the times to
create them, to open a node that holds them, and to take over those of a killed coordinator.

    .venv/bin/python -m bench.tablets                        # everything
    .venv/bin/python -m bench.tablets rates --rounds 5
    .venv/bin/python -m bench.tablets many --tablets 1000

It starts a cluster of its own on free ports. The machine may be shared with other work: CPU per operation and CPU
per second of an idle node say more than rates and times, and rounds are interleaved.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import ackord
from tests.support.cluster import RealCluster, RealNode

COUNTS = (1, 4, 16, 64, 256)
CALLERS_COUNT = 256
ROW_BYTES = 100
KEYS_COUNT = 1 << 20
PULSE_S = 0.02  # between two writes to one tablet while a coordinator is killed
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """CPU seconds that the process has used, all threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def splits(tablets_count: int) -> list[int]:
    return [KEYS_COUNT * at // tablets_count for at in range(1, tablets_count)]


def nodes_cpu_s(cluster: RealCluster) -> dict[str, float]:
    return {name: cpu_s(node.pid) for name, node in cluster.nodes.items()}


# ---------------------------------------------------------------------------------------- writes


async def puts(table: ackord.Table, callers: int, seconds: float, seed: int) -> tuple[int, list[float]]:
    """How many rows closed loops of single-row callers wrote, spread over the whole table, and how long each took."""
    chance = random.Random(seed)
    row = {"v": chance.randbytes(ROW_BYTES)}
    latencies: list[float] = []
    until = time.perf_counter() + seconds

    async def caller() -> None:
        begun = time.perf_counter()
        while begun < until:
            await table.put((chance.randrange(KEYS_COUNT),), row)
            ended = time.perf_counter()
            latencies.append(ended - begun)
            begun = ended

    await asyncio.gather(*(caller() for _ in range(callers)))
    return len(latencies), latencies


async def rates(cluster: RealCluster, rounds: int, seconds: float, callers: int) -> dict[str, Any]:
    """Interleaved rounds of the same writers over tables of 1 to 256 tablets."""
    found: dict[int, list[dict[str, float]]] = {count: [] for count in COUNTS}
    async with ackord.connect(cluster.urls) as store:
        for count in COUNTS:
            await store.create_table(f"rates{count}", {"n": int}, split_at=splits(count), timeout=60)
        for number in range(rounds):
            for count in COUNTS:
                table = store.table(f"rates{count}")
                await puts(table, callers, 0.3, number)
                before, client, begun = nodes_cpu_s(cluster), time.process_time(), time.perf_counter()
                done, latencies = await puts(table, callers, seconds, number)
                elapsed, client = time.perf_counter() - begun, time.process_time() - client
                nodes = sum(nodes_cpu_s(cluster).values()) - sum(before.values())
                latencies.sort()
                found[count].append(
                    {
                        "per_s": done / elapsed,
                        "client_us": client / done * 1e6,
                        "nodes_us": nodes / done * 1e6,
                        "p50_ms": latencies[done // 2] * 1000,
                        "p99_ms": latencies[done * 99 // 100] * 1000,
                    }
                )
    return {
        str(count): {name: round(statistics.median(s[name] for s in samples), 1) for name in samples[0]}
        for count, samples in found.items()
    }


# ------------------------------------------------------------------------------------ many tablets


async def ask(call: Callable[[], Awaitable[Any]], until: Callable[[Any], bool], timeout_s: float) -> float:
    """Seconds until an answer is as wanted."""
    begun = time.monotonic()
    while time.monotonic() - begun < timeout_s:
        try:
            if until(await call()):
                return time.monotonic() - begun
        except (OSError, AssertionError, KeyError):
            pass
        await asyncio.sleep(0.1)
    return float("nan")


async def create(cluster: RealCluster, tables: int, tablets: int, timeout_s: float) -> dict[str, Any]:
    """Until create_table returns, and until every replica of each tablet is in sync."""
    begun, refused = time.monotonic(), 0
    async with ackord.connect(cluster.urls) as store:
        for number in range(tables):
            try:
                await store.create_table(
                    f"many{number}", {"n": int}, split_at=splits(tablets), timeout=timeout_s
                )
            except ackord.Error as error:
                refused += 1
                print(f"  create_table: {error}", flush=True)
    returned = time.monotonic() - begun
    for number in range(tables):
        await in_sync(cluster, f"many{number}", None, timeout_s)
    return {
        "returned_s": round(returned, 2),
        "in_sync_s": round(time.monotonic() - begun, 2),
        "refused": refused,
    }


async def in_sync(cluster: RealCluster, table: str, ask_node: str | None, timeout_s: float) -> float:
    def is_whole(tablets: list[dict[str, Any]]) -> bool:
        return all(len(t["in_sync"]) == 3 and t["coordinator"] is not None for t in tablets)

    return await ask(lambda: asyncio.to_thread(cluster.tablets, table, ask_node), is_whole, timeout_s)


async def idle(cluster: RealCluster, seconds: float) -> dict[str, Any]:
    """CPU of each node in percent of a core, with no client at all, and its memory."""
    before, begun = nodes_cpu_s(cluster), time.monotonic()
    zookeeper = cpu_s(cluster.zookeeper.pid)
    await asyncio.sleep(seconds)
    elapsed, after = time.monotonic() - begun, nodes_cpu_s(cluster)
    return {
        "cpu_percent": {n: round((after[n] - before[n]) / elapsed * 100, 2) for n in after},
        "zookeeper_cpu_percent": round((cpu_s(cluster.zookeeper.pid) - zookeeper) / elapsed * 100, 2),
        "resident_mib": {name: round(resident_mib(node.pid), 1) for name, node in cluster.nodes.items()},
    }


async def spread(cluster: RealCluster, tables: int, timeout_s: float) -> float:
    """Seconds until the coordinators are evenly spread again."""

    def is_even(routing: Mapping[str, Any]) -> bool:
        names = [
            t["coordinator"]
            for number in range(tables)
            for t in routing["tables"][f"many{number}"]["tablets"]
        ]
        counts = [names.count(name) for name in cluster.nodes]
        return sum(counts) == len(names) and max(counts) - min(counts) <= max(3, len(names) // 50)

    return await ask(lambda: asyncio.to_thread(cluster.routing), is_even, timeout_s)


async def restart(cluster: RealCluster, node: RealNode, tables: int, timeout_s: float) -> dict[str, Any]:
    """A planned stop and a start: until the node serves, is in sync everywhere, and has its share of coordinators."""
    begun = time.monotonic()
    node.stop()
    await asyncio.to_thread(node.wait_exit, timeout_s)
    stopped = time.monotonic() - begun
    begun, cpu = time.monotonic(), 0.0
    node.start()
    await ask(lambda: asyncio.to_thread(node.ask, "/v1/routing"), lambda a: "tables" in a, timeout_s)
    serves = time.monotonic() - begun
    cpu = cpu_s(node.pid)
    ready = await ask(lambda: asyncio.to_thread(node.ask, "/ready"), lambda a: bool(a["ready"]), timeout_s)
    ready_cpu, ready = cpu_s(node.pid), serves + ready
    spread_s = await spread(cluster, tables, timeout_s)
    return {
        "stop_s": round(stopped, 2),
        "answers_s": round(serves, 2),
        "answers_cpu_s": round(cpu, 2),
        "ready_s": round(ready, 2),
        "ready_cpu_s": round(ready_cpu, 2),
        "spread_s": round(ready + spread_s, 2),
    }


async def takeover(cluster: RealCluster, tables: int, tablets: int, pulses: int) -> dict[str, Any]:
    """SIGKILL of a node that coordinates a third: how long each pulsed tablet went without an acknowledged write, and
    until every tablet has another coordinator."""
    victim = cluster["n1"]
    chosen = random.Random(7).sample(range(tables * tablets), min(pulses, tables * tablets))
    gaps: dict[int, float] = {}
    lost: set[int] = set()
    is_over = False

    async def pulse(store: ackord.Store, at: int) -> None:
        table, key = store.table(f"many{at // tablets}"), KEYS_COUNT * (at % tablets) // tablets
        last = time.monotonic()
        while not is_over:
            await asyncio.sleep(PULSE_S * 10)
            await table.put((key,), {"v": 1}, timeout=60)
            now = time.monotonic()
            gaps[at], last = max(gaps.get(at, 0.0), now - last), now

    def orphans(routing: Mapping[str, Any]) -> list[Any]:
        return [
            t
            for number in range(tables)
            for t in routing["tables"][f"many{number}"]["tablets"]
            if t["coordinator"] == victim.name
        ]

    async with ackord.connect(cluster.urls) as store:
        routing = await asyncio.to_thread(cluster.routing, "n2")
        owned = len(orphans(routing))
        ids = {t["id"] for t in orphans(routing)}
        order = [t["id"] for n in range(tables) for t in routing["tables"][f"many{n}"]["tablets"]]
        lost = {at for at in chosen if order[at] in ids}
        pulsing = [asyncio.create_task(pulse(store, at)) for at in chosen]
        await asyncio.sleep(3.0)
        gaps.clear()
        cpu = {name: cpu_s(cluster[name].pid) for name in ("n2", "n3")}
        victim.kill()
        begun = time.monotonic()
        whole = await ask(
            lambda: asyncio.to_thread(cluster.routing, "n2"), lambda found: not orphans(found), 120
        )
        spent = {name: round(cpu_s(cluster[name].pid) - before, 2) for name, before in cpu.items()}
        await asyncio.sleep(max(0.0, 6.0 - (time.monotonic() - begun)))
        is_over = True
        await asyncio.gather(*pulsing)
    of_dead = sorted(gaps[at] for at in lost if at in gaps)
    of_others = sorted(gap for at, gap in gaps.items() if at not in lost)
    return {
        "coordinated": owned,
        "all_have_another_s": round(whole, 2),
        "gap_of_its_tablets_s": [round(v, 2) for v in (of_dead[len(of_dead) // 2], of_dead[-1])],
        "gap_of_other_tablets_s": [round(v, 2) for v in (of_others[len(of_others) // 2], of_others[-1])],
        "cpu_s": spent,
    }


async def drop(cluster: RealCluster, tables: int, timeout_s: float) -> dict[str, Any]:
    begun = time.monotonic()
    async with ackord.connect(cluster.urls) as store:
        for number in range(tables):
            await store.drop_table(f"many{number}", timeout=timeout_s)
    return {"dropped_s": round(time.monotonic() - begun, 2)}


async def many(cluster: RealCluster, options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"empty": await idle(cluster, options.idle_seconds / 2)}
    show("empty", found["empty"])
    tables = options.tables
    tablets = options.tablets // tables

    async def step(name: str, work: Awaitable[dict[str, Any]]) -> None:
        found[name] = await work
        show(name, found[name])

    await step("create", create(cluster, tables, tablets, options.timeout))
    await asyncio.sleep(10)
    print(f"  spread evenly after {await spread(cluster, tables, options.timeout):.1f} s more", flush=True)
    await asyncio.sleep(5)
    await step("idle", idle(cluster, options.idle_seconds))
    if "restart" in options.steps:
        await step("restart", restart(cluster, cluster["n3"], tables, options.timeout))
        await asyncio.sleep(5)
    if "takeover" in options.steps:
        await step("takeover", takeover(cluster, tables, tablets, options.pulses))
    if "drop" in options.steps:
        await step("drop", drop(cluster, tables, options.timeout))
    return found


def show(name: str, found: Mapping[str, Any]) -> None:
    print(f"{name}: {json.dumps(found)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("all", "rates", "many"), default="all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each count of tablets in each round")
    parser.add_argument("--callers", type=int, default=CALLERS_COUNT)
    parser.add_argument("--tablets", type=int, default=1000)
    parser.add_argument("--tables", type=int, default=1, help="the tablets are in so many tables")
    parser.add_argument("--idle-seconds", type=float, default=20.0)
    parser.add_argument(
        "--pulses", type=int, default=60, help="tablets that are written to during the takeover"
    )
    parser.add_argument("--timeout", type=float, default=120.0)
    parser.add_argument("--steps", default="restart,takeover,drop", help="after creation and idling")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    if options.what in ("all", "rates"):
        with RealCluster(name="tablets") as cluster:
            found["rates"] = asyncio.run(rates(cluster, options.rounds, options.seconds, options.callers))
            for count, row in found["rates"].items():
                show(f"{count} tablets", row)
    if options.what in ("all", "many"):
        with RealCluster(name="tablets", settings={"limits": {"tablets_per_table_count": 4096}}) as cluster:
            found["many"] = asyncio.run(many(cluster, options))


if __name__ == "__main__":
    main()
