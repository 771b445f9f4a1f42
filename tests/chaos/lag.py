"""How long the nodes' event loops did not run, second by second, from their metrics.

DESIGN section 4: the loop never blocks for more than a few milliseconds. What counts is how long a node kept its own
loop from running: a loop's lag less the time for which its thread was ready and the machine ran others. A node that
does not run, or was stopped by a signal, is not measured: its next second is skipped. Nor is one whose disk is being
hurt: a store that met a full disk is closed and opened anew, and reads wait for that. Beside it stands the whole lag,
and that of this process, which show what the machine took.
"""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field

from tests.chaos.stage import Stage

PERIOD_S = 1.0
PROBE_S = 0.02
LAG = "ackord_loop_lag_seconds"
BLOCKED = "ackord_loop_blocked_seconds"
NOTED_S = 0.05  # a probe over it is listed

Buckets = dict[float, int]  # upper bound in seconds -> how many probes up to it


@dataclass(slots=True)
class LoopLag:
    """``blocked`` and ``lag``: probes by the upper bound (seconds) of the bucket that they fell into."""

    blocked: Counter[float] = field(default_factory=Counter)
    lag: Counter[float] = field(default_factory=Counter)
    worst_s: dict[str, float] = field(
        default_factory=dict
    )  # node -> bound of the worst bucket it was blocked for
    late: list[tuple[float, str, float]] = field(
        default_factory=list
    )  # at, node, bound: blocked over NOTED_S
    own_s: list[float] = field(default_factory=list)  # of this process, probe by probe


def share_over(counts: Counter[float], bound_s: float) -> float:
    return sum(count for upper_s, count in counts.items() if upper_s > bound_s) / max(1, counts.total())


def quantile(counts: Counter[float], share: float) -> float:
    """The upper bound of the bucket that holds it."""
    left = share * counts.total()
    for upper_s in sorted(counts):
        left -= counts[upper_s]
        if left <= 0:
            return upper_s
    return 0.0


async def watch_lag(stage: Stage, lag: LoopLag) -> None:
    """Until cancelled."""
    async with asyncio.TaskGroup() as both:
        both.create_task(_watch_own(lag))
        both.create_task(_watch_nodes(stage, lag))


async def _watch_nodes(stage: Stage, lag: LoopLag) -> None:
    before: dict[str, tuple[int, dict[str, Buckets]]] = {}
    while True:
        since = stage.now()
        await asyncio.sleep(PERIOD_S)
        for node in stage.machines.nodes:
            if not node.is_running:
                before.pop(node.name, None)
                continue
            found = await asyncio.to_thread(_ask, node.url)
            earlier = before.pop(node.name, None)
            if found is None:
                continue
            before[node.name] = (node.pid, found)
            if earlier is None or earlier[0] != node.pid or stage.is_hurt(node.name):
                continue
            if _was_out(stage, node.name, since - PERIOD_S):
                continue
            lag.lag += new_probes(earlier[1][LAG], found[LAG])
            note_blocked(lag, stage.now(), node.name, new_probes(earlier[1][BLOCKED], found[BLOCKED]))


async def _watch_own(lag: LoopLag) -> None:
    while True:
        before = time.monotonic()
        await asyncio.sleep(PROBE_S)
        lag.own_s.append(time.monotonic() - before - PROBE_S)


def _was_out(stage: Stage, name: str, since_s: float) -> bool:
    return any(node == name and (until is None or until > since_s) for node, _, until in stage.outages)


def note_blocked(lag: LoopLag, now_s: float, name: str, probes: Counter[float]) -> None:
    lag.blocked += probes
    for upper_s in sorted(probes):
        lag.worst_s[name] = max(lag.worst_s.get(name, 0.0), upper_s)
        if upper_s > NOTED_S:
            lag.late.append((round(now_s, 1), name, upper_s))


def new_probes(earlier: Buckets, found: Buckets) -> Counter[float]:
    """By the bucket that they fell into."""
    probes: Counter[float] = Counter()
    below = 0
    for upper_s in sorted(found):
        upto = found[upper_s] - earlier.get(upper_s, 0)
        if upto > below:
            probes[upper_s] = upto - below
        below = upto
    return probes


def _ask(url: str) -> dict[str, Buckets] | None:
    """None if the node does not answer."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=0.5) as response:
            return read_buckets(response.read().decode())
    except OSError:
        return None


def read_buckets(text: str) -> dict[str, Buckets]:
    """The cumulative counts of both histograms in a node's metrics."""
    found: dict[str, Buckets] = {LAG: {}, BLOCKED: {}}
    for line in text.splitlines():
        name, _, rest = line.partition('_bucket{le="')
        if name in found and rest:
            found[name][float(rest.split('"')[0])] = int(float(rest.rsplit(" ", 1)[1]))
    return found
