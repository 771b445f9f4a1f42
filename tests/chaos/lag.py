"""How long the nodes' event loops did not run, second by second, from their metrics.

DESIGN section 4: the loop never blocks for more than a few milliseconds. A node that does not run, or was stopped by
a signal, is not measured: its next second is skipped. Beside the nodes' loops stands the one of this process, which
shows what the machine itself took.
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
BUCKET = 'ackord_loop_lag_seconds_bucket{le="'


@dataclass(slots=True)
class LoopLag:
    """``counts``: probes by the upper bound (seconds) of the bucket that they fell into."""

    counts: Counter[float] = field(default_factory=Counter)
    worst_s: dict[str, float] = field(default_factory=dict)  # node -> bound of the worst bucket
    late: list[tuple[float, str, float]] = field(default_factory=list)  # at, node, bound: those over 0.2 s
    own_s: list[float] = field(default_factory=list)  # of this process, probe by probe

    def share_over(self, bound_s: float) -> float:
        total = sum(self.counts.values())
        return sum(count for upper_s, count in self.counts.items() if upper_s > bound_s) / max(1, total)

    def own_share_over(self, bound_s: float) -> float:
        return sum(late_s > bound_s for late_s in self.own_s) / max(1, len(self.own_s))

    def quantile(self, share: float) -> float:
        """The upper bound of the bucket that holds it."""
        left = share * sum(self.counts.values())
        for upper_s in sorted(self.counts):
            left -= self.counts[upper_s]
            if left <= 0:
                return upper_s
        return 0.0


async def watch_lag(stage: Stage, lag: LoopLag) -> None:
    """Until cancelled."""
    async with asyncio.TaskGroup() as both:
        both.create_task(_watch_own(lag))
        both.create_task(_watch_nodes(stage, lag))


async def _watch_nodes(stage: Stage, lag: LoopLag) -> None:
    before: dict[str, tuple[int, dict[float, int]]] = {}
    while True:
        since = stage.now()
        await asyncio.sleep(PERIOD_S)
        for node in stage.machines.nodes:
            if not node.is_running:
                before.pop(node.name, None)
                continue
            found = await asyncio.to_thread(_read, node.url)
            earlier = before.pop(node.name, None)
            if found is None:
                continue
            before[node.name] = (node.pid, found)
            if earlier is None or earlier[0] != node.pid or _was_out(stage, node.name, since - PERIOD_S):
                continue
            _count(lag, stage.now(), node.name, earlier[1], found)


async def _watch_own(lag: LoopLag) -> None:
    while True:
        before = time.monotonic()
        await asyncio.sleep(PROBE_S)
        lag.own_s.append(time.monotonic() - before - PROBE_S)


def _was_out(stage: Stage, name: str, since_s: float) -> bool:
    return any(node == name and (until is None or until > since_s) for node, _, until in stage.outages)


def _count(lag: LoopLag, now_s: float, name: str, earlier: dict[float, int], found: dict[float, int]) -> None:
    below = 0
    for upper_s in sorted(found):
        upto = found[upper_s] - earlier.get(upper_s, 0)
        if upto > below:
            lag.counts[upper_s] += upto - below
            lag.worst_s[name] = max(lag.worst_s.get(name, 0.0), upper_s)
            if upper_s > 0.2:
                lag.late.append((round(now_s, 1), name, upper_s))
        below = upto


def _read(url: str) -> dict[float, int] | None:
    """The cumulative counts by upper bound; None if the node does not answer."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=0.5) as response:
            text = response.read().decode()
    except OSError:
        return None
    return {
        float(line.removeprefix(BUCKET).split('"')[0]): int(float(line.rsplit(" ", 1)[1]))
        for line in text.splitlines()
        if line.startswith(BUCKET)
    }
