"""What a run cost: operations by second and outcome, and the longest time without an acknowledged write, by kind of
fault."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.chaos.stage import Band
from tests.chaos.work_lists import APPEND
from tests.chaos.work_merges import MERGE
from tests.chaos.work_transfers import TRANSFER
from tests.chaos.work_versions import AS_OF, HISTORY
from tests.chaos.works import FINAL
from tests.sim.history import CONFLICT, GET, OK, ROW_WRITES, SCAN, Op

WRITES = (*ROW_WRITES, APPEND, MERGE, TRANSFER)
READS = (GET, SCAN, AS_OF, HISTORY)


@dataclass(slots=True)
class Second:
    """What was answered in one second of the run."""

    writes: int = 0
    reads: int = 0
    failed: int = 0
    took_ms: dict[str, list[float]] = field(default_factory=lambda: {"write": [], "read": []})

    def latency_ms(self, kind: str, share: float) -> float | None:
        """None if nothing was answered."""
        return quantile(self.took_ms[kind], share)


def quantile(values: Sequence[float], share: float) -> float | None:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def by_second(ops: Iterable[Op], duration_s: float) -> list[Second]:
    """Of the rows' operations; an answer "the condition does not hold" is an answer."""
    seconds = [Second() for _ in range(int(duration_s) + 1)]
    for op in ops:
        if op.returned_s is None or op.returned_s >= duration_s or op.workload == FINAL:
            continue
        second = seconds[int(op.returned_s)]
        took_ms = (op.returned_s - op.invoked_s) * 1000
        if op.outcome not in (OK, CONFLICT):
            second.failed += 1
        elif op.kind in WRITES:
            second.writes += 1
            second.took_ms["write"].append(took_ms)
        elif op.kind in READS:
            second.reads += 1
            second.took_ms["read"].append(took_ms)
    return seconds


def outcomes(ops: Iterable[Op]) -> dict[str, dict[str, int]]:
    """Operations by workload and kind, and outcome."""
    counts: dict[str, Counter[str]] = {}
    for op in ops:
        counts.setdefault(f"{op.workload}: {op.kind}", Counter())[op.outcome] += 1
    return {kind: dict(sorted(counts[kind].items())) for kind in sorted(counts)}


@dataclass(slots=True)
class Cost:
    """Of all faults of one kind. ``gap_s``: the longest time without an acknowledged write of a tablet that met one
    of them; ``whole_s``: the longest from a fault's end until every replica was in sync, of those that were awaited."""

    count: int = 0
    gap_s: float = 0.0
    whole_s: float = 0.0


def costs(
    bands: Sequence[Band], acknowledged_s: Sequence[Sequence[float]], duration_s: float
) -> dict[str, Cost]:
    """``acknowledged_s``: for each tablet when its writes were acknowledged, in seconds of the run. A gap belongs to
    the fault that was the last to begin; a longer one is split among the faults that it met."""
    found: dict[str, Cost] = {}
    ends = [band.began_s for band in bands[1:]] + [duration_s]
    for band, until_s in zip(bands, ends, strict=True):
        cost = found.setdefault(band.kind, Cost())
        cost.count += 1
        cost.gap_s = max(cost.gap_s, *(longest_gap(times, band.began_s, until_s) for times in acknowledged_s))
        if band.whole_s is not None and band.ended_s is not None:
            cost.whole_s = max(cost.whole_s, band.whole_s - band.ended_s)
    return dict(sorted(found.items()))


def longest_gap(times: Sequence[float], since_s: float, until_s: float) -> float:
    """The longest time between two neighbours of the sorted ``times``, as far as it lies between the two moments."""
    inside = times[bisect_left(times, since_s) : bisect_left(times, until_s)]
    return max(after - before for before, after in pairwise([since_s, *inside, until_s]))
