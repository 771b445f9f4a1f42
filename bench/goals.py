"""The goals: each is a figure of Ackord against the best peer of the same run, and the bound that it shall keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.measuring import Sample
from bench.plan import CACHED, CALLERS_EACH, LARGE, LARGE_BESIDE, PROCESSES, SMALL
from bench.results import Results
from bench.workloads import Work

PACED = "put, paced, "


@dataclass(frozen=True, slots=True)
class Figure:
    """``ratio`` is Ackord's number against the other; None where one of them was not measured."""

    goal: str
    ackord: str
    other: str
    ratio: float | None
    is_reached: bool | None

    @property
    def verdict(self) -> str:
        return {True: "reached", False: "not reached", None: "not measured"}[self.is_reached]


@dataclass(frozen=True, slots=True)
class Goal:
    text: str
    figure: Callable[[str, Results], Figure]

    def of(self, results: Results) -> Figure:
        return self.figure(self.text, results)


def _not_measured(text: str) -> Figure:
    return Figure(text, "-", "-", None, None)


def rate_goal(work: Work, least: float) -> Callable[[str, Results], Figure]:
    """Rows a second, at least so many times the best peer's."""

    def figure(text: str, results: Results) -> Figure:
        own, peers = results.median(work), results.peers(work)
        if own is None or not peers:
            return _not_measured(text)
        best = max(peers, key=lambda name: peers[name].rows_per_s)
        ratio = own.rows_per_s / peers[best].rows_per_s
        return Figure(
            text,
            f"{own.rows_per_s:,.0f}/s",
            f"{best} {peers[best].rows_per_s:,.0f}/s",
            ratio,
            ratio >= least,
        )

    return figure


def latency_goal(
    own: Sample | None, peers: dict[str, Sample], pick: Callable[[Sample], float], most: float, text: str
) -> Figure:
    """Milliseconds, at most so many times the best peer's."""
    if own is None or not peers:
        return _not_measured(text)
    best = min(peers, key=lambda name: pick(peers[name]))
    ratio = pick(own) / pick(peers[best])
    return Figure(text, f"{pick(own):.2f} ms", f"{best} {pick(peers[best]):.2f} ms", ratio, ratio <= most)


def lone_put(text: str, results: Results) -> Figure:
    work = Work("put", SMALL, 1)
    return latency_goal(results.median(work), results.peers(work), lambda sample: sample.p50_ms, 1.0, text)


def half_load(text: str, results: Results) -> Figure:
    """Each system at half of its own maximum."""
    medians = next((results.medians(cell) for cell in results.samples if cell.startswith(PACED)), {})
    peers = {name: sample for name, sample in medians.items() if name != "Ackord"}
    return latency_goal(medians.get("Ackord"), peers, lambda sample: sample.p99_ms, 1.0, text)


def cached_gets(text: str, results: Results) -> Figure:
    own = results.median(CACHED)
    if own is None:
        return _not_measured(text)
    is_reached = own.rows_per_s >= 1e6 and own.p50_ms < 0.002
    return Figure(text, f"{own.rows_per_s:,.0f}/s, p50 {own.p50_ms * 1000:.2f} µs", "-", None, is_reached)


def many_rows(text: str, results: Results) -> Figure:
    """Against Ackord itself: the geometric mean over the works that ran on both tables."""
    ratios = []
    for kind, callers in LARGE_BESIDE:
        few, many = (results.median(Work(kind, table, callers)) for table in (SMALL, LARGE))
        if few is not None and many is not None:
            ratios.append(many.rows_per_s / few.rows_per_s)
    if not ratios:
        return _not_measured(text)
    ratio = math.exp(sum(map(math.log, ratios)) / len(ratios))
    return Figure(text, " ".join(f"{one:.2f}" for one in ratios), "itself", ratio, ratio >= 0.85)


GOALS: Sequence[Goal] = (
    Goal("put, 1 caller, p50: at most 1.0 x", lone_put),
    Goal("puts/s, 64 callers: at least 2.5 x", rate_goal(Work("put", SMALL, 64), 2.5)),
    Goal("puts/s, 256 callers: at least 5 x", rate_goal(Work("put", SMALL, 256), 5.0)),
    Goal("gets/s, 256 callers: at least 4 x", rate_goal(Work("get", SMALL, 256), 4.0)),
    Goal("cached gets/s, 1 process: at least 1 million, p50 under 2 µs", cached_gets),
    Goal("batches of 100, rows/s: at least 2 x", rate_goal(Work("batch", SMALL, 16), 2.0)),
    *(
        Goal(f"YCSB {kind[-1].upper()}: at least 2 x", rate_goal(Work(kind, SMALL, 64), 2.0))
        for kind in ("ycsb-a", "ycsb-b", "ycsb-f")
    ),
    Goal("1 million rows against 10 thousand: at least 0.85 of the rate", many_rows),
    Goal("p99 at half of the maximum write load: at most 1.0 x", half_load),
)
ALSO_SHOWN: Sequence[tuple[str, Work]] = (
    ("puts/s, 8 processes of 32", Work("put", SMALL, CALLERS_EACH, PROCESSES)),
    ("gets/s, 8 processes of 32", Work("get", SMALL, CALLERS_EACH, PROCESSES)),
)


def figures(results: Results) -> list[Figure]:
    """All goals, in their order."""
    return [goal.of(results) for goal in GOALS]
