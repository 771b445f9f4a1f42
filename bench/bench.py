"""Speed of the running cluster, as one SDK process sees it (docs/benchmarks.md says how to read the numbers).

All workloads are run once per round, one after the other, and the median of the rounds is reported: what disturbs
the machine for some seconds then hits all of them alike, and not always the same one.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yardstick
from harness import Cluster, ClusterError, run, wait_in_sync
from load import BATCH_ROWS_COUNT, Call, Rows, Sample, measure

import ackord
from ackord_node.config import ConfigError

BASE_ROWS_COUNT = 10_000
CALLERS = (1, 16, 64, 256)
BATCH_CALLERS = (1, 16)
RESTART_TIMEOUT_S = 120.0
PROFILED = ("256 writers", "256 readers")


@dataclass(frozen=True, slots=True)
class Workload:
    """``callers`` concurrent loops of ``call``, each call of so many rows."""

    name: str
    call: Call
    callers: int
    rows_per_call: int = 1


@dataclass(frozen=True, slots=True)
class Target:
    """A number that an issue asks for, on an idle machine of two cores."""

    text: str
    is_met: Callable[[Sample], bool]


TARGETS = {
    "1 writer": Target("p50 <= 1.5 ms", lambda sample: sample.p50_ms <= 1.5),
    "256 writers": Target(">= 25,000/s", lambda sample: sample.ops_per_s >= 25_000),
    "256 readers": Target(">= 80,000/s", lambda sample: sample.ops_per_s >= 80_000),
}


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def workloads(rows: Rows) -> list[Workload]:
    found = [Workload(plural(count, "writer"), rows.put, count) for count in CALLERS]
    found += [Workload(plural(count, "reader"), rows.get, count) for count in CALLERS]
    for count in BATCH_CALLERS:
        name = f"{plural(count, 'writer')} x {BATCH_ROWS_COUNT} rows"
        found.append(Workload(name, rows.put_batch, count, BATCH_ROWS_COUNT))
    return found


def many_rows_workloads(few: Rows, many: Rows) -> list[Workload]:
    """Point reads of both tables, side by side in the same rounds."""
    return [
        Workload(f"{plural(count, 'reader')}, {rows.count:,} rows", rows.get, count)
        for count in (1, CALLERS[-1])
        for rows in (few, many)
    ]


async def in_rounds(
    cluster: Cluster, wanted: list[Workload], rounds: int, seconds: float
) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {workload.name: [] for workload in wanted}
    for number in range(rounds):
        for w in wanted:
            print(f"round {number + 1} of {rounds}: {w.name:<28}", end="\r", flush=True, file=sys.stderr)
            samples[w.name].append(await measure(cluster, w.call, w.callers, seconds, w.rows_per_call))
    print(" " * 60, end="\r", file=sys.stderr)
    return samples


def median(samples: list[Sample]) -> Sample:
    """The median of each number by itself."""

    def of(pick: Callable[[Sample], float]) -> float:
        return statistics.median(pick(sample) for sample in samples)

    return Sample(
        ops_per_s=of(lambda s: s.ops_per_s),
        p50_ms=of(lambda s: s.p50_ms),
        p99_ms=of(lambda s: s.p99_ms),
        max_ms=of(lambda s: s.max_ms),
        client_cpu_us=of(lambda s: s.client_cpu_us),
        node_cpu_us={n: statistics.median(s.node_cpu_us[n] for s in samples) for n in samples[0].node_cpu_us},
    )


# --------------------------------------------------------------------------------------- output


def print_table(medians: dict[str, Sample]) -> None:
    print(
        f"{'':<30}{'rows/s':>10}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}{'CPU µs per row':>22}  target\n"
        f"{'':<67}{'client':>12}{'all nodes':>10}"
    )
    for name, sample in medians.items():
        target = TARGETS.get(name)
        verdict = ""
        if target is not None:
            verdict = f"{target.text}: {'met' if target.is_met(sample) else 'not met'}"
        print(
            f"{name:<30}{sample.ops_per_s:>10,.0f}{sample.p50_ms:>9.2f}{sample.p99_ms:>9.2f}{sample.max_ms:>9.1f}"
            f"{sample.client_cpu_us:>12.1f}{sum(sample.node_cpu_us.values()):>10.1f}  {verdict}".rstrip()
        )


def print_yardstick(before: yardstick.Yardstick, after: yardstick.Yardstick) -> None:
    trip = (before.round_trip_ms + after.round_trip_ms) / 2
    slowness = (before.slowness + after.slowness) / 2
    print(
        f"yardstick: a bare aiohttp round trip takes {trip:.3f} ms here now ({before.round_trip_ms:.3f} before, "
        f"{after.round_trip_ms:.3f} after), {slowness:.1f} times what it took where the targets were set;\n"
        f"           an fdatasync of 4 KiB {before.fdatasync_ms:.2f} and {after.fdatasync_ms:.2f} ms\n"
    )


def print_ratios(medians: dict[str, Sample], few: Rows, many: Rows) -> None:
    for count in (1, CALLERS[-1]):
        who = plural(count, "reader")
        before, after = (medians[f"{who}, {rows.count:,} rows"] for rows in (few, many))
        ratio = after.ops_per_s / before.ops_per_s
        print(f"{who}: {many.count:,} rows run at {ratio:.2f} times the rate of {few.count:,} rows")


def machine() -> dict[str, Any]:
    """What a reader needs to judge the numbers."""
    return {
        "cpus_count": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }


def save(cluster: Cluster, result: dict[str, Any]) -> Path:
    folder = cluster.home / ".ackord" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{datetime.datetime.now():%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


# -------------------------------------------------------------------------------------- profiles


async def profile(cluster: Cluster, wanted: list[Workload], seconds: float) -> list[Path]:
    """A flame graph of each process under each profiled workload; the rates meanwhile do not count, because
    the profiler takes CPU too."""
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        raise ClusterError("--profile needs py-spy: pip install py-spy")
    folder = cluster.home / ".ackord" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    pids = {"client": os.getpid(), **{node: cluster.pid(node) for node in cluster.nodes}}
    written = []
    for workload in wanted:
        recorders = []
        for name, pid in pids.items():
            path = folder / f"profile-{workload.name.replace(' ', '-')}-{name}.svg"
            arguments = [
                "record",
                "--nonblocking",
                "--pid",
                str(pid),
                "--duration",
                str(max(round(seconds), 1)),
            ]
            recorders.append(
                await asyncio.create_subprocess_exec(
                    program,
                    *arguments,
                    "--output",
                    str(path),
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.DEVNULL,
                )
            )
            written.append(path)
        await measure(cluster, workload.call, workload.callers, seconds + 1.0)
        for recorder in recorders:
            await recorder.wait()
    return [path for path in written if path.exists()]


# --------------------------------------------------------------------------------------- restart


async def restart(cluster: Cluster, rows: Rows) -> float:
    """Seconds from the start of a node that was killed until it answers reads of every tablet itself."""
    node = cluster.nodes[-1]
    await cluster.kill(node)
    begun = time.monotonic()
    await cluster.start_missing()
    async with ackord.connect(cluster.urls, reads=f"node:{node}") as store:
        table = store.table(rows.name)
        definition = await store.describe_table(rows.name)
        first_keys = [(0,), *((at,) for at in definition.split_at)]
        await asyncio.gather(*(table.get(key, timeout=RESTART_TIMEOUT_S) for key in first_keys))
        return time.monotonic() - begun


# ------------------------------------------------------------------------------------------ main


async def bench(cluster: Cluster, options: argparse.Namespace) -> None:
    for node in cluster.nodes:
        cluster.pid(node)
    result: dict[str, Any] = {"ackord": ackord.__version__, "machine": machine(), "options": vars(options)}
    async with ackord.connect(cluster.urls) as store:
        few = Rows(store, BASE_ROWS_COUNT)
        await few.prepare()
        await wait_in_sync(store, few.name, set(cluster.nodes), RESTART_TIMEOUT_S)
        wanted = workloads(few)
        before = await yardstick.take(cluster.home / ".ackord")
        samples = await in_rounds(cluster, wanted, options.rounds, options.seconds)
        after = await yardstick.take(cluster.home / ".ackord")
        result["yardstick"] = [asdict(before), asdict(after)]
        print_yardstick(before, after)
        print_table({name: median(found) for name, found in samples.items()})
        biggest = few
        if options.rows > BASE_ROWS_COUNT:
            biggest = Rows(store, options.rows)
            begun = time.monotonic()
            if await biggest.prepare():
                result["load_s"] = time.monotonic() - begun
            beside = many_rows_workloads(few, biggest)
            compared = await in_rounds(cluster, beside, options.rounds, options.seconds)
            samples |= compared
            medians = {name: median(found) for name, found in compared.items()}
            print()
            print_table(medians)
            print_ratios(medians, few, biggest)
        result["samples"] = {name: [asdict(sample) for sample in found] for name, found in samples.items()}
        result["resident_mib"] = {node: round(cluster.resident_mib(node)) for node in cluster.nodes}
        print(f"\nmemory: {', '.join(f'{node} {mib} MiB' for node, mib in result['resident_mib'].items())}")
        if options.profile:
            chosen = [workload for workload in wanted if workload.name in PROFILED]
            for path in await profile(cluster, chosen, options.seconds):
                print(f"profile: {path}")
    if options.restart:
        result["restart_s"] = await restart(cluster, biggest)
        print(f"restart: {cluster.nodes[-1]} serves every tablet {result['restart_s']:.1f} s after its start")
    print(f"saved: {save(cluster, result)}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the speed of the running cluster.")
    parser.add_argument("--config", default="cluster.yaml", help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="of each workload in each round (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="the median of them is shown (%(default)s)")
    parser.add_argument(
        "--rows", type=int, default=0, help="also compare point reads of a table of so many rows"
    )
    parser.add_argument("--restart", action="store_true", help="also kill a node and time its return")
    parser.add_argument("--profile", action="store_true", help="also record flame graphs, with py-spy")
    options = parser.parse_args()
    try:
        run(bench(Cluster(options.config), options))
    except (ClusterError, ConfigError, ackord.Error) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
