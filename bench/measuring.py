"""One cell: the workers run it; the CPU of the callers, of the system's servers and of those that rest is counted."""

from __future__ import annotations

import math
import statistics
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from bench.systems.base import System, cpu_s, parents
from bench.workers import Workers
from bench.workloads import Outcome, Work


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of a cell. Rates and CPU are of rows; latencies are of calls."""

    rows_per_s: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    client_cpu_us: float
    server_cpu_us: float
    idle_cpu_share: float  # of one core, taken meanwhile by the servers of the systems that rest
    conflicts_share: float  # conditional writes that lost, of all calls
    calls_count: int

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def percentile(ordered: array[float], share: float) -> float:
    """The smallest value that at least this share of all does not exceed."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def median(samples: list[Sample]) -> Sample:
    """The median of each number by itself."""
    numbers = {
        field.name: statistics.median(getattr(sample, field.name) for sample in samples)
        for field in fields(Sample)
    }
    return Sample(**(numbers | {"calls_count": round(numbers["calls_count"])}))


def summary(outcomes: list[Outcome], rows_per_call: int, server_cpu_s: float, idle_cpu_s: float) -> Sample:
    merged: array[float] = array("d")
    for outcome in outcomes:
        merged.extend(outcome.latencies)
    ordered = array("d", sorted(merged))
    calls_count = len(ordered)
    rows_count = calls_count * rows_per_call
    elapsed_s = max(outcome.elapsed_s for outcome in outcomes)
    return Sample(
        rows_per_s=sum(len(o.latencies) * rows_per_call / o.elapsed_s for o in outcomes),
        p50_ms=percentile(ordered, 0.50) * 1000,
        p99_ms=percentile(ordered, 0.99) * 1000,
        p999_ms=percentile(ordered, 0.999) * 1000,
        max_ms=ordered[-1] * 1000,
        client_cpu_us=sum(outcome.cpu_s for outcome in outcomes) / rows_count * 1e6,
        server_cpu_us=server_cpu_s / rows_count * 1e6,
        idle_cpu_share=idle_cpu_s / elapsed_s,
        conflicts_share=sum(outcome.conflicts_count for outcome in outcomes) / calls_count,
        calls_count=calls_count,
    )


def measure(
    system: System,
    workers: Workers,
    work: Work,
    seconds: float,
    warm_up_s: float,
    run: int,
    resting: Sequence[System],
) -> Sample:
    """``resting``: the other systems, whose servers should take no CPU now."""
    chosen = workers.prepare(system.access(), work, seconds, warm_up_s, run)
    own = list(system.pids().values())
    others = [pid for other in resting for pid in other.pids().values()]
    tree = parents()
    own_before, others_before = cpu_s(own, tree), cpu_s(others, tree)
    outcomes = Workers.go(chosen, seconds)
    tree = parents()
    own_after, others_after = cpu_s(own, tree), cpu_s(others, tree)
    Workers.part(chosen)
    return summary(outcomes, work.rows_per_call, own_after - own_before, others_after - others_before)
